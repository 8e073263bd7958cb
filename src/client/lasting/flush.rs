// SPDX-License-Identifier: BSD-3-Clause
//! Flushes over a way that outlives its connections: there is one at a time for an export, and
//! whoever waited for it may find that it has covered what it is about.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{ASK, Lasting, Operation};
use crate::client::error::Error;
use crate::client::loan::Buffer;
use crate::client::resume::{Inner, SLICE, Up};
use crate::client::sync::MutexGuard;
use crate::proto::consts::Command;
use crate::proto::request::Request;
use crate::session::{Core, Moment, Sending, Worth};
use crate::transport::Deadline;

impl Lasting {
    /// Makes every answered change permanent.
    pub(in crate::client) fn flush(
        self: &Arc<Self>,
        deadline: &Deadline,
        since: u64,
    ) -> Result<(), Error> {
        let mut operation = self.operation(deadline);
        self.flush_for(&mut operation, Some(since))
    }

    /// A flush that no client has asked for, and nobody waits for. What comes of a failure is that
    /// everything is written again before the next one.
    pub(in crate::client) fn flush_quietly(self: &Arc<Self>) {
        if let Err(error) = self.flush_on_our_own() {
            log::debug!("flush without being asked: {error}");
        }
    }

    /// A flush that no client has asked for.
    pub(super) fn flush_on_our_own(self: &Arc<Self>) -> Result<(), Error> {
        let deadline = Deadline::after_maybe(self.opener.options.times.request.get());
        let mut operation = self.operation(&deadline);
        operation.wanted = None;
        operation.hurried = true;
        self.own.fetch_add(1, Ordering::AcqRel);
        let flushed = self.flush_for(&mut operation, None);
        self.own.fetch_sub(1, Ordering::AcqRel);
        let mut inner = self.resume().lock();
        if let Err(error) = &flushed {
            // After a loss there is more reason for it, not less.
            let failed = matches!(error, Error::Failed { .. });
            if let Some(way) = inner.ways.get_mut(&self.way).filter(|_| failed) {
                way.quiet = true;
            }
        }
        // Whoever leaves waits for it.
        self.resume().tell(inner);
        flushed
    }

    pub(super) fn flush_for(
        self: &Arc<Self>,
        operation: &mut Operation,
        since: Option<u64>,
    ) -> Result<(), Error> {
        let resume = self.resume();
        let request = Request::new(Command::FLUSH, 0, 0_u32);
        let asked: Moment = resume.lock().core.moment();
        loop {
            let may = |core: &Core| core.may_flush();
            let (mut inner, up) = self.enter(operation, request, may, |_| ())?;
            if since.is_some_and(|since| since < inner.core.losses()) {
                return Err(Error::Unflushed(self.server().clone()));
            }
            if inner.core.was_flushed(up.member, asked) {
                return Ok(());
            }
            if inner.core.must_rewrite(up.member) {
                self.rewrite_before_flush(operation, inner, &up)?;
                continue;
            }
            let sending = inner.core.send_flush(up.member);
            drop(inner);
            let begun = operation.timeout.map(|_| Instant::now());
            let deadline = operation.deadline();
            let answer = self.send(&up, request, &mut Buffer::None, &deadline);
            if let Err(Error::Lost(lost)) = &answer {
                self.lost(&up.connection, lost);
                if operation.is_late() {
                    return answer.map(drop);
                }
                self.send_again(operation, begun);
                continue;
            }
            let mut inner = resume.lock();
            if answer.is_ok() {
                inner = self.await_judgement(operation, inner, sending)?;
            }
            let worth = match &answer {
                Err(Error::Crowded { .. }) => {
                    inner.core.unsent(sending, true);
                    Worth::Counts
                }
                answer => inner.core.flushed(sending, answer.is_ok()),
            };
            inner.answered_well(self.way);
            if let Some(way) = inner.ways.get_mut(&self.way).filter(|_| answer.is_ok()) {
                way.quiet = false;
            }
            resume.tell(inner);
            if worth == Worth::Counts {
                return answer.map(drop);
            }
        }
    }

    /// Waits until it can be known what a good flush is worth: whatever was to make something
    /// permanent beside it may fail, and then the flush has made nothing permanent.
    fn await_judgement<'a>(
        &'a self,
        operation: &Operation,
        mut inner: MutexGuard<'a, Inner>,
        sending: Sending,
    ) -> Result<MutexGuard<'a, Inner>, Error> {
        let resume = self.resume();
        let answered = inner.core.moment();
        let mut asked = Instant::now();
        // What belongs to others has its own time, or all the time in the world.
        let until = match operation.hurried {
            true => Deadline::after_maybe(operation.timeout),
            false => Deadline::NEVER,
        };
        while !inner.core.may_judge(answered) {
            inner = resume.hold(inner, SLICE);
            let late = until.has_passed();
            if asked.elapsed() < ASK && !late {
                continue;
            }
            asked = Instant::now();
            drop(inner);
            // Not under the lock: to ask may print a message.
            let wanted = operation.wanted.is_none_or(|wanted| wanted());
            inner = resume.lock();
            if late || !wanted || !inner.ways.contains_key(&self.way) {
                inner.core.forget_lasting(sending);
                resume.tell(inner);
                return Err(Error::Unwanted(self.server().clone()));
            }
        }
        Ok(inner)
    }

    /// Writes again what a failed flush, or who has left, has made uncertain.
    fn rewrite_before_flush(
        self: &Arc<Self>,
        operation: &Operation,
        mut inner: MutexGuard<'_, Inner>,
        up: &Up,
    ) -> Result<(), Error> {
        let resume = self.resume();
        let Some(pieces) = inner.core.begin_rewrite(up.member, false) else {
            return Ok(());
        };
        drop(inner);
        log::debug!("{}: writing again before a flush", self.server());
        let written = self.rewrite(&up.connection, up.maximum, &pieces, || {
            operation.wanted.is_none_or(|wanted| wanted())
        });
        // What was told before may be of what the server had lost.
        self.opener.options.maps.note_server();
        if let Err(Error::Lost(lost)) = written {
            // Others go on once it is buried.
            self.lost(&up.connection, &lost);
            return Ok(());
        }
        let mut inner = resume.lock();
        inner.core.end_rewrite(up.member, written.is_ok());
        resume.tell(inner);
        written
    }
}
