//! The metadata contract: every method is one transaction, and its effect is durable when it
//! returns.
//!
//! Times come in as arguments: an implementation reads no clock, with one exception. The lease of a
//! job is a duration that begins and ends by the database's clock, because replicas whose clocks
//! differ must agree on who holds a job. Lists are keyset pages: they are ordered by their key,
//! begin after the key `after`, and hold at most `limit` entries.

use super::StoreResult;
use super::events::EventStore;
use super::images::ImageStore;
use super::jobs::JobStore;
use super::layers::LayerStore;
use super::manifests::ManifestStore;
use super::previews::PreviewStore;
use super::registries::RegistryStore;
use super::repositories::RepositoryStore;
use super::uploads::UploadStore;
use super::usage::UsageStore;

/// All metadata of the registry, in SQLite or PostgreSQL: the sum of the resources' traits.
#[async_trait::async_trait]
pub trait Metadata:
    RegistryStore
    + RepositoryStore
    + UsageStore
    + LayerStore
    + UploadStore
    + ManifestStore
    + ImageStore
    + PreviewStore
    + JobStore
    + EventStore
    + Send
    + Sync
    + std::fmt::Debug
{
    /// Checks that the database answers and takes writes, for readiness. Does not wait for other
    /// operations.
    ///
    /// # Errors
    /// `Full` when everything works except for writes that take space.
    async fn ready(&self) -> StoreResult<()>;
}
