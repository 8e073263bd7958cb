// SPDX-License-Identifier: BSD-3-Clause
//! One connection to the plugin, as a script sees it: the server's side of the protocol in small steps.
//!
//! Every step has a deadline, so no script can hang its test, and whatever the plugin sends is checked: a
//! scripted server may lie, but it never accepts a malformed message itself.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::disk::Disk;
pub use super::offer::{Asked, Offer, Request};
use super::wire::{self, Fields, MAX_STRING, NO_ZEROES, cmd, cmd_flag, flag, opt, rep};

/// Until when a step of a script must have happened.
const DEADLINE: Duration = Duration::from_secs(25);

/// How many bytes of a message are sent one at a time, where a row asks for it: every header with its payload's
/// beginning. Nothing new happens later in a long payload, but each byte costs two thread switches.
const DRIBBLE: usize = 1024;

/// The server's end of one connection.
pub struct Peer {
    stream: UnixStream,
    dribble: bool,
    budget: Option<usize>,
    sent: usize,
    client_flags: u32,
    offer: Offer,
    structured: bool,
    extended: bool,
    context: Option<u32>,
    /// Cookies that were received and not yet answered by [`Peer::answer`].
    open_cookies: HashSet<u64>,
}

impl Peer {
    pub fn new(stream: UnixStream, dribble: bool) -> Self {
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a nonzero timeout");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("a nonzero timeout");
        Self {
            stream,
            dribble,
            budget: None,
            sent: 0,
            client_flags: 0,
            offer: Offer::default(),
            structured: false,
            extended: false,
            context: None,
            open_cookies: HashSet::new(),
        }
    }

