//! `weftctl label`: sets and takes away labels of one object.

use anyhow::Result;
use clap::Args;

use crate::Usage;
use crate::client::Targets;
use crate::edit::edit;
use crate::history::kind;
use crate::objects::say_change;
use crate::output::Format;

/// Flags of `label`.
#[derive(Debug, Args)]
pub(crate) struct Label {
    /// Kind of the object.
    kind: String,
    /// Id of the object.
    id: String,
    /// Labels to set, as KEY=VALUE, and to take away, as KEY-.
    #[arg(required = true, value_parser = step, value_name = "KEY=VALUE|KEY-")]
    steps: Vec<Step>,
}

/// A key with what becomes of it: its value, or none.
type Step = (String, Option<String>);

fn step(text: &str) -> Result<Step, String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) => Ok((key.to_owned(), None)),
        (None, None) => Err("write KEY=VALUE to set a label, KEY- to take it away".to_owned()),
    }
}

impl Label {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let kind = kind(&self.kind)?;
        let reply = edit(targets, kind, &self.id, |object| {
            let none = || Usage(format!("a {} has no labels", kind.name()));
            let labels = object.labels_mut().ok_or_else(none)?;
            for (key, value) in self.steps.clone() {
                match value {
                    Some(value) => drop(labels.insert(key, value)),
                    None => drop(labels.remove(&key)),
                }
            }
            Ok(())
        });
        say_change(format, &reply.await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_sets_a_label_or_takes_it_away() {
        let set = |value: &str| Ok(("a/b".to_owned(), Some(value.to_owned())));
        assert_eq!(step("a/b=c"), set("c"));
        assert_eq!(step("a/b="), set(""));
        assert_eq!(step("a/b=c-"), set("c-"), "which the controller refuses");
        assert_eq!(step("a/b-"), Ok(("a/b".to_owned(), None)));
        assert!(step("a/b").is_err());
    }
}
