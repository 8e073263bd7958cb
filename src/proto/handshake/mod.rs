// SPDX-License-Identifier: BSD-3-Clause
//! The handshake as a machine: it returns steps and is handed bytes, and never waits for anything.
//!
//! It begins with the greeting that both styles share and passes to `oldstyle` or `newstyle`.
//! The order of options is the one that works with every server met so far: extended headers, or else
//! structured replies, the metadata context (`contexts`), then `NBD_OPT_GO`; `NBD_OPT_EXPORT_NAME` where the server knows no
//! better. Servers that cannot stand being asked are what `ladder` is for. Everything said in answer to
//! an option counts only if that option succeeds.
//!
//! A handshake can be asked more than once: after a list, or what an export is, or a refusal, it is at
//! rest, and [`Handshake::ask`] goes on with the next goal over the same connection, until an export is
//! opened. Who wants nothing more says [`Handshake::goodbye`].

mod contexts;
mod newstyle;
mod oldstyle;
mod options;

use std::fmt::{self, Display};
use std::sync::Arc;

use self::newstyle::Newstyle;
use super::codec::Reader;
use super::consts::{
    INIT_MAGIC, MAX_EXPORT_SIZE, NEWSTYLE_MAGIC, OLDSTYLE_MAGIC, OptionType, TransmissionFlags,
};
use super::context::Wish;
use super::export::{Agreed, BlockSizes, Export};
use super::framing::Framing;
use super::ladder::Ladder;
use super::name::ExportName;
use super::request::encode_option;
use super::{Refusal, Violation};

/// What the caller does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send all of these bytes.
    Send(Vec<u8>),
    /// Receive exactly so many bytes (never more than 64 KiB) and hand them to
    /// [`Handshake::received`].
    Receive(usize),
    /// Put TLS over the connection and hand the proof to [`Handshake::tls_established`].
    StartTls,
    /// The goal is reached: see [`Handshake::outcome`].
    Done,
}

/// What a handshake came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Transmission begins.
    Export(Box<Export>),
    /// The exports that the server lists. More may be asked.
    Listing(Vec<Listed>),
    /// What the server told of an export. More may be asked.
    Described(Described),
    /// The metadata contexts that the server has for an export.
    Contexts(Vec<Vec<u8>>),
    /// The server has agreed to an option that has no more to tell.
    Agreed,
    /// The server's style leaves no way to ask.
    NoOptions,
}

/// How a server begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// It tells of one export, and that is all.
    Oldstyle,
    /// It knows one option, which opens an export.
    Newstyle,
    /// It can be asked.
    FixedNewstyle,
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oldstyle => "oldstyle",
            Self::Newstyle => "newstyle",
            Self::FixedNewstyle => "fixed newstyle",
        })
    }
}

/// One entry of a server's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The export's name.
    pub name: ExportName,
    /// A text for people; may be empty.
    pub description: String,
}

/// What a server tells of an export that is not opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The name that the server gives the export, where it said so.
    pub canonical_name: Option<ExportName>,
    /// A text for people, where the server sent one.
    pub description: Option<String>,
    /// Size in bytes, and flags as the server sent them, whether they make sense or not.
    pub export: Option<(u64, u16)>,
    /// Block size constraints, where the server sent legal ones.
    pub block_sizes: Option<BlockSizes>,
}

/// Proof that what follows on a connection is protected by TLS. Only `transport`, which does it, can
/// make one, so no handshake that requires TLS can be brought to its end without.
#[derive(Debug, PartialEq, Eq)]
pub struct TlsEstablished(());

impl TlsEstablished {
    pub(crate) fn by_transport() -> Self {
        Self(())
    }
}

/// Whether to use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// Never.
    #[default]
    Off,
    /// If the server has it.
    Allow,
    /// Or there is no connection.
    Require,
}

/// Why a handshake cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server declined.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The server broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// TLS is required and the server's style has none.
    #[error("TLS is required, but the server has none ({0})")]
    NoTls(&'static str),
    /// TLS is required and the server declined.
    #[error("TLS is required, but the {0}")]
    TlsRefused(Refusal),
    /// The extents that were asked for are not to be had.
    #[error("the server has no context {wanted} for export \"{export}\": {has}")]
    NoContext {
        /// Which context.
        wanted: String,
        /// Of which export.
        export: ExportName,
        /// What there is instead.
        has: String,
    },
    /// There should have been one.
    #[error(
        "the server has several dirty bitmaps for export \"{export}\": {names}: name one of them"
    )]
    SeveralBitmaps {
        /// Of which export.
        export: ExportName,
        /// Their contexts.
        names: String,
    },
}

