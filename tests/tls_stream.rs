// SPDX-License-Identifier: BSD-3-Clause
//! The stream of records: however a server cuts it up, renews its keys or ends it, no answer gets lost and
//! none is taken for complete that is not.

mod common;
mod tls_server;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::clients::{LIMIT, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, LOCALHOST};
use common::process::eventually;
use common::relay::Relay;
use common::scripted::bench::{lost, still_lost};
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::Offer;
use common::scripted::wire::cmd;
use common::scripted::{Gate, Scripted, Ticket};
use common::upstream::noise;
use openssl::ssl::SslVersion;
use tempfile::TempDir;
use tls_server::{Manner, TlsServer};

const MIB: usize = 1 << 20;
/// Within this a plugin that does not wait would have come back.
const A_MOMENT: Duration = Duration::from_millis(500);

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "certtool"])
}

/// Both versions of TLS, each with one manner.
fn each_version(manner: &Manner) -> [Manner; 2] {
    [SslVersion::TLS1_2, SslVersion::TLS1_3].map(|newest| Manner {
        newest,
        ..manner.clone()
    })
}

/// From right to left: a scripted server, TLS, a wire that can be cut, nbdkit with the plugin.
struct Chain {
    // Dropped in this order: nbdkit goes first, so that nobody waits for it in vain.
    front: Nbdkit,
    relay: Relay,
    _tls: TlsServer,
    server: Scripted,
    _directory: TempDir,
}

impl Chain {
    fn new(manner: &Manner) -> Self {
        Self::with(manner, &[])
    }

    /// With more parameters for the plugin.
    fn with(manner: &Manner, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let certificates = Certificates::new(&directory);
        let server = Scripted::start(directory.path());
        let tls = TlsServer::start(
            directory.path(),
            &certificates.server,
            server.socket(),
            manner,
        );
        let relay = Relay::unix(directory.path(), "relay.sock", tls.socket());
        let parameters = [&certificates.parameters()[..], extra].concat();
        let front = relay.forward(directory.path(), &parameters);
        Self {
            front,
            relay,
            _tls: tls,
            server,
            _directory: directory,
        }
    }

    fn open(&self) -> Front {
        Front::open(self.front.socket())
            .unwrap_or_else(|refused| panic!("{refused:?}\n{}", self.front.stderr()))
    }

    /// The next connection is served until the plugin says goodbye.
    fn serve(&self) -> Ticket {
        self.server.play(|peer| {
            let offer = Offer::default();
            peer.negotiate(&offer)?;
            peer.serve(&mut Disk::new(offer.size))
        })
    }

    /// nbdkit still serves, and the next client gets its data.
    fn serves_the_next(&mut self) {
        assert!(self.front.alive(), "{}", self.front.stderr());
        let mut front = self.open();
        assert_eq!(front.read(4096, 512), Ok(pattern(4096, 512)));
        front.close();
    }
}

struct Certificates {
    server: PathBuf,
    client: String,
}

impl Certificates {
    fn new(directory: &TempDir) -> Self {
        let authority = Authority::new(directory.path(), "authority");
        let client = authority.trusting("client");
        Self {
            server: authority.server("server", LOCALHOST),
            client: format!("tls-certificates={}", text(&client)),
        }
    }

    fn parameters(&self) -> [&str; 3] {
        ["tls=require", "tls-hostname=localhost", &self.client]
    }
}

/// Writes, and reads what was written, with sixteen requests in flight.
fn works(manner: &Manner, length: usize) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let certificates = Certificates::new(&directory);
    let upstream = Nbdkit::start(directory.path(), &["memory", "16M"]);
    let tls = TlsServer::start(
        directory.path(),
        &certificates.server,
        upstream.socket(),
        manner,
    );
    let front = forward(directory.path(), tls.socket(), &certificates.parameters());
    let mut client = Front::open(front.socket())
        .unwrap_or_else(|refused| panic!("{manner:?}: {refused:?}\n{}", front.stderr()));
    let disk = noise(16 * length, 7);
    let parts = || disk.chunks(length).zip((0..).step_by(length));
    let asked: Vec<u64> = parts()
        .map(|(part, offset)| client.submit_write(offset, part))
        .collect();
    for cookie in asked {
        assert_eq!(
            client.wait(cookie),
            Ok(()),
            "{manner:?}\n{}",
            front.stderr()
        );
    }
    let asked: Vec<u64> = parts()
        .map(|(_, offset)| client.submit_read(offset, length as u32))
        .collect();
    for (cookie, (part, offset)) in asked.into_iter().zip(parts()) {
        let same = client.wait_read(cookie).as_deref() == Ok(part);
        assert!(same, "{manner:?}: what was read at {offset}");
    }
    client.close();
    assert!(!front.stderr().contains("error:"), "{}", front.stderr());
}

