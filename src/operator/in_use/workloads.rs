//! Lists the images in use of a cluster: of Pods, of the pod templates of workloads, and of their
//! earlier revisions.
//!
//! It fails closed: what cannot be listed or read is an error, after which the caller must delete
//! nothing.

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use kube::api::ListParams;
use kube::core::{Request, Selector};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::references::{InUse, UsedImage};

/// The number of objects in a page: a few MiB for pods of usual size.
const PAGE: u32 = 250;

/// The workloads whose images count.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageScope {
    /// Selects the namespaces; absent or empty for all.
    pub namespaces: Option<LabelSelector>,
    /// The number of earlier images of a workload that count, too.
    pub keep_previous: usize,
}

/// The reason for which the images in use are unknown.
#[derive(Debug, thiserror::Error)]
pub enum CannotTell {
    /// The operator is not allowed to list a resource.
    #[error(
        "{resource} cannot be listed: the operator's ClusterRole lacks list on {resource}, so it cannot tell what runs"
    )]
    Forbidden {
        /// The resource, with its group: `deployments.apps`.
        resource: String,
    },
    /// The API server cannot be asked, or refuses.
    #[error("{resource} cannot be listed, so it cannot be told what runs: {message}")]
    Unlisted {
        /// The resource, with its group.
        resource: String,
        message: String,
    },
    /// An answer cannot be read.
    #[error("the list of {resource} cannot be read, so it cannot be told what runs: {message}")]
    Unreadable {
        /// The resource, with its group.
        resource: String,
        /// The place, and the reason.
        message: String,
    },
    /// The namespaceSelector is invalid.
    #[error("inUseProtection.namespaceSelector is not valid: {0}")]
    Selector(String),
}

/// Lists every image that counts.
///
/// Owners are listed before what they create, so that a Job that a CronJob creates meanwhile is
/// found among Jobs or Pods. Namespaces come last, so that a new one is known, too.
///
/// # Errors
/// When any list fails, is forbidden or cannot be read.
pub async fn in_use(client: &Client, scope: &ImageScope) -> Result<InUse, CannotTell> {
    let selector = match &scope.namespaces {
        Some(selector) => Selector::try_from(selector.clone())
            .map_err(|error| CannotTell::Selector(error.to_string()))?,
        None => Selector::default(),
    };
    let mut found = UsedImages::default();
    let take = |it: ListedWorkload<CronJobSpec>| {
        found.add(&it.metadata.namespace, it.spec.job_template.spec.template.spec.images());
        Ok(())
    };
    CRON_JOBS.each(client, &all(), take).await?;
    let mut revised = HashMap::new();
    for workloads in [DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS] {
        let take = |it: ListedWorkload<Templated>| {
            found.add(&it.metadata.namespace, it.spec.template.spec.images());
            if scope.keep_previous > 0 {
                let current = it.spec.template.spec.images().map(str::to_owned).collect();
                revised.insert(
                    it.metadata.uid,
                    Revised { namespace: it.metadata.namespace, current, before: Vec::new() },
                );
            }
            Ok(())
        };
        workloads.each(client, &all(), take).await?;
    }
    if scope.keep_previous > 0 {
        let take = |it: ListedWorkload<Templated>| {
            if let Some(owner) = it.metadata.owner(&mut revised) {
                let images = it.spec.template.spec.images().map(str::to_owned).collect();
                owner.before.push((it.metadata.revision(), images));
            }
            Ok(())
        };
        REPLICA_SETS.each(client, &all(), take).await?;
        let take = |it: ControllerRevision| {
            let Some(owner) = it.metadata.owner(&mut revised) else { return Ok(()) };
            // Only these owners keep pod templates in a ControllerRevision.
            let data: RevisionData = serde_json::from_str(it.data.get())?;
            owner.before.push((
                Some(it.revision),
                data.spec.template.spec.images().map(str::to_owned).collect(),
            ));
            Ok(())
        };
        CONTROLLER_REVISIONS.each(client, &all(), take).await?;
        for workload in revised.into_values() {
            let namespace = workload.namespace.clone();
            found
                .add(&namespace, workload.previous(scope.keep_previous).iter().map(String::as_str));
        }
    }
    let take = |it: ListedWorkload<Templated>| {
        found.add(&it.metadata.namespace, it.spec.template.spec.images());
        Ok(())
    };
    JOBS.each(client, &all(), take).await?;
    let take = |it: Pod| {
        let ids = it.status.iter().flat_map(PodStatus::image_ids);
        found.add(&it.metadata.namespace, it.spec.images().chain(ids));
        Ok(())
    };
    PODS.each(client, &all(), take).await?;
    if selector.selects_all() {
        return Ok(found.in_namespaces(None));
    }
    let mut chosen = HashSet::new();
    let take = |it: Named| {
        chosen.insert(it.metadata.name);
        Ok(())
    };
    NAMESPACES.each(client, &all().labels_from(&selector), take).await?;
    Ok(found.in_namespaces(Some(&chosen)))
}

