// SPDX-License-Identifier: BSD-3-Clause
//! Statistics: what is counted is what was done.

mod common;

use std::fs;
use std::time::Instant;

use common::clients::{LIMIT, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::pki::{Authority, LOCALHOST};
use common::process::eventually;
use common::scripted::wire::errno;
use common::statistics::{Counted, are, figures, file, number, read};
use common::{need, need_all, tls};

#[test]
fn requests_and_bytes_are_counted_by_command() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "10M"], &[]);
    let mut client = counted.client();
    for n in 0..5 {
        client.read(n * 512, 512).expect("reads");
    }
    for n in 0..3 {
        client.write(n * 4096, &[1; 4096]).expect("writes");
    }
    client.flush().expect("flushes");
    client.trim(0, 8192).expect("trims");
    client.zero(8192, 1024, 0).expect("zeroes");
    client.status(0, 1 << 20).expect("extents");
    client.close();
    let figures = counted.end();
    are(
        &figures,
        &[
            ("stats_format", 1),
            ("read_requests", 5),
            ("read_bytes", 5 * 512),
            ("read_failed", 0),
            ("write_requests", 3),
            ("write_bytes", 3 * 4096),
            ("flush_requests", 1),
            ("flush_bytes", 0),
            ("trim_requests", 1),
            ("trim_bytes", 8192),
            ("zero_requests", 1),
            ("zero_bytes", 1024),
            ("extents_requests", 1),
            ("extents_bytes", 1 << 20),
            ("cache_requests", 0),
            ("all_requests", 12),
            ("all_failed", 0),
            ("connections_opened", 1),
            ("connections_lost", 0),
            ("connections_replaced", 0),
            ("requests_cut", 0),
            ("in_flight", 0),
            ("in_flight_max", 1),
            ("slow_requests", 0),
        ],
    );
    assert_eq!(figures["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(figures["tls_version"], "");
}

#[test]
fn all_clients_are_counted_together() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "1M"], &[]);
    let mut clients = [counted.client(), counted.client(), counted.client()];
    for client in &mut clients {
        client.read(0, 512).expect("reads");
    }
    clients.into_iter().for_each(Front::close);
    let server = counted.server.socket().display().to_string();
    let figures = counted.end();
    are(&figures, &[("read_requests", 3), ("connections_opened", 3)]);
    assert_eq!(figures["server"], server);
}

#[test]
fn errors_are_counted_by_number() {
    if !need("nbdkit") {
        return;
    }
    let server = [
        "--filter=error",
        "memory",
        "1M",
        "error-pread=EIO",
        "error-pread-rate=100%",
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=100%",
    ];
    let counted = Counted::start(&server, &[]);
    let mut client = counted.client();
    assert_eq!(client.read(0, 512), Err(errno::EIO));
    assert_eq!(client.read(0, 512), Err(errno::EIO));
    assert_eq!(client.write(0, &[1; 512]), Err(errno::ENOSPC));
    client.close();
    are(
        &counted.end(),
        &[
            ("read_requests", 2),
            ("read_failed", 2),
            ("read_bytes", 0),
            ("write_failed", 1),
            ("all_failed", 3),
            ("errors_EIO", 2),
            ("errors_ENOSPC", 1),
            ("errors_EPERM", 0),
            ("errors_other", 0),
        ],
    );
}

#[test]
fn a_server_that_takes_its_time_is_seen_in_the_server_time() {
    if !need("nbdkit") {
        return;
    }
    let server = ["--filter=delay", "memory", "1M", "rdelay=20ms"];
    let counted = Counted::start(&server, &[]);
    let mut client = counted.client();
    let begun = Instant::now();
    for n in 0..20 {
        client.read(n * 512, 512).expect("reads");
    }
    let all = begun.elapsed().as_micros() as u64;
    client.close();
    let figures = counted.end();
    let of = |key: &str| number(&figures, key);
    let order = [
        20_000,
        of("read_server_p50_us"),
        of("read_server_p90_us"),
        of("read_server_p99_us"),
        of("read_server_p999_us"),
        of("read_server_max_us"),
        all,
    ];
    assert!(order.is_sorted(), "{order:?}");
    // Half of them have at least that, and all of them together no more than there was.
    assert!(10 * of("read_queue_p50_us") <= all, "{figures:#?}");
    are(&figures, &[("write_server_max_us", 0)]);
}

#[test]
fn what_is_answered_from_memory_has_no_server_time() {
    if !need("nbdkit") {
        return;
    }
    let blocks = [
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-minimum=4096",
    ];
    let front = ["-r", "extents-cache=1M", "align=emulate"];
    let counted = Counted::start(&blocks, &front);
    let mut client = counted.client();
    client.status(0, 1 << 20).expect("extents");
    for (offset, length) in [(0, 4096), (1, 511)] {
        let read = client.read(offset, length);
        read.expect("reads what is known to be zero");
    }
    client.close();
    let figures = counted.end();
    are(
        &figures,
        &[("read_server_max_us", 0), ("reads_from_memory", 2)],
    );
}

#[test]
fn the_most_requests_in_flight_are_told() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "1M"], &["stats-interval=100ms"]);
    let mut client = counted.client();
    client.read(0, 512).expect("reads");
    counted.server.stop();
    let asked: Vec<_> = (0..8).map(|n| client.submit_read(n * 512, 512)).collect();
    eventually("all of them are in flight", LIMIT, || {
        let text = fs::read_to_string(file(counted.directory.path())).ok()?;
        (number(&figures(&text), "in_flight") == 8).then_some(())
    });
    counted.server.signal(libc::SIGCONT);
    for cookie in asked {
        client.wait_read(cookie).expect("reads");
    }
    client.close();
    let ended = [
        ("in_flight", 0),
        ("in_flight_max", 8),
        ("read_requests", 8 + 1),
    ];
    are(&counted.end(), &ended);
}

