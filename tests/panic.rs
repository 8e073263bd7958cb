// SPDX-License-Identifier: BSD-3-Clause
//! A thread that panics while it serves a connection ends that connection, and nobody waits for ever.
//!
//! This links the crate, since nbdkit gives the plugin no reason to panic. Here the logger does: it panics on
//! whatever thread reports a reply to the read at [`POISON`], which the server makes known before it answers
//! ([`POISONED`]), or that it sends the one at [`STILLBORN`].

mod common;
#[path = "common/open.rs"]
mod open;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use common::scripted::peer::{Offer, Request};
use common::scripted::wire::{self, cmd};
use common::scripted::{Gate, Scripted};
use log::{LevelFilter, Log, Metadata, Record};
use nbdkit_nbd_plugin::client::Client;
use nbdkit_nbd_plugin::client::error::Error;
use open::open;

const POISON: u64 = 1 << 20;
const STILLBORN: u64 = 2 << 20;
const LENGTH: usize = 512;
/// Until when every request must have ended.
const LIMIT: Duration = Duration::from_secs(20);

/// How the lines begin that are too much for the logger.
static POISONED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Fragile;

impl Log for Fragile {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = record.args().to_string();
        let poisoned = POISONED.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = poisoned.iter().any(|start| line.starts_with(start));
        drop(poisoned);
        let sending =
            line.contains("request with") && line.ends_with(&format!("offset {STILLBORN}"));
        assert!(!reply && !sending, "this is too much: {line}");
    }

    fn flush(&self) {}
}

fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Fragile).expect("there is no other logger");
        log::set_max_level(LevelFilter::Trace);
    });
}

/// A request that a thread of its own makes.
#[derive(Clone, Copy)]
enum Ask {
    Read {
        offset: u64,
        length: usize,
    },
    /// The server takes only its header.
    Write {
        length: usize,
    },
}

/// A short read.
fn read(offset: u64) -> Ask {
    Ask::Read {
        offset,
        length: LENGTH,
    }
}

/// How a request ended: `None` if its thread panicked.
type Outcome = Option<Result<(), Error>>;

fn start(client: &Arc<Client>, ask: Ask) -> Receiver<Result<(), Error>> {
    let (tell, outcome) = mpsc::channel();
    let client = Arc::clone(client);
    thread::spawn(move || {
        let result = match ask {
            Ask::Read { offset, length } => client.read(&mut vec![0; length], offset),
            Ask::Write { length } => client.write(&vec![0; length], 0, false),
        };
        tell.send(result)
    });
    outcome
}

fn outcome(receiver: &Receiver<Result<(), Error>>) -> Outcome {
    match receiver.recv_timeout(LIMIT) {
        Ok(result) => Some(result),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("a request waits for ever"),
    }
}

/// Makes requests, each when the server has the one before, so that the first thread (as a rule) receives for
/// all. Then the server sends `reply`, and `more` is asked. One thread must panic, and all others get an error.
fn play(asks: &[Ask], reply: impl Fn(&[Request]) -> Vec<u8> + Send + Sync + 'static, more: &[Ask]) {
    listen();
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let arrived: Vec<Gate> = asks.iter().map(|_| Gate::default()).collect();
    let ticket = server.play({
        let arrived = arrived.clone();
        let name = server.socket().display().to_string();
        move |peer| {
            let size = 64 << 20;
            peer.negotiate(&Offer {
                size,
                ..Offer::simple()
            })?;
            let mut requests = Vec::new();
            for gate in &arrived {
                let request = peer.request_header()?;
                if request.offset == POISON {
                    let start = format!("{name}: reply to cookie 0x{:x}: ", request.cookie);
                    POISONED.lock().expect("no panic meanwhile").push(start);
                }
                requests.push(request);
                gate.open();
            }
            peer.send(&reply(&requests))?;
            peer.expect_closed()
        }
    });

    let client = Arc::new(open(server.socket()).expect("open"));
    let mut started = Vec::new();
    for (ask, gate) in asks.iter().zip(&arrived) {
        started.push(start(&client, *ask));
        gate.pass();
    }
    started.extend(more.iter().map(|ask| start(&client, *ask)));
    let outcomes: Vec<Outcome> = started.iter().map(outcome).collect();
    let survivors = outcomes.into_iter().flatten();
    assert_eq!(survivors.map(lost).count() + 1, started.len(), "one panics");
    ticket.ended("after a panic");
    assert!(client.links().is_over());
    lost(outcome(&start(&client, read(0))).expect("no panic"));
    client.close();
}

/// The request failed because another one's thread panicked.
fn lost(result: Result<(), Error>) {
    match result {
        Err(error @ Error::Lost(_)) => {
            assert!(error.to_string().contains("internal error"), "{error}");
            assert_eq!(error.errno(), libc::EIO);
        }
        other => panic!("nobody knows what the server said: {other:?}"),
    }
}

/// Success, in answer to the request at [`POISON`].
fn poisoned(requests: &[Request]) -> Vec<u8> {
    let poison = requests.iter().find(|request| request.offset == POISON);
    let poison = poison.expect("a request at POISON");
    let header = wire::simple(poison.cookie, 0);
    wire::join(&[&header, &vec![0; poison.length as usize]])
}

#[test]
fn receiving_ones_own_reply() {
    play(&[read(POISON), read(0), read(512)], poisoned, &[]);
}

#[test]
fn receiving_anothers_reply() {
    play(&[read(0), read(POISON), read(512)], poisoned, &[]);
}

#[test]
fn while_another_sends() {
    let stuck = Ask::Write { length: 32 << 20 };
    // One more, that cannot even be sent.
    play(&[read(0), read(POISON), stuck], poisoned, &[read(512)]);
}

#[test]
fn about_to_send() {
    play(&[read(0), read(512)], |_| Vec::new(), &[read(STILLBORN)]);
}

#[test]
fn what_is_left_is_not_taken_for_replies() {
    // The receiving thread panics between a header and its payload, which looks like a reply to another. While
    // large reads are in flight little is received at once, so that most of the payload is still to come.
    let large = |offset| Ask::Read {
        offset,
        length: 64 << 10,
    };
    let reply = |requests: &[Request]| {
        let mut reply = poisoned(requests);
        assert_eq!(requests[2].kind, cmd::READ);
        let forged = wire::simple(requests[2].cookie, 0);
        reply[16..][..forged.len()].copy_from_slice(&forged);
        reply
    };
    play(&[large(0), large(POISON), read(512)], reply, &[]);
}
