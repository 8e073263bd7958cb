// SPDX-License-Identifier: BSD-3-Clause
//! The reply machine before a stream that says anything: every byte goes into the buffer, a read that succeeds is
//! answered byte for byte, and once each.

use nbdkit_nbd_plugin::proto::chunks::{MAX_TAKE, Reply, Step};
use nbdkit_nbd_plugin::proto::consts::{Command, CommandFlags};
use nbdkit_nbd_plugin::proto::context::Context;
use nbdkit_nbd_plugin::proto::framing::Framing;
use nbdkit_nbd_plugin::proto::reply::{Decoded, MAX_HEADER_LENGTH, decode};
use nbdkit_nbd_plugin::proto::request::{Cookie, Request};

use super::bytes::Bytes;

const SIMPLE: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;
const EXTENDED: u32 = 0x6e8a_278c;
const COMMANDS: [Command; 8] = [
    Command::READ,
    Command::READ,
    Command::READ,
    Command::BLOCK_STATUS,
    Command::BLOCK_STATUS,
    Command::WRITE,
    Command::FLUSH,
    Command::TRIM,
];
const CHUNKS: [u16; 9] = [0, 1, 1, 1, 2, 5, 0x8001, 0x8002, 77];
const CONTEXT: u32 = 7;

const FRAMINGS: [Framing; 4] = [
    Framing::Simple,
    Framing::Structured,
    Framing::Structured,
    Framing::Extended,
];

/// One message of a server that knows what was asked, in part made up.
fn message(bytes: &mut Bytes<'_>, framing: Framing, request: Request, cookie: u64) -> Vec<u8> {
    match (bytes.u8(), framing) {
        (0..=2, _) => bytes.take(24).to_vec(),
        (_, Framing::Simple) | (3..=12, Framing::Structured) => {
            let error = match bytes.below(3) {
                0 => bytes.u32(),
                _ => 0,
            };
            let mut message = [
                &SIMPLE.to_be_bytes()[..],
                &error.to_be_bytes(),
                &cookie.to_be_bytes(),
            ]
            .concat();
            if error == 0 && request.command == Command::READ {
                message.extend((0..request.length as u32).map(byte_at));
            }
            message
        }
        (_, Framing::Structured | Framing::Extended) => chunk(bytes, framing, request, cookie),
    }
}

/// What a server that is right has at this place of the request.
fn byte_at(at: u32) -> u8 {
    (at % 251) as u8 + 1
}

fn chunk(bytes: &mut Bytes<'_>, framing: Framing, request: Request, cookie: u64) -> Vec<u8> {
    let asked = request.length as u32;
    let kind = match (request.command, bytes.u8()) {
        (Command::READ, 0..=180) => bytes.one_of(&[1, 1, 1, 2]),
        (Command::BLOCK_STATUS, 0..=180) if framing == Framing::Extended => 6,
        (Command::BLOCK_STATUS, 0..=180) => 5,
        _ => bytes.one_of(&CHUNKS),
    };
    let flags = match bytes.u8() {
        0 => bytes.u16(),
        flags => u16::from(flags & 1),
    };
    let most = u64::from(asked.max(1));
    let at = bytes.below(most) as u32;
    let length = (bytes.below(most) as u32 + 1)
        .min(asked.saturating_sub(at))
        .max(1);
    let offset = match bytes.u8() {
        0 => bytes.u64(),
        _ => request.offset.saturating_add(u64::from(at)),
    };
    let payload = match kind {
        1 => {
            let mut payload = offset.to_be_bytes().to_vec();
            payload.extend((at..at + length).map(byte_at));
            payload
        }
        2 => [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat(),
        5 => {
            let mut payload = bytes
                .one_of(&[CONTEXT, CONTEXT, CONTEXT, 8])
                .to_be_bytes()
                .to_vec();
            for _ in 0..bytes.below(6) {
                payload.extend((bytes.u16() as u32 * bytes.one_of(&[1, 512, 65537])).to_be_bytes());
                payload.extend(bytes.u8().to_be_bytes().map(u32::from)[0].to_be_bytes());
            }
            payload
        }
        6 => {
            let count = bytes.below(6) as u32;
            let told = if bytes.u8() == 0 { bytes.u32() } else { count };
            let context = bytes.one_of(&[CONTEXT, CONTEXT, CONTEXT, 8]);
            let mut payload = [context.to_be_bytes(), told.to_be_bytes()].concat();
            for _ in 0..count {
                let unit = bytes.one_of(&[1, 512, 65537, 1 << 40, u64::MAX]);
                payload.extend(u64::from(bytes.u16()).wrapping_mul(unit).to_be_bytes());
                payload.extend(u64::from(bytes.u8()).to_be_bytes());
            }
            payload
        }
        0 => Vec::new(),
        _ => {
            let length = bytes.below(40) as usize;
            bytes.take(length).to_vec()
        }
    };
    let length = match bytes.u8() {
        0 => bytes.u32(),
        _ => payload.len() as u32,
    };
    if framing == Framing::Extended {
        let echoed = if bytes.u8() == 0 {
            bytes.u64()
        } else {
            request.offset
        };
        return [
            &EXTENDED.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &echoed.to_be_bytes(),
            &u64::from(length).to_be_bytes(),
            &payload,
        ]
        .concat();
    }
    [
        &CHUNK.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
        &payload,
    ]
    .concat()
}

/// The stream, and where it stands.
struct Stream<'a> {
    bytes: Bytes<'a>,
    framing: Framing,
    request: Request,
    cookie: u64,
    ready: Vec<u8>,
}

