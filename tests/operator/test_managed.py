"""Managed registries: the objects that the operator creates for one in a cluster, corrects, and deletes. There is no node here: whether
the Pods run is decided by the statuses that a test writes in a controller's place."""

import base64
import json
import uuid

import pytest
import trustme
import yaml

from kube import API_VERSION, REQUESTED_AT, conditions, has_state

LABEL = "wharfage.dev/registry"
KINDS = ["ConfigMap", "Secret", "Service", "NetworkPolicy", "PodDisruptionBudget", "Deployment", "StatefulSet"]


@pytest.fixture
def declare(namespace, operator):
    """declare(spec=…, **managed): a managed Registry whose workload is in the test's namespace; its name."""

    def declare(name=None, spec=None, **managed):
        name = name or f"r{uuid.uuid4().hex[:8]}"
        spec = {"managed": {"namespace": namespace.name, **managed}, **(spec or {})}
        namespace.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": name}, "spec": spec})
        return name

    return declare


@pytest.fixture
def stores(make_namespace):
    """A namespace with Secrets that open a database and a bucket."""
    elsewhere = make_namespace()
    elsewhere.secret("pg", uri="postgres://u:first@db/w", ro="postgres://u:read@db/w")
    elsewhere.secret("s3", AWS_ACCESS_KEY_ID="AKIABUCKET", AWS_SECRET_ACCESS_KEY="wonderland")
    return elsewhere


def shared(stores, **managed):
    """What makes a registry one that replicas can share."""
    bucket = {"bucket": "images", "credentialsSecretRef": {"name": "s3", "namespace": stores.name}}
    uri = {"name": "pg", "namespace": stores.name}
    return {"storage": {"s3": bucket}, "database": {"postgres": {"connectionSecretRef": uri}}, **managed}


def workload(namespace, name):
    """All objects of a registry, by kind and name."""
    chosen = {"label_selector": f"{LABEL}={name}"}
    return {f"{kind}/{one['metadata']['name']}": one for kind in KINDS for one in namespace.list(kind, **chosen)}


def settle(namespace, name):
    """Waits until the operator has applied all of a registry's workload; the Registry then waits for its Pods."""
    return namespace.waiting("Registry", name, "Progressing", "0 of . replicas serve")


def texts(secret):
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def template(workload):
    return workload["spec"]["template"]["spec"]


def container(workload):
    (only,) = template(workload)["containers"]
    return only


