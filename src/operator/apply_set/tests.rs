//! Sets of objects in a cluster.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Resource;
use serde_json::{Value, json};

use super::*;
use crate::fake_kubernetes::FakeKubernetes;

const KEY: &str = "wharfage.dev/registry";

struct Fixture {
    cluster: FakeKubernetes,
    client: Client,
    last_applied: LastApplied,
    namespaces: ManagedNamespaces,
    kinds: [SetKind; 2],
}

fn kind<K: Resource<DynamicType = ()>>() -> SetKind {
    SetKind { kind: ApiResource::erase::<K>(&()), is_optional: false }
}

impl Fixture {
    fn new() -> Self {
        let cluster = FakeKubernetes::default();
        let kinds = [kind::<ConfigMap>(), kind::<Secret>()];
        Self {
            client: cluster.client(),
            cluster,
            last_applied: LastApplied::default(),
            namespaces: ManagedNamespaces::Every,
            kinds,
        }
    }

    fn set(&self, owner: &str) -> ApplySet<'_> {
        ApplySet {
            client: &self.client,
            last_applied: &self.last_applied,
            namespace: "n".to_owned(),
            namespaces: &self.namespaces,
            label: SetLabel { key: KEY, value: owner.to_owned() },
            kinds: &self.kinds,
            retained: Vec::new(),
        }
    }

    async fn apply(&self, owner: &str, names: &[&str]) -> Result<String, ApplyError> {
        let (set, desired) =
            (self.set(owner), names.iter().map(|name| desired(name, owner)).collect::<Vec<_>>());
        let found = set.find().await?;
        set.check_foreign(&desired, &found).await?;
        Ok(set.apply(&desired, &found).await?.to_string())
    }

    /// Creates a ConfigMap as another party does.
    fn create(&self, name: &str, labels: &Value) {
        self.cluster.create("configmaps", body(name, labels));
    }
}

fn body(name: &str, labels: &Value) -> Value {
    let owner = json!({ "apiVersion": "v1", "kind": "Registry", "name": "home", "uid": "owner" });
    let metadata =
        json!({ "name": name, "namespace": "n", "labels": labels, "ownerReferences": [owner] });
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata })
}

fn desired(name: &str, owner: &str) -> DesiredObject {
    let body = body(name, &json!({ KEY: owner }));
    DesiredObject { kind: ApiResource::erase::<ConfigMap>(&()), name: name.to_owned(), body }
}

#[tokio::test]
async fn objects_are_applied_once_and_pruned_when_no_longer_wanted() {
    let fixture = Fixture::new();
    let changes = fixture.apply("home", &["a", "b"]).await.unwrap();
    assert_eq!(changes, "ConfigMap n/a created, ConfigMap n/b created");
    let writes = fixture.cluster.writes();
    assert_eq!(fixture.apply("home", &["a", "b"]).await.unwrap(), "");
    assert_eq!(fixture.cluster.writes(), writes);
    assert_eq!(fixture.apply("home", &["b"]).await.unwrap(), "ConfigMap n/a deleted");
    fixture.last_applied.forget(&kind::<ConfigMap>().kind, "n", "b");
    assert_eq!(fixture.apply("home", &["b"]).await.unwrap(), "ConfigMap n/b configured");
}

#[tokio::test]
async fn objects_of_others_are_left_unchanged() {
    let fixture = Fixture::new();
    fixture.apply("home", &["ours"]).await.unwrap();
    fixture.apply("other", &["others"]).await.unwrap();
    fixture.create("copy", &json!({ KEY: "home" }));
    fixture.create("foreign", &Value::Null);
    let writes = fixture.cluster.writes();
    for taken in ["foreign", "others"] {
        let error = fixture.apply("home", &["ours", taken]).await.unwrap_err();
        assert!(matches!(error, ApplyError::Foreign(object) if object.name == taken));
    }
    assert_eq!(fixture.cluster.writes(), writes);
    assert_eq!(
        fixture.set("home").delete_all().await.unwrap().to_string(),
        "ConfigMap n/ours deleted"
    );
    assert_eq!(fixture.cluster.names("configmaps"), ["copy", "foreign", "others"]);
}

#[tokio::test]
async fn released_objects_outlive_their_owner() {
    let fixture = Fixture::new();
    fixture.apply("home", &["ours"]).await.unwrap();
    fixture.create("copy", &json!({ KEY: "home" }));
    let changes = fixture.set("home").release("owner", BTreeSet::new()).await.unwrap();
    assert_eq!(changes.to_string(), "ConfigMap n/ours released");
    let owners = |name| {
        fixture.cluster.get("configmaps", "n", name).unwrap()["metadata"]["ownerReferences"].clone()
    };
    assert_eq!((owners("ours"), owners("copy").as_array().unwrap().len()), (json!([]), 1));
    assert!(fixture.set("home").release("owner", BTreeSet::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_object_is_replaced_only_if_it_is_the_one_that_was_read() {
    let fixture = Fixture::new();
    fixture.apply("home", &["a"]).await.unwrap();
    let (set, kind) = (fixture.set("home"), kind::<ConfigMap>().kind);
    let error = set.delete_to_replace(&kind, "a", Some("another".to_owned())).await.unwrap_err();
    assert!(matches!(error, ApplyError::Rejected(..)));
    let uid = fixture.cluster.get("configmaps", "n", "a").unwrap()["metadata"]["uid"]
        .as_str()
        .map(str::to_owned);
    assert!(set.delete_to_replace(&kind, "a", uid.clone()).await.unwrap());
    assert!(set.delete_to_replace(&kind, "a", uid).await.unwrap(), "it is gone");
    assert_eq!(fixture.apply("home", &["a"]).await.unwrap(), "ConfigMap n/a created");
}
