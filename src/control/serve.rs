// SPDX-License-Identifier: BSD-3-Clause
//! The thread that speaks with whoever connects: one loop around poll(2), in which nothing blocks.
//!
//! Whoever connects is of our own user, and still may be a program that hangs: there are so many at once
//! and no more, a line is so long and no longer, and whoever does not finish a line, does not read its
//! answer or does nothing at all is left after a while. One that shuts down its sending side has its
//! answer all the same.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::answer::Answer;
use super::office::Office;
use super::socket::Listener;
use super::words::{Command, Line};
use crate::transport::Doorbell;

/// Most who are connected at once.
const MOST: usize = 16;

/// Longest line, bytes, without its end.
const LINE: usize = 4096;

/// How long whoever has begun a line may take to end it, or to read some of its answer.
const SLOW: Duration = Duration::from_secs(10);

/// How long somebody may be connected and ask for nothing.
const IDLE: Duration = Duration::from_secs(60);

/// How long nobody is let in when the system has no room for another descriptor.
const NO_ROOM: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Server {
    listener: Listener,
    doorbell: Arc<Doorbell>,
    office: Arc<Office>,
    clients: Vec<Client>,
    /// What came of commands that took long, and for whom.
    results: Arc<Mutex<Vec<(u64, String)>>>,
    next: u64,
    /// Until when nobody is let in.
    full_until: Option<Instant>,
}

/// Somebody who has connected.
struct Client {
    number: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Nothing more comes.
    ended: bool,
    /// It has closed both sides: it is not answered any more, and what it has asked for before is done.
    closed: bool,
    /// It is to be left once it has read its answer.
    leaving: bool,
    /// What it asked for is still being done; whether it has hung up is told there.
    busy: Option<Arc<AtomicBool>>,
    /// When it last did something.
    since: Instant,
}

impl Server {
    pub(super) fn new(listener: Listener, doorbell: Arc<Doorbell>, office: Arc<Office>) -> Self {
        Self {
            listener,
            doorbell,
            office,
            clients: Vec::new(),
            results: Arc::default(),
            next: 0,
            full_until: None,
        }
    }

    /// Serves until nbdkit ends.
    pub(super) fn serve(mut self) {
        while !self.office.is_over() {
            // Whatever goes wrong with those who are there, others may come.
            if catch_unwind(AssertUnwindSafe(|| self.round())).is_err() {
                log::warn!(target: "control", "internal error in the thread nbd-control");
                self.clients.clear();
            }
        }
    }

    /// Waits for something to happen, and does what follows from it.
    fn round(&mut self) {
        let ready = self.wait(true);
        self.doorbell.quieten();
        for (number, text) in std::mem::take(&mut *lock(&self.results)) {
            if let Some(client) = self.clients.iter_mut().find(|one| one.number == number) {
                client.busy = None;
                client.answer(&text);
            }
        }
        self.attend_all(&ready.clients);
        if ready.listener {
            self.admit();
        }
    }

    fn attend_all(&mut self, happened: &[PollFlags]) {
        let mut clients = std::mem::take(&mut self.clients);
        for (client, flags) in clients.iter_mut().zip(happened) {
            client.note(*flags);
        }
        for client in &mut clients {
            self.attend(client);
        }
        clients.retain(|client| !client.is_over());
        self.clients = clients;
    }

    /// What has happened, or what is to happen next.
    fn wait(&self, next: bool) -> Ready {
        let admits = self.full_until.is_none_or(|until| until <= Instant::now());
        let listens = if admits {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut fds = vec![
            PollFd::new(&*self.doorbell, PollFlags::IN),
            PollFd::new(self.listener.socket(), listens),
        ];
        fds.extend(
            self.clients
                .iter()
                .map(|client| PollFd::new(&client.stream, client.awaits())),
        );
        let left = self.clients.iter().filter_map(Client::time_left);
        let full = self
            .full_until
            .map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.chain(full.filter(|_| !admits)).min();
        let left = if next { left } else { Some(Duration::ZERO) };
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // Only a signal; whatever happened is seen the next time.
            return Ready {
                listener: false,
                clients: vec![PollFlags::empty(); self.clients.len()],
            };
        }
        let mut flags = fds.iter().map(PollFd::revents).skip(1);
        Ready {
            listener: admits && flags.next().is_some_and(|flags| !flags.is_empty()),
            clients: flags.collect(),
        }
    }

