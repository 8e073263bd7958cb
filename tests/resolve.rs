// SPDX-License-Identifier: BSD-3-Clause
//! Looking up names: a resolver that hangs holds nobody, whoever waits for it.

mod common;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::clients::{LIMIT, nbdsh};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::plugin_args;
use common::process::{Guarded, eventually, run};
use common::tcp::{TcpServer, V4, listen, port};
use common::{need, need_all};

/// More than the C library has threads for look-ups (20).
const MANY: usize = 24;

/// Far below the time that a resolver which hangs would take, and far above what nbdkit needs.
const SOON: Duration = Duration::from_secs(15);

/// A view of the machine in which looking up a name hangs: to open /etc/hosts waits until somebody writes to it.
struct Hung {
    directory: tempfile::TempDir,
}

impl Hung {
    /// Nothing where processes may not have a view of their own, as in some containers.
    fn new() -> Option<Self> {
        if !need_all(&["nbdkit", "unshare", "mount", "mkfifo", "pgrep"]) {
            return None;
        }
        let hung = Self {
            directory: tempfile::tempdir().expect("temporary directory"),
        };
        let made = run(Command::new("mkfifo").arg(hung.hosts()), LIMIT);
        assert!(made.status.success(), "mkfifo");
        fs::write(hung.path("nsswitch.conf"), "hosts: files\n").expect("write");
        if run(&mut hung.view(&["true"]), LIMIT).status.success() {
            return Some(hung);
        }
        println!("SKIP: {}: no mount namespaces here", common::test_name());
        None
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn hosts(&self) -> PathBuf {
        self.path("hosts")
    }

    /// A program that sees it like this.
    fn view(&self, program: &[&str]) -> Command {
        let mut script = String::new();
        for name in ["hosts", "nsswitch.conf"] {
            script += &format!("mount --bind {} /etc/{name} && ", self.path(name).display());
        }
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--mount", "sh", "-c"])
            .arg(script + "exec \"$@\"")
            .arg("sh")
            .args(program);
        command
    }

    /// nbdkit as it is started with these options.
    fn nbdkit(&self, options: &[&str], args: &[&str]) -> Guarded {
        let (socket, pidfile) = (self.path("sock"), self.path("pid"));
        let mut words = vec!["nbdkit", "-U", text(&socket), "-P", text(&pidfile)];
        words.extend(options);
        let plugin = plugin_args(args);
        words.extend(plugin.iter().map(String::as_str));
        Guarded::spawn(&mut self.view(&words))
    }

    /// nbdkit in the foreground, once it serves.
    fn serving(&self, args: &[&str]) -> Guarded {
        let _ = fs::remove_file(self.path("sock"));
        let _ = fs::remove_file(self.path("pid"));
        let mut nbdkit = self.nbdkit(&["-f"], args);
        eventually("nbdkit serves", LIMIT, || {
            assert!(nbdkit.alive(), "{}", nbdkit.stderr());
            fs::read_to_string(self.path("pid"))
                .is_ok_and(|pid| pid.ends_with('\n'))
                .then_some(())
        });
        nbdkit
    }

    fn open(&self) -> Result<Front, common::front::Refused> {
        Front::open(&self.path("sock"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain path")
}

fn ends_well(mut nbdkit: Guarded) {
    nbdkit.signal(libc::SIGTERM);
    let status = nbdkit.wait_timeout(SOON);
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}: {}",
        nbdkit.stderr()
    );
}

const LATE: &str = "the name was still being looked up";

#[test]
fn look_up_is_within_the_time_for_connecting() {
    let Some(hung) = Hung::new() else { return };
    let nbdkit = hung.serving(&["hostname=disks", "connect-timeout=1"]);
    let begun = Instant::now();
    assert!(hung.open().is_err(), "nobody knows the name");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1), "not before it: {took:?}");
    let says = format!("error: disks:10809: connect: timed out after 1 second: {LATE}\n");
    let stderr = nbdkit.stderr();
    assert!(stderr.contains(&says), "{stderr}");
    ends_well(nbdkit);
}

#[test]
fn numbers_need_no_resolver() {
    let Some(hung) = Hung::new() else { return };
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let nbdkit = hung.serving(&["hostname=127.0.0.1", &format!("port={}", server.port())]);
    hung.open().expect("opens").close();
    ends_well(nbdkit);
}

#[test]
fn nbdkit_ends_while_the_resolver_hangs() {
    let Some(hung) = Hung::new() else { return };
    for _ in 0..5 {
        let nbdkit = hung.serving(&["hostname=disks", "connect-timeout=50ms"]);
        for _ in 0..2 {
            assert!(hung.open().is_err());
        }
        // Two threads of the C library's are still at it.
        ends_well(nbdkit);
    }
}

