//! Which objects a list or a watch is of, by their labels and their fields, as users of Kubernetes write it.
//!
//! What a caller is not shown of an object selects nothing: match against the object as it is shown.

use std::collections::BTreeSet;

use weft_proto::labels::{Labels, broken_by_key, broken_by_value};
use weft_proto::state::{Kind, Object};

/// The longest text of a selector, in bytes.
const LENGTH: usize = 4096;
/// Requirements of a selector.
const REQUIREMENTS: usize = 64;

/// Why a text is no selector.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {reason}")]
pub(crate) struct SelectorError {
    field: &'static str,
    reason: String,
}

/// What a selector requires of one label.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Required {
    key: String,
    rule: Rule,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// It is there, and one of these.
    In(BTreeSet<String>),
    /// It is not there, or none of these.
    NotIn(BTreeSet<String>),
    Exists,
    Missing,
}

impl Required {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.rule {
            Rule::In(values) => value.is_some_and(|value| values.contains(value)),
            Rule::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Rule::Exists => value.is_some(),
            Rule::Missing => value.is_none(),
        }
    }
}

/// A field that objects may be selected by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Vpc,
    Tenant,
    Subnet,
    Host,
    Port,
    ExternalNetwork,
    Requester,
    Accepter,
}

impl Field {
    const ALL: [(&'static str, Self); 9] = [
        ("name", Self::Name),
        ("vpc", Self::Vpc),
        ("tenant", Self::Tenant),
        ("subnet", Self::Subnet),
        ("host", Self::Host),
        ("port", Self::Port),
        ("external_network", Self::ExternalNetwork),
        ("requester", Self::Requester),
        ("accepter", Self::Accepter),
    ];

    /// The field of an object; none where its kind has no such field.
    fn of(self, object: &Object) -> Option<&str> {
        Some(match (self, object) {
            (Self::Name, object) => object.id(),
            (Self::Vpc, Object::Subnet(o)) => &o.vpc,
            (Self::Vpc, Object::RouteTable(o)) => &o.vpc,
            (Self::Vpc, Object::NetworkAcl(o)) => &o.vpc,
            (Self::Vpc, Object::PrefixList(o)) => &o.vpc,
            (Self::Vpc, Object::SecurityGroup(o)) => &o.vpc,
            (Self::Vpc, Object::Port(o)) => &o.vpc,
            (Self::Vpc, Object::NatGateway(o)) => &o.vpc,
            (Self::Vpc, Object::LoadBalancer(o)) => &o.vpc,
            (Self::Vpc, Object::DnsZone(o)) => &o.vpc,
            (Self::Tenant, Object::Vpc(o)) => &o.tenant,
            (Self::Tenant, Object::Quota(o)) => &o.tenant,
            (Self::Tenant, Object::ExternalNetwork(o)) => &o.tenant,
            (Self::Tenant, Object::ElasticIp(o)) => &o.tenant,
            (Self::Tenant, Object::PrefixList(o)) => &o.tenant,
            (Self::Tenant, Object::SecurityGroup(o)) => &o.tenant,
            (Self::Subnet, Object::Port(o)) => &o.subnet,
            (Self::Host, Object::Port(o)) => &o.host,
            (Self::Port, Object::ElasticIp(o)) => &o.port,
            (Self::ExternalNetwork, Object::ElasticIp(o)) => &o.external_network,
            (Self::ExternalNetwork, Object::NatGateway(o)) => &o.external_network,
            (Self::ExternalNetwork, Object::Subnet(o)) => &o.external_network,
            (Self::Requester, Object::Peering(o)) => &o.requester,
            (Self::Accepter, Object::Peering(o)) => &o.accepter,
            _ => return None,
        })
    }

    /// Whether objects of a kind have it.
    fn is_of(self, kind: Kind) -> bool {
        // An object without anything decodes from nothing.
        Object::decode(kind, &[]).is_ok_and(|object| self.of(&object).is_some())
    }
}

/// Which objects; by default all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Required>,
    /// Each field, whether it is to be the value or to differ from it, and the value.
    fields: Vec<(Field, bool, String)>,
}

