// SPDX-License-Identifier: BSD-3-Clause
//! What is wrong with a URI, in words that give no password away.

use super::SCHEME_LIST;
use crate::proto::consts::MAX_STRING;

/// What is wrong with a URI. No message repeats what may be a password, well-formed or not (see
/// `Error::withholding`); whoever shows the URI beside it gives that up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A word that is no URI.
    #[error("no scheme: a URI begins with {SCHEME_LIST}")]
    NoScheme,
    /// A path that was meant as a Unix socket.
    #[error("a path is not a URI: write nbd+unix:///?socket=PATH, or use socket=PATH")]
    BarePath,
    /// A URI, but not of NBD.
    #[error("unknown scheme '{0}': a URI begins with {SCHEME_LIST}")]
    UnknownScheme(String),
    /// `nbd:name`, which could be read in several ways.
    #[error("'{0}:' must be followed by '//'")]
    NoSlashes(&'static str),
    /// What QEMU took before there were URIs.
    #[error("nbd:unix:PATH is not a URI: write nbd+unix:///EXPORT?socket=PATH")]
    QemuUnix,
    /// The same for TCP.
    #[error("nbd:HOST:PORT is not a URI: write nbd://HOST:PORT/EXPORT")]
    QemuTcp,
    /// Something is wrong in a URI in which a password may stand, so that no piece of it is shown.
    #[error("{0} (not shown, since there may be a password in it)")]
    Withheld(&'static str),
    /// A character that a URI cannot hold, or not there.
    #[error("{part}: {character:?} must be written {}", escaped(*.character))]
    Character {
        /// Where it stands.
        part: &'static str,
        /// What it is.
        character: char,
    },
    /// A percent sign without two hexadecimal digits.
    #[error("{part}: '{escape}' is not a percent escape (a percent sign itself is written %25)")]
    Escape {
        /// Where it stands.
        part: &'static str,
        /// The percent sign and what follows.
        escape: String,
    },
    /// `%00`: neither names nor paths can hold it.
    #[error("{0}: must not contain a zero byte (%00)")]
    ZeroByte(&'static str),
    /// Bytes that are no text.
    #[error("{0}: must be UTF-8")]
    NotUtf8(&'static str),
    /// `user:password@`, with or without an escape in place of the colon: no user that a key file
    /// can have has one in its name.
    #[error("a password in a URI is not supported")]
    Password,
    /// `user@` and `tls-username=`
    #[error("the user name is given twice: before '@' and as tls-username")]
    TwoUserNames,
    /// A host for a Unix socket; perhaps an export name after two slashes in place of three.
    #[error(
        "a Unix socket has no host or port, so nothing stands after the second slash (an export \
         name follows a third one)"
    )]
    UnixHost,
    /// A scheme for ssh, and no host.
    #[error("host is missing: write {0}://HOST/")]
    NoHost(&'static str),
    /// A host or user that ssh could take for something else, or hand to a shell.
    #[error("{0}: has characters that cannot be given to ssh, or begins with a dash")]
    Ssh(&'static str),
    /// An IPv6 address without brackets.
    #[error("host: has several colons (an IPv6 address is written in brackets)")]
    Colons,
    /// `[` without `]`
    #[error("host: '[' without ']'")]
    OpenBracket,
    /// `[...]x`
    #[error("host: only a colon and a port may follow ']'")]
    AfterBracket,
    /// No IPv6 address between the brackets.
    #[error("host: '{0}' is not an IPv6 address")]
    BadIpv6(String),
    /// A TCP port out of range, or a service name. In `user:password` without a host it is the
    /// password, so it is never shown.
    #[error("{0}: must be a number from 1 to 65535")]
    BadPort(&'static str),
    /// A vsock port out of range.
    #[error("{0}: must be a number from 0 to 4294967295")]
    BadVsockPort(&'static str),
    /// A vsock context id out of range, or a name.
    #[error("vsock context id '{0}': must be a number from 0 to 4294967295")]
    BadCid(String),
    /// A scheme for Unix sockets, and no socket.
    #[error("socket is missing: write {0}:///?socket=PATH")]
    NoSocket(&'static str),
    /// A socket, but the scheme is for something else.
    #[error("socket cannot be used with {given}: write {wanted}:///?socket=PATH for a Unix socket")]
    SocketElsewhere {
        /// The scheme.
        given: &'static str,
        /// The scheme for Unix sockets with the same protection.
        wanted: &'static str,
    },
    /// A port, and a socket, which has none.
    #[error("nbd-port cannot be used with a Unix socket")]
    PortOfSocket,
    /// Compression where there is no ssh to do it.
    #[error("compress needs ssh: write {0}:// in place of it")]
    CompressElsewhere(&'static str),
    /// The path does not fit a Unix socket address of the host that ssh goes to.
    #[error("socket file name too large")]
    SocketTooLong,
    /// A query key that nobody defined. Ignoring it could drop a protection.
    #[error("unknown query key '{0}'")]
    UnknownKey(String),
    /// `?=value`
    #[error("query: '={0}' has no key")]
    NoKey(String),
    /// Which of the two would count?
    #[error("query key '{0}' is given twice")]
    RepeatedKey(&'static str),
    /// `?key=` or just `?key`
    #[error("{0}: must not be empty")]
    Empty(&'static str),
    /// `tls-type=` something else.
    #[error("tls-type '{0}': must be x509, psk or anon")]
    BadTlsType(String),
    /// A yes or no that is neither.
    #[error("{0} '{1}': must be 0, 1, false or true")]
    BadBoolean(&'static str, String),
    /// A TLS option where the scheme does not demand TLS: it would protect nothing.
    #[error("{key} needs TLS: write {wanted}:// in place of {given}://")]
    WithoutTls {
        /// The first such key.
        key: &'static str,
        /// The scheme.
        given: &'static str,
        /// The same with TLS.
        wanted: &'static str,
    },
    /// Longer than the protocol allows.
    #[error("export name: {0} bytes long, more than the {MAX_STRING} that the protocol allows")]
    LongExport(usize),
}

impl Error {
    /// This error as it may be shown of `text`. A mistyped URI can have a password where none is
    /// looked for (`nbd://user:pass/word@host` has an export name in this place). So if there is a
    /// colon and, somewhere behind it, an at sign, each as such or as an escape, then the messages
    /// that quote a piece are replaced by some that do not.
    pub(super) fn withholding(self, text: &str) -> Self {
        let what = match self {
            Self::UnknownScheme(_) => "unknown scheme",
            Self::Character { .. } => "a character that must be written as a percent escape",
            Self::Escape { .. } => "a percent sign that is no percent escape",
            Self::BadIpv6(_) => "host: no IPv6 address between the brackets",
            Self::BadCid(_) => "vsock context id: must be a number from 0 to 4294967295",
            Self::UnknownKey(_) => "unknown query key",
            Self::NoKey(_) => "query: a value without a key",
            Self::BadTlsType(_) => "tls-type: must be x509, psk or anon",
            Self::BadBoolean(..) => "a value that must be 0, 1, false or true",
            other => return other,
        };
        let text = text
            .to_ascii_lowercase()
            .replace("%3a", ":")
            .replace("%40", "@");
        let authority = text.split_once("://").map_or(&*text, |(_, rest)| rest);
        match authority.split_once(':') {
            Some((_, rest)) if rest.contains('@') => Self::Withheld(what),
            _ => self,
        }
    }
}

/// A character as it must be written.
fn escaped(character: char) -> String {
    let mut buffer = [0; 4];
    let bytes = character.encode_utf8(&mut buffer).bytes();
    bytes.map(|byte| format!("%{byte:02X}")).collect()
}
