//! What can be done with objects of any kind: apply, list, show, create, delete.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use tonic::Streaming;
use weft_process::controllers::Controllers;
use weft_process::services::intent_client::IntentClient;
use weft_proto::state::{Kind, Object, collect, explode};
use weft_proto::v1::{
    ApplyRequest, ChangeReply, CreateRequest, DeleteRequest, GetRequest, ListReply, ListRequest,
    ObjectKey, Objects,
};

use crate::Usage;
use crate::client::Targets;
use crate::kinds::Flags;
use crate::listing::{Extra, Printer};
use crate::output::{Format, brief, print, show};
use crate::ports::Conditions;

/// Flags of `apply`.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Topology file: objects in YAML; - reads standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Also delete every object that the file does not name.
    #[arg(long)]
    prune: bool,
    /// Print what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Apply {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let request = ApplyRequest {
            objects: Some(read(&self.file)?),
            prune: self.prune,
            dry_run: self.dry_run,
            ..ApplyRequest::default()
        };
        let mut client = targets.intent().await?;
        let reply = client.apply(request).await?.into_inner();
        say_change(format, &reply)
    }
}

/// Which objects of those that there are.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Which {
    /// Only objects of this VPC.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) vpc: String,
    /// Only objects with such labels, as KEY=VALUE, KEY!=VALUE, "KEY in (A,B)", "KEY notin (A,B)", KEY or !KEY; commas or repetition join several.
    #[arg(short = 'l', long = "selector", value_name = "LABELS")]
    pub(crate) labels: Vec<String>,
    /// Only objects with such a field, as FIELD=VALUE or FIELD!=VALUE, of name, vpc, subnet, host and others; repeat for several.
    #[arg(long = "field", value_name = "FIELD=VALUE")]
    pub(crate) fields: Vec<String>,
}

/// What can be done with every kind.
#[derive(Debug, Subcommand)]
pub(crate) enum Action<F: Flags> {
    /// List all.
    List {
        #[command(flatten)]
        which: Which,
        /// Add a column with the labels of each object.
        #[arg(long)]
        show_labels: bool,
        /// Add a column with the revision at which each object last changed.
        #[arg(long)]
        revisions: bool,
    },
    /// Show one object with all fields.
    Show {
        /// Id of the object.
        id: String,
    },
    /// Create one object from flags, or several from a file.
    Create(Create<F>),
    /// Delete objects; all or none of those named.
    Delete {
        /// Ids of the objects.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Flags of `create`.
#[derive(Debug, Args)]
pub(crate) struct Create<F: Flags> {
    /// Id of the object.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    id: Option<String>,
    /// Objects of this kind in YAML; - reads standard input.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Label of the object, as KEY=VALUE; repeat for several.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label, conflicts_with = "file")]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    flags: F,
}

/// The key and the value of a label.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is written KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl<F: Flags> Action<F> {
    /// The id of the object that is to be shown, if one is.
    pub(crate) fn shown(&self) -> Option<&str> {
        match self {
            Self::Show { id } => Some(id),
            _ => None,
        }
    }

    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        match self {
            Self::List {
                which,
                show_labels,
                revisions,
            } => {
                let mut client = targets.intent().await?;
                let mut stream = listing(&mut client, F::KIND, which).await?;
                let extra = Extra {
                    labels: show_labels,
                    revisions,
                    ..Extra::default()
                };
                let mut printer = Printer::new(F::KIND, format, extra);
                while let Some(reply) = stream.message().await? {
                    let objects = explode(reply.objects.unwrap_or_default());
                    printer.print(objects.zip(reply.object_revisions))?;
                }
                printer.end()
            }
            Self::Show { id } => {
                let mut client = targets.intent().await?;
                let (revision, object) = get(&mut client, key(F::KIND, &id)).await?;
                let objects = brief(&collect(std::iter::once(object)))?;
                // One object has room for all its fields.
                let format = if format == Format::Table {
                    print(&format!("# last changed at revision {revision}\n"))?;
                    Format::Yaml
                } else {
                    format
                };
                show(format, &objects, String::new)
            }
            Self::Create(create) => {
                let objects = create.objects()?;
                let request = CreateRequest {
                    objects: Some(objects),
                };
                let mut client = targets.intent().await?;
                let reply = client.create(request).await?.into_inner();
                say_change(format, &reply)
            }
            Self::Delete { ids } => {
                let request = DeleteRequest {
                    objects: ids.iter().map(|id| key(F::KIND, id)).collect(),
                };
                let mut client = targets.intent().await?;
                let reply = client.delete(request).await?.into_inner();
                say_change(format, &reply)
            }
        }
    }
}

