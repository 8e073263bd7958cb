// SPDX-License-Identifier: BSD-3-Clause
//! The protocol by which a front client's requests drive the core, as `src/client/lasting/` has it.

use super::dice::Dice;
use super::oracle::Verdict;
use super::server::{By, Kind, Value, What};
use super::world::{Ask, BLOCK, Do, Op, Stage, Way, World};
use crate::session::{Moment, Sending, Span, Worth, Written};

impl World {
    /// Over whose connections the next message of a request may go. Without a journal a flush goes over
    /// the oldest of a pool.
    pub(super) fn links(&self, op: &Op) -> Vec<usize> {
        let is_up = |link: &usize| self.clients[*link].way == Way::Up;
        if !self.plan.pool {
            return Some(op.client).filter(is_up).into_iter().collect();
        }
        let mut links: Vec<_> = (0..self.clients.len()).filter(is_up).collect();
        if self.plan.replay == 0 && matches!(op.stage, Stage::Flush(_)) {
            links.sort_by_key(|link| self.clients[*link].member);
            links.truncate(1);
        }
        links
    }

    /// Chooses one of them.
    pub(super) fn choose(&mut self, id: usize, dice: &mut dyn Dice) {
        let op = &self.ops[id];
        if let (true, Stage::Ready | Stage::Flush(_)) = (self.plan.pool, op.stage) {
            let links = self.links(op);
            if !links.is_empty() {
                self.ops[id].link = links[dice.pick(links.len())];
            }
        }
    }

    pub(super) fn give_up(&mut self, id: usize, dice: &mut dyn Dice) {
        let op = &self.ops[id];
        if let Stage::OnWay(..) | Stage::FlushOnWay(..) | Stage::Rewrite(..) = op.stage {
            let link = op.link;
            self.server.cut(self.clients[link].connection, dice);
            if self.clients[link].way == Way::Up {
                self.lose(link);
            }
        }
        if let Stage::Answered(_, _, sending) = self.ops[id].stage {
            self.core.forget_lasting(sending);
        }
        self.fail(id);
    }

    /// The request fails, and nobody waits for it any more.
    fn fail(&mut self, id: usize) {
        if let Some(change) = self.ops[id].change {
            self.core.abandon(change);
        }
        self.over(id, false);
    }

    /// A request is over.
    fn over(&mut self, id: usize, success: bool) {
        let op = &mut self.ops[id];
        op.stage = Stage::Done(success);
        if op.reserved {
            op.reserved = false;
            self.core.give_back(op.ask.written(&op.written));
        }
        for (block, number) in (op.ask.from..).zip(&op.numbers) {
            match success {
                true => {
                    let lasting = op.ask.fua || op.through.is_some();
                    self.oracle.acknowledged(block, *number, self.now, lasting);
                }
                false => self.oracle.failed(block, *number),
            }
        }
        if success && op.ask.what == Do::Flush {
            let client = &self.clients[op.client];
            let met = if self.plan.replay == 0 { client.met } else { 0 };
            self.oracle.flushed(op.client, op.since, met);
        }
    }

    pub(super) fn step(&mut self, id: usize) -> Verdict {
        let op = &self.ops[id];
        let (member, connection) = {
            let link = &self.clients[op.link];
            (link.member, link.connection)
        };
        let ask = op.ask;
        match (op.stage, op.change) {
            (Stage::Rewrite(since, _, refused), _) => {
                let counts = self.core.end_rewrite(member, !refused);
                match counts && refused {
                    true => self.fail_flush(id),
                    false => self.ops[id].stage = Stage::Flush(since),
                }
            }
            (Stage::Answered(since, _, sending), _) => match self.core.flushed(sending, true) {
                Worth::SendAgain => self.ops[id].stage = Stage::Flush(since),
                Worth::Counts => self.has_flushed(id),
            },
            _ if self.core.doom().is_some() => self.fail(id),
            (Stage::New, _) if ask.what == Do::Flush => {
                self.ops[id].since = self.now;
                self.ops[id].stage = Stage::Flush(self.core.moment());
            }
            (Stage::New, _) => {
                self.ops[id].since = self.now;
                self.ops[id].stage = Stage::Ready;
                if ask.what != Do::Read {
                    self.queue(id);
                }
            }
            (Stage::Ready, None) => {
                let sending = self.core.send_read(member);
                let what = What::Read {
                    from: ask.from,
                    to: ask.to,
                };
                let request = self.server.send(connection, By::Op(id), what);
                self.ops[id].stage = Stage::OnWay(request, sending, false);
            }
            (Stage::Ready, Some(change)) => {
                let lasting = ask.fua || (!op.reserved && self.plan.replay > 0 && self.plan.fua);
                let what = What::Change {
                    from: ask.from,
                    values: vec![op.value; ask.to - ask.from],
                    lasting,
                };
                let sending = self.core.send_change(change, member, lasting);
                let request = self.server.send(connection, By::Op(id), what);
                self.ops[id].stage = Stage::OnWay(request, sending, lasting);
            }
            (Stage::Flush(since), _) => self.flush(id, since),
            (stage, _) => return Err(format!("step in {stage:?}")),
        }
        Ok(())
    }

