//! The rules that each kind is held to, and their exact messages.

use super::*;

/// Returns the messages about a Repository with these fields beside registryRef.
fn repository_problems(fields: &str) -> String {
    let spec = format!("registryRef: {{name: home}}\n{fields}");
    load(&manifest("Repository", "api", &spec)).unwrap_err().to_string()
}

/// Returns the messages about a Registry with this spec.
fn registry_problems(spec: &str) -> String {
    load(&manifest("Registry", "home", spec)).unwrap_err().to_string()
}

/// Returns the messages about a LifecyclePolicy with these rules, one per line.
fn policy_problems(rules: &[&str]) -> String {
    load(&policy(rules)).unwrap_err().to_string()
}

#[test]
fn registries_are_held_to_their_rules() {
    const PREFIX: &str = "a.yaml:";
    for (spec, expected) in [
        (
            "region: eu-1",
            "5 (document 1): Registry home: spec: give exactly one of managed, endpoint and aws",
        ),
        (
            "region: eu-1\nmanaged: {}\naws: {}",
            "5 (document 1): Registry home: spec: give exactly one of managed, endpoint and aws",
        ),
        (
            "aws: {}",
            "5 (document 1): Registry home: spec: region is required with endpoint and aws: name the region that the registry's API is signed for",
        ),
        (
            "managed: {}\nregistryId: 123456789012",
            "7 (document 1): Registry home: spec.registryId: must be a string: put 123456789012 in quotes",
        ),
        (
            "managed: {}\nregistryId: \"1234\"",
            "7 (document 1): Registry home: spec.registryId: \"1234\" does not match ^[0-9]{12}$\na.yaml:7 (document 1): Registry home: spec.registryId: \"1234\" has fewer than 12 characters",
        ),
        (
            "managed:\n  replicas: 2",
            "6 (document 1): Registry home: spec.managed: more than one replica needs storage.s3 and database.postgres, which replicas can share; or set replicas to 1",
        ),
        (
            "managed:\n  replicas: 2\n  storage: {s3: {bucket: images}}\n  database: {sqlite: {}}",
            "6 (document 1): Registry home: spec.managed: more than one replica needs storage.s3 and database.postgres, which replicas can share; or set replicas to 1",
        ),
        (
            "managed:\n  storage: {s3: {bucket: images}, filesystem: {}}",
            "7 (document 1): Registry home: spec.managed.storage: give exactly one of filesystem and s3",
        ),
        (
            "managed:\n  database: {}",
            "7 (document 1): Registry home: spec.managed.database: give exactly one of sqlite and postgres",
        ),
        (
            "managed:\n  database: {sqlite: {file: x}}",
            "7 (document 1): Registry home: spec.managed.database.sqlite.file: unknown field: known here are size, storageClassName",
        ),
        (
            "managed:\n  database: {sqlite: {size: 1Gi}}",
            "6 (document 1): Registry home: spec.managed: database.sqlite has a volume of its own only with storage.s3; else it lies beside the images: set storage.filesystem.size and storageClassName",
        ),
        (
            "managed:\n  tls: {}",
            "7 (document 1): Registry home: spec.managed.tls: give secretName, or certManager to have a certificate issued",
        ),
        (
            "managed:\n  service: {nodePort: 30443}",
            "7 (document 1): Registry home: spec.managed.service: nodePort needs type NodePort or LoadBalancer",
        ),
        (
            "managed: {}\naccountSettings: {BLOB_MOUNTING: enabled}",
            "7 (document 1): Registry home: spec.accountSettings.BLOB_MOUNTING: \"enabled\" is none of ENABLED, DISABLED",
        ),
        (
            "managed: {publicUrl: registry.example.com}",
            "6 (document 1): Registry home: spec.managed.publicUrl: \"registry.example.com\" does not match ^https?://[a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?(:[0-9]{1,5})?/?$",
        ),
        (
            "managed: {}\nscanningConfiguration: {rules: [{scanFrequency: CONTINUOUS_SCAN, repositoryFilters: []}]}",
            "7 (document 1): Registry home: spec.scanningConfiguration: scanFrequency CONTINUOUS_SCAN needs scanType ENHANCED: set that, or use SCAN_ON_PUSH",
        ),
        (
            "managed: {}\nscanningConfiguration: {rules: [{scanFrequency: SCAN_ON_PUSH, repositoryFilters: []}, {scanFrequency: SCAN_ON_PUSH, repositoryFilters: []}]}",
            "7 (document 1): Registry home: spec.scanningConfiguration: at most one rule may have a scanFrequency: join the repositoryFilters of those that share one",
        ),
    ] {
        assert_eq!(registry_problems(spec), format!("{PREFIX}{expected}"), "{spec}");
    }
    let shared = "managed:\n  replicas: 3\n  storage: {s3: {bucket: images}}\n  database: {postgres: {connectionSecretRef: {name: pg, namespace: wharfage}}}\n  resources: {limits: {memory: 512Mi, cpu: 2}}";
    assert!(load(&manifest("Registry", "home", shared)).is_ok());
    let scanned = "managed: {}\nscanningConfiguration: {scanType: ENHANCED, rules: [{scanFrequency: CONTINUOUS_SCAN, repositoryFilters: [{filter: 'a*', filterType: WILDCARD}]}, {scanFrequency: SCAN_ON_PUSH, repositoryFilters: []}]}";
    assert!(load(&manifest("Registry", "home", scanned)).is_ok());
}

