//! Lists of objects of one kind, printed as they come: there may be a million, and memory for a few is enough.

use std::io::{StdoutLock, Write};

use anyhow::Result;
use serde_json::Value;
use weft_proto::state::{Kind, Object, collect};

use crate::kinds::{headings, row};
use crate::output::{Format, Table, brief};

/// Columns are as wide as the cells of so many rows need; wider ones come out of line.
const MEASURED: usize = 1000;

/// Columns of a table besides those of the kind.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extra {
    /// With what ports are like.
    pub(crate) status: bool,
    /// With the labels.
    pub(crate) labels: bool,
    /// With the revisions at which objects last changed.
    pub(crate) revisions: bool,
}

/// Prints objects of a kind.
pub(crate) struct Printer<W: Write = StdoutLock<'static>> {
    out: W,
    kind: Kind,
    format: Format,
    extra: Extra,
    /// The first rows, until there are enough to know the widths.
    first: Vec<Vec<String>>,
    widths: Option<Vec<usize>>,
    /// Objects that were printed, but for a table.
    printed: usize,
}

impl Printer {
    pub(crate) fn new(kind: Kind, format: Format, extra: Extra) -> Self {
        Self::to(std::io::stdout().lock(), kind, format, extra)
    }
}

impl<W: Write> Printer<W> {
    fn to(out: W, kind: Kind, format: Format, extra: Extra) -> Self {
        Self {
            out,
            kind,
            format,
            extra,
            first: Vec::new(),
            widths: None,
            printed: 0,
        }
    }

    /// Prints some objects, each with its revision.
    pub(crate) fn print(&mut self, objects: impl Iterator<Item = (Object, u64)>) -> Result<()> {
        let kind = self.kind;
        for (object, revision) in objects.filter(|(object, _)| object.kind() == kind) {
            self.print_one(object, revision, None)?;
        }
        Ok(())
    }

    /// Prints one object with its revision, and what it is like if the table says so.
    pub(crate) fn print_one(
        &mut self,
        object: Object,
        revision: u64,
        status: Option<String>,
    ) -> Result<()> {
        if self.format != Format::Table {
            return self.print_object(object);
        }
        let labels = self.extra.labels.then(|| labels(&object));
        let mut cells = row(object);
        cells.extend(status.filter(|_| self.extra.status));
        cells.extend(labels);
        cells.extend(self.extra.revisions.then(|| revision.to_string()));
        self.print_row(cells)
    }

    fn print_row(&mut self, cells: Vec<String>) -> Result<()> {
        if let Some(widths) = &self.widths {
            writeln!(self.out, "{}", Table::line(&cells, widths))?;
            return Ok(());
        }
        self.first.push(cells);
        if self.first.len() == MEASURED {
            self.print_first()?;
        }
        Ok(())
    }

    /// Prints the headings, and the rows that waited for them.
    fn print_first(&mut self) -> Result<()> {
        let status = self.extra.status.then_some("STATUS");
        let labels = self.extra.labels.then_some("LABELS");
        let revision = self.extra.revisions.then_some("REVISION");
        let headings: Vec<&str> = headings(self.kind)
            .iter()
            .copied()
            .chain(status)
            .chain(labels)
            .chain(revision)
            .collect();
        let mut table = Table::new(&headings);
        for cells in self.first.drain(..) {
            table.row(cells);
        }
        self.out.write_all(table.text().as_bytes())?;
        self.widths = Some(table.widths());
        Ok(())
    }

