"""The image as a registry of somebody's own manifests, without an operator: by name, over TLS, on a read-only root."""

import json
import pathlib

import pytest
import trustme

from busybox import busybox
from clients import REGION, Registry, let_nodes_pull, pull_secret
from conftest import BEFORE, pod

ACCESS_KEY = {"access_key_id": "AKIANODENODENODENODE", "secret_access_key": "a-secret-that-only-this-test-knows"}
NAME = "registry.example.com"


@pytest.fixture
def registry(namespace, tmp_path):
    """`wharfage serve` in a Pod, as Service `registry`, with a certificate for its names."""
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "registry"},
            "spec": {"selector": {"app": "registry"}, "ports": [{"port": 443, "targetPort": 5000}]},
        }
    )
    address = namespace.get("Service", "registry")["spec"]["clusterIP"]
    authority = trustme.CA()
    certificate = authority.issue_cert(NAME, f"registry.{namespace}.svc", address)
    namespace.secret("tls", crt=certificate.cert_chain_pems[0].bytes().decode(), key=certificate.private_key_pem.bytes().decode())
    namespace.secret("root-key", **ACCESS_KEY)
    key = [{"name": f"WHARFAGE_{name.upper()}", "valueFrom": {"secretKeyRef": {"name": "root-key", "key": name}}} for name in ACCESS_KEY]
    namespace.apply(
        pod(
            "registry", BEFORE, labels={"app": "registry"}, env=key,
            args=[
                "serve", "--listen=0.0.0.0:5000", "--admin-listen=0.0.0.0:8081", f"--region={REGION}",
                f"--public-url=https://{NAME}", "--tls-cert=/tls/crt", "--tls-key=/tls/key",
            ],
            readinessProbe={"httpGet": {"path": "/readyz", "port": 8081}, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 60},
            mounts={"/tls": {"secret": {"secretName": "tls"}}, "/var/lib/wharfage": {"emptyDir": {}}},
        )
    )  # fmt: skip
    namespace.until("Pod", "registry", ready, "ready")
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.cert_pem.bytes())
    registry = Registry(f"https://{address}", **ACCESS_KEY, ca=str(ca))
    registry.wait()
    return registry


def ready(one):
    conditions = (one or {}).get("status", {}).get("conditions", [])
    return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)


def test_it_resolves_a_cluster_name_and_trusts_the_bundle_that_is_mounted(namespace, registry):
    manifests = [
        {
            "apiVersion": "wharfage.dev/v1alpha1",
            "kind": "Registry",
            "metadata": {"name": "home"},
            "spec": {"region": REGION, "endpoint": {"url": f"https://registry.{namespace}.svc"}},
        },
        {
            "apiVersion": "wharfage.dev/v1alpha1",
            "kind": "Repository",
            "metadata": {"name": "app", "namespace": "team"},
            "spec": {"registryRef": {"name": "home"}, "repositoryName": "team/app"},
        },
    ]
    namespace.secret("ca", **{"ca-certificates.crt": pathlib.Path(registry.ca).read_text()})
    namespace.secret("manifests", **{f"{index}.yaml": json.dumps(one) for index, one in enumerate(manifests)})
    key = {"AWS_ACCESS_KEY_ID": registry.access_key_id, "AWS_SECRET_ACCESS_KEY": registry.secret_access_key}
    applying = pod(
        "apply", BEFORE, args=["apply", "--yes", "-f", "/manifests", "--data", "/tmp"],
        env=[{"name": name, "value": value} for name, value in key.items()],
        mounts={"/manifests": {"secret": {"secretName": "manifests"}}, "/etc/ssl/certs": {"secret": {"secretName": "ca"}}, "/tmp": {"emptyDir": {}}},
    )  # fmt: skip
    applying["spec"]["restartPolicy"] = "Never"
    namespace.apply(applying)
    ended = namespace.until("Pod", "apply", lambda one: one["status"].get("phase") in ("Succeeded", "Failed"), "ended")
    assert ended["status"]["phase"] == "Succeeded", namespace.kubectl("logs", "apply")
    (made,) = registry.ecr().describe_repositories()["repositories"]
    assert made["repositoryName"] == "team/app"
    assert made["repositoryUri"] == f"{NAME}/team/app"


def test_nodes_pull_from_it_by_a_name_that_only_they_know(namespace, registry, tmp_path):
    registry.ecr().create_repository(repositoryName="team/app")
    digest = registry.push(busybox("from a registry by hand"), "team/app", "v1", tmp_path)
    let_nodes_pull(NAME, registry.url, pathlib.Path(registry.ca).read_text())
    namespace.apply(pull_secret("pull", registry.docker_config(NAME)))
    pulling = pod("app", f"{NAME}/team/app:v1")
    pulling["spec"]["imagePullSecrets"] = [{"name": "pull"}]
    namespace.apply(pulling)
    running = namespace.until("Pod", "app", ready, "ready")
    (container,) = running["status"]["containerStatuses"]
    assert container["imageID"] == f"{NAME}/team/app@{digest}"
    assert namespace.kubectl("exec", "app", "--", "cat", "/word") == "from a registry by hand"
