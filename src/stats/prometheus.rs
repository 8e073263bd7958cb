// SPDX-License-Identifier: BSD-3-Clause
//! A snapshot in Prometheus' text format, as node_exporter's textfile collector reads it.
//!
//! That collector takes the files of many writers for one whole, in which nothing may be there twice: so
//! each line says whose it is, in the label `name`.

use std::fmt::Write;
use std::time::Duration;

use super::{Asked, ERRNOS, Event, Quantiles, Snapshot, Times};

impl Snapshot {
    /// The text, for the nbdkit of that name.
    pub fn prometheus(&self, name: &str) -> String {
        let mut page = Page::new(name);
        let peer = self.peer.clone().unwrap_or_default();
        let tls = peer.tls.unwrap_or_default();
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("server", &peer.server),
            ("export", &peer.export),
            ("tls_version", &tls.version),
            ("tls_cipher", &tls.cipher),
            ("tls_key_exchange", &tls.key_exchange),
        ];
        page.head(
            "info",
            "gauge",
            "The plugin, and the server of its newest connection.",
        );
        page.sample("info", &labels, 1);
        page.head("uptime_seconds", "gauge", "Time since counting began.");
        page.sample("uptime_seconds", &[], seconds(self.uptime));
        page.head("in_flight", "gauge", "Requests that are in flight.");
        page.sample("in_flight", &[], self.in_flight);
        page.head(
            "in_flight_max",
            "gauge",
            "The most requests that ever were in flight.",
        );
        page.sample("in_flight_max", &[], self.in_flight_max);
        for event in Event::ALL {
            let metric = format!("{}_total", event.name());
            page.head(&metric, "counter", event.help());
            page.sample(&metric, &[], self.event(event));
        }
        page.head(
            "errors_total",
            "counter",
            "Requests that failed, by error number.",
        );
        for ((errno, _), count) in ERRNOS.iter().zip(self.errors) {
            page.sample("errors_total", &[("errno", errno)], count);
        }
        let counters: [Metric<super::Command, u64>; 3] = [
            ("requests_total", "Requests that are over.", |of| {
                of.requests
            }),
            ("failed_total", "Requests that failed.", |of| of.failed),
            (
                "bytes_total",
                "Bytes that good requests were about.",
                |of| of.bytes,
            ),
        ];
        for (metric, help, count) in counters {
            page.head(metric, "counter", help);
            for asked in Asked::ALL {
                let labels = [("command", asked.name())];
                page.sample(metric, &labels, count(self.command(asked)));
            }
        }
        let summaries: [Metric<Times, Quantiles>; 2] = [
            (
                "queue_seconds",
                "Time of requests while nothing of them was at the server.",
                |of| of.queue,
            ),
            (
                "server_seconds",
                "Time of requests while they were at the server.",
                |of| of.server,
            ),
        ];
        for (metric, help, times) in summaries {
            page.head(metric, "summary", help);
            for asked in Asked::ALL {
                page.summary(metric, asked.name(), &times(&self.command(asked).times));
            }
        }
        page.text
    }
}

impl Event {
    fn help(self) -> &'static str {
        match self {
            Self::Opened => "Connections that were opened.",
            Self::Lost => "Connections that ended and that nobody here had left.",
            Self::Replaced => "Connections that took the place of a lost one.",
            Self::Replay => "Times that unflushed writes were written again.",
            Self::ReplayRequest => "Requests of that.",
            Self::ReplayByte => "Bytes of that.",
            Self::SentAgain => "Requests that were sent once more.",
            Self::Cut => "Requests that were cut for the server.",
            Self::Piece => "Pieces of those.",
            Self::ExtentsFromMemory => "Questions for extents that were answered from memory.",
            Self::ReadFromMemory => "Reads that were answered from memory.",
            Self::Slow => "Requests that took longer than slow-log.",
        }
    }
}

/// A metric's name, what it is, and where its value is.
type Metric<Of, Value> = (&'static str, &'static str, fn(&Of) -> Value);

/// What all metrics' names begin with.
const PREFIX: &str = "nbdkit_nbd_";

struct Page {
    /// The label that each line has.
    name: String,
    text: String,
}

impl Page {
    fn new(name: &str) -> Self {
        Self {
            name: escaped(name),
            text: String::new(),
        }
    }

    fn head(&mut self, metric: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {PREFIX}{metric} {help}");
        let _ = writeln!(self.text, "# TYPE {PREFIX}{metric} {kind}");
    }

    fn sample(&mut self, metric: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.text, "{PREFIX}{metric}{{name=\"{}\"", self.name);
        for (label, value) in labels {
            let _ = write!(self.text, ",{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(self.text, "}} {value}");
    }

    fn summary(&mut self, metric: &str, command: &str, of: &Quantiles) {
        let quantiles = [
            ("0.5", of.p50),
            ("0.9", of.p90),
            ("0.99", of.p99),
            ("0.999", of.p999),
            ("1", of.max),
        ];
        for (quantile, time) in quantiles {
            let labels = [("command", command), ("quantile", quantile)];
            self.sample(metric, &labels, seconds(time));
        }
        let labels = [("command", command)];
        self.sample(&format!("{metric}_sum"), &labels, seconds(of.sum));
        self.sample(&format!("{metric}_count"), &labels, of.count);
    }
}

fn seconds(time: Duration) -> String {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}

/// As the value of a label is written.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_label_is_escaped() {
        assert_eq!(escaped("a\"b\\c\nd{}é"), "a\\\"b\\\\c\\nd{}é");
    }

    #[test]
    fn seconds_have_all_their_digits() {
        assert_eq!(seconds(Duration::from_nanos(1_000_000_002)), "1.000000002");
    }
}
