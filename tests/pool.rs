// SPDX-License-Identifier: BSD-3-Clause
//! `connections=`: several connections to the server for one client, or for all who share them.

mod common;

use std::path::Path;
use std::time::Duration;

use common::clients::{assert_same_bytes, nbdcopy, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward, plugin_args};
use common::process::eventually;
use common::relay::Relay;
use common::scripted::disk::{Disk, pattern};
use common::scripted::farm::{self, Farm, Fate};
use common::scripted::peer::Offer;
use common::scripted::wire::{cmd, flag};
use common::scripted::{Gate, Scripted};
use common::upstream::noise_file;
use common::{need, need_all};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// Without and with coming back.
const MODES: [&[&str]; 2] = [&[], &["reconnect=20", "reconnect-delay=10ms:100ms"]];

/// nbdkit before a server, not verbose.
fn quiet(directory: &Path, socket: &Path, extra: &[&str]) -> Nbdkit {
    let socket = format!("socket={}", socket.display());
    let mut args = plugin_args(&[&[socket.as_str()], extra].concat());
    args.retain(|arg| arg != "-v");
    Nbdkit::start(directory, &args)
}

/// A farm, nbdkit before it with so many connections, and a client; for each mode.
fn in_each_mode(connections: &str, test: impl Fn(&Farm, &mut Nbdkit, Front)) {
    for mode in MODES {
        if !need("nbdkit") {
            return;
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        let farm = Farm::start(directory.path());
        let extra = [&[connections], mode].concat();
        let mut front = quiet(directory.path(), farm.socket(), &extra);
        let client = Front::of(&front);
        println!("{extra:?}");
        test(&farm, &mut front, client);
    }
}

/// What nbdkit says, perhaps a moment later: one line, with these words.
fn says(front: &Nbdkit, words: &[&str]) {
    let said = eventually("nbdkit says something", LIMIT, || {
        Some(front.errors()).filter(|errors| !errors.is_empty())
    });
    assert_eq!(said.len(), 1, "{said:?}");
    let has_all = words.iter().all(|word| said[0].contains(word));
    assert!(has_all, "{words:?}: {said:?}");
}

#[test]
fn who_asks_for_one_thing_after_another_has_one_connection() {
    in_each_mode("connections=4", |farm, front, mut client| {
        for n in 0..40 {
            assert_eq!(client.read(n * 4096, 512), Ok(pattern(n * 4096, 512)));
        }
        assert_eq!(farm.accepted(), 1);
        client.close();
        assert_eq!(front.errors(), [""; 0]);
    });
}

#[test]
fn connections_come_with_the_load_and_all_end_with_the_client() {
    in_each_mode("connections=4", |farm, front, mut client| {
        farm.grow(&mut client, 4);
        for _ in 0..10 {
            farm.load(&mut client);
        }
        assert_eq!(farm.accepted(), 4, "and no more");
        client.close();
        eventually("all are told of the end", LIMIT, || {
            (farm.count(cmd::DISC) == 4).then_some(())
        });
        assert_eq!(front.errors(), [""; 0]);
    });
}

#[test]
fn one_is_what_there_is_where_nothing_is_said() {
    in_each_mode("connections=1", |farm, _, mut client| {
        for _ in 0..20 {
            farm.load(&mut client);
        }
        assert_eq!(farm.accepted(), 1);
    });
}

#[test]
fn what_is_written_over_one_is_read_over_all_others() {
    in_each_mode("connections=3", |farm, _, mut client| {
        farm.grow(&mut client, 3);
        for n in 0..16u8 {
            assert_eq!(client.write(u64::from(n) * 512, &[n; 512]), Ok(()));
        }
        let flushes = farm.count(cmd::FLUSH);
        assert_eq!(client.flush(), Ok(()));
        assert_eq!(farm.count(cmd::FLUSH), flushes + 1, "one is enough for all");
        for _ in 0..4 {
            let reads: Vec<_> = (0..16).map(|n| client.submit_read(n * 512, 512)).collect();
            for (n, read) in (0..16u8).zip(reads) {
                assert_eq!(client.wait_read(read), Ok(vec![n; 512]));
            }
        }
    });
}

#[test]
fn requests_of_one_that_is_lost_move_over_and_one_line_tells_of_it() {
    in_each_mode("connections=3", |farm, front, mut client| {
        farm.grow(&mut client, 3);
        assert_eq!(client.write(0, &[7; 512]), Ok(()));
        farm.meets(0, Fate::Die);
        eventually("the first one is asked for something", LIMIT, || {
            let before = farm.asked(0).len();
            let writes: Vec<_> = (1..9)
                .map(|n| client.submit_write(n * 512, &[7; 512]))
                .collect();
            for write in writes {
                assert_eq!(client.wait(write), Ok(()));
            }
            farm.load(&mut client);
            (farm.asked(0).len() > before).then_some(())
        });
        assert_eq!(client.flush(), Ok(()));
        assert_eq!(client.read(0, 9 * 512), Ok(vec![7; 9 * 512]));
        says(front, &["connection lost", "going on over"]);
        client.close();
        says(front, &["connection lost"]);
    });
}

#[test]
fn one_that_is_lost_is_replaced_where_the_plugin_comes_back() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farm = Farm::start(directory.path());
    let front = forward(
        directory.path(),
        farm.socket(),
        &["connections=3", "reconnect=20"],
    );
    let mut client = Front::of(&front);
    farm.grow(&mut client, 3);
    farm.meets(1, Fate::Die);
    farm.grow(&mut client, 4);
}

