// SPDX-License-Identifier: BSD-3-Clause
//! One connection and one open at the server for each client, whatever it asks.

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};

use common::clients::{LIMIT, attempt, nbdsh_command, nbdsh_unconnected, program};
use common::counted::Counted;
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::pair::Pair;
use common::pki::keys;
use common::process::{Guarded, eventually};
use common::relay::Relay;
use common::scripted::Scripted;
use common::scripted::disk::{Disk, pattern};
use common::scripted::peer::Offer;
use common::scripted::wire::{self, cmd, opt, rep};
use common::{need, need_all};

const PLAIN: &[&str] = &["export=disk"];
const DYNAMIC: &[&str] = &["dynamic-export=true"];
/// `NBD_OPT_ABORT`, as it is sent.
const ABORT: &[u8] = b"IHAVEOPT\0\0\0\x02\0\0\0\0";

fn pair(extra: &[&str]) -> Pair<Counted> {
    Pair::with(Counted::start, extra)
}

/// Runs each program against a front of its own, whose server must be seen once.
fn seen_once(extra: &[&str], name: &str) {
    let image = |directory: &Path| directory.join("copy").display().to_string();
    type Arguments = fn(String, String) -> Vec<String>;
    let programs: [(&str, Arguments); 6] = [
        ("nbdinfo", |uri, _| vec![uri]),
        ("nbdinfo", |uri, _| vec!["--size".into(), uri]),
        ("nbdinfo", |uri, _| vec!["--map".into(), uri]),
        ("nbdcopy", |uri, _| {
            vec!["--connections=1".into(), uri, "null:".into()]
        }),
        ("qemu-img", |uri, _| vec!["info".into(), uri]),
        ("qemu-img", |uri, to| {
            let words = ["convert", "-f", "raw", "-O", "raw"].map(str::to_owned);
            words.into_iter().chain([uri, to]).collect()
        }),
    ];
    for (name_of_program, arguments) in programs {
        let pair = pair(extra);
        let arguments = arguments(pair.front.uri_export(name), image(pair.path()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        program(name_of_program, &arguments);
        assert_eq!(
            pair.server.visits(),
            (1, 1),
            "{name_of_program} {arguments:?}\n{}",
            pair.front.stderr()
        );
        assert_eq!(pair.server.count("list_exports"), 0);
    }
}

#[test]
fn programs_are_seen_once_in_plain_mode() {
    if need_all(&["nbdinfo", "nbdcopy", "qemu-img"]) {
        seen_once(PLAIN, "");
    }
}

#[test]
fn programs_are_seen_once_that_ask_for_the_default_export() {
    if need_all(&["nbdinfo", "nbdcopy", "qemu-img"]) {
        seen_once(DYNAMIC, "");
    }
}

#[test]
fn programs_are_seen_once_that_ask_for_another_export() {
    if need_all(&["nbdinfo", "nbdcopy", "qemu-img"]) {
        seen_once(DYNAMIC, "other");
    }
}

#[test]
fn programs_are_seen_once_by_ways_that_last() {
    if need_all(&["nbdinfo", "nbdcopy", "qemu-img"]) {
        seen_once(&["dynamic-export=true", "reconnect=10"], "");
    }
}

/// Runs a script with a handle that negotiates.
fn negotiate(front: &Nbdkit, script: &str) -> String {
    nbdsh_unconnected(&negotiating(front, script))
}

fn negotiating(front: &Nbdkit, script: &str) -> String {
    format!(
        "h.set_opt_mode(True)\nh.set_full_info(True)\nh.connect_unix('{}')\n{script}",
        front.socket().display()
    )
}

#[test]
fn list_info_and_go_travel_on_one_connection() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(DYNAMIC);
    let script = "
found = []
h.opt_list(lambda name, description: found.append(name))
print(found)
h.set_export_name('')
h.opt_info()
print(h.get_canonical_export_name())
h.opt_go()
assert h.pread(512, 0) == bytearray(512)
h.shutdown()
";
    assert_eq!(negotiate(&pair.front, script), "['disk', 'other']\ndisk\n");
    assert_eq!(pair.server.visits().0, 1, "{}", pair.front.stderr());
    assert_eq!(pair.server.count("list_exports"), 1);
}

#[test]
fn with_tls_it_is_done_once() {
    if !need_all(&["nbdkit", "psktool", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["alice"]);
    let psk = format!("tls-psk={}", keys.display());
    let server = Counted::with(directory.path(), &["--tls=require", &format!("--{psk}")]);
    for extra in [
        &["dynamic-export=true"][..],
        &["dynamic-export=true", "linger=9"],
    ] {
        let parameters = [&["tls=require", &psk, "tls-username=alice"], extra].concat();
        let mut front = forward(directory.path(), upstream(&server), &parameters);
        let before = server.visits();
        negotiate(
            &front,
            "
h.opt_list(lambda *args: 0)
h.set_export_name('')
h.opt_info()
h.opt_go()
h.pread(512, 0)
h.shutdown()
",
        );
        front.ends_well();
        assert_eq!(server.visits().0, before.0 + 1, "{}", front.stderr());
        let log = front.stderr();
        assert!(!log.contains("error: "), "{log}");
    }
}

#[test]
fn info_is_asked_again_and_again_for_one_open() {
    if !need("nbdkit") {
        return;
    }
    for extra in [PLAIN, DYNAMIC] {
        let pair = pair(extra);
        negotiate(
            &pair.front,
            "h.set_export_name('disk')\nfor i in range(5): h.opt_info()\nh.opt_go()\nh.shutdown()",
        );
        assert_eq!(pair.server.visits(), (1, 1), "{}", pair.front.stderr());
    }
}

#[test]
fn info_is_never_asked_before_go() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Counted::start(directory.path());
    let relay = Relay::unix(directory.path(), "relay.sock", upstream(&server));
    let front = relay.forward(directory.path(), DYNAMIC);
    program("nbdinfo", &["--size", &front.uri()]);
    server.visits();
    let sent = &relay.recordings()[0].to_server;
    let option = |option: u8| [&b"IHAVEOPT\0\0\0"[..], &[option]].concat();
    let asks = |option: &[u8]| sent.windows(12).any(|window| window == option);
    assert!(asks(&option(7)) && !asks(&option(6)));
    drop(relay);
}

fn upstream(server: &Counted) -> &Path {
    common::pair::Upstream::socket(server)
}

#[test]
fn a_refused_name_does_not_cost_another_connection() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(DYNAMIC);
    let script = "
h.set_export_name('nowhere')
try:
    h.opt_go()
    assert False
except nbd.Error:
    pass
h.set_export_name('other')
h.opt_go()
h.shutdown()
";
    negotiate(&pair.front, script);
    pair.server.await_count("close", 1);
    assert_eq!(
        pair.server.count("preconnect"),
        1,
        "{}",
        pair.front.stderr()
    );
}

