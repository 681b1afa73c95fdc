//! Good and bad folders, and what is said about them.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use kube::ResourceExt as _;
use proptest::prelude::*;

use super::*;
use crate::crd::common::Managed as _;
use crate::crd::lifecycle_policy::Mode;
use crate::crd::repository::ImageTagMutability;

/// A folder with these files, gone when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wharfage-manifests-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&folder.0).unwrap();
        for (name, text) in files {
            let path = folder.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn load(&self) -> Result<Manifests, LoadError> {
        Loader::new().unwrap().load(&self.0)
    }

    /// What is said about a folder that is refused, a line per fault.
    fn problems(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn load(text: &str) -> Result<Manifests, LoadError> {
    Folder::with(&[("a.yaml", text)]).load()
}

fn manifest(kind: &str, name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: wharfage.dev/v1alpha1\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n{spec}")
}

/// What is said about a Repository with these fields beside registryRef.
fn repository_problems(fields: &str) -> String {
    let spec = format!("registryRef: {{name: home}}\n{fields}");
    load(&manifest("Repository", "api", &spec)).unwrap_err().to_string()
}

/// What is said about a Registry with this spec.
fn registry_problems(spec: &str) -> String {
    load(&manifest("Registry", "home", spec)).unwrap_err().to_string()
}

/// What is said about a LifecyclePolicy with these rules, one per line.
fn policy_problems(rules: &[&str]) -> String {
    load(&policy(rules)).unwrap_err().to_string()
}

fn policy(rules: &[&str]) -> String {
    let rules: String = rules.iter().map(|rule| format!("\n- {rule}")).collect();
    manifest(
        "LifecyclePolicy",
        "keep",
        &format!("registryRef: {{name: home}}\nrepositoryRef: {{name: api}}\nrules:{rules}"),
    )
}

const UNTAGGED: &str = "{rulePriority: 1, selection: {tagStatus: untagged, countType: sinceImagePushed, countUnit: days, countNumber: 14}, action: {type: expire}}";

#[test]
fn a_folder_is_read_with_all_folders_in_it() {
    let folder = Folder::with(&[
        ("registry.yaml", &manifest("Registry", "home", "managed: {}")),
        ("deep/er/api.yml", &manifest("Repository", "api", "registryRef: {name: home}")),
        (
            "deep/web.json",
            r#"{"apiVersion": "wharfage.dev/v1alpha1", "kind": "Repository", "metadata": {"name": "web", "namespace": "team"}, "spec": {"registryRef": {"name": "home"}}}"#,
        ),
        ("policy.yaml", &policy(&[UNTAGGED])),
        (".hidden.yaml", "no: manifest"),
        (".git/config.yaml", "no: manifest"),
        ("kustomization.yaml", "resources: [registry.yaml]"),
        ("README.md", "Hello"),
    ]);
    let manifests = folder.load().unwrap();
    assert_eq!(manifests.registry("home").unwrap().source.to_string(), "registry.yaml:1 (document 1)");
    let names: Vec<_> =
        manifests.repositories.iter().map(|it| (it.resource.namespace(), it.resource.name_any())).collect();
    assert_eq!(names, [(Some("default".into()), "api".into()), (Some("team".into()), "web".into())]);
    assert_eq!(manifests.repositories[0].source.file, Path::new("deep/er/api.yml"));
    assert_eq!(manifests.lifecycle_policies[0].resource.mode(), Mode::Preview);
    assert!(manifests.skipped.is_empty());
}

#[test]
fn a_single_file_can_be_read() {
    let folder = Folder::with(&[("registry.yaml", &manifest("Registry", "home", "managed: {}"))]);
    let manifests = Loader::new().unwrap().load(&folder.0.join("registry.yaml")).unwrap();
    assert_eq!(manifests.registries[0].source.file, Path::new("registry.yaml"));
}

#[test]
fn a_file_may_hold_several_documents_and_empty_ones() {
    let one = manifest("Repository", "one", "registryRef: {name: home}");
    let two = manifest("Repository", "two", "registryRef: {name: home}");
    let manifests = load(&format!("---\n# nothing but a comment\n---\n{one}---\n{two}---\n")).unwrap();
    let sources: Vec<_> = manifests.repositories.iter().map(|loaded| loaded.source.to_string()).collect();
    assert_eq!(sources, ["a.yaml:4 (document 1)", "a.yaml:11 (document 2)"]);
}

#[test]
fn a_list_is_taken_apart() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: wharfage.dev/v1alpha1\n  kind: Registry\n  metadata: {name: home}\n  spec: {managed: {}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}\n";
    let manifests = load(list).unwrap();
    assert_eq!(manifests.registries[0].source.line, 4);
    assert_eq!(manifests.skipped[0].object, "v1 ConfigMap settings");
}

#[test]
fn what_comes_out_of_a_cluster_goes_in() {
    let text = "
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: '{}'
  creationTimestamp: '2026-11-21T05:00:00Z'
  generation: 3
  labels: {app.kubernetes.io/name: api, tier: prod}
  name: api
  namespace: payments
  resourceVersion: '77'
  uid: 6f3c
  managedFields:
  - {manager: kubectl, operation: Apply, fieldsV1: {f:spec: {}}}
spec:
  registryRef: {name: home}
  repositoryName: null
  repositoryPolicy: {Version: '2012-10-17', Statement: [{Effect: Allow, Principal: '*', Action: 'ecr:BatchGetImage', Condition: null}]}
status: {observedGeneration: -1, whatever: true}
";
    let manifests = load(text).unwrap();
    let repository = &manifests.repositories[0].resource;
    assert_eq!(repository.repository_name().unwrap().as_str(), "api");
    assert_eq!(repository.labels()["tier"], "prod");
    assert!(repository.status.is_none());
    let policy = repository.spec.repository_policy.as_ref().unwrap();
    assert!(policy.0["Statement"][0].as_object().unwrap().contains_key("Condition"), "a document is kept as it is");
}

#[test]
fn absent_fields_have_their_defaults_and_are_not_written() {
    let manifests = load(&manifest("Repository", "api", "registryRef: {name: home}")).unwrap();
    let repository = &manifests.repositories[0].resource;
    assert_eq!(repository.image_tag_mutability(), ImageTagMutability::Mutable);
    assert_eq!(repository.interval().as_secs(), 600);
    let spec = serde_json::to_value(&repository.spec).unwrap();
    assert_eq!(spec, serde_json::json!({ "registryRef": { "name": "home" } }));
}

#[test]
fn labels_of_declared_namespaces_are_known() {
    let manifests = load("{apiVersion: v1, kind: Namespace, metadata: {name: team, labels: {tier: prod}}}").unwrap();
    assert_eq!(manifests.namespace_labels("team")["tier"], "prod");
    assert_eq!(manifests.namespace_labels("other")["kubernetes.io/metadata.name"], "other");
    assert!(manifests.is_empty() && manifests.skipped.is_empty());
}

#[test]
fn kinds_of_others_are_noted_and_passed_over() {
    let manifests =
        load("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {anything: goes}\n").unwrap();
    assert_eq!(manifests.skipped[0].object, "apps/v1 Deployment web");
}

#[test]
fn the_quickstart_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/quickstart");
    let manifests = Loader::new().unwrap().load(&folder).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(manifests.registries.len(), 1);
    assert!(
        manifests
            .repositories
            .iter()
            .any(|it| it.resource.image_tag_mutability() == ImageTagMutability::ImmutableWithExclusion)
    );
    let modes: Vec<_> = manifests.lifecycle_policies.iter().map(|policy| policy.resource.mode()).collect();
    assert!(modes.contains(&Mode::Enforce) && modes.contains(&Mode::Preview));
    for repository in &manifests.repositories {
        assert!(manifests.registry(&repository.resource.registry_ref().name).is_some());
    }
    for policy in &manifests.lifecycle_policies {
        let chosen = manifests.repositories.iter().filter(|it| policy.resource.applies_to(&it.resource));
        assert!(chosen.count() > 0, "{} is about no repository", policy.resource.name_any());
    }
}

