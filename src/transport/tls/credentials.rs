// SPDX-License-Identifier: BSD-3-Clause
//! What one connection needs of the user's files, made before there is a connection.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslVerifyMode, SslVersion,
};
use openssl::stack::StackRef;
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509StoreContext, X509StoreContextRef, X509VerifyResult};

use super::files::{Files, Purpose, cannot, shown};
use super::identity::{self, Identity};
use super::revocation::{Lists, full_name};
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
    /// There are lists of revoked certificates, which OpenSSL has to ask us about.
    judges: bool,
    verdict: Verdict,
}

impl<'a> Prepared<'a> {
    /// Reads the files that `settings` name.
    pub fn new(settings: &'a Settings) -> Result<Self, Error> {
        let mut builder =
            SslContextBuilder::new(SslMethod::tls_client()).map_err(openssl("context"))?;
        builder
            // spec: TLS versions: MUST: TLS 1.2
            // spec: TLS versions: SHOULD: later versions too
            // spec: TLS versions: SHOULD NOT: no older ones
            // spec: Maximum interoperability: SHOULD: TLS
            .set_min_proto_version(Some(SslVersion::TLS1_2))
            .map_err(openssl("protocol version"))?;
        builder.set_options(SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION);
        builder.set_mode(SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
        let verdict = Verdict::default();
        let files = &settings.files;
        let (judges, identities) = match &settings.credentials {
            Credentials::X509(directory) => x509(&mut builder, settings, directory, &verdict)?,
            Credentials::Psk { file, username } => {
                psk::present(&mut builder, files, file, username, verdict.clone())?;
                (false, Vec::new())
            }
        };
        if let Some(priority) = &settings.priority {
            set_ciphers(&mut builder, priority).map_err(openssl("tls-priority"))?;
        }
        let prepared = Self {
            settings,
            context: builder.build(),
            identities,
            judges,
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

    /// Whether a handshake that has come to its end was judged where we want to judge. It would be
    /// OpenSSL's fault if not, but to go on would be to believe what may have been revoked.
    pub fn confirm(&self) -> Result<(), Error> {
        match self.verdict.said() {
            Some(verdict) => verdict,
            None if self.judges => Err(Error::Tls(
                "the lists of revoked certificates were not looked at".to_owned(),
            )),
            None => Ok(()),
        }
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

/// Who we are and whom we trust; says whether there are lists to judge by, and which certificates are
/// ours.
fn x509(
    builder: &mut SslContextBuilder,
    settings: &Settings,
    named: &Option<PathBuf>,
    verdict: &Verdict,
) -> Result<(bool, Vec<Identity>), Error> {
    let directory = match named {
        Some(directory) => Some(directory.clone()),
        None => usual_directory(),
    };
    let (lists, identities) = match &directory {
        Some(directory) => {
            let anchors = trust(builder, &settings.files, directory)?;
            let lists = revoked(&settings.files, directory, anchors)?;
            let password = settings.key_password.as_ref();
            (lists, identity::all(&settings.files, directory, password)?)
        }
        None => {
            builder
                .set_default_verify_paths()
                .map_err(openssl("the system's certificates"))?;
            (None, Vec::new())
        }
    };
    let chain = settings.verifies();
    let judges = chain && lists.is_some();
    match (chain, lists) {
        (false, _) => builder.set_verify(SslVerifyMode::NONE),
        (true, None) => builder.set_verify(SslVerifyMode::PEER),
        (true, Some(lists)) => mind(builder, lists, verdict.clone()),
    }
    Ok((judges, identities))
}

/// The first usual place that has a certificate authority, be it readable or not. A home directory
/// that is not open to us, since nbdkit became another user, is not ours.
pub fn usual_directory() -> Option<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    let home = std::env::var_os("HOME").filter(|_| !root);
    let below_home = home
        .iter()
        .flat_map(|home| HOME_DIRECTORIES.map(|below| Path::new(home).join(below)));
    below_home
        .chain([PathBuf::from(SYSTEM_DIRECTORY)])
        .find(|directory| directory.join("ca-cert.pem").symlink_metadata().is_ok())
}

/// Trusts the authorities in `directory`: each of them, also one that another has signed, as GnuTLS
/// does.
fn trust(
    builder: &mut SslContextBuilder,
    files: &Files,
    directory: &Path,
) -> Result<Vec<X509>, Error> {
    let file = directory.join("ca-cert.pem");
    let content = files.read(&file, AUTHORITIES)?;
    let in_file = |why: String| cannot(&file, AUTHORITIES, &why);
    let anchors = certificates(&content).map_err(in_file)?;
    let (good, over): (Vec<&X509>, Vec<&X509>) = anchors.iter().partition(|it| is_valid(it));
    // OpenSSL would take one whose time is over for the issuer, and not look for its successor in
    // what the server shows. If there are no others it says what is wrong with them.
    let usable = match good.is_empty() {
        true => over,
        false => {
            for anchor in over {
                log::debug!(
                    "{}: the time of {} is over",
                    shown(&file),
                    full_name(anchor.subject_name())
                );
            }
            good
        }
    };
    let store = builder.cert_store_mut();
    for anchor in usable {
        store
            .add_cert(anchor.clone())
            .map_err(|error| in_file(reasons(&error)))?;
    }
    store
        .set_flags(X509VerifyFlags::PARTIAL_CHAIN)
        .map_err(|error| in_file(reasons(&error)))?;
    Ok(anchors)
}

/// Whether a certificate is good today, as far as time goes. OpenSSL has the last word.
fn is_valid(certificate: &X509) -> bool {
    let Ok(now) = Asn1Time::days_from_now(0) else {
        return true;
    };
    let is_over = |end: Ordering| end.is_lt();
    !(certificate.not_after().compare(&now).is_ok_and(is_over)
        || now.compare(certificate.not_before()).is_ok_and(is_over))
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

/// The lists of revoked certificates in `directory`.
fn revoked(files: &Files, directory: &Path, anchors: Vec<X509>) -> Result<Option<Lists>, Error> {
    let file = directory.join("ca-crl.pem");
    let Some(content) = files.read_if_there(&file, REVOKED)? else {
        return Ok(None);
    };
    let in_file = |why: String| cannot(&file, REVOKED, &why);
    let blocks = pem::blocks(&content).ok_or_else(|| in_file("its end is missing".to_owned()))?;
    Lists::new(&file, &blocks, anchors)
        .map(Some)
        .map_err(in_file)
}

/// Has the lists looked at when OpenSSL has nothing against a server.
fn mind(builder: &mut SslContextBuilder, lists: Lists, verdict: Verdict) {
    builder.set_verify_callback(SslVerifyMode::PEER, move |fine, store| {
        // Called for each certificate, the server's last, and for each fault.
        if !fine || store.error_depth() != 0 {
            return fine;
        }
        let judged = match store.chain() {
            Some(chain) => lists.judge(chain, shown_by_server(store)),
            None => Err("there is no chain of certificates".to_owned()),
        };
        let judged = judged.map_err(|why| {
            store.set_error(X509VerifyResult::APPLICATION_VERIFICATION);
            Error::Tls(format!("the server's certificate is not accepted: {why}"))
        });
        let fine = judged.is_ok();
        verdict.say(judged);
        fine
    });
}

/// All certificates that the server has shown.
fn shown_by_server(store: &X509StoreContextRef) -> Option<&StackRef<X509>> {
    let place = X509StoreContext::ssl_idx().ok()?;
    store.ex_data(place)?.peer_cert_chain()
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
