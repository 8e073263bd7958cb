// SPDX-License-Identifier: BSD-3-Clause
//! `extents=`: dirty bitmaps and backing chains of qemu's as extents that stock tools understand.

mod common;

use std::process::Command;

use common::bitmaps::{
    MIB, before_changed, changed, dirty, extents, has_qemu, image, qemu_io, serving,
};
use common::clients::{LIMIT, map, nbdinfo, program, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, forward_args};
use common::need_all;
use common::pair::Pair;
use common::process::run;
use common::relay::Relay;
use common::scripted::Scripted;
use common::scripted::peer::Offer;
use common::upstream::qemu_nbd;

#[test]
fn dirty_ranges_are_data_also_where_they_are_zero() {
    if !has_qemu() {
        return;
    }
    let pair = before_changed(&["export=disk", "extents=qemu:dirty-bitmap:b0"]);
    assert_eq!(extents(&pair.front.uri()), dirty());
    let other = forward(
        pair.path(),
        pair.server.socket(),
        &["export=disk", "extents=qemu:dirty-bitmap:a b"],
    );
    assert_eq!(extents(&other.uri()), dirty());
}

#[test]
fn reads_are_those_of_the_disk_whatever_the_bitmap_says() {
    if !has_qemu() {
        return;
    }
    let pair = before_changed(&[
        "export=disk",
        "extents=qemu:dirty-bitmap:b0",
        "extents-cache=1M",
    ]);
    // All of the map is known, and calls the first MiB zero.
    assert_eq!(extents(&pair.front.uri()), dirty());
    let mut front = Front::open(pair.front.socket()).expect("opens");
    for (offset, byte) in [(0, 0x11), (MIB, 0x22), (2 * MIB, 0x11), (3 * MIB, 0)] {
        assert_eq!(front.read(offset, 4096), Ok(vec![byte; 4096]), "{offset}");
    }
    front.close();
}

#[test]
fn the_true_map_is_the_default() {
    if !has_qemu() {
        return;
    }
    let pair = before_changed(&["export=disk"]);
    let direct = map(&pair.server.uri_export("disk"));
    assert_eq!(map(&pair.front.uri()), direct);
    let said = forward(
        pair.path(),
        pair.server.socket(),
        &["export=disk", "extents=base:allocation"],
    );
    assert_eq!(map(&said.uri()), direct);
    let info = nbdinfo(&said.uri());
    assert_eq!(info["description"], serde_json::Value::Null);
}

#[test]
fn nothing_can_be_written_where_a_bitmap_is_the_map() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = changed(directory.path());
    // The server itself would let it be written.
    let server = qemu_nbd(directory.path(), &image, "qcow2", "disk", &["-B", "b0"]);
    for (extents, says) in [
        (
            "extents=qemu:dirty-bitmap:b0",
            "read-only, data is what has changed: qemu:dirty-bitmap:b0",
        ),
        (
            "extents=qemu:dirty-bitmap:*",
            "read-only, data is what has changed: qemu:dirty-bitmap:b0",
        ),
    ] {
        let front = forward(directory.path(), server.socket(), &["export=disk", extents]);
        let info = nbdinfo(&front.uri());
        assert_eq!(info["is_read_only"], true, "{extents}");
        assert_eq!(info["can_zero"], false, "{extents}");
        assert_eq!(info["description"], says);
    }
    let plain = forward(directory.path(), server.socket(), &["export=disk"]);
    assert_eq!(nbdinfo(&plain.uri())["is_read_only"], false);
}

#[test]
fn shared_connections_and_those_that_come_back_show_the_bitmap_too() {
    if !has_qemu() {
        return;
    }
    let pair = before_changed(&["export=disk", "extents=qemu:dirty-bitmap:b0", "shared=true"]);
    assert_eq!(extents(&pair.front.uri()), dirty());
    let directory = pair.path();
    let relay = Relay::unix(directory, "relay.sock", pair.server.socket());
    let front = relay.forward(
        directory,
        &[
            "export=disk",
            "extents=qemu:dirty-bitmap:b0",
            "reconnect=20",
        ],
    );
    let mut client = Front::open_structured(front.socket()).expect("opens");
    let before = client.status(0, 16 << 20).expect("extents");
    relay.cut_after(0);
    // The cut comes with the server's next byte, which is then not the whole answer.
    assert_eq!(client.status(0, 16 << 20), Ok(before));
    client.close();
}

