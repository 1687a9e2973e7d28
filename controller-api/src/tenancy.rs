//! What a tenant's certificate may see and change: the objects of that tenant's VPCs and its elastic IPs, and nothing that tells of another's. Of the
//! operator's external networks it sees the addresses, and not where they are.
//!
//! A change by a tenant is validated twice: first within what the tenant sees, so that an error can name only that; then as a whole, where what
//! is left is a conflict with somebody else's objects, of which nothing is told. Ids that a tenant makes begin with its own name, so that they
//! never meet another's.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use weft_process::tls::Role;
use weft_proto::labels::Labels;
use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{self, Violation};
use weft_proto::validate::{Scope, validate, validate_next};

use crate::caller::Caller;
use crate::store::Form;

const NOT_YOURS: &str = "only the operator sets it";
const CONFLICT: &str = "conflicts with what another tenant or the operator has";

/// The tenant that an object belongs to: its own, or that of its VPC. None: the operator's, as hosts are, or of a VPC that does not exist.
fn owner<'s>(state: &'s State, object: &'s Object) -> Option<&'s str> {
    let vpc = match object {
        Object::Host(_) | Object::Peering(_) => return None,
        Object::Quota(quota) => return Some(&quota.tenant),
        Object::Vpc(vpc) => return Some(&vpc.tenant),
        Object::ExternalNetwork(network) => return Some(&network.tenant),
        Object::ElasticIp(elastic) => return Some(&elastic.tenant),
        other if other.tenant_wide().is_some() => return other.tenant_wide(),
        other => other.vpc()?,
    };
    tenant(state, vpc)
}

/// The tenant of a VPC.
pub(crate) fn tenant<'s>(state: &'s State, vpc: &str) -> Option<&'s str> {
    match state.find(Kind::Vpc, vpc)? {
        Object::Vpc(vpc) => Some(&vpc.tenant),
        _ => None,
    }
}

/// The tenants whose an object is: both sides' with a peering; none with what is the operator's.
pub(crate) fn owners(state: &State, object: &Object) -> Vec<String> {
    let mut owners: Vec<&str> = match object {
        Object::Peering(peering) => {
            let vpcs = peering.vpcs().into_iter();
            vpcs.filter_map(|vpc| tenant(state, vpc)).collect()
        }
        other => owner(state, other).into_iter().collect(),
    };
    owners.retain(|owner| !owner.is_empty());
    owners.dedup();
    owners.into_iter().map(str::to_owned).collect()
}

impl Caller {
    /// Whether the caller may do so much with what is in a VPC.
    pub(crate) fn may_in(&self, role: Role, state: &State, vpc: &str) -> bool {
        tenant(state, vpc).is_some_and(|tenant| self.is_of(tenant, role))
    }

    /// Whether the caller may do so much with an object. With a peering: on either side.
    pub(crate) fn may(&self, role: Role, state: &State, object: &Object) -> bool {
        let may = |tenant: Option<&str>| tenant.is_some_and(|tenant| self.is_of(tenant, role));
        self.role >= role
            || match object {
                Object::Peering(peering) => {
                    let mut vpcs = peering.vpcs().into_iter();
                    vpcs.any(|vpc| self.may_in(role, state, vpc))
                }
                Object::Quota(_) | Object::ExternalNetwork(_) if role > Role::Read => false,
                // The operator's are there for every tenant.
                Object::ExternalNetwork(network) if network.tenant.is_empty() => {
                    self.is_tenant(role)
                }
                other => may(owner(state, other)),
            }
    }

