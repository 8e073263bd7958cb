// SPDX-License-Identifier: BSD-3-Clause
//! Servers that are reached over TCP: by name and by number, and what is said of those that are not.

mod common;

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::clients::{LIMIT, nbdsh};
use common::front::Front;
use common::nbdkit::{Nbdkit, plugin_args, through};
use common::process::run;
use common::refusal::{MODES, refusal_in};
use common::tcp::{Full, TcpServer, V4, V6, has_v6, listen, port};
use common::{need, need_all};

/// The second address of the loopback interface, for hosts with several.
const V4_OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn reads_a_megabyte(front: &Nbdkit) {
    let script = "print(h.get_size(), h.pread(512, 0) == bytes(512))";
    assert_eq!(nbdsh(&front.uri(), script).trim_end(), "1048576 True");
}

/// nbdkit starts, but no client can open the export; returns the line that says why.
fn fails_to_open(args: &[&str]) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut front = through(directory.path(), args);
    assert!(Front::open(front.socket()).is_err(), "{args:?}: opened");
    assert!(front.alive(), "{}", front.stderr());
    front.explanation()
}

fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is missing: {line}");
    }
}

#[test]
fn ipv4_address_and_port_number() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let port = format!("port={}", server.port());
    reads_a_megabyte(&through(directory.path(), &["hostname=127.0.0.1", &port]));
}

#[test]
fn ipv6_address_and_port_number() {
    if !need("nbdkit") || !has_v6() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = TcpServer::start(V6, &["memory", "1M"]);
    let port = format!("port={}", server.port());
    reads_a_megabyte(&through(directory.path(), &["hostname=::1", &port]));
}

#[test]
fn host_name() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let port = format!("port={}", server.port());
    reads_a_megabyte(&through(directory.path(), &["hostname=localhost", &port]));
}

#[test]
fn port_may_come_before_the_host() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let port = format!("port={}", server.port());
    reads_a_megabyte(&through(directory.path(), &[&port, "hostname=127.0.0.1"]));
}

#[test]
fn export_name_goes_to_the_server() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    // The size is the length of the export name.
    let named = [
        "eval",
        "open=printf %s \"$3\"",
        "get_size=printf %s \"$2\" | wc -c",
    ];
    let server = TcpServer::start(V4, &named);
    let port = format!("port={}", server.port());
    let front = through(
        directory.path(),
        &["hostname=127.0.0.1", &port, "export=twelve bytes"],
    );
    assert_eq!(nbdsh(&front.uri(), "print(h.get_size())").trim_end(), "12");
}

/// A private view of the machine's name files, where nothing is listening yet on the well-known ports.
struct Names {
    hosts: String,
    services: String,
}

impl Names {
    fn hosts(lines: &str) -> Self {
        Self {
            hosts: lines.to_owned(),
            services: String::new(),
        }
    }

    /// Runs nbdkit with the plugin and these names; `client` is its captive command.
    fn run(&self, directory: &Path, args: &[&str], client: &str) -> Output {
        let mut script = String::new();
        for (name, content) in [("hosts", &self.hosts), ("services", &self.services)] {
            let file = directory.join(name);
            fs::write(&file, content).expect("write a file of names");
            script += &format!("mount --bind {} /etc/{name} && ", file.display());
        }
        let mut nbdkit: Vec<OsString> = vec!["nbdkit".into(), "-U".into(), "-".into()];
        nbdkit.extend(plugin_args(args).into_iter().map(OsString::from));
        nbdkit.extend(["--run".into(), client.into()]);
        run(
            Command::new("unshare")
                .args(["--map-root-user", "--mount", "sh", "-c"])
                .arg(script + "exec \"$@\"")
                .arg("sh")
                .args(nbdkit),
            LIMIT,
        )
    }

    /// The client must get to the megabyte of the server.
    fn reach(&self, args: &[&str]) -> String {
        let directory = tempfile::tempdir().expect("temporary directory");
        let client = "/usr/bin/python3 -mnbd -u \"$uri\" -c 'print(h.get_size())'";
        let output = self.run(directory.path(), args, client);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {stderr}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(stdout.trim_end(), "1048576", "{args:?}: {stderr}");
        stderr
    }
}

/// Whether a process may have its own view of the file system, which not every container allows.
fn may_have_own_names() -> bool {
    if !need_all(&["nbdkit", "unshare", "mount"]) {
        return false;
    }
    let may = run(
        Command::new("unshare").args(["--map-root-user", "--mount", "true"]),
        LIMIT,
    );
    if !may.status.success() {
        println!("SKIP: {}: no mount namespaces here", common::test_name());
    }
    may.status.success()
}

#[test]
fn service_name() {
    if !may_have_own_names() {
        return;
    }
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let names = Names {
        hosts: "127.0.0.1 disks\n".to_owned(),
        services: format!("disk-service {}/tcp\n", server.port()),
    };
    names.reach(&["hostname=disks", "port=disk-service"]);
}

