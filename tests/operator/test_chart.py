"""The Helm chart: an API server accepts the rendered objects; refused values; kept objects."""

import json
import os
import re
import shutil
import subprocess
import time
import uuid

import promql_parser
import pytest
import yaml

from backends import TIMEOUT, tool
from bed import Cluster
from charts import (
    CHART,
    ROOT,
    Helm,
    cluster_with_kinds_of_others,
    documents,
    dry_run,
    leaves,
    only,
    operator_container,
)
from kube import API_VERSION, Kube
from operators import in_force

IMAGE = {"image": {"repository": "registry.example.com/wharfage"}}
DIGEST = "sha256:" + "0123456789abcdef" * 4

# Every switch of values.yaml is here once the other way round; all else that can be set is set.
SWITCHES = {
    "defaults": {},
    "all on": {
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "1m"},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "alertLabels": {"team": "platform"}},
            "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Platform"}},
        },
        "networkPolicy": {"enabled": True},
        "quickstart": {"enabled": True, "repositories": ["hello", "team/app_1"]},
    },
    "all off": {
        "crds": {"install": False, "keep": False},
        "leaderElection": {"enabled": False},
        "replicas": 1,
        "features": {"managedRegistries": False, "pullSecrets": False, "inUseProtection": False},
        "serviceAccount": {"create": False, "name": "default"},
        "rbac": {"create": False, "aggregateToUserRoles": False},
        "podDisruptionBudget": {"enabled": False},
        "metrics": {"service": {"enabled": False}},
    },
    "kinds that go with the release": {"crds": {"keep": False}},
    "a PodMonitor": {
        "metrics": {
            "podMonitor": {
                "enabled": True,
                "labels": {"release": "prometheus"},
                "interval": "15s",
                "metricRelabelings": [{"action": "labeldrop", "regex": "pod"}],
            }
        }
    },
    "Secrets of some namespaces": {
        "rbac": {"secretNamespaces": ["default", "kube-public"]},
        "features": {"pullSecrets": False},
    },
    "registries in some namespaces": {"rbac": {"managedNamespaces": ["default", "kube-public"]}},
    "registries anywhere": {"rbac": {"managedNamespaces": ["*"]}},
    "roles that people don't get": {"rbac": {"aggregateToUserRoles": False}},
    "names and labels": {
        "nameOverride": "registries",
        "fullnameOverride": "the-registries",
        "commonLabels": {"team": "platform"},
        "podLabels": {"mesh": "off"},
        "podAnnotations": {"example.com/note": "{{ not a template }}"},
        "annotations": {"example.com/note": "deployment"},
    },
    "placement": {
        "replicas": 3,
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "wharfage"}}}
                ]
            }
        },
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "terminationGracePeriodSeconds": 5,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi", "cpu": 1}},
    },
    "an image by digest": {
        "image": {"repository": "localhost:5000/a/wharfage", "tag": "v1", "digest": DIGEST, "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "registryImage": f"registry.example.com/wharfage@{DIGEST}",
    },
    "an operator of one's own": {
        "cluster": "prod-eu",
        "adminPort": 9000,
        "log": {"filter": "wharfage=debug,warn", "format": "text"},
        "leaderElection": {"leaseName": "mine"},
        "serviceAccount": {"name": "wharfage", "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/ecr"}},
        "extraArgs": ["--log=debug"],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraEnvFrom": [{"configMapRef": {"name": "proxy"}}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/certs", "readOnly": True}],
        "podSecurityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    },
    "a narrow network": {
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "egress": [{"ports": [{"port": 443}]}, {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]}],
        },
        "metrics": {
            "service": {"annotations": {"prometheus.io/scrape": "true"}},
            "serviceMonitor": {"enabled": True, "metricRelabelings": [{"action": "labeldrop", "regex": "pod"}]},
            "prometheusRule": {"enabled": True, "disabled": ["WharfageDriftRepeats"]},
        },
    },
    "a quickstart of one's own": {
        "quickstart": {
            "enabled": True,
            "registryName": "ecr",
            "registry": {"region": "eu-central-1", "aws": {}},
            "repositories": [],
        }
    },
}


@pytest.fixture(scope="module")
def helm(tmp_path_factory):
    return Helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture
def make_bare_cluster(tmp_path, etcd):
    """Clusters that don't have our kinds yet."""
    made = []

    def make():
        made.append(Cluster(tmp_path / f"cluster-{len(made)}", etcd))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


