// SPDX-License-Identifier: BSD-3-Clause
//! Every interleaving of a few threads around the session's lock: death, hand-over, the decision to
//! send, hold or fail, and what an answer is worth that comes when a loss has begun.
//!
//! The session and its lock are the real ones. Requests, losses and returns go the way of
//! `lasting.rs` and `comeback.rs`, without clock, order aside and deadlines: who is held waits until it
//! is told, so that a call that is missing stops a model. The server has one byte, which it keeps in
//! its cache until a flush, and loses with its life.
//!
//! For each model there is one in which a rule is switched off, or a call is missing, which must fail: it
//! would else show nothing. What releases too much is caught twice where flushes are concerned, so that
//! each of two rules has its own.

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;

use super::*;
use crate::client::error::{Cause, Lost};
use crate::session::{Change, Content, Piece, Rules, Span, Worth, Written};
use crate::transport;

/// The byte.
const SPAN: Span = Span { start: 0, end: 1 };

/// A connection to the server in one of its lives.
#[derive(Debug)]
struct Wire {
    life: u32,
}

/// What the server has.
#[derive(Debug, Default)]
struct Disk {
    life: u32,
    cache: u8,
    durable: u8,
    /// Changes fail from now on.
    full: bool,
}

/// The connection is gone.
#[derive(Debug)]
struct Gone;

struct World {
    name: Server,
    resume: Resume<Wire>,
    server: Mutex<Disk>,
    ways: Vec<WayId>,
    /// The writer of a model was told that its write has succeeded.
    acknowledged: AtomicBool,
    /// How often somebody began to come back.
    returns: AtomicU32,
    /// Who comes back tells nobody.
    silent: bool,
}

impl World {
    /// With a way for each thread, all of them up, and without a rule.
    fn new(ways: usize, flags: TransmissionFlags, forget: fn(&mut Rules)) -> Self {
        let export = Export::new(1, flags, true);
        assert!(export.can(flags));
        let terms = Terms {
            limit: None,
            first: Duration::ZERO,
            max: Duration::ZERO,
            replay: 1 << 20,
        };
        let mut world = Self {
            name: "server".into(),
            resume: Resume::new(&export, &terms),
            server: Mutex::new(Disk::default()),
            ways: Vec::new(),
            acknowledged: AtomicBool::new(false),
            returns: AtomicU32::new(0),
            silent: false,
        };
        world.resume.lock().core.without(forget);
        world.ways = (0..ways).map(|_| world.resume.lock().admit()).collect();
        for way in &world.ways {
            assert!(world.settle_in(*way));
        }
        world
    }