/// What the user wants of the server.
#[derive(Clone, Debug)]
pub struct Goal {
    /// Whose server it is asked of, for messages.
    server: Arc<str>,
    export: ExportName,
    purpose: Purpose,
    wish: Wish,
    tls: TlsPolicy,
    ladder: Ladder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Open,
    List,
    Describe,
    Contexts,
    /// What the server says to this option.
    Ask(OptionType),
}

impl Goal {
    /// To open an export by name.
    pub fn open(export: &ExportName) -> Self {
        Self::new(export.clone(), Purpose::Open)
    }

    /// To learn which exports there are.
    pub fn list() -> Self {
        Self::new(ExportName::default(), Purpose::List)
    }

    /// To learn about the default export without opening it.
    pub fn describe_default() -> Self {
        Self::new(ExportName::default(), Purpose::Describe)
    }

    /// To learn which metadata contexts an export has.
    pub fn contexts(export: &ExportName) -> Self {
        Self::new(export.clone(), Purpose::Contexts)
    }

    /// To learn what the server says to one option, about this export where it is about one. After
    /// consent to `NBD_OPT_STARTTLS` nothing is left but to hang up.
    pub fn question(option: OptionType, export: &ExportName) -> Self {
        Self::new(export.clone(), Purpose::Ask(option))
    }

    fn new(export: ExportName, purpose: Purpose) -> Self {
        Self {
            server: "the server".into(),
            export,
            purpose,
            wish: Wish::default(),
            tls: TlsPolicy::Off,
            ladder: Ladder::default(),
        }
    }

    /// The same, with extents from elsewhere; or the list with what can be opened by that.
    pub fn with_wish(self, wish: Wish) -> Self {
        Self { wish, ..self }
    }

    /// The same, with TLS.
    pub fn with_tls(self, tls: TlsPolicy) -> Self {
        Self { tls, ..self }
    }

    /// The same, of a server that has this name.
    pub fn with_server(self, server: &Arc<str>) -> Self {
        Self {
            server: server.clone(),
            ..self
        }
    }

    /// Tells those who look closely what the server does.
    fn tell(&self, what: impl Display) {
        log::debug!("{}: {what}", self.server);
    }

    /// Tells the user, once for each server, that there is no TLS although it is wanted.
    fn tell_of_clear(&self, why: impl Display) {
        let server = &self.server;
        log::warn!(target: &format!("in clear: {server}"), "{server}: {why}; going on in clear");
    }

    /// The same, with no more questions than these.
    pub fn with_ladder(self, ladder: Ladder) -> Self {
        Self { ladder, ..self }
    }

    /// The questions that may be asked.
    pub fn ladder(&self) -> Ladder {
        self.ladder
    }

    /// Whether structured replies are asked for. Who cannot do without them is not told that the server
    /// could not stand the question.
    fn asks_structured(&self) -> bool {
        self.ladder.structured || self.cannot_do_without()
    }

    /// Whether metadata contexts are, once replies can tell them.
    fn asks_contexts(&self) -> bool {
        self.ladder.meta || self.cannot_do_without()
    }

    fn cannot_do_without(&self) -> bool {
        self.purpose == Purpose::Contexts || self.wish.demanded().is_some()
    }

    /// Whether all of it can be had from a server without structured replies.
    fn check_unstructured(&self) -> Result<(), Error> {
        match self.wish.demanded() {
            Some(_) if self.purpose == Purpose::Open => {
                let without = "it has no structured replies";
                Err(contexts::missing(&self.wish, &self.export, without))
            }
            _ => Ok(()),
        }
    }

    /// What to answer where the server's style leaves no way to ask: it has one export, which goes
    /// by any name.
    fn unanswered(&self) -> Option<Outcome> {
        match self.purpose {
            Purpose::Contexts => Some(Outcome::Contexts(Vec::new())),
            Purpose::Open => None,
            Purpose::List => Some(Outcome::Listing(vec![Listed {
                name: ExportName::default(),
                description: String::new(),
            }])),
            Purpose::Describe => Some(Outcome::Described(Described::default())),
            Purpose::Ask(_) => Some(Outcome::NoOptions),
        }
    }
}

/// A handshake under way.
#[derive(Debug)]
pub struct Handshake {
    goal: Goal,
    outbox: Vec<u8>,
    state: State,
    outcome: Option<Outcome>,
    /// The server was asked for extended headers and does not know them.
    compact: bool,
}

