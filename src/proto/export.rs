// SPDX-License-Identifier: BSD-3-Clause
//! What a handshake agreed on: the export's size and abilities, made consistent.

use super::consts::{Command, DEFAULT_MAX_PAYLOAD, MAX_STRING, TransmissionFlags};
use super::context::{Context, ContextName};
use super::framing::Framing;
use super::ladder::Ladder;
use super::name::ExportName;

/// An export as the server described it, after everything that contradicts the rest was masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    // spec: Size constraints: MUST NOT: no request past the end of the export
    /// Bytes. Need not be a whole number of minimum blocks.
    pub size: u64,
    /// Abilities.
    pub flags: TransmissionFlags,
    // spec: Size constraints: MUST: size constraints that were asked for are obeyed
    /// Block size constraints, where the server sent legal ones.
    pub block_sizes: Option<BlockSizes>,
    /// The name that the server gives the export, where it said so.
    pub canonical_name: Option<ExportName>,
    /// A text for people, where the server sent one.
    pub description: Option<String>,
    /// How requests and replies are framed on this connection.
    pub framing: Framing,
    // spec: Metadata querying: MUST NOT: no NBD_CMD_BLOCK_STATUS without a context, agreed for this export
    // spec: Option types: MUST NOT: no NBD_CMD_BLOCK_STATUS unless the last NBD_OPT_SET_META_CONTEXT gave a context
    // spec: Request types: MUST NOT: no NBD_CMD_BLOCK_STATUS without a context, agreed for this export
    /// The metadata context that extents come from.
    pub context: Option<Agreed>,
    /// What the user allows, beside what the server does.
    pub limits: Limits,
    /// The questions with which it was reached.
    pub asked: Ladder,
}

/// Longest requests by the user's will, bytes, where it sets limits. Servers have limits that they do not
/// tell. What is less than a block is one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Payload of reads and writes.
    pub payload: Option<u32>,
    /// Status queries.
    pub status: Option<u64>,
    /// Trims, zeroes and cache.
    pub zero: Option<u64>,
}

impl Export {
    /// Joins the pieces that a handshake collected.
    pub fn new(size: u64, flags: TransmissionFlags, framing: Framing) -> Self {
        Self {
            size,
            flags: consistent(flags, framing),
            block_sizes: None,
            canonical_name: None,
            description: None,
            framing,
            context: None,
            limits: Limits::default(),
            asked: Ladder::default(),
        }
    }

    /// Whether whoever was told of one of the two could have been told of the other. How replies are
    /// framed and what contexts are called is a connection's own affair.
    pub fn offers_the_same(&self, other: &Self) -> bool {
        let facts = |export: &Self| {
            (
                export.size,
                export.flags,
                export.block_sizes,
                export.context_name().cloned(),
            )
        };
        facts(self) == facts(other)
            && self.canonical_name == other.canonical_name
            && self.description == other.description
    }

    /// The same, with a metadata context. One that says nothing of the contents makes it read-only, and
    /// its description says so: who writes by such a map, or reads, would be misled.
    pub fn with_context(mut self, context: Option<Agreed>) -> Self {
        let name = context.as_ref().map(|agreed| &agreed.name);
        if let Some(name) = name.filter(|name| !name.meaning().is_of_contents()) {
            let flags = self.flags | TransmissionFlags::READ_ONLY;
            self.flags = consistent(flags, self.framing);
            let note = format!("read-only, data is {}: {name}", name.meaning().data());
            let text = self.description.take().unwrap_or_default();
            self.description = Some(noted(&text, &note));
        }
        self.context = context;
        self
    }

    /// What that context is called.
    pub fn context_name(&self) -> Option<&ContextName> {
        self.context.as_ref().map(|agreed| &agreed.name)
    }

    // spec: Transmission flags: MUST NOT: what a flag exposes is not used without the flag
    /// Whether the server has all of `flags`.
    pub fn can(&self, flags: TransmissionFlags) -> bool {
        self.flags.contains(flags)
    }

    /// Smallest unit of offset and length that the server accepts, bytes.
    pub fn minimum_block(&self) -> u32 {
        self.block_sizes.map_or(1, |sizes| sizes.minimum)
    }

