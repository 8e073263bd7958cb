// SPDX-License-Identifier: BSD-3-Clause
//! Statistics: where and when they are written, and what becomes of a file that cannot be.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::OFlags;

use common::clients::{LIMIT, attempt, nbdsh_unconnected, text};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, plugin_args};
use common::process::{Guarded, eventually, hand_over, run_ok};
use common::statistics::{Counted, are, documented, figures, file, number, read, spelt_out};
use common::upstream::memory;
use common::{need, need_all, plugin};

#[test]
fn the_file_is_written_while_nbdkit_runs_and_always_whole() {
    if !need("nbdkit") {
        return;
    }
    let mut counted = Counted::start(&["memory", "1M"], &["stats-interval=100ms"]);
    let directory = counted.directory.path().to_owned();
    let mut client = counted.client();
    let whole = |known: &mut usize| {
        let block = fs::read_to_string(file(&directory)).ok()?;
        assert!(block.ends_with('\n'), "{block:?}");
        let keys = figures(&block).len();
        assert!(*known == 0 || *known == keys, "{block}");
        *known = keys;
        Some(number(&figures(&block), "read_requests"))
    };
    let mut known = 0;
    for n in 1..=3 {
        client.read(0, 512).expect("reads");
        eventually("it is written", LIMIT, || {
            (whole(&mut known)? == n).then_some(())
        });
    }
    client.close();
    counted.front.ends_well();
    let entries = fs::read_dir(&directory).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").path());
    let left: Vec<_> = names.filter(|name| text(name).ends_with(".tmp")).collect();
    assert_eq!(left, [""; 0].map(PathBuf::from));
}

#[test]
fn standard_error_gets_each_block() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let args = ["stats=stderr", "stats-interval=100ms"];
    let mut front = forward(directory.path(), server.socket(), &args);
    let blocks = |front: &Nbdkit| front.stderr().matches("stats_format=1\n").count();
    eventually("two are written", LIMIT, || {
        (blocks(&front) >= 2).then_some(())
    });
    Front::open(front.socket()).expect("opens").close();
    front.ends_well();
    let log = front.stderr();
    let (_, last) = log.rsplit_once("stats_format=1\n").expect("a block");
    assert!(last.contains("\nconnections_opened=1\n"), "{last}");
    assert!(last.contains("\nextents_server_max_us=0\n"), "{last}");
}

/// Nor is it told that nobody reads: that would have to be read, too.
#[test]
fn standard_error_that_nobody_reads_does_not_keep_nbdkit_from_ending() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let (_reader, writer) = rustix::pipe::pipe().expect("a pipe");
    set_flags(&writer, OFlags::NONBLOCK);
    while rustix::io::write(&writer, &[b'\n'; 4096]).is_ok() {}
    while rustix::io::write(&writer, b"\n").is_ok() {}
    set_flags(&writer, OFlags::empty());
    // Nothing but what has to be said: there is no room for debug output.
    let plugin = plugin().display().to_string();
    let socket = format!("socket={}", server.socket().display());
    let args = [&*plugin, &socket, "stats=stderr"];
    let mut front = Nbdkit::start_with(directory.path(), &args, |command| {
        hand_over(command, &writer, 2);
    });
    Front::open(front.socket()).expect("opens").close();
    front.ends_well();
}

fn set_flags(pipe: &OwnedFd, flags: OFlags) {
    rustix::fs::fcntl_setfl(pipe, flags).expect("sets flags");
}

#[test]
fn a_file_is_where_the_user_was_also_in_the_background() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let socket = format!("socket={}", server.socket().display());
    let args = [&*socket, "stats=stats", "stats-interval=100ms"];
    let daemon = Daemon::start(directory.path(), &args);
    eventually("it is written", LIMIT, || {
        file(directory.path()).exists().then_some(())
    });
    drop(daemon);
    are(&read(directory.path()), &[("stats_format", 1)]);
}

