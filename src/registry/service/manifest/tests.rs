//! Manifests that are valid, and the reasons why others are refused.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn digest(of: &str) -> String {
    Digest::sha256(of.as_bytes()).to_string()
}

fn descriptor(of: &str) -> Value {
    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(of), "size": 3})
}

fn child(of: &str, size: u64) -> Value {
    json!({"mediaType": IMAGE, "digest": digest(of), "size": size})
}

fn image_manifest() -> Value {
    json!({
        "schemaVersion": 2, "mediaType": IMAGE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest("config"), "size": 1},
        "layers": [descriptor("a"), descriptor("b"), descriptor("a")],
    })
}

fn check_json(
    manifest: &Value,
    declared: Option<&str>,
) -> Result<CheckedManifest, InvalidManifest> {
    check(Bytes::from(manifest.to_string()), declared, Algorithm::Sha256, 4_194_304)
}

fn with(member: &str, value: Value) -> Value {
    let mut manifest = image_manifest();
    manifest[member] = value;
    manifest
}

fn reason(result: Result<CheckedManifest, InvalidManifest>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_image_needs_its_config_and_each_layer_once() {
    let checked = check_json(
        &image_manifest(),
        Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
    );
    let manifest = checked.unwrap().manifest;
    let blobs: Vec<String> = manifest.blobs.iter().map(|blob| blob.digest.to_string()).collect();
    assert_eq!(blobs, [digest("config"), digest("a"), digest("b")]);
    assert_eq!(manifest.digest, Digest::sha256(image_manifest().to_string().as_bytes()));
    assert_eq!(
        manifest.config_media_type.as_deref(),
        Some("application/vnd.oci.image.config.v1+json")
    );
    assert!(manifest.children.is_empty() && manifest.subject.is_none());
}

#[test]
fn a_foreign_layer_with_urls_need_not_exist() {
    let urls = json!(["https://example.com/layer"]);
    let mut number = 0;
    let mut layer = |media_type: &str, urls: Option<&Value>| {
        number += 1;
        let mut layer = descriptor(&number.to_string());
        layer["mediaType"] = media_type.into();
        if let Some(urls) = urls {
            layer["urls"] = urls.clone();
        }
        layer
    };
    const FOREIGN: [&str; 3] = [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ];
    for media_type in FOREIGN {
        let nowhere = [
            layer(media_type, None),
            layer(media_type, Some(&json!([]))),
            layer(media_type, Some(&json!(null))),
        ];
        let checked = check_json(
            &with(
                "layers",
                json!([layer(media_type, Some(&urls)), nowhere[0], nowhere[1], nowhere[2]]),
            ),
            None,
        );
        let checked = checked.unwrap();
        assert_eq!((checked.foreign.len(), checked.manifest.blobs.len()), (1, 4), "{media_type}");
    }
    for ordinary in ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.example", ""] {
        let checked =
            check_json(&with("layers", json!([layer(ordinary, Some(&urls))])), None).unwrap();
        assert_eq!((checked.foreign.len(), checked.manifest.blobs.len()), (0, 2), "{ordinary}");
    }
    for bad in ["", "file:///etc/passwd", "example.com/layer", "https:/"] {
        let refused =
            check_json(&with("layers", json!([layer(FOREIGN[0], Some(&json!([bad])))])), None);
        assert!(reason(refused).contains("layers[0]: urls must begin with"), "{bad}");
    }
}

#[test]
fn an_index_of_layers_is_refused_without_calling_them_images() {
    let mut layer = descriptor("a");
    layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
    let mut child = descriptor("child");
    child["mediaType"] = json!(IMAGE);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child, layer]});
    let reason = reason(check_json(&index, None));
    assert!(reason.contains("manifests[1]") && reason.contains("image.layer.v1"), "{reason}");
    assert!(!reason.contains("Images with digests"), "{reason}");
}

#[test]
fn one_digest_has_one_size() {
    let (one, mut other) = (descriptor("a"), descriptor("a"));
    other["size"] = json!(4);
    assert!(
        reason(check_json(&with("layers", json!([one, other])), None))
            .contains("layers[1]: size is 4")
    );
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child("a", 1), child("a", 2)]});
    assert!(reason(check_json(&index, None)).contains("manifests[1]: size is 2"));
}

