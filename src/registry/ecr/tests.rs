//! The API on a real store: any input gets a response, and behavior over several calls.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::*;
use crate::auth::{Keyring, SigningKey};
use crate::config::{Config, Limits, PublicUrl};
use wharfage_domain::access_key::AccessKey;
use wharfage_domain::names::Digest;
use wharfage_jobs::referrers;
use wharfage_store::blobs::folder::FolderBlobs;
use wharfage_store::jobs::{FollowSubject, JobPayload as _};
use wharfage_store::manifests::{NewManifest, PutManifest};
use wharfage_store::sqlite::SqliteStore;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry of one process on a temporary folder.
struct Bed {
    runtime: Runtime,
    registry: Arc<Registry>,
    principal: Principal,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let account: AccountId = "123456789012".parse().unwrap();
        let key = AccessKey::new("AKIAEXAMPLE", "secret", account.clone());
        let config = Config {
            region: "local-1".parse().unwrap(),
            account,
            public_url: PublicUrl { scheme: "http".into(), authority: "localhost:5000".into() },
            redirect_blobs: false,
            limits: Limits { repositories: 3, ..Limits::default() },
        };
        let registry = {
            let _entered = runtime.enter();
            let metadata =
                Arc::new(SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap());
            let blobs = Arc::new(FolderBlobs::open(&folder.path().join("blobs")).unwrap());
            let keys = Keyring::new([key.clone()]);
            Arc::new(Registry::new(config, metadata, blobs, keys, Arc::default()))
        };
        Self { runtime, registry, principal: SigningKey::from(key).principal(), _folder: folder }
    }

    fn send(&self, name: &str, body: impl Into<Bytes>) -> Result<Value, EcrError> {
        let target = format!("AmazonEC2ContainerRegistry_V20150921.{name}");
        let operation = operations::find(target.as_bytes()).unwrap();
        let (registry, principal) = (Arc::clone(&self.registry), self.principal.clone());
        let caller = Caller::Verified([192, 0, 2, 1].into(), Arc::clone(&principal.access_key_id));
        let account = Mutex::new(memory::process().open(&caller, 0));
        let call = EcrCall { registry, principal, operation, now: Timestamp::now(), account };
        let output = self.runtime.block_on((operation.run)(&call, body.into()))?;
        Ok(serde_json::from_str(&output).unwrap())
    }

    fn call(&self, name: &str, input: Value) -> Value {
        self.send(name, input.to_string())
            .unwrap_or_else(|error| panic!("{name}: {}: {error}", error.code()))
    }

    fn refusal(&self, name: &str, input: Value) -> (&'static str, String) {
        let error = self.send(name, input.to_string()).expect_err(name);
        (error.code(), error.to_string())
    }

    fn part(&self, upload: &Value, first: usize, bytes: &[u8]) -> Result<Value, EcrError> {
        let input = json!({
            "repositoryName": "app", "uploadId": upload, "partFirstByte": first,
            "partLastByte": (first + bytes.len()).saturating_sub(1), "layerPartBlob": BASE64.encode(bytes),
        });
        self.send("UploadLayerPart", input.to_string())
    }

    fn layer(&self, bytes: &[u8]) -> Value {
        let upload =
            self.call("InitiateLayerUpload", json!({ "repositoryName": "app" }))["uploadId"].take();
        self.part(&upload, 0, bytes).unwrap();
        let digest = Digest::sha256(bytes);
        let input =
            json!({ "repositoryName": "app", "uploadId": upload, "layerDigests": [digest] });
        self.call("CompleteLayerUpload", input)["layerDigest"].take()
    }

    fn push(&self, layer: &[u8], tag: Option<&str>, subject: Option<&Digest>) -> Digest {
        let descriptor = |digest: Value, size: usize| json!({ "mediaType": "a/b", "digest": digest, "size": size });
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": IMAGE,
            "config": descriptor(self.layer(layer), layer.len()), "layers": [],
        });
        if let Some(subject) = subject {
            manifest["subject"] = descriptor(json!(subject), 1);
        }
        let manifest = manifest.to_string();
        let mut input = json!({ "repositoryName": "app", "imageManifest": manifest });
        if let Some(tag) = tag {
            input["imageTag"] = tag.into();
        }
        self.call("PutImage", input);
        Digest::sha256(manifest.as_bytes())
    }
}

