// SPDX-License-Identifier: BSD-3-Clause
//! A server in this process whose replies are not of one piece: like qemu-nbd before a fragmented image it
//! answers a read in many chunks, or like one with a slow disk it answers late. Nothing is stored, and a
//! reply is kept for the next read of its kind, so that it is never the slowest in the chain.
//!
//! What it does with a read depends on where on the disk that is.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::common::scripted::offer::{Offer, Request};
use crate::common::scripted::peer::{Peer, left};
use crate::common::scripted::wire::{self, DONE, Fields, cmd, flag};
use crate::workload::{CHUNKS, Group};

/// Offset and length of a read that is not answered before [`RELEASE`].
pub const WAITING: (u64, u32) = (SLOW, 256 << 10);
/// A read that is answered at once.
pub const BESIDE: (u64, u32) = (SLOW + (1 << 20), 8 << 10);
/// The same, after the answers to all that waited.
pub const RELEASE: (u64, u32) = (SLOW + (2 << 20), 8 << 10);

/// Behind the parts of the disk that are read in chunks.
const SLOW: u64 = CHUNKS.len() as u64 * PART;
const PART: u64 = Group::Pieces.disk();
const DISK: u64 = SLOW + PART;

/// What the whole disk is made of.
pub const BYTE: u8 = 0x5a;

/// The part of the disk that is read in chunks of `size` bytes: where it begins, and its size.
pub fn part(size: u32) -> (u64, u64) {
    let place = CHUNKS.iter().position(|&chunk| chunk == size);
    let place = place.expect("a size of the list");
    (place as u64 * PART, PART)
}

/// The running server. It stops listening when this is dropped; connections end with their clients.
pub struct Pieces {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Pieces {
    /// Listens in `directory`.
    pub fn start(directory: &Path) -> io::Result<Self> {
        let socket = directory.join("pieces.sock");
        let listener = UnixListener::bind(&socket)?;
        let stop = Arc::new(AtomicBool::new(false));
        let accepting = thread::spawn({
            let stop = Arc::clone(&stop);
            move || accept(&listener, &stop)
        });
        Ok(Self {
            socket,
            stop,
            accepting: Some(accepting),
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // The connection only wakes the accepting thread.
        let _ = UnixStream::connect(&self.socket);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &UnixListener, stop: &AtomicBool) {
    for stream in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { return };
        thread::spawn(|| match serve(stream) {
            Err(error) if !left(&error) => eprintln!("bench: the server of pieces: {error}"),
            _ => {}
        });
    }
}

fn serve(stream: UnixStream) -> io::Result<()> {
    let offer = Offer {
        size: DISK,
        flags: flag::HAS_FLAGS | flag::SEND_FLUSH,
        contexts: Vec::new(),
        ..Offer::default()
    };
    let mut peer = Peer::new(stream, false);
    peer.negotiate(&offer)?;
    let mut connection = Connection {
        structured: peer.structured(),
        stream: peer.into_stream()?,
        replies: HashMap::new(),
        waiting: Vec::new(),
    };
    let mut requests = BufReader::new(connection.stream.try_clone()?);
    loop {
        let request = receive(&mut requests)?;
        match request.kind {
            cmd::DISC => return Ok(()),
            cmd::READ if request.offset == WAITING.0 => connection.waiting.push(request),
            cmd::READ => connection.read(&request)?,
            // Whoever writes, does so in vain.
            _ => connection
                .stream
                .write_all(&wire::simple(request.cookie, 0))?,
        }
    }
}

fn receive(stream: &mut impl Read) -> io::Result<Request> {
    let mut header = [0; 28];
    stream.read_exact(&mut header)?;
    let mut fields = Fields(&header);
    if fields.u32() != wire::REQUEST_MAGIC {
        return Err(io::Error::other("no request"));
    }
    let request = Request {
        flags: fields.u16(),
        kind: fields.u16(),
        cookie: fields.u64(),
        offset: fields.u64(),
        length: fields.u32(),
        payload: Vec::new(),
    };
    if request.kind == cmd::WRITE {
        let length = u64::from(request.length);
        io::copy(&mut stream.take(length), &mut io::sink())?;
    }
    Ok(request)
}

struct Connection {
    stream: UnixStream,
    structured: bool,
    /// By length of the read and size of the chunks.
    replies: HashMap<(u32, u32), Vec<u8>>,
    /// Reads that were not answered yet.
    waiting: Vec<Request>,
}

impl Connection {
    fn read(&mut self, request: &Request) -> io::Result<()> {
        if request.offset == RELEASE.0 {
            for waiting in std::mem::take(&mut self.waiting) {
                self.answer(&waiting)?;
            }
        }
        self.answer(request)
    }

    fn answer(&mut self, request: &Request) -> io::Result<()> {
        let &Request {
            cookie,
            offset,
            length,
            ..
        } = request;
        if !self.structured {
            let data = vec![BYTE; length as usize];
            return self
                .stream
                .write_all(&wire::join(&[&wire::simple(cookie, 0), &data]));
        }
        let chunk = CHUNKS
            .get((offset / PART) as usize)
            .copied()
            .unwrap_or(length);
        let reply = self.replies.entry((length, chunk));
        let reply = reply.or_insert_with(|| chunks(length, chunk));
        address(reply, chunk, cookie, offset);
        self.stream.write_all(reply)
    }
}

/// Size of a chunk's header and of the offset that follows it.
const HEAD: usize = 28;

/// The reply to a read, for no cookie and from offset 0.
fn chunks(length: u32, chunk: u32) -> Vec<u8> {
    let pieces = (0..length).step_by(chunk as usize).map(|at| {
        let size = chunk.min(length - at);
        let flags = if at + size == length { DONE } else { 0 };
        wire::data(flags, 0, u64::from(at), &vec![BYTE; size as usize])
    });
    pieces.flatten().collect()
}

/// Makes it the reply to that read: cookies follow magic, flags and type, offsets the length.
fn address(reply: &mut [u8], chunk: u32, cookie: u64, offset: u64) {
    let mut at = offset;
    for piece in reply.chunks_mut(HEAD + chunk as usize) {
        piece[8..16].copy_from_slice(&cookie.to_be_bytes());
        piece[20..28].copy_from_slice(&at.to_be_bytes());
        at += u64::from(chunk);
    }
}
