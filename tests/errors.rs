// SPDX-License-Identifier: BSD-3-Clause
//! The messages under ERRORS in the manual are those that come, and those that come are there.
//!
//! Each case makes one message happen and pins its text. Whoever changes a text changes it here too, and then
//! looks whether the item of the manual still fits.

mod common;
mod errors_tls;
// Beside this file they would be tests of their own.
#[path = "errors/command.rs"]
mod command;
#[path = "errors/control.rs"]
mod control;
#[path = "errors/maps.rs"]
mod maps;
#[path = "errors/pool.rs"]
mod pool;
#[path = "errors/quirks.rs"]
mod quirks;
#[path = "errors/reach.rs"]
mod reach;
#[path = "errors/reconnect.rs"]
mod reconnect;
#[path = "errors/statistics.rs"]
mod statistics;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use common::clients::{LIMIT, text};
use common::front::Front;
use common::manual::{self, Pattern};
use common::nbdkit::{Nbdkit, forward, plugin_args};
use common::pki::TOOLS;
use common::process::{hand_over, run};
use common::refusal::{Mode, refusal_with};
use common::scripted::Scripted;
use common::scripted::disk::Disk;
use common::scripted::peer::{Offer, Peer};
use common::scripted::wire::{self, DONE, errno, opt, rep};
use common::tls;
use common::upstream::{noise_file, qemu_nbd};
use common::{need_all, plugin};

/// One message.
struct Case {
    /// The item of the manual, without its POD codes. In it `...` and these words stand for anything:
    /// X, N, M, FILE, KEY, VALUE.
    item: &'static str,
    /// What comes, with DIR for the directory of the case and `...` for what is not ours, such as OpenSSL's
    /// reasons.
    text: &'static str,
    /// Makes it happen, with an empty directory to use, and returns it.
    happen: fn(&Path) -> String,
}

const BLANKS: [&str; 6] = ["X", "N", "M", "FILE", "KEY", "VALUE"];

