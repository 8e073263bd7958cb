// SPDX-License-Identifier: BSD-3-Clause
//! Judges what the server saw, with what the clients saw beside it: what a trace can show of the invariants I2 to
//! I7, I9 and I11.
//!
//! `event` is a line of the log, `record` the log by requests, `story` what clients did to each block, `rules` the
//! judgement. All here is a pure function of two lists. It accuses only where there is no doubt: a change counts as
//! the newest of its block only where no other one was on its way at the same time.
//! `tests/survive_trace.rs` has its tests.

pub mod event;
mod record;
mod rules;
mod story;

use super::history::Op;
use event::Event;
use record::Record;
use story::Story;

/// Every breach, each with the invariant's name in front.
pub fn judge(log: &[Event], ops: &[Op]) -> Vec<String> {
    let record = Record::new(log);
    let story = Story::new(ops);
    let mut breaches = Vec::new();
    rules::overlap(&record, &story, &mut breaches);
    rules::undo(&record, &story, &mut breaches);
    rules::done_in_truth(&record, &story, &mut breaches);
    rules::flushed_in_truth(&record, &story, &mut breaches);
    rules::replay(&record, &story, &mut breaches);
    rules::sent_again_in_order(&record, &story, &mut breaches);
    rules::failed_replay(&record, &story, &mut breaches);
    breaches
}
