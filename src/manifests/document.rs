//! YAML documents with the lines that their fields stand on.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// How deep a document may nest: no kind comes near it, and recursion over it stays shallow.
const MAX_DEPTH: usize = 64;

/// Reads all documents of a file, YAML or JSON. Empty ones are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Document>, String> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH, max_nodes: 1_000_000 },
        // Anchors that stand for anchors can make a small file immense.
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 20_000 },
    };
    let documents: Vec<Spanned<Node>> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())?;
    Ok(documents.into_iter().map(|node| Document { line: node.referenced.line(), node: node.value }).collect())
}

/// One document.
pub(super) struct Document {
    line: u64,
    node: Node,
}

/// A value, with the line of each field and entry.
enum Node {
    Scalar(Value),
    List(Vec<(u64, Node)>),
    Mapping(Vec<(String, u64, Node)>),
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
        let name = metadata.and_then(|metadata| metadata.field("name")).and_then(Node::as_str).unwrap_or_default();
        let labels = match metadata.and_then(|metadata| metadata.field("labels")) {
            Some(Node::Mapping(labels)) => labels.as_slice(),
            _ => &[],
        };
        let label = |(key, _, value): &(String, u64, Node)| Some((key.clone(), value.as_str()?.to_owned()));
        (name.to_owned(), labels.iter().filter_map(label).collect())
    }

    /// The entries of a `List`, as `kubectl get -o yaml` writes one; any other document as it is.
    pub(super) fn expand_list(self) -> Vec<Self> {
        let is_list = self.text("kind").is_some_and(|kind| kind.ends_with("List"));
        let Self { line, mut node } = self;
        if let (true, Node::Mapping(fields)) = (is_list, &mut node)
            && let Some((_, _, Node::List(items))) = fields.iter_mut().find(|(name, _, _)| name == "items")
        {
            let items = std::mem::take(items).into_iter();
            return items.flat_map(|(line, node)| Self { line, node }.expand_list()).collect();
        }
        vec![Self { line, node }]
    }

    /// The document without its lines.
    pub(super) fn to_value(&self) -> Value {
        self.node.to_value()
    }

    /// The line of a field such as `spec.rules[0].selection`, or of what comes nearest above it.
    pub(super) fn line_of(&self, path: &str) -> u64 {
        self.node.line_of("", path).unwrap_or(self.line)
    }
}

impl Node {
    fn field(&self, name: &str) -> Option<&Self> {
        let Self::Mapping(fields) = self else { return None };
        fields.iter().find(|(key, _, _)| key == name).map(|(_, _, node)| node)
    }

    fn as_str(&self) -> Option<&str> {
        if let Self::Scalar(value) = self { value.as_str() } else { None }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Scalar(value) => value.clone(),
            Self::List(items) => Value::Array(items.iter().map(|(_, node)| node.to_value()).collect()),
            Self::Mapping(fields) => Value::Object(
                fields.iter().map(|(name, _, node)| (name.clone(), node.to_value())).collect::<Map<_, _>>(),
            ),
        }
    }

    /// The line of what `path` leads to below this node, which lies at `here`.
    fn line_of(&self, here: &str, path: &str) -> Option<u64> {
        let descend = |there: String, line: u64, node: &Self| {
            let rest = path.strip_prefix(there.as_str())?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| node.line_of(&there, path).unwrap_or(line))
        };
        match self {
            Self::Scalar(_) => None,
            Self::List(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, (line, node))| descend(format!("{here}[{index}]"), *line, node)),
            Self::Mapping(fields) => fields.iter().find_map(|(name, line, node)| {
                let there = if here.is_empty() { name.clone() } else { format!("{here}.{name}") };
                descend(there, *line, node)
            }),
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
        let number = Number::from_f64(value).ok_or_else(|| E::custom(format!("{value} is no number that JSON has")))?;
        Ok(Node::Scalar(number.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = entries.next_element::<Spanned<Node>>()? {
            items.push((item.referenced.line(), item.value));
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = entries.next_key::<Spanned<String>>()? {
            if fields.len() == MAX_FIELDS {
                return Err(A::Error::custom(format!("a mapping has more than {MAX_FIELDS} fields")));
            }
            fields.push((name.value, name.referenced.line(), entries.next_value::<Node>()?));
        }
        Ok(Node::Mapping(fields))
    }
}

/// How many fields a mapping may have.
const MAX_FIELDS: usize = 10_000;