@pytest.fixture(scope="module")
def chart_cluster(tmp_path_factory, etcd):
    """A cluster with our kinds and those of others, and the namespace `wharfage` under the restricted Pod security standard."""
    with cluster_with_kinds_of_others(tmp_path_factory.mktemp("chart-cluster"), etcd) as cluster:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        cluster.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "wharfage", "labels": labels}})
        yield cluster


# Rendering


def test_lint_has_nothing_to_say(helm):
    output = helm("lint", "--strict", CHART)
    assert "[WARNING]" not in output and "[ERROR]" not in output
    helm("lint", "--strict", CHART, values=IMAGE | SWITCHES["all on"])


@pytest.mark.parametrize("values", SWITCHES.values(), ids=SWITCHES)
def test_what_it_renders_is_what_the_api_server_takes(helm, chart_cluster, values):
    text = helm.template(values)
    taken = dry_run(chart_cluster.kube, text)
    assert len(taken.splitlines()) == len(documents(text))


def test_every_value_is_in_the_table_and_every_switch_both_ways():
    """A value that nobody tries may break unseen."""
    defaults = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    tried = [leaf for values in SWITCHES.values() for leaf in leaves(values)]
    for path, default in defaults.items():
        others = [value for there, value in tried if there[: len(path)] == path or path[: len(there)] == there]
        # Values of Kubernetes types are set as a whole.
        if isinstance(default, bool) and "ecurityContext" not in path[0]:
            assert (not default) in others, f"{'.'.join(path)} is never {not default}"
        else:
            assert others, f"{'.'.join(path)} is never set"


def test_versions_are_the_programs():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert (chart["version"], chart["appVersion"]) == (version, version)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, "r.example.com/w:0.1.0"),
        ({"tag": "v2"}, "r.example.com/w:v2"),
        ({"digest": DIGEST}, f"r.example.com/w@{DIGEST}"),
        ({"tag": "v2", "digest": DIGEST}, f"r.example.com/w:v2@{DIGEST}"),
    ],
)
def test_the_image_is_named_by_tag_or_digest(helm, image, expected):
    container, variables = operator_container(helm.objects({"image": {"repository": "r.example.com/w"} | image}))
    assert container["image"] == variables["WHARFAGE_REGISTRY_IMAGE"] == expected


def test_pods_are_admitted_under_the_restricted_standard(helm, chart_cluster):
    objects = helm.objects({})
    template = only(objects, "Deployment")["spec"]["template"]
    operator = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator", "namespace": "wharfage"}, "spec": template["spec"]}
    for pod in (operator, only(objects, "Pod")):
        dry_run(chart_cluster.kube, yaml.safe_dump(pod))
    container = template["spec"]["containers"][0]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_nothing_but_a_secret_free_pod_specification_is_rendered(helm):
    kinds = {one["kind"] for values in SWITCHES.values() for one in helm.objects(values)}
    assert "Secret" not in kinds


