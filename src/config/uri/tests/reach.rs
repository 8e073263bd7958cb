// SPDX-License-Identifier: BSD-3-Clause
//! Ports in the query, and ssh.

use super::*;

#[test]
fn the_port_in_the_query_wins() {
    assert_eq!(parse("nbd://h:1?nbd-port=2"), Ok(plain(tcp("h", "2"), "")));
    assert_eq!(
        parse("nbd+vsock://3:1?nbd-port=4294967295"),
        Ok(plain(
            Place::Vsock {
                cid: 3,
                port: u32::MAX
            },
            ""
        ))
    );
    refused(&[
        (
            "nbd://h?nbd-port=0",
            "nbd-port: must be a number from 1 to 65535",
        ),
        (
            "nbd://h?nbd-port=65536",
            "nbd-port: must be a number from 1 to 65535",
        ),
        (
            "nbd+vsock://?nbd-port=x",
            "nbd-port: must be a number from 0 to 4294967295",
        ),
        ("nbd://h?nbd-port=", "nbd-port: must not be empty"),
        (
            "nbd+unix:///?socket=/s&nbd-port=1",
            "nbd-port cannot be used with a Unix socket",
        ),
    ]);
}

#[test]
fn ssh_uris_name_two_hosts() {
    let route = |user: Option<&str>, host: &str, port, compress, server| {
        Place::Ssh(Route {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            compress,
            server,
        })
    };
    let socket = |path: &str| Far::Unix(PathBuf::from(path));
    for (text, place, export) in [
        (
            "nbd+ssh://far",
            route(None, "far", None, false, Far::Tcp(10809)),
            "",
        ),
        (
            "nbd+ssh://bob@far:2222/disk?nbd-port=1&compress=true",
            route(Some("bob"), "far", Some(2222), true, Far::Tcp(1)),
            "disk",
        ),
        (
            "nbd+ssh://[2001:db8::1]//x?socket=/run/a%20b&compress=0",
            route(None, "2001:db8::1", None, false, socket("/run/a b")),
            "/x",
        ),
    ] {
        assert_eq!(parse(text), Ok(plain(place, export)), "{text}");
    }
    // The user is ssh's; who shows a key to the server is said elsewhere.
    let uri = parse("nbds+ssh://bob@far?tls-username=alice").expect("legal");
    assert_eq!(uri.username, None);
    assert_eq!(uri.options.username.as_deref(), Some("alice"));
    assert!(uri.tls);
}

#[test]
fn what_ssh_must_not_be_given_is_refused() {
    const HOST: &str = "host: has characters that cannot be given to ssh, or begins with a dash";
    const USER: &str =
        "user name: has characters that cannot be given to ssh, or begins with a dash";
    let long = format!("nbd+ssh://far?socket=/{}", "x".repeat(107));
    refused(&[
        ("nbd+ssh:///disk", "host is missing: write nbd+ssh://HOST/"),
        ("nbd+ssh://-oProxyCommand=x/", HOST),
        ("nbd+ssh://%2Dv/", HOST),
        ("nbd+ssh://far;reboot/", HOST),
        ("nbd+ssh://$(reboot)/", HOST),
        ("nbd+ssh://a%20b/", HOST),
        ("nbd+ssh://-oUser=x@far/", USER),
        ("nbd+ssh://b;ob@far/", USER),
        ("nbd+ssh://far:0/", "port: must be a number from 1 to 65535"),
        (
            "nbd+ssh://far?socket=/s&nbd-port=1",
            "nbd-port cannot be used with a Unix socket",
        ),
        (&long, "socket file name too large"),
        (
            "nbd+ssh://far?compress=maybe",
            "compress 'maybe': must be 0, 1, false or true",
        ),
        (
            "nbd://far?compress=1",
            "compress needs ssh: write nbd+ssh:// in place of it",
        ),
        (
            "nbds+unix:///?socket=/s&compress=0",
            "compress needs ssh: write nbds+ssh:// in place of it",
        ),
        (
            "nbd+ssh://far?tls-username=a",
            "tls-username needs TLS: write nbds+ssh:// in place of nbd+ssh://",
        ),
    ]);
}
