//! Tests of the text of plans, for people and for programs.

mod orphans;

use std::collections::BTreeMap;

use insta::assert_snapshot;

use super::*;
use crate::model::{ApiError, ErrorKind, ObservedRepository};
use wharfage_domain::names::RepositoryName;
use wharfage_domain::tag_mutability::TagMutability;
use wharfage_manifests::Manifests;

const FOLDER: &str = r#"
apiVersion: wharfage.dev/v1alpha1
kind: Registry
metadata: {name: home}
spec: {managed: {replicas: 2, storage: {s3: {bucket: images}}, database: {postgres: {connectionSecretRef: {name: pg, namespace: w}}}}, accountSettings: {BLOB_MOUNTING: ENABLED}, scanningConfiguration: {rules: [{scanFrequency: SCAN_ON_PUSH, repositoryFilters: [{filter: shop, filterType: WILDCARD}]}]}, policy: {Statement: [{Effect: Allow, Principal: "*", Action: "ecr:ReplicateImage", Resource: "*"}]}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: new, namespace: shop}
spec: {registryRef: {name: home}, repositoryName: shop/new, imageTagMutability: IMMUTABLE_WITH_EXCLUSION, imageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: "dev-*"}], tags: {team: shop}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: found, namespace: shop}
spec: {registryRef: {name: home}, imageScanningConfiguration: {scanOnPush: true}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: ours, namespace: shop}
spec: {registryRef: {name: home}, tags: {team: web}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: theirs, namespace: shop}
spec: {registryRef: {name: home}}
---
apiVersion: wharfage.dev/v1alpha1
kind: LifecyclePolicy
metadata: {name: keep, namespace: shop}
spec: {registryRef: {name: home}, repositoryRef: {name: new}, rules: [{rulePriority: 1, selection: {tagStatus: any, countType: imageCountMoreThan, countNumber: 5}, action: {type: expire}}]}
"#;

fn manifests() -> Manifests {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), FOLDER).unwrap();
    wharfage_manifests::load(folder.path()).unwrap()
}

fn found(name: &str, tags: &[(&str, &str)]) -> (RepositoryName, ObservedRepository) {
    let found = ObservedRepository {
        arn: format!("arn:aws:ecr:local-1:000000000000:repository/{name}"),
        tag_mutability: TagMutability::MUTABLE,
        scan_on_push: false,
        encryption: ("AES256".to_owned(), None),
        tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        policy: None,
        lifecycle_policy: None,
        preview: None,
    };
    (name.parse().unwrap(), found)
}

fn owned(
    cluster: &str,
    name: &str,
    manages: &str,
    more: &[(&str, &str)],
) -> (RepositoryName, ObservedRepository) {
    let mut tags = vec![
        ("wharfage.dev/cluster", cluster),
        ("wharfage.dev/namespace", "shop"),
        ("wharfage.dev/name", name),
        ("wharfage.dev/manages", manages),
    ];
    tags.extend(more);
    found(name, &tags)
}

fn observed() -> Observed {
    Observed {
        settings: ObservedSettings {
            account_settings: Ok(BTreeMap::from([(
                "BLOB_MOUNTING".to_owned(),
                "DISABLED".to_owned(),
            )])),
            ..ObservedSettings::default()
        },
        repositories: [
            found("found", &[]),
            owned("local", "ours", "r:", &[("team", "shop")]),
            owned("elsewhere", "theirs", "r:", &[]),
            owned("local", "kept", "r:", &[]),
            owned("local", "gone", "i:", &[]),
        ]
        .into_iter()
        .collect(),
    }
}

fn planned() -> Plan {
    let manifests = manifests();
    plan(&desired(&manifests, &manifests.registries[0].resource, "local"), &observed())
}

