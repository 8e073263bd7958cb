// SPDX-License-Identifier: BSD-3-Clause
//! What a probe prints: a report on each server, with the parameters that would fit, as [`text`] for
//! people or as [`json`] for programs. All of it is a function of what was found out.
//!
//! Whatever a server says is data here: escaped, and in the text for people cut.

mod advice;
mod json;
mod text;

use crate::client::probe::Found;
use crate::config::probe::Probe;

/// The lines to print.
pub fn render(form: Probe, found: &[Found]) -> Vec<String> {
    match form {
        Probe::Json => vec![json::report(found).to_string()],
        _ => text::report(found),
    }
}
