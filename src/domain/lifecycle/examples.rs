//! Worked examples of what policies do, written as tables, and what happens around indexes and referrers.

use std::collections::HashMap;
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::names::{Algorithm, Digest};

const DAY: i64 = 86_400;

fn now() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

/// A digest that reads, and sorts, as its name does.
fn digest(name: &str) -> Digest {
    let mut hash = [0; 32];
    hash[..name.len()].copy_from_slice(name.as_bytes());
    Digest::from_hash(Algorithm::Sha256, &hash)
}

fn name(digest: &Digest) -> String {
    let bytes = hex::decode(digest.hex()).unwrap();
    String::from_utf8(bytes).unwrap().trim_end_matches('\0').to_owned()
}

/// An active image, pushed `days` ago.
fn image(name: &str, tags: &[&str], days: i64) -> Image {
    Image {
        digest: digest(name),
        tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
        pushed_at: ago(days * DAY),
        last_pulled_at: None,
        status: ImageStatus::Active,
        archived_at: None,
        activated_at: None,
        subject: None,
        parents: Vec::new(),
    }
}

impl Image {
    fn pulled(self, days: i64) -> Self {
        Self { last_pulled_at: Some(ago(days * DAY)), ..self }
    }
    fn archived(self, days: i64) -> Self {
        Self { status: ImageStatus::Archived, archived_at: Some(ago(days * DAY)), ..self }
    }
    fn restored(self, days: i64) -> Self {
        Self { status: ImageStatus::Active, activated_at: Some(ago(days * DAY)), ..self }
    }
    fn child_of(mut self, index: &str) -> Self {
        self.parents.push(digest(index));
        self
    }
    fn refers_to(self, subject: &str) -> Self {
        Self { subject: Some(digest(subject)), ..self }
    }
}

/// A rule that expires, until [`Rule::transition`] says otherwise.
fn rule(priority: u32, tags: TagSelection, count: Count) -> Rule {
    Rule { priority, description: String::new(), tags, count, action: Action::Expire }
}

impl Rule {
    fn transition(self) -> Self {
        Self { action: Action::Transition, ..self }
    }
}

fn prefix(list: &[&str]) -> TagSelection {
    TagSelection::Prefixes(list.iter().map(|&entry| entry.to_owned()).collect())
}

fn pattern(list: &[&str]) -> TagSelection {
    TagSelection::Patterns(list.iter().map(|&entry| entry.to_owned()).collect())
}

/// The outcome in words: marks in the order of execution (`>` archives, `~` follows), then the
/// protected images.
fn outcome(rules: Vec<Rule>, images: &[Image]) -> String {
    let policy = match Policy::new(rules) {
        Ok(policy) => policy,
        Err(refused) => return format!("refused: {}", refused.reason()),
    };
    let evaluation = evaluate(&policy, images, now());
    let mut words = String::new();
    for mark in &evaluation.marks {
        let follows = if mark.cause == Cause::FollowsSubject { "~" } else { "" };
        let archives = if mark.action == Action::Transition { ">" } else { "" };
        write!(words, "{follows}{archives}{}:{} ", name(&mark.image.digest), mark.rule_priority)
            .unwrap();
    }
    for protected in &evaluation.protected {
        let by: Vec<_> = protected.blocked_by.iter().map(|digest| name(digest)).collect();
        write!(words, "({} by {}) ", name(&protected.mark.image.digest), by.join(",")).unwrap();
    }
    words.trim_end().to_owned()
}

