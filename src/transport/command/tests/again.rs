// SPDX-License-Identifier: BSD-3-Clause
//! Servers that are started again.

use std::fs::read_to_string;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::*;

/// A directory for a test, and a server that does what `script` says, with `$DIR` for the directory.
struct Stage {
    directory: tempfile::TempDir,
    child: Child,
}

/// A server that serves, and writes its process id to `$DIR/pid`.
const SERVE: &str = "echo $$ >$DIR/pid; export LISTEN_PID=$$; exec nbdkit -f memory 1M";

fn stage(script: &str) -> Stage {
    stage_limited(script, Some(SOON))
}

fn stage_limited(script: &str, limit: Option<Duration>) -> Stage {
    let directory = tempfile::tempdir().expect("temporary directory");
    let script = format!("DIR={}\n{script}", directory.path().display());
    let argv = ["/bin/sh", "-c", &script].map(OsString::from);
    let child = Child::start_with(&argv, limit, true, Echo::Nowhere).expect("a shell");
    Stage { directory, child }
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the server wrote.
    fn file(&self, name: &str) -> String {
        read_to_string(self.path(name)).expect(name)
    }

    /// Kills who serves. Its sockets are closed then, but its parent may not know yet.
    fn kill(&self) {
        let pid = self.file("pid").trim().parse().expect("a number");
        let pid = Pid::from_raw(pid).expect("a process id");
        let life = pidfd_open(pid, PidfdFlags::empty()).expect("it lives");
        kill_process(pid, Signal::KILL).expect("it lives");
        assert!(is_ready(&life, Deadline::after(SOON)));
    }

    /// Waits until the server has ended by itself.
    fn ended(self) -> Self {
        end_of(&self.child);
        self
    }

    /// The server must be reached, and speak.
    fn reach(&self) -> Stream {
        let stream = reach(&self.child, Deadline::after(SOON)).expect("a connection");
        assert_eq!(greeting(&stream), *GREETING);
        stream
    }

    /// The server must not be reached, and end. Says why.
    fn miss(&self) -> Error {
        let error = reach(&self.child, Deadline::after(SOON)).expect_err("no connection");
        end_of(&self.child);
        error
    }

    /// How often the server was started, as it counts in `$DIR/starts`.
    fn starts(&self) -> usize {
        self.file("starts").lines().count()
    }
}

#[test]
fn a_server_that_was_killed_is_started_again() {
    if !is_installed("nbdkit") {
        return;
    }
    let stage = stage(&format!("echo >>$DIR/starts; {SERVE}"));
    let first = stage.reach();
    assert_eq!(stage.starts(), 1);
    for starts in [2, 3] {
        stage.kill();
        // Also at once, when the end of it is still news to us.
        let _next = stage.reach();
        assert_eq!(stage.starts(), starts);
        // A second connection is one to the same.
        let _another = stage.reach();
        assert_eq!(stage.starts(), starts);
    }
    drop(first);
    end_and_check(&stage.child);
}

#[test]
fn without_leave_nothing_is_started_again() {
    let place = tempfile::tempdir().expect("temporary directory");
    let starts = place.path().join("starts");
    let child = shell(&format!("echo >>{}; exit 3", starts.display()));
    for _ in 0..2 {
        let error = reach(&child, Deadline::after(SOON)).expect_err("it ends");
        assert_eq!(error.to_string(), silent("the server exited with status 3"));
        assert!(!error.is_transient());
    }
    assert!(!child.starts_again());
    // Not even if somebody says so: the keeper itself would not.
    child.keeper.tell(Order::Start);
    end_and_check(&child);
    assert_eq!(read_to_string(&starts).expect("once"), "\n");
}

#[test]
fn each_server_has_its_own_last_words() {
    let stage = stage(
        "echo >>$DIR/starts; n=$(wc -l <$DIR/starts)
         echo fault $n >&2; echo of $n >&2; exit $n",
    );
    assert!(end_of(&stage.child).contains("fault 1; of 1"));
    for n in 2..5 {
        let error = stage.miss();
        let end = format!("the server exited with status {n}: fault {n}; of {n}");
        assert_eq!(error.to_string(), silent(&end));
        assert!(error.is_transient());
    }
    end_and_check(&stage.child);
}

#[test]
fn last_words_are_passed_on_although_they_are_in_an_error() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
    let argv = ["/bin/sh", "-c", "echo no disk >&2; exit 1"].map(OsString::from);
    let child = Child::start_with(&argv, Some(SOON), true, Echo::To(writer)).expect("a shell");
    for _ in 0..2 {
        // Maybe nobody sees this.
        let end = end_of(&child);
        assert!(end.contains("no disk"), "{end}");
        child.words.finish();
        let mut said = [0; 100];
        assert_eq!(rustix::io::read(&reader, &mut said), Ok(8));
        assert_eq!(said[..8], *b"no disk\n");
        reach(&child, Deadline::after(SOON)).expect_err("no connection");
    }
    end_and_check(&child);
}