/// A resource to list in the whole cluster.
struct Listed {
    path: &'static str,
    resource: &'static str,
}

const NAMESPACES: Listed = Listed { path: "/api/v1/namespaces", resource: "namespaces" };
const PODS: Listed = Listed { path: "/api/v1/pods", resource: "pods" };
const DEPLOYMENTS: Listed =
    Listed { path: "/apis/apps/v1/deployments", resource: "deployments.apps" };
const STATEFUL_SETS: Listed =
    Listed { path: "/apis/apps/v1/statefulsets", resource: "statefulsets.apps" };
const DAEMON_SETS: Listed =
    Listed { path: "/apis/apps/v1/daemonsets", resource: "daemonsets.apps" };
const REPLICA_SETS: Listed =
    Listed { path: "/apis/apps/v1/replicasets", resource: "replicasets.apps" };
const CONTROLLER_REVISIONS: Listed =
    Listed { path: "/apis/apps/v1/controllerrevisions", resource: "controllerrevisions.apps" };
const JOBS: Listed = Listed { path: "/apis/batch/v1/jobs", resource: "jobs.batch" };
const CRON_JOBS: Listed = Listed { path: "/apis/batch/v1/cronjobs", resource: "cronjobs.batch" };

fn all() -> ListParams {
    ListParams::default().limit(PAGE)
}

