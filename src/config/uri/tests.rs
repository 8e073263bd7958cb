// SPDX-License-Identifier: BSD-3-Clause
mod reach;

use super::*;
use proptest::prelude::*;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// What most URIs have in common: no TLS, no user, no options.
fn plain(place: Place, export: &str) -> Uri {
    Uri {
        place,
        tls: false,
        username: None,
        export: ExportName::new(export).expect("a name"),
        options: TlsOptions::default(),
    }
}

fn secure(place: Place, options: TlsOptions) -> Uri {
    Uri {
        tls: true,
        options,
        ..plain(place, "")
    }
}

fn tcp(host: &str, port: &str) -> Place {
    Place::Tcp {
        host: host.to_owned(),
        port: port.to_owned(),
    }
}

fn unix(path: &str) -> Place {
    Place::Unix(PathBuf::from(path))
}

#[test]
fn tcp_uris_name_host_and_port() {
    for (text, host, port) in [
        ("nbd://example.com", "example.com", "10809"),
        ("nbd://example.com/", "example.com", "10809"),
        ("nbd://example.com:10810", "example.com", "10810"),
        ("nbd://example.com:010810/", "example.com", "10810"),
        ("nbd://example.com:/", "example.com", "10809"),
        ("nbd://example.com:65535?", "example.com", "65535"),
        ("nbd://192.0.2.1:1/", "192.0.2.1", "1"),
        ("nbd://ex%61mple.com", "example.com", "10809"),
        ("NBD://Example.COM", "Example.COM", "10809"),
        ("nbd://", "localhost", "10809"),
        ("nbd:///", "localhost", "10809"),
        ("nbd://:1234", "localhost", "1234"),
    ] {
        assert_eq!(parse(text), Ok(plain(tcp(host, port), "")), "{text}");
    }
}

#[test]
fn ipv6_addresses_lose_their_brackets() {
    for (text, host, port) in [
        ("nbd://[::1]", "::1", "10809"),
        ("nbd://[::1]:", "::1", "10809"),
        ("nbd://[2001:db8::7]:1234/", "2001:db8::7", "1234"),
        ("nbd://[::ffff:192.0.2.1]/", "::ffff:192.0.2.1", "10809"),
        ("nbd://[fe80::1%25eth0]:1/", "fe80::1%eth0", "1"),
    ] {
        assert_eq!(parse(text), Ok(plain(tcp(host, port), "")), "{text}");
    }
}

#[test]
fn the_path_without_one_slash_is_the_export() {
    for (path, export) in [
        ("", ""),
        ("/", ""),
        ("/disk", "disk"),
        ("//disk", "/disk"),
        ("/a/b/", "a/b/"),
        ("/../a/./b", "../a/./b"),
        ("/hello%20world", "hello world"),
        ("/a+b", "a+b"),
        ("/%2Fdisk", "/disk"),
        ("/a%3fb%23c%25", "a?b#c%"),
        ("/%c3%a9t%C3%A9", "\u{e9}t\u{e9}"),
        ("/a:b@c=d&e;f", "a:b@c=d&e;f"),
    ] {
        let text = format!("nbd://h{path}");
        assert_eq!(parse(&text), Ok(plain(tcp("h", "10809"), export)), "{text}");
    }
}

#[test]
fn unix_uris_name_the_socket_in_the_query() {
    for (text, path, export) in [
        ("nbd+unix:///disk?socket=/run/s", "/run/s", "disk"),
        ("nbd+unix:///?socket=/run/s", "/run/s", ""),
        ("nbd+unix://?socket=/run/s", "/run/s", ""),
        ("nbd+unix:////x?socket=nbd.sock", "nbd.sock", "/x"),
        ("nbd+unix:///?socket=/a%20b%26c%3Bd", "/a b&c;d", ""),
        ("nbd+unix:///?socket=/a+b", "/a+b", ""),
        ("nbd+unix:///?socket=/a?b=c", "/a?b=c", ""),
        ("nbd+unix:///?%73ocket=/s", "/s", ""),
        ("nbd+unix:///?&;socket=/s;&", "/s", ""),
        ("nbd+unix://@/?socket=/s", "/s", ""),
        ("Nbd+Unix:///X?socket=/S", "/S", "X"),
    ] {
        assert_eq!(parse(text), Ok(plain(unix(path), export)), "{text}");
    }
}

