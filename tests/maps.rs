// SPDX-License-Identifier: BSD-3-Clause
//! Maps in bulk: what the server has told of its extents is not asked again, and never believed for too long.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::clients::{map, program, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::relay::Relay;
use common::scripted::bench::Bench;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, DONE, cmd, cmd_flag, errno, flag};
use common::upstream::{Server, memory, qemu_nbd};
use common::{need_all, need_extended};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A qcow2 image of so many fragments, each a cluster of 4 KiB, evenly over its size.
fn fragmented(directory: &Path, size: u64, fragments: u64) -> PathBuf {
    let image = directory.join("fragments.qcow2");
    let bytes = size.to_string();
    program(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=4k",
            text(&image),
            &bytes,
        ],
    );
    let step = size / fragments / 4096 * 4096;
    let mut writer = Command::new("qemu-io")
        .args(["-t", "unsafe", "-f", "qcow2", text(&image)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("qemu-io");
    let mut input = writer.stdin.take().expect("its input");
    for fragment in 0..fragments {
        writeln!(input, "write {} 4k", fragment * step).expect("it takes commands");
    }
    drop(input);
    assert!(writer.wait().expect("it ends").success());
    image
}

fn has_qemu() -> bool {
    need_all(&["nbdkit", "nbdinfo", "qemu-nbd", "qemu-img", "qemu-io"])
}

/// A server of an image behind a relay that counts what it is asked.
fn counted(directory: &Path, image: &Path) -> (Server, Relay) {
    let server = qemu_nbd(directory, image, "qcow2", "", &["-r"]);
    let relay = Relay::unix(directory, "relay.sock", server.socket());
    (server, relay)
}

/// What a client sees that asks for `piece` bytes at once, or one extent of them; and how many extents it was
/// told at once at most.
fn swept(socket: &Path, size: u64, piece: u64, one: bool) -> Vec<(u64, u64, u32)> {
    let mut front = Front::open_structured(socket).expect("opens");
    let mut all: Vec<(u64, u64, u32)> = Vec::new();
    let mut at = 0;
    while at < size {
        let length = u32::try_from(piece.min(size - at)).expect("below 4 GiB");
        let found = match one {
            true => front.status_one(at, length),
            false => front.status(at, length),
        };
        for (length, status) in found.expect("extents") {
            let length = u64::from(length);
            match all.last_mut() {
                Some(last) if last.2 == status => last.1 += length,
                _ => all.push((at, length, status)),
            }
            at += length;
        }
    }
    front.close();
    all
}

/// The bar of issue 16.
#[test]
fn the_map_of_a_large_disk_is_the_server_s_and_takes_no_more_questions() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = fragmented(directory.path(), 64 * GIB, 10_000);
    let (server, relay) = counted(directory.path(), &image);
    let other = Relay::unix(directory.path(), "direct.sock", server.socket());
    let direct = map(&common::nbdkit::uri(other.socket(), ""));
    assert_eq!(direct.lines().count(), 20_000);
    let front = relay.forward(directory.path(), &[]);
    assert_eq!(map(&front.uri()), direct);
    // nbdinfo is told all of it at once where it has extended headers, which nbdkit has not.
    let (ours, before) = (relay.status_queries(), other.status_queries());
    swept(other.socket(), 64 * GIB, 4 * GIB - 65536, false);
    let theirs = other.status_queries() - before;
    assert!(ours * 10 <= theirs * 12, "{ours} against {theirs}");
}

#[test]
fn pieces_of_a_sweep_are_answered_by_what_was_told_before() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = fragmented(directory.path(), 8 * GIB, 500);
    let (server, relay) = counted(directory.path(), &image);
    let expected = swept(server.socket(), 8 * GIB, GIB, false);
    assert_eq!(expected.len(), 1000);
    // 128 pieces, or 1000 extents: the server is asked for twice as much each time, up to 2 GiB.
    for extra in [&[][..], &["quirks=no-extended"], &["-r", "connections=4"]] {
        let front = relay.forward(directory.path(), extra);
        for (piece, one, most) in [
            (64 * MIB, false, 10),
            (2 * GIB, true, 10),
            (64 * MIB, true, 12),
        ] {
            let before = relay.status_queries();
            assert_eq!(swept(front.socket(), 8 * GIB, piece, one), expected);
            let asked = relay.status_queries() - before;
            assert!(
                asked <= most,
                "{asked} questions for pieces of {piece}, {one}, {extra:?}"
            );
        }
    }
}

