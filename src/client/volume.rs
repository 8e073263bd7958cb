// SPDX-License-Identifier: BSD-3-Clause
//! An export as this process knows it: what nbdkit was told of it, and what was learnt since.
//!
//! All clients that were told the same of an export share one [`Volume`]. It knows no connection: it
//! outlives each of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::report::JournalReport;
use super::resume::{Resume, Terms};
use crate::proto::consts::Command;
use crate::proto::export::Export;
use crate::proto::framing::Framing;

/// Smallest length that a request is cut to because the server found it too long, bytes. A server
/// that declines less than that has another reason.
const LEAST_PIECE: u64 = 64 * 1024;

/// Each piece that a server declines for its length is followed by one that is shorter by this
/// factor.
const CUT: u64 = 4;

/// An export as nbdkit was told of it. That never changes: nbdkit asks once for each client.
#[derive(Debug)]
pub struct Volume {
    /// No other one in this process has it.
    number: u64,
    export: Export,
    /// Longest requests that the server was found to take, in the order of `COMMANDS`; at first what the
    /// user allows, and what its headers can say.
    limits: [AtomicU64; 4],
    /// Largest payload that every server behind it was found to take, bytes.
    payload: AtomicU32,
    /// What outlives the connections; none where they are not made anew.
    session: Option<Resume>,
    /// A client has been told something else of the export since, and may have written to it.
    superseded: AtomicBool,
}

impl Volume {
    fn new(export: Export, terms: Option<&Terms>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            payload: AtomicU32::new(export.maximum_payload()),
            session: terms.map(|terms| Resume::new(&export, terms)),
            superseded: AtomicBool::new(false),
            limits: COMMANDS.map(|command| AtomicU64::new(export.longest(command))),
            export,
        }
    }

    /// Its number, which is no other one's.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What nbdkit was told.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// What outlives its connections.
    pub(super) fn session(&self) -> Option<&Resume> {
        self.session.as_ref()
    }

    /// Whether another client has been told something else since.
    pub(super) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Acquire)
    }

    /// What is kept of it to be sent again, where anything is.
    pub(super) fn journal(&self) -> Option<JournalReport> {
        let inner = self.session.as_ref()?.lock();
        let (entries, bytes) = inner.core.journal_size()?;
        Some(JournalReport {
            number: self.number,
            entries,
            bytes,
            memory: inner.core.cost(),
        })
    }

    /// Largest length of one read or write, bytes.
    pub fn payload(&self) -> u32 {
        self.payload.load(Ordering::Relaxed)
    }

    /// A server behind it takes no more than that.
    pub(super) fn found_payload(&self, most: u32) {
        self.payload.fetch_min(most, Ordering::Relaxed);
    }

    /// Longest range for one request without payload, bytes, as far as is known: a whole number of
    /// minimum blocks. The protocol has no word for it, so that it can only be found by trying
    /// ("Block size constraints" is about payload).
    pub fn longest(&self, command: Command) -> u64 {
        let most = self
            .limit(command)
            .map_or(u32::MAX.into(), |limit| limit.load(Ordering::Relaxed));
        self.export.whole_blocks(most)
    }

    /// Remembers that the server declined more than `length` bytes at once, and took those.
    pub fn found_longest(&self, command: Command, length: u64) {
        if let Some(limit) = self.limit(command) {
            limit.fetch_min(length, Ordering::Relaxed);
        }
    }

    fn limit(&self, command: Command) -> Option<&AtomicU64> {
        let place = COMMANDS.iter().position(|known| *known == command)?;
        self.limits.get(place)
    }

    /// The length to try after the server has declined `length` bytes: its largest payload first,
    /// since most servers that have a limit have one for everything. `None` if the length is not
    /// what it declines.
    pub fn shorter(&self, length: u64) -> Option<u64> {
        let payload = u64::from(self.export.maximum_payload());
        let compact = Framing::Structured.longest();
        let next = if length > compact {
            // Its headers were extended, perhaps, and are not any more.
            compact
        } else if length > payload {
            payload
        } else {
            // The factor does not lead to the least in every case, and that is to be tried, too.
            (length / CUT).max(LEAST_PIECE.min(payload))
        };
        let next = self.export.whole_blocks(next);
        (next > 0 && next < length).then_some(next)
    }
}

/// Commands whose longest range has to be found out.
const COMMANDS: [Command; 4] = [
    Command::TRIM,
    Command::WRITE_ZEROES,
    Command::CACHE,
    Command::BLOCK_STATUS,
];

/// All exports that a client has open at present, by name.
#[derive(Debug, Default)]
pub struct Volumes {
    known: Mutex<BTreeMap<Box<[u8]>, Weak<Volume>>>,
}