#[test]
fn one_that_is_told_of_the_end_is_left_for_the_others() {
    in_each_mode("connections=3", |farm, front, mut client| {
        farm.grow(&mut client, 3);
        farm.meets(1, Fate::Go);
        eventually("it is left in good order", LIMIT, || {
            farm.load(&mut client);
            assert_eq!(client.write(0, &[7; 512]), Ok(()));
            farm.asked(1).contains(&cmd::DISC).then_some(())
        });
        assert_eq!(client.flush(), Ok(()));
        assert_eq!(farm.accepted(), 3, "the server goes: no new ones");
        assert_eq!(front.errors(), [""; 0]);
    });
}

#[test]
fn the_last_one_that_is_told_of_the_end_is_left_for_a_new_one() {
    in_each_mode("connections=2", |farm, _, mut client| {
        farm.grow(&mut client, 2);
        assert_eq!(client.write(0, &[7; 512]), Ok(()));
        farm.meets(0, Fate::Go);
        farm.meets(1, Fate::Go);
        eventually("both are left", LIMIT, || {
            farm.load(&mut client);
            (farm.count(cmd::DISC) == 2).then_some(())
        });
        assert!(farm.count(cmd::FLUSH) > 0, "what was written is flushed");
        assert_eq!(client.read(0, 512), Ok(vec![7; 512]));
    });
}

/// What one that was left before them still owes is flushed with the rest.
#[test]
fn what_is_owed_by_one_that_was_left_is_flushed_before_the_last_one_is() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farm = Farm::start(directory.path());
    let front = quiet(directory.path(), farm.socket(), &["connections=2"]);
    let mut client = Front::of(&front);
    farm.grow(&mut client, 2);
    farm.meets(0, Fate::GoOwing);
    let owed = eventually("a write goes over the first one", LIMIT, || {
        assert_eq!(client.flush(), Ok(()));
        let count = farm.count(cmd::WRITE);
        let write = client.submit_write(0, &[7; 512]);
        eventually("it arrives", LIMIT, || {
            (farm.count(cmd::WRITE) > count).then_some(())
        });
        std::thread::sleep(Duration::from_millis(20));
        match farm.owes() {
            true => Some(write),
            false => {
                assert_eq!(client.wait(write), Ok(()));
                None
            }
        }
    });
    let before = farm.asked(0).len();
    eventually("the first one is known to go", LIMIT, || {
        farm.load(&mut client);
        (farm.asked(0).len() > before).then_some(())
    });
    let flushes = |number| {
        let asked = farm.asked(number);
        asked.iter().filter(|kind| **kind == cmd::FLUSH).count()
    };
    let before = flushes(1);
    farm.meets(1, Fate::Go);
    let read = client.submit_read(4096, 512);
    // It is not to be so soon: whoever does not wait for the first one is quicker.
    std::thread::sleep(Duration::from_millis(300));
    farm.pays();
    assert_eq!(client.wait(owed), Ok(()));
    assert_eq!(client.wait_read(read), Ok(pattern(4096, 512)));
    assert_eq!(flushes(1), before + 1, "nothing is lost with the server");
    assert_eq!(client.read(0, 512), Ok(vec![7; 512]));
}

