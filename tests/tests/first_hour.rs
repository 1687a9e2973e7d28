//! The README's first hour: its commands run on two clean hosts (each a systemd in a network namespace of the lab), and their output is
//! compared with what the README shows.

#![allow(clippy::unwrap_used)]

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use weft_tests::{
    Lab, LabError, LinkOptions, Namespace, ServiceManager, site::program, wait_until,
};

/// For an output that is to become as shown: ports come up and neighbours are found meanwhile.
const SOON: Duration = Duration::from_secs(20);
const README: &str = include_str!("../../README.md");
const CHAPTER: &str = "\n## The first hour: two hosts, two workloads\n";

/// A code block of the README: the language after the fence, and its lines.
struct Block<'a> {
    language: &'a str,
    lines: Vec<&'a str>,
}

fn blocks() -> Vec<Block<'static>> {
    let chapter = README.split(CHAPTER).nth(1).unwrap();
    let chapter = chapter.split("\n## ").next().unwrap();
    let fenced = chapter.split("\n```").skip(1).step_by(2);
    let block = |text: &'static str| {
        let mut lines = text.lines();
        let language = lines.next().unwrap();
        let lines = lines.collect();
        Block { language, lines }
    };
    fenced.map(block).collect()
}

/// A command of a transcript, and the output that is shown below it.
struct Step {
    host: usize,
    command: &'static str,
    output: Vec<&'static str>,
}

fn steps(transcript: &Block<'static>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in &transcript.lines {
        if let Some((host, command)) = line.split_once("# ")
            && let Some(host) = ["h1", "h2"].iter().position(|name| *name == host)
        {
            let output = Vec::new();
            steps.push(Step {
                host,
                command,
                output,
            });
        } else {
            steps.last_mut().unwrap().output.push(line);
        }
    }
    steps
}

/// Whether a text is as shown: word by word, where `…` stands for anything within a word, and alone on a line for any lines.
fn is_as_shown(shown: &[&str], text: &[&str]) -> bool {
    match shown.split_first() {
        None => text.is_empty(),
        Some((&"…", rest)) => (0..=text.len()).any(|after| is_as_shown(rest, &text[after..])),
        Some((line, rest)) => text.split_first().is_some_and(|(first, others)| {
            let (shown, words) = (line.split_whitespace(), first.split_whitespace());
            shown.clone().count() == words.clone().count()
                && shown.zip(words).all(|(shown, word)| matches(shown, word))
                && is_as_shown(rest, others)
        }),
    }
}

fn matches(shown: &str, word: &str) -> bool {
    match shown.split_once('…') {
        None => shown == word,
        Some((before, after)) => {
            word.len() >= before.len() + after.len()
                && word.starts_with(before)
                && word.ends_with(after)
        }
    }
}

fn lines(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim_end);
    lines.filter(|line| !line.is_empty()).collect()
}

/// The lab's two hosts: fresh machines with an address each on `eth1`.
struct Hosts {
    // Before the namespaces that they run in.
    machines: [ServiceManager; 2],
    builder: Namespace,
    _lab: Lab,
}

impl Hosts {
    fn start() -> Result<Self, LabError> {
        let mut lab = Lab::new()?;
        let namespaces = [lab.host("h1")?, lab.host("h2")?];
        let builder = lab.host("builder")?;
        lab.link(
            (&namespaces[0], "eth1"),
            (&namespaces[1], "eth1"),
            LinkOptions::default(),
        )?;
        for (namespace, address) in namespaces.iter().zip(["192.0.2.1/24", "192.0.2.2/24"]) {
            namespace.ip(&format!("address add {address} dev eth1"))?;
        }
        let [h1, h2] = &namespaces;
        Ok(Self {
            machines: [ServiceManager::start(h1)?, ServiceManager::start(h2)?],
            builder,
            _lab: lab,
        })
    }

    /// Runs a block for the machine that builds. The programs are built already, and there is no SSH between the lab's machines: two functions
    /// of the shell stand in for cargo and scp.
    fn build(&self, script: &str) -> Result<(), LabError> {
        let directory = std::env::temp_dir().join(self.builder.name());
        fs::create_dir_all(directory.join("target")).unwrap();
        let programs = program("weftd")?;
        symlink(programs.parent().unwrap(), directory.join("target/release")).unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        symlink(repository.join("packaging"), directory.join("packaging")).unwrap();
        let [h1, h2] = &self.machines;
        let home = |machine: &ServiceManager| machine.path("/root").display().to_string();
        let script = format!(
            r#"cd {}
            cargo() {{ true; }}
            scp() {{ case $2 in root@192.0.2.1:) cp "$1" {};; root@192.0.2.2:) cp "$1" {};; *) false;; esac; }}
            {script}"#,
            directory.display(),
            home(h1),
            home(h2)
        );
        let done = self.builder.run(&["sh", "-euc", &script]);
        fs::remove_dir_all(&directory).unwrap();
        done.map(drop)
    }

    fn run(&self, host: usize, script: &str) -> Result<String, LabError> {
        // As after a login; the mode of `sh` says which line of a script failed.
        let script = format!("cd /root\n{script}");
        self.machines[host].run(&["sh", "-euxc", &script])
    }

    /// Runs the commands of a block where its first line says.
    fn follow(&self, block: &Block<'_>) -> Result<(), LabError> {
        let script = block.lines.join("\n");
        match block.lines[0] {
            "# In the repository." => self.build(&script),
            "# On h1." => self.run(0, &script).map(drop),
            "# On h2." => self.run(1, &script).map(drop),
            "# On h1 and on h2." => {
                self.run(0, &script)?;
                self.run(1, &script).map(drop)
            }
            other => panic!("`{other}` does not say where the block is to run"),
        }
    }

    /// Runs a command until it prints what is shown.
    fn show(&self, step: &Step) {
        let output = step.output.join("\n");
        let shown = lines(&output);
        let mut printed = String::new();
        let done = wait_until(step.command, SOON, || {
            let out = self.run(step.host, &format!("set +x\n{}", step.command));
            printed = out.unwrap_or_else(|error| error.to_string());
            is_as_shown(&shown, &lines(&printed))
        });
        if done.is_err() {
            let journals = [("weft-controller", 0), ("weftd", 0), ("weftd", 1)]
                .map(|(unit, host)| self.machines[host].journal(unit));
            panic!(
                "`{}` prints\n{printed}\nbut the README shows\n{}\n--- journals\n{}",
                step.command,
                output,
                journals.join("\n")
            );
        }
    }
}

#[test]
fn the_first_hour_works_as_the_readme_says() {
    let hosts = Hosts::start().unwrap();
    let mut shown = 0;
    for block in blocks() {
        match block.language {
            "sh" => hosts
                .follow(&block)
                .unwrap_or_else(|error| panic!("{error}")),
            "console" => {
                for step in steps(&block) {
                    hosts.show(&step);
                    shown += 1;
                }
            }
            other => panic!("a block of language `{other}`"),
        }
    }
    assert!(shown >= 6, "{shown} commands with their output");
}

#[test]
fn an_output_is_compared_word_by_word() {
    let is = |shown: &str, text: &str| is_as_shown(&lines(shown), &lines(text));
    assert!(is("a  b", "a b\n"));
    assert!(is("time=… ms", "time=0.3 ms"));
    assert!(is("a\n…\nz", "a\nb\nc\nz"));
    for (shown, text) in [
        ("a b", "a"),
        ("a", "a\nb"),
        ("a", "b"),
        ("…\nz", "y"),
        ("x…", "y"),
    ] {
        assert!(!is(shown, text), "{shown} is not {text}");
    }
}
