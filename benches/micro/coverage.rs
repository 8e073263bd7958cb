// SPDX-License-Identifier: BSD-3-Clause
//! Coverage of a read of 256 KiB that is answered in pieces of 4 KiB.

use std::hint::black_box;

use criterion::Criterion;
use nbdkit_nbd_plugin::proto::coverage::Coverage;

const PIECE: u32 = 4096;
const PIECES: u32 = 64;

pub fn bench(criterion: &mut Criterion) {
    let in_order: Vec<u32> = (0..PIECES).collect();
    // An odd step visits every place of a power of two once.
    let scattered: Vec<u32> = (0..PIECES).map(|n| (n * 27 + 5) % PIECES).collect();
    for (name, order) in [
        ("coverage/in order", in_order),
        ("coverage/scattered", scattered),
    ] {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| cover(black_box(&order)));
        });
    }
}

fn cover(order: &[u32]) {
    let mut coverage = Coverage::new(PIECE * PIECES);
    for place in order {
        assert!(coverage.add(place * PIECE, PIECE), "answered once");
    }
    assert!(coverage.is_complete());
}
