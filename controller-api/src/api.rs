//! The intent API over gRPC: decodes requests, calls [`crate::intent`], maps errors to status codes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_process::services::intent_server;
use weft_process::tls::Role;
use weft_proto::state::{Key, Kind, collect, count};
use weft_proto::v1::{
    AddressHoldersReply, ApplyRequest, CallersReply, ChangePeeringRequest, ChangeReply,
    CreateRequest, DeleteRequest, GetRequest, HistoryReply, HistoryRequest, HostStatusReply,
    ListAddressHoldersRequest, ListCallersRequest, ListHostStatusRequest, ListMemberHealthRequest,
    ListMulticastListenersRequest, ListReply, ListRequest, ListVpcStatusRequest, MemberHealthReply,
    MulticastListenersReply, PortConditions, PortConditionsRequest, UndoRequest, Violation,
    VpcStatusReply, WatchEvent, WatchRequest,
};

use crate::admission::{Admission, Admitted, Turns};
use crate::caller::Caller;
use crate::findings::Findings;
use crate::history::{self, Filter, UndoError};
use crate::hosts::Hosts;
use crate::intent::{ChangeError, Intent, Outcome};
use crate::listing::Listing;
use crate::pages::Pages;
use crate::peering::PeeringError;
use crate::port_watch::PortWatch;
use crate::store::StoreError;
use crate::version::Version;
use crate::watch::Watched;

/// The longest error text that is sent: it travels as an HTTP/2 header, of which peers accept 16 KiB by default.
const MAX_ERROR: usize = 8000;

/// The metadata of a refusal by a controller that does not write: the address of the one that does; empty when there is none.
pub(crate) const WRITER: &str = weft_process::controllers::WRITER;

pub(crate) struct Api {
    pub(crate) intent: Arc<Intent>,
    pub(crate) hosts: Arc<Hosts>,
    watched: Watched,
    pages: Arc<Pages>,
    /// Who may read the history: what is kept is read for each, and nothing is stored meanwhile.
    reading: Arc<Turns>,
    /// Who may have a thread for a change.
    changing: Arc<Turns>,
    admission: Arc<Admission>,
}

/// Calls that read the history at a time.
const READING: usize = 2;

/// Changes that are decided and stored at a time: enough to share the synchronisation of the disk, and fewer than there are threads for what blocks.
const CHANGING: usize = 256;

impl Api {
    pub(crate) fn new(
        intent: Arc<Intent>,
        hosts: Arc<Hosts>,
        admission: Arc<Admission>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let reading = Turns::new(READING);
        Self {
            watched: Watched {
                intent: Arc::clone(&intent),
                reading: Arc::clone(&reading),
                stopping,
            },
            pages: Arc::default(),
            intent,
            hosts,
            reading,
            changing: Turns::new(CHANGING),
            admission,
        }
    }

    /// The newest version, those included that other controllers have stored; or the newest that is known, when the store does not answer.
    /// What hosts have found, and the VPCs of that which a caller may read: one that is wanted, or all.
    async fn found(&self, caller: &Caller, wanted: &str) -> (Findings, Vec<String>) {
        let version = self.newest().await;
        let findings = self.hosts.board.findings();
        let vpcs = findings.vpcs().filter(|vpc| {
            let is_wanted = wanted.is_empty() || *vpc == wanted;
            is_wanted && may_read_vpc(caller, &version, vpc)
        });
        let vpcs = vpcs.map(str::to_owned).collect();
        (findings, vpcs)
    }

    async fn newest(&self) -> Arc<Version> {
        if let Err(error) = self.intent.catch_up().await {
            tracing::debug!(%error, "answers may be old");
        }
        self.intent.current()
    }