#[test]
fn another_export_is_another_connection_and_the_first_is_left_before() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(DYNAMIC);
    let script = "
h.set_export_name('disk')
h.opt_info()
h.set_export_name('other')
h.opt_go()
h.shutdown()
";
    negotiate(&pair.front, script);
    assert_eq!(pair.server.visits(), (2, 2));
}

/// A client that negotiates, does as the script says, says so, and waits to be told to go on.
fn waiting(front: &Nbdkit, script: &str, then: &str) -> Guarded {
    let there = front.socket().with_extension("there");
    let go = front.socket().with_extension("go");
    let script = format!(
        "{}
import os, time
open('{}', 'w').close()
while not os.path.exists('{}'): time.sleep(0.01)
{then}",
        negotiating(front, script),
        there.display(),
        go.display()
    );
    let client = Guarded::spawn(nbdsh_command().args(["-c", &script]));
    eventually("the client is there", LIMIT, || {
        there.exists().then_some(())
    });
    client
}

fn go_on(front: &Nbdkit, mut client: Guarded) {
    std::fs::write(front.socket().with_extension("go"), "").expect("write a file");
    let status = client.wait_timeout(LIMIT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{}\n{}",
        client.stderr(),
        front.stderr()
    );
}

#[test]
fn a_client_that_leaves_after_a_list_leaves_the_server_by_abort() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Counted::start(directory.path());
    let relay = Relay::unix(directory.path(), "relay.sock", upstream(&server));
    let front = relay.forward(directory.path(), DYNAMIC);
    negotiate(&front, "h.opt_list(lambda *args: 0)\nh.opt_abort()");
    eventually("NBD_OPT_ABORT", LIMIT, || {
        relay.recordings()[0]
            .to_server
            .ends_with(ABORT)
            .then_some(())
    });
    assert_eq!(relay.recordings().len(), 1);
}