#[test]
fn null_annotations_are_none_and_a_null_value_is_empty() {
    let mut manifest = with("annotations", json!({"key": null, "other": "value"}));
    manifest["subject"] = descriptor("subject");
    manifest["layers"][0]["annotations"] = json!(null);
    let annotations = check_json(&manifest, None).unwrap().manifest.annotations;
    assert_eq!((annotations["key"].as_str(), annotations["other"].as_str()), ("", "value"));
    manifest["annotations"] = json!(null);
    assert!(check_json(&manifest, None).unwrap().manifest.annotations.is_empty());
}

#[test]
fn an_index_needs_its_children() {
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "artifactType": "application/x",
        "manifests": [child("one", 1), child("two", 2), child("one", 1)], "subject": descriptor("subject"),
        "annotations": {"key": "value"},
    });
    let manifest = check_json(&index, None).unwrap().manifest;
    assert_eq!(manifest.children.len(), 2);
    assert_eq!(manifest.artifact_type.as_deref(), Some("application/x"));
    assert_eq!(manifest.subject.unwrap().to_string(), digest("subject"));
    assert_eq!(manifest.annotations["key"], "value");
}

#[test]
fn an_empty_index_has_an_empty_list_or_null() {
    for empty in [json!([]), Value::Null] {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": empty});
        assert!(check_json(&index, None).unwrap().manifest.children.is_empty());
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX});
    assert!(reason(check_json(&index, None)).contains("manifests is missing"));
}

#[test]
fn annotations_are_kept_for_referrers_only() {
    let manifest = with("annotations", json!({"key": "value"}));
    assert!(check_json(&manifest, None).unwrap().manifest.annotations.is_empty());
}

#[test]
fn too_many_values_are_refused_unparsed() {
    for value in ["{}", "0"] {
        let many = vec![value; MAX_VALUES].join(",");
        let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{IMAGE}","layers":[{many}]}}"#);
        let refused = check(manifest.into(), None, Algorithm::Sha256, 4 * 1024 * 1024);
        assert!(reason(refused).contains("more than 100000 values"));
    }
}

#[test]
fn annotations_of_referrers_are_limited() {
    let many =
        |number: usize| -> Value { (0..number).map(|n| (n.to_string(), json!(""))).collect() };
    let long = |bytes: usize| json!({ "a": "x".repeat(bytes - 1) });
    let subject = with("annotations", Value::Null)["config"].clone();
    for (right, wrong) in [(many(1_000), many(1_001)), (long(65_536), long(65_537))] {
        let mut manifest = with("annotations", right.clone());
        manifest["subject"] = subject.clone();
        assert_eq!(json!(check_json(&manifest, None).unwrap().manifest.annotations), right);
        manifest["annotations"] = wrong;
        assert!(
            reason(check_json(&manifest, None))
                .contains("at most 1000 annotations of 65536 bytes together")
        );
        // Nobody repeats those of other manifests.
        manifest["subject"] = Value::Null;
        check_json(&manifest, None).unwrap();
    }
}

#[test]
fn dockers_schema_1_is_refused() {
    for (end, signatures) in [("json", json!(null)), ("prettyjws", json!([{"header": {}}]))] {
        let old = json!({
            "schemaVersion": 1, "name": "app", "fsLayers": [{"blobSum": digest("a")}], "signatures": signatures,
        });
        let media_type = format!("application/vnd.docker.distribution.manifest.v1+{end}");
        assert!(reason(check_json(&old, Some(&media_type))).contains("schema 1 is obsolete"));
    }
}

#[test]
fn the_media_type_is_the_manifests_own_or_else_the_requests() {
    let mut silent = image_manifest();
    silent.as_object_mut().unwrap().remove("mediaType");
    assert_eq!(check_json(&silent, Some(IMAGE)).unwrap().manifest.media_type, IMAGE);
    let refused = reason(check_json(&silent, None));
    let text =
        "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'";
    assert_eq!(refused, text);
    assert!(reason(check_json(&image_manifest(), Some(INDEX))).contains(INDEX));
    assert!(
        reason(check_json(&with("mediaType", json!("text/plain")), None))
            .contains("text/plain is not supported")
    );
}

