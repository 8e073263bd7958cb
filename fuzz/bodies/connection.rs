// SPDX-License-Identifier: BSD-3-Clause
//! A whole client, with two threads that read and write at random, before a server that answers in any order, refuses,
//! cuts the connection, or says anything: nobody waits for ever, and as long as the server has told no lie, everybody
//! reads what they have written.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nbdkit_nbd_plugin::client::times::{Time, Times};
use nbdkit_nbd_plugin::client::zeroes::Detect;
use nbdkit_nbd_plugin::client::{Client, Options, Zeroing};
use nbdkit_nbd_plugin::proto::context::Wish;
use nbdkit_nbd_plugin::proto::handshake::TlsPolicy;
use nbdkit_nbd_plugin::proto::name::ExportName;
use nbdkit_nbd_plugin::transport::Target;
use nbdkit_nbd_plugin::transport::tls::Settings;

use super::bytes::Bytes;

/// Each of two threads has one half.
const SIZE: usize = 128 << 10;
const HALF: usize = SIZE / 2;
const SILENCE: Duration = Duration::from_millis(15);
const CONTEXT: u32 = 3;

const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

/// A directory for the socket of this process, and what listens there.
struct Place {
    path: PathBuf,
    listener: UnixListener,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let name = format!("nbd-fuzz-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket of our own");
        Place { path, listener }
    })
}

#[derive(Clone, Copy)]
struct Request {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

struct Server<'a> {
    stream: UnixStream,
    bytes: Bytes<'a>,
    lied: &'a AtomicBool,
    structured: bool,
    disk: Vec<u8>,
    /// Carried out and not answered yet.
    held: VecDeque<Vec<u8>>,
}

