// SPDX-License-Identifier: BSD-3-Clause
//! Clients of several kinds, for seconds or (`make soak`) for minutes, before a server that is killed again and again:
//! their data is right, and nbdkit has the descriptors, the threads and the memory that it had in the beginning.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::env;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::clients::{LIMIT, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, plugin_args};
use common::need_all;
use common::pki::{Authority, LOCALHOST, TOOLS};
use common::process::{eventually, run_ok};
use common::upstream::noise;
use tempfile::TempDir;
use torture::block::BLOCK;
use torture::client::Client;
use torture::crowd::{self, Manner};
use torture::ordeal::{compare, shown};
use torture::writeback::Server;
use torture::writer::{Mix, Story, Writer};
use torture::{Rng, history, seed};

/// The disk: what random writers have, what fio has, and what nobody writes to.
const WRITERS: u64 = 4 << 20;
const FIO: u64 = 4 << 20;
const STILL: u64 = 4 << 20;
const SIZE: u64 = WRITERS + FIO + STILL;

/// Seconds for each test where `SOAK` says nothing.
const USUAL: u64 = 4;
/// A round takes no longer than this: all that was asked in it is in memory, and judged in its end.
const ROUND: u64 = 30;
/// Connections of each client, or of all of them where they share.
const CONNECTIONS: usize = 4;
/// What a connection to the server may have open: its socket, a bell for who receives, and once somebody has waited
/// beside others for what comes, an epoll with a bell of its own.
const DESCRIPTORS: usize = 4;
/// Most descriptors and threads at any time: there are fewer than ten clients at once, each with its own socket,
/// with [`CONNECTIONS`] to the server and as many that are left or made just then, and with 16 threads.
const MOST_DESCRIPTORS: usize = 10 * (1 + 2 * CONNECTIONS * DESCRIPTORS);
const MOST_THREADS: usize = 200;
/// The memory that nbdkit may have after each round, in KiB: twice what was seen in twenty minutes.
const MOST_KIB: u64 = 112 << 10;
/// How much more it may have at the end than after the first third, in KiB: twice what `replay` allows to be kept,
/// whatever the time. That is asked of long runs; in a short one the first third is still warming up.
const GROWTH_KIB: u64 = 16 << 10;
/// A run of so many rounds is long.
const WARM: u64 = 6;

/// A hang bound for one program, which waits for the server again and again.
const HANGS: Duration = Duration::from_secs(300);

struct Soak {
    // Dropped in this order.
    front: Nbdkit,
    server: Server,
    directory: TempDir,
    shared: bool,
    rng: Rng,
    /// What nbdkit has without clients.
    threads: usize,
    descriptors: usize,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    deaths: usize,
    requests: usize,
    copies: AtomicU64,
    loads: AtomicU64,
    visits: AtomicU64,
}

impl Soak {
    fn new(directory: TempDir, options: &[String], extra: &[&str]) -> Self {
        let server = Server::new(directory.path(), SIZE, options, false);
        let still = fs::File::options().write(true).open(&server.backing);
        let still = still.expect("the backing file");
        still
            .write_all_at(&noise(STILL as usize, 1), WRITERS + FIO)
            .expect("what nobody writes to");
        let connections = format!("connections={CONNECTIONS}");
        let parameters = server.parameters();
        let patient = [
            "reconnect=60",
            "reconnect-delay=10ms:200ms",
            "replay=8M",
            // Who comes while the server is away.
            "retry=30",
        ];
        let parameters = parameters.iter().map(String::as_str);
        let parameters: Vec<&str> = parameters
            .chain(patient)
            .chain([connections.as_str()])
            .chain(extra.iter().copied())
            .collect();
        let mut args = plugin_args(&parameters);
        // The messages would be many.
        args.retain(|arg| arg != "-v");
        let front = Nbdkit::start(directory.path(), &args);
        let (threads, descriptors) = (front.idle_threads(), front.descriptors());
        Self {
            front,
            server,
            directory,
            shared: extra.contains(&"shared=true"),
            rng: Rng::new(seed()),
            threads,
            descriptors,
            counts: Counts::default(),
        }
    }

