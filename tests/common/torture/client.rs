// SPDX-License-Identifier: BSD-3-Clause
//! A client that sends and takes answers apart from each other, as deep as it likes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::common::process::eventually;
use crate::common::scripted::wire::{self, Fields, cmd, cmd_flag, opt};

use super::block;
use super::history::Op;
use super::now;

/// How long nbdkit may take to begin: it waits for the server itself.
const DEADLINE: Duration = Duration::from_secs(30);

pub struct Answer {
    pub cookie: u64,
    /// Zero: success.
    pub error: u32,
    pub data: Vec<u8>,
    /// When it was here.
    pub at: u64,
}

/// What clients did, for the judgement in the end.
pub type Recorder = Arc<Mutex<Vec<Op>>>;

pub struct Client {
    recorder: Option<(usize, Recorder)>,
    flying: RefCell<HashMap<u64, Op>>,
    stream: UnixStream,
    answers: Receiver<Answer>,
    /// How much each read in flight will bring.
    reads: Arc<Mutex<HashMap<u64, usize>>>,
    receiver: Option<JoinHandle<()>>,
    next: u64,
    pub size: u64,
    pub flags: u16,
}

impl Client {
    /// Opens the default export.
    pub fn open(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        let both = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;
        stream.write_all(&wire::join(&[
            &u32::from(both).to_be_bytes(),
            &wire::NEWSTYLE_MAGIC.to_be_bytes(),
            &opt::EXPORT_NAME.to_be_bytes(),
            &0u32.to_be_bytes(),
        ]))?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let mut fields = Fields(&export);
        let (size, flags) = (fields.u64(), fields.u16());
        let mut source = stream.try_clone()?;
        source.set_read_timeout(None)?;
        let reads = Arc::<Mutex<HashMap<u64, usize>>>::default();
        let (sender, answers) = mpsc::channel();
        let receiver = thread::spawn({
            let reads = Arc::clone(&reads);
            move || {
                // What ends it ends the channel too.
                while let Ok(answer) = receive(&mut source, &reads) {
                    if sender.send(answer).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self {
            recorder: None,
            flying: RefCell::default(),
            stream,
            answers,
            reads,
            receiver: Some(receiver),
            next: 1,
            size,
            flags,
        })
    }

    /// Lets it record what it does, as this client.
    pub fn recorded(mut self, number: usize, recorder: &Recorder) -> Self {
        self.recorder = Some((number, Arc::clone(recorder)));
        self
    }

    /// Sends a request; the cookie that is returned will be in its answer.
    pub fn submit(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> u64 {
        let cookie = self.next;
        self.next += 1;
        let length = u32::try_from(length).expect("a legal request");
        if kind == cmd::READ {
            let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
            reads.insert(cookie, length as usize);
        }
        if let Some((number, _)) = self.recorder {
            let fua = flags & cmd_flag::FUA != 0;
            let op = Op::of(number, kind, fua, offset, u64::from(length), payload);
            self.flying.borrow_mut().insert(cookie, op);
        }
        let message = wire::join(&[
            &wire::REQUEST_MAGIC.to_be_bytes(),
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
            payload,
        ]);
        self.stream
            .write_all(&message)
            .expect("nbdkit takes a request");
        cookie
    }

    /// Sends one request, when no other is in flight, and returns what was read or the error on the wire.
    pub fn call(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<Vec<u8>, u32> {
        let cookie = self.submit(kind, flags, offset, length, payload);
        self.wait(cookie)
    }

    pub fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, u32> {
        self.call(cmd::READ, 0, offset, length, &[])
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Vec<u8>, u32> {
        self.call(cmd::WRITE, 0, offset, bytes.len() as u64, bytes)
    }

    pub fn flush(&mut self) -> Result<Vec<u8>, u32> {
        self.call(cmd::FLUSH, 0, 0, 0, &[])
    }

    /// Waits for the answer to a request, which must be the next one.
    pub fn wait(&self, cookie: u64) -> Result<Vec<u8>, u32> {
        let answer = self.next(DEADLINE);
        let answer = answer.unwrap_or_else(|| panic!("no answer within {DEADLINE:?}"));
        assert_eq!(answer.cookie, cookie, "the next answer");
        match answer.error {
            0 => Ok(answer.data),
            error => Err(error),
        }
    }

    /// Whether no answer is there yet.
    pub fn waits(&self) -> bool {
        self.next(Duration::ZERO).is_none()
    }

    /// The next answer. `None`: not within `limit`.
    pub fn next(&self, limit: Duration) -> Option<Answer> {
        match self.answers.recv_timeout(limit) {
            Ok(answer) => {
                self.record(&answer);
                Some(answer)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("nbdkit has closed the connection"),
        }
    }

    /// Takes this many answers, or fewer if nbdkit closes the connection before; returns their errors.
    pub fn last(&self, count: u64, limit: Duration) -> Vec<u32> {
        let mut errors = Vec::new();
        for _ in 0..count {
            match self.answers.recv_timeout(limit) {
                Ok(answer) => {
                    self.record(&answer);
                    errors.push(answer.error);
                }
                Err(RecvTimeoutError::Timeout) => panic!("no answer within {limit:?}"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        errors
    }

    fn record(&self, answer: &Answer) {
        let op = self.flying.borrow_mut().remove(&answer.cookie);
        if let (Some((_, recorder)), Some(mut op)) = (&self.recorder, op) {
            op.answered = Some(answer.at);
            op.error = answer.error;
            if op.kind == cmd::READ && answer.error == 0 {
                op.contents = block::contents(&answer.data);
            }
            add(recorder, op);
        }
    }

    /// Says goodbye and waits until nbdkit has closed, after the plugin has.
    pub fn close(&mut self, limit: Duration) {
        self.stream
            .write_all(&wire::disconnect())
            .expect("nbdkit takes the disconnect");
        let _ = self.stream.shutdown(Shutdown::Write);
        let receiver = self.receiver.take().expect("not closed yet");
        eventually("nbdkit closes the connection", limit, || {
            receiver.is_finished().then_some(())
        });
    }
}

fn add(recorder: &Recorder, op: Op) {
    recorder
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(op);
}

impl Drop for Client {
    fn drop(&mut self) {
        // What was never answered may have been done all the same.
        if let Some((_, recorder)) = &self.recorder {
            for (_, op) in self.flying.borrow_mut().drain() {
                add(recorder, op);
            }
        }
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(receiver) = self.receiver.take() {
            let _ = receiver.join();
        }
    }
}

fn receive(source: &mut UnixStream, reads: &Mutex<HashMap<u64, usize>>) -> io::Result<Answer> {
    let mut header = [0; 16];
    source.read_exact(&mut header)?;
    let mut fields = Fields(&header);
    let (magic, error, cookie) = (fields.u32(), fields.u32(), fields.u64());
    assert_eq!(magic, wire::SIMPLE_MAGIC, "nbdkit's reply");
    let length = reads
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&cookie);
    let mut data = Vec::new();
    if error == 0 {
        data = vec![0; length.unwrap_or(0)];
        source.read_exact(&mut data)?;
    }
    Ok(Answer {
        cookie,
        error,
        data,
        at: now(),
    })
}
