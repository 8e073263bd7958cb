// SPDX-License-Identifier: BSD-3-Clause
//! Several servers of one export, and what they are for.

use super::target::{self, Listed, Place};
use super::tls::TlsParams;
use super::{Error, from_uri, params};
use crate::proto::handshake::TlsPolicy;
use crate::proto::name::ExportName;
use crate::transport::tls::Settings;

const BAD_PLAN: &str = "must be failover or spread";

/// What several servers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The next one is for when those before it cannot be had.
    Failover,
    /// All of them at once.
    Spread,
}

/// The parameters of it as they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServersParams {
    /// `servers=`.
    plan: Option<Plan>,
    /// `servers-same-disk=`.
    same_disk: Option<bool>,
}

/// The servers beside the first one.
#[derive(Clone, Debug)]
pub struct Servers {
    /// What they are for.
    pub plan: Plan,
    /// Whether all have one disk.
    pub same_disk: bool,
    /// Where they are.
    pub others: Vec<Another>,
}

/// Another server, and the export there.
#[derive(Clone, Debug)]
pub struct Another {
    /// Where it is.
    pub place: Place,
    /// Which export to open there.
    pub export: ExportName,
    /// Whether to use TLS.
    pub tls_policy: TlsPolicy,
    /// How to use TLS, where it is.
    pub tls: Settings,
}

impl ServersParams {
    /// Takes `servers=`.
    pub fn set_plan(&mut self, value: &[u8]) -> Result<(), Error> {
        self.plan = match value {
            b"failover" => Some(Plan::Failover),
            b"spread" => Some(Plan::Spread),
            _ => return Err(params::bad("servers", value, BAD_PLAN)),
        };
        Ok(())
    }

    /// Takes `servers-same-disk=`.
    pub fn set_same_disk(&mut self, value: &[u8]) -> Result<(), Error> {
        self.same_disk = Some(params::boolean("servers-same-disk", value)?);
        Ok(())
    }

    /// Checks that the parameters make sense together.
    pub fn complete(self) -> Result<(Option<Plan>, bool), Error> {
        match (self.plan, self.same_disk) {
            (Some(Plan::Spread), Some(true)) | (None, Some(_)) => Err(Error::StraySameDisk),
            (plan, same_disk) => Ok((plan, same_disk.unwrap_or_default())),
        }
    }
}

/// The place and the export name of one of several servers.
pub fn place(
    listed: Listed,
    port: Option<&str>,
    tls: &mut TlsParams,
) -> Result<(Place, Option<ExportName>), Error> {
    let (place, export) = match listed {
        Listed::Socket(path) => (target::unix_socket(path)?, None),
        Listed::Host(host) => (target::host_at(host, port)?, None),
        Listed::Uri(uri) => from_uri(&uri, tls)?,
    };
    match place {
        Place::Vsock { .. } => Err(Error::ServersElsewhere),
        place => Ok((place, export)),
    }
}
