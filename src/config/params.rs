// SPDX-License-Identifier: BSD-3-Clause
//! One value at a time: text to meaning, or what is wrong with it.

use std::ffi::{OsStr, OsString};
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Align, DetectZeroes, Error, Linger, uri};
use crate::proto::codec::printable;
use crate::proto::name::ExportName;
use crate::transport::resolve::knows_service;
use crate::transport::{Deadline, keepalive, unix};

/// What is wrong with a long export name.
pub const NAME_TOO_LONG: &str = "must be at most 4096 bytes long";
const NO_SERVICE: &str = "must be the name of a TCP service that this system knows (see services(5)), \
                          or a number";
const EMPTY: &str = "must not be empty";
const BAD_TIME: &str = "must be a time such as 30, 1.5s or 200ms, or 0 for none";
/// What is wrong with a long time.
pub const TIME_TOO_LONG: &str = "must be at most 366 days";
/// Longest time, seconds: a year. More is a typing mistake.
const MAX_SECONDS: f64 = 366.0 * 86400.0;
const CONTROL_TOO_LONG: &str =
    "must be at most 107 bytes long with its directory, as it is a Unix socket";
const BAD_SIZE: &str = "must be a size such as 1048576, 64M or 1G";
const SIZE_TOO_LARGE: &str = "must be less than 8E";

/// More connections than that are a typing mistake.
const MAX_CONNECTIONS: u32 = 64;
const BAD_CONNECTIONS: &str = "must be a number from 1 to 64";

/// How long the system may take to look up a service, which mostly is in a file.
const SERVICE_PATIENCE: Duration = Duration::from_secs(10);

/// A value as messages show it.
pub fn shown(value: &[u8]) -> String {
    printable(value, 200)
}

/// Refuses a URI that was given to another parameter, before any message repeats it: there may be a
/// password in it, or where one was meant to be: an at sign behind a colon, each as such or as an escape.
pub fn refuse_uri(key: &str, value: &[u8]) -> Result<(), Error> {
    // These are anybody's words.
    let any = ["uri", "export", "arg", "tls-username", "tls-key-password"];
    match !any.contains(&key) && (is_uri(value) || has_password(value)) {
        true => Err(Error::UriElsewhere(shown(key.as_bytes()))),
        false => Ok(()),
    }
}

fn has_password(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value)
        .to_ascii_lowercase()
        .replace("%3a", ":")
        .replace("%40", "@");
    let authority = text.split_once("://").map(|(_, rest)| rest);
    let behind_colon = authority.and_then(|authority| authority.split_once(':'));
    behind_colon.is_some_and(|(_, rest)| rest.contains('@'))
}

/// Text that is not empty.
pub fn text(key: &'static str, value: &[u8]) -> Result<String, Error> {
    match std::str::from_utf8(value) {
        Ok("") => Err(bad(key, value, EMPTY)),
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(bad(key, value, "must be UTF-8")),
    }
}

/// An argument of a command; any bytes, but not none.
pub fn argument(key: &'static str, value: &[u8]) -> Result<OsString, Error> {
    if value.is_empty() && key == "command" {
        return Err(bad(key, value, EMPTY));
    }
    Ok(OsStr::from_bytes(value).to_owned())
}

/// A yes or no, in the words that nbdkit knows.
pub fn boolean(key: &'static str, value: &[u8]) -> Result<bool, Error> {
    const YES: [&[u8]; 5] = [b"true", b"t", b"yes", b"y", b"on"];
    const NO: [&[u8]; 5] = [b"false", b"f", b"no", b"n", b"off"];
    let is_one_of = |words: [&[u8]; 5]| words.iter().any(|word| word.eq_ignore_ascii_case(value));
    match value {
        b"1" => Ok(true),
        b"0" => Ok(false),
        _ if is_one_of(YES) => Ok(true),
        _ if is_one_of(NO) => Ok(false),
        _ => Err(Error::Boolean {
            key,
            value: shown(value),
        }),
    }
}

/// A number that is not negative: decimal, hexadecimal behind `0x`, or octal behind `0`, as nbdkit
/// itself reads numbers; white space and a plus may be in front of it. Errors name `what`, which is not
/// always the parameter.
pub fn number(what: &'static str, value: &[u8]) -> Result<u32, Error> {
    let error = |why| Error::Number {
        what,
        value: shown(value),
        why,
    };
    let text = std::str::from_utf8(value).map_err(|_| error("not a number"))?;
    let text = text.trim_start_matches(is_space);
    if text.is_empty() {
        return Err(Error::NoNumber(what));
    }
    if text.starts_with('-') {
        return Err(error("negative numbers are not allowed"));
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(error("not a number"));
    }
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(error("trailing garbage"));
    }
    u32::from_str_radix(digits, radix).map_err(|_| error("Numerical result out of range"))
}

