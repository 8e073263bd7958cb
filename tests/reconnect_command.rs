// SPDX-License-Identifier: BSD-3-Clause
//! `command=` with `reconnect=`: the server is started again, and its clients do not notice.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::clients::{LIMIT, assert_same_bytes, nbdsh, program, text};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::{Nbdkit, plugin_args, uri};
use common::need_all;
use common::process::{Guarded, eventually};
use common::started::{Place, end, script, strs};
use common::upstream::{noise, noise_file};

/// Long enough for a server to be started again on a busy machine.
const RECONNECT: &str = "reconnect=60";

const MEGABYTE: usize = 1 << 20;

/// `qemu-nbd ARGS IMAGE` as the server, which writes its process id to a file first. It serves one client
/// and goes with it, as it does without options.
fn qemu_nbd(format: &str, image: &Path) -> [String; 3] {
    script(&format!("exec qemu-nbd -f {format} '{}'", image.display()))
}

/// nbdkit in front of such a server, with these parameters besides.
fn front(place: &Place, server: &[String], parameters: &[&str]) -> Nbdkit {
    place.start(&[&strs(server), parameters].concat())
}

/// The process id of the server that was started last, which writes it before it serves.
fn pid(place: &Place) -> String {
    eventually("the server has its number", LIMIT, || {
        let pid = fs::read_to_string(place.path().join("pid")).ok()?;
        pid.ends_with('\n').then(|| pid.trim_end().to_owned())
    })
}

/// Kills the server, as the kernel does when memory runs out. The next one writes its number anew.
fn kill(place: &Place) {
    pid(place);
    let server = place.server();
    fs::remove_file(place.path().join("pid")).expect("remove");
    server.signal(libc::SIGKILL);
    server.is_gone();
}

/// Waits until so much of a file is there. The copies take some seconds, as they are slowed down, so that this
/// is while they go on.
fn await_size(file: &Path, megabytes: u64) {
    eventually("the copy goes on", LIMIT, || {
        let blocks = fs::metadata(file).ok()?.blocks();
        (blocks * 512 >= megabytes << 20).then_some(())
    });
}

/// How often nbdkit has lost the server.
fn losses(stderr: &str) -> usize {
    stderr
        .matches("; trying again for up to 60 seconds")
        .count()
}

/// There must be a server, also if the last one was killed when nobody wanted anything from it.
fn read_once(front: &Nbdkit) {
    let mut client = Front::open(front.socket()).expect("opens");
    assert!(client.read(0, 512).is_ok(), "{}", front.stderr());
    client.close();
}

/// nbdkit ends, and with it the server, the last one too; nothing is left.
fn end_all(place: &Place, mut front: Nbdkit) {
    pid(place);
    let server = place.server();
    end(&mut front);
    server.is_gone();
    server.is_reaped();
    place.is_clean();
}

#[test]
fn reading_goes_on_when_the_server_is_killed() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    let image = noise_file(place.path(), "disk", 4 * MEGABYTE, 1);
    let front = front(&place, &qemu_nbd("raw", &image), &[RECONNECT]);
    let mut client = Front::open(front.socket()).expect("opens");
    let expected = noise(4 * MEGABYTE, 1);
    let mut servers = vec![pid(&place)];
    for (megabyte, expected) in expected.chunks(MEGABYTE).enumerate() {
        let offset = (megabyte * MEGABYTE) as u64;
        let read = client.read(offset, MEGABYTE as u32);
        assert!(read.as_deref() == Ok(expected), "{}", front.stderr());
        if megabyte > 0 {
            servers.push(pid(&place));
        }
        if megabyte < 3 {
            kill(&place);
        }
    }
    servers.dedup();
    assert_eq!(servers.len(), 4, "{servers:?}");
    client.close();
    end_all(&place, front);
}

