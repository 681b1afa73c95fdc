//! The state of a workload, computed from its pods, in one sentence that a person can act on.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod, PodTemplateSpec};
use kube::ResourceExt as _;

/// The longest part of another party's message that is quoted, in characters.
const LONGEST: usize = 300;

/// The numbers of a workload's pods, whatever creates them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    pub wanted: i32,
    /// Those of the current template.
    pub updated: i32,
    /// Those of any template.
    pub total: i32,
    /// Those that serve.
    pub ready: i32,
    /// True if the numbers are about the current generation of the workload.
    pub current: bool,
    /// The reason for which no pod can be created, if one is reported.
    pub failure: Option<String>,
    /// The image of the current template.
    pub image: Option<String>,
}

/// The state of a workload, with its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rollout {
    /// All wanted replicas serve.
    Serving(String),
    /// No replica is wanted, and none serves.
    Stopped(String),
    /// A change is being rolled out, or replicas fail.
    Progressing(String),
}

impl From<&Deployment> for Pods {
    fn from(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let status = deployment.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let failed =
            conditions.into_iter().find(|it| it.type_ == "ReplicaFailure" && it.status == "True");
        Self {
            wanted: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            updated: status.updated_replicas.unwrap_or_default(),
            total: status.replicas.unwrap_or_default(),
            ready: status.ready_replicas.unwrap_or_default(),
            current: status.observed_generation >= deployment.metadata.generation,
            failure: failed.and_then(|condition| condition.message),
            image: spec.and_then(|it| image_of(&it.template)),
        }
    }
}

impl From<&StatefulSet> for Pods {
    fn from(set: &StatefulSet) -> Self {
        let spec = set.spec.as_ref();
        let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let status = set.status.clone().unwrap_or_default();
        // Pods of the current revision stop being counted as updated ones once the revision is the current one.
        let rolled_out =
            status.update_revision.is_some() && status.update_revision == status.current_revision;
        let updated = status.updated_replicas.unwrap_or_default();
        Self {
            wanted,
            updated: if rolled_out { updated.max(status.replicas) } else { updated },
            total: status.replicas,
            ready: status.ready_replicas.unwrap_or_default(),
            current: status.observed_generation >= set.metadata.generation,
            failure: None,
            image: spec.and_then(|it| image_of(&it.template)),
        }
    }
}

/// Returns the image of the registry in a pod template.
fn image_of(template: &PodTemplateSpec) -> Option<String> {
    template.spec.as_ref()?.containers.first()?.image.clone()
}

/// Computes the state of a workload from its numbers, and the reason for missing replicas from its pods and its claim.
pub(crate) fn rollout(
    numbers: &Pods,
    pods: &[Pod],
    claim: Option<&PersistentVolumeClaim>,
) -> Rollout {
    let Pods { wanted, updated, total, ready, current, failure, .. } = numbers;
    let serve = format!("{ready} of {wanted} replicas serve");
    let settled = *current && updated >= wanted && total <= wanted;
    if settled && *wanted == 0 {
        return Rollout::Stopped("managed.replicas is 0, so nothing serves".to_owned());
    }
    if settled && ready >= wanted {
        return Rollout::Serving(serve);
    }
    let mut pods: Vec<_> = pods.iter().collect();
    pods.sort_by_key(|pod| pod.name_any());
    let pod = pods
        .into_iter()
        .find_map(|pod| Some(format!("Pod {}: {}", pod.name_any(), pod_trouble(pod)?)));
    let troubles: Vec<_> = [failure.as_deref().map(brief), pod, claim.and_then(claim_trouble)]
        .into_iter()
        .flatten()
        .collect();
    let why = match troubles.as_slice() {
        [] if ready >= wanted => Some("a change is being rolled out".to_owned()),
        [] if *total == 0 => Some("no Pod is there yet".to_owned()),
        [] => None,
        troubles => Some(troubles.join("; ")),
    };
    Rollout::Progressing(why.map_or(serve.clone(), |why| format!("{serve}: {why}")))
}

