//! Tests of the commands where their output cannot be written: on a full disk, and where nobody
//! reads any more.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::bed::wharfage;
use crate::bed::wharfage::Wharfage;

const FOLDER: &str = "\
apiVersion: wharfage.dev/v1alpha1
kind: Registry
metadata: {name: home}
spec: {managed: {}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: api}
spec: {registryRef: {name: home}}
";

/// A registry that runs, and a folder that asks for one repository more than it has.
struct Bed {
    program: Wharfage,
    folder: tempfile::TempDir,
}

impl Bed {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("all.yaml");
        std::fs::write(&file, FOLDER).unwrap();
        let program = wharfage().up(folder.path()).arg("--once").start().await;
        program.wait_for(|line| line.contains("wharfage env").then_some(()));
        std::fs::write(
            &file,
            format!(
                "{FOLDER}---\n{}",
                FOLDER.replace("name: api", "name: web").split_once("---\n").unwrap().1
            ),
        )
        .unwrap();
        Self { program, folder }
    }

    /// Every command that prints to standard output, and its exit code where that can be written.
    fn commands(&self) -> Vec<(Vec<&str>, i32)> {
        let (folder, at) =
            (self.folder.path().to_str().unwrap(), self.program.data().to_str().unwrap());
        vec![
            (vec!["--help"], 0),
            (vec!["--version"], 0),
            (vec!["crds"], 0),
            (vec!["rbac"], 0),
            (vec!["completions", "bash"], 0),
            (vec!["env", "--data", at], 0),
            (vec!["plan", "-f", folder, "--data", at], 2),
            (vec!["plan", "-f", folder, "--data", at, "--output", "json"], 2),
        ]
    }
}

fn run(arguments: &[&str], streams: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wharfage"));
    command.env_clear().env("PATH", "/usr/bin:/bin").args(arguments).stdin(Stdio::null());
    streams(&mut command);
    command.spawn().unwrap().wait_with_output().unwrap()
}

/// The end of a pipe whose other end is closed.
fn closed_pipe() -> Stdio {
    let (_reader, writer) = std::io::pipe().unwrap();
    writer.into()
}

#[tokio::test]
async fn output_that_is_lost_is_an_error() {
    let bed = Bed::new().await;
    for (arguments, code) in bed.commands() {
        let written = run(&arguments, |command| {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        });
        assert_eq!(written.status.code(), Some(code), "{arguments:?}: {written:?}");
        let full = OpenOptions::new().write(true).open(Path::new("/dev/full")).unwrap();
        let lost = run(&arguments, |command| {
            command.stdout(full).stderr(Stdio::piped());
        });
        let complaint = String::from_utf8(lost.stderr).unwrap();
        assert_eq!(lost.status.code(), Some(1), "{arguments:?}: {complaint}");
        assert_eq!(
            complaint,
            "error: cannot write to standard output: No space left on device (os error 28)\n",
            "{arguments:?}"
        );
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_changes_nothing() {
    let bed = Bed::new().await;
    for (arguments, code) in bed.commands() {
        let unread = run(&arguments, |command| {
            command.stdout(closed_pipe()).stderr(Stdio::piped());
        });
        let complaint = String::from_utf8(unread.stderr).unwrap();
        assert_eq!((unread.status.code(), complaint.as_str()), (Some(code), ""), "{arguments:?}");
        let unread = run(&arguments, |command| {
            command.stdout(closed_pipe()).stderr(closed_pipe());
        });
        assert_eq!(unread.status.code(), Some(code), "{arguments:?}");
    }
    // The output to standard error alone: the complaint about a command line, and about a folder.
    for (arguments, code) in [(vec!["plan"], 2), (vec!["plan", "-f", "no/such/folder"], 1)] {
        let unread = run(&arguments, |command| {
            command.stdout(closed_pipe()).stderr(closed_pipe());
        });
        assert_eq!(unread.status.code(), Some(code), "{arguments:?}");
    }
}

#[tokio::test]
async fn an_apply_that_nobody_reads_is_finished() {
    let bed = Bed::new().await;
    let (folder, at) = (bed.folder.path().to_str().unwrap(), bed.program.data().to_str().unwrap());
    let applied = run(&["apply", "-f", folder, "--data", at], |command| {
        command.stdout(closed_pipe()).stderr(closed_pipe());
    });
    assert_eq!(applied.status.code(), Some(0));
    assert!(bed.program.ecr().describe_repositories().repository_names("web").send().await.is_ok());
}
