// SPDX-License-Identifier: BSD-3-Clause
//! What nbdkit's log says of a connection, and that it says no more than it was asked to.

mod common;

use std::time::Duration;

use common::clients::{nbdsh, text};
use common::nbdkit::{Nbdkit, forward};
use common::process::eventually;
use common::upstream::memory;
use common::{need, plugin};
use tempfile::TempDir;

/// The lines that nbdkit logged, with these options, when one client came, made `reads` reads and went.
fn log_of(options: &[&str], reads: usize) -> Vec<String> {
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), options);
    log_after(&front, &nbdsh_reads(reads))
}

fn nbdsh_reads(reads: usize) -> String {
    format!("for n in range({reads}): h.pread(512, n * 512)\nh.shutdown()")
}

/// Runs a client and returns the log when nbdkit has closed the connection.
fn log_after(front: &Nbdkit, script: &str) -> Vec<String> {
    nbdsh(&front.uri(), script);
    eventually("the connection is closed", Duration::from_secs(20), || {
        front.stderr().contains("debug: nbd: close").then_some(())
    });
    // Starting and ending worker threads is nbdkit's story, and their number is a matter of chance.
    front
        .stderr()
        .lines()
        .filter(|line| !line.contains("worker thread"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn verbose_tells_the_connections_story() {
    if !need("nbdkit") {
        return;
    }
    let directory: TempDir = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &[]);
    let log = log_after(&front, &nbdsh_reads(1)).join("\n");
    let path = text(upstream.socket());
    let story: Vec<_> = log
        .lines()
        .filter(|line| line.contains(path) && !line.contains("config key="))
        .collect();
    assert!(!story.is_empty(), "which server: {log}");
    assert!(
        story.iter().any(|line| line.contains("connect")),
        "that we connect: {story:#?}"
    );
    assert!(
        story
            .iter()
            .any(|line| line.contains("export of 1048576 bytes, NBD_FLAG_HAS_FLAGS, NBD_FLAG_")),
        "what the export is: {story:#?}"
    );
}

#[test]
fn verbose_alone_says_nothing_of_ours_about_requests() {
    if !need("nbdkit") {
        return;
    }
    // nbdkit itself writes one line for each read, and a few of its own that depend on who is first to go.
    let (none, fifty) = (log_of(&[], 0).len(), log_of(&[], 50).len());
    assert!(fifty - none < 75, "{}", fifty - none);
}

#[test]
fn debug_flag_adds_each_request_and_reply() {
    if !need("nbdkit") {
        return;
    }
    let flag = "-Dnbd.verbose=1";
    let (none, fifty) = (log_of(&[flag], 0).len(), log_of(&[flag], 50).len());
    assert!(
        fifty - none > 125,
        "nbdkit's own line, the request and the reply: {}",
        fifty - none
    );
}

#[test]
fn debug_flag_names_server_cookie_and_answer() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &["-Dnbd.verbose=1"]);
    let log = log_after(&front, &nbdsh_reads(1)).join("\n");
    let reply = format!("debug: {}: reply to cookie 0x", text(upstream.socket()));
    let line = log.lines().find(|line| line.contains(&reply));
    let line = line.unwrap_or_else(|| panic!("no \"{reply}\": {log}"));
    assert!(
        line.ends_with(": NBD_REPLY_TYPE_OFFSET_DATA, 520 bytes, done"),
        "{line}"
    );
}

#[test]
fn without_verbose_a_good_connection_is_silent() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let plugin = plugin();
    let socket = format!("socket={}", upstream.socket().display());
    let mut front = Nbdkit::start(directory.path(), &[text(&plugin), &socket]);
    nbdsh(&front.uri(), &nbdsh_reads(3));
    front.signal(libc::SIGTERM);
    front
        .wait_timeout(Duration::from_secs(20))
        .expect("nbdkit ends");
    assert_eq!(front.stderr(), "");
}

#[test]
fn data_is_never_logged() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = memory(directory.path(), "1M");
    let front = forward(directory.path(), upstream.socket(), &["-Dnbd.verbose=1"]);
    let log = log_after(
        &front,
        "h.pwrite(b'SECRET' * 100, 0)\nh.pread(600, 0)\nh.shutdown()",
    )
    .join("\n");
    assert!(!log.contains("SECRET"), "{log}");
    assert!(
        !log.contains("534543524554") && !log.contains("53 45 43 52 45 54"),
        "{log}"
    );
}
