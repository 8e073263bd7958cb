// SPDX-License-Identifier: BSD-3-Clause
//! A server with one disk behind all of its connections, which says so (`CAN_MULTI_CONN`), and what each
//! connection was asked for.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::disk::Disk;
use super::offer::{Offer, Request};
use super::peer::Peer;
use super::wire::{self, cmd, errno, flag};
use super::{Scripted, lock};
use crate::common::front::Front;
use crate::common::process::eventually;

/// More connections than any test makes.
const MOST: usize = 100;
const LIMIT: Duration = Duration::from_secs(20);

/// What becomes of a connection with its next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It ends without an answer.
    Die,
    /// This and all that follow are answered by ESHUTDOWN, but for flushes.
    Go,
    /// Nothing is answered any more.
    Hang,
    /// Its next write is answered when it is released; all else from then on as with [`Fate::Go`].
    GoOwing,
    /// Its answer is none, and no other connection meets anything. What was asked for is carried out when it is
    /// released, and then the connection ends.
    Break,
}

/// The server, and what it was asked for.
pub struct Farm {
    server: Scripted,
    state: Arc<State>,
}

struct State {
    disk: Mutex<Disk>,
    log: Mutex<Vec<(usize, u16)>>,
    fates: Mutex<HashMap<usize, Fate>>,
    full: AtomicBool,
    /// Somebody is owed an answer, and it may be given.
    owes: AtomicBool,
    pays: AtomicBool,
}

/// What a farm offers unless a test says otherwise.
pub fn offer() -> Offer {
    let offer = Offer::simple();
    Offer {
        flags: offer.flags | flag::CAN_MULTI_CONN,
        ..offer
    }
}

impl Farm {
    /// A server that admits any number of clients, as many as tests can have.
    pub fn start(directory: &Path) -> Self {
        Self::start_with(directory, MOST, |_| offer())
    }

    /// One that closes all connections but the first `admits`, and offers each of them something of its
    /// own, by its number.
    pub fn start_with(
        directory: &Path,
        admits: usize,
        offers: impl Fn(usize) -> Offer + Clone + Send + Sync + 'static,
    ) -> Self {
        let server = Scripted::start(directory);
        let state = Arc::new(State {
            disk: Mutex::new(Disk::new(1 << 20)),
            log: Mutex::default(),
            fates: Mutex::default(),
            full: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            pays: AtomicBool::new(false),
        });
        for number in 0..admits {
            let (state, offers) = (state.clone(), offers.clone());
            server.play(move |peer| {
                if state.full.load(Ordering::SeqCst) {
                    return Ok(());
                }
                peer.negotiate(&offers(number))?;
                state.serve(number, peer)
            });
        }
        server.close_others(true);
        Self { server, state }
    }

    pub fn socket(&self) -> &Path {
        self.server.socket()
    }

    pub fn accepted(&self) -> usize {
        self.server.accepted()
    }

    /// What a connection was asked for.
    pub fn asked(&self, number: usize) -> Vec<u16> {
        let log = lock(&self.state.log);
        let own = log.iter().filter(|(by, _)| *by == number);
        own.map(|(_, kind)| *kind).collect()
    }

    /// How often a command came, over whichever connection.
    pub fn count(&self, kind: u16) -> usize {
        let log = lock(&self.state.log);
        log.iter().filter(|(_, other)| *other == kind).count()
    }

    /// All further connections are closed at once.
    pub fn admits_no_more(&self) {
        self.state.full.store(true, Ordering::SeqCst);
    }

    /// Whether a write waits for its answer.
    pub fn owes(&self) -> bool {
        self.state.owes.load(Ordering::SeqCst)
    }

    /// It is answered.
    pub fn pays(&self) {
        self.state.pays.store(true, Ordering::SeqCst);
    }

    pub fn meets(&self, number: usize, fate: Fate) {
        lock(&self.state.fates).insert(number, fate);
    }

    /// Keeps the connections busy until requests come over so many of them.
    pub fn grow(&self, client: &mut Front, connections: usize) {
        eventually("requests come over all connections", LIMIT, || {
            self.load(client);
            let all = (0..connections).all(|number| !self.asked(number).is_empty());
            all.then_some(())
        });
    }

    /// Several reads at once.
    pub fn load(&self, client: &mut Front) {
        let reads: Vec<_> = (0..12).map(|n| client.submit_read(n * 4096, 512)).collect();
        for read in reads {
            assert_eq!(client.wait_read(read).map(drop), Ok(()));
        }
    }
}

impl State {
    fn serve(&self, number: usize, peer: &mut Peer) -> io::Result<()> {
        let mut goes = false;
        let mut owed: Option<Request> = None;
        loop {
            while owed.is_some() && !peer.readable_within(Duration::from_millis(10)) {
                let due = owed.take_if(|_| self.pays.load(Ordering::SeqCst));
                if let Some(write) = due {
                    peer.send(&self.answer(&write))?;
                    peer.answered(&write);
                    self.owes.store(false, Ordering::SeqCst);
                }
            }
            let request = peer.request()?;
            lock(&self.log).push((number, request.kind));
            if request.kind == cmd::DISC {
                return Ok(());
            }
            // A server that is not busy for a moment gets no second connection.
            thread::sleep(Duration::from_millis(2));
            let owing = self.is_owing(number);
            if owing && request.kind == cmd::WRITE {
                lock(&self.fates).remove(&number);
                goes = true;
                owed = Some(request);
                self.owes.store(true, Ordering::SeqCst);
                continue;
            }
            let fate = match owing {
                true => None,
                false => lock(&self.fates).remove(&number),
            };
            match fate {
                Some(Fate::Die) => return Ok(()),
                Some(Fate::Go) => goes = true,
                Some(Fate::Hang) => return peer.expect_closed(),
                Some(Fate::Break) => return self.break_off(&request, peer),
                Some(Fate::GoOwing) | None => (),
            }
            let answer = match goes && request.kind != cmd::FLUSH {
                true => wire::simple(request.cookie, errno::ESHUTDOWN),
                false => self.answer(&request),
            };
            peer.send(&answer)?;
            peer.answered(&request);
        }
    }

    fn break_off(&self, request: &Request, peer: &mut Peer) -> io::Result<()> {
        lock(&self.fates).clear();
        peer.send(&[0xee; 16])?;
        self.owes.store(true, Ordering::SeqCst);
        eventually("it is released", LIMIT, || {
            self.pays.load(Ordering::SeqCst).then_some(())
        });
        self.answer(request);
        Ok(())
    }

    fn is_owing(&self, number: usize) -> bool {
        lock(&self.fates).get(&number) == Some(&Fate::GoOwing)
    }

    fn answer(&self, request: &Request) -> Vec<u8> {
        lock(&self.disk).answer(request, false, None)
    }
}
