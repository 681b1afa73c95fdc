//! A data folder belongs to one set of registries.

use super::*;

#[tokio::test]
async fn another_account_or_region_is_refused_at_a_restart() {
    let folder = Folder::new();
    let mut program = wharfage().up(folder.path()).arg("--once").start().await;
    program.stop("TERM").await;
    for changed in ["managed: {}, registryId: \"210987654321\"", "managed: {}, region: other-1"] {
        folder.write("registry.yaml", &REGISTRY.replace("managed: {}", changed));
        let (folder, data) = (folder.path().to_str().unwrap(), program.data().to_str().unwrap());
        let output = run(&["up", folder, "--data", data, "--listen", "127.0.0.1:0"]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && text.contains("holds registry home as registryId"),
            "{text}"
        );
    }
    let data = program.data().to_str().unwrap();
    let output = run(&[
        "serve",
        "--data",
        data,
        "--listen",
        "127.0.0.1:0",
        "--name",
        "home",
        "--region",
        "other-1",
    ]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && text.contains("holds registry home as registryId"),
        "{text}"
    );
    folder.write("registry.yaml", REGISTRY);
    program.start_again().await;
}

#[tokio::test]
async fn a_registry_that_is_added_moves_no_port() {
    let folder = Folder::new();
    // Loopback has more addresses than one, so that the ports after the first are free.
    let address = format!("127.55.{}.1:5000", std::process::id() % 256);
    let mut program = wharfage()
        .up(folder.path())
        .arg("--once")
        .listening_on(address.parse().unwrap())
        .start()
        .await;
    let home = program.authority().to_owned();
    assert_eq!(home, address);
    program.stop("TERM").await;
    // It sorts before the other one.
    let added = REGISTRY
        .replace("name: home", "name: added")
        .replace("{managed: {}}", "{managed: {}, region: other-1}");
    folder.write("added.yaml", &added);
    program.start_again().await;
    assert!(program.env(&[]).contains(&format!("WHARFAGE_REGISTRY={home}")));
    let env = program.env(&["--registry", "added"]);
    assert!(
        env.contains(&format!("WHARFAGE_REGISTRY={}", home.replace(":5000", ":5001"))),
        "{env}"
    );
}

#[tokio::test]
async fn a_name_that_is_none_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    for name in ["../x", "a/b", "", ".", "home\n[default]", "UP", "a..b"] {
        let output = run(&[
            "serve",
            "--data",
            data.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--name",
            name,
        ]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains("registry name"), "{name:?}: {text}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing is written");
}

#[tokio::test]
async fn a_second_up_is_refused_and_says_who_has_the_folder() {
    let (folder, other) = (Folder::new(), Folder::new());
    other.write("registry.yaml", &REGISTRY.replace("name: home", "name: other"));
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    let (manifests, data) = (other.path().to_str().unwrap(), program.data().to_str().unwrap());
    let output = run(&["up", manifests, "--data", data, "--listen", "127.0.0.1:0"]);
    let text = String::from_utf8(output.stderr).unwrap();
    let holder = format!("is in use by wharfage up {}, process ", folder.path().display());
    assert!(output.status.code() == Some(1) && text.contains(&holder), "{text}");
    assert!(program.env(&[]).contains(program.authority()));
}
