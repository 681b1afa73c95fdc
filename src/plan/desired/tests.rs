use super::*;
use crate::model::{ApiError, ErrorKind};
use std::collections::BTreeMap;

use crate::model::{EnforcedBy, LifecycleMode};
use crate::ownership::OnRemoval;
use crate::{Call, Observed, ObservedSettings, SettingsCall, plan};
use wharfage_domain::scanning::{ScanFrequency, ScanType, ScanningConfiguration, ScanningRule};
use wharfage_domain::tag_mutability::Mutability;

fn manifests(yaml: &str) -> Manifests {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), yaml).unwrap();
    wharfage_manifests::load(folder.path()).unwrap()
}

fn observed(settings: ObservedSettings) -> Observed {
    Observed { settings, ..Observed::default() }
}

/// Returns the desired state of the Registry `home`.
fn wanted(yaml: &str) -> Desired {
    let manifests = manifests(yaml);
    desired(&manifests, &manifests.registry("home").unwrap().resource, "local")
}

fn registry(spec: &str) -> String {
    format!(
        "apiVersion: wharfage.dev/v1alpha1\nkind: Registry\nmetadata: {{name: home}}\nspec: {spec}\n---\n"
    )
}

fn repository(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: wharfage.dev/v1alpha1\nkind: Repository\nmetadata: {{name: {name}, namespace: payments, labels: {{app: {name}}}}}\n\
         spec: {{registryRef: {{name: home}}, {spec}}}\n---\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: wharfage.dev/v1alpha1\nkind: LifecyclePolicy\nmetadata: {{name: {name}, namespace: payments}}\n\
         spec: {{registryRef: {{name: home}}, rules: [{{rulePriority: 1, selection: {{tagStatus: any, countType: imageCountMoreThan, \
         countNumber: 5}}, action: {{type: expire}}}}], {spec}}}\n---\n"
    )
}

fn refusals(desired: &Desired) -> Vec<String> {
    desired
        .refused
        .iter()
        .map(|it| format!("{}: {}: {}", it.object, it.reason, it.message))
        .collect()
}

#[test]
fn a_field_that_is_not_set_is_not_desired() {
    let yaml = registry("{managed: {}}")
        + &repository("api", "")
        + &repository(
            "web",
            "repositoryName: payments/web, imageTagMutability: MUTABLE_WITH_EXCLUSION, \
             imageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: 'v*'}], imageScanningConfiguration: {scanOnPush: \
             true}, tags: {a: b}, deletionPolicy: Delete, emptyOnDelete: true, suspend: true",
        );
    let desired = wanted(&yaml);
    let [api, web] = desired.repositories.as_slice() else { panic!("two repositories") };
    assert_eq!((api.name.as_str(), &api.tag_mutability, api.scan_on_push), ("api", &None, None));
    assert_eq!((&api.encryption, &api.policy, api.on_removal), (&None, &None, OnRemoval::Retain));
    assert_eq!((web.name.as_str(), web.scan_on_push), ("payments/web", Some(true)));
    let mutability = web.tag_mutability.clone().unwrap();
    assert_eq!(
        (mutability.mode, mutability.exclusions),
        (Mutability::MutableWithExclusion, vec!["v*".to_owned()])
    );
    assert_eq!(
        (web.on_removal, web.management),
        (OnRemoval::DeleteWithImages, Management::Suspended)
    );
    assert!(desired.refused.is_empty());
    let note = "Repository payments/web: imageScanningConfiguration is stored, but Wharfage's registry does not scan images yet";
    assert_eq!(desired.notes, [note]);
}

