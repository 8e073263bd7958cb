// SPDX-License-Identifier: BSD-3-Clause
//! `command=qemu-nbd` with a qcow2 image on slow storage: nbdkit is told to end at some moment, and
//! every write that was answered before must be in the image.
//!
//! `ROUNDS=50 cargo test --test command_qcow2 -- --nocapture` tries more moments, `SEED=N` the same
//! ones again.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use common::clients::{LIMIT, text};
use common::front::Front;
use common::nbdkit::Nbdkit;
use common::need_all;
use common::process::{eventually, run_ok};
use common::started::Place;

/// Writes, which go to as many tables: at the end each of these has to be stored.
const WRITES: usize = 60;
const CLIENTS: usize = 6;
const STEP: u64 = 512 << 20;
const SIZE: u64 = 64 << 10;

/// What a write takes.
const DELAY: &str = "wdelay=60ms";

/// Longer than storing the tables takes.
const END: Duration = Duration::from_secs(120);

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}

/// Where a write goes: beside a cluster that is there.
fn place_of(write: usize) -> u64 {
    write as u64 * STEP + SIZE
}

fn pattern_of(write: usize) -> u8 {
    u8::try_from(write % 255 + 1).expect("below 256")
}

/// An image whose tables exist, with room to grow.
fn image(directory: &Path) -> PathBuf {
    let image = directory.join("disk.qcow2");
    let options = ["create", "-q", "-f", "qcow2", text(&image), "40G"];
    run_ok(Command::new("qemu-img").args(options), LIMIT);
    let mut tables = Command::new("qemu-io");
    tables.args(["-f", "qcow2"]);
    for write in 0..WRITES {
        let place = write as u64 * STEP;
        tables.arg("-c").arg(format!("write -q -P 170 {place} 64k"));
    }
    run_ok(tables.arg(&image), LIMIT);
    let file = std::fs::OpenOptions::new().write(true).open(&image);
    file.expect("open").set_len(64 << 20).expect("truncate");
    image
}

/// Writes until nbdkit goes; returns what was answered. At `moment` answers nbdkit is told to end.
fn write_until_the_end(front: &Nbdkit, moment: usize) -> Vec<usize> {
    let answered = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = Front::open(front.socket()).expect("opens");
                loop {
                    let write = next.fetch_add(1, Ordering::Relaxed);
                    let data = vec![pattern_of(write); usize::try_from(SIZE).expect("small")];
                    if write >= WRITES || client.write(place_of(write), &data).is_err() {
                        break;
                    }
                    let mut answered = answered.lock().expect("no panic");
                    answered.push(write);
                    if answered.len() == moment {
                        front.signal(libc::SIGTERM);
                    }
                }
            });
        }
    });
    answered.into_inner().expect("no panic")
}

/// Which of the writes are not in the image.
fn missing(image: &Path, writes: &[usize]) -> Vec<usize> {
    let mut check = Command::new("qemu-io");
    check.args(["-r", "-f", "qcow2"]);
    for write in writes {
        let (pattern, place) = (pattern_of(*write), place_of(*write));
        check
            .arg("-c")
            .arg(format!("read -P {pattern} {place} {SIZE}"));
    }
    let output = check.arg(image).output().expect("qemu-io");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = |write: &usize| {
        let place = place_of(*write);
        said.contains(&format!("Pattern verification failed at offset {place},"))
            || !said.contains(&format!("at offset {place}"))
    };
    writes.iter().copied().filter(failed).collect()
}

fn round(moment: usize) {
    let place = Place::new();
    let image = image(place.path());
    let storage = ["--filter=delay", "file", text(&image), DELAY];
    let storage = Nbdkit::start(place.path(), &storage);
    let uri = format!("arg={}", storage.uri());
    let args = ["command=qemu-nbd", "arg=-f", "arg=qcow2", &uri];
    let mut front = place.start(&args);
    let answered = write_until_the_end(&front, moment);
    eventually("nbdkit ends", END, || {
        front.wait_timeout(Duration::from_millis(100))
    });
    assert!(answered.len() >= moment, "{}", front.stderr());
    let missing = missing(&image, &answered);
    assert!(
        missing.is_empty(),
        "answered {answered:?}, missing {missing:?}\n{}",
        front.stderr()
    );
    println!(
        "told to end after {moment} answers: {} in the image",
        answered.len()
    );
    place.is_clean();
}

#[test]
fn answered_writes_are_in_the_image() {
    if !need_all(&["nbdkit", "qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = number("SEED").unwrap_or(time.map_or(1, |time| time.as_micros() as u64));
    let rounds = number("ROUNDS").unwrap_or(3);
    println!("SEED={seed} ROUNDS={rounds}");
    let mut state = seed | 1;
    for _ in 0..rounds {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let moment = usize::try_from(state % WRITES as u64).expect("small") + 1;
        round(moment);
    }
}