def test_the_smallest_registry(namespace, declare):
    name = declare()
    registry = settle(namespace, name)
    assert registry["status"]["endpoint"] == f"http://{name}.{namespace.name}.svc"
    assert conditions(registry)["ReferencesResolved"]["status"] == "True"
    assert registry["metadata"]["finalizers"] == ["wharfage.dev/finalizer"]
    objects = workload(namespace, name)
    assert set(objects) == {
        f"ConfigMap/{name}-config", f"Secret/{name}-root-key", f"Service/{name}", f"Service/{name}-admin",
        f"NetworkPolicy/{name}", f"StatefulSet/{name}",
    }  # fmt: skip
    (claim,) = objects[f"StatefulSet/{name}"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    key = texts(objects[f"Secret/{name}-root-key"])
    assert key["AWS_ACCESS_KEY_ID"].startswith("AKIA") and len(key["AWS_SECRET_ACCESS_KEY"]) == 40
    assert key["AWS_SECRET_ACCESS_KEY"] not in json.dumps([one for kind, one in objects.items() if "Secret" not in kind])


def test_one_that_replicas_share(namespace, declare, stores):
    name = declare(**shared(stores, replicas=3, publicUrl="https://r.example.com"))
    registry = settle(namespace, name)
    assert registry["status"]["endpoint"] == "https://r.example.com"
    objects = workload(namespace, name)
    assert set(objects) == {
        f"ConfigMap/{name}-config", f"Secret/{name}-root-key", f"Secret/{name}-backends", f"Service/{name}",
        f"Service/{name}-admin", f"NetworkPolicy/{name}", f"PodDisruptionBudget/{name}", f"Deployment/{name}",
    }  # fmt: skip
    assert objects[f"Deployment/{name}"]["spec"]["replicas"] == 3
    assert texts(objects[f"Secret/{name}-backends"]) == {
        "WHARFAGE_DATABASE_URL": "postgres://u:first@db/w",
        "WHARFAGE_S3_ACCESS_KEY_ID": "AKIABUCKET",
        "WHARFAGE_S3_SECRET_ACCESS_KEY": "wonderland",
    }


def test_what_opens_the_stores_is_kept_in_step(namespace, declare, stores):
    name = declare(**shared(stores))
    settle(namespace, name)
    before = namespace.get("Deployment", name)["spec"]["template"]["metadata"]["annotations"]["wharfage.dev/settings"]
    stores.secret("pg", uri="postgres://u:second@db/w")
    namespace.until("Secret", f"{name}-backends", lambda it: "second" in texts(it)["WHARFAGE_DATABASE_URL"])
    changed = lambda it: it["spec"]["template"]["metadata"]["annotations"]["wharfage.dev/settings"] != before  # noqa: E731
    namespace.until("Deployment", name, changed, "rolled out again")


def test_it_waits_for_the_secrets_that_it_names(namespace, declare, make_namespace):
    elsewhere = make_namespace()
    name = declare(**shared(elsewhere))
    waiting = namespace.waiting("Registry", name, "ReferenceNotFound", f"Secret {elsewhere.name}/pg does not exist")
    assert conditions(waiting)["ReferencesResolved"]["status"] == "False"
    assert workload(namespace, name) == {}
    elsewhere.secret("pg", url="a key that nobody reads")
    namespace.waiting("Registry", name, "ReferenceNotFound", f"Secret {elsewhere.name}/pg must have a key uri")
    elsewhere.secret("pg", uri="postgres://db/w")
    namespace.waiting("Registry", name, "ReferenceNotFound", f"Secret {elsewhere.name}/s3 does not exist")
    elsewhere.secret("s3", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    settle(namespace, name)


def test_it_waits_for_its_namespace(namespace, operator, cluster, make_namespace):
    later = f"later-{uuid.uuid4().hex[:8]}"
    spec = {"managed": {"namespace": later}}
    namespace.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": later}, "spec": spec})
    namespace.waiting("Registry", later, "ReferenceNotFound", f"Namespace {later} does not exist")
    make_namespace(later)
    settle(namespace, later)


REPAIRS = {
    "ConfigMap/{}-config": {"data": {"WHARFAGE_REGION": "elsewhere-1"}},
    "Service/{}": {"spec": {"type": "NodePort"}},
    "Service/{}-admin": {"spec": {"publishNotReadyAddresses": False}},
    "NetworkPolicy/{}": {"spec": {"policyTypes": ["Ingress", "Egress"]}},
    "PodDisruptionBudget/{}": {"spec": {"maxUnavailable": 5}},
    "Deployment/{}": {"spec": {"replicas": 0}},
    "Secret/{}-backends": {"stringData": {"WHARFAGE_DATABASE_URL": "postgres://elsewhere/w"}},
}


def test_what_is_edited_or_deleted_is_put_right(namespace, declare, stores):
    name = declare(**shared(stores, replicas=2))
    settle(namespace, name)
    for path, patch in REPAIRS.items():
        kind, _, called = path.format(name).partition("/")
        sound = namespace.get(kind, called)
        body = "data" if kind in ("ConfigMap", "Secret") else "spec"
        namespace.patch(kind, called, patch)
        as_before = lambda it, sound=sound, body=body: it is not None and it[body] == sound[body]  # noqa: E731
        namespace.until(kind, called, as_before, f"as it was: {sound[body]}")
        uid = namespace.get(kind, called)["metadata"]["uid"]
        namespace.delete(kind, called)
        recreated = lambda it, uid=uid: it is not None and it["metadata"]["uid"] != uid  # noqa: E731
        namespace.until(kind, called, recreated, "created again")
    # Nothing is written again because something else was.
    versions = lambda: {path: one["metadata"]["resourceVersion"] for path, one in workload(namespace, name).items()}  # noqa: E731
    before = versions()
    namespace.patch("ConfigMap", f"{name}-config", REPAIRS["ConfigMap/{}-config"])
    edited = lambda it: it["data"]["WHARFAGE_REGION"] != "elsewhere-1"  # noqa: E731
    namespace.until("ConfigMap", f"{name}-config", edited, "put right")
    after = versions()
    assert {path for path in before if before[path] != after[path]} == {f"ConfigMap/{name}-config"}

    namespace.patch("Service", name, {"metadata": {"labels": {LABEL: None}}})
    namespace.until("Service", name, lambda it: it["metadata"]["labels"].get(LABEL) == name, "labeled again")


CHANGES = [
    ({"image": "example.com/w:2"}, "StatefulSet", lambda it: container(it)["image"] == "example.com/w:2"),
    ({"replicas": 0}, "StatefulSet", lambda it: it["spec"]["replicas"] == 0),
    ({"resources": {"limits": {"memory": "1Gi"}}}, "StatefulSet", lambda it: container(it)["resources"] == {"limits": {"memory": "1Gi"}}),
    ({"pod": {"nodeSelector": {"disk": "fast"}}}, "StatefulSet", lambda it: template(it)["nodeSelector"] == {"disk": "fast"}),
    ({"pod": {"tolerations": [{"operator": "Exists"}]}}, "StatefulSet", lambda it: template(it)["tolerations"] == [{"operator": "Exists"}]),
    ({"pod": {"labels": {"team": "a"}}}, "StatefulSet", lambda it: it["spec"]["template"]["metadata"]["labels"]["team"] == "a"),
    ({"pod": {"annotations": {"a": "b"}}}, "StatefulSet", lambda it: it["spec"]["template"]["metadata"]["annotations"]["a"] == "b"),
    ({"pod": {"imagePullSecrets": [{"name": "p"}]}}, "StatefulSet", lambda it: template(it)["imagePullSecrets"] == [{"name": "p"}]),
    ({"pod": {"priorityClassName": "high"}}, "StatefulSet", lambda it: template(it)["priorityClassName"] == "high"),
    ({"pod": {"serviceAccountName": "s"}}, "StatefulSet", lambda it: template(it)["serviceAccountName"] == "s"),
    (
        {"pod": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}}}}},
        "StatefulSet",
        lambda it: "nodeAffinity" in template(it)["affinity"],
    ),
    (
        {"pod": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]}},
        "StatefulSet",
        lambda it: template(it)["topologySpreadConstraints"][0]["topologyKey"] == "zone",
    ),
    ({"tls": {"secretName": "cert"}}, "StatefulSet", lambda it: template(it)["volumes"][0]["secret"]["secretName"] == "cert"),
    ({"service": {"port": 5000}}, "Service", lambda it: it["spec"]["ports"][0]["port"] == 5000),
    ({"service": {"type": "LoadBalancer", "annotations": {"a": "b"}}}, "Service", lambda it: it["spec"]["type"] == "LoadBalancer" and it["metadata"]["annotations"] == {"a": "b"}),
    ({"publicUrl": "https://r.example.com"}, "ConfigMap", lambda it: it["data"]["WHARFAGE_PUBLIC_URL"] == "https://r.example.com"),
]  # fmt: skip


