//! The servers that are measured, each a process of its own on loopback with an empty folder, and what the system says of
//! what they cost.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wharfage::datadir::{DataDir, root_key};
use wharfage::names::AccountId;
use wharfage::registry::auth::token;
use wharfage::store::repositories::{
    Encryption, NewRepository, RepositoryStore as _, TagMutability,
};
use wharfage::store::sqlite::SqliteStore;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Ours, with authorization on.
    Ours,
    /// CNCF distribution, without authorization, as it comes.
    Distribution,
    /// The least that receiving can cost: pushes only.
    Limit,
}

/// A server that runs.
pub struct Server {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// What goes with every request.
    pub authorization: Option<String>,
    /// From the start of the process to its first answer.
    pub started_in: Duration,
    _folder: tempfile::TempDir,
}

const ACCOUNT: &str = "000000000000";

impl Server {
    /// Starts it and waits for its first answer; ours also gets its repositories.
    pub fn start(
        kind: Kind,
        distribution: Option<&Path>,
        repositories: &[&str],
    ) -> anyhow::Result<Self> {
        // On the same disk as the checkout: a folder in memory would make every sync free.
        let folder =
            tempfile::Builder::new().prefix("bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = match kind {
            Kind::Ours => {
                create_repositories(folder.path(), repositories)?;
                let mut command = Command::new(env!("CARGO_BIN_EXE_wharfage"));
                command.args([
                    "serve",
                    "--registry-id",
                    ACCOUNT,
                    "--listen",
                    &address.to_string(),
                    "--data",
                ]);
                command.arg(folder.path());
                command
            }
            Kind::Distribution => {
                let program: PathBuf = distribution
                    .ok_or_else(|| anyhow::anyhow!("name the peer with --distribution"))?
                    .into();
                let config = folder.path().join("config.yml");
                let root = folder.path().join("root");
                std::fs::write(
                    &config,
                    format!(
                        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"{address}\"}}\n",
                        root.display()
                    ),
                )?;
                let mut command = Command::new(program);
                command.arg("serve").arg(config).env("OTEL_TRACES_EXPORTER", "none");
                command
            }
            Kind::Limit => {
                let mut command = Command::new(std::env::current_exe()?);
                command
                    .arg("--receive")
                    .arg(folder.path())
                    .arg("--listen")
                    .arg(address.to_string());
                command
            }
        };
        let begun = Instant::now();
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut server = Self {
            process,
            address,
            authorization: None,
            started_in: Duration::ZERO,
            _folder: folder,
        };
        while TcpStream::connect(address).is_err() {
            anyhow::ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "{kind:?} does not answer on {address}"
            );
            anyhow::ensure!(server.process.try_wait()?.is_none(), "{kind:?} ended at once");
            std::thread::sleep(Duration::from_millis(1));
        }
        server.started_in = begun.elapsed();
        if kind == Kind::Ours {
            let data = server._folder.path().join("registries/default");
            let account: AccountId = ACCOUNT.parse()?;
            let key = root_key(&data, &account)?;
            let (password, _) = token::issue(&key.into(), jiff::Timestamp::now())?;
            use base64::Engine as _;
            let basic = base64::engine::general_purpose::STANDARD.encode(format!("AWS:{password}"));
            server.authorization = Some(format!("Basic {basic}"));
        }
        Ok(server)
    }

    /// Processor seconds that it has used so far, of its user and of the kernel's.
    pub fn cpu_seconds(&self) -> io::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name in parentheses may hold spaces; the fields behind it are fixed: utime is the 14th, stime the 15th.
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| {
            fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN)
        };
        Ok((ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64)
    }

    /// The most memory that it has had resident, in MiB, since the last reset.
    pub fn peak_mib(&self) -> io::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(f64::NAN);
        Ok(kib / 1024.0)
    }

    /// Forgets the peak.
    pub fn reset_peak(&self) -> io::Result<()> {
        std::fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is ours to end, by its id, whatever became of the measurement.
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Makes the repositories that the works push to, in the folder of a registry that does not run yet.
fn create_repositories(folder: &Path, names: &[&str]) -> anyhow::Result<()> {
    let data = DataDir::open(folder)?.registry(&"default".parse()?)?;
    let store = SqliteStore::open(&data.join("metadata.sqlite"))?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        for name in names {
            let new = NewRepository {
                account: ACCOUNT.parse()?,
                name: name.parse()?,
                created_at: jiff::Timestamp::now(),
                tag_mutability: TagMutability::MUTABLE,
                scan_on_push: false,
                encryption: Encryption::default(),
                tags: Vec::new(),
            };
            store.create_repository(new, u64::MAX >> 1).await?;
        }
        anyhow::Ok(())
    })
}
