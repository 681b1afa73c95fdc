//! Proxies, terminals and signals around the program.

use super::*;

#[tokio::test]
async fn a_proxy_never_comes_between_up_and_its_own_registry() {
    let folder = Folder::new();
    folder.write("api.yaml", &repository("api", ""));
    // Nobody listens there.
    let proxy = "http://somebody:secret@127.0.0.1:1";
    let launch = ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"]
        .iter()
        .fold(wharfage().up(folder.path()).arg("--once"), |launch, name| launch.env(name, proxy));
    let program = launch.start().await;
    applied(&program);
    assert!(found(&program.ecr(), "team/api").await.is_some(), "{}", program.output());

    // A registry elsewhere is asked through it, and the error says so.
    folder.write(
        "registry.yaml",
        &REGISTRY
            .replace("managed: {}", "endpoint: {url: \"http://registry.invalid\"}, region: eu-1"),
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharfage"));
    command
        .env_clear()
        .env("HTTP_PROXY", proxy)
        .args(["plan", "--cluster", "test", "-f"])
        .arg(folder.path());
    command
        .env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .arg("--data")
        .arg(program.data());
    let text = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(
        text.contains("through the proxy http://127.0.0.1:1") && !text.contains("secret"),
        "{text}"
    );
}

/// Returns what the program logs on a separate terminal while it fails to start.
fn log_on_a_terminal(variables: &[(&str, &str)]) -> String {
    let data = tempfile::tempdir().unwrap();
    let (program, data) = (env!("CARGO_BIN_EXE_wharfage"), data.path().display());
    let command =
        format!("timeout --signal TERM 2 {program} serve --data {data} --listen 127.0.0.1:0");
    let mut script = Command::new("script");
    script
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TERM", "xterm")
        .envs(variables.iter().copied());
    let output = script
        .args(["--quiet", "--command", &command, "/dev/null"])
        .output()
        .expect("script, of util-linux");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_log_has_colors_only_where_they_are_wanted() {
    let escape = '\u{1b}';
    let log = log_on_a_terminal(&[]);
    assert!(log.contains("stop") && log.contains(escape), "{log:?}");
    for variable in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let log = log_on_a_terminal(&[variable]);
        assert!(log.contains("stop") && !log.contains(escape), "{variable:?}: {log:?}");
    }
}