def content(one):
    """The data of a ConfigMap, the spec of everything else."""
    return one.get("data") or one["spec"]


def has(one, holds):
    """Whether `holds(one)`; false if a field it reads is missing."""
    try:
        return holds(one)
    except KeyError:
        return False


def test_each_field_lands_and_is_taken_back(namespace, declare):
    name = declare()
    settle(namespace, name)
    for change, kind, holds in CHANGES:
        called = f"{name}-config" if kind == "ConfigMap" else name
        before = namespace.get(kind, called)
        declare(name, **change)
        namespace.until(kind, called, lambda it, holds=holds: has(it, holds), f"changed as {change} says")
        declare(name)
        as_before = lambda it, before=before: content(it) == content(before)  # noqa: E731
        namespace.until(kind, called, as_before, f"as it was before {change}: {content(before)}")


def test_what_is_wanted_no_more_goes(namespace, declare, stores):
    name = declare(**shared(stores, replicas=2))
    settle(namespace, name)
    declare(name, storage={"s3": {"bucket": "images"}}, database={"sqlite": {"size": "3Gi"}}, networkPolicy="Disabled")
    for kind in ("Deployment", "PodDisruptionBudget", "NetworkPolicy"):
        namespace.gone(kind, name)
    namespace.gone("Secret", f"{name}-backends")
    (claim,) = namespace.get("StatefulSet", name)["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "3Gi"
    declare(name, **shared(stores))
    namespace.gone("StatefulSet", name)
    assert namespace.get("Deployment", name)["spec"]["replicas"] == 1


def test_a_deleted_registry_keeps_its_workload_by_default(namespace, declare, stores):
    name = declare(**shared(stores, replicas=2))
    settle(namespace, name)
    before = workload(namespace, name)
    assert not any("ownerReferences" in one["metadata"] for one in before.values())
    namespace.delete("Registry", name)
    namespace.gone("Registry", name)
    after = workload(namespace, name)
    assert {path: one["metadata"]["uid"] for path, one in after.items()} == {path: one["metadata"]["uid"] for path, one in before.items()}
    assert not any(one["metadata"].get("deletionTimestamp") for one in after.values())

    # A Registry created again adopts the existing objects, root key included.
    declare(name, spec={"deletionPolicy": "Delete"}, **shared(stores, replicas=2))
    registry = settle(namespace, name)
    again = workload(namespace, name)
    assert {path: one["metadata"]["uid"] for path, one in again.items()} == {path: one["metadata"]["uid"] for path, one in before.items()}
    key = f"Secret/{name}-root-key"
    assert again[key]["data"] == before[key]["data"]
    for path, one in again.items():
        owners = [owner["uid"] for owner in one["metadata"].get("ownerReferences", [])]
        assert owners == ([] if path == key else [registry["metadata"]["uid"]]), path

    # An owner that releases its objects removes its name from them.
    declare(name, **shared(stores, replicas=2))
    namespace.until("Deployment", name, lambda it: "ownerReferences" not in it["metadata"], "nobody's")
    declare(name, spec={"deletionPolicy": "Delete"}, **shared(stores, replicas=2))
    namespace.until("Deployment", name, lambda it: "ownerReferences" in it["metadata"], "owned")
    namespace.delete("Registry", name)
    namespace.gone("Registry", name)
    assert set(workload(namespace, name)) == {key}


def test_the_volume_stays_whatever_goes(namespace, declare, cluster):
    name = declare(spec={"deletionPolicy": "Delete"})
    settle(namespace, name)
    volume(namespace, name, "10Gi", "slow")
    namespace.delete("Registry", name)
    namespace.gone("Registry", name)
    namespace.gone("StatefulSet", name)
    assert "deletionTimestamp" not in namespace.get("PersistentVolumeClaim", f"data-{name}-0")["metadata"]


def test_a_root_key_is_never_written_over(namespace, declare):
    name = f"r{uuid.uuid4().hex[:8]}"
    namespace.secret(f"{name}-root-key", AWS_ACCESS_KEY_ID="AKIAMINE")
    declare(name)
    namespace.waiting("Registry", name, "ReferenceNotFound", f"{name}-root-key must have a key AWS_SECRET_ACCESS_KEY")
    namespace.secret(f"{name}-root-key", AWS_ACCESS_KEY_ID="AKIAMINE", AWS_SECRET_ACCESS_KEY="mine")
    settle(namespace, name)
    assert texts(namespace.get("Secret", f"{name}-root-key")) == {"AWS_ACCESS_KEY_ID": "AKIAMINE", "AWS_SECRET_ACCESS_KEY": "mine"}


def test_what_somebody_else_made_is_let_be(namespace, declare):
    name = f"r{uuid.uuid4().hex[:8]}"
    mine = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 1234}]}}
    namespace.apply(mine)
    declare(name)
    namespace.stalled("Registry", name, "OwnedByAnother", f"Service {namespace.name}/{name} is there and isn't")
    assert namespace.get("Service", name)["spec"]["ports"][0]["port"] == 1234
    assert set(workload(namespace, name)) == {f"Secret/{name}-root-key"}
    namespace.delete("Service", name)
    settle(namespace, name)


