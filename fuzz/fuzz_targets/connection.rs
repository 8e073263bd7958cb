// SPDX-License-Identifier: BSD-3-Clause
#![no_main]

#[path = "../bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::connection::run(data));
