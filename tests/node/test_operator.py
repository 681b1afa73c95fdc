"""Wharfage as people run it: installed by Helm from its image, a managed Registry in the cluster, Pods that pull from it."""

import base64
import contextlib
import threading
import time

import pytest
import trustme

import node
from backends import TIMEOUT
from busybox import busybox
from clients import Registry, let_nodes_pull
from conftest import AFTER, BEFORE, pod
from images import image, upload
from kube import API_VERSION, Namespace, conditions, has_state
from release import Release, offer_folder, registry, repository

HOME = "home"
# A port of every node, by which containerd reaches the registry on its own loopback.
NODE_PORT = 30500
ADDRESS = f"localhost:{NODE_PORT}"


def pull_secret(name, namespace):
    """A PullSecret for a Registry of the same name, and all who are labeled so."""
    return {
        "apiVersion": API_VERSION,
        "kind": "PullSecret",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "registryRef": {"name": name},
            "namespaceSelector": {"matchLabels": {"pulls-from": name}},
            "secretName": f"{name}-pull",
            "serviceAccounts": ["default"],
        },
    }


def pulls_from(kube, name):
    """A namespace whose Pods pull from this Registry."""
    namespace = Namespace(kube, labels={"pulls-from": name})
    secret = {"name": f"{name}-pull"}
    namespace.until("ServiceAccount", "default", lambda one: one and secret in (one.get("imagePullSecrets") or []))
    return namespace


@pytest.fixture(scope="session")
def release(kube, tmp_path_factory):
    release = Release(kube, tmp_path_factory.mktemp("helm"))
    release.install(BEFORE)
    return release


@pytest.fixture(scope="session")
def home(kube, release):
    """The managed Registry `home`, which is Ready, and a PullSecret for the labeled namespaces."""
    offer_folder(kube, HOME)
    managed = {"publicUrl": f"http://{ADDRESS}", "service": {"type": "NodePort", "nodePort": NODE_PORT}}
    kube.apply(registry(HOME, managed))
    kube.apply(pull_secret(HOME, release.name))
    ready(kube, "Registry", HOME)
    key = root_key(kube, release)
    home = Registry(f"http://{ADDRESS}", key["AWS_ACCESS_KEY_ID"], key["AWS_SECRET_ACCESS_KEY"])
    home.wait()
    return home


