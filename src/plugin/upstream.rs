// SPDX-License-Identifier: BSD-3-Clause
//! The server behind this plugin: how its connections are made, retried and shared.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::guard::Failure;
use super::places;
use super::reception::Reception;
use super::statistics::Statistics;
use crate::client::error::Error;
use crate::client::helm::Helm;
use crate::client::helpers::Helpers;
use crate::client::links::{Links, Shared};
use crate::client::lot::{Kept, Lot};
use crate::client::probe::Found;
use crate::client::times::Time;
use crate::client::upkeep::Upkeep;
use crate::client::volume::Volumes;
use crate::client::{self, Client, Options, Start};
use crate::config::{Config, ExportName, Linger};
use crate::control::{self, Control, Office};
use crate::host::lists::Exports;
use crate::host::{params, report};
use crate::proto::name;
use crate::stats::{Event, Stats};
use crate::transport::Target;

/// A server that is ready to be connected to.
#[derive(Debug)]
pub struct Upstream {
    server: Arc<Server>,
    upkeep: Arc<Upkeep>,
    way: Way,
    /// What writes statistics, if anything does.
    statistics: Option<Statistics>,
    control: Option<Control>,
}

/// Whose way to it is whose.
#[derive(Debug)]
enum Way {
    /// All clients have one.
    Shared(Arc<Shared>),
    /// Each client has its own.
    Each(Arc<Reception>),
}

/// How to reach it.
#[derive(Debug)]
pub struct Server {
    pub(super) options: Arc<Options>,
    export: ExportName,
    retry: u32,
    volumes: Volumes,
}

/// A client's hold on its way to the server.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// What is given back in the end. `None` where others hold it too: it is closed when all is over.
    kept: Option<Kept>,
    /// A request has failed.
    failed: AtomicBool,
}

