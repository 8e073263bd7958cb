// SPDX-License-Identifier: BSD-3-Clause
//! The server behind this plugin: how its connections are made, retried and shared.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::guard::Failure;
use crate::client::error::Error;
use crate::client::helpers::Helpers;
use crate::client::links::{Links, Shared};
use crate::client::manners::Manners;
use crate::client::maps::Maps;
use crate::client::resume::Terms;
use crate::client::upkeep::Upkeep;
use crate::client::volume::Volumes;
use crate::client::{self, Client, Options};
use crate::config::extents::Extents;
use crate::config::target::Place;
use crate::config::{Config, ExportName};
use crate::host::lists::Exports;
use crate::host::params;
use crate::proto::context::Wish;
use crate::proto::handshake::TlsPolicy;
use crate::proto::name;
use crate::transport::Target;
use crate::transport::command::Child;
use crate::transport::fd::Inherited;
use crate::transport::keepalive::Keepalive;
use crate::transport::ssh::Ssh;

/// A server that is ready to be connected to.
#[derive(Debug)]
pub struct Upstream {
    server: Arc<Server>,
    upkeep: Upkeep,
    /// The one way of all clients, in shared mode.
    shared: Option<Arc<Shared>>,
}

/// How to reach it.
#[derive(Debug)]
struct Server {
    options: Arc<Options>,
    export: ExportName,
    retry: u32,
    volumes: Volumes,
}

/// A client's hold on its way to the server.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// Others hold it too, and it is closed at the end.
    shared: bool,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// How to pass the time until the next try. False ends the tries.
type Pause = fn() -> bool;

