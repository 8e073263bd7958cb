//! `make bench`: our plugin, nbdkit's own plugin in C and other ways to forward, side by side in one run.

#[path = "../../tests/common/mod.rs"]
mod common;
mod contender;
mod fio;
mod progress;
mod report;
mod results;
mod run;
mod sample;
mod server;
mod settings;
mod stats;
mod usage;
mod workload;

use std::fs;
use std::process::ExitCode;

use contender::Contender;
use progress::Progress;
use results::Row;
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
    let settings = Settings::from_environment(common::plugin)?;
    let workloads = chosen(&settings);
    if workloads.is_empty() {
        let names: Vec<String> = workload::all().iter().map(Workload::name).collect();
        return Err(format!("no such workload; there are {}", names.join(" ")));
    }
    let contenders = contenders(&settings);
    let mut progress = Progress::new(workloads.len() * contenders.len() * settings.rounds);
    let mut rows = Vec::new();
    for group in Group::ALL {
        let members: Vec<&Workload> = workloads.iter().filter(|w| w.group == group).collect();
        if !members.is_empty() {
            rows.extend(measure(
                group,
                &members,
                &contenders,
                &settings,
                &mut progress,
            )?);
        }
    }
    progress.end();
    let text = report::report(&contenders, &rows);
    print!("{text}");
    let out = &settings.out;
    fs::create_dir_all(out)
        .and_then(|()| fs::write(out.join("results.md"), text))
        .map_err(|error| format!("{}: {error}", out.display()))
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
        list.extend([Contender::Relay, Contender::Qemu]);
    }
    list.push(Contender::C);
    for (number, path) in settings.ours.iter().enumerate() {
        let name = match number {
            0 => "ours".to_owned(),
            _ => format!("ours:{}", number + 1),
        };
        list.push(Contender::Ours(name, path.clone()));
    }
    list
}

/// All workloads of one server.
fn measure(
    group: Group,
    workloads: &[&Workload],
    contenders: &[Contender],
    settings: &Settings,
    progress: &mut Progress,
) -> Result<Vec<Row>, String> {
    let place = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    let server = Server::start(group, place.path())?;
    let first = contenders
        .iter()
        .find_map(|contender| contender.start(place.path(), &server.reach));
    if let Some(first) = first {
        fio::fill(&first.uri);
    }
    let each = workloads.iter().map(|workload| {
        run::row(
            workload,
            contenders,
            place.path(),
            &server.reach,
            settings,
            progress,
        )
    });
    each.collect()
}
