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
}

impl Group {
    /// In the order in which they are measured.
    pub const ALL: [Self; 5] = [Self::Unix, Self::X509, Self::Psk, Self::Tcp, Self::Qemu];

    /// A word for names of workloads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
            Self::X509 => "x509",
            Self::Psk => "psk",
            Self::Qemu => "qemu",
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
        }
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Requests by fio's NBD engine.
    Fio(Requests),
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

/// In what a rate is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Requests per second.
    Iops,
    /// Requests per second times their size.
    Mib,
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
        }
    }

    /// Small requests are counted, large ones weighed.
    pub fn unit(&self) -> Unit {
        match self.load {
            Load::Fio(requests) if requests.kib >= 256 => Unit::Mib,
            Load::Fio(_) => Unit::Iops,
        }
    }

    /// A rate in requests per second as a figure in this workload's unit.
    pub fn figure(&self, rate: f64) -> f64 {
        match self.load {
            Load::Fio(requests) if self.unit() == Unit::Mib => {
                rate * f64::from(requests.kib) / 1024.0
            }
            Load::Fio(_) => rate,
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
}

/// Every workload. Those that are quick are what the targets speak of.
pub fn all() -> Vec<Workload> {
    use Group::{Psk, Qemu, Tcp, Unix, X509};

    let mut list = vec![
        requests(Unix, "randread", 4, 1, true),
        requests(Unix, "randwrite", 4, 1, true),
        requests(Unix, "randread", 4, 16, true),
        requests(Unix, "randwrite", 4, 16, true),
        requests(Unix, "randrw", 64, 16, false),
        requests(Unix, "read", 256, 8, true),
        requests(Unix, "write", 256, 8, true),
        requests(Unix, "read", 1024, 8, false),
        requests(Unix, "write", 1024, 8, false),
        clients(requests(Unix, "randread", 4, 16, true), 4),
    ];
    for group in [X509, Psk] {
        list.push(requests(group, "randread", 4, 16, true));
        list.push(requests(group, "randwrite", 4, 16, true));
        list.push(requests(group, "read", 256, 8, true));
        list.push(requests(group, "write", 256, 8, true));
    }
    for group in [Tcp, Qemu] {
        list.push(requests(group, "randread", 4, 16, false));
        list.push(requests(group, "read", 256, 8, false));
    }
    list
}

fn requests(group: Group, pattern: &'static str, kib: u32, depth: u32, quick: bool) -> Workload {
    let clients = 1;
    Workload {
        group,
        load: Load::Fio(Requests {
            pattern,
            kib,
            depth,
            clients,
        }),
        quick,
    }
}

fn clients(workload: Workload, clients: u32) -> Workload {
    let Load::Fio(requests) = workload.load;
    Workload {
        load: Load::Fio(Requests {
            clients,
            ..requests
        }),
        ..workload
    }
}
