// SPDX-License-Identifier: BSD-3-Clause
//! What is measured: the list of workloads, and what each of them is.

/// Which server stands behind the contenders, and how they reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// nbdkit's memory plugin on a Unix socket.
    Unix,
    /// The same by TCP on this machine.
    Tcp,
    /// The same on a Unix socket, by TLS with certificates.
    X509,
    /// The same on a Unix socket, by TLS with a pre-shared key.
    Psk,
    /// qemu-nbd with a raw file on a Unix socket.
    Qemu,
    /// nbdkit's memory plugin on a Unix socket, and every other 64 KiB of its disk is a hole.
    Holes,
    /// A server of ours that answers reads in many small chunks, or late.
    Pieces,
    /// nbdkit's memory plugin on a Unix socket, with a disk that is copied within a moment.
    Copy,
    /// nbdkit's memory plugin on a Unix socket; each client chooses the export.
    Dynamic,
}

impl Group {
    /// In the order in which they are measured.
    pub const ALL: [Self; 9] = [
        Self::Unix,
        Self::Pieces,
        Self::Copy,
        Self::Dynamic,
        Self::X509,
        Self::Psk,
        Self::Tcp,
        Self::Qemu,
        Self::Holes,
    ];

    /// A word for names of workloads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
            Self::X509 => "x509",
            Self::Psk => "psk",
            Self::Qemu => "qemu",
            Self::Holes => "holes",
            Self::Pieces => "pieces",
            Self::Copy => "copy",
            Self::Dynamic => "dynamic",
        }
    }

    /// A heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Unix => "nbdkit memory on a Unix socket",
            Self::Tcp => "nbdkit memory by TCP",
            Self::X509 => "nbdkit memory by TLS with certificates",
            Self::Psk => "nbdkit memory by TLS with a pre-shared key",
            Self::Qemu => "qemu-nbd with a raw file on a Unix socket",
            Self::Holes => "nbdkit memory on a Unix socket, its disk fragmented",
            Self::Pieces => "a server that answers in chunks, or late, on a Unix socket",
            Self::Copy => "nbdkit memory on a Unix socket, its disk copied whole",
            Self::Dynamic => "nbdkit memory on a Unix socket, the export chosen by the client",
        }
    }

    /// The export that clients ask for. nbdkit's memory plugin has it by every name.
    pub fn export(self) -> &'static str {
        match self {
            Self::Dynamic => "disk",
            _ => "",
        }
    }

    /// Size of the disk, bytes: larger than any cache that matters, small enough for any machine.
    pub const fn disk(self) -> u64 {
        match self {
            Self::Copy => 256 << 20,
            _ => 1 << 30,
        }
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Requests by fio's NBD engine.
    Fio(Requests),
    /// Asking for a map of many extents, over and over.
    Map,
    /// Connecting, the handshake, disconnecting, over and over.
    Open,
    /// Large reads by fio that are answered in chunks of so many bytes.
    Chunks(u32),
    /// Small reads one after the other, while a large one waits for its answer.
    Beside,
    /// Copying the disk, over and over.
    Copy(Copying),
}

/// Copying a whole disk between the contender and a file in memory, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copying {
    /// By whom.
    pub tool: Tool,
    /// Whether it goes to the contender, or comes from there.
    pub to: bool,
}

/// A program that copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// nbdcopy with its defaults.
    Nbdcopy,
    /// nbdcopy with one connection.
    NbdcopyOne,
    /// qemu-img convert with its defaults.
    QemuImg,
}

/// What rates of copying are counted in, KiB: nbdcopy's requests are of this size.
pub const COPY_UNIT: u32 = 256;

/// Sizes of the chunks that make up the reply to a large read, bytes.
pub const CHUNKS: [u32; 3] = [4096, 8192, 16000];

/// What is answered in chunks.
const IN_CHUNKS: Requests = Requests {
    pattern: "read",
    kib: 256,
    depth: 8,
    clients: 1,
};

/// Requests of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// fio's name for the mix: `randread`, `write`.
    pub pattern: &'static str,
    /// KiB per request.
    pub kib: u32,
    /// Requests that each client keeps in flight.
    pub depth: u32,
    /// Clients, each with a connection of its own.
    pub clients: u32,
}

