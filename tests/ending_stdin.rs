// SPDX-License-Identifier: BSD-3-Clause
//! `nbdkit -s` ends with its one client.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use common::nbdkit::forward_args;
use common::need;
use common::process::{Guarded, hand_over};
use common::scripted::peer::{Offer, Peer};
use common::scripted::{Gate, Scripted};

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// With the default times the attempt may take minutes, and it is nobody's once the client has left; nbdkit
/// was not told to end either.
#[test]
fn an_attempt_does_not_keep_nbdkit_on_stdin() {
    if !need("nbdkit") {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Scripted::start(directory.path());
    let lost = server.play(|peer: &mut Peer| peer.negotiate(&Offer::default()));
    let here = Gate::default();
    server.play({
        let here = here.clone();
        move |peer: &mut Peer| {
            here.open();
            peer.expect_closed()
        }
    });
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    let mut command = Command::new("nbdkit");
    let extra = ["shared=true", "retry=1000"];
    command
        .arg("-s")
        .args(forward_args(server.socket(), &extra));
    hand_over(&mut command, &theirs, 0);
    hand_over(&mut command, &theirs, 1);
    let mut nbdkit = Guarded::spawn(&mut command);
    drop((command, theirs));
    lost.finished("the first connection");
    // nbdkit greets, and opens the export when it is asked for one: by the oldest option here.
    let mut greeting = [0; 18];
    let greeted = (&ours).read_exact(&mut greeting);
    assert!(greeted.is_ok(), "{}", nbdkit.stderr());
    (&ours)
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")
        .expect("an option");
    here.pass();
    drop(ours);
    let status = nbdkit.wait_timeout(LIMIT);
    assert!(status.is_some(), "{}", nbdkit.stderr());
}