#[test]
fn the_worked_examples_come_out_as_ecr_does_them() {
    use Count::{MoreThan, SincePulled, SincePushed, SinceTransitioned};
    use TagSelection::{Any, Untagged};
    let nightly = || {
        vec![
            image("P", &["nightly-1", "stable-1"], 12),
            image("Q", &["nightly-2", "stable-2"], 11),
            image("S", &["nightly-3"], 10),
        ]
    };
    let index = || {
        vec![
            image("I", &["v1"], 5),
            image("C1", &[], 5).child_of("I"),
            image("C2", &[], 5).child_of("I"),
        ]
    };
    let table: Vec<(&str, Vec<Image>, Vec<Rule>, &str)> = vec![
        (
            "E1: tagged images are outside an untagged rule",
            vec![image("U1", &[], 15), image("U2", &[], 13), image("T", &["v1"], 40)],
            vec![rule(1, Untagged, SincePushed(14))],
            "U1:1",
        ),
        (
            "E2: exactly N days old is not yet older",
            vec![image("A", &[], 14), Image { pushed_at: ago(14 * DAY + 1), ..image("B", &[], 0) }],
            vec![rule(1, Untagged, SincePushed(14))],
            "B:1",
        ),
        (
            "E3: the youngest is kept and tagged ones don't count",
            vec![
                image("U1", &[], 5),
                image("U2", &[], 3),
                image("U3", &[], 1),
                image("T", &["v1"], 9),
            ],
            vec![rule(1, Untagged, MoreThan(1))],
            "U1:1 U2:1",
        ),
        (
            "E4: all entries of a list must match",
            vec![
                image("A", &["app-1", "qa-1"], 9),
                image("B", &["app-2"], 9),
                image("C", &["qa-3"], 9),
            ],
            vec![rule(1, prefix(&["app", "qa"]), SincePushed(7))],
            "A:1",
        ),
        (
            "E5: one tag may satisfy both entries, or two tags one each",
            vec![image("A", &["v1-rc2"], 9), image("B", &["v1", "rc9"], 9), image("C", &["v1"], 9)],
            vec![rule(1, pattern(&["*rc*", "v*"]), SincePushed(7))],
            "A:1 B:1",
        ),
        (
            "E6: what a rule matches is shielded from later rules though it is old",
            vec![
                image("R1", &["rel-1"], 100),
                image("R2", &["rel-2"], 90),
                image("R3", &["rel-3"], 80),
                image("X", &["dev-1"], 60),
                image("U", &[], 45),
                image("Y", &["dev-2"], 10),
            ],
            vec![rule(1, prefix(&["rel"]), MoreThan(2)), rule(2, Any, SincePushed(30))],
            "R1:1 X:2 U:2",
        ),
        (
            "E7: a claimed image still counts among the youngest",
            vec![
                image("T", &["tmp-1"], 2),
                image("A", &["a"], 3),
                image("B", &["b"], 4),
                image("C", &["c"], 5),
            ],
            vec![rule(1, prefix(&["tmp"]), SincePushed(1)), rule(2, Any, MoreThan(2))],
            "C:2 B:2 T:1",
        ),
        (
            "E8: rule 2 would take Q, but rule 1 matched it",
            nightly(),
            vec![
                rule(1, prefix(&["stable"]), MoreThan(1)),
                rule(2, prefix(&["nightly"]), MoreThan(1)),
            ],
            "P:1",
        ),
        (
            "E9: rule 2 finds everything claimed",
            nightly(),
            vec![
                rule(1, prefix(&["nightly"]), MoreThan(1)),
                rule(2, prefix(&["stable"]), MoreThan(1)),
            ],
            "P:1 Q:1",
        ),
        (
            "E10: * matches every tag, never untagged images",
            vec![image("A", &["v1"], 3), image("B", &["v2"], 2), image("U", &[], 1)],
            vec![rule(1, pattern(&["*"]), MoreThan(1))],
            "A:1",
        ),
        (
            "E11: an image goes with all its tags",
            vec![image("A", &["v1", "latest"], 40)],
            vec![rule(1, pattern(&["v*"]), SincePushed(30))],
            "A:1",
        ),
        (
            "E12: rule 1 never selects A but shields it",
            vec![image("A", &["v1", "latest"], 40), image("B", &["v0"], 50)],
            vec![
                rule(1, pattern(&["latest"]), MoreThan(1)),
                rule(2, pattern(&["v*"]), SincePushed(30)),
            ],
            "B:2",
        ),
        (
            "E13: children are selected, but blocked by their index",
            [index(), vec![image("U", &[], 5)]].concat(),
            vec![rule(1, Untagged, SincePushed(3))],
            "U:1 (C1 by I) (C2 by I)",
        ),
        (
            "E14: children go in the same pass, after their index",
            index(),
            vec![rule(1, pattern(&["v*"]), SincePushed(3)), rule(2, Untagged, SincePushed(3))],
            "I:1 C1:2 C2:2",
        ),
        (
            "E15: a referrer follows its subject despite its age",
            vec![image("S", &["v1"], 40), image("G", &[], 1).refers_to("S")],
            vec![rule(1, pattern(&["v*"]), SincePushed(30))],
            "S:1 ~G:1",
        ),
        (
            "E16: B ages from its push, D from its restore",
            vec![
                image("A", &["x"], 200).pulled(10),
                image("B", &["y"], 61),
                image("C", &["z"], 200).pulled(61),
                image("D", &["w"], 300).pulled(100).archived(60).restored(30),
            ],
            vec![rule(1, Any, SincePulled(60)).transition()],
            ">C:1 >B:1",
        ),
        (
            "E17: active images are no matter of an archive rule",
            vec![
                image("X", &[], 400).archived(91),
                image("Y", &[], 400).archived(89),
                image("Z", &["z"], 500),
            ],
            vec![rule(1, Any, SinceTransitioned(90))],
            "X:1",
        ),
        (
            "E18: two any rules are legal in different classes and don't shield across them",
            vec![image("A", &["a"], 200).pulled(31), image("B", &[], 800).archived(366)],
            vec![rule(1, Any, SincePulled(30)).transition(), rule(2, Any, SinceTransitioned(365))],
            "B:2 >A:1",
        ),
        (
            "E19: a restored image is as young as its restore",
            vec![image("A", &["a"], 100).restored(1), image("B", &["b"], 10)],
            vec![rule(1, Any, MoreThan(1))],
            "B:1",
        ),
        (
            "E20: case matters",
            vec![image("A", &["prod-1"], 9), image("B", &["Prod-2"], 9)],
            vec![rule(1, prefix(&["prod"]), SincePushed(7))],
            "A:1",
        ),
        (
            "E21: fewer images than are kept",
            vec![image("A", &["a"], 5), image("B", &["b"], 4)],
            vec![rule(1, Any, MoreThan(5))],
            "",
        ),
        (
            "E22: one policy archives some and expires others",
            vec![
                image("A", &["v1"], 20),
                image("B", &["v2"], 15),
                image("C", &["v3"], 10),
                image("D", &[], 9),
            ],
            vec![
                rule(1, pattern(&["v*"]), MoreThan(1)).transition(),
                rule(2, Untagged, SincePushed(7)),
            ],
            ">A:1 >B:1 D:2",
        ),
        (
            "E23: a new tag doesn't rejuvenate",
            vec![image("M", &["prod"], 60)],
            vec![rule(1, Any, SincePushed(30))],
            "M:1",
        ),
        (
            "E24: E is the youngest; C is claimed by 1, E by 2",
            vec![
                image("A", &["web-1"], 9),
                image("B", &[], 7),
                image("C", &["web-2"], 6),
                image("D", &["x9"], 4),
                image("E", &[], 2),
            ],
            vec![
                rule(1, prefix(&["web"]), MoreThan(1)),
                rule(2, Untagged, SincePushed(5)),
                rule(3, Any, MoreThan(1)),
            ],
            "A:1 B:2 D:3",
        ),
        (
            "E25: an any rule comes last",
            vec![],
            vec![rule(1, Any, MoreThan(3)), rule(2, Untagged, SincePushed(7))],
            "refused: Rule for tagStatus=ANY must have the lowest priority per storage class",
        ),
        (
            "E26: one untagged rule per class",
            vec![],
            vec![rule(1, Untagged, SincePushed(7)), rule(2, Untagged, MoreThan(5))],
            "refused: Only one rule can select Untagged images per storage class.",
        ),
        (
            "E27: what isn't pulled is archived, not expired",
            vec![],
            vec![rule(1, Any, SincePulled(90))],
            "refused: countType sinceImagePulled can only be used with the transition action.",
        ),
        (
            "E28: five wildcards",
            vec![],
            vec![rule(1, pattern(&["a*b*c*d*e*"]), SincePushed(7))],
            "refused: The tag pattern \"a*b*c*d*e*\" has more than 4 wildcards (*).",
        ),
    ];
    assert_eq!(table.len(), 28);
    for (title, images, rules, expected) in table {
        assert_eq!(outcome(rules, &images), expected, "{title}");
    }
}

