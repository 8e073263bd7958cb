// SPDX-License-Identifier: BSD-3-Clause
//! Where the servers are, from what the user typed to what connects.

use std::sync::Arc;

use super::guard::Failure;
use crate::client::Options;
use crate::client::fleet::{Another, Fleet, Plan};
use crate::client::manners::Manners;
use crate::client::maps::Maps;
use crate::client::resume::Terms;
use crate::client::times::{Time, Times};
use crate::client::turnstile::Turnstile;
use crate::client::zeroes::Detect;
use crate::config::extents::Extents;
use crate::config::probe::Probe;
use crate::config::reconnect::Reconnect;
use crate::config::target::Place;
use crate::config::{Align, Config, DetectZeroes, ExportName, Timeouts, servers};
use crate::host::params;
use crate::proto::context::Wish;
use crate::proto::handshake::TlsPolicy;
use crate::stats::Stats;
use crate::transport::Target;
use crate::transport::command::Child;
use crate::transport::fd::Inherited;
use crate::transport::keepalive::Keepalive;
use crate::transport::ssh::Ssh;
use crate::transport::tls::Settings;

/// What is one for all servers.
struct Common {
    maps: Arc<Maps>,
    times: Arc<Times>,
    terms: Option<Arc<Terms>>,
    turnstile: Option<Arc<Turnstile>>,
    stats: Option<Arc<Stats>>,
}

/// How to open connections, to all of the servers.
pub fn options(config: &Config) -> Result<Options, Failure> {
    let many = config.export == ExportName::Dynamic;
    let common = Common {
        maps: Arc::new(Maps::new(config.extents_cache, many)),
        times: Arc::new(times(&config.timeouts)),
        terms: config.reconnect.map(|reconnect| Arc::new(terms(reconnect))),
        turnstile: config.control.as_ref().map(|_| Arc::default()),
        stats: config.counts().then(Arc::default),
    };
    if let Some(stats) = &common.stats {
        stats.set_slow(config.statistics.slow_log);
    }
    let mut options = at(
        config,
        &config.place,
        config.tls_policy,
        &config.tls,
        &common,
    )?;
    if let Some(servers) = &config.servers {
        let mut others = Vec::new();
        for another in &servers.others {
            let (place, policy) = (&another.place, another.tls_policy);
            let options = at(config, place, policy, &another.tls, &common)?;
            others.push(Another {
                options: Arc::new(options),
                export: another.export.clone(),
            });
        }
        if !servers.same_disk {
            log::warn!(
                target: "servers-read-only",
                "servers: nothing can be written, as nobody says that all servers have one disk \
                 (servers-same-disk)"
            );
        }
        let plan = match servers.plan {
            servers::Plan::Failover => Plan::Failover,
            servers::Plan::Spread => Plan::Spread,
        };
        options.fleet = Some(Fleet::new(plan, others, !servers.same_disk));
    }
    Ok(options)
}

fn times(timeouts: &Timeouts) -> Times {
    Times {
        connect: Time::new(timeouts.connect),
        handshake: Time::new(timeouts.handshake),
        request: Time::new(timeouts.request),
        close: Time::new(timeouts.close),
    }
}

fn terms(reconnect: Reconnect) -> Terms {
    Terms {
        limit: Time::new(reconnect.limit),
        first: Time::new(Some(reconnect.first)),
        max: Time::new(Some(reconnect.max)),
        replay: reconnect.replay,
    }
}

/// How to open connections to one of them.
fn at(
    config: &Config,
    place: &Place,
    tls_policy: TlsPolicy,
    tls: &Settings,
    common: &Common,
) -> Result<Options, Failure> {
    let target = target(config, place)?;
    if config.keepalive.is_some() && !matches!(target, Target::Tcp { .. }) {
        log::debug!("{target}: keepalive has no effect, as this is not TCP");
    }
    if tls_policy != TlsPolicy::Off {
        // Files are read again for each connection; this is for the user who is still there.
        tls.check()
            .map_err(|error| Failure::misuse(&error.to_string()))?;
    }
    Ok(Options {
        target,
        tls_policy,
        tls: tls.clone(),
        times: common.times.clone(),
        reconnect: common.terms.clone(),
        turnstile: common.turnstile.clone(),
        wanted: Some(params::is_wanted),
        connections: config.connections,
        fleet: None,
        manners: Arc::new(Manners::new(
            config.quirks.ladder,
            config.quirks.limits,
            config.quirks.asks_again,
        )),
        detect_zeroes: match config.detect_zeroes {
            DetectZeroes::Off => Detect::Off,
            DetectZeroes::On => Detect::On,
            DetectZeroes::Unmap => Detect::Unmap,
        },
        // Others' options are for making connections: the first server's are each client's.
        fences: (config.align == Align::Emulate).then(Arc::default),
        wish: match &config.extents {
            // A probe opens an export whatever maps there are.
            _ if config.probe != Probe::Off => Wish::default(),
            Extents::From(wish) => wish.clone(),
            Extents::List => Wish::default(),
        },
        maps: common.maps.clone(),
        stats: common.stats.clone(),
    })
}

fn target(config: &Config, place: &Place) -> Result<Target, Failure> {
    let target = match place {
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
    Ok(target)
}
