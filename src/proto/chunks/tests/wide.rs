// SPDX-License-Identifier: BSD-3-Clause
//! Replies with extended headers: how they are made of structured ones, and what only they can say.

use super::*;
use crate::proto::consts::EXTENDED_REPLY_MAGIC;
use crate::proto::context::Meaning;
use proptest::prelude::*;

/// A stream of structured chunks, the last of which may be cut, with extended headers instead, and the
/// descriptors that go with them.
pub fn extended(stream: &[u8]) -> Vec<u8> {
    let mut reader = Reader::new(stream);
    let mut wide = Writer::default();
    while let Some(header) = reader.bytes(20) {
        let mut header = Reader::new(header);
        assert_eq!(header.u32(), Some(STRUCTURED_REPLY_MAGIC));
        let flags = header.u16().expect("flags");
        let kind = ChunkType(header.u16().expect("type"));
        let cookie = header.u64().expect("cookie");
        let length = header.u32().expect("length") as usize;
        let payload = match reader.bytes(length) {
            Some(payload) => payload,
            None => reader.bytes(reader.rest().len()).expect("the rest"),
        };
        let status = kind == ChunkType::BLOCK_STATUS && length % 8 == 4;
        let (kind, length, payload) = match status {
            true => {
                let payload = wider(payload);
                (ChunkType::BLOCK_STATUS_EXT, payload.len(), payload)
            }
            false => (kind, length, payload.to_vec()),
        };
        wide = wide
            .u32(EXTENDED_REPLY_MAGIC)
            .u16(flags)
            .u16(kind.0)
            .u64(cookie)
            .u64(OFFSET)
            .u64(length as u64)
            .bytes(&payload);
    }
    wide.bytes(reader.rest()).finish()
}

/// The payload of a `NBD_REPLY_TYPE_BLOCK_STATUS`, as `NBD_REPLY_TYPE_BLOCK_STATUS_EXT` has it.
fn wider(payload: &[u8]) -> Vec<u8> {
    let mut reader = Reader::new(payload);
    let context = reader.u32().expect("an id");
    let count = (payload.len() as u32 - 4) / 8;
    let mut wide = Writer::default().u32(context).u32(count);
    while let Some(field) = reader.u32() {
        wide = wide.u64(field.into());
    }
    wide.finish()
}

#[test]
fn a_reply_about_another_offset_is_nobodys() {
    for offset in [0, OFFSET - 1, OFFSET + 1, u64::MAX] {
        let header = Header::Extended {
            cookie: Cookie(COOKIE),
            flags: ChunkFlags::DONE,
            kind: ChunkType::OFFSET_DATA,
            offset,
            length: 28,
        };
        let expected = Violation::Offset {
            command: Command::READ,
            wanted: OFFSET,
            got: offset,
        };
        let begun = Reply::new(read(20), None).begin(header, Framing::Extended);
        assert_eq!(begun, Err(expected));
    }
}

/// One extended chunk of status with this payload.
fn wide_status(kind: ChunkType, payload: Writer) -> Vec<u8> {
    let payload = payload.finish();
    Writer::default()
        .u32(EXTENDED_REPLY_MAGIC)
        .u16(1)
        .u16(kind.0)
        .u64(COOKIE)
        .u64(OFFSET)
        .u64(payload.len() as u64)
        .bytes(&payload)
        .finish()
}

#[test]
fn extended_descriptors_are_as_wide_as_they_are_sent() {
    let payload = Writer::default().u32(7).u32(3);
    let payload = payload.u64(5 << 32).u64(1).u64(1 << 32).u64(2);
    let payload = payload.u64(u64::MAX).u64(0xffff_ffff_0000_0003);
    let stream = wide_status(ChunkType::BLOCK_STATUS_EXT, payload);
    let request = Request::new(Command::BLOCK_STATUS, OFFSET, 16_u64 << 30);
    let mut reply = Reply::new(request, Some(Context::allocation(7)));
    let done = run_as(Framing::Extended, &mut reply, &mut [], &stream);
    assert_eq!(done, Ok(true));
    let descriptor = |length, status| Descriptor { length, status };
    assert_eq!(
        reply.finish(),
        Ok(vec![descriptor(5 << 32, Allocation::HOLE)]),
        "what covers the query is enough"
    );

    let request = Request::new(Command::BLOCK_STATUS, OFFSET, u64::MAX - OFFSET);
    let mut reply = Reply::new(request, Some(Context::allocation(7)));
    let done = run_as(Framing::Extended, &mut reply, &mut [], &stream);
    assert_eq!(done, Ok(true));
    let all = vec![
        descriptor(5 << 32, Allocation::HOLE),
        descriptor(1 << 32, Allocation::ZERO),
        descriptor(u64::MAX, Allocation::all()),
    ];
    assert_eq!(reply.finish(), Ok(all), "the sum is more than 64 bits");
}