#[derive(Debug)]
enum State {
    Greeting,
    /// What says whether it is oldstyle or newstyle.
    Style,
    Oldstyle,
    /// All that an oldstyle server says.
    Told([u8; oldstyle::LENGTH]),
    Newstyle(Box<Newstyle>),
    /// Transmission has begun.
    Over,
}

/// What one received piece led to, told by the styles to the machine.
#[derive(Debug)]
enum Progress {
    /// Send this (possibly nothing), then go on receiving.
    Say(Vec<u8>),
    /// Send this (possibly nothing); the goal is reached.
    Finish(Vec<u8>, Outcome),
}

impl Handshake {
    /// A handshake that has neither sent nor received anything.
    pub fn new(goal: Goal) -> Self {
        Self {
            goal,
            outbox: Vec::new(),
            state: State::Greeting,
            outcome: None,
            compact: false,
        }
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        if !self.outbox.is_empty() {
            return Step::Send(std::mem::take(&mut self.outbox));
        }
        match &self.state {
            _ if self.outcome.is_some() => Step::Done,
            State::Greeting | State::Style => Step::Receive(8),
            State::Oldstyle => Step::Receive(oldstyle::LENGTH),
            State::Newstyle(newstyle) if newstyle.is_at_rest() => Step::Done,
            State::Newstyle(newstyle) if newstyle.wants_tls() => Step::StartTls,
            State::Newstyle(newstyle) => Step::Receive(newstyle.wants()),
            State::Told(_) | State::Over => Step::Done,
        }
    }

    /// What it came to, if the goal is reached; told once.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// Whether the goal is reached, though there may be something left to send.
    pub fn is_done(&self) -> bool {
        self.outcome.is_some()
    }

    /// Goes on after a [`Step::StartTls`].
    pub fn tls_established(&mut self, proof: TlsEstablished) {
        if let State::Newstyle(newstyle) = &mut self.state {
            self.outbox = newstyle.tls_established(proof);
        }
    }

    /// Accepts the bytes that a [`Step::Receive`] asked for.
    pub fn received(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let progress = match &mut self.state {
            State::Greeting => {
                greeting(bytes)?;
                self.state = State::Style;
                return Ok(());
            }
            State::Style => {
                self.state = style(bytes, &self.goal)?;
                return Ok(());
            }
            State::Oldstyle => {
                if let Ok(told) = bytes.try_into() {
                    self.state = State::Told(told);
                }
                oldstyle::received(bytes, &self.goal)?
            }
            State::Newstyle(newstyle) => {
                let progress = newstyle.received(bytes)?;
                self.compact = newstyle.knows_only_compact();
                progress
            }
            State::Told(_) | State::Over => return Ok(()),
        };
        self.take(progress);
        Ok(())
    }

    fn take(&mut self, progress: Progress) {
        match progress {
            Progress::Say(bytes) => self.outbox = bytes,
            Progress::Finish(bytes, outcome) => {
                self.outbox = bytes;
                if matches!(outcome, Outcome::Export(_)) {
                    self.state = State::Over;
                }
                self.outcome = Some(outcome);
            }
        }
    }

    /// Whether it is at rest: nothing is to be sent or received, and something else may be asked.
    pub fn is_at_rest(&self) -> bool {
        let at_rest = match &self.state {
            State::Told(_) => true,
            State::Newstyle(newstyle) => newstyle.is_at_rest(),
            _ => false,
        };
        at_rest && self.outbox.is_empty() && self.outcome.is_none()
    }

    /// Goes on with another goal, over what was agreed so far: what it says of TLS does not count. Only
    /// where [`Handshake::is_at_rest`].
    pub fn ask(&mut self, goal: Goal) -> Result<(), Error> {
        self.goal = goal.with_tls(self.goal.tls).with_server(&self.goal.server);
        let progress = match &mut self.state {
            State::Told(bytes) => oldstyle::received(bytes, &self.goal)?,
            State::Newstyle(newstyle) => newstyle.go_on(self.goal.clone())?,
            _ => return Ok(()),
        };
        self.take(progress);
        Ok(())
    }

    /// What to say to a server that is left for good at this point; nothing where there is no word for
    /// it. Not the answer to it: that may be missing.
    pub fn goodbye(&self) -> Vec<u8> {
        // spec: Option types: SHOULD NOT: NBD_OPT_ABORT has no data
        // spec: Option types: SHOULD: NBD_OPT_ABORT may be answered by closing
        match &self.state {
            State::Newstyle(newstyle) if newstyle.can_abort() && !newstyle.wants_tls() => {
                encode_option(OptionType::ABORT, &[])
            }
            _ => Vec::new(),
        }
    }

