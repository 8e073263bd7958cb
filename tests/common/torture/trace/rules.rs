// SPDX-License-Identifier: BSD-3-Clause
//! The judgement, one function for each thing that a trace can show.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::record::{Record, Served};
use super::story::{Newest, Story};
use crate::common::scripted::wire::{cmd, errno};
use crate::torture::block::{BLOCK, Content, ZEROES};
use crate::torture::history::Op;

/// I4: two changes that overlap are never in flight together. When the journal begins to be written again, a
/// change may still be under way: that one must be done once more afterwards.
pub fn overlap(record: &Record, story: &Story, breaches: &mut Vec<String>) {
    // Which changes of the current epoch may still be under way, by the last place where they may be.
    let mut open: Vec<(&Served, usize)> = Vec::new();
    let mut epoch = 0;
    for change in record.served.iter().filter(|served| served.is_change()) {
        if change.epoch != epoch {
            open.clear();
            epoch = change.epoch;
        }
        open.retain(|(_, end)| *end > change.arrived.index);
        for (other, _) in &open {
            let excused = |replay: &Served, changed: &Served| {
                may_be_replay(record, replay) && done_once_more(record, story, replay, changed)
            };
            if other.request.overlaps(&change.request)
                && !excused(other, change)
                && !excused(change, other)
            {
                breaches.push(format!(
                    "I4: {} while {} was in flight",
                    told(change),
                    told(other)
                ));
            }
        }
        let replied = change.replied.map(|point| point.index);
        open.push((change, replied.or(change.closed).unwrap_or(usize::MAX)));
    }
}

/// Whether all that a request writes had been acknowledged before.
fn is_replay(story: &Story, served: &Served) -> bool {
    served.request.kind == cmd::WRITE
        && served.request.blocks().all(|block| {
            served
                .makes(block)
                .and_then(|content| story.writer(block, content))
                .is_some_and(|writer| writer.done() < served.arrived.at)
        })
}

/// Whether a request can be the journal's: all of it had been answered by the server before. Who zeroes cannot be
/// told.
fn may_be_replay(record: &Record, served: &Served) -> bool {
    served.request.kind != cmd::TRIM
        && served
            .request
            .blocks()
            .all(|block| match served.makes(block) {
                Some(ZEROES) | None => true,
                Some(content) => record.applied(block, content).any(|earlier| {
                    earlier
                        .good()
                        .is_some_and(|point| point.index < served.arrived.index)
                }),
            })
}

/// Whether a change came again after the replay, before its client was told that it is done.
fn done_once_more(record: &Record, story: &Story, replay: &Served, changed: &Served) -> bool {
    let Some(replied) = replay.replied else {
        return true;
    };
    let same = |kind: u16, offset: u64, length: u64| {
        let request = &changed.request;
        (kind, offset, length) == (request.kind, request.offset, request.length)
    };
    let again = record.served.iter().any(|served| {
        let request = &served.request;
        served.arrived.index > replied.index
            && same(request.kind, request.offset, request.length)
            && request.contents == changed.request.contents
    });
    let size = BLOCK as u64;
    let told = story.ops.iter().any(|op| {
        same(op.kind, op.block * size, op.count * size)
            && (op.kind != cmd::WRITE || op.contents == changed.request.contents)
            && op.sent < changed.arrived.at
            && op.good()
            && op.done() > changed.arrived.at
    });
    again || !told
}

/// I5, and between clients I9: what is sent is never older than what was acknowledged before.
pub fn undo(record: &Record, story: &Story, breaches: &mut Vec<String>) {
    for change in record.served.iter().filter(|served| served.is_change()) {
        for block in change.request.blocks() {
            let Some(content) = change.makes(block) else {
                continue;
            };
            let Some(writer) = story.writer(block, content) else {
                continue;
            };
            let changes = story.changes(block);
            let first = changes.partition_point(|op| op.sent <= writer.done());
            let newer = changes[first..].iter().find(|newer| {
                // The last moment at which it was decided to send this is unknown: take the answer before.
                newer.done() < change.arrived.at
            });
            if let Some(newer) = newer {
                let rule = if newer.client == writer.client {
                    "I5"
                } else {
                    "I9"
                };
                breaches.push(format!(
                    "{rule}: {} brings back {content:x} in block {block}, after client {}'s {:x} was \
                     acknowledged at {}",
                    told(change),
                    newer.client,
                    newer.content(block),
                    newer.done()
                ));
            }
        }
    }
}

