// SPDX-License-Identifier: BSD-3-Clause
//! `command=` where the kernel has no `close_range` and `pidfd_open`, or a container forbids them.

mod common;

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use common::clients::LIMIT;
use common::nbdkit::{Nbdkit, plugin_args};
use common::need;
use common::started::{Place, end, script, size, strs};

/// Younger than Linux 5.1, all of them.
const YOUNG: [libc::c_long; 4] = [
    libc::SYS_close_range,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
];

/// Makes these system calls fail with ENOSYS, in the process that `command` becomes and all that it
/// starts.
fn forbid(command: &mut Command) {
    let mut filter = vec![operation(
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        // The number is the first member of seccomp_data.
        0,
        0,
    )];
    for (place, number) in YOUNG.iter().enumerate() {
        let number = u32::try_from(*number).expect("a system call");
        let to_the_end = u8::try_from(YOUNG.len() - place).expect("few");
        filter.push(operation(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            number,
            to_the_end,
        ));
    }
    let answer = libc::BPF_RET | libc::BPF_K;
    filter.push(operation(answer, libc::SECCOMP_RET_ALLOW, 0));
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    filter.push(operation(answer, no_such_call, 0));
    // SAFETY: `install` makes system calls only.
    unsafe { command.pre_exec(move || install(&filter)) };
}

fn operation(code: u32, operand: u32, jump: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(code).expect("operations are small numbers"),
        jt: jump,
        jf: 0,
        k: operand,
    }
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: takes plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program is valid for the call, and only read.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // A filter that does nothing would prove nothing.
    let ourselves = std::process::id();
    // SAFETY: takes plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, ourselves, 0) };
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOSYS) if fd == -1 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EDOM)),
    }
}

fn start(place: &Place) -> Nbdkit {
    let args = plugin_args(&strs(&script("exec nbdkit -f memory 1M")));
    Nbdkit::start_with(place.path(), &args, |command| {
        place.prepare(command);
        forbid(command);
    })
}

/// What the parent of the server, by process id, has open.
fn kept_open(server: &str) -> Vec<PathBuf> {
    let stat = fs::read_to_string(format!("/proc/{server}/stat")).expect("stat");
    let (_, behind_the_name) = stat.rsplit_once(')').expect("a name");
    let keeper = behind_the_name.split_whitespace().nth(1).expect("a parent");
    let name = fs::read_to_string(format!("/proc/{keeper}/comm")).expect("comm");
    assert_eq!(name, "nbd-keeper\n");
    let mut open: Vec<_> = fs::read_dir(format!("/proc/{keeper}/fd"))
        .expect("descriptors")
        .map(|entry| fs::read_link(entry.expect("an entry").path()).expect("open"))
        .collect();
    open.sort();
    open
}

#[test]
fn server_works_and_ends_with_nbdkit() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut front = start(&place);
    assert_eq!(size(&front), "1048576");
    let server = place.server();
    // Its own, and nothing of nbdkit's: three times the null device, two pipes and the line.
    let open = kept_open(place.file("pid").trim_end());
    let kinds: Vec<_> = open
        .iter()
        .map(|path| path.to_string_lossy().into_owned())
        .map(|path| path.split(':').next().unwrap_or_default().to_owned())
        .collect();
    let expected = [
        "/dev/null",
        "/dev/null",
        "/dev/null",
        "pipe",
        "pipe",
        "socket",
    ];
    assert_eq!(kinds, expected, "{open:?}");
    end(&mut front);
    server.is_gone();
    server.is_reaped();
    place.is_clean();
}

#[test]
fn server_of_a_killed_nbdkit_ends() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut front = start(&place);
    let server = place.server();
    front.signal(libc::SIGKILL);
    assert!(front.wait_timeout(LIMIT).is_some());
    server.is_gone();
    server.is_reaped();
    place.is_clean();
}

#[test]
fn server_that_dies_is_noticed() {
    if !need("nbdkit") {
        return;
    }
    let place = Place::new();
    let mut front = start(&place);
    let server = place.server();
    server.signal(libc::SIGKILL);
    server.is_gone();
    server.is_reaped();
    end(&mut front);
    place.is_clean();
}
