// SPDX-License-Identifier: BSD-3-Clause
//! `servers=`: several servers of one export, one after another or all at once.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::clients::{assert_same_bytes, nbdinfo, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, plugin_args};
use common::process::{Guarded, eventually};
use common::relay::Relay;
use common::scripted::Scripted;
use common::scripted::disk::{Disk, pattern};
use common::scripted::farm::{self, Farm, Fate};
use common::scripted::peer::Offer;
use common::scripted::wire::{cmd, errno, flag};
use common::upstream::{noise, noise_file};
use common::{need, need_all};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// How long a copy may take that loses servers on its way.
const COPY: Duration = Duration::from_secs(120);

/// What takes turns.
const PLANS: [&str; 2] = ["servers=failover", "servers=spread"];

const BACK: [&str; 2] = ["reconnect=20", "reconnect-delay=10ms:100ms"];

/// nbdkit before these places, without debug messages.
fn front(directory: &Path, places: &[&Path], extra: &[&str]) -> Nbdkit {
    let places: Vec<String> = places
        .iter()
        .map(|place| format!("socket={}", place.display()))
        .collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let mut args = plugin_args(&[&places[..], extra].concat());
    args.retain(|arg| arg != "-v");
    Nbdkit::start(directory, &args)
}

/// So many farms, each in a directory of its own.
fn farms<const N: usize>(directory: &Path, offer: fn(usize) -> Offer) -> [Farm; N] {
    std::array::from_fn(|number| {
        let own = directory.join(number.to_string());
        std::fs::create_dir(&own).expect("a directory");
        Farm::start_with(&own, 20, move |_| offer(number))
    })
}

fn good(_: usize) -> Offer {
    farm::offer()
}

fn says(front: &Nbdkit, words: &[&str]) {
    eventually(&format!("nbdkit says {words:?}"), LIMIT, || {
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        front.errors().iter().any(has_all).then_some(())
    });
}

#[test]
fn nothing_can_be_written_and_a_line_says_so() {
    if !need("nbdkit") {
        return;
    }
    for plan in PLANS {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farms: [Farm; 2] = farms(directory.path(), good);
        let places = [farms[0].socket(), farms[1].socket()];
        let front = front(directory.path(), &places, &[plan]);
        let mut client = Front::of(&front);
        assert_ne!(client.export().flags & flag::READ_ONLY, 0);
        assert_eq!(client.write(0, &[7; 512]), Err(errno::EPERM));
        says(&front, &["warning: ", "nothing can be written"]);
    }
}

#[test]
fn one_disk_behind_all_can_be_written() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farms: [Farm; 2] = farms(directory.path(), good);
    let places = [farms[0].socket(), farms[1].socket()];
    let extra = ["servers=failover", "servers-same-disk=true"];
    let front = front(directory.path(), &places, &extra);
    let mut client = Front::of(&front);
    assert_eq!(client.write(0, &[7; 512]), Ok(()));
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(front.errors(), [""; 0]);
}

#[test]
fn the_first_one_that_is_there_is_taken() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farms: [Farm; 2] = farms(directory.path(), good);
    let nowhere = directory.path().join("nowhere");
    let places = [nowhere.as_path(), farms[0].socket(), farms[1].socket()];
    let front = front(directory.path(), &places, &["servers=failover"]);
    for _ in 0..2 {
        let mut client = Front::of(&front);
        farms[0].load(&mut client);
        client.close();
    }
    assert_eq!((farms[0].accepted(), farms[1].accepted()), (2, 0));
}

#[test]
fn where_none_is_there_the_failure_names_one() {
    if !need("nbdkit") {
        return;
    }
    for plan in PLANS {
        let directory = tempfile::tempdir().expect("temporary directory");
        let nowhere = directory.path().join("nowhere");
        let neither = directory.path().join("neither");
        let front = front(directory.path(), &[&nowhere, &neither], &[plan]);
        assert!(Front::open(front.socket()).is_err());
        says(&front, &["connect: No such file or directory"]);
    }
}

#[test]
fn after_a_loss_the_next_one_is_gone_to() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = noise_file(directory.path(), "disk", 1 << 20, 5);
    let image = disk.display().to_string();
    let mut servers: Vec<_> = (0..3)
        .map(|_| Nbdkit::start(directory.path(), &["file", &image]))
        .collect();
    let places: Vec<_> = servers
        .iter()
        .map(|server| server.socket().to_owned())
        .collect();
    let places: Vec<&Path> = places.iter().map(|place| place.as_path()).collect();
    let extra = [&["servers=failover"][..], &BACK].concat();
    let front = front(directory.path(), &places, &extra);
    let mut client = Front::of(&front);
    let content = noise(1 << 20, 5);
    for n in 0..3 {
        assert_eq!(
            client.read(n * 4096, 512),
            Ok(content[n as usize * 4096..][..512].to_vec())
        );
        if n < 2 {
            let server = servers.remove(0);
            server.signal(libc::SIGKILL);
            drop(server);
        }
    }
    says(&front, &[text(places[1]), "connected again after"]);
    says(&front, &[text(places[2]), "connected again after"]);
}

