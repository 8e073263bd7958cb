// SPDX-License-Identifier: BSD-3-Clause
//! Which parameters exclude each other: every pair of them is tried, and the manual's matrix says the same.
//!
//! Who adds a parameter gives it a line in [`SAMPLES`], and puts the matrix that the test prints into the manual.

use super::super::{Params, help};

/// A parameter as it is tried, switched on.
struct Sample {
    /// What the manual calls it: the key, or a value of it too where that makes a difference.
    label: &'static str,
    /// `key=value`.
    pair: &'static str,
    /// One of these it needs, by label. What excludes all of them excludes this too.
    needs: &'static [&'static str],
    /// It is another name for this one, or does the same in every pair, and may exclude more.
    like: Option<&'static str>,
}

const fn sample(label: &'static str, pair: &'static str) -> Sample {
    Sample {
        label,
        pair,
        needs: &[],
        like: None,
    }
}

const fn needs(label: &'static str, pair: &'static str, needs: &'static [&'static str]) -> Sample {
    Sample {
        label,
        pair,
        needs,
        like: None,
    }
}

const fn like(label: &'static str, pair: &'static str, like: &'static str) -> Sample {
    Sample {
        label,
        pair,
        needs: &[],
        like: Some(like),
    }
}

/// Where the server is: each configuration has one of these, or several.
const PLACES: [&str; 9] = [
    "uri",
    "uri=nbds:",
    "socket",
    "hostname",
    "vsock",
    "cid",
    "command",
    "arg",
    "socket-fd",
];

/// In the order of the help.
const SAMPLES: &[Sample] = &[
    sample("uri", "uri=nbd://localhost/disk"),
    like("uri=nbds:", "uri=nbds://localhost/disk", "uri"),
    sample("socket", "socket=/run/disk.sock"),
    sample("hostname", "hostname=localhost"),
    needs("port", "port=10810", &["hostname", "vsock"]),
    sample("vsock", "vsock=2"),
    like("cid", "cid=2", "vsock"),
    sample("command", "command=qemu-nbd"),
    like("arg", "arg=qemu-nbd", "command"),
    sample("socket-fd", "socket-fd=3"),
    sample("export", "export=disk"),
    sample("dynamic-export", "dynamic-export=true"),
    sample("retry", "retry=1"),
    sample("shared", "shared=true"),
    sample("connections", "connections=2"),
    sample("servers=failover", "servers=failover"),
    sample("servers=spread", "servers=spread"),
    needs(
        "servers-same-disk",
        "servers-same-disk=true",
        &["servers=failover"],
    ),
    sample("tls=off", "tls=off"),
    sample("tls", "tls=require"),
    sample("tls-certificates", "tls-certificates=/etc/pki"),
    sample("tls-key-password", "tls-key-password=secret"),
    needs(
        "tls-verify",
        "tls-verify=true",
        &["tls-hostname", "tls-pin", "hostname", "uri"],
    ),
    sample("tls-username", "tls-username=bob"),
    sample("tls-psk", "tls-psk=/etc/keys.psk"),
    sample("tls-hostname", "tls-hostname=storage"),
    sample("tls-priority", "tls-priority=DEFAULT"),
    sample(
        "tls-pin",
        "tls-pin=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    sample("connect-timeout", "connect-timeout=1"),
    sample("handshake-timeout", "handshake-timeout=1"),
    sample("request-timeout", "request-timeout=1"),
    sample("close-timeout", "close-timeout=1"),
    needs("command-timeout", "command-timeout=1", &["command"]),
    sample("reconnect", "reconnect=30"),
    needs("reconnect-delay", "reconnect-delay=1", &["reconnect"]),
    needs("replay", "replay=1M", &["reconnect"]),
    sample("linger", "linger=1"),
    sample("keepalive", "keepalive=1"),
    sample("detect-zeroes", "detect-zeroes=on"),
    sample("align", "align=emulate"),
    sample("quirks=no-structured", "quirks=no-structured"),
    like("quirks=no-meta", "quirks=no-meta", "quirks=no-structured"),
    sample("quirks=no-opt-go", "quirks=no-opt-go"),
    sample("quirks", "quirks=no-extended,max-request=1M"),
    sample("extents", "extents=qemu:dirty-bitmap:b"),
    needs("extents=by-name", "extents=by-name", &["dynamic-export"]),
    sample("extents=list", "extents=list"),
    sample("extents-cache", "extents-cache=1M"),
    sample("stats", "stats=/run/stats"),
    needs("stats-interval", "stats-interval=1", &["stats"]),
    needs("stats-format", "stats-format=prometheus", &["stats"]),
    sample("slow-log", "slow-log=1"),
    sample("control", "control=/run/disk.ctl"),
    sample("probe", "probe=1"),
];

fn of(label: &str) -> &'static Sample {
    let found = SAMPLES.iter().find(|sample| sample.label == label);
    found.unwrap_or_else(|| panic!("no sample is called {label}"))
}

impl Sample {
    fn key(&self) -> &'static str {
        self.pair.split('=').next().unwrap_or_default()
    }

    /// What it needs, as many ways as there are; none needs nothing.
    fn ways(&self) -> Vec<Option<&'static Sample>> {
        match self.needs {
            [] => vec![None],
            needs => needs.iter().map(|label| Some(of(label))).collect(),
        }
    }

    /// Whether it is refused together with the other, since one of the two needs, or is like, what is refused
    /// together with the other.
    fn implied(&self, other: &Self) -> bool {
        let like = |a: &Self, b: &Self| a.like.is_some_and(|like| excludes(of(like), b));
        let needs = |a: &Self, b: &Self| {
            !a.needs.is_empty() && a.needs.iter().all(|need| excludes(of(need), b))
        };
        like(self, other) || like(other, self) || needs(self, other) || needs(other, self)
    }
}

