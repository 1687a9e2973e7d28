//! Multicast with real kernels as listeners and senders: joins and leaves of any source and of one, over IPv4 and IPv6, on three hosts and in two
//! subnets, and what of it crosses the underlay. VRRP, which is link-local multicast, works as before.

#![allow(clippy::unwrap_used, unsafe_code)]

use std::ffi::CString;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use weft_proto::v1::Objects;
use weft_tests::figures::leave_worst;
use weft_tests::{
    Capture, Lab, LabError, Namespace, RawSocket, Site, SiteOptions, holds, tenants, topology,
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);
/// A join or a leave takes effect within this.
const EFFECT: Duration = Duration::from_millis(200);
const PORT: u16 = 15_999;
const FIGURES: &str = "WEFT_SERVICES_REPORT";
/// Any source, of each family.
const GROUPS: [&str; 2] = ["239.9.9.9", "ff05::9:9"];
/// One source.
const SPECIFIC: [&str; 2] = ["232.9.9.9", "ff35::9:9"];

/// Beside blue-1, blue-2 and blue-3 on a host each, and blue-b in another subnet on h3: one more on h1, and one on h2.
const MORE: &str = r#"
ports:
  - {id: near, vpc: blue, subnet: blue-a, host: h1, mac: "02:00:00:00:01:31", addresses: [10.0.1.31, "fd00:1::31"]}
  - {id: far, vpc: blue, subnet: blue-a, host: h2, mac: "02:00:00:00:01:32", addresses: [10.0.1.32, "fd00:1::32"]}
"#;

fn objects() -> Objects {
    let mut objects = tenants(3).unwrap();
    objects.ports.extend(topology(MORE).unwrap().ports);
    for subnet in &mut objects.subnets {
        subnet.multicast = "snooping".into();
    }
    objects
}

fn on_site(body: impl FnOnce(&mut Site) -> Result<(), LabError>) {
    let mut site = Site::start(Lab::new().unwrap(), &objects(), &SiteOptions::default()).unwrap();
    if let Err(error) = body(&mut site).and_then(|()| site.wait_for_frames()) {
        panic!("{}", site.explain(error));
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> LabError {
    LabError::io(what.to_owned())
}

fn namespace<'s>(site: &'s Site, port: &str) -> &'s Namespace {
    &site.workloads[port].namespace
}

