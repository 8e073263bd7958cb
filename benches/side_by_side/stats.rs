// SPDX-License-Identifier: BSD-3-Clause
//! Medians and what they hide.

/// The middle value; 0 if there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// Half the distance from the smallest value to the largest, as a share of the median.
pub fn spread(values: &[f64]) -> f64 {
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match median(values) {
        0.0 => 0.0,
        median => (largest - smallest) / 2.0 / median,
    }
}

/// How far two runs of one thing lie apart, as a share: their medians, or their values in the typical round,
/// whichever is more. Two runs whose medians meet by chance are not close for that.
pub fn apart(values: &[f64], others: &[f64]) -> f64 {
    let gap = |a: f64, b: f64| match a.min(b) {
        0.0 => 0.0,
        smaller => a.max(b) / smaller - 1.0,
    };
    let rounds: Vec<f64> = values
        .iter()
        .zip(others)
        .map(|(&a, &b)| gap(a, b))
        .collect();
    gap(median(values), median(others)).max(median(&rounds))
}

/// The median of the ratios round by round, which a slow drift of the machine does not touch.
pub fn paired(values: &[f64], others: &[f64]) -> f64 {
    let ratios: Vec<f64> = values.iter().zip(others).map(|(a, b)| a / b).collect();
    median(&ratios)
}

/// The rounds whose value is off the median by more than half of it.
pub fn strays(values: &[f64]) -> Vec<usize> {
    let median = median(values);
    let off = |value: f64| (value - median).abs() > median / 2.0;
    (0..values.len()).filter(|&i| off(values[i])).collect()
}