    /// The object of that key, if the caller may do so much with it: else it is as if there were none.
    pub(crate) fn find<'s>(&self, role: Role, state: &'s State, key: &Key) -> Option<&'s Object> {
        let found = state.get(key)?;
        self.may(role, state, found).then_some(found)
    }

    /// Whether the caller may do so much with an object as it was, by whose it was then.
    pub(crate) fn may_with(&self, role: Role, form: &Form) -> bool {
        self.role >= role
            || match form.object() {
                Some(Object::Quota(_) | Object::ExternalNetwork(_)) if role > Role::Read => false,
                // The operator's are there for every tenant.
                Some(Object::ExternalNetwork(network)) if network.tenant.is_empty() => {
                    self.is_tenant(role)
                }
                _ => form.owners.iter().any(|owner| self.is_of(owner, role)),
            }
    }

    /// An object that the caller may read, as it is shown: where an external network is, which hosts are its gateways, what is routed to whom, and how what
    /// is the operator's is labelled, only the operator knows.
    pub(crate) fn shown(&self, object: &Object) -> Object {
        match object {
            Object::ExternalNetwork(network) if self.role < Role::Read => {
                Object::ExternalNetwork(v1::ExternalNetwork {
                    physical_network: String::new(),
                    vlan: 0,
                    gateway_hosts: Vec::new(),
                    routed: Vec::new(),
                    labels: Labels::new(),
                    ..network.clone()
                })
            }
            Object::Quota(_) if self.role < Role::Read => object.clone().without_labels(),
            other => other.clone(),
        }
    }
}

/// What a tenant sees of a state, and what its objects may refer to: hosts, the VPCs at the other ends of its peerings, and the groups there.
fn view(caller: &Caller, state: &State) -> State {
    let mut view = State::default();
    for object in state.iter() {
        if object.kind() == Kind::Host || caller.may(Role::Read, state, object) {
            view.insert(object.clone());
        }
    }
    for object in state.of_kind(Kind::Peering) {
        let Object::Peering(peering) = object else {
            continue;
        };
        if !caller.may(Role::Read, state, object) {
            continue;
        }
        for vpc in peering.vpcs() {
            if caller.may_in(Role::Read, state, vpc) {
                continue;
            }
            if let Some(stub) = state.find(Kind::Vpc, vpc) {
                view.insert(stub.clone());
            }
            let groups = state.of_vpc(vpc).filter(|_| peering.is_agreed());
            for object in groups {
                if let Object::SecurityGroup(group) = object {
                    view.insert(Object::SecurityGroup(v1::SecurityGroup {
                        id: group.id.clone(),
                        vpc: group.vpc.clone(),
                        ..v1::SecurityGroup::default()
                    }));
                }
            }
        }
    }
    view
}

fn violation(object: &Object, field: impl Into<String>, rule: impl Into<String>) -> Violation {
    Violation {
        object: Some(object.key().to_wire()),
        field: field.into(),
        rule: rule.into(),
    }
}

