// SPDX-License-Identifier: BSD-3-Clause
//! What the user asked for: collected key by key, checked once, then immutable.

pub mod change;
pub mod extents;
pub mod help;
pub(crate) mod params;
pub mod probe;
pub mod quirks;
pub mod reconnect;
pub mod servers;
pub mod statistics;
pub mod target;
pub mod tls;
pub mod uri;

use std::path::PathBuf;
use std::time::Duration;

use self::extents::Extents;
use self::probe::Probe;
use self::quirks::Quirks;
use self::reconnect::{Reconnect, ReconnectParams};
use self::servers::{Another, Servers, ServersParams};
use self::statistics::{Statistics, StatisticsParams};
use self::target::{Place, TargetParams};
use self::tls::TlsParams;
use crate::proto::handshake::TlsPolicy;
use crate::proto::name;
use crate::transport::tls::Settings;

/// What the user typed wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such parameter.
    #[error("unknown parameter '{0}'")]
    Unknown(String),
    /// A value cannot be understood.
    #[error("{key}={value}: {why}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// Its value, made printable.
        value: String,
        /// What is allowed.
        why: &'static str,
    },
    /// A value is neither yes nor no.
    #[error("{key}: could not decipher boolean ({value})")]
    Boolean {
        /// The parameter.
        key: &'static str,
        /// Its value, made printable.
        value: String,
    },
    /// A value is no number.
    #[error("{what}: could not parse number: \"{value}\": {why}")]
    Number {
        /// What it should be.
        what: &'static str,
        /// The value, made printable.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A value that should be a number is empty.
    #[error("{0}: empty string where we expected a number")]
    NoNumber(&'static str),
    /// One of these, where it does not name the parameter as the user knows it.
    #[error("{error} (parameter ‘{key}’)")]
    Parameter {
        /// The parameter.
        key: &'static str,
        /// What is wrong with it.
        error: Box<Self>,
    },
    /// A host and a port in one.
    #[error("hostname={value}: must be the host alone: write hostname={host} port={port}")]
    HostAndPort {
        /// The value, made printable.
        value: String,
        /// The host, made printable.
        host: String,
        /// The port, made printable.
        port: String,
    },
    /// A URI that was given to another parameter. It is not told, as a secret may be in it.
    #[error("{0}: must not be a URI: write uri=URI")]
    UriElsewhere(String),
    /// A descriptor is negative.
    #[error("socket-fd must be >= 0")]
    NegativeDescriptor,
    /// A URI is malformed or asks for what there is not.
    ///
    /// Only the error is told: what stands in a URI may be a secret.
    #[error("uri: {0}")]
    Uri(#[from] uri::Error),
    /// No server was named.
    #[error(
        "exactly one of ‘socket’, ‘hostname’, ‘vsock’, ‘command’, ‘socket-fd’ and ‘uri’ \
         parameters must be specified"
    )]
    NoTarget,
    /// More than one server was named.
    #[error(
        "cannot mix Unix ‘socket’, TCP ‘hostname’/‘port’, ‘vsock’, ‘command’, ‘socket-fd’ and \
         ‘uri’ parameters"
    )]
    SeveralTargets,
    /// A port without anything that has ports.
    #[error("‘port’ parameter should only be used with ‘hostname’ or ‘vsock’")]
    StrayPort,
    /// A limit for the end of a server that we do not start.
    #[error("‘command-timeout’ parameter should only be used with ‘command’")]
    StrayCommandTimeout,
    /// A way to come back to a server that is not come back to.
    #[error("‘{0}’ parameter should only be used with ‘reconnect’, which is off")]
    WithoutReconnect(&'static str),
    /// How to write statistics that are not written.
    #[error("‘{0}’ parameter should only be used with ‘stats’")]
    WithoutStats(&'static str),
    /// Nobody can connect a socket again that somebody else has connected.
    #[error("cannot use ‘reconnect’ with ‘socket-fd’: the socket is good for one connection")]
    ReconnectSocketFd,
    /// Nobody can connect a second time over a socket that somebody else has connected.
    #[error("cannot use ‘connections’ with ‘socket-fd’: the socket is good for one connection")]
    ConnectionsSocketFd,
    /// Several servers that are no listening sockets.
    #[error("cannot use ‘servers’ with ‘vsock’, ‘command’ or ‘socket-fd’")]
    ServersElsewhere,
    /// Which names there are is asked of one server.
    #[error(
        "cannot use ‘servers’ with ‘dynamic-export’: which exports there are is a question for one server"
    )]
    ServersDynamic,
    /// One disk behind several servers, of which there are none.
    #[error("‘servers-same-disk’ parameter should only be used with ‘servers=failover’")]
    StraySameDisk,
    /// A quirk for the second time.
    #[error("quirks: ‘{0}’ is given twice")]
    RepeatedQuirk(&'static str),
    /// Extended headers are to be asked for, and are not.
    #[error("quirks: cannot mix ‘extended’ with ‘{0}’")]
    ConflictingQuirks(&'static str),
    /// The path does not fit a Unix socket address.
    #[error("socket file name too large")]
    SocketTooLong,
    /// It is read once, when nbdkit starts.
    #[error("‘{0}’ cannot be changed while nbdkit runs, only: {list}", list = change::KEYS.join(", "))]
    Unchangeable(String),
    /// What is off has no time that could be another.
    #[error("‘{0}’ cannot be turned on or off while nbdkit runs")]
    TurnedOver(&'static str),
    /// The client's export name and ours cannot both be meant.
    #[error("cannot mix 'dynamic-export' with explicit export name")]
    DynamicWithExport,
    /// One connection has one export.
    #[error("cannot use 'dynamic-export' with shared connection")]
    DynamicWithShared,
    /// Bitmaps are shown as exports where clients choose among exports.
    #[error("‘extents=by-name’ needs ‘dynamic-export=true’")]
    ByNameWithoutDynamic,
    /// Contexts are those of one export.
    #[error("cannot use ‘extents=list’ with ‘dynamic-export’: it is about one ‘export’")]
    ListWithDynamic,
    /// Each server has contexts of its own.
    #[error(
        "cannot use ‘extents=list’ with ‘servers’: which contexts there are is a question for one server"
    )]
    ListWithServers,
    /// What has changed on one disk is not what has changed on another.
    #[error(
        "cannot use ‘extents’ other than base:allocation with ‘servers’, unless servers-same-disk=true says that \
         there is one disk: each has a map of its own"
    )]
    MapsWithServers,
    /// Two things to print instead of serving.
    #[error("cannot use ‘probe’ with ‘extents=list’: it tells the contexts, too")]
    ProbeWithList,
    /// Contexts are wanted, and are not to be asked for.
    #[error(
        "cannot use ‘quirks={0}’ with ‘extents’ other than base:allocation: no context is asked for then"
    )]
    QuirkWithExtents(&'static str),
    /// That there is no export of a name is told in answer to `NBD_OPT_GO` alone.
    #[error(
        "cannot use ‘quirks=no-opt-go’ with ‘extents=by-name’: only NBD_OPT_GO tells which exports there are not"
    )]
    ByNameWithoutGo,
    /// A URI demands TLS and a parameter forbids it.
    #[error("cannot mix 'tls=off' with a URI that demands TLS")]
    TlsOff,
    /// TLS that protects from nobody who can change the stream.
    #[error("tls-type=anon is not supported: it proves nothing about the server")]
    AnonymousTls,
    /// A pre-shared key was announced and not given.
    #[error("tls-type=psk needs ‘tls-psk-file’ in the URI, or ‘tls-psk’")]
    PskWithoutFile,
    /// A pre-shared key has no certificate whose key could be pinned.
    #[error("cannot mix ‘tls-pin’ with a pre-shared key")]
    PinWithPsk,
    /// Nobody said whose key to present.
    #[error("‘tls-psk’ needs ‘tls-username’")]
    NoUsername,
    /// Verification was demanded and there is no name to verify.
    #[error(
        "tls-verify=true needs a name to verify: add ‘tls-hostname’, or ‘tls-pin’ to recognise \
         the server by its key"
    )]
    NothingToVerify,
    /// A pin that is no digest.
    #[error("tls-pin: must be sha256: and 64 hexadecimal digits")]
    BadPin,
}

