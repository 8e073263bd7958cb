// SPDX-License-Identifier: BSD-3-Clause
//! `reconnect=` beside other parameters, before real servers: through ssh, and with exports that clients
//! choose.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::clients::LIMIT;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, plugin_args};
use common::need;
use common::process::eventually;
use common::sshd::Sshd;
use common::tcp::{TcpServer, V4};

const PATIENT: &str = "reconnect=60";

/// nbdkit in front of a server behind ssh, and a client of it that has written.
fn through_ssh(sshd: &Sshd, server: &TcpServer, extra: &[&str]) -> (Nbdkit, Front) {
    let uri = format!("nbd+ssh://{}/?nbd-port={}", sshd.authority(), server.port());
    let args = plugin_args(&[&[&*uri, PATIENT], extra].concat());
    let front = Nbdkit::start_with(sshd.directory(), &args, |command| sshd.prepare(command));
    let mut client = Front::open(front.socket()).expect("opens");
    client.write(0, &[7; 4096]).expect("a write");
    (front, client)
}

fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id fits");
    // SAFETY: kill takes plain numbers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn ssh_that_is_killed_is_a_pause() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let (front, mut client) = through_ssh(&sshd, &server, &[]);
    signal(sshd.pids()[0], libc::SIGKILL);
    assert_eq!(client.read(0, 4096), Ok(vec![7; 4096]));
    assert_eq!(sshd.pids().len(), 2, "another one");
    let told = front.stderr();
    assert!(told.contains("killed by signal 9"), "{told}");
    client.flush().expect("a flush");
    client.close();
    sshd.none_is_left();
}

/// It is known by the deadline of the request alone.
#[test]
fn ssh_that_hangs_is_a_pause() {
    let Some(sshd) = Sshd::start() else { return };
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let times = ["request-timeout=2", "close-timeout=1"];
    let (_front, mut client) = through_ssh(&sshd, &server, &times);
    client.flush().expect("a flush");
    signal(sshd.pids()[0], libc::SIGSTOP);
    assert_eq!(client.read(0, 4096), Ok(vec![7; 4096]));
    client.close();
    sshd.none_is_left();
}

/// A server of a folder, whose files have been lost with it.
fn empty_files(folder: &Path, socket: &Path) -> Nbdkit {
    for name in ["alpha", "beta"] {
        fs::write(folder.join(name), vec![0; 1 << 20]).expect("a file");
    }
    let _ = fs::remove_file(socket);
    Nbdkit::start_at(socket, &["file", &format!("dir={}", folder.display())])
}

#[test]
fn each_export_comes_back_under_its_name() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (folder, socket) = (directory.path().join("disks"), directory.path().join("far"));
    fs::create_dir(&folder).expect("a folder");
    let mut server = empty_files(&folder, &socket);
    let front = forward(directory.path(), &socket, &["dynamic-export=true", PATIENT]);
    let mut clients = ["alpha", "beta"].map(|name| {
        let client = Front::open_as(front.socket(), name, false).expect("opens");
        (name, client)
    });
    for (name, client) in &mut clients {
        client
            .write(512, &name.repeat(100).as_bytes()[..400])
            .expect("a write");
    }
    server.signal(libc::SIGKILL);
    server.wait_timeout(LIMIT).expect("it ends");
    let _server = empty_files(&folder, &socket);
    for (name, client) in &mut clients {
        let wrote = name.repeat(100).as_bytes()[..400].to_vec();
        assert_eq!(client.read(512, 400), Ok(wrote.clone()), "{name}");
        client.flush().expect("a flush");
        eventually("it is in the file", Duration::from_secs(5), || {
            let file = fs::read(folder.join(*name)).ok()?;
            (file.get(512..912)? == wrote).then_some(())
        });
    }
}
