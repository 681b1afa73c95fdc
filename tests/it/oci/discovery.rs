//! "Content discovery" of distribution-spec 1.1: tags and referrers, and the catalog.

use reqwest::Method;
use serde_json::{Value, json};
use wharfage::names::Digest;

use super::client::{Answer, Backend, Repository, unique};
use super::images::{self, CONFIG, IMAGE, INDEX, descriptor};

on_both_backends!(
    tags_are_listed_in_byte_order,
    tags_are_listed_in_pages,
    a_repository_without_tags_has_an_empty_list,
    a_subject_without_referrers_has_an_empty_index,
    referrers_are_listed_with_type_and_annotations,
    referrers_are_filtered_by_artifact_type,
    referrers_come_in_pages_that_clients_can_read,
    a_deleted_referrer_is_not_listed,
    repositories_are_listed_in_pages,
);

fn next(answer: &Answer) -> Option<String> {
    let link = answer.headers.get("Link")?.to_str().unwrap();
    let (target, relation) = link.split_once(">; ").unwrap();
    assert_eq!(relation, "rel=\"next\"");
    Some(target.strip_prefix('<').unwrap().to_owned())
}

async fn tags(repository: &Repository, query: &str) -> (Vec<String>, Option<String>) {
    let answer = repository.get(&format!("/v2/{}/tags/list{query}", repository.name)).await;
    answer.assert_status(200);
    assert_eq!(answer.header("Content-Type"), "application/json");
    assert_eq!(answer.json()["name"], repository.name);
    (serde_json::from_value(answer.json()["tags"].clone()).unwrap(), next(&answer))
}

async fn tagged(repository: &Repository, tags: &[&str]) {
    let manifest = images::bytes(&images::image(repository).await);
    for tag in tags {
        repository.put_ok(tag, &manifest).await;
    }
}

async fn tags_are_listed_in_byte_order(backend: Backend) {
    let repository = backend.repository().await;
    tagged(&repository, &["b", "a", "B", "A", "_x", "a.1", "a-1", "10", "9"]).await;
    let (listed, more) = tags(&repository, "").await;
    assert_eq!(listed, ["10", "9", "A", "B", "_x", "a", "a-1", "a.1", "b"]);
    assert_eq!(more, None);
}

async fn tags_are_listed_in_pages(backend: Backend) {
    let repository = backend.repository().await;
    let all = ["a", "b", "c", "d", "e"];
    tagged(&repository, &all).await;
    let (first, link) = tags(&repository, "?n=2").await;
    assert_eq!(first, ["a", "b"]);
    let mut seen = first;
    let mut link = link;
    while let Some(target) = link {
        let page = repository.get(&target).await;
        seen.extend(
            serde_json::from_value::<Vec<String>>(page.assert_status(200).json()["tags"].clone())
                .unwrap(),
        );
        link = next(&page);
    }
    assert_eq!(seen, all);
    assert_eq!(tags(&repository, "?last=c").await, (vec!["d".to_owned(), "e".to_owned()], None));
    assert_eq!(tags(&repository, "?n=1&last=bb").await.0, ["c"]);
    assert_eq!(tags(&repository, "?n=5").await.1, None, "the last page has no link");
    assert_eq!(
        tags(&repository, "?n=5000").await.0,
        all,
        "a page may be asked for that is longer than any"
    );
    assert_eq!(tags(&repository, "?n=0").await, (vec![], None));
    for bad in ["?n=-1", "?n=x", "?n="] {
        let refused = repository.get(&format!("/v2/{}/tags/list{bad}", repository.name)).await;
        let text = refused.assert_refused(405, "UNSUPPORTED");
        assert!(text.starts_with("Invalid parameter at 'n'"), "{text}");
    }
}

async fn a_repository_without_tags_has_an_empty_list(backend: Backend) {
    let repository = backend.repository().await;
    assert_eq!(tags(&repository, "").await, (vec![], None));
    images::pushed(&repository).await;
    assert_eq!(tags(&repository, "").await, (vec![], None));
}

async fn referrers(repository: &Repository, subject: &Digest, query: &str) -> Answer {
    let answer =
        repository.get(&format!("/v2/{}/referrers/{subject}{query}", repository.name)).await;
    answer.assert_status(200);
    assert_eq!(answer.header("Content-Type"), INDEX);
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(INDEX)));
    answer
}

fn entries(answer: &Answer) -> Vec<Value> {
    answer.json()["manifests"].as_array().unwrap().clone()
}

async fn a_subject_without_referrers_has_an_empty_index(backend: Backend) {
    let repository = backend.repository().await;
    assert!(entries(&referrers(&repository, &Digest::sha256(b"nobody"), "").await).is_empty());
    let bad = repository.get(&format!("/v2/{}/referrers/sha256:bad", repository.name)).await;
    bad.assert_refused(400, "DIGEST_INVALID");
}

