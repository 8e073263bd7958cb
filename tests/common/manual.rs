// SPDX-License-Identifier: BSD-3-Clause
//! The manual, nbdkit-nbd-plugin.pod, as tests read it.

use std::fs;
use std::path::Path;

/// A file of the project.
pub fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text between `=head1 TITLE` and the next one, or all of it.
pub fn section(title: Option<&str>) -> String {
    let manual = file("nbdkit-nbd-plugin.pod");
    let Some(title) = title else { return manual };
    let (_, rest) = manual
        .split_once(&format!("\n=head1 {title}\n"))
        .unwrap_or_else(|| panic!("the manual has no section {title}"));
    let text = rest.split("\n=head1 ").next();
    text.expect("always a first part").to_owned()
}

/// What stands behind each `=item` of a text, in plain text and on one line.
pub fn items(text: &str) -> Vec<String> {
    text.split("\n\n")
        .filter_map(|paragraph| paragraph.trim_start().strip_prefix("=item "))
        .map(|item| plain(&item.replace('\n', " ")))
        .collect()
}

/// POD text without its codes such as B<...>, which are single capital letters before an angle bracket.
fn plain(pod: &str) -> String {
    let mut text = String::new();
    let mut rest = pod.chars().peekable();
    while let Some(c) = rest.next() {
        if c.is_ascii_uppercase() && rest.peek() == Some(&'<') {
            rest.next();
        } else if c != '>' {
            text.push(c);
        }
    }
    text
}

/// A text with blanks in it that stand for anything.
pub struct Pattern {
    /// What stands before, between and after the blanks; so there is always one.
    pieces: Vec<String>,
}

impl Pattern {
    /// Blanks are `...` and, where they are whole words, those of `blanks`.
    pub fn new(pattern: &str, blanks: &[&str]) -> Self {
        let mut pieces = vec![String::new()];
        let mut rest = pattern;
        let mut in_word = false;
        while let Some(c) = rest.chars().next() {
            let end = rest.find(|c: char| !c.is_alphanumeric());
            let word = &rest[..end.unwrap_or(rest.len())];
            let (blank, taken) = match rest.strip_prefix("...") {
                Some(_) => (true, 3),
                None if !in_word && blanks.contains(&word) => (true, word.len()),
                None => (false, c.len_utf8()),
            };
            match pieces.last_mut() {
                Some(piece) if !blank => piece.push(c),
                _ => pieces.push(String::new()),
            }
            in_word = c.is_alphanumeric();
            rest = &rest[taken..];
        }
        Self { pieces }
    }

    /// Whether all that is no blank is in the text, one after another.
    pub fn is_in(&self, text: &str) -> bool {
        let mut rest = text;
        self.pieces.iter().all(|piece| {
            // With an empty blank there is a space less.
            let Some((_, after)) = rest.split_once(piece.trim()) else {
                return false;
            };
            rest = after;
            true
        })
    }

    /// [`Pattern::is_in`], and nothing before and after it.
    pub fn is_all_of(&self, text: &str) -> bool {
        let (first, last) = (self.pieces.first(), self.pieces.last());
        self.is_in(text)
            && first.is_some_and(|first| text.starts_with(first.as_str()))
            && last.is_some_and(|last| text.ends_with(last.as_str()))
    }
}
