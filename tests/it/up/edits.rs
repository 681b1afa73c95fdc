//! Every way in which files change is seen, and no change is lost.

use std::os::unix::fs::symlink;

use super::*;

/// Waits until the repository's tag `edit` has this value.
async fn tagged(ecr: &Client, name: &str, value: &str) {
    let (deadline, wanted) = (Instant::now() + STARTUP, format!("edit={value}"));
    loop {
        let tags = tags(ecr, name).await;
        if tags.contains(&wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} never got {wanted}: {tags:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn no_edit_is_lost_beside_a_short_interval() {
    let folder = Folder::new();
    let says =
        |edit: usize| repository("api", &format!("interval: 1s, tags: {{edit: \"{edit}\"}}"));
    folder.write("api.yaml", &says(0));
    let program = up(folder.path()).await;
    let ecr = program.ecr();
    for edit in 1..=14 {
        // In place and by another file in turn, and with the same number of bytes mostly.
        if edit % 2 == 0 {
            std::fs::write(folder.path().join("api.yaml"), says(edit)).unwrap();
        } else {
            folder.write("api.yaml", &says(edit));
        }
        tagged(&ecr, "team/api", &edit.to_string()).await;
    }
}

#[tokio::test]
async fn a_mounted_config_map_and_a_link_are_followed() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let version = |name: &str, edit: &str| {
        std::fs::create_dir_all(at(name)).unwrap();
        std::fs::write(at(name).join("registry.yaml"), REGISTRY).unwrap();
        std::fs::write(
            at(name).join("api.yaml"),
            repository("api", &format!("tags: {{edit: {edit}}}")),
        )
        .unwrap();
    };
    // As kubelet mounts one: names lead through ..data, which is swapped.
    let point = |link: &str, to: &str| {
        symlink(to, at("next")).unwrap();
        std::fs::rename(at("next"), at(link)).unwrap();
    };
    version("mount/..1", "one");
    point("mount/..data", "..1");
    for file in ["registry.yaml", "api.yaml"] {
        symlink(format!("..data/{file}"), at("mount").join(file)).unwrap();
    }
    // As deployments do: current leads to the release.
    point("current", "mount");
    let program = up(&at("current")).await;
    let ecr = program.ecr();
    tagged(&ecr, "team/api", "one").await;

    version("mount/..2", "two");
    point("mount/..data", "..2");
    tagged(&ecr, "team/api", "two").await;

    version("release", "three");
    point("current", "release");
    tagged(&ecr, "team/api", "three").await;

    version("next-release", "four");
    std::fs::rename(at("release"), at("old")).unwrap();
    std::fs::rename(at("next-release"), at("release")).unwrap();
    tagged(&ecr, "team/api", "four").await;
}
