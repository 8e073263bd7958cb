// SPDX-License-Identifier: BSD-3-Clause
//! Load that fio has no engine for, by a loop around our own client or the one of the tests. It is the same
//! for every contender, and costs less than the servers that it measures.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbdkit_nbd_plugin::client::error::Error;
use nbdkit_nbd_plugin::client::times::{Time, Times};
use nbdkit_nbd_plugin::client::zeroes::Detect;
use nbdkit_nbd_plugin::client::{Client, Options};
use nbdkit_nbd_plugin::proto::context::Wish;
use nbdkit_nbd_plugin::proto::handshake::TlsPolicy;
use nbdkit_nbd_plugin::proto::name::ExportName;
use nbdkit_nbd_plugin::transport::Target;
use nbdkit_nbd_plugin::transport::tls::Settings;

use crate::common::front::Front;
use crate::pieces;
use crate::sample::Sample;

/// Size of each extent of a fragmented disk, bytes.
const EXTENT: u64 = 64 << 10;

/// How much of the disk one map shows, bytes. It is 1024 extents: qemu-nbd tells them one by one.
const MAPPED: u64 = 1024 * EXTENT;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// Asks for a map of the disk's beginning, over and over for so long.
pub fn map(socket: &Path, time: Duration) -> Result<Sample, String> {
    let client = open(socket, "").map_err(|error| error.to_string())?;
    let sample = repeat(time, || extents(&client, MAPPED).map(drop));
    client.close();
    sample.map_err(|error| error.to_string())
}

/// Connects and disconnects, over and over for so long.
pub fn connect(socket: &Path, export: &str, time: Duration) -> Result<Sample, String> {
    let once = || open(socket, export).map(|client| client.close());
    repeat(time, once).map_err(|error| error.to_string())
}

/// Reads a little, over and over for so long, while a large read waits for its answer. The server behind
/// must be the one that knows which reads have to wait.
pub fn beside(socket: &Path, time: Duration) -> Result<Sample, String> {
    let mut front = Front::open(socket).map_err(|refused| format!("{refused:?}"))?;
    let (waiting, length) = pieces::WAITING;
    let large = front.submit_read(waiting, length);
    let (offset, length) = pieces::BESIDE;
    let number = |number: u32| format!("a small read: error {number}");
    let sample = repeat(time, || {
        front.read(offset, length).map(drop).map_err(number)
    })?;
    let (offset, length) = pieces::RELEASE;
    front.read(offset, length).map_err(number)?;
    front
        .wait_read(large)
        .map_err(|number| format!("the large read: error {number}"))?;
    front.close();
    Ok(sample)
}

/// Makes every other extent of the empty disk a hole, by writing to the others.
pub fn fragment(socket: &Path) -> Result<(), String> {
    let message = |error: Error| error.to_string();
    let client = open(socket, "").map_err(message)?;
    let data = [1; EXTENT as usize];
    let size = client.export().size;
    for at in (0..size).step_by(2 * EXTENT as usize) {
        client.write(&data, at, false).map_err(message)?;
    }
    let found = extents(&client, MAPPED).map_err(message)?;
    client.close();
    match found as u64 == MAPPED / EXTENT {
        true => Ok(()),
        false => Err(format!("a fragmented disk has {found} extents")),
    }
}

fn open(socket: &Path, export: &str) -> Result<Client, Error> {
    let options = Options {
        target: Target::Unix(socket.to_owned()),
        tls_policy: TlsPolicy::Off,
        tls: Settings::default(),
        times: Arc::new(Times {
            connect: Time::new(PATIENCE),
            handshake: Time::new(PATIENCE),
            request: Time::new(PATIENCE),
            close: Time::new(PATIENCE),
        }),
        reconnect: None,
        turnstile: None,
        wanted: None,
        connections: 1,
        fleet: None,
        manners: Arc::default(),
        detect_zeroes: Detect::Off,
        fences: None,
        wish: Wish::default(),
        maps: Arc::default(),
        stats: None,
    };
    Client::open(
        &Arc::new(options),
        &ExportName::new(export.as_bytes().to_vec()).unwrap_or_default(),
    )
}

/// How many extents there are before `end`.
fn extents(client: &Client, end: u64) -> Result<usize, Error> {
    let mut at = 0;
    let mut count = 0;
    while at < end {
        let length = (end - at).min(u32::MAX.into());
        let found = client.block_status(length, at, false)?;
        at += found.iter().map(|extent| extent.length).sum::<u64>();
        count += found.len();
    }
    Ok(count)
}

/// One call after the other for so long.
fn repeat<E>(time: Duration, mut once: impl FnMut() -> Result<(), E>) -> Result<Sample, E> {
    let begun = Instant::now();
    let mut latencies = Vec::new();
    while begun.elapsed() < time {
        let start = Instant::now();
        once()?;
        latencies.push(start.elapsed());
    }
    let elapsed = begun.elapsed().as_secs_f64();
    latencies.sort();
    let percentile = |percent: usize| {
        let latency = latencies[(latencies.len() - 1) * percent / 100];
        latency.as_secs_f64() * 1e6
    };
    Ok(Sample {
        rate: latencies.len() as f64 / elapsed,
        requests: latencies.len() as u64,
        seconds: elapsed,
        p50: Some(percentile(50)),
        p99: Some(percentile(99)),
        cpu: None,
    })
}
