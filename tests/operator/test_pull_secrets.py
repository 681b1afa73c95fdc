"""PullSecret: Secrets to pull with, in the namespaces that are chosen, kept fresh, and deleted."""

import base64
import json
import subprocess
import time
import uuid

import pytest

import images
from backends import TIMEOUT, tool
from kube import API_VERSION, conditions

TYPE = "kubernetes.io/dockerconfigjson"
KEY = ".dockerconfigjson"
PAST = "2026-01-01T00:00:00Z"
RENEWS_AT = "wharfage.dev/renews-at"
NAME = "home-pull"


@pytest.fixture
def team(make_namespace, namespace):
    """team() makes a namespace that the PullSecret of `declare` chooses."""
    return lambda **labels: make_namespace(labels={"pulls-from": namespace.name, **labels})


@pytest.fixture
def declare(namespace, home):
    """declare() makes a PullSecret for `home` that chooses the namespaces of `team`."""

    def make(name="home", registry=home, **spec):
        chosen = {"matchLabels": {"pulls-from": namespace.name}}
        spec = {"registryRef": {"name": registry}, "namespaceSelector": chosen, "secretName": NAME, **spec}
        spec = {field: value for field, value in spec.items() if value is not None}
        return namespace.apply({"apiVersion": API_VERSION, "kind": "PullSecret", "metadata": {"name": name}, "spec": spec})

    return make


def service_account(namespace, name="default", names=()):
    entries = [{"name": one} for one in names]
    metadata = {"name": name}
    namespace.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata, "imagePullSecrets": entries})


def named(namespace, account="default"):
    """The names in a service account's imagePullSecrets."""
    return [one["name"] for one in namespace.get("ServiceAccount", account).get("imagePullSecrets") or []]


def content(secret):
    return json.loads(base64.b64decode(secret["data"][KEY]))


def written(namespace, name=NAME):
    """Waits for the Secret of a namespace."""
    return namespace.until("Secret", name, lambda one: one is not None, "there")


def changed(namespace, before):
    """Waits until the Secret has another content than before."""
    return namespace.until("Secret", NAME, lambda one: one and one["data"] != before["data"], "changed")


def tokens_asked(front):
    return front.counted().get("GetAuthorizationToken", 0)


def reasons(namespace, name="home"):
    return {event["reason"] for event in namespace.events("PullSecret", name)}


def test_chosen_namespaces_have_the_secret_and_its_status_tells(namespace, declare, team, make_namespace):
    one, two, other = team(), team(), make_namespace()
    declare()
    status = namespace.ready("PullSecret", "home", "InSync", f"^Secret {NAME} is in 2 namespaces$")["status"]
    for chosen in (one, two):
        secret = chosen.get("Secret", NAME)
        assert secret["type"] == TYPE
        assert secret["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "wharfage"
        assert secret["metadata"]["annotations"]["wharfage.dev/owner"] == f"{namespace}/home"
    assert one.get("Secret", NAME)["data"] == two.get("Secret", NAME)["data"], "one token for all"
    assert other.find("Secret", NAME) is None
    assert namespace.find("Secret", NAME) is None
    assert (status["secretName"], status["namespaces"]) == (NAME, 2)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert now < status["renewsAt"] < status["expiresAt"]
    assert "Created" in reasons(namespace)


def test_columns_tell_a_person_what_matters(namespace, declare, team):
    team()
    declare()
    status = namespace.ready("PullSecret", "home", message="1 namespace$")["status"]
    heads, row = (line.split() for line in namespace.kubectl("get", "psec", "home").splitlines())
    assert heads == ["NAME", "READY", "SECRET", "NAMESPACES", "EXPIRES", "RENEWS", "AGE"]
    assert row[:6] == ["home", "True", NAME, "1", status["expiresAt"], status["renewsAt"]]


def test_without_a_selector_it_is_for_its_own_namespace(namespace, declare, team):
    elsewhere = team()
    declare(namespaceSelector=None, secretName=None)
    status = namespace.ready("PullSecret", "home")["status"]
    assert status["secretName"] == "home"
    assert namespace.get("Secret", "home")["type"] == TYPE
    assert elsewhere.find("Secret", "home") is None


def test_clients_log_in_with_it(namespace, registry, declare, team, tmp_path):
    registry.ecr.create_repository(repositoryName="team/app")
    pushed = images.push(registry.ecr, "team/app", images.image("hello"), "v1")
    shop = team()
    declare()
    namespace.ready("PullSecret", "home")
    login = tmp_path / "config.json"
    login.write_text(base64.b64decode(written(shop)["data"][KEY]).decode())
    place = f"{registry.address}/team/app:v1"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path)}

    def ran(*command):
        return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)

    crane = ran(tool("WHARFAGE_TEST_CRANE"), "digest", "--insecure", place)
    assert crane.stdout.strip() == pushed.digest, crane.stderr
    copy = [tool("WHARFAGE_TEST_SKOPEO"), "copy", "--src-tls-verify=false", f"docker://{place}", f"oci:{tmp_path}/copy"]
    skopeo = ran(*copy, "--src-authfile", str(login))
    assert skopeo.returncode == 0, skopeo.stderr
    login.write_text('{"auths": {}}')
    assert "401" in ran(tool("WHARFAGE_TEST_CRANE"), "digest", "--insecure", place).stderr, "the login is what lets them in"


