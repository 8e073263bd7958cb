// SPDX-License-Identifier: BSD-3-Clause
//! Reply headers, and whole replies to a read of 4 KiB: decoded, checked and copied to their buffer.

use std::hint::black_box;

use criterion::Criterion;
use nbdkit_nbd_plugin::proto::chunks::{Reply, Step};
use nbdkit_nbd_plugin::proto::codec::Writer;
use nbdkit_nbd_plugin::proto::consts::{
    ChunkFlags, ChunkType, Command, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};
use nbdkit_nbd_plugin::proto::framing::Framing;
use nbdkit_nbd_plugin::proto::reply::{Decoded, decode};
use nbdkit_nbd_plugin::proto::request::Request;

const OFFSET: u64 = 1 << 20;
const LENGTH: u32 = 4096;
const COOKIE: u64 = 0x1_07;

pub fn bench(criterion: &mut Criterion) {
    for (name, bytes) in [
        ("header/simple", simple()),
        ("header/structured", structured(1)),
    ] {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| decode(black_box(&bytes), Framing::Structured));
        });
    }
    let mut buffer = vec![0; LENGTH as usize];
    for (name, bytes, agreed) in [
        ("reply/simple", simple(), Framing::Simple),
        ("reply/structured", structured(1), Framing::Structured),
        (
            "reply/structured in 8 chunks",
            structured(8),
            Framing::Structured,
        ),
    ] {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| digest(black_box(&bytes), agreed, &mut buffer));
        });
    }
}

fn simple() -> Vec<u8> {
    Writer::default()
        .u32(SIMPLE_REPLY_MAGIC)
        .u32(0)
        .u64(COOKIE)
        .bytes(&[1; LENGTH as usize])
        .finish()
}

fn structured(chunks: u32) -> Vec<u8> {
    let length = LENGTH / chunks;
    let chunk = |number| {
        let last = number + 1 == chunks;
        Writer::default()
            .u32(STRUCTURED_REPLY_MAGIC)
            .u16(if last { ChunkFlags::DONE.bits() } else { 0 })
            .u16(ChunkType::OFFSET_DATA.0)
            .u64(COOKIE)
            .u32(8 + length)
            .u64(OFFSET + u64::from(number * length))
            .bytes(&vec![1; length as usize])
            .finish()
    };
    (0..chunks).flat_map(chunk).collect()
}

/// What the client does with a reply that has arrived whole.
fn digest(mut bytes: &[u8], agreed: Framing, buffer: &mut [u8]) {
    let mut reply = Reply::new(Request::new(Command::READ, OFFSET, LENGTH), None);
    loop {
        match reply.step() {
            Step::Done => break,
            Step::Header => {
                let Ok(Decoded::Header(header, used)) = decode(bytes, agreed) else {
                    panic!("the whole header is there");
                };
                bytes = &bytes[used..];
                reply.begin(header, agreed).expect("the reply is right");
            }
            Step::Take(n) => {
                reply.taken(&bytes[..n]).expect("the reply is right");
                bytes = &bytes[n..];
            }
            Step::Fill { at, len } => {
                let n = len as usize;
                buffer[at as usize..][..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                reply.moved(len);
            }
            step => panic!("there is nothing like {step:?} in these replies"),
        }
    }
    reply.finish().expect("every byte was answered");
}
