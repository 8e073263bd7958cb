// SPDX-License-Identifier: BSD-3-Clause
//! Statistics: what is counted is what was done, where and when it is written, and what slow requests are
//! told of.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::fs::OFlags;
use tempfile::TempDir;

use common::clients::{LIMIT, attempt, nbdsh_unconnected, text};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, plugin_args};
use common::pki::{Authority, LOCALHOST};
use common::process::{Guarded, eventually, hand_over, run_ok};
use common::scripted::wire::errno;
use common::upstream::memory;
use common::{manual, need, need_all, plugin, tls};

/// The figures in a block, as text.
type Figures = BTreeMap<String, String>;

fn figures(block: &str) -> Figures {
    let pair = |line: &str| {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
        (key.to_owned(), value.to_owned())
    };
    block.lines().map(pair).collect()
}

/// A server, the plugin before it, and where its statistics are.
struct Counted {
    front: Nbdkit,
    server: Nbdkit,
    directory: TempDir,
}

impl Counted {
    /// `server` are nbdkit's arguments for the one, `front` further ones for the other.
    fn start(server: &[&str], front: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Nbdkit::start(directory.path(), server);
        let stats = format!("stats={}", file(directory.path()).display());
        let front = forward(
            directory.path(),
            server.socket(),
            &[&[stats.as_str()], front].concat(),
        );
        Self {
            front,
            server,
            directory,
        }
    }

    fn client(&self) -> Front {
        Front::open_structured(self.front.socket()).expect("opens")
    }

    /// What there is when nbdkit has ended.
    fn end(mut self) -> Figures {
        self.front.ends_well();
        read(self.directory.path())
    }
}

fn file(directory: &Path) -> PathBuf {
    directory.join("stats")
}

fn read(directory: &Path) -> Figures {
    figures(&fs::read_to_string(file(directory)).expect("statistics"))
}

/// Each of these figures is what it should be.
fn are(figures: &Figures, expected: &[(&str, u64)]) {
    let came: Vec<_> = expected
        .iter()
        .map(|(key, _)| (*key, number(figures, key)))
        .collect();
    assert_eq!(came, expected, "{figures:#?}");
}

fn number(figures: &Figures, key: &str) -> u64 {
    let value = figures.get(key).unwrap_or_else(|| panic!("no {key}"));
    value
        .parse()
        .unwrap_or_else(|error| panic!("{key}={value}: {error}"))
}

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
    counted.server.signal(libc::SIGSTOP);
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
    let ended = [("in_flight", 0), ("in_flight_max", 8), ("read_requests", 8)];
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

// --- where and when -------------------------------------------------------------------------------------

#[test]
fn the_file_is_written_while_nbdkit_runs_and_always_whole() {
    if !need("nbdkit") {
        return;
    }
    let mut counted = Counted::start(&["memory", "1M"], &["stats-interval=100ms"]);
    let directory = counted.directory.path().to_owned();
    let mut client = counted.client();
    let whole = |known: &mut usize| {
        let block = fs::read_to_string(file(&directory)).ok()?;
        assert!(block.ends_with('\n'), "{block:?}");
        let keys = figures(&block).len();
        assert!(*known == 0 || *known == keys, "{block}");
        *known = keys;
        Some(number(&figures(&block), "read_requests"))
    };
    let mut known = 0;
    for n in 1..=3 {
        client.read(0, 512).expect("reads");
        eventually("it is written", LIMIT, || {
            (whole(&mut known)? == n).then_some(())
        });
    }
    client.close();
    counted.front.ends_well();
    let entries = fs::read_dir(&directory).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").path());
    let left: Vec<_> = names.filter(|name| text(name).ends_with(".tmp")).collect();
    assert_eq!(left, [""; 0].map(PathBuf::from));
}

#[test]
fn standard_error_gets_each_block() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let args = ["stats=stderr", "stats-interval=100ms"];
    let mut front = forward(directory.path(), server.socket(), &args);
    let blocks = |front: &Nbdkit| front.stderr().matches("stats_format=1\n").count();
    eventually("two are written", LIMIT, || {
        (blocks(&front) >= 2).then_some(())
    });
    Front::open(front.socket()).expect("opens").close();
    front.ends_well();
    let log = front.stderr();
    let (_, last) = log.rsplit_once("stats_format=1\n").expect("a block");
    assert!(last.contains("\nconnections_opened=1\n"), "{last}");
    assert!(last.contains("\nextents_server_max_us=0\n"), "{last}");
}