#[test]
fn a_plan_reads_as_its_changes() {
    assert_snapshot!(planned(), @r#"
    ~ update  Registry home
                 accountSettings.BLOB_MOUNTING: DISABLED -> ENABLED
    ~ update  Registry home
                 scanningConfiguration: BASIC -> BASIC; SCAN_ON_PUSH shop
    ~ update  Registry home
                 policy: {"Statement":[{"Action":"ecr:ReplicateImage","Effect":"Allow","Principal":"*","Resource":"*"}]}
    + create  Repository shop/new
                 imageTagMutability: IMMUTABLE_WITH_EXCLUSION (dev-*)
                 tags.team: shop
    > adopt   Repository shop/found
                 scanOnPush: false -> true
    ~ update  Repository shop/ours
                 tags.team: shop -> web
    ? preview LifecyclePolicy shop/keep (shop/new)
                 preview: 1 expire any imageCountMoreThan 5
    = retain  Repository shop/kept
    - delete  Repository shop/gone
                 images: deleted too (emptyOnDelete)
    ! refused Repository shop/theirs
                 OwnedByAnother: theirs in home is managed by Repository shop/theirs of cluster elsewhere: give this one another repositoryName, or remove that one
      note    Registry home: managed.replicas has an effect in a cluster only
      note    Registry home: managed.database.postgres.connectionSecretRef: Secrets are read in a cluster only, so WHARFAGE_DATABASE_URL holds here
      note    Registry home: scanningConfiguration is stored, but Wharfage's registry does not scan images yet
      note    Repository shop/found: imageScanningConfiguration is stored, but Wharfage's registry does not scan images yet
    1 to create, 1 to adopt, 4 to update, 1 to preview, 1 to retain, 1 to delete.
    "#);
}

#[test]
fn a_plan_is_json_for_programs() {
    let mut plan = planned();
    plan.steps.drain(1..3);
    plan.steps.truncate(2);
    plan.notes.truncate(1);
    assert_snapshot!(serde_json::to_string_pretty(&plan).unwrap(), @r#"
    {
      "steps": [
        {
          "action": "update",
          "object": {
            "kind": "Registry",
            "name": "home"
          },
          "changes": [
            {
              "field": "accountSettings.BLOB_MOUNTING",
              "from": "DISABLED",
              "to": "ENABLED"
            }
          ]
        },
        {
          "action": "create",
          "object": {
            "kind": "Repository",
            "namespace": "shop",
            "name": "new"
          },
          "repository": "shop/new",
          "changes": [
            {
              "field": "imageTagMutability",
              "to": "IMMUTABLE_WITH_EXCLUSION (dev-*)"
            },
            {
              "field": "tags.team",
              "to": "shop"
            }
          ]
        }
      ],
      "refused": [
        {
          "object": {
            "kind": "Repository",
            "namespace": "shop",
            "name": "theirs"
          },
          "reason": "OwnedByAnother",
          "message": "theirs in home is managed by Repository shop/theirs of cluster elsewhere: give this one another repositoryName, or remove that one"
        }
      ],
      "notes": [
        "Registry home: managed.replicas has an effect in a cluster only"
      ]
    }
    "#);
}

#[test]
fn an_empty_plan_says_so() {
    assert_snapshot!(Plan::default(), @"Nothing to change.");
}

#[test]
fn a_policy_that_the_operator_enforces_is_deleted_in_the_registry() {
    let manifests = manifests();
    let mut desired = desired(&manifests, &manifests.registries[0].resource, "local");
    desired.repositories.retain(|it| it.name.as_str() == "ours");
    let policy = &mut desired.lifecycle_policies[0];
    policy.repositories = desired.repositories.iter().map(|it| it.name.clone()).collect();
    (policy.mode, policy.by) = (model::LifecycleMode::Enforce, model::EnforcedBy::Operator);
    let document = policy.document.clone();
    let steps = |tags: &[(&str, &str)], put: bool| {
        let (name, mut found) = owned("local", "ours", "r:", tags);
        found.tags.insert("team".to_owned(), "web".to_owned());
        found.lifecycle_policy = put.then(|| document.clone());
        let observed =
            Observed { repositories: [(name, found)].into_iter().collect(), ..Observed::default() };
        let steps = plan(&desired, &observed)
            .steps
            .into_iter()
            .filter(|it| it.object.kind == "LifecyclePolicy");
        steps.map(|it| (it.to_string(), it.calls)).collect::<Vec<_>>()
    };
    let tagged = Call::from(RepositoryCall::TagResource(BTreeMap::from([(
        "wharfage.dev/lifecycle".to_owned(),
        "local/shop/keep operator".to_owned(),
    )])));
    let [(text, calls)] = &steps(&[], false)[..] else { panic!("one step") };
    assert_snapshot!(text, @r"
    + create  LifecyclePolicy shop/keep (ours)
                 enforced by the operator: 1 expire any imageCountMoreThan 5
    ");
    assert_eq!(calls.as_slice(), std::slice::from_ref(&tagged));
    // It was put until now.
    let [(text, calls)] = &steps(&[("wharfage.dev/lifecycle", "local/shop/keep")], true)[..] else {
        panic!("one step")
    };
    assert_snapshot!(text, @r"
    ~ update  LifecyclePolicy shop/keep (ours)
                 lifecyclePolicy: 1 expire any imageCountMoreThan 5 -> (none)
    ");
    assert_eq!(*calls, [tagged, RepositoryCall::DeleteLifecyclePolicy.into()]);
    assert_eq!(steps(&[("wharfage.dev/lifecycle", "local/shop/keep operator")], false), []);
}

#[test]
fn an_unreadable_repository_is_refused_and_left_unchanged() {
    let manifests = manifests();
    let mut observed = observed();
    observed.repositories.found.remove(&"ours".parse::<RepositoryName>().unwrap());
    let denied = ApiError::new(ErrorKind::Other, "AccessDeniedException", "not for you");
    observed.repositories.unreadable.insert("ours".parse().unwrap(), denied);
    let plan = plan(&desired(&manifests, &manifests.registries[0].resource, "local"), &observed);
    assert!(!plan.steps.iter().any(|step| step.object.name == "ours"));
    let refused = plan.refused.iter().find(|refused| refused.object.name == "ours").unwrap();
    assert_eq!(refused.reason.as_str(), "AccessDeniedException");
    assert_eq!(refused.message, "ours cannot be read: not for you");
}

/// Namespace `evil` may not have `payments/api`, and has a policy for it all the same. `payments` has a younger one, or none.
fn across_namespaces(borders: &str, policy: &str, other: &str) -> Plan {
    let yaml = format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: payments, labels: {{team: payments}}}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Registry
metadata: {{name: home}}
spec: {{managed: {{}}{borders}}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {{name: api, namespace: payments}}
spec: {{registryRef: {{name: home}}, repositoryName: payments/api}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {{name: x, namespace: evil}}
spec: {{registryRef: {{name: home}}, repositoryName: payments/api}}
---
apiVersion: wharfage.dev/v1alpha1
kind: LifecyclePolicy
metadata: {{name: reach, namespace: evil}}
spec: {{registryRef: {{name: home}}, repositoryRef: {{name: x}}, {policy}, rules: [{RULE}]}}
{other}"#
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), yaml).unwrap();
    let manifests = wharfage_manifests::load(folder.path()).unwrap();
    let (name, mut found) =
        owned("local", "payments/api", "r:", &[("wharfage.dev/namespace", "payments")]);
    found.tags.insert("wharfage.dev/name".to_owned(), "api".to_owned());
    let observed =
        Observed { repositories: [(name, found)].into_iter().collect(), ..Observed::default() };
    plan(&desired_in_cluster(&manifests, &manifests.registries[0].resource, "local"), &observed)
}

const RULE: &str = "{rulePriority: 1, selection: {tagStatus: any, countType: imageCountMoreThan, countNumber: 5}, action: {type: expire}}";

#[test]
fn a_policy_does_not_reach_into_another_namespace() {
    let borders = [
        "",
        ", allowedNamespaces: [{selector: {matchLabels: {team: payments}}, repositoryPrefixes: [payments/]}]",
    ];
    let policies = [
        "mode: Enforce",
        "mode: Preview",
        "mode: Enforce, inUseProtection: {enabled: true}",
        "mode: Enforce, managementPolicy: Observe",
    ];
    for (border, policy) in
        borders.into_iter().flat_map(|border| policies.map(|policy| (border, policy)))
    {
        let plan = across_namespaces(border, policy, "");
        assert!(plan.is_empty(), "{border}, {policy}: {plan}");
        let refused = plan.refused.iter().find(|it| it.object.kind == "LifecyclePolicy").unwrap();
        assert_eq!(
            (refused.object.namespace.as_str(), refused.reason.as_str()),
            ("evil", "ReferenceNotFound")
        );
        let message = "the repository payments/api does not exist in home, or no Repository of namespace evil has it: see the status \
                       of the Repository";
        assert_eq!(refused.message, message);
    }
}

#[test]
fn a_policy_of_another_namespace_blocks_no_policy() {
    let own = format!(
        "---\napiVersion: wharfage.dev/v1alpha1\nkind: LifecyclePolicy\nmetadata: {{name: small, namespace: payments}}\nspec: \
         {{registryRef: {{name: home}}, repositoryRef: {{name: api}}, mode: Enforce, rules: [{RULE}]}}\n"
    );
    let plan = across_namespaces("", "mode: Enforce", &own);
    let [step] = plan.steps.as_slice() else { panic!("one step: {plan}") };
    assert_eq!(
        (step.action, step.object.to_string()),
        (Action::Create, "LifecyclePolicy payments/small".to_owned())
    );
    assert!(plan.refused.iter().all(|it| it.object.namespace == "evil"), "{plan}");
}

const TWINS: &str = r"
apiVersion: wharfage.dev/v1alpha1
kind: Registry
metadata: {name: home}
spec: {managed: {}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Registry
metadata: {name: twin}
spec: {managed: {}, allowedNamespaces: [{selector: {matchLabels: {kubernetes.io/metadata.name: desk}}}]}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: api, namespace: shop}
spec: {registryRef: {name: home}, deletionPolicy: Delete, emptyOnDelete: true}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: mine, namespace: desk}
spec: {registryRef: {name: twin}, repositoryName: api}
";

#[test]
fn in_two_aliases_the_older_repository_keeps_the_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), TWINS).unwrap();
    let manifests = wharfage_manifests::load(folder.path()).unwrap();
    let [home, twin] = ["home", "twin"].map(|name| &manifests.registry(name).unwrap().resource);
    let steps = |resources: Resources<'_>,
                 registry,
                 found: Option<(RepositoryName, ObservedRepository)>| {
        let observed =
            Observed { repositories: found.into_iter().collect(), ..Observed::default() };
        let plan = plan(&desired_in_cluster(resources, registry, "local"), &observed);
        let steps = plan.steps.iter().map(|it| format!("{} {}", it.action.as_str(), it.object));
        let refused = plan.refused.iter().map(|it| format!("{} {}", it.reason, it.object));
        steps.chain(refused).collect::<Vec<_>>()
    };
    let all = || Resources::from(&manifests);
    let had = || Some(owned("local", "api", "i:", &[]));
    // Whichever of the two is planned for.
    for (registry, other) in [(home, twin), (twin, home)] {
        let one = || Resources { aliases: vec![other], ..all() };
        assert_eq!(
            steps(one(), registry, None),
            ["create Repository shop/api", "OwnedByAnother Repository desk/mine"]
        );
        assert_eq!(steps(one(), registry, had()), ["OwnedByAnother Repository desk/mine"]);
    }
    // Nobody knows yet.
    let pending_owners = || manifests.repositories.iter().map(|it| &it.resource).take(1).collect();
    let unknown = || Resources { pending_owners: pending_owners(), ..all() };
    assert_eq!(steps(unknown(), twin, None), ["create Repository desk/mine"]);
    assert_eq!(steps(unknown(), twin, had()), ["OwnedByAnother Repository desk/mine"]);
    // It is another registry, and was once the same.
    assert_eq!(steps(all(), twin, had()), ["adopt Repository desk/mine"]);
}
