// SPDX-License-Identifier: BSD-3-Clause
//! The report for people: a fact a line, and below each server what to type.

use std::time::Duration;

use super::advice::{Advice, advice};
use crate::client::probe::report::{Answer, Export, Facts, Listing, Report};
use crate::client::probe::{Found, MAX_EXPORTS};
use crate::proto::codec::printable;
use crate::proto::consts::{MAX_TEXT, TransmissionFlags};
use crate::proto::handshake::TlsPolicy;

/// Bytes of a context's name that are shown: names of bitmaps are up to 1023 bytes long.
const CONTEXT: usize = 1100;

/// The transmission flags that are told of: as a key for programs, and for people.
pub const FLAGS: [(&str, &str, TransmissionFlags); 10] = [
    ("read_only", "read-only", TransmissionFlags::READ_ONLY),
    ("flush", "flush", TransmissionFlags::SEND_FLUSH),
    ("fua", "FUA", TransmissionFlags::SEND_FUA),
    ("rotational", "rotational", TransmissionFlags::ROTATIONAL),
    ("trim", "trim", TransmissionFlags::SEND_TRIM),
    (
        "write_zeroes",
        "write zeroes",
        TransmissionFlags::SEND_WRITE_ZEROES,
    ),
    ("fast_zero", "fast zero", TransmissionFlags::SEND_FAST_ZERO),
    (
        "multi_conn",
        "multi-conn",
        TransmissionFlags::CAN_MULTI_CONN,
    ),
    ("cache", "cache", TransmissionFlags::SEND_CACHE),
    ("df", "DF", TransmissionFlags::SEND_DF),
];

/// All lines.
pub fn report(found: &[Found]) -> Vec<String> {
    let mut lines = Vec::new();
    for (server, result) in found {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.push(format!("server: {server}"));
        match result {
            Ok(report) => about(report, &mut lines),
            Err(error) => lines.push(format!("  error: {error}")),
        }
    }
    lines
}

fn about(report: &Report, lines: &mut Vec<String>) {
    lines.push(format!("  handshake: {}", report.style));
    protection(report, lines);
    lines.push("  options:".to_owned());
    for (option, answer) in &report.options {
        lines.push(format!("    {option}: {}", said(answer)));
    }
    match &report.listing {
        Some(listing) => exports(listing, lines),
        None => lines.push("  exports: not listed".to_owned()),
    }
    export(&report.export, lines);
    match report.round_trip {
        Some(time) => lines.push(format!(
            "  round trip: {} (median of {} NBD_OPT_INFO)",
            short(time.median),
            time.rounds
        )),
        None => lines.push("  round trip: not measured".to_owned()),
    }
    let advice = advice(report);
    if !advice.is_empty() {
        lines.push("  parameters that fit:".to_owned());
    }
    for Advice {
        parameter,
        value,
        why,
    } in advice
    {
        lines.push(format!(
            "    {}  # {why}",
            shell(&format!("{parameter}={value}"))
        ));
    }
}

fn protection(report: &Report, lines: &mut Vec<String>) {
    let Some(facts) = &report.tls else {
        let has = match (report.demands_tls, report.offers_tls, report.tls_policy) {
            (Some(true), _, _) => "the server demands it",
            (_, Some(true), _) => "the server offers it",
            (_, Some(false), _) => "the server does not have it",
            (_, None, TlsPolicy::Off) => "whether the server offers it is not known",
            (_, None, _) => "the server was not asked",
        };
        lines.push(format!("  TLS: none; {has}"));
        return;
    };
    let mut what = facts.version.clone();
    if let Some(cipher) = &facts.cipher {
        what.push_str(&format!(", {cipher}"));
    }
    if let Some(group) = &facts.key_exchange {
        what.push_str(&format!(", key exchange {group}"));
    }
    lines.push(format!("  TLS: {what}"));
    if let Some(certificate) = &facts.certificate {
        lines.push("  certificate:".to_owned());
        lines.push(format!("    subject: {}", certificate.subject));
        lines.push(format!("    issuer: {}", certificate.issuer));
        lines.push(format!("    expires: {}", certificate.expires));
    }
}

fn said(answer: &Answer) -> String {
    match answer {
        Answer::Agreed => "agreed".to_owned(),
        Answer::Refused { reply, text } if text.is_empty() => format!("refused, {reply}"),
        Answer::Refused { reply, text } => format!("refused, {reply}: {text}"),
        Answer::HungUp => "the server hung up".to_owned(),
        Answer::NotAsked(why) => format!("not asked ({why})"),
    }
}

fn exports(listing: &Listing, lines: &mut Vec<String>) {
    lines.push(format!("  exports: {}", listing.total));
    for (entry, size) in &listing.exports {
        let mut line = format!("    \"{}\"", entry.name);
        if let Some(size) = size {
            line.push_str(&format!(", {size} bytes"));
        }
        if !entry.description.is_empty() {
            let text = printable(entry.description.as_bytes(), MAX_TEXT);
            line.push_str(&format!(", {text}"));
        }
        lines.push(line);
    }
    if listing.total > listing.exports.len() {
        let more = listing.total - listing.exports.len();
        lines.push(format!("    and {more} more"));
    }
}

fn export(export: &Export, lines: &mut Vec<String>) {
    let Some(facts) = &export.facts else {
        lines.push(format!(
            "  export \"{}\": nothing is told of it",
            export.name
        ));
        return;
    };
    lines.push(format!("  export \"{}\":", export.name));
    lines.push(format!("    size: {} bytes", facts.size));
    if let Some(name) = facts
        .canonical_name
        .as_ref()
        .filter(|name| **name != export.name)
    {
        lines.push(format!("    name: \"{name}\""));
    }
    if let Some(text) = &facts.description {
        lines.push(format!(
            "    description: {}",
            printable(text.as_bytes(), MAX_TEXT)
        ));
    }
    lines.push(format!("    flags: {}", flags(facts)));
    match facts.block_sizes {
        Some(sizes) => lines.push(format!(
            "    block sizes: minimum {}, preferred {}, maximum {}",
            sizes.minimum, sizes.preferred, sizes.maximum
        )),
        None => lines.push("    block sizes: not told".to_owned()),
    }
    if export.contexts.is_empty() {
        lines.push("    metadata contexts: none".to_owned());
        return;
    }
    lines.push("    metadata contexts:".to_owned());
    for name in export.contexts.iter().take(MAX_EXPORTS) {
        lines.push(format!("      {}", printable(name, CONTEXT)));
    }
    if export.contexts.len() > MAX_EXPORTS {
        let more = export.contexts.len() - MAX_EXPORTS;
        lines.push(format!("      and {more} more"));
    }
}

fn flags(facts: &Facts) -> String {
    let has = FLAGS
        .into_iter()
        .filter(|(_, _, flag)| facts.flags.contains(*flag));
    let words: Vec<_> = has.map(|(_, word, _)| word).collect();
    match words.is_empty() {
        true => "none".to_owned(),
        false => words.join(", "),
    }
}

/// A time, in what people count such times in.
fn short(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros < 1000.0 {
        true => format!("{micros:.0} us"),
        false => format!("{:.1} ms", micros / 1000.0),
    }
}

/// A word as it is typed into a shell.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "=_-./:,@+".contains(c);
    match word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
