//! Properties of every plan, for any desired and observed state. Plans are executed on plain data, without a registry.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::model::*;
use super::ownership::{MAX_TAGS, OnRemoval, Ownership, PREFIX};
use super::*;
use wharfage_crd::Reason;
use wharfage_domain::names::RepositoryName;
use wharfage_domain::scanning::{ScanFrequency, ScanType, ScanningConfiguration, ScanningRule};
use wharfage_domain::tag_mutability::{Mutability, TagMutability};

const OURS: &str = "local";
const THEIRS: &str = "other";

/// Executes a call on plain data. A call that a registry would reject is a bug of the plan.
fn execute(registry: &mut Observed, step: &Step, call: &Call) {
    let call = match call {
        Call::Settings(call) => return execute_settings(&mut registry.settings, call),
        Call::Repository(call) => call,
    };
    let name = step.repository().cloned().expect("a step that calls for a repository names it");
    let arn = format!("arn:aws:ecr:local-1:000000000000:repository/{name}");
    if let Some(created) = ObservedRepository::created(arn, call) {
        assert!(
            registry.repositories.found.insert(name, created).is_none(),
            "RepositoryAlreadyExistsException"
        );
        return;
    }
    if let RepositoryCall::DeleteRepository { force: _ } = call {
        assert!(registry.repositories.found.remove(&name).is_some(), "RepositoryNotFoundException");
        return;
    }
    let found = registry.repositories.found.get_mut(&name).expect("RepositoryNotFoundException");
    match call {
        RepositoryCall::TagResource(tags) => assert!(!tags.is_empty(), "InvalidParameterException"),
        RepositoryCall::UntagResource(keys) => {
            assert!(!keys.is_empty(), "InvalidParameterException")
        }
        RepositoryCall::DeleteRepositoryPolicy => {
            assert!(found.policy.is_some(), "RepositoryPolicyNotFoundException")
        }
        RepositoryCall::DeleteLifecyclePolicy => {
            assert!(found.lifecycle_policy.is_some(), "LifecyclePolicyNotFoundException")
        }
        _ => {}
    }
    found.simulate(call);
    assert!(found.tags.len() <= MAX_TAGS, "TooManyTagsException");
    assert!(
        found.tags.values().all(|value| value.chars().count() <= 256),
        "InvalidTagParameterException"
    );
}

fn execute_settings(settings: &mut ObservedSettings, call: &SettingsCall) {
    match call {
        SettingsCall::PutAccountSetting { name, value } => {
            settings.account_settings.as_mut().unwrap().insert(name.clone(), value.clone());
        }
        SettingsCall::PutRegistryPolicy(text) => {
            settings.policy = Ok(Some(serde_json::from_str(text).unwrap()))
        }
        SettingsCall::DeleteRegistryPolicy => {
            assert!(
                settings.policy.as_mut().unwrap().take().is_some(),
                "RegistryPolicyNotFoundException"
            );
        }
        SettingsCall::PutRegistryScanningConfiguration(to) => {
            settings.scanning_configuration = Ok(to.clone())
        }
    }
}

/// Executes the first `calls` calls of a plan.
fn apply_some(desired: &Desired, registry: &mut Observed, calls: usize) {
    let plan = plan(desired, registry);
    let all = plan.steps.iter().flat_map(|step| step.calls.iter().map(move |call| (step, call)));
    for (step, call) in all.take(calls) {
        execute(registry, step, call);
    }
}

fn apply(desired: &Desired, registry: &mut Observed) {
    apply_some(desired, registry, usize::MAX);
}

fn name(index: usize) -> RepositoryName {
    ["aa", "team/api", "team/web", "ci/cache", "zz"][index % 5].parse().unwrap()
}

fn policy_document(index: usize) -> Value {
    json!({ "Version": "2012-10-17", "Statement": [
        { "Sid": format!("s{index}"), "Effect": "Allow", "Principal": "*", "Action": "ecr:BatchGetImage" },
    ] })
}

fn lifecycle_document(index: usize) -> Value {
    json!({ "rules": [{
        "rulePriority": 1,
        "selection": { "tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": index + 1 },
        "action": { "type": "expire" },
    }] })
}