#[test]
fn repositories_are_held_to_their_rules() {
    const FILTERS: &str = "spec: imageTagMutabilityExclusionFilters (1 to 5) go with IMMUTABLE_WITH_EXCLUSION and MUTABLE_WITH_EXCLUSION: give both, or neither";
    for (fields, expected) in [
        ("imageTagMutability: IMMUTABLE_WITH_EXCLUSION", FILTERS),
        (
            "imageTagMutability: IMMUTABLE_WITH_EXCLUSION\nimageTagMutabilityExclusionFilters: []",
            FILTERS,
        ),
        ("imageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: dev}]", FILTERS),
        (
            "imageTagMutability: MUTABLE_WITH_EXCLUSION\nimageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: '*a*b*'}]",
            "spec.imageTagMutabilityExclusionFilters[0].filter: a filter has at most two stars",
        ),
        (
            "imageTagMutability: MUTABLE_WITH_EXCLUSION\nimageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: a/b}]",
            "spec.imageTagMutabilityExclusionFilters[0].filter: \"a/b\" does not match ^[0-9a-zA-Z._*-]{1,128}$",
        ),
        (
            "imageTagMutability: MUTABLE_WITH_EXCLUSION\nimageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: a}, {filterType: WILDCARD, filter: a}]",
            "spec.imageTagMutabilityExclusionFilters[1]: {\"filter\":\"a\",\"filterType\":\"WILDCARD\"} is given twice: take one out",
        ),
        (
            "imageTagMutability: MUTABLE_WITH_EXCLUSION\nimageTagMutabilityExclusionFilters: [a, b, c, d, e, f]",
            "spec.imageTagMutabilityExclusionFilters: has more entries than 5",
        ),
        (
            "repositoryName: Team/Api",
            "spec.repositoryName: \"Team/Api\" does not match ^[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(\\/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*$",
        ),
        (
            "encryptionConfiguration: {encryptionType: AES256, kmsKey: alias/mine}",
            "spec.encryptionConfiguration: kmsKey goes with encryptionType KMS or KMS_DSSE: change the type, or leave kmsKey out",
        ),
        (
            "catalogData: {description: Hello}",
            "spec: catalogData is for public repositories: set visibility to Public, or leave catalogData out",
        ),
        (
            "tags: {'aws:team': a}",
            "spec.tags: tags that start with aws: or wharfage.dev/ are reserved: choose another key",
        ),
        (
            "tags: {'AWS:team': a}",
            "spec.tags: tags that start with aws: or wharfage.dev/ are reserved: choose another key",
        ),
        (
            "tags: {'a,b': a}",
            "spec.tags: a tag's key has letters, digits, spaces and _.:/=+-@ only: choose another key",
        ),
        ("tags: {a: 'a,b'}", "spec.tags.a: \"a,b\" does not match ^[\\p{L}\\p{N} _.:/=+@-]*$"),
        ("tags: {cost-center: 42}", "spec.tags.cost-center: must be a string: put 42 in quotes"),
        (
            "interval: 10 minutes",
            "spec.interval: \"10 minutes\" does not match ^([0-9]{1,6}(ms|s|m|h)){1,4}$",
        ),
        ("interval: 0s", "spec.interval: an interval is 1s or longer: give a longer one"),
        ("interval: 0h0m999ms", "spec.interval: an interval is 1s or longer: give a longer one"),
        ("repositoryPolicy: '{}'", "spec.repositoryPolicy: must be a mapping, not \"{}\""),
        ("deletionPolicy: delete", "spec.deletionPolicy: \"delete\" is none of Retain, Delete"),
        ("suspend: 'true'", "spec.suspend: must be true or false, not \"true\""),
    ] {
        let problems = repository_problems(fields);
        let problem = problems.lines().find(|line| line.ends_with(expected));
        assert!(
            problem.is_some_and(|line| line.contains(": Repository default/api: ")),
            "{fields}\n{problems}\n{expected}"
        );
    }
}

