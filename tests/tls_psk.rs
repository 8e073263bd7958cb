// SPDX-License-Identifier: BSD-3-Clause
//! Pre-shared keys: both sides know a key, and prove it to each other without saying it.

mod common;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::clients::{LIMIT, text};
use common::front::Front;
use common::nbdkit::{Nbdkit, forward};
use common::need_all;
use common::pki::{Authority, LOCALHOST, key_of, keys, keys_as};
use common::process::{run, run_ok};
use common::relay::Relay;
use common::tls::{nbdkit, nbdkit_psk, opens, refused, refused_at_start, says};
use common::upstream::{noise_file, qemu_nbd};

/// Every test here needs these.
fn ready() -> bool {
    need_all(&["nbdkit", "psktool"])
}

/// The parameters for TLS with the key of `user` in `file`, and nothing else.
fn with_key(file: &Path, user: &str) -> [String; 3] {
    [
        "tls=require".to_owned(),
        format!("tls-psk={}", text(file)),
        format!("tls-username={user}"),
    ]
}

/// nbdkit with the plugin that presents the key of `user` in `file`.
fn presenting(directory: &Path, upstream: &Path, file: &Path, user: &str) -> Nbdkit {
    let parameters = with_key(file, user);
    forward(
        directory,
        upstream,
        &parameters.each_ref().map(String::as_str),
    )
}

#[test]
fn right_key() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["alice", "bob"]);
    let upstream = nbdkit_psk(directory.path(), &keys, &["memory", "1M"]);
    for user in ["alice", "bob"] {
        let front = presenting(directory.path(), upstream.socket(), &keys, user);
        says(&opens(&front), &["TLS: TLSv1.3 with"]);
    }
    let relay = Relay::tcp(upstream.socket());
    let parameters = with_key(&keys, "alice");
    let parameters = parameters.each_ref().map(String::as_str);
    opens(&relay.forward(directory.path(), &parameters));
}

#[test]
fn wrong_key() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let theirs = keys(directory.path(), "theirs", &["alice"]);
    let ours = keys(directory.path(), "ours", &["alice"]);
    let upstream = nbdkit_psk(directory.path(), &theirs, &["memory", "1M"]);
    let mut front = presenting(directory.path(), upstream.socket(), &ours, "alice");
    says(&refused(&front), &["handshake", "TLS"]);
    assert!(front.alive());
}

#[test]
fn wrong_key_is_no_reason_to_go_on_in_clear() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let theirs = keys(directory.path(), "theirs", &["alice"]);
    let ours = keys(directory.path(), "ours", &["alice"]);
    // This server would serve in clear, too.
    let their_keys = format!("--tls-psk={}", text(&theirs));
    let upstream = Nbdkit::start(directory.path(), &["--tls=on", &their_keys, "memory", "1M"]);
    let our_keys = format!("tls-psk={}", text(&ours));
    let parameters = ["tls=on", &our_keys, "tls-username=alice"];
    let front = forward(directory.path(), upstream.socket(), &parameters);
    says(&refused(&front), &["handshake", "TLS"]);
}

#[test]
fn user_whom_the_server_does_not_know() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let theirs = keys(directory.path(), "theirs", &["alice"]);
    let ours = keys(directory.path(), "ours", &["bob"]);
    let upstream = nbdkit_psk(directory.path(), &theirs, &["memory", "1M"]);
    let mut front = presenting(directory.path(), upstream.socket(), &ours, "bob");
    says(&refused(&front), &["handshake", "TLS"]);
    assert!(front.alive());
}

