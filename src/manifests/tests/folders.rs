//! Where manifests come from: folders, single files, kustomizations, and paths that are no file.

use std::os::unix::fs::symlink;

use super::*;

fn named(manifests: &Manifests) -> Vec<String> {
    let names = manifests.repositories.iter().map(|it| {
        let Loaded { resource, source } = it;
        format!(
            "{} {}/{}",
            source.file.display(),
            resource.namespace().unwrap(),
            resource.name_any()
        )
    });
    names.collect()
}

fn repository(name: &str) -> String {
    manifest("Repository", name, "registryRef: {name: home}")
}

#[test]
fn a_kustomization_says_which_files_count() {
    let folder = Folder::with(&[
        ("kustomization.yaml", "resources:\n- ./b.yaml\n- base\n- sub/listed\n"),
        ("a.yaml", &repository("unlisted")),
        ("b.yaml", &repository("bb")),
        (
            "base/kustomization.yml",
            "kind: Kustomization\nnamespace: team\nresources: [c.yaml]\nmetadata: {name: x}\npatches: []",
        ),
        ("base/c.yaml", &repository("cc")),
        ("base/d.json", "{}"),
        ("sub/e.yaml", &repository("unlisted")),
        ("sub/listed", &repository("ee")),
        ("overlay/Kustomization", "resources: [../base]"),
    ]);
    let manifests = folder.load().unwrap();
    assert_eq!(
        named(&manifests),
        ["b.yaml default/bb", "base/c.yaml team/cc", "sub/listed default/ee"]
    );
    assert_eq!(
        manifests.notes,
        [
            "base/kustomization.yml does not list base/d.json, so nothing is read there",
            "kustomization.yaml does not list a.yaml, overlay, sub/e.yaml, so nothing is read there",
        ]
    );
}

#[test]
fn an_overlay_gives_its_namespace_to_what_lies_below() {
    let folder = Folder::with(&[
        (
            "overlays/prod/kustomization.yaml",
            "namespace: prod\nresources: [../../base, namespace.yaml]",
        ),
        (
            "overlays/prod/namespace.yaml",
            "{apiVersion: v1, kind: Namespace, metadata: {name: prod}}",
        ),
        ("base/kustomization.yaml", "namespace: base\nresources: [all.yaml]"),
        (
            "base/all.yaml",
            &format!("{}---\n{}", manifest("Registry", "home", "managed: {}"), repository("api")),
        ),
    ]);
    let load = |path: &str| Loader::new().unwrap().load(&folder.0.join(path));
    let manifests = load("overlays/prod").unwrap();
    assert_eq!(named(&manifests), ["../../base/all.yaml prod/api"]);
    assert!(manifests.registry("home").is_some() && manifests.namespaces.contains_key("prod"));
    assert_eq!(named(&load("base").unwrap()), ["all.yaml base/api"]);
    // Both at once declare the same resource in two namespaces, and the Registry twice.
    let problems = load("").unwrap_err().to_string();
    assert!(
        problems.contains("Registry home: is already declared at base/all.yaml:1"),
        "{problems}"
    );
}

#[test]
fn what_only_kustomize_can_do_is_refused() {
    let build = |folder: &Folder| {
        let folder = folder.0.display();
        format!(
            "run `kustomize build {folder} | wharfage apply -f -`, or `kubectl kustomize {folder} | …`"
        )
    };
    for (text, expected) in [
        (
            "resources: [a.yaml]\nnamePrefix: dev-",
            "kustomization.yaml:2 (document 1): namePrefix: is not followed here: BUILD",
        ),
        (
            "patches:\n- path: p.yaml",
            "kustomization.yaml:1 (document 1): patches: is not followed here: BUILD",
        ),
        (
            "commonLabels: {a: b}",
            "kustomization.yaml:1 (document 1): commonLabels: is not followed here: BUILD",
        ),
        (
            "kind: Component",
            "kustomization.yaml:1 (document 1): kind: \"Component\" is not followed here: BUILD",
        ),
        (
            "resources:\n- a.yaml\n- https://example.com/x.yaml",
            "kustomization.yaml:3 (document 1): resources[1]: https://example.com/x.yaml is not a file here: BUILD",
        ),
        (
            "resources: [no.yaml]",
            "kustomization.yaml:1 (document 1): resources[0]: no.yaml can't be read: No such file or directory",
        ),
        (
            "resources: [sub]",
            "kustomization.yaml:1 (document 1): resources[0]: sub is a folder without a kustomization: list its files instead",
        ),
        (
            "resources: [.]",
            "kustomization.yaml:1 (document 1): resources[0]: . leads back to this kustomization",
        ),
        (
            "resources: [../outside.yaml]",
            "kustomization.yaml:1 (document 1): resources[0]: ../outside.yaml lies outside the kustomization's folder, which kustomize refuses: copy it",
        ),
        (
            "resources: a.yaml",
            "kustomization.yaml:1 (document 1): resources: must be text, or for resources a list of paths",
        ),
        (
            "- a",
            "kustomization.yaml:1 (document 1): is no kustomization: a kustomization is a mapping",
        ),
        ("a: [", "kustomization.yaml: is not valid YAML: "),
        ("a: 1\n---\nb: 1", "kustomization.yaml: holds 2 documents, and a kustomization is one"),
        (
            "namespace: other\nresources: [namespace.yaml]",
            "namespace.yaml:1 (document 1): Namespace team: metadata.name: its kustomization names it other: name it so here, too",
        ),
    ] {
        let outer = Folder::with(&[("outside.yaml", &repository("outside"))]);
        let folder = Folder(outer.0.join("inner"));
        for (name, text) in [
            ("kustomization.yaml", text),
            ("a.yaml", &repository("api")),
            ("namespace.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: team}}"),
            ("sub/b.yaml", &repository("web")),
        ] {
            fs::create_dir_all(folder.0.join(name).parent().unwrap()).unwrap();
            fs::write(folder.0.join(name), text).unwrap();
        }
        let problems = folder.problems();
        assert!(
            problems.starts_with(&expected.replace("BUILD", &build(&folder))),
            "{text}: {problems}"
        );
    }
    let several = Folder::with(&[("kustomization.yaml", ""), ("kustomization.yml", "")]);
    assert!(several.problems().ends_with(
        "holds several kustomizations, kustomization.yaml and kustomization.yml: keep one"
    ));
    let single = Folder::with(&[(
        "kustomization.yaml",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n",
    )]);
    let problems =
        Loader::new().unwrap().load(&single.0.join("kustomization.yaml")).unwrap_err().to_string();
    assert!(
        problems
            .ends_with("Kustomization is for kustomize, which reads it from a folder: name the folder, or take it out")
    );
}

