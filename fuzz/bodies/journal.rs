// SPDX-License-Identifier: BSD-3-Clause
//! The journal against a model of every byte: a server whose cache dies with it or is dropped by a flush that fails, one
//! change after the other. What was acknowledged is there after each return, and permanent after each good flush.
//! (Changes side by side are the matter of `src/session/tests/`.)

use nbdkit_nbd_plugin::session::{
    Change, Content, Core, Facts, MemberId, Piece, Sending, Span, Worth, Written,
};

use super::bytes::Bytes;

const SIZE: usize = 2048;
/// What a trim leaves.
const RUBBISH: u8 = 0xdd;

/// What clients see, what is permanent, and what a flush would make so.
struct Server {
    visible: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<bool>,
}

impl Server {
    fn put(&mut self, at: usize, bytes: &[u8], lasting: bool) {
        for (place, byte) in (at..).zip(bytes) {
            self.visible[place] = *byte;
            self.dirty[place] = !lasting;
            if lasting {
                self.durable[place] = *byte;
            }
        }
    }

    fn flush(&mut self, success: bool) {
        for place in 0..SIZE {
            if std::mem::take(&mut self.dirty[place]) && success {
                self.durable[place] = self.visible[place];
            }
        }
    }

    fn die(&mut self) {
        self.visible.clone_from(&self.durable);
        self.dirty.fill(false);
    }
}

enum Kind {
    Write(Vec<u8>),
    Zero { no_hole: bool },
    Trim,
}

impl Kind {
    fn written(&self) -> Written<'_> {
        match self {
            Self::Write(bytes) => Written::Bytes(bytes),
            Self::Zero { no_hole } => Written::Zeroes { no_hole: *no_hole },
            Self::Trim => Written::Trimmed,
        }
    }

    fn bytes(&self, length: usize) -> Vec<u8> {
        match self {
            Self::Write(bytes) => bytes.clone(),
            Self::Zero { .. } => vec![0; length],
            Self::Trim => vec![RUBBISH; length],
        }
    }
}

struct World<'a> {
    bytes: Bytes<'a>,
    core: Core,
    members: Vec<MemberId>,
    server: Server,
    /// What clients were told, where that is anything.
    known: Vec<Option<u8>>,
}

