"""The CRDs on a real API server: accepted and refused manifests; file mode refuses them with the same words."""

import contextlib
import copy
import json
import subprocess
import uuid

import pytest
import yaml
from kubernetes.dynamic.exceptions import UnprocessibleEntityError

from backends import tool
from conftest import CRDS
from kube import API_VERSION

# What schemas of ours refer to and others wrote: its fields are theirs to test.
FOREIGN = (
    "resources", "selector", "repositorySelector", "namespaceSelector", "affinity", "tolerations", "topologySpreadConstraints",
)  # fmt: skip

# Specs that are taken as they are. Together they have every field.
GOOD = {
    "Registry": """
- managed: {}
- region: eu-home-1
  registryId: "123456789012"
  managed:
    replicas: 3
    publicUrl: https://registry.example.com
    storage:
      s3:
        bucket: images
        region: eu-1
        endpoint: https://s3.example.com
        credentialsSecretRef: {name: s3, namespace: wharfage}
        redirect: true
    database: {postgres: {connectionSecretRef: {name: pg, namespace: wharfage, key: uri}}}
    tls:
      secretName: registry-tls
      certManager: {issuerRef: {name: ca, kind: ClusterIssuer, group: cert-manager.io}, dnsNames: [registry.example.com]}
    service: {type: LoadBalancer, port: 443, nodePort: 30443, annotations: {example.com/pool: public}}
    networkPolicy: Disabled
    image: registry.example.com/wharfage:1.0.0
    pod:
      labels: {team: platform}
      annotations: {example.com/scrape: "true"}
      nodeSelector: {disk: fast}
      tolerations: [{key: dedicated, operator: Exists}]
      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}]
      imagePullSecrets: [{name: home-pull}]
      priorityClassName: system-cluster-critical
      serviceAccountName: registry
    namespace: wharfage
    resources: {limits: {memory: 512Mi, cpu: 2}}
  policy:
    Version: "2012-10-17"
    Statement: [{Sid: replicate, Effect: Allow, Principal: {AWS: "arn:aws:iam::210987654321:root"}, Action: "ecr:ReplicateImage", Resource: "*"}]
  scanningConfiguration:
    scanType: ENHANCED
    rules: [{scanFrequency: CONTINUOUS_SCAN, repositoryFilters: [{filter: "prod*", filterType: WILDCARD}]}]
  accountSettings: {BLOB_MOUNTING: ENABLED, BASIC_SCAN_TYPE_VERSION: AWS_NATIVE, REGISTRY_POLICY_SCOPE: V2}
  allowedNamespaces: [{selector: {matchLabels: {team: payments}}, repositoryPrefixes: [payments/]}]
  deletionPolicy: Delete
- managed: {storage: {filesystem: {size: 100Gi, storageClassName: fast}}, database: {sqlite: {}}}
- managed: {storage: {s3: {bucket: images}}, database: {sqlite: {size: 5Gi, storageClassName: fast}}}
- region: eu-home-1
  endpoint:
    url: https://registry.example.com:8443
    caBundleSecretRef: {name: ca, namespace: wharfage, key: ca.crt}
    credentialsSecretRef: {name: key, namespace: wharfage}
- region: eu-central-1
  aws: {roleArn: "arn:aws:iam::123456789012:role/ecr", credentialsSecretRef: {name: key, namespace: wharfage}}
""",
    "Repository": """
- registryRef: {name: home}
- registryRef: {name: home}
  interval: 1000ms
- registryRef: {name: home}
  repositoryName: payments/api
  visibility: Public
  imageTagMutability: IMMUTABLE_WITH_EXCLUSION
  imageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: "dev-*"}, {filterType: WILDCARD, filter: latest}]
  encryptionConfiguration: {encryptionType: KMS, kmsKey: alias/images}
  imageScanningConfiguration: {scanOnPush: true}
  repositoryPolicy:
    Version: "2012-10-17"
    Statement: [{Effect: Allow, Principal: "*", Action: ["ecr:BatchGetImage"]}]
  tags: {cost-center: "42"}
  catalogData:
    description: The payments API
    architectures: [ARM 64]
    operatingSystems: [Linux]
    logoImageBlob: iVBORw0KGgo=
    aboutText: "# Payments"
    usageText: docker run
  deletionProtection: true
  emptyOnDelete: true
  managementPolicy: Observe
  adoptionPolicy: Adopt
  deletionPolicy: Delete
  interval: 1h30m
  suspend: true
""",
    "LifecyclePolicy": """
- registryRef: {name: home}
  repositoryRef: {name: api}
  mode: Enforce
  rules:
    - rulePriority: 1
      description: untagged go after two weeks
      selection: {tagStatus: untagged, countType: sinceImagePushed, countUnit: days, countNumber: 14}
      action: {type: expire}
    - rulePriority: 2
      selection: {tagStatus: tagged, tagPatternList: ["v*", "*-*-*-*"], countType: imageCountMoreThan, countNumber: 50}
      action: {type: transition, targetStorageClass: archive}
    - rulePriority: 3
      selection: {tagStatus: tagged, tagPrefixList: [dev], storageClass: standard, countType: sinceImagePulled, countUnit: days, countNumber: 30}
      action: {type: transition, targetStorageClass: archive}
    - rulePriority: 4
      selection: {tagStatus: any, storageClass: archive, countType: sinceImageTransitioned, countUnit: days, countNumber: 90}
      action: {type: expire}
  inUseProtection: {enabled: true, keepPrevious: 3, namespaceSelector: {matchLabels: {env: prod}}}
  managementPolicy: Full
  adoptionPolicy: Create
  deletionPolicy: Delete
  interval: 10m
  suspend: false
- registryRef: {name: home}
  repositorySelector: {matchExpressions: [{key: tier, operator: In, values: [prod, staging]}]}
  rules: [{rulePriority: 1, selection: {tagStatus: any, countType: imageCountMoreThan, countNumber: 5}, action: {type: expire}}]
""",
    "PullSecret": """
- registryRef: {name: home}
- registryRef: {name: home}
  namespaceSelector: {matchLabels: {pulls-from: home}}
  secretName: home-pull
  serviceAccounts: [default, builder]
  suspend: true
""",
}

