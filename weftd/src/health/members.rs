//! Which members are at this host's ports, and the tasks that ask them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::task::AbortHandle;
use weft_proto::state::{Kind, Object, State};
use weft_proto::v1::{Listener, LoadBalancer, Member, MemberHealth, Port};

use super::Service;
use super::member::{Plan, Standing};
use super::question::Ends;
use crate::agent::now_ms;

/// The members of the load balancers of a state.
pub(super) struct Members {
    service: Arc<Service>,
    host: String,
    state: State,
    /// By load balancer, and by the id of what is found.
    tasks: HashMap<String, BTreeMap<String, Task>>,
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
            by_address: HashMap::new(),
            has_begun: false,
            started: 0,
        }
    }

    /// Asks the members of a state from now on, in place of those of the one before. Takes as long as the two differ.
    pub(super) fn follow(&mut self, state: &State) {
        let before = std::mem::replace(&mut self.state, state.clone());
        let mut ids: BTreeSet<String> = BTreeSet::new();
        for change in before.changes_to(state) {
            for object in [change.old, change.new].into_iter().flatten() {
                match object {
                    Object::LoadBalancer(balancer) => {
                        ids.insert(balancer.id.clone());
                    }
                    Object::Port(port) => {
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
            let id = health.id.clone();
            let known = before.remove(&id);
            let task = match known {
                Some(task) if task.plan == plan => task,
                _ => self.start(state, health, plan),
            };
            tasks.insert(id, task);
        }
        for id in before.into_keys() {
            self.service.forget(&id);
        }
        if !tasks.is_empty() {
            self.tasks.insert(id.to_owned(), tasks);
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
        let ends = Ends {
            from,
            to,
            port: asked_at.try_into().ok()?,
        };
        let health = MemberHealth::of(balancer, listener, (to, serves_at));
        Some((health, Plan::new(check, &port.id, ends)?))
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
        let has_device = port.device.is_some() || port.trunk.is_some();
        (port.host == self.host && has_device).then_some(port)
    }

    /// A member that others take for one that does not serve has to show that it does.
    fn start(&mut self, state: &State, health: MemberHealth, plan: Plan) -> Task {
        self.started += 1;
        self.service.register(&health.id, self.started);
        let is_down = state.find(Kind::MemberHealth, &health.id).is_some();
        if is_down {
            let known = MemberHealth {
                reason: "not asked again yet".to_owned(),
                since_ms: now_ms(),
                ..health.clone()
            };
            self.service.note(self.started, known);
        }
        let standing = Standing::new(!is_down);
        let watching = Arc::clone(&self.service);
        let watching = watching.watch((self.started, health), plan.clone(), standing);
        Task {
            plan,
            handle: tokio::spawn(watching).abort_handle(),
        }
    }
}
