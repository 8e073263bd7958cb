// SPDX-License-Identifier: BSD-3-Clause
//! What a server is not asked, or not for so much at once, because it does not stand that.

use super::Error;
use super::params;
use crate::proto::export::Limits;
use crate::proto::ladder::Ladder;

const UNKNOWN: &str = "must be a list, with commas, of no-opt-go, no-structured, no-extended, extended, \
                       no-meta, max-request=SIZE, max-status=SIZE and max-zero=SIZE";
const BAD_PIECE: &str = "must be a multiple of 512, and not 0";
const BAD_PAYLOAD: &str = "must be a multiple of 512, from 512 to 64M";

/// Most payload that nbdkit ever asks for at once, bytes.
const MOST_PAYLOAD: u64 = 64 << 20;

/// What a server has to be spared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// The questions that it is asked.
    pub ladder: Ladder,
    /// Whether it is asked for extended headers each time, also where it has just said that it does not
    /// know them.
    pub asks_again: bool,
    /// How much it is asked for at once.
    pub limits: Limits,
}

/// A quirk that is there or not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    NoOptGo,
    NoStructured,
    NoExtended,
    Extended,
    NoMeta,
}

const WORDS: [(Word, &str); 5] = [
    (Word::NoOptGo, "no-opt-go"),
    (Word::NoStructured, "no-structured"),
    (Word::NoExtended, "no-extended"),
    (Word::Extended, "extended"),
    (Word::NoMeta, "no-meta"),
];

/// What cannot be had without extended headers is not told to go on with them.
const CONFLICTS: [Word; 3] = [Word::NoExtended, Word::NoStructured, Word::NoOptGo];

/// Takes a list of quirks.
pub fn parse(value: &[u8]) -> Result<Quirks, Error> {
    let mut said: Vec<&'static str> = Vec::new();
    let mut quirks = Quirks::default();
    for item in value.split(|byte| *byte == b',') {
        let mut parts = item.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let name = match (name, parts.next()) {
            (b"max-request", Some(size)) => {
                let most = size_within("quirks=max-request", size, MOST_PAYLOAD, BAD_PAYLOAD)?;
                quirks.limits.payload = u32::try_from(most).ok();
                "max-request"
            }
            (b"max-status", Some(size)) => {
                let most = size_within("quirks=max-status", size, u64::MAX, BAD_PIECE)?;
                quirks.limits.status = Some(most);
                "max-status"
            }
            (b"max-zero", Some(size)) => {
                let most = size_within("quirks=max-zero", size, u64::MAX, BAD_PIECE)?;
                quirks.limits.zero = Some(most);
                "max-zero"
            }
            (word, None) => {
                let known = WORDS.iter().find(|(_, text)| text.as_bytes() == word);
                let (word, text) = known.ok_or_else(|| params::bad("quirks", value, UNKNOWN))?;
                quirks.ladder = match word {
                    Word::NoOptGo => quirks.ladder.without_go(),
                    Word::NoStructured => quirks.ladder.without_structured(),
                    Word::NoExtended => quirks.ladder.without_extended(),
                    Word::Extended => {
                        quirks.asks_again = true;
                        quirks.ladder
                    }
                    Word::NoMeta => quirks.ladder.without_meta(),
                };
                text
            }
            _ => return Err(params::bad("quirks", value, UNKNOWN)),
        };
        if said.contains(&name) {
            return Err(Error::RepeatedQuirk(name));
        }
        said.push(name);
    }
    let text = |wanted| {
        WORDS
            .iter()
            .find(|(word, _)| *word == wanted)
            .map(|(_, text)| *text)
    };
    let conflict = CONFLICTS
        .into_iter()
        .filter_map(text)
        .find(|word| said.contains(word));
    match conflict {
        Some(word) if said.contains(&"extended") => Err(Error::ConflictingQuirks(word)),
        _ => Ok(quirks),
    }
}

