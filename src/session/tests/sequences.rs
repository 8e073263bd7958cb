// SPDX-License-Identifier: BSD-3-Clause
//! What searches have found once, step by step; and what a request may cost.

use crate::session::journal::FIXED;
use crate::session::{Change, Core, Facts, MemberId, Sending, Span, Worth, Written};

const MULTI: Facts = Facts {
    replay: 1 << 30,
    multi_conn: true,
};

const A_BLOCK: Written<'_> = Written::Bytes(&[1; 512]);

fn block(number: u64) -> Span {
    Span::new(number * 512, 512)
}

/// A core with members that may be used.
fn core(facts: Facts, members: usize) -> (Core, Vec<MemberId>) {
    let mut core = Core::new(facts);
    let members = (0..members).map(|_| member(&mut core)).collect();
    (core, members)
}

fn member(core: &mut Core) -> MemberId {
    let id = core.born();
    core.begin_rewrite(id, true).expect("nobody else does so");
    assert!(core.end_rewrite(id, true));
    id
}

fn send(core: &mut Core, member: MemberId, number: u64) -> (Change, Sending) {
    let change = core.queue(block(number));
    assert!(core.may_change(change) && core.reserve(A_BLOCK));
    (change, core.send_change(change, member, false))
}

fn answer(core: &mut Core, (change, sending): (Change, Sending)) {
    assert_eq!(core.changed(change, sending, false, A_BLOCK), Worth::Counts);
    core.give_back(A_BLOCK);
}

fn write(core: &mut Core, member: MemberId, number: u64) {
    let sent = send(core, member, number);
    answer(core, sent);
}

fn flush(core: &mut Core, member: MemberId, success: bool) -> Worth {
    assert!(core.may_flush() && !core.must_rewrite(member));
    let sending = core.send_flush(member);
    core.flushed(sending, success)
}

#[test]
fn what_was_on_its_way_when_a_flush_failed_is_written_again() {
    for meanwhile in [false, true] {
        let (mut core, members) = core(MULTI, 2);
        let sent = send(&mut core, members[0], 0);
        assert_eq!(flush(&mut core, members[1], false), Worth::Counts);
        if meanwhile {
            assert_eq!(flush(&mut core, members[0], true), Worth::Counts);
        }
        answer(&mut core, sent);
        assert!(members.iter().all(|member| core.must_rewrite(*member)));
        let pieces = core.begin_rewrite(members[1], false);
        assert_eq!(pieces.map(|pieces| pieces.len()), Some(1));
        assert!(core.end_rewrite(members[1], true));
        assert_eq!(flush(&mut core, members[1], true), Worth::Counts);
        assert!(!core.has_unflushed());
    }
}

/// Each client has a connection of its own, and the server does not say that they share a cache.
#[test]
fn what_another_has_written_over_a_dropped_write_is_written_again() {
    let (mut core, members) = core(
        Facts {
            multi_conn: false,
            ..MULTI
        },
        2,
    );
    write(&mut core, members[0], 0);
    assert_eq!(flush(&mut core, members[0], false), Worth::Counts);
    write(&mut core, members[1], 0);
    assert!(core.must_rewrite(members[0]));
}

/// Nor does it matter that it costs more than there is room for: a flush is due by then.
#[test]
fn a_lasting_change_costs_an_entry_at_most() {
    let replay = 4 * FIXED;
    let (mut core, members) = core(Facts { replay, ..MULTI }, 1);
    let zeroes = Written::Zeroes { no_hole: false };
    let change = core.queue(Span::new(0, 1 << 20));
    assert!(core.reserve(zeroes));
    let sending = core.send_change(change, members[0], false);
    assert_eq!(core.changed(change, sending, false, zeroes), Worth::Counts);
    for number in 1..10 {
        let change = core.queue(block(2 * number));
        let sending = core.send_change(change, members[0], true);
        assert_eq!(core.changed(change, sending, true, A_BLOCK), Worth::Counts);
        assert_eq!(core.cost(), (1 + number) * FIXED);
    }
    assert!(core.is_filling());
}

#[test]
fn pieces_that_were_on_their_way_when_a_flush_failed_are_written_again() {
    let (mut core, members) = core(MULTI, 1);
    write(&mut core, members[0], 0);
    let flush = core.send_flush(members[0]);
    let new = core.born();
    assert_eq!(core.begin_rewrite(new, true).map(|p| p.len()), Some(1));
    assert_eq!(core.flushed(flush, false), Worth::SendAgain);
    assert!(core.end_rewrite(new, true));
    assert!(core.must_rewrite(new));
}

/// A server tells an error to one of two that wait for the same.
#[test]
fn a_flush_does_not_count_if_something_lasting_failed_at_the_same_time() {
    let (mut core, members) = core(MULTI, 2);
    write(&mut core, members[0], 0);
    let change = core.queue(block(1));
    let fua = core.send_change(change, members[1], true);
    let flush = core.send_flush(members[0]);
    let answered = core.moment();
    assert!(!core.may_judge(answered));
    assert_eq!(core.refused(change, fua, true), Worth::Counts);
    assert!(core.may_judge(answered));
    assert_eq!(core.flushed(flush, true), Worth::SendAgain);
    assert!(core.must_rewrite(members[0]) && core.has_unflushed());
}

