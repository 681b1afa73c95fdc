//! `wharfage serve`: one registry on its own, configured by flags and the environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::SecretString;

use super::StopSignals;
use super::output::say;
use crate::access_key::AccessKey;
use crate::datadir::{DataDir, StartedRegistry, root_key};
use crate::jobs;
use crate::listener::bind;
use crate::names::{AccountId, Region, RegistryName};
use crate::registry::http::cors::Origin;
use crate::registry::http::server::ServerLimits;
use crate::registry::http::tls::ServerTls;
use crate::registry::message::memory;
use crate::registry::{Config, Limits, PublicUrl};
use crate::serve::{Database, Opened, Running, ServerMetrics, Startup, Storage};
use crate::store::blobs::s3::{S3Config, S3Credentials};
use crate::store::lock::ProcessLock;

/// The flags of `wharfage serve`. Secrets come from files or the environment, never from a flag's value.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wharfage serve --data /var/lib/wharfage
  wharfage serve --data /var/lib/wharfage --listen 0.0.0.0:443 --tls-cert tls.crt --tls-key tls.key \\
                 --public-url https://registry.example.com
  wharfage serve --data /tmp/w --database-url-file /run/secrets/pg --s3-bucket images \\
                 --s3-endpoint https://s3.example.com --s3-credentials-file /run/secrets/s3

Secrets in the environment instead of files: WHARFAGE_DATABASE_URL, WHARFAGE_S3_ACCESS_KEY_ID and
WHARFAGE_S3_SECRET_ACCESS_KEY, WHARFAGE_ACCESS_KEY_ID and WHARFAGE_SECRET_ACCESS_KEY (the root key).")]
pub struct Serve {
    /// The data folder: by default the database and the blobs, and root key and aws files unless a
    /// root key is given. It is not created if nothing is kept in it
    #[arg(long, env = "WHARFAGE_DATA", default_value = ".wharfage", value_name = "DIR")]
    data: PathBuf,

