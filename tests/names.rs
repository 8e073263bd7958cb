// SPDX-License-Identifier: BSD-3-Clause
//! Export names that are not UTF-8: listed, opened and shown for what they are.

mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;

use common::front::Front;
use common::nbdkit::{Nbdkit, forward, through};
use common::need;
use common::plugin;
use common::scripted::bench::Bench;
use common::scripted::disk::Disk;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, info, opt, rep};

/// "caf\u{e9}" as it was before UTF-8.
const NAME: &[u8] = b"caf\xe9";

/// nbdkit that serves the files of a directory by their names.
fn files() -> (tempfile::TempDir, Nbdkit) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let disks = directory.path().join("disks");
    fs::create_dir(&disks).expect("a directory");
    fs::write(disks.join(OsStr::from_bytes(NAME)), [7; 4096]).expect("a file");
    fs::write(disks.join("cafe"), [1; 512]).expect("a file");
    let server = Nbdkit::start(
        directory.path(),
        &["file".to_owned(), format!("dir={}", disks.display())],
    );
    (directory, server)
}

#[test]
fn a_client_chooses_among_a_servers_files() {
    if !need("nbdkit") {
        return;
    }
    let (directory, server) = files();
    let nbdkit = forward(directory.path(), server.socket(), &["dynamic-export=true"]);

    let mut listed: Vec<Vec<u8>> = Front::list(nbdkit.socket())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    listed.sort();
    assert_eq!(listed, [b"cafe".to_vec(), NAME.to_vec()]);

    let mut front = Front::open_as(nbdkit.socket(), NAME, false).expect("opens");
    assert_eq!(front.read(0, 4096), Ok(vec![7; 4096]));
    front.close();

    assert!(Front::open_as(nbdkit.socket(), b"caf\xe8", false).is_err());
    let stderr = nbdkit.stderr();
    assert!(stderr.contains("no export named \"caf\\xe8\""), "{stderr}");
}

#[test]
fn the_user_names_one_of_them() {
    if !need("nbdkit") {
        return;
    }
    let (directory, server) = files();
    let mut export = OsString::from("export=");
    export.push(OsStr::from_bytes(NAME));
    let socket = format!("socket={}", server.socket().display());
    let by_parameter = Nbdkit::start(
        directory.path(),
        &[plugin().into_os_string(), socket.into(), export],
    );
    let uri = format!(
        "uri=nbd+unix:///caf%e9?socket={}",
        server.socket().display()
    );
    let by_uri = through(directory.path(), &[&uri]);
    for nbdkit in [by_parameter, by_uri] {
        let front = Front::open(nbdkit.socket()).expect("opens");
        assert_eq!(front.export().size, 4096);
        front.close();
        // It is the only one, and the default.
        assert_eq!(Front::list(nbdkit.socket()), [(NAME.to_vec(), Vec::new())]);
    }
}

#[test]
fn the_name_is_the_same_in_every_question() {
    let mut bench = Bench::new(&["dynamic-export=true"]);
    for go in [true, false] {
        let ticket = bench.play(move |peer: &mut Peer| {
            let offer = Offer {
                go,
                ..Offer::default()
            };
            peer.greet(offer.handshake_flags)?;
            loop {
                let asked = peer.option()?;
                match asked.option {
                    opt::SET_META_CONTEXT => assert_eq!(asked.set_meta_context().0, NAME),
                    opt::GO => assert_eq!(asked.go().0, NAME),
                    opt::EXPORT_NAME => assert_eq!(asked.data, NAME),
                    _ => {}
                }
                if peer.answer_option(&asked, &offer)? {
                    return peer.serve(&mut Disk::new(offer.size));
                }
            }
        });
        Front::open_as(bench.socket(), NAME, false)
            .expect("opens")
            .close();
        ticket.finished("an odd name");
    }
    bench.serves_the_next("an odd name");
}

#[test]
fn the_default_export_may_have_such_a_name() {
    let bench = Bench::new(&["dynamic-export=true"]);
    // Asking for its name opens it.
    let opening = bench.play(|peer| {
        let asked = peer.greet_until(opt::GO, &Offer::default())?;
        assert_eq!(asked.go().0, b"");
        let name = wire::info_payload(info::NAME, NAME);
        peer.reply(opt::GO, rep::INFO, &name)?;
        peer.send_infos(&Offer::default())?;
        peer.accept_go(&Offer::default())?;
        peer.serve(&mut Disk::new(1 << 20))
    });
    assert_eq!(Front::canonical_name(bench.socket()).as_deref(), Some(NAME));
    opening.finished("GO");
}
