//! Our registry and CNCF distribution, in turns on this machine: what each work costs, and the ratio.
//!
//! Each round starts a fresh process of each, ours first in odd rounds and last in even ones, so that neither has the
//! warmer machine. The medians over the rounds are printed. `bench/run` gets the peer and calls this.
//!
//! Pushes are measured against a minimal receiver, too ([`limit`]): what the machine asks for at least.

mod client;
mod limit;
mod servers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use client::Client;
use servers::{Kind, Server};
use wharfage::names::Digest;

const MIB: usize = 1024 * 1024;
const REPOSITORY: &str = "bench/work";

#[derive(Parser)]
struct Options {
    /// The peer's binary
    #[arg(long)]
    distribution: Option<PathBuf>,
    /// How often each is measured
    #[arg(long, default_value = "3")]
    rounds: usize,
    /// Only the works whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Ours alone
    #[arg(long)]
    ours: bool,
    /// Seconds that each of the reading works runs
    #[arg(long, default_value = "5")]
    seconds: u64,
    /// Instead of all that, be the minimal receiver, which writes to this folder
    #[arg(long, hide = true, requires = "listen")]
    receive: Option<PathBuf>,
    /// Where the minimal receiver listens
    #[arg(long, hide = true)]
    listen: Option<SocketAddr>,
    /// What cargo passes
    #[arg(long, hide = true)]
    bench: bool,
}

/// A figure's name with its unit, and whether more of it is better.
type Figures = Vec<(&'static str, bool, f64)>;
type Workload = fn(&Server, &Options) -> anyhow::Result<Figures>;

/// The work that the minimal receiver can do.
const PUSH: &str = "push a 256 MiB blob";

const WORKLOADS: [(&str, Workload); 8] = [
    ("start to first answer", start),
    (PUSH, push),
    ("pull a 1 GiB blob", pull),
    ("manifest GET by tag, 16 connections", manifest_get),
    ("64 KiB blob GET, 16 connections", blob_get),
    ("manifest PUT, one client", manifest_put),
    ("list 10,000 tags", tags),
    ("32 pushes of 64 MiB at once", many_pushes),
];

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let (Some(folder), Some(address)) = (&options.receive, options.listen) {
        return Ok(limit::run(address, folder)?);
    }
    let mut kinds = vec![Kind::Ours, Kind::Limit];
    if !options.ours {
        kinds.push(Kind::Distribution);
    }
    let mut results: BTreeMap<(usize, usize), BTreeMap<Kind, Vec<f64>>> = BTreeMap::new();
    let mut names: BTreeMap<(usize, usize), (&str, bool)> = BTreeMap::new();
    for round in 0..options.rounds {
        for &kind in
            if round % 2 == 0 { kinds.clone() } else { kinds.iter().rev().copied().collect() }
                .iter()
        {
            let can =
                |name: &str| name.contains(&options.only) && (kind != Kind::Limit || name == PUSH);
            let works: Vec<_> =
                WORKLOADS.iter().enumerate().filter(|(_, (name, _))| can(name)).collect();
            if works.is_empty() {
                continue;
            }
            let server = Server::start(kind, options.distribution.as_deref(), &[REPOSITORY])?;
            server.reset_peak()?;
            let mut peak: f64 = 0.0;
            for (at, (name, work)) in works {
                eprintln!("round {}: {kind:?}: {name}", round + 1);
                for (nth, (figure, more, value)) in work(&server, &options)?.into_iter().enumerate()
                {
                    names.insert((at, nth), (figure, more));
                    results.entry((at, nth)).or_default().entry(kind).or_default().push(value);
                }
                // The many pushes have a peak of their own.
                if at + 1 < WORKLOADS.len() {
                    peak = peak.max(server.peak_mib()?);
                }
            }
            if kind != Kind::Limit {
                names.insert(
                    (WORKLOADS.len(), 0),
                    ("peak memory over all but the last, MiB", false),
                );
                results
                    .entry((WORKLOADS.len(), 0))
                    .or_default()
                    .entry(kind)
                    .or_default()
                    .push(peak);
            }
        }
    }
    print(&results, &names);
    Ok(())
}

