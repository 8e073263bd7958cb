// SPDX-License-Identifier: BSD-3-Clause
//! What a server that we started says on its standard error: passed on to our own, and the end of
//! it kept for its obituary.
//!
//! Each word is meant to be told once. While a start is going on the last lines are held back, for
//! they may become the reason why it fails; later the obituary leaves out what was passed on.
//!
//! Whoever takes words from the server never waits for our own standard error: what cannot be passed
//! on at once stays until it can, or until there is too much of it.

use std::collections::VecDeque;
use std::io::stderr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl, fstat, major, minor};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::proto::codec::printable;
use crate::transport::{Deadline, Doorbell, Error};

/// Bytes kept.
const KEPT: usize = 4096;

/// Lines of an obituary, and bytes of each.
const LAST_LINES: usize = 5;
const LINE: usize = 400;

/// Bytes taken, and passed on, at a time. A pipe that poll(2) calls writable has room for as many.
const PIECE: usize = 4096;

/// What the pipe may hold while nobody reads it, and what may wait to be passed on. For pipes it is
/// the default limit for ordinary users.
const PIPE: usize = 1 << 20;

/// Pieces taken in a row: all that the pipe can hold, and no more, since a server that never
/// pauses must not keep anybody.
const PIECES: usize = PIPE / PIECE;

/// How long the last words may take to be passed on when all else is done.
const FAREWELL: Duration = Duration::from_millis(200);

/// Where the text goes besides.
#[derive(Debug)]
pub enum Echo {
    /// To our own standard error, which is another file after nbdkit went to the background.
    Stderr,
    /// Nowhere.
    #[cfg(test)]
    Nowhere,
    /// To somebody who may or may not read.
    #[cfg(test)]
    To(OwnedFd),
}

impl Echo {
    fn with<T>(&self, use_it: impl FnOnce(Option<BorrowedFd<'_>>) -> T) -> T {
        match self {
            Self::Stderr => use_it(Some(stderr().as_fd())),
            #[cfg(test)]
            Self::Nowhere => use_it(None),
            #[cfg(test)]
            Self::To(fd) => use_it(Some(fd.as_fd())),
        }
    }

    /// Whether anybody can see it.
    fn is_seen(&self) -> bool {
        self.with(|fd| fd.is_some_and(|fd| !is_null_device(fd)))
    }

    /// Writes as much as is taken before the deadline, and says how much.
    fn write(&self, text: &[u8], deadline: Deadline) -> usize {
        self.with(|fd| fd.map_or(text.len(), |fd| write_some(fd, text, deadline)))
    }
}

/// The reading end of a server's standard error.
#[derive(Debug)]
pub struct Words {
    pipe: OwnedFd,
    echo: Echo,
    said: Mutex<Said>,
    bell: Doorbell,
    stop: AtomicBool,
}

#[derive(Debug)]
struct Said {
    /// The last bytes of all.
    kept: Vec<u8>,
    /// Bytes that were not passed on yet.
    pending: VecDeque<u8>,
    /// The last lines are not to be passed on for now.
    held: bool,
    ended: bool,
}

impl Words {
    /// Both ends.
    pub fn pipe(echo: Echo) -> Result<(Self, OwnedFd), Error> {
        let (pipe, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::io("pipe"))?;
        // Only our end: theirs has its own flags.
        fcntl_setfl(&pipe, OFlags::NONBLOCK).map_err(Error::io("fcntl"))?;
        // A smaller pipe does, too, for a server that says little.
        let _ = fcntl_setpipe_size(&pipe, PIPE);
        let words = Self {
            pipe,
            echo,
            said: Mutex::new(Said {
                kept: Vec::new(),
                pending: VecDeque::new(),
                held: false,
                ended: false,
            }),
            bell: Doorbell::new()?,
            stop: AtomicBool::new(false),
        };
        Ok((words, theirs))
    }

    /// The reading end, for whoever reads when we are gone.
    pub fn reading_end(&self) -> &OwnedFd {
        &self.pipe
    }

    /// What to poll for more. `None` when there will be no more.
    pub fn more(&self) -> Option<BorrowedFd<'_>> {
        (!self.said().ended).then(|| self.pipe.as_fd())
    }

    /// Takes what is there, and passes on what can be passed on at once. For the time in which no
    /// thread listens.
    pub fn relay(&self) {
        self.take();
        self.pass_on(Duration::ZERO);
    }

    /// From now on the last lines wait for what becomes of the server.
    pub fn hold(&self) {
        self.said().held = true;
    }

    /// Nothing is held back any longer.
    pub fn release(&self) {
        self.said().held = false;
        self.pass_on(Duration::ZERO);
    }

    /// Takes all and passes it on until [`Words::stop`], or until all who could say something are
    /// gone.
    pub fn listen(&self) {
        self.said().held = false;
        loop {
            let stop = self.stop.load(Ordering::Relaxed);
            self.take();
            self.pass_on(if stop { FAREWELL } else { Duration::ZERO });
            if stop || self.is_over() || !self.await_news() {
                return;
            }
        }
    }

