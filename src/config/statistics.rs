// SPDX-License-Identifier: BSD-3-Clause
//! Whether anybody wants to know what is done, and where that is written.

use std::path::PathBuf;
use std::time::Duration;

use super::{Error, params};

const BAD_TIME: &str = "must be a time such as 30, 1.5s or 200ms, or 0 for none";

/// Shorter intervals than this would keep a processor busy.
const SHORTEST: Duration = Duration::from_millis(100);

/// What is told of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Where statistics are written, if they are.
    pub report: Option<Report>,
    /// From what time on a request is slow; `None` for never.
    pub slow_log: Option<Duration>,
}

impl Statistics {
    /// Whether anything has to be counted for it.
    pub fn counts(&self) -> bool {
        self.report.is_some() || self.slow_log.is_some()
    }
}

/// Where statistics are written, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where.
    pub output: Output,
    /// From one time to the next; `None` is at the end only.
    pub interval: Option<Duration>,
    /// How.
    pub format: Format,
}

/// Where statistics are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To this file, in the place of what is there.
    File(PathBuf),
    /// To standard error, behind what is there.
    Stderr,
}

/// How statistics are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A line for each figure.
    #[default]
    Text,
    /// What Prometheus reads.
    Prometheus,
}

/// The word for standard error.
const STDERR: &[u8] = b"stderr";

/// Whether a value of `stats=` names a file.
pub fn is_file(value: &[u8]) -> bool {
    value != STDERR
}

/// The parameters of it as they come.
#[derive(Clone, Debug, Default)]
pub struct StatisticsParams {
    /// `stats=`.
    output: Option<Output>,
    /// `stats-interval=`; none is as good as unsaid.
    interval: Option<Duration>,
    /// `stats-format=`.
    format: Option<Format>,
    /// `slow-log=`.
    slow_log: Option<Duration>,
}

impl StatisticsParams {
    /// Takes `stats=`: a file, or the word for standard error.
    pub fn set_output(&mut self, value: &[u8]) -> Result<(), Error> {
        self.output = Some(match is_file(value) {
            false => Output::Stderr,
            true => Output::File(params::path("stats", value)?),
        });
        Ok(())
    }

    /// Takes `stats-interval=`.
    pub fn set_interval(&mut self, value: &[u8]) -> Result<(), Error> {
        let interval = params::time("stats-interval", value, value, BAD_TIME)?;
        if !interval.is_zero() && interval < SHORTEST {
            let why = "must be 100ms or more, or 0 for none";
            return Err(params::bad("stats-interval", value, why));
        }
        self.interval = (!interval.is_zero()).then_some(interval);
        Ok(())
    }

    /// Takes `stats-format=`.
    pub fn set_format(&mut self, value: &[u8]) -> Result<(), Error> {
        self.format = Some(match value {
            b"text" => Format::Text,
            b"prometheus" => Format::Prometheus,
            _ => {
                return Err(params::bad(
                    "stats-format",
                    value,
                    "must be text or prometheus",
                ));
            }
        });
        Ok(())
    }

    /// Takes `slow-log=`.
    pub fn set_slow_log(&mut self, value: &[u8]) -> Result<(), Error> {
        let limit = params::time("slow-log", value, value, BAD_TIME)?;
        self.slow_log = (!limit.is_zero()).then_some(limit);
        Ok(())
    }

    /// Checks that the parameters make sense together.
    pub fn complete(self) -> Result<Statistics, Error> {
        let report = match (self.output, self.interval, self.format) {
            (Some(output), interval, format) => Some(Report {
                output,
                interval,
                format: format.unwrap_or_default(),
            }),
            (None, Some(_), _) => return Err(Error::WithoutStats("stats-interval")),
            (None, None, Some(_)) => return Err(Error::WithoutStats("stats-format")),
            (None, None, None) => None,
        };
        Ok(Statistics {
            report,
            slow_log: self.slow_log,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Set = fn(&mut StatisticsParams, &[u8]) -> Result<(), Error>;

    fn complete(values: &[(Set, &str)]) -> Result<Statistics, Error> {
        let mut params = StatisticsParams::default();
        for (set, value) in values {
            set(&mut params, value.as_bytes())?;
        }
        params.complete()
    }

    const OUTPUT: Set = StatisticsParams::set_output;
    const INTERVAL: Set = StatisticsParams::set_interval;
    const FORMAT: Set = StatisticsParams::set_format;
    const SLOW: Set = StatisticsParams::set_slow_log;

    #[test]
    fn nothing_is_counted_unless_somebody_wants_to_know() {
        for values in [&[][..], &[(SLOW, "0")], &[(INTERVAL, "0")]] {
            let statistics = complete(values).expect("legal");
            assert_eq!(statistics, Statistics::default());
            assert!(!statistics.counts());
        }
        for values in [[(SLOW, "1ms")], [(OUTPUT, "/x")], [(OUTPUT, "stderr")]] {
            assert!(complete(&values).expect("legal").counts());
        }
    }

    #[test]
    fn stderr_is_a_word_and_all_else_is_a_file() {
        let output = |value| complete(&[(OUTPUT, value)]).expect("legal").report;
        let output = |value| output(value).expect("wanted").output;
        assert_eq!(output("stderr"), Output::Stderr);
        assert_eq!(output("/stderr"), Output::File("/stderr".into()));
    }

    #[test]
    fn what_is_about_statistics_needs_them() {
        for (values, told) in [
            ([(INTERVAL, "10")], "‘stats-interval’"),
            ([(FORMAT, "text")], "‘stats-format’"),
        ] {
            let error = complete(&values).expect_err("no stats").to_string();
            let expected = format!("{told} parameter should only be used with ‘stats’");
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for (set, value, told) in [
            (OUTPUT, "", "stats="),
            (
                INTERVAL,
                "99ms",
                "stats-interval=99ms: must be 100ms or more",
            ),
            (INTERVAL, "often", "stats-interval=often: must be a time"),
            (
                FORMAT,
                "json",
                "stats-format=json: must be text or prometheus",
            ),
            (
                FORMAT,
                "Text",
                "stats-format=Text: must be text or prometheus",
            ),
            (SLOW, "-1", "slow-log=-1: must be a time"),
        ] {
            let error = complete(&[(set, value)]).expect_err("bad").to_string();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
