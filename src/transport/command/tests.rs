// SPDX-License-Identifier: BSD-3-Clause
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, kill_process};

use super::*;

mod again;

/// A bound on everything that should happen soon, here and on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// The first eight bytes of every server.
const GREETING: &[u8] = b"NBDMAGIC";

/// The limit is for what should not happen: a test that fails must not hang.
fn start(argv: &[&str]) -> Result<Child, Error> {
    start_limited(argv, Some(SOON))
}

fn start_limited(argv: &[&str], limit: Option<Duration>) -> Result<Child, Error> {
    let argv: Vec<_> = argv.iter().map(OsString::from).collect();
    Child::start_with(&argv, limit, false, Echo::Nowhere)
}

/// A connection that the server has accepted.
fn reach(child: &Child, deadline: Deadline) -> Result<Stream, Error> {
    let stream = child.connect(deadline)?;
    child.await_greeting(&stream, deadline).map(|()| stream)
}

/// The end of a server that never said a word.
fn silent(end: &str) -> String {
    format!("{end} ({HINT})")
}

/// A server, or what should have been one, that does what `script` says.
fn shell(script: &str) -> Child {
    start(&["/bin/sh", "-c", script]).expect("a shell")
}

/// How the server ends by itself.
fn end_of(child: &Child) -> String {
    child.obituary_within(SOON).expect("an end")
}

fn greeting(stream: &Stream) -> [u8; 8] {
    let mut greeting = [0; 8];
    stream
        .receive_exact(&mut greeting, Deadline::after(SOON))
        .expect("a greeting");
    greeting
}

/// Ends the server as the process that uses it, and checks that nothing of it is left.
fn end_and_check(child: &Child) {
    child.after_fork().expect("a thread");
    child.end();
    assert!(child.obituary().is_some());
    assert!(!child.home.directory.exists());
}

/// Without the program, tests that need it are skipped, but not where all are meant to run.
fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    if !found {
        assert!(std::env::var_os("CI").is_none(), "needs {program}");
        println!("SKIP: needs {program}");
    }
    found
}

#[test]
fn a_program_gets_its_socket_as_systemd_would_give_it() {
    let child = shell(
        "echo $(cd /proc/$$/fd && readlink 0 1 3) >&2
         test $LISTEN_PID = $$ && echo fds=$LISTEN_FDS names=$LISTEN_FDNAMES >&2",
    );
    let end = end_of(&child);
    let expected = "the server exited with status 0: /dev/null /dev/null socket:[";
    assert!(end.starts_with(expected), "{end}");
    assert!(end.ends_with(&silent("]; fds=1 names=unknown")), "{end}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    assert_eq!(
        start(&["/no/such/server", "x"])
            .expect_err("no program")
            .to_string(),
        "cannot start /no/such/server: No such file or directory"
    );
    assert_eq!(
        start(&["/dev/null"]).expect_err("no program").to_string(),
        "cannot start /dev/null: Permission denied"
    );
    assert!(start(&["no\nsuch\0server"]).is_err());
    assert!(start(&[""]).is_err());
    assert!(start(&[]).is_err());
}

#[test]
fn a_server_that_ends_at_once_is_reported_with_its_last_words() {
    let child = shell("echo no licence >&2; exit 3");
    assert_eq!(
        reach(&child, Deadline::after(SOON)).err(),
        child.ended(Some(silent("the server exited with status 3: no licence")))
    );
    end_and_check(&child);
}

#[test]
fn a_server_that_ends_before_it_accepts_is_reported_too() {
    // It waits for a line that we send when the connection is in the queue, on a descriptor that
    // it was not given: /proc shows ours.
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
    let gate = format!("/proc/{}/fd/{}", own_pid(), theirs.as_raw_fd());
    let child = shell(&format!("read line <{gate}; exit 4"));
    let child = Arc::new(child);
    let waiting = std::thread::spawn({
        let child = child.clone();
        move || reach(&child, Deadline::after(SOON)).err()
    });
    rustix::io::write(&ours, b"go\n").expect("write");
    assert_eq!(
        waiting.join().expect("no panic"),
        child.ended(Some(silent("the server exited with status 4")))
    );
}

#[test]
fn a_server_that_dies_later_explains_the_lost_connection() {
    let child = shell("kill -KILL $$");
    assert_eq!(end_of(&child), "the server was killed by signal 9");
    assert_eq!(
        Some(child.explain(Error::Closed)),
        child.ended(Some("the server was killed by signal 9".to_owned()))
    );
    assert_eq!(child.explain(Error::UsedUp), Error::UsedUp);
}

