// SPDX-License-Identifier: BSD-3-Clause
//! Whether and how to use TLS towards the server.

use std::net::Ipv6Addr;
use std::path::PathBuf;

use super::target::Place;
use super::uri::{TlsKind, TlsOptions};
use super::{Error, params};
use crate::proto::handshake::TlsPolicy;
use crate::transport::tls::{Credentials, Files, PIN_LENGTH, Password, Settings};

/// The TLS parameters as they come.
#[derive(Clone, Debug, Default)]
pub struct TlsParams {
    /// `tls=`.
    pub policy: Option<TlsPolicy>,
    /// `tls-certificates=`.
    pub certificates: Option<PathBuf>,
    /// `tls-verify=`.
    pub verify: Option<bool>,
    /// `tls-username=`.
    pub username: Option<String>,
    /// The user in a URI. Alone it is no wish for TLS.
    pub uri_user: Option<String>,
    /// `tls-psk=`.
    pub psk: Option<PathBuf>,
    /// `tls-hostname=`.
    pub hostname: Option<String>,
    /// `tls-priority=`.
    pub priority: Option<String>,
    /// `tls-pin=`.
    pub pin: Option<[u8; PIN_LENGTH]>,
    /// `tls-key-password=`, as it was read from where the value says.
    pub key_password: Option<Password>,
}

