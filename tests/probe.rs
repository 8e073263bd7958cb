// SPDX-License-Identifier: BSD-3-Clause
//! `probe=`: what a server is, printed for people and for programs, and that nobody is served.

mod common;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use common::bitmaps::{BOTH, changed, has_qemu, serving};
use common::clients::{LIMIT, attempt, nbdinfo, text};
use common::nbdkit::{Nbdkit, printed, printed_with};
use common::pki::{Authority, LOCALHOST};
use common::probed::{answer, parsed, report, socket, suggested, told};
use common::process::{Guarded, eventually, hand_over};
use common::relay::Relay;
use common::sshd::Sshd;
use common::tcp::{TcpServer, V4};
use common::upstream::{memory, nbd_server, noise_file, qemu_nbd};
use common::{need, need_all, plugin, tls};

#[test]
fn what_qemu_nbd_is_and_that_it_goes_on() {
    if !has_qemu() || !need("python3") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = serving(directory.path(), &changed(directory.path()), &BOTH);
    let place = socket(server.socket());
    let seen = report(&[&place, "export=disk"]);
    assert_eq!(seen["address"], text(server.socket()));
    assert_eq!(seen["style"], "fixed newstyle");
    assert_eq!(seen["tls"]["offered"], false);
    assert_eq!(seen["tls"]["demanded"], false);
    for option in [
        "NBD_OPT_LIST",
        "NBD_OPT_INFO",
        "NBD_OPT_STRUCTURED_REPLY",
        "NBD_OPT_LIST_META_CONTEXT",
        "NBD_OPT_SET_META_CONTEXT",
    ] {
        assert_eq!(answer(&seen, option), "agreed", "{option}");
    }
    assert_eq!(answer(&seen, "NBD_OPT_GO"), "not asked");
    let first = json!([{"name": "disk", "name_hex": null, "description": "", "size": 16 << 20}]);
    assert_eq!(seen["exports"], json!({"total": 1, "first": first}));
    let export = &seen["export"];
    let mut contexts: Vec<_> = export["contexts"].as_array().expect("a list").clone();
    contexts.sort_by_key(ToString::to_string);
    let expected = [
        "base:allocation",
        "qemu:allocation-depth",
        "qemu:dirty-bitmap:a b",
        "qemu:dirty-bitmap:b0",
    ];
    assert_eq!(contexts, expected);
    assert_eq!(export["flags"]["read_only"], true);
    assert_eq!(
        export["flags"]["df"], true,
        "asked after structured replies"
    );
    assert_eq!(export["block_sizes"]["maximum"], 32 << 20);
    let theirs = nbdinfo(&server.uri_export("disk"));
    assert_eq!(export["size"], theirs["export-size"]);
    assert_eq!(seen["round_trip"]["rounds"], 5);
    assert!(seen["round_trip"]["seconds"].as_f64() > Some(0.0));
    assert!(suggested(&seen).contains(&"connections=4".to_owned()));

    let seen = told(&[&place, "export=disk"]);
    for words in [
        "handshake: fixed newstyle\n",
        "TLS: none; the server does not have it\n",
        "    size: 16777216 bytes\n",
        "      qemu:dirty-bitmap:a b\n",
        "round trip: ",
        "    connections=4  # ",
    ] {
        assert!(seen.contains(words), "{words}: {seen}");
    }
}

/// qemu-nbd that serves one client ends with the first that opens its export: a probe does not.
#[test]
fn a_server_for_one_client_is_not_used_up() {
    if !need_all(&["nbdkit", "qemu-nbd", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 1 << 20, 7);
    let args = ["arg=-f", "arg=raw", &format!("arg={}", text(&image))];
    let seen = report(&[&["command=qemu-nbd"][..], &args].concat());
    assert_eq!(seen["address"], "command=qemu-nbd");
    assert_eq!(seen["export"]["size"], 1 << 20);
    let left = attempt("pgrep", &["-f", text(&image)]);
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "it is ended");

    let once = directory.path().join("once.sock");
    let server = Guarded::spawn(
        Command::new("qemu-nbd")
            .args(["-f", "raw", "-k"])
            .arg(&once)
            .arg(&image),
    );
    eventually("it listens", LIMIT, || once.exists().then_some(()));
    for _ in 0..2 {
        assert!(told(&[&socket(&once)]).contains("size: 1048576 bytes"));
    }
    drop(server);
}

