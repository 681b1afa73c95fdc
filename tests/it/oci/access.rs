//! Tests of access: the Basic challenge, tokens and signed URLs; and requests without any.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::Method;

use super::client::{Backend, unique};
use super::images;

on_both_backends!(
    who_shows_no_token_is_challenged,
    what_is_no_token_is_no_credential,
    a_token_opens_the_registry,
    a_layers_download_url_opens_that_layer_alone,
    an_unknown_endpoint_is_404,
    an_endpoint_names_its_methods,
    a_name_that_is_none_is_400,
    another_accounts_host_is_another_registry,
);

async fn who_shows_no_token_is_challenged(backend: Backend) {
    let repository = backend.repository().await;
    for target in [
        "/v2/",
        "/v2/_catalog",
        &repository.manifest("latest"),
        "/v2/no/such-repository/tags/list",
        "/v2/X",
    ] {
        let answer = repository.anonymous(Method::GET, target).send().await;
        answer.assert_status(401);
        let challenge =
            format!("Basic realm=\"{}/\",service=\"ecr.amazonaws.com\"", repository.base());
        assert_eq!(answer.header("Www-Authenticate"), challenge);
        assert_eq!(answer.header("Docker-Distribution-Api-Version"), "registry/2.0");
        assert_eq!(answer.header("Content-Type"), "text/plain; charset=utf-8");
        assert_eq!(answer.body, b"Not Authorized\n");
    }
}

async fn what_is_no_token_is_no_credential(backend: Backend) {
    let repository = backend.repository().await;
    let token = repository.authorization().strip_prefix("Basic ").unwrap().to_owned();
    let password = String::from_utf8(BASE64.decode(&token).unwrap())
        .unwrap()
        .strip_prefix("AWS:")
        .unwrap()
        .to_owned();
    for authorization in [
        "Basic".to_owned(),
        "Basic !".to_owned(),
        format!("Bearer {token}"),
        format!("Basic {}", BASE64.encode("AWS:password")),
        format!("Basic {}", BASE64.encode(format!("root:{password}"))),
        format!(
            "Basic {}",
            BASE64.encode("AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
        ),
        format!("Basic {}", "A".repeat(20_000)),
    ] {
        let answer = repository
            .anonymous(Method::GET, "/v2/")
            .header("Authorization", &authorization)
            .send()
            .await;
        answer.assert_status(401);
    }
}

async fn a_token_opens_the_registry(backend: Backend) {
    let repository = backend.repository().await;
    repository.get("/v2/").await.assert_status(200);
    repository.get("/v2").await.assert_status(200);
    repository.head("/v2/").await.assert_status(200);
}

async fn a_layers_download_url_opens_that_layer_alone(backend: Backend) {
    let repository = backend.repository().await;
    let (manifest, _) = images::pushed(&repository).await;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let asked = repository
        .ecr()
        .get_download_url_for_layer()
        .repository_name(&repository.name)
        .layer_digest(layer);
    let url = asked.send().await.unwrap().download_url().unwrap().to_owned();
    let answer = repository.anonymous(Method::GET, &url).send().await;
    assert_eq!(answer.assert_status(200).header("Docker-Content-Digest"), layer);
    let other = repository.push_blob(&unique(10)).await;
    let elsewhere = url.replace(layer, other.as_str());
    repository.anonymous(Method::GET, &elsewhere).send().await.assert_refused(403, "DENIED");
    repository.anonymous(Method::DELETE, &url).send().await.assert_status(401);
}

async fn an_unknown_endpoint_is_404(backend: Backend) {
    let repository = backend.repository().await;
    for target in
        ["/v2/nothing", "/v2/a/b/c", "/v2/ab/tags", "/v2/ab/blobs/", "/v2/ab/tags/list/more"]
    {
        let status = repository.get(target).await.status.as_u16();
        assert!(matches!(status, 400 | 404), "{target} is {status}");
    }
}

async fn an_endpoint_names_its_methods(backend: Backend) {
    let repository = backend.repository().await;
    for (method, target, allow) in [
        (Method::POST, "/v2/".to_owned(), "GET, HEAD"),
        (Method::PATCH, repository.manifest("latest"), "GET, HEAD, PUT, DELETE"),
        (Method::PUT, repository.uploads(), "POST"),
        (Method::POST, format!("/v2/{}/tags/list", repository.name), "GET, HEAD"),
        (Method::OPTIONS, "/v2/_catalog".to_owned(), "GET, HEAD"),
    ] {
        let refused = repository.call(method, &target).send().await;
        refused.assert_refused(405, "UNSUPPORTED");
        assert_eq!(refused.header("Allow"), allow);
    }
}

async fn a_name_that_is_none_is_400(backend: Backend) {
    let repository = backend.repository().await;
    for name in ["UPPER", "a..b", "a/-b", "a%2F%2Fb", &"a".repeat(257)] {
        let refused = repository.get(&format!("/v2/{name}/manifests/latest")).await;
        refused.assert_refused(400, "NAME_INVALID");
    }
}

async fn another_accounts_host_is_another_registry(backend: Backend) {
    let repository = backend.repository().await;
    images::pushed(&repository).await;
    let host = "999999999999.dkr.ecr.local-1.localhost:5000";
    let call = |method: Method, target: &str| repository.call(method, target).header("Host", host);
    call(Method::GET, "/v2/").send().await.assert_status(200);
    let resource = format!("arn:aws:ecr:local-1:999999999999:repository/{}", repository.name);
    for (method, target, action) in [
        (Method::POST, repository.uploads(), "InitiateLayerUpload"),
        (Method::GET, format!("/v2/{}/tags/list", repository.name), "ListImages"),
        (Method::DELETE, repository.manifest("v1"), "BatchDeleteImage"),
    ] {
        let text = call(method, &target).send().await.assert_refused(403, "DENIED");
        assert!(
            text.contains(&format!("to perform: ecr:{action} on resource: {resource} ")),
            "{text}"
        );
    }
    call(Method::GET, "/v2/_catalog").send().await.assert_refused(403, "DENIED");
}