#[test]
fn the_summary_counts_what_a_preview_tells() {
    let images = [
        image("A", &["v1"], 20),
        image("B", &["v2"], 15),
        image("C", &["v3"], 10),
        image("D", &[], 9),
        image("G", &[], 1).refers_to("D"),
        image("K", &[], 9).child_of("C"),
    ];
    let rules = vec![
        rule(1, pattern(&["v*"]), Count::MoreThan(1)).transition(),
        rule(2, TagSelection::Untagged, Count::SincePushed(7)),
    ];
    let policy = Policy::new(rules).unwrap();
    let evaluation = evaluate(&policy, &images, now());
    let expected = Summary { expiring: 1, transitioning: 2, following: 1, protected: 1 };
    assert_eq!(evaluation.summary(), expected);
    let previewed: Vec<_> = evaluation.selected().map(|mark| name(&mark.image.digest)).collect();
    assert_eq!(previewed, ["A", "B", "D"]);
}

#[test]
fn a_child_waits_for_every_index_that_has_it() {
    let images = |second: i64| {
        [
            image("I", &["v1"], 9),
            image("J", &["v2"], second),
            image("C", &[], 9).child_of("I").child_of("J"),
        ]
    };
    let rules = || {
        vec![
            rule(1, prefix(&["v"]), Count::SincePushed(3)),
            rule(2, TagSelection::Untagged, Count::SincePushed(3)),
        ]
    };
    assert_eq!(outcome(rules(), &images(4)), "I:1 J:1 C:2");
    assert_eq!(outcome(rules(), &images(2)), "I:1 (C by J)");
}

