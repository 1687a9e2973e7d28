//! `cargo xtask test mutants`: mutation tests: breaks the code one expression at a time, and checks that a test fails.
//!
//! cargo-mutants lists the mutants (`.cargo/mutants.toml`). All of them are built at once, in a copy of the workspace, and a test program
//! selects one of them when it starts ([`instrument`]). Mutants for which this is impossible (mostly constants) are left to cargo-mutants, which
//! builds them one at a time.

mod instrument;
mod list;
mod trial;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{run, setup, setup::tools};
use instrument::Blame;
use list::Named;
use trial::{End, Programs};

/// Packets that the model compares for each mutant.
const MODEL_PACKETS: &str = "60000";
/// How often the compiler is asked; each time it refuses what it had not looked at before.
const BUILDS: u32 = 30;
/// The crate that is broken, and its root.
const CRATE: &str = "dataplane";

/// What of `.cargo/mutants.toml` is also for a build of all mutants at once.
#[derive(Deserialize)]
struct Settings {
    additional_cargo_args: Vec<String>,
    additional_cargo_test_args: Vec<String>,
}

/// Tries the mutants of a shard (`k/n`) of the named files, or all, and prints the figures as one line of JSON, also when some were missed.
pub(crate) fn mutants(shard: Option<&str>, files: &[String]) -> Result<()> {
    setup::setup()?;
    let program = tools::MUTANTS.program()?;
    let settings = fs::read_to_string(run::root().join(".cargo/mutants.toml"))
        .context("cannot read .cargo/mutants.toml")?;
    let settings: Settings = toml::from_str(&settings).context(".cargo/mutants.toml")?;
    let mut lister = run::command(&program);
    lister.args(["mutants", "--list", "--json", "--no-shuffle"]);
    if let Some(shard) = shard {
        lister.args(["--sharding", "round-robin", "--shard", shard]);
    }
    let mut all = list::list(&mut lister)?;
    all.retain(|named| files.is_empty() || files.contains(&named.file));
    if all.is_empty() {
        bail!("no mutants match");
    }
    let kept = run::target().join("mutants");
    let tree = kept.join("tree");
    copy(&tree)?;
    let Sorted {
        mut programs,
        built,
        refused,
        alone,
    } = build(&tree, &settings, &all)?;
    eprintln!(
        "   mutants: {} built at once, {} that the compiler refuses, {} left to be built alone",
        built.len(),
        refused.len(),
        alone.len()
    );
    for named in &alone {
        eprintln!("   to be built alone: {}", named.name);
    }
    let ends = trial::run(&mut programs, &built)?;
    let names = |wanted: End| -> Vec<&str> {
        let ends = built.iter().zip(&ends);
        ends.filter(|(_, end)| **end == wanted)
            .map(|(named, _)| named.name.as_str())
            .collect()
    };
    let mut counts = Counts {
        caught: names(End::Caught).len() + names(End::TimedOut).len(),
        missed: names(End::Missed).into_iter().map(str::to_owned).collect(),
        unviable: refused.len(),
    };
    if !alone.is_empty() {
        one_at_a_time(&program, &kept, &alone, &mut counts)?;
    }
    let missed = kept.join("missed.txt");
    fs::write(&missed, counts.missed.join("\n") + "\n")
        .with_context(|| format!("cannot write {}", missed.display()))?;
    println!(
        r#"{{"suite":"mutants","caught":{},"missed":{},"viable":{},"unviable":{}}}"#,
        counts.caught,
        counts.missed.len(),
        counts.caught + counts.missed.len(),
        counts.unviable
    );
    if !counts.missed.is_empty() {
        bail!(
            "{} were missed: target/mutants/missed.txt",
            counts.missed.len()
        );
    }
    Ok(())
}

struct Counts {
    caught: usize,
    missed: Vec<String>,
    unviable: usize,
}

