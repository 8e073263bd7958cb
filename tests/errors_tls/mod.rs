// SPDX-License-Identifier: BSD-3-Clause
//! The messages under ERRORS that have to do with TLS.

use std::io;
use std::path::Path;

use crate::common::clients::text;
use crate::common::nbdkit::forward;
use crate::common::pki::{self, Authority, LOCALHOST};
use crate::common::scripted::peer::{Offer, Peer};
use crate::common::scripted::wire::{self, rep};
use crate::common::tls;
use crate::common::upstream::{memory, noise_file};
use crate::{Case, opening, scripted_opening};

/// What TLS adds to what goes wrong in opening.
pub const CASES: &[Case] = &[
    Case {
        item: "handshake: TLS is required, but ...",
        text: "DIR/...: handshake: TLS is required, but the server refused NBD_OPT_STARTTLS: forbidden by the \
               server's policy",
        happen: |dir| {
            let server = memory(dir, "1M");
            opening(&forward(dir, server.socket(), &["tls=require"]))
        },
    },
    Case {
        item: "handshake: TLS: the server's certificate is not accepted: ...",
        text: "DIR/...: handshake: TLS: the server's certificate is not accepted: ...",
        happen: |dir| {
            let parties = Authority::new(dir, "authority");
            let server = tls::nbdkit(dir, &parties.server("server", LOCALHOST), &["memory", "1M"]);
            let stranger = Authority::new(dir, "stranger").trusting("client");
            with_certificates(dir, server.socket(), &stranger)
        },
    },
    Case {
        item: "handshake: TLS: the server's public key is not the pinned one, but sha256:...",
        text: "DIR/...: handshake: TLS: the server's public key is not the pinned one, but sha256:... (tls-pin=)",
        happen: |dir| {
            let files = pki::self_signed(dir, "server", &[]);
            let server = tls::nbdkit(dir, &files, &["memory", "1M"]);
            let pin = format!("tls-pin=sha256:{}", "0".repeat(64));
            opening(&forward(dir, server.socket(), &["tls=require", &pin]))
        },
    },
    Case {
        item: "handshake: TLS: the server refused our certificate: ...",
        text: "DIR/scripted.sock: handshake: TLS: the server refused our certificate: ...",
        happen: |dir| alerted(dir, &["tls=require"], BAD_CERTIFICATE),
    },
    Case {
        item: "handshake: ... (right after TLS was established: the server may have refused our certificate, \
               tls-certificates=)",
        text: "DIR/...: handshake: ... (right after TLS was established: the server may have refused our \
               certificate, tls-certificates=)",
        happen: |dir| {
            let authority = Authority::new(dir, "authority");
            let files = authority.server("server", LOCALHOST);
            let image = noise_file(dir, "image", 1 << 20, 303);
            let server = tls::qemu(dir, &files, "verify-peer=yes", &image, "raw");
            with_certificates(dir, server.socket(), &authority.trusting("client"))
        },
    },
    Case {
        item: "handshake: TLS: the server closed the connection, as it may if it does not accept the key of \
               \"X\" ...",
        text: "DIR/...: handshake: TLS: the server closed the connection, as it may if it does not accept the \
               key of \"bob\" (tls-psk=, tls-username=), or has certificates instead (tls-certificates=)",
        happen: |dir| {
            let keys = pki::keys(dir, "server.psk", &["alice"]);
            let server = tls::nbdkit_psk(dir, &keys, &["memory", "1M"]);
            opening(&forward(
                dir,
                server.socket(),
                &as_bob(dir).each_ref().map(String::as_str),
            ))
        },
    },
    Case {
        item: "handshake: TLS: the server does not accept the key of \"X\": ...",
        text: "DIR/scripted.sock: handshake: TLS: the server does not accept the key of \"bob\": ... (tls-psk=, \
               tls-username=)",
        happen: |dir| {
            alerted(
                dir,
                &as_bob(dir).each_ref().map(String::as_str),
                UNKNOWN_PSK_IDENTITY,
            )
        },
    },
    Case {
        item: "handshake: TLS: the server did not use the pre-shared key of \"X\", but showed a certificate ...",
        text: "DIR/...: handshake: TLS: the server did not use the pre-shared key of \"bob\", but showed a \
               certificate; where that is what it has, tls-certificates= takes the place of tls-psk=",
        happen: |dir| {
            let files = pki::self_signed(dir, "server", &[]);
            let server = tls::nbdkit(dir, &files, &["memory", "1M"]);
            opening(&forward(
                dir,
                server.socket(),
                &as_bob(dir).each_ref().map(String::as_str),
            ))
        },
    },
    Case {
        item: "handshake: TLS: the server closed the connection, as it may if it wants a pre-shared key ...",
        text: "DIR/...: handshake: TLS: the server closed the connection, as it may if it wants a pre-shared key \
               (tls-psk=), a certificate of ours (tls-certificates=), or other ciphers (tls-priority=)",
        happen: |dir| {
            let keys = pki::keys(dir, "server.psk", &["alice"]);
            let server = tls::nbdkit_psk(dir, &keys, &["memory", "1M"]);
            opening(&forward(dir, server.socket(), &["tls=require"]))
        },
    },
    Case {
        item: "handshake: TLS: the server found nothing in common with us: ...",
        text: "DIR/scripted.sock: handshake: TLS: the server found nothing in common with us: ...",
        happen: |dir| alerted(dir, &["tls=require"], HANDSHAKE_FAILURE),
    },
    Case {
        item: "handshake: ... (waiting for its side of the TLS handshake)",
        text: "DIR/scripted.sock: handshake: ... (waiting for its side of the TLS handshake)",
        happen: |dir| {
            scripted_opening(dir, &["tls=require"], |peer| {
                consent(peer)?;
                // What is left unread is thrown back as a reset.
                peer.receive(1).map(drop)
            })
        },
    },
    Case {
        item: "handshake: TLS: the server sends messages of TLS without end, and no data",
        text: "DIR/scripted.sock: handshake: TLS: the server sends messages of TLS without end, and no data",
        happen: |dir| {
            scripted_opening(dir, &["tls=require"], |peer| {
                consent(peer)?;
                peer.receive(1)?;
                // HelloRequest, in records of its own.
                let requests = [22, 3, 3, 0, 4, 0, 0, 0, 0].repeat(1000);
                loop {
                    peer.send(&requests)?;
                }
            })
        },
    },
    Case {
        item: "handshake: TLS: bytes in clear followed the server's consent to TLS ...",
        text: "DIR/scripted.sock: handshake: TLS: bytes in clear followed the server's consent to TLS, which may \
               be an attack",
        happen: |dir| {
            scripted_opening(dir, &["tls=require"], |peer| {
                peer.greet(Offer::default().handshake_flags)?;
                let asked = peer.option()?;
                let consent = wire::option_reply(asked.option, rep::ACK, &[]);
                peer.send(&wire::join(&[&consent, b"something else"]))?;
                peer.expect_closed()
            })
        },
    },
];

