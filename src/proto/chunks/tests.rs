// SPDX-License-Identifier: BSD-3-Clause
//! Replies as byte streams: legal ones reassemble, damaged ones never pass for success. They are written down
//! as structured replies; what they lead to is the same with extended headers.

mod properties;
mod wide;

use self::wide::extended;
use super::*;
use crate::proto::codec::Writer;
use crate::proto::consts::STRUCTURED_REPLY_MAGIC;
use crate::proto::reply::{Decoded, decode};
use crate::proto::request::Cookie;

const COOKIE: u64 = 0x0123_4567_89ab_cd03;
const OFFSET: u64 = 1 << 40;

/// What a stream of bytes led to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Complete, with the contents of the buffer afterwards.
    Success(Vec<u8>),
    Failed(WireError),
    Broken(Violation),
    /// The stream ended first.
    Pending,
}

/// Carries out the steps of the reply to `request` over `stream`, in a buffer full of 0xee, and over the same
/// with extended headers.
fn receive(request: Request, stream: &[u8]) -> Outcome {
    let outcome = receive_as(Framing::Structured, request, stream);
    let extended = receive_as(Framing::Extended, request, &extended(stream));
    assert_eq!(outcome, extended, "with extended headers");
    outcome
}

fn receive_as(framing: Framing, request: Request, stream: &[u8]) -> Outcome {
    let mut reply = Reply::new(request, Some(Context::allocation(7)));
    let mut buffer = vec![0xee; request.length as usize];
    match run_as(framing, &mut reply, &mut buffer, stream) {
        Err(violation) => Outcome::Broken(violation),
        Ok(false) => Outcome::Pending,
        Ok(true) => match reply.finish() {
            Ok(_) => Outcome::Success(buffer),
            Err(error) => Outcome::Failed(error),
        },
    }
}

fn run(reply: &mut Reply, buffer: &mut [u8], stream: &[u8]) -> Result<bool, Violation> {
    run_as(Framing::Structured, reply, buffer, stream)
}

fn run_as(
    framing: Framing,
    reply: &mut Reply,
    buffer: &mut [u8],
    stream: &[u8],
) -> Result<bool, Violation> {
    let mut rest = stream;
    loop {
        match reply.step() {
            Step::Done => return Ok(true),
            Step::Header => match decode(rest, framing)? {
                Decoded::Need => return Ok(false),
                Decoded::Header(header, used) => {
                    if header.cookie() != Cookie(COOKIE) {
                        return Err(Violation::Cookie(header.cookie().0));
                    }
                    rest = &rest[used..];
                    reply.begin(header, framing)?;
                }
            },
            Step::Take(n) => {
                assert!(n <= MAX_TAKE);
                let Some((head, tail)) = rest.split_at_checked(n) else {
                    return Ok(false);
                };
                reply.taken(head)?;
                rest = tail;
            }
            Step::Fill { at, len } => {
                let n = rest.len().min(len as usize);
                if n == 0 {
                    return Ok(false);
                }
                buffer[at as usize..][..n].copy_from_slice(&rest[..n]);
                reply.moved(n as u32);
                rest = &rest[n..];
            }
            Step::Zero { at, len } => {
                buffer[at as usize..][..len as usize].fill(0);
                reply.moved(len);
            }
            Step::Skip(n) => {
                let n = rest.len().min(n as usize);
                if n == 0 {
                    return Ok(false);
                }
                reply.moved(n as u32);
                rest = &rest[n..];
            }
        }
    }
}

fn fault(fault: Fault) -> Outcome {
    Outcome::Failed(fault.into())
}

fn chunk(kind: ChunkType, last: bool, payload: &[u8]) -> Vec<u8> {
    Writer::default()
        .u32(STRUCTURED_REPLY_MAGIC)
        .u16(u16::from(last))
        .u16(kind.0)
        .u64(COOKIE)
        .u32(payload.len() as u32)
        .bytes(payload)
        .finish()
}

fn data(at: usize, bytes: &[u8], last: bool) -> Vec<u8> {
    let payload = Writer::default()
        .u64(OFFSET + at as u64)
        .bytes(bytes)
        .finish();
    chunk(ChunkType::OFFSET_DATA, last, &payload)
}

fn hole(at: usize, len: usize, last: bool) -> Vec<u8> {
    let payload = Writer::default()
        .u64(OFFSET + at as u64)
        .u32(len as u32)
        .finish();
    chunk(ChunkType::OFFSET_HOLE, last, &payload)
}

fn none() -> Vec<u8> {
    chunk(ChunkType::NONE, true, &[])
}

