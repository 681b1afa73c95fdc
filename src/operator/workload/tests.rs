//! Snapshots of whole objects: each is what a cluster gets.

use secrecy::SecretString;
use serde_json::{Value, json};

use super::*;
use wharfage_crd::DeletionPolicy;

fn registry(managed: Value) -> Registry {
    let metadata = json!({ "name": "home", "uid": "0b1c9d1e-0000-4000-8000-000000000000" });
    let spec = json!({ "region": "eu-home-1", "registryId": "123456789012", "managed": managed });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
}

fn key(id: &str, secret: &str) -> KeyPair {
    KeyPair { id: id.to_owned(), secret: SecretString::from(secret) }
}

fn inputs(backends: Backends) -> Inputs {
    Inputs {
        operator_namespace: "wharfage".to_owned(),
        image: "registry.example.com/wharfage:1".to_owned(),
        root_key: key("AKIAROOT", "root-secret"),
        backends,
    }
}

fn both_backends() -> Backends {
    Backends {
        database: Some(SecretString::from("postgres://u:p@db/w")),
        bucket: Some(key("AKIABUCKET", "bucket-secret")),
    }
}

fn shared() -> Value {
    json!({
        "replicas": 3,
        "publicUrl": "https://registry.example.com/",
        "storage": { "s3": { "bucket": "images", "region": "eu-1", "endpoint": "https://s3.example.com",
            "credentialsSecretRef": { "name": "s3", "namespace": "secrets" }, "redirect": true } },
        "database": { "postgres": { "connectionSecretRef": { "name": "pg", "namespace": "secrets" } } },
        "tls": { "certManager": { "issuerRef": { "name": "ca", "kind": "ClusterIssuer" } } },
        "service": { "type": "LoadBalancer", "annotations": { "example.com/internal": "true" }, "nodePort": 30443 },
        "namespace": "registries",
        "resources": { "limits": { "memory": "512Mi" } },
        "pod": {
            "labels": { "team": "platform", "app.kubernetes.io/component": "mine" },
            "annotations": { "example.com/scrape": "yes" },
            "nodeSelector": { "disk": "fast" },
            "tolerations": [{ "key": "infra", "operator": "Exists" }],
            "imagePullSecrets": [{ "name": "pull" }],
            "priorityClassName": "high",
            "serviceAccountName": "bucket",
        },
    })
}

fn build(registry: &Registry, inputs: &Inputs) -> Vec<DesiredObject> {
    objects(registry, registry.spec.managed.as_ref().unwrap(), inputs).unwrap()
}

/// Each object under what `kubectl` calls it.
fn shown(objects: Vec<DesiredObject>) -> Vec<(String, Value)> {
    objects.into_iter().map(|it| (format!("{}/{}", it.kind.kind, it.name), it.body)).collect()
}

fn named(objects: &[DesiredObject], kind: &str) -> Vec<String> {
    objects.iter().filter(|it| it.kind.kind == kind).map(|it| it.name.clone()).collect()
}

fn body<'o>(objects: &'o [DesiredObject], kind: &str) -> &'o Value {
    &objects.iter().find(|it| it.kind.kind == kind).unwrap().body
}

#[test]
fn the_smallest_registry_is_one_pod_with_a_volume() {
    insta::assert_yaml_snapshot!(shown(build(&registry(json!({})), &inputs(Backends::default()))));
}

#[test]
fn on_a_bucket_and_postgres_it_is_a_deployment_with_everything_said() {
    insta::assert_yaml_snapshot!(shown(build(&registry(shared()), &inputs(both_backends()))));
}

#[test]
fn whatever_is_on_a_volume_is_a_single_pod() {
    let bucket = json!({ "s3": { "bucket": "images" } });
    let postgres =
        json!({ "postgres": { "connectionSecretRef": { "name": "pg", "namespace": "secrets" } } });
    for (managed, size) in [
        (
            json!({ "storage": { "filesystem": { "size": "1Ti", "storageClassName": "slow" } } }),
            "1Ti",
        ),
        (json!({ "storage": { "filesystem": {} }, "database": postgres }), "10Gi"),
        (json!({ "storage": bucket }), "2Gi"),
        (json!({ "storage": bucket, "database": { "sqlite": { "size": "5Gi" } } }), "5Gi"),
    ] {
        let objects = build(&registry(managed.clone()), &inputs(Backends::default()));
        assert_eq!(named(&objects, "Deployment"), Vec::<String>::new());
        let template = &body(&objects, "StatefulSet")["spec"]["volumeClaimTemplates"][0];
        assert_eq!(template["spec"]["resources"]["requests"]["storage"], size, "{managed}");
        assert!(volume(&serde_json::from_value(managed).unwrap()).is_some());
    }
}