/// Extended headers have room for more at once, unless the user says that it is too much.
#[test]
fn a_large_disk_takes_few_questions_with_extended_headers() {
    if !has_qemu() || !need_extended() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = fragmented(directory.path(), 64 * GIB, 500);
    let (server, relay) = counted(directory.path(), &image);
    let expected = swept(server.socket(), 64 * GIB, GIB, false);
    assert_eq!(expected.len(), 1000);
    for (extra, questions) in [
        (&[][..], 6..=8),
        (&["quirks=max-status=8G"], 10..=13),
        (&["quirks=no-extended"], 30..=40),
        (&["quirks=max-status=512M"], 128..=128),
    ] {
        let front = relay.forward(directory.path(), extra);
        let before = relay.status_queries();
        assert_eq!(swept(front.socket(), 64 * GIB, GIB, false), expected);
        let asked = relay.status_queries() - before;
        assert!(questions.contains(&asked), "{asked} questions, {extra:?}");
    }
}

#[test]
fn who_can_write_asks_each_time() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = fragmented(directory.path(), GIB, 50);
    let server = qemu_nbd(directory.path(), &image, "qcow2", "", &[]);
    let relay = Relay::unix(directory.path(), "relay.sock", server.socket());
    let front = relay.forward(directory.path(), &[]);
    let expected = swept(server.socket(), GIB, GIB, false);
    assert_eq!(swept(front.socket(), GIB, 64 * MIB, false), expected);
    assert_eq!(relay.status_queries(), 16);
    // With a cache it need not: the second sweep finds everything.
    let cached = relay.forward(directory.path(), &["extents-cache=1M"]);
    assert_eq!(swept(cached.socket(), GIB, 64 * MIB, false), expected);
    let first = relay.status_queries() - 16;
    assert!(first <= 6, "{first}");
    assert_eq!(swept(cached.socket(), GIB, 64 * MIB, false), expected);
    // The new connection may have been to another server, so it was asked again.
    assert!(relay.status_queries() - 16 <= 2 * first);
}

/// A server whose map changes each time it is asked: by turns all is data, and all is a hole.
fn moody(bench: &Bench, offer: &Offer) -> (common::scripted::Ticket, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let ticket = bench.play({
        let (offer, asked) = (offer.clone(), Arc::clone(&asked));
        move |peer| {
            peer.negotiate(&offer)?;
            loop {
                let request = peer.request()?;
                if request.kind == cmd::DISC {
                    return peer.expect_closed();
                }
                assert_eq!(request.kind, cmd::BLOCK_STATUS);
                let status = [0, 3][asked.fetch_add(1, Ordering::SeqCst) % 2];
                let left = u32::try_from(offer.size - request.offset).expect("small");
                let id = offer.contexts[0].0;
                peer.send(&wire::status(DONE, request.cookie, id, &[(left, status)]))?;
                peer.answered(&request);
            }
        }
    });
    (ticket, asked)
}

#[test]
fn who_goes_back_is_told_anew() {
    let bench = Bench::new(&[]);
    let offer = Offer {
        flags: flag::HAS_FLAGS | flag::READ_ONLY,
        ..Offer::default()
    };
    let (ticket, asked) = moody(&bench, &offer);
    let mut front = bench.open_structured();
    let mut status = |offset: u64| front.status(offset, 4096).expect("an extent")[0].1;
    assert_eq!(
        [status(0), status(4096), status(65536)],
        [0, 0, 0],
        "one sweep"
    );
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!([status(0), status(4096)], [3, 3], "another one");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(status(4096), 0, "the same question is meant");
    front.close();
    ticket.finished("a moody server");
}