/// What C passes over in front of a number.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// How many connections to have.
pub fn connections(value: &[u8]) -> Result<usize, Error> {
    match number("connections", value)? {
        number @ 1..=MAX_CONNECTIONS => Ok(number as usize),
        _ => Err(bad("connections", value, BAD_CONNECTIONS)),
    }
}

/// A file descriptor.
pub fn descriptor(value: &[u8]) -> Result<i32, Error> {
    let number = match value.trim_ascii_start().strip_prefix(b"-") {
        Some(digits) => number("socket-fd", digits).map(|_| -1)?,
        None => {
            let number = number("socket-fd", value)?;
            i32::try_from(number).map_err(|_| Error::Number {
                what: "socket-fd",
                value: shown(value),
                why: "Numerical result out of range",
            })?
        }
    };
    if number < 0 {
        return Err(Error::NegativeDescriptor);
    }
    Ok(number)
}

/// A host alone, by name or address; the mistakes that people make have messages of their own.
pub fn host(value: &[u8]) -> Result<String, Error> {
    let host = text("hostname", value)?;
    // A user, and who knows what else, is only in a URI.
    if host.contains('@') {
        return Err(Error::UriElsewhere("hostname".to_owned()));
    }
    if host.starts_with(['/', '.']) {
        return Err(bad("hostname", value, "must be a host: write socket=PATH"));
    }
    if let Some((inside, after)) = host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        return Err(match after.strip_prefix(':') {
            Some(port) => host_and_port(&host, inside, port),
            None => bad("hostname", value, "must be without brackets"),
        });
    }
    // A zone is the name of a network interface, which may have any character in it.
    let address = host.split_once('%').map_or(&*host, |(address, _)| address);
    match address.split_once(':') {
        None => Ok(host),
        Some(_) if address.parse::<Ipv6Addr>().is_ok() => Ok(host),
        Some((name, port)) if !port.contains(':') => Err(host_and_port(&host, name, port)),
        Some(_) => Err(bad("hostname", value, "must be a host or an IP address")),
    }
}

fn host_and_port(value: &str, host: &str, port: &str) -> Error {
    Error::HostAndPort {
        value: shown(value.as_bytes()),
        host: shown(host.as_bytes()),
        port: shown(port.as_bytes()),
    }
}

/// The path of the socket for commands. It is absolute where it comes from nbdkit.
pub fn control(value: &[u8]) -> Result<PathBuf, Error> {
    let path = path("control", value)?;
    match unix::fits(&path) {
        true => Ok(path),
        false => Err(bad("control", value, CONTROL_TOO_LONG)),
    }
}

/// Whether a URI was given to a parameter that is none; a directory may be in front of it, since
/// paths are made absolute.
fn is_uri(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value);
    let scheme = text.split_once("://").map(|(before, _)| before);
    scheme.is_some_and(|before| uri::is_scheme(before.rsplit('/').next().unwrap_or(before)))
}

/// A TCP port: a number that fits, or else a service name, which has a letter in it (RFC 6335) and
/// which the system knows. White space and a plus may be in front of a number, as C reads it.
pub fn tcp_port(value: &str) -> Result<String, Error> {
    let number = value.trim_start_matches(is_space);
    let number = number.strip_prefix('+').unwrap_or(number);
    let value = match number.starts_with(|c: char| c.is_ascii_digit()) {
        true => number,
        false => value,
    };
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    let number = digits && value.parse::<u16>().is_ok_and(|port| port > 0);
    let name = value.bytes().any(|b| b.is_ascii_alphabetic())
        && value.bytes().all(|b| b.is_ascii_graphic());
    if !(number || name) {
        let why = "must be from 1 to 65535, or the name of a service";
        return Err(bad("port", value.as_bytes(), why));
    }
    // Who cannot tell within this time may know it later.
    let patience = Deadline::after(SERVICE_PATIENCE);
    if name && knows_service(value, patience) == Some(false) {
        return Err(bad("port", value.as_bytes(), NO_SERVICE));
    }
    Ok(value.to_owned())
}

/// A path; not empty.
pub fn path(key: &'static str, value: &[u8]) -> Result<PathBuf, Error> {
    if value.is_empty() {
        return Err(bad(key, value, EMPTY));
    }
    Ok(PathBuf::from(OsStr::from_bytes(value)))
}

/// An export name: any bytes but NUL, which cannot come here; the protocol limits the length.
pub fn export_name(key: &'static str, value: &[u8]) -> Result<ExportName, Error> {
    ExportName::new(value).ok_or_else(|| bad(key, value, NAME_TOO_LONG))
}

/// A time: seconds, with a fraction or the unit `s` or `ms` if wanted. Zero is no limit.
pub fn timeout(key: &'static str, value: &[u8]) -> Result<Option<Duration>, Error> {
    let time = time(key, value, value, BAD_TIME)?;
    Ok((!time.is_zero()).then_some(time))
}

