//! Pages of other origins: refused by silence, unless the origin was configured.

use reqwest::Method;

use crate::bed::{self};
use crate::oci::client::Repository;

const ORIGIN: &str = "https://ui.example.com";

#[tokio::test]
async fn a_page_of_a_configured_origin_may_pull() {
    let server = bed::wharfage().arg("--cors-allow-origin").arg(ORIGIN).start().await;
    let repository = Repository::create(&server).await;
    let asked = repository.anonymous(Method::OPTIONS, &repository.manifest("latest"));
    let asked = asked.header("Origin", ORIGIN).header("Access-Control-Request-Method", "GET");
    let allowed =
        asked.header("Access-Control-Request-Headers", "authorization,accept").send().await;
    allowed.assert_status(204);
    assert_eq!(allowed.header("Access-Control-Allow-Origin"), ORIGIN);
    assert!(allowed.header("Access-Control-Allow-Methods").contains("PATCH"));
    assert!(allowed.header("Access-Control-Allow-Headers").contains("authorization"));

    for (authorized, status) in [(true, 404), (false, 401)] {
        let target = repository.manifest("latest");
        let call = if authorized {
            repository.call(Method::GET, &target)
        } else {
            repository.anonymous(Method::GET, &target)
        };
        let answer = call.header("Origin", ORIGIN).send().await;
        answer.assert_status(status);
        assert_eq!(answer.header("Access-Control-Allow-Origin"), ORIGIN);
        let exposed = answer.header("Access-Control-Expose-Headers");
        for header in [
            "docker-content-digest",
            "link",
            "www-authenticate",
            "oci-subject",
            "oci-filters-applied",
        ] {
            assert!(exposed.contains(header), "{header} is not in {exposed}");
        }
    }
    let other = repository
        .call(Method::GET, "/v2/")
        .header("Origin", "https://evil.example.com")
        .send()
        .await;
    assert!(!other.assert_status(200).headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn without_configuration_no_page_may() {
    let server = bed::wharfage().start().await;
    let repository = Repository::create(&server).await;
    let asked = repository.call(Method::OPTIONS, "/v2/").header("Origin", ORIGIN);
    let answer = asked.header("Access-Control-Request-Method", "GET").send().await;
    answer.assert_status(405);
    let read = repository.call(Method::GET, "/v2/").header("Origin", ORIGIN).send().await;
    for answer in [answer, read] {
        assert!(
            !answer.headers.keys().any(|name| name.as_str().starts_with("access-control")),
            "{answer:?}"
        );
    }
}
