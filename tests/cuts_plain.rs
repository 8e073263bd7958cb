// SPDX-License-Identifier: BSD-3-Clause
//! Row Z1 of the catalogue with a real server, in both directions: the connection breaks at every byte of a
//! conversation, and nobody comes back to the server.

mod common;

use common::cutting::{Cutting, Over, STEPS, places};
use common::front::Front;
use common::need;
use common::relay::{Direction, Others, Plan, Relay, Trouble};
use common::upstream::memory;

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

/// The question is asked on the first connection; the next one, which does without it, is refused here.
#[test]
fn z1_cut_at_every_byte_about_extended_headers() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    // Greetings and flags are 22 bytes, the question is 16, and its answer 20.
    let to_server = (0..20).map(|at| (Direction::ToServer, at));
    let from_server = (18..38).map(|at| (Direction::FromServer, at));
    for (direction, at) in to_server.chain(from_server) {
        let place = tempfile::tempdir().expect("temporary directory");
        let relay = Relay::unix(place.path(), "relay.sock", server.socket());
        let front = relay.forward(place.path(), &[]);
        let trouble = Trouble::Cut;
        relay.plan(
            Some(Plan {
                trouble,
                direction,
                at,
            }),
            Others::Refused,
        );
        assert!(Front::open(front.socket()).is_err(), "{direction:?} {at}");
        relay.plan(None, Others::Well);
        assert!(Front::open(front.socket()).is_ok(), "{direction:?} {at}");
    }
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