    /// The conditions of ports, and if they are watched their changes.
    async fn port_conditions(
        &self,
        request: Request<PortConditionsRequest>,
        is_watch: bool,
    ) -> Result<Response<ReceiverStream<Result<PortConditions, Status>>>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let request = request.into_inner();
        let filter = Filter::new(Kind::Port.name(), request.port, request.vpc)
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .selecting(&request.label_selector, &request.field_selector)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let from = is_watch.then_some(request.from_revision);
        let ports = &self.hosts.ports;
        let conditions = PortWatch::start(&self.watched, ports, (admitted, filter), from);
        Ok(Response::new(conditions.await?))
    }

    /// Runs a change that names so many objects, where blocking on the disk is allowed.
    async fn change(
        &self,
        admitted: Arc<Admitted>,
        objects: usize,
        change: impl FnOnce(&Intent, &Caller) -> Result<Outcome, ChangeError> + Send + 'static,
    ) -> Result<Response<ChangeReply>, Status> {
        let objects = objects.max(1);
        let counted = admitted.permit.count(objects, Instant::now());
        counted.map_err(|refused| refused.status())?;
        self.change_counted(admitted, objects, change).await
    }

    /// The same for a change whose objects are counted.
    async fn change_counted(
        &self,
        admitted: Arc<Admitted>,
        objects: usize,
        change: impl FnOnce(&Intent, &Caller) -> Result<Outcome, ChangeError> + Send + 'static,
    ) -> Result<Response<ChangeReply>, Status> {
        let intent = self.intent.clone();
        let turn = self.changing.take(admitted.permit.account()).await;
        let changed = move || {
            // Both until it is done, whether somebody waits for it or not.
            let _turn = turn;
            let outcome = change(&intent, &admitted.caller)
                .inspect_err(|error| give_back(&admitted, objects, error))?;
            let all = outcome.created + outcome.updated + outcome.deleted;
            let more = all.saturating_sub(objects);
            admitted.permit.count_more(more, Instant::now());
            Ok(outcome)
        };
        let outcome = tokio::task::spawn_blocking(changed)
            .await
            .map_err(|_| Status::internal("the change failed; see the controller's log"))?
            .map_err(|error: ChangeError| to_status(&error))?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Response::new(ChangeReply {
            revision: outcome.revision,
            created: count(outcome.created),
            updated: count(outcome.updated),
            deleted: count(outcome.deleted),
        }))
    }
}

