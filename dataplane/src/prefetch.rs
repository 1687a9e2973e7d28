//! A hint to the processor.

#![allow(unsafe_code)]

/// Brings the cache line where a value begins towards the cache; does nothing where there is no such instruction.
#[inline]
pub fn prefetch<T: ?Sized>(place: &T) {
    prefetch_address(std::ptr::from_ref(place).cast());
}

/// The same for an address, which need not be mapped.
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
