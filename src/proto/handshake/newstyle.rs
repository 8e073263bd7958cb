// SPDX-License-Identifier: BSD-3-Clause
//! The newstyle handshake: flags, then one option after the other ("Newstyle negotiation").
//!
//! Options are never pipelined: a server may answer any of them with an error that changes what
//! may be asked next. Between two of them the server waits, and so may we: the handshake is at rest
//! then.

mod framing;
mod maps;
mod questions;

use self::maps::Bitmaps;
use super::contexts::Contexts;
use super::{
    Error, Goal, Info, Listed, Outcome, Progress, Purpose, TlsEstablished, TlsPolicy, enter,
    options,
};
use crate::proto::codec::{Reader, quoted};
use crate::proto::consts::{HandshakeFlags, OPTION_REPLY_MAGIC, OptionReply, OptionType, PADDING};
use crate::proto::framing::Framing;
use crate::proto::ladder::Ladder;
use crate::proto::name::ExportName;
use crate::proto::request::encode_option;
use crate::proto::{Refusal, Violation};

/// Longest option reply payload that is accepted: two strings and their lengths fit many times.
const MAX_PAYLOAD: u32 = 64 * 1024;
/// Most replies to one option. Facts about one export and one metadata context need a handful.
const MAX_REPLIES: u32 = 1024;
/// Most replies to `NBD_OPT_LIST`.
const MAX_LIST_REPLIES: u32 = 200_000;
/// Most entries of a list that are kept; nbdkit takes no more.
const MAX_LISTED: usize = 10_000;
/// Most bytes of names and descriptions that are kept of a list.
const MAX_LISTED_BYTES: usize = 4 << 20;

/// A newstyle handshake under way.
#[derive(Debug)]
pub struct Newstyle {
    goal: Goal,
    flags: HandshakeFlags,
    /// There where the connection is protected; whoever requires TLS gets no further without.
    tls: Option<TlsEstablished>,
    /// The server has said something since TLS was established.
    accepted: bool,
    stage: Stage,
    asking: OptionType,
    replies: u32,
    listed_bytes: usize,
    /// The server has said how messages are framed.
    settled: bool,
    framing: Framing,
    /// `NBD_OPT_EXTENDED_HEADERS` is unknown to the server.
    compact: bool,
    contexts: Contexts,
    /// The name that was asked for, if the export goes by another now.
    whole: Option<ExportName>,
    bitmaps: Bitmaps,
    info: Info,
}

/// What comes next from the server.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Flags,
    ReplyHeader,
    ReplyPayload {
        reply: OptionReply,
        length: u32,
    },
    ExportNameAnswer,
    StartTls,
    /// Nothing does, until something is asked.
    Rest,
}

impl Newstyle {
    pub fn new(goal: Goal) -> Self {
        Self {
            goal,
            flags: HandshakeFlags::empty(),
            tls: None,
            accepted: false,
            stage: Stage::Flags,
            asking: OptionType::GO,
            replies: 0,
            listed_bytes: 0,
            settled: false,
            framing: Framing::Simple,
            compact: false,
            contexts: Contexts::default(),
            whole: None,
            bitmaps: Bitmaps::default(),
            info: Info::default(),
        }
    }

    /// How many bytes come next.
    pub fn wants(&self) -> usize {
        match self.stage {
            Stage::Flags => 2,
            Stage::StartTls | Stage::Rest => 0,
            Stage::ReplyHeader => 20,
            Stage::ReplyPayload { length, .. } => length as usize,
            Stage::ExportNameAnswer if self.flags.contains(HandshakeFlags::NO_ZEROES) => 10,
            Stage::ExportNameAnswer => 10 + PADDING,
        }
    }

