// SPDX-License-Identifier: BSD-3-Clause
//! Every example in the manual, the README and the other documents is run as it is printed, or stands in
//! a list with the reason why not.
//!
//! Examples are found by form: whoever writes a new one need not tell this test. What they share is one
//! directory for each document, so they can be typed one after another. `examples/listed.rs` has the
//! words that stand for something of the reader's, and what is not typed.

mod common;

#[path = "examples/blocks.rs"]
mod blocks;
#[path = "examples/desk.rs"]
mod desk;
#[path = "examples/listed.rs"]
mod listed;

use blocks::{Block, Kind};
use common::clients::program;
use common::{manual, need, need_all, test_name};
use desk::Desk;
use listed::{FAR_HOST, NOT_TYPED, SUBSTITUTIONS};

/// What the examples use beside a shell and its usual companions.
const PROGRAMS: [&str; 9] = [
    "bash", "nbdkit", "nbdinfo", "nbdcopy", "qemu-nbd", "qemu-img", "qemu-io", "openssl", "psktool",
];

fn is_listed(block: &Block) -> bool {
    NOT_TYPED
        .iter()
        .any(|(document, line, _)| (*document, *line) == (block.document, block.first_line()))
}

/// The commands of a document, those of one section together: what is set in one is used in the next.
fn sessions(document: &'static str) -> Vec<(String, String)> {
    let mut sessions: Vec<(String, String)> = Vec::new();
    for block in blocks::of(document) {
        if block.kind() != Kind::Commands || is_listed(&block) {
            continue;
        }
        match sessions.last_mut() {
            Some((section, commands)) if *section == block.section => {
                commands.push('\n');
                commands.push_str(&block.text);
            }
            _ => sessions.push((block.section, block.text)),
        }
    }
    sessions
}

/// Types a document. Returns how many sections it has that can be typed.
fn can_be_typed(document: &'static str) -> usize {
    if !need_all(&PROGRAMS) {
        return usize::MAX;
    }
    let mut desk = Desk::new();
    let sessions = sessions(document);
    for (section, commands) in &sessions {
        if commands.contains(FAR_HOST) && !desk.reach_far_host() {
            println!("SKIP: {}: {section}: needs sshd", test_name());
            continue;
        }
        desk.type_in(&format!("{document}: {section}"), commands);
    }
    sessions.len()
}

#[test]
fn manual_can_be_typed() {
    assert!(can_be_typed("nbdkit-nbd-plugin.pod") >= 2);
}

#[test]
fn page_of_examples_can_be_typed() {
    assert!(can_be_typed("nbdkit-nbd-plugin-examples.pod") >= 15);
}

#[test]
fn readme_can_be_typed() {
    assert!(can_be_typed("README.md") >= 1);
}

#[test]
fn other_documents_can_be_typed() {
    let others = blocks::DOCUMENTS.iter().skip(3);
    others.for_each(|document| {
        can_be_typed(document);
    });
}

#[test]
fn parameters_by_themselves_are_taken() {
    if !need_all(&["bash", "nbdkit"]) {
        return;
    }
    let alone: Vec<_> = blocks::all()
        .into_iter()
        .filter(|block| block.kind() == Kind::Parameters)
        .collect();
    assert!(alone.len() > 1, "{alone:?}");
    for block in alone {
        // Nothing is connected before there is a client.
        let command = format!(
            "nbdkit -U - nbd socket=nowhere.sock {} --run true",
            block.text.trim()
        );
        Desk::new().type_in(&format!("{}: {}", block.document, block.section), &command);
    }
}

#[test]
fn xml_is_well_formed() {
    if !need("python3") {
        return;
    }
    let blocks = blocks::all();
    let xml: Vec<_> = blocks
        .iter()
        .filter(|block| block.text.trim_start().starts_with('<'))
        .collect();
    assert!(!xml.is_empty(), "libvirt's");
    for block in xml {
        let parse = "import sys, xml.dom.minidom as m; m.parseString(sys.argv[1])";
        program("python3", &["-c", parse, block.text.trim()]);
    }
}

