//! Devices of the host: the queues of each uplink and port, opened and closed as the state asks.
//!
//! A device that is missing or cannot be opened does not affect the others: its port stays down, and opening is retried. A virtual
//! machine's device is open before its guest runs, and up when the guest is.

use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::v1;

use super::config::{Config, Uplink};
use crate::underlay::check_uplink;
use weft_dataplane::encap;
use weft_dataplane::packet::Station;
use weft_dataplane::pipeline::{DeviceMtus, Source};
use weft_dataplane::port::{
    self, AllMulticast, Bond, Device, Interface, Netdev, Opening, PortError, Programs, Promiscuous,
    Queue, Role, Umem, check_mtu,
};
use weft_dataplane::snapshot::{Subport, Trunks};
use weft_dataplane::worker::Workers;

/// How many queues of ports, which are opened one after the other, wait to be read together: a packet that one has taken in finds the others open.
/// A host with more ports reads the first ones while it opens the rest, since the kernel takes milliseconds for each.
const TOGETHER: usize = 32;

/// Queues that are open and not yet read.
type Unread = Vec<(Source, Box<dyn Queue>)>;

/// The device of a port, open.
#[derive(Debug)]
pub struct PortDevice {
    /// What the state asked for.
    pub spec: v1::Device,
    /// What that led to.
    pub device: Box<dyn Device>,
    /// Whether packets could pass when it was last looked at.
    pub up: bool,
}