#[test]
fn server_that_shows_a_certificate_instead() {
    if !ready() || !need_all(&["certtool"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(directory.path(), "authority");
    let server = authority.server("server", LOCALHOST);
    let upstream = nbdkit(directory.path(), &server, &["memory", "1M"]);
    let keys = keys(directory.path(), "keys", &["alice"]);
    // Nobody vouches for a certificate here, not even when checks are switched off.
    for verify in ["tls-verify=false", "tls-verify=true"] {
        let [tls, keys, user] = with_key(&keys, "alice");
        let parameters = [tls.as_str(), &keys, &user, verify];
        let front = forward(directory.path(), upstream.socket(), &parameters);
        says(&refused(&front), &["handshake", "TLS"]);
    }
}

#[test]
fn qemu_nbd_with_each_version() {
    if !ready() || !need_all(&["qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let image = noise_file(directory.path(), "image", 1 << 20, 401);
    // This is the name of the file that qemu-nbd looks for in the directory that it is told.
    let keys = keys(directory.path(), "keys.psk", &["alice"]);
    for (priority, version) in [
        ("NORMAL", "TLSv1.3"),
        ("NORMAL:-VERS-TLS1.3:+ECDHE-PSK:+DHE-PSK:+PSK", "TLSv1.2"),
    ] {
        let credentials = format!(
            "tls-creds-psk,id=tls,endpoint=server,dir={},priority={priority}",
            text(directory.path())
        );
        let tls = ["--object", &credentials, "--tls-creds=tls"];
        let own = tempfile::tempdir().expect("temporary directory");
        let upstream = qemu_nbd(own.path(), &image, "raw", "", &tls);
        let front = presenting(directory.path(), upstream.socket(), &keys, "alice");
        says(&opens(&front), &["TLS: ", version]);
    }
}

#[test]
fn faster_cipher_where_the_processor_helps() {
    if !ready() {
        return;
    }
    let cpu = fs::read_to_string("/proc/cpuinfo").expect("read /proc/cpuinfo");
    // GnuTLS left to itself prefers ChaCha20 with a pre-shared key.
    let expected = match cpu.split_whitespace().any(|flag| flag == "aes") {
        true => "TLSv1.3 with TLS_AES_128_GCM_SHA256",
        false => "TLSv1.3 with TLS_CHACHA20_POLY1305_SHA256",
    };
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["alice"]);
    let upstream = nbdkit_psk(directory.path(), &keys, &["memory", "1M"]);
    let front = presenting(directory.path(), upstream.socket(), &keys, "alice");
    says(&opens(&front), &[expected]);
}

#[test]
fn user_is_named_in_the_uri() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["alice"]);
    let upstream = nbdkit_psk(directory.path(), &keys, &["memory", "1M"]);
    for (user, query) in [("alice@", ""), ("", "&tls-username=alice")] {
        let uri = format!(
            "nbds+unix://{user}/?socket={}&tls-psk-file={}{query}",
            text(upstream.socket()),
            text(&keys)
        );
        let plugin = common::plugin();
        opens(&Nbdkit::start(
            directory.path(),
            &["-v", text(&plugin), &uri],
        ));
    }
}

#[test]
fn user_who_started_nbdkit_is_the_default() {
    if !ready() || !need_all(&["nbdinfo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["carol"]);
    let upstream = nbdkit_psk(directory.path(), &keys, &["memory", "1M"]);
    let mut command = Command::new("nbdkit");
    command
        .env("LOGNAME", "carol")
        .env("USER", "carol")
        .arg("-U-")
        .arg(common::plugin())
        .arg(format!("socket={}", text(upstream.socket())))
        .arg(format!("tls-psk={}", text(&keys)))
        .args(["tls=require", "--run", "nbdinfo --size \"$uri\""]);
    assert_eq!(run_ok(&mut command, LIMIT), "1048576\n");
}

#[test]
fn file_may_have_comments_and_lines_that_end_as_on_windows() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let plain = keys(directory.path(), "plain", &["alice"]);
    let key = key_of(&plain, "alice");
    let upstream = nbdkit_psk(directory.path(), &plain, &["memory", "1M"]);
    for content in [
        format!("alice:{key}"),
        format!("alice:{key}\r\n"),
        format!("# the keys\r\n\r\nbob:00ff\r\nalice:{key}\r\nmalory:0123\r\n"),
        format!("alice:{}\n", key.to_uppercase()),
    ] {
        let file = keys_as(directory.path(), "keys", &content);
        let front = presenting(directory.path(), upstream.socket(), &file, "alice");
        opens(&front);
    }
}

#[test]
fn key_that_changes_counts_for_the_next_connection() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let theirs = keys(directory.path(), "theirs", &["alice"]);
    let ours = keys(directory.path(), "ours", &["alice"]);
    let upstream = nbdkit_psk(directory.path(), &theirs, &["memory", "1M"]);
    let front = presenting(directory.path(), upstream.socket(), &ours, "alice");
    says(&refused(&front), &["TLS"]);
    fs::copy(&theirs, &ours).expect("copy the right keys");
    opens(&front);
    fs::remove_file(&ours).expect("remove the keys");
    says(&refused(&front), &["/ours", "No such file or directory"]);
}

/// With this file of keys nbdkit must not start; the reason says so, and nothing of the file.
fn useless(content: &str, words: &[&str]) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let file = keys_as(directory.path(), "keys", content);
    let [tls, keys, user] = with_key(&file, "alice");
    let line = refused_at_start(&["socket=/nowhere", &tls, &keys, &user]);
    says(&line, &[&[text(&file)], words].concat());
    assert!(!line.contains("0badc0de"), "{line}");
}

#[test]
fn file_that_does_not_exist() {
    if !ready() {
        return;
    }
    let [tls, keys, user] = with_key(Path::new("/nowhere/keys"), "alice");
    let line = refused_at_start(&["socket=/nowhere", &tls, &keys, &user]);
    says(&line, &["/nowhere/keys", "No such file or directory"]);
}