#[test]
fn a_manifest_that_could_be_read_as_either_kind_is_refused() {
    assert!(reason(check_json(&with("manifests", json!([])), None)).contains("must not have"));
    let mut index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "layers": []});
    assert!(reason(check_json(&index, None)).contains("must not have"));
    index.as_object_mut().unwrap().remove("layers");
    assert!(check_json(&index, None).is_ok());
}

#[test]
fn a_duplicate_member_is_refused() {
    let text =
        format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[],"manifests":[]}}"#);
    let refused = check(Bytes::from(text), None, Algorithm::Sha256, 1000);
    assert!(reason(refused).contains("duplicate field"));
}

#[test]
fn a_broken_descriptor_is_named() {
    let bad = |member: &str, value: Value| {
        let mut layer = descriptor("b");
        layer[member] = value;
        let text = reason(check_json(&with("layers", json!([descriptor("a"), layer])), None));
        assert!(text.contains("layers[1]: "), "{text}");
        text
    };
    for member in ["digest", "size"] {
        assert!(bad(member, Value::Null).contains(&format!("{member} is missing")));
    }
    for place in ["config", "subject"] {
        let sizeless = json!({"mediaType": "a/b", "digest": digest("a")});
        assert!(
            reason(check_json(&with(place, sizeless), None))
                .contains(&format!("{place}: size is missing"))
        );
    }
    assert!(bad("urls", json!("https://example.com")).contains("urls has an invalid type"));
    assert!(bad("digest", json!("sha256:short")).contains("sha256:short"));
    assert!(bad("digest", json!("md5:d41d8cd98f00b204e9800998ecf8427e")).contains("md5:"));
    assert!(bad("size", json!(-1)).contains("-1"));
    assert!(bad("size", json!("3")).contains("invalid type"));
    assert!(bad("mediaType", json!("x".repeat(256))).contains("at most 255"));
    assert!(bad("mediaType", json!("x/\u{0}y")).contains("control characters"));
}

#[test]
fn invalid_json_is_refused_with_ecrs_text() {
    for text in ["", "{", "{]", "not json"] {
        let refused = check(Bytes::from(text), Some(IMAGE), Algorithm::Sha256, 1000);
        assert_eq!(
            reason(refused),
            "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'"
        );
    }
}

#[test]
fn invalid_utf8_is_refused_in_any_member() {
    let text = with("custom", json!("~")).to_string();
    let bytes: Vec<u8> = text.bytes().map(|byte| if byte == b'~' { 0xff } else { byte }).collect();
    let refused = check(Bytes::from(bytes), None, Algorithm::Sha256, 4096);
    assert_eq!(refused.unwrap_err(), InvalidManifest::Syntax);
}

#[test]
fn size_depth_and_references_have_limits() {
    let text = image_manifest().to_string();
    let refused = check(Bytes::from(text.clone()), None, Algorithm::Sha256, text.len() - 1);
    assert_eq!(refused.unwrap_err(), InvalidManifest::TooLarge(text.len() - 1));
    let nested = |levels: usize| {
        let deep: Value =
            serde_json::from_str(&("[".repeat(levels) + &"]".repeat(levels))).unwrap();
        check_json(&with("custom", deep), None)
    };
    assert!(nested(MAX_DEPTH - 1).is_ok());
    assert!(reason(nested(MAX_DEPTH)).contains("deeper than 64"));
    let brackets = with("custom", json!("[".repeat(MAX_DEPTH + 1) + "\\\"["));
    assert!(check_json(&brackets, None).is_ok(), "brackets in strings nest nothing");
    let many = with("layers", Value::Array(vec![descriptor("a"); MAX_REFERENCES + 1]));
    assert!(reason(check_json(&many, None)).contains("at most 10000"));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let declared = Some(IMAGE);
        prop_assert!(check(Bytes::from(bytes), declared, Algorithm::Sha256, 1000).is_err());
    }

    #[test]
    fn any_json_members_do_not_panic(
        member in "schemaVersion|mediaType|config|layers|manifests|subject|annotations|artifactType|fsLayers|signatures",
        text in r#"[\[\]{}:",a-c0-9\\ -]{0,40}"#,
        kind in prop::sample::select(ManifestKind::MEDIA_TYPES.to_vec()),
    ) {
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let _ = check_json(&with(&member, value), Some(kind.0));
    }
}