/// I7: what a client was told that it is done was done, whole, between request and answer.
pub fn done_in_truth(record: &Record, story: &Story, breaches: &mut Vec<String>) {
    let mut covers: HashMap<u64, Vec<&Served>> = HashMap::new();
    for served in &record.served {
        if matches!(served.request.kind, cmd::READ | cmd::TRIM) {
            for block in served.request.blocks() {
                covers.entry(block).or_default().push(served);
            }
        }
    }
    for op in story.ops.iter().filter(|op| op.good()) {
        let meanwhile = |served: &Served| {
            served.arrived.at > op.sent && served.good().is_some_and(|point| point.at < op.done())
        };
        for block in op.block..op.block + op.count {
            let content = op.content(block);
            let done = match op.kind {
                cmd::WRITE | cmd::WRITE_ZEROES => record.applied(block, content).any(|served| {
                    meanwhile(served)
                        && (!op.fua || record.released(served).is_some_and(|at| at < op.done()))
                }),
                cmd::TRIM => covers.get(&block).is_some_and(|all| {
                    let mut trims = all.iter().filter(|served| served.request.kind == cmd::TRIM);
                    trims.any(|served| meanwhile(served))
                }),
                cmd::READ => covers.get(&block).is_some_and(|all| {
                    let first = all.partition_point(|served| served.arrived.at <= op.sent);
                    all[first..]
                        .iter()
                        .take_while(|served| served.arrived.at < op.done())
                        .any(|served| meanwhile(served) && found(served, block) == Some(content))
                }),
                _ => true,
            };
            if !done {
                breaches.push(format!(
                    "I7: {} was answered, and block {block} was not done in full meanwhile",
                    told_op(op)
                ));
                break;
            }
        }
    }
}

/// I2 and I3: when a flush is answered, what had been answered before it was sent is durable.
pub fn flushed_in_truth(record: &Record, story: &Story, breaches: &mut Vec<String>) {
    let flushes = story.flushes();
    // Without one cache for all nobody is promised what others wrote.
    let multi = record.epochs.iter().all(|epoch| epoch.multi);
    for newest in story.newest() {
        let first = flushes.partition_point(|flush| flush.sent <= newest.from);
        let flush = flushes[first..]
            .iter()
            .take_while(|flush| flush.sent < newest.to)
            .find(|flush| flush.done() < newest.to && (multi || flush.client == newest.op.client));
        let Some(flush) = flush else {
            continue;
        };
        if !released_by(record, &newest, flush.done()) {
            // A flush that failed or got no answer, while it should have counted?
            let failed = record.served.iter().any(|served| {
                served.request.kind == cmd::FLUSH
                    && served.good().is_none()
                    && served.arrived.at > newest.op.sent
                    && served.arrived.at < flush.done()
            });
            let rule = if failed { "I3" } else { "I2" };
            breaches.push(format!(
                "{rule}: client {} was told at {} that all is flushed, and no flush counted for {:x} in block {}, \
                 acknowledged at {}",
                flush.client,
                flush.done(),
                newest.content(),
                newest.block,
                newest.from
            ));
        }
    }
}

/// Whether some application of a change was released before a moment.
fn released_by(record: &Record, newest: &Newest, moment: u64) -> bool {
    record
        .applied(newest.block, newest.content())
        .filter(|served| served.arrived.at > newest.op.sent && served.arrived.at < newest.to)
        .any(|served| record.released(served).is_some_and(|at| at <= moment))
}

/// I2 and I6: after the server's return all that was acknowledged and not released is written again, before
/// anything else is done.
pub fn replay(record: &Record, story: &Story, breaches: &mut Vec<String>) {
    let newest = story.newest();
    for epoch in record.epochs.iter().skip(1) {
        let needed: Vec<&Newest> = newest
            .iter()
            .filter(|newest| newest.from < epoch.start && epoch.start < newest.to)
            .filter(|newest| !released_by(record, newest, epoch.start))
            .collect();
        if needed.is_empty() {
            continue;
        }
        // The first request that is no replay.
        let served = record
            .served
            .iter()
            .filter(|served| served.epoch == epoch.number);
        let other = |served: &Served| match served.request.kind {
            // A flush of the plugin's own does no harm.
            cmd::FLUSH | cmd::TRIM | cmd::WRITE_ZEROES => false,
            // What is acknowledged may not have got through to the client yet.
            cmd::WRITE => !may_be_replay(record, served),
            _ => true,
        };
        let Some(first) = served.clone().find(|served| other(served)) else {
            continue;
        };
        for newest in needed {
            let again = record
                .applied(newest.block, newest.content())
                .filter(|served| served.epoch == epoch.number)
                .filter_map(Served::good)
                .map(|point| point.index)
                .next();
            let what = format!(
                "{:x} in block {}, acknowledged at {}",
                newest.content(),
                newest.block,
                newest.from
            );
            match again {
                Some(index) if index < first.arrived.index => {}
                Some(_) => breaches.push(format!("I6: {} came before {what}", told(first))),
                None => breaches.push(format!(
                    "I2: {what}, was not written again before {}",
                    told(first)
                )),
            }
        }
    }
}