#[test]
fn a_client_that_vanishes_without_a_word_leaves_nothing() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(DYNAMIC);
    let script = "h.set_export_name('disk')\nh.opt_info()";
    let client = waiting(&pair.front, script, "");
    assert_eq!(
        pair.server.count("close"),
        0,
        "the way waits for the client"
    );
    client.signal(libc::SIGKILL);
    assert_eq!(pair.server.visits(), (1, 1));
}

#[test]
fn what_is_not_used_for_long_is_left_and_made_anew() {
    if !need("nbdkit") {
        return;
    }
    let pair = pair(PLAIN);
    let client = waiting(
        &pair.front,
        "h.opt_info()",
        "h.opt_go()\nh.pread(512, 0)\nh.shutdown()",
    );
    pair.server.await_count("close", 1);
    go_on(&pair.front, client);
    assert_eq!(pair.server.visits(), (2, 2));
}

#[test]
fn what_the_server_closed_meanwhile_is_replaced_unnoticed() {
    if !need("nbdkit") {
        return;
    }
    for (script, extra) in [
        ("h.opt_info()", &["export=disk"][..]),
        ("h.opt_info()", &["export=disk", "reconnect=10"]),
        ("h.opt_list(lambda *args: 0)", DYNAMIC),
    ] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Counted::start(directory.path());
        let relay = Relay::unix(directory.path(), "relay.sock", upstream(&server));
        let front = relay.forward(directory.path(), extra);
        let client = waiting(&front, script, "h.opt_go()\nh.pread(512, 0)\nh.shutdown()");
        relay.cut_now();
        go_on(&front, client);
        assert_eq!(server.count("preconnect"), 2);
        let log = front.stderr();
        assert!(!log.contains("error: "), "{log}");
    }
}

#[test]
fn at_the_end_of_nbdkit_what_is_half_done_is_left_in_good_order() {
    if !need("nbdkit") {
        return;
    }
    for (script, extra) in [
        ("h.opt_info()", PLAIN),
        ("h.opt_info()", &["export=disk", "reconnect=10"]),
        ("h.opt_list(lambda *args: 0)", DYNAMIC),
    ] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Counted::start(directory.path());
        let relay = Relay::unix(directory.path(), "relay.sock", upstream(&server));
        let mut front = relay.forward(directory.path(), extra);
        let client = waiting(&front, script, "");
        // nbdkit waits for its clients to leave.
        front.signal(libc::SIGTERM);
        client.signal(libc::SIGKILL);
        let status = front.wait_timeout(LIMIT);
        assert!(
            status.is_some_and(|status| status.success()),
            "{}",
            front.stderr()
        );
        let sent = relay.recordings()[0].to_server.clone();
        let disc = [&b"\x25\x60\x95\x13\0\0\0\x02"[..], &[0; 20]].concat();
        let ends_well = sent.ends_with(ABORT) || sent.ends_with(&disc);
        assert!(ends_well, "{script}: {:02x?}", &sent[sent.len() - 40..]);
    }
}