#[test]
fn requests_that_are_cut_and_their_pieces_are_counted() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "1M"], &["quirks=max-request=64K"]);
    let mut client = counted.client();
    client.read(0, 200_000).expect("reads");
    client.write(0, &[1; 131_072]).expect("writes");
    client.read(0, 65_536).expect("reads");
    client.close();
    let cut = [("requests_cut", 2), ("pieces", 4 + 2), ("all_requests", 3)];
    are(&counted.end(), &cut);
}

/// What goes in parts since it does not keep to the blocks is not cut for its length.
#[test]
fn parts_of_requests_that_are_not_aligned_are_no_pieces() {
    if !need("nbdkit") {
        return;
    }
    let server = [
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=64K",
    ];
    let counted = Counted::start(&server, &["align=emulate"]);
    let mut client = counted.client();
    client.write(100, &[1; 60_000]).expect("writes");
    // An edge, 47 blocks, and an edge.
    client.write(100, &[1; 200_000]).expect("writes");
    client.close();
    let cut = [("requests_cut", 1), ("pieces", 3), ("write_requests", 2)];
    are(&counted.end(), &cut);
}

#[test]
fn extents_from_memory_are_counted() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "1M"], &["extents-cache=1M"]);
    let mut client = counted.client();
    for _ in 0..3 {
        client.status(0, 65_536).expect("extents");
    }
    client.close();
    let told = [("extents_requests", 3), ("extents_from_memory", 2)];
    are(&counted.end(), &told);
}

#[test]
fn losses_and_what_was_written_again_are_counted() {
    if !need("nbdkit") {
        return;
    }
    let files = tempfile::tempdir().expect("temporary directory");
    let (disk, may_flush) = (files.path().join("disk"), files.path().join("may-flush"));
    fs::write(&disk, [0; 1 << 20]).expect("a disk");
    let disk = disk.display();
    // Until then nothing is flushed, not even by the plugin when it has nothing else to do.
    let server = [
        "eval",
        "get_size=echo 1M",
        "can_write=exit 0",
        "can_flush=exit 0",
        &format!("pread=dd if={disk} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none"),
        &format!("pwrite=dd of={disk} seek=$4 oflag=seek_bytes conv=notrunc status=none"),
        &format!("flush=test -e {} || sleep 1000", may_flush.display()),
    ];
    let mut counted = Counted::start(&server, &["reconnect=60"]);
    let mut client = counted.client();
    client.write(4096, &[7; 4096]).expect("writes");
    let socket = counted.server.socket().to_owned();
    counted.server.signal(libc::SIGKILL);
    assert!(counted.server.wait_timeout(LIMIT).is_some());
    fs::remove_file(&socket).expect("a socket that nobody listens on");
    fs::write(&may_flush, "").expect("a file");
    counted.server = Nbdkit::start_at(&socket, &server);
    // It finds out about the loss, waits, and is sent again.
    assert_eq!(client.read(4096, 4096), Ok(vec![7; 4096]));
    client.close();
    let figures = counted.end();
    // A flush of the plugin's own may have been another.
    assert!(number(&figures, "requests_sent_again") >= 1, "{figures:?}");
    are(
        &figures,
        &[
            ("connections_opened", 2),
            ("connections_lost", 1),
            ("connections_replaced", 1),
            ("replays", 1),
            ("replayed_requests", 1),
            ("replayed_bytes", 4096),
            ("all_requests", 2),
            ("all_failed", 0),
        ],
    );
}

#[test]
fn a_connection_that_was_left_is_not_lost_and_one_that_broke_is() {
    if !need("nbdkit") {
        return;
    }
    let mut counted = Counted::start(&["memory", "1M"], &[]);
    counted.client().close();
    let mut client = counted.client();
    counted.server.signal(libc::SIGKILL);
    assert!(counted.server.wait_timeout(LIMIT).is_some());
    assert!(client.read(0, 512).is_err());
    client.close();
    are(
        &counted.end(),
        &[
            ("connections_opened", 2),
            ("connections_lost", 1),
            ("connections_replaced", 0),
            ("read_failed", 1),
        ],
    );
}

#[test]
fn tls_is_told_in_the_words_of_its_library() {
    if !need_all(&["nbdkit", "certtool"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let certificates = authority.server("server", LOCALHOST);
    let server = tls::nbdkit(directory.path(), &certificates, &["memory", "1M"]);
    let trusting = format!("tls-certificates={}", text(&authority.trusting("client")));
    let stats = format!("stats={}", file(directory.path()).display());
    let args = ["tls=require", &trusting, "tls-hostname=localhost", &stats];
    let args = [&args[..], &["export=a name"]].concat();
    let mut front = forward(directory.path(), server.socket(), &args);
    Front::open(front.socket()).expect("opens").close();
    front.ends_well();
    let figures = read(directory.path());
    assert_eq!(figures["tls_version"], "TLSv1.3");
    assert!(figures["tls_cipher"].starts_with("TLS_"), "{figures:?}");
    assert!(!figures["tls_key_exchange"].is_empty(), "{figures:?}");
    assert_eq!(figures["export"], "a name");
}