/// The time that `text`, which is `value` or a part of it, means; or else that it is `malformed`.
pub fn time(
    key: &'static str,
    value: &[u8],
    text: &[u8],
    malformed: &'static str,
) -> Result<Duration, Error> {
    let text = std::str::from_utf8(text).map_err(|_| bad(key, value, malformed))?;
    duration(text).map_err(|error| match error {
        BadTime::Malformed => bad(key, value, malformed),
        BadTime::TooLong => bad(key, value, TIME_TOO_LONG),
    })
}

/// How long a way is kept for the next client: a time, or the word for ever. Zero is not at all.
pub fn linger(value: &[u8]) -> Result<Option<Linger>, Error> {
    const BAD: &str = "must be a time such as 30, 1.5s or 200ms, or forever, or 0 for none";
    if value == b"forever" {
        return Ok(Some(Linger::Forever));
    }
    let time = time("linger", value, value, BAD)?;
    Ok((!time.is_zero()).then_some(Linger::For(time)))
}

/// The time of silence after which TCP asks. Linux keeps it as seconds in fifteen bits.
pub fn keepalive(value: &[u8]) -> Result<Option<Duration>, Error> {
    let time = timeout("keepalive", value)?;
    match time {
        Some(time) if time > keepalive::LONGEST => Err(bad(
            "keepalive",
            value,
            "must be at most 32767 seconds, which is as long as Linux waits",
        )),
        time => Ok(time),
    }
}

/// Why a text is no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BadTime {
    /// It is not written like one.
    Malformed,
    /// Nobody can mean that.
    TooLong,
}

/// The time that a text means.
fn duration(text: &str) -> Result<Duration, BadTime> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    // Rust's own parser also takes signs, exponents, "inf" and "nan".
    if !number.starts_with(|c: char| c.is_ascii_digit())
        || !number.chars().all(|c| c.is_ascii_digit() || c == '.')
    {
        return Err(BadTime::Malformed);
    }
    let seconds = number.parse::<f64>().map_err(|_| BadTime::Malformed)? * unit;
    if seconds > MAX_SECONDS {
        return Err(BadTime::TooLong);
    }
    let time = Duration::from_secs_f64(seconds);
    // Zero is something else than very little.
    let is_zero = number.bytes().all(|byte| !(b'1'..=b'9').contains(&byte));
    Ok(match time.is_zero() && !is_zero {
        true => Duration::from_nanos(1),
        false => time,
    })
}

/// A size in bytes: a decimal number and, if wanted, one of nbdkit's suffixes, in either case: powers
/// of 1024 or sectors of 512 bytes. Like nbdkit's own it is below 2^63.
pub fn size(key: &'static str, value: &[u8]) -> Result<u64, Error> {
    let (digits, unit) = match value.split_last() {
        Some((last, before)) if !last.is_ascii_digit() => {
            let unit = match last.to_ascii_lowercase() {
                b'b' => 1,
                b's' => 512,
                b'k' => 1 << 10,
                b'm' => 1 << 20,
                b'g' => 1 << 30,
                b't' => 1 << 40,
                b'p' => 1 << 50,
                b'e' => 1 << 60,
                _ => return Err(bad(key, value, BAD_SIZE)),
            };
            (before, unit)
        }
        _ => (value, 1_u64),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad(key, value, BAD_SIZE));
    }
    // Only digits are left, so the one thing that can be wrong is that there are too many.
    let number = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse::<u64>().ok());
    number
        .and_then(|number| number.checked_mul(unit))
        .filter(|size| *size <= i64::MAX as u64)
        .ok_or_else(|| bad(key, value, SIZE_TOO_LARGE))
}

/// What becomes of writes that are all zeroes.
pub fn detect_zeroes(value: &[u8]) -> Result<DetectZeroes, Error> {
    match value {
        b"off" => Ok(DetectZeroes::Off),
        b"on" => Ok(DetectZeroes::On),
        b"unmap" => Ok(DetectZeroes::Unmap),
        _ => Err(bad("detect-zeroes", value, "must be off, on or unmap")),
    }
}

/// What becomes of requests that do not keep to the server's blocks.
pub fn align(value: &[u8]) -> Result<Align, Error> {
    match value {
        b"advertise" => Ok(Align::Advertise),
        b"emulate" => Ok(Align::Emulate),
        _ => Err(bad("align", value, "must be advertise or emulate")),
    }
}

/// A value that means nothing, or what must not be.
pub fn bad(key: &'static str, value: &[u8], why: &'static str) -> Error {
    Error::Value {
        key,
        value: shown(value),
        why,
    }
}

#[cfg(test)]
mod tests;
