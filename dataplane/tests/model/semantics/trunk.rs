//! Subports: a VLAN on another port's device is a port of its own.

use weft_dataplane::packet::DropReason;
use weft_proto::v1;

use super::Outcome;
use super::frame::word;
use super::world::World;

/// The VLAN of a frame; 0 for none, and for a priority alone.
fn vlan(frame: &[u8]) -> u16 {
    if frame.len() >= 16 && word(frame, 12) == 0x8100 {
        word(frame, 14) & 0xfff
    } else {
        0
    }
}

/// Whose frames these are that a device brings, those of one VLAN together, without its tag.
pub fn owners<'w>(
    world: &'w World,
    device: &'w v1::Port,
    frames: &[Vec<u8>],
) -> Vec<(Result<&'w v1::Port, DropReason>, Vec<u8>)> {
    let World(objects, ..) = world;
    let on_device = |port: &&v1::Port| {
        let trunk = port.trunk.as_ref();
        trunk.is_some_and(|trunk| trunk.parent == device.id)
    };
    let subports: Vec<&v1::Port> = objects.ports.iter().filter(on_device).collect();
    if subports.is_empty() {
        return frames.iter().map(|it| (Ok(device), it.clone())).collect();
    }
    let mut vlans: Vec<u16> = Vec::new();
    for frame in frames {
        if !vlans.contains(&vlan(frame)) {
            vlans.push(vlan(frame));
        }
    }
    let mut owned = Vec::new();
    for one in vlans {
        let has = |port: &&&v1::Port| {
            let trunk = port.trunk.as_ref();
            trunk.is_some_and(|trunk| trunk.vlan == u32::from(one))
        };
        for frame in frames.iter().filter(|frame| vlan(frame) == one) {
            let mut frame = frame.clone();
            let port = match one {
                0 => Ok(device),
                _ => {
                    frame.drain(12..16);
                    let subport = subports.iter().find(has);
                    subport.copied().ok_or(DropReason::UnknownVlan)
                }
            };
            owned.push((port, frame));
        }
    }
    owned
}

/// What ports get, as it is on their devices.
pub fn on_devices(world: &World, outcome: &mut Outcome) {
    for (id, ..) in &mut outcome.whole {
        if let Some(trunk) = world.port(id).and_then(|port| port.trunk.as_ref()) {
            id.clone_from(&trunk.parent);
        }
    }
    for (id, frame) in &mut outcome.delivered {
        if let Some(trunk) = world.port(id).and_then(|port| port.trunk.as_ref()) {
            id.clone_from(&trunk.parent);
            let [high, low] = (trunk.vlan as u16).to_be_bytes();
            frame.splice(12..12, [0x81, 0, high, low]);
        }
    }
}
