// SPDX-License-Identifier: BSD-3-Clause
//! Front clients that drive the core as `src/client/` does, over a simulated server.

use std::collections::VecDeque;

use super::dice::Dice;
use super::oracle::{Oracle, Verdict};
use super::server::{By, Kind, Server, Value, What};
use crate::session::journal::FIXED;
use crate::session::rules::Rules;
use crate::session::{Change, Content, Core, Facts, MemberId, Moment, Piece, Sending};

/// Bytes of a block: a [`Value`].
pub(super) const BLOCK: u64 = 2;

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    pub(super) blocks: usize,
    pub(super) replay: u64,
    /// The server has FUA.
    pub(super) fua: bool,
    /// Whether there is one front client, and all connections are its own: each request goes over any.
    pub(super) pool: bool,
    pub(super) rules: Rules,
}

/// How much may go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) kills: u32,
    pub(super) cuts: u32,
    /// Flushes that fail, and with them whatever else makes something permanent.
    pub(super) flushes: u32,
    /// Other requests that are refused.
    pub(super) refusals: u32,
    /// Pieces of the journal that are refused to a new member.
    pub(super) dooms: u32,
    /// Requests whose deadline passes.
    pub(super) deadlines: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Do {
    Write,
    Zero,
    Trim,
    Read,
    Flush,
}

/// What a front client asks for: blocks from `from` to before `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) what: Do,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) fua: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    New,
    /// A change or a read waits to be sent, at first or again.
    Ready,
    OnWay(usize, Sending, bool),
    /// A flush waits to be sent, or to be no more needed.
    Flush(Moment),
    /// So many pieces are written again before the flush, and whether one was refused.
    Rewrite(Moment, usize, bool),
    FlushOnWay(Moment, usize, Sending),
    /// A flush was answered at a moment, with success, and waits to be judged.
    Answered(Moment, Moment, Sending),
    Done(bool),
}

pub(super) struct Op {
    pub(super) client: usize,
    /// Whose connection it goes over: the client's, but in a pool.
    pub(super) link: usize,
    pub(super) ask: Ask,
    pub(super) value: Value,
    pub(super) written: Vec<u8>,
    pub(super) stage: Stage,
    pub(super) change: Option<Change>,
    pub(super) reserved: bool,
    /// The sending of a change that a flush is to make permanent.
    pub(super) through: Option<Sending>,
    pub(super) numbers: Vec<usize>,
    pub(super) since: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    /// The old connection is not closed yet.
    Lost,
    Closed,
    Born,
    /// So many pieces have no answer yet, and whether one was refused.
    Rewriting(usize, bool),
    /// It has left.
    Left,
}

pub(super) struct Client {
    pub(super) way: Way,
    pub(super) member: MemberId,
    pub(super) connection: usize,
    pub(super) losses: u64,
    pub(super) met: u64,
    pub(super) leaves: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// An answer arrives.
    Answer(usize),
    /// The server carries a request out.
    Serve(usize),
    /// A client sees that its connection is dead.
    Notice(usize),
    Bury(usize),
    Connect(usize),
    Begin(usize),
    End(usize),
    Leave(usize),
    Step(usize),
    // What goes wrong.
    Kill,
    Cut(usize),
    Refuse(usize),
    Deadline(usize),
}

pub(super) struct World {
    pub(super) core: Core,
    pub(super) plan: Plan,
    pub(super) server: Server,
    pub(super) clients: Vec<Client>,
    pub(super) ops: Vec<Op>,
    pub(super) oracle: Oracle,
    pub(super) faults: Faults,
    pub(super) now: u64,
    /// Changes that were permanent when they were answered.
    pub(super) lasting: u64,
    /// What has happened, the latest last.
    pub(super) trace: VecDeque<String>,
    pub(super) tracing: bool,
}

impl Act {
    /// Acts that may be slow in a session together: so many kinds there are.
    pub(super) const KINDS: usize = 7;

    pub(super) fn kind(self) -> usize {
        match self {
            Self::Answer(_) => 0,
            Self::Serve(_) => 1,
            Self::Notice(_) => 2,
            Self::Bury(_) => 3,
            Self::Connect(_) | Self::Begin(_) => 4,
            Self::End(_) => 5,
            _ => 6,
        }
    }
}

impl World {
    pub(super) fn new(plan: Plan, faults: Faults) -> Self {
        let multi_conn = plan.kind == Kind::Multi;
        let mut core = Core::new(Facts {
            replay: plan.replay,
            multi_conn,
        });
        core.rules = plan.rules;
        Self {
            core,
            plan,
            server: Server::new(plan.kind, plan.blocks),
            clients: Vec::new(),
            ops: Vec::new(),
            oracle: Oracle::new(plan.blocks, multi_conn),
            faults,
            now: 1,
            lasting: 0,
            trace: VecDeque::new(),
            tracing: false,
        }
    }

