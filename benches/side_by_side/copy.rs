// SPDX-License-Identifier: BSD-3-Clause
//! Load by programs that copy a disk. A turn is as many copies as fit; files are in memory, where that is
//! what the directory is in.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::process::Guarded;
use crate::sample::Sample;
use crate::workload::{COPY_UNIT, Copying, Group, Tool};

/// What one copy may take; see `fio`.
const PATIENCE: Duration = Duration::from_secs(600);

/// Copied to the contenders.
const FILE: &str = "copied.raw";

/// Makes the file that is copied. It has no zeroes, which programs would not copy.
pub fn prepare(place: &Path) -> Result<(), String> {
    let data = vec![1; Group::Copy.disk() as usize];
    fs::write(place.join(FILE), data).map_err(|error| format!("{FILE}: {error}"))
}

/// Copies the disk, over and over for so long, or a little longer or shorter, as copies are not cut.
pub fn load(place: &Path, uri: &str, copying: Copying, time: Duration) -> Result<Sample, String> {
    let begun = Instant::now();
    let mut copies = 0;
    loop {
        once(&mut command(&place.join(FILE), uri, copying))?;
        copies += 1;
        let elapsed = begun.elapsed();
        // The next one would end later than now is early.
        if elapsed + elapsed / copies / 2 >= time {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let requests = u64::from(copies) * Group::Copy.disk() / (u64::from(COPY_UNIT) << 10);
    Ok(Sample {
        rate: requests as f64 / seconds,
        requests,
        seconds,
        p50: None,
        p99: None,
        cpu: None,
    })
}

fn command(file: &Path, uri: &str, copying: Copying) -> Command {
    let Copying { tool, to } = copying;
    let mut command = match tool {
        Tool::Nbdcopy | Tool::NbdcopyOne => Command::new("nbdcopy"),
        Tool::QemuImg => Command::new("qemu-img"),
    };
    match tool {
        Tool::Nbdcopy => {}
        Tool::NbdcopyOne => {
            command.arg("--connections=1");
        }
        Tool::QemuImg => {
            command.args(["convert", "-n", "-f", "raw"]);
        }
    }
    match (tool, to) {
        (Tool::Nbdcopy | Tool::NbdcopyOne, false) => command.args([uri, "null:"]),
        (Tool::Nbdcopy | Tool::NbdcopyOne, true) => command.arg(file).arg(uri),
        (Tool::QemuImg, false) => {
            let nowhere = format!("driver=null-co,size={}", Group::Copy.disk());
            command.args([uri, "--target-image-opts", &nowhere])
        }
        (Tool::QemuImg, true) => command.args(["-O", "raw"]).arg(file).arg(uri),
    };
    command
}

fn once(command: &mut Command) -> Result<(), String> {
    let mut program = Guarded::spawn(command);
    match program.wait_timeout(PATIENCE) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{command:?}: {status}: {}", program.stderr())),
        None => Err(format!("{command:?} still runs after {PATIENCE:?}")),
    }
}
