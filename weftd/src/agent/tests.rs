//! States that this host cannot have whole, brought into effect with the compiler that weftd has (decision 013).

use std::fmt::Write;
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use weft_dataplane::snapshot::Snapshot;
use weft_dataplane::snapshot::compile::{Compiler, Context, Underlay};
use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{HostLimits, Objects, Violation};

use super::active::ActiveState;
use super::{Apply, Connection, InForce, persist::Keeper};

const PEERS: u16 = 3;
const PORTS: u16 = 5;
const VPCS: u32 = 4;

/// Compiles what it is to apply, as a host does.
struct Host {
    inner: Mutex<(Compiler, u32, Option<Snapshot>)>,
    /// Refuses all of this VPC, for a reason that nothing foresees.
    unwelcome: Mutex<Option<String>>,
}

impl Apply for Host {
    fn apply(&self, revision: u64, state: &State) -> Result<(), Vec<Violation>> {
        let unwelcome = self.unwelcome.lock().unwrap().clone();
        let mut bad = state
            .iter()
            .filter(|object| object.vpc() == unwelcome.as_deref());
        if let Some(object) = bad.next().filter(|_| unwelcome.is_some()) {
            return Err(vec![Violation {
                object: Some(object.key().to_wire()),
                rule: "is unwelcome".into(),
                ..Violation::default()
            }]);
        }
        let mut inner = self.inner.lock().unwrap();
        let (compiler, generation, snapshot) = &mut *inner;
        let (underlay, silent) = (Underlay::default(), std::collections::BTreeSet::new());
        let context = Context {
            host: "h1",
            generation: *generation + 1,
            revision,
            underlay: &underlay,
            metadata: false,
            translations: &[],
            externals: &[],
            silent: &silent,
        };
        *snapshot = Some(compiler.compile(state, &context)?);
        *generation += 1;
        Ok(())
    }
}

fn host() -> (Arc<Host>, Arc<ActiveState>) {
    host_with(PEERS)
}

/// A host that knows so many others.
fn host_with(peers: u16) -> (Arc<Host>, Arc<ActiveState>) {
    let host = Arc::new(Host {
        inner: Mutex::new((Compiler::new(PORTS, peers, VPCS), 0, None)),
        unwelcome: Mutex::default(),
    });
    let limits = HostLimits {
        ports: PORTS.into(),
        peers: peers.into(),
        vpcs: VPCS,
        ..HostLimits::default()
    };
    let apply: Arc<dyn Apply> = host.clone();
    let force = ActiveState::new(("h1".into(), limits), apply, Connection::Connected);
    (host, Arc::new(force))
}

fn state(text: &str) -> State {
    let objects: Objects = serde_yaml_ng::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    State::from_objects(objects).unwrap()
}

async fn bring(force: &Arc<ActiveState>, revision: u64, state: &State) -> InForce {
    force
        .bring(InForce::new(revision, state.clone()))
        .await
        .unwrap_or_else(|refused| panic!("{refused:?}"));
    let known = force.status().in_force.unwrap();
    assert_eq!(
        (known.revision, known.digest),
        (revision, state.digest()),
        "deltas go on from what was received"
    );
    known
}

/// What is held back, and since when it is as it is.
fn held(known: &InForce) -> Vec<(String, u64)> {
    let held = known.held_back.iter();
    held.map(|held| {
        let object = held.object.clone().unwrap();
        (
            format!("{} {}", object.kind, object.id),
            held.in_force_revision,
        )
    })
    .collect()
}

fn of_vpc(state: &State, vpc: &str) -> Vec<Object> {
    state.of_vpc(vpc).cloned().collect()
}

