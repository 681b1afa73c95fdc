//! YAML documents with the lines that their fields stand on.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use super::faults;
use wharfage_crd::Violation;

/// The deepest nesting of a document: no kind comes near it, and recursion over it stays shallow.
pub(super) const MAX_DEPTH: usize = 64;
/// The number of values a file's aliases may stand for: anchors that stand for anchors can make a
/// small file immense.
pub(super) const MAX_REPEATED: usize = 20_000;

/// The parser's stack in bytes: it recurses, and a thread of the runtime is too small for [`MAX_DEPTH`] levels in a build
/// without optimizations.
const PARSER_STACK: usize = 16 * 1024 * 1024;

/// The fault of text that cannot be read, and its line and column if known.
type Fault = (Option<(u64, u64)>, String);

/// Reads all documents of a file, YAML or JSON. Empty ones are left out.
///
/// # Errors
/// The fault of the first document that cannot be read.
pub(super) fn parse(text: &str) -> Result<Vec<Document>, Fault> {
    std::thread::scope(|scope| {
        let parser = std::thread::Builder::new().name("manifests".into()).stack_size(PARSER_STACK);
        let parsed = parser.spawn_scoped(scope, || parse_here(text)).map(|thread| thread.join());
        match parsed {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(_panic)) => Err((None, "the parser failed on it".to_owned())),
            Err(error) => Err((None, format!("no thread can be started to parse it: {error}"))),
        }
    })
}

fn parse_here(text: &str) -> Result<Vec<Document>, Fault> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH, max_nodes: 1_000_000 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPEATED },
    };
    let documents: Vec<Spanned<Node>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| faults::explain(&error))?;
    Ok(documents
        .into_iter()
        .map(|node| Document { line: node.referenced.line(), node: node.value })
        .collect())
}

/// One document.
pub(super) struct Document {
    line: u64,
    node: Node,
}

/// A value, with the place of each field and entry.
enum Node {
    Scalar(Value),
    List(Vec<Entry>),
    Mapping(Vec<(String, Entry)>),
}

/// A value in a list or a mapping.
struct Entry {
    /// The line of the entry, or of its key.
    line: u64,
    /// The bytes that the value takes in the file's text; at the anchor if it is an alias.
    written: Range<usize>,
    node: Node,
}

impl Entry {
    fn new(line: u64, value: Spanned<Node>) -> Self {
        let span = value.defined.span();
        let start =
            span.byte_offset().and_then(|start| usize::try_from(start).ok()).unwrap_or_default();
        let length =
            span.byte_len().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
        Self { line, written: start..start.saturating_add(length), node: value.value }
    }

    /// A number, truth value or null as it is written.
    fn written<'t>(&self, text: &'t str) -> Option<&'t str> {
        let is_plain =
            matches!(self.node, Node::Scalar(Value::Null | Value::Bool(_) | Value::Number(_)));
        is_plain.then(|| text.get(self.written.clone()).map(str::trim)).flatten()
    }

    /// Returns the fault of a number that some tools read as octal.
    fn ambiguous(&self, text: &str) -> Option<String> {
        let written = self.written(text)?;
        let digits = written.trim_start_matches(['+', '-']);
        if !digits.starts_with('0') {
            return None;
        }
        let (octal, decimal) = (u64::from_str_radix(digits, 8).ok()?, digits.parse::<u64>().ok()?);
        (octal != decimal).then(|| {
            format!(
                "{written} is {decimal} to some tools and {octal} to others: write it without the zero in front, or put it in quotes"
            )
        })
    }
}

