// SPDX-License-Identifier: BSD-3-Clause
//! Random writers before nbdkit, a volatile server behind it, and its many deaths.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::nbdkit::{Nbdkit, plugin_args};
use crate::common::need;
use crate::common::process::eventually;

use super::block::{self, BLOCK};
use super::client::{Client, Recorder};
use super::crowd::{self, Manner};
use super::history;
use super::setup::Setup;
use super::trace;
use super::trace::event::What;
use super::volatile::Volatile;
use super::writer::{Mix, Story, Writer};
use super::{Rng, by_command, kills, seed};

/// How many requests are answered when nobody dies any more.
const LAST: u64 = 1000;
/// By when nbdkit must have said what there is to say.
const TOLD: Duration = Duration::from_secs(5);
/// How many flushes there are in the end, for one that succeeds.
const TRIES: usize = 4;
/// How many complaints are shown.
const SHOWN: usize = 12;

/// What is to be tried.
pub struct Ordeal<'a> {
    pub setup: Setup,
    /// nbdkit starts the server.
    pub by_command: bool,
    /// Options of nbdkit and parameters of the plugin, beside where the server is.
    pub extra: &'a [&'a str],
    pub clients: usize,
    pub depth: usize,
    pub kills: usize,
    pub mix: Mix,
    /// Not a new one each time.
    pub seed: Option<u64>,
    /// What else is wrong with each life of the server, by chance.
    pub trouble: fn(&mut Setup, &mut Rng),
    /// All clients but the first leave after so many answers, and come again; 0: never.
    pub stay: u64,
}

impl Default for Ordeal<'_> {
    fn default() -> Self {
        Self {
            setup: Setup::default(),
            by_command: false,
            extra: &["reconnect=30", "reconnect-delay=10ms:200ms"],
            clients: 1,
            depth: 64,
            kills: 40,
            mix: Mix::default(),
            seed: None,
            trouble: |_, _| (),
            stay: 0,
        }
    }
}

/// nbdkit before a volatile server.
pub struct Stage {
    pub front: Nbdkit,
    pub server: Volatile,
    pub directory: TempDir,
    ops: Recorder,
    clients: Cell<usize>,
    /// Whether the plugin keeps a journal, and nothing has ended that for good.
    judged: bool,
}

impl Stage {
    /// `extra`: options of nbdkit and parameters of the plugin, beside where the server is.
    pub fn new(setup: Setup, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Volatile::start(directory.path(), setup);
        Self::before(directory, server, extra)
    }

    /// [`Stage::new`] with a server that nbdkit starts.
    pub fn by_command(setup: Setup, extra: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Volatile::by_command(directory.path(), setup);
        Self::before(directory, server, extra)
    }

    fn before(directory: TempDir, server: Volatile, extra: &[&str]) -> Self {
        let front = front(directory.path(), &server, extra);
        Self {
            front,
            server,
            directory,
            ops: Recorder::default(),
            clients: Cell::new(0),
            judged: extra.iter().any(|word| word.starts_with("reconnect="))
                && !extra.contains(&"replay=0"),
        }
    }

    /// The trace is not judged in the end: something is lost here, and told.
    pub fn loses(&mut self) {
        self.judged = false;
    }

    /// What the trace shows so far.
    fn judge(&self) -> Vec<String> {
        let ops = self.ops.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = self.server.setup().size.div_ceil(BLOCK as u64);
        let mut complaints = trace::judge(&self.server.log(), &ops);
        complaints.extend(history::judge(&ops, blocks, &HashMap::new()));
        complaints
    }

    /// The server dies, without a trace of what was not flushed, and comes back with this changed.
    pub fn restart(&mut self, change: impl FnOnce(&mut Setup)) {
        self.server.kill();
        self.server.again(change);
    }

    /// The lines in which nbdkit complains.
    pub fn errors(&self) -> Vec<String> {
        let stderr = self.front.stderr();
        let errors = stderr.lines().filter(|line| line.contains("error: "));
        errors.map(str::to_owned).collect()
    }

    /// One of the lines in which nbdkit complains has all these words, perhaps a moment after clients noticed.
    pub fn says(&self, words: &[&str]) {
        eventually(&format!("nbdkit says {words:?}"), TOLD, || {
            let errors = self.errors();
            let has_all = |line: &String| words.iter().all(|word| line.contains(word));
            errors.iter().any(has_all).then_some(())
        });
    }

