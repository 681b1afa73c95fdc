//! "Pushing manifests" of distribution-spec 1.1, and what Amazon ECR checks.

use aws_sdk_ecr::types::{ImageIdentifier, ImageTagMutability, TargetStorageClass};
use reqwest::Method;
use serde_json::json;
use wharfage::names::{Algorithm, Digest};

use super::client::{Backend, unique};
use super::images::{self, CONFIG, IMAGE, INDEX, LAYER, descriptor};

on_both_backends!(
    a_manifest_is_put_by_tag_and_its_location_pulls,
    a_manifest_is_put_by_digest,
    a_manifest_with_another_digest_is_400,
    tags_may_come_as_parameters,
    a_manifest_by_sha512_has_its_tags_as_parameters,
    a_tag_moves_and_the_old_image_stays,
    an_immutable_tag_is_refused_in_ecrs_words,
    a_subject_need_not_exist_and_is_confirmed,
    what_a_manifest_refers_to_has_to_be_in_the_repository,
    a_foreign_layer_need_not_be_there,
    a_layer_that_is_nowhere_is_missed,
    a_size_that_is_not_the_blobs_is_refused,
    a_manifest_without_media_type_has_that_of_its_last_push,
    an_index_restores_its_archived_children_and_their_layers_are_served_again,
    every_kind_of_manifest_is_taken,
    a_manifest_that_is_none_is_refused,
    a_manifest_that_is_too_large_is_413,
    the_content_types_parameters_are_ignored,
    a_large_manifest_is_taken,
);

async fn a_manifest_is_put_by_tag_and_its_location_pulls(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = images::bytes(&images::image(&repository).await);
    for tag in ["latest", "Stable_1.0-rc.1", &"t".repeat(128)] {
        let put = repository.put(tag, &manifest).await;
        put.assert_status(201);
        assert_eq!(put.header("Docker-Content-Digest"), Digest::sha256(&manifest).as_str());
        assert_eq!(repository.get(put.header("Location")).await.assert_status(200).body, manifest);
        assert_eq!(
            repository.get(&repository.manifest(tag)).await.assert_status(200).body,
            manifest
        );
    }
    for bad in ["t".repeat(129), ".hidden".to_owned(), "a%20b".to_owned()] {
        let text = repository.put(&bad, &manifest).await.assert_refused(400, "TAG_INVALID");
        assert!(text.contains("1 to 128 characters"), "{text}");
    }
}

async fn a_manifest_is_put_by_digest(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = images::bytes(&images::image(&repository).await);
    for _twice in 0..2 {
        let put = repository.put(Digest::sha256(&manifest), &manifest).await;
        put.assert_status(201);
        assert!(put.headers.get("OCI-Tag").is_none() && put.headers.get("OCI-Subject").is_none());
    }
}

async fn a_manifest_with_another_digest_is_400(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = images::bytes(&images::image(&repository).await);
    let other = Digest::sha256(b"other");
    repository.put(&other, &manifest).await.assert_refused(400, "DIGEST_INVALID");
    repository.get(&repository.manifest(&other)).await.assert_status(404);
    repository.get(&repository.manifest(Digest::sha256(&manifest))).await.assert_status(404);
    repository.put("sha256:baddigeststring", &manifest).await.assert_refused(400, "DIGEST_INVALID");
}

async fn tags_may_come_as_parameters(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = images::bytes(&images::image(&repository).await);
    let tags: Vec<String> = (0..30).map(|n| format!("1.{n}")).collect();
    let query: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
    let put = repository
        .put(format!("{}?{}", Digest::sha256(&manifest), query.join("&")), &manifest)
        .await;
    put.assert_status(201);
    let values =
        put.headers.get_all("OCI-Tag").iter().flat_map(|value| value.to_str().unwrap().split(", "));
    assert_eq!(values.collect::<Vec<_>>(), tags);
    for tag in tags {
        assert_eq!(
            repository.get(&repository.manifest(tag)).await.assert_status(200).body,
            manifest
        );
    }
    let many: Vec<String> = (0..101).map(|n| format!("tag=x{n}")).collect();
    let refused = repository
        .put(format!("{}?{}", Digest::sha256(&manifest), many.join("&")), &manifest)
        .await;
    refused.assert_status(414);
}

