// SPDX-License-Identifier: BSD-3-Clause
//! A server and the plugin before it, whose statistics are read when nbdkit has ended.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::front::Front;
use super::manual;
use super::nbdkit::{Nbdkit, forward};

/// The figures in a block, as text.
pub type Figures = BTreeMap<String, String>;

pub fn figures(block: &str) -> Figures {
    let pair = |line: &str| {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
        (key.to_owned(), value.to_owned())
    };
    block.lines().map(pair).collect()
}

/// A server, the plugin before it, and where its statistics are.
pub struct Counted {
    pub front: Nbdkit,
    pub server: Nbdkit,
    pub directory: TempDir,
}

impl Counted {
    /// `server` are nbdkit's arguments for the one, `front` further ones for the other.
    pub fn start(server: &[&str], front: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let server = Nbdkit::start(directory.path(), server);
        let stats = format!("stats={}", file(directory.path()).display());
        let front = forward(
            directory.path(),
            server.socket(),
            &[&[stats.as_str()], front].concat(),
        );
        Self {
            front,
            server,
            directory,
        }
    }

    pub fn client(&self) -> Front {
        Front::open_structured(self.front.socket()).expect("opens")
    }

    /// What there is when nbdkit has ended.
    pub fn end(mut self) -> Figures {
        self.front.ends_well();
        read(self.directory.path())
    }
}

pub fn file(directory: &Path) -> PathBuf {
    directory.join("stats")
}

pub fn read(directory: &Path) -> Figures {
    figures(&fs::read_to_string(file(directory)).expect("statistics"))
}

/// Each of these figures is what it should be.
pub fn are(figures: &Figures, expected: &[(&str, u64)]) {
    let came: Vec<_> = expected
        .iter()
        .map(|(key, _)| (*key, number(figures, key)))
        .collect();
    assert_eq!(came, expected, "{figures:#?}");
}

pub fn number(figures: &Figures, key: &str) -> u64 {
    let value = figures.get(key).unwrap_or_else(|| panic!("no {key}"));
    value
        .parse()
        .unwrap_or_else(|error| panic!("{key}={value}: {error}"))
}

/// The items below a heading of the chapter.
pub fn documented(heading: &str) -> Vec<String> {
    let chapter = manual::section(Some("STATISTICS"));
    let (_, rest) = chapter
        .split_once(&format!("=head2 {heading}\n"))
        .unwrap_or_else(|| panic!("no {heading}"));
    let text = rest.split("\n=head2 ").next().expect("a first part");
    manual::items(text)
}

/// A key of the manual's with all that its blanks stand for.
pub fn spelt_out(item: &str) -> Vec<String> {
    const BLANKS: [(&str, &[&str]); 3] = [
        (
            "COMMAND",
            &[
                "all", "read", "write", "flush", "trim", "zero", "cache", "extents",
            ],
        ),
        ("QUANTILE", &["p50", "p90", "p99", "p999", "max"]),
        (
            "ERRNO",
            &[
                "EPERM",
                "EIO",
                "ENOMEM",
                "EINVAL",
                "ENOSPC",
                "EOVERFLOW",
                "ENOTSUP",
                "ESHUTDOWN",
                "other",
            ],
        ),
    ];
    let mut all = vec![item.to_owned()];
    for (blank, words) in BLANKS {
        let filled = |item: String| -> Vec<String> {
            match item.contains(blank) {
                true => words.iter().map(|word| item.replace(blank, word)).collect(),
                false => vec![item],
            }
        };
        all = all.into_iter().flat_map(filled).collect();
    }
    all
}
