// SPDX-License-Identifier: BSD-3-Clause
//! Every interleaving of a few threads around the session's lock: death, hand-over, the decision to
//! send, hold or fail, and what an answer is worth that comes when a loss has begun.
//!
//! The session and its lock are the real ones. Requests, losses and returns go the way of
//! `lasting.rs` and `comeback.rs`, without a clock and without deadlines: who is held waits until it
//! is told, so that a call that is missing stops a model. The server has one byte, which it keeps in
//! its cache until a flush, and loses with its life.
//!
//! For each model there is one in which a rule is switched off, or a call is missing, which must fail: it
//! would else show nothing. Two rules keep a flush from releasing too much, and each has its own: with
//! one of them alone nothing is lost, so that the model for the other one looks at the turn.

mod world;

use loom::sync::atomic::Ordering;
use loom::thread;

use std::sync::Arc;
use std::time::Duration;

use self::world::World;
use crate::client::error::Error;
use crate::proto::consts::TransmissionFlags;
use crate::session::Rules;

/// Nothing is forgotten.
fn all(_: &mut Rules) {}

const PLAIN: TransmissionFlags = TransmissionFlags::HAS_FLAGS.union(TransmissionFlags::SEND_FLUSH);
const MULTI: TransmissionFlags = PLAIN.union(TransmissionFlags::CAN_MULTI_CONN);

/// Two threads, of which the second is the model's own, and what must be true in the end.
fn model(
    world: impl Fn() -> World + Send + Sync + 'static,
    first: fn(&World),
    second: fn(&World),
    end: fn(&World),
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(move || {
        // Not loom's: to drop that where a model has ended by a deadlock would end the process.
        let world = Arc::new(world());
        let other = world.clone();
        let thread = thread::spawn(move || first(&other));
        second(&world);
        thread.join().expect("no panic");
        end(&world);
    });
}

// An answer and a loss.

/// One client writes while another's connection is lost: the first one's connection still seems to be
/// good, and an answer of the old server may come behind the return. With it in the journal, a flush of
/// the other's would release what the new server never had.
fn change_and_loss(forget: fn(&mut Rules)) {
    model(
        move || World::new(2, MULTI, forget),
        |world| {
            world.write(world.ways[0], 1, false).expect("a write");
            world.acknowledged.store(true, Ordering::Release);
        },
        |world| {
            world.restart();
            world.breaks(world.ways[1]);
            let acknowledged = world.acknowledged.load(Ordering::Acquire);
            world.flush(world.ways[1]).expect("a flush");
            if acknowledged {
                assert_eq!(world.server().durable, 1, "flushed");
            }
        },
        |world| world.keeps(1),
    );
}

#[test]
fn loom_an_answer_to_a_change_counts_in_its_own_turn() {
    change_and_loss(all);
}

#[test]
#[should_panic(expected = "lost")]
fn loom_an_answer_to_a_change_must_not_count_in_another_turn() {
    change_and_loss(|rules| rules.own_turn = false);
}

/// The same with a change that is permanent when it is answered, and cuts the journal: what it
/// cuts may just have been written again, over it.
fn lasting_change_and_loss(forget: fn(&mut Rules)) {
    model(
        move || {
            let world = World::new(2, PLAIN, forget);
            world.write(world.ways[1], 9, false).expect("a write");
            world
        },
        |world| world.write(world.ways[0], 1, true).expect("a write"),
        |world| {
            world.restart();
            world.breaks(world.ways[1]);
        },
        |world| {
            assert_eq!(world.read(world.ways[1]).ok(), Some(1), "undone");
            world.keeps(1);
        },
    );
}

#[test]
fn loom_an_answer_to_a_lasting_change_counts_in_its_own_turn() {
    lasting_change_and_loss(all);
}

#[test]
#[should_panic(expected = "undone")]
fn loom_an_answer_to_a_lasting_change_must_not_count_in_another_turn() {
    lasting_change_and_loss(|rules| rules.own_turn = false);
}

/// One client flushes while another writes and its connection is lost.
fn flush_and_loss(forget: fn(&mut Rules)) {
    model(
        move || World::new(2, MULTI, forget),
        |world| assert!(world.flush(world.ways[0]).expect("a flush"), "another turn"),
        |world| {
            world.write(world.ways[1], 1, false).expect("a write");
            world.restart();
            world.breaks(world.ways[1]);
        },
        |world| world.keeps(1),
    );
}

#[test]
fn loom_an_answer_to_a_flush_counts_in_its_own_turn() {
    flush_and_loss(all);
}

#[test]
#[should_panic(expected = "another turn")]
fn loom_an_answer_to_a_flush_must_not_count_in_another_turn() {
    flush_and_loss(|rules| rules.own_turn = false);
}

#[test]
#[should_panic(expected = "lost")]
fn loom_an_answer_to_a_flush_must_not_release_what_came_after_it() {
    flush_and_loss(|rules| rules.acknowledged_before = false);
}

// Send or hold.

/// One client comes back with the journal while another, which is back already, writes.
fn return_and_change(forget: fn(&mut Rules)) {
    model(
        move || {
            let world = World::new(2, PLAIN, forget);
            world.write(world.ways[0], 1, false).expect("a write");
            world.restart();
            world.breaks(world.ways[1]);
            world
        },
        |world| world.breaks(world.ways[0]),
        |world| world.write(world.ways[1], 2, false).expect("a write"),
        |world| {
            assert_eq!(world.server().cache, 2, "undone");
            world.keeps(2);
        },
    );
}