#[test]
fn a_protected_index_protects_its_own_children() {
    let images = [
        image("O", &["keep"], 9),
        image("I", &["v1"], 9).child_of("O"),
        image("C", &[], 9).child_of("I"),
        image("U", &[], 8).child_of("elsewhere"),
    ];
    let rules = vec![
        rule(1, prefix(&["v"]), Count::SincePushed(3)),
        rule(2, TagSelection::Untagged, Count::SincePushed(3)),
    ];
    assert_eq!(outcome(rules, &images), "(C by I) (I by O) (U by elsewhere)");
}

#[test]
fn archiving_is_blocked_only_by_an_index_that_can_be_pulled() {
    let child = || image("C", &["c"], 9).child_of("I");
    let archive = || vec![rule(1, prefix(&["c"]), Count::SincePushed(3)).transition()];
    let expire = || vec![rule(1, prefix(&["c"]), Count::SincePushed(3))];
    let active = [image("I", &["v1"], 9), child()];
    let archived = [image("I", &["v1"], 9).archived(1), child()];
    let activating = [Image { status: ImageStatus::Activating, ..image("I", &["v1"], 9) }, child()];
    assert_eq!(outcome(archive(), &active), "(C by I)");
    assert_eq!(outcome(archive(), &archived), ">C:1");
    assert_eq!(outcome(archive(), &activating), "(C by I)");
    assert_eq!(outcome(expire(), &archived), "(C by I)");

    let index_too = |rules: Vec<Rule>| {
        [rules, vec![rule(2, prefix(&["v"]), Count::SincePushed(3)).transition()]].concat()
    };
    assert_eq!(outcome(index_too(archive()), &active), ">I:2 >C:1");
    assert_eq!(outcome(index_too(expire()), &active), ">I:2 (C by I)");
}

#[test]
fn an_expired_index_that_never_blocked_releases_nothing() {
    let images = [
        image("I", &["v1"], 400).archived(100),
        image("J", &["keep"], 9),
        image("C", &["c"], 9).child_of("I").child_of("J"),
    ];
    let rules = vec![
        rule(1, prefix(&["c"]), Count::SincePushed(3)).transition(),
        rule(2, TagSelection::Any, Count::SinceTransitioned(90)),
    ];
    assert_eq!(outcome(rules, &images), "I:2 (C by J)");
}