fn interface_index() -> u32 {
    let name = CString::new("eth0").unwrap();
    // SAFETY: the name ends with a zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

fn socket(site: &Site, port: &str, group: IpAddr, bound: u16) -> Result<(Socket, u32), LabError> {
    let domain = match group {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let any: IpAddr = match group {
        IpAddr::V4(_) => ip("0.0.0.0"),
        IpAddr::V6(_) => ip("::"),
    };
    let open = || {
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        socket.bind(&SocketAddr::new(any, bound).into())?;
        std::io::Result::Ok((socket, interface_index()))
    };
    let opened = namespace(site, port).enter(open)?;
    opened.map_err(io("a socket for multicast"))
}

/// Joins or leaves a group from one source (RFC 3678 §5.1).
fn one_source(
    socket: &Socket,
    index: u32,
    (group, source): (IpAddr, IpAddr),
    option: libc::c_int,
) -> std::io::Result<()> {
    // struct group_source_req: the interface, then two addresses.
    let mut request = [0u8; 264];
    request[..4].copy_from_slice(&index.to_ne_bytes());
    for (at, address) in [(8, group), (136, source)] {
        let address = socket2::SockAddr::from(SocketAddr::new(address, 0));
        // SAFETY: as many bytes as the address says that it has.
        let bytes = unsafe {
            std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), address.len() as usize)
        };
        request[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let level = match group {
        IpAddr::V4(_) => libc::IPPROTO_IP,
        IpAddr::V6(_) => libc::IPPROTO_IPV6,
    };
    // SAFETY: the kernel reads the option in the length given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            request.as_ptr().cast(),
            request.len() as libc::socklen_t,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A process that listens.
struct Listener {
    port: &'static str,
    socket: Socket,
    index: u32,
    group: IpAddr,
    source: Option<IpAddr>,
    /// What reaches its interface, whether it wants it or not.
    raw: RawSocket,
}

impl Listener {
    fn open(
        site: &Site,
        port: &'static str,
        group: &str,
        source: Option<IpAddr>,
    ) -> Result<Self, LabError> {
        let group = ip(group);
        let (socket, index) = socket(site, port, group, PORT)?;
        let raw = RawSocket::open(namespace(site, port), "eth0")?;
        Ok(Self {
            port,
            socket,
            index,
            group,
            source,
            raw,
        })
    }

    fn join(&self) -> Result<(), LabError> {
        let joined = match (self.group, self.source) {
            (group, Some(source)) => one_source(&self.socket, self.index, (group, source), 46),
            (IpAddr::V4(group), None) => {
                let interface = socket2::InterfaceIndexOrAddress::Index(self.index);
                self.socket.join_multicast_v4_n(&group, &interface)
            }
            (IpAddr::V6(group), None) => self.socket.join_multicast_v6(&group, self.index),
        };
        joined.map_err(io("joining a group"))
    }

    fn leave(&self) -> Result<(), LabError> {
        let left = match (self.group, self.source) {
            (group, Some(source)) => one_source(&self.socket, self.index, (group, source), 47),
            (IpAddr::V4(group), None) => {
                let interface = socket2::InterfaceIndexOrAddress::Index(self.index);
                self.socket.leave_multicast_v4_n(&group, &interface)
            }
            (IpAddr::V6(group), None) => self.socket.leave_multicast_v6(&group, self.index),
        };
        left.map_err(io("leaving a group"))
    }

    /// Whether a datagram comes in time.
    fn hears(&self, within: Duration) -> Result<bool, LabError> {
        let limited = self.socket.set_read_timeout(Some(within));
        limited.map_err(io("limiting how long to wait"))?;
        match self.socket.recv(&mut [MaybeUninit::uninit(); 64]) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(false)
            }
            Err(error) => Err(io("listening")(error)),
        }
    }

    /// Joins while the group is sent to; how long it takes until the first datagram.
    fn join_under_way(&self) -> Result<Duration, LabError> {
        let begun = Instant::now();
        self.join()?;
        let hears = self.hears(SOON)?;
        let took = begun.elapsed();
        println!("{} hears {} {took:?} after its join", self.port, self.group);
        holds("the first datagram comes soon", hears && took <= EFFECT)?;
        Ok(took)
    }

    /// The next frame at its interface that is of the group's stream.
    fn frame(&self, within: Duration) -> Option<Vec<u8>> {
        self.raw.receive(within, is_of_stream)
    }

    /// Leaves while the group is sent to; how long frames still come to its interface.
    fn leave_under_way(&self) -> Result<Duration, LabError> {
        while self.frame(Duration::ZERO).is_some() {}
        let begun = Instant::now();
        self.leave()?;
        let mut last = begun;
        while self.frame(Duration::from_millis(500)).is_some() {
            last = Instant::now();
            holds("frames end", begun.elapsed() < SOON)?;
        }
        let took = last - begun;
        println!(
            "{} gets {} until {took:?} after its leave",
            self.port, self.group
        );
        holds("nothing comes soon", took <= EFFECT)?;
        Ok(took)
    }
}

/// Whether a frame is a datagram to the port of the streams.
fn is_of_stream(frame: &[u8]) -> bool {
    let l4 = match frame.get(12..14) {
        Some([8, 0]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => return false,
    };
    frame.get(l4 + 2..l4 + 4) == Some(&PORT.to_be_bytes())
}

/// A process that sends to a group every few milliseconds, until it is dropped.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn start(site: &Site, from: &str, group: &str) -> Result<Self, LabError> {
        let group = ip(group);
        let (socket, index) = socket(site, from, group, 0)?;
        let own = site.address(from, group.is_ipv6());
        let set = match (group, own) {
            (IpAddr::V4(_), Some(IpAddr::V4(own))) => socket
                .set_multicast_if_v4(&own)
                .and_then(|()| socket.set_multicast_ttl_v4(8)),
            _ => socket
                .set_multicast_if_v6(index)
                .and_then(|()| socket.set_multicast_hops_v6(8)),
        };
        set.map_err(io("a socket that sends to a group"))?;
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let to = SocketAddr::new(group, PORT).into();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if socket.send_to(b"multicast", &to).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Ok(Self {
            stop,
            sent,
            thread: Some(thread),
        })
    }

    /// Ends it; how many datagrams it has sent.
    fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn three_listeners_on_two_hosts_get_a_stream_that_crosses_once_to_one_host() {
    on_site(|site| {
        let (mut joins, mut leaves) = (Vec::new(), Vec::new());
        for group in GROUPS {
            let listeners = ["near", "blue-2", "far"];
            let listeners = listeners.map(|port| Listener::open(site, port, group, None).unwrap());
            let stranger = Listener::open(site, "blue-3", group, None)?;
            let stream = Stream::start(site, "blue-1", group)?;
            for listener in &listeners {
                joins.push(listener.join_under_way()?);
            }
            // A host is told of later than its ports' first seconds.
            wait_until("hosts know of each other's listeners", SOON, || {
                let known = site.ctl(&["vpc", "listeners", "blue"]);
                known.is_ok_and(|text| text.matches(group).count() == 2)
            })?;
            holds(
                "who has not joined gets nothing",
                stranger.frame(EFFECT).is_none(),
            )?;
            stream.end();
            // All that is under way has arrived when its last listener has it.
            for listener in &listeners {
                while listener.hears(EFFECT)? {}
            }
            let underlay = site.underlay.as_ref().unwrap();
            let mut capture = Capture::start(underlay, "br0", "udp port 4789")?;
            let stream = Stream::start(site, "blue-1", group)?;
            for _ in 0..100 {
                for listener in &listeners {
                    holds("each gets every one", listener.hears(SOON)?)?;
                }
            }
            let sent = stream.end() as usize;
            for listener in &listeners {
                let mut more = 100;
                while listener.hears(EFFECT)? {
                    more += 1;
                }
                println!("{}: {more} of {sent} to {group}", listener.port);
                holds("none is lost, none comes twice", more == sent)?;
            }
            capture.stop()?;
            let filter = format!("udp.dstport == {PORT}");
            let lines = capture.decode(&filter, &["ip.dst"])?;
            let to = |host: &str| lines.iter().filter(|line| line.starts_with(host)).count();
            println!(
                "{sent} sent to {group}: {} on the wire to h2, {} to h3",
                to("192.0.2.2"),
                to("192.0.2.3")
            );
            holds(
                "one copy to the host with listeners",
                to("192.0.2.2") == sent,
            )?;
            holds("none to the other one of the subnet", to("192.0.2.3") == 0)?;
            let stream = Stream::start(site, "blue-1", group)?;
            for listener in &listeners {
                leaves.push(listener.leave_under_way()?);
            }
            stream.end();
        }
        leave_worst(FIGURES, "multicast_first_datagram_after_join", &joins)?;
        leave_worst(FIGURES, "multicast_last_datagram_after_leave", &leaves)?;
        let status = site.node("h1", &["drops"])?;
        holds(&status, !status.contains("membership_"))
    });
}

#[test]
fn a_listener_chooses_its_source() {
    on_site(|site| {
        for group in SPECIFIC {
            let v6 = ip(group).is_ipv6();
            let wanted = site.address("blue-1", v6);
            let near = Listener::open(site, "near", group, wanted)?;
            let far = Listener::open(site, "blue-2", group, wanted)?;
            let other = Stream::start(site, "blue-3", group)?;
            near.join()?;
            far.join()?;
            holds("nothing of another source", near.frame(EFFECT).is_none())?;
            holds("on no host", far.frame(EFFECT).is_none())?;
            let stream = Stream::start(site, "blue-1", group)?;
            holds("what it wants comes", near.hears(SOON)? && far.hears(SOON)?)?;
            far.leave_under_way()?;
            far.join_under_way()?;
            near.leave_under_way()?;
            holds("the other host still gets it", far.hears(SOON)?)?;
            other.end();
            stream.end();
            far.leave()?;
        }
        Ok(())
    });
}

#[test]
fn it_is_routed_into_another_subnet_where_the_vpc_says_so() {
    on_site(|site| {
        for (group, v6) in GROUPS.into_iter().zip([false, true]) {
            site.change(|objects| objects.vpcs[0].multicast_routing = false)?;
            let listener = Listener::open(site, "blue-b", group, None)?;
            listener.join()?;
            let stream = Stream::start(site, "blue-1", group)?;
            holds("not yet", !listener.hears(Duration::from_millis(500))?)?;
            site.change(|objects| objects.vpcs[0].multicast_routing = true)?;
            holds("then it comes", listener.hears(SOON)?)?;
            let frame = listener.frame(SOON);
            let ttl = frame.map(|frame| frame[if v6 { 21 } else { 22 }]);
            holds("with one hop less", ttl == Some(7))?;
            listener.leave_under_way()?;
            stream.end();
        }
        Ok(())
    });
}

#[test]
fn keepalived_on_two_hosts_agrees_who_is_the_master() {
    on_site(|site| {
        let mut daemons = Vec::new();
        for (port, priority) in [("blue-1", 150), ("blue-2", 100)] {
            let directory = site.directory().join(format!("keepalived-{port}"));
            std::fs::create_dir_all(&directory).map_err(io("keepalived's directory"))?;
            let at = |name: &str| directory.join(name).display().to_string();
            let text = format!(
                "vrrp_instance v {{\n state BACKUP\n interface eth0\n virtual_router_id 7\n priority {priority}\n advert_int 1\n \
                 virtual_ipaddress {{\n 10.0.1.99/24\n }}\n}}\n"
            );
            std::fs::write(at("conf"), text).map_err(io("keepalived's configuration"))?;
            let line = [
                "-n",
                "-l",
                "-f",
                &at("conf"),
                "-p",
                &at("pid"),
                "-r",
                &at("vrrp"),
            ];
            daemons.push(namespace(site, port).spawn("keepalived", &line)?);
        }
        let has = |port: &str| {
            let addresses = namespace(site, port).ip("-4 address show dev eth0");
            addresses.is_ok_and(|text| text.contains("10.0.1.99"))
        };
        let within = Duration::from_secs(30);
        wait_until("blue-1 is the master alone", within, || {
            has("blue-1") && !has("blue-2")
        })?;
        // It stays so for longer than a backup waits for its master.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            holds("one master", has("blue-1") && !has("blue-2"))?;
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut master = daemons.remove(0);
        master.signal(libc::SIGKILL);
        master.wait(SOON)?;
        namespace(site, "blue-1").ip("link set eth0 down")?;
        wait_until("blue-2 takes over", within, || has("blue-2"))?;
        Ok(())
    });
}
