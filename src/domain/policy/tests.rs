//! Tests of policies that are refused, equal, or dangerous to their authors.

use proptest::prelude::*;

use super::*;

const ACCOUNT: &str = "123456789012";

fn statement() -> Value {
    json!({
        "Sid": "Let CI push",
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::123456789012:role/ci"},
        "Action": ["ecr:BatchGetImage", "ecr:PutImage"],
    })
}

fn policy(statement: Value) -> Value {
    json!({ "Version": "2012-10-17", "Statement": [statement] })
}

/// A good policy with one member of its statement replaced, or removed.
fn with(name: &str, value: impl Into<Option<Value>>) -> Value {
    let mut statement = statement();
    let members = statement.as_object_mut().unwrap();
    match value.into() {
        Some(value) => members.insert(name.to_owned(), value),
        None => members.remove(name),
    };
    policy(statement)
}

/// `with`, without the member that it takes the place of.
fn instead(of: &str, name: &str, value: Value) -> Value {
    let mut policy = with(of, None);
    policy["Statement"][0][name] = value;
    policy
}

fn is_valid(document: &Value) -> bool {
    Policy::from_value(Kind::Repository, document).is_ok()
}

fn reason(document: &Value) -> String {
    Policy::from_value(Kind::Repository, document).unwrap_err().reason()
}

fn principal(arn: &str) -> Principal {
    Principal::parse_aws(arn).unwrap()
}

#[test]
fn what_is_refused_gets_ecrs_message() {
    for text in ["", "x", "[]", "{}", r#"{"Statement":[]}"#, &"[".repeat(9_000)] {
        let refused = Policy::parse(Kind::Repository, text).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Invalid repository policy provided'",
            "{text:.20}"
        );
    }
    let text = policy(statement()).to_string();
    let fitting = format!("{text}{}", " ".repeat(MAX_LENGTH - text.len()));
    assert!(Policy::parse(Kind::Repository, &fitting).is_ok());
    let refused = Policy::parse(Kind::Repository, &format!("{fitting} ")).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Invalid parameter at 'policyText' failed to satisfy constraint: \
         'Member must have length less than or equal to 10240'"
    );
}

#[test]
fn the_grammar_takes_what_authors_write() {
    for document in [
        policy(statement()),
        json!({ "Statement": statement() }),
        json!({ "Version": "2008-10-17", "Id": "x", "Statement": [statement(), statement()] }),
        with("Sid", None),
        with("Principal", json!("*")),
        with("Principal", json!({ "AWS": ["*", ACCOUNT] })),
        with("Principal", json!({ "AWS": ACCOUNT, "Service": ["codebuild.amazonaws.com"] })),
        with("Principal", json!({ "Service": "ecs-tasks.amazonaws.com.cn" })),
        instead("Principal", "NotPrincipal", json!({ "AWS": ACCOUNT })),
        with("Action", json!("*")),
        with("Action", json!("ecr:*")),
        with("Action", json!("ECR:batchget*")),
        with("Action", json!(["ecr:Get?mage"])),
        instead("Action", "NotAction", json!("ecr:DeleteRepository")),
        with("Condition", json!({})),
        with("Condition", json!({ "StringEquals": { "aws:PrincipalOrgID": ["o-1", "o-2"] } })),
        with(
            "Condition",
            json!({ "ForAnyValue:StringLikeIfExists": { "aws:PrincipalOrgPaths": "o-1/*" } }),
        ),
        with(
            "Condition",
            json!({ "Bool": { "aws:SecureTransport": false }, "NumericLessThan": { "aws:EpochTime": 5 } }),
        ),
        with("Condition", json!({ "ForAllValues:Null": { "aws:SourceVpc": "true" } })),
    ] {
        assert_eq!(Policy::from_value(Kind::Repository, &document).err(), None, "{document}");
    }
}