#[test]
fn user_who_has_no_key_in_the_file() {
    if !ready() {
        return;
    }
    useless("", &["no key of \"alice\""]);
    useless("bob:0badc0de\n", &["no key of \"alice\""]);
    useless("# alice:0badc0de\n", &["no key of \"alice\""]);
}

#[test]
fn malformed_line() {
    if !ready() {
        return;
    }
    useless("alice\n", &["line 1"]);
    useless("# keys\nbob:00\nalice:0badc0de0\n", &["line 3"]);
    useless("alice:0badc0dexx\n", &["line 1"]);
    useless("alice:0x0badc0de\n", &["line 1"]);
    useless("alice=0badc0de\n", &["line 1"]);
}

#[test]
fn empty_key() {
    if !ready() {
        return;
    }
    useless("alice:\n", &["empty"]);
}

#[test]
fn key_of_extreme_length() {
    if !ready() {
        return;
    }
    let limit = longest_key();
    let key = "aa".repeat(limit + 1);
    useless(
        &format!("alice:{key}\n"),
        &["tls-psk", "longer", &format!("limit of {limit}")],
    );
    useless(&"alice:0badc0de\n".repeat(1 << 17), &["too large"]);
}

#[test]
fn file_that_others_may_read() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["alice"]);
    let upstream = nbdkit_psk(directory.path(), &keys, &["memory", "1M"]);
    let warning = "others than its owner may use the pre-shared keys: its mode is 0640";
    let front = presenting(directory.path(), upstream.socket(), &keys, "alice");
    opens(&front);
    assert!(!front.stderr().contains(warning), "{}", front.stderr());
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o640)).expect("open it to a group");
    says(&opens(&front), &[text(&keys), warning]);
}

/// How long a key may be, bytes: OpenSSL has a limit, which the plugin tells to whom it meets.
fn longest_key() -> usize {
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys_as(
        directory.path(),
        "keys",
        &format!("alice:{}\n", "aa".repeat(9999)),
    );
    let [tls, keys, user] = with_key(&keys, "alice");
    let line = refused_at_start(&["socket=/nowhere", &tls, &keys, &user]);
    let (_, limit) = line.split_once("limit of ").expect("there is a limit");
    let digits = limit.split(' ').next().expect("a number");
    digits.parse().expect("a number")
}

#[test]
fn longest_key_is_good_with_each_version() {
    if !ready() || !need_all(&["qemu-nbd"]) {
        return;
    }
    let limit = longest_key();
    assert!(limit >= 256, "{limit}");
    let directory = tempfile::tempdir().expect("temporary directory");
    let key = format!("alice:{}\n", "5a".repeat(limit));
    let keys = keys_as(directory.path(), "keys.psk", &key);
    let image = noise_file(directory.path(), "image", 1 << 20, 402);
    for (priority, version) in [
        ("NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK", "TLSv1.3"),
        ("NORMAL:-VERS-TLS1.3:+ECDHE-PSK:+DHE-PSK:+PSK", "TLSv1.2"),
    ] {
        let credentials = format!(
            "tls-creds-psk,id=tls,endpoint=server,dir={},priority={priority}",
            text(directory.path())
        );
        let tls = ["--object", &credentials, "--tls-creds=tls"];
        let upstream = qemu_nbd(directory.path(), &image, "raw", "disk", &tls);
        let [tls, keys, user] = with_key(&keys, "alice");
        let parameters = [tls.as_str(), &keys, &user, "export=disk"];
        let front = forward(directory.path(), upstream.socket(), &parameters);
        says(&opens(&front), &[version]);
    }
}

#[test]
fn key_out_of_a_pipe_is_good_for_every_client() {
    if !ready() {
        return;
    }
    // As from a shell's <(...): it can be read only once.
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["alice"]);
    let upstream = nbdkit_psk(directory.path(), &keys, &["memory", "1M"]);
    let socket = directory.path().join("front.sock");
    let script = "keys=$1; shift; exec \"$@\" tls-psk=<(cat \"$keys\") \
                  --run 'for i in 1 2 3; do nbdinfo --size \"$uri\"; done'";
    let mut command = Command::new("bash");
    command
        .args(["-c", script, "bash", text(&keys), "nbdkit", "-U"])
        .arg(&socket)
        .arg(common::plugin())
        .arg(format!("socket={}", text(upstream.socket())))
        .args(["tls=require", "tls-username=alice"]);
    assert_eq!(run_ok(&mut command, LIMIT), "1048576\n".repeat(3));
}