impl Stream<'_> {
    /// Up to so many bytes, or none when it is over.
    fn fill(&mut self, count: usize) -> bool {
        while self.ready.len() < count && !self.bytes.is_over() {
            let said = message(&mut self.bytes, self.framing, self.request, self.cookie);
            self.ready.extend(said);
        }
        self.ready.len() >= count
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        self.ready.drain(..count).collect()
    }
}

pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let framing = bytes.one_of(&FRAMINGS);
    let command = bytes.one_of(&COMMANDS);
    let length = match command {
        Command::FLUSH => 0,
        _ => bytes.one_of(&[1, 2, 511, 512, 4096, 9000]),
    };
    let offset = bytes.one_of(&[0, 512, 1 << 40, (1 << 63) - 9000]);
    let flags = bytes.one_of(&[CommandFlags::empty(), CommandFlags::REQ_ONE]);
    let flags = match command {
        Command::BLOCK_STATUS => flags,
        _ => CommandFlags::empty(),
    };
    let request = Request::new(command, offset, length as u32).with(flags);
    let cookie = bytes.u64();
    let mut stream = Stream {
        bytes,
        framing,
        request,
        cookie,
        ready: Vec::new(),
    };
    drive(&mut stream, data.len());
}

fn drive(stream: &mut Stream<'_>, input: usize) {
    let framing = stream.framing;
    let request = stream.request;
    let mut reply = Reply::new(request, Some(Context::allocation(CONTEXT)));
    // How often each byte was answered, and with what.
    let mut answered = vec![0u8; request.length as usize];
    let mut buffer = vec![0xee_u8; request.length as usize];
    for _ in 0..2000 + 600 * input {
        match reply.step() {
            Step::Header => {
                stream.fill(MAX_HEADER_LENGTH);
                match decode(&stream.ready, framing) {
                    Ok(Decoded::Header(header, used)) => {
                        assert!(used <= stream.ready.len());
                        let _ = header.to_string();
                        stream.take(used);
                        if header.cookie() != Cookie(stream.cookie) {
                            return;
                        }
                        if reply.begin(header, framing).is_err() {
                            return;
                        }
                    }
                    Ok(Decoded::Need) | Err(_) => return,
                }
            }
            Step::Take(count) => {
                assert!(count > 0 && count <= MAX_TAKE);
                if !stream.fill(count) || reply.taken(&stream.take(count)).is_err() {
                    return;
                }
            }
            Step::Fill { at, len } | Step::Zero { at, len } => {
                assert!(
                    len > 0
                        && at
                            .checked_add(len)
                            .is_some_and(|end| u64::from(end) <= request.length)
                );
                let zero = matches!(reply.step(), Step::Zero { .. });
                // In two halves, as a socket might give it.
                let now = len.div_ceil(2);
                if !zero && !stream.fill(now as usize) {
                    return;
                }
                let range = at as usize..(at + now) as usize;
                match zero {
                    true => buffer[range.clone()].fill(0),
                    false => buffer[range.clone()].copy_from_slice(&stream.take(now as usize)),
                }
                for times in &mut answered[range] {
                    *times += 1;
                    assert_eq!(*times, 1, "answered twice: {at} and {now} more");
                }
                reply.moved(now);
            }
            Step::Skip(count) => {
                assert!(count > 0);
                let now = count.min(1000);
                if !stream.fill(now as usize) {
                    return;
                }
                stream.take(now as usize);
                reply.moved(now);
            }
            Step::Done => return end(reply, request, &answered),
        }
    }
    panic!("a reply without end");
}

fn end(reply: Reply, request: Request, answered: &[u8]) {
    match (reply.finish(), request.command) {
        (Ok(extents), Command::BLOCK_STATUS) => {
            assert!(!extents.is_empty());
            assert!(extents.iter().all(|extent| extent.length > 0));
        }
        (Ok(extents), Command::READ) => {
            assert!(extents.is_empty());
            assert!(answered.iter().all(|times| *times == 1), "not answered");
        }
        (Ok(extents), _) => assert!(extents.is_empty()),
        (Err(error), _) => {
            let said = error.to_string();
            assert!(!said.chars().any(char::is_control), "{said:?}");
            assert!(error.errno() > 0);
        }
    }
}
