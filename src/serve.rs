//! Starts a registry from its settings: opens its stores, answers, runs its jobs, and stops it all in order.
//!
//! The composition root of the server: it alone knows both the registry and the jobs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access_key::AccessKey;
use crate::admin;
use crate::jobs::{self, JobMetrics};
use crate::registry::auth::Keyring;
use crate::registry::http::health::Registries;
use crate::registry::http::server::{self, ServerLimits};
use crate::registry::http::tls::ServerTls;
use crate::registry::metrics::Metrics;
use crate::registry::{Config, Registry};
use crate::store::blobs::folder::FolderBlobs;
use crate::store::blobs::s3::{S3Blobs, S3Config};
use crate::store::disk::Disk;
use crate::store::postgres::{PostgresOptions, PostgresStore};
use crate::store::sqlite::SqliteStore;
use crate::store::{Blobs, Metadata};

/// The storage of metadata.
#[derive(Debug, Clone)]
pub enum Database {
    /// In a file of this folder, which one process owns at a time.
    Sqlite(PathBuf),
    /// In a PostgreSQL database, by its URL (a secret: it may hold a password).
    Postgres(SecretString),
}

/// The storage of bytes.
#[derive(Debug, Clone)]
pub enum Storage {
    /// In this folder.
    Folder(PathBuf),
    /// In a bucket.
    S3(S3Config),
}

/// Everything that a registry needs to start.
pub struct Startup {
    /// The registry's own configuration.
    pub config: Config,
    /// Its root key.
    pub root_key: AccessKey,
    /// Its metadata.
    pub database: Database,
    /// Its bytes.
    pub storage: Storage,
    /// The settings of its jobs.
    pub jobs: jobs::JobSettings,
    /// The limits of its listener.
    pub limits: ServerLimits,
    /// TLS, unless it answers in the clear.
    pub tls: Option<ServerTls>,
}

/// The metrics that the registries of a process share.
#[derive(Debug)]
pub struct ServerMetrics {
    registry: Arc<Metrics>,
    jobs: JobMetrics,
}

impl Default for ServerMetrics {
    fn default() -> Self {
        let mut exported = prometheus_client::registry::Registry::with_prefix("wharfage");
        let jobs = JobMetrics::register(&mut exported);
        Self { registry: Arc::new(Metrics::register(exported)), jobs }
    }
}

/// A registry whose stores are open. It does not answer yet: clients that connect wait in the listener's queue.
pub struct Opened {
    /// The registry.
    pub registry: Arc<Registry>,
    listener: TcpListener,
    jobs: jobs::JobSettings,
    job_metrics: JobMetrics,
    limits: ServerLimits,
    tls: Option<ServerTls>,
}

impl Opened {
    /// Opens the stores.
    pub async fn open(
        startup: Startup,
        listener: TcpListener,
        metrics: &ServerMetrics,
    ) -> anyhow::Result<Self> {
        let Startup { config, root_key, database, storage, jobs, limits, tls } = startup;
        let mut disk = None;
        let metadata: Arc<dyn Metadata> = match database {
            Database::Sqlite(folder) => {
                let path = folder.join("metadata.sqlite");
                let store = SqliteStore::open(&path)
                    .with_context(|| format!("cannot open {}", path.display()))?;
                disk = Some(store.disk());
                Arc::new(store)
            }
            Database::Postgres(url) => {
                let store =
                    PostgresStore::connect(url.expose_secret(), PostgresOptions::default()).await;
                Arc::new(store.context("cannot open the PostgreSQL database")?)
            }
        };
        let blobs: Arc<dyn Blobs> = match storage {
            Storage::Folder(folder) => {
                // With SQLite, the two share one folder and its reserve.
                let disk = disk.get_or_insert_with(|| Arc::new(Disk::new(&folder)));
                let failed = || format!("cannot open {}", folder.display());
                Arc::new(FolderBlobs::open_on(&folder, Arc::clone(disk)).with_context(failed)?)
            }
            Storage::S3(s3) => Arc::new(S3Blobs::new(s3).context("cannot open the bucket")?),
        };
        let keys = Keyring::new([root_key]);
        let registry = Registry::new(config, metadata, blobs, keys, Arc::clone(&metrics.registry))
            .on_disk(disk);
        let (registry, job_metrics) = (Arc::new(registry), metrics.jobs.clone());
        Ok(Self { registry, listener, jobs, job_metrics, limits, tls })
    }

    /// Starts to answer, and to run the jobs. The files from which clients find the registry have
    /// to exist by then.
    pub fn serve(self) -> Running {
        let Self { registry, listener, jobs, limits, tls, job_metrics } = self;
        let job_context = jobs::JobContext {
            metadata: Arc::clone(&registry.metadata),
            blobs: Arc::clone(&registry.blobs),
            pulls: Arc::clone(&registry.pulls),
            metrics: job_metrics,
        };
        let (stop, stopped) = watch::channel(false);
        let acceptor = tls.as_ref().map(ServerTls::acceptor);
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(
            Arc::clone(&registry),
            listener,
            acceptor,
            limits,
            stopped.clone(),
        ));
        if let Some(tls) = tls {
            tasks.spawn(tls.watch_files(stopped.clone()));
        }
        tasks.spawn(jobs::run(Arc::new(job_context), jobs, stopped.clone()));
        tasks.spawn(Arc::clone(&registry.pulls).run(stopped));
        Running { registry, tasks, admin: JoinSet::new(), leaving: watch::Sender::new(false), stop }
    }
}

/// A registry that runs.
#[derive(Debug)]
pub struct Running {
    /// The registry.
    pub registry: Arc<Registry>,
    tasks: JoinSet<()>,
    /// Ends after the tasks: it reports their state.
    admin: JoinSet<()>,
    leaving: watch::Sender<bool>,
    stop: watch::Sender<bool>,
}

impl Running {
    /// Serves health and metrics for this registry (and `others` of the same process) until it has stopped.
    pub fn serve_operations(&mut self, listener: TcpListener, others: &[Arc<Registry>]) {
        let registries = std::iter::once(&self.registry).chain(others).map(Arc::clone).collect();
        let endpoints = Registries { registries, stopping: self.leaving.subscribe() };
        self.admin.spawn(admin::serve(Arc::new(endpoints), listener));
    }

    /// Reports not ready at `/readyz` before it stops, and continues to serve: a load balancer can
    /// then send clients elsewhere first.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Stops accepting, lets running transfers and jobs end within their grace, and returns when
    /// all have ended.
    pub async fn stop(mut self) {
        self.leave();
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task of the registry failed");
            }
        }
        self.admin.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::jobs::JobCount;

    #[test]
    fn every_metric_is_in_the_docs() {
        let ServerMetrics { registry: metrics, jobs } = ServerMetrics::default();
        metrics.request("GET manifest", 200, Duration::ZERO);
        metrics.connection_ended("idle");
        metrics.set_memory("verified", 1, 1, 1);
        metrics.set_gauges(
            1,
            &[JobCount { kind: "lifecycle".into(), state: "waiting".into(), count: 1 }],
        );
        jobs.ended("lifecycle", "done");
        metrics.set_store("blobs", true, false);
        metrics.set_disk_free(1);
        let documented = include_str!("../docs/operations.md");
        let text = metrics.encode().unwrap();
        let names: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        assert_eq!(names.len(), 16, "{text}");
        for (name, kind) in names {
            let name =
                if kind == "counter" { format!("`{name}_total`") } else { format!("`{name}`") };
            assert!(documented.contains(&name), "docs/operations.md does not describe {name}");
        }
    }
}