    /// Ends [`Words::listen`] in the other thread, soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    /// What was said until now is no longer among the last words, as another server speaks from now
    /// on.
    pub fn begin_anew(&self) {
        self.take();
        self.said().kept.clear();
    }

    /// What was not passed on yet has a last chance, a brief one.
    pub fn finish(&self) {
        self.said().held = false;
        self.take();
        self.pass_on(FAREWELL);
    }

    /// The last lines, in one; they are not passed on then. If what is told here is told in the same
    /// place (`aloud`) as what is passed on, what was passed on is left out.
    pub fn last_lines(&self, aloud: bool) -> String {
        self.take();
        let mut said = self.said();
        let leave_out = aloud && self.echo.is_seen();
        let known = said.kept.len().saturating_sub(said.pending.len());
        let text = &said.kept[if leave_out { known } else { 0 }..];
        let lines: Vec<_> = text
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        let told = last.iter().map(|line| printable(line, LINE));
        let told = told.collect::<Vec<_>>().join("; ");
        if leave_out && last.iter().all(|line| line.len() <= LINE) {
            let begin = last.first().map_or(text.len(), |first| {
                first.as_ptr().addr().saturating_sub(text.as_ptr().addr())
            });
            let rest = said.pending.len().saturating_sub(text.len() - begin);
            said.pending.truncate(rest);
        }
        drop(said);
        // Whoever listens may have more to pass on now.
        self.bell.ring();
        told
    }

    /// Takes what is there. Any thread may do so.
    fn take(&self) {
        let mut piece = [0; PIECE];
        for _ in 0..PIECES {
            let mut said = self.said();
            match rustix::io::read(&self.pipe, &mut piece) {
                Ok(0) => {
                    said.ended = true;
                    return;
                }
                Ok(n) => said.add(&piece[..n]),
                Err(Errno::INTR) => (),
                Err(_) => return,
            }
        }
    }

    /// Passes on what is due as long as somebody reads, and waits only so long for that. To be
    /// called by one thread at a time.
    fn pass_on(&self, patience: Duration) {
        let deadline = Deadline::after(patience);
        loop {
            let piece = self.said().next_piece();
            if piece.is_empty() {
                return;
            }
            let written = self.echo.write(&piece, deadline);
            if written < piece.len() {
                self.said().put_back(&piece[written..]);
                return;
            }
        }
    }

    /// Waits for words, for somebody who reads what could not be passed on, or for the bell. False
    /// when waiting is of no use.
    fn await_news(&self) -> bool {
        let pending = self.said().due() > 0;
        let pipe = self.more();
        let bell = self.bell.fd.as_fd();
        let news = self.echo.with(|sink| {
            // What there is nothing to hear from is replaced by the bell once more, without events.
            let (mouth, events) = match sink.filter(|_| pending) {
                Some(sink) => (sink, PollFlags::OUT),
                None => (bell, PollFlags::empty()),
            };
            let mut fds = [
                PollFd::from_borrowed_fd(bell, PollFlags::IN),
                PollFd::from_borrowed_fd(pipe.unwrap_or(bell), PollFlags::IN),
                PollFd::from_borrowed_fd(mouth, events),
            ];
            poll(&mut fds, None)
        });
        self.bell.quieten();
        matches!(news, Ok(_) | Err(Errno::INTR))
    }

