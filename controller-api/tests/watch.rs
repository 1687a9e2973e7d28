//! Changes as they are told to those who watch.

#![allow(clippy::unwrap_used)]

mod support;

use support::certified::Certified;
use support::{Controller, DEADLINE, key, topology, within, yaml};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::{Kind, State, explode};
use weft_proto::v1::{ApplyRequest, DeleteRequest, ListRequest, Objects, WatchEvent, WatchRequest};

type Client = IntentClient<Channel>;

async fn applied(client: &mut Client, objects: Objects) -> u64 {
    let request = ApplyRequest {
        objects: Some(objects),
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap().into_inner().revision
}

async fn deleted(client: &mut Client, kind: &str, id: &str) -> u64 {
    let request = DeleteRequest {
        objects: vec![key(kind, id)],
    };
    client.delete(request).await.unwrap().into_inner().revision
}

/// A watch, and what it makes of the events.
struct Watch {
    stream: Streaming<WatchEvent>,
    state: State,
    revision: u64,
}

async fn watch(client: &mut Client, kind: &str, vpc: &str, from: u64) -> Result<Watch, Status> {
    let request = WatchRequest {
        kind: kind.into(),
        vpc: vpc.into(),
        from_revision: from,
        ..WatchRequest::default()
    };
    Ok(Watch {
        stream: client.watch(request).await?.into_inner(),
        state: State::default(),
        revision: from,
    })
}

impl Watch {
    async fn next(&mut self) -> Result<WatchEvent, Status> {
        let event = within(self.stream.message()).await?;
        let event = event.expect("a watch says why it ends");
        assert!(event.revision >= self.revision, "{event:?}");
        self.state = self
            .state
            .patched(event.upserts.clone().unwrap_or_default(), &event.deletes)
            .unwrap();
        if !event.more {
            self.revision = event.revision;
        }
        Ok(event)
    }

    async fn until(&mut self, revision: u64) {
        while self.revision < revision {
            self.next().await.unwrap();
        }
    }

    fn ids(&self) -> Vec<String> {
        self.state
            .iter()
            .map(|object| object.key().to_string())
            .collect()
    }
}

fn vpc(id: &str, vni: u32) -> Objects {
    yaml(&format!("vpcs: [{{id: {id}, vni: {vni}}}]"))
}

#[tokio::test]
async fn a_watch_tells_what_there_is_and_then_each_change() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let mut empty = watch(&mut client, "", "", 0).await.unwrap();
    let first = empty.next().await.unwrap();
    assert_eq!((first.revision, first.more), (0, false));
    let start = applied(&mut client, topology()).await;
    let mut all = watch(&mut client, "", "", 0).await.unwrap();
    let mut ports = watch(&mut client, "port", "blue", 0).await.unwrap();
    all.until(start).await;
    assert_eq!(all.state.len(), 10);
    ports.until(start).await;
    assert_eq!(ports.ids(), ["port b1", "port b2"]);
    applied(&mut client, vpc("other", 77)).await;
    let mut changed = topology();
    changed.ports[0].addresses = vec!["10.0.0.21".into()];
    let readdressed = applied(&mut client, changed).await;
    let gone = deleted(&mut client, "port", "b2").await;
    // Each change comes by itself, with its revision, and no other.
    let event = ports.next().await.unwrap();
    assert_eq!(event.revision, readdressed);
    assert_eq!(event.upserts.unwrap().ports.len(), 1);
    let event = ports.next().await.unwrap();
    assert_eq!(event.revision, gone);
    assert_eq!(event.deletes, [key("port", "b2")]);
    all.until(gone).await;
    empty.until(gone).await;
    assert_eq!(all.state, empty.state);
    let mut listed = State::default();
    let mut stream = client
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    while let Some(reply) = stream.message().await.unwrap() {
        for object in explode(reply.objects.unwrap()) {
            listed.insert(object);
        }
    }
    assert_eq!(all.state, listed);
    let unknown = watch(&mut client, "prot", "", 0).await;
    assert_eq!(unknown.err().unwrap().code(), Code::InvalidArgument);
    let unknown = watch(&mut client, "port", "", gone + 1).await;
    assert_eq!(unknown.err().unwrap().code(), Code::FailedPrecondition);
    controller.stop().await;
    assert_eq!(all.next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_watch_goes_on_from_a_revision_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let start = applied(&mut client, topology()).await;
    let mut last = start;
    for n in 0..150 {
        last = applied(&mut client, vpc("other", 100 + n)).await;
    }
    let follow = async |client: &mut Client, from: u64, last: u64| {
        let mut watch = watch(client, "vpc", "", from).await.unwrap();
        for revision in from + 1..=last {
            assert_eq!(watch.next().await.unwrap().revision, revision);
        }
        watch
    };
    follow(&mut client, start, last).await;
    controller.stop().await;
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let mut watch = follow(&mut client, start, last).await;
    let next = applied(&mut client, vpc("other", 99)).await;
    let event = watch.next().await.unwrap();
    assert_eq!(event.revision, next);
    assert_eq!(event.upserts.unwrap().vpcs[0].vni, 99);
    controller.stop().await;
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_out_of_range() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let start = applied(&mut client, topology()).await;
    applied(&mut client, vpc("more", 80)).await;
    controller.stop().await;
    // By a controller that keeps one change alone.
    let path = directory.path().join("intent.redb");
    {
        let bounds = weft_controller::store::HistoryBounds {
            changes: 1,
            bytes: 1 << 20,
        };
        let store = weft_controller::store::Embedded::open(&path)
            .unwrap()
            .with_history(bounds);
        let intent = weft_controller::intent::Intent::load(Box::new(store)).unwrap();
        let caller = weft_controller::caller::Caller::trusted("a test".into());
        tokio::task::spawn_blocking(move || intent.create(&caller, vpc("later", 90)).unwrap())
            .await
            .unwrap();
    }
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let mut late = watch(&mut client, "", "", start).await.unwrap();
    let refused = late.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
    assert!(refused.message().contains("list again"), "{refused}");
    let mut good = watch(&mut client, "", "", start + 1).await.unwrap();
    assert_eq!(good.next().await.unwrap().revision, start + 2);
    controller.stop().await;
}

#[tokio::test]
async fn a_tenant_watches_its_own_objects_and_hears_of_no_others() {
    let certified = Certified::start().await;
    let mut operator = certified.client("operator", "weft://role/admin").await;
    let mut ann = certified.client("ann", "weft://tenant/ann/operate").await;
    let base = "vpcs: [{id: blue, vni: 7, tenant: ann}, {id: green, vni: 8, tenant: ben}]\n\
                external_networks: [{id: inet, prefixes: [203.0.113.0/24], gateways: [203.0.113.1], physical_network: wan}]\n";
    let start = applied(&mut operator, yaml(base)).await;
    let mut own = watch(&mut ann, "", "", 0).await.unwrap();
    let mut later = watch(&mut ann, "", "", start).await.unwrap();
    own.until(start).await;
    assert_eq!(own.ids(), ["vpc blue", "external_network inet"]);
    let text = base.replace("vni: 8", "vni: 9").replace("wan", "lan");
    applied(&mut operator, yaml(&text)).await;
    let group = "security_groups: [{id: ann/web, vpc: blue}]";
    let done = applied(&mut ann, yaml(group)).await;
    for watch in [&mut own, &mut later] {
        let event = watch.next().await.unwrap();
        assert_eq!(event.revision, done, "what is hidden does not count");
        let objects: Vec<_> = explode(event.upserts.unwrap()).collect();
        assert_eq!(objects.len(), 1);
        assert_eq!(objects[0].kind(), Kind::SecurityGroup);
    }
    certified.controller.stop().await;
}

#[tokio::test]
async fn a_large_change_comes_in_parts_of_one_revision() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    applied(&mut client, vpc("blue", 1)).await;
    let mut follows = watch(&mut client, "security_group", "", 1).await.unwrap();
    let groups = (0..1200).map(|n| format!("{{id: g{n}, vpc: blue}}"));
    let groups: Vec<String> = groups.collect();
    let text = format!("security_groups: [{}]", groups.join(","));
    let many = applied(&mut client, yaml(&text)).await;
    let mut mores = Vec::new();
    for _ in 0..3 {
        let event = follows.next().await.unwrap();
        assert_eq!(event.revision, many);
        mores.push(event.more);
    }
    assert_eq!(mores, [true, true, false]);
    assert_eq!(follows.state.len(), 1200);
    let mut starts = watch(&mut client, "security_group", "", 0).await.unwrap();
    starts.until(many).await;
    assert_eq!(starts.state, follows.state);
    controller.stop().await;
}

