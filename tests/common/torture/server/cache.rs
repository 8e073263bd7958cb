// SPDX-License-Identifier: BSD-3-Clause
//! A disk with a volatile cache. What was not flushed survives the server's death only by chance, and torn.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::torture::Rng;
use crate::torture::block::{self, BLOCK, Content, SECTOR};

/// Which change a version of a sector comes from.
pub type Change = u64;

/// What a sector became by one change; none: zeroes.
struct Version {
    change: Change,
    bytes: Option<Box<[u8]>>,
}

struct Origin {
    connection: u64,
    /// At which tick it was answered.
    answered: Option<u64>,
}

/// The disk as clients see it, and as it will be after a crash.
pub struct Cache {
    image: Vec<u8>,
    contents: Vec<Option<Content>>,
    backing: File,
    /// The versions of each sector that are not durable, oldest first.
    dirty: BTreeMap<u64, Vec<Version>>,
    origins: HashMap<Change, Origin>,
    next: Change,
    /// One more with each answer and each flush that arrives.
    tick: u64,
}

impl Cache {
    pub fn new(backing: File, size: u64) -> Self {
        let size = usize::try_from(size).expect("a disk that fits into memory");
        let mut image = vec![0; size];
        let have = backing.metadata().expect("size of the backing file").len();
        let have = usize::try_from(have).expect("a small file").min(size);
        backing
            .read_exact_at(&mut image[..have], 0)
            .expect("read the backing file");
        Self {
            image,
            contents: vec![None; size.div_ceil(BLOCK)],
            backing,
            dirty: BTreeMap::new(),
            origins: HashMap::new(),
            next: 1,
            tick: 1,
        }
    }

    pub fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        self.image[range(offset, length)].to_vec()
    }

    /// What the blocks of a range are.
    pub fn contents(&mut self, offset: u64, length: u64) -> Vec<Content> {
        let blocks = offset / BLOCK as u64..(offset + length).div_ceil(BLOCK as u64);
        blocks
            .map(|number| {
                let number = usize::try_from(number).expect("a block of the image");
                let image = &self.image;
                *self.contents[number].get_or_insert_with(|| {
                    let end = image.len().min((number + 1) * BLOCK);
                    block::content(&image[number * BLOCK..end])
                })
            })
            .collect()
    }

    /// `bytes`: none for zeroes.
    pub fn change(
        &mut self,
        connection: u64,
        offset: u64,
        length: u64,
        bytes: Option<&[u8]>,
    ) -> Change {
        let range = range(offset, length);
        match bytes {
            Some(bytes) => self.image[range.clone()].copy_from_slice(bytes),
            None => self.image[range.clone()].fill(0),
        }
        for number in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            self.contents[number] = None;
        }
        let change = self.next;
        self.next += 1;
        self.origins.insert(
            change,
            Origin {
                connection,
                answered: None,
            },
        );
        for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
            // Of a sector that was written in part the rest counts as written, too.
            let end = self.image.len().min((sector + 1) * SECTOR);
            let bytes = bytes.map(|_| self.image[sector * SECTOR..end].into());
            self.dirty
                .entry(sector as u64)
                .or_default()
                .push(Version { change, bytes });
        }
        change
    }

    pub fn answered(&mut self, change: Change) {
        self.tick += 1;
        if let Some(origin) = self.origins.get_mut(&change) {
            origin.answered = Some(self.tick);
        }
    }

    /// The moment at which a flush arrives.
    pub fn flush_arrives(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// Makes durable what a flush that arrived at `tick` must cover: what was answered before; if `connection` is
    /// given, on that one only.
    pub fn flush(&mut self, tick: u64, connection: Option<u64>) {
        let origins = &self.origins;
        let covered = |change: Change| {
            origins.get(&change).is_some_and(|origin| {
                origin.answered.is_some_and(|answered| answered < tick)
                    && connection.is_none_or(|connection| connection == origin.connection)
            })
        };
        persist(&self.backing, &mut self.dirty, covered);
    }

    /// Makes durable one change alone, as FUA demands.
    pub fn force(&mut self, change: Change) {
        persist(&self.backing, &mut self.dirty, |other| other == change);
    }

    /// Makes everything durable, as a server may at any time.
    pub fn flush_all(&mut self) {
        persist(&self.backing, &mut self.dirty, |_| true);
    }

    /// Forgets that anything is dirty: nothing of it ever becomes durable.
    pub fn drop_dirty(&mut self) {
        self.dirty.clear();
    }

    /// The end: of each change all its sectors become durable, or none, or some.
    pub fn crash(&mut self, rng: &mut Rng) {
        let (none, all) = match rng.below(6) {
            0 => (100, 0),
            1 => (0, 100),
            2 => (10, 80),
            _ => (40, 35),
        };
        let mut fates: HashMap<Change, u64> = HashMap::new();
        let mut dirty = std::mem::take(&mut self.dirty);
        persist(&self.backing, &mut dirty, |change| {
            let fate = *fates.entry(change).or_insert_with(|| rng.below(100));
            if fate < none {
                false
            } else if fate < none + all {
                true
            } else {
                rng.chance(50)
            }
        });
    }
}

