//! One region from its first object to the restart of its controller, step by step, and the rows of each step.

use std::time::{Duration, Instant};

use anyhow::Context;
use prost::Message;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_process::services::intent_client::IntentClient;
use weft_process::transport::innermost;
use weft_proto::state::{collect, explode};
use weft_proto::v1::{
    ApplyRequest, CreateRequest, DeleteRequest, HostLimits, HostStatusReply, ListHostStatusRequest,
    ObjectKey, Objects, Port,
};

use super::controller::{Controller, memory};
use super::fleet::{Fleet, Shape};
use super::ovn::Ovn;
use super::settings::Settings;
use super::topology::Region;
use crate::{Row, median};

/// How long all hosts may take to come in sync.
const PATIENCE: Duration = Duration::from_secs(900);
/// Between looks at how far the hosts are.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of objects in one request, which the largest message that the controller accepts has room for.
const REQUEST: usize = 64 << 20;
/// Changes of which a peer makes as many, in turns.
const CHANGES_OF_PEER: usize = 10;
/// Calls that may fail with their connection.
const FAILURES: usize = 20;
/// Clients that change at once.
const CLIENTS: usize = 64;
/// The most ports with which a peer is measured: its compiler looks at all of them for each change.
const MOST_OF_PEER: usize = 20_000;

/// A controller with a region, and how its rows are called.
struct Scenario<'a> {
    name: String,
    settings: &'a Settings,
    region: Region,
    controller: Controller,
    intent: IntentClient<Channel>,
    fleet: Fleet,
    rows: Vec<Row>,
    /// Of the ports beyond the region's own, so that no two are alike.
    next: usize,
    /// Calls whose connection ended.
    failed: usize,
    /// Whether hosts learn ports.
    learns: bool,
}

pub(super) async fn scenario(
    region: Region,
    settings: &Settings,
    peers: bool,
) -> anyhow::Result<Vec<Row>> {
    let vpcs = match region.vpcs {
        1 => "one VPC".to_owned(),
        many => format!("{many} VPCs"),
    };
    let how = ["", ", learned"][usize::from(settings.learn_above != 0)];
    let name = format!(
        "{vpcs}, {} ports, {} hosts{how}",
        region.ports, region.hosts
    );
    eprintln!("   {name}");
    let mut ovn = if peers && region.vpcs == 1 {
        peer(&region)?
    } else {
        None
    };
    let learns = settings.learn_above != 0 && region.ports / region.vpcs > settings.learn_above;
    let controller = Controller::start(settings.learn_above)?;
    let intent = controller.intent().await?;
    let shape = Shape {
        hosts: region.hosts,
        streams: settings.streams,
        check_every: settings.check_every,
        limits: limits(&region),
        learns: learns.then_some(region),
    };
    let fleet = Fleet::start(&controller.address, shape);
    let mut scenario = Scenario {
        name: name.clone(),
        settings,
        region,
        controller,
        intent,
        fleet,
        rows: Vec::new(),
        next: 0,
        failed: 0,
        learns,
    };
    let measured = scenario.measure(ovn.as_mut()).await;
    // The controller ends before the hosts do.
    scenario.fleet.expect_cut(true);
    match measured {
        Ok(()) => Ok(scenario.rows),
        Err(error) => {
            let log = scenario.controller.log();
            Err(error.context(format!("{name}; the controller's log ends:\n{log}\n")))
        }
    }
}

/// What a host says that it can hold: what is usual, or what it is to hold.
fn limits(region: &Region) -> HostLimits {
    let own = region.ports.div_ceil(region.hosts) as u32;
    HostLimits {
        ports: 1024.max(2 * own),
        peers: 4096.max(region.hosts as u32),
        vpcs: 4096.max(2 * own),
        external_networks: 1024,
        nat_gateways: 65_535,
    }
}

fn peer(region: &Region) -> anyhow::Result<Option<Ovn>> {
    if region.ports > MOST_OF_PEER {
        eprintln!("   OVN is not measured with more than {MOST_OF_PEER} ports");
        return Ok(None);
    }
    Ovn::start(region).map(Some)
}