ONE_OF_THREE = "give exactly one of managed, endpoint and aws"
REPLICAS = "more than one replica needs storage.s3 and database.postgres, which replicas can share; or set replicas to 1"
BESIDE = "database.sqlite has a volume of its own only with storage.s3; else it lies beside the images: set storage.filesystem.size and storageClassName"
NODE_PORT = "nodePort needs type NodePort or LoadBalancer"
FILTERS = "imageTagMutabilityExclusionFilters (1 to 5) go with IMMUTABLE_WITH_EXCLUSION and MUTABLE_WITH_EXCLUSION: give both, or neither"
TAG_KEY = "a tag's key has letters, digits, spaces and _.:/=+-@ only: choose another key"
RESERVED = "tags that start with aws: or wharfage.dev/ are reserved: choose another key"
TARGET = "give exactly one of repositoryRef and repositorySelector"
LISTS = "tagPatternList and tagPrefixList go with tagStatus tagged only: leave them out, or change tagStatus"
ONE_LIST = "tagStatus tagged needs one of tagPatternList and tagPrefixList"
UNIT = "countUnit (days) goes with every countType but imageCountMoreThan: add it, or leave it out"
ARCHIVE = "storageClass archive and countType sinceImageTransitioned go together: give both, or neither"
INTERVAL = "an interval is 1s or longer: give a longer one"
TARGET_CLASS = "targetStorageClass (archive) goes with type transition: give both, or neither"

