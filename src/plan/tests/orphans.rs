//! Tests of resources that no manifest declares any more, and of who may release them.

use super::*;

fn wanted(cluster: &str) -> Desired {
    let manifests = manifests();
    desired(&manifests, &manifests.registries[0].resource, cluster)
}

/// The objects of steps, with their actions.
fn named(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| format!("{} {}", step.action.as_str(), step.object)).collect()
}

#[test]
fn take_orphans_removes_nothing_else() {
    let desired = wanted("local");
    let mut plan = plan(&desired, &observed());
    let all = plan.steps.len();
    let orphans = plan.take_orphans(&desired);
    assert_eq!(named(&orphans), ["retain Repository shop/kept", "delete Repository shop/gone"]);
    assert_eq!(plan.steps.len(), all - 2);
    assert!(plan.steps.iter().all(|step| !matches!(step.action, Action::Retain | Action::Delete)));
}

#[test]
fn a_policy_given_up_by_a_declared_resource_is_no_orphan() {
    let desired = wanted("local");
    // The policy had these repositories: one is still declared, the other is not.
    let observed = Observed {
        repositories: [
            owned(
                "local",
                "ours",
                "r:",
                &[("team", "web"), ("wharfage.dev/lifecycle", "local/shop/keep delete")],
            ),
            owned("local", "kept", "r:", &[("wharfage.dev/lifecycle", "local/shop/keep delete")]),
        ]
        .into_iter()
        .collect(),
        ..Observed::default()
    };
    let mut plan = plan(&desired, &observed);
    let orphans = plan.take_orphans(&desired);
    assert_eq!(
        named(&orphans),
        ["retain Repository shop/kept", "delete LifecyclePolicy shop/keep"]
    );
    let given_up =
        plan.steps.iter().filter(|step| step.action == Action::Delete).collect::<Vec<_>>();
    assert!(
        matches!(given_up.as_slice(), [step] if step.repository().is_some_and(|name| name.as_str() == "ours"))
    );
}

#[test]
fn a_set_of_manifests_releases_only_what_it_created() {
    let made_by = |cluster: &str| {
        let gone = owned(
            cluster,
            "gone",
            "i:",
            &[("wharfage.dev/lifecycle", &format!("{cluster}/shop/old delete"))],
        );
        Observed { repositories: [gone].into_iter().collect(), ..Observed::default() }
    };
    let releases = |planner: &str, made: &str| {
        let desired = wanted(planner);
        !plan(&desired, &made_by(made)).take_orphans(&desired).is_empty()
    };
    assert!(releases("file:prod:one", "file:prod:one"));
    for made in ["file:prod:two", "file:prod", "file:other:one", "prod", "local", ""] {
        assert!(!releases("file:prod:one", made), "{made}");
    }
    assert!(!releases("file:prod", "file:prod"), "a pipe's manifests are others each time");
    assert!(!releases("prod", "file:prod:one"));
}

#[test]
fn repositories_of_another_owner_are_adopted_only_on_request() {
    let observed = Observed {
        repositories: [
            owned("local", "ours", "i:", &[("wharfage.dev/lifecycle", "local/shop/keep")]),
            owned("local", "gone", "i:", &[]),
        ]
        .into_iter()
        .collect(),
        ..Observed::default()
    };
    let mut desired = wanted("file:prod:one");
    let refused = plan(&desired, &observed).refused;
    let ours = refused.iter().find(|refused| refused.object.name == "ours").unwrap();
    assert!(ours.message.ends_with("or adopt it with --adopt-from local"), "{}", ours.message);

    desired.adopt_from = Some("local".to_owned());
    let plan = plan(&desired, &observed);
    let steps =
        plan.steps.iter().filter(|step| step.repository().is_some_and(|it| it.as_str() == "ours"));
    assert_eq!(named(&steps.cloned().collect::<Vec<_>>())[0], "adopt Repository shop/ours");
    assert!(!plan.steps.iter().any(|step| step.object.name == "gone"), "{plan}");
}
