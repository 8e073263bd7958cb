// SPDX-License-Identifier: BSD-3-Clause
//! How well it is survived: in parallel, in bounded memory, without holding up who wants to go.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::fs;
use std::time::{Duration, Instant};

use common::nbdkit::Nbdkit;
use common::need;
use common::process::eventually;
use common::scripted::wire::cmd;
use torture::client::Client;
use torture::ordeal::{Stage, front};
use torture::setup::Setup;

const PATIENT: [&str; 2] = ["reconnect=30", "reconnect-delay=10ms:100ms"];
/// Three seconds are wanted; machines that test can be busy.
const SOON: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);
const DATA: [u8; 4096] = [7; 4096];

#[test]
fn reads_stay_parallel_across_a_restart() {
    if !need("nbdkit") {
        return;
    }
    const READS: u64 = 64;
    let setup = Setup {
        slow: 50_000,
        ..Setup::default()
    };
    let mut stage = Stage::new(setup, &PATIENT);
    let mut client = stage.client();
    for number in 0..READS {
        client.submit(cmd::READ, 0, number * 4096, 4096, &[]);
    }
    stage.server.wait_arrived(READS);
    // Longer, so that a busy machine has sent the last before the first is answered.
    stage.restart(|setup| setup.slow = 1_500_000);
    for _ in 0..READS {
        let answer = client.next(LIMIT).expect("an answer");
        assert_eq!(answer.error, 0);
    }
    assert_eq!(stage.server.peak(), READS, "at one time after the restart");
}

/// The most memory that a process had, in KiB.
fn most_memory(nbdkit: &Nbdkit) -> u64 {
    let path = format!("/proc/{}/status", nbdkit.pid());
    let status = fs::read_to_string(path).expect("the status of nbdkit");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let words = line.and_then(|line| line.trim().strip_suffix(" kB"));
    words
        .and_then(|number| number.trim().parse().ok())
        .expect("a number of kilobytes")
}

/// Writes 48 MiB over 32 MiB of disk in requests of so many bytes, and reports the most memory of nbdkit.
fn memory_of(extra: &[&str], length: usize) -> u64 {
    let setup = Setup {
        size: 32 << 20,
        delay: 0,
        ..Setup::default()
    };
    let stage = Stage::new(setup, extra);
    let mut client = stage.client();
    let payload = vec![7; length];
    // Every other block, so that nothing can be joined.
    let step = 2 * length as u64;
    let writes = (24 << 20) / length as u64;
    let mut flying = 0;
    for number in 0..writes {
        let offset = number * step % ((32 << 20) - length as u64) / 512 * 512;
        client.submit(cmd::WRITE, 0, offset, length as u64, &payload);
        flying += 1;
        if flying == 16 {
            let answer = client.next(LIMIT).expect("an answer");
            assert_eq!(answer.error, 0);
            flying -= 1;
        }
    }
    for _ in 0..flying {
        assert_eq!(client.next(LIMIT).expect("an answer").error, 0);
    }
    most_memory(&stage.front)
}

fn memory_is_bounded(length: usize) {
    if !need("nbdkit") {
        return;
    }
    const SIZE: u64 = 8 << 10;
    let without = memory_of(&[], length);
    let with = memory_of(&[&PATIENT[..], &["replay=8M"]].concat(), length);
    println!("requests of {length}: {without} KiB without, {with} KiB with a journal of {SIZE}");
    assert!(
        with <= without + SIZE + (16 << 10),
        "{without} KiB without, {with} KiB with a journal of {SIZE}"
    );
}

#[test]
fn memory_is_bounded_with_long_writes() {
    memory_is_bounded(256 << 10);
}

#[test]
fn memory_is_bounded_with_short_writes() {
    memory_is_bounded(2048);
}

/// An odd number: half of them are changes, and one is a flush.
const WAITING: u64 = 33;

