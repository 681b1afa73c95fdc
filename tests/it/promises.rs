//! Tests that a plan can be executed: whatever manifests the loader and the plan accept, a
//! registry accepts, too.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use secrecy::SecretString;
use serde_json::{Value, json};
use wharfage::apply::{Connection, Ecr, apply, observe};
use wharfage::manifests::Loader;
use wharfage::plan::{Action, desired, plan};

use crate::bed;

/// Text of which most, but not all, may stand in a resource tag.
fn tag_text(longest: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-zA-Z0-9 _.:/=+@-]{1,12}",
        1 => "[aA][wW][sS]:[a-z]{1,3}",
        1 => "\\PC{0,6}",
        1 => "[\\p{L}\\p{N}\\p{M}\\p{Z}]{0,4}",
        1 => (longest - 1..=longest + 1).prop_map(|length| "ä".repeat(length)),
    ]
}

fn filters() -> impl Strategy<Value = Value> {
    let filter = prop_oneof![4 => "[a-zA-Z0-9._*-]{1,6}", 1 => "\\PC{0,4}", 1 => (127..=129usize).prop_map(|length| "a".repeat(length))];
    let filters = proptest::collection::btree_set(filter, 0..=6);
    filters.prop_map(|filters| {
        filters
            .into_iter()
            .map(|filter| json!({ "filterType": "WILDCARD", "filter": filter }))
            .collect()
    })
}

/// A policy that is often valid, and sometimes as long as one may be.
fn iam_policy(resource: bool) -> impl Strategy<Value = Value> {
    let principal = prop_oneof![
        Just(json!("*")),
        Just(json!({ "AWS": "123456789012" })),
        Just(
            json!({ "AWS": ["arn:aws:iam::000000000000:root", "arn:aws:iam::123456789012:role/a/b"] })
        ),
        Just(json!({ "Service": "codebuild.amazonaws.com" })),
        Just(json!({ "AWS": "nobody" })),
    ];
    let action = prop_oneof![4 => Just("ecr:BatchGetImage"), 2 => Just("ecr:*"), 1 => Just("ecr:SetRepositoryPolicy"), 1 => Just("s3:*")];
    let length = prop_oneof![8 => Just(0), 1 => 9_900..10_300usize];
    let statement =
        (principal, proptest::bool::weighted(0.8), proptest::collection::vec(action, 1..3), length);
    let statements = proptest::collection::vec(statement, 0..3);
    let version =
        prop_oneof![4 => Just(Some("2012-10-17")), 1 => Just(None), 1 => Just(Some("2020-01-01"))];
    (statements, version).prop_map(move |(statements, version)| {
        let statements = statements.into_iter().map(|(principal, allow, actions, length)| {
            let effect = if allow { "Allow" } else { "Deny" };
            let mut statement =
                json!({ "Effect": effect, "Principal": principal, "Action": actions });
            if resource {
                statement["Resource"] = "*".into();
            }
            if length > 0 {
                statement["Sid"] = "s".repeat(length).into();
            }
            statement
        });
        let mut document = json!({ "Statement": statements.collect::<Value>() });
        if let Some(version) = version {
            document["Version"] = version.into();
        }
        document
    })
}

fn rules() -> impl Strategy<Value = Value> {
    let list =
        proptest::collection::vec(prop_oneof![6 => "[ab*]{1,2}", 1 => Just(String::new())], 1..3);
    let tags = prop_oneof![
        1 => Just(json!({ "tagStatus": "any" })),
        2 => Just(json!({ "tagStatus": "untagged" })),
        3 => list.clone().prop_map(|list| json!({ "tagStatus": "tagged", "tagPrefixList": list })),
        3 => list.prop_map(|list| json!({ "tagStatus": "tagged", "tagPatternList": list })),
    ];
    let count = prop_oneof![
        3 => (0..4u32).prop_map(|number| json!({ "countType": "imageCountMoreThan", "countNumber": number })),
        3 => (1..4u32).prop_map(|days| json!({ "countType": "sinceImagePushed", "countUnit": "days", "countNumber": days })),
        1 => (89..92u32).prop_map(|days| json!({
            "countType": "sinceImageTransitioned", "countUnit": "days", "countNumber": days, "storageClass": "archive"
        })),
    ];
    let length = prop_oneof![6 => Just(0), 1 => Just(10_240usize)];
    let rule = (1..9u32, tags, count, length);
    proptest::collection::vec(rule, 1..6).prop_map(|rules| {
        let rules = rules.into_iter().map(|(priority, mut selection, count, length)| {
            selection.as_object_mut().unwrap().extend(count.as_object().unwrap().clone());
            let mut rule = json!({ "rulePriority": priority, "selection": selection, "action": { "type": "expire" } });
            if length > 0 {
                rule["description"] = "d".repeat(length).into();
            }
            rule
        });
        rules.collect()
    })
}