#[test]
fn what_the_grammar_does_not_name_is_refused_with_its_name() {
    for (document, named) in [
        (json!({ "Statement": [statement()], "Statements": [] }), "Statements"),
        (json!({ "Version": "2012-10-18", "Statement": [statement()] }), "2012-10-18"),
        (json!({ "Version": null, "Statement": [statement()] }), "Version"),
        (json!({ "Id": 1, "Statement": [statement()] }), "Id"),
        (json!({ "Statement": ["x"] }), "statement"),
        (json!({ "Statement": [] }), "Statement"),
        (with("Resource", json!("*")), "Resource"),
        (with("NotResource", json!("*")), "NotResource"),
        (with("Principals", json!("*")), "Principals"),
        (with("Sid", json!(1)), "Sid"),
        (with("Effect", None), "Effect"),
        (with("Effect", json!("allow")), "Effect"),
        (with("Principal", None), "NotPrincipal"),
        (with("NotPrincipal", json!("*")), "NotPrincipal"),
        (with("Principal", json!({})), "principal"),
        (with("Principal", json!(ACCOUNT)), "principal"),
        (with("Principal", json!({ "AWS": [] })), "AWS"),
        (with("Principal", json!({ "AWS": 5 })), "AWS"),
        (with("Principal", json!({ "Federated": "cognito-identity.amazonaws.com" })), "Federated"),
        (with("Action", None), "NotAction"),
        (with("NotAction", json!("ecr:PutImage")), "NotAction"),
        (with("Action", json!([])), "Action"),
        (with("Action", json!([1])), "Action"),
        (with("Action", json!("s3:GetObject")), "s3:GetObject"),
        (with("Action", json!("PutImage")), "PutImage"),
        (with("Action", json!("ecr:")), "ecr:"),
        (with("Action", json!("ecr:Put Image")), "Put Image"),
        (with("Condition", json!([])), "Condition"),
        (with("Condition", json!({ "StringEqual": { "aws:SourceIp": "x" } })), "StringEqual"),
        (with("Condition", json!({ "NullIfExists": { "aws:SourceIp": "true" } })), "NullIfExists"),
        (
            with("Condition", json!({ "ForSomeValues:StringLike": { "aws:SourceIp": "x" } })),
            "ForSomeValues",
        ),
        (with("Condition", json!({ "StringEquals": "x" })), "StringEquals"),
        (with("Condition", json!({ "StringEquals": { "SourceIp": "x" } })), "SourceIp"),
        (with("Condition", json!({ "StringEquals": { "aws:SourceIp": [] } })), "aws:SourceIp"),
        (with("Condition", json!({ "StringEquals": { "aws:SourceIp": null } })), "aws:SourceIp"),
        (
            with(
                "Condition",
                json!({ "StringEquals": { "aws:SourceIp": "a", "aws:sourceip": "b" } }),
            ),
            "twice",
        ),
    ] {
        assert!(reason(&document).contains(named), "{document}: {}", reason(&document));
    }
}

#[test]
fn principals_are_accounts_users_roles_and_sessions() {
    for good in [
        "*",
        "arn:aws:iam::123456789012:root",
        "arn:aws-cn:iam::123456789012:user/path/to/jane@example.com",
        "arn:aws:iam::123456789012:role/service-role/ci",
        "arn:aws:sts::123456789012:assumed-role/ci/build-7",
        "arn:aws:sts::123456789012:federated-user/bob",
    ] {
        assert_eq!(principal(good).to_string(), good);
    }
    assert_eq!(principal(ACCOUNT).to_string(), "arn:aws:iam::123456789012:root");
    for bad in [
        "",
        "12345678901",
        "arn:aws:iam::123456789012:group/admins",
        "arn:aws:iam::123456789012:role/*",
        "arn:aws:iam::123456789012:role/",
        "arn:aws:iam::123456789012:role//ci",
        "arn:aws:iam::123456789012:*",
        "arn:aws:iam::*:root",
        "arn:aws:iam:eu-1:123456789012:root",
        "arn:oops:iam::123456789012:root",
        "arn:aws:sts::123456789012:root",
        "arn:aws:sts::123456789012:assumed-role/ci",
        "arn:aws:iam::123456789012:assumed-role/ci/x",
        "AIDAEXAMPLE",
    ] {
        let document = with("Principal", json!({ "AWS": bad }));
        assert!(reason(&document).contains(&format!("{bad:?}")), "{bad} is refused by its name");
    }
    for bad in ["*", "codebuild", ".amazonaws.com", "a b.amazonaws.com", "codebuild.example.com"] {
        assert!(!is_valid(&with("Principal", json!({ "Service": bad }))), "{bad}");
    }
}

