//! The process's allocator: mimalloc. A write makes and drops hundreds of small texts: with the C library's allocator a
//! fifth of its time went there.
//!
//! The `mimalloc` crate asks for every block by its alignment. mimalloc 3 takes that for an unusual wish: it leaves its
//! fast path for blocks beyond a kilobyte and for sizes of which no free block is at hand, and asks for more than it needs
//! to align within. What every block of that size has anyway is not asked for here.
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys::{
    mi_free, mi_malloc, mi_malloc_aligned, mi_realloc, mi_realloc_aligned, mi_zalloc, mi_zalloc_aligned,
};

/// Bytes to which mimalloc aligns every block that is at least as large (`max_align_t`).
const ALIGNED: usize = 16;

pub struct Allocator;

fn is_plain(layout: &Layout) -> bool {
    layout.align() <= ALIGNED && layout.align() <= layout.size()
}

// SAFETY: mimalloc's blocks are valid for the size and the alignment that they were asked for by, until they are freed or
// reallocated; `is_plain` asks by size alone only where that implies the alignment. All blocks come from mimalloc, which
// finds out itself how one was asked for.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_plain(&layout) {
            // SAFETY: any size may be asked for.
            unsafe { mi_malloc(layout.size()).cast() }
        } else {
            // SAFETY: a layout's alignment is a power of two.
            unsafe { mi_malloc_aligned(layout.size(), layout.align()).cast() }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_plain(&layout) {
            // SAFETY: any size may be asked for.
            unsafe { mi_zalloc(layout.size()).cast() }
        } else {
            // SAFETY: a layout's alignment is a power of two.
            unsafe { mi_zalloc_aligned(layout.size(), layout.align()).cast() }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the block is one of ours, says who frees it.
        unsafe { mi_free(block.cast()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.align() <= ALIGNED && layout.align() <= size {
            // SAFETY: the block is one of ours, says who grows it.
            unsafe { mi_realloc(block.cast(), size).cast() }
        } else {
            // SAFETY: the same, and a layout's alignment is a power of two.
            unsafe { mi_realloc_aligned(block.cast(), size, layout.align()).cast() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_keep_what_they_hold() {
        for align in [1, 2, 4, 8, 16, 32, 128, 4096] {
            for size in [1, 3, 8, 16, 17, 24, 48, 100, 1000, 1025, 5000, 70_000, 2_000_000] {
                let layout = Layout::from_size_align(size, align).expect("a layout");
                // SAFETY: the blocks are written to and read from within their sizes, and freed once.
                unsafe {
                    let block = Allocator.alloc(layout);
                    assert_eq!(block as usize % align, 0, "{size} aligned to {align}");
                    block.write_bytes(7, size);
                    let block = Allocator.realloc(block, layout, size * 3);
                    assert_eq!(block as usize % align, 0, "{size} aligned to {align}, grown");
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 7));
                    Allocator.dealloc(block, Layout::from_size_align(size * 3, align).expect("a layout"));
                    let zeroed = Allocator.alloc_zeroed(layout);
                    assert_eq!(zeroed as usize % align, 0, "{size} aligned to {align}, zeroed");
                    assert!(std::slice::from_raw_parts(zeroed, size).iter().all(|byte| *byte == 0));
                    Allocator.dealloc(zeroed, layout);
                }
            }
        }
    }
}