#[test]
fn loom_nothing_overtakes_the_journal() {
    return_and_change(all);
}

#[test]
#[should_panic(expected = "undone")]
fn loom_nothing_may_overtake_the_journal() {
    return_and_change(|rules| rules.hold_while_rewriting = false);
}

/// Two clients change the same, and the server carries it out as it comes.
fn two_changes(forget: fn(&mut Rules)) {
    model(
        move || World::new(2, PLAIN, forget),
        |world| world.write(world.ways[0], 1, false).expect("a write"),
        |world| world.write(world.ways[1], 2, false).expect("a write"),
        |world| {
            let cache = world.server().cache;
            world.keeps(cache);
        },
    );
}

#[test]
fn loom_changes_of_the_same_are_hand_in_hand() {
    two_changes(all);
}

#[test]
#[should_panic(expected = "lost")]
fn loom_changes_of_the_same_must_not_be_on_their_way_together() {
    two_changes(|rules| rules.one_at_a_time = false);
}

/// One client may see what another writes, whose answer is lost then.
fn read_and_lost_change(forget: fn(&mut Rules)) {
    model(
        move || World::new(2, PLAIN, forget),
        |world| world.write(world.ways[0], 1, false).expect("a write"),
        |world| {
            let was = world.read(world.ways[1]).expect("a read");
            world.restart();
            world.breaks(world.ways[1]);
            let is = world.read(world.ways[1]).expect("a read");
            assert!(is >= was, "went back");
        },
        |world| world.keeps(1),
    );
}

#[test]
fn loom_no_value_goes_back() {
    read_and_lost_change(all);
}

#[test]
#[should_panic(expected = "went back")]
fn loom_a_read_must_wait_for_changes_that_are_sent_again() {
    read_and_lost_change(|rules| rules.reads_wait = false);
}

// Death, and who is told of what becomes of it.

/// Two requests of one client, whose server is another one by now.
fn death(silent: bool) {
    model(
        move || {
            let mut world = World::new(1, PLAIN, all);
            world.write(world.ways[0], 1, false).expect("a write");
            world.restart();
            world.silent = silent;
            world
        },
        |world| assert_eq!(world.read(world.ways[0]).ok(), Some(1)),
        |world| assert_eq!(world.read(world.ways[0]).ok(), Some(1)),
        |world| {
            assert_eq!(world.returns.load(Ordering::Acquire), 1, "one for both");
            world.keeps(1);
        },
    );
}

#[test]
fn loom_one_comes_back_and_all_go_on() {
    death(false);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_who_comes_back_must_tell() {
    death(true);
}

/// What was acknowledged cannot be written again.
fn journal_refused(forget: fn(&mut Rules)) {
    model(
        move || {
            let world = World::new(1, PLAIN, forget);
            world.write(world.ways[0], 1, false).expect("a write");
            world.restart();
            world.server().full = true;
            world
        },
        |world| {
            assert!(matches!(
                world.read(world.ways[0]),
                Err(Error::Doomed { .. })
            ))
        },
        |world| {
            assert!(matches!(
                world.flush(world.ways[0]),
                Err(Error::Doomed { .. })
            ))
        },
        |world| assert!(world.resume.is_doomed()),
    );
}

#[test]
fn loom_a_journal_that_is_refused_fails_all() {
    journal_refused(all);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_a_journal_that_is_refused_must_be_the_end() {
    journal_refused(|rules| rules.failure_is_final = false);
}

/// The client leaves while a request of it waits for the server.
fn leave(silent: bool) {
    model(
        move || {
            let mut world = World::new(1, PLAIN, all);
            world.silent = silent;
            let up = world.up(world.ways[0]);
            assert!(world.dies(world.ways[0], &up), "nobody comes back");
            world
        },
        |world| assert!(matches!(world.read(world.ways[0]), Err(Error::Unwanted(_)))),
        |world| world.leaves(world.ways[0]),
        |_| (),
    );
}

#[test]
fn loom_who_leaves_lets_its_requests_go() {
    leave(false);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_who_leaves_must_tell() {
    leave(true);
}

/// Requests do not wait for the server, but for the journal.
fn time_is_over(silent: bool) {
    model(
        move || {
            let mut world = World::new(1, PLAIN, all);
            world.write(world.ways[0], 1, false).expect("a write");
            world.restart();
            let up = world.up(world.ways[0]);
            assert!(world.dies(world.ways[0], &up), "nobody comes back yet");
            world.limit = Some(Duration::ZERO);
            world.silent = silent;
            world
        },
        |world| match world.read(world.ways[0]) {
            Ok(byte) => assert_eq!(byte, 1),
            Err(error) => assert!(matches!(error, Error::Outage(_)), "{error}"),
        },
        |world| world.come_back(world.ways[0]),
        |world| assert_eq!(world.read(world.ways[0]).ok(), Some(1), "of use again"),
    );
}

#[test]
fn loom_after_the_time_requests_fail_until_the_return() {
    time_is_over(false);
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_who_has_written_the_journal_must_tell() {
    time_is_over(true);
}
