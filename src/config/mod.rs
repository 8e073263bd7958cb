//! What the user asked for: collected key by key, checked once, then immutable.

pub mod help;
mod params;

use std::path::PathBuf;
use std::time::Duration;

use crate::client::{Options, Target};
use crate::proto::handshake::Goal;
use crate::transport::unix;

/// What the user typed wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such parameter.
    #[error("unknown parameter '{0}'")]
    Unknown(String),
    /// A value cannot be understood.
    #[error("{key}={value}: {why}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// Its value, made printable.
        value: String,
        /// What is allowed.
        why: &'static str,
    },
    /// No server was named.
    #[error(
        "the ‘socket’ parameter must be specified: the Unix socket of the server to forward to"
    )]
    NoTarget,
    /// The path does not fit a Unix socket address.
    #[error("socket file name too large")]
    SocketTooLong,
}

/// A value that is a path and must be made absolute before [`Params::set`] gets it.
pub fn is_path(key: &str) -> bool {
    key == "socket"
}

/// The parameters as they come.
#[derive(Clone, Debug)]
pub struct Params {
    socket: Option<PathBuf>,
    export: String,
    connect_timeout: Option<Duration>,
    handshake_timeout: Option<Duration>,
    request_timeout: Option<Duration>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            socket: None,
            export: String::new(),
            connect_timeout: Some(Duration::from_secs(30)),
            handshake_timeout: Some(Duration::from_secs(30)),
            request_timeout: None,
        }
    }
}

impl Params {
    /// Takes one parameter; a later value replaces an earlier one.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<(), Error> {
        match key {
            "socket" => self.socket = Some(params::path("socket", value)?),
            "export" => self.export = params::export_name("export", value)?,
            "connect-timeout" => self.connect_timeout = params::timeout("connect-timeout", value)?,
            "handshake-timeout" => {
                self.handshake_timeout = params::timeout("handshake-timeout", value)?;
            }
            "request-timeout" => self.request_timeout = params::timeout("request-timeout", value)?,
            other => return Err(Error::Unknown(params::shown(other.as_bytes()))),
        }
        Ok(())
    }

    /// Checks that the parameters make sense together.
    pub fn complete(self) -> Result<Config, Error> {
        let socket = self.socket.ok_or(Error::NoTarget)?;
        if !unix::fits(&socket) {
            return Err(Error::SocketTooLong);
        }
        Ok(Config {
            options: Options {
                target: Target::Unix(socket),
                goal: Goal::new(&self.export).ok_or(Error::Value {
                    key: "export",
                    value: params::shown(self.export.as_bytes()),
                    why: params::NAME_TOO_LONG,
                })?,
                connect_timeout: self.connect_timeout,
                handshake_timeout: self.handshake_timeout,
                request_timeout: self.request_timeout,
            },
        })
    }
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// How to open a connection.
    pub options: Options,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(pairs: &[(&str, &str)]) -> Result<Config, Error> {
        let mut params = Params::default();
        for (key, value) in pairs {
            params.set(key, value.as_bytes())?;
        }
        params.complete()
    }

    #[test]
    fn a_socket_is_enough() {
        let config = complete(&[("socket", "/run/nbd.sock")]).expect("legal");
        assert_eq!(
            config.options.target,
            Target::Unix(PathBuf::from("/run/nbd.sock"))
        );
        assert_eq!(
            config.options.connect_timeout,
            Some(Duration::from_secs(30))
        );
        assert_eq!(config.options.request_timeout, None);
    }

    #[test]
    fn a_later_value_replaces_an_earlier_one() {
        let config = complete(&[("socket", "/a"), ("socket", "/b")]).expect("legal");
        assert_eq!(config.options.target, Target::Unix(PathBuf::from("/b")));
    }

    #[test]
    fn every_mistake_has_its_message() {
        let long = format!("/{}", "x".repeat(107));
        let name = "x".repeat(4097);
        for (pairs, message) in [
            (&[("soket", "/a")][..], "unknown parameter 'soket'"),
            (
                &[][..],
                "the ‘socket’ parameter must be specified: the Unix socket of the server to forward to",
            ),
            (&[("socket", "")][..], "socket=: must not be empty"),
            (
                &[("socket", long.as_str())][..],
                "socket file name too large",
            ),
            (
                &[("request-timeout", "-1")][..],
                "request-timeout=-1: must be a time such as 30, 1.5s or 200ms, or 0 for none",
            ),
        ] {
            assert_eq!(complete(pairs).expect_err(message).to_string(), message);
        }
        let error = complete(&[("socket", "/a"), ("export", &name)]).expect_err("too long");
        assert!(error.to_string().ends_with(params::NAME_TOO_LONG));
    }
}
