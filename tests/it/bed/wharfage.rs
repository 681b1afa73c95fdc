//! The program itself as a process: started by its command line, read by its output, ended by signals.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use aws_sdk_ecr::config::{BehaviorVersion, Credentials, Region};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::disk::SmallDisk;
use super::postgres::Postgres;
use super::s3::S3;
use super::service::{Folder, STARTUP, Service, reserved_port};
use super::tls::Certificate;

/// Returns the launch of the program; data in a temporary folder, SQLite and a folder for the
/// blobs unless said otherwise.
pub fn wharfage() -> Launch {
    Launch {
        command: vec!["serve".into()],
        folder: Folder::new(),
        disk: None,
        variables: BTreeMap::new(),
        port: Some(reserved_port()),
        address: None,
        certificate: None,
    }
}

/// A start that is being prepared.
#[derive(Debug)]
pub struct Launch {
    command: Vec<String>,
    folder: Folder,
    /// The disk mounted at the folder, for the program alone.
    disk: Option<SmallDisk>,
    variables: BTreeMap<String, String>,
    /// Where it listens; none when the system picks a port.
    port: Option<TcpSocket>,
    /// Where it listens instead.
    address: Option<SocketAddr>,
    certificate: Option<Arc<Certificate>>,
}

impl Launch {
    /// Lets it speak TLS. Clients of the test reach it through a tunnel, and by TLS at [`Wharfage::tls_authority`].
    pub fn tls(mut self, certificate: &Arc<Certificate>) -> Self {
        self.certificate = Some(Arc::clone(certificate));
        self.arg("--tls-cert")
            .arg(&certificate.file("tls.crt"))
            .arg("--tls-key")
            .arg(&certificate.file("tls.key"))
    }

    /// Runs `wharfage up FOLDER` instead of `wharfage serve`.
    pub fn up(mut self, folder: impl AsRef<Path>) -> Self {
        self.command = vec!["up".into(), folder.as_ref().to_str().expect("a path in UTF-8").into()];
        self
    }

    /// Lets the system pick each listener's port: of several registries only the first would listen where a port is kept for
    /// it. Such a program can't be started again on the same port.
    pub fn on_any_ports(mut self) -> Self {
        self.port = None;
        self
    }