#[test]
fn what_nbdkit_is_by_its_filters_and_exports() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Nbdkit::start(
        directory.path(),
        &[
            "--filter=blocksize-policy",
            "memory",
            "1M",
            "blocksize-minimum=4096",
            "blocksize-preferred=65536",
            "blocksize-maximum=1M",
        ],
    );
    let seen = report(&[&socket(server.socket())]);
    assert_eq!(
        seen["export"]["block_sizes"],
        json!({"minimum": 4096, "preferred": 65536, "maximum": 1 << 20})
    );
    assert!(suggested(&seen).contains(&"align=emulate".to_owned()));

    let disks = directory.path().join("disks");
    std::fs::create_dir(&disks).expect("a directory");
    noise_file(&disks, "one", 1 << 20, 1);
    noise_file(&disks, "two", 2 << 20, 2);
    let many = Nbdkit::start(
        directory.path(),
        &["file", &format!("dir={}", text(&disks))],
    );
    let place = socket(many.socket());
    for args in [&[&*place][..], &[&*place, "dynamic-export=true"]] {
        let seen = report(args);
        assert_eq!(seen["exports"]["total"], 2);
        let mut sizes: Vec<_> = seen["exports"]["first"].as_array().expect("a list").clone();
        sizes.sort_by_key(|entry| entry["size"].as_u64());
        assert_eq!(sizes[0]["name"], "one");
        assert_eq!(sizes[1]["size"], 2 << 20);
        assert_eq!(
            seen["export"]["size"],
            Value::Null,
            "there is no default export"
        );
    }
    let (status, stdout, stderr) = printed(&[&place, "export=three", "probe=1"]);
    assert_eq!((status, &*stdout), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("server refused NBD_OPT_INFO"), "{stderr}");
}

#[test]
fn a_default_export_that_is_missing_leads_to_those_with_names() {
    if !has_qemu() || !need("python3") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 1 << 20, 8);
    let server = qemu_nbd(directory.path(), &image, "raw", "it's", &[]);
    let place = socket(server.socket());
    let seen = report(&[&place]);
    assert_eq!(answer(&seen, "NBD_OPT_INFO"), "refused NBD_REP_ERR_UNKNOWN");
    assert_eq!(suggested(&seen), ["export=it's"]);
    // As it is typed into a shell.
    assert!(told(&[&place]).contains(r"'export=it'\''s'"));
}

#[test]
fn servers_of_every_age() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    for (args, style) in [
        (&["-o", "memory", "1M"][..], "oldstyle"),
        (&["--mask-handshake=0", "memory", "1M"], "newstyle"),
    ] {
        let server = Nbdkit::start(directory.path(), args);
        let seen = report(&[&socket(server.socket())]);
        assert_eq!(seen["style"], style);
        assert_eq!(seen["tls"]["offered"], false);
        assert_eq!(seen["export"]["size"], 1 << 20);
        assert_eq!(seen["export"]["flags"]["flush"], true);
        assert_eq!(seen["round_trip"], Value::Null);
        assert_eq!(answer(&seen, "NBD_OPT_LIST"), "not asked");
    }
    let server = Nbdkit::start(directory.path(), &["--no-sr", "memory", "1M"]);
    let seen = report(&[&socket(server.socket())]);
    let refused = "refused NBD_REP_ERR_UNSUP";
    assert_eq!(answer(&seen, "NBD_OPT_STRUCTURED_REPLY"), refused);
    assert_eq!(answer(&seen, "NBD_OPT_SET_META_CONTEXT"), "not asked");
}