/// Two listeners on the same port of two addresses.
fn two_listeners(first: IpAddr, second: IpAddr) -> (TcpListener, TcpListener) {
    // Somebody else may have the second one.
    for _ in 0..20 {
        let one = listen(first);
        if let Ok(two) = TcpListener::bind((second, port(&one))) {
            return (one, two);
        }
    }
    panic!("no port is free on both {first} and {second}");
}

#[test]
fn host_with_one_refusing_address_is_reached_by_the_other() {
    if !may_have_own_names() {
        return;
    }
    let names = Names::hosts("127.0.0.1 disks\n127.0.0.2 disks\n");
    // The resolver decides which address comes first, so each of them is dead once.
    for (alive, dead) in [(V4, V4_OTHER), (V4_OTHER, V4)] {
        let (alive, dead) = two_listeners(alive, dead);
        drop(dead);
        let server = TcpServer::start_on(&alive, &["memory", "1M"]);
        names.reach(&["hostname=disks", &format!("port={}", server.port())]);
    }
}

#[test]
fn host_with_an_address_of_each_family_is_reached_by_the_one_that_serves() {
    if !may_have_own_names() || !has_v6() {
        return;
    }
    let names = Names::hosts("::1 disks\n127.0.0.1 disks\n");
    for alive in [V4, V6] {
        let server = TcpServer::start(alive, &["memory", "1M"]);
        names.reach(&["hostname=disks", &format!("port={}", server.port())]);
    }
}

#[test]
fn silent_address_leaves_time_for_the_next_one() {
    if !may_have_own_names() {
        return;
    }
    let names = Names::hosts("127.0.0.1 disks\n127.0.0.2 disks\n");
    for (alive, silent) in [(V4, V4_OTHER), (V4_OTHER, V4)] {
        let (alive, silent) = two_listeners(alive, silent);
        let _silent = Full::from(silent);
        let server = TcpServer::start_on(&alive, &["memory", "1M"]);
        names.reach(&[
            "hostname=disks",
            &format!("port={}", server.port()),
            "connect-timeout=3",
        ]);
    }
}

#[test]
fn silent_addresses_do_not_add_up() {
    if !may_have_own_names() {
        return;
    }
    // All on one port, so that the last one is the only one that answers.
    let alive = listen(V4);
    let number = port(&alive);
    let addresses: Vec<_> = (2..8)
        .map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)))
        .collect();
    let silent = addresses
        .iter()
        .filter_map(|a| TcpListener::bind((*a, number)).ok());
    let silent: Vec<_> = silent.map(Full::from).collect();
    assert!(silent.len() >= 3, "most of them are nobody else's");
    let hosts: String = addresses.iter().map(|a| format!("{a} disks\n")).collect();
    let names = Names::hosts(&(hosts + "127.0.0.1 disks\n"));
    let server = TcpServer::start_on(&alive, &["memory", "1M"]);
    // With one after the other it would be minutes: the bound is far from both.
    let begun = Instant::now();
    names.reach(&[
        "hostname=disks",
        &format!("port={}", server.port()),
        "connect-timeout=600",
    ]);
    assert!(begun.elapsed() < Duration::from_secs(60), "side by side");
}

#[test]
fn every_address_that_was_tried_is_named() {
    if !may_have_own_names() {
        return;
    }
    let (silent, dead) = two_listeners(V4, V4_OTHER);
    drop(dead);
    let silent = Full::from(silent);
    let names = Names::hosts("127.0.0.1 disks\n127.0.0.2 disks\n");
    let directory = tempfile::tempdir().expect("temporary directory");
    let port = silent.port();
    let output = names.run(
        directory.path(),
        &[
            "hostname=disks",
            &format!("port={port}"),
            "connect-timeout=1",
        ],
        "nbdinfo --size \"$uri\"",
    );
    let says = format!(
        "error: disks:{port}: connect: 127.0.0.2:{port}: Connection refused; \
         127.0.0.1:{port}: timed out after 1 second\n"
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(&says), "{stderr}");
}

#[test]
fn client_that_leaves_ends_the_attempts() {
    if !may_have_own_names() {
        return;
    }
    let names = Names::hosts("127.0.0.1 disks\n127.0.0.2 disks\n");
    let (one, other) = two_listeners(V4, V4_OTHER);
    let full = [one, other].map(Full::from);
    let directory = tempfile::tempdir().expect("temporary directory");
    let begun = Instant::now();
    // The captive command gives up, and then nbdkit ends: nobody waits for the addresses.
    let output = names.run(
        directory.path(),
        &[
            "hostname=disks",
            &format!("port={}", full[0].port()),
            "connect-timeout=0",
        ],
        "timeout 2 nbdinfo --size \"$uri\"; exit 7",
    );
    assert_eq!(output.status.code(), Some(7));
    assert!(begun.elapsed() < Duration::from_secs(30), "it ends");
}

