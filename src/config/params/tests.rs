// SPDX-License-Identifier: BSD-3-Clause
//! One value at a time, right and wrong.

use super::*;

#[test]
fn times_have_units() {
    for (text, expected) in [
        ("30", 30_000),
        ("1.5", 1500),
        ("1.5s", 1500),
        ("200ms", 200),
        ("0", 0),
    ] {
        assert_eq!(
            duration(text),
            Ok(Duration::from_millis(expected)),
            "{text}"
        );
    }
}

/// Zero means something else.
#[test]
fn the_shortest_time_is_not_none() {
    let tiny = format!("0.{}1", "0".repeat(400));
    for text in ["0.0000000001", "0.0000001ms", tiny.as_str()] {
        assert_eq!(duration(text), Ok(Duration::from_nanos(1)), "{text}");
    }
    assert_eq!(duration("0.000ms"), Ok(Duration::ZERO));
}

#[test]
fn what_is_no_time_is_refused() {
    for text in [
        "", "s", "ms", "-1", "+1", "1e3", "inf", "nan", "1m", "1.2.3", "1 s",
    ] {
        assert_eq!(duration(text), Err(BadTime::Malformed), "{text}");
    }
    for text in ["9999999999999", "31622401", "31622401000ms"] {
        assert_eq!(duration(text), Err(BadTime::TooLong), "{text}");
    }
    assert!(duration("31622400").is_ok());
}

#[test]
fn booleans_are_nbdkits() {
    for text in ["1", "true", "T", "Yes", "y", "ON"] {
        assert_eq!(boolean("shared", text.as_bytes()), Ok(true), "{text}");
    }
    for text in ["0", "FALSE", "f", "no", "N", "off"] {
        assert_eq!(boolean("shared", text.as_bytes()), Ok(false), "{text}");
    }
    let error = boolean("shared", b"maybe").expect_err("neither");
    assert_eq!(
        error.to_string(),
        "shared: could not decipher boolean (maybe)"
    );
}

#[test]
fn a_host_is_a_host_alone() {
    for text in [
        "localhost",
        "192.0.2.1",
        "::1",
        "2001:db8::7",
        "fe80::1%eth0",
        "fe80::1%a:b",
        "h_1.example.",
    ] {
        assert_eq!(host(text.as_bytes()).as_deref(), Ok(text));
    }
    for (text, message) in [
        (
            "localhost:10809",
            "hostname=localhost:10809: must be the host alone: write hostname=localhost \
             port=10809",
        ),
        (
            "[::1]:nbd",
            "hostname=[::1]:nbd: must be the host alone: write hostname=::1 port=nbd",
        ),
        ("[::1]", "hostname=[::1]: must be without brackets"),
        (
            "nbds://bob:hunter2@h",
            "hostname: must not be a URI: write uri=URI",
        ),
        (
            "bob:hunter2@h",
            "hostname: must not be a URI: write uri=URI",
        ),
        (
            "/run/s",
            "hostname=/run/s: must be a host: write socket=PATH",
        ),
        ("a:b:c", "hostname=a:b:c: must be a host or an IP address"),
        (
            "a\n:1",
            "hostname=a\\n:1: must be the host alone: write hostname=a\\n port=1",
        ),
    ] {
        assert_eq!(host(text.as_bytes()).expect_err(text).to_string(), message);
    }
}

#[test]
fn a_uri_is_for_uri_alone() {
    for text in [
        "/cwd/nbd://h",
        "/cwd/NBD+unix:///?socket=/s",
        "/a/b/nbds://h",
        "x://bob:SECRET@h",
        "x://bob%3aSECRET%40h",
    ] {
        for key in ["socket", "stats", "request-timeout", "no-such"] {
            let error = refuse_uri(key, text.as_bytes()).expect_err(text);
            assert_eq!(
                error.to_string(),
                format!("{key}: must not be a URI: write uri=URI")
            );
        }
        for key in ["uri", "export", "arg"] {
            assert_eq!(refuse_uri(key, text.as_bytes()), Ok(()));
        }
    }
    for text in ["/cwd/http://h", "/cwd/nbd:h", "/nbd/s", "/a/nbd/://"] {
        assert_eq!(refuse_uri("socket", text.as_bytes()), Ok(()));
    }
}

#[test]
fn a_service_is_known_or_refused_at_once() {
    for port in ["10809", " 10809", "+10809", "\t+10809"] {
        assert_eq!(tcp_port(port).as_deref(), Ok("10809"), "{port:?}");
    }
    let error = tcp_port("no-such-service").expect_err("nobody has it");
    assert_eq!(
        error.to_string(),
        format!("port=no-such-service: {NO_SERVICE}")
    );
}