def test_amazon_ecr_gives_tokens_too(namespace, moto, amazon, declare, team):
    moto.ecr.create_repository(repositoryName="team/app")
    shop = team()
    declare(registry=amazon)
    namespace.ready("PullSecret", "home")
    (host,) = content(written(shop))["auths"]
    assert host == f"{moto.registry_id}.dkr.ecr.{moto.region}.amazonaws.com"
    login = content(written(shop))["auths"][host]
    token = moto.ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    assert (login["username"], login["auth"]) == ("AWS", token)
    assert base64.b64decode(login["auth"]).decode() == f"AWS:{login['password']}"


def test_a_host_of_the_repositories_that_differs_is_logged_in_to(namespace, make_registry, make_front, team, declare):
    # The proxyEndpoint is the front's, which reports its own address; the repositories' URIs are the public one's.
    registry = make_registry()
    registry.ecr.create_repository(repositoryName="team/app")
    (found,) = registry.ecr.describe_repositories()["repositories"]
    front = make_front(registry)
    front.fail("DescribeRepositories", 200, json.dumps({"repositories": [
        {key: value for key, value in found.items() if key in ("repositoryName", "repositoryArn", "registryId")}
        | {"repositoryUri": "images.example.com:8443/team/app"}
    ]}), **{"Content-Type": "application/x-amz-json-1.1"})  # fmt: skip
    shop = team()
    declare(registry=namespace.declare(front))
    auths = content(written(shop))["auths"]
    assert set(auths) == {registry.address, "images.example.com:8443"}
    assert auths[registry.address] == auths["images.example.com:8443"]


def test_namespaces_come_and_go(namespace, declare, team, make_namespace, cluster):
    first = team()
    declare()
    namespace.ready("PullSecret", "home", message="1 namespace$")
    late = team()
    assert written(late)["data"] == written(first)["data"]
    labeled = make_namespace()
    cluster.kube.patch("Namespace", labeled.name, {"metadata": {"labels": {"pulls-from": namespace.name}}})
    written(labeled)
    cluster.kube.patch("Namespace", first.name, {"metadata": {"labels": {"pulls-from": None}}})
    first.gone("Secret", NAME)
    written(late)
    namespace.ready("PullSecret", "home", message="2 namespaces$")
    assert "Deleted" in reasons(namespace)


def test_a_narrower_selector_and_another_name_leave_nothing_behind(namespace, declare, team):
    kept, left = team(tier="prod"), team(tier="test")
    for one in (kept, left):
        service_account(one)
    declare(serviceAccounts=["default"])
    for one in (kept, left):
        one.until("ServiceAccount", "default", lambda it: it.get("imagePullSecrets") == [{"name": NAME}])
    declare(
        serviceAccounts=["default"], namespaceSelector={"matchLabels": {"pulls-from": namespace.name, "tier": "prod"}}, secretName="other"
    )
    namespace.ready("PullSecret", "home", message="^Secret other is in 1 namespace$")
    kept.gone("Secret", NAME)
    left.gone("Secret", NAME)
    assert left.find("Secret", "other") is None
    assert (named(kept), named(left)) == (["other"], [])


