//! A server process of the test bed: its output captured, its readiness read from that output, its end certain.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

/// The time that a server may take until it is ready, and the limit of any other wait in a test.
/// Generous: it only bounds a test that fails anyway.
pub const STARTUP: Duration = Duration::from_secs(120);

/// The number of lines of output that are kept, the latest ones.
const KEPT_LINES: usize = 2_000;

/// Waits for the end of its input, which comes when its keeper is dropped or the test process dies in whatever way; then
/// ends a process group, if it was given one, and removes a folder, if it was given one.
///
/// The short polls let a server end by itself; a server that doesn't is killed.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP
read -r _
if [ -n "$2" ]; then
    kill -s "$1" -- "-$2" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        kill -0 "$2" 2>/dev/null || break
        sleep 0.05
    done
    kill -s KILL -- "-$2" 2>/dev/null
fi
[ -z "$3" ] || rm -rf -- "$3"
"#;

/// Sees to it that nothing of a test outlives the test process.
#[derive(Debug)]
struct Keeper {
    watchdog: Child,
    lifeline: Option<ChildStdin>,
}

impl Keeper {
    fn new(signal: &str, group: Option<u32>, folder: Option<&Path>) -> Self {
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", signal])
            .arg(group.map_or(String::new(), |group| group.to_string()))
            .arg(folder.unwrap_or(Path::new("")))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("starting a watchdog: {error}"));
        let lifeline = watchdog.stdin.take();
        Self { watchdog, lifeline }
    }

    /// Lets the watchdog do its work; `end` is waited for meanwhile.
    fn release(&mut self, end: impl FnOnce()) {
        drop(self.lifeline.take());
        end();
        let _ = self.watchdog.wait();
    }
}

/// A temporary folder, removed when it is dropped or the test process dies.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keeper: Keeper,
}

impl Folder {
    /// Makes an empty folder.
    pub fn new() -> Self {
        let path = tempfile::Builder::new()
            .prefix("wharfage-test-")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        let keeper = Keeper::new("KILL", None, Some(&path));
        Self { path, keeper }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.keeper.release(|| {});
    }
}

/// A port of loopback that nobody gets who asks for any, while the socket lives. A server can listen on it all the same, and
/// again after its end: the socket never does, and both allow reuse of the address.
pub fn reserved_port() -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("a port that can be used again");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port of loopback");
    socket
}

/// A running server. Dropping it ends it and removes its folder.
pub struct Service {
    name: String,
    child: Child,
    output: Arc<Output>,
    keeper: Keeper,
}

