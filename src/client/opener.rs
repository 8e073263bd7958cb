// SPDX-License-Identifier: BSD-3-Clause
//! Making connections to an export, the first one and those that take its place.

use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, Patience};
use super::error::{Error, OpenError, Server};
use super::helpers::Helpers;
use super::lasting::Lasting;
use super::links::Links;
use super::negotiation::AtHand;
use super::volume::Volumes;
use super::{Options, open, server};
use crate::proto::consts::TransmissionFlags;
use crate::proto::export::Export;
use crate::proto::name::ExportName;
use crate::session::gate::Protection;
use crate::transport::{Deadline, Stream};

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
        let (stream, offer) = open::enter(&self.server, &self.options, &self.export, again)?;
        let entered = self.enter(stream, offer)?;
        Ok((entered.connection, entered.offer, entered.protection))
    }

    /// The same over the negotiation at hand, if there is one. One that is left at hand may be asked
    /// something else.
    fn open_over(&self, at_hand: &mut AtHand<'_>) -> Result<Entered, Error> {
        let (stream, offer) = open::enter_over(&self.server, &self.options, &self.export, at_hand)?;
        self.enter(stream, offer)
    }

    fn enter(&self, stream: Stream, offer: Export) -> Result<Entered, Error> {
        let (server, options) = (&self.server, &*self.options);
        let protection = Protection {
            tls: stream.has_tls(),
        };
        let patience = Patience {
            wanted: options.wanted.filter(|_| !self.shared),
            close: options.close_timeout,
            lasting: options.reconnect.is_some(),
        };
        match Connection::new(server.clone(), stream, &offer, patience) {
            Ok(connection) => Ok(Entered {
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
}

/// A connection that has entered transmission, and that nobody's way goes by yet.
#[derive(Debug)]
pub struct Entered {
    connection: Connection,
    offer: Export,
    protection: Protection,
}

impl Entered {
    /// The name that the server gives the export.
    pub fn canonical_name(&self) -> Option<&ExportName> {
        self.offer.canonical_name.as_ref()
    }

    /// Whether the server still has it open.
    pub fn is_alive(&self) -> bool {
        !self.connection.is_over()
    }

    /// Leaves it.
    pub fn leave(self, deadline: Deadline) {
        self.connection.close(deadline);
    }
}

/// What is at hand to begin with.
#[derive(Default)]
pub struct Start<'a> {
    /// How the first try has ended already.
    pub entered: Option<Result<Entered, Error>>,
    /// What the next one goes on with.
    pub at_hand: AtHand<'a>,
}

/// Enters transmission with the server's default export, over a new connection. One that is left at
/// hand may be asked something else: the server has refused.
pub fn enter_default(options: &Arc<Options>, at_hand: &mut AtHand<'_>) -> Result<Entered, Error> {
    let opener = Opener {
        server: server(options),
        options: options.clone(),
        export: ExportName::default(),
        shared: false,
    };
    opener.open_over(at_hand)
}

/// Connects and enters transmission with an export, or goes on with what is at hand. The connection
/// belongs to all clients if it is `shared`. `readonly` if nothing will be written.
pub fn connect(
    options: &Arc<Options>,
    volumes: &Volumes,
    helpers: &Arc<Helpers>,
    export: &ExportName,
    shared: bool,
    readonly: bool,
    start: &mut Start<'_>,
) -> Result<Arc<Links>, Error> {
    let opener = Opener {
        server: server(options),
        options: options.clone(),
        export: export.clone(),
        shared,
    };
    let entered = match start.entered.take() {
        Some(entered) => entered?,
        None => opener.open_over(&mut start.at_hand)?,
    };
    let Entered {
        connection,
        offer,
        protection,
    } = entered;
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