fn repository() -> impl Strategy<Value = Value> {
    let mutability = prop_oneof![
        Just("MUTABLE"),
        Just("IMMUTABLE"),
        Just("IMMUTABLE_WITH_EXCLUSION"),
        Just("MUTABLE_WITH_EXCLUSION")
    ];
    let tags = prop_oneof![
        4 => proptest::collection::btree_map(tag_text(128), tag_text(256), 0..3),
        1 => (44..=46usize).prop_map(|count| (0..count).map(|n| (format!("k{n}"), n.to_string())).collect()),
    ];
    let encryption =
        prop_oneof![6 => Just(None), 1 => Just(Some("AES256")), 1 => Just(Some("KMS"))];
    let policy = proptest::option::weighted(0.6, iam_policy(false));
    (
        proptest::option::of((mutability, proptest::option::of(filters()))),
        any::<bool>(),
        tags,
        encryption,
        policy,
    )
        .prop_map(|(mutability, scan, tags, encryption, policy)| {
            let mut spec =
                json!({ "imageScanningConfiguration": { "scanOnPush": scan }, "tags": tags });
            if let Some((mutability, filters)) = mutability {
                spec["imageTagMutability"] = mutability.into();
                spec["imageTagMutabilityExclusionFilters"] = filters.into();
            }
            if let Some(encryption) = encryption {
                spec["encryptionConfiguration"] = json!({ "encryptionType": encryption });
            }
            if let Some(policy) = policy {
                spec["repositoryPolicy"] = policy;
            }
            spec
        })
}

fn registry() -> impl Strategy<Value = Value> {
    let frequency =
        prop_oneof![3 => Just("SCAN_ON_PUSH"), 1 => Just("CONTINUOUS_SCAN"), 1 => Just("MANUAL")];
    let filter = prop_oneof![4 => "[a-z*/-]{1,4}", 1 => "\\PC{0,3}"];
    let rule =
        (frequency, proptest::collection::vec(filter, 0..3)).prop_map(|(frequency, filters)| {
            let filters: Value = filters
                .into_iter()
                .map(|filter| json!({ "filterType": "WILDCARD", "filter": filter }))
                .collect();
            json!({ "scanFrequency": frequency, "repositoryFilters": filters })
        });
    let scanning =
        (prop_oneof![Just("BASIC"), Just("ENHANCED")], proptest::collection::vec(rule, 0..3));
    let scanning =
        scanning.prop_map(|(scan_type, rules)| json!({ "scanType": scan_type, "rules": rules }));
    let policy = proptest::option::weighted(0.3, iam_policy(true));
    (proptest::option::weighted(0.3, scanning), policy).prop_map(|(scanning, policy)| {
        let mut spec = json!({ "managed": {}, "accountSettings": { "BLOB_MOUNTING": "ENABLED" } });
        if let Some(scanning) = scanning {
            spec["scanningConfiguration"] = scanning;
        }
        if let Some(policy) = policy {
            spec["policy"] = policy;
        }
        spec
    })
}

fn manifest(kind: &str, name: &str, mut spec: Value) -> Value {
    if kind != "Registry" {
        spec["registryRef"] = json!({ "name": "home" });
        spec["deletionPolicy"] = "Delete".into();
    }
    json!({ "apiVersion": "wharfage.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

/// Of these manifests, how many were applied: those that were refused before are none.
fn promised_and_done(
    runtime: &tokio::runtime::Runtime,
    loader: &Loader,
    ecr: &Ecr,
    documents: &[Value],
) -> usize {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("all.json"),
        json!({ "kind": "List", "items": documents }).to_string(),
    )
    .unwrap();
    let Ok(manifests) = loader.load(folder.path()) else { return 0 };
    let desired = desired(&manifests, &manifests.registry("home").unwrap().resource, "local");
    let (plan, report) = runtime.block_on(async {
        let plan = plan(&desired, &observe(ecr, &desired).await.unwrap());
        let report = apply(ecr, &plan, |_| {}).await;
        (plan, report)
    });
    assert!(report.succeeded(), "{plan}\n{report:#?}");
    plan.steps
        .iter()
        .filter(|step| step.object.kind != "Registry" && step.action != Action::Delete)
        .count()
}

#[test]
fn what_a_plan_accepts_the_registry_accepts() {
    // Compiling the rules takes longer than all else that a case does.
    let loader = Loader::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let program = runtime.block_on(bed::wharfage().start());
    let ecr = runtime.block_on(async {
        let (id, secret) = program.root_key();
        let connection = Connection::with_key(
            program.url(),
            "local-1".parse().unwrap(),
            id,
            SecretString::from(secret),
        );
        Ecr::new(connection, None).await.unwrap()
    });
    let (number, done) = (Cell::new(0), Cell::new(0));
    let mut runner =
        TestRunner::new(Config { cases: 48, max_shrink_iters: 60, ..Config::default() });
    let result =
        runner.run(&(registry(), repository(), rules()), |(registry, repository, rules)| {
            // A unique name. The repository of the last case is not declared any more, and so deleted.
            let name = format!("r{}", number.replace(number.get() + 1));
            let policy =
                json!({ "repositoryRef": { "name": name }, "mode": "Enforce", "rules": rules });
            let registry = manifest("Registry", "home", registry);
            let repository = manifest("Repository", &name, repository);
            let plain = manifest("Repository", &name, json!({}));
            // Each by itself, so that one that is refused doesn't hide another.
            let add = |documents: &[Value]| {
                done.set(done.get() + promised_and_done(&runtime, &loader, &ecr, documents))
            };
            add(&[registry, plain.clone()]);
            let home = manifest("Registry", "home", json!({ "managed": {} }));
            add(&[home.clone(), repository]);
            add(&[home, plain, manifest("LifecyclePolicy", &name, policy)]);
            Ok(())
        });
    result.unwrap_or_else(|error| panic!("{error}"));
    let (number, done) = (number.get(), done.get());
    assert!(
        done > number / 2,
        "{done} steps of {number} cases were taken: too few to tell anything"
    );
}
