//! One value at a time: text to meaning, or what is wrong with it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::Error;
use crate::proto::codec::printable;
use crate::proto::consts::MAX_STRING;

/// What is wrong with a long export name.
pub const NAME_TOO_LONG: &str = "must be at most 4096 bytes long";
const BAD_TIME: &str = "must be a time such as 30, 1.5s or 200ms, or 0 for none";
/// Longest time, seconds: a year. More is a typing mistake.
const MAX_SECONDS: f64 = 366.0 * 86400.0;

/// A value as messages show it.
pub fn shown(value: &[u8]) -> String {
    printable(value, 200)
}

/// A path; not empty.
pub fn path(key: &'static str, value: &[u8]) -> Result<PathBuf, Error> {
    if value.is_empty() {
        return Err(bad(key, value, "must not be empty"));
    }
    Ok(PathBuf::from(OsStr::from_bytes(value)))
}

/// An export name: the protocol demands UTF-8 and limits the length.
pub fn export_name(key: &'static str, value: &[u8]) -> Result<String, Error> {
    if value.len() > MAX_STRING {
        return Err(bad(key, value, NAME_TOO_LONG));
    }
    match std::str::from_utf8(value) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Err(bad(key, value, "must be UTF-8")),
    }
}

/// A time: seconds, with a fraction or the unit `s` or `ms` if wanted. Zero is no limit.
pub fn timeout(key: &'static str, value: &[u8]) -> Result<Option<Duration>, Error> {
    let time = std::str::from_utf8(value).ok().and_then(duration);
    let time = time.ok_or_else(|| bad(key, value, BAD_TIME))?;
    Ok((!time.is_zero()).then_some(time))
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    // Rust's own parser also takes signs, exponents, "inf" and "nan".
    if !number.starts_with(|c: char| c.is_ascii_digit())
        || !number.chars().all(|c| c.is_ascii_digit() || c == '.')
    {
        return None;
    }
    let seconds = number.parse::<f64>().ok()? * unit;
    (seconds <= MAX_SECONDS).then(|| Duration::from_secs_f64(seconds))
}

fn bad(key: &'static str, value: &[u8], why: &'static str) -> Error {
    Error::Value {
        key,
        value: shown(value),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, expected) in [
            ("30", 30_000),
            ("1.5", 1500),
            ("1.5s", 1500),
            ("200ms", 200),
            ("0", 0),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(expected)),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "s",
            "ms",
            "-1",
            "+1",
            "1e3",
            "inf",
            "nan",
            "1m",
            "1.2.3",
            "1 s",
            "9999999999999",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn zero_means_no_limit() {
        assert_eq!(timeout("request-timeout", b"0"), Ok(None));
    }
}
