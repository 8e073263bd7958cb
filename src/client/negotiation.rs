// SPDX-License-Identifier: BSD-3-Clause
//! A stream and a handshake: connecting, and asking one thing after the other until an export is
//! opened, each within its deadline.
//!
//! A negotiation is at rest whenever somebody else holds it: the server waits for an option, for as long
//! as it likes. It is left in three ways: it becomes the stream of an open export; it is abandoned
//! where the server broke it off; or [`Negotiation::leave`] says goodbye.

use std::time::{Duration, Instant};

use super::Options;
use super::error::{OpenError, Server};
use crate::proto::consts::OptionType;
use crate::proto::handshake::{self, Goal, Handshake, Outcome, Step, Style, TlsPolicy};
use crate::proto::ladder::Ladder;
use crate::transport::tls::{Credentials, Facts, Prepared};
use crate::transport::{self, Blocking, Deadline, Stream};

/// How long a server may take to close a connection that we left: several times what a far one needs.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// A time for which nobody needs to be told what is waited for.
const LEAST_REMINDER: Duration = Duration::from_millis(900);

/// How far a failed attempt came.
#[derive(Debug, Default)]
pub struct End {
    /// The server was asked something.
    pub asked: bool,
    /// What to try if it hung up.
    pub lower: Option<Ladder>,
    /// What it was asked last, if it has said nothing to that.
    pub unanswered: Option<OptionType>,
}

/// What there is to begin with.
#[derive(Default)]
pub struct AtHand<'a> {
    /// A negotiation to go on with. What is left of it afterwards may be asked something else.
    pub negotiation: Option<Negotiation>,
    /// Asked while a new server does not greet, with the time for which it has not: whether there is
    /// something better by now than to wait for it. It may see to it that the server has room.
    pub instead: Option<&'a dyn Fn(Duration) -> bool>,
}