impl Document {
    /// The line on which it begins.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The text of a field at the top.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.node.field(name)?.as_str()
    }

    /// `metadata.name` and `metadata.labels`, as far as they are there.
    pub(super) fn name_and_labels(&self) -> (String, BTreeMap<String, String>) {
        let metadata = self.node.field("metadata");
        let name = metadata
            .and_then(|metadata| metadata.field("name"))
            .and_then(Node::as_str)
            .unwrap_or_default();
        let labels = match metadata.and_then(|metadata| metadata.field("labels")) {
            Some(Node::Mapping(labels)) => labels.as_slice(),
            _ => &[],
        };
        let label =
            |(key, value): &(String, Entry)| Some((key.clone(), value.node.as_str()?.to_owned()));
        (name.to_owned(), labels.iter().filter_map(label).collect())
    }

    /// The entries of a `List`, as `kubectl get -o yaml` writes one; any other document as it is.
    pub(super) fn expand_list(self) -> Vec<Self> {
        let is_list = self.text("kind").is_some_and(|kind| kind.ends_with("List"));
        let Self { line, mut node } = self;
        if let (true, Node::Mapping(fields)) = (is_list, &mut node)
            && let Some((_, Entry { node: Node::List(items), .. })) =
                fields.iter_mut().find(|(name, _)| name == "items")
        {
            let items = std::mem::take(items).into_iter();
            return items
                .flat_map(|Entry { line, written: _, node }| Self { line, node }.expand_list())
                .collect();
        }
        vec![Self { line, node }]
    }

    /// The document without its lines.
    pub(super) fn to_value(&self) -> Value {
        self.node.to_value()
    }

    /// The line of a field such as `spec.rules[0].selection`, or of what comes nearest above it.
    pub(super) fn line_of(&self, path: &str) -> u64 {
        self.node.nearest("", path).map_or(self.line, |(_, entry)| entry.line)
    }

    /// The number, truth value or null of a field as the author wrote it; `text` is that of the document's file.
    pub(super) fn written<'t>(&self, path: &str, text: &'t str) -> Option<&'t str> {
        let (_, entry) = self.node.nearest("", path).filter(|(at, _)| at == path)?;
        entry.written(text)
    }

    /// Numbers that tools read differently: with a zero in front, YAML 1.1 (and kubectl) read octal, YAML 1.2 decimal.
    pub(super) fn ambiguous_numbers(&self, text: &str) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.node.any(&|entry| entry.ambiguous(text).is_some()) {
            self.node.visit("", &mut |path, entry| {
                let message = entry.ambiguous(text);
                found.extend(message.map(|message| Violation { path: path.to_owned(), message }));
            });
        }
        found
    }
}

impl Node {
    fn field(&self, name: &str) -> Option<&Self> {
        let Self::Mapping(fields) = self else { return None };
        fields.iter().find(|(key, _)| key == name).map(|(_, entry)| &entry.node)
    }

    fn as_str(&self) -> Option<&str> {
        if let Self::Scalar(value) = self { value.as_str() } else { None }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::List(items) => {
                Value::Array(items.iter().map(|item| item.node.to_value()).collect())
            }
            Self::Mapping(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(name, it)| (name.clone(), it.node.to_value()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    /// Returns the entry at `path` below this node, which is at `here`, or the nearest entry above
    /// it; with its own path.
    fn nearest(&self, here: &str, path: &str) -> Option<(String, &Entry)> {
        let (there, entry) = self.entries(here).into_iter().find(|(there, _)| {
            path.strip_prefix(there.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })?;
        Some(entry.node.nearest(&there, path).unwrap_or((there, entry)))
    }

    /// Returns whether it is so for any entry below this node.
    fn any(&self, is_so: &dyn Fn(&Entry) -> bool) -> bool {
        let below = |entry: &Entry| is_so(entry) || entry.node.any(is_so);
        match self {
            Self::Scalar(_) => false,
            Self::List(items) => items.iter().any(below),
            Self::Mapping(fields) => fields.iter().any(|(_, entry)| below(entry)),
        }
    }

    /// Calls `visit` with every entry below this node, which is at `here`, and its path.
    fn visit(&self, here: &str, visit: &mut dyn FnMut(&str, &Entry)) {
        for (path, entry) in self.entries(here) {
            visit(&path, entry);
            entry.node.visit(&path, visit);
        }
    }

    /// The entries of a list or a mapping that is at `here`, with their paths.
    fn entries(&self, here: &str) -> Vec<(String, &Entry)> {
        match self {
            Self::Scalar(_) => Vec::new(),
            Self::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, it)| (format!("{here}[{index}]"), it))
                .collect(),
            Self::Mapping(fields) if here.is_empty() => {
                fields.iter().map(|(name, it)| (name.clone(), it)).collect()
            }
            Self::Mapping(fields) => {
                fields.iter().map(|(name, it)| (format!("{here}.{name}"), it)).collect()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has, too")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        /// From here on, not every whole number is a float.
        const EXACT: f64 = (1_u64 << 53) as f64;
        // As kubectl has it, 5.0 is the whole number 5.
        if value.fract() == 0.0 && value.abs() < EXACT {
            return self.visit_i64(value as i64);
        }
        let number = Number::from_f64(value)
            .ok_or_else(|| E::custom(format!("{value} is no number that JSON has")))?;
        Ok(Node::Scalar(number.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = entries.next_element::<Spanned<Node>>()? {
            items.push(Entry::new(item.referenced.line(), item));
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = entries.next_key::<Spanned<String>>()? {
            if fields.len() == MAX_FIELDS {
                return Err(A::Error::custom(format!(
                    "a mapping has more than {MAX_FIELDS} fields"
                )));
            }
            let value = entries.next_value::<Spanned<Node>>()?;
            fields.push((name.value, Entry::new(name.referenced.line(), value)));
        }
        Ok(Node::Mapping(fields))
    }
}

/// The number of fields that a mapping may have.
const MAX_FIELDS: usize = 10_000;
