"""In-use protection: what Pods and workloads use stays while a lifecycle policy lets its neighbors go.

There is no kubelet here: Pods are objects, and what they run is what the tests write into their status. Nothing makes
ReplicaSets and ControllerRevisions either, so the tests do.
"""

import json

import pytest

import images
from kube import conditions
from lifecycle import outcome, policy, reasons, repository, rule, stored

KEEP = "keep"
IN_USE = {"enabled": True}
SIGNATURE = "application/vnd.example.signature"


class Here:
    """A registry with one repository, as Pods of a namespace know it."""

    def __init__(self, namespace, server, registry):
        self.namespace, self.server, self.registry = namespace, server, registry
        self.ecr = server.ecr
        self.name = repository(namespace, registry)
        self.uri = server.repository(self.name)["repositoryUri"]

    def push(self, *words):
        """Images with the tags of their words, the oldest first."""
        return [images.push(self.ecr, self.name, images.image(word), word) for word in words]

    def enforce(self, rules=None, **protection):
        """Has the policy enforced, and returns it."""
        policy(self.namespace, self.registry, rules=rules, inUseProtection=IN_USE | protection)
        return self.namespace.ready("LifecyclePolicy", KEEP, "InSync", "enforced by the operator")

    @property
    def left(self):
        """The tags that are left; of an image without one its digest."""
        return {name for digest, tags in stored(self.ecr, self.name).items() for name in tags or [digest]}


@pytest.fixture
def here(namespace, registry, home):
    return Here(namespace, registry, home)


def pod(name, *containers, **spec):
    spec = {"containers": [{"name": f"c{n}", "image": image} for n, image in enumerate(containers)], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def running(namespace, name, image, image_id, field="containerStatuses"):
    """Writes the running images into a Pod's status, as a kubelet would."""
    state = {"name": "c0", "image": image, "imageID": image_id, "ready": True, "restartCount": 0}
    namespace.patch("Pod", name, {"status": {field: [state]}}, subresource="status")


def workload(kind, image, **spec):
    """A workload that runs nothing, with one image in its template."""
    labels = {"app": kind.lower()}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}
    if kind in ("Job", "CronJob"):
        template["spec"]["restartPolicy"] = "Never"
    selected = {"selector": {"matchLabels": labels}, "template": template}
    specs = {
        "Deployment": ("apps/v1", {"replicas": 0, **selected}),
        "StatefulSet": ("apps/v1", {"replicas": 0, "serviceName": "none", **selected}),
        "DaemonSet": ("apps/v1", selected),
        "ReplicaSet": ("apps/v1", {"replicas": 0, **selected}),
        "Job": ("batch/v1", {"suspend": True, "template": template}),
        "CronJob": ("batch/v1", {"suspend": True, "schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": template}}}),
    }
    version, base = specs[kind]
    return {"apiVersion": version, "kind": kind, "metadata": {"name": kind.lower()}, "spec": base | spec}


# By tag and by digest


def test_nothing_in_use_is_nothing_kept(here):
    here.push("v1", "v2", "v3")
    found = here.enforce()
    assert here.left == {"v3"}
    reported = outcome(found, here.name)
    assert (reported["state"], reported["expiring"], reported["protected"]) == ("Enforced", 2, 0)
    assert {one["tags"][0] for one in reported["sample"]} == {"v1", "v2"}
    assert "Enforced" in reasons(here.namespace)


@pytest.mark.parametrize("server", ["ours", "amazon"])
@pytest.mark.parametrize("by", ["tag", "digest", "both"])
def test_an_image_that_a_pod_names_is_kept(request, namespace, server, by):
    names = ("registry", "home") if server == "ours" else ("moto", "amazon")
    here = Here(namespace, *(request.getfixturevalue(name) for name in names))
    for word in ("v1", "v2", "v3"):
        pushed = images.image(word)
        if server == "ours":
            images.push(here.ecr, here.name, pushed, word)
        else:
            # It has no layers to upload.
            here.ecr.put_image(repositoryName=here.name, imageManifest=pushed.manifest, imageTag=word)
    # moto's times are whole seconds; of the same age is the image with the higher digest taken for younger.
    details = here.ecr.describe_images(repositoryName=here.name)["imageDetails"]
    oldest, _, youngest = sorted(details, key=lambda one: (one["imagePushedAt"], one["imageDigest"]))
    (tag,), digest = oldest["imageTags"], oldest["imageDigest"]
    text = {"tag": f":{tag}", "digest": f"@{digest}", "both": f":moved@{digest}"}[by]
    namespace.apply(pod("runs", here.uri + text))
    found = here.enforce()
    assert here.left == {tag, *youngest["imageTags"]}
    assert outcome(found, here.name)["protected"] == 1


