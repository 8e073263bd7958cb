// SPDX-License-Identifier: BSD-3-Clause
//! The handshake machine before a server that says anything: it asks for little, ends with the input, and what it then
//! has is in order.

use nbdkit_nbd_plugin::proto::consts::{MAX_EXPORT_SIZE, OptionType};
use nbdkit_nbd_plugin::proto::handshake::{Goal, Handshake, Outcome, Step, TlsPolicy};
use nbdkit_nbd_plugin::proto::name::ExportName;

use super::bytes::Bytes;

/// The most that a step may ask for.
const MOST: usize = 64 << 10;
const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Replies that servers have, and one that none has.
const REPLIES: [u32; 13] = [
    1,
    2,
    3,
    4,
    1,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_000a,
    0x1234,
];

fn goal(bytes: &mut Bytes<'_>) -> Goal {
    let name = match bytes.below(3) {
        0 => ExportName::default(),
        1 => ExportName::new("disk").unwrap_or_default(),
        _ => ExportName::new(vec![b'x'; 4096]).unwrap_or_default(),
    };
    let goal = match bytes.below(5) {
        0 => Goal::list(),
        1 => Goal::describe_default(),
        2 => Goal::question(OptionType(u32::from(bytes.u8() & 15)), &name),
        _ => Goal::open(&name),
    };
    let policies = [
        TlsPolicy::Off,
        TlsPolicy::Off,
        TlsPolicy::Allow,
        TlsPolicy::Require,
    ];
    goal.with_tls(bytes.one_of(&policies))
}

/// A server that says what one could say at this point, or else anything.
struct Server<'a> {
    bytes: Bytes<'a>,
    /// Said and not taken yet.
    ready: Vec<u8>,
    /// The option that was asked last.
    asked: u32,
    greeted: bool,
}

impl Server<'_> {
    fn heard(&mut self, sent: &[u8]) {
        if let Some(at) = sent
            .windows(8)
            .rposition(|eight| eight == IHAVEOPT.to_be_bytes())
        {
            let option = sent.get(at + 8..at + 12);
            self.asked =
                option.map_or(0, |four| u32::from_be_bytes(four.try_into().expect("four")));
        }
    }

    fn say(&mut self) {
        let said = match (self.bytes.u8(), self.greeted) {
            (0..=3, _) => {
                let length = self.bytes.below(200) as usize + 1;
                self.bytes.take(length).to_vec()
            }
            (_, false) => {
                self.greeted = true;
                match self.bytes.u8() {
                    0..=40 => {
                        let (size, flags) = (self.bytes.u64(), self.bytes.u32());
                        [
                            &NBDMAGIC.to_be_bytes()[..],
                            &OLDSTYLE.to_be_bytes(),
                            &size.to_be_bytes(),
                            &flags.to_be_bytes(),
                            &[0; 124],
                        ]
                        .concat()
                    }
                    flags => [
                        &NBDMAGIC.to_be_bytes()[..],
                        &IHAVEOPT.to_be_bytes(),
                        &u16::from(flags & 3).to_be_bytes(),
                    ]
                    .concat(),
                }
            }
            // The answer to NBD_OPT_EXPORT_NAME has no header.
            (_, true) if self.asked == 1 => {
                let mut answer = self.bytes.array::<10>().to_vec();
                answer.extend([0; 124]);
                answer
            }
            (how, true) => self.reply(how),
        };
        self.ready.extend(said);
    }

    fn reply(&mut self, how: u8) -> Vec<u8> {
        let kind = self.bytes.one_of(&REPLIES);
        let payload = match (kind, how & 1) {
            (1, 0) => Vec::new(),
            (3, 0) => match self.bytes.below(5) {
                0 => [&[0, 0][..], &self.bytes.array::<10>()].concat(),
                1 => [&[0, 3][..], &self.bytes.array::<12>()].concat(),
                2 => [&[0, 1][..], b"disk"].concat(),
                3 => [&[0, 2][..], b"a disk"].concat(),
                _ => [&[0, 9][..], b"?"].concat(),
            },
            (4, 0) => [&self.bytes.array::<4>()[..], b"base:allocation"].concat(),
            (2, 0) => [&[0, 0, 0, 4][..], b"disk", b"text"].concat(),
            _ => {
                let length = self.bytes.below(64) as usize;
                self.bytes.take(length).to_vec()
            }
        };
        let length = match self.bytes.u8() {
            0 => self.bytes.u32(),
            _ => payload.len() as u32,
        };
        let asked = match self.bytes.u8() {
            0 => self.bytes.u32(),
            _ => self.asked,
        };
        [
            &OPTION_REPLY.to_be_bytes()[..],
            &asked.to_be_bytes(),
            &kind.to_be_bytes(),
            &length.to_be_bytes(),
            &payload,
        ]
        .concat()
    }

    /// So many bytes, or `None` when it has nothing more to say.
    fn give(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.ready.len() < count {
            if self.bytes.is_over() {
                return None;
            }
            self.say();
        }
        Some(self.ready.drain(..count).collect())
    }
}

fn check(outcome: &Outcome) {
    match outcome {
        Outcome::Export(export) => {
            assert!(export.size <= MAX_EXPORT_SIZE);
            assert!(export.minimum_block().is_power_of_two());
            assert!(export.maximum_payload() >= export.minimum_block());
        }
        Outcome::Listing(listed) => {
            for entry in listed {
                // Data, which is passed on as it is, to where strings end with a NUL.
                assert!(entry.description.len() <= 4096);
                assert!(!entry.description.contains('\0'));
            }
        }
        Outcome::Contexts(names) => {
            assert!(names.len() <= 1024);
            assert!(names.iter().all(|name| name.len() <= 4096));
        }
        Outcome::Described(_) | Outcome::Agreed | Outcome::NoOptions => (),
    }
}

pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut goals = vec![goal(&mut bytes), goal(&mut bytes)];
    let mut machine = Handshake::new(goals.remove(0));
    let mut server = Server {
        bytes,
        ready: Vec::new(),
        asked: 0,
        greeted: false,
    };
    // Each reply costs the server bytes, and each step costs replies.
    for _ in 0..20 * data.len() + 100 {
        match machine.step() {
            Step::Send(sent) => {
                assert!(!sent.is_empty());
                assert!(sent.len() < MOST);
                server.heard(&sent);
            }
            Step::Receive(count) => {
                assert!(count > 0 && count <= MOST, "{count}");
                let _ = machine.awaited();
                let Some(said) = server.give(count) else {
                    let _ = (machine.step_down(), machine.has_asked(), machine.goodbye());
                    return;
                };
                if let Err(error) = machine.received(&said) {
                    let said = error.to_string();
                    assert!(!said.chars().any(char::is_control), "{said:?}");
                    let _ = (machine.step_down(), machine.goodbye());
                    if !machine.is_at_rest() || goals.is_empty() {
                        return;
                    }
                }
            }
            // Nobody but the transport can say that TLS is there.
            Step::StartTls => return,
            Step::Done => {
                if let Some(outcome) = machine.outcome() {
                    check(&outcome);
                }
                if goals.is_empty()
                    || !machine.is_at_rest()
                    || machine.ask(goals.remove(0)).is_err()
                {
                    return;
                }
            }
        }
    }
    panic!("a handshake without end");
}
