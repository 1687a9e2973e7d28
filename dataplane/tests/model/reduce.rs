//! Cutting a case that fails to its least: events first, then the configuration's lists, as long as it fails in the same way (delta
//! debugging: Zeller, Hildebrandt, "Simplifying and isolating failure-inducing input", 2002).

use std::time::{Duration, Instant};

use serde_yaml_ng::Value;

use crate::case::{Case, Event};

/// What is not small by then stays as it is.
const PATIENCE: Duration = Duration::from_secs(60);

/// The least of a list that `fails`, found by leaving out runs of it, long ones first.
pub fn least<T: Clone>(mut list: Vec<T>, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut run = list.len().div_ceil(2);
    while run > 0 {
        let (before, mut at) = (list.len(), 0);
        while at < list.len() {
            let end = (at + run).min(list.len());
            let mut shorter = list.clone();
            shorter.drain(at..end);
            if fails(&shorter) {
                list = shorter;
            } else {
                at = end;
            }
        }
        // One more round with single elements as long as that helps.
        if run > 1 || list.len() == before {
            run /= 2;
        }
    }
    list
}

/// The least case that still fails as this one does; `fails` plays a case.
pub fn reduce(case: Case, fails: impl Fn(&Case) -> bool) -> Case {
    let deadline = Instant::now() + PATIENCE;
    let fails = |case: &Case| Instant::now() < deadline && fails(case);
    let mut case = case;
    loop {
        let before = case.to_text().len();
        let translations = case.translations.clone();
        case.translations = least(translations, |translations| {
            fails(&Case {
                translations: translations.to_vec(),
                ..case.clone()
            })
        });
        let device_mtus = case.device_mtus.clone().into_iter().collect();
        let device_mtus = least(device_mtus, |device_mtus| {
            fails(&Case {
                device_mtus: device_mtus.iter().cloned().collect(),
                ..case.clone()
            })
        });
        case.device_mtus = device_mtus.into_iter().collect();
        let rest = Case {
            events: Vec::new(),
            ..case.clone()
        };
        case.events = least(case.events, |events| {
            fails(&Case {
                events: events.to_vec(),
                ..rest.clone()
            })
        });
        for place in 0..=case.events.len() {
            case = without_objects(case, place, &fails);
        }
        if case.to_text().len() == before {
            return case;
        }
    }
}

/// Cuts the lists of one configuration: the first (place 0), or that of an event.
fn without_objects(case: Case, place: usize, fails: &impl Fn(&Case) -> bool) -> Case {
    let objects = match place.checked_sub(1).map(|event| &case.events[event]) {
        None => &case.objects,
        Some(Event::Configure(objects)) => objects,
        Some(_) => return case,
    };
    let with = |value: &Value| {
        let objects = serde_yaml_ng::from_value(value.clone()).ok()?;
        let mut other = case.clone();
        match place.checked_sub(1) {
            None => other.objects = objects,
            Some(event) => other.events[event] = Event::Configure(Box::new(objects)),
        }
        Some(other)
    };
    let whole = serde_yaml_ng::to_value(objects).unwrap();
    let least = cut(whole, &[], &|value| {
        with(value).is_some_and(|other| fails(&other))
    });
    with(&least).unwrap_or(case)
}

/// Cuts every list below a path, outer ones first.
fn cut(mut whole: Value, path: &[Value], fails: &impl Fn(&Value) -> bool) -> Value {
    let keys: Vec<Value> = match at(&mut whole, path) {
        Some(Value::Sequence(list)) => {
            let list = list.clone();
            let shorter = least(list, |shorter| {
                let mut other = whole.clone();
                if let Some(place) = at(&mut other, path) {
                    *place = Value::Sequence(shorter.to_vec());
                }
                fails(&other)
            });
            let keys = (0..shorter.len()).map(|i| Value::from(i as u64)).collect();
            if let Some(place) = at(&mut whole, path) {
                *place = Value::Sequence(shorter);
            }
            keys
        }
        Some(Value::Mapping(map)) => map.keys().cloned().collect(),
        _ => return whole,
    };
    for key in keys {
        let below = [path, &[key]].concat();
        whole = cut(whole, &below, fails);
    }
    whole
}

fn at<'v>(whole: &'v mut Value, path: &[Value]) -> Option<&'v mut Value> {
    path.iter()
        .try_fold(whole, |value, key| match key.as_u64() {
            Some(index) => value.get_mut(index as usize),
            None => value.get_mut(key),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_a_list_is_what_matters_of_it() {
        let found = least((0..100).collect(), |list| {
            [7, 8, 63].iter().all(|n| list.contains(n))
        });
        assert_eq!(found, [7, 8, 63]);
    }

    #[test]
    fn lists_within_lists_are_cut() {
        let whole: Value =
            serde_yaml_ng::from_str("{a: [{b: [1, 2, 3]}, {b: [4]}], c: [5]}").unwrap();
        let found = cut(whole, &[], &|value| {
            value["a"].as_sequence().into_iter().flatten().any(|item| {
                item["b"]
                    .as_sequence()
                    .is_some_and(|list| list.contains(&2.into()))
            })
        });
        let expected: Value = serde_yaml_ng::from_str("{a: [{b: [2]}], c: []}").unwrap();
        assert_eq!(found, expected);
    }
}
