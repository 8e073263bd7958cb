// SPDX-License-Identifier: BSD-3-Clause
//! `make install` and `make uninstall` touch nothing that is not ours, and leave the machine as it was.
//!
//! Every test has a tree of directories and a dpkg database of its own: tests/common/machine.rs.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::clients::LIMIT;
use common::machine::{BUILT, DISTRIBUTED, Machine, PACKAGED, PLUGIN, project};
use common::process::run_ok;
use common::{need, need_all, plugin};

/// The programs that the scripts run, for a manual page as well.
fn can_install() -> bool {
    need_all(&["bash", "realpath", "pod2man"])
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    metadata.permissions().mode() & 0o7777
}

/// Installs twice and uninstalls twice. The plugin that was there is the same file afterwards, and there
/// is nothing else. `divert` says whether dpkg has to know meanwhile.
fn comes_and_goes(machine: &Machine, plugin_dir: &str, divert: bool) {
    let file = format!("usr/lib/{PLUGIN}");
    let before = fs::metadata(machine.path(&file)).expect("foreign plugin");
    let variables = [("PLUGINDIR", machine.path(plugin_dir))];
    for _ in 0..2 {
        machine.step("install", &variables);
        assert_eq!(machine.read(&file), BUILT);
        assert_eq!(machine.read(&format!("{file}.distrib")), DISTRIBUTED);
        assert_eq!(!machine.read("dpkg/diversions").is_empty(), divert);
    }
    for _ in 0..2 {
        machine.step("uninstall", &variables);
        assert_eq!(
            machine.files("usr"),
            [format!("lib/{PLUGIN}: {DISTRIBUTED}")]
        );
        assert_eq!(machine.read("dpkg/diversions"), "");
        assert_eq!(machine.files("man"), [""; 0]);
    }
    let after = fs::metadata(machine.path(&file)).expect("foreign plugin");
    assert_eq!(
        (after.ino(), after.mode(), after.mtime_nsec()),
        (before.ino(), before.mode(), before.mtime_nsec()),
    );
}

#[test]
fn foreign_plugin_that_no_package_has_comes_back() {
    if can_install() {
        comes_and_goes(&Machine::with_foreign_plugin(), "usr/lib", false);
    }
}

#[test]
fn plugin_of_a_package_is_diverted_and_comes_back() {
    if can_install() && need("dpkg-divert") {
        comes_and_goes(&Machine::with_package("usr/lib"), "usr/lib", true);
    }
}

#[test]
fn other_name_of_a_merged_directory_makes_no_difference() {
    if can_install() && need("dpkg-divert") {
        comes_and_goes(&Machine::with_package("usr/lib"), "lib", true);
        comes_and_goes(&Machine::with_package("lib"), "usr/lib", true);
        comes_and_goes(&Machine::with_package("lib"), "lib", true);
    }
}

#[test]
fn uninstall_without_an_install_removes_nothing() {
    if !can_install() || !need("dpkg-divert") {
        return;
    }
    for machine in [
        Machine::with_foreign_plugin(),
        Machine::with_package("usr/lib"),
    ] {
        let said = machine.uninstall();
        assert!(said.contains("left alone, as it is not ours: "), "{said}");
        assert_eq!(
            machine.files("usr"),
            [format!("lib/{PLUGIN}: {DISTRIBUTED}")]
        );
    }
}

