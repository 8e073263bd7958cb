// SPDX-License-Identifier: BSD-3-Clause
//! bindgen's output, untouched.

#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
