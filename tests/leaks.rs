// SPDX-License-Identifier: BSD-3-Clause
//! Thousands of clients later nbdkit has the descriptors, the threads and the memory that it began with.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use common::clients::{LIMIT, nbdsh_unconnected};
use common::nbdkit::{Nbdkit, forward, forward_args};
use common::need;
use common::pair::Pair;
use common::process::eventually;
use common::scripted::wire::{self, cmd, opt};

/// How much more memory nbdkit may have at the end, in KiB. What clients in the warm-up happened not to
/// need at the same time, a few buffers of 1 MiB each, stays with the allocator; of 1775 clients each may
/// thus leave 3.5 KiB behind unseen, of 10,000 each 600 bytes.
const GROWTH_KIB: u64 = 6 << 10;

/// Lets one client after another connect, or fail to, and returns when all are gone.
fn clients(front: &Nbdkit, count: usize, action: &str) {
    let script = format!(
        "
for n in range({count}):
    each = nbd.NBD()
    try:
        each.connect_uri('{}')
        {action}
        each.shutdown()
    except nbd.Error:
        pass
",
        front.uri()
    );
    nbdsh_unconnected(&script);
}

/// Descriptors and threads before the first client are those after the last.
fn stays_flat(front: &Nbdkit, action: &str) {
    let idle = front.idle_threads();
    let baseline = front.descriptors();
    clients(front, 200, action);
    eventually("threads are back to the start", LIMIT, || {
        (front.threads() <= idle).then_some(())
    });
    eventually("descriptors are back to the start", LIMIT, || {
        (front.descriptors() <= baseline).then_some(())
    });
}

#[test]
fn two_hundred_clients_that_read() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(&["memory", "1M"], &[]);
    stays_flat(&pair.front, "each.pread(512, 0)");
}

#[test]
fn two_hundred_clients_that_leave_at_once() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(&["memory", "1M"], &[]);
    stays_flat(&pair.front, "pass");
}

#[test]
fn two_hundred_clients_without_a_server() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let front = forward(directory.path(), &directory.path().join("nobody"), &[]);
    stays_flat(&front, "pass");
}

#[test]
fn two_hundred_clients_whose_export_is_refused() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(
        &[
            "--filter=exportname",
            "memory",
            "1M",
            "exportname-strict=true",
            "exportname=right",
        ],
        &["export=wrong"],
    );
    stays_flat(&pair.front, "pass");
}

/// The first part of what a client sends: flags, and GO for the default export.
fn opening() -> Vec<u8> {
    let name_and_infos = [0; 6];
    wire::join(&[
        &u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES).to_be_bytes(),
        &wire::NEWSTYLE_MAGIC.to_be_bytes(),
        &opt::GO.to_be_bytes(),
        &(name_and_infos.len() as u32).to_be_bytes(),
        &name_and_infos,
    ])
}

/// A request without payload.
fn request(kind: u16, length: u32) -> Vec<u8> {
    wire::join(&[
        &wire::REQUEST_MAGIC.to_be_bytes(),
        &0u16.to_be_bytes(),
        &kind.to_be_bytes(),
        &[0; 16],
        &length.to_be_bytes(),
    ])
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("nbdkit listens");
    let deadline = Some(Duration::from_secs(20));
    stream.set_read_timeout(deadline).expect("a timeout");
    stream.set_write_timeout(deadline).expect("a timeout");
    stream
}

/// The shortest life of a client: everything is sent at once, and what comes is of no interest.
fn open_and_close(socket: &Path) {
    let mut stream = connect(socket);
    let all = wire::join(&[&opening(), &request(cmd::DISC, 0)]);
    stream.write_all(&all).expect("nbdkit takes the handshake");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("nbdkit closes");
    // Greeting, one INFO reply, ACK.
    assert!(
        answer.len() >= 18 + 20 + 12 + 20,
        "only {} bytes",
        answer.len()
    );
}