/// Answers every question, with no name that is asked for, until it is told that it is done.
fn answer(hosts: &Path, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        // Opened for both, which waits for nobody and wakes all who wait for a writer.
        drop(OpenOptions::new().read(true).write(true).open(hosts));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn look_up_for_a_client_does_not_keep_an_nbdkit_that_is_told_to_end() {
    let Some(hung) = Hung::new() else { return };
    let nbdkit = hung.serving(&["hostname=disks", "connect-timeout=0"]);
    let socket = hung.path("sock");
    let client = thread::spawn(move || Front::open(&socket).is_err());
    eventually("nbdkit opens for a client", LIMIT, || {
        nbdkit.stderr().contains("open readonly").then_some(())
    });
    ends_well(nbdkit);
    assert!(
        client.join().expect("the client ends"),
        "nobody knows the name"
    );
}

#[test]
fn resolver_that_answers_again_is_asked_again() {
    let Some(hung) = Hung::new() else { return };
    let nbdkit = hung.serving(&["hostname=disks", "connect-timeout=200ms"]);
    for _ in 0..MANY {
        assert!(hung.open().is_err(), "it hangs");
    }
    let told = "error: disks:10809: connect: cannot look up the name: ";
    assert!(!nbdkit.stderr().contains(told), "{}", nbdkit.stderr());
    let done = Arc::new(AtomicBool::new(false));
    let resolver = {
        let (done, hosts) = (done.clone(), hung.hosts());
        thread::spawn(move || answer(&hosts, &done))
    };
    eventually("an answer", LIMIT, || {
        assert!(hung.open().is_err(), "there is no such name");
        nbdkit.stderr().contains(told).then_some(())
    });
    done.store(true, Ordering::Relaxed);
    resolver.join().expect("the resolver ends");
    ends_well(nbdkit);
}

/// Before nbdkit serves, it is told in another way; see the plugin's `resolve.rs`.
#[test]
fn shared_connection_that_cannot_be_looked_up_is_an_exit_status() {
    let Some(hung) = Hung::new() else { return };
    for options in [&["-f"][..], &[], &["--run", "true"]] {
        let begun = Instant::now();
        let mut nbdkit = hung.nbdkit(
            options,
            &["hostname=disks", "shared=true", "connect-timeout=1"],
        );
        let status = nbdkit.wait_timeout(SOON);
        let stderr = nbdkit.stderr();
        assert_eq!(
            status.and_then(|s| s.code()),
            Some(1),
            "{options:?}: {stderr}"
        );
        assert!(begun.elapsed() >= Duration::from_secs(1), "{options:?}");
        assert!(stderr.contains(LATE), "{options:?}: {stderr}");
        // Whoever was to look it up has not outlived nbdkit.
        let group = nbdkit.pid().to_string();
        let left = run(Command::new("pgrep").args(["-g", &group]), LIMIT);
        assert_eq!(String::from_utf8_lossy(&left.stdout), "", "{options:?}");
    }
}

#[test]
fn daemon_that_looked_a_name_up_before_it_forked_can_do_it_again() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let listener = listen(V4);
    let args = [
        "hostname=localhost",
        &format!("port={}", port(&listener)),
        "shared=true",
        "connect-timeout=5",
    ];
    let server = TcpServer::start_on(&listener, &["memory", "1M"]);
    let daemon = Daemon::start(directory.path(), &args);
    let size = || nbdsh(&daemon.uri(), "print(h.get_size())");
    assert_eq!(size().trim_end(), "1048576");
    drop(server);
    let _server = TcpServer::start_on(&listener, &["memory", "2M"]);
    // The loss may be noticed by one client, who cannot be helped.
    eventually("a new connection", LIMIT, || {
        Front::open(daemon.socket()).ok().map(Front::close)
    });
    assert_eq!(size().trim_end(), "2097152");
    assert!(daemon.terminate(LIMIT), "{}", daemon.stderr());
}

#[test]
fn host_without_an_address_is_told_at_once() {
    let Some(hung) = Hung::new() else { return };
    fs::remove_file(hung.hosts()).expect("remove");
    fs::write(hung.hosts(), "127.0.0.1 other\n").expect("write");
    let nbdkit = hung.serving(&["hostname=disks"]);
    assert!(hung.open().is_err());
    let stderr = nbdkit.stderr();
    assert!(
        stderr.contains("error: disks:10809: connect: cannot look up the name: "),
        "{stderr}"
    );
    ends_well(nbdkit);
}
