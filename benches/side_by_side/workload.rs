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
}

impl Group {
    /// In the order in which they are measured.
    pub const ALL: [Self; 6] = [
        Self::Unix,
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
}

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
    /// Whether it is part of the quick run.
    pub quick: bool,
}

impl Workload {
    /// What `ONLY` is compared with, and targets name: `unix/4k-randread-16`.
    pub fn name(&self) -> String {
        let group = self.group.name();
        match self.load {
            Load::Fio(requests) => {
                let Requests { pattern, depth, .. } = requests;
                let size = requests.size();
                match requests.clients {
                    1 => format!("{group}/{size}-{pattern}-{depth}"),
                    clients => format!("{group}/{size}-{pattern}-{depth}x{clients}"),
                }
            }
            Load::Map => format!("{group}/map"),
            Load::Open => format!("{group}/open"),
        }
    }

    /// The same in words, without the server.
    pub fn title(&self) -> String {
        match self.load {
            Load::Fio(requests) => {
                let Requests { pattern, depth, .. } = requests;
                let size = requests.size();
                match requests.clients {
                    1 => format!("{size} {pattern}, depth {depth}"),
                    clients => format!("{size} {pattern}, depth {depth}, {clients} clients"),
                }
            }
            Load::Map => "map of 1024 extents".to_owned(),
            Load::Open => "open and close".to_owned(),
        }
    }

    /// With the server, in short.
    pub fn full_title(&self) -> String {
        let group = match self.group {
            Group::Unix => "",
            Group::Tcp => "TCP: ",
            Group::X509 => "TLS X.509: ",
            Group::Psk => "TLS PSK: ",
            Group::Qemu => "qemu-nbd: ",
            Group::Holes => "fragmented: ",
        };
        format!("{group}{}", self.title())
    }

    /// In what the rate is told: small requests are counted, large ones weighed.
    pub fn unit(&self) -> &'static str {
        match self.load {
            Load::Fio(requests) if requests.is_large() => "MiB/s",
            Load::Fio(_) => "IOPS",
            Load::Map | Load::Open => "per s",
        }
    }

    /// A rate in requests per second as a figure in this workload's unit.
    pub fn figure(&self, rate: f64) -> f64 {
        match self.load {
            Load::Fio(requests) if requests.is_large() => rate * f64::from(requests.kib) / 1024.0,
            _ => rate,
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

    fn is_large(&self) -> bool {
        self.kib >= 256
    }
}

/// Every workload. Those that are quick are what the targets speak of.
pub fn all() -> Vec<Workload> {
    use Group::{Holes, Psk, Qemu, Tcp, Unix, X509};

    let quick = |workload| Workload {
        quick: true,
        ..workload
    };
    let mut list = vec![
        quick(fio(Unix, "randread", 4, 1, 1)),
        quick(fio(Unix, "randwrite", 4, 1, 1)),
        quick(fio(Unix, "randread", 4, 16, 1)),
        quick(fio(Unix, "randwrite", 4, 16, 1)),
        quick(fio(Unix, "randread", 4, 16, 4)),
        fio(Unix, "randrw", 64, 16, 1),
        quick(fio(Unix, "read", 256, 8, 1)),
        quick(fio(Unix, "write", 256, 8, 1)),
        fio(Unix, "read", 1024, 8, 1),
        fio(Unix, "write", 1024, 8, 1),
        slow(Unix, Load::Open),
    ];
    for group in [X509, Psk] {
        list.push(quick(fio(group, "randread", 4, 16, 1)));
        list.push(quick(fio(group, "randwrite", 4, 16, 1)));
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
        quick: false,
    }
}