impl Server<'_> {
    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.stream.write_all(&parts.concat())
    }

    fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn option_reply(&mut self, option: u32, kind: u32, payload: &[u8]) -> io::Result<()> {
        self.send(&[
            &OPTION_REPLY.to_be_bytes(),
            &option.to_be_bytes(),
            &kind.to_be_bytes(),
            &(payload.len() as u32).to_be_bytes(),
            payload,
        ])
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        self.send(&[b"NBDMAGIC", &IHAVEOPT.to_be_bytes(), &3u16.to_be_bytes()])?;
        self.receive::<4>()?;
        loop {
            self.receive::<8>()?;
            let option = u32::from_be_bytes(self.receive()?);
            let length = u32::from_be_bytes(self.receive()?);
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data)?;
            match option {
                8 if self.bytes.below(4) > 0 => {
                    self.structured = true;
                    self.option_reply(option, 1, &[])?;
                }
                10 if self.structured => {
                    let payload = [&CONTEXT.to_be_bytes()[..], b"base:allocation"].concat();
                    self.option_reply(option, 4, &payload)?;
                    self.option_reply(option, 1, &[])?;
                }
                7 => return self.go(option),
                _ => self.option_reply(option, 0x8000_0001, &[])?,
            }
        }
    }

    fn go(&mut self, option: u32) -> io::Result<()> {
        // FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, CACHE, FAST_ZERO.
        let flags: u16 = 1 | (1 << 2) | (1 << 3) | (1 << 5) | (1 << 6) | (1 << 7) | (1 << 10);
        let flags = flags | (u16::from(self.bytes.u8() & 1) << 11);
        let info = [
            &[0, 0][..],
            &(SIZE as u64).to_be_bytes(),
            &flags.to_be_bytes(),
        ]
        .concat();
        self.option_reply(option, 3, &info)?;
        if self.bytes.flag() {
            let maximum: u32 = self.bytes.one_of(&[4096, 8192, 65536]);
            let sizes = [1u32, 4096, maximum].map(u32::to_be_bytes).concat();
            self.option_reply(option, 3, &[&[0, 3][..], &sizes].concat())?;
        }
        self.option_reply(option, 1, &[])
    }

    /// The rest of a request whose first byte is there.
    fn request(&mut self) -> io::Result<Request> {
        self.receive::<3>()?;
        Ok(Request {
            flags: u16::from_be_bytes(self.receive()?),
            kind: u16::from_be_bytes(self.receive()?),
            cookie: u64::from_be_bytes(self.receive()?),
            offset: u64::from_be_bytes(self.receive()?),
            length: u32::from_be_bytes(self.receive()?),
        })
    }

    fn chunk(&self, request: Request, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
        [
            &0x668e_33ef_u32.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &request.cookie.to_be_bytes(),
            &(payload.len() as u32).to_be_bytes(),
            payload,
        ]
        .concat()
    }

    fn simple(&self, request: Request, error: u32, data: &[u8]) -> Vec<u8> {
        [
            &0x6744_6698_u32.to_be_bytes()[..],
            &error.to_be_bytes(),
            &request.cookie.to_be_bytes(),
            data,
        ]
        .concat()
    }

    /// Does what it was asked, and says so.
    fn carry_out(&mut self, request: Request, payload: &[u8]) -> Vec<u8> {
        let start = (request.offset as usize).min(SIZE);
        let end = (start + request.length as usize).min(SIZE);
        match request.kind {
            0 if self.structured => return self.read(request, start, end),
            0 => {
                let data = self.disk[start..end].to_vec();
                return self.simple(request, 0, &data);
            }
            1 => self.disk[start..start + payload.len()].copy_from_slice(payload),
            6 => self.disk[start..end].fill(0),
            7 => {
                let half = request.length / 2;
                let mut payload = CONTEXT.to_be_bytes().to_vec();
                for (length, status) in [(half, 0u32), (request.length - half, 3)] {
                    if length > 0 {
                        payload.extend(length.to_be_bytes());
                        payload.extend(status.to_be_bytes());
                    }
                }
                return self.chunk(request, 1, 5, &payload);
            }
            _ => (),
        }
        match self.structured && self.bytes.flag() {
            true => self.chunk(request, 1, 0, &[]),
            false => self.simple(request, 0, &[]),
        }
    }

    /// In up to four chunks, in any order; zeroes may come as holes.
    fn read(&mut self, request: Request, start: usize, end: usize) -> Vec<u8> {
        let count = match request.flags & 4 {
            0 => 1 + self.bytes.below(4) as usize,
            _ => 1,
        };
        let length = (end - start).div_ceil(count).max(1);
        let mut chunks = Vec::new();
        for at in (start..end).step_by(length) {
            let to = (at + length).min(end);
            let offset = (at as u64).to_be_bytes();
            let data = &self.disk[at..to];
            let is_hole = count > 1 && data.iter().all(|byte| *byte == 0);
            chunks.push(match is_hole {
                true => self.chunk(
                    request,
                    0,
                    2,
                    &[&offset[..], &((to - at) as u32).to_be_bytes()].concat(),
                ),
                false => self.chunk(request, 0, 1, &[&offset[..], data].concat()),
            });
        }
        if self.bytes.flag() {
            chunks.reverse();
        }
        chunks.push(self.chunk(request, 1, 0, &[]));
        chunks.concat()
    }

    fn serve(&mut self) -> io::Result<()> {
        self.shake_hands()?;
        loop {
            self.stream.set_read_timeout(Some(SILENCE))?;
            let mut first = [0];
            // Nobody asks for more before they have an answer.
            match self.stream.read(&mut first) {
                Ok(0) => return Ok(()),
                Ok(_) => (),
                Err(error) if self.held.is_empty() => match error.kind() {
                    io::ErrorKind::WouldBlock => continue,
                    _ => return Err(error),
                },
                Err(_) => {
                    let held: Vec<u8> = self.held.drain(..).flatten().collect();
                    self.send(&[&held])?;
                    continue;
                }
            }
            self.stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let request = self.request()?;
            if request.kind == 2 {
                return Ok(());
            }
            let mut payload = match request.kind {
                1 => vec![0; request.length as usize],
                _ => Vec::new(),
            };
            self.stream.read_exact(&mut payload)?;
            if !self.answer(request, &payload)? {
                return Ok(());
            }
        }
    }

    /// False to leave.
    fn answer(&mut self, request: Request, payload: &[u8]) -> io::Result<bool> {
        match self.bytes.u8() {
            0..=199 => {
                let answer = self.carry_out(request, payload);
                self.send(&[&answer])?;
            }
            200..=224 => {
                let answer = self.carry_out(request, payload);
                self.held.push_front(answer);
            }
            225..=236 => {
                let error = self.bytes.one_of(&[5u32, 22, 28, 75, 108, 0xdead]);
                let answer = match self.structured && self.bytes.flag() {
                    true => {
                        let text = [&error.to_be_bytes()[..], &[0, 2], b"no"].concat();
                        self.chunk(request, 1, 0x8001, &text)
                    }
                    false => self.simple(request, error, &[]),
                };
                self.send(&[&answer])?;
            }
            237..=240 => {
                // It breaks off.
                let answer = self.carry_out(request, payload);
                let most = self.bytes.below(answer.len() as u64 + 1) as usize;
                self.send(&[&answer[..most]])?;
                return Ok(false);
            }
            241..=244 => return Ok(false),
            245..=252 => {
                // One byte of a good answer is another one.
                self.lied.store(true, Ordering::SeqCst);
                let mut answer = self.carry_out(request, payload);
                let at = self.bytes.below(40.min(answer.len() as u64)) as usize;
                answer[at] ^= self.bytes.u8() | 1;
                self.send(&[&answer])?;
            }
            _ => {
                self.lied.store(true, Ordering::SeqCst);
                let length = self.bytes.below(100) as usize;
                let said = self.bytes.take(length);
                self.send(&[said])?;
            }
        }
        Ok(true)
    }
}