/// Blue and red, with one port each here; red also on these hosts, and blue on h2.
fn two(red: &[u32], blue_rule: &str) -> String {
    let mut text = String::from(
        "hosts:\n  - {id: h1, vteps: [192.0.2.1]}\n  - {id: h2, vteps: [192.0.2.2]}\n",
    );
    for host in red.iter().filter(|host| **host > 2) {
        writeln!(text, "  - {{id: h{host}, vteps: [192.0.2.{host}]}}").unwrap();
    }
    write!(
        text,
        r#"
vpcs: [{{id: blue, vni: 1}}, {{id: red, vni: 2}}]
subnets:
  - {{id: blue-a, vpc: blue, cidrs: [10.1.0.0/16]}}
  - {{id: red-a, vpc: red, cidrs: [10.2.0.0/16]}}
security_groups:
  - {{id: web, vpc: blue, rules: [{blue_rule}]}}
  - {{id: own, vpc: red, rules: [{{direction: ingress, remote_group: own}}]}}
ports:
  - {{id: b1, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:01", addresses: [10.1.0.11], security_groups: [web], host: h1, device: {{kind: netdev, name: b1}}}}
  - {{id: b2, vpc: blue, subnet: blue-a, mac: "02:00:00:00:00:02", addresses: [10.1.0.12], host: h2}}
  - {{id: r1, vpc: red, subnet: red-a, mac: "02:00:00:00:00:01", addresses: [10.2.0.11], security_groups: [own], host: h1, device: {{kind: netdev, name: r1}}}}
"#
    )
    .unwrap();
    for host in red {
        writeln!(text, "  - {{id: r{host}, vpc: red, subnet: red-a, mac: \"02:00:00:00:00:{host:02}\", addresses: [10.2.0.{host}], host: h{host}}}").unwrap();
    }
    text
}

const RULE: &str = "{direction: ingress, protocol: tcp, port_min: 80, port_max: 80}";

#[tokio::test]
async fn a_vpc_that_outgrows_the_host_stays_behind_and_the_others_go_on() {
    let (_, force) = host();
    let small = state(&two(&[3], RULE));
    bring(&force, 1, &small).await;
    // Four other hosts in all, of which this one knows three; and blue deletes a rule.
    let large = state(&two(&[3, 4, 5], ""));
    let known = bring(&force, 2, &large).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 1)]);
    let reason = &known.held_back[0].violations[0].rule;
    assert_eq!(
        reason,
        "with it this host would know 4 other hosts, and knows at most 3 (limits.peers)"
    );
    assert_eq!(of_vpc(&known.effective, "blue"), of_vpc(&large, "blue"));
    assert_eq!(of_vpc(&known.effective, "red"), of_vpc(&small, "red"));
    // A change of blue's alone does not wait for red, nor does red come in by it.
    let known = bring(&force, 3, &state(&two(&[3, 4, 5], RULE))).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 1)]);
    assert_eq!(of_vpc(&known.effective, "blue"), of_vpc(&small, "blue"));
    // It fits again, and catches up.
    let fits = state(&two(&[3, 4], RULE));
    let known = bring(&force, 4, &fits).await;
    assert_eq!(held(&known), []);
    assert_eq!(*known.effective, fits);
}

#[tokio::test]
async fn a_vpc_that_is_new_and_too_large_is_absent_and_one_that_needs_less_goes_first() {
    let (_, force) = host();
    let large = state(&two(&[3, 4, 5], RULE));
    let known = bring(&force, 1, &large).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 0)]);
    assert_eq!(of_vpc(&known.effective, "red"), []);
    assert_eq!(known.effective.of_kind(Kind::Host).count(), 2, "h1 and h2");
    // Deleted, it is held back no more.
    let mut without = state(&two(&[], RULE));
    for object in of_vpc(&without.clone(), "red") {
        without.remove(&object.key());
    }
    let known = bring(&force, 2, &without).await;
    assert_eq!(held(&known), []);
}

#[tokio::test]
async fn what_is_held_back_is_so_after_a_restart_too() {
    let directory = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(directory.path()).unwrap();
    let (_, force) = host();
    let (small, large) = (state(&two(&[3], RULE)), state(&two(&[3, 4, 5], "")));
    bring(&force, 1, &small).await;
    let before = bring(&force, 2, &large).await;
    keeper.keep_newest(&force);

    let (_, force) = host();
    let stored = keeper.load("h1").unwrap().unwrap();
    force.restore(stored).await.unwrap();
    let known = force.status().in_force.unwrap();
    assert_eq!((known.revision, known.digest), (2, large.digest()));
    assert_eq!(known.state, before.state);
    assert_eq!(known.effective, before.effective);
    assert_eq!(known.held_back, before.held_back);
    let known = bring(&force, 3, &small).await;
    assert_eq!(held(&known), []);

    // With more room it catches up at the start; with less, what needs most goes.
    let (_, force) = host_with(PEERS + 1);
    force
        .restore(keeper.load("h1").unwrap().unwrap())
        .await
        .unwrap();
    let known = force.status().in_force.unwrap();
    assert_eq!((held(&known), &*known.effective), (vec![], &large));
    let (_, force) = host_with(1);
    force
        .restore(keeper.load("h1").unwrap().unwrap())
        .await
        .unwrap();
    let known = force.status().in_force.unwrap();
    assert_eq!(known.digest, large.digest());
    assert_eq!(held(&known), [("vpc red".to_owned(), 0)]);
    assert_eq!(of_vpc(&known.effective, "blue"), of_vpc(&large, "blue"));
}

