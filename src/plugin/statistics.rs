// SPDX-License-Identifier: BSD-3-Clause
//! Writing statistics, now and then and at the end: a thread of its own, since a file system may hang, and
//! neither requests nor nbdkit's end are to wait for that.
//!
//! The file has the newest block only, and whoever reads it sees a whole one: it is written beside it,
//! and takes its place by its name.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::guard::Failure;
use crate::config::statistics::{Format, Output, Report};
use crate::proto::codec::printable;
use crate::proto::consts::MAX_STRING;
use crate::stats::Stats;
use crate::transport::{Deadline, describe_io};

/// How long the last block may take, and any block on standard error: whoever reads that may have
/// stopped.
const PATIENCE: Duration = Duration::from_secs(5);

/// So much goes into a pipe at once or not at all, bytes, if there is room: POSIX's `PIPE_BUF` on Linux.
const AT_ONCE: usize = 4096;

/// What writes them.
#[derive(Debug)]
pub struct Statistics {
    writer: Arc<Writer>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Writer {
    report: Report,
    stats: Arc<Stats>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The last block is due.
    ending: bool,
    /// It was written, or nothing will be written any more.
    ended: bool,
}

impl Statistics {
    /// Looks whether they can be written, while somebody is there to be told. No thread yet.
    pub fn new(report: Report, stats: Arc<Stats>) -> Result<Self, Failure> {
        let writer = Writer {
            report,
            stats,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        if let Output::File(path) = &writer.report.output {
            let tried = look(path).and_then(|()| {
                let beside = write_beside(path, &writer.block())?;
                fs::remove_file(beside)
            });
            tried.map_err(|error| Failure::misuse(&refused(path, &error)))?;
        }
        Ok(Self {
            writer: Arc::new(writer),
            thread: Mutex::default(),
        })
    }

    /// Starts the thread, once.
    pub fn start(&self) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let writer = self.writer.clone();
            let builder = std::thread::Builder::new().name("nbd-stats".to_owned());
            *thread = Some(builder.spawn(move || writer.serve())?);
        }
        Ok(())
    }

    /// Has the last block written, and waits for that, but not for ever. Does nothing the second time.
    pub fn end(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread else {
            return;
        };
        let until = Deadline::after(PATIENCE);
        let mut state = self.writer.lock();
        state.ending = true;
        self.writer.changed.notify_all();
        while !state.ended {
            let left = until.remaining().unwrap_or(PATIENCE);
            if left.is_zero() {
                drop(state);
                // The thread ends with the process. It touches nothing but what it has a share of, and
                // the library stays where it is.
                if self.writer.report.output != Output::Stderr {
                    log::error!("stats: the last ones could not be written within 5 seconds");
                }
                return;
            }
            state = self.writer.wait(state, Some(left));
        }
        drop(state);
        // All that is left of it is its end.
        let _ = thread.join();
    }
}

impl Writer {
    fn serve(&self) {
        let _end = End(self);
        let mut failed = false;
        loop {
            let next = Deadline::after_maybe(self.report.interval);
            let mut state = self.lock();
            while !state.ending && !next.has_passed() {
                state = self.wait(state, next.remaining());
            }
            let last = state.ending;
            drop(state);
            self.write(&mut failed);
            if last {
                return;
            }
        }
    }

    /// Writes a block. What does not succeed is told when it begins.
    fn write(&self, failed: &mut bool) {
        let block = self.block();
        let told = match &self.report.output {
            Output::File(path) => {
                let written = look(path)
                    .and_then(|()| write_beside(path, &block))
                    .and_then(|beside| fs::rename(&beside, path).inspect_err(|_| discard(&beside)));
                written.map_err(|error| refused(path, &error))
            }
            Output::Stderr => match write_stderr(block.as_bytes(), Deadline::after(PATIENCE)) {
                // Nobody reads what is there, and a message would wait for that, and all others for it.
                Err(error) if error.kind() == ErrorKind::TimedOut => return,
                written => {
                    written.map_err(|error| format!("stats: stderr: {}", describe_io(&error)))
                }
            },
        };
        match told {
            Ok(()) => *failed = false,
            Err(message) if *failed => log::debug!("{message}"),
            Err(message) => {
                *failed = true;
                log::error!("{message}; requests are served all the same");
            }
        }
    }

    fn block(&self) -> String {
        let snapshot = self.stats.snapshot();
        match self.report.format {
            Format::Text => snapshot.text(),
            Format::Prometheus => snapshot.prometheus(&self.name()),
        }
    }

    /// What tells these statistics from those of another nbdkit.
    fn name(&self) -> String {
        match &self.report.output {
            Output::Stderr => "stderr".to_owned(),
            Output::File(path) => {
                let stem = path.file_stem().unwrap_or(path.as_os_str());
                printable(stem.as_encoded_bytes(), MAX_STRING)
            }
        }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match limit {
            None => self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                self.changed
                    .wait_timeout(state, limit)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty of telling that nothing more is written, also after a panic.
struct End<'a>(&'a Writer);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

fn refused(path: &Path, error: &io::Error) -> String {
    let path = printable(path.as_os_str().as_encoded_bytes(), MAX_STRING);
    format!("stats: {path}: {}", describe_io(error))
}

/// Refuses what is not to be replaced: a device or a directory, say, or a link to somewhere.
fn look(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if !found.is_file() => Err(io::Error::other("not a regular file")),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file beside the one that it is to replace, with a name that nobody else uses and that
/// Prometheus' collector does not look at.
fn write_beside(path: &Path, block: &str) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(name);
    // One that had the same process id may have been killed.
    discard(&beside);
    let written = File::create_new(&beside).and_then(|mut file| file.write_all(block.as_bytes()));
    match written {
        Ok(()) => Ok(beside),
        Err(error) => {
            discard(&beside);
            Err(error)
        }
    }
}

fn discard(path: &Path) {
    // If it is not there, so much the better.
    let _ = fs::remove_file(path);
}

/// Writes to standard error, whole lines at a time, and does not wait for ever for a reader.
fn write_stderr(block: &[u8], until: Deadline) -> io::Result<()> {
    let stderr = io::stderr();
    let fd = stderr.as_fd();
    let mut rest = block;
    while !rest.is_empty() {
        match poll(
            &mut [PollFd::new(&fd, PollFlags::OUT)],
            until.timespec().as_ref(),
        ) {
            Ok(0) => return Err(ErrorKind::TimedOut.into()),
            Ok(_) => (),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match rustix::io::write(fd, lines(rest)) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR | Errno::AGAIN) if !until.has_passed() => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// As many whole lines as go into a pipe at once, or as much of one line.
fn lines(rest: &[u8]) -> &[u8] {
    let most = rest.get(..AT_ONCE).unwrap_or(rest);
    let end = most.iter().rposition(|byte| *byte == b'\n');
    end.map_or(most, |end| &most[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_given_no_more_at_once_than_it_takes_whole() {
        assert_eq!(lines(b"a=1\nb=2\n"), b"a=1\nb=2\n");
        // A name need not be of ASCII, and 4096 is no multiple of 3.
        let long = "€".repeat(AT_ONCE);
        assert_eq!(lines(long.as_bytes()).len(), AT_ONCE);
        let two = format!("a=1\n{long}");
        assert_eq!(lines(two.as_bytes()), b"a=1\n");
    }
}