def test_service_accounts_name_it_beside_what_others_put(namespace, declare, team):
    shop = team()
    service_account(shop, "default", ["theirs"])
    service_account(shop, "builder")
    declare(serviceAccounts=["default", "builder", "late"])
    names = lambda *names: lambda one: one and [it["name"] for it in one.get("imagePullSecrets") or []] == list(names)  # noqa: E731
    shop.until("ServiceAccount", "default", names("theirs", NAME))
    shop.until("ServiceAccount", "builder", names(NAME))
    service_account(shop, "late")
    shop.until("ServiceAccount", "late", names(NAME))
    shop.patch("ServiceAccount", "default", {"imagePullSecrets": [{"name": "theirs"}, {"name": "more"}]})
    shop.until("ServiceAccount", "default", names("theirs", "more", NAME))
    declare(serviceAccounts=["default"])
    shop.until("ServiceAccount", "builder", names())
    shop.until("ServiceAccount", "late", names())
    assert named(shop) == ["theirs", "more", NAME]
    namespace.delete("PullSecret", "home")
    namespace.gone("PullSecret", "home")
    assert named(shop) == ["theirs", "more"]


@pytest.fixture
def refuse():
    """refuse(place, account): the API server refuses every change of a service account, until the returned function is called."""

    def refuse(place, account):
        name = f"refuse-{uuid.uuid4().hex[:8]}"
        group = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
        rule = {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["UPDATE"],
            "resources": ["serviceaccounts"],
            "resourceNames": [account],
        }
        chosen = {"matchLabels": {"kubernetes.io/metadata.name": place.name}}
        place.apply([
            {**group, "kind": "ValidatingAdmissionPolicy", "spec": {
                "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule], "namespaceSelector": chosen},
                "validations": [{"expression": "false", "message": f"{account} is not to be changed"}],
            }},
            {**group, "kind": "ValidatingAdmissionPolicyBinding", "spec": {"policyName": name, "validationActions": ["Deny"]}},
        ])  # fmt: skip
        # The API server takes its time to hear of a policy.
        label = ("label", "--overwrite", "--dry-run=server", "serviceaccount", account, "probe=probe")
        refused = lambda: place.kubectl(*label, check=False).returncode != 0  # noqa: E731
        until(refused, f"changes of {account} refused")

        def allow():
            for kind in ("ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"):
                place.delete(kind, name)
            until(lambda: not refused(), f"changes of {account} allowed")

        return allow

    return refuse


def until(holds, expected):
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, f"not {expected} after {TIMEOUT} s"
        time.sleep(0.05)


def test_an_account_that_can_not_be_changed_is_not_forgotten(namespace, declare, team, refuse):
    shop = team()
    for account in ("default", "builder"):
        service_account(shop, account)
    declare(serviceAccounts=["default", "builder"])
    shop.until("ServiceAccount", "builder", lambda one: one.get("imagePullSecrets") == [{"name": NAME}])
    allow = refuse(shop, "builder")
    declare(serviceAccounts=["default"])
    namespace.waiting("PullSecret", "home", "Invalid", "builder is not to be changed")
    # A renewal remembers it, too.
    before = written(shop)
    namespace.patch("PullSecret", "home", {"metadata": {"annotations": {"reconcile.wharfage.dev/requestedAt": "now"}}})
    assert changed(shop, before)["metadata"]["annotations"]["wharfage.dev/service-accounts"] == "builder,default"
    assert named(shop, "builder") == [NAME]
    allow()
    namespace.reconcile("PullSecret", "home")
    assert (named(shop, "builder"), named(shop)) == ([], [NAME])
    assert written(shop)["metadata"]["annotations"]["wharfage.dev/service-accounts"] == "default"


