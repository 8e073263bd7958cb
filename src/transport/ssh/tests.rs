// SPDX-License-Identifier: BSD-3-Clause
//! What ssh is started with, and how it ends.

use super::*;

fn route(server: Far) -> Route {
    Route {
        user: None,
        host: "far.example".to_owned(),
        port: None,
        compress: false,
        server,
    }
}

fn words(route: &Route, patience: Option<Duration>, may_ask: bool) -> String {
    let arguments = route.arguments(patience, may_ask);
    let own = shown(&arguments);
    let always = ALWAYS.join(" ") + " ";
    own.strip_prefix(&always).expect("always there").to_owned()
}

#[test]
fn a_port_is_connected_to_by_ssh_itself() {
    let plain = route(Far::Tcp(10809));
    assert_eq!(
        words(&plain, None, true),
        "-W localhost:10809 -- far.example"
    );
    let full = Route {
        user: Some("bob".to_owned()),
        port: Some(2222),
        compress: true,
        ..plain
    };
    assert_eq!(
        words(&full, Some(Duration::from_millis(1500)), false),
        "-oBatchMode=yes -oConnectTimeout=2 -C -p 2222 -l bob -W localhost:10809 -- far.example"
    );
}

#[test]
fn a_socket_is_connected_to_by_nc_and_its_path_is_a_word() {
    for (path, word) in [
        ("/run/nbd.sock", "'/run/nbd.sock'"),
        ("a b;$(c)\\\"`", "'a b;$(c)\\\"`'"),
        ("it's", r"'it'\''s'"),
        ("-x", "'./-x'"),
    ] {
        let route = route(Far::Unix(PathBuf::from(path)));
        let expected = format!("-- far.example nc -U {word}");
        assert_eq!(words(&route, None, true), expected);
    }
}

#[test]
fn no_limit_is_ever_rounded_to_none() {
    let brief = words(&route(Far::Tcp(1)), Some(Duration::from_millis(1)), true);
    assert!(brief.starts_with("-oConnectTimeout=1 "), "{brief}");
}

#[test]
fn what_a_shell_or_ssh_could_take_for_something_else_is_not_safe() {
    for host in ["far", "far.example", "192.0.2.1", "fe80::1%eth0", "b_ü-1"] {
        assert!(is_safe_host(host), "{host}");
    }
    for host in [
        "",
        "-oProxyCommand=x",
        "a b",
        "a;b",
        "$(a)",
        "a@b",
        "a/b",
        "a\n",
    ] {
        assert!(!is_safe_host(host), "{host}");
    }
    for user in ["bob", "b.o-b", "DOMAIN\\bob", "bob@realm"] {
        assert!(is_safe_user(user), "{user}");
    }
    for user in [
        "", "-bob", "b ob", "b;ob", "`b`", "bob\\", "b\u{1b}", "b|b", "b'b",
    ] {
        assert!(!is_safe_user(user), "{user}");
    }
}

#[test]
fn its_name_in_messages_is_that_of_the_server() {
    let mut route = route(Far::Tcp(10809));
    assert_eq!(route.to_string(), "ssh:far.example:10809");
    route.user = Some("bob".to_owned());
    route.host = "2001:db8::1".to_owned();
    route.server = Far::Unix(PathBuf::from("/run/\n"));
    assert_eq!(route.to_string(), "ssh:bob@[2001:db8::1]:/run/\\n");
}

#[test]
fn an_end_is_told_with_the_last_words() {
    let status = |raw| Some(ExitStatus::from_raw(raw));
    for (end, words, text) in [
        (status(255 << 8), "", "ssh exited with status 255"),
        (status(9), "", "ssh was killed by signal 9"),
        (status(1 << 8), "no way", "ssh exited with status 1: no way"),
        (None, "no way", "ssh has ended: no way"),
    ] {
        assert_eq!(said(end, words), text);
    }
}

#[test]
fn a_process_is_waited_for_and_killed() {
    let start = |program: &str, argument: &str| {
        Process::new(
            Command::new(program)
                .arg(argument)
                .spawn()
                .expect("a usual program"),
        )
    };
    let limit = Duration::from_secs(10);
    let done = start("true", "").wait(limit).flatten();
    assert!(done.is_some_and(|status| status.success()));
    for handle in [true, false] {
        let mut sleeps = start("sleep", "60");
        if !handle {
            // As on an old kernel.
            sleeps.handle = None;
        }
        assert_eq!(sleeps.wait(Duration::from_millis(1)), None);
        sleeps.kill();
        let end = sleeps.wait(limit).flatten();
        assert_eq!(end.and_then(|status| status.signal()), Some(9));
    }
}