#[test]
fn pipe_that_nobody_fills_is_an_error_and_no_hang() {
    if !ready() || !need_all(&["mkfifo"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let pipe = directory.path().join("keys");
    run_ok(Command::new("mkfifo").arg(&pipe), LIMIT);
    let [tls, keys, user] = with_key(&pipe, "alice");
    let line = refused_at_start(&["socket=/nowhere", &tls, &keys, &user]);
    says(&line, &[text(&pipe), "nobody writes", "tls-psk"]);
}

#[test]
fn terminal_is_no_file_of_keys() {
    if !ready() {
        return;
    }
    for device in ["/dev/tty", "/dev/null", "/dev/zero"] {
        let [tls, keys, user] = with_key(Path::new(device), "alice");
        let line = refused_at_start(&["socket=/nowhere", &tls, &keys, &user]);
        says(&line, &[device, "is a device", "tls-psk"]);
    }
}

/// No part of a key, so long that it cannot be there by chance, is in `log`.
fn keeps_the_secret(key: &str, log: &str) {
    const PART: usize = 12;
    let log = log.to_lowercase();
    for start in 0..=key.len() - PART {
        let part = &key[start..start + PART];
        assert!(!log.contains(part), "there is {part} of {key} in {log}");
    }
}

#[test]
fn keys_are_never_told() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let theirs = keys(directory.path(), "theirs", &["alice"]);
    let upstream = nbdkit_psk(directory.path(), &theirs, &["memory", "1M"]);
    let wrong = keys(directory.path(), "wrong", &["alice"]);
    for (file, good) in [(&theirs, true), (&wrong, false)] {
        let key = key_of(file, "alice");
        let [tls, file, user] = with_key(file, "alice");
        let parameters = ["-Dnbd.verbose=1", &tls, &file, &user];
        let front = forward(directory.path(), upstream.socket(), &parameters);
        match good {
            true => drop(opens(&front)),
            false => drop(refused(&front)),
        }
        keeps_the_secret(&key, &front.stderr());
    }
    // Nor is a line that cannot be used shown to explain why.
    let key = key_of(&theirs, "alice");
    let malformed = keys_as(directory.path(), "malformed", &format!("alice:{key}h\n"));
    let [tls, file, user] = with_key(&malformed, "alice");
    let line = refused_at_start(&["-v", "-Dnbd.verbose=1", "socket=/x", &tls, &file, &user]);
    keeps_the_secret(&key, &line);
}

#[test]
fn dump_plugin_tells_nothing() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["alice"]);
    let mut command = Command::new("nbdkit");
    command
        .args(["-v", "--dump-plugin"])
        .arg(common::plugin())
        .args(with_key(&keys, "alice"));
    let output = run(&mut command, LIMIT);
    let all = [output.stdout, output.stderr].concat();
    keeps_the_secret(&key_of(&keys, "alice"), &String::from_utf8_lossy(&all));
}

#[test]
fn key_does_not_stay_in_memory() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("temporary directory");
    let keys = keys(directory.path(), "keys", &["alice", "bob"]);
    let upstream = nbdkit_psk(directory.path(), &keys, &["memory", "1M"]);
    let front = presenting(directory.path(), upstream.socket(), &keys, "alice");
    let search = |user: &str| {
        let digits = key_of(&keys, user);
        let pairs = (0..digits.len()).step_by(2);
        let bytes: Vec<u8> = pairs
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("psktool writes digits"))
            .collect();
        [digits.as_bytes(), &bytes].map(|secret| search_memory(front.pid(), secret))
    };
    // While it is used it must be somewhere, or this search is worth nothing.
    let client = Front::open(front.socket()).expect("the right key");
    let [_, bytes] = search("alice");
    assert!(!bytes.is_empty(), "the key is in use");
    client.close();
    for user in ["alice", "bob"] {
        assert_eq!(search(user), [Vec::<String>::new(), Vec::new()], "{user}");
    }
}

/// Which parts of a process's memory hold `secret`.
fn search_memory(pid: u32, secret: &[u8]) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a child's memory");
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).expect("a child's memory");
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').expect("a range");
        let (end, _) = rest.split_once(' ').expect("a range");
        let [start, end] =
            [start, end].map(|number| u64::from_str_radix(number, 16).expect("an address"));
        let mut bytes = vec![0; (end - start) as usize];
        memory.seek(SeekFrom::Start(start)).expect("an address");
        // Some of the kernel's own ranges cannot be read.
        if memory.read_exact(&mut bytes).is_ok() && contains(&bytes, secret) {
            found.push(line.to_owned());
        }
    }
    found
}

/// Whether `bytes` contain `secret`; with the C library's search, since there are many of them.
fn contains(bytes: &[u8], secret: &[u8]) -> bool {
    // SAFETY: both pointers are valid for the lengths that go with them.
    let found = unsafe {
        libc::memmem(
            bytes.as_ptr().cast(),
            bytes.len(),
            secret.as_ptr().cast(),
            secret.len(),
        )
    };
    !found.is_null()
}