/// Sends only the first `count` bytes of a conversation and leaves without a word.
fn leave_after(socket: &Path, conversation: &[u8], count: usize) {
    let mut stream = connect(socket);
    stream
        .write_all(&conversation[..count])
        .expect("nbdkit takes the beginning");
    if count > opening().len() {
        // Else nbdkit would see the end before it has opened anything.
        let mut greeting_and_more = [0; 18 + 1];
        stream
            .read_exact(&mut greeting_and_more)
            .expect("an answer to GO");
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// How much memory nbdkit has at the moment, in KiB.
fn resident_kib(front: &Nbdkit) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", front.pid())).expect("nbdkit runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.expect("a VmRSS line").trim().trim_end_matches(" kB");
    number.parse().expect("a number")
}

/// A client of small requests costs what they take: most of its buffers, whose sizes are for the worst case, is
/// never touched. They were part of a heap once, which clears them, and keeps them when the client has left.
#[test]
fn memory_of_a_client_of_small_requests() {
    let Some(pair) = QuickPair::new(&[]) else {
        return;
    };
    let front = &pair.front;
    let client = || {
        let mut stream = connect(front.socket());
        let all = wire::join(&[&opening(), &request(cmd::READ, 512)]);
        stream.write_all(&all).expect("nbdkit takes the request");
        // Greeting, one INFO reply, ACK, and the reply.
        let mut answer = vec![0; 18 + 32 + 20 + 16 + 512];
        stream.read_exact(&mut answer).expect("all of the answer");
        stream
    };
    let first = client();
    let before = resident_kib(front);
    let others: Vec<_> = (0..16).map(|_| client()).collect();
    let each = (resident_kib(front) - before) / others.len() as u64;
    println!("{each} KiB for each client");
    // 59, or 127 where nothing is optimized and stacks are deep; a cleared receive buffer is 128 more.
    assert!(each < 160, "{each} KiB for each client");
    drop((first, others));
}

/// nbdkit in front of another, quick to open: without debug messages, and with few threads. Its memory is of one heap: with
/// one for each thread it would depend on luck how much of it lies idle.
struct QuickPair {
    front: Nbdkit,
    _upstream: Nbdkit,
    _directory: TempDir,
}

impl QuickPair {
    /// Nothing where there is no nbdkit.
    fn new(extra: &[&str]) -> Option<Self> {
        if !need("nbdkit") {
            return None;
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        let upstream = Nbdkit::start(directory.path(), &["-t1", "memory", "1M"]);
        let args = forward_args(upstream.socket(), &[&["-t1"], extra].concat());
        let quiet: Vec<_> = args.into_iter().filter(|arg| arg != "-v").collect();
        let front = Nbdkit::start_with(directory.path(), &quiet, |command| {
            command.env("MALLOC_ARENA_MAX", "1");
        });
        Some(Self {
            front,
            _upstream: upstream,
            _directory: directory,
        })
    }
}

/// Plays `client` as often as said, from two threads, the first fifth to warm up; then everything must
/// be as it was.
fn stays_flat_and_small(front: &Nbdkit, count: usize, client: impl Fn(usize) + Sync) {
    let play = |from: usize, to: usize| {
        thread::scope(|scope| {
            for first in [from, from + 1] {
                let client = &client;
                scope.spawn(move || (first..to).step_by(2).for_each(client));
            }
        });
    };
    let (threads, descriptors) = (front.idle_threads(), front.descriptors());
    let settled = || {
        eventually("threads are back to the start", LIMIT, || {
            (front.threads() <= threads).then_some(())
        });
        eventually("descriptors are back to the start", LIMIT, || {
            (front.descriptors() <= descriptors).then_some(())
        });
    };
    play(0, count / 5);
    settled();
    let before = resident_kib(front);
    play(count / 5, count);
    settled();
    let after = resident_kib(front);
    println!("{count} clients: {before} KiB before, {after} KiB after");
    assert!(after <= before + GROWTH_KIB, "from {before} to {after} KiB");
}

#[test]
fn ten_thousand_clients_that_open_and_close() {
    let Some(pair) = QuickPair::new(&[]) else {
        return;
    };
    let front = &pair.front;
    stays_flat_and_small(front, 10_000, |_| open_and_close(front.socket()));
}

#[test]
fn two_thousand_clients_of_a_shared_connection() {
    let Some(pair) = QuickPair::new(&["shared=true"]) else {
        return;
    };
    let front = &pair.front;
    stays_flat_and_small(front, 2000, |_| open_and_close(front.socket()));
}

#[test]
fn clients_that_leave_after_every_byte_of_their_conversation() {
    let Some(pair) = QuickPair::new(&[]) else {
        return;
    };
    let front = &pair.front;
    let mut write = request(cmd::WRITE, 512);
    write.extend([1; 512]);
    // A read of the whole disk, whose data nobody takes; half of a write.
    let conversation = wire::join(&[&opening(), &request(cmd::READ, 1 << 20), &write[..300]]);
    let places = conversation.len() + 1;
    stays_flat_and_small(front, 5 * places, |number| {
        leave_after(front.socket(), &conversation, number % places);
    });
}

#[test]
fn thousand_clients_that_list_the_servers_exports() {
    let Some(pair) = QuickPair::new(&["dynamic-export=true"]) else {
        return;
    };
    let front = &pair.front;
    let option = |number: u32| {
        wire::join(&[
            &wire::NEWSTYLE_MAGIC.to_be_bytes(),
            &number.to_be_bytes(),
            &0u32.to_be_bytes(),
        ])
    };
    let flags = u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES).to_be_bytes();
    let conversation = wire::join(&[&flags, &option(opt::LIST), &option(opt::ABORT)]);
    stays_flat_and_small(front, 1000, |_| {
        let mut stream = connect(front.socket());
        stream.write_all(&conversation).expect("nbdkit takes it");
        stream.read_to_end(&mut Vec::new()).expect("nbdkit closes");
    });
}
