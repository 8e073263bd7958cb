// SPDX-License-Identifier: BSD-3-Clause
//! `control=`: nothing is called drained that a server without `NBD_CMD_FLUSH` may lose.

mod common;

use common::clients::LIMIT;
use common::control::{Commander, KINDS, parameter};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need;
use common::process::eventually;
use common::scripted::farm::{self, Farm, Fate};
use common::scripted::peer::Offer;
use common::scripted::wire::{cmd, cmd_flag, flag};

/// What is said of it.
const WHY: &str = "the server has no NBD_CMD_FLUSH, so nothing makes permanent what was written without \
                   NBD_CMD_FLAG_FUA; nothing is held";

/// More connections than any of these tests makes.
const MOST: usize = 50;

/// A server without flushes, and without FUA unless it `has_fua`, and the plugin that takes commands.
struct Stand {
    front: Nbdkit,
    farm: Farm,
    commander: Commander,
    _directory: tempfile::TempDir,
}

impl Stand {
    fn new(has_fua: bool, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let place = directory.path();
        let farm = Farm::start_with(place, MOST, move |_| {
            let offer = farm::offer();
            let lacks = if has_fua { 0 } else { flag::SEND_FUA };
            Offer {
                flags: offer.flags & !flag::SEND_FLUSH & !lacks,
                ..offer
            }
        });
        let control = parameter(place);
        let front = forward(place, farm.socket(), &[&[control.as_str()], extra].concat());
        let commander = Commander::new(place);
        Self {
            front,
            farm,
            commander,
            _directory: directory,
        }
    }

    /// Whether the status tells of anything that is not flushed.
    fn is_unflushed(&mut self) -> bool {
        let status = self.commander.status();
        let ways = status["ways"].as_array().expect("a list");
        ways.iter().any(|way| way["unflushed"] == true)
    }

    fn drains(&mut self) {
        assert!(!self.is_unflushed());
        self.commander.does("drain");
        self.commander.does("resume");
    }

    fn does_not_drain(&mut self, kind: &[&str]) {
        assert!(self.is_unflushed(), "{kind:?}");
        let why = self.commander.refuses("drain");
        assert!(why.starts_with("drain: flush: "), "{kind:?}: {why}");
        assert!(why.ends_with(WHY), "{kind:?}: {why}");
        assert_eq!(self.commander.status()["state"], "running");
    }
}

#[test]
fn what_was_written_without_fua_is_not_drained() {
    if !need("nbdkit") {
        return;
    }
    for kind in KINDS.iter().filter(|kind| !kind.contains(&"reconnect=30")) {
        for write in [cmd::WRITE, cmd::WRITE_ZEROES, cmd::TRIM] {
            let mut stand = Stand::new(true, kind);
            let mut client = Front::of(&stand.front);
            stand.drains();
            client.read(0, 512).expect("a read");
            let lasting = client.submit(cmd::WRITE, cmd_flag::FUA, 0, 512, &[1; 512]);
            client.wait(lasting).expect("a write");
            stand.drains();
            let payload: &[u8] = if write == cmd::WRITE { &[2; 512] } else { &[] };
            let fleeting = client.submit(write, 0, 512, 512, payload);
            client.wait(fleeting).expect("a change");
            stand.does_not_drain(kind);
            // Whoever has left does not ask any more, where the connection is not kept.
            client.close();
            if !kind.contains(&"shared=true") && !kind.contains(&"linger=forever") {
                eventually("it has left", LIMIT, || {
                    (stand.commander.status()["ways"] == serde_json::json!([])).then_some(())
                });
                stand.drains();
            }
        }
    }
}

/// With FUA alone every change carries it.
#[test]
fn what_carries_fua_for_a_reconnection_is_drained() {
    if !need("nbdkit") {
        return;
    }
    for kind in KINDS.iter().filter(|kind| kind.contains(&"reconnect=30")) {
        let mut stand = Stand::new(true, kind);
        let mut client = Front::of(&stand.front);
        client.write(0, &[1; 512]).expect("a write");
        stand.drains();
        stand.commander.does("reconnect");
    }
}

#[test]
fn with_neither_flush_nor_fua_nothing_that_is_written_is_drained() {
    if !need("nbdkit") {
        return;
    }
    for kind in KINDS {
        if kind.contains(&"reconnect=30") && !kind.contains(&"replay=0") {
            continue;
        }
        let mut stand = Stand::new(false, kind);
        let mut client = Front::of(&stand.front);
        stand.drains();
        client.write(0, &[1; 512]).expect("a write");
        stand.does_not_drain(kind);
    }
}

/// What was written over it is no more permanent for that.
#[test]
fn a_server_that_was_left_as_it_went_away_has_flushed_nothing() {
    if !need("nbdkit") {
        return;
    }
    let mut stand = Stand::new(true, &[]);
    let mut client = Front::of(&stand.front);
    client.write(0, &[1; 512]).expect("a write");
    stand.farm.meets(0, Fate::Go);
    client
        .read(0, 512)
        .expect("a read, over another connection");
    assert_eq!(stand.farm.accepted(), 2);
    stand.does_not_drain(&[]);
}
