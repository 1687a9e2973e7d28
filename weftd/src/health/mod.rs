//! Health checks (services, "Load balancer"): this host asks the members of load balancers that are at its own ports whether they serve, from the load
//! balancer's address, past security groups and ACLs, and tells the controller what it finds (decision 020). Appliances at its ports, which routes spread
//! flows over, are asked in the same way, from the gateway's address.
//!
//! Each member has a task that asks it at its interval (`member`), one question at a time (`question`). Questions go to the port as if from its gateway;
//! workers know the answers by the question's number (`weft_dataplane::pipeline::checks`) and leave them in a bounded queue. Nothing here runs on a worker.

mod member;
mod members;
mod question;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout_at};
use weft_dataplane::packet::DropReason;
use weft_dataplane::packet::parse::{self, Inner};
use weft_dataplane::pipeline::checks::{Asked, Checks};
use weft_dataplane::worker::service::{Injector, PuntQueue};
use weft_proto::state::{Key, Kind, Object};
use weft_proto::v1::{MemberHealth, PortHealth};

use crate::agent::AgentHandle;
use crate::metadata::Identity;
use crate::wire;
use member::{Plan, Standing};
use members::Members;
use question::{Failure, Question};

/// Packets that may wait in the queue, for all ports together.
pub const DESK: usize = 1024;
/// Packets that may wait for one question.
const WAITING: usize = 16;
/// Packets that are handed on before others get a turn.
const BATCH: usize = 64;
/// Questions at a time, of all VPCs together and of one, so that one whose members answer nothing holds up no other.
const QUESTIONS: usize = 2048;
const OF_VPC: usize = 128;
/// How long what was found of a member stands before another finding is told: one that flaps is work for every host.
const HOLD: Duration = Duration::from_secs(1);
/// Within this time after the start all members are asked that have no longer interval.
const SPREAD: Duration = Duration::from_secs(1);
/// How long a number stays in use after its question, for answers that are on their way: those who gave them count as nobody's clients.
const LINGER: Duration = Duration::from_millis(250);
/// How long to wait for a number.
const NUMBER: Duration = Duration::from_millis(10);
/// What is found is told together that is found within this time.
const TOGETHER: Duration = Duration::from_millis(10);

/// The service.
#[derive(Debug)]
pub struct Service {
    queue: Arc<PuntQueue>,
    injector: Arc<Injector>,
    checks: Arc<Checks>,
    /// The questions that wait for answers, by their numbers.
    waiting: Mutex<HashMap<u16, mpsc::Sender<Vec<u8>>>>,
    asking: Semaphore,
    /// By VPC.
    asking_in: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// By the key of what is found: the task that asks, and what it has found.
    found: Mutex<BTreeMap<Key, (u64, Option<Object>)>>,
    news: Notify,
}

/// Who is asked, as what is found is told.
#[derive(Debug, Clone)]
enum Subject {
    /// A member of a load balancer.
    Member(MemberHealth),
    /// An appliance at a port.
    Appliance(PortHealth),
}

impl Subject {
    /// The key of what is found.
    fn key(&self) -> Key {
        let (kind, id) = match self {
            Self::Member(health) => (Kind::MemberHealth, &health.id),
            Self::Appliance(health) => (Kind::PortHealth, &health.id),
        };
        Key {
            kind,
            id: id.clone(),
        }
    }

    fn vpc(&self) -> &str {
        match self {
            Self::Member(health) => &health.vpc,
            Self::Appliance(health) => &health.vpc,
        }
    }

    /// What is found now.
    fn found(&self, up: bool, reason: &str) -> Object {
        let (reason, since_ms) = (reason.to_owned(), crate::agent::now_ms());
        match self.clone() {
            Self::Member(health) => Object::MemberHealth(MemberHealth {
                up,
                reason,
                since_ms,
                ..health
            }),
            Self::Appliance(health) => Object::PortHealth(PortHealth {
                up,
                reason,
                since_ms,
                ..health
            }),
        }
    }
}