impl Upstream {
    /// Prepares for connections. A shared connection is made at once: this runs before nbdkit
    /// goes into the background or starts its captive command, so failure still reaches the user.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        let target = match &config.place {
            Place::Unix(path) => Target::Unix(path.clone()),
            Place::Tcp { host, port } => Target::Tcp {
                host: host.clone(),
                port: port.clone(),
                keepalive: config.keepalive.map(Keepalive::new),
            },
            Place::Vsock { cid, port } => Target::Vsock {
                cid: *cid,
                port: *port,
            },
            Place::Ssh(route) => {
                let ssh = Ssh::new(route.clone())
                    .map_err(|error| Failure::misuse(&format!("uri: {error}")))?;
                Target::Ssh(ssh)
            }
            Place::SocketFd(number) => {
                let socket = Inherited::new(*number)
                    .map_err(|error| Failure::misuse(&format!("socket-fd={number}: {error}")))?;
                Target::Inherited(socket)
            }
            Place::Command(argv) => {
                let child = Child::start(argv, config.timeouts.command, config.reconnect.is_some())
                    .map_err(|error| Failure::misuse(&format!("command: {error}")))?;
                Target::Child(child)
            }
        };
        if config.keepalive.is_some() && !matches!(target, Target::Tcp { .. }) {
            log::debug!("{target}: keepalive has no effect, as this is not TCP");
        }
        if config.tls_policy != TlsPolicy::Off {
            // Files are read again for each connection; this is for the user who is still there.
            config
                .tls
                .check()
                .map_err(|error| Failure::misuse(&error.to_string()))?;
        }
        let server = Server {
            options: Arc::new(Options {
                target,
                tls_policy: config.tls_policy,
                tls: config.tls.clone(),
                connect_timeout: config.timeouts.connect,
                handshake_timeout: config.timeouts.handshake,
                request_timeout: config.timeouts.request,
                close_timeout: config.timeouts.close,
                reconnect: config.reconnect.map(|reconnect| Terms {
                    limit: reconnect.limit,
                    first: reconnect.first,
                    max: reconnect.max,
                    replay: reconnect.replay,
                }),
                wanted: Some(params::is_wanted),
                manners: Manners::default(),
                wish: match &config.extents {
                    Extents::From(wish) => wish.clone(),
                    Extents::List => Wish::default(),
                },
                maps: Arc::new(Maps::new(
                    config.extents_cache,
                    config.export == ExportName::Dynamic,
                )),
            }),
            export: config.export.clone(),
            retry: config.retry,
            volumes: Volumes::default(),
        };
        params::set_ending(false);
        let upkeep = Upkeep::new(params::is_wanted, config.timeouts.close);
        let shared = config.shared.then(|| {
            // nbdkit's own sleep cannot be used yet, and signals still end the process.
            let pause = || {
                std::thread::sleep(Duration::from_secs(1));
                true
            };
            let name = name::ExportName::default();
            let links = server.connect(&name, pause, upkeep.helpers(), true, false)?;
            upkeep.register(links.clone());
            Ok::<_, Error>(Arc::new(Shared::with(links)))
        });
        Ok(Self {
            server: Arc::new(server),
            upkeep,
            shared: shared.transpose()?,
        })
    }

    /// nbdkit has forked for the last time: threads may run.
    pub fn after_fork(&self) -> Result<(), Failure> {
        params::note_fork();
        self.upkeep
            .start()
            .map_err(|error| Failure::misuse(&format!("cannot start a thread: {error}")))?;
        let target = &self.server.options.target;
        target
            .after_fork()
            .map_err(|error| Failure::misuse(&format!("{target}: {error}")))
    }

    /// What a failed request has to say, with the end of a server that we started, if that is why.
    pub fn explain(&self, error: Error) -> Failure {
        match &error {
            Error::Lost(_) | Error::Outage(_) => {
                Failure::with_postscript(error, || self.server.options.target.obituary())
            }
            _ => error.into(),
        }
    }

    /// A connection for a client that asks for the export `wanted`.
    pub fn open(
        &self,
        readonly: bool,
        wanted: impl FnOnce() -> Result<name::ExportName, Failure>,
    ) -> Result<Session, Failure> {
        let server = &self.server;
        let links = match &self.shared {
            None => {
                let wanted = match server.export {
                    ExportName::Fixed(_) => name::ExportName::default(),
                    ExportName::Dynamic => wanted()?,
                };
                let helpers = self.upkeep.helpers();
                let pause = params::sleep_a_second;
                let links = server.connect(&wanted, pause, helpers, false, readonly)?;
                self.upkeep.register(links.clone());
                links
            }
            Some(shared) => self.join(shared)?,
        };
        Ok(Session {
            client: Client::new(links, &server.options, readonly),
            shared: self.shared.is_some(),
        })
    }

    /// The shared links. If they are over, whoever uses them sees requests fail; who comes now gets
    /// new ones.
    fn join(&self, shared: &Arc<Shared>) -> Result<Arc<Links>, Error> {
        let name = client::server(&self.server.options);
        let attempt = || -> client::links::Attempt {
            let server = self.server.clone();
            let helpers = self.upkeep.helpers().clone();
            Box::new(move || {
                let name = name::ExportName::default();
                server.connect(&name, params::sleep_a_second, &helpers, true, false)
            })
        };
        let links = shared.join(&self.upkeep, &name, params::is_wanted, attempt)?;
        self.upkeep.register(links.clone());
        Ok(links)
    }

    /// Disconnects a client, unless others use the connection too.
    pub fn close(&self, session: Session) {
        if !session.shared {
            self.upkeep.forget(session.links());
            session.client.close();
        }
    }

    /// Fills the list of exports for a client.
    pub fn list(&self, exports: &mut Exports) -> Result<(), Failure> {
        if matches!(self.server.export, ExportName::Fixed(_)) {
            return exports
                .add_default()
                .then_some(())
                .ok_or_else(Failure::by_host);
        }
        for export in client::list(&self.server.options)? {
            if !exports.add(export.name.as_bytes(), &export.description) {
                log::debug!("nbdkit does not list export \"{}\"", export.name);
            }
        }
        Ok(())
    }

    /// The name behind the empty name. Not knowing is no failure: the server may still open it.
    pub fn default_export(&self) -> name::ExportName {
        match &self.server.export {
            ExportName::Fixed(name) => name.clone(),
            ExportName::Dynamic => client::default_export(&self.server.options)
                .unwrap_or_else(|error| {
                    log::debug!("{error}; the default export keeps the empty name");
                    None
                })
                .unwrap_or_default(),
        }
    }

    /// The metadata contexts that the server has for the export. Nobody is served: a server that was started
    /// for this ends.
    pub fn contexts(config: &Config) -> Result<Vec<Vec<u8>>, Failure> {
        let alone = Self::new(&Config {
            shared: false,
            ..config.clone()
        })?;
        let export = match &alone.server.export {
            ExportName::Fixed(name) => name.clone(),
            ExportName::Dynamic => name::ExportName::default(),
        };
        let names = client::contexts(&alone.server.options, &export);
        alone.end();
        Ok(names?)
    }

    /// Disconnects everybody, also clients that nbdkit did not close, and ends a server that we
    /// started. Does nothing the second time.
    pub fn end(&self) {
        // Before the thread is waited for that asks.
        params::set_ending(true);
        self.upkeep.end();
        self.server.options.target.end();
    }
}

impl Server {
    /// Connects, and tries again as often as the user said, if time can help.
    fn connect(
        &self,
        wanted: &name::ExportName,
        pause: Pause,
        helpers: &Arc<Helpers>,
        shared: bool,
        readonly: bool,
    ) -> Result<Arc<Links>, Error> {
        let export = match &self.export {
            ExportName::Fixed(name) => name,
            ExportName::Dynamic => wanted,
        };
        let mut tries_left = self.retry;
        loop {
            let (options, volumes) = (&self.options, &self.volumes);
            match client::connect(options, volumes, helpers, export, shared, readonly) {
                Err(error) if tries_left > 0 && error.is_transient() => {
                    log::debug!("connect failed; will try again: {error}");
                    tries_left -= 1;
                    if !pause() {
                        return Err(Error::unwanted(client::server(&self.options)));
                    }
                }
                result => return result,
            }
        }
    }
}