/// What a tenant may not write in an object, whoever's it is: another's id, and what is the operator's to say.
pub(crate) fn check_written(caller: &Caller, before: &State, objects: &[Object]) -> Vec<Violation> {
    let mut found = Vec::new();
    for object in objects {
        let old = caller.find(Role::Operate, before, &object.key());
        if old.is_none() && !caller.may_name(object.id()) {
            let rule = format!("begins with {}", caller.prefixes());
            found.push(violation(object, "id", rule));
            continue;
        }
        // Something that the operator made for another under this tenant's name: it must not be replaced.
        if old.is_none() && before.get(&object.key()).is_some() {
            found.push(violation(object, "id", CONFLICT));
            continue;
        }
        match object {
            Object::Host(_) | Object::Quota(_) | Object::ExternalNetwork(_) => {
                found.push(violation(object, "", "is the operator's"));
            }
            Object::Vpc(vpc) => {
                if !caller.is_of(&vpc.tenant, Role::Operate) {
                    found.push(violation(object, "tenant", "is your own"));
                }
                let is_kept = matches!(old, Some(Object::Vpc(old)) if old.vni == vpc.vni);
                if vpc.vni != 0 && !is_kept {
                    found.push(violation(
                        object,
                        "vni",
                        "is chosen by the controller: leave it out",
                    ));
                }
            }
            Object::ElasticIp(elastic) => {
                if !caller.is_of(&elastic.tenant, Role::Operate) {
                    found.push(violation(object, "tenant", "is your own"));
                }
                let was = match old {
                    Some(Object::ElasticIp(old)) => old.limits,
                    _ => None,
                };
                if elastic.limits != was {
                    found.push(violation(object, "limits", NOT_YOURS));
                }
            }
            // What one has of a gateway host's table of mappings, others have not.
            Object::NatGateway(nat) => {
                let was = match old {
                    Some(Object::NatGateway(old)) => old.limits,
                    _ => None,
                };
                if nat.limits != was {
                    found.push(violation(object, "limits", NOT_YOURS));
                }
            }
            Object::SecurityGroup(_) | Object::PrefixList(_) => {
                if let Some(tenant) = object.tenant_wide()
                    && !caller.is_of(tenant, Role::Operate)
                {
                    found.push(violation(object, "tenant", "is your own"));
                }
            }
            Object::Port(port) => {
                let was = match old {
                    Some(Object::Port(old)) => old.clone(),
                    _ => v1::Port::default(),
                };
                for (field, is_same) in [
                    ("host", port.host == was.host),
                    ("device", port.device == was.device),
                    ("trunk", port.trunk == was.trunk),
                    ("limits", port.limits == was.limits),
                ] {
                    if !is_same {
                        found.push(violation(object, field, NOT_YOURS));
                    }
                }
            }
            // Whoever puts a subnet on a network has it for itself: nothing else of anybody uses that then.
            Object::Subnet(subnet) if !subnet.external_network.is_empty() => {
                let is_same = matches!(old, Some(Object::Subnet(old))
                    if old.external_network == subnet.external_network && old.vpc == subnet.vpc);
                let network = before.external_network(&subnet.external_network);
                let is_own = network.is_some_and(|network| {
                    !network.tenant.is_empty() && caller.is_of(&network.tenant, Role::Operate)
                });
                if !is_same && !is_own {
                    let rule = "only the operator puts a subnet on a network that is not your own";
                    found.push(violation(object, "external_network", rule));
                }
            }
            Object::RouteTable(table) => {
                let was: BTreeSet<&str> = match old {
                    Some(Object::RouteTable(old)) => old.hosts().collect(),
                    _ => BTreeSet::new(),
                };
                if table.hosts().any(|host| !was.contains(host)) {
                    found.push(violation(
                        object,
                        "routes",
                        "only the operator routes to hosts",
                    ));
                }
            }
            Object::Peering(peering) => {
                let is_own = |vpc: &str| {
                    let new = objects.iter().find_map(|object| match object {
                        Object::Vpc(new) if new.id == vpc => Some(&*new.tenant),
                        _ => None,
                    });
                    new.or_else(|| tenant(before, vpc))
                        .is_some_and(|tenant| caller.is_of(tenant, Role::Operate))
                };
                // The accepter has it accepted or rejected, and changes nothing else.
                let is_same =
                    matches!(old, Some(Object::Peering(old)) if old.vpcs() == peering.vpcs());
                let labels = old.map_or(&peering.labels, Object::labels);
                if !is_same && !is_own(&peering.requester) {
                    let rule = format!("there is no vpc '{}'", peering.requester);
                    found.push(violation(object, "requester", rule));
                } else if *labels != peering.labels && !is_own(&peering.requester) {
                    let rule = "only the requester's side sets them";
                    found.push(violation(object, "labels", rule));
                }
            }
            _ => {}
        }
    }
    found
}

