//! Charts of results: SVG files drawn from the JSON document that a run prints.
//!
//! Each suite gets a chart of lines for each unit in which rows differ by a size only (`… 10 rules …`, `… 1k rules …`, at least three of them), and a
//! chart of bars for each unit of its other rows. Goals are marks, peers are grey. The files are named `SUITE-UNIT-by-size.svg` and `SUITE-UNIT.svg`.

mod bars;
mod lines;
mod svg;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

/// What a run prints.
#[derive(Debug, Deserialize)]
struct Document {
    machine: String,
    rows: Vec<Figure>,
}

/// A row of it.
#[derive(Debug, Clone, Deserialize)]
struct Figure {
    name: String,
    unit: String,
    value: f64,
    goal: Option<f64>,
    met: Option<bool>,
    peer: Option<String>,
    peer_value: Option<f64>,
}

impl Figure {
    /// The name without its suite.
    fn label(&self) -> &str {
        self.name
            .split_once(": ")
            .map_or(self.name.as_str(), |(_, label)| label)
    }

    fn suite(&self) -> &str {
        self.name
            .split_once(": ")
            .map_or("bench", |(suite, _)| suite)
    }

    /// The figures that the chart must have room for.
    fn values(&self) -> impl Iterator<Item = f64> {
        [Some(self.value), self.goal, self.peer_value]
            .into_iter()
            .flatten()
    }
}

/// Rows that differ by a size only.
#[derive(Debug)]
struct Series {
    /// What they have in common, with a dot in place of the size.
    label: String,
    /// Ascending by size.
    points: Vec<(f64, Figure)>,
}

/// Draws every chart of a document into a directory, which is made if need be; returns the files.
///
/// # Errors
/// The document is not one of ours, or a file cannot be written.
pub(crate) fn write(
    document: &serde_json::Value,
    directory: &Path,
) -> anyhow::Result<Vec<PathBuf>> {
    let document = Document::deserialize(document).context("not a document of results")?;
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut written = Vec::new();
    for (name, chart) in charts(&document) {
        let path = directory.join(name);
        std::fs::write(&path, chart).with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}

fn charts(document: &Document) -> BTreeMap<String, String> {
    let mut groups: BTreeMap<(&str, &str), Vec<&Figure>> = BTreeMap::new();
    for figure in document
        .rows
        .iter()
        .filter(|figure| figure.value.is_finite())
    {
        let group = (figure.suite(), figure.unit.as_str());
        groups.entry(group).or_default().push(figure);
    }
    let mut charts = BTreeMap::new();
    for ((suite, unit), figures) in groups {
        let (series, others) = sort(&figures);
        let title = format!("{suite}: {unit}");
        let name = format!("{}-{}", slug(suite), slug(unit));
        if !series.is_empty() {
            let chart = lines::draw(&title, &document.machine, &series);
            charts.insert(format!("{name}-by-size.svg"), chart);
        }
        if !others.is_empty() {
            let chart = bars::draw(&title, &document.machine, &others);
            charts.insert(format!("{name}.svg"), chart);
        }
    }
    charts
}

/// Letters, digits and dashes.
fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").to_lowercase()
}

