// SPDX-License-Identifier: BSD-3-Clause
//! What nbdkit's questions about an export mean, in safe Rust.

use std::ffi::c_char;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::guard::Failure;
use super::state;
use super::upstream::{Session, Upstream};
use crate::client::Zeroing;
use crate::client::error::Error;
use crate::host::lists::{self, Exports, Extents, intern};
use crate::host::report;
use crate::proto::consts::TransmissionFlags;
use crate::proto::export::BlockSizes;
use crate::proto::name::ExportName;
use crate::stats::{Asked, Stats};

/// Largest preferred block size that nbdkit accepts, bytes.
const MAX_PREFERRED: u32 = 32 << 20;

/// How far apart answers are given that nobody takes: time for nbdkit to find that out by one of them.
const APART: Duration = Duration::from_millis(10);

/// One client of nbdkit's: its way to the server.
#[derive(Debug)]
pub struct Handle {
    upstream: Arc<Upstream>,
    client: Session,
    readonly: bool,
    stats: Option<Arc<Stats>>,
    /// Whoever has an answer that nobody takes.
    leaving: Mutex<()>,
}

impl Handle {
    /// Connects to the server that the user named, or joins the shared connection.
    pub fn open(readonly: bool) -> Result<Self, Failure> {
        let upstream = state::upstream()?;
        let client = upstream.open(readonly, || {
            let name = lists::export_name().ok_or_else(Failure::by_host)?;
            // nbdkit has the protocol's limit, too.
            ExportName::new(name).ok_or_else(|| Failure::misuse("the export name is too long"))
        })?;
        Ok(Self {
            stats: upstream.stats().cloned(),
            upstream,
            client,
            readonly,
            leaving: Mutex::default(),
        })
    }

    /// Disconnects.
    pub fn close(self) {
        self.upstream.close(self.client);
    }

    /// Size in bytes.
    pub fn size(&self) -> i64 {
        // The handshake refuses larger sizes.
        i64::try_from(self.client.export().size).unwrap_or(i64::MAX)
    }

    /// The server's description.
    pub fn description(&self) -> Option<&str> {
        self.client.export().description.as_deref()
    }

    /// Minimum, preferred and maximum block size as nbdkit will have them; zeroes where the server
    /// said nothing.
    pub fn block_size(&self) -> (u32, u32, u32) {
        self.client.block_sizes().map_or((0, 0, 0), acceptable)
    }

    /// Whether the export may be written.
    pub fn can_write(&self) -> bool {
        !self.readonly && !self.has(TransmissionFlags::READ_ONLY)
    }

    /// Whether zeroes can be asked of this plugin. They always can where writing can: what the
    /// server cannot do is done here with writes. Were this left to nbdkit, versions before 1.44
    /// would write the first 64 MiB of a longer range over and over, and call it done.
    pub fn can_zero(&self) -> bool {
        self.can_write()
    }

    /// Whether the server has all of these flags.
    pub fn has(&self, flags: TransmissionFlags) -> bool {
        self.client.export().can(flags)
    }

    /// Whether the server reports extents.
    pub fn can_extents(&self) -> bool {
        self.client.export().context.is_some()
    }

    /// Turns a failed request into what the user is told of it.
    fn explained<T>(&self, result: Result<T, Error>) -> Result<T, Failure> {
        result.map_err(|error| {
            self.client.note_failure(&error);
            if error.is_unwanted() {
                self.answer_apart();
            }
            self.upstream.explain(error)
        })
    }

    /// nbdkit before 1.33.10 (its commit 9d82aa4f) aborts where two answers at once meet a client that has
    /// left: the one finds out and gives up the socket, and the other, which had looked before, insists on
    /// having it. All requests that a client has left behind are given up at the same moment; so their
    /// answers go one by one, which nobody waits for.
    fn answer_apart(&self) {
        let _turn = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        thread::sleep(APART);
    }

