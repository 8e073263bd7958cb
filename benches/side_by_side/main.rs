// SPDX-License-Identifier: BSD-3-Clause
//! `make bench`: our plugin, nbdkit's own plugin in C and other ways to forward, side by side in one run.
//!
//! `workload` says what is measured, `contender` who is, `server` what stands behind them (`pieces` is one of
//! our own), `fio`, `copy` and `own` are the clients, `run` is how they take turns, `targets` what is expected
//! and `verdict` whether it was reached. `settings` has the variables that choose among all that.

mod calls;
mod chart;
#[path = "../../tests/common/mod.rs"]
mod common;
mod contender;
mod copy;
mod door;
mod fio;
mod json;
mod machine;
mod own;
mod pieces;
mod progress;
mod reach;
mod report;
mod results;
mod run;
mod sample;
mod server;
mod settings;
mod stats;
mod table;
mod targets;
mod usage;
mod verdict;
mod workload;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};

use calls::Counter;
use contender::Contender;
use door::Door;
use progress::Progress;
use results::{Results, Row};
use run::Track;
use server::Server;
use settings::Settings;
use workload::{Group, Workload};

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<(), String> {
    // Everything that we start ends with us, and we with cargo.
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| error.to_string())?;
    let settings = Settings::from_environment(common::plugin)?;
    let workloads = chosen(&settings);
    if workloads.is_empty() {
        let names: Vec<String> = workload::all().iter().map(Workload::name).collect();
        return Err(format!(
            "ONLY: no such workload; there are {}",
            names.join(" ")
        ));
    }
    let contenders = contenders(&settings);
    let counter = (!settings.quick).then(Counter::choose);
    let machine = machine::describe();
    let mut progress = Progress::new(turns(&workloads, &contenders, &settings));
    let mut rows = Vec::new();
    for group in Group::ALL {
        let members: Vec<&Workload> = workloads.iter().filter(|w| w.group == group).collect();
        if !members.is_empty() {
            rows.extend(measure(
                group,
                &members,
                &contenders,
                &settings,
                counter,
                &mut progress,
            )?);
        }
    }
    progress.end();
    let results = Results {
        quick: settings.quick,
        rounds: settings.rounds,
        seconds: settings.turn.as_secs_f64(),
        counter: counter.map(Counter::name),
        processors: machine::processors(),
        machine,
        contenders,
        rows,
    };
    write(&results, &settings.out)
}

fn chosen(settings: &Settings) -> Vec<Workload> {
    let only = &settings.only;
    let wanted = |workload: &Workload| {
        let name = workload.name();
        // Who names a workload wants it, quick or not.
        match only.is_empty() {
            true => workload.quick || !settings.quick,
            false => only.iter().any(|part| name.contains(part)),
        }
    };
    workload::all().into_iter().filter(wanted).collect()
}

fn contenders(settings: &Settings) -> Vec<Contender> {
    let mut list = vec![Contender::Direct];
    if !settings.quick {
        list.extend([Contender::Relay, Contender::Qemu, Contender::Handover]);
    }
    list.push(Contender::C);
    for (number, path) in settings.ours.iter().enumerate() {
        let name = match number {
            0 => "ours".to_owned(),
            _ => format!("ours:{}", number + 1),
        };
        list.push(Contender::Ours(name, path.clone()));
    }
    // Ours is between the two, so that what drifts within a round does not favour it.
    list.push(Contender::Again);
    list
}

/// How many turns there will be, if none is thrown away.
fn turns(workloads: &[Workload], contenders: &[Contender], settings: &Settings) -> usize {
    let lanes = workloads.iter().flat_map(|workload| {
        let reach = |contender: &&Contender| contender.takes_part(workload);
        contenders.iter().filter(reach)
    });
    let turns = lanes.map(|contender| {
        let counted = contender.is_compared() && !settings.quick;
        run::turns(contender, settings.rounds) + usize::from(counted)
    });
    turns.sum()
}

/// All workloads of one server.
fn measure(
    group: Group,
    workloads: &[&Workload],
    contenders: &[Contender],
    settings: &Settings,
    counter: Option<Counter>,
    progress: &mut Progress,
) -> Result<Vec<Row>, String> {
    let place = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    let server = Server::start(group, place.path())?;
    prepare(group, place.path(), &server, contenders)?;
    let track = Track {
        reach: &server.reach,
        place: place.path(),
        settings,
        counter,
    };
    let rows = workloads.iter();
    rows.map(|workload| track.row(workload, contenders, progress))
        .collect()
}

/// Puts data on the disk: memory that was never written is cheaper to read.
fn prepare(
    group: Group,
    place: &Path,
    server: &Server,
    contenders: &[Contender],
) -> Result<(), String> {
    match (group, server.reach.door()) {
        (Group::Holes, Door::Unix(socket)) => return own::fragment(&socket),
        (Group::Copy, _) => copy::prepare(place)?,
        // There is no disk, and nobody reads it.
        (Group::Pieces | Group::Dynamic, _) => return Ok(()),
        _ => {}
    }
    let filling = workload::filling(group);
    // Ours reaches every server, and is the quickest by TLS.
    let mut contenders = contenders.iter();
    let ours = contenders.find(|contender| matches!(contender, Contender::Ours(..)));
    let running = ours
        .ok_or("nobody to fill the disk")?
        .start(place, &server.reach, &filling);
    fio::fill(&running.door.uri(), group.disk())
}

/// The report goes to standard output too.
fn write(results: &Results, out: &Path) -> Result<(), String> {
    let report = report::report(results);
    print!("{report}");
    let files = [
        ("results.md", report),
        ("results.svg", chart::chart(results)),
        ("results.json", format!("{:#}\n", json::json(results))),
    ];
    let written = fs::create_dir_all(out).and_then(|()| {
        let mut files = files.iter();
        files.try_for_each(|(name, content)| fs::write(out.join(name), content))
    });
    written.map_err(|error| format!("{}: {error}", out.display()))?;
    eprintln!(
        "bench: written to {}: results.md, results.svg, results.json",
        out.display()
    );
    Ok(())
}
