// SPDX-License-Identifier: BSD-3-Clause
//! Servers behind ssh, with a real sshd: what arrives, what is told when it does not, and that no ssh stays.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::clients::{LIMIT, nbdsh, text};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::{Nbdkit, plugin_args};
use common::need;
use common::refusal::{Mode, refusal_with};
use common::sshd::Sshd;
use common::tcp::{TcpServer, V4, listen, port};

const TELLS_THE_NAME: [&str; 1] = ["info"];

/// nbdkit in front of ssh.
fn through(sshd: &Sshd, args: &[&str]) -> Nbdkit {
    Nbdkit::start_with(sshd.directory(), &plugin_args(args), |command| {
        sshd.prepare(command)
    })
}

/// What a client reads through nbdkit.
fn content(uri: &str) -> String {
    let script = "print(h.pread(h.get_size(), 0).decode())";
    nbdsh(uri, script).trim_end().to_owned()
}

fn on_tcp(sshd: &Sshd, server: &TcpServer) -> String {
    format!(
        "nbd+ssh://{}/disk?nbd-port={}",
        sshd.authority(),
        server.port()
    )
}

#[test]
fn server_on_tcp_of_the_other_host() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    let mut front = through(&sshd, &[&on_tcp(&sshd, &server)]);
    assert_eq!(content(&front.uri()), "disk");
    let calls = sshd.calls();
    let end = format!(" -W localhost:{} -- 127.0.0.1", server.port());
    assert!(calls[0].ends_with(&end), "{calls:?}");
    assert!(calls[0].contains("-oBatchMode=yes"), "{calls:?}");
    assert!(!calls[0].contains("-C"), "{calls:?}");
    let stderr = front.stderr();
    let name = format!("ssh:{}", sshd.authority());
    let name = name
        .strip_suffix(&format!(":{}", sshd.port()))
        .expect("a port");
    assert!(
        stderr.contains(&format!("{name}:{}: ", server.port())),
        "{stderr}"
    );
    front.ends_well();
    sshd.none_is_left();
}

#[test]
fn server_on_a_unix_socket_of_the_other_host() {
    if !need("nc") {
        return;
    }
    let Some(sshd) = Sshd::start() else { return };
    // A shell would make something else of it.
    let socket = sshd.path("it's $(my) \"socket\" & more");
    let _server = Nbdkit::start_at(&socket, &TELLS_THE_NAME);
    let escaped = text(&socket)
        .replace(' ', "%20")
        .replace('"', "%22")
        .replace('&', "%26");
    let uri = format!("nbd+ssh://{}/disk?socket={escaped}", sshd.authority());
    let mut front = through(&sshd, &[&uri]);
    assert_eq!(content(&front.uri()), "disk");
    front.ends_well();
    sshd.none_is_left();
}

#[test]
fn compression_is_sshs() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    let front = through(&sshd, &[&(on_tcp(&sshd, &server) + "&compress=true")]);
    assert_eq!(content(&front.uri()), "disk");
    assert!(sshd.calls()[0].contains(" -C "), "{:?}", sshd.calls());
}

#[test]
fn megabytes_survive_in_both_directions() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &["memory", "64M"]);
    let front = through(&sshd, &[&on_tcp(&sshd, &server)]);
    let script = "
import os
data = os.urandom(20 << 20)
h.pwrite(data, 12345)
h.flush()
print(h.pread(len(data), 12345) == data)
";
    assert_eq!(nbdsh(&front.uri(), script).trim_end(), "True");
}

#[test]
fn each_client_has_an_ssh_which_ends_with_it() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let mut front = through(&sshd, &[&on_tcp(&sshd, &server)]);
    let open = || Front::open(front.socket()).expect("opens");
    let clients = [open(), open(), open()];
    assert_eq!(sshd.pids().len(), 3);
    clients.into_iter().for_each(Front::close);
    sshd.none_is_left();
    front.ends_well();
}

#[test]
fn ssh_ends_with_an_nbdkit_that_is_killed() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let mut front = through(&sshd, &[&on_tcp(&sshd, &server)]);
    let _client = Front::open(front.socket()).expect("opens");
    front.signal(libc::SIGKILL);
    assert!(front.wait_timeout(LIMIT).is_some());
    sshd.none_is_left();
}

