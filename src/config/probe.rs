// SPDX-License-Identifier: BSD-3-Clause
//! Whether nobody is served, and the server is told of instead.

use super::{Error, params};

const BAD: &str = "must be a boolean or json";

/// What `probe=` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// Clients are served.
    #[default]
    Off,
    /// What the server is, for people.
    Text,
    /// The same for programs.
    Json,
}

impl Probe {
    /// The meaning of a value.
    pub fn parse(value: &[u8]) -> Result<Self, Error> {
        if value == b"json" {
            return Ok(Self::Json);
        }
        match params::boolean("probe", value) {
            Ok(true) => Ok(Self::Text),
            Ok(false) => Ok(Self::Off),
            Err(_) => Err(params::bad("probe", value, BAD)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_for_people_or_for_programs() {
        for (value, probe) in [
            ("1", Probe::Text),
            ("yes", Probe::Text),
            ("json", Probe::Json),
            ("0", Probe::Off),
            ("off", Probe::Off),
        ] {
            assert_eq!(Probe::parse(value.as_bytes()), Ok(probe), "{value}");
        }
        for value in ["", "JSON", "text", "2", "json\n"] {
            let error = Probe::parse(value.as_bytes()).expect_err(value);
            assert!(error.to_string().contains(BAD), "{error}");
        }
    }
}
