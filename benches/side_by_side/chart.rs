// SPDX-License-Identifier: BSD-3-Clause
//! The ratios to the C plugin as a picture: SVG, written by hand, with a background of its own so that it
//! can be read on light pages and on dark ones.
//!
//! A bar is the ratio of medians, the line across its end goes from the worst round to the best. Grey around
//! 1 is how far the two runs of the C plugin lie apart: a bar that ends there says nothing.

use std::fmt::Write;

use crate::contender::Contender;
use crate::results::{Cell, Figure, Results, Row};

/// Where the bars begin, and how far they may go.
const LEFT: f64 = 270.0;
const LENGTH: f64 = 520.0;
const WIDTH: f64 = LEFT + LENGTH + 80.0;
/// Height of a bar, and of what is between rows.
const BAR: f64 = 14.0;
const GAP: f64 = 8.0;
/// Height of what is above the first row and below the last.
const TOP: f64 = 90.0;
const BOTTOM: f64 = 36.0;
/// What is beyond this ratio is cut: bars have a number that says how long they would be.
const LONGEST: f64 = 4.0;
/// One for each build of ours.
const COLOURS: [&str; 4] = ["#b7410e", "#2f6f9f", "#5a8f29", "#7d5ba6"];

/// How what is drawn as a line looks.
const RELAY: &str = "stroke=\"#222\" stroke-width=\"2\"";
const DIRECT: &str = "stroke=\"#2a7f62\" stroke-width=\"2\" stroke-dasharray=\"3 2\"";
const ROUNDS: &str = "stroke=\"#222\" stroke-width=\"1\"";
/// The colours of the ceiling, and of what two runs of the same do not agree on.
const CEILING: &str = "#2a7f62";
const SPREAD: &str = "#dcdcd4";

/// A picture of all rows that the C plugin and ours have both run.
pub fn chart(results: &Results) -> String {
    let bars: Vec<Bars> = results
        .rows
        .iter()
        .filter_map(|row| Bars::of(&results.contenders, row))
        .collect();
    let largest = bars.iter().map(Bars::largest);
    let end = largest.fold(1.5, f64::max).min(LONGEST);
    let scale = LENGTH / end;
    let height: f64 = bars.iter().map(Bars::height).sum::<f64>() + TOP + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"6\" fill=\"#fdfdfb\" stroke=\"#d0d0c8\"/>\n\
         <g fill=\"#222\">\n"
    );
    text(&mut svg, 20.0, 28.0, "Throughput, C plugin = 1");
    legend(&mut svg, &results.contenders);
    axis(&mut svg, scale, end, height);
    let mut y = TOP;
    for bars in &bars {
        bars.draw(&mut svg, y, scale, end);
        y += bars.height();
    }
    let caption: Vec<&str> = results
        .machine
        .iter()
        .filter(|(name, _)| ["date", "commit", "machine"].contains(name))
        .map(|(_, value)| value.as_str())
        .collect();
    text(&mut svg, 20.0, height - 10.0, &caption.join("; "));
    svg.push_str("</g>\n</svg>\n");
    svg
}

/// One row of the picture, in ratios to the C plugin.
struct Bars {
    title: String,
    ours: Vec<Bar>,
    /// Of the two runs of the C plugin.
    spread: f64,
    relay: Option<f64>,
    direct: Option<f64>,
}

/// A build of ours.
struct Bar {
    ratio: f64,
    worst: f64,
    best: f64,
}

impl Bars {
    fn of(contenders: &[Contender], row: &Row) -> Option<Self> {
        let pair = row.pair(contenders)?;
        let c = pair.of(Figure::Rate)?;
        let ours = row.ours(contenders).map(|(_, cell)| {
            let cell = cell?;
            let rates = cell.rates();
            Some(Bar {
                ratio: cell.rate() / c,
                worst: rates.iter().copied().fold(f64::INFINITY, f64::min) / c,
                best: rates.iter().copied().fold(0.0, f64::max) / c,
            })
        });
        let ratio = |contender| {
            row.cell(contenders, contender)
                .map(|cell: &Cell| cell.rate() / c)
        };
        Some(Self {
            title: row.workload.full_title(),
            ours: ours.collect::<Option<_>>()?,
            spread: pair.spread(Figure::Rate),
            relay: ratio(&Contender::Relay),
            direct: ratio(&Contender::Direct),
        })
    }

    /// The largest ratio that is drawn.
    fn largest(&self) -> f64 {
        let ours = self.ours.iter().map(|bar| bar.best);
        let others = self.relay.into_iter().chain(self.direct);
        ours.chain(others).fold(0.0, f64::max)
    }

    fn height(&self) -> f64 {
        self.ours.len() as f64 * BAR + GAP
    }

