// SPDX-License-Identifier: BSD-3-Clause
//! Making connections to an export, the first one and those that take its place.

use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, Patience};
use super::error::{Error, OpenError, Server};
use super::fleet::{Another, Plan};
use super::helpers::Helpers;
use super::lasting::Lasting;
use super::links::Links;
use super::negotiation::AtHand;
use super::open::Again;
use super::pool::Pool;
use super::volume::Volumes;
use super::{Options, open, server};
use crate::proto::codec::printable;
use crate::proto::consts::{MAX_STRING, TransmissionFlags};
use crate::proto::export::Export;
use crate::proto::ladder::Ladder;
use crate::proto::name::ExportName;
use crate::session::gate::{self, Protection};
use crate::stats::Peer;
use crate::transport::{Deadline, Stream};

/// A connection that has entered transmission, what its server offers, and nobody's way goes by it yet.
#[derive(Debug)]
pub struct Entered {
    pub(super) connection: Connection,
    pub(super) offer: Export,
    pub(super) protection: Protection,
    /// Which of several servers it leads to.
    pub(super) at: usize,
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
    /// What the first connection asked, where there is one server: each of several has its own manners.
    pub(super) asked: Option<Ladder>,
}

impl Opener {
    /// Connects to the first of the servers that can be had, and enters transmission. `again` after a
    /// loss, or beside another, and how long each of that may take then: the server has told before how
    /// it wants to be asked. Of several servers those are left out that offer less than there `was`, or
    /// else than the first one did that answered; that all of them do is [`Error::Unsupported`].
    pub(super) fn open(
        &self,
        again: Option<Again>,
        was: Option<(&Export, Protection)>,
    ) -> Result<Entered, Error> {
        self.open_one(was, |at| self.open_at(at, again))
    }

    /// To come back, or to add a connection: each step may take so long.
    pub(super) fn again(&self, most: Duration) -> Again {
        let asked = self.asked;
        Again { most, asked }
    }

    /// The same in the place of another, while somebody waits for it who does so until then.
    pub(super) fn open_instead(&self, until: Deadline) -> Result<Entered, Error> {
        self.open_one(None, |at| self.open_until(at, until))
    }

    fn open_one(
        &self,
        was: Option<(&Export, Protection)>,
        open: impl Fn(usize) -> Result<Entered, Error>,
    ) -> Result<Entered, Error> {
        let Some(fleet) = &self.options.fleet else {
            return open(0);
        };
        let mut failure: Option<Error> = None;
        for at in 0..self.servers() {
            let error = match open(at) {
                Ok(opened) => {
                    let (offer, protection) = (&opened.offer, opened.protection);
                    let difference = match was {
                        Some(was) => gate::difference(was, (offer, protection)),
                        None => fleet.difference(at, offer, protection),
                    };
                    match difference {
                        None => return Ok(opened),
                        Some(difference) => self.leave_out(opened, difference),
                    }
                }
                Err(error) if error.is_unwanted() => return Err(error),
                Err(error) => error,
            };
            log::debug!("{error}");
            // Time may help if it may help with any of them.
            if failure
                .as_ref()
                .is_none_or(|known| hope(known) <= hope(&error))
            {
                failure = Some(error);
            }
        }
        Err(failure.unwrap_or_else(|| Error::unwanted(self.server.clone())))
    }

    /// Connects to one of the servers.
    pub(super) fn open_at(&self, at: usize, again: Option<Again>) -> Result<Entered, Error> {
        self.open_by(at, |server, options, export| {
            open::enter(server, options, export, again)
        })
    }

    /// The same for the first time, while somebody waits for it who does so until then.
    pub(super) fn open_until(&self, at: usize, until: Deadline) -> Result<Entered, Error> {
        self.open_by(at, |server, options, export| {
            open::enter_until(server, options, export, until)
        })
    }