    /// Whether a request for this range keeps to the server's minimum block. Where the export ends
    /// within a block no request for that block can; those are asked for as they are.
    pub fn is_aligned(&self, offset: u64, length: u64) -> bool {
        // spec: Size constraints: MUST: offset and length are multiples of the minimum block size
        // A power of two.
        let block = u64::from(self.minimum_block());
        let odd = |bytes: u64| bytes & (block - 1);
        odd(offset | length) == 0 || offset.saturating_add(length) > self.size - odd(self.size)
    }

    /// Largest length of one read or write, bytes: a whole number of minimum blocks.
    pub fn maximum_payload(&self) -> u32 {
        // spec: Size constraints: MUST NOT: no payload above the maximum
        // spec: Structured reply types: SHOULD NOT: no read longer than 32 bits can tell
        let maximum = self
            .block_sizes
            .map_or(DEFAULT_MAX_PAYLOAD, |sizes| sizes.maximum);
        let allowed = self.limits.payload.unwrap_or(u32::MAX);
        let block = self.minimum_block();
        let most = maximum.min(allowed).max(block);
        most - most % block
    }

    /// Longest range of a request without payload, bytes, that there is a reason to begin with: a whole
    /// number of minimum blocks.
    pub fn longest(&self, command: Command) -> u64 {
        let allowed = match command {
            Command::BLOCK_STATUS => self.limits.status,
            _ => self.limits.zero,
        };
        let most = allowed.unwrap_or(u64::MAX).max(self.minimum_block().into());
        self.whole_blocks(most.min(self.framing.longest()))
    }

    /// As much of a length as is whole minimum blocks.
    pub fn whole_blocks(&self, length: u64) -> u64 {
        // A power of two.
        length & !(u64::from(self.minimum_block()) - 1)
    }
}

/// A description with a note of ours behind it, within what the protocol has room for.
fn noted(text: &str, note: &str) -> String {
    let mut text = text.to_owned();
    let room = MAX_STRING.saturating_sub(note.len() + 3);
    while text.len() > room {
        text.pop();
    }
    match text.is_empty() {
        true => note.to_owned(),
        false => format!("{text} ({note})"),
    }
}

/// Removes abilities that cannot be meant: all of them without `NBD_FLAG_HAS_FLAGS`, writing to a
/// read-only export, modifiers without what they modify ("Transmission flags").
fn consistent(mut flags: TransmissionFlags, framing: Framing) -> TransmissionFlags {
    if !flags.contains(TransmissionFlags::HAS_FLAGS) {
        // A restriction is worth believing even from a server that forgot the first bit.
        return flags & TransmissionFlags::READ_ONLY;
    }
    if flags.contains(TransmissionFlags::READ_ONLY) {
        flags -= TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES;
    }
    if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
        flags -= TransmissionFlags::SEND_FAST_ZERO;
    }
    if !framing.has_chunks() {
        flags -= TransmissionFlags::SEND_DF;
    }
    flags
}

/// A metadata context that the server agreed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Which one.
    pub name: ContextName,
    /// Its identity on this connection.
    pub id: u32,
}

impl Agreed {
    /// How its replies are read.
    pub fn read(&self) -> Context {
        Context {
            id: self.id,
            meaning: self.name.meaning(),
        }
    }
}

/// Block size constraints ("Block size constraints"), all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this power of two, at most 64 KiB.
    pub minimum: u32,
    /// The size that performs well, a power of two.
    pub preferred: u32,
    /// Largest payload of a read or write; `u32::MAX` for no limit.
    pub maximum: u32,
}

