// SPDX-License-Identifier: BSD-3-Clause
//! NBD URIs: one word that names the server, the export and how to protect the connection.
//!
//! The rules are those of the NBD project's `doc/uri.md` over RFC 3986 (numbers below are RFC
//! sections): `scheme://[user@][host][:port][/export][?key=value&...]`. Some things are in use
//! without being in `doc/uri.md` and are understood as libnbd does: the vsock and ssh schemes, the
//! keys that go with them, and the `tls-*` keys that name local files or users. What could be misread is refused, never guessed:
//! an export other than the one that was meant, or a connection without the protection that was
//! asked for, would go unnoticed.
//!
//! This file opens nothing and resolves nothing. Relative paths are returned as they stand, and
//! whether a TLS option suits the rest of the configuration is decided elsewhere.

#![deny(clippy::indexing_slicing)]

mod error;
mod query;

use std::net::Ipv6Addr;
use std::path::PathBuf;

pub use self::error::Error;
use self::query::Query;
use super::params::shown;
use crate::proto::name::ExportName;
use crate::transport::ssh::{self, Far, Route};
use crate::transport::unix;

// spec: Newstyle negotiation: SHOULD: port 10809 unless told otherwise
/// Where IANA puts NBD servers; also the port of a vsock URI that names none.
const DEFAULT_PORT: u16 = 10809;
/// The host of a virtual machine: `VMADDR_CID_HOST` of vsock(7).
const VSOCK_HOST: u32 = 2;

/// A parsed NBD URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Where the server is.
    pub place: Place,
    /// The scheme demands TLS: the connection must fail rather than go on without.
    pub tls: bool,
    /// The user before the `@`, unless that is ssh's. Also legal without TLS in the scheme, where
    /// TLS may still be wanted by other means; [`TlsOptions::username`] is then empty.
    pub username: Option<String>,
    /// The export name; empty is the server's default.
    pub export: ExportName,
    /// What the query says about TLS; empty unless [`tls`](Self::tls).
    pub options: TlsOptions,
}

/// Where the server of a URI is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host name or address, without brackets, and a port number.
    Tcp {
        /// Name or address, for the resolver.
        host: String,
        /// A number from 1 to 65535.
        port: String,
    },
    /// A Unix socket; neither empty nor with a zero byte, perhaps relative.
    Unix(PathBuf),
    /// A port of a vsock context.
    Vsock {
        /// The context id.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// A server that the host of an ssh server can reach.
    Ssh(Route),
}

/// What the query of a URI says about TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// `tls-type=`
    pub kind: Option<TlsKind>,
    /// `tls-hostname=`: the name that the server's certificate must bear.
    pub hostname: Option<String>,
    /// `tls-verify-peer=`
    pub verify_peer: Option<bool>,
    /// `tls-certificates=`: a directory, perhaps relative.
    pub certificates: Option<PathBuf>,
    /// `tls-psk-file=`: perhaps relative.
    pub psk_file: Option<PathBuf>,
    /// `tls-username=`; never given together with [`Uri::username`].
    pub username: Option<String>,
    /// `tls-priority=`
    pub priority: Option<String>,
}

/// How the two sides prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsKind {
    /// Not at all.
    Anonymous,
    /// With certificates.
    X509,
    /// With a secret that both know.
    Psk,
}

/// Parses a URI.
pub fn parse(text: &str) -> Result<Uri, Error> {
    parse_all(text).map_err(|error| error.withholding(text))
}