/// What was written is in doubt: there is no other that could tell.
#[test]
fn without_coming_back_it_is_over_with_the_last() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farm = Farm::start(directory.path());
    let front = quiet(directory.path(), farm.socket(), &["connections=3"]);
    let mut client = Front::of(&front);
    farm.grow(&mut client, 3);
    assert_eq!(client.write(0, &[7; 512]), Ok(()));
    for number in 0..3 {
        farm.meets(number, Fate::Die);
    }
    eventually("the last one is lost", LIMIT, || {
        let reads: Vec<_> = (0..9).map(|n| client.submit_read(n * 4096, 512)).collect();
        let answers = reads.into_iter().map(|read| client.wait_read(read));
        let failed = answers.filter(|answer| answer.is_err()).count();
        (failed > 0).then_some(())
    });
    assert!(client.flush().is_err(), "nobody knows");
    assert!(client.read(0, 512).is_err());
    assert_eq!(farm.accepted(), 3, "and nobody looks for another");
    let last = front.errors().pop().expect("a line");
    assert!(last.contains("connection lost: "), "{last}");
}

/// A server that is killed with all its connections is one loss.
#[test]
fn a_server_that_is_killed_is_told_of_in_one_line() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let upstream = Nbdkit::start(
        directory.path(),
        &["--filter=delay", "memory", "1M", "rdelay=5ms"],
    );
    let relay = Relay::unix(directory.path(), "relay", upstream.socket());
    let front = quiet(directory.path(), relay.socket(), &["connections=4"]);
    let mut client = Front::of(&front);
    eventually("four connections", LIMIT, || {
        let reads: Vec<_> = (0..12).map(|n| client.submit_read(n * 512, 512)).collect();
        for read in reads {
            assert!(client.wait_read(read).is_ok());
        }
        (relay.recordings().len() == 4).then_some(())
    });
    upstream.signal(libc::SIGKILL);
    eventually("the loss is seen", LIMIT, || {
        client.read(0, 512).is_err().then_some(())
    });
    says(&front, &["connection lost"]);
}

#[test]
fn a_server_without_the_promise_gets_one_and_a_line_says_so() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farm = Farm::start_with(directory.path(), 8, |_| Offer::simple());
        let extra = [&["connections=4"], mode].concat();
        let front = quiet(directory.path(), farm.socket(), &extra);
        for _ in 0..2 {
            let mut client = Front::of(&front);
            (0..10).for_each(|_| farm.load(&mut client));
            client.close();
        }
        assert_eq!(farm.accepted(), 2, "one for each client");
        says(&front, &["connections=4", "NBD_FLAG_CAN_MULTI_CONN"]);
    }
}

#[test]
fn where_nothing_can_be_written_it_needs_no_promise() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        for (readonly, option) in [(true, "connections=3"), (false, "-r")] {
            let directory = tempfile::tempdir().expect("temporary directory");
            let farm = Farm::start_with(directory.path(), 8, move |_| {
                let mut offer = Offer::simple();
                if readonly {
                    offer.flags |= flag::READ_ONLY;
                }
                offer
            });
            let extra = [&[option, "connections=3"], mode].concat();
            let front = quiet(directory.path(), farm.socket(), &extra);
            let mut client = Front::of(&front);
            farm.grow(&mut client, 3);
            assert_eq!(front.errors(), [""; 0]);
        }
    }
}

#[test]
fn a_server_that_admits_fewer_is_believed() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        for admits in [1, 2, 3] {
            let directory = tempfile::tempdir().expect("temporary directory");
            let farm = Farm::start_with(directory.path(), admits, |_| farm::offer());
            let extra = [&["connections=8"], mode].concat();
            let front = quiet(directory.path(), farm.socket(), &extra);
            let mut client = Front::of(&front);
            farm.grow(&mut client, admits);
            eventually("one more is tried", LIMIT, || {
                farm.load(&mut client);
                (farm.accepted() > admits).then_some(())
            });
            (0..20).for_each(|_| farm.load(&mut client));
            assert_eq!(farm.accepted(), admits + 1, "and no other");
            assert_eq!(front.errors(), [""; 0]);
        }
    }
}