def test_a_tag_that_moved_keeps_what_runs_and_what_it_points_to_now(here):
    first, _ = here.push("v1", "v2")
    here.push("v3")
    here.namespace.apply(pod("runs", f"{here.uri}:v2"))
    running(here.namespace, "runs", f"{here.uri}:v2", f"{here.uri}@{first.digest}")
    here.enforce()
    assert here.left == {"v1", "v2", "v3"}
    here.namespace.delete("Pod", "runs", gracePeriodSeconds=0)
    here.namespace.gone("Pod", "runs")
    here.namespace.reconcile("LifecyclePolicy", KEEP)
    assert here.left == {"v3"}


@pytest.mark.parametrize("prefix", ["", "docker-pullable://", "bare"])
@pytest.mark.parametrize("field", ["containerStatuses", "initContainerStatuses"])
def test_what_a_pods_status_says_it_runs_is_kept(here, prefix, field):
    (first, *_) = here.push("v1", "v2", "v3")
    here.namespace.apply(
        pod("runs", "elsewhere.example.com/other:1", initContainers=[{"name": "i0", "image": "elsewhere.example.com/other:1"}])
    )
    named = first.digest if prefix == "bare" else f"{prefix}{here.uri}@{first.digest}"
    running(here.namespace, "runs", "elsewhere.example.com/other:1", named, field)
    here.enforce()
    assert here.left == {"v1", "v3"}


def test_every_place_of_a_pod_counts(here):
    here.push("init", "volume", "ephemeral", "unused", "newest")
    spec = {
        "initContainers": [{"name": "i", "image": f"{here.uri}:init"}],
        "volumes": [{"name": "v", "image": {"reference": f"{here.uri}:volume"}}],
    }
    here.namespace.apply(pod("runs", "elsewhere.example.com/other:1", **spec))
    debugger = {"name": "debugger", "image": f"{here.uri}:ephemeral"}
    here.namespace.patch("Pod", "runs", {"spec": {"ephemeralContainers": [debugger]}}, subresource="ephemeralcontainers")
    here.enforce()
    assert here.left == {"init", "volume", "ephemeral", "newest"}


def test_an_image_of_another_registry_keeps_nothing_here(here):
    (first, *_) = here.push("v1", "v2", "v3")
    path = here.name
    here.namespace.apply(pod("other", f"elsewhere.example.com/{path}:v1", f"elsewhere.example.com/{path}-other@{first.digest}"))
    here.enforce()
    assert here.left == {"v3"}


def test_the_same_digest_under_a_name_that_is_not_known_is_kept(here):
    (first, *_) = here.push("v1", "v2", "v3")
    here.namespace.apply(pod("runs", f"alias.example.com:5000/{here.name}@{first.digest}"))
    here.enforce()
    assert here.left == {"v1", "v3"}


@pytest.mark.parametrize("host", ["{account}.dkr.ecr.{region}.amazonaws.com", "{account}.dkr-ecr-fips.{region}.on.aws"])
def test_a_registry_is_known_by_the_hosts_that_ecr_gives_it(here, host):
    here.push("v1", "v2", "v3")
    host = host.format(account=here.server.registry_id, region=here.server.region)
    here.namespace.apply(pod("runs", f"{host}/{here.name}:v1"))
    here.enforce()
    assert here.left == {"v1", "v3"}


# What hangs together