#[test]
fn name_of_its_own_leaves_the_plain_one_alone() {
    if !can_install() || !need("dpkg-divert") {
        return;
    }
    let machine = Machine::with_package("usr/lib");
    let name = [("NAME", "nbdrs")];
    let plain = format!("lib/{PLUGIN}: {DISTRIBUTED}");
    let named = format!("lib/nbdkit-nbdrs-plugin.so: {BUILT}");

    machine.step("install", &name);
    assert_eq!(machine.files("usr"), [plain.clone(), named.clone()]);
    assert_eq!(
        machine.files("man"),
        [
            "man1/nbdkit-nbdctl.1",
            "man1/nbdkit-nbdrs-plugin-examples.1",
            "man1/nbdkit-nbdrs-plugin.1"
        ]
    );
    assert_eq!(
        machine.files("programs"),
        [format!("nbdkit-nbdctl: {BUILT}")]
    );
    machine.uninstall();
    assert_eq!(machine.files("usr"), [plain.clone(), named]);
    machine.step("uninstall", &name);
    assert_eq!(machine.files("usr"), [plain]);
    assert_eq!(machine.files("man"), [""; 0]);
    assert_eq!(machine.files("programs"), [""; 0]);
    assert_eq!(machine.read("dpkg/diversions"), "");
}

/// With two names of the plugin there is one program for both.
#[test]
fn nbdctl_stays_while_there_is_a_plugin_of_ours() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    machine.write("target/release/nbdkit-nbdctl", "somebody's");
    let complaint = machine.refused(&mut machine.script(project(), "install"));
    assert!(complaint.contains("is not this plugin"), "{complaint}");
    machine.write("target/release/nbdkit-nbdctl", BUILT);
    machine.step("install", &[("NAME", "nbdrs")]);
    machine.install();
    machine.uninstall();
    assert_eq!(
        machine.files("programs"),
        [format!("nbdkit-nbdctl: {BUILT}")]
    );
    machine.step("uninstall", &[("NAME", "nbdrs")]);
    assert_eq!(machine.files("programs"), [""; 0]);
    assert_eq!(machine.files("man"), [""; 0]);
    // What is not ours is set aside, and comes back.
    machine.write("programs/nbdkit-nbdctl", "somebody's");
    machine.install();
    assert_eq!(machine.read("programs/nbdkit-nbdctl"), BUILT);
    machine.uninstall();
    assert_eq!(machine.files("programs"), ["nbdkit-nbdctl: somebody's"]);
}

#[test]
fn destdir_may_be_relative_and_have_spaces() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    let variables = [
        ("DESTDIR", "a stage"),
        ("PLUGINDIR", "/opt/some plugins"),
        ("MANDIR", "/opt/man"),
        ("BINDIR", "/opt/bin"),
    ];
    machine.step("install", &variables);
    assert_eq!(
        machine.files("a stage"),
        [
            format!("opt/bin/nbdkit-nbdctl: {BUILT}"),
            "opt/man/man1/nbdkit-nbd-plugin-examples.1".to_owned(),
            "opt/man/man1/nbdkit-nbd-plugin.1".to_owned(),
            "opt/man/man1/nbdkit-nbdctl.1".to_owned(),
            format!("opt/some plugins/{PLUGIN}: {BUILT}")
        ]
    );
    machine.step("uninstall", &variables);
    assert_eq!(machine.files("a stage"), [""; 0]);
}

#[test]
fn prefix_moves_both_in_either_spelling() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    for variable in ["PREFIX", "prefix"] {
        let prefix = machine.path(&format!("{variable} here"));
        let variables = [
            (variable, prefix.as_os_str()),
            ("PLUGINDIR", OsStr::new("")),
            ("MANDIR", OsStr::new("")),
            ("BINDIR", OsStr::new("")),
        ];
        machine.step("install", &variables);
        let files = machine.files(&format!("{variable} here"));
        // Below lib, or lib and a name of the architecture, as nbdkit's own directory is.
        assert!(
            matches!(files.as_slice(), [program, so, examples, page, nbdctl]
                if *program == format!("bin/nbdkit-nbdctl: {BUILT}")
                && nbdctl == "share/man/man1/nbdkit-nbdctl.1"
                && so.starts_with("lib") && so.ends_with(&format!("/nbdkit/plugins/{PLUGIN}: {BUILT}"))
                && examples == "share/man/man1/nbdkit-nbd-plugin-examples.1"
                && page == "share/man/man1/nbdkit-nbd-plugin.1"),
            "{files:?}"
        );
        machine.step("uninstall", &variables);
        assert_eq!(machine.files(&format!("{variable} here")), [""; 0]);
    }
}

