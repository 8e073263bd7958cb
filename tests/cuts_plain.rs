// SPDX-License-Identifier: BSD-3-Clause
//! Row Z1 of the catalogue with a real server, in both directions: the connection breaks at every byte of a
//! conversation, and nobody comes back to the server.

mod common;

use common::cutting::{Cutting, Over, STEPS, places};
use common::need;
use common::relay::{Direction, Others, Trouble};

fn stage(over: Over) -> Cutting {
    Cutting::new(over, &[])
}

#[test]
fn z1_cut_at_every_byte() {
    if !need("nbdkit") {
        return;
    }
    stage(Over::Unix).breaks_everywhere(&Trouble::Cut, 1, 0);
}

#[test]
fn z2_reset_at_every_byte() {
    if !need("nbdkit") {
        return;
    }
    stage(Over::Tcp).breaks_everywhere(&Trouble::Reset, 1, 0);
}

#[test]
fn z2_one_direction_ends_at_every_byte() {
    if !need("nbdkit") {
        return;
    }
    stage(Over::Unix).breaks_everywhere(&Trouble::End, 1, 0);
}

/// Nobody is told anything: only the deadlines help. Before and within each message of both sides.
#[test]
fn z4_silence_within_each_message() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Cutting::new(
        Over::Unix,
        &[
            "handshake-timeout=200ms",
            "request-timeout=200ms",
            "close-timeout=200ms",
        ],
    );
    let milestones = stage.milestones();
    stage.is_quiet_after(|stage| {
        for (direction, at) in places(&milestones) {
            let well = stage.troubled(&Trouble::Stall, direction, at, Others::Refused);
            // A busy machine may be late for other reasons too.
            assert!(well < STEPS, "{direction:?} {at}: {well}");
        }
    });
}

#[test]
fn both_directions_come_byte_by_byte() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = stage(Over::Tcp);
    stage.is_quiet_after(|stage| {
        for direction in [Direction::ToServer, Direction::FromServer] {
            for at in [0, 1, 17, 100, 200, 300] {
                let well = stage.troubled(&Trouble::Trickle, direction, at, Others::Refused);
                assert_eq!(well, STEPS, "{direction:?} {at}");
            }
        }
    });
}
