// SPDX-License-Identifier: BSD-3-Clause
//! Who is measured: each way from the client to the server, and how it is started.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::nbdkit::Nbdkit;
use crate::common::process::{Guarded, eventually};
use crate::door::Door;
use crate::server::{Reach, USER};
use crate::workload::{Group, Requests, Workload};

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
    /// nbdkit whose threads wait for each other and for nobody else: see `handover.c`.
    Handover,
    /// nbdkit with its own plugin.
    C,
    /// The same once more. How far it lies from the first is what this machine cannot tell apart.
    Again,
    /// nbdkit with our plugin: a name and the file.
    Ours(String, PathBuf),
}

/// A contender that can be connected to. It ends when this is dropped.
pub struct Running {
    process: Option<Process>,
    /// Where its clients connect.
    pub door: Door,
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
            Self::Handover => "handover",
            Self::C => "C plugin",
            Self::Again => "C again",
            Self::Ours(name, _) => name,
        }
    }

    /// Whether a bar is about it, or it shows whether a round is worth anything. The others are there for
    /// comparison.
    pub fn is_judged(&self) -> bool {
        !matches!(self, Self::Relay | Self::Qemu | Self::Handover)
    }

    /// Whether its costs are in the report beside ours.
    pub fn is_compared(&self) -> bool {
        matches!(self, Self::C | Self::Ours(..))
    }

    /// Whether it is measured at that. It must be able to reach such a server for our clients: fio's engine has no way to say which
    /// certificates or keys it has, and the relay knows no TLS.
    ///
    /// Nor do others than the plugins take part where nbdkit's threads or reconnecting are what matters, but for the direct
    /// run, by which rounds are judged. qemu-nbd has no export that it has not opened. The handover takes small requests
    /// that come several at a time.
    pub fn takes_part(&self, workload: &Workload) -> bool {
        let has_tls = matches!(workload.group, Group::X509 | Group::Psk);
        match self {
            Self::Direct => !has_tls,
            Self::Relay => !has_tls && workload.threads.is_none() && !workload.reconnect,
            Self::Qemu => {
                workload.group != Group::Dynamic
                    && workload.threads.is_none()
                    && !workload.reconnect
            }
            Self::Handover => {
                let many = |requests: Requests| requests.kib == 4 && requests.depth > 1;
                workload.group == Group::Unix
                    && !workload.reconnect
                    && workload.requests().is_some_and(many)
            }
            Self::C | Self::Again | Self::Ours(..) => true,
        }
    }

    /// Starts it before a server that it can reach, as the workload wants it.
    pub fn start(&self, place: &Path, reach: &Reach, workload: &Workload) -> Running {
        let threads = workload.threads;
        match self {
            Self::Direct => Running {
                process: None,
                door: reach.door(),
            },
            Self::Relay => relay(place, reach),
            Self::Qemu => qemu(place, reach),
            Self::Handover => nbdkit(place, threads, &handover(place), &[]),
            Self::C | Self::Again => nbdkit(place, threads, "nbd", &parameters(reach)),
            Self::Ours(_, plugin) => {
                let mut parameters = parameters(reach);
                if matches!(reach, Reach::X509(..)) {
                    // The C plugin looks at no name where there is a Unix socket. We would not either, but
                    // not checking is not how it is used.
                    parameters.push("tls-hostname=localhost".to_owned());
                }
                if workload.reconnect {
                    parameters.push("reconnect=30".to_owned());
                }
                nbdkit(place, threads, &plugin.to_string_lossy(), &parameters)
            }
        }
    }
}

fn relay(place: &Path, reach: &Reach) -> Running {
    let server = match reach.door() {
        Door::Unix(socket) => format!("UNIX-CONNECT:{}", socket.display()),
        Door::Tcp(port) => format!("TCP:127.0.0.1:{port},nodelay"),
    };
    let socket = place.join("socat.sock");
    let mut command = Command::new("socat");
    command
        // Its own default of 8 KiB would make it look bad with large requests.
        .arg("-b65536")
        .arg(format!("UNIX-LISTEN:{},fork", socket.display()))
        .arg(server);
    listening(&mut command, socket)
}

/// Compiles the plugin, which takes a tenth of a second.
fn handover(place: &Path) -> String {
    let (plugin, source) = (place.join("handover.so"), place.join("handover.c"));
    fs::write(&source, include_str!("handover.c")).expect("write the source of the handover");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]);
    let mut compiler = Guarded::spawn(compiler.arg(&plugin).arg(&source));
    match compiler.wait_timeout(START) {
        Some(status) if status.success() => plugin.to_string_lossy().into_owned(),
        _ => panic!("the handover was not compiled: {}", compiler.stderr()),
    }
}

fn qemu(place: &Path, reach: &Reach) -> Running {
    let (object, tls) = match reach {
        Reach::Unix(_) | Reach::Dynamic(_) | Reach::Tcp(_) => (None, ""),
        Reach::X509(_, trust) => (
            Some(format!("tls-creds-x509,dir={}", trust.display())),
            ",tls-creds=tls,tls-hostname=localhost",
        ),
        Reach::Psk(_, keys) => {
            // It wants to know the directory; the name of the file is its own.
            let place = keys.parent().unwrap_or(keys);
            let object = format!("tls-creds-psk,dir={},username={USER}", place.display());
            (Some(object), ",tls-creds=tls")
        }
    };
    let server = match reach.door() {
        Door::Unix(socket) => format!("server.type=unix,server.path={}", socket.display()),
        Door::Tcp(port) => format!("server.type=inet,server.host=127.0.0.1,server.port={port}"),
    };
    let socket = place.join("qemu.sock");
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "-e", "0", "-k"]).arg(&socket);
    if let Some(object) = object {
        command.arg("--object");
        command.arg(format!("{object},id=tls,endpoint=client"));
    }
    command.args(["--image-opts", &format!("driver=nbd,{server}{tls}")]);
    listening(&mut command, socket)
}

/// The parameters that the C plugin and ours have in common.
fn parameters(reach: &Reach) -> Vec<String> {
    let socket = |path: &Path| format!("socket={}", path.display());
    match reach {
        Reach::Unix(path) => vec![socket(path)],
        Reach::Dynamic(path) => vec![socket(path), "dynamic-export=true".to_owned()],
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

fn nbdkit(place: &Path, threads: Option<u32>, plugin: &str, parameters: &[String]) -> Running {
    let mut args: Vec<String> = threads
        .map(|threads| format!("--threads={threads}"))
        .into_iter()
        .collect();
    args.push(plugin.to_owned());
    args.extend_from_slice(parameters);
    let nbdkit = Nbdkit::start(place, &args);
    Running {
        door: Door::Unix(nbdkit.socket().to_owned()),
        process: Some(Process::Nbdkit(nbdkit)),
    }
}

/// Starts a program that will listen on `socket`.
fn listening(command: &mut Command, socket: PathBuf) -> Running {
    // One of an earlier workload may have left it.
    let _ = fs::remove_file(&socket);
    let mut process = Guarded::spawn(command);
    eventually("the forwarder listens", START, || {
        if !process.alive() {
            panic!("it ended at once: {command:?}\n{}", process.stderr());
        }
        UnixStream::connect(&socket).ok()
    });
    Running {
        door: Door::Unix(socket),
        process: Some(Process::Other(process)),
    }
}
