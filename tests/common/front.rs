// SPDX-License-Identifier: BSD-3-Clause
//! A strict NBD client for nbdkit's own socket, made for tests: many requests in flight, every answer checked
//! to the letter, exact error numbers, and a deadline on everything.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::nbdkit::Nbdkit;
use super::scripted::wire::{self, Fields, cmd, cmd_flag, info, opt, rep};

/// Until when nbdkit must have answered.
const DEADLINE: Duration = Duration::from_secs(20);

/// A block status context id that nbdkit gave us.
type ContextId = u32;

/// An answer, and what came with it; the error is the number on the wire.
pub type Answer<T> = Result<T, u32>;

/// What nbdkit says about the export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Export {
    pub size: u64,
    pub flags: u16,
    pub block_sizes: Option<(u32, u32, u32)>,
    pub description: Option<String>,
}

/// nbdkit's refusal to open the export.
#[derive(Debug)]
pub struct Refused {
    pub reply: u32,
    pub text: String,
}

/// Success: the data of a read, the extents of a status query, else nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Success {
    pub data: Vec<u8>,
    pub extents: Vec<(u32, u32)>,
}

#[derive(Clone, Copy)]
struct Pending {
    kind: u16,
    offset: u64,
    length: u32,
}

#[derive(Default)]
struct State {
    pending: HashMap<u64, Pending>,
    answered: HashMap<u64, Answer<Success>>,
    /// Why the connection ended.
    ended: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A connection to nbdkit. Replies are received by a thread of their own, so that nbdkit never has to wait
/// for the test to take one.
pub struct Front {
    stream: UnixStream,
    shared: Arc<Shared>,
    receiver: Option<JoinHandle<()>>,
    next_cookie: u64,
    export: Export,
}

impl Front {
    /// A client of this nbdkit.
    pub fn of(nbdkit: &Nbdkit) -> Self {
        let opened = Self::open(nbdkit.socket());
        opened.unwrap_or_else(|error| panic!("{error:?}\n{}", nbdkit.stderr()))
    }

    /// Opens the default export with simple replies.
    pub fn open(socket: &Path) -> Result<Self, Refused> {
        Self::open_as(socket, "", false)
    }

    /// Opens the default export with structured replies and `base:allocation`, as [`Front::status`] needs.
    pub fn open_structured(socket: &Path) -> Result<Self, Refused> {
        Self::open_as(socket, "", true)
    }