#[test]
fn a_socket_path_need_not_be_text() {
    let path = PathBuf::from(OsString::from_vec(b"/tmp/\xff".to_vec()));
    assert_eq!(
        parse("nbd+unix:///?socket=/tmp/%ff"),
        Ok(plain(Place::Unix(path), ""))
    );
}

#[test]
fn vsock_uris_name_context_and_port() {
    for (text, cid, port) in [
        ("nbd+vsock://", 2, 10809),
        ("nbd+vsock:///", 2, 10809),
        ("nbd+vsock://:7/", 2, 7),
        ("nbd+vsock://3", 3, 10809),
        ("nbd+vsock://3:/", 3, 10809),
        ("nbd+vsock://4294967295:4294967295/", u32::MAX, u32::MAX),
    ] {
        let place = Place::Vsock { cid, port };
        assert_eq!(parse(text), Ok(plain(place, "")), "{text}");
    }
}

#[test]
fn an_s_in_the_scheme_demands_tls() {
    for (text, place) in [
        ("nbds://h", tcp("h", "10809")),
        ("nbds+unix:///?socket=/s", unix("/s")),
        ("nbds+vsock://3:1", Place::Vsock { cid: 3, port: 1 }),
    ] {
        assert_eq!(
            parse(text),
            Ok(secure(place, TlsOptions::default())),
            "{text}"
        );
    }
}

#[test]
fn a_user_may_stand_before_the_host() {
    for (text, name) in [
        ("nbd://alice@h/", Some("alice")),
        ("nbds://alice@[::1]:1/x", Some("alice")),
        ("nbds+unix://alice@/?socket=/s", Some("alice")),
        ("nbd://a%40b%2Cc@h", Some("a@b,c")),
        ("nbd://@h", None),
        ("nbd://h/alice@example", None),
    ] {
        let username = parse(text).expect(text).username;
        assert_eq!(username.as_deref(), name, "{text}");
    }
}

#[test]
fn the_query_may_say_how_to_do_tls() {
    let text = "nbds+unix:///?tls-type=x509&tls-hostname=disk.example&tls-verify-peer=0\
                &tls-certificates=/etc/pki%20nbd;tls-psk-file=keys.psk&socket=/s\
                &tls-username=alice&tls-priority=NORMAL";
    let options = TlsOptions {
        kind: Some(TlsKind::X509),
        hostname: Some("disk.example".to_owned()),
        verify_peer: Some(false),
        certificates: Some(PathBuf::from("/etc/pki nbd")),
        psk_file: Some(PathBuf::from("keys.psk")),
        username: Some("alice".to_owned()),
        priority: Some("NORMAL".to_owned()),
    };
    assert_eq!(parse(text), Ok(secure(unix("/s"), options)));
}

#[test]
fn tls_options_have_few_values() {
    for (value, kind) in [
        ("anon", TlsKind::Anonymous),
        ("x509", TlsKind::X509),
        ("psk", TlsKind::Psk),
    ] {
        let uri = parse(&format!("nbds://h?tls-type={value}")).expect(value);
        assert_eq!(uri.options.kind, Some(kind));
    }
    for (value, verify) in [("0", false), ("false", false), ("1", true), ("true", true)] {
        let uri = parse(&format!("nbds://h?tls-verify-peer={value}")).expect(value);
        assert_eq!(uri.options.verify_peer, Some(verify));
    }
}

/// Each text fails with exactly this message.
fn refused(table: &[(&str, &str)]) {
    for (text, message) in table {
        let error = parse(text).expect_err(text);
        assert_eq!(error.to_string(), *message, "{text}");
    }
}

#[test]
fn what_has_no_scheme_of_nbd_is_refused() {
    const NONE: &str = "no scheme: a URI begins with nbd://, nbds://, nbd+unix://, nbds+unix://, \
                        nbd+vsock://, nbds+vsock://, nbd+ssh:// or nbds+ssh://";
    const PATH: &str = "a path is not a URI: write nbd+unix:///?socket=PATH, or use socket=PATH";
    refused(&[
        ("", NONE),
        ("nbd", NONE),
        ("localhost", NONE),
        ("localhost:10809", NONE),
        (":", NONE),
        ("/run/nbd.sock", PATH),
        ("./nbd.sock", PATH),
        ("nbd:localhost", "'nbd:' must be followed by '//'"),
        (
            "NBD+unix:/?socket=/s",
            "'nbd+unix:' must be followed by '//'",
        ),
        (
            "http://h/",
            "unknown scheme 'http': a URI begins with nbd://, nbds://, nbd+unix://, \
             nbds+unix://, nbd+vsock://, nbds+vsock://, nbd+ssh:// or nbds+ssh://",
        ),
        (
            "nbd+tls\n://h",
            "unknown scheme 'nbd+tls\\n': a URI begins with nbd://, nbds://, nbd+unix://, \
             nbds+unix://, nbd+vsock://, nbds+vsock://, nbd+ssh:// or nbds+ssh://",
        ),
    ]);
}