fn error(errno: u32, text: &[u8], last: bool) -> Vec<u8> {
    let payload = Writer::default()
        .u32(errno)
        .u16(text.len() as u16)
        .bytes(text)
        .finish();
    chunk(ChunkType::ERROR, last, &payload)
}

fn read(length: usize) -> Request {
    Request::new(Command::READ, OFFSET, length as u32)
}

fn status_request() -> Request {
    Request::new(Command::BLOCK_STATUS, OFFSET, 1_u64 << 20)
}

fn status(context: u32, descriptors: &[(u32, u32)], last: bool) -> Vec<u8> {
    let payload = descriptors
        .iter()
        .fold(Writer::default().u32(context), |w, (length, status)| {
            w.u32(*length).u32(*status)
        });
    chunk(ChunkType::BLOCK_STATUS, last, &payload.finish())
}

#[test]
fn a_gap_is_a_failed_read() {
    let stream = [data(0, &[1; 10], false), data(11, &[1; 9], true)].concat();
    assert_eq!(
        receive(read(20), &stream),
        Outcome::Failed(WireError::Incomplete {
            got: 19,
            wanted: 20
        })
    );
}

#[test]
fn an_overlap_whose_sum_is_right_is_a_failed_read() {
    let stream = [data(0, &[1; 10], false), hole(9, 10, true)].concat();
    assert_eq!(
        receive(read(20), &stream),
        fault(Fault::Overlap(OFFSET + 9))
    );
}

#[test]
fn not_a_byte_of_a_misplaced_chunk_is_copied() {
    for (misplaced, at) in [
        (data(5, &[2; 10], false), 0),
        (data(15, &[2; 10], false), 10),
    ] {
        let stream = [data(at, &[1; 10], false), misplaced, none()].concat();
        let mut reply = Reply::new(read(20), None);
        let mut buffer = vec![0xee; 20];
        assert_eq!(run(&mut reply, &mut buffer, &stream), Ok(true));
        assert!(reply.finish().is_err());
        assert_eq!(buffer.iter().filter(|byte| **byte == 1).count(), 10);
        assert!(!buffer.contains(&2));
    }
}

#[test]
fn success_without_any_data_is_a_failed_read() {
    assert_eq!(
        receive(read(20), &none()),
        Outcome::Failed(WireError::Incomplete { got: 0, wanted: 20 })
    );
}

#[test]
fn ranges_outside_the_request_are_failed_reads() {
    for (offset, len) in [
        (OFFSET - 1, 5),
        (OFFSET + 16, 5),
        (OFFSET + 20, 1),
        (0, 5),
        (u64::MAX - 1, 5),
    ] {
        let payload = Writer::default().u64(offset).bytes(&vec![1; len]).finish();
        let stream = chunk(ChunkType::OFFSET_DATA, true, &payload);
        assert!(matches!(
            receive(read(20), &stream),
            Outcome::Failed(WireError::Malformed(Fault::OutOfRange { .. }))
        ));
    }
}

#[test]
fn the_first_error_counts_and_the_reply_goes_on() {
    let stream = [
        error(28, b"full", false),
        data(0, &[1; 20], false),
        error(5, b"", true),
    ]
    .concat();
    assert_eq!(
        receive(read(20), &stream),
        Outcome::Failed(WireError::Server {
            errno: NbdErrno::ENOSPC,
            text: "full".to_owned()
        })
    );
}

#[test]
fn error_number_zero_is_still_an_error() {
    let outcome = receive(read(20), &error(0, b"", true));
    assert!(matches!(outcome, Outcome::Failed(error) if error.errno() == libc::EIO));
}

#[test]
fn an_error_counts_although_its_text_has_a_wrong_length() {
    let payload = |text: u16| {
        Writer::default()
            .u32(28)
            .u16(text)
            .bytes(b"full\0")
            .finish()
    };
    // The second one is what nbd-server 3.25 sends: 5 with its bytes swapped.
    for (length, text) in [(6, "full"), (5 << 8, "full"), (u16::MAX, "full"), (2, "fu")] {
        let stream = chunk(ChunkType::ERROR, true, &payload(length));
        assert_eq!(
            receive(read(20), &stream),
            Outcome::Failed(WireError::server(NbdErrno::ENOSPC, text.as_bytes())),
            "{length}"
        );
    }
    // What should be an offset is never taken for text.
    let stream = chunk(ChunkType::ERROR_OFFSET, true, &payload(5));
    assert_eq!(
        receive(read(20), &stream),
        Outcome::Failed(WireError::server(NbdErrno::ENOSPC, b""))
    );
}

