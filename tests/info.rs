// SPDX-License-Identifier: BSD-3-Clause
//! What nbdinfo says of an export, its abilities, its sizes and its map, is the same directly and through
//! the plugin.

mod common;

use std::path::{Path, PathBuf};

use common::clients::{map, nbdinfo, nbdsh, nbdsh_unconnected, program, text};
use common::nbdkit::{Nbdkit, forward};
use common::pair::Pair;
use common::upstream::{nbd_server, noise_file, qemu_nbd};
use common::{need, need_all};
use serde_json::Value;

/// A key in which an answer may differ from the direct one: with its expected value through the plugin.
type Exception = (&'static str, Value);

/// Compares every key of `nbdinfo --json`. The URI names the socket, so it always differs.
fn assert_same_info(direct: &str, through: &str, exceptions: &[Exception]) {
    let mut direct = nbdinfo(direct);
    let mut through = nbdinfo(through);
    for info in [&mut direct, &mut through] {
        info["uri"] = Value::Null;
        // Told by newer nbdinfo of servers with extended headers, which nbdkit does not have.
        info["can_block_status_payload"] = Value::Null;
    }
    for (key, value) in exceptions {
        assert_eq!(&through[key], value, "{key}");
        direct[key] = value.clone();
    }
    assert_eq!(through, direct);
}

/// An nbdkit with `args` looks the same directly and through us, map included.
fn assert_transparent(args: &[&str], exceptions: &[Exception]) {
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let pair = Pair::new(args, &[]);
    assert_same_info(&pair.server.uri(), &pair.front.uri(), exceptions);
    assert_eq!(map(&pair.front.uri()), map(&pair.server.uri()));
}

#[test]
fn memory_disk_looks_the_same() {
    assert_transparent(&["memory", "10M"], &[]);
}

#[test]
fn disk_of_odd_size_looks_the_same() {
    assert_transparent(&["memory", "1000001"], &[]);
}

#[test]
fn empty_disk_looks_the_same() {
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let pair = Pair::new(&["memory", "0"], &[]);
    assert_same_info(&pair.server.uri(), &pair.front.uri(), &[]);
}

#[test]
fn sparse_disk_has_the_same_map() {
    assert_transparent(&["sparse-random", "256M", "percent=20"], &[]);
}

#[test]
fn disk_of_exabytes_looks_the_same() {
    // 2^63-1 is the largest size nbdkit can express. Its map would take 2^31 queries, so only the info.
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let pair = Pair::new(&["memory", "9223372036854775807"], &[]);
    assert_same_info(&pair.server.uri(), &pair.front.uri(), &[]);
}

#[test]
fn read_only_server_looks_the_same() {
    assert_transparent(&["-r", "memory", "10M"], &[]);
}

#[test]
fn server_without_zero_offers_it_through_us() {
    // nbdkit writes zeroes itself where its plugin has none, and so it always offers zero on a writable disk.
    let exceptions = [("can_zero", true.into()), ("can_fast_zero", false.into())];
    assert_transparent(&["--filter=nozero", "memory", "10M"], &exceptions);
}

#[test]
fn server_without_trim_looks_the_same() {
    assert_transparent(
        &[
            "eval",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
            "pwrite=cat >/dev/null",
        ],
        &[],
    );
}

#[test]
fn idle_filter_changes_nothing() {
    assert_transparent(
        &["--filter=nofilter", "sparse-random", "64M", "percent=50"],
        &[],
    );
}

#[test]
fn server_without_fua_looks_the_same() {
    assert_transparent(
        &[
            "eval",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
            "pwrite=cat >/dev/null",
            "can_flush=exit 0",
            "flush=exit 0",
            "can_fua=echo none",
        ],
        &[],
    );
}

#[test]
fn server_with_emulated_fua_looks_the_same() {
    assert_transparent(&["--filter=fua", "memory", "10M", "fuamode=emulate"], &[]);
}

#[test]
fn server_without_extents_looks_the_same() {
    assert_transparent(
        &["--filter=noextents", "sparse-random", "64M", "percent=50"],
        &[],
    );
}

#[test]
fn server_without_cache_looks_the_same() {
    assert_transparent(
        &["--filter=nocache", "memory", "10M", "cachemode=none"],
        &[],
    );
}

#[test]
fn server_without_multi_conn_looks_the_same() {
    assert_transparent(
        &[
            "--filter=multi-conn",
            "memory",
            "10M",
            "multi-conn-mode=disable",
        ],
        &[],
    );
}

#[test]
fn rotational_server_with_description_looks_the_same() {
    assert_transparent(
        &[
            "eval",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
            "pwrite=cat >/dev/null",
            "is_rotational=exit 0",
            "export_description=echo the disk of the tests",
        ],
        &[],
    );
}

#[test]
fn block_sizes_look_the_same() {
    assert_transparent(
        &[
            "--filter=blocksize-policy",
            "memory",
            "10M",
            "blocksize-minimum=512",
            "blocksize-preferred=64K",
            "blocksize-maximum=1M",
        ],
        &[],
    );
}

#[test]
fn oldstyle_server_looks_like_newstyle_with_the_same_abilities() {
    if !need_all(&["nbdkit", "nbdinfo"]) {
        return;
    }
    let pair = Pair::new(&["-o", "memory", "10M"], &[]);
    // Structured replies and their contexts are a matter between our own client and nbdkit.
    assert_same_info(
        &pair.server.uri(),
        &pair.front.uri(),
        &[
            ("can_df", true.into()),
            ("contexts", serde_json::json!(["base:allocation"])),
        ],
    );
}

#[test]
fn qemu_nbd_raw_looks_the_same() {
    if !need_all(&["nbdkit", "nbdinfo", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "raw", 3 << 20, 1);
    let upstream = qemu_nbd(
        directory.path(),
        &image,
        "raw",
        "disk",
        &["-D", "a raw disk"],
    );
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    let exceptions = names_of_the_front(&front);
    assert_same_info(
        &upstream.uri_export("disk"),
        &front.uri_export("disk"),
        &exceptions,
    );
    assert_eq!(map(&front.uri()), map(&upstream.uri_export("disk")));
}

#[test]
fn qemu_nbd_qcow2_has_the_same_map() {
    if !need_all(&["nbdkit", "nbdinfo", "qemu-nbd", "qemu-img", "qemu-io"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = qcow2_with_islands(directory.path());
    let upstream = qemu_nbd(directory.path(), &image, "qcow2", "disk", &[]);
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    let direct = map(&upstream.uri_export("disk"));
    assert_eq!(
        direct.lines().count(),
        5,
        "data, zeroes and holes: {direct}"
    );
    assert_eq!(map(&front.uri()), direct);
}

#[test]
fn nbd_server_looks_the_same() {
    if !need_all(&["nbdkit", "nbdinfo", "nbd-server", "socat"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "raw", 1 << 20, 2);
    let upstream = nbd_server(
        directory.path(),
        &image,
        "disk",
        &["flush = true", "fua = true", "trim = true"],
    );
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    // nbd-server answers NBD_OPT_INFO, which nbdinfo asks first, with size 0. The size in its answer to
    // NBD_OPT_GO, which is what we take, is right. It has no structured replies, nbdkit does.
    let mut exceptions = names_of_the_front(&front);
    exceptions.extend([
        ("export-size", (1 << 20).into()),
        ("export-size-str", "1M".into()),
        ("content", "data".into()),
        ("can_df", true.into()),
        ("contexts", serde_json::json!(["base:allocation"])),
    ]);
    assert_same_info(
        &upstream.uri_export("disk"),
        &front.uri_export("disk"),
        &exceptions,
    );
}

#[test]
fn status_of_one_extent_is_one_extent() {
    if !need("nbdkit") {
        return;
    }
    let script = "
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
found = []
def keep(context, offset, entries, error): found.extend(entries)
h.block_status(32 << 20, 12345, keep, nbd.CMD_FLAG_REQ_ONE)
print(found)
";
    let pair = Pair::new(&["sparse-random", "64M", "percent=50"], &[]);
    let ask = |uri: String| nbdsh_unconnected(&format!("uri = '{uri}'\n{script}"));
    let direct = ask(pair.server.uri());
    assert_eq!(
        direct.matches(',').count(),
        1,
        "length and status of one extent: {direct}"
    );
    assert_eq!(ask(pair.front.uri()), direct);
}

#[test]
fn description_reaches_the_client() {
    if !need_all(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "raw", 1 << 20, 3);
    let upstream = qemu_nbd(
        directory.path(),
        &image,
        "raw",
        "disk",
        &["-D", "grüße & more"],
    );
    let front = forward(directory.path(), upstream.socket(), &["export=disk"]);
    let script = format!(
        "h.set_full_info(True)\nh.connect_uri('{}')\nprint(h.get_export_description())",
        front.uri()
    );
    assert_eq!(nbdsh_unconnected(&script).trim_end(), "grüße & more");
}

#[test]
fn block_sizes_reach_the_client() {
    if !need("nbdkit") {
        return;
    }
    let pair = Pair::new(
        &[
            "eval",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
            "block_size=echo 4096 65536 131072",
        ],
        &[],
    );
    let script = "
print(*[h.get_block_size(kind) for kind in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)])
";
    assert_eq!(
        nbdsh(&pair.front.uri(), script).trim_end(),
        "4096 65536 131072"
    );
}

/// The export's name as the front nbdkit tells it. A client of the front may ask for any name and is told
/// that name back, or the canonical one; it is the same disk.
fn names_of_the_front(front: &Nbdkit) -> Vec<Exception> {
    vec![(
        "export-name",
        nbdinfo(&front.uri_export("disk"))["export-name"].clone(),
    )]
}

/// A qcow2 of 8 MiB with data at 1 MiB and 3 MiB, and explicit zeroes at 5 MiB.
fn qcow2_with_islands(directory: &Path) -> PathBuf {
    let image = directory.join("islands.qcow2");
    let name = text(&image);
    program("qemu-img", &["create", "-q", "-f", "qcow2", name, "8M"]);
    let writes = [
        "write -P 17 1M 1M",
        "write -P 34 3M 1M",
        "write -P 51 5M 1M",
        "write -z 5M 1M",
    ];
    let mut args = vec!["-f", "qcow2"];
    for write in writes {
        args.extend(["-c", write]);
    }
    args.push(name);
    program("qemu-io", &args);
    image
}
