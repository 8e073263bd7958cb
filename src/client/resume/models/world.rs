// SPDX-License-Identifier: BSD-3-Clause
//! What the models have: a session with its lock, ways with what the client does with them, and a server
//! of one byte.

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::client::error::{Cause, Lost};
use crate::client::resume::*;
use crate::client::times::Time;
use crate::session::{Change, Content, Piece, Rules, Span, Worth, Written};
use crate::transport;

/// The byte.
const SPAN: Span = Span { start: 0, end: 1 };

/// A connection to the server in one of its lives.
#[derive(Debug)]
pub(super) struct Wire {
    life: u32,
}

/// What the server has.
#[derive(Debug, Default)]
pub(super) struct Disk {
    life: u32,
    pub(super) cache: u8,
    pub(super) durable: u8,
    /// Changes fail from now on.
    pub(super) full: bool,
}

/// The connection is gone.
#[derive(Debug)]
pub(super) struct Gone;

pub(super) struct World {
    name: Server,
    pub(super) resume: Resume<Wire>,
    server: Mutex<Disk>,
    pub(super) ways: Vec<WayId>,
    /// The writer of a model was told that its write has succeeded.
    pub(super) acknowledged: AtomicBool,
    /// How long requests wait.
    pub(super) limit: Option<Duration>,
    /// How often somebody began to come back.
    pub(super) returns: AtomicU32,
    /// Who comes back tells nobody.
    pub(super) silent: bool,
}

impl World {
    /// With a way for each thread, all of them up, and without a rule.
    pub(super) fn new(ways: usize, flags: TransmissionFlags, forget: fn(&mut Rules)) -> Self {
        let export = Export::new(1, flags, crate::proto::framing::Framing::Structured);
        assert!(export.can(flags));
        let terms = Terms {
            limit: Time::default(),
            first: Time::default(),
            max: Time::default(),
            replay: 1 << 20,
        };
        let mut world = Self {
            name: "server".into(),
            resume: Resume::new(&export, &terms),
            server: Mutex::new(Disk::default()),
            ways: Vec::new(),
            acknowledged: AtomicBool::new(false),
            limit: None,
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

    pub(super) fn server(&self) -> MutexGuard<'_, Disk> {
        sync::lock(&self.server)
    }

    /// The server dies, and is there again.
    pub(super) fn restart(&self) {
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
            match inner.pass(&self.name, way, self.limit, &may) {
                Pass::Send(up) => return Ok((inner, up)),
                Pass::Fail(error) => return Err(error),
                Pass::Hold(_) => inner = self.resume.hold(inner, SLICE),
            }
        }
    }

    /// `Lasting::change`: writes the byte.
    pub(super) fn write(&self, way: WayId, byte: u8, lasting: bool) -> Result<(), Error> {
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
    pub(super) fn read(&self, way: WayId) -> Result<u8, Error> {
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
    pub(super) fn flush(&self, way: WayId) -> Result<bool, Error> {
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
    pub(super) fn dies(&self, way: WayId, found: &Up<Wire>) -> bool {
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
            reminded: false,
        });
        self.resume.tell(inner);
        true
    }

    /// `Lasting::come_back`.
    pub(super) fn come_back(&self, way: WayId) {
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
            at: 0,
            load: None,
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
    pub(super) fn leaves(&self, way: WayId) {
        let mut inner = self.resume.lock();
        inner.ways.remove(&way);
        match self.silent {
            true => drop(inner),
            false => self.resume.tell(inner),
        }
    }

    /// The connection that a way has now.
    pub(super) fn up(&self, way: WayId) -> Up<Wire> {
        match &self.resume.lock().ways[&way].phase {
            Phase::Up(up) => up.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// The connection of a way breaks, and it comes back, whatever anybody asks of it.
    pub(super) fn breaks(&self, way: WayId) {
        let up = self.up(way);
        self.lost(way, &up);
    }

    /// What was acknowledged is durable, or is kept to be written again, and that comes to `byte`.
    pub(super) fn keeps(&self, byte: u8) {
        let kept = self.resume.lock().core.kept(0);
        assert_eq!(kept.unwrap_or(self.server().durable), byte, "lost");
    }
}

fn apply(disk: &mut Disk, piece: &Piece) {
    if let (false, Some(Content::Bytes(bytes))) = (disk.full, piece.contents.first()) {
        disk.cache = bytes[0];
    }
}
