// SPDX-License-Identifier: BSD-3-Clause
//! What a well-behaved scripted server serves: a disk whose every byte tells its position.

use std::ops::Range;

use super::offer::Request;
use super::wire::{self, DONE, STATE_HOLE, STATE_ZERO, cmd, errno};

/// The part of every disk that reads as zeroes and is reported as a hole.
pub const HOLE: Range<u64> = 512 << 10..768 << 10;

/// The byte that an untouched disk holds at `offset`; never zero outside the hole.
pub fn byte_at(offset: u64) -> u8 {
    if HOLE.contains(&offset) {
        return 0;
    }
    // Multiplying by a large odd number spreads neighbouring offsets over the top bits.
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1
}

/// What an untouched disk holds at `offset..offset + length`.
pub fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset..).take(length).map(byte_at).collect()
}

/// The right data for `offset..offset + length`, as a chunk.
pub fn piece(flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    wire::data(flags, cookie, offset, &pattern(offset, length as usize))
}

/// The pattern, and over it what was written since. Its size costs no memory.
pub struct Disk {
    size: u64,
    written: Vec<(u64, Vec<u8>)>,
}

impl Disk {
    pub fn new(size: u64) -> Self {
        Self {
            size,
            written: Vec::new(),
        }
    }

    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = pattern(offset, length);
        let end = offset + length as u64;
        for (start, content) in &self.written {
            let from = offset.max(*start);
            let to = end.min(start + content.len() as u64);
            if from < to {
                let source = &content[(from - start) as usize..(to - start) as usize];
                bytes[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
        bytes
    }

    /// Carries out `request` and returns the whole reply: chunks for a read or a status query when
    /// `structured`, else a simple reply.
    pub fn answer(&mut self, request: &Request, structured: bool, context: Option<u32>) -> Vec<u8> {
        let Request {
            cookie,
            offset,
            length,
            ..
        } = *request;
        assert!(
            offset
                .checked_add(u64::from(length))
                .is_some_and(|end| end <= self.size),
            "request past the end of the export: {request:?}"
        );
        match request.kind {
            cmd::READ => {
                let bytes = self.read(offset, length as usize);
                match structured {
                    true => wire::data(DONE, cookie, offset, &bytes),
                    false => wire::join(&[&wire::simple(cookie, 0), &bytes]),
                }
            }
            cmd::WRITE => {
                self.written.push((offset, request.payload.clone()));
                wire::simple(cookie, 0)
            }
            cmd::WRITE_ZEROES => {
                self.written.push((offset, vec![0; length as usize]));
                wire::simple(cookie, 0)
            }
            cmd::FLUSH | cmd::TRIM | cmd::CACHE => wire::simple(cookie, 0),
            cmd::BLOCK_STATUS => match context {
                Some(id) => wire::status(DONE, cookie, id, &extents(offset, length)),
                None => panic!("block status without a negotiated context"),
            },
            _ => wire::simple(cookie, errno::EINVAL),
        }
    }
}

/// The allocation of an untouched disk, cut at the end of the request.
pub fn extents(offset: u64, length: u32) -> Vec<(u32, u32)> {
    let end = offset + u64::from(length);
    let mut found = Vec::new();
    for (range, status) in [
        (0..HOLE.start, 0),
        (HOLE, STATE_HOLE | STATE_ZERO),
        (HOLE.end..u64::MAX, 0),
    ] {
        let from = offset.max(range.start);
        let to = end.min(range.end);
        if from < to {
            found.push((
                u32::try_from(to - from).expect("within the request"),
                status,
            ));
        }
    }
    found
}
