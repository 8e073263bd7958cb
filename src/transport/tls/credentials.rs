//! The user's files, and what OpenSSL is told of them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;
use openssl::ssl::{
    SslContext, SslContextBuilder, SslFiletype, SslMethod, SslMode, SslOptions, SslVerifyMode,
    SslVersion,
};
use openssl::x509::X509;
use openssl::x509::store::X509Lookup;
use openssl::x509::verify::X509VerifyFlags;
use zeroize::Zeroizing;

use super::{Credentials, Settings};
use crate::transport::{Error, describe_io};

/// Where libnbd, and so the C plugin, looks for certificates that nobody named: below the user's
/// home directory, unless that is root's, then here.
const SYSTEM_DIRECTORY: &str = "/etc/pki/libnbd";
const HOME_DIRECTORIES: [&str; 2] = [".pki/libnbd", ".config/pki/libnbd"];

/// Longest pre-shared key that OpenSSL takes, bytes.
const MAX_KEY: usize = 256;
/// Largest file of keys that is read, bytes.
const MAX_KEY_FILE: u64 = 1 << 20;

/// Makes the context for one connection.
pub fn context(settings: &Settings) -> Result<SslContext, Error> {
    let mut builder =
        SslContextBuilder::new(SslMethod::tls_client()).map_err(openssl("context"))?;
    builder
        .set_min_proto_version(Some(SslVersion::TLS1_2))
        .map_err(openssl("protocol version"))?;
    builder.set_options(SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION);
    builder.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    match &settings.credentials {
        Credentials::X509(directory) => x509(&mut builder, settings, directory.as_deref())?,
        Credentials::Psk { file, username } => psk(&mut builder, file, username)?,
    }
    if let Some(priority) = &settings.priority {
        set_ciphers(&mut builder, priority).map_err(openssl("tls-priority"))?;
    }
    Ok(builder.build())
}

/// OpenSSL takes the ciphers of TLS 1.3 and of older versions apart; users need not.
fn set_ciphers(builder: &mut SslContextBuilder, priority: &str) -> Result<(), ErrorStack> {
    let (suites, older): (Vec<&str>, Vec<&str>) = priority
        .split(':')
        .partition(|name| name.starts_with("TLS_"));
    if !suites.is_empty() {
        builder.set_ciphersuites(&suites.join(":"))?;
    }
    if !older.is_empty() {
        builder.set_cipher_list(&older.join(":"))?;
    }
    Ok(())
}

fn x509(
    builder: &mut SslContextBuilder,
    settings: &Settings,
    named: Option<&Path>,
) -> Result<(), Error> {
    let directory = match named {
        Some(directory) => Some(directory.to_owned()),
        None => usual_directory(),
    };
    match &directory {
        Some(directory) => load(builder, directory)?,
        None => builder
            .set_default_verify_paths()
            .map_err(openssl("the system's certificates"))?,
    }
    // A pinned key needs no authority to vouch for it, unless one was named.
    let chain = settings
        .verify
        .unwrap_or(settings.pin.is_none() || named.is_some());
    builder.set_verify(if chain {
        SslVerifyMode::PEER
    } else {
        SslVerifyMode::NONE
    });
    Ok(())
}

/// The first usual place that has a certificate authority.
pub fn usual_directory() -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    let home = std::env::var_os("HOME").filter(|_| !root);
    let below_home = home
        .iter()
        .flat_map(|home| HOME_DIRECTORIES.map(|below| Path::new(home).join(below)));
    below_home
        .chain([PathBuf::from(SYSTEM_DIRECTORY)])
        .find(|directory| directory.join("ca-cert.pem").exists())
}