#[test]
fn what_was_written_to_one_disk_goes_along() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farms: [Farm; 2] = farms(directory.path(), good);
    let places = [farms[0].socket(), farms[1].socket()];
    let extra = [&["servers=failover", "servers-same-disk=true"][..], &BACK].concat();
    let front = front(directory.path(), &places, &extra);
    let mut client = Front::of(&front);
    assert_eq!(client.write(0, &[7; 512]), Ok(()));
    // The first one takes no second client.
    farms[0].meets(0, Fate::Die);
    farms[0].admits_no_more();
    assert_eq!(client.read(0, 512), Ok(vec![7; 512]), "written again");
    assert_eq!(farms[1].asked(0)[0], cmd::WRITE);
}

#[test]
fn connections_go_to_all_of_them_whatever_the_load() {
    if !need("nbdkit") {
        return;
    }
    for back in [&[][..], &BACK] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farms: [Farm; 3] = farms(directory.path(), good);
        let places = [farms[0].socket(), farms[1].socket(), farms[2].socket()];
        let extra = [&["servers=spread"], back].concat();
        let front = front(directory.path(), &places, &extra);
        let mut client = Front::of(&front);
        eventually("all have a client", LIMIT, || {
            assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
            farms.iter().all(|farm| farm.accepted() == 1).then_some(())
        });
        eventually("all are asked for something", LIMIT, || {
            farms[0].load(&mut client);
            farms
                .iter()
                .all(|farm| farm.count(cmd::READ) > 0)
                .then_some(())
        });
        client.close();
        eventually("all are told of the end", LIMIT, || {
            farms
                .iter()
                .all(|farm| farm.count(cmd::DISC) == 1)
                .then_some(())
        });
        assert_eq!(front.errors().len(), 1, "that nothing can be written");
    }
}

#[test]
fn connections_count_for_each_of_them() {
    if !need("nbdkit") {
        return;
    }
    for back in [&[][..], &BACK] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farms: [Farm; 2] = farms(directory.path(), good);
        let places = [farms[0].socket(), farms[1].socket()];
        let extra = [&["servers=spread", "connections=2"], back].concat();
        let front = front(directory.path(), &places, &extra);
        let mut client = Front::of(&front);
        for farm in &farms {
            farm.grow(&mut client, 2);
        }
        (0..10).for_each(|_| farms[0].load(&mut client));
        assert!(farms.iter().all(|farm| farm.accepted() == 2));
    }
}

#[test]
fn it_goes_on_while_one_of_them_lives() {
    if !need("nbdkit") {
        return;
    }
    for back in [&[][..], &BACK] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farms: [Farm; 3] = farms(directory.path(), good);
        let places = [farms[0].socket(), farms[1].socket(), farms[2].socket()];
        let extra = [&["servers=spread"], back].concat();
        let front = front(directory.path(), &places, &extra);
        let mut client = Front::of(&front);
        for farm in &farms {
            farm.grow(&mut client, 1);
        }
        for farm in &farms[..2] {
            farm.admits_no_more();
            farm.meets(0, Fate::Die);
            let before = farm.count(cmd::READ);
            eventually("it is asked for something, and dies", LIMIT, || {
                farm.load(&mut client);
                (farm.count(cmd::READ) > before).then_some(())
            });
            farm.load(&mut client);
        }
        says(&front, &["connection lost", "going on over"]);
    }
}

/// Without coming back.
#[test]
fn when_all_are_gone_one_that_was_not_tried_is() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farms: [Farm; 2] = farms(directory.path(), good);
    let places = [farms[0].socket(), farms[1].socket()];
    let front = front(directory.path(), &places, &["servers=spread"]);
    let mut client = Front::of(&front);
    farms[0].meets(0, Fate::Die);
    // With the very first request, which is when the others are only looked for.
    assert_eq!(client.read(4096, 512), Ok(pattern(4096, 512)));
    assert_eq!(client.read(8192, 512), Ok(pattern(8192, 512)));
    assert_eq!(farms[0].accepted(), 1);
}