/// Requests that wait for a lost server, half of them changes; one write is unflushed.
fn waiting(stage: &mut Stage) -> Client {
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    stage.server.kill();
    for number in 0..WAITING / 2 {
        client.submit(cmd::READ, 0, number * 4096, 4096, &[]);
        client.submit(cmd::WRITE, 0, number * 4096, 4096, &DATA);
    }
    client.submit(cmd::FLUSH, 0, 0, 0, &[]);
    client
}

#[test]
fn sigterm_ends_it_with_a_lost_server() {
    if !need("nbdkit") {
        return;
    }
    for extra in [&[][..], &["shared=true"]] {
        let mut stage = Stage::new(Setup::default(), &[&["reconnect=forever"], extra].concat());
        let client = waiting(&mut stage);
        assert!(client.waits());
        let start = Instant::now();
        stage.front.signal(libc::SIGTERM);
        let errors = client.last(WAITING, SOON);
        assert!(!errors.contains(&0), "{errors:?}");
        // nbdkit does not end before its client has heard of that.
        drop(client);
        let status = stage.front.wait_timeout(SOON);
        println!("ended after {:?}", start.elapsed());
        let status = status.expect("nbdkit ends soon");
        assert!(status.success(), "{status}: {}", stage.front.stderr());
        stage.says(&["flush"]);
    }
}

#[test]
fn clients_that_leave_a_lost_server_are_let_go() {
    if !need("nbdkit") {
        return;
    }
    for extra in [&[][..], &["shared=true"]] {
        let mut stage = Stage::new(Setup::default(), &[&["reconnect=forever"], extra].concat());
        let idle = stage.front.idle_threads();
        let client = waiting(&mut stage);
        assert!(client.waits());
        drop(client);
        let start = Instant::now();
        eventually(
            &format!("nbdkit lets the client go, {extra:?}"),
            SOON,
            || {
                // For all the clients to come one thread goes on to look for the server.
                (stage.front.threads() <= idle + extra.len()).then_some(())
            },
        );
        println!("let go after {:?}, {extra:?}", start.elapsed());
        assert!(stage.front.alive());
    }
}

/// Prints how soon it is back; that it comes back is all that is asked.
#[test]
fn restarted_server_is_used_again() {
    if !need("nbdkit") {
        return;
    }
    // What a user gets who says no more than this.
    let mut stage = Stage::new(Setup::default(), &["reconnect=30"]);
    let mut client = stage.client();
    let mut times = Vec::new();
    for round in 0..20 {
        client.write(0, &DATA).expect("a write");
        stage.server.kill();
        let read = client.submit(cmd::READ, 0, 0, 4096, &[]);
        if round % 4 == 3 {
            // Away for a while, so that the pauses between tries have grown.
            assert!(client.next(Duration::from_millis(400)).is_none());
        }
        stage.server.again(|_| ());
        let start = Instant::now();
        assert_eq!(client.wait(read), Ok(DATA.to_vec()));
        times.push(start.elapsed());
    }
    times.sort_unstable();
    println!(
        "used again after {:?} in the median of 20 restarts, {:?} at most",
        times[10], times[19]
    );
}

#[test]
fn client_that_comes_while_the_server_is_away() {
    if !need("nbdkit") {
        return;
    }
    let mut stage = Stage::new(Setup::default(), &[&PATIENT[..], &["shared=true"]].concat());
    let mut client = stage.client();
    client.write(0, &DATA).expect("a write");
    stage.server.kill();
    let read = client.submit(cmd::READ, 0, 0, 4096, &[]);
    let second = front(stage.directory.path(), &stage.server, &["retry=20"]);
    let later = std::thread::scope(|scope| {
        let opening = [&stage.front, &second].map(|front| {
            let socket = front.socket().to_owned();
            scope.spawn(move || Client::open(&socket))
        });
        stage.server.again(|_| ());
        opening.map(|opening| opening.join().expect("no panic"))
    });
    for client in later {
        let mut client = client.expect("opened once the server is back");
        client.read(4096, 4096).expect("a read");
    }
    assert_eq!(client.wait(read), Ok(DATA.to_vec()));
}