impl Service {
    /// A service that reads what is left in the queue.
    pub fn new(queue: Arc<PuntQueue>, injector: Arc<Injector>, checks: Arc<Checks>) -> Self {
        Self {
            queue,
            injector,
            checks,
            waiting: Mutex::default(),
            asking: Semaphore::new(QUESTIONS),
            asking_in: Mutex::default(),
            found: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// Asks the members at the ports of a host until it is dropped.
    pub async fn run(self: Arc<Self>, host: String, agent: Arc<AgentHandle>) {
        tokio::join!(self.read(), self.follow(host, &agent), self.tell(&agent));
    }

    /// Follows which members there are.
    async fn follow(self: &Arc<Self>, host: String, agent: &AgentHandle) {
        let mut states = agent.watch();
        let mut members = Members::new(Arc::clone(self), host);
        loop {
            let in_force = states.borrow_and_update().in_force.clone();
            if let Some(in_force) = in_force {
                members.follow(&in_force.effective);
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells the controller what is found.
    async fn tell(&self, agent: &AgentHandle) {
        loop {
            self.news.notified().await;
            tokio::time::sleep(TOGETHER).await;
            let found: Vec<Object> = {
                let found = lock(&self.found);
                found.values().filter_map(|(_, it)| it.clone()).collect()
            };
            let (members, appliances): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|it| it.kind() == Kind::MemberHealth);
            agent.set_findings(Kind::MemberHealth, members.into_iter());
            agent.set_findings(Kind::PortHealth, appliances.into_iter());
        }
    }

    /// Notes that a task asks from now on, in place of any other.
    fn register(&self, key: &Key, task: u64) {
        let before = lock(&self.found).insert(key.clone(), (task, None));
        if before.is_some() {
            self.news.notify_one();
        }
    }

    /// Notes what a task has found, if it is still the one that asks.
    fn note(&self, task: u64, object: Object) {
        if let Some((asking, found)) = lock(&self.found).get_mut(&object.key())
            && *asking == task
        {
            *found = Some(object);
        }
        self.news.notify_one();
    }

    fn forget(&self, key: &Key) {
        lock(&self.found).remove(key);
        self.news.notify_one();
    }

    /// Hands answers to the questions.
    async fn read(&self) {
        loop {
            self.queue.arrival().await;
            for _ in 0..BATCH {
                let Some((port, packet)) = self.queue.take() else {
                    break;
                };
                let frame = self.injector.read(packet);
                if !self.hand_over(port, frame) {
                    self.injector.count_drop(port, DropReason::HealthFull);
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// False if the question has no room for it. What comes after the answer is of no use.
    fn hand_over(&self, port: u16, frame: Vec<u8>) -> bool {
        let Ok(Inner::Ip(parsed)) = parse::inner(&frame) else {
            return false;
        };
        let number = self.checks.answered(port, &parsed, &frame);
        let waiting = lock(&self.waiting);
        let question = number.and_then(|number| waiting.get(&number));
        question.is_none_or(|question| question.try_send(frame).is_ok())
    }

    /// Asks a member or an appliance at its interval, until it is dropped.
    async fn watch(
        self: Arc<Self>,
        (task, subject): (u64, Subject),
        plan: Plan,
        mut standing: Standing,
    ) {
        let in_vpc = self.semaphore_of(subject.vpc());
        let mut stands_until = Instant::now();
        let most = plan.interval.min(SPREAD);
        let mut next = Instant::now() + most.mul_f64(rand::random_range(0.0..1.0));
        let mut index = None;
        loop {
            sleep_until(next).await;
            // Never closed.
            let in_turn = (in_vpc.acquire().await, self.asking.acquire().await);
            let began = Instant::now();
            let answer = self.ask(&plan, &mut index).await;
            drop(in_turn);
            if answer.is_some_and(|answer| standing.take(&plan, answer)) {
                let key = subject.key();
                tracing::info!(
                    of = %plan.to.0,
                    kind = key.kind.name(),
                    id = key.id,
                    up = standing.up,
                    reason = standing.reason,
                    "what a health check found"
                );
                let found = subject.found(standing.up, &standing.reason);
                sleep_until(stands_until).await;
                stands_until = Instant::now() + HOLD;
                self.note(task, found);
            }
            // One that waited for its turn is not asked more often for that.
            next = (next + plan.interval).max(began);
        }
    }

    /// Asks a member once; nothing if that is not possible now, which says nothing of the member. `index`: that of its port, as it was last.
    async fn ask(&self, plan: &Plan, index: &mut Option<u16>) -> Option<Result<(), Failure>> {
        let port = self.port(plan, index)?;
        let ends = plan.ends(&port)?;
        let asked = Asked {
            port: port.index,
            protocol: plan.kind.protocol(ends.to.is_ipv4()),
            to: ends.port,
        };
        let (sender, mut answers) = mpsc::channel(WAITING);
        let number = loop {
            match self.checks.begin(asked) {
                Some(number) => break number,
                None => tokio::time::sleep(NUMBER).await,
            }
        };
        let deadline = Instant::now() + plan.timeout;
        lock(&self.waiting).insert(number, sender);
        let _ending = Ending {
            service: self,
            number,
        };
        let question = Question::new(plan.kind.clone(), ends, number, port.mtu);
        let mut question = match question {
            Ok(question) => question,
            Err(failure) => return Some(Err(failure)),
        };
        let answer = loop {
            if let Some(answer) = question.turn() {
                break answer;
            }
            self.send(&port, &question.sent());
            let wait = question.wait().map(|wait| Instant::now() + wait);
            let until = wait.map_or(deadline, |wait| wait.min(deadline));
            match timeout_at(until, answers.recv()).await {
                Ok(Some(frame)) => question.receive(&frame),
                _ if Instant::now() >= deadline => break question.end(),
                _ => {}
            }
        };
        self.send(&port, &question.sent());
        Some(answer)
    }

    fn semaphore_of(&self, vpc: &str) -> Arc<Semaphore> {
        let mut all = lock(&self.asking_in);
        // Those that nobody has any more.
        all.retain(|_, it| Arc::strong_count(it) > 1);
        let own = all.entry(vpc.to_owned());
        Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(OF_VPC))))
    }

    /// The port that a member is at, as it is now.
    fn port(&self, plan: &Plan, index: &mut Option<u16>) -> Option<Identity> {
        let snapshot = self.injector.snapshot();
        let is_it = |index: u16| {
            let port = snapshot.port(index).filter(|it| it.id == plan.port);
            let vpc = port.and_then(|it| snapshot.vpcs.get(it.vpc));
            vpc.is_some_and(|vpc| vpc.id == plan.vpc)
        };
        let find = || (0..u16::MAX).find(|index| is_it(*index));
        let known = index.filter(|index| is_it(*index));
        *index = known.or_else(find);
        index.and_then(|index| Identity::of(&snapshot, index))
    }

    fn send(&self, port: &Identity, packets: &[Vec<u8>]) {
        let frames = packets.iter();
        let frames = frames.map(|packet| wire::frame(packet, port.mac, port.gateway_mac));
        self.injector.send(port.index, &frames.collect::<Vec<_>>());
    }
}

/// Gives a question's number back after it has ended, however it does.
struct Ending<'a> {
    service: &'a Service,
    number: u16,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        lock(&self.service.waiting).remove(&self.number);
        let (checks, number) = (Arc::clone(&self.service.checks), self.number);
        // Without a runtime the daemon ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(LINGER).await;
                checks.end(number);
            });
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Entries are put in and taken out whole.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