#[test]
fn unenforced_fields_are_noted_except_for_amazon_ecr() {
    let statement = |effect: &str, more: &str| {
        format!(
            "{{Version: '2012-10-17', Statement: {{Effect: {effect}, Principal: '*', Action: 'ecr:PutImage'{more}}}}}"
        )
    };
    let resource = ", Resource: '*'";
    let (deny, allow) = (statement("Deny", ""), statement("Allow", ""));
    let yaml = |place: &str, effect: &str| {
        registry(&format!(
            "{{{place}, policy: {}, scanningConfiguration: {{rules: [{{scanFrequency: SCAN_ON_PUSH, repositoryFilters: \
             [{{filterType: WILDCARD, filter: '*'}}]}}]}}}}",
            statement(effect, resource)
        )) + &repository(
            "api",
            &format!("repositoryPolicy: {deny}, imageScanningConfiguration: {{scanOnPush: true}}"),
        ) + &repository(
            "web",
            &format!(
                "repositoryPolicy: {allow}, imageScanningConfiguration: {{scanOnPush: false}}"
            ),
        )
    };
    let scan = "is stored, but Wharfage's registry does not scan images yet";
    let denied = "has a Deny, which Wharfage's registry does not enforce yet";
    let of_api = [
        format!("Repository payments/api: repositoryPolicy {denied}"),
        format!("Repository payments/api: imageScanningConfiguration {scan}"),
    ];
    let of_registry = [
        format!("Registry home: policy {denied}"),
        format!("Registry home: scanningConfiguration {scan}"),
    ];
    for place in ["managed: {}", "region: eu-1, endpoint: {url: 'https://r.example.com'}"] {
        let desired = wanted(&yaml(place, "Deny"));
        assert_eq!(desired.notes, [of_registry.clone(), of_api.clone()].concat(), "{place}");
        assert!(desired.refused.is_empty(), "{place}: {:?}", desired.refused);
        assert_eq!(wanted(&yaml(place, "Allow")).notes[0], of_registry[1], "{place}");
    }
    let amazon = wanted(&yaml("region: eu-central-1, aws: {}", "Deny"));
    assert!(
        amazon.notes.is_empty() && amazon.refused.is_empty(),
        "{:?} {:?}",
        amazon.notes,
        amazon.refused
    );
    let nothing = registry("{managed: {}, policy: {}, scanningConfiguration: {}}");
    assert!(wanted(&nothing).notes.is_empty());
}

#[test]
fn deletion_protection_wins_over_the_deletion_policy() {
    let repository =
        repository("api", "deletionProtection: true, deletionPolicy: Delete, emptyOnDelete: true");
    let desired = wanted(&(registry("{managed: {}}") + &repository));
    assert_eq!(desired.repositories[0].on_removal, OnRemoval::Protected);
}

#[test]
fn a_namespace_may_use_only_the_names_that_it_is_allowed() {
    let border = "{managed: {}, allowedNamespaces: [{selector: {matchLabels: {team: payments}}, repositoryPrefixes: [payments/]}]}";
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: payments, labels: {team: payments}}\n---\n";
    let both = repository("api", "repositoryName: payments/api")
        + &repository("bill", "repositoryName: billing/api");
    let desired = wanted(&(registry(border) + namespace + &both));
    assert_eq!(desired.repositories.len(), 1);
    let expected = "Repository payments/bill: NotAllowed: namespace payments may use payments/ in Registry home, not billing/api";
    assert_eq!(refusals(&desired), [expected]);

    let desired = wanted(&(registry(border) + &both));
    assert!(desired.repositories.is_empty());
    assert!(
        refusals(&desired)[0].contains("may not use Registry home"),
        "{:?}",
        refusals(&desired)
    );
}

#[test]
fn a_selector_chooses_repositories_of_its_namespace_and_registry() {
    let elsewhere = repository("far", "").replace("namespace: payments", "namespace: other");
    let abroad = repository("us", "").replace("name: home}", "name: us}");
    let yaml = registry("{managed: {}}")
        + &registry("{managed: {}}").replace("name: home", "name: us")
        + &repository("api", "")
        + &repository("web", "")
        + &elsewhere
        + &abroad
        + &policy("all", "repositorySelector: {}")
        + &policy("some", "repositorySelector: {matchLabels: {app: web}}, mode: Enforce")
        + &policy("one", "repositoryRef: {name: api}")
        + &policy("none", "repositorySelector: {matchLabels: {app: nothing}}");
    let desired = wanted(&yaml);
    let chosen = desired.lifecycle_policies.iter().map(|it| {
        let names: Vec<&str> = it.repositories.iter().map(|name| name.as_str()).collect();
        (it.object.name.as_str(), names.join(" "))
    });
    let chosen: Vec<(&str, String)> = chosen.collect();
    let expected = [("all", "api web"), ("some", "web"), ("one", "api"), ("none", "")];
    assert_eq!(chosen, expected.map(|(name, chosen)| (name, chosen.to_owned())));
    assert_eq!(desired.notes.len(), 1, "{:?}", desired.notes);
}