/// A depth of a backing chain has 64 bits there, and is not taken for another without the upper half.
#[test]
fn what_a_context_says_is_as_wide_as_it_is_sent() {
    let payload = Writer::default().u32(7).u32(3);
    let payload = payload.u64(1).u64(1).u64(1).u64(1 << 32 | 1);
    let payload = payload.u64(1 << 40).u64(0);
    let stream = wide_status(ChunkType::BLOCK_STATUS_EXT, payload);
    let request = Request::new(Command::BLOCK_STATUS, OFFSET, 1_u64 << 40);
    let context = Context {
        id: 7,
        meaning: Meaning::Depth,
    };
    let mut reply = Reply::new(request, Some(context));
    let done = run_as(Framing::Extended, &mut reply, &mut [], &stream);
    assert_eq!(done, Ok(true));
    let clean = Allocation::HOLE | Allocation::ZERO;
    let all = [(1, Allocation::empty()), (1, clean), (1 << 40, clean)];
    let all = all.map(|(length, status)| Descriptor { length, status });
    assert_eq!(reply.finish(), Ok(all.to_vec()));
}

#[test]
fn extended_descriptors_are_as_many_as_they_are_said_to_be() {
    let query = |payload: Writer| {
        let stream = wide_status(ChunkType::BLOCK_STATUS_EXT, payload);
        receive_as(Framing::Extended, status_request(), &stream)
    };
    let one = |count: u32| Writer::default().u32(7).u32(count).u64(1 << 20).u64(0);
    assert!(matches!(query(one(1)), Outcome::Success(_)));
    for told in [0, 2, 1 << 28, u32::MAX] {
        assert_eq!(query(one(told)), fault(Fault::Count { told, room: 1 }));
    }
    let chunk = ChunkType::BLOCK_STATUS_EXT;
    for length in [0, 4, 7, 9, 12, 16, 20, 23, 25] {
        let payload = Writer::default().bytes(&vec![0; length as usize]);
        assert_eq!(query(payload), fault(Fault::Length { chunk, length }));
    }
    let none = Outcome::Failed(WireError::NoStatus);
    assert_eq!(query(Writer::default().u32(7).u32(0)), none);
}

#[test]
fn each_framing_has_a_status_chunk_of_its_own() {
    let payload = Writer::default().u32(7).u32(1 << 20).u32(0);
    let stream = wide_status(ChunkType::BLOCK_STATUS, payload);
    assert_eq!(
        receive_as(Framing::Extended, status_request(), &stream),
        fault(Fault::Chunk(ChunkType::BLOCK_STATUS))
    );
    let payload = Writer::default().u32(7).u32(1).u64(1 << 20).u64(0).finish();
    let stream = chunk(ChunkType::BLOCK_STATUS_EXT, true, &payload);
    assert_eq!(
        receive_as(Framing::Structured, status_request(), &stream),
        fault(Fault::Chunk(ChunkType::BLOCK_STATUS_EXT))
    );
}

proptest! {
    /// Random descriptors behind a good header, and the first fields of the payload right.
    #[test]
    fn random_descriptors_are_survived(count in 0u32..5, fields in prop::collection::vec(any::<u64>(), 0..10)) {
        let payload = Writer::default().u32(7).u32(count);
        let payload = fields.iter().fold(payload, |payload, field| payload.u64(*field));
        let stream = wide_status(ChunkType::BLOCK_STATUS_EXT, payload);
        let mut reply = Reply::new(status_request(), Some(Context::allocation(7)));
        prop_assert_eq!(run_as(Framing::Extended, &mut reply, &mut [], &stream), Ok(true));
        let fits = fields.len() == 2 * count as usize;
        let descriptors = reply.finish().unwrap_or_default();
        prop_assert!(descriptors.is_empty() || fits);
        prop_assert!(descriptors.iter().all(|descriptor| descriptor.length > 0));
        // The last one alone may pass the end of the query.
        if let Some((_, before)) = descriptors.split_last() {
            let sum: u64 = before.iter().map(|descriptor| descriptor.length).sum();
            prop_assert!(sum < 1 << 20);
        }
    }
}