/// A number with an optional k or M, and what follows it.
fn size(word: &str) -> Option<f64> {
    let digits = word.trim_end_matches([',', ':', ')']);
    let (digits, factor) = match digits.strip_suffix('k') {
        Some(digits) => (digits, 1e3),
        None => digits
            .strip_suffix('M')
            .map_or((digits, 1.0), |digits| (digits, 1e6)),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain
        .then(|| digits.parse::<f64>().ok())?
        .map(|n| n * factor)
}

/// Every way to read a label as one of a series: what stays, and the size.
fn readings(label: &str) -> Vec<(String, f64)> {
    let words: Vec<&str> = label.split(' ').collect();
    let reading = |at: usize| {
        let size = size(words[at])?;
        let mut rest: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        rest[at] = words[at].replace(|c: char| c.is_ascii_alphanumeric(), "");
        rest[at].insert(0, '…');
        // One rule, two rules.
        if let Some(things) = rest.get_mut(at + 1) {
            let (word, end) = things.split_at(things.trim_end_matches(',').len());
            *things = format!("{}s{end}", word.trim_end_matches('s'));
        }
        Some((rest.join(" "), size))
    };
    (0..words.len()).filter_map(reading).collect()
}

/// Finds the series among figures of one suite and unit, the longest first; the rest stays as it is.
fn sort(figures: &[&Figure]) -> (Vec<Series>, Vec<Figure>) {
    let mut found: BTreeMap<String, BTreeMap<u64, usize>> = BTreeMap::new();
    for (place, figure) in figures.iter().enumerate() {
        for (label, size) in readings(figure.label()) {
            found.entry(label).or_default().insert(size as u64, place);
        }
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|(_, points)| std::cmp::Reverse(points.len()));
    let mut free = vec![true; figures.len()];
    let mut series = Vec::new();
    for (label, points) in found {
        let points: Vec<(u64, usize)> = points
            .into_iter()
            .filter(|(_, place)| free[*place])
            .collect();
        if points.len() < 3 {
            continue;
        }
        for (_, place) in &points {
            free[*place] = false;
        }
        let point = |(size, place): (u64, usize)| (size as f64, figures[place].clone());
        series.push(Series {
            label,
            points: points.into_iter().map(point).collect(),
        });
    }
    let others = figures.iter().zip(free).filter(|(_, free)| *free);
    (
        series,
        others.map(|(figure, _)| (*figure).clone()).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(name: &str, unit: &str, value: f64) -> serde_json::Value {
        json!({"name": name, "unit": unit, "value": value, "spread": 0.1, "goal": null, "met": null, "peer": null, "peer_value": null})
    }

    fn document() -> serde_json::Value {
        let mut rows: Vec<_> = [("1 rule", 20.0), ("10 rules", 25.0), ("1k rules", 50.0)]
            .map(|(size, value)| {
                row(
                    &format!("classify: ACL, {size}, IPv4"),
                    "cycles/packet",
                    value,
                )
            })
            .into();
        rows.push(row("classify: compiling 10k rules <fast>", "ms", 5.5));
        let mut beside = row("forward: two hosts", "million packets/s", 1.5);
        beside["goal"] = json!(1.0);
        beside["met"] = json!(true);
        beside["peer"] = json!("kernel & bridge");
        beside["peer_value"] = json!(0.4);
        rows.push(beside);
        json!({"machine": "a machine", "rows": rows})
    }

    #[test]
    fn rows_that_differ_by_a_size_make_one_chart_of_lines() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(&document(), directory.path()).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "classify-cycles-packet-by-size.svg",
                "classify-ms.svg",
                "forward-million-packets-s.svg"
            ]
        );
        let lines = std::fs::read_to_string(&files[0]).unwrap();
        assert!(lines.contains("ACL, … rules, IPv4"), "{lines}");
        assert!(lines.contains("1k") && lines.contains("a machine"));
    }

    #[test]
    fn charts_are_well_formed_whatever_the_names() {
        for chart in charts(&Document::deserialize(document()).unwrap()).values() {
            let mut open = Vec::new();
            for tag in chart.split('<').skip(1) {
                let (tag, _) = tag.split_once('>').unwrap();
                if let Some(name) = tag.strip_prefix('/') {
                    assert_eq!(open.pop(), Some(name));
                } else if !tag.ends_with('/') {
                    open.push(tag.split(' ').next().unwrap());
                }
            }
            assert!(open.is_empty(), "{open:?}");
            assert!(!chart.contains("NaN") && !chart.contains("& "));
        }
    }

    #[test]
    fn bars_tell_goal_and_peer() {
        let charts = charts(&Document::deserialize(document()).unwrap());
        let bars = &charts["forward-million-packets-s.svg"];
        assert!(bars.contains("goal 1, met") && bars.contains("kernel &amp; bridge: 0.400"));
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("10k"), Some(10_000.0));
        assert_eq!(size("1M,"), Some(1e6));
        assert_eq!(size("64"), Some(64.0));
        assert_eq!(size("IPv4"), None);
        assert_eq!(size("k"), None);
    }
}
