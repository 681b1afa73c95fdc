//! The checks of an API server on a manifest: the OpenAPI and CEL rules of the CRDs, applied here.
//!
//! Stricter in one thing: a field that no schema names is refused, where an API server drops it
//! unless asked not to.

use std::collections::HashSet;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{JsonType, ValidationError};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::cel::{CompiledSchema, ValidationErrors, Validator, compile_schema};
use serde_json::{Map, Value, json};

use super::common::{NAME_PATTERN, NAMESPACE_PATTERN};
use super::generate::all;

/// One fault of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The field, such as `spec.rules[0].selection`; empty for the whole manifest.
    pub path: String,
    /// The fault, and how to correct it.
    pub message: String,
}

/// The rules of every kind, compiled.
pub struct Rules(Vec<KindRules>);

/// The rules of one kind, compiled.
pub struct KindRules {
    kind: String,
    namespaced: bool,
    schema: Value,
    openapi: jsonschema::Validator,
    cel: CompiledSchema,
}

impl Rules {
    /// Compiles the rules of every kind.
    pub fn compile() -> anyhow::Result<Self> {
        all()?.into_iter().map(KindRules::compile).collect::<anyhow::Result<_>>().map(Self)
    }

    /// The rules of `kind`, if there is such a kind.
    pub fn of(&self, kind: &str) -> Option<&KindRules> {
        self.0.iter().find(|rules| rules.kind == kind)
    }

    /// The names of the kinds.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|rules| rules.kind.as_str())
    }
}

impl KindRules {
    fn compile(crd: CustomResourceDefinition) -> anyhow::Result<Self> {
        let version = crd.spec.versions.into_iter().next();
        let schema =
            version.and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
        let mut schema = serde_json::to_value(schema)?;
        let cel = compile_schema(&schema);
        if let Some(properties) = schema["properties"].as_object_mut() {
            properties.extend([
                ("apiVersion".to_owned(), json!({ "type": "string" })),
                ("kind".to_owned(), json!({ "type": "string" })),
                ("metadata".to_owned(), metadata()),
            ]);
        }
        schema["required"] = json!(["metadata", "spec"]);
        refuse_unknown_fields(&mut schema);
        let openapi = jsonschema::options().should_validate_formats(true).build(&schema)?;
        Ok(Self {
            kind: crd.spec.names.kind,
            namespaced: crd.spec.scope == "Namespaced",
            schema,
            openapi,
            cel,
        })
    }

    /// Returns whether resources of the kind live in a namespace.
    pub fn namespaced(&self) -> bool {
        self.namespaced
    }

    /// Takes out of a manifest what an API server takes out before it looks at it: status, and nulls.
    pub fn normalize(&self, manifest: &mut Value) {
        if let Some(manifest) = manifest.as_object_mut() {
            manifest.remove("status");
        }
        drop_nulls(&self.schema, manifest);
    }

