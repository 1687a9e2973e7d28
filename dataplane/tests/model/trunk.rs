//! How guests send by subports, and what they see of what these get.

use weft_proto::v1::{Objects, Trunk};

fn trunk<'o>(objects: &'o Objects, port: &str) -> Option<&'o Trunk> {
    let mut ports = objects.ports.iter();
    ports.find(|it| it.id == port)?.trunk.as_ref()
}

/// The port whose device a port's frames go by, and the frames there.
pub fn on_device(objects: &Objects, port: &str, frames: &[Vec<u8>]) -> (String, Vec<Vec<u8>>) {
    let Some(trunk) = trunk(objects, port) else {
        return (port.to_owned(), frames.to_vec());
    };
    let [high, low] = (trunk.vlan as u16).to_be_bytes();
    let tagged = frames.iter().map(|frame| {
        let mut frame = frame.clone();
        // What has no place for a tag goes as it is.
        if frame.len() >= 12 {
            frame.splice(12..12, [0x81, 0, high, low]);
        }
        frame
    });
    (trunk.parent.clone(), tagged.collect())
}

/// The port that a frame on a device is for, and the frame without its tag.
pub fn off_device(objects: &Objects, device: String, mut frame: Vec<u8>) -> (String, Vec<u8>) {
    let Some([0x81, 0, high, low]) = frame.get(12..16) else {
        return (device, frame);
    };
    let vlan = u32::from(u16::from_be_bytes([*high, *low]));
    let mut ports = objects.ports.iter();
    let subport = ports.find(|port| {
        let trunk = port.trunk.as_ref();
        trunk.is_some_and(|trunk| trunk.parent == device && trunk.vlan == vlan)
    });
    match subport {
        Some(port) => {
            frame.drain(12..16);
            (port.id.clone(), frame)
        }
        None => (device, frame),
    }
}

/// A frame without its tag, if it has one.
pub fn untagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame.get(12..14) == Some(&[0x81, 0]) && frame.len() >= 16 {
        frame.drain(12..16);
    }
    frame
}