/// A value that is a path and must be made absolute before [`Params::set`] gets it.
pub fn is_path(key: &str, value: &[u8]) -> bool {
    match key {
        "socket" | "tls-certificates" | "tls-psk" | "control" => true,
        "stats" => statistics::is_file(value),
        _ => false,
    }
}

/// A value that says where a password is, and must be turned into the password before
/// [`Params::set`] gets it.
pub fn is_password(key: &str) -> bool {
    key == "tls-key-password"
}

/// Refuses a file whose name nbdkit would repeat as it is, if it could not read it.
pub fn check_password_file(value: &[u8]) -> Result<(), Error> {
    if value.starts_with(b"+") && value.iter().any(u8::is_ascii_control) {
        return Err(Error::Value {
            key: "tls-key-password",
            value: params::shown(value),
            why: "must not have control characters in the name of a file",
        });
    }
    Ok(())
}

/// The parameters as they come.
#[derive(Clone, Debug, Default)]
pub struct Params {
    target: TargetParams,
    export: Option<name::ExportName>,
    dynamic_export: bool,
    retry: u32,
    shared: bool,
    tls: TlsParams,
    timeouts: Timeouts,
    reconnect: ReconnectParams,
    keepalive: Option<Duration>,
    connections: Option<usize>,
    servers: ServersParams,
    linger: Option<Linger>,
    quirks: Quirks,
    detect_zeroes: DetectZeroes,
    align: Align,
    extents: Extents,
    extents_cache: u64,
    statistics: StatisticsParams,
    control: Option<PathBuf>,
    probe: Probe,
    /// Whether `command-timeout` was given, whatever its value.
    command_timeout: bool,
}

