// SPDX-License-Identifier: BSD-3-Clause
//! Real programs, and a server that is killed while they work: they see no error, and what they did is right.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::clients::{assert_same_bytes, text};
use common::need_all;
use common::process::Guarded;
use common::upstream::{noise, noise_file};
use torture::ordeal::Stage;
use torture::setup::Setup;
use torture::{Rng, kills, seed};

const PATIENT: [&str; 2] = ["reconnect=30", "reconnect-delay=10ms:100ms"];
/// How long a program may take with all the restarts.
const LIMIT: Duration = Duration::from_secs(60);
const SIZE: usize = 16 << 20;

/// The server dies after so many arrivals, applications and answers in its first life.
fn stage(first: u64) -> Stage {
    let setup = Setup {
        size: SIZE as u64,
        die_at: first,
        ..Setup::default()
    };
    Stage::new(setup, &PATIENT)
}

/// Runs a program, which must succeed, while the server dies again and again.
fn works(stage: &mut Stage, command: &mut Command, steps: u64) {
    let mut rng = Rng::new(seed());
    let mut left = kills(6);
    let mut program = Guarded::spawn(command);
    let deadline = Instant::now() + LIMIT;
    while program.alive() {
        if stage.server.has_died() {
            left = left.saturating_sub(1);
            let (seed, at) = (rng.next(), 1 + rng.below(steps));
            stage.server.respawn(|setup| {
                setup.seed = seed;
                setup.die_at = if left == 0 { 0 } else { at };
            });
        }
        assert!(
            Instant::now() < deadline,
            "{command:?} takes longer than {LIMIT:?}: {}{}",
            program.stderr(),
            stage.front.stderr()
        );
        thread::sleep(Duration::from_millis(1));
    }
    let status = program.wait_timeout(LIMIT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{command:?}: {status:?}: {}{}{}",
        program.stdout(),
        program.stderr(),
        stage.front.stderr()
    );
    assert!(stage.front.alive());
    let lives = stage.server.setup().epoch;
    println!("{lives} lives of the server");
    assert!(lives > 1, "the server never died");
}

/// What was flushed is there when the server is killed.
fn is_durable(stage: &mut Stage, image: &std::path::Path) {
    stage.server.kill();
    assert_same_bytes(&stage.server.backing(), image);
}

#[test]
fn nbdcopy_in() {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let mut stage = stage(100);
    let image = noise_file(stage.directory.path(), "image", SIZE, 21);
    let uri = stage.front.uri();
    let mut command = Command::new("nbdcopy");
    command.args([
        "--flush",
        "--requests=16",
        "--request-size=65536",
        text(&image),
        &uri,
    ]);
    works(&mut stage, &mut command, 300);
    is_durable(&mut stage, &image);
}

#[test]
fn nbdcopy_out() {
    if !need_all(&["nbdkit", "nbdcopy"]) {
        return;
    }
    let mut stage = stage(100);
    let image = noise_file(stage.directory.path(), "image", SIZE, 22);
    stage.server.kill();
    fs::write(stage.server.backing(), noise(SIZE, 22)).expect("a disk of noise");
    stage.server.again(|_| ());
    let copy = stage.directory.path().join("copy");
    let uri = stage.front.uri();
    let mut command = Command::new("nbdcopy");
    command.args(["--requests=16", "--request-size=65536", &uri, text(&copy)]);
    works(&mut stage, &mut command, 300);
    assert_same_bytes(&copy, &image);
}

#[test]
fn qemu_img_convert_in() {
    if !need_all(&["nbdkit", "qemu-img"]) {
        return;
    }
    let mut stage = stage(10);
    let image = noise_file(stage.directory.path(), "image", SIZE, 23);
    let uri = stage.front.uri();
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-n", "-m", "8", "-W", "-f", "raw", text(&image)]);
    command.args(["-O", "raw", &uri]);
    works(&mut stage, &mut command, 40);
    is_durable(&mut stage, &image);
}

#[test]
fn qemu_img_convert_out() {
    if !need_all(&["nbdkit", "qemu-img"]) {
        return;
    }
    let mut stage = stage(10);
    let image = noise_file(stage.directory.path(), "image", SIZE, 24);
    stage.server.kill();
    fs::write(stage.server.backing(), noise(SIZE, 24)).expect("a disk of noise");
    stage.server.again(|_| ());
    let copy = stage.directory.path().join("copy");
    let uri = stage.front.uri();
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", &uri, "-O", "raw", text(&copy)]);
    works(&mut stage, &mut command, 40);
    assert_same_bytes(&copy, &image);
}

#[test]
fn fio_with_verify() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let mut stage = stage(400);
    let uri = format!("--uri={}", stage.front.uri());
    let mut command = Command::new("fio");
    command.current_dir(stage.directory.path()).args([
        "--name=verified",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bs=4k",
        "--size=8M",
        "--io_size=12M",
        "--iodepth=32",
        // Or a wrap-around would give false alarms.
        "--serialize_overlap=1",
        "--fsync=200",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
        "--randseed=7",
    ]);
    works(&mut stage, &mut command, 3000);
}