    pub fn awaited(&self) -> String {
        match self.stage {
            Stage::Flags => "its handshake flags".to_owned(),
            Stage::ExportNameAnswer => format!(
                "its answer to NBD_OPT_EXPORT_NAME (servers refuse an export, here \"{}\", by closing)",
                self.goal.export
            ),
            Stage::StartTls => "its side of the TLS handshake".to_owned(),
            Stage::Rest => "nothing".to_owned(),
            Stage::ReplyHeader | Stage::ReplyPayload { .. } => {
                let quirk = match self.asking {
                    OptionType::EXTENDED_HEADERS => "; quirks=no-extended does not ask",
                    // What is wanted cannot be had without.
                    OptionType::STRUCTURED_REPLY | OptionType::SET_META_CONTEXT
                        if self.goal.wish.needs_contexts() =>
                    {
                        ""
                    }
                    OptionType::STRUCTURED_REPLY => "; quirks=no-structured does not ask",
                    OptionType::SET_META_CONTEXT => "; quirks=no-meta does not ask",
                    OptionType::GO => "; quirks=no-opt-go does not ask",
                    _ => "",
                };
                format!("its reply to {}{quirk}", self.asking)
            }
        }
    }

    pub fn received(&mut self, bytes: &[u8]) -> Result<Progress, Error> {
        match self.stage {
            Stage::Flags => self.flags(bytes),
            Stage::StartTls | Stage::Rest => Ok(Progress::Say(Vec::new())),
            Stage::ReplyHeader => self.reply_header(bytes),
            Stage::ReplyPayload { reply, .. } => {
                self.stage = Stage::ReplyHeader;
                self.reply(reply, bytes)
            }
            Stage::ExportNameAnswer => self.export_name_answer(bytes),
        }
    }