/// Nor is it told that nobody reads: that would have to be read, too.
#[test]
fn standard_error_that_nobody_reads_does_not_keep_nbdkit_from_ending() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let (_reader, writer) = rustix::pipe::pipe().expect("a pipe");
    set_flags(&writer, OFlags::NONBLOCK);
    while rustix::io::write(&writer, &[b'\n'; 4096]).is_ok() {}
    while rustix::io::write(&writer, b"\n").is_ok() {}
    set_flags(&writer, OFlags::empty());
    // Nothing but what has to be said: there is no room for debug output.
    let plugin = plugin().display().to_string();
    let socket = format!("socket={}", server.socket().display());
    let args = [&*plugin, &socket, "stats=stderr"];
    let mut front = Nbdkit::start_with(directory.path(), &args, |command| {
        hand_over(command, &writer, 2);
    });
    Front::open(front.socket()).expect("opens").close();
    front.ends_well();
}

fn set_flags(pipe: &OwnedFd, flags: OFlags) {
    rustix::fs::fcntl_setfl(pipe, flags).expect("sets flags");
}

#[test]
fn a_file_is_where_the_user_was_also_in_the_background() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let socket = format!("socket={}", server.socket().display());
    let args = [&*socket, "stats=stats", "stats-interval=100ms"];
    let daemon = Daemon::start(directory.path(), &args);
    eventually("it is written", LIMIT, || {
        file(directory.path()).exists().then_some(())
    });
    drop(daemon);
    are(&read(directory.path()), &[("stats_format", 1)]);
}

