// SPDX-License-Identifier: BSD-3-Clause
//! Random writers, and a server that is killed again and again: nothing that was acknowledged is lost, undone or
//! torn, and nbdkit lives on.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::path::PathBuf;

use common::clients::text;
use common::pki::{Authority, LOCALHOST, TOOLS};
use common::scripted::wire::flag;
use common::{need, need_all};
use torture::ordeal::Ordeal;
use torture::setup::{FLAGS, Setup};
use torture::writer::Mix;

/// Back as soon as can be.
const DELAY: &str = "reconnect-delay=10ms:200ms";

#[test]
fn without_kills() {
    Ordeal {
        kills: 0,
        extra: &[],
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn forty_kills() {
    Ordeal::default().endure();
}

/// The journal is full all the time: it must be emptied by flushes of the plugin's own, and writes must wait.
#[test]
fn with_a_small_journal() {
    Ordeal {
        kills: 15,
        extra: &["reconnect=30", DELAY, "replay=192K"],
        mix: Mix {
            flushes: 0,
            ..Mix::default()
        },
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn over_tls() {
    if !need_all(TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let certificates = format!("tls-certificates={}", text(&authority.trusting("client")));
    Ordeal {
        setup: Setup {
            tls: authority.server("server", LOCALHOST),
            ..Setup::default()
        },
        kills: 15,
        extra: &[
            "reconnect=30",
            DELAY,
            "tls=require",
            "tls-hostname=localhost",
            &certificates,
        ],
        ..Ordeal::default()
    }
    .endure();
}

/// nbdkit starts the server, again and again.
#[test]
fn started_by_the_plugin() {
    Ordeal {
        by_command: true,
        kills: 8,
        ..Ordeal::default()
    }
    .endure();
}

/// Here a dead server resets connections, and now and then one that lives breaks them all.
#[test]
fn over_tcp_with_broken_connections() {
    Ordeal {
        setup: Setup {
            port: 1,
            cut_every: 900,
            ..Setup::default()
        },
        kills: 6,
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn shared_by_three_clients() {
    Ordeal {
        clients: 3,
        depth: 24,
        kills: 15,
        extra: &["reconnect=30", DELAY, "shared=true", "replay=1M"],
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn two_clients_on_connections_of_their_own() {
    Ordeal {
        setup: Setup {
            cut_every: 1500,
            ..Setup::default()
        },
        clients: 2,
        depth: 32,
        kills: 15,
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn two_clients_before_a_server_with_one_cache_for_all() {
    Ordeal {
        setup: Setup {
            flags: FLAGS | flag::CAN_MULTI_CONN,
            cut_every: 1500,
            ..Setup::default()
        },
        clients: 2,
        depth: 32,
        kills: 15,
        extra: &["reconnect=30", DELAY, "replay=512K"],
        ..Ordeal::default()
    }
    .endure();
}

/// One client, whose requests go over four connections.
#[test]
fn over_several_connections() {
    if !need("nbdkit") {
        return;
    }
    Ordeal {
        setup: Setup {
            flags: FLAGS | flag::CAN_MULTI_CONN,
            ..Setup::default()
        },
        kills: 15,
        extra: &["reconnect=30", DELAY, "connections=4"],
        ..Ordeal::default()
    }
    .endure();
}

/// They break now and then, flushes fail, and the journal is small.
#[test]
fn over_several_connections_with_trouble() {
    if !need("nbdkit") {
        return;
    }
    Ordeal {
        setup: Setup {
            flags: FLAGS | flag::CAN_MULTI_CONN,
            cut_every: 1100,
            ..Setup::default()
        },
        clients: 2,
        depth: 32,
        kills: 10,
        extra: &["reconnect=30", DELAY, "connections=4", "replay=512K"],
        trouble: |setup, rng| setup.flush_fails = 1 + rng.below(4),
        ..Ordeal::default()
    }
    .endure();
}

/// Two clients share them.
#[test]
fn over_several_connections_that_are_shared() {
    if !need("nbdkit") {
        return;
    }
    Ordeal {
        setup: Setup {
            flags: FLAGS | flag::CAN_MULTI_CONN,
            ..Setup::default()
        },
        clients: 2,
        depth: 24,
        kills: 10,
        extra: &["reconnect=30", DELAY, "connections=3", "shared=true"],
        trouble: |setup, rng| setup.goes_at = 40 + rng.below(200),
        ..Ordeal::default()
    }
    .endure();
}

/// Four blocks of the clients' are one of the server's, which refuses parts of it: what is put together here is
/// written again like all else, and two clients write side by side in it.
#[test]
fn in_parts_of_larger_blocks() {
    if !need("nbdkit") {
        return;
    }
    for (clients, extra) in [
        (2, &["reconnect=30", DELAY, "align=emulate"][..]),
        (
            2,
            &[
                "reconnect=30",
                DELAY,
                "align=emulate",
                "connections=3",
                "replay=512K",
            ],
        ),
    ] {
        Ordeal {
            setup: Setup {
                flags: FLAGS | flag::CAN_MULTI_CONN,
                blocks: (16384, 16384, 32 << 20),
                cut_every: 1500,
                ..Setup::default()
            },
            clients,
            depth: 32,
            kills: 10,
            extra,
            // A trim of a part is not sent, and what was there comes with the next write beside it.
            mix: Mix {
                trims: 0,
                ..Mix::default()
            },
            ..Ordeal::default()
        }
        .endure();
    }
}

/// In each life of the server one flush fails and costs it all that was dirty, and the next one says success.
#[test]
fn flushes_fail() {
    Ordeal {
        kills: 12,
        extra: &["reconnect=30", DELAY, "replay=512K"],
        mix: Mix {
            flushes: 4,
            ..Mix::default()
        },
        trouble: |setup, rng| setup.flush_fails = 1 + rng.below(4),
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn flushes_fail_before_two_clients() {
    Ordeal {
        setup: Setup {
            flags: FLAGS | flag::CAN_MULTI_CONN,
            cut_every: 1100,
            ..Setup::default()
        },
        clients: 2,
        depth: 32,
        kills: 10,
        trouble: |setup, rng| setup.flush_fails = 1 + rng.below(4),
        ..Ordeal::default()
    }
    .endure();
}

/// In each life of the server one answer gets lost.
#[test]
fn answers_get_lost() {
    Ordeal {
        kills: 4,
        extra: &["reconnect=30", DELAY, "request-timeout=1"],
        trouble: |setup, rng| setup.drops = 40 + rng.below(60),
        ..Ordeal::default()
    }
    .endure();
}

/// In each life of the server one connection is told that the server goes.
#[test]
fn says_that_it_goes() {
    Ordeal {
        kills: 10,
        clients: 2,
        depth: 32,
        trouble: |setup, rng| setup.goes_at = 40 + rng.below(200),
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn clients_come_and_go() {
    Ordeal {
        kills: 10,
        clients: 3,
        depth: 16,
        extra: &["reconnect=30", DELAY, "retry=10"],
        stay: 70,
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn clients_come_and_go_and_share() {
    Ordeal {
        kills: 10,
        clients: 3,
        depth: 16,
        extra: &["reconnect=30", DELAY, "shared=true"],
        stay: 70,
        ..Ordeal::default()
    }
    .endure();
}

/// A server that only has FUA: nothing unflushed ever is.
#[test]
fn server_without_flush() {
    Ordeal {
        setup: Setup {
            flags: FLAGS & !flag::SEND_FLUSH,
            ..Setup::default()
        },
        kills: 8,
        mix: Mix {
            flushes: 0,
            trims: 0,
            ..Mix::default()
        },
        ..Ordeal::default()
    }
    .endure();
}

/// The control: where nobody replays, the same ordeal must find what is lost.
#[test]
fn finds_what_the_retry_filter_loses() {
    if !need("nbdkit") {
        return;
    }
    let complaints = Ordeal {
        kills: 3,
        seed: Some(7),
        mix: Mix {
            flushes: 0,
            fua: 0,
            trims: 0,
            ..Mix::default()
        },
        extra: &[
            "--filter=retry",
            "retries=60",
            "retry-delay=1",
            "retry-exponential=no",
        ],
        ..Ordeal::default()
    }
    .suffer();
    assert!(!complaints.is_empty(), "nothing found");
    for complaint in complaints.iter().take(5) {
        println!("{complaint}");
    }
}

/// The same where the plugin keeps nothing, in each way to a server: all of it is lost without what is kept.
#[test]
fn finds_what_is_lost_where_nothing_is_kept() {
    if !need_all(&["nbdkit"]) || !need_all(TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let certificates = format!("tls-certificates={}", text(&authority.trusting("client")));
    let tls = authority.server("server", LOCALHOST);
    let secure = ["tls=require", "tls-hostname=localhost", &certificates];
    for (way, by_command, clients, multi, extra) in [
        ("plain", false, 1, 0, &[][..]),
        ("TLS", false, 1, 0, &secure),
        ("shared", false, 2, 0, &["shared=true"]),
        ("two clients", false, 2, 0, &[]),
        (
            "connections",
            false,
            1,
            flag::CAN_MULTI_CONN,
            &["connections=4"],
        ),
        ("command", true, 1, 0, &[]),
    ] {
        let complaints = Ordeal {
            setup: Setup {
                tls: if way == "TLS" {
                    tls.clone()
                } else {
                    PathBuf::new()
                },
                flags: FLAGS | multi,
                ..Setup::default()
            },
            by_command,
            clients,
            kills: 3,
            seed: Some(7),
            mix: Mix {
                flushes: 0,
                fua: 0,
                trims: 0,
                ..Mix::default()
            },
            extra: &[&["reconnect=30", DELAY, "replay=0"], extra].concat(),
            ..Ordeal::default()
        }
        .suffer();
        let lost = complaints
            .iter()
            .find(|complaint| complaint.contains("cannot have been"));
        println!("{way}: {lost:?}");
        assert!(lost.is_some(), "{way}: nothing found: {complaints:?}");
    }
}