#[test]
fn spellings_that_contradict_each_other_are_refused() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    let complaint = machine.refused(
        machine
            .script(project(), "install")
            .env("plugindir", "/opt"),
    );
    assert!(complaint.contains("contradict each other"), "{complaint}");
    assert_eq!(machine.files("usr"), [""; 0]);
}

#[test]
fn link_that_leads_out_of_destdir_is_refused() {
    if !can_install() {
        return;
    }
    let machine = Machine::with_foreign_plugin();
    fs::create_dir(machine.path("stage")).expect("directory");
    symlink(machine.path("usr"), machine.path("stage/usr")).expect("link");
    let complaint = machine.refused(
        machine
            .script(project(), "install")
            .env("DESTDIR", machine.path("stage"))
            .env("PLUGINDIR", "/usr/lib"),
    );
    assert!(complaint.contains("leads out of DESTDIR"), "{complaint}");
    assert_eq!(
        machine.files("usr"),
        [format!("lib/{PLUGIN}: {DISTRIBUTED}")]
    );
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    let mut command = machine.script(project(), "install");
    command.env("PLUGINDIR", machine.path("usr/lib/a/b"));
    let private = || {
        // SAFETY: umask takes a plain number, cannot fail, and is async-signal-safe.
        unsafe { libc::umask(0o077) };
        Ok(())
    };
    // SAFETY: the closure only makes this system call.
    unsafe { command.pre_exec(private) };
    run_ok(&mut command, LIMIT);
    let modes = [
        ("usr/lib/a", 0o755),
        ("usr/lib/a/b", 0o755),
        ("man/man1", 0o755),
        ("usr/lib/a/b/nbdkit-nbd-plugin.so", 0o644),
        ("man/man1/nbdkit-nbd-plugin.1", 0o644),
        ("man/man1/nbdkit-nbd-plugin-examples.1", 0o644),
        ("programs/nbdkit-nbdctl", 0o755),
        ("man/man1/nbdkit-nbdctl.1", 0o644),
    ];
    for (path, expected) in modes {
        assert_eq!(mode(&machine.path(path)), expected, "{path}");
    }
}

#[test]
fn file_in_use_is_replaced_and_not_written_over() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    machine.install();
    let mut in_use = fs::File::open(machine.path("usr/lib").join(PLUGIN)).expect("installed");
    machine.write(
        "target/release/libnbdkit_nbd_plugin.so",
        "nbd_client=rust/second",
    );
    machine.install();
    let mut content = String::new();
    in_use.read_to_string(&mut content).expect("still there");
    assert_eq!(content, BUILT);
    assert_eq!(
        machine.files("usr"),
        [format!("lib/{PLUGIN}: nbd_client=rust/second")]
    );
}

#[test]
fn link_of_somebody_else_comes_back_as_a_link() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    let link = machine.path("usr/lib").join(PLUGIN);
    // To a file with our mark: whoever made the link wants it back all the same.
    symlink("../../target/release/libnbdkit_nbd_plugin.so", &link).expect("link");
    machine.install();
    assert!(!link.is_symlink());
    machine.uninstall();
    assert!(link.is_symlink());
    assert_eq!(
        machine.read("target/release/libnbdkit_nbd_plugin.so"),
        BUILT
    );
}

#[test]
fn what_was_set_aside_before_is_kept() {
    if !can_install() {
        return;
    }
    // An upgrade that knows no diversions puts a new file where ours was.
    let machine = Machine::with_foreign_plugin();
    machine.install();
    machine.write(&format!("usr/lib/{PLUGIN}"), "a newer plugin in C");
    machine.install();
    assert_eq!(
        machine.files("usr"),
        [
            format!("lib/{PLUGIN}.distrib.1: a newer plugin in C"),
            format!("lib/{PLUGIN}.distrib: {DISTRIBUTED}"),
            format!("lib/{PLUGIN}: {BUILT}"),
        ]
    );
    machine.uninstall();
    machine.uninstall();
    assert_eq!(
        machine.files("usr"),
        [
            format!("lib/{PLUGIN}.distrib: {DISTRIBUTED}"),
            format!("lib/{PLUGIN}: a newer plugin in C"),
        ]
    );
}

