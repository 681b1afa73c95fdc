//! A registry that is attacked while others use it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::bad_input::target::Target;
use crate::bed::wharfage::Launch;
use crate::oci::client::Repository;
use crate::oci::images;

/// The memory limit of the process, in bytes.
const LIMIT: u64 = 512 * 1024 * 1024;
/// The memory that may remain after a peak: buffers that are used again, and the allocator's own.
const LEFT_BEHIND: u64 = 64 * 1024 * 1024;
/// The time between two checks of whether memory has been given back, and their number: the
/// allocator takes about ten seconds.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const LOOKS: usize = 400;

/// A registry with an image that others pull.
pub struct Siege {
    // In this order: the process ends before its group is removed.
    pub target: Target,
    _group: Option<MemoryGroup>,
    admin: String,
    resident_before: u64,
}

impl Siege {
    /// `HOST:PORT` of the second listener.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Starts the registry within the limit. Where no group of processes may be made (that needs root), nothing ends it when it
    /// takes more; the peak is measured either way.
    pub async fn start(launch: Launch) -> Self {
        allow_many_files();
        let target = Target::of(launch.arg("--admin-listen").arg("127.0.0.1:0")).await;
        let group = MemoryGroup::of(target.server.pid());
        match &group {
            Some(group) => {
                eprintln!("held to {} MiB by the control group {}", LIMIT / MIB, group.0.display())
            }
            None => eprintln!("no memory cgroup can be made here: the peak is only measured"),
        }
        let address = target.server.wait_for(|line| {
            let (_, rest) = line.split_once("the admin server serves")?.1.split_once("address")?;
            Some(rest.trim_start_matches(['=', ':', '"']).split(['"', ' ', ',']).next()?.to_owned())
        });
        let manifest = images::image(&target.repository).await.to_string();
        target.repository.put_ok("small", manifest.as_bytes()).await;
        target.repository.get(&target.repository.manifest("small")).await.assert_status(200);
        let resident_before = resident(target.server.pid());
        Self { target, _group: group, admin: address, resident_before }
    }

    pub fn repository(&self) -> &Repository {
        &self.target.repository
    }

    /// The status and the text at the second listener.
    pub async fn ask(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.admin)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// The sum of the samples whose name and labels begin so.
    pub async fn sum(&self, beginning: &str) -> f64 {
        let (_, metrics) = self.ask("/metrics").await;
        let samples = metrics.lines().filter(|line| line.starts_with(beginning));
        samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// Waits until the samples that begin so come to `least`.
    pub async fn wait_for_sum(&self, beginning: &str, least: f64) {
        while self.sum(beginning).await < least {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Bytes of bodies in memory, of callers who have proved who they are and of others.
    pub async fn held(&self) -> f64 {
        self.sum("wharfage_body_memory_bytes{").await
    }

    /// Others pull an image, one request after the other, until they are asked how it went.
    pub fn others(&self) -> Others {
        let (stop, repository) = (Arc::new(AtomicBool::new(false)), self.repository().clone());
        let (stopped, target) = (Arc::clone(&stop), repository.manifest("small"));
        let pulls = tokio::spawn(async move {
            let mut times = Vec::new();
            while times.len() < 20 || !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                repository.get(&target).await.assert_status(200);
                times.push(began.elapsed());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            times
        });
        Others { stop, pulls }
    }

    /// Asserts that the process lives, never took more than it may have, and gives back what the attack took.
    pub async fn assert_over(&self, name: &str) {
        let pid = self.target.server.pid();
        let peak = status(pid, "VmHWM:");
        assert!(peak < LIMIT, "{name}: the peak was {} MiB", peak / MIB);
        while self.held().await > 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The last buffers go with the connections that have them.
        let mut left = u64::MAX;
        for _ in 0..LOOKS {
            left = resident(pid).saturating_sub(self.resident_before);
            if left <= LEFT_BEHIND {
                break;
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        let (before, left) = (self.resident_before / MIB, left / MIB);
        eprintln!(
            "{name}: {before} MiB before, {} MiB at the peak, {left} MiB more than before in the end",
            peak / MIB
        );
        assert!(left <= LEFT_BEHIND / MIB, "{name}: {left} MiB stay behind");
        assert_eq!(self.ask("/readyz").await.0, 200);
        assert!(!self.target.server.output().contains("panicked"));
    }
}

pub const MIB: u64 = 1024 * 1024;

/// Those who pull an image meanwhile.
pub struct Others {
    stop: Arc<AtomicBool>,
    pulls: JoinHandle<Vec<Duration>>,
}

impl Others {
    /// Ends the pulls, all of which have to have succeeded, and says how long they took.
    pub async fn end(self, name: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.pulls.await.unwrap();
        times.sort_unstable();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        eprintln!("{name}: {} pulls by others, median {median:?}, worst {worst:?}", times.len());
    }
}

/// A control group that holds one process to its memory.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn of(pid: u32) -> Option<Self> {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let (root, file) =
            if v1.is_dir() { (v1, "memory.limit_in_bytes") } else { (v2, "memory.max") };
        let folder = root.join(format!("wharfage-test-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        std::fs::write(group.0.join(file), LIMIT.to_string()).ok()?;
        std::fs::write(group.0.join("cgroup.procs"), pid.to_string()).ok()?;
        // It is in force: the process is in it, and the kernel has taken the limit.
        let name = group.0.file_name().expect("a group has a name").to_string_lossy();
        let groups =
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process's groups");
        assert!(
            groups.lines().any(|line| line.ends_with(&*name)),
            "{pid} is not in {name}: {groups}"
        );
        assert_eq!(
            std::fs::read_to_string(group.0.join(file)).expect("the limit").trim(),
            LIMIT.to_string()
        );
        Some(group)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS:")
}

/// A line of the process's status, in bytes.
fn status(pid: u32, name: &str) -> u64 {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("the process is gone: {path}: {error}"));
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// A client that sends a request and takes next to nothing of the answer: its first bytes as soon as they come.
pub async fn deaf(authority: String, request: String) -> (TcpStream, [u8; 12]) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(authority.parse().unwrap()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    (stream, begin)
}

/// So many clients that take next to nothing of their answer, when all answers have begun.
pub async fn deaf_ones(siege: &Siege, count: usize, request: &str) -> Vec<(TcpStream, [u8; 12])> {
    let authority = siege.target.server.authority();
    let clients = (0..count).map(|_| tokio::spawn(deaf(authority.to_owned(), request.to_owned())));
    let mut answers = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        answers.push(client.await.unwrap());
    }
    answers
}

/// A connection from another address of loopback than other clients have.
pub async fn from_elsewhere(authority: &str, address: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    socket.connect(authority.parse().unwrap()).await.unwrap()
}

/// A manifest of just less than 4 MiB, its blobs pushed.
pub async fn large_manifest(repository: &Repository) -> Vec<u8> {
    let mut image = images::image(repository).await;
    image["annotations"] = serde_json::json!({"org.example.filler": "y".repeat(4_100_000)});
    image.to_string().into_bytes()
}
