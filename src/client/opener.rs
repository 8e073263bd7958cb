// SPDX-License-Identifier: BSD-3-Clause
//! Making connections to an export, the first one and those that take its place.

use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, Patience};
use super::error::{Error, OpenError, Server};
use super::helpers::Helpers;
use super::lasting::Lasting;
use super::links::Links;
use super::pool::Pool;
use super::volume::Volumes;
use super::{Options, open, server};
use crate::proto::consts::TransmissionFlags;
use crate::proto::export::Export;
use crate::proto::name::ExportName;
use crate::session::gate::{self, Protection};
use crate::transport::Deadline;

/// A connection that was opened, and what its server offers.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) offer: Export,
    pub(super) protection: Protection,
}

impl Opened {
    /// What is worse than it was for the first of several connections.
    pub(super) fn difference(&self, was: (&Export, Protection)) -> Option<String> {
        let smaller = || {
            let (had, has) = (was.0.maximum_payload(), self.offer.maximum_payload());
            (has < had).then(|| format!("the server took {had} bytes at once, and takes {has}"))
        };
        gate::difference(was, (&self.offer, self.protection)).or_else(smaller)
    }
}

/// How to open a connection to an export, the first time and again.
#[derive(Clone, Debug)]
pub(super) struct Opener {
    pub(super) server: Server,
    pub(super) options: Arc<Options>,
    pub(super) export: ExportName,
    /// The connection belongs to all clients: then it does not end with one that leaves.
    pub(super) shared: bool,
    /// Nothing will be written.
    pub(super) readonly: bool,
}

impl Opener {
    /// Connects and enters transmission. `again` after a loss, or beside another, and how long each of
    /// that may take then: the server has told before how it wants to be asked.
    pub(super) fn open(&self, again: Option<Duration>) -> Result<Opened, Error> {
        let (server, options) = (&self.server, &*self.options);
        let (stream, offer) = open::enter(server, options, &self.export, again)?;
        let protection = Protection {
            tls: stream.has_tls(),
        };
        let patience = Patience {
            wanted: options.wanted.filter(|_| !self.shared),
            close: options.close_timeout,
            lasting: options.reconnect.is_some() || self.may_have_several(&offer),
        };
        match Connection::new(server.clone(), stream, &offer, patience) {
            Ok(connection) => Ok(Opened {
                connection,
                offer,
                protection,
            }),
            Err(error) => Err(Error::Open {
                server: server.clone(),
                cause: OpenError::System(error).into(),
            }),
        }
    }

    /// Whether anything may be written.
    pub(super) fn may_write(&self, export: &Export) -> bool {
        !self.readonly && !export.can(TransmissionFlags::READ_ONLY)
    }

    /// Whether there may be several connections at once, as was asked for.
    pub(super) fn may_have_several(&self, export: &Export) -> bool {
        let coherent = export.can(TransmissionFlags::CAN_MULTI_CONN);
        self.options.connections > 1 && (coherent || !self.may_write(export))
    }

    /// How many connections there may be at once, as far as is known.
    pub(super) fn most(&self) -> usize {
        self.options.connections.min(self.options.manners.admits())
    }

    /// Beside `count` connections there was not to be another. If any of them still `lives`, the server
    /// does not admit more.
    pub(super) fn declined(&self, count: usize, lives: bool, error: &Error) {
        if error.is_unwanted() || !lives {
            log::debug!("{error}");
            return;
        }
        self.options.manners.found_admits(count);
        let them = if count == 1 { "one" } else { "them" };
        log::info!("{error}; {count} open, and no more than {them} from now on");
    }

    /// A further connection is of no use, since it offers less than the first.
    pub(super) fn leave_out(&self, difference: &str) {
        log::warn!(
            target: "left-out",
            "{}: a further connection is left out: {difference}",
            self.server
        );
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
        readonly,
    };
    let opened = opener.open(None)?;
    let terms = options.reconnect;
    let volume = volumes.admit(export.as_bytes(), &opened.offer, terms.as_ref());
    let several = opener.may_have_several(&opened.offer);
    if options.connections > 1 && !several {
        // Whether clients of a shared connection will write cannot be known when it is made.
        let or = if shared { "" } else { " and nbdkit has no -r" };
        log::warn!(
            target: "one-connection",
            "{}: connections={}: there is one only, as the server has no NBD_FLAG_CAN_MULTI_CONN, the \
             export can be written{or}",
            opener.server,
            options.connections
        );
    }
    let Some(terms) = terms else {
        let links = match several {
            true => Links::pool(
                Pool::new(opener, volume.clone(), helpers.clone(), opened),
                volume,
            ),
            false => Links::plain(opener, volume, opened.connection, opened.protection),
        };
        return Ok(Arc::new(links));
    };
    let Opened {
        connection,
        offer,
        protection,
    } = opened;
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
