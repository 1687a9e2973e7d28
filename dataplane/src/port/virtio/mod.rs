//! What virtio network devices and the kernel's packet sockets have in common: the header ahead of each packet (`header`), and the merging of
//! small segments for a receiver that accepts large ones (`merge`).

pub(super) mod header;
pub(super) mod merge;
