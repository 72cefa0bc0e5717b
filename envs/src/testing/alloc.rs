//! An allocator that remembers the largest request, for tests of readers on damaged bytes: a test binary declares
//! `#[global_allocator] static ALLOCATOR: Largest = Largest;`.

#![expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; every call is passed on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator with a memory.
#[derive(Debug)]
pub struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// The largest request since the last call, bytes, over all threads.
pub fn take_largest() -> usize {
    LARGEST.swap(0, Ordering::Relaxed)
}

fn remember(size: usize) {
    LARGEST.fetch_max(size, Ordering::Relaxed);
}

// SAFETY: every method passes its arguments unchanged to `System`, which keeps the contract.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: the caller keeps `GlobalAlloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        remember(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        remember(new_size);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}
