//! Handles the monitor's messages (the vhost-user protocol): features, memory, rings.
//!
//! Every change first takes the rings concerned away from their worker and returns them afterwards. The worker sees a consistent state or no
//! ring.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::link::{Active, Link, Setup};
use super::memory::{DirtyLog, GuestMemory, Layout, MAX_REGIONS, Region};
use crate::port::event::Event;
use crate::port::virtio::header::feature;

/// What we offer a guest.
pub(super) const FEATURES: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::MTU
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::MRG_RXBUF
    | feature::GUEST_ANNOUNCE
    | feature::MQ
    | feature::LOG_ALL
    | feature::ANY_LAYOUT
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::PROTOCOL_FEATURES
    | feature::VERSION_1
    | feature::RING_PACKED
    | feature::IN_ORDER
    | feature::GUEST_USO4
    | feature::GUEST_USO6
    | feature::HOST_USO;

/// A ring as the monitor has described it so far.
#[derive(Debug, Default)]
struct RingState {
    size: u16,
    /// Addresses of the descriptors, the driver's part, ours; and what our part is called in the log.
    addresses: Option<([u64; 3], Option<u64>)>,
    base: u32,
    call: Option<Arc<Event>>,
    kick: Option<Arc<Event>>,
    error: Option<Arc<Event>>,
    started: bool,
    enabled: bool,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Control {
    links: Vec<Arc<Link>>,
    /// What each worker was given, kept until it has released it, so that the worker does not unmap memory.
    active: Vec<Option<Arc<Active>>>,
    rings: Vec<RingState>,
    regions: Vec<Arc<Region>>,
    log: Option<Arc<DirtyLog>>,
    features: u64,
}

fn file_event(file: Option<File>) -> Option<Arc<Event>> {
    file.map(|file| Arc::new(Event::adopt(file.into())))
}

impl Control {
    /// A connection that may use these queue pairs.
    pub(super) fn new(links: Vec<Arc<Link>>) -> Self {
        Self {
            active: links.iter().map(|_| None).collect(),
            rings: links
                .iter()
                .flat_map(|_| [RingState::default(), RingState::default()])
                .collect(),
            links,
            regions: Vec::new(),
            log: None,
            features: 0,
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut RingState> {
        self.rings
            .get_mut(index as usize)
            .ok_or(Error::InvalidParam)
    }

    /// Takes the rings of a queue pair away from the worker.
    fn pause(&mut self, pair: usize) {
        let Some(active) = self.active[pair].take() else {
            return;
        };
        let link = &self.links[pair];
        link.set(None);
        for (number, setup) in active.rings.iter().enumerate() {
            if setup.is_some() {
                self.rings[2 * pair + number].base = link.base(number);
            }
        }
    }

    /// Gives the worker the rings of a queue pair that are complete.
    fn resume(&mut self, pair: usize) {
        let setup = |ring: &RingState| {
            let ([descriptors, driver, device], log) = ring.addresses?;
            (ring.started && ring.enabled && ring.size > 0).then(|| Setup {
                size: ring.size,
                descriptors,
                driver,
                device,
                log: log.filter(|_| self.features & feature::LOG_ALL != 0),
                base: ring.base,
                packed: self.features & feature::RING_PACKED != 0,
                event_index: self.features & feature::EVENT_IDX != 0,
                indirect: self.features & feature::INDIRECT_DESC != 0,
                call: ring.call.clone(),
                kick: ring.kick.clone(),
                error: ring.error.clone(),
            })
        };
        let rings = [
            setup(&self.rings[2 * pair]),
            setup(&self.rings[2 * pair + 1]),
        ];
        if rings.iter().all(Option::is_none) {
            return;
        }
        let log = self
            .log
            .clone()
            .filter(|_| self.features & feature::LOG_ALL != 0);
        tracing::debug!(
            pair,
            features = format!("{:#x}", self.features),
            ?rings,
            "a guest's rings"
        );
        let active = Arc::new(Active {
            memory: GuestMemory::new(self.regions.clone(), log),
            features: self.features,
            rings,
        });
        self.active[pair] = Some(Arc::clone(&active));
        self.links[pair].set(Some(active));
    }

    /// Changes something that concerns one ring.
    fn change_ring(&mut self, index: u32, change: impl FnOnce(&mut RingState)) -> Result<()> {
        self.ring(index)?;
        let pair = index as usize / 2;
        self.pause(pair);
        change(self.ring(index)?);
        self.resume(pair);
        Ok(())
    }

    /// Changes something that concerns all rings.
    fn change_all(&mut self, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        for pair in 0..self.links.len() {
            self.pause(pair);
        }
        let result = change(self);
        for pair in 0..self.links.len() {
            self.resume(pair);
        }
        result
    }

    /// Takes everything away: the connection is over.
    pub(super) fn close(&mut self) {
        for pair in 0..self.links.len() {
            self.pause(pair);
        }
    }
}

fn layout(region: &VhostUserMemoryRegion) -> Layout {
    Layout {
        guest: region.guest_phys_addr,
        monitor: region.user_addr,
        size: region.memory_size,
        offset: region.mmap_offset,
    }
}

fn map(region: &VhostUserMemoryRegion, file: &File) -> Result<Arc<Region>> {
    let region = Region::map(layout(region), file).map_err(Error::ReqHandlerError)?;
    Ok(Arc::new(region))
}

impl VhostUserBackendReqHandlerMut for Control {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.close();
        for ring in &mut self.rings {
            *ring = RingState::default();
        }
        self.features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.change_all(|control| {
            control.features = features;
            if features & feature::PROTOCOL_FEATURES == 0 {
                // Then rings are enabled from the beginning.
                for ring in &mut control.rings {
                    ring.enabled = true;
                }
            }
            Ok(())
        })
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mapped: Result<Vec<_>> = regions
            .iter()
            .zip(&files)
            .map(|(region, file)| map(region, file))
            .collect();
        let mapped = mapped?;
        self.change_all(|control| {
            control.regions = mapped;
            Ok(())
        })?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let size = u16::try_from(size)
            .ok()
            .filter(|size| (1..=0x8000).contains(size))
            .ok_or(Error::InvalidParam)?;
        self.change_ring(index, |ring| ring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let log = flags
            .contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG)
            .then_some(log);
        self.change_ring(index, |ring| {
            ring.addresses = Some(([descriptor, available, used], log));
        })
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.change_ring(index, |ring| ring.base = base)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.change_ring(index, |ring| {
            ring.started = false;
            ring.kick = None;
            ring.call = None;
        })?;
        let base = self.ring(index)?.base;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.change_ring(index.into(), |ring| {
            ring.kick = file_event(file);
            ring.started = true;
        })
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.change_ring(index.into(), |ring| ring.call = file_event(file))?;
        // What was given back before there was somebody to call is not forgotten.
        if let Some(call) = &self.ring(index.into())?.call {
            call.signal();
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.change_ring(index.into(), |ring| ring.error = file_event(file))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.links.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.change_ring(index, |ring| ring.enabled = enable)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log =
            DirtyLog::map(&file, log.mmap_offset, log.mmap_size).map_err(Error::ReqHandlerError)?;
        self.change_all(|control| {
            control.log = Some(Arc::new(log));
            Ok(())
        })
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(Error::InvalidParam);
        }
        let mapped = map(region, &file)?;
        self.change_all(|control| {
            control.regions.push(mapped);
            Ok(())
        })?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let gone = layout(region);
        self.change_all(|control| {
            let before = control.regions.len();
            control.regions.retain(|region| {
                let layout = region.layout();
                (layout.guest, layout.monitor, layout.size) != (gone.guest, gone.monitor, gone.size)
            });
            if control.regions.len() == before {
                Err(Error::InvalidParam)
            } else {
                Ok(())
            }
        })
    }

    // What follows belongs to features that are not offered, so that the library refuses the messages before they come here.

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidOperation("no configuration space"))
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("no configuration space"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("no graphics device"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("nothing is ever in flight"))
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidOperation("nothing is ever in flight"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("no state of its own"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("no state of its own"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }
}