# Manifests that a rule refuses: the kind, fields of the spec (beside what the kind asks for, see `BASE`), the field that is
# reported, and the message.
REFUSED = [
    ("Registry", "region: eu-1", "spec", ONE_OF_THREE),
    ("Registry", "{region: eu-1, managed: {}, aws: {}}", "spec", ONE_OF_THREE),
    ("Registry", "aws: {}", "spec", "region is required with endpoint and aws: name the region that the registry's API is signed for"),
    ("Registry", "managed: {replicas: 2}", "spec.managed", REPLICAS),
    ("Registry", "managed: {replicas: 2, storage: {s3: {bucket: images}}, database: {sqlite: {}}}", "spec.managed", REPLICAS),
    ("Registry", "managed: {storage: {}}", "spec.managed.storage", "give exactly one of filesystem and s3"),
    ("Registry", "managed: {database: {}}", "spec.managed.database", "give exactly one of sqlite and postgres"),
    ("Registry", "managed: {database: {sqlite: {size: 5Gi}}}", "spec.managed", BESIDE),
    ("Registry", "managed: {database: {sqlite: {storageClassName: fast}}, storage: {filesystem: {}}}", "spec.managed", BESIDE),
    ("Registry", "managed: {tls: {}}", "spec.managed.tls", "give secretName, or certManager to have a certificate issued"),
    ("Registry", "managed: {service: {nodePort: 30443}}", "spec.managed.service", NODE_PORT),
    ("Registry", "managed: {service: {type: ClusterIP, nodePort: 30443}}", "spec.managed.service", NODE_PORT),
    (
        "Registry",
        "{managed: {}, scanningConfiguration: {rules: [{scanFrequency: CONTINUOUS_SCAN, repositoryFilters: []}]}}",
        "spec.scanningConfiguration",
        "scanFrequency CONTINUOUS_SCAN needs scanType ENHANCED: set that, or use SCAN_ON_PUSH",
    ),
    (
        "Registry",
        "{managed: {}, scanningConfiguration: {rules: [&rule {scanFrequency: SCAN_ON_PUSH, repositoryFilters: []}, *rule]}}",
        "spec.scanningConfiguration",
        "at most one rule may have a scanFrequency: join the repositoryFilters of those that share one",
    ),
    ("Repository", "imageTagMutability: IMMUTABLE_WITH_EXCLUSION", "spec", FILTERS),
    ("Repository", "imageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: dev}]", "spec", FILTERS),
    (
        "Repository",
        "{imageTagMutability: MUTABLE_WITH_EXCLUSION, imageTagMutabilityExclusionFilters: [{filterType: WILDCARD, filter: '*a*b*'}]}",
        "spec.imageTagMutabilityExclusionFilters[0].filter",
        "a filter has at most two stars",
    ),
    (
        "Repository",
        "encryptionConfiguration: {encryptionType: AES256, kmsKey: alias/mine}",
        "spec.encryptionConfiguration",
        "kmsKey goes with encryptionType KMS or KMS_DSSE: change the type, or leave kmsKey out",
    ),
    (
        "Repository",
        "catalogData: {description: Hello}",
        "spec",
        "catalogData is for public repositories: set visibility to Public, or leave catalogData out",
    ),
    ("Repository", "tags: {'aws:team': a}", "spec.tags", RESERVED),
    ("Repository", "tags: {'AWS:team': a}", "spec.tags", RESERVED),
    ("Repository", "tags: {'wharfage.dev/cluster': a}", "spec.tags", RESERVED),
    ("Repository", "tags: {'a,b': a}", "spec.tags", TAG_KEY),
    ("Repository", "tags: {'': a}", "spec.tags", "a tag's key has 1 to 128 characters"),
    ("Repository", "interval: 0s", "spec.interval", INTERVAL),
    ("Repository", "interval: 0h0m999ms", "spec.interval", INTERVAL),
    ("LifecyclePolicy", "{repositorySelector: {}, interval: 1ms}", "spec.interval", INTERVAL),
    ("LifecyclePolicy", "{}", "spec", TARGET),
    ("LifecyclePolicy", "{repositoryRef: {name: api}, repositorySelector: {}}", "spec", TARGET),
]