def root_key(kube, release, name=HOME):
    data = kube.get("Secret", f"{name}-root-key", release.name)["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


def ready(kube, kind, name):
    return kube.until(kind, name, lambda one: has_state(one, "Ready"), expected="Ready")


@pytest.fixture
def team(kube, home):
    namespace = pulls_from(kube, HOME)
    yield namespace
    namespace.end()


@pytest.fixture
def app(team):
    """The team's Repository `app`, which is Ready: its name in the registry."""
    name = f"{team}/app"
    team.apply(repository(HOME, name))
    team.ready("Repository", "app")
    return name


def runs(one):
    """Whether all containers of a Pod are ready."""
    statuses = (one or {}).get("status", {}).get("containerStatuses", [])
    return bool(statuses) and all(status["ready"] for status in statuses)


def run(team, name, reference):
    """Runs a Pod of this image, which the node has to ask the registry for."""
    team.apply(pod(name, reference, imagePullPolicy="Always"))
    return team.until("Pod", name, runs, "running")


def container_of(one):
    (container,) = one["status"]["containerStatuses"]
    return container


def tags(home, name):
    pages = home.insist(lambda ecr: list(ecr.get_paginator("list_images").paginate(repositoryName=name)))
    return {one["imageTag"]: one["imageDigest"] for page in pages for one in page["imageIds"]}


def test_a_pod_pulls_what_was_pushed_by_the_secret_that_the_operator_wrote(home, team, app, tmp_path):
    pushed = home.push(busybox("declared, not clicked"), app, "v1", tmp_path)
    uri = team.get("Repository", "app")["status"]["repositoryUri"]
    assert uri == f"{ADDRESS}/{app}"
    running = run(team, "app", f"{uri}:v1")
    assert container_of(running)["imageID"] == f"{uri}@{pushed}"
    assert team.kubectl("exec", "app", "--", "cat", "/word") == "declared, not clicked"


def test_without_the_secret_nothing_is_pulled(home, app, namespace, tmp_path):
    home.push(busybox("not for everybody"), app, "v1", tmp_path)
    namespace.apply(pod("stranger", f"{ADDRESS}/{app}:v1", imagePullPolicy="Always"))

    def refused(one):
        states = [status.get("state", {}).get("waiting", {}) for status in one["status"].get("containerStatuses", [])]
        return any(state.get("reason") in ("ErrImagePull", "ImagePullBackOff") for state in states)

    namespace.until("Pod", "stranger", refused, "refused")


def test_helm_test_passes(release):
    release.helm("test", release.name, f"--timeout={TIMEOUT}s")


@pytest.mark.parametrize("end", ["its process", "its pod"])
def test_a_registry_that_is_killed_comes_back_with_everything(kube, release, home, team, app, tmp_path, end):
    pushed = {f"v{number}": home.push(busybox(f"version {number}"), app, f"v{number}", tmp_path) for number in range(3)}
    killed = container_of(kube.get("Pod", f"{HOME}-0", release.name))["containerID"]
    if end == "its process":
        node.ctr("tasks", "kill", "--signal", "SIGKILL", killed.removeprefix("containerd://"))
    else:
        kube.kubectl("delete", "pod", f"{HOME}-0", "--namespace", release.name, "--grace-period=0", "--force")
    kube.until(
        "Pod", f"{HOME}-0", lambda one: runs(one) and container_of(one)["containerID"] != killed, release.name, "running again"
    )  # fmt: skip
    home.wait()
    assert tags(home, app) == pushed
    for tag in pushed:
        # Reads every blob and compares digests.
        home.crane("validate", "--remote", f"{ADDRESS}/{app}:{tag}", folder=tmp_path)
    run(team, "app", f"{ADDRESS}/{app}:v2")
    ready(kube, "Registry", HOME)


class Client(threading.Thread):
    """Somebody who pushes one small image after the other, looks each up again, and tries again what isn't answered."""

    def __init__(self, home, name):
        super().__init__(daemon=True)
        self.home, self.name_of_repository = home, name
        self.stopping = threading.Event()
        self.pushed, self.error = {}, None

    def run(self):
        try:
            while not self.stopping.is_set():
                tag = f"v{len(self.pushed)}"
                self.pushed[tag] = self._push(image(f"{self.name_of_repository} {tag}"), tag)
                asked = {"repositoryName": self.name_of_repository, "imageIds": [{"imageTag": tag}]}
                found = self.home.insist(lambda ecr, asked=asked: ecr.batch_get_image(**asked))
                assert [one["imageId"]["imageDigest"] for one in found["images"]] == [self.pushed[tag]], found["failures"]
        except Exception as error:
            self.error = error

    def _push(self, made, tag):
        # Of either the answer to an earlier attempt may have been lost, its effect was not.
        def layer(ecr, content):
            with contextlib.suppress(ecr.exceptions.LayerAlreadyExistsException):
                upload(ecr, self.name_of_repository, content)

        def put(ecr):
            with contextlib.suppress(ecr.exceptions.ImageAlreadyExistsException):
                ecr.put_image(repositoryName=self.name_of_repository, imageManifest=made.manifest, imageTag=tag)

        for content in made.blobs:
            self.home.insist(lambda ecr, content=content: layer(ecr, content))
        self.home.insist(put)
        return made.digest

    def gets_on(self, count):
        """Waits until it has pushed so many more images, or failed."""
        wanted, deadline = len(self.pushed) + count, time.monotonic() + TIMEOUT
        while self.is_alive() and len(self.pushed) < wanted:
            assert time.monotonic() < deadline, f"{self.name_of_repository} gets no further than {len(self.pushed)} images"
            time.sleep(0.05)


def test_an_upgrade_loses_no_request_that_is_tried_again(kube, release, home, team):
    clients = []
    for name in ("one", "two"):
        team.apply(repository(HOME, f"{team}/{name}", name))
        team.ready("Repository", name)
        clients.append(Client(home, f"{team}/{name}"))
    for client in clients:
        client.start()
    try:
        for client in clients:
            client.gets_on(1)
        upgrade(kube, release, home, AFTER)
        for client in clients:
            client.gets_on(3)
    finally:
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join()
    assert [client.error for client in clients] == [None, None]
    for client in clients:
        assert tags(home, client.name_of_repository) == client.pushed
    upgrade(kube, release, home, BEFORE)


def upgrade(kube, release, home, version):
    """Upgrades the operator, and with it the registry, whose image is the operator's."""
    release.install(version)

    def new(one):
        return runs(one) and "deletionTimestamp" not in one["metadata"] and one["spec"]["containers"][0]["image"] == version

    kube.until("Pod", f"{HOME}-0", new, release.name, f"of {version}")
    home.wait()
    ready(kube, "Registry", HOME)


class Migrations(threading.Thread):
    """Reads the Registries again and again: which ones were changing their image at the same time."""

    def __init__(self, kube):
        super().__init__(daemon=True)
        self.kube, self.stopping, self.seen, self.error = kube, threading.Event(), [], None

    def run(self):
        try:
            while not self.stopping.wait(0.2):
                found = {one["metadata"]["name"]: conditions(one).get("Migrating", {}) for one in self.kube.list("Registry")}
                changing = {name for name, condition in found.items() if condition.get("status") == "True"}
                if changing and (not self.seen or self.seen[-1] != changing):
                    self.seen.append(changing)
        except Exception as error:
            self.error = error

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join()


def test_an_upgrade_and_its_rollback_take_one_registry_after_the_other(kube, release, home):
    second = "second"
    offer_folder(kube, second)
    kube.apply(registry(second, deletionPolicy="Delete"))
    ready(kube, "Registry", second)
    try:
        for version in (AFTER, BEFORE):
            with Migrations(kube) as migrations:
                upgrade(kube, release, home, version)
                changed = lambda one, version=version: one["status"]["image"] == version and "Migrating" not in conditions(one)  # noqa: E731
                for name in (HOME, second):
                    kube.until("Registry", name, changed, expected=f"runs {version}")
            assert migrations.error is None
            # The older first; the second one when the first one serves.
            assert migrations.seen == [{HOME}, {second}]
            ready(kube, "Registry", second)
    finally:
        kube.delete("Registry", second)
        kube.until("Registry", second, lambda one: one is None, expected="gone")


def test_an_autoscaler_is_left_alone(kube, release):
    name = "scaled"
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": release.name}}
    # Nothing answers there: how many Pods there are does not depend on it.
    secret["stringData"] = {"uri": "postgres://u:p@127.0.0.1:1/w", "AWS_ACCESS_KEY_ID": "AKIABUCKET", "AWS_SECRET_ACCESS_KEY": "none"}
    reference = {"name": name, "namespace": release.name}
    stores = {
        "storage": {"s3": {"bucket": "images", "endpoint": "http://127.0.0.1:1", "credentialsSecretRef": reference}},
        "database": {"postgres": {"connectionSecretRef": reference}},
    }
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": release.name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 2,
            "maxReplicas": 3,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
        },
    }
    kube.apply([secret, registry(name, stores, deletionPolicy="Delete")])
    try:
        kube.until("Deployment", name, lambda one: one is not None, release.name, "made")
        kube.apply(autoscaler)
        kube.until("Deployment", name, lambda one: one["spec"]["replicas"] == 2, release.name, "scaled")
        # A change of the Registry is applied, and the number stays.
        kube.apply(registry(name, {**stores, "publicUrl": "https://scaled.example.com"}, deletionPolicy="Delete"))
        kube.until("Registry", name, lambda one: one["status"].get("endpoint") == "https://scaled.example.com")
        assert kube.get("Deployment", name, release.name)["spec"]["replicas"] == 2
    finally:
        kube.delete("HorizontalPodAutoscaler", name, release.name)
        kube.delete("Registry", name)
        kube.until("Registry", name, lambda one: one is None, expected="gone")
        kube.delete("Secret", name, release.name)


