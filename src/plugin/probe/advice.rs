// SPDX-License-Identifier: BSD-3-Clause
//! Which parameters fit a server, and why.

use crate::client::probe::report::{Answer, Reach, Report};
use crate::proto::codec::is_bidi_override;
use crate::proto::consts::{OptionReply, OptionType, TransmissionFlags};
use crate::proto::handshake::TlsPolicy;

/// A parameter that fits.
#[derive(Debug, PartialEq, Eq)]
pub struct Advice {
    /// Its name.
    pub parameter: &'static str,
    /// Its value.
    pub value: String,
    /// What speaks for it.
    pub why: &'static str,
}

impl Advice {
    fn new(parameter: &'static str, value: impl Into<String>, why: &'static str) -> Self {
        Self {
            parameter,
            value: value.into(),
            why,
        }
    }
}

/// What fits, the most important first.
pub fn advice(report: &Report) -> Vec<Advice> {
    let all = [
        tls(report),
        export(report),
        quirks(report),
        align(report),
        connections(report),
        reconnect(report),
    ];
    all.into_iter().flatten().collect()
}

fn tls(report: &Report) -> Option<Advice> {
    let why = match (report.tls_policy, report.demands_tls, report.offers_tls) {
        (TlsPolicy::Off, Some(true), _) => "the server demands it",
        (TlsPolicy::Off, _, Some(true)) if report.reach == Reach::Network => {
            "the server has it, and the network may be listened to"
        }
        (TlsPolicy::Allow, _, Some(true)) => "the server has it, and nothing goes in clear then",
        _ => return None,
    };
    Some(Advice::new("tls", "require", why))
}

/// If there is no default export.
fn export(report: &Report) -> Option<Advice> {
    let missing = matches!(
        report.answer(OptionType::INFO),
        Some(Answer::Refused { reply, .. }) if *reply == OptionReply::ERR_UNKNOWN
    );
    let listing = report.listing.as_ref().filter(|_| missing)?;
    match &*listing.exports {
        [] => None,
        [(only, _)] => {
            // What cannot be typed is not told to be.
            let name = std::str::from_utf8(only.name.as_bytes()).ok()?;
            let odd = |c: char| c.is_control() || is_bidi_override(c);
            let plain = !name.is_empty() && !name.contains(odd);
            let why = "there is no default export, and one with a name";
            plain.then(|| Advice::new("export", name, why))
        }
        _ => {
            let why = "there is no default export: clients choose among those with names";
            Some(Advice::new("dynamic-export", "true", why))
        }
    }
}

/// What the server could not stand is not asked any more.
fn quirks(report: &Report) -> Option<Advice> {
    let spared = [
        (OptionType::EXTENDED_HEADERS, "no-extended"),
        (OptionType::STRUCTURED_REPLY, "no-structured"),
        (OptionType::SET_META_CONTEXT, "no-meta"),
        (OptionType::INFO, "no-opt-go"),
    ];
    let fatal = |option: OptionType| report.answer(option) == Some(&Answer::HungUp);
    let quirks: Vec<_> = spared
        .into_iter()
        .filter_map(|(option, quirk)| fatal(option).then_some(quirk))
        .collect();
    let why = "the server hangs up over these questions: one connection less for each";
    (!quirks.is_empty()).then(|| Advice::new("quirks", quirks.join(","), why))
}

fn align(report: &Report) -> Option<Advice> {
    let facts = report.export.facts.as_ref()?;
    let coarse = facts.block_sizes.is_some_and(|sizes| sizes.minimum > 1);
    let why = "the server takes whole blocks only, and clients may ask for parts of them";
    coarse.then(|| Advice::new("align", "emulate", why))
}

fn connections(report: &Report) -> Option<Advice> {
    let facts = report.export.facts.as_ref()?;
    let why = if facts.flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
        "several connections see the same data (NBD_FLAG_CAN_MULTI_CONN)"
    } else if facts.flags.contains(TransmissionFlags::READ_ONLY) {
        "the export is read-only, so several connections do no harm"
    } else {
        return None;
    };
    Some(Advice::new("connections", "4", why))
}

fn reconnect(report: &Report) -> Option<Advice> {
    let why = "a loss of the connection is a pause then, and no error";
    (report.reach != Reach::Local).then(|| Advice::new("reconnect", "60", why))
}
