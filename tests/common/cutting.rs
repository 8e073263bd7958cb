// SPDX-License-Identifier: BSD-3-Clause
//! A short conversation through a [`Relay`] that makes trouble at a given byte of it, and what must come of that.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::front::Front;
use super::nbdkit::Nbdkit;
use super::process::eventually;
use super::relay::{Direction, Others, Plan, Relay, Trouble};
use super::scripted::bench::lost;
use super::upstream::memory;

/// What the conversation writes and reads back; short, since it is cut everywhere.
const LENGTH: usize = 16;

/// Which way the connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Unix,
    Tcp,
}

/// How many steps of the conversation went well: it opens, writes, reads, flushes.
pub const STEPS: usize = 4;

/// How long a conversation was behind each of its steps, to the server and from it.
pub type Milestones = [(usize, usize); STEPS];

/// A server, the relay before it, and nbdkit with the plugin before that.
pub struct Cutting {
    // Dropped in this order.
    pub front: Nbdkit,
    pub relay: Relay,
    pub server: Nbdkit,
    talks: u64,
    _directory: TempDir,
}

impl Cutting {
    /// Before nbdkit's memory plugin; `extra` as for [`Relay::forward`].
    pub fn new(over: Over, extra: &[&str]) -> Self {
        Self::with(over, |directory| {
            let extra = extra.iter().map(|arg| (*arg).to_owned()).collect();
            (memory(directory, "1M"), extra)
        })
    }

    /// `make` starts a server in the directory it is given, and says with which parameters it is reached.
    pub fn with(over: Over, make: impl FnOnce(&Path) -> (Nbdkit, Vec<String>)) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (server, extra) = make(directory.path());
        let relay = match over {
            Over::Unix => Relay::unix(directory.path(), "relay.sock", server.socket()),
            Over::Tcp => Relay::tcp(server.socket()),
        };
        // Who does not know extended headers is asked once in a while, and all conversations are to be alike.
        let alike = ["quirks=no-extended"];
        let extra: Vec<&str> = extra.iter().map(String::as_str).chain(alike).collect();
        let front = relay.forward(directory.path(), &extra);
        Self {
            front,
            relay,
            server,
            talks: 0,
            _directory: directory,
        }
    }

    /// What the latest conversation has written.
    fn written(&self) -> Vec<u8> {
        [self.talks.to_be_bytes(), (!self.talks).to_be_bytes()].concat()
    }

    /// One conversation; says how many steps of it went well, and calls `behind` after each.
    pub fn talk(&mut self, mut behind: impl FnMut(&Self, usize)) -> usize {
        self.talks += 1;
        let bytes = self.written();
        let Ok(mut front) = Front::open(self.front.socket()) else {
            return 0;
        };
        behind(self, 0);
        let mut well = 1;
        for step in 1..STEPS {
            let answer = match step {
                1 => front.write(0, &bytes),
                2 => front.read(0, LENGTH as u32).map(|read| {
                    // Written before, so this and nothing else.
                    assert_eq!(read, bytes, "conversation {}", self.talks);
                }),
                _ => front.flush(),
            };
            if answer.is_err() {
                lost("a troubled connection", answer);
                break;
            }
            behind(self, step);
            well += 1;
        }
        front.close();
        well
    }

    /// A conversation without trouble.
    pub fn milestones(&mut self) -> Milestones {
        self.relay.plan(None, Others::Well);
        let mut milestones = Milestones::default();
        let well = self.talk(|this, step| milestones[step] = this.relay.lengths());
        assert_eq!(well, STEPS, "{}", self.front.stderr());
        milestones
    }

    /// Trouble at one byte, and whatever comes of it.
    pub fn troubled(
        &mut self,
        trouble: &Trouble,
        direction: Direction,
        at: usize,
        others: Others,
    ) -> usize {
        let plan = Plan {
            trouble: trouble.clone(),
            direction,
            at,
        };
        self.relay.plan(Some(plan), others);
        self.talk(|_, _| ())
    }

    /// The connection breaks at every byte of the conversation, in steps of `stride`, and there is no other: all
    /// steps before that byte go well, and none behind it. `slack` where the lengths may differ from one
    /// conversation to the next.
    pub fn breaks_everywhere(&mut self, trouble: &Trouble, stride: usize, slack: usize) {
        let milestones = self.milestones();
        self.is_quiet_after(|this| {
            for direction in [Direction::ToServer, Direction::FromServer] {
                let whole = length(milestones[STEPS - 1], direction);
                for at in (0..whole).step_by(stride) {
                    let well = this.troubled(trouble, direction, at, Others::Refused);
                    let least = passed(&milestones, direction, at.saturating_sub(slack));
                    // What was just sent in full may be answered before the trouble is there.
                    let early = usize::from(direction == Direction::ToServer);
                    let most = passed(&milestones, direction, at + slack + early);
                    assert!(
                        (least..=most).contains(&well),
                        "{direction:?} {at} of {milestones:?}: {well} steps went well\n{}",
                        tail(&this.front.stderr()),
                    );
                }
            }
        });
    }

    /// Trouble in these places, and clients notice nothing. The next conversation reads what the one before has
    /// flushed.
    pub fn is_survived(
        &mut self,
        trouble: &Trouble,
        places: impl IntoIterator<Item = (Direction, usize)>,
    ) {
        self.is_quiet_after(|this| {
            for (direction, at) in places {
                let before = this.relay.connections();
                let kept = this.written();
                let mut front = Front::open(this.front.socket()).expect("nothing is wrong yet");
                assert_eq!(front.read(0, LENGTH as u32), Ok(kept));
                front.close();
                let well = this.troubled(trouble, direction, at, Others::Well);
                assert_eq!(
                    well,
                    STEPS,
                    "{direction:?} {at}\n{}",
                    tail(&this.front.stderr())
                );
                assert!(this.relay.connections() > before);
            }
        });
    }

    /// After all that nbdkit lives, serves the next client, and has no more descriptors and threads than before.
    pub fn is_quiet_after(&mut self, action: impl FnOnce(&mut Self)) {
        self.milestones();
        let (descriptors, threads) = (self.front.descriptors(), self.front.threads());
        action(self);
        assert!(self.front.alive(), "{}", tail(&self.front.stderr()));
        self.milestones();
        let few = |front: &Nbdkit| front.descriptors() <= descriptors && front.threads() <= threads;
        eventually(
            "descriptors and threads are as many as before",
            Duration::from_secs(15),
            || few(&self.front).then_some(()),
        );
    }
}

