//! Two hosts and two tenants with the same addresses, reused for all inputs: all sessions expire after each input.

use std::cell::RefCell;

use weft_dataplane::pipeline::Settings;
use weft_dataplane::session::Limits;
use weft_fabric::Fabric;
use weft_proto::state::State;

pub(crate) const LIMITS: Limits = Limits {
    capacity: 1024,
    per_port: 512,
    per_vpc: 1024,
    ports: 16,
    vpcs: 16,
};
/// Milliseconds after which no session of any state is left.
pub(crate) const LONG: u32 = 8_000_000;
/// Time that two fabrics do not share: milliseconds wrap.
pub(crate) const LIFETIME: u32 = u32::MAX / 4;

thread_local! {
    static FABRIC: RefCell<Option<Fabric>> = const { RefCell::new(None) };
}

fn new() -> Fabric {
    let objects = serde_yaml_ng::from_str(include_str!("fabric.yaml")).expect("the file is good");
    let state = State::from_objects(objects).expect("each object once");
    let settings = Settings {
        ports: 16,
        ..Settings::default()
    };
    let mut fabric = Fabric::new(state, &settings, LIMITS).expect("no rule is broken");
    fabric.add_worker();
    fabric
}

/// Lends the fabric out. After that no buffer may be missing, and every packet must be accounted for.
pub fn with(act: impl FnOnce(&mut Fabric)) {
    FABRIC.with_borrow_mut(|kept| {
        let fabric = kept.get_or_insert_with(new);
        act(fabric);
        fabric.crossed.clear();
        fabric.asked.clear();
        fabric.advance(LONG);
        assert_eq!(fabric.missing_frames(), 0, "frames leaked");
        for (id, host) in &fabric.hosts {
            assert_eq!(host.unaccounted(), 0, "packets unaccounted for on {id}");
            let sessions = host.shared.sessions.statistics().live;
            assert_eq!(sessions, 0, "sessions that do not expire on {id}");
        }
        if fabric.now > LIFETIME {
            *kept = None;
        }
    });
}
