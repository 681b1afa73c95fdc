//! Tests of ownership: nobody's repositories are taken for orphans by somebody else.

use aws_sdk_ecr::types::Tag;

use super::*;

/// Makes a repository that somebody else owns, to be deleted with its images after its manifest.
async fn owned(ecr: &Client, cluster: &str, name: &str) {
    let tags = [("cluster", cluster), ("namespace", "team"), ("name", name), ("manages", "i:")];
    let tags = tags.map(|(key, value)| {
        Tag::builder().key(format!("wharfage.dev/{key}")).value(value).build().unwrap()
    });
    ecr.create_repository()
        .repository_name(format!("team/{name}"))
        .set_tags(Some(tags.to_vec()))
        .send()
        .await
        .unwrap();
}

#[tokio::test]
async fn folders_that_share_a_registry_leave_each_other_alone() {
    let (one, other) = (Folder::new(), Folder::new());
    one.write("one.yaml", &repository("one", "deletionPolicy: Delete, emptyOnDelete: true"));
    other.write("other.yaml", &repository("other", "deletionPolicy: Delete, emptyOnDelete: true"));
    for owner in [&[][..], &["--cluster", "prod"]] {
        let program = wharfage().up(one.path()).arg("--once");
        let program =
            owner.iter().fold(program, |program, argument| program.arg(argument)).start().await;
        applied(&program);
        // An operator of the same name, and a folder of the data folder's own identity.
        owned(&program.ecr(), "prod", "operators").await;
        let apply = |folder: &Folder, more: &[&str]| {
            run_on("apply", folder.path(), program.data(), &[owner, &["--yes"], more].concat())
        };
        let (code, text) = apply(&other, &[]);
        assert!(code == 0 && text.contains("1 to create."), "{text}");
        let (code, text) = apply(&one, &[]);
        assert!(code == 0 && text.contains("Nothing to change."), "{text}");

        // Its own orphan is found all the same, and by its own set alone.
        other.remove("other.yaml");
        assert!(apply(&one, &[]).1.contains("Nothing to change."));
        assert!(apply(&other, &["--set", "elsewhere"]).1.contains("Nothing to change."));
        let (code, text) = apply(&other, &[]);
        assert!(code == 0 && text.contains("1 to delete."), "{text}");
        assert!(found(&program.ecr(), "team/one").await.is_some());
        assert!(found(&program.ecr(), "team/operators").await.is_some());
        other.write(
            "other.yaml",
            &repository("other", "deletionPolicy: Delete, emptyOnDelete: true"),
        );
    }
}

#[tokio::test]
async fn what_an_earlier_version_made_is_taken_over_only_when_asked() {
    let folder = Folder::new();
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    let ecr = program.ecr();
    owned(&ecr, "local", "api").await;
    owned(&ecr, "local", "orphan").await;
    folder.write("api.yaml", &repository("api", ""));
    let (code, text) = run_on("plan", folder.path(), program.data(), &[]);
    assert!(code == 1 && text.contains("or adopt it with --adopt-from local"), "{text}");
    let (code, text) =
        run_on("apply", folder.path(), program.data(), &["--yes", "--adopt-from", "local"]);
    assert!(code == 0 && text.contains("adopted    Repository team/api"), "{text}");
    assert_eq!(run_on("plan", folder.path(), program.data(), &[]).0, 0);
    assert!(tags(&ecr, "team/orphan").await.contains(&"wharfage.dev/cluster=local".to_owned()));
}

#[test]
fn without_a_data_folder_an_owner_must_be_named() {
    let folder = Folder::new();
    folder.write(
        "registry.yaml",
        &REGISTRY.replace("managed: {}", "endpoint: {url: \"http://127.0.0.1:1\"}, region: eu-1"),
    );
    let data = folder.path().join("missing");
    let (code, text) = run_on("plan", folder.path(), &data, &[]);
    assert!(code == 1 && text.contains("give a name with --cluster NAME"), "{text}");
    let (code, text) = run_on("plan", folder.path(), &data, &["--cluster", "prod"]);
    assert!(code == 1 && text.contains("Registry home (http://127.0.0.1:1)"), "{text}");
    assert!(!data.exists());
}
