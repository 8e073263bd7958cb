// SPDX-License-Identifier: BSD-3-Clause
//! `command=` with nbdkit's own `-u`: nbdkit is somebody else than the server, and still reaches it.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::clients::{LIMIT, text};
use common::front::Front;
use common::need_all;
use common::process::run;
use common::started::{Place, end, script, strs};

/// Only root can become somebody else.
fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("SKIP: {}: needs root", common::test_name());
    }
    root
}

/// Lets everybody pass through the test's own directory, where nbdkit puts its pid file.
fn open_to_all(place: &Place) {
    let all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(place.path(), all).expect("chmod");
}

/// What happens to somebody who runs `program` as the user that nbdkit has become.
fn as_nobody(program: &str, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(args).uid(65534).gid(65534).current_dir("/");
    let output = run(&mut command, LIMIT);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

fn can_connect(socket: &Path) -> (bool, String) {
    let script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
    as_nobody("/usr/bin/python3", &["-c", script, text(socket)])
}

#[test]
fn another_user_reaches_the_server_again_and_nobody_else_does() {
    if !need_all(&["nbdkit", "python3"]) || !is_root() {
        return;
    }
    let place = Place::new();
    open_to_all(&place);
    let mut args = script("exec nbdkit -f --filter=delay memory 1M rdelay=300").to_vec();
    args.extend(["-unobody", "-gnogroup", "request-timeout=1"].map(str::to_owned));
    let mut front = place.start(&strs(&args));
    let mut client = Front::open(front.socket()).expect("opens");
    // Nothing but the deadline ends this read, and with it the connection.
    assert!(client.read(0, 512).is_err());

    let mut next = Front::open(front.socket()).expect("opens again");
    assert_eq!(next.write(0, &[1; 512]), Ok(()));

    let kept = place.kept();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let (can, said) = can_connect(&kept[0].join("sock"));
    assert!(!can && said.contains("Permission"), "{said}");
    // Nor through what nbdkit has opened.
    let descriptors = format!("/proc/{}/fd/", front.pid());
    let (can, said) = as_nobody("ls", &[&descriptors]);
    assert!(!can && said.contains("Permission"), "{said}");

    next.close();
    client.close();
    let server = place.server();
    end(&mut front);
    server.is_gone();
    place.is_clean();
}

#[test]
fn server_ends_although_nbdkit_may_not_signal_it() {
    if !need_all(&["nbdkit"]) || !is_root() {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let place = Place::new();
        open_to_all(&place);
        let mut args = script("exec nbdkit -f memory 1M").to_vec();
        args.push("-unobody".to_owned());
        let mut front = place.start(&strs(&args));
        let server = place.server();
        front.signal(signal);
        assert!(front.wait_timeout(LIMIT).is_some());
        server.is_gone();
        server.is_reaped();
        place.is_clean();
    }
}