/// It has looked for itself alone, and what it has not waited for is there for others.
#[test]
fn who_leaves_while_it_looks_for_another_has_looked_in_vain_for_itself_alone() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let [farm]: [Farm; 1] = farms(directory.path(), good);
    let own = directory.path().join("aside");
    std::fs::create_dir(&own).expect("a directory");
    let [aside, slow] = [own.as_path(), directory.path()].map(Scripted::start);
    // One connection is made aside, and one by the client that leaves.
    for server in [&aside, &slow] {
        server.play(|peer| peer.expect_closed());
    }
    slow.play(|peer| {
        peer.negotiate(&farm::offer())?;
        peer.serve(&mut Disk::new(1 << 20))
    });
    let places = [farm.socket(), aside.socket(), slow.socket()];
    let front = front(
        directory.path(),
        &places,
        &["servers=spread", "shared=true"],
    );
    let mut clients = [Front::of(&front), Front::of(&front)];
    eventually("one is made aside", LIMIT, || {
        assert_eq!(clients[0].read(4096, 512), Ok(pattern(4096, 512)));
        (aside.accepted() == 1).then_some(())
    });
    farm.meets(0, Fate::Die);
    clients[0].submit_read(4096, 512);
    eventually("another one is looked for", LIMIT, || {
        (slow.accepted() == 1).then_some(())
    });
    let [first, mut second] = clients;
    drop(first);
    assert_eq!(second.read(8192, 512), Ok(pattern(8192, 512)));
}

#[test]
fn one_that_offers_less_is_left_out_with_a_line() {
    fn second_is_smaller(number: usize) -> Offer {
        Offer {
            size: if number == 1 { 1 << 19 } else { 1 << 20 },
            ..farm::offer()
        }
    }
    if !need("nbdkit") {
        return;
    }
    for (plan, back) in [
        ("servers=spread", &[][..]),
        ("servers=spread", &BACK),
        ("servers=failover", &BACK),
    ] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farms: [Farm; 3] = farms(directory.path(), second_is_smaller);
        let places = [farms[0].socket(), farms[1].socket(), farms[2].socket()];
        let extra = [&[plan], back].concat();
        let front = front(directory.path(), &places, &extra);
        let mut client = Front::of(&front);
        assert_eq!(client.export().size, 1 << 20);
        if plan == "servers=failover" {
            farms[0].meets(0, Fate::Die);
            farms[0].admits_no_more();
        }
        eventually("the third one is asked for something", LIMIT, || {
            farms[2].load(&mut client);
            (farms[2].count(cmd::READ) > 0).then_some(())
        });
        let left_out = "this server is left out: the export had 1048576 bytes, and has 524288";
        says(&front, &[text(farms[1].socket()), left_out]);
        assert_eq!(farms[1].count(cmd::READ), 0);
    }
}

/// Each with its own words for the same disk.
#[test]
fn places_of_all_kinds_can_be_mixed() {
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farms: [Farm; 2] = farms(directory.path(), good);
    let server =
        common::tcp::TcpServer::start(std::net::Ipv4Addr::LOCALHOST.into(), &["pattern", "1M"]);
    let socket = format!("socket={}", farms[0].socket().display());
    let uri = format!(
        "uri=nbd+unix:///disk?socket={}",
        farms[1].socket().display()
    );
    let port = format!("port={}", server.port());
    let mut args = plugin_args(&[
        "servers=failover",
        "hostname=127.0.0.1",
        &port,
        &socket,
        &uri,
    ]);
    args.retain(|arg| arg != "-v");
    let front = Nbdkit::start(directory.path(), &args);
    let info = nbdinfo(&front.uri());
    assert_eq!(info["export-size"], 1 << 20);
    assert_eq!(farms[0].accepted() + farms[1].accepted(), 0, "in order");
}

/// Three servers of one file, of which two at most are there at any time. One is killed, or stopped, in turn.
fn copy_through_losses(plan: &str, stop: bool) {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = noise_file(directory.path(), "disk", 24 << 20, 91);
    let image = disk.display().to_string();
    let args = ["--filter=delay", "file", &image, "rdelay=100ms"];
    let mut servers: Vec<_> = (0..3)
        .map(|_| Nbdkit::start(directory.path(), &args))
        .collect();
    let relays: Vec<_> = servers
        .iter()
        .enumerate()
        .map(|(n, server)| Relay::unix(directory.path(), &format!("relay{n}"), server.socket()))
        .collect();
    let places: Vec<&Path> = relays.iter().map(|relay| relay.socket()).collect();
    let extra = [&[plan, "request-timeout=2", "close-timeout=1"][..], &BACK].concat();
    let front = front(directory.path(), &places, &extra);
    let copy = directory.path().join("copy");
    let mut nbdcopy = Command::new("nbdcopy");
    nbdcopy.args(["--connections=1", "--requests=2", &front.uri(), text(&copy)]);
    let mut nbdcopy = Guarded::spawn(&mut nbdcopy);
    for n in 0..2 {
        // Only one that is in use can be lost.
        eventually("the server is in use", LIMIT, || {
            let recordings = relays[n].recordings();
            let served = recordings
                .iter()
                .map(|connection| connection.from_server.len());
            (served.sum::<usize>() > 32 << 10).then_some(())
        });
        let signal = if stop { libc::SIGSTOP } else { libc::SIGKILL };
        servers[n].signal(signal);
        if !stop {
            let last = relays[n].recordings().len();
            eventually("it is dead", LIMIT, || {
                (!servers[n].alive() || last == 0).then_some(())
            });
        }
    }
    let status = nbdcopy.wait_timeout(COPY);
    let told = format!("{}{}", nbdcopy.stderr(), front.stderr());
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{told}"
    );
    assert_same_bytes(&copy, &disk);
    assert!(told.contains("connection lost"), "{told}");
    for server in servers.iter().filter(|_| stop) {
        server.signal(libc::SIGCONT);
    }
}

