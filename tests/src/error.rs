//! Errors of the lab, with the logs and counters that explain them.

use std::{io, time::Duration};

/// An error of the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A command didn't start.
    #[error("cannot start `{command}`: {source}")]
    Start {
        /// The command.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed ({status}): {output}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
        /// What it printed.
        output: String,
    },
    /// A call to the kernel failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// An error, with what a person would look at first.
    #[error("{source}{text}")]
    Explained {
        /// The error.
        source: Box<LabError>,
        /// Logs and counters.
        text: String,
    },
    /// A condition didn't come true in time.
    #[error("{what}: not within {within:?}")]
    Deadline {
        /// The condition.
        what: String,
        /// How long it was waited for.
        within: Duration,
    },
}

impl LabError {
    /// A call to the kernel that failed, as an error of the lab.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
