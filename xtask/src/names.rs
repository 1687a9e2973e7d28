//! Names in the documentation: every file, module, type and test that a Markdown file names in `code` or links to is there. [`check`] is a step
//! of `cargo xtask test hygiene`.
//!
//! What a span of code is taken for:
//! - a **path**, if it ends in `/` or in an extension of the repository's own sources, or begins with a directory of the repository's root. It is
//!   looked up from the root, from the document's directory, and from the base that the document states: "Paths are below `BASE`";
//! - a **name**, if it is in CamelCase or has a `::`: its last word is in the sources;
//! - a **command**, if it begins with `cargo`: its `--test` and `--bin` are there.

use std::{
    collections::HashSet,
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::run;

/// Files of the repository that documents name by these endings; other files named there are users' own.
const EXTENSIONS: [&str; 4] = ["rs", "md", "proto", "service"];
/// The sentence by which a document states its base.
const BASE: &str = "Paths are below `";

/// The repository, as far as documents name it.
#[derive(Default)]
struct Repository {
    files: HashSet<PathBuf>,
    directories: HashSet<PathBuf>,
    /// Every word of the sources.
    words: HashSet<String>,
}

/// Finds what documents name and the repository does not have.
pub(crate) fn check() -> Result<()> {
    let listed = run::output(run::command("git").args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut repository = Repository::default();
    let mut documents = Vec::new();
    for name in listed.lines() {
        let path = run::root().join(name);
        // One that was removed is listed until the removal is committed.
        let Ok(bytes) = fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        if name.ends_with(".md") {
            documents.push((name, text.into_owned()));
            repository.add(name, "");
        } else {
            repository.add(name, &text);
        }
    }
    let mut missing = Vec::new();
    // What has changed tells what was there.
    for (name, text) in documents.iter().filter(|(name, _)| *name != "CHANGELOG.md") {
        let found = repository.missing(Path::new(name), text, |path| {
            let document = documents.iter().find(|(name, _)| Path::new(name) == path);
            document.map(|(_, text)| text.as_str())
        });
        missing.extend(found.into_iter().map(|what| format!("{name}: {what}")));
    }
    if missing.is_empty() {
        eprintln!("── names in {} documents", documents.len());
        return Ok(());
    }
    bail!(
        "documents name things that do not exist:\n  {}",
        missing.join("\n  ")
    )
}

impl Repository {
    fn add(&mut self, name: &str, text: &str) {
        let path = PathBuf::from(name);
        let above = path.ancestors().skip(1);
        self.directories.extend(above.map(Path::to_owned));
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        self.words.extend(words.map(str::to_owned));
        self.files.insert(path);
    }

    /// What a document names that is not there. `other` gives the text of another document.
    fn missing<'a>(
        &self,
        document: &Path,
        text: &str,
        other: impl Fn(&Path) -> Option<&'a str>,
    ) -> Vec<String> {
        let here = document.parent().unwrap_or(Path::new(""));
        let base = text
            .split_once(BASE)
            .and_then(|(_, rest)| rest.split('`').next());
        let bases: Vec<&Path> = [Path::new(""), here]
            .into_iter()
            .chain(base.map(Path::new))
            .collect();
        let prose = prose(text);
        let mut missing: Vec<String> = spans(&prose)
            .filter(|span| !self.has(span, &bases))
            .map(|span| format!("`{span}`"))
            .collect();
        for target in links(&prose) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() {
                document.to_owned()
            } else {
                normal(&here.join(path))
            };
            let there = self.files.contains(&path) || self.directories.contains(&path);
            let has_heading = anchor.is_empty()
                || other(&path).is_some_and(|text| {
                    let headings = text.lines().filter(|line| line.starts_with('#'));
                    headings.map(anchor_of).any(|heading| heading == anchor)
                });
            if !there || !has_heading {
                missing.push(format!("({target})"));
            }
        }
        missing
    }

    /// Whether a span of code exists, or is not of a kind that is looked up.
    fn has(&self, span: &str, bases: &[&Path]) -> bool {
        if let Some(command) = span.strip_prefix("cargo ") {
            return self.has_command(command);
        }
        if self.is_path(span) {
            return alternatives(span).iter().all(|path| {
                let mut candidates = bases.iter().map(|base| normal(&base.join(path)));
                candidates
                    .any(|path| self.files.contains(&path) || self.directories.contains(&path))
            });
        }
        if is_name(span) {
            let word = span.rsplit("::").next().unwrap_or(span);
            return self.words.contains(word.trim_end_matches("()"));
        }
        true
    }

    fn is_path(&self, span: &str) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./{},".contains(c);
        if !span.chars().all(plain) || span.starts_with('/') {
            return false;
        }
        let path = Path::new(span);
        let of_ours = path
            .extension()
            .is_some_and(|extension| EXTENSIONS.iter().any(|ours| extension == *ours));
        let mut parts = path.components();
        let first = parts.next();
        // A directory of the root, and what is in it; alone it is a word as any other.
        let from_root = parts.next().is_some()
            && first.is_some_and(|first| self.directories.contains(Path::new(&first)));
        of_ours || from_root || span.len() > 1 && span.ends_with('/')
    }

    fn has_command(&self, command: &str) -> bool {
        let words: Vec<&str> = command.split_whitespace().collect();
        words.windows(2).all(|pair| match *pair {
            ["--test", test] => self.files.iter().any(|file| {
                let named = file.ends_with(format!("tests/{test}.rs"));
                named || file.ends_with(format!("tests/{test}/main.rs"))
            }),
            ["--bin", program] => {
                self.words.contains(program) || {
                    let file = format!("bin/{program}.rs");
                    self.files.iter().any(|path| path.ends_with(&file))
                        || self
                            .directories
                            .iter()
                            .any(|path| path.ends_with(format!("bin/{program}")))
                }
            }
            _ => true,
        })
    }
}