def test_the_image_of_a_running_pod_outlives_a_lifecycle_run_that_takes_its_neighbors(home, team, app, tmp_path):
    pushed = {f"v{number}": home.push(busybox(f"release {number}"), app, f"v{number}", tmp_path) for number in range(4)}
    run(team, "app", f"{ADDRESS}/{app}:v0")
    newest = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 1}
    team.apply(
        {
            "apiVersion": API_VERSION,
            "kind": "LifecyclePolicy",
            "metadata": {"name": "newest"},
            "spec": {
                "registryRef": {"name": HOME},
                "repositoryRef": {"name": "app"},
                "mode": "Enforce",
                "inUseProtection": {"enabled": True, "keepPrevious": 0},
                "rules": [{"rulePriority": 1, "selection": newest, "action": {"type": "expire"}}],
            },
        }
    )
    settled = team.ready("LifecyclePolicy", "newest")
    assert tags(home, app) == {tag: pushed[tag] for tag in ("v0", "v3")}
    assert settled["status"]["totals"]["protected"] == 1
    # A node that doesn't have it yet still gets it.
    run(team, "again", f"{ADDRESS}/{app}:v0")
    team.kubectl("delete", "pod", "app", "again", "--wait")
    team.reconcile("LifecyclePolicy", "newest")
    assert tags(home, app) == {"v3": pushed["v3"]}


