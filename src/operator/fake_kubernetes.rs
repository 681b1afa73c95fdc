//! A Kubernetes API server in memory, as far as the tests of reads and writes need one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// A cluster: its objects by plural, namespace and name.
#[derive(Clone, Default)]
pub(crate) struct FakeKubernetes(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    version: u64,
    writes: usize,
}

type Key = (String, String, String);

impl FakeKubernetes {
    pub fn client(&self) -> Client {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let cluster = cluster.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (code, answer) =
                    cluster.state().answer(&head.method, head.uri.path(), head.uri.query(), body);
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
            }
        });
        Client::new(service, "default")
    }

    /// Stores an object as another party creates it.
    pub fn create(&self, plural: &str, object: Value) {
        let namespace = object["metadata"]["namespace"].as_str().unwrap().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.state().store((plural.to_owned(), namespace, name), object, "kubectl", "Update");
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state()
            .objects
            .get(&(plural.to_owned(), namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    pub fn names(&self, plural: &str) -> Vec<String> {
        self.state().objects.keys().filter(|key| key.0 == plural).map(|key| key.2.clone()).collect()
    }

    /// Returns the number of requests that wrote something.
    pub fn writes(&self) -> usize {
        self.state().writes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    fn answer(
        &mut self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        body: Value,
    ) -> (StatusCode, Value) {
        let (plural, namespace, name) = target(path);
        let parameter = |key: &str| {
            let pairs =
                query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .into_iter()
                .find(|(it, _)| *it == key)
                .map(|(_, value)| value.replace("%3D", "=").replace("%2F", "/"))
        };
        let manager = parameter("fieldManager").unwrap_or_default();
        let Some(name) =
            name.or_else(|| body["metadata"]["name"].as_str().filter(|_| *method == Method::POST))
        else {
            let label = parameter("labelSelector");
            let is_selected = |((of, within, _), object): &(&Key, &Value)| {
                let labels = &object["metadata"]["labels"];
                let matches = |label: &str| {
                    label.split_once('=').is_some_and(|(key, value)| labels[key] == value)
                };
                *of == plural
                    && namespace.is_none_or(|namespace| within == namespace)
                    && label.as_deref().is_none_or(matches)
            };
            let items: Vec<_> =
                self.objects.iter().filter(is_selected).map(|(_, object)| object.clone()).collect();
            return (
                StatusCode::OK,
                json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items }),
            );
        };
        let key = (plural.to_owned(), namespace.unwrap_or_default().to_owned(), name.to_owned());
        let existing = self.objects.get(&key).cloned();
        let is_other = |uid: &Value| {
            existing.as_ref().is_some_and(|it| !uid.is_null() && it["metadata"]["uid"] != *uid)
        };
        match (method.as_str(), existing.clone()) {
            ("GET", Some(object)) => (StatusCode::OK, object),
            ("POST", Some(_)) => failure(StatusCode::CONFLICT),
            ("POST", None) => (StatusCode::CREATED, self.store(key, body, &manager, "Update")),
            ("PATCH", _) if is_other(&body["metadata"]["uid"]) => failure(StatusCode::CONFLICT),
            // The only JSON patch is the one that removes the finalizer.
            ("PATCH", Some(mut object)) if body.is_array() => {
                object["metadata"]["finalizers"] = json!([]);
                (StatusCode::OK, self.store(key, object, &manager, "Update"))
            }
            ("PATCH", existing) => {
                let mut object = existing.unwrap_or_default();
                merge(&mut object, body);
                (StatusCode::OK, self.store(key, object, &manager, "Apply"))
            }
            ("DELETE", Some(_)) if is_other(&body["preconditions"]["uid"]) => {
                failure(StatusCode::CONFLICT)
            }
            ("DELETE", Some(_)) => {
                self.objects.remove(&key);
                self.writes += 1;
                (
                    StatusCode::OK,
                    json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }),
                )
            }
            _ => failure(StatusCode::NOT_FOUND),
        }
    }

    fn store(&mut self, key: Key, mut object: Value, manager: &str, operation: &str) -> Value {
        self.version += 1;
        self.writes += 1;
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
        }
        metadata["namespace"] = json!(key.1);
        metadata["resourceVersion"] = json!(self.version.to_string());
        if !manager.is_empty() {
            metadata["managedFields"] = json!([{ "manager": manager, "operation": operation }]);
        }
        self.objects.insert(key, object.clone());
        object
    }
}

/// Reads the plural, the namespace and the name from a path.
fn target(path: &str) -> (&str, Option<&str>, Option<&str>) {
    let segments: Vec<_> = path.trim_start_matches('/').split('/').collect();
    let skipped = if segments[0] == "api" { 2 } else { 3 };
    match &segments[skipped..] {
        ["namespaces", namespace, plural, rest @ ..] => {
            (plural, Some(namespace), rest.first().copied())
        }
        [plural, rest @ ..] => (plural, None, rest.first().copied()),
        [] => panic!("no object in {path}"),
    }
}

fn merge(object: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !object.is_object() {
                *object = json!({});
            }
            for (field, value) in fields {
                merge(&mut object[field], value);
            }
        }
        value => *object = value,
    }
}

fn failure(code: StatusCode) -> (StatusCode, Value) {
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    let (kind, version, code_number) = ("Status", "v1", code.as_u16());
    (
        code,
        json!({ "kind": kind, "apiVersion": version, "status": "Failure", "reason": reason, "message": reason, "code": code_number }),
    )
}