/// It takes connections, and says nothing over those that are too many.
#[test]
fn a_server_that_lets_one_wait_holds_nobody_up() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let disk = noise_file(directory.path(), "disk", 4 << 20, 31);
    let extra = ["-e", "1", "--read-only"];
    let server = common::upstream::qemu_nbd(directory.path(), &disk, "raw", "", &extra);
    let front = quiet(directory.path(), server.socket(), &["connections=4"]);
    let copy = directory.path().join("copy");
    nbdcopy(&["--connections=1", &front.uri(), text(&copy)]);
    assert_same_bytes(&copy, &disk);
    assert_eq!(front.errors(), [""; 0]);
}

#[test]
fn what_offers_less_than_the_first_is_left_out_with_a_line() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farm = Farm::start_with(directory.path(), 8, |number| Offer {
            size: if number == 0 { 1 << 20 } else { 1 << 19 },
            ..farm::offer()
        });
        let extra = [&["connections=4"], mode].concat();
        let front = quiet(directory.path(), farm.socket(), &extra);
        let mut client = Front::of(&front);
        eventually("it is left in good order", LIMIT, || {
            farm.load(&mut client);
            (farm.asked(1) == [cmd::DISC]).then_some(())
        });
        (0..10).for_each(|_| farm.load(&mut client));
        assert_eq!(farm.accepted(), 2, "and no other is tried");
        says(
            &front,
            &[
                "left out: the export had 1048576 bytes, and has 524288",
                "warning: ",
            ],
        );
    }
}

#[test]
fn all_clients_share_one_pool_where_they_share() {
    if !need("nbdkit") {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let farm = Farm::start(directory.path());
        let extra = [&["connections=3", "shared=true"], mode].concat();
        let mut front = quiet(directory.path(), farm.socket(), &extra);
        assert_eq!(farm.accepted(), 1, "before the first client");
        let mut clients: Vec<_> = (0..3).map(|_| Front::of(&front)).collect();
        for client in &mut clients {
            farm.grow(client, 3);
        }
        assert_eq!(farm.accepted(), 3);
        clients.into_iter().for_each(Front::close);
        assert_eq!(farm.count(cmd::DISC), 0);
        front.ends_well();
        assert_eq!(farm.count(cmd::DISC), 3);
    }
}

#[test]
fn nbdkit_says_goodbye_over_all_of_them_when_it_is_told_to_end() {
    in_each_mode("connections=4", |farm, front, mut client| {
        farm.grow(&mut client, 4);
        assert_eq!(client.write(0, &[7; 512]), Ok(()));
        front.signal(libc::SIGTERM);
        // nbdkit waits for those who say nothing, and calls no close.
        drop(client);
        let status = front.wait_timeout(LIMIT);
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
        let last: Vec<_> = (0..4).map(|number| farm.asked(number).pop()).collect();
        assert_eq!(last, [Some(cmd::DISC); 4]);
        assert!(farm.count(cmd::FLUSH) > 0);
    });
}

/// A server that hangs uses up one close-timeout for all of its connections, also where a flush is due,
/// which is asked of one of them after another.
#[test]
fn servers_that_hang_have_one_close_timeout_together() {
    if !need("nbdkit") {
        return;
    }
    for (mode, wrote) in MODES
        .into_iter()
        .flat_map(|mode| [(mode, false), (mode, true)])
    {
        let directory = tempfile::tempdir().expect("temporary directory");
        let upstream = Nbdkit::start(
            directory.path(),
            &["--filter=delay", "memory", "1M", "rdelay=5ms"],
        );
        let relay = Relay::unix(directory.path(), "relay", upstream.socket());
        let extra = [&["connections=8", "close-timeout=3"], mode].concat();
        let mut front = quiet(directory.path(), relay.socket(), &extra);
        let mut client = Front::of(&front);
        eventually("eight connections", LIMIT, || {
            let reads: Vec<_> = (0..24).map(|n| client.submit_read(n * 512, 512)).collect();
            for read in reads {
                assert!(client.wait_read(read).is_ok());
            }
            (relay.recordings().len() == 8).then_some(())
        });
        if wrote {
            assert_eq!(client.write(0, &[7; 512]), Ok(()));
        }
        upstream.stop();
        eventually("the server has stopped", LIMIT, || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", upstream.pid()));
            stat.is_ok_and(|stat| stat.contains(") T ")).then_some(())
        });
        // Not by leaving: nbdkit lets go of a client before the plugin hears of it.
        front.signal(libc::SIGTERM);
        drop(client);
        // One after another they would take 24 seconds.
        let status = front.wait_timeout(Duration::from_secs(12));
        assert!(status.is_some(), "{extra:?}, {wrote}\n{}", front.stderr());
        upstream.signal(libc::SIGCONT);
    }
}

