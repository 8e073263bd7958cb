// SPDX-License-Identifier: BSD-3-Clause
//! A server that does exactly what a test tells it to, right or wrong.
//!
//! It lives in threads of the test process and listens on a Unix socket. Each script plays one connection;
//! a connection for which no script is waiting is served properly, so that a test can end by proving that
//! nbdkit is alive and the next client gets what it should.
//!
//! `wire` knows the messages, `offer` what they mean, `peer` the steps that scripts are made of, `disk` what a good server serves, and
//! `bench` puts a server, an nbdkit and the catalogue's verdicts together.

pub mod bench;
pub mod disk;
pub mod farm;
pub mod offer;
pub mod peer;
pub mod wire;

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use disk::Disk;
use peer::{Offer, Peer};

/// What one connection does. Scripts are shared so that a row of a table can be played twice.
pub type Script = Arc<dyn Fn(&mut Peer) -> io::Result<()> + Send + Sync>;

/// Until when a script must have ended; its own steps have shorter deadlines.
const DEADLINE: Duration = Duration::from_secs(30);

/// How a script ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was played to its last step.
    Finished,
    /// The plugin closed the connection before that.
    Left,
    /// Something that must not happen: a deadline, or a message that the plugin must not send.
    Failed(String),
}

/// A script that was handed to the server.
pub struct Ticket(Receiver<End>);

impl Ticket {
    /// Waits for the end of the script.
    pub fn end(self) -> End {
        self.0
            .recv_timeout(DEADLINE)
            .unwrap_or_else(|error| End::Failed(format!("no end of the script: {error}")))
    }

    /// The script must have been played to its last step.
    pub fn finished(self, what: &str) {
        assert_eq!(self.end(), End::Finished, "{what}: how the script ended");
    }

    /// The script must have ended, but the plugin may have left before its last step.
    pub fn ended(self, what: &str) {
        let end = self.end();
        assert!(
            !matches!(end, End::Failed(_)),
            "{what}: how the script ended: {end:?}"
        );
    }
}

/// Lets a script wait until its test has come to a certain point, or the other way round.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
        let open = lock(&self.0.0);
        let (open, _) = self
            .0
            .1
            .wait_timeout_while(open, DEADLINE, |open| !*open)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(*open, "the other side never came to this point");
    }

    /// Whether the other side comes to that point within `pause`.
    pub fn opens_within(&self, pause: Duration) -> bool {
        let open = lock(&self.0.0);
        let waited = self.0.1.wait_timeout_while(open, pause, |open| !*open);
        let (open, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *open
    }
}

struct Scheduled {
    script: Script,
    dribble: bool,
    end: Sender<End>,
}

#[derive(Default)]
struct Shared {
    scripts: Mutex<VecDeque<Scheduled>>,
    /// What went wrong on properly served connections.
    complaints: Mutex<Vec<String>>,
    connections: Mutex<Vec<JoinHandle<()>>>,
    accepted: AtomicUsize,
    stop: AtomicBool,
    /// Connections without a script are closed and not served.
    closed: AtomicBool,
}

/// The listening server.
pub struct Scripted {
    socket: PathBuf,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Scripted {
    /// Listens in `directory`.
    pub fn start(directory: &Path) -> Self {
        let socket = directory.join("scripted.sock");
        let listener = UnixListener::bind(&socket).expect("listen on a fresh socket");
        let shared = Arc::new(Shared::default());
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self {
            socket,
            shared,
            accepting: Some(accepting),
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The next connection that has no script yet plays this one.
    pub fn play(
        &self,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> Ticket {
        self.play_as(Arc::new(script), false)
    }

    /// [`Scripted::play`], with every byte sent on its own when `dribble`.
    pub fn play_as(&self, script: Script, dribble: bool) -> Ticket {
        let (end, ticket) = mpsc::channel();
        lock(&self.shared.scripts).push_back(Scheduled {
            script,
            dribble,
            end,
        });
        Ticket(ticket)
    }

    /// How many connections there were so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// While `closed`, connections for which no script is waiting are closed at once.
    pub fn close_others(&self, closed: bool) {
        self.shared.closed.store(closed, Ordering::SeqCst);
    }

    /// Nothing may have gone wrong on properly served connections so far.
    pub fn no_complaints(&self, what: &str) {
        let complaints = lock(&self.shared.complaints);
        assert!(
            complaints.is_empty(),
            "{what}: the good server complains: {complaints:?}"
        );
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // The connection only wakes the accepting thread.
        let _ = UnixStream::connect(&self.socket);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let connections = std::mem::take(&mut *lock(&self.shared.connections));
        for connection in connections {
            let _ = connection.join();
        }
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().expect("accept on our own socket");
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let scheduled = lock(&shared.scripts).pop_front();
        let connection = thread::spawn({
            let shared = Arc::clone(shared);
            move || match scheduled {
                Some(Scheduled {
                    script,
                    dribble,
                    end,
                }) => {
                    let mut peer = Peer::new(stream, dribble);
                    let how = play(&mut peer, &script);
                    // The connection ends before the test hears of it.
                    drop(peer);
                    let _ = end.send(how);
                }
                None if shared.closed.load(Ordering::SeqCst) => {}
                None => {
                    let mut peer = Peer::new(stream, false);
                    if let End::Failed(complaint) = play(&mut peer, &good_server()) {
                        lock(&shared.complaints).push(complaint);
                    }
                }
            }
        });
        lock(&shared.connections).push(connection);
    }
}

fn play(peer: &mut Peer, script: &Script) -> End {
    match catch_unwind(AssertUnwindSafe(|| script(peer))) {
        Ok(Ok(())) => End::Finished,
        Ok(Err(error)) if peer::left(&error) => End::Left,
        Ok(Err(error)) => End::Failed(error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            End::Failed(text.unwrap_or_else(|| "the script panicked".to_owned()))
        }
    }
}

/// A server that offers everything and does everything right.
fn good_server() -> Script {
    let offer = Offer::default();
    Arc::new(move |peer| {
        peer.negotiate(&offer)?;
        peer.serve(&mut Disk::new(offer.size))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
