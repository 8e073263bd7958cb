// SPDX-License-Identifier: BSD-3-Clause
//! A pre-shared key: where it stands, and how it is handed to OpenSSL.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::OnceLock;

use openssl::error::ErrorStack;
use openssl::ssl::{
    Ssl, SslContextBuilder, SslMethod, SslOptions, SslStream, SslVerifyMode, SslVersion,
};
use zeroize::Zeroizing;

use super::files::{Files, Purpose, cannot};
use super::{Verdict, openssl};
use crate::proto::codec::printable;
use crate::transport::Error;

const KEYS: Purpose = Purpose {
    what: "the pre-shared keys",
    parameter: "tls-psk",
};
/// Largest file of keys, bytes.
const MAX_FILE: usize = 1 << 20;
/// Longest user name that a message shows, bytes.
const SHOWN: usize = 200;

/// What OpenSSL has room for, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    identity: usize,
    key: usize,
}

/// Has a connection prove who we are with the key of `username`.
pub fn present(
    builder: &mut SslContextBuilder,
    files: &Files,
    file: &Path,
    username: &str,
    verdict: Verdict,
) -> Result<(), Error> {
    let key = find_key(files, file, username)?;
    let identity = username.to_owned();
    let keys = file.to_owned();
    if let Some(room) = room() {
        check(&identity, &key, room).map_err(|why| cannot(file, KEYS, &why))?;
    }
    builder.set_psk_client_callback(move |_, _, identity_room, key_room| {
        let room = Room {
            // One byte ends it.
            identity: identity_room.len().saturating_sub(1),
            key: key_room.len(),
        };
        if let Err(why) = check(&identity, &key, room) {
            verdict.say(Err(cannot(&keys, KEYS, &why)));
            // No key is the answer to a server that cannot be answered.
            return Ok(0);
        }
        identity_room[..identity.len()].copy_from_slice(identity.as_bytes());
        identity_room[identity.len()] = 0;
        key_room[..key.len()].copy_from_slice(&key);
        Ok(key.len())
    });
    // The key is the only proof: a server that shows a certificate instead has no authority here
    // that could vouch for it, and is refused.
    builder.set_verify(SslVerifyMode::PEER);
    // An external key in TLS 1.3 goes with SHA-256 only, which leaves two ciphers. AES is several
    // times faster where the processor has instructions for it.
    let suites = if has_aes() {
        "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
    } else {
        "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"
    };
    builder
        .set_ciphersuites(suites)
        .map_err(openssl("ciphers"))?;
    builder
        .set_cipher_list("PSK+AESGCM:PSK+CHACHA20:PSK+AES:!RSAPSK")
        .map_err(openssl("ciphers"))
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    true
}

/// Whether name and key fit into what OpenSSL has for them.
fn check(identity: &str, key: &[u8], room: Room) -> Result<(), String> {
    let name = shown(identity);
    if identity.len() > room.identity {
        let limit = room.identity;
        return Err(format!("the name \"{name}\" is longer than {limit} bytes"));
    }
    if key.len() > room.key {
        let (length, limit) = (key.len(), room.key);
        return Err(format!(
            "the key of \"{name}\" has {length} bytes, which is longer than OpenSSL's limit of {limit}"
        ));
    }
    Ok(())
}

/// The room of the OpenSSL that we run with, which is not always the one that we were built with:
/// a connection that leads nowhere is begun to be asked for a key. `None` if it asks for none, since
/// the system's configuration forbids TLS 1.3.
fn room() -> Option<Room> {
    static ROOM: OnceLock<Option<Room>> = OnceLock::new();
    *ROOM.get_or_init(|| measure().unwrap_or(None))
}

