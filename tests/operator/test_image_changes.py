"""How managed registries change to another image, and what autoscalers may do."""

from kube import API_VERSION, conditions
from operators import EVERYWHERE, IMAGE
from test_managed import container, serves, settle, shared

NEW = "registry.example.com/wharfage:next"


def image(namespace, name, kind="StatefulSet"):
    return container(namespace.get(kind, name))["image"]


def migrating(namespace, name):
    condition = conditions(namespace.get("Registry", name)).get("Migrating")
    return condition and (condition["status"], condition["reason"], condition["message"])


def declare(namespace, name, **managed):
    spec = {"managed": {"namespace": namespace.name, **managed}}
    namespace.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": name}, "spec": spec})


def runs(namespace, name, wanted):
    namespace.until("StatefulSet", name, lambda it: container(it)["image"] == wanted, f"runs {wanted}")
    namespace.until("Registry", name, lambda it: it["status"].get("image") == wanted, f"reports {wanted}")


def test_registries_change_their_image_one_after_the_other(make_cluster, make_operator, make_namespace):
    cluster = make_cluster()
    namespace = make_namespace("registries", kube=cluster.kube)
    operator = make_operator(cluster)
    names = ["alpha", "beta", "own"]
    for name in names:
        declare(namespace, name, **({"image": IMAGE} if name == "own" else {}))
        settle(namespace, name)
        runs(namespace, name, IMAGE)
        serves(namespace, name)
        namespace.waiting("Registry", name, "RegistryUnavailable")
        assert migrating(namespace, name) is None
    operator.stop()

    newer = make_operator(cluster, image=NEW)
    runs(namespace, "alpha", NEW)
    changing = ("True", "ImageChanging", f"the pods change to image {NEW}")
    namespace.until("Registry", "alpha", lambda _: migrating(namespace, "alpha") == changing, "changes")
    waits = ("False", "WaitingForTurn", f"the pods change from image {IMAGE} to {NEW} after those of Registry alpha")
    namespace.until("Registry", "beta", lambda _: migrating(namespace, "beta") == waits, "waits")
    # A change of its spec is applied meanwhile, with the image that it has.
    declare(namespace, "beta", publicUrl="https://beta.example.com")
    namespace.until("Registry", "beta", lambda it: it["status"]["endpoint"] == "https://beta.example.com")
    assert image(namespace, "beta") == IMAGE

    # The new image fails, and the operator is rolled back: only one registry had it.
    newer.stop()
    again = make_operator(cluster)
    runs(namespace, "alpha", IMAGE)
    serves(namespace, "alpha")
    for name in names:
        namespace.until("Registry", name, lambda _: migrating(namespace, name) is None, "nothing changes")  # noqa: B023
    again.stop()

    # It is mended. Each registry changes when the one before serves.
    make_operator(cluster, image=NEW)
    runs(namespace, "alpha", NEW)
    namespace.until("Registry", "beta", lambda _: migrating(namespace, "beta") == waits, "waits")
    serves(namespace, "alpha")
    runs(namespace, "beta", NEW)
    serves(namespace, "beta")
    for name in names:
        namespace.until("Registry", name, lambda _: migrating(namespace, name) is None, "has changed")  # noqa: B023
    assert image(namespace, "own") == IMAGE


def test_an_image_of_the_spec_is_run_at_once(make_cluster, make_operator, make_namespace):
    cluster = make_cluster()
    namespace = make_namespace("registries", kube=cluster.kube)
    make_operator(cluster, values=EVERYWHERE)
    declare(namespace, "home")
    settle(namespace, "home")
    declare(namespace, "home", image=NEW)
    runs(namespace, "home", NEW)


def test_replicas_that_nobody_declares_are_the_autoscalers(make_cluster, make_operator, make_namespace):
    cluster = make_cluster()
    namespace = make_namespace("registries", kube=cluster.kube)
    make_operator(cluster)
    namespace.secret("pg", uri="postgres://u:first@db/w")
    namespace.secret("s3", AWS_ACCESS_KEY_ID="AKIABUCKET", AWS_SECRET_ACCESS_KEY="wonderland")
    declare(namespace, "home", **shared(namespace))
    settle(namespace, "home")
    # As an autoscaler does it.
    namespace.patch("Deployment", "home", {"spec": {"replicas": 4}}, subresource="scale")
    declare(namespace, "home", **shared(namespace, publicUrl="https://home.example.com"))
    namespace.until("Registry", "home", lambda it: it["status"]["endpoint"] == "https://home.example.com")
    assert namespace.get("Deployment", "home")["spec"]["replicas"] == 4
    namespace.waiting("Registry", "home", "Progressing", "0 of 4 replicas serve")
    # The Registry has a scale, too.
    declare(namespace, "home", **shared(namespace, replicas=2))
    namespace.until("Deployment", "home", lambda it: it["spec"]["replicas"] == 2)
    cluster.kube.kubectl("scale", "registries.wharfage.dev/home", "--replicas=3")
    namespace.until("Deployment", "home", lambda it: it["spec"]["replicas"] == 3)
    selector = namespace.get("Registry", "home")["status"]["selector"]
    assert "wharfage.dev/registry=home" in selector.split(",")