/// `a::b` and `CamelCase`; one word with one capital may be anything.
fn is_name(span: &str) -> bool {
    let word = |text: &str| {
        let text = text.trim_end_matches("()");
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let camel = span.starts_with(|c: char| c.is_ascii_uppercase())
        && span.contains(|c: char| c.is_ascii_lowercase())
        && span.chars().filter(char::is_ascii_uppercase).count() > 1;
    if span.contains("::") {
        span.split("::").all(word) && !span.chars().all(|c| c.is_ascii_hexdigit() || c == ':')
    } else {
        camel && word(span)
    }
}

/// `daemon/{host,run}.rs` is two paths.
fn alternatives(span: &str) -> Vec<String> {
    let parts = span
        .split_once('{')
        .and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match parts {
        None => vec![span.to_owned()],
        Some((before, (choices, after))) => {
            let choices = choices.split(',');
            choices
                .map(|choice| format!("{before}{choice}{after}"))
                .collect()
        }
    }
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut done, part| {
        match part {
            Component::ParentDir => drop(done.pop()),
            Component::Normal(name) => done.push(name),
            _ => {}
        }
        done
    })
}

/// A document without its blocks of code.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// What stands between backticks, in one line each.
fn spans(prose: &str) -> impl Iterator<Item = String> {
    let spans = prose.split('`').skip(1).step_by(2);
    spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Where links lead within the repository.
fn links(prose: &str) -> impl Iterator<Item = &str> {
    let targets = prose.split("](").skip(1);
    targets
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.contains("://"))
}

/// How a heading is linked to: in lower case, with hyphens, without punctuation.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.replace(' ', "-")
        .chars()
        .filter(|c| c.is_alphanumeric() || "-_".contains(*c))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(document: &str, text: &str) -> Vec<String> {
        let mut repository = Repository::default();
        repository.add(
            "dataplane/src/route/lpm.rs",
            "pub struct RouteTable; fn look_up()",
        );
        repository.add("tests/tests/path.rs", "");
        repository.add("docs/operations.md", "");
        repository.missing(Path::new(document), text, |path| {
            (path == Path::new("docs/operations.md")).then_some("# Operating\n## Run by systemd\n")
        })
    }

    #[test]
    fn a_path_is_looked_up_from_the_root_and_from_the_stated_base() {
        let text =
            "`dataplane/src/route/lpm.rs`, `dataplane/src`, and `dataplane/src/route/{lpm,acl}.rs`";
        assert_eq!(
            missing("README.md", text),
            ["`dataplane/src/route/{lpm,acl}.rs`"]
        );
        let text = "See `route/lpm.rs` and `route/`, not `lpm.rs` or `policy/`.";
        let based = format!("Paths are below `dataplane/src/`. {text}");
        assert_eq!(missing("docs/a.md", &based), ["`lpm.rs`", "`policy/`"]);
        assert_eq!(missing("docs/a.md", text).len(), 4, "no base is stated");
    }

    #[test]
    fn names_and_tests_have_to_be_in_the_sources() {
        let text = "`RouteTable`, `route::look_up()`, `RouteTree`, `route::delete`, \
            `cargo test -p weft-tests --test path`, `cargo test --test\npaths`";
        assert_eq!(
            missing("README.md", text),
            [
                "`RouteTree`",
                "`route::delete`",
                "`cargo test --test paths`"
            ]
        );
    }

    #[test]
    fn what_is_not_of_the_repository_is_left_alone() {
        let text = "`/etc/weft/weftd.toml` `state.yaml` `fd00:1::11` `::/0` `weftctl node status` `[tls]` `PORT` `DESTINATION/24`\n\
            ```\nsee `none.rs`\n```\n[RFC](https://example.net/none.md)";
        assert_eq!(missing("README.md", text), [""; 0]);
    }

    #[test]
    fn links_lead_to_files_and_headings() {
        let text = "[a](docs/operations.md#run-by-systemd) [b](docs/operations.md#run-by-hand) [c](docs/none.md) [d](docs)";
        assert_eq!(
            missing("README.md", text),
            ["(docs/operations.md#run-by-hand)", "(docs/none.md)"]
        );
        assert_eq!(
            missing("docs/a.md", "[a](operations.md) [b](../docs/operations.md)"),
            [""; 0]
        );
    }

    #[test]
    fn the_documents_of_this_repository_name_what_is_there() {
        check().unwrap();
    }
}
