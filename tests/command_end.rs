// SPDX-License-Identifier: BSD-3-Clause
//! `command=`: how servers that nbdkit started end, by themselves or with nbdkit, and what they say.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::clients::{LIMIT, nbdsh, text};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::plugin_args;
use common::process::{Guarded, eventually};
use common::scripted::wire::errno;
use common::started::{Place, end, script, size, strs};
use common::upstream::noise_file;
use common::{need, need_all};

// The end.

#[test]
fn server_ends_with_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut front = place.start(&strs(&script("exec nbdkit -f memory 1M")));
    assert_eq!(size(&front), "1048576");
    let server = place.server();
    end(&mut front);
    server.is_gone();
    server.is_reaped();
    place.is_clean();
}

#[test]
fn server_that_ignores_the_first_signal_ends_with_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    // The shell stays and ignores the signal; nbdkit, its child, serves, under a LISTEN_PID of its own.
    let args = script(
        "trap '' TERM
         sh -c 'export LISTEN_PID=$$; exec nbdkit --exit-with-parent -f memory 1M' &
         while :; do wait; done",
    );
    let mut args = args.to_vec();
    args.push("command-timeout=1".to_owned());
    let mut front = place.start(&strs(&args));
    assert_eq!(size(&front), "1048576");
    let server = place.server();
    end(&mut front);
    server.is_gone();
    place.is_clean();
}

#[test]
fn stopped_server_ends_with_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut front = place.start(&strs(&script("exec nbdkit -f memory 1M")));
    assert_eq!(size(&front), "1048576");
    let server = place.server();
    server.signal(libc::SIGSTOP);
    end(&mut front);
    server.is_gone();
    place.is_clean();
}

#[test]
fn server_that_fails_at_the_end_is_told_of() {
    if !need("nbdkit") {
        return;
    }
    for (status, told) in [(0, false), (143, false), (5, true)] {
        let place = Place::new();
        let args = script(&format!(
            "trap 'exit {status}' TERM
             sh -c 'export LISTEN_PID=$$; exec nbdkit --exit-with-parent -f memory 1M' &
             while :; do wait; done",
        ));
        let mut front = place.start(&strs(&args));
        assert_eq!(size(&front), "1048576");
        end(&mut front);
        place.is_clean();
        let stderr = front.stderr();
        let message = format!("the server exited with status {status} when it was told to end");
        assert_eq!(stderr.contains(&message), told, "{stderr}");
    }
}

#[test]
fn grandchild_that_keeps_stderr_does_not_keep_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut front = place.start(&strs(&script("sleep 300 & exec nbdkit -f memory 1M")));
    assert_eq!(size(&front), "1048576");
    let server = place.server();
    end(&mut front);
    server.is_gone();
    place.is_clean();
}

#[test]
fn server_of_a_daemon() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = script("exec nbdkit -f memory 1M");
    let front = Daemon::start_with(place.path(), &strs(&args), |command| place.prepare(command));
    let script = "print(h.get_size(), h.pread(512, 0) == bytes(512))";
    assert_eq!(nbdsh(&front.uri(), script).trim_end(), "1048576 True");
    let server = place.server();
    assert!(front.terminate(LIMIT), "{}", front.stderr());
    server.is_gone();
    place.is_clean();
}

#[test]
fn server_of_a_captive_command() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = script("exec nbdkit -f memory 1M");
    let mut command = Command::new("nbdkit");
    command
        .args(["-U", "-"])
        .args(plugin_args(&strs(&args)))
        .args(["--run", "nbdinfo --size \"$uri\""]);
    place.prepare(&mut command);
    let mut nbdkit = Guarded::spawn(&mut command);
    let status = nbdkit.wait_timeout(LIMIT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{}",
        nbdkit.stderr()
    );
    assert_eq!(nbdkit.stdout(), "1048576\n");
    // The command has ended, and nbdkit was only told to: it cleans up in the background.
    place.is_clean();
    let pid = place.file("pid");
    eventually("the server is gone", LIMIT, || {
        (!Path::new(&format!("/proc/{}/stat", pid.trim_end())).exists()).then_some(())
    });
}

// Servers that die, and connections that are lost.

#[test]
fn server_that_dies_later_is_explained_to_those_who_come() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut front = place.start(&strs(&script("exec nbdkit -f memory 1M")));
    let mut client = Front::open(front.socket()).expect("opens");
    let server = place.server();
    server.signal(libc::SIGKILL);
    eventually("the loss is noticed", LIMIT, || {
        matches!(client.read(0, 512), Err(errno::EIO | errno::ESHUTDOWN)).then_some(())
    });

    let before = front.stderr().len();
    assert!(Front::open(front.socket()).is_err(), "nobody is there");
    let stderr = front.stderr();
    let said = &stderr[before..];
    let errors: Vec<_> = said
        .lines()
        .filter(|line| line.contains("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(
        errors[0].contains("sh: ") || errors[0].contains("sh\""),
        "names the command: {said}"
    );
    assert!(errors[0].contains("signal 9"), "{said}");
    assert!(front.alive());
    server.is_reaped();
    drop(client);
    end(&mut front);
    place.is_clean();
    let stderr = front.stderr();
    assert!(!stderr.contains("told to end"), "it was not: {stderr}");
}

