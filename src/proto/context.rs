// SPDX-License-Identifier: BSD-3-Clause
//! Metadata contexts: which of them extents are made of, and what their numbers mean as extents.
//!
//! nbdkit's extents are those of `base:allocation`. Two contexts of qemu's can be told in the same
//! words, and then mean something else to whoever copies: a dirty range is data whatever is in it, since
//! an old copy may have other data there, and a clean one is left out as a hole that reads as zero, which
//! it is not. So nothing may be written where one of them takes the place of the true map.

use std::fmt;

use super::codec::printable;
use super::consts::{Allocation, BASE_ALLOCATION, MAX_STRING};

/// What the name of a dirty bitmap of qemu's begins with.
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
/// How far down a backing chain something is.
pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
/// Bytes of a name that messages show: names of bitmaps are up to 1023 bytes long.
const SHOWN: usize = 1100;

/// The name of a context whose numbers we understand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContextName {
    name: Vec<u8>,
    meaning: Meaning,
}

impl ContextName {
    /// `base:allocation`.
    pub fn allocation() -> Self {
        Self {
            name: BASE_ALLOCATION.into(),
            meaning: Meaning::Allocation,
        }
    }

    /// The dirty bitmap of this name; `None` if the protocol has no room for it, or it is empty.
    pub fn bitmap(name: &[u8]) -> Option<Self> {
        let name = [DIRTY_BITMAP.as_bytes(), name].concat();
        Self::new(&name)
    }

    /// A context by its full name; `None` if its numbers would mean nothing to us.
    pub fn new(name: &[u8]) -> Option<Self> {
        let meaning = match name {
            _ if name == BASE_ALLOCATION.as_bytes() => Meaning::Allocation,
            _ if name == ALLOCATION_DEPTH.as_bytes() => Meaning::Depth,
            _ if bitmap_of(name).is_some() => Meaning::Dirty,
            _ => return None,
        };
        let legal = name.len() <= MAX_STRING && !name.contains(&0);
        legal.then(|| Self {
            name: name.to_owned(),
            meaning,
        })
    }

    /// The name as it goes over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.name
    }

    /// What its numbers mean.
    pub fn meaning(&self) -> Meaning {
        self.meaning
    }
}

/// The name as messages show it.
impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.name, SHOWN))
    }
}

/// The name that a bitmap has for users, out of its context's.
pub fn bitmap_of(context: &[u8]) -> Option<&[u8]> {
    let name = context.strip_prefix(DIRTY_BITMAP.as_bytes())?;
    (!name.is_empty()).then_some(name)
}

/// What the numbers of a context mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// `base:allocation`: whether it is allocated, and whether it reads as zero.
    Allocation,
    /// `qemu:dirty-bitmap:NAME`: whether it has changed.
    Dirty,
    /// `qemu:allocation-depth`: which layer of a backing chain has it; 1 is the one on top, 0 none.
    Depth,
}

impl Meaning {
    /// The extent for one status.
    pub fn extent(self, status: u64) -> Allocation {
        let is_data = match self {
            // spec: `base:allocation` metadata context: MUST: unknown status flags are ignored
            // The flags that we know are among the lower half.
            Self::Allocation => return Allocation::from_bits_truncate(status as u32),
            Self::Dirty => status & 1 != 0,
            Self::Depth => status == 1,
        };
        match is_data {
            true => Allocation::empty(),
            false => Allocation::HOLE | Allocation::ZERO,
        }
    }

    /// Whether what its extents call zero reads as zero.
    pub fn is_of_contents(self) -> bool {
        self == Self::Allocation
    }

    /// What data is, for people.
    pub fn data(self) -> &'static str {
        match self {
            Self::Allocation => "what is not known to be zero",
            Self::Dirty => "what has changed",
            Self::Depth => "what the top layer has",
        }
    }
}

/// A context that was agreed on a connection, as its replies are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its identity, on this connection alone.
    pub id: u32,
    /// What its numbers mean.
    pub meaning: Meaning,
}