#[test]
fn a_captive_command_and_a_single_client_are_counted_too() {
    if !need_all(&["nbdkit", "nbdsh", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let socket = format!("socket={}", server.socket().display());
    let stats = format!("stats={}", file(directory.path()).display());

    let mut captive = Command::new("nbdkit");
    captive
        .args(["-U", "-"])
        .args(plugin_args(&[&socket, &stats]));
    captive.args(["--run", "nbdinfo --size \"$uri\""]);
    run_ok(&mut captive, LIMIT);
    are(&read(directory.path()), &[("connections_opened", 1)]);

    let plugin = plugin().display().to_string();
    nbdsh_unconnected(&format!(
        "h.connect_command(['nbdkit', '-s', '{plugin}', '{socket}', '{stats}'])\n\
         h.pread(512, 0)\n\
         h.shutdown()\n"
    ));
    eventually("it has ended", LIMIT, || {
        let text = fs::read_to_string(file(directory.path())).ok()?;
        (number(&figures(&text), "read_requests") == 1).then_some(())
    });
}

#[test]
fn a_directory_that_has_gone_is_told_of_once_and_harms_nobody() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let there = directory.path().join("there");
    fs::create_dir(&there).expect("a directory");
    let server = memory(directory.path(), "1M");
    let stats = format!("stats={}", file(&there).display());
    let args = [&*stats, "stats-interval=100ms"];
    let mut front = forward(directory.path(), server.socket(), &args);
    let gone = || eventually("it is gone", LIMIT, || fs::remove_dir_all(&there).ok());
    let told = |front: &Nbdkit, count| {
        eventually("it is told", LIMIT, || {
            (front.errors().len() == count).then_some(())
        });
    };
    gone();
    told(&front, 1);
    let mut client = Front::open(front.socket()).expect("opens");
    client.read(0, 512).expect("reads");
    // Later tries are in the debug output only.
    eventually("it is tried again", LIMIT, || {
        let log = front.stderr();
        (log.matches("there/stats").count() >= 6).then_some(())
    });
    assert_eq!(front.errors().len(), 1, "{:?}", front.errors());
    fs::create_dir(&there).expect("a directory");
    eventually("it is written again", LIMIT, || {
        file(&there).exists().then_some(())
    });
    are(&read(&there), &[("read_requests", 1)]);
    gone();
    told(&front, 2);
    client.close();
    front.ends_well();
}

#[test]
fn a_full_file_system_is_told_of_and_the_last_block_stays() {
    if !need_all(&["nbdkit", "unshare"]) {
        return;
    }
    let own = ["--map-root-user", "--mount"];
    if !attempt("unshare", &[&own[..], &["true"]].concat())
        .status
        .success()
    {
        println!("SKIP: {}: no mount namespaces here", common::test_name());
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let small = directory.path().join("small");
    fs::create_dir(&small).expect("a directory");
    let server = memory(directory.path(), "1M");
    let socket = directory.path().join("front.sock");
    let mut command = Command::new("unshare");
    command
        .args(own)
        // Two pages: one for what is there, and one for what takes its place.
        .args([
            "sh",
            "-c",
            "mount -t tmpfs -o size=8k none \"$0\" && exec nbdkit \"$@\"",
        ])
        .arg(&small)
        .args(["-f", "-U", text(&socket), text(&plugin())])
        .arg(format!("socket={}", server.socket().display()))
        .arg(format!("stats={}", file(&small).display()))
        .arg("stats-interval=100ms");
    let front = Guarded::spawn(&mut command);
    let inside = PathBuf::from(format!("/proc/{}/root{}", front.pid(), small.display()));
    let written = || {
        fs::read_to_string(file(&inside))
            .ok()
            .map(|text| figures(&text))
    };
    let keys = eventually("it is written", LIMIT, || Some(written()?.len()));
    let fill = inside.join("fill");
    eventually("it is told", LIMIT, || {
        fs::write(&fill, [1; 8192]).expect_err("there is less room");
        let full = "No space left on device; requests are served all the same";
        front.stderr().contains(full).then_some(())
    });
    assert_eq!(written().expect("still there").len(), keys);
    let mut client = Front::open(&socket).expect("opens");
    client.read(0, 512).expect("reads");
    fs::remove_file(&fill).expect("there");
    eventually("it is written again", LIMIT, || {
        (number(&written()?, "read_requests") == 1).then_some(())
    });
    client.close();
}

#[test]
fn what_is_no_file_is_left_alone() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let target = directory.path().join("target");
    fs::write(&target, "precious").expect("a file");
    std::os::unix::fs::symlink(&target, file(directory.path())).expect("a link");
    let stats = format!("stats={}", file(directory.path()).display());
    let refusal = common::refusal::refusal(&["socket=/nowhere", &stats]);
    assert!(refusal.contains("not a regular file"), "{refusal}");
    assert_eq!(fs::read_to_string(&target).expect("there"), "precious");
}

#[test]
fn the_manual_has_the_keys_that_are_written_and_no_others() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "1M"], &[]);
    let written: BTreeSet<String> = counted.end().into_keys().collect();
    let items = documented("Keys");
    let documented: BTreeSet<String> = items.iter().flat_map(|item| spelt_out(item)).collect();
    let undocumented: Vec<_> = written.difference(&documented).collect();
    let unwritten: Vec<_> = documented.difference(&written).collect();
    assert!(
        undocumented.is_empty() && unwritten.is_empty(),
        "\nwritten, but not in the manual: {undocumented:#?}\nin the manual, but not written: {unwritten:#?}"
    );
}
