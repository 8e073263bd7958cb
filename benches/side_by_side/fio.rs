// SPDX-License-Identifier: BSD-3-Clause
//! Load by fio's NBD engine, which is libnbd in a loop: the same for every contender.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::common::process::Guarded;
use crate::sample::Sample;
use crate::workload::Requests;

/// What fio may take beyond the time of its load. Generous, as somebody who needs the machine for a while
/// may have stopped everything here; a turn in which that happened is repeated.
const PATIENCE: Duration = Duration::from_secs(600);

/// A part of the disk: where it begins, and its size.
pub type Part = (u64, u64);

/// Sends `requests` to the server at `uri` for so long, all of them to one part of its disk.
pub fn load(
    place: &Path,
    uri: &str,
    requests: &Requests,
    part: Part,
    time: Duration,
) -> Result<Sample, String> {
    let output = place.join("fio.json");
    let mut command = Command::new("fio");
    command
        .args(options(uri, requests, part))
        .arg("--time_based")
        .arg(format!("--runtime={}ms", time.as_millis()))
        .arg("--output-format=json")
        .arg(format!("--output={}", output.display()));
    finish(&mut command, time + PATIENCE)?;
    let text = fs::read_to_string(&output).map_err(|error| format!("fio's output: {error}"))?;
    parse(&text)
}

/// Writes a disk of this size once.
pub fn fill(uri: &str, size: u64) -> Result<(), String> {
    let once = Requests {
        pattern: "write",
        kib: 1024,
        depth: 8,
        clients: 1,
    };
    finish(
        Command::new("fio").args(options(uri, &once, (0, size))),
        PATIENCE,
    )
}

fn finish(command: &mut Command, limit: Duration) -> Result<(), String> {
    let mut fio = Guarded::spawn(command);
    match fio.wait_timeout(limit) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("fio: {status}: {}{}", fio.stdout(), fio.stderr())),
        None => Err(format!("fio still runs after {limit:?}: {command:?}")),
    }
}

fn options(uri: &str, requests: &Requests, (offset, size): Part) -> Vec<String> {
    let Requests {
        pattern,
        depth,
        clients,
        ..
    } = requests;
    vec![
        "--name=load".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri={uri}"),
        format!("--rw={pattern}"),
        format!("--bs={}", requests.size()),
        format!("--iodepth={depth}"),
        format!("--numjobs={clients}"),
        format!("--offset={offset}"),
        format!("--size={size}"),
        // Reads and writes as one, and all clients as one.
        "--unified_rw_reporting=1".to_owned(),
        "--group_reporting".to_owned(),
        "--norandommap".to_owned(),
        "--randrepeat=0".to_owned(),
        // The default would spend a tenth of a second on calibrating the processor's own clock.
        "--clocksource=clock_gettime".to_owned(),
        "--eta=never".to_owned(),
    ]
}

/// Finds the figures in what fio wrote.
pub fn parse(text: &str) -> Result<Sample, String> {
    // The engine has a line of its own to say before.
    let start = text.find('{').ok_or("fio wrote no JSON")?;
    let json: Value =
        serde_json::from_str(&text[start..]).map_err(|error| format!("fio's JSON: {error}"))?;
    let job = &json["jobs"][0];
    if job["error"] != 0 {
        return Err(format!("fio failed with error {}", job["error"]));
    }
    let all = &job["mixed"];
    let float = |value: &Value, what: &str| {
        let number = value.as_f64();
        number.ok_or_else(|| format!("fio's JSON has no {what}"))
    };
    let percentile = &all["clat_ns"]["percentile"];
    Ok(Sample {
        rate: float(&all["iops"], "iops")?,
        requests: float(&all["total_ios"], "total_ios")? as u64,
        seconds: float(&all["runtime"], "runtime")? / 1000.0,
        p50: Some(float(&percentile["50.000000"], "median latency")? / 1000.0),
        p99: Some(float(&percentile["99.000000"], "latency percentile")? / 1000.0),
        cpu: None,
    })
}