    fn open_by(
        &self,
        at: usize,
        enter: impl FnOnce(&Server, &Options, &ExportName) -> Result<(Stream, Export), Error>,
    ) -> Result<Entered, Error> {
        let another = self.another(at);
        let name = another.map(|another| another.options.target.to_string().into());
        let server: Server = match (&self.options.fleet, name) {
            (_, Some(name)) => name,
            (Some(_), None) => self.options.target.to_string().into(),
            (None, None) => self.server.clone(),
        };
        let (options, export) = match another {
            Some(another) => (&*another.options, &another.export),
            None => (&*self.options, &self.export),
        };
        let (stream, mut offer) = enter(&server, options, export)?;
        if let Some(fleet) = &self.options.fleet {
            offer.flags.set(
                TransmissionFlags::READ_ONLY,
                fleet.is_read_only() || offer.can(TransmissionFlags::READ_ONLY),
            );
            // The same disk may have another name there.
            offer.canonical_name.take_if(|name| name == export);
        } else {
            self.name(&mut offer);
        }
        self.entered(server, options, stream, offer, at)
    }

    /// Like [`Opener::open`] for the first connection, over the negotiation at hand, if there is one. One
    /// that is left at hand may be asked something else. Of several servers none has one at hand.
    fn open_over(&self, at_hand: &mut AtHand<'_>) -> Result<Entered, Error> {
        if self.options.fleet.is_some() {
            return self.open(None, None);
        }
        let (server, options) = (self.server.clone(), &self.options);
        let (stream, mut offer) = open::enter_over(&server, options, &self.export, at_hand)?;
        self.name(&mut offer);
        self.entered(server, options, stream, offer, 0)
    }

    /// A server need not repeat the name that it was asked for, if that is the canonical one ("Option
    /// types"). It may have been told when it was asked for its default.
    fn name(&self, offer: &mut Export) {
        if !self.export.is_empty() {
            let asked = || self.export.clone();
            offer.canonical_name.get_or_insert_with(asked);
        }
    }

    fn entered(
        &self,
        server: Server,
        options: &Options,
        stream: Stream,
        offer: Export,
        at: usize,
    ) -> Result<Entered, Error> {
        // Of several servers each has the maps of all.
        self.options.maps.note_server();
        let protection = Protection {
            tls: stream.has_tls(),
        };
        let patience = Patience {
            wanted: options.wanted.filter(|_| !self.shared),
            times: options.times.clone(),
            lasting: self.options.reconnect.is_some() || self.may_have_several(&offer),
        };
        let stats = self.options.stats.clone();
        let peer = stats.is_some().then(|| self.peer(&server, &stream, at));
        match Connection::new(
            server.clone(),
            stream,
            &offer,
            patience,
            options.manners.clone(),
            stats.clone(),
        ) {
            Ok(connection) => {
                if let (Some(stats), Some(peer)) = (stats, peer) {
                    stats.opened(peer);
                }
                Ok(Entered {
                    connection,
                    offer,
                    protection,
                    at,
                })
            }
            Err(error) => Err(Error::Open {
                server,
                cause: OpenError::System(error).into(),
            }),
        }
    }

    /// Who is at the other end, for those who want to know.
    fn peer(&self, server: &Server, stream: &Stream, at: usize) -> Peer {
        let export = self.another(at).map_or(&self.export, |other| &other.export);
        Peer {
            server: server.to_string(),
            export: printable(export.as_bytes(), MAX_STRING),
            tls: stream.tls(),
        }
    }

    fn another(&self, at: usize) -> Option<&Another> {
        let fleet = self.options.fleet.as_ref()?;
        fleet.others().get(at.checked_sub(1)?)
    }

    /// How many servers there are.
    pub(super) fn servers(&self) -> usize {
        let fleet = self.options.fleet.as_ref();
        1 + fleet.map_or(0, |fleet| fleet.others().len())
    }

    /// Whether connections are made to all of them.
    pub(super) fn is_spread(&self) -> bool {
        let fleet = self.options.fleet.as_ref();
        fleet.is_some_and(|fleet| fleet.plan() == Plan::Spread)
    }

    /// Whether anything may be written.
    pub(super) fn may_write(&self, export: &Export) -> bool {
        !self.readonly && !export.can(TransmissionFlags::READ_ONLY)
    }