impl TlsParams {
    /// Takes what a URI says, which wins over the parameters. The scheme of a URI with TLS demands
    /// it, so that switching it off is a contradiction.
    pub fn merge(
        &mut self,
        demanded: bool,
        user: Option<String>,
        options: TlsOptions,
    ) -> Result<(), Error> {
        if demanded {
            if self.policy == Some(TlsPolicy::Off) {
                return Err(Error::TlsOff);
            }
            self.policy = Some(TlsPolicy::Require);
        }
        match options.kind {
            None | Some(TlsKind::X509 | TlsKind::Psk) => (),
            Some(TlsKind::Anonymous) => return Err(Error::AnonymousTls),
        }
        fn replace<T>(place: &mut Option<T>, value: Option<T>) {
            if value.is_some() {
                *place = value;
            }
        }
        let absolute =
            |path: Option<PathBuf>| path.map(|path| std::path::absolute(&path).unwrap_or(path));
        self.uri_user = user;
        replace(&mut self.username, options.username);
        replace(&mut self.hostname, options.hostname);
        replace(&mut self.verify, options.verify_peer);
        replace(&mut self.certificates, absolute(options.certificates));
        replace(&mut self.psk, absolute(options.psk_file));
        replace(&mut self.priority, options.priority);
        match options.kind {
            Some(TlsKind::Psk) if self.psk.is_none() => Err(Error::PskWithoutFile),
            Some(TlsKind::X509) => {
                self.psk = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Checks what was said about TLS. Naming any credential without `tls=` switches it on.
    pub fn complete(self, place: &Place) -> Result<(TlsPolicy, Settings), Error> {
        let anything = self.certificates.is_some()
            || self.verify.is_some()
            || self.username.is_some()
            || self.psk.is_some()
            || self.hostname.is_some()
            || self.priority.is_some()
            || self.pin.is_some()
            || self.key_password.is_some();
        let default = if anything {
            TlsPolicy::Allow
        } else {
            TlsPolicy::Off
        };
        let policy = self.policy.unwrap_or(default);
        let used = policy != TlsPolicy::Off;
        let host = match place {
            Place::Tcp { host, .. } => Some(host.clone()),
            Place::Ssh(route) => Some(route.host.clone()),
            _ => None,
        };
        let hostname = self.hostname.or(host).map(certified_name);
        let credentials = match self.psk {
            None => Credentials::X509(self.certificates),
            Some(_) if self.pin.is_some() && used => return Err(Error::PinWithPsk),
            Some(file) => Credentials::Psk {
                file,
                username: match self.uri_user.or(self.username).or_else(login_name) {
                    Some(username) => username,
                    None if used => return Err(Error::NoUsername),
                    None => String::new(),
                },
            },
        };
        let x509 = matches!(credentials, Credentials::X509(_));
        if used && x509 && self.verify == Some(true) && hostname.is_none() && self.pin.is_none() {
            return Err(Error::NothingToVerify);
        }
        let settings = Settings {
            credentials,
            key_password: self.key_password,
            hostname,
            verify: self.verify,
            priority: self.priority,
            pin: self.pin,
            files: Files::default(),
        };
        Ok((policy, settings))
    }
}

/// The name that a certificate bears for what a user calls a host: without the zone of an IPv6
/// address, which is this machine's affair (RFC 4007), and its brackets, and without the dot at the
/// end of a host name that is complete.
fn certified_name(host: String) -> String {
    let address = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(&host);
    let address = address.split('%').next().unwrap_or(address);
    if address.parse::<Ipv6Addr>().is_ok() {
        return address.to_owned();
    }
    match host.strip_suffix('.') {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => host,
    }
}

/// Whose key to present when nobody says: the user's who started nbdkit.
fn login_name() -> Option<String> {
    ["LOGNAME", "USER"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .filter(|name| !name.is_empty())
        .or_else(|| {
            rustix::process::geteuid()
                .is_root()
                .then(|| "root".to_owned())
        })
}

/// Reads `tls=`.
pub fn policy(value: &[u8]) -> Result<TlsPolicy, Error> {
    let required: [&[u8]; 3] = [b"require", b"required", b"force"];
    if required.iter().any(|word| word.eq_ignore_ascii_case(value)) {
        return Ok(TlsPolicy::Require);
    }
    Ok(if params::boolean("tls", value)? {
        TlsPolicy::Allow
    } else {
        TlsPolicy::Off
    })
}

/// Takes the password of `tls-key-password=`. It is part of no message.
pub fn key_password(value: &[u8]) -> Result<Password, Error> {
    if value.is_empty() {
        return Err(Error::Value {
            key: "tls-key-password",
            value: String::new(),
            why: "must not be empty",
        });
    }
    Ok(Password::new(value))
}

/// Reads `tls-pin=`: `sha256:` and 64 hexadecimal digits.
pub fn pin(value: &[u8]) -> Result<[u8; PIN_LENGTH], Error> {
    let digits = value
        .strip_prefix(b"sha256:")
        .filter(|digits| digits.len() == 2 * PIN_LENGTH);
    let mut pin = [0; PIN_LENGTH];
    for (byte, pair) in pin
        .iter_mut()
        .zip(digits.ok_or(Error::BadPin)?.chunks_exact(2))
    {
        let text = std::str::from_utf8(pair).map_err(|_| Error::BadPin)?;
        if !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(Error::BadPin);
        }
        *byte = u8::from_str_radix(text, 16).map_err(|_| Error::BadPin)?;
    }
    Ok(pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp() -> Place {
        Place::Tcp {
            host: "server.example".to_owned(),
            port: "10809".to_owned(),
        }
    }

    fn unix() -> Place {
        Place::Unix(PathBuf::from("/s"))
    }

    #[test]
    fn modes_are_booleans_or_require() {
        assert_eq!(policy(b"off"), Ok(TlsPolicy::Off));
        assert_eq!(policy(b"1"), Ok(TlsPolicy::Allow));
        for word in ["require", "REQUIRED", "force"] {
            assert_eq!(policy(word.as_bytes()), Ok(TlsPolicy::Require));
        }
        assert_eq!(
            policy(b"always").expect_err("no such mode").to_string(),
            "tls: could not decipher boolean (always)"
        );
    }

    #[test]
    fn a_credential_switches_tls_on() {
        let policy = |params: TlsParams| params.complete(&tcp()).expect("legal").0;
        assert_eq!(policy(TlsParams::default()), TlsPolicy::Off);
        let params = TlsParams {
            psk: Some(PathBuf::from("/keys")),
            username: Some("alice".to_owned()),
            ..TlsParams::default()
        };
        assert_eq!(policy(params), TlsPolicy::Allow);
    }

    #[test]
    fn the_name_to_check_is_the_hosts_unless_said() {
        let (_, settings) = TlsParams::default().complete(&tcp()).expect("legal");
        assert_eq!(settings.hostname.as_deref(), Some("server.example"));
        let params = TlsParams {
            hostname: Some("other".to_owned()),
            ..TlsParams::default()
        };
        let (_, settings) = params.complete(&tcp()).expect("legal");
        assert_eq!(settings.hostname.as_deref(), Some("other"));
    }

    #[test]
    fn a_certificate_knows_no_zone_and_no_last_dot() {
        for (host, expected) in [
            ("server.example", "server.example"),
            ("server.example.", "server.example"),
            ("fe80::1%eth0", "fe80::1"),
            ("fe80::1%1", "fe80::1"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("[fe80::1%eth0]", "fe80::1"),
            ("127.0.0.1", "127.0.0.1"),
            (".", "."),
            // No address, so that this is a part of the name, strange as it is.
            ("server%eth0", "server%eth0"),
        ] {
            assert_eq!(certified_name(host.to_owned()), expected);
            let place = Place::Tcp {
                host: host.to_owned(),
                port: "10809".to_owned(),
            };
            let (_, settings) = TlsParams::default().complete(&place).expect("legal");
            assert_eq!(
                settings.hostname.as_deref(),
                Some(expected),
                "hostname={host}"
            );
            let params = TlsParams {
                hostname: Some(host.to_owned()),
                ..TlsParams::default()
            };
            let (_, settings) = params.complete(&unix()).expect("legal");
            assert_eq!(
                settings.hostname.as_deref(),
                Some(expected),
                "tls-hostname={host}"
            );
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let params = TlsParams {
            key_password: Some(key_password(b"mostsecret").expect("legal")),
            ..TlsParams::default()
        };
        assert!(!format!("{params:?}").contains("secret"));
        let (policy, settings) = params.complete(&tcp()).expect("legal");
        assert_eq!(policy, TlsPolicy::Allow);
        assert!(!format!("{settings:?}").contains("secret"));
        assert_eq!(
            key_password(b"").expect_err("empty").to_string(),
            "tls-key-password=: must not be empty"
        );
    }

    #[test]
    fn strict_verification_needs_a_name() {
        let strict = || TlsParams {
            verify: Some(true),
            ..TlsParams::default()
        };
        assert_eq!(
            strict().complete(&unix()).err(),
            Some(Error::NothingToVerify)
        );
        assert!(strict().complete(&tcp()).is_ok());
    }

    #[test]
    fn a_uri_with_tls_demands_it() {
        let mut params = TlsParams::default();
        params
            .merge(true, None, TlsOptions::default())
            .expect("legal");
        assert_eq!(params.policy, Some(TlsPolicy::Require));
        let mut off = TlsParams {
            policy: Some(TlsPolicy::Off),
            ..TlsParams::default()
        };
        assert_eq!(
            off.merge(true, None, TlsOptions::default()),
            Err(Error::TlsOff)
        );
    }

    #[test]
    fn a_user_in_a_uri_is_no_wish_for_tls() {
        let mut params = TlsParams::default();
        let user = Some("alice".to_owned());
        params
            .merge(false, user, TlsOptions::default())
            .expect("legal");
        assert_eq!(params.complete(&tcp()).expect("legal").0, TlsPolicy::Off);
    }

    #[test]
    fn what_is_switched_off_cannot_conflict() {
        let params = TlsParams {
            policy: Some(TlsPolicy::Off),
            verify: Some(true),
            ..TlsParams::default()
        };
        assert!(params.complete(&unix()).is_ok());
    }

    #[test]
    fn a_pin_is_a_digest() {
        let text = format!("sha256:{}", "0aF0".repeat(16));
        let pin = pin(text.as_bytes()).expect("legal");
        assert_eq!(pin[..2], [0x0a, 0xf0]);
        for bad in [
            "",
            "sha256:",
            "sha256:00",
            &text[7..],
            &text.replace('a', "g"),
            &text.replace("0a", "+a"),
        ] {
            assert_eq!(super::pin(bad.as_bytes()), Err(Error::BadPin), "{bad}");
        }
    }
}