impl AtHand<'_> {
    /// Leaves what there still is.
    pub fn leave(&mut self) {
        self.negotiation
            .take()
            .into_iter()
            .for_each(Negotiation::leave);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Negotiation {
    server: Server,
    stream: Stream,
    machine: Handshake,
}

impl Negotiation {
    /// Connects and pursues a goal. Whatever the goal, the same TLS policy and deadlines apply. On
    /// failure `end` tells how it ended, and where the server has only refused, what is at hand may be
    /// asked something else.
    pub fn begin(
        server: &Server,
        options: &Options,
        goal: Goal,
        end: &mut End,
        most: Most,
        at_hand: &mut AtHand<'_>,
    ) -> Result<(Self, Outcome), OpenError> {
        // A file that is of no use does not cost the server a connection.
        let tls = match options.tls_policy {
            TlsPolicy::Off => None,
            TlsPolicy::Allow | TlsPolicy::Require => Some(options.tls.prepare()),
        };
        let tls = tls.transpose().map_err(OpenError::Credentials)?;
        let stream = options
            .target
            .connect(limit(options, options.times.connect.get(), most))
            .map_err(OpenError::Connect)?;
        let deadline = limit(options, options.times.handshake.get(), most);
        if let Some(instead) = at_hand.instead {
            await_room(server, options, &stream, deadline, instead)?;
        }
        await_greeting(server, options, &stream, deadline)?;
        let mut this = Self {
            server: server.clone(),
            stream,
            machine: Handshake::new(goal.with_tls(options.tls_policy).with_server(server)),
        };
        let shaken = this.shake_hands(tls.as_ref(), deadline);
        *end = End {
            asked: this.machine.has_asked(),
            lower: this.machine.step_down(),
            unanswered: this.machine.unanswered(),
        };
        if this.machine.knows_only_compact() {
            options.manners.found_compact();
        }
        this.conclude(shaken, &mut at_hand.negotiation)
    }

    /// Pursues another goal. Where the server has only refused, what is `left` may be asked once more.
    pub fn ask(
        mut self,
        options: &Options,
        goal: Goal,
        most: Most,
        left: &mut Option<Self>,
    ) -> Result<(Self, Outcome), OpenError> {
        let deadline = limit(options, options.times.handshake.get(), most);
        let shaken = match self.machine.ask(goal) {
            Ok(()) => self.shake_hands(None, deadline),
            Err(error) => Err(OpenError::Handshake(error)),
        };
        self.conclude(shaken, left)
    }

    fn conclude(
        mut self,
        shaken: Result<(), OpenError>,
        left: &mut Option<Self>,
    ) -> Result<(Self, Outcome), OpenError> {
        use handshake::Error::{NoContext, Refused, SeveralBitmaps, TlsRefused};
        match shaken {
            Ok(()) => {
                let outcome = self.machine.outcome();
                Ok((self, outcome.expect("the last step is the goal")))
            }
            Err(error) => {
                match &error {
                    OpenError::Handshake(Refused(_) | NoContext { .. } | SeveralBitmaps { .. })
                        if self.machine.is_at_rest() =>
                    {
                        *left = Some(self);
                    }
                    // spec: Termination of the session: MUST: NBD_REP_ERR_SHUTDOWN is answered by NBD_OPT_ABORT
                    // spec: Termination of the session: MUST: who does not want to go on says NBD_OPT_ABORT
                    // spec: Termination of the session: MUST NOT: no closing without it where it can be said
                    // The connection is healthy, and servers like to be told.
                    OpenError::Handshake(Refused(_) | TlsRefused(_)) => self.leave(),
                    _ => (),
                }
                Err(error)
            }
        }
    }

    /// How the server has begun, until an export is open.
    pub fn style(&self) -> Option<Style> {
        self.machine.style()
    }

    /// How TLS protects the connection, if it does.
    pub fn tls_facts(&self) -> Option<Facts> {
        self.stream.tls_facts()
    }

    /// The stream, once an export is open.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Whether the server still waits for an option. One that has closed its side, or says something
    /// unasked, does not.
    pub fn is_alive(&self) -> bool {
        matches!(self.stream.receive(&mut [0], Blocking::No), Ok(None))
    }

    /// Ends it by `NBD_OPT_ABORT`, where there is that. Nothing more is sent, and saying so at once
    /// keeps a server that waits for us to close from waiting. Then it has a little time to close its
    /// side, so that it can get rid of its reply and need not complain of us. The reply may be missing;
    /// it is of no interest.
    pub fn leave(self) {
        // spec: Termination of the session: MUST: NBD_OPT_ABORT is followed by the end of TLS and of the connection
        // spec: Termination of the session: SHOULD: TLS is ended before the connection is
        see_off(&self.stream, &self.machine.goodbye());
    }

    /// Runs the handshake machine over the stream. One deadline covers all of it, so a server cannot
    /// stretch it by saying little, but often.
    fn shake_hands(
        &mut self,
        tls: Option<&Prepared<'_>>,
        deadline: Deadline,
    ) -> Result<(), OpenError> {
        let Self {
            server,
            stream,
            machine,
        } = self;
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
                    // Most of what a server says in one go is there at once.
                    let there = match deadline.has_passed() {
                        true => Err(deadline.passed()),
                        false => stream.receive(&mut bytes, Blocking::No),
                    };
                    let there = there.map_err(|error| broken(machine, error))?.unwrap_or(0);
                    if there < n {
                        remind(server, stream, machine, &mut reminder)
                            .map_err(|error| broken(machine, error))?;
                        stream
                            .receive_exact(&mut bytes[there..], deadline)
                            .map_err(|error| broken(machine, error))?;
                    }
                    machine.received(&bytes).map_err(OpenError::Handshake)?;
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
}

/// Says the last word on a connection, and gives the server a little time to close its side.
pub fn see_off(stream: &Stream, goodbye: &[u8]) {
    let deadline = Deadline::after(LEAVE_TIMEOUT);
    if stream.send_all(goodbye, deadline).is_err() {
        return;
    }
    // Under TLS this says so there, too: servers complain of who leaves without a word.
    stream.finish_sending();
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

/// A limit beside that of the user.
#[derive(Clone, Copy, Debug)]
pub enum Most {
    /// For each of the two steps, to connect and to shake hands, if there is one at all.
    Each(Option<Duration>),
    /// For both together.
    Until(Deadline),
}

/// Until when a step must be over that may take `timeout`, and no longer than `most` says.
fn limit(options: &Options, timeout: Option<Duration>, most: Most) -> Deadline {
    let deadline = match most {
        Most::Each(most) => Deadline::after_maybe(timeout.into_iter().chain(most).min()),
        Most::Until(until) => Deadline::after_maybe(timeout).sooner(until),
    };
    deadline.while_wanted(options.wanted)
}

/// How soon it is asked again whether there is something better than to wait for a greeting.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until the server has said something, unless something else comes up before.
fn await_room(
    server: &Server,
    options: &Options,
    stream: &Stream,
    deadline: Deadline,
    instead: &dyn Fn(Duration) -> bool,
) -> Result<(), OpenError> {
    let begun = Instant::now();
    let mut reminder = Some(deadline.third());
    let waits = |error| OpenError::Broken {
        error,
        awaited: options.target.awaited(),
    };
    loop {
        let ready = stream
            .wait(true, false, None, deadline.within(LOOK))
            .map_err(waits)?;
        // What becomes of the wait is told by those who go on with it.
        if ready.readable || deadline.has_passed() {
            return Ok(());
        }
        if instead(begun.elapsed()) {
            return Err(OpenError::Superseded);
        }
        if let Some(third) = reminder.take_if(|third| third.has_passed()) {
            say_what_is_awaited(server, third, &options.target.awaited());
        }
    }
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
