//! A guest's network card as qemu is told of it, on the command line and over the monitor alike.

use std::path::PathBuf;

use serde_json::{Value, json};

/// What is behind a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A tap that exists already.
    Tap {
        /// The interface, in the namespace that the guest runs in.
        interface: String,
    },
    /// Rings shared with a switch.
    VhostUser {
        /// The path of the socket.
        socket: PathBuf,
        /// Whether the guest's machine listens there and the switch connects, which lets the guest outlive the switch; else it is the other way round.
        listen: bool,
    },
}

/// Which card qemu shows to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Card {
    /// virtio-net, as most clouds have it.
    #[default]
    Virtio,
    /// VMware's: of what else qemu has, the one whose driver has native XDP and takes VLAN tags out of frames. Only what [`NicFeatures::queues`]
    /// says of its back end is used.
    Vmxnet3,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its name at the monitor.
    pub id: String,
    /// Its address.
    pub mac: String,
    /// What is behind it.
    pub backend: Backend,
    /// What it offers.
    pub features: NicFeatures,
}

/// What a card offers to the guest's driver. The back end may refuse any of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicFeatures {
    /// The card. All below is of virtio-net.
    pub card: Card,
    /// Pairs of queues.
    pub queues: u16,
    /// Entries of a ring, a power of two of at most 1024.
    pub ring_size: u16,
    /// Packed rings instead of split ones.
    pub packed: bool,
    /// A received packet may lie in several buffers.
    pub mergeable: bool,
    /// Descriptors may be in tables of their own.
    pub indirect: bool,
    /// Notifications are asked for by index.
    pub event_index: bool,
    /// Checksums may be left to the other side, both ways.
    pub checksum: bool,
    /// TCP segments may be larger than packets, both ways.
    pub segmentation: bool,
    /// Frames of VLANs that the driver does not name are kept from it.
    pub vlan_filter: bool,
    /// Whether the driver is notified when the link is down, as it is while a vhost-user switch restarts.
    pub link_status: bool,
    /// The MTU that the driver is given.
    pub mtu: Option<u16>,
}

impl Default for NicFeatures {
    fn default() -> Self {
        Self {
            card: Card::Virtio,
            queues: 1,
            ring_size: 256,
            packed: false,
            mergeable: true,
            indirect: true,
            event_index: true,
            checksum: true,
            segmentation: true,
            vlan_filter: true,
            link_status: true,
            mtu: None,
        }
    }
}

impl Nic {
    /// The socket that qemu is to have for it: the monitor's `chardev-add`, and the command line's `-chardev`.
    pub(super) fn socket(&self) -> Option<(Value, String)> {
        let Backend::VhostUser { socket, listen } = &self.backend else {
            return None;
        };
        let (id, path) = (format!("{}-socket", self.id), socket.display());
        // A client tries again every second for as long as it takes.
        let (more, data) = if *listen {
            (
                "server=on,wait=off",
                json!({ "server": true, "wait": false }),
            )
        } else {
            ("reconnect=1", json!({ "server": false, "reconnect": 1 }))
        };
        let mut data = data;
        data["addr"] = json!({ "type": "unix", "data": { "path": path.to_string() } });
        Some((
            json!({ "id": id, "backend": { "type": "socket", "data": data } }),
            format!("socket,id={id},path={path},{more}"),
        ))
    }

    /// The host's side: `netdev_add`, and `-netdev`.
    pub(super) fn netdev(&self) -> Value {
        let id = format!("{}-back", self.id);
        let multiqueue = self.features.queues > 1;
        match &self.backend {
            Backend::Tap { interface } => {
                let mut netdev = json!({
                    "id": id, "type": "tap", "ifname": interface, "script": "no", "downscript": "no", "vhost": false,
                });
                if multiqueue {
                    netdev["queues"] = self.features.queues.into();
                }
                netdev
            }
            Backend::VhostUser { .. } => {
                let mut netdev = json!({
                    "id": id, "type": "vhost-user", "chardev": format!("{}-socket", self.id), "vhostforce": true,
                });
                if multiqueue {
                    netdev["queues"] = self.features.queues.into();
                }
                netdev
            }
        }
    }

    /// The guest's side: `device_add`, and `-device`.
    pub(super) fn device(&self) -> Value {
        let back = format!("{}-back", self.id);
        if self.features.card == Card::Vmxnet3 {
            return json!({
                "driver": "vmxnet3", "id": self.id, "netdev": back, "mac": self.mac, "romfile": "",
            });
        }
        let NicFeatures {
            card: _,
            queues,
            ring_size,
            packed,
            mergeable,
            indirect,
            event_index,
            checksum,
            segmentation,
            vlan_filter,
            link_status,
            mtu,
        } = self.features;
        let mut device = json!({
            "driver": "virtio-net-pci", "id": self.id, "netdev": back, "mac": self.mac, "ctrl_vlan": vlan_filter,
            "disable-legacy": "on", "romfile": "", "packed": packed, "mrg_rxbuf": mergeable, "indirect_desc": indirect,
            "event_idx": event_index, "csum": checksum, "guest_csum": checksum, "mq": queues > 1, "status": link_status,
            "rx_queue_size": ring_size,
        });
        for name in [
            "host_tso4",
            "host_tso6",
            "host_ufo",
            "host_ecn",
            "guest_tso4",
            "guest_tso6",
            "guest_ufo",
            "guest_ecn",
            "gso",
        ] {
            device[name] = (segmentation && checksum && name != "gso").into();
        }
        if let Some(mtu) = mtu {
            device["host_mtu"] = mtu.into();
        }
        if matches!(self.backend, Backend::VhostUser { .. }) {
            // A tap's sending ring is 256 entries at most.
            device["tx_queue_size"] = ring_size.into();
            // Without this, qemu 7.2 crashes under its translator when the driver starts.
            device["vectors"] = 0.into();
        }
        device
    }
}
