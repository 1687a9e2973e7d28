//! Where a controller of a test has its store: in a file or in etcd. Tests of what both have to do run on both.

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::Controller;
use super::etcd::Members;

#[derive(Debug, Clone, Copy)]
pub enum StoreKind {
    Embedded,
    Etcd,
}

/// A store that outlasts its controllers.
pub struct Site {
    pub directory: TempDir,
    pub members: Option<Members>,
}

impl Site {
    pub async fn new(kind: StoreKind) -> Self {
        let members = match kind {
            StoreKind::Embedded => None,
            StoreKind::Etcd => Some(Members::started(1).await),
        };
        Self {
            directory: tempfile::tempdir().unwrap(),
            members,
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A controller that takes changes.
    pub async fn controller(&self, listen: &str) -> Controller {
        let Some(members) = &self.members else {
            return Controller::start(self.path(), listen).await;
        };
        let controller = Controller::start_shared(Arc::new(members.store()), listen).await;
        controller.is_writer(true).await;
        controller
    }

    /// The store, as a configuration file names it.
    pub fn configuration(&self) -> String {
        match &self.members {
            None => {
                let path = self.path().join("intent.redb");
                format!("[store]\nkind = 'embedded'\npath = '{}'\n", path.display())
            }
            Some(members) => {
                let endpoints = members.endpoints();
                format!("[store]\nkind = 'etcd'\nendpoints = {endpoints:?}\n")
            }
        }
    }
}

/// Runs tests, which take a kind of store, on each.
#[macro_export]
macro_rules! on_both_stores {
    ($($test:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::support::site::StoreKind::Embedded).await;
            })*
        }
        mod etcd {
            $(#[tokio::test]
            async fn $test() {
                super::$test($crate::support::site::StoreKind::Etcd).await;
            })*
        }
    };
}