#[tokio::test]
async fn a_reason_that_nothing_foresaw_holds_back_its_vpc_alone() {
    let (host, force) = host();
    let (one, two) = (state(&two(&[3], RULE)), state(&two(&[3, 4], "")));
    bring(&force, 1, &one).await;
    // Its old version is refused as well: it goes, and no other.
    *host.unwelcome.lock().unwrap() = Some("red".into());
    let known = bring(&force, 2, &two).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 0)]);
    assert_eq!(known.held_back[0].violations[0].rule, "is unwelcome");
    assert_eq!(of_vpc(&known.effective, "red"), []);
    assert_eq!(of_vpc(&known.effective, "blue"), of_vpc(&two, "blue"));
    *host.unwelcome.lock().unwrap() = None;
    let known = bring(&force, 3, &two).await;
    assert_eq!(held(&known), []);
}

#[tokio::test]
async fn a_rule_that_is_broken_holds_back_the_unit_that_breaks_it() {
    let (_, force) = host();
    let good = state(&two(&[3], RULE));
    bring(&force, 1, &good).await;
    let text = two(&[3], "").replace("10.2.0.3]", "10.9.0.3]");
    let known = bring(&force, 2, &state(&text)).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 1)]);
    assert_eq!(of_vpc(&known.effective, "red"), of_vpc(&good, "red"));
    let known = bring(&force, 3, &good).await;
    assert_eq!(held(&known), []);
    // The host's own object is the whole.
    let broken = two(&[3], "").replace("{id: h1, vteps: [192.0.2.1]}", "{id: h1, vteps: []}");
    let refused = force
        .bring(InForce::new(4, state(&broken)))
        .await
        .unwrap_err();
    assert_eq!(refused[0].field, "vteps");
    assert_eq!(force.status().revision(), 3);
}

/// Red and blue with a peering, and a group of red's that names one of blue's.
fn joined(red: &[u32], blue: &str, peering: &str) -> String {
    let text = two(red, RULE).replace(
        "rules: [{direction: ingress, remote_group: own}]",
        "rules: [{direction: ingress, remote_group: own}, {direction: ingress, remote_group: web}]",
    );
    let text = if blue.is_empty() {
        text.replace("{id: web,", "{id: other,")
            .replace("[web]", "[other]")
    } else {
        text
    };
    format!("{text}{peering}")
}

#[tokio::test]
async fn a_peering_closes_at_once_while_one_of_its_vpcs_is_held_back() {
    let (host, force) = host();
    let active = "peerings: [{id: p, requester: blue, accepter: red, requester_state: active, accepter_state: active}]";
    bring(&force, 1, &state(&joined(&[3], "web", active))).await;
    let passes = || {
        let inner = host.inner.lock().unwrap();
        let snapshot = inner.2.as_ref().unwrap();
        let peerings = snapshot.vpcs.iter().flat_map(|vpc| vpc.peerings.iter());
        peerings
            .map(|peering| peering.passes)
            .collect::<Vec<bool>>()
    };
    assert_eq!(passes(), [true, true]);
    let frozen = active.replace("requester_state: active", "requester_state: frozen");
    let known = bring(&force, 2, &state(&joined(&[3, 4, 5], "web", &frozen))).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 1)]);
    assert_eq!(passes(), [false, false]);
}

#[tokio::test]
async fn a_rule_of_a_held_vpc_that_names_a_group_which_is_gone_matches_nothing() {
    let (host, force) = host();
    let active = "peerings: [{id: p, requester: blue, accepter: red, requester_state: active, accepter_state: active}]";
    bring(&force, 1, &state(&joined(&[3], "web", active))).await;
    // Blue's group is another now; red's new rules would not name it, but its old ones do.
    let large =
        joined(&[3, 4, 5], "", active).replace(", {direction: ingress, remote_group: web}", "");
    let known = bring(&force, 2, &state(&large)).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 1)]);
    let Some(Object::SecurityGroup(own)) = known.effective.find(Kind::SecurityGroup, "own") else {
        panic!("red's group has gone")
    };
    assert_eq!(own.rules.len(), 2);
    assert_eq!(
        (
            &*own.rules[1].remote_group,
            &*own.rules[1].remote_prefix_list
        ),
        ("", "@red")
    );
    let inner = host.inner.lock().unwrap();
    let ports = &inner.2.as_ref().unwrap().ports;
    assert_eq!(ports.iter().flatten().count(), 2, "red's port is there");
}