fn measure() -> Result<Option<Room>, ErrorStack> {
    let measured = std::sync::Arc::new(OnceLock::new());
    let asked = measured.clone();
    let mut builder = SslContextBuilder::new(SslMethod::tls_client())?;
    builder.set_options(SslOptions::NO_COMPRESSION);
    builder.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    builder.set_psk_client_callback(move |_, _, identity, key| {
        let _ = asked.set(Room {
            identity: identity.len().saturating_sub(1),
            key: key.len(),
        });
        Ok(0)
    });
    let mut stream = SslStream::new(Ssl::new(&builder.build())?, Nowhere)?;
    // It ends where the server's answer is waited for.
    let _ = stream.connect();
    drop(stream);
    Ok(measured.get().copied())
}

/// Takes everything and never answers.
#[derive(Debug)]
struct Nowhere;

impl Read for Nowhere {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn shown(username: &str) -> String {
    printable(username.as_bytes(), SHOWN)
}

/// Finds a user's key in a file of them.
fn find_key(files: &Files, file: &Path, username: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let text = files.read_secret(file, KEYS)?;
    if text.len() > MAX_FILE {
        return Err(cannot(file, KEYS, "is too large for a file of keys"));
    }
    find_in(&text, username).map_err(|why| cannot(file, KEYS, &why))
}

/// Finds a user's key among lines of `name:hexkey`. Empty lines and comments do not count, nor
/// does a carriage return at a line's end.
fn find_in(text: &[u8], username: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let name = shown(username);
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let malformed = || format!("line {} is not of the form name:hexkey", number + 1);
        let colon = line
            .iter()
            .rposition(|byte| *byte == b':')
            .ok_or_else(malformed)?;
        let (user, key) = line.split_at(colon);
        if user != username.as_bytes() {
            continue;
        }
        let key = unhex(&key[1..]).ok_or_else(malformed)?;
        return match key.is_empty() {
            true => Err(format!("the key of \"{name}\" is empty")),
            false => Ok(key),
        };
    }
    Err(format!(
        "no key of \"{name}\" in it, whom tls-username names"
    ))
}

fn unhex(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if digits.len() % 2 != 0 {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
    for pair in digits.chunks_exact(2) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        let (high, low) = (value(pair[0])?, value(pair[1])?);
        bytes.push((high * 16 + low) as u8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_users_name() {
        let file = b"# comment\r\nalice:0A0b\r\n\nbob:ff\n";
        assert_eq!(*find_in(file, "alice").expect("alice"), [0x0a, 0x0b]);
        assert_eq!(*find_in(file, "bob").expect("bob"), [0xff]);
        assert_eq!(
            find_in(file, "carol\x1b").expect_err("carol"),
            "no key of \"carol\\u{1b}\" in it, whom tls-username names"
        );
    }

    #[test]
    fn malformed_lines_are_named_without_their_keys() {
        for (file, message) in [
            (&b"alice"[..], "line 1 is not of the form name:hexkey"),
            (b"\nalice:0g", "line 2 is not of the form name:hexkey"),
            (b"alice:abc", "line 1 is not of the form name:hexkey"),
            (b"alice:", "the key of \"alice\" is empty"),
        ] {
            assert_eq!(find_in(file, "alice").expect_err(message), message);
        }
    }

    #[test]
    fn the_library_says_what_it_has_room_for() {
        // 256 until 1.1.1, and more since.
        let room = room().expect("TLS 1.3 is allowed here");
        assert!(room.key >= 256 && room.identity >= 128, "{room:?}");
    }

    #[test]
    fn what_does_not_fit_is_told_with_the_limit() {
        let room = Room {
            identity: 5,
            key: 4,
        };
        assert_eq!(check("alice", &[0; 4], room), Ok(()));
        assert_eq!(
            check("alice", &[0; 5], room).expect_err("too long"),
            "the key of \"alice\" has 5 bytes, which is longer than OpenSSL's limit of 4"
        );
        assert_eq!(
            check("carola", &[0; 4], room).expect_err("too long"),
            "the name \"carola\" is longer than 5 bytes"
        );
    }
}
