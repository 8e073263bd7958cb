// SPDX-License-Identifier: BSD-3-Clause
//! nbdkit, as seen by a plugin: the only place that names its functions.
//!
//! `sys` is what bindgen made of nbdkit's header; the other files are safe functions over it. The
//! facts about nbdkit that the SAFETY notes rely on are the numbered list in `plugin/mod.rs`.

pub mod lists;
pub mod params;
pub mod report;
pub mod sys;