impl PortDevice {
    /// Whether packets pass by now, or why they do not. Asks the kernel.
    ///
    /// # Errors
    /// The reason, for reading.
    pub fn condition(&self) -> Result<(), String> {
        let is_of_kernel = self.spec.kind != "vhost-user";
        if !self.up {
            let reason = match is_of_kernel {
                true => "our XDP program was detached from its interface",
                false => "no guest is connected to its socket",
            };
            return Err(reason.to_owned());
        }
        if !is_of_kernel {
            return Ok(());
        }
        let name = &self.spec.name;
        // One of that name may be another by now, which is not closed to the host before it is taken.
        if self.device.is_stale() {
            return Err(format!("interface {name} is gone, or another one"));
        }
        match Interface::lookup(name) {
            Ok(found) if !found.up => Err(format!("interface {name} is down")),
            Ok(found) if !found.running => Err(format!(
                "interface {name} has no carrier: its other end is down, or nobody has it"
            )),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// An uplink, with or without its device.
#[derive(Debug)]
pub struct UplinkDevice {
    spec: Uplink,
    /// Whether tunnels lead over it. One on a physical network alone may be missing when the daemon starts.
    has_tunnels: bool,
    /// Whether it is on a physical network, whose neighbours ask by multicast for addresses that the kernel does not have.
    is_external: bool,
    multicast: Option<AllMulticast>,
    /// The ports on external networks of its segment, as its program has to know them, and that frames to them come in.
    stations: Vec<Station>,
    promiscuous: Option<Promiscuous>,
    /// The addresses that are held on its segment, as its program has to know them.
    held: Vec<IpNetwork>,
    open: Option<OpenUplink>,
    /// Why it is not open although its device exists.
    refused: Option<String>,
}

/// The device of an uplink, open.
#[derive(Debug)]
enum OpenUplink {
    /// An interface of the kernel.
    Kernel(Box<Netdev>),
    /// Several of them.
    Bond(Box<Bond>),
    /// Something else, all of whose packets are ours.
    Other(Box<dyn Device>),
}

impl OpenUplink {
    fn open(opening: &Opening, uplink: &Uplink, vteps: &[IpAddr]) -> Result<Self, PortError> {
        if let Some(way) = &uplink.vhost_user {
            let spec = v1::Device {
                kind: "vhost-user".to_owned(),
                name: way.socket.clone(),
                mode: way.mode.clone(),
                queues: way.queues,
            };
            return Ok(Self::Other(port::open(opening, &spec)?));
        }
        check_uplink(&uplink.interface)?;
        if opening.programs.is_closed(&uplink.interface) {
            return Err(PortError::Uplink {
                interface: uplink.interface.clone(),
                problem: format!(
                    "it is closed as ports are, so that this host's own traffic does not pass; if it is no port any more: weftd release {}",
                    uplink.interface
                ),
            });
        }
        if Interface::lookup(&uplink.interface)?.bond {
            let bond = Bond::open(opening, &uplink.interface, vteps, uplink.queues)?;
            return Ok(Self::Bond(Box::new(bond)));
        }
        let vteps = vteps.to_vec();
        let role = Role::Uplink { vteps };
        let device = Netdev::open(opening, &uplink.interface, &role, uplink.queues)?;
        Ok(Self::Kernel(Box::new(device)))
    }

    fn set_held(&mut self, held: &[IpNetwork]) -> Result<(), PortError> {
        match self {
            Self::Kernel(device) => device.set_held(held),
            Self::Bond(device) => device.set_held(held),
            Self::Other(_) => Ok(()),
        }
    }

    fn set_stations(&mut self, stations: &[Station]) -> Result<(), PortError> {
        match self {
            Self::Kernel(device) => device.set_stations(stations),
            Self::Bond(device) => device.set_stations(stations),
            Self::Other(_) => Ok(()),
        }
    }

    fn device(&self) -> &dyn Device {
        match self {
            Self::Kernel(device) => &**device,
            Self::Bond(device) => &**device,
            Self::Other(device) => &**device,
        }
    }

    fn device_mut(&mut self) -> &mut dyn Device {
        match self {
            Self::Kernel(device) => &mut **device,
            Self::Bond(device) => &mut **device,
            Self::Other(device) => &mut **device,
        }
    }
}

impl UplinkDevice {
    /// The interface's name, or the socket's path.
    pub fn name(&self) -> &str {
        self.spec.name()
    }

    /// How packets pass, or why they do not.
    pub fn mode(&self) -> String {
        match (&self.open, &self.refused) {
            (Some(open), _) => open.device().describe().mode,
            (None, Some(reason)) => reason.clone(),
            (None, None) => "missing".to_owned(),
        }
    }

    /// Whether packets can pass.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Opens the device, and answers its queues.
    fn start(
        &mut self,
        number: u16,
        opening: &Opening,
        vteps: &[IpAddr],
    ) -> Result<Unread, PortError> {
        let vteps = if self.has_tunnels { vteps } else { &[] };
        let mut open = OpenUplink::open(opening, &self.spec, vteps)?;
        if let Err(error) = open.set_held(&self.held) {
            tracing::error!(uplink = self.name(), %error, "cannot take the addresses that are held on its segment");
        }
        if let Err(error) = open.set_stations(&self.stations) {
            tracing::error!(uplink = self.name(), %error, "cannot take what is for ports on its segment");
        }
        let queues = open.device_mut().take_queues().into_iter();
        let queues = queues.map(|queue| (Source::Uplink(number), queue));
        let what = open.device().describe();
        tracing::info!(
            uplink = self.name(),
            mode = what.mode,
            zero_copy = what.zero_copy,
            "uplink open"
        );
        if self.is_external {
            let joined = AllMulticast::enable(self.name());
            let note = |error| {
                tracing::error!(uplink = self.name(), %error, "neighbours on the physical network may not find IPv6 addresses");
            };
            self.multicast = joined.map_err(note).ok();
        }
        self.open = Some(open);
        self.look_at_stations();
        Ok(queues.collect())
    }

    /// Has frames to ports on the segment come in, while there are any.
    fn look_at_stations(&mut self) {
        let has_any = !self.stations.is_empty()
            && matches!(self.open, Some(OpenUplink::Kernel(_) | OpenUplink::Bond(_)));
        if has_any == self.promiscuous.is_some() {
            return;
        }
        if !has_any {
            self.promiscuous = None;
            return;
        }
        let note = |error| {
            tracing::error!(uplink = self.name(), %error, "frames to ports on the physical network may not come in");
        };
        self.promiscuous = Promiscuous::enable(self.name()).map_err(note).ok();
    }
}

/// Whether the interfaces of a configuration's uplinks and physical networks, those that are there, can be opened as such.
///
/// # Errors
/// Which cannot, why, and what to do.
pub fn check_uplinks(config: &Config) -> Result<(), PortError> {
    let links = config.links();
    for uplink in links.iter().filter(|link| link.vhost_user.is_none()) {
        let Ok(found) = Interface::lookup(&uplink.interface) else {
            continue;
        };
        check_uplink(&uplink.interface)?;
        check_mtu(&found, config.memory.frame_size, 0)?;
    }
    Ok(())
}

/// All devices.
#[derive(Debug)]
pub struct Devices {
    opening: Opening,
    /// Our tunnel addresses, as the uplinks' programs know them.
    vteps: Vec<IpAddr>,
    /// Of uplinks that were opened before there was a state: tunnel packets that arrive while it opens its ports wait for these.
    unread: Unread,
    /// Uplinks in the order of the configuration, and then the interfaces that are on physical networks alone.
    pub uplinks: Vec<UplinkDevice>,
    /// Ports whose device is open, by index.
    pub ports: BTreeMap<u16, PortDevice>,
    /// Why the others that should be open are not, by index.
    pub closed: BTreeMap<u16, String>,
    /// Ports that have a VLAN on the device of another.
    trunks: Arc<Trunks>,
    /// Those of them that were up when they were last looked at, by index.
    subports_up: BTreeSet<u16>,
}

impl Devices {
    /// Whether packets pass a port that should be open, or why they do not.
    ///
    /// # Errors
    /// The reason, for reading.
    pub fn condition(&self, index: u16) -> Result<(), String> {
        if let Some(Subport { parent, .. }) = self.trunks.subport(index) {
            let of_parent = self.condition(parent);
            return of_parent.map_err(|reason| format!("its parent is down: {reason}"));
        }
        match (self.ports.get(&index), self.closed.get(&index)) {
            (Some(open), _) => open.condition(),
            (None, Some(reason)) => Err(reason.clone()),
            (None, None) => Err("its device is not open yet".to_owned()),
        }
    }

    /// Opens the uplinks, to be read when the first state has opened its ports.
    ///
    /// # Errors
    /// An uplink cannot be opened: without it the host is none.
    pub fn open(
        config: &Config,
        umem: &Arc<Umem>,
        programs: Arc<Programs>,
    ) -> Result<Self, PortError> {
        let opening = Opening {
            umem: Arc::clone(umem),
            programs,
            ring_size: config.memory.ring_size,
            busy_poll: config.busy_poll(),
            threaded_napi: config.workers.threaded_napi,
            headroom: 0,
        };
        let (mut uplinks, mut unread) = (Vec::new(), Vec::new());
        let external = config.physical_networks();
        for (number, spec) in (0u16..).zip(config.links()) {
            let mut uplink = UplinkDevice {
                spec,
                has_tunnels: usize::from(number) < config.uplinks.len(),
                is_external: external.iter().any(|(_, index)| *index == number),
                multicast: None,
                stations: Vec::new(),
                promiscuous: None,
                held: Vec::new(),
                open: None,
                refused: None,
            };
            match uplink.start(number, &opening, &[]) {
                Ok(queues) => unread.extend(queues),
                Err(error) if uplink.has_tunnels => return Err(error),
                Err(error) => {
                    tracing::error!(uplink = uplink.name(), %error, "the interface to a physical network stays closed");
                    let is_there = !matches!(error, PortError::NoInterface { .. });
                    uplink.refused = is_there.then(|| error.to_string());
                }
            }
            uplinks.push(uplink);
        }
        Ok(Self {
            opening,
            vteps: Vec::new(),
            unread,
            uplinks,
            ports: BTreeMap::new(),
            closed: BTreeMap::new(),
            trunks: Arc::default(),
            subports_up: BTreeSet::new(),
        })
    }

    /// Tells the uplinks' programs which tunnel addresses are ours, and picks the room that ports leave for outer headers.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_vteps(&mut self, vteps: &[IpAddr]) -> Result<(), PortError> {
        self.vteps = vteps.to_vec();
        for uplink in self.uplinks.iter_mut().filter(|uplink| uplink.has_tunnels) {
            match &mut uplink.open {
                Some(OpenUplink::Kernel(device)) => device.set_vteps(vteps)?,
                Some(OpenUplink::Bond(device)) => device.set_vteps(vteps)?,
                Some(OpenUplink::Other(_)) | None => {}
            }
        }
        // VXLAN over the family in use: what most tunnels need, so that most packets need not be moved.
        let ipv6 = vteps.first().is_some_and(IpAddr::is_ipv6);
        self.opening.headroom = (encap::MAX_OUTER - if ipv6 { 0 } else { 20 }) as u16;
        Ok(())
    }

    /// Tells the program of an uplink which addresses are held on its segment, now or when it is opened.
    ///
    /// # Errors
    /// They are too many, or the kernel refuses.
    pub fn set_held(&mut self, number: u16, held: &[IpNetwork]) -> Result<(), PortError> {
        let Some(uplink) = self.uplinks.get_mut(usize::from(number)) else {
            return Ok(());
        };
        uplink.held = held.to_vec();
        let open = uplink.open.as_mut();
        open.map_or(Ok(()), |open| open.set_held(held))
    }

    /// Tells the program of an uplink which ports are on external networks of its segment, now or when it is opened.
    ///
    /// # Errors
    /// They are too many, or the kernel refuses.
    pub fn set_stations(&mut self, number: u16, stations: &[Station]) -> Result<(), PortError> {
        let Some(uplink) = self.uplinks.get_mut(usize::from(number)) else {
            return Ok(());
        };
        uplink.stations = stations.to_vec();
        uplink.look_at_stations();
        let open = uplink.open.as_mut();
        open.map_or(Ok(()), |open| open.set_stations(stations))
    }

    /// Has ports that were opened read, and with the first of them the uplinks.
    fn read(&mut self, opened: &mut Unread, workers: &Workers) {
        let mut queues = std::mem::take(opened);
        // Before that there is no state.
        if !self.vteps.is_empty() {
            queues.append(&mut self.unread);
        }
        workers.open(queues);
    }

    /// Closes uplinks whose device has gone, is another by now, or has more or fewer queues; opens those that are back, and mends the others.
    pub fn settle_uplinks(&mut self, workers: &Workers) {
        let opening = Opening {
            headroom: 0,
            ..self.opening.clone()
        };
        for (number, uplink) in (0u16..).zip(&mut self.uplinks) {
            let is_stale = |open: &mut OpenUplink| open.device().is_stale();
            if uplink.open.take_if(is_stale).is_some() {
                uplink.multicast = None;
                uplink.promiscuous = None;
                tracing::error!(uplink = uplink.name(), "the uplink is gone or has changed");
                self.unread
                    .retain(|(place, _)| *place != Source::Uplink(number));
                workers.close_first(Source::Uplink(number));
            }
            if let Some(open) = &mut uplink.open {
                open.device_mut().mend();
                continue;
            }
            let refused = match uplink.start(number, &opening, &self.vteps) {
                Ok(queues) => {
                    workers.open(queues);
                    None
                }
                Err(PortError::NoInterface { .. }) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = refused.as_ref().filter(|_| refused != uplink.refused) {
                tracing::error!(uplink = uplink.name(), %error, "the uplink stays closed");
            }
            uplink.refused = refused;
        }
        workers.collect();
    }

    /// Opens ports that should be open and are not, closes those that should not be, or whose device has gone or is another by now.
    /// `wanted` names the device of each port, `mtu` says how long its packets may be; what its device takes is noted
    /// in `device_mtus`; `trunks` are the ports without a device of their own. Returns the ports that came up and those that went down.
    pub fn settle(
        &mut self,
        wanted: &BTreeMap<u16, v1::Device>,
        (mtu, device_mtus): (impl Fn(u16) -> u16, &DeviceMtus),
        trunks: &Arc<Trunks>,
        workers: &Workers,
    ) -> (Vec<u16>, Vec<u16>) {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let stale = |index: &u16, open: &PortDevice| {
            wanted.get(index) != Some(&open.spec) || open.device.is_stale()
        };
        let closing: Vec<u16> = self
            .ports
            .iter()
            .filter(|(index, open)| stale(index, open))
            .map(|(index, _)| *index)
            .collect();
        for index in closing {
            if wanted.contains_key(&index) {
                workers.close_first(Source::Port(index));
            } else {
                workers.close(Source::Port(index));
            }
            if self.ports.remove(&index).is_some_and(|open| open.up) {
                down.push(index);
            }
        }
        workers.collect();
        self.closed.retain(|index, _| wanted.contains_key(index));
        let missing = wanted
            .iter()
            .filter(|(index, _)| !self.ports.contains_key(index));
        let mut missing: Vec<_> = missing.collect();
        // The kernel takes milliseconds for each of its interfaces, one after the other; virtual machines do not wait for that.
        missing.sort_by_key(|(_, spec)| spec.kind != "vhost-user");
        let mut opened = Unread::new();
        for (index, spec) in missing {
            match port::open(&self.opening, spec) {
                Ok(mut device) => {
                    let queues = device.take_queues().into_iter();
                    opened.extend(queues.map(|queue| (Source::Port(*index), queue)));
                    let spec = spec.clone();
                    let open = PortDevice {
                        spec,
                        device,
                        up: false,
                    };
                    self.ports.insert(*index, open);
                    self.closed.remove(index);
                }
                Err(error) => {
                    let reason = error.to_string();
                    if self.closed.get(index) != Some(&reason) {
                        tracing::warn!(device = spec.name, %error, "port stays down");
                        self.closed.insert(*index, reason);
                    }
                }
            }
            if opened.len() >= TOGETHER {
                self.read(&mut opened, workers);
            }
        }
        self.read(&mut opened, workers);
        for (index, open) in &mut self.ports {
            open.device.mend();
            open.device.set_mtu(mtu(*index));
            for port in std::iter::once(index).chain(trunks.subports_of(*index)) {
                device_mtus.set(*port, open.device.takes());
            }
            let now = open.device.is_up();
            if now == open.up {
                continue;
            }
            open.up = now;
            if now {
                let what = open.device.describe();
                tracing::info!(
                    device = open.spec.name,
                    mode = what.mode,
                    zero_copy = what.zero_copy,
                    "port up"
                );
                up.push(*index);
            } else {
                tracing::info!(device = open.spec.name, "port down");
                down.push(*index);
            }
        }
        self.trunks = Arc::clone(trunks);
        let is_up = |parent: &u16| self.ports.get(parent).is_some_and(|open| open.up);
        let parents = self.ports.keys().filter(|parent| is_up(parent));
        let subports = parents.flat_map(|parent| trunks.subports_of(*parent));
        let now: BTreeSet<u16> = subports.copied().collect();
        up.extend(now.difference(&self.subports_up));
        down.extend(self.subports_up.difference(&now));
        self.subports_up = now;
        (up, down)
    }
}