/// Whether these are refused, in whatever order, with a place if none of them is one.
fn refused(samples: &[&Sample]) -> bool {
    let is_place = |sample: &&Sample| PLACES.contains(&sample.label);
    let places: Vec<Option<&Sample>> = if samples.iter().any(is_place) {
        vec![None]
    } else {
        vec![Some(of("socket")), Some(of("hostname"))]
    };
    places.into_iter().all(|place| {
        let mut params = Params::default();
        let mut pairs: Vec<&str> = samples.iter().map(|sample| sample.pair).collect();
        pairs.extend(place.map(|place| place.pair));
        if pairs.iter().any(|pair| pair.starts_with("tls-psk=")) {
            // Else it would depend on who runs the test.
            pairs.insert(0, "tls-username=bob");
        }
        pairs.iter().for_each(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or_default();
            let set = params.set(key, value.as_bytes());
            assert_eq!(set, Ok(()), "{pair} must be good in itself");
        });
        params.complete().is_err()
    })
}

/// Whether two are refused, whatever is given them of what they need.
fn excludes(one: &Sample, two: &Sample) -> bool {
    if one.key() == two.key() {
        // The last one counts.
        return false;
    }
    let refused = |need_one: &Option<&Sample>, need_two: &Option<&Sample>| {
        let mut all = vec![one, two];
        for need in [need_one, need_two].into_iter().flatten() {
            // Not a second value of the same.
            if all.iter().all(|sample| sample.key() != need.key()) {
                all.push(need);
            }
        }
        refused(&all)
    };
    let (ways, others) = (one.ways(), two.ways());
    ways.iter()
        .all(|need| others.iter().all(|other| refused(need, other)))
}

/// The matrix of the manual, as it has to be.
fn matrix() -> String {
    let marks = |one: &Sample, two: &Sample| excludes(one, two) && !one.implied(two);
    let has_marks = |one: &&Sample| SAMPLES.iter().any(|two| marks(one, two));
    let listed: Vec<&Sample> = SAMPLES.iter().filter(has_marks).collect();
    let letters: Vec<char> = ('a'..='z').chain('A'..='Z').take(listed.len()).collect();
    assert_eq!(letters.len(), listed.len(), "more letters are needed");
    let mut text = format!(" {:24}", "");
    for letter in &letters {
        text.push(' ');
        text.push(*letter);
    }
    for (row, one) in listed.iter().enumerate() {
        let mut line = format!("\n {} {:22}", letters[row], one.label);
        for two in &listed[..row] {
            line.push_str(if marks(one, two) { " x" } else { " ." });
        }
        text.push_str(line.trim_end());
    }
    text.push('\n');
    for sample in SAMPLES {
        let what = match (sample.like, sample.needs) {
            (Some(like), _) => format!("as {like}"),
            (None, []) => continue,
            (None, needs) => format!("needs {}", needs.join(" or ")),
        };
        text.push_str(&format!("\n {:22} {what}", sample.label));
        // What it makes possible by being there.
        let goes = |other: &&Sample| {
            sample.key() != other.key() && sample.implied(other) && !excludes(sample, other)
        };
        let goes: Vec<&str> = SAMPLES
            .iter()
            .filter(goes)
            .map(|other| other.label)
            .collect();
        if !goes.is_empty() {
            text.push_str(&format!(", but goes with {}", goes.join(", ")));
        }
    }
    text
}

#[test]
fn every_parameter_has_a_sample() {
    let text = help::HELP.to_str().expect("text");
    let lines = text.lines().filter(|line| !line.starts_with(' '));
    let keys = lines.filter_map(|line| line.trim_start_matches('[').split('=').next());
    let mut missing: Vec<&str> = keys.collect();
    missing.retain(|key| SAMPLES.iter().all(|sample| sample.key() != *key));
    assert_eq!(
        missing, [""; 0],
        "these parameters have no sample value: add a line for each of them to SAMPLES in \
         src/config/tests/pairs.rs, in the order of the help, with what it needs; then \
         `cargo test pairs` tells what has to be in the manual if it excludes others"
    );
}

#[test]
fn what_is_needed_is_needed() {
    for sample in SAMPLES.iter().filter(|sample| !sample.needs.is_empty()) {
        let alone = Sample {
            needs: &[],
            ..*sample
        };
        let place = of("socket");
        assert!(refused(&[&alone, place]), "{} alone", sample.label);
        for need in sample.needs {
            assert!(
                !refused(&[&alone, of(need)]),
                "{} with {need}",
                sample.label
            );
        }
    }
}

#[test]
fn matrix_of_the_manual_is_what_is_refused() {
    let manual = include_str!("../../../nbdkit-nbd-plugin.pod");
    let matrix = matrix();
    assert!(
        manual.contains(&format!("\n\n{matrix}\n\n")),
        "put this into nbdkit-nbd-plugin.pod, under \"Which exclude each other\", in the place of \
         what is there:\n\n{matrix}\n"
    );
}

/// A password in a URI is never shown, whatever parameter the URI was given to.
#[test]
fn no_parameter_repeats_a_password() {
    for sample in SAMPLES {
        for value in ["nbd://bob:SECRET@h", "http://bob%3ASECRET%40h/x"] {
            let mut params = Params::default();
            let set = params.set(sample.key(), value.as_bytes());
            let result = set.and_then(|()| params.complete().map(drop));
            if let Err(error) = result {
                let told = error.to_string();
                assert!(!told.contains("SECRET"), "{told}");
            }
        }
    }
}