    fn draw(&self, svg: &mut String, top: f64, scale: f64, end: f64) {
        let bottom = top + self.ours.len() as f64 * BAR;
        let x = |ratio: f64| LEFT + ratio.min(end) * scale;
        let (least, most) = (x(1.0 / (1.0 + self.spread)), x(1.0 + self.spread));
        rectangle(
            svg,
            least,
            top - 3.0,
            most - least,
            bottom - top + 6.0,
            SPREAD,
        );
        let middle = (top + bottom) / 2.0 + 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            escaped(&self.title)
        );
        for (number, bar) in self.ours.iter().enumerate() {
            let y = top + number as f64 * BAR;
            let colour = COLOURS[number % COLOURS.len()];
            rectangle(svg, LEFT, y + 2.0, x(bar.ratio) - LEFT, BAR - 4.0, colour);
            across(svg, x(bar.worst), x(bar.best), y + BAR / 2.0, ROUNDS);
            line(svg, x(bar.worst), y + 4.0, y + BAR - 4.0, ROUNDS);
            line(svg, x(bar.best), y + 4.0, y + BAR - 4.0, ROUNDS);
            let arrow = if bar.ratio > end { "→ " } else { "" };
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{arrow}{:.2}</text>",
                WIDTH - 20.0,
                y + 11.0,
                bar.ratio
            );
        }
        if let Some(relay) = self.relay.filter(|&relay| relay <= end) {
            line(svg, x(relay), top - 2.0, bottom + 2.0, RELAY);
        }
        match self.direct {
            Some(direct) if direct <= end => line(svg, x(direct), top - 2.0, bottom + 2.0, DIRECT),
            Some(_) => arrowhead(svg, LEFT + LENGTH, (top + bottom) / 2.0),
            None => {}
        }
    }
}

fn legend(svg: &mut String, contenders: &[Contender]) {
    let mut x = LEFT;
    let names = contenders.iter().filter_map(|contender| match contender {
        Contender::Ours(name, _) => Some(name),
        _ => None,
    });
    for (number, name) in names.enumerate() {
        rectangle(svg, x, 18.0, 12.0, 12.0, COLOURS[number % COLOURS.len()]);
        text(svg, x + 17.0, 28.0, name);
        x += 80.0;
    }
    if contenders.contains(&Contender::Relay) {
        line(svg, x + 6.0, 17.0, 31.0, RELAY);
        text(svg, x + 17.0, 28.0, "socat, a raw relay");
    }
    let (left, y) = (LEFT, 48.0);
    line(svg, left + 6.0, y - 11.0, y + 3.0, DIRECT);
    text(svg, left + 17.0, y, "no forwarder, or");
    arrowhead(svg, left + 127.0, y - 4.0);
    text(svg, left + 132.0, y, "further");
    let (worst, best) = (left + 190.0, left + 208.0);
    across(svg, worst, best, y - 4.0, ROUNDS);
    line(svg, worst, y - 7.0, y - 1.0, ROUNDS);
    line(svg, best, y - 7.0, y - 1.0, ROUNDS);
    text(svg, best + 6.0, y, "worst to best round");
    rectangle(svg, left + 344.0, y - 10.0, 12.0, 12.0, SPREAD);
    text(svg, left + 361.0, y, "between two runs of the C plugin");
}

/// Numbers above, and lines through all rows.
fn axis(svg: &mut String, scale: f64, end: f64, height: f64) {
    let halves = (end * 2.0).floor() as u32;
    for half in 0..=halves {
        let value = f64::from(half) / 2.0;
        let x = LEFT + value * scale;
        let style = match half {
            2 => "stroke=\"#666\"",
            _ => "stroke=\"#ddd\"",
        };
        line(svg, x, TOP - 8.0, height - BOTTOM, style);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{value}</text>",
            TOP - 13.0
        );
    }
}

fn rectangle(svg: &mut String, x: f64, y: f64, width: f64, height: f64, colour: &str) {
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}

/// Points to what is beyond the border.
fn arrowhead(svg: &mut String, x: f64, y: f64) {
    let _ = writeln!(
        svg,
        "<path d=\"M {:.1} {:.1} L {x:.1} {y:.1} L {:.1} {:.1} Z\" fill=\"{CEILING}\"/>",
        x - 7.0,
        y - 5.0,
        x - 7.0,
        y + 5.0
    );
}

/// From left to right.
fn across(svg: &mut String, left: f64, right: f64, y: f64, style: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" {style}/>"
    );
}

fn line(svg: &mut String, x: f64, top: f64, bottom: f64, style: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" {style}/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, text: &str) {
    let text = escaped(text);
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