#[test]
fn a_server_that_lives_explains_nothing() {
    let child = shell("exec sleep 1000");
    assert_eq!(child.obituary(), None);
    assert_eq!(child.explain(Error::Closed), Error::Closed);
}

#[test]
fn a_server_that_never_accepts_is_waited_for_until_the_deadline() {
    let child = shell("exec sleep 1000");
    let brief = Duration::from_millis(50);
    assert_eq!(
        reach(&child, Deadline::after(brief)).err(),
        Some(Error::Timeout(brief))
    );
}

/// Waits until the server has said this.
fn await_words(child: &Child, words: &str) {
    let deadline = Deadline::after(SOON);
    while child.words.last_lines(false) != words {
        assert!(!deadline.has_passed(), "not said: {words}");
        std::thread::yield_now();
    }
}

/// A server that does not end when it is told to, and says so beforehand.
fn stubborn(limit: Option<Duration>) -> Child {
    let script = "trap '' TERM; echo ready >&2; exec sleep 1000";
    let child = start_limited(&["/bin/sh", "-c", script], limit).expect("a shell");
    child.after_fork().expect("a thread");
    await_words(&child, "ready");
    child
}

#[test]
fn a_server_that_does_not_end_in_time_is_killed() {
    let limit = Duration::from_millis(300);
    let child = stubborn(Some(limit));
    let begin = Instant::now();
    end_and_check(&child);
    assert!(begin.elapsed() >= limit);
    let end = child.obituary().expect("an end");
    assert_eq!(end, "the server was killed by signal 9: ready");
    // The second time there is nothing to do.
    child.end();
}

#[test]
fn a_server_that_takes_its_time_is_waited_for() {
    // Long enough for anybody to lose patience.
    let child = shell(
        "trap 'sleep 3; echo saved >&2; exit 7' TERM; echo ready >&2; while :; do sleep 0.1; done",
    );
    child.after_fork().expect("a thread");
    await_words(&child, "ready");
    end_and_check(&child);
    let end = child.obituary().expect("an end");
    assert!(end.contains("status 7: ready; saved"), "{end}");
}

#[test]
fn a_server_that_was_stopped_can_end() {
    let child = shell("echo ready >&2; kill -STOP $$; exec sleep 1000");
    child.after_fork().expect("a thread");
    await_words(&child, "ready");
    end_and_check(&child);
    let end = child.obituary().expect("an end");
    assert_eq!(end, "the server was killed by signal 15: ready");
}

#[test]
fn megabytes_of_words_stop_nobody_and_are_forgotten_but_for_the_last() {
    let child = shell("head -c 3000000 /dev/zero | tr '\\0' 'x' >&2; echo >&2; echo bye >&2");
    child.after_fork().expect("a thread");
    let end = end_of(&child);
    assert!(end.ends_with(&silent("x...; bye")), "{end}");
    assert!(end.len() < 1000);
}

#[test]
fn a_talkative_server_can_be_connected_to_before_there_are_threads() {
    if !is_installed("nbdkit") {
        return;
    }
    let child = shell(
        "head -c 3000000 /dev/zero | tr '\\0' 'x' >&2
         export LISTEN_PID=$$; exec nbdkit -f memory 1M",
    );
    let stream = reach(&child, Deadline::after(SOON)).expect("a connection");
    assert_eq!(greeting(&stream), *GREETING);
}

#[test]
fn a_grandchild_that_keeps_standard_error_open_delays_nothing() {
    let child = shell("sleep 1000 & echo $! >&2; exec sleep 1000");
    child.after_fork().expect("a thread");
    let deadline = Deadline::after(SOON);
    let grandchild = loop {
        if let Ok(pid) = child.words.last_lines(false).parse::<i32>() {
            break rustix::process::Pid::from_raw(pid).expect("a pid");
        }
        assert!(!deadline.has_passed());
        std::thread::yield_now();
    };
    let begin = Instant::now();
    end_and_check(&child);
    assert!(begin.elapsed() < SOON);
    assert!(child.words.more().is_some(), "it is still open");
    kill_process(grandchild, Signal::KILL).expect("the grandchild lives");
}

#[test]
fn nbdkit_serves_several_connections() {
    if !is_installed("nbdkit") {
        return;
    }
    let child = start(&["nbdkit", "-f", "memory", "1M"]).expect("nbdkit");
    let first = reach(&child, Deadline::after(SOON)).expect("first");
    child.after_fork().expect("a thread");
    let second = reach(&child, Deadline::after(SOON)).expect("second");
    for stream in [&first, &second] {
        assert_eq!(greeting(stream), *GREETING);
    }
    // nbdkit waits for its clients before it ends.
    drop((first, second));
    end_and_check(&child);
}

