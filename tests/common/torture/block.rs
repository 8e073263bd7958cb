// SPDX-License-Identifier: BSD-3-Clause
//! The blocks that clients write: each says which one it is, and sector by sector, so that what is lost, undone,
//! misdirected or torn is seen by looking at it.

/// Bytes of a block, which is the unit of all requests here.
pub const BLOCK: usize = 4096;
/// What a server may tear: a block's sectors can be of different ages after a crash.
pub const SECTOR: usize = 512;
/// Every sector repeats this many bytes.
const MARK: usize = 32;

/// What a block holds, in one number: zero for zeroes, else a digest of its bytes.
pub type Content = u64;

/// A block full of zeroes.
pub const ZEROES: Content = 0;

/// The bytes of version `counter` of block `number`.
pub fn bytes(number: u64, counter: u64, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    for sector in 0..(BLOCK / SECTOR) as u64 {
        let mark = mark(number, counter, seed, sector);
        for _ in 0..SECTOR / MARK {
            bytes.extend_from_slice(&mark);
        }
    }
    bytes
}

fn mark(number: u64, counter: u64, seed: u64, sector: u64) -> [u8; MARK] {
    let mut mark = [0; MARK];
    let words = [number, counter, seed, sector];
    for (place, word) in mark.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    mark
}

/// What one block's bytes are.
pub fn content(bytes: &[u8]) -> Content {
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    let mut any = 0;
    for word in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        any |= word;
        digest = (digest.rotate_left(5) ^ word).wrapping_mul(0x0100_0000_01b3);
    }
    if any == 0 { ZEROES } else { digest | 1 }
}

/// What each block of a request is.
pub fn contents(bytes: &[u8]) -> Vec<Content> {
    bytes.chunks_exact(BLOCK).map(content).collect()
}

/// What is wrong with a block that was read, if it is neither zeroes nor all of one version.
pub fn fault(bytes: &[u8], number: u64, seed: u64) -> Option<String> {
    let words = |at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes of a mark"))
    };
    let versions: Vec<u64> = (0..BLOCK).step_by(SECTOR).map(|at| words(at + 8)).collect();
    let counter = versions[0];
    if bytes == self::bytes(number, counter, seed) || bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    Some(format!(
        "block {number}: versions of its sectors {versions:?}, block {} by its mark",
        words(0)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_pass_and_torn_ones_do_not() {
        let (old, new) = (bytes(7, 1, 9), bytes(7, 2, 9));
        assert_eq!(fault(&old, 7, 9), None);
        assert_eq!(fault(&[0; BLOCK], 7, 9), None);
        let torn = [&new[..SECTOR], &old[SECTOR..]].concat();
        assert!(fault(&torn, 7, 9).is_some(), "torn");
        assert!(fault(&old, 8, 9).is_some(), "misdirected");
        assert!(fault(&old, 7, 8).is_some(), "of another run");
        assert_ne!(content(&old), content(&new));
        assert_eq!(content(&[0; BLOCK]), ZEROES);
    }
}
