//! What one connection needs of the user's files, made before there is a connection.

use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslFiletype, SslMethod, SslMode, SslOptions, SslVerifyMode,
    SslVersion,
};
use openssl::x509::X509;
use openssl::x509::store::X509Lookup;
use openssl::x509::verify::X509VerifyFlags;

use super::files::{Files, Purpose, cannot};
use super::identity::{self, Identity};
use super::{Credentials, Settings, Verdict, openssl, pem, psk, reasons};
use crate::transport::Error;

/// Where libnbd, and so the C plugin, looks for certificates that nobody named: below the user's
/// home directory, unless that is root's, then here.
const SYSTEM_DIRECTORY: &str = "/etc/pki/libnbd";
const HOME_DIRECTORIES: [&str; 2] = [".pki/libnbd", ".config/pki/libnbd"];

const AUTHORITIES: Purpose = Purpose {
    what: "the authorities to trust",
    parameter: "tls-certificates",
};
const REVOKED: Purpose = Purpose {
    what: "the revoked certificates",
    parameter: "tls-certificates",
};

/// Everything that a connection needs. No file is read any more.
#[derive(Debug)]
pub struct Prepared<'a> {
    settings: &'a Settings,
    context: SslContext,
    identities: Vec<Identity>,
    verdict: Verdict,
}

impl<'a> Prepared<'a> {
    /// Reads the files that `settings` name.
    pub fn new(settings: &'a Settings) -> Result<Self, Error> {
        let mut builder =
            SslContextBuilder::new(SslMethod::tls_client()).map_err(openssl("context"))?;
        builder
            .set_min_proto_version(Some(SslVersion::TLS1_2))
            .map_err(openssl("protocol version"))?;
        builder.set_options(SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION);
        builder.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
        builder.set_read_ahead(true);
        let verdict = Verdict::default();
        let files = &settings.files;
        let identities = match &settings.credentials {
            Credentials::X509(directory) => x509(&mut builder, settings, directory)?,
            Credentials::Psk { file, username } => {
                psk::present(&mut builder, files, file, username, verdict.clone())?;
                Vec::new()
            }
        };
        if let Some(priority) = &settings.priority {
            set_ciphers(&mut builder, priority).map_err(openssl("tls-priority"))?;
        }
        let prepared = Self {
            settings,
            context: builder.build(),
            identities,
            verdict,
        };
        // What OpenSSL thinks of our own certificates is told now.
        prepared.ssl()?;
        Ok(prepared)
    }

    /// What the files were read for.
    pub fn settings(&self) -> &'a Settings {
        self.settings
    }

    /// OpenSSL's side of a connection that is still to be made.
    pub fn ssl(&self) -> Result<Ssl, Error> {
        let mut ssl = Ssl::new(&self.context).map_err(|error| Error::Tls(reasons(&error)))?;
        // With TLS 1.2 OpenSSL shows the last one or none, and the first is the usual one.
        for identity in self.identities.iter().rev() {
            identity.assume(&mut ssl)?;
        }
        Ok(ssl)
    }

    /// Why a handshake was ended by us, where OpenSSL does not know.
    pub fn objection(&self) -> Option<Error> {
        self.verdict.said().and_then(Result::err)
    }
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

/// Who we are and whom we trust; returns the certificates that are ours.
fn x509(
    builder: &mut SslContextBuilder,
    settings: &Settings,
    named: &Option<PathBuf>,
) -> Result<Vec<Identity>, Error> {
    let directory = match named {
        Some(directory) => Some(directory.clone()),
        None => usual_directory(),
    };
    let identities = match &directory {
        Some(directory) => {
            trust(builder, &settings.files, directory)?;
            mind_revoked(builder, &settings.files, directory)?;
            identity::all(&settings.files, directory, settings.key_password.as_ref())?
        }
        None => {
            builder
                .set_default_verify_paths()
                .map_err(openssl("the system's certificates"))?;
            Vec::new()
        }
    };
    // A pinned key needs no authority to vouch for it, unless one was named.
    let chain = settings
        .verify
        .unwrap_or(settings.pin.is_none() || named.is_some());
    builder.set_verify(if chain {
        SslVerifyMode::PEER
    } else {
        SslVerifyMode::NONE
    });
    Ok(identities)
}

/// The first usual place that has a certificate authority, be it readable or not. A home directory
/// that is not open to us, since nbdkit became another user, is not ours.
fn usual_directory() -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    let home = std::env::var_os("HOME").filter(|_| !root);
    let below_home = home
        .iter()
        .flat_map(|home| HOME_DIRECTORIES.map(|below| Path::new(home).join(below)));
    below_home
        .chain([PathBuf::from(SYSTEM_DIRECTORY)])
        .find(|directory| directory.join("ca-cert.pem").symlink_metadata().is_ok())
}

/// Trusts the authorities in `directory`.
fn trust(builder: &mut SslContextBuilder, files: &Files, directory: &Path) -> Result<(), Error> {
    let file = directory.join("ca-cert.pem");
    let content = files.read(&file, AUTHORITIES)?;
    let in_file = |why: String| cannot(&file, AUTHORITIES, &why);
    for authority in certificates(&content).map_err(in_file)? {
        builder
            .cert_store_mut()
            .add_cert(authority)
            .map_err(|error| in_file(reasons(&error)))?;
    }
    Ok(())
}

/// All certificates of a file, at least one.
pub fn certificates(content: &[u8]) -> Result<Vec<X509>, String> {
    let blocks = pem::blocks(content).ok_or("its end is missing")?;
    let mut certificates = Vec::new();
    for block in blocks.iter().filter(|block| block.is_certificate()) {
        if block.is_encrypted() {
            return Err("is encrypted".to_owned());
        }
        certificates.push(X509::from_pem(block.text).map_err(|error| reasons(&error))?);
    }
    match certificates.is_empty() {
        true => Err("there is no certificate in it (PEM)".to_owned()),
        false => Ok(certificates),
    }
}

/// Minds the lists of revoked certificates in `directory`.
fn mind_revoked(
    builder: &mut SslContextBuilder,
    files: &Files,
    directory: &Path,
) -> Result<(), Error> {
    let file = directory.join("ca-crl.pem");
    if files.read_if_there(&file, REVOKED)?.is_none() {
        return Ok(());
    }
    let in_file = |error: ErrorStack| cannot(&file, REVOKED, &reasons(&error));
    let store = builder.cert_store_mut();
    store
        .add_lookup(X509Lookup::file())
        .and_then(|lookup| lookup.load_crl_file(&file, SslFiletype::PEM))
        .map_err(in_file)?;
    store.set_flags(X509VerifyFlags::CRL_CHECK).map_err(in_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ciphers_of_both_generations_may_be_mixed() {
        let mut builder = SslContextBuilder::new(SslMethod::tls_client()).expect("context");
        assert!(set_ciphers(&mut builder, "TLS_AES_128_GCM_SHA256:ECDHE+AESGCM").is_ok());
        assert!(set_ciphers(&mut builder, "NO-SUCH-CIPHER").is_err());
    }
}