/// One line of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The server.
    pub group: Group,
    /// The client.
    pub load: Load,
    /// How many threads each connection to a forwarding nbdkit has; its default if this is nothing.
    pub threads: Option<u32>,
    /// Whether our plugin is to come back to a lost server, and keeps what it needs for that.
    pub reconnect: bool,
    /// Whether it is part of the quick run.
    pub quick: bool,
}

impl Workload {
    /// What `ONLY` is compared with, and targets name: `unix/4k-randread-16`.
    pub fn name(&self) -> String {
        let what = match self.load {
            Load::Fio(requests) => requests.name(),
            Load::Map => "map".to_owned(),
            Load::Open => "open".to_owned(),
            Load::Chunks(size) => format!("{}-by-{size}", IN_CHUNKS.name()),
            Load::Beside => "8k-beside-256k".to_owned(),
            Load::Copy(copying) => copying.name(),
        };
        let threads = self.threads.map(|threads| format!("-t{threads}"));
        format!(
            "{}/{what}{}{}",
            self.group.name(),
            threads.unwrap_or_default(),
            if self.reconnect { "-reconnect" } else { "" }
        )
    }

    /// The same in words, without the server.
    pub fn title(&self) -> String {
        let what = match self.load {
            Load::Fio(requests) => requests.title(),
            Load::Map => "map of 1024 extents".to_owned(),
            Load::Open => "open and close".to_owned(),
            Load::Chunks(size) => format!("{}, chunks of {size}", IN_CHUNKS.title()),
            Load::Beside => "8k read beside a waiting 256k".to_owned(),
            Load::Copy(copying) => copying.title(),
        };
        match self.threads {
            Some(threads) => format!("{what}, nbdkit -t {threads}"),
            None if self.reconnect => format!("{what}, ours with reconnect=30"),
            None => what,
        }
    }

    /// With the server, in short.
    pub fn full_title(&self) -> String {
        let group = match self.group {
            Group::Unix | Group::Pieces | Group::Copy => "",
            Group::Tcp => "TCP: ",
            Group::X509 => "TLS X.509: ",
            Group::Psk => "TLS PSK: ",
            Group::Qemu => "qemu-nbd: ",
            Group::Holes => "fragmented: ",
            Group::Dynamic => "dynamic-export: ",
        };
        format!("{group}{}", self.title())
    }

    /// In what the rate is told: small requests are counted, large ones weighed.
    pub fn unit(&self) -> &'static str {
        match self.load {
            _ if self.weight().is_some() => "MiB/s",
            Load::Fio(_) | Load::Chunks(_) | Load::Beside => "IOPS",
            Load::Map | Load::Open | Load::Copy(_) => "per s",
        }
    }

    /// A rate in requests per second as a figure in this workload's unit.
    pub fn figure(&self, rate: f64) -> f64 {
        match self.weight() {
            Some(kib) => rate * f64::from(kib) / 1024.0,
            None => rate,
        }
    }

    /// How much a request moves, KiB, where that is what counts.
    fn weight(&self) -> Option<u32> {
        match self.load {
            Load::Fio(requests) => (requests.kib >= 256).then_some(requests.kib),
            Load::Chunks(_) => Some(IN_CHUNKS.kib),
            Load::Copy(_) => Some(COPY_UNIT),
            Load::Map | Load::Open | Load::Beside => None,
        }
    }

    /// What fio sends, if it is fio that sends.
    pub fn requests(&self) -> Option<Requests> {
        match self.load {
            Load::Fio(requests) => Some(requests),
            Load::Chunks(_) => Some(IN_CHUNKS),
            _ => None,
        }
    }
}

impl Requests {
    /// `4k`, `1M`.
    pub fn size(&self) -> String {
        match self.kib {
            kib if kib % 1024 == 0 => format!("{}M", kib / 1024),
            kib => format!("{kib}k"),
        }
    }

    fn name(&self) -> String {
        let (size, Self { pattern, depth, .. }) = (self.size(), self);
        match self.clients {
            1 => format!("{size}-{pattern}-{depth}"),
            clients => format!("{size}-{pattern}-{depth}x{clients}"),
        }
    }

