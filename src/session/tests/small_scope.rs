// SPDX-License-Identifier: BSD-3-Clause
//! M1: everything that can happen in a small world.
//!
//! All sequences of a few operations on three blocks; at each event everything that may go wrong, as
//! often as a scope allows; and all schedules that differ in so many places from the one in which
//! each operation is over before the next begins. What a dead server has kept of what was not flushed
//! is no choice: each block holds all that it may hold at once, and a read chooses (`server.rs`).
//!
//! `SCOPE=` adds as many operations to each scope.

use super::dice::{Dice, Paths};
use super::oracle::Verdict;
use super::server::Kind;
use super::world::{Act, Ask, Do, FLUSH, Faults, Plan, World};
use crate::session::rules::Rules;

/// A small world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    pub(super) kind: Kind,
    pub(super) clients: usize,
    pub(super) operations: usize,
    /// How often something else happens than what is first.
    pub(super) delays: usize,
    pub(super) faults: Faults,
    /// The server takes its time to end lost connections.
    pub(super) lazy: bool,
    /// Changes, then what else there is to ask for.
    pub(super) changes: &'static [Ask],
    pub(super) others: &'static [Ask],
    pub(super) fua: bool,
    pub(super) replay: u64,
    /// All connections are one client's.
    pub(super) pool: bool,
}

const fn ask(what: Do, from: usize, to: usize, fua: bool) -> Ask {
    Ask {
        what,
        from,
        to,
        fua,
    }
}

const READ: Ask = ask(Do::Read, 0, BLOCKS, false);

const BLOCKS: usize = 3;

/// All kinds of changes, in ranges of which some overlap in part. The mirror images are missing.
const CHANGES: &[Ask] = &[
    ask(Do::Write, 0, 2, false),
    ask(Do::Write, 1, 3, false),
    ask(Do::Write, 0, 1, true),
    ask(Do::Zero, 0, 1, false),
    ask(Do::Trim, 1, 2, false),
];

/// The same with fewer.
const FEW: &[Ask] = &[ask(Do::Write, 0, 2, false), ask(Do::Write, 1, 3, false)];

/// The same, one of them permanent.
const FUA: &[Ask] = &[ask(Do::Write, 0, 2, false), ask(Do::Write, 1, 3, true)];

const WRITE: &[Ask] = &[ask(Do::Write, 0, 2, false)];

const OTHERS: &[Ask] = &[FLUSH, READ];

const ROOM: u64 = 1 << 20;

const NONE: Faults = Faults {
    kills: 0,
    cuts: 0,
    flushes: 0,
    refusals: 0,
    dooms: 0,
    deadlines: 0,
};

/// Everything that can be done, with one path after the other.
fn walk(scope: &Scope, rules: Rules, paths: &mut Paths, tracing: bool) -> (Verdict, World) {
    let plan = Plan {
        kind: scope.kind,
        blocks: BLOCKS,
        replay: scope.replay,
        fua: scope.fua,
        pool: scope.pool,
        rules,
    };
    let mut world = World::new(plan, scope.faults);
    world.tracing = tracing;
    let verdict = go(scope, &mut world, paths);
    (verdict, world)
}

fn go(scope: &Scope, world: &mut World, paths: &mut Paths) -> Verdict {
    (0..scope.clients).for_each(|_| world.join());
    world.rest(paths)?;
    let mut delays = scope.delays;
    let mut asked = 0;
    // A loss is as good as one later, until something is sent, carried out or answered.
    let mut seen = world.progress();
    loop {
        let (mut acts, late) = world.acts_in_time(scope.lazy);
        let now = acts.len();
        acts.extend(late);
        let more = usize::from(asked < scope.operations);
        let options = acts.len() + more;
        if options == 0 {
            return world.finish(paths);
        }
        if std::mem::replace(&mut seen, world.progress()) < world.progress() {
            let mishaps = world.mishaps();
            if let Some(mishap) = paths.pick(1 + mishaps.len()).checked_sub(1) {
                world.perform(mishaps[mishap], paths)?;
                continue;
            }
        }
        let skipped = paths.pick(1 + delays.min(options - 1));
        delays -= skipped;
        // The next operation comes after all that happens in time.
        let act: Option<&Act> = match (more, skipped) {
            (1, skipped) if skipped == now => None,
            (1, skipped) if skipped > now => acts.get(skipped - 1),
            (_, skipped) => acts.get(skipped),
        };
        match act {
            Some(act) => world.perform(*act, paths)?,
            None => {
                asked += 1;
                push(scope, world, asked, paths);
            }
        }
    }
}

fn push(scope: &Scope, world: &mut World, number: usize, paths: &mut Paths) {
    let client = match number {
        1 => 0,
        _ if scope.pool => 0,
        _ => paths.pick(scope.clients),
    };
    let mut some = scope.changes.len();
    if number > 1 {
        some += scope.others.len();
    }
    let choice = paths.pick(some);
    let ask = match choice.checked_sub(scope.changes.len()) {
        Some(other) => scope.others[other],
        None => scope.changes[choice],
    };
    world.push(client, ask, number as u16);
}

/// How many paths there are, or the first one that goes wrong, told.
pub(super) fn explore(scope: &Scope, rules: Rules) -> Result<u64, String> {
    let mut paths = Paths::default();
    let mut walked = 0;
    loop {
        let (verdict, _) = walk(scope, rules, &mut paths, false);
        walked += 1;
        if let Err(wrong) = verdict {
            paths.again();
            let (_, world) = walk(scope, rules, &mut paths, true);
            let mut told: Vec<String> = world.trace.into();
            told.push(format!("path {walked}: {wrong}"));
            return Err(told.join("\n"));
        }
        if !paths.advance() {
            return Ok(walked);
        }
    }
}

