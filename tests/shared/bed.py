"""A Kubernetes API server with its etcd, and who logs in to it."""

import base64
import json
import pathlib
import ssl
import uuid

import trustme
import yaml

from backends import free_port, tool
from kube import Kube
from processes import Process, answers

# Nothing may be left out: a test tells the operator's requests by verb and resource.
AUDIT_POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}

# The address of the API server's own Service, the first of the range.
SERVICE = "10.0.0.1"

# Without nodes nobody makes the service accounts that Pods are admitted with, and nobody asks for that Service.
NODELESS = ["--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"]


class Etcd:
    """One etcd, for any number of API servers."""

    def __init__(self, folder):
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [
            tool("WHARFAGE_TEST_ETCD"), "--data-dir", folder / "etcd", "--unsafe-no-fsync", "--log-level=warn",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url, "--listen-peer-urls=http://127.0.0.1:0",
        ]  # fmt: skip
        self.process = Process("etcd", command, folder / "etcd.log")
        self.process.launch()
        self.process.wait_until(lambda: answers(f"{self.url}/health"))

    def end(self):
        self.process.end()


class Cluster:
    """A Kubernetes API server as its administrator sees it: `kube`; `api` is its process."""

    def __init__(self, folder, etcd, address="127.0.0.1"):
        """With an address that Pods can reach, it is made for nodes: it admits Pods as any cluster does, and is their
        Service `kubernetes`."""
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.server = f"https://{address}:{port}"
        authority = trustme.CA()
        self._authority = authority.cert_pem.bytes()
        own = self._write("api", authority.issue_cert(address, SERVICE))
        self._admin = self._write("admin", authority.issue_cert("admin", organization_name="system:masters", common_name="admin"))
        authority.cert_pem.write_to_path(self.folder / "ca.crt")
        (self.folder / "audit.yaml").write_text(json.dumps(AUDIT_POLICY))
        command = [
            tool("WHARFAGE_TEST_KUBE_APISERVER"),
            f"--etcd-servers={etcd.url}", f"--etcd-prefix=/{uuid.uuid4().hex}",
            f"--bind-address={address}", f"--advertise-address={address}", f"--secure-port={port}",
            f"--tls-cert-file={own[0]}", f"--tls-private-key-file={own[1]}", f"--client-ca-file={self.folder / 'ca.crt'}",
            f"--cert-dir={self.folder}", f"--service-account-issuer={self.server}",
            f"--service-account-key-file={own[1]}", f"--service-account-signing-key-file={own[1]}",
            "--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC", "--allow-privileged=true",
            "--profiling=false", *(NODELESS if address == "127.0.0.1" else []),
            f"--audit-policy-file={self.folder / 'audit.yaml'}", f"--audit-log-path={self.folder / 'audit.log'}",
        ]  # fmt: skip
        self.api = Process("kube-apiserver", command, self.folder / "kube-apiserver.log")
        self.start()
        self.kube = Kube(self.kubeconfig(self._admin))

    def start(self):
        """Starts the API server, or starts it again, and waits until it is ready."""
        self.api.launch()
        context = ssl.create_default_context(cadata=self._authority.decode())
        context.load_cert_chain(*self._admin)
        self.api.wait_until(lambda: answers(f"{self.server}/readyz", context))

    def stop(self):
        """Stops the API server; its data is kept."""
        self.api.stop()

    def restart(self):
        self.stop()
        self.start()

    def end(self):
        self.api.end()

    def finish(self, namespace):
        """Ends a namespace that was deleted, as a controller manager would."""
        done = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}, "spec": {"finalizers": []}}
        self.kube.kubectl("replace", "--raw", f"/api/v1/namespaces/{namespace}/finalize", "-f", "-", stdin=json.dumps(done))

    def login(self, namespace, service_account):
        """The kubeconfig of a service account, made if there is none: a Kube of it, or the operator's."""
        return login(self.kube, namespace, service_account, self.server, self._authority, self.folder)

    def audit_offset(self):
        """Where the audit log ends now."""
        return len(self._audited())

    def audit(self, offset=0):
        """The requests to the API server since then: audit events, mainly `verb`, `user` and `objectRef`."""
        return [json.loads(line) for line in self._audited()[offset:].splitlines()]

    def _audited(self):
        """The audit log's whole lines: one may be half written. A request's comes just after its answer."""
        written = (self.folder / "audit.log").read_bytes()
        return written[: written.rfind(b"\n") + 1]

    def kubeconfig(self, certificate):
        """Writes the kubeconfig of a client certificate."""
        chain, key = (encoded(path.read_bytes()) for path in certificate)
        user = {"client-certificate-data": chain, "client-key-data": key}
        return write_kubeconfig(certificate[0].with_suffix(".kubeconfig"), self.server, self._authority, user)

    def _write(self, name, certificate):
        chain, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        key.write_bytes(certificate.private_key_pem.bytes())
        return chain, key


class Remembering(Kube):
    """Records its cluster-scoped objects."""

    def __init__(self, kubeconfig):
        super().__init__(kubeconfig)
        self.made = []

    def _apply(self, manifest, *how):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if not self.resource(kind, manifest["apiVersion"]).namespaced and self.find(kind, name) is None:
            self.made.append((kind, name))
        return super()._apply(manifest, *how)


class ExistingCluster:
    """The cluster of WHARFAGE_TEST_KUBECONFIG. Tests that stop an API server or read its audit log take one of their own by
    `make_cluster`."""

    def __init__(self, folder, kubeconfig):
        self.folder = pathlib.Path(folder)
        own = self.folder / "admin.kubeconfig"
        own.touch(0o600)
        own.write_text(Kube(pathlib.Path(kubeconfig)).kubectl("config", "view", "--raw", "--flatten", "--minify", "--output=json"))
        self.kube = Remembering(own)
        raw = json.loads(own.read_text())
        cluster = raw["clusters"][0]["cluster"]
        self.server = cluster["server"]
        self._authority = base64.b64decode(cluster["certificate-authority-data"])

    def login(self, namespace, service_account):
        return login(self.kube, namespace, service_account, self.server, self._authority, self.folder)

    def finish(self, namespace):
        """Its controller manager does."""

    def end(self):
        """It keeps running, without the objects of the tests. The kinds were created first, and are deleted last."""
        for kind, name in reversed(self.kube.made):
            self.kube.delete(kind, name)


def login(kube, namespace, service_account, server, authority, folder):
    kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": service_account, "namespace": namespace}})
    token = kube.kubectl("create", "token", service_account, "--namespace", namespace, "--duration=24h").strip()
    path = folder / f"{namespace}.{service_account}.kubeconfig"
    return write_kubeconfig(path, server, authority, {"token": token}, namespace)


def write_kubeconfig(path, server, authority, user, namespace="default"):
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {"server": server, "certificate-authority-data": encoded(authority)}}],
        "users": [{"name": "bed", "user": user}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "bed", "namespace": namespace}}],
        "current-context": "bed",
    }
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path


def encoded(content):
    return base64.b64encode(content).decode()