    /// Listens on an address that the test knows to be free, and the ports after it, too.
    pub fn listening_on(mut self, address: SocketAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Adds a flag or its value to the command line.
    pub fn arg(mut self, arg: &str) -> Self {
        self.command.push(arg.into());
        self
    }

    /// Sets an environment variable of the process.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Keeps metadata in a fresh database of the test's PostgreSQL and bytes in a fresh bucket of the test's S3.
    pub async fn on_postgres_and_s3(self) -> Self {
        self.on_database(super::postgres()).await.on_s3(&super::s3().bucket().await)
    }

    /// Keeps metadata in a fresh database of this server.
    pub async fn on_database(self, postgres: &Postgres) -> Self {
        self.env("WHARFAGE_DATABASE_URL", &postgres.database().await)
    }

    /// Keeps its data on a disk of so many MiB.
    pub fn on_small_disk(mut self, mib: u32) -> Self {
        self.disk = Some(SmallDisk::mount(self.folder.path(), mib));
        self
    }

    /// Keeps bytes in this bucket.
    pub fn on_s3(self, s3: &S3) -> Self {
        self.env("WHARFAGE_S3_BUCKET", &s3.bucket)
            .env("WHARFAGE_S3_REGION", &s3.region)
            .env("WHARFAGE_S3_ENDPOINT", &s3.endpoint)
            .env("WHARFAGE_S3_ACCESS_KEY_ID", &s3.access_key)
            .env("WHARFAGE_S3_SECRET_ACCESS_KEY", &s3.secret_key)
    }

    /// Starts the program on a free port of loopback and waits until it serves.
    pub async fn start(self) -> Wharfage {
        let (service, tls_authority) = self.run().await;
        let authority = match &self.certificate {
            Some(certificate) => certificate.tunnel(tls_authority.clone()).await.to_string(),
            None => tls_authority.clone(),
        };
        Wharfage { launch: self, service: Some(service), authority, tls_authority }
    }

    /// Starts the program and waits for nothing.
    pub fn begin(&self) -> Service {
        Service::start("wharfage", &mut self.command_line(), "KILL", None)
    }

    fn command_line(&self) -> Command {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let kept = self
            .port
            .as_ref()
            .map_or(any, |port| port.local_addr().expect("a bound socket has an address"));
        let listen = self.address.unwrap_or(kept);
        let mut command = match &self.disk {
            None => program(&self.variables),
            Some(disk) => disk.inside(&program(&self.variables)),
        };
        command
            .args(&self.command)
            .arg("--data")
            .arg(self.folder.path())
            .arg("--listen")
            .arg(listen.to_string());
        command
    }

    async fn run(&self) -> (Service, String) {
        let mut command = self.command_line();
        // The test's runtime may serve what the program calls at its start, so its thread isn't blocked.
        tokio::task::spawn_blocking(move || {
            let service = Service::start("wharfage", &mut command, "KILL", None);
            let authority = service.wait_for(|line| {
                let url = line.strip_prefix("Serving ")?.split([' ', ',']).next()?;
                Some(url.split_once("://")?.1.trim_end_matches(['.', '/']).to_owned())
            });
            (service, authority)
        })
        .await
        .expect("starting the program")
    }
}

/// A running program. Dropping it kills it and removes its data.
pub struct Wharfage {
    // In this order: the program ends before its data go.
    service: Option<Service>,
    launch: Launch,
    authority: String,
    tls_authority: String,
}

impl Wharfage {
    /// Starts another replica on the same database, bucket and root key.
    pub async fn replica(&self) -> Self {
        let (command, variables) = (self.launch.command.clone(), self.launch.variables.clone());
        let folder = Folder::new();
        let port = Some(reserved_port());
        let launch = Launch {
            command,
            folder,
            disk: None,
            variables,
            port,
            address: None,
            certificate: None,
        };
        let key = "registries/default/root-key.json";
        let copy = launch.folder.path().join(key);
        std::fs::create_dir_all(copy.parent().expect("a path of several segments"))
            .expect("a folder");
        std::fs::copy(self.data().join(key), copy).expect("a copy of the root key");
        launch.start().await
    }

    /// Starts another process on the same data, and waits for nothing.
    pub fn rival(&self) -> Service {
        let mut command = program(&self.launch.variables);
        command
            .args(&self.launch.command)
            .arg("--data")
            .arg(self.data())
            .args(["--listen", "127.0.0.1:0"]);
        Service::start("wharfage", &mut command, "KILL", None)
    }

    /// `HOST:PORT`, as image references begin.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `HOST:PORT` of the listener itself, where it speaks TLS if it does.
    pub fn tls_authority(&self) -> &str {
        &self.tls_authority
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.service().id()
    }

    /// `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        self.launch.disk.as_ref().map_or(self.launch.folder.path(), SmallDisk::path)
    }

    /// The disk that the data are on.
    pub fn disk(&self) -> &SmallDisk {
        self.launch.disk.as_ref().expect("the program is on a small disk")
    }