    fn server(&self) -> MutexGuard<'_, Disk> {
        sync::lock(&self.server)
    }

    /// The server dies, and is there again.
    fn restart(&self) {
        let mut server = self.server();
        server.life += 1;
        server.cache = server.durable;
    }

    /// Something is asked of the server, which is answered if the connection is to the one that lives.
    fn ask<T>(&self, wire: &Wire, act: impl FnOnce(&mut Disk) -> T) -> Result<T, Gone> {
        let mut server = self.server();
        match server.life == wire.life {
            true => Ok(act(&mut server)),
            false => Err(Gone),
        }
    }

    /// `Lasting::enter`.
    fn enter(
        &self,
        way: WayId,
        may: impl Fn(&Core) -> bool,
    ) -> Result<(MutexGuard<'_, Inner<Wire>>, Up<Wire>), Error> {
        let mut inner = self.resume.lock();
        loop {
            match inner.pass(&self.name, way, None, &may) {
                Pass::Send(up) => return Ok((inner, up)),
                Pass::Fail(error) => return Err(error),
                Pass::Hold(_) => inner = self.resume.hold(inner, SLICE),
            }
        }
    }

    /// `Lasting::change`: writes the byte.
    fn write(&self, way: WayId, byte: u8, lasting: bool) -> Result<(), Error> {
        let payload = [byte];
        let written = Written::Bytes(&payload);
        let mut place: Option<Change> = None;
        loop {
            let may = |core: &Core| place.is_none_or(|change| core.may_change(change));
            let (mut inner, up) = self.enter(way, may)?;
            let change = *place.get_or_insert_with(|| inner.core.queue(SPAN));
            if !inner.core.may_change(change) {
                continue;
            }
            let sending = inner.core.send_change(change, up.member, lasting);
            drop(inner);
            let answer = self.ask(&up.connection, |disk| {
                disk.cache = byte;
                if lasting {
                    disk.durable = byte;
                }
            });
            if answer.is_err() {
                self.lost(way, &up);
                continue;
            }
            let mut inner = self.resume.lock();
            let worth = inner.core.changed(change, sending, lasting, written);
            if worth == Worth::Counts {
                self.resume.tell(inner);
                return Ok(());
            }
        }
    }

    /// `Lasting::submit`: reads the byte.
    fn read(&self, way: WayId) -> Result<u8, Error> {
        loop {
            let (mut inner, up) = self.enter(way, |core| core.may_read(SPAN))?;
            let sending = inner.core.send_read(up.member);
            drop(inner);
            match self.ask(&up.connection, |disk| disk.cache) {
                Err(Gone) => self.lost(way, &up),
                Ok(byte) if self.resume.lock().core.has_read(sending) == Worth::Counts => {
                    return Ok(byte);
                }
                Ok(_) => (),
            }
        }
    }

    /// `Lasting::flush_for`, and whether the answer that counts came in the turn of its flush.
    fn flush(&self, way: WayId) -> Result<bool, Error> {
        loop {
            let (mut inner, up) = self.enter(way, Core::may_flush)?;
            if inner.core.must_rewrite(up.member) {
                self.rewrite_before_flush(way, inner, &up);
                continue;
            }
            let sending = inner.core.send_flush(up.member);
            drop(inner);
            let answer = self.ask(&up.connection, |disk| disk.durable = disk.cache);
            if answer.is_err() {
                self.lost(way, &up);
                continue;
            }
            let mut inner = self.resume.lock();
            let answered = inner.core.moment();
            while !inner.core.may_judge(answered) {
                inner = self.resume.hold(inner, SLICE);
            }
            let worth = inner.core.flushed(sending, true);
            let own_turn = sending.turn == inner.core.turn();
            self.resume.tell(inner);
            if worth == Worth::Counts {
                return Ok(own_turn);
            }
        }
    }

    /// `Lasting::rewrite_before_flush`, since a flush was lost.
    fn rewrite_before_flush(
        &self,
        way: WayId,
        mut inner: MutexGuard<'_, Inner<Wire>>,
        up: &Up<Wire>,
    ) {
        let Some(pieces) = inner.core.begin_rewrite(up.member, false) else {
            return;
        };
        drop(inner);
        if self.rewrite(up, &pieces).is_err() {
            self.lost(way, up);
            return;
        }
        let mut inner = self.resume.lock();
        inner.core.end_rewrite(up.member, true);
        self.resume.tell(inner);
    }

    fn rewrite(&self, up: &Up<Wire>, pieces: &[Piece]) -> Result<(), Gone> {
        pieces
            .iter()
            .try_for_each(|piece| self.ask(&up.connection, |disk| apply(disk, piece)))
    }

    /// `Lasting::lost`, and then what its thread does: comes back. Whoever is not the first to find
    /// out goes and waits.
    fn lost(&self, way: WayId, found: &Up<Wire>) {
        if self.dies(way, found) {
            self.come_back(way);
        }
    }

    /// Whether the loss was not known.
    fn dies(&self, way: WayId, found: &Up<Wire>) -> bool {
        let mut inner = self.resume.lock();
        let Inner { core, ways, .. } = &mut *inner;
        let phase = &mut ways.get_mut(&way).expect("not closed").phase;
        let up = match phase {
            Phase::Up(up) if Arc::ptr_eq(&up.connection, &found.connection) => up.clone(),
            _ => return false,
        };
        core.lost(up.member);
        let cause = Cause::from(transport::Error::Closed);
        let lost = Arc::new(Lost::new(self.name.clone(), cause));
        *phase = Phase::Away(Away {
            since: Instant::now(),
            outage: Arc::new(Outage::new(lost, None)),
            grave: Some(up),
            thread: true,
        });
        self.resume.tell(inner);
        true
    }

    /// `Lasting::come_back`.
    fn come_back(&self, way: WayId) {
        self.returns.fetch_add(1, Ordering::AcqRel);
        let mut inner = self.resume.lock();
        let Inner { core, ways, .. } = &mut *inner;
        if let Phase::Away(away) = &mut ways.get_mut(&way).expect("not closed").phase {
            core.buried(away.grave.take().expect("once").member);
        }
        self.resume.tell(inner);
        while !self.settle_in(way) {}
    }

    /// `Lasting::settle_in`. False if the new connection was lost, too.
    fn settle_in(&self, way: WayId) -> bool {
        let life = self.server().life;
        let mut inner = self.resume.lock();
        let up = Up {
            connection: Arc::new(Wire { life }),
            member: inner.core.born(),
            maximum: u32::MAX,
        };
        let pieces = loop {
            if inner.core.doom().is_some() {
                inner.core.left(up.member);
                return true;
            }
            if let Some(pieces) = inner.core.begin_rewrite(up.member, true) {
                break pieces;
            }
            inner = self.resume.hold(inner, SLICE);
        };
        drop(inner);
        let written = self.rewrite(&up, &pieces);
        let mut inner = self.resume.lock();
        match written {
            Ok(()) if self.server().full && !pieces.is_empty() => {
                inner.core.end_rewrite(up.member, false);
                inner.core.end("could not be written again");
            }
            Ok(()) => {
                inner.core.end_rewrite(up.member, true);
                inner.ways.get_mut(&way).expect("not closed").phase = Phase::Up(up);
            }
            Err(Gone) => {
                inner.core.lost(up.member);
                inner.core.buried(up.member);
                self.resume.tell(inner);
                return false;
            }
        }
        match self.silent {
            true => drop(inner),
            false => self.resume.tell(inner),
        }
        true
    }

    /// `Lasting::close`, while the server is away.
    fn leaves(&self, way: WayId) {
        let mut inner = self.resume.lock();
        inner.ways.remove(&way);
        match self.silent {
            true => drop(inner),
            false => self.resume.tell(inner),
        }
    }

    /// The connection that a way has now.
    fn up(&self, way: WayId) -> Up<Wire> {
        match &self.resume.lock().ways[&way].phase {
            Phase::Up(up) => up.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// The connection of a way breaks, and it comes back, whatever anybody asks of it.
    fn breaks(&self, way: WayId) {
        let up = self.up(way);
        self.lost(way, &up);
    }

    /// What was acknowledged is durable, or is kept to be written again, and that comes to `byte`.
    fn keeps(&self, byte: u8) {
        let kept = self.resume.lock().core.kept(0);
        assert_eq!(kept.unwrap_or(self.server().durable), byte, "lost");
    }
}

fn apply(disk: &mut Disk, piece: &Piece) {
    if let (false, Some(Content::Bytes(bytes))) = (disk.full, piece.contents.first()) {
        disk.cache = bytes[0];
    }
}

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