    fn queue(&mut self, id: usize) {
        let op = &mut self.ops[id];
        op.change = Some(self.core.queue(op.ask.span()));
        let trim = op.ask.what == Do::Trim;
        for block in op.ask.from..op.ask.to {
            let number = self.oracle.queued(block, op.client, op.value, trim);
            op.numbers.push(number);
        }
        if self.plan.replay > 0 && !op.ask.fua {
            op.reserved = self.core.reserve(op.ask.written(&op.written));
        }
    }

    fn flush(&mut self, id: usize, since: Moment) {
        let link = &self.clients[self.ops[id].link];
        let (member, connection) = (link.member, link.connection);
        if self.core.losses() > self.clients[self.ops[id].client].losses {
            self.fail_flush(id);
        } else if self.core.was_flushed(member, since) {
            self.has_flushed(id);
        } else if self.core.must_rewrite(member) {
            if let Some(pieces) = self.core.begin_rewrite(member, false) {
                let sent = self.send_pieces(connection, By::Op(id), pieces);
                self.ops[id].stage = Stage::Rewrite(since, sent, false);
            }
        } else {
            let sending = self.core.send_flush(member);
            let request = self.server.send(connection, By::Op(id), What::Flush);
            self.ops[id].stage = Stage::FlushOnWay(since, request, sending);
        }
    }

    /// A flush was good: for its own sake, or for a change for which there was no room.
    fn has_flushed(&mut self, id: usize) {
        let op = &mut self.ops[id];
        match (op.change, op.through) {
            (Some(change), Some(sending)) => match self.core.made_permanent(change, sending) {
                Worth::Counts => self.over(id, true),
                Worth::SendAgain => {
                    op.through = None;
                    op.stage = Stage::Ready;
                }
            },
            _ => self.over(id, true),
        }
    }

    fn fail_flush(&mut self, id: usize) {
        let op = &mut self.ops[id];
        match (op.change, op.through.take()) {
            (Some(change), Some(sending)) => match self.core.refused(change, sending, false) {
                Worth::Counts => self.over(id, false),
                Worth::SendAgain => op.stage = Stage::Ready,
            },
            _ => self.over(id, false),
        }
    }

    pub(super) fn answer(&mut self, request_id: usize) -> Verdict {
        self.server.progress += 1;
        let request = self.server.requests.remove(&request_id);
        let request = request.expect("it is there");
        let answer = request.answer.expect("it was answered");
        let id = match request.by {
            By::Link(client) => {
                if let Way::Rewriting(left, refused) = &mut self.clients[client].way {
                    *left -= 1;
                    *refused |= answer.is_err();
                }
                return Ok(());
            }
            By::Op(id) => id,
        };
        let op = &mut self.ops[id];
        match op.stage {
            Stage::Rewrite(_, ref mut left, ref mut refused) => {
                *left -= 1;
                *refused |= answer.is_err();
            }
            Stage::OnWay(expected, sending, lasting) if expected == request_id => {
                self.answered(id, sending, lasting, answer)?;
            }
            Stage::FlushOnWay(since, expected, sending) if expected == request_id => {
                let answered = self.core.moment();
                match answer.is_ok() {
                    true => op.stage = Stage::Answered(since, answered, sending),
                    false => match self.core.flushed(sending, false) {
                        Worth::SendAgain => op.stage = Stage::Flush(since),
                        Worth::Counts => self.fail_flush(id),
                    },
                }
            }
            _ => (),
        }
        Ok(())
    }

    /// A change or a read was answered.
    fn answered(
        &mut self,
        id: usize,
        sending: Sending,
        lasting: bool,
        answer: Result<Vec<Value>, ()>,
    ) -> Verdict {
        let op = &mut self.ops[id];
        let through = !op.ask.fua && !op.reserved && self.plan.replay > 0;
        let worth = match (op.change, &answer) {
            (None, _) => self.core.has_read(sending),
            (Some(change), Err(())) => self.core.refused(change, sending, lasting),
            (Some(change), Ok(_)) if through && !lasting => {
                match self.core.written_through(change, sending) {
                    Worth::SendAgain => Worth::SendAgain,
                    Worth::Counts => {
                        op.through = Some(sending);
                        op.stage = Stage::Flush(self.core.moment());
                        return Ok(());
                    }
                }
            }
            (Some(change), Ok(_)) => {
                let written = op.ask.written(&op.written);
                self.core.changed(change, sending, lasting, written)
            }
        };
        if worth == Worth::SendAgain {
            op.stage = Stage::Ready;
            return Ok(());
        }
        let (client, since) = (op.client, op.since);
        if let (None, Ok(read)) = (op.change, &answer) {
            for (block, value) in (op.ask.from..).zip(read) {
                let told = self.plan.kind != Kind::Separate || self.oracle.is_own(block, client);
                if self.plan.replay > 0 && told {
                    self.oracle.has_read(block, *value, since, self.now)?;
                }
            }
        }
        self.lasting += u64::from(lasting);
        self.over(id, answer.is_ok());
        Ok(())
    }
}

impl Ask {
    pub(super) fn span(self) -> Span {
        Span::new(
            self.from as u64 * BLOCK,
            (self.to - self.from) as u64 * BLOCK,
        )
    }

    pub(super) fn written(self, bytes: &[u8]) -> Written<'_> {
        match self.what {
            Do::Zero => Written::Zeroes { no_hole: false },
            Do::Trim => Written::Trimmed,
            _ => Written::Bytes(bytes),
        }
    }
}
