// SPDX-License-Identifier: BSD-3-Clause
//! `extents=by-name` and `extents=list`: bitmaps as exports of their own, and what there is.

mod common;

use common::bitmaps::{BOTH, before_changed, changed, dirty, extents, has_qemu, serving};
use common::clients::{attempt, map, nbdinfo, nbdsh_unconnected, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, printed};
use common::need_all;
use common::pair::Pair;
use common::relay::Relay;
use common::scripted::Scripted;
use common::scripted::peer::Offer;
use common::scripted::wire::{self, opt, rep};
use common::upstream::qemu_nbd;

/// The names and descriptions that nbdkit lists.
fn list(front: &Nbdkit) -> Vec<(String, String)> {
    let script = format!(
        "
import json
h.set_opt_mode(True)
h.connect_unix('{}')
found = []
h.opt_list(lambda name, description: found.append((name, description)))
h.opt_abort()
print(json.dumps(found))
",
        front.socket().display()
    );
    serde_json::from_str(&nbdsh_unconnected(&script)).expect("JSON")
}

#[test]
fn bitmaps_are_exports_by_name() {
    if !has_qemu() {
        return;
    }
    let pair = before_changed(&["dynamic-export=true", "extents=by-name"]);
    let mut names: Vec<_> = list(&pair.front).into_iter().collect();
    names.sort();
    let bitmap = |name: &str| {
        let text = format!("changes by the bitmap qemu:dirty-bitmap:{name}");
        (format!("disk@{name}"), text)
    };
    let disk = ("disk".to_owned(), String::new());
    assert_eq!(names, [disk, bitmap("a b"), bitmap("b0")]);

    let direct = map(&pair.server.uri_export("disk"));
    assert_eq!(map(&pair.front.uri_export("disk")), direct);
    assert_eq!(extents(&pair.front.uri_export("disk@b0")), dirty());
    assert_eq!(extents(&pair.front.uri_export("disk@a%20b")), dirty());
    let info = nbdinfo(&pair.front.uri_export("disk@b0"));
    assert_eq!(info["is_read_only"], true);
    assert_eq!(
        info["description"],
        "read-only, data is what has changed: qemu:dirty-bitmap:b0"
    );
    for name in ["disk@b1", "disc@b0", "disk@", "@", "disk@b0@b0"] {
        let Err(refused) = Front::open_as(pair.front.socket(), name, false) else {
            panic!("{name}: opened");
        };
        drop(refused);
        let told = format!("no export named \"{name}\"");
        assert!(
            pair.front.stderr().contains(&told),
            "{}",
            pair.front.stderr()
        );
    }
}

#[test]
fn a_real_export_wins_over_a_bitmap_of_its_name() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = changed(directory.path());
    let server = qemu_nbd(directory.path(), &image, "qcow2", "disk@b0", &["-B", "b0"]);
    let front = forward(
        directory.path(),
        server.socket(),
        &["dynamic-export=true", "extents=by-name"],
    );
    assert_eq!(nbdinfo(&front.uri_export("disk@b0"))["is_read_only"], false);
    assert_eq!(extents(&front.uri_export("disk@b0@b0")), dirty());
    let names: Vec<_> = list(&front).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["disk@b0", "disk@b0@b0"]);
}

#[test]
fn plain_dynamic_export_knows_no_bitmaps() {
    if !has_qemu() {
        return;
    }
    let pair = before_changed(&["dynamic-export=true"]);
    assert_eq!(list(&pair.front), [("disk".to_owned(), String::new())]);
    assert!(Front::open_as(pair.front.socket(), "disk@b0", false).is_err());
}

#[test]
fn exports_without_contexts_are_listed_by_name_all_the_same() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let list_exports = "list_exports=echo INTERLEAVED; echo a; echo first; echo b; echo second";
    let server = [
        "eval",
        list_exports,
        "get_size=echo 1M",
        "pread=head -c $3 /dev/zero",
    ];
    let args = ["dynamic-export=true", "extents=by-name"];
    let pairs = |names: &[(&str, &str)]| -> Vec<(String, String)> {
        names
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    };
    let expected = pairs(&[("a", "first"), ("b", "second")]);
    assert_eq!(list(&Pair::new(&server, &args).front), expected);
    let simple = [&["--no-sr"][..], &server].concat();
    assert_eq!(list(&Pair::new(&simple, &args).front), expected);
}

