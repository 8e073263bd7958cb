// SPDX-License-Identifier: BSD-3-Clause
//! A client that goes through a disk from its beginning to its end, and how much the server is asked
//! for then. No I/O, no clock.
//!
//! nbdkit asks for extents in the pieces that its client asks for, and some ask for one extent at a
//! time. Where one question follows the other the server is asked for twice as much each time, so that
//! never more is asked for in vain than was wanted already.

use crate::proto::chunks::Descriptor;

/// Most bytes that the server is asked for beyond what the client wants. There are servers that make
/// the whole answer before they send it, or fail near 4 GiB.
pub const WIDEST: u64 = 2 << 30;

/// The same where lengths have 64 bits: such servers know of large questions, and still the answer is
/// made, and kept, as one.
pub const WIDEST_EXTENDED: u64 = 64 << 30;

/// A question that leaves out so many times its own length still goes on: several connections may share
/// the work.
const LEAP: u64 = 16;

/// What a client has been told.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Where the last answer ended.
    next: Option<u64>,
    /// How much the server was asked for.
    asked: u64,
    /// It was not answered when it was asked for more than the client wanted.
    narrow: bool,
    /// That was so where it was asked for more than [`WIDEST`] only.
    compact: bool,
    window: Option<Window>,
}

/// What the server told beyond what its client was told.
#[derive(Debug)]
struct Window {
    /// Where `extents` begin.
    from: u64,
    extents: Vec<Descriptor>,
    /// How many of them are behind the client.
    passed: usize,
}

impl Sweep {
    /// How much to ask the server for, when the client asks for `length` bytes; the same, or more if it
    /// goes on from where it was, but no more than `widest` for that.
    pub fn plan(&mut self, offset: u64, length: u64, widest: u64) -> u64 {
        let goes_on = self
            .next
            .is_some_and(|next| offset >= next && offset - next <= length.saturating_mul(LEAP));
        let widest = if self.compact {
            widest.min(WIDEST)
        } else {
            widest
        };
        self.asked = match goes_on && !self.narrow {
            true => self.asked.saturating_mul(2).min(widest).max(length),
            false => length,
        };
        self.asked
    }

    /// Whether the client goes through the disk.
    pub fn goes_on(&self, offset: u64) -> bool {
        !self.narrow && self.next == Some(offset)
    }

    /// The server is not to be asked for as much more than the client wants as it was, or for more at all.
    pub fn narrow(&mut self) {
        match self.asked > WIDEST && !self.compact {
            true => self.compact = true,
            false => self.narrow = true,
        }
        self.window = None;
    }

    /// The client was told of what is before `end`.
    pub fn told(&mut self, end: u64) {
        self.next = Some(end);
    }

    /// Keeps an answer, of which the client is told of what is before `end`.
    pub fn keep(&mut self, offset: u64, extents: &[Descriptor], end: u64) {
        let length = extents
            .iter()
            .map(|extent| extent.length)
            .fold(0, u64::saturating_add);
        self.window = (offset.saturating_add(length) > end).then(|| Window {
            from: offset,
            extents: extents.to_vec(),
            passed: 0,
        });
    }

    /// Forgets what was kept.
    pub fn forget(&mut self) {
        self.window = None;
    }

    /// What was kept for `length` bytes from `offset`, or the first of them. Who goes back wants to
    /// know anew.
    pub fn known(&mut self, offset: u64, length: u64) -> Vec<Descriptor> {
        let back = self.next.is_none_or(|next| offset < next);
        let found = match &mut self.window {
            Some(window) if !back => window.part(offset, length),
            _ => Vec::new(),
        };
        if found.is_empty() {
            self.window = None;
        }
        found
    }
}

impl Window {
    fn part(&mut self, offset: u64, length: u64) -> Vec<Descriptor> {
        while let Some(extent) = self.extents.get(self.passed) {
            let to = self.from.saturating_add(extent.length);
            if to > offset {
                break;
            }
            self.from = to;
            self.passed += 1;
        }
        let Some(inside) = offset.checked_sub(self.from) else {
            return Vec::new();
        };
        let rest = self.extents.get(self.passed..).unwrap_or_default();
        let mut part = upto(rest, inside.saturating_add(length));
        if let Some(first) = part.first_mut() {
            // It ends behind the offset.
            first.length -= inside;
        }
        part
    }
}

