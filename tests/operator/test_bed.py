"""The test bed itself: it behaves as the other tests assume."""

import pytest
import trustme
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, ReadTimeoutError
from kubernetes.dynamic.exceptions import ForbiddenError

import images
from kube import Kube


def test_a_registry_comes_back_on_its_port_with_its_data(registry):
    registry.ecr.create_repository(repositoryName="team/app", tags=[{"Key": "a", "Value": "b"}])
    images.push(registry.ecr, "team/app", images.image("hello"), "v1")
    for again in (registry.restart, lambda: (registry.kill(), registry.start())):
        again()
        assert registry.names() == {"team/app"}
        assert registry.repository("team/app")["tags"] == {"a": "b"}
        assert registry.repository("team/other") is None
    registry.stop()
    with pytest.raises(EndpointConnectionError):
        registry.names()


def test_a_frozen_registry_takes_requests_and_answers_them_later(registry):
    registry.freeze()
    with pytest.raises(ReadTimeoutError):
        registry.client(read_timeout=1).describe_repositories()
    registry.thaw()
    assert registry.names() == set()


def test_a_registry_can_speak_tls(make_registry):
    assert make_registry(tls=trustme.CA()).names() == set()


def test_a_front_passes_on_counts_and_fails_as_configured(registry, front):
    through = front.client()
    through.create_repository(repositoryName="team/app")
    assert registry.names() == {"team/app"}
    front.throttle("DescribeRepositories", times=1)
    with pytest.raises(ClientError, match="ThrottlingException"):
        through.describe_repositories()
    assert len(through.describe_repositories()["repositories"]) == 1
    front.fail(status=500, body="<html>")
    with pytest.raises(ClientError):
        through.describe_repositories()
    front.heal()
    through.describe_repositories()
    front.lose("CreateRepository", times=1)
    with pytest.raises(ConnectionClosedError):
        through.create_repository(repositoryName="team/lost")
    assert registry.names() == {"team/app", "team/lost"}
    assert front.counted() == {"CreateRepository": 2, "DescribeRepositories": 4}


def test_moto_stands_in_for_amazon(moto):
    moto.ecr.create_repository(repositoryName="team/app")
    assert moto.names() == {"team/app"}
    moto.reset()
    assert moto.names() == set()


def test_an_api_server_comes_back_with_its_objects(make_cluster):
    cluster = make_cluster()
    cluster.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"a": "b"}})
    cluster.restart()
    assert cluster.kube.get("ConfigMap", "kept", "default")["data"] == {"a": "b"}


def test_clusters_know_nothing_of_each_other(cluster, make_cluster, make_namespace):
    other = make_cluster()
    namespace = make_namespace()
    assert other.kube.find("Namespace", namespace.name) is None


def test_who_logs_in_may_do_what_he_is_permitted(make_cluster):
    cluster, namespace = make_cluster(), "default"
    offset = cluster.audit_offset()
    someone = Kube(cluster.login(namespace, "someone"))
    with pytest.raises(ForbiddenError):
        someone.list("Secret", namespace)
    asked = [one for one in cluster.audit(offset) if one.get("objectRef", {}).get("resource") == "secrets"]
    recorded = [(one["verb"], one["user"]["username"], one["responseStatus"]["code"]) for one in asked]
    assert recorded == [("list", f"system:serviceaccount:{namespace}:someone", 403)]


def test_what_a_test_made_goes_with_its_namespace(cluster, make_namespace, registry):
    namespace = make_namespace()
    name = namespace.declare(registry)
    namespace.apply(
        {
            "apiVersion": "wharfage.dev/v1alpha1",
            "kind": "Repository",
            "metadata": {"name": "api", "finalizers": ["example.com/never"]},
            "spec": {"registryRef": {"name": name}},
        }
    )
    namespace.end()
    assert cluster.kube.find("Registry", name) is None
    assert namespace.find("Repository", "api") is None
    assert cluster.kube.get("Namespace", namespace.name)["metadata"]["deletionTimestamp"]
