//! Which members and appliances are at this host's ports, and the tasks that ask them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::task::AbortHandle;
use weft_proto::state::{Key, Kind, Object, State};
use weft_proto::v1::{Listener, LoadBalancer, Member, MemberHealth, Port, PortHealth};

use super::member::{Plan, Standing};
use super::{Service, Subject};

/// The members of the load balancers of a state, and its appliances.
pub(super) struct Members {
    service: Arc<Service>,
    host: String,
    state: State,
    /// By load balancer, and by the id of what is found.
    tasks: HashMap<String, BTreeMap<Key, Task>>,
    /// Those that ask appliances, by port.
    appliances: HashMap<String, Task>,
    /// Load balancers that have members by address, by VPC.
    by_address: HashMap<String, BTreeSet<String>>,
    has_begun: bool,
    /// Tasks that were started.
    started: u64,
}

/// What asks a member, until it is dropped.
struct Task {
    plan: Plan,
    handle: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Members {
    pub(super) fn new(service: Arc<Service>, host: String) -> Self {
        Self {
            service,
            host,
            state: State::default(),
            tasks: HashMap::new(),
            appliances: HashMap::new(),
            by_address: HashMap::new(),
            has_begun: false,
            started: 0,
        }
    }

    /// Asks the members and the appliances of a state from now on, in place of those of the one before. Takes as long as the two differ.
    pub(super) fn follow(&mut self, state: &State) {
        let before = std::mem::replace(&mut self.state, state.clone());
        let mut ids: BTreeSet<String> = BTreeSet::new();
        let mut ports: BTreeSet<String> = BTreeSet::new();
        for change in before.changes_to(state) {
            for object in [change.old, change.new].into_iter().flatten() {
                match object {
                    Object::LoadBalancer(balancer) => {
                        ids.insert(balancer.id.clone());
                    }
                    Object::Port(port) => {
                        ports.insert(port.id.clone());
                        let named = state.balancers_of_port(&port.id);
                        ids.extend(named.map(|it| it.id.clone()));
                        let by_address = self.by_address.get(&port.vpc);
                        ids.extend(by_address.into_iter().flatten().cloned());
                    }
                    _ => {}
                }
            }
        }
        for id in ids {
            self.renew(state, &id);
        }
        for id in ports {
            self.renew_appliance(state, &id);
        }
        if !std::mem::replace(&mut self.has_begun, true) {
            // Whatever was told before by another process of this host holds no more.
            self.service.news.notify_one();
        }
    }

    fn renew(&mut self, state: &State, id: &str) {
        let balancer = match state.find(Kind::LoadBalancer, id) {
            Some(Object::LoadBalancer(balancer)) => Some(balancer),
            _ => None,
        };
        let has_addresses = balancer.filter(|it| {
            let mut checked = it.listeners.iter().filter(|it| it.health.is_some());
            checked.any(|it| it.members.iter().any(|member| member.port.is_empty()))
        });
        for of_vpc in self.by_address.values_mut() {
            of_vpc.remove(id);
        }
        self.by_address.retain(|_, of_vpc| !of_vpc.is_empty());
        if let Some(balancer) = has_addresses {
            let of_vpc = self.by_address.entry(balancer.vpc.clone()).or_default();
            of_vpc.insert(id.to_owned());
        }
        let mut before = self.tasks.remove(id).unwrap_or_default();
        let mut tasks = BTreeMap::new();
        let plans = balancer.map_or_else(Vec::new, |it| self.plans(state, it));
        for (health, plan) in plans {
            let subject = Subject::Member(health);
            let key = subject.key();
            let known = before.remove(&key);
            let task = match known {
                Some(task) if task.plan == plan => task,
                _ => self.start(state, subject, plan),
            };
            tasks.insert(key, task);
        }
        for key in before.into_keys() {
            self.service.forget(&key);
        }
        if !tasks.is_empty() {
            self.tasks.insert(id.to_owned(), tasks);
        }
    }

    fn renew_appliance(&mut self, state: &State, id: &str) {
        let before = self.appliances.remove(id);
        let port = match state.find(Kind::Port, id) {
            Some(Object::Port(port)) if self.is_here(port) => Some(port),
            _ => None,
        };
        match (port.and_then(plan_of_appliance), before) {
            (Some((_, plan)), Some(task)) if task.plan == plan => {
                self.appliances.insert(id.to_owned(), task);
            }
            (Some((health, plan)), _) => {
                let task = self.start(state, Subject::Appliance(health), plan);
                self.appliances.insert(id.to_owned(), task);
            }
            (None, Some(_)) => self.service.forget(&Key {
                kind: Kind::PortHealth,
                id: id.to_owned(),
            }),
            (None, None) => {}
        }
    }

    /// What is to be asked of the members of a load balancer that are here.
    fn plans(&self, state: &State, balancer: &LoadBalancer) -> Vec<(MemberHealth, Plan)> {
        let own = balancer.addresses.iter();
        let own: Vec<std::net::IpAddr> = own.filter_map(|it| it.parse().ok()).collect();
        let mut all = Vec::new();
        for listener in &balancer.listeners {
            for (member, from) in listener
                .members
                .iter()
                .flat_map(|member| own.iter().map(move |from| (member, *from)))
            {
                all.extend(self.plan(state, (balancer, listener, member), from));
            }
        }
        all
    }

    fn plan(
        &self,
        state: &State,
        (balancer, listener, member): (&LoadBalancer, &Listener, &Member),
        from: std::net::IpAddr,
    ) -> Option<(MemberHealth, Plan)> {
        let check = listener.health.as_ref()?;
        let to = member.address_in(state, from.is_ipv4())?;
        let port = self.own_port(state, &balancer.vpc, (member, to))?;
        let serves_at = listener.first_port_at(member);
        let asked_at = match (check.protocol.as_str(), check.port) {
            ("icmp", _) => 0,
            (_, 0) => serves_at,
            (_, given) => given,
        };
        let asked_at = asked_at.try_into().ok()?;
        let health = MemberHealth::of(balancer, listener, (to, serves_at));
        // A member that has the load balancer's address takes nothing from there, and serves at it: it is asked at that address, from the gateway's.
        let (from, at) = if listener.is_dsr() {
            (None, (from, asked_at))
        } else {
            (Some(from), (to, asked_at))
        };
        Some((health, Plan::new(check, port, from, at)?))
    }

    /// The port of this host that a member is at.
    fn own_port<'s>(
        &self,
        state: &'s State,
        vpc: &'s str,
        (member, address): (&Member, std::net::IpAddr),
    ) -> Option<&'s Port> {
        let port = match member.port.as_str() {
            "" => state.port_with_address(vpc, address)?,
            id => match state.find(Kind::Port, id)? {
                Object::Port(port) => port,
                _ => return None,
            },
        };
        self.is_here(port).then_some(port)
    }

    fn is_here(&self, port: &Port) -> bool {
        port.host == self.host && (port.device.is_some() || port.trunk.is_some())
    }

    /// A member that others take for one that does not serve has to show that it does; an appliance likewise. What a task found that asked of the same id before
    /// holds no more.
    fn start(&mut self, state: &State, subject: Subject, plan: Plan) -> Task {
        self.started += 1;
        let key = subject.key();
        self.service.register(&key, self.started);
        let known = state.find(key.kind, &key.id);
        let is_down = known.is_some_and(|known| known.vpc() == Some(&plan.vpc));
        if is_down {
            let known = subject.found(false, "not asked again yet");
            self.service.note(self.started, known);
        }
        let standing = Standing::new(!is_down);
        let watching = Arc::clone(&self.service);
        let watching = watching.watch((self.started, subject), plan.clone(), standing);
        Task {
            plan,
            handle: tokio::spawn(watching).abort_handle(),
        }
    }
}

/// What is to be asked of the appliance at a port, if anything.
fn plan_of_appliance(port: &Port) -> Option<(PortHealth, Plan)> {
    let check = port.health.as_ref()?;
    let to = port.addresses.first()?.parse().ok()?;
    let at = (to, check.port.try_into().ok()?);
    let health = PortHealth {
        id: port.id.clone(),
        vpc: port.vpc.clone(),
        ..PortHealth::default()
    };
    Some((health, Plan::new(check, port, None, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_another_with_another_vpc_or_address() {
        let port: Port = serde_yaml_ng::from_str(
            r#"{id: p1, vpc: blue, subnet: s, addresses: [10.0.0.11], host: h1, health: {protocol: icmp}}"#,
        )
        .unwrap();
        let plan = |change: fn(&mut Port)| {
            let mut port = port.clone();
            change(&mut port);
            plan_of_appliance(&port).unwrap().1
        };
        let known = plan(|_| {});
        assert_eq!(known, plan(|port| port.subnet = "t".into()));
        assert_ne!(known, plan(|port| port.vpc = "red".into()));
        assert_ne!(known, plan(|port| port.addresses[0] = "10.0.0.12".into()));
    }
}