/// The bytes of one direction.
pub fn length((to_server, from_server): (usize, usize), direction: Direction) -> usize {
    match direction {
        Direction::ToServer => to_server,
        Direction::FromServer => from_server,
    }
}

/// How many steps are over when so many bytes have gone in a direction, and no more. A request that has just been
/// sent in full has no answer yet.
fn passed(milestones: &Milestones, direction: Direction, at: usize) -> usize {
    let is_over = |step: &&(usize, usize)| match direction {
        Direction::ToServer => step.0 < at,
        Direction::FromServer => step.1 <= at,
    };
    milestones.iter().take_while(is_over).count()
}

/// Places behind each step of a conversation, and within what comes next.
pub fn places(milestones: &Milestones) -> Vec<(Direction, usize)> {
    let mut places = Vec::new();
    for direction in [Direction::ToServer, Direction::FromServer] {
        let mut from = 0;
        for step in milestones {
            let to = length(*step, direction);
            // Nothing of it, its first byte, half of it, all but one byte.
            places.extend([from, from + 1, (from + to) / 2, to - 1].map(|at| (direction, at)));
            from = to;
        }
    }
    places
}

fn tail(log: &str) -> &str {
    let start = log.len().saturating_sub(4000);
    log.get(start..).unwrap_or(log)
}

/// Every place behind the handshake, in steps of `stride`.
pub fn everywhere(milestones: &Milestones, slack: usize, stride: usize) -> Vec<(Direction, usize)> {
    let of = |direction| {
        let from = length(milestones[0], direction) + slack + 1;
        (from..length(milestones[STEPS - 1], direction))
            .step_by(stride)
            .map(move |at| (direction, at))
    };
    of(Direction::ToServer)
        .chain(of(Direction::FromServer))
        .collect()
}