impl Context {
    /// `base:allocation` under this identity.
    pub fn allocation(id: u32) -> Self {
        Self {
            id,
            meaning: Meaning::Allocation,
        }
    }
}

/// Which context a client's extents come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// `base:allocation`, and none where the server does not have it.
    #[default]
    Allocation,
    /// This one, or the export is not opened.
    This(ContextName),
    /// The dirty bitmap of the export, which must be the only one.
    OnlyBitmap,
    /// `base:allocation`; but an export that the server does not have, and whose name is that of
    /// one that it has, `@` and the name of a bitmap of that, is that one with its bitmap.
    ByName,
}

impl Wish {
    /// Whether it says nothing where no context can be agreed.
    pub fn needs_contexts(&self) -> bool {
        *self == Self::ByName || self.demanded().is_some()
    }

    /// What has to be agreed, in words; `None` if the export is opened without as well.
    pub fn demanded(&self) -> Option<String> {
        match self {
            Self::Allocation | Self::ByName => None,
            Self::This(name) if name.meaning == Meaning::Allocation => None,
            Self::This(name) => Some(name.to_string()),
            Self::OnlyBitmap => Some(format!("{DIRTY_BITMAP}*")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_are_known() {
        let meaning = |name: &str| ContextName::new(name.as_bytes()).map(|name| name.meaning);
        for (name, expected) in [
            ("base:allocation", Some(Meaning::Allocation)),
            ("qemu:allocation-depth", Some(Meaning::Depth)),
            ("qemu:dirty-bitmap:b", Some(Meaning::Dirty)),
            ("qemu:dirty-bitmap:a:b@c", Some(Meaning::Dirty)),
            ("qemu:dirty-bitmap:", None),
            ("qemu:dirty-bitmap", None),
            ("base:allocation ", None),
            ("x:y", None),
            ("", None),
        ] {
            assert_eq!(meaning(name), expected, "{name}");
        }
        assert_eq!(ContextName::bitmap(b""), None);
        assert_eq!(ContextName::bitmap(b"a\0b"), None);
        assert_eq!(ContextName::bitmap(&[b'x'; MAX_STRING]), None);
    }

    #[test]
    fn a_dirty_range_is_data_whatever_else_is_said_of_it() {
        let clean = Allocation::HOLE | Allocation::ZERO;
        for (meaning, status, extent) in [
            (Meaning::Dirty, 1, Allocation::empty()),
            (Meaning::Dirty, 0xffff_ffff, Allocation::empty()),
            (Meaning::Dirty, 0, clean),
            (Meaning::Dirty, 2, clean),
            (Meaning::Depth, 0, clean),
            (Meaning::Depth, 1, Allocation::empty()),
            (Meaning::Depth, 2, clean),
            (Meaning::Depth, u64::from(u32::MAX), clean),
            // A depth has all of its bits.
            (Meaning::Depth, 1 << 32 | 1, clean),
            (Meaning::Dirty, 1 << 32, clean),
            (Meaning::Dirty, 1 << 32 | 1, Allocation::empty()),
            (Meaning::Allocation, 1 << 32 | 1, Allocation::HOLE),
            (Meaning::Allocation, 3 << 32, Allocation::empty()),
            (Meaning::Allocation, 0, Allocation::empty()),
            (Meaning::Allocation, 0xffff_fffd, Allocation::HOLE),
            (Meaning::Allocation, 3, clean),
        ] {
            assert_eq!(meaning.extent(status), extent, "{meaning:?} {status}");
        }
    }

    #[test]
    fn only_the_true_map_may_be_missing() {
        let this = |name: &str| Wish::This(ContextName::new(name.as_bytes()).expect("known"));
        assert_eq!(this("base:allocation").demanded(), None);
        assert_eq!(Wish::ByName.demanded(), None);
        for name in ["qemu:dirty-bitmap:b", "qemu:allocation-depth"] {
            assert_eq!(this(name).demanded().as_deref(), Some(name));
        }
        assert!(Wish::OnlyBitmap.demanded().is_some());
    }
}