impl Listed {
    /// Passes on each object, page by page. The pages are of one moment; if that is too long ago,
    /// the API server returns an error.
    async fn each<T: DeserializeOwned>(
        &self,
        client: &Client,
        params: &ListParams,
        mut take: impl FnMut(T) -> Result<(), serde_json::Error>,
    ) -> Result<(), CannotTell> {
        let resource = || self.resource.to_owned();
        let unlisted = |message: String| CannotTell::Unlisted { resource: resource(), message };
        let unreadable = |error: serde_json::Error| CannotTell::Unreadable {
            resource: resource(),
            message: error.to_string(),
        };
        let mut params = params.clone();
        loop {
            let request = Request::new(self.path)
                .list(&params)
                .map_err(|error| unlisted(error.to_string()))?;
            // kube would log a whole answer that it cannot read, with the environment of Pods. So
            // it is read here.
            let text = client.request_text(request).await.map_err(|error| match error {
                kube::Error::Api(status) if status.code == 403 => {
                    CannotTell::Forbidden { resource: resource() }
                }
                kube::Error::Api(status) => unlisted(status.message.clone()),
                error => unlisted(error.to_string()),
            })?;
            let page: Page<T> = serde_json::from_str(&text).map_err(unreadable)?;
            for item in page.items.into_iter().flatten() {
                take(item).map_err(unreadable)?;
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }
}

/// The images found so far, by namespace.
#[derive(Default)]
struct UsedImages(HashMap<String, HashSet<UsedImage>>);

impl UsedImages {
    /// Ignores names that cannot be ECR repositories.
    fn add<'a>(&mut self, namespace: &str, images: impl IntoIterator<Item = &'a str>) {
        let images = images.into_iter().filter_map(UsedImage::parse);
        match self.0.get_mut(namespace) {
            Some(found) => found.extend(images),
            None => {
                self.0.insert(namespace.to_owned(), images.collect());
            }
        }
    }

    /// Returns all images, or those of these namespaces.
    fn in_namespaces(self, chosen: Option<&HashSet<String>>) -> InUse {
        let counts = |namespace: &String| chosen.is_none_or(|chosen| chosen.contains(namespace));
        let mut in_use = InUse::default();
        in_use.extend(
            self.0
                .into_iter()
                .filter(|(namespace, _)| counts(namespace))
                .flat_map(|(_, images)| images),
        );
        in_use
    }
}

/// A workload with revisions.
struct Revised {
    namespace: String,
    /// The images of its template.
    current: BTreeSet<String>,
    /// The images of each stored revision, with the current one, and the revision's number. Without
    /// a number its age is unknown.
    before: Vec<(Option<i64>, BTreeSet<String>)>,
}

impl Revised {
    /// Returns the images that it used before. Of revisions with the same images only one counts;
    /// those of unknown age all count.
    fn previous(mut self, keep: usize) -> BTreeSet<String> {
        self.before.sort_by_key(|(number, _)| std::cmp::Reverse(number.unwrap_or(i64::MAX)));
        let (mut seen, mut previous, mut counted) =
            (HashSet::from([self.current]), BTreeSet::new(), 0);
        for (number, images) in self.before {
            if counted == keep && number.is_some() {
                break;
            }
            if seen.insert(images.clone()) {
                counted += usize::from(number.is_some());
                previous.extend(images);
            }
        }
        previous
    }
}

// The fields read from the API's responses, and nothing else: a Pod has a hundred times as much.
// A response that lacks a required field is unreadable.

#[derive(Deserialize)]
struct Page<T> {
    metadata: PageMeta,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
struct PageMeta {
    #[serde(rename = "continue")]
    continue_: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    metadata: Meta,
}

#[derive(Deserialize)]
struct ListedWorkload<Spec> {
    metadata: Meta,
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    /// Empty for a Namespace.
    #[serde(default)]
    namespace: String,
    uid: String,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<WorkloadOwner>>,
}

impl Meta {
    /// Returns the workload that controls it.
    fn owner<'a>(&self, workloads: &'a mut HashMap<String, Revised>) -> Option<&'a mut Revised> {
        let owner =
            self.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
        workloads.get_mut(&owner.uid)
    }

    /// Returns the position of a ReplicaSet among those of its Deployment.
    fn revision(&self) -> Option<i64> {
        self.annotations.as_ref()?.revision.as_ref()?.parse().ok()
    }
}

#[derive(Deserialize)]
struct Annotations {
    #[serde(rename = "deployment.kubernetes.io/revision")]
    revision: Option<String>,
}

#[derive(Deserialize)]
struct WorkloadOwner {
    uid: String,
    controller: Option<bool>,
}

/// The part that all workloads have.
#[derive(Deserialize)]
struct Templated {
    template: Template,
}

#[derive(Deserialize)]
struct Template {
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CronJobSpec {
    job_template: JobTemplate,
}

#[derive(Deserialize)]
struct JobTemplate {
    spec: Templated,
}

#[derive(Deserialize)]
struct ControllerRevision {
    metadata: Meta,
    revision: i64,
    data: Box<RawValue>,
}

/// The content of a ControllerRevision of a StatefulSet or DaemonSet.
#[derive(Deserialize)]
struct RevisionData {
    spec: Templated,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    containers: Vec<Container>,
    init_containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
    volumes: Option<Vec<Volume>>,
}

impl PodSpec {
    fn images(&self) -> impl Iterator<Item = &str> {
        let more =
            [&self.init_containers, &self.ephemeral_containers].into_iter().flatten().flatten();
        let of_containers = self.containers.iter().chain(more).filter_map(|it| it.image.as_deref());
        let volumes = self.volumes.iter().flatten().filter_map(|it| it.image.as_ref());
        of_containers.chain(volumes.filter_map(|it| it.reference.as_deref()))
    }
}

#[derive(Deserialize)]
struct Container {
    image: Option<String>,
}

#[derive(Deserialize)]
struct Volume {
    image: Option<ImageVolume>,
}

#[derive(Deserialize)]
struct ImageVolume {
    reference: Option<String>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Meta,
    spec: PodSpec,
    status: Option<PodStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

impl PodStatus {
    fn image_ids(&self) -> impl Iterator<Item = &str> {
        let all = [
            &self.container_statuses,
            &self.init_container_statuses,
            &self.ephemeral_container_statuses,
        ];
        // Empty until the image is pulled.
        all.into_iter().flatten().flatten().filter_map(|it| it.image_id.as_deref())
    }
}

#[derive(Deserialize)]
struct ContainerStatus {
    #[serde(rename = "imageID")]
    image_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revised(current: &str, before: &[(Option<i64>, &str)]) -> Revised {
        let images = |text: &str| text.split(' ').map(str::to_owned).collect();
        Revised {
            namespace: "shop".to_owned(),
            current: images(current),
            before: before.iter().map(|(number, text)| (*number, images(text))).collect(),
        }
    }