    /// Returns whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.service.as_mut().is_some_and(Service::is_running)
    }

    /// The output of the latest start so far.
    pub fn output(&self) -> String {
        self.service().output()
    }

    /// Waits until `pick` finds what it looks for in a line of the output, from its beginning, and returns that.
    pub fn wait_for<T>(&self, pick: impl FnMut(&str) -> Option<T>) -> T {
        self.service().wait_for(pick)
    }

    /// The root key: its id and its secret.
    pub fn root_key(&self) -> (String, String) {
        let given = |name: &str| self.launch.variables.get(name).cloned();
        if let (Some(id), Some(secret)) =
            (given("WHARFAGE_ACCESS_KEY_ID"), given("WHARFAGE_SECRET_ACCESS_KEY"))
        {
            return (id, secret);
        }
        let path = self.data().join("aws/credentials");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let value = |name: &str| {
            let values = text
                .lines()
                .filter_map(|line| line.split_once('=').filter(|(key, _)| key.trim() == name));
            values
                .map(|(_, value)| value.trim().to_owned())
                .next()
                .unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        (value("aws_access_key_id"), value("aws_secret_access_key"))
    }

    /// An ECR client that signs with the root key.
    pub fn ecr(&self) -> aws_sdk_ecr::Client {
        let (id, secret) = self.root_key();
        let config = aws_sdk_ecr::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("local-1"))
            .endpoint_url(self.url())
            .credentials_provider(Credentials::new(id, secret, None, None, "test"))
            .build();
        aws_sdk_ecr::Client::from_conf(config)
    }

    /// Returns what `wharfage env` prints for the data folder, and `arguments`.
    pub fn env(&self, arguments: &[&str]) -> String {
        let printed = program(&BTreeMap::new())
            .arg("env")
            .arg("--data")
            .arg(self.data())
            .args(arguments)
            .output();
        let printed = printed.expect("running wharfage env");
        assert!(
            printed.status.success(),
            "wharfage env: {}",
            String::from_utf8_lossy(&printed.stderr)
        );
        String::from_utf8(printed.stdout).expect("UTF-8")
    }

    /// Runs another command beside the program, on the same data folder and in the same environment.
    pub fn command(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = program(&self.launch.variables);
        command.args(arguments).arg("--data").arg(self.data()).output().expect("running wharfage")
    }

    /// The PostgreSQL database that it was started on, if it was.
    pub fn database_url(&self) -> Option<&str> {
        self.launch.variables.get("WHARFAGE_DATABASE_URL").map(String::as_str)
    }

    /// Kills the program as a power cut would, and waits for its end.
    pub async fn kill9(&mut self) {
        let mut service = self.service.take().expect("the program runs");
        let end = move || service.kill();
        tokio::task::spawn_blocking(end).await.expect("killing the program");
    }

    /// Sends the program a signal, and waits for nothing.
    pub fn signal(&self, signal: &str) {
        self.service().signal(signal);
    }

    /// Asks the program to end (`TERM`, or `INT` as Ctrl-C does) and waits until it has; with its output.
    pub async fn stop(&mut self, signal: &'static str) -> (ExitStatus, String) {
        let mut service = self.service.take().expect("the program runs");
        let end = move || {
            service.signal(signal);
            let status = service.wait();
            (status, service.output())
        };
        tokio::task::spawn_blocking(end).await.expect("stopping the program")
    }

    /// Starts the program again after its end, on the same data and port.
    pub async fn start_again(&mut self) {
        assert!(self.service.is_none(), "the program still runs");
        assert!(self.launch.port.is_some(), "no port is kept for the program");
        let (service, authority) = self.launch.run().await;
        assert_eq!(authority, self.tls_authority);
        self.service = Some(service);
    }

    fn service(&self) -> &Service {
        self.service.as_ref().expect("the program runs")
    }
}

/// The program with nothing in its environment but `variables`.
fn program(variables: &BTreeMap<String, String>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharfage"));
    command.env_clear().env("PATH", "/usr/bin:/bin").envs(variables);
    command
}

/// Returns whether the program answers at all.
async fn answers(wharfage: &Wharfage) -> bool {
    let answer = wharfage.ecr().describe_registry().send().await;
    answer.map_or_else(|error| error.raw_response().is_some(), |_| true)
}

#[tokio::test]
async fn a_program_that_was_killed_starts_again_where_it_was() {
    for launch in [wharfage(), wharfage().on_postgres_and_s3().await] {
        let mut program = launch.start().await;
        let (key, env) = (program.root_key(), program.env(&[]));
        assert!(env.contains(&format!("WHARFAGE_REGISTRY={}", program.authority())), "{env}");
        assert!(answers(&program).await);
        program.kill9().await;
        assert!(!answers(&program).await);
        program.start_again().await;
        assert_eq!((program.root_key(), program.env(&[])), (key, env));
        assert!(answers(&program).await);
    }
}

#[tokio::test]
async fn a_program_that_is_asked_to_end_ends_well() {
    for signal in ["TERM", "INT", "HUP"] {
        let mut program = wharfage().start().await;
        let (status, output) = program.stop(signal).await;
        assert!(status.success(), "SIG{signal}: {status}\n{output}");
    }
}

