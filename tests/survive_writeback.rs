// SPDX-License-Identifier: BSD-3-Clause
//! Random writers before a real server that keeps what it was given in its own memory, and is killed again and again:
//! nbdkit with the cache filter in write-back mode. (With most servers a kill proves nothing: what they were given is in
//! the kernel's memory, and lives on.)

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::panic::resume_unwind;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::clients::text;
use common::nbdkit::{Nbdkit, plugin_args};
use common::pki::{Authority, LOCALHOST, TOOLS};
use common::{need, need_all};
use torture::block::BLOCK;
use torture::client::Client;
use torture::crowd::{self, Manner};
use torture::history;
use torture::ordeal::{compare, shown};
use torture::writeback::Server;
use torture::writer::{Mix, Story, Writer};
use torture::{Rng, by_command, kills, seed};

const SIZE: u64 = 4 << 20;
const PATIENT: [&str; 2] = ["reconnect=30", "reconnect-delay=10ms:200ms"];
/// How many requests are answered when nobody dies any more.
const LAST: u64 = 1000;
/// How many flushes there are in the end, for one that succeeds.
const TRIES: usize = 4;

/// What is to be tried.
struct Ordeal<'a> {
    /// Options of the server.
    options: Vec<String>,
    by_command: bool,
    /// Parameters of the plugin.
    extra: &'a [&'a str],
    clients: usize,
    depth: usize,
    kills: usize,
    mix: Mix,
}

impl Default for Ordeal<'_> {
    fn default() -> Self {
        Self {
            options: Vec::new(),
            by_command: false,
            extra: &[],
            clients: 1,
            depth: 32,
            kills: 5,
            mix: Mix::default(),
        }
    }
}

impl Ordeal<'_> {
    /// Nothing may be lost, undone or torn.
    fn endure(self) {
        if !need("nbdkit") {
            return;
        }
        let complaints = self.suffer();
        assert!(complaints.is_empty(), "{}", shown(&complaints));
    }

    /// All that is wrong in the end.
    fn suffer(self) -> Vec<String> {
        let seed = seed();
        let (pause, kills) = match self.by_command {
            true => by_command(kills(self.kills)),
            false => (Duration::ZERO, kills(self.kills)),
        };
        let mut rng = Rng::new(seed);
        let story = Story::new(seed, SIZE / BLOCK as u64);
        // Where nothing is kept, that is told by flushes.
        let loses = self.extra.contains(&"replay=0");
        story.flush_may_fail.store(loses, Ordering::SeqCst);
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut server = Server::new(directory.path(), SIZE, &self.options, self.by_command);
        let parameters = server.parameters();
        let parameters = parameters.iter().map(String::as_str);
        let parameters = parameters.chain(PATIENT).chain(self.extra.iter().copied());
        let parameters: Vec<&str> = parameters.collect();
        let mut args = plugin_args(&parameters);
        // The messages would be many.
        args.retain(|arg| arg != "-v");
        let mut front = Nbdkit::start(directory.path(), &args);
        let writers = (0..self.clients).map(|number| {
            let client = Client::open(front.socket());
            let client = client.unwrap_or_else(|error| panic!("{error}: {}", front.stderr()));
            Writer::new(&story, client, number, rng.fork())
        });
        let writers: Vec<Writer> = writers.collect();
        let manner = Manner {
            mix: self.mix,
            depth: self.depth,
            stay: 0,
        };
        let socket = front.socket().to_owned();
        let written = crowd::write(&story, writers, &socket, manner, || {
            for life in 1..=kills {
                let (begun, before) = (Instant::now(), story.progress.load(Ordering::SeqCst));
                let enough = 1 + rng.below(500);
                let lived = crowd::wait(&story, &format!("death {life}"), |progress| {
                    assert!(front.alive(), "death {life}: nbdkit has ended");
                    progress > before + enough && begun.elapsed() >= pause
                });
                if !lived {
                    return;
                }
                server.kill();
                server.again();
            }
            let before = story.progress.load(Ordering::SeqCst);
            crowd::wait(&story, "the last life", |progress| progress > before + LAST);
        });
        let mut writers = written.unwrap_or_else(|panic| {
            println!("nbdkit says: {}", front.stderr());
            resume_unwind(panic)
        });
        let mut complaints = Vec::new();
        for writer in &mut writers {
            let flushed = (0..TRIES).any(|_| writer.flush() == 0);
            if !flushed && !loses {
                complaints.push("the last flush fails".to_owned());
            }
        }
        writers[0].read_all();
        // Nothing is dirty any more: another death changes nothing.
        server.kill();
        let ops = story.ops();
        complaints.extend(history::judge(&ops, story.blocks, &story.torn()));
        complaints.extend(compare(&server.backing, &ops, &story));
        if !front.alive() {
            complaints.push("nbdkit has ended".to_owned());
        }
        println!(
            "{} requests in {} lives of the server",
            ops.len(),
            kills + 1
        );
        complaints
    }
}

#[test]
fn plain() {
    Ordeal::default().endure();
}

#[test]
fn over_tls() {
    if !need_all(TOOLS) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let certificates = format!("tls-certificates={}", text(&authority.trusting("client")));
    let server = authority.server("server", LOCALHOST);
    let server = format!("--tls-certificates={}", text(&server));
    Ordeal {
        options: vec!["--tls=require".to_owned(), server],
        extra: &["tls=require", "tls-hostname=localhost", &certificates],
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn shared_by_three_clients() {
    Ordeal {
        clients: 3,
        depth: 16,
        extra: &["shared=true", "replay=1M"],
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn two_clients() {
    Ordeal {
        clients: 2,
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn over_several_connections() {
    Ordeal {
        extra: &["connections=4"],
        ..Ordeal::default()
    }
    .endure();
}

#[test]
fn started_by_the_plugin() {
    Ordeal {
        by_command: true,
        ..Ordeal::default()
    }
    .endure();
}

/// The control: where nothing is kept, the same ordeal finds what is lost, in each of these ways to a server.
#[test]
fn finds_what_is_lost_where_nothing_is_kept() {
    if !need("nbdkit") {
        return;
    }
    for (by_command, clients, extra) in [
        (false, 1, &["replay=0"][..]),
        (false, 2, &["replay=0"]),
        (false, 2, &["replay=0", "shared=true"]),
        (false, 1, &["replay=0", "connections=4"]),
        (true, 1, &["replay=0"]),
    ] {
        let complaints = Ordeal {
            by_command,
            clients,
            extra,
            kills: 2,
            mix: Mix {
                flushes: 0,
                fua: 0,
                trims: 0,
                ..Mix::default()
            },
            ..Ordeal::default()
        }
        .suffer();
        assert!(!complaints.is_empty(), "{extra:?}: nothing found");
        println!(
            "{extra:?}: {} complaints: {}",
            complaints.len(),
            complaints[0]
        );
    }
}