#[test]
fn package_that_has_this_very_plugin_keeps_it() {
    if !can_install() || !need("dpkg-divert") {
        return;
    }
    let machine = Machine::with_package("usr/lib");
    machine.write(&format!("usr/lib/{PLUGIN}"), PACKAGED);
    machine.uninstall();
    machine.install();
    assert_eq!(machine.read(&format!("usr/lib/{PLUGIN}")), BUILT);
    machine.uninstall();
    machine.uninstall();
    assert_eq!(machine.files("usr"), [format!("lib/{PLUGIN}: {PACKAGED}")]);
    assert_eq!(machine.read("dpkg/diversions"), "");
}

#[test]
fn place_that_a_package_of_ours_has_taken_stays_its() {
    if !can_install() || !need("dpkg-divert") {
        return;
    }
    let machine = Machine::with_package("usr/lib");
    let file = machine.path("usr/lib").join(PLUGIN);
    fs::rename(&file, machine.path(&format!("usr/lib/{PLUGIN}.distrib"))).expect("rename");
    machine.write(&format!("usr/lib/{PLUGIN}"), PACKAGED);
    let diversion = format!("{0}\n{0}.distrib\nnbdkit-plugin-nbd-rust\n", file.display());
    machine.write("dpkg/diversions", &diversion);

    let complaint = machine.refused(&mut machine.script(project(), "install"));
    assert!(
        complaint.contains("the package nbdkit-plugin-nbd-rust has taken the place of "),
        "{complaint}"
    );
    let said = machine.uninstall();
    assert!(said.contains("left alone, as it is not ours: "), "{said}");
    assert_eq!(
        machine.files("usr"),
        [
            format!("lib/{PLUGIN}.distrib: {DISTRIBUTED}"),
            format!("lib/{PLUGIN}: {PACKAGED}"),
        ]
    );
    assert_eq!(machine.read("dpkg/diversions"), diversion);
    // Under a name of its own there is nothing in the way, and the package needs none of our programs.
    machine.step("install", &[("NAME", "nbdrs")]);
    machine.step("uninstall", &[("NAME", "nbdrs")]);
    assert_eq!(machine.files("programs"), [""; 0]);
}

#[test]
fn settings_as_arguments_are_refused() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    let complaint = machine.refused(machine.script(project(), "install").arg("NAME=nbdrs"));
    assert!(complaint.contains("usage: "), "{complaint}");
    assert_eq!(machine.files("usr"), [""; 0]);
}

#[test]
fn diversion_ends_with_the_package_gone_and_with_our_file_gone() {
    if !can_install() || !need("dpkg-divert") {
        return;
    }
    // nbdkit was removed while the diversion stood.
    let machine = Machine::with_package("lib");
    machine.install();
    machine.write("dpkg/status", "");
    fs::remove_file(machine.path("dpkg/info/nbdkit.list")).expect("list");
    fs::remove_file(machine.path("usr/lib").join(format!("{PLUGIN}.distrib"))).expect("file");
    machine.uninstall();
    assert_eq!(machine.files("usr"), [""; 0]);
    assert_eq!(machine.read("dpkg/diversions"), "");

    // Somebody removed ours by hand, or an install was killed between its two steps.
    let machine = Machine::with_package("usr/lib");
    machine.install();
    fs::remove_file(machine.path("usr/lib").join(PLUGIN)).expect("ours");
    machine.uninstall();
    assert_eq!(
        machine.files("usr"),
        [format!("lib/{PLUGIN}: {DISTRIBUTED}")]
    );
    assert_eq!(machine.read("dpkg/diversions"), "");
}

