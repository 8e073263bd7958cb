// SPDX-License-Identifier: BSD-3-Clause
//! Real programs, and a server that is killed while they work: they see no error, and what they did is right.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use std::fs;
use std::process::{Command, ExitStatus, Output};
use std::thread;
use std::time::{Duration, Instant};

use common::clients::{assert_same_bytes, text};
use common::need_all;
use common::process::{Guarded, run};
use common::upstream::{file, noise, noise_file};
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
    let (status, said) = ends(stage, command, steps);
    assert!(status.success(), "{command:?}: {status}: {said}");
}

/// Runs a program, which may fail, while the server dies again and again. How it ends, and what it says.
fn ends(stage: &mut Stage, command: &mut Command, steps: u64) -> (ExitStatus, String) {
    let mut rng = Rng::new(seed());
    // More of them, and the time is over: each time more is written again than the server lives to see.
    let mut left = kills(6).min(40);
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
    let status = program.wait_timeout(LIMIT).expect("it has ended");
    assert!(stage.front.alive());
    let lives = stage.server.setup().epoch;
    println!("{lives} lives of the server");
    assert!(lives > 1, "the server never died");
    let said = [program.stdout(), program.stderr(), stage.front.stderr()];
    (status, said.concat())
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

/// fio's job for a disk of which it says later what it wrote there before it was stopped.
fn stateful(uri: &str, more: &[&str]) -> Command {
    let mut command = Command::new("fio");
    let uri = format!("--uri={uri}");
    command
        .args(["--name=stateful", "--ioengine=nbd", &uri])
        .args([
            "--rw=randwrite",
            "--bs=4k",
            "--size=8M",
            "--iodepth=32",
            "--serialize_overlap=1",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randseed=7",
        ]);
    command.args(more);
    command
}

/// fio stops in the middle of its work, with all that it wrote made durable. Another fio knows from the state that the
/// first one has saved what must be there, and looks for it in the file of a server that has died once more, without
/// the plugin. How often it died, how the first one has ended, and what the other one says.
fn fio_finds_what_fio_wrote(parameters: &[&str]) -> (usize, ExitStatus, Output) {
    let setup = Setup {
        size: SIZE as u64,
        die_at: 400,
        ..Setup::default()
    };
    let mut stage = Stage::new(setup, &[&PATIENT[..], parameters].concat());
    stage.loses();
    let directory = stage.directory.path().to_owned();
    // Of 2048.
    let stops = [
        "--number_ios=1500",
        "--do_verify=0",
        "--verify_state_save=1",
        "--end_fsync=1",
    ];
    let uri = stage.front.uri();
    let (wrote, said) = ends(
        &mut stage,
        stateful(&uri, &stops).current_dir(&directory),
        1500,
    );
    println!("{wrote}: {said}");
    let deaths = stage.server.setup().epoch;
    stage.server.kill();
    let bare = file(&directory, &stage.server.backing());
    // fio 3.41 looks for more than the state says unless it is told how much there is.
    let checks = [
        "--number_ios=1500",
        "--verify_only",
        "--verify_state_load=1",
    ];
    let output = run(
        stateful(&bare.uri(), &checks).current_dir(&directory),
        LIMIT,
    );
    (usize::try_from(deaths).expect("few"), wrote, output)
}

#[test]
fn fio_finds_what_fio_wrote_before() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let mut deaths = 0;
    while deaths < kills(6) {
        let (more, wrote, output) = fio_finds_what_fio_wrote(&[]);
        assert!(wrote.success(), "{wrote}");
        assert!(output.status.success(), "{output:?}");
        deaths += more;
    }
    println!("{deaths} deaths");
}

/// The control. The flush in the end fails here, which fio 3.33 does not tell, and 3.39 does.
#[test]
fn fio_misses_what_is_lost_where_nothing_is_kept() {
    if !need_all(&["nbdkit", "fio"]) {
        return;
    }
    let (_, _, output) = fio_finds_what_fio_wrote(&["replay=0"]);
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    let missed = ["verify: bad", "verify failed"];
    assert!(missed.iter().any(|words| text.contains(words)), "{text}");
}