fn tag_mutability() -> impl Strategy<Value = TagMutability> {
    (0..4usize, 1..4usize).prop_map(|(mode, filters)| {
        let mode = Mutability::ALL[mode];
        let exclusions = if mode.has_exclusions() {
            (0..filters).map(|it| format!("v{it}*")).collect()
        } else {
            vec![]
        };
        TagMutability { mode, exclusions }
    })
}

fn tags(prefix: &'static str) -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(
        (0..3usize).prop_map(move |it| format!("{prefix}{it}")),
        "[a-b]",
        0..3,
    )
}

fn management() -> impl Strategy<Value = Management> {
    prop_oneof![6 => Just(Management::Full), 1 => Just(Management::Observe), 1 => Just(Management::Suspended)]
}

fn adoption() -> impl Strategy<Value = Adoption> {
    prop_oneof![4 => Just(Adoption::AdoptOrCreate), 1 => Just(Adoption::Adopt), 1 => Just(Adoption::Create)]
}

fn on_removal() -> impl Strategy<Value = OnRemoval> {
    prop_oneof![
        Just(OnRemoval::Retain),
        Just(OnRemoval::Delete),
        Just(OnRemoval::DeleteWithImages),
        Just(OnRemoval::Protected),
    ]
}

/// A resource of one of two namespaces, mostly of the first.
fn object(kind: &'static str, letter: char, index: usize, other: bool) -> Object {
    Object {
        kind,
        namespace: if other { "other" } else { "team" }.to_owned(),
        name: format!("{letter}{index}"),
    }
}

fn desired_repository() -> impl Strategy<Value = DesiredRepository> {
    let fields = (
        (0..6usize, proptest::bool::weighted(0.3), 0..5usize),
        proptest::option::of(tag_mutability()),
        proptest::option::of(any::<bool>()),
        proptest::option::of((0..3usize).prop_map(policy_document)),
        proptest::option::weighted(
            0.2,
            prop_oneof![Just("AES256".to_owned()), Just("KMS".to_owned())],
        ),
        tags("mine."),
        (management(), adoption(), on_removal()),
    );
    fields.prop_map(
        |(
            (index, other, name_index),
            tag_mutability,
            scan_on_push,
            policy,
            encryption,
            tags,
            (management, adoption, on_removal),
        )| {
            DesiredRepository {
                object: object("Repository", 'r', index, other),
                name: name(name_index),
                tag_mutability,
                scan_on_push,
                encryption: encryption.map(|kind| (kind, None)),
                policy,
                tags,
                management,
                adoption,
                on_removal,
            }
        },
    )
}

fn desired_lifecycle_policy() -> impl Strategy<Value = DesiredLifecyclePolicy> {
    let fields = (
        (0..4usize, proptest::bool::weighted(0.3)),
        proptest::collection::btree_set((0..5usize).prop_map(name), 0..4),
        any::<(bool, bool)>(),
        0..3usize,
        (management(), adoption()),
        any::<bool>(),
    );
    fields.prop_map(
        |(
            (index, other),
            repositories,
            (enforce, by_operator),
            document,
            (management, adoption),
            delete_on_removal,
        )| {
            DesiredLifecyclePolicy {
                object: object("LifecyclePolicy", 'p', index, other),
                repositories,
                mode: if enforce { LifecycleMode::Enforce } else { LifecycleMode::Preview },
                by: if by_operator { EnforcedBy::Operator } else { EnforcedBy::Registry },
                document: lifecycle_document(document),
                management,
                adoption,
                delete_on_removal,
            }
        },
    )
}

/// A registry policy, none, or no word of it.
fn registry_policy() -> impl Strategy<Value = Option<Option<Value>>> {
    let document = (0..3usize).prop_map(|index| {
        let mut document = policy_document(index);
        document["Statement"][0]["Resource"] = "*".into();
        document
    });
    proptest::option::of(proptest::option::of(document))
}

