//! File mode: reads a folder of manifests, and refuses what an API server would refuse, with the same words.
//!
//! It reads files and judges each document by itself. Whether a reference leads anywhere is not looked at here: what is
//! missing may come later, so the plan waits for it.

mod document;
mod files;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::crd::{API_VERSION, GROUP, KindRules, LifecyclePolicy, PullSecret, Registry, Repository, Rules, Violation};
use document::Document;

/// The namespace of a manifest that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What a folder asks for, in the order of its files' names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifests {
    /// The registries.
    pub registries: Vec<Loaded<Registry>>,
    /// The repositories.
    pub repositories: Vec<Loaded<Repository>>,
    /// The lifecycle policies.
    pub lifecycle_policies: Vec<Loaded<LifecyclePolicy>>,
    /// The pull secrets, which are for a cluster.
    pub pull_secrets: Vec<Loaded<PullSecret>>,
    /// Labels of the namespaces that the folder declares.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Documents that are for somebody else.
    pub skipped: Vec<Skipped>,
}

/// A resource, and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded<T> {
    /// The resource. A namespaced one always has a namespace.
    pub resource: T,
    /// Where it is written.
    pub source: Source,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The file, relative to the folder.
    pub file: PathBuf,
    /// The document in the file, from 1. Empty documents don't count.
    pub document: usize,
    /// The line in the file, from 1.
    pub line: u64,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, document, line } = self;
        write!(f, "{}:{line} (document {document})", file.display())
    }
}

/// A document that is for somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// What it is, such as `v1 ConfigMap settings`.
    pub object: String,
    /// Where it is written.
    pub source: Source,
}

/// One thing that is wrong with a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, relative to the folder.
    pub file: PathBuf,
    /// The document and the line, where there is one.
    pub source: Option<Source>,
    /// What it is about, such as `Repository payments/api`, where that can be told.
    pub object: Option<String>,
    /// The field, such as `spec.rules[0].selection`; empty when it is none in particular.
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{source}: ")?,
            None => write!(f, "{}: ", self.file.display())?,
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl Problem {
    fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), source: None, object: None, field: String::new(), message: message.into() }
    }

    fn at(source: &Source, object: Option<String>, field: &str, message: impl Into<String>) -> Self {
        let (file, source) = (source.file.clone(), Some(source.clone()));
        Self { file, source, object, field: field.to_owned(), message: message.into() }
    }
}

/// Everything that is wrong with a folder; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// The faults, in the order of the files.
    pub problems: Vec<Problem>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// Reads manifests; holds the compiled rules, so that reading again is cheap.
pub struct Loader {
    rules: Rules,
}

impl Loader {
    /// A loader for all kinds.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { rules: Rules::compile()? })
    }

    /// Reads a folder and all folders in it, or a single file. Blocks on the file system.
    ///
    /// Dot files, kustomizations and what isn't named `.yaml`, `.yml` or `.json` are passed over. All faults are told, not
    /// only the first.
    pub fn load(&self, path: &Path) -> Result<Manifests, LoadError> {
        let mut loading = Loading { rules: &self.rules, manifests: Manifests::default(), problems: Vec::new() };
        files::read(path, |file| match file {
            Ok((file, text)) => loading.file(&file, &text),
            Err(problem) => loading.problems.push(problem),
        });
        loading.finish()
    }

    /// Every immutable field that changes when `new` takes the place of `old`, as an API server would refuse it. What is
    /// only in one of them is no change.
    pub fn check_update(&self, old: &Manifests, new: &Manifests) -> Result<(), LoadError> {
        let mut problems = Vec::new();
        self.changes(&old.registries, &new.registries, &mut problems);
        self.changes(&old.repositories, &new.repositories, &mut problems);
        self.changes(&old.lifecycle_policies, &new.lifecycle_policies, &mut problems);
        self.changes(&old.pull_secrets, &new.pull_secrets, &mut problems);
        if problems.is_empty() { Ok(()) } else { Err(LoadError { problems }) }
    }

    fn changes<K>(&self, old: &[Loaded<K>], new: &[Loaded<K>], problems: &mut Vec<Problem>)
    where
        K: Resource<DynamicType = ()> + Serialize + PartialEq,
    {
        let Some(rules) = self.rules.of(&K::kind(&())) else { return };
        let old: BTreeMap<_, _> = old.iter().map(|loaded| (key(&loaded.resource), &loaded.resource)).collect();
        for Loaded { resource, source } in new {
            let Some(old) = old.get(&key(resource)).filter(|old| **old != resource) else { continue };
            let (Ok(old), Ok(value)) = (serde_json::to_value(old), serde_json::to_value(resource)) else { continue };
            for Violation { path, message } in rules.check_update(&value, &old) {
                problems.push(Problem::at(source, Some(object_name(resource)), &path, message));
            }
        }
    }
}

/// Reads a folder once; see [`Loader::load`].
pub fn load(path: &Path) -> anyhow::Result<Manifests> {
    Ok(Loader::new()?.load(path)?)
}

impl Manifests {
    /// The registry of this name.
    pub fn registry(&self, name: &str) -> Option<&Loaded<Registry>> {
        self.registries.iter().find(|loaded| loaded.resource.name_any() == name)
    }

