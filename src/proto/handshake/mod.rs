//! The handshake as a machine: it returns steps and is handed bytes, and never waits for anything.
//!
//! It begins with the greeting that both styles share and passes to `oldstyle` or `newstyle`.
//! The order of options is the one that works with every server met so far: structured replies,
//! the metadata context, then `NBD_OPT_GO`; `NBD_OPT_EXPORT_NAME` where the server knows no
//! better. Everything said in answer to an option counts only if that option succeeds.

mod newstyle;
mod oldstyle;
mod options;

use self::newstyle::Newstyle;
use super::codec::Reader;
use super::consts::{
    INIT_MAGIC, MAX_EXPORT_SIZE, MAX_STRING, NEWSTYLE_MAGIC, OLDSTYLE_MAGIC, OptionType,
    TransmissionFlags,
};
use super::export::{BlockSizes, Export};
use super::{Refusal, Violation};

/// What the caller does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send all of these bytes.
    Send(Vec<u8>),
    /// Receive exactly so many bytes (never more than 64 KiB) and hand them to
    /// [`Handshake::received`].
    Receive(usize),
    /// Transmission begins.
    Done(Box<Export>),
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
}

/// What the user wants of the server.
#[derive(Clone, Debug)]
pub struct Goal {
    export: String,
}

impl Goal {
    /// An export by name; the empty name is the server's default export. `None` if the name is
    /// longer than the protocol allows.
    pub fn new(export: &str) -> Option<Self> {
        (export.len() <= MAX_STRING).then(|| Self {
            export: export.to_owned(),
        })
    }
}

/// A handshake under way.
#[derive(Debug)]
pub struct Handshake {
    goal: Goal,
    outbox: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    Greeting,
    Oldstyle,
    Newstyle(Newstyle),
    Done(Box<Export>),
}

/// What one received piece led to, told by the styles to the machine.
#[derive(Debug)]
enum Progress {
    /// Send this (possibly nothing), then go on receiving.
    Say(Vec<u8>),
    /// Transmission begins.
    Enter(Box<Export>),
}

impl Handshake {
    /// A handshake that has neither sent nor received anything.
    pub fn new(goal: Goal) -> Self {
        Self {
            goal,
            outbox: Vec::new(),
            state: State::Greeting,
        }
    }

    /// What to do next.
    pub fn step(&mut self) -> Step {
        if !self.outbox.is_empty() {
            return Step::Send(std::mem::take(&mut self.outbox));
        }
        match &self.state {
            State::Greeting => Step::Receive(16),
            State::Oldstyle => Step::Receive(oldstyle::LENGTH),
            State::Newstyle(newstyle) => Step::Receive(newstyle.wants()),
            State::Done(export) => Step::Done(export.clone()),
        }
    }

    /// Accepts the bytes that a [`Step::Receive`] asked for.
    pub fn received(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let progress = match &mut self.state {
            State::Greeting => {
                self.state = greeting(bytes, &self.goal)?;
                return Ok(());
            }
            State::Oldstyle => oldstyle::received(bytes, &self.goal)?,
            State::Newstyle(newstyle) => newstyle.received(bytes)?,
            State::Done(_) => return Ok(()),
        };
        match progress {
            Progress::Say(bytes) => self.outbox = bytes,
            Progress::Enter(export) => self.state = State::Done(export),
        }
        Ok(())
    }

    /// What the server owes us at this point, for messages.
    pub fn awaited(&self) -> String {
        match &self.state {
            State::Greeting => "its greeting".to_owned(),
            State::Oldstyle => "the rest of its oldstyle greeting".to_owned(),
            State::Newstyle(newstyle) => newstyle.awaited(),
            State::Done(_) => "nothing".to_owned(),
        }
    }
}

fn greeting(bytes: &[u8], goal: &Goal) -> Result<State, Violation> {
    let mut reader = Reader::new(bytes);
    let init = reader.u64().unwrap_or_default();
    if init != INIT_MAGIC {
        return Err(Violation::NotNbd(init));
    }
    match reader.u64().unwrap_or_default() {
        OLDSTYLE_MAGIC => Ok(State::Oldstyle),
        NEWSTYLE_MAGIC => Ok(State::Newstyle(Newstyle::new(goal.clone()))),
        other => Err(Violation::Style(other)),
    }
}

/// Size and flags, as both `NBD_OPT_EXPORT_NAME` and oldstyle servers send them.
fn enter(size: u64, flags: u16, structured: bool) -> Result<Export, Violation> {
    if size > MAX_EXPORT_SIZE {
        return Err(Violation::Size(size));
    }
    let flags = TransmissionFlags::from_bits_truncate(flags);
    Ok(Export::new(size, flags, structured))
}

/// What a newstyle server told of the export before `NBD_OPT_GO` succeeded.
#[derive(Clone, Debug, Default)]
struct Info {
    export: Option<(u64, u16)>,
    block_sizes: Option<BlockSizes>,
    canonical_name: Option<String>,
    description: Option<String>,
}

impl Info {
    fn enter(self, structured: bool, context: Option<u32>) -> Result<Export, Violation> {
        let (size, flags) = self.export.ok_or(Violation::OptionContent(
            OptionType::GO,
            "NBD_REP_ACK without NBD_INFO_EXPORT",
        ))?;
        let mut export = enter(size, flags, structured)?.with_block_sizes(self.block_sizes);
        export.canonical_name = self.canonical_name;
        export.description = self.description;
        export.base_allocation = context;
        Ok(export)
    }
}

#[cfg(test)]
mod tests;
