//! weft's two XDP programs, one for uplinks and one for ports, their maps, and the guard that keeps ports and the host's stack apart.
//!
//! The object is loaded once for every uplink, which therefore has maps of its own, and once for all ports of a host: loading it and
//! attaching it for the first time takes tens of milliseconds, and there are many ports. The uplink program takes the tunnel packets to our
//! addresses, what is for ports on that segment ([`station`]), what is for addresses that weft holds there ([`held`]), and nothing else: the host keeps its own traffic. The port program takes everything: a guest never reaches the host's stack.
//! The port program passes packets that are too long for a tap's ring to a packet socket, after which the guard drops them. The guard stays
//! on the interface when the daemon is gone, and has no state. What counts as a tunnel packet is in [`parse`].
#![no_std]
#![no_main]

mod held;
mod parse;
mod station;

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    helpers::bpf_xdp_adjust_head,
    macros::{classifier, map, xdp},
    maps::{HashMap, LpmTrie, PerCpuArray, XskMap, lpm_trie::Key},
    programs::{TcContext, XdpContext},
};
use weft_ebpf_types::{
    AddressKey, Counter, GUARD_MARK, MAX_HELD, MAX_PORT_QUEUES, MAX_PORTS, MAX_QUEUES, MAX_ROUTED,
    MAX_STATIONS, MAX_VTEPS, PortEntry, StationKey,
};

use parse::Class;

/// Receive queue of an uplink → AF_XDP socket.
#[map]
static WEFT_SOCKETS: XskMap = XskMap::with_max_entries(MAX_QUEUES, 0);

/// Our tunnel addresses; the value is unused.
#[map]
static WEFT_VTEPS: HashMap<AddressKey, u8> = HashMap::with_max_entries(MAX_VTEPS, 0);

/// The addresses that we hold on the uplink's segment; the value is unused.
#[map]
static WEFT_HELD: HashMap<AddressKey, u8> = HashMap::with_max_entries(MAX_HELD, BPF_F_NO_PREALLOC);

/// The prefixes that are routed to us on the uplink's segment; the value is unused.
#[map]
static WEFT_ROUTED: LpmTrie<AddressKey, u8> =
    LpmTrie::with_max_entries(MAX_ROUTED, BPF_F_NO_PREALLOC);

/// Ports of external networks on the uplink's segment; the value is unused.
#[map]
static WEFT_STATIONS: HashMap<StationKey, u8> =
    HashMap::with_max_entries(MAX_STATIONS, BPF_F_NO_PREALLOC);

/// One cell for each [`Counter`].
#[map]
static WEFT_COUNTERS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Interface of a port → what is to be known of it.
#[map]
static WEFT_PORTS: HashMap<u32, PortEntry> =
    HashMap::with_max_entries(MAX_PORTS, BPF_F_NO_PREALLOC);

/// Place → AF_XDP socket.
#[map]
static WEFT_PORT_SOCKETS: XskMap = XskMap::with_max_entries(MAX_PORT_QUEUES, 0);

#[inline(always)]
fn count(counter: Counter) {
    if let Some(cell) = WEFT_COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map gave the cell of this CPU, and a program isn't interrupted by itself on the same CPU.
        unsafe { *cell += 1 };
    }
}

#[inline(always)]
fn is_vtep(address: &AddressKey) -> bool {
    // SAFETY: the value is looked at for existence only, so it doesn't matter that user space may remove it meanwhile.
    unsafe { WEFT_VTEPS.get(address) }.is_some()
}

#[inline(always)]
fn is_held(address: &AddressKey) -> bool {
    // SAFETY: as above.
    unsafe { WEFT_HELD.get(address) }.is_some()
        || WEFT_ROUTED.get(&Key::new(u128::BITS, *address)).is_some()
}

#[inline(always)]
fn is_for_station(ctx: &XdpContext) -> bool {
    match station::of(ctx) {
        // SAFETY: as above.
        Some(station) => unsafe { WEFT_STATIONS.get(&station) }.is_some(),
        None => false,
    }
}

/// The packet's receive queue.
#[inline(always)]
fn queue(ctx: &XdpContext) -> u32 {
    // SAFETY: the kernel passes a valid context, which lives for this run of the program.
    unsafe { (*ctx.ctx).rx_queue_index }
}

/// Sends the packet to a ring, or returns `otherwise` when there is none.
#[inline(always)]
fn redirect(sockets: &XskMap, place: u32, otherwise: u32) -> u32 {
    match sockets.redirect(place, u64::from(otherwise)) {
        Ok(action) => {
            count(Counter::Redirected);
            action
        }
        Err(action) => {
            count(Counter::NoRing);
            action
        }
    }
}

/// For uplinks: tunnel packets to our addresses, what is for ports on an external network and what is for addresses that we hold go to the ring, everything else to
/// the kernel.
#[xdp]
pub fn weft_uplink(ctx: XdpContext) -> u32 {
    let mut to = [0; 16];
    let class = parse::classify(&ctx, &mut to);
    // The common case first.
    if class == Class::Tunnel && is_vtep(&to) {
        return redirect(&WEFT_SOCKETS, queue(&ctx), XDP_PASS);
    }
    if is_for_station(&ctx) || held::is_for(&ctx, is_held) {
        return redirect(&WEFT_SOCKETS, queue(&ctx), XDP_PASS);
    }
    count(match class {
        Class::Fragment if is_vtep(&to) => Counter::FragmentsPassed,
        Class::Malformed => Counter::Malformed,
        Class::Tagged => Counter::Tagged,
        _ => Counter::Passed,
    });
    XDP_PASS
}

/// For ports: everything goes to the ring, with room for the outer headers ahead of it; what can't is dropped. What is longer than it may be
/// goes to the packet socket, where there is one.
#[xdp]
pub fn weft_port(ctx: XdpContext) -> u32 {
    // SAFETY: the kernel passes a valid context, which lives for this run of the program.
    let interface = unsafe { (*ctx.ctx).ingress_ifindex };
    // SAFETY: the entry is copied; one that is changed or removed meanwhile is one of before or after, word by word, and no place that it may
    // name is another port's while packets of this one arrive.
    let Some(&[first, queues, headroom, longest]) = (unsafe { WEFT_PORTS.get(&interface) }) else {
        count(Counter::NoRing);
        return XDP_DROP;
    };
    if longest != 0 && ctx.data_end() - ctx.data() > longest as usize {
        count(Counter::Long);
        return XDP_PASS;
    }
    let queue = queue(&ctx);
    if queue >= queues {
        count(Counter::NoRing);
        return XDP_DROP;
    }
    // SAFETY: the context is valid; no pointer into the packet is kept across the call.
    if headroom != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, -(headroom as i32)) } != 0 {
        count(Counter::NoHeadroom);
        return XDP_DROP;
    }
    redirect(&WEFT_PORT_SOCKETS, first + queue, XDP_DROP)
}

/// For ports: nothing reaches the host's stack. Packet sockets see what arrives before this does.
#[classifier]
pub fn weft_guard(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// For ports: nothing of the host's stack is sent by them. What our packet sockets send is marked; AF_XDP sockets do not come this way.
#[classifier]
pub fn weft_guard_out(ctx: TcContext) -> i32 {
    // SAFETY: the kernel passes a valid context, which lives for this run of the program.
    if unsafe { (*ctx.skb.skb).mark } == GUARD_MARK {
        TC_ACT_UNSPEC
    } else {
        TC_ACT_SHOT
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The programs call no helper that the kernel reserves for GPL programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