/// Returns why a pod does not serve, if that is reported.
fn pod_trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unscheduled =
        conditions.iter().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    if let Some(condition) = unscheduled {
        return Some(reported(condition.reason.as_deref(), condition.message.as_deref()));
    }
    let container = status.container_statuses.iter().flatten().find_map(container_trouble);
    if container.is_some() || status.phase.as_deref() != Some("Failed") {
        return container;
    }
    Some(reported(status.reason.as_deref(), status.message.as_deref()))
}

/// Returns why a container does not run. The last output of a crashed process explains more than the number of crashes.
fn container_trouble(container: &ContainerStatus) -> Option<String> {
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let state = container.state.as_ref()?;
    if let Some(ended) = &state.terminated {
        let reason = ended.reason.as_deref().unwrap_or("Terminated");
        return Some(reported(
            Some(&format!("{reason} (exit code {})", ended.exit_code)),
            ended.message.as_deref(),
        ));
    }
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref();
        if reason == Some("ContainerCreating") {
            return None;
        }
        let last_output = last
            .and_then(|ended| ended.message.as_deref())
            .filter(|_| reason == Some("CrashLoopBackOff"));
        return Some(reported(reason, last_output.or(waiting.message.as_deref())));
    }
    None
}

/// Returns why a claim has no volume, if it has none.
fn claim_trouble(claim: &PersistentVolumeClaim) -> Option<String> {
    let pending =
        claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    pending.then(|| match class {
        Some(class) => {
            format!(
                "PersistentVolumeClaim {} waits for a volume of StorageClass {class}; deleted meanwhile, it is created again as size \
                 and storageClassName say",
                claim.name_any()
            )
        }
        None => format!(
            "PersistentVolumeClaim {} has no StorageClass, and the cluster no default one: set storageClassName",
            claim.name_any()
        ),
    })
}

fn reported(reason: Option<&str>, message: Option<&str>) -> String {
    match (reason, message.map(brief).filter(|message| !message.is_empty())) {
        (Some(reason), Some(message)) => format!("{reason}: {message}"),
        (Some(reason), None) => reason.to_owned(),
        (None, Some(message)) => message,
        (None, None) => "it says nothing".to_owned(),
    }
}

