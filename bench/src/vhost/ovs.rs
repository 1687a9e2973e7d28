//! The peer: Open vSwitch with DPDK on one core, between two vhost-user sockets.

use std::path::PathBuf;

use weft_tests::openvswitch::{DpdkOptions, OpenVswitch};
use weft_tests::{Daemon, Lab};

use super::{A, B, RULES, Setup, Switch, UNDERLAY_FAR, UNDERLAY_NEAR, VNI, mac};

const MEMORY: u32 = 512;

/// The running peer.
#[derive(Debug)]
pub(super) struct Ovs {
    switch: OpenVswitch,
    // Last, so that the switch ends before its namespace goes.
    _lab: Lab,
}

impl Ovs {
    pub(super) fn start(setup: Setup, control_core: usize, core: usize) -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let namespace = lab.host("ovs")?;
        let options = DpdkOptions {
            control_core,
            core,
            memory: MEMORY,
        };
        let switch = OpenVswitch::start_with_dpdk(&namespace, options)?;
        switch.set("add-br br0 -- set bridge br0 datapath_type=netdev -- add-port br0 a -- set interface a type=dpdkvhostuser")?;
        match setup {
            Setup::SameHost => {
                switch.set("add-port br0 b -- set interface b type=dpdkvhostuser")?;
                // As if both had spoken before: what goes to one goes to it alone.
                for (port, end) in [("a", A), ("b", B)] {
                    switch.control(&format!("fdb/add br0 {port} 0 {}", mac(end.0)))?;
                }
            }
            Setup::Tunnel => {
                let (near, far) = (UNDERLAY_NEAR, UNDERLAY_FAR);
                let address = |bytes: [u8; 4]| std::net::Ipv4Addr::from(bytes);
                switch.set(&format!(
                    "add-br under -- set bridge under datapath_type=netdev other-config:hwaddr=\"{}\" -- add-port under b -- set interface b type=dpdkvhostuser",
                    mac(near.0)
                ))?;
                switch.set(&format!(
                    "add-port br0 tunnel -- set interface tunnel type=vxlan options:key={VNI} options:remote_ip={} options:local_ip={}",
                    address(far.1),
                    address(near.1)
                ))?;
                namespace.ip(&format!("address add {}/24 dev under", address(near.1)))?;
                namespace.ip("link set under up")?;
                weft_tests::wait_until(
                    "Open vSwitch knows the underlay",
                    std::time::Duration::from_secs(10),
                    || {
                        switch
                            .control("ovs/route/show")
                            .is_ok_and(|routes| routes.contains("dev under"))
                    },
                )?;
                switch.control(&format!(
                    "tnl/arp/set under {} {}",
                    address(far.1),
                    mac(far.0)
                ))?;
                switch.set_flows(
                    "under",
                    "in_port=LOCAL,actions=output:b\nin_port=b,actions=LOCAL\n",
                )?;
                switch.set_flows("br0", &stateful())?;
            }
        }
        Ok(Self { switch, _lab: lab })
    }
}

impl Switch for Ovs {
    fn sockets(&self) -> [PathBuf; 2] {
        ["a", "b"].map(|port| self.switch.directory().join(port))
    }

    fn process(&self) -> &Daemon {
        &self.switch.switch
    }
}

/// Every packet is tracked. What belongs to a connection that was admitted passes; others have so many rules before the one that admits them.
fn stateful() -> String {
    let admit = |port: u16, priority: u16| {
        format!(
            "table=1,priority={priority},udp,ct_state=+new+trk,tp_dst={port},actions=ct(commit,zone={VNI}),resubmit(,2)\n"
        )
    };
    let rules: String = (0..RULES)
        .map(|number| admit(20_000 + number, 50))
        .collect();
    format!(
        "table=0,ip,ct_state=-trk,actions=ct(table=1,zone={VNI})\n\
         table=1,priority=100,ct_state=+est+trk,actions=resubmit(,2)\n{rules}{}\
         table=2,dl_dst={},actions=output:a\ntable=2,dl_dst={},actions=output:tunnel\n",
        admit(9, 49),
        mac(A.0),
        mac(B.0),
    )
}