#[test]
fn scalars_are_read_as_kubectl_reads_them() {
    for (scalar, expected) in [
        ("yes", "must be a string: put yes in quotes"),
        ("off", "must be a string: put off in quotes"),
        ("12", "must be a string: put 12 in quotes"),
        ("1e3", "must be a string: put 1e3 in quotes"),
        ("5.0", "must be a string: put 5.0 in quotes"),
        ("0x10", "must be a string: put 0x10 in quotes"),
        ("[]", "must be a string, not []"),
    ] {
        let problems = repository_problems(&format!("tags: {{a: {scalar}}}"));
        assert!(problems.ends_with(&format!("spec.tags.a: {expected}")), "{scalar}: {problems}");
    }
    for (scalar, expected) in [
        ("'yes'", "yes"),
        ("2026-11-21", "2026-11-21"),
        ("1.2.3", "1.2.3"),
        ("\"5\"", "5"),
        ("a b", "a b"),
    ] {
        let text = manifest(
            "Repository",
            "api",
            &format!("registryRef: {{name: home}}\ntags: {{a: {scalar}}}"),
        );
        assert_eq!(load(&text).unwrap().repositories[0].resource.spec.tags["a"], expected);
    }
}

#[test]
fn a_null_is_as_good_as_nothing() {
    let spec = "registryRef: {name: home}\nrepositoryName: ~\nimageTagMutability: null\nimageTagMutabilityExclusionFilters:\ntags: {a: null}";
    let manifests = load(&manifest("Repository", "api", spec)).unwrap();
    let spec = serde_json::to_value(&manifests.repositories[0].resource.spec).unwrap();
    assert_eq!(spec, serde_json::json!({ "registryRef": { "name": "home" } }));
}