#[test]
fn a_captive_command_and_a_single_client_are_counted_too() {
    if !need_all(&["nbdkit", "nbdsh", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let socket = format!("socket={}", server.socket().display());
    let stats = format!("stats={}", file(directory.path()).display());

    let mut captive = Command::new("nbdkit");
    captive
        .args(["-U", "-"])
        .args(plugin_args(&[&socket, &stats]));
    captive.args(["--run", "nbdinfo --size \"$uri\""]);
    run_ok(&mut captive, LIMIT);
    are(&read(directory.path()), &[("connections_opened", 1)]);

    let plugin = plugin().display().to_string();
    nbdsh_unconnected(&format!(
        "h.connect_command(['nbdkit', '-s', '{plugin}', '{socket}', '{stats}'])\n\
         h.pread(512, 0)\n\
         h.shutdown()\n"
    ));
    eventually("it has ended", LIMIT, || {
        let text = fs::read_to_string(file(directory.path())).ok()?;
        (number(&figures(&text), "read_requests") == 1).then_some(())
    });
}

#[test]
fn a_directory_that_has_gone_is_told_of_once_and_harms_nobody() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let there = directory.path().join("there");
    fs::create_dir(&there).expect("a directory");
    let server = memory(directory.path(), "1M");
    let stats = format!("stats={}", file(&there).display());
    let args = [&*stats, "stats-interval=100ms"];
    let mut front = forward(directory.path(), server.socket(), &args);
    let gone = || eventually("it is gone", LIMIT, || fs::remove_dir_all(&there).ok());
    let told = |front: &Nbdkit, count| {
        eventually("it is told", LIMIT, || {
            (front.errors().len() == count).then_some(())
        });
    };
    gone();
    told(&front, 1);
    let mut client = Front::open(front.socket()).expect("opens");
    client.read(0, 512).expect("reads");
    // Later tries are in the debug output only.
    eventually("it is tried again", LIMIT, || {
        let log = front.stderr();
        (log.matches("there/stats").count() >= 6).then_some(())
    });
    assert_eq!(front.errors().len(), 1, "{:?}", front.errors());
    fs::create_dir(&there).expect("a directory");
    eventually("it is written again", LIMIT, || {
        file(&there).exists().then_some(())
    });
    are(&read(&there), &[("read_requests", 1)]);
    gone();
    told(&front, 2);
    client.close();
    front.ends_well();
}

#[test]
fn a_full_file_system_is_told_of_and_the_last_block_stays() {
    if !need_all(&["nbdkit", "unshare"]) {
        return;
    }
    let own = ["--map-root-user", "--mount"];
    if !attempt("unshare", &[&own[..], &["true"]].concat())
        .status
        .success()
    {
        println!("SKIP: {}: no mount namespaces here", common::test_name());
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let small = directory.path().join("small");
    fs::create_dir(&small).expect("a directory");
    let server = memory(directory.path(), "1M");
    let socket = directory.path().join("front.sock");
    let mut command = Command::new("unshare");
    command
        .args(own)
        // Two pages: one for what is there, and one for what takes its place.
        .args([
            "sh",
            "-c",
            "mount -t tmpfs -o size=8k none \"$0\" && exec nbdkit \"$@\"",
        ])
        .arg(&small)
        .args(["-f", "-U", text(&socket), text(&plugin())])
        .arg(format!("socket={}", server.socket().display()))
        .arg(format!("stats={}", file(&small).display()))
        .arg("stats-interval=100ms");
    let front = Guarded::spawn(&mut command);
    let inside = PathBuf::from(format!("/proc/{}/root{}", front.pid(), small.display()));
    let written = || {
        fs::read_to_string(file(&inside))
            .ok()
            .map(|text| figures(&text))
    };
    let keys = eventually("it is written", LIMIT, || Some(written()?.len()));
    let fill = inside.join("fill");
    eventually("it is told", LIMIT, || {
        fs::write(&fill, [1; 8192]).expect_err("there is less room");
        let full = "No space left on device; requests are served all the same";
        front.stderr().contains(full).then_some(())
    });
    assert_eq!(written().expect("still there").len(), keys);
    let mut client = Front::open(&socket).expect("opens");
    client.read(0, 512).expect("reads");
    fs::remove_file(&fill).expect("there");
    eventually("it is written again", LIMIT, || {
        (number(&written()?, "read_requests") == 1).then_some(())
    });
    client.close();
}

#[test]
fn what_is_no_file_is_left_alone() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let target = directory.path().join("target");
    fs::write(&target, "precious").expect("a file");
    std::os::unix::fs::symlink(&target, file(directory.path())).expect("a link");
    let stats = format!("stats={}", file(directory.path()).display());
    let refusal = common::refusal::refusal(&["socket=/nowhere", &stats]);
    assert!(refusal.contains("not a regular file"), "{refusal}");
    assert_eq!(fs::read_to_string(&target).expect("there"), "precious");
}

// --- what the manual says -------------------------------------------------------------------------------

/// The items below a heading of the chapter.
fn documented(heading: &str) -> Vec<String> {
    let chapter = manual::section(Some("STATISTICS"));
    let (_, rest) = chapter
        .split_once(&format!("=head2 {heading}\n"))
        .unwrap_or_else(|| panic!("no {heading}"));
    let text = rest.split("\n=head2 ").next().expect("a first part");
    manual::items(text)
}

/// A key of the manual's with all that its blanks stand for.
fn spelt_out(item: &str) -> Vec<String> {
    const BLANKS: [(&str, &[&str]); 3] = [
        (
            "COMMAND",
            &[
                "all", "read", "write", "flush", "trim", "zero", "cache", "extents",
            ],
        ),
        ("QUANTILE", &["p50", "p90", "p99", "p999", "max"]),
        (
            "ERRNO",
            &[
                "EPERM",
                "EIO",
                "ENOMEM",
                "EINVAL",
                "ENOSPC",
                "EOVERFLOW",
                "ENOTSUP",
                "ESHUTDOWN",
                "other",
            ],
        ),
    ];
    let mut all = vec![item.to_owned()];
    for (blank, words) in BLANKS {
        let filled = |item: String| -> Vec<String> {
            match item.contains(blank) {
                true => words.iter().map(|word| item.replace(blank, word)).collect(),
                false => vec![item],
            }
        };
        all = all.into_iter().flat_map(filled).collect();
    }
    all
}

#[test]
fn the_manual_has_the_keys_that_are_written_and_no_others() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "1M"], &[]);
    let written: BTreeSet<String> = counted.end().into_keys().collect();
    let items = documented("Keys");
    let documented: BTreeSet<String> = items.iter().flat_map(|item| spelt_out(item)).collect();
    let undocumented: Vec<_> = written.difference(&documented).collect();
    let unwritten: Vec<_> = documented.difference(&written).collect();
    assert!(
        undocumented.is_empty() && unwritten.is_empty(),
        "\nwritten, but not in the manual: {undocumented:#?}\nin the manual, but not written: {unwritten:#?}"
    );
}