#[test]
fn a_server_that_does_not_like_long_questions_is_asked_short_ones() {
    const MOST: u32 = 64 << 10;
    let bench = Bench::new(&[]);
    let offer = Offer {
        flags: flag::HAS_FLAGS | flag::READ_ONLY,
        ..Offer::default()
    };
    let refusals = Arc::new(AtomicUsize::new(0));
    let ticket = bench.play({
        let (offer, refusals) = (offer.clone(), Arc::clone(&refusals));
        move |peer| {
            peer.negotiate(&offer)?;
            loop {
                let request = peer.request()?;
                if request.kind == cmd::DISC {
                    return peer.expect_closed();
                }
                let one = request.flags & cmd_flag::REQ_ONE != 0;
                if request.length > MOST || !one {
                    refusals.fetch_add(1, Ordering::SeqCst);
                    peer.send(&wire::error(
                        DONE,
                        request.cookie,
                        errno::EINVAL,
                        b"too long",
                    ))?;
                } else {
                    let id = offer.contexts[0].0;
                    let extent = (request.length, 3);
                    peer.send(&wire::status(DONE, request.cookie, id, &[extent]))?;
                }
                peer.answered(&request);
            }
        }
    });
    let mut front = bench.open_structured();
    for offset in (0..8).map(|piece| piece * u64::from(MOST)) {
        assert_eq!(
            front.status_one(offset, MOST),
            Ok(vec![(MOST, 3)]),
            "{offset}"
        );
    }
    front.close();
    assert_eq!(refusals.load(Ordering::SeqCst), 1, "and is not asked again");
    ticket.finished("a strict server");
}

#[test]
fn zeroes_that_are_known_are_not_read() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = fragmented(directory.path(), 64 * MIB, 1);
    let server = qemu_nbd(directory.path(), &image, "qcow2", "", &[]);
    let relay = Relay::unix(directory.path(), "relay.sock", server.socket());
    for (extra, spared) in [
        (&["-r", "extents-cache=1M"][..], true),
        (&["-r", "extents-cache=1M", "reconnect=10"], true),
        (&["-r", "extents-cache=1M", "shared=true"], true),
        (&["-r"], false),
        (&["extents-cache=1M"], false),
    ] {
        let front = relay.forward(directory.path(), extra);
        let mut client = Front::open_structured(front.socket()).expect("opens");
        assert_eq!(client.status(0, 64 << 20).expect("extents").len(), 2);
        let before = relay.requests(0);
        // Zeroes, data, and zeroes with data before them.
        for (offset, length, data) in [(MIB, MIB, 0), (0, 4096, 4096), (2048, 4096, 2048)] {
            let read = client
                .read(offset, u32::try_from(length).expect("short"))
                .expect("reads");
            let expected = [vec![0xcd; data], vec![0; length as usize - data]].concat();
            assert_eq!(read, expected, "{extra:?} {offset}");
        }
        let reads = relay.requests(0) - before;
        assert_eq!(reads, if spared { 2 } else { 3 }, "{extra:?}");
        client.close();
    }
}

#[test]
fn a_write_of_any_client_is_in_the_map_of_all() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    for extra in [
        &["extents-cache=1M"][..],
        &["extents-cache=1M", "reconnect=10"],
        &["extents-cache=1M", "shared=true"],
        &["extents-cache=1M", "dynamic-export=true"],
        &["extents-cache=1M", "connections=4"],
        &["extents-cache=1M", "detect-zeroes=unmap", "linger=10"],
    ] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = memory(directory.path(), "64M");
        let front = forward(directory.path(), server.socket(), extra);
        // Exports of other names are the same disk here.
        let other = if extra.contains(&"dynamic-export=true") {
            "other"
        } else {
            ""
        };
        let mut reader = Front::open_structured(front.socket()).expect("opens");
        let mut writer = Front::open_as(front.socket(), other, false).expect("opens");
        let whole = |reader: &mut Front| reader.status(0, 64 << 20).expect("extents");
        assert_eq!(whole(&mut reader), [(64 << 20, 3)], "{extra:?}");
        writer.write(8 << 20, &[1; 4096]).expect("writes");
        let mut at = 0;
        let mut data = Vec::new();
        while at < 64 << 20 {
            for (length, status) in reader.status(at, (64 << 20) - at as u32).expect("extents") {
                if status == 0 {
                    data.push(at);
                }
                at += u64::from(length);
            }
        }
        assert_eq!(data, [8 << 20], "{extra:?}");
        // And back again, by the client itself.
        reader.zero(8 << 20, 4 << 20, 0).expect("zeroes");
        assert_eq!(
            reader.status_one(8 << 20, 4096).expect("extents")[0].1 & 2,
            2,
            "{extra:?}"
        );
        writer.close();
        reader.close();
    }
}