impl Selector {
    /// The selector of two texts, for objects of a kind; none: of all kinds.
    ///
    /// # Errors
    /// What is wrong with which text.
    pub(crate) fn new(
        labels: &str,
        fields: &str,
        kind: Option<Kind>,
    ) -> Result<Self, SelectorError> {
        let of = |field| move |reason| SelectorError { field, reason };
        let labels = parts(labels).and_then(|parts| parts.into_iter().map(required).collect());
        let fields = parts(fields).and_then(|parts| {
            let parts = parts.into_iter();
            parts.map(|part| field_required(part, kind)).collect()
        });
        Ok(Self {
            labels: labels.map_err(of("label_selector"))?,
            fields: fields.map_err(of("field_selector"))?,
        })
    }

    /// Whether it selects everything.
    pub(crate) fn is_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether it selects an object, given as the caller is shown it.
    pub(crate) fn matches(&self, object: &Object) -> bool {
        let fields = self.fields.iter();
        let mut fields = fields.map(|(field, is, value)| {
            let found = field.of(object);
            found.is_some_and(|found| (found == value) == *is)
        });
        fields.all(|holds| holds) && self.labels.iter().all(|it| it.holds(object.labels()))
    }
}

/// What commas separate, but for those in parentheses.
fn parts(text: &str) -> Result<Vec<&str>, String> {
    if text.len() > LENGTH {
        return Err(format!("is at most {LENGTH} bytes long"));
    }
    let mut parts = Vec::new();
    let (mut start, mut is_within) = (0, false);
    for (place, c) in text.char_indices() {
        match c {
            '(' if is_within => return Err("has a parenthesis within others".to_owned()),
            '(' => is_within = true,
            ')' if !is_within => return Err("has a closing parenthesis too many".to_owned()),
            ')' => is_within = false,
            ',' if !is_within => {
                parts.push(text[start..place].trim());
                start = place + 1;
            }
            _ => {}
        }
    }
    if is_within {
        return Err("has a parenthesis that is not closed".to_owned());
    }
    parts.push(text[start..].trim());
    if parts == [""] {
        return Ok(Vec::new());
    }
    if parts.len() > REQUIREMENTS {
        return Err(format!("has at most {REQUIREMENTS} requirements"));
    }
    if parts.contains(&"") {
        return Err("has a comma with nothing before or after it".to_owned());
    }
    Ok(parts)
}

/// One comparison, as "a=b", "a==b" or "a!=b": what is compared, whether it is to be equal, and to what.
fn comparison(part: &str) -> Option<(&str, bool, &str)> {
    let (name, is, value) = if let Some((name, value)) = part.split_once("!=") {
        (name, false, value)
    } else {
        let (name, value) = part.split_once('=')?;
        (name, true, value.strip_prefix('=').unwrap_or(value))
    };
    Some((name.trim(), is, value.trim()))
}

fn required(part: &str) -> Result<Required, String> {
    let (key, rule) = if let Some((head, values)) = part.split_once('(') {
        let values = values
            .strip_suffix(')')
            .ok_or_else(|| format!("'{part}' goes on after the parenthesis"))?;
        let values: BTreeSet<String> = values.split(',').map(|it| it.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => (key, Rule::In(values)),
            (Some(key), Some("notin"), None) => (key, Rule::NotIn(values)),
            _ => {
                let rule = "is not written KEY in (VALUE,VALUE) or KEY notin (VALUE,VALUE)";
                return Err(format!("'{part}' {rule}"));
            }
        }
    } else if let Some((key, is, value)) = comparison(part) {
        let values = BTreeSet::from([value.to_owned()]);
        match is {
            true => (key, Rule::In(values)),
            false => (key, Rule::NotIn(values)),
        }
    } else if let Some(key) = part.strip_prefix('!') {
        (key.trim(), Rule::Missing)
    } else {
        (part, Rule::Exists)
    };
    if let Some(rule) = broken_by_key(key) {
        return Err(format!("'{key}' is no key: {rule}"));
    }
    if let Rule::In(values) | Rule::NotIn(values) = &rule {
        let broken = values
            .iter()
            .find_map(|value| Some((value, broken_by_value(value)?)));
        if let Some((value, rule)) = broken {
            return Err(format!("'{value}' is no value: {rule}"));
        }
    }
    Ok(Required {
        key: key.to_owned(),
        rule,
    })
}