def copy(namespace, kind, name):
    """Makes a copy of an object, labels and owners included, as people do it with kubectl; returns the copy's UID."""
    described = yaml.safe_load(namespace.kubectl("get", kind, name, "--output=yaml"))
    described["metadata"]["name"] += "-copy"
    for given in ("clusterIP", "clusterIPs"):
        described.get("spec", {}).pop(given, None)
    namespace.kubectl("create", "-f", "-", stdin=yaml.safe_dump(described))
    return namespace.get(kind, f"{name}-copy")["metadata"]["uid"]


def test_what_somebody_copied_is_let_be(namespace, declare, stores):
    name = declare(**shared(stores, replicas=2))
    settle(namespace, name)
    copied = {
        (kind, f"{called}-copy"): copy(namespace, kind, called)
        for kind, called in [
            ("Secret", f"{name}-root-key"), ("Secret", f"{name}-backends"), ("ConfigMap", f"{name}-config"), ("Service", name),
        ]
    }  # fmt: skip
    still = lambda: {path: (namespace.find(*path) or {}).get("metadata", {}).get("uid") for path in copied}  # noqa: E731
    # Our objects are deleted, and created again after the pass that deleted them has ended.
    declare(name, **shared(stores, replicas=2, networkPolicy="Disabled"))
    namespace.gone("NetworkPolicy", name)
    declare(name, spec={"deletionPolicy": "Delete"}, **shared(stores, replicas=2))
    namespace.until("NetworkPolicy", name, bool)
    assert still() == copied
    namespace.delete("Registry", name)
    namespace.gone("Registry", name)
    assert still() == copied
    assert {path for path in workload(namespace, name) if not path.endswith("-copy")} == {f"Secret/{name}-root-key"}


def volume(namespace, name, size, storage_class):
    """The claim as a StatefulSet makes it, bound."""
    claim = f"data-{name}-0"
    resources = {"requests": {"storage": size}}
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": storage_class, "volumeName": "pv", "resources": resources}
    namespace.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": spec})
    namespace.patch("PersistentVolumeClaim", claim, {"status": {"phase": "Bound"}}, subresource="status")
    return claim


def storage(size, storage_class=None):
    return {"filesystem": {"size": size} | ({"storageClassName": storage_class} if storage_class else {})}