    /// Whether there is nothing of ours.
    pub fn is_empty(&self) -> bool {
        let Self { registries, repositories, lifecycle_policies, pull_secrets, namespaces: _, skipped: _ } = self;
        registries.is_empty() && repositories.is_empty() && lifecycle_policies.is_empty() && pull_secrets.is_empty()
    }
}

/// One reading of a folder.
struct Loading<'r> {
    rules: &'r Rules,
    manifests: Manifests,
    problems: Vec<Problem>,
}

impl Loading<'_> {
    fn file(&mut self, file: &Path, text: &str) {
        let documents = match document::parse(text) {
            Ok(documents) => documents,
            Err(error) => {
                self.problems.push(Problem::of_file(file, format!("is not valid YAML: {error}")));
                return;
            }
        };
        for (index, document) in documents.into_iter().enumerate() {
            let source = Source { file: file.to_owned(), document: index + 1, line: document.line() };
            for document in document.expand_list() {
                let source = Source { line: document.line(), ..source.clone() };
                self.document(&document, source);
            }
        }
    }

    fn document(&mut self, document: &Document, source: Source) {
        let (api_version, kind) = (document.text("apiVersion"), document.text("kind"));
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            const MESSAGE: &str =
                "has no apiVersion and kind, so it is no manifest: add them, or take it out of the folder";
            self.problems.push(Problem::at(&source, None, "", MESSAGE));
            return;
        };
        let (group, _) = api_version.split_once('/').unwrap_or_default();
        if group == GROUP {
            match self.rules.of(kind).filter(|_| api_version == API_VERSION) {
                Some(rules) => self.resource(rules, kind, document, source),
                None => {
                    let kinds: Vec<_> = self.rules.kinds().collect();
                    let message = format!(
                        "{api_version} {kind} is unknown: this version knows {API_VERSION} {}",
                        kinds.join(", ")
                    );
                    self.problems.push(Problem::at(&source, None, "", message));
                }
            }
        } else if api_version == "v1" && kind == "Namespace" {
            let (name, labels) = document.name_and_labels();
            self.manifests.namespaces.entry(name).or_default().extend(labels);
        } else {
            let object = format!("{api_version} {kind} {}", document.name_and_labels().0);
            self.manifests.skipped.push(Skipped { object: object.trim_end().to_owned(), source });
        }
    }

    fn resource(&mut self, rules: &KindRules, kind: &str, document: &Document, source: Source) {
        let mut value = document.to_value();
        rules.normalize(&mut value);
        // An API server, too, fills in the namespace of the request, and clears that of a cluster-scoped object.
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            if rules.namespaced() {
                metadata.entry("namespace").or_insert_with(|| DEFAULT_NAMESPACE.into());
            } else {
                metadata.remove("namespace");
            }
        }
        let violations = rules.check(&value);
        if !violations.is_empty() {
            let object = object_name_of(kind, &value);
            self.problems.extend(violations.into_iter().map(|Violation { path, message }| {
                let line = document.line_of(&path);
                Problem::at(&Source { line, ..source.clone() }, Some(object.clone()), &path, message)
            }));
            return;
        }
        let Self { manifests, problems, .. } = self;
        match kind {
            "Registry" => accept(value, source, &mut manifests.registries, problems),
            "Repository" => accept(value, source, &mut manifests.repositories, problems),
            "LifecyclePolicy" => accept(value, source, &mut manifests.lifecycle_policies, problems),
            "PullSecret" => accept(value, source, &mut manifests.pull_secrets, problems),
            other => problems.push(Problem::at(&source, None, "kind", format!("{other} cannot be loaded"))),
        }
    }

    fn finish(self) -> Result<Manifests, LoadError> {
        if self.problems.is_empty() { Ok(self.manifests) } else { Err(LoadError { problems: self.problems }) }
    }
}

/// Puts a checked resource among those of its kind, unless its name is taken.
fn accept<K>(value: Value, source: Source, loaded: &mut Vec<Loaded<K>>, problems: &mut Vec<Problem>)
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    match serde_json::from_value::<K>(value) {
        Ok(resource) => {
            if let Some(first) = loaded.iter().find(|first| key(&first.resource) == key(&resource)) {
                let message = format!("is already declared at {}: take one out, or rename it", first.source);
                problems.push(Problem::at(&source, Some(object_name(&resource)), "", message));
            } else {
                loaded.push(Loaded { resource, source });
            }
        }
        Err(error) => problems.push(Problem::at(&source, None, "", error.to_string())),
    }
}

/// What tells two resources of a kind apart.
fn key<K: Resource>(resource: &K) -> (Option<String>, String) {
    (resource.namespace(), resource.name_any())
}

fn object_name<K: Resource<DynamicType = ()>>(resource: &K) -> String {
    let kind = K::kind(&());
    match key(resource) {
        (Some(namespace), name) => format!("{kind} {namespace}/{name}"),
        (None, name) => format!("{kind} {name}"),
    }
}

/// The same for a manifest that may be of any shape.
fn object_name_of(kind: &str, manifest: &Value) -> String {
    let metadata = |field: &str| manifest["metadata"][field].as_str();
    match (metadata("namespace"), metadata("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => kind.to_owned(),
    }
}