@pytest.mark.parametrize("used", ["index", "child"])
def test_an_index_and_its_children_stay_together_with_their_signatures(here, used):
    old = images.push(here.ecr, here.name, images.multi_platform("old"), "old")
    for subject in (old, old.children[1]):
        images.push(here.ecr, here.name, images.artifact(f"signs {subject.digest}", SIGNATURE, subject))
    gone = images.push(here.ecr, here.name, images.multi_platform("gone"), "gone")
    images.push(here.ecr, here.name, images.artifact("signs gone", SIGNATURE, gone))
    here.push("newest")
    before = stored(here.ecr, here.name)
    image = f"{here.uri}:old" if used == "index" else f"{here.uri}@{old.children[0].digest}"
    here.namespace.apply(pod("runs", image))
    here.enforce()
    signatures = {digest for digest, tags in before.items() if not tags} - {child.digest for one in (old, gone) for child in one.children}
    kept_signatures = {digest for digest in signatures if digest in stored(here.ecr, here.name)}
    assert here.left == {"old", "newest", *(child.digest for child in old.children), *kept_signatures}
    assert len(kept_signatures) == 2


def test_a_signature_that_is_kept_by_its_tag_stays_with_its_image(here):
    (first, second, _) = here.push("v1", "v2", "v3")
    for image in (first, second):
        tag = image.digest.replace(":", "-") + ".sig"
        images.push(here.ecr, here.name, images.artifact(f"signs {image.digest}", SIGNATURE), tag)
    here.push("newest")
    here.namespace.apply(pod("runs", f"{here.uri}:v1"))
    here.enforce()
    assert here.left == {"v1", first.digest.replace(":", "-") + ".sig", "newest"}


# Workloads


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"])
def test_a_workload_that_runs_nothing_keeps_the_image_of_its_template(here, kind):
    here.push("v1", "v2", "v3")
    here.namespace.apply(workload(kind, f"{here.uri}:v1"))
    here.enforce()
    assert here.left == {"v1", "v3"}
    here.namespace.delete(kind, kind.lower(), propagationPolicy="Background")
    here.namespace.gone(kind, kind.lower())
    here.namespace.reconcile("LifecyclePolicy", KEEP)
    assert here.left == {"v3"}


def owned(manifest, owner, name, **metadata):
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"], "controller": True}
    return manifest | {"metadata": {"name": name, "ownerReferences": [reference | {"uid": owner["metadata"]["uid"]}], **metadata}}


def revisions(here, kind, owner, number, tag):
    """A revision of a workload, as the controller manager keeps it."""
    if kind == "Deployment":
        revision = workload("ReplicaSet", f"{here.uri}:{tag}")
        annotations = {"deployment.kubernetes.io/revision": str(number)}
        return owned(revision, owner, f"revision-{number}", annotations=annotations)
    template = {"$patch": "replace", "spec": {"containers": [{"name": "c", "image": f"{here.uri}:{tag}"}]}}
    revision = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": number, "data": {"spec": {"template": template}}}
    return owned(revision, owner, f"revision-{number}")


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
@pytest.mark.parametrize(("keep", "kept"), [(None, {"v5"}), (1, {"v5", "v3"}), (2, {"v5", "v3", "v2"}), (9, {"v5", "v3", "v2", "v1"})])
def test_the_images_before_the_current_one_are_kept(here, kind, keep, kept):
    here.push("v1", "v2", "v3", "v4", "v5", "v6")
    owner = here.namespace.apply(workload(kind, f"{here.uri}:v5"))
    # Revision 4 changed something else than the image, and nobody owns the last.
    for number, tag in enumerate(("v1", "v2", "v3", "v3", "v5"), start=1):
        here.namespace.create(revisions(here, kind, owner, number, tag))
    stranger = revisions(here, kind, owner, 9, "v4")
    stranger["metadata"]["ownerReferences"][0]["uid"] = "00000000-0000-0000-0000-000000000000"
    here.namespace.create(stranger)
    here.enforce(**({"keepPrevious": keep} if keep else {}))
    assert here.left == kept | {"v6"}


# Which namespaces