#[test]
fn ssh_ends_with_an_nbdkit_that_is_told_to() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let mut front = through(&sshd, &[&on_tcp(&sshd, &server)]);
    // nbdkit closes nothing for a client that is still there.
    let client = Front::open(front.socket()).expect("opens");
    front.signal(libc::SIGTERM);
    drop(client);
    let status = front.wait_timeout(LIMIT);
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    sshd.none_is_left();
}

/// What goes to all of a terminal's programs, or all of a service's, must not end ssh before nbdkit is done.
#[test]
fn signals_for_nbdkit_are_not_sshs() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let front = through(&sshd, &[&on_tcp(&sshd, &server)]);
    let mut client = Front::open(front.socket()).expect("opens");
    for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGTERM] {
        kill(sshd.pids()[0], signal);
    }
    assert_eq!(client.write(0, &[1; 512]), Ok(()));
    assert_eq!(client.read(0, 512), Ok(vec![1; 512]));
    client.close();
}

fn kill(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id fits");
    // SAFETY: kill takes plain numbers.
    let result = unsafe { libc::kill(pid, signal) };
    assert_eq!(result, 0, "kill");
}

#[test]
fn lost_ssh_is_the_reason_that_is_told() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let front = through(&sshd, &[&on_tcp(&sshd, &server)]);
    let mut client = Front::open(front.socket()).expect("opens");
    kill(sshd.pids()[0], libc::SIGKILL);
    assert!(client.read(0, 512).is_err());
    let stderr = front.stderr();
    assert!(
        stderr.contains("connection lost: ssh was killed by signal 9"),
        "{stderr}"
    );
    // The next client gets another one.
    Front::open(front.socket()).expect("opens").close();
    drop(client);
    sshd.none_is_left();
}

#[test]
fn shared_ssh_is_started_before_nbdkit_goes_into_the_background() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    let args = [&*on_tcp(&sshd, &server), "shared=true"];
    let daemon = Daemon::start_with(sshd.directory(), &args, |command| sshd.prepare(command));
    assert_eq!(content(&daemon.uri()), "disk");
    assert_eq!(content(&daemon.uri()), "disk");
    assert_eq!(sshd.pids().len(), 1);
    assert!(daemon.terminate(LIMIT), "{}", daemon.stderr());
    // Whoever has become its parent may not wait for it.
    common::process::eventually("ssh has ended", LIMIT, || {
        has_ended(sshd.pids()[0]).then_some(())
    });
}

/// Whether nothing of a process is left but perhaps its number.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn export_may_be_the_clients_choice() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    let front = through(&sshd, &[&on_tcp(&sshd, &server), "dynamic-export=true"]);
    assert_eq!(content(&front.uri_export("other")), "other");
}

#[test]
fn tls_is_between_nbdkit_and_the_server() {
    if !need("psktool") {
        return;
    }
    let Some(sshd) = Sshd::start() else { return };
    let keys = sshd.path("keys");
    common::clients::program("psktool", &["-u", "alice", "-p", text(&keys)]);
    let psk = format!("--tls-psk={}", keys.display());
    let server = TcpServer::start(V4, &["--tls=require", &psk, "info"]);
    let uri = format!(
        "nbds+ssh://{}/disk?nbd-port={}&tls-username=alice&tls-psk-file={}",
        sshd.authority(),
        server.port(),
        keys.display()
    );
    assert_eq!(content(&through(&sshd, &[&uri]).uri()), "disk");
}

/// nbdkit starts, and no client can open the export; returns all that it said.
fn fails(sshd: &Sshd, args: &[&str]) -> String {
    let mut front = through(sshd, args);
    assert!(Front::open(front.socket()).is_err(), "{args:?}: opened");
    let stderr = front.stderr();
    front.ends_well();
    sshd.none_is_left();
    stderr
}

#[test]
fn last_words_of_ssh_are_told() {
    let Some(sshd) = Sshd::start() else { return };
    let nobody = listen(V4);
    let free = port(&nobody);
    drop(nobody);
    let uri = format!("nbd+ssh://{}/?nbd-port={free}", sshd.authority());
    let stderr = fails(&sshd, &[&uri]);
    assert!(
        stderr.contains("connect: ssh exited with status 255: "),
        "{stderr}"
    );
    assert!(stderr.contains("onnect failed"), "{stderr}");

    fs::write(sshd.path("authorized"), "").expect("write");
    let stderr = fails(&sshd, &[&uri]);
    let denied = stderr.matches("Permission denied (publickey)").count();
    assert_eq!(denied, 1, "told once: {stderr}");

    // It would ask whether to trust the key, but there is nobody to be asked.
    fs::write(sshd.path("known"), "").expect("write");
    let stderr = fails(&sshd, &[&uri]);
    assert!(stderr.contains("Host key verification failed"), "{stderr}");
}

