//! File mode: reads a folder of manifests, and refuses what an API server would refuse, with the same words.
//!
//! It reads files and judges each document by itself. It does not check whether a referenced object
//! exists: a missing one may come later, so the plan waits for it.

mod document;
mod faults;
mod files;
mod kustomization;

#[cfg(test)]
mod tests;

use std::any::type_name;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use document::Document;
use files::{Found, Text};
use wharfage_crd::{
    API_VERSION, GROUP, KindRules, LifecyclePolicy, PullSecret, Registry, Repository, Rules,
    Violation,
};

/// The namespace of a manifest that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The resources that a folder declares, in the order of its files' names.
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
    /// Documents of other kinds.
    pub skipped: Vec<Skipped>,
    /// The files and documents that are present but not read, and what else the author should
    /// know.
    pub notes: Vec<String>,
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Source {
    /// The file, relative to the folder. A [`Problem`] has it by itself.
    #[serde(skip)]
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

/// A document of another kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The object's description, such as `v1 ConfigMap settings`.
    pub object: String,
    /// Where it is written.
    pub source: Source,
}

/// One thing that is wrong with a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, relative to the folder.
    #[serde(serialize_with = "as_text")]
    pub file: PathBuf,
    /// The document and the line, where there is one.
    #[serde(flatten)]
    pub source: Option<Source>,
    /// The object concerned, such as `Repository payments/api`, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, such as `spec.rules[0].selection`; empty when it is none in particular.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// The fault, and how to correct it.
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

