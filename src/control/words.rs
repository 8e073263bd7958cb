// SPDX-License-Identifier: BSD-3-Clause
//! What a line of words asks for.

use std::time::Duration;

use crate::config::change::Change;
use crate::config::{self, params};
use crate::proto::codec::printable;

/// How long a command may take that waits for others, where nothing is said.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

const NOTHING: &str = "must be followed by nothing";

/// How much of a word that is not understood is repeated, bytes.
const REPEATED: usize = 60;

/// What there is, with what it does.
pub(super) const HELP: [(&str, &str); 9] = [
    ("status", "what there is and what it is doing"),
    (
        "drain [TIME]",
        "hold requests, with all that came before answered and flushed",
    ),
    ("resume", "let requests go on"),
    (
        "reconnect [TIME]",
        "leave all connections for new ones (with reconnect=)",
    ),
    ("set KEY=TIME", "give a parameter another value from now on"),
    ("log on|off", "tell of each request, or not any more"),
    ("version", "which plugin this is"),
    ("help", "this list"),
    ("text COMMAND", "any of these, answered for people"),
];

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The answer is for people.
    pub(super) text: bool,
    /// What it asks for, or why that cannot be said.
    pub(super) command: Result<Command, Unclear>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    Version,
    Status,
    Drain(Duration),
    Resume,
    Reconnect(Duration),
    Set(Change),
    Log(bool),
}

/// Why a line asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unclear {
    #[error("no command: try help")]
    Nothing,
    #[error("no UTF-8")]
    NotText,
    #[error("unknown command '{0}': try help")]
    Unknown(String),
    #[error("{command}: {usage}")]
    Usage {
        command: &'static str,
        usage: &'static str,
    },
    #[error("{command}: {error}")]
    Value {
        command: &'static str,
        error: config::Error,
    },
}

impl Line {
    /// What the bytes before the end of a line mean.
    pub(super) fn parse(line: &[u8]) -> Self {
        let Ok(line) = std::str::from_utf8(line) else {
            return Self {
                text: false,
                command: Err(Unclear::NotText),
            };
        };
        let mut words: Vec<&str> = line.split_ascii_whitespace().collect();
        let text = words.first() == Some(&"text");
        if text {
            words.remove(0);
        }
        Self {
            text,
            command: Command::parse(&words),
        }
    }
}

impl Command {
    fn parse(words: &[&str]) -> Result<Self, Unclear> {
        let Some((command, rest)) = words.split_first() else {
            return Err(Unclear::Nothing);
        };
        match (*command, rest) {
            ("help", []) => Ok(Self::Help),
            ("version", []) => Ok(Self::Version),
            ("status", []) => Ok(Self::Status),
            ("resume", []) => Ok(Self::Resume),
            ("drain", []) => Ok(Self::Drain(PATIENCE)),
            ("drain", [time]) => patience("drain", time).map(Self::Drain),
            ("reconnect", []) => Ok(Self::Reconnect(PATIENCE)),
            ("reconnect", [time]) => patience("reconnect", time).map(Self::Reconnect),
            ("set", [change]) => match change.split_once('=') {
                Some((key, value)) => {
                    Change::parse(key, value)
                        .map(Self::Set)
                        .map_err(|error| Unclear::Value {
                            command: "set",
                            error,
                        })
                }
                None => Err(usage("set", "must be followed by KEY=TIME")),
            },
            ("log", ["on"]) => Ok(Self::Log(true)),
            ("log", ["off"]) => Ok(Self::Log(false)),
            ("log", _) => Err(usage("log", "must be followed by on or off")),
            ("set", _) => Err(usage("set", "must be followed by one KEY=TIME")),
            ("drain", _) => Err(usage("drain", "must be followed by one TIME or nothing")),
            ("reconnect", _) => Err(usage(
                "reconnect",
                "must be followed by one TIME or nothing",
            )),
            ("help", _) => Err(usage("help", NOTHING)),
            ("version", _) => Err(usage("version", NOTHING)),
            ("status", _) => Err(usage("status", NOTHING)),
            ("resume", _) => Err(usage("resume", NOTHING)),
            (other, _) => Err(Unclear::Unknown(printable(other.as_bytes(), REPEATED))),
        }
    }
}

fn usage(command: &'static str, usage: &'static str) -> Unclear {
    Unclear::Usage { command, usage }
}

/// How long a command may take; not for ever.
fn patience(command: &'static str, text: &str) -> Result<Duration, Unclear> {
    const BAD: &str = "must be a time such as 30, 1.5s or 200ms";
    let bytes = text.as_bytes();
    let time = params::time(command, bytes, bytes, BAD).and_then(|time| match time.is_zero() {
        true => Err(params::bad(command, bytes, BAD)),
        false => Ok(time),
    });
    time.map_err(|error| Unclear::Value { command, error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(line: &str) -> Command {
        Line::parse(line.as_bytes()).command.expect("a command")
    }

    fn unclear(line: &[u8]) -> String {
        let error = Line::parse(line).command.expect_err("no command");
        error.to_string()
    }

    #[test]
    fn words_are_commands() {
        assert_eq!(command("status"), Command::Status);
        assert_eq!(command("  resume \r"), Command::Resume);
        assert_eq!(command("drain"), Command::Drain(PATIENCE));
        let short = Duration::from_millis(1500);
        assert_eq!(command("drain 1.5s"), Command::Drain(short));
        assert_eq!(command("reconnect 1500ms"), Command::Reconnect(short));
        assert_eq!(command("log on"), Command::Log(true));
        let change = Change::Request(Some(short));
        assert_eq!(command("set request-timeout=1.5"), Command::Set(change));
        let line = Line::parse(b"text status");
        assert!(line.text && line.command == Ok(Command::Status));
    }

    #[test]
    fn all_of_the_help_is_understood() {
        for (words, _) in HELP {
            let words = words.replace("[TIME]", "1").replace("on|off", "off");
            let words = words
                .replace("KEY=TIME", "reconnect=1")
                .replace("COMMAND", "help");
            command(&words);
        }
    }

    #[test]
    fn what_is_no_command_is_told() {
        assert_eq!(unclear(b""), "no command: try help");
        assert_eq!(unclear(b"text"), "no command: try help");
        assert_eq!(unclear(b"\xff"), "no UTF-8");
        assert_eq!(
            unclear(b"st\x1bop"),
            "unknown command 'st\\u{1b}op': try help"
        );
        assert_eq!(unclear(b"log"), "log: must be followed by on or off");
        assert_eq!(unclear(b"set"), "set: must be followed by one KEY=TIME");
        assert_eq!(unclear(b"set linger"), "set: must be followed by KEY=TIME");
        assert_eq!(
            unclear(b"status now"),
            "status: must be followed by nothing"
        );
        assert_eq!(
            unclear(b"drain 0"),
            "drain: drain=0: must be a time such as 30, 1.5s or 200ms"
        );
        assert!(unclear(b"set replay=1").starts_with("set: ‘replay’ cannot be changed"));
        assert!(unclear(&[b'x'; 4096]).len() < 200);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_a_command_or_told(line in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Err(error) = Line::parse(&line).command {
                let text = error.to_string();
                prop_assert!(!text.chars().any(char::is_control), "{text:?}");
                prop_assert!(text.len() < 1000);
            }
        }
    }
}
