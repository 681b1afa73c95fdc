//! `wharfage up`, `plan` and `apply` as people use them: a folder of manifests, the real program, and what a registry then
//! holds.

mod data_folder;
mod edits;
mod environment;
mod identity;
mod prune;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use aws_sdk_ecr::Client;
use aws_sdk_ecr::error::ProvideErrorMetadata as _;
use aws_sdk_ecr::types::{ImageTagMutability, Repository};
use serde_json::Value;

use crate::bed::service::STARTUP;
use crate::bed::wharfage;
use crate::bed::wharfage::Wharfage;

const REGISTRY: &str = "\
apiVersion: wharfage.dev/v1alpha1
kind: Registry
metadata: {name: home}
spec: {managed: {}}
";

/// A folder of manifests. Dropping it removes it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    /// With a Registry `home`.
    pub(crate) fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("registry.yaml", REGISTRY);
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file as editors do: a new one takes the place of the old one.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.path().join(format!(".{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path().join(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }
}

pub(crate) fn repository(name: &str, more: &str) -> String {
    format!(
        "apiVersion: wharfage.dev/v1alpha1\nkind: Repository\nmetadata: {{name: {name}, namespace: team}}\n\
         spec: {{registryRef: {{name: home}}, repositoryName: team/{name}, {more}}}\n---\n"
    )
}

/// Starts `wharfage up` and waits until it has applied the folder.
async fn up(folder: &Path) -> Wharfage {
    let program = wharfage().up(folder).start().await;
    applied(&program);
    program
}

pub(crate) fn applied(program: &Wharfage) {
    program.wait_for(|line| line.contains("wharfage env").then_some(()));
}

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharfage"));
    command.env_clear().env("PATH", "/usr/bin:/bin").args(arguments).output().unwrap()
}

/// Runs `wharfage plan` or `apply` for a folder against what runs from `data`: its exit code and its output.
pub(crate) fn run_on(command: &str, folder: &Path, data: &Path, more: &[&str]) -> (i32, String) {
    let (folder, data) = (folder.to_str().unwrap(), data.to_str().unwrap());
    let output = run(&[&[command, "-f", folder, "--data", data], more].concat());
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

pub(crate) async fn found(ecr: &Client, name: &str) -> Option<Repository> {
    match ecr.describe_repositories().repository_names(name).send().await {
        Ok(answer) => answer.repositories().first().cloned(),
        Err(error) if error.code() == Some("RepositoryNotFoundException") => None,
        Err(error) => panic!("{error:?}"),
    }
}

/// Pushes an image without layers; each tag's is another one.
async fn push(ecr: &Client, repository: &str, tag: &str) {
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{{"tag":"{tag}"}}}}"#
    );
    ecr.put_image()
        .repository_name(repository)
        .image_tag(tag)
        .image_manifest(manifest)
        .send()
        .await
        .unwrap();
}

/// Returns how many images a repository has.
async fn images(ecr: &Client, repository: &str) -> usize {
    ecr.list_images().repository_name(repository).send().await.unwrap().image_ids().len()
}

async fn tags(ecr: &Client, name: &str) -> Vec<String> {
    let arn = found(ecr, name).await.unwrap().repository_arn.unwrap();
    let answer = ecr.list_tags_for_resource().resource_arn(arn).send().await.unwrap();
    answer.tags().iter().map(|tag| format!("{}={}", tag.key(), tag.value())).collect()
}