#[test]
fn refused_connection_names_host_and_port() {
    if !need("nbdkit") {
        return;
    }
    let listener = listen(V4);
    let port = port(&listener);
    drop(listener);
    let line = fails_to_open(&["hostname=127.0.0.1", &format!("port={port}")]);
    assert_says(&line, &[&format!("127.0.0.1:{port}: connect: "), "refused"]);
}

#[test]
fn ipv6_address_is_shown_in_brackets() {
    if !need("nbdkit") || !has_v6() {
        return;
    }
    let listener = listen(V6);
    let port = port(&listener);
    drop(listener);
    let line = fails_to_open(&["hostname=::1", &format!("port={port}")]);
    assert_says(&line, &[&format!("[::1]:{port}: connect: ")]);
}

#[test]
fn default_port_is_10809() {
    if !may_have_own_names() {
        return;
    }
    // An address of loopback that nobody uses: nothing listens there.
    let names = Names::hosts("127.77.0.9 nobody\n");
    let directory = tempfile::tempdir().expect("temporary directory");
    let output = names.run(
        directory.path(),
        &["hostname=nobody"],
        "nbdinfo --size \"$uri\"",
    );
    assert_says(
        &String::from_utf8_lossy(&output.stderr),
        &["error: nobody:10809: connect: "],
    );
}

#[test]
fn host_that_does_not_exist_is_named() {
    if !need("nbdkit") {
        return;
    }
    // RFC 2606 promises that nobody ever gets this name.
    let line = fails_to_open(&["hostname=no-such-host.invalid", "connect-timeout=10"]);
    assert_says(&line, &["no-such-host.invalid:10809: connect: "]);
}

#[test]
fn service_that_does_not_exist_is_named_at_the_start() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let args = ["hostname=127.0.0.1", "port=no-such-service"];
        let line = refusal_in(directory.path(), mode, &args);
        assert!(
            line.starts_with("port=no-such-service: must be the name of a TCP service"),
            "{line}"
        );
    }
}

#[test]
fn address_that_was_taken_is_told_once() {
    if !may_have_own_names() {
        return;
    }
    let names = Names::hosts("127.0.0.1 disks\n127.0.0.2 disks\n");
    let (alive, dead) = two_listeners(V4, V4_OTHER);
    drop(dead);
    let server = TcpServer::start_on(&alive, &["memory", "1M"]);
    let port = server.port();
    let stderr = names.reach(&["hostname=disks", &format!("port={port}")]);
    let connected: Vec<_> = stderr
        .lines()
        .filter(|l| l.contains(": connected"))
        .collect();
    assert_eq!(connected.len(), 1, "{stderr}");
    let line = format!("debug: disks:{port}: connected to 127.0.0.1:{port}");
    assert!(connected[0].ends_with(&line), "{stderr}");
}

#[test]
fn listener_with_a_full_queue_is_given_up_at_the_deadline() {
    if !need("nbdkit") {
        return;
    }
    let full = Full::new();
    let begun = Instant::now();
    let line = fails_to_open(&[
        "hostname=127.0.0.1",
        &format!("port={}", full.port()),
        "connect-timeout=1",
    ]);
    assert_says(&line, &[&full.port(), "connect: timed out after 1 second"]);
    assert!(begun.elapsed() >= Duration::from_secs(1), "not before it");
}

#[test]
fn server_that_comes_to_the_port_later_is_found() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let listener = listen(V4);
    let number = port(&listener);
    drop(listener);
    let port = format!("port={number}");
    let front = through(directory.path(), &["hostname=127.0.0.1", &port]);
    assert!(Front::open(front.socket()).is_err(), "nobody is there yet");

    // The port was free a moment ago; if it no longer is, the test says so.
    let listener = TcpListener::bind((V4, number)).expect("the port is still free");
    let _server = TcpServer::start_on(&listener, &["memory", "1M"]);
    reads_a_megabyte(&front);
}

#[test]
fn small_requests_are_not_held_back() {
    if !need("nbdkit") {
        return;
    }
    // Nagle's algorithm and delayed acknowledgements together would make 40 ms of each of these round trips,
    // 8 s in all. The bound is for hangs.
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = TcpServer::start(V4, &["memory", "1M"]);
    let port = format!("port={}", server.port());
    let front = through(directory.path(), &["hostname=127.0.0.1", &port]);
    let mut client = Front::open(front.socket()).expect("opens");
    for offset in 0..200 {
        assert_eq!(client.write(offset * 512, &[1; 512]), Ok(()));
    }
    assert_eq!(client.read(0, 200 * 512), Ok(vec![1; 200 * 512]));
    client.close();
}