#[test]
fn full_records() {
    if !ready() {
        return;
    }
    for manner in each_version(&Manner::default()) {
        works(&manner, MIB);
    }
}

#[test]
fn records_of_one_byte() {
    if !ready() {
        return;
    }
    let manner = Manner {
        record: 1,
        ..Manner::default()
    };
    for manner in each_version(&manner) {
        works(&manner, 1000);
    }
}

#[test]
fn records_that_end_anywhere() {
    if !ready() {
        return;
    }
    let manner = Manner {
        record: 997,
        ..Manner::default()
    };
    for manner in each_version(&manner) {
        works(&manner, 100_000);
    }
}

#[test]
fn records_that_come_in_pieces() {
    if !ready() {
        return;
    }
    for packet in [1, 1447] {
        let manner = Manner {
            packet,
            ..Manner::default()
        };
        for manner in each_version(&manner) {
            works(&manner, 20 * packet.clamp(100, 5000));
        }
    }
}

#[test]
fn keys_that_change_in_mid_stream() {
    if !ready() {
        return;
    }
    for n in [1, 7] {
        let manner = Manner {
            key_update: Some(n),
            ..Manner::default()
        };
        works(&manner, 50_000);
    }
}

#[test]
fn any_number_of_session_tickets() {
    if !ready() {
        return;
    }
    for tickets in [0, 1, 50] {
        let manner = Manner {
            tickets,
            ..Manner::default()
        };
        works(&manner, 10_000);
    }
}

#[test]
fn end_inside_a_reply() {
    if !ready() {
        return;
    }
    for manner in each_version(&Manner::default()) {
        // In the reply's header, somewhere in a record, and where a record of 16 KiB has just ended or nearly so.
        for bytes in [1, 20, 5000, 16 << 10, (16 << 10) + 22, 40_000] {
            let mut chain = Chain::new(&manner);
            let ticket = chain.serve();
            let mut front = chain.open();
            assert_eq!(front.read(0, 512), Ok(pattern(0, 512)));
            chain.relay.cut_after(bytes);
            let what = format!("{manner:?}, cut after {bytes} bytes");
            lost(&what, front.read(4096, 200_000).map(drop));
            still_lost(&what, &mut front);
            front.close();
            ticket.ended(&what);
            let stderr = chain.front.stderr();
            // The loss is told once, not by every request that comes too late.
            assert_eq!(stderr.matches("error: ").count(), 1, "{what}: {stderr}");
            chain.serves_the_next();
        }
    }
}

#[test]
fn goodbye_inside_a_reply() {
    if !ready() {
        return;
    }
    // Half an answer stays half an answer, however politely the server leaves.
    for close_notify in [true, false] {
        let manner = Manner {
            close_notify,
            ..Manner::default()
        };
        for manner in each_version(&manner) {
            let mut chain = Chain::new(&manner);
            let ticket = chain.server.play(|peer| {
                let offer = Offer::default();
                peer.negotiate(&offer)?;
                let request = peer.request()?;
                assert_eq!(request.kind, cmd::READ);
                let mut disk = Disk::new(offer.size);
                let reply = disk.answer(&request, peer.structured(), None);
                peer.send(&reply[..reply.len() - 1])
            });
            let what = format!("{manner:?}");
            let mut front = chain.open();
            lost(&what, front.read(0, 100_000).map(drop));
            still_lost(&what, &mut front);
            front.close();
            ticket.ended(&what);
            chain.serves_the_next();
        }
    }
}