impl World<'_> {
    fn join(&mut self) {
        let member = self.core.born();
        let pieces = self
            .core
            .begin_rewrite(member, true)
            .expect("nobody else does");
        assert!(self.write_again(member, &pieces));
        self.members.push(member);
        self.check();
    }

    /// False if the server is lost meanwhile.
    fn write_again(&mut self, member: MemberId, pieces: &[Piece]) -> bool {
        let mut last = 0;
        for piece in pieces {
            assert!(piece.offset >= last, "in order, and apart");
            last = piece.offset + piece.length;
            let mut at = piece.offset as usize;
            for content in &piece.contents {
                match content {
                    Content::Bytes(bytes) => {
                        self.server.put(at, bytes, false);
                        at += bytes.len();
                    }
                    Content::Zeroes { .. } => {
                        let length = piece.length as usize;
                        self.server.put(at, &vec![0; length], false);
                        at += length;
                    }
                }
            }
            assert_eq!(at as u64, last);
        }
        self.core.end_rewrite(member, true)
    }

    fn member(&mut self) -> MemberId {
        self.bytes.one_of(&self.members.clone())
    }

    /// All connections are lost, the server is another one perhaps, and as many connections are new.
    fn lose(&mut self) {
        if self.bytes.flag() {
            self.server.die();
        }
        let members = std::mem::take(&mut self.members);
        let count = members.len();
        for member in members {
            self.core.lost(member);
            self.core.buried(member);
        }
        (0..count).for_each(|_| self.join());
    }

    fn flush(&mut self) {
        for _ in 0..4 {
            let member = self.member();
            if self.core.must_rewrite(member) {
                let pieces = self
                    .core
                    .begin_rewrite(member, false)
                    .expect("nobody else does");
                assert!(self.write_again(member, &pieces));
                self.check();
            }
            assert!(self.core.may_flush());
            let sending = self.core.send_flush(member);
            let success = self.bytes.below(5) > 0;
            self.server.flush(success);
            match self.core.flushed(sending, success) {
                Worth::Counts if success => return self.is_permanent(),
                Worth::Counts => return,
                Worth::SendAgain => (),
            }
        }
        panic!("a flush without end");
    }

    fn change(&mut self) {
        let start = self.bytes.below(SIZE as u64);
        let most = [1, 16, 300, SIZE as u64][self.bytes.below(4) as usize];
        let length = (1 + self.bytes.below(most)).min(SIZE as u64 - start);
        let kind = match self.bytes.below(8) {
            0..=4 => {
                let first = self.bytes.u8();
                Kind::Write((0..length).map(|i| first.wrapping_add(i as u8)).collect())
            }
            5 | 6 => Kind::Zero {
                no_hole: self.bytes.flag(),
            },
            _ => Kind::Trim,
        };
        let lasting = self.bytes.below(6) == 0;
        let change = self.core.queue(Span::new(start, length));
        let room = lasting || self.core.reserve(kind.written());
        self.send(
            change,
            start as usize,
            length as usize,
            &kind,
            lasting,
            room,
        );
        if !lasting && room {
            self.core.give_back(kind.written());
        }
    }

    fn send(
        &mut self,
        change: Change,
        at: usize,
        length: usize,
        kind: &Kind,
        lasting: bool,
        room: bool,
    ) {
        let content = kind.bytes(length);
        for _ in 0..4 {
            assert!(self.core.may_change(change));
            let member = self.member();
            let sending = self.core.send_change(change, member, lasting);
            match self.bytes.below(12) {
                // It is lost on its way, with all connections, and sent again, or not.
                0 => {
                    if self.bytes.flag() {
                        self.server.put(at, &content, lasting);
                    }
                    self.forget(at, length);
                    self.lose();
                    if self.bytes.flag() {
                        return self.core.abandon(change);
                    }
                }
                1 => {
                    if self.bytes.flag() {
                        self.server.put(at, &content, false);
                    }
                    if lasting {
                        self.server.flush(false);
                    }
                    self.forget(at, length);
                    assert_eq!(self.core.refused(change, sending, lasting), Worth::Counts);
                    return;
                }
                _ => {
                    self.server.put(at, &content, lasting);
                    let is_over = match room {
                        true => {
                            let worth = self.core.changed(change, sending, lasting, kind.written());
                            worth == Worth::Counts
                        }
                        false => {
                            // What was there is undone, and what is new not acknowledged.
                            self.forget(at, length);
                            self.through(change, sending)
                        }
                    };
                    if is_over {
                        self.acknowledge(at, length, kind, &content);
                        return;
                    }
                    self.forget(at, length);
                }
            }
        }
        self.core.abandon(change);
        self.forget(at, length);
    }

    /// A change for which there is no room is made permanent before it is acknowledged.
    fn through(&mut self, change: Change, sending: Sending) -> bool {
        assert_eq!(self.core.written_through(change, sending), Worth::Counts);
        self.flush();
        self.core.made_permanent(change, sending) == Worth::Counts
    }

    fn acknowledge(&mut self, at: usize, length: usize, kind: &Kind, content: &[u8]) {
        for (place, byte) in (at..at + length).zip(content) {
            self.known[place] = match kind {
                Kind::Trim => None,
                _ => Some(*byte),
            };
        }
    }

    fn forget(&mut self, at: usize, length: usize) {
        self.known[at..at + length].fill(None);
    }

    /// Clients see what they were told.
    fn check(&self) {
        self.agrees(&self.server.visible, "visible");
    }

    fn is_permanent(&self) {
        self.agrees(&self.server.durable, "permanent");
    }

    fn agrees(&self, there: &[u8], what: &str) {
        for (place, known) in self.known.iter().enumerate() {
            assert!(
                known.is_none_or(|byte| byte == there[place]),
                "byte {place} is {} and not {known:?}: {what}",
                there[place]
            );
        }
    }
}

pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let replay = bytes.one_of(&[300, 1000, 5000, 1 << 20]);
    let multi_conn = bytes.flag();
    let members = 1 + bytes.below(3);
    let mut world = World {
        bytes,
        core: Core::new(Facts { replay, multi_conn }),
        members: Vec::new(),
        server: Server {
            visible: vec![0; SIZE],
            durable: vec![0; SIZE],
            dirty: vec![false; SIZE],
        },
        known: vec![Some(0); SIZE],
    };
    (0..if multi_conn { members } else { 1 }).for_each(|_| world.join());
    while !world.bytes.is_over() {
        match world.bytes.below(10) {
            0 => world.lose(),
            1 | 2 => world.flush(),
            3 => world.core.rest(),
            _ => world.change(),
        }
        world.check();
        // As the client does; a flush that fails leaves it for the next time.
        if world.core.is_overfull() || world.core.is_filling() {
            world.flush();
        }
    }
    world.lose();
}