    /// Whether there may be several connections at once, as was asked for. The promise is about what is
    /// written: where nothing can be, nobody can see the difference.
    pub(super) fn may_have_several(&self, export: &Export) -> bool {
        let coherent = export.can(TransmissionFlags::CAN_MULTI_CONN);
        self.places() > 1 && (coherent || !self.may_write(export))
    }

    /// How many connections there may be at once.
    pub(super) fn places(&self) -> usize {
        let servers = if self.is_spread() { self.servers() } else { 1 };
        self.options.connections * servers
    }

    /// How many connections there may be to one of the servers, as far as is known.
    pub(super) fn most(&self, at: usize) -> usize {
        let manners = match self.another(at) {
            Some(another) => &another.options.manners,
            None => &self.options.manners,
        };
        self.options.connections.min(manners.admits())
    }

    /// Beside `count` connections to a server there was not to be another. If any of them still `lives`,
    /// the server does not admit more.
    pub(super) fn declined(&self, at: usize, count: usize, lives: bool, error: &Error) {
        if error.is_unwanted() || !lives || count == 0 {
            log::debug!("{error}");
            return;
        }
        let manners = match self.another(at) {
            Some(another) => &another.options.manners,
            None => &self.options.manners,
        };
        manners.found_admits(count);
        let them = if count == 1 { "one" } else { "them" };
        log::info!("{error}; {count} open, and no more than {them} from now on");
    }

    /// A connection is of no use, since it offers less than another: what is to be said of it.
    pub(super) fn leave_out(&self, opened: Entered, difference: String) -> Error {
        let server = opened.connection.server().clone();
        let what = match self.servers() {
            1 => "a further connection",
            _ => "this server",
        };
        log::warn!(
            target: &format!("left-out {server}"),
            "{server}: {what} is left out: {difference}"
        );
        let deadline = Deadline::after_maybe(self.options.times.close.get());
        opened.connection.close(deadline);
        Error::Unsupported {
            server,
            what: difference,
            errno: libc::EIO,
        }
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
/// hand may be asked something else: the server has refused. `readonly` if nothing will be written.
pub fn enter_default(
    options: &Arc<Options>,
    readonly: bool,
    at_hand: &mut AtHand<'_>,
) -> Result<Entered, Error> {
    let opener = Opener {
        server: server(options),
        options: options.clone(),
        export: ExportName::default(),
        shared: false,
        readonly,
        asked: None,
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
    let mut opener = Opener {
        server: server(options),
        options: options.clone(),
        export: export.clone(),
        shared,
        readonly,
        asked: None,
    };
    let opened = match start.entered.take() {
        Some(entered) => entered?,
        None => opener.open_over(&mut start.at_hand)?,
    };
    if options.fleet.is_none() {
        opener.asked = Some(opened.offer.asked);
    }
    let terms = options.reconnect.clone();
    let volume = volumes.admit(export.as_bytes(), &opened.offer, terms.as_deref());
    let several = opener.may_have_several(&opened.offer);
    if opener.places() > 1 && !several {
        // Whether clients of a shared connection will write cannot be known when it is made.
        let why = match shared {
            true => " and the export can be written",
            false => ", the export can be written and nbdkit has no -r",
        };
        log::warn!(
            target: "one-connection",
            "{}: connections={}: there is one only, as the server has no NBD_FLAG_CAN_MULTI_CONN{why}",
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
    let Entered {
        connection,
        offer,
        protection,
        at,
    } = opened;
    if !readonly && terms.replay > 0 && !can_be_made_permanent(&offer) {
        connection.close(Deadline::after_maybe(options.times.close.get()));
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
        (connection, at),
        protection,
        offer.maximum_payload(),
    )?;
    Ok(Arc::new(Links::lasting(lasting, volume)))
}

/// How much of the reason for a failure may change.
fn hope(error: &Error) -> u8 {
    match error {
        Error::Unsupported { .. } => 0,
        error if !error.is_transient() => 1,
        _ => 2,
    }
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
