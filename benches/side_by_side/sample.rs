// SPDX-License-Identifier: BSD-3-Clause
//! What one turn of one contender gave.

/// Figures of one turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Requests per second.
    pub rate: f64,
    /// Requests in all.
    pub requests: u64,
    /// How long that took, seconds.
    pub seconds: f64,
    /// Median latency, microseconds; nothing where nobody times each request.
    pub p50: Option<f64>,
    /// The latency that one request in a hundred exceeds, microseconds.
    pub p99: Option<f64>,
    /// CPU time of the forwarding process per request, microseconds.
    pub cpu: Option<f64>,
}