#[test]
fn a_flush_waits_for_nothing_that_was_sent_after_its_answer() {
    let (mut core, members) = core(MULTI, 1);
    let flush = core.send_flush(members[0]);
    let answered = core.moment();
    let change = core.queue(block(1));
    core.send_change(change, members[0], true);
    assert!(core.may_judge(answered));
    assert_eq!(core.flushed(flush, true), Worth::Counts);
}

#[test]
fn a_write_that_was_dropped_is_not_made_permanent() {
    let (mut core, members) = core(MULTI, 2);
    let (change, sending) = send(&mut core, members[0], 0);
    assert_eq!(core.written_through(change, sending), Worth::Counts);
    assert_eq!(flush(&mut core, members[1], false), Worth::Counts);
    assert_eq!(flush(&mut core, members[0], true), Worth::Counts);
    assert_eq!(core.made_permanent(change, sending), Worth::SendAgain);
}

/// The server may still carry them out, and undo what is newer.
#[test]
fn lost_pieces_hold_up_everybody_until_they_are_buried() {
    let (mut core, members) = core(MULTI, 2);
    write(&mut core, members[0], 0);
    let new = core.born();
    core.begin_rewrite(new, true).expect("nobody else does so");
    core.lost(new);
    assert!(!core.end_rewrite(new, true));
    let change = core.queue(block(0));
    assert!(!core.may_change(change));
    core.buried(new);
    assert!(core.may_change(change));
}

/// It may fail as late as that.
#[test]
fn a_lost_flush_holds_up_others_until_it_is_buried() {
    let (mut core, members) = core(MULTI, 2);
    core.send_flush(members[0]);
    core.lost(members[0]);
    write(&mut core, members[1], 0);
    assert!(!core.may_flush());
    core.buried(members[0]);
    assert!(core.may_flush() && core.must_rewrite(members[1]));
}

#[test]
fn a_change_that_is_given_up_after_its_connection_was_buried_holds_up_nobody() {
    let (mut core, members) = core(MULTI, 2);
    let (change, _) = send(&mut core, members[0], 0);
    core.lost(members[0]);
    core.buried(members[0]);
    core.abandon(change);
    assert!(core.order.is_empty());
}

#[test]
fn a_change_that_is_given_up_before_keeps_its_place_until_then() {
    let (mut core, members) = core(MULTI, 2);
    let (change, _) = send(&mut core, members[0], 0);
    core.lost(members[0]);
    core.abandon(change);
    let next = core.queue(block(0));
    assert!(!core.may_change(next));
    core.buried(members[0]);
    assert!(core.may_change(next));
}

#[test]
fn a_change_that_is_given_up_after_its_answer_holds_up_nobody() {
    let (mut core, members) = core(MULTI, 1);
    let (change, sending) = send(&mut core, members[0], 0);
    member(&mut core);
    let worth = core.changed(change, sending, false, A_BLOCK);
    assert_eq!(worth, Worth::SendAgain);
    core.abandon(change);
    assert!(core.order.is_empty());
}

#[test]
fn a_change_that_could_not_be_sent_holds_up_nobody() {
    let (mut core, members) = core(MULTI, 1);
    let (change, sending) = send(&mut core, members[0], 0);
    core.withdrawn(change, sending, false);
    let next = core.queue(block(0));
    assert!(core.may_change(next));
}

/// `replay=0`.
#[test]
fn what_one_who_left_has_written_is_lost_for_those_who_stay() {
    let (mut core, members) = core(Facts { replay: 0, ..MULTI }, 2);
    write(&mut core, members[0], 0);
    core.left(members[0]);
    core.lost(members[1]);
    assert_eq!(core.losses(), 1);
}

/// Requests do not look at the whole journal, and a flush does so once.
#[test]
fn nothing_that_is_frequent_looks_at_the_whole_journal() {
    const ENTRIES: u64 = 2000;
    let (mut core, members) = core(MULTI, 2);
    for number in 0..ENTRIES {
        write(&mut core, members[0], 2 * number);
    }
    assert_eq!(core.cost(), ENTRIES * (512 + FIXED));
    core.journal.visited.set(0);
    for number in 0..ENTRIES {
        write(&mut core, members[(number % 2) as usize], 2 * number);
        assert!(core.may_read(block(number)) && !core.is_filling());
        let read = core.send_read(members[0]);
        assert_eq!(core.has_read(read), Worth::Counts);
        assert!(core.may_flush() && !core.must_rewrite(members[1]));
        assert!(core.has_unflushed() && core.wants_flush(members[0]));
    }
    // Whether an idle flush is worth it can be seen by the first entry.
    assert!(core.journal.visited.get() <= ENTRIES as usize);
    core.journal.visited.set(0);
    assert_eq!(flush(&mut core, members[1], true), Worth::Counts);
    assert_eq!(core.journal.visited.get(), ENTRIES as usize);
    assert!(!core.has_unflushed());
}