    /// A front client opens.
    pub(super) fn join(&mut self) {
        let connection = self.server.connect();
        self.clients.push(Client {
            way: Way::Born,
            member: self.core.born(),
            connection,
            losses: self.core.losses(),
            met: self.now,
            leaves: false,
        });
    }

    /// A front client is about to leave, as soon as a flush is over.
    pub(super) fn leave(&mut self, client: usize) {
        if !std::mem::replace(&mut self.clients[client].leaves, true) {
            self.push(client, FLUSH, 0);
        }
    }

    /// Clients that can be asked for something.
    pub(super) fn present(&self) -> Vec<usize> {
        let most = if self.plan.pool {
            1
        } else {
            self.clients.len()
        };
        let clients = self.clients[..most].iter().enumerate();
        let present = clients.filter(|(_, c)| !c.leaves && c.way != Way::Left);
        present.map(|(id, _)| id).collect()
    }

    /// A front client asks for something. Each value is to be new.
    pub(super) fn push(&mut self, client: usize, ask: Ask, value: Value) {
        let value = if ask.what == Do::Zero { 0 } else { value };
        let written = match ask.what {
            Do::Write => value.to_le_bytes().repeat(ask.to - ask.from),
            _ => Vec::new(),
        };
        self.ops.push(Op {
            client,
            link: client,
            ask,
            value,
            written,
            stage: Stage::New,
            change: None,
            reserved: false,
            through: None,
            numbers: Vec::new(),
            since: self.now,
        });
    }

    pub(super) fn is_idle(&self) -> bool {
        self.busy().is_empty()
    }

    /// Requests that are not over.
    fn busy(&self) -> Vec<usize> {
        let is_busy = |id: &usize| !matches!(self.ops[*id].stage, Stage::Done(_));
        (0..self.ops.len()).filter(is_busy).collect()
    }

    pub(super) fn busy_of(&self, client: usize) -> usize {
        let busy = self.busy();
        busy.iter()
            .filter(|op| self.ops[**op].client == client)
            .count()
    }

    /// What can happen now, in the order of a world in which nothing takes long. A dead connection
    /// over which nobody waits is seen last.
    pub(super) fn acts(&self) -> Vec<Act> {
        let (mut acts, late) = self.acts_in_time(false);
        acts.extend(late);
        acts
    }

    /// The same, with what happens last apart: a dead connection over which nobody waits is seen,
    /// and in a world that is `lazy` the server gets to the end of those that were lost.
    pub(super) fn acts_in_time(&self, lazy: bool) -> (Vec<Act>, Vec<Act>) {
        let (mut acts, mut late) = (Vec::new(), Vec::new());
        for (id, request) in &self.server.requests {
            match request.answer {
                Some(_) => acts.push(Act::Answer(*id)),
                None if !self.server.may_serve(*id) => (),
                None if lazy && !self.server.is_alive(request.connection) => {
                    late.push(Act::Serve(*id));
                }
                None => acts.push(Act::Serve(*id)),
            }
        }
        for (id, client) in self.clients.iter().enumerate() {
            let dead = !self.server.is_alive(client.connection);
            let unseen = matches!(client.way, Way::Up | Way::Born | Way::Rewriting(..)) && dead;
            if unseen && (client.way != Way::Up || self.server.is_busy(client.connection)) {
                acts.push(Act::Notice(id));
            } else if unseen {
                late.push(Act::Notice(id));
            }
            let leaves = client.leaves && self.busy_of(id) == 0;
            match client.way {
                Way::Lost if lazy => late.push(Act::Bury(id)),
                Way::Lost => acts.push(Act::Bury(id)),
                Way::Up | Way::Closed if leaves => acts.push(Act::Leave(id)),
                Way::Closed if self.core.doom().is_none() => acts.push(Act::Connect(id)),
                Way::Born if !dead && !self.core.is_rewriting() => acts.push(Act::Begin(id)),
                Way::Rewriting(0, _) => acts.push(Act::End(id)),
                _ => (),
            }
        }
        let steps = self.busy().into_iter().filter(|op| self.may_step(*op));
        acts.extend(steps.map(Act::Step));
        (acts, late)
    }

