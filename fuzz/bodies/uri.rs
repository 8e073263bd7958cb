// SPDX-License-Identifier: BSD-3-Clause
//! Anything that a user may type as a URI: no panic, and an error that a terminal can show and that repeats no secret.

use nbdkit_nbd_plugin::config::uri::{Place, parse};

/// Stands for a password in what is typed.
const SECRET: &str = "s3cr3tpa55";

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if text.contains('\0') {
        // It never comes out of a C string.
        return;
    }
    match parse(text) {
        Ok(uri) => {
            assert!(uri.export.as_bytes().len() <= 4096);
            assert!(!uri.export.as_bytes().contains(&0));
            if let Place::Unix(path) = &uri.place {
                assert!(!path.as_os_str().is_empty());
            }
        }
        Err(error) => {
            let said = error.to_string();
            assert!(
                !said.chars().any(char::is_control),
                "control characters: {said:?}"
            );
            // Between a colon and the @ that follows.
            let password = text.find(&format!(":{SECRET}@"));
            assert!(
                password.is_none() || text.matches(SECRET).count() > 1 || !said.contains(SECRET),
                "a secret: {said:?}"
            );
        }
    }
}
