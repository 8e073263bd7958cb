// SPDX-License-Identifier: BSD-3-Clause
//! Whether and how to come back to a server that was lost, and what is kept for it.

use std::time::Duration;

use super::target::Place;
use super::{Error, params};

/// The delay before the first try of all, and the longest, where nothing is said.
const FIRST: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);

/// Bytes to keep where nothing is said.
const REPLAY: u64 = 64 << 20;

const BAD_LIMIT: &str = "must be a time such as 30, 1.5s or 200ms, or forever, or 0 for none";
const BAD_DELAY: &str = "must be one time such as 100ms, or two such as 100ms:5s";

/// Shorter delays than this would keep a processor busy.
const SHORTEST: Duration = Duration::from_millis(1);

/// What a try waits for, and what a client gets back then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconnect {
    /// How long requests wait for the server; `None` is for ever.
    pub limit: Option<Duration>,
    /// The delay before the second try. It doubles from try to try.
    pub first: Duration,
    /// The longest delay. It is not shorter than `first`.
    pub max: Duration,
    /// How many bytes to keep of what was acknowledged and not flushed, to send them again.
    pub replay: u64,
}

/// The parameters of it as they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReconnectParams {
    /// `reconnect=`; off is as good as unsaid.
    limit: Option<Limit>,
    /// `reconnect-delay=`.
    delay: Option<(Duration, Duration)>,
    /// `replay=`.
    replay: Option<u64>,
}

/// How long requests wait for a lost server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// So long.
    Time(Duration),
    /// Until it is back.
    Forever,
}

impl Limit {
    /// A time, or the word for ever. Zero is off.
    pub fn parse(value: &[u8]) -> Result<Option<Self>, Error> {
        if value == b"forever" {
            return Ok(Some(Self::Forever));
        }
        let time = params::time("reconnect", value, value, BAD_LIMIT)?;
        Ok((!time.is_zero()).then_some(Self::Time(time)))
    }
}

impl ReconnectParams {
    /// Takes `reconnect=`: a time, or the word for ever. Zero is off.
    pub fn set_limit(&mut self, value: &[u8]) -> Result<(), Error> {
        self.limit = Limit::parse(value)?;
        Ok(())
    }

    /// Takes `reconnect-delay=`: the first delay, and the longest if wanted.
    pub fn set_delay(&mut self, value: &[u8]) -> Result<(), Error> {
        self.delay = Some(delay(value)?);
        Ok(())
    }

    /// Takes `replay=`.
    pub fn set_replay(&mut self, value: &[u8]) -> Result<(), Error> {
        self.replay = Some(params::size("replay", value)?);
        Ok(())
    }

    /// Checks that the parameters make sense together, and with the place.
    pub fn complete(self, place: &Place) -> Result<Option<Reconnect>, Error> {
        let Some(limit) = self.limit else {
            return match self {
                Self { delay: Some(_), .. } => Err(Error::WithoutReconnect("reconnect-delay")),
                Self {
                    replay: Some(_), ..
                } => Err(Error::WithoutReconnect("replay")),
                _ => Ok(None),
            };
        };
        if matches!(place, Place::SocketFd(_)) {
            return Err(Error::ReconnectSocketFd);
        }
        let (first, max) = self.delay.unwrap_or((FIRST, MAX));
        Ok(Some(Reconnect {
            limit: match limit {
                Limit::Time(time) => Some(time),
                Limit::Forever => None,
            },
            first,
            max,
            replay: self.replay.unwrap_or(REPLAY),
        }))
    }
}

