// SPDX-License-Identifier: BSD-3-Clause
//! Export names: byte strings that are nearly always text.
//!
//! The specification wants UTF-8, and there are servers whose exports are named after files that are
//! not. A name is passed on as it came, and only for people made printable.

use std::fmt;

use super::codec::printable;
use super::consts::{MAX_STRING, MAX_TEXT};

/// The name of an export, at most [`MAX_STRING`] bytes and without a NUL. The empty name stands for
/// the server's default export.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportName(Vec<u8>);

impl ExportName {
    /// A name of these bytes; `None` if the protocol has no room for it, or nbdkit, which ends names
    /// with a NUL.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Self> {
        let bytes = bytes.into();
        // spec: Conventions: MUST NOT: no NUL in a string
        (bytes.len() <= MAX_STRING && !bytes.contains(&0)).then_some(Self(bytes))
    }

    /// The name as it goes over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the name of the default export.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The name as messages show it: not too long, control characters escaped, and so is what is no text,
/// byte for byte.
impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..MAX_TEXT).unwrap_or(&self.0);
        for chunk in shown.utf8_chunks() {
            f.write_str(&printable(chunk.valid().as_bytes(), MAX_TEXT))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        if shown.len() < self.0.len() {
            f.write_str("...")?;
        }
        Ok(())
    }
}

impl fmt::Debug for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(bytes: &[u8]) -> ExportName {
        ExportName::new(bytes).expect("a name")
    }

    #[test]
    fn a_name_is_short_and_has_no_nul() {
        assert_eq!(name(b"caf\xe9").as_bytes(), b"caf\xe9");
        assert!(ExportName::new([b'x'; 4096]).is_some());
        assert_eq!(ExportName::new([b'x'; 4097]), None);
        assert_eq!(ExportName::new(*b"a\0b"), None);
    }

    #[test]
    fn a_name_is_shown_on_one_line_and_told_apart_from_others() {
        for (bytes, shown) in [
            (&b"disk/1 \xc3\xa9"[..], "disk/1 \u{e9}"),
            (b"caf\xe9", "caf\\xe9"),
            (b"caf\xe8", "caf\\xe8"),
            (b"\xff\x1b[2J\n", "\\xff\\u{1b}[2J\\n"),
        ] {
            assert_eq!(name(bytes).to_string(), shown);
        }
        assert_eq!(name(&[b'x'; 300]).to_string(), "x".repeat(200) + "...");
        // Cut in the middle of a character.
        let long = "x".repeat(199) + "\u{e9}\u{e9}";
        assert_eq!(
            name(long.as_bytes()).to_string(),
            "x".repeat(199) + "\\xc3..."
        );
    }
}
