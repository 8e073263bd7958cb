// SPDX-License-Identifier: BSD-3-Clause
//! Request headers.

use std::hint::black_box;

use criterion::Criterion;
use nbdkit_nbd_plugin::proto::consts::{Command, CommandFlags};
use nbdkit_nbd_plugin::proto::framing::Framing;
use nbdkit_nbd_plugin::proto::request::{Cookie, Request};

pub fn bench(criterion: &mut Criterion) {
    let request = Request::new(Command::WRITE, 123 << 12, 4096_u32).with(CommandFlags::FUA);
    for (name, framing) in [
        ("request/encode", Framing::Structured),
        ("request/encode extended", Framing::Extended),
    ] {
        criterion.bench_function(name, |bencher| {
            bencher
                .iter(|| black_box(request).encode(black_box(Cookie(0x1_07)), black_box(framing)));
        });
    }
}
