//! Checks that the documentation names what the code does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Returns the Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found
}

/// Returns the ECR operations that a text calls by the SDK, such as `DescribeImages` for `.describe_images()`.
fn operations(text: &str) -> BTreeSet<String> {
    let calls = regex::Regex::new(
        r"\.((?:batch|create|delete|describe|get|list|put|set|start|tag|untag|update)_[a-z_]+)\(\)",
    )
    .unwrap();
    let capitalized = |word: &str| word[..1].to_uppercase() + &word[1..];
    calls.captures_iter(text).map(|call| call[1].split('_').map(capitalized).collect()).collect()
}

#[test]
fn the_permissions_on_amazon_ecr_are_those_of_the_calls() {
    let calls: BTreeSet<String> = sources(&Path::new(ROOT).join("src/apply"))
        .iter()
        .flat_map(|path| operations(&std::fs::read_to_string(path).unwrap()))
        .collect();
    assert!(calls.len() > 20, "{calls:?}");
    let page = std::fs::read_to_string(Path::new(ROOT).join("docs/kinds/registry.md")).unwrap();
    let listed = regex::Regex::new("`ecr:([A-Za-z]+)`").unwrap();
    let listed: BTreeSet<String> = listed.captures_iter(&page).map(|it| it[1].to_owned()).collect();
    let undocumented: Vec<_> = calls.difference(&listed).collect();
    assert!(undocumented.is_empty(), "docs/kinds/registry.md does not list {undocumented:?}");
    // What a kubelet calls, not the operator.
    let pulls = ["BatchCheckLayerAvailability", "GetDownloadUrlForLayer"].map(str::to_owned);
    let unused: Vec<_> = listed.difference(&calls).filter(|it| !pulls.contains(it)).collect();
    assert!(unused.is_empty(), "docs/kinds/registry.md lists {unused:?}, which nothing calls");
}