    fn may_step(&self, id: usize) -> bool {
        let op = &self.ops[id];
        if let Stage::OnWay(..) | Stage::FlushOnWay(..) = op.stage {
            return false;
        }
        if let Stage::Rewrite(_, left, _) = op.stage {
            return left == 0;
        }
        if let Stage::Answered(_, answered, _) = op.stage {
            return self.core.may_judge(answered);
        }
        if self.core.doom().is_some() {
            return true;
        }
        if self.links(op).is_empty() {
            return false;
        }
        match (op.stage, op.change) {
            (Stage::Ready, Some(change)) => self.core.may_change(change),
            (Stage::Ready, None) => self.core.may_read(op.ask.span()),
            (Stage::Flush(_), _) => self.core.may_flush(),
            _ => true,
        }
    }

    /// What can go wrong now, and would make a difference.
    pub(super) fn mishaps(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.server.is_quiet() && self.faults.deadlines == 0 {
            return acts;
        }
        let is_alive = |c: &Client| self.server.is_alive(c.connection);
        if self.faults.kills > 0 && self.clients.iter().any(is_alive) {
            acts.push(Act::Kill);
        }
        if self.faults.cuts > 0 {
            let alive = self.clients.iter().enumerate().filter(|(_, c)| is_alive(c));
            acts.extend(alive.map(|(id, _)| Act::Cut(id)));
        }
        for (id, request) in &self.server.requests {
            let budget = match (&request.what, request.by) {
                (What::Flush | What::Change { lasting: true, .. }, _) => self.faults.flushes,
                (_, By::Link(_)) => self.faults.dooms,
                _ => self.faults.refusals,
            };
            if budget > 0 && self.server.may_serve(*id) {
                acts.push(Act::Refuse(*id));
            }
        }
        if self.faults.deadlines > 0 {
            acts.extend(self.busy().into_iter().map(Act::Deadline));
        }
        acts
    }

    /// Grows with each request that is sent, carried out or answered.
    pub(super) fn progress(&self) -> u64 {
        self.server.progress
    }

    pub(super) fn calm(&mut self) {
        self.faults = Faults::default();
    }

    pub(super) fn perform(&mut self, act: Act, dice: &mut dyn Dice) -> Verdict {
        self.now += 1;
        if self.tracing {
            self.trace
                .push_back(format!("{:4} {}", self.now, self.tell(act)));
        }
        match act {
            Act::Answer(id) => self.answer(id)?,
            Act::Serve(id) => self.server.serve(id, true, dice),
            Act::Refuse(id) => {
                let request = &self.server.requests[&id];
                match (&request.what, request.by) {
                    (What::Flush | What::Change { lasting: true, .. }, _) => {
                        self.faults.flushes -= 1;
                    }
                    (_, By::Link(_)) => self.faults.dooms -= 1,
                    _ => self.faults.refusals -= 1,
                }
                self.server.serve(id, false, dice);
            }
            Act::Notice(id) => self.lose(id),
            Act::Bury(id) => {
                self.server.bury(self.clients[id].connection);
                self.core.buried(self.clients[id].member);
                self.clients[id].way = Way::Closed;
            }
            Act::Connect(id) => {
                self.clients[id].connection = self.server.connect();
                self.clients[id].member = self.core.born();
                self.clients[id].way = Way::Born;
            }
            Act::Begin(id) => {
                if let Some(pieces) = self.core.begin_rewrite(self.clients[id].member, true) {
                    let sent = self.send_pieces(self.clients[id].connection, By::Link(id), pieces);
                    self.clients[id].way = Way::Rewriting(sent, false);
                }
            }
            Act::End(id) => self.end(id),
            Act::Leave(id) => {
                if self.clients[id].way == Way::Up {
                    self.core.left(self.clients[id].member);
                    self.server.bury(self.clients[id].connection);
                }
                self.clients[id].way = Way::Left;
            }
            Act::Step(id) => {
                self.choose(id, dice);
                self.step(id)?;
            }
            Act::Kill => {
                self.faults.kills -= 1;
                self.server.kill(dice);
            }
            Act::Cut(id) => {
                self.faults.cuts -= 1;
                self.server.cut(self.clients[id].connection, dice);
            }
            Act::Deadline(id) => {
                self.faults.deadlines -= 1;
                self.give_up(id, dice);
            }
        }
        // What is made permanent in the middle of zeroes cuts them in two.
        if self.core.cost() > self.plan.replay + self.lasting * FIXED {
            return Err(format!("the journal takes {} bytes", self.core.cost()));
        }
        self.oracle.check(&self.server)
    }

    pub(super) fn send_pieces(&mut self, connection: usize, by: By, pieces: Vec<Piece>) -> usize {
        for piece in &pieces {
            let from = (piece.offset / BLOCK) as usize;
            let values = values(piece);
            let what = What::Change {
                from,
                values,
                lasting: false,
            };
            self.server.send(connection, by, what);
        }
        pieces.len()
    }