#[tokio::test]
async fn what_a_held_vpc_had_and_another_has_now_is_the_others() {
    // The device of its port.
    let (_, force) = host();
    bring(&force, 1, &state(&two(&[3], RULE))).await;
    let moved = two(&[3, 4, 5], RULE)
        .replace("name: r1", "name: r9")
        .replace("name: b1", "name: r1");
    let known = bring(&force, 2, &state(&moved)).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 1)]);
    assert!(
        known.effective.find(Kind::Port, "r1").is_none(),
        "nor is it a port of red any more"
    );
    assert!(known.effective.find(Kind::Port, "b1").is_some());

    // The VLAN of its subport.
    let (_, force) = host();
    let with = |red: &[u32], (id, vpc, last): (&str, &str, u8)| {
        let mut text = two(red, RULE);
        let net = if vpc == "red" { 2 } else { 1 };
        writeln!(text, "  - {{id: {id}, vpc: {vpc}, subnet: {vpc}-a, mac: \"02:00:00:00:07:{last:02}\", addresses: [10.{net}.0.{last}], host: h1, trunk: {{parent: b1, vlan: 5}}}}").unwrap();
        state(&text)
    };
    bring(&force, 1, &with(&[3], ("sr", "red", 77))).await;
    let known = bring(&force, 2, &with(&[3, 4, 5], ("sb", "blue", 78))).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 1)]);
    assert!(known.effective.find(Kind::Port, "sr").is_none());
    assert!(known.effective.find(Kind::Port, "sb").is_some());
    assert!(known.effective.find(Kind::Port, "r1").is_some());

    // An id of its ports: what its routes name must not lead into another VPC.
    let (_, force) = host();
    bring(&force, 1, &state(&two(&[3], RULE))).await;
    let mut taken = state(&two(&[3, 4, 5], RULE));
    let key = |id: &str| Key {
        kind: Kind::Port,
        id: id.into(),
    };
    let Some(Object::Port(mut port)) = taken.remove(&key("b1")) else {
        panic!("b1 is not there")
    };
    taken.remove(&key("r1"));
    port.id = "r1".into();
    taken.insert(Object::Port(port));
    let known = bring(&force, 2, &taken).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 0)]);
    assert_eq!(of_vpc(&known.effective, "red"), []);
    assert_eq!(of_vpc(&known.effective, "blue"), of_vpc(&taken, "blue"));

    // Its VNI.
    let (_, force) = host();
    bring(&force, 1, &state(&two(&[3], RULE))).await;
    let renumbered = two(&[3, 4, 5], RULE)
        .replace("{id: red, vni: 2}", "{id: red, vni: 7}")
        .replace("{id: blue, vni: 1}", "{id: blue, vni: 2}");
    let known = bring(&force, 2, &state(&renumbered)).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 0)]);
    assert_eq!(of_vpc(&known.effective, "red"), []);
}

#[tokio::test]
async fn an_elastic_ip_that_leaves_a_held_vpc_is_the_others_and_the_vpc_stays_as_it_was() {
    let outside = |elastic: &str| {
        format!(
            "external_networks: [{{id: inet, physical_network: p, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], gateway_hosts: [h2]}}]\nelastic_ips: [{elastic}]\n"
        )
    };
    let text = |red: &[u32], elastic: &str| {
        let hosts = "{id: h2, vteps: [192.0.2.2]}";
        let text = two(red, RULE).replace(
            hosts,
            "{id: h2, vteps: [192.0.2.2], physical_networks: [p]}",
        );
        state(&format!("{text}{}", outside(elastic)))
    };
    let bound = |port: &str, address: u8| {
        format!(
            "{{id: e{address}, external_network: inet, address: 203.0.113.{address}, port: {port}}}"
        )
    };
    let (_, force) = host();
    bring(
        &force,
        1,
        &text(&[3], &format!("{}, {}", bound("r1", 7), bound("r3", 8))),
    )
    .await;
    let next = text(&[3, 4, 5], &bound("b1", 7));
    let known = bring(&force, 2, &next).await;
    assert_eq!(held(&known), [("vpc red".to_owned(), 1)]);
    assert!(!of_vpc(&known.effective, "red").is_empty());
    let ports: Vec<&str> = known
        .effective
        .of_kind(Kind::ElasticIp)
        .map(|object| match object {
            Object::ElasticIp(elastic) => &*elastic.port,
            _ => "",
        })
        .collect();
    assert_eq!(ports, ["b1", "r3"], "one is blue's, the other still red's");
}