    /// Whether a connection that breaks at this point may mean that the server refuses our TLS
    /// credentials.
    pub fn may_be_refused(&self) -> bool {
        matches!(&self.state, State::Newstyle(newstyle) if newstyle.may_be_refused())
    }

    /// Whether the server was asked something, and not only listened to.
    pub fn has_asked(&self) -> bool {
        matches!(&self.state, State::Newstyle(newstyle) if newstyle.has_asked())
    }

    /// Whether the server was asked for extended headers and does not know them.
    pub fn knows_only_compact(&self) -> bool {
        self.compact
    }

    /// How the server has begun, once that is known and until an export is open.
    pub fn style(&self) -> Option<Style> {
        match &self.state {
            State::Oldstyle | State::Told(_) => Some(Style::Oldstyle),
            State::Newstyle(newstyle) => newstyle.style(),
            State::Greeting | State::Style | State::Over => None,
        }
    }

    /// The option that the server has said nothing to. Not where it may be judging our credentials.
    pub fn unanswered(&self) -> Option<OptionType> {
        match &self.state {
            State::Newstyle(newstyle) => newstyle.unanswered(),
            _ => None,
        }
    }

    /// If the server hangs up or loses its place at this point: the questions that another connection
    /// may be tried with. `None` if no question is to blame, or if nobody can do without it.
    pub fn step_down(&self) -> Option<Ladder> {
        match &self.state {
            State::Newstyle(newstyle) => newstyle.step_down(),
            _ => None,
        }
    }

    /// What the server owes us at this point, for messages.
    pub fn awaited(&self) -> String {
        match &self.state {
            State::Greeting | State::Style => "its greeting".to_owned(),
            State::Oldstyle => "the rest of its oldstyle greeting".to_owned(),
            State::Newstyle(newstyle) => newstyle.awaited(),
            State::Told(_) | State::Over => "nothing".to_owned(),
        }
    }
}

/// Judged before any more is waited for: another kind of server may greet with less.
fn greeting(bytes: &[u8]) -> Result<(), Error> {
    match Reader::new(bytes).u64().unwrap_or_default() {
        INIT_MAGIC => Ok(()),
        other => Err(Violation::NotNbd(other).into()),
    }
}

fn style(bytes: &[u8], goal: &Goal) -> Result<State, Error> {
    match Reader::new(bytes).u64().unwrap_or_default() {
        OLDSTYLE_MAGIC if goal.tls == TlsPolicy::Require => Err(Error::NoTls("oldstyle handshake")),
        OLDSTYLE_MAGIC => {
            if goal.tls == TlsPolicy::Allow {
                goal.tell_of_clear("oldstyle servers have no TLS");
            }
            Ok(State::Oldstyle)
        }
        NEWSTYLE_MAGIC => Ok(State::Newstyle(Newstyle::new(goal.clone()).into())),
        other => Err(Violation::Style(other).into()),
    }
}

/// Size and flags, as both `NBD_OPT_EXPORT_NAME` and oldstyle servers send them.
fn enter(size: u64, flags: u16, framing: Framing) -> Result<Export, Violation> {
    if size > MAX_EXPORT_SIZE {
        return Err(Violation::Size(size));
    }
    // spec: Transmission flags: SHOULD: unknown flags are ignored
    let flags = TransmissionFlags::from_bits_truncate(flags);
    Ok(Export::new(size, flags, framing))
}

/// What a newstyle server told before the option that was asked succeeded.
#[derive(Clone, Debug, Default)]
struct Info {
    listing: Vec<Listed>,
    export: Option<(u64, u16)>,
    block_sizes: Option<BlockSizes>,
    canonical_name: Option<ExportName>,
    description: Option<String>,
}

impl Info {
    fn enter(self, framing: Framing, context: Option<Agreed>) -> Result<Export, Violation> {
        let (size, flags) = self.export.ok_or(Violation::OptionContent(
            OptionType::GO,
            "NBD_REP_ACK without NBD_INFO_EXPORT",
        ))?;
        let mut export = enter(size, flags, framing)?;
        export.block_sizes = self.block_sizes;
        export.canonical_name = self.canonical_name;
        export.description = self.description;
        Ok(export.with_context(context))
    }
}

impl From<Info> for Described {
    fn from(info: Info) -> Self {
        Self {
            canonical_name: info.canonical_name,
            description: info.description,
            export: info.export,
            block_sizes: info.block_sizes,
        }
    }
}

#[cfg(test)]
mod tests;