#[tonic::async_trait]
impl intent_server::Intent for Api {
    async fn create(
        &self,
        request: Request<CreateRequest>,
    ) -> Result<Response<ChangeReply>, Status> {
        let admitted = allowed(&request, Role::Operate)?;
        let objects = request.into_inner().objects.unwrap_or_default();
        self.change(admitted, count(&objects), move |intent, caller| {
            intent.create(caller, objects)
        })
        .await
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ChangeReply>, Status> {
        let admitted = allowed(&request, Role::Operate)?;
        let request = request.into_inner();
        let objects = request.objects.as_ref().map_or(0, count);
        self.change(admitted, objects, move |intent, caller| {
            intent.apply(caller, request)
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<ChangeReply>, Status> {
        let admitted = allowed(&request, Role::Operate)?;
        let keys = request.into_inner().objects;
        self.change(admitted, keys.len(), move |intent, caller| {
            intent.delete(caller, &keys)
        })
        .await
    }

    async fn change_peering(
        &self,
        request: Request<ChangePeeringRequest>,
    ) -> Result<Response<ChangeReply>, Status> {
        let admitted = allowed(&request, Role::Operate)?;
        let request = request.into_inner();
        self.change(admitted, 1, move |intent, caller| {
            intent.change_peering(caller, &request)
        })
        .await
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<ListReply>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let caller = &admitted.caller;
        let wire = request.into_inner().object.unwrap_or_default();
        let key =
            Key::from_wire(&wire).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let version = self.newest().await;
        let object = caller
            .find(Role::Read, &version.state, &key)
            .ok_or_else(|| Status::not_found(format!("{key} does not exist")))?;
        let entry = version.state.entry(key.kind, &key.id);
        Ok(Response::new(ListReply {
            revision: version.revision,
            objects: Some(collect(std::iter::once(caller.shown(object)))),
            object_revisions: entry.map(|entry| entry.revision).into_iter().collect(),
            ..ListReply::default()
        }))
    }

    type ListStream = ReceiverStream<Result<ListReply, Status>>;

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let caller = admitted.caller.clone();
        let current = async |is_first| match is_first {
            true => self.newest().await,
            false => self.intent.current(),
        };
        let listing = Listing::new(caller, request.into_inner(), &self.pages, current).await?;
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(listing.send(sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryReply>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let request = request.into_inner();
        let key = request.object.clone().unwrap_or_default();
        let filter = Filter::new(&key.kind, key.id, request.vpc.clone())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let intent = Arc::clone(&self.intent);
        let reading = self.reading.take(admitted.permit.account()).await;
        let answer = tokio::task::spawn_blocking(move || {
            // Until it is done, whether somebody waits for it or not.
            let _reading = reading;
            history::answer(&intent, &admitted.caller, &filter, &request)
        })
        .await;
        let failed = || Status::unavailable("the history cannot be read; see the controller's log");
        let answer = answer.map_err(|_| failed())?.map_err(|error| {
            tracing::error!(%error, "the history cannot be read");
            failed()
        })?;
        Ok(Response::new(answer))
    }

    async fn undo(&self, request: Request<UndoRequest>) -> Result<Response<ChangeReply>, Status> {
        let admitted = allowed(&request, Role::Operate)?;
        let UndoRequest { revision, dry_run } = request.into_inner();
        let counted = admitted.permit.count(1, Instant::now());
        counted.map_err(|refused| refused.status())?;
        let reading = self.reading.take(admitted.permit.account()).await;
        let (intent, reader) = (Arc::clone(&self.intent), Arc::clone(&admitted));
        let read = tokio::task::spawn_blocking(move || {
            // No longer: the change has to wait for others.
            let _reading = reading;
            let read = intent.reversal(&reader.caller, revision);
            read.inspect_err(|error| give_back(&reader, 1, error))
        });
        let reversal = read
            .await
            .map_err(|_| Status::internal("the change failed; see the controller's log"))?
            .map_err(|error| to_status(&error))?;
        self.change_counted(admitted, 1, move |intent, caller| {
            intent.reverse(caller, (revision, &reversal), dry_run)
        })
        .await
    }

    type WatchStream = ReceiverStream<Result<WatchEvent, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let request = request.into_inner();
        let filter = Filter::new(&request.kind, String::new(), request.vpc)
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .selecting(&request.label_selector, &request.field_selector)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let events = self.watched.start(admitted, filter, request.from_revision);
        Ok(Response::new(events.await?))
    }

    type ListPortConditionsStream = ReceiverStream<Result<PortConditions, Status>>;

    async fn list_port_conditions(
        &self,
        request: Request<PortConditionsRequest>,
    ) -> Result<Response<Self::ListPortConditionsStream>, Status> {
        self.port_conditions(request, false).await
    }

    type WatchPortConditionsStream = ReceiverStream<Result<PortConditions, Status>>;

    async fn watch_port_conditions(
        &self,
        request: Request<PortConditionsRequest>,
    ) -> Result<Response<Self::WatchPortConditionsStream>, Status> {
        self.port_conditions(request, true).await
    }

    async fn list_host_status(
        &self,
        request: Request<ListHostStatusRequest>,
    ) -> Result<Response<HostStatusReply>, Status> {
        allowed(&request, Role::Read)?.caller.needs(Role::Read)?;
        let version = self.newest().await;
        Ok(Response::new(HostStatusReply {
            revision: version.revision,
            hosts: self.hosts.status(&version),
        }))
    }

    async fn list_callers(
        &self,
        request: Request<ListCallersRequest>,
    ) -> Result<Response<CallersReply>, Status> {
        allowed(&request, Role::Read)?.caller.needs(Role::Read)?;
        let uses = self.admission.uses(Instant::now());
        Ok(Response::new(CallersReply { uses }))
    }

    async fn list_member_health(
        &self,
        request: Request<ListMemberHealthRequest>,
    ) -> Result<Response<MemberHealthReply>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let caller = &admitted.caller;
        let wanted = request.into_inner().load_balancer;
        let version = self.newest().await;
        let findings = self.hosts.board.findings();
        let vpc_of = |kind: Kind, id: &str| {
            let key = Key {
                kind,
                id: id.to_owned(),
            };
            let found = caller.find(Role::Read, &version.state, &key)?;
            found.vpc().map(str::to_owned)
        };
        let vpcs: BTreeSet<String> = match wanted.as_str() {
            "" => findings.vpcs().map(str::to_owned).collect(),
            id => vpc_of(Kind::LoadBalancer, id).into_iter().collect(),
        };
        // One of the same name may be in another VPC by now, and another tenant's.
        let may_read = |kind: Kind, id: &str, vpc: &String| vpc_of(kind, id).as_ref() == Some(vpc);
        let found = vpcs.iter().flat_map(|vpc| findings.health(vpc));
        let found = found.filter(|it| wanted.is_empty() || it.load_balancer == wanted);
        let found = found.filter(|it| may_read(Kind::LoadBalancer, &it.load_balancer, &it.vpc));
        let of_ports = vpcs.iter().flat_map(|vpc| findings.port_health(vpc));
        let of_ports =
            of_ports.filter(|it| wanted.is_empty() && may_read(Kind::Port, &it.id, &it.vpc));
        Ok(Response::new(MemberHealthReply {
            member_health: found.cloned().collect(),
            port_health: of_ports.cloned().collect(),
        }))
    }

    async fn list_multicast_listeners(
        &self,
        request: Request<ListMulticastListenersRequest>,
    ) -> Result<Response<MulticastListenersReply>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let wanted = request.into_inner().vpc;
        let (findings, vpcs) = self.found(&admitted.caller, &wanted).await;
        let listeners = vpcs.iter().flat_map(|vpc| findings.listeners(vpc));
        Ok(Response::new(MulticastListenersReply {
            multicast_listeners: listeners.cloned().collect(),
        }))
    }

    async fn list_address_holders(
        &self,
        request: Request<ListAddressHoldersRequest>,
    ) -> Result<Response<AddressHoldersReply>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let wanted = request.into_inner().vpc;
        let (findings, vpcs) = self.found(&admitted.caller, &wanted).await;
        let holders = vpcs.iter().flat_map(|vpc| findings.holders(vpc));
        Ok(Response::new(AddressHoldersReply {
            address_holders: holders.cloned().collect(),
        }))
    }

    async fn list_vpc_status(
        &self,
        request: Request<ListVpcStatusRequest>,
    ) -> Result<Response<VpcStatusReply>, Status> {
        let admitted = allowed(&request, Role::Read)?;
        let caller = &admitted.caller;
        let wanted = request.into_inner().vpc;
        let version = self.newest().await;
        let is_wanted =
            |vpc: &str| (wanted.is_empty() || vpc == wanted) && may_read_vpc(caller, &version, vpc);
        let mut held_back = self.hosts.vpcs_held_back(is_wanted);
        if caller.role < Role::Read {
            for held in &mut held_back {
                // Which hosts are gateways, and what others have on a host, is not for tenants.
                if version
                    .port_hosts_of(&held.vpc)
                    .all(|host| host != held.host)
                {
                    held.host.clear();
                }
                held.violations = vec![Violation {
                    rule: "the host has no room for it, or refuses it; ask the operator".to_owned(),
                    ..Violation::default()
                }];
            }
        }
        Ok(Response::new(VpcStatusReply {
            revision: version.revision,
            held_back,
        }))
    }
}

fn may_read_vpc(caller: &Caller, version: &Version, vpc: &str) -> bool {
    let key = Key {
        kind: Kind::Vpc,
        id: vpc.to_owned(),
    };
    caller.find(Role::Read, &version.state, &key).is_some()
}

/// The call as it was admitted, if the caller may do so much, at least to the objects of a tenant.
fn allowed<T>(request: &Request<T>, role: Role) -> Result<Arc<Admitted>, Status> {
    let admitted = request.extensions().get::<Arc<Admitted>>();
    // Every call comes by way of admission.
    let admitted = admitted.ok_or_else(|| Status::internal("the call was not admitted"))?;
    admitted.caller.needs_some(role)?;
    Ok(Arc::clone(admitted))
}

/// What a caller is told of a change that was not made.
pub(crate) fn to_status(error: &ChangeError) -> Status {
    let text = shortened(error.to_string());
    match error {
        ChangeError::Exists(_) => Status::already_exists(text),
        ChangeError::Missing(_) | ChangeError::Peering(PeeringError::Missing(_)) => {
            Status::not_found(text)
        }
        ChangeError::Malformed(_) | ChangeError::Refused(_) | ChangeError::Tenant(_) => {
            Status::invalid_argument(text)
        }
        ChangeError::Hosts(_) => Status::permission_denied(text),
        ChangeError::InUse(_) | ChangeError::Peering(PeeringError::Refused { .. }) => {
            Status::failed_precondition(text)
        }
        ChangeError::Overtaken(_) | ChangeError::ObjectsOvertaken(_) => Status::aborted(text),
        ChangeError::NotWriter(address) => not_writer(text, address.as_deref()),
        ChangeError::Store(_) if is_elsewhere(error) => not_writer(text, None),
        ChangeError::Undo(UndoError::NotKept { .. } | UndoError::NotYours(_)) => {
            Status::not_found(text)
        }
        ChangeError::Undo(_) => Status::failed_precondition(text),
        ChangeError::Store(error) => {
            tracing::error!(%error, "a change could not be stored");
            Status::unavailable(text)
        }
    }
}

/// Whether a change was not made because another controller writes, or may by now.
fn is_elsewhere(error: &ChangeError) -> bool {
    match error {
        ChangeError::NotWriter(_) => true,
        ChangeError::Store(error) => matches!(**error, StoreError::NotStored),
        _ => false,
    }
}

/// Takes back what a change counted that was not made because another controller writes.
fn give_back(admitted: &Admitted, objects: usize, error: &ChangeError) {
    if is_elsewhere(error) {
        admitted.permit.give_back(objects, Instant::now());
    }
}

/// The answer that nothing was done, and who would do it.
fn not_writer(text: String, address: Option<&str>) -> Status {
    let mut status = Status::unavailable(text);
    // An address that is no header's value is one that nobody can be sent to.
    if let Ok(address) = address.unwrap_or_default().parse() {
        status.metadata_mut().insert(WRITER, address);
    }
    status
}

/// As many whole lines as fit in an error.
fn shortened(text: String) -> String {
    if text.len() <= MAX_ERROR {
        return text;
    }
    let cut = text.floor_char_boundary(MAX_ERROR);
    let kept = &text[..text[..cut].rfind('\n').unwrap_or(cut)];
    let left = text[kept.len()..].lines().filter(|l| !l.is_empty()).count();
    format!("{kept}\nand {left} more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission;
    use crate::store::Embedded;
    use crate::version::Version;
    use weft_process::services::intent_server::Intent as _;
    use weft_proto::state::{Object, State};
    use weft_proto::v1::{Findings, MemberHealth, PortHealth};

    #[tokio::test]
    async fn an_undo_that_waits_for_its_change_holds_up_no_reader() {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("intent.redb")).unwrap();
        let intent = Arc::new(Intent::load(Box::new(store)).unwrap());
        let caller = Caller::certified("ann");
        let vpc = weft_proto::v1::Vpc {
            id: "v".to_owned(),
            vni: 7,
            ..Default::default()
        };
        let objects = weft_proto::v1::Objects {
            vpcs: vec![vpc],
            ..Default::default()
        };
        let revision = intent.create(&caller, objects).unwrap().revision;
        let admission = Arc::new(Admission::new(&Default::default()));
        let hosts = Arc::new(Hosts::new(&intent));
        let (_stop, stopping) = watch::channel(false);
        let api = Arc::new(Api::new(intent, hosts, Arc::clone(&admission), stopping));
        let account = caller.account();
        let mut busy = Vec::new();
        for _ in 0..CHANGING {
            busy.push(api.changing.take(&account).await);
        }
        let undos: Vec<_> = (0..READING + 1)
            .map(|_| {
                let kind = admission::Kind::Change;
                let permit = admission.admit(&account, kind, Instant::now()).unwrap();
                let caller = caller.clone();
                let mut request = Request::new(UndoRequest {
                    revision,
                    dry_run: true,
                });
                let admitted = Arc::new(Admitted { caller, permit });
                request.extensions_mut().insert(admitted);
                let api = Arc::clone(&api);
                tokio::spawn(async move { api.undo(request).await })
            })
            .collect();
        let start = Instant::now();
        while api.changing.waiting() < undos.len() {
            assert!(start.elapsed().as_secs() < 20, "a turn at reading is held");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        drop(busy);
        for undo in undos {
            assert_eq!(undo.await.unwrap().unwrap().into_inner().deleted, 1);
        }
    }

    /// One load balancer and one port, with what is found of them, in a VPC.
    fn checked_in(vpc: &str) -> (weft_proto::v1::Objects, Version, Vec<Object>) {
        let text = r#"
hosts: [{id: h1, vteps: [192.0.2.1]}]
vpcs: [{id: VPC, vni: 1}]
subnets: [{id: s, vpc: VPC, cidrs: [10.0.0.0/24]}]
ports: [{id: p1, vpc: VPC, subnet: s, mac: "02:00:00:00:00:01", addresses: [10.0.0.11], host: h1, device: {kind: netdev, name: p1}, health: {protocol: icmp}}]
load_balancers: [{id: lb, vpc: VPC, addresses: [10.0.0.200], listeners: [{protocol: tcp, port_min: 80, members: [{port: p1}], health: {protocol: tcp}}]}]
"#;
        let objects: weft_proto::v1::Objects =
            serde_yaml_ng::from_str(&text.replace("VPC", vpc)).unwrap();
        let balancer = &objects.load_balancers[0];
        let at = ("10.0.0.11".parse().unwrap(), 80);
        let of_member = MemberHealth::of(balancer, &balancer.listeners[0], at);
        let of_port = PortHealth {
            id: "p1".into(),
            vpc: vpc.into(),
            ..PortHealth::default()
        };
        let state = State::from_objects(objects.clone()).unwrap();
        let found = [Object::MemberHealth(of_member), Object::PortHealth(of_port)];
        (objects, Version::loaded(1, state), found.to_vec())
    }

    #[tokio::test]
    async fn what_was_found_in_another_vpc_is_nobodys_health() {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("intent.redb")).unwrap();
        let intent = Arc::new(Intent::load(Box::new(store)).unwrap());
        let caller = Caller::certified("ann");
        intent.create(&caller, checked_in("red").0).unwrap();
        let admission = Arc::new(Admission::new(&Default::default()));
        let hosts = Arc::new(Hosts::new(&intent));
        let (_stop, stopping) = watch::channel(false);
        let api = Api::new(intent, Arc::clone(&hosts), Arc::clone(&admission), stopping);
        let (mut counts, mut session) = (Vec::new(), 0);
        for vpc in ["blue", "red"] {
            let (_, version, found) = checked_in(vpc);
            session += 1;
            hosts.board.enter("h1", session, |_| true);
            let said = Findings {
                session,
                whole: true,
                found: Some(collect(found.into_iter())),
                ..Findings::default()
            };
            hosts.board.hear(&version, "h1", session, said);
            for wanted in ["", "lb"] {
                let mut request = Request::new(ListMemberHealthRequest {
                    load_balancer: wanted.into(),
                });
                let account = caller.account();
                let kind = admission::Kind::Read;
                let permit = admission.admit(&account, kind, Instant::now()).unwrap();
                let caller = caller.clone();
                let admitted = Arc::new(Admitted { caller, permit });
                request.extensions_mut().insert(admitted);
                let reply = api.list_member_health(request).await.unwrap();
                let reply = reply.into_inner();
                counts.push((reply.member_health.len(), reply.port_health.len()));
            }
        }
        assert_eq!(counts, [(0, 0), (0, 0), (1, 1), (1, 0)]);
    }

    #[test]
    fn a_long_error_keeps_whole_lines_and_counts_the_rest() {
        let line = "x".repeat(99);
        let text = vec![line.as_str(); 200].join("\n");
        let short = shortened(text);
        assert!(short.len() <= MAX_ERROR + 20);
        assert_eq!(short.lines().count(), 81);
        assert!(short.ends_with("and 120 more"), "{short}");
    }
}
