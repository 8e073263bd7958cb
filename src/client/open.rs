// SPDX-License-Identifier: BSD-3-Clause
//! Opening: connect, drive the handshake, both within their deadlines.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::Options;
use super::error::{Error, OpenError, Server};
use crate::proto::Violation;
use crate::proto::consts::OptionType;
use crate::proto::export::Export;
use crate::proto::handshake::{
    self, Described, Goal, Handshake, Ladder, Listed, Outcome, Step, TlsPolicy,
};
use crate::proto::name::ExportName;
use crate::proto::request::encode_option;
use crate::transport::tls::{Credentials, Prepared};
use crate::transport::{self, Blocking, Deadline, Stream};

/// How long a server may take to close a connection that we left: several times what a far one needs.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// A time for which nobody needs to be told what is waited for.
const LEAST_REMINDER: Duration = Duration::from_millis(900);

/// Connects, and enters transmission with `export`. When it comes back `again` to a server, a hang-up
/// is a loss and no reason to ask otherwise, and connecting and the handshake take so long at most each.
pub fn enter(
    server: &Server,
    options: &Options,
    export: &ExportName,
    again: Option<Duration>,
) -> Result<(Stream, Export), Error> {
    let goal = Goal::open(export);
    let reached = match again {
        None => reach(server, options, goal),
        Some(_) => {
            let goal = goal.with_ladder(options.manners.ladder());
            attempt(server, options, goal, &mut End::default(), again)
                .map_err(|cause| failed(server, cause))
        }
    };
    match reached? {
        (stream, Outcome::Export(export)) => {
            describe(server, &export);
            Ok((stream, *export))
        }
        (_, other) => unreachable!("{other:?} is no answer to this goal"),
    }
}

/// Asks which exports there are.
pub fn list(server: &Server, options: &Options) -> Result<Vec<Listed>, Error> {
    match reach(server, options, Goal::list())? {
        (stream, Outcome::Listing(listing)) => {
            leave(&stream);
            Ok(listing)
        }
        (_, other) => unreachable!("{other:?} is no answer to this goal"),
    }
}

/// Asks about the default export, unless it is known that the server cannot be asked.
pub fn describe_default(server: &Server, options: &Options) -> Result<Described, Error> {
    if !options.manners.ladder().can_describe() {
        return Ok(Described::default());
    }
    match reach(server, options, Goal::describe_default())? {
        (stream, Outcome::Described(described)) => {
            leave(&stream);
            Ok(described)
        }
        (_, other) => unreachable!("{other:?} is no answer to this goal"),
    }
}

/// Ends a connection that was left by `NBD_OPT_ABORT`. Nothing more is sent, and saying so at once
/// keeps a server that waits for us to close from waiting. Then it has a little time to close its
/// side, so that it can get rid of its reply and need not complain of us. The reply may be missing;
/// it is of no interest.
fn leave(stream: &Stream) {
    // spec: Termination of the session: MUST: NBD_OPT_ABORT is followed by the end of TLS and of the connection
    // spec: Termination of the session: SHOULD: TLS is ended before the connection is
    // Under TLS this says so there, too: servers complain of who leaves without a word.
    stream.finish_sending();
    let deadline = Deadline::after(LEAVE_TIMEOUT);
    let mut scrap = [0; 64];
    while !deadline.has_passed() {
        match stream.wait(true, false, None, deadline) {
            Ok(ready) if ready.readable => (),
            _ => break,
        }
        if stream.receive(&mut scrap, Blocking::No).is_err() {
            break;
        }
    }
}

fn failed(server: &Server, cause: OpenError) -> Error {
    Error::Open {
        server: server.clone(),
        cause: Arc::new(cause),
    }
}

/// Reaches a goal, if need be with fewer questions, one connection for each step. What led there is
/// remembered; what did not may have had another cause.
fn reach(server: &Server, options: &Options, goal: Goal) -> Result<(Stream, Outcome), Error> {
    let mut goal = goal.with_ladder(options.manners.ladder());
    let mut first = None;
    loop {
        let mut end = End::default();
        let cause = match attempt(server, options, goal.clone(), &mut end, None) {
            Ok(reached) => {
                if first.is_some() {
                    options.manners.remember(goal.ladder());
                }
                return Ok(reached);
            }
            Err(cause) => cause,
        };
        let Some(ladder) = end.lower.filter(|_| hung_up(&cause)) else {
            // That the server was gone meanwhile says less than how it went, unless it left last words.
            let last_words = matches!(cause, OpenError::Connect(transport::Error::ServerEnded(_)));
            let told = first.filter(|_| !end.asked && !last_words);
            return Err(failed(server, told.unwrap_or(cause)));
        };
        log::info!("{server}: {cause}; trying again without this question");
        goal = goal.with_ladder(ladder);
        first.get_or_insert(cause);
    }
}

/// How far a failed attempt came.
#[derive(Default)]
struct End {
    /// The server was asked something.
    asked: bool,
    /// What to try if it hung up.
    lower: Option<Ladder>,
}