def test_one_that_can_not_go_says_why_once(make_cluster, make_operator, make_namespace, registry, refuse):
    cluster = make_cluster()
    make_operator(cluster)
    platform, shop = make_namespace(kube=cluster.kube), make_namespace(labels={"pulls": "yes"}, kube=cluster.kube)
    service_account(shop)
    spec = {"registryRef": {"name": platform.declare(registry)}, "secretName": NAME, "serviceAccounts": ["default"]}
    spec["namespaceSelector"] = {"matchLabels": {"pulls": "yes"}}
    platform.apply({"apiVersion": API_VERSION, "kind": "PullSecret", "metadata": {"name": "home"}, "spec": spec})
    shop.until("ServiceAccount", "default", lambda one: one.get("imagePullSecrets") == [{"name": NAME}])
    platform.ready("PullSecret", "home")
    allow = refuse(shop, "default")
    offset = cluster.audit_offset()
    platform.delete("PullSecret", "home")
    platform.stalled("PullSecret", "home", "Invalid", f"namespace {shop}: .*default is not to be changed")
    assert written(shop)["metadata"]["annotations"]["wharfage.dev/service-accounts"] == "default"
    # It doesn't try again without pause: a request by annotation meanwhile causes one more attempt.
    platform.patch("PullSecret", "home", {"metadata": {"annotations": {"reconcile.wharfage.dev/requestedAt": "now"}}})

    def ours(one):
        return "serviceaccount:wharfage" in one["user"]["username"] and one.get("objectRef", {}).get("resource") == "serviceaccounts"

    tries = lambda: [one for one in cluster.audit(offset) if ours(one) and one["verb"] == "patch"]  # noqa: E731
    until(lambda: len(tries()) > 1, "reconciled again")
    events = [one for one in platform.events("PullSecret", "home") if one["reason"] == "Invalid"]
    assert [(one.get("series") or {}).get("count", 1) for one in events] == [1]
    allow()
    platform.patch("PullSecret", "home", {"metadata": {"annotations": {"reconcile.wharfage.dev/requestedAt": "again"}}})
    platform.gone("PullSecret", "home")
    assert named(shop) == []


def test_a_secret_of_somebody_else_is_never_touched(namespace, declare, team):
    theirs, free = team(), team()
    theirs.secret(NAME, password="mine")
    before = theirs.get("Secret", NAME)
    declare(serviceAccounts=["default"])
    service_account(theirs)
    namespace.stalled(
        "PullSecret", "home", "OwnedByAnother", f"a Secret {NAME} .* is in {theirs}: delete it there, or set another secretName"
    )
    written(free)
    assert namespace.reconcile("PullSecret", "home")["status"]["namespaces"] == 1
    assert theirs.get("Secret", NAME) == before
    assert named(theirs) == []
    assert "OwnedByAnother" in reasons(namespace)
    theirs.delete("Secret", NAME)
    namespace.reconcile("PullSecret", "home")
    namespace.ready("PullSecret", "home", message="2 namespaces$")
    assert content(written(theirs)) == content(written(free))


def test_of_two_that_want_the_same_secret_the_older_has_it(namespace, declare, team):
    shop = team()
    declare("older")
    namespace.ready("PullSecret", "older")
    # Times of creation have whole seconds, and the name decides between equals: `older` is not after `younger`.
    declare("younger")
    namespace.stalled("PullSecret", "younger", "OwnedByAnother", f"Secret {NAME} in {shop} is managed by PullSecret {namespace}/older")
    assert written(shop)["metadata"]["annotations"]["wharfage.dev/owner"] == f"{namespace}/older"
    namespace.delete("PullSecret", "older")
    namespace.ready("PullSecret", "younger")
    assert written(shop)["metadata"]["annotations"]["wharfage.dev/owner"] == f"{namespace}/younger"


@pytest.mark.parametrize(
    "edit",
    [
        {"data": {KEY: base64.b64encode(b'{"auths": {}}').decode()}},
        {"data": None},
        {"metadata": {"labels": {"wharfage.dev/pull-secret": None}}},
        {"metadata": {"labels": {"wharfage.dev/pull-secret": "somebody"}}},
        {"metadata": {"annotations": {"wharfage.dev/owner": "some/body"}}},
        {"metadata": {"annotations": {"wharfage.dev/token-digest": None, "wharfage.dev/expires-at": "soon"}}},
    ],
)
def test_an_edit_is_put_back(namespace, declare, team, edit):
    shop = team()
    declare()
    namespace.ready("PullSecret", "home")
    before = written(shop)

    def as_before(one):
        marks = [(it["data"], it["metadata"]["labels"], it["metadata"]["annotations"]) if it else None for it in (one, before)]
        return marks[0] == marks[1]

    if edit.get("data", {}) is None:
        # A Secret of this type can't be without content: an empty one is as near as it gets.
        edit = {"data": {KEY: base64.b64encode(b"{}").decode()}}
    shop.patch("Secret", NAME, edit)
    shop.until("Secret", NAME, as_before, "corrected")
    assert written(shop)["metadata"]["uid"] == before["metadata"]["uid"]
    namespace.until("PullSecret", "home", lambda _: "DriftCorrected" in reasons(namespace), "reported")


