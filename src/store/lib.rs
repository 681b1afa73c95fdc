//! Stores metadata (SQLite or PostgreSQL) and bytes (a folder or S3), each behind traits whose
//! implementations pass one contract suite.
//!
//! This module knows repositories, manifests, tags, blobs, uploads and jobs. It knows neither HTTP
//! nor the OCI and ECR protocols: a handler turns the outcomes below into an OCI or an ECR
//! response.
//!
//! Each resource has a module with its types and its trait. `sqlite` and `postgres` have a module
//! of the same name that implements the trait: same functions, same order, other SQL.

pub mod blobs;
pub mod disk;
pub mod events;
pub mod images;
pub mod jobs;
pub mod layers;
pub mod lock;
pub mod manifests;
pub mod metadata;
pub mod postgres;
pub mod previews;
pub mod pull_recorder;
pub mod registries;
pub mod repositories;
mod rows;
pub mod sqlite;
pub mod uploads;
pub mod usage;

pub use blobs::{
    BlobKey, BlobReader, BlobWriter, Blobs, Generation, Handover, Inspect, KeyReference, Sealed,
    UploadKey, WriterState,
};
pub use metadata::Metadata;

/// A failure of the store itself, never the caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database or the object store did not answer, or not in time; a retry may help.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The disk is full. Writes fail until something is deleted or the disk grows; reads and
    /// deletions work.
    #[error("the store is full: {0}")]
    Full(String),
    /// The stored data contradicts itself: a row does not parse, an object is missing or has
    /// another size.
    #[error("the store is inconsistent: {0}")]
    Inconsistent(String),
    /// Any other failure of the backend.
    #[error("the store failed: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The result of a store operation whose only failures are the store's own.
pub type StoreResult<T> = Result<T, StoreError>;

/// The result of a lookup inside a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup<T> {
    /// The repository exists and holds it.
    Found(T),
    /// The repository exists and does not hold it.
    Missing,
    /// The repository does not exist.
    NoRepository,
}