#[tokio::test]
async fn one_that_does_not_follow_is_ended_and_others_do_not_wait_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    applied(&mut client, vpc("blue", 1)).await;
    // A connection of its own: what waits there is nobody else's.
    let mut slow_client = controller.intent().await;
    let mut slow = watch(&mut slow_client, "", "", 1).await.unwrap();
    let mut good = watch(&mut client, "", "", 1).await.unwrap();
    let mut last = 0;
    for n in 0..300 {
        let prefix = |m| format!("10.{}.{}.{}/32", n % 256, m / 256, m % 256);
        let prefixes: Vec<String> = (0..1000).map(prefix).collect();
        let text = format!(
            "prefix_lists: [{{id: many, vpc: blue, prefixes: [{}]}}]",
            prefixes.join(",")
        );
        last = applied(&mut client, yaml(&text)).await;
        good.until(last).await;
    }
    let start = std::time::Instant::now();
    // It takes nothing for as long as a caller may.
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    let end = loop {
        match slow.next().await {
            Ok(_) => assert!(start.elapsed() < 3 * DEADLINE, "it never ends"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end}");
    assert!(slow.revision < last);
    // It goes on from where it came to.
    let from = slow.revision;
    let mut again = watch(&mut slow_client, "", "", from).await.unwrap();
    again.until(last).await;
    assert_eq!(again.ids(), ["prefix_list many"]);
    controller.stop().await;
}

#[tokio::test]
async fn a_caller_has_so_many_watches_and_no_more() {
    let certified = Certified::start().await;
    let mut one = certified.client("one", "weft://role/read").await;
    let mut other = certified.client("other", "weft://role/read").await;
    let mut open = Vec::new();
    let refused = loop {
        match watch(&mut one, "", "", 0).await {
            Ok(watch) => open.push(watch),
            Err(status) => break status,
        }
        assert!(open.len() < 1000);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(open.len(), 400);
    watch(&mut other, "", "", 0).await.unwrap();
    open.pop();
    // The controller hears of the end a little later.
    let start = std::time::Instant::now();
    while watch(&mut one, "", "", 0).await.is_err() {
        assert!(start.elapsed() < DEADLINE);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    certified.controller.stop().await;
}

#[tokio::test]
async fn pages_are_of_one_revision_and_end_when_it_is_not_kept() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(directory.path(), "127.0.0.1:0").await;
    let mut client = controller.intent().await;
    let vpcs = (0..1300).map(|n| format!("{{id: v{n:04}, vni: {}}}", n + 1));
    let text = format!("vpcs: [{}]", vpcs.collect::<Vec<_>>().join(","));
    let start = applied(&mut client, yaml(&text)).await;
    let page = async |client: &mut Client, size: u32, token: &str, kind: &str| {
        let request = ListRequest {
            kind: kind.into(),
            page_size: size,
            page_token: token.into(),
            ..ListRequest::default()
        };
        let mut stream = client.list(request).await?.into_inner();
        let (mut ids, mut next) = (Vec::new(), String::new());
        while let Some(reply) = stream.message().await? {
            assert!(next.is_empty(), "only the last message has a token");
            assert_eq!(reply.revision, start);
            ids.extend(explode(reply.objects.unwrap()).map(|object| object.id().to_owned()));
            next = reply.next_page_token;
        }
        Ok::<_, Status>((ids, next))
    };
    let all: Vec<String> = (0..1300).map(|n| format!("v{n:04}")).collect();
    let (whole, none) = page(&mut client, 0, "", "vpc").await.unwrap();
    assert_eq!((&whole, &*none), (&all, ""));
    let (exact, none) = page(&mut client, 1300, "", "vpc").await.unwrap();
    assert_eq!((&exact, &*none), (&all, ""));
    let mut found = Vec::new();
    let (mut ids, mut token) = page(&mut client, 600, "", "vpc").await.unwrap();
    let second = token.clone();
    // Neither what is new nor what is gone is in a later page.
    applied(&mut client, vpc("v0700x", 5000)).await;
    deleted(&mut client, "vpc", "v0800").await;
    loop {
        assert!(ids.len() <= 600);
        found.extend(ids);
        if token.is_empty() {
            break;
        }
        (ids, token) = page(&mut client, 600, &token, "vpc").await.unwrap();
    }
    assert_eq!(found, all);
    for (token, kind) in [("x", "vpc"), (&*second, "port"), (&*second, "")] {
        let refused = page(&mut client, 600, token, kind).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{token}");
    }
    let gone = page(&mut client, 600, &format!("{}{second}", 9), "vpc")
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::Aborted, "{gone}");
    controller.stop().await;
}