#[test]
fn nbdkit_s_only_thread_serves_its_only_client() {
    if !need_all(&["nbdinfo", "nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Counted::start(directory.path());
    let command = format!(
        "h.set_opt_mode(True)
h.connect_command(['nbdkit', '-s', '{}', 'socket={}', 'dynamic-export=true'])
h.opt_list(lambda *args: 0)
h.set_export_name('disk')
h.opt_info()
h.opt_go()
h.pread(512, 0)
h.shutdown()",
        common::plugin().display(),
        upstream(&server).display()
    );
    nbdsh_unconnected(&command);
    assert_eq!(server.visits(), (1, 1));
}

#[test]
fn a_server_that_lets_nobody_in_is_asked_once() {
    if !need("nbdinfo") {
        return;
    }
    let pair = Pair::with(
        |directory| Counted::with(directory, &["default_export=echo gone"]),
        DYNAMIC,
    );
    let refused = attempt("nbdinfo", &["--size", &pair.front.uri()]);
    assert!(!refused.status.success());
    assert_eq!(pair.server.count("preconnect"), 1);
    assert_eq!(pair.server.count("open"), 1, "{}", pair.front.stderr());
    let log = pair.front.stderr();
    assert!(log.contains("server refused NBD_OPT_GO"), "{log}");
}

#[test]
fn clients_side_by_side_have_a_connection_each() {
    if !need("nbdcopy") {
        return;
    }
    let pair = pair(DYNAMIC);
    let script = "
handles = []
for i in range(4):
    g = nbd.NBD()
    g.connect_uri('URI')
    handles.append(g)
for g in handles: g.pread(512, 0)
for g in handles: g.shutdown()
";
    nbdsh_unconnected(&script.replace("URI", &pair.front.uri()));
    assert_eq!(pair.server.visits(), (4, 4));
}

/// "The information item MAY be omitted if the client option request already used the canonical name."
#[test]
fn a_name_that_is_told_only_where_it_is_news_is_the_same_name_again() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let disk = Arc::new(Mutex::new(Disk::new(1 << 20)));
    let tickets: Vec<_> = [1, usize::MAX]
        .into_iter()
        .map(|answers| {
            let (asked, disk) = (asked.clone(), disk.clone());
            server.play(move |peer| {
                let offer = Offer::simple();
                peer.greet(offer.handshake_flags)?;
                let go = loop {
                    let option = peer.option()?;
                    if option.option == opt::GO {
                        break option;
                    }
                    peer.answer_option(&option, &offer)?;
                };
                let (name, _) = go.go();
                if name.is_empty() {
                    peer.reply(opt::GO, rep::INFO, &wire::info_payload(1, b"disk"))?;
                }
                asked.lock().expect("no panic").push(name);
                peer.send_infos(&offer)?;
                peer.accept_go(&offer)?;
                for _ in 0..answers {
                    let request = peer.request()?;
                    if request.kind == cmd::DISC {
                        break;
                    }
                    peer.answer(&request, &mut disk.lock().expect("no panic"))?;
                }
                Ok(())
            })
        })
        .collect();
    let extra = [
        "dynamic-export=true",
        "reconnect=20",
        "reconnect-delay=10ms:100ms",
    ];
    let front = forward(directory.path(), server.socket(), &extra);
    let mut client = Front::open(front.socket()).expect("an export");
    for n in 0..4 {
        assert_eq!(
            client.read(n * 512, 512),
            Ok(pattern(n * 512, 512)),
            "{}",
            front.stderr()
        );
    }
    client.close();
    assert_eq!(
        *asked.lock().expect("no panic"),
        [b"".to_vec(), b"disk".to_vec()]
    );
    for ticket in tickets {
        ticket.finished("a connection");
    }
}
