// SPDX-License-Identifier: BSD-3-Clause
//! Arithmetic of ranges that are not whole blocks of the server's.

use crate::session::Span;

/// Where a disk's blocks are.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// A power of two, bytes.
    pub block: u64,
    /// The disk's, bytes. What is behind its last whole block is a block of its own, as far as there
    /// is anything: nobody may ask for more ("Size constraints").
    pub size: u64,
}

/// Some whole blocks, and what of them is wanted: all of it, or there is one edge, or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub blocks: Span,
    pub wanted: Span,
}

impl Part {
    pub fn is_whole(self) -> bool {
        self.blocks == self.wanted
    }

    /// Where what is wanted begins in the blocks, and where it ends.
    pub fn place(self) -> std::ops::Range<usize> {
        let from = (self.wanted.start - self.blocks.start) as usize;
        from..from + self.wanted.length() as usize
    }
}

impl Grid {
    /// The blocks in which a range is.
    pub fn around(self, wanted: Span) -> Span {
        Span {
            start: self.down(wanted.start),
            end: self.up(wanted.end),
        }
    }

    /// The blocks of full length that are within a range; `None` if there are none.
    pub fn within(self, wanted: Span) -> Option<Span> {
        let whole = Span {
            start: self.up(wanted.start),
            end: self.down(wanted.end),
        };
        (whole.start < whole.end).then_some(whole)
    }

    /// Whether it is what is left behind the last block of full length.
    pub fn is_odd_end(self, blocks: Span) -> bool {
        blocks.start == self.down(self.size)
    }

    /// Cuts a range into what is asked for at once: all of it where that is `short` at most, or else
    /// its edges and what is between them. What has an edge is no longer than `short`, or than a block.
    pub fn parts(self, wanted: Span, short: u64) -> Vec<Part> {
        let blocks = self.around(wanted);
        if blocks.length() <= short.max(self.block) {
            return vec![Part { blocks, wanted }];
        }
        // They are at least two, so that both of these are within them.
        let first = self.up(wanted.start);
        let last = if wanted.end == self.size {
            wanted.end
        } else {
            self.down(wanted.end)
        };
        let spans = [(blocks.start, first), (first, last), (last, blocks.end)];
        spans
            .into_iter()
            .filter(|(start, end)| start < end)
            .map(|(start, end)| Part {
                blocks: Span { start, end },
                wanted: Span {
                    start: start.max(wanted.start),
                    end: end.min(wanted.end),
                },
            })
            .collect()
    }

    /// What has to be read before a part can be written: the blocks that are not wanted whole.
    pub fn edges(self, part: Part) -> Vec<Span> {
        let Part { blocks, wanted } = part;
        let first = Span {
            start: blocks.start,
            end: self.up(blocks.start + 1),
        };
        let last = Span {
            start: self.down(blocks.end - 1),
            end: blocks.end,
        };
        let head = blocks.start < wanted.start;
        let tail = wanted.end < blocks.end;
        match (head, tail) {
            // One question for both.
            (true, true) if first.end >= last.start => vec![blocks],
            (true, true) => vec![first, last],
            (true, false) => vec![first],
            (false, true) => vec![last],
            (false, false) => Vec::new(),
        }
    }

    fn down(self, at: u64) -> u64 {
        at & !(self.block - 1)
    }

