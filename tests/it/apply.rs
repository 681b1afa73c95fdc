//! Applying to a registry that knows but a part of ECR's API, as imitations of it do.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use secrecy::SecretString;
use serde_json::{Value, json};
use wharfage::apply::{Connection, Ecr, Verdict, apply, observe, observe_settings};
use wharfage::plan::{Desired, Observed, Plan, desired, plan};

const FOLDER: &str = r#"
apiVersion: wharfage.dev/v1alpha1
kind: Registry
metadata: {name: home}
spec: {region: eu-1, endpoint: {url: "http://127.0.0.1:1"}, accountSettings: {BLOB_MOUNTING: ENABLED}, scanningConfiguration: {}, policy: {}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: found, namespace: team}
spec: {registryRef: {name: home}, repositoryPolicy: {Version: "2012-10-17", Statement: [{Effect: Allow, Principal: '*', Action: 'ecr:BatchGetImage'}]}}
---
apiVersion: wharfage.dev/v1alpha1
kind: Repository
metadata: {name: new, namespace: team}
spec: {registryRef: {name: home}}
---
apiVersion: wharfage.dev/v1alpha1
kind: LifecyclePolicy
metadata: {name: keep, namespace: team}
spec: {registryRef: {name: home}, repositoryRef: {name: new}, rules: [{rulePriority: 1, selection: {tagStatus: any, countType: imageCountMoreThan, countNumber: 5}, action: {type: expire}}]}
"#;

type Calls = Arc<Mutex<Vec<String>>>;

/// Answers as a registry with one repository that has neither policies, nor previews, nor account settings.
fn answer(operation: &str, body: &Value) -> (StatusCode, Value) {
    let repository = |name: &str| {
        let arn = format!("arn:aws-elsewhere:ecr:eu-1:123456789012:repository/{name}");
        json!({ "repositoryName": name, "repositoryArn": arn, "imageTagMutability": "MUTABLE" })
    };
    match operation {
        "DescribeRepositories" if body.get("nextToken").is_none() => {
            (StatusCode::OK, json!({ "repositories": [repository("found")], "nextToken": "more" }))
        }
        "DescribeRepositories" => {
            (StatusCode::OK, json!({ "repositories": [repository("foreign")] }))
        }
        "ListTagsForResource" => (StatusCode::OK, json!({ "tags": [] })),
        "CreateRepository" => {
            let name = body["repositoryName"].as_str().unwrap();
            (StatusCode::OK, json!({ "repository": repository(name) }))
        }
        "DescribeRegistry" => (StatusCode::OK, json!({ "registryId": "123456789012" })),
        "GetRepositoryPolicy" => (
            StatusCode::BAD_REQUEST,
            json!({ "__type": "AccessDeniedException", "message": "not for you" }),
        ),
        "StartLifecyclePolicyPreview" | "GetLifecyclePolicyPreview" => {
            (StatusCode::NOT_FOUND, json!({}))
        }
        _ => (StatusCode::BAD_REQUEST, json!({ "__type": "UnknownOperationException" })),
    }
}

/// Starts the registry; every operation that is called is noted.
async fn imitation() -> (Ecr, Calls) {
    imitation_for(None).await
}

/// The same, for a Registry that names this account.
async fn imitation_for(registry_id: Option<&str>) -> (Ecr, Calls) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let calls = Calls::default();
    let noted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            let service = service_fn(move |request: Request<Incoming>| {
                let noted = Arc::clone(&noted);
                async move {
                    let target = request.headers()["x-amz-target"].to_str().unwrap().to_owned();
                    let operation = target.rsplit('.').next().unwrap().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let (status, answer) =
                        answer(&operation, &serde_json::from_slice(&body).unwrap());
                    noted.lock().unwrap().push(operation);
                    let answer = Full::new(Bytes::from(answer.to_string()));
                    Ok::<_, Infallible>(Response::builder().status(status).body(answer).unwrap())
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let region = "eu-1".parse().unwrap();
    let connection = Connection::with_key(
        endpoint,
        region,
        "AKIAEXAMPLE".to_owned(),
        SecretString::from("secret"),
    );
    (Ecr::new(connection, registry_id.map(|it| it.parse().unwrap()).as_ref()).await.unwrap(), calls)
}

fn wanted() -> Desired {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), FOLDER).unwrap();
    let manifests = wharfage::manifests::load(folder.path()).unwrap();
    desired(&manifests, &manifests.registry("home").unwrap().resource, "local")
}

#[tokio::test]
async fn what_a_registry_lacks_is_told_for_the_resource_that_needs_it_and_all_else_is_done() {
    let (ecr, calls) = imitation().await;
    let desired = wanted();
    let plan: Plan = plan(&desired, &observe(&ecr, &desired).await.unwrap());

    let refused: Vec<_> =
        plan.refused.iter().map(|it| format!("{} {}", it.object, it.reason)).collect();
    let lacks = "Registry home UnsupportedByRegistry";
    assert_eq!(refused, [lacks, lacks, lacks, "Repository team/found AccessDeniedException"]);
    for (what, refused) in
        ["account settings", "scanning configuration", "policy"].iter().zip(&plan.refused)
    {
        assert!(refused.message.contains(&format!("this registry has no {what}")), "{refused:?}");
    }
    assert!(
        !calls.lock().unwrap().contains(&"GetLifecyclePolicy".to_owned()),
        "nothing asks for one that is there"
    );

    let report = apply(&ecr, &plan, |_| {}).await;
    let [created, previewed] = report.outcomes.as_slice() else { panic!("{report:?}") };
    assert_eq!((created.object.name.as_str(), &created.verdict), ("new", &Verdict::Done));
    let Verdict::Failed(error) = &previewed.verdict else { panic!("{previewed:?}") };
    assert_eq!(error.name, "UnexpectedResponse");
    assert!(error.message.contains("HTTP status 404"), "{error}");
    assert!(!report.succeeded());
    let calls = calls.lock().unwrap();
    let written = calls.iter().filter(|it| {
        !it.starts_with("Get") && !it.starts_with("List") && !it.starts_with("Describe")
    });
    assert_eq!(written.collect::<Vec<_>>(), ["CreateRepository", "StartLifecyclePolicyPreview"]);
}

#[tokio::test]
async fn another_accounts_registry_is_not_taken_for_ones_own() {
    let (ecr, calls) = imitation_for(Some("210987654321")).await;
    let desired = wanted();
    let settings = observe_settings(&ecr, &desired.settings).await;
    let observed = Observed { settings, ..Observed::default() };
    let plan: Plan = plan(
        &Desired { repositories: Vec::new(), lifecycle_policies: Vec::new(), ..desired },
        &observed,
    );
    assert!(plan.is_empty(), "{plan}");
    let refused: Vec<&str> = plan.refused.iter().map(|it| it.reason.as_str()).collect();
    assert_eq!(refused, ["RegistryIdMismatch"; 3]);
    assert!(
        plan.refused[0].message.contains("belong to registry 123456789012, not to 210987654321"),
        "{plan}"
    );
    assert_eq!(*calls.lock().unwrap(), ["DescribeRegistry"]);
}
