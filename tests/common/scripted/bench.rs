// SPDX-License-Identifier: BSD-3-Clause
//! Plays rows of the catalogue of misbehaving servers: a scripted server, nbdkit with the plugin in front of
//! it, a strict client in front of that. Each row ends with proof that nbdkit lives and serves a good server.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::disk::{Disk, pattern, piece};
use super::peer::{Offer, Peer, Request};
use super::wire::{self, MAX_STRING, cmd, cmd_flag, errno};
use super::{Script, Scripted, Ticket};
use crate::common::front::{Front, Refused};
use crate::common::nbdkit::{Nbdkit, forward};

/// Where the request that a row is about points to, unless the row says otherwise.
pub const OFFSET: u64 = 64 << 10;
/// Its length: short, since the row is also played one byte at a time.
pub const LENGTH: u32 = 512;
/// Where the other request in flight points to.
const BYSTANDER: u64 = 256 << 10;

/// What must come of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request succeeds.
    Fine,
    /// The request fails with this error; the connection lives.
    Fails(u32),
    /// A status query succeeds with these extents (length, status); the connection lives.
    Extents(&'static [(u32, u32)]),
    /// The plugin closes the connection at once; everything in flight fails.
    Dead,
    /// As [`Verdict::Dead`], but the request may have got this answer before.
    DeadAfter(Result<(), u32>),
}

impl Verdict {
    fn kills(self) -> bool {
        matches!(self, Self::Dead | Self::DeadAfter(_))
    }
}

/// The request that a row is about.
#[derive(Clone, Debug)]
pub struct Ask {
    pub kind: u16,
    pub flags: u16,
    pub offset: u64,
    pub length: u32,
}

impl Ask {
    pub fn read() -> Self {
        Self {
            kind: cmd::READ,
            flags: 0,
            offset: OFFSET,
            length: LENGTH,
        }
    }

    /// A command other than a read, over the same range.
    pub fn command(kind: u16) -> Self {
        match kind {
            cmd::FLUSH => Self {
                kind,
                flags: 0,
                offset: 0,
                length: 0,
            },
            _ => Self {
                kind,
                ..Self::read()
            },
        }
    }

    pub fn status() -> Self {
        Self::command(cmd::BLOCK_STATUS)
    }

    /// Whether nbdkit takes this only from a client with structured replies.
    fn needs_structured(&self) -> bool {
        self.kind == cmd::BLOCK_STATUS || self.flags & cmd_flag::DF != 0
    }
}

/// Server, nbdkit and a directory for both.
pub struct Bench {
    // Dropped in this order: nbdkit goes first, so that no script waits for it in vain.
    nbdkit: Nbdkit,
    server: Scripted,
    _directory: TempDir,
}

impl Bench {
    /// nbdkit with the plugin before a scripted server; `extra` as for [`forward`]. It is asked for extended
    /// headers each time, unless `extra` has other quirks: what one script says is nothing to the next.
    pub fn new(extra: &[&str]) -> Self {
        let ask = match extra.iter().any(|arg| arg.starts_with("quirks=")) {
            true => &[][..],
            false => &["quirks=extended"],
        };
        Self::with(&[extra, ask].concat())
    }

    /// The same, with nothing but these parameters.
    pub fn with(extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Scripted::start(directory.path());
        let nbdkit = forward(directory.path(), server.socket(), extra);
        Self {
            nbdkit,
            server,
            _directory: directory,
        }
    }

    pub fn nbdkit(&self) -> &Nbdkit {
        &self.nbdkit
    }

    /// The most address space nbdkit ever had, in KiB: shows an allocation even if it was never touched.
    pub fn peak_address_space_kib(&self) -> u64 {
        self.kib("VmPeak:")
    }

