//! Configuration: node state from the controller, weftd's file, a tenant's topology.

use std::path::Path;

use prost::Message;
use weft_controller::compile::compile;
use weft_controller::version::Version;
use weft_dataplane::pipeline::Settings;
use weft_dataplane::session::Limits;
use weft_fabric::Fabric;
use weft_proto::state::State;
use weft_proto::v1::{Delta, Objects};
use weft_proto::validate::{Scope, validate, validate_next};
use weftd::daemon::config::Config;

const LIMITS: Limits = Limits {
    capacity: 1024,
    per_port: 512,
    per_vpc: 1024,
    ports: 64,
    vpcs: 64,
};
const NODE: Scope<'_> = Scope::Node { host: "h1" };

/// A full state and a delta, as they come over the stream: length of the first (two bytes), both. What the rules let pass can be compiled, and
/// checking the change says the same as checking the whole.
pub fn node(input: &[u8]) {
    let Some((len, rest)) = input.split_first_chunk() else {
        return;
    };
    let (full, delta) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    let Some(before) = Objects::decode(full)
        .ok()
        .and_then(|o| State::from_objects(o).ok())
    else {
        return;
    };
    let again = State::from_objects(before.to_objects()).expect("the same objects once more");
    assert_eq!(again.digest(), before.digest());
    if !validate(&before, NODE).is_empty() {
        return;
    }
    let mut fabric = compiled(&before);
    let Ok(delta) = Delta::decode(delta) else {
        return;
    };
    let Ok(next) = before.patched(delta.upserts.unwrap_or_default(), &delta.deletes) else {
        return;
    };
    let (by_change, by_whole) = (validate_next(&before, &next, NODE), validate(&next, NODE));
    assert_eq!(
        by_change.is_empty(),
        by_whole.is_empty(),
        "{by_change:?} {by_whole:?}"
    );
    if by_whole.is_empty()
        && let Some(fabric) = &mut fabric
    {
        // Limits of a host may refuse it.
        let _ = fabric.set(next);
    }
}

/// A fabric of the one host; none where its limits refuse the state.
fn compiled(state: &State) -> Option<Fabric> {
    let mut objects = state.to_objects();
    for host in &mut objects.hosts {
        // Memory for one host is enough.
        host.foreign |= host.id != "h1";
    }
    let settings = Settings {
        ports: 64,
        ..Settings::default()
    };
    Fabric::new(State::from_objects(objects).ok()?, &settings, LIMITS).ok()
}

/// weftd's configuration: what passes can be used.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match Config::parse(text, Path::new("weftd.toml")) {
        Ok(config) => {
            let limits = config.session_limits();
            assert!(limits.capacity > 0);
            let _ = (config.timeouts(), config.settings(), config.busy_poll());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A topology as tenants apply it. What the controller compiles of it for a host, the host accepts.
pub fn topology(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(objects) = serde_yaml_ng::from_str::<Objects>(text) else {
        return;
    };
    let Ok(state) = State::from_objects(objects) else {
        return;
    };
    if !validate(&state, Scope::Intent).is_empty() {
        return;
    }
    let hosts: Vec<String> = state
        .to_objects()
        .hosts
        .into_iter()
        .map(|host| host.id)
        .collect();
    let version = Version::loaded(1, state);
    for host in hosts {
        if let Some(node) = compile(&version, &host) {
            let refused = validate(&node, Scope::Node { host: &host });
            assert!(
                refused.is_empty(),
                "{host} refuses what is compiled for it: {refused:?}"
            );
        }
    }
}
