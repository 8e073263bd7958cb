// SPDX-License-Identifier: BSD-3-Clause
//! Big-endian integers out of and into byte strings: the only place that knows the byte order.

use super::consts::MAX_TEXT;

/// Takes fields from the front of a byte string. Every method answers `None`, and consumes
/// nothing, when the bytes do not suffice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(n)?;
        self.rest = tail;
        Some(head)
    }

    /// The next 16-bit integer.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32-bit integer.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64-bit integer.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// What has not been taken.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.rest.split_first_chunk::<N>()?;
        self.rest = tail;
        Some(*head)
    }
}

/// Appends fields to a byte string.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a 16-bit integer.
    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a 32-bit integer.
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a 64-bit integer.
    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a string behind its 32-bit length. Strings here are export names and context
    /// names, which were checked to be at most [`MAX_STRING`](super::consts::MAX_STRING) bytes.
    pub fn string(self, text: impl AsRef<[u8]>) -> Self {
        let bytes = text.as_ref();
        self.u32(bytes.len() as u32).bytes(bytes)
    }

    /// The finished byte string.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Text from a server, made fit for a log line: at most `limit` bytes of it, control characters
/// escaped, what is not UTF-8 replaced.
pub fn printable(bytes: &[u8], limit: usize) -> String {
    let cut = bytes.get(..limit).unwrap_or(bytes);
    let mut text = String::with_capacity(cut.len());
    for c in String::from_utf8_lossy(cut).chars() {
        if c.is_control() || is_bidi_override(c) {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    if cut.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

/// What a server says for people to read, as a message quotes it: short, and without the NUL that C
/// programs leave at its end.
pub fn quoted(text: &[u8]) -> String {
    let end = text.iter().rposition(|byte| *byte != 0);
    let text = text.get(..end.map_or(0, |last| last + 1)).unwrap_or(text);
    printable(text, MAX_TEXT)
}

/// Characters that reorder the text around them and so could disguise a log line.
pub fn is_bidi_override(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_short_read_consumes_nothing() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u32(), None);
        assert_eq!(reader.u16(), Some(0x0102));
        assert_eq!(reader.rest(), &[3]);
    }

    #[test]
    fn server_text_is_cut_and_escaped() {
        assert_eq!(printable(b"plain \xc3\xa9", 100), "plain \u{e9}");
        assert_eq!(
            printable(b"\x1b[31mred\n\0", 100),
            "\\u{1b}[31mred\\n\\u{0}"
        );
        assert_eq!(printable(b"abcdef", 3), "abc...");
        assert_eq!(printable(b"\xff", 3), "\u{fffd}");
    }

    #[test]
    fn a_quotation_is_short_and_has_no_nul_at_its_end() {
        assert_eq!(quoted(b"Read failed\0"), "Read failed");
        assert_eq!(quoted(b"one\0two\0\0"), "one\\u{0}two");
        assert_eq!(quoted(b"\0"), "");
        assert_eq!(quoted(&[b'x'; 201]), "x".repeat(200) + "...");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(a: u16, b: u32, c: u64, text in ".{0,64}") {
            let bytes = Writer::default().u16(a).u32(b).u64(c).string(&text).finish();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.u16(), Some(a));
            prop_assert_eq!(reader.u32(), Some(b));
            prop_assert_eq!(reader.u64(), Some(c));
            let n = reader.u32().map(|n| n as usize);
            prop_assert_eq!(n, Some(text.len()));
            prop_assert_eq!(reader.rest(), text.as_bytes());
        }

        #[test]
        fn printable_never_lets_a_control_character_through(bytes: Vec<u8>) {
            let text = printable(&bytes, 64);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert!(text.len() <= 64 * 10 + 3);
        }
    }
}