fn prove(scope: Scope) {
    let more = std::env::var("SCOPE")
        .ok()
        .and_then(|more| more.parse().ok());
    let scope = Scope {
        operations: scope.operations + more.unwrap_or(0),
        ..scope
    };
    let begun = std::time::Instant::now();
    match explore(&scope, Rules::ALL) {
        Ok(paths) => println!("{paths} paths in {:.1?}", begun.elapsed()),
        Err(told) => panic!("{scope:?}\n{told}"),
    }
}

const SCOPE: Scope = Scope {
    kind: Kind::Common,
    clients: 1,
    operations: 3,
    delays: 1,
    faults: NONE,
    lazy: false,
    changes: CHANGES,
    others: OTHERS,
    fua: true,
    replay: ROOM,
    pool: false,
};

const KILL: Faults = Faults { kills: 1, ..NONE };
const CUT: Faults = Faults { cuts: 1, ..NONE };
const FLUSHES: Faults = Faults { flushes: 1, ..NONE };

/// All sequences of four, each operation over before the next begins.
#[test]
fn one_client_loses_the_server() {
    prove(Scope {
        operations: 4,
        delays: 0,
        faults: KILL,
        ..SCOPE
    });
}

#[test]
fn one_client_loses_its_connection() {
    prove(Scope {
        changes: FUA,
        faults: CUT,
        ..SCOPE
    });
}

#[test]
fn operations_at_once() {
    prove(Scope {
        delays: 2,
        faults: KILL,
        changes: FUA,
        ..SCOPE
    });
}

#[test]
fn a_server_is_lost_twice() {
    prove(Scope {
        delays: 0,
        faults: Faults { kills: 2, ..NONE },
        changes: FEW,
        ..SCOPE
    });
}

/// And again when everything has come to rest, which is how each path ends.
#[test]
fn a_flush_fails_and_the_server_is_lost() {
    prove(Scope {
        faults: Faults {
            flushes: 1,
            kills: 1,
            ..NONE
        },
        changes: FUA,
        ..SCOPE
    });
}

#[test]
fn a_change_is_refused_and_the_server_is_lost() {
    prove(Scope {
        delays: 0,
        faults: Faults {
            refusals: 1,
            kills: 1,
            ..NONE
        },
        changes: FEW,
        ..SCOPE
    });
}

#[test]
fn the_journal_is_refused() {
    prove(Scope {
        clients: 2,
        faults: Faults {
            kills: 1,
            dooms: 1,
            ..NONE
        },
        operations: 2,
        changes: FEW,
        ..SCOPE
    });
}

#[test]
fn a_deadline_passes() {
    prove(Scope {
        operations: 2,
        faults: Faults {
            kills: 1,
            deadlines: 1,
            ..NONE
        },
        changes: FEW,
        ..SCOPE
    });
}

/// With and without FUA.
#[test]
fn there_is_no_room() {
    for fua in [true, false] {
        prove(Scope {
            fua,
            replay: 300,
            delays: 0,
            faults: Faults {
                kills: 1,
                flushes: 1,
                ..NONE
            },
            changes: FEW,
            ..SCOPE
        });
    }
}

/// Two clients on connections of their own, one fault.
fn two(kind: Kind, delays: usize, faults: Faults) {
    prove(Scope {
        kind,
        clients: 2,
        delays,
        faults,
        changes: FEW,
        ..SCOPE
    });
}

#[test]
fn two_clients_lose_the_server() {
    two(Kind::Multi, 1, KILL);
    two(Kind::Common, 1, KILL);
    two(Kind::Separate, 0, KILL);
}

#[test]
fn two_clients_and_a_flush_that_fails() {
    for kind in [Kind::Multi, Kind::Common, Kind::Separate] {
        two(kind, 1, FLUSHES);
    }
}

#[test]
fn two_clients_and_a_dead_connection() {
    two(Kind::Multi, 1, CUT);
    two(Kind::Common, 0, CUT);
    two(Kind::Separate, 0, CUT);
}

/// Over a dead connection a flush may still fail.
#[test]
fn a_flush_fails_late() {
    prove(Scope {
        kind: Kind::Multi,
        clients: 2,
        operations: 4,
        delays: 0,
        faults: Faults {
            cuts: 1,
            flushes: 1,
            ..NONE
        },
        lazy: true,
        changes: WRITE,
        others: &[FLUSH],
        ..SCOPE
    });
}

/// Two clients without a journal are not told that a flush has succeeded.
#[test]
fn nothing_is_kept() {
    prove(Scope {
        kind: Kind::Multi,
        clients: 2,
        replay: 0,
        delays: 0,
        faults: KILL,
        changes: FEW,
        ..SCOPE
    });
}

/// One client with two connections, and everything goes over either of them.
fn pool(scope: Scope) {
    prove(Scope {
        kind: Kind::Multi,
        clients: 2,
        delays: 0,
        changes: FEW,
        pool: true,
        ..scope
    });
}

#[test]
fn a_pool_loses_the_server() {
    pool(Scope {
        faults: KILL,
        ..SCOPE
    });
}

#[test]
fn a_pool_and_operations_at_once() {
    pool(Scope {
        operations: 2,
        delays: 1,
        faults: KILL,
        ..SCOPE
    });
}

#[test]
fn a_pool_loses_a_connection() {
    pool(Scope {
        faults: CUT,
        ..SCOPE
    });
}

#[test]
fn a_pool_and_a_flush_that_fails() {
    pool(Scope {
        faults: FLUSHES,
        ..SCOPE
    });
}

#[test]
fn a_pool_without_a_journal() {
    pool(Scope {
        replay: 0,
        faults: KILL,
        ..SCOPE
    });
}
