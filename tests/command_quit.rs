// SPDX-License-Identifier: BSD-3-Clause
//! `command=`: how long nbdkit waits for a server that it has told to end, and what cuts that short.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::clients::LIMIT;
use common::daemon::Daemon;
use common::nbdkit::{Nbdkit, plugin_args};
use common::need;
use common::process::{Guarded, eventually};
use common::started::{Place, Server, end, script, size, strs};

/// A server that says in a file that it was told to end, and then does `what`. nbdkit serves, as its
/// child.
fn leaving(what: &str) -> Vec<String> {
    script(&format!(
        "trap 'echo yes > \"$DIR/asked\"; {what}' TERM
         sh -c 'export LISTEN_PID=$$; exec nbdkit --exit-with-parent -f memory 1M' &
         while :; do wait; done"
    ))
    .to_vec()
}

/// Two seconds of storing.
const STORE: &str = "sleep 2.5; echo yes > \"$DIR/stored\"; exit 0";

/// Nobody can wait so long.
const NEVER: &str = "sleep 1000";

fn with(mut args: Vec<String>, more: &str) -> Vec<String> {
    args.push(more.to_owned());
    args
}

fn is_there(place: &Place, name: &str) -> bool {
    fs::read(place.path().join(name)).is_ok_and(|text| !text.is_empty())
}

/// nbdkit is waiting for the server.
fn await_wait(place: &Place) {
    eventually("the server is told to end", LIMIT, || {
        is_there(place, "asked").then_some(())
    });
}

/// How long nbdkit takes to end.
fn ends(front: &mut Nbdkit) -> Duration {
    let begin = Instant::now();
    let status = front.wait_timeout(LIMIT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}: {}",
        front.stderr()
    );
    begin.elapsed()
}

/// nbdkit with a server that is in use.
fn started(place: &Place, args: &[String]) -> (Nbdkit, Server) {
    let front = place.start(&strs(args));
    assert_eq!(size(&front), "1048576");
    let server = place.server();
    (front, server)
}

fn kill(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id fits");
    // SAFETY: kill takes plain numbers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn server_may_take_its_time() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let (mut front, server) = started(&place, &leaving(STORE));
    end(&mut front);
    assert!(is_there(&place, "stored"));
    server.is_gone();
    server.is_reaped();
    place.is_clean();
    // Nothing is said of what is in order.
    let stderr = front.stderr();
    assert!(!stderr.contains("waiting for the server"), "{stderr}");
    assert!(!stderr.contains("was killed"), "{stderr}");
}

#[test]
fn server_of_a_daemon_may_take_its_time() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = leaving(STORE);
    let front = Daemon::start_with(place.path(), &strs(&args), |command| place.prepare(command));
    let server = place.server();
    assert!(front.terminate(LIMIT), "{}", front.stderr());
    assert!(is_there(&place, "stored"));
    server.is_gone();
    place.is_clean();
}

#[test]
fn long_wait_is_told_and_another_signal_ends_it() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let (mut front, server) = started(&place, &leaving(NEVER));
    front.signal(libc::SIGTERM);
    await_wait(&place);
    let begin = Instant::now();
    eventually("the wait is told", LIMIT, || {
        front
            .stderr()
            .contains("command=sh: waiting for the server to end")
            .then_some(())
    });
    assert!(begin.elapsed() > Duration::from_secs(3), "not at once");
    assert!(front.alive());
    front.signal(libc::SIGTERM);
    ends(&mut front);
    server.is_gone();
    server.is_reaped();
    place.is_clean();
    let stderr = front.stderr();
    assert!(stderr.contains("was killed by signal 9"), "{stderr}");
}

#[test]
fn signals_that_end_the_wait() {
    if !need("nbdkit") {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let place = Place::new();
        let (mut front, server) = started(&place, &leaving(NEVER));
        front.signal(libc::SIGTERM);
        await_wait(&place);
        eventually("nbdkit listens to signals again", LIMIT, || {
            front.signal(signal);
            front.wait_timeout(Duration::from_millis(200))
        });
        server.is_gone();
        place.is_clean();
    }
}

#[test]
fn same_order_given_twice_at_once_is_one() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let (mut front, server) = started(&place, &leaving(STORE));
    // As timeout(1) does.
    front.signal(libc::SIGTERM);
    front.signal(libc::SIGTERM);
    ends(&mut front);
    assert!(is_there(&place, "stored"));
    server.is_gone();
    place.is_clean();
}

#[test]
fn end_of_a_captive_command_is_no_other_order() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = leaving(STORE);
    let pidfile = place.path().join("captive.pid");
    let mut command = Command::new("nbdkit");
    command
        .args(["-U", "-", "-P"])
        .arg(&pidfile)
        .args(plugin_args(&strs(&args)))
        .args([
            "--run",
            "while test ! -e \"$DIR/stop\"; do sleep 0.05; done",
        ]);
    place.prepare(&mut command);
    let mut nbdkit = Guarded::spawn(&mut command);
    let captive = eventually("nbdkit serves", LIMIT, || {
        fs::read_to_string(&pidfile).ok()?.trim_end().parse().ok()
    });
    let server = place.server();
    // The terminal's interrupt reaches nbdkit first; when the command has ended because of it, too,
    // the other nbdkit says so.
    kill(captive, libc::SIGINT);
    await_wait(&place);
    let begin = Instant::now();
    eventually("it is not the same moment", LIMIT, || {
        (begin.elapsed() > Duration::from_millis(300)).then_some(())
    });
    fs::write(place.path().join("stop"), "").expect("write");
    assert!(nbdkit.wait_timeout(LIMIT).is_some(), "{}", nbdkit.stderr());
    server.is_gone();
    assert!(is_there(&place, "stored"), "{}", nbdkit.stderr());
    place.is_clean();
}

