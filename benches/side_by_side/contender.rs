//! Who is measured: each way from the client to the server, and how it is started.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::nbdkit::{Nbdkit, uri};
use crate::common::process::{Guarded, eventually};
use crate::server::{Reach, USER};

const START: Duration = Duration::from_secs(20);

/// A way from the client to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contender {
    /// No forwarder at all: the most that there can be.
    Direct,
    /// socat, which copies bytes and knows nothing of the protocol.
    Relay,
    /// qemu-nbd with the server as its disk.
    Qemu,
    /// nbdkit with its own plugin.
    C,
    /// nbdkit with our plugin: a name and the file.
    Ours(String, PathBuf),
}

/// A contender that can be connected to. It ends when this is dropped.
pub struct Running {
    process: Option<Process>,
    /// What its clients connect to.
    pub uri: String,
}

enum Process {
    Nbdkit(Nbdkit),
    Other(Guarded),
}

impl Running {
    /// The forwarding process.
    pub fn pid(&self) -> Option<u32> {
        match self.process.as_ref()? {
            Process::Nbdkit(nbdkit) => Some(nbdkit.pid()),
            Process::Other(process) => Some(process.pid()),
        }
    }
}

impl Contender {
    /// Heads a column.
    pub fn name(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Qemu => "qemu-nbd",
            Self::C => "C plugin",
            Self::Ours(name, _) => name,
        }
    }

    /// Starts it before the server; `None` if it cannot reach servers of that kind.
    pub fn start(&self, place: &Path, reach: &Reach) -> Option<Running> {
        match self {
            Self::Direct => direct(reach),
            Self::Relay => relay(place, reach),
            Self::Qemu => qemu(place, reach),
            Self::C => Some(nbdkit(place, "nbd", &parameters(reach))),
            Self::Ours(_, plugin) => {
                let mut parameters = parameters(reach);
                if matches!(reach, Reach::X509(..)) {
                    // Without a name it would not trust a Unix socket; the C plugin looks at no name there.
                    parameters.push("tls-hostname=localhost".to_owned());
                }
                let plugin = plugin.to_string_lossy();
                let path = if plugin.contains('/') {
                    plugin
                } else {
                    format!("./{plugin}").into()
                };
                Some(nbdkit(place, &path, &parameters))
            }
        }
    }
}

fn direct(reach: &Reach) -> Option<Running> {
    let uri = match reach {
        Reach::Unix(socket) => uri(socket, ""),
        Reach::Tcp(port) => format!("nbd://127.0.0.1:{port}"),
        // fio's engine has no way to say which certificates or keys.
        Reach::X509(..) | Reach::Psk(..) => return None,
    };
    Some(Running { process: None, uri })
}

fn relay(place: &Path, reach: &Reach) -> Option<Running> {
    let server = match reach {
        Reach::Unix(socket) => format!("UNIX-CONNECT:{}", socket.display()),
        Reach::Tcp(port) => format!("TCP:127.0.0.1:{port},nodelay"),
        Reach::X509(..) | Reach::Psk(..) => return None,
    };
    let socket = place.join("socat.sock");
    let mut command = Command::new("socat");
    command
        // Its own default of 8 KiB would make it look bad with large requests.
        .arg("-b65536")
        .arg(format!("UNIX-LISTEN:{},fork", socket.display()))
        .arg(server);
    Some(listening(&mut command, &socket))
}

fn qemu(place: &Path, reach: &Reach) -> Option<Running> {
    let server = match reach {
        Reach::Unix(socket) => uri(socket, ""),
        Reach::Tcp(port) => format!("nbd://127.0.0.1:{port}"),
        Reach::X509(..) | Reach::Psk(..) => return None,
    };
    let socket = place.join("qemu.sock");
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--persistent", "-e", "0", "-f", "raw", "-k"])
        .arg(&socket)
        .arg(server);
    Some(listening(&mut command, &socket))
}

/// The parameters that the C plugin and ours have in common.
fn parameters(reach: &Reach) -> Vec<String> {
    let socket = |path: &Path| format!("socket={}", path.display());
    match reach {
        Reach::Unix(path) => vec![socket(path)],
        Reach::Tcp(port) => vec!["hostname=127.0.0.1".to_owned(), format!("port={port}")],
        Reach::X509(path, trust) => vec![
            socket(path),
            "tls=require".to_owned(),
            format!("tls-certificates={}", trust.display()),
        ],
        Reach::Psk(path, keys) => vec![
            socket(path),
            "tls=require".to_owned(),
            format!("tls-psk={}", keys.display()),
            format!("tls-username={USER}"),
        ],
    }
}

fn nbdkit(place: &Path, plugin: &str, parameters: &[String]) -> Running {
    let mut args = vec![plugin.to_owned()];
    args.extend_from_slice(parameters);
    let nbdkit = Nbdkit::start(place, &args);
    Running {
        uri: nbdkit.uri(),
        process: Some(Process::Nbdkit(nbdkit)),
    }
}

/// Starts a program that will listen on `socket`.
fn listening(command: &mut Command, socket: &Path) -> Running {
    // One of an earlier workload may have left it.
    let _ = fs::remove_file(socket);
    let mut process = Guarded::spawn(command);
    eventually("the forwarder listens", START, || {
        if !process.alive() {
            panic!("it ended at once: {command:?}\n{}", process.stderr());
        }
        UnixStream::connect(socket).ok()
    });
    Running {
        uri: uri(socket, ""),
        process: Some(Process::Other(process)),
    }
}