/// The mistakes in parameters, by which nbdkit does not start.
const AT_START: &[Case] = &[
    Case {
        item: "unknown parameter 'X'",
        text: "unknown parameter 'sokcet'",
        happen: |dir| starting(dir, &["sokcet=DIR/s"]),
    },
    Case {
        item: "exactly one of ‘socket’, ‘hostname’, ... must be specified",
        text: "exactly one of ‘socket’, ‘hostname’, ‘vsock’, ‘command’, ‘socket-fd’ and ‘uri’ parameters \
               must be specified",
        happen: |dir| starting(dir, &["export=x"]),
    },
    Case {
        item: "cannot mix Unix ‘socket’, TCP ‘hostname’/‘port’, ...",
        text: "cannot mix Unix ‘socket’, TCP ‘hostname’/‘port’, ‘vsock’, ‘command’, ‘socket-fd’ and \
               ‘uri’ parameters",
        happen: |dir| starting(dir, &["socket=s", "hostname=localhost"]),
    },
    Case {
        item: "‘port’ parameter should only be used with ‘hostname’ or ‘vsock’",
        text: "‘port’ parameter should only be used with ‘hostname’ or ‘vsock’",
        happen: |dir| starting(dir, &["socket=s", "port=10809"]),
    },
    Case {
        item: "cannot use ‘connections’ with ‘socket-fd’: the socket is good for one connection",
        text: "cannot use ‘connections’ with ‘socket-fd’: the socket is good for one connection",
        happen: |dir| starting(dir, &["socket-fd=0", "connections=2"]),
    },
    Case {
        item: "cannot use ‘servers’ with ‘vsock’, ‘command’ or ‘socket-fd’",
        text: "cannot use ‘servers’ with ‘vsock’, ‘command’ or ‘socket-fd’",
        happen: |dir| starting(dir, &["socket-fd=0", "servers=spread"]),
    },
    Case {
        item: "cannot use ‘servers’ with ‘dynamic-export’: ...",
        text: "cannot use ‘servers’ with ‘dynamic-export’: which exports there are is a question for one \
               server",
        happen: |dir| starting(dir, &["socket=s", "servers=spread", "dynamic-export=1"]),
    },
    Case {
        item: "‘servers-same-disk’ parameter should only be used with ‘servers=failover’",
        text: "‘servers-same-disk’ parameter should only be used with ‘servers=failover’",
        happen: |dir| starting(dir, &["socket=s", "servers-same-disk=1"]),
    },
    Case {
        item: "socket file name too large",
        text: "socket file name too large",
        happen: |dir| starting(dir, &[&format!("socket=/{}", "s".repeat(108))]),
    },
    Case {
        item: "cannot mix 'dynamic-export' with explicit export name",
        text: "cannot mix 'dynamic-export' with explicit export name",
        happen: |dir| starting(dir, &["socket=s", "dynamic-export=1", "export=x"]),
    },
    Case {
        item: "cannot use 'dynamic-export' with shared connection",
        text: "cannot use 'dynamic-export' with shared connection",
        happen: |dir| starting(dir, &["socket=s", "dynamic-export=1", "shared=1"]),
    },
    Case {
        item: "‘KEY’ parameter should only be used with ‘reconnect’, which is off",
        text: "‘replay’ parameter should only be used with ‘reconnect’, which is off",
        happen: |dir| starting(dir, &["socket=s", "replay=1M"]),
    },
    Case {
        item: "cannot use ‘reconnect’ with ‘socket-fd’: the socket is good for one connection",
        text: "cannot use ‘reconnect’ with ‘socket-fd’: the socket is good for one connection",
        happen: |dir| starting(dir, &["socket-fd=0", "reconnect=1"]),
    },
    Case {
        item: "uri: ...",
        text: "uri: unknown query key 'socke'",
        happen: |dir| starting(dir, &["nbd://localhost?socke=s"]),
    },
    Case {
        item: "cannot mix 'tls=off' with a URI that demands TLS",
        text: "cannot mix 'tls=off' with a URI that demands TLS",
        happen: |dir| starting(dir, &["nbds://localhost", "tls=off"]),
    },
    Case {
        item: "cannot mix ‘tls-pin’ with a pre-shared key",
        text: "cannot mix ‘tls-pin’ with a pre-shared key",
        happen: |dir| {
            let pin = format!("tls-pin=sha256:{}", "0".repeat(64));
            starting(dir, &["socket=s", "tls-psk=keys", &pin])
        },
    },
    Case {
        item: "‘tls-psk’ needs ‘tls-username’",
        text: "‘tls-psk’ needs ‘tls-username’",
        happen: |dir| starting_as_nobody(dir, &["socket=s", "tls-psk=/dev/null"]),
    },
    Case {
        item: "tls-verify=true needs a name to verify: ...",
        text: "tls-verify=true needs a name to verify: add ‘tls-hostname’, or ‘tls-pin’ to recognise the \
               server by its key",
        happen: |dir| starting(dir, &["socket=s", "tls-verify=true"]),
    },
    Case {
        item: "tls-pin: must be sha256: and 64 hexadecimal digits",
        text: "tls-pin: must be sha256: and 64 hexadecimal digits",
        happen: |dir| starting(dir, &["socket=s", "tls-pin=sha256:0"]),
    },
    Case {
        item: "TLS: FILE: ...",
        text: "TLS: DIR/keys: No such file or directory (the pre-shared keys, see tls-psk)",
        happen: |dir| starting(dir, &["socket=s", "tls-psk=DIR/keys", "tls-username=me"]),
    },
    Case {
        item: "socket-fd=N: ...",
        text: "socket-fd=99: Bad file descriptor",
        happen: |dir| starting(dir, &["socket-fd=99"]),
    },
    Case {
        item: "KEY: could not parse number: \"X\": ...",
        text: "retry: could not parse number: \"often\": not a number",
        happen: |dir| starting(dir, &["socket=s", "retry=often"]),
    },
    Case {
        item: "KEY=VALUE: must ...",
        text: "connect-timeout=soon: must be a time such as 30, 1.5s or 200ms, or 0 for none",
        happen: |dir| starting(dir, &["socket=s", "connect-timeout=soon"]),
    },
];