impl BlockSizes {
    /// The three numbers if they obey the specification, else nothing: what a confused server
    /// says about block sizes is not worth half believing.
    pub fn checked(minimum: u32, preferred: u32, maximum: u32) -> Option<Self> {
        let legal = minimum.is_power_of_two()
            && minimum <= 64 * 1024
            && preferred.is_power_of_two()
            && preferred >= minimum.max(512)
            && maximum >= preferred;
        legal.then_some(Self {
            minimum,
            preferred,
            maximum,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: TransmissionFlags = TransmissionFlags::all();

    #[test]
    fn without_has_flags_there_are_no_abilities() {
        let export = Export::new(1, ALL - TransmissionFlags::HAS_FLAGS, Framing::Structured);
        assert_eq!(export.flags, TransmissionFlags::READ_ONLY);
    }

    #[test]
    fn read_only_wins_over_write_abilities() {
        let export = Export::new(1, ALL, Framing::Structured);
        assert!(export.can(TransmissionFlags::SEND_FLUSH));
        for lost in [
            TransmissionFlags::SEND_TRIM,
            TransmissionFlags::SEND_WRITE_ZEROES,
            TransmissionFlags::SEND_FAST_ZERO,
        ] {
            assert!(!export.can(lost), "{lost:?}");
        }
    }

    #[test]
    fn a_map_of_changes_makes_an_export_read_only_and_says_so() {
        let agreed = |name: &[u8]| ContextName::new(name).map(|name| Agreed { name, id: 1 });
        let with = |name: &[u8], description: Option<String>| {
            let mut export = Export::new(1, ALL - TransmissionFlags::READ_ONLY, Framing::Simple);
            export.description = description;
            export.with_context(agreed(name))
        };
        let plain = with(b"base:allocation", Some("a disk".to_owned()));
        assert!(!plain.can(TransmissionFlags::READ_ONLY));
        assert_eq!(plain.description.as_deref(), Some("a disk"));
        let changes = with(b"qemu:dirty-bitmap:b\n", None);
        assert!(changes.can(TransmissionFlags::READ_ONLY));
        assert!(!changes.can(TransmissionFlags::SEND_WRITE_ZEROES));
        let note = "read-only, data is what has changed: qemu:dirty-bitmap:b\\n";
        assert_eq!(changes.description.as_deref(), Some(note));
        let depth = with(b"qemu:allocation-depth", Some("a disk".to_owned()));
        let note = "a disk (read-only, data is what the top layer has: qemu:allocation-depth)";
        assert_eq!(depth.description.as_deref(), Some(note));
        let long = with(
            b"qemu:allocation-depth",
            Some("\u{e9}".repeat(MAX_STRING / 2)),
        );
        let long = long.description.expect("a description");
        assert!(long.len() <= MAX_STRING && long.ends_with("qemu:allocation-depth)"));
    }

    #[test]
    fn modifiers_go_with_what_they_modify() {
        let flags = ALL - TransmissionFlags::READ_ONLY - TransmissionFlags::SEND_WRITE_ZEROES;
        let export = Export::new(1, flags, Framing::Simple);
        assert!(!export.can(TransmissionFlags::SEND_FAST_ZERO));
        assert!(!export.can(TransmissionFlags::SEND_DF));
    }

    #[test]
    fn illegal_block_sizes_are_ignored_whole() {
        for (min, preferred, max) in [
            (0, 0, 0),
            (3, 4096, 65536),
            (128 * 1024, 128 * 1024, 1 << 20),
            (4096, 512, 65536),
            (1, 4096, 1000),
            (1, 256, 65536),
        ] {
            assert_eq!(BlockSizes::checked(min, preferred, max), None);
        }
        assert!(BlockSizes::checked(1, 4096, u32::MAX).is_some());
    }

    #[test]
    fn what_is_within_the_export_depends_on_its_blocks() {
        let blocks = |minimum| {
            let mut export = Export::new(10_000, ALL, Framing::Structured);
            export.block_sizes = BlockSizes::checked(minimum, 4096, 65536 + 100);
            export
        };
        let export = blocks(4096);
        assert_eq!(export.maximum_payload(), 65536);
        for (offset, length, reachable) in [
            (0, 8192, true),
            (4096, 4096, true),
            (0, 512, false),
            (512, 4096, false),
            (4097, 0, false),
            // The last block is no whole one: whatever touches it is the server's business.
            (8192, 1808, true),
            (4096, 5904, true),
            (9999, 1, true),
            (100, 9000, true),
            (8192, 100, true),
        ] {
            assert_eq!(
                export.is_aligned(offset, length),
                reachable,
                "{offset}+{length}"
            );
        }
        assert!(blocks(1).is_aligned(1, 1));
        assert!(
            !blocks(16).is_aligned(9999, 1),
            "10,000 bytes are whole blocks"
        );
    }
}
