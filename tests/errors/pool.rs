// SPDX-License-Identifier: BSD-3-Clause
//! What is said of several connections, and of several servers.

use std::path::Path;

use super::Case;
use super::common::clients::LIMIT;
use super::common::front::Front;
use super::common::nbdkit::{Nbdkit, forward};
use super::common::process::eventually;
use super::common::scripted::farm::{self, Farm, Fate};
use super::common::scripted::peer::Offer;

pub const CASES: &[Case] = &[
    Case {
        item: "connections=N: there is one only, ...",
        text: "warning: DIR/scripted.sock: connections=4: there is one only, as the server has no \
               NBD_FLAG_CAN_MULTI_CONN, the export can be written and nbdkit has no -r",
        happen: |dir| {
            let farm = Farm::start_with(dir, 1, |_| Offer::simple());
            let front = forward(dir, farm.socket(), &["connections=4"]);
            let _client = Front::open(front.socket()).expect("opens");
            said(&front, "there is one only", || ())
        },
    },
    Case {
        item: "a further connection is left out: ...",
        text: "warning: DIR/scripted.sock: a further connection is left out: the export had 1048576 bytes, and has \
               512",
        happen: |dir| {
            let farm = Farm::start_with(dir, 2, |number| Offer {
                size: if number == 0 { 1 << 20 } else { 512 },
                ..farm::offer()
            });
            let (front, mut client) = two(dir, &farm, &[]);
            said(&front, "left out", || farm.load(&mut client))
        },
    },
    Case {
        item: "servers: nothing can be written, ...",
        text: "warning: servers: nothing can be written, as nobody says that all servers have one disk \
               (servers-same-disk)",
        happen: |dir| {
            let farm = Farm::start(dir);
            let front = forward(dir, farm.socket(), &["servers=failover"]);
            said(&front, "servers: ", || ())
        },
    },
    Case {
        item: "this server is left out: ...",
        text: "warning: DIR/other/scripted.sock: this server is left out: the export had 1048576 bytes, \
               and has 512",
        happen: |dir| {
            let other = dir.join("other");
            std::fs::create_dir(&other).expect("a directory");
            let farm = Farm::start(dir);
            let smaller = Farm::start_with(&other, 2, |_| Offer {
                size: 512,
                ..farm::offer()
            });
            let second = format!("socket={}", smaller.socket().display());
            let front = forward(dir, farm.socket(), &[&second, "servers=spread"]);
            let mut client = Front::open(front.socket()).expect("opens");
            said(&front, "left out", || farm.load(&mut client))
        },
    },
    Case {
        item: "connection lost: ...; going on over N other one...",
        text: "DIR/scripted.sock: connection lost: ...; going on over 1 other one",
        happen: |dir| loses_one(dir, &[]),
    },
    Case {
        item: "...; going on over N",
        text: "DIR/scripted.sock: connection lost: ...; going on over 1",
        happen: |dir| loses_one(dir, &["reconnect=30"]),
    },
];

fn two(dir: &Path, farm: &Farm, extra: &[&str]) -> (Nbdkit, Front) {
    let extra = [&["connections=2"], extra].concat();
    let front = forward(dir, farm.socket(), &extra);
    let client = Front::open(front.socket()).expect("opens");
    (front, client)
}

fn loses_one(dir: &Path, extra: &[&str]) -> String {
    let farm = Farm::start(dir);
    let (front, mut client) = two(dir, &farm, extra);
    farm.grow(&mut client, 2);
    farm.meets(1, Fate::Die);
    said(&front, "going on", || farm.load(&mut client))
}

/// What nbdkit says in a line with these words, while something is done again and again.
fn said(nbdkit: &Nbdkit, words: &str, mut again: impl FnMut()) -> String {
    eventually(words, LIMIT, || {
        again();
        let log = nbdkit.stderr();
        let mut errors = log.lines().filter_map(|line| line.split_once("error: "));
        errors.find_map(|(_, text)| text.contains(words).then(|| text.to_owned()))
    })
}
