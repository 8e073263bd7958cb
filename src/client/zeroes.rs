// SPDX-License-Identifier: BSD-3-Clause
//! Zeroes: asked of the server as such, also where a client writes nothing else, or else written.

use super::error::Error;
use super::{Client, failed_with, split};
use crate::proto::consts::{Command, CommandFlags, TransmissionFlags};
use crate::proto::errno::NbdErrno;
use crate::proto::request::Request;
use crate::transport::Deadline;

/// How [`Client::zero`] may zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Zeroing {
    /// The range may become a hole.
    pub may_trim: bool,
    /// The zeroes must be permanent before the answer.
    pub fua: bool,
    /// Fail with ENOTSUP rather than take as long as a write.
    pub fast: bool,
}

/// What becomes of writes that are all zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detect {
    /// They are writes like all others.
    #[default]
    Off,
    /// The server is asked for zeroes that stay allocated.
    On,
    /// The server is asked for zeroes that may become a hole.
    Unmap,
}

/// Shorter writes go as they are, bytes: a request for zeroes saves nothing there, and makes some
/// servers read what is around them.
const LEAST: usize = 4096;

/// How a server says that it has no such request, or not for this range.
const DECLINED: [NbdErrno; 3] = [NbdErrno::EINVAL, NbdErrno::EOVERFLOW, NbdErrno::ENOTSUP];

impl Detect {
    /// If the payload is better asked for as zeroes: whether they may become a hole.
    #[inline]
    pub fn finds(self, payload: &[u8]) -> Option<bool> {
        match self {
            Self::Off => None,
            Self::On => is_worth_it(payload).then_some(false),
            Self::Unmap => is_worth_it(payload).then_some(true),
        }
    }
}

impl Client {
    /// Makes a range zero. Where the server cannot, zeroes are written as data, unless `fast`
    /// forbids it: ENOTSUP is the answer then, and only then.
    pub fn zero(&self, length: u64, offset: u64, how: Zeroing) -> Result<(), Error> {
        if self.is_odd(offset, length) {
            return self.zero_odd(length, offset, how);
        }
        self.check_range(Command::WRITE_ZEROES, offset, length)?;
        self.zero_blocks(length, offset, how, &*self.begin()?)
    }

    /// The same for whole blocks of the server's.
    pub(super) fn zero_blocks(
        &self,
        length: u64,
        offset: u64,
        how: Zeroing,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        let mut flags = self.fua(how.fua)?;
        flags.set(CommandFlags::NO_HOLE, !how.may_trim);
        if how.fast {
            if !self.export().can(TransmissionFlags::SEND_FAST_ZERO) {
                return Err(self.unsupported("the server has no fast zeroes", libc::ENOTSUP));
            }
            flags |= CommandFlags::FAST_ZERO;
        }
        if !self.export().can(TransmissionFlags::SEND_WRITE_ZEROES) {
            return self.write_zeroes_as_data(length, offset, how.fua, deadline);
        }
        let request = Request::new(Command::WRITE_ZEROES, offset, length).with(flags);
        match self.in_pieces(request, deadline) {
            Err(error) if !how.fast && failed_with(&error, &[NbdErrno::ENOTSUP]) => {
                log::debug!("{error}; writing zeroes as data");
                self.write_zeroes_as_data(length, offset, how.fua, deadline)
            }
            other => other,
        }
    }

    fn write_zeroes_as_data(
        &self,
        length: u64,
        offset: u64,
        fua: bool,
        deadline: &Deadline,
    ) -> Result<(), Error> {
        static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
        let mut pieces = self.pieces();
        for (at, n) in split::pieces(offset, length, ZEROES.len().min(self.piece())) {
            pieces.next()?;
            self.write_until(&ZEROES[..n], at, fua, deadline)?;
        }
        Ok(())
    }

    /// Out of the way of those who do not ask for it.
    #[cold]
    #[inline(never)]
    pub(super) fn write_or_zero(
        &self,
        detect: Detect,
        payload: &[u8],
        offset: u64,
        fua: bool,
    ) -> Result<(), Error> {
        if let Some(may_trim) = detect.finds(payload) {
            if self.export().can(TransmissionFlags::SEND_WRITE_ZEROES) {
                let how = Zeroing {
                    may_trim,
                    fua,
                    fast: false,
                };
                match self.zero(payload.len() as u64, offset, how) {
                    // The client has asked for a write, which servers take that do not take this.
                    Err(error) if failed_with(&error, &DECLINED) => {
                        log::debug!("{error}; written as data");
                    }
                    done => return done,
                }
            }
        }
        self.write_until(payload, offset, fua, &*self.begin()?)
    }
}

#[inline(never)]
fn is_worth_it(payload: &[u8]) -> bool {
    payload.len() >= LEAST && is_zero(payload)
}

/// Whether there is no other byte. What is data mostly shows that in its first bytes.
fn is_zero(bytes: &[u8]) -> bool {
    // A range is the same as itself one byte further on only if all its bytes are alike.
    match bytes {
        [0, rest @ ..] => {
            bytes.iter().take(16).all(|byte| *byte == 0) && *rest == bytes[..rest.len()]
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_is_all_zeroes_and_not_short_is_found() {
        let zeroes = vec![0; 2 * LEAST];
        assert_eq!(Detect::Off.finds(&zeroes), None);
        assert_eq!(Detect::On.finds(&zeroes), Some(false));
        assert_eq!(Detect::Unmap.finds(&zeroes), Some(true));
        assert_eq!(Detect::On.finds(&zeroes[..LEAST]), Some(false));
        assert_eq!(Detect::On.finds(&zeroes[..LEAST - 1]), None);
        assert_eq!(Detect::On.finds(&[]), None);
    }

    proptest! {
        #[test]
        fn one_byte_is_enough_to_be_data(length in LEAST..3 * LEAST, at: prop::sample::Index, byte in 1u8..) {
            let mut payload = vec![0; length];
            payload[at.index(length)] = byte;
            prop_assert_eq!(Detect::On.finds(&payload), None);
            payload.fill(byte);
            prop_assert_eq!(Detect::On.finds(&payload), None);
        }
    }
}
