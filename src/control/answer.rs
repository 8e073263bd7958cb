// SPDX-License-Identifier: BSD-3-Clause
//! What came of a command, as a line of JSON for programs, or as lines for people.
//!
//! Those for people are: `ok` or `error`, what there is to say, and an empty line.

use std::time::Duration;

use super::words::HELP;
use crate::client::helm::{Hold, Report};
use crate::client::report::{ConnectionReport, WayReport, WayState};
use crate::json::Value;
use crate::proto::codec::printable;
use crate::stats::{self, Asked, Snapshot};
use crate::transport::about;

/// Longest text in a table, bytes.
const CELL: usize = 60;

/// What came of a command.
#[derive(Debug)]
pub(super) enum Answer {
    /// Why nothing did.
    Failed(String),
    /// It is done, in words, and what there is to know of that.
    Done(String, Vec<(&'static str, Value)>),
    /// What there is.
    Status(Box<Status>),
    /// What commands there are.
    Help,
}

/// What there is.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) report: Report,
    pub(super) counted: Option<Snapshot>,
    pub(super) settings: Settings,
}

/// Times as they are at present.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) connect: Option<Duration>,
    pub(super) handshake: Option<Duration>,
    pub(super) request: Option<Duration>,
    pub(super) close: Option<Duration>,
    /// Where it is on; `None` in it is for ever.
    pub(super) reconnect: Option<Option<Duration>>,
    /// With it, the first and the longest.
    pub(super) reconnect_delay: Option<(Duration, Duration)>,
    /// Likewise.
    pub(super) linger: Option<Option<Duration>>,
    /// Where requests are looked at; `None` in it is not at all.
    pub(super) slow_log: Option<Option<Duration>>,
}

impl Answer {
    pub(super) fn done(text: impl Into<String>, members: Vec<(&'static str, Value)>) -> Self {
        Self::Done(text.into(), members)
    }

    /// As it is sent.
    pub(super) fn render(&self, text: bool) -> String {
        match text {
            true => self.lines(),
            false => self.json(),
        }
    }

    fn json(&self) -> String {
        let mut members = vec![("ok", Value::Bool(!matches!(self, Self::Failed(_))))];
        match self {
            Self::Failed(error) => members.push(("error", Value::text(error))),
            Self::Done(_, more) => members.extend(more.iter().cloned()),
            Self::Status(status) => members.extend(status.members()),
            Self::Help => {
                let words = HELP.iter().map(|(words, _)| Value::text(*words));
                members.push(("commands", Value::List(words.collect())));
            }
        }
        let mut line = String::new();
        Value::Object(members).write(&mut line);
        line.push('\n');
        line
    }

    fn lines(&self) -> String {
        let (first, lines) = match self {
            Self::Failed(error) => ("error", vec![error.clone()]),
            Self::Done(text, _) => ("ok", vec![text.clone()]),
            Self::Status(status) => ("ok", status.lines()),
            Self::Help => {
                let line = |(words, meaning): &(&str, &str)| format!("{words:18} {meaning}");
                ("ok", HELP.iter().map(line).collect())
            }
        };
        let mut text = format!("{first}\n");
        for line in lines.iter().filter(|line| !line.is_empty()) {
            text.push_str(line);
            text.push('\n');
        }
        text.push('\n');
        text
    }
}

impl Status {
    fn members(&self) -> Vec<(&'static str, Value)> {
        let Report {
            hold,
            inside,
            waiting,
            ways,
            journals,
        } = &self.report;
        let (state, drained) = match hold {
            Hold::Open => ("running", None),
            Hold::Closing => ("closing", None),
            Hold::Drained(time) => ("drained", Some(*time)),
        };
        let journals = journals.iter().map(|journal| {
            Value::Object(vec![
                ("entries", Value::Number(journal.entries as u64)),
                ("bytes", Value::Number(journal.bytes)),
                ("memory", Value::Number(journal.memory)),
            ])
        });
        vec![
            ("version", Value::text(env!("CARGO_PKG_VERSION"))),
            ("state", Value::text(state)),
            ("drained_seconds", Value::time(drained)),
            ("in_flight", Value::Number(*inside as u64)),
            ("waiting", Value::Number(*waiting as u64)),
            ("ways", Value::List(ways.iter().map(way).collect())),
            ("journals", Value::List(journals.collect())),
            ("settings", self.settings.value()),
            ("stats", self.counted.as_ref().map_or(Value::Null, figures)),
        ]
    }