#[test]
fn faults_name_file_line_document_object_and_field() {
    let good = manifest("Registry", "home", "managed: {}");
    let bad = manifest(
        "Repository",
        "api",
        "registryRef: {name: home}\nimageTagMutability: IMMUTBLE\nimageTagMutabilty: MUTABLE",
    );
    let folder = Folder::with(&[("team/repositories.yaml", &format!("{good}---\n{bad}"))]);
    assert_eq!(
        folder.problems(),
        "team/repositories.yaml:14 (document 2): Repository default/api: spec.imageTagMutability: \"IMMUTBLE\" is none of MUTABLE, IMMUTABLE, MUTABLE_WITH_EXCLUSION, IMMUTABLE_WITH_EXCLUSION\n\
         team/repositories.yaml:15 (document 2): Repository default/api: spec.imageTagMutabilty: unknown field: did you mean imageTagMutability?"
    );
}

#[test]
fn all_faults_of_all_files_are_told() {
    let folder = Folder::with(&[
        ("a.yaml", "a: [1"),
        ("b.yaml", "hello: world"),
        ("c.yaml", &manifest("Registry", "home", "managed: {replicas: -1}")),
        ("d.yaml", &manifest("Registry", "home", "managed: {}")),
    ]);
    let problems = folder.load().unwrap_err().problems;
    let files: Vec<_> = problems.iter().map(|problem| problem.file.to_str().unwrap()).collect();
    assert_eq!(files, ["a.yaml", "b.yaml", "c.yaml"]);
}

