// SPDX-License-Identifier: BSD-3-Clause
//! A client of this crate, without nbdkit around it.
//!
//! Not a part of `common/mod.rs`: tests are black-box. The two tests and the benchmark that link
//! the crate include this file by its path.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbdkit_nbd_plugin::client::error::Error;
use nbdkit_nbd_plugin::client::times::{Time, Times};
use nbdkit_nbd_plugin::client::zeroes::Detect;
use nbdkit_nbd_plugin::client::{Client, Options};
use nbdkit_nbd_plugin::proto::context::Wish;
use nbdkit_nbd_plugin::proto::handshake::TlsPolicy;
use nbdkit_nbd_plugin::proto::name::ExportName;
use nbdkit_nbd_plugin::transport::Target;
use nbdkit_nbd_plugin::transport::tls::Settings;

/// Opens the default export of the server at `socket`, with the plugin's defaults.
pub fn open(socket: &Path) -> Result<Client, Error> {
    let options = Options {
        target: Target::Unix(socket.to_owned()),
        tls_policy: TlsPolicy::Off,
        tls: Settings::default(),
        times: Arc::new(Times {
            close: Time::new(Some(Duration::from_secs(5))),
            ..Times::default()
        }),
        reconnect: None,
        turnstile: None,
        wanted: None,
        connections: 1,
        fleet: None,
        manners: Arc::default(),
        detect_zeroes: Detect::Off,
        fences: None,
        wish: Wish::default(),
        maps: Arc::default(),
        stats: None,
    };
    Client::open(&Arc::new(options), &ExportName::default())
}
