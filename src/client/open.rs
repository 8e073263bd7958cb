// SPDX-License-Identifier: BSD-3-Clause
//! Opening: which questions are asked over which negotiation, and what is tried when a server cannot
//! stand one of them.
//!
//! A negotiation that is at hand is asked first. If the server has closed it meanwhile, another takes
//! its place, and nobody is told.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::Options;
use super::connection::come_to_rest;
use super::error::{Error, OpenError, Server};
use super::negotiation::{AtHand, End, Most, Negotiation};
use crate::proto::Violation;
use crate::proto::export::Export;
use crate::proto::handshake::{self, Described, Goal, Listed, Outcome};
use crate::proto::ladder::Ladder;
use crate::proto::name::ExportName;
use crate::transport::{self, Deadline, Stream};

/// How long a server that has answered a question before, and hangs up over it, may take to start again.
const RESTART: Duration = Duration::from_millis(250);

/// How to come `again` to a server, or once more while it is there: a hang-up is a loss then, and no reason
/// to ask less.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// How long connecting and the handshake take at most, each.
    pub most: Duration,
    /// What was asked before; else what was learnt since.
    pub asked: Option<Ladder>,
}

/// Connects, and enters transmission with `export`.
pub fn enter(
    server: &Server,
    options: &Options,
    export: &ExportName,
    again: Option<Again>,
) -> Result<(Stream, Export), Error> {
    let mut left = AtHand::default();
    let entered = match again {
        None => enter_over(server, options, export, &mut left),
        Some(again) => {
            let ladder = options.manners.ladder_again(again.asked);
            let goal = open_goal(options, export).with_ladder(ladder);
            let (most, end) = (Most::Each(Some(again.most)), &mut End::default());
            Negotiation::begin(server, options, goal, end, most, &mut left)
                .map(|mut reached| {
                    note(options, ladder, &mut reached);
                    entered_with(server, options, reached)
                })
                .map_err(|cause| failed(server, cause))
        }
    };
    left.leave();
    entered
}

/// The same for the first time, while somebody waits for it who does so until then.
pub fn enter_until(
    server: &Server,
    options: &Options,
    export: &ExportName,
    until: Deadline,
) -> Result<(Stream, Export), Error> {
    let mut left = AtHand::default();
    let most = || Most::Until(until);
    let goal = open_goal(options, export);
    let reached = reach_within(server, options, goal, most, &mut left);
    left.leave();
    Ok(entered_with(server, options, reached?))
}

/// Enters transmission with `export` over the negotiation at hand, or a new one. What is left at hand
/// may be asked something else: the server has refused.
pub fn enter_over(
    server: &Server,
    options: &Options,
    export: &ExportName,
    at_hand: &mut AtHand<'_>,
) -> Result<(Stream, Export), Error> {
    enter_before(server, options, export, Deadline::NEVER, at_hand)
}

/// The same, all of it before a deadline that may be sooner than those of the user.
pub fn enter_before(
    server: &Server,
    options: &Options,
    export: &ExportName,
    deadline: Deadline,
    at_hand: &mut AtHand<'_>,
) -> Result<(Stream, Export), Error> {
    let goal = open_goal(options, export);
    let reached = reach_before(server, options, goal, deadline, at_hand)?;
    Ok(entered_with(server, options, reached))
}

/// To open an export, with the extents that the user wants.
fn open_goal(options: &Options, export: &ExportName) -> Goal {
    Goal::open(export).with_wish(options.wish.clone())
}

fn entered_with(
    server: &Server,
    options: &Options,
    reached: (Negotiation, Outcome),
) -> (Stream, Export) {
    match reached {
        (negotiation, Outcome::Export(mut export)) => {
            export.limits = options.manners.limits();
            describe(server, &export);
            (negotiation.into_stream(), *export)
        }
        (_, other) => unreachable!("{other:?} is no answer to this goal"),
    }
}

/// Asks which exports there are. The negotiation is at hand afterwards, if it is still of use.
pub fn list(
    server: &Server,
    options: &Options,
    at_hand: &mut AtHand<'_>,
) -> Result<Vec<Listed>, Error> {
    let goal = Goal::list().with_wish(options.wish.clone());
    match reach(server, options, goal, at_hand)? {
        (negotiation, Outcome::Listing(listing)) => {
            at_hand.negotiation = Some(negotiation);
            Ok(listing)
        }
        (_, other) => unreachable!("{other:?} is no answer to this goal"),
    }
}

/// Asks which metadata contexts an export has. The negotiation is at hand afterwards.
pub fn contexts(
    server: &Server,
    options: &Options,
    export: &ExportName,
    at_hand: &mut AtHand<'_>,
) -> Result<Vec<Vec<u8>>, Error> {
    match reach(server, options, Goal::contexts(export), at_hand)? {
        (negotiation, Outcome::Contexts(names)) => {
            at_hand.negotiation = Some(negotiation);
            Ok(names)
        }
        (_, other) => unreachable!("{other:?} is no answer to this goal"),
    }
}

/// Asks about the default export, unless it is known that the server cannot be asked. The negotiation
/// is at hand afterwards, if it is still of use.
pub fn describe_default(
    server: &Server,
    options: &Options,
    at_hand: &mut AtHand<'_>,
) -> Result<Described, Error> {
    if !options.manners.ladder().can_describe() {
        return Ok(Described::default());
    }
    match reach(server, options, Goal::describe_default(), at_hand)? {
        (negotiation, Outcome::Described(described)) => {
            at_hand.negotiation = Some(negotiation);
            Ok(described)
        }
        (_, other) => unreachable!("{other:?} is no answer to this goal"),
    }
}