fn field_required(part: &str, kind: Option<Kind>) -> Result<(Field, bool, String), String> {
    let (name, is, value) = comparison(part)
        .ok_or_else(|| format!("'{part}' is not written FIELD=VALUE or FIELD!=VALUE"))?;
    let has = |field: Field| kind.is_none_or(|kind| field.is_of(kind));
    let mut known = Field::ALL.into_iter().filter(|(_, field)| has(*field));
    match known.clone().find(|(known, _)| *known == name) {
        Some((_, field)) => Ok((field, is, value.to_owned())),
        None => {
            let first = known.next().map_or("", |(name, _)| name);
            let names = known.fold(first.to_owned(), |all, (name, _)| all + ", " + name);
            Err(format!("'{name}' is not one of {names}"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use weft_proto::v1::{Port, Vpc};

    fn port(labels: &[(&str, &str)]) -> Object {
        let labels = labels.iter();
        Object::Port(Port {
            id: "p1".into(),
            vpc: "blue".into(),
            host: "h1".into(),
            labels: labels
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..Port::default()
        })
    }

    fn selects(labels: &str, fields: &str, object: &Object) -> bool {
        Selector::new(labels, fields, None).unwrap().matches(object)
    }

    #[test]
    fn labels_are_selected_as_kubernetes_does() {
        let web = port(&[("app", "web"), ("example.com/tier", ""), ("v", "1.2")]);
        for good in [
            "",
            "app=web",
            "app==web",
            " app = web , v=1.2",
            "app!=db",
            "other!=x",
            "app in (db, web)",
            "app notin (db,x),v",
            "other notin (x)",
            "example.com/tier",
            "example.com/tier=",
            "example.com/tier in (,x)",
            "!other",
            "! other",
        ] {
            assert!(selects(good, "", &web), "{good}");
        }
        for bad in [
            "app=db",
            "app!=web",
            "app in (db)",
            "app notin (web)",
            "other",
            "!app",
            "app=web,other=x",
            "other=",
        ] {
            assert!(!selects(bad, "", &web), "{bad}");
        }
    }

    #[test]
    fn fields_are_those_of_the_object() {
        let web = port(&[]);
        for good in ["name=p1", "vpc==blue,host=h1", "host!=h2", "subnet="] {
            assert!(selects("", good, &web), "{good}");
        }
        for bad in [
            "name=p2",
            "host!=h1",
            "vpc=blue,host=",
            "requester!=x",
            "tenant=",
        ] {
            assert!(!selects("", bad, &web), "{bad}");
        }
        let vpc = Object::Vpc(Vpc {
            id: "blue".into(),
            ..Vpc::default()
        });
        assert!(selects("", "tenant=", &vpc));
        assert!(!selects("", "host!=h1", &vpc), "it has no such field");
    }

    #[test]
    fn what_is_no_selector_is_refused_with_what_is_wrong() {
        for (labels, told) in [
            (
                "app=web,",
                "label_selector: has a comma with nothing before or after it",
            ),
            ("app in web", "label_selector: 'app in web' is no key"),
            (
                "app in (web",
                "label_selector: has a parenthesis that is not closed",
            ),
            (
                "app in ((web))",
                "label_selector: has a parenthesis within others",
            ),
            ("app)", "label_selector: has a closing parenthesis too many"),
            (
                "app in (web) x",
                "label_selector: 'app in (web) x' goes on after the parenthesis",
            ),
            (
                "app within (web)",
                "label_selector: 'app within (web)' is not written",
            ),
            ("=web", "label_selector: '' is no key"),
            ("app=a=b", "label_selector: 'a=b' is no value"),
            ("ä", "label_selector: 'ä' is no key"),
            ("a,,b", "label_selector: has a comma"),
            (
                &vec!["a"; 65].join(","),
                "label_selector: has at most 64 requirements",
            ),
            (
                &"a".repeat(4097),
                "label_selector: is at most 4096 bytes long",
            ),
        ] {
            let error = Selector::new(labels, "", None).unwrap_err().to_string();
            assert!(error.starts_with(told), "{labels}: {error}");
        }
        for (fields, told) in [
            (
                "host",
                "field_selector: 'host' is not written FIELD=VALUE or FIELD!=VALUE",
            ),
            (
                "requester=x",
                "field_selector: 'requester' is not one of name, vpc, subnet, host",
            ),
        ] {
            let error = Selector::new("", fields, Some(Kind::Port)).unwrap_err();
            assert_eq!(error.to_string(), told);
        }
    }
}