/// Clients that only read do not see what another one has changed as what it was.
#[test]
fn a_client_that_reads_only_sees_what_others_have_written() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    // The server's own choice: the export "ro" of the same disk cannot be written.
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = directory.path().join("disk");
    fs::File::create(&file)
        .and_then(|file| file.set_len(64 * MIB))
        .expect("a disk");
    let path = file.display();
    let server = Nbdkit::start(
        directory.path(),
        &[
            "eval".to_owned(),
            "open=echo \"$3\"".to_owned(),
            "can_write=[ \"$2\" != ro ] || exit 3".to_owned(),
            "can_extents=exit 0".to_owned(),
            format!("get_size=stat -c %s {path}"),
            format!("pread=dd if={path} iflag=count_bytes,skip_bytes skip=$4 count=$3 2>/dev/null"),
            format!("pwrite=dd of={path} conv=notrunc oflag=seek_bytes seek=$4 2>/dev/null"),
            // Two halves, each of which is a hole until it was written.
            format!(
                "extents=for half in 0 33554432; do \
                 if cmp -s -n 4096 -i $half:0 {path} /dev/zero; \
                 then echo $half 33554432 hole,zero; else echo $half 33554432; fi; done"
            ),
        ],
    );
    for extra in [
        &["dynamic-export=true"][..],
        &["dynamic-export=true", "extents-cache=1M"],
    ] {
        let front = forward(directory.path(), server.socket(), extra);
        let mut reader = Front::open_as(front.socket(), "ro", true).expect("opens");
        let mut writer = Front::open_as(front.socket(), "rw", false).expect("opens");
        let byte = if extra.len() == 1 { 1 } else { 2 };
        // The beginning of a sweep, by which the rest is known.
        assert!(!reader.status(0, 4096).expect("extents").is_empty());
        writer.write(32 << 20, &[byte; 4096]).expect("writes");
        let seen = reader.status(32 << 20, 4096).expect("extents");
        assert_eq!(seen[0].1, 0, "data: {extra:?}");
        assert_eq!(
            reader.read(32 << 20, 4096),
            Ok(vec![byte; 4096]),
            "{extra:?}"
        );
        writer.close();
        reader.close();
    }
}

/// A server that is replaced by one with other content: nothing of the first is believed any more.
#[test]
fn another_server_has_another_map() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("server.sock");
    let zeroes = Nbdkit::start_at(&socket, &["data", "size=1M", "0"]);
    let front = forward(
        directory.path(),
        &socket,
        &["-r", "extents-cache=1M", "reconnect=30"],
    );
    let mut client = Front::open_structured(front.socket()).expect("opens");
    assert_eq!(client.status(0, 1 << 20).expect("extents")[0].1 & 2, 2);
    assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
    drop(zeroes);
    fs::remove_file(&socket).expect("it has left its socket");
    let _ones = Nbdkit::start_at(&socket, &["data", "size=1M", "( 1 )*4096"]);
    // The client has asked the server for nothing meanwhile, and need not have noticed.
    assert_eq!(client.read(0, 4096), Ok(vec![1; 4096]));
    let seen = client.status(0, 4096).expect("extents");
    assert_eq!(seen[0].1, 0, "data");
    client.close();
}

/// Nor where that one is the next of several.
#[test]
fn the_next_of_several_servers_has_its_own_map() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let [first, second] = ["first.sock", "second.sock"].map(|name| directory.path().join(name));
    let next = format!("socket={}", second.display());
    for extra in [&[][..], &["reconnect=30"]] {
        let zeroes = Nbdkit::start_at(&first, &["data", "size=1M", "0"]);
        let ones = Nbdkit::start_at(&second, &["data", "size=1M", "( 1 )*4096"]);
        let several = [&next, "servers=failover", "-r", "extents-cache=1M"];
        let front = forward(directory.path(), &first, &[&several, extra].concat());
        let mut client = Front::open_structured(front.socket()).expect("opens");
        assert_eq!(client.status(0, 1 << 20).expect("extents")[0].1 & 2, 2);
        assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
        drop(zeroes);
        if extra.is_empty() {
            client = Front::open_structured(front.socket()).expect("opens");
        }
        assert_eq!(client.read(0, 4096), Ok(vec![1; 4096]), "{extra:?}");
        let seen = client.status(0, 4096).expect("extents");
        assert_eq!(seen[0].1, 0, "data: {extra:?}");
        client.close();
        drop((front, ones));
        let left = |socket: &PathBuf| socket.exists().then(|| fs::remove_file(socket));
        [&first, &second]
            .into_iter()
            .filter_map(left)
            .for_each(|removed| removed.expect("removed"));
    }
}