    /// Lets in whoever has come.
    fn admit(&mut self) {
        self.full_until = None;
        loop {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    log::debug!("control: {error}");
                    self.full_until = Some(Instant::now() + NO_ROOM);
                    return;
                }
            };
            self.next += 1;
            let mut client = Client::new(self.next, stream);
            if self.clients.len() >= MOST {
                // Somebody may have left meanwhile.
                let ready = self.wait(false);
                self.attend_all(&ready.clients);
            }
            if self.clients.len() >= MOST {
                let many = format!("{MOST} are connected already");
                client.refuse(&many);
                // It fits into the socket, and nobody waits for it to be read.
                client.send();
                client.hang_up();
                continue;
            }
            self.clients.push(client);
        }
    }

    /// Takes what a client has sent, and answers as much of it as there is room for.
    fn attend(&mut self, client: &mut Client) {
        while let Some(line) = client.next_line() {
            let Line { text, command } = Line::parse(&line);
            match command {
                Err(error) => client.answer(&Answer::Failed(error.to_string()).render(text)),
                Ok(command) if Office::is_quick(&command) => {
                    client.answer(&carry_out(&self.office, command, &|| true).render(text));
                }
                Ok(command) => self.carry_out_aside(client, command, text),
            }
        }
        client.send();
        client.look_at_clock();
    }

    /// Has a thread of its own do what waits for others.
    fn carry_out_aside(&self, client: &mut Client, command: Command, text: bool) {
        let gone = Arc::new(AtomicBool::new(client.closed));
        let (office, results) = (self.office.clone(), self.results.clone());
        let (doorbell, number) = (self.doorbell.clone(), client.number);
        let theirs = gone.clone();
        let task = move || {
            let wanted = || !theirs.load(Ordering::Acquire);
            let answer = carry_out(&office, command, &wanted).render(text);
            lock(&results).push((number, answer));
            doorbell.ring();
        };
        match self.office.run(Box::new(task)) {
            true if client.closed => (),
            true => client.busy = Some(gone),
            false => client.refuse("there is no thread for it"),
        }
    }
}

/// What has happened.
struct Ready {
    listener: bool,
    clients: Vec<PollFlags>,
}

fn carry_out(office: &Office, command: Command, wanted: &dyn Fn() -> bool) -> Answer {
    let answer = || office.carry_out(command, wanted);
    catch_unwind(AssertUnwindSafe(answer))
        .unwrap_or_else(|_| Answer::Failed("internal error".to_owned()))
}

impl Client {
    fn new(number: u64, stream: UnixStream) -> Self {
        Self {
            number,
            stream,
            input: Vec::new(),
            output: Vec::new(),
            ended: false,
            closed: false,
            leaving: false,
            busy: None,
            since: Instant::now(),
        }
    }

    /// What to wait for. That it has hung up is always told.
    fn awaits(&self) -> PollFlags {
        if !self.output.is_empty() {
            PollFlags::OUT
        } else if self.busy.is_none() && !self.ended {
            PollFlags::IN
        } else {
            PollFlags::empty()
        }
    }

