// SPDX-License-Identifier: BSD-3-Clause
//! What the session rests on, as switches.

/// The rules that proofs switch off, one at a time, to see that they are needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// I2: a flush releases only what was acknowledged before it was sent.
    pub(crate) acknowledged_before: bool,
    /// I2: only over the member's own connection, or over one that was there before.
    pub(crate) own_or_older: bool,
    /// I2, I7: answers count only in their own turn.
    pub(crate) own_turn: bool,
    /// I3: after a failed or lost flush everything is written again.
    pub(crate) rewrite_after_failure: bool,
    /// I4: changes that overlap wait for each other.
    pub(crate) one_at_a_time: bool,
    /// I4: a change is not made again while its server may still carry it out.
    pub(crate) own_burial: bool,
    /// I5: what is written cuts what was there.
    pub(crate) newest_only: bool,
    /// I6: nothing is sent while the journal is written again.
    pub(crate) hold_while_rewriting: bool,
    /// I7: reads wait for changes that are sent again.
    pub(crate) reads_wait: bool,
    /// I9: one journal: a new member writes again what others have written.
    pub(crate) one_journal: bool,
    /// I11: what could not be written again ends the session.
    pub(crate) failure_is_final: bool,
}

impl Rules {
    pub(super) const ALL: Self = Self {
        acknowledged_before: true,
        own_or_older: true,
        own_turn: true,
        rewrite_after_failure: true,
        one_at_a_time: true,
        own_burial: true,
        newest_only: true,
        hold_while_rewriting: true,
        reads_wait: true,
        one_journal: true,
        failure_is_final: true,
    };
}
