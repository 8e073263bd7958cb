// SPDX-License-Identifier: BSD-3-Clause
//! The stored figures: a line with name and value for each, behind a comment.

use std::fmt::Write;

/// Most that a figure may change, in per cent, without being stored anew. Other processors and compilers
/// count a little differently, and everybody runs this check.
pub const TOLERANCE: u64 = 10;

/// The same for who compares two commits on one machine. Two runs of one commit differ by 1 % at most.
pub const STRICT: u64 = 3;

const COMPILER: &str = "# rustc: ";

/// Name and value.
pub type Figure = (String, u64);

/// What is in the file.
#[derive(Debug, Default)]
pub struct Stored {
    /// The compiler that the figures belong to.
    pub compiler: String,
    pub figures: Vec<Figure>,
}

impl Stored {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut stored = Self::default();
        for line in text.lines() {
            if let Some(compiler) = line.strip_prefix(COMPILER) {
                stored.compiler = compiler.to_owned();
            }
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let figure = line
                .split_once(' ')
                .and_then(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
                .ok_or_else(|| format!("no name and value: {line}"))?;
            stored.figures.push(figure);
        }
        Ok(stored)
    }

    /// The file for these figures.
    pub fn write(&self) -> String {
        let mut text = format!(
            "\
# Instructions that one request costs in the client: the code of the crate, of the
# Rust libraries and of std; not libc's, which differ by machine, nor the kernel's.
# Checked by `make check`, written by `make bench-instructions UPDATE=1`.
#
# Another compiler makes other code, so the figures belong to this one:
{COMPILER}{}

",
            self.compiler
        );
        for (name, value) in &self.figures {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<20} {value}");
        }
        text
    }

    /// What is wrong with these figures, in words; nothing if they are within `tolerance` per cent of the
    /// stored ones.
    pub fn complaints(&self, counted: &[Figure], tolerance: u64) -> Vec<String> {
        let value = |figures: &[Figure], wanted: &str| {
            let found = figures.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| *value)
        };
        let gone = self.figures.iter().filter_map(|(name, _)| {
            let gone = value(counted, name).is_none();
            gone.then(|| format!("{name} is stored and not counted any more"))
        });
        let changed = counted.iter().filter_map(|(name, now)| {
            let Some(before) = value(&self.figures, name) else {
                return Some(format!("{name} is {now} and not stored"));
            };
            let far = now.abs_diff(before) * 100 > before * tolerance;
            far.then(|| {
                format!(
                    "{name} went from {before} to {now}: {}",
                    percent(before, *now)
                )
            })
        });
        gone.chain(changed).collect()
    }
}

fn percent(before: u64, now: u64) -> String {
    format!("{:+.1} %", (now as f64 / before as f64 - 1.0) * 100.0)
}