/// What is taken for a drawing is not typed, so that nothing to be typed may look like one.
#[test]
fn no_command_is_hidden_in_a_drawing() {
    let blocks = blocks::all();
    let drawings: Vec<_> = blocks
        .iter()
        .filter(|block| block.kind() == Kind::Drawing)
        .collect();
    assert!(drawings.len() > 1, "the manual and the README have some");
    for drawing in drawings {
        for line in drawing.text.lines() {
            let word = line.split_whitespace().next().unwrap_or_default();
            let command = PROGRAMS.contains(&word) || ["make", "sudo", "kill"].contains(&word);
            assert!(!command, "{}: {line}", drawing.document);
        }
    }
}

#[test]
fn what_is_listed_is_there_once() {
    let blocks = blocks::all();
    for (document, line, reason) in NOT_TYPED {
        let found = blocks
            .iter()
            .filter(|block| (block.document, block.first_line()) == (*document, *line));
        assert_eq!(found.count(), 1, "{document}: {line}");
        assert!(!reason.is_empty());
    }
    for (words, _) in SUBSTITUTIONS {
        let found = blocks.iter().any(|block| block.text.contains(words));
        assert!(found, "no example has {words}");
    }
}

#[test]
fn blocks_are_found_by_form() {
    let pod = "=head1 ONE\n\ntext\n\n a\n  b\n\n=head2 Two\n\n=over 4\n\n=item x\n\n c\n\n=back\n";
    let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let owned = |(section, text): &(&str, &str)| ((*section).to_owned(), (*text).to_owned());
        pairs.iter().map(owned).collect()
    };
    assert_eq!(
        blocks::in_pod(pod),
        own(&[("ONE", " a\n  b"), ("Two", " c")])
    );
    let markdown = "# T\n## One\n```\na\n\nb\n```\n### inner\n```sh\nc\n```\n";
    assert_eq!(
        blocks::in_markdown(markdown),
        own(&[("One", "a\n\nb"), ("One", "c")])
    );
    let kind = |text: &str| {
        let block = Block {
            document: "README.md",
            section: String::new(),
            text: text.to_owned(),
        };
        block.kind()
    };
    assert_eq!(kind(" tls-pin=sha256:00 retry=3"), Kind::Parameters);
    assert_eq!(kind(" SERVER=nbd://x"), Kind::Commands);
    assert_eq!(kind(" nbdkit nbd socket=x"), Kind::Commands);
    assert_eq!(kind(" +--+\n |  |"), Kind::Drawing);
}

#[test]
fn examples_end_what_they_start() {
    // An nbdkit ends with the command of --run, or writes down which process to kill.
    for document in blocks::DOCUMENTS {
        for (section, commands) in sessions(document) {
            let lines = commands.replace("\\\n", " ");
            let started = lines
                .lines()
                .filter(|line| line.trim_start().starts_with("nbdkit "));
            for command in started {
                let pidfile = command
                    .split(" -P ")
                    .nth(1)
                    .and_then(|rest| rest.split(' ').next());
                match pidfile {
                    Some(file) => assert!(
                        commands.contains(&format!("$(cat {file})")),
                        "{document}: {section}: nobody ends: {command}"
                    ),
                    // A list is printed, and that is all.
                    None => assert!(
                        ["--run", "extents=list", "probe="]
                            .iter()
                            .any(|end| command.contains(end)),
                        "{section}: {command}"
                    ),
                }
            }
        }
    }
}

#[test]
fn documents_are_all_looked_at() {
    // A page of the manual that somebody adds is not forgotten.
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(root).expect("the project") {
        let name = entry.expect("entry").file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".pod") {
            assert!(blocks::DOCUMENTS.contains(&&*name), "{name}");
            assert!(manual::file(&name).contains("=head1 NAME"));
        }
    }
}