#[test]
fn depth_one_is_data_and_every_other_a_hole() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let base = image(directory.path(), 16, &[]);
    let top = directory.path().join("top.qcow2");
    let chain = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    program(
        "qemu-img",
        &[&chain[..], &[text(&base), text(&top)]].concat(),
    );
    qemu_io(
        &top,
        &[
            "write -P 0x33 2M 1M".to_owned(),
            "write -z 5M 1M".to_owned(),
        ],
    );
    let server = qemu_nbd(directory.path(), &top, "qcow2", "disk", &["-A"]);
    let front = forward(
        directory.path(),
        server.socket(),
        &["export=disk", "extents=qemu:allocation-depth"],
    );
    assert_eq!(
        extents(&front.uri()),
        [
            (0, 2 * MIB, 3),
            (2 * MIB, MIB, 0),
            (3 * MIB, 2 * MIB, 3),
            (5 * MIB, MIB, 0),
            (6 * MIB, 10 * MIB, 3),
        ]
    );
    let info = nbdinfo(&front.uri());
    assert_eq!(
        info["description"],
        "read-only, data is what the top layer has: qemu:allocation-depth"
    );
}

/// Why no client can open the export.
fn refused(front: &Nbdkit) -> String {
    assert!(Front::open(front.socket()).is_err(), "{}", front.stderr());
    let line = front.explanation();
    let (_, why) = line.split_once("handshake: ").expect("why");
    why.to_owned()
}

#[test]
fn a_context_that_is_not_there_is_refused_with_those_that_are() {
    if !has_qemu() {
        return;
    }
    let pair = before_changed(&["export=disk", "extents=qemu:dirty-bitmap:b1"]);
    let has = "it has base:allocation, qemu:allocation-depth, qemu:dirty-bitmap:";
    let why = refused(&pair.front);
    assert!(
        why.starts_with("the server has no context qemu:dirty-bitmap:b1 for export \"disk\": ")
            && why.contains(has)
            && why.contains("qemu:dirty-bitmap:a b"),
        "{why}"
    );
    let several = forward(
        pair.path(),
        pair.server.socket(),
        &["export=disk", "extents=qemu:dirty-bitmap:*"],
    );
    let why = refused(&several);
    assert!(
        why.starts_with("the server has several dirty bitmaps for export \"disk\": qemu:dirty-"),
        "{why}"
    );
    let unknown = forward(
        pair.path(),
        pair.server.socket(),
        &["export=other", "extents=qemu:dirty-bitmap:*"],
    );
    let why = refused(&unknown);
    assert!(why.contains("no export named \"other\""), "{why}");
}

#[test]
fn the_shared_connection_is_refused_at_the_start() {
    if !has_qemu() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = serving(directory.path(), &image(directory.path(), 2, &[]), &[]);
    let args = forward_args(
        server.socket(),
        &["export=disk", "shared=true", "extents=qemu:dirty-bitmap:*"],
    );
    let output = run(
        Command::new("nbdkit")
            .args(["-U", "-"])
            .args(args)
            .args(["--run", "true"]),
        LIMIT,
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("has no context qemu:dirty-bitmap:* for export"),
        "{stderr}"
    );
}

/// A server that knows no more of contexts than what `script` plays, once it has agreed to structured
/// replies or whatever `offer` has.
fn scripted_refusal(offer: Offer, extents: &str) -> String {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let ticket = server.play(move |peer| peer.negotiate(&offer));
    let front = forward(directory.path(), server.socket(), &[extents]);
    let why = refused(&front);
    ticket.ended("it has left");
    why
}

#[test]
fn servers_without_contexts_are_left_with_a_reason() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let without = Offer {
        contexts: Vec::new(),
        ..Offer::default()
    };
    for extents in [
        "extents=qemu:dirty-bitmap:b",
        "extents=qemu:allocation-depth",
    ] {
        let why = scripted_refusal(without.clone(), extents);
        let wanted = extents.strip_prefix("extents=").expect("a value");
        assert_eq!(
            why,
            format!("the server has no context {wanted} for export \"\": it has none")
        );
    }
    let why = scripted_refusal(without, "extents=qemu:dirty-bitmap:*");
    assert!(why.ends_with("for export \"\": it has none"), "{why}");
    let why = scripted_refusal(Offer::simple(), "extents=qemu:dirty-bitmap:b");
    assert!(why.ends_with(": it has no structured replies"), "{why}");
}

#[test]
fn an_oldstyle_server_is_left_with_a_reason() {
    if !need_all(&["nbdkit"]) {
        return;
    }
    let pair = Pair::new(&["-o", "memory", "1M"], &["extents=qemu:allocation-depth"]);
    let why = refused(&pair.front);
    assert!(why.ends_with(": it has no structured replies"), "{why}");
}