fn load(builder: &mut SslContextBuilder, directory: &Path) -> Result<(), Error> {
    let authority = directory.join("ca-cert.pem");
    let pem = read(&authority)?;
    let certificates = X509::stack_from_pem(&pem).map_err(in_file(&authority))?;
    if certificates.is_empty() {
        let message = format!("{}: there is no certificate in it", authority.display());
        return Err(Error::Tls(message));
    }
    for certificate in certificates {
        builder
            .cert_store_mut()
            .add_cert(certificate)
            .map_err(in_file(&authority))?;
    }
    let revoked = directory.join("ca-crl.pem");
    if revoked.exists() {
        let store = builder.cert_store_mut();
        store
            .add_lookup(X509Lookup::file())
            .and_then(|lookup| lookup.load_crl_file(&revoked, SslFiletype::PEM))
            .map_err(in_file(&revoked))?;
        store
            .set_flags(X509VerifyFlags::CRL_CHECK)
            .map_err(in_file(&revoked))?;
    }
    let (certificate, key) = (
        directory.join("client-cert.pem"),
        directory.join("client-key.pem"),
    );
    match (certificate.exists(), key.exists()) {
        (false, false) => Ok(()),
        (true, true) => {
            builder
                .set_certificate_chain_file(&certificate)
                .map_err(in_file(&certificate))?;
            builder
                .set_private_key_file(&key, SslFiletype::PEM)
                .map_err(in_file(&key))?;
            builder.check_private_key().map_err(in_file(&key))
        }
        (there, _) => Err(Error::Tls(format!(
            "{} is there, but {} is not",
            if there { &certificate } else { &key }.display(),
            if there { &key } else { &certificate }.display(),
        ))),
    }
}

fn psk(builder: &mut SslContextBuilder, file: &Path, username: &str) -> Result<(), Error> {
    let key = find_key(file, username)?;
    let identity = username.to_owned();
    builder.set_psk_client_callback(move |_, _, identity_room, key_room| {
        let bytes = identity.as_bytes();
        let (Some(identity_room), Some(key_room)) = (
            identity_room.get_mut(..=bytes.len()),
            key_room.get_mut(..key.len()),
        ) else {
            // No key is the answer to a server that cannot be answered.
            return Ok(0);
        };
        identity_room[..bytes.len()].copy_from_slice(bytes);
        identity_room[bytes.len()] = 0;
        key_room.copy_from_slice(&key);
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

/// Finds a user's key in a file of them.
fn find_key(file: &Path, username: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let metadata = fs::metadata(file).map_err(cannot_read(file))?;
    if metadata.len() > MAX_KEY_FILE {
        return Err(Error::Tls(format!(
            "{}: too large for a file of keys",
            file.display()
        )));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        log::warn!(
            "{}: others than its owner may use the keys in it",
            file.display()
        );
    }
    let text = Zeroizing::new(fs::read(file).map_err(cannot_read(file))?);
    find_in(&text, username).map_err(|why| Error::Tls(format!("{}: {why}", file.display())))
}

/// Finds a user's key among lines of `name:hexkey`. Empty lines and comments do not count, nor
/// does a carriage return at a line's end.
fn find_in(text: &[u8], username: &str) -> Result<Zeroizing<Vec<u8>>, String> {
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
        let (name, key) = line.split_at(colon);
        if name != username.as_bytes() {
            continue;
        }
        let key = unhex(&key[1..]).ok_or_else(malformed)?;
        return match key.len() {
            0 => Err(format!("the key of \"{username}\" is empty")),
            n if n > MAX_KEY => Err(format!(
                "the key of \"{username}\" is longer than {MAX_KEY} bytes"
            )),
            _ => Ok(key),
        };
    }
    Err(format!("no key of \"{username}\" in it"))
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

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    fs::read(file).map_err(cannot_read(file))
}

fn cannot_read(file: &Path) -> impl Fn(io::Error) -> Error {
    move |error| Error::Tls(format!("{}: {}", file.display(), describe_io(&error)))
}

fn in_file(file: &Path) -> impl Fn(ErrorStack) -> Error {
    move |error| Error::Tls(format!("{}: {}", file.display(), reasons(&error)))
}

fn openssl(what: &'static str) -> impl Fn(ErrorStack) -> Error {
    move |error| Error::Tls(format!("{what}: {}", reasons(&error)))
}

/// What OpenSSL says, without its file names and codes.
pub fn reasons(stack: &ErrorStack) -> String {
    let mut reasons: Vec<&str> = Vec::new();
    for error in stack.errors() {
        let reason = error.reason().unwrap_or("unknown error");
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    match reasons.is_empty() {
        true => "unknown error".to_owned(),
        false => reasons.join(", "),
    }
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
            find_in(file, "carol").expect_err("carol"),
            "no key of \"carol\" in it"
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
    fn ciphers_of_both_generations_may_be_mixed() {
        let mut builder = SslContextBuilder::new(SslMethod::tls_client()).expect("context");
        assert!(set_ciphers(&mut builder, "TLS_AES_128_GCM_SHA256:ECDHE+AESGCM").is_ok());
        assert!(set_ciphers(&mut builder, "NO-SUCH-CIPHER").is_err());
    }
}
