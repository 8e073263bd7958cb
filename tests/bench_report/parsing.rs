// SPDX-License-Identifier: BSD-3-Clause
//! What other programs and the kernel say is understood.

use std::time::{Duration, Instant};
use std::{process, thread};

use crate::{calls, fio, usage};

#[test]
fn fio_output_is_understood() {
    let text = r#"fio: connected to NBD server
{ "fio version" : "fio-3.33", "jobs" : [ { "error" : 0, "mixed" : {
    "iops" : 21586.25, "total_ios" : 43302, "runtime" : 2006, "clat_ns" : { "percentile" : {
        "50.000000" : 228352, "99.000000" : 18219008 } } } } ] }"#;
    let sample = fio::parse(text).expect("figures");
    assert_eq!(sample.rate, 21586.25);
    assert_eq!((sample.requests, sample.seconds), (43302, 2.006));
    assert_eq!((sample.p50, sample.p99), (Some(228.352), Some(18219.008)));
}

#[test]
fn fio_failures_are_no_figures() {
    for text in [
        "",
        "fio: connected to NBD server\n",
        "{",
        r#"{"jobs":[{"error":5}]}"#,
        r#"{"jobs":[{"error":0,"mixed":{"iops":1.0}}]}"#,
        r#"{"jobs":[]}"#,
    ] {
        assert!(fio::parse(text).is_err(), "{text}");
    }
}

#[test]
fn times_of_a_process_follow_its_name() {
    let line =
        "5523 (nbd) kit (x) S 5520 5520 3293 0 -1 4194304 144714 7 0 0 32 188 4 1 20 0 1 0 69208";
    assert_eq!(usage::ticks_of_children(line), Some(4 + 1));
    assert_eq!(usage::ticks_of_children("5523 (nbdkit) S 1 2"), None);
}

#[test]
fn the_time_of_a_process_is_that_of_all_its_threads() {
    let cpu = || usage::cpu(process::id()).expect("our own clock");
    let (before, begun) = (cpu(), Instant::now());
    let work = move || while begun.elapsed() < Duration::from_millis(50) {};
    thread::spawn(work).join().expect("it only counts");
    let used = cpu() - before;
    // The tests beside this one use some too.
    assert!(used > 0.001, "{used} s");
}

#[test]
fn peak_memory_is_found() {
    let status = "Name:\tnbdkit\nVmPeak:\t 1261364 kB\nVmHWM:\t    7384 kB\nVmRSS:\t 7000 kB\n";
    assert_eq!(usage::hwm(status), Some(7384));
    assert_eq!(usage::hwm("Name:\tkthreadd\n"), None);
}

#[test]
fn system_calls_are_found() {
    let strace = "% time     seconds  usecs/call     calls    errors syscall\n\
        ------ ----------- ----------- --------- --------- ----------------\n \
        97.10    2.654            423      6000       259 futex\n\
        100.00    2.728654         423      6441       259 total\n";
    assert_eq!(calls::strace_calls(strace), Some(6441));
    assert_eq!(calls::strace_calls(""), None);
    let perf = "# started on Sun Nov 22\n\n151133,,raw_syscalls:sys_enter,471087564,100.00,,\n";
    assert_eq!(calls::perf_calls(perf), Some(151_133));
    let refused = "<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n";
    assert_eq!(calls::perf_calls(refused), None);
}
