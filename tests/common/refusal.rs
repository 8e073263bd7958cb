// SPDX-License-Identifier: BSD-3-Clause
//! nbdkit that refuses to start, and how it must say so.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::clients::LIMIT;
use super::plugin;
use super::process::{Guarded, run};

/// The three ways in which people start nbdkit.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// `nbdkit -f`
    Foreground,
    /// nbdkit goes to the background by itself.
    Daemon,
    /// `nbdkit --run COMMAND`
    Captive,
}

pub const MODES: [Mode; 3] = [Mode::Foreground, Mode::Daemon, Mode::Captive];

/// nbdkit with the plugin must refuse `args`; returns the one line that says why.
pub fn refusal(args: &[&str]) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    refusal_in(directory.path(), Mode::Captive, args)
}

/// [`refusal`], in a working directory and a way of starting. In captive mode the command must not run.
pub fn refusal_in(directory: &Path, mode: Mode, args: &[&str]) -> String {
    let (reason, all) = refusal_with(directory, mode, args, |_| ());
    // Without -v there is nothing else to say, least of all what Rust says when it panics.
    assert_eq!(all.lines().count(), 1, "{args:.60?}: {all:.2000}");
    reason
}

/// [`refusal_in`], with something done to the command before it runs. Returns the reason, and all of stderr,
/// which may hold what programs said that nbdkit had started.
pub fn refusal_with(
    directory: &Path,
    mode: Mode,
    args: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> (String, String) {
    let ran = directory.join("the-command-ran");
    let _ = fs::remove_file(&ran);
    let mut command = Command::new("nbdkit");
    command
        .current_dir(directory)
        .args(["-U", "front.sock", "-P", "front.pid"])
        .args(matches!(mode, Mode::Foreground).then_some("-f"))
        .arg(plugin())
        .args(args);
    if let Mode::Captive = mode {
        command.arg("--run").arg(format!("touch {}", ran.display()));
    }
    prepare(&mut command);
    let output = match mode {
        // A nbdkit that wrongly goes to the background is in the same process group.
        Mode::Daemon => run_and_end_daemon(&mut command),
        Mode::Foreground | Mode::Captive => run(&mut command, LIMIT),
    };
    assert!(!ran.exists(), "{mode:?} {args:?}: the command was run");
    one_error(args, &output)
}

fn run_and_end_daemon(command: &mut Command) -> Output {
    let mut process = Guarded::spawn(command);
    let status = process.wait_timeout(LIMIT);
    process.kill_group();
    Output {
        status: status.unwrap_or_else(|| panic!("no end: {command:?}\n{}", process.stderr())),
        stdout: process.stdout().into_bytes(),
        stderr: process.stderr().into_bytes(),
    }
}

/// nbdkit must have ended with status 1 after one line of explanation, which is returned with all of stderr.
fn one_error(args: &[&str], output: &Output) -> (String, String) {
    let all = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:.60?}: {all:.2000}");
    let errors: Vec<&str> = all
        .lines()
        .filter_map(|line| line.strip_prefix("nbdkit: error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{args:.60?}: one line: {all:.2000}");
    assert!(!all.contains("panicked"), "{args:.60?}: {all:.2000}");
    assert!(!all.contains("internal error"), "{args:.60?}: {all:.2000}");
    (errors[0].to_owned(), all)
}