fn parse_all(text: &str) -> Result<Uri, Error> {
    let (scheme, rest) = scheme(text)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // Splitting at the slash drops it: exactly one, any others belong to the name.
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let (mut username, address) = match authority.rsplit_once('@') {
        Some((userinfo, address)) => (user(userinfo)?, address),
        None => (None, authority),
    };
    let query = Query::parse(query)?;
    let place = match scheme.transport {
        // The user is ssh's, and not the one who shows a key to the server.
        Transport::Ssh => Place::Ssh(route(scheme, username.take(), address, &query)?),
        _ => place(scheme, address, &query)?,
    };
    if let (false, Some(key)) = (scheme.tls, query.tls_key) {
        return Err(Error::WithoutTls {
            key,
            given: scheme.name,
            wanted: scheme.sibling(scheme.transport, true),
        });
    }
    if username.is_some() && query.options.username.is_some() {
        return Err(Error::TwoUserNames);
    }
    let export = decoded("export name", export)?;
    let length = export.len();
    // A NUL was refused before.
    let export = ExportName::new(export).ok_or(Error::LongExport(length))?;
    Ok(Uri {
        place,
        tls: scheme.tls,
        username,
        export,
        options: query.options,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Unix,
    Vsock,
    Ssh,
}

#[derive(Clone, Copy)]
struct Scheme {
    name: &'static str,
    transport: Transport,
    tls: bool,
}

const SCHEME_LIST: &str = "nbd://, nbds://, nbd+unix://, nbds+unix://, nbd+vsock://, \
                           nbds+vsock://, nbd+ssh:// or nbds+ssh://";

const fn known(name: &'static str, transport: Transport, tls: bool) -> Scheme {
    Scheme {
        name,
        transport,
        tls,
    }
}

const SCHEMES: [Scheme; 8] = [
    known("nbd", Transport::Tcp, false),
    known("nbds", Transport::Tcp, true),
    known("nbd+unix", Transport::Unix, false),
    known("nbds+unix", Transport::Unix, true),
    known("nbd+vsock", Transport::Vsock, false),
    known("nbds+vsock", Transport::Vsock, true),
    known("nbd+ssh", Transport::Ssh, false),
    known("nbds+ssh", Transport::Ssh, true),
];

impl Scheme {
    /// What a message advises to write: another transport, or with TLS.
    fn sibling(self, transport: Transport, tls: bool) -> &'static str {
        SCHEMES
            .iter()
            .find(|other| other.transport == transport && other.tls == tls)
            .map_or(self.name, |other| other.name)
    }
}

/// Whether a word is the scheme of an NBD URI.
pub fn is_scheme(word: &str) -> bool {
    SCHEMES
        .iter()
        .any(|known| known.name.eq_ignore_ascii_case(word))
}

/// The scheme, and what follows `://`. Schemes have no case (3.1).
fn scheme(text: &str) -> Result<(Scheme, &str), Error> {
    if text.starts_with(['/', '.']) {
        return Err(Error::BarePath);
    }
    let (name, rest) = text.split_once(':').ok_or(Error::NoScheme)?;
    let qemu = rest;
    let rest = rest.strip_prefix("//");
    let found = SCHEMES
        .into_iter()
        .find(|known| known.name.eq_ignore_ascii_case(name));
    match (found, rest) {
        (Some(scheme), Some(rest)) => Ok((scheme, rest)),
        (Some(scheme), None) if scheme.name == "nbd" && qemu.starts_with("unix:") => {
            Err(Error::QemuUnix)
        }
        (Some(scheme), None) if scheme.name == "nbd" && qemu.contains(':') => Err(Error::QemuTcp),
        (Some(scheme), None) => Err(Error::NoSlashes(scheme.name)),
        (None, Some(_)) => Err(Error::UnknownScheme(shown(name.as_bytes()))),
        // Without the slashes it is rather "host:port" than a scheme.
        (None, None) => Err(Error::NoScheme),
    }
}

/// Whether a user, not yet decoded, has a colon.
fn may_have_password(user: &str) -> bool {
    user.to_ascii_lowercase().replace("%3a", ":").contains(':')
}

/// The user before the `@`; none if there is nothing before it.
fn user(userinfo: &str) -> Result<Option<String>, Error> {
    // Looked for before anything else, so that no other message shows a piece of it.
    if may_have_password(userinfo) {
        return Err(Error::Password);
    }
    let part = "user name";
    if userinfo.contains('@') {
        return Err(Error::Character {
            part,
            character: '@',
        });
    }
    let name = decoded_text(part, userinfo)?;
    Ok((!name.is_empty()).then_some(name))
}

fn place(scheme: Scheme, address: &str, query: &Query) -> Result<Place, Error> {
    if query.compress.is_some() {
        return Err(Error::CompressElsewhere(
            scheme.sibling(Transport::Ssh, scheme.tls),
        ));
    }
    match (scheme.transport, &query.socket) {
        // doc/uri.md leaves it open what a host means here; libnbd ignores it.
        (Transport::Unix, _) if !address.is_empty() => Err(Error::UnixHost),
        (Transport::Unix, _) if query.port.is_some() => Err(Error::PortOfSocket),
        (Transport::Unix, Some(socket)) => Ok(Place::Unix(socket.clone())),
        (Transport::Unix, None) => Err(Error::NoSocket(scheme.name)),
        (_, Some(_)) => Err(Error::SocketElsewhere {
            given: scheme.name,
            wanted: scheme.sibling(Transport::Unix, scheme.tls),
        }),
        (Transport::Vsock, None) => vsock(address, query.port),
        (Transport::Tcp | Transport::Ssh, None) => {
            let (host, port) = host_and_port(address)?;
            let port = match query.port {
                Some(port) => small_port("nbd-port", port)?,
                None => port.unwrap_or(DEFAULT_PORT),
            };
            Ok(Place::Tcp {
                // As libnbd does; doc/uri.md leaves it to the client.
                host: if host.is_empty() {
                    "localhost".to_owned()
                } else {
                    host
                },
                port: port.to_string(),
            })
        }
    }
}

/// The way through ssh: the authority is that of the ssh server, and the query says what to connect
/// to from there.
fn route(
    scheme: Scheme,
    user: Option<String>,
    address: &str,
    query: &Query,
) -> Result<Route, Error> {
    let (host, port) = host_and_port(address)?;
    if host.is_empty() {
        return Err(Error::NoHost(scheme.name));
    }
    if !ssh::is_safe_host(&host) {
        return Err(Error::Ssh("host"));
    }
    if user.as_deref().is_some_and(|user| !ssh::is_safe_user(user)) {
        return Err(Error::Ssh("user name"));
    }
    let server = match (&query.socket, query.port) {
        (Some(_), Some(_)) => return Err(Error::PortOfSocket),
        (Some(socket), None) if !unix::fits(socket) => return Err(Error::SocketTooLong),
        (Some(socket), None) => Far::Unix(socket.clone()),
        (None, Some(port)) => Far::Tcp(small_port("nbd-port", port)?),
        (None, None) => Far::Tcp(DEFAULT_PORT),
    };
    Ok(Route {
        user,
        host,
        port,
        compress: query.compress.unwrap_or(false),
        server,
    })
}

/// `host`, `host:port` or `[address]:port`; any piece may be missing.
fn host_and_port(address: &str) -> Result<(String, Option<u16>), Error> {
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => {
            let (inside, after) = bracketed.split_once(']').ok_or(Error::OpenBracket)?;
            let port = match after.strip_prefix(':') {
                Some(port) => port,
                None if after.is_empty() => "",
                None => return Err(Error::AfterBracket),
            };
            (ipv6(inside)?, port)
        }
        None => {
            let (host, port) = split_port(address)?;
            (decoded_text("host", host)?, port)
        }
    };
    // A colon with no port behind it is legal and means the default (3.2.3).
    let port = match port {
        "" => None,
        port => Some(small_port("port", decimal(port).unwrap_or(0))?),
    };
    Ok((host, port))
}