/// The first delay, and the longest.
pub fn delay(value: &[u8]) -> Result<(Duration, Duration), Error> {
    let refused = |why| params::bad("reconnect-delay", value, why);
    let time = |text| params::time("reconnect-delay", value, text, BAD_DELAY);
    let mut times = value.splitn(2, |byte| *byte == b':');
    let first = time(times.next().unwrap_or_default())?;
    let max = times.next().map(time).transpose()?;
    let max = max.unwrap_or(first.max(MAX));
    if first < SHORTEST {
        return Err(refused("must begin with a delay of 1ms or more"));
    }
    if first > max {
        return Err(refused(
            "must begin with a delay that is not longer than the longest",
        ));
    }
    Ok((first, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(pairs: &[(&str, &str)]) -> Result<Option<Reconnect>, Error> {
        let mut params = super::super::Params::default();
        params.set("socket", b"/a")?;
        for (key, value) in pairs {
            params.set(key, value.as_bytes())?;
        }
        params.complete().map(|config| config.reconnect)
    }

    fn on(pairs: &[(&str, &str)]) -> Reconnect {
        complete(&[&[("reconnect", "30")], pairs].concat())
            .expect("legal")
            .expect("on")
    }

    fn message(pairs: &[(&str, &str)]) -> String {
        complete(pairs).expect_err("illegal").to_string()
    }

    #[test]
    fn it_is_off_unless_a_time_is_given() {
        assert_eq!(complete(&[]), Ok(None));
        assert_eq!(complete(&[("reconnect", "0")]), Ok(None));
        assert_eq!(
            complete(&[("reconnect", "30"), ("reconnect", "0ms")]),
            Ok(None)
        );
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        assert_eq!(
            on(&[]),
            Reconnect {
                limit: Some(Duration::from_secs(30)),
                first: Duration::from_millis(100),
                max: Duration::from_secs(5),
                replay: 64 << 20,
            }
        );
    }

    #[test]
    fn a_server_may_be_waited_for_for_ever() {
        assert_eq!(on(&[("reconnect", "forever")]).limit, None);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for (text, why) in [
            ("", BAD_LIMIT),
            ("Forever", BAD_LIMIT),
            ("-1", BAD_LIMIT),
            ("1h", BAD_LIMIT),
            ("31622401", params::TIME_TOO_LONG),
        ] {
            assert_eq!(
                message(&[("reconnect", text)]),
                format!("reconnect={text}: {why}")
            );
        }
    }

    #[test]
    fn delays_are_one_or_two() {
        let ms = Duration::from_millis;
        for (text, first, max) in [
            ("1", ms(1000), ms(5000)),
            ("20ms:300ms", ms(20), ms(300)),
            ("2:2", ms(2000), ms(2000)),
            ("5", ms(5000), ms(5000)),
            ("8s", ms(8000), ms(8000)),
            ("1ms", ms(1), ms(5000)),
        ] {
            let reconnect = on(&[("reconnect-delay", text)]);
            assert_eq!((reconnect.first, reconnect.max), (first, max), "{text}");
        }
    }

    #[test]
    fn what_is_no_delay_is_refused() {
        for (text, why) in [
            ("", BAD_DELAY),
            (":", BAD_DELAY),
            (":5", BAD_DELAY),
            ("1:", BAD_DELAY),
            ("1:2:3", BAD_DELAY),
            ("-1", BAD_DELAY),
            ("1:soon", BAD_DELAY),
            ("1 : 2", BAD_DELAY),
            ("0", "must begin with a delay of 1ms or more"),
            ("0:5", "must begin with a delay of 1ms or more"),
            ("0.1ms:5", "must begin with a delay of 1ms or more"),
            (
                "2:1",
                "must begin with a delay that is not longer than the longest",
            ),
            (
                "1:0",
                "must begin with a delay that is not longer than the longest",
            ),
            ("1:99999999999", params::TIME_TOO_LONG),
        ] {
            assert_eq!(
                message(&[("reconnect", "1"), ("reconnect-delay", text)]),
                format!("reconnect-delay={text}: {why}")
            );
        }
    }

    #[test]
    fn sizes_may_be_nothing() {
        assert_eq!(on(&[("replay", "0")]).replay, 0);
        assert_eq!(on(&[("replay", "1G")]).replay, 1 << 30);
        assert_eq!(
            message(&[("reconnect", "1"), ("replay", "much")]),
            "replay=much: must be a size such as 1048576, 64M or 1G"
        );
    }

    #[test]
    fn without_it_the_rest_makes_no_sense() {
        for (key, value) in [("reconnect-delay", "1"), ("replay", "0")] {
            let expected =
                format!("‘{key}’ parameter should only be used with ‘reconnect’, which is off");
            assert_eq!(message(&[(key, value)]), expected);
            assert_eq!(message(&[("reconnect", "0"), (key, value)]), expected);
        }
    }

    #[test]
    fn a_socket_for_one_connection_cannot_come_back() {
        let with = |time: &[u8]| {
            let mut params = super::super::Params::default();
            params.set("socket-fd", b"3")?;
            params.set("reconnect", time)?;
            params.complete().map(|config| config.reconnect)
        };
        let error = with(b"1").expect_err("a conflict");
        assert_eq!(
            error.to_string(),
            "cannot use ‘reconnect’ with ‘socket-fd’: the socket is good for one connection"
        );
        assert_eq!(with(b"0"), Ok(None));
    }
}
