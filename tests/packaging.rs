// SPDX-License-Identifier: BSD-3-Clause
//! What `packaging/` says is what the project is, and Debian's maintainer scripts leave nothing behind.
//!
//! Building the packages and installing them in other systems takes minutes: `make check-packages`.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::clients::LIMIT;
use common::machine::project;
use common::need;
use common::process::run;

fn text(name: &str) -> String {
    let path = project().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands behind `key` at the start of a line, without quotes.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let line = line.unwrap_or_else(|| panic!("no line begins with {key:?}"));
    line.trim_matches(['"', ' '])
}

#[test]
fn versions_are_the_crates() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = text("packaging/debian/changelog");
    let latest = changelog.lines().next().expect("an entry");
    assert!(
        latest.starts_with(&format!("nbdkit-plugin-nbd-rust ({version}-")),
        "{latest}"
    );
    let spec = text("packaging/nbdkit-nbd-plugin-rust.spec");
    assert_eq!(value(&spec, "Version:"), version);
    let latest = spec.split_once("%changelog\n").expect("a changelog").1;
    let latest = latest.lines().next().expect("an entry");
    assert!(latest.contains(&format!(" - {version}-")), "{latest}");
}

#[test]
fn homes_are_the_crates() {
    let homepage = env!("CARGO_PKG_HOMEPAGE");
    let source = env!("CARGO_PKG_REPOSITORY");
    let control = text("packaging/debian/control");
    assert_eq!(value(&control, "Homepage:"), homepage);
    let copyright = text("packaging/debian/copyright.in");
    assert_eq!(value(&copyright, "Source:"), source);
    let spec = text("packaging/nbdkit-nbd-plugin-rust.spec");
    assert_eq!(value(&spec, "URL:"), homepage);
}

#[test]
fn oldest_compiler_is_the_same_everywhere() {
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    let control = text("packaging/debian/control");
    let spec = text("packaging/nbdkit-nbd-plugin-rust.spec");
    assert!(control.contains(&format!("rustc (>= {oldest}) | rustc-web (>= {oldest})")));
    assert!(spec.contains(&format!("rust >= {oldest}\n")));
    assert_eq!(value(&text("scripts/deps.sh"), "oldest_rust="), oldest);
}

#[test]
fn files_that_packages_list_are_there() {
    for file in text("packaging/debian/nbdkit-plugin-nbdrs.docs").lines() {
        assert!(project().join(file).is_file(), "{file}");
    }
    let rules = project().join("packaging/debian/rules");
    let mode = fs::metadata(rules).expect("rules").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "dpkg runs it");
}

#[test]
fn rust_of_rustup_that_is_too_old_is_left_to_rustup() {
    let tools = tempfile::tempdir().expect("temporary directory");
    for (name, said) in [
        ("cargo", "cargo 1.84.1 (66221abde 2024-11-19)"),
        ("rustc", "rustc 1.84.1 (e71f9a9a9 2025-01-27)"),
        ("rustup", "rustup 1.28.2"),
    ] {
        let tool = tools.path().join(name);
        fs::write(&tool, format!("#!/bin/sh\necho '{said}'\n")).expect("tool");
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("executable");
    }
    let path = std::env::var("PATH").expect("PATH");
    let mut command = Command::new(project().join("scripts/deps.sh"));
    command
        .arg("build")
        .env("PATH", format!("{}:{path}", tools.path().display()));
    let output = run(&mut command, LIMIT);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{complaint}");
    assert!(
        complaint.contains("1.85 or later: rustup update"),
        "{complaint}"
    );
}

// --- Debian's maintainer scripts ------------------------------------------------------------

const PAGE: &str = "usr/share/man/man1/nbdkit-nbd-plugin.1.gz";
const PLUGIN: &str = "usr/lib/some-linux/nbdkit/plugins/nbdkit-nbd-plugin.so";

/// A system below a directory, with nbdkit's two files and a dpkg that knows no package.
struct System {
    root: tempfile::TempDir,
}

impl System {
    fn new() -> Self {
        let system = Self {
            root: tempfile::tempdir().expect("temporary directory"),
        };
        for file in [
            PLUGIN,
            PAGE,
            "var/lib/dpkg/status",
            "var/lib/dpkg/diversions",
        ] {
            let path = system.path(file);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, "").expect("file");
        }
        fs::create_dir_all(system.path("var/lib/dpkg/info")).expect("directory");
        for file in [PLUGIN, PAGE] {
            fs::write(system.path(file), "nbdkit's").expect("file");
        }
        system
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    fn read(&self, below: &str) -> Option<String> {
        fs::read_to_string(self.path(below)).ok()
    }

