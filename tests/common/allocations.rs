// SPDX-License-Identifier: BSD-3-Clause
//! An allocator that counts, for a test program that makes it its own (`#[global_allocator]`).
//!
//! Not a part of `common/mod.rs`, as the other tests have nothing to count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, and a count for each thread.
pub struct Counting;

thread_local! {
    // Initialised at compile time and without a destructor: it is there whenever a thread allocates.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread allocates, or moves what it allocated, during `work`.
pub fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

fn note() {
    COUNT.set(COUNT.get() + 1);
}

// SAFETY: every method hands what it was given to the system's allocator and returns its answer, and
// the counter neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the same contract.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same contract.
        unsafe { System.dealloc(memory, layout) }
    }
}