impl<F: Flags> Create<F> {
    fn objects(self) -> Result<Objects> {
        match (self.id, self.file) {
            (Some(id), None) => {
                let mut object = self.flags.object(id);
                if let Some(labels) = object.labels_mut() {
                    labels.extend(self.labels);
                }
                Ok(collect(std::iter::once(object)))
            }
            (None, Some(file)) => {
                let objects = read(&file)?;
                if let Some(other) = explode(objects.clone()).find(|o| o.kind() != F::KIND) {
                    let (key, kind) = (other.key(), F::KIND.name());
                    bail!("{key} is no {kind}; `weftctl apply` takes a file of several kinds");
                }
                Ok(objects)
            }
            _ => Err(Usage("give either an id with flags, or a file".to_owned()).into()),
        }
    }
}

/// The name of an object, as it is sent.
pub(crate) fn key(kind: Kind, id: &str) -> ObjectKey {
    ObjectKey {
        kind: kind.name().to_owned(),
        id: id.to_owned(),
    }
}

/// The objects of a file; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<Objects> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read standard input")?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())
}

/// Prints a table of ports with their conditions, and if so with their labels and their revisions.
pub(crate) async fn list_ports(
    targets: &Targets,
    which: Which,
    (labels, revisions): (bool, bool),
) -> Result<()> {
    let mut client = targets.intent().await?;
    let mut conditions = Conditions::of(targets, &which).await?;
    let mut stream = listing(&mut client, Kind::Port, which).await?;
    let extra = Extra {
        status: true,
        labels,
        revisions,
    };
    let mut printer = Printer::new(Kind::Port, Format::Table, extra);
    while let Some(reply) = stream.message().await? {
        let objects = explode(reply.objects.unwrap_or_default());
        for (object, revision) in objects.zip(reply.object_revisions) {
            let state = conditions.state(object.id()).await?;
            printer.print_one(object, revision, Some(state))?;
        }
    }
    printer.end()
}

/// Every object of a kind, part by part.
async fn listing(
    client: &mut IntentClient<Controllers>,
    kind: Kind,
    which: Which,
) -> Result<Streaming<ListReply>> {
    let request = ListRequest {
        kind: kind.name().to_owned(),
        vpc: which.vpc,
        label_selector: which.labels.join(","),
        field_selector: which.fields.join(","),
        ..ListRequest::default()
    };
    Ok(client.list(request).await?.into_inner())
}

/// The object of a kind that has an id, or all of them.
pub(crate) async fn one_or_all(
    targets: &Targets,
    kind: Kind,
    id: Option<String>,
) -> Result<Objects> {
    let mut client = targets.intent().await?;
    Ok(match id {
        Some(id) => {
            let (_, object) = get(&mut client, key(kind, &id)).await?;
            collect(std::iter::once(object))
        }
        None => list(&mut client, kind, String::new()).await?.1,
    })
}

/// Every object of a kind, and the revision at which they are so.
pub(crate) async fn list(
    client: &mut IntentClient<Controllers>,
    kind: Kind,
    vpc: String,
) -> Result<(u64, Objects)> {
    let which = Which {
        vpc,
        ..Which::default()
    };
    let mut stream = listing(client, kind, which).await?;
    let mut revision = 0;
    let mut all = Vec::new();
    while let Some(reply) = stream.message().await? {
        revision = reply.revision;
        all.extend(explode(reply.objects.unwrap_or_default()));
    }
    Ok((revision, collect(all.into_iter())))
}

/// One object, and the revision at which it came to be so.
pub(crate) async fn get(
    client: &mut IntentClient<Controllers>,
    key: ObjectKey,
) -> Result<(u64, Object)> {
    let request = GetRequest { object: Some(key) };
    let reply = client.get(request).await?.into_inner();
    let object = explode(reply.objects.unwrap_or_default()).next();
    let revision = reply.object_revisions.first().copied();
    Ok((
        revision
            .context("the controller tells no revision of objects: it is older than weftctl")?,
        object.context("the controller sent no object")?,
    ))
}

pub(crate) fn say_change(format: Format, reply: &ChangeReply) -> Result<()> {
    show(format, reply, || {
        format!(
            "{} created, {} updated, {} deleted; revision {}\n",
            reply.created, reply.updated, reply.deleted, reply.revision
        )
    })
}