/// Whether the server hung up or lost its place, and was not just silent.
fn hung_up(cause: &OpenError) -> bool {
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

/// Connects and shakes hands. Whatever the goal, the same TLS policy and deadlines apply. On failure
/// `end` tells how it ended. `most` is a limit beside that of the user.
fn attempt(
    server: &Server,
    options: &Options,
    goal: Goal,
    end: &mut End,
    most: Option<Duration>,
) -> Result<(Stream, Outcome), OpenError> {
    let limit = |timeout: Option<Duration>| {
        let shorter = timeout.into_iter().chain(most).min();
        Deadline::after_maybe(shorter).while_wanted(options.wanted)
    };
    // A file that is of no use does not cost the server a connection.
    let tls = match options.tls_policy {
        TlsPolicy::Off => None,
        TlsPolicy::Allow | TlsPolicy::Require => Some(options.tls.prepare()),
    };
    let tls = tls.transpose().map_err(OpenError::Credentials)?;
    let connecting = limit(options.connect_timeout);
    let mut stream = options
        .target
        .connect(connecting)
        .map_err(OpenError::Connect)?;
    let deadline = limit(options.handshake_timeout);
    await_greeting(server, options, &stream, deadline)?;
    let mut machine = Handshake::new(goal.with_tls(options.tls_policy));
    let shaken = shake_hands(server, &mut stream, &mut machine, tls.as_ref(), deadline);
    *end = End {
        asked: machine.has_asked(),
        lower: machine.step_down(),
    };
    shaken?;
    let outcome = machine.finish();
    Ok((stream, outcome.expect("the last step is the goal")))
}

/// Waits until a server that is only being started has said something.
fn await_greeting(
    server: &Server,
    options: &Options,
    stream: &Stream,
    deadline: Deadline,
) -> Result<(), OpenError> {
    let target = &options.target;
    let mut awaiting = target.await_greeting(stream, deadline.third());
    if matches!(awaiting, Err(transport::Error::Timeout(_))) && !deadline.has_passed() {
        say_what_is_awaited(server, deadline.third(), &target.awaited());
        awaiting = target.await_greeting(stream, deadline);
    }
    awaiting.map_err(|error| match error {
        // No connection came about, and that is why.
        transport::Error::ServerEnded(_) | transport::Error::TunnelEnded(_) => {
            OpenError::Connect(error)
        }
        error => OpenError::Broken {
            error,
            awaited: target.awaited(),
        },
    })
}

/// Runs the handshake machine over a stream. One deadline covers all of it, so a server cannot
/// stretch it by saying little, but often.
fn shake_hands(
    server: &Server,
    stream: &mut Stream,
    machine: &mut Handshake,
    tls: Option<&Prepared<'_>>,
    deadline: Deadline,
) -> Result<(), OpenError> {
    let mut reminder = Some(deadline.third());
    let certificates =
        tls.is_some_and(|tls| matches!(tls.settings().credentials, Credentials::X509(_)));
    let mut bytes = Vec::new();
    loop {
        let broken = |machine: &Handshake, error: transport::Error| {
            if error.is_of_tls() {
                OpenError::Tls(error)
            } else if machine.may_be_refused() && certificates {
                OpenError::Unwelcome(error)
            } else {
                OpenError::Broken {
                    error,
                    awaited: machine.awaited(),
                }
            }
        };
        match machine.step() {
            Step::Send(bytes) => match stream.send_all(&bytes, deadline) {
                // What is said at the end is a courtesy, and the server may be gone.
                Err(error) if !machine.is_done() => return Err(broken(machine, error)),
                _ => (),
            },
            Step::Receive(n) => {
                // The machine bounds n.
                bytes.resize(n, 0);
                remind(server, stream, machine, &mut reminder)
                    .map_err(|error| broken(machine, error))?;
                stream
                    .receive_exact(&mut bytes, deadline)
                    .map_err(|error| broken(machine, error))?;
                if let Err(error) = machine.received(&bytes) {
                    use handshake::Error::{Refused, TlsRefused};
                    if matches!(error, Refused(_) | TlsRefused(_)) {
                        // spec: Termination of the session: MUST: NBD_REP_ERR_SHUTDOWN is answered by NBD_OPT_ABORT
                        // spec: Termination of the session: MUST: who does not want to go on says NBD_OPT_ABORT
                        // spec: Termination of the session: MUST NOT: no closing without it where it can be said
                        // The connection is healthy, and servers like to be told.
                        let abort = encode_option(OptionType::ABORT, &[]);
                        if stream.send_all(&abort, deadline).is_ok() {
                            leave(stream);
                        }
                    }
                    return Err(OpenError::Handshake(error));
                }
            }
            Step::StartTls => {
                let tls = tls.expect("the machine asks for it only where the policy allows it");
                let proof = stream
                    // spec: Client-side requirements: MUST: there is no way back from a TLS handshake that failed
                    // spec: Termination of the session: MUST: a failed TLS handshake ends without NBD_OPT_ABORT
                    .start_tls(tls, deadline)
                    .map_err(|error| broken(machine, error))?;
                machine.tls_established(proof);
            }
            Step::Done => return Ok(()),
        }
    }
}

/// Waits for the server to say something until a third of the time is over, and then says, once,
/// what is waited for: somebody may be looking at a program that does nothing.
fn remind(
    server: &Server,
    stream: &Stream,
    machine: &Handshake,
    reminder: &mut Option<Deadline>,
) -> Result<(), transport::Error> {
    let Some(third) = reminder else {
        return Ok(());
    };
    if !third.is_never() && stream.wait(true, false, None, *third)?.expired {
        say_what_is_awaited(server, *third, &machine.awaited());
        *reminder = None;
    }
    Ok(())
}

fn say_what_is_awaited(server: &Server, deadline: Deadline, awaited: &str) {
    if deadline
        .length()
        .is_some_and(|length| length >= LEAST_REMINDER)
    {
        log::warn!(
            target: "slow-handshake",
            "{server}: handshake: still waiting for {awaited}"
        );
    }
}

fn describe(server: &Server, export: &Export) {
    log::debug!(
        "{server}: export of {} bytes{}, structured replies {}, base:allocation {}",
        export.size,
        export.flags,
        on(export.structured),
        on(export.base_allocation.is_some()),
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

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}