#[test]
fn the_last_part_of_a_layer_may_be_sent_twice() {
    let bed = Bed::new();
    bed.call("CreateRepository", json!({ "repositoryName": "app" }));
    let upload =
        bed.call("InitiateLayerUpload", json!({ "repositoryName": "app" }))["uploadId"].take();
    for _ in 0..2 {
        assert_eq!(bed.part(&upload, 0, b"0123456789").unwrap()["lastByteReceived"], 9);
    }
    let refused = bed.part(&upload, 0, b"9876543210").unwrap_err();
    assert_eq!(refused.code(), "InvalidLayerPartException");
    let digests = json!([Digest::sha256(b"0123456789")]);
    bed.call(
        "CompleteLayerUpload",
        json!({ "repositoryName": "app", "uploadId": upload, "layerDigests": digests }),
    );
}

#[test]
fn the_number_of_repositories_is_limited() {
    let bed = Bed::new();
    for name in ["aa", "bb", "cc"] {
        bed.call("CreateRepository", json!({ "repositoryName": name }));
    }
    assert_eq!(
        bed.refusal("CreateRepository", json!({ "repositoryName": "dd" })).0,
        "LimitExceededException"
    );
}

#[test]
fn the_tags_on_a_page_of_images_are_limited() {
    let bed = Bed::new();
    bed.call("CreateRepository", json!({ "repositoryName": "app" }));
    let (metadata, account) = (&bed.registry.metadata, &bed.registry.config.account);
    for image in 0..220 {
        let payload = Bytes::from(format!("{image}"));
        let manifest = NewManifest {
            digest: Digest::sha256(&payload),
            media_type: IMAGE.into(),
            payload,
            artifact_type: None,
            config_media_type: None,
            subject: None,
            annotations: BTreeMap::new(),
            blobs: Vec::new(),
            children: Vec::new(),
        };
        let tags =
            (0..100).map(|tag| format!("{image:0>100}-{tag:0>27}").parse().unwrap()).collect();
        bed.runtime.block_on(async {
            let repository = metadata
                .find_repository(account, &"app".parse().unwrap())
                .await
                .unwrap()
                .unwrap()
                .id;
            let (now, jobs) = (Timestamp::now(), Vec::new());
            let put = PutManifest {
                repository,
                manifest,
                tags,
                now,
                max_images: 1000,
                max_tags: 1000,
                jobs,
            };
            metadata.put_manifest(put).await.unwrap();
        });
    }
    let (mut pages, mut digests, mut token) = (Vec::new(), BTreeSet::new(), Value::Null);
    loop {
        let input = json!({ "repositoryName": "app", "maxResults": 1000, "nextToken": token });
        let mut page = bed.call("DescribeImages", input);
        let images = page["imageDetails"].as_array().unwrap();
        pages.push(images.len());
        digests.extend(images.iter().map(|image| image["imageDigest"].to_string()));
        token = page["nextToken"].take();
        if token.is_null() {
            break;
        }
    }
    assert_eq!((pages, digests.len()), (vec![100, 100, 20], 220));
    let page = bed.call("DescribeImages", json!({ "repositoryName": "app", "maxResults": 150 }));
    assert_eq!(page["imageDetails"].as_array().unwrap().len(), 100);
    let page = bed.call("DescribeImages", json!({ "repositoryName": "app", "maxResults": 30 }));
    assert_eq!(page["imageDetails"].as_array().unwrap().len(), 30);
}

#[test]
fn another_account_is_denied() {
    let bed = Bed::new();
    let input = json!({ "repositoryName": "app", "registryId": "999999999999" });
    let (code, text) = bed.refusal("CreateRepository", input);
    assert_eq!(code, "AccessDeniedException");
    assert!(
        text.contains(
            "ecr:CreateRepository on resource: arn:aws:ecr:local-1:999999999999:repository/app"
        ),
        "{text}"
    );
}