    /// Nothing was asked of the server in its present life.
    pub fn is_told_nothing(&self) {
        let epoch = self.server.setup().epoch;
        let log = self.server.log();
        let told = log
            .iter()
            .find(|event| event.epoch == epoch && matches!(event.what, What::Arrive(_)));
        assert_eq!(told, None);
    }

    pub fn client(&self) -> Client {
        match Client::open(self.front.socket()) {
            Ok(client) => {
                let number = self.clients.get();
                self.clients.set(number + 1);
                client.recorded(number, &self.ops)
            }
            Err(error) => panic!("no client: {error}\n{}", self.front.stderr()),
        }
    }
}

impl Drop for Stage {
    /// Every test that gets this far is judged by its trace.
    fn drop(&mut self) {
        if !self.judged || thread::panicking() {
            return;
        }
        self.server.end();
        let complaints = self.judge();
        assert!(complaints.is_empty(), "{}", shown(&complaints));
    }
}

/// nbdkit with the plugin before a volatile server, without debug messages, which would be many.
pub fn front(directory: &Path, server: &Volatile, extra: &[&str]) -> Nbdkit {
    let parameters = server.parameters();
    let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
    let mut args = plugin_args(&[&["--threads=80"], &parameters[..], extra].concat());
    args.retain(|arg| arg != "-v");
    Nbdkit::start_with(directory, &args, |command| server.environment(command))
}

impl Ordeal<'_> {
    /// Nothing may be lost, undone or torn; no value that was read may go back; nbdkit lives on.
    /// Without nbdkit there is nothing to try.
    pub fn endure(self) {
        if !need("nbdkit") {
            return;
        }
        let complaints = self.suffer();
        assert!(complaints.is_empty(), "{}", shown(&complaints));
    }

    /// All that is wrong in the end.
    pub fn suffer(self) -> Vec<String> {
        let seed = self.seed.unwrap_or_else(seed);
        // What has a seed of its own is always the same.
        let kills = match self.seed {
            Some(_) => self.kills,
            None => kills(self.kills),
        };
        let mut rng = Rng::new(seed);
        let blocks = self.setup.size / BLOCK as u64;
        let story = Story::new(seed, blocks);
        let mut setup = Setup {
            seed: rng.next(),
            die_at: if kills == 0 || self.by_command {
                0
            } else {
                400
            },
            ..self.setup.clone()
        };
        (self.trouble)(&mut setup, &mut rng);
        // Flushes fail only where the server is told to, or where nothing is kept.
        let loses = self.extra.contains(&"replay=0");
        story
            .flush_may_fail
            .store(setup.flush_fails != 0 || loses, Ordering::SeqCst);
        let mut stage = match self.by_command {
            true => Stage::by_command(setup, self.extra),
            false => Stage::new(setup, self.extra),
        };
        // The writers have a record of their own.
        stage.loses();
        let clients: Vec<Client> = (0..self.clients).map(|_| stage.client()).collect();
        let writers = clients.into_iter().enumerate();
        let writers =
            writers.map(|(number, client)| Writer::new(&story, client, number, rng.fork()));
        let writers: Vec<Writer> = writers.collect();
        let manner = Manner {
            mix: self.mix,
            depth: self.depth,
            stay: self.stay,
        };
        let socket = stage.front.socket().to_owned();
        let written = crowd::write(&story, writers, &socket, manner, || {
            let kill = if self.by_command { order } else { kill };
            kill(&mut stage, &story, kills, &mut rng, self.trouble);
            last_life(&mut stage, &story);
        });
        let mut writers = written.unwrap_or_else(|panic| {
            println!("nbdkit says: {}", tail(&stage.front.stderr()));
            resume_unwind(panic)
        });
        let mut complaints = finish(&mut stage, &story, &mut writers);
        // Only who keeps a journal needs an order.
        if !self.extra.iter().any(|word| word.starts_with("reconnect=")) {
            complaints.retain(|complaint| !complaint.starts_with("I4"));
        }
        complaints
    }
}