def test_what_others_put_on_the_secret_stays(namespace, declare, team):
    shop = team()
    declare()
    namespace.ready("PullSecret", "home")
    shop.patch("Secret", NAME, {"metadata": {"labels": {"team": "shop"}, "annotations": {"note": "theirs"}}})
    before = written(shop)
    namespace.reconcile("PullSecret", "home")
    after = changed(shop, before)
    assert after["metadata"]["labels"]["team"] == "shop"
    assert after["metadata"]["annotations"]["note"] == "theirs"


def test_a_secret_that_is_deleted_comes_back(namespace, declare, team):
    shop = team()
    declare()
    namespace.ready("PullSecret", "home")
    before = written(shop)
    shop.delete("Secret", NAME)
    after = shop.until("Secret", NAME, lambda one: one and one["metadata"]["uid"] != before["metadata"]["uid"])
    assert after["data"] == before["data"], "the token at hand serves still"


def test_one_of_another_type_in_its_place_is_made_anew(namespace, declare, team):
    shop = team()
    declare()
    namespace.ready("PullSecret", "home")
    metadata = {key: value for key, value in written(shop)["metadata"].items() if key in ("name", "labels", "annotations")}
    # Changed while the operator does not reconcile it: a suspended PullSecret is left unchanged.
    namespace.patch("PullSecret", "home", {"spec": {"suspend": True}})
    namespace.until("PullSecret", "home", lambda one: "Suspended" in conditions(one))
    shop.delete("Secret", NAME)
    shop.create({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata})
    namespace.patch("PullSecret", "home", {"spec": {"suspend": False}})
    shop.until("Secret", NAME, lambda one: one and one["type"] == TYPE)
    namespace.ready("PullSecret", "home")


def test_a_request_renews_at_once(namespace, declare, team):
    one, two = team(), team()
    declare()
    namespace.ready("PullSecret", "home")
    before = written(one)
    namespace.reconcile("PullSecret", "home")
    after = written(one)
    assert after["data"] != before["data"]
    assert written(two)["data"] == after["data"]
    assert "Renewed" in reasons(namespace)


def test_credentials_that_change_renew_at_once(namespace, make_registry, declare, team, tmp_path):
    registry = make_registry()
    name = namespace.declare(registry)
    shop = team()
    declare(registry=name)
    namespace.ready("PullSecret", "home")
    before = written(shop)
    other = make_registry()
    namespace.secret(f"{name}-key", **other.credentials)
    namespace.patch("Registry", name, {"spec": {"endpoint": {"url": other.url}}})
    after = changed(shop, before)
    assert set(content(after)["auths"]) == {other.address}