def test_a_volume_grows_where_its_class_lets_it(namespace, declare):
    for kind, expands in (("fast", True), ("slow", False)):
        namespace.apply({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": f"{kind}-{namespace.name}"},
            "provisioner": "example.com/none", "allowVolumeExpansion": expands,
        })  # fmt: skip
    fast, slow = f"fast-{namespace.name}", f"slow-{namespace.name}"
    name = declare(storage=storage("10Gi", fast))
    settle(namespace, name)
    made = namespace.get("StatefulSet", name)
    claim = volume(namespace, name, "10Gi", fast)
    asked = lambda size: lambda it: it["spec"]["resources"]["requests"]["storage"] == size  # noqa: E731
    declare(name, storage=storage("20Gi", fast))
    namespace.until("PersistentVolumeClaim", claim, asked("20Gi"))
    settle(namespace, name)
    # The StatefulSet, which can't have another template, is corrected all the same, although its label was removed.
    namespace.patch("StatefulSet", name, {"metadata": {"labels": {LABEL: None}}})
    labeled = namespace.until("StatefulSet", name, lambda it: it["metadata"]["labels"].get(LABEL) == name, "labeled again")
    assert (labeled["metadata"]["uid"], claimed(labeled)) == (made["metadata"]["uid"], ("10Gi", fast))
    settle(namespace, name)
    declare(name, storage=storage("5Gi", fast), publicUrl="https://r.example.com")
    namespace.stalled("Registry", name, "VolumeUnchangeable", "the volume has 20Gi and can't shrink to 5Gi")
    # All else is done all the same.
    assert namespace.get("ConfigMap", f"{name}-config")["data"]["WHARFAGE_PUBLIC_URL"] == "https://r.example.com"
    declare(name, storage=storage("20Gi", slow))
    namespace.stalled("Registry", name, "VolumeUnchangeable", f"of StorageClass {fast} and can't become one of {slow}")
    declare(name, storage=storage("20Gi"))
    settle(namespace, name)

    other = declare(storage=storage("10Gi", slow))
    settle(namespace, other)
    volume(namespace, other, "10Gi", slow)
    declare(other, storage=storage("20Gi", slow))
    namespace.stalled("Registry", other, "Forbidden", f"PersistentVolumeClaim {namespace.name}/data-{other}-0")


def claimed(stateful_set):
    """Size and StorageClass of a StatefulSet's claim."""
    (template,) = stateful_set["spec"]["volumeClaimTemplates"]
    return template["spec"]["resources"]["requests"]["storage"], template["spec"].get("storageClassName")


def test_a_claim_without_a_volume_is_put_right(namespace, declare):
    def made():
        """The claim as the StatefulSet has it made, without a volume."""
        claim = f"data-{name}-0"
        (template,) = namespace.get("StatefulSet", name)["spec"]["volumeClaimTemplates"]
        namespace.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": template["spec"]})
        return claim

    def deleted():
        # No controller runs here that would release it.
        namespace.patch("PersistentVolumeClaim", claim, {"metadata": {"finalizers": None}})
        namespace.delete("PersistentVolumeClaim", claim)
        namespace.gone("PersistentVolumeClaim", claim)

    def ask():
        """Claims aren't watched, only read."""
        namespace.patch("Registry", name, {"metadata": {"annotations": {REQUESTED_AT: uuid.uuid4().hex}}})

    def remade(size, storage_class):
        """The StatefulSet once it makes such a claim."""
        asks = lambda it: it is not None and claimed(it) == (size, storage_class)  # noqa: E731
        return namespace.until("StatefulSet", name, asks, f"one that claims {size} of {storage_class}")

    # No class, in a cluster without a default one: the claim gets the one that is named.
    name = declare(storage=storage("10Gi"))
    settle(namespace, name)
    claim = made()
    ask()
    namespace.waiting("Registry", name, "Progressing", f"{claim} has no StorageClass.*: set storageClassName")
    declare(name, storage=storage("10Gi", "fsat"))
    classified = lambda it: it["spec"].get("storageClassName") == "fsat"  # noqa: E731
    uid = namespace.until("PersistentVolumeClaim", claim, classified, "of its class")["metadata"]["uid"]
    remade("10Gi", "fsat")
    namespace.waiting("Registry", name, "Progressing", f"{claim} waits for a volume of StorageClass fsat")

    # A class that is wrong, and a size: the claim is a person's to delete, and comes back as it is to be.
    for size, storage_class, was, wanted in (
        ("10Gi", "fast", "StorageClass fsat", "fast"),
        ("5Gi", "fast", "10Gi", "5Gi"),
        ("20Gi", "fast", "5Gi", "20Gi"),
    ):
        declare(name, storage=storage(size, storage_class))
        refused = (
            f"PersistentVolumeClaim {namespace.name}/{claim} waits for a volume of {was} and can't ask for {wanted} instead.*delete it"
        )
        namespace.stalled("Registry", name, "VolumeUnchangeable", refused)
        remade(size, storage_class)
        there = namespace.get("PersistentVolumeClaim", claim)["metadata"]
        assert there["uid"] == uid and "deletionTimestamp" not in there
        deleted()
        made()
        uid = namespace.get("PersistentVolumeClaim", claim)["metadata"]["uid"]
        ask()
        settle(namespace, name)

    # One that was never made, as by a quota, is no reason to keep a template either.
    deleted()
    declare(name, storage=storage("1Gi", "fast"))
    before = remade("1Gi", "fast")["metadata"]["uid"]

    # Once there is a volume, nothing is removed because of another request.
    volume(namespace, name, "1Gi", "fast")
    declare(name, storage=storage("1Gi", "slow"))
    namespace.stalled("Registry", name, "VolumeUnchangeable", "the volume is of StorageClass fast and can't become one of slow")
    kept = namespace.get("StatefulSet", name)
    assert (kept["metadata"]["uid"], claimed(kept)) == (before, ("1Gi", "fast"))


def test_a_refusal_of_the_api_server_is_reported(namespace, declare):
    name = declare(pod={"nodeSelector": {"not a label": "x"}})
    namespace.stalled("Registry", name, "Invalid", f"StatefulSet {namespace.name}/{name}: .*nodeSelector")
    declare(name)
    settle(namespace, name)