impl Volumes {
    /// The volume for a connection that offers `export` for the name `asked`. If a client has it open
    /// already and was told the same, both have one; else whoever comes now starts afresh.
    pub fn admit(&self, asked: &[u8], export: &Export, terms: Option<&Terms>) -> Arc<Volume> {
        let name = export.canonical_name.as_ref();
        let mut name = name.map_or(asked, |name| name.as_bytes()).to_vec();
        // An export is another one by another map: its journal is not, but it cannot be written.
        if let Some(context) = export.context_name() {
            name.push(0);
            name.extend(context.as_bytes());
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Clients can ask for any number of names: none is kept longer than it is used.
        known.retain(|_, volume| volume.strong_count() > 0);
        if let Some(volume) = known.get(&*name).and_then(Weak::upgrade) {
            // Whoever comes after a session has ended for good starts afresh.
            let doomed = volume.session().is_some_and(Resume::is_doomed);
            if !doomed && volume.export.offers_the_same(export) {
                return volume;
            }
            volume.superseded.store(true, Ordering::Release);
        }
        let volume = Arc::new(Volume::new(export.clone(), terms));
        known.insert(name.into_boxed_slice(), Arc::downgrade(&volume));
        volume
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::consts::TransmissionFlags;
    use crate::proto::export::{BlockSizes, Limits};

    fn export(size: u64) -> Export {
        let mut export = Export::new(size, TransmissionFlags::HAS_FLAGS, Framing::Structured);
        export.block_sizes = BlockSizes::checked(4096, 4096, (32 << 20) + 5);
        export
    }

    fn lengths(volume: &Volume, from: u64) -> Vec<u64> {
        std::iter::successors(volume.shorter(from), |length| volume.shorter(*length)).collect()
    }

    #[test]
    fn what_is_too_long_is_cut_to_the_largest_payload_and_then_by_a_factor() {
        let volume = Volume::new(export(1 << 40), None);
        let kib = |n: u64| n << 10;
        let all = [32768, 8192, 2048, 512, 128, 64].map(kib);
        assert_eq!(lengths(&volume, u32::MAX.into()), all);
        assert_eq!(
            lengths(&volume, 300 << 10),
            [72, 64].map(kib),
            "whole blocks"
        );
    }

    #[test]
    fn nothing_is_cut_for_ever() {
        let volume = Volume::new(export(1 << 40), None);
        assert_eq!(volume.shorter(LEAST_PIECE), None);
        assert_eq!(volume.shorter(512), None);
        assert_eq!(volume.shorter(LEAST_PIECE + 4096), Some(LEAST_PIECE));
        let mut small = export(1 << 40);
        small.block_sizes = BlockSizes::checked(1, 512, 4096);
        let small = Volume::new(small, None);
        assert_eq!(lengths(&small, 1 << 20), [4096], "a small payload is tried");
    }

    #[test]
    fn a_limit_is_remembered_for_its_command() {
        let volume = Volume::new(export(1 << 40), None);
        assert_eq!(volume.longest(Command::TRIM), (1 << 32) - 4096);
        volume.found_longest(Command::TRIM, 1 << 20);
        volume.found_longest(Command::TRIM, 1 << 22);
        assert_eq!(volume.longest(Command::TRIM), 1 << 20);
        for other in [Command::CACHE, Command::WRITE_ZEROES, Command::BLOCK_STATUS] {
            assert_eq!(volume.longest(other), (1 << 32) - 4096, "{other}");
        }
    }

    #[test]
    fn extended_headers_have_no_limit_until_one_is_found() {
        let mut extended = export(1 << 40);
        extended.framing = Framing::Extended;
        let volume = Volume::new(extended, None);
        assert_eq!(volume.longest(Command::TRIM), u64::MAX - 4095);
        assert_eq!(
            lengths(&volume, 6 << 32)[..2],
            [(1 << 32) - 4096, 32 << 20],
            "first what compact headers can say"
        );
    }

    #[test]
    fn what_the_user_allows_is_where_lengths_begin() {
        let mut limited = export(1 << 40);
        limited.limits = Limits {
            payload: Some(10_000),
            status: Some(1 << 30),
            zero: Some(1 << 20),
        };
        let volume = Volume::new(limited, None);
        assert_eq!(volume.payload(), 8192, "whole blocks");
        assert_eq!(volume.longest(Command::BLOCK_STATUS), 1 << 30);
        for command in [Command::TRIM, Command::WRITE_ZEROES, Command::CACHE] {
            assert_eq!(volume.longest(command), 1 << 20, "{command}");
        }
    }

    #[test]
    fn clients_who_were_told_the_same_share_a_volume() {
        let volumes = Volumes::default();
        let first = volumes.admit(b"disk", &export(1 << 20), None);
        let again = volumes.admit(b"disk", &export(1 << 20), None);
        assert!(Arc::ptr_eq(&first, &again));
        let grown = volumes.admit(b"disk", &export(1 << 21), None);
        assert!(!Arc::ptr_eq(&first, &grown));
        assert!(first.is_superseded() && !grown.is_superseded());
        let other = volumes.admit(b"other", &export(1 << 21), None);
        assert!(!Arc::ptr_eq(&grown, &other));
        drop((first, again, grown, other));
        volumes.admit(b"new", &export(1), None);
        let known = volumes.known.lock().expect("not poisoned");
        assert_eq!(known.len(), 1, "what nobody has open is forgotten");
    }
}
