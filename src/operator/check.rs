//! Checks that a cluster has what the operator needs: the kinds of this version, the permissions, a
//! leader.
//!
//! It only reads, and needs no permission beyond those of every service account.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::Value;

use super::managed_namespaces::ManagedNamespaces;
use super::policy_rule::{Feature, RuleScope};
use super::rbac;
use wharfage_crd::{API_VERSION, GROUP, VERSION};

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The cluster has it.
    Fine(String),
    /// The cluster does not have it: the missing part, and what to do.
    Missing(String),
}

/// Checks that the API server serves every kind, with all fields of this version.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn check_kinds(client: &Client) -> anyhow::Result<Vec<Finding>> {
    let request = http::Request::get(format!("/openapi/v3/apis/{API_VERSION}")).body(Vec::new())?;
    let served: Value = match client.request(request).await {
        Ok(served) => served,
        Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
        Err(error) => return Err(error.into()),
    };
    let finding =
        |crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
            let kind = &crd.spec.names.kind;
            let Some(there) = schema_of(&served, kind) else {
                return anyhow::Ok(Finding::Missing(format!(
                    "kind {kind} is not in the cluster: install the chart with crds.install, or apply what `wharfage crds` prints"
                )));
            };
            let version = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
            let ours = serde_json::to_value(version.and_then(|schema| schema.open_api_v3_schema.as_ref()))?;
            let mut missing = Vec::new();
            missing_fields(kind, &ours, there, &mut missing);
            Ok(match missing.as_slice() {
                [] => Finding::Fine(format!("kind {kind} is there, {API_VERSION}")),
                [first, rest @ ..] => Finding::Missing(format!(
                    "kind {kind} in the cluster is older than this version: it doesn't know {first}{}; apply what `wharfage crds` prints",
                    if rest.is_empty() { String::new() } else { format!(" and {} fields more", rest.len()) }
                )),
            })
        };
    wharfage_crd::all()?.into_iter().map(finding).collect()
}

/// Returns the schema of one of our kinds, as the API server publishes it.
fn schema_of<'a>(served: &'a Value, kind: &str) -> Option<&'a Value> {
    let is_it = |schema: &&Value| {
        schema["x-kubernetes-group-version-kind"].as_array().is_some_and(|kinds| {
            kinds
                .iter()
                .any(|it| it["kind"] == kind && it["group"] == GROUP && it["version"] == VERSION)
        })
    };
    served["components"]["schemas"].as_object()?.values().find(is_it)
}

/// Collects the paths of fields in `ours` that `served` does not have: the API server would drop
/// them.
fn missing_fields(path: &str, ours: &Value, served: &Value, missing: &mut Vec<String>) {
    for (name, schema) in ours["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match served["properties"].get(name) {
            Some(served) => missing_fields(&path, schema, served, missing),
            None => missing.push(path),
        }
    }
    for (keyword, suffix) in [("items", "[]"), ("additionalProperties", ".*")] {
        if ours[keyword].is_object() && served[keyword].is_object() {
            missing_fields(&format!("{path}{suffix}"), &ours[keyword], &served[keyword], missing);
        }
    }
}

/// The permissions that the chart was installed with.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// The operator's namespace.
    pub namespace: String,
    /// Disabled features.
    pub without: Vec<Feature>,
    /// The only namespaces whose Secrets it may read; empty means all.
    pub secret_namespaces: Vec<String>,
    /// The namespaces in which registries may run, besides its own; `*` for every namespace.
    pub managed_namespaces: Vec<String>,
}

/// Checks that the caller has all permissions of the operator.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn check_permissions(
    client: &Client,
    expected: &Expected,
) -> anyhow::Result<Vec<Finding>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let asked = questions(expected).into_iter().map(|question| {
        let reviews = reviews.clone();
        async move {
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(question.clone()),
                    ..Default::default()
                },
                ..Default::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await?;
            anyhow::Ok(
                (!answer.status.is_some_and(|status| status.allowed)).then(|| sentence(&question)),
            )
        }
    });
    let asked: Vec<Option<String>> = stream::iter(asked).buffered(8).try_collect().await?;
    let all = asked.len();
    let missing: Vec<Finding> = asked.into_iter().flatten().map(Finding::Missing).collect();
    Ok(if missing.is_empty() {
        vec![Finding::Fine(format!("all {all} permissions are there"))]
    } else {
        missing
    })
}

