// SPDX-License-Identifier: BSD-3-Clause
//! What a process has used, from the kernel's books.

use std::fs;
use std::io;
use std::mem::MaybeUninit;

/// CPU time of a process so far, seconds: its own threads, ended ones too, and its children that it has
/// waited for (the relay has a child for each connection).
///
/// Its own time is by its clock, in nanoseconds: `/proc/PID/stat` counts in hundredths of a second, which
/// would be two in a hundred of a short turn.
pub fn cpu(pid: u32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/stat");
    let line = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let ticks =
        ticks_of_children(&line).ok_or_else(|| format!("{path}: not understood: {line}"))?;
    // SAFETY: sysconf takes a plain number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let own = clock(pid).map_err(|error| format!("the clock of process {pid}: {error}"))?;
    Ok(own + ticks as f64 / per_second as f64)
}

/// What the CPU clock of a process shows, seconds.
fn clock(pid: u32) -> Result<f64, io::Error> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the clock's number goes where there is room for it.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: clock_gettime fills the structure that it is given the address of.
    if unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it succeeded, so all of it is filled.
    let time = unsafe { time.assume_init() };
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// cutime and cstime of a line of `/proc/PID/stat`, together.
pub fn ticks_of_children(line: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, which may have anything in it.
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // They are fields 16 and 17, and the third is the first after the name.
    let times = fields.get(13..15)?;
    times.iter().map(|field| field.parse::<u64>().ok()).sum()
}

/// The most memory that a process ever had, KiB.
pub fn peak(pid: u32) -> Option<u64> {
    hwm(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// VmHWM of `/proc/PID/status`.
pub fn hwm(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Context switches of all our children that have ended, with all their threads. The files of threads
/// would not do: nbdkit's threads end with their connection, and their files with them.
pub fn switches_of_ended_children() -> Result<i64, io::Error> {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: getrusage fills the structure that it is given the address of.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it succeeded, so all of it is filled.
    let usage = unsafe { usage.assume_init() };
    Ok(usage.ru_nvcsw + usage.ru_nivcsw)
}
