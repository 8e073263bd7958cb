// SPDX-License-Identifier: BSD-3-Clause
//! The order of changes of several clients, one of whom loses the server.

mod common;

use std::time::Duration;

use common::front::Front;
use common::nbdkit::forward;
use common::need;
use common::process::eventually;
use common::scripted::Gate;
use common::scripted::bench::Bench;
use common::scripted::disk::Disk;
use common::scripted::farm::{Farm, Fate};
use common::scripted::peer::Offer;
use common::scripted::wire::cmd;

/// A hang bound, shorter than the time for which a lost server is waited for.
const LIMIT: Duration = Duration::from_secs(20);
/// Time for a request to come from nbdkit's thread to its place in the order, which nobody can see.
const A_MOMENT: Duration = Duration::from_millis(300);

const FIRST: [u8; 512] = [1; 512];
const NEVER_SENT: [u8; 512] = [2; 512];
const LAST: [u8; 512] = [3; 512];

#[test]
fn a_change_that_was_never_sent_holds_up_nobody_else() {
    let bench = Bench::new(&["reconnect=60", "close-timeout=1"]);
    let (arrived, answer, cut) = (Gate::default(), Gate::default(), Gate::default());
    let there = bench.play({
        let (arrived, answer) = (arrived.clone(), answer.clone());
        move |peer| {
            let mut disk = Disk::new(Offer::default().size);
            peer.negotiate(&Offer::default())?;
            loop {
                let request = peer.request()?;
                if request.kind == cmd::DISC {
                    return Ok(());
                }
                if request.payload == FIRST {
                    arrived.open();
                    answer.pass();
                }
                assert_ne!(request.payload, NEVER_SENT);
                peer.answer(&request, &mut disk)?;
            }
        }
    });
    let mut stays = bench.open();
    let gone = bench.play({
        let cut = cut.clone();
        move |peer| {
            peer.negotiate(&Offer::default())?;
            cut.pass();
            Ok(())
        }
    });
    let mut loses = bench.open();
    bench.server().close_others(true);

    let first = stays.submit_write(0, &FIRST);
    arrived.pass();
    // It waits behind the first one, and then its server is lost.
    let _never_sent = loses.submit_write(0, &NEVER_SENT);
    std::thread::sleep(A_MOMENT);
    cut.open();
    gone.finished("the connection that is cut");
    let _finds_out = loses.submit_read(4096, 512);
    eventually("the loss is told", LIMIT, || {
        bench
            .nbdkit()
            .stderr()
            .contains("trying again")
            .then_some(())
    });
    let last = stays.submit_write(0, &LAST);
    answer.open();
    assert_eq!(stays.wait(first), Ok(()));
    let (told, waits) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let _ = told.send(stays.wait(last));
        stays
    });
    assert_eq!(waits.recv_timeout(LIMIT), Ok(Ok(())), "held up");
    waiter.join().expect("no panic").close();
    there.finished("the connection that stays");
}

#[test]
fn a_change_is_not_made_again_while_its_server_may_carry_it_out() {
    if !need("nbdkit") {
        return;
    }
    for more in ["", "shared=true", "replay=0"] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farm = Farm::start(directory.path());
        let parameters = ["connections=2", "reconnect=60", more];
        let parameters = &parameters[..if more.is_empty() { 2 } else { 3 }];
        let nbdkit = forward(directory.path(), farm.socket(), parameters);
        let mut client = Front::open(nbdkit.socket()).expect("a client");
        farm.grow(&mut client, 2);
        farm.meets(0, Fate::Break);
        farm.meets(1, Fate::Break);

        let first = client.submit_write(0, &FIRST);
        eventually("the server has it", LIMIT, || farm.owes().then_some(()));
        // The other connection is well, and would take it at once.
        std::thread::sleep(A_MOMENT);
        assert_eq!(farm.count(cmd::WRITE), 1, "{more}");
        farm.pays();
        assert_eq!(client.wait(first), Ok(()), "{more}");
        assert_eq!(farm.count(cmd::WRITE), 2, "{more}");
        assert_eq!(client.write(0, &LAST), Ok(()), "{more}");
        assert_eq!(client.read(0, 512).as_deref(), Ok(&LAST[..]), "{more}");
        client.close();
    }
}

/// Waiting for that is not beyond what the user gives a request.
#[test]
fn who_waits_for_its_own_change_to_be_over_has_a_deadline() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farm = Farm::start(directory.path());
    let parameters = [
        "connections=2",
        "reconnect=1",
        "request-timeout=1",
        "close-timeout=600",
    ];
    let nbdkit = forward(directory.path(), farm.socket(), &parameters);
    let mut client = Front::open(nbdkit.socket()).expect("a client");
    farm.grow(&mut client, 2);
    farm.meets(0, Fate::Break);
    farm.meets(1, Fate::Break);
    let first = client.submit_write(0, &FIRST);
    assert!(client.wait(first).is_err(), "its time is over");
    assert!(farm.owes() && farm.count(cmd::WRITE) == 1);
    // Its place is not free before the server is done with it.
    let last = client.submit_write(0, &LAST);
    farm.pays();
    assert_eq!(client.wait(last), Ok(()));
    assert_eq!(client.read(0, 512).as_deref(), Ok(&LAST[..]));
    client.close();
}