/// I6: what was in flight is sent again before what overlaps it, be that a read or a new change.
pub fn sent_again_in_order(record: &Record, story: &Story, breaches: &mut Vec<String>) {
    // What was applied in an earlier epoch, and by whom each block was touched in this one.
    let mut before: HashSet<(u64, Content)> = HashSet::new();
    let mut current: HashSet<(u64, Content)> = HashSet::new();
    let mut touched: BTreeMap<u64, Vec<&Served>> = BTreeMap::new();
    let mut epoch = 0;
    for served in &record.served {
        if served.epoch != epoch {
            before.extend(current.drain());
            touched.clear();
            epoch = served.epoch;
        }
        let start = record.epoch(epoch).map_or(0, |epoch| epoch.start);
        for block in served.request.blocks() {
            let content = served.makes(block);
            let writer = content.and_then(|content| story.writer(block, content));
            if let (Some(content), Some(writer)) = (content, writer) {
                let again =
                    before.contains(&(block, content)) && !current.contains(&(block, content));
                if again && writer.sent < start && writer.done() > served.arrived.at {
                    let overtook = touched.get(&block).into_iter().flatten().find(|other| {
                        let new = other
                            .makes(block)
                            .and_then(|content| story.writer(block, content))
                            .is_some_and(|writer| writer.sent > start);
                        other.request.kind == cmd::READ || new
                    });
                    if let Some(other) = overtook {
                        breaches.push(format!(
                            "I6: {} came before {}, which was in flight at the loss",
                            told(other),
                            told(served)
                        ));
                    }
                }
                current.insert((block, content));
            }
            touched.entry(block).or_default().push(served);
        }
    }
}

/// I11: after a replay that failed nothing is written or flushed any more, for those who were there.
pub fn failed_replay(record: &Record, story: &Story, breaches: &mut Vec<String>) {
    let failed = record.served.iter().find(|served| {
        is_replay(story, served)
            && served.replied.is_some()
            && !matches!(served.error, 0 | errno::ESHUTDOWN)
    });
    let Some(failed) = failed else {
        return;
    };
    let at = failed.replied.map_or(0, |point| point.at);
    let births = story.births();
    for op in story.ops {
        let was_there = births.get(&op.client).is_some_and(|birth| *birth < at);
        let changes = op.changes() || op.kind == cmd::FLUSH;
        if was_there && changes && op.good() && op.sent > at {
            breaches.push(format!(
                "I11: {} succeeded after the replay had failed at {at}",
                told_op(op)
            ));
        }
    }
}

/// What a read found in a block.
fn found(served: &Served, block: u64) -> Option<Content> {
    let first = served.request.blocks().start;
    let index = usize::try_from(block.checked_sub(first)?).ok()?;
    served.found.get(index).copied()
}

fn told(served: &Served) -> String {
    let request = &served.request;
    format!(
        "the {} of blocks {:?} that came at {} on connection {} of epoch {}",
        name(request.kind),
        request.blocks(),
        served.arrived.at,
        served.connection,
        served.epoch
    )
}

fn told_op(op: &Op) -> String {
    format!(
        "client {}'s {} of blocks {:?} from {} to {}",
        op.client,
        name(op.kind),
        op.block..op.block + op.count,
        op.sent,
        op.done()
    )
}

fn name(kind: u16) -> &'static str {
    match kind {
        cmd::READ => "read",
        cmd::WRITE => "write",
        cmd::FLUSH => "flush",
        cmd::TRIM => "trim",
        cmd::WRITE_ZEROES => "zeroing",
        _ => "request",
    }
}