    /// Runs one of the scripts as dpkg does, with what debhelper puts into it.
    fn script(&self, name: &str, args: &[&str]) -> Output {
        let script = text(&format!("packaging/debian/nbdkit-plugin-nbd-rust.{name}"))
            .replace("#DEB_HOST_MULTIARCH#", "some-linux");
        let file = self.path(name);
        fs::write(&file, script).expect("script");
        let mut command = Command::new("sh");
        command
            .arg(&file)
            .args(args)
            .env("DPKG_ROOT", self.root.path())
            .env("DPKG_ADMINDIR", self.path("var/lib/dpkg"));
        run(&mut command, LIMIT)
    }

    fn step(&self, name: &str, args: &[&str]) {
        let output = self.script(name, args);
        assert!(output.status.success(), "{name} {args:?}: {output:?}");
    }

    fn diversions(&self) -> String {
        self.read("var/lib/dpkg/diversions").expect("diversions")
    }

    /// nbdkit's files are where they were, and nothing is diverted.
    fn is_as_before(&self) {
        for file in [PLUGIN, PAGE] {
            assert_eq!(self.read(file).as_deref(), Some("nbdkit's"), "{file}");
            assert_eq!(self.read(&format!("{file}.distrib")), None, "{file}");
        }
        assert_eq!(self.diversions(), "");
    }

    fn is_set_aside(&self) {
        for file in [PLUGIN, PAGE] {
            let aside = self.read(&format!("{file}.distrib"));
            assert_eq!(aside.as_deref(), Some("nbdkit's"), "{file}");
        }
    }
}

fn unpack_ours(system: &System) {
    for file in [PLUGIN, PAGE] {
        assert_eq!(system.read(file), None, "nothing is in the way of ours");
        fs::write(system.path(file), "ours").expect("file");
    }
}

/// As dpkg does before it runs postrm.
fn remove_ours(system: &System) {
    for file in [PLUGIN, PAGE] {
        fs::remove_file(system.path(file)).expect("ours");
    }
}

#[test]
fn package_sets_aside_and_brings_back() {
    if !need("dpkg-divert") {
        return;
    }
    let system = System::new();
    system.step("preinst", &["install"]);
    system.is_set_aside();
    unpack_ours(&system);
    remove_ours(&system);
    system.step("postrm", &["remove"]);
    system.is_as_before();
    system.step("postrm", &["purge"]);
    system.is_as_before();
}

#[test]
fn upgrade_keeps_what_is_set_aside() {
    if !need("dpkg-divert") {
        return;
    }
    let system = System::new();
    system.step("preinst", &["install"]);
    unpack_ours(&system);
    // One that works, and one that fails: dpkg then runs the scripts of the old package.
    system.step("preinst", &["upgrade", "0.2.0-1", "0.3.0-1"]);
    system.step("postrm", &["upgrade", "0.3.0-1"]);
    system.step("preinst", &["upgrade", "0.3.0-1", "0.4.0-1"]);
    system.step("postrm", &["failed-upgrade", "0.3.0-1", "0.4.0-1"]);
    system.step("postrm", &["abort-upgrade", "0.3.0-1", "0.4.0-1"]);
    system.is_set_aside();
    for file in [PLUGIN, PAGE] {
        assert_eq!(system.read(file).as_deref(), Some("ours"), "{file}");
    }
}

#[test]
fn installation_that_fails_leaves_no_diversion() {
    if !need("dpkg-divert") {
        return;
    }
    let system = System::new();
    system.step("preinst", &["install"]);
    system.step("postrm", &["abort-install"]);
    system.is_as_before();
}

#[test]
fn package_leaves_alone_what_make_install_set_aside() {
    if !need("dpkg-divert") {
        return;
    }
    let refused = |by: &str, words: &str| {
        let system = System::new();
        let diversion = format!("/{PAGE}\n/{PAGE}.distrib\n{by}\n");
        fs::write(system.path("var/lib/dpkg/diversions"), &diversion).expect("diversions");
        let output = system.script("preinst", &["install"]);
        assert!(!output.status.success(), "{output:?}");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains(words), "{complaint}");
        system.step("postrm", &["abort-install"]);
        assert_eq!(system.diversions(), diversion);
        assert!(Path::new(&system.path(PLUGIN)).is_file());
    };
    refused(":", "run 'make uninstall' there");
    refused("another-package", "by the package another-package");
}