#[tokio::test]
async fn a_host_that_takes_anothers_place_fits_where_that_one_did() {
    let (_, force) = host();
    bring(&force, 1, &state(&two(&[3, 4], RULE))).await;
    for (revision, hosts) in [(2, [3, 5]), (3, [6, 5]), (4, [3, 4])] {
        let next = state(&two(&hosts, RULE));
        let known = bring(&force, revision, &next).await;
        assert_eq!(held(&known), []);
        assert_eq!(*known.effective, next);
    }
}

/// Of a random state: for each VPC its number of ports here, and the hosts of its other ports.
type Plan = Vec<Option<(u32, Vec<u32>)>>;

fn plan(random: &mut StdRng, most: u32) -> Plan {
    (0..5)
        .map(|_| {
            random.random_ratio(4, 5).then(|| {
                let there = (2..8).filter(|_| random.random_ratio(1, most));
                let there: Vec<u32> = there.collect();
                (random.random_range(0..3), there)
            })
        })
        .collect()
}

fn random_state(plan: &Plan, random: &mut StdRng) -> State {
    let mut hosts = String::from("hosts:\n  - {id: h1, vteps: [192.0.2.1]}\n");
    let [mut vpcs, mut subnets, mut tables, mut groups, mut ports] =
        [(); 5].map(|()| String::new());
    let named = plan.iter().flatten().flat_map(|(_, there)| there);
    for host in named.collect::<std::collections::BTreeSet<_>>() {
        writeln!(hosts, "  - {{id: h{host}, vteps: [192.0.2.{host}]}}").unwrap();
    }
    for (vpc, (here, there)) in plan
        .iter()
        .enumerate()
        .filter_map(|(i, it)| Some((i, it.as_ref()?)))
    {
        writeln!(vpcs, "  - {{id: v{vpc}, vni: {}}}", vpc + 1).unwrap();
        writeln!(
            subnets,
            "  - {{id: s{vpc}, vpc: v{vpc}, cidrs: [10.{vpc}.0.0/16], route_table: t{vpc}}}"
        )
        .unwrap();
        let route = there.first().map_or(String::new(), |host| {
            format!("{{prefix: 0.0.0.0/0, host: h{host}}}")
        });
        writeln!(tables, "  - {{id: t{vpc}, vpc: v{vpc}, routes: [{route}]}}").unwrap();
        let port = random.random_range(1..100);
        // Groups of others are named where a peering joins the two.
        let other = if vpc == 1 && plan[0].is_some() {
            ", {direction: ingress, remote_group: g0}"
        } else {
            ""
        };
        writeln!(groups, "  - {{id: g{vpc}, vpc: v{vpc}, rules: [{{direction: ingress, protocol: tcp, port_min: {port}, port_max: {port}}}{other}]}}").unwrap();
        for number in 0..*here {
            writeln!(ports, "  - {{id: p{vpc}-{number}, vpc: v{vpc}, subnet: s{vpc}, mac: \"02:00:00:00:01:{number:02}\", addresses: [10.{vpc}.1.{}], security_groups: [g{vpc}], host: h1, device: {{kind: netdev, name: d{vpc}-{number}}}}}", number + 1).unwrap();
        }
        for host in there {
            writeln!(ports, "  - {{id: p{vpc}-h{host}, vpc: v{vpc}, subnet: s{vpc}, mac: \"02:00:00:00:02:{host:02}\", addresses: [10.{vpc}.2.{host}], host: h{host}}}").unwrap();
        }
    }
    let mut text = hosts;
    for (name, list) in [
        ("vpcs", &vpcs),
        ("subnets", &subnets),
        ("route_tables", &tables),
        ("security_groups", &groups),
        ("ports", &ports),
    ] {
        if !list.is_empty() {
            writeln!(text, "{name}:\n{list}").unwrap();
        }
    }
    if plan[0].is_some() && plan[1].is_some() {
        text += "peerings: [{id: p, requester: v0, accepter: v1, requester_state: active, accepter_state: active}]\n";
    }
    state(&text)
}