/// What goes wrong between the connection and the first request.
const OPENING: &[Case] = &[
    Case {
        item: "connect: ...",
        text: "DIR/nobody: connect: No such file or directory",
        happen: |dir| opening(&forward(dir, &dir.join("nobody"), &[])),
    },
    Case {
        item: "connect: the socket was good for one connection, which has ended",
        text: "socket-fd=100: connect: the socket was good for one connection, which has ended",
        happen: used_up,
    },
    Case {
        item: "handshake: not an NBD server ...",
        text: "DIR/scripted.sock: handshake: not an NBD server (it sent 0x32323020736d7470 instead of NBDMAGIC)",
        happen: |dir| scripted_opening(dir, &[], |peer| peer.send(b"220 smtp.example.com ESMTP")),
    },
    Case {
        item: "handshake: server refused NBD_OPT_GO: no export named \"X\"",
        text: "DIR/...: handshake: server refused NBD_OPT_GO: no export named \"wrong\" (export 'wrong' not \
               present)",
        happen: |dir| {
            let image = noise_file(dir, "image", 1 << 20, 301);
            let server = qemu_nbd(dir, &image, "raw", "right", &[]);
            opening(&forward(dir, server.socket(), &["export=wrong"]))
        },
    },
    Case {
        item: "handshake: server refused NBD_OPT_GO: it insists on TLS ...",
        text: "DIR/scripted.sock: handshake: server refused NBD_OPT_GO: it insists on TLS (use tls=require), or \
               has no export named \"\" (not in clear)",
        happen: |dir| {
            scripted_opening(dir, &[], |peer| {
                let asked = peer.greet_until(opt::GO, &Offer::default())?;
                peer.reply(asked.option, rep::ERR_TLS_REQD, b"not in clear")?;
                peer.expect_closed()
            })
        },
    },
    Case {
        item: "handshake: timed out after ...",
        text: "DIR/scripted.sock: handshake: timed out after 0.1 seconds (waiting for its greeting)",
        happen: |dir| scripted_opening(dir, &["handshake-timeout=100ms"], Peer::expect_closed),
    },
    Case {
        item: "handshake: reply to ...",
        text: "DIR/scripted.sock: handshake: reply to NBD_OPT_GO: unexpected NBD_REP_SERVER",
        happen: |dir| {
            scripted_opening(dir, &[], |peer| {
                peer.greet_until(opt::GO, &Offer::default())?;
                peer.reply(opt::GO, rep::SERVER, &[0; 4])?;
                peer.expect_closed()
            })
        },
    },
];

/// What goes wrong with requests.
const SERVING: &[Case] = &[
    Case {
        item: "server answered ...",
        text: "DIR/scripted.sock: NBD_CMD_READ of 512 bytes at offset 0: server answered NBD_ENOSPC (full)",
        happen: |dir| {
            reading(dir, &Offer::default(), |peer, cookie| {
                peer.send(&wire::error(DONE, cookie, errno::ENOSPC, b"full"))
            })
        },
    },
    Case {
        item: "server answered only N of M bytes",
        text: "DIR/scripted.sock: NBD_CMD_READ of 512 bytes at offset 0: server answered only 256 of 512 bytes",
        happen: |dir| {
            reading(dir, &Offer::default(), |peer, cookie| {
                peer.send(&wire::data(DONE, cookie, 0, &[0; 256]))
            })
        },
    },
    Case {
        item: "the server's answer is wrong: ...",
        text: "DIR/scripted.sock: NBD_CMD_READ of 512 bytes at offset 0: the server's answer is wrong: \
               NBD_REPLY_TYPE_OFFSET_DATA at offset 4096, length 512, is outside the request",
        happen: |dir| {
            reading(dir, &Offer::default(), |peer, cookie| {
                peer.send(&wire::data(DONE, cookie, 4096, &[0; 512]))
            })
        },
    },
    Case {
        item: "... is not aligned to the server's minimum block size N (align=emulate)",
        text: "DIR/scripted.sock: NBD_CMD_READ of 512 bytes at offset 0 is not aligned to the server's minimum \
               block size 4096 (align=emulate)",
        happen: |dir| {
            let offer = Offer {
                block_sizes: Some((4096, 4096, 1 << 20)),
                ..Offer::default()
            };
            serving(dir, &offer, |peer| peer.expect_closed())
        },
    },
    Case {
        item: "connection lost: ...",
        text: "DIR/scripted.sock: connection lost: the server closed the connection",
        happen: |dir| reading(dir, &Offer::default(), |_, _| Ok(())),
    },
    Case {
        item: "the server is shutting down",
        text: "DIR/scripted.sock: the server is shutting down",
        happen: |dir| {
            // The first answer says so, the server that comes in its place is another, and the second
            // request is not sent.
            let server = Scripted::start(dir);
            server.play(|peer| {
                peer.negotiate(&Offer::default())?;
                let request = peer.request()?;
                peer.send(&wire::error(DONE, request.cookie, errno::ESHUTDOWN, b""))?;
                peer.request()?;
                peer.expect_closed()
            });
            server.play(|peer| {
                peer.negotiate(&Offer {
                    size: 512,
                    ..Offer::default()
                })
            });
            let nbdkit = forward(dir, server.socket(), &[]);
            let mut front = Front::open(nbdkit.socket()).expect("opens");
            assert_eq!(front.read(0, 512), Err(errno::ESHUTDOWN));
            assert_eq!(front.read(0, 512), Err(errno::ESHUTDOWN));
            last_error(&nbdkit.stderr())
        },
    },
];

