// SPDX-License-Identifier: BSD-3-Clause
//! A machine to install on: a tree of directories and a dpkg database (`DPKG_ADMINDIR`) in a temporary
//! directory, so that the machine's own plugins and diversions are never touched.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::clients::LIMIT;
use super::process::{run, run_ok};

/// What nbdkit's own package has, and what `make build` makes: only the mark of ours matters.
pub const DISTRIBUTED: &str = "the plugin in C";
pub const BUILT: &str = "nbd_client=rust/first";
/// What a package of ours has.
pub const PACKAGED: &str = "nbd_client=rust/packaged";
pub const PLUGIN: &str = "nbdkit-nbd-plugin.so";

/// A machine to install on.
pub struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    /// With a build, an empty `usr/lib` that is also called `lib`, and a dpkg that knows no package.
    pub fn new() -> Self {
        let machine = Self {
            directory: tempfile::tempdir().expect("temporary directory"),
        };
        for directory in ["target/release", "dpkg/info", "dpkg/updates", "usr/lib"] {
            fs::create_dir_all(machine.path(directory)).expect("directory");
        }
        symlink("usr/lib", machine.path("lib")).expect("link");
        for file in ["dpkg/status", "dpkg/diversions"] {
            machine.write(file, "");
        }
        machine.write("target/release/libnbdkit_nbd_plugin.so", BUILT);
        machine.write("target/release/nbdkit-nbdctl", BUILT);
        machine
    }

    /// [`Machine::new`] with a foreign plugin that no package has.
    pub fn with_foreign_plugin() -> Self {
        let machine = Self::new();
        machine.write(&format!("usr/lib/{PLUGIN}"), DISTRIBUTED);
        machine
    }

    /// [`Machine::with_foreign_plugin`], and dpkg says that it is nbdkit's, in this directory.
    pub fn with_package(directory: &str) -> Self {
        let machine = Self::with_foreign_plugin();
        machine.write(
            "dpkg/status",
            "Package: nbdkit\nStatus: install ok installed\nMaintainer: nobody <nobody@localhost>\n\
             Architecture: all\nVersion: 1\nDescription: a package\n\n",
        );
        let file = machine.path(directory).join(PLUGIN);
        machine.write(
            "dpkg/info/nbdkit.list",
            &format!("/.\n{}\n", file.display()),
        );
        machine
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    pub fn write(&self, below: &str, content: &str) {
        let path = self.path(below);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    pub fn read(&self, below: &str) -> String {
        let path = self.path(below);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// `scripts/install.sh` with nothing in its environment that could lead it elsewhere.
    pub fn script(&self, project: &Path, step: &str) -> Command {
        let mut command = Command::new(project.join("scripts/install.sh"));
        for variable in [
            "PREFIX",
            "prefix",
            "plugindir",
            "mandir",
            "bindir",
            "NAME",
            "DESTDIR",
            "DPKG_ROOT",
        ] {
            command.env_remove(variable);
        }
        command
            .arg(step)
            .current_dir(self.directory.path())
            .env("DPKG_ADMINDIR", self.path("dpkg"))
            .env("CARGO_TARGET_DIR", self.path("target"))
            .env("PLUGINDIR", self.path("usr/lib"))
            .env("BINDIR", self.path("programs"))
            .env("MANDIR", self.path("man"));
        command
    }

    /// Runs a step that has to succeed, with these variables beside the usual ones; gives what it said.
    pub fn step<V: AsRef<OsStr>>(&self, step: &str, variables: &[(&str, V)]) -> String {
        let mut command = self.script(project(), step);
        for (variable, value) in variables {
            command.env(variable, value);
        }
        run_ok(&mut command, LIMIT)
    }

    pub fn install(&self) -> String {
        self.step("install", &[("NAME", "nbd")])
    }

    pub fn uninstall(&self) -> String {
        self.step("uninstall", &[("NAME", "nbd")])
    }

    /// Runs a step that has to fail; gives what it complained about.
    pub fn refused(&self, command: &mut Command) -> String {
        let output = run(command, LIMIT);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "no failure: {complaint}");
        complaint
    }

    /// The files below a directory, sorted, each with its content when that is short.
    pub fn files(&self, below: &str) -> Vec<String> {
        let root = self.path(below);
        let mut found = Vec::new();
        let mut left = vec![root.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten() {
                let path = entry.expect("entry").path();
                if path.is_dir() && !path.is_symlink() {
                    left.push(path);
                } else {
                    let name = path.strip_prefix(&root).expect("below").display();
                    let content = fs::read_to_string(&path).unwrap_or_default();
                    match content.len() {
                        0..100 => found.push(format!("{name}: {content}")),
                        _ => found.push(name.to_string()),
                    }
                }
            }
        }
        found.sort();
        found
    }
}

/// The tree of sources that this test belongs to.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