#[test]
fn documents_that_mean_the_same_are_equivalent() {
    let verbose = json!({
        "Version": "2008-10-17",
        "Statement": [
            { "Effect": "Deny", "Principal": { "AWS": ["*"] }, "Action": ["ecr:PutImage"], "Condition": {} },
            {
                "Effect": "Allow",
                "Principal": { "AWS": ["arn:aws:iam::123456789012:root", "arn:aws:iam::123456789012:user/a"] },
                "Action": ["ecr:BatchGetImage", "ecr:ListImages"],
                "Condition": { "Bool": { "aws:SecureTransport": ["true"] } },
            },
        ],
    });
    let terse = json!({
        "Statement": [
            {
                "Action": ["ecr:listimages", "ecr:BatchGetImage", "ecr:ListImages"],
                "Condition": { "Bool": { "aws:securetransport": true } },
                "Principal": { "AWS": ["arn:aws:iam::123456789012:user/a", ACCOUNT] },
                "Effect": "Allow",
            },
            { "Effect": "Deny", "Principal": "*", "Action": "ecr:PutImage" },
        ],
    });
    assert!(equivalent(Kind::Repository, &verbose, &terse));
    let single = json!({ "Statement": statement() });
    assert!(equivalent(Kind::Repository, &json!({ "Statement": [statement()] }), &single));
}

#[test]
fn documents_that_mean_different_things_are_not_equivalent() {
    let original = policy(statement());
    for other in [
        json!({ "Statement": [statement()] }),
        json!({ "Version": "2012-10-17", "Id": "x", "Statement": [statement()] }),
        json!({ "Version": "2012-10-17", "Statement": [statement(), statement()] }),
        with("Sid", json!("let ci push")),
        with("Effect", json!("Deny")),
        with("Principal", json!({ "AWS": "arn:aws:iam::123456789012:role/CI" })),
        with("Principal", json!({ "AWS": ACCOUNT })),
        instead("Principal", "NotPrincipal", json!({ "AWS": "arn:aws:iam::123456789012:role/ci" })),
        with("Action", json!(["ecr:BatchGetImage"])),
        instead("Action", "NotAction", json!(["ecr:BatchGetImage", "ecr:PutImage"])),
        with("Condition", json!({ "Bool": { "aws:SecureTransport": "true" } })),
    ] {
        assert!(is_valid(&other));
        assert!(!equivalent(Kind::Repository, &original, &other), "{other}");
    }
}

