//! Judges what the server saw.

pub mod event;

use super::history::Op;
use event::Event;

pub fn judge(_log: &[Event], _ops: &[Op]) -> Vec<String> {
    Vec::new()
}