/// A size that is a whole number of sectors, at least one and at most so many bytes.
fn size_within(
    key: &'static str,
    value: &[u8],
    most: u64,
    why: &'static str,
) -> Result<u64, Error> {
    let size = params::size(key, value)?;
    match size > 0 && size <= most && size % 512 == 0 {
        true => Ok(size),
        false => Err(params::bad(key, value, why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quirks(text: &str) -> Quirks {
        parse(text.as_bytes()).expect(text)
    }

    fn message(text: &str) -> String {
        parse(text.as_bytes()).expect_err(text).to_string()
    }

    #[test]
    fn words_take_questions_away() {
        let all = Ladder::default();
        for (text, ladder) in [
            ("extended", all),
            ("no-extended", all.without_extended()),
            ("no-meta", all.without_meta()),
            ("extended,no-meta", all.without_meta()),
            (
                "no-structured",
                all.without_extended().without_structured().without_meta(),
            ),
            ("no-opt-go", all.without_extended().without_go()),
            (
                "no-opt-go,no-structured",
                all.without_structured().without_go(),
            ),
            (
                "no-structured,no-opt-go",
                all.without_structured().without_go(),
            ),
        ] {
            let expected = Quirks {
                ladder,
                asks_again: text.split(',').any(|word| word == "extended"),
                limits: Limits::default(),
            };
            assert_eq!(quirks(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_implied_is_gone_as_well() {
        let ladder = |text| quirks(text).ladder;
        assert_eq!(
            ladder("no-structured"),
            ladder("no-structured,no-meta,no-extended")
        );
        assert_eq!(ladder("no-opt-go"), ladder("no-opt-go,no-extended"));
        assert_ne!(ladder("no-opt-go"), ladder("no-opt-go,no-meta"));
    }

    #[test]
    fn sizes_limit_what_is_asked_for_at_once() {
        let all = quirks("max-zero=1G,max-request=64k,no-meta,max-status=8T");
        assert_eq!(
            all.limits,
            Limits {
                payload: Some(64 << 10),
                status: Some(8 << 40),
                zero: Some(1 << 30),
            }
        );
        assert_eq!(all.ladder, Ladder::default().without_meta());
        assert_eq!(quirks("max-request=64M").limits.payload, Some(64 << 20));
        assert_eq!(quirks("max-request=1s").limits.payload, Some(512));
    }

    #[test]
    fn what_is_no_quirk_is_refused_with_what_there_is() {
        for text in [
            "",
            ",",
            "no-meta,",
            ",no-meta",
            "no-meta, no-opt-go",
            "No-Meta",
            "no-go",
            "no-meta=1",
            "no-meta=",
            "max-request",
            "max-read=1M",
            "=1M",
        ] {
            assert_eq!(message(text), format!("quirks={text}: {UNKNOWN}"));
        }
        assert!(parse(b"no-meta\xff").is_err());
    }

    #[test]
    fn sizes_are_whole_sectors_within_bounds() {
        for text in [
            "max-request=0",
            "max-request=65537k",
            "max-request=513",
            "max-request=1G",
        ] {
            assert_eq!(message(text), format!("quirks={text}: {BAD_PAYLOAD}"));
        }
        for text in ["max-status=0", "max-zero=511", "max-zero=0k"] {
            assert_eq!(message(text), format!("quirks={text}: {BAD_PIECE}"));
        }
        for (text, why) in [
            ("max-zero=", "must be a size such as 1048576, 64M or 1G"),
            ("max-zero=1M=2", "must be a size such as 1048576, 64M or 1G"),
            ("max-status=-1", "must be a size such as 1048576, 64M or 1G"),
            ("max-status=8E", "must be less than 8E"),
        ] {
            assert_eq!(message(text), format!("quirks={text}: {why}"));
        }
    }

    #[test]
    fn what_is_said_twice_or_against_itself_is_refused() {
        assert_eq!(
            message("no-meta,no-meta"),
            "quirks: ‘no-meta’ is given twice"
        );
        assert_eq!(
            message("max-zero=1M,max-zero=2M"),
            "quirks: ‘max-zero’ is given twice"
        );
        for word in ["no-extended", "no-structured", "no-opt-go"] {
            let expected = format!("quirks: cannot mix ‘extended’ with ‘{word}’");
            assert_eq!(message(&format!("extended,{word}")), expected);
            assert_eq!(message(&format!("{word},max-zero=1M,extended")), expected);
        }
    }
}
