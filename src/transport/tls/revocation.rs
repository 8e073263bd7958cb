// SPDX-License-Identifier: BSD-3-Clause
//! Which certificates are not to be believed any more.
//!
//! OpenSSL has checks of its own, but they want a list from each authority in a chain, and do not
//! look at an anchor that somebody else has signed. Here, as with GnuTLS, a list is about the
//! certificates whose issuer has its name, at every depth; that its time is over, or that its
//! authority's certificate does not speak of lists, takes nothing from what it says.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::stack::StackRef;
use openssl::x509::{CrlStatus, X509, X509Crl, X509CrlRef, X509NameRef, X509Ref};

use super::files::shown;
use super::pem::Block;
use super::reasons;
use crate::proto::codec::printable;

/// Longest name of an authority or a server that a message shows, bytes.
const SHOWN: usize = 200;

/// The lists of a file.
pub struct Lists {
    file: PathBuf,
    lists: Vec<X509Crl>,
    /// Authorities that may have signed a list without being part of a chain.
    anchors: Vec<X509>,
}

impl Lists {
    /// Reads the lists among the blocks of a file, at least one. Those whose time is over are good
    /// for a warning.
    pub fn new(file: &Path, blocks: &[Block<'_>], anchors: Vec<X509>) -> Result<Self, String> {
        let mut lists = Vec::new();
        for block in blocks.iter().filter(|block| block.is_revocation_list()) {
            if block.is_encrypted() {
                return Err("is encrypted".to_owned());
            }
            let list = X509Crl::from_pem(block.text).map_err(|error| reasons(&error))?;
            lists.push(list);
        }
        if lists.is_empty() {
            return Err("there is no list of revoked certificates in it".to_owned());
        }
        let lists = Self {
            file: file.to_owned(),
            lists,
            anchors,
        };
        lists.warn_of_age();
        Ok(lists)
    }

    fn warn_of_age(&self) {
        let Ok(now) = Asn1Time::days_from_now(0) else {
            return;
        };
        for list in &self.lists {
            match list.next_update() {
                Some(end) if end.compare(&now).is_ok_and(Ordering::is_lt) => log::warn!(
                    target: "old-revocation-list",
                    "{}: the list of {} should have been renewed by {end}; what was revoked since \
                     then is not known",
                    shown(&self.file),
                    full_name(list.issuer_name()),
                ),
                _ => (),
            }
        }
    }

    /// Judges a chain of which everything else has been checked: from the server's certificate to
    /// the anchor. Who vouches for the anchor is judged too, as far as the server has `shown` it:
    /// where the authority over an anchor is revoked, the anchor need not be honest either. Says
    /// what is wrong.
    pub fn judge(
        &self,
        chain: &StackRef<X509>,
        shown: Option<&StackRef<X509>>,
    ) -> Result<(), String> {
        let mut chain: Vec<&X509Ref> = chain.iter().collect();
        while let Some(above) = above(&chain, shown) {
            chain.push(above);
        }
        let verdict = chain
            .iter()
            .try_for_each(|certificate| self.judge_one(certificate, &chain));
        // A signature that does not fit is an error to OpenSSL, and would be taken for one of the
        // handshake's.
        drop(ErrorStack::get());
        verdict
    }

    fn judge_one(&self, certificate: &X509Ref, chain: &[&X509Ref]) -> Result<(), String> {
        let issuer = certificate.issuer_name();
        let about: Vec<&X509Crl> = self
            .lists
            .iter()
            .filter(|list| same(list.issuer_name(), issuer))
            .collect();
        // An authority that got a new key has lists of the old one, too, which still count.
        if about.iter().any(|list| names(list, certificate)) {
            return Err(format!(
                "the certificate of {} has been revoked, says the list of {} in {}",
                full_name(certificate.subject_name()),
                full_name(issuer),
                shown(&self.file),
            ));
        }
        let authorities: Vec<&X509Ref> = chain
            .iter()
            .copied()
            .chain(self.anchors.iter().map(|anchor| &**anchor))
            .filter(|authority| same(authority.subject_name(), issuer))
            .collect();
        // An authority that is known by its name only cannot be asked for its signature.
        if about.is_empty()
            || authorities.is_empty()
            || about.iter().any(|list| is_signed(list, &authorities))
        {
            return Ok(());
        }
        Err(format!(
            "the list of {} in {} is not signed by that authority",
            full_name(issuer),
            shown(&self.file),
        ))
    }
}

/// The one among `shown` that has signed the last certificate of a chain and is not in it.
fn above<'a>(chain: &[&X509Ref], shown: Option<&'a StackRef<X509>>) -> Option<&'a X509Ref> {
    let last = chain.last()?;
    let mut candidates = shown?.iter().filter(|one| {
        let is_known = chain.contains(one);
        !is_known && same(one.subject_name(), last.issuer_name())
    });
    candidates.find(|one| {
        one.public_key()
            .is_ok_and(|key| last.verify(&key).unwrap_or(false))
    })
}

