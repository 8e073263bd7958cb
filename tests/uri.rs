// SPDX-License-Identifier: BSD-3-Clause
//! One word that says where the server is and which export is wanted.

mod common;

use std::path::Path;
use std::time::Duration;

use common::clients::{LIMIT, nbdsh, text};
use common::daemon::Daemon;
use common::front::Front;
use common::nbdkit::{Nbdkit, through};
use common::need;
use common::process::eventually;
use common::refusal::{MODES, refusal, refusal_in};
use common::tcp::{TcpServer, V4, V6, has_v6};

/// A server whose disk holds the export name that it was asked for.
const TELLS_THE_NAME: [&str; 1] = ["info"];

/// What a client reads through nbdkit.
fn content(front: &Nbdkit) -> String {
    let script = "
import sys
size = h.get_size()
if size:
    sys.stdout.buffer.write(h.pread(size, 0))
";
    nbdsh(&front.uri(), script)
}

/// `uri` must lead to the export `name` of a server on a Unix socket; SOCKET in it stands for the path.
fn names_the_export(uri: &str, name: &str) {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Nbdkit::start(directory.path(), &TELLS_THE_NAME);
    let uri = uri.replace("SOCKET", text(server.socket()));
    let front = through(directory.path(), &[&uri]);
    assert_eq!(content(&front), name, "{uri}");
}

#[test]
fn word_without_a_key_is_the_uri() {
    names_the_export("nbd+unix:///disk?socket=SOCKET", "disk");
}

#[test]
fn key_may_be_written() {
    names_the_export("uri=nbd+unix:///disk?socket=SOCKET", "disk");
}

#[test]
fn scheme_may_be_in_capitals() {
    names_the_export("uri=NBD+UNIX:///disk?socket=SOCKET", "disk");
}

#[test]
fn percent_escapes_stand_for_bytes() {
    names_the_export("nbd+unix:///a%20b%2Fc%25%3F?socket=SOCKET", "a b/c%?");
}

#[test]
fn name_may_be_of_any_script() {
    names_the_export("nbd+unix:///%C3%BCn%C3%AFcode?socket=SOCKET", "ünïcode");
}

#[test]
fn plus_is_not_a_space() {
    names_the_export("nbd+unix:///a+b?socket=SOCKET", "a+b");
}

#[test]
fn one_leading_slash_is_dropped_and_no_other() {
    names_the_export("nbd+unix:////dev/disk/?socket=SOCKET", "/dev/disk/");
}

#[test]
fn socket_path_is_unescaped() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("my socket & more");
    let _server = Nbdkit::start_at(&socket, &TELLS_THE_NAME);
    let escaped = text(&socket).replace(' ', "%20").replace('&', "%26");
    let uri = format!("nbd+unix:///disk?socket={escaped}");
    assert_eq!(content(&through(directory.path(), &[&uri])), "disk");
}

/// `uri` must lead to the export "disk" of a server on TCP; PORT in it stands for the port.
fn reaches(server: &TcpServer, uri: &str) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let uri = uri.replace("PORT", &server.port());
    let front = through(directory.path(), &[&uri]);
    assert_eq!(content(&front), "disk", "{uri}");
}

#[test]
fn tcp_by_address_and_by_name() {
    if !need("nbdkit") {
        return;
    }
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    reaches(&server, "nbd://127.0.0.1:PORT/disk");
    reaches(&server, "nbd://localhost:PORT/disk");
}

#[test]
fn tcp_without_a_host_is_this_machine() {
    if !need("nbdkit") {
        return;
    }
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    reaches(&server, "nbd://:PORT/disk");
}

#[test]
fn user_is_no_part_of_the_host() {
    if !need("nbdkit") {
        return;
    }
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    reaches(&server, "nbd://somebody@127.0.0.1:PORT/disk");
}

#[test]
fn ipv6_address_in_brackets() {
    if !need("nbdkit") || !has_v6() {
        return;
    }
    let server = TcpServer::start(V6, &TELLS_THE_NAME);
    reaches(&server, "nbd://[::1]:PORT/disk");
}

/// nbdkit starts, and says this when a client comes.
fn fails_to_open(args: &[&str], says: &str) {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let front = through(directory.path(), args);
    assert!(Front::open(front.socket()).is_err(), "{args:?}: opened");
    assert!(
        front.stderr().contains(says),
        "{args:?}: {}",
        front.stderr()
    );
}