    /// Never past the end.
    fn up(self, at: u64) -> u64 {
        self.down(at + (self.block - 1)).min(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    const GRID: Grid = Grid {
        block: 4096,
        size: 10 * 4096 + 100,
    };

    #[test]
    fn short_ranges_are_one_part_and_long_ones_have_their_edges_apart() {
        let all = |start, end, short| GRID.parts(span(start, end), short);
        let wanted = span(512, 4096 + 512);
        let blocks = span(0, 8192);
        assert_eq!(all(512, 4096 + 512, 8192), [Part { blocks, wanted }]);
        assert_eq!(GRID.edges(Part { blocks, wanted }), [blocks]);
        let ends: Vec<_> = all(512, 4096 * 4 + 1, 8192)
            .iter()
            .map(|part| (part.blocks.end, part.wanted.end, part.is_whole()))
            .collect();
        assert_eq!(
            ends,
            [
                (4096, 4096, false),
                (4096 * 4, 4096 * 4, true),
                (4096 * 5, 4096 * 4 + 1, false)
            ]
        );
        // No more than a block may be asked for at once.
        assert_eq!(all(4095, 4097, 1).len(), 2);
    }

    #[test]
    fn what_is_behind_the_last_block_is_one_that_is_shorter() {
        let end = GRID.size;
        let odd = span(10 * 4096, end);
        assert!(GRID.is_odd_end(odd));
        assert_eq!(GRID.around(span(end - 1, end)), odd);
        assert_eq!(GRID.around(span(10 * 4096 - 1, end)), span(9 * 4096, end));
        assert_eq!(GRID.within(span(4095, end)), Some(span(4096, 10 * 4096)));
        assert_eq!(GRID.within(odd), None);
        assert!(GRID.parts(odd, 1).iter().all(|part| part.is_whole()));
        let even = Grid { size: 8192, ..GRID };
        assert!(!even.is_odd_end(even.around(span(8191, 8192))));
    }

    /// A server that takes whole blocks, and not too many of them.
    struct Strict {
        grid: Grid,
        most: u64,
        disk: Vec<u8>,
    }

    impl Strict {
        fn check(&self, at: Span) {
            assert_eq!(self.grid.around(at), at, "whole blocks");
            assert!(at.length() > 0 && at.length() <= self.most, "{at:?}");
        }

        fn read(&self, at: Span) -> &[u8] {
            self.check(at);
            &self.disk[at.start as usize..at.end as usize]
        }

        fn write(&mut self, at: Span, bytes: &[u8]) {
            self.check(at);
            self.disk[at.start as usize..at.end as usize].copy_from_slice(bytes);
        }
    }

    proptest! {
        /// What is written in parts is what was to be written, and nothing else.
        #[test]
        fn a_disk_of_blocks_is_as_good_as_one_of_bytes(
            shift in 0u32..7,
            size in 1u64..2000,
            short in 0u64..400,
            writes in prop::collection::vec((any::<prop::sample::Index>(), 1u64..600, any::<u8>()), 1..20),
        ) {
            let grid = Grid { block: 1 << shift, size };
            let disk: Vec<u8> = (0..size).map(|at| at as u8).collect();
            let mut bytes = disk.clone();
            let most = short.max(grid.block);
            let mut strict = Strict { grid, most, disk };
            for (at, length, value) in writes {
                let start = at.index(size as usize) as u64;
                let wanted = span(start, (start + length).min(size));
                bytes[start as usize..wanted.end as usize].fill(value);
                let mut expected = wanted.start;
                for part in grid.parts(wanted, short) {
                    prop_assert_eq!(part.wanted.start, expected, "no gap");
                    expected = part.wanted.end;
                    if part.is_whole() {
                        // It is cut elsewhere, between blocks.
                        strict.most = u64::MAX;
                        strict.write(part.wanted, &vec![value; part.wanted.length() as usize]);
                        strict.most = most;
                        continue;
                    }
                    let mut buffer = vec![!value; part.blocks.length() as usize];
                    for edge in grid.edges(part) {
                        let from = (edge.start - part.blocks.start) as usize;
                        buffer[from..from + edge.length() as usize].copy_from_slice(strict.read(edge));
                    }
                    buffer[part.place()].fill(value);
                    strict.write(part.blocks, &buffer);
                }
                prop_assert_eq!(expected, wanted.end);
                prop_assert_eq!(&strict.disk, &bytes);
            }
        }

        #[test]
        fn what_is_within_is_the_most_that_is_whole(shift in 0u32..7, size in 1u64..2000, a in 0u64..2000, b in 0u64..2000) {
            let grid = Grid { block: 1 << shift, size };
            let wanted = span(a.min(b).min(size), a.max(b).min(size));
            let whole = |start: u64| start % grid.block == 0 && start >= wanted.start && start + grid.block <= wanted.end;
            let blocks: Vec<u64> = (0..size).filter(|start| whole(*start)).collect();
            let expected = blocks.first().zip(blocks.last()).map(|(first, last)| span(*first, last + grid.block));
            prop_assert_eq!(grid.within(wanted), expected);
        }
    }
}