def test_the_pods_keep_to_the_restricted_standard(declare, make_namespace, stores):
    strict = make_namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"})
    for managed, kind in (({}, "StatefulSet"), (shared(stores), "Deployment")):
        name = declare(**managed | {"namespace": strict.name, "tls": {"secretName": "cert"}})
        pods = strict.until(kind, name, bool)["spec"]["template"]
        claims = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}] if kind == "StatefulSet" else []
        pods["spec"]["volumes"] += claims
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", **pods["metadata"]}, "spec": pods["spec"]}
        strict.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))
        # The standard does look at it.
        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        refused = strict.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod), check=False)
        assert "violates PodSecurity" in refused.stderr


def serves(namespace, name, replicas=1):
    """Says in a controller's place that so many Pods of a StatefulSet are there, and serve."""
    generation = namespace.get("StatefulSet", name)["metadata"]["generation"]
    numbers = {"observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas}
    namespace.patch("StatefulSet", name, {"status": numbers}, subresource="status")


def test_why_it_does_not_serve_is_reported(namespace, declare):
    name = declare()
    settle(namespace, name)
    pod = f"{name}-0"
    namespace.apply({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {LABEL: name}},
        "spec": {"containers": [{"name": "registry", "image": "example.com/w:missing"}]},
    })  # fmt: skip
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image example.com/w:missing"}
    status = {"name": "registry", "image": "w", "imageID": "", "ready": False, "restartCount": 0, "state": {"waiting": waiting}}
    namespace.patch("Pod", pod, {"status": {"containerStatuses": [status]}}, subresource="status")
    generation = namespace.get("StatefulSet", name)["metadata"]["generation"]
    numbers = {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1}
    namespace.patch("StatefulSet", name, {"status": numbers}, subresource="status")
    namespace.waiting("Registry", name, "Progressing", f"0 of 1 replicas serve: Pod {pod}: ImagePullBackOff: Back-off pulling")

    # Once a replica serves the registry is asked itself, by a name that only Pods know.
    serves(namespace, name)
    namespace.waiting("Registry", name, "RegistryUnavailable")
    declare(name, replicas=0)
    namespace.until("StatefulSet", name, lambda it: it["spec"]["replicas"] == 0)
    serves(namespace, name, replicas=0)
    namespace.ready("Registry", name, "Stopped", "managed.replicas is 0")


def test_one_of_which_nothing_serves_is_down_unless_it_is_meant_to(namespace, operator, declare):
    name = declare()
    settle(namespace, name)
    up = lambda: operator.metrics().get(f'wharfage_operator_registry_up{{registry="{name}"}}')  # noqa: E731
    assert up() == 0
    declare(name, replicas=0)
    namespace.until("StatefulSet", name, lambda it: it["spec"]["replicas"] == 0)
    serves(namespace, name, replicas=0)
    namespace.ready("Registry", name, "Stopped")
    assert up() is None
    declare(name)
    settle(namespace, name)
    assert up() == 0


def test_a_certificate_is_waited_for(namespace, declare):
    name = declare(tls={"secretName": "cert"})
    namespace.waiting("Registry", name, "ReferenceNotFound", f"Secret {namespace.name}/cert does not exist")
    namespace.secret("cert", **{"tls.crt": "", "tls.key": ""})
    settle(namespace, name)


def test_one_that_serves_and_lost_its_certificate_is_not_ready(namespace, declare):
    certificate = {"tls.crt": trustme.CA().cert_pem.bytes().decode(), "tls.key": "only the Pods read it"}
    namespace.secret("cert", **certificate)
    name = declare(tls={"secretName": "cert"})
    settle(namespace, name)
    serves(namespace, name)
    namespace.waiting("Registry", name, "RegistryUnavailable")
    repository = {"registryRef": {"name": name}}
    namespace.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "app"}, "spec": repository})
    namespace.waiting("Repository", "app", "RegistryUnavailable")
    namespace.delete("Secret", "cert")
    lost = f"Secret {namespace.name}/cert does not exist"
    registry = namespace.waiting("Registry", name, "ReferenceNotFound", lost)
    assert conditions(registry)["ReferencesResolved"]["status"] == "False"
    namespace.waiting("Repository", "app", "RegistryNotReady", f"Registry {name} is not ready: {lost}")
    namespace.secret("cert", **certificate)
    namespace.waiting("Registry", name, "RegistryUnavailable")