#[test]
fn documents_of_a_richer_grammar_are_compared_as_they_are() {
    let future = json!({ "Version": "2030-01-01", "Statement": [{ "A": 1, "B": 2 }] });
    let reordered: Value =
        serde_json::from_str(r#"{"Statement":[{"B":2,"A":1}],"Version":"2030-01-01"}"#).unwrap();
    assert_eq!(normalize(Kind::Repository, &future), future);
    assert!(equivalent(Kind::Repository, &future, &reordered));
    assert!(!equivalent(Kind::Repository, &future, &policy(statement())));
}

#[test]
fn a_document_locks_its_author_out_when_it_denies_setting_the_next_one() {
    let root = "arn:aws:iam::123456789012:root";
    let user = "arn:aws:iam::123456789012:user/team/jane";
    let role = "arn:aws:iam::123456789012:role/service/ci";
    let session = "arn:aws:sts::123456789012:assumed-role/ci/build-7";
    let stranger = "arn:aws:iam::210987654321:user/jane";
    let deny = |principal: Value, action: Value| json!({ "Effect": "Deny", "Principal": principal, "Action": action });
    let except =
        |principal: Value| json!({ "Effect": "Deny", "NotPrincipal": principal, "Action": "*" });
    let all = json!("ecr:*");
    for (statement, locked_out, free) in [
        (
            deny(json!("*"), json!("ecr:setrepositoryp?licy")),
            vec![root, user, session, stranger],
            vec![],
        ),
        (
            deny(json!({ "AWS": ACCOUNT }), all.clone()),
            vec![root, user, role, session],
            vec![stranger],
        ),
        (
            deny(json!({ "AWS": user }), all.clone()),
            vec![user],
            vec![root, role, session, stranger],
        ),
        (deny(json!({ "AWS": role }), all.clone()), vec![role, session], vec![root, user]),
        (deny(json!({ "AWS": session }), all.clone()), vec![session], vec![root, role]),
        (
            deny(json!({ "Service": "codebuild.amazonaws.com" }), all.clone()),
            vec![],
            vec![root, user],
        ),
        (deny(json!("*"), json!(["ecr:PutImage", "ecr:Get*"])), vec![], vec![root, user, stranger]),
        (json!({ "Effect": "Allow", "Principal": "*", "Action": "*" }), vec![], vec![root, user]),
        (
            json!({ "Effect": "Deny", "Principal": "*", "NotAction": "ecr:Put*" }),
            vec![root, user],
            vec![],
        ),
        (
            json!({ "Effect": "Deny", "Principal": "*", "NotAction": "ecr:Set*" }),
            vec![],
            vec![root, user],
        ),
        (except(json!({ "AWS": role })), vec![root, user], vec![role, session]),
        (except(json!({ "AWS": ACCOUNT })), vec![user, session, stranger], vec![root]),
        (
            json!({
                "Effect": "Deny", "Principal": "*", "Action": "*",
                "Condition": { "Bool": { "aws:SecureTransport": "false" } },
            }),
            vec![],
            vec![root, user],
        ),
    ] {
        let policy = Policy::from_value(Kind::Repository, &policy(statement.clone())).unwrap();
        for caller in locked_out {
            assert!(policy.locks_out(&principal(caller)), "{statement} locks {caller} out");
        }
        for caller in free {
            assert!(!policy.locks_out(&principal(caller)), "{statement} doesn't lock {caller} out");
        }
    }
}

fn registry_policy(resource: impl Into<Option<Value>>) -> Value {
    with_resource("Resource", resource)
}

fn with_resource(name: &str, resource: impl Into<Option<Value>>) -> Value {
    let mut policy = policy(statement());
    if let Some(resource) = resource.into() {
        policy["Statement"][0][name] = resource;
    }
    policy
}

#[test]
fn a_registry_policy_says_which_repositories_it_is_about() {
    for good in [
        json!("*"),
        json!("arn:aws:ecr:eu-1:123456789012:repository/*"),
        json!(["arn:aws:ecr:*:123456789012:repository/team/?pi", "arn:aws-cn:ecr:eu-1:1234*:*"]),
    ] {
        for document in [registry_policy(good.clone()), with_resource("NotResource", good)] {
            assert_eq!(Policy::from_value(Kind::Registry, &document).err(), None, "{document}");
            assert!(!is_valid(&document), "no repository policy: {document}");
        }
    }
    let reason =
        |document: &Value| Policy::from_value(Kind::Registry, document).unwrap_err().reason();
    for bad in [
        json!(""),
        json!("team/*"),
        json!([]),
        json!(7),
        json!("arn:aws:s3:::bucket"),
        json!("arn:aws:ecr:eu-1:123456789012:repository/"),
        json!("arn:aws:ecr:eu-1:123456789012:registry/x"),
        json!("arn:aws:ecr::123456789012:repository/*"),
        json!("arn:aws:ecr:eu-1:123456789012"),
    ] {
        assert!(reason(&registry_policy(bad.clone())).to_lowercase().contains("resource"), "{bad}");
    }
    assert!(reason(&registry_policy(None)).contains("exactly one of Resource and NotResource"));
    let mut both = registry_policy(json!("*"));
    both["Statement"][0]["NotResource"] = json!("*");
    assert!(reason(&both).contains("exactly one of"));

    let refused = Policy::parse(Kind::Registry, "{}").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Invalid registry policy provided'"
    );
}

#[test]
fn registry_policies_differ_by_their_resources_and_not_by_the_order_of_those() {
    let (one, two) = (
        "arn:aws:ecr:eu-1:123456789012:repository/a",
        "arn:aws:ecr:eu-1:123456789012:repository/b",
    );
    let same = |left: &Value, right: &Value| equivalent(Kind::Registry, left, right);
    let original = registry_policy(json!([one, two]));
    assert!(same(&original, &registry_policy(json!([two, one]))));
    assert!(same(&registry_policy(json!(one)), &registry_policy(json!([one]))));
    for other in [
        registry_policy(json!(one)),
        registry_policy(json!("*")),
        with_resource("NotResource", json!([one, two])),
    ] {
        assert!(!same(&original, &other), "{other}");
    }
    let canonical = normalize(Kind::Registry, &original);
    assert_eq!(normalize(Kind::Registry, &canonical), canonical);
}