    /// The memory that nbdkit uses now, in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.kib("VmRSS:")
    }

    fn kib(&self, key: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.nbdkit.pid())).expect("nbdkit runs");
        let value = status.lines().find_map(|line| line.strip_prefix(key));
        let value = value.unwrap_or_else(|| panic!("no line {key}\n{status}"));
        value
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number")
    }

    /// nbdkit's own socket.
    pub fn socket(&self) -> &Path {
        self.nbdkit.socket()
    }

    /// The server itself.
    pub fn server(&self) -> &Scripted {
        &self.server
    }

    /// The next connection to the server plays `script`.
    pub fn play(
        &self,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> Ticket {
        self.server.play(script)
    }

    /// Opens the export through nbdkit, which must work.
    pub fn open(&self) -> Front {
        Front::open(self.socket())
            .unwrap_or_else(|refused| panic!("{refused:?}\n{}", self.nbdkit.stderr()))
    }

    /// [`Bench::open`], with structured replies and `base:allocation` between client and nbdkit.
    pub fn open_structured(&self) -> Front {
        Front::open_structured(self.socket())
            .unwrap_or_else(|refused| panic!("{refused:?}\n{}", self.nbdkit.stderr()))
    }

    /// nbdkit must still run, and the next client must get a good server.
    pub fn serves_the_next(&mut self, row: &str) {
        assert!(
            self.nbdkit.alive(),
            "{row}: nbdkit died\n{}",
            self.nbdkit.stderr()
        );
        let mut front = self.open();
        assert_eq!(
            front.export().size,
            Offer::default().size,
            "{row}: afterwards"
        );
        assert_eq!(
            front.read(OFFSET, 4096),
            Ok(pattern(OFFSET, 4096)),
            "{row}: afterwards"
        );
        assert_eq!(front.write(512, &[7; 512]), Ok(()), "{row}: afterwards");
        assert_eq!(front.read(512, 512), Ok(vec![7; 512]), "{row}: afterwards");
        assert_eq!(front.flush(), Ok(()), "{row}: afterwards");
        front.close();
        self.server.no_complaints(row);
    }

    /// A row about the handshake: opening must fail, and nbdkit must explain it in one line that names the
    /// socket, the phase and `says`. Played twice, the second time one byte at a time. Where the plugin tries
    /// once more with fewer questions, it finds nobody.
    pub fn refuses(
        &mut self,
        row: &str,
        says: &str,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) {
        let script: Script = Arc::new(script);
        for dribble in [false, true] {
            let row = &named(row, dribble);
            let before = self.nbdkit.stderr().len();
            let ticket = self.server.play_as(Arc::clone(&script), dribble);
            self.server.close_others(true);
            let opened = Front::open(self.socket());
            self.server.close_others(false);
            match opened {
                Ok(_) => panic!("{row}: opened"),
                Err(Refused { .. }) => self.explained(row, before, says),
            }
            ticket.ended(row);
            self.serves_the_next(row);
        }
    }

    /// Since the first `before` bytes of its stderr, nbdkit must have explained a failed opening in one line.
    pub fn explained(&self, row: &str, before: usize, says: &str) {
        let stderr = self.nbdkit.stderr();
        let new = &stderr[before..];
        let errors: Vec<&str> = new
            .lines()
            .filter(|line| line.contains("error: "))
            .collect();
        assert_eq!(errors.len(), 1, "{row}: one explanation\n{new}");
        let line = errors[0];
        assert!(
            line.contains("scripted.sock"),
            "{row}: names the socket: {line}"
        );
        assert!(
            line.contains("handshake") || line.contains("connect"),
            "{row}: names the phase: {line}"
        );
        assert!(line.contains(says), "{row}: says {says:?}: {line}");
        assert!(
            line.len() < MAX_STRING + 1024,
            "{row}: {} bytes of explanation",
            line.len()
        );
        assert!(
            !line.contains(|c: char| c.is_control()),
            "{row}: control characters: {line:?}"
        );
    }

    /// A row about the handshake that must work out: `script` ends with an agreement, then the connection is
    /// served, and `check` sees it from nbdkit's client. Played twice, the second time one byte at a time.
    pub fn opens(
        &mut self,
        row: &str,
        offer: &Offer,
        script: impl Fn(&mut Peer, &Offer) -> io::Result<()> + Send + Sync + 'static,
        check: impl Fn(&mut Front),
    ) {
        let script = Arc::new(script);
        for dribble in [false, true] {
            let row = &named(row, dribble);
            let (script, offer) = (Arc::clone(&script), offer.clone());
            let connection: Script = Arc::new(move |peer| {
                script(peer, &offer)?;
                peer.serve(&mut Disk::new(offer.size))
            });
            let ticket = self.server.play_as(connection, dribble);
            let mut front = match Front::open_structured(self.socket()) {
                Ok(front) => front,
                Err(refused) => panic!(
                    "{row}: {refused:?}; {:?}\n{}",
                    ticket.end(),
                    self.nbdkit.stderr()
                ),
            };
            eprintln!("row {row}");
            check(&mut front);
            front.close();
            ticket.finished(row);
            self.serves_the_next(row);
        }
    }

    /// A row about one request, with a second one in flight that is the measure of the connection's health.
    /// `reply` makes the bytes that answer the request. Played twice, the second time one byte at a time; and
    /// once more with extended headers, if that is possible.
    pub fn row(
        &mut self,
        row: &str,
        offer: &Offer,
        ask: &Ask,
        verdict: Verdict,
        reply: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
    ) {
        let wide = offer.structured && !offer.extended && {
            let request = Request {
                flags: ask.flags,
                kind: ask.kind,
                cookie: 1,
                offset: ask.offset,
                length: ask.length,
                payload: Vec::new(),
            };
            wire::extended(&reply(&request), ask.offset).is_some()
        };
        let reply = Arc::new(reply);
        let script = |offer: &Offer| {
            let (offer, reply) = (offer.clone(), Arc::clone(&reply));
            Arc::new(move |peer: &mut Peer| {
                peer.negotiate(&offer)?;
                let mut disk = Disk::new(offer.size);
                let (asked, bystander) = both(peer)?;
                let compact = reply(&asked);
                match wide && offer.extended {
                    true => {
                        let wide = wire::extended(&compact, asked.offset);
                        peer.send(&wide.expect("as before"))?;
                    }
                    false => peer.send(&compact)?,
                }
                if verdict.kills() {
                    return peer.expect_closed();
                }
                peer.answered(&asked);
                peer.answer(&bystander, &mut disk)?;
                peer.serve(&mut disk)
            })
        };
        self.play_row(row, ask, verdict, script(offer));
        if wide {
            let offer = Offer {
                extended: true,
                ..offer.clone()
            };
            let row = &format!("{row}, extended headers");
            self.play_row_as(row, ask, verdict, script(&offer), false);
        }
    }

    /// [`Bench::row`] about a read from a server with structured replies; `reply` gets its cookie.
    pub fn read_row(
        &mut self,
        row: &str,
        verdict: Verdict,
        reply: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
    ) {
        self.row(
            row,
            &Offer::default(),
            &Ask::read(),
            verdict,
            move |request| reply(request.cookie),
        );
    }

    /// [`Bench::row`] for a server that sends `reply` and closes the connection.
    pub fn hangs_up(
        &mut self,
        row: &str,
        offer: &Offer,
        ask: &Ask,
        verdict: Verdict,
        reply: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
    ) {
        let offer = offer.clone();
        let script = Arc::new(move |peer: &mut Peer| {
            peer.negotiate(&offer)?;
            let (asked, _) = both(peer)?;
            peer.send(&reply(&asked))
        });
        self.play_row(row, ask, verdict, script);
    }

    /// [`Bench::row`] for what kills the connection and has the next one asked otherwise: played once.
    pub fn kills_once(
        &mut self,
        row: &str,
        offer: &Offer,
        ask: &Ask,
        dribble: bool,
        reply: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
    ) {
        let offer = offer.clone();
        let script = Arc::new(move |peer: &mut Peer| {
            peer.negotiate(&offer)?;
            let (asked, _) = both(peer)?;
            peer.send(&reply(&asked))?;
            peer.expect_closed()
        });
        self.play_row_as(&named(row, dribble), ask, Verdict::Dead, script, dribble);
    }

    fn play_row(&mut self, row: &str, ask: &Ask, verdict: Verdict, script: Script) {
        for dribble in [false, true] {
            let row = &named(row, dribble);
            self.play_row_as(row, ask, verdict, Arc::clone(&script), dribble);
        }
    }

    fn play_row_as(
        &mut self,
        row: &str,
        ask: &Ask,
        verdict: Verdict,
        script: Script,
        dribble: bool,
    ) {
        eprintln!("row {row}");
        let ticket = self.server.play_as(script, dribble);
        let mut front = match ask.needs_structured() {
            true => self.open_structured(),
            false => self.open(),
        };
        let payload = if ask.kind == cmd::WRITE {
            vec![0x5a; ask.length as usize]
        } else {
            Vec::new()
        };
        let asked = front.submit(ask.kind, ask.flags, ask.offset, ask.length, &payload);
        let bystander = front.submit_read(BYSTANDER, LENGTH);

        let answer = front.wait_success(asked);
        let witness = front.wait_read(bystander);
        match verdict {
            Verdict::Fine if ask.kind == cmd::READ => {
                let data = answer.map(|success| success.data);
                assert_eq!(data, Ok(pattern(ask.offset, ask.length as usize)), "{row}");
            }
            Verdict::Fine => assert_eq!(answer.map(drop), Ok(()), "{row}"),
            Verdict::Extents(extents) => {
                assert_eq!(
                    answer.map(|success| success.extents),
                    Ok(extents.to_vec()),
                    "{row}"
                );
            }
            Verdict::Fails(error) => assert_eq!(answer.map(drop), Err(error), "{row}"),
            Verdict::Dead => lost(row, answer.map(drop)),
            Verdict::DeadAfter(expected) => {
                let answer = answer.map(drop);
                if answer != expected {
                    lost(row, answer);
                }
            }
        }
        if verdict.kills() {
            lost(row, witness.map(drop));
            still_lost(row, &mut front);
            ticket.ended(row);
            front.close();
        } else {
            assert_eq!(
                witness,
                Ok(pattern(BYSTANDER, LENGTH as usize)),
                "{row}: the other request"
            );
            assert_eq!(front.flush(), Ok(()), "{row}: the connection lives");
            front.close();
            ticket.finished(row);
        }
        self.serves_the_next(row);
    }
}

/// The right data for the whole of [`Ask::read`], as one chunk.
pub fn all(flags: u16, cookie: u64) -> Vec<u8> {
    piece(flags, cookie, OFFSET, LENGTH)
}

/// Receives the row's request and the bystander, which may come in either order.
fn both(peer: &mut Peer) -> io::Result<(Request, Request)> {
    let first = peer.request()?;
    let second = peer.request()?;
    Ok(if first.offset == BYSTANDER {
        (second, first)
    } else {
        (first, second)
    })
}

/// The request must have failed as requests fail whose connection is gone.
pub fn lost(row: &str, answer: Result<(), u32>) {
    assert!(
        matches!(answer, Err(errno::EIO | errno::ESHUTDOWN)),
        "{row}: must fail with EIO or ESHUTDOWN: {answer:?}"
    );
}

/// A client whose server connection is gone keeps failing, and does not wait for anything.
pub fn still_lost(row: &str, front: &mut Front) {
    lost(row, front.read(OFFSET, LENGTH).map(drop));
    lost(row, front.write(OFFSET, &[1; 512]));
}

fn named(row: &str, dribble: bool) -> String {
    format!("{row}{}", if dribble { ", one byte at a time" } else { "" })
}
