// SPDX-License-Identifier: BSD-3-Clause
//! A real sshd on loopback, with keys of its own, and an ssh that knows no other.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::clients::{LIMIT, program};
use super::process::{eventually, run_ok};
use super::tcp::{V4, listen, port};
use super::{need, need_all};

/// Where distributions have the server, which is not in everybody's `$PATH`.
const SSHD: [&str; 3] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"];

/// An ssh server, and a client that is first in the `$PATH` of [`Sshd::prepare`].
pub struct Sshd {
    directory: tempfile::TempDir,
    port: u16,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Sshd {
    /// Nothing where there is no sshd.
    pub fn start() -> Option<Self> {
        if !need_all(&["nbdkit", "ssh", "ssh-keygen"]) {
            return None;
        }
        let Some(sshd) = SSHD.into_iter().find(|path| Path::new(path).is_file()) else {
            // Says so, or fails, as for any other program.
            need("sshd");
            return None;
        };
        // It insists on it, and the service that makes it may never have been started.
        let _ = fs::create_dir("/run/sshd");
        let directory = tempfile::tempdir().expect("temporary directory");
        let listener = listen(V4);
        let stop = Arc::new(AtomicBool::new(false));
        let mut this = Self {
            port: port(&listener),
            directory,
            stop: stop.clone(),
            accepting: None,
        };
        this.write_server_files();
        this.write_client_files();
        let config = this.path("sshd_config");
        this.accepting = Some(thread::spawn(move || {
            accept(&listener, &stop, sshd, &config)
        }));
        Some(this)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `USER@HOST:PORT`, as a URI has it.
    pub fn authority(&self) -> String {
        let user = program("id", &["-un"]);
        format!("{}@127.0.0.1:{}", user.trim_end(), self.port)
    }

    /// Lets our ssh find this server also by the name of another host.
    pub fn answers_to(&self, host: &str) {
        let path = self.path("ssh_config");
        let mut config = fs::read_to_string(&path).expect("read");
        config.push_str(&format!(
            "Host {host}\nHostName 127.0.0.1\nPort {}\n",
            self.port
        ));
        fs::write(path, config).expect("write");
    }

    /// What nbdkit needs to find our ssh.
    pub fn prepare(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
    }

    /// How each ssh was called.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// The process ids of all that have been started.
    pub fn pids(&self) -> Vec<u32> {
        let pids = fs::read_to_string(self.path("pids")).unwrap_or_default();
        pids.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Every ssh must have ended and been waited for.
    pub fn none_is_left(&self) {
        assert_ne!(self.pids(), [0; 0], "ssh was started");
        eventually("every ssh has been waited for", LIMIT, || {
            let there = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
            (!self.pids().iter().any(there)).then_some(())
        });
    }

    fn write_server_files(&self) {
        for key in ["host", "client"] {
            run_ok(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(self.path(key)),
                LIMIT,
            );
        }
        fs::copy(self.path("client.pub"), self.path("authorized")).expect("copy");
        let config = format!(
            "HostKey {host}\nAuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n\
             PermitRootLogin prohibit-password\n",
            host = self.path("host").display(),
            authorized = self.path("authorized").display(),
        );
        fs::write(self.path("sshd_config"), config).expect("write");
    }

    fn write_client_files(&self) {
        let key = fs::read_to_string(self.path("host.pub")).expect("read");
        let known = format!("[127.0.0.1]:{} {key}", self.port);
        fs::write(self.path("known"), known).expect("write");
        let config = format!(
            "IdentityFile {client}\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile {known}\nGlobalKnownHostsFile none\nStrictHostKeyChecking ask\n",
            client = self.path("client").display(),
            known = self.path("known").display(),
        );
        fs::write(self.path("ssh_config"), config).expect("write");
        // ssh does not look at $HOME, so this is how it gets another configuration.
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> {calls}\necho $$ >> {pids}\nexec {ssh} -F {config} \"$@\"\n",
            calls = self.path("calls").display(),
            pids = self.path("pids").display(),
            ssh = program("sh", &["-c", "command -v ssh"]).trim_end(),
            config = self.path("ssh_config").display(),
        );
        fs::create_dir(self.path("bin")).expect("make directory");
        let ssh = self.path("bin/ssh");
        fs::write(&ssh, script).expect("write");
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
}

/// One sshd for each connection, as inetd does it: the port is ours from the beginning.
fn accept(listener: &TcpListener, stop: &AtomicBool, sshd: &str, config: &Path) {
    let mut children = Vec::new();
    for stream in listener.incoming() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let stream = OwnedFd::from(stream.expect("accept"));
        let child = Command::new(sshd)
            .args(["-i", "-e", "-f"])
            .arg(config)
            .stdin(stream.try_clone().expect("duplicate descriptor"))
            .stdout(stream)
            .stderr(Stdio::null())
            .spawn();
        children.push(child.expect("sshd starts"));
    }
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the one who accepts.
        let address = (V4, self.port).into();
        let _ = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}