/// Copies what git knows, or would, of the workspace.
fn copy(tree: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    let mut git = run::command("git");
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    for file in run::output(&mut git)?.split_terminator('\0') {
        let (from, to) = (run::root().join(file), tree.join(file));
        if !from.exists() {
            continue;
        }
        let folder = to.parent().context("a file has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// Mutants by what the compiler says of them.
struct Sorted {
    programs: Programs,
    built: Vec<Named>,
    refused: Vec<Named>,
    alone: Vec<Named>,
}

/// Builds the copy with all mutants in it, less those that the compiler refuses.
fn build(tree: &Path, settings: &Settings, all: &[Named]) -> Result<Sorted> {
    let mut refused = BTreeSet::new();
    let alone = all.iter().filter(|named| named.alone);
    let mut alone: BTreeSet<u32> = alone.map(|named| named.mutant.number).collect();
    for round in 1..=BUILDS {
        let mut files: BTreeMap<&str, Vec<instrument::Mutant>> = BTreeMap::new();
        for Named { file, mutant, .. } in all {
            let mutants = files.entry(file).or_default();
            if !refused.contains(&mutant.number) && !alone.contains(&mutant.number) {
                mutants.push(mutant.clone());
            }
        }
        for (file, mutants) in &files {
            let source = fs::read_to_string(run::root().join(file))
                .with_context(|| format!("cannot read {file}"))?;
            let instrumented =
                instrument::instrument(&source, mutants).with_context(|| (*file).to_owned())?;
            refused.extend(instrumented.refused);
            alone.extend(instrumented.left);
            replace(&tree.join(file), &instrumented.text)?;
        }
        let root = format!("{CRATE}/src/lib.rs");
        let text = fs::read_to_string(run::root().join(&root))
            .with_context(|| format!("cannot read {root}"))?;
        replace(&tree.join(&root), &(text + instrument::RUNTIME))?;
        let built = Build::new(tree, settings)?;
        let count = refused.len() + alone.len();
        for (file, byte) in &built.errors {
            let text = fs::read_to_string(tree.join(file))
                .with_context(|| format!("cannot read {file}"))?;
            match instrument::blamed(&text, *byte) {
                Blame::Nobody => {}
                Blame::Mutant(number) => {
                    refused.insert(number);
                }
                Blame::Place(numbers) => alone.extend(numbers),
            }
        }
        eprintln!(
            "   build {round}: {} errors, {} mutants out",
            built.errors.len(),
            refused.len() + alone.len()
        );
        if built.succeeded {
            let chosen = |wanted: &dyn Fn(u32) -> bool| {
                let named = all.iter().filter(|named| wanted(named.mutant.number));
                named.cloned().collect()
            };
            return Ok(Sorted {
                programs: built.kept(tree, settings)?,
                built: chosen(&|n| !refused.contains(&n) && !alone.contains(&n)),
                refused: chosen(&|n| refused.contains(&n)),
                alone: chosen(&|n| alone.contains(&n) && !refused.contains(&n)),
            });
        }
        if refused.len() + alone.len() == count {
            bail!("errors that are about no mutant:\n{}", built.rendered);
        }
    }
    bail!("the copy with the mutants does not build after {BUILDS} attempts")
}

/// Writes a file unless it has this content already, so that it is not built again.
fn replace(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

impl Settings {
    /// Which tests are built, and their arguments.
    fn tests(&self) -> (&[String], &[String]) {
        let all = self.additional_cargo_test_args.as_slice();
        let cut = all.iter().position(|arg| arg == "--").unwrap_or(all.len());
        (&all[..cut], all.get(cut + 1..).unwrap_or_default())
    }
}

/// The environment of every build: what is not ours is shared with the main build, and the copy has no eBPF object of its own.
fn shared(command: &mut Command) -> &mut Command {
    command
        .env("CARGO_TARGET_DIR", run::target())
        .env("CARGO_INCREMENTAL", "1")
        .env("WEFT_EBPF_OBJECT", run::target().join("ebpf/weft.o"))
        .env("WEFT_MODEL_PACKETS", MODEL_PACKETS)
        .env("WEFT_MODEL_CUT", "0")
}

/// What came of a build.
struct Build {
    succeeded: bool,
    /// The test programs.
    programs: Vec<PathBuf>,
    /// Files and bytes that errors are about.
    errors: Vec<(String, usize)>,
    rendered: String,
}

/// A line of cargo's messages.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    profile: Option<Profile>,
    message: Option<Diagnostic>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Diagnostic {
    level: String,
    spans: Vec<DiagnosticSpan>,
    rendered: Option<String>,
}

#[derive(Deserialize)]
struct DiagnosticSpan {
    file_name: String,
    byte_start: usize,
    is_primary: bool,
}

impl Build {
    fn new(tree: &Path, settings: &Settings) -> Result<Self> {
        let mut cargo = run::cargo();
        shared(&mut cargo)
            .current_dir(tree)
            .args(["test", "--no-run", "--quiet", "--message-format=json"])
            .args(["--package", "weft-dataplane"])
            .args(&settings.additional_cargo_args)
            .args(settings.tests().0);
        let out = cargo.output().context("cannot start cargo")?;
        let mut build = Self {
            succeeded: out.status.success(),
            programs: Vec::new(),
            errors: Vec::new(),
            rendered: String::new(),
        };
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            let Ok(message) = serde_json::from_str::<Message>(line) else {
                continue;
            };
            match message.reason.as_str() {
                "compiler-artifact" if message.profile.is_some_and(|profile| profile.test) => {
                    build.programs.extend(message.executable);
                }
                "compiler-message" => build.errors(message.message),
                _ => {}
            }
        }
        if build.succeeded && build.programs.is_empty() {
            bail!("the build made no tests");
        }
        Ok(build)
    }

    /// The test programs, out of the way of other builds.
    fn kept(&self, tree: &Path, settings: &Settings) -> Result<Programs> {
        let mut kept = Vec::new();
        for program in &self.programs {
            let name = program.file_name().context("a program has a name")?;
            let copy = tree.join(name);
            fs::copy(program, &copy)
                .with_context(|| format!("cannot copy {}", program.display()))?;
            kept.push(copy);
        }
        let arguments = settings.tests().1.to_vec();
        Ok(Programs::new(tree.join(CRATE), kept, arguments))
    }

    fn errors(&mut self, message: Option<Diagnostic>) {
        let Some(message) = message.filter(|message| message.level == "error") else {
            return;
        };
        self.rendered
            .push_str(message.rendered.as_deref().unwrap_or_default());
        let primary = message.spans.into_iter().filter(|span| span.is_primary);
        self.errors
            .extend(primary.map(|span| (span.file_name, span.byte_start)));
    }
}

/// Has cargo-mutants try what could not be built with the others.
fn one_at_a_time(program: &Path, out: &Path, alone: &[Named], counts: &mut Counts) -> Result<()> {
    let escaped = alone.iter().map(|named| {
        // Of the others some mean something else with a backslash than without.
        let literal = |c: char| match r"\.+*?()|[]{}^$#&-~".contains(c) {
            true => format!("\\{c}"),
            false => c.to_string(),
        };
        named.name.chars().map(literal).collect::<String>()
    });
    let pattern = format!("^({})$", escaped.collect::<Vec<_>>().join("|"));
    let mut command = run::command(program);
    shared(&mut command)
        .args(["mutants", "--no-shuffle", "--re", &pattern, "--output"])
        .arg(out);
    // It fails where mutants were missed, which its lists say.
    if let Err(error) = run::step("mutants that are built alone", &mut command) {
        eprintln!("   {error:#}");
    }
    let lines = |name: &str| -> Result<Vec<String>> {
        let path = out.join("mutants.out").join(format!("{name}.txt"));
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let (caught, missed) = (
        lines("caught")?.len() + lines("timeout")?.len(),
        lines("missed")?,
    );
    let unviable = lines("unviable")?.len();
    if caught + missed.len() + unviable != alone.len() {
        bail!("cargo-mutants did not try all that it was asked to");
    }
    counts.caught += caught;
    counts.missed.extend(missed);
    counts.unviable += unviable;
    Ok(())
}
