// SPDX-License-Identifier: BSD-3-Clause
//! Micro benchmarks of the parts that do no input and output: `make bench-micro`.
//!
//! They are for comparing two versions of one function on one machine; criterion keeps the last
//! run under target/criterion and says what changed. What a request costs as a whole is measured by
//! the other benchmarks.
//!
//!     cargo bench --bench micro -- inflight     # only those whose name has the word

mod coverage;
mod inflight;
mod replies;
mod requests;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    requests::bench(&mut criterion);
    replies::bench(&mut criterion);
    coverage::bench(&mut criterion);
    inflight::bench(&mut criterion);
    criterion.final_summary();
}