/// Amazon ECR's texts, which scripts search for.
#[test]
fn a_refused_push_has_ecrs_text() {
    let bed = Bed::new();
    bed.call("CreateRepository", json!({ "repositoryName": "app" }));
    let missing = Digest::sha256(b"missing");
    let descriptor = json!({ "mediaType": "a/b", "digest": missing, "size": 7 });
    let mut image =
        json!({ "schemaVersion": 2, "mediaType": IMAGE, "config": descriptor, "layers": [] });
    let put = |manifest: &Value| json!({ "repositoryName": "app", "imageManifest": manifest.to_string() });
    let required = format!(
        "with digests '[{missing}]' required for pushing image into repository with name 'app' in the registry with id \
         '123456789012' do not exist"
    );
    let refused = bed.refusal("PutImage", put(&image));
    assert_eq!(refused, ("LayersNotFoundException", format!("Layers {required}")));

    let mut child = descriptor.clone();
    child["mediaType"] = IMAGE.into();
    let index = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": index, "manifests": [child] });
    let refused = bed.refusal("PutImage", put(&index));
    assert_eq!(refused, ("ReferencedImagesNotFoundException", format!("Images {required}")));

    image.as_object_mut().unwrap().remove("mediaType");
    let text =
        "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'";
    assert_eq!(
        bed.refusal("PutImage", put(&image)),
        ("InvalidParameterException", text.to_owned())
    );
}

#[test]
fn a_token_for_another_account_names_its_host() {
    let bed = Bed::new();
    let endpoints = |input: Value| -> Vec<Value> {
        let data = bed.call("GetAuthorizationToken", input)["authorizationData"].take();
        data.as_array().unwrap().iter().map(|element| element["proxyEndpoint"].clone()).collect()
    };
    let own = "http://localhost:5000";
    assert_eq!(endpoints(json!({})), [own]);
    let other = "http://999999999999.dkr.ecr.local-1.localhost:5000";
    assert_eq!(endpoints(json!({ "registryIds": ["999999999999", "123456789012"] })), [other, own]);
    let (code, _) = bed.refusal("GetAuthorizationToken", json!({ "registryIds": ["99999999999"] }));
    assert_eq!(code, "InvalidParameterException");
}

#[test]
fn a_policy_that_locks_its_author_out_needs_force() {
    let bed = Bed::new();
    bed.call("CreateRepository", json!({ "repositoryName": "app" }));
    let policy = json!({ "Statement": { "Effect": "Deny", "Principal": "*", "Action": "ecr:*" } })
        .to_string();
    let mut input = json!({ "repositoryName": "app", "policyText": policy });
    assert_eq!(bed.refusal("SetRepositoryPolicy", input.clone()).0, "InvalidParameterException");
    input["force"] = true.into();
    bed.call("SetRepositoryPolicy", input);
}

#[test]
fn an_immutable_tag_refuses_another_image_and_knows_its_own() {
    let bed = Bed::new();
    bed.call(
        "CreateRepository",
        json!({ "repositoryName": "app", "imageTagMutability": "IMMUTABLE" }),
    );
    let first = bed.push(b"one", Some("v1"), None);
    let id = json!([{ "imageDigest": first }]);
    let found = bed.call("BatchGetImage", json!({ "repositoryName": "app", "imageIds": id }));
    let manifest = &found["images"][0]["imageManifest"];
    let again = json!({ "repositoryName": "app", "imageManifest": manifest, "imageTag": "v1" });
    assert_eq!(bed.refusal("PutImage", again).0, "ImageAlreadyExistsException");
    bed.push(b"two", Some("v2"), None);
    let other = json!({ "repositoryName": "app", "imageManifest": manifest, "imageTag": "v2" });
    assert_eq!(bed.refusal("PutImage", other).0, "ImageTagAlreadyExistsException");
}