/// Asks until a repository is as it should be.
async fn until(ecr: &Client, name: &str, what: &str, is: impl Fn(Option<&Repository>) -> bool) {
    let deadline = Instant::now() + STARTUP;
    loop {
        let found = found(ecr, name).await;
        if is(found.as_ref()) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} never became {what}: {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/quickstart")
}

#[tokio::test]
async fn the_quickstart_comes_up_shaped_and_a_second_start_goes_on_where_the_first_was() {
    let mut program = up(&quickstart()).await;
    let ecr = program.ecr();
    let api = found(&ecr, "shop/api").await.unwrap();
    assert_eq!(api.image_tag_mutability(), Some(&ImageTagMutability::ImmutableWithExclusion));
    assert_eq!(api.repository_uri().unwrap(), format!("{}/shop/api", program.authority()));
    let policy = ecr.get_lifecycle_policy().repository_name("ci/build-cache").send().await.unwrap();
    assert!(policy.lifecycle_policy_text().unwrap().contains("sinceImagePushed"));
    let preview =
        ecr.get_lifecycle_policy_preview().repository_name("shop/web").send().await.unwrap();
    assert!(preview.lifecycle_policy_text().unwrap().contains("dev-*"));
    let output = program.output();
    for line in ["+ create  Repository quickstart/hello", "created    Repository quickstart/hello"]
    {
        assert!(output.contains(line), "{line} in {output}");
    }
    assert_eq!(run_on("plan", &quickstart(), program.data(), &[]).0, 0);

    let (status, _) = program.stop("INT").await;
    assert_eq!(status.code(), Some(0));
    program.start_again().await;
    applied(&program);
    let output = program.output();
    assert!(output.contains("Nothing to change."), "{output}");
    let (status, _) = program.stop("TERM").await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn plan_tells_by_its_exit_code_whether_something_would_change() {
    let folder = Folder::new();
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    folder.write("api.yaml", &repository("api", "tags: {team: a}"));
    let (code, text) = run_on("plan", folder.path(), program.data(), &[]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("+ create  Repository team/api"), "{text}");
    assert!(found(&program.ecr(), "team/api").await.is_none(), "a plan changes nothing");

    let (code, text) = run_on("apply", folder.path(), program.data(), &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("created    Repository team/api"), "{text}");
    let (code, text) = run_on("plan", folder.path(), program.data(), &["--output", "json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, json["registries"][0]["steps"].as_array().unwrap().len()), (0, 0), "{text}");

    folder.write("stray.yaml", &repository("stray", "").replace("name: home", "name: away"));
    let (code, text) = run_on("plan", folder.path(), program.data(), &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("Registry \"away\" does not exist"), "{text}");
    folder.write("stray.yaml", "kind: Repository");
    assert_eq!(run_on("plan", folder.path(), program.data(), &[]).0, 1);
    let (code, text) =
        run_on("plan", &folder.path().join("registry.yaml"), &folder.path().join("nowhere"), &[]);
    assert_eq!(code, 1);
    assert!(text.contains("was not started from"), "{text}");
}

#[tokio::test]
async fn a_resource_that_fails_stops_none_of_the_others_and_the_exit_code_tells() {
    let folder = Folder::new();
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    let locked = repository("locked", "encryptionConfiguration: {encryptionType: KMS}");
    let policy = "apiVersion: wharfage.dev/v1alpha1\nkind: LifecyclePolicy\nmetadata: {name: keep, namespace: team}\n\
                  spec: {registryRef: {name: home}, repositorySelector: {}, mode: Enforce, rules: [{rulePriority: 1, selection: \
                  {tagStatus: any, countType: imageCountMoreThan, countNumber: 5}, action: {type: expire}}]}\n";
    folder.write("all.yaml", &(locked + &repository("open", "") + policy));
    // Of a managed registry the plan knows that it has no keys. Of one that runs elsewhere only that registry knows.
    let (code, text) = run_on("plan", folder.path(), program.data(), &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("encryptionType KMS needs a key service"), "{text}");
    folder.write(
        "registry.yaml",
        &REGISTRY.replace(
            "managed: {}",
            &format!("region: local-1, endpoint: {{url: '{}'}}", program.url()),
        ),
    );
    let (id, secret) = program.root_key();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharfage"));
    command.env_clear().env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
    let output = command
        .args(["apply", "--output", "json", "-f"])
        .arg(folder.path())
        .arg("--data")
        .arg(program.data());
    let output = output.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    let outcomes = json["registries"][0]["outcomes"].as_array().unwrap();
    let results: Vec<_> = outcomes
        .iter()
        .map(|it| (&it["object"]["kind"], &it["repository"], &it["result"]))
        .collect();
    let expected = [
        ("Repository", "team/locked", "failed"),
        ("Repository", "team/open", "done"),
        ("LifecyclePolicy", "team/locked", "skipped"),
        ("LifecyclePolicy", "team/open", "done"),
    ]
    .map(|(kind, name, result)| (Value::from(kind), Value::from(name), Value::from(result)));
    assert_eq!(
        results,
        expected.iter().map(|(kind, name, result)| (kind, name, result)).collect::<Vec<_>>()
    );
    assert_eq!(outcomes[0]["name"], "KmsException");
    assert!(found(&program.ecr(), "team/open").await.is_some());
}

#[tokio::test]
async fn an_edit_changes_the_registry_and_a_wrong_one_changes_nothing() {
    let folder = Folder::new();
    folder.write("api.yaml", &repository("api", ""));
    let program = up(folder.path()).await;
    let ecr = program.ecr();

    folder.write("api.yaml", &repository("api", "imageTagMutability: IMMUTABLE"));
    let immutable = |it: Option<&Repository>| {
        it.is_some_and(|it| it.image_tag_mutability() == Some(&ImageTagMutability::Immutable))
    };
    until(&ecr, "team/api", "immutable", immutable).await;

    folder.write(
        "api.yaml",
        &(repository("api", "imageTagMutability: SOMETIMES") + &repository("new", "")),
    );
    program.wait_for(|line| line.contains("\"SOMETIMES\" is none of").then_some(()));
    program.wait_for(|line| line.contains("Nothing was changed").then_some(()));
    assert!(immutable(found(&ecr, "team/api").await.as_ref()));
    assert!(found(&ecr, "team/new").await.is_none(), "not even what was right is done by halves");

    folder.write("api.yaml", &repository("api", "").replace("team/api", "team/other"));
    program.wait_for(|line| line.contains("repositoryName is immutable").then_some(()));

    folder.write(
        "api.yaml",
        &(repository("api", "imageTagMutability: IMMUTABLE") + &repository("new", "")),
    );
    until(&ecr, "team/new", "there", |it| it.is_some()).await;
    assert!(found(&ecr, "team/other").await.is_none());
}

#[tokio::test]
async fn pruning_does_what_the_manifests_had_said() {
    let folder = Folder::new();
    folder.write("stays.yaml", &repository("stays", ""));
    folder.write("kept.yaml", &repository("kept", ""));
    folder.write("gone.yaml", &repository("gone", "deletionPolicy: Delete"));
    folder.write(
        "protected.yaml",
        &repository("protected", "deletionPolicy: Delete, deletionProtection: true"),
    );
    let program =
        wharfage().up(folder.path()).arg("--prune").arg("--prune-after").arg("1s").start().await;
    applied(&program);
    let ecr = program.ecr();
    ecr.create_repository().repository_name("somebodys").send().await.unwrap();
    assert!(tags(&ecr, "team/kept").await.contains(&"wharfage.dev/name=kept".to_owned()));

    for name in ["kept.yaml", "gone.yaml", "protected.yaml"] {
        folder.remove(name);
    }
    until(&ecr, "team/gone", "deleted", |it| it.is_none()).await;
    program.wait_for(|line| line.starts_with("retained   Repository team/protected").then_some(()));
    assert_eq!(tags(&ecr, "team/kept").await, Vec::<String>::new());
    assert!(
        found(&ecr, "team/protected").await.is_some() && found(&ecr, "somebodys").await.is_some()
    );

    folder.write("kept.yaml", &repository("kept", ""));
    program.wait_for(|line| line.starts_with("adopted    Repository team/kept").then_some(()));
}

#[tokio::test]
async fn a_policy_in_preview_tells_which_images_would_go_and_lets_them_be() {
    let folder = Folder::new();
    folder.write("api.yaml", &repository("api", ""));
    let program = up(folder.path()).await;
    let ecr = program.ecr();
    for tag in ["old", "new"] {
        push(&ecr, "team/api", tag).await;
    }
    let policy = "apiVersion: wharfage.dev/v1alpha1\nkind: LifecyclePolicy\nmetadata: {name: keep, namespace: team}\n\
                  spec: {registryRef: {name: home}, repositoryRef: {name: api}, mode: Preview, rules: [{rulePriority: 1, selection: \
                  {tagStatus: any, countType: imageCountMoreThan, countNumber: 1}, action: {type: expire}}], interval: 1s}\n";
    folder.write("keep.yaml", policy);
    program.wait_for(|line| {
        line.starts_with("previewed  LifecyclePolicy team/keep (team/api): 1 image would expire")
            .then_some(())
    });
    program.wait_for(|line| {
        (line.contains("EXPIRE sha256:") && line.ends_with("(old) by rule 1")).then_some(())
    });
    let images = ecr.list_images().repository_name("team/api").send().await.unwrap();
    assert_eq!(images.image_ids().len(), 2);

    // The policy says the same, and the images are others.
    push(&ecr, "team/api", "newest").await;
    program.wait_for(|line| {
        line.starts_with("previewed  LifecyclePolicy team/keep (team/api): 2 images would expire")
            .then_some(())
    });

    folder.write("keep.yaml", &policy.replace("Preview", "Enforce"));
    program.wait_for(|line| line.starts_with("created    LifecyclePolicy team/keep").then_some(()));
    let deadline = Instant::now() + STARTUP;
    while ecr.list_images().repository_name("team/api").send().await.unwrap().image_ids().len() > 1
    {
        assert!(Instant::now() < deadline, "the registry never carried the policy out");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    folder.write("keep.yaml", policy);
    program.wait_for(|line| {
        line.contains("lifecyclePolicy: 1 expire any imageCountMoreThan 1 -> (none)").then_some(())
    });
}

#[tokio::test]
async fn a_registry_that_does_not_run_is_named() {
    let folder = Folder::new();
    let mut program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    program.stop("TERM").await;
    let (code, text) = run_on("plan", folder.path(), program.data(), &[]);
    assert_eq!(code, 1);
    assert!(text.contains("RegistryUnavailable: it does not answer, so is it running?"), "{text}");
}

#[tokio::test]
async fn what_another_cluster_owns_is_not_touched() {
    let folder = Folder::new();
    folder.write("api.yaml", &repository("api", ""));
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    folder.write("api.yaml", &repository("api", "imageTagMutability: IMMUTABLE"));
    let (code, text) = run_on("apply", folder.path(), program.data(), &["--cluster", "other"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains(
            "OwnedByAnother: team/api in home is managed by Repository team/api of file mode "
        ),
        "{text}"
    );
    folder.remove("api.yaml");
    assert_eq!(run_on("apply", folder.path(), program.data(), &["--cluster", "other"]).0, 0);
    let api = found(&program.ecr(), "team/api").await.unwrap();
    assert_eq!(api.image_tag_mutability(), Some(&ImageTagMutability::Mutable));
}

#[tokio::test]
async fn a_registrys_own_settings_follow_its_manifest_and_stay_when_it_says_no_more() {
    let folder = Folder::new();
    let says = |more: &str| {
        folder.write(
            "registry.yaml",
            &REGISTRY.replace("{managed: {}}", &format!("{{managed: {{}}{more}}}")),
        )
    };
    says(
        ", policy: {Statement: [{Effect: Allow, Principal: '*', Action: 'ecr:ReplicateImage', Resource: '*'}]}, \
         scanningConfiguration: {rules: [{scanFrequency: SCAN_ON_PUSH, repositoryFilters: [{filter: team, filterType: WILDCARD}]}]}",
    );
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    let ecr = program.ecr();
    let policy = async || ecr.get_registry_policy().send().await.ok().and_then(|it| it.policy_text);
    let scanning = async || {
        let answer = ecr.get_registry_scanning_configuration().send().await.unwrap();
        let rules = answer.scanning_configuration.unwrap().rules.unwrap();
        rules
            .into_iter()
            .flat_map(|rule| rule.repository_filters)
            .map(|it| it.filter)
            .collect::<Vec<_>>()
    };
    assert!(policy().await.unwrap().contains("ecr:ReplicateImage"));
    assert_eq!(scanning().await, ["team"]);
    let plan = || run_on("plan", folder.path(), program.data(), &[]);
    assert_eq!(plan().0, 0);

    // A change by another party is found and corrected.
    ecr.put_registry_scanning_configuration().send().await.unwrap();
    let (code, text) = plan();
    assert!(
        code == 2 && text.contains("scanningConfiguration: BASIC -> BASIC; SCAN_ON_PUSH team"),
        "{code}: {text}"
    );
    assert_eq!(run_on("apply", folder.path(), program.data(), &[]).0, 0);
    assert_eq!(scanning().await, ["team"]);

    says("");
    let (code, text) = run_on("apply", folder.path(), program.data(), &[]);
    assert!(code == 0 && text.contains("Nothing to change."), "{text}");
    assert!(policy().await.is_some() && scanning().await == ["team"]);

    says(", policy: {}, scanningConfiguration: {}");
    let (code, text) = run_on("apply", folder.path(), program.data(), &[]);
    assert!(code == 0 && text.contains("-> (none)"), "{text}");
    assert_eq!((policy().await, scanning().await), (None, Vec::new()));
    assert_eq!(plan().0, 0);
}

#[tokio::test]
async fn drift_is_put_right_every_interval() {
    let folder = Folder::new();
    folder.write("api.yaml", &repository("api", "interval: 1s"));
    let program = up(folder.path()).await;
    let ecr = program.ecr();
    ecr.delete_repository().repository_name("team/api").send().await.unwrap();
    until(&ecr, "team/api", "there again", |it| it.is_some()).await;
}

#[tokio::test]
async fn two_registries_run_in_one_process_each_with_what_is_its() {
    let folder = Folder::new();
    let us = "apiVersion: wharfage.dev/v1alpha1\nkind: Registry\nmetadata: {name: us}\n\
              spec: {managed: {}, region: us-home-1, registryId: \"210987654321\"}\n";
    folder.write("us.yaml", us);
    folder.write("api.yaml", &repository("api", ""));
    folder.write("web.yaml", &repository("web", "").replace("name: home", "name: us"));
    let mut program = wharfage().up(folder.path()).on_any_ports().start().await;
    applied(&program);
    let (home, away) = (program.env(&[]), program.env(&["--registry", "us"]));
    let authority = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("export WHARFAGE_REGISTRY="));
        line.unwrap().to_owned()
    };
    assert_eq!(authority(&home), program.authority());
    assert_ne!(authority(&home), authority(&away));
    assert!(found(&program.ecr(), "team/api").await.is_some());
    assert!(found(&program.ecr(), "team/web").await.is_none());
    let (code, text) = run_on("plan", folder.path(), program.data(), &["--registry", "us"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("Registry us (http://") && !text.contains("Registry home"), "{text}");
    let (code, text) = run_on("plan", folder.path(), program.data(), &["--registry", "eu"]);
    assert_eq!((code, text.contains("declares no Registry \"eu\"")), (1, true), "{text}");

    folder.remove("us.yaml");
    program
        .wait_for(|line| line.contains("Registry us is gone, but is served until").then_some(()));
    let (status, _) = program.stop("TERM").await;
    assert_eq!(status.code(), Some(0));
}

#[test]
fn what_up_cannot_start_it_says_and_ends() {
    let folder = Folder::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let up_with = |data: &Path, address: &str| {
        let (folder, data) = (folder.path().to_str().unwrap(), data.to_str().unwrap());
        let output = run(&["up", folder, "--data", data, "--listen", address]);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let up = |address: &str| up_with(elsewhere.path(), address);
    let (code, text) = up_with(&folder.path().join("data"), "127.0.0.1:0");
    assert!(code == 1 && text.contains("lies among the manifests"), "{text}");
    let (code, text) = up("0.0.0.0:0");
    assert!(code == 1 && text.contains("is not a loopback address"), "{text}");
    folder.write(
        "registry.yaml",
        &REGISTRY.replace(
            "managed: {}",
            "managed: {database: {postgres: {connectionSecretRef: {name: pg, namespace: w}}}}",
        ),
    );
    let (code, text) = up("127.0.0.1:0");
    assert!(code == 1 && text.contains("set WHARFAGE_DATABASE_URL"), "{text}");
    folder.write("registry.yaml", &REGISTRY.replace("managed", "manged"));
    let (code, text) = up("127.0.0.1:0");
    assert!(code == 1 && text.contains("did you mean managed?"), "{text}");
    folder.remove("registry.yaml");
    let (code, text) = up("127.0.0.1:0");
    assert!(code == 1 && text.contains("declares no Registry"), "{text}");
}
