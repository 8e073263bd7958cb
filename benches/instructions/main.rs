// SPDX-License-Identifier: BSD-3-Clause
//! Instructions that one request costs on the client's hot path: `make bench-instructions`.
//!
//! A regression check that does not depend on what else the machine is doing: it fails when a
//! figure is more than a tenth away from the one in `figures.txt`, upwards or downwards, so that
//! whoever changes what a request costs also changes the file, in the same commit. `STRICT=1` is
//! for work on the hot path: 3 % is enough to fail then. `UPDATE=1` writes the file.
//!
//! The program starts itself under valgrind for each scenario, and is the server meanwhile. Two
//! runs give the same figures, except for read-256k, where the client now and then finds two
//! pieces at once: that is 1 % at most.

mod callgrind;
#[path = "../../tests/common/mod.rs"]
mod common;
mod figures;
#[path = "../../tests/common/open.rs"]
mod open;
mod scenario;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, fs};

use common::scripted::Scripted;
use figures::{Figure, STRICT, Stored, TOLERANCE};
use scenario::{COUNTED, REQUESTS, SCENARIOS, Scenario};

const FILE: &str = "benches/instructions/figures.txt";
/// The first argument of the process that valgrind runs.
const CLIENT: &str = "client";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().collect();
    let result = match &args[..] {
        [_, word, name, socket] if word == CLIENT => client(name, Path::new(socket)),
        _ => check(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn client(name: &str, socket: &Path) -> Result<(), String> {
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
    let scenario = scenario.ok_or("no such scenario")?;
    scenario.run(socket).map_err(|error| error.to_string())
}

fn check() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        println!("SKIP: the stored figures are those of x86-64");
        return Ok(());
    }
    if !common::need("valgrind") {
        return Ok(());
    }
    let counted: Vec<Figure> = SCENARIOS.iter().map(count).collect();
    let compiler = compiler();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if asked_for("UPDATE") {
        let new = Stored {
            compiler,
            figures: counted,
        };
        fs::write(path, new.write()).map_err(|error| format!("{FILE}: {error}"))?;
        println!("stored in {FILE}");
        return Ok(());
    }
    let text = fs::read_to_string(path).map_err(|error| format!("{FILE}: {error}"))?;
    let stored = Stored::parse(&text).map_err(|error| format!("{FILE}: {error}"))?;
    let tolerance = if asked_for("STRICT") {
        STRICT
    } else {
        TOLERANCE
    };
    let mut complaints = stored.complaints(&counted, tolerance);
    if complaints.is_empty() {
        return Ok(());
    }
    if compiler != stored.compiler {
        let before = &stored.compiler;
        // The distribution's own, say. Where changes are judged there is the one of the file, or
        // somebody has to store what the new one makes.
        if env::var_os("CI").is_none() && !asked_for("STRICT") {
            println!("SKIP: the stored figures are those of {before}, and this is {compiler}");
            println!("{}", complaints.join("\n"));
            return Ok(());
        }
        complaints.push(format!("the compiler went from {before} to {compiler}"));
    }
    complaints
        .push("If so it shall be: make bench-instructions UPDATE=1, in the same commit".to_owned());
    Err(complaints.join("\n"))
}

/// Whether the variable is set to 1.
fn asked_for(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| value == "1")
}

fn count(scenario: &'static Scenario) -> Figure {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let conversation = server.play(|peer| scenario.serve(peer));
    let socket = server.socket().display().to_string();
    let args = [CLIENT, scenario.name, &socket];
    let count = callgrind::count(directory.path(), COUNTED, &args) / REQUESTS;
    conversation.finished(scenario.name);
    println!("{:<20} {count} instructions", scenario.name);
    (scenario.name.to_owned(), count)
}

/// Its version, as it says itself.
fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let text = text.unwrap_or_default();
    text.strip_prefix("rustc ").unwrap_or("unknown").to_owned()
}