/// One kind of change.
#[derive(Debug, Clone, Copy)]
enum Change {
    Create,
    Rule,
    Delete,
}

impl Scenario<'_> {
    async fn measure(&mut self, mut ovn: Option<&mut Ovn>) -> anyhow::Result<()> {
        self.fill().await?;
        self.settle().await?;
        if self.learns {
            self.ask().await?;
        }
        let (resident, peak) = self.controller.memory()?;
        let goal = Some(4096.0);
        self.row(
            "the controller's memory with all attached",
            "MiB",
            vec![resident],
            goal,
        );
        self.row(
            "the controller's memory, the most so far",
            "MiB",
            vec![peak],
            None,
        );
        for change in [Change::Create, Change::Rule, Change::Delete] {
            self.changes(change, ovn.take()).await?;
        }
        if self.region.vpcs > 1 {
            self.sustained().await?;
        }
        self.reconnect(false).await?;
        self.reconnect(true).await?;
        self.cold_start().await?;
        let (_, own) = memory("/proc/self/status".as_ref())?;
        eprintln!("   the simulated hosts and clients took {own:.0} MiB at most");
        let lost = self.fleet.lost() as f64 + self.failed as f64;
        self.row(
            "streams and calls that ended though nothing was cut",
            "times",
            vec![lost],
            Some(0.0),
        );
        Ok(())
    }

    fn row(&mut self, what: &str, unit: &'static str, samples: Vec<f64>, goal: Option<f64>) {
        let row = Row {
            name: format!("region: {}: {what}", self.name),
            unit,
            samples,
            goal: goal.map(|goal| (goal, false)),
            peer: None,
        };
        eprintln!("   {what}: {:.3} {unit}", median(&row.samples));
        self.rows.push(row);
    }

    /// All ports at once, into a region of hosts, VPCs, subnets and groups.
    async fn fill(&mut self) -> anyhow::Result<()> {
        let base = requests(self.region.base(), REQUEST);
        self.apply(base).await?;
        self.settle().await?;
        let checking = self.fleet.checking();
        eprintln!("   {checking} of the hosts check digests, the others the chain of revisions");
        let ports = (0..self.region.ports).map(|number| self.region.port(number));
        let ports = Objects {
            ports: ports.collect(),
            ..Objects::default()
        };
        let ports = requests(ports, REQUEST);
        let begun = Instant::now();
        let revision = self.apply(ports).await?;
        let stored = begun.elapsed().as_secs_f64();
        let all: Vec<usize> = (0..self.region.hosts).collect();
        let last = self.fleet.acknowledged(&all, revision, PATIENCE).await?;
        let known = (last - begun).as_secs_f64();
        // Goals are for 100k ports; fewer must do as well.
        let goal = |seconds| (self.region.ports <= 100_000).then_some(seconds);
        let (to_store, to_know) = (goal(10.0), goal(30.0));
        self.row(
            "all ports applied at once, stored",
            "s",
            vec![stored],
            to_store,
        );
        self.row(
            "all ports applied at once, acknowledged by all hosts",
            "s",
            vec![known],
            to_know,
        );
        Ok(())
    }

    /// All hosts ask, each at once for all that it asks for.
    async fn ask(&mut self) -> anyhow::Result<()> {
        self.fleet.ask();
        let begun = Instant::now();
        loop {
            let status = self.status().await?;
            if status.hosts.iter().all(|host| host.learned > 0) {
                self.settle().await?;
                return Ok(());
            }
            anyhow::ensure!(begun.elapsed() < PATIENCE, "not all hosts have asked");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The hosts that a port beyond the region's own concerns.
    fn concerned(&self, number: usize, vpc: usize) -> Vec<usize> {
        if self.learns {
            self.region.hosts_that_learn_of(number)
        } else {
            self.region.hosts_of_vpc(vpc)
        }
    }

    /// Applies lists one after another; the last one's revision.
    async fn apply(&mut self, lists: Vec<Objects>) -> anyhow::Result<u64> {
        let mut revision = 0;
        for objects in lists {
            let request = ApplyRequest {
                objects: Some(objects),
                ..ApplyRequest::default()
            };
            revision = loop {
                match self.intent.apply(request.clone()).await {
                    Ok(reply) => break reply.into_inner().revision,
                    Err(status) => self.fail(status)?,
                }
            };
        }
        Ok(revision)
    }

    async fn status(&mut self) -> anyhow::Result<HostStatusReply> {
        loop {
            match self.intent.list_host_status(ListHostStatusRequest {}).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) => self.fail(status)?,
            }
        }
    }

    /// Notes that a call's connection ended, which it does where the controller is too busy to answer pings: the client connects again.
    ///
    /// # Errors
    /// It failed otherwise, or too often.
    fn fail(&mut self, status: Status) -> anyhow::Result<()> {
        self.failed += 1;
        let is_of_transport = std::error::Error::source(&status).is_some();
        if !is_of_transport || self.failed > FAILURES {
            return Err(status.into());
        }
        eprintln!("   a call failed: {}", innermost(&status));
        Ok(())
    }

    /// Waits until the controller says that every host has its newest revision in force; tells when the first host had.
    async fn settle(&mut self) -> anyhow::Result<(Instant, Instant)> {
        let begun = Instant::now();
        let mut first = None;
        loop {
            let status = self.status().await?;
            let now = Instant::now();
            let current = |revision| revision == status.revision;
            let in_sync = status.hosts.iter();
            let in_sync =
                in_sync.filter(|host| host.attached && current(host.acknowledged_revision));
            let in_sync = in_sync.count();
            if in_sync > 0 {
                first.get_or_insert(now);
            }
            if in_sync == self.region.hosts {
                return Ok((first.unwrap_or(now), now));
            }
            let refused = status.hosts.iter().find(|host| !host.violations.is_empty());
            anyhow::ensure!(refused.is_none(), "refused: {refused:?}");
            anyhow::ensure!(
                begun.elapsed() < PATIENCE,
                "{in_sync} of {} hosts are in sync after {PATIENCE:?}",
                self.region.hosts
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Changes one after another, each until every host that it concerns has acknowledged it.
    async fn changes(&mut self, change: Change, ovn: Option<&mut Ovn>) -> anyhow::Result<()> {
        let mut ovn = ovn;
        let (mut times, mut stored, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        let mut own_time = Duration::ZERO;
        let mut spent = 0.0;
        // Ports are deleted in the order in which they were created.
        let first = if matches!(change, Change::Delete) {
            0
        } else {
            self.next
        };
        let most = match change {
            Change::Delete => self.next,
            Change::Create | Change::Rule => self.settings.changes,
        };
        for number in 0..most {
            if own_time > self.settings.time && number >= 3 {
                break;
            }
            let (before, begun) = (self.controller.processor_time()?, Instant::now());
            let (revision, hosts) = self.change(change, first + number).await?;
            stored.push(begun.elapsed().as_secs_f64() * 1e3);
            let last = self.fleet.acknowledged(&hosts, revision, PATIENCE).await?;
            times.push((last - begun).as_secs_f64() * 1e3);
            spent += self.controller.processor_time()? - before;
            own_time += begun.elapsed();
            if let (Change::Create, Some(ovn)) = (change, &mut ovn)
                && number < CHANGES_OF_PEER
            {
                theirs.push(ovn.one_more(number)?.as_secs_f64() * 1e3);
            }
        }
        if let Change::Create = change {
            self.next += times.len();
        }
        self.change_rows(change, times, stored, spent);
        // The last row is of the times themselves.
        if !theirs.is_empty()
            && let Some(ours) = self.rows.last()
        {
            let mut row = ours.clone();
            row.name = format!("region: {}: one port more, beside OVN", self.name);
            row.goal = Some((median(&theirs) / 10.0, false));
            row.peer = Some(("OVN, ovn-nbctl --wait=sb", theirs));
            self.rows.push(row);
        }
        Ok(())
    }

    fn change_rows(&mut self, change: Change, times: Vec<f64>, stored: Vec<f64>, spent: f64) {
        let what = match change {
            Change::Create => "one port created",
            Change::Rule => "one group's rule changed",
            Change::Delete => "one port deleted",
        };
        let goal = if self.region.vpcs == 1 { 1000.0 } else { 50.0 };
        let count = times.len();
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let worst = sorted.get(count * 99 / 100).copied().unwrap_or(f64::NAN);
        self.row(
            &format!("{what}, stored, median of {count}"),
            "ms",
            stored,
            None,
        );
        self.row(
            &format!("{what}, controller's processor time"),
            "ms",
            vec![spent / count as f64],
            None,
        );
        self.row(
            &format!("{what}, acknowledged by all concerned, 99th percentile of {count}"),
            "ms",
            vec![worst],
            Some(goal),
        );
        self.row(
            &format!("{what}, acknowledged by all concerned, median of {count}"),
            "ms",
            times,
            None,
        );
    }

    /// Makes one change; its revision, and the hosts that it concerns.
    async fn change(&mut self, change: Change, number: usize) -> anyhow::Result<(u64, Vec<usize>)> {
        let region = self.region;
        // Far from each other, so that hosts and VPCs are all alike.
        let vpc = number * 7919 % region.vpcs;
        let objects = match change {
            Change::Create => creation(&region, number, vpc),
            Change::Rule => {
                let group = number * 7919 % region.groups();
                let rule = 1000 + number as u32 % 60_000;
                let objects = Objects {
                    security_groups: vec![region.group(group, rule)],
                    ..Objects::default()
                };
                let revision = self.apply(vec![objects]).await?;
                return Ok((revision, region.hosts_of_group(group)));
            }
            Change::Delete => {
                return Ok((self.delete(number).await?, self.concerned(number, vpc)));
            }
        };
        let revision = self.apply(vec![objects]).await?;
        Ok((revision, self.concerned(number, vpc)))
    }

    async fn delete(&mut self, number: usize) -> anyhow::Result<u64> {
        let before = self.failed;
        loop {
            match self.intent.delete(deletion(number)).await {
                Ok(reply) => return Ok(reply.into_inner().revision),
                // It was deleted, and the answer lost.
                Err(status) if status.code() == Code::NotFound && self.failed > before => {
                    return Ok(self.status().await?.revision);
                }
                Err(status) => self.fail(status)?,
            }
        }
    }

    /// Many clients change at once, each in another VPC every time: a port comes, and goes.
    async fn sustained(&mut self) -> anyhow::Result<()> {
        let mut clients = JoinSet::new();
        let end = Instant::now() + self.settings.time;
        let begun = Instant::now();
        for client in 0..CLIENTS {
            let mut intent = self.controller.intent().await?;
            let region = self.region;
            // Names and addresses of its own.
            let first = 1_000_000 + 90_000 * client;
            clients.spawn(async move {
                let mut changes = 0;
                while Instant::now() < end {
                    let number = first + changes / 2 % 90_000;
                    let vpc = (client + CLIENTS * (changes / 2)) % region.vpcs;
                    let objects = Some(creation(&region, number, vpc));
                    intent.create(CreateRequest { objects }).await?;
                    intent.delete(deletion(number)).await?;
                    changes += 2;
                }
                anyhow::Ok(changes)
            });
        }
        let mut changes = 0;
        while let Some(done) = clients.join_next().await {
            changes += done.context("a client failed")??;
        }
        let rate = changes as f64 / begun.elapsed().as_secs_f64();
        let stored = Instant::now();
        let (_, last) = self.settle().await?;
        self.row(
            &format!("durable changes from {CLIENTS} clients"),
            "changes/s",
            vec![rate],
            None,
        );
        if let Some(row) = self.rows.last_mut() {
            row.goal = Some((2000.0, true));
        }
        let behind = last.saturating_duration_since(stored).as_secs_f64();
        self.row(
            &format!("changes from {CLIENTS} clients, until all hosts are in sync after the last"),
            "s",
            vec![behind],
            None,
        );
        Ok(())
    }

    /// Every host loses its connection, misses a change, and comes back, all at once; with nothing if it `forgets`.
    async fn reconnect(&mut self, forgets: bool) -> anyhow::Result<()> {
        self.fleet.cut(PATIENCE).await?;
        if forgets {
            self.fleet.forget();
        }
        self.controller.forget_peak()?;
        let vpcs = self.region.vpcs_of_all_hosts();
        let ports = vpcs.iter().map(|vpc| self.missed(*vpc, forgets));
        let objects = Objects {
            ports: ports.collect(),
            ..Objects::default()
        };
        let revision = self.apply(vec![objects]).await?;
        let begun = Instant::now();
        self.fleet.attach();
        let all: Vec<usize> = (0..self.region.hosts).collect();
        let last = if self.learns {
            // What they miss concerns few.
            self.settle().await?.1
        } else {
            self.fleet.acknowledged(&all, revision, PATIENCE).await?
        };
        self.fleet.expect_cut(false);
        let (_, peak) = self.controller.memory()?;
        self.settle().await?;
        let what = if forgets {
            "all hosts back at once with nothing"
        } else {
            "all hosts back at once, a change behind"
        };
        self.row(
            &format!("{what}, in sync"),
            "s",
            vec![(last - begun).as_secs_f64()],
            None,
        );
        self.row(
            &format!("{what}, the controller's memory at most"),
            "MiB",
            vec![peak],
            None,
        );
        Ok(())
    }

    /// What hosts miss of a VPC while they are cut off: a port more, with a name of its own each time.
    fn missed(&self, vpc: usize, again: bool) -> Port {
        let first = if again { 600_000 } else { 500_000 };
        self.region.more(first + vpc, vpc)
    }

    /// The controller is killed, and started again from its store.
    async fn cold_start(&mut self) -> anyhow::Result<()> {
        self.fleet.expect_cut(true);
        let begun = Instant::now();
        self.controller.restart()?;
        self.intent = self.controller.intent().await?;
        let answered = begun.elapsed().as_secs_f64();
        let (first, last) = self.settle().await?;
        self.fleet.expect_cut(false);
        let (_, peak) = self.controller.memory()?;
        let seconds = |instant: Instant| vec![(instant - begun).as_secs_f64()];
        self.row(
            "killed and started again, answers",
            "s",
            vec![answered],
            None,
        );
        self.row(
            "killed and started again, the first host in sync",
            "s",
            seconds(first),
            Some(10.0),
        );
        self.row(
            "killed and started again, all hosts in sync",
            "s",
            seconds(last),
            Some(60.0),
        );
        self.row(
            "killed and started again, the controller's memory at most",
            "MiB",
            vec![peak],
            None,
        );
        Ok(())
    }
}

fn creation(region: &Region, number: usize, vpc: usize) -> Objects {
    Objects {
        ports: vec![region.more(number, vpc)],
        ..Objects::default()
    }
}

fn deletion(number: usize) -> DeleteRequest {
    DeleteRequest {
        objects: vec![ObjectKey {
            kind: "port".into(),
            id: format!("x{number}"),
        }],
    }
}

/// Objects in as few requests of at most so many bytes as may be, those first that others refer to.
fn requests(objects: Objects, most: usize) -> Vec<Objects> {
    if objects.encoded_len() <= most {
        return vec![objects];
    }
    let (mut lists, mut list, mut size) = (Vec::new(), Vec::new(), 0);
    for object in explode(objects) {
        let bytes = object.encode().len() + 8;
        if size + bytes > most {
            lists.push(collect(std::mem::take(&mut list).into_iter()));
            size = 0;
        }
        size += bytes;
        list.push(object);
    }
    lists.push(collect(list.into_iter()));
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_list_goes_in_several_requests_in_its_order() {
        let region = Region::new(600, 1, 10, 100);
        let ports = (0..region.ports).map(|number| region.port(number));
        let mut objects = region.base();
        objects.ports = ports.collect();
        let lists = requests(objects.clone(), 10_000);
        assert!(lists.len() > 2);
        assert!(lists.iter().all(|list| list.encoded_len() <= 10_000));
        assert_eq!((lists[0].vpcs.len(), lists[1].vpcs.len()), (1, 0));
        let joined = lists.into_iter().flat_map(explode);
        assert!(joined.eq(explode(objects)));
    }
}