#[test]
fn lifecycle_policies_are_held_to_their_rules() {
    let rule = |selection: &str, action: &str| {
        format!("{{rulePriority: 1, selection: {{{selection}}}, action: {{{action}}}}}")
    };
    for (selection, action, expected) in [
        (
            "tagStatus: tagged, countType: imageCountMoreThan, countNumber: 5",
            "type: expire",
            ".selection: tagStatus tagged needs one of tagPatternList and tagPrefixList",
        ),
        (
            "tagStatus: tagged, tagPatternList: ['v*'], tagPrefixList: [v], countType: imageCountMoreThan, countNumber: 5",
            "type: expire",
            ".selection: tagStatus tagged needs one of tagPatternList and tagPrefixList",
        ),
        (
            "tagStatus: any, tagPatternList: ['v*'], countType: imageCountMoreThan, countNumber: 5",
            "type: expire",
            ".selection: tagPatternList and tagPrefixList go with tagStatus tagged only: leave them out, or change tagStatus",
        ),
        (
            "tagStatus: tagged, tagPatternList: [], countType: imageCountMoreThan, countNumber: 5",
            "type: expire",
            ".selection.tagPatternList: has fewer entries than 1",
        ),
        (
            "tagStatus: tagged, tagPatternList: ['*a*b*c*d*'], countType: imageCountMoreThan, countNumber: 5",
            "type: expire",
            ".selection.tagPatternList[0]: \"*a*b*c*d*\" does not match ^[^*]*(\\*[^*]*){0,4}$",
        ),
        (
            "tagStatus: any, countType: imageCountMoreThan, countUnit: days, countNumber: 5",
            "type: expire",
            ".selection: countUnit (days) goes with every countType but imageCountMoreThan: add it, or leave it out",
        ),
        (
            "tagStatus: any, countType: sinceImagePushed, countNumber: 5",
            "type: expire",
            ".selection: countUnit (days) goes with every countType but imageCountMoreThan: add it, or leave it out",
        ),
        (
            "tagStatus: any, countType: imageCountMoreThan, countNumber: 0",
            "type: expire",
            ".selection.countNumber: 0 is less than 1",
        ),
        (
            "tagStatus: any, countType: sinceImagePulled, countUnit: days, countNumber: 5",
            "type: expire",
            ": countType sinceImagePulled goes with action.type transition only: expire by sinceImagePushed or imageCountMoreThan",
        ),
        (
            "tagStatus: any, countType: sinceImageTransitioned, storageClass: archive, countUnit: days, countNumber: 90",
            "type: transition, targetStorageClass: archive",
            ": countType sinceImageTransitioned goes with action.type expire only",
        ),
        (
            "tagStatus: any, countType: sinceImageTransitioned, storageClass: archive, countUnit: days, countNumber: 89",
            "type: expire",
            ".selection: countNumber is at least 90 with countType sinceImageTransitioned: images are archived for 90 days or more",
        ),
        (
            "tagStatus: any, countType: sinceImageTransitioned, countUnit: days, countNumber: 90",
            "type: expire",
            ".selection: storageClass archive and countType sinceImageTransitioned go together: give both, or neither",
        ),
        (
            "tagStatus: any, countType: imageCountMoreThan, storageClass: archive, countNumber: 90",
            "type: expire",
            ".selection: storageClass archive and countType sinceImageTransitioned go together: give both, or neither",
        ),
        (
            "tagStatus: any, countType: imageCountMoreThan, countNumber: 90",
            "type: transition",
            ".action: targetStorageClass (archive) goes with type transition: give both, or neither",
        ),
        (
            "tagStatus: any, countType: imageCountMoreThan, countNumber: 90",
            "type: expire, targetStorageClass: archive",
            ".action: targetStorageClass (archive) goes with type transition: give both, or neither",
        ),
    ] {
        let text = rule(selection, action);
        let expected = format!("LifecyclePolicy default/keep: spec.rules[0]{expected}");
        let problems = policy_problems(&[&text]);
        assert!(
            problems.lines().any(|line| line.ends_with(&expected)),
            "{text}\n{problems}\n{expected}"
        );
    }
    assert!(load(&policy(&[&rule("tagStatus: any, countType: sinceImageTransitioned, storageClass: archive, countUnit: days, countNumber: 90", "type: expire")])).is_ok());
    assert!(
        load(&policy(&[&rule(
            "tagStatus: any, countType: sinceImagePulled, countUnit: days, countNumber: 9",
            "type: transition, targetStorageClass: archive"
        )]))
        .is_ok()
    );
}