fn scanning_configuration() -> impl Strategy<Value = ScanningConfiguration> {
    let filters = || proptest::collection::vec("[a-c]", 0..3);
    (any::<bool>(), filters(), filters()).prop_map(|(enhanced, on_push, continuous)| {
        let mut rules =
            vec![ScanningRule { scan_frequency: ScanFrequency::ScanOnPush, filters: on_push }];
        if enhanced {
            rules.insert(
                0,
                ScanningRule { scan_frequency: ScanFrequency::ContinuousScan, filters: continuous },
            );
        }
        ScanningConfiguration {
            scan_type: if enhanced { ScanType::Enhanced } else { ScanType::Basic },
            rules,
        }
    })
}

fn wanted(cluster: &'static str) -> impl Strategy<Value = Desired> {
    let waiting =
        proptest::collection::vec((any::<bool>(), 0..6usize, proptest::bool::weighted(0.3)), 0..2);
    let settings = proptest::collection::btree_map("[A-B]", "[a-b]", 0..2);
    let repositories = proptest::collection::vec(desired_repository(), 0..6);
    let policies = proptest::collection::vec(desired_lifecycle_policy(), 0..4);
    let settings = (settings, registry_policy(), proptest::option::of(scanning_configuration()));
    (repositories, policies, waiting, settings).prop_map(
        move |(mut repositories, mut lifecycle_policies, waiting, settings)| {
            let (account_settings, policy, scanning_configuration) = settings;
            let refused = waiting.into_iter().map(|(repository, index, other)| {
                let (kind, letter) =
                    if repository { ("Repository", 'r') } else { ("LifecyclePolicy", 'p') };
                let object = object(kind, letter, index, other);
                Refused::new(&object, Reason::NotAllowed, String::new())
            });
            let refused: Vec<Refused> = refused.collect();
            // A folder declares each resource once.
            let mut declared: BTreeSet<Object> =
                refused.iter().map(|refused| refused.object.clone()).collect();
            repositories.retain(|it| declared.insert(it.object.clone()));
            lifecycle_policies.retain(|it| declared.insert(it.object.clone()));
            Desired {
                cluster: cluster.to_owned(),
                registry: "home".to_owned(),
                settings: DesiredSettings { account_settings, policy, scanning_configuration },
                repositories,
                lifecycle_policies,
                declared,
                pending_owners: BTreeSet::new(),
                refused,
                notes: Vec::new(),
                adopt_from: None,
            }
        },
    )
}

fn nothing_wanted() -> Desired {
    Desired { cluster: OURS.to_owned(), registry: "home".to_owned(), ..Desired::default() }
}

prop_compose! {
    /// A registry with a history: repositories without an owner, of another cluster, and of earlier manifests of ours, and
    /// all of them drifted.
    fn registry()(
        unowned in proptest::collection::btree_map((0..5usize).prop_map(name), tags("theirs."), 0..4),
        theirs in wanted(THEIRS),
        before in wanted(OURS),
        drift in proptest::collection::vec((0..5usize, tag_mutability(), 0..4usize), 0..4),
    ) -> Observed {
        let mut registry = Observed::default();
        for (name, tags) in unowned {
            registry.repositories.found.insert(name.clone(), ObservedRepository {
                arn: format!("arn:aws:ecr:local-1:000000000000:repository/{name}"),
                tag_mutability: TagMutability::MUTABLE,
                scan_on_push: false,
                encryption: ("AES256".to_owned(), None),
                tags,
                policy: Some(policy_document(7)),
                lifecycle_policy: Some(lifecycle_document(7)),
                preview: None,
            });
        }
        apply(&theirs, &mut registry);
        apply(&before, &mut registry);
        for (index, mutability, what) in drift {
            let Some(found) = registry.repositories.found.get_mut(&name(index)) else { continue };
            match what {
                0 => found.tag_mutability = mutability,
                1 => found.policy = None,
                2 => found.lifecycle_policy = None,
                _ => found.tags.extend([("theirs.drift".to_owned(), "x".to_owned())]),
            }
        }
        registry
    }
}