    fn is_over(&self) -> bool {
        let said = self.said();
        said.ended && said.pending.is_empty()
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    fn add(&mut self, text: &[u8]) {
        self.kept.extend_from_slice(text);
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
        self.pending.extend(text);
        let surplus = self.pending.len().saturating_sub(PIPE);
        self.pending.drain(..surplus);
    }

    /// How many bytes are to be passed on by now.
    fn due(&self) -> usize {
        let held = if self.held { KEPT } else { 0 };
        self.pending.len().saturating_sub(held)
    }

    fn next_piece(&mut self) -> Vec<u8> {
        let length = self.due().min(PIECE);
        self.pending.drain(..length).collect()
    }

    fn put_back(&mut self, text: &[u8]) {
        text.iter()
            .rev()
            .for_each(|byte| self.pending.push_front(*byte));
    }
}

/// Whether our own standard error is stuck, so that a line of ours would be waited for.
pub fn is_stderr_stuck() -> bool {
    !is_writable(stderr().as_fd(), Deadline::after(Duration::ZERO))
}

fn is_writable(fd: BorrowedFd<'_>, deadline: Deadline) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    loop {
        match poll(&mut fds, deadline.timespec().as_ref()) {
            Err(Errno::INTR) => (),
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

fn write_some(fd: BorrowedFd<'_>, text: &[u8], deadline: Deadline) -> usize {
    let mut written = 0;
    while written < text.len() && is_writable(fd, deadline) {
        match rustix::io::write(fd, &text[written..]) {
            Ok(n) => written += n,
            Err(Errno::INTR) => (),
            Err(Errno::AGAIN) if deadline.has_passed() => break,
            Err(Errno::AGAIN) => (),
            // It concerns nobody but the reader, who is gone then.
            Err(_) => return text.len(),
        }
    }
    written
}

fn is_null_device(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &[u8]) -> String {
        let (words, theirs) = Words::pipe(Echo::Nowhere).expect("pipe");
        rustix::io::write(&theirs, text).expect("write");
        words.last_lines(true)
    }

    /// Words that are passed on to the last of the three.
    fn passed_on() -> (Words, OwnedFd, OwnedFd) {
        let (reader, sink) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        let (words, theirs) = Words::pipe(Echo::To(sink)).expect("pipe");
        (words, theirs, reader)
    }

    fn say(theirs: &OwnedFd, text: &[u8]) {
        assert_eq!(rustix::io::write(theirs, text), Ok(text.len()));
    }

    /// What was passed on since the last time.
    fn heard(reader: &OwnedFd) -> String {
        let mut text = [0; PIPE];
        let length = rustix::io::read(reader, &mut text).unwrap_or(0);
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    #[test]
    fn the_last_lines_are_joined() {
        assert_eq!(said(b""), "");
        assert_eq!(said(b"no disk\n"), "no disk");
        assert_eq!(said(b"1\n2\n3\n\n4\n 5 \n6"), "2; 3; 4; 5; 6");
    }

    #[test]
    fn they_are_fit_for_a_log() {
        assert_eq!(said(b"\x1b[31mred\xff\n"), "\\u{1b}[31mred\u{fffd}");
        assert!(said(&[b'x'; 60_000]).len() <= LINE + 3);
    }

    #[test]
    fn listening_ends_when_told_to_and_when_nobody_is_left() {
        let (words, theirs) = Words::pipe(Echo::Nowhere).expect("pipe");
        words.stop();
        words.listen();
        assert!(words.more().is_some());
        drop(theirs);
        words.relay();
        assert!(words.more().is_none());
        words.listen();
    }

    #[test]
    fn what_was_passed_on_is_not_told_again_in_the_same_place() {
        let (words, theirs, reader) = passed_on();
        say(&theirs, b"early\n");
        words.relay();
        assert_eq!(heard(&reader), "early\n");
        say(&theirs, b"late\n");
        assert_eq!(words.last_lines(true), "late");
        words.finish();
        assert_eq!(heard(&reader), "", "it was told");
        assert_eq!(words.last_lines(false), "early; late");
    }

    #[test]
    fn what_nobody_saw_is_told() {
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
        let (words, theirs) = Words::pipe(Echo::To(null.expect("open").into())).expect("pipe");
        say(&theirs, b"a word\n");
        words.relay();
        assert_eq!(words.last_lines(true), "a word");
        assert_eq!(words.last_lines(true), "a word");
    }

    #[test]
    fn last_lines_that_are_held_back_are_told_or_passed_on() {
        let (words, theirs, reader) = passed_on();
        words.hold();
        say(&theirs, b"1\n2\n3\n4\n5\n6\n7\n");
        words.relay();
        assert_eq!(heard(&reader), "");
        assert_eq!(words.last_lines(true), "3; 4; 5; 6; 7");
        words.release();
        assert_eq!(heard(&reader), "1\n2\n");

        words.hold();
        say(&theirs, &[b'x'; KEPT + 10]);
        words.relay();
        assert_eq!(heard(&reader), "x".repeat(10), "no more is held back");
        words.release();
        assert_eq!(heard(&reader), "x".repeat(KEPT));
    }

    #[test]
    fn a_line_that_is_told_in_part_is_passed_on_whole() {
        let (words, theirs, reader) = passed_on();
        words.hold();
        say(&theirs, &[b'x'; LINE + 1]);
        assert_eq!(words.last_lines(true), format!("{}...", "x".repeat(LINE)));
        words.release();
        assert_eq!(heard(&reader), "x".repeat(LINE + 1));
    }

    #[test]
    fn a_reader_who_does_not_read_holds_up_nobody() {
        let (words, theirs, reader) = passed_on();
        let begin = std::time::Instant::now();
        for _ in 0..4 {
            (0..PIECES).for_each(|_| say(&theirs, &[b'x'; PIECE]));
            words.relay();
        }
        say(&theirs, b"\nbye\n");
        assert!(words.last_lines(true).ends_with("bye"));
        words.finish();
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!(words.said().pending.len() <= PIPE + PIECE);
        drop(reader);
        words.finish();
        assert!(words.said().pending.is_empty(), "nobody will ever read it");
    }

    #[test]
    fn a_reader_who_comes_late_gets_what_waits() {
        let (words, theirs, reader) = passed_on();
        let text: Vec<u8> = (0..40u8).flat_map(|n| [b'a' + n % 26; PIECE]).collect();
        say(&theirs, &text);
        let words = std::sync::Arc::new(words);
        let listener = std::thread::spawn({
            let words = words.clone();
            move || words.listen()
        });
        drop(theirs);
        let mut all = String::new();
        let deadline = Deadline::after(Duration::from_secs(20));
        while all.len() < text.len() {
            assert!(!deadline.has_passed(), "only {} came", all.len());
            all += &heard(&reader);
        }
        assert_eq!(all.as_bytes(), text);
        listener.join().expect("no panic");
    }
}
