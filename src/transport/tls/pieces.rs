// SPDX-License-Identifier: BSD-3-Clause
//! Bytes to be sent that lie in several places.

use std::io::IoSlice;

/// Pieces of which the first bytes were sent.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a, 'b> {
    pieces: &'a [IoSlice<'b>],
    skip: usize,
}

impl<'a, 'b> Pieces<'a, 'b> {
    /// Nothing of them was sent.
    pub fn new(pieces: &'a [IoSlice<'b>]) -> Self {
        let mut this = Self { pieces, skip: 0 };
        this.advance(0);
        this
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum::<usize>() - self.skip
    }

    /// Whether all was sent.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What is left of the first piece that was not sent whole.
    pub fn first(&self) -> &[u8] {
        self.pieces.first().map_or(&[], |piece| &piece[self.skip..])
    }

    /// So many more bytes were sent.
    pub fn advance(&mut self, n: usize) {
        self.skip += n;
        while let Some((first, rest)) = self.pieces.split_first() {
            if self.skip < first.len() {
                return;
            }
            self.skip -= first.len();
            self.pieces = rest;
        }
    }

    /// Copies as much as fits; says how much that is.
    pub fn copy(&self, record: &mut [u8]) -> usize {
        let mut used = 0;
        let mut skip = self.skip;
        for piece in self.pieces {
            let n = (piece.len() - skip).min(record.len() - used);
            record[used..][..n].copy_from_slice(&piece[skip..][..n]);
            used += n;
            skip = 0;
            if used == record.len() {
                break;
            }
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_used_up_in_order_and_empty_ones_do_not_count() {
        let all = [&b""[..], b"abc", b"", b"defgh", b""].map(IoSlice::new);
        let mut record = [0; 4];
        for step in 1..=4 {
            let mut pieces = Pieces::new(&all);
            let mut got = Vec::new();
            while !pieces.is_empty() {
                assert!(!pieces.first().is_empty());
                assert_eq!(pieces.len(), 8 - got.len());
                let n = pieces.copy(&mut record[..step]);
                got.extend_from_slice(&record[..n]);
                pieces.advance(n);
            }
            assert_eq!(got, b"abcdefgh", "{step} at a time");
            assert_eq!(pieces.len(), 0);
        }
        assert!(Pieces::new(&[IoSlice::new(b"")]).is_empty());
    }
}