// --- Prometheus -----------------------------------------------------------------------------------------

/// A line of Prometheus' text format.
#[derive(Debug)]
struct Sample {
    metric: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads the text format, and insists on all that its description demands: a HELP and a TYPE before the
/// samples of a metric, all of which stand together; names of the right characters; and no sample twice.
fn prometheus(text: &str) -> (Vec<Sample>, BTreeMap<String, String>) {
    let mut samples = Vec::new();
    let mut types = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (metric, help) = rest.split_once(' ').expect("a text");
            assert!(!help.is_empty() && !help.contains('\\'), "{line}");
            assert!(helped.insert(metric.to_owned()), "twice: {line}");
            metric.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (metric, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(metric, current, "behind its HELP: {line}");
            assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
            types.insert(metric.to_owned(), kind.to_owned());
        } else {
            let sample = sample(line);
            let family = match types.get(&current).map(String::as_str) {
                Some("summary") => sample
                    .metric
                    .strip_suffix("_sum")
                    .or(sample.metric.strip_suffix("_count"))
                    .unwrap_or(&sample.metric),
                Some(_) => &sample.metric,
                None => panic!("no type: {line}"),
            };
            assert_eq!(family, current, "{line}");
            let identity = line.rsplit_once(' ').expect("a value").0;
            assert!(seen.insert(identity.to_owned()), "twice: {line}");
            samples.push(sample);
        }
    }
    (samples, types)
}

fn sample(line: &str) -> Sample {
    let is_name = |name: &str| {
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
    };
    let (metric, rest) = line.split_once('{').expect("labels");
    assert!(is_name(metric), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        let (label, behind) = rest.split_once("=\"").expect("a label");
        assert!(is_name(label), "{line}");
        let mut value = String::new();
        let mut characters = behind.char_indices();
        let end = loop {
            let (at, c) = characters.next().expect("an end");
            value.push(match c {
                '"' => break at,
                '\\' => match characters.next().expect("what is escaped").1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    other => panic!("\\{other}: {line}"),
                },
                c => c,
            });
        };
        assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
        rest = &behind[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    let value = rest.strip_prefix("} ").expect("a value");
    Sample {
        metric: metric.to_owned(),
        labels,
        value: value.parse().expect("a number"),
    }
}

#[test]
fn prometheus_gets_what_was_done_in_its_own_format() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let path = directory.path().join("my \"disk\".prom");
    let stats = format!("stats={}", path.display());
    let args = [&*stats, "stats-format=prometheus", "export=a\\b\"c\nd"];
    let mut front = forward(directory.path(), server.socket(), &args);
    let mut client = Front::open(front.socket()).expect("opens");
    client.read(0, 512).expect("reads");
    client.read(0, 512).expect("reads");
    client.close();
    front.ends_well();
    let text = fs::read_to_string(&path).expect("statistics");
    let (samples, types) = prometheus(&text);
    assert!(samples.iter().all(|of| of.labels["name"] == "my \"disk\""));
    let value = |metric: &str, labels: &[(&str, &str)]| {
        let is_it = |of: &&Sample| {
            let has =
                |(label, value): &(&str, &str)| of.labels.get(*label).is_some_and(|is| is == value);
            of.metric == metric && labels.iter().all(has)
        };
        let found: Vec<_> = samples.iter().filter(is_it).collect();
        assert_eq!(found.len(), 1, "{metric} {labels:?}: {found:?}");
        found[0].value
    };
    let read = [("command", "read")];
    assert_eq!(value("nbdkit_nbd_requests_total", &read), 2.0);
    assert_eq!(value("nbdkit_nbd_bytes_total", &read), 1024.0);
    assert_eq!(value("nbdkit_nbd_server_seconds_count", &read), 2.0);
    assert_eq!(value("nbdkit_nbd_connections_opened_total", &[]), 1.0);
    assert_eq!(value("nbdkit_nbd_errors_total", &[("errno", "EIO")]), 0.0);
    let median = value(
        "nbdkit_nbd_server_seconds",
        &[("command", "read"), ("quantile", "0.5")],
    );
    let longest = value(
        "nbdkit_nbd_server_seconds",
        &[("command", "read"), ("quantile", "1")],
    );
    assert!(0.0 < median && median <= longest && longest < 60.0);
    assert!(value("nbdkit_nbd_server_seconds_sum", &read) >= longest);
    // Control characters are made visible, as they are everywhere.
    let info = samples.iter().find(|of| of.metric == "nbdkit_nbd_info");
    assert_eq!(info.expect("there").labels["export"], "a\\b\"c\\nd");

    let documented: BTreeSet<String> = documented("For Prometheus").into_iter().collect();
    let written: BTreeSet<String> = types.into_keys().collect();
    assert_eq!(written, documented);
}

