//! weft's two XDP programs, one for uplinks and one for ports, their maps, and a guard behind the second.
//!
//! The object is loaded once for every interface, so every attachment has its own maps. The uplink program takes the
//! tunnel packets to our addresses and nothing else: the host keeps its own traffic. The port program takes everything: a
//! guest never reaches the host's stack. What is too long for a ring of a tap, the port program passes to a packet socket, and the guard
//! drops it thereafter. What counts as a tunnel packet is in [`parse`].
#![no_std]
#![no_main]

mod parse;

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    helpers::bpf_xdp_adjust_head,
    macros::{classifier, map, xdp},
    maps::{Array, HashMap, PerCpuArray, XskMap},
    programs::{TcContext, XdpContext},
};
use weft_ebpf_types::{AddressKey, Counter, MAX_QUEUES, MAX_VTEPS};

use parse::Class;

/// Receive queue → AF_XDP socket.
#[map]
static WEFT_SOCKETS: XskMap = XskMap::with_max_entries(MAX_QUEUES, 0);

/// Our tunnel addresses; the value is unused.
#[map]
static WEFT_VTEPS: HashMap<AddressKey, u8> = HashMap::with_max_entries(MAX_VTEPS, 0);

/// One cell for each [`Counter`].
#[map]
static WEFT_COUNTERS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// The longest frame of a port that goes to a ring; 0: there is no such limit.
#[map]
static WEFT_LONGEST: Array<u32> = Array::with_max_entries(1, 0);

/// Bytes by which the port program grows the head, set by the loader.
#[unsafe(no_mangle)]
static WEFT_HEADROOM: u32 = 0;

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

/// Sends the packet to the ring of its receive queue, or returns `otherwise` when there is none.
#[inline(always)]
fn redirect(ctx: &XdpContext, otherwise: u32) -> u32 {
    // SAFETY: the kernel passes a valid context, which lives for this run of the program.
    let queue = unsafe { (*ctx.ctx).rx_queue_index };
    match WEFT_SOCKETS.redirect(queue, u64::from(otherwise)) {
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

/// For uplinks: tunnel packets to our addresses go to the ring, everything else to the kernel.
#[xdp]
pub fn weft_uplink(ctx: XdpContext) -> u32 {
    let mut to = [0; 16];
    let counter = match parse::classify(&ctx, &mut to) {
        Class::Tunnel if is_vtep(&to) => return redirect(&ctx, XDP_PASS),
        Class::Fragment if is_vtep(&to) => Counter::FragmentsPassed,
        Class::Malformed => Counter::Malformed,
        _ => Counter::Passed,
    };
    count(counter);
    XDP_PASS
}

/// For ports: everything goes to the ring, with room for the outer headers ahead of it; what can't is dropped. What is longer than it may be
/// goes to the packet socket, where there is one.
#[xdp]
pub fn weft_port(ctx: XdpContext) -> u32 {
    let longest = WEFT_LONGEST.get(0).copied().unwrap_or(0);
    if longest != 0 && ctx.data_end() - ctx.data() > longest as usize {
        count(Counter::Long);
        return XDP_PASS;
    }
    // SAFETY: a constant of the object's read-only data, which the loader may have replaced; hence volatile.
    let headroom = unsafe { core::ptr::read_volatile(&WEFT_HEADROOM) };
    if headroom != 0 {
        // SAFETY: the context is valid; no pointer into the packet is kept across the call.
        if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(headroom as i32)) } != 0 {
            count(Counter::NoHeadroom);
            return XDP_DROP;
        }
    }
    redirect(&ctx, XDP_DROP)
}

/// For ports: nothing reaches the host's stack. Packet sockets see what arrives before this does.
#[classifier]
pub fn weft_guard(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
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