async fn referrers_are_listed_with_type_and_annotations(backend: Backend) {
    let repository = backend.repository().await;
    let (_, subject) = images::pushed(&repository).await;
    let with_type = images::artifact(&repository, &subject, "application/x-sbom").await;
    let mut by_config = images::image(&repository).await;
    by_config["subject"] = descriptor(IMAGE, &subject, 5);
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": descriptor(IMAGE, &subject, 5),
        "annotations": {"org.example.key": "index"},
    });
    let mut expected = Vec::new();
    for (manifest, artifact_type) in
        [(&with_type, Some("application/x-sbom")), (&by_config, Some(CONFIG)), (&index, None)]
    {
        let bytes = images::bytes(manifest);
        let digest = repository.put_ok(Digest::sha256(&bytes), &bytes).await;
        let mut entry = descriptor(manifest["mediaType"].as_str().unwrap(), &digest, bytes.len());
        if let Some(artifact_type) = artifact_type {
            entry["artifactType"] = json!(artifact_type);
        }
        if !manifest["annotations"].is_null() {
            entry["annotations"] = manifest["annotations"].clone();
        }
        expected.push(entry);
    }
    expected.sort_by_key(|entry| entry["digest"].to_string());
    assert_eq!(entries(&referrers(&repository, &subject, "").await), expected);
}

async fn referrers_are_filtered_by_artifact_type(backend: Backend) {
    let repository = backend.repository().await;
    let subject = Digest::sha256(&unique(8));
    for artifact_type in ["application/x-sbom", "application/x-signature", "application/x+json"] {
        let manifest = images::bytes(&images::artifact(&repository, &subject, artifact_type).await);
        repository.put_ok(Digest::sha256(&manifest), &manifest).await;
    }
    for (query, found) in [
        ("?artifactType=application/x-sbom", "application/x-sbom"),
        ("?artifactType=application%2Fx-signature", "application/x-signature"),
        ("?artifactType=application/x+json", "application/x+json"),
        ("?artifactType=application/x%2Bjson", "application/x+json"),
    ] {
        let answer = referrers(&repository, &subject, query).await;
        assert_eq!(answer.header("OCI-Filters-Applied"), "artifactType");
        let types: Vec<Value> =
            entries(&answer).iter().map(|entry| entry["artifactType"].clone()).collect();
        assert_eq!(types, [found]);
    }
    let none = referrers(&repository, &subject, "?artifactType=application/x-none").await;
    assert!(entries(&none).is_empty());
    let unfiltered = referrers(&repository, &subject, "").await;
    assert_eq!(entries(&unfiltered).len(), 3);
    assert!(unfiltered.headers.get("OCI-Filters-Applied").is_none());
}

async fn referrers_come_in_pages_that_clients_can_read(backend: Backend) {
    let repository = backend.repository().await;
    let subject = Digest::sha256(&unique(8));
    let mut pushed = Vec::new();
    let mut artifact = images::artifact(&repository, &subject, "application/x+large").await;
    for n in 0..100 {
        artifact["annotations"] = json!({"large": format!("{n:0>60000}")});
        let bytes = images::bytes(&artifact);
        pushed.push(repository.put_ok(Digest::sha256(&bytes), &bytes).await.to_string());
    }
    pushed.sort();
    let mut found = Vec::new();
    let mut link = Some(format!(
        "/v2/{}/referrers/{subject}?artifactType=application/x%2Blarge",
        repository.name
    ));
    let mut pages = 0;
    while let Some(target) = link {
        let page = repository.get(&target).await;
        page.assert_status(200);
        assert!(page.body.len() <= 4 * 1024 * 1024);
        assert_eq!(page.header("OCI-Filters-Applied"), "artifactType");
        found.extend(
            entries(&page).iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()),
        );
        link = next(&page);
        pages += 1;
    }
    assert_eq!((found, pages), (pushed, 2));
}

async fn a_deleted_referrer_is_not_listed(backend: Backend) {
    let repository = backend.repository().await;
    let (_, subject) = images::pushed(&repository).await;
    let artifact =
        images::bytes(&images::artifact(&repository, &subject, "application/x-sbom").await);
    let digest = repository.put_ok("sbom", &artifact).await;
    assert_eq!(entries(&referrers(&repository, &subject, "").await).len(), 1);
    repository.delete(&repository.manifest(&digest)).await.assert_status(202);
    assert!(entries(&referrers(&repository, &subject, "").await).is_empty());
    repository.delete(&repository.manifest(&subject)).await.assert_status(202);
}

async fn repositories_are_listed_in_pages(backend: Backend) {
    let server = backend.own_server().await;
    let repository = Repository::create(&server).await;
    let mut names = vec![repository.name.clone()];
    for _ in 0..4 {
        names.push(repository.another().await);
    }
    names.sort();
    let mut found = Vec::new();
    let mut link = Some("/v2/_catalog?n=2".to_owned());
    while let Some(target) = link {
        let page = repository.get(&target).await;
        let listed: Vec<String> =
            serde_json::from_value(page.assert_status(200).json()["repositories"].clone()).unwrap();
        assert!(listed.len() <= 2);
        found.extend(listed);
        link = next(&page);
    }
    assert_eq!(found, names);
    let all = repository.get("/v2/_catalog").await;
    assert_eq!(all.json()["repositories"].as_array().unwrap().len(), 5);
    assert!(next(&all).is_none());
    let none = repository.get("/v2/_catalog?n=0").await;
    assert!(none.json()["repositories"].as_array().unwrap().is_empty() && next(&none).is_none());
    repository.anonymous(Method::GET, "/v2/_catalog").send().await.assert_status(401);
}
