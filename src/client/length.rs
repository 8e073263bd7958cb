// SPDX-License-Identifier: BSD-3-Clause
//! How long the requests of one operation may be: not known in advance. What is declined for its length is
//! asked again for less, a few times at most, and what is taken then is remembered.

use super::error::Error;
use super::volume::Volume;
use crate::proto::WireError;
use crate::proto::consts::Command;
use crate::proto::errno::NbdErrno;
use crate::proto::request::Request;

/// The lengths of one operation's requests.
pub struct Length<'a> {
    volume: &'a Volume,
    most: u64,
    /// The answer to the first request that was too long.
    declined: Option<Error>,
}

impl<'a> Length<'a> {
    pub fn new(volume: &'a Volume, command: Command) -> Self {
        Self {
            volume,
            most: volume.longest(command),
            declined: None,
        }
    }

    /// The beginning of what is left, as much as may be asked for at once.
    pub fn piece(&self, request: Request, offset: u64, left: u64) -> Request {
        Request {
            offset,
            length: left.min(self.most),
            ..request
        }
    }

    /// The server took it.
    pub fn taken(&mut self, piece: Request) {
        if let Some(error) = self.declined.take() {
            log::debug!(
                "{error}; at most {} bytes at once from now on",
                piece.length
            );
            self.volume.found_longest(piece.command, piece.length);
        }
    }

    /// It did not; what is left of the error, if the length is not the reason.
    pub fn declined(&mut self, piece: Request, error: Error) -> Result<(), Error> {
        if !is_about_length(&error) {
            return Err(error);
        }
        let Some(shorter) = self.volume.shorter(piece.length) else {
            // Not the length, then: the first answer is the one to the question asked.
            return Err(self.declined.take().unwrap_or(error));
        };
        self.most = shorter;
        self.declined.get_or_insert(error);
        Ok(())
    }
}

/// Whether the request may have been too long.
fn is_about_length(error: &Error) -> bool {
    let Error::Failed { error, .. } = error else {
        return false;
    };
    match error {
        WireError::Server { errno, .. } => [NbdErrno::EINVAL, NbdErrno::EOVERFLOW].contains(errno),
        WireError::TooLong => true,
        _ => false,
    }
}
