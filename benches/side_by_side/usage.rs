//! What a process has used, from the kernel's books.

use std::fs;
use std::io;
use std::mem::MaybeUninit;

/// CPU time of a process so far, seconds: its own threads, ended ones too, and its children that it has
/// waited for (the relay has a child for each connection).
pub fn cpu(pid: u32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/stat");
    let line = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let ticks = ticks(&line).ok_or_else(|| format!("{path}: not understood: {line}"))?;
    // SAFETY: sysconf takes a plain number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / per_second as f64)
}

/// utime, stime, cutime and cstime of a line of `/proc/PID/stat`, together.
pub fn ticks(line: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, which may have anything in it.
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // They are fields 14 to 17, and the third is the first after the name.
    let times = fields.get(11..15)?;
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