impl Session {
    /// A request has failed: whoever comes next is not to have the connection that it failed on. That
    /// there is no fast way to do something is no failure.
    pub fn note_failure(&self, error: &Error) {
        if error.errno() != libc::ENOTSUP {
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// How to pass the time until the next try. False ends the tries.
pub type Pause = fn() -> bool;

impl Upstream {
    /// Prepares for connections. A shared connection is made at once: this runs before nbdkit
    /// goes into the background or starts its captive command, so failure still reaches the user.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        // Before anything is connected to, or started.
        if let Some(path) = &config.control {
            control::check(path)?;
        }
        let options = Arc::new(places::options(config)?);
        let control = config.control.clone().zip(options.turnstile.clone());
        let times = options.times.clone();
        let server = Server {
            options,
            export: config.export.clone(),
            retry: config.retry,
            volumes: Volumes::default(),
        };
        let report = config.statistics.report.clone();
        let statistics = report.zip(server.options.stats.clone());
        let statistics = statistics.map(|(report, stats)| Statistics::new(report, stats));
        let statistics = statistics.transpose()?;
        params::set_ending(false);
        let linger = config.linger.map(|linger| {
            Arc::new(Time::new(match linger {
                Linger::For(time) => Some(time),
                Linger::Forever => None,
            }))
        });
        let upkeep = Arc::new(Upkeep::new(params::is_wanted, times));
        let server = Arc::new(server);
        let way = if config.shared {
            // nbdkit's own sleep cannot be used yet, and signals still end the process.
            let pause = || {
                std::thread::sleep(Duration::from_secs(1));
                true
            };
            let name = name::ExportName::default();
            let start = &mut Start::default();
            let links = server.connect(&name, pause, upkeep.helpers(), true, false, start);
            start.at_hand.leave();
            let links = links?;
            upkeep.register(links.clone());
            Way::Shared(Arc::new(Shared::with(links)))
        } else {
            let lot = linger.clone().map(Lot::new);
            Way::Each(Reception::new(server.clone(), upkeep.clone(), lot))
        };
        let control = control.map(|(path, turnstile)| {
            let options = &server.options;
            let office = Office {
                helm: Arc::new(Helm::new(
                    upkeep.clone(),
                    turnstile,
                    options.reconnect.is_some(),
                )),
                times: options.times.clone(),
                terms: options.reconnect.clone(),
                linger: linger.filter(|_| matches!(way, Way::Each(_))),
                stats: options.stats.clone(),
                tell_all: report::tell_all,
            };
            Control::new(path, office)
        });
        Ok(Self {
            server,
            upkeep,
            way,
            statistics,
            control,
        })
    }

    /// nbdkit has forked for the last time: threads may run.
    pub fn after_fork(&self) -> Result<(), Failure> {
        params::note_fork();
        let no_thread = |error| Failure::misuse(&format!("cannot start a thread: {error}"));
        self.upkeep.start().map_err(no_thread)?;
        if let Some(statistics) = &self.statistics {
            statistics.start().map_err(no_thread)?;
        }
        for target in self.server.options.targets() {
            target
                .after_fork()
                .map_err(|error| Failure::misuse(&format!("{target}: {error}")))?;
        }
        if let Some(control) = &self.control {
            control.start()?;
        }
        Ok(())
    }

    /// Whom to tell what is done, where somebody wants to know.
    pub fn stats(&self) -> Option<&Arc<Stats>> {
        self.server.options.stats.as_ref()
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

    /// A way for a client that asks for the export `wanted`.
    pub fn open(
        &self,
        readonly: bool,
        wanted: impl FnOnce() -> Result<name::ExportName, Failure>,
    ) -> Result<Session, Failure> {
        let (links, kept) = match &self.way {
            Way::Shared(shared) => (self.join(shared)?, None),
            Way::Each(reception) => {
                let name = match &self.server.export {
                    ExportName::Fixed(name) => name.clone(),
                    ExportName::Dynamic => wanted()?,
                };
                let kept = reception.open(name, readonly, params::sleep_a_second)?;
                (kept.links.clone(), Some(kept))
            }
        };
        Ok(Session {
            client: Client::new(links, &self.server.options, readonly),
            kept,
            failed: AtomicBool::new(false),
        })
    }

    /// The shared links, for one more client. If they are over, whoever uses them sees requests fail; who
    /// comes now gets new ones.
    fn join(&self, shared: &Arc<Shared>) -> Result<Arc<Links>, Error> {
        let name = client::server(&self.server.options);
        let attempt = || -> client::links::Attempt {
            let server = self.server.clone();
            let upkeep = self.upkeep.clone();
            Box::new(move |old| {
                let name = name::ExportName::default();
                let start = &mut Start::default();
                let pause = params::sleep_a_second;
                let helpers = upkeep.helpers();
                let links = server.connect(&name, pause, helpers, true, false, start);
                start.at_hand.leave();
                match (&links, &old) {
                    (Ok(links), _) => {
                        // Whoever began it may have left meanwhile, or nbdkit ends.
                        if !upkeep.register(links.clone()) {
                            upkeep.close(links);
                        }
                        server.options.note(Event::Replaced);
                    }
                    // It goes on waiting for what it knows.
                    (Err(error), Some(old)) if !old.is_over() => {
                        log::debug!("{error}");
                        return Ok(old.clone());
                    }
                    (Err(_), _) => (),
                }
                old.into_iter().for_each(|old| upkeep.close_aside(old));
                links
            })
        };
        shared.join(&self.upkeep, &name, params::is_wanted, attempt)
    }

    /// A client leaves. Its way is kept where it may be of use, and closed, unless others use it too.
    pub fn close(&self, session: Session) {
        let Session {
            client,
            kept,
            failed,
        } = session;
        let links = client.links().clone();
        // It is to be gone from them when they are closed.
        drop(client);
        match (&self.way, kept) {
            (Way::Each(reception), Some(kept)) => {
                reception.give_back(kept, failed.load(Ordering::Relaxed));
            }
            (Way::Shared(shared), _) => {
                if let Some(links) = shared.leave(&links) {
                    self.upkeep.close(&links);
                }
            }
            (Way::Each(_), None) => (),
        }
    }

    /// Fills the list of exports for a client.
    pub fn list(&self, exports: &mut Exports, tls: bool) -> Result<(), Failure> {
        let (ExportName::Dynamic, Way::Each(reception)) = (&self.server.export, &self.way) else {
            return exports
                .add_default()
                .then_some(())
                .ok_or_else(Failure::by_host);
        };
        for export in reception.list(tls)? {
            if !exports.add(export.name.as_bytes(), &export.description) {
                log::debug!("nbdkit does not list export \"{}\"", export.name);
            }
        }
        Ok(())
    }

    /// The name behind the empty name.
    pub fn default_export(&self, readonly: bool, tls: bool) -> name::ExportName {
        match (&self.server.export, &self.way) {
            (ExportName::Fixed(name), _) => name.clone(),
            (ExportName::Dynamic, Way::Each(reception)) => reception.default_export(readonly, tls),
            // There is no such configuration.
            (ExportName::Dynamic, Way::Shared(_)) => name::ExportName::default(),
        }
    }

    /// Prepared to be asked, and by no client.
    fn alone(config: &Config) -> Result<Self, Failure> {
        Self::new(&Config {
            shared: false,
            control: None,
            ..config.clone()
        })
    }

    /// The metadata contexts that the server has for the export. Nobody is served: a server that was started
    /// for this ends.
    pub fn contexts(config: &Config) -> Result<Vec<Vec<u8>>, Failure> {
        let alone = Self::alone(config)?;
        let export = alone.server.fixed_name();
        let names = client::contexts(&alone.server.options, &export);
        alone.end();
        Ok(names?)
    }

    /// What each server is. Nobody is served, as above; a server that may still be starting is given the
    /// time that the user gives it.
    pub fn probe(config: &Config) -> Result<Vec<Found>, Failure> {
        let alone = Self::alone(config)?;
        let export = alone.server.fixed_name();
        let mut tries_left = config.retry;
        let found = loop {
            let found = client::probe::probe(&alone.server.options, &export);
            let mut failures = found.iter().filter_map(|(_, result)| result.as_ref().err());
            match failures.find(|error| error.is_transient()) {
                Some(error) if tries_left > 0 => {
                    log::debug!("connect failed; will try again: {error}");
                }
                _ => break found,
            }
            tries_left -= 1;
            std::thread::sleep(Duration::from_secs(1));
        };
        alone.end();
        Ok(found)
    }

    /// Disconnects everybody, also clients that nbdkit did not close, and ends a server that we
    /// started. Does nothing the second time.
    pub fn end(&self) {
        // Before the thread is waited for that asks.
        params::set_ending(true);
        self.control.iter().for_each(Control::end);
        let more = match &self.way {
            Way::Shared(_) => Vec::new(),
            Way::Each(reception) => reception.clear_for_good(),
        };
        self.upkeep.end(more);
        self.server.options.targets().for_each(Target::end);
        // Last, so that they have all that was done.
        if let Some(statistics) = &self.statistics {
            statistics.end();
        }
    }
}

impl Server {
    /// The export that the user has named; the default one if that is left to clients.
    fn fixed_name(&self) -> name::ExportName {
        match &self.export {
            ExportName::Fixed(name) => name.clone(),
            ExportName::Dynamic => name::ExportName::default(),
        }
    }

    /// Connects, and tries again as often as the user said, if time can help. `start` is what is at
    /// hand to begin with.
    pub fn connect(
        &self,
        wanted: &name::ExportName,
        pause: Pause,
        helpers: &Arc<Helpers>,
        shared: bool,
        readonly: bool,
        start: &mut Start<'_>,
    ) -> Result<Arc<Links>, Error> {
        let export = match &self.export {
            ExportName::Fixed(name) => name,
            ExportName::Dynamic => wanted,
        };
        let mut tries_left = self.retry;
        loop {
            let (options, volumes) = (&self.options, &self.volumes);
            match client::connect(options, volumes, helpers, export, shared, readonly, start) {
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