/// Prints a table of the medians. The last column is ours as a multiple of the minimal receiver's figure.
fn print(
    results: &BTreeMap<(usize, usize), BTreeMap<Kind, Vec<f64>>>,
    names: &BTreeMap<(usize, usize), (&str, bool)>,
) {
    println!("| work | figure | ours | distribution | ours is better by | limit | ours is of it |");
    println!("|---|---|---|---|---|---|---|");
    for ((at, nth), values) in results {
        let work = WORKLOADS.get(*at).map_or("all", |(name, _)| name);
        let (figure, more) = names[&(*at, *nth)];
        let of = |kind| median(values.get(&kind).cloned().unwrap_or_default());
        let (ours, peer, limit) = (of(Kind::Ours), of(Kind::Distribution), of(Kind::Limit));
        let ratio = if more { ours / peer } else { peer / ours };
        let limit = if limit.is_nan() {
            " | ".to_owned()
        } else {
            format!("{limit:.2} | {:.2}x", ours / limit)
        };
        println!("| {work} | {figure} | {ours:.2} | {peer:.2} | {ratio:.2}x | {limit} |");
    }
}

fn connect(server: &Server) -> anyhow::Result<Client> {
    Ok(Client::connect(server.address, server.authorization.clone())?)
}

/// Pushes `times` chunks as one blob, monolithically (POST, then PUT), and returns its digest.
fn push_blob(
    client: &mut Client,
    chunk: &[u8],
    times: usize,
    digest: &Digest,
) -> anyhow::Result<()> {
    let begun = client
        .request("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &[], Some(b""))?
        .expect(202)?;
    let location = begun.header("location").ok_or_else(|| anyhow::anyhow!("no Location"))?;
    // A location may be absolute, and may have a query that must be kept.
    let path = location
        .split_once("//")
        .map_or(location, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]);
    let path = format!("{path}{}digest={digest}", if path.contains('?') { '&' } else { '?' });
    let kind = [("Content-Type", "application/octet-stream")];
    let head = client.head("PUT", &path, &kind, Some((chunk.len() * times) as u64));
    client.send(&head, chunk, times)?.expect(201)?;
    Ok(())
}

/// A chunk that no other seed shares, and the digest of `times` of it.
fn content(seed: u64, size: usize, times: usize) -> (Vec<u8>, Digest) {
    use sha2::Digest as _;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut chunk = Vec::with_capacity(size);
    while chunk.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.extend_from_slice(&state.to_le_bytes());
    }
    chunk.truncate(size);
    let mut hash = sha2::Sha256::new();
    for _ in 0..times {
        hash.update(&chunk);
    }
    let digest = Digest::from_hash(wharfage::names::Algorithm::Sha256, &hash.finalize());
    (chunk, digest)
}

fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn start(server: &Server, _: &Options) -> anyhow::Result<Figures> {
    Ok(vec![("ms", false, server.started_in.as_secs_f64() * 1e3)])
}

fn push(server: &Server, _: &Options) -> anyhow::Result<Figures> {
    let mut client = connect(server)?;
    let (mut speeds, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let (chunk, digest) = content(unique(), MIB, 256);
        let (begun, cpu) = (Instant::now(), server.cpu_seconds()?);
        push_blob(&mut client, &chunk, 256, &digest)?;
        speeds.push(256.0 / begun.elapsed().as_secs_f64());
        costs.push((server.cpu_seconds()? - cpu) * 4.0);
    }
    Ok(vec![("MiB/s", true, median(speeds)), ("server CPU s/GiB", false, median(costs))])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn pull(server: &Server, _: &Options) -> anyhow::Result<Figures> {
    let mut client = connect(server)?;
    let (chunk, digest) = content(unique(), MIB, 1024);
    push_blob(&mut client, &chunk, 1024, &digest)?;
    let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
    client.request("GET", &path, &[], None)?.expect(200)?;
    let (begun, cpu) = (Instant::now(), server.cpu_seconds()?);
    let answer = client.request("GET", &path, &[], None)?.expect(200)?;
    anyhow::ensure!(answer.length == 1 << 30, "{} bytes came", answer.length);
    let took = begun.elapsed().as_secs_f64();
    Ok(vec![
        ("MiB/s", true, 1024.0 / took),
        ("server CPU s/GiB", false, server.cpu_seconds()? - cpu),
    ])
}

/// A small image whose manifest is unlike any other, pushed under `tag`.
fn push_manifest(
    client: &mut Client,
    config: &Digest,
    size: usize,
    tag: &str,
) -> anyhow::Result<()> {
    let manifest = manifest(config, size);
    let kind = [("Content-Type", "application/vnd.oci.image.manifest.v1+json")];
    client
        .request("PUT", &format!("/v2/{REPOSITORY}/manifests/{tag}"), &kind, Some(&manifest))?
        .expect(201)?;
    Ok(())
}

fn manifest(config: &Digest, size: usize) -> Vec<u8> {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{size}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{config}","size":{size}}}],"annotations":{{"n":"{}"}}}}"#,
        unique()
    )
    .into_bytes()
}

fn small_blob(client: &mut Client, size: usize) -> anyhow::Result<Digest> {
    let (chunk, digest) = content(unique(), size, 1);
    push_blob(client, &chunk, 1, &digest)?;
    Ok(digest)
}