    fn lines(&self) -> Vec<String> {
        let Report {
            hold,
            inside,
            waiting,
            ways,
            journals,
        } = &self.report;
        let state = match hold {
            Hold::Open => "running".to_owned(),
            Hold::Closing => "closing".to_owned(),
            Hold::Drained(time) => format!("drained for {}", about(*time)),
        };
        let mut lines = vec![format!(
            "{state}: {inside} in flight, {waiting} waiting, {}",
            counted(ways.len(), "way")
        )];
        if !ways.is_empty() {
            lines.extend(table(WAYS, ways.iter().flat_map(rows).collect()));
        }
        if let Some(counted) = &self.counted {
            let asked = Asked::ALL
                .iter()
                .filter_map(|asked| counted_row(*asked, counted));
            let rows: Vec<_> = asked.collect();
            if !rows.is_empty() {
                lines.extend(table(COMMANDS, rows));
            }
        }
        lines.extend(journals.iter().map(|journal| {
            format!(
                "journal: {}, {} bytes not flushed, {} bytes of memory",
                counted(journal.entries, "range"),
                journal.bytes,
                journal.memory
            )
        }));
        lines.push(self.settings.line());
        lines
    }
}

impl Settings {
    fn value(&self) -> Value {
        let mut members = vec![
            ("connect-timeout", Value::time(self.connect)),
            ("handshake-timeout", Value::time(self.handshake)),
            ("request-timeout", Value::time(self.request)),
            ("close-timeout", Value::time(self.close)),
        ];
        // Where it is off there is none.
        let forever = |time: Option<Duration>| time.map_or(Value::text("forever"), Value::Time);
        members.extend(self.reconnect.map(|time| ("reconnect", forever(time))));
        members.extend(self.reconnect_delay.map(|(first, max)| {
            let both = vec![Value::Time(first), Value::Time(max)];
            ("reconnect-delay", Value::List(both))
        }));
        members.extend(self.linger.map(|time| ("linger", forever(time))));
        members.extend(self.slow_log.map(|limit| ("slow-log", Value::time(limit))));
        Value::Object(members)
    }