/// A client that lists, asks what one of them is, and opens it, is one for the server, too.
#[test]
fn a_list_and_the_bitmap_that_is_opened_travel_on_one_connection() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = changed(directory.path());
    let server = serving(directory.path(), &image, &BOTH);
    let extras = [
        &[][..],
        &["quirks=no-extended"],
        &["linger=10"],
        &["extents-cache=1M", "connections=2"],
    ];
    for (number, extra) in extras.into_iter().enumerate() {
        let name = format!("relay-{number}.sock");
        let relay = Relay::unix(directory.path(), &name, server.socket());
        let by_name = ["dynamic-export=true", "extents=by-name"];
        let front = relay.forward(directory.path(), &[&by_name, extra].concat());
        let script = format!(
            "
h.add_meta_context('base:allocation')
h.set_opt_mode(True)
h.connect_unix('{}')
found = []
h.opt_list(lambda name, description: found.append(name))
h.set_export_name('disk@b0')
h.opt_info()
h.opt_go()
extents = []
h.block_status(16 << 20, 0, lambda context, offset, entries, error: extents.extend(entries))
print(sorted(found), h.is_read_only(), h.pread(1, 1 << 20), extents[:6:2])
h.shutdown()
",
            front.socket().display()
        );
        assert_eq!(
            nbdsh_unconnected(&script),
            "['disk', 'disk@a b', 'disk@b0'] True bytearray(b'\"') [1048576, 1048576, 1048576]\n"
        );
        assert_eq!(relay.recordings().len(), 1, "{extra:?}");
    }
}

/// A server that hangs up over the question for extended headers, and for structured replies, lists its
/// exports without bitmaps.
#[test]
fn a_server_that_hangs_up_is_listed_without_bitmaps() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    for question in [opt::EXTENDED_HEADERS, opt::STRUCTURED_REPLY, opt::ABORT] {
        server.play(move |peer| {
            let offer = Offer::default();
            peer.greet_until(opt::LIST, &offer)?;
            let entry = wire::join(&[&4_u32.to_be_bytes(), b"disk"]);
            peer.reply(opt::LIST, rep::SERVER, &entry)?;
            peer.reply(opt::LIST, rep::ACK, &[])?;
            let asked = peer.option()?;
            assert_eq!(asked.option, question);
            Ok(())
        });
    }
    let args = ["dynamic-export=true", "extents=by-name"];
    let front = forward(directory.path(), server.socket(), &args);
    let names: Vec<_> = Front::list(front.socket())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, [b"disk".to_vec()]);
}

#[test]
fn what_there_is_is_printed_and_nobody_is_served() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = serving(directory.path(), &changed(directory.path()), &BOTH);
    let socket = format!("socket={}", server.socket().display());
    let (status, stdout, stderr) = printed(&[&socket, "export=disk", "extents=list"]);
    let mut lines: Vec<_> = stdout.lines().collect();
    lines.sort_unstable();
    let expected = [
        "base:allocation",
        "qemu:allocation-depth",
        "qemu:dirty-bitmap:a b",
        "qemu:dirty-bitmap:b0",
    ];
    assert_eq!((status, lines), (Some(0), expected.to_vec()), "{stderr}");
    let (status, stdout, stderr) = printed(&[&socket, "export=nobody", "extents=list"]);
    assert_eq!((status, &*stdout), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("no export named \"nobody\""), "{stderr}");
}

#[test]
fn a_server_that_was_started_to_be_asked_is_ended() {
    if !has_qemu() || !need_all(&["pgrep"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = changed(directory.path());
    let mut args = vec!["command=qemu-nbd"];
    let words = ["-f", "qcow2", "-r", "-t", "-B", "b0", text(&image)];
    let words: Vec<_> = words.iter().map(|word| format!("arg={word}")).collect();
    args.extend(words.iter().map(String::as_str));
    args.push("extents=list");
    let (status, stdout, stderr) = printed(&args);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(
        stdout.lines().any(|line| line == "qemu:dirty-bitmap:b0"),
        "{stdout}"
    );
    let left = attempt("pgrep", &["-f", text(&image)]);
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[test]
fn a_server_without_contexts_prints_nothing() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let pair = Pair::new(&["--no-sr", "memory", "1M"], &[]);
    let socket = format!("socket={}", pair.server.socket().display());
    let (status, stdout, stderr) = printed(&[&socket, "extents=list"]);
    assert_eq!((status, &*stdout), (Some(0), ""), "{stderr}");
}

#[test]
fn standard_output_is_not_printed_to_where_it_is_a_client_s() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let (status, stdout, stderr) = printed(&["-s", "socket=/nowhere", "extents=list"]);
    assert_eq!((status, &*stdout), (Some(1), ""), "{stderr}");
    assert!(
        stderr.contains("cannot use ‘extents=list’ with nbdkit -s"),
        "{stderr}"
    );
}
