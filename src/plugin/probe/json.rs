// SPDX-License-Identifier: BSD-3-Clause
//! The report for programs: one JSON object on one line. Its keys are in the manual under PROBING, and
//! stay; what is not known is null.

use super::advice::{Advice, advice};
use super::text;
use crate::client::probe::Found;
use crate::client::probe::report::{Answer, Export, Facts, Listing, Report};
use crate::json::Value;
use crate::proto::handshake::Listed;
use crate::proto::name::ExportName;
use crate::transport::tls;

/// Raised when a key changes its meaning or goes. That one is added is no other format.
const FORMAT: u64 = 1;

/// The whole of it.
pub fn report(found: &[Found]) -> Value {
    let one = |(server, result): &Found| match result {
        Ok(report) => about(report),
        Err(error) => Value::Object(vec![
            ("address", Value::from(&**server)),
            ("error", error.to_string().into()),
        ]),
    };
    Value::Object(vec![
        ("probe_format", FORMAT.into()),
        ("servers", found.iter().map(one).collect()),
    ])
}

fn about(report: &Report) -> Value {
    let options = report.options.iter();
    let options = options.map(|(option, answer)| {
        let mut members = vec![("option", Value::from(option.to_string()))];
        members.extend(said(answer));
        Value::Object(members)
    });
    let round_trip = report.round_trip.map(|time| {
        Value::Object(vec![
            ("seconds", Value::Precise(time.median)),
            ("rounds", time.rounds.into()),
            ("by", "NBD_OPT_INFO".into()),
        ])
    });
    Value::Object(vec![
        ("address", Value::from(&*report.server)),
        ("error", Value::Null),
        ("style", report.style.to_string().into()),
        ("tls", protection(report)),
        ("options", options.collect()),
        ("exports", report.listing.as_ref().map(exports).into()),
        ("export", export(&report.export)),
        ("round_trip", round_trip.into()),
        (
            "suggestions",
            advice(report).into_iter().map(Value::from).collect(),
        ),
    ])
}

fn protection(report: &Report) -> Value {
    let facts = report.tls.as_ref();
    let certificate = facts.and_then(|facts| facts.certificate.clone());
    let certificate = certificate.map(|certificate: tls::Certificate| {
        Value::Object(vec![
            ("subject", certificate.subject.into()),
            ("issuer", certificate.issuer.into()),
            ("expires", certificate.expires.into()),
        ])
    });
    Value::Object(vec![
        ("used", facts.is_some().into()),
        ("offered", report.offers_tls.into()),
        ("demanded", report.demands_tls.into()),
        ("version", facts.map(|facts| facts.version.clone()).into()),
        (
            "cipher",
            facts.and_then(|facts| facts.cipher.clone()).into(),
        ),
        (
            "key_exchange",
            facts.and_then(|facts| facts.key_exchange.clone()).into(),
        ),
        ("certificate", certificate.into()),
    ])
}

fn said(answer: &Answer) -> [(&'static str, Value); 3] {
    let (word, reply, text) = match answer {
        Answer::Agreed => ("agreed", None, None),
        Answer::Refused { reply, text } => {
            let text = (!text.is_empty()).then(|| text.clone());
            ("refused", Some(reply.to_string()), text)
        }
        Answer::HungUp => ("hung up", None, None),
        Answer::NotAsked(why) => ("not asked", None, Some((*why).to_owned())),
    };
    [
        ("answer", word.into()),
        ("reply", reply.into()),
        ("text", text.into()),
    ]
}

fn exports(listing: &Listing) -> Value {
    let one = |(entry, size): &(Listed, Option<u64>)| {
        let [name, bytes] = named(&entry.name);
        Value::Object(vec![
            name,
            bytes,
            ("description", entry.description.clone().into()),
            ("size", (*size).into()),
        ])
    };
    Value::Object(vec![
        ("total", listing.total.into()),
        ("first", listing.exports.iter().map(one).collect()),
    ])
}

/// A name as a text, and its bytes where it is no text.
fn named(name: &ExportName) -> [(&'static str, Value); 2] {
    let bytes = name.as_bytes();
    let text = String::from_utf8_lossy(bytes);
    let hex = std::str::from_utf8(bytes).is_err().then(|| {
        let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    });
    [("name", text.into_owned().into()), ("name_hex", hex.into())]
}

fn export(export: &Export) -> Value {
    let [name, bytes] = named(&export.name);
    let facts = export.facts.as_ref();
    let canonical = facts.and_then(|facts| facts.canonical_name.as_ref());
    let canonical = canonical.map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
    let sizes = facts.and_then(|facts| facts.block_sizes).map(|sizes| {
        Value::Object(vec![
            ("minimum", sizes.minimum.into()),
            ("preferred", sizes.preferred.into()),
            ("maximum", sizes.maximum.into()),
        ])
    });
    let contexts = export.contexts.iter();
    let contexts = contexts.map(|name| String::from_utf8_lossy(name).into_owned());
    Value::Object(vec![
        name,
        bytes,
        ("size", facts.map(|facts| facts.size).into()),
        ("canonical_name", canonical.into()),
        (
            "description",
            facts.and_then(|facts| facts.description.clone()).into(),
        ),
        ("flags", facts.map(flags).into()),
        ("block_sizes", sizes.into()),
        ("contexts", contexts.collect()),
    ])
}

fn flags(facts: &Facts) -> Value {
    let has = |(key, _, flag)| (key, Value::from(facts.flags.contains(flag)));
    Value::Object(text::FLAGS.into_iter().map(has).collect())
}

impl From<Advice> for Value {
    fn from(advice: Advice) -> Self {
        Self::Object(vec![
            ("parameter", advice.parameter.into()),
            ("value", advice.value.into()),
            ("reason", advice.why.into()),
        ])
    }
}