# Rules of a LifecyclePolicy that stand alone: selection, action, the field below the rule, and the message.
REFUSED_RULES = [
    ("tagStatus: tagged, countType: imageCountMoreThan, countNumber: 5", "type: expire", ".selection", ONE_LIST),
    (
        "tagStatus: tagged, tagPatternList: ['v*'], tagPrefixList: [v], countType: imageCountMoreThan, countNumber: 5",
        "type: expire",
        ".selection",
        ONE_LIST,
    ),
    ("tagStatus: any, tagPatternList: ['v*'], countType: imageCountMoreThan, countNumber: 5", "type: expire", ".selection", LISTS),
    ("tagStatus: any, countType: imageCountMoreThan, countUnit: days, countNumber: 5", "type: expire", ".selection", UNIT),
    ("tagStatus: any, countType: sinceImagePushed, countNumber: 5", "type: expire", ".selection", UNIT),
    (
        "tagStatus: any, countType: sinceImagePulled, countUnit: days, countNumber: 5",
        "type: expire",
        "",
        "countType sinceImagePulled goes with action.type transition only: expire by sinceImagePushed or imageCountMoreThan",
    ),
    (
        "tagStatus: any, countType: sinceImageTransitioned, storageClass: archive, countUnit: days, countNumber: 90",
        "type: transition, targetStorageClass: archive",
        "",
        "countType sinceImageTransitioned goes with action.type expire only",
    ),
    (
        "tagStatus: any, countType: sinceImageTransitioned, storageClass: archive, countUnit: days, countNumber: 89",
        "type: expire",
        ".selection",
        "countNumber is at least 90 with countType sinceImageTransitioned: images are archived for 90 days or more",
    ),
    ("tagStatus: any, countType: sinceImageTransitioned, countUnit: days, countNumber: 90", "type: expire", ".selection", ARCHIVE),
    ("tagStatus: any, countType: imageCountMoreThan, storageClass: archive, countNumber: 9", "type: expire", ".selection", ARCHIVE),
    ("tagStatus: any, countType: imageCountMoreThan, countNumber: 9", "type: transition", ".action", TARGET_CLASS),
    ("tagStatus: any, countType: imageCountMoreThan, countNumber: 9", "type: expire, targetStorageClass: archive", ".action", TARGET_CLASS),
]
REFUSED += [
    (
        "LifecyclePolicy",
        f"{{repositorySelector: {{}}, rules: [{{rulePriority: 1, selection: {{{selection}}}, action: {{{action}}}}}]}}",
        f"spec.rules[0]{field}",
        message,
    )
    for selection, action, field, message in REFUSED_RULES
]

ANY = "selection: {tagStatus: any, countType: imageCountMoreThan, countNumber: 9}, action: {type: expire}"
UNTAGGED = ANY.replace("any", "untagged")
REFUSED += [
    ("LifecyclePolicy", f"{{repositorySelector: {{}}, rules: [{rules}]}}", "spec.rules", message)
    for rules, message in [
        (f"{{rulePriority: 1, {UNTAGGED}}}, {{rulePriority: 1, {ANY}}}", "every rule needs its own rulePriority: renumber the rules"),
        (
            f"{{rulePriority: 1, {UNTAGGED}}}, {{rulePriority: 2, {UNTAGGED}}}",
            "only one rule may select untagged images per storage class: join them",
        ),
        (
            f"{{rulePriority: 1, {ANY}}}, {{rulePriority: 2, {UNTAGGED}}}",
            "a rule with tagStatus any must have the highest rulePriority of its storage class: number it last",
        ),
    ]
]

# Manifests that the schema alone refuses: the kind, fields of the spec, and the field that is reported. Kubernetes has its own words for it.
MALFORMED = [
    ("Registry", "{managed: {}, region: EU}", "spec.region"),
    ("Registry", "{managed: {}, registryId: '1234'}", "spec.registryId"),
    ("Registry", "managed: {replicas: -1}", "spec.managed.replicas"),
    ("Registry", "managed: {publicUrl: registry.example.com}", "spec.managed.publicUrl"),
    ("Registry", "{managed: {}, accountSettings: {BLOB_MOUNTING: enabled}}", "spec.accountSettings.BLOB_MOUNTING"),
    ("Registry", "{region: eu-1, endpoint: {url: 'https://user@host/path'}}", "spec.endpoint.url"),
    ("Registry", "{region: eu-1, aws: {roleArn: admin}}", "spec.aws.roleArn"),
    ("Repository", "registryRef: {}", "spec.registryRef.name"),
    ("Repository", "registryRef: {name: Home}", "spec.registryRef.name"),
    ("Repository", "repositoryName: Team/Api", "spec.repositoryName"),
    ("Repository", "imageTagMutability: immutable", "spec.imageTagMutability"),
    ("Repository", "tags: {a: 42}", "spec.tags.a"),
    ("Repository", "interval: 10 minutes", "spec.interval"),
    ("Repository", "repositoryPolicy: '{}'", "spec.repositoryPolicy"),
    ("Repository", "deletionPolicy: delete", "spec.deletionPolicy"),
    ("Repository", "suspend: 'true'", "spec.suspend"),
    ("LifecyclePolicy", "{repositorySelector: {}, rules: []}", "spec.rules"),
    ("LifecyclePolicy", "{repositorySelector: {}, mode: enforce}", "spec.mode"),
    ("LifecyclePolicy", "{repositorySelector: {}, inUseProtection: {keepPrevious: -1}}", "spec.inUseProtection.keepPrevious"),
    ("PullSecret", "registryRef: {name: ''}", "spec.registryRef.name"),
    ("PullSecret", "secretName: Home", "spec.secretName"),
    ("PullSecret", "serviceAccounts: default", "spec.serviceAccounts"),
]