#[test]
fn an_image_on_its_way_back_from_the_archive_is_let_be() {
    let activating = Image { status: ImageStatus::Activating, ..image("A", &[], 900) };
    let rules = vec![
        rule(1, TagSelection::Any, Count::SincePushed(1)),
        rule(2, TagSelection::Any, Count::SinceTransitioned(90)),
    ];
    assert_eq!(outcome(rules, &[activating]), "");
}

#[test]
fn referrers_are_never_selected_while_their_subject_exists() {
    let images = [
        image("S", &["v1"], 90),
        image("G", &[], 90).refers_to("S"),
        image("H", &[], 80).refers_to("G"),
        image("O", &[], 70).refers_to("gone"),
    ];
    let untagged = vec![rule(1, TagSelection::Untagged, Count::MoreThan(1))];
    assert_eq!(outcome(untagged, &images), "", "only the orphan counts");
    let any = |count| vec![rule(1, TagSelection::Any, count)];
    assert_eq!(outcome(any(Count::SincePushed(75)), &images), "S:1 ~G:1 ~H:1");
    let archive = vec![rule(1, prefix(&["v"]), Count::SincePushed(1)).transition()];
    let [s, g, h, o] = images;
    assert_eq!(
        outcome(archive, &[s, g.archived(1), h, o]),
        ">S:1",
        "G is archived, so H has nothing to follow"
    );
}

#[test]
fn a_referrer_that_an_index_needs_stays_and_an_index_that_follows_lets_its_children_go() {
    let kept = [
        image("S", &["v1"], 9),
        image("G", &[], 9).refers_to("S").child_of("T"),
        image("T", &["sha256-x"], 9),
    ];
    let rules = || {
        vec![
            rule(1, prefix(&["v"]), Count::SincePushed(3)),
            rule(2, TagSelection::Untagged, Count::SincePushed(3)),
        ]
    };
    assert_eq!(outcome(rules(), &kept), "S:1 (G by T)");
    let index = [
        image("S", &["v1"], 9),
        image("G", &[], 4).refers_to("S"),
        image("C", &[], 9).child_of("G"),
    ];
    assert_eq!(outcome(rules(), &index), "S:1 ~G:1 C:2");
}

#[test]
fn a_very_deep_nest_of_indexes_is_carried_out_from_the_outside_in() {
    let digests: Vec<_> = (0..20_000).map(|i| digest(&i.to_string())).collect();
    let images: Vec<_> = (0..digests.len())
        .map(|i| Image {
            digest: digests[i].clone(),
            parents: i.checked_sub(1).map(|parent| digests[parent].clone()).into_iter().collect(),
            ..image("x", &[], 9)
        })
        .collect();
    let policy = Policy::new(vec![rule(1, TagSelection::Any, Count::SincePushed(3))]).unwrap();
    let evaluation = evaluate(&policy, &images, now());
    let order: Vec<_> = evaluation.marks.iter().map(|mark| &mark.image.digest).collect();
    assert_eq!(order, digests.iter().collect::<Vec<_>>());
}

/// 100,000 images, a thousand of each team: 49 teams have a rule, the rest is left to `any`.
#[test]
fn a_hundred_thousand_images_meet_fifty_rules() {
    let images: Vec<_> = (0..100_000)
        .map(|i| {
            image(&format!("image{i}"), &[&format!("team{:02}-{i}", i % 100)], i64::from(i / 1000))
        })
        .collect();
    let mut rules: Vec<_> = (0..49)
        .map(|team| {
            rule(team + 1, pattern(&[&format!("team{team:02}-*")]), Count::MoreThan(100 + team))
        })
        .collect();
    rules.push(rule(50, TagSelection::Any, Count::SincePushed(90)));
    let policy = Policy::new(rules).unwrap();
    let evaluation = evaluate(&policy, &images, now());
    let mut by_rule: HashMap<u32, usize> = HashMap::new();
    for mark in &evaluation.marks {
        *by_rule.entry(mark.rule_priority).or_default() += 1;
    }
    for team in 0..49 {
        assert_eq!(by_rule[&(team + 1)], 1000 - (100 + team as usize));
    }
    // Days 91 to 99, ten images a day of each of the 51 teams without a rule.
    assert_eq!(by_rule[&50], 9 * 10 * 51);
    assert_eq!(evaluation.summary().expiring, evaluation.marks.len());
}
