// SPDX-License-Identifier: BSD-3-Clause
//! The receiver on a real socket whose other end is in the test's hand: what it makes of the bytes,
//! however they arrive, and how many receives that takes. A round receives once.

use super::*;
use crate::client::loan::Buffer;
use crate::proto::codec::Writer;
use crate::proto::consts::{
    ChunkFlags, ChunkType, Command, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
};
use crate::proto::request::Request;
use crate::transport::{Deadline, Doorbell, Target};
use proptest::prelude::*;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

/// A receiver and the server that it hears. Everything happens in one thread, so no more may be under
/// way at any time than a socket holds, about 200 KiB.
struct Rig {
    server: UnixStream,
    stream: Stream,
    inflight: Inflight<Flight, Receiver>,
    large_reads: bool,
}

impl Rig {
    fn new(framing: Framing, large_reads: bool) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("listen on a fresh socket");
        let stream = Target::Unix(socket)
            .connect(Deadline::NEVER)
            .expect("connect");
        let (server, _) = listener.accept().expect("accept what connected");
        server.set_nonblocking(true).expect("set non-blocking");
        let doorbell = Doorbell::new().expect("eventfd");
        let receiver = Receiver::new(framing).expect("map memory");
        Self {
            server,
            stream,
            inflight: Inflight::new(receiver, doorbell, None),
            large_reads,
        }
    }

    /// A read in flight. Its buffer outlives its ticket, see `loan.rs`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Read<'_> {
        let request = Request::new(Command::READ, offset, buffer.len() as u64);
        let framing = Framing::Structured;
        let mut cookie = None;
        let ticket = self.inflight.claim(&Deadline::NEVER, |own| {
            cookie = Some(own);
            Flight::new(request, own, framing, None, &mut Buffer::Target(buffer))
        });
        Read {
            ticket: ticket.expect("a free slot"),
            cookie: cookie.expect("a slot was claimed"),
        }
    }

    fn send(&self, bytes: &[u8]) {
        (&self.server).write_all(bytes).expect("room in the socket");
    }

    /// One receive.
    fn round(&self) {
        let mut role = self.inflight.try_read().expect("nobody else reads");
        let (receiver, over) = role.parts();
        let wire = Wire {
            server: "test",
            stream: &self.stream,
            inflight: &self.inflight,
            large_reads: self.large_reads,
        };
        receiver
            .round(wire, Blocking::No, over)
            .expect("the replies are right");
    }

    /// Receives until this read is answered; says how often.
    fn receives_until(&self, read: &Read<'_>) -> usize {
        let mut rounds = 0;
        while !self.inflight.is_replied(read.ticket.index()) {
            self.round();
            rounds += 1;
            assert!(rounds < 1000, "this never ends");
        }
        rounds
    }

    /// How much of the receive buffer was ever written to, provided that no reply has a zero at its
    /// end.
    fn used(&self) -> usize {
        let mut role = self.inflight.try_read().expect("nobody else reads");
        let buffer = &role.parts().0.buffer;
        buffer
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1)
    }
}

struct Read<'a> {
    ticket: crate::client::inflight::Ticket<'a, Flight, Receiver>,
    cookie: Cookie,
}

impl Read<'_> {
    fn finish(self) {
        let flight = self.ticket.finish();
        flight.reply.finish().expect("the read succeeds");
    }
}

/// Never zero, and no piece of it is like its neighbours.
fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset..)
        .take(length)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1)
        .collect()
}

fn chunk(cookie: Cookie, offset: u64, length: usize, last: bool) -> Vec<u8> {
    Writer::default()
        .u32(STRUCTURED_REPLY_MAGIC)
        .u16(if last { ChunkFlags::DONE.bits() } else { 0 })
        .u16(ChunkType::OFFSET_DATA.0)
        .u64(cookie.0)
        .u32(8 + length as u32)
        .u64(offset)
        .bytes(&pattern(offset, length))
        .finish()
}

/// The same with an extended header, to a request for `asked`.
fn extended(cookie: Cookie, asked: u64, offset: u64, length: usize, last: bool) -> Vec<u8> {
    Writer::default()
        .u32(EXTENDED_REPLY_MAGIC)
        .u16(u16::from(last))
        .u16(ChunkType::OFFSET_DATA.0)
        .u64(cookie.0)
        .u64(asked)
        .u64(8 + length as u64)
        .u64(offset)
        .bytes(&pattern(offset, length))
        .finish()
}

/// The whole answer to a read, in chunks of one length.
fn chunks(cookie: Cookie, offset: u64, length: usize, each: usize) -> Vec<Vec<u8>> {
    (0..length)
        .step_by(each)
        .map(|at| {
            let n = each.min(length - at);
            chunk(cookie, offset + at as u64, n, at + n == length)
        })
        .collect()
}

fn simple(cookie: Cookie, offset: u64, length: usize) -> Vec<u8> {
    Writer::default()
        .u32(SIMPLE_REPLY_MAGIC)
        .u32(0)
        .u64(cookie.0)
        .bytes(&pattern(offset, length))
        .finish()
}

/// How many receives a read takes that is answered in chunks of one length, all of which have
/// arrived, when the one before it was answered likewise.
fn receives(length: usize, each: usize) -> usize {
    let rig = Rig::new(Framing::Structured, true);
    let mut buffer = vec![0; length];
    let mut last = 0;
    for offset in [0, 1 << 20] {
        buffer.fill(0);
        let read = rig.read(offset, &mut buffer);
        rig.send(&chunks(read.cookie, offset, length, each).concat());
        last = rig.receives_until(&read);
        read.finish();
        assert_eq!(buffer, pattern(offset, length));
    }
    last
}

