"""What many resources cost the operator. See bench/operator/run."""

import argparse
import concurrent.futures
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "operator"), str(ROOT / "tests" / "shared")]

from bed import Cluster, Etcd  # noqa: E402
from kube import API_VERSION, Kube, has_state  # noqa: E402
from operators import Operator  # noqa: E402
from registries import Registry  # noqa: E402

RULES = [
    {
        "rulePriority": 1,
        "selection": {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 14},
        "action": {"type": "expire"},
    }
]
PER_NAMESPACE = 250


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def manifests(repositories, policies, interval):
    """Namespaces first. Each policy is about the Repositories of one label."""
    spaces = [f"team-{number}" for number in range((repositories + PER_NAMESPACE - 1) // PER_NAMESPACE)]
    yield [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in spaces]
    groups = max(1, -(-policies // len(spaces)))

    def repository(number):
        space = spaces[number // PER_NAMESPACE]
        name = f"app-{number}"
        return {
            "apiVersion": API_VERSION, "kind": "Repository",
            "metadata": {"name": name, "namespace": space, "labels": {"group": str(number % groups)}},
            "spec": {
                "registryRef": {"name": "home"}, "repositoryName": f"{space}/{name}", "imageTagMutability": "IMMUTABLE",
                "tags": {"team": space}, "interval": interval,
            },
        }  # fmt: skip

    def policy(number):
        space = spaces[number // groups]
        group = str(number % groups)
        return {
            "apiVersion": API_VERSION, "kind": "LifecyclePolicy", "metadata": {"name": f"keep-{group}", "namespace": space},
            "spec": {
                "registryRef": {"name": "home"}, "repositorySelector": {"matchLabels": {"group": group}}, "mode": "Enforce",
                "rules": RULES, "interval": interval,
            },
        }  # fmt: skip

    yield [repository(number) for number in range(repositories)]
    yield [policy(number) for number in range(policies)]


def make(kubeconfig, objects):
    """Creates them with a few clients at a time."""

    def some(part):
        kube = Kube(kubeconfig)
        for one in part:
            kube.create(one, one["metadata"].get("namespace"))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(some, [objects[start::4] for start in range(4)]))


def cpu_seconds(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def peak_mib(process):
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def sums(metrics, family, *wanted):
    """The sum of a family's series that hold all of these labels."""
    return int(sum(value for name, value in metrics.items() if name.startswith(family) and all(one in name for one in wanted)))


def calls(metrics):
    return sums(metrics, "wharfage_operator_api_calls_total")


def writes(metrics):
    methods = ("POST", "PUT", "PATCH", "DELETE")
    return sum(sums(metrics, "wharfage_operator_kubernetes_requests_total", f'method="{method}"') for method in methods)


def by_operation(metrics):
    counted = {}
    for name, value in metrics.items():
        if name.startswith("wharfage_operator_api_calls_total"):
            operation = name.split('operation="')[1].split('"')[0]
            counted[operation] = counted.get(operation, 0) + int(value)
    return counted


def all_ready(operator, repositories, policies):
    metrics = operator.metrics()
    ready = {
        kind: sums(metrics, "wharfage_operator_resources", f'kind="{kind}"', 'state="ready"') for kind in ("Repository", "LifecyclePolicy")
    }
    say(f"  ready: {ready}")
    return ready == {"Repository": repositories, "LifecyclePolicy": policies}


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repositories", type=int, default=5000)
    arguments.add_argument("--policies", type=int, default=200)
    arguments.add_argument("--interval", type=int, default=120, help="seconds between two looks at each resource")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(given, pathlib.Path(folder))


def measure(given, folder):
    etcd = Etcd(folder)
    cluster = Cluster(folder / "cluster", etcd)
    registry = Registry(folder / "registry")
    operator = None
    try:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            cluster.kube.apply(path.read_text())
        cluster.kube.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        say(f"making {given.repositories} Repositories and {given.policies} LifecyclePolicies")
        spaces, repositories, policies = manifests(given.repositories, given.policies, f"{given.interval}s")
        for objects in (spaces, repositories, policies):
            make(cluster.kube.kubeconfig, objects)
        cluster.kube.apply(
            [
                {
                    "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "default"},
                    "stringData": registry.credentials,
                },
                {
                    "apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": "home"},
                    "spec": {
                        "region": registry.region,
                        "endpoint": {"url": registry.url, "credentialsSecretRef": {"name": "key", "namespace": "default"}},
                    },
                },
            ]
        )  # fmt: skip
        say("starting the operator")
        operator = Operator(folder / "operator", cluster, options=["--leader-elect=false", "--log", "warn"])
        began = time.monotonic()
        operator.start()
        while not all_ready(operator, given.repositories, given.policies):
            assert time.monotonic() - began < 900, operator.process.tail()
            time.sleep(1)
        took = time.monotonic() - began
        first = operator.metrics()
        cpu = cpu_seconds(operator.process)
        sample = cluster.kube.get("Repository", "app-0", "team-0")
        assert has_state(sample, "Ready"), sample
        assert len(registry.names()) == given.repositories

        # What the first pass left to do is done in the first interval after it; the second is like all that follow.
        say(f"waiting for steady state: {given.interval} s, then measuring {given.interval} s")
        time.sleep(given.interval * 1.2)
        before, cpu_before = operator.metrics(), cpu_seconds(operator.process)
        time.sleep(given.interval)
        after, cpu_after = operator.metrics(), cpu_seconds(operator.process)
        steady = {name: count - by_operation(before).get(name, 0) for name, count in by_operation(after).items()}
        rows = [
            ("all Ready after, s", "< 120", f"{took:.1f}"),
            ("operator CPU until then, s", "", f"{cpu:.1f}"),
            ("registry calls per Repository, first pass", "<= 4", f"{calls(first) / given.repositories:.2f}"),
            ("writes to the API server per resource, first pass", "", f"{writes(first) / (given.repositories + given.policies):.2f}"),
            ("peak memory, MiB", "< 150", f"{peak_mib(operator.process):.0f}"),
            ("registry calls per steady interval", "pages, not resources", f"{calls(after) - calls(before)}"),
            ("writes to the API server per steady interval", "0", f"{writes(after) - writes(before)}"),
            ("operator CPU per steady interval, s", "", f"{cpu_after - cpu_before:.2f}"),
        ]
        print(f"| {given.repositories} Repositories, {given.policies} LifecyclePolicies, interval {given.interval} s | wanted | ours |")
        print("|---|---|---|")
        for row in rows:
            print("| " + " | ".join(row) + " |")
        print("\nfirst pass:", by_operation(first))
        print("steady interval:", {name: count for name, count in steady.items() if count})
    finally:
        if operator:
            operator.end()
        registry.end()
        cluster.end()
        etcd.end()


if __name__ == "__main__":
    main()