# Immutable fields: the kind, fields before and after, the field that is reported, and the message.
IMMUTABLE_ENCRYPTION = "encryptionConfiguration is immutable: make another Repository, and copy the images to it"
IMMUTABLE_VISIBILITY = "visibility is immutable: make another Repository, and copy the images to it"
IMMUTABLE_NAMESPACE = "managed.namespace is immutable, as volumes don't move: make another Registry, and replicate to it"
IMMUTABLE_STORAGE = (
    "storage can't change alone, as its bytes don't move and the database counts on them: set it back, or make another Registry and "
    "replicate to it; with another database, too, this one begins empty"
)
IMMUTABLE_ACCOUNT = (
    "registryId is immutable, as the repositories are that account's (default: 000000000000): make another Registry, and replicate to it"
)
IMMUTABLE_WAY = "a registry that Wharfage runs stays one, and another stays another: make a new Registry"
IMMUTABLE = [
    ("Registry", "{managed: {}, region: eu-1}", "{endpoint: {url: 'http://registry.example.com'}, region: eu-1}", "spec", IMMUTABLE_WAY),
    ("Registry", "{aws: {}, region: eu-1}", "{managed: {}, region: eu-1}", "spec", IMMUTABLE_WAY),
    ("Registry", "managed: {namespace: one, replicas: 1}", "managed: {replicas: 1}", "spec.managed", IMMUTABLE_NAMESPACE),
    ("Registry", "managed: {namespace: one}", "managed: {namespace: other}", "spec.managed", IMMUTABLE_NAMESPACE),
    ("Registry", "{managed: {}, region: eu-1}", "{managed: {}, region: eu-2}", "spec", "region is immutable: make another Registry, and replicate to it"),
    ("Registry", "{managed: {}, region: eu-1}", "{managed: {}}", "spec", "region is immutable: make another Registry, and replicate to it"),
    ("Registry", "{managed: {}, registryId: '123456789012'}", "{managed: {}, registryId: '210987654321'}", "spec", IMMUTABLE_ACCOUNT),
    ("Registry", "{managed: {}}", "{managed: {}, registryId: '123456789012'}", "spec", IMMUTABLE_ACCOUNT),
    ("Registry", "{managed: {}, registryId: '123456789012'}", "{managed: {}}", "spec", IMMUTABLE_ACCOUNT),
    ("Registry", "{aws: {}, region: eu-1, registryId: '123456789012'}", "{aws: {}, region: eu-1}", "spec", "registryId is immutable: make another Registry"),
    ("Repository", "{}", "registryRef: {name: us}", "spec", "registryRef is immutable: make another Repository for the other Registry"),
    ("Repository", "{}", "repositoryName: web", "", "repositoryName is immutable: make another Repository with the new name, and copy the images to it"),
    ("Repository", "{}", "visibility: Public", "spec", IMMUTABLE_VISIBILITY),
    ("Repository", "{}", "encryptionConfiguration: {encryptionType: KMS}", "spec", IMMUTABLE_ENCRYPTION),
    (
        "Repository",
        "encryptionConfiguration: {encryptionType: KMS, kmsKey: a}",
        "encryptionConfiguration: {encryptionType: KMS, kmsKey: b}",
        "spec",
        IMMUTABLE_ENCRYPTION,
    ),
    ("LifecyclePolicy", "repositorySelector: {}", "{repositorySelector: {}, registryRef: {name: us}}", "spec", "registryRef is immutable: make another LifecyclePolicy for the other Registry"),
]  # fmt: skip


def stores(s3=None, postgres=None):
    """A managed Registry's spec, in YAML's flow style: its bucket (else the volume), its connectionSecretRef (else SQLite)."""
    storage = f"{{s3: {s3}}}" if s3 else "{filesystem: {}}"
    database = f"{{postgres: {{connectionSecretRef: {postgres}}}}}" if postgres else "{sqlite: {}}"
    return f"managed: {{storage: {storage}, database: {database}}}"


