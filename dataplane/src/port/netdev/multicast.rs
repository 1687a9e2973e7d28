//! Receiving frames to all multicast addresses, and to MACs of others. The solicitations of neighbour discovery go to a group that depends on the address asked for
//! (RFC 4291 §2.7.1). The kernel does not have the addresses that weft holds on a segment, so it joins none of their groups, and a card that
//! filters would keep them out. So it would with frames to the MACs of ports on an external network.

use super::packet_socket::PacketSocket;
use crate::port::{Interface, PortError};

/// An interface that receives frames to all multicast addresses, until this is dropped.
#[derive(Debug)]
pub struct AllMulticast {
    _socket: PacketSocket,
}

impl AllMulticast {
    /// Has the interface receive them, beside what it receives anyway.
    ///
    /// # Errors
    /// It is not there, or the kernel refuses.
    pub fn enable(name: &str) -> Result<Self, PortError> {
        let index = Interface::lookup(name)?.index;
        let joined = PacketSocket::sender(index).and_then(|socket| {
            socket.receive_all_multicast(index)?;
            Ok(socket)
        });
        let socket = joined.map_err(|source| {
            let what = format!("interface {name}: receiving all multicast addresses");
            PortError::from_io(what, "CAP_NET_RAW and CAP_NET_ADMIN", source)
        })?;
        Ok(Self { _socket: socket })
    }
}

/// An interface that receives frames to any MAC, until this is dropped.
#[derive(Debug)]
pub struct Promiscuous {
    _socket: PacketSocket,
}

impl Promiscuous {
    /// Has the interface receive them, beside what it receives anyway.
    ///
    /// # Errors
    /// It is not there, or the kernel refuses.
    pub fn enable(name: &str) -> Result<Self, PortError> {
        let index = Interface::lookup(name)?.index;
        let joined = PacketSocket::sender(index).and_then(|socket| {
            socket.receive_all(index)?;
            Ok(socket)
        });
        let socket = joined.map_err(|source| {
            let what = format!("interface {name}: receiving frames to any MAC");
            PortError::from_io(what, "CAP_NET_RAW and CAP_NET_ADMIN", source)
        })?;
        Ok(Self { _socket: socket })
    }
}