# Refused values


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicaCount": 3}, "replicaCount"),
        ({"image": {"registry": "x"}}, "registry"),
        ({"image": {"repository": "registry.example.com/w:v1"}}, "/image/repository"),
        ({"image": {"digest": "sha256:12"}}, "/image/digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
        ({"crds": {"keep": "yes"}}, "/crds/keep"),
        ({"cluster": "Prod EU"}, "/cluster"),
        ({"cluster": ""}, "/cluster"),
        ({"replicas": -1}, "/replicas"),
        ({"log": {"format": "xml"}}, "/log/format"),
        ({"adminPort": 80}, "/adminPort"),
        ({"features": {"teleport": True}}, "teleport"),
        ({"rbac": {"secretNamespaces": ["A b"]}}, "/rbac/secretNamespaces/0"),
        ({"resources": {"limit": {"memory": "1Gi"}}}, "limit"),
        ({"resources": {"limits": {"memory": "lots"}}}, "/resources/limits/memory"),
        ({"tolerations": [{"keys": "x"}]}, "keys"),
        ({"extraEnv": [{"value": "x"}]}, "name"),
        ({"podDisruptionBudget": {"maxUnavailable": "half"}}, "/podDisruptionBudget/maxUnavailable"),
        ({"metrics": {"serviceMonitor": {"interval": "often"}}}, "/metrics/serviceMonitor/interval"),
        ({"metrics": {"prometheusRule": {"disabled": ["Other"]}}}, "/metrics/prometheusRule/disabled/0"),
        ({"quickstart": {"repositories": ["Hello World"]}}, "/quickstart/repositories/0"),
        ({"image": {"repository": ""}}, "set image.repository"),
        ({"leaderElection": {"enabled": False}}, "leaderElection.enabled"),
        ({"rbac": {"secretNamespaces": ["a"]}}, "features.pullSecrets"),
        ({"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}}, "either serviceMonitor or podMonitor"),
        ({"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}}, "metrics.service.enabled"),
        ({"metrics": {"prometheusRule": {"enabled": True, "disabled": ["WharfageNoSuchAlert"]}}}, "WharfageNoSuchAlert"),
    ],
)
def test_a_bad_value_is_refused_by_name(helm, values, named):
    refused = helm.template(values, check=False)
    assert refused.returncode != 0
    assert named in refused.stderr


def test_the_schema_knows_exactly_the_values_that_there_are():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def paths(schema, path=()):
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        if "properties" not in schema:
            return {path}
        assert schema["additionalProperties"] is False, path
        return {leaf for key, inner in schema["properties"].items() for leaf in paths(inner, (*path, key))}

    definitions = schema["definitions"]
    known = paths(schema) - {("global",)}
    there = {path for path, _ in leaves(yaml.safe_load((CHART / "values.yaml").read_text()))}

    def without_counterpart(some, others):
        # An object that may hold anything, or nothing, is a leaf on one side only.
        return {one for one in some if not any(one[: len(other)] == other or other[: len(one)] == one for other in others)}

    assert without_counterpart(there, known) == set()
    assert without_counterpart(known, there) == set()


# What follows from something else


def test_generated_files_are_current():
    environment = os.environ | {"WHARFAGE_TEST_BINARY": tool("WHARFAGE_TEST_BINARY")}
    compared = subprocess.run([ROOT / "deploy/generate", "--check"], check=False, env=environment, capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout + compared.stderr


def test_the_readme_describes_every_value():
    rows = re.findall(r"(?m)^\| (\S+) \| \w+ \| `(?:.+?)` \| (.+) \|$", (CHART / "README.md").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, _ in leaves(values):
        assert any(".".join(path[:length]) in dict(rows) for length in range(1, len(path) + 1)), f"README.md does not list {'.'.join(path)}"


# Permissions


def rules(objects, *kinds):
    """Every permission of roles: (namespace or None, group, resource, verb)."""
    found = set()
    for role in objects:
        if role["kind"] in kinds:
            for rule in role["rules"]:
                for group in rule["apiGroups"]:
                    pairs = ((resource, verb) for resource in rule["resources"] for verb in rule["verbs"])
                    found |= {(role["metadata"].get("namespace"), group, *pair) for pair in pairs}
    return found


def operators_roles(helm, values):
    return helm.objects(values, "--show-only", "templates/rbac.yaml")


def access(features=("Core", "ManagedRegistries", "PullSecrets", "InUseProtection")):
    """The operator's own RBAC rules, in the form of `rules`."""
    printed = subprocess.run([tool("WHARFAGE_TEST_BINARY"), "rbac"], check=True, capture_output=True, text=True).stdout
    wanted = [rule for rule in yaml.safe_load(printed) if rule["feature"] in features]
    return {
        (None if rule["scope"] == "Cluster" else "wharfage", rule["group"], resource, verb)
        for rule in wanted
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_operators_roles_are_what_the_code_says_it_does(helm):
    assert rules(operators_roles(helm, {}), "ClusterRole", "Role") == access()


@pytest.mark.parametrize(
    ("switch", "feature"),
    [("managedRegistries", "ManagedRegistries"), ("pullSecrets", "PullSecrets"), ("inUseProtection", "InUseProtection")],
)
def test_a_feature_that_is_off_takes_its_permissions_with_it(helm, switch, feature):
    others = {"Core", "ManagedRegistries", "PullSecrets", "InUseProtection"} - {feature}
    without = rules(operators_roles(helm, {"features": {switch: False}}), "ClusterRole", "Role")
    assert without == access(others)
    assert without < access()


def test_registries_run_in_the_given_namespaces_only(helm):
    def namespaces(managed, resource):
        roles = operators_roles(helm, {"rbac": {"managedNamespaces": managed}})
        return {namespace for namespace, _, found, _ in rules(roles, "ClusterRole", "Role") if found == resource}

    assert namespaces([], "persistentvolumeclaims") == {"wharfage"}
    assert namespaces(["a", "b"], "persistentvolumeclaims") == {"a", "b", "wharfage"}
    assert namespaces(["*"], "persistentvolumeclaims") == {None}
    assert namespaces(["a"], "registries/finalizers") == {None}


def test_secrets_are_reached_in_the_given_namespaces_only(helm):
    values = {"rbac": {"secretNamespaces": ["a", "b"]}, "features": {"pullSecrets": False}}
    permitted = rules(operators_roles(helm, values), "ClusterRole", "Role")
    assert {namespace for namespace, _, resource, _ in permitted if resource == "secrets"} == {"a", "b", "wharfage"}
    everywhere = access({"Core", "ManagedRegistries", "InUseProtection"})
    assert {one for one in permitted if one[2] != "secrets"} == {one for one in everywhere if one[2] != "secrets"}


def test_people_read_everything_and_write_what_is_in_their_namespace(helm, chart_cluster):
    kubectl = chart_cluster.kube.kubectl
    roles = helm.template({}, "--show-only", "templates/user-roles.yaml")
    kubectl("apply", "--server-side", "-f", "-", stdin=roles)
    names = {one["metadata"]["name"].removeprefix("wharfage-") for one in documents(roles)}
    assert names == {"view", "edit", "admin", "registries"}
    for name in names:
        binding = ["--clusterrole", f"wharfage-{name}", "--user", name]
        kubectl("create", "clusterrolebinding" if name == "registries" else "rolebinding", name, *binding)

    def can(user, verb, resource):
        asked = kubectl("auth", "can-i", verb, f"{resource}.wharfage.dev", "--as", user, check=False)
        return asked.stdout.strip() == "yes"

    # An API server heeds a binding a moment after it was made.
    for name, resource in (("view", "repositories"), ("edit", "repositories"), ("admin", "repositories"), ("registries", "registries")):
        chart_cluster.kube.until("ClusterRole", f"wharfage-{name}", lambda _: can(name, "list", resource), expected="in force")  # noqa: B023
    assert can("view", "list", "repositories") and not can("view", "create", "repositories")
    assert can("edit", "create", "repositories") and can("edit", "delete", "lifecyclepolicies")
    assert not can("edit", "create", "registries") and not can("admin", "create", "registries")
    assert can("admin", "create", "repositories")
    assert can("registries", "create", "registries")
    labels = {one["metadata"]["name"]: one["metadata"]["labels"] for one in documents(roles)}
    for name in ("view", "edit", "admin"):
        assert labels[f"wharfage-{name}"][f"rbac.authorization.k8s.io/aggregate-to-{name}"] == "true"


# Releases


def registry_named(name, **spec):
    return {"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": name}, "spec": {"managed": {}} | spec}


def version_before(folder):
    """The chart as a version before this one, whose Registry doesn't know `accountSettings`."""
    chart = shutil.copytree(CHART, folder / "before")
    path = chart / "Chart.yaml"
    path.write_text(re.sub(r"(?m)^(version|appVersion): .+$", r"\1: 0.0.9", path.read_text()))
    path = chart / "files/crds/wharfage.dev_registries.yaml"
    crd = yaml.safe_load(path.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["accountSettings"]
    path.write_text(yaml.safe_dump(crd))
    return chart


def wait_for_field(kube, manifest):
    """An API server takes a moment until it uses a changed CRD."""
    deadline = time.monotonic() + TIMEOUT
    dry = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"]
    while (tried := kube.kubectl(*dry, stdin=json.dumps(manifest), check=False)).returncode:
        assert time.monotonic() < deadline, tried.stderr
        time.sleep(0.1)


def test_install_upgrade_and_uninstall_keep_the_kinds_and_everything_of_them(make_bare_cluster, tmp_path):
    kube = make_bare_cluster().kube
    helm = Helm(tmp_path, kube)
    release = ["wharfage", "--namespace", "wharfage", "--create-namespace"]
    helm("install", *release[:1], version_before(tmp_path), *release[1:], values=IMAGE)
    kube.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    kube.apply(registry_named("older"))
    newer = registry_named("newer", accountSettings={"BLOB_MOUNTING": "ENABLED"})
    refused = kube.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=json.dumps(newer), check=False)
    assert "accountSettings" in refused.stderr

    helm("upgrade", *release[:1], CHART, *release[1:], values=IMAGE)
    wait_for_field(kube, newer)
    kube.apply(newer)
    assert kube.get("Registry", "newer")["spec"]["accountSettings"] == {"BLOB_MOUNTING": "ENABLED"}
    older = kube.get("Registry", "older")
    container, _ = operator_container([kube.get("Deployment", "wharfage", "wharfage")])
    assert container["image"] == "registry.example.com/wharfage:0.1.0"

    helm("uninstall", "wharfage", "--namespace", "wharfage")
    assert kube.find("Deployment", "wharfage", "wharfage") is None
    assert kube.get("Registry", "older") == older
    assert kube.find("Registry", "newer") is not None

    # A new release adopts the kept objects, and deletes them only on request.
    helm("install", *release[:1], CHART, *release[1:], values=IMAGE | {"crds": {"keep": False}})
    assert kube.get("Registry", "older") == older
    helm("uninstall", "wharfage", "--namespace", "wharfage")
    # The API server deletes the objects of a deleted kind first, and then the kind.
    kube.kubectl("wait", "--for=delete", "--timeout=60s", "crd/registries.wharfage.dev")
    gone = kube.kubectl("get", "registry", "older", check=False)
    assert gone.returncode != 0


def test_a_quickstart_is_made_once_and_nobodys_but_its_owners_from_then_on(make_bare_cluster, tmp_path):
    kube = make_bare_cluster().kube
    helm = Helm(tmp_path, kube)
    release = ["wharfage", CHART, "--namespace", "wharfage", "--create-namespace"]
    values = IMAGE | {"quickstart": {"enabled": True}}
    # Together with the kinds it needs --wait, which waits for the Pods as well; there is no node here.
    helm("install", *release, values=IMAGE)
    kube.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    wait_for_field(kube, registry_named("home"))
    wait_for_field(
        kube,
        {
            "apiVersion": API_VERSION,
            "kind": "Repository",
            "metadata": {"name": "hello", "namespace": "default"},
            "spec": {"registryRef": {"name": "home"}},
        },
    )
    helm("upgrade", *release, values=values)
    made = kube.get("Registry", "home")
    assert made["spec"] == {"managed": {}}
    assert kube.get("Repository", "hello", "wharfage")["spec"]["registryRef"] == {"name": "home"}
    kube.patch("Registry", "home", {"spec": {"accountSettings": {"BLOB_MOUNTING": "ENABLED"}}})
    helm("upgrade", *release, values=values | {"quickstart": {"enabled": True, "repositories": ["hello", "bye"]}})
    after = kube.get("Registry", "home")
    assert after["metadata"]["uid"] == made["metadata"]["uid"]
    assert after["spec"]["accountSettings"] == {"BLOB_MOUNTING": "ENABLED"}
    assert kube.find("Repository", "bye", "wharfage") is not None
    helm("uninstall", "wharfage", "--namespace", "wharfage")
    assert kube.get("Registry", "home")["metadata"]["uid"] == made["metadata"]["uid"]


# `helm test`: what its Pod runs, as a process with the same identity.


@pytest.fixture
def checked(chart_cluster, helm):
    """Runs `wharfage check` with the permissions of the chart's roles, and whatever the test makes of them."""

    def check(values, namespace="wharfage", change=lambda roles: roles):
        kube = chart_cluster.kube
        # One that has had no permission before.
        account = f"wharfage-{uuid.uuid4().hex[:8]}"
        objects = helm.objects(values | {"serviceAccount": {"name": account}})
        kubeconfig = chart_cluster.login(namespace, account)
        applied = change([one for one in objects if one["kind"] in KINDS_OF_ROLES and "-view" not in one["metadata"]["name"]])
        kube.apply(applied)
        in_force(Kube(kubeconfig), applied)
        (container,) = only(objects, "Pod")["spec"]["containers"]
        arguments = [word for word in container["args"] if not word.startswith("--lease-name")]
        ran = subprocess.run(
            [tool("WHARFAGE_TEST_BINARY"), *arguments],
            check=False, env={"KUBECONFIG": str(kubeconfig), "POD_NAMESPACE": namespace}, capture_output=True, text=True,
        )  # fmt: skip
        for one in applied:
            kube.delete(one["kind"], one["metadata"]["name"], one["metadata"].get("namespace"))
        return ran

    return check


KINDS_OF_ROLES = ("ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding")


@pytest.mark.parametrize("name", ["defaults", "Secrets of some namespaces"])
def test_the_check_finds_everything_that_the_chart_gives(checked, name):
    ran = checked(SWITCHES[name])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "permissions are there" in ran.stdout
    assert "kind Registry is there" in ran.stdout


def test_the_check_goes_without_what_is_switched_off(checked):
    features = {"managedRegistries": False, "pullSecrets": False, "inUseProtection": False}
    ran = checked({"features": features})
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_check_names_a_permission_that_is_missing(checked):
    def without_repositories_status(roles):
        for role in roles:
            for rule in role.get("rules", []):
                rule["resources"] = [one for one in rule["resources"] if one != "repositories/status"] or ["nothing"]
        return roles

    ran = checked({}, change=without_repositories_status)
    assert ran.returncode == 1
    assert "may not patch repositories.wharfage.dev/status in the whole cluster" in ran.stdout


def test_the_check_names_a_kind_that_is_missing_and_one_that_is_older(make_bare_cluster, tmp_path):
    kube = make_bare_cluster().kube
    environment = {"KUBECONFIG": str(kube.kubeconfig), "POD_NAMESPACE": "default"}

    def check():
        return subprocess.run([tool("WHARFAGE_TEST_BINARY"), "check"], check=False, env=environment, capture_output=True, text=True)

    assert "kind Registry is not in the cluster" in check().stdout
    text = Helm(tmp_path).template({}, "--show-only", "templates/crds.yaml", chart=version_before(tmp_path))
    kube.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    kube.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    deadline = time.monotonic() + TIMEOUT
    while "not in the cluster" in (output := check().stdout):
        assert time.monotonic() < deadline, output
        time.sleep(0.1)
    assert "it doesn't know Registry.spec.accountSettings" in output
    assert "kind Repository is there" in output


# Resources that need a disabled feature report that it is disabled.


def test_an_operator_without_a_feature_says_so_and_does_the_rest(make_cluster, make_operator, make_namespace, registry):
    cluster = make_cluster()
    features = {"managedRegistries": False, "pullSecrets": False, "inUseProtection": False}
    running = make_operator(cluster, values={"features": features})
    namespace = make_namespace(kube=cluster.kube)
    home = namespace.declare(registry)
    namespace.ready("Registry", home)
    spec = {"registryRef": {"name": home}}
    namespace.apply({"apiVersion": API_VERSION, "kind": "Repository", "metadata": {"name": "app"}, "spec": spec})
    namespace.ready("Repository", "app")
    managed = registry_named(f"{namespace}-managed")
    namespace.apply(managed)
    namespace.stalled(
        "Registry", managed["metadata"]["name"], reason="ManagedRegistriesDisabled", message="managed registries are disabled"
    )
    assert "forbidden" not in running.process.output()


# Monitoring


def queries():
    """Every PromQL expression of the chart, with its location."""
    for alert in yaml.safe_load((CHART / "files/alerts.yaml").read_text()):
        yield alert["alert"], alert["expr"]
    for panel in json.loads((CHART / "files/dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def test_queries_are_promql():
    for place, expression in queries():
        # What Grafana puts in.
        expression = expression.replace("$__rate_interval", "5m").replace("$registry", ".*")
        try:
            promql_parser.parse(expression)
        except ValueError as error:
            raise AssertionError(f"{place}: {expression}: {error}") from None


def test_every_metric_that_the_documentation_tells_of_is_on_the_dashboard_and_no_other():
    """The program's own tests see to it that the documentation has every metric."""
    rows = re.findall(r"(?m)^\| `(wharfage_operator_\w+)` \|[^|]*\| (histogram)?", (ROOT / "docs/operations.md").read_text())
    series = {name: {name + suffix for suffix in (["_bucket", "_count", "_sum"] if kind else [""])} for name, kind in rows}
    assert len(series) > 10
    used = {}
    for place, expression in queries():
        used.setdefault(place, set()).update(re.findall(r"wharfage_operator_\w+", expression))
    every = set().union(*series.values())
    assert {place: names - every for place, names in used.items() if names - every} == {}
    described = set(re.findall(r"wharfage_operator_\w+", (CHART / "files/alerts.yaml").read_text()))
    assert described <= every | series.keys()
    shown = set().union(*(used[panel["title"]] for panel in json.loads((CHART / "files/dashboard.json").read_text())["panels"]))
    assert [name for name, own in series.items() if not own & shown] == []


def test_alerts_tell_what_to_do_and_carry_the_labels_that_are_asked_for(helm):
    values = {"metrics": {"prometheusRule": {"enabled": True, "alertLabels": {"team": "platform"}, "disabled": ["WharfageThrottled"]}}}
    rule = only(helm.objects(values), "PrometheusRule")
    (group,) = rule["spec"]["groups"]
    names = [alert["alert"] for alert in group["rules"]]
    assert len(names) == len(set(names)) > 5 and "WharfageThrottled" not in names
    for alert in group["rules"]:
        assert alert["labels"]["team"] == "platform" and alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"].keys() == {"summary", "description"}
