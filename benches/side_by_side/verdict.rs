// SPDX-License-Identifier: BSD-3-Clause
//! Whether a figure is enough, and when that cannot be told: a bar holds, or fails, only beyond what two runs
//! of the same plugin lie apart.

use crate::results::{Cell, Figure, Pair};

/// Rates are told by time, which no shared machine tells better than this. A bar that asks for less more or
/// less than the C plugin's own rate is decided by CPU time per request, which is far steadier.
const SMALL: f64 = 0.05;

/// Whether a bar is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is, beyond the spread.
    Ok,
    /// This run cannot tell.
    Within,
    /// It is not, beyond the spread.
    Short,
}

impl Verdict {
    /// For the report.
    pub fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Within => "within the spread",
            Self::Short => "short",
        }
    }
}

/// A figure of ours beside that of the C plugin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// Ours by the median of both runs of the C plugin.
    pub value: f64,
    /// How far those two lie apart, as a share.
    pub spread: f64,
}

/// How a bar was found to be reached or not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// What the bar is about.
    pub compared: Compared,
    /// CPU time per request, where that decided.
    pub cpu: Option<Compared>,
    /// The decision.
    pub verdict: Verdict,
}

impl Compared {
    /// Nothing where one of them has no such figure.
    pub fn of(figure: Figure, ours: &Cell, c: &Pair) -> Option<Self> {
        Some(Self {
            value: figure.of(ours)? / c.of(figure)?,
            spread: c.spread(figure),
        })
    }

    /// More is better.
    pub fn at_least(&self, bound: f64) -> Verdict {
        if self.value >= bound * (1.0 + self.spread) {
            Verdict::Ok
        } else if self.value * (1.0 + self.spread) >= bound {
            Verdict::Within
        } else {
            Verdict::Short
        }
    }

    /// Less is better.
    pub fn at_most(&self, bound: f64) -> Verdict {
        if self.value * (1.0 + self.spread) <= bound {
            Verdict::Ok
        } else if self.value <= bound * (1.0 + self.spread) {
            Verdict::Within
        } else {
            Verdict::Short
        }
    }
}

impl Found {
    /// Whether ours has `bound` times the rate of the C plugin.
    pub fn rate(bound: f64, ours: &Cell, c: &Pair) -> Option<Self> {
        let compared = Compared::of(Figure::Rate, ours, c)?;
        let by_time = Self {
            compared,
            cpu: None,
            verdict: compared.at_least(bound),
        };
        let is_clear = (compared.value / bound - 1.0).abs() > SMALL;
        if (bound - 1.0).abs() > SMALL || is_clear && by_time.verdict != Verdict::Within {
            return Some(by_time);
        }
        let cpu = Compared::of(Figure::Cpu, ours, c);
        Some(cpu.map_or(by_time, |cpu| Self {
            compared,
            cpu: Some(cpu),
            verdict: cpu.at_most(1.0 / bound),
        }))
    }

    /// Whether ours takes `bound` times the CPU time per request of the C plugin, or less.
    pub fn cpu(bound: f64, ours: &Cell, c: &Pair) -> Option<Self> {
        let compared = Compared::of(Figure::Cpu, ours, c)?;
        Some(Self {
            compared,
            cpu: None,
            verdict: compared.at_most(bound),
        })
    }
}
