// SPDX-License-Identifier: BSD-3-Clause
//! The pages of the manual that `make install` makes: whose name they bear, and that they are those that
//! `man` shows.

mod common;

use common::machine::{Machine, project};
use common::{need, need_all};

const PAGE: &str = "man/man1/nbdkit-nbd-plugin.1";

/// The programs that the scripts run.
fn can_install() -> bool {
    need_all(&["bash", "realpath", "pod2man"])
}

#[test]
fn pages_bear_the_name_of_the_plugin() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    machine.step("install", &[("NAME", "nbdrs")]);
    for (page, title, examples) in [
        (
            "plugin",
            ".TH NBDKIT-NBDRS-PLUGIN 1",
            ["nbdkit nbdrs {", "nbdkit -U - nbdrs command=qemu-nbd"],
        ),
        (
            "plugin-examples",
            ".TH NBDKIT-NBDRS-PLUGIN-EXAMPLES 1",
            [
                "nbdkit -U - nbdrs socket=old.sock",
                "--filter=partition nbdrs partition=2",
            ],
        ),
    ] {
        let text = machine.read(&format!("man/man1/nbdkit-nbdrs-{page}.1"));
        // The words of roff's source: hyphens in it may be escaped.
        let text = text.replace(r"\-", "-");
        let nameless: Vec<_> = text
            .lines()
            .filter(|line| {
                line.contains("nbdkit-nbd-plugin")
                    || line.contains("nbdkit nbd ")
                    || line.contains(" nbd ")
                        && (line.contains("socket=") || line.contains("nbdkit -"))
            })
            .collect();
        assert_eq!(nameless, [""; 0]);
        assert!(text.contains(title), "{page}");
        for example in examples {
            assert!(text.contains(example), "{page}: {example}");
        }
    }
    let page = machine.read("man/man1/nbdkit-nbdrs-plugin.1");
    let page = page.replace(r"\-", "-");
    assert!(page.contains("-D nbd.verbose=1"), "the flag keeps its name");
}

/// There is one page of it, whatever the plugin is called: it speaks of a name that there is.
#[test]
fn the_page_of_nbdctl_has_examples_of_a_plugin_that_is_there() {
    if !can_install() {
        return;
    }
    let machine = Machine::new();
    let example = |name: &str| {
        let page = machine.read("man/man1/nbdkit-nbdctl.1").replace(r"\-", "-");
        page.contains(&format!(" {name} socket="))
            && page.contains(&format!("nbdkit-{name}-plugin"))
    };
    machine.install();
    assert!(example("nbd"));
    machine.step("install", &[("NAME", "nbdrs")]);
    assert!(example("nbdrs"));
    machine.step("uninstall", &[("NAME", "nbdrs")]);
    assert!(example("nbd"));
    machine.uninstall();
    assert_eq!(machine.files("man"), [""; 0]);
}

/// What man would show in the place of ours is set aside like everything else.
#[test]
fn compressed_page_of_somebody_else_comes_back() {
    if !can_install() || !need("dpkg-divert") {
        return;
    }
    let machine = Machine::with_package("usr/lib");
    std::fs::create_dir_all(machine.path("man/man1")).expect("directory");
    let theirs = format!("{PAGE}.gz");
    machine.write(&theirs, "compressed");
    // One that belongs to no package, then one that does.
    for packaged in [false, true] {
        if packaged {
            let list = machine.read("dpkg/info/nbdkit.list");
            let page = machine.path(&theirs);
            machine.write(
                "dpkg/info/nbdkit.list",
                &format!("{list}{}\n", page.display()),
            );
        }
        for _ in 0..2 {
            machine.install();
            assert!(!machine.path(&theirs).exists(), "man would show it");
            assert_eq!(machine.read(&format!("{theirs}.distrib")), "compressed");
            assert!(machine.path(PAGE).exists());
        }
        for _ in 0..2 {
            machine.uninstall();
            assert_eq!(
                machine.files("man"),
                ["man1/nbdkit-nbd-plugin.1.gz: compressed"]
            );
        }
        assert_eq!(machine.read("dpkg/diversions"), "");
    }
}

/// A package of ours has taken the place of the page: that is left as it is, and nothing else is changed.
#[test]
fn compressed_page_that_a_package_has_diverted_stays_its() {
    if !can_install() || !need("dpkg-divert") {
        return;
    }
    let machine = Machine::new();
    std::fs::create_dir_all(machine.path("man/man1")).expect("directory");
    let page = format!("{PAGE}.gz");
    machine.write(&page, "ours, of a package");
    let place = machine.path(&page);
    let diversion = format!(
        "{0}\n{0}.distrib\nnbdkit-plugin-nbd-rust\n",
        place.display()
    );
    machine.write("dpkg/diversions", &diversion);
    let complaint = machine.refused(&mut machine.script(project(), "install"));
    assert!(
        complaint.contains("the package nbdkit-plugin-nbd-rust has taken the place of "),
        "{complaint}"
    );
    assert_eq!(machine.files("usr"), [""; 0]);
    assert_eq!(machine.read(&page), "ours, of a package");
}