/// The rules that a tenant's change breaks, told without a word of what is not the tenant's. `written` are the objects of the change, `before` is the state
/// before it if that was good.
pub(crate) fn check_result(
    caller: &Caller,
    before: Option<&State>,
    state: &State,
    written: &[Object],
) -> Vec<Violation> {
    // What is put into another's VPC is another's, and would be checked by nobody else.
    let foreign = written
        .iter()
        .filter(|object| !caller.may(Role::Operate, state, object));
    let foreign: Vec<Violation> = foreign
        .map(|object| {
            let rule = format!("there is no vpc '{}'", object.vpc().unwrap_or_default());
            violation(object, "vpc", rule)
        })
        .collect();
    if !foreign.is_empty() {
        return foreign;
    }
    // What breaks no rule, and names nothing that the tenant cannot see, is good within that too.
    if let Some(before) = before
        && written
            .iter()
            .all(|object| names_what_is_seen(caller, state, object))
        && validate_next(before, state, Scope::Intent).is_empty()
    {
        return Vec::new();
    }
    let within = validate(&view(caller, state), Scope::Intent);
    if !within.is_empty() {
        return within;
    }
    let taken = taken_addresses(caller, state, written);
    if !taken.is_empty() {
        return taken;
    }
    let mut all: Vec<Violation> = Vec::new();
    for found in validate(state, Scope::Intent) {
        let key = found
            .object
            .as_ref()
            .and_then(|key| Key::from_wire(key).ok());
        let is_seen = key.is_some_and(|key| {
            let own_quota = key.kind == Kind::Quota
                && key
                    .id
                    .split('/')
                    .next()
                    .is_some_and(|tenant| caller.is_of(tenant, Role::Read));
            own_quota || caller.find(Role::Read, state, &key).is_some()
        });
        let told = match found.object {
            Some(object) if is_seen && object.kind == Kind::Quota.name() => Violation {
                object: Some(object),
                ..found
            },
            Some(object) if is_seen => Violation {
                object: Some(object),
                field: found.field,
                rule: CONFLICT.to_owned(),
            },
            _ => Violation {
                rule: CONFLICT.to_owned(),
                ..Violation::default()
            },
        };
        if !all.contains(&told) {
            all.push(told);
        }
    }
    all
}

/// Whether an object that breaks no rule names nothing but what the tenant sees. Only a group may name what is in another VPC.
fn names_what_is_seen(caller: &Caller, state: &State, object: &Object) -> bool {
    let is_seen = |id: &String| {
        let remote = state.find(Kind::SecurityGroup, id);
        remote.is_none_or(|remote| caller.may(Role::Read, state, remote))
    };
    match object {
        Object::SecurityGroup(group) => group.rules.iter().all(|rule| is_seen(&rule.remote_group)),
        _ => true,
    }
}

/// The written addresses of external networks that somebody else has, without a word of who. Which are taken is no secret: a packet can find out.
fn taken_addresses(caller: &Caller, state: &State, written: &[Object]) -> Vec<Violation> {
    let mut outside: HashMap<IpAddr, Vec<(Cow<'static, str>, &Object)>> = HashMap::new();
    for (object, field, address) in written.iter().flat_map(|object| {
        let addresses = object.outside_addresses();
        addresses.map(move |(field, address)| (object, field, address))
    }) {
        outside.entry(address).or_default().push((field, object));
    }
    if outside.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    let kinds = [Kind::ExternalNetwork, Kind::ElasticIp, Kind::NatGateway].into_iter();
    for other in kinds.flat_map(|kind| state.of_kind(kind)) {
        for (_, address) in other.outside_addresses() {
            let Some(ours) = outside.get(&address) else {
                continue;
            };
            if caller.may(Role::Read, state, other) {
                continue;
            }
            let rule = format!("{address} is taken");
            found.extend(
                ours.iter()
                    .map(|(field, object)| violation(object, field.clone(), &rule)),
            );
        }
    }
    found
}

/// A VNI that no VPC has. At random, so that it tells nothing of the others.
pub(crate) fn free_vni(taken: &BTreeSet<u32>) -> Option<u32> {
    const MOST: usize = 1 << 20;
    (0..MOST)
        .map(|_| rand::random_range(1..1 << 24))
        .find(|vni| !taken.contains(vni))
}