    /// Answers the handshake flags with those of them that we know, and asks the first option.
    fn flags(&mut self, bytes: &[u8]) -> Result<Progress, Error> {
        let offered = Reader::new(bytes).u16().unwrap_or_default();
        // spec: Newstyle negotiation: SHOULD: unknown handshake flags are ignored
        self.flags = HandshakeFlags::from_bits_truncate(offered);
        self.goal.tell(format_args!(
            "newstyle server, handshake flags 0x{offered:04x}"
        ));
        let fixed = self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE);
        if self.goal.tls == TlsPolicy::Require && !fixed {
            return Err(Error::NoTls("newstyle handshake without options"));
        }
        // spec: Fixed newstyle negotiation: SHOULD: the client says that it knows fixed newstyle
        // spec: Client flags: SHOULD: NBD_FLAG_C_FIXED_NEWSTYLE is set
        // spec: Client flags: MUST NOT: NBD_FLAG_C_NO_ZEROES only in answer to NBD_FLAG_NO_ZEROES
        // spec: Client flags: MUST NOT: no other flag is set
        let mut say = u32::from(self.flags.bits()).to_be_bytes().to_vec();
        // spec: Client-side requirements: MUST NOT: no NBD_OPT_STARTTLS unless both sides know fixed newstyle
        if !fixed {
            if self.goal.tls == TlsPolicy::Allow {
                self.goal.tell_of_clear("the server has no TLS");
            }
            return self.ask_without_options(say);
        }
        if self.goal.tls == TlsPolicy::Off {
            say.extend(self.ask_for_goal());
        } else {
            // spec: Client-side requirements: SHOULD: who prefers TLS asks for it first of all
            // spec: Option types: SHOULD: NBD_OPT_STARTTLS before all options that have a lasting effect
            // spec: Server-side requirements: MUST NOT: what an earlier connection said of TLS does not count
            say.extend(self.ask(OptionType::STARTTLS));
        }
        Ok(Progress::Say(say))
    }

    /// Goes on with another goal.
    pub fn go_on(&mut self, goal: Goal) -> Result<Progress, Error> {
        self.goal = goal;
        if !self.can_abort() {
            return self.ask_without_options(Vec::new());
        }
        match self.goal.purpose {
            Purpose::Open | Purpose::Contexts if self.settled => {
                self.forget();
                self.ask_framed()
            }
            _ => Ok(Progress::Say(self.ask_for_goal())),
        }
    }

    /// Asks a server that knows one option only, which opens an export, if that is the goal. `say` is
    /// said first.
    fn ask_without_options(&mut self, mut say: Vec<u8>) -> Result<Progress, Error> {
        self.stage = Stage::Rest;
        if let Some(outcome) = self.goal.unanswered() {
            return Ok(Progress::Finish(say, outcome));
        }
        self.goal.check_unstructured()?;
        say.extend(self.ask(OptionType::EXPORT_NAME));
        Ok(Progress::Say(say))
    }

    /// The first option after TLS was settled, or after a goal before this one.
    fn ask_for_goal(&mut self) -> Vec<u8> {
        self.forget();
        self.ask(match self.goal.purpose {
            Purpose::Open | Purpose::Contexts => self.first(),
            Purpose::List => OptionType::LIST,
            Purpose::Describe => OptionType::INFO,
            Purpose::Ask(option) => option,
        })
    }

    /// What was told of one export, or by a list, is not true of another; contexts neither.
    fn forget(&mut self) {
        self.info = Info::default();
        self.contexts = Contexts::default();
        self.whole = None;
        self.bitmaps = Bitmaps::default();
        self.listed_bytes = 0;
    }

    /// Whether an option was asked.
    pub fn has_asked(&self) -> bool {
        !matches!(self.stage, Stage::Flags)
    }

    /// See [`super::Handshake::step_down`]. A server that has said anything in reply knows the
    /// option; and one that closes where it judges our credentials does so for their sake.
    pub fn step_down(&self) -> Option<Ladder> {
        let to_blame = self.unanswered().is_some();
        match self.goal.purpose {
            Purpose::Open if self.goal.wish.demanded().is_some() => {
                // What is demanded cannot be had with fewer questions about it.
                let vital = match self.asking {
                    OptionType::STRUCTURED_REPLY => true,
                    OptionType::SET_META_CONTEXT | OptionType::LIST_META_CONTEXT => {
                        self.framing != Framing::Extended
                    }
                    _ => false,
                };
                let ladder = self.goal.ladder.without(self.asking, self.framing);
                ladder.filter(|_| to_blame && !vital)
            }
            Purpose::Open | Purpose::List if to_blame => {
                self.goal.ladder.without(self.asking, self.framing)
            }
            // The list of contexts needs them, however messages are framed.
            Purpose::Contexts if to_blame && self.asking == OptionType::EXTENDED_HEADERS => {
                Some(self.goal.ladder.without_extended())
            }
            _ => None,
        }
    }

    /// Whether the server may be judging our certificate, or key, at this point: TLS 1.3 servers do
    /// so when the handshake is over for the client, and many just close the connection.
    pub fn may_be_refused(&self) -> bool {
        self.tls.is_some() && !self.accepted
    }

    /// Whether something may be asked, as all that was asked before is answered.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.stage, Stage::Rest)
    }

    /// Whether the server can be told that it is left.
    pub fn can_abort(&self) -> bool {
        self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE)
    }

    /// Whether TLS is the next step.
    pub fn wants_tls(&self) -> bool {
        matches!(self.stage, Stage::StartTls)
    }

    /// Goes on under TLS. Nothing was negotiated before it, so nothing has to be forgotten.
    pub fn tls_established(&mut self, proof: TlsEstablished) -> Vec<u8> {
        // spec: Client-side requirements: MUST NOT: no NBD_OPT_STARTTLS under TLS
        // spec: Option types: MUST: what was agreed before TLS is agreed again under it
        self.tls = Some(proof);
        self.ask_for_goal()
    }

    /// The last gate: where TLS is required, nobody passes without the proof of it.
    fn check_protected(&self) -> Result<(), Error> {
        // spec: Protocol downgrade attacks: SHOULD: nothing that matters before TLS, where TLS is wanted
        match (self.goal.tls, &self.tls) {
            (TlsPolicy::Require, None) => Err(Error::NoTls("handshake in clear")),
            _ => Ok(()),
        }
    }

    /// Forms the request for an option and prepares for its replies.
    fn ask(&mut self, option: OptionType) -> Vec<u8> {
        let export = &self.goal.export;
        // spec: Fixed newstyle negotiation: MUST NOT: no option before the last reply to the one before it
        // spec: Fixed newstyle negotiation: SHOULD NOT: what changes the state of the server is not asked twice
        // spec: Option types: MUST NOT: NBD_OPT_LIST has no data
        // spec: Option types: MUST NOT: NBD_OPT_STARTTLS has no data
        // spec: Option types: MUST NOT: NBD_OPT_STRUCTURED_REPLY has no data
        // spec: Option types: MUST NOT: NBD_OPT_EXTENDED_HEADERS has no data
        let data = match option {
            OptionType::GO | OptionType::INFO => options::go(export),
            OptionType::SET_META_CONTEXT => options::set_meta_context(export, &self.wanted()),
            OptionType::LIST_META_CONTEXT => options::list_meta_context(self.mapped()),
            OptionType::EXPORT_NAME => export.as_bytes().to_vec(),
            _ => Vec::new(),
        };
        self.asking = option;
        self.replies = 0;
        self.stage = if option == OptionType::EXPORT_NAME {
            Stage::ExportNameAnswer
        } else {
            Stage::ReplyHeader
        };
        encode_option(option, &data)
    }

    fn reply_header(&mut self, bytes: &[u8]) -> Result<Progress, Error> {
        self.accepted = self.tls.is_some();
        let option = self.asking;
        let mut reader = Reader::new(bytes);
        let magic = reader.u64().unwrap_or_default();
        let echo = OptionType(reader.u32().unwrap_or_default());
        let reply = OptionReply(reader.u32().unwrap_or_default());
        let length = reader.u32().unwrap_or_default();
        if magic != OPTION_REPLY_MAGIC {
            return Err(Violation::OptionMagic { option, got: magic }.into());
        }
        if echo != option {
            return Err(Violation::OptionEcho { option, got: echo }.into());
        }
        if length > MAX_PAYLOAD {
            return Err(self.bad_length(reply, length).into());
        }
        self.replies += 1;
        let most = match option {
            OptionType::LIST => MAX_LIST_REPLIES,
            _ => MAX_REPLIES,
        };
        if self.replies > most {
            return Err(Violation::OptionFlood(option).into());
        }
        if length == 0 {
            return self.reply(reply, &[]);
        }
        self.stage = Stage::ReplyPayload { reply, length };
        Ok(Progress::Say(Vec::new()))
    }

    fn reply(&mut self, reply: OptionReply, payload: &[u8]) -> Result<Progress, Error> {
        if reply.is_error() {
            return self.refused(reply, payload);
        }
        match (self.asking, reply) {
            (OptionType::STARTTLS, OptionReply::ACK) if !payload.is_empty() => {
                Err(self.bad_length(reply, payload.len() as u32).into())
            }
            (_, OptionReply::ACK) => self.acknowledged(),
            (OptionType::GO | OptionType::INFO, OptionReply::INFO) => {
                options::info(&mut self.info, payload)?;
                Ok(Progress::Say(Vec::new()))
            }
            (OptionType::LIST, OptionReply::SERVER) => {
                self.listed(payload);
                Ok(Progress::Say(Vec::new()))
            }
            (
                OptionType::SET_META_CONTEXT | OptionType::LIST_META_CONTEXT,
                OptionReply::META_CONTEXT,
            ) => {
                self.meta_context(payload)?;
                Ok(Progress::Say(Vec::new()))
            }
            (option, got) => Err(Violation::OptionReply { option, got }.into()),
        }
    }

    fn acknowledged(&mut self) -> Result<Progress, Error> {
        if self.asking != OptionType::STARTTLS {
            self.check_protected()?;
        }
        match self.asking {
            // Nothing but TLS may follow, and that is not wanted.
            OptionType::STARTTLS if self.is_the_question() => {
                self.stage = Stage::StartTls;
                Ok(Progress::Finish(Vec::new(), Outcome::Agreed))
            }
            OptionType::STARTTLS => {
                // spec: Client-side requirements: MUST: NBD_REP_ACK to NBD_OPT_STARTTLS is followed by TLS at once
                self.stage = Stage::StartTls;
                Ok(Progress::Say(Vec::new()))
            }
            OptionType::EXTENDED_HEADERS => self.settle(Framing::Extended),
            OptionType::STRUCTURED_REPLY => self.settle(Framing::Structured),
            OptionType::SET_META_CONTEXT if self.is_the_question() => {
                Ok(self.rest(Outcome::Agreed))
            }
            OptionType::LIST_META_CONTEXT => self.contexts_listed(),
            OptionType::SET_META_CONTEXT => self.context_settled(),
            OptionType::LIST => Ok(self.exports_listed()),
            OptionType::INFO => {
                let info = std::mem::take(&mut self.info);
                Ok(self.rest(Outcome::Described(info.into())))
            }
            _ => {
                // spec: Option types: MUST NOT: no option after an NBD_OPT_GO that succeeded
                let info = std::mem::take(&mut self.info);
                let export = Box::new(info.enter(self.framing, self.contexts.take())?);
                Ok(Progress::Finish(Vec::new(), Outcome::Export(export)))
            }
        }
    }

    fn listed(&mut self, payload: &[u8]) {
        let Some(entry) = options::server(payload) else {
            self.goal
                .tell("ignoring an export whose listing does not add up");
            return;
        };
        self.keep(entry);
    }

    /// Puts an entry into the list if there is room.
    fn keep(&mut self, entry: Listed) {
        self.listed_bytes += entry.name.as_bytes().len() + entry.description.len();
        if self.info.listing.len() < MAX_LISTED && self.listed_bytes <= MAX_LISTED_BYTES {
            self.info.listing.push(entry);
        } else {
            self.goal.tell("ignoring an export: the list is too long");
        }
    }

    /// Goes on without what was refused where the specification allows it.
    fn refused(&mut self, reply: OptionReply, text: &[u8]) -> Result<Progress, Error> {
        let refusal = Refusal {
            option: self.asking,
            reply,
            text: quoted(text),
            export: self.goal.export.clone(),
            protected: self.tls.is_some(),
            extended: self.framing == Framing::Extended,
        };
        // What nobody goes on without is told by whoever fails.
        let told = refusal.to_string();
        let warns = self.asking == OptionType::STARTTLS;
        let progress = self.do_without(reply, refusal)?;
        if !warns {
            self.goal.tell(told);
        }
        Ok(progress)
    }

    fn do_without(&mut self, reply: OptionReply, refusal: Refusal) -> Result<Progress, Error> {
        match self.asking {
            _ if self.is_the_question() => {
                self.settled |= matches!(
                    self.asking,
                    OptionType::EXTENDED_HEADERS | OptionType::STRUCTURED_REPLY
                );
                self.contexts.forget();
                self.rest_unless_it_ends(reply);
                Err(refusal.into())
            }
            OptionType::STARTTLS => self.tls_refused(refusal),
            // spec: Option types: SHOULD: NBD_REP_ERR_UNSUP to NBD_OPT_EXTENDED_HEADERS means compact headers
            OptionType::EXTENDED_HEADERS => {
                self.compact = reply == OptionReply::ERR_UNSUP;
                Ok(Progress::Say(self.ask(self.first_compact())))
            }
            // spec: Option types: SHOULD: NBD_REP_ERR_UNSUP to NBD_OPT_STRUCTURED_REPLY means simple replies
            OptionType::STRUCTURED_REPLY => self.settle(Framing::Simple),
            OptionType::LIST_META_CONTEXT if self.goes_on_without_list(reply) => {
                // spec: Option types: MUST: an error voids contexts that were listed, and their ids mean nothing
                self.contexts.forget();
                self.contexts_listed()
            }
            OptionType::SET_META_CONTEXT if self.goes_on_without_context(reply) => {
                // Contexts named before the error are void.
                self.contexts.forget();
                self.context_settled()
            }
            OptionType::GO if self.may_stand_for_others(reply) => {
                self.info = Info::default();
                if !self.contexts.is_apart() {
                    self.contexts.take_apart(&self.goal.export, refusal);
                }
                self.ask_apart()
            }
            // spec: Option types: SHOULD: NBD_REP_ERR_UNSUP to NBD_OPT_GO leads to NBD_OPT_EXPORT_NAME
            // spec: Maximum interoperability: SHOULD: NBD_OPT_EXPORT_NAME beside NBD_OPT_GO
            OptionType::GO
                if reply == OptionReply::ERR_UNSUP && self.framing != Framing::Extended =>
            {
                self.info = Info::default();
                Ok(Progress::Say(self.ask(OptionType::EXPORT_NAME)))
            }
            _ => {
                self.rest_unless_it_ends(reply);
                Err(refusal.into())
            }
        }
    }

    /// Reaches a goal after which another may be asked for.
    fn rest(&mut self, outcome: Outcome) -> Progress {
        self.stage = Stage::Rest;
        Progress::Finish(Vec::new(), outcome)
    }

    /// Goes on in clear if the user allows that and the server has no TLS to offer. Servers put it
    /// in three ways: that they do not know the option, that they were built without TLS, or that
    /// their set-up forbids it.
    fn tls_refused(&mut self, refusal: Refusal) -> Result<Progress, Error> {
        // spec: Client-side requirements: MUST: servers without TLS, with it by choice and by force are all dealt with
        // spec: Client-side requirements: MUST: after a refusal of TLS go on in clear or leave
        let none = [
            OptionReply::ERR_UNSUP,
            OptionReply::ERR_PLATFORM,
            OptionReply::ERR_POLICY,
        ]
        .contains(&refusal.reply);
        // spec: Client-side requirements: SHOULD: who wants nothing but TLS leaves when it is refused
        if self.goal.tls == TlsPolicy::Require {
            return Err(Error::TlsRefused(refusal));
        }
        if !none {
            return Err(refusal.into());
        }
        self.goal.tell_of_clear(refusal);
        Ok(Progress::Say(self.ask_for_goal()))
    }

    fn meta_context(&mut self, payload: &[u8]) -> Result<(), Violation> {
        if payload.len() < 4 {
            return Err(self.bad_length(OptionReply::META_CONTEXT, payload.len() as u32));
        }
        let wanted = self.wanted();
        let Some((id, name)) = options::meta_context(payload) else {
            return Ok(());
        };
        if self.asking == OptionType::LIST_META_CONTEXT {
            self.contexts.list(name);
        } else if name != wanted.as_bytes() {
            self.goal
                .tell("ignoring a metadata context that was not asked for");
        } else if !self.contexts.agree(wanted, id) {
            return Err(Violation::OptionContent(
                self.asking,
                "the same metadata context twice",
            ));
        }
        Ok(())
    }

    fn export_name_answer(&mut self, bytes: &[u8]) -> Result<Progress, Error> {
        self.check_protected()?;
        let mut reader = Reader::new(bytes);
        let size = reader.u64().unwrap_or_default();
        if size == OPTION_REPLY_MAGIC {
            // Sent by servers that do not know how this option is refused, or have lost their place. As
            // a size it would be an odd petabyte.
            return Err(Violation::OptionContent(
                OptionType::EXPORT_NAME,
                "an option reply where the size should be",
            )
            .into());
        }
        let flags = reader.u16().unwrap_or_default();
        let export = enter(size, flags, self.framing)?;
        let export = export.with_context(self.contexts.take());
        let outcome = Outcome::Export(Box::new(export));
        Ok(Progress::Finish(Vec::new(), outcome))
    }

    fn bad_length(&self, got: OptionReply, length: u32) -> Violation {
        Violation::OptionLength {
            option: self.asking,
            got,
            length,
        }
    }
}