#[test]
fn an_unresolved_reference_waits() {
    let stray = repository("stray", "").replace("name: home}", "name: away}");
    let manifests = manifests(
        &(registry("{managed: {}}") + &stray + &policy("keep", "repositoryRef: {name: api}")),
    );
    let messages: Vec<String> =
        unresolved(&manifests).iter().map(|it| format!("{}: {}", it.reason, it.message)).collect();
    assert_eq!(
        messages,
        ["ReferenceNotFound: Registry \"away\" does not exist: declare it, or correct registryRef"]
    );
    let desired = desired(&manifests, &manifests.registry("home").unwrap().resource, "local");
    assert_eq!(
        refusals(&desired),
        [
            "LifecyclePolicy payments/keep: ReferenceNotFound: Repository payments/api does not exist in Registry home: declare it, or \
          correct repositoryRef"
        ]
    );
}

#[test]
fn unsupported_fields_are_refused() {
    let desired = wanted(&(registry("{managed: {}}") + &repository("open", "visibility: Public")));
    let reasons: Vec<String> =
        desired.refused.iter().map(|it| format!("{} {}", it.object, it.reason)).collect();
    assert_eq!(reasons, ["Repository payments/open UnsupportedByRegistry"]);
    assert!(desired.repositories.is_empty());
}

#[test]
fn in_use_protection_is_never_ignored() {
    let policies = repository("api", "")
        + &policy(
            "keep",
            "repositorySelector: {}, mode: Enforce, inUseProtection: {enabled: true}",
        );
    let managed = wanted(&(registry("{managed: {}}") + &policies));
    assert_eq!(managed.lifecycle_policies[0].mode, LifecycleMode::Preview);
    assert!(managed.notes[0].contains("previewed, not enforced"), "{:?}", managed.notes);
    let amazon = wanted(&(registry("{region: eu-1, aws: {}}") + &policies));
    assert!(amazon.lifecycle_policies.is_empty());
    assert_eq!(amazon.refused[0].reason.as_str(), "UnsupportedByRegistry");
    let preview = policies.replace("mode: Enforce", "mode: Preview");
    assert!(wanted(&(registry("{region: eu-1, aws: {}}") + &preview)).refused.is_empty());
}

#[test]
fn in_a_cluster_the_operator_enforces_in_use_protection() {
    let of = |mode: &str, enabled: bool| {
        let spec = format!(
            "repositorySelector: {{}}, mode: {mode}, inUseProtection: {{enabled: {enabled}}}"
        );
        let manifests = manifests(
            &(registry("{region: eu-1, aws: {}}")
                + &repository("api", "")
                + &policy("keep", &spec)),
        );
        let desired =
            desired_in_cluster(&manifests, &manifests.registry("home").unwrap().resource, "local");
        assert!(desired.refused.is_empty() && desired.notes.is_empty());
        (desired.lifecycle_policies[0].mode, desired.lifecycle_policies[0].by)
    };
    assert_eq!(of("Enforce", true), (LifecycleMode::Enforce, EnforcedBy::Operator));
    assert_eq!(of("Preview", true), (LifecycleMode::Preview, EnforcedBy::Operator));
    assert_eq!(of("Enforce", false), (LifecycleMode::Enforce, EnforcedBy::Registry));
}

#[test]
fn cluster_only_fields_are_noted() {
    let spec = "{managed: {replicas: 1, service: {type: ClusterIP}, tls: {secretName: tls}, resources: {limits: {memory: 1Gi}}, \
                image: 'example.com/w:1', pod: {nodeSelector: {disk: fast}}, networkPolicy: Disabled, \
                database: {postgres: {connectionSecretRef: {name: pg, namespace: w}}}}, deletionPolicy: Retain}";
    let notes = wanted(&registry(spec)).notes.join("\n");
    for field in [
        "managed.replicas",
        "managed.service",
        "managed.tls",
        "managed.resources",
        "managed.image",
        "managed.pod",
        "managed.networkPolicy",
        "database.postgres",
        "deletionPolicy",
    ] {
        assert!(notes.contains(field), "{field} in {notes}");
    }
    assert!(wanted(&registry("{managed: {publicUrl: 'https://r.example.com'}}")).notes.is_empty());
    assert_eq!(
        wanted(&registry("{region: eu-1, endpoint: {url: 'https://r.example.com'}}")).notes,
        Vec::<String>::new()
    );
}

