//! Cache prefetch hints.

#![allow(unsafe_code)]

/// Brings the cache line where a value begins towards the cache; does nothing where there is no such instruction.
#[inline]
pub fn prefetch<T: ?Sized>(place: &T) {
    prefetch_address(std::ptr::from_ref(place).cast());
}

/// Brings the cache line of an address towards the cache to be written, so that no other core has it; the address need not be mapped.
#[inline]
pub fn prefetch_to_write(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // Spelled out, since the compiler makes a plain prefetch of the hint unless it may count on the instruction.
    // SAFETY: PREFETCHW never faults, whatever the address, and changes nothing but caches; processors that lack it take it for no operation.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Brings the cache line of an address towards the cache; the address need not be mapped.
#[inline]
pub fn prefetch_address(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 never faults, whatever the address, and changes nothing but caches.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