def test_cert_manager_issues_it(declare, make_cluster, make_operator):
    cluster = make_cluster()
    operator = make_operator(cluster)
    kube = cluster.kube
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": operator.namespace}})
    tls = {"certManager": {"issuerRef": {"name": "ca", "kind": "ClusterIssuer"}}}
    spec = {"managed": {"tls": tls, "publicUrl": "https://r.example.com"}}
    kube.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": "home"}, "spec": spec})
    said = lambda text: lambda it: text in conditions(it).get("Ready", {}).get("message", "")  # noqa: E731
    kube.until("Registry", "home", said("there is no cert-manager in this cluster"))

    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}, "subresources": {"status": {}}}
    names = {"kind": "Certificate", "plural": "certificates"}
    kube.apply({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "certificates.cert-manager.io"},
        "spec": {"group": "cert-manager.io", "scope": "Namespaced", "names": names, "versions": [version]},
    })  # fmt: skip
    kube.until("Registry", "home", said("is not issued: cert-manager has said nothing yet"))
    certificate = kube.get("Certificate", "home", operator.namespace)
    assert certificate["spec"]["dnsNames"] == ["r.example.com"] and certificate["spec"]["secretName"] == "home-tls"
    failing = {"conditions": [{"type": "Ready", "status": "False", "message": "Issuer ca not found"}]}
    kube.patch("Certificate", "home", {"status": failing}, operator.namespace, subresource="status")
    kube.until("Registry", "home", said("is not issued: Issuer ca not found"))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "home-tls"}, "stringData": {"tls.crt": ""}}
    kube.apply(secret, operator.namespace)
    kube.until("Registry", "home", said("0 of 1 replicas serve"))
    spec = {"managed": {"publicUrl": "https://r.example.com"}}
    kube.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": "home"}, "spec": spec})
    kube.until("Certificate", "home", lambda it: it is None, operator.namespace, "gone")


def test_a_name_that_names_no_service_is_changed(namespace, declare):
    name = declare(f"{namespace.name}.example.com")
    settle(namespace, name)
    (service,) = [it for it in namespace.list("Service") if not it["metadata"]["name"].endswith("-admin")]
    called = service["metadata"]["name"]
    assert called.startswith(f"r-{namespace.name}-example-com"[:40]) and "." not in called
    assert namespace.get("Registry", name)["status"]["endpoint"] == f"http://{called}.{namespace.name}.svc"


def test_an_operator_without_managed_registries_says_so(make_cluster, make_operator):
    cluster = make_cluster()
    offset = cluster.audit_offset()
    make_operator(cluster, values={"features": {"managedRegistries": False, "inUseProtection": False}})
    cluster.kube.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": "home"}, "spec": {"managed": {}}})
    stalled = lambda it: conditions(it).get("Stalled", {}).get("reason") == "ManagedRegistriesDisabled"  # noqa: E731
    home = cluster.kube.until("Registry", "home", stalled)
    assert not home["status"].get("capabilities")
    ours = [one for one in cluster.audit(offset) if "serviceaccount:wharfage" in one["user"]["username"]]
    asked = {one.get("objectRef", {}).get("resource") for one in ours}
    assert "registries" in asked
    assert not asked & {"deployments", "statefulsets", "services", "persistentvolumeclaims"}

    # One that another operator made, and that is to take its workload along: it says why it stays, until it may leave that.
    spec = {"region": "eu-home-1", "managed": {}, "deletionPolicy": "Delete"}
    metadata = {"name": "deleted", "finalizers": ["wharfage.dev/finalizer"]}
    cluster.kube.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": metadata, "spec": spec})
    cluster.kube.delete("Registry", "deleted")
    cluster.kube.until("Registry", "deleted", lambda it: "deletionTimestamp" in it["metadata"] and stalled(it))
    cluster.kube.patch("Registry", "deleted", {"spec": {"deletionPolicy": "Retain"}})
    cluster.kube.until("Registry", "deleted", lambda it: it is None)


def test_an_operator_in_another_namespace_begins_no_second_registry(make_cluster, make_operator, make_namespace):
    cluster = make_cluster()
    old, new = (make_namespace(name, kube=cluster.kube) for name in ("before", "after"))
    operator = make_operator(cluster, namespace=old.name)
    registry = {"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": "home"}}
    old.apply(registry | {"spec": {"managed": {}}})
    endpoint = settle(old, "home")["status"]["endpoint"]
    before = workload(old, "home")
    operator.stop()

    make_operator(cluster, namespace=new.name)
    stalled = old.stalled("Registry", "home", "WorkloadElsewhere", "StatefulSet before/home .* set managed.namespace to before")
    assert stalled["status"]["endpoint"] == endpoint
    assert workload(new, "home") == {}
    old.apply(registry | {"spec": {"managed": {"namespace": "before"}}})
    settle(old, "home")
    after = workload(old, "home")
    assert {path: one["metadata"]["uid"] for path, one in after.items()} == {path: one["metadata"]["uid"] for path, one in before.items()}
    assert after["Secret/home-root-key"]["data"] == before["Secret/home-root-key"]["data"]
    assert workload(new, "home") == {}