/// Clients of a server that was lost cannot be told of zeroes that nobody can vouch for.
#[test]
fn zeroes_are_not_known_of_a_server_that_is_gone() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let front = forward(
        directory.path(),
        server.socket(),
        &["-r", "extents-cache=1M"],
    );
    let mut client = Front::open_structured(front.socket()).expect("opens");
    assert_eq!(client.status(0, 1 << 20), Ok(vec![(1 << 20, 3)]));
    assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
    drop(server);
    assert!(client.read(0, 4096).is_err(), "it is gone");
    assert!(client.status(0, 4096).is_err(), "it is gone");
}

/// Sixteen answers of as many extents as are kept, one after the other: memory does not grow with them.
#[test]
fn kept_maps_take_a_bounded_amount_of_memory() {
    const COUNT: u32 = 1 << 18;
    // Each thread of nbdkit's would have its own.
    let bench = Bench::new(&["--threads=1"]);
    let offer = Offer {
        size: 1 << 40,
        flags: flag::HAS_FLAGS | flag::READ_ONLY,
        ..Offer::default()
    };
    let ticket = bench.play({
        let offer = offer.clone();
        move |peer| {
            peer.negotiate(&offer)?;
            // Alternating, so that none can be joined with its neighbour.
            let extents: Vec<(u32, u32)> = (0..COUNT).map(|i| (512, i % 2 * 3)).collect();
            loop {
                let request = peer.request()?;
                if request.kind == cmd::DISC {
                    return peer.expect_closed();
                }
                let id = offer.contexts[0].0;
                peer.send(&wire::status(DONE, request.cookie, id, &extents))?;
                peer.answered(&request);
            }
        }
    });
    let mut front = bench.open_structured();
    let mut status = |at: u64| front.status(at, 1 << 30).map(|extents| extents.len());
    assert_eq!(status(0), Ok(1 << 17), "as many as qemu sends in a chunk");
    let before = bench.resident_kib();
    for at in 1..16 {
        assert_eq!(status(at << 30), Ok(1 << 17));
    }
    let grown = bench.resident_kib().saturating_sub(before);
    assert!(grown < 24 << 10, "{grown} KiB");
    front.close();
    ticket.finished("many extents");
}

/// A server that loses what it was to make permanent: what it says of the range is true until that is written again,
/// before the next flush.
#[test]
fn what_is_written_again_is_in_the_map() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let bench = Bench::new(&["extents-cache=1M", "reconnect=10"]);
    let offer = Offer::default();
    let ticket = bench.play(move |peer| {
        peer.negotiate(&offer)?;
        let (mut written, mut failed) = (false, false);
        loop {
            let request = peer.request()?;
            let reply = match request.kind {
                cmd::DISC => return peer.expect_closed(),
                cmd::WRITE => {
                    written = true;
                    wire::simple(request.cookie, 0)
                }
                cmd::FLUSH if !failed => {
                    (written, failed) = (false, true);
                    wire::simple(request.cookie, errno::EIO)
                }
                cmd::FLUSH => wire::simple(request.cookie, 0),
                cmd::BLOCK_STATUS => {
                    let status = if written { 0 } else { 3 };
                    let left = u32::try_from(offer.size - request.offset).expect("small");
                    let id = offer.contexts[0].0;
                    wire::status(DONE, request.cookie, id, &[(left, status)])
                }
                other => panic!("command {other}"),
            };
            peer.send(&reply)?;
            peer.answered(&request);
        }
    });
    let mut front = bench.open_structured();
    let told = |front: &mut Front| front.status(0, 4096).expect("extents")[0].1;
    assert_eq!(told(&mut front), 3);
    assert_eq!(front.write(0, &[1; 4096]), Ok(()));
    assert_eq!(front.flush(), Err(errno::EIO));
    assert_eq!(told(&mut front), 3, "it was lost");
    assert_eq!(front.flush(), Ok(()));
    assert_eq!(told(&mut front), 0, "it was written again");
    front.close();
    ticket.finished("a flush that fails");
}
