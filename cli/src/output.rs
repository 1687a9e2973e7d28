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
const ZERO_MATTERS: [&str; 4] = ["port_min", "port_max", "icmp_type", "icmp_code"];

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

    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            // A width in a format is 65535 at most, and lists can be longer than that.
            let pad = |(cell, width): (&String, &usize)| {
                let missing = width - cell.chars().count();
                format!("{cell}{}", " ".repeat(missing))
            };
            let line: Vec<_> = cells.map(pad).collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
        }
        text
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

fn prune(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(prune),
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            fields.retain(|name, value| match value {
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
    fn a_brief_form_keeps_a_zero_that_matters() {
        let value = serde_json::json!({"id": "a", "mtu": 0, "port_min": 0, "icmp_type": null, "rules": [{"x": ""}]});
        assert_eq!(
            brief(&value).unwrap(),
            serde_json::json!({"id": "a", "port_min": 0, "rules": [{}]})
        );
    }
}