def test_a_selector_says_whose_pods_count(here, make_namespace):
    here.push("v1", "v2", "v3", "v4", "v5")
    chosen, other = make_namespace(labels={"stage": "prod"}), make_namespace(labels={"stage": "dev"})
    chosen.apply(pod("runs", f"{here.uri}:v1"))
    chosen.apply(workload("CronJob", f"{here.uri}:v2"))
    other.apply(pod("runs", f"{here.uri}:v3"))
    other.apply(workload("CronJob", f"{here.uri}:v4"))
    here.enforce(namespaceSelector={"matchLabels": {"stage": "prod"}})
    assert here.left == {"v1", "v2", "v5"}


@pytest.mark.parametrize("selector", [None, {}])
def test_without_a_selector_every_pod_counts(here, make_namespace, selector):
    here.push("v1", "v2")
    make_namespace().apply(pod("runs", f"{here.uri}:v1"))
    here.enforce(**({} if selector is None else {"namespaceSelector": selector}))
    assert here.left == {"v1", "v2"}


# Preview


def test_a_preview_tells_what_is_kept_and_touches_nothing(here):
    pushed = here.push("v1", "v2", "v3")
    here.namespace.apply(pod("runs", f"{here.uri}:v1"))
    policy(here.namespace, here.registry, mode="Preview", inUseProtection=IN_USE)
    found = here.namespace.ready("LifecyclePolicy", KEEP, "Previewed")
    reported = outcome(found, here.name)
    assert (reported["state"], reported["expiring"], reported["protected"], reported["bytes"]) == ("Previewed", 1, 1, pushed[1].size)
    assert [one["tags"] for one in reported["sample"]] == [["v2"]]
    assert found["status"]["totals"]["protected"] == 1
    assert here.left == {"v1", "v2", "v3"}


def test_the_operator_decides_as_the_registry_does(here):
    """Two repositories with the same images and the same rules: one policy is put, the other enforced by the operator."""
    other = repository(here.namespace, here.registry, "other", labels={"tier": "other"})
    for name in (here.name, other):
        for n in range(4):
            images.push(here.ecr, name, images.image(f"plain {n}"), f"v{n}", *(["stable"] if n == 1 else []))
            index = images.push(here.ecr, name, images.multi_platform(f"index {n}"), *([f"rel-{n}"] if n % 2 else []))
            images.push(here.ecr, name, images.artifact(f"signs {n}", SIGNATURE, index))
            images.push(here.ecr, name, images.image(f"untagged {n}"))
        archived = images.push(here.ecr, name, images.image("archived"), "archived")
        here.ecr.update_image_storage_class(repositoryName=name, imageId={"imageDigest": archived.digest}, targetStorageClass="ARCHIVE")
    rules = [
        rule(1, "tagged", tagPatternList=["stable"]),
        rule(1, "tagged", action="transition", priority=2, tagPatternList=["rel-*"]),
        rule(2, "untagged", priority=3),
        rule(5, "any", priority=4),
    ]
    policy(here.namespace, here.registry, "put", rules, mode="Preview", repositorySelector={"matchLabels": {"tier": "other"}})
    policy(here.namespace, here.registry, KEEP, rules, mode="Preview", inUseProtection=IN_USE)
    reported = [
        outcome(here.namespace.ready("LifecyclePolicy", policy, "Previewed"), name) for policy, name in ((KEEP, here.name), ("put", other))
    ]
    for one in reported:
        one["sample"].sort(key=lambda image: image["digest"])
        for member in ("name", "evaluatedAt", "protected"):
            one.pop(member, None)
    assert reported[0] == reported[1] and reported[0]["expiring"] > 0 and reported[0]["transitioning"] > 0
    text = json.dumps({"rules": rules})
    here.ecr.put_lifecycle_policy(repositoryName=other, lifecyclePolicyText=text)
    here.enforce(rules)
    here.namespace.until(
        "Repository", "api",
        lambda _: here.ecr.get_lifecycle_policy(repositoryName=other)["lastEvaluatedAt"].timestamp() > 0,
    )  # fmt: skip
    assert stored(here.ecr, here.name) == stored(here.ecr, other)


# Who carries it out


