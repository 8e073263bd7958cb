// SPDX-License-Identifier: BSD-3-Clause
//! Who we are: certificates to show, and their keys.

use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;
use openssl::pkey::{Id, PKey, Private};
use openssl::ssl::SslRef;
use openssl::x509::X509;

use super::credentials::certificates;
use super::files::{Content, Files, Purpose, cannot, shown};
use super::{Password, pem, reasons};
use crate::transport::Error;

const CERTIFICATE: Purpose = Purpose {
    what: "the certificate to show",
    parameter: "tls-certificates",
};
const KEY: Purpose = Purpose {
    what: "the client's key",
    parameter: "tls-certificates",
};
/// Most pairs beside the plain one. There are not that many kinds of keys.
const MOST: usize = 16;

/// A certificate and its key.
#[derive(Debug)]
pub struct Identity {
    file: PathBuf,
    certificate: X509,
    /// Of the authorities in between.
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// Reads all pairs of certificate and key in `directory`: the plain one and those with a number, from
/// 0 on to the first that is missing. None has to be there, but no half of one.
pub fn all(
    files: &Files,
    directory: &Path,
    password: Option<&Password>,
) -> Result<Vec<Identity>, Error> {
    let mut identities: Vec<Identity> = Vec::new();
    let pair = |number: &str| Identity::read(files, directory, number, password);
    let mut add = |identity: Identity| {
        let kind = identity.key.id();
        let same = identities
            .iter()
            .find(|earlier| kind == earlier.key.id() && kind != Id::from_raw(-1));
        match same {
            // It would take the place of the earlier one.
            Some(earlier) => log::warn!(
                target: "several-client-certificates",
                "{} is not used: its key is of the same kind as that of {}",
                shown(&identity.file),
                shown(&earlier.file)
            ),
            None => identities.push(identity),
        }
    };
    if let Some(plain) = pair("")? {
        add(plain);
    }
    for number in 0..MOST {
        match pair(&format!("-{number}"))? {
            Some(identity) => add(identity),
            None => break,
        }
    }
    Ok(identities)
}

impl Identity {
    /// Reads one pair, `None` if neither file is there.
    fn read(
        files: &Files,
        directory: &Path,
        number: &str,
        password: Option<&Password>,
    ) -> Result<Option<Self>, Error> {
        let certificate_file = directory.join(format!("client-cert{number}.pem"));
        let key_file = directory.join(format!("client-key{number}.pem"));
        let there = (
            files.read_if_there(&certificate_file, CERTIFICATE)?,
            files.read_secret_if_there(&key_file, KEY)?,
        );
        let (certificate, key) = match there {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => return Err(half(&certificate_file, &key_file)),
            (None, Some(_)) => return Err(half(&key_file, &certificate_file)),
        };
        let mut chain = certificates(&certificate)
            .map_err(|why| cannot(&certificate_file, CERTIFICATE, &why))?;
        let certificate = chain.remove(0);
        let key = private_key(&key, password).map_err(|why| cannot(&key_file, KEY, &why))?;
        let fits = certificate
            .public_key()
            .is_ok_and(|public| public.public_eq(&key));
        // What did not fit is no error of the handshake's.
        drop(ErrorStack::get());
        if !fits {
            let why = format!(
                "is not the key of the certificate in {}",
                shown(&certificate_file)
            );
            return Err(cannot(&key_file, KEY, &why));
        }
        Ok(Some(Self {
            file: certificate_file,
            certificate,
            chain,
            key,
        }))
    }

    /// Makes a connection show this certificate, if the server asks for one of its kind.
    pub fn assume(&self, ssl: &mut SslRef) -> Result<(), Error> {
        self.try_assume(ssl)
            .map_err(|error| cannot(&self.file, CERTIFICATE, &reasons(&error)))
    }

    fn try_assume(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        ssl.set_certificate(&self.certificate)?;
        for certificate in &self.chain {
            ssl.add_chain_cert(certificate.clone())?;
        }
        ssl.set_private_key(&self.key)
    }
}

fn half(there: &Path, missing: &Path) -> Error {
    Error::Tls(format!(
        "{} is there, but {} is not (see tls-certificates)",
        shown(there),
        shown(missing)
    ))
}

/// The first private key of a file.
fn private_key(content: &Content, password: Option<&Password>) -> Result<PKey<Private>, String> {
    let blocks = pem::blocks(content).ok_or("its end is missing")?;
    let block = blocks
        .iter()
        .find(|block| block.is_private_key())
        .ok_or("there is no private key in it (PEM)")?;
    let encrypted = block.is_encrypted();
    let password = match (encrypted, password) {
        (true, None) => {
            return Err("is encrypted, so that tls-key-password must give its password".to_owned());
        }
        (_, password) => password.map_or(&[][..], Password::reveal),
    };
    let mut limit = None;
    // Without a callback OpenSSL would ask on the terminal, should it want a password all the same.
    let key = PKey::private_key_from_pem_callback(block.text, |room| {
        let Some(place) = room.get_mut(..password.len()) else {
            limit = Some(room.len());
            return Ok(0);
        };
        place.copy_from_slice(password);
        Ok(password.len())
    });
    match (key, limit, encrypted) {
        (_, Some(limit), _) => Err(format!(
            "tls-key-password gives a password that is longer than OpenSSL's limit of {limit} bytes"
        )),
        (Ok(key), None, _) => Ok(key),
        (Err(error), None, true) => Err(format!(
            "cannot be decrypted with the password that tls-key-password gives: {}",
            reasons(&error)
        )),
        (Err(error), None, false) => Err(reasons(&error)),
    }
}