// --- how they happen ------------------------------------------------------------------------------------

/// Why nbdkit does not start with these parameters, in which DIR is the directory.
fn starting(dir: &Path, parameters: &[&str]) -> String {
    let parameters: Vec<_> = parameters
        .iter()
        .map(|parameter| parameter.replace("DIR", text(dir)))
        .collect();
    let parameters: Vec<_> = parameters.iter().map(String::as_str).collect();
    refusal_with(dir, Mode::Foreground, &parameters, |_| ()).0
}

/// [`starting`] as somebody who is not root and has no name.
fn starting_as_nobody(dir: &Path, parameters: &[&str]) -> String {
    // Whoever it is must be able to read the plugin.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("mode");
    let copy = dir.join("plugin.so");
    fs::copy(plugin(), &copy).expect("copy");
    let mut command = Command::new("nbdkit");
    command
        .args(["-U", "-"])
        .arg(copy)
        .args(parameters)
        .args(["--run", "true"])
        .env_remove("LOGNAME")
        .env_remove("USER");
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(65534).gid(65534);
    }
    last_error(&String::from_utf8_lossy(&run(&mut command, LIMIT).stderr))
}

/// The one error that nbdkit tells when a client cannot open the export.
fn opening(nbdkit: &Nbdkit) -> String {
    last_error(&tls::refused(nbdkit))
}

fn scripted_opening(
    dir: &Path,
    parameters: &[&str],
    script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
) -> String {
    let server = Scripted::start(dir);
    server.play(script);
    opening(&forward(dir, server.socket(), parameters))
}

/// What nbdkit tells when a read of the first 512 bytes fails; `script` plays what follows the handshake.
fn serving(
    dir: &Path,
    offer: &Offer,
    script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
) -> String {
    let server = Scripted::start(dir);
    let offer = offer.clone();
    server.play(move |peer| {
        peer.negotiate(&offer)?;
        script(peer)
    });
    let nbdkit = forward(dir, server.socket(), &[]);
    let mut front = Front::open(nbdkit.socket()).expect("opens");
    assert!(front.read(0, 512).is_err(), "the read fails");
    last_error(&nbdkit.stderr())
}

/// [`serving`] with `answer` for the read's cookie, and nothing after it.
fn reading(
    dir: &Path,
    offer: &Offer,
    answer: impl Fn(&mut Peer, u64) -> io::Result<()> + Send + Sync + 'static,
) -> String {
    serving(dir, offer, move |peer| {
        let request = peer.request()?;
        answer(peer, request.cookie)
    })
}

/// The second client of a `socket-fd=` whose connection has ended.
fn used_up(dir: &Path) -> String {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let server = std::thread::spawn(move || {
        let mut peer = Peer::new(ours, false);
        peer.negotiate(&Offer::default()).expect("handshake");
        let request = peer.request().expect("a read");
        peer.answer(&request, &mut Disk::new(Offer::default().size))
    });
    let nbdkit = Nbdkit::start_with(dir, &plugin_args(&["socket-fd=100"]), |command| {
        hand_over(command, &theirs, 100);
    });
    drop(theirs);
    let mut front = Front::open(nbdkit.socket()).expect("opens");
    assert!(front.read(0, 512).is_ok(), "the read succeeds");
    server.join().expect("the server").expect("answers");
    assert!(front.read(0, 512).is_err(), "the connection has ended");
    front.close();
    opening(&nbdkit)
}

/// What stands behind `error: ` in the last line that has it.
fn last_error(log: &str) -> String {
    let line = log.lines().rev().find(|line| line.contains("error: "));
    let line = line.unwrap_or_else(|| panic!("no error:\n{log}"));
    let (_, message) = line.split_once("error: ").expect("found above");
    message.to_owned()
}

fn cases() -> impl Iterator<Item = &'static Case> {
    [
        AT_START,
        OPENING,
        errors_tls::CASES,
        SERVING,
        reach::CASES,
        quirks::CASES,
        maps::CASES,
        command::CASES,
        reconnect::CASES,
        pool::CASES,
        statistics::CASES,
        control::CASES,
    ]
    .into_iter()
    .flatten()
}