    /// Everything at once for so many seconds; then all data is judged.
    fn round(&mut self, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds);
        let seed = self.rng.next();
        let story = Story::new(seed, WRITERS / BLOCK as u64);
        let mut client = Front::of(&self.front);
        // As the story wants it in its beginning.
        assert_eq!(client.zero(0, WRITERS as u32, 0), Ok(()));
        assert_eq!(client.flush(), Ok(()));
        client.close();
        let writers: Vec<Writer> = (0..2)
            .map(|number| {
                let client = Client::open(self.front.socket()).expect("a client");
                Writer::new(&story, client, number, self.rng.fork())
            })
            .collect();
        let manner = Manner {
            mix: Mix::default(),
            depth: 16,
            stay: 150,
        };
        let (socket, uri) = (self.front.socket().to_owned(), self.front.uri());
        let (directory, over) = (self.directory.path(), AtomicBool::new(false));
        let (front, server, rng, counts) = (
            &mut self.front,
            &mut self.server,
            &mut self.rng,
            &self.counts,
        );
        let mut deaths = 0;
        let mut visits = rng.fork();
        let mut writers = thread::scope(|scope| {
            scope.spawn(|| again_and_again(&over, &counts.copies, || copy(directory, &uri)));
            scope.spawn(|| again_and_again(&over, &counts.loads, || load(directory, &uri)));
            scope.spawn(|| again_and_again(&over, &counts.visits, || visit(&socket, &mut visits)));
            let written = crowd::write(&story, writers, &socket, manner, || {
                loop {
                    let before = story.progress.load(Ordering::SeqCst);
                    let enough = 50 + rng.below(1500);
                    let lived = crowd::wait(&story, "the next death", |progress| {
                        assert!(front.alive(), "nbdkit has ended");
                        is_modest(front);
                        progress > before + enough || Instant::now() >= until
                    });
                    if !lived {
                        return;
                    }
                    server.kill();
                    server.again();
                    deaths += 1;
                    if Instant::now() >= until {
                        return;
                    }
                }
            });
            // The others end what they are at.
            over.store(true, Ordering::SeqCst);
            written.unwrap_or_else(|panic| {
                println!("nbdkit says: {}", front.stderr());
                resume_unwind(panic)
            })
        });
        self.counts.deaths += deaths;
        for writer in &mut writers {
            assert_eq!(writer.flush(), 0, "the last flush");
        }
        writers[0].read_all();
        for writer in writers {
            writer.close(LIMIT);
        }
        let ops = story.ops();
        let mut complaints = history::judge(&ops, story.blocks, &story.torn());
        complaints.extend(compare(&self.server.backing, &ops, &story));
        assert!(complaints.is_empty(), "{}", shown(&complaints));
        self.counts.requests += ops.len();
    }

    /// When the clients have gone there is what was there before the first came: and what they share, if they do.
    fn settles(&self) -> u64 {
        let kept = if self.shared {
            CONNECTIONS * DESCRIPTORS
        } else {
            0
        };
        eventually("threads are back to the start", LIMIT, || {
            (self.front.threads() <= self.threads).then_some(())
        });
        eventually("descriptors are back to the start", LIMIT, || {
            (self.front.descriptors() <= self.descriptors + kept).then_some(())
        });
        resident_kib(&self.front)
    }

    /// As long as `SOAK` says.
    fn endure(mut self) {
        let seconds = env::var("SOAK").map_or(USUAL, |text| text.parse().expect("SOAK: seconds"));
        let rounds = (seconds / ROUND).max(3);
        let mut memory = Vec::new();
        for round in 1..=rounds {
            self.round(seconds / rounds);
            memory.push(self.settles());
            println!(
                "round {round} of {rounds}: {} KiB, {} threads, {} descriptors; {} deaths, {} requests of writers, \
                 {} copies, {} loads, {} visits so far",
                memory.last().expect("a round"),
                self.front.threads(),
                self.front.descriptors(),
                self.counts.deaths,
                self.counts.requests,
                self.counts.copies.load(Ordering::SeqCst),
                self.counts.loads.load(Ordering::SeqCst),
                self.counts.visits.load(Ordering::SeqCst),
            );
        }
        // No round has been without any of it.
        assert!(self.counts.deaths as u64 >= rounds, "nobody died");
        for (count, what) in [
            (&self.counts.copies, "copies"),
            (&self.counts.loads, "loads"),
            (&self.counts.visits, "visits"),
        ] {
            assert!(count.load(Ordering::SeqCst) >= rounds, "no {what}");
        }
        let third = memory.len().div_ceil(3);
        let before = memory[..third].iter().max().expect("a round");
        let after = memory.last().expect("a round");
        assert!(memory.iter().all(|kib| *kib <= MOST_KIB), "KiB: {memory:?}");
        let flat = rounds < WARM || *after <= before + GROWTH_KIB;
        assert!(flat, "KiB: {memory:?}");
        self.front.ends_well();
    }
}