    /// Address to listen on
    #[arg(
        long,
        env = "WHARFAGE_LISTEN",
        default_value = "127.0.0.1:5000",
        value_name = "ADDR:PORT"
    )]
    listen: SocketAddr,

    /// Address of /healthz, /readyz and /metrics; disabled by default
    #[arg(long, env = "WHARFAGE_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    admin_listen: Option<SocketAddr>,

    /// The registry's name, which is its aws profile's too
    #[arg(long, env = "WHARFAGE_NAME", default_value = "default", value_name = "NAME")]
    name: RegistryName,

    /// The region, as in ARNs and signatures
    #[arg(long, env = "WHARFAGE_REGION", default_value = "local-1", value_name = "REGION")]
    region: Region,

    /// The account, ECR's registryId: twelve digits
    #[arg(long, env = "WHARFAGE_REGISTRY_ID", default_value = "000000000000", value_name = "ID")]
    registry_id: AccountId,

    /// Address at which clients reach the registry, as in repositoryUri and proxyEndpoint [default:
    /// the listener's address]
    #[arg(long, env = "WHARFAGE_PUBLIC_URL", value_name = "URL")]
    public_url: Option<PublicUrl>,

    /// The certificate chain (PEM). It and its key are read again when they change
    #[arg(long, env = "WHARFAGE_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM)
    #[arg(long, env = "WHARFAGE_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// Answer in the clear on an address other than loopback: behind a proxy that speaks TLS
    #[arg(long, env = "WHARFAGE_ALLOW_PLAIN_HTTP")]
    allow_plain_http: bool,

    /// A file that holds the PostgreSQL URL [default: SQLite in the data folder]
    #[arg(long, env = "WHARFAGE_DATABASE_URL_FILE", value_name = "FILE")]
    database_url_file: Option<PathBuf>,

    /// The bucket for blobs [default: a folder in the data folder]
    #[arg(long, env = "WHARFAGE_S3_BUCKET", value_name = "BUCKET")]
    s3_bucket: Option<String>,

    /// The bucket's region
    #[arg(
        long,
        env = "WHARFAGE_S3_REGION",
        default_value = "us-east-1",
        value_name = "REGION",
        requires = "s3_bucket"
    )]
    s3_region: String,

    /// The S3 endpoint [default: Amazon's]
    #[arg(long, env = "WHARFAGE_S3_ENDPOINT", value_name = "URL", requires = "s3_bucket")]
    s3_endpoint: Option<String>,

    /// A prefix for every key in the bucket
    #[arg(
        long,
        env = "WHARFAGE_S3_PREFIX",
        default_value = "",
        value_name = "PREFIX",
        requires = "s3_bucket"
    )]
    s3_prefix: String,

    /// A JSON file with AccessKeyId and SecretAccessKey for the bucket [default: the machine's own identity]
    #[arg(long, env = "WHARFAGE_S3_CREDENTIALS_FILE", value_name = "FILE", requires = "s3_bucket")]
    s3_credentials_file: Option<PathBuf>,

    /// Let clients read blobs from the bucket itself, by presigned URLs
    #[arg(long, env = "WHARFAGE_S3_REDIRECT", requires = "s3_bucket")]
    s3_redirect: bool,

    /// Time between two evaluations of a lifecycle policy, in seconds
    #[arg(
        long,
        env = "WHARFAGE_LIFECYCLE_INTERVAL",
        default_value = "3600",
        value_name = "SECONDS"
    )]
    lifecycle_interval: u64,

    /// Time that running transfers may take after a stop, in seconds
    #[arg(long, env = "WHARFAGE_SHUTDOWN_GRACE", default_value = "60", value_name = "SECONDS")]
    shutdown_grace: u64,

    /// Time for which requests are still accepted after a stop, in seconds, while /readyz reports
    /// not ready
    #[arg(long, env = "WHARFAGE_SHUTDOWN_DELAY", default_value = "0", value_name = "SECONDS")]
    shutdown_delay: u64,

    /// Connections at once, 16 or more; when there are as many, the one that is idle for longest makes place
    #[arg(
        long,
        env = "WHARFAGE_MAX_CONNECTIONS",
        default_value = "4096",
        value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(16..=1_000_000)
    )]
    max_connections: usize,

    /// Connections at once of one address (of one /64 network with IPv6) [default: three quarters of --max-connections]
    #[arg(
        long,
        env = "WHARFAGE_MAX_CONNECTIONS_PER_PEER",
        value_name = "N",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000)
    )]
    max_connections_per_peer: Option<usize>,

    /// Memory that the bodies of requests and answers may hold, in MiB, 128 or more
    #[arg(
        long,
        env = "WHARFAGE_BODY_MEMORY",
        default_value_t = memory::DEFAULT_MIB,
        value_name = "MIB",
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(memory::DEFAULT_MIB as u64..=1_048_576)
    )]
    body_memory: usize,

    /// An origin whose pages may speak to the registry from a browser (https://HOST, or * for all); may be given again
    #[arg(long, env = "WHARFAGE_CORS_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    cors_allow_origin: Vec<Origin>,
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let mut signals = StopSignals::new()?;
        let delay = self.shutdown_delay;
        // Locked until all that uses the folder has ended.
        let (running, _lock) = tokio::select! {
            started = self.start() => started?,
            () = signals.next() => {
                tracing::info!("stopped before it served");
                return Ok(());
            }
        };
        signals.next().await;
        if delay > 0 {
            running.leave();
            tracing::info!(seconds = delay, "stopping soon: /readyz says so");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(delay)) => {}
                () = signals.next() => {}
            }
        }
        tracing::info!("stopping: running transfers may end");
        running.stop().await;
        Ok(())
    }

    /// Opens the stores, and serves; returns the lock of the data folder, where that is used. If
    /// this is dropped before it ends, the next start does the rest.
    async fn start(self) -> anyhow::Result<(Running, Option<ProcessLock>)> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(ServerTls::from_files(certificate, key)?),
            _ => None,
        };
        if tls.is_none() && !self.allow_plain_http && !self.listen.ip().is_loopback() {
            bail!(
                "{} is not a loopback address: give --tls-cert and --tls-key, or --allow-plain-http behind a proxy that speaks TLS",
                self.listen
            );
        }
        memory::set_size(self.body_memory * 1024 * 1024);
        let given_key = self.given_root_key()?;
        let database_url = database_url(self.database_url_file.as_deref())?;
        let uses_folder = given_key.is_none() || database_url.is_none() || self.s3_bucket.is_none();
        let lock = match uses_folder {
            true => Some(DataDir::open(&self.data)?.lock("wharfage serve")?),
            false => None,
        };
        let root_key = match &given_key {
            Some(key) => key.clone(),
            None => root_key(&self.folder()?, &self.registry_id)?,
        };
        let (listener, address) = bind(self.listen).await?;
        let public_url = self.public_url.clone().unwrap_or_else(|| PublicUrl {
            scheme: if tls.is_some() { "https" } else { "http" }.into(),
            authority: address.to_string(),
        });
        let startup = Startup {
            config: Config {
                region: self.region.clone(),
                account: self.registry_id.clone(),
                public_url: public_url.clone(),
                redirect_blobs: self.s3_redirect,
                limits: Limits::default(),
            },
            root_key: root_key.clone(),
            database: match database_url {
                Some(url) => Database::Postgres(url),
                None => Database::Sqlite(self.folder()?),
            },
            storage: self.storage()?,
            jobs: jobs::JobSettings {
                lifecycle_interval: Duration::from_secs(self.lifecycle_interval.max(1)),
                ..jobs::JobSettings::default()
            },
            limits: ServerLimits {
                connections: self.max_connections,
                connections_per_peer: self.max_connections_per_peer,
                grace: Duration::from_secs(self.shutdown_grace),
                cors: self.cors_allow_origin.clone(),
            },
            tls,
        };
        let admin = match self.admin_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let opened = Opened::open(startup, listener, &ServerMetrics::default()).await?;
        if uses_folder {
            DataDir::open(&self.data)?.remember(
                &self.name,
                &self.registry_id,
                &self.region,
                None,
            )?;
        }
        // A root key from the environment is its owner's to keep, so it is not written to this disk.
        let published = match given_key {
            Some(_) => None,
            None => {
                let data = DataDir::open(&self.data)?;
                let started = StartedRegistry {
                    name: self.name,
                    endpoint: public_url.to_string(),
                    authority: public_url.authority.clone(),
                    region: self.region,
                    account: self.registry_id,
                };
                data.publish(&[(started, root_key)])?;
                Some(data)
            }
        };
        let mut running = opened.serve();
        if let Some((listener, address)) = admin {
            tracing::info!(%address, "the admin server serves /healthz, /readyz and /metrics");
            running.serve_operations(listener, &[]);
        }
        say(format_args!("Serving {public_url} (listening on {address})."));
        if let Some(data) = published {
            say(format_args!(
                "To use it:  eval \"$(wharfage env --data {})\"",
                data.path().display()
            ));
        }
        Ok((running, lock))
    }

    /// The registry's own folder in the data folder, made if it is missing.
    fn folder(&self) -> anyhow::Result<PathBuf> {
        let data = DataDir::open(&self.data)?;
        data.check(&self.name, &self.registry_id, &self.region)?;
        data.registry(&self.name)
    }

    fn given_root_key(&self) -> anyhow::Result<Option<AccessKey>> {
        let variable = |name| std::env::var(name).ok();
        match (variable("WHARFAGE_ACCESS_KEY_ID"), variable("WHARFAGE_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) if !id.is_empty() && !secret.is_empty() => {
                Ok(Some(AccessKey::new(&id, &secret, self.registry_id.clone())))
            }
            (None, None) => Ok(None),
            _ => bail!(
                "set both of WHARFAGE_ACCESS_KEY_ID and WHARFAGE_SECRET_ACCESS_KEY, or neither"
            ),
        }
    }

    fn storage(&self) -> anyhow::Result<Storage> {
        let Some(bucket) = &self.s3_bucket else { return Ok(Storage::Folder(self.folder()?)) };
        Ok(Storage::S3(S3Config {
            bucket: bucket.clone(),
            region: self.s3_region.clone(),
            endpoint: self.s3_endpoint.clone(),
            prefix: self.s3_prefix.clone(),
            credentials: self.s3_credentials()?,
            redirect: self.s3_redirect,
        }))
    }

    /// The bucket's access key id and secret, if any were given.
    fn s3_credentials(&self) -> anyhow::Result<Option<S3Credentials>> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Stored {
            access_key_id: String,
            secret_access_key: String,
        }
        if let Some(file) = &self.s3_credentials_file {
            let bytes =
                std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            // The parser's message could quote the file, so it is not passed on.
            let Ok(Stored { access_key_id, secret_access_key }) = serde_json::from_slice(&bytes)
            else {
                bail!(
                    "{} must be a JSON object with AccessKeyId and SecretAccessKey",
                    file.display()
                );
            };
            return Ok(Some(S3Credentials {
                access_key: access_key_id,
                secret_key: secret_access_key,
            }));
        }
        let variable = |name| std::env::var(name).ok();
        match (variable("WHARFAGE_S3_ACCESS_KEY_ID"), variable("WHARFAGE_S3_SECRET_ACCESS_KEY")) {
            (Some(access_key), Some(secret_key)) => {
                Ok(Some(S3Credentials { access_key, secret_key }))
            }
            (None, None) => Ok(None),
            _ => bail!(
                "set both of WHARFAGE_S3_ACCESS_KEY_ID and WHARFAGE_S3_SECRET_ACCESS_KEY, or neither"
            ),
        }
    }
}

/// The PostgreSQL URL, of this file or of the environment, if any was given.
pub(super) fn database_url(file: Option<&Path>) -> anyhow::Result<Option<SecretString>> {
    let url = match file {
        Some(file) => {
            let url = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            Some(url.trim().to_owned())
        }
        None => std::env::var("WHARFAGE_DATABASE_URL").ok(),
    };
    Ok(url.map(SecretString::from))
}
