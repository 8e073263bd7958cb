//! Random writers, and a server that is killed again and again: nothing that was acknowledged is lost, undone or
//! torn, and nbdkit lives on.

mod common;
#[path = "common/torture/mod.rs"]
mod torture;

use common::need;
use torture::ordeal::Ordeal;

#[test]
fn without_kills() {
    if !need("nbdkit") {
        return;
    }
    Ordeal {
        kills: 0,
        extra: &[],
        ..Ordeal::default()
    }
    .endure();
}

/// The control: where nobody replays, the same ordeal must find what is lost.
#[test]
fn finds_what_the_retry_filter_loses() {
    if !need("nbdkit") {
        return;
    }
    let complaints = Ordeal {
        kills: 2,
        extra: &[
            "--filter=retry",
            "retries=60",
            "retry-delay=1",
            "retry-exponential=no",
        ],
        ..Ordeal::default()
    }
    .suffer();
    assert!(!complaints.is_empty(), "nothing found");
    for complaint in complaints.iter().take(5) {
        println!("{complaint}");
    }
}