#[test]
fn port_of_a_uri_is_10809_by_default() {
    // An address of loopback that nobody uses.
    fails_to_open(&["nbd://127.77.0.9"], "error: 127.77.0.9:10809: connect: ");
}

#[test]
fn vsock_uri_gives_context_id_and_port() {
    // Nobody listens there, whether the kernel has virtio sockets or not.
    fails_to_open(&["nbd+vsock://1:34567/"], "error: vsock:1:34567: connect: ");
}

/// The export that these parameters, and a server on a Unix socket, lead to.
fn export_of(directory: &Path, server: &Nbdkit, uri: &str, parameters: &[&str]) -> String {
    let uri = uri.replace("SOCKET", text(server.socket()));
    let args = [&[uri.as_str()], parameters].concat();
    content(&through(directory, &args))
}

#[test]
fn name_in_the_uri_beats_the_export_parameter() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Nbdkit::start(directory.path(), &TELLS_THE_NAME);
    let export = |uri| export_of(directory.path(), &server, uri, &["export=parameter"]);
    assert_eq!(export("nbd+unix:///uri?socket=SOCKET"), "uri");
}

#[test]
fn even_the_empty_name_in_the_uri_beats_the_export_parameter() {
    if !need("nbdkit") {
        return;
    }
    // As the plugin in C has it, with the slash or without.
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Nbdkit::start(directory.path(), &TELLS_THE_NAME);
    let export = |uri| export_of(directory.path(), &server, uri, &["export=parameter"]);
    assert_eq!(export("nbd+unix:///?socket=SOCKET"), "");
    assert_eq!(export("nbd+unix://?socket=SOCKET"), "");
}

#[test]
fn relative_socket_is_found_from_the_background() {
    if !need("nbdkit") {
        return;
    }
    // In the background nbdkit has the directory `/`.
    let directory = tempfile::tempdir().expect("temporary directory");
    let _server = Nbdkit::start_at(&directory.path().join("up.sock"), &TELLS_THE_NAME);
    let front = Daemon::start(directory.path(), &["nbd+unix:///disk?socket=up.sock"]);
    let script = "print(h.pread(4, 0).decode())";
    assert_eq!(nbdsh(&front.uri(), script).trim_end(), "disk");
    assert!(front.terminate(LIMIT), "{}", front.stderr());
}

#[test]
fn relative_socket_is_measured_as_absolute() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let deep = directory.path().join("d".repeat(60));
    std::fs::create_dir(&deep).expect("make directory");
    let uri = format!("nbd+unix:///?socket={}", "s".repeat(60));
    for mode in MODES {
        assert_eq!(
            refusal_in(&deep, mode, &[&uri]),
            "socket file name too large"
        );
    }
}

#[test]
fn malformed_uris_are_refused_with_the_reason() {
    if !need("nbdkit") {
        return;
    }
    for (uri, reason) in [
        ("uri=", "must not be empty"),
        ("uri=disk", "no scheme"),
        ("uri=localhost:10809", "no scheme"),
        ("uri=/run/nbd.sock", "a path is not a URI"),
        ("uri=http://localhost/", "unknown scheme 'http'"),
        ("uri=nbd+tls://localhost/", "unknown scheme 'nbd+tls'"),
        (
            "uri=nbd:unix:/run/nbd.sock",
            "nbd+unix:///EXPORT?socket=PATH",
        ),
        ("uri=nbd:localhost:10809", "nbd://HOST:PORT/EXPORT"),
        ("uri=nbd:localhost", "must be followed by '//'"),
        ("nbd://localhost:0/", "port: must be a number"),
        ("nbd://localhost:65536/", "port: must be a number"),
        ("nbd://localhost:-1/", "port: must be a number"),
        ("nbd://localhost:nbd/", "port: must be a number"),
        ("nbd://::1/", "in brackets"),
        ("nbd://[::1/", "without ']'"),
        ("nbd://[::1]10809/", "may follow ']'"),
        ("nbd://[localhost]/", "not an IPv6 address"),
        ("nbd://localhost/%zz", "'%zz' is not a percent escape"),
        ("nbd://localhost/%2", "'%2' is not a percent escape"),
        ("nbd://localhost/%00", "zero byte"),
        ("nbd://localhost/a b", "%20"),
        ("nbd://localhost/?colour=blue", "unknown query key 'colour'"),
        (
            "nbd://localhost/?socket=/a",
            "socket cannot be used with nbd",
        ),
        ("nbd+unix:///disk", "socket is missing"),
        ("nbd+unix:///?socket=", "must not be empty"),
        ("nbd+unix:///?socket=/a&socket=/b", "given twice"),
        ("nbd+unix://disk?socket=/a", "Unix socket has no host"),
        ("nbd+vsock://host/", "vsock context id 'host'"),
        ("nbd+vsock://4294967296/", "vsock context id '4294967296'"),
        ("nbd+vsock://2:x/", "port: must be a number"),
        ("nbd+ssh:///disk", "host is missing"),
        ("nbd+ssh://-v/", "begins with a dash"),
        ("nbd://localhost/?compress=1", "compress needs ssh"),
        ("nbd://localhost/?tls-type=psk", "needs TLS"),
    ] {
        let line = refusal(&[uri]);
        assert!(line.starts_with("uri"), "{uri}: {line}");
        assert!(line.contains(reason), "{uri}: {reason:?} in: {line}");
    }
}