/// A path as messages show it: serde refuses one that is not UTF-8.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl Problem {
    /// A file that is no YAML, from a line and a column on if that is known.
    fn not_yaml(file: &Path, (at, reason): (Option<(u64, u64)>, String)) -> Self {
        let at =
            at.map(|(line, column)| format!("line {line}, column {column}: ")).unwrap_or_default();
        Self::of_file(file, format!("is not valid YAML: {at}{reason}"))
    }

    fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            source: None,
            object: None,
            field: String::new(),
            message: message.into(),
        }
    }

    fn at(
        source: &Source,
        object: Option<String>,
        field: &str,
        message: impl Into<String>,
    ) -> Self {
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
    /// Dot files and what isn't named `.yaml`, `.yml` or `.json` are passed over. A folder with a kustomization is what that
    /// lists. All faults are reported, not only the first.
    pub fn load(&self, path: &Path) -> Result<Manifests, LoadError> {
        self.load_all(&[path.to_owned()])
    }

    /// Reads several folders and files as one; `-` is standard input.
    pub fn load_all(&self, paths: &[PathBuf]) -> Result<Manifests, LoadError> {
        let mut loading = Loading::new(&self.rules);
        files::read(paths, |found| match found {
            Found::Text(text) => loading.file(&text),
            Found::Problem(problem) => loading.problems.push(problem),
            Found::Note(note) => loading.manifests.notes.push(note),
        });
        loading.finish()
    }

    /// Every immutable field that changes when `new` takes the place of `old`, as an API server
    /// would refuse it. An object that is only in one of them is no change.
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
        let old: BTreeMap<_, _> =
            old.iter().map(|loaded| (key(&loaded.resource), &loaded.resource)).collect();
        for Loaded { resource, source } in new {
            let Some(old) = old.get(&key(resource)).filter(|old| **old != resource) else {
                continue;
            };
            let (Ok(old), Ok(value)) = (serde_json::to_value(old), serde_json::to_value(resource))
            else {
                continue;
            };
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

/// Reads several folders and files once; see [`Loader::load_all`].
pub fn load_all(paths: &[PathBuf]) -> anyhow::Result<Manifests> {
    Ok(Loader::new()?.load_all(paths)?)
}

impl Manifests {
    /// The registry of this name.
    pub fn registry(&self, name: &str) -> Option<&Loaded<Registry>> {
        self.registries.iter().find(|loaded| loaded.resource.name_any() == name)
    }

    /// Returns whether there is nothing of ours.
    pub fn is_empty(&self) -> bool {
        let Self {
            registries,
            repositories,
            lifecycle_policies,
            pull_secrets,
            namespaces: _,
            skipped: _,
            notes: _,
        } = self;
        registries.is_empty()
            && repositories.is_empty()
            && lifecycle_policies.is_empty()
            && pull_secrets.is_empty()
    }
}

/// The number of faults of one document that are reported.
const MAX_FAULTS: usize = 50;
/// The number of documents of other kinds that a note names.
const NAMED: usize = 5;

/// One reading of a folder.
struct Loading<'r> {
    rules: &'r Rules,
    manifests: Manifests,
    problems: Vec<Problem>,
    /// Where each resource is declared, by kind, namespace and name.
    declared: HashMap<(&'static str, Key), Source>,
}

/// The data that the documents of one file have in common.
struct Context<'t> {
    text: &'t str,
    namespace: Option<&'t str>,
}

impl<'r> Loading<'r> {
    fn new(rules: &'r Rules) -> Self {
        Self {
            rules,
            manifests: Manifests::default(),
            problems: Vec::new(),
            declared: HashMap::new(),
        }
    }

    fn file(&mut self, file: &Text) {
        let documents = match document::parse(&file.text) {
            Ok(documents) => documents,
            Err(fault) => {
                self.problems.push(Problem::not_yaml(&file.name, fault));
                return;
            }
        };
        let context = Context { text: &file.text, namespace: file.namespace.as_deref() };
        for (index, document) in documents.into_iter().enumerate() {
            let source =
                Source { file: file.name.clone(), document: index + 1, line: document.line() };
            for document in document.expand_list() {
                let source = Source { line: document.line(), ..source.clone() };
                self.document(&document, source, &context);
            }
        }
    }

    fn document(&mut self, document: &Document, source: Source, context: &Context<'_>) {
        let (api_version, kind) = (document.text("apiVersion"), document.text("kind"));
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            const MESSAGE: &str = "has no apiVersion and kind, so it is no manifest: add them, or take it out of the folder";
            self.problems.push(Problem::at(&source, None, "", MESSAGE));
            return;
        };
        let (group, _) = api_version.split_once('/').unwrap_or_default();
        if group == GROUP {
            match self.rules.of(kind).filter(|_| api_version == API_VERSION) {
                Some(rules) => self.resource(rules, kind, document, source, context),
                None => {
                    let kinds: Vec<_> = self.rules.kinds().collect();
                    let message = format!(
                        "{api_version} {kind} is unknown: this version knows {API_VERSION} {}",
                        kinds.join(", ")
                    );
                    self.problems.push(Problem::at(&source, None, "", message));
                }
            }
        } else if group == kustomization::GROUP {
            let message = format!(
                "{kind} is for kustomize, which reads it from a folder: name the folder, or take it out"
            );
            self.problems.push(Problem::at(&source, None, "", message));
        } else if api_version == "v1" && kind == "Namespace" {
            let (name, labels) = document.name_and_labels();
            if let Some(namespace) = context.namespace.filter(|namespace| *namespace != name) {
                let message =
                    format!("its kustomization names it {namespace}: name it so here, too");
                self.problems.push(Problem::at(
                    &source,
                    Some(format!("Namespace {name}")),
                    "metadata.name",
                    message,
                ));
            }
            self.manifests.namespaces.entry(name).or_default().extend(labels);
        } else {
            let object = format!("{api_version} {kind} {}", document.name_and_labels().0);
            self.manifests.skipped.push(Skipped { object: object.trim_end().to_owned(), source });
        }
    }

    fn resource(
        &mut self,
        rules: &KindRules,
        kind: &str,
        document: &Document,
        source: Source,
        &Context { text, namespace }: &Context<'_>,
    ) {
        let mut value = document.to_value();
        rules.normalize(&mut value);
        // An API server, too, fills in the namespace of the request, and clears that of a cluster-scoped object.
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            match namespace {
                _ if !rules.namespaced() => {
                    metadata.remove("namespace");
                }
                Some(namespace) => {
                    metadata.insert("namespace".to_owned(), namespace.into());
                }
                None => {
                    metadata.entry("namespace").or_insert_with(|| DEFAULT_NAMESPACE.into());
                }
            }
        }
        let mut violations = rules.check(&value, &|path| document.written(path, text));
        let ambiguous = document.ambiguous_numbers(text);
        violations.extend(
            ambiguous
                .into_iter()
                .filter(|it| !violations.iter().any(|other| other.path == it.path))
                .collect::<Vec<_>>(),
        );
        if !violations.is_empty() {
            let object = object_name_of(kind, &value);
            let more = violations.len().saturating_sub(MAX_FAULTS);
            self.problems.extend(violations.into_iter().take(MAX_FAULTS).map(
                |Violation { path, message }| {
                    let line = document.line_of(&path);
                    Problem::at(
                        &Source { line, ..source.clone() },
                        Some(object.clone()),
                        &path,
                        message,
                    )
                },
            ));
            if more > 0 {
                self.problems.push(Problem::at(
                    &source,
                    Some(object),
                    "",
                    format!("has {more} more faults"),
                ));
            }
            return;
        }
        match kind {
            "Registry" => self.accept(value, source, |manifests| &mut manifests.registries),
            "Repository" => self.accept(value, source, |manifests| &mut manifests.repositories),
            "LifecyclePolicy" => {
                self.accept(value, source, |manifests| &mut manifests.lifecycle_policies)
            }
            "PullSecret" => self.accept(value, source, |manifests| &mut manifests.pull_secrets),
            other => self.problems.push(Problem::at(
                &source,
                None,
                "kind",
                format!("{other} cannot be loaded"),
            )),
        }
    }

    /// Puts a checked resource among those of its kind, unless its name is taken.
    fn accept<K>(
        &mut self,
        value: Value,
        source: Source,
        of_kind: impl Fn(&mut Manifests) -> &mut Vec<Loaded<K>>,
    ) where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let resource = match serde_json::from_value::<K>(value) {
            Ok(resource) => resource,
            Err(error) => {
                tracing::debug!(%error, %source, "a manifest that its schema allows cannot be read");
                let message = format!(
                    "is no {} that this version can read, though nothing is wrong with it: report it",
                    K::kind(&())
                );
                self.problems.push(Problem::at(&source, None, "", message));
                return;
            }
        };
        match self.declared.entry((type_name::<K>(), key(&resource))) {
            Entry::Occupied(first) => {
                let message =
                    format!("is already declared at {}: take one out, or rename it", first.get());
                self.problems.push(Problem::at(&source, Some(object_name(&resource)), "", message));
            }
            Entry::Vacant(free) => {
                free.insert(source.clone());
                of_kind(&mut self.manifests).push(Loaded { resource, source });
            }
        }
    }

    fn finish(mut self) -> Result<Manifests, LoadError> {
        self.manifests.notes.extend(of_other_kinds(&self.manifests.skipped));
        if self.problems.is_empty() {
            Ok(self.manifests)
        } else {
            Err(LoadError { problems: self.problems })
        }
    }
}

/// Returns a note that documents were passed over, as one that was meant for us may have its
/// apiVersion misspelt.
fn of_other_kinds(skipped: &[Skipped]) -> Option<String> {
    let (first, more) = skipped.split_at(skipped.len().min(NAMED));
    let named: Vec<String> =
        first.iter().map(|Skipped { object, source }| format!("{object} at {source}")).collect();
    let more = if more.is_empty() { String::new() } else { format!(", and {} more", more.len()) };
    (!named.is_empty())
        .then(|| format!("passed over as not of group {GROUP}: {}{more}", named.join(", ")))
}

/// The key that distinguishes two resources of a kind: namespace and name.
type Key = (Option<String>, String);

fn key<K: Resource>(resource: &K) -> Key {
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