/// A list of strings, as a list in any order or, when it has one entry, perhaps as that.
fn spelled(list: Vec<String>) -> impl Strategy<Value = Value> {
    Just(list).prop_shuffle().prop_flat_map(|list| {
        let alone = (list.len() == 1).then(|| Value::from(list[0].clone()));
        let list = Just(Value::from(list));
        match alone {
            Some(alone) => prop_oneof![list, Just(alone)].boxed(),
            None => list.boxed(),
        }
    })
}

const ACTIONS: [&str; 4] = ["ecr:BatchGetImage", "ecr:PutImage", "ecr:Describe*", "ecr:*"];
const PRINCIPALS: [&str; 3] =
    ["123456789012", "arn:aws:iam::123456789012:user/a", "arn:aws:iam::210987654321:role/b"];

/// The meaning of a statement: actions, principals, values of a condition and the effect.
type Meaning = (Vec<String>, Vec<String>, Vec<String>, bool);

fn meanings() -> impl Strategy<Value = Vec<Meaning>> {
    let some = |of: &'static [&'static str]| {
        proptest::sample::subsequence(of, 1..=of.len())
            .prop_map(|list| list.into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let values = proptest::collection::btree_set("[a-c]{1,2}", 0..3).prop_map(Vec::from_iter);
    proptest::collection::vec((some(&ACTIONS), some(&PRINCIPALS), values, any::<bool>()), 1..4)
}

/// One of the documents that mean this.
fn document_of(meaning: Vec<Meaning>) -> impl Strategy<Value = Value> {
    let statements: Vec<_> = meaning
        .into_iter()
        .map(|(actions, principals, values, allow)| {
            let root_spelled = any::<bool>().prop_flat_map(move |root| {
                let spell = |principal: &String| match principal.as_str() {
                    ACCOUNT if root => format!("arn:aws:iam::{ACCOUNT}:root"),
                    _ => principal.clone(),
                };
                spelled(principals.iter().map(spell).collect())
            });
            let has_condition = !values.is_empty();
            (spelled(actions), root_spelled, spelled(values)).prop_map(move |(actions, principals, values)| {
                let effect = if allow { "Allow" } else { "Deny" };
                let mut statement = json!({ "Effect": effect, "Principal": { "AWS": principals }, "Action": actions });
                if has_condition {
                    statement["Condition"] = json!({ "StringLike": { "aws:PrincipalTag/team": values } });
                }
                statement
            })
        })
        .collect();
    statements.prop_shuffle().prop_map(|statements| match &statements[..] {
        [statement] => json!({ "Version": "2012-10-17", "Statement": statement }),
        _ => json!({ "Version": "2012-10-17", "Statement": statements }),
    })
}

fn two_spellings() -> impl Strategy<Value = (Value, Value)> {
    meanings().prop_flat_map(|meaning| (document_of(meaning.clone()), document_of(meaning)))
}

proptest! {
    #[test]
    fn however_it_is_spelled_a_policy_is_equivalent_to_itself((one, other) in two_spellings()) {
        prop_assert!(is_valid(&one));
        prop_assert!(equivalent(Kind::Repository, &one, &other));
        prop_assert_eq!(normalize(Kind::Repository, &one), normalize(Kind::Repository, &normalize(Kind::Repository, &one)));
    }

    #[test]
    fn a_changed_action_is_a_changed_policy(meaning in meanings(), index in any::<prop::sample::Index>()) {
        let document = |meaning: &[Meaning]| {
            let statement = |(actions, principals, _, _): &Meaning| {
                json!({ "Effect": "Allow", "Principal": { "AWS": principals }, "Action": actions })
            };
            json!({ "Statement": meaning.iter().map(statement).collect::<Vec<_>>() })
        };
        let mut changed = meaning.clone();
        let actions = &mut changed[index.index(meaning.len())].0;
        actions[0] = "ecr:DeleteRepository".to_owned();
        prop_assert!(!equivalent(Kind::Repository, &document(&meaning), &document(&changed)));
    }

    #[test]
    fn any_text_is_judged(text in "\\PC{0,200}") {
        let _ = Policy::parse(Kind::Repository, &text);
        let _ = Principal::parse_aws(&text);
        let _ = Principal::parse_service(&text);
    }

    #[test]
    fn a_valid_policy_reads_back_from_its_canonical_document(document in meanings().prop_flat_map(document_of)) {
        let policy = Policy::from_value(Kind::Repository, &document).unwrap();
        prop_assert_eq!(Policy::from_value(Kind::Repository, &policy.to_document()), Ok(policy));
    }
}