/// What is kept is written over a new connection before it is used, and nothing else is sent meanwhile.
#[test]
fn a_new_one_over_which_nothing_is_answered_holds_nobody_for_long() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let farm = Farm::start(directory.path());
    let extra = ["connections=2", "reconnect=forever", "close-timeout=1"];
    let front = quiet(directory.path(), farm.socket(), &extra);
    let mut client = Front::of(&front);
    farm.meets(1, Fate::Hang);
    assert_eq!(client.write(0, &[7; 512]), Ok(()));
    eventually("the new one is asked to write", LIMIT, || {
        farm.load(&mut client);
        (!farm.asked(1).is_empty()).then_some(())
    });
    assert_eq!(client.read(0, 512), Ok(vec![7; 512]));
    (0..20).for_each(|_| farm.load(&mut client));
    assert_eq!(farm.accepted(), 2, "and no other is tried");
}

#[test]
fn a_disk_is_copied_over_several_connections() {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    for mode in MODES {
        let directory = tempfile::tempdir().expect("temporary directory");
        let disk = noise_file(directory.path(), "disk", 8 << 20, 83);
        let image = disk.display().to_string();
        // One thread for each connection: what one takes long for, several share.
        let slow = ["-t", "1", "--filter=delay", "file", &image, "rdelay=50ms"];
        let upstream = Nbdkit::start(directory.path(), &slow);
        let relay = Relay::unix(directory.path(), "relay", upstream.socket());
        let extra = [&["connections=4"], mode].concat();
        let front = quiet(directory.path(), relay.socket(), &extra);
        let copy = directory.path().join("copy");
        eventually("a copy over three connections", LIMIT, || {
            let before = relay.recordings().len();
            nbdcopy(&["--connections=1", &front.uri(), text(&copy)]);
            assert_same_bytes(&copy, &disk);
            (relay.recordings().len() - before > 2).then_some(())
        });
        assert_eq!(front.errors(), [""; 0]);
    }
}

/// It may lead to a server that was started anew, and has lost what was written.
#[test]
fn a_new_one_gets_nothing_before_an_older_one_has_answered() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let (held, came) = (Gate::default(), Gate::default());
    let first = {
        let held = held.clone();
        server.play(move |peer| {
            peer.negotiate(&farm::offer())?;
            let mut disk = Disk::new(1 << 20);
            let write = peer.request()?;
            peer.answer(&write, &mut disk)?;
            let read = peer.request()?;
            held.pass();
            peer.answer(&read, &mut disk)?;
            peer.serve(&mut disk)
        })
    };
    let second = {
        let came = came.clone();
        server.play(move |peer| {
            peer.negotiate(&farm::offer())?;
            came.open();
            peer.silence(Duration::from_millis(300))?;
            held.open();
            // Now it is one like the other.
            let mut disk = Disk::new(1 << 20);
            let request = peer.request()?;
            peer.answer(&request, &mut disk)?;
            peer.serve(&mut disk)
        })
    };
    let front = quiet(directory.path(), server.socket(), &["connections=2"]);
    let mut client = Front::of(&front);
    assert_eq!(client.write(0, &[7; 512]), Ok(()));
    let mut reads: Vec<_> = (0..2).map(|_| client.submit_read(4096, 512)).collect();
    came.pass();
    reads.extend((0..4).map(|_| client.submit_read(4096, 512)));
    for read in reads {
        assert_eq!(client.wait_read(read), Ok(pattern(4096, 512)));
    }
    for _ in 0..20 {
        let reads: Vec<_> = (0..8).map(|_| client.submit_read(4096, 512)).collect();
        for read in reads {
            assert_eq!(client.wait_read(read), Ok(pattern(4096, 512)));
        }
    }
    client.close();
    first.finished("the first one");
    second.finished("the second one");
}