#[tokio::test]
async fn nothing_is_answered_before_the_files_that_env_reads_exist() {
    let manifests = Folder::new();
    let registry = "apiVersion: wharfage.dev/v1alpha1\nkind: Registry\nmetadata: {name: home}\nspec: {managed: {}}\n";
    std::fs::write(manifests.path().join("registry.yaml"), registry).unwrap();
    for launch in [wharfage(), wharfage().up(manifests.path())] {
        // A pipe in the place of the first of the files holds their writer back until the other end is open. The file has the
        // process's id in its name, so a shell makes the pipe before it becomes the program.
        let aws = launch.folder.path().join("aws");
        std::fs::create_dir_all(&aws).unwrap();
        let direct = launch.command_line();
        let mut command = Command::new("sh");
        command.env_clear().env("PATH", "/usr/bin:/bin");
        command.args(["-c", "mkfifo \"$0/credentials.$$.new\" && exec \"$@\""]).arg(&aws);
        command.arg(direct.get_program()).args(direct.get_args());
        let mut program = Service::start("wharfage", &mut command, "KILL", None);
        let address = launch.port.as_ref().unwrap().local_addr().unwrap();
        let connect = async {
            loop {
                match tokio::net::TcpStream::connect(address).await {
                    Ok(client) => return client,
                    Err(_not_yet) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                }
            }
        };
        let connected = tokio::time::timeout(STARTUP, connect).await;
        let mut client = connected.unwrap_or_else(|_| panic!("{}", program.output()));
        client
            .write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let pipe = std::fs::read_dir(&aws).unwrap().next().unwrap().unwrap().path();
        // Opening the pipe waits for the program to come to it.
        let (opened, writing) = std::sync::mpsc::channel();
        std::thread::spawn(move || opened.send(std::fs::File::open(pipe)));
        let writing =
            tokio::task::spawn_blocking(move || writing.recv_timeout(STARTUP)).await.unwrap();
        let _pipe = writing.unwrap_or_else(|_| panic!("{}", program.output())).unwrap();
        // A pipe cannot be synced, so the start fails now.
        let mut answer = Vec::new();
        // The connection may be reset, as nobody read the request.
        let _ = client.read_to_end(&mut answer).await;
        assert_eq!(String::from_utf8_lossy(&answer), "", "{}", program.output());
        let status = tokio::task::spawn_blocking(move || program.wait()).await.unwrap();
        assert!(!status.success());
    }
}

#[tokio::test]
async fn a_stop_during_the_start_ends_it_well() {
    use sqlx::Connection as _;
    use sqlx::migrate::Migrate as _;

    let manifests = Folder::new();
    let registry = "apiVersion: wharfage.dev/v1alpha1\nkind: Registry\nmetadata: {name: home}\n\
                    spec: {managed: {database: {postgres: {connectionSecretRef: {name: pg, namespace: w}}}}}\n";
    std::fs::write(manifests.path().join("registry.yaml"), registry).unwrap();
    for signal in ["TERM", "INT", "HUP"] {
        for launch in [wharfage(), wharfage().up(manifests.path())] {
            let url = super::postgres().database().await;
            // Another replica migrates the schema: the start waits for its end, without its own
            // time limit.
            let mut replica = sqlx::PgConnection::connect(&url).await.unwrap();
            replica.lock().await.unwrap();
            let launch = launch.env("WHARFAGE_DATABASE_URL", &url);
            let mut program = launch.begin();
            let waits = "SELECT count(*) > 0 FROM pg_stat_activity \
                         WHERE datname = current_database() AND wait_event = 'advisory'";
            let waiting = async {
                while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut replica).await.unwrap() {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            };
            let waited = tokio::time::timeout(STARTUP, waiting).await;
            waited.unwrap_or_else(|_| panic!("{}", program.output()));
            program.signal(signal);
            let (status, output) = (program.wait(), program.output());
            assert!(
                status.success() && !output.contains("Serving"),
                "SIG{signal}: {status}\n{output}"
            );
        }
    }
}

#[test]
fn a_program_that_was_started_to_outlive_its_terminal_does() {
    // As nohup starts it.
    let data = Folder::new();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap '' HUP; exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_wharfage"),
        "serve",
        "--listen",
        "127.0.0.1:0",
    ]);
    let program = Service::start("wharfage", command.arg("--data").arg(data.path()), "KILL", None);
    program.wait_for(|line| line.starts_with("Serving ").then_some(()));
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    assert_eq!(
        u64::from_str_radix(ignored.trim(), 16).unwrap() & 1,
        1,
        "SIGHUP stays ignored: {status}"
    );
}
