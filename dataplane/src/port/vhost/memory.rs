//! A guest's memory as its monitor shares it: regions of files that are mapped here, and the translation of the guest's addresses.
//!
//! The guest may change it at any time, so there are no references to it. Each value is read or written once, through pointers.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::guard::Guard;

/// Regions that a monitor may share: as many as the protocol has room for.
pub(super) const MAX_REGIONS: usize = 32;
/// Bytes that one bit of the dirty log stands for (vhost-user: "log page size").
const LOG_PAGE: u64 = 4096;

/// One region as the monitor describes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Where the guest sees it.
    pub(super) guest: u64,
    /// Where the monitor sees it.
    pub(super) monitor: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Where in the file it begins.
    pub(super) offset: u64,
}

/// A mapped region.
#[derive(Debug)]
pub(super) struct Region {
    layout: Layout,
    base: *mut u8,
    // Dropped before the mapping that it guards.
    guard: Guard,
    _mapping: Mapping,
}

// SAFETY: the pointer is into a shared mapping that lives as long as the region; access through it is by raw copies and atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps a region of a file.
    ///
    /// # Errors
    /// The file is too short for it, or the kernel refuses.
    pub(super) fn map(layout: Layout, file: &File) -> io::Result<Self> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
        let end = layout.offset.checked_add(layout.size);
        let end = end.ok_or_else(|| invalid("a region that ends past the last address"))?;
        if layout.size == 0
            || layout.guest.checked_add(layout.size).is_none()
            || layout.monitor.checked_add(layout.size).is_none()
        {
            return Err(invalid("a region without size, or past the last address"));
        }
        let meta = file.metadata()?;
        if meta.len() < end {
            return Err(invalid("a region past the end of its file"));
        }
        // Huge pages can only be mapped whole, and from the beginning of one.
        let page = meta.blksize().max(4096);
        let len = end
            .checked_next_multiple_of(page)
            .and_then(|len| usize::try_from(len).ok())
            .ok_or_else(|| invalid("a region too large"))?;
        let mapping = Mapping::new(file, len)?;
        let guard = Guard::new(mapping.base.addr(), len)?;
        Ok(Self {
            // Within the mapping, which is `end` bytes at least.
            base: mapping.base.wrapping_add(layout.offset as usize),
            layout,
            guard,
            _mapping: mapping,
        })
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }
}

/// Memory mapped from a file.
#[derive(Debug)]
struct Mapping {
    base: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: base.cast(),
            len,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and nothing uses it any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// The pages that we have written, for a monitor that moves its guest to another host.
#[derive(Debug)]
pub(super) struct DirtyLog {
    base: *const AtomicU8,
    len: u64,
    _guard: Guard,
    _mapping: Mapping,
}

// SAFETY: the pointer is into a shared mapping that lives as long as the log; access is atomic.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps the log.
    ///
    /// # Errors
    /// The file is too short, or the kernel refuses.
    pub(super) fn map(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let end = offset
            .checked_add(len)
            .filter(|_| len > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if file.metadata()?.len() < end {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let whole = usize::try_from(end.next_multiple_of(LOG_PAGE))
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let mapping = Mapping::new(file, whole)?;
        let guard = Guard::new(mapping.base.addr(), whole)?;
        Ok(Self {
            base: mapping.base.wrapping_add(offset as usize).cast(),
            len,
            _guard: guard,
            _mapping: mapping,
        })
    }

    /// Marks what was written. Addresses past the log are none of the guest's.
    pub(super) fn mark(&self, guest: u64, len: u64) {
        let Some(last) = guest.checked_add(len.saturating_sub(1)) else {
            return;
        };
        for page in guest / LOG_PAGE..=last / LOG_PAGE {
            if page / 8 < self.len {
                // SAFETY: within the log, as was just checked.
                let byte = unsafe { &*self.base.add((page / 8) as usize) };
                byte.fetch_or(1 << (page % 8), Ordering::Relaxed);
            }
        }
    }
}

/// A guest's whole memory.
#[derive(Debug, Default)]
pub(super) struct GuestMemory {
    regions: Vec<Arc<Region>>,
    /// Where written pages are recorded, if requested.
    pub(super) log: Option<Arc<DirtyLog>>,
}

impl GuestMemory {
    /// Memory of these regions.
    pub(super) fn new(regions: Vec<Arc<Region>>, log: Option<Arc<DirtyLog>>) -> Self {
        Self { regions, log }
    }

    /// Where `len` bytes at the guest's address `at` lie, if they are in one region.
    #[inline(always)]
    pub(super) fn translate(&self, at: u64, len: usize) -> Option<*mut u8> {
        for region in &self.regions {
            let offset = at.wrapping_sub(region.layout.guest);
            if offset < region.layout.size && len as u64 <= region.layout.size - offset {
                return Some(region.base.wrapping_add(offset as usize));
            }
        }
        None
    }

    /// Where the guest's address `at` lies, and how many bytes from there on are in the same region.
    pub(super) fn reach(&self, at: u64) -> Option<(*mut u8, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = at.wrapping_sub(region.layout.guest);
            (offset < region.layout.size).then(|| {
                (
                    region.base.wrapping_add(offset as usize),
                    region.layout.size - offset,
                )
            })
        })
    }