/// How long to wait for a server; `None` is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection.
    pub connect: Option<Duration>,
    /// For the whole handshake.
    pub handshake: Option<Duration>,
    /// From a request to its complete answer.
    pub request: Option<Duration>,
    /// From the wish to leave a server to the end of the connection: answers in flight, the last
    /// flush, NBD_CMD_DISC and the server's own close together.
    pub close: Option<Duration>,
    /// For a server that we started to end.
    pub command: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Some(Duration::from_secs(30)),
            // Servers that open a cold or remote disk before they answer need more than half a minute.
            handshake: Some(Duration::from_secs(120)),
            request: None,
            close: Some(Duration::from_secs(5)),
            command: None,
        }
    }
}

impl Params {
    /// Takes one parameter; a later value replaces an earlier one, but for `command` and `arg`,
    /// which add up.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<(), Error> {
        params::refuse_uri(key, value)?;
        let target = &mut self.target;
        let tls = &mut self.tls;
        match key {
            "socket" => target.add_socket(params::path("socket", value)?),
            "hostname" => target.add_host(params::host(value)?),
            "port" => target.port = Some(params::text("port", value)?),
            "vsock" => target.vsock = Some(("vsock", value.to_vec())),
            "cid" => target.vsock = Some(("cid", value.to_vec())),
            "uri" => target.add_uri(params::text("uri", value)?),
            "command" => target.add_command(params::argument("command", value)?),
            "arg" => target.command.push(params::argument("arg", value)?),
            "socket-fd" => target.socket_fd = Some(params::descriptor(value)?),
            "export" => self.export = Some(params::export_name("export", value)?),
            "dynamic-export" => self.dynamic_export = params::boolean("dynamic-export", value)?,
            "retry" => self.retry = params::number("retry", value)?,
            "shared" => self.shared = params::boolean("shared", value)?,
            "tls" => tls.policy = Some(tls::policy(value)?),
            "tls-hostname" => tls.hostname = Some(params::text("tls-hostname", value)?),
            "tls-priority" => tls.priority = Some(params::text("tls-priority", value)?),
            "tls-pin" => tls.pin = Some(tls::pin(value)?),
            "tls-certificates" => {
                tls.certificates = Some(params::path("tls-certificates", value)?);
            }
            "tls-key-password" => tls.key_password = Some(tls::key_password(value)?),
            "tls-verify" => tls.verify = Some(params::boolean("tls-verify", value)?),
            "tls-username" => tls.username = Some(params::text("tls-username", value)?),
            "tls-psk" => tls.psk = Some(params::path("tls-psk", value)?),
            "connect-timeout" => {
                self.timeouts.connect = params::timeout("connect-timeout", value)?;
            }
            "handshake-timeout" => {
                self.timeouts.handshake = params::timeout("handshake-timeout", value)?;
            }
            "request-timeout" => {
                self.timeouts.request = params::timeout("request-timeout", value)?;
            }
            "close-timeout" => self.timeouts.close = params::timeout("close-timeout", value)?,
            "command-timeout" => {
                self.timeouts.command = params::timeout("command-timeout", value)?;
                self.command_timeout = true;
            }
            "reconnect" => self.reconnect.set_limit(value)?,
            "reconnect-delay" => self.reconnect.set_delay(value)?,
            "replay" => self.reconnect.set_replay(value)?,
            "linger" => self.linger = params::linger(value)?,
            "keepalive" => self.keepalive = params::keepalive(value)?,
            "servers" => self.servers.set_plan(value)?,
            "servers-same-disk" => self.servers.set_same_disk(value)?,
            "connections" => self.connections = Some(params::connections(value)?),
            "quirks" => self.quirks = quirks::parse(value)?,
            "detect-zeroes" => self.detect_zeroes = params::detect_zeroes(value)?,
            "align" => self.align = params::align(value)?,
            "extents" => self.extents = Extents::parse(value)?,
            "extents-cache" => self.extents_cache = params::size("extents-cache", value)?,
            "stats" => self.statistics.set_output(value)?,
            "stats-interval" => self.statistics.set_interval(value)?,
            "stats-format" => self.statistics.set_format(value)?,
            "slow-log" => self.statistics.set_slow_log(value)?,
            "control" => self.control = Some(params::control(value)?),
            "probe" => self.probe = Probe::parse(value)?,
            other => return Err(Error::Unknown(params::shown(other.as_bytes()))),
        }
        Ok(())
    }

    /// Checks that the parameters make sense together.
    pub fn complete(self) -> Result<Config, Error> {
        let (plan, same_disk) = self.servers.complete()?;
        if plan.is_some() && self.dynamic_export {
            return Err(Error::ServersDynamic);
        }
        let uri = self.target.uri.clone();
        let mut tls_params = self.tls;
        let mut others = Vec::new();
        let (place, uri_export) = match plan {
            Some(_) => {
                let port = self.target.port.clone();
                let common = tls_params.clone();
                let mut listed = self.target.complete_all()?.into_iter();
                let first = listed.next().map_or(Err(Error::NoTarget), |first| {
                    servers::place(first, port.as_deref(), &mut tls_params)
                })?;
                for another in listed {
                    let mut tls = common.clone();
                    let (place, export) = servers::place(another, port.as_deref(), &mut tls)?;
                    let (tls_policy, tls) = tls.complete(&place)?;
                    let export = export.or(self.export.clone()).unwrap_or_default();
                    others.push(Another {
                        place,
                        export,
                        tls_policy,
                        tls,
                    });
                }
                first
            }
            None => match (self.target.complete()?, uri) {
                (Some(place), _) => (place, None),
                (None, uri) => from_uri(&uri.unwrap_or_default(), &mut tls_params)?,
            },
        };
        if self.command_timeout && !matches!(place, Place::Command(_)) {
            return Err(Error::StrayCommandTimeout);
        }
        let shared = self.shared || place.is_single();
        if self.dynamic_export {
            if self.export.is_some() {
                return Err(Error::DynamicWithExport);
            }
            if shared {
                return Err(Error::DynamicWithShared);
            }
        }
        let connections = self.connections.unwrap_or(1);
        if connections > 1 && matches!(place, Place::SocketFd(_)) {
            return Err(Error::ConnectionsSocketFd);
        }
        self.extents.check(self.dynamic_export)?;
        if self.extents == Extents::List && plan.is_some() {
            return Err(Error::ListWithServers);
        }
        if plan.is_some() && !same_disk && self.extents.needs_contexts() {
            return Err(Error::MapsWithServers);
        }
        if self.extents == Extents::List && self.probe != Probe::Off {
            return Err(Error::ProbeWithList);
        }
        self.extents.check_asked(self.quirks.ladder)?;
        let (tls_policy, tls) = tls_params.complete(&place)?;
        let reconnect = self.reconnect.complete(&place)?;
        let export = if self.dynamic_export {
            ExportName::Dynamic
        } else {
            // The name in a URI wins, also if it is the empty one.
            ExportName::Fixed(uri_export.or(self.export).unwrap_or_default())
        };
        Ok(Config {
            place,
            export,
            retry: self.retry,
            shared,
            tls_policy,
            tls,
            timeouts: self.timeouts,
            reconnect,
            keepalive: self.keepalive,
            connections,
            servers: plan.map(|plan| Servers {
                plan,
                same_disk,
                others,
            }),
            linger: self.linger,
            quirks: self.quirks,
            detect_zeroes: self.detect_zeroes,
            align: self.align,
            extents: self.extents,
            extents_cache: self.extents_cache,
            statistics: self.statistics.complete()?,
            control: self.control,
            probe: self.probe,
        })
    }
}