# The bytes of images move only where the database is another one, too.
IMAGES = "{bucket: images}"
PG = "{name: pg, namespace: wharfage}"
IMMUTABLE += [
    ("Registry", before, after, "spec.managed", IMMUTABLE_STORAGE)
    for before, after in [
        ("managed: {}", "managed: {storage: {s3: {bucket: images}}}"),
        ("managed: {}", stores(IMAGES)),
        (stores(IMAGES), "managed: {replicas: 1}"),
        (stores(), stores(IMAGES)),
        (stores(IMAGES), stores()),
        (stores(IMAGES), stores("{bucket: others}")),
        (stores(postgres=PG), stores(IMAGES, PG)),
        (stores(IMAGES, PG), stores("{bucket: others}", "{name: pg, namespace: wharfage, key: uri}")),
        (stores(IMAGES), stores("{bucket: images, endpoint: 'https://s3.example.com'}")),
        (stores("{bucket: images, endpoint: 'https://s3.example.com'}"), stores("{bucket: images, endpoint: 'https://s3.example.org'}")),
    ]
]

# What says the same in other words, or is free to change.
CHANGEABLE = [
    ("Registry", "{managed: {}}", "{managed: {}, region: local-1, registryId: '000000000000'}"),
    ("Registry", "managed: {}", "managed: {namespace: other}"),
    ("Registry", "{managed: {}, registryId: '000000000000'}", "{managed: {}}"),
    ("Registry", "{managed: {}}", "{managed: {}, region: eu-1}"),
    ("Registry", "{aws: {}, region: eu-1}", "{aws: {}, region: eu-1, registryId: '123456789012'}"),
    ("Registry", "managed: {}", stores()),
    ("Registry", "managed: {}", "managed: {storage: {filesystem: {size: 20Gi, storageClassName: fast}}}"),
    ("Registry", "managed: {}", stores(IMAGES, PG)),
    ("Registry", stores(IMAGES, PG), "managed: {replicas: 1}"),
    ("Registry", stores(IMAGES), stores(IMAGES, PG)),
    ("Registry", stores(IMAGES, PG), stores("{bucket: others}", "{name: other, namespace: wharfage}")),
    ("Registry", stores(IMAGES, PG), stores("{bucket: others}", "{name: pg, namespace: wharfage, key: other}")),
    (
        "Registry",
        stores("{bucket: images, endpoint: 'http://s3.example.com'}"),
        stores(
            "{bucket: images, endpoint: 'https://s3.example.com/', region: eu-1, redirect: true, credentialsSecretRef: {name: s3, namespace: wharfage}}"
        ),
    ),
    ("Registry", "{aws: {}, region: eu-1}", "{endpoint: {url: 'http://registry.example.com'}, region: eu-1}"),
    ("Repository", "{}", "repositoryName: NAME"),
    ("Repository", "{}", "visibility: Private"),
    ("Repository", "{}", "encryptionConfiguration: {encryptionType: AES256}"),
    ("Repository", "{}", "imageTagMutability: IMMUTABLE"),
    ("LifecyclePolicy", "repositorySelector: {}", "repositoryRef: {name: api}"),
]

# What each kind asks for.
BASE = {
    "Registry": {},
    "Repository": {"registryRef": {"name": "home"}},
    "LifecyclePolicy": {
        "registryRef": {"name": "home"},
        "rules": [yaml.safe_load(f"{{rulePriority: 1, {ANY}}}")],
    },
    "PullSecret": {"registryRef": {"name": "home"}},
}


def crds():
    return {crd["spec"]["names"]["kind"]: crd for path in sorted(CRDS.glob("*.yaml")) for crd in [yaml.safe_load(path.read_text())]}


def schema(crd):
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def walk(found, path=""):
    """Every field's path and schema; entries of a list end with []."""
    yield path, found
    for name, child in found.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}".removeprefix("."))
    for keyword, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(found.get(keyword), dict):
            yield from walk(found[keyword], path + suffix)


def manifest(kind, fields, name=None):
    name = name or f"crds-{uuid.uuid4().hex[:12]}"
    spec = copy.deepcopy(BASE[kind])
    spec |= yaml.safe_load(fields.replace("NAME", name)) if isinstance(fields, str) else fields
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


