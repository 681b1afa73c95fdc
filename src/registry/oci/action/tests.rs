//! Request targets and their actions.

use super::*;
use proptest::prelude::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ID: &str = "6b3c9a93-af5d-473f-a4cf-9710022185cd";

fn parse(method: &str, target: &str) -> Result<OciAction, ActionError> {
    let (path, query) =
        target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    OciAction::parse(&method.parse().unwrap(), path, query)
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn digest() -> Digest {
    Digest::sha256(b"")
}

fn act(method: &str, target: &str) -> RepositoryAction {
    match parse(method, target) {
        Ok(OciAction::Repository(_, act)) => act,
        other => panic!("{method} {target} is {other:?}"),
    }
}

#[test]
fn the_root_answers_with_and_without_its_slash() {
    assert_eq!(parse("GET", "/v2/"), Ok(OciAction::Ping));
    assert_eq!(parse("GET", "/v2"), Ok(OciAction::Ping));
    assert_eq!(parse("POST", "/v2/"), Err(ActionError::Method("GET, HEAD")));
}

#[test]
fn every_endpoint_of_the_specification_is_an_action() {
    let tag = Reference::Tag("latest".parse().unwrap());
    let id: Uuid = ID.parse().unwrap();
    let cases = [
        (
            "GET",
            "manifests/latest".to_owned(),
            RepositoryAction::ReadManifest { reference: tag.clone(), head: false },
        ),
        (
            "HEAD",
            "manifests/latest".to_owned(),
            RepositoryAction::ReadManifest { reference: tag, head: true },
        ),
        (
            "DELETE",
            "manifests/latest".to_owned(),
            RepositoryAction::DeleteTag("latest".parse().unwrap()),
        ),
        ("DELETE", format!("manifests/sha256:{HEX}"), RepositoryAction::DeleteManifest(digest())),
        (
            "GET",
            format!("blobs/sha256:{HEX}"),
            RepositoryAction::ReadBlob { digest: digest(), head: false },
        ),
        (
            "HEAD",
            format!("blobs/sha256:{HEX}"),
            RepositoryAction::ReadBlob { digest: digest(), head: true },
        ),
        ("DELETE", format!("blobs/sha256:{HEX}"), RepositoryAction::DeleteBlob(digest())),
        (
            "POST",
            "blobs/uploads/".to_owned(),
            RepositoryAction::StartUpload(UploadStart::Session(Algorithm::Sha256)),
        ),
        (
            "POST",
            "blobs/uploads".to_owned(),
            RepositoryAction::StartUpload(UploadStart::Session(Algorithm::Sha256)),
        ),
        (
            "POST",
            "blobs/uploads/?digest-algorithm=sha512".to_owned(),
            RepositoryAction::StartUpload(UploadStart::Session(Algorithm::Sha512)),
        ),
        (
            "POST",
            format!("blobs/uploads/?digest=sha256:{HEX}"),
            RepositoryAction::StartUpload(UploadStart::Whole(digest())),
        ),
        (
            "POST",
            format!("blobs/uploads/?mount=sha256%3A{HEX}&from=other%2Fone"),
            RepositoryAction::StartUpload(UploadStart::Mount {
                digest: digest(),
                from: Some(name("other/one")),
            }),
        ),
        (
            "POST",
            "blobs/uploads/?mount=&from=other".to_owned(),
            RepositoryAction::StartUpload(UploadStart::Session(Algorithm::Sha256)),
        ),
        (
            "POST",
            "blobs/uploads/?mount=sha256:short".to_owned(),
            RepositoryAction::StartUpload(UploadStart::Session(Algorithm::Sha256)),
        ),
        (
            "POST",
            format!("blobs/uploads/?mount=sha256:{HEX}"),
            RepositoryAction::StartUpload(UploadStart::Mount { digest: digest(), from: None }),
        ),
        ("PATCH", format!("blobs/uploads/{ID}"), RepositoryAction::PatchUpload(id)),
        (
            "PUT",
            format!("blobs/uploads/{ID}?digest=sha256:{HEX}"),
            RepositoryAction::PutUpload(id, digest()),
        ),
        ("GET", format!("blobs/uploads/{ID}"), RepositoryAction::UploadStatus(id)),
        ("DELETE", format!("blobs/uploads/{ID}"), RepositoryAction::CancelUpload(id)),
        (
            "GET",
            "tags/list?n=5&last=abc".to_owned(),
            RepositoryAction::ListTags(PageRequest { n: Some(5), last: Some("abc".to_owned()) }),
        ),
        (
            "GET",
            format!("referrers/sha256:{HEX}?artifactType=application/vnd.example+json"),
            RepositoryAction::ListReferrers {
                digest: digest(),
                artifact_type: Some("application/vnd.example+json".to_owned()),
                after: None,
            },
        ),
    ];
    for (method, tail, expected) in cases {
        let parsed = parse(method, &format!("/v2/team/app/{tail}"));
        assert_eq!(
            parsed,
            Ok(OciAction::Repository(name("team/app"), expected)),
            "{method} {tail}"
        );
    }
    assert_eq!(parse("GET", "/v2/_catalog"), Ok(OciAction::Catalog(PageRequest::default())));
}

#[test]
fn a_repository_may_be_named_like_an_endpoint() {
    let found = parse("GET", "/v2/manifests/tags/list/manifests/latest");
    assert!(
        matches!(found, Ok(OciAction::Repository(repository, RepositoryAction::ReadManifest { .. })) if repository == name("manifests/tags/list"))
    );
    let found = parse("GET", "/v2/blobs/uploads/tags/list");
    assert!(
        matches!(found, Ok(OciAction::Repository(repository, RepositoryAction::ListTags(_))) if repository == name("blobs/uploads"))
    );
}

#[test]
fn a_manifest_gets_each_tag_of_path_and_query_once() {
    let tags = |text: &[&str]| text.iter().map(|tag| tag.parse().unwrap()).collect::<Vec<Tag>>();
    assert_eq!(
        act("PUT", &format!("/v2/ab/manifests/sha256:{HEX}?tag=1&tag=1.2&tag=1")),
        RepositoryAction::PutManifest { digest: Some(digest()), tags: tags(&["1", "1.2"]) }
    );
    assert_eq!(
        act("PUT", "/v2/ab/manifests/1?tag=1&tag=2"),
        RepositoryAction::PutManifest { digest: None, tags: tags(&["1", "2"]) }
    );
    let many: Vec<String> = (0..=MAX_TAG_PARAMETERS).map(|n| format!("tag=t{n}")).collect();
    let target = format!("/v2/ab/manifests/sha256:{HEX}?{}", many.join("&"));
    assert_eq!(parse("PUT", &target), Err(ActionError::TooManyTags));
}

#[test]
fn errors_name_the_bad_part_of_a_request() {
    assert!(matches!(parse("GET", "/v2/UPPER/manifests/latest"), Err(ActionError::Name(_))));
    assert!(matches!(parse("GET", "/v2/ab/manifests/.hidden"), Err(ActionError::NoSuchTag(_))));
    assert!(matches!(parse("PUT", "/v2/ab/manifests/.hidden"), Err(ActionError::Tag(_))));
    assert!(matches!(
        parse("GET", "/v2/ab/manifests/sha256:totallywrong"),
        Err(ActionError::Digest(_))
    ));
    assert!(matches!(parse("GET", "/v2/ab/blobs/latest"), Err(ActionError::Digest(_))));
    assert!(matches!(
        parse("POST", "/v2/ab/blobs/uploads/?digest-algorithm=md5"),
        Err(ActionError::Digest(_))
    ));
    assert!(matches!(parse("PATCH", "/v2/ab/blobs/uploads/7"), Err(ActionError::Upload(_))));
    assert!(matches!(
        parse("PUT", &format!("/v2/ab/blobs/uploads/{ID}")),
        Err(ActionError::Parameter { .. })
    ));
    assert!(matches!(
        parse("GET", "/v2/ab/tags/list?n=-1"),
        Err(ActionError::Parameter { name: "n", .. })
    ));
    assert!(matches!(
        parse("GET", "/v2/ab/tags/list?n="),
        Err(ActionError::Parameter { name: "n", .. })
    ));
    assert!(matches!(parse("PATCH", "/v2/ab/manifests/latest"), Err(ActionError::Method(_))));
    for unknown in
        ["/v2/ab", "/v2/ab/tags", "/v2//", "/v2/ab/manifests/latest/", "/v2x", "/v2/ab/tags/list/"]
    {
        let parsed = parse("GET", unknown);
        assert!(
            !matches!(parsed, Ok(OciAction::Repository(..) | OciAction::Catalog(_))),
            "{unknown} is {parsed:?}"
        );
    }
}

#[test]
fn a_page_is_never_longer_than_a_thousand() {
    for n in ["1001", "99999999999999999999999999"] {
        let page = PageRequest { n: Some(MAX_PAGE), last: None };
        assert_eq!(
            act("GET", &format!("/v2/ab/tags/list?n={n}")),
            RepositoryAction::ListTags(page)
        );
    }
}

#[test]
fn path_tricks_are_refused_encoded_or_not() {
    for trick in [
        "/v2/../etc/manifests/latest",
        "/v2/a/../b/manifests/latest",
        "/v2/%2e%2e/ab/manifests/latest",
        "/v2/ab%2f..%2fcd/manifests/latest",
        "/v2//ab/manifests/latest",
        "/v2/ab%00/manifests/latest",
        "/v2/ab\\cd/manifests/latest",
        "/v2/ab/manifests/..",
        "/v2/ab/manifests/%2e%2e",
        "/v2/ab/blobs/../../etc",
        "/v2/ab/blobs/uploads/../../x",
        "/v2/%ff/manifests/latest",
        "/v2/ab;/manifests/latest",
    ] {
        assert!(parse("GET", trick).is_err(), "{trick} is refused");
    }
}

proptest! {
    #[test]
    fn any_target_gives_an_action_or_an_error(
        method in "GET|HEAD|PUT|POST|PATCH|DELETE|OPTIONS",
        path in "/v2(/(ab|manifests|blobs|uploads|tags|list|referrers|_catalog|%2e%2e|\\.\\.|sha256:[a-f0-9]{0,64}|\\PC{0,8})){0,6}/?",
        query in "((n|last|tag|digest|mount|from|artifactType)=?[a-z0-9:%&/+]{0,20}&?){0,3}",
    ) {
        if let Ok(OciAction::Repository(name, _)) = OciAction::parse(&method.parse().unwrap(), &path, Some(&query)) {
            prop_assert!(name.as_str().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
        }
    }

    #[test]
    fn any_repository_name_has_a_manifest_path(name in RepositoryName::PATTERN, tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}") {
        if let Ok(name) = name.parse::<RepositoryName>() {
            let parsed = OciAction::parse(&Method::GET, &format!("/v2/{name}/manifests/{tag}"), None);
            let reference = Reference::Tag(tag.parse().unwrap());
            prop_assert_eq!(parsed, Ok(OciAction::Repository(name, RepositoryAction::ReadManifest { reference, head: false })));
        }
    }
}