def test_a_registry_that_runs_elsewhere_is_not_begun_anew(namespace, operator, cluster, make_namespace):
    name = f"r{uuid.uuid4().hex[:8]}"
    # What somebody else made elsewhere is no registry of ours.
    labels = {LABEL: name}
    pods = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    make_namespace().apply({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": pods},
    })  # fmt: skip

    def declare(policy, **managed):
        spec = {"managed": managed, "deletionPolicy": policy}
        namespace.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": name}, "spec": spec})

    kube, home = cluster.kube, operator.namespace
    elsewhere = f"StatefulSet {home}/{name}"
    declare("Delete")
    settle(namespace, name)
    assert kube.get("StatefulSet", name, home)["metadata"]["ownerReferences"]
    declare("Delete", namespace=namespace.name)
    way_out = f"delete this Registry with deletionPolicy Retain, and create it again with managed.namespace {home}"
    namespace.stalled("Registry", name, "WorkloadElsewhere", f"{elsewhere} .* {way_out}; or delete {elsewhere} first")
    assert workload(namespace, name) == {}
    # Deleted so it leaves what runs, which nobody owns then.
    declare("Retain", namespace=namespace.name)
    namespace.delete("Registry", name)
    namespace.gone("Registry", name)
    assert "ownerReferences" not in kube.get("StatefulSet", name, home)["metadata"]

    declare("Delete", namespace=namespace.name)
    namespace.stalled("Registry", name, "WorkloadElsewhere", elsewhere)
    kube.delete("StatefulSet", name, home)
    settle(namespace, name)
    for kind in KINDS:
        for one in kube.list(kind, home, label_selector=f"{LABEL}={name}"):
            kube.delete(kind, one["metadata"]["name"], home)


def test_registries_run_in_the_listed_namespaces_only(make_cluster, make_operator, make_namespace):
    cluster = make_cluster()
    listed, other = (make_namespace(name, kube=cluster.kube) for name in ("listed", "other"))
    make_operator(cluster, values={"rbac": {"managedNamespaces": [listed.name]}})
    specs = {
        "own": {"managed": {}},
        "allowed": {"managed": {"namespace": listed.name}},
        "refused": {"managed": {"namespace": other.name}},
        "unwanted": {"managed": {"namespace": other.name}, "deletionPolicy": "Delete"},
    }
    for name, spec in specs.items():
        other.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": name}, "spec": spec})
    for name in ("own", "allowed"):
        settle(listed, name)
    assert listed.get("Registry", "allowed")["status"]["namespace"] == listed.name
    for name in ("refused", "unwanted"):
        other.stalled("Registry", name, "NotAllowed", "may not run in namespace other, only in listed, wharfage: set managed.namespace")
        assert workload(other, name) == {}
        # Nothing of it is there, so nothing holds it.
        other.delete("Registry", name)
        other.gone("Registry", name)


def test_a_registry_whose_namespace_left_the_list_is_not_started_empty_elsewhere(make_cluster, make_operator, make_namespace):
    cluster = make_cluster()
    old, new = (make_namespace(name, kube=cluster.kube) for name in ("old", "new"))
    operator = make_operator(cluster, namespace=old.name, values={})
    old.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": "moved"}, "spec": {"managed": {}}})
    settle(old, "moved")
    operator.stop()
    make_operator(cluster, namespace=new.name, values={})
    new.stalled("Registry", "moved", "WorkloadElsewhere", "the workload in namespace old is this registry")
    assert workload(new, "moved") == {}


def test_secrets_that_the_operator_may_not_read_are_reported(make_cluster, make_operator, make_namespace):
    cluster = make_cluster()
    inside, outside = (make_namespace(name, kube=cluster.kube) for name in ("inside", "outside"))
    make_operator(
        cluster,
        values={
            "rbac": {"secretNamespaces": [inside.name], "managedNamespaces": [inside.name, outside.name]},
            "features": {"pullSecrets": False},
        },
    )
    secret = {"name": "key", "namespace": outside.name}
    specs = {
        "inside": {"managed": {"namespace": inside.name}},
        "reached": {"region": "eu-1", "endpoint": {"url": "http://127.0.0.1:1", "credentialsSecretRef": secret}},
        "stored": {"managed": {"namespace": inside.name, "storage": {"s3": {"bucket": "images", "credentialsSecretRef": secret}}}},
        "kept": {"managed": {"namespace": outside.name}},
        "taken": {"managed": {"namespace": outside.name}, "deletionPolicy": "Delete"},
    }
    for name, spec in specs.items():
        outside.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": name}, "spec": spec})
    settle(inside, "inside")
    refused = "may not read Secrets in namespace outside: add it to rbac.secretNamespaces"
    for name in ("reached", "stored", "kept", "taken"):
        outside.stalled("Registry", name, "Forbidden", refused)
    for name in ("reached", "stored", "kept"):
        outside.delete("Registry", name)
        outside.gone("Registry", name)
    outside.delete("Registry", "taken")
    waits = lambda it: "deletionTimestamp" in it["metadata"] and has_state(it, "Stalled", "Forbidden", refused)  # noqa: E731
    outside.until("Registry", "taken", waits, "with the reason why it stays")
    outside.patch("Registry", "taken", {"spec": {"deletionPolicy": "Retain"}})
    outside.gone("Registry", "taken")