#[test]
fn what_is_not_wanted_is_not_there() {
    let objects =
        build(&registry(json!({ "networkPolicy": "Disabled" })), &inputs(Backends::default()));
    for kind in ["NetworkPolicy", "PodDisruptionBudget", "Secret", "Certificate", "Deployment"] {
        assert_eq!(named(&objects, kind), Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn objects_have_an_owner_only_if_they_are_to_go_with_it() {
    let owners = |registry: &Registry| {
        let objects = build(registry, &inputs(both_backends()));
        objects.iter().filter(|it| it.body["metadata"].get("ownerReferences").is_some()).count()
    };
    let mut registry = registry(shared());
    assert_eq!(owners(&registry), 0);
    registry.spec.deletion_policy = Some(DeletionPolicy::Delete);
    assert_eq!(owners(&registry), build(&registry, &inputs(both_backends())).len());
}

#[test]
fn no_secret_is_anywhere_but_in_secrets() {
    for object in build(&registry(shared()), &inputs(both_backends())) {
        let text = object.body.to_string();
        if object.kind.kind != "Secret" {
            for secret in ["root-secret", "bucket-secret", "postgres://"] {
                assert!(!text.contains(secret), "{secret} in {text}");
            }
        }
    }
    let objects = build(&registry(shared()), &inputs(both_backends()));
    assert!(!format!("{:?} {objects:?}", inputs(both_backends())).contains("-secret"));
}

#[test]
fn pods_are_replaced_when_what_they_read_at_their_start_changes() {
    let settings = |managed: Value, inputs: &Inputs| {
        let objects = build(&registry(managed), inputs);
        body(&objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]["wharfage.dev/settings"].clone()
    };
    let before = settings(shared(), &inputs(both_backends()));
    assert_eq!(settings(shared(), &inputs(both_backends())), before);

    let mut moved = shared();
    moved["publicUrl"] = json!("https://other.example.com");
    assert_ne!(settings(moved, &inputs(both_backends())), before);
    let mut rotated = both_backends();
    rotated.database = Some(SecretString::from("postgres://u:new@db/w"));
    assert_ne!(settings(shared(), &inputs(rotated)), before);
    let mut rekeyed = inputs(both_backends());
    rekeyed.root_key.id = "AKIAOTHER".to_owned();
    assert_ne!(settings(shared(), &rekeyed), before);
    // A renewed certificate is read by the pods that run.
    let mut plain = shared();
    plain["resources"] = json!({ "limits": { "memory": "1Gi" } });
    assert_eq!(settings(plain, &inputs(both_backends())), before);
}

#[test]
fn names_fit_into_what_is_made_of_them() {
    assert_eq!(Names::of("home").workload(), "home");
    let longest = "a".repeat(253);
    for name in ["home.example.com", "0815", &longest, "home-example-com-"] {
        let workload = Names::of(name).workload();
        assert!(workload.len() <= 52, "{workload}");
        assert!(Names::of(name).admin().len() <= 63);
        assert!(
            workload.starts_with(|it: char| it.is_ascii_lowercase()) && !workload.contains('.'),
            "{workload}"
        );
    }
    assert_ne!(Names::of("a.b").workload(), Names::of("a-b").workload());
    assert_ne!(Names::of(&longest).workload(), Names::of(&"a".repeat(252)).workload());
}

#[test]
fn clients_and_the_cluster_are_told_where_it_is() {
    let names = Names::of("home");
    for (managed, public, cluster) in [
        (json!({}), "http://home.wharfage.svc", "http://home.wharfage.svc"),
        (
            json!({ "tls": { "secretName": "t" } }),
            "https://home.wharfage.svc",
            "https://home.wharfage.svc",
        ),
        (
            json!({ "publicUrl": "https://r.example.com/", "service": { "port": 5000 } }),
            "https://r.example.com",
            "http://home.wharfage.svc:5000",
        ),
    ] {
        let managed: ManagedRegistry = serde_json::from_value(managed).unwrap();
        assert_eq!(public_url(&managed, &names, "wharfage"), public);
        assert_eq!(cluster_url(&managed, &names, "wharfage"), cluster);
        let spec = json!({ "managed": managed });
        let home = serde_json::from_value(json!({ "metadata": { "name": "home" }, "spec": spec }))
            .unwrap();
        assert_eq!(told_url(&home, "wharfage").as_deref(), Some(public));
    }
}

#[test]
fn the_secret_of_the_root_key_has_no_owner() {
    let secret = root_key_secret(&Names::of("home"), "wharfage", &key("AKIAROOT", "root-secret"));
    assert_eq!(secret.metadata.owner_references, None);
    assert_eq!(secret.metadata.labels.unwrap()[REGISTRY_LABEL], "home");
    assert_eq!(
        secret.data.unwrap().into_keys().collect::<Vec<_>>(),
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    );
}

#[test]
fn a_certificate_is_for_the_name_that_clients_use() {
    let names = |managed: Value| {
        let objects = build(&registry(managed), &inputs(Backends::default()));
        let spec = body(&objects, "Certificate")["spec"].clone();
        (spec["secretName"].clone(), spec["dnsNames"].clone())
    };
    let issued = json!({ "certManager": { "issuerRef": { "name": "ca" } } });
    assert_eq!(names(json!({ "tls": issued })), (json!("home-tls"), json!(["home.wharfage.svc"])));
    assert_eq!(
        names(json!({ "tls": issued, "publicUrl": "https://r.example.com:8443" })),
        (json!("home-tls"), json!(["r.example.com"]))
    );
    let said = json!({ "secretName": "mine", "certManager": { "issuerRef": { "name": "ca" }, "dnsNames": ["a", "b"] } });
    assert_eq!(names(json!({ "tls": said })), (json!("mine"), json!(["a", "b"])));

    assert_eq!(certificate_trouble(&json!({})), None);
    let status = |ready: &str| json!({ "status": { "conditions": [{ "type": "Ready", "status": ready, "message": "Issuer ca not found" }] } });
    assert_eq!(certificate_trouble(&status("True")), None);
    assert_eq!(certificate_trouble(&status("False")).unwrap(), "Issuer ca not found");
}

#[test]
fn a_stateful_set_keeps_the_templates_that_it_has() {
    let mut wanted = json!({ "spec": { "volumeClaimTemplates": [{ "size": "new" }] } });
    keep_templates(&mut wanted, &json!({ "spec": {} }));
    assert_eq!(wanted["spec"]["volumeClaimTemplates"][0]["size"], "new");
    keep_templates(
        &mut wanted,
        &json!({ "spec": { "volumeClaimTemplates": [{ "size": "old" }] } }),
    );
    assert_eq!(wanted["spec"]["volumeClaimTemplates"][0]["size"], "old");
}
