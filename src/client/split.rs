// SPDX-License-Identifier: BSD-3-Clause
//! Arithmetic of ranges: cutting requests to a server's limits and answers to a request's.

use crate::proto::chunks::Descriptor;

/// Cuts `length` bytes from `offset` into pieces of at most `most` bytes.
pub fn pieces(offset: u64, length: u64, most: usize) -> impl Iterator<Item = (u64, usize)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let n = (end - at).min(most as u64);
        let piece = (at, n as usize);
        at += n;
        (n > 0).then_some(piece)
    })
}

/// Cuts extents so that together they are at most `most` bytes long.
pub fn cut(extents: &mut Vec<Descriptor>, most: u64) {
    let mut left = most;
    let mut keep = 0;
    for extent in extents.iter_mut() {
        if left == 0 {
            break;
        }
        extent.length = extent.length.min(left);
        left -= extent.length;
        keep += 1;
    }
    extents.truncate(keep);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::consts::Allocation;

    #[test]
    fn pieces_follow_each_other_to_the_end() {
        let all: Vec<_> = pieces(10, 25, 10).collect();
        assert_eq!(all, [(10, 10), (20, 10), (30, 5)]);
        assert_eq!(pieces(5, 0, 10).count(), 0);
    }

    #[test]
    fn extents_are_cut_at_their_sum() {
        let extent = |length| Descriptor {
            length,
            status: Allocation::ZERO,
        };
        let mut extents = vec![extent(10), extent(u64::MAX), extent(7)];
        cut(&mut extents, 100);
        assert_eq!(extents, [extent(10), extent(90)]);

        let mut extents = vec![extent(1 << 31), extent(1 << 31)];
        cut(&mut extents, u32::MAX.into());
        assert_eq!(extents, [extent(1 << 31), extent((1 << 31) - 1)]);
    }
}
