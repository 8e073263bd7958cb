// SPDX-License-Identifier: BSD-3-Clause
//! What the two sides of a conversation say, taken apart: what a server offers, which option the plugin asked
//! for, which request it sent.

use super::wire::{FIXED_NEWSTYLE, Fields, NO_ZEROES, flag, opt};

/// What a well-behaved server offers. Scripts change the field that matters to them.
#[derive(Clone, Debug)]
pub struct Offer {
    pub size: u64,
    pub flags: u16,
    pub handshake_flags: u16,
    pub block_sizes: Option<(u32, u32, u32)>,
    pub structured: bool,
    pub extended: bool,
    /// Contexts with their ids; empty: SET_META_CONTEXT gives none.
    pub contexts: Vec<(u32, String)>,
    /// False: a server from before GO, which only knows EXPORT_NAME.
    pub go: bool,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            size: 1 << 20,
            flags: flag::HAS_FLAGS
                | flag::SEND_FLUSH
                | flag::SEND_FUA
                | flag::SEND_TRIM
                | flag::SEND_WRITE_ZEROES
                | flag::SEND_DF
                | flag::SEND_CACHE
                | flag::SEND_FAST_ZERO,
            handshake_flags: FIXED_NEWSTYLE | NO_ZEROES,
            block_sizes: None,
            structured: true,
            extended: false,
            contexts: vec![(0x1234_5678, "base:allocation".to_owned())],
            go: true,
        }
    }
}

impl Offer {
    /// A server with extended headers.
    pub fn extended() -> Self {
        Self {
            extended: true,
            ..Self::default()
        }
    }

    /// A server without structured replies.
    pub fn simple() -> Self {
        Self {
            structured: false,
            ..Self::default()
        }
    }
}

/// An option request of the plugin.
#[derive(Debug)]
pub struct Asked {
    pub option: u32,
    pub data: Vec<u8>,
}

impl Asked {
    /// The export name and the information types of a GO.
    pub fn go(&self) -> (Vec<u8>, Vec<u16>) {
        assert_eq!(self.option, opt::GO);
        let mut fields = Fields(&self.data);
        let name = fields.name();
        let count = fields.u16();
        let infos = (0..count).map(|_| fields.u16()).collect();
        fields.end();
        (name, infos)
    }

    /// The export name and the queries of a SET_META_CONTEXT.
    pub fn set_meta_context(&self) -> (Vec<u8>, Vec<String>) {
        assert_eq!(self.option, opt::SET_META_CONTEXT);
        let mut fields = Fields(&self.data);
        let name = fields.name();
        let count = fields.u32();
        let queries = (0..count).map(|_| fields.string()).collect();
        fields.end();
        (name, queries)
    }
}

/// A command of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
    pub payload: Vec<u8>,
}