def test_a_restart_renews_only_what_is_due(make_cluster, make_operator, make_namespace, registry, make_front):
    front = make_front(registry)
    cluster = make_cluster()
    operator = make_operator(cluster)
    platform = make_namespace(kube=cluster.kube)
    shop, web = (make_namespace(labels={"pulls": "yes"}, kube=cluster.kube) for _ in range(2))
    home = platform.declare(front)
    chosen = {"matchLabels": {"pulls": "yes"}}
    spec = {"registryRef": {"name": home}, "secretName": NAME, "namespaceSelector": chosen}
    platform.apply({"apiVersion": API_VERSION, "kind": "PullSecret", "metadata": {"name": "home"}, "spec": spec})
    platform.ready("PullSecret", "home", message="2 namespaces$")
    before, asked = written(shop), tokens_asked(front)
    assert asked == 1

    operator.restart()
    # A namespace's Secret that comes after the restart shows that the PullSecret was reconciled.
    platform.patch("PullSecret", "home", {"spec": {"suspend": True}})
    platform.until("PullSecret", "home", lambda one: "Suspended" in conditions(one))
    platform.patch("PullSecret", "home", {"spec": {"suspend": False}})
    platform.ready("PullSecret", "home")
    assert tokens_asked(front) == asked
    assert written(shop)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]

    operator.stop()
    for one in (shop, web):
        one.patch("Secret", NAME, {"metadata": {"annotations": {RENEWS_AT: PAST}}})
    operator.start()
    after = changed(shop, before)
    web.until("Secret", NAME, lambda one: one["data"] == after["data"], "given the same token")
    assert tokens_asked(front) == asked + 1
    status = platform.ready("PullSecret", "home")["status"]
    assert status["renewsAt"] > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def test_while_the_registry_is_away_the_secrets_hold_and_go_on_later(namespace, registry, declare, team, cluster):
    shop = team()
    declare()
    namespace.ready("PullSecret", "home")
    before = written(shop)
    registry.stop()
    namespace.patch("PullSecret", "home", {"metadata": {"annotations": {"reconcile.wharfage.dev/requestedAt": "now"}}})
    namespace.waiting("PullSecret", "home", "RegistryUnavailable", f"Secret {NAME} is in 1 namespace until ")
    assert written(shop)["data"] == before["data"]
    cluster.kube.patch("Namespace", shop.name, {"metadata": {"labels": {"pulls-from": None}}})
    shop.gone("Secret", NAME)
    cluster.kube.patch("Namespace", shop.name, {"metadata": {"labels": {"pulls-from": namespace.name}}})
    registry.start()
    namespace.ready("PullSecret", "home", message="1 namespace$")
    written(shop)


def test_an_expired_token_is_reported_until_there_is_another(make_cluster, make_operator, make_namespace, registry):
    cluster = make_cluster()
    operator = make_operator(cluster)
    platform, shop, web = (make_namespace(labels={"pulls": "yes"}, kube=cluster.kube) for _ in range(3))
    spec = {"registryRef": {"name": platform.declare(registry)}, "secretName": NAME, "namespaceSelector": {"matchLabels": {"pulls": "yes"}}}
    platform.apply({"apiVersion": API_VERSION, "kind": "PullSecret", "metadata": {"name": "home"}, "spec": spec})
    platform.ready("PullSecret", "home", message="3 namespaces$")
    operator.stop()
    registry.stop()
    for one, ended in ((shop, PAST), (web, "2026-01-01T01:00:00Z")):
        one.patch("Secret", NAME, {"metadata": {"annotations": {RENEWS_AT: PAST, "wharfage.dev/expires-at": ended}}})
    operator.start()
    status = platform.waiting("PullSecret", "home", "RegistryUnavailable")["status"]
    assert (status["namespaces"], status["expiresAt"]) == (1, PAST)
    series = f'wharfage_operator_pull_secret_token_remaining_seconds{{namespace="{platform}",name="home"}}'
    assert operator.metrics()[series] < 0
    registry.start()
    status = platform.ready("PullSecret", "home", message="3 namespaces$")["status"]
    assert status["expiresAt"] > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert operator.metrics()[series] > 0


def test_a_refusal_of_the_registry_is_reported(namespace, make_front, registry, declare, team):
    front = make_front(registry)
    body = '{"__type":"AccessDeniedException","message":"not you"}'
    front.fail("GetAuthorizationToken", 400, body, **{"Content-Type": "application/x-amz-json-1.1"})
    team()
    declare(registry=namespace.declare(front))
    namespace.stalled("PullSecret", "home", "AccessDeniedException", "not you")
    front.heal()
    namespace.reconcile("PullSecret", "home")
    namespace.ready("PullSecret", "home")


def test_a_registry_that_comes_late_is_waited_for(namespace, registry, declare, team, operator):
    shop = team()
    name = f"{namespace}-late"
    declare(registry=name)
    one = namespace.waiting("PullSecret", "home", "ReferenceNotFound", f'Registry "{name}" does not exist')
    assert conditions(one)["ReferencesResolved"]["status"] == "False"
    namespace.declare(registry, name=name)
    one = namespace.ready("PullSecret", "home")
    assert conditions(one)["ReferencesResolved"]["status"] == "True"
    written(shop)