#[test]
fn end_without_a_goodbye_after_the_disconnect() {
    if !ready() {
        return;
    }
    let manner = Manner {
        close_notify: false,
        ..Manner::default()
    };
    for manner in each_version(&manner) {
        let chain = Chain::new(&manner);
        let ticket = chain.serve();
        let mut front = chain.open();
        assert_eq!(front.read(0, 512), Ok(pattern(0, 512)));
        front.close();
        ticket.finished(&format!("{manner:?}"));
        let stderr = eventually("the plugin has closed its connection", LIMIT, || {
            let stderr = chain.front.stderr();
            stderr.contains(": disconnect").then_some(stderr)
        });
        assert!(stderr.contains(": disconnected"), "{stderr}");
        assert!(!stderr.contains("error: "), "{stderr}");
        assert!(!stderr.contains("lost"), "{stderr}");
    }
}

#[test]
fn end_while_nothing_is_asked() {
    if !ready() {
        return;
    }
    for close_notify in [true, false] {
        let manner = Manner {
            close_notify,
            ..Manner::default()
        };
        let mut chain = Chain::new(&manner);
        let ticket = chain.server.play(|peer| peer.negotiate(&Offer::default()));
        let mut front = chain.open();
        let what = format!("{manner:?}");
        ticket.finished(&what);
        eventually("the end reaches the plugin", LIMIT, || {
            let ended = front.read(0, 512).is_err();
            ended.then_some(())
        });
        still_lost(&what, &mut front);
        front.close();
        chain.serves_the_next();
    }
}

/// What was received with a broken record is worth having, and does not hide it.
#[test]
fn a_broken_record_is_no_hanging_up() {
    if !ready() {
        return;
    }
    for manner in each_version(&Manner::default()) {
        let mut chain = Chain::new(&manner);
        let break_next = manner.break_next.clone();
        let served = chain.server.play(move |peer| {
            let offer = Offer::default();
            let mut disk = Disk::new(offer.size);
            peer.negotiate(&offer)?;
            let request = peer.request()?;
            break_next.store(true, Ordering::SeqCst);
            peer.answer(&request, &mut disk)?;
            peer.expect_closed()
        });
        let mut front = chain.open();
        lost("a broken record", front.read(0, 512).map(drop));
        served.finished("a broken record");
        let told = chain.front.stderr();
        assert!(told.contains("bad record mac"), "{manner:?}: {told}");
        chain.serves_the_next();
    }
}

/// The session is at its end then, and says so whenever it is asked; the server may be at work still. What it has
/// received is carried out before anything is sent again, or it would overwrite that.
#[test]
fn a_server_whose_record_broke_is_waited_for() {
    if !ready() {
        return;
    }
    for manner in each_version(&Manner::default()) {
        let chain = Chain::with(&manner, &["reconnect=60"]);
        let replayed = Gate::default();
        let late = chain.server.play({
            let (break_next, replayed) = (manner.break_next.clone(), replayed.clone());
            move |peer| {
                let offer = Offer::default();
                let mut disk = Disk::new(offer.size);
                peer.negotiate(&offer)?;
                let request = peer.request()?;
                break_next.store(true, Ordering::SeqCst);
                peer.answer(&request, &mut disk)?;
                peer.expect_closed()?;
                // It has more to say, which nobody wants to hear.
                peer.send(&[0; 512])?;
                match replayed.opens_within(A_MOMENT) {
                    true => Err(ErrorKind::AlreadyExists.into()),
                    false => Ok(()),
                }
            }
        });
        let again = chain.server.play({
            let replayed = replayed.clone();
            move |peer| {
                let offer = Offer::default();
                let mut disk = Disk::new(offer.size);
                peer.negotiate(&offer)?;
                let request = peer.request()?;
                replayed.open();
                peer.answer(&request, &mut disk)?;
                peer.serve(&mut disk)
            }
        });
        let mut front = chain.open();
        assert_eq!(front.write(0, &[1; 512]), Ok(()), "{manner:?}");
        late.finished("the server whose record broke");
        front.close();
        again.ended("the next connection");
    }
}
