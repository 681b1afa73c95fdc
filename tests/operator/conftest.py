"""The operator's tests run against real servers: etcd and kube-apiserver, `wharfage serve`, moto as Amazon ECR, and
`wharfage operator` itself as a process, with exactly the permissions that its Helm chart gives it.

The fixtures for tests:

cluster        The suite's API server, with our CRDs. `cluster.kube` is its administrator. `login(namespace, service_account)` makes
               a kubeconfig for less.
make_cluster   make_cluster() starts another API server, for tests that stop it (`stop()`, `start()`, `restart()`), that look at what
               was asked of it (`audit(offset)` since `audit_offset()`), that need a second cluster, or operators of their own. It
               takes a few seconds.
namespace      A fresh namespace, in which the test makes its objects; its objects are deleted when the test ends.
                   apply(yaml or dict), create, get, find (None where there is none), list, patch, delete, events, kubectl("get", …)
                   until(kind, name, predicate)         waits for anything about an object, and returns it
                   ready / waiting / stalled(kind, name, reason, message)      waits for a state, as of the object's generation
                   gone(kind, name)
                   reconcile(kind, name)                asks for a reconcile and waits for its end: then what didn't happen, doesn't
                   declare(server, **spec)              a Registry for a running server, its key in a Secret; returns its name
make_namespace make_namespace(labels={…}, kube=other.kube) for more of them.
registry       Our registry: an empty `wharfage serve` of the test's own. `ecr` (boto3), `names()`, `repository(name)`, `url`,
               `address`, `credentials`, `stop()`, `start()`, `restart()`, `kill()`, `freeze()`, `thaw()`.
make_registry  make_registry(tls=trustme.CA(), region=…, options=[…]) for others.
front          A proxy before `registry`: `calls`, `counted()`, `fail(operation, status, body, times)`, `throttle()`, `pause()`,
               `go_on()`, `heal()`. Declare it instead of the registry. make_front(server) for others.
moto           Amazon ECR, as moto's server; emptied for each test. Declared as `aws`: the operator's AWS SDK is pointed at it.
operator       The suite's operator, on `cluster`. `metrics()`, `kube` (what it may see), `process.output()`.
make_operator  make_operator(cluster, cluster_name=…, options=[…], values={of the chart}) for tests that need their own: kill(), stop(), start(),
               replica(). On a cluster from make_cluster, or it meets the suite's.
home, amazon   The name of a Registry that is Ready: `registry`, or `moto`, declared to the suite's operator.

Images come from `images` (tests/shared): `images.push(registry.ecr, "team/app", images.image("hello"), "v1")`.

There is neither a controller manager nor a node: nothing makes Pods of Deployments, collects owned objects, or empties a
namespace that is deleted. A Pod that is applied stays as it is.

Waiting has a patience of a minute, which only a failing test uses up. Where a test fails, the operator's log of that time is shown.
With WHARFAGE_TEST_KUBECONFIG `cluster` is that cluster; make_cluster still starts its own.
"""

import contextlib
import os
import pathlib
import uuid

import pytest

import registries
from bed import Cluster, Etcd, ExistingCluster
from kube import Namespace
from operators import Operator
from processes import Process

ROOT = pathlib.Path(__file__).parents[2]
CRDS = ROOT / "crds"


@pytest.fixture(scope="session")
def bed_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bed")


@pytest.fixture(scope="session")
def etcd(bed_folder):
    server = Etcd(bed_folder)
    yield server
    server.end()


@pytest.fixture(scope="session")
def make_cluster_for_all(bed_folder, request):
    with contextlib.ExitStack() as made:

        def make(existing=None):
            folder = bed_folder / uuid.uuid4().hex
            folder.mkdir()
            cluster = ExistingCluster(folder, existing) if existing else Cluster(folder, request.getfixturevalue("etcd"))
            made.callback(cluster.end)
            for path in sorted(CRDS.glob("*.yaml")):
                cluster.kube.apply(path.read_text())
            established = ["wait", "--for=condition=Established", "--timeout=60s"]
            cluster.kube.kubectl(*established, *(word for path in sorted(CRDS.glob("*.yaml")) for word in ("-f", path)))
            return cluster

        yield make


@pytest.fixture(scope="session")
def cluster(make_cluster_for_all):
    return make_cluster_for_all(os.environ.get("WHARFAGE_TEST_KUBECONFIG"))


@pytest.fixture
def make_cluster(make_cluster_for_all):
    made = []

    def make():
        made.append(make_cluster_for_all())
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


@pytest.fixture
def make_namespace(cluster):
    made = []

    def make(name=None, labels=None, kube=None):
        made.append(Namespace(kube or cluster.kube, name, labels))
        return made[-1]

    yield make
    for namespace in reversed(made):
        if namespace.kube is cluster.kube:
            namespace.end()
            cluster.finish(namespace.name)


@pytest.fixture
def namespace(make_namespace):
    return make_namespace()


@pytest.fixture
def make_registry(tmp_path):
    made = []

    def make(**options):
        made.append(registries.Registry(tmp_path / f"registry-{len(made)}", **options))
        return made[-1]

    yield make
    for registry in made:
        registry.end()


@pytest.fixture
def registry(make_registry):
    return make_registry()


@pytest.fixture
def make_front():
    made = []

    def make(server):
        made.append(registries.Front(server))
        return made[-1]

    yield make
    for front in made:
        front.end()


@pytest.fixture
def front(make_front, registry):
    return make_front(registry)


@pytest.fixture(scope="session")
def amazon_server(bed_folder):
    server = registries.Moto(bed_folder / "moto")
    yield server
    server.end()


@pytest.fixture
def moto(amazon_server):
    amazon_server.reset()
    return amazon_server


@pytest.fixture(scope="session")
def operator(bed_folder, cluster, amazon_server):
    # What its memory is about ends with its term, and a machine that is busy may end that: elections have tests of their own.
    alone = ["--leader-elect=false"]
    running = Operator(bed_folder / "operator", cluster, environment=amazon_server.environment, options=alone)
    running.start()
    yield running
    running.end()


@pytest.fixture
def make_operator(tmp_path, amazon_server):
    made = []

    def make(cluster, **options):
        options.setdefault("environment", amazon_server.environment)
        made.append(Operator(tmp_path / f"operator-{len(made)}", cluster, **options))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def home(namespace, registry, operator):
    name = namespace.declare(registry)
    namespace.ready("Registry", name)
    return name


@pytest.fixture
def amazon(namespace, moto, operator):
    name = namespace.declare(moto)
    namespace.ready("Registry", name)
    return name


def pytest_runtest_setup(item):
    for process in Process.all:
        process.mark()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Shows what our own processes said while a test failed."""
    report = yield
    if report.failed:
        for process in Process.all:
            if process.name.startswith("wharfage") and (said := process.since_mark()):
                report.sections.append((f"log of {process.name} ({process.log})", "\n".join(said.splitlines()[-300:])))
    return report
