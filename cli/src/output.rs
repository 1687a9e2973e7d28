//! Tables for people, JSON and YAML for programs.

use std::io::Write;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

/// Fields in which 0 is a value and not the default.
const ZERO_MATTERS: [&str; 9] = [
    "port_min",
    "port_max",
    "source_port_min",
    "source_port_max",
    "destination_port_min",
    "destination_port_max",
    "icmp_type",
    "icmp_code",
    "dscp",
];

/// The field of every object that has what its users write.
const LABELS: &str = "labels";

/// Rows under headings, each column as wide as its widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// How wide each column is.
    pub(crate) fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..columns).map(width).collect()
    }

    /// A row in columns of these widths. A cell that is wider is printed whole.
    pub(crate) fn line(row: &[String], widths: &[usize]) -> String {
        // A width in a format is 65535 at most, and lists can be longer than that.
        let pad = |(cell, width): (&String, &usize)| {
            let missing = width.saturating_sub(cell.chars().count());
            format!("{cell}{}", " ".repeat(missing))
        };
        let cells: Vec<_> = row.iter().zip(widths).map(pad).collect();
        cells.join("  ").trim_end().to_owned()
    }

    pub(crate) fn text(&self) -> String {
        let widths = self.widths();
        let lines = self.rows.iter().map(|row| Self::line(row, &widths) + "\n");
        lines.collect()
    }
}

/// Prints text as it is.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints a message, or its table.
pub(crate) fn show(
    format: Format,
    message: &impl Serialize,
    table: impl FnOnce() -> String,
) -> Result<()> {
    match format {
        Format::Table => print(&table()),
        Format::Json => print(&(serde_json::to_string_pretty(message)? + "\n")),
        Format::Yaml => print(&serde_yaml_ng::to_string(message)?),
    }
}

/// Objects as people write them: without fields that have their default.
pub(crate) fn brief(objects: &impl Serialize) -> Result<Value> {
    let mut value = serde_json::to_value(objects)?;
    prune(&mut value);
    Ok(value)
}

/// The fields in which an object differs from how it was, a line each; of a list, the items that went and came.
pub(crate) fn difference(before: &Value, after: &Value) -> Result<String> {
    let mut lines = String::new();
    differ("", before, after, &mut lines)?;
    Ok(lines)
}

fn differ(path: &str, before: &Value, after: &Value, lines: &mut String) -> Result<()> {
    if before == after {
        return Ok(());
    }
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok("-".to_owned()),
        other => serde_json::to_string(other),
    };
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                let field = |fields: &serde_json::Map<String, Value>| {
                    fields.get(name).cloned().unwrap_or_default()
                };
                differ(&path, &field(old), &field(new), lines)?;
            }
        }
        (Value::Array(_) | Value::Null, Value::Array(_) | Value::Null) => {
            let none = Vec::new();
            let [old, new] = [before, after].map(|list| list.as_array().unwrap_or(&none));
            let gone = only_in(old, new);
            let come = only_in(new, old);
            if gone.is_empty() && come.is_empty() {
                lines.push_str(&format!("  {path}: in another order\n"));
            }
            for (sign, items) in [('-', gone), ('+', come)] {
                for item in items {
                    lines.push_str(&format!("{sign} {path}: {}\n", text(item)?));
                }
            }
        }
        _ => lines.push_str(&format!(
            "  {path}: {} -> {}\n",
            text(before)?,
            text(after)?
        )),
    }
    Ok(())
}

/// The items of a list that another does not have, each as often as it has more of it.
fn only_in<'a>(list: &'a [Value], other: &[Value]) -> Vec<&'a Value> {
    let mut counts: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for item in other {
        *counts.entry(item.to_string()).or_default() += 1;
    }
    let is_left = |item: &&Value| match counts.get_mut(&item.to_string()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    };
    list.iter().filter(is_left).collect()
}

fn prune(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(prune),
        Value::Object(fields) => {
            // A label may have an empty value.
            let pruned = fields.iter_mut().filter(|(name, _)| *name != LABELS);
            pruned.for_each(|(_, value)| prune(value));
            fields.retain(|name, value| match value {
                Value::Object(labels) if name == LABELS => !labels.is_empty(),
                Value::Null | Value::Bool(false) => false,
                Value::Number(n) => n.as_u64() != Some(0) || ZERO_MATTERS.contains(&name.as_str()),
                Value::String(text) => !text.is_empty(),
                Value::Array(items) => !items.is_empty(),
                _ => true,
            });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "VNI"]);
        table.row(["a-long-name".into(), "7".into()]);
        table.row(["b".into(), String::new()]);
        assert_eq!(table.text(), "ID           VNI\na-long-name  7\nb\n");
    }

    #[test]
    fn a_cell_may_be_of_any_width() {
        let long = "x".repeat(70_000);
        let mut table = Table::new(&["LIST", "ID"]);
        table.row([long.clone(), "a".into()]);
        assert!(table.text().ends_with(&format!("{long}  a\n")));
    }

    #[test]
    fn a_difference_names_fields_and_the_items_of_lists() {
        let before = serde_json::json!({
            "id": "a", "host": "h1", "addresses": ["10.0.0.1", "10.0.0.2"], "order": [1, 2],
            "device": {"name": "x", "kind": "tap"}, "rules": [{"number": 1}]
        });
        let after = serde_json::json!({
            "id": "a", "hostname": "w", "addresses": ["10.0.0.2", "10.0.0.3"], "order": [2, 1],
            "device": {"name": "y", "kind": "tap"}
        });
        assert_eq!(
            difference(&before, &after).unwrap(),
            "- addresses: 10.0.0.1\n+ addresses: 10.0.0.3\n  device.name: x -> y\n  host: h1 -> -\n  \
             hostname: - -> w\n  order: in another order\n- rules: {\"number\":1}\n"
        );
        assert_eq!(difference(&before, &before).unwrap(), "");
    }

    #[test]
    fn a_brief_form_keeps_a_zero_that_matters() {
        let value = serde_json::json!({"id": "a", "mtu": 0, "port_min": 0, "icmp_type": null, "dscp": 0, "rules": [{"x": ""}]});
        assert_eq!(
            brief(&value).unwrap(),
            serde_json::json!({"id": "a", "port_min": 0, "dscp": 0, "rules": [{}]})
        );
    }

    #[test]
    fn a_brief_form_keeps_labels_without_values() {
        let ports =
            serde_json::json!([{"id": "a", "labels": {"web": ""}}, {"id": "b", "labels": {}}]);
        assert_eq!(
            brief(&ports).unwrap(),
            serde_json::json!([{"id": "a", "labels": {"web": ""}}, {"id": "b"}])
        );
    }
}
