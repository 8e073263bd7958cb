// SPDX-License-Identifier: BSD-3-Clause
//! What the user asked for, all of it by the environment, which is what make and cargo pass on.

use std::env;
use std::fs::canonicalize;
use std::path::PathBuf;
use std::time::Duration;

/// How to measure.
pub struct Settings {
    /// Only a part of what the targets need, in two minutes.
    pub quick: bool,
    /// Parts of names; a workload is run if one of them is in its name, or if there are none.
    pub only: Vec<String>,
    /// How often each contender has its turn.
    pub rounds: usize,
    /// How long a turn is.
    pub turn: Duration,
    /// Builds of our plugin.
    pub ours: Vec<PathBuf>,
    /// Where the results go.
    pub out: PathBuf,
}

impl Settings {
    /// Reads the environment; `built` is the plugin that was built with this program.
    pub fn from_environment(built: impl FnOnce() -> PathBuf) -> Result<Self, String> {
        let quick = !matches!(text("QUICK").as_str(), "" | "0");
        let rounds = number("ROUNDS", 1.0, if quick { 3.0 } else { 9.0 })?;
        let seconds = number("SECS", 0.1, if quick { 0.4 } else { 0.8 })?;
        let ours = match list("OURS") {
            none if none.is_empty() => vec![built()],
            files => files
                .iter()
                .map(|file| canonicalize(file).map_err(|error| format!("OURS: {file}: {error}")))
                .collect::<Result<_, _>>()?,
        };
        let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        Ok(Self {
            quick,
            only: list("ONLY"),
            rounds: rounds as usize,
            turn: Duration::from_secs_f64(seconds),
            ours,
            out: PathBuf::from(target).join("bench"),
        })
    }
}

fn text(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// The words of a list with commas.
fn list(name: &str) -> Vec<String> {
    let text = text(name);
    let words = text.split(',').map(str::trim);
    words
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A number that is at least `least`, and not absurd.
fn number(name: &str, least: f64, default: f64) -> Result<f64, String> {
    let text = text(name);
    if text.is_empty() {
        return Ok(default);
    }
    match text.parse() {
        Ok(number) if (least..=1000.0).contains(&number) => Ok(number),
        _ => Err(format!(
            "{name}={text}: a number from {least} to 1000 is wanted"
        )),
    }
}
