// SPDX-License-Identifier: BSD-3-Clause
//! `command=`: a server that lives, but takes its time.

mod common;

use common::front::Front;
use common::need;
use common::scripted::wire::errno;
use common::started::{Place, end};

#[test]
fn a_connection_is_made_anew_also_if_the_server_is_slow_to_greet() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    // Its reads outlive the deadline, which ends the first connection; to greet takes it a second.
    let mut front = place.start(&[
        "request-timeout=1",
        "command=nbdkit",
        "arg=-f",
        "arg=eval",
        "arg=preconnect=sleep 1",
        "arg=get_size=echo 512",
        "arg=pread=sleep 3; head -c $3 /dev/zero",
    ]);
    let mut client = Front::open(front.socket()).expect("an export");
    assert_eq!(client.read(0, 512), Err(errno::EIO));
    client.close();
    let again = Front::open(front.socket());
    assert!(again.is_ok(), "{}", front.stderr());
    drop(again);
    end(&mut front);
}
