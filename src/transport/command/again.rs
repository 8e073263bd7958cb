// SPDX-License-Identifier: BSD-3-Clause
//! Connecting to a server that may have ended, and starting it again.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::keeper::Refused;
use super::messages::End;
use super::{Child, DYING, starts};
use crate::transport::{Deadline, Error, Stream, seconds};

/// How a server that we started ended, and its last words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obituary {
    text: String,
    /// Whether it is started again when somebody wants to connect.
    again: bool,
}

impl Obituary {
    /// Whether there may be a server again, so that it makes sense to try.
    pub fn is_provisional(&self) -> bool {
        self.again
    }
}

impl fmt::Display for Obituary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Child {
    /// One more connection. It is in the server's queue when this returns; the server may accept it
    /// later, or never. A server that has ended is started again first, if the user wants that.
    pub fn connect(&self, deadline: Deadline) -> Result<Stream, Error> {
        if !self.again {
            let connected = self.home.connect(deadline);
            return connected.map_err(|error| self.explain(error));
        }
        let starts = self.keeper.starts();
        // One that went in peace may have left another process behind, which serves.
        let is_certain = |end| end != End::Exited(0);
        if self.keeper.wait(Duration::ZERO).is_some_and(is_certain) {
            self.start_again(deadline)?;
        }
        let connected = match self.home.connect(deadline) {
            // Nobody has the socket, and this is not what became of a start of just now.
            Err(error @ Error::Connect(_)) if self.keeper.starts() == starts => {
                if self.keeper.wait(DYING).is_some() {
                    self.start_again(deadline)?;
                } else if self.keeper.starts() == starts {
                    // A server that runs, but does not serve, is not ours to end.
                    return Err(error);
                }
                self.home.connect(deadline)
            }
            result => result,
        };
        connected.map_err(|error| self.explain(error))
    }

    /// Whether the server is started again when it has ended and somebody wants to connect.
    pub fn starts_again(&self) -> bool {
        self.again
    }

    /// The error of who missed the server, if there is an obituary of it.
    pub(super) fn ended(&self, obituary: Option<String>) -> Option<Error> {
        let again = self.again;
        obituary.map(|text| Error::ServerEnded(Obituary { text, again }))
    }

    /// Starts a server that has ended, unless somebody else is at it. That it was started does not
    /// mean that it lives.
    fn start_again(&self, deadline: Deadline) -> Result<(), Error> {
        if self.over.load(Ordering::Relaxed) {
            return Err(Error::Unwanted);
        }
        let obituary = self.obituary().unwrap_or_default();
        // What the next one says is in the next obituary.
        match self
            .keeper
            .start_again(|| self.words.begin_anew(), deadline)
        {
            Ok(None) => Ok(()),
            Ok(Some(door)) => {
                self.home.rebuilt(door);
                log::debug!("command={}: {obituary}; it was started again", self.name);
                Ok(())
            }
            Err(Refused::TooOften(wait)) => {
                let text = format!(
                    "{obituary}; it was started again {} times within a minute, and the next time \
                     is in {}",
                    starts::MOST,
                    seconds(Duration::from_secs(wait.as_secs() + 1))
                );
                Err(self.ended(Some(text)).unwrap_or(Error::Closed))
            }
            Err(Refused::GivenUp(error)) => Err(error),
        }
    }
}
