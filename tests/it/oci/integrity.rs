//! Tests that acknowledged content stays unchanged, lost content can be pushed again, and refused
//! content leaves nothing behind.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wharfage::names::Digest;

use super::client::{Repository, unique, with_parameter};
use crate::bed;
use crate::bed::service::STARTUP;
use crate::bed::wharfage::Wharfage;

/// A PUT whose last bytes have not been sent.
struct Unfinished {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Unfinished {
    async fn begin(repository: &Repository, location: &str, bytes: &[u8], sent: usize) -> Self {
        let authority = repository.base().strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(authority).await.unwrap();
        let path = location.strip_prefix(repository.base()).unwrap_or(location);
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            with_parameter(path, "digest", Digest::sha256(bytes)),
            repository.authorization(),
            bytes.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&bytes[..sent]).await.unwrap();
        Self { stream, rest: bytes[sent..].to_vec() }
    }

    /// Sends the rest; returns the answer's status.
    async fn end(mut self) -> u16 {
        // A server that has refused already may have closed its side.
        let _ = self.stream.write_all(&self.rest).await;
        let mut answer = Vec::new();
        let _ = self.stream.read_to_end(&mut answer).await;
        let status =
            answer.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
        status.unwrap_or_else(|| panic!("no answer but {:?}", String::from_utf8_lossy(&answer)))
    }
}