    fn title(&self) -> String {
        let (size, Self { pattern, depth, .. }) = (self.size(), self);
        match self.clients {
            1 => format!("{size} {pattern}, depth {depth}"),
            clients => format!("{size} {pattern}, depth {depth}, {clients} clients"),
        }
    }
}

impl Copying {
    fn name(&self) -> String {
        let tool = match self.tool {
            Tool::Nbdcopy => "nbdcopy",
            Tool::NbdcopyOne => "nbdcopy-1",
            Tool::QemuImg => "qemu-img",
        };
        format!("{tool}-{}", if self.to { "to" } else { "from" })
    }

    fn title(&self) -> String {
        let direction = if self.to { "to it" } else { "from it" };
        match self.tool {
            Tool::Nbdcopy => format!("nbdcopy {direction}"),
            Tool::NbdcopyOne => format!("nbdcopy {direction}, one connection"),
            Tool::QemuImg => format!("qemu-img convert {direction}"),
        }
    }
}

/// Every workload. Those that are quick show in two minutes where it stands; each has a target.
pub fn all() -> Vec<Workload> {
    use Group::{Copy, Dynamic, Holes, Pieces, Psk, Qemu, Tcp, Unix, X509};

    let quick = |workload| Workload {
        quick: true,
        ..workload
    };
    let threads = |threads, workload| Workload {
        threads: Some(threads),
        ..workload
    };
    let mut list = vec![
        quick(fio(Unix, "randread", 4, 1, 1)),
        quick(fio(Unix, "randwrite", 4, 1, 1)),
        quick(fio(Unix, "randread", 4, 16, 1)),
        quick(fio(Unix, "randwrite", 4, 16, 1)),
        fio(Unix, "randread", 4, 64, 1),
        fio(Unix, "randwrite", 4, 64, 1),
        quick(fio(Unix, "randread", 4, 16, 4)),
    ];
    for count in [4, 8] {
        list.push(threads(count, fio(Unix, "randread", 4, 16, 1)));
        list.push(threads(count, fio(Unix, "randwrite", 4, 16, 1)));
    }
    list.push(Workload {
        reconnect: true,
        ..fio(Unix, "randwrite", 4, 16, 1)
    });
    list.extend([
        fio(Unix, "randrw", 64, 16, 1),
        quick(fio(Unix, "read", 256, 8, 1)),
        quick(fio(Unix, "write", 256, 8, 1)),
        fio(Unix, "read", 1024, 8, 1),
        fio(Unix, "write", 1024, 8, 1),
        slow(Unix, Load::Open),
    ]);
    for size in CHUNKS {
        let workload = slow(Pieces, Load::Chunks(size));
        list.push(Workload {
            quick: size == 8192,
            ..workload
        });
    }
    list.push(quick(slow(Pieces, Load::Beside)));
    for tool in [Tool::Nbdcopy, Tool::NbdcopyOne, Tool::QemuImg] {
        for to in [false, true] {
            list.push(slow(Copy, Load::Copy(Copying { tool, to })));
        }
    }
    list.push(quick(slow(Dynamic, Load::Open)));
    for group in [X509, Psk] {
        list.push(quick(fio(group, "randread", 4, 16, 1)));
        list.push(fio(group, "randwrite", 4, 16, 1));
        list.push(quick(fio(group, "read", 256, 8, 1)));
        list.push(quick(fio(group, "write", 256, 8, 1)));
    }
    for group in [Tcp, Qemu] {
        list.push(fio(group, "randread", 4, 16, 1));
        list.push(fio(group, "read", 256, 8, 1));
    }
    list.push(slow(Holes, Load::Map));
    list
}

/// What the disk of a group is filled by, before anything is measured.
pub fn filling(group: Group) -> Workload {
    fio(group, "write", 1024, 8, 1)
}

fn fio(group: Group, pattern: &'static str, kib: u32, depth: u32, clients: u32) -> Workload {
    let requests = Requests {
        pattern,
        kib,
        depth,
        clients,
    };
    slow(group, Load::Fio(requests))
}

fn slow(group: Group, load: Load) -> Workload {
    Workload {
        group,
        load,
        threads: None,
        reconnect: false,
        quick: false,
    }
}