    /// As parameters.
    fn line(&self) -> String {
        let time = |time: Option<Duration>| match time {
            None => "0".to_owned(),
            Some(time) => format!("{}", time.as_secs_f64()),
        };
        let mut line = format!(
            "connect-timeout={} handshake-timeout={} request-timeout={} close-timeout={}",
            time(self.connect),
            time(self.handshake),
            time(self.request),
            time(self.close)
        );
        let forever = |value: Option<Duration>| match value {
            None => "forever".to_owned(),
            value => time(value),
        };
        let both = |(first, max): (Duration, Duration)| {
            format!("{}:{}", time(Some(first)), time(Some(max)))
        };
        for (key, value) in [
            ("reconnect", self.reconnect.map(forever)),
            ("reconnect-delay", self.reconnect_delay.map(both)),
            ("linger", self.linger.map(forever)),
            ("slow-log", self.slow_log.map(time)),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        line
    }
}

fn way(way: &WayReport) -> Value {
    let mut members = vec![
        ("server", Value::text(&*way.server)),
        ("export", Value::text(way.export.to_string())),
    ];
    match &way.state {
        WayState::Up => members.push(("state", Value::text("up"))),
        WayState::Away { lasts, tries, why } => members.extend([
            ("state", Value::text("away")),
            ("away_seconds", Value::Time(*lasts)),
            ("tries", Value::Number((*tries).into())),
            ("why", Value::text(why)),
        ]),
        WayState::Over(why) => {
            members.push(("state", Value::text("over")));
            members.extend(why.iter().map(|why| ("why", Value::text(&**why))));
        }
    }
    let connections = way.connections.iter().map(|connection| {
        Value::Object(vec![
            ("server", Value::text(&*connection.server)),
            ("seconds", Value::Time(connection.age)),
            ("tls", Value::Bool(connection.tls)),
            ("in_flight", Value::Number(connection.in_flight.into())),
        ])
    });
    members.push(("connections", Value::List(connections.collect())));
    members.push(("unflushed", Value::Bool(way.unflushed)));
    Value::Object(members)
}

/// What a table has in a line.
type Row<const N: usize> = [String; N];

const WAYS: [&str; 6] = ["SERVER", "EXPORT", "STATE", "FOR", "TLS", "IN FLIGHT"];

/// Half of all requests were faster than the first time, and all but one of a hundred than the second.
const COMMANDS: [&str; 7] = [
    "COMMAND", "REQUESTS", "FAILED", "BYTES", "HALF", "99%", "LONGEST",
];

/// One for each connection, or for a way that has none.
fn rows(way: &WayReport) -> Vec<Row<6>> {
    let row = |server: &str, state: &str, time: String, tls: &str, more: String| {
        let export = format!("\"{}\"", way.export);
        [
            printable(server.as_bytes(), CELL),
            printable(export.as_bytes(), CELL),
            state.to_owned(),
            time,
            tls.to_owned(),
            printable(more.as_bytes(), 2 * CELL),
        ]
    };
    let connection = |connection: &ConnectionReport| {
        let tls = if connection.tls { "yes" } else { "no" };
        let in_flight = format!("{}", connection.in_flight);
        row(
            &connection.server,
            "up",
            about(connection.age),
            tls,
            in_flight,
        )
    };
    let none = || "-".to_owned();
    match &way.state {
        WayState::Away { lasts, tries, why } => {
            let tries = counted(*tries as usize, "try");
            let more = format!("{tries}: {why}");
            vec![row(&way.server, "away", about(*lasts), "-", more)]
        }
        WayState::Over(why) => {
            let why = why.as_deref().map_or_else(none, str::to_owned);
            vec![row(&way.server, "over", none(), "-", why)]
        }
        WayState::Up => way.connections.iter().map(connection).collect(),
    }
}

/// All that was counted, by the keys of `stats=`.
fn figures(counted: &Snapshot) -> Value {
    let rows = counted.rows().into_iter().map(|(key, value)| {
        let value = match value {
            stats::Value::Number(number) => Value::Number(number),
            stats::Value::Text(text) => Value::Text(text),
        };
        (key, value)
    });
    Value::Map(rows.collect())
}

/// What was counted of a command, if it was ever asked for. Times are those at the server.
fn counted_row(asked: Asked, counted: &Snapshot) -> Option<Row<7>> {
    let command = counted.command(asked);
    let times = command.times.server;
    let time = |time: Duration| format!("{:.3} ms", time.as_secs_f64() * 1e3);
    (command.requests > 0).then(|| {
        [
            asked.name().to_owned(),
            command.requests.to_string(),
            command.failed.to_string(),
            command.bytes.to_string(),
            time(times.p50),
            time(times.p99),
            time(times.max),
        ]
    })
}

fn table<const N: usize>(heads: [&str; N], rows: Vec<Row<N>>) -> Vec<String> {
    let mut all = vec![heads.map(str::to_owned)];
    all.extend(rows);
    let width = |column: usize| {
        let cells = all.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &Row<N>| {
        let cells = row.iter().zip(widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

/// So many of them.
fn counted(count: usize, what: &str) -> String {
    match (count, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) if what == "try" => format!("{count} {stem}ies"),
        _ => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::report::JournalReport;
    use crate::proto::name::ExportName;

    fn status(hold: Hold, ways: Vec<WayReport>) -> Answer {
        Answer::Status(Box::new(Status {
            report: Report {
                hold,
                inside: 2,
                waiting: 1,
                ways,
                journals: vec![JournalReport {
                    number: 7,
                    entries: 3,
                    bytes: 1536,
                    memory: 2000,
                }],
            },
            counted: Some(crate::stats::Stats::default().snapshot()),
            settings: Settings {
                connect: Some(Duration::from_secs(30)),
                handshake: None,
                request: Some(Duration::from_millis(1500)),
                close: Some(Duration::from_secs(5)),
                reconnect: Some(None),
                reconnect_delay: Some((Duration::from_millis(100), Duration::from_secs(5))),
                linger: None,
                slow_log: Some(None),
            },
        }))
    }

    fn ways() -> Vec<WayReport> {
        let up = WayReport {
            server: "host:10809".into(),
            export: ExportName::new(b"a\"\n".to_vec()).expect("a name"),
            state: WayState::Up,
            connections: vec![ConnectionReport {
                server: "host:10809".into(),
                age: Duration::from_millis(2500),
                tls: true,
                in_flight: 2,
            }],
            unflushed: true,
        };
        let away = WayReport {
            state: WayState::Away {
                lasts: Duration::from_secs(4),
                tries: 3,
                why: "connect: Connection refused".to_owned(),
            },
            connections: Vec::new(),
            ..up.clone()
        };
        vec![up, away]
    }

    #[test]
    fn an_answer_is_one_line_of_json() {
        for answer in [
            Answer::Failed("a\nb".to_owned()),
            Answer::done("done", vec![("held", Value::Bool(true))]),
            Answer::Help,
            status(Hold::Open, ways()),
        ] {
            let line = answer.render(false);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let failed = matches!(answer, Answer::Failed(_));
            assert_eq!(read["ok"].as_bool(), Some(!failed));
            assert_eq!(read["error"].as_str(), failed.then_some("a\nb"));
        }
    }

    #[test]
    fn a_status_says_what_there_is() {
        let line = status(Hold::Drained(Duration::from_secs(2)), ways()).render(false);
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(read["state"], "drained");
        assert_eq!(read["drained_seconds"], 2.0);
        assert_eq!(read["ways"][0]["connections"][0]["in_flight"], 2);
        assert_eq!(read["ways"][1]["tries"], 3);
        assert_eq!(read["journals"][0]["bytes"], 1536);
        assert_eq!(read["settings"]["request-timeout"], 1.5);
        assert_eq!(read["settings"]["reconnect"], "forever");
        assert!(read["settings"]["handshake-timeout"].is_null());
        assert_eq!(read["settings"]["reconnect-delay"][0], 0.1);
        assert_eq!(read["settings"]["reconnect-delay"][1], 5.0);
        assert!(read["settings"]["linger"].is_null(), "there is none");
        assert_eq!(read["stats"]["read_requests"], 0);
    }

    #[test]
    fn people_get_a_table() {
        let text = status(Hold::Open, ways()).render(true);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok");
        assert_eq!(lines[1], "running: 2 in flight, 1 waiting, 2 ways");
        let place = |line: &str, word: &str| line.find(word).expect(word);
        assert_eq!(place(lines[2], "STATE"), place(lines[3], "up"));
        assert_eq!(place(lines[2], "STATE"), place(lines[4], "away"));
        assert!(lines[4].ends_with("3 tries: connect: Connection refused"));
        assert!(!text.contains('\r') && lines[3].contains("\\n"));
        assert_eq!(
            lines[5],
            "journal: 3 ranges, 1536 bytes not flushed, 2000 bytes of memory"
        );
        let settings = "connect-timeout=30 handshake-timeout=0 request-timeout=1.5 close-timeout=5 \
                        reconnect=forever reconnect-delay=0.1:5 slow-log=0";
        assert_eq!(lines[6], settings);
        assert_eq!(lines[7], "");
        assert_eq!(lines.len(), 8);
    }
}