#[test]
fn documents_that_are_no_manifests_of_ours_are_refused() {
    for (text, message) in [
        (
            "hello: world",
            "a.yaml:1 (document 1): has no apiVersion and kind, so it is no manifest: add them, or take it out of the folder",
        ),
        (
            "just text",
            "a.yaml:1 (document 1): has no apiVersion and kind, so it is no manifest: add them, or take it out of the folder",
        ),
        (
            "{apiVersion: wharfage.dev/v1alpha1, kind: Repo, metadata: {name: api}}",
            "a.yaml:1 (document 1): wharfage.dev/v1alpha1 Repo is unknown: this version knows wharfage.dev/v1alpha1 Registry, Repository, LifecyclePolicy",
        ),
        (
            "{apiVersion: wharfage.dev/v1, kind: Repository, metadata: {name: api}}",
            "a.yaml:1 (document 1): wharfage.dev/v1 Repository is unknown: this version knows wharfage.dev/v1alpha1 Registry, Repository, LifecyclePolicy",
        ),
        (
            "{apiVersion: wharfage.dev/v1alpha1, kind: Repository}",
            "a.yaml:1 (document 1): Repository: metadata: is required\na.yaml:1 (document 1): Repository: spec: is required",
        ),
        (
            "{apiVersion: wharfage.dev/v1alpha1, kind: Repository, metadata: {name: Api}, spec: {registryRef: {name: home}}}",
            "a.yaml:1 (document 1): Repository default/Api: metadata.name: \"Api\" does not match ^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        ),
        (
            "{apiVersion: wharfage.dev/v1alpha1, kind: Repository, metadata: {name: a}, spec: {registryRef: {name: home}}}",
            "a.yaml:1 (document 1): Repository default/a: metadata.name has one character, a repository's name at least two: set spec.repositoryName",
        ),
    ] {
        assert_eq!(load(text).unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn a_name_may_be_taken_once_only() {
    let repository = manifest("Repository", "api", "registryRef: {name: home}");
    let folder = Folder::with(&[("a.yaml", &repository), ("b.yaml", &repository)]);
    assert_eq!(
        folder.problems(),
        "b.yaml:1 (document 1): Repository default/api: is already declared at a.yaml:1 (document 1): take one out, or rename it"
    );
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let problems = Loader::new().unwrap().load(Path::new("no/such/folder")).unwrap_err().to_string();
    assert!(problems.starts_with("no/such/folder: can't be read: "), "{problems}");
}

#[test]
fn yaml_that_is_ambiguous_or_broken_is_refused_with_its_line() {
    for (text, line) in [("a: 1\nb: 2\na: 3\n", "line 3"), ("a: 1\nb: [\n", "line"), ("a: &x 1\nb: *y\n", "line 2")] {
        let problems = load(text).unwrap_err().to_string();
        assert!(problems.starts_with("a.yaml: is not valid YAML: ") && problems.contains(line), "{problems}");
    }
}

#[test]
fn registries_are_held_to_their_rules() {
    const PREFIX: &str = "a.yaml:";
    for (spec, expected) in [
        ("region: eu-1", "5 (document 1): Registry home: spec: give exactly one of managed, endpoint and aws"),
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
            "7 (document 1): Registry home: spec.managed.database.sqlite: takes no fields",
        ),
        (
            "managed: {}\naccountSettings: {BLOB_MOUNTING: enabled}",
            "7 (document 1): Registry home: spec.accountSettings.BLOB_MOUNTING: \"enabled\" is none of ENABLED, DISABLED",
        ),
        (
            "managed: {publicUrl: registry.example.com}",
            "6 (document 1): Registry home: spec.managed.publicUrl: \"registry.example.com\" does not match ^https?://[a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?(:[0-9]{1,5})?/?$",
        ),
    ] {
        assert_eq!(registry_problems(spec), format!("{PREFIX}{expected}"), "{spec}");
    }
    let shared = "managed:\n  replicas: 3\n  storage: {s3: {bucket: images}}\n  database: {postgres: {connectionSecretRef: {name: pg, namespace: wharfage}}}\n  resources: {limits: {memory: 512Mi, cpu: 2}}";
    assert!(load(&manifest("Registry", "home", shared)).is_ok());
}

#[test]
fn repositories_are_held_to_their_rules() {
    const FILTERS: &str = "spec: imageTagMutabilityExclusionFilters (1 to 5) go with IMMUTABLE_WITH_EXCLUSION and MUTABLE_WITH_EXCLUSION: give both, or neither";
    for (fields, expected) in [
        ("imageTagMutability: IMMUTABLE_WITH_EXCLUSION", FILTERS),
        ("imageTagMutability: IMMUTABLE_WITH_EXCLUSION\nimageTagMutabilityExclusionFilters: []", FILTERS),
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
        ("tags: {cost-center: 42}", "spec.tags.cost-center: must be a string: put 42 in quotes"),
        ("interval: 10 minutes", "spec.interval: \"10 minutes\" does not match ^([0-9]{1,6}(ms|s|m|h)){1,4}$"),
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
        ("yes", "must be a string: put true in quotes"),
        ("off", "must be a string: put false in quotes"),
        ("12", "must be a string: put 12 in quotes"),
        ("1e3", "must be a string: put 1000 in quotes"),
        ("5.0", "must be a string: put 5 in quotes"),
        ("0x10", "must be a string: put 16 in quotes"),
        ("[]", "must be a string, not []"),
    ] {
        let problems = repository_problems(&format!("tags: {{a: {scalar}}}"));
        assert!(problems.ends_with(&format!("spec.tags.a: {expected}")), "{scalar}: {problems}");
    }
    for (scalar, expected) in
        [("'yes'", "yes"), ("2026-11-21", "2026-11-21"), ("1.2.3", "1.2.3"), ("\"5\"", "5"), ("a b", "a b")]
    {
        let text = manifest("Repository", "api", &format!("registryRef: {{name: home}}\ntags: {{a: {scalar}}}"));
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
        assert!(problems.lines().any(|line| line.ends_with(&expected)), "{text}\n{problems}\n{expected}");
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
        (vec![UNTAGGED, &any.replace('2', "1")], "every rule has a rulePriority of its own: number them anew"),
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
        let text = manifest("LifecyclePolicy", "keep", &format!("registryRef: {{name: home}}\n{targets}{rules}"));
        let problems = load(&text).unwrap_err().to_string();
        assert!(problems.ends_with("spec: give exactly one of repositoryRef and repositorySelector"), "{problems}");
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
    assert_eq!(document, serde_json::json!({ "rules": serde_json::from_str::<Value>(rules).unwrap() }));
}

#[test]
fn immutable_fields_stay_and_others_may_change() {
    let repository =
        |fields: &str| load(&manifest("Repository", "api", &format!("registryRef: {{name: home}}\n{fields}"))).unwrap();
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
}

#[test]
fn a_link_in_a_circle_ends() {
    let folder = Folder::with(&[("a/registry.yaml", &manifest("Registry", "home", "managed: {}"))]);
    std::os::unix::fs::symlink(&folder.0, folder.0.join("a/back")).unwrap();
    assert_eq!(folder.load().unwrap().registries.len(), 1);
}

#[test]
fn a_file_that_is_too_big_or_no_text_is_refused() {
    let folder = Folder::with(&[("big.yaml", &"a".repeat((4 << 20) + 1))]);
    fs::write(folder.0.join("binary.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let problems = folder.problems();
    assert!(problems.contains("big.yaml: can't be read: it has more than 4194304 bytes"), "{problems}");
    assert!(problems.contains("binary.yaml: can't be read: "), "{problems}");
}

#[test]
fn deep_nesting_and_alias_bombs_are_refused() {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
    for text in [deep.as_str(), bomb] {
        assert!(load(text).unwrap_err().to_string().starts_with("a.yaml: is not valid YAML: "));
    }
}

/// Text that is often nearly a manifest.
fn nearly_a_manifest() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("{}".to_owned()),
        Just("[]".to_owned()),
        Just("null".to_owned()),
        Just("-1".to_owned()),
        Just("1e999".to_owned()),
        Just("{name: home}".to_owned()),
        Just("[{}]".to_owned()),
        Just(format!("[{UNTAGGED}]")),
        "\\PC{0,20}",
    ];
    let field = prop_oneof![
        Just("registryRef".to_owned()),
        Just("repositoryName".to_owned()),
        Just("rules".to_owned()),
        Just("managed".to_owned()),
        Just("tags".to_owned()),
        Just("allowedNamespaces".to_owned()),
        Just("repositorySelector".to_owned()),
        "[a-z]{1,8}",
    ];
    let kind = prop_oneof![Just("Registry"), Just("Repository"), Just("LifecyclePolicy"), Just("List")];
    (kind, "[a-z0-9.-]{0,5}", proptest::collection::vec((field, value), 0..5)).prop_map(|(kind, name, fields)| {
        let spec: String = fields.into_iter().map(|(field, value)| format!("  {field}: {value}\n")).collect();
        format!("apiVersion: wharfage.dev/v1alpha1\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n{spec}")
    })
}

proptest! {
    #[test]
    fn no_text_whatever_makes_the_loader_panic(text in prop_oneof!["\\PC{0,200}", "[-a-z:{}\\[\\]&*|>'\"#%@!?, \n]{0,200}", nearly_a_manifest()]) {
        static RULES: std::sync::LazyLock<Rules> = std::sync::LazyLock::new(|| Rules::compile().unwrap());
        let mut loading = Loading { rules: &RULES, manifests: Manifests::default(), problems: Vec::new() };
        loading.file(Path::new("a.yaml"), &text);
        if let Err(error) = loading.finish() {
            for problem in error.problems {
                // What the schema lets through, the types take, too: serde has nothing to add.
                let from_serde = problem.message.contains("invalid type") && !problem.message.starts_with("is not valid YAML");
                prop_assert!(!problem.message.is_empty() && !from_serde, "{}", problem);
            }
        }
    }
}
