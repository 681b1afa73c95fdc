//! The use cases that the OCI and ECR APIs share. Knows neither HTTP nor a protocol.

pub(crate) mod blobs;
pub(crate) mod images;
pub(crate) mod manifest;
pub mod uploads;

use std::sync::Arc;

use crate::auth::Keyring;
use crate::config::Config;
use crate::metrics::Metrics;
use wharfage_domain::names::{AccountId, RepositoryArn, RepositoryName};
use wharfage_store::disk::Disk;
use wharfage_store::pull_recorder::PullRecorder;
use wharfage_store::{Blobs, Metadata};

/// A running registry: what every handler gets.
#[derive(Debug)]
pub struct Registry {
    /// What it was told.
    pub(crate) config: Config,
    /// What it knows.
    pub metadata: Arc<dyn Metadata>,
    /// The bytes.
    pub blobs: Arc<dyn Blobs>,
    /// The access keys that sign requests and seal tokens.
    pub(crate) keys: Keyring,
    /// What it counts.
    pub(crate) metrics: Arc<Metrics>,
    /// The disk that it keeps its state on, if any of that lies on one.
    pub(crate) disk: Option<Arc<Disk>>,
    uploads: Arc<uploads::SessionLocks>,
    /// Records what clients pull.
    pub pulls: Arc<PullRecorder>,
}

impl Registry {
    /// A registry that keeps its state in these stores.
    pub fn new(
        config: Config,
        metadata: Arc<dyn Metadata>,
        blobs: Arc<dyn Blobs>,
        keys: Keyring,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (uploads, pulls) = (Arc::default(), Arc::new(PullRecorder::new(Arc::clone(&metadata))));
        Self { config, metadata, blobs, keys, metrics, disk: None, uploads, pulls }
    }

    /// Says which disk its state lies on.
    #[must_use]
    pub fn on_disk(self, disk: Option<Arc<Disk>>) -> Self {
        Self { disk, ..self }
    }

    /// The ARN of a repository of this registry's region.
    pub(crate) fn arn(&self, account: &AccountId, name: &RepositoryName) -> RepositoryArn {
        RepositoryArn { region: self.config.region.clone(), account: account.clone(), name: name.clone() }
    }

    /// `repositoryUri`: the public host and the name, without a scheme.
    pub(crate) fn repository_uri(&self, name: &RepositoryName) -> String {
        format!("{}/{name}", self.config.public_url.authority)
    }
}