// --- slow requests --------------------------------------------------------------------------------------

fn slow_lines(front: &Nbdkit) -> Vec<String> {
    let errors = front.errors().into_iter();
    errors
        .filter(|line| line.contains("slow request: "))
        .collect()
}

#[test]
fn slow_requests_are_told_with_their_times() {
    if !need("nbdkit") {
        return;
    }
    let server = ["--filter=delay", "memory", "1M", "rdelay=300ms"];
    let counted = Counted::start(&server, &["slow-log=200ms"]);
    let mut client = counted.client();
    client.read(8192, 512).expect("reads");
    client.close();
    let [line] = &*slow_lines(&counted.front) else {
        panic!("{:?}", counted.front.errors());
    };
    let server = counted.server.socket().display();
    let told = format!("{server}: slow request: read offset=8192 length=512 took ");
    assert!(line.contains(&told), "{line}");
    let (_, times) = line.split_once(" took ").expect("found above");
    let times: Vec<f64> = times
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let [total, queue, server] = times[..] else {
        panic!("{line}");
    };
    assert!(server >= 300.0, "{line}");
    assert!((queue + server - total).abs() < 0.01, "{line}");
    are(&counted.end(), &[("slow_requests", 1)]);
}

#[test]
fn requests_that_are_not_slow_are_not_told() {
    if !need("nbdkit") {
        return;
    }
    let counted = Counted::start(&["memory", "1M"], &["slow-log=1000"]);
    let mut client = counted.client();
    client.read(0, 512).expect("reads");
    client.close();
    assert_eq!(slow_lines(&counted.front), [""; 0]);
    are(&counted.end(), &[("slow_requests", 0)]);
}

#[test]
fn a_slow_server_does_not_flood_the_log() {
    if !need("nbdkit") {
        return;
    }
    const READS: u64 = 2000;
    let begun = Instant::now();
    let counted = Counted::start(&["memory", "1M"], &["slow-log=0.000001"]);
    let mut client = counted.client();
    for _ in 0..READS / 10 {
        let asked: Vec<_> = (0..10).map(|n| client.submit_read(n * 512, 512)).collect();
        for cookie in asked {
            client.wait_read(cookie).expect("reads");
        }
    }
    client.close();
    let seconds = begun.elapsed().as_secs() + 2;
    let lines = slow_lines(&counted.front);
    assert!(!lines.is_empty());
    assert!(lines.len() as u64 <= 10 * seconds, "{} lines", lines.len());
    let untold = |line: &String| -> Option<u64> {
        let (_, rest) = line.rsplit_once('(')?;
        rest.split_once(' ')?.0.parse().ok()
    };
    let untold: u64 = lines.iter().filter_map(untold).sum();
    assert!(lines.len() as u64 + untold <= READS, "{untold} untold");
    are(&counted.end(), &[("slow_requests", READS)]);
}