#[test]
fn the_eleventh_time_in_a_minute_is_too_often() {
    let stage = stage("echo >>$DIR/starts; echo no disk >&2; exit 1").ended();
    let end = silent("the server exited with status 1: no disk");
    for _ in 0..10 {
        assert_eq!(stage.miss().to_string(), end);
    }
    for _ in 0..3 {
        let error = stage.miss();
        let text = error.to_string();
        let expected = format!(
            "{end}; it was started again 10 times within a minute, and the next time is in "
        );
        assert!(text.starts_with(&expected), "{text}");
        assert!(error.is_transient(), "time can cure it");
    }
    assert_eq!(stage.starts(), 11);
    end_and_check(&stage.child);
}

#[test]
fn a_program_that_has_gone_is_missed_until_it_is_back() {
    if !is_installed("nbdkit") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().expect("temporary directory");
    let program = place.path().join("server");
    let hidden = place.path().join("hidden");
    let pid = place.path().join("pid");
    let script = format!(
        "#!/bin/sh\necho $$ >{}; export LISTEN_PID=$$; exec nbdkit -f memory 1M",
        pid.display()
    );
    std::fs::write(&program, script).expect("write");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).expect("chmod");
    let argv = [program.clone().into_os_string()];
    let child = Child::start_with(&argv, Some(SOON), true, Echo::Nowhere).expect("a program");
    let stage = Stage {
        directory: place,
        child,
    };
    drop(stage.reach());
    std::fs::rename(&program, &hidden).expect("rename");
    stage.kill();
    for _ in 0..2 {
        let error = stage.miss();
        assert_eq!(
            error.to_string(),
            "the server could not be started again: No such file or directory"
        );
        assert!(error.is_transient());
    }
    std::fs::rename(&hidden, &program).expect("rename");
    drop(stage.reach());
    end_and_check(&stage.child);
}

#[test]
fn a_server_that_runs_and_does_not_accept_is_left_alone() {
    let stage = stage("echo >>$DIR/starts; exec sleep 1000");
    let brief = Duration::from_millis(50);
    for _ in 0..2 {
        let error = reach(&stage.child, Deadline::after(brief)).expect_err("no greeting");
        assert_eq!(error, Error::Timeout(brief));
    }
    assert_eq!(stage.starts(), 1);
    end_and_check(&stage.child);
}

#[test]
fn a_server_that_runs_without_its_socket_is_left_alone() {
    let stage = stage("echo >>$DIR/starts; exec 3<&-; echo ready >&2; exec sleep 1000");
    await_words(&stage.child, "ready");
    for _ in 0..2 {
        let error = reach(&stage.child, Deadline::after(SOON)).expect_err("no socket");
        assert_eq!(error, Error::Connect(Errno::CONNREFUSED));
        assert!(error.is_transient());
    }
    assert_eq!(stage.starts(), 1);
    end_and_check(&stage.child);
}

#[test]
fn a_process_that_serves_in_the_background_is_not_doubled() {
    if !is_installed("nbdkit") {
        return;
    }
    // nbdkit with socket activation ends with its parent, unless that is gone already.
    let stage = stage(
        "echo >>$DIR/starts
         sh -c 'while kill -0 $1; do sleep 0.01; done 2>/dev/null
             echo $$ >$0/pid; export LISTEN_PID=$$; exec nbdkit -f memory 1M' $DIR $$ &",
    );
    let end = stage.child.obituary_within(SOON).expect("it leaves");
    assert!(end.starts_with("the server exited with status 0"), "{end}");
    drop(stage.reach());
    drop(stage.reach());
    assert_eq!(stage.starts(), 1);
    stage.kill();
    drop(stage.reach());
    assert_eq!(stage.starts(), 2);
    // It is nobody's child.
    stage.kill();
    end_and_check(&stage.child);
}

/// What a process can find out about its own rights: its user, directory, mask of files, limits,
/// signals and environment, and its descriptors, but for what lies behind pipes and sockets.
const RIGHTS: &str = "(cd /proc/$$/fd && exec stat -c %N *) >$DIR/list 2>/dev/null
    { id; pwd; umask; ulimit -a; env | grep -v '^LISTEN_PID=' | sort | cksum
      test $LISTEN_PID = $$ && echo the socket is ours
      grep -E '^(Sig(Blk|Ign)|Uid|Gid|Groups|CapEff|NoNewPrivs):' /proc/self/status
      sed 's/:.*//' $DIR/list; } >$DIR/rights";