proptest! {
    #[test]
    fn an_applied_plan_plans_empty(desired in wanted(OURS), mut registry in registry()) {
        apply(&desired, &mut registry);
        let again = plan(&desired, &registry);
        prop_assert!(again.is_empty(), "{again}");
    }

    #[test]
    fn no_plan_changes_what_others_own(desired in wanted(OURS), before in registry()) {
        let mut after = before.clone();
        apply(&desired, &mut after);
        for (name, was) in &before.repositories.found {
            let is = after.repositories.get(name);
            let ownership = Ownership::read(&was.tags);
            let named = desired.repositories.iter().any(|it| it.name == *name);
            match &ownership.owner {
                Some(owner) if owner.cluster != OURS => prop_assert_eq!(is, Some(was), "another cluster's"),
                Some(owner) if desired.refused.iter().any(|it| it.object == owner.object()) => {
                    // Its LifecyclePolicy is checked separately.
                    prop_assert_eq!(is.map(|it| Ownership::read(&it.tags).owner), Some(ownership.owner.clone()));
                    prop_assert_eq!(is.map(|it| &it.policy), Some(&was.policy));
                }
                None if !named => prop_assert_eq!(is.map(|it| &it.tag_mutability), Some(&was.tag_mutability), "no owner"),
                _ => {}
            }
            match is {
                None => {
                    let owner = ownership.owner.expect("an object without an owner is not deleted");
                    prop_assert!(!desired.declared.contains(&owner.object()), "its manifest is still there");
                    prop_assert!(matches!(
                        ownership.manages.on_removal,
                        OnRemoval::Delete | OnRemoval::DeleteWithImages
                    ));
                }
                Some(is) => {
                    let theirs = |tags: &BTreeMap<String, String>| -> BTreeMap<String, String> {
                        tags.clone().into_iter().filter(|(key, _)| key.starts_with("theirs.")).collect()
                    };
                    prop_assert_eq!(theirs(&is.tags), theirs(&was.tags), "foreign tags");
                    if ownership.lifecycle.is_some_and(|owner| owner.cluster != OURS) {
                        prop_assert_eq!(&is.lifecycle_policy, &was.lifecycle_policy, "another cluster's lifecycle policy");
                    }
                }
            }
        }
    }

    #[test]
    fn settings_that_are_not_desired_stay(desired in wanted(OURS), before in registry()) {
        let mut after = before.clone();
        apply(&desired, &mut after);
        match &desired.settings.policy {
            None => prop_assert_eq!(&after.settings.policy, &before.settings.policy),
            Some(policy) => prop_assert_eq!(&after.settings.policy, &Ok(policy.clone())),
        }
        let scanning = |observed: &Observed| observed.settings.scanning_configuration.clone().unwrap();
        match &desired.settings.scanning_configuration {
            None => prop_assert_eq!(scanning(&after), scanning(&before)),
            Some(wanted) => prop_assert!(scanning(&after).is_equivalent(wanted)),
        }
        for (name, value) in before.settings.account_settings.unwrap() {
            let wanted = desired.settings.account_settings.get(&name).unwrap_or(&value);
            prop_assert_eq!(after.settings.account_settings.as_ref().unwrap().get(&name), Some(wanted));
        }
    }

    #[test]
    fn the_next_plan_completes_an_interrupted_one(
        desired in wanted(OURS), registry in registry(), calls in 0..40usize,
    ) {
        let (mut whole, mut interrupted) = (registry.clone(), registry);
        apply(&desired, &mut whole);
        apply_some(&desired, &mut interrupted, calls);
        apply(&desired, &mut interrupted);
        prop_assert_eq!(whole, interrupted);
    }

    #[test]
    fn undeclared_objects_stay_by_default(mut desired in wanted(OURS), mut registry in registry()) {
        desired.repositories.iter_mut().for_each(|it| it.on_removal = OnRemoval::Retain);
        desired.lifecycle_policies.iter_mut().for_each(|it| it.delete_on_removal = false);
        apply(&nothing_wanted(), &mut registry);
        apply(&desired, &mut registry);
        let before = registry.clone();
        apply(&nothing_wanted(), &mut registry);
        for (name, was) in &before.repositories.found {
            let mut was = was.clone();
            if Ownership::read(&was.tags).owner.is_none_or(|owner| owner.cluster == OURS) {
                was.tags.retain(|key, value| !key.starts_with(PREFIX) || value.starts_with("other/"));
            }
            prop_assert_eq!(registry.repositories.get(name), Some(&was));
        }
    }

    #[test]
    fn a_manifest_that_moves_to_another_name_deletes_nothing(
        mut desired in wanted(OURS), mut registry in registry(), name_index in 0..5usize,
    ) {
        apply(&desired, &mut registry);
        for it in &mut desired.repositories {
            it.name = name(name_index);
        }
        let plan = plan(&desired, &registry);
        let deletes = plan.steps.iter().filter(|it| it.action == Action::Delete && it.object.kind == "Repository");
        for step in deletes {
            prop_assert!(!desired.declared.contains(&step.object), "{plan}");
        }
    }

    #[test]
    fn plans_are_deterministic(desired in wanted(OURS), registry in registry()) {
        let plans = [plan(&desired, &registry), plan(&desired.clone(), &registry.clone())];
        prop_assert_eq!(&plans[0], &plans[1]);
        prop_assert_eq!(plans[0].to_string(), plans[1].to_string());
    }

    #[test]
    fn a_policy_that_the_operator_enforces_is_not_in_the_registry(
        desired in wanted(OURS), mut registry in registry(), calls in 0..40usize,
    ) {
        let put = |it: &Call| {
            use RepositoryCall::{PutLifecyclePolicy, StartLifecyclePolicyPreview};
            matches!(it.repository(), Some(PutLifecyclePolicy(_) | StartLifecyclePolicyPreview(_)))
        };
        for step in plan(&desired, &registry).steps.iter().filter(|step| step.calls.iter().any(put)) {
            let policy = desired.lifecycle_policies.iter().find(|it| it.object == step.object);
            prop_assert_eq!(policy.map(|it| it.by), Some(EnforcedBy::Registry));
        }
        apply_some(&desired, &mut registry, calls);
        apply(&desired, &mut registry);
        for (name, found) in &registry.repositories.found {
            let Some(owner) = Ownership::read(&found.tags).lifecycle else { continue };
            let ours = desired.lifecycle_policies.iter().any(|it| {
                it.management == Management::Full && it.repositories.contains(name) && owner.is(OURS, &it.object)
            });
            if ours && owner.by_operator && Ownership::read(&found.tags).owner.is_some_and(|it| it.cluster == OURS) {
                prop_assert_eq!(&found.lifecycle_policy, &None, "{}", name);
            }
        }
    }

    #[test]
    fn a_policy_reaches_only_repositories_of_its_namespace(
        desired in wanted(OURS), mut registry in registry(),
    ) {
        let may_have = |plan: &Plan, policy: &Object, name: &RepositoryName| {
            let mut asks = desired.repositories.iter().filter(|it| it.name == *name && it.object.namespace == policy.namespace);
            asks.any(|it| !plan.refused.iter().any(|refused| refused.object == it.object))
        };
        for _ in 0..2 {
            let plan = plan(&desired, &registry);
            for step in plan.steps.iter().filter(|it| it.object.kind == "LifecyclePolicy") {
                let name = step.repository().unwrap();
                if !matches!(step.action, Action::Retain | Action::Delete) {
                    prop_assert!(may_have(&plan, &step.object, name), "{}", plan);
                }
            }
            for policy in desired.lifecycle_policies.iter().filter(|it| it.management != Management::Suspended) {
                // The policy does not reveal anything about the repository either.
                if policy.repositories.iter().any(|name| !may_have(&plan, &policy.object, name)) {
                    prop_assert!(plan.refused.iter().any(|it| it.object == policy.object), "{}", plan);
                }
            }
            apply(&desired, &mut registry);
        }
    }

    #[test]
    fn no_repository_has_two_owners(desired in wanted(OURS), registry in registry()) {
        let plan = plan(&desired, &registry);
        let mut owners: BTreeMap<(&RepositoryName, &str, Action), &Object> = BTreeMap::new();
        for step in &plan.steps {
            let kind = (step.object.kind, step.repository());
            if let (kind, Some(name)) = kind
                && let Some(other) = owners.insert((name, kind, step.action), &step.object)
            {
                prop_assert_eq!(other, &step.object, "{}", plan);
            }
        }
    }

    #[test]
    fn the_order_of_rules_principals_actions_and_filters_makes_no_step(
        rules in Just(vec![1u8, 2, 3]).prop_shuffle(),
        principals in Just(vec!["111111111111", "222222222222", "333333333333"]).prop_shuffle(),
        actions in Just(vec!["ecr:BatchGetImage", "ecr:PutImage", "ecr:GetDownloadUrlForLayer"]).prop_shuffle(),
        filters in Just(vec!["dev-*", "latest", "v*"]).prop_shuffle(),
    ) {
        let documents = |rules: &[u8], principals: &[&str], actions: &[&str], filters: &[&str]| {
            let rule = |priority: &u8| json!({
                "rulePriority": priority,
                "selection": {
                    "tagStatus": "tagged", "tagPrefixList": [format!("v{priority}")],
                    "countType": "imageCountMoreThan", "countNumber": 5,
                },
                "action": { "type": "expire" },
            });
            let rules: Vec<Value> = rules.iter().map(rule).collect();
            let repository = DesiredRepository {
                object: Object { kind: "Repository", namespace: "team".to_owned(), name: "api".to_owned() },
                name: name(1),
                tag_mutability: Some(TagMutability {
                    mode: Mutability::ImmutableWithExclusion,
                    exclusions: filters.iter().map(|filter| (*filter).to_owned()).collect(),
                }),
                scan_on_push: None,
                encryption: None,
                policy: Some(json!({ "Version": "2012-10-17", "Statement": [{
                    "Sid": "a", "Effect": "Allow", "Principal": { "AWS": principals }, "Action": actions,
                }] })),
                tags: BTreeMap::new(),
                management: Management::Full,
                adoption: Adoption::AdoptOrCreate,
                on_removal: OnRemoval::Retain,
            };
            let policy = DesiredLifecyclePolicy {
                object: Object { kind: "LifecyclePolicy", namespace: "team".to_owned(), name: "keep".to_owned() },
                repositories: BTreeSet::from([name(1)]),
                mode: LifecycleMode::Enforce,
                by: EnforcedBy::Registry,
                document: json!({ "rules": rules }),
                management: Management::Full,
                adoption: Adoption::AdoptOrCreate,
                delete_on_removal: false,
            };
            Desired { repositories: vec![repository], lifecycle_policies: vec![policy], ..nothing_wanted() }
        };
        let mut registry = Observed::default();
        let sorted = documents(
            &[1, 2, 3],
            &["111111111111", "222222222222", "333333333333"],
            &["ecr:BatchGetImage", "ecr:PutImage", "ecr:GetDownloadUrlForLayer"],
            &["dev-*", "latest", "v*"],
        );
        apply(&sorted, &mut registry);
        let again = plan(&documents(&rules, &principals, &actions, &filters), &registry);
        prop_assert!(again.is_empty(), "{again}");
    }
}

