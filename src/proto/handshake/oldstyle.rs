// SPDX-License-Identifier: BSD-3-Clause
//! The oldstyle handshake: the server speaks once, the client not at all ("Oldstyle negotiation").

use super::{Error, Goal, Outcome, Progress, enter};
use crate::proto::codec::Reader;
use crate::proto::consts::PADDING;
use crate::proto::framing::Framing;

/// What follows the two magics: size, flags, padding.
pub const LENGTH: usize = 8 + 4 + PADDING;

/// Reads the rest of the greeting. The upper half of the flags is reserved and the padding has no
/// meaning, whatever stands in them.
pub fn received(bytes: &[u8], goal: &Goal) -> Result<Progress, Error> {
    if let Some(outcome) = goal.unanswered() {
        return Ok(Progress::Finish(Vec::new(), outcome));
    }
    goal.check_unstructured()?;
    let mut reader = Reader::new(bytes);
    let size = reader.u64().unwrap_or_default();
    let flags = reader.u32().unwrap_or_default() as u16;
    if !goal.export.is_empty() {
        log::warn!(
            target: &format!("oldstyle: {}", goal.server),
            "{}: oldstyle server: it has one export only, the name \"{}\" is ignored",
            goal.server,
            goal.export
        );
    }
    let export = Box::new(enter(size, flags, Framing::Simple)?);
    Ok(Progress::Finish(Vec::new(), Outcome::Export(export)))
}
