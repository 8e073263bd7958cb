// SPDX-License-Identifier: BSD-3-Clause
//! A Markdown table, whose columns line up also for those who read the text.

/// Lines of cells; the first is the head. All are as long as the head.
pub struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    /// A table with this head.
    pub fn new(head: Vec<String>) -> Self {
        Self { lines: vec![head] }
    }

    /// Adds a line.
    pub fn line(&mut self, line: Vec<String>) {
        self.lines.push(line);
    }

    /// The first column is on the left, figures are on the right.
    pub fn markdown(&self) -> String {
        let columns = self.lines.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut lines = self.lines.iter().map(|line| {
            let cells = line.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, &width))| match column {
                0 => format!("| {cell:width$} "),
                _ => format!("| {cell:>width$} "),
            });
            format!("{}|\n", cells.collect::<String>())
        });
        let head = lines.next().unwrap_or_default();
        let rule = widths.iter().enumerate().map(|(column, width)| {
            let dashes = "-".repeat(width + 1);
            format!("|{dashes}{}", if column == 0 { '-' } else { ':' })
        });
        let rule: String = rule.collect();
        format!("{head}{rule}|\n{}", lines.collect::<String>())
    }
}
