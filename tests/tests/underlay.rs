//! Next hops to peers as the kernel reports them, and changes of them.

#![allow(clippy::unwrap_used)]

use std::{net::IpAddr, time::Duration};

use tokio::time::timeout;
use weft_tests::{Lab, LinkOptions, Namespace};
use weftd::underlay::{Adjacencies, Adjacency, Underlay, Unreachable};

const SOON: Duration = Duration::from_secs(10);

struct Net {
    _lab: Lab,
    dut: Namespace,
    peer: Namespace,
}

fn net() -> Net {
    let mut lab = Lab::new().unwrap();
    let (dut, peer) = (lab.host("dut").unwrap(), lab.host("peer").unwrap());
    lab.link(
        (&dut, "under0"),
        (&peer, "peer0"),
        LinkOptions {
            mtu: 1600,
            queues: 1,
        },
    )
    .unwrap();
    dut.ip("address add 192.0.2.1/24 dev under0").unwrap();
    dut.ip("address add 2001:db8::1/64 dev under0 nodad")
        .unwrap();
    peer.ip("address add 192.0.2.2/24 dev peer0").unwrap();
    peer.ip("address add 2001:db8::2/64 dev peer0 nodad")
        .unwrap();
    peer.ip("link set peer0 address 02:00:00:00:00:22").unwrap();
    Net {
        _lab: lab,
        dut,
        peer,
    }
}

fn in_namespace(namespace: &Namespace, test: impl AsyncFnOnce(Underlay) + Send) {
    namespace
        .enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { test(Underlay::start().unwrap()).await });
        })
        .unwrap();
}

/// Waits until what is known about `peer` is as `wanted`.
async fn until(
    underlay: &Underlay,
    peer: &str,
    wanted: impl Fn(&Result<Adjacency, Unreachable>) -> bool,
) -> Result<Adjacency, Unreachable> {
    let peer: IpAddr = peer.parse().unwrap();
    let mut watch = underlay.adjacencies();
    let found = timeout(
        SOON,
        watch.wait_for(|all| all.get(&peer).is_some_and(&wanted)),
    )
    .await;
    match found {
        Ok(all) => all.unwrap()[&peer].clone(),
        Err(_) => panic!("{peer}: {:?}", underlay.adjacencies().borrow().get(&peer)),
    }
}

fn set(underlay: &Underlay, peers: &[&str]) {
    underlay.set_peers(peers.iter().map(|peer| peer.parse().unwrap()));
}

#[test]
fn a_neighbour_is_resolved_over_both_families_and_through_a_gateway() {
    let net = net();
    net.dut
        .ip("route add 198.51.100.0/24 via 192.0.2.2 mtu 1450")
        .unwrap();
    in_namespace(&net.dut, async |underlay| {
        set(&underlay, &["192.0.2.2", "2001:db8::2", "198.51.100.7"]);
        let direct = until(&underlay, "192.0.2.2", Result::is_ok).await.unwrap();
        assert_eq!(direct.next_hop_mac, [2, 0, 0, 0, 0, 0x22]);
        assert_eq!((direct.uplink.as_str(), direct.mtu), ("under0", 1600));
        assert_eq!(direct.source, Some("192.0.2.1".parse().unwrap()));
        assert_ne!(direct.source_mac, [0; 6]);
        let six = until(&underlay, "2001:db8::2", Result::is_ok)
            .await
            .unwrap();
        assert_eq!(six.next_hop_mac, direct.next_hop_mac);
        assert_eq!(six.source, Some("2001:db8::1".parse().unwrap()));
        let far = until(&underlay, "198.51.100.7", Result::is_ok)
            .await
            .unwrap();
        assert_eq!(far.next_hop, "192.0.2.2".parse::<IpAddr>().unwrap());
        assert_eq!((far.next_hop_mac, far.mtu), (direct.next_hop_mac, 1450));
    });
}