/// Returns the last line of another party's message, which matters most in a log, cut to a length that fits a status.
fn brief(text: &str) -> String {
    let line = text.trim().lines().last().unwrap_or_default().trim();
    if line.chars().count() <= LONGEST {
        return line.to_owned();
    }
    line.chars().take(LONGEST).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(wanted: i32, status: serde_json::Value) -> Pods {
        let deployment = json!({
            "metadata": { "name": "home", "generation": 2 },
            "spec": { "replicas": wanted, "selector": {}, "template": {} },
            "status": status,
        });
        Pods::from(&serde_json::from_value::<Deployment>(deployment).unwrap())
    }

    fn pod(name: &str, status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": name }, "status": status })).unwrap()
    }

    fn container(state: serde_json::Value, last: serde_json::Value) -> serde_json::Value {
        json!({ "containerStatuses": [{ "name": "registry", "image": "w", "imageID": "", "ready": false, "restartCount": 1,
            "state": state, "lastState": last }] })
    }

    #[test]
    fn a_workload_serves_when_all_replicas_have_the_current_template() {
        let whole = json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3 });
        let served = Rollout::Serving("3 of 3 replicas serve".into());
        assert_eq!(rollout(&deployment(3, whole.clone()), &[], None), served);
        for (what, field, value, message) in [
            (
                "an old status",
                "observedGeneration",
                1,
                "3 of 3 replicas serve: a change is being rolled out",
            ),
            (
                "an old template",
                "updatedReplicas",
                2,
                "3 of 3 replicas serve: a change is being rolled out",
            ),
            ("one too many", "replicas", 4, "3 of 3 replicas serve: a change is being rolled out"),
            ("one that does not serve", "readyReplicas", 2, "2 of 3 replicas serve"),
            ("no pods", "readyReplicas", 0, "0 of 3 replicas serve"),
        ] {
            let mut status = whole.clone();
            status[field] = json!(value);
            let expected = Rollout::Progressing(message.into());
            assert_eq!(rollout(&deployment(3, status), &[], None), expected, "{what}");
        }
    }

    #[test]
    fn a_workload_without_pods_reports_that() {
        let none = deployment(1, json!({ "observedGeneration": 2 }));
        let said = Rollout::Progressing("0 of 1 replicas serve: no Pod is there yet".into());
        assert_eq!(rollout(&none, &[], None), said);
    }

    #[test]
    fn a_registry_of_no_replicas_is_stopped() {
        let stopped = rollout(&deployment(0, json!({ "observedGeneration": 2 })), &[], None);
        assert!(matches!(stopped, Rollout::Stopped(_)), "{stopped:?}");
        let stopping =
            rollout(&deployment(0, json!({ "observedGeneration": 2, "replicas": 1 })), &[], None);
        assert!(matches!(stopping, Rollout::Progressing(_)), "{stopping:?}");
    }

    #[test]
    fn a_stateful_set_serves_when_its_only_pod_has_the_current_revision() {
        let set = |current: &str, updated: i32| {
            let set = json!({
                "metadata": { "name": "home", "generation": 1 },
                "spec": { "replicas": 1, "selector": {}, "template": {} },
                "status": { "observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": updated,
                    "currentRevision": current, "updateRevision": "home-b" },
            });
            rollout(&Pods::from(&serde_json::from_value::<StatefulSet>(set).unwrap()), &[], None)
        };
        assert_eq!(set("home-b", 1), Rollout::Serving("1 of 1 replicas serve".into()));
        assert_eq!(set("home-b", 0), Rollout::Serving("1 of 1 replicas serve".into()));
        assert!(matches!(set("home-a", 0), Rollout::Progressing(_)));
    }

    #[test]
    fn the_reason_why_a_pod_does_not_serve_is_reported() {
        let none =
            deployment(1, json!({ "observedGeneration": 2, "replicas": 1, "updatedReplicas": 1 }));
        let reported =
            |status: serde_json::Value| match rollout(&none, &[pod("home-0", status)], None) {
                Rollout::Progressing(message) => message,
                other => panic!("{other:?}"),
            };
        assert_eq!(
            reported(container(
                json!({ "waiting": { "reason": "ImagePullBackOff", "message": "Back-off pulling image \"w\"" } }),
                json!({})
            )),
            "0 of 1 replicas serve: Pod home-0: ImagePullBackOff: Back-off pulling image \"w\""
        );
        assert_eq!(
            reported(container(
                json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s restarting" } }),
                json!({ "terminated": { "exitCode": 1, "message": "a log line\nerror: cannot open the bucket\n" } })
            )),
            "0 of 1 replicas serve: Pod home-0: CrashLoopBackOff: error: cannot open the bucket"
        );
        assert_eq!(
            reported(container(
                json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } }),
                json!({})
            )),
            "0 of 1 replicas serve: Pod home-0: OOMKilled (exit code 137)"
        );
        assert_eq!(
            reported(
                json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False",
                "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient memory." }] })
            ),
            "0 of 1 replicas serve: Pod home-0: Unschedulable: 0/1 nodes are available: 1 Insufficient memory."
        );
        assert_eq!(
            reported(container(json!({ "waiting": { "reason": "ContainerCreating" } }), json!({}))),
            "0 of 1 replicas serve"
        );
    }

    #[test]
    fn a_claim_without_a_volume_and_a_refused_pod_are_reported() {
        let none = deployment(1, json!({ "observedGeneration": 2 }));
        let claim = json!({ "metadata": { "name": "data-home-0" }, "spec": { "storageClassName": "fast" },
            "status": { "phase": "Pending" } });
        assert_eq!(
            rollout(&none, &[], Some(&serde_json::from_value(claim).unwrap())),
            Rollout::Progressing(
                "0 of 1 replicas serve: PersistentVolumeClaim data-home-0 waits for a volume of StorageClass fast; deleted \
                 meanwhile, it is created again as size and storageClassName say"
                    .into()
            )
        );
        let refused = deployment(
            1,
            json!({ "observedGeneration": 2, "conditions": [{ "type": "ReplicaFailure", "status": "True",
                "message": "pods \"home-1\" is forbidden: exceeded quota: q" }] }),
        );
        assert_eq!(
            rollout(&refused, &[], None),
            Rollout::Progressing(
                "0 of 1 replicas serve: pods \"home-1\" is forbidden: exceeded quota: q".into()
            )
        );
    }
}