/// Random operations in one half of the export.
fn operate(client: &Client, input: &[u8], half: u64, lied: &AtomicBool) {
    let mut bytes = Bytes::new(input);
    let base = half * HALF as u64;
    let mut known = vec![Some(0u8); HALF];
    while !bytes.is_over() {
        let length = 1 + match bytes.below(4) {
            0 => bytes.below(64),
            1 => bytes.below(4096),
            2 => bytes.below(20_000),
            _ => 511,
        };
        let at = bytes.below(HALF as u64 - length);
        let range = at as usize..(at + length) as usize;
        let fua = bytes.below(8) == 0;
        let result = match bytes.below(8) {
            0..=2 => {
                let data = vec![bytes.u8(); length as usize];
                let result = client.write(&data, base + at, fua);
                known[range].fill(result.is_ok().then(|| data[0]));
                result
            }
            3 => {
                let zeroing = Zeroing {
                    may_trim: bytes.flag(),
                    fua,
                    fast: bytes.flag(),
                };
                let result = client.zero(length, base + at, zeroing);
                known[range].fill(result.is_ok().then_some(0));
                result
            }
            4 => {
                let result = client.block_status(length, base + at, fua);
                result.map(|extents| {
                    assert!(!extents.is_empty());
                    assert!(extents.iter().all(|extent| extent.length > 0));
                })
            }
            5 => client.flush(),
            _ => {
                let mut buffer = vec![0xee; length as usize];
                let result = client.read(&mut buffer, base + at);
                if result.is_ok() && !lied.load(Ordering::SeqCst) {
                    for (byte, known) in buffer.iter().zip(&known[range]) {
                        assert!(known.is_none_or(|known| known == *byte));
                    }
                }
                result
            }
        };
        if let Err(error) = result {
            let said = error.to_string();
            assert!(!said.chars().any(char::is_control), "{said:?}");
        }
    }
}

fn options() -> Arc<Options> {
    Arc::new(Options {
        target: Target::Unix(place().path.clone()),
        tls_policy: TlsPolicy::Off,
        tls: Settings::default(),
        times: Arc::new(Times {
            connect: Time::new(Some(Duration::from_secs(5))),
            handshake: Time::new(Some(Duration::from_secs(5))),
            // A server that lies may owe an answer for ever.
            request: Time::new(Some(Duration::from_millis(400))),
            close: Time::new(Some(Duration::from_millis(400))),
        }),
        reconnect: None,
        turnstile: None,
        wanted: None,
        connections: 1,
        fleet: None,
        manners: Arc::default(),
        detect_zeroes: Detect::Off,
        fences: None,
        wish: Wish::default(),
        maps: Arc::default(),
        stats: None,
    })
}

pub fn run(data: &[u8]) {
    if data.len() > 600 {
        return;
    }
    let third = data.len() / 3;
    let (script, operations) = data.split_at(third);
    let (first, second) = operations.split_at(third);
    let (lied, over) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let serving = scope.spawn(|| accept(scope, script, &lied, &over));
        if let Ok(client) = Client::open(&options(), &ExportName::default()) {
            thread::scope(|scope| {
                scope.spawn(|| operate(&client, first, 0, &lied));
                scope.spawn(|| operate(&client, second, 1, &lied));
            });
            client.close();
        }
        over.store(true, Ordering::SeqCst);
        // Only to wake it.
        let _ = UnixStream::connect(&place().path);
        serving.join().expect("a server that does not panic");
    });
}

/// The first connection gets what the script says. A server that has said NBD_ESHUTDOWN is looked for once more, and
/// is not there.
fn accept<'scope, 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    script: &'env [u8],
    lied: &'env AtomicBool,
    over: &'env AtomicBool,
) {
    let mut first = true;
    loop {
        let (stream, _) = place().listener.accept().expect("somebody connects");
        if over.load(Ordering::SeqCst) {
            return;
        }
        if std::mem::replace(&mut first, false) {
            let mut server = Server {
                stream,
                bytes: Bytes::new(script),
                lied,
                structured: false,
                disk: vec![0; SIZE],
                held: VecDeque::new(),
            };
            // The end of it is the client's business.
            scope.spawn(move || server.serve());
        }
    }
}