#[test]
fn interrupted_install_has_changed_nothing() {
    if !can_install() {
        return;
    }
    let machine = Machine::with_foreign_plugin();
    fs::create_dir(machine.path("bin")).expect("directory");
    machine.write("bin/pod2man", "#!/bin/sh\nkill -TERM 0\n");
    let program = machine.path("bin/pod2man");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    let path = format!(
        "{}:{}",
        machine.path("bin").display(),
        std::env::var("PATH").expect("PATH")
    );
    machine.refused(machine.script(project(), "install").env("PATH", path));
    assert_eq!(
        machine.files("usr"),
        [format!("lib/{PLUGIN}: {DISTRIBUTED}")]
    );
    assert_eq!(machine.files("man"), [""; 0]);
}

#[test]
fn without_permission_nothing_is_changed() {
    if !can_install() {
        return;
    }
    let machine = Machine::with_foreign_plugin();
    // Root may write everywhere, so another user tries, who has to be able to read the scripts.
    let all_may_read = |path: PathBuf| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
    };
    all_may_read(machine.path(""));
    fs::create_dir_all(machine.path("project/scripts")).expect("directory");
    for file in [
        "scripts/install.sh",
        "scripts/man.sh",
        "Cargo.toml",
        "nbdkit-nbd-plugin.pod",
        "nbdkit-nbd-plugin-examples.pod",
        "nbdkit-nbdctl.pod",
    ] {
        let copy = machine.path("project").join(file);
        fs::copy(project().join(file), &copy).expect("copy");
        all_may_read(copy);
    }
    let man = machine.path("man");
    fs::create_dir(&man).expect("directory");
    fs::set_permissions(&man, fs::Permissions::from_mode(0o777)).expect("mode");
    fs::set_permissions(machine.path("usr/lib"), fs::Permissions::from_mode(0o555)).expect("mode");
    for step in ["install", "uninstall"] {
        let mut command = machine.script(&machine.path("project"), step);
        if are_we_root() {
            command.uid(65534).gid(65534);
        }
        let complaint = machine.refused(&mut command);
        assert!(complaint.contains("may not write to "), "{complaint}");
        assert!(complaint.contains("be root"), "{complaint}");
        assert_eq!(machine.files("man"), [""; 0], "{step}");
    }
    // So that the directory can be removed.
    fs::set_permissions(machine.path("usr/lib"), fs::Permissions::from_mode(0o755)).expect("mode");
    assert_eq!(
        machine.files("usr"),
        [format!("lib/{PLUGIN}: {DISTRIBUTED}")]
    );
}

fn are_we_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn what_was_not_built_or_is_not_ours_is_not_installed() {
    if !can_install() {
        return;
    }
    let machine = Machine::with_foreign_plugin();
    machine.write("target/release/libnbdkit_nbd_plugin.so", "something else");
    let complaint = machine.refused(&mut machine.script(project(), "install"));
    assert!(complaint.contains("is not this plugin"), "{complaint}");
    fs::remove_dir_all(machine.path("target")).expect("remove");
    let complaint = machine.refused(&mut machine.script(project(), "install"));
    assert!(complaint.contains("run 'make build' first"), "{complaint}");
    assert_eq!(
        machine.files("usr"),
        [format!("lib/{PLUGIN}: {DISTRIBUTED}")]
    );
}

#[test]
fn installed_plugin_is_one_that_nbdkit_loads_and_uninstall_knows() {
    if !can_install() || !need("nbdkit") {
        return;
    }
    let machine = Machine::new();
    let built = machine.path("target/release/libnbdkit_nbd_plugin.so");
    fs::copy(plugin(), built).expect("copy");
    machine.install();
    let installed = machine.path("usr/lib").join(PLUGIN);
    let dump = run_ok(
        Command::new("nbdkit").arg(&installed).arg("--dump-plugin"),
        LIMIT,
    );
    assert!(dump.contains("\nnbd_client=rust/"), "{dump}");
    machine.uninstall();
    assert_eq!(machine.files("usr"), [""; 0]);
    assert_eq!(machine.files("man"), [""; 0]);
}
