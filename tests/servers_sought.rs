// SPDX-License-Identifier: BSD-3-Clause
//! `servers=spread` without `reconnect=`: all connections are lost while another is being opened aside, or is
//! not to be had.

mod common;

use std::path::Path;
use std::time::Duration;

use common::front::Front;
use common::nbdkit::{Nbdkit, plugin_args};
use common::need;
use common::process::eventually;
use common::scripted::Gate;
use common::scripted::disk::pattern;
use common::scripted::farm::{self, Farm, Fate};
use common::scripted::wire::{cmd, errno};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// Servers, nbdkit before all of them, and a client whose first connection leads to the first of them.
struct Spread<const N: usize> {
    front: Nbdkit,
    client: Front,
    farms: [Farm; N],
    /// Each server but the first greets when its gate is open.
    gates: [Gate; N],
    _directory: tempfile::TempDir,
}

impl<const N: usize> Spread<N> {
    fn start(extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let gates: [Gate; N] = std::array::from_fn(|_| Gate::default());
        gates[0].open();
        let farms: [Farm; N] = std::array::from_fn(|number| {
            let own = directory.path().join(number.to_string());
            std::fs::create_dir(&own).expect("a directory");
            let gate = gates[number].clone();
            Farm::start_with(&own, 20, move |_| {
                gate.pass();
                farm::offer()
            })
        });
        let front = front(directory.path(), &farms, extra);
        let client = Front::of(&front);
        Self {
            front,
            client,
            farms,
            gates,
            _directory: directory,
        }
    }

    /// Waits until a connection is being opened aside to the second server.
    fn looks_aside(&mut self) {
        eventually("a connection is opened aside", LIMIT, || {
            self.reads();
            (self.farms[1].accepted() == 1).then_some(())
        });
    }

    fn reads(&mut self) {
        assert_eq!(self.client.read(4096, 512), Ok(pattern(4096, 512)));
    }

    fn accepted(&self) -> [usize; N] {
        self.farms.each_ref().map(Farm::accepted)
    }

    /// nbdkit ends when it is told to.
    fn ends(mut self) {
        self.client.close();
        self.front.signal(libc::SIGTERM);
        let ended = self.front.wait_timeout(LIMIT);
        assert!(ended.is_some(), "{}", self.front.stderr());
        self.gates.iter().for_each(Gate::open);
    }
}

fn front<const N: usize>(directory: &Path, farms: &[Farm; N], extra: &[&str]) -> Nbdkit {
    let places = farms
        .each_ref()
        .map(|farm| format!("socket={}", farm.socket().display()));
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let args = plugin_args(&[&["servers=spread"], &places[..], extra].concat());
    Nbdkit::start(directory, &args)
}

/// Two connections to one server would leave no place for one to another, and all of them lost, that server
/// was found again and again.
#[test]
fn who_looks_for_a_server_leaves_out_the_one_that_is_opened_aside() {
    if !need("nbdkit") {
        return;
    }
    let mut spread = Spread::<3>::start(&[]);
    spread.looks_aside();
    spread.gates[2].open();
    spread.farms[0].meets(0, Fate::Die);
    // The second one has not greeted yet.
    spread.reads();
    spread.gates[1].open();
    eventually("the second one is asked, too", LIMIT, || {
        spread.farms[2].load(&mut spread.client);
        (spread.farms[1].count(cmd::READ) > 0).then_some(())
    });
    assert_eq!(spread.accepted(), [1, 1, 1]);
    spread.farms[1].meets(0, Fate::Die);
    spread.farms[2].meets(0, Fate::Die);
    eventually("all are lost", LIMIT, || {
        spread.client.read(0, 512).is_err().then_some(())
    });
    assert_eq!(spread.accepted(), [1, 1, 1]);
    spread.ends();
}

/// The one that is opened aside is the last that is left.
#[test]
fn who_looks_for_a_server_waits_for_the_one_that_is_opened_aside() {
    if !need("nbdkit") {
        return;
    }
    let mut spread = Spread::<2>::start(&[]);
    spread.looks_aside();
    spread.farms[0].meets(0, Fate::Die);
    let read = spread.client.submit_read(4096, 512);
    eventually("the first one is lost", LIMIT, || {
        let said = spread.front.stderr();
        said.contains("all connections are lost; looking for another server")
            .then_some(())
    });
    spread.gates[1].open();
    assert_eq!(spread.client.wait_read(read), Ok(pattern(4096, 512)));
    assert_eq!(spread.accepted(), [1, 1]);
    spread.ends();
}

/// And those that are left do not greet.
#[test]
fn a_request_that_looks_for_a_server_has_its_own_time() {
    if !need("nbdkit") {
        return;
    }
    let mut spread = Spread::<3>::start(&["request-timeout=500ms"]);
    spread.looks_aside();
    spread.farms[0].meets(0, Fate::Die);
    assert!(spread.client.read(0, 512).is_err(), "nobody greets");
    assert_eq!(spread.farms[2].accepted(), 1, "it was looked for");
    // Who has more time finds it.
    spread.gates.iter().for_each(Gate::open);
    eventually("the next one is looked for again", LIMIT, || {
        let read = spread.client.read(4096, 512);
        let failed = [Err(errno::EIO), Err(errno::ESHUTDOWN)].contains(&read);
        assert!(failed || read == Ok(pattern(4096, 512)), "{read:?}");
        read.is_ok().then_some(())
    });
    spread.ends();
}

/// Nobody is left to wait for it.
#[test]
fn nbdkit_ends_while_a_request_looks_for_a_server() {
    if !need("nbdkit") {
        return;
    }
    let mut spread = Spread::<3>::start(&["close-timeout=500ms"]);
    spread.looks_aside();
    spread.farms[0].meets(0, Fate::Die);
    let read = spread.client.submit_read(0, 512);
    eventually("another one is looked for", LIMIT, || {
        (spread.farms[2].accepted() == 1).then_some(())
    });
    spread.front.signal(libc::SIGTERM);
    assert!(spread.client.wait_read(read).is_err());
    spread.ends();
}