/// A port of TCP.
fn small_port(part: &'static str, port: u32) -> Result<u16, Error> {
    match u16::try_from(port) {
        Ok(0) | Err(_) => Err(Error::BadPort(part)),
        Ok(port) => Ok(port),
    }
}

/// `cid`, `cid:port` or less.
fn vsock(address: &str, wanted: Option<u32>) -> Result<Place, Error> {
    let (cid, port) = split_port(address)?;
    let port = match port {
        "" => u32::from(DEFAULT_PORT),
        port => decimal(port).ok_or(Error::BadVsockPort("port"))?,
    };
    Ok(Place::Vsock {
        cid: match cid {
            "" => VSOCK_HOST,
            cid => decimal(cid).ok_or_else(|| Error::BadCid(shown(cid.as_bytes())))?,
        },
        port: wanted.unwrap_or(port),
    })
}

fn split_port(address: &str) -> Result<(&str, &str), Error> {
    match address.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(Error::Colons),
        Some(pieces) => Ok(pieces),
        None => Ok((address, "")),
    }
}

/// What is between the brackets, as the resolver wants it: the percent sign before a zone is
/// written `%25` in a URI (RFC 6874).
fn ipv6(inside: &str) -> Result<String, Error> {
    let (address, zone) = match inside.split_once("%25") {
        Some((address, zone)) => (address, Some(decoded_text("host", zone)?)),
        None => (inside, None),
    };
    if address.parse::<Ipv6Addr>().is_err() || zone.as_deref() == Some("") {
        return Err(Error::BadIpv6(shown(inside.as_bytes())));
    }
    Ok(match zone {
        Some(zone) => format!("{address}%{zone}"),
        None => address.to_owned(),
    })
}

/// Digits only: Rust's own parser also takes a plus sign.
fn decimal(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn decoded_text(part: &'static str, raw: &str) -> Result<String, Error> {
    String::from_utf8(decoded(part, raw)?).map_err(|_| Error::NotUtf8(part))
}

/// One piece of the URI with its escapes replaced. Every piece that may have some comes through
/// here, hence it is also the place where illegal characters are seen. A plus sign is itself (2.2):
/// it means a space in web forms only.
fn decoded(part: &'static str, raw: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        if character == '%' {
            let digits = characters.as_str();
            let byte = characters
                .next()
                .and_then(|c| c.to_digit(16))
                .zip(characters.next().and_then(|c| c.to_digit(16)))
                .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
            match byte {
                Some(0) => return Err(Error::ZeroByte(part)),
                Some(byte) => bytes.push(byte),
                None => {
                    let after: String = digits.chars().take(2).collect();
                    return Err(Error::Escape {
                        part,
                        escape: format!("%{}", shown(after.as_bytes())),
                    });
                }
            }
        } else if legal(character) {
            // Legal characters are ASCII, one byte each.
            bytes.extend(u8::try_from(character));
        } else {
            return Err(Error::Character { part, character });
        }
    }
    Ok(bytes)
}

/// Characters that may stand for themselves (appendix A: `pchar`, `/` and `?`). `#` would begin a
/// fragment, which an NBD URI does not have; brackets belong to addresses only.
fn legal(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?".contains(character)
}

#[cfg(test)]
mod tests;