#[test]
fn limit_ends_the_wait() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let args = with(leaving(NEVER), "command-timeout=1.5");
    let (mut front, server) = started(&place, &args);
    front.signal(libc::SIGTERM);
    let took = ends(&mut front);
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    server.is_gone();
    place.is_clean();
    let stderr = front.stderr();
    let told = "the server was killed by signal 9, since command-timeout was over";
    assert!(stderr.contains(told), "{stderr}");
}

#[test]
fn limit_that_is_not_reached_changes_nothing() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let (mut front, server) = started(&place, &with(leaving(STORE), "command-timeout=60"));
    end(&mut front);
    assert!(is_there(&place, "stored"));
    server.is_gone();
    place.is_clean();
}

#[test]
fn server_of_a_killed_nbdkit_may_take_its_time() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    // It has something to say, and nobody listens.
    let what = format!("head -c 3000000 /dev/zero >&2; echo bye >&2; {STORE}");
    let (mut front, server) = started(&place, &leaving(&what));
    front.signal(libc::SIGKILL);
    assert!(front.wait_timeout(LIMIT).is_some());
    server.is_gone();
    assert!(is_there(&place, "stored"));
    place.is_clean();
}

#[test]
fn server_of_a_killed_nbdkit_has_the_same_limit() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let (mut front, server) = started(&place, &with(leaving(NEVER), "command-timeout=1"));
    front.signal(libc::SIGKILL);
    assert!(front.wait_timeout(LIMIT).is_some());
    server.is_gone();
    place.is_clean();
}

#[test]
fn nbdkit_killed_while_it_waits_leaves_the_server_its_time() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let (mut front, server) = started(&place, &leaving(STORE));
    front.signal(libc::SIGTERM);
    await_wait(&place);
    front.signal(libc::SIGKILL);
    assert!(front.wait_timeout(LIMIT).is_some());
    server.is_gone();
    assert!(is_there(&place, "stored"));
    place.is_clean();
}

#[test]
fn server_that_cannot_be_used_does_not_keep_the_prompt() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut args = leaving(NEVER);
    args.push("handshake-timeout=200ms".to_owned());
    // Nobody serves.
    args[2] = args[2].replace("exec nbdkit", "exec sleep 1000; nbdkit");
    args.push("command-timeout=8".to_owned());
    let mut command = Command::new("nbdkit");
    command
        .args(["-f", "-U"])
        .arg(place.path().join("front.sock"))
        .args(plugin_args(&strs(&args)));
    place.prepare(&mut command);
    let mut nbdkit = Guarded::spawn(&mut command);
    let begin = Instant::now();
    let status = nbdkit.wait_timeout(LIMIT).expect("an end");
    assert!(!status.success());
    assert!(
        begin.elapsed() > Duration::from_secs(4),
        "it waits a little"
    );
    let stderr = nbdkit.stderr();
    let told = "the server was told to end, but it still runs";
    assert!(stderr.contains(told), "{stderr}");
    place.is_clean();
    let pid = place.file("pid");
    assert!(!Path::new(&format!("/proc/{}/stat", pid.trim_end())).exists());
}

#[test]
fn standard_error_that_nobody_reads_holds_up_nothing() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let fifo = place.path().join("stderr");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
    assert!(made.success());
    // Open at both ends, and never read from.
    let reader = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .expect("open");
    let socket = place.path().join("front.sock");
    let pidfile = place.path().join("front.pid");
    let talk =
        "(while :; do head -c 100000 /dev/zero | tr '\\0' x >&2; echo >> \"$DIR/round\"; done) &
                exec nbdkit -f memory 1M";
    // Without -v: nbdkit's own words would be waited for.
    let mut args = plugin_args(&strs(&script(talk)));
    args.retain(|arg| arg != "-v");
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec nbdkit -f \"$@\" 2> \"$DIR/stderr\"", "sh", "-U"])
        .arg(&socket)
        .arg("-P")
        .arg(&pidfile)
        .args(&args);
    place.prepare(&mut command);
    let mut nbdkit = Guarded::spawn(&mut command);
    eventually("nbdkit serves", LIMIT, || {
        fs::read(&pidfile).ok().filter(|pid| pid.ends_with(b"\n"))
    });
    let mut client = common::front::Front::open(&socket).expect("opens");
    let rounds = || fs::read(place.path().join("round")).map_or(0, |rounds| rounds.len());
    eventually("the server goes on talking", LIMIT, || {
        (rounds() > 60).then_some(())
    });
    for n in 0..20 {
        assert_eq!(client.write(n * 512, &[7; 512]), Ok(()));
    }
    client.close();
    let begin = Instant::now();
    nbdkit.signal(libc::SIGTERM);
    assert!(nbdkit.wait_timeout(LIMIT).is_some_and(|end| end.success()));
    assert!(begin.elapsed() < Duration::from_secs(10));
    drop(reader);
    place.is_clean();
}