    /// Where `len` bytes at the monitor's address `at` lie, and what the guest calls that place.
    pub(super) fn of_monitor(&self, at: u64, len: usize) -> Option<(*mut u8, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = at.wrapping_sub(region.layout.monitor);
            (offset < region.layout.size && len as u64 <= region.layout.size - offset).then(|| {
                (
                    region.base.wrapping_add(offset as usize),
                    region.layout.guest + offset,
                )
            })
        })
    }

    /// Whether a part of it has vanished.
    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        self.regions.iter().any(|region| region.guard.is_gone())
    }

    /// Records a write to the guest's memory.
    #[inline(always)]
    pub(super) fn written(&self, guest: u64, len: usize) {
        if let Some(log) = &self.log {
            log.mark(guest, len as u64);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::fd::FromRawFd;

    use super::*;

    /// A file in memory.
    pub(crate) fn memfd(len: u64) -> File {
        // SAFETY: a plain system call; the descriptor that it returns is new and nothing else owns it.
        let file = unsafe {
            let descriptor = libc::memfd_create(c"weft-test".as_ptr(), libc::MFD_CLOEXEC);
            assert!(descriptor >= 0);
            File::from_raw_fd(descriptor)
        };
        file.set_len(len).unwrap();
        file
    }

    /// Memory of one region from the guest's address 0, which the monitor has at 1 << 40.
    pub(crate) fn shared(len: u64) -> (File, GuestMemory) {
        let file = memfd(len);
        let layout = Layout {
            guest: 0,
            monitor: 1 << 40,
            size: len,
            offset: 0,
        };
        let region = Region::map(layout, &file).unwrap();
        (file, GuestMemory::new(vec![Arc::new(region)], None))
    }

    #[test]
    fn addresses_are_translated_within_one_region_only() {
        let file = memfd(0x3000);
        let region = |guest, size, offset| {
            let layout = Layout {
                guest,
                monitor: guest.wrapping_add(1 << 40),
                size,
                offset,
            };
            Region::map(layout, &file).map(Arc::new)
        };
        let regions = vec![
            region(0, 0x1000, 0).unwrap(),
            region(0x1000, 0x2000, 0x1000).unwrap(),
        ];
        let memory = GuestMemory::new(regions, None);
        assert!(memory.translate(0, 0x1000).is_some());
        assert!(memory.translate(0xfff, 2).is_none());
        assert!(memory.translate(0x1000, 0x2000).is_some());
        assert!(memory.translate(0x1001, 0x2000).is_none());
        assert!(memory.translate(u64::MAX, 1).is_none());
        assert_eq!(memory.reach(0xffe).unwrap().1, 2);
        let (at, guest) = memory.of_monitor((1 << 40) + 0x1800, 8).unwrap();
        assert_eq!(guest, 0x1800);
        assert_eq!(Some(at), memory.translate(0x1800, 8));
        for (size, offset) in [(0, 0), (0x1000, 0x2001), (u64::MAX, 1), (0x4000, 0)] {
            assert!(region(0x8000, size, offset).is_err());
        }
        assert!(region(u64::MAX - 1, 0x1000, 0).is_err());
    }

    #[test]
    fn what_is_written_is_marked_in_the_log() {
        let file = memfd(4096);
        let log = DirtyLog::map(&file, 0, 16).unwrap();
        log.mark(0x1fff, 2);
        log.mark(127 * 4096, 4096);
        log.mark(128 * 4096, 4096);
        log.mark(u64::MAX, 2);
        let mut bytes = [0u8; 17];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert_eq!((bytes[0], bytes[15], bytes[16]), (0b110, 0x80, 0));
        assert!(DirtyLog::map(&file, 4096, 16).is_err());
    }
}