#[test]
fn small_chunks_of_a_large_read_are_received_together() {
    // 32 KiB at a time, and the rest of a chunk that is cut with what follows it.
    assert!(receives(128 << 10, 4096) <= 5);
    assert!(receives(128 << 10, 8192) <= 5);
    assert!(receives(128 << 10, 16000) <= 5);
}

#[test]
fn a_large_chunk_takes_one_receive_and_the_next_header_comes_with_it() {
    // The first sip, then one for each chunk.
    assert_eq!(receives(128 << 10, 16 << 10), 1 + 8);
    assert_eq!(receives(128 << 10, 64 << 10), 1 + 2);
}

#[test]
fn large_payload_does_not_pass_through_the_buffer() {
    let rig = Rig::new(Framing::Structured, true);
    let mut buffer = vec![0; 128 << 10];
    let length = buffer.len();
    for each in [length, length / 4, LARGE as usize] {
        let read = rig.read(0, &mut buffer);
        rig.send(&chunks(read.cookie, 0, length, each).concat());
        rig.receives_until(&read);
        read.finish();
        assert!(rig.used() <= 512, "{} bytes did", rig.used());
    }
}

#[test]
fn a_small_read_beside_a_large_one_takes_one_receive() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let rig = Rig::new(framing, true);
        let mut large = vec![0; 256 << 10];
        let waiting = rig.read(0, &mut large);
        for round in 0..20 {
            let mut small = vec![0; 8192];
            let offset = 4096 * round;
            let read = rig.read(offset, &mut small);
            rig.send(&match framing {
                Framing::Simple => simple(read.cookie, offset, 8192),
                Framing::Structured => chunk(read.cookie, offset, 8192, true),
                Framing::Extended => extended(read.cookie, offset, offset, 8192, true),
            });
            let most = if round == 0 { 2 } else { 1 };
            assert_eq!(rig.receives_until(&read), most, "{round}");
            read.finish();
            assert_eq!(small, pattern(offset, 8192));
        }
        drop(waiting);
    }
}

/// Servers send header and payload apart.
#[test]
fn payload_behind_its_header_goes_where_it_belongs() {
    let rig = Rig::new(Framing::Structured, false);
    let mut buffer = vec![0; 4096];
    let read = rig.read(0, &mut buffer);
    let bytes = chunk(read.cookie, 0, 4096, true);
    let (header, payload) = bytes.split_at(28);
    rig.send(header);
    rig.round();
    rig.send(payload);
    rig.round();
    assert!(rig.used() <= 28, "payload passed through the buffer");
    read.finish();
    assert_eq!(buffer, pattern(0, 4096));
}

#[test]
fn foreign_bytes_to_skip_are_received_together() {
    let rig = Rig::new(Framing::Structured, true);
    let mut buffer = vec![0; 512];
    let read = rig.read(0, &mut buffer);
    // An error with much text, of which only the first part is kept.
    let text = vec![b'x'; 60_000];
    let error = Writer::default()
        .u32(STRUCTURED_REPLY_MAGIC)
        .u16(ChunkFlags::DONE.bits())
        .u16(ChunkType::ERROR.0)
        .u64(read.cookie.0)
        .u32(6 + text.len() as u32)
        .u32(5)
        .u16(text.len() as u16)
        .bytes(&text)
        .finish();
    rig.send(&error);
    let rounds = rig.receives_until(&read);
    assert!(rounds <= 3, "{rounds}");
    drop(read);
}

proptest! {
    /// Two reads, answered in chunks of any length that are dealt out like cards, and the bytes
    /// arrive in pieces of any length.
    #[test]
    fn every_byte_comes_to_its_place_however_it_arrives(
        lengths in prop::collection::vec(1_usize..20_000, 2..8),
        dealt: u8,
        arrivals in prop::collection::vec(1_usize..50_000, 1..12),
        large_reads: bool,
        wide: bool,
    ) {
        let framing = if wide { Framing::Extended } else { Framing::Structured };
        let rig = Rig::new(framing, large_reads);
        let halves = lengths.split_at(lengths.len() / 2);
        let totals = [halves.0, halves.1].map(|lengths| lengths.iter().sum::<usize>());
        let mut buffers = totals.map(|total| vec![0; total]);
        let [first, second] = &mut buffers;
        let offsets = [0, 1 << 32];
        let reads = [rig.read(offsets[0], first), rig.read(offsets[1], second)];
        let mut queues = [halves.0, halves.1].map(|lengths| lengths.iter());
        let mut done = [0, 0];
        let mut bytes = Vec::new();
        for turn in 0.. {
            let wanted = usize::from(dealt >> (turn % 8) & 1);
            let Some((who, length)) = [wanted, 1 - wanted]
                .into_iter()
                .find_map(|who| queues[who].next().map(|length| (who, *length)))
            else {
                break;
            };
            let at = offsets[who] + done[who] as u64;
            done[who] += length;
            let last = done[who] == totals[who];
            let cookie = reads[who].cookie;
            bytes.extend(match wide {
                true => extended(cookie, offsets[who], at, length, last),
                false => chunk(cookie, at, length, last),
            });
        }
        let mut sizes = arrivals.iter().cycle();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*sizes.next().expect("endless")));
            rig.send(piece);
            rest = after;
            rig.round();
        }
        for read in &reads {
            rig.receives_until(read);
        }
        let [one, two] = reads;
        one.finish();
        two.finish();
        for (buffer, offset) in buffers.iter().zip(offsets) {
            prop_assert!(*buffer == pattern(offset, buffer.len()));
        }
    }
}