async fn a_manifest_by_sha512_has_its_tags_as_parameters(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = images::bytes(&images::image(&repository).await);
    let digest = Digest::of(Algorithm::Sha512, &manifest);
    let put = repository.put(format!("{digest}?tag=long"), &manifest).await;
    put.assert_status(201);
    assert_eq!(put.header("Docker-Content-Digest"), digest.as_str());
    for reference in ["long", digest.as_str()] {
        let pulled = repository.get(&repository.manifest(reference)).await;
        assert_eq!(pulled.assert_status(200).body, manifest);
        assert_eq!(pulled.header("Docker-Content-Digest"), digest.as_str());
    }
    let index = images::bytes(&images::index(&[(&manifest, &digest)]));
    repository.put("index", &index).await.assert_status(201);
}

async fn a_tag_moves_and_the_old_image_stays(backend: Backend) {
    let repository = backend.repository().await;
    let (first, second) = (images::image(&repository).await, images::image(&repository).await);
    let first = repository.put_ok("latest", &images::bytes(&first)).await;
    let second = repository.put_ok("latest", &images::bytes(&second)).await;
    let read = repository.get(&repository.manifest("latest")).await;
    assert_eq!(read.header("Docker-Content-Digest"), second.as_str());
    repository.get(&repository.manifest(&first)).await.assert_status(200);
}

async fn an_immutable_tag_is_refused_in_ecrs_words(backend: Backend) {
    let repository = backend.repository().await;
    let change = repository.ecr().put_image_tag_mutability().repository_name(&repository.name);
    change.image_tag_mutability(ImageTagMutability::Immutable).send().await.unwrap();
    let (first, second) = (images::image(&repository).await, images::image(&repository).await);
    let digest = repository.put_ok("v1", &images::bytes(&first)).await;
    for manifest in [&first, &second] {
        let text =
            repository.put("v1", &images::bytes(manifest)).await.assert_refused(400, "TAG_INVALID");
        assert_eq!(
            text,
            format!(
                "The image tag 'v1' already exists in the '{}' repository and cannot be overwritten because the repository is immutable.",
                repository.name
            )
        );
    }
    let read = repository.get(&repository.manifest("v1")).await;
    assert_eq!(read.header("Docker-Content-Digest"), digest.as_str());
    repository
        .get(&repository.manifest(Digest::sha256(&images::bytes(&second))))
        .await
        .assert_status(404);
}

async fn a_subject_need_not_exist_and_is_confirmed(backend: Backend) {
    let repository = backend.repository().await;
    let subject = Digest::sha256(&unique(10));
    let artifact =
        images::bytes(&images::artifact(&repository, &subject, "application/x-sbom").await);
    let put = repository.put(Digest::sha256(&artifact), &artifact).await;
    assert_eq!(put.assert_status(201).header("OCI-Subject"), subject.as_str());
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "artifactType": "application/x-list",
        "subject": descriptor(IMAGE, &subject, 5),
    });
    let put = repository.put("list", &images::bytes(&index)).await;
    assert_eq!(put.assert_status(201).header("OCI-Subject"), subject.as_str());
}

async fn what_a_manifest_refers_to_has_to_be_in_the_repository(backend: Backend) {
    let repository = backend.repository().await;
    let sibling = repository.sibling().await;
    let elsewhere = images::image(&sibling).await;
    let refused = repository.put("latest", &images::bytes(&elsewhere)).await;
    let text = refused.assert_refused(400, "MANIFEST_BLOB_UNKNOWN");
    let config = elsewhere["config"]["digest"].as_str().unwrap();
    assert!(text.starts_with("Layers with digests '[") && text.contains(config), "{text}");
    assert!(text.contains(&format!(
        "required for pushing image into repository with name '{}'",
        repository.name
    )));

    let (bytes, digest) = images::pushed(&sibling).await;
    let index = images::bytes(&images::index(&[(&bytes, &digest)]));
    let text = repository.put("index", &index).await.assert_refused(400, "MANIFEST_BLOB_UNKNOWN");
    assert!(text.starts_with("Images with digests '[") && text.contains(digest.as_str()), "{text}");
    repository.get(&repository.manifest("index")).await.assert_status(404);
}