    /// Every fault of a new manifest, in the order of its fields. As with an API server, CEL is asked only once the shape is
    /// right. `written` is the text of a field's number, truth value or null as its author wrote it, if that is known.
    pub fn check<'t>(
        &self,
        manifest: &Value,
        written: &dyn Fn(&str) -> Option<&'t str>,
    ) -> Vec<Violation> {
        let mut violations: Vec<_> = self
            .openapi
            .iter_errors(manifest)
            .flat_map(|error| self.describe(&error, written))
            .collect();
        repeated_keys(&self.schema, manifest, "", &mut violations);
        if violations.is_empty() {
            violations = from_cel(Validator::new().validate_compiled(&self.cel, manifest, None));
        }
        violations.sort();
        violations.dedup();
        violations
    }

    /// Every fault of a manifest that takes the place of `old`: immutable fields that changed. Both have passed [`Self::check`].
    pub fn check_update(&self, manifest: &Value, old: &Value) -> Vec<Violation> {
        let mut violations =
            from_cel(Validator::new().validate_compiled(&self.cel, manifest, Some(old)));
        violations.sort();
        violations.dedup();
        violations
    }

    /// One OpenAPI error in words; several for several unknown fields.
    fn describe<'t>(
        &self,
        error: &ValidationError<'_>,
        written: &dyn Fn(&str) -> Option<&'t str>,
    ) -> Vec<Violation> {
        let path = dotted(error.instance_path().as_str());
        let value = written(&path).map_or_else(|| shown(error.instance()), cut);
        let one = |message: String| vec![Violation { path: path.clone(), message }];
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let parent = error.schema_path().as_str().trim_end_matches("/additionalProperties");
                let known =
                    self.schema.pointer(parent).and_then(|schema| schema["properties"].as_object());
                unexpected
                    .iter()
                    .map(|name| Violation {
                        path: join(&path, name),
                        message: unknown_field(name, known),
                    })
                    .collect()
            }
            ValidationErrorKind::FalseSchema => one("takes no fields".to_owned()),
            ValidationErrorKind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                vec![Violation { path: join(&path, name), message: "is required".to_owned() }]
            }
            // The values that it may have say more than their type.
            ValidationErrorKind::Type { .. } if self.has_options(error) => Vec::new(),
            ValidationErrorKind::Type { kind } => one(wrong_type(kind, error.instance(), &value)),
            ValidationErrorKind::Enum { options } => {
                let options: Vec<_> = options.as_array().into_iter().flatten().map(plain).collect();
                one(format!("{value} is none of {}", options.join(", ")))
            }
            ValidationErrorKind::Pattern { pattern } => {
                one(format!("{value} does not match {pattern}"))
            }
            ValidationErrorKind::PropertyNames { error } => one(format!(
                "the key {} is not valid: {}",
                shown(error.instance()),
                error.masked_with("it")
            )),
            ValidationErrorKind::Format { format } => {
                one(format!("{value} is not a valid {format}"))
            }
            ValidationErrorKind::MinLength { limit } => {
                one(format!("{value} has fewer than {limit} characters"))
            }
            ValidationErrorKind::MaxLength { limit } => {
                one(format!("{value} has more than {limit} characters"))
            }
            ValidationErrorKind::MinItems { limit } => {
                one(format!("has fewer entries than {limit}"))
            }
            ValidationErrorKind::MaxItems { limit } => {
                one(format!("has more entries than {limit}"))
            }
            ValidationErrorKind::MaxProperties { limit } => {
                one(format!("has more entries than {limit}"))
            }
            ValidationErrorKind::Minimum { limit } => {
                one(format!("{value} is less than {}", number(limit)))
            }
            ValidationErrorKind::Maximum { limit } => {
                one(format!("{value} is more than {}", number(limit)))
            }
            _ => one(error.to_string()),
        }
    }
}

impl KindRules {
    /// Returns whether the schema that a value of the wrong type breaks lists the values that it may have.
    fn has_options(&self, error: &ValidationError<'_>) -> bool {
        let schema = error.schema_path().as_str().trim_end_matches("/type");
        self.schema.pointer(schema).is_some_and(|schema| schema.get("enum").is_some())
    }
}

/// Returns what `metadata` may hold: the fields that Kubernetes knows, so that an object read from
/// a cluster is valid here.
fn metadata() -> Value {
    const LABEL_VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
    const QUALIFIED_NAME: &str =
        "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
    json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": { "type": "string", "minLength": 1, "maxLength": 253, "pattern": NAME_PATTERN },
            "namespace": { "type": "string", "minLength": 1, "maxLength": 63, "pattern": NAMESPACE_PATTERN },
            "labels": {
                "type": "object",
                "propertyNames": { "maxLength": 317, "pattern": QUALIFIED_NAME },
                "additionalProperties": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE },
            },
            "annotations": {
                "type": "object",
                "propertyNames": { "maxLength": 317, "pattern": QUALIFIED_NAME },
                "additionalProperties": { "type": "string" },
            },
            "finalizers": { "type": "array", "items": { "type": "string" } },
            "ownerReferences": { "type": "array", "x-kubernetes-preserve-unknown-fields": true },
            "managedFields": { "type": "array", "x-kubernetes-preserve-unknown-fields": true },
            "creationTimestamp": { "type": "string" },
            "deletionTimestamp": { "type": "string" },
            "deletionGracePeriodSeconds": { "type": "integer" },
            "generateName": { "type": "string" },
            "generation": { "type": "integer" },
            "resourceVersion": { "type": "string" },
            "selfLink": { "type": "string" },
            "uid": { "type": "string" },
        },
    })
}

/// Says of every object of a structural schema that it has no other fields, unless it says otherwise itself.
fn refuse_unknown_fields(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        object.insert("type".to_owned(), json!(["integer", "string"]));
    }
    let open = object.contains_key("additionalProperties")
        || object.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true));
    if object.get("type") == Some(&json!("object")) && !open {
        object.insert("additionalProperties".to_owned(), json!(false));
    }
    for property in object
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(Map::values_mut)
    {
        refuse_unknown_fields(property);
    }
    for keyword in ["items", "additionalProperties"] {
        object.get_mut(keyword).into_iter().for_each(refuse_unknown_fields);
    }
}