/// A Repository with the first of so many own tags, from this one on.
fn tagged(first: usize, count: usize) -> Desired {
    let tags = (first..first + count).map(|n| (format!("mine.{n}"), "x".to_owned())).collect();
    let repository = DesiredRepository {
        object: object("Repository", 'r', 0, false),
        name: name(0),
        tag_mutability: None,
        scan_on_push: Some(count.is_multiple_of(2)),
        encryption: None,
        policy: None,
        tags,
        management: Management::Full,
        adoption: Adoption::AdoptOrCreate,
        on_removal: OnRemoval::Retain,
    };
    Desired { repositories: vec![repository], ..nothing_wanted() }
}

proptest! {
    #[test]
    fn no_call_exceeds_the_limit_of_tags(
        foreign in 0..48usize, (first, before) in (0..60usize, 0..=45usize), (then, after) in (0..60usize, 0..=45usize), interrupted in 0..8usize,
    ) {
        let mut registry = Observed::default();
        apply(&tagged(first, before), &mut registry);
        for found in registry.repositories.found.values_mut() {
            let free = MAX_TAGS - found.tags.len();
            found.tags.extend((0..foreign.min(free)).map(|n| (format!("theirs.{n}"), String::new())));
        }
        let desired = tagged(then, after);
        apply_some(&desired, &mut registry, interrupted);
        apply(&desired, &mut registry);
        let again = plan(&desired, &registry);
        prop_assert!(again.is_empty(), "{}", again);
        let refused = again.refused.iter().all(|it| it.reason == Reason::TooManyTagsException && foreign + after > 45);
        prop_assert!(refused, "{}", again);
    }
}