    /// A client sees that its connection is dead, or gives it up.
    pub(super) fn lose(&mut self, id: usize) {
        self.core.lost(self.clients[id].member);
        self.clients[id].way = Way::Lost;
        let connection = self.clients[id].connection;
        let server = &self.server;
        let unanswered = |request: usize| {
            let request = server.requests.get(&request);
            request.is_none_or(|r| r.answer.is_none())
        };
        for op in self.ops.iter_mut().filter(|op| op.link == id) {
            op.stage = match op.stage {
                Stage::OnWay(request, ..) if unanswered(request) => Stage::Ready,
                Stage::FlushOnWay(since, request, _) if unanswered(request) => Stage::Flush(since),
                Stage::Rewrite(since, ..) => Stage::Flush(since),
                stage => stage,
            }
        }
        // Answers for nobody.
        let ops = &self.ops;
        self.server.requests.retain(|id, request| {
            let is_awaited = |op: &Op| {
                matches!(op.stage, Stage::OnWay(r, ..) | Stage::FlushOnWay(_, r, _) if r == *id)
            };
            request.connection != connection
                || request.answer.is_none()
                || ops.iter().any(is_awaited)
        });
    }

    /// All pieces were answered to a client that comes back.
    fn end(&mut self, id: usize) {
        let refused = matches!(self.clients[id].way, Way::Rewriting(_, true));
        if self.core.end_rewrite(self.clients[id].member, !refused) && refused {
            self.core.end("the journal was refused");
        }
        self.clients[id].way = Way::Up;
    }

    /// Nothing goes wrong any more: everything comes to rest, all can be read, everything can be
    /// made permanent, and was.
    pub(super) fn finish(&mut self, dice: &mut dyn Dice) -> Verdict {
        self.calm();
        self.rest(dice)?;
        let all = Ask {
            what: Do::Read,
            from: 0,
            to: self.plan.blocks,
            fua: false,
        };
        for ask in [all, FLUSH] {
            for client in self.present() {
                self.push(client, ask, 0);
                self.rest(dice)?;
                let done = self.ops.last().map(|op| op.stage);
                if self.core.doom().is_some() != matches!(done, Some(Stage::Done(false)))
                    && self.plan.replay > 0
                {
                    return Err(format!("{ask:?} of {client} ended with {done:?}"));
                }
            }
        }
        if !self.core.order.is_empty() || self.core.reserved > 0 {
            return Err("something is kept in the order, or reserved".to_owned());
        }
        let told = self.plan.replay > 0 && self.core.doom().is_none();
        if told && !self.present().is_empty() {
            if self.core.has_unflushed() {
                return Err("the journal is not empty".to_owned());
            }
            self.oracle.check_all(&self.server)?;
        }
        Ok(())
    }

    /// Lets everything come to rest that can.
    pub(super) fn rest(&mut self, dice: &mut dyn Dice) -> Verdict {
        for _ in 0..100_000 {
            let Some(act) = self.acts().first().copied() else {
                break;
            };
            self.perform(act, dice)?;
        }
        match self.is_idle() {
            true => Ok(()),
            false => Err("it does not come to rest".to_owned()),
        }
    }

    fn tell(&self, act: Act) -> String {
        match act {
            Act::Answer(id) | Act::Serve(id) | Act::Refuse(id) => {
                let r = &self.server.requests[&id];
                format!(
                    "{act:?}: {:?} over {} {:?} {:?}",
                    r.by, r.connection, r.what, r.answer
                )
            }
            Act::Step(id) | Act::Deadline(id) => {
                let op = &self.ops[id];
                let Ask {
                    what,
                    from,
                    to,
                    fua,
                } = op.ask;
                let (client, value, stage) = (op.client, op.value, op.stage);
                format!("{act:?}: {client}: {what:?} {from}..{to} = {value} {fua} {stage:?}")
            }
            _ => format!("{act:?}"),
        }
    }
}

/// A flush.
pub(super) const FLUSH: Ask = Ask {
    what: Do::Flush,
    from: 0,
    to: 0,
    fua: false,
};

/// The values of a piece, block by block.
fn values(piece: &Piece) -> Vec<Value> {
    let Some(Content::Bytes(_)) = piece.contents.first() else {
        return vec![0; (piece.length / BLOCK) as usize];
    };
    let mut bytes = Vec::new();
    for content in &piece.contents {
        if let Content::Bytes(part) = content {
            bytes.extend_from_slice(part);
        }
    }
    let values = bytes.chunks_exact(BLOCK as usize);
    values.map(|b| Value::from_le_bytes([b[0], b[1]])).collect()
}