/// Returns every permission as a question to the API server.
fn questions(expected: &Expected) -> Vec<ResourceAttributes> {
    let Expected { namespace, without, secret_namespaces, managed_namespaces } = expected;
    let managed = ManagedNamespaces::new(namespace, managed_namespaces.iter().cloned());
    let mut questions = Vec::new();
    for rule in rbac::rules().iter().filter(|rule| !without.contains(&rule.feature)) {
        for name in rule.resources {
            let (resource, subresource) =
                name.split_once('/').map_or((*name, None), |(resource, sub)| (resource, Some(sub)));
            let places: Vec<Option<&String>> = match rule.scope {
                RuleScope::OwnNamespace => vec![Some(namespace)],
                RuleScope::ManagedNamespaces => match &managed {
                    ManagedNamespaces::Every => vec![None],
                    ManagedNamespaces::Listed(listed) => listed.iter().map(Some).collect(),
                },
                RuleScope::Cluster if resource == "secrets" && !secret_namespaces.is_empty() => {
                    secret_namespaces.iter().map(Some).collect()
                }
                RuleScope::Cluster => vec![None],
            };
            for (place, verb) in
                places.iter().flat_map(|place| rule.verbs.iter().map(move |verb| (place, verb)))
            {
                questions.push(ResourceAttributes {
                    group: Some(rule.group.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource: subresource.map(str::to_owned),
                    verb: Some((*verb).to_owned()),
                    namespace: place.cloned(),
                    ..Default::default()
                });
            }
        }
    }
    questions
}

fn sentence(question: &ResourceAttributes) -> String {
    let word = |part: &Option<String>| part.clone().unwrap_or_default();
    let subresource =
        question.subresource.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
    let group = question
        .group
        .as_ref()
        .filter(|group| !group.is_empty())
        .map(|group| format!(".{group}"))
        .unwrap_or_default();
    let place = question
        .namespace
        .as_ref()
        .map_or("in the whole cluster".to_owned(), |name| format!("in namespace {name}"));
    format!(
        "may not {} {}{group}{subresource} {place}",
        word(&question.verb),
        word(&question.resource)
    )
}

/// Waits until a live operator holds the Lease, for `patience` at most.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn check_leader(
    client: &Client,
    namespace: &str,
    name: &str,
    patience: Duration,
) -> anyhow::Result<Finding> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let lease = leases.get_opt(name).await?;
        if let Some(holder) = lease.as_ref().and_then(|lease| holder(lease, Timestamp::now())) {
            return Ok(Finding::Fine(format!("{holder} leads, by the Lease {name}")));
        }
        if tokio::time::Instant::now() > deadline {
            return Ok(Finding::Missing(format!(
                "no operator leads: {} Lease {name} in namespace {namespace}; look at the operator's log",
                if lease.is_some() { "nobody holds the" } else { "there is no" }
            )));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Returns the holder of the Lease at that time.
fn holder(lease: &Lease, now: Timestamp) -> Option<&str> {
    let spec = lease.spec.as_ref()?;
    let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())?;
    let lasts = Duration::from_secs(spec.lease_duration_seconds?.try_into().ok()?);
    (now <= spec.renew_time.as_ref()?.0 + lasts).then_some(holder)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_missing_field_is_found_at_any_depth() {
        let ours = json!({"properties": {"spec": {"properties": {
            "rules": {"items": {"properties": {"old": {}, "new": {}}}},
            "labels": {"additionalProperties": {"type": "string"}},
        }}}});
        let mut served = ours.clone();
        let mut missing = Vec::new();
        missing_fields("Kind", &ours, &served, &mut missing);
        assert!(missing.is_empty(), "{missing:?}");
        served["properties"]["spec"]["properties"]["rules"]["items"]["properties"]
            .as_object_mut()
            .unwrap()
            .remove("new");
        missing_fields("Kind", &ours, &served, &mut missing);
        assert_eq!(missing, ["Kind.spec.rules[].new"]);
    }

    #[test]
    fn a_lease_is_held_until_it_expires_or_is_released() {
        let now = Timestamp::from_second(1_000).unwrap();
        let lease = |holder: &str, renewed| Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(holder(&lease("a", 990), now), Some("a"));
        assert_eq!(holder(&lease("a", 984), now), None);
        assert_eq!(holder(&lease("", 999), now), None);
        assert_eq!(holder(&Lease::default(), now), None);
    }

    #[test]
    fn permissions_are_checked_where_the_chart_grants_them() {
        let places = |resource: &str, secrets: &[&str], managed: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
            let expected = Expected {
                namespace: "wharfage".into(),
                without: vec![Feature::PullSecrets],
                secret_namespaces: owned(secrets),
                managed_namespaces: owned(managed),
            };
            let asked = questions(&expected).into_iter();
            let asked = asked.filter(|it| it.resource.as_deref() == Some(resource));
            asked.map(|it| it.namespace).collect::<BTreeSet<Option<String>>>()
        };
        let named = |names: &[&str]| names.iter().map(|it| Some((*it).to_owned())).collect();
        assert_eq!(places("secrets", &["a", "b"], &[]), named(&["a", "b", "wharfage"]));
        assert!(places("secrets", &[], &[]).contains(&None));
        assert_eq!(places("services", &[], &[]), named(&["wharfage"]));
        assert_eq!(places("services", &[], &["a"]), named(&["a", "wharfage"]));
        assert_eq!(places("services", &[], &["*"]), BTreeSet::from([None]));
        let statuses = questions(&Expected::default());
        assert!(statuses.iter().any(|it| it.subresource.as_deref() == Some("status")));
    }
}