/// The extents that cover so many bytes; the last may be longer.
pub fn upto(extents: &[Descriptor], length: u64) -> Vec<Descriptor> {
    let mut covered = 0_u64;
    let needed = extents.iter().take_while(|extent| {
        let before = covered;
        covered = covered.saturating_add(extent.length);
        before < length
    });
    needed.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::consts::Allocation;

    fn extent(length: u64) -> Descriptor {
        Descriptor {
            length,
            status: Allocation::ZERO,
        }
    }

    fn lengths(extents: &[Descriptor]) -> Vec<u64> {
        extents.iter().map(|extent| extent.length).collect()
    }

    #[test]
    fn who_goes_on_is_asked_for_twice_as_much() {
        let mut sweep = Sweep::default();
        let mut at = 0;
        let mut asked = Vec::new();
        for _ in 0..6 {
            let length = sweep.plan(at, 512 << 20, WIDEST);
            asked.push(length >> 20);
            at += length;
            sweep.told(at);
        }
        assert_eq!(asked, [512, 1024, 2048, 2048, 2048, 2048]);
        assert_eq!(
            sweep.plan(at, 3 << 30, WIDEST),
            3 << 30,
            "what is wanted at least"
        );
        sweep.told(at);
        assert_eq!(sweep.plan(0, 4096, WIDEST), 4096, "another sweep");
        sweep.told(4096);
        assert_eq!(sweep.plan(4096 * 18, 4096, WIDEST), 4096, "too far away");
        sweep.told(8192);
        assert_eq!(
            sweep.plan(8192 + 4096 * 16, 4096, WIDEST),
            8192,
            "others do a part"
        );
        sweep.narrow();
        assert_eq!(
            sweep.plan(8192, 4096, WIDEST),
            4096,
            "the server does not like it"
        );
    }

    #[test]
    fn headers_with_room_are_used_until_the_server_declines() {
        let mut sweep = Sweep::default();
        let mut at = 0;
        let ask = |sweep: &mut Sweep, at: &mut u64| {
            let length = sweep.plan(*at, 4 << 30, WIDEST_EXTENDED);
            *at += length;
            sweep.told(*at);
            length >> 30
        };
        let asked: Vec<_> = (0..6).map(|_| ask(&mut sweep, &mut at)).collect();
        assert_eq!(asked, [4, 8, 16, 32, 64, 64]);
        sweep.narrow();
        assert_eq!(ask(&mut sweep, &mut at), 4, "no more than is wanted here");
        assert_eq!(sweep.plan(at, 512 << 20, WIDEST_EXTENDED), WIDEST);
        sweep.narrow();
        let length = sweep.plan(at, 512 << 20, WIDEST_EXTENDED);
        assert_eq!(length, 512 << 20, "nor that");
    }

    #[test]
    fn what_was_kept_is_told_once_and_in_order() {
        let mut sweep = Sweep::default();
        assert_eq!(sweep.known(0, 10), [], "nothing yet");
        sweep.keep(0, &[extent(10), extent(20), extent(30)], 5);
        sweep.told(5);
        assert_eq!(lengths(&sweep.known(5, 1)), [5]);
        sweep.told(6);
        assert_eq!(lengths(&sweep.known(6, 10)), [4, 20]);
        sweep.told(16);
        assert_eq!(lengths(&sweep.known(31, 100)), [29], "with a gap");
        sweep.told(60);
        assert_eq!(sweep.known(60, 1), [], "it has come to its end");
        assert!(sweep.window.is_none());
    }

    #[test]
    fn who_goes_back_is_told_anew() {
        let mut sweep = Sweep::default();
        sweep.keep(0, &[extent(100)], 50);
        sweep.told(50);
        assert_eq!(sweep.known(49, 10), []);
        assert_eq!(sweep.known(50, 10), [], "the next one, too");
        sweep.keep(0, &[extent(100)], 100);
        assert!(sweep.window.is_none(), "the client knows all of it");
    }

    #[test]
    fn extents_are_counted_up_to_a_length() {
        let all = [extent(10), extent(10), extent(10)];
        for (length, count) in [(1, 1), (10, 1), (11, 2), (30, 3), (100, 3)] {
            assert_eq!(upto(&all, length).len(), count, "{length}");
        }
    }
}