#[test]
fn an_error_too_short_for_a_number_is_still_an_error() {
    for length in 0..6 {
        let stream = chunk(ChunkType::ERROR, true, &vec![0; length]);
        let length = length as u32;
        let chunk = ChunkType::ERROR;
        assert_eq!(
            receive(read(20), &stream),
            fault(Fault::Length { chunk, length })
        );
    }
}

#[test]
fn a_long_error_text_is_cut() {
    let outcome = receive(read(20), &error(5, &[b'x'; 5000], true));
    let Outcome::Failed(WireError::Server { text, .. }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(text, "x".repeat(200) + "...");
}

#[test]
fn an_unknown_error_chunk_fails_the_request_only() {
    let payload = Writer::default().u32(1).u16(0).bytes(&[0xff; 30]).finish();
    let outcome = receive(read(20), &chunk(ChunkType(0xffff), true, &payload));
    assert!(matches!(outcome, Outcome::Failed(error) if error.errno() == libc::EPERM));
}

#[test]
fn status_of_our_context_is_kept_and_of_others_skipped() {
    let stream = [
        status(9, &[(1, 1)], false),
        status(7, &[(4096, 3), (8192, 0xffff_fffc)], true),
    ]
    .concat();
    let mut reply = Reply::new(status_request(), Some(Context::allocation(7)));
    assert_eq!(run(&mut reply, &mut [], &stream), Ok(true));
    let descriptors = reply.finish().expect("status");
    assert_eq!(descriptors.len(), 2);
    assert_eq!(descriptors[0].status, Allocation::all());
    assert_eq!(
        descriptors[1].status,
        Allocation::empty(),
        "unknown bits are masked"
    );
}

/// What becomes of a status query for 100 bytes that is answered with these descriptors.
fn described(flags: CommandFlags, descriptors: &[(u32, u32)]) -> Result<Vec<u64>, WireError> {
    let request = Request::new(Command::BLOCK_STATUS, OFFSET, 100_u32).with(flags);
    let stream = status(7, descriptors, true);
    let kept = |framing, stream: &[u8]| {
        let mut reply = Reply::new(request, Some(Context::allocation(7)));
        assert_eq!(run_as(framing, &mut reply, &mut [], stream), Ok(true));
        reply.finish()
    };
    let kept_wide = kept(Framing::Extended, &extended(&stream));
    let kept = kept(Framing::Structured, &stream);
    assert_eq!(kept, kept_wide);
    Ok(kept?.iter().map(|descriptor| descriptor.length).collect())
}

#[test]
fn no_more_descriptors_are_kept_than_the_answer_needs() {
    const ALL: CommandFlags = CommandFlags::empty();
    assert_eq!(
        described(ALL, &[(40, 0), (70, 3), (1, 0), (1, 3)]),
        Ok(vec![40, 70])
    );
    assert_eq!(
        described(ALL, &[(40, 0), (60, 3), (1, 0)]),
        Ok(vec![40, 60])
    );
    assert_eq!(
        described(ALL, &[(u32::MAX, 0), (1, 3)]),
        Ok(vec![u32::MAX.into()])
    );
    assert_eq!(
        described(ALL, &[(40, 0), (10, 3)]),
        Ok(vec![40, 10]),
        "a short answer"
    );
    assert_eq!(
        described(CommandFlags::REQ_ONE, &[(40, 0), (70, 3)]),
        Ok(vec![40])
    );
}

#[test]
fn a_descriptor_of_no_length_is_skipped_where_others_suffice() {
    const ALL: CommandFlags = CommandFlags::empty();
    let empty = || Err(WireError::Malformed(Fault::EmptyDescriptor));
    assert_eq!(described(ALL, &[(0, 3), (100, 0)]), Ok(vec![100]));
    assert_eq!(
        described(ALL, &[(40, 3), (0, 0), (60, 3)]),
        Ok(vec![40, 60])
    );
    assert_eq!(described(ALL, &[(100, 3), (0, 0)]), Ok(vec![100]));
    assert_eq!(described(ALL, &[(0, 3)]), empty());
    assert_eq!(described(ALL, &[(40, 3), (0, 0)]), empty());
    assert_eq!(
        described(CommandFlags::REQ_ONE, &[(0, 0), (40, 3)]),
        Ok(vec![40])
    );
    assert_eq!(described(CommandFlags::REQ_ONE, &[(0, 0)]), empty());
}

#[test]
fn a_context_that_answers_twice_fails_the_query() {
    let once = |last| status(7, &[(1 << 20, 0)], last);
    assert_eq!(
        receive(status_request(), &[once(false), once(true)].concat()),
        fault(Fault::RepeatedContext(7))
    );
}

#[test]
fn success_without_a_status_is_a_failed_query() {
    for stream in [none(), status(7, &[], true), status(9, &[(1, 0)], true)] {
        assert_eq!(
            receive(status_request(), &stream),
            Outcome::Failed(WireError::NoStatus)
        );
    }
}

#[test]
fn more_descriptors_than_anybody_needs_are_forgotten() {
    let mut reply = Reply::new(status_request(), Some(Context::allocation(7)));
    let many = vec![(1, 0); MAX_DESCRIPTORS + 1];
    assert_eq!(run(&mut reply, &mut [], &status(7, &many, true)), Ok(true));
    assert_eq!(reply.finish().map(|d| d.len()), Ok(MAX_DESCRIPTORS));
}

#[test]
fn content_for_a_command_that_has_none_fails_the_request() {
    for command in [Command::WRITE, Command::FLUSH, Command::BLOCK_STATUS] {
        let request = Request::new(command, OFFSET, 20_u32);
        assert_eq!(
            receive(request, &data(0, &[1; 20], true)),
            fault(Fault::Chunk(ChunkType::OFFSET_DATA))
        );
    }
}

#[test]
fn none_ends_a_reply_with_its_flag_or_without() {
    let flagless = chunk(ChunkType::NONE, false, &[]);
    for stream in [
        flagless.clone(),
        [data(0, &[1; 20], false), flagless].concat(),
    ] {
        assert_eq!(receive(read(20), &stream), fault(Fault::NotDone));
    }
    let length = 3;
    let chunk = chunk(ChunkType::NONE, true, &[0; 3]);
    let fault = fault(Fault::Length {
        chunk: ChunkType::NONE,
        length,
    });
    assert_eq!(
        receive(read(20), &[data(0, &[1; 20], false), chunk].concat()),
        fault
    );
}

#[test]
fn a_simple_reply_to_a_structured_read_may_only_be_an_error() {
    let simple = |error| Header::Simple {
        cookie: Cookie(COOKIE),
        error,
    };
    let mut reply = Reply::new(read(20), None);
    assert_eq!(
        reply.begin(simple(Some(NbdErrno::ENOSPC)), Framing::Structured),
        Ok(())
    );
    assert_eq!(reply.step(), Step::Done);
    assert_eq!(
        reply.finish(),
        Err(WireError::server(NbdErrno::ENOSPC, b""))
    );

    let mut reply = Reply::new(read(20), None);
    assert_eq!(
        reply.begin(simple(None), Framing::Structured),
        Err(Violation::SimpleRead)
    );
}

#[test]
fn a_chunk_longer_than_any_is_not_waited_for() {
    let compact = |length| Header::Chunk {
        cookie: Cookie(COOKIE),
        flags: ChunkFlags::DONE,
        kind: ChunkType(3),
        length,
    };
    let wide = |length| Header::Extended {
        cookie: Cookie(COOKIE),
        flags: ChunkFlags::DONE,
        kind: ChunkType(3),
        offset: OFFSET,
        length,
    };
    let most = (32 << 20) + 8;
    let begin = |request, length: u32| {
        let compact = Reply::new(request, None).begin(compact(length), Framing::Structured);
        let wide = Reply::new(request, None).begin(wide(length.into()), Framing::Extended);
        assert_eq!(compact, wide);
        compact
    };
    assert_eq!(begin(read(20), most), Ok(()));
    assert!(matches!(
        begin(read(20), most + 1),
        Err(Violation::ChunkLength { .. })
    ));
    // Reads above 32 MiB happen where the server allows them.
    assert_eq!(begin(read(64 << 20), (64 << 20) + 8), Ok(()));
    assert!(begin(read(64 << 20), (64 << 20) + 9).is_err());
    for length in [1 << 32, (1 << 32) + 28, 1 << 63, u64::MAX] {
        let expected = Violation::ChunkLength {
            command: Command::READ,
            chunk: ChunkType(3),
            length,
        };
        let begun = Reply::new(read(20), None).begin(wide(length), Framing::Extended);
        assert_eq!(begun, Err(expected));
    }
}

#[test]
fn chunks_that_are_no_answer_come_to_an_end() {
    let idle = [
        chunk(ChunkType(3), false, &[0; 1000]),
        chunk(ChunkType::OFFSET_HOLE, false, &[0; 1000]),
        error(5, &[b'x'; 1000], false),
        data(900, &[1; 1000], false),
    ];
    for chunk in idle {
        let mut reply = Reply::new(read(1000), Some(Context::allocation(7)));
        let many = chunk.repeat(100);
        let end = (0..1000).find_map(|_| run(&mut reply, &mut [0; 1000], &many).err());
        assert_eq!(end, Some(Violation::Endless(Command::READ)));
    }
}
