// SPDX-License-Identifier: BSD-3-Clause
//! The manual as a document: its parts are where readers of nbdkit's pages look for them, every
//! parameter says what its default is, and it can be read in a browser.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::clients::LIMIT;
use common::process::{run, run_ok};
use common::{manual, need, need_all};

/// The order of the sections in nbdkit's own pages, those that are ours alone behind PARAMETERS.
const SECTIONS: [&str; 18] = [
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "EXAMPLES",
    "PARAMETERS",
    "URIS",
    "TLS",
    "SHARED CONNECTIONS AND RETRYING",
    "TIME LIMITS",
    "OTHER LIMITS",
    "DIFFERENCES",
    "ERRORS",
    "DUMP PLUGIN OUTPUT",
    "DEBUG FLAGS",
    "FILES",
    "VERSION",
    "SEE ALSO",
    "AUTHORS",
];

/// The pages, by their last word.
const PAGES: [&str; 3] = ["plugin", "plugin-examples", "nbdctl"];

/// What a page is called, where the plugin is called `name`.
fn page_name(name: &str, page: &str) -> String {
    match page {
        "nbdctl" => "nbdkit-nbdctl".to_owned(),
        page => format!("nbdkit-{name}-{page}"),
    }
}

fn headings(text: &str, command: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix(command))
        .map(str::to_owned)
        .collect()
}

#[test]
fn sections_are_in_the_order_of_nbdkits_pages() {
    let there = headings(&manual::section(None), "=head1 ");
    let mut expected = SECTIONS.iter();
    for section in &there {
        // A chapter of its own may come in between; COPYRIGHT ends every page.
        if SECTIONS.contains(&section.as_str()) {
            assert_eq!(expected.next(), Some(&section.as_str()), "{there:?}");
        }
    }
    assert_eq!(expected.next(), None, "{there:?}");
    assert_eq!(there.last().map(String::as_str), Some("COPYRIGHT"));
}

#[test]
fn optional_parameters_tell_their_default() {
    // Where the server is has none, and what belongs to it has none either.
    let none = [
        "[uri=]URI",
        "socket=SOCKNAME",
        "hostname=HOST",
        "vsock=CID",
        "command=COMMAND",
        "arg=ARG",
        "socket-fd=FD",
    ];
    let text = manual::section(Some("PARAMETERS"));
    let mut waiting: Vec<String> = Vec::new();
    let mut told = false;
    let mut untold = Vec::new();
    for paragraph in text.split("\n\n").chain(["=item end"]) {
        let begins = paragraph.starts_with("=item B<") || paragraph.starts_with("=item [B<");
        let ends = paragraph.starts_with("=head2") || paragraph == "=item end";
        if (begins && told) || ends {
            if !told {
                untold.append(&mut waiting);
            }
            waiting.clear();
            told = false;
        }
        if begins {
            waiting.extend(manual::items(paragraph));
        }
        told |= ["default", "Without "]
            .iter()
            .any(|word| paragraph.contains(word));
    }
    untold.retain(|item| !none.contains(&item.as_str()));
    assert_eq!(untold, [""; 0]);
}

#[test]
fn pages_refer_to_what_is_there() {
    for page in PAGES {
        let text = manual::file(&format!("{}.pod", page_name("nbd", page)));
        for link in text.split("L<").skip(1) {
            let link = link.split('>').next().expect("always a first part");
            let link = link.replace('\n', " ");
            let Some((name, section)) = link.split_once('/').filter(|_| !link.contains("://"))
            else {
                continue;
            };
            let other = match name.trim_end_matches("(1)") {
                "" => text.clone(),
                name => manual::file(&format!("{name}.pod")),
            };
            let there: BTreeSet<_> = [headings(&other, "=head1 "), headings(&other, "=head2 ")]
                .concat()
                .into_iter()
                .collect();
            assert!(there.contains(section), "{page}: {link}");
        }
    }
}

#[test]
fn pages_are_flawless_pod() {
    if !need("podchecker") {
        return;
    }
    for page in PAGES {
        let file = format!("{}.pod", page_name("nbd", page));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        run_ok(
            Command::new("podchecker")
                .args(["-warnings", "-warnings"])
                .arg(path),
            LIMIT,
        );
    }
}

/// What `scripts/man.sh` makes for browsers of a page, in a directory of the caller's.
fn html(directory: &Path, name: &str, page: &str) -> String {
    let file: PathBuf = directory.join(format!("{}.html", page_name(name, page)));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/man.sh");
    let output = run(Command::new(script).arg(name).arg(&file).arg(page), LIMIT);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    std::fs::read_to_string(file).expect("a page")
}

#[test]
fn browsers_get_all_pages_and_all_their_links() {
    if !need_all(&["bash", "perl"]) {
        return;
    }
    for name in ["nbd", "nbdrs"] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let pages = PAGES.map(|page| (page, html(directory.path(), name, page)));
        let own = |page: &str| format!("{}.html", page_name(name, page));
        for (page, text) in &pages {
            assert!(text.contains(&format!("<title>{}</title>", page_name(name, page))));
            assert!(!text.contains("POD ERRORS"), "{page}");
            assert!(text.contains("</html>"), "{page} is whole");
            let links = text.split("href=\"").skip(1);
            for link in links.filter_map(|rest| rest.split('"').next()) {
                if link.starts_with("https://") {
                    continue;
                }
                let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = pages
                    .iter()
                    .find(|(other, _)| file == own(other) || (file.is_empty() && other == page));
                let (_, target) = target.unwrap_or_else(|| panic!("{page}: {link}"));
                let id = format!("id=\"{anchor}\"");
                assert!(anchor.is_empty() || target.contains(&id), "{page}: {link}");
            }
        }
    }
}

/// Words between backquotes that begin like a path in the project, as far as the first blank.
fn paths(text: &str) -> Vec<String> {
    const ROOMS: [&str; 7] = [
        "src/", "tests/", "scripts/", "docs/", "contrib/", "benches/", ".ci/",
    ];
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(|quoted| quoted.split(' ').next().unwrap_or_default())
        .filter(|word| ROOMS.iter().any(|room| word.starts_with(room)))
        .map(|word| word.trim_end_matches('/').to_owned())
        .collect()
}

#[test]
fn documents_name_files_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    for document in [
        "README.md",
        "CONTRIBUTING.md",
        "contrib/README.md",
        "docs/scaling.md",
        "docs/spec.md",
    ] {
        for path in paths(&manual::file(document)) {
            let there = match path.split_once('*') {
                None => root.join(&path).exists(),
                // A family of files, in one directory.
                Some((first, last)) => {
                    let (directory, first) = first.rsplit_once('/').expect("a directory");
                    let mut entries = std::fs::read_dir(root.join(directory)).expect("list");
                    entries.any(|entry| {
                        let name = entry.expect("entry").file_name();
                        let name = name.to_string_lossy();
                        name.starts_with(first) && name.ends_with(last)
                    })
                }
            };
            assert!(there, "{document}: {path}");
            named += 1;
        }
    }
    assert!(named > 50, "{named}");
}
