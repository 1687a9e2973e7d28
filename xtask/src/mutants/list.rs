//! The mutants, as cargo-mutants lists them (`.cargo/mutants.toml`).

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::instrument::{Genre, Mutant};
use crate::run;

/// Where a mutant is: lines and columns from one, columns in characters.
#[derive(Debug, Deserialize)]
struct Span {
    start: Position,
    end: Position,
}

#[derive(Debug, Deserialize)]
struct Position {
    line: usize,
    column: usize,
}

#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    file: String,
    function: Option<Function>,
    genre: String,
    replacement: String,
    span: Span,
}

#[derive(Debug, Deserialize)]
struct Function {
    return_type: String,
}

/// A mutant with its file and the name that cargo-mutants gives it.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub name: String,
    pub file: String,
    /// What it returns has another type than what the function returns, both of which the function's signature leaves open.
    pub alone: bool,
    pub mutant: Mutant,
}

/// Lists the mutants with cargo-mutants, and numbers them from one.
pub(super) fn list(lister: &mut Command) -> Result<Vec<Named>> {
    let text = run::output(lister)?;
    let listed: Vec<Listed> =
        serde_json::from_str(&text).context("cannot parse the list of cargo-mutants")?;
    let mut all = Vec::with_capacity(listed.len());
    for (number, one) in (1..).zip(listed) {
        let source = fs::read_to_string(run::root().join(&one.file))
            .with_context(|| format!("cannot read {}", one.file))?;
        let genre = match one.genre.as_str() {
            "FnValue" => Genre::Value,
            "BinaryOperator" => Genre::Binary,
            "UnaryOperator" => Genre::Unary,
            "MatchArm" => Genre::Arm,
            "MatchArmGuard" => Genre::Guard,
            other => bail!(
                "{}: mutants of the sort {other} are not known here",
                one.name
            ),
        };
        let mutant = Mutant {
            number,
            genre,
            replacement: one.replacement,
            bytes: byte(&source, &one.span.start)?..byte(&source, &one.span.end)?,
        };
        let open = |function: &Function| function.return_type.contains("impl ");
        all.push(Named {
            alone: genre == Genre::Value && one.function.as_ref().is_some_and(open),
            name: one.name,
            file: one.file,
            mutant,
        });
    }
    Ok(all)
}

/// The byte of a text at a line and column.
fn byte(source: &str, at: &Position) -> Result<usize> {
    let lines: usize = source
        .split_inclusive('\n')
        .take(at.line - 1)
        .map(str::len)
        .sum();
    let line = source[lines..].char_indices().map(|(byte, _)| byte);
    let column = line.chain([source.len() - lines]).nth(at.column - 1);
    Ok(lines + column.context("a column beyond its line")?)
}