    /// Prints an object as an item of the one list in a document.
    fn print_object(&mut self, object: Object) -> Result<()> {
        let list = brief(&collect(std::iter::once(object)))?;
        let Some((name, Value::Array(item))) = list.as_object().and_then(|it| it.iter().next())
        else {
            return Ok(());
        };
        let is_first = self.printed == 0;
        self.printed += 1;
        if self.format == Format::Yaml {
            if is_first {
                writeln!(self.out, "{name}:")?;
            }
            self.out
                .write_all(serde_yaml_ng::to_string(item)?.as_bytes())?;
            return Ok(());
        }
        let start = if is_first {
            format!("{{\n  \"{name}\": [\n")
        } else {
            ",\n".to_owned()
        };
        self.out.write_all(start.as_bytes())?;
        let text = item.iter().map(serde_json::to_string_pretty);
        let lines = text.collect::<Result<Vec<_>, _>>()?.concat();
        let lines: Vec<String> = lines.lines().map(|line| format!("    {line}")).collect();
        self.out.write_all(lines.join("\n").as_bytes())?;
        Ok(())
    }

    /// Prints what is left.
    pub(crate) fn end(&mut self) -> Result<()> {
        match (self.format, self.printed) {
            (Format::Table, _) if self.widths.is_none() => self.print_first()?,
            (Format::Table, _) => {}
            (_, 0) => writeln!(self.out, "{{}}")?,
            (Format::Json, _) => self.out.write_all(b"\n  ]\n}\n")?,
            (Format::Yaml, _) => {}
        }
        self.out.flush()?;
        Ok(())
    }
}

/// The labels of an object, as a cell.
fn labels(object: &Object) -> String {
    let labels = object.labels().iter();
    let labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    match labels.is_empty() {
        true => "-".to_owned(),
        false => labels.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::v1::{Port, Vpc};

    fn printed(format: Format, all: bool, objects: &[Object]) -> String {
        let mut out = Vec::new();
        let extra = Extra {
            status: false,
            labels: all,
            revisions: all,
        };
        let mut printer = Printer::to(&mut out, objects[0].kind(), format, extra);
        for part in objects.chunks(7) {
            printer.print(part.iter().cloned().zip(1..)).unwrap();
        }
        printer.end().unwrap();
        String::from_utf8(out).unwrap()
    }

    fn ports(count: usize) -> Vec<Object> {
        let port = |n| {
            Object::Port(Port {
                id: format!("p{n}"),
                addresses: vec!["10.0.0.1".into(), "fd00::1".into()],
                unguarded: n % 2 == 0,
                ..Port::default()
            })
        };
        (0..count).map(port).collect()
    }

    #[test]
    fn documents_are_as_if_they_were_printed_whole() {
        for count in [1, 2, 30] {
            let objects = ports(count);
            let whole = brief(&collect(objects.iter().cloned())).unwrap();
            assert_eq!(
                printed(Format::Json, false, &objects),
                serde_json::to_string_pretty(&whole).unwrap() + "\n"
            );
            assert_eq!(
                printed(Format::Yaml, false, &objects),
                serde_yaml_ng::to_string(&whole).unwrap()
            );
        }
        for format in [Format::Json, Format::Yaml] {
            let mut out = Vec::new();
            Printer::to(&mut out, Kind::Port, format, Extra::default())
                .end()
                .unwrap();
            assert_eq!(out, b"{}\n");
        }
    }

    #[test]
    fn a_row_beyond_those_that_were_measured_is_printed_whole() {
        let vpc = |n: usize| {
            Object::Vpc(Vpc {
                id: if n == MEASURED {
                    "long".repeat(9)
                } else {
                    "v".into()
                },
                vni: 7,
                labels: [("a", "b"), ("c", "")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                ..Vpc::default()
            })
        };
        let objects: Vec<Object> = (0..MEASURED + 2).map(vpc).collect();
        let text = printed(Format::Table, true, &objects);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ID  VNI  TENANT  LABELS  REVISION");
        assert_eq!(lines[1], "v   7    -       a=b,c=  1");
        assert!(lines[MEASURED + 1].starts_with(&format!("{}  7 ", "long".repeat(9))));
        assert!(lines[MEASURED + 2].starts_with("v   7    - "));
        assert_eq!(lines.len(), MEASURED + 3);
    }
}