#[test]
fn malformed_addresses_are_refused() {
    const NO_HOST: &str = "a Unix socket has no host or port, so nothing stands after the second \
                           slash (an export name follows a third one)";
    refused(&[
        ("nbd://h:x", "port: must be a number from 1 to 65535"),
        ("nbd://h:0", "port: must be a number from 1 to 65535"),
        ("nbd://h:+1", "port: must be a number from 1 to 65535"),
        ("nbd://h:65536/", "port: must be a number from 1 to 65535"),
        (
            "nbd://[::1]:99999999999/",
            "port: must be a number from 1 to 65535",
        ),
        (
            "nbd://fe80::1/",
            "host: has several colons (an IPv6 address is written in brackets)",
        ),
        ("nbd://[::1/", "host: '[' without ']'"),
        (
            "nbd://[::1]1/",
            "host: only a colon and a port may follow ']'",
        ),
        ("nbd://[]/", "host: '' is not an IPv6 address"),
        ("nbd://[h]/", "host: 'h' is not an IPv6 address"),
        (
            "nbd://[192.0.2.1]/",
            "host: '192.0.2.1' is not an IPv6 address",
        ),
        (
            "nbd://[fe80::1%25]/",
            "host: 'fe80::1%25' is not an IPv6 address",
        ),
        (
            "nbd://[fe80::1%eth0]/",
            "host: 'fe80::1%eth0' is not an IPv6 address",
        ),
        ("nbd://h[1]/", "host: '[' must be written %5B"),
        ("nbd://h%00/", "host: must not contain a zero byte (%00)"),
        (
            "nbd+vsock://host/",
            "vsock context id 'host': must be a number from 0 to 4294967295",
        ),
        (
            "nbd+vsock://4294967296/",
            "vsock context id '4294967296': must be a number from 0 to 4294967295",
        ),
        (
            "nbd+vsock://2:4294967296/",
            "port: must be a number from 0 to 4294967295",
        ),
        ("nbd+unix://disk?socket=/s", NO_HOST),
        ("nbd+unix://:10809/?socket=/s", NO_HOST),
    ]);
}

#[test]
fn malformed_users_are_refused() {
    const PASSWORD: &str = "a password in a URI is not supported";
    refused(&[
        ("nbd://alice:secret@h/", PASSWORD),
        ("nbd://alice:s@cret@h/", PASSWORD),
        ("nbd://alice:%zz@h/", PASSWORD),
        ("nbd://alice%3asecret@h/", PASSWORD),
        ("nbd://alice%3A%zz@h/", PASSWORD),
        ("nbds+unix://alice:secret@/?socket=/s", PASSWORD),
        ("nbd+ssh://alice:secret@h/", PASSWORD),
        ("nbds://h/?tls-username=alice:secret", PASSWORD),
        ("nbds://h/?tls-username=alice%3Asecret", PASSWORD),
        ("nbds://h/?tls-username=alice:%zz", PASSWORD),
        ("nbd://a@b@h/", "user name: '@' must be written %40"),
        ("nbd://%ff@h/", "user name: must be UTF-8"),
        (
            "nbds://alice@h?tls-username=bob",
            "the user name is given twice: before '@' and as tls-username",
        ),
    ]);
}