    fn previous(keep: usize, current: &str, before: &[(Option<i64>, &str)]) -> Vec<String> {
        revised(current, before).previous(keep).into_iter().collect()
    }

    #[test]
    fn earlier_images_are_counted_from_the_youngest() {
        let before = [(Some(1), "a:1"), (Some(3), "a:3"), (Some(2), "a:2"), (Some(4), "a:4")];
        assert_eq!(previous(0, "a:4", &before), [] as [&str; 0]);
        assert_eq!(previous(1, "a:4", &before), ["a:3"]);
        assert_eq!(previous(2, "a:4", &before), ["a:2", "a:3"]);
        assert_eq!(previous(9, "a:4", &before), ["a:1", "a:2", "a:3"]);
    }

    #[test]
    fn revisions_that_change_no_image_do_not_count() {
        let before = [
            (Some(5), "a:2 b:1"),
            (Some(4), "a:2 b:1"),
            (Some(3), "a:1 b:1"),
            (Some(2), "a:1 b:1"),
            (Some(1), "a:0 b:1"),
        ];
        assert_eq!(previous(1, "a:2 b:1", &before), ["a:1", "b:1"]);
        assert_eq!(previous(2, "a:2 b:1", &before), ["a:0", "a:1", "b:1"]);
    }

    #[test]
    fn a_revision_of_unknown_age_is_kept_beside_the_others() {
        let before = [(Some(2), "a:2"), (None, "a:x"), (Some(1), "a:1")];
        assert_eq!(previous(1, "a:3", &before), ["a:2", "a:x"]);
    }

    fn read<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn every_image_field_of_a_pod_is_read() {
        let pod: Pod = read(
            r#"{
              "metadata": {"name": "api", "namespace": "shop", "uid": "u", "labels": {"a": "b"}},
              "spec": {
                "containers": [{"name": "a", "image": "c:1", "env": [{"name": "TOKEN", "value": "x"}]}, {"name": "none"}],
                "initContainers": [{"image": "i:1"}],
                "ephemeralContainers": [{"image": "e:1"}],
                "volumes": [{"name": "m", "image": {"reference": "v:1", "pullPolicy": "Always"}}, {"name": "d", "emptyDir": {}}]
              },
              "status": {
                "phase": "Running",
                "containerStatuses": [{"imageID": "c@1"}, {"imageID": ""}],
                "initContainerStatuses": [{"imageID": "i@1"}],
                "ephemeralContainerStatuses": [{"imageID": "e@1"}]
              }
            }"#,
        )
        .unwrap();
        assert_eq!(pod.spec.images().collect::<Vec<_>>(), ["c:1", "i:1", "e:1", "v:1"]);
        assert_eq!(pod.status.unwrap().image_ids().collect::<Vec<_>>(), ["c@1", "", "i@1", "e@1"]);
    }

    #[test]
    fn a_pod_without_a_spec_is_unreadable_and_empty_lists_are_not() {
        assert!(read::<Pod>(r#"{"metadata": {"name": "a", "uid": "u"}}"#).is_err());
        assert!(
            read::<Pod>(r#"{"metadata": {"name": "a", "uid": "u"}, "spec": {"containers": [], "volumes": null}}"#)
                .is_ok()
        );
        assert!(read::<Page<Pod>>(r#"{"metadata": {"continue": ""}, "items": null}"#).is_ok());
        assert!(read::<Page<Pod>>(r#"{"kind": "Status"}"#).is_err());
    }
}