async fn a_foreign_layer_need_not_be_there(backend: Backend) {
    let repository = backend.repository().await;
    let mut manifest = images::image(&repository).await;
    let mut foreign = descriptor(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        &Digest::sha256(&unique(20)),
        20,
    );
    foreign["urls"] = json!(["https://store.example.com/blob"]);
    let pushed = repository.push_blob(&unique(30)).await;
    let mut kept =
        descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", &pushed, 30);
    kept["urls"] = json!(["https://store.example.com/blob"]);
    manifest["layers"].as_array_mut().unwrap().extend([foreign, kept]);
    repository.put_ok("windows", &images::bytes(&manifest)).await;
    // One that was pushed all the same belongs to the image now.
    repository.delete(&repository.blob(&pushed)).await.assert_refused(405, "UNSUPPORTED");
}

async fn a_layer_that_is_nowhere_is_missed(backend: Backend) {
    let repository = backend.repository().await;
    let absent = Digest::sha256(&unique(20));
    let foreign =
        descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", &absent, 20);
    let mut elsewhere = descriptor(LAYER, &absent, 20);
    elsewhere["urls"] = json!(["https://store.example.com/blob"]);
    for layer in [foreign, elsewhere] {
        let mut manifest = images::image(&repository).await;
        manifest["layers"].as_array_mut().unwrap().push(layer);
        let text = repository
            .put("latest", &images::bytes(&manifest))
            .await
            .assert_refused(400, "MANIFEST_BLOB_UNKNOWN");
        assert!(text.contains(absent.as_str()), "{text}");
    }
}

async fn a_size_that_is_not_the_blobs_is_refused(backend: Backend) {
    let repository = backend.repository().await;
    let (bytes, digest) = images::pushed(&repository).await;
    let mut sized = images::image(&repository).await;
    sized["layers"][0]["size"] = json!(511);
    let mut index = images::index(&[(&bytes, &digest)]);
    index["manifests"][0]["size"] = json!(1);
    let mut unsized_layer = images::image(&repository).await;
    unsized_layer["layers"][0].as_object_mut().unwrap().remove("size");
    for (manifest, named) in [
        (sized, "is 512, not 511"),
        (index, "not 1"),
        (unsized_layer, "layers[0]: size is missing"),
    ] {
        let text = repository
            .put("latest", &images::bytes(&manifest))
            .await
            .assert_refused(405, "UNSUPPORTED");
        assert!(text.contains(named), "{text}");
    }
}

async fn a_manifest_without_media_type_has_that_of_its_last_push(backend: Backend) {
    let repository = backend.repository().await;
    let mut manifest = images::image(&repository).await;
    manifest.as_object_mut().unwrap().remove("mediaType");
    let bytes = images::bytes(&manifest);
    for media_type in [IMAGE, "application/vnd.docker.distribution.manifest.v2+json", IMAGE] {
        let put = repository
            .call(Method::PUT, &repository.manifest("latest"))
            .header("Content-Type", media_type);
        put.body(bytes.clone()).send().await.assert_status(201);
        let pulled = repository.get(&repository.manifest("latest")).await;
        assert_eq!(pulled.assert_status(200).header("Content-Type"), media_type);
        assert_eq!(pulled.body, bytes);
    }
}

async fn an_index_restores_its_archived_children_and_their_layers_are_served_again(
    backend: Backend,
) {
    let repository = backend.repository().await;
    let image = images::image(&repository).await;
    let bytes = images::bytes(&image);
    let digest = repository.put_ok("child", &bytes).await;
    let layer: Digest = image["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let statuses = async || {
        let manifest = repository.get(&repository.manifest(&digest)).await.status;
        let blob = repository.get(&repository.blob(&layer)).await.status;
        let head = repository.call(Method::HEAD, &repository.blob(&layer)).send().await.status;
        (manifest.as_u16(), blob.as_u16(), head.as_u16())
    };
    assert_eq!(statuses().await, (200, 200, 200));
    let id = ImageIdentifier::builder().image_digest(digest.as_str()).build();
    let archive = repository
        .ecr()
        .update_image_storage_class()
        .repository_name(&repository.name)
        .image_id(id);
    archive.target_storage_class(TargetStorageClass::Archive).send().await.unwrap();
    assert_eq!(statuses().await, (404, 404, 404));
    repository.put_ok("index", &images::bytes(&images::index(&[(&bytes, &digest)]))).await;
    assert_eq!(statuses().await, (200, 200, 200));
}

