//! Kustomizations: which files of a folder are meant, and in which namespace.
//!
//! Features that only kustomize has (patches, prefixes, generators, …) are refused, so that a
//! folder never means one thing in a cluster and another one here. Source: kustomize's reference
//! of the Kustomization file.

use std::path::Path;

use serde_json::Value;

use super::document::{self, Document};
use super::{Problem, Source};

/// The API group of kustomize's own kinds.
pub(super) const GROUP: &str = "kustomize.config.k8s.io";
/// The names by which kustomize knows its file.
pub(super) const NAMES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// Fields that change nothing about the resources of our kinds.
const WITHOUT_EFFECT: [&str; 6] =
    ["apiVersion", "kind", "metadata", "sortOptions", "openapi", "crds"];

/// The content of a kustomization, as far as it can be followed here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kustomization {
    /// Files and folders, relative to the kustomization's own, each with its line.
    pub(super) resources: Vec<(String, u64)>,
    /// The namespace of all that is in one.
    pub(super) namespace: Option<String>,
}

/// Reads the kustomization `text`, which is in `folder` as `file`.
///
/// # Errors
/// Everything in it that cannot be followed here.
pub(super) fn read(folder: &Path, file: &Path, text: &str) -> Result<Kustomization, Vec<Problem>> {
    let documents = document::parse(text).map_err(|fault| vec![Problem::not_yaml(file, fault)])?;
    let [document] = documents.as_slice() else {
        let message = format!("holds {} documents, and a kustomization is one", documents.len());
        return Err(vec![Problem::of_file(file, message)]);
    };
    let mut kustomization = Kustomization::default();
    let mut problems = Vec::new();
    let mut problem = |field: &str, message: String| {
        let source = Source { file: file.to_owned(), document: 1, line: document.line_of(field) };
        problems.push(Problem::at(&source, None, field, message));
    };
    let Value::Object(fields) = document.to_value() else {
        problem("", "is no kustomization: a kustomization is a mapping".to_owned());
        return Err(problems);
    };
    for (name, value) in &fields {
        let is_empty = match value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        match (name.as_str(), value) {
            ("kind", kind) if kind != "Kustomization" => {
                problem("kind", format!("{kind} is not followed here: {}", build(folder)));
            }
            _ if is_empty || WITHOUT_EFFECT.contains(&name.as_str()) => {}
            ("namespace", Value::String(namespace)) => {
                kustomization.namespace = Some(namespace.clone())
            }
            ("resources", Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    match item {
                        Value::String(item) => {
                            kustomization.resources.push((item.clone(), line(document, index)))
                        }
                        _ => problem(
                            &field(index),
                            "must be the path of a file or a folder".to_owned(),
                        ),
                    }
                }
            }
            ("namespace" | "resources", _) => {
                problem(name, "must be text, or for resources a list of paths".to_owned())
            }
            _ => problem(name, format!("is not followed here: {}", build(folder))),
        }
    }
    if problems.is_empty() { Ok(kustomization) } else { Err(problems) }
}

/// Returns what to do about a kustomization that only kustomize can build.
pub(super) fn build(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "run `kustomize build {folder} | wharfage apply -f -`, or `kubectl kustomize {folder} | …`"
    )
}

/// The name of an entry of `resources`.
pub(super) fn field(index: usize) -> String {
    format!("resources[{index}]")
}

fn line(document: &Document, index: usize) -> u64 {
    document.line_of(&field(index))
}