#[test]
fn what_nbd_server_is() {
    if !need_all(&["nbdkit", "nbd-server", "socat", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 1 << 20, 9);
    let server = nbd_server(directory.path(), &image, "disk", &["flush = true"]);
    let seen = report(&[&socket(server.socket()), "export=disk"]);
    assert_eq!(seen["export"]["size"], 1 << 20);
    assert_eq!(seen["export"]["flags"]["flush"], true);
    assert_eq!(answer(&seen, "NBD_OPT_INFO"), "agreed");
}

#[test]
fn how_a_connection_is_protected() {
    if !need_all(&["nbdkit", "certtool", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let certificates = authority.server("server", LOCALHOST);
    let server = tls::nbdkit(directory.path(), &certificates, &["memory", "1M"]);
    let relay = Relay::tcp(server.socket());
    let trust = format!("tls-certificates={}", text(&authority.trusting("client")));
    let mut args = relay.parameters();
    args.push(trust);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    for (policy, advice) in [("tls=require", None), ("tls=on", Some("tls=require"))] {
        let seen = report(&[&args[..], &[policy]].concat());
        let tls = &seen["tls"];
        assert_eq!(
            (&tls["used"], &tls["offered"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(tls["demanded"], Value::Null, "nothing is asked in clear");
        assert!(
            tls["version"]
                .as_str()
                .expect("a text")
                .starts_with("TLSv1.")
        );
        assert!(tls["cipher"].as_str().expect("a text").starts_with("TLS_"));
        let certificate = &tls["certificate"];
        assert!(!certificate["subject"].as_str().expect("a text").is_empty());
        assert!(
            certificate["issuer"]
                .as_str()
                .expect("a text")
                .contains("CN = ")
        );
        assert!(
            certificate["expires"]
                .as_str()
                .expect("a text")
                .ends_with(" GMT")
        );
        assert_eq!(seen["export"]["size"], 1 << 20);
        let has = suggested(&seen)
            .into_iter()
            .find(|word| word.starts_with("tls="));
        assert_eq!(has.as_deref(), advice, "{policy}");
    }
    // Whoever asks in clear learns that, and no more.
    let place = relay.parameters();
    let place: Vec<_> = place.iter().map(String::as_str).collect();
    let seen = report(&place);
    let tls = &seen["tls"];
    assert_eq!(
        (&tls["used"], &tls["offered"], &tls["demanded"]),
        (&json!(false), &json!(true), &json!(true))
    );
    assert_eq!(seen["export"]["size"], Value::Null);
    assert_eq!(suggested(&seen)[0], "tls=require");
    assert!(told(&place).contains("TLS: none; the server demands it\n"));
}

#[test]
fn a_server_that_offers_tls_is_asked_so_in_the_end() {
    if !need_all(&["nbdkit", "certtool", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let certificates = format!(
        "--tls-certificates={}",
        text(&authority.server("server", LOCALHOST))
    );
    let server = Nbdkit::start(
        directory.path(),
        &["--tls=on", &certificates, "memory", "1M"],
    );
    let seen = report(&[&socket(server.socket())]);
    assert_eq!(
        (&seen["tls"]["offered"], &seen["tls"]["demanded"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(seen["export"]["size"], 1 << 20);
}

/// `retry=` is for a server that is still being started.
#[test]
fn a_server_that_comes_later_is_waited_for() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("late.sock");
    let mut probe = Guarded::spawn(Command::new("nbdkit").arg("-v").arg(plugin()).args([
        &*socket(&path),
        "retry=60",
        "probe=1",
    ]));
    eventually("nobody is there", LIMIT, || {
        let waits = probe.stderr().contains("will try again");
        waits.then_some(())
    });
    let late = Nbdkit::start_at(&path, &["memory", "1M"]);
    let status = probe.wait_timeout(LIMIT).expect("it ends");
    assert!(status.success(), "{}", probe.stderr());
    assert!(probe.stdout().contains("size: 1048576 bytes"));
    drop(late);
}

#[test]
fn several_servers_are_told_of_in_turn() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let one = memory(directory.path(), "1M");
    let two = memory(directory.path(), "2M");
    let places = [socket(one.socket()), socket(two.socket())];
    let gone = socket(&directory.path().join("gone"));
    let both = [
        &*places[0],
        &places[1],
        "servers=failover",
        "servers-same-disk=1",
    ];
    let (status, stdout, stderr) = printed(&[&both[..], &["probe=json"]].concat());
    assert_eq!((status, &*stderr), (Some(0), ""));
    let seen = parsed(&stdout);
    let servers = seen["servers"].as_array().expect("a list").iter();
    let sizes: Vec<_> = servers
        .map(|server| server["export"]["size"].clone())
        .collect();
    assert_eq!(sizes, [1 << 20, 2 << 20]);

    let one_gone = [
        &*gone,
        &places[1],
        "servers=failover",
        "servers-same-disk=1",
    ];
    let (status, stdout, stderr) = printed(&[&one_gone[..], &["probe=json"]].concat());
    assert_eq!(status, Some(1), "{stdout}");
    assert!(
        stderr.ends_with("connect: No such file or directory\n"),
        "{stderr}"
    );
    let seen = parsed(&stdout);
    let error = seen["servers"][0]["error"].as_str().expect("a text");
    assert!(error.ends_with("No such file or directory"), "{error}");
    assert_eq!(seen["servers"][1]["export"]["size"], 2 << 20);
    assert_eq!(seen["servers"][1]["error"], Value::Null);
}

#[test]
fn every_way_to_reach_a_server() {
    if !need_all(&["nbdkit", "python3"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    let connected = UnixStream::connect(server.socket()).expect("the server listens");
    let args = ["socket-fd=100", "probe=json"];
    let (status, stdout, stderr) = printed_with(&args, |command| {
        hand_over(command, &connected, 100);
    });
    assert_eq!((status, &*stderr), (Some(0), ""));
    assert_eq!(parsed(&stdout)["servers"][0]["export"]["size"], 1 << 20);

    let tcp = TcpServer::start(V4, &["memory", "1M"]);
    let uri = format!("uri=nbd://127.0.0.1:{}", tcp.port());
    let seen = report(&[&uri]);
    assert!(suggested(&seen).contains(&"reconnect=60".to_owned()));
    let (status, _, stderr) = printed(&["vsock=1", "connect-timeout=500ms", "probe=1"]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("vsock:1:10809: connect: "), "{stderr}");

    let Some(sshd) = Sshd::start() else { return };
    let uri = format!("nbd+ssh://{}/?nbd-port={}", sshd.authority(), tcp.port());
    let (status, stdout, stderr) = printed_with(&[&uri, "probe=json"], |command| {
        sshd.prepare(command);
    });
    assert_eq!((status, &*stderr), (Some(0), ""));
    assert_eq!(parsed(&stdout)["servers"][0]["export"]["size"], 1 << 20);
    sshd.none_is_left();
}

#[test]
fn what_cannot_be_printed_is_an_error() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = memory(directory.path(), "1M");
    for what in ["probe=1", "probe=json", "extents=list"] {
        let full = File::options().write(true).open("/dev/full");
        let mut command = Command::new("nbdkit");
        command.arg(plugin()).arg(socket(server.socket())).arg(what);
        // Piped standard error alone: the other one is full.
        let output = command
            .stdin(Stdio::null())
            .stdout(full.expect("there is one"))
            .stderr(Stdio::piped())
            .output()
            .expect("nbdkit");
        assert_eq!(output.status.code(), Some(1), "{what}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            stderr.contains("cannot write to standard output"),
            "{what}: {stderr}"
        );
    }
}
