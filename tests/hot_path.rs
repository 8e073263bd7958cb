// SPDX-License-Identifier: BSD-3-Clause
//! Requests on an open connection allocate nothing and log nothing.
//!
//! This links the crate: what allocates in nbdkit, and for whom, could not be told from outside. What
//! may allocate is left out: the first request of a thread, as the standard library makes a handle for
//! it; a status query, for its list of extents; a read whose chunks come out of order, for the map of
//! what was answered; and whatever fails. TLS is left to OpenSSL.

#[path = "common/allocations.rs"]
mod allocations;
mod common;
#[path = "common/open.rs"]
mod open;

use std::cell::Cell;
use std::hint::black_box;
use std::path::Path;
use std::sync::{Barrier, Once};
use std::thread;

use allocations::{Counting, allocations};
use common::nbdkit::Nbdkit;
use common::upstream::{noise_file, qemu_nbd};
use common::{need, need_extended};
use log::{LevelFilter, Log, Metadata, Record};
use nbdkit_nbd_plugin::client::{Client, Zeroing};
use nbdkit_nbd_plugin::proto::framing::Framing;
use open::open;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often each kind of request is made.
const ROUNDS: u64 = 300;
/// Larger than the receive buffer of a connection, so that both ways of receiving are used.
const SIZES: [usize; 4] = [512, 4 << 10, 64 << 10, 256 << 10];
/// What one thread has for itself.
const SHARE: u64 = 1 << 20;

/// Listens as closely as `nbdkit -v` does.
struct Listener;

thread_local! {
    static HEARD: Cell<u64> = const { Cell::new(0) };
}

impl Log for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &Record<'_>) {
        HEARD.set(HEARD.get() + 1);
    }

    fn flush(&self) {}
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Listener).expect("there is no other logger");
        log::set_max_level(LevelFilter::Debug);
    });
}

/// Every kind of request, `rounds` times, by the thread with this number.
fn requests(client: &Client, buffer: &mut [u8], number: u64, rounds: u64) {
    let offset = number * SHARE;
    for _ in 0..rounds {
        for size in SIZES {
            let buffer = &mut buffer[..size];
            client.write(buffer, offset, false).expect("write");
            client.read(buffer, offset).expect("read");
        }
        client.write(&buffer[..512], offset, true).expect("FUA");
        let zeroing = Zeroing::default();
        client.zero(4 << 10, offset, zeroing).expect("zero");
        client.trim(4 << 10, offset, false).expect("trim");
        client.flush().expect("flush");
    }
}

/// Makes requests from so many threads at once. Returns, for each, how often it allocated and logged
/// after the first few rounds.
fn counted(options: &[&str], threads: u64) -> Vec<(u64, u64)> {
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(directory.path(), &[options, &["memory", "8M"]].concat());
    let framing = match options.contains(&"--no-sr") {
        true => Framing::Simple,
        false => Framing::Structured,
    };
    counted_at(upstream.socket(), framing, threads)
}

/// [`counted`] with a server that has extended headers.
fn counted_extended(threads: u64) -> Vec<(u64, u64)> {
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 8 << 20, 71);
    let upstream = qemu_nbd(directory.path(), &image, "raw", "", &["--discard=unmap"]);
    counted_at(upstream.socket(), Framing::Extended, threads)
}

fn counted_at(socket: &Path, framing: Framing, threads: u64) -> Vec<(u64, u64)> {
    listen();
    let client = open(socket).expect("open");
    assert_eq!(client.export().framing, framing);
    let all_warm = Barrier::new(threads as usize);
    let one = |number| {
        let mut buffer = vec![1; SIZES[SIZES.len() - 1]];
        requests(&client, &mut buffer, number, 10);
        all_warm.wait();
        let heard = HEARD.get();
        let allocated = allocations(|| requests(&client, &mut buffer, number, ROUNDS));
        (allocated, HEARD.get() - heard)
    };
    let counts = thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|n| scope.spawn(move || one(n))).collect();
        let ended = started
            .into_iter()
            .map(|thread| thread.join().expect("a count"));
        ended.collect()
    });
    client.close();
    counts
}

#[test]
fn allocations_and_messages_are_noticed() {
    listen();
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1);
    assert_eq!(allocations(|| ()), 0);
    let heard = HEARD.get();
    log::debug!("a message");
    log::trace!("a message that nobody asked for");
    assert_eq!(HEARD.get() - heard, 1);
}

#[test]
fn one_thread_structured_replies() {
    if need("nbdkit") {
        assert_eq!(counted(&[], 1), [(0, 0)]);
    }
}

#[test]
fn one_thread_simple_replies() {
    if need("nbdkit") {
        assert_eq!(counted(&["--no-sr"], 1), [(0, 0)]);
    }
}

#[test]
fn eight_threads_structured_replies() {
    if need("nbdkit") {
        assert_eq!(counted(&[], 8), [(0, 0); 8]);
    }
}

#[test]
fn one_thread_extended_headers() {
    if need_extended() {
        assert_eq!(counted_extended(1), [(0, 0)]);
    }
}

#[test]
fn eight_threads_extended_headers() {
    if need_extended() {
        assert_eq!(counted_extended(8), [(0, 0); 8]);
    }
}

#[test]
fn eight_threads_simple_replies() {
    if need("nbdkit") {
        assert_eq!(counted(&["--no-sr"], 8), [(0, 0); 8]);
    }
}
