// SPDX-License-Identifier: BSD-3-Clause
//! The servers that stand behind the plugin: nbdkit, qemu-nbd and nbd-server, and disks to serve.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::nbdkit::{Nbdkit, uri};
use super::process::{Guarded, eventually};

const START: Duration = Duration::from_secs(20);

/// `length` bytes that look random, never compress to zeroes, and are the same for the same `seed`.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    // xorshift64*; the state must not be zero.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A raw disk image of [`noise`].
pub fn noise_file(directory: &Path, name: &str, length: usize, seed: u64) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, noise(length, seed)).expect("write disk image");
    path
}

/// nbdkit's memory plugin: a disk of `size` (as nbdkit spells sizes) full of zeroes.
pub fn memory(directory: &Path, size: &str) -> Nbdkit {
    Nbdkit::start(directory, &["memory", size])
}

/// nbdkit's file plugin serving `image`.
pub fn file(directory: &Path, image: &Path) -> Nbdkit {
    Nbdkit::start(directory, &["file", &image.display().to_string()])
}

/// A server that is not nbdkit. It ends when this is dropped.
pub struct Server {
    process: Guarded,
    socket: PathBuf,
}

impl Server {
    /// The socket it listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The URI of the export `name`, which must not need percent-encoding.
    pub fn uri_export(&self, name: &str) -> String {
        uri(&self.socket, name)
    }

    /// Sends a signal to the server and to all that it has started.
    pub fn signal_all(&self, signal: libc::c_int) {
        self.process.signal_group(signal);
    }

    /// What the server wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }

    fn start(command: &mut Command, socket: PathBuf) -> Self {
        let mut process = Guarded::spawn(command);
        eventually("the server listens", START, || {
            if !process.alive() {
                panic!(
                    "the server ended at once: {command:?}\n{}{}",
                    process.stdout(),
                    process.stderr()
                );
            }
            UnixStream::connect(&socket).ok()
        });
        Self { process, socket }
    }
}

/// qemu-nbd serving `image` of `format` (`raw`, `qcow2`) as `export`, to up to four clients at a time
/// and after the last of them has gone.
pub fn qemu_nbd(
    directory: &Path,
    image: &Path,
    format: &str,
    export: &str,
    extra: &[&str],
) -> Server {
    let socket = directory.join("qemu-nbd.sock");
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--persistent", "-e", "4", "-f", format, "-x", export, "-k"])
        .arg(&socket)
        .args(extra)
        .arg(image);
    Server::start(&mut command, socket)
}

/// nbd-server, the protocol's reference server, serving `image` as `export`; `extra` are lines for the
/// export's section of its configuration.
///
/// On its own it would become a daemon that no test could be sure to end. So it runs as under inetd: socat
/// listens, and each connection gets an nbd-server of its own on stdin (`port = 0`), in socat's process group.
pub fn nbd_server(directory: &Path, image: &Path, export: &str, extra: &[&str]) -> Server {
    let socket = directory.join("nbd-server.sock");
    let config = directory.join("nbd-server.conf");
    let text = format!(
        "[generic]\nport = 0\n[{export}]\nexportname = {}\n{}\n",
        image.display(),
        extra.join("\n")
    );
    fs::write(&config, text).expect("write nbd-server's configuration");
    let mut command = Command::new("socat");
    command
        .arg(format!("UNIX-LISTEN:{},fork", socket.display()))
        .arg(format!("EXEC:nbd-server -d -C {},nofork", config.display()));
    Server::start(&mut command, socket)
}
