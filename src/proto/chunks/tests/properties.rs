// SPDX-License-Identifier: BSD-3-Clause
//! Any legal reply reassembles, in either framing; what is damaged or cut is no success.

use super::*;
use proptest::prelude::*;

/// A read of `length` bytes, cut into chunks at `cuts`, each data or hole, sent in the order of
/// `keys`. Returns the stream and the contents that it stands for.
fn legal_reply(
    length: usize,
    cuts: &[usize],
    holes: &[bool],
    keys: &[u32],
    separate_none: bool,
) -> (Vec<u8>, Vec<u8>) {
    let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % length).collect();
    edges.extend([0, length]);
    edges.sort_unstable();
    edges.dedup();
    let mut content: Vec<u8> = (0..length).map(|i| (i * 31 + 1) as u8).collect();
    let mut pieces: Vec<(u32, usize, usize, bool)> = Vec::new();
    for (n, edge) in edges.windows(2).enumerate() {
        let is_hole = holes[n % holes.len()];
        if is_hole {
            content[edge[0]..edge[1]].fill(0);
        }
        pieces.push((
            keys[n % keys.len()].rotate_left(n as u32),
            edge[0],
            edge[1],
            is_hole,
        ));
    }
    pieces.sort_unstable();
    let mut stream = Vec::new();
    for (n, (_, from, to, is_hole)) in pieces.iter().enumerate() {
        let last = !separate_none && n + 1 == pieces.len();
        stream.extend(if *is_hole {
            hole(*from, to - from, last)
        } else {
            data(*from, &content[*from..*to], last)
        });
    }
    if separate_none {
        stream.extend(none());
    }
    (stream, content)
}

prop_compose! {
    fn replies()(
        length in 1usize..600,
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        holes in prop::collection::vec(any::<bool>(), 1..5),
        keys in prop::collection::vec(any::<u32>(), 1..13),
        separate_none: bool,
    ) -> (Vec<u8>, Vec<u8>) {
        legal_reply(length, &cuts, &holes, &keys, separate_none)
    }
}

proptest! {
    /// Any legal chunking, in any order, reassembles.
    #[test]
    fn any_legal_chunking_reassembles((stream, content) in replies()) {
        prop_assert_eq!(receive(read(content.len()), &stream), Outcome::Success(content));
    }

    /// One wrong bit may change one bit of the data, which nobody can see, or make the request
    /// fail. It never makes another success of it.
    #[test]
    fn a_damaged_bit_never_passes_for_success(
        (stream, content) in replies(), wide: bool, bit: prop::sample::Index,
    ) {
        let (framing, mut damaged) = framed(stream, wide);
        let bit = bit.index(damaged.len() * 8);
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Outcome::Success(got) = receive_as(framing, read(content.len()), &damaged) {
            let wrong: u32 = got.iter().zip(&content).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert!(wrong <= 1, "{wrong} bits differ");
        }
    }

    /// A reply that is cut short is never complete.
    #[test]
    fn a_cut_reply_is_never_success((stream, content) in replies(), wide: bool, cut: prop::sample::Index) {
        let (framing, stream) = framed(stream, wide);
        let cut = cut.index(stream.len());
        let outcome = receive_as(framing, read(content.len()), &stream[..cut]);
        prop_assert_eq!(outcome, Outcome::Pending);
    }

    /// Random bytes behind a good header neither panic nor succeed without covering the read.
    #[test]
    fn random_payloads_are_survived(kind in any::<u16>(), last: bool, payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let stream = chunk(ChunkType(kind), last, &payload);
        let outcome = receive_as(Framing::Structured, read(20), &stream);
        prop_assert!(!matches!(outcome, Outcome::Success(_)) || kind == ChunkType::OFFSET_DATA.0);
    }
}

/// The stream with the headers of one framing or the other.
fn framed(stream: Vec<u8>, wide: bool) -> (Framing, Vec<u8>) {
    match wide {
        true => (Framing::Extended, extended(&stream)),
        false => (Framing::Structured, stream),
    }
}