def test_deleting_takes_all_away_even_when_the_registry_is_gone(namespace, home, registry, declare, team):
    shop = team()
    service_account(shop, "default", ["theirs"])
    declare(serviceAccounts=["default"])
    shop.until("ServiceAccount", "default", lambda one: len(one.get("imagePullSecrets") or []) == 2)
    registry.stop()
    namespace.delete("Registry", home)
    namespace.waiting("PullSecret", "home", "ReferenceNotFound")
    namespace.delete("PullSecret", "home")
    namespace.gone("PullSecret", "home")
    assert shop.find("Secret", NAME) is None
    assert named(shop) == ["theirs"]


def test_a_suspended_one_is_let_be_and_goes_on_later(namespace, declare, team):
    shop = team()
    declare()
    namespace.ready("PullSecret", "home")
    declare(suspend=True)
    namespace.until("PullSecret", "home", lambda one: "Suspended" in conditions(one))
    assert conditions(namespace.get("PullSecret", "home"))["Ready"]["status"] == "True"
    shop.delete("Secret", NAME)
    late = team()
    namespace.until("PullSecret", "home", lambda _: "Suspended" in reasons(namespace), "reported")
    assert shop.find("Secret", NAME) is None
    assert late.find("Secret", NAME) is None
    declare(suspend=False)
    written(shop)
    written(late)


def test_the_registry_says_which_namespaces_may_have_it(namespace, registry, declare, team, cluster):
    mark = {"team": namespace.name}
    allowed = [{"selector": {"matchLabels": mark}, "repositoryPrefixes": ["shop/"]}]
    name = namespace.declare(registry, allowedNamespaces=allowed)
    inside, outside = team(**mark), team()
    declare(registry=name)
    refusal = f"namespace {namespace} may not use Registry {name}: none of its allowedNamespaces selects the namespace's labels"
    namespace.stalled("PullSecret", "home", "NotAllowed", refusal)
    assert inside.find("Secret", NAME) is None
    cluster.kube.patch("Namespace", namespace.name, {"metadata": {"labels": mark}})
    namespace.ready("PullSecret", "home", message=f"1 namespace; chosen, but not allowed to use Registry {name}: {outside}$")
    written(inside)
    assert outside.find("Secret", NAME) is None
    namespace.patch("Registry", name, {"spec": {"allowedNamespaces": []}})
    namespace.stalled("PullSecret", "home", "NotAllowed")
    inside.gone("Secret", NAME)


def allowing(*namespaces):
    """allowedNamespaces of a Registry, by name."""
    return [{"selector": {"matchLabels": {"kubernetes.io/metadata.name": one.name}}} for one in namespaces]


def test_while_a_registry_is_missing_nobody_gets_what_was_had_of_it(namespace, registry, declare, team, operator):
    inside, outside = team(), team()
    name = namespace.declare(registry, allowedNamespaces=allowing(namespace, inside))
    declare(registry=name)
    namespace.ready("PullSecret", "home", message=f"1 namespace; chosen, but not allowed to use Registry {name}: {outside}$")
    before = written(inside)
    namespace.delete("Registry", name)
    namespace.waiting("PullSecret", "home", "ReferenceNotFound", f"Secret {NAME} is in 1 namespace until ")
    late = team()
    # Another generation that the status is about shows that it was reconciled once more.
    namespace.patch("PullSecret", "home", {"spec": {"serviceAccounts": ["nobody"]}})
    namespace.waiting("PullSecret", "home", "ReferenceNotFound", f"Secret {NAME} is in 1 namespace until ")
    assert [one.find("Secret", NAME) for one in (outside, late)] == [None, None]
    assert written(inside)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    namespace.declare(registry, name=name, allowedNamespaces=allowing(namespace, outside))
    namespace.ready("PullSecret", "home", message="^Secret home-pull is in 1 namespace; ")
    written(outside)
    inside.gone("Secret", NAME)


def test_a_token_goes_nowhere_that_only_another_registry_allows(namespace, registry, declare, team, operator):
    inside, outside = team(), team()
    one = namespace.declare(registry, allowedNamespaces=allowing(namespace, inside))
    # It has no credentials yet, so that nobody can be asked for a token of it.
    other = f"{namespace}-other"
    spec = {
        "region": registry.region,
        "endpoint": {"url": registry.url, "credentialsSecretRef": {"name": "later", "namespace": namespace.name}},
    }
    spec["allowedNamespaces"] = allowing(namespace, outside)
    namespace.apply({"apiVersion": API_VERSION, "kind": "Registry", "metadata": {"name": other}, "spec": spec})
    namespace.waiting("Registry", other, "ReferenceNotFound")
    declare(registry=one)
    namespace.ready("PullSecret", "home", message="^Secret home-pull is in 1 namespace; ")
    declare(registry=other)
    namespace.waiting("PullSecret", "home", "RegistryNotReady")
    inside.gone("Secret", NAME)
    assert outside.find("Secret", NAME) is None
    namespace.secret("later", **registry.credentials)
    namespace.ready("PullSecret", "home", message="^Secret home-pull is in 1 namespace; ")
    written(outside)