#[test]
fn several_folders_and_files_are_read_as_one() {
    let folder = Folder::with(&[
        ("one/a.yaml", &repository("aa")),
        ("two/a.yaml", &repository("bb")),
        ("registry.yaml", &manifest("Registry", "home", "managed: {}")),
    ]);
    let paths = |names: &[&str]| names.iter().map(|name| folder.0.join(name)).collect::<Vec<_>>();
    let loader = Loader::new().unwrap();
    let manifests = loader.load_all(&paths(&["two", "registry.yaml", "one/a.yaml"])).unwrap();
    let at = |name: &str| folder.0.join(name).display().to_string();
    assert_eq!(
        named(&manifests),
        [format!("{} default/bb", at("two/a.yaml")), format!("{} default/aa", at("one/a.yaml"))]
    );
    assert_eq!(manifests.registries.len(), 1);
    let twice = loader.load_all(&paths(&["one", "one/a.yaml"])).unwrap_err().to_string();
    assert!(twice.contains(&format!("is already declared at {}:1", at("one/a.yaml"))), "{twice}");
}

#[test]
fn documents_of_others_are_named() {
    let manifests =
        load("apiVersion: wharfage.io/v1alpha1\nkind: Registry\nmetadata: {name: home}\n").unwrap();
    assert_eq!(
        manifests.notes,
        [
            "passed over as not of group wharfage.dev: wharfage.io/v1alpha1 Registry home at a.yaml:1 (document 1)"
        ]
    );
}

#[test]
fn what_is_no_file_is_not_opened() {
    let folder =
        Folder::with(&[("a.yaml", &repository("api")), ("folder.yaml/b.yaml", &repository("web"))]);
    let path = |name: &str| folder.0.join(name);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe.yaml"), fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket.yaml")).unwrap();
    symlink("/dev/zero", path("device.yaml")).unwrap();
    symlink("nowhere", path("dangling.yaml")).unwrap();
    symlink(path("pipe.yaml"), path("passed-over")).unwrap();
    assert_eq!(
        folder.problems(),
        "dangling.yaml: can't be read: No such file or directory\n\
         device.yaml: can't be read: it is a device, not a file: take it out of the folder\n\
         pipe.yaml: can't be read: it is a named pipe, not a file: take it out of the folder\n\
         socket.yaml: can't be read: it is a socket, not a file: take it out of the folder"
    );
}

#[test]
fn a_pipe_that_is_asked_for_is_read() {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(repository("api").as_bytes()).unwrap();
    drop(writer);
    let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
    let manifests = Loader::new().unwrap().load(&path).unwrap();
    assert_eq!(manifests.repositories.len(), 1);
    // Nobody will ever write to this one.
    let folder = Folder::with(&[]);
    let pipe = folder.0.join("pipe.yaml");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(Loader::new().unwrap().load(&pipe).unwrap().is_empty());
    let endless = Loader::new().unwrap().load(Path::new("/dev/zero")).unwrap_err().to_string();
    assert_eq!(endless, "zero: can't be read: it has more than 4194304 bytes");
}

#[test]
fn kustomizations_that_list_each_other_many_times_end_soon() {
    // Each is listed by eight paths that are one: 8^5 readings without a limit.
    let again: String = (0..8).map(|n| format!("- {}../LEVEL\n", "./".repeat(n))).collect();
    let level = |n: usize| {
        (
            format!("l{n}/kustomization.yaml"),
            format!("resources:\n{}", again.replace("LEVEL", &format!("l{}", n + 1))),
        )
    };
    let mut files: Vec<(String, String)> = (0..5).map(level).collect();
    files.push(("kustomization.yaml".into(), "resources: [l0]".into()));
    files.push(("l5/kustomization.yaml".into(), "resources: []".into()));
    let files: Vec<(&str, &str)> =
        files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let problems = Folder::with(&files).problems();
    assert_eq!(problems.matches("more than 1000 kustomizations").count(), 1, "{problems}");
}