/// Writes the newest version of each sector that `chosen` picks; it and what is older is not dirty any more.
fn persist(
    backing: &File,
    dirty: &mut BTreeMap<u64, Vec<Version>>,
    mut chosen: impl FnMut(Change) -> bool,
) {
    let mut start = 0;
    let mut run: Vec<u8> = Vec::new();
    let write = |start: u64, run: &mut Vec<u8>| {
        backing
            .write_all_at(run, start * SECTOR as u64)
            .expect("write to the backing file");
        run.clear();
    };
    dirty.retain(|sector, versions| {
        if let Some(newest) = versions.iter().rposition(|version| chosen(version.change)) {
            if start + (run.len() / SECTOR) as u64 != *sector {
                write(start, &mut run);
                start = *sector;
            }
            match &versions[newest].bytes {
                Some(bytes) => run.extend_from_slice(bytes),
                None => run.extend_from_slice(&[0; SECTOR]),
            }
            versions.drain(..=newest);
        }
        !versions.is_empty()
    });
    write(start, &mut run);
}

fn range(offset: u64, length: u64) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).expect("within the image");
    start..start + usize::try_from(length).expect("within the image")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of two blocks, and what a crash leaves of it.
    fn cache() -> (Cache, File) {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(2 * BLOCK as u64).expect("its length");
        let same = file.try_clone().expect("duplicate descriptor");
        (Cache::new(file, 2 * BLOCK as u64), same)
    }

    fn first(file: &File) -> u8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).expect("a byte");
        byte[0]
    }

    #[test]
    fn flush_covers_what_was_answered_before_it_came() {
        let (mut cache, file) = cache();
        let one = cache.change(1, 0, 512, Some(&[1; 512]));
        cache.answered(one);
        let flush = cache.flush_arrives();
        let two = cache.change(1, 0, 512, Some(&[2; 512]));
        cache.answered(two);
        cache.flush(flush, None);
        assert_eq!(first(&file), 1, "the first alone");
        let other = cache.flush_arrives();
        cache.flush(other, Some(2));
        assert_eq!(first(&file), 1, "another connection's");
        cache.flush(other, Some(1));
        assert_eq!(first(&file), 2);
        assert_eq!(cache.read(0, 1), [2]);
    }

    #[test]
    fn what_is_durable_is_not_undone_by_what_is_older() {
        let (mut cache, file) = cache();
        cache.change(1, 0, 512, Some(&[1; 512]));
        let two = cache.change(2, 0, 512, Some(&[2; 512]));
        cache.force(two);
        cache.flush_all();
        assert_eq!(first(&file), 2);
    }

    #[test]
    fn crash_keeps_some_and_tears_some() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..60 {
            let (mut cache, file) = cache();
            cache.change(1, 0, BLOCK as u64, Some(&[1; BLOCK]));
            cache.change(1, 0, BLOCK as u64, Some(&[2; BLOCK]));
            cache.crash(&mut Rng::new(seed));
            let mut bytes = [0; BLOCK];
            file.read_exact_at(&mut bytes, 0).expect("a block");
            let torn = bytes.iter().any(|byte| *byte != bytes[0]);
            seen.insert(if torn { 9 } else { bytes[0] });
        }
        assert_eq!(seen.len(), 4, "nothing, old, new, torn: {seen:?}");
    }
}