#[test]
fn rights_and_descriptors_are_those_of_the_first() {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    // As a user would have opened it for the server, who gets no other one. Servers of other tests
    // that start just now get it, too.
    let passed_on = fcntl_dupfd_cloexec(file.as_file(), 20).expect("fcntl");
    fcntl_setfd(&passed_on, FdFlags::empty()).expect("fcntl");
    let directory = tempfile::tempdir().expect("temporary directory");
    let script = format!(
        "DIR={}\necho >>$DIR/starts; mv $DIR/rights $DIR/before 2>/dev/null\n{RIGHTS}\nexit 1",
        directory.path().display()
    );
    let argv = ["/bin/sh", "-c", &script].map(OsString::from);
    let child = Child::start_with(&argv, Some(SOON), true, Echo::Nowhere).expect("a shell");
    let number = passed_on.as_raw_fd();
    drop(passed_on);
    let stage = Stage { directory, child }.ended();
    // What we have become since is nothing to the server.
    stage.miss();
    let rights = stage.file("rights");
    assert_eq!(stage.starts(), 2);
    assert_eq!(rights, stage.file("before"));
    let file = format!("'{number}' -> '{}'\n", file.path().display());
    assert!(rights.contains(&file), "{file} is not in {rights}");
    assert!(rights.contains("the socket is ours\n"), "{rights}");
    let first = "'0' -> '/dev/null'\n'1' -> '/dev/null'\n";
    assert!(rights.contains(first), "{rights}");
    for number in ["'2' -> 'pipe\n", "'3' -> 'socket\n"] {
        assert!(rights.contains(number), "{rights}");
    }
    end_and_check(&stage.child);
}

#[test]
fn a_new_socket_is_reached_as_the_old_one_was() {
    if !is_installed("nbdkit") {
        return;
    }
    let stage = stage(SERVE);
    let socket = stage.child.home.socket();
    let number = || socket.metadata().expect("a socket").ino();
    drop(stage.reach());
    stage.kill();
    drop(stage.reach());
    let mode = socket.metadata().expect("a socket").mode();
    assert_eq!(mode & 0o777, 0o666);
    // By what was opened, for those who cannot enter the directory.
    assert_eq!(stage.child.home.door_number(), number());
    end_and_check(&stage.child);
}

#[test]
fn those_who_ask_together_get_one_server() {
    if !is_installed("nbdkit") {
        return;
    }
    let stage = stage(&format!("echo >>$DIR/starts; {SERVE}"));
    drop(stage.reach());
    stage.kill();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| stage.reach());
        }
    });
    assert_eq!(stage.starts(), 2);
    end_and_check(&stage.child);
}

#[test]
fn nothing_is_started_after_the_end() {
    let stage = stage("echo >>$DIR/starts; exit 1").ended();
    end_and_check(&stage.child);
    let deadline = Deadline::after(SOON);
    assert_eq!(stage.child.connect(deadline).err(), Some(Error::Unwanted));
    assert_eq!(stage.starts(), 1);
}

#[test]
fn the_last_server_ends_with_its_keeper() {
    let mut stage = stage(
        "echo >>$DIR/starts; test $(wc -l <$DIR/starts) = 1 && exit 1
         trap 'echo >$DIR/asked; exit 0' TERM; echo ready >&2; while :; do sleep 0.1; done",
    )
    .ended();
    let brief = Duration::from_millis(50);
    assert!(reach(&stage.child, Deadline::after(brief)).is_err());
    await_words(&stage.child, "ready");
    let directory = stage.child.home.directory.clone();
    // As when nbdkit is killed.
    drop(stage.child.keeper.line.take());
    await_removal(&directory);
    assert_eq!(stage.file("asked"), "\n");
}

/// Ends at first; the second one does not, whatever it is told.
const STUBBORN: &str = "echo >>$DIR/starts; test $(wc -l <$DIR/starts) = 1 && exit 1
    trap '' TERM; echo ready >&2; exec sleep 1000";

#[test]
fn the_limit_holds_for_the_next_server_too() {
    let stage = stage_limited(STUBBORN, Some(Duration::from_millis(300))).ended();
    let _waiting = stage.child.connect(Deadline::after(SOON));
    await_words(&stage.child, "ready");
    end_and_check(&stage.child);
    let end = stage.child.obituary().expect("an end");
    assert_eq!(end, "the server was killed by signal 9: ready");
}

#[test]
fn the_next_server_can_be_ended_by_force() {
    let stage = stage_limited(STUBBORN, None).ended();
    let _waiting = stage.child.connect(Deadline::after(SOON));
    await_words(&stage.child, "ready");
    // As when the user sends another signal.
    stage.child.keeper.tell(Order::Kill);
    let end = end_of(&stage.child);
    assert_eq!(end, "the server was killed by signal 9: ready");
    end_and_check(&stage.child);
}

#[test]
fn a_keeper_that_was_killed_is_not_waited_for() {
    let stage = stage("echo >>$DIR/starts; exit 1").ended();
    kill_process(stage.child.keeper.pid(), Signal::KILL).expect("it lives");
    assert!(stage.child.keeper.is_gone(Deadline::after(SOON)));
    let error = reach(&stage.child, Deadline::after(SOON)).expect_err("nobody starts it");
    assert!(error.to_string().starts_with("the server "), "{error}");
    assert_eq!(stage.starts(), 1);
    home::remove(&stage.child.home.directory);
}

#[test]
fn the_keeper_keeps_nothing_of_ours_for_the_next_server() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
    let stage = stage("exec sleep 1000");
    drop(writer);
    assert!(is_ready(&reader, Deadline::after(SOON)));
    end_and_check(&stage.child);
}
