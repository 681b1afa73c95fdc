//! Manifests that the tests push.

use serde_json::{Value, json};
use wharfage::names::Digest;

use super::client::{Repository, unique};

pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";

pub fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

/// An image of a config and one layer, both of its own; its blobs are pushed, it is not.
pub async fn image(repository: &Repository) -> Value {
    let config = repository.push_blob(&unique(64)).await;
    let layer = repository.push_blob(&unique(512)).await;
    json!({
        "schemaVersion": 2, "mediaType": IMAGE,
        "config": descriptor(CONFIG, &config, 64), "layers": [descriptor(LAYER, &layer, 512)],
    })
}

/// An image that is pushed by its digest; its bytes and its digest.
pub async fn pushed(repository: &Repository) -> (Vec<u8>, Digest) {
    let bytes = bytes(&image(repository).await);
    let digest = repository.put_ok(Digest::sha256(&bytes), &bytes).await;
    (bytes, digest)
}

/// An index over these manifests.
pub fn index(children: &[(&[u8], &Digest)]) -> Value {
    let children: Vec<Value> =
        children.iter().map(|(bytes, digest)| descriptor(IMAGE, digest, bytes.len())).collect();
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children})
}

/// An artifact about `subject`, its blobs pushed.
pub async fn artifact(repository: &Repository, subject: &Digest, artifact_type: &str) -> Value {
    let config = repository.push_blob(b"{}").await;
    let layer = repository.push_blob(&unique(32)).await;
    json!({
        "schemaVersion": 2, "mediaType": IMAGE, "artifactType": artifact_type,
        "config": descriptor(EMPTY, &config, 2), "layers": [descriptor("application/x-test", &layer, 32)],
        "subject": descriptor(IMAGE, subject, 123), "annotations": {"org.example.key": "value"},
    })
}

pub fn bytes(manifest: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(manifest).unwrap()
}
