// SPDX-License-Identifier: BSD-3-Clause
//! The journal is written again over a connection, several pieces at once, and for as long as that is
//! wanted: everybody else is held meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use super::connection::Connection;
use super::error::{Cause, Error};
use super::lasting::{ASK, Lasting};
use super::loan::Buffer;
use super::pool::PATIENCE;
use crate::proto::consts::{Command, CommandFlags, TransmissionFlags};
use crate::proto::request::Request;
use crate::session::{Content, Piece};
use crate::stats::Event;
use crate::transport::{self, Deadline};

/// So many pieces of the journal are on their way at once.
const WRITERS: usize = 8;

/// Longest stretch of zeroes in one request, bytes. A server may have to write them, and it is the
/// answers that show that it goes on.
const ZEROING: u64 = 32 << 20;

/// Longest stretch of zeroes that is written as data at once, bytes.
const ZEROES: usize = 64 * 1024;

impl Lasting {
    /// Writes pieces of the journal over a connection, several at once. If it is not wanted any more, or
    /// holds others for nothing, the connection is given up, and the error says that it was lost.
    pub(super) fn rewrite(
        &self,
        connection: &Connection,
        maximum: u32,
        pieces: &[Piece],
        wanted: impl Fn() -> bool,
    ) -> Result<(), Error> {
        if pieces.is_empty() {
            return Ok(());
        }
        self.opener.options.note(Event::Replay);
        self.resume().lock().begin_progress();
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let write = || {
            while !failed.load(Ordering::Relaxed) {
                let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                if let Err(error) = self.write_piece(connection, maximum, piece) {
                    failed.store(true, Ordering::Relaxed);
                    lock(&failure).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            let mut writers = Vec::new();
            let (done, ends) = mpsc::channel();
            for _ in 0..WRITERS.min(pieces.len()) {
                let builder = std::thread::Builder::new().name("nbd-replay".to_owned());
                let (write, done) = (&write, done.clone());
                let body = move || {
                    write();
                    // Who waits for it is there until all have said so.
                    let _ = done.send(());
                };
                // With fewer of them it takes longer.
                writers.extend(builder.spawn_scoped(scope, body));
            }
            drop(done);
            if writers.is_empty() {
                write();
            }
            // This thread may serve a client, and knows whether that is still there; a panic of a
            // writer's ends the waiting, too.
            let mut left = writers.len();
            while left > 0 {
                match ends.recv_timeout(ASK) {
                    Ok(()) => left -= 1,
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        let why = match wanted() {
                            false => Some(Cause::GivenUp(transport::Error::Unwanted)),
                            true => self.holds_in_vain(connection),
                        };
                        if let Some(why) = why {
                            connection.give_up_softly(why);
                        }
                    }
                }
            }
            // The scope waits for what threads do, not for their end, and that is our code as well.
            for writer in writers {
                // What it was about to write is missing.
                if writer.join().is_err() {
                    lock(&failure).get_or_insert(connection.failed_by_panic());
                }
            }
        });
        self.resume().lock().note_progress(true);
        lock(&failure).take().map_or(Ok(()), Err)
    }

    /// Others are served, but for now: a connection that hangs is not to hold them.
    fn holds_in_vain(&self, connection: &Connection) -> Option<Cause> {
        let inner = self.resume().lock();
        let hangs = !inner.makes_progress(PATIENCE) && inner.holds_others(connection);
        hangs.then_some(Cause::Stalled(transport::Error::Timeout(PATIENCE)))
    }

    /// How long a piece of the journal may take.
    fn timeout(&self) -> Option<Duration> {
        let times = &self.opener.options.times;
        times.request.get().or(self.terms.limit.get())
    }

    fn write_piece(
        &self,
        connection: &Connection,
        maximum: u32,
        piece: &Piece,
    ) -> Result<(), Error> {
        let timeout = self.timeout();
        let write = |offset: u64, bytes: &[u8]| {
            let mut at = offset;
            for part in bytes.chunks(maximum as usize) {
                let request = Request::new(Command::WRITE, at, part.len() as u32);
                let deadline = Deadline::after_maybe(timeout);
                connection.submit(request, &mut Buffer::Source(part), &deadline)?;
                self.note_replayed(part.len() as u64);
                at += part.len() as u64;
            }
            Ok(())
        };
        match piece.contents.as_slice() {
            [Content::Bytes(bytes)] => write(piece.offset, bytes),
            [Content::Zeroes { no_hole }] => self.zero_piece(connection, piece, *no_hole, write),
            several => {
                let mut bytes = Vec::with_capacity(piece.length as usize);
                for content in several {
                    if let Content::Bytes(part) = content {
                        bytes.extend_from_slice(part);
                    }
                }
                write(piece.offset, &bytes)
            }
        }
    }

    /// A request of the journal's was made again.
    fn note_replayed(&self, length: u64) {
        self.resume().lock().note_progress(false);
        let options = &self.opener.options;
        options.note(Event::ReplayRequest);
        options.note_all(Event::ReplayByte, length);
    }

    fn zero_piece(
        &self,
        connection: &Connection,
        piece: &Piece,
        no_hole: bool,
        write: impl Fn(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let export = self.volume.export();
        let mut can = export.can(TransmissionFlags::SEND_WRITE_ZEROES);
        let timeout = self.timeout();
        let zeroes = [0; ZEROES];
        let mut at = 0;
        while at < piece.length {
            let left = piece.length - at;
            if !can {
                let length = left.min(ZEROES as u64);
                write(piece.offset + at, &zeroes[..length as usize])?;
                at += length;
                continue;
            }
            let length = left.min(ZEROING);
            let mut request = Request::new(Command::WRITE_ZEROES, piece.offset + at, length as u32);
            request.flags.set(CommandFlags::NO_HOLE, no_hole);
            let deadline = Deadline::after_maybe(timeout);
            match connection.submit(request, &mut Buffer::None, &deadline) {
                // It may take less at once than its predecessor did.
                Err(error @ Error::Failed { .. }) => {
                    log::debug!("{error}; writing zeroes as data");
                    can = false;
                }
                answer => {
                    answer?;
                    self.note_replayed(length);
                    at += length;
                }
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