#[test]
fn a_pull_secret_is_noted_as_cluster_only() {
    let secret = "apiVersion: wharfage.dev/v1alpha1\nkind: PullSecret\nmetadata: {name: pull, namespace: payments}\n\
                  spec: {registryRef: {name: home}}\n---\n";
    let desired = wanted(&(registry("{managed: {}}") + secret));
    assert_eq!(desired.notes, ["PullSecret payments/pull has an effect in a cluster only"]);
    assert!(desired.refused.is_empty());
    let stray =
        manifests(&(registry("{managed: {}}") + &secret.replace("name: home}", "name: away}")));
    assert_eq!(
        unresolved(&stray).iter().map(|it| it.object.to_string()).collect::<Vec<_>>(),
        ["PullSecret payments/pull"]
    );
}

#[test]
fn account_settings_are_named_as_ecr_names_them() {
    let desired = wanted(&registry("{managed: {}, accountSettings: {BLOB_MOUNTING: ENABLED}}"));
    assert_eq!(
        desired.settings.account_settings,
        BTreeMap::from([("BLOB_MOUNTING".to_owned(), "ENABLED".to_owned())])
    );
    let error = ApiError::new(
        ErrorKind::UnsupportedOperation,
        "UnsupportedByRegistry",
        "no such operation",
    );
    let without =
        observed(ObservedSettings { account_settings: Err(error), ..ObservedSettings::default() });
    let plan = plan(&desired, &without);
    assert_eq!((plan.is_empty(), plan.refused[0].reason.as_str()), (true, "UnsupportedByRegistry"));
}

/// A registry policy as YAML, with this resource.
fn registry_policy(resource: &str) -> String {
    format!(
        "{{Statement: [{{Effect: Allow, Principal: '*', Action: 'ecr:ReplicateImage', Resource: {resource}}}]}}"
    )
}

#[test]
fn settings_are_desired_without_the_repositories() {
    let spec = format!(
        "{{managed: {{}}, accountSettings: {{BLOB_MOUNTING: ENABLED}}, policy: {}, scanningConfiguration: {{scanType: ENHANCED, \
         rules: [{{scanFrequency: CONTINUOUS_SCAN, repositoryFilters: [{{filter: 'a*', filterType: WILDCARD}}]}}]}}}}",
        registry_policy("'*'")
    );
    let manifests = manifests(&(registry(&spec) + &repository("api", "")));
    let registry = &manifests.registry("home").unwrap().resource;
    let (settings, all) =
        (desired_settings(registry, "local"), desired(&manifests, registry, "local"));
    assert!(settings.repositories.is_empty() && settings.refused.is_empty());
    for desired in [&settings, &all] {
        assert_eq!(desired.settings.account_settings.len(), 1);
        let filters = vec!["a*".to_owned()];
        let rules = vec![ScanningRule { scan_frequency: ScanFrequency::ContinuousScan, filters }];
        let scanning = ScanningConfiguration { scan_type: ScanType::Enhanced, rules };
        assert_eq!(desired.settings.scanning_configuration, Some(scanning));
        let policy = desired.settings.policy.clone().unwrap().unwrap();
        assert_eq!(policy["Statement"][0]["Resource"], "*");
    }
    let calls =
        |plan: crate::Plan| plan.steps.into_iter().flat_map(|step| step.calls).collect::<Vec<_>>();
    let calls = calls(plan(&settings, &Observed::default()));
    assert!(
        matches!(
            calls[..],
            [
                Call::Settings(SettingsCall::PutAccountSetting { .. }),
                Call::Settings(SettingsCall::PutRegistryScanningConfiguration(_)),
                Call::Settings(SettingsCall::PutRegistryPolicy(_))
            ]
        ),
        "{calls:?}"
    );
}

