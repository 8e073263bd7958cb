// SPDX-License-Identifier: BSD-3-Clause
//! Commands from outside, while nbdkit serves (`control=PATH`): a Unix socket that takes a line of words
//! and answers with a line of JSON.
//!
//! `words` says what a line means, and `answer` how what came of it is told; both know no socket. `socket`
//! is the file, `serve` the one thread that speaks with whoever connects, and `office` carries commands
//! out: it has a [`Helm`](crate::client::helm::Helm) for what concerns all ways, and the times that can be
//! changed. The thread waits for nobody: what takes long is done on a thread of its own, and who is slow
//! is left.

mod answer;
mod office;
mod serve;
mod socket;
mod words;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

pub use self::office::Office;
use self::serve::Server;
use self::socket::Listener;
pub use self::socket::{Error, check};
use crate::transport::Doorbell;

/// The socket, and the thread that serves it.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    office: Arc<Office>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    doorbell: Arc<Doorbell>,
    thread: JoinHandle<()>,
}

impl Control {
    /// It is made later, when nbdkit is the user that it will be.
    pub fn new(path: PathBuf, office: Office) -> Self {
        Self {
            path,
            office: Arc::new(office),
            running: Mutex::default(),
        }
    }

    /// Makes the socket and starts the thread, once nbdkit has forked.
    pub fn start(&self) -> Result<(), Error> {
        let listener = Listener::bind(&self.path)?;
        let system = |error: std::io::Error| Error::system(&self.path, &error);
        let doorbell = Doorbell::new().map_err(|error| Error::thread(&self.path, &error))?;
        let doorbell = Arc::new(doorbell);
        let server = Server::new(listener, doorbell.clone(), self.office.clone());
        let thread = std::thread::Builder::new().name("nbd-control".to_owned());
        let thread = thread.spawn(move || server.serve()).map_err(system)?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = Some(Running { doorbell, thread });
        Ok(())
    }

    /// Ends the thread and removes the socket. What is under way is given up. The thread waits for nobody,
    /// so that its end takes a moment. Does nothing the second time.
    pub fn end(&self) {
        self.office.end();
        let running = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.take()
        };
        if let Some(running) = running {
            running.doorbell.ring();
            // A panic has been caught in it.
            let _ = running.thread.join();
        }
    }
}