@contextlib.contextmanager
def invalid():
    """Expects a refusal; it holds pairs of field and message then."""
    reported = []
    with pytest.raises(UnprocessibleEntityError) as caught:
        yield reported
    for cause in json.loads(caught.value.body)["details"]["causes"]:
        # After the value that is refused, which only schemas say.
        field = "" if cause["field"] == "<nil>" else cause["field"]
        reported.append((field, cause["message"]))


@pytest.fixture
def dry_run(namespace):
    """Creates an object as `kubectl apply --dry-run=server --validate=strict` does."""

    def create(one):
        resource = namespace.kube.resource(one["kind"], one["apiVersion"])
        options = {"dryRun": "All", "fieldValidation": "Strict"}
        return resource.create(
            body=one, namespace=namespace.name if resource.namespaced else None, query_params=list(options.items())
        ).to_dict()

    return create


@pytest.fixture(scope="module")
def file_mode(tmp_path_factory):
    """The errors of `wharfage plan` for a manifest: pairs of field and message."""

    def plan(one):
        folder = tmp_path_factory.mktemp("manifests")
        (folder / "a.yaml").write_text(yaml.safe_dump(one))
        ran = subprocess.run([tool("WHARFAGE_TEST_BINARY"), "plan", "-f", folder], check=False, capture_output=True, text=True, cwd=folder)
        assert ran.returncode == 1, ran
        name = f"{one['kind']} {'' if one['kind'] == 'Registry' else 'default/'}{one['metadata']['name']}: "
        reported = [line.partition(name)[2] for line in ran.stderr.splitlines() if name in line]
        assert reported, ran.stderr
        return [(line.partition(": ")[0], line.partition(": ")[2]) if line.startswith("spec") else ("", line) for line in reported]

    return plan


def a_good_spec(kind):
    return yaml.safe_load(GOOD[kind])[0]


GOOD_CASES = [(kind, spec) for kind, text in GOOD.items() for spec in yaml.safe_load(text)]


@pytest.mark.parametrize(("kind", "spec"), GOOD_CASES)
def test_a_good_manifest_is_taken_and_kept_as_it_is(dry_run, kind, spec):
    assert dry_run(manifest(kind, spec))["spec"] == {**BASE[kind], **spec}


@pytest.mark.parametrize("kind", crds())
def test_the_good_manifests_have_every_field(kind):
    def given(value, path):
        yield path
        if isinstance(value, dict):
            for name, child in value.items():
                yield from given(child, f"{path}.{name}")
        if isinstance(value, list):
            for child in value:
                yield from given(child, path + "[]")

    have = {path for spec in yaml.safe_load(GOOD[kind]) for path in given(spec, "spec")}
    fields = {path for path, _ in walk(schema(crds()[kind])) if path.startswith("spec") and not path.endswith("*")}
    ours = {path for path in fields if not any(f".{foreign}{within}" in path for foreign in FOREIGN for within in (".", "[]"))}
    assert ours - have == set()


@pytest.mark.parametrize("kind", crds())
def test_every_rule_is_broken_by_a_test(kind):
    messages = {rule["message"] for _, found in walk(schema(crds()[kind])) for rule in found.get("x-kubernetes-validations", [])}
    tested = {case[-1] for case in [*REFUSED, *IMMUTABLE] if case[0] == kind} | SINGLE.get(kind, set())
    assert messages - tested == set()


# Those with a test of their own.
SHORT_NAME = "metadata.name has one character, a repository's name at least two: set spec.repositoryName"
SINGLE = {"Repository": {SHORT_NAME}}


@pytest.mark.parametrize(("kind", "fields", "field", "message"), REFUSED)
def test_what_a_rule_refuses_file_mode_refuses_with_the_same_words(dry_run, file_mode, kind, fields, field, message):
    refused = manifest(kind, fields)
    with invalid() as reported:
        dry_run(refused)
    assert [(path, text.endswith(f": {message}")) for path, text in reported] == [(field, True)], reported
    assert file_mode(refused) == [(field, message)]


def test_a_repository_of_one_character_needs_a_repository_name(dry_run, file_mode):
    refused = manifest("Repository", "{}", name="a")
    with invalid() as reported:
        dry_run(refused)
    assert [text.endswith(SHORT_NAME) for _, text in reported] == [True], reported
    assert file_mode(refused) == [("", SHORT_NAME)]
    dry_run(manifest("Repository", "repositoryName: api", name="a"))