/// The schema of a field, or of what a map holds.
fn field<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    schema["properties"]
        .get(name)
        .or_else(|| schema.get("additionalProperties").filter(|values| values.is_object()))
}

fn drop_nulls(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| !value.is_null() || field(schema, name).is_none());
            for (name, value) in fields {
                field(schema, name).into_iter().for_each(|schema| drop_nulls(schema, value));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| drop_nulls(&schema["items"], item)),
        _ => {}
    }
}

/// Entries of a list that is a set, or a map by some of its fields, that are there twice.
fn repeated_keys(schema: &Value, value: &Value, path: &str, violations: &mut Vec<Violation>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let Some(schema) = field(schema, name) {
                    repeated_keys(schema, value, &join(path, name), violations);
                }
            }
        }
        Value::Array(items) => {
            let mut seen = HashSet::new();
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                if let Some(key) = list_key(schema, item)
                    && !seen.insert(key.to_string())
                {
                    let message = format!("{} is given twice: take one out", shown(&key));
                    violations.push(Violation { path: path.clone(), message });
                }
                repeated_keys(&schema["items"], item, &path, violations);
            }
        }
        _ => {}
    }
}

/// Returns what must be unique of an entry of a list with this schema.
fn list_key(schema: &Value, item: &Value) -> Option<Value> {
    match schema["x-kubernetes-list-type"].as_str()? {
        "set" => Some(item.clone()),
        "map" => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array()?;
            let key =
                |name: &Value| Some((name.as_str()?.to_owned(), item.get(name.as_str()?)?.clone()));
            keys.iter().map(key).collect::<Option<Map<_, _>>>().map(Value::Object)
        }
        _ => None,
    }
}

fn from_cel(result: Result<(), ValidationErrors>) -> Vec<Violation> {
    let errors = result.err().map(ValidationErrors::into_vec).unwrap_or_default();
    errors
        .into_iter()
        .map(|error| Violation { path: error.field_path, message: error.message })
        .collect()
}

fn unknown_field(name: &str, known: Option<&Map<String, Value>>) -> String {
    let known: Vec<_> = known.into_iter().flat_map(Map::keys).map(String::as_str).collect();
    let nearest = known
        .iter()
        .map(|candidate| {
            (strsim::jaro_winkler(&candidate.to_lowercase(), &name.to_lowercase()), candidate)
        })
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match nearest {
        Some((likeness, candidate)) if likeness > 0.85 => {
            format!("unknown field: did you mean {candidate}?")
        }
        Some(_) => format!("unknown field: known here are {}", known.join(", ")),
        None => "unknown field".to_owned(),
    }
}

fn wrong_type(expected: &TypeKind, instance: &Value, value: &str) -> String {
    let name = |json_type: JsonType| match json_type {
        JsonType::Object => "a mapping",
        JsonType::Array => "a list",
        JsonType::String => "a string",
        JsonType::Integer => "a whole number",
        JsonType::Number => "a number",
        JsonType::Boolean => "true or false",
        JsonType::Null => "null",
    };
    match expected {
        TypeKind::Single(JsonType::String) if instance.is_number() || instance.is_boolean() => {
            format!("must be a string: put {value} in quotes")
        }
        TypeKind::Single(expected) => format!("must be {}, not {value}", name(*expected)),
        TypeKind::Multiple(expected) => {
            let names: Vec<_> = expected.iter().map(name).collect();
            format!("must be {}, not {value}", names.join(" or "))
        }
    }
}

/// A value as it may stand in a message: on one line, and not longer than one.
fn shown(value: &Value) -> String {
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A limit of a schema, where whole numbers are written as fractions.
fn number(limit: &Value) -> String {
    limit.as_f64().map_or_else(|| limit.to_string(), |limit| limit.to_string())
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// `/spec/rules/0/selection` as `spec.rules[0].selection`.
fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for segment in pointer.split('/').skip(1) {
        let segment = segment.replace("~1", "/").replace("~0", "~");
        if !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit()) {
            path.push_str(&format!("[{segment}]"));
        } else {
            path = join(&path, &segment);
        }
    }
    path
}
