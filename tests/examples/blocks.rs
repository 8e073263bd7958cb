// SPDX-License-Identifier: BSD-3-Clause
//! The blocks of code in the manual and in the other documents, found by form alone.

use super::common::manual;

/// The documents whose examples are typed, each in a directory of its own.
pub const DOCUMENTS: [&str; 6] = [
    "nbdkit-nbd-plugin.pod",
    "nbdkit-nbd-plugin-examples.pod",
    "README.md",
    "nbdkit-nbdctl.pod",
    "docs/scaling.md",
    "contrib/README.md",
];

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the eye: boxes and arrows.
    Drawing,
    /// Parameters of the plugin and nothing else.
    Parameters,
    /// To be typed.
    Commands,
}

/// A block of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub document: &'static str,
    /// The heading that it stands under.
    pub section: String,
    pub text: String,
}

impl Block {
    pub fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default().trim()
    }

    pub fn kind(&self) -> Kind {
        if ["+--", "──"].iter().any(|line| self.text.contains(line)) {
            Kind::Drawing
        } else if self.text.split_whitespace().all(is_parameter) {
            Kind::Parameters
        } else {
            Kind::Commands
        }
    }
}

/// `key=value`, as the plugin's keys are written.
fn is_parameter(word: &str) -> bool {
    let lower = |c: char| c.is_ascii_lowercase() || c == '-';
    word.split_once('=')
        .is_some_and(|(key, _)| !key.is_empty() && key.chars().all(lower))
}

/// All blocks of all documents, in order.
pub fn all() -> Vec<Block> {
    DOCUMENTS.iter().flat_map(|name| of(name)).collect()
}

/// The blocks of one document.
pub fn of(document: &'static str) -> Vec<Block> {
    let text = manual::file(document);
    let found = match document.ends_with(".pod") {
        true => in_pod(&text),
        false => in_markdown(&text),
    };
    let block = |(section, text)| Block {
        document,
        section,
        text,
    };
    found.into_iter().map(block).collect()
}

/// Paragraphs that are indented, below the nearest heading; two with a blank line between them are two.
pub fn in_pod(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut blocks = Vec::new();
    for paragraph in text.split("\n\n") {
        let paragraph = paragraph.trim_matches('\n');
        if let Some(heading) = ["=head1 ", "=head2 "]
            .iter()
            .find_map(|command| paragraph.strip_prefix(command))
        {
            heading.clone_into(&mut section);
        } else if paragraph.starts_with([' ', '\t']) {
            blocks.push((section.clone(), paragraph.to_owned()));
        }
    }
    blocks
}

/// What stands between fences, below the nearest `##`.
pub fn in_markdown(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut blocks = Vec::new();
    let mut open: Option<Vec<&str>> = None;
    for line in text.lines() {
        match (&mut open, line.starts_with("```")) {
            (Some(lines), true) => {
                blocks.push((section.clone(), lines.join("\n")));
                open = None;
            }
            (Some(lines), false) => lines.push(line),
            (None, true) => open = Some(Vec::new()),
            (None, false) => {
                if let Some(heading) = line.strip_prefix("## ") {
                    heading.clone_into(&mut section);
                }
            }
        }
    }
    assert!(open.is_none(), "a fence that is not closed");
    blocks
}