/// Whether a list says that a certificate is revoked. That it is so no longer can be said only in a
/// list of changes, where nobody knows to what.
fn names(list: &X509CrlRef, certificate: &X509Ref) -> bool {
    !matches!(
        list.get_by_cert(&certificate.to_owned()),
        CrlStatus::NotRevoked
    )
}

/// Whether one of the authorities has signed a list.
fn is_signed(list: &X509CrlRef, authorities: &[&X509Ref]) -> bool {
    authorities.iter().any(|authority| {
        authority
            .public_key()
            .is_ok_and(|key| list.verify(&key).unwrap_or(false))
    })
}

/// Whether two names are the same. Those that cannot be compared are, so that nothing is overlooked.
fn same(one: &X509NameRef, other: &X509NameRef) -> bool {
    one.try_cmp(other).map_or(true, Ordering::is_eq)
}

/// A name as messages show it: its parts, the most special first.
pub fn full_name(name: &X509NameRef) -> String {
    let mut parts: Vec<String> = name
        .entries()
        .map(|entry| {
            let key = entry.object().nid().short_name().unwrap_or("?");
            format!("{key}={}", String::from_utf8_lossy(entry.data().as_slice()))
        })
        .collect();
    parts.reverse();
    printable(format!("\"{}\"", parts.join(", ")).as_bytes(), SHOWN)
}

#[cfg(test)]
mod tests {
    use openssl::asn1::{Asn1Integer, Asn1Object, Asn1OctetString};
    use openssl::bn::BigNum;
    use openssl::hash::MessageDigest;
    use openssl::pkey::{PKey, Private};
    use openssl::stack::Stack;
    use openssl::x509::{
        X509Builder, X509CrlBuilder, X509Extension, X509Name, X509NameBuilder, X509RevokedBuilder,
    };

    use super::*;

    fn number(n: u32) -> Asn1Integer {
        let n = BigNum::from_u32(n).expect("number");
        Asn1Integer::from_bn(&n).expect("number")
    }

    fn name(text: &str) -> X509Name {
        let mut name = X509NameBuilder::new().expect("name");
        name.append_entry_by_text("CN", text).expect("entry");
        name.build()
    }

    fn key() -> PKey<Private> {
        PKey::generate_ed25519().expect("key")
    }

    fn certificate(
        subject: &str,
        serial: u32,
        key: &PKey<Private>,
        issuer: &PKey<Private>,
    ) -> X509 {
        let mut builder = X509Builder::new().expect("certificate");
        builder.set_subject_name(&name(subject)).expect("subject");
        builder.set_issuer_name(&name("authority")).expect("issuer");
        builder.set_serial_number(&number(serial)).expect("serial");
        builder.set_pubkey(key).expect("key");
        builder
            .sign(issuer, MessageDigest::null())
            .expect("signature");
        builder.build()
    }

