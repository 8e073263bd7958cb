// SPDX-License-Identifier: BSD-3-Clause
//! What the user typed cannot forge a line of the log, or speak to the terminal that shows it, when it turns up in
//! a message about a server. What is refused at the start is in `bad_input.rs`.

mod common;

use common::front::Front;
use common::nbdkit::Nbdkit;
use common::{need, plugin};

/// No client gets in, and every line of what nbdkit says is one of its own.
fn is_told_in_lines_of_ours(parameter: &str, shown: &str) {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    // Without -v, with which nbdkit itself repeats the parameters.
    let plugin = plugin();
    let args = [plugin.as_os_str(), parameter.as_ref()];
    let front = Nbdkit::start(directory.path(), &args);
    assert!(
        Front::open(front.socket()).is_err(),
        "{parameter:?}: opened"
    );
    let stderr = front.stderr();
    assert!(stderr.contains(shown), "{parameter:?}: {stderr}");
    for line in stderr.lines() {
        assert!(line.starts_with("nbdkit: "), "{parameter:?}: {line:?}");
        assert!(!line.contains(char::is_control), "{parameter:?}: {line:?}");
    }
}

#[test]
fn path_of_a_socket() {
    is_told_in_lines_of_ours(
        "socket=/nowhere\nFORGED\u{1b}[31m",
        "error: /nowhere\\nFORGED\\u{1b}[31m: connect: ",
    );
}

#[test]
fn path_of_a_socket_in_a_uri() {
    is_told_in_lines_of_ours(
        "nbd+unix:///?socket=/nowhere%0aFORGED%1b",
        "error: /nowhere\\nFORGED\\u{1b}: connect: ",
    );
}

#[test]
fn name_of_a_host() {
    // Too long for a name, so that nobody is asked.
    let rest = "x".repeat(70);
    let shown = format!("error: a\\nFORGED\\r{rest}:10809: connect: ");
    is_told_in_lines_of_ours(&format!("hostname=a\nFORGED\r{rest}"), &shown);
    is_told_in_lines_of_ours(&format!("nbd://a%0aFORGED%0d{rest}"), &shown);
}