/// The files of a registry's blobs.
fn files(server: &Wharfage) -> Vec<PathBuf> {
    let fan_out = fs::read_dir(server.data().join("registries/default/blobs")).unwrap();
    let files = fan_out.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

async fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + STARTUP;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn of_two_puts_to_one_session_at_two_replicas_one_wins_and_stays() {
    let server = bed::wharfage().on_postgres_and_s3().await.start().await;
    let replica = server.replica().await;
    let repository = Repository::create(&server).await;
    let there = repository.at(&replica.url());
    let (one, other) = (unique(300_000), unique(300_000));
    let location = repository.begin().await;
    let late = Unfinished::begin(&there, &location, &other, 299_999).await;
    let answers = [
        (&one, repository.finish(&location, Digest::sha256(&one), &one).await.status.as_u16()),
        (&other, late.end().await),
    ];
    let won: Vec<_> = answers.iter().filter(|(_, status)| *status == 201).collect();
    assert_eq!(won.len(), 1, "{:?}", answers.map(|(_, status)| status));
    for (bytes, status) in answers {
        let read = there.get(&there.blob(&Digest::sha256(bytes))).await;
        match status {
            201 => assert_eq!(read.assert_status(200).body, *bytes),
            404 | 409 => drop(read.assert_refused(404, "BLOB_UNKNOWN")),
            other => panic!("{other}"),
        }
        // A client that pushes the same bytes elsewhere shares them, and gets what it pushed.
        let sibling = there.sibling().await;
        let digest = sibling.push_blob(bytes).await;
        assert_eq!(sibling.get(&sibling.blob(&digest)).await.assert_status(200).body, *bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_process_uses_is_refused_whatever_the_database() {
    let on_postgres =
        bed::wharfage().env("WHARFAGE_DATABASE_URL", &bed::postgres().database().await);
    for launch in [bed::wharfage(), on_postgres] {
        let server = launch.start().await;
        let (status, output) = tokio::task::block_in_place(|| {
            let mut rival = server.rival();
            (rival.wait(), rival.output())
        });
        let holder =
            format!("is in use by wharfage serve, process {}: stop that one", server.pid());
        assert!(!status.success() && output.contains(&holder), "{status}: {output}");
        assert!(
            server.env(&[]).contains(server.authority()),
            "the files for clients stay as they are"
        );
    }
}

#[tokio::test]
async fn a_lost_or_damaged_blob_is_unknown_until_it_is_pushed_again() {
    let server = bed::wharfage().start().await;
    let repository = Repository::create(&server).await;
    let sibling = repository.sibling().await;
    repository
        .ecr()
        .put_account_setting()
        .name("BLOB_MOUNTING")
        .value("ENABLED")
        .send()
        .await
        .unwrap();
    for damage in ["lost", "short", "empty"] {
        let bytes = unique(5_000);
        let before = files(&server);
        let digest = repository.push_blob(&bytes).await;
        sibling.push_blob(&bytes).await;
        wait_for("the second copy is deleted", || files(&server).len() == before.len() + 1).await;
        let file = files(&server).into_iter().find(|file| !before.contains(file)).unwrap();
        match damage {
            "lost" => fs::remove_file(&file).unwrap(),
            "short" => fs::write(&file, &bytes[..4_999]).unwrap(),
            _ => fs::write(&file, b"").unwrap(),
        }
        let blob = repository.blob(&digest);
        repository.get(&blob).await.assert_refused(404, "BLOB_UNKNOWN");
        repository.head(&blob).await.assert_status(404);
        sibling.head(&sibling.blob(&digest)).await.assert_status(404);
        let layers =
            repository.ecr().batch_check_layer_availability().repository_name(&repository.name);
        let layers = layers.layer_digests(digest.as_str()).send().await.unwrap();
        assert_eq!(layers.layers()[0].layer_availability().unwrap().as_str(), "UNAVAILABLE");
        let mount = format!(
            "{}?mount={digest}&from={}",
            repository.sibling().await.uploads(),
            repository.name
        );
        repository.post(&mount).await.assert_status(202);

        assert_eq!(sibling.push_blob(&bytes).await, digest);
        for repository in [&repository, &sibling] {
            let blob = repository.blob(&digest);
            repository.head(&blob).await.assert_status(200);
            assert_eq!(repository.get(&blob).await.assert_status(200).body, bytes, "{damage}");
        }
        wait_for("what was left of it is deleted", || files(&server).len() == before.len() + 1)
            .await;
    }
}

#[tokio::test]
async fn a_push_heals_what_nobody_has_read_since_it_was_lost() {
    let server = bed::wharfage().start().await;
    let repository = Repository::create(&server).await;
    let bytes = unique(5_000);
    let digest = repository.push_blob(&bytes).await;
    fs::remove_file(&files(&server)[0]).unwrap();
    repository.push_blob(&bytes).await;
    assert_eq!(repository.get(&repository.blob(&digest)).await.assert_status(200).body, bytes);
}

#[tokio::test]
async fn a_mount_of_what_is_lost_asks_for_the_bytes() {
    let server = bed::wharfage().start().await;
    let repository = Repository::create(&server).await;
    let (target, bytes) = (repository.sibling().await, unique(5_000));
    let digest = repository.push_blob(&bytes).await;
    repository
        .ecr()
        .put_account_setting()
        .name("BLOB_MOUNTING")
        .value("ENABLED")
        .send()
        .await
        .unwrap();
    fs::remove_file(&files(&server)[0]).unwrap();
    // Nobody has read it since.
    let mount = format!("{}?mount={digest}&from={}", target.uploads(), repository.name);
    let answer = target.post(&mount).await;
    answer.assert_status(202);
    target.head(&target.blob(&digest)).await.assert_status(404);
    target.finish(answer.header("Location"), &digest, &bytes).await.assert_status(201);
    for repository in [&repository, &target] {
        assert_eq!(repository.get(&repository.blob(&digest)).await.assert_status(200).body, bytes);
    }
    target.post(&mount).await.assert_status(201);
}

#[tokio::test]
async fn a_blob_whose_disk_is_back_needs_no_push() {
    let server = bed::wharfage().start().await;
    let repository = Repository::create(&server).await;
    let bytes = unique(5_000);
    let blob = repository.blob(&repository.push_blob(&bytes).await);
    let file = files(&server).remove(0);
    let away = file.with_extension("away");
    fs::rename(&file, &away).unwrap();
    repository.get(&blob).await.assert_refused(404, "BLOB_UNKNOWN");
    fs::rename(&away, &file).unwrap();
    repository.head(&blob).await.assert_status(200);
    assert_eq!(repository.get(&blob).await.assert_status(200).body, bytes);
}

#[tokio::test]
async fn a_refused_whole_push_leaves_nothing() {
    let server = bed::wharfage().start().await;
    let repository = Repository::create(&server).await;
    let bytes = unique(2_000_000);
    let wrong = format!("{}?digest={}", repository.uploads(), Digest::sha256(b"other"));
    let refused = repository.call(reqwest::Method::POST, &wrong).body(bytes.clone()).send().await;
    refused.assert_refused(400, "DIGEST_INVALID");
    wait_for("the bytes are deleted", || files(&server).is_empty()).await;

    // A client that breaks off.
    let authority = repository.base().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let head = format!(
        "POST {}?digest={} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {}\r\nContent-Length: {}\r\n\r\n",
        repository.uploads(),
        Digest::sha256(&bytes),
        repository.authorization(),
        bytes.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&bytes[..1_500_000]).await.unwrap();
    wait_for("the bytes are being written", || !files(&server).is_empty()).await;
    drop(stream);
    wait_for("the bytes are deleted", || files(&server).is_empty()).await;
}

#[tokio::test]
async fn what_is_written_after_a_cancellation_is_deleted() {
    let server = bed::wharfage().start().await;
    let repository = Repository::create(&server).await;
    for whole in [false, true] {
        let bytes = unique(3_000_000);
        let location = repository.begin().await;
        let put = Unfinished::begin(&repository, &location, &bytes, 1_500_000).await;
        wait_for("the bytes are being written", || !files(&server).is_empty()).await;
        if whole {
            repository
                .ecr()
                .delete_repository()
                .repository_name(&repository.name)
                .send()
                .await
                .unwrap();
        } else {
            repository.delete(&location).await.assert_status(204);
        }
        assert_eq!(put.end().await, 404);
        wait_for("the bytes are deleted", || files(&server).is_empty()).await;
    }
}
