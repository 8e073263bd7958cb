// SPDX-License-Identifier: BSD-3-Clause
//! The server whose replies come in pieces, as libnbd sees it.

use crate::common::clients::nbdsh;
use crate::common::front::Front;
use crate::common::nbdkit::uri;
use crate::common::need;
use crate::pieces::{self, BESIDE, BYTE, Pieces, RELEASE, WAITING};
use crate::workload::CHUNKS;

/// Runs a script of nbdsh that is connected to a new server, where `BYTE` is what the disk is made of.
fn ask(script: &str) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Pieces::start(directory.path()).expect("a server");
    let script = format!("BYTE = bytes([{BYTE}])\n{script}\nh.shutdown()");
    nbdsh(&uri(server.socket(), ""), &script);
}

#[test]
fn replies_come_in_chunks_of_their_size() {
    if !need("nbdsh") {
        return;
    }
    const LENGTH: u32 = 256 << 10;
    for size in CHUNKS {
        let (begin, length) = pieces::part(size);
        let count = LENGTH.div_ceil(size);
        for offset in [begin, begin + length - u64::from(LENGTH)] {
            ask(&format!(
                "sizes = []\n\
                 chunk = lambda data, at, status, error: sizes.append(len(data))\n\
                 data = h.pread_structured({LENGTH}, {offset}, chunk)\n\
                 assert data == BYTE * {LENGTH}, 'content at {offset}'\n\
                 assert max(sizes) == {size} and len(sizes) == {count}, sizes"
            ));
        }
    }
}

#[test]
fn simple_replies_and_writes_are_answered_too() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let server = Pieces::start(directory.path()).expect("a server");
    let mut front = Front::open(server.socket()).expect("an export");
    assert_eq!(front.read(0, 20_000), Ok(vec![BYTE; 20_000]));
    assert_eq!(front.write(0, &[1; 4096]), Ok(()));
    assert_eq!(front.flush(), Ok(()));
    front.close();
}

#[test]
fn what_has_to_wait_is_answered_when_it_is_released() {
    if !need("nbdsh") {
        return;
    }
    let ((waiting, large), (beside, small), (release, last)) = (WAITING, BESIDE, RELEASE);
    ask(&format!(
        "buffer = nbd.Buffer({large})\n\
         cookie = h.aio_pread(buffer, {waiting})\n\
         for _ in range(3):\n\
         \x20   assert h.pread({small}, {beside}) == BYTE * {small}\n\
         assert not h.aio_command_completed(cookie), 'it was told to wait'\n\
         assert h.pread({last}, {release}) == BYTE * {last}\n\
         assert h.aio_command_completed(cookie), 'it was released'\n\
         assert buffer.to_bytearray() == BYTE * {large}"
    ));
}
