// SPDX-License-Identifier: BSD-3-Clause
//! What is counted, and when.

use std::time::Instant;

use super::*;

#[test]
fn lists_are_in_the_order_that_indexes_them() {
    for (index, asked) in Asked::ALL.into_iter().enumerate() {
        assert_eq!(asked as usize, index);
    }
    for (index, event) in Event::ALL.into_iter().enumerate() {
        assert_eq!(event as usize, index);
    }
}

#[test]
fn requests_are_counted_when_they_are_over() {
    let stats = Stats::default();
    let [first, second] = [stats.begin(), stats.begin()];
    assert_eq!(stats.snapshot().in_flight, 2);
    assert_eq!(first.end(Asked::Read, 0, 4096, None), None);
    assert_eq!(second.end(Asked::Read, 0, 4096, Some(libc::EIO)), None);
    let third = stats.begin();
    assert_eq!(third.end(Asked::Write, 0, 1, Some(libc::EXDEV)), None);
    drop(stats.begin());

    let snapshot = stats.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.in_flight_max), (0, 2));
    let read = snapshot.command(Asked::Read);
    assert_eq!((read.requests, read.failed, read.bytes), (2, 1, 4096));
    let write = snapshot.command(Asked::Write);
    assert_eq!((write.requests, write.failed, write.bytes), (1, 1, 0));
    assert_eq!(snapshot.times.server.count, 3);
    let told: Vec<_> = ERRNOS.iter().zip(snapshot.errors).collect();
    for ((name, _), count) in told {
        let expected = u64::from(["EIO", "other"].contains(name));
        assert_eq!(count, expected, "{name}");
    }
}

#[test]
fn the_two_times_are_all_the_time() {
    let stats = Stats::default();
    let before = Instant::now();
    let running = stats.begin();
    at_server(1);
    at_server(2);
    running.end(Asked::Read, 0, 1, None);
    let most = before.elapsed();
    // What another request was told of is not this one's.
    stats.begin().end(Asked::Flush, 0, 0, None);
    let snapshot = stats.snapshot();
    let times = snapshot.command(Asked::Read).times;
    assert_eq!(times.server.max, Duration::from_nanos(3));
    assert!(times.queue.max + times.server.max <= most);
    let times = snapshot.command(Asked::Flush).times;
    assert_eq!(times.server.max, Duration::ZERO);
}

#[test]
fn what_takes_long_is_told_as_long_as_that_is_wanted() {
    let stats = Stats::default();
    let one = || stats.begin().end(Asked::Trim, 7, 9, None);
    assert_eq!(one(), None);
    stats.set_slow(Some(Duration::ZERO));
    let slow = one().expect("everything is slow");
    assert_eq!((slow.asked, slow.offset, slow.length), (Asked::Trim, 7, 9));
    stats.set_slow(Some(Duration::from_secs(1 << 40)));
    assert_eq!(one(), None, "slower than any");
    stats.set_slow(None);
    assert_eq!(one(), None);
    assert_eq!(stats.snapshot().event(Event::Slow), 1);
}