#[test]
fn malformed_names_are_refused() {
    refused(&[
        ("nbd://h/a b", "export name: ' ' must be written %20"),
        ("nbd://h/a\n", "export name: '\\n' must be written %0A"),
        (
            "nbd://h/\u{e9}",
            "export name: '\u{e9}' must be written %C3%A9",
        ),
        ("nbd://h/a[1]", "export name: '[' must be written %5B"),
        ("nbd://h/a#b", "export name: '#' must be written %23"),
        (
            "nbd://h/100%",
            "export name: '%' is not a percent escape (a percent sign itself is written %25)",
        ),
        (
            "nbd://h/%2",
            "export name: '%2' is not a percent escape (a percent sign itself is written %25)",
        ),
        (
            "nbd://h/%+1x",
            "export name: '%+1' is not a percent escape (a percent sign itself is written %25)",
        ),
        (
            "nbd://h/%\u{e9}1",
            "export name: '%\u{e9}1' is not a percent escape (a percent sign itself is written %25)",
        ),
        (
            "nbd://h/a%00",
            "export name: must not contain a zero byte (%00)",
        ),
    ]);
}

#[test]
fn an_export_name_has_at_most_4096_bytes() {
    let longest = "%41".repeat(4096);
    let uri = parse(&format!("nbd://h/{longest}")).expect("4096 bytes once decoded");
    assert_eq!(uri.export.as_bytes().len(), 4096);
    let error = parse(&format!("nbd://h/{longest}A")).expect_err("one more");
    assert_eq!(
        error.to_string(),
        "export name: 4097 bytes long, more than the 4096 that the protocol allows"
    );
}

#[test]
fn malformed_queries_are_refused() {
    refused(&[
        ("nbd://h?foo", "unknown query key 'foo'"),
        ("nbd://h?x-mine=1", "unknown query key 'x-mine'"),
        ("nbd://h?Socket=/s", "unknown query key 'Socket'"),
        ("nbd://h?a%0ab%ff=1", "unknown query key 'a\\nb\u{fffd}'"),
        ("nbd://h?=1", "query: '=1' has no key"),
        (
            "nbd://h?%zz=1",
            "query: '%zz' is not a percent escape (a percent sign itself is written %25)",
        ),
        (
            "nbd+unix:///?socket=/s&socket=/s",
            "query key 'socket' is given twice",
        ),
        (
            "nbds://h?tls-hostname=a;tls-hostname=b",
            "query key 'tls-hostname' is given twice",
        ),
        ("nbd+unix:///?socket=/a;b", "unknown query key 'b'"),
        (
            "nbd+unix:///?socket=/a#b",
            "socket: '#' must be written %23",
        ),
        (
            "nbd+unix:///?socket=%00abstract",
            "socket: must not contain a zero byte (%00)",
        ),
        ("nbd+unix:///?socket=", "socket: must not be empty"),
        ("nbd+unix:///?socket", "socket: must not be empty"),
        (
            "nbd+unix:///disk",
            "socket is missing: write nbd+unix:///?socket=PATH",
        ),
        (
            "nbds+unix://",
            "socket is missing: write nbds+unix:///?socket=PATH",
        ),
        (
            "nbd://h/?socket=/s",
            "socket cannot be used with nbd: write nbd+unix:///?socket=PATH for a Unix socket",
        ),
        (
            "nbds+vsock:///?socket=/s",
            "socket cannot be used with nbds+vsock: \
             write nbds+unix:///?socket=PATH for a Unix socket",
        ),
    ]);
}

#[test]
fn malformed_tls_options_are_refused() {
    refused(&[
        (
            "nbds://h?tls-type=X509",
            "tls-type 'X509': must be x509, psk or anon",
        ),
        (
            "nbds://h?tls-verify-peer=2",
            "tls-verify-peer '2': must be 0, 1, false or true",
        ),
        (
            "nbds://h?tls-verify-peer",
            "tls-verify-peer: must not be empty",
        ),
        ("nbds://h?tls-hostname=%ff", "tls-hostname: must be UTF-8"),
        ("nbds://h?tls-username=", "tls-username: must not be empty"),
    ]);
}

#[test]
fn every_tls_option_needs_a_scheme_with_tls() {
    for option in [
        "tls-type=psk",
        "tls-hostname=h",
        "tls-verify-peer=1",
        "tls-certificates=/d",
        "tls-psk-file=/f",
        "tls-username=u",
        "tls-priority=p",
    ] {
        assert!(parse(&format!("nbds://h?{option}")).is_ok(), "{option}");
        let error = parse(&format!("nbd://h?{option}")).expect_err(option);
        let (key, _) = option.split_once('=').expect("a pair");
        assert_eq!(
            error.to_string(),
            format!("{key} needs TLS: write nbds:// in place of nbd://")
        );
    }
    refused(&[(
        "nbd+unix:///?tls-type=psk&tls-hostname=h&socket=/s",
        "tls-type needs TLS: write nbds+unix:// in place of nbd+unix://",
    )]);
}

