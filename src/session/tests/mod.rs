// SPDX-License-Identifier: BSD-3-Clause
//! Proofs of the core: a simulated world around it, searched exhaustively in the small, at random
//! in the large, and with each rule switched off.

mod dice;
mod drive;
mod oracle;
mod random;
mod rules;
mod sequences;
mod server;
mod small_scope;
mod world;
