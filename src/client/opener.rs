// SPDX-License-Identifier: BSD-3-Clause
//! Making connections to an export, the first one and those that take its place.

use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, Patience};
use super::error::{Error, OpenError, Server};
use super::helpers::Helpers;
use super::lasting::Lasting;
use super::links::Links;
use super::volume::Volumes;
use super::{Options, open, server};
use crate::proto::consts::TransmissionFlags;
use crate::proto::export::Export;
use crate::proto::name::ExportName;
use crate::session::gate::Protection;
use crate::transport::Deadline;

/// How to open a connection to an export, the first time and again.
#[derive(Clone, Debug)]
pub(super) struct Opener {
    pub(super) server: Server,
    pub(super) options: Arc<Options>,
    pub(super) export: ExportName,
    /// The connection belongs to all clients: then it does not end with one that leaves.
    pub(super) shared: bool,
}

impl Opener {
    /// Connects and enters transmission. `again` after a loss, and how long each of that may take then:
    /// the server has told before how it wants to be asked.
    pub(super) fn open(
        &self,
        again: Option<Duration>,
    ) -> Result<(Connection, Export, Protection), Error> {
        let (server, options) = (&self.server, &*self.options);
        let (stream, offer) = open::enter(server, options, &self.export, again)?;
        options.maps.note_server();
        let protection = Protection {
            tls: stream.has_tls(),
        };
        let patience = Patience {
            wanted: options.wanted.filter(|_| !self.shared),
            close: options.close_timeout,
            lasting: options.reconnect.is_some(),
        };
        match Connection::new(server.clone(), stream, &offer, patience) {
            Ok(connection) => Ok((connection, offer, protection)),
            Err(error) => Err(Error::Open {
                server: server.clone(),
                cause: OpenError::System(error).into(),
            }),
        }
    }
}

/// Connects and enters transmission with an export. The connection belongs to all clients if it is
/// `shared`. `readonly` if nothing will be written.
pub fn connect(
    options: &Arc<Options>,
    volumes: &Volumes,
    helpers: &Arc<Helpers>,
    export: &ExportName,
    shared: bool,
    readonly: bool,
) -> Result<Arc<Links>, Error> {
    let opener = Opener {
        server: server(options),
        options: options.clone(),
        export: export.clone(),
        shared,
    };
    let (connection, offer, protection) = opener.open(None)?;
    let terms = options.reconnect;
    let volume = volumes.admit(export.as_bytes(), &offer, terms.as_ref());
    let Some(terms) = terms else {
        let links = Links::plain(opener, volume, connection, protection);
        return Ok(Arc::new(links));
    };
    if !readonly && terms.replay > 0 && !can_be_made_permanent(&offer) {
        connection.close(Deadline::after_maybe(options.close_timeout));
        // Whether clients of a shared connection will write cannot be known when it is made.
        let or = if shared { "" } else { ", or nbdkit -r" };
        return Err(Error::Unsupported {
            server: opener.server,
            what: format!(
                "the server has neither NBD_CMD_FLUSH nor NBD_CMD_FLAG_FUA, so nothing that is \
                 written can be known to be permanent, and all of it would have to be kept for a \
                 reconnection: use replay=0{or}"
            ),
            errno: libc::EIO,
        });
    }
    let lasting = Lasting::open(
        opener,
        volume.clone(),
        terms,
        helpers.clone(),
        connection,
        protection,
        offer.maximum_payload(),
    )?;
    Ok(Arc::new(Links::lasting(lasting, volume)))
}

fn can_be_made_permanent(export: &Export) -> bool {
    [
        TransmissionFlags::READ_ONLY,
        TransmissionFlags::SEND_FLUSH,
        TransmissionFlags::SEND_FUA,
    ]
    .iter()
    .any(|flag| export.can(*flag))
}
