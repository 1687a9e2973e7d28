//! What virtio network devices and the kernel's packet sockets have in common: the header that stands ahead of each packet (`header`), and
//! large segments made of many small ones for whoever takes them whole (`merge`).

pub(super) mod header;
pub(super) mod merge;
