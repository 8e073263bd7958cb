// SPDX-License-Identifier: BSD-3-Clause
//! The blocks of a PEM file (RFC 7468), and which of them are encrypted.
//!
//! OpenSSL asks on the terminal for the password of whatever turns out to be encrypted, so what it
//! gets is looked at before.

/// From a line `-----BEGIN LABEL-----` to the line that ends it.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// What it says to be.
    pub label: &'a [u8],
    /// All of it, with both lines.
    pub text: &'a [u8],
}

const BEGIN: &[u8] = b"-----BEGIN ";
const DASHES: &[u8] = b"-----";

impl Block<'_> {
    /// Whether it cannot be read without a password: encrypted PKCS #8, or the header of older
    /// formats (RFC 1421) that says so.
    pub fn is_encrypted(&self) -> bool {
        self.label == b"ENCRYPTED PRIVATE KEY" || find(self.text, b"Proc-Type:").is_some()
    }

    /// Whether it is a private key of any kind.
    pub fn is_private_key(&self) -> bool {
        self.label.ends_with(b"PRIVATE KEY")
    }

    /// Whether it is a certificate.
    pub fn is_certificate(&self) -> bool {
        let labels: [&[u8]; 2] = [b"CERTIFICATE", b"X509 CERTIFICATE"];
        labels.contains(&self.label)
    }

    /// Whether it is a list of revoked certificates.
    pub fn is_revocation_list(&self) -> bool {
        self.label == b"X509 CRL"
    }
}

/// All blocks of a text, in order; what is between them does not count. `None` if one has no end.
pub fn blocks(text: &[u8]) -> Option<Vec<Block<'_>>> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some(start) = find(rest, BEGIN) {
        let block = &rest[start..];
        let behind = &block[BEGIN.len()..];
        let label = &behind[..find(behind, DASHES)?];
        let end = [b"-----END ", label, DASHES].concat();
        let length = find(block, &end)? + end.len();
        blocks.push(Block {
            label,
            text: &block[..length],
        });
        rest = &block[length..];
    }
    Some(blocks)
}

/// Where `what` begins.
fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    let mut from = 0;
    // The first byte is looked for alone: that is fast, and lists of revoked certificates can be
    // large.
    while let Some(at) = text[from..].iter().position(|byte| *byte == what[0]) {
        if text[from + at..].starts_with(what) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_among_other_text() {
        let text = b"one:\n-----BEGIN A-----\nMDA=\n-----END A-----\n\r\n-----BEGIN B C-----\r\n\
                     -----END B C-----";
        let blocks = blocks(text).expect("both are complete");
        let labels: Vec<&[u8]> = blocks.iter().map(|block| block.label).collect();
        assert_eq!(labels, [&b"A"[..], b"B C"]);
        assert_eq!(blocks[0].text, b"-----BEGIN A-----\nMDA=\n-----END A-----");
        assert!(
            super::blocks(b"nothing of the kind ----- BEGIN")
                .expect("none")
                .is_empty()
        );
    }

    #[test]
    fn a_block_without_an_end_spoils_the_file() {
        for text in [
            "-----BEGIN A-----\nMDA=\n",
            "-----BEGIN A",
            "-----BEGIN A-----\n-----END B-----\n",
            "-----BEGIN A-----\n-----END A-----\n-----BEGIN A-----\n",
        ] {
            assert_eq!(blocks(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn encrypted_blocks_are_told_from_others() {
        for (text, encrypted) in [
            (
                "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----",
                false,
            ),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----",
                true,
            ),
            (
                "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
                 -----END EC PRIVATE KEY-----",
                true,
            ),
        ] {
            let blocks = blocks(text.as_bytes()).expect("complete");
            assert!(blocks[0].is_private_key(), "{text}");
            assert_eq!(blocks[0].is_encrypted(), encrypted, "{text}");
        }
    }
}