@pytest.mark.parametrize(("kind", "fields", "field"), MALFORMED)
def test_what_a_schema_refuses_file_mode_refuses_at_the_same_field(dry_run, file_mode, kind, fields, field):
    refused = manifest(kind, fields)
    with invalid() as reported:
        dry_run(refused)
    assert field in {path for path, _ in reported}, reported
    assert {path for path, _ in file_mode(refused)} == {field}


def test_kubectl_tells_the_message(namespace):
    refused = manifest("Registry", "managed: {replicas: 2}")
    ran = namespace.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(refused), check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip().endswith(f"spec.managed: Invalid value: {REPLICAS}"), ran.stderr


@pytest.mark.parametrize("kind", crds())
def test_an_unknown_field_is_refused_where_people_ask_for_it(namespace, kind):
    misspelt = manifest(kind, {**a_good_spec(kind), "replica": 2})
    ran = namespace.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(misspelt), check=False)
    assert ran.returncode == 1
    assert 'unknown field "spec.replica"' in ran.stderr


@pytest.mark.parametrize(("kind", "before", "after", "field", "message"), IMMUTABLE)
def test_what_is_immutable_stays(namespace, kind, before, after, field, message):
    old = namespace.apply(manifest(kind, before))
    new = manifest(kind, after, old["metadata"]["name"])
    with invalid() as reported:
        namespace.apply(new)
    assert [(path, text.endswith(message)) for path, text in reported] == [(field, True)], reported
    assert namespace.get(kind, old["metadata"]["name"])["spec"] == old["spec"]


@pytest.mark.parametrize(("kind", "before", "after"), CHANGEABLE)
def test_what_is_not_immutable_changes(namespace, kind, before, after):
    old = namespace.apply(manifest(kind, before))
    new = manifest(kind, after, old["metadata"]["name"])
    assert namespace.apply(new)["spec"] == new["spec"]


@pytest.mark.parametrize("kind", crds())
def test_a_fresh_object_says_that_nobody_has_looked_at_it(dry_run, kind):
    assert dry_run(manifest(kind, a_good_spec(kind)))["status"] == {"observedGeneration": -1}


@pytest.mark.parametrize("kind", crds())
def test_status_is_written_by_its_subresource_alone(namespace, kind):
    made = namespace.apply(manifest(kind, a_good_spec(kind)))
    name = made["metadata"]["name"]
    past = {"type": "Ready", "status": "True", "reason": "InSync", "message": "", "lastTransitionTime": "2026-11-21T05:00:00Z"}
    wrong = {"status": {"observedGeneration": 999, "conditions": [past]}}
    assert namespace.patch(kind, name, wrong)["status"].get("observedGeneration") != 999
    patched = namespace.patch(kind, name, {"spec": None, **wrong}, subresource="status")
    assert patched["status"]["observedGeneration"] == 999
    assert patched["spec"] == made["spec"]
    assert patched["metadata"]["generation"] == made["metadata"]["generation"]


@pytest.mark.parametrize("kind", crds())
def test_kubectl_explains_every_field(cluster, kind):
    names = crds()[kind]["spec"]["names"]
    reported = cluster.kube.kubectl("explain", names["plural"], "--recursive", "--api-version", API_VERSION)
    nodes = {path.replace("[]", "") for path, found in walk(schema(crds()[kind])) if found.get("properties") and "*" not in path}
    for node in sorted(nodes):
        for line in (".", *node.split("."))[1:]:
            assert line in reported
        path = ".".join(filter(None, [names["plural"], node]))
        explained = cluster.kube.kubectl("explain", path, "--api-version", API_VERSION)
        assert "<no description>" not in explained.partition("FIELDS:")[2], f"kubectl explain {path}\n{explained}"


@pytest.mark.parametrize("kind", crds())
def test_kubectl_finds_a_kind_by_its_short_name_and_category(namespace, kind):
    names = crds()[kind]["spec"]["names"]
    name = namespace.apply(manifest(kind, a_good_spec(kind)))["metadata"]["name"]
    for word in names["shortNames"]:
        assert namespace.kubectl("get", word, name, "--output=name").strip().endswith(f"/{name}")
    assert f"/{name}" in namespace.kubectl("get", "wharfage", "--output=name")