def test_a_look_that_finds_all_well_writes_nothing(
    namespace, make_front, registry, declare, team, make_cluster, make_operator, make_namespace
):
    cluster = make_cluster()
    make_operator(cluster)
    front = make_front(registry)
    chosen = {"pulls": "yes"}
    platform, shop = make_namespace(kube=cluster.kube), make_namespace(labels=chosen, kube=cluster.kube)
    service_account(shop)
    spec = {
        "registryRef": {"name": platform.declare(front)},
        "secretName": NAME,
        "namespaceSelector": {"matchLabels": chosen},
        "serviceAccounts": ["default"],
    }
    platform.apply({"apiVersion": API_VERSION, "kind": "PullSecret", "metadata": {"name": "home"}, "spec": spec})
    shop.until("ServiceAccount", "default", lambda one: one.get("imagePullSecrets") == [{"name": NAME}])
    before = platform.ready("PullSecret", "home", message="1 namespace$")
    # Its first status may come after the status of its contents.
    platform.ready("Registry", spec["registryRef"]["name"])
    asked, offset = tokens_asked(front), cluster.audit_offset()
    # A namespace more makes it look at all of them.
    late = make_namespace(labels=chosen, kube=cluster.kube)
    platform.ready("PullSecret", "home", message="2 namespaces$")

    def writes():
        return {
            (one["verb"], one["objectRef"]["resource"], one["objectRef"].get("namespace"))
            for one in cluster.audit(offset)
            if one["user"]["username"] == "system:serviceaccount:wharfage:wharfage"
            and one["verb"] in ("create", "update", "patch", "delete")
            and one["objectRef"]["resource"] not in ("events", "leases")
        }

    write = ("patch", "pullsecrets", platform.name)
    platform.until("PullSecret", "home", lambda _: write in writes(), "in the audit log")
    assert writes() == {("create", "secrets", late.name), write}
    assert platform.get("PullSecret", "home")["status"]["expiresAt"] == before["status"]["expiresAt"]
    assert tokens_asked(front) == asked


def test_an_operator_without_pull_secrets_says_so_and_touches_no_secret(make_cluster, make_operator, make_namespace, registry):
    cluster = make_cluster()
    offset = cluster.audit_offset()
    make_operator(cluster, values={"features": {"pullSecrets": False}})
    platform = make_namespace(kube=cluster.kube)
    spec = {"registryRef": {"name": platform.declare(registry)}}
    platform.apply({"apiVersion": API_VERSION, "kind": "PullSecret", "metadata": {"name": "home"}, "spec": spec})
    platform.ready("Registry", spec["registryRef"]["name"])
    platform.stalled("PullSecret", "home", "PullSecretsDisabled", "enable them")
    ours = [one for one in cluster.audit(offset) if "serviceaccount:wharfage" in one["user"]["username"]]
    asked = {(one["verb"], one["objectRef"]["resource"]) for one in ours if "objectRef" in one}
    assert ("watch", "registries") in asked
    assert "serviceaccounts" not in {resource for _, resource in asked}
    assert platform.find("Secret", "home") is None
    # Nor is a deletion delayed.
    platform.delete("PullSecret", "home")
    platform.gone("PullSecret", "home")


def test_tokens_are_in_no_log_no_event_and_no_status(namespace, declare, team, operator):
    shop = team()
    declare()
    namespace.ready("PullSecret", "home")
    (login,) = content(written(shop))["auths"].values()
    said = operator.process.output() + json.dumps(namespace.get("PullSecret", "home")) + json.dumps(namespace.list("Event"))
    said += json.dumps(written(shop)["metadata"])
    for secret in (login["password"], login["auth"], written(shop)["data"][KEY]):
        assert secret not in said
