// SPDX-License-Identifier: BSD-3-Clause
//! What lies beside the plugin in contrib/ fits it: the units of systemd start a forwarder as systemd would
//! start it, and the image is made of files that there are.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::clients::LIMIT;
use common::machine::Machine;
use common::process::{Guarded, eventually, run, run_ok};
use common::{manual, need_all, plugin};

const SERVICE: &str = "contrib/systemd/nbdkit-nbd@.service";
const SOCKET: &str = "contrib/systemd/nbdkit-nbd@.socket";

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The value of a key of a unit; of several lines the last.
fn value(unit: &str, key: &str) -> String {
    let text = manual::file(unit);
    let last = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    last.unwrap_or_else(|| panic!("{unit} has no {key}="))
        .to_owned()
}

/// `NAME=words` on each line, as EnvironmentFile= reads what has no quotes.
fn environment(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, words)| (name.to_owned(), words.to_owned()))
        .collect()
}

/// What systemd makes of ExecStart= with the variables of a file: `$NAME` is as many words as it has.
fn command_line(file: &str) -> Vec<String> {
    let mut variables = environment(&value(SERVICE, "Environment"));
    variables.extend(environment(file));
    let line = value(SERVICE, "ExecStart");
    line.split(' ')
        .flat_map(|word| match word.strip_prefix('$') {
            Some(name) => variables[name].split_whitespace().collect(),
            None => vec![word],
        })
        .map(str::to_owned)
        .collect()
}

/// The lines that contrib/README.md has for such a file.
fn file_of_the_readme() -> String {
    let readme = manual::file("contrib/README.md");
    let blocks = readme.split("```\n").skip(1).step_by(2);
    let mut files = blocks.filter(|block| block.starts_with("SERVER="));
    files.next().expect("an example of the file").to_owned()
}

/// A server of 3 MiB on this socket.
fn server(socket: &Path) -> Guarded {
    let server = Guarded::spawn(
        Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(socket)
            .args(["memory", "3M"]),
    );
    eventually("the server listens", LIMIT, || {
        socket.exists().then_some(())
    });
    server
}

/// Starts the service as systemd does, with this file, and returns the size that a client sees.
/// `UPSTREAM` in the file stands for the socket of a server.
fn size_through_service(file: &str) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = directory.path().join("upstream.sock");
    let _server = server(&upstream);
    let mut words = command_line(&file.replace("UPSTREAM", &upstream.display().to_string()));
    for word in &mut words {
        if word == "nbd" {
            *word = plugin().display().to_string();
        }
    }
    let socket = directory.path().join("front.sock");
    let _forwarder = Guarded::spawn(
        Command::new("systemd-socket-activate")
            .arg("-l")
            .arg(&socket)
            .args(words),
    );
    eventually("there is a socket", LIMIT, || socket.exists().then_some(()));
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    run_ok(Command::new("nbdinfo").args(["--size", &uri]), LIMIT)
}

#[test]
fn units_are_in_order() {
    if !need_all(&["systemd-analyze", "nbdkit"]) {
        return;
    }
    let output = run(
        Command::new("systemd-analyze")
            .args(["verify", "--man=no", SOCKET, SERVICE])
            .current_dir(project()),
        LIMIT,
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn service_forwards_what_its_file_says() {
    if !need_all(&["systemd-socket-activate", "nbdkit", "nbdinfo"]) {
        return;
    }
    assert_eq!(
        size_through_service("SERVER=socket=UPSTREAM\n"),
        "3145728\n"
    );
    // As the README has it, with another server.
    let file = file_of_the_readme().replace("/run/storage.sock", "UPSTREAM");
    assert!(file.contains("UPSTREAM"), "{file}");
    assert_eq!(size_through_service(&file), "3145728\n");
}

#[test]
fn pages_speak_of_these_units() {
    let listens = value(SOCKET, "ListenStream").replace("%i", "disk");
    let reads = value(SERVICE, "EnvironmentFile").replace("%i", "disk");
    for page in ["nbdkit-nbd-plugin-examples.pod", "contrib/README.md"] {
        let text = manual::file(page);
        for words in [&listens, &reads, "nbdkit-nbd@disk.socket", "SERVER="] {
            assert!(text.contains(words), "{page}: {words}");
        }
    }
}

/// What the image copies from the source.
fn copied() -> Vec<PathBuf> {
    let text = manual::file("contrib/Containerfile");
    let copies = text.lines().filter_map(|line| line.strip_prefix("COPY "));
    copies
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| {
            let (sources, _) = line.rsplit_once(' ').expect("a destination");
            sources.split(' ').map(PathBuf::from).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn image_is_built_of_all_that_is_needed() {
    if !need_all(&["cargo", "bash", "realpath", "pod2man"]) {
        return;
    }
    let copied = copied();
    assert!(copied.len() > 8, "{copied:?}");
    let directory = tempfile::tempdir().expect("temporary directory");
    run_ok(
        Command::new("cp")
            .arg("-r")
            .args(copied)
            .arg(directory.path())
            .current_dir(project()),
        LIMIT,
    );
    // Reads the manifest, the lock file, and whether each target's file is there.
    let arguments = "metadata --locked --offline --no-deps --format-version=1";
    run_ok(
        Command::new("cargo")
            .args(arguments.split(' '))
            .current_dir(directory.path()),
        LIMIT,
    );
    assert!(directory.path().join("scripts/deps.sh").is_file());
    let machine = Machine::new();
    run_ok(&mut machine.script(directory.path(), "install"), LIMIT);
    assert_eq!(machine.files("man").len(), 3, "a page for each of them");
}
