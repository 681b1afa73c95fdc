//! Good and bad folders, and the messages about them.

mod faults;
mod folders;
mod refusals;

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use kube::ResourceExt as _;
use proptest::prelude::*;

use super::*;
use faults::internals;
use wharfage_crd::common::Managed as _;
use wharfage_crd::lifecycle_policy::Mode;
use wharfage_crd::repository::Mutability;

/// A folder with these files, deleted when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "wharfage-manifests-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
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

    /// Returns the messages about a folder that is refused, a line per fault.
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
    format!(
        "apiVersion: wharfage.dev/v1alpha1\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n{spec}"
    )
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
        ("README.md", "Hello"),
    ]);
    let manifests = folder.load().unwrap();
    assert_eq!(
        manifests.registry("home").unwrap().source.to_string(),
        "registry.yaml:1 (document 1)"
    );
    let names: Vec<_> = manifests
        .repositories
        .iter()
        .map(|it| (it.resource.namespace(), it.resource.name_any()))
        .collect();
    assert_eq!(
        names,
        [(Some("default".into()), "api".into()), (Some("team".into()), "web".into())]
    );
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
    let manifests =
        load(&format!("---\n# nothing but a comment\n---\n{one}---\n{two}---\n")).unwrap();
    let sources: Vec<_> =
        manifests.repositories.iter().map(|loaded| loaded.source.to_string()).collect();
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
    assert!(
        policy.0["Statement"][0].as_object().unwrap().contains_key("Condition"),
        "a document is kept as it is"
    );
}

#[test]
fn absent_fields_have_their_defaults_and_are_not_written() {
    let manifests = load(&manifest("Repository", "api", "registryRef: {name: home}")).unwrap();
    let repository = &manifests.repositories[0].resource;
    assert_eq!(repository.image_tag_mutability(), Mutability::Mutable);
    assert_eq!(repository.interval().as_secs(), 600);
    let spec = serde_json::to_value(&repository.spec).unwrap();
    assert_eq!(spec, serde_json::json!({ "registryRef": { "name": "home" } }));
}

#[test]
fn labels_of_declared_namespaces_are_known() {
    let manifests =
        load("{apiVersion: v1, kind: Namespace, metadata: {name: team, labels: {tier: prod}}}")
            .unwrap();
    assert_eq!(manifests.namespaces["team"]["tier"], "prod");
    assert!(manifests.is_empty() && manifests.skipped.is_empty());
}

#[test]
fn kinds_of_others_are_noted_and_passed_over() {
    let manifests = load(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {anything: goes}\n",
    )
    .unwrap();
    assert_eq!(manifests.skipped[0].object, "apps/v1 Deployment web");
}

#[test]
fn the_quickstart_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/quickstart");
    let manifests = Loader::new().unwrap().load(&folder).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(manifests.registries.len(), 1);
    assert!(
        manifests
            .repositories
            .iter()
            .any(|it| it.resource.image_tag_mutability() == Mutability::ImmutableWithExclusion)
    );
    let modes: Vec<_> =
        manifests.lifecycle_policies.iter().map(|policy| policy.resource.mode()).collect();
    assert!(modes.contains(&Mode::Enforce) && modes.contains(&Mode::Preview));
    for repository in &manifests.repositories {
        assert!(manifests.registry(&repository.resource.registry_ref().name).is_some());
    }
    for policy in &manifests.lifecycle_policies {
        let chosen =
            manifests.repositories.iter().filter(|it| policy.resource.applies_to(&it.resource));
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
            "a.yaml:1 (document 1): wharfage.dev/v1alpha1 Repo is unknown: this version knows wharfage.dev/v1alpha1 Registry, Repository, LifecyclePolicy, PullSecret",
        ),
        (
            "{apiVersion: wharfage.dev/v1, kind: Repository, metadata: {name: api}}",
            "a.yaml:1 (document 1): wharfage.dev/v1 Repository is unknown: this version knows wharfage.dev/v1alpha1 Registry, Repository, LifecyclePolicy, PullSecret",
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
    let problems =
        Loader::new().unwrap().load(Path::new("no/such/folder")).unwrap_err().to_string();
    assert!(problems.starts_with("no/such/folder: can't be read: "), "{problems}");
}

#[test]
fn yaml_that_is_ambiguous_or_broken_is_refused_with_its_line() {
    for (text, line) in
        [("a: 1\nb: 2\na: 3\n", "line 3"), ("a: 1\nb: [\n", "line"), ("a: &x 1\nb: *y\n", "line 2")]
    {
        let problems = load(text).unwrap_err().to_string();
        assert!(
            problems.starts_with("a.yaml: is not valid YAML: ") && problems.contains(line),
            "{problems}"
        );
    }
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
    assert!(
        problems.contains("big.yaml: can't be read: it has more than 4194304 bytes"),
        "{problems}"
    );
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
    let kind = prop_oneof![
        Just("Registry"),
        Just("Repository"),
        Just("LifecyclePolicy"),
        Just("PullSecret"),
        Just("List")
    ];
    (kind, "[a-z0-9.-]{0,5}", proptest::collection::vec((field, value), 0..5)).prop_map(|(kind, name, fields)| {
        let spec: String = fields.into_iter().map(|(field, value)| format!("  {field}: {value}\n")).collect();
        format!("apiVersion: wharfage.dev/v1alpha1\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n{spec}")
    })
}

proptest! {
    #[test]
    fn no_text_whatever_makes_the_loader_panic(text in prop_oneof!["\\PC{0,200}", "[-a-z:{}\\[\\]&*|>'\"#%@!?, \n]{0,200}", nearly_a_manifest()]) {
        static RULES: std::sync::LazyLock<Rules> = std::sync::LazyLock::new(|| Rules::compile().unwrap());
        let mut loading = Loading::new(&RULES);
        loading.file(&Text { name: "a.yaml".into(), text, namespace: None });
        if let Err(error) = loading.finish() {
            for problem in error.problems {
                prop_assert!(!problem.message.is_empty(), "{}", problem);
                prop_assert_eq!(internals(&problem.to_string()), None, "{}", problem);
            }
        }
    }
}
