//! What a server that we started says on its standard error: passed on to our own, and the end of
//! it kept for its obituary.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::proto::codec::printable;
use crate::transport::{Doorbell, Error};

/// Bytes kept.
const KEPT: usize = 4096;

/// Lines of an obituary, and bytes of each.
const LAST_LINES: usize = 5;
const LINE: usize = 400;

/// Bytes taken at a time. A pipe that poll(2) calls writable has room for as many.
const PIECE: usize = 4096;

/// What the pipe may hold while nobody reads it. The default limit for ordinary users.
const PIPE: usize = 1 << 20;

/// Pieces taken in a row: all that the pipe can hold, and no more, since a server that never
/// pauses must not keep anybody.
const PIECES: usize = PIPE / PIECE;

/// How long our own standard error may block before text is dropped.
const ECHO_PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Where the text goes besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// To our own standard error.
    Stderr,
    /// Nowhere.
    #[cfg(test)]
    Nowhere,
}

/// The reading end of a server's standard error.
#[derive(Debug)]
pub struct Words {
    pipe: OwnedFd,
    echo: Echo,
    last: Mutex<Last>,
    bell: Doorbell,
}

#[derive(Debug)]
struct Last {
    bytes: Vec<u8>,
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
            last: Mutex::new(Last {
                bytes: Vec::new(),
                ended: false,
            }),
            bell: Doorbell::new()?,
        };
        Ok((words, theirs))
    }

    /// What to poll for more. `None` when there will be no more.
    pub fn more(&self) -> Option<BorrowedFd<'_>> {
        (!self.last().ended).then(|| self.pipe.as_fd())
    }

    /// Takes what is there. Any thread may do so.
    pub fn take(&self) {
        let mut piece = [0; PIECE];
        let mut echo = self.echo == Echo::Stderr;
        for _ in 0..PIECES {
            let mut last = self.last();
            match rustix::io::read(&self.pipe, &mut piece) {
                Ok(0) => {
                    last.ended = true;
                    return;
                }
                Ok(n) => {
                    last.keep(&piece[..n]);
                    drop(last);
                    echo = echo && pass_on(&piece[..n]);
                }
                Err(Errno::INTR) => (),
                Err(_) => return,
            }
        }
    }

    /// Takes all until [`Words::stop`], or until all who could say something are gone.
    pub fn listen(&self) {
        while let Some(pipe) = self.more() {
            let mut fds = [
                PollFd::new(&pipe, PollFlags::IN),
                PollFd::new(&self.bell.fd, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => (),
                Err(_) => return,
            }
            let stop = !fds[1].revents().is_empty();
            self.take();
            if stop {
                return;
            }
        }
    }

    /// Ends [`Words::listen`] in the other thread, soon.
    pub fn stop(&self) {
        self.bell.ring();
    }

    /// The last lines, in one.
    pub fn last_lines(&self) -> String {
        self.take();
        let last = self.last();
        let lines: Vec<_> = last
            .bytes
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .map(|line| printable(line, LINE))
            .collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("; ")
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Last {
    fn keep(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        let surplus = self.bytes.len().saturating_sub(KEPT);
        self.bytes.drain(..surplus);
    }
}

/// False if our own standard error is stuck: where our own words get lost, theirs may as well.
fn pass_on(text: &[u8]) -> bool {
    let stderr = std::io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut fds, Some(&ECHO_PATIENCE)) != Ok(1) {
        return false;
    }
    // A failure concerns nobody but the reader, who is gone then.
    let _ = rustix::io::write(stderr.as_fd(), text);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &[u8]) -> String {
        let (words, theirs) = Words::pipe(Echo::Nowhere).expect("pipe");
        rustix::io::write(&theirs, text).expect("write");
        words.last_lines()
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
        words.take();
        assert!(words.more().is_none());
        words.listen();
    }
}