#[test]
fn different_settings_of_one_registry_are_contested() {
    let wants = |settings: &str| wanted(&registry(&format!("{{managed: {{}}, {settings}}}")));
    let account = |value: &str| format!("accountSettings: {{BLOB_MOUNTING: {value}}}");
    let scanning = |filter: &str| {
        let filters = format!("repositoryFilters: [{{filter: '{filter}', filterType: WILDCARD}}]");
        format!("scanningConfiguration: {{rules: [{{scanFrequency: SCAN_ON_PUSH, {filters}}}]}}")
    };
    let policy = |resource: &str| format!("policy: {}", registry_policy(resource));
    let cases = [
        (account("ENABLED"), account("DISABLED"), Some("accountSettings.BLOB_MOUNTING")),
        (scanning("*"), scanning("a*"), Some("scanningConfiguration")),
        (policy("'*'"), policy("arn:aws:ecr:eu-home-1:123456789012:repository/a"), Some("policy")),
        (policy("'*'"), "policy: {}".to_owned(), Some("policy")),
        (account("ENABLED"), scanning("*"), None),
        (policy("'*'"), account("ENABLED"), None),
    ];
    for (one, other, contested) in cases {
        let (one, other) = (wants(&one), wants(&other));
        assert_eq!(crate::contested(&one, &other).as_deref(), contested, "{one:?} {other:?}");
        assert_eq!(crate::contested(&other, &one).as_deref(), contested, "{other:?} {one:?}");
        assert_eq!(crate::contested(&one, &one), None, "{one:?}");
    }
}

