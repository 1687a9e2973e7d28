//! The section `[admission]` of the controller's configuration: how much one caller may ask for.

use std::ops::RangeInclusive;

use serde::Deserialize;
use weft_process::transport::MAX_MESSAGE;

use super::bucket::Rate;
use super::refusal::Limit;

/// How much callers may ask for, each by itself: a tenant with all its certificates, any other caller by its certificate's subject, and all that come
/// without a certificate together.
///
/// ```
/// let admission: weft_controller::admission::AdmissionConfig = toml::from_str("
///     tenants = { changes_per_second = 50, changes_burst = 100 }
/// ").unwrap();
/// assert_eq!(admission.tenants.changes_per_second, Some(50));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// For each tenant.
    pub tenants: CallerConfig,
    /// For each other caller: `weft://role/…`, and those without a certificate.
    pub operators: CallerConfig,
}

/// What is said of one caller; what is not said is by default. 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallerConfig {
    /// Changes (create, apply, delete, undo, change of a peering), a second: at most 1,000,000. 200 for tenants, no limit for operators.
    pub changes_per_second: Option<u64>,
    /// Changes at once after a pause: 1 to 10,000,000. 2000 by default.
    pub changes_burst: Option<u64>,
    /// Objects named or changed by these, a second: at most 100,000,000. 20,000 for tenants, no limit for operators.
    pub objects_per_second: Option<u64>,
    /// Objects at once after a pause: 1 to 1,000,000,000. 200,000 by default. One change may have more, if none was made for a while.
    pub objects_burst: Option<u64>,
    /// Changes that are not answered yet: at most 100,000. 64 for tenants, 256 for operators.
    pub changes_in_flight: Option<u64>,
    /// Calls that read (lists, history, status) and are not answered whole yet: 2, which `weftctl port list` needs, to 100,000. 64 for tenants, 256 for operators.
    pub reads_in_flight: Option<u64>,
    /// Open watches: at most 4000, which is also the most of all callers. 100 for tenants, 400 for operators.
    pub watches: Option<u64>,
    /// The most that requests take which are not answered yet, in MiB: 256, which one alone may take, to 65,536. 512 for tenants, 4096 for operators.
    pub mebibytes_in_flight: Option<u64>,
}

/// The limits of one caller; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    changes_per_second: u64,
    changes_burst: u64,
    objects_per_second: u64,
    objects_burst: u64,
    changes_in_flight: u64,
    reads_in_flight: u64,
    watches: u64,
    mebibytes_in_flight: u64,
}

const TENANTS: Limits = Limits {
    changes_per_second: 200,
    changes_burst: 2000,
    objects_per_second: 20_000,
    objects_burst: 200_000,
    changes_in_flight: 64,
    reads_in_flight: 64,
    watches: 100,
    mebibytes_in_flight: 512,
};

const OPERATORS: Limits = Limits {
    changes_per_second: 0,
    objects_per_second: 0,
    changes_in_flight: 256,
    reads_in_flight: 256,
    watches: 400,
    mebibytes_in_flight: 4096,
    ..TENANTS
};

impl Limits {
    /// How fast something may come, if that is limited.
    pub(super) fn rate(&self, limit: Limit) -> Option<Rate> {
        let (per_second, burst) = match limit {
            Limit::Changes => (self.changes_per_second, self.changes_burst),
            Limit::Objects => (self.objects_per_second, self.objects_burst),
            Limit::ChangesInFlight | Limit::ReadsInFlight | Limit::Watches | Limit::Bytes => {
                return None;
            }
        };
        (per_second > 0).then_some(Rate { per_second, burst })
    }

    /// How much of something there may be at a time; 0: no limit.
    pub(super) fn most(&self, limit: Limit) -> u64 {
        match limit {
            Limit::Changes | Limit::Objects => 0,
            Limit::ChangesInFlight => self.changes_in_flight,
            Limit::ReadsInFlight => self.reads_in_flight,
            Limit::Watches => self.watches,
            Limit::Bytes => self.mebibytes_in_flight << 20,
        }
    }
}

impl AdmissionConfig {
    pub(super) fn of_tenants(&self) -> Limits {
        self.tenants.or(TENANTS)
    }

    pub(super) fn of_operators(&self) -> Limits {
        self.operators.or(OPERATORS)
    }

    /// The first setting that is out of its range: its name below `admission`, its value and the range.
    pub(crate) fn out_of_range(&self) -> Option<(String, u64, RangeInclusive<u64>)> {
        let of = |section: &str, config: &CallerConfig| {
            let mut found = config.fields().into_iter();
            let found =
                found.find(|(_, value, range)| value.is_some_and(|it| !range.contains(&it)));
            found.map(|(name, value, range)| {
                (
                    format!("{section}.{name}"),
                    value.unwrap_or_default(),
                    range,
                )
            })
        };
        of("tenants", &self.tenants).or_else(|| of("operators", &self.operators))
    }
}

/// A setting's name, its value and its range.
type Field = (&'static str, Option<u64>, RangeInclusive<u64>);

impl CallerConfig {
    fn fields(&self) -> [Field; 8] {
        [
            ("changes_per_second", self.changes_per_second, 0..=1_000_000),
            ("changes_burst", self.changes_burst, 1..=10_000_000),
            (
                "objects_per_second",
                self.objects_per_second,
                0..=100_000_000,
            ),
            ("objects_burst", self.objects_burst, 1..=1_000_000_000),
            ("changes_in_flight", self.changes_in_flight, 0..=100_000),
            (
                "reads_in_flight",
                // 0 is no limit.
                self.reads_in_flight.filter(|most| *most > 0),
                2..=100_000,
            ),
            ("watches", self.watches, 0..=super::ALL_WATCHES),
            (
                "mebibytes_in_flight",
                // 0 is no limit.
                self.mebibytes_in_flight.filter(|most| *most > 0),
                (MAX_MESSAGE as u64 >> 20)..=65_536,
            ),
        ]
    }

    fn or(&self, default: Limits) -> Limits {
        let or = |given: Option<u64>, default| given.unwrap_or(default);
        Limits {
            changes_per_second: or(self.changes_per_second, default.changes_per_second),
            changes_burst: or(self.changes_burst, default.changes_burst),
            objects_per_second: or(self.objects_per_second, default.objects_per_second),
            objects_burst: or(self.objects_burst, default.objects_burst),
            changes_in_flight: or(self.changes_in_flight, default.changes_in_flight),
            reads_in_flight: or(self.reads_in_flight, default.reads_in_flight),
            watches: or(self.watches, default.watches),
            mebibytes_in_flight: or(self.mebibytes_in_flight, default.mebibytes_in_flight),
        }
    }
}
