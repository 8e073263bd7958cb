// SPDX-License-Identifier: BSD-3-Clause
//! A parameter that is given another value while nbdkit runs.

use std::time::Duration;

use super::reconnect::{Limit, delay};
use super::{Error, Linger, params};

/// The parameters that can be changed.
pub const KEYS: [&str; 8] = [
    "connect-timeout",
    "handshake-timeout",
    "request-timeout",
    "close-timeout",
    "reconnect",
    "reconnect-delay",
    "linger",
    "slow-log",
];

/// A parameter and its new value; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `connect-timeout=`
    Connect(Option<Duration>),
    /// `handshake-timeout=`
    Handshake(Option<Duration>),
    /// `request-timeout=`
    Request(Option<Duration>),
    /// `close-timeout=`
    Close(Option<Duration>),
    /// `reconnect=`
    Reconnect(Limit),
    /// `reconnect-delay=`: the first, and the longest.
    Delay(Duration, Duration),
    /// `linger=`; `None` is not at all.
    Linger(Option<Linger>),
    /// `slow-log=`; `None` is not at all.
    SlowLog(Option<Duration>),
}

impl Change {
    /// Takes a value as the parameter takes it.
    pub fn parse(key: &str, value: &str) -> Result<Self, Error> {
        let bytes = value.as_bytes();
        params::refuse_uri(key, bytes)?;
        match key {
            "connect-timeout" => params::timeout("connect-timeout", bytes).map(Self::Connect),
            "handshake-timeout" => params::timeout("handshake-timeout", bytes).map(Self::Handshake),
            "request-timeout" => params::timeout("request-timeout", bytes).map(Self::Request),
            "close-timeout" => params::timeout("close-timeout", bytes).map(Self::Close),
            "reconnect" => match Limit::parse(bytes)? {
                Some(limit) => Ok(Self::Reconnect(limit)),
                None => Err(Error::TurnedOver("reconnect")),
            },
            "reconnect-delay" => delay(bytes).map(|(first, max)| Self::Delay(first, max)),
            "linger" => params::linger(bytes).map(Self::Linger),
            "slow-log" => params::timeout("slow-log", bytes).map(Self::SlowLog),
            other => Err(Error::Unchangeable(params::shown(other.as_bytes()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn values_are_those_of_the_parameters() {
        for (key, value, change) in [
            ("connect-timeout", "1", Change::Connect(Some(SECOND))),
            ("handshake-timeout", "0", Change::Handshake(None)),
            ("request-timeout", "1000ms", Change::Request(Some(SECOND))),
            ("close-timeout", "1s", Change::Close(Some(SECOND))),
            ("reconnect", "1", Change::Reconnect(Limit::Time(SECOND))),
            ("reconnect", "forever", Change::Reconnect(Limit::Forever)),
            ("reconnect-delay", "1:5", Change::Delay(SECOND, 5 * SECOND)),
            ("linger", "forever", Change::Linger(Some(Linger::Forever))),
            ("linger", "0", Change::Linger(None)),
            ("slow-log", "1", Change::SlowLog(Some(SECOND))),
        ] {
            assert_eq!(Change::parse(key, value), Ok(change), "{key}={value}");
            assert!(KEYS.contains(&key));
        }
    }

    #[test]
    fn what_the_parameters_do_not_take_is_refused_in_their_words() {
        for key in KEYS {
            let error = Change::parse(key, "soon").expect_err("no time");
            let text = error.to_string();
            assert!(text.starts_with(&format!("{key}=soon: must be")), "{text}");
        }
        let error = Change::parse("reconnect", "0").expect_err("off");
        assert_eq!(error, Error::TurnedOver("reconnect"));
        let text = Change::parse("socket", "/a")
            .expect_err("fixed")
            .to_string();
        assert!(text.starts_with("‘socket’ cannot be changed"), "{text}");
        assert!(text.ends_with(", slow-log"), "{text}");
    }
}
