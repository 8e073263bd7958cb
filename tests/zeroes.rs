// SPDX-License-Identifier: BSD-3-Clause
//! `detect-zeroes=`: writes of nothing but zeroes reach the server as such.

mod common;

use common::clients::nbdcopy;
use common::front::Front;
use common::nbdkit::Nbdkit;
use common::need_all;
use common::relay::Relay;
use common::scripted::bench::Bench;
use common::scripted::disk::Disk;
use common::scripted::offer::Request;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, cmd, cmd_flag, errno, flag};
use common::upstream::memory;

/// What of a request counts here: command, flags, length.
type Seen = (u16, u16, u32);

/// Writes this through nbdkit, and flushes; returns what the server was asked. It declines zeroes with `error`,
/// if that is not 0.
fn asked(mode: &str, offer: Offer, error: u32, payload: &[u8], fua: bool) -> Vec<Seen> {
    let bench = Bench::new(&[&format!("detect-zeroes={mode}")]);
    let (tell, told) = std::sync::mpsc::channel();
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let mut disk = Disk::new(offer.size);
        loop {
            let request = peer.request()?;
            let Request {
                kind,
                flags,
                length,
                cookie,
                ..
            } = request;
            if kind == cmd::DISC {
                return peer.expect_closed();
            }
            // The plugin flushes before it leaves.
            if kind != cmd::FLUSH {
                let _ = tell.send((kind, flags, length));
            }
            if kind == cmd::WRITE_ZEROES && error != 0 {
                peer.answered(&request);
                peer.send(&wire::simple(cookie, error))?;
            } else {
                peer.answer(&request, &mut disk)?;
            }
        }
    });
    let mut front: Front = bench.open();
    let flags = if fua { cmd_flag::FUA } else { 0 };
    let length = payload.len() as u32;
    let cookie = front.submit(cmd::WRITE, flags, 4096, length, payload);
    assert_eq!(front.wait(cookie), Ok(()));
    assert_eq!(front.read(4096, length), Ok(payload.to_vec()));
    front.close();
    ticket.finished(mode);
    let seen: Vec<Seen> = told.iter().collect();
    let (read, rest) = seen.split_last().expect("a read at least");
    assert_eq!(read.0, cmd::READ);
    rest.to_vec()
}

fn ready() -> bool {
    need_all(&["nbdkit"])
}

const LENGTH: u32 = 64 << 10;

fn zeroes() -> Vec<u8> {
    vec![0; LENGTH as usize]
}

#[test]
fn zeroes_are_asked_for_as_such_with_their_flags() {
    if !ready() {
        return;
    }
    let all = Offer::default;
    let zero = cmd::WRITE_ZEROES;
    for fua in [false, true] {
        let flag = if fua { cmd_flag::FUA } else { 0 };
        let seen = |mode| asked(mode, all(), 0, &zeroes(), fua);
        assert_eq!(seen("off"), [(cmd::WRITE, flag, LENGTH)]);
        assert_eq!(seen("on"), [(zero, flag | cmd_flag::NO_HOLE, LENGTH)]);
        assert_eq!(seen("unmap"), [(zero, flag, LENGTH)]);
    }
}

#[test]
fn what_is_not_all_zeroes_or_is_short_is_written() {
    if !ready() {
        return;
    }
    for at in [0, 1, 4096, LENGTH as usize - 1] {
        let mut payload = zeroes();
        payload[at] = 1;
        let seen = asked("unmap", Offer::default(), 0, &payload, false);
        assert_eq!(seen, [(cmd::WRITE, 0, LENGTH)], "{at}");
    }
    for length in [512, 4095] {
        let payload = vec![0; length as usize];
        let seen = asked("unmap", Offer::default(), 0, &payload, false);
        assert_eq!(seen, [(cmd::WRITE, 0, length)]);
    }
}

#[test]
fn a_server_without_zeroes_gets_data() {
    if !ready() {
        return;
    }
    let offer = Offer {
        flags: Offer::default().flags & !(flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO),
        ..Offer::default()
    };
    let seen = asked("on", offer, 0, &zeroes(), true);
    assert_eq!(seen, [(cmd::WRITE, cmd_flag::FUA, LENGTH)]);
    for error in [errno::ENOTSUP, errno::EINVAL, errno::EOVERFLOW] {
        let seen = asked("on", Offer::default(), error, &zeroes(), true);
        let tried = (cmd::WRITE_ZEROES, cmd_flag::FUA | cmd_flag::NO_HOLE, LENGTH);
        assert_eq!(seen, [tried, (cmd::WRITE, cmd_flag::FUA, LENGTH)]);
    }
}

/// A gigabyte of zeroes from a source that cannot say that they are.
#[test]
fn a_disk_of_zeroes_is_copied_in_less_than_a_mebibyte() {
    if !ready() || !need_all(&["nbdcopy"]) {
        return;
    }
    for (mode, most) in [("on", 1 << 20), ("unmap", 1 << 20), ("off", u64::MAX)] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let size = if mode == "off" { "16M" } else { "1G" };
        let source_directory = tempfile::tempdir().expect("temporary directory");
        let source = Nbdkit::start(
            source_directory.path(),
            &["--filter=noextents", "memory", size],
        );
        let target = memory(directory.path(), size);
        let relay = Relay::unix(directory.path(), "relay.sock", target.socket());
        let front_directory = tempfile::tempdir().expect("temporary directory");
        let front = relay.forward(front_directory.path(), &[&format!("detect-zeroes={mode}")]);
        nbdcopy(&["-S", "0", &source.uri(), &front.uri()]);
        let sent: u64 = relay.recordings().iter().map(|wire| wire.sent).sum();
        assert!(sent < most, "{mode}: {sent} bytes");
        assert!(mode != "off" || sent > 16 << 20, "{sent} bytes are all");
    }
}
