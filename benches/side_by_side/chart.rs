//! The ratios to the C plugin as a picture: SVG, written by hand, with a background of its own so that it
//! can be read on light pages and on dark ones.

use std::fmt::Write;

use crate::contender::Contender;
use crate::results::{Results, Row};

/// Where the bars begin, and how far they may go.
const LEFT: f64 = 250.0;
const LENGTH: f64 = 520.0;
const WIDTH: f64 = LEFT + LENGTH + 70.0;
/// Height of a bar, and of what is between rows.
const BAR: f64 = 14.0;
const GAP: f64 = 8.0;
/// Height of what is above the first row and below the last.
const TOP: f64 = 70.0;
const BOTTOM: f64 = 36.0;
/// Bars beyond this ratio are cut: their number says how long they would be.
const LONGEST: f64 = 4.0;
/// One for each build of ours.
const COLOURS: [&str; 4] = ["#b7410e", "#2f6f9f", "#5a8f29", "#7d5ba6"];

/// A picture of all rows that the C plugin and ours have both run.
pub fn chart(results: &Results) -> String {
    let bars: Vec<Bars> = results
        .rows
        .iter()
        .filter_map(|row| Bars::of(&results.contenders, row))
        .collect();
    let largest = bars
        .iter()
        .flat_map(|bars| bars.ours.iter().copied().chain(bars.relay));
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

/// One row of the picture.
struct Bars {
    title: String,
    ours: Vec<f64>,
    relay: Option<f64>,
}

impl Bars {
    fn of(contenders: &[Contender], row: &Row) -> Option<Self> {
        let c = row.cell(contenders, &Contender::C)?.rate();
        let ours = contenders.iter().filter_map(|contender| match contender {
            Contender::Ours(..) => Some(row.cell(contenders, contender)?.rate() / c),
            _ => None,
        });
        let relay = row.cell(contenders, &Contender::Relay);
        Some(Self {
            title: row.workload.full_title(),
            ours: ours.collect(),
            relay: relay.map(|relay| relay.rate() / c),
        })
    }

    fn height(&self) -> f64 {
        self.ours.len() as f64 * BAR + GAP
    }

    fn draw(&self, svg: &mut String, top: f64, scale: f64, end: f64) {
        let middle = top + self.ours.len() as f64 * BAR / 2.0 + 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            escaped(&self.title)
        );
        for (number, &ratio) in self.ours.iter().enumerate() {
            let y = top + number as f64 * BAR;
            let length = ratio.min(end) * scale;
            let colour = COLOURS[number % COLOURS.len()];
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                y + 1.0,
                BAR - 2.0,
            );
            let arrow = if ratio > end { "→ " } else { "" };
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{arrow}{ratio:.2}</text>",
                WIDTH - 20.0,
                y + 11.0
            );
        }
        if let Some(relay) = self.relay.filter(|&relay| relay <= end) {
            let x = LEFT + relay * scale;
            let bottom = top + self.ours.len() as f64 * BAR;
            line(svg, x, top - 2.0, bottom + 2.0, RELAY);
        }
    }
}

const RELAY: &str = "stroke=\"#222\" stroke-width=\"2\"";

fn legend(svg: &mut String, contenders: &[Contender]) {
    let mut x = LEFT;
    let names = contenders.iter().filter_map(|contender| match contender {
        Contender::Ours(name, _) => Some(name),
        _ => None,
    });
    for (number, name) in names.enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"18\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        text(svg, x + 17.0, 28.0, name);
        x += 80.0;
    }
    if contenders.contains(&Contender::Relay) {
        line(svg, x + 6.0, 17.0, 31.0, RELAY);
        text(svg, x + 17.0, 28.0, "socat, a raw relay");
    }
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