/// Takes the wish for TLS and agrees to it.
fn consent(peer: &mut Peer) -> io::Result<()> {
    peer.greet(Offer::default().handshake_flags)?;
    let asked = peer.option()?;
    peer.reply(asked.option, rep::ACK, &[])
}

/// The parameters of a user of a pre-shared key.
fn as_bob(dir: &Path) -> [String; 3] {
    let keys = pki::keys(dir, "bob.psk", &["bob"]);
    [
        "tls=require".to_owned(),
        "tls-username=bob".to_owned(),
        format!("tls-psk={}", text(&keys)),
    ]
}

/// Alerts of TLS.
const HANDSHAKE_FAILURE: u8 = 40;
const BAD_CERTIFICATE: u8 = 42;
const UNKNOWN_PSK_IDENTITY: u8 = 115;

/// [`opening`] of a server that ends the handshake of TLS by this alert.
fn alerted(dir: &Path, parameters: &[&str], alert: u8) -> String {
    scripted_opening(dir, parameters, move |peer| {
        consent(peer)?;
        peer.receive(1)?;
        // A record with it: fatal.
        peer.send(&[21, 3, 3, 0, 2, 2, alert])?;
        peer.expect_closed()
    })
}

/// [`opening`] of a server with a certificate for localhost, with these certificates of our own.
fn with_certificates(dir: &Path, server: &Path, ours: &Path) -> String {
    let ours = format!("tls-certificates={}", text(ours));
    let parameters = ["tls=require", "tls-hostname=localhost", &ours];
    opening(&forward(dir, server, &parameters))
}