def test_the_policy_is_not_put_to_the_registry_and_a_tag_says_so(here):
    policy(here.namespace, here.registry)
    here.namespace.ready("LifecyclePolicy", KEEP, "InSync", "put to")
    here.enforce()
    with pytest.raises(here.ecr.exceptions.LifecyclePolicyNotFoundException):
        here.ecr.get_lifecycle_policy(repositoryName=here.name)
    assert here.server.repository(here.name)["tags"]["wharfage.dev/lifecycle"].endswith(f"/{here.namespace}/{KEEP} operator")
    # What somebody puts there would not know what runs.
    here.ecr.put_lifecycle_policy(repositoryName=here.name, lifecyclePolicyText=json.dumps({"rules": [rule(9)]}, indent=8))
    found = here.namespace.reconcile("LifecyclePolicy", KEEP)
    assert conditions(found)["Drifted"]["reason"] == "DriftCorrected"
    with pytest.raises(here.ecr.exceptions.LifecyclePolicyNotFoundException):
        here.ecr.get_lifecycle_policy(repositoryName=here.name)
    policy(here.namespace, here.registry)
    here.namespace.ready("LifecyclePolicy", KEEP, "InSync", "put to")
    here.ecr.get_lifecycle_policy(repositoryName=here.name)


def test_a_younger_policy_does_not_release_what_an_older_governs(here):
    here.push("v1", "v2", "v3")
    policy(here.namespace, here.registry, "older", [rule(9)])
    here.namespace.ready("LifecyclePolicy", "older")
    policy(here.namespace, here.registry, KEEP, inUseProtection=IN_USE)
    here.namespace.stalled("LifecyclePolicy", KEEP, "OwnedByAnother")
    here.namespace.reconcile("LifecyclePolicy", KEEP)
    assert here.left == {"v1", "v2", "v3"}


def test_a_policy_that_observes_lets_nothing_go(here):
    here.push("v1", "v2")
    policy(here.namespace, here.registry, inUseProtection=IN_USE, managementPolicy="Observe")
    found = here.namespace.ready("LifecyclePolicy", KEEP, "Observed")
    assert outcome(found, here.name)["expiring"] == 1
    assert here.left == {"v1", "v2"}


def test_what_went_in_several_repositories_is_one_event_that_names_them_all(here):
    others = [repository(here.namespace, here.registry, name) for name in ("b", "c")]
    for name in [here.name, *others]:
        for word in ("v1", "v2", "v3"):
            images.push(here.ecr, name, images.image(f"{name}-{word}"), word)
    here.enforce()
    (event,) = [one for one in here.namespace.events("LifecyclePolicy", KEEP) if one["reason"] == "Enforced"]
    assert not event.get("series"), event
    assert [line.split(" expired")[0] for line in event["message"].split("; ")] == [f"{name}: 2 images" for name in (here.name, *others)]


# Races, and trouble


@pytest.fixture
def disturbed(namespace, registry, front, operator):
    """The same behind a front."""
    name = namespace.declare(front)
    namespace.ready("Registry", name)
    return Here(namespace, registry, name)


def test_an_image_that_is_tagged_in_the_last_moment_is_spared(disturbed, front):
    here = disturbed
    (first, *_) = here.push("v1", "v2")
    front.pause("BatchDeleteImage")
    policy(here.namespace, here.registry, inUseProtection=IN_USE)
    here.namespace.until("LifecyclePolicy", KEEP, lambda _: front.held, expected="about to delete")
    here.ecr.put_image(repositoryName=here.name, imageManifest=first.manifest, imageManifestMediaType=first.media_type, imageTag="keep")
    front.go_on()
    here.namespace.ready("LifecyclePolicy", KEEP)
    assert stored(here.ecr, here.name)[first.digest] == ["keep"]


def test_an_image_that_is_tagged_after_the_decision_is_spared(disturbed, front):
    here = disturbed
    untagged = images.push(here.ecr, here.name, images.image("untagged"))
    here.push("v1")
    # The last look before a deletion is about these images alone.
    front.pause("DescribeImages", containing=untagged.digest)
    policy(here.namespace, here.registry, inUseProtection=IN_USE)
    here.namespace.until("LifecyclePolicy", KEEP, lambda _: front.held, expected="looking once more")
    here.ecr.put_image(
        repositoryName=here.name, imageManifest=untagged.manifest, imageManifestMediaType=untagged.media_type, imageTag="keep"
    )
    front.go_on()
    here.namespace.ready("LifecyclePolicy", KEEP)
    assert here.left == {"keep", "v1"}


