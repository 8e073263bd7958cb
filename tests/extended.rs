// SPDX-License-Identifier: BSD-3-Clause
//! Extended headers with real servers: qemu-nbd, which has them, and those that refuse. This links the crate, as
//! nbdkit never asks for 4 GiB or more.

mod common;
#[path = "common/open.rs"]
mod open;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::clients::{nbdsh, nbdsh_unconnected};
use common::pair::{Pair, Upstream};
use common::upstream::{Server, memory, nbd_server, noise_file, qemu_nbd};
use common::{need, need_all, need_extended};
use nbdkit_nbd_plugin::client::{Client, Zeroing};
use nbdkit_nbd_plugin::proto::consts::{Allocation, Command};
use nbdkit_nbd_plugin::proto::framing::Framing;
use open::open;

const GIB: u64 = 1 << 30;
const SIZE: u64 = 16 * GIB;
/// What nobody could ask of a server with compact headers in one request.
const LONG: u64 = 6 * GIB;

/// Three blocks of data, far from each other, on a disk that takes no room.
const DATA: [u64; 3] = [GIB, 3 * GIB, 9 * GIB];

fn sparse(directory: &Path) -> PathBuf {
    let path = directory.join("sparse.raw");
    let file = File::create(&path).expect("a file");
    file.set_len(SIZE).expect("a sparse file");
    for offset in DATA {
        let block = vec![0x5a; 1 << 20];
        std::os::unix::fs::FileExt::write_all_at(&file, &block, offset).expect("data");
    }
    path
}

fn qemu(directory: &Path) -> Server {
    let image = sparse(directory);
    qemu_nbd(directory, &image, "raw", "", &["--discard=unmap"])
}

fn connected(directory: &Path) -> (Server, Client) {
    let server = qemu(directory);
    let client = open(server.socket()).expect("an export");
    assert_eq!(client.export().framing, Framing::Extended);
    (server, client)
}

fn ready() -> bool {
    need("nbdkit") && need_extended()
}

#[test]
fn what_is_longer_than_4_gib_is_one_request() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_server, client) = connected(directory.path());
    let whole = |client: &Client, command| client.links().volume().longest(command) == u64::MAX;
    let mut buffer = [0; 512];
    let byte_at = |buffer: &mut [u8; 512], offset| {
        client.read(buffer, offset).expect("read");
        buffer[0]
    };

    client.trim(LONG, 0, false).expect("trim");
    assert!(whole(&client, Command::TRIM), "it was not cut");
    let blocks = fs::metadata(directory.path().join("sparse.raw")).expect("the disk");
    assert!(blocks.blocks() * 512 < 2 << 20, "one block of data is left");
    for (offset, byte) in DATA.into_iter().zip([0, 0, 0x5a]) {
        assert_eq!(byte_at(&mut buffer, offset), byte, "{offset}");
    }

    let zeroing = Zeroing {
        may_trim: true,
        ..Zeroing::default()
    };
    client.zero(LONG, 4 * GIB, zeroing).expect("zeroes");
    assert!(whole(&client, Command::WRITE_ZEROES), "they were not cut");
    assert_eq!(byte_at(&mut buffer, DATA[2]), 0);
    // For this alone qemu has a limit, and says NBD_EINVAL.
    client.cache(LONG, 0).expect("cache");
    let longest = client.links().volume().longest(Command::CACHE);
    assert_eq!(longest, 32 << 20, "it was cut, and that is remembered");

    // The last byte of both is written, and no more.
    client.write(&[7; 512], LONG, true).expect("write");
    client.trim(LONG, 0, true).expect("trim");
    assert_eq!(byte_at(&mut buffer, LONG), 7);
    client.close();
}

#[test]
fn a_query_of_64_bits_is_answered_in_one_round() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let (_server, client) = connected(directory.path());
    let hole = Allocation::all();
    // What nbdkit is told of at once stays below 4 GiB.
    let extents = client.block_status(SIZE, 0, false).expect("a map");
    let told: Vec<_> = extents.iter().map(|e| (e.length, e.status)).collect();
    let block = 1 << 20;
    assert_eq!(
        told,
        [
            (GIB, hole),
            (block, Allocation::empty()),
            (2 * GIB - block, hole),
            (block, Allocation::empty()),
            (GIB - block - 1, hole),
        ]
    );
    let far = client.block_status(LONG, 10 * GIB, true).expect("a map");
    let told: Vec<_> = far.iter().map(|e| (e.length, e.status)).collect();
    assert_eq!(told, [(u32::MAX.into(), hole)], "one extent, cut");
    assert_eq!(
        client.links().volume().longest(Command::BLOCK_STATUS),
        u64::MAX
    );
    client.close();
}

/// What nbdkit itself asks for, up to the longest there is.
#[test]
fn clients_of_nbdkit_see_the_same_disk() {
    if !ready() {
        return;
    }
    const LOOK: &str = "
h.add_meta_context('base:allocation')
h.connect_uri(URI)
size = h.get_size()
h.pwrite(b'x' * 65536, 5 << 30)
h.trim(0xfffffe00, 0)
h.zero(0xfffff000, 6 << 30)
h.flush()
for offset in range(0, size, 1 << 30):
    print(offset >> 30, h.pread(512, offset)[:1])
at = 0
found = []
def extents(metacontext, offset, entries, error):
    global at
    for length, status in zip(entries[::2], entries[1::2]):
        if found and found[-1][1] == status:
            found[-1][0] += length
        else:
            found.append([length, status])
        at += length
while at < size:
    h.block_status(min(size - at, 0xffffffff), at, extents)
print(found)
";
    let script = |uri: &str| LOOK.replace("URI", &format!("{uri:?}"));
    let extended = Pair::with(qemu, &["-v"]);
    let direct = Pair::with(qemu, &[]);
    let seen = nbdsh_unconnected(&script(&extended.front.uri()));
    assert_eq!(
        seen,
        nbdsh_unconnected(&script(&direct.server.uri_export("")))
    );
    let log = extended.front.stderr();
    assert!(
        log.contains(", extended headers, context base:allocation"),
        "{log}"
    );
    assert!(!log.contains("error:"), "{log}");
}

/// The framing that each server comes to, by its own word.
fn framing(pair: &Pair<impl Upstream>) -> String {
    let script = "print(h.pread(512, 0) == h.pread(512, 0))";
    assert_eq!(nbdsh(&pair.front.uri(), script).trim_end(), "True");
    let log = pair.front.stderr();
    let line = log.lines().find(|line| line.contains(": export of "));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    let found = ["simple replies", "structured replies", "extended headers"]
        .into_iter()
        .find(|framing| line.contains(framing));
    found.expect("a framing").to_owned()
}

#[test]
fn servers_without_them_go_on_with_what_they_have() {
    if !ready() || !need_all(&["nbd-server", "socat"]) {
        return;
    }
    let nbdkit = Pair::with(|directory| memory(directory, "1M"), &["-v"]);
    assert_eq!(framing(&nbdkit), "structured replies");
    let old = |directory: &Path| {
        let image = noise_file(directory, "image", 1 << 20, 61);
        nbd_server(directory, &image, "disk", &[])
    };
    let nbd_server = Pair::with(old, &["-v", "export=disk"]);
    assert_ne!(framing(&nbd_server), "extended headers");
    assert_eq!(framing(&Pair::with(qemu, &["-v"])), "extended headers");
    assert_eq!(
        framing(&Pair::with(qemu, &["-v", "quirks=no-extended"])),
        "structured replies"
    );
}
