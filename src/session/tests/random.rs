// SPDX-License-Identifier: BSD-3-Clause
//! M2: random sessions. The seed of one that fails is printed, and `SESSION_SEED=` repeats it with
//! all that happens; `SESSIONS=` sets how many there are.

use super::dice::{Dice, Random};
use super::oracle::Verdict;
use super::server::Kind;
use super::world::{Act, Ask, Do, Faults, Plan, World};
use crate::session::rules::Rules;

const SESSIONS: u64 = 8000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
}

/// The world that a seed makes.
fn world(rules: Rules, dice: &mut Random) -> (World, usize, bool) {
    let kinds = [Kind::Multi, Kind::Multi, Kind::Common, Kind::Separate];
    let kind = kinds[dice.pick(kinds.len())];
    let replay = [0, 400, 900, 2000, 1 << 20, 1 << 20, 1 << 20, 1 << 20][dice.pick(8)];
    let plan = Plan {
        kind,
        blocks: 3 + dice.pick(4),
        replay,
        fua: dice.pick(3) > 0,
        pool: kind == Kind::Multi && dice.pick(2) > 0,
        rules,
    };
    let mut some = |most: usize| dice.pick(most + 1) as u32;
    let faults = Faults {
        kills: some(3),
        cuts: some(3),
        flushes: if replay > 0 { some(2) } else { 0 },
        refusals: some(1),
        dooms: some(8) / 8,
        deadlines: some(2),
    };
    (World::new(plan, faults), plan.blocks, plan.fua)
}

fn ask(blocks: usize, fua: bool, dice: &mut Random) -> Ask {
    let what = [
        Do::Write,
        Do::Write,
        Do::Write,
        Do::Zero,
        Do::Trim,
        Do::Read,
        Do::Read,
        Do::Flush,
    ][dice.pick(8)];
    let from = dice.pick(blocks);
    let to = (from + 1 + dice.pick(3)).min(blocks);
    let fua = fua && !matches!(what, Do::Read | Do::Flush) && dice.pick(5) == 0;
    Ask {
        what,
        from,
        to,
        fua,
    }
}

fn session(world: &mut World, blocks: usize, fua: bool, dice: &mut Random) -> Verdict {
    let most = 1 + dice.pick(3);
    let mut clients = 1;
    world.join();
    let mut left = 10 + dice.pick(30);
    let mut value = 0;
    // How many act at random before the one that is first in a quiet world, and what is slow.
    let hurry = 1 + dice.pick(6);
    let slow = [dice.pick(2 * Act::KINDS), dice.pick(2 * Act::KINDS)];
    // Whether the server takes its time with what came over connections that were lost.
    let lazy = dice.pick(3) == 0;
    let mut steps = 0;
    while left > 0 || !world.is_idle() {
        steps += 1;
        if steps > 10_000 {
            return Err("it never ends".to_owned());
        }
        let present = world.present();
        if clients < most && dice.pick(12) == 0 {
            world.join();
            clients += 1;
        } else if !world.plan.pool && present.len() > 1 && dice.pick(60) == 0 {
            world.leave(present[dice.pick(present.len())]);
        } else if left > 0 && dice.pick(4) == 0 {
            let client = present[dice.pick(present.len())];
            if world.busy_of(client) < 4 {
                left -= 1;
                value += 1;
                world.push(client, ask(blocks, fua, dice), value);
            }
        }
        let mishaps = world.mishaps();
        if !mishaps.is_empty() && dice.pick(if world.core.is_rewriting() { 8 } else { 25 }) == 0 {
            world.perform(mishaps[dice.pick(mishaps.len())], dice)?;
        }
        let (mut acts, late) = world.acts_in_time(lazy);
        if acts.is_empty() || !lazy || dice.pick(12) == 0 {
            acts.extend(late);
        }
        match (acts.is_empty(), dice.pick(hurry)) {
            (true, _) if left == 0 && !world.is_idle() => {
                return Err("nothing can happen any more".to_owned());
            }
            (true, _) => (),
            (false, 0) => world.perform(acts[0], dice)?,
            (false, _) => {
                let act = acts[dice.pick(acts.len())];
                if !slow.contains(&act.kind()) || acts.len() == 1 || dice.pick(8) == 0 {
                    world.perform(act, dice)?;
                }
            }
        }
    }
    world.finish(dice)
}

fn run(seed: u64, rules: Rules, tracing: bool) -> Verdict {
    let mut dice = Random::new(seed);
    let (mut world, blocks, fua) = world(rules, &mut dice);
    world.tracing = tracing;
    let verdict = session(&mut world, blocks, fua, &mut dice);
    if tracing {
        world.trace.iter().for_each(|line| println!("{line}"));
    }
    verdict
}

/// The first of so many sessions that goes wrong: its seed, and what.
pub(super) fn search(rules: Rules, first: u64, sessions: u64) -> Option<(u64, String)> {
    (first..first + sessions).find_map(|seed| {
        let verdict = run(seed, rules, false);
        verdict.err().map(|wrong| (seed, wrong))
    })
}

#[test]
fn random_sessions_keep_what_they_promise() {
    if let Some(seed) = number("SESSION_SEED") {
        run(seed, Rules::ALL, true).expect("a good session");
        return;
    }
    let sessions = number("SESSIONS").unwrap_or(SESSIONS);
    // Others every day, the same all day long, and the seed is printed.
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = time.map_or(0, |time| time.as_secs() / 86400) * 1_000_000_007;
    println!("sessions {first} and {sessions} more");
    if let Some((seed, wrong)) = search(Rules::ALL, first, sessions) {
        panic!("SESSION_SEED={seed}: {wrong}");
    }
}