#[test]
fn a_server_that_ends_with_its_parent_outlives_the_thread_that_started_it() {
    if !is_installed("nbdkit") {
        return;
    }
    // To the kernel the thread is the parent (PR_SET_PDEATHSIG). A process that leaves another one
    // behind in the background is gone like that, too.
    let argv = ["nbdkit", "-f", "--exit-with-parent", "memory", "1M"];
    let starter = std::thread::spawn(move || start(&argv).expect("nbdkit"));
    let child = starter.join().expect("no panic");
    let stream = reach(&child, Deadline::after(SOON)).expect("a connection");
    assert_eq!(greeting(&stream), *GREETING);
    assert_eq!(child.obituary(), None);
}

#[test]
fn qemu_nbd_is_gone_after_its_only_client() {
    if !is_installed("qemu-nbd") {
        return;
    }
    let disk = tempfile::NamedTempFile::new().expect("temporary file");
    disk.as_file().set_len(1 << 20).expect("truncate");
    let path = disk.path().to_str().expect("a plain path");
    let child = start(&["qemu-nbd", "-f", "raw", path]).expect("qemu-nbd");
    let stream = reach(&child, Deadline::after(SOON)).expect("a connection");
    assert_eq!(greeting(&stream), *GREETING);
    // Only one who entered transmission counts: here with the default export, the short way.
    let export_name = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0";
    let sent = stream.send(&[std::io::IoSlice::new(export_name)]);
    assert_eq!(sent, Ok(Some(export_name.len())));
    let mut rest = [0; 20];
    let received = stream.receive_exact(&mut rest, Deadline::after(SOON));
    assert_eq!(received, Ok(()));
    // Another one is left in the queue.
    let brief = Duration::from_millis(50);
    assert_eq!(
        reach(&child, Deadline::after(brief)).err(),
        Some(Error::Timeout(brief))
    );
    drop(stream);
    assert_eq!(end_of(&child), "the server exited with status 0");
    assert_eq!(
        reach(&child, Deadline::after(SOON)).err(),
        child.ended(Some("the server exited with status 0".to_owned()))
    );
    end_and_check(&child);
}

/// Waits until a server's directory is gone, which is the last thing that its keeper does.
fn await_removal(directory: &Path) {
    let deadline = Deadline::after(SOON);
    while directory.exists() {
        assert!(!deadline.has_passed(), "the keeper is still there");
        std::thread::yield_now();
    }
}

#[test]
fn a_server_ends_with_the_last_process_that_could_use_it() {
    let mut child = shell("exec sleep 1000");
    let directory = child.home.directory.clone();
    // Without a word, as when nbdkit is killed. The copy stands for another process.
    let copy = child.keeper.line.take().expect("a line");
    assert!(directory.exists());
    drop(copy);
    await_removal(&directory);
}

#[test]
fn a_server_that_is_left_alone_may_take_its_time_and_speak() {
    let place = tempfile::tempdir().expect("temporary directory");
    let saved = place.path().join("saved");
    // More words than a pipe holds, and none of them may kill it.
    let script = format!(
        "trap 'head -c 3000000 /dev/zero >&2; sleep 1; echo >&2; echo done >{}; exit 0' TERM
         echo ready >&2; while :; do sleep 0.1; done",
        saved.display()
    );
    let mut child = shell(&script);
    let directory = child.home.directory.clone();
    await_words(&child, "ready");
    // As when nbdkit is killed: nobody has the line, nor reads the words.
    let line = child.keeper.line.take();
    drop(line);
    await_removal(&directory);
    assert_eq!(std::fs::read(&saved).expect("saved"), b"done\n");
}

#[test]
fn a_server_that_is_left_alone_is_killed_in_the_end() {
    let mut child = stubborn(Some(Duration::from_millis(300)));
    let directory = child.home.directory.clone();
    drop(child.keeper.line.take());
    await_removal(&directory);
}

#[test]
fn a_server_that_was_never_used_ends_with_its_owner() {
    let child = shell("exec sleep 1000");
    let directory = child.home.directory.clone();
    drop(child);
    assert!(!directory.exists());
}

#[test]
fn only_the_process_that_uses_the_server_ends_it() {
    let child = shell("exec sleep 1000");
    child.end();
    assert_eq!(child.obituary(), None);
    let copy = child.keeper.line.as_ref().map(OwnedFd::try_clone);
    end_and_check(&child);
    drop(copy);
}

#[test]
fn the_keeper_keeps_nothing_of_ours() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
    let _child = shell("exec sleep 1000");
    drop(writer);
    // All who could write are gone, soon.
    assert!(is_ready(&reader, Deadline::after(SOON)));
}