    /// Opens the export `name`.
    pub fn open_as(
        socket: &Path,
        name: impl AsRef<[u8]>,
        structured: bool,
    ) -> Result<Self, Refused> {
        let name = name.as_ref();
        let mut handshake = Handshake::begin(socket);
        let context = if structured {
            Some(handshake.structured(name))
        } else {
            None
        };
        let export = handshake.go(name)?;

        let stream = handshake.stream;
        let shared = Arc::new(Shared::default());
        let mut source = stream.try_clone().expect("duplicate descriptor");
        // Between requests nbdkit may be silent as long as it likes.
        source.set_read_timeout(None).expect("no timeout");
        let receiver = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let why = receive_all(&mut source, &shared, context).to_string();
                lock(&shared.state).ended = Some(why);
                shared.changed.notify_all();
            }
        });
        Ok(Self {
            stream,
            shared,
            receiver: Some(receiver),
            next_cookie: 1,
            export,
        })
    }

    /// The exports that nbdkit lists: names and descriptions.
    pub fn list(socket: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut handshake = Handshake::begin(socket);
        handshake.option(opt::LIST, &[]);
        let mut listed = Vec::new();
        loop {
            let (kind, payload) = handshake.reply(opt::LIST);
            match kind {
                rep::SERVER => {
                    let mut fields = Fields(&payload);
                    let length = fields.u32() as usize;
                    let name = fields.bytes(length).to_vec();
                    listed.push((name, fields.0.to_vec()));
                }
                rep::ACK => break,
                other => panic!("LIST answered with {other:#x}"),
            }
        }
        handshake.option(opt::ABORT, &[]);
        listed
    }

    /// The name that nbdkit gives the default export.
    pub fn canonical_name(socket: &Path) -> Option<Vec<u8>> {
        let mut handshake = Handshake::begin(socket);
        let mut data = string("");
        data.extend(
            [1u16, info::NAME]
                .iter()
                .flat_map(|field| field.to_be_bytes()),
        );
        handshake.option(opt::INFO, &data);
        let mut name = None;
        loop {
            let (kind, payload) = handshake.reply(opt::INFO);
            match kind {
                rep::INFO => {
                    let mut fields = Fields(&payload);
                    if fields.u16() == info::NAME {
                        name = Some(fields.0.to_vec());
                    }
                }
                rep::ACK => break,
                other => panic!("INFO answered with {other:#x}"),
            }
        }
        handshake.option(opt::ABORT, &[]);
        name
    }

    pub fn export(&self) -> &Export {
        &self.export
    }

    /// Sends a request and does not wait; [`Front::wait`] and its kin take the returned cookie.
    pub fn submit(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        lock(&self.shared.state).pending.insert(
            cookie,
            Pending {
                kind,
                offset,
                length,
            },
        );
        let mut message = wire::join(&[
            &wire::REQUEST_MAGIC.to_be_bytes(),
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
        ]);
        message.extend_from_slice(payload);
        self.stream
            .write_all(&message)
            .expect("nbdkit takes a request");
        cookie
    }

    pub fn submit_read(&mut self, offset: u64, length: u32) -> u64 {
        self.submit(cmd::READ, 0, offset, length, &[])
    }

    pub fn submit_write(&mut self, offset: u64, data: &[u8]) -> u64 {
        let length = u32::try_from(data.len()).expect("a legal request");
        self.submit(cmd::WRITE, 0, offset, length, data)
    }

    /// Waits for the answer to a request that carries no answer data.
    pub fn wait(&self, cookie: u64) -> Answer<()> {
        self.wait_success(cookie).map(drop)
    }

    /// Waits for the data of a read.
    pub fn wait_read(&self, cookie: u64) -> Answer<Vec<u8>> {
        self.wait_success(cookie).map(|success| success.data)
    }

    /// Waits for the extents of a status query.
    pub fn wait_status(&self, cookie: u64) -> Answer<Vec<(u32, u32)>> {
        self.wait_success(cookie).map(|success| success.extents)
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Answer<Vec<u8>> {
        let cookie = self.submit_read(offset, length);
        self.wait_read(cookie)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Answer<()> {
        let cookie = self.submit_write(offset, data);
        self.wait(cookie)
    }

    pub fn flush(&mut self) -> Answer<()> {
        let cookie = self.submit(cmd::FLUSH, 0, 0, 0, &[]);
        self.wait(cookie)
    }

    pub fn trim(&mut self, offset: u64, length: u32) -> Answer<()> {
        let cookie = self.submit(cmd::TRIM, 0, offset, length, &[]);
        self.wait(cookie)
    }

    pub fn zero(&mut self, offset: u64, length: u32, flags: u16) -> Answer<()> {
        let cookie = self.submit(cmd::WRITE_ZEROES, flags, offset, length, &[]);
        self.wait(cookie)
    }

    pub fn status(&mut self, offset: u64, length: u32) -> Answer<Vec<(u32, u32)>> {
        let cookie = self.submit(cmd::BLOCK_STATUS, 0, offset, length, &[]);
        self.wait_status(cookie)
    }

    pub fn status_one(&mut self, offset: u64, length: u32) -> Answer<Vec<(u32, u32)>> {
        let cookie = self.submit(cmd::BLOCK_STATUS, cmd_flag::REQ_ONE, offset, length, &[]);
        self.wait_status(cookie)
    }

    /// Tells nbdkit goodbye and waits until it has closed the connection, which it does only after the plugin
    /// has closed its own.
    pub fn close(mut self) {
        self.stream
            .write_all(&wire::disconnect())
            .expect("nbdkit takes the disconnect");
        // nbdkit from 1.42 on waits for the end of what we send.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.wait_until("nbdkit closes the connection", |state| {
            state.ended.is_some().then_some(())
        });
        self.join();
    }

    /// Waits for the answer to any request.
    pub fn wait_success(&self, cookie: u64) -> Answer<Success> {
        self.wait_until("nbdkit answers a request", |state| {
            if let Some(answer) = state.answered.remove(&cookie) {
                return Some(answer);
            }
            if let Some(why) = &state.ended {
                panic!("nbdkit's connection ended with a request in flight: {why}");
            }
            None
        })
    }

    fn wait_until<T>(&self, what: &str, mut probe: impl FnMut(&mut State) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(found) = probe(&mut state) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not within {DEADLINE:?}: {what}");
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn join(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(receiver) = self.receiver.take() {
            let _ = receiver.join();
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.join();
    }
}

struct Handshake {
    stream: UnixStream,
}

impl Handshake {
    fn receive(&mut self, count: usize) -> Vec<u8> {
        receive(&mut self.stream, count).expect("nbdkit speaks in time")
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream
            .write_all(bytes)
            .expect("nbdkit takes the handshake");
    }

    fn begin(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("nbdkit listens");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a nonzero timeout");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("a nonzero timeout");
        let mut handshake = Self { stream };
        handshake.greet();
        handshake
    }

    fn greet(&mut self) {
        let both = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;
        assert_eq!(self.receive(18), wire::greeting(both), "nbdkit's greeting");
        self.send(&u32::from(both).to_be_bytes());
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).expect("small");
        self.send(&wire::join(&[
            &wire::NEWSTYLE_MAGIC.to_be_bytes(),
            &option.to_be_bytes(),
            &length.to_be_bytes(),
            data,
        ]));
    }

    fn reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let header = self.receive(20);
        let mut fields = Fields(&header);
        assert_eq!(fields.u64(), wire::OPTION_REPLY_MAGIC);
        assert_eq!(fields.u32(), option);
        let kind = fields.u32();
        let length = fields.u32() as usize;
        assert!(length <= 1 << 16, "option reply of {length} bytes");
        (kind, self.receive(length))
    }

    /// Agrees on structured replies and `base:allocation`, which nbdkit always has.
    fn structured(&mut self, name: &[u8]) -> ContextId {
        self.option(opt::STRUCTURED_REPLY, &[]);
        assert_eq!(self.reply(opt::STRUCTURED_REPLY).0, rep::ACK);
        let query = string("base:allocation");
        self.option(
            opt::SET_META_CONTEXT,
            &wire::join(&[&string(name), &1u32.to_be_bytes(), &query]),
        );
        let (kind, payload) = self.reply(opt::SET_META_CONTEXT);
        assert_eq!(kind, rep::META_CONTEXT);
        assert_eq!(self.reply(opt::SET_META_CONTEXT).0, rep::ACK);
        Fields(&payload).u32()
    }

    fn go(&mut self, name: &[u8]) -> Result<Export, Refused> {
        let infos = [info::BLOCK_SIZE, info::DESCRIPTION];
        let mut data = string(name);
        data.extend(2u16.to_be_bytes());
        data.extend(infos.iter().flat_map(|kind| kind.to_be_bytes()));
        self.option(opt::GO, &data);

        let mut export = Export::default();
        loop {
            let (kind, payload) = self.reply(opt::GO);
            match kind {
                rep::ACK => return Ok(export),
                rep::INFO => {
                    let mut fields = Fields(&payload);
                    match fields.u16() {
                        info::EXPORT => (export.size, export.flags) = (fields.u64(), fields.u16()),
                        info::BLOCK_SIZE => {
                            export.block_sizes = Some((fields.u32(), fields.u32(), fields.u32()))
                        }
                        info::DESCRIPTION => {
                            export.description =
                                Some(String::from_utf8_lossy(fields.0).into_owned());
                        }
                        _ => {}
                    }
                }
                _ => {
                    self.option(opt::ABORT, &[]);
                    return Err(Refused {
                        reply: kind,
                        text: String::from_utf8_lossy(&payload).into_owned(),
                    });
                }
            }
        }
    }
}