/// The invariants of every state, whatever came before: the received one is in force but for what is held back, which is as it was or absent; and nothing
/// is held back that would fit.
#[tokio::test]
async fn whatever_does_not_fit_all_else_is_in_force() {
    let mut ever_held = 0;
    for seed in 0..150 {
        let random = &mut StdRng::seed_from_u64(seed);
        let (_, force) = host();
        let mut before = State::default();
        for revision in 1..8 {
            let received = random_state(&plan(random, 3), random);
            let known = bring(&force, revision, &received).await;
            let held = held(&known);
            for vpc in (0..5).map(|vpc| format!("v{vpc}")) {
                // A rule of v1 may name a group of v0 that is not there now, and matches nothing then.
                let compared = |state: &State| {
                    let mut objects = of_vpc(state, &vpc);
                    let policy = [Kind::SecurityGroup, Kind::PrefixList];
                    objects.retain(|object| vpc != "v1" || !policy.contains(&object.kind()));
                    objects
                };
                let is_held = held.iter().any(|(unit, _)| *unit == format!("vpc {vpc}"));
                let expected = if is_held { &before } else { &received };
                assert_eq!(
                    compared(&known.effective),
                    compared(expected),
                    "seed {seed}, revision {revision}, {vpc}"
                );
            }
            // The hosts that are named are known, and no others.
            let hosts = known.effective.of_kind(Kind::Host).count();
            assert!(hosts <= usize::from(PEERS) + 1);
            ever_held += held.len();
            before = State::clone(&known.effective);
        }
        // One that needs little follows, and all is in sync.
        let received = random_state(&vec![Some((1, vec![2])), None, Some((1, vec![3]))], random);
        let known = bring(&force, 9, &received).await;
        assert_eq!(*known.effective, received, "seed {seed}");
        assert!(known.held_back.is_empty());
    }
    assert!(ever_held > 100, "{ever_held}");
}

/// Everything of the others is as if the one that is too large had not grown.
#[tokio::test]
async fn beside_a_vpc_that_is_too_large_all_others_compile_to_the_same_as_without_its_growth() {
    let mut grown = 0;
    for seed in 0..150 {
        let random = &mut StdRng::seed_from_u64(1000 + seed);
        let ((one, force), (other, reference)) = (host(), host());
        let small = vec![Some((1, vec![2])), Some((1, vec![])), Some((2, vec![3]))];
        let first = random_state(&small, random);
        bring(&force, 1, &first).await;
        bring(&reference, 1, &first).await;
        // v2 grows past the host's room, and the others change with it.
        let mut next: Plan = small.clone();
        next[0] = Some((random.random_range(0..3), vec![2]));
        next[1] = random.random::<bool>().then_some((1, vec![]));
        let kept = next.clone();
        let there: Vec<u32> = (3..8).filter(|_| random.random_ratio(4, 5)).collect();
        let is_over = there.len() + 1 > usize::from(PEERS);
        next[2] = Some((1, there));
        let seed_of_rules = random.random();
        let large = random_state(&next, &mut StdRng::seed_from_u64(seed_of_rules));
        let mut as_it_was = random_state(&kept, &mut StdRng::seed_from_u64(seed_of_rules));
        for object in of_vpc(&first, "v2") {
            as_it_was.insert(object);
        }
        if !is_over {
            continue;
        }
        grown += 1;
        let known = bring(&force, 2, &large).await;
        assert_eq!(held(&known), [("vpc v2".to_owned(), 1)], "seed {seed}");
        let expected = bring(&reference, 2, &as_it_was).await;
        assert_eq!(*known.effective, *expected.effective, "seed {seed}");
        let (one, other) = (one.inner.lock().unwrap(), other.inner.lock().unwrap());
        let (one, other) = (one.2.as_ref().unwrap(), other.2.as_ref().unwrap());
        let ports =
            |snapshot: &Snapshot| format!("{:?}", snapshot.ports.iter().collect::<Vec<_>>());
        assert_eq!(ports(one), ports(other), "seed {seed}");
        assert_eq!(format!("{:?}", one.peers), format!("{:?}", other.peers));
    }
    assert!(grown > 50, "{grown}");
}
