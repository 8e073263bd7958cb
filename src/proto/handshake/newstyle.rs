//! The newstyle handshake: flags, then one option after the other ("Newstyle negotiation").
//!
//! Options are never pipelined: a server may answer any of them with an error that changes what
//! may be asked next.

use super::{Error, Goal, Info, Progress, enter, options};
use crate::proto::codec::{Reader, printable};
use crate::proto::consts::{
    BASE_ALLOCATION, HandshakeFlags, MAX_STRING, OPTION_REPLY_MAGIC, OptionReply, OptionType,
    PADDING,
};
use crate::proto::request::encode_option;
use crate::proto::{Refusal, Violation};

/// Longest option reply payload that is accepted: two strings and their lengths fit many times.
const MAX_PAYLOAD: u32 = 64 * 1024;
/// Most replies to one option. Facts about one export and one metadata context need a handful.
const MAX_REPLIES: u32 = 1024;

/// A newstyle handshake under way.
#[derive(Debug)]
pub struct Newstyle {
    goal: Goal,
    flags: HandshakeFlags,
    stage: Stage,
    asking: OptionType,
    replies: u32,
    structured: bool,
    context: Option<u32>,
    info: Info,
}

/// What comes next from the server.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Flags,
    ReplyHeader,
    ReplyPayload { reply: OptionReply, length: u32 },
    ExportNameAnswer,
}

impl Newstyle {
    pub fn new(goal: Goal) -> Self {
        Self {
            goal,
            flags: HandshakeFlags::empty(),
            stage: Stage::Flags,
            asking: OptionType::GO,
            replies: 0,
            structured: false,
            context: None,
            info: Info::default(),
        }
    }

    /// How many bytes come next.
    pub fn wants(&self) -> usize {
        match self.stage {
            Stage::Flags => 2,
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
                printable(self.goal.export.as_bytes(), MAX_STRING)
            ),
            Stage::ReplyHeader | Stage::ReplyPayload { .. } => {
                format!("its reply to {}", self.asking)
            }
        }
    }

    pub fn received(&mut self, bytes: &[u8]) -> Result<Progress, Error> {
        match self.stage {
            Stage::Flags => Ok(Progress::Say(self.flags(bytes))),
            Stage::ReplyHeader => self.reply_header(bytes),
            Stage::ReplyPayload { reply, .. } => {
                self.stage = Stage::ReplyHeader;
                self.reply(reply, bytes)
            }
            Stage::ExportNameAnswer => self.export_name_answer(bytes),
        }
    }

    /// Answers the handshake flags with those of them that we know, and asks the first option.
    fn flags(&mut self, bytes: &[u8]) -> Vec<u8> {
        let offered = Reader::new(bytes).u16().unwrap_or_default();
        self.flags = HandshakeFlags::from_bits_truncate(offered);
        log::debug!("newstyle server, handshake flags 0x{offered:04x}");
        let mut say = u32::from(self.flags.bits()).to_be_bytes().to_vec();
        say.extend(if self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            self.ask(OptionType::STRUCTURED_REPLY)
        } else {
            self.ask(OptionType::EXPORT_NAME)
        });
        say
    }

    /// Forms the request for an option and prepares for its replies.
    fn ask(&mut self, option: OptionType) -> Vec<u8> {
        let export = &self.goal.export;
        let data = match option {
            OptionType::GO => options::go(export),
            OptionType::SET_META_CONTEXT => options::set_meta_context(export),
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
        if self.replies > MAX_REPLIES {
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
            (_, OptionReply::ACK) => self.acknowledged(),
            (OptionType::GO, OptionReply::INFO) => {
                options::info(&mut self.info, payload)?;
                Ok(Progress::Say(Vec::new()))
            }
            (OptionType::SET_META_CONTEXT, OptionReply::META_CONTEXT) => {
                self.meta_context(payload)?;
                Ok(Progress::Say(Vec::new()))
            }
            (option, got) => Err(Violation::OptionReply { option, got }.into()),
        }
    }

    fn acknowledged(&mut self) -> Result<Progress, Error> {
        match self.asking {
            OptionType::STRUCTURED_REPLY => {
                self.structured = true;
                Ok(Progress::Say(self.ask(OptionType::SET_META_CONTEXT)))
            }
            OptionType::SET_META_CONTEXT => {
                if self.context.is_none() {
                    log::info!("the server has no {BASE_ALLOCATION} context: no extents");
                }
                Ok(Progress::Say(self.ask(OptionType::GO)))
            }
            _ => {
                let info = std::mem::take(&mut self.info);
                let export = info.enter(self.structured, self.context)?;
                Ok(Progress::Enter(Box::new(export)))
            }
        }
    }

    /// Goes on without what was refused where the specification allows it.
    fn refused(&mut self, reply: OptionReply, text: &[u8]) -> Result<Progress, Error> {
        let refusal = Refusal {
            option: self.asking,
            reply,
            text: printable(text, MAX_STRING),
            export: printable(self.goal.export.as_bytes(), MAX_STRING),
        };
        log::debug!("{refusal}");
        match self.asking {
            OptionType::STRUCTURED_REPLY => Ok(Progress::Say(self.ask(OptionType::GO))),
            OptionType::SET_META_CONTEXT => {
                // Contexts named before the error are void.
                self.context = None;
                Ok(Progress::Say(self.ask(OptionType::GO)))
            }
            OptionType::GO if reply == OptionReply::ERR_UNSUP => {
                self.info = Info::default();
                Ok(Progress::Say(self.ask(OptionType::EXPORT_NAME)))
            }
            _ => Err(refusal.into()),
        }
    }

    fn meta_context(&mut self, payload: &[u8]) -> Result<(), Violation> {
        if payload.len() < 4 {
            return Err(self.bad_length(OptionReply::META_CONTEXT, payload.len() as u32));
        }
        let Some(id) = options::meta_context(payload) else {
            log::debug!("ignoring a metadata context that was not asked for");
            return Ok(());
        };
        if self.context.replace(id).is_some() {
            return Err(Violation::OptionContent(
                self.asking,
                "the same metadata context twice",
            ));
        }
        Ok(())
    }

    fn export_name_answer(&self, bytes: &[u8]) -> Result<Progress, Error> {
        let mut reader = Reader::new(bytes);
        let size = reader.u64().unwrap_or_default();
        let flags = reader.u16().unwrap_or_default();
        let mut export = enter(size, flags, self.structured)?;
        export.base_allocation = self.context;
        Ok(Progress::Enter(Box::new(export)))
    }

    fn bad_length(&self, got: OptionReply, length: u32) -> Violation {
        Violation::OptionLength {
            option: self.asking,
            got,
            length,
        }
    }
}