#[test]
fn answers_are_waited_for_and_a_next_hop_that_is_gone_for_no_longer_than_is_said() {
    let net = net();
    in_namespace(&net.dut, async |underlay| {
        let way = |known: &Adjacencies, peer: &str| known[&peer.parse::<IpAddr>().unwrap()].clone();
        set(&underlay, &["192.0.2.2", "2001:db8::2"]);
        let known = timeout(SOON, underlay.answered(2 * SOON)).await.unwrap();
        assert!(way(&known, "192.0.2.2").is_ok() && way(&known, "2001:db8::2").is_ok());
        set(&underlay, &["192.0.2.2", "192.0.2.9"]);
        let little = Duration::from_millis(100);
        let known = timeout(SOON, underlay.answered(little)).await.unwrap();
        assert!(way(&known, "192.0.2.2").is_ok());
        assert_eq!(way(&known, "192.0.2.9"), Err(Unreachable::Resolving));
    });
}

#[test]
fn why_a_peer_cannot_be_reached_is_said() {
    let net = net();
    net.dut.ip("route add unreachable 198.51.100.0/24").unwrap();
    in_namespace(&net.dut, async |underlay| {
        set(
            &underlay,
            &["192.0.2.1", "198.51.100.1", "203.0.113.1", "192.0.2.99"],
        );
        for (peer, reason) in [
            ("192.0.2.1", Unreachable::Local),
            ("198.51.100.1", Unreachable::NoRoute),
            ("203.0.113.1", Unreachable::NoRoute),
            ("192.0.2.99", Unreachable::NoAnswer),
        ] {
            until(&underlay, peer, |way| *way == Err(reason))
                .await
                .unwrap_err();
        }
        // The kernel goes on trying: that is no news.
        let mut watch = underlay.adjacencies();
        watch.mark_unchanged();
        assert!(
            timeout(Duration::from_secs(4), watch.changed())
                .await
                .is_err()
        );
    });
}

#[test]
fn a_new_mac_a_lost_link_and_a_new_route_are_noticed() {
    let net = net();
    let peer = net.peer.clone();
    let dut = net.dut.clone();
    in_namespace(&net.dut, async move |underlay| {
        set(&underlay, &["192.0.2.2"]);
        until(&underlay, "192.0.2.2", Result::is_ok).await.unwrap();
        peer.run(&["sysctl", "-qw", "net.ipv4.conf.peer0.arp_notify=1"])
            .unwrap();
        peer.ip("link set peer0 address 02:00:00:00:00:33").unwrap();
        let changed = |way: &Result<Adjacency, Unreachable>| {
            way.as_ref()
                .is_ok_and(|way| way.next_hop_mac == [2, 0, 0, 0, 0, 0x33])
        };
        until(&underlay, "192.0.2.2", changed).await.unwrap();
        dut.ip("link set under0 down").unwrap();
        until(&underlay, "192.0.2.2", Result::is_err)
            .await
            .unwrap_err();
        dut.ip("link set under0 up").unwrap();
        until(&underlay, "192.0.2.2", Result::is_ok).await.unwrap();
        dut.ip("route replace unreachable 192.0.2.2/32").unwrap();
        until(&underlay, "192.0.2.2", |way| {
            *way == Err(Unreachable::NoRoute)
        })
        .await
        .unwrap_err();
        set(&underlay, &[]);
        let mut watch = underlay.adjacencies();
        timeout(SOON, watch.wait_for(|all| all.is_empty()))
            .await
            .unwrap()
            .unwrap();
    });
}

#[test]
fn an_entry_of_the_administrator_stays_as_it_is() {
    let net = net();
    net.dut
        .ip("neigh replace 192.0.2.50 lladdr 02:00:00:00:00:50 dev under0 nud permanent")
        .unwrap();
    in_namespace(&net.dut, async |underlay| {
        set(&underlay, &["192.0.2.50"]);
        let way = until(&underlay, "192.0.2.50", Result::is_ok).await.unwrap();
        assert_eq!(way.next_hop_mac, [2, 0, 0, 0, 0, 0x50]);
    });
    assert!(
        net.dut
            .ip("neigh show 192.0.2.50")
            .unwrap()
            .contains("PERMANENT")
    );
}