/// Makes the cases happen, and tells of all those that have changed.
fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for case in cases {
        let directory = tempfile::tempdir().expect("temporary directory");
        let came = (case.happen)(directory.path()).replace(text(directory.path()), "DIR");
        if !Pattern::new(case.item, &BLANKS).is_in(&came) {
            wrong.push(format!(
                "ERRORS in the manual has: {}\nbut what comes is:        {came}\n\
                 -> change the manual, and the case in tests/errors.rs",
                case.item
            ));
        } else if !Pattern::new(case.text, &[]).is_all_of(&came) {
            wrong.push(format!(
                "tests/errors.rs pins:     {}\nbut what comes is:        {came}\n\
                 -> pin the new text if it is the better one; the item of the manual fits it",
                case.text
            ));
        }
    }
    assert!(wrong.is_empty(), "\n\n{}\n", wrong.join("\n\n"));
}

#[test]
fn every_item_of_the_manual_has_a_case() {
    let documented: BTreeSet<_> = manual::items(&manual::section(Some("ERRORS")))
        .into_iter()
        .collect();
    let shown: BTreeSet<_> = cases().map(|case| case.item.to_owned()).collect();
    let unproven: Vec<_> = documented.difference(&shown).collect();
    let undocumented: Vec<_> = shown.difference(&documented).collect();
    assert!(
        unproven.is_empty() && undocumented.is_empty(),
        "\nin ERRORS, but no case of tests/errors.rs makes it happen: {unproven:#?}\n\
         in tests/errors.rs, but not in ERRORS: {undocumented:#?}\n"
    );
}

#[test]
fn readme_has_no_other_messages() {
    // Of nbdkit and the system.
    let foreign = [
        "Connection refused",
        "Cannot send after transport endpoint shutdown",
        "bind: ...: Address already in use",
    ];
    let readme = manual::file("README.md");
    let (_, table) = readme.split_once("\n| What you see |").expect("the table");
    let rows = table.lines().skip(2).take_while(|row| row.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let quoted: Vec<_> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|text| !foreign.contains(text))
        .collect();
    let pinned = |text: &str| cases().any(|case| case.text.contains(text));
    let gone: Vec<_> = quoted.iter().filter(|text| !pinned(text)).collect();
    assert!(quoted.len() > 3, "{quoted:?}");
    assert!(
        gone.is_empty(),
        "in the README, but no message has it: {gone:?}"
    );
}

#[test]
fn mistakes_in_parameters_are_told_as_the_manual_says() {
    if need_all(&["nbdkit", "sh"]) {
        check(AT_START);
    }
}

#[test]
fn failures_to_get_there_are_told_as_the_manual_says() {
    if need_all(&["nbdkit", "sh"]) {
        check(reach::CASES);
    }
}

#[test]
fn faults_of_servers_that_were_started_are_told_as_the_manual_says() {
    if need_all(&["nbdkit", "sh"]) {
        check(command::CASES);
    }
}

#[test]
fn failures_to_open_are_told_as_the_manual_says() {
    if need_all(&["nbdkit", "qemu-nbd"]) {
        check(OPENING);
    }
}

#[test]
fn failures_of_tls_are_told_as_the_manual_says() {
    if need_all(&["nbdkit", "qemu-nbd"]) && need_all(TOOLS) {
        check(errors_tls::CASES);
    }
}

#[test]
fn failures_of_requests_are_told_as_the_manual_says() {
    if need_all(&["nbdkit"]) {
        check(SERVING);
    }
}

#[test]
fn losses_and_returns_are_told_as_the_manual_says() {
    if need_all(&["nbdkit"]) {
        check(reconnect::CASES);
    }
}

#[test]
fn several_connections_are_told_of_as_the_manual_says() {
    if need_all(&["nbdkit"]) {
        check(pool::CASES);
    }
}

#[test]
fn commands_and_statistics_are_told_of_as_the_manual_says() {
    if need_all(&["nbdkit"]) {
        check(control::CASES);
        check(statistics::CASES);
    }
}

#[test]
fn quirks_are_told_of_as_the_manual_says() {
    if need_all(&["nbdkit"]) {
        check(quirks::CASES);
    }
}

#[test]
fn extents_that_cannot_be_had_are_told_as_the_manual_says() {
    if need_all(&["nbdkit"]) {
        check(maps::CASES);
    }
}

#[test]
fn comparison_sees_a_difference() {
    let item = Pattern::new("KEY: could not parse number: \"X\": ...", &BLANKS);
    assert!(item.is_in("retry: could not parse number: \"y\": bad"));
    assert!(!item.is_in("retry: could not parse a number: \"y\": bad"));
    let text = Pattern::new("DIR/...: no", &[]);
    assert!(text.is_all_of("DIR/a.sock: no"));
    assert!(!text.is_all_of("DIR/a.sock: no (really)"));
    assert!(!text.is_all_of("nbd: DIR/a.sock: no"));
}