/// Asks for one path over 16 kept connections; requests a second, and the server's microseconds for each.
fn hammer(server: &Server, path: &str, options: &Options) -> anyhow::Result<Figures> {
    let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (begun, cpu) = (Instant::now(), server.cpu_seconds()?);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    let mut client = connect(server)?;
                    let head = client.head(
                        "GET",
                        path,
                        &[("Accept", "application/vnd.oci.image.manifest.v1+json, */*")],
                        None,
                    );
                    while !stop.load(Ordering::Relaxed) {
                        client.send(&head, b"", 0)?.expect(200)?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(options.seconds));
        stop.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client failed"))?)
    })?;
    let (took, cpu) = (begun.elapsed().as_secs_f64(), server.cpu_seconds()? - cpu);
    let count = count.into_inner() as f64;
    Ok(vec![("requests/s", true, count / took), ("server CPU µs", false, cpu / count * 1e6)])
}

fn manifest_get(server: &Server, options: &Options) -> anyhow::Result<Figures> {
    let mut client = connect(server)?;
    let config = small_blob(&mut client, 1024)?;
    push_manifest(&mut client, &config, 1024, "latest")?;
    hammer(server, &format!("/v2/{REPOSITORY}/manifests/latest"), options)
}

fn blob_get(server: &Server, options: &Options) -> anyhow::Result<Figures> {
    let mut client = connect(server)?;
    let digest = small_blob(&mut client, 64 * 1024)?;
    hammer(server, &format!("/v2/{REPOSITORY}/blobs/{digest}"), options)
}

fn manifest_put(server: &Server, _: &Options) -> anyhow::Result<Figures> {
    let mut client = connect(server)?;
    let config = small_blob(&mut client, 1024)?;
    let (begun, cpu) = (Instant::now(), server.cpu_seconds()?);
    const COUNT: usize = 1000;
    for n in 0..COUNT {
        push_manifest(&mut client, &config, 1024, &format!("put-{}", n % 100))?;
    }
    let took = begun.elapsed().as_secs_f64();
    let cost = (server.cpu_seconds()? - cpu) / COUNT as f64 * 1e6;
    Ok(vec![("per second", true, COUNT as f64 / took), ("server CPU µs", false, cost)])
}

fn tags(server: &Server, _: &Options) -> anyhow::Result<Figures> {
    let mut client = connect(server)?;
    let config = small_blob(&mut client, 1024)?;
    // An image has at most 1,000 tags in ECR, so the tags are spread over ten.
    for image in 0..10 {
        let body = manifest(&config, 1024);
        let kind = [("Content-Type", "application/vnd.oci.image.manifest.v1+json")];
        for tag in 0..1000 {
            let path = format!("/v2/{REPOSITORY}/manifests/t-{image}-{tag:04}");
            client.request("PUT", &path, &kind, Some(&body))?.expect(201)?;
        }
    }
    let begun = Instant::now();
    let mut path = Some(format!("/v2/{REPOSITORY}/tags/list?n=1000"));
    let mut pages = 0;
    while let Some(next) = path.take() {
        let answer = client.request("GET", &next, &[], None)?.expect(200)?;
        let link = answer.header("link").and_then(|link| link.split_once('>'));
        path = link.map(|(link, _)| link.trim_start_matches('<')).map(|link| {
            match link.split_once("//") {
                Some((_, rest)) => rest[rest.find('/').unwrap_or(0)..].to_owned(),
                None => link.to_owned(),
            }
        });
        pages += 1;
    }
    anyhow::ensure!(pages >= 10, "{pages} pages came");
    Ok(vec![("ms for all pages of 1,000", false, begun.elapsed().as_secs_f64() * 1e3)])
}

fn many_pushes(server: &Server, _: &Options) -> anyhow::Result<Figures> {
    let contents: Vec<_> = (0..32).map(|_| content(unique(), MIB, 64)).collect();
    server.reset_peak()?;
    let (begun, cpu) = (Instant::now(), server.cpu_seconds()?);
    std::thread::scope(|scope| {
        let threads: Vec<_> = contents
            .iter()
            .map(|(chunk, digest)| {
                scope.spawn(|| push_blob(&mut connect(server)?, chunk, 64, digest))
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client failed"))?)
    })?;
    let speed = 2048.0 / begun.elapsed().as_secs_f64();
    let cost = (server.cpu_seconds()? - cpu) / 2.0;
    Ok(vec![
        ("peak memory, MiB", false, server.peak_mib()?),
        ("MiB/s", true, speed),
        ("server CPU s/GiB", false, cost),
    ])
}
