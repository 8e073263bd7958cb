// SPDX-License-Identifier: BSD-3-Clause
//! Rows Z1, Z2, Z4 and Z10 of the catalogue with `reconnect=`: whatever happens to a connection at any byte behind its
//! handshake, clients notice nothing, and what was flushed is there. With `retry=` that holds from the first byte on.

mod common;

use common::cutting::{Cutting, Over, STEPS, everywhere, length, places};
use common::need;
use common::relay::{Direction, Others, Trouble};

const LASTING: [&str; 2] = ["reconnect=60", "reconnect-delay=1ms:10ms"];

fn stage(over: Over, extra: &[&str]) -> Cutting {
    Cutting::new(over, &[&LASTING, extra].concat())
}

fn at_every_byte(mut stage: Cutting, trouble: &Trouble) {
    let milestones = stage.milestones();
    stage.is_survived(trouble, everywhere(&milestones, 0, 1));
}

#[test]
fn z1_cut_at_every_byte() {
    if !need("nbdkit") {
        return;
    }
    at_every_byte(stage(Over::Unix, &[]), &Trouble::Cut);
}

/// Where nothing is kept, a flush behind a loss of what was acknowledged must not say that all is well.
#[test]
fn z9_flush_behind_a_loss_is_told_where_nothing_is_kept() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = stage(Over::Unix, &["replay=0"]);
    let milestones = stage.milestones();
    let (written, flushed) = (milestones[1], milestones[STEPS - 1]);
    stage.is_quiet_after(|stage| {
        for direction in [Direction::ToServer, Direction::FromServer] {
            for at in length(written, direction) + 1..length(flushed, direction) {
                let well = stage.troubled(&Trouble::Cut, direction, at, Others::Well);
                assert_eq!(well, STEPS - 1, "only the flush fails: {direction:?} {at}");
            }
        }
    });
}

#[test]
fn z2_reset_at_every_byte() {
    if !need("nbdkit") {
        return;
    }
    at_every_byte(stage(Over::Tcp, &[]), &Trouble::Reset);
}

#[test]
fn z2_one_direction_ends_at_every_byte() {
    if !need("nbdkit") {
        return;
    }
    at_every_byte(stage(Over::Unix, &[]), &Trouble::End);
}

#[test]
fn z1_cut_within_the_handshake_with_retry() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = stage(Over::Unix, &["retry=2"]);
    let milestones = stage.milestones();
    let handshake = milestones[0];
    // Each costs the second that `retry=` waits.
    let places = [
        (Direction::FromServer, 0),
        (Direction::FromServer, 17),
        (Direction::ToServer, 3),
    ]
    .into_iter()
    .chain([
        (Direction::ToServer, handshake.0),
        (Direction::FromServer, handshake.1 - 1),
    ]);
    stage.is_survived(&Trouble::Cut, places);
}

#[test]
fn z4_silence_is_survived() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = stage(
        Over::Unix,
        &["request-timeout=300ms", "close-timeout=300ms"],
    );
    let milestones = stage.milestones();
    let behind = places(&milestones)
        .into_iter()
        .filter(|(direction, at)| *at > length(milestones[0], *direction));
    stage.is_survived(&Trouble::Stall, behind);
}
