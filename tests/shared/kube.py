"""Objects of a cluster, as plain dicts: applied, read, waited for."""

import contextlib
import copy
import os
import re
import subprocess
import time
import uuid

import kubernetes
import yaml
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import NotFoundError, ResourceNotFoundError
from kubernetes.dynamic.resource import ResourceList

from backends import TIMEOUT, tool

GROUP = "wharfage.dev"
API_VERSION = "wharfage.dev/v1alpha1"
REQUESTED_AT = "reconcile.wharfage.dev/requestedAt"


class Kube:
    """A cluster as the user of a kubeconfig sees it."""

    def __init__(self, kubeconfig):
        self.kubeconfig = kubeconfig
        self._client = kubernetes.config.new_client_from_config(str(kubeconfig))
        # Its default is a file in /tmp that is named after the address, which another run may have had.
        self._dynamic = DynamicClient(self._client, cache_file=f"{kubeconfig}.discovery-{uuid.uuid4().hex}")

    def resource(self, kind, api_version=None):
        """The API resource of this kind: ours, then Kubernetes' core, then the server's preferred one."""
        if api_version:
            return self._dynamic.resources.get(api_version=api_version, kind=kind)
        found = self.resources(kind=kind)
        if not found:
            self._dynamic.resources.invalidate_cache()
            found = self.resources(kind=kind)
        if not found:
            raise ResourceNotFoundError(f"the API server has no kind {kind}")
        return min(found, key=lambda one: (one.group != GROUP, one.group != "", not one.preferred))

    def resources(self, **query):
        """The API resources of this group or kind, without lists and subresources."""
        found = self._dynamic.resources.search(**query)
        return [one for one in found if not isinstance(one, ResourceList) and "/" not in one.name]

    def apply(self, manifests, namespace=None, manager="tests", force=True):
        """Server-side apply. Takes YAML of any number of documents, a dict or a list of dicts; returns what it became: a
        dict for a dict, else a list. `namespace` is for those that name none."""
        if isinstance(manifests, dict):
            return self._apply(manifests, namespace, manager, force)
        documents = [one for one in yaml.safe_load_all(manifests) if one] if isinstance(manifests, str) else manifests
        return [self._apply(one, namespace, manager, force) for one in documents]

    def _apply(self, manifest, namespace, manager, force):
        resource = self.resource(manifest["kind"], manifest["apiVersion"])
        manifest = copy.deepcopy(manifest)
        metadata = manifest["metadata"]
        if resource.namespaced:
            metadata.setdefault("namespace", namespace or "default")
        applied = self._dynamic.server_side_apply(
            resource, body=manifest, name=metadata["name"], namespace=metadata.get("namespace"),
            field_manager=manager, force_conflicts=force,
        )  # fmt: skip
        return applied.to_dict()

    def create(self, manifest, namespace=None):
        """POST: refused where the object is there already. With metadata.generateName it gets a name."""
        resource = self.resource(manifest["kind"], manifest["apiVersion"])
        return resource.create(body=manifest, namespace=namespace if resource.namespaced else None).to_dict()

    def replace(self, manifest):
        """PUT of a whole object as `get` gave it, changed."""
        resource = self.resource(manifest["kind"], manifest["apiVersion"])
        metadata = manifest["metadata"]
        return resource.replace(body=manifest, name=metadata["name"], namespace=metadata.get("namespace")).to_dict()

    def find(self, kind, name, namespace=None):
        """The object, or None."""
        resource = self.resource(kind)
        try:
            return resource.get(name=name, namespace=namespace if resource.namespaced else None).to_dict()
        except NotFoundError:
            return None

    def get(self, kind, name, namespace=None):
        found = self.find(kind, name, namespace)
        assert found is not None, f"there is no {kind} {name} in {namespace}"
        return found

    def list(self, kind, namespace=None, **selectors):
        """All objects of a kind; selectors are label_selector and field_selector."""
        resource = self.resource(kind)
        return resource.get(namespace=namespace if resource.namespaced else None, **selectors).to_dict()["items"]

    def patch(self, kind, name, patch, namespace=None, subresource=None):
        """A JSON merge patch; null removes a field. With subresource="status" it is written to the status."""
        resource = self.resource(kind)
        target = getattr(resource, subresource) if subresource else resource
        return target.patch(
            body=patch, name=name, namespace=namespace if resource.namespaced else None,
            content_type="application/merge-patch+json",
        ).to_dict()  # fmt: skip

    def delete(self, kind, name, namespace=None, **options):
        """Asks for the deletion; an object with a finalizer stays until that is removed. Nothing to delete is fine."""
        resource = self.resource(kind)
        with contextlib.suppress(NotFoundError):
            resource.delete(name=name, namespace=namespace if resource.namespaced else None, body=options or None)

    def events(self, kind, name, namespace=None):
        """The Events about an object, oldest first."""
        about = f"involvedObject.kind={kind},involvedObject.name={name}"
        found = self.list("Event", namespace, field_selector=about)
        return sorted(found, key=lambda event: (event.get("firstTimestamp") or event.get("eventTime") or "", event["metadata"]["name"]))

    def until(self, kind, name, holds, namespace=None, expected="the expected state"):
        """Waits until `holds(object)`, with None for an object that isn't there, and returns the object."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            found = self.find(kind, name, namespace)
            if holds(found):
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"{kind} {namespace or ''}/{name} isn't {expected} after {TIMEOUT} s:\n{shown(found)}")
            time.sleep(0.05)

    def kubectl(self, *arguments, check=True, stdin=None):
        """What kubectl prints. With check=False the finished process, whatever its exit code."""
        environment = {"PATH": os.environ["PATH"], "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.kubeconfig.parent)}
        ran = subprocess.run(
            [tool("WHARFAGE_TEST_KUBECTL"), *map(str, arguments)],
            check=False, env=environment, input=stdin or "", capture_output=True, text=True,
        )  # fmt: skip
        if not check:
            return ran
        assert ran.returncode == 0, f"kubectl {' '.join(map(str, arguments))}\nexit code {ran.returncode}\n{ran.stdout}{ran.stderr}"
        return ran.stdout


class Namespace:
    """A namespace of one test, and the objects that the test creates through it."""

    def __init__(self, kube, name=None, labels=None):
        self.kube = kube
        self.name = name or f"test-{uuid.uuid4().hex[:12]}"
        self._made = []
        metadata = {"name": self.name, "labels": labels or {}}
        if name:
            # One of an earlier test may still be on its way out.
            kube.until("Namespace", name, lambda one: one is None or "deletionTimestamp" not in one["metadata"], expected="gone")
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})

    def __str__(self):
        return self.name

    def apply(self, manifests, **options):
        """As Kube.apply, into this namespace. It is deleted when the test ends, whether it has a namespace or not."""
        applied = self.kube.apply(manifests, self.name, **options)
        self._made += [applied] if isinstance(applied, dict) else applied
        return applied

    def create(self, manifest):
        created = self.kube.create(manifest, self.name)
        self._made.append(created)
        return created

    def find(self, kind, name):
        return self.kube.find(kind, name, self.name)

    def get(self, kind, name):
        return self.kube.get(kind, name, self.name)

    def list(self, kind, **selectors):
        return self.kube.list(kind, self.name, **selectors)

    def patch(self, kind, name, patch, subresource=None):
        return self.kube.patch(kind, name, patch, self.name, subresource)

    def delete(self, kind, name, **options):
        self.kube.delete(kind, name, self.name, **options)

    def events(self, kind, name):
        return self.kube.events(kind, name, self.name if self.kube.resource(kind).namespaced else None)

    def kubectl(self, *arguments, **options):
        return self.kube.kubectl("--namespace", self.name, *arguments, **options)

    def until(self, kind, name, holds, expected="the expected state"):
        """Waits until `holds(object)`, with None for an object that isn't there, and returns the object."""
        return self.kube.until(kind, name, holds, self.name, expected)

    def ready(self, kind, name, reason=None, message=None):
        """Waits until it is Ready, at its present generation; `message` is a regular expression for some of the text."""
        return self.until(kind, name, lambda one: has_state(one, "Ready", reason, message), f"Ready ({reason}, {message})")

    def stalled(self, kind, name, reason=None, message=None):
        """Waits until it is Ready=False and Stalled."""
        return self.until(kind, name, lambda one: has_state(one, "Stalled", reason, message), f"Stalled ({reason}, {message})")

    def waiting(self, kind, name, reason=None, message=None):
        """Waits until it is Ready=False and Reconciling."""
        return self.until(kind, name, lambda one: has_state(one, "Reconciling", reason, message), f"waiting ({reason}, {message})")

    def gone(self, kind, name):
        """Waits until there is no such object."""
        self.until(kind, name, lambda one: one is None, "gone")

    def reconcile(self, kind, name):
        """Asks for a reconcile by annotation, and returns the object when it was done. What hasn't happened by then
        doesn't: this is how a test tells that the operator leaves something alone."""
        asked = uuid.uuid4().hex
        self.patch(kind, name, {"metadata": {"annotations": {REQUESTED_AT: asked}}})
        handled = lambda one: one and one.get("status", {}).get("lastHandledReconcileAt") == asked  # noqa: E731
        return self.until(kind, name, handled, "reconciled on request")

    def secret(self, name, **values):
        """A Secret of texts."""
        return self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values})

    def declare(self, server, name=None, credentials=True, **spec):
        """A Registry that declares a running `server` (a registry, Amazon's stand-in), with its key in a Secret; `spec`
        is merged into it. Returns the Registry's name, which no other test has."""
        name = name or f"{self.name}-{uuid.uuid4().hex[:6]}"
        spec = {"region": server.region, server.kind: server.declaration(), **spec}
        if credentials:
            self.secret(f"{name}-key", **server.credentials)
            spec[server.kind] |= {"credentialsSecretRef": {"name": f"{name}-key", "namespace": self.name}}
        self.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": name}, "spec": spec})
        return name

    def end(self):
        """Deletes the objects created here. Does not wait for the operator: the registry may be gone."""
        kinds = [one.kind for one in self.kube.resources(group=GROUP) if one.namespaced]
        ours = [(kind, one["metadata"]["name"], self.name) for kind in kinds for one in self.list(kind)]
        made = [(one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")) for one in reversed(self._made)]
        for kind, name, namespace in dict.fromkeys([*ours, *made, ("Namespace", self.name, None)]):
            self.kube.delete(kind, name, namespace)
            left = self.kube.find(kind, name, namespace)
            if left and left["metadata"].get("finalizers"):
                with contextlib.suppress(NotFoundError):
                    self.kube.patch(kind, name, {"metadata": {"finalizers": None}}, namespace)


def conditions(one):
    """The conditions of an object by their type."""
    return {found["type"]: found for found in (one or {}).get("status", {}).get("conditions", [])}


def has_state(one, state, reason=None, message=None):
    """Whether an object is in this state (Ready, Stalled or Reconciling), as of its present generation."""
    if one is None or one.get("status", {}).get("observedGeneration") != one["metadata"]["generation"]:
        return False
    found = conditions(one)
    ready = found.get("Ready", {})
    if ready.get("observedGeneration") != one["metadata"]["generation"]:
        return False
    present = {name for name in ("Reconciling", "Stalled") if found.get(name, {}).get("status") == "True"}
    wanted = ("True", set()) if state == "Ready" else ("False", {state})
    return (
        (ready["status"], present) == wanted
        and reason in (None, ready["reason"])
        and re.search(message or "", ready["message"]) is not None
    )


def shown(one):
    """An object for a message, without what only a machine reads."""
    if one is None:
        return "it isn't there"
    one = copy.deepcopy(one)
    one["metadata"].pop("managedFields", None)
    return yaml.safe_dump(one, sort_keys=False)