async fn every_kind_of_manifest_is_taken(backend: Backend) {
    let repository = backend.repository().await;
    let (bytes, digest) = images::pushed(&repository).await;
    let config = repository.push_blob(&unique(40)).await;
    let layer = repository.push_blob(&unique(50)).await;
    let inner = images::bytes(&images::index(&[(&bytes, &digest)]));
    let inner_digest = repository.put_ok("inner", &inner).await;
    let mut with_data = descriptor(LAYER, &layer, 50);
    with_data["data"] = json!("AAAA");
    for (tag, manifest) in [
        (
            "no-layers",
            json!({"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor(CONFIG, &config, 40), "layers": []}),
        ),
        (
            "data-and-custom-fields",
            json!({
                "schemaVersion": 2, "mediaType": IMAGE, "config": descriptor(CONFIG, &config, 40),
                "layers": [with_data], "org.example.custom": {"deep": [1, 2, 3]},
            }),
        ),
        (
            "docker-image",
            json!({
                "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": descriptor("application/vnd.docker.container.image.v1+json", &config, 40),
                "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &layer, 50)],
            }),
        ),
        (
            "docker-list",
            json!({
                "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
                "manifests": [descriptor(IMAGE, &digest, bytes.len())],
            }),
        ),
        ("empty-index", json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})),
        (
            "nested-index",
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(INDEX, &inner_digest, inner.len())]}),
        ),
        (
            "artifact-index",
            json!({
                "schemaVersion": 2, "mediaType": INDEX, "artifactType": "application/x",
                "manifests": [descriptor(IMAGE, &digest, bytes.len())],
            }),
        ),
    ] {
        let manifest_bytes = images::bytes(&manifest);
        repository.put_ok(tag, &manifest_bytes).await;
        let pulled = repository.get(&repository.manifest(tag)).await;
        assert_eq!(pulled.assert_status(200).body, manifest_bytes, "{tag}");
        assert_eq!(pulled.header("Content-Type"), manifest["mediaType"].as_str().unwrap());
    }
}

async fn a_manifest_that_is_none_is_refused(backend: Backend) {
    let repository = backend.repository().await;
    let text = repository.put("latest", b"no json").await.assert_refused(405, "UNSUPPORTED");
    assert_eq!(
        text,
        "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'"
    );
    let deep = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[],"x":{}{}}}"#,
        "[".repeat(9999),
        "]".repeat(9999)
    );
    repository.put("latest", deep.as_bytes()).await.assert_refused(405, "UNSUPPORTED");
    let mut manifest = images::image(&repository).await;
    manifest["mediaType"] = json!("application/x-unknown");
    repository.put("latest", &images::bytes(&manifest)).await.assert_refused(405, "UNSUPPORTED");
    manifest["mediaType"] = json!(IMAGE);
    let mismatch =
        repository.call(Method::PUT, &repository.manifest("latest")).header("Content-Type", INDEX);
    mismatch.body(images::bytes(&manifest)).send().await.assert_refused(405, "UNSUPPORTED");
    repository.get(&repository.manifest("latest")).await.assert_status(404);
}

async fn a_manifest_that_is_too_large_is_413(backend: Backend) {
    let repository = backend.repository().await;
    let large = vec![b' '; 4_194_305];
    repository.put("latest", &large).await.assert_refused(413, "MANIFEST_INVALID");
}

async fn the_content_types_parameters_are_ignored(backend: Backend) {
    let repository = backend.repository().await;
    let manifest = images::bytes(&images::image(&repository).await);
    let put = repository.call(Method::PUT, &repository.manifest("latest"));
    let put =
        put.header("Content-Type", &format!("{IMAGE}; charset=utf-8")).body(manifest).send().await;
    put.assert_status(201);
    let pulled = repository.get(&repository.manifest("latest")).await;
    assert_eq!(pulled.header("Content-Type"), IMAGE);
}

async fn a_large_manifest_is_taken(backend: Backend) {
    let repository = backend.repository().await;
    let mut manifest = images::image(&repository).await;
    let annotations = (0..390).map(|n| (format!("large-{n}"), json!("A".repeat(10_000))));
    manifest["annotations"] = serde_json::Value::Object(annotations.collect());
    let bytes = serde_json::to_vec(&manifest).unwrap();
    repository.put_ok("large", &bytes).await;
    assert_eq!(repository.get(&repository.manifest("large")).await.assert_status(200).body, bytes);
}