#[test]
fn referrers_follow_a_subject_that_the_api_archived_or_deleted() {
    let bed = Bed::new();
    bed.call("CreateRepository", json!({ "repositoryName": "app" }));
    let subject = bed.push(b"subject", Some("v1"), None);
    let signature = bed.push(b"signature", None, Some(&subject));
    let attestation = bed.push(b"attestation", None, Some(&signature));
    let status = |digest: &Digest| {
        let ids = json!([{ "imageDigest": digest }]);
        let found = bed.send(
            "DescribeImages",
            json!({ "repositoryName": "app", "imageIds": ids }).to_string(),
        );
        found.map_or(Value::Null, |mut found| found["imageDetails"][0]["imageStatus"].take())
    };
    // Does the work of a job's worker.
    let run_jobs = || {
        bed.runtime.block_on(async {
            let later = Timestamp::now() + Duration::from_secs(3600);
            let (metadata, kind) = (&bed.registry.metadata, FollowSubject::KIND);
            while let Some(job) =
                metadata.claim_job(&[kind], later, Duration::from_secs(60)).await.unwrap()
            {
                referrers::run(metadata.as_ref(), &FollowSubject::parse(&job.payload).unwrap())
                    .await
                    .unwrap();
                metadata
                    .end_job(job.id, job.attempts, wharfage_store::jobs::JobEnd::Done)
                    .await
                    .unwrap();
            }
        });
    };

    for (class, expected) in [("ARCHIVE", "ARCHIVED"), ("STANDARD", "ACTIVE")] {
        let id = json!({ "imageDigest": subject });
        let input = json!({ "repositoryName": "app", "imageId": id, "targetStorageClass": class });
        bed.call("UpdateImageStorageClass", input);
        run_jobs();
        assert_eq!((status(&signature), status(&attestation)), (expected.into(), expected.into()));
    }
    let ids = json!([{ "imageTag": "v1" }]);
    bed.call("BatchDeleteImage", json!({ "repositoryName": "app", "imageIds": ids }));
    assert_eq!(status(&signature), "ACTIVE", "the subject may come back for a while");
    run_jobs();
    assert_eq!((status(&signature), status(&attestation)), (Value::Null, Value::Null));
}

/// Creates JSON with the members that inputs have, which is nearly valid more often than random
/// JSON.
fn anything() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        prop::sample::select(vec![
            "app",
            "123456789012",
            "v1",
            "MUTABLE",
            "IMMUTABLE_WITH_EXCLUSION",
            "WILDCARD",
            "AES256",
            "ARCHIVE",
            "ANY",
            "ACTIVE",
            "BLOB_MOUNTING",
            "ENABLED",
            "sha256:00",
            "*",
            "",
            "-1",
            "{}",
            "arn:aws:ecr:local-1:123456789012:repository/app",
            "00000000-0000-0000-0000-000000000000",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,20}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2..2000_i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let member = prop::sample::select(vec![
        "registryId",
        "repositoryName",
        "repositoryNames",
        "tags",
        "Key",
        "Value",
        "imageTagMutability",
        "imageTagMutabilityExclusionFilters",
        "filterType",
        "filter",
        "imageScanningConfiguration",
        "scanOnPush",
        "encryptionConfiguration",
        "encryptionType",
        "kmsKey",
        "nextToken",
        "maxResults",
        "force",
        "resourceArn",
        "tagKeys",
        "policyText",
        "imageManifest",
        "imageManifestMediaType",
        "imageTag",
        "imageDigest",
        "imageIds",
        "imageId",
        "acceptedMediaTypes",
        "tagStatus",
        "imageStatus",
        "subjectId",
        "artifactTypes",
        "artifactStatus",
        "targetStorageClass",
        "layerDigests",
        "layerDigest",
        "uploadId",
        "partFirstByte",
        "partLastByte",
        "layerPartBlob",
        "lifecyclePolicyText",
        "name",
        "value",
        "registryIds",
    ]);
    leaf.prop_recursive(4, 32, 8, move |inner| {
        let members = prop::collection::vec((member.clone(), inner.clone()), 0..8);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
            members.prop_map(|members| members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()),
        ]
    })
}

#[test]
fn no_input_causes_a_server_error() {
    let bed = Bed::new();
    bed.call("CreateRepository", json!({ "repositoryName": "app" }));
    bed.push(b"layer", Some("v1"), None);
    let operations = prop::sample::select(
        operations::PRIVATE.iter().map(|operation| operation.name).collect::<Vec<_>>(),
    );
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..Default::default()
    });
    runner
        .run(&(operations, anything(), any::<bool>()), |(name, mut input, named)| {
            if let (Value::Object(members), true) = (&mut input, named) {
                members.insert("repositoryName".into(), "app".into());
            }
            if let Err(error) = bed.send(name, input.to_string()) {
                prop_assert_ne!(error.code(), "ServerException", "{}", error);
                let mut response = error.into_response();
                prop_assert!(response.status().is_client_error());
                prop_assert!(response.headers_mut().remove("x-amzn-errortype").is_some());
            }
            Ok(())
        })
        .unwrap();
}

proptest! {
    #[test]
    fn any_bytes_are_a_serialization_fault_or_an_input(body in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Err(error) = input::parse::<repositories::Describe>(&body) {
            prop_assert_eq!(error.code(), "SerializationException");
        }
    }
}