/// The place and the export name that a URI gives.
fn from_uri(text: &str, tls: &mut TlsParams) -> Result<(Place, Option<name::ExportName>), Error> {
    let uri = uri::parse(text)?;
    tls.merge(uri.tls, uri.username, uri.options)?;
    let place = match uri.place {
        uri::Place::Unix(path) => target::unix_socket(path)?,
        uri::Place::Tcp { host, port } => Place::Tcp { host, port },
        uri::Place::Vsock { cid, port } => Place::Vsock { cid, port },
        uri::Place::Ssh(route) => Place::Ssh(route),
    };
    Ok((place, Some(uri.export)))
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the server is.
    pub place: Place,
    /// Which export to open.
    pub export: ExportName,
    /// How many more times to try to connect, a second apart.
    pub retry: u32,
    /// Whether all clients share one connection, or all that there are.
    pub shared: bool,
    /// How many connections to have for each client.
    pub connections: usize,
    /// Other servers, if there may be any.
    pub servers: Option<Servers>,
    /// Whether to use TLS.
    pub tls_policy: TlsPolicy,
    /// How to use TLS, where it is.
    pub tls: Settings,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Whether and how to come back to a server that was lost.
    pub reconnect: Option<Reconnect>,
    /// After how long a silence to ask whether the server's host is still there; `None` leaves it to
    /// the kernel.
    pub keepalive: Option<Duration>,
    /// Where extents come from.
    pub extents: Extents,
    /// Memory for extents that are kept for all clients, bytes; 0 for none.
    pub extents_cache: u64,
    /// Whether the server is told of, and nobody is served.
    pub probe: Probe,
    /// How long the way of a client that has left is kept for another.
    pub linger: Option<Linger>,
    /// What the server has to be spared.
    pub quirks: Quirks,
    /// What becomes of writes that are all zeroes.
    pub detect_zeroes: DetectZeroes,
    /// What becomes of requests that do not keep to the server's blocks.
    pub align: Align,
    /// What is told of requests.
    pub statistics: Statistics,
    /// Where commands are taken.
    pub control: Option<PathBuf>,
}

impl Config {
    /// Whether what is done is to be counted.
    pub fn counts(&self) -> bool {
        self.statistics.counts() || self.control.is_some()
    }
}

/// How long the way of a client that has left is kept for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linger {
    /// So long.
    For(Duration),
    /// Until it is needed, or nbdkit ends.
    Forever,
}

/// What becomes of writes that are all zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are writes like all others.
    #[default]
    Off,
    /// They become zeroes that stay allocated.
    On,
    /// They become zeroes that may be a hole.
    Unmap,
}

/// What becomes of requests that do not keep to the server's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Align {
    /// They are refused: clients are told of the blocks.
    #[default]
    Advertise,
    /// They are carried out by requests that do.
    Emulate,
}

/// Which export to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportName {
    /// This one, whatever the client asks for.
    Fixed(name::ExportName),
    /// The one that the client asks for.
    Dynamic,
}

#[cfg(test)]
mod tests;
