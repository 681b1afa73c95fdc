//! Tests of what no manifest declares any more: kept, released or deleted.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

const WITH_IMAGES: &str = "deletionPolicy: Delete, emptyOnDelete: true, interval: 1s";

#[tokio::test]
async fn a_manifest_that_is_away_for_a_while_loses_no_image() {
    let folder = Folder::new();
    folder.write("cache.yaml", &repository("cache", WITH_IMAGES));
    folder.write("api.yaml", &repository("api", ""));
    // Without pruning, and with a grace that outlives the test.
    for arguments in [&[][..], &["--prune", "--prune-after", "1h"]] {
        let launch = arguments
            .iter()
            .fold(wharfage().up(folder.path()), |launch, argument| launch.arg(argument));
        let program = launch.start().await;
        applied(&program);
        let ecr = program.ecr();
        push(&ecr, "team/cache", "v1").await;

        let (file, away) = (folder.path().join("cache.yaml"), folder.path().join(".cache.away"));
        std::fs::rename(&file, &away).unwrap();
        let says = if arguments.is_empty() {
            "undeclared Repository team/cache: it stays as it is. To have it deleted with its images: wharfage apply -f "
        } else {
            "undeclared Repository team/cache: it is deleted with its images once the files have rested for 3600 s"
        };
        program.wait_for(|line| line.starts_with(says).then_some(()));
        std::fs::rename(&away, &file).unwrap();
        // An edit that comes after is applied, so this one was read, too.
        folder.write("api.yaml", &repository("api", "imageTagMutability: IMMUTABLE"));
        until(&ecr, "team/api", "immutable", |it| {
            it.is_some_and(|it| it.image_tag_mutability() == Some(&ImageTagMutability::Immutable))
        })
        .await;
        assert_eq!(images(&ecr, "team/cache").await, 1);
        folder.write("api.yaml", &repository("api", ""));
    }
}

#[tokio::test]
async fn an_emptied_or_missing_folder_prunes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (folder, away) = (home.path().join("manifests"), home.path().join("away"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("registry.yaml"), REGISTRY).unwrap();
    std::fs::write(folder.join("cache.yaml"), repository("cache", WITH_IMAGES)).unwrap();
    let program =
        wharfage().up(&folder).arg("--prune").arg("--prune-after").arg("1s").start().await;
    applied(&program);
    let ecr = program.ecr();
    push(&ecr, "team/cache", "v1").await;

    std::fs::rename(&folder, &away).unwrap();
    program.wait_for(|line| line.contains("Nothing was changed").then_some(()));
    // In its place an empty one, as before a mount.
    std::fs::create_dir(&folder).unwrap();
    program.wait_for(|line| line.contains("declares no Registry").then_some(()));
    // And one with a Registry that has nothing: never pruned, so it says how to get that.
    std::fs::write(folder.join("registry.yaml"), REGISTRY).unwrap();
    program.wait_for(|line| {
        line.starts_with("undeclared Repository team/cache: it stays as it is.").then_some(())
    });
    assert_eq!(images(&ecr, "team/cache").await, 1);

    // Others are declared, the files rest: now it was meant.
    std::fs::write(folder.join("api.yaml"), repository("api", "interval: 1s")).unwrap();
    until(&ecr, "team/cache", "deleted", |it| it.is_none()).await;
}

#[tokio::test]
async fn apply_deletes_nothing_without_a_yes_and_then_changes_nothing_at_all() {
    let folder = Folder::new();
    folder.write("gone.yaml", &repository("gone", "deletionPolicy: Delete"));
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    let ecr = program.ecr();
    folder.remove("gone.yaml");
    folder.write("new.yaml", &repository("new", ""));

    for output in ["text", "json"] {
        let (code, text) = run_on("apply", folder.path(), program.data(), &["--output", output]);
        assert_eq!(code, 1, "{text}");
        assert!(
            text.contains("deletes Repository team/gone: pass --yes to delete without a prompt"),
            "{text}"
        );
    }
    assert!(found(&ecr, "team/gone").await.is_some() && found(&ecr, "team/new").await.is_none());

    let (shown, agreed) = at_a_terminal(folder.path(), &program, "n\n");
    assert!(
        shown.contains("This deletes Repository team/gone. Go on? [y/N]") && !agreed,
        "{shown}"
    );
    assert!(found(&ecr, "team/gone").await.is_some() && found(&ecr, "team/new").await.is_none());

    let (shown, agreed) = at_a_terminal(folder.path(), &program, "y\n");
    assert!(agreed, "{shown}");
    assert!(found(&ecr, "team/gone").await.is_none() && found(&ecr, "team/new").await.is_some());

    folder.write("gone.yaml", &repository("gone", "deletionPolicy: Delete"));
    assert_eq!(run_on("apply", folder.path(), program.data(), &[]).0, 0);
    folder.remove("gone.yaml");
    let (code, text) = run_on("apply", folder.path(), program.data(), &["--yes"]);
    assert!(code == 0 && text.contains("deleted    Repository team/gone"), "{text}");
}

#[tokio::test]
async fn a_refusal_to_delete_in_one_registry_changes_no_other() {
    let folder = Folder::new();
    folder.write(
        "a.yaml",
        &REGISTRY
            .replace("name: home", "name: another")
            .replace("{managed: {}}", "{managed: {}, region: other-1}"),
    );
    folder.write("gone.yaml", &repository("gone", "deletionPolicy: Delete"));
    let program = wharfage().up(folder.path()).arg("--once").on_any_ports().start().await;
    applied(&program);
    folder.remove("gone.yaml");
    folder.write("new.yaml", &repository("new", "").replace("name: home", "name: another"));
    let (code, text) = run_on("apply", folder.path(), program.data(), &[]);
    assert!(code == 1 && text.contains("deletes Repository team/gone in Registry home"), "{text}");
    let (code, text) = run_on("plan", folder.path(), program.data(), &["--registry", "another"]);
    assert!(code == 2 && text.contains("+ create  Repository team/new"), "{text}");
}

/// Runs `wharfage apply` on a separate terminal and types the answer: the output, and whether it
/// succeeded.
fn at_a_terminal(folder: &Path, program: &Wharfage, answer: &str) -> (String, bool) {
    let (wharfage, data) = (env!("CARGO_BIN_EXE_wharfage"), program.data().display());
    let command = format!("{wharfage} apply -f {} --data {data}", folder.display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
    let mut child =
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script, of util-linux");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(answer.as_bytes()).unwrap();
    // The terminal stays: its end would be a hang-up.
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
}