def test_a_registry_that_goes_away_in_between_loses_nothing_and_is_gone_on_with(disturbed, front):
    here = disturbed
    here.push("v1", "v2", "v3")
    here.namespace.apply(pod("runs", f"{here.uri}:v1"))
    front.fail("BatchDeleteImage", 503)
    policy(here.namespace, here.registry, inUseProtection=IN_USE)
    here.namespace.waiting("LifecyclePolicy", KEEP, "RegistryUnavailable")
    assert here.left == {"v1", "v2", "v3"}
    front.heal()
    here.namespace.ready("LifecyclePolicy", KEEP)
    assert here.left == {"v1", "v3"}


def test_an_index_in_use_that_cannot_be_read_holds_everything(here):
    old = images.push(here.ecr, here.name, images.multi_platform("old"), "old")
    here.ecr.update_image_storage_class(repositoryName=here.name, imageId={"imageDigest": old.digest}, targetStorageClass="ARCHIVE")
    here.push("v1", "v2")
    here.namespace.apply(pod("runs", f"{here.uri}:old"))
    policy(here.namespace, here.registry, inUseProtection=IN_USE)
    here.namespace.stalled("LifecyclePolicy", KEEP, "InUseUnknown", f"{old.digest} is in use and cannot be read")
    assert {"old", "v1", "v2"} <= here.left


RULES = [
    {"apiGroups": ["wharfage.dev"], "resources": ["*"], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["namespaces", "secrets", "serviceaccounts", "events"], "verbs": ["*"]},
    {"apiGroups": ["coordination.k8s.io", "events.k8s.io"], "resources": ["*"], "verbs": ["*"]},
]
LISTED = [
    ("", "pods"),
    ("apps", "deployments"),
    ("apps", "statefulsets"),
    ("apps", "daemonsets"),
    ("apps", "replicasets"),
    ("apps", "controllerrevisions"),
    ("batch", "jobs"),
    ("batch", "cronjobs"),
]


def test_nothing_goes_while_something_may_not_be_listed(make_cluster, make_operator, make_namespace, registry):
    cluster = make_cluster()
    operator = make_operator(cluster, cluster_name="forbidden")
    namespace = make_namespace(kube=cluster.kube)
    home = namespace.declare(registry)
    namespace.ready("Registry", home)
    here = Here(namespace, registry, home)
    here.push("v1", "v2")

    def permit(listed):
        rules = RULES + [{"apiGroups": [group], "resources": [resource], "verbs": ["list"]} for group, resource in listed]
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "less"}, "rules": rules}
        cluster.kube.apply(role)

    permit(LISTED)
    subjects = [{"kind": "ServiceAccount", "name": "wharfage", "namespace": operator.namespace}]
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "less"},
        "subjects": subjects,
    }
    cluster.kube.apply(binding | {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "less"}})
    for other in cluster.kube.list("ClusterRoleBinding"):
        if other["metadata"]["name"] != "less" and other.get("subjects", [{}])[0].get("name") == "wharfage":
            cluster.kube.delete("ClusterRoleBinding", other["metadata"]["name"])

    for number, (group, resource) in enumerate(LISTED):
        permit([one for one in LISTED if one != (group, resource)])
        full = f"{resource}.{group}" if group else resource
        while operator.kube.kubectl("auth", "can-i", "list", full, "--all-namespaces", check=False).returncode == 0:
            pass
        policy(namespace, home, inUseProtection=IN_USE | {"keepPrevious": number + 1})
        stalled = namespace.stalled("LifecyclePolicy", KEEP, "InUseUnknown", f"lacks list on {full},")
        assert outcome(stalled, here.name)["state"] == "Failed"
        assert here.left == {"v1", "v2"}
    permit(LISTED)
    while operator.kube.kubectl("auth", "can-i", "list", full, "--all-namespaces", check=False).returncode != 0:
        pass
    namespace.reconcile("LifecyclePolicy", KEEP)
    namespace.ready("LifecyclePolicy", KEEP)
    assert here.left == {"v2"}
