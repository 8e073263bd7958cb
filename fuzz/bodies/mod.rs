// SPDX-License-Identifier: BSD-3-Clause
//! What is done with the inputs that a fuzzer makes up. The targets in `fuzz_targets/` run it for as long as anybody
//! likes; `tests/fuzz_corpus.rs` runs it on the stored inputs, with the stable toolchain.

#![allow(dead_code)]

pub mod bytes;
pub mod connection;
pub mod handshake;
pub mod journal;
pub mod replies;
pub mod uri;
