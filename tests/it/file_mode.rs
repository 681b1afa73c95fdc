//! Tests of the input of `plan` and `apply`, and of their output.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bed::wharfage;
use crate::up::{Folder, applied, found, repository, run, run_on};

/// Runs `wharfage` with this text as its standard input.
fn run_with_input(arguments: &[&str], input: &str) -> (i32, String) {
    use std::io::Write as _;
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharfage"));
    command.env_clear().env("PATH", "/usr/bin:/bin").args(arguments).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
    )
}

#[tokio::test]
async fn several_files_and_standard_input_are_one_plan() {
    let folder = Folder::new();
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    let (more, data) = (tempfile::tempdir().unwrap(), program.data().to_str().unwrap());
    let file = more.path().join("web.yaml");
    std::fs::write(&file, repository("web", "")).unwrap();
    let arguments = |command| {
        [
            command,
            "-f",
            folder.path().to_str().unwrap(),
            "-f",
            file.to_str().unwrap(),
            "-f",
            "-",
            "--data",
            data,
        ]
    };
    let input = json!({ "apiVersion": "v1", "kind": "List", "items": [{
        "apiVersion": "wharfage.dev/v1alpha1", "kind": "Repository", "metadata": { "name": "api", "namespace": "team" },
        "spec": { "registryRef": { "name": "home" }, "repositoryName": "team/api" },
    }] });
    let (code, text) = run_with_input(&arguments("plan"), &input.to_string());
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("2 to create."), "{text}");
    let (code, text) = run_with_input(&arguments("apply"), &input.to_string());
    assert_eq!(code, 0, "{text}");
    assert!(
        found(&program.ecr(), "team/api").await.is_some()
            && found(&program.ecr(), "team/web").await.is_some()
    );

    let (code, text) = run_with_input(&arguments("plan"), "a: [");
    assert_eq!(code, 1);
    assert!(text.contains("(standard input): is not valid YAML: line"), "{text}");
    let (code, text) = run_with_input(&["plan", "-f", "-", "-f", "-"], "");
    assert_eq!(
        (code, text.as_str()),
        (1, "error: standard input (-) can be read once only: give it once\n")
    );
}

#[tokio::test]
async fn a_plan_shows_the_changed_member_in_text_and_both_sides_in_json() {
    let folder = Folder::new();
    let document = |more: &str| {
        let accounts: Vec<String> = (100..140).map(|n| format!("'{n}000000000'")).collect();
        format!(
            "repositoryPolicy: {{Version: '2012-10-17', Statement: [{{Sid: pull, Effect: Allow, Principal: {{AWS: [{}]}}, \
             Action: ['ecr:BatchGetImage'{more}]}}]}}",
            accounts.join(", ")
        )
    };
    folder.write("api.yaml", &repository("api", &document("")));
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    applied(&program);
    folder.write("api.yaml", &repository("api", &document(", 'ecr:PutImage'")));
    folder.write("stray.txt", "not read");
    let (code, text) = run_on("plan", folder.path(), program.data(), &[]);
    assert_eq!(code, 2, "{text}");
    let line = r#"repositoryPolicy.Statement[Sid=pull].Action: ["ecr:BatchGetImage"] -> ["ecr:BatchGetImage","ecr:PutImage"]"#;
    assert!(text.lines().any(|it| it.trim() == line), "{text}");
    let (_, text) = run_on("plan", folder.path(), program.data(), &["--output", "json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        json["registries"][0]["steps"][0]["changes"],
        json!([{
            "field": "repositoryPolicy.Statement[Sid=pull].Action",
            "from": r#"["ecr:BatchGetImage"]"#, "to": r#"["ecr:BatchGetImage","ecr:PutImage"]"#,
        }])
    );
}

#[tokio::test]
async fn what_a_kustomization_leaves_out_is_not_applied_and_said() {
    let folder = Folder::new();
    folder.write("api.yaml", &repository("api", ""));
    folder.write("web.yaml", &repository("web", ""));
    folder.write("kustomization.yaml", "resources: [registry.yaml, api.yaml]");
    let program = wharfage().up(folder.path()).arg("--once").start().await;
    program
        .wait_for(|line| line.contains("kustomization.yaml does not list web.yaml").then_some(()));
    assert!(
        found(&program.ecr(), "team/api").await.is_some()
            && found(&program.ecr(), "team/web").await.is_none()
    );
    let (code, text) = run_on("plan", folder.path(), program.data(), &["--output", "json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &json["notes"]),
        (0, &json!(["kustomization.yaml does not list web.yaml, so nothing is read there"]))
    );
    folder.write("kustomization.yaml", "resources: [registry.yaml]\nnameSuffix: -dev");
    let (code, text) = run_on("plan", folder.path(), program.data(), &[]);
    assert_eq!(code, 1);
    assert!(text.contains("nameSuffix: is not followed here: run `kustomize build "), "{text}");
}

#[test]
fn programs_are_told_what_is_wrong_with_manifests() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    let json = |command| {
        let output = run(&[command, "-f", at, "--cluster", "test", "--output", "json"]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        (serde_json::from_slice::<Value>(&output.stdout).unwrap(), text)
    };
    for command in ["plan", "apply"] {
        std::fs::write(
            folder.path().join("api.yaml"),
            repository("api", "imageTagMutability: NONE"),
        )
        .unwrap();
        std::fs::write(folder.path().join("web.yaml"), "a: [").unwrap();
        let (output, text) = json(command);
        let problems = output["problems"].as_array().unwrap();
        assert_eq!(problems.len(), 2, "{output}");
        let message = problems[0]["message"].as_str().unwrap();
        assert!(message.contains("IMMUTABLE"), "{output}");
        assert_eq!(
            problems[0],
            json!({
                "file": "api.yaml", "document": 1, "line": 4, "object": "Repository team/api",
                "field": "spec.imageTagMutability", "message": message,
            })
        );
        assert_eq!(problems[1]["file"], "web.yaml");
        assert_eq!((&output["registries"], output.get("error")), (&json!([]), None));
        assert!(
            text.contains(
                "api.yaml:4 (document 1): Repository team/api: spec.imageTagMutability: "
            ),
            "{text}"
        );

        std::fs::remove_file(folder.path().join("web.yaml")).unwrap();
        std::fs::write(folder.path().join("api.yaml"), repository("api", "")).unwrap();
        let (output, text) = json(command);
        let error = output["error"].as_str().unwrap();
        assert!(
            error.ends_with("declares no Registry: add one, or name another folder"),
            "{output}"
        );
        assert_eq!(output.get("problems"), None);
        assert!(text.ends_with(&format!("error: {error}\n")), "{text}");
    }
}