#[test]
fn an_absent_setting_is_left_unchanged_and_an_empty_one_reset() {
    let statement = serde_json::json!({ "Statement": { "Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "*" } });
    let filters = vec!["a".to_owned()];
    let rules = vec![ScanningRule { scan_frequency: ScanFrequency::ScanOnPush, filters }];
    let found = observed(ObservedSettings {
        policy: Ok(Some(statement)),
        scanning_configuration: Ok(ScanningConfiguration { scan_type: ScanType::Basic, rules }),
        ..ObservedSettings::default()
    });
    let absent = wanted(&registry("{managed: {}}"));
    assert_eq!((&absent.settings.policy, &absent.settings.scanning_configuration), (&None, &None));
    assert!(plan(&absent, &found).is_empty());

    let empty = wanted(&registry("{managed: {}, policy: {}, scanningConfiguration: {}}"));
    let plan_of = plan(&empty, &found);
    let changes: Vec<String> = plan_of.steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        changes,
        [
            "~ update  Registry home\n             scanningConfiguration: BASIC; SCAN_ON_PUSH a -> BASIC",
            "~ update  Registry home\n             policy: {\"Statement\":{\"Action\":\"*\",\"Effect\":\"Deny\",\"Principal\":\"*\",\"Resource\":\"*\"}} -> (none)",
        ]
    );
    assert!(plan(&empty, &Observed::default()).is_empty());
}

#[test]
fn a_registry_policy_is_compared_by_its_meaning() {
    let desired =
        wanted(&registry(&format!("{{managed: {{}}, policy: {}}}", registry_policy("['*']"))));
    let found = |document: Value| {
        observed(ObservedSettings { policy: Ok(Some(document)), ..ObservedSettings::default() })
    };
    let same = serde_json::json!({ "Version": "2008-10-17", "Statement": {
        "Effect": "Allow", "Principal": { "AWS": ["*"] }, "Action": ["ECR:replicateimage"], "Resource": "*",
    } });
    assert!(plan(&desired, &found(same.clone())).is_empty());
    let mut other = same;
    other["Statement"]["Resource"] = "arn:aws:ecr:eu-1:123456789012:repository/*".into();
    assert_eq!(plan(&desired, &found(other)).steps.len(), 1);
}

#[test]
fn an_invalid_registry_policy_is_refused() {
    let policy = registry_policy("team/*");
    let desired = wanted(&registry(&format!("{{managed: {{}}, policy: {policy}}}")));
    assert_eq!(desired.settings.policy, None);
    assert_eq!(desired.refused[0].reason.as_str(), "InvalidParameterException");
    assert!(
        desired.refused[0].message.starts_with("policy is not valid: resource \"team/*\""),
        "{:?}",
        desired.refused
    );
    let amazon = wanted(&registry(&format!("{{region: eu-1, aws: {{}}, policy: {policy}}}")));
    assert!(amazon.refused.is_empty() && amazon.settings.policy.is_some());
}

#[test]
fn the_whole_quickstart_is_desired() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/quickstart");
    let manifests = wharfage_manifests::load(&folder).unwrap();
    let desired = desired(&manifests, &manifests.registries[0].resource, "local");
    assert!(desired.refused.is_empty(), "{:?}", desired.refused);
    assert_eq!((desired.repositories.len(), desired.lifecycle_policies.len()), (4, 2));
    assert!(unresolved(&manifests).is_empty());
}

#[test]
fn an_invalid_repository_policy_is_refused() {
    let policy = "repositoryPolicy: {Version: '2012-10-17', Statement: [{Effect: Maybe, Principal: '*', Action: 'ecr:PutImage'}]}";
    let desired = wanted(&(registry("{managed: {}}") + &repository("api", policy)));
    assert_eq!(desired.refused[0].reason.as_str(), "InvalidParameterException");
    assert!(
        desired.refused[0].message.starts_with("repositoryPolicy is not valid: "),
        "{:?}",
        desired.refused
    );
    assert!(
        wanted(&(registry("{region: eu-1, aws: {}}") + &repository("api", policy)))
            .refused
            .is_empty()
    );
}

#[test]
fn documents_are_checked_as_a_whole() {
    let statement = |sid: &str, effect: &str| {
        format!(
            "repositoryPolicy: {{Statement: [{{Sid: {sid}, Effect: {effect}, Principal: '*', Action: 'ecr:*'}}]}}"
        )
    };
    let rule = |priority: u32, list: &str, description: &str| {
        format!(
            "{{rulePriority: {priority}, description: {description}, selection: {{tagStatus: tagged, tagPrefixList: {list}, \
             countType: imageCountMoreThan, countNumber: 5}}, action: {{type: expire}}}}"
        )
    };
    let rules = |rules: [String; 3]| {
        format!(
            "apiVersion: wharfage.dev/v1alpha1\nkind: LifecyclePolicy\nmetadata: {{name: keep, namespace: payments}}\n\
             spec: {{registryRef: {{name: home}}, repositorySelector: {{}}, rules: [{}]}}\n",
            rules.join(", ")
        )
    };
    let long = "d".repeat(10_240);
    let (managed, aws) = (registry("{managed: {}}"), registry("{region: eu-1, aws: {}}"));
    for (registry, resource, expected) in [
        (
            &managed,
            rules([rule(1, "[a, b]", "x"), rule(2, "[a]", "x"), rule(3, "[b, a, b]", "x")]),
            "LifecyclePolicy payments/keep: InvalidParameterException: the rules together are not valid: Rules 1 and 3 of one \
             storage class have the same tagPrefixList.",
        ),
        (
            &managed,
            rules([rule(1, "[a]", &long), rule(2, "[b]", &long), rule(3, "[c]", &long)]),
            "LifecyclePolicy payments/keep: InvalidParameterException: the rules together are not valid: they have 31238 characters \
             as JSON, and may have 30720: shorten descriptions or lists",
        ),
        (
            &aws,
            repository("api", &statement(&"s".repeat(10_240), "Allow")),
            "Repository payments/api: InvalidParameterException: repositoryPolicy is not valid: it has 10316 characters without \
             spaces, and may have 10240: shorten it",
        ),
        (
            &managed,
            repository("api", &statement("all", "Deny")),
            "Repository payments/api: InvalidParameterException: repositoryPolicy is not valid: its Deny would keep the registry's \
             own key from ever setting another one: leave ecr:SetRepositoryPolicy out of it",
        ),
        (
            &managed,
            repository("api", "encryptionConfiguration: {encryptionType: KMS_DSSE}"),
            "Repository payments/api: UnsupportedByRegistry: encryptionType KMS_DSSE needs a key service, which a managed registry \
             does not have yet: set it to AES256",
        ),
    ] {
        assert_eq!(refusals(&wanted(&format!("{registry}{resource}"))), [expected]);
    }
    // Amazon ECR has keys, and another identity than the one that is denied.
    for resource in [
        repository("api", "encryptionConfiguration: {encryptionType: KMS}"),
        repository("api", &statement("all", "Deny")),
    ] {
        assert_eq!(refusals(&wanted(&format!("{aws}{resource}"))), Vec::<String>::new());
    }
}