def test_uninstalling_leaves_resources_and_data_and_installing_goes_on_with_them(kube, release, home, team, app, tmp_path):
    pushed = home.push(busybox("here to stay"), app, "v1", tmp_path)
    key = root_key(kube, release)
    resources = {kind: names(kube, kind) for kind in ("Registry", "Repository", "PullSecret")}
    release.uninstall()
    assert names(kube, "Deployment", release.name) == set()
    assert {kind: names(kube, kind) for kind in resources} == resources
    claim = kube.get("PersistentVolumeClaim", f"data-{HOME}-0", release.name)
    assert (claim["status"]["phase"], claim["spec"]["volumeName"]) == ("Bound", HOME)
    assert root_key(kube, release) == key
    # The registry continues to serve without its operator.
    assert home.crane("digest", f"{ADDRESS}/{app}:v1", folder=tmp_path) == pushed

    release.install(BEFORE)
    team.reconcile("Repository", "app")
    team.ready("Repository", "app")
    ready(kube, "Registry", HOME)
    assert root_key(kube, release) == key
    home.crane("validate", "--remote", f"{ADDRESS}/{app}:v1", folder=tmp_path)


def names(kube, kind, namespace=None):
    return {(one["metadata"].get("namespace"), one["metadata"]["name"]) for one in kube.list(kind, namespace)}


def test_a_registry_with_tls_shows_its_certificate_and_the_one_that_replaces_it(kube, release, tmp_path):
    name, host = "sealed", "sealed.example.com"

    def show(authority, *names):
        certificate = authority.issue_cert(*names)
        pair = {"tls.crt": certificate.cert_chain_pems[0], "tls.key": certificate.private_key_pem, "ca.crt": authority.cert_pem}
        kube.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "sealed-tls", "namespace": release.name},
                "type": "kubernetes.io/tls",
                "stringData": {key: blob.bytes().decode() for key, blob in pair.items()},
            }
        )

    show(trustme.CA(), host)
    offer_folder(kube, name)
    kube.apply([registry(name, {"publicUrl": f"https://{host}", "tls": {"secretName": "sealed-tls"}}), pull_secret(name, release.name)])
    ready(kube, "Registry", name)
    address = kube.get("Service", name, release.name)["spec"]["clusterIP"]

    # Of another authority, and for the Service's address: nobody gets there by that before it is shown.
    authority, ca = trustme.CA(), tmp_path / "ca.crt"
    ca.write_bytes(authority.cert_pem.bytes())
    show(authority, host, address)
    key = root_key(kube, release, name)
    sealed = Registry(f"https://{address}", key["AWS_ACCESS_KEY_ID"], key["AWS_SECRET_ACCESS_KEY"], ca=str(ca))
    sealed.wait()
    team = pulls_from(kube, name)
    team.apply(repository(name, f"{team}/app"))
    assert team.ready("Repository", "app")["status"]["repositoryUri"] == f"{host}/{team}/app"
    ready(kube, "Registry", name)
    pushed = sealed.push(busybox("sealed"), f"{team}/app", "v1", tmp_path)
    let_nodes_pull(host, sealed.url, ca.read_text())
    running = run(team, "app", f"{host}/{team}/app:v1")
    assert container_of(running)["imageID"] == f"{host}/{team}/app@{pushed}"
    team.end()
    kube.kubectl("delete", "pullsecret", name, "--namespace", release.name, f"--timeout={TIMEOUT}s")
    kube.kubectl("delete", "registry", name, f"--timeout={TIMEOUT}s")


def test_a_registry_that_is_deleted_leaves_its_volume_with_what_is_in_it(kube, release, home):
    folder = offer_folder(kube, "brief")
    kube.apply(registry("brief", deletionPolicy="Delete"))
    ready(kube, "Registry", "brief")
    kube.kubectl("delete", "registry", "brief", f"--timeout={TIMEOUT}s")
    kube.until("Pod", "brief-0", lambda one: one is None, release.name, "gone")
    claim = kube.get("PersistentVolumeClaim", "data-brief-0", release.name)
    assert (claim["status"]["phase"], claim["spec"]["volumeName"]) == ("Bound", "brief")
    assert list(folder.rglob("metadata.sqlite"))