#[test]
fn copy_in_is_whole_although_the_server_is_killed_under_it() {
    if !need_all(&["nbdkit", "nbdcopy", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    let source = noise_file(place.path(), "source", 24 * MEGABYTE, 2);
    let image = place.path().join("disk");
    let file = fs::File::create(&image).expect("create");
    file.set_len(24 << 20).expect("truncate");
    // A copy at 8 MiB in a second, so that the kills fall into it.
    let slow = ["--filter=rate", RECONNECT, "rate=64M", "burstiness=0.1"];
    let front = front(&place, &qemu_nbd("raw", &image), &slow);
    let uri = front.uri();
    let mut copy = Guarded::spawn(Command::new("nbdcopy").args(["--flush", text(&source), &uri]));
    for megabytes in [5, 10, 15] {
        await_size(&image, megabytes);
        // On a machine that is too slow for this, the copy may have ended already.
        read_once(&front);
        kill(&place);
    }
    let status = copy.wait_timeout(LIMIT).expect("the copy ends");
    assert!(status.success(), "{}\n{}", copy.stderr(), front.stderr());
    assert!(losses(&front.stderr()) >= 1, "{}", front.stderr());
    read_once(&front);
    end_all(&place, front);
    assert_same_bytes(&source, &image);
}

#[test]
fn copy_out_is_whole_although_the_server_is_killed_under_it() {
    if !need_all(&["nbdkit", "qemu-img", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    let source = noise_file(place.path(), "source", 16 * MEGABYTE, 3);
    let copied = place.path().join("copied");
    let slow = ["--filter=rate", RECONNECT, "rate=64M", "burstiness=0.1"];
    let front = front(&place, &qemu_nbd("raw", &source), &slow);
    let uri = front.uri();
    let convert = ["convert", "-f", "raw", &uri, "-O", "raw", text(&copied)];
    let mut copy = Guarded::spawn(Command::new("qemu-img").args(convert));
    for megabytes in [4, 8] {
        await_size(&copied, megabytes);
        // On a machine that is too slow for this, the copy may have ended already.
        read_once(&front);
        kill(&place);
    }
    let status = copy.wait_timeout(LIMIT).expect("the copy ends");
    assert!(status.success(), "{}\n{}", copy.stderr(), front.stderr());
    assert!(losses(&front.stderr()) >= 1, "{}", front.stderr());
    read_once(&front);
    end_all(&place, front);
    assert_same_bytes(&source, &copied);
}

/// A qcow2 image of 64 MiB.
fn qcow2(place: &Place) -> PathBuf {
    let image = place.path().join("disk.qcow2");
    let options = ["create", "-q", "-f", "qcow2", text(&image), "64M"];
    program("qemu-img", &options);
    image
}

#[test]
fn what_qemu_kept_in_memory_is_written_again() {
    if !need_all(&["nbdkit", "qemu-img", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    let image = qcow2(&place);
    let front = front(&place, &qemu_nbd("qcow2", &image), &[RECONNECT]);
    let mut client = Front::open(front.socket()).expect("opens");
    // The tables that say where this is are in the memory of qemu-nbd until it flushes.
    let data = noise(64 * 65536, 4);
    for (n, piece) in data.chunks(65536).enumerate() {
        assert_eq!(client.write(n as u64 * MEGABYTE as u64, piece), Ok(()));
    }
    kill(&place);
    for (n, piece) in data.chunks(65536).enumerate() {
        let read = client.read(n as u64 * MEGABYTE as u64, 65536);
        assert!(read.as_deref() == Ok(piece), "{n}: {}", front.stderr());
    }
    assert_eq!(client.flush(), Ok(()));
    // What was flushed needs no help.
    kill(&place);
    assert!(client.read(0, 65536).as_deref() == Ok(&data[..65536]));
    client.close();
    end_all(&place, front);
    let raw = place.path().join("raw");
    let (from, to) = (text(&image), text(&raw));
    program(
        "qemu-img",
        &["convert", "-f", "qcow2", from, "-O", "raw", to],
    );
    let disk = fs::read(&raw).expect("the copy");
    for (n, piece) in data.chunks(65536).enumerate() {
        assert!(disk[n * MEGABYTE..][..65536] == *piece, "{n}");
    }
}

#[test]
fn server_starts_where_the_first_one_did_after_nbdkit_went_to_the_background() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    noise_file(place.path(), "disk", MEGABYTE, 5);
    // The name is relative, and the daemon is in `/`.
    let server = script("exec qemu-nbd -f raw disk");
    let args = [&strs(&server)[..], &[RECONNECT]].concat();
    let daemon = Daemon::start_with(place.path(), &args, |command| place.prepare(command));
    let script = "print(h.pread(1048576, 0) == open('disk', 'rb').read())";
    let same = |uri: &str| {
        let code = format!(
            "import os\nos.chdir('{}')\n{script}",
            place.path().display()
        );
        nbdsh(uri, &code).trim_end().to_owned()
    };
    assert_eq!(same(&daemon.uri()), "True");
    kill(&place);
    assert_eq!(same(&uri(daemon.socket(), "")), "True");
    let server = place.server();
    assert!(daemon.terminate(LIMIT));
    server.is_gone();
    place.is_clean();
}

#[test]
fn another_user_gets_a_new_server_with_the_rights_of_the_first() {
    // SAFETY: takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("SKIP: {}: needs root", common::test_name());
        return;
    }
    if !need_all(&["nbdkit"]) {
        return;
    }
    let place = Place::new();
    let all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(place.path(), all).expect("chmod");
    let mut server = script("id -u >> \"$DIR/users\"; exec nbdkit -f memory 1M").to_vec();
    server.extend(["-unobody", "-gnogroup"].map(str::to_owned));
    let mut front = front(&place, &server, &[RECONNECT]);
    let mut client = Front::open(front.socket()).expect("opens");
    for _ in 0..2 {
        assert_eq!(client.write(0, &[7; 512]), Ok(()), "{}", front.stderr());
        kill(&place);
        // It had all in its memory, and we have it too.
        let read = client.read(0, 512);
        assert!(read == Ok(vec![7; 512]), "{}", front.stderr());
    }
    assert_eq!(place.file("users"), "0\n0\n0\n");
    client.close();
    let server = place.server();
    end(&mut front);
    server.is_gone();
    place.is_clean();
}

#[test]
fn signals_that_the_first_server_ignores_the_next_one_ignores_too() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let place = Place::new();
    let server =
        script("grep '^SigIgn:' /proc/self/status >> \"$DIR/ignored\"; exec nbdkit -f memory 1M");
    let args = plugin_args(&[&strs(&server)[..], &[RECONNECT]].concat());
    let front = Nbdkit::start_with(place.path(), &args, |command| {
        place.prepare(command);
        let ignore = || {
            // SAFETY: to ignore a signal is no code of ours.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: signal is async-signal-safe.
        unsafe { command.pre_exec(ignore) };
    });
    let mut client = Front::open(front.socket()).expect("opens");
    kill(&place);
    assert!(client.read(0, 512).is_ok(), "{}", front.stderr());
    client.close();
    let ignored = place.file("ignored");
    let lines: Vec<_> = ignored.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], lines[1]);
    // SIGHUP is the first signal, and SIGTERM is not for a server to ignore.
    let mask = lines[1].split_whitespace().nth(1).expect("a mask");
    let mask = u64::from_str_radix(mask, 16).expect("a number");
    assert_eq!(mask & (1 | 1 << (libc::SIGTERM - 1)), 1, "{lines:?}");
    end_all(&place, front);
}

/// A server that serves once, and then has only an excuse.
const ONCE: &str = "echo >> \"$DIR/starts\"
    test $(wc -l < \"$DIR/starts\") = 1 || { echo no disk >&2; exit 3; }
    exec nbdkit -f memory 1M";

#[test]
fn server_that_cannot_live_is_started_ten_times_and_explained() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let place = Place::new();
    let parameters = ["reconnect=4", "reconnect-delay=1ms:5ms"];
    let mut front = front(&place, &script(ONCE), &parameters);
    let mut client = Front::open(front.socket()).expect("opens");
    assert!(client.read(0, 512).is_ok());
    kill(&place);
    assert!(client.read(0, 512).is_err());
    let stderr = front.stderr();
    assert_eq!(place.file("starts").len(), 11, "{stderr}");
    let told = "the server exited with status 3: no disk";
    assert!(stderr.contains(told), "{stderr}");
    let told = "it was started again 10 times within a minute";
    assert!(stderr.contains(told), "{stderr}");
    assert!(front.alive());
    client.close();
    end(&mut front);
    place.is_clean();
}

#[test]
fn nbdkit_ends_while_a_server_does_not_come_back() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let place = Place::new();
    let mut front = front(&place, &script(ONCE), &["reconnect=forever"]);
    let mut client = Front::open(front.socket()).expect("opens");
    kill(&place);
    let cookie = client.submit_read(0, 512);
    eventually("it was tried", LIMIT, || {
        (place.file("starts").len() > 2).then_some(())
    });
    front.signal(libc::SIGTERM);
    assert!(client.wait_read(cookie).is_err());
    client.close();
    let status = front.wait_timeout(LIMIT);
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    let starts = place.file("starts");
    place.is_clean();
    assert_eq!(place.file("starts"), starts, "nothing is started any more");
}

#[test]
fn killed_nbdkit_takes_the_new_server_along() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    let image = noise_file(place.path(), "disk", MEGABYTE, 6);
    let mut front = front(&place, &qemu_nbd("raw", &image), &[RECONNECT]);
    let mut client = Front::open(front.socket()).expect("opens");
    kill(&place);
    assert!(client.read(0, 512).is_ok(), "{}", front.stderr());
    let server = place.server();
    front.signal(libc::SIGKILL);
    assert!(front.wait_timeout(LIMIT).is_some());
    server.is_gone();
    server.is_reaped();
    place.is_clean();
}

#[test]
fn without_reconnect_a_killed_server_stays_dead() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    let image = noise_file(place.path(), "disk", MEGABYTE, 7);
    let mut front = front(&place, &qemu_nbd("raw", &image), &[]);
    let mut client = Front::open(front.socket()).expect("opens");
    kill(&place);
    assert!(client.read(0, 512).is_err());
    assert!(Front::open(front.socket()).is_err());
    assert!(!place.path().join("pid").exists(), "a second server");
    client.close();
    end(&mut front);
    place.is_clean();
}