pub fn failed(server: &Server, cause: OpenError) -> Error {
    Error::Open {
        server: server.clone(),
        cause: Arc::new(cause),
    }
}

/// Reaches a goal, in the time that the user gives it.
fn reach(
    server: &Server,
    options: &Options,
    goal: Goal,
    at_hand: &mut AtHand<'_>,
) -> Result<(Negotiation, Outcome), Error> {
    reach_before(server, options, goal, Deadline::NEVER, at_hand)
}

/// The same, all of it before a deadline.
fn reach_before(
    server: &Server,
    options: &Options,
    goal: Goal,
    deadline: Deadline,
    at_hand: &mut AtHand<'_>,
) -> Result<(Negotiation, Outcome), Error> {
    let most = || Most::Each(left(deadline));
    reach_within(server, options, goal, most, at_hand)
}

/// Reaches a goal, if need be with fewer questions, one connection for each step. What led there is
/// remembered; what did not may have had another cause. A question that the server has answered before is
/// asked once more: it may just be restarting, and whoever is asked less offers less. `most` is asked
/// before each connection.
fn reach_within(
    server: &Server,
    options: &Options,
    goal: Goal,
    most: impl Fn() -> Most,
    at_hand: &mut AtHand<'_>,
) -> Result<(Negotiation, Outcome), Error> {
    let tried = options.manners.ladder();
    let mut goal = goal.with_ladder(tried);
    if let Some(negotiation) = at_hand.negotiation.take().filter(Negotiation::is_alive) {
        match negotiation.ask(options, goal.clone(), most(), &mut at_hand.negotiation) {
            Ok(mut reached) => {
                note(options, tried, &mut reached);
                return Ok(reached);
            }
            // The server may have closed it long ago, or it is one that takes no second question.
            Err(cause) if hung_up(&cause) => log::debug!("{server}: {cause}; connecting anew"),
            Err(cause) => return Err(failed(server, cause)),
        }
    }
    let mut first = None;
    let mut patient = true;
    loop {
        let mut end = End::default();
        let begun = Negotiation::begin(server, options, goal.clone(), &mut end, most(), at_hand);
        let cause = match begun {
            Ok(mut reached) => {
                if first.is_some() {
                    options.manners.remember(tried, goal.ladder());
                }
                note(options, goal.ladder(), &mut reached);
                return Ok(reached);
            }
            Err(cause) => cause,
        };
        let Some(ladder) = end.lower.filter(|_| hung_up(&cause)) else {
            // That the server was gone meanwhile says less than how it went, unless it left last words.
            let last_words = matches!(cause, OpenError::Connect(transport::Error::ServerEnded(_)));
            let told = first.filter(|_| !end.asked && !last_words && !is_superseded(&cause));
            return Err(failed(server, told.unwrap_or(cause)));
        };
        if patient && options.manners.has_answered(goal.ladder(), ladder) {
            log::info!("{server}: {cause}; trying again, as it has answered this question before");
            patient = false;
            let leaves = || options.wanted.is_some_and(|wanted| !wanted());
            come_to_rest(Deadline::after(RESTART), leaves);
        } else {
            log::info!("{server}: {cause}; trying again without this question");
            goal = goal.with_ladder(ladder);
        }
        first.get_or_insert(cause);
    }
}

/// Remembers which questions led to an export. To others not all of them belong.
fn note(options: &Options, asked: Ladder, reached: &mut (Negotiation, Outcome)) {
    if let Outcome::Export(export) = &mut reached.1 {
        export.asked = asked;
        options.manners.found_answers(asked);
    }
}

/// What is left until a deadline, as a limit for one step: whole seconds, since messages tell them.
pub fn left(deadline: Deadline) -> Option<Duration> {
    let left = deadline.remaining();
    left.map(|left| Duration::from_secs(left.as_secs() + 1))
}

/// Whether it is no failure at all.
fn is_superseded(cause: &OpenError) -> bool {
    matches!(cause, OpenError::Superseded)
}

/// Whether the server hung up or lost its place, and was not just silent.
pub fn hung_up(cause: &OpenError) -> bool {
    use transport::Error::{Closed, Io};
    match cause {
        OpenError::Broken { error, .. } => match error {
            Closed => true,
            Io { errno, .. } => [Errno::CONNRESET, Errno::PIPE].contains(errno),
            _ => false,
        },
        OpenError::Handshake(handshake::Error::Violation(violation)) => matches!(
            violation,
            Violation::OptionMagic { .. } | Violation::OptionEcho { .. }
        ),
        _ => false,
    }
}

fn describe(server: &Server, export: &Export) {
    let name = export.context_name().map(ToString::to_string);
    log::debug!(
        "{server}: export of {} bytes{}, {}, context {}",
        export.size,
        export.flags,
        export.framing,
        name.unwrap_or_else(|| "none".to_owned()),
    );
    if let Some(sizes) = export.block_sizes {
        log::debug!(
            "{server}: block sizes {}/{}/{}",
            sizes.minimum,
            sizes.preferred,
            sizes.maximum
        );
    }
}