#[test]
fn export_name_in_a_uri_has_the_protocols_length() {
    if !need("nbdkit") {
        return;
    }
    let longest = format!("nbd+unix:///{}?socket=SOCKET", "x".repeat(4096));
    names_the_export(&longest, &"x".repeat(4096));
    let line = refusal(&[&longest.replace("/x", "/xx")]);
    assert!(line.contains("4097 bytes"), "{line}");
}

#[test]
fn password_is_refused_and_not_shown() {
    if !need("nbdkit") {
        return;
    }
    for uri in [
        "nbds://user:hunter2@localhost/",
        "nbds://user%3ahunter2@localhost/",
        "nbd+ssh://user:hunter2@localhost/",
    ] {
        let line = refusal(&[uri]);
        assert!(line.contains("a password"), "{uri}: {line}");
        assert!(!line.contains("hunter2"), "{uri}: {line}");
    }
    // Mistyped, it stands where there is another thing; more of these are beside the code.
    for uri in ["nbd://user:hunter2/", "nbd://user:a?hunter2@localhost/"] {
        let line = refusal(&[uri]);
        assert!(!line.contains("hunter2"), "{uri}: {line}");
    }
}

#[test]
fn port_in_the_query_beats_the_one_before_the_path() {
    if !need("nbdkit") {
        return;
    }
    let server = TcpServer::start(V4, &TELLS_THE_NAME);
    reaches(&server, "nbd://127.0.0.1:1/disk?nbd-port=PORT");
}

#[test]
fn uri_and_another_place_cannot_both_be_meant() {
    if !need("nbdkit") {
        return;
    }
    for other in [
        "socket=/a",
        "hostname=localhost",
        "vsock=2",
        "socket-fd=0",
        "command=true",
    ] {
        let line = refusal(&["nbd://localhost/", other]);
        assert!(line.starts_with("cannot mix "), "{other}: {line}");
    }
}

#[test]
fn port_beside_a_uri_is_refused() {
    if !need("nbdkit") {
        return;
    }
    assert_eq!(
        refusal(&["nbd://localhost/", "port=1"]),
        "‘port’ parameter should only be used with ‘hostname’ or ‘vsock’"
    );
}

/// What leaves in clear before TLS is looked at in `tls_policy.rs`.
#[test]
fn uri_with_tls_does_not_go_on_without() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Nbdkit::start(directory.path(), &["memory", "1M"]);
    let uri = format!("nbds+unix:///?socket={}", text(server.socket()));
    let front = through(directory.path(), &[&uri]);
    assert!(Front::open(front.socket()).is_err());
    let said = front.stderr();
    assert!(
        said.contains("TLS is required, but the server refused"),
        "{said}"
    );
}

#[test]
fn server_behind_a_uri_is_only_needed_when_a_client_comes() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("later.sock");
    let uri = format!("nbd+unix:///disk?socket={}", text(&socket));
    let front = through(directory.path(), &[&uri]);
    let _server = Nbdkit::start_at(&socket, &TELLS_THE_NAME);
    let opened = eventually("the export opens", Duration::from_secs(20), || {
        Front::open(front.socket()).ok()
    });
    assert_eq!(opened.export().size, 4);
    opened.close();
}
