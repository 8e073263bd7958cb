// SPDX-License-Identifier: BSD-3-Clause
//! What a server logs, one event a line. The order of the lines is the order of what happened.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::torture::block::{BLOCK, Content};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: u64,
    pub epoch: u64,
    /// Zero: the server as a whole.
    pub connection: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A life begins; whether all connections share one cache in it.
    Start {
        multi: bool,
    },
    /// Requests can come.
    Open,
    Arrive(Request),
    /// It was done; for reads, with what was found.
    Apply {
        cookie: u64,
        contents: Vec<Content>,
    },
    /// The answer was about to be sent. Whatever the plugin does because of it comes later.
    Reply {
        cookie: u64,
        error: u32,
    },
    /// No request of this connection is left, and none can come.
    Close,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub cookie: u64,
    pub kind: u16,
    pub fua: bool,
    pub offset: u64,
    pub length: u64,
    /// What a write writes, block by block.
    pub contents: Vec<Content>,
}

impl Request {
    /// The blocks that it touches.
    pub fn blocks(&self) -> std::ops::Range<u64> {
        let block = BLOCK as u64;
        self.offset / block..(self.offset + self.length).div_ceil(block)
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset + other.length && other.offset < self.offset + self.length
    }
}

fn list(contents: &[Content]) -> String {
    let mut text = String::new();
    for (index, content) in contents.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(text, "{comma}{content:x}").expect("write to memory");
    }
    if text.is_empty() {
        text.push('-');
    }
    text
}

impl Event {
    pub fn to_line(&self) -> String {
        let what = match &self.what {
            What::Start { multi } => format!("start {}", u8::from(*multi)),
            What::Open => "open".to_owned(),
            What::Arrive(request) => format!(
                "arrive {} {} {} {} {} {}",
                request.cookie,
                request.kind,
                u8::from(request.fua),
                request.offset,
                request.length,
                list(&request.contents)
            ),
            What::Apply { cookie, contents } => format!("apply {cookie} {}", list(contents)),
            What::Reply { cookie, error } => format!("reply {cookie} {error}"),
            What::Close => "close".to_owned(),
        };
        format!("{} {} {} {what}\n", self.at, self.epoch, self.connection)
    }

    /// `None`: the last line of a life that ended in the middle of it.
    pub fn from_line(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words.get(index)?.parse::<u64>().ok();
        let contents = |index: usize| -> Option<Vec<Content>> {
            match *words.get(index)? {
                "-" => Some(Vec::new()),
                text => text
                    .split(',')
                    .map(|content| u64::from_str_radix(content, 16).ok())
                    .collect(),
            }
        };
        let what = match *words.get(3)? {
            "start" => What::Start {
                multi: number(4)? == 1,
            },
            "open" => What::Open,
            "arrive" => What::Arrive(Request {
                cookie: number(4)?,
                kind: u16::try_from(number(5)?).ok()?,
                fua: number(6)? == 1,
                offset: number(7)?,
                length: number(8)?,
                contents: contents(9)?,
            }),
            "apply" => What::Apply {
                cookie: number(4)?,
                contents: contents(5)?,
            },
            "reply" => What::Reply {
                cookie: number(4)?,
                error: u32::try_from(number(5)?).ok()?,
            },
            "close" => What::Close,
            _ => return None,
        };
        Some(Self {
            at: number(0)?,
            epoch: number(1)?,
            connection: number(2)?,
            what,
        })
    }
}

/// All that a server has logged in all its lives.
pub fn read(log: &Path) -> Vec<Event> {
    let text = fs::read_to_string(log).expect("the server's log");
    let lines = text
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'));
    lines
        .map(|line| match Event::from_line(line) {
            Some(event) => event,
            None => panic!("a line of the server's log: {line}"),
        })
        .collect()
}
