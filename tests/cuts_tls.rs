// SPDX-License-Identifier: BSD-3-Clause
//! Rows Z1 and Z2 of the catalogue under TLS: the connection breaks within its handshake, within a record and
//! between two, with and without a way back. `CUTS=all` takes every byte.

mod common;

use common::clients::text;
use common::cutting::{Cutting, Over, STEPS, everywhere};
use common::pki::{Authority, LOCALHOST, TOOLS, keys};
use common::relay::{Direction, Others, Trouble};
use common::{need, need_all, tls};

/// Every how many bytes the connection breaks.
fn stride(usual: usize) -> usize {
    match std::env::var_os("CUTS") {
        Some(_) => 1,
        None => usual,
    }
}

fn strings(words: &[&[&str]]) -> Vec<String> {
    words
        .concat()
        .iter()
        .map(|word| (*word).to_owned())
        .collect()
}

/// A server with certificates, and the plugin with these parameters.
fn certificates(over: Over, extra: &[&str]) -> Cutting {
    Cutting::with(over, |directory| {
        let authority = Authority::new(directory, "authority");
        let ours = format!("tls-certificates={}", text(&authority.trusting("client")));
        let tls = ["tls=require", "tls-hostname=localhost", &ours];
        let server = authority.server("server", LOCALHOST);
        (
            tls::nbdkit(directory, &server, &["memory", "1M"]),
            strings(&[&tls, extra]),
        )
    })
}

/// The same with a key that both know: the handshake is much shorter.
fn shared_key(over: Over, extra: &[&str]) -> Cutting {
    Cutting::with(over, |directory| {
        let file = keys(directory, "keys", &["alice"]);
        let ours = format!("tls-psk={}", text(&file));
        let tls = ["tls=require", "tls-username=alice", &ours];
        (
            tls::nbdkit_psk(directory, &file, &["memory", "1M"]),
            strings(&[&tls, extra]),
        )
    })
}

/// Certificates and signatures are not always equally long.
const SLACK: usize = 16;

#[test]
fn z1_cut_within_tls() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    shared_key(Over::Unix, &[]).breaks_everywhere(&Trouble::Cut, stride(2), SLACK);
}

#[test]
fn z1_cut_within_tls_with_certificates() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    certificates(Over::Unix, &[]).breaks_everywhere(&Trouble::Cut, stride(11), SLACK);
}

#[test]
fn z2_reset_within_tls() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    shared_key(Over::Tcp, &[]).breaks_everywhere(&Trouble::Reset, stride(5), SLACK);
}

/// One direction ends without a word of TLS: that is no end of it, and not taken for one.
#[test]
fn z2_one_direction_ends_within_tls() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    shared_key(Over::Unix, &[]).breaks_everywhere(&Trouble::End, stride(5), SLACK);
}

#[test]
fn z10_cuts_within_tls_are_survived() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    let mut stage = shared_key(Over::Unix, &["reconnect=60", "reconnect-delay=1ms:10ms"]);
    let milestones = stage.milestones();
    let places = everywhere(&milestones, SLACK, stride(2));
    stage.is_survived(&Trouble::Cut, places);
}

#[test]
fn records_come_byte_by_byte() {
    if !need("nbdkit") || !need_all(TOOLS) {
        return;
    }
    let mut stage = certificates(Over::Tcp, &[]);
    stage.is_quiet_after(|stage| {
        for direction in [Direction::ToServer, Direction::FromServer] {
            let well = stage.troubled(&Trouble::Trickle, direction, 0, Others::Refused);
            assert_eq!(well, STEPS, "{direction:?}");
        }
    });
}