#[test]
fn rules_of_a_policy_fit_together() {
    let any = "{rulePriority: 2, selection: {tagStatus: any, countType: imageCountMoreThan, countNumber: 9}, action: {type: expire}}";
    let archived = "{rulePriority: 3, selection: {tagStatus: untagged, storageClass: archive, countType: sinceImageTransitioned, countUnit: days, countNumber: 90}, action: {type: expire}}";
    assert!(load(&policy(&[any, UNTAGGED, archived])).is_ok());
    for (rules, expected) in [
        (
            vec![UNTAGGED, &any.replace('2', "1")],
            "every rule needs its own rulePriority: renumber the rules",
        ),
        (
            vec![UNTAGGED, &UNTAGGED.replacen('1', "2", 1)],
            "only one rule may select untagged images per storage class: join them",
        ),
        (
            vec![any, &UNTAGGED.replacen('1', "3", 1)],
            "a rule with tagStatus any must have the highest rulePriority of its storage class: number it last",
        ),
    ] {
        let problems = policy_problems(&rules);
        assert!(problems.ends_with(&format!("spec.rules: {expected}")), "{rules:?}\n{problems}");
    }
    assert!(policy_problems(&[UNTAGGED; 51]).ends_with("spec.rules: has more entries than 50"));
}

#[test]
fn a_policy_names_one_repository_or_selects_several() {
    let rules = format!("rules:\n- {UNTAGGED}");
    for targets in ["", "repositoryRef: {name: api}\nrepositorySelector: {}\n"] {
        let text = manifest(
            "LifecyclePolicy",
            "keep",
            &format!("registryRef: {{name: home}}\n{targets}{rules}"),
        );
        let problems = load(&text).unwrap_err().to_string();
        assert!(
            problems.ends_with("spec: give exactly one of repositoryRef and repositorySelector"),
            "{problems}"
        );
    }
}

#[test]
fn a_pasted_ecr_policy_comes_out_as_it_went_in() {
    let rules = r#"[{"rulePriority":1,"description":"untagged","selection":{"tagStatus":"untagged","countType":"sinceImagePushed","countUnit":"days","countNumber":14},"action":{"type":"expire"}}]"#;
    let text = manifest(
        "LifecyclePolicy",
        "keep",
        &format!("registryRef: {{name: home}}\nrepositorySelector: {{}}\nrules: {rules}"),
    );
    let document = load(&text).unwrap().lifecycle_policies[0].resource.document();
    assert_eq!(
        document,
        serde_json::json!({ "rules": serde_json::from_str::<Value>(rules).unwrap() })
    );
}

#[test]
fn a_registry_stays_what_and_where_it_is() {
    let registry = |spec: &str| load(&manifest("Registry", "home", spec)).unwrap();
    let loader = Loader::new().unwrap();
    const STAYS: &str = "spec: a registry that Wharfage runs stays one, and another stays another: make a new Registry";
    const NAMESPACE: &str = "spec.managed: managed.namespace is immutable, as volumes don't move: make another Registry, and replicate to it";
    const STORAGE: &str = "spec.managed: storage can't change alone, as its bytes don't move and the database counts on them: set it back, or make another Registry and replicate to it; with another database, too, this one begins empty";
    const ACCOUNT: &str = "spec: registryId is immutable, as the repositories are that account's (default: 000000000000): make another Registry, and replicate to it";
    for (old, new, expected) in [
        ("managed: {}", "region: eu-1\nendpoint: {url: 'https://r.example.com'}", STAYS),
        ("region: eu-1\naws: {}", "region: eu-1\nmanaged: {}", STAYS),
        ("managed: {namespace: a}", "managed: {namespace: b}", NAMESPACE),
        ("managed: {namespace: a}", "managed: {}", NAMESPACE),
        ("managed: {}", "managed: {storage: {s3: {bucket: images}}}", STORAGE),
        (
            "managed: {storage: {s3: {bucket: images}}}",
            "managed: {storage: {filesystem: {}}}",
            STORAGE,
        ),
        ("managed: {}", "managed: {}\nregistryId: '123456789012'", ACCOUNT),
    ] {
        let problems =
            loader.check_update(&registry(old), &registry(new)).map_err(|error| error.to_string());
        assert!(
            problems.as_ref().is_err_and(|it| it.ends_with(expected)),
            "{old} to {new}: {problems:?}"
        );
    }
    let moved = "managed: {namespace: a, replicas: 1, storage: {s3: {bucket: images}}, database: {postgres: {connectionSecretRef: {name: pg, namespace: a}}}}";
    for old in ["managed: {}", "managed: {namespace: a}"] {
        assert_eq!(loader.check_update(&registry(old), &registry(moved)), Ok(()), "{old}");
    }
}