    /// Something has happened to it.
    fn note(&mut self, flags: PollFlags) {
        let gone = flags.intersects(PollFlags::HUP | PollFlags::ERR);
        if gone && self.busy.is_some() {
            self.hang_up();
        } else if gone {
            self.closed = true;
            self.output.clear();
            self.receive();
        } else if flags.contains(PollFlags::IN) {
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; LINE];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.ended = true,
            Ok(count) => {
                if self.input.is_empty() {
                    self.since = Instant::now();
                }
                self.input.extend_from_slice(&bytes[..count]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => (),
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Err(_) => self.hang_up(),
        }
    }

    /// The next line, if it is time for one. The last one may end with what was sent.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        if self.busy.is_some() || self.leaving || !self.output.is_empty() {
            return None;
        }
        let end = self.input.iter().position(|byte| *byte == b'\n');
        if end.unwrap_or(self.input.len()) > LINE {
            self.refuse(&format!("a command is at most {LINE} bytes long"));
            return None;
        }
        let line = match end {
            Some(end) => {
                let mut line: Vec<u8> = self.input.drain(..=end).collect();
                line.pop();
                line
            }
            None if self.ended && !self.input.is_empty() => std::mem::take(&mut self.input),
            None => return None,
        };
        self.since = Instant::now();
        Some(line)
    }

    fn answer(&mut self, text: &str) {
        if self.closed {
            return;
        }
        self.output.extend_from_slice(text.as_bytes());
        self.since = Instant::now();
        self.send();
    }

    /// Answers that nothing more is taken.
    fn refuse(&mut self, why: &str) {
        self.leaving = true;
        // Who has not asked for anything yet is told in JSON.
        let text = self.input.starts_with(b"text ");
        self.input.clear();
        self.answer(&Answer::Failed(why.to_owned()).render(text));
    }

    fn send(&mut self) {
        while !self.output.is_empty() {
            match send(&self.stream, &self.output, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.output.drain(..count);
                    self.since = Instant::now();
                }
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return,
                Err(_) => return self.hang_up(),
            }
        }
    }

    /// How much longer it is waited for.
    fn time_left(&self) -> Option<Duration> {
        let limit = match () {
            () if self.busy.is_some() => return None,
            () if !self.output.is_empty() || !self.input.is_empty() => SLOW,
            () => IDLE,
        };
        Some(limit.saturating_sub(self.since.elapsed()))
    }

    fn look_at_clock(&mut self) {
        if self.time_left() != Some(Duration::ZERO) {
            return;
        }
        if self.output.is_empty() && !self.input.is_empty() {
            self.refuse("the command has no end");
        } else {
            self.hang_up();
        }
    }

    /// Whoever waits for an answer of it need not.
    fn hang_up(&mut self) {
        if let Some(gone) = self.busy.take() {
            gone.store(true, Ordering::Release);
        }
        self.input.clear();
        self.output.clear();
        self.leaving = true;
    }

    fn is_over(&self) -> bool {
        let done = self.output.is_empty() && self.busy.is_none();
        done && (self.leaving || (self.ended && self.input.is_empty()))
    }
}

impl Drop for Client {
    /// Also where a panic has left it.
    fn drop(&mut self) {
        self.hang_up();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who has done nothing for so long, and the other end.
    fn idle(time: Duration) -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("nonblocking");
        let mut client = Client::new(0, ours);
        client.since = Instant::now().checked_sub(time).expect("long after boot");
        (client, theirs)
    }

    #[test]
    fn half_a_command_is_refused_after_a_while() {
        let (mut client, mut theirs) = idle(SLOW / 2);
        client.input.extend(b"sta");
        client.look_at_clock();
        assert!(!client.is_over());
        client.since -= SLOW;
        client.look_at_clock();
        assert!(client.is_over());
        drop(client);
        let mut told = String::new();
        theirs.read_to_string(&mut told).expect("text");
        assert!(told.contains("the command has no end"), "{told}");
    }

    #[test]
    fn who_does_not_read_an_answer_is_left_after_a_while() {
        let (mut client, _theirs) = idle(SLOW);
        client.output.extend(b"{}");
        client.look_at_clock();
        assert!(client.is_over());
    }

    #[test]
    fn who_asks_for_nothing_has_longer_and_who_is_served_for_ever() {
        let (mut client, _theirs) = idle(SLOW);
        client.look_at_clock();
        assert!(!client.is_over());
        client.since -= IDLE;
        client.busy = Some(Arc::default());
        client.look_at_clock();
        assert!(!client.is_over());
        client.busy = None;
        client.look_at_clock();
        assert!(client.is_over());
    }
}