/// Receives replies until the connection ends, and says how it ended.
fn receive_all(source: &mut UnixStream, shared: &Shared, context: Option<ContextId>) -> io::Error {
    loop {
        let received = match context {
            Some(id) => receive_chunk(source, shared, id),
            None => receive_simple(source, shared),
        };
        match received {
            Ok((cookie, answer)) => {
                let mut state = lock(&shared.state);
                state.pending.remove(&cookie);
                state.answered.insert(cookie, answer);
                shared.changed.notify_all();
            }
            Err(error) => return error,
        }
    }
}

fn receive_simple(source: &mut UnixStream, shared: &Shared) -> io::Result<(u64, Answer<Success>)> {
    let header = receive(source, 16)?;
    let mut fields = Fields(&header);
    let (magic, error, cookie) = (fields.u32(), fields.u32(), fields.u64());
    if magic != wire::SIMPLE_MAGIC {
        return Err(wrong(format!("reply magic {magic:#x}")));
    }
    let pending = pending(shared, cookie)?;
    if error != 0 {
        return Ok((cookie, Err(error)));
    }
    let data = if pending.kind == cmd::READ {
        receive(source, pending.length as usize)?
    } else {
        Vec::new()
    };
    Ok((
        cookie,
        Ok(Success {
            data,
            extents: Vec::new(),
        }),
    ))
}