/// What ssh has to say of a connection that works is not lost.
#[test]
fn warnings_of_ssh_are_passed_on() {
    let Some(sshd) = Sshd::start() else { return };
    fs::write(sshd.path("known"), "").expect("write");
    let config = sshd.path("ssh_config");
    let ask = fs::read_to_string(&config).expect("read");
    let trust = ask.replace("StrictHostKeyChecking ask", "StrictHostKeyChecking no");
    fs::write(&config, trust).expect("write");
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    let front = through(&sshd, &[&on_tcp(&sshd, &server)]);
    let client = Front::open(front.socket()).expect("opens");
    common::process::eventually("the warning", LIMIT, || {
        front
            .stderr()
            .contains("Warning: Permanently added")
            .then_some(())
    });
    client.close();
}

#[test]
fn missing_nc_or_socket_is_told() {
    let Some(sshd) = Sshd::start() else { return };
    let uri = format!("nbd+ssh://{}/?socket=/no/such", sshd.authority());
    let stderr = fails(&sshd, &[&uri]);
    assert!(
        stderr.contains("connect: ssh exited with status "),
        "{stderr}"
    );
}

#[test]
fn what_ssh_cannot_reach_is_tried_again() {
    let Some(sshd) = Sshd::start() else { return };
    let nobody = listen(V4);
    let free = port(&nobody);
    drop(nobody);
    let uri = format!("nbd+ssh://{}/?nbd-port={free}", sshd.authority());
    fails(&sshd, &[&uri, "retry=1"]);
    let calls = sshd.calls().len();
    assert_eq!(calls % 2, 0, "{calls}: two for each opening");
}

#[test]
fn ssh_server_that_says_nothing_is_given_up() {
    let Some(sshd) = Sshd::start() else { return };
    let silent = listen(V4);
    let uri = format!("nbd+ssh://127.0.0.1:{}/", port(&silent));
    let begun = Instant::now();
    // ssh itself keeps connect-timeout.
    let stderr = fails(&sshd, &[&uri, "connect-timeout=1"]);
    assert!(
        stderr.contains("connect: ssh exited with status 255: "),
        "{stderr}"
    );
    // And the handshake has an end whatever ssh does.
    let stderr = fails(&sshd, &[&uri, "connect-timeout=0", "handshake-timeout=1"]);
    assert!(
        stderr.contains("handshake: timed out after 1 second"),
        "{stderr}"
    );
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn server_that_never_hangs_up_keeps_no_ssh() {
    let Some(sshd) = Sshd::start() else { return };
    // The kernel takes connections in, and nobody ever ends them.
    let silent = listen(V4);
    let uri = format!("nbd+ssh://{}/?nbd-port={}", sshd.authority(), port(&silent));
    let stderr = fails(&sshd, &[&uri, "handshake-timeout=2"]);
    assert!(
        stderr.contains("handshake: timed out after 2 seconds"),
        "{stderr}"
    );
}

#[test]
fn ssh_that_does_not_end_by_itself_is_ended() {
    let Some(sshd) = Sshd::start() else { return };
    let pids = sshd.path("pids");
    let script = format!("#!/bin/sh\necho $$ >> {}\nexec sleep 600\n", pids.display());
    fs::write(sshd.path("bin/ssh"), script).expect("write");
    let mut front = through(&sshd, &["nbd+ssh://far/", "handshake-timeout=500ms"]);
    assert!(Front::open(front.socket()).is_err(), "it says nothing");
    // With the connection, not with nbdkit.
    sshd.none_is_left();
    front.ends_well();
}

#[test]
fn ssh_that_is_not_there_is_told_at_the_start() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let only = |program: &str, directory: &Path| {
        let path = common::clients::program("sh", &["-c", &format!("command -v {program}")]);
        std::os::unix::fs::symlink(path.trim_end(), directory.join(program)).expect("link");
    };
    only("nbdkit", directory.path());
    let prepare = |command: &mut Command| {
        command.env("PATH", directory.path());
    };
    for mode in [Mode::Foreground, Mode::Daemon] {
        let (reason, _) = refusal_with(directory.path(), mode, &["nbd+ssh://far/"], prepare);
        assert_eq!(reason, "uri: cannot start ssh: No such file or directory");
    }
}