#[test]
fn numbers_are_nbdkits() {
    for (text, expected) in [
        ("0", 0),
        ("10", 10),
        ("0x10", 16),
        ("010", 8),
        ("4294967295", u32::MAX),
        (" 10", 10),
        ("\t\n\x0b\r+10", 10),
        ("+0x10", 16),
    ] {
        assert_eq!(number("port", text.as_bytes()), Ok(expected), "{text}");
    }
    for (text, message) in [
        ("", "port: empty string where we expected a number"),
        (" ", "port: empty string where we expected a number"),
        ("x", "port: could not parse number: \"x\": not a number"),
        ("+", "port: could not parse number: \"+\": not a number"),
        ("+-1", "port: could not parse number: \"+-1\": not a number"),
        (
            "1 ",
            "port: could not parse number: \"1 \": trailing garbage",
        ),
        (
            "1x",
            "port: could not parse number: \"1x\": trailing garbage",
        ),
        (
            "09",
            "port: could not parse number: \"09\": trailing garbage",
        ),
        (
            "-1",
            "port: could not parse number: \"-1\": negative numbers are not allowed",
        ),
        (
            "4294967296",
            "port: could not parse number: \"4294967296\": Numerical result out of range",
        ),
    ] {
        let error = number("port", text.as_bytes()).expect_err(text);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn descriptors_are_not_negative() {
    assert_eq!(descriptor(b"3"), Ok(3));
    assert_eq!(descriptor(b"-1"), Err(Error::NegativeDescriptor));
    assert!(descriptor(b"2147483648").is_err());
}

#[test]
fn sizes_are_nbdkits() {
    for (text, expected) in [
        ("0", 0),
        ("1", 1),
        ("1048576", 1 << 20),
        ("010", 10),
        ("3b", 3),
        ("2s", 1024),
        ("2S", 1024),
        ("1k", 1 << 10),
        ("1K", 1 << 10),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("1g", 1 << 30),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("7e", 7 << 60),
        ("9223372036854775807", i64::MAX as u64),
    ] {
        assert_eq!(size("replay", text.as_bytes()), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_no_size_is_refused() {
    for (text, why) in [
        ("", BAD_SIZE),
        ("M", BAD_SIZE),
        ("-1", BAD_SIZE),
        ("+1", BAD_SIZE),
        (" 1", BAD_SIZE),
        ("1 M", BAD_SIZE),
        ("1MB", BAD_SIZE),
        ("1MiB", BAD_SIZE),
        ("1.5M", BAD_SIZE),
        ("0x10", BAD_SIZE),
        ("1z", BAD_SIZE),
        ("8E", SIZE_TOO_LARGE),
        ("16E", SIZE_TOO_LARGE),
        ("9223372036854775808", SIZE_TOO_LARGE),
        ("99999999999999999999999", SIZE_TOO_LARGE),
        ("18446744073709551615s", SIZE_TOO_LARGE),
    ] {
        let error = size("replay", text.as_bytes()).expect_err(text);
        assert_eq!(error.to_string(), format!("replay={text}: {why}"));
    }
    assert!(size("replay", b"1\xff").is_err());
}

#[test]
fn tcp_waits_no_longer_than_linux_can() {
    assert_eq!(keepalive(b"0"), Ok(None));
    assert_eq!(keepalive(b"200ms"), Ok(Some(Duration::from_millis(200))));
    assert_eq!(keepalive(b"32767"), Ok(Some(keepalive::LONGEST)));
    assert_eq!(
        keepalive(b"32768").expect_err("too long").to_string(),
        "keepalive=32768: must be at most 32767 seconds, which is as long as Linux waits"
    );
}

#[test]
fn detection_has_three_words() {
    for (text, expected) in [
        ("off", DetectZeroes::Off),
        ("on", DetectZeroes::On),
        ("unmap", DetectZeroes::Unmap),
    ] {
        assert_eq!(detect_zeroes(text.as_bytes()), Ok(expected));
    }
    for text in ["", "yes", "true", "On", "unmap "] {
        assert_eq!(
            detect_zeroes(text.as_bytes())
                .expect_err("none")
                .to_string(),
            format!("detect-zeroes={text}: must be off, on or unmap")
        );
    }
}

#[test]
fn zero_means_no_limit() {
    assert_eq!(timeout("request-timeout", b"0"), Ok(None));
}