fn again_and_again(over: &AtomicBool, count: &AtomicU64, mut work: impl FnMut()) {
    loop {
        work();
        count.fetch_add(1, Ordering::SeqCst);
        if over.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// nbdcopy takes a copy, over as many connections as it likes.
fn copy(directory: &Path, uri: &str) {
    let file = directory.join("copy");
    run_ok(Command::new("nbdcopy").args([uri, text(&file)]), HANGS);
    let mut still = vec![0; STILL as usize];
    let copied = fs::File::open(&file).expect("the copy");
    copied
        .read_exact_at(&mut still, WRITERS + FIO)
        .expect("all of it");
    assert!(still == noise(STILL as usize, 1), "the copy differs");
}

/// fio writes, and reads what it has written.
fn load(directory: &Path, uri: &str) {
    let mut command = Command::new("fio");
    command.current_dir(directory).args([
        "--name=soak",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        "--bs=16k",
        &format!("--offset={WRITERS}"),
        &format!("--size={FIO}"),
        "--iodepth=8",
        "--serialize_overlap=1",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randrepeat=0",
    ]);
    run_ok(&mut command, HANGS);
}

/// A short visit, which ends in good order or not.
fn visit(socket: &Path, rng: &mut Rng) {
    if rng.chance(20) {
        // Leaves within the handshake.
        let _ = UnixStream::connect(socket).expect("nbdkit listens");
        return;
    }
    let mut client = Front::open(socket).expect("an export");
    let at = (WRITERS + FIO + rng.below(STILL / 2)) as usize;
    let read = client.read(at as u64, 5000);
    let from = at - (WRITERS + FIO) as usize;
    let still = noise(STILL as usize, 1);
    assert!(read.as_deref() == Ok(&still[from..from + 5000]), "read");
    if rng.chance(50) {
        // Without a word, and with a request on its way.
        client.submit_read(0, 1 << 20);
        drop(client);
    } else {
        client.close();
    }
}

fn is_modest(front: &Nbdkit) {
    let (descriptors, threads) = (front.descriptors(), front.threads());
    assert!(descriptors <= MOST_DESCRIPTORS, "{descriptors} descriptors");
    assert!(threads <= MOST_THREADS, "{threads} threads");
}

fn resident_kib(front: &Nbdkit) -> u64 {
    let path = format!("/proc/{}/status", front.pid());
    let status = fs::read_to_string(path).expect("nbdkit runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.expect("a size").parse().expect("a number")
}

fn soak(options: &[String], extra: &[&str]) {
    if !need_all(&["nbdkit", "nbdcopy", "fio"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    Soak::new(directory, options, extra).endure();
}

#[test]
fn each_client_has_its_own_connections() {
    soak(&[], &[]);
}

#[test]
fn clients_share_their_connections() {
    soak(&[], &["shared=true"]);
}

#[test]
fn over_tls() {
    if !need_all(TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let trusting = format!("tls-certificates={}", text(&authority.trusting("client")));
    let certificates = authority.server("server", LOCALHOST);
    let certificates = format!("--tls-certificates={}", text(&certificates));
    let secure = ["tls=require", "tls-hostname=localhost", &trusting];
    soak(&["--tls=require".to_owned(), certificates], &secure);
}