impl Service {
    /// Starts `command`, to be ended by `signal` (`QUIT`, `TERM`, `KILL`); `folder` is removed after its end.
    pub fn start(name: &str, command: &mut Command, signal: &str, folder: Option<PathBuf>) -> Self {
        // The process group is what the watchdog ends, and keeps a Ctrl-C at the terminal from ending the server before the test has ended.
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name} ({command:?}): {error}"));
        let keeper = Keeper::new(signal, Some(child.id()), folder.as_deref());
        let output = Arc::new(Output::default());
        output.follow(child.stdout.take().expect("stdout is piped"));
        output.follow(child.stderr.take().expect("stderr is piped"));
        Self { name: name.to_owned(), child, output, keeper }
    }

    /// Waits until `pick` finds what it looks for in a line of the output, and returns that; the output when the server
    /// ended without.
    pub fn try_wait_for<T>(&self, pick: impl FnMut(&str) -> Option<T>) -> Result<T, String> {
        self.output.wait_for(pick)
    }

    /// Waits until `pick` finds what it looks for in a line of the output, and returns that.
    ///
    /// # Panics
    /// With the output, when the server ended or the time is up.
    pub fn wait_for<T>(&self, pick: impl FnMut(&str) -> Option<T>) -> T {
        self.try_wait_for(pick).unwrap_or_else(|why| panic!("{} is not ready: {why}", self.name))
    }

    /// The latest output, standard output and error together.
    pub fn output(&self) -> String {
        self.output.text()
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) -> ExitStatus {
        self.child.kill().expect("killing a child");
        self.child.wait().expect("waiting for a child")
    }

    /// Sends `signal` (`TERM`, `INT`) and leaves the process to it.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args(["-s", signal, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "sending SIG{signal} to {}", self.name);
    }

    /// Sends `signal` to the process and its children, which may have left its group.
    pub fn signal_all(&self, signal: &str) {
        self.signal(signal);
        for child in children(self.child.id()) {
            // One that has ended meanwhile needs no signal.
            let _ = Command::new("kill")
                .args(["-s", signal, &child.to_string()])
                .stderr(Stdio::null())
                .status();
        }
    }

    /// Sends SIGKILL to the process and its children, and waits for the end of all.
    pub fn kill_all(&mut self) {
        let children = children(self.child.id());
        self.signal_all("KILL");
        self.child.wait().expect("waiting for a child");
        let deadline = Instant::now() + STARTUP;
        while children.iter().any(|child| is_alive(*child)) {
            assert!(Instant::now() < deadline, "the children of {} have not ended", self.name);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops the process and its children (SIGSTOP) until the returned guard is dropped.
    #[must_use]
    pub fn freeze(&self) -> Frozen<'_> {
        self.signal_all("STOP");
        Frozen(self)
    }

    /// Waits for the process's own end, and until all that it wrote has been read.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("waiting for a child");
        self.output.wait_for_end();
        status
    }
}

/// A service that does nothing. Dropping this lets it go on.
pub struct Frozen<'s>(&'s Service);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal_all("CONT");
    }
}

/// The processes that `parent` has started and that live.
fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let ids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    ids.filter(|&id| state_of(id).is_some_and(|(_, ppid)| ppid == parent)).collect()
}

fn is_alive(process: u32) -> bool {
    state_of(process).is_some_and(|(state, _)| state != 'Z')
}

/// A process's state and its parent.
fn state_of(process: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name is in parentheses, and may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

impl Drop for Service {
    fn drop(&mut self) {
        // Reaping the server tells the watchdog that it has ended.
        self.keeper.release(|| {
            let _ = self.child.wait();
        });
        if std::thread::panicking() {
            eprintln!("---- output of {} ----\n{}", self.name, self.output());
        }
    }
}

/// The lines that a process has written.
#[derive(Default)]
struct Output {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<String>,
    /// The number of lines before the kept ones.
    dropped: usize,
    streams_open: usize,
}

impl Output {
    fn follow(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        self.lock().streams_open += 1;
        let output = Arc::clone(self);
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let mut lines = output.lock();
                lines.kept.push_back(text);
                if lines.kept.len() > KEPT_LINES {
                    lines.kept.pop_front();
                    lines.dropped += 1;
                }
                output.changed.notify_all();
            }
            output.lock().streams_open -= 1;
            output.changed.notify_all();
        });
    }

    fn wait_for<T>(&self, mut pick: impl FnMut(&str) -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + STARTUP;
        let mut seen = 0_usize;
        let mut lines = self.lock();
        loop {
            let dropped = lines.dropped;
            if let Some(found) =
                lines.kept.iter().skip(seen.saturating_sub(dropped)).find_map(|line| pick(line))
            {
                return Ok(found);
            }
            seen = dropped + lines.kept.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.streams_open == 0 || left.is_zero() {
                drop(lines);
                let why = if left.is_zero() { "the time is up" } else { "it ended" };
                return Err(format!("{why}; its output:\n{}", self.text()));
            }
            lines =
                self.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wait_for_end(&self) {
        let lines = self.changed.wait_while(self.lock(), |lines| lines.streams_open > 0);
        drop(lines.unwrap_or_else(PoisonError::into_inner));
    }

    fn text(&self) -> String {
        self.lock().kept.iter().map(|line| format!("{line}\n")).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
