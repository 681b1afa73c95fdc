//! What the registry keeps: metadata (SQLite or PostgreSQL) and bytes (a folder or S3), each behind one trait that both
//! implementations pass the same contract suite for.
//!
//! This room knows repositories, manifests, tags, blobs, uploads and jobs. It knows neither HTTP nor the words of the two
//! doors: a handler turns the outcomes below into an OCI or an ECR answer.

pub mod blobs;
pub mod disk;
pub mod events;
pub mod images;
pub mod jobs;
pub mod lifecycle;
pub mod lock;
pub mod metadata;
pub mod postgres;
pub mod pull_recorder;
pub mod registries;
pub mod repositories;
mod rows;
pub mod sqlite;
pub mod uploads;
mod usage;

pub use blobs::{
    BlobKey, BlobReader, BlobWriter, Blobs, Generation, Handover, Inspect, KeyReference, Sealed, UploadKey, WriterState,
};
pub use metadata::Metadata;

/// Why the store could not do what it was asked: never the caller's fault, always the store's.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database or the object store did not answer, or not in time; trying again may help.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The disk is full: nothing more is kept until something is deleted, or the disk grows. Reads and deletions go on.
    #[error("the store is full: {0}")]
    Full(String),
    /// What is stored contradicts itself: a row that does not parse, an object that is missing or has another size.
    #[error("the store is inconsistent: {0}")]
    Inconsistent(String),
    /// Anything else that the backend reports.
    #[error("the store failed: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The result of a store operation whose only failures are the store's own.
pub type StoreResult<T> = Result<T, StoreError>;

/// What a look-up inside a repository found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup<T> {
    /// The repository is there and so is the thing.
    Found(T),
    /// The repository is there, the thing is not.
    Missing,
    /// There is no such repository.
    NoRepository,
}

/// Through which door a request came, where the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `/v2/`, where the distribution spec holds.
    Oci,
    /// The ECR API.
    Api,
}
