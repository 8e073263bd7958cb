// SPDX-License-Identifier: BSD-3-Clause
//! A directory to type examples in, where `nbdkit nbd` is the plugin under test and `example.com` is
//! a host that ssh reaches.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::common::clients::program;
use super::common::plugin;
use super::common::process::{Guarded, eventually, run};
use super::common::sshd::Sshd;
use super::listed::{FAR_HOST, SUBSTITUTIONS, Stand};

/// One example takes a few seconds at most; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(90);

pub struct Desk {
    directory: tempfile::TempDir,
    /// The far host and the server on it, where there is an sshd.
    far: Option<(Sshd, Guarded)>,
}

impl Desk {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let bin = directory.path().join("bin");
        fs::create_dir(&bin).expect("directory");
        let wrapper = bin.join("nbdkit");
        let script = format!(
            "#!/bin/bash\nfor i in $(seq $#); do\n\
             if [ \"${{!i}}\" = nbd ]; then set -- \"${{@:1:i-1}}\" '{}' \"${{@:i+1}}\"; break; fi\n\
             done\nexec {} \"$@\"\n",
            plugin().display(),
            program("sh", &["-c", "command -v nbdkit"]).trim_end(),
        );
        fs::write(&wrapper, script).expect("wrapper");
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("executable");
        let nbdctl = bin.join("nbdkit-nbdctl");
        symlink(env!("CARGO_BIN_EXE_nbdkit-nbdctl"), nbdctl).expect("link");
        Self {
            directory,
            far: None,
        }
    }

    /// Sets up the far host, for examples that need one. False where there is no sshd.
    pub fn reach_far_host(&mut self) -> bool {
        if self.far.is_none() {
            self.far = Sshd::start().map(|sshd| {
                sshd.answers_to(FAR_HOST);
                let socket = sshd.path("far.sock");
                let server = Guarded::spawn(
                    Command::new("nbdkit")
                        .args(["-f", "-U"])
                        .arg(&socket)
                        .args(["memory", "1M"]),
                );
                eventually("the far server listens", LIMIT, || {
                    socket.exists().then_some(())
                });
                (sshd, server)
            });
        }
        self.far.is_some()
    }

    /// Runs the commands as a script that ends at the first that fails, and then expects all of the
    /// servers to end that told their process id.
    pub fn type_in(&self, title: &str, printed: &str) {
        let commands = self.substituted(printed);
        let mut shell = Command::new("bash");
        shell
            .args(["-euxo", "pipefail", "-c", &commands])
            .current_dir(self.directory.path());
        let bin = self.directory.path().join("bin");
        let path = std::env::var("PATH").expect("PATH");
        let ssh = self.far.as_ref().map(|(sshd, _)| sshd.path("bin"));
        let ssh = ssh.unwrap_or_else(|| bin.clone());
        shell.env(
            "PATH",
            format!("{}:{}:{path}", bin.display(), ssh.display()),
        );
        let output = run(&mut shell, LIMIT);
        let left: Vec<_> = self
            .servers()
            .into_iter()
            .filter(|(_, pid)| !ends(pid))
            .collect();
        for (file, pid) in self.servers() {
            if left.contains(&(file.clone(), pid.clone())) {
                let _ = Command::new("kill").args(["-KILL", &pid]).status();
            }
            // The number may be another process's by the time that the next example ends.
            fs::remove_file(file).expect("file of a process id");
        }
        assert!(
            output.status.success(),
            "{title}: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(left.is_empty(), "{title}: left running: {left:?}");
    }

    /// The commands with what stands for the reader's own things, see [`SUBSTITUTIONS`].
    fn substituted(&self, printed: &str) -> String {
        let mut commands = printed.to_owned();
        for (words, stand) in SUBSTITUTIONS {
            if commands.contains(words) {
                commands = commands.replace(words, &self.stand_in(*stand));
            }
        }
        commands
    }

    fn stand_in(&self, stand: Stand) -> String {
        let far = || {
            let (sshd, _) = self.far.as_ref().expect("a far host");
            sshd
        };
        match stand {
            Stand::Plugin => plugin().display().to_string(),
            Stand::FreePort => {
                let listener = TcpListener::bind("localhost:0").expect("a free port");
                listener
                    .local_addr()
                    .expect("its address")
                    .port()
                    .to_string()
            }
            Stand::SshPort => format!("{FAR_HOST}:{}", far().port()),
            Stand::User => format!("{}@{FAR_HOST}", program("id", &["-un"]).trim_end()),
            Stand::FarSocket => far().path("far.sock").display().to_string(),
        }
    }

    /// The files of process ids, and what is in them.
    fn servers(&self) -> Vec<(PathBuf, String)> {
        fs::read_dir(self.directory.path())
            .expect("the directory")
            .map(|entry| entry.expect("entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
            .map(|path| {
                let pid = fs::read_to_string(&path).expect("process id");
                (path, pid.trim().to_owned())
            })
            .collect()
    }
}

/// Whether the process goes away within the time that a server may take to end.
fn ends(pid: &str) -> bool {
    // Of a process that has ended and waits for its parent nothing is left but the number.
    let gone = || {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        !command.contains("nbd")
    };
    std::panic::catch_unwind(|| {
        eventually("the server ends", Duration::from_secs(15), || {
            gone().then_some(())
        });
    })
    .is_ok()
}