    /// The connection itself, without deadlines, for who takes over after the handshake.
    pub fn into_stream(self) -> io::Result<UnixStream> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)?;
        Ok(self.stream)
    }

    /// From now on the connection breaks as soon as `bytes` bytes in all were sent.
    pub fn cut_after(&mut self, bytes: usize) {
        self.budget = Some(bytes);
    }

    /// How many bytes were sent so far.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The flags the plugin answered the greeting with.
    pub fn client_flags(&self) -> u32 {
        self.client_flags
    }

    /// Whether structured replies were agreed.
    pub fn structured(&self) -> bool {
        self.structured
    }

    // Bytes.

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let allowed = self
            .budget
            .map_or(bytes.len(), |budget| bytes.len().min(budget - self.sent));
        let single = if self.dribble {
            allowed.min(DRIBBLE)
        } else {
            0
        };
        for byte in &bytes[..single] {
            self.stream.write_all(&[*byte])?;
            // Usually each byte is taken before the next one is sent. Not always: the plugin need not be
            // reading just now, so this never waits for long.
            self.drained_within(Duration::from_millis(1));
        }
        self.stream.write_all(&bytes[single..allowed])?;
        self.sent += allowed;
        if self.budget == Some(self.sent) {
            self.stream.shutdown(Shutdown::Both)?;
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "cut here by the script",
            ));
        }
        Ok(())
    }

    /// Waits until the plugin has taken every byte that was sent.
    pub fn drained(&mut self) -> io::Result<()> {
        match self.drained_within(DEADLINE) {
            true => Ok(()),
            false => Err(io::Error::new(
                ErrorKind::TimedOut,
                "the plugin does not take what was sent",
            )),
        }
    }

    fn drained_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let mut unread: libc::c_int = 0;
            // SAFETY: on a socket TIOCOUTQ stores one int: how much the other side has not taken yet.
            let result =
                unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
            if result != 0 || unread == 0 {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::yield_now();
        }
    }

    pub fn receive(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The plugin must close the connection now. What it still sends before is of no interest.
    pub fn expect_closed(&mut self) -> io::Result<()> {
        let mut waste = [0; 1 << 16];
        loop {
            match self.stream.read(&mut waste) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if left(&error) => return Ok(()),
                Err(error) if timed_out(&error) => {
                    return Err(io::Error::new(
                        ErrorKind::TimedOut,
                        "the plugin keeps the connection open",
                    ));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The plugin must let go of the connection altogether, not just close its sending side. What it still
    /// sends before is of no interest.
    pub fn expect_closed_entirely(&mut self) -> io::Result<()> {
        self.expect_closed()?;
        let mut poll = libc::pollfd {
            fd: self.stream.as_raw_fd(),
            events: 0,
            revents: 0,
        };
        // SAFETY: `poll` is one valid pollfd for the length of the call. POLLHUP needs not be asked for.
        let ready = unsafe { libc::poll(&raw mut poll, 1, DEADLINE.as_millis() as libc::c_int) };
        match ready {
            1 => Ok(()),
            _ => Err(io::Error::new(
                ErrorKind::TimedOut,
                "the plugin keeps half of the connection",
            )),
        }
    }

    /// Says nothing for `pause`; ends early when the plugin closes the connection.
    pub fn silence(&mut self, pause: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(pause))?;
        let result = self.stream.read(&mut [0; 1]);
        self.stream.set_read_timeout(Some(DEADLINE))?;
        match result {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => Err(io::Error::new(
                ErrorKind::InvalidData,
                "the plugin spoke out of turn",
            )),
            Err(error) if timed_out(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether anything, be it the end, comes from the plugin within `pause`.
    pub fn readable_within(&self, pause: Duration) -> bool {
        let milliseconds = i32::try_from(pause.as_millis()).expect("a short pause");
        let mut poll = libc::pollfd {
            fd: self.stream.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        unsafe { libc::poll(&raw mut poll, 1, milliseconds) > 0 }
    }

    /// Closes one direction or both.
    pub fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }

    // Handshake.

    /// A newstyle greeting; takes the plugin's flags.
    pub fn greet(&mut self, handshake_flags: u16) -> io::Result<()> {
        self.send(&wire::greeting(handshake_flags))?;
        let flags = self.receive(4)?;
        self.client_flags = Fields(&flags).u32();
        Ok(())
    }

    /// Receives one option request.
    pub fn option(&mut self) -> io::Result<Asked> {
        let header = self.receive(16)?;
        let mut fields = Fields(&header);
        assert_eq!(
            fields.u64(),
            wire::NEWSTYLE_MAGIC,
            "every option starts with the magic"
        );
        let option = fields.u32();
        let length = fields.u32() as usize;
        assert!(
            length <= 2 * MAX_STRING,
            "option {option} with {length} bytes of data"
        );
        Ok(Asked {
            option,
            data: self.receive(length)?,
        })
    }

    pub fn reply(&mut self, option: u32, kind: u32, payload: &[u8]) -> io::Result<()> {
        self.send(&wire::option_reply(option, kind, payload))
    }

    /// Greets, and answers as `offer` says until the plugin asks for `option`, which is left unanswered.
    pub fn greet_until(&mut self, option: u32, offer: &Offer) -> io::Result<Asked> {
        self.greet(offer.handshake_flags)?;
        loop {
            let asked = self.option()?;
            if asked.option == option {
                return Ok(asked);
            }
            assert!(
                !self.answer_option(&asked, offer)?,
                "the plugin never asked for option {option}"
            );
        }
    }

    /// Answers options as `offer` says until transmission begins.
    pub fn finish_options(&mut self, offer: &Offer) -> io::Result<()> {
        loop {
            let asked = self.option()?;
            if self.answer_option(&asked, offer)? {
                return Ok(());
            }
        }
    }

    /// The whole handshake, as `offer` says.
    pub fn negotiate(&mut self, offer: &Offer) -> io::Result<()> {
        self.greet(offer.handshake_flags)?;
        self.finish_options(offer)
    }

    /// Holds the plugin to `offer`, for scripts that send the offer in their own way.
    pub fn promise(&mut self, offer: &Offer) {
        self.offer = offer.clone();
    }

    /// An oldstyle greeting is the whole handshake.
    pub fn greet_oldstyle(&mut self, offer: &Offer) -> io::Result<()> {
        self.promise(offer);
        self.send(&wire::oldstyle_greeting(
            offer.size,
            u32::from(offer.flags),
            0,
        ))
    }

    /// Answers one option; true when transmission begins with it.
    pub fn answer_option(&mut self, asked: &Asked, offer: &Offer) -> io::Result<bool> {
        let option = asked.option;
        match option {
            opt::EXPORT_NAME => {
                assert!(!self.extended, "extended headers need GO");
                self.promise(offer);
                let mut answer =
                    wire::join(&[&offer.size.to_be_bytes(), &offer.flags.to_be_bytes()]);
                if self.client_flags & u32::from(NO_ZEROES) == 0 {
                    answer.extend([0; 124]);
                }
                self.send(&answer)?;
                Ok(true)
            }
            opt::ABORT => {
                self.reply(option, rep::ACK, &[])?;
                Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the plugin gave up with NBD_OPT_ABORT",
                ))
            }
            opt::STRUCTURED_REPLY if offer.structured => {
                assert!(asked.data.is_empty());
                self.structured = true;
                self.reply(option, rep::ACK, &[])?;
                Ok(false)
            }
            opt::EXTENDED_HEADERS if offer.extended => {
                assert!(asked.data.is_empty());
                self.extended = true;
                self.reply(option, rep::ACK, &[])?;
                Ok(false)
            }
            opt::SET_META_CONTEXT if offer.structured => {
                assert!(
                    self.structured || self.extended,
                    "contexts need structured replies first"
                );
                let (_, queries) = asked.set_meta_context();
                self.context = None;
                for (id, name) in &offer.contexts {
                    assert!(
                        queries.contains(name),
                        "asked for {queries:?}, not for {name}"
                    );
                    self.context = Some(*id);
                    self.reply(option, rep::META_CONTEXT, &wire::context(*id, name))?;
                }
                self.reply(option, rep::ACK, &[])?;
                Ok(false)
            }
            opt::GO if offer.go => {
                asked.go();
                self.send_infos(offer)?;
                self.accept_go(offer)?;
                Ok(true)
            }
            _ => {
                self.reply(option, rep::ERR_UNSUP, b"")?;
                Ok(false)
            }
        }
    }

    /// The INFO replies of GO, the one about the export last, as qemu-nbd does it.
    pub fn send_infos(&mut self, offer: &Offer) -> io::Result<()> {
        if let Some(sizes) = offer.block_sizes {
            self.reply(opt::GO, rep::INFO, &wire::info_block_size(sizes))?;
        }
        self.reply(
            opt::GO,
            rep::INFO,
            &wire::info_export(offer.size, offer.flags),
        )
    }

    /// The reply that ends a GO and starts transmission.
    pub fn accept_go(&mut self, offer: &Offer) -> io::Result<()> {
        self.promise(offer);
        self.reply(opt::GO, rep::ACK, &[])
    }

    // Transmission.

    /// Receives a request without its payload, and checks that the plugin was allowed to send it.
    pub fn request_header(&mut self) -> io::Result<Request> {
        let (magic, length) = match self.extended {
            true => (wire::EXTENDED_REQUEST_MAGIC, 32),
            false => (wire::REQUEST_MAGIC, 28),
        };
        let header = self.receive(length)?;
        let mut fields = Fields(&header);
        assert_eq!(fields.u32(), magic, "every request starts with the magic");
        let mut request = Request {
            flags: fields.u16(),
            kind: fields.u16(),
            cookie: fields.u64(),
            offset: fields.u64(),
            length: match self.extended {
                true => u32::try_from(fields.u64()).expect("nbdkit never asks for more"),
                false => fields.u32(),
            },
            payload: Vec::new(),
        };
        if self.extended && request.kind == cmd::WRITE {
            assert_ne!(
                request.flags & cmd_flag::PAYLOAD_LEN,
                0,
                "the length is that of a payload: {request:?}"
            );
            request.flags &= !cmd_flag::PAYLOAD_LEN;
        }
        self.check(&request);
        if request.kind != cmd::DISC {
            assert!(
                self.open_cookies.insert(request.cookie),
                "cookie used twice: {request:?}"
            );
        }
        Ok(request)
    }

    /// Receives the payload of a write whose header came before.
    pub fn payload(&mut self, request: &mut Request) -> io::Result<()> {
        if request.kind == cmd::WRITE {
            request.payload = self.receive(request.length as usize)?;
        }
        Ok(())
    }

    /// Receives a whole request.
    pub fn request(&mut self) -> io::Result<Request> {
        let mut request = self.request_header()?;
        self.payload(&mut request)?;
        Ok(request)
    }

    /// The answer to a request as it should be.
    pub fn right_answer(&self, request: &Request, disk: &mut Disk) -> Vec<u8> {
        match self.extended {
            true => {
                let reply = disk.answer(request, true, self.context);
                wire::extended(&reply, request.offset).expect("chunks")
            }
            false => disk.answer(request, self.structured, self.context),
        }
    }

    /// Answers one request as it should be.
    pub fn answer(&mut self, request: &Request, disk: &mut Disk) -> io::Result<()> {
        let reply = self.right_answer(request, disk);
        self.answered(request);
        self.send(&reply)
    }

    /// Notes that a script answered `request` by itself: its cookie may come again.
    pub fn answered(&mut self, request: &Request) {
        self.open_cookies.remove(&request.cookie);
    }

    /// Serves everything as it should be until the plugin disconnects.
    pub fn serve(&mut self, disk: &mut Disk) -> io::Result<()> {
        loop {
            let request = self.request()?;
            if request.kind == cmd::DISC {
                return self.expect_closed();
            }
            self.answer(&request, disk)?;
        }
    }

    /// Notes that a script agreed on structured replies by itself.
    pub fn agree_structured(&mut self) {
        self.structured = true;
    }

    /// Notes that a script agreed on extended headers by itself.
    pub fn agree_extended(&mut self) {
        self.extended = true;
    }

    /// Notes that a script agreed on a context by itself.
    pub fn agree_context(&mut self, id: u32) {
        self.context = Some(id);
    }

    fn check(&self, request: &Request) {
        let offered = self.offer.flags;
        let (ability, allowed) = match request.kind {
            cmd::READ => (
                0,
                if offered & flag::SEND_DF != 0 {
                    cmd_flag::DF
                } else {
                    0
                },
            ),
            cmd::WRITE => (0, 0),
            cmd::DISC => (0, 0),
            cmd::FLUSH => (flag::SEND_FLUSH, 0),
            cmd::TRIM => (flag::SEND_TRIM, 0),
            cmd::CACHE => (flag::SEND_CACHE, 0),
            cmd::WRITE_ZEROES if offered & flag::SEND_FAST_ZERO != 0 => (
                flag::SEND_WRITE_ZEROES,
                cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            ),
            cmd::WRITE_ZEROES => (flag::SEND_WRITE_ZEROES, cmd_flag::NO_HOLE),
            cmd::BLOCK_STATUS => (0, cmd_flag::REQ_ONE),
            _ => panic!("unknown command: {request:?}"),
        };
        let fua = match request.kind {
            cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES if offered & flag::SEND_FUA != 0 => {
                cmd_flag::FUA
            }
            _ => 0,
        };
        assert_eq!(
            offered & ability,
            ability,
            "command that was not offered: {request:?}"
        );
        assert_eq!(
            request.flags & !(allowed | fua),
            0,
            "flag that was not offered: {request:?}"
        );
        if request.kind == cmd::BLOCK_STATUS {
            assert!(
                self.context.is_some(),
                "status without a context: {request:?}"
            );
        }
        if matches!(request.kind, cmd::READ | cmd::WRITE) {
            let maximum = self
                .offer
                .block_sizes
                .map_or(32 << 20, |(_, _, maximum)| maximum);
            assert!(
                request.length <= maximum,
                "longer than the maximum of {maximum}: {request:?}"
            );
            assert_ne!(request.length, 0, "nothing to do: {request:?}");
        }
    }
}

/// Whether an error only says that the other side has closed the connection.
pub fn left(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

pub fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}
