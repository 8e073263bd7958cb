// SPDX-License-Identifier: BSD-3-Clause
//! A snapshot as `key=value` lines. The manual documents each key (STATISTICS), and they do not change
//! their meaning while [`FORMAT`] stays the same.

use std::fmt::Write;

use super::{Asked, ERRNOS, Event, Quantiles, Snapshot, Times};

/// Which keys there are and what they mean. New ones may come without a new number.
pub const FORMAT: u32 = 1;

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A text, without control characters.
    Text(String),
}

impl Snapshot {
    /// All keys with their values, in order.
    pub fn rows(&self) -> Vec<(String, Value)> {
        let mut rows = Rows::default();
        rows.number("stats_format", u64::from(FORMAT));
        rows.text("version", env!("CARGO_PKG_VERSION"));
        rows.number("uptime_ms", self.uptime.as_millis() as u64);
        let peer = self.peer.clone().unwrap_or_default();
        let tls = peer.tls.unwrap_or_default();
        rows.text("server", &peer.server);
        rows.text("export", &peer.export);
        rows.text("tls_version", &tls.version);
        rows.text("tls_cipher", &tls.cipher);
        rows.text("tls_key_exchange", &tls.key_exchange);
        rows.number("in_flight", self.in_flight);
        rows.number("in_flight_max", self.in_flight_max);
        for event in Event::ALL {
            rows.number(event.name(), self.event(event));
        }
        for ((name, _), count) in ERRNOS.iter().zip(self.errors) {
            rows.number(&format!("errors_{name}"), count);
        }
        let total = |of: fn(&super::Command) -> u64| self.commands.iter().map(of).sum();
        rows.number("all_requests", total(|command| command.requests));
        rows.number("all_failed", total(|command| command.failed));
        rows.number("all_bytes", total(|command| command.bytes));
        rows.times("all", &self.times);
        for asked in Asked::ALL {
            let (name, command) = (asked.name(), self.command(asked));
            rows.number(&format!("{name}_requests"), command.requests);
            rows.number(&format!("{name}_failed"), command.failed);
            rows.number(&format!("{name}_bytes"), command.bytes);
            rows.times(name, &command.times);
        }
        rows.0
    }

    /// The same as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (key, value) in self.rows() {
            // Writing to a string does not fail.
            let _ = match value {
                Value::Number(number) => writeln!(text, "{key}={number}"),
                Value::Text(value) => writeln!(text, "{key}={value}"),
            };
        }
        text
    }
}

impl Event {
    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opened => "connections_opened",
            Self::Lost => "connections_lost",
            Self::Replaced => "connections_replaced",
            Self::Replay => "replays",
            Self::ReplayRequest => "replayed_requests",
            Self::ReplayByte => "replayed_bytes",
            Self::SentAgain => "requests_sent_again",
            Self::Cut => "requests_cut",
            Self::Piece => "pieces",
            Self::ExtentsFromMemory => "extents_from_memory",
            Self::ReadFromMemory => "reads_from_memory",
            Self::Slow => "slow_requests",
        }
    }
}

#[derive(Default)]
struct Rows(Vec<(String, Value)>);

impl Rows {
    fn number(&mut self, key: &str, value: u64) {
        self.0.push((key.to_owned(), Value::Number(value)));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.0.push((key.to_owned(), Value::Text(value.to_owned())));
    }

    fn times(&mut self, command: &str, times: &Times) {
        for (
            kind,
            Quantiles {
                p50,
                p90,
                p99,
                p999,
                max,
                ..
            },
        ) in [("queue", times.queue), ("server", times.server)]
        {
            let all = [
                ("p50", p50),
                ("p90", p90),
                ("p99", p99),
                ("p999", p999),
                ("max", max),
            ];
            for (which, time) in all {
                // To the nearest: what is less than half of one is none.
                let micros = (time.as_nanos() + 500) / 1000;
                self.number(&format!("{command}_{kind}_{which}_us"), micros as u64);
            }
        }
    }
}