#[test]
fn immutable_fields_stay_and_others_may_change() {
    let repository = |fields: &str| {
        load(&manifest("Repository", "api", &format!("registryRef: {{name: home}}\n{fields}")))
            .unwrap()
    };
    let loader = Loader::new().unwrap();
    let old = repository("");
    for (fields, expected) in [
        (
            "repositoryName: web",
            "Repository default/api: repositoryName is immutable: make another Repository with the new name, and copy the images to it",
        ),
        (
            "visibility: Public",
            "Repository default/api: spec: visibility is immutable: make another Repository, and copy the images to it",
        ),
        (
            "encryptionConfiguration: {encryptionType: KMS}",
            "Repository default/api: spec: encryptionConfiguration is immutable: make another Repository, and copy the images to it",
        ),
    ] {
        let problems = loader.check_update(&old, &repository(fields)).unwrap_err().to_string();
        assert_eq!(problems, format!("a.yaml:1 (document 1): {expected}"));
    }
    for fields in [
        "repositoryName: api",
        "visibility: Private",
        "encryptionConfiguration: {encryptionType: AES256}",
        "imageTagMutability: IMMUTABLE",
    ] {
        assert_eq!(loader.check_update(&old, &repository(fields)), Ok(()), "{fields}");
    }
    assert_eq!(loader.check_update(&Manifests::default(), &old), Ok(()));

    let policy = |registry: &str| {
        let spec = format!(
            "registryRef: {{name: {registry}}}\nrepositorySelector: {{}}\nrules: [{UNTAGGED}]"
        );
        load(&manifest("LifecyclePolicy", "keep", &spec)).unwrap()
    };
    let problems = loader.check_update(&policy("home"), &policy("us")).unwrap_err().to_string();
    assert_eq!(
        problems,
        "a.yaml:1 (document 1): LifecyclePolicy default/keep: spec: registryRef is immutable: make another LifecyclePolicy for the \
         other Registry"
    );
}

#[test]
fn pull_secrets_are_held_to_their_rules() {
    let problems = |fields: &str| {
        load(&manifest("PullSecret", "pull", &format!("registryRef: {{name: home}}\n{fields}")))
    };
    const PREFIX: &str = "a.yaml:";
    for (fields, expected) in [
        (
            "secretName: Pull_Secret",
            "7 (document 1): PullSecret default/pull: spec.secretName: \"Pull_Secret\" does not match ^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        ),
        (
            "serviceAccounts: [default, default]",
            "7 (document 1): PullSecret default/pull: spec.serviceAccounts[1]: \"default\" is given twice: take one out",
        ),
        (
            "namespaceSelektor: {}",
            "7 (document 1): PullSecret default/pull: spec.namespaceSelektor: unknown field: did you mean namespaceSelector?",
        ),
    ] {
        assert_eq!(
            problems(fields).unwrap_err().to_string(),
            format!("{PREFIX}{expected}"),
            "{fields}"
        );
    }
    let most = (0..64).map(|n| format!("sa-{n}")).collect::<Vec<_>>().join(", ");
    assert!(problems(&format!("serviceAccounts: [{most}]")).is_ok());
    assert!(problems(&format!("serviceAccounts: [{most}, one-more]")).is_err());
    let whole = "namespaceSelector: {matchLabels: {pulls-from: home}}\nsecretName: home-pull\nserviceAccounts: [default]\nsuspend: false";
    let manifests = problems(whole).unwrap();
    assert_eq!(manifests.pull_secrets[0].resource.secret_name(), "home-pull");
    assert!(!manifests.is_empty());
}