    /// Carries out a request, and tells of it where somebody wants to know.
    fn carry_out<T>(
        &self,
        asked: Asked,
        (offset, length): (u64, u64),
        request: impl FnOnce(&Session) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        let Some(stats) = &self.stats else {
            return self.explained(request(&self.client));
        };
        let running = stats.begin();
        let result = request(&self.client);
        let errno = result.as_ref().err().map(Error::errno);
        if let Some(slow) = running.end(asked, offset, length, errno) {
            report::error(&format!("{}: {slow}", self.client.links().server()));
        }
        self.explained(result)
    }

    /// Reads.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        let range = (offset, buffer.len() as u64);
        self.carry_out(Asked::Read, range, |client| client.read(buffer, offset))
    }

    /// Writes.
    pub fn write(&self, payload: &[u8], offset: u64, fua: bool) -> Result<(), Failure> {
        let range = (offset, payload.len() as u64);
        self.carry_out(Asked::Write, range, |client| {
            client.write(payload, offset, fua)
        })
    }

    /// Flushes.
    pub fn flush(&self) -> Result<(), Failure> {
        self.carry_out(Asked::Flush, (0, 0), |client| client.flush())
    }

    /// Trims.
    pub fn trim(&self, length: u32, offset: u64, fua: bool) -> Result<(), Failure> {
        let length = length.into();
        self.carry_out(Asked::Trim, (offset, length), |client| {
            client.trim(length, offset, fua)
        })
    }

    /// Zeroes.
    pub fn zero(&self, length: u32, offset: u64, how: Zeroing) -> Result<(), Failure> {
        let length = length.into();
        self.carry_out(Asked::Zero, (offset, length), |client| {
            client.zero(length, offset, how)
        })
    }

    /// Prefetches.
    pub fn cache(&self, length: u32, offset: u64) -> Result<(), Failure> {
        let length = length.into();
        self.carry_out(Asked::Cache, (offset, length), |client| {
            client.cache(length, offset)
        })
    }

    /// Reports extents. The last one may pass the end of the query, and of the export, where nbdkit
    /// cuts it.
    pub fn extents(
        &self,
        length: u32,
        offset: u64,
        one: bool,
        list: &mut Extents,
    ) -> Result<(), Failure> {
        let length = length.into();
        let extents = self.carry_out(Asked::Extents, (offset, length), |client| {
            client.block_status(length, offset, one)
        })?;
        let mut at = offset;
        for extent in extents {
            if !list.add(at, extent.length, extent.status) {
                return Err(Failure::by_host());
            }
            at = at.saturating_add(extent.length);
        }
        Ok(())
    }
}

/// Fills the list of exports for a client.
pub fn list(exports: &mut Exports, tls: bool) -> Result<(), Failure> {
    state::upstream()?.list(exports, tls)
}

/// The name of the default export, kept by nbdkit.
pub fn default_export(readonly: bool, tls: bool) -> Result<*const c_char, Failure> {
    let name = state::upstream()?.default_export(readonly, tls);
    Ok(intern(name.as_bytes()))
}

/// Bends legal block sizes until nbdkit accepts them; it refuses the client otherwise.
fn acceptable(sizes: BlockSizes) -> (u32, u32, u32) {
    let preferred = sizes.preferred.min(MAX_PREFERRED);
    let maximum = match sizes.maximum {
        u32::MAX => u32::MAX,
        limit => limit - limit % sizes.minimum,
    };
    (sizes.minimum, preferred, maximum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_bent_to_what_nbdkit_accepts() {
        for (server, host) in [
            ((1, 4096, 32 << 20), (1, 4096, 32 << 20)),
            ((1, 64 << 20, 128 << 20), (1, 32 << 20, 128 << 20)),
            ((512, 4096, 0x7fff_ffff), (512, 4096, 0x7fff_fe00)),
            ((4096, 4096, u32::MAX), (4096, 4096, u32::MAX)),
        ] {
            let sizes = BlockSizes::checked(server.0, server.1, server.2).expect("legal");
            assert_eq!(acceptable(sizes), host);
        }
    }
}