/// Lets the server die, again and again, at random moments of which some come right after its return.
fn kill(
    stage: &mut Stage,
    story: &Story,
    kills: usize,
    rng: &mut Rng,
    trouble: fn(&mut Setup, &mut Rng),
) {
    for life in 1..=kills {
        let died = crowd::wait(story, &format!("death {life}"), |_| {
            assert!(stage.front.alive(), "death {life}: nbdkit has ended");
            stage.server.has_died()
        });
        if !died {
            return;
        }
        let steps = match rng.below(4) {
            0 => 1 + rng.below(60),
            1 => 60 + rng.below(400),
            _ => 300 + rng.below(1500),
        };
        let seed = rng.next();
        stage.server.respawn(|setup| {
            setup.die_at = if life == kills { 0 } else { steps };
            setup.seed = seed;
            trouble(setup, rng);
        });
    }
}

/// [`kill`] for a server that nbdkit starts again.
fn order(
    stage: &mut Stage,
    story: &Story,
    kills: usize,
    rng: &mut Rng,
    trouble: fn(&mut Setup, &mut Rng),
) {
    let (pause, kills) = by_command(kills);
    for life in 1..=kills {
        let begun = Instant::now();
        let before = story.progress.load(Ordering::SeqCst);
        let enough = 1 + rng.below(600);
        let lived = crowd::wait(story, &format!("death {life}"), |progress| {
            assert!(stage.front.alive(), "death {life}: nbdkit has ended");
            progress > before + enough && begun.elapsed() >= pause
        });
        if !lived {
            return;
        }
        let seed = rng.next();
        stage.server.die_by_order(|setup| {
            setup.seed = seed;
            trouble(setup, rng);
        });
    }
}

/// Nobody dies any more.
fn last_life(stage: &mut Stage, story: &Story) {
    let before = story.progress.load(Ordering::SeqCst);
    crowd::wait(story, "the last life", |progress| {
        assert!(stage.front.alive(), "the last life: nbdkit has ended");
        progress > before + LAST
    });
}

/// What is on the disk in the end, and in the server's file, must fit to all that the clients were told.
fn finish(stage: &mut Stage, story: &Story, writers: &mut [Writer]) -> Vec<String> {
    let mut complaints = Vec::new();
    for writer in writers.iter_mut().filter(|writer| writer.can_flush()) {
        // Where flushes may fail at all, the next one must not.
        let mut errors = Vec::new();
        let flushed = (0..TRIES).any(|_| {
            errors.push(writer.flush());
            errors.ends_with(&[0])
        });
        if !flushed || (errors.len() > 1 && !story.flush_may_fail.load(Ordering::SeqCst)) {
            complaints.push(format!("the last flush fails: {errors:?}"));
        }
    }
    writers[0].read_all();
    // Nothing is dirty any more: another death changes nothing.
    stage.server.kill();
    let ops = story.ops();
    complaints.extend(history::judge(&ops, story.blocks, &story.torn()));
    complaints.extend(compare(&stage.server.backing(), &ops, story));
    complaints.extend(trace::judge(&stage.server.log(), &ops));
    if !stage.front.alive() {
        complaints.push("nbdkit has ended".to_owned());
    }
    if !complaints.is_empty() {
        // The log is worth reading then: TORTURE_LOG says where it shall go.
        if let Some(path) = std::env::var_os("TORTURE_LOG") {
            fs::copy(&stage.server.setup().log, path).expect("copy the log");
        }
        println!("nbdkit says: {}", tail(&stage.front.stderr()));
    }
    println!(
        "{} requests in {} lives of the server",
        ops.len(),
        stage.server.setup().epoch
    );
    complaints
}

/// What is durable must be what was read last.
pub fn compare(backing: &Path, ops: &[history::Op], story: &Story) -> Vec<String> {
    let file = fs::File::open(backing).expect("the backing file");
    let mut complaints = Vec::new();
    for number in 0..story.blocks {
        let read = ops
            .iter()
            .rev()
            .find(|op| op.kind == crate::common::scripted::wire::cmd::READ && op.touches(number));
        let Some(read) = read.filter(|_| history::defined(ops, number)) else {
            continue;
        };
        let mut bytes = [0; BLOCK];
        file.read_exact_at(&mut bytes, number * BLOCK as u64)
            .expect("a block of the backing file");
        let (found, wanted) = (block::content(&bytes), read.content(number));
        if found != wanted {
            complaints.push(format!(
                "block {number}: {wanted:x} was flushed and {found:x} is durable"
            ));
        }
    }
    complaints
}

pub fn shown(complaints: &[String]) -> String {
    let more = complaints.len().saturating_sub(SHOWN);
    let first: Vec<&str> = complaints.iter().take(SHOWN).map(String::as_str).collect();
    format!("{}\n(and {more} more)", first.join("\n"))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