    fn list(serials: &[u32], issuer: &PKey<Private>) -> X509Crl {
        let now = Asn1Time::days_from_now(0).expect("time");
        let mut builder = X509CrlBuilder::new().expect("list");
        builder.set_issuer_name(&name("authority")).expect("issuer");
        builder.set_last_update(&now).expect("time");
        let end = Asn1Time::days_from_now(1).expect("time");
        builder.set_next_update(&end).expect("time");
        // The builder insists on a key's name and a number.
        for (oid, der) in [
            ("2.5.29.35", &[0x30, 3, 0x80, 1, 7][..]),
            ("2.5.29.20", &[2, 1, 1]),
        ] {
            let oid = Asn1Object::from_str(oid).expect("identifier");
            let value = Asn1OctetString::new_from_bytes(der).expect("value");
            let extension = X509Extension::new_from_der(&oid, false, &value).expect("extension");
            builder.append_extension(extension).expect("extension");
        }
        for serial in serials {
            let mut revoked = X509RevokedBuilder::new().expect("entry");
            revoked.set_serial_number(&number(*serial)).expect("serial");
            revoked.set_revocation_date(&now).expect("time");
            builder.add_revoked(revoked.build()).expect("entry");
        }
        builder
            .sign(issuer, MessageDigest::null())
            .expect("signature");
        builder.build().expect("list")
    }

    fn judge(lists: Vec<X509Crl>, chain: &[&X509]) -> Result<(), String> {
        let mut stack = Stack::new().expect("stack");
        for certificate in chain {
            stack.push((*certificate).clone()).expect("room");
        }
        let lists = Lists {
            file: PathBuf::from("/lists"),
            lists,
            anchors: Vec::new(),
        };
        let verdict = lists.judge(&stack, None);
        // What is left would be taken for an error of the handshake's.
        assert!(ErrorStack::get().errors().is_empty());
        verdict
    }

    #[test]
    fn every_certificate_of_a_chain_is_looked_up() {
        let (root, other) = (key(), key());
        let authority = certificate("authority", 1, &root, &root);
        let server = certificate("server", 2, &other, &root);
        let chain = [&server, &authority];
        assert_eq!(judge(vec![list(&[], &root)], &chain), Ok(()));
        assert_eq!(judge(vec![list(&[3], &root)], &chain), Ok(()));
        assert_eq!(
            judge(vec![list(&[2], &root)], &chain).expect_err("the server is revoked"),
            "the certificate of \"CN=server\" has been revoked, says the list of \
             \"CN=authority\" in /lists"
        );
        judge(vec![list(&[3], &root), list(&[1], &root)], &chain).expect_err("the authority is");
    }

    /// The list of "authority" about number 2, with the reason removeFromCRL, which no builder knows.
    const REMOVED: &str = "\
-----BEGIN X509 CRL-----\n\
MIGuMGICAQEwBQYDK2VwMBQxEjAQBgNVBAMMCWF1dGhvcml0eRcNMjYwMTAxMDAw\n\
MDAwWhcNNDkwMTAxMDAwMDAwWjAiMCACAQIXDTI2MDEwMTAwMDAwMFowDDAKBgNV\n\
HRUEAwoBCDAFBgMrZXADQQCxe3qjQZ/e1uDsmVSxYYOn30mcqTdNjws1/hsmqQAs\n\
f2lnlhGgu3L1eNO0Wo5daTCOZnDvW6dWEvfIbIG/HDME\n\
-----END X509 CRL-----\n";

    #[test]
    fn whoever_is_on_a_list_is_revoked_whatever_the_reason() {
        let root = key();
        let list = || X509Crl::from_pem(REMOVED.as_bytes()).expect("a list");
        let [second, third] = [2, 3].map(|serial| certificate("server", serial, &key(), &root));
        judge(vec![list()], &[&second]).expect_err("it is on the list");
        assert_eq!(judge(vec![list()], &[&third]), Ok(()));
    }

    #[test]
    fn one_list_of_an_authority_must_be_its_own() {
        let (root, other) = (key(), key());
        let authority = certificate("authority", 1, &root, &root);
        let server = certificate("server", 2, &other, &root);
        let chain = [&server, &authority];
        let forged = || list(&[], &other);
        assert_eq!(
            judge(vec![forged()], &chain).expect_err("forged"),
            "the list of \"CN=authority\" in /lists is not signed by that authority"
        );
        assert_eq!(judge(vec![forged(), list(&[], &root)], &chain), Ok(()));
        // Nobody here could have signed it.
        assert_eq!(judge(vec![forged()], &[&server]), Ok(()));
    }
}