#[test]
fn a_copy_survives_servers_that_are_killed() {
    PLANS
        .into_iter()
        .for_each(|plan| copy_through_losses(plan, false));
}

#[test]
fn a_copy_survives_servers_that_are_stopped() {
    PLANS
        .into_iter()
        .for_each(|plan| copy_through_losses(plan, true));
}

/// Who was there waits for what was, who comes later has what is there.
#[test]
fn clients_of_a_shared_connection_start_afresh_when_all_servers_have_become_smaller() {
    if !need("nbdkit") {
        return;
    }
    let of_size = |size: u64| Offer {
        size,
        ..farm::offer()
    };
    for plan in PLANS {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farms = [0, 1].map(|server| {
            let own = directory.path().join(server.to_string());
            std::fs::create_dir(&own).expect("a directory");
            // The first one is smaller from its second connection on, the other one is at once.
            Farm::start_with(&own, 20, move |number| {
                of_size(if server + number == 0 {
                    1 << 20
                } else {
                    1 << 19
                })
            })
        });
        let places = [farms[0].socket(), farms[1].socket()];
        let front = front(
            directory.path(),
            &places,
            &[&[plan, "shared=true"], &BACK[..]].concat(),
        );
        let mut client = Front::of(&front);
        assert_eq!(client.export().size, 1 << 20);
        client.read(0, 512).expect("served");
        farms[0].meets(0, Fate::Die);
        client.submit_read(0, 512);
        let left_out = "this server is left out: the export had 1048576 bytes, and has 524288";
        for farm in &farms {
            says(&front, &[&farm.socket().display().to_string(), left_out]);
        }
        // The last try may not have ended yet.
        eventually("whoever comes has what is there", LIMIT, || {
            let mut next = Front::of(&front);
            let size = next.export().size;
            (size == 1 << 19 && next.read(0, 512).is_ok()).then_some(())
        });
    }
}

/// What is kept for one client is not written over what another has flushed, who came while all servers were
/// others.
#[test]
fn nothing_that_is_kept_overtakes_what_was_flushed_since() {
    if !need("nbdkit") {
        return;
    }
    for shared in [&[][..], &["shared=true"]] {
        let directory = tempfile::tempdir().expect("temporary directory");
        let image = noise_file(directory.path(), "image", 1 << 20, 1);
        let places = ["one.sock", "two.sock"].map(|name| directory.path().join(name));
        let start = |filter: &[&str], more: &[&str]| {
            let args = [filter, &["file", text(&image)], more].concat();
            places.each_ref().map(|place| {
                let _ = std::fs::remove_file(place);
                Nbdkit::start_at(place, &args)
            })
        };
        let servers = start(&[], &[]);
        let plan = ["servers=failover", "servers-same-disk=true"];
        let extra = [&plan[..], &BACK[..], shared].concat();
        let front = front(
            directory.path(),
            &places.each_ref().map(PathBuf::as_path),
            &extra,
        );
        let mut first = Front::of(&front);
        first.write(0, &[1; 512]).expect("kept, and not flushed");
        drop(servers);
        let servers = start(&["--filter=truncate"], &["truncate=2M"]);
        // Whoever was there waits.
        let read = first.submit_read(0, 512);
        let left_out = "is left out";
        says(&front, &[text(&places[1]), left_out]);
        eventually("another client starts afresh", LIMIT, || {
            let mut other = Front::of(&front);
            let fresh = other.export().size == 2 << 20;
            fresh.then(|| {
                assert_eq!(other.write(0, &[2; 512]), Ok(()));
                assert_eq!(other.flush(), Ok(()));
            })
        });
        drop(servers);
        let _servers = start(&[], &[]);
        assert_eq!(first.wait_read(read), Err(errno::EIO), "{shared:?}");
        assert_eq!(first.flush(), Err(errno::EIO));
        let mut last = Front::of(&front);
        assert_eq!(last.read(0, 512), Ok(vec![2; 512]), "{shared:?}");
    }
}