#[test]
fn last_words_of_a_server_that_dies_later() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    // The shell stays, tells the story, and ends as nbdkit, its child, ended.
    let args = script(
        "sh -c 'export LISTEN_PID=$$; echo $$ > \"$DIR/inner\"; exec nbdkit -f memory 1M' 3<&3 &
         exec 3<&-
         wait $!
         echo the disk went away >&2
         exit 7",
    );
    let front = place.start(&strs(&args));
    let mut client = Front::open(front.socket()).expect("opens");
    let inner = place
        .file("inner")
        .trim_end()
        .parse()
        .expect("a process id");
    // SAFETY: kill takes plain numbers.
    unsafe { libc::kill(inner, libc::SIGKILL) };
    eventually("the loss is noticed", LIMIT, || {
        client.read(0, 512).is_err().then_some(())
    });
    eventually("the reason is told", LIMIT, || {
        assert!(Front::open(front.socket()).is_err(), "nobody is there");
        let stderr = front.stderr();
        let told = stderr
            .lines()
            .any(|line| line.contains("error: ") && line.contains("status 7"));
        (told && stderr.contains("the disk went away")).then_some(())
    });
    // Whether they came by themselves or with an error, they are not repeated in the same place.
    assert!(Front::open(front.socket()).is_err(), "nobody is there");
    let stderr = front.stderr();
    let told = stderr
        .lines()
        .filter(|line| !line.contains("echo"))
        .filter(|line| line.contains("the disk went away"));
    assert_eq!(told.count(), 1, "{stderr}");
}

#[test]
fn lost_connection_to_a_living_server_is_made_again() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut args = script("exec nbdkit -f --filter=delay memory 1M rdelay=300").to_vec();
    args.push("request-timeout=1".to_owned());
    let mut front = place.start(&strs(&args));
    let mut client = Front::open(front.socket()).expect("opens");
    // Nothing but the deadline ends this read, and with it the connection.
    assert!(client.read(0, 512).is_err());

    let mut next = Front::open(front.socket()).expect("opens again");
    assert_eq!(next.write(0, &[1; 512]), Ok(()));
    next.close();
    client.close();
    let server = place.server();
    end(&mut front);
    server.is_gone();
    place.is_clean();
}

#[test]
fn server_for_one_client_only_is_recognised_by_its_refusal() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let place = Place::new();
    let image = noise_file(place.path(), "image", 1 << 20, 62);
    let mut args = script(&format!("exec qemu-nbd -f raw --shared=1 {}", text(&image))).to_vec();
    args.extend(
        [
            "request-timeout=1",
            "connect-timeout=10",
            "handshake-timeout=10",
        ]
        .map(str::to_owned),
    );
    let mut front = place.start(&strs(&args));
    let mut client = Front::open(front.socket()).expect("opens");
    let server = place.server();
    server.signal(libc::SIGSTOP);
    assert!(
        client.read(0, 512).is_err(),
        "the deadline ends the connection"
    );
    // It finds its only client gone, and ends.
    server.signal(libc::SIGCONT);
    server.is_gone();
    assert!(Front::open(front.socket()).is_err(), "nobody is there");
    assert!(front.alive());
    drop(client);
    end(&mut front);
    place.is_clean();
}

// What the server says.

#[test]
fn server_that_writes_megabytes_to_stderr() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = script(
        "head -c 3000000 /dev/zero | tr '\\0' x >&2
         exec nbdkit -f memory 1M",
    );
    let mut front = place.start(&strs(&args));
    assert_eq!(size(&front), "1048576");
    end(&mut front);
    place.is_clean();
}

#[test]
fn server_may_go_on_writing_to_stderr_behind_a_daemon() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = script(
        "(while :; do head -c 100000 /dev/zero | tr '\\0' x >&2; echo >> \"$DIR/round\"; done) &
         exec nbdkit -f memory 1M",
    );
    // Without -v a daemon has no stderr any more.
    let front = Daemon::start_with(place.path(), &strs(&args), |command| place.prepare(command));
    eventually("the server is not held up by what it writes", LIMIT, || {
        let rounds = fs::read(place.path().join("round")).unwrap_or_default();
        (rounds.len() > 20).then_some(())
    });
    assert_eq!(
        nbdsh(&front.uri(), "print(h.get_size())").trim_end(),
        "1048576"
    );
    assert!(front.terminate(LIMIT), "{}", front.stderr().len());
    place.is_clean();
}

#[test]
fn words_of_the_server_reach_the_user() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let front = place.start(&strs(&script(
        "echo hello from the server >&2; exec nbdkit -f memory 1M",
    )));
    eventually("the words arrive", Duration::from_secs(20), || {
        front
            .stderr()
            .contains("hello from the server")
            .then_some(())
    });
}
