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

/// A registry: the state that all handlers share.
#[derive(Debug)]
pub struct Registry {
    pub(crate) config: Config,
    /// The database.
    pub metadata: Arc<dyn Metadata>,
    /// The blob store.
    pub blobs: Arc<dyn Blobs>,
    /// The access keys that sign requests and seal tokens.
    pub(crate) keys: Keyring,
    pub(crate) metrics: Arc<Metrics>,
    /// The disk of its data, if they are on one.
    pub(crate) disk: Option<Arc<Disk>>,
    uploads: Arc<uploads::SessionLocks>,
    /// Records the pulls of clients.
    pub pulls: Arc<PullRecorder>,
}

impl Registry {
    /// Creates a registry on these stores.
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

    /// Sets the disk of its data.
    #[must_use]
    pub fn on_disk(self, disk: Option<Arc<Disk>>) -> Self {
        Self { disk, ..self }
    }

    /// Returns the ARN of a repository in this registry's region.
    pub(crate) fn arn(&self, account: &AccountId, name: &RepositoryName) -> RepositoryArn {
        RepositoryArn {
            region: self.config.region.clone(),
            account: account.clone(),
            name: name.clone(),
        }
    }

    /// Returns the `repositoryUri`: the public host and the name, without a scheme.
    pub(crate) fn repository_uri(&self, name: &RepositoryName) -> String {
        format!("{}/{name}", self.config.public_url.authority)
    }
}