/// Places in which people have had a password, none of which is one for a password.
#[test]
fn no_message_shows_what_may_be_a_password() {
    for text in [
        "nbd://alice:hunter2/disk",
        "nbd://alice:hun/ter2@h/disk",
        "nbd://alice:hun?ter2@h/disk",
        "nbd://alice:hun?=ter2@h/disk",
        "nbd://alice:hunter%zz2/@h",
        "nbd://alice:hunter2%40h/disk",
        "nbd://alice:1/hunter\"2@h/disk",
        "nbd://alice:1/hunter%2z@h/disk",
        "nbd://alice:hun:ter2%40h/",
        "nbd://alice%3Ahunter2@h/",
        "nbd://[alice:hunter2@h]/",
        "nbd://[::1]hunter2@h/",
        "nbd+unix://alice:hunter2/?socket=/s",
        "nbd+vsock://alice:hunter2/",
        "nbd+vsock://hunter2%3A@2/",
        "nbd+ssh://alice:hunter2/disk",
        "nbd+ssh://alice:hun%20ter2/disk",
        "nbds://h:1/?tls-type=alice:hunter2@h",
        "nbds://h/?tls-verify-peer=alice:hunter2@h",
        "http://alice:hunter2@h/",
        "alice:hunter2@h",
        "alice:hunter2://@h",
        "nbd:alice:hunter2@h",
        "nbd:unix:alice:hunter2@h",
    ] {
        let message = parse(text).expect_err(text).to_string();
        for piece in ["hun", "ter2", "zz", "%2z", "\""] {
            assert!(!message.contains(piece), "{text}: {message}");
        }
    }
}

#[test]
fn qemus_own_words_get_a_hint() {
    refused(&[
        (
            "nbd:unix:/run/nbd.sock:exportname=x",
            "nbd:unix:PATH is not a URI: write nbd+unix:///EXPORT?socket=PATH",
        ),
        (
            "nbd:localhost:10809",
            "nbd:HOST:PORT is not a URI: write nbd://HOST:PORT/EXPORT",
        ),
    ]);
}

/// Every byte as an escape, or only those that must be.
fn encode(bytes: &[u8], all: bool) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() && !all {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02x}"));
        }
    }
    text
}

proptest! {
    #[test]
    fn any_export_name_survives(name in prop::collection::vec(1u8.., 0..200), all: bool) {
        let uri = parse(&format!("nbd://h/{}", encode(&name, all)));
        prop_assert_eq!(uri.map(|uri| uri.export.as_bytes().to_vec()), Ok(name));
    }

    #[test]
    fn any_socket_path_survives(
        path in prop::collection::vec(1u8.., 1..108),
        user in "[^\0:]{1,20}",
        all: bool,
    ) {
        let text = format!(
            "nbd+unix://{}@/?socket={}",
            encode(user.as_bytes(), all),
            encode(&path, all)
        );
        let uri = parse(&text).expect("legal");
        prop_assert_eq!(uri.place, Place::Unix(PathBuf::from(OsString::from_vec(path))));
        prop_assert_eq!(uri.username, Some(user));
    }

    #[test]
    fn any_ipv6_address_survives(address: std::net::Ipv6Addr, port in 1u16..) {
        let uri = parse(&format!("nbd://[{address}]:{port}/"));
        prop_assert_eq!(uri, Ok(plain(tcp(&address.to_string(), &port.to_string()), "")));
    }

    #[test]
    fn no_text_is_too_strange(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_uri_is_too_strange(
        scheme in "nbds?(\\+(unix|vsock|ssh))?",
        rest in "([a-z0-9:@/?&;=%\\[\\]#\0\n\u{e9}]|socket=|tls-type=psk|nbd-port=|compress=|%00|%C3|%25){0,30}",
    ) {
        match parse(&format!("{scheme}://{rest}")) {
            Ok(uri) => {
                prop_assert_eq!(uri.tls, scheme.starts_with("nbds"));
                prop_assert!(!uri.export.as_bytes().contains(&0));
                prop_assert!(uri.tls || uri.options == TlsOptions::default());
            }
            // One printable line, whatever was typed.
            Err(error) => prop_assert!(!error.to_string().chars().any(char::is_control)),
        }
    }
}