/// nbdkit sends every structured reply as a single chunk; anything else would be news.
fn receive_chunk(
    source: &mut UnixStream,
    shared: &Shared,
    context: ContextId,
) -> io::Result<(u64, Answer<Success>)> {
    let start = receive(source, 4)?;
    if start == wire::SIMPLE_MAGIC.to_be_bytes() {
        let rest = receive(source, 12)?;
        let mut fields = Fields(&rest);
        let (error, cookie) = (fields.u32(), fields.u64());
        if pending(shared, cookie)?.kind == cmd::READ {
            return Err(wrong("simple reply to a read".to_owned()));
        }
        return Ok((
            cookie,
            if error == 0 {
                Ok(Success::default())
            } else {
                Err(error)
            },
        ));
    }
    if start != wire::CHUNK_MAGIC.to_be_bytes() {
        return Err(wrong(format!("reply magic {start:02x?}")));
    }
    let header = receive(source, 16)?;
    let mut fields = Fields(&header);
    let (flags, kind, cookie, length) = (fields.u16(), fields.u16(), fields.u64(), fields.u32());
    let pending = pending(shared, cookie)?;
    // nbdkit admits reads of 64 MiB; an offset comes before the data.
    if flags != wire::DONE || length > (64 << 20) + 8 {
        return Err(wrong(format!(
            "chunk with flags {flags:#x} and length {length}"
        )));
    }
    let payload = receive(source, length as usize)?;
    let mut fields = Fields(&payload);
    let mut success = Success::default();
    match kind {
        wire::chunk_type::NONE => {}
        wire::chunk_type::OFFSET_DATA => {
            let offset = fields.u64();
            if offset != pending.offset || fields.0.len() != pending.length as usize {
                return Err(wrong(format!("{} bytes at {offset}", fields.0.len())));
            }
            success.data = fields.0.to_vec();
        }
        wire::chunk_type::BLOCK_STATUS => {
            if fields.u32() != context {
                return Err(wrong("status of an unknown context".to_owned()));
            }
            while !fields.0.is_empty() {
                success.extents.push((fields.u32(), fields.u32()));
            }
        }
        wire::chunk_type::ERROR | wire::chunk_type::ERROR_OFFSET => {
            return Ok((cookie, Err(fields.u32())));
        }
        _ => return Err(wrong(format!("chunk type {kind:#x}"))),
    }
    Ok((cookie, Ok(success)))
}

fn pending(shared: &Shared, cookie: u64) -> io::Result<Pending> {
    let found = lock(&shared.state).pending.get(&cookie).copied();
    found.ok_or_else(|| wrong(format!("reply with unknown cookie {cookie:#x}")))
}

fn receive(source: &mut UnixStream, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    let length = u32::try_from(text.len()).expect("a short name");
    wire::join(&[&length.to_be_bytes(), text])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
