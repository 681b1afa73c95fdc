//! Reads a lifecycle policy's rules out of JSON and names the faults of its shape as ECR does.
//!
//! ECR checks documents by a JSON schema and passes that validator's words on; they are kept here,
//! as scripts match on them. [`super::document`] checks whether the rules make sense together.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::document::{Action, Count, InvalidPolicy, Rule, TagSelection};

type Result<T> = std::result::Result<T, InvalidPolicy>;

/// Numbers above this don't fit the integers that ECR's clients read.
const MAX_NUMBER: i64 = i32::MAX as i64;

/// The refusal of text that is no JSON object.
pub(super) fn not_a_policy() -> InvalidPolicy {
    InvalidPolicy::document("Could not map policyString into LifecyclePolicy.")
}

/// Refuses a number below `minimum`.
pub(super) fn at_least(minimum: i64, found: i64) -> Result<()> {
    if found >= minimum {
        return Ok(());
    }
    Err(InvalidPolicy::document(format!(
        "numeric instance is lower than the required minimum (minimum: {minimum}, found: {found})"
    )))
}

/// Refuses a list of more than `most` elements.
pub(super) fn at_most(most: usize, found: usize) -> Result<()> {
    if found <= most {
        return Ok(());
    }
    Err(InvalidPolicy::document(format!(
        "array is too long: must have at most {most} elements but instance has {found} elements"
    )))
}

/// Refuses a list without elements.
pub(super) fn not_empty(found: usize) -> Result<()> {
    if found > 0 {
        return Ok(());
    }
    Err(InvalidPolicy::document(
        "array is too short: must have at least 1 elements but instance has 0 elements",
    ))
}

/// Reads the rules of a whole document, `{"rules": […]}`.
pub(super) fn read_rules(document: &Value) -> Result<Vec<Rule>> {
    if !document.is_object() {
        return Err(not_a_policy());
    }
    let document = members(document, &["rules"], &[])?;
    list(&document["rules"])?.iter().map(read_rule).collect()
}

fn read_rule(value: &Value) -> Result<Rule> {
    let rule = members(value, &["action", "rulePriority", "selection"], &["description"])?;
    let priority = number(&rule["rulePriority"])?;
    let description = rule.get("description").map(string).transpose()?.unwrap_or_default();
    let (tags, count) = read_selection(&rule["selection"])?;
    let action = read_action(&rule["action"])?;
    Ok(Rule { priority, description: description.to_owned(), tags, count, action })
}

fn read_selection(value: &Value) -> Result<(TagSelection, Count)> {
    let required = ["countNumber", "countType", "tagStatus"];
    let optional = ["countUnit", "storageClass", "tagPatternList", "tagPrefixList"];
    let selection = members(value, &required, &optional)?;
    // A tag list that is null has the wrong type; any other null fits no form.
    if selection.iter().any(|(name, value)| value.is_null() && !name.ends_with("List")) {
        return Err(matches_none_of(SELECTION_SCHEMAS));
    }
    let status = one_of(&selection["tagStatus"], &["any", "tagged", "untagged"])?;
    let number = number(&selection["countNumber"])?;
    let unit = selection.get("countUnit").map(|unit| one_of(unit, &["days"])).transpose()?;
    let count = match (string(&selection["countType"])?, unit) {
        ("imageCountMoreThan", None) => Count::MoreThan(number),
        ("sinceImagePushed", Some(_)) => Count::SincePushed(number),
        ("sinceImagePulled", Some(_)) => Count::SincePulled(number),
        ("sinceImageTransitioned", Some(_)) => Count::SinceTransitioned(number),
        _ => return Err(matches_none_of(SELECTION_SCHEMAS)),
    };
    check_class(selection.get("storageClass"), count)?;
    let prefixes = selection.get("tagPrefixList").map(strings).transpose()?;
    let patterns = selection.get("tagPatternList").map(strings).transpose()?;
    Ok((read_tags(status, prefixes, patterns)?, count))
}

/// The class follows from the count type; a document may repeat it but not contradict it.
fn check_class(class: Option<&Value>, count: Count) -> Result<()> {
    let class = class
        .map(|class| one_of(class, &["archive", "standard"]))
        .transpose()?
        .unwrap_or("standard");
    match (count, class) {
        (Count::SinceTransitioned(_), "standard") => Err(InvalidPolicy::document(
            "countType sinceImageTransitioned needs storageClass archive.",
        )),
        (Count::MoreThan(_) | Count::SincePushed(_) | Count::SincePulled(_), "archive") => Err(
            InvalidPolicy::document("storageClass archive needs countType sinceImageTransitioned."),
        ),
        _ => Ok(()),
    }
}

fn read_tags(
    status: &str,
    prefixes: Option<BTreeSet<String>>,
    patterns: Option<BTreeSet<String>>,
) -> Result<TagSelection> {
    match (status, prefixes, patterns) {
        ("any", None, None) => Ok(TagSelection::Any),
        ("untagged", None, None) => Ok(TagSelection::Untagged),
        ("tagged", Some(prefixes), None) => Ok(TagSelection::Prefixes(prefixes)),
        ("tagged", None, Some(patterns)) => Ok(TagSelection::Patterns(patterns)),
        ("tagged", None, None) => Err(InvalidPolicy::document(
            "Must specify tagPrefixList or tagPatternList when tagStatus=TAGGED.",
        )),
        ("tagged", Some(_), Some(_)) => Err(InvalidPolicy::document(
            "A rule can have tagPrefixList or tagPatternList, not both.",
        )),
        _ => Err(InvalidPolicy::document(
            "tagPrefixList and tagPatternList can only be used when tagStatus=TAGGED.",
        )),
    }
}

fn read_action(value: &Value) -> Result<Action> {
    let action = members(value, &["type"], &["targetStorageClass"])?;
    if action.values().any(Value::is_null) {
        return Err(matches_none_of(ACTION_SCHEMAS));
    }
    let kind = one_of(&action["type"], &["expire", "transition"])?;
    let target =
        action.get("targetStorageClass").map(|target| one_of(target, &["archive"])).transpose()?;
    match (kind, target) {
        ("expire", None) => Ok(Action::Expire),
        ("transition", Some(_)) => Ok(Action::Transition),
        _ => Err(matches_none_of(ACTION_SCHEMAS)),
    }
}

/// The number of forms of a selection in ECR's schema: one for each count type.
const SELECTION_SCHEMAS: usize = 4;
/// The number of forms of an action in ECR's schema.
const ACTION_SCHEMAS: usize = 2;

fn matches_none_of(schemas: usize) -> InvalidPolicy {
    InvalidPolicy::document(format!(
        "instance failed to match exactly one schema (matched 0 out of {schemas})"
    ))
}

/// Returns the members of an object that has all of `required`, and nothing but those and
/// `optional`.
///
/// Required members can then be indexed. A `null` is for its reader to refuse.
fn members<'a>(
    value: &'a Value,
    required: &[&str],
    optional: &[&str],
) -> Result<&'a Map<String, Value>> {
    let Value::Object(object) = value else { return Err(wrong_type(value, "object")) };
    let missing: Vec<_> = required.iter().filter(|name| !object.contains_key(**name)).collect();
    if !missing.is_empty() {
        let reason = format!("object has missing required properties ({})", json!(missing));
        return Err(InvalidPolicy::document(reason));
    }
    let known = |name: &str| required.contains(&name) || optional.contains(&name);
    let unknown: BTreeSet<_> = object.keys().filter(|name| !known(name)).collect();
    if !unknown.is_empty() {
        let reason = format!(
            "object instance has properties which are not allowed by the schema: ({})",
            json!(unknown)
        );
        return Err(InvalidPolicy::document(reason));
    }
    Ok(object)
}

fn list(value: &Value) -> Result<&[Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong_type(value, "array"))
}

fn string(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| wrong_type(value, "string"))
}

fn strings(value: &Value) -> Result<BTreeSet<String>> {
    list(value)?.iter().map(|entry| string(entry).map(str::to_owned)).collect()
}

fn one_of<'a>(value: &'a Value, allowed: &[&str]) -> Result<&'a str> {
    match value.as_str() {
        Some(text) if allowed.contains(&text) => Ok(text),
        _ => Err(InvalidPolicy::document(format!(
            "instance value ({value}) not found in enum (possible values: {})",
            json!(allowed)
        ))),
    }
}

fn number(value: &Value) -> Result<u32> {
    if !value.is_i64() && !value.is_u64() {
        return Err(wrong_type(value, "integer"));
    }
    let found = value.as_i64().unwrap_or(i64::MAX);
    at_least(1, found)?;
    match u32::try_from(found) {
        Ok(number) if found <= MAX_NUMBER => Ok(number),
        _ => Err(InvalidPolicy::document(format!(
            "numeric instance is greater than the required maximum (maximum: {MAX_NUMBER}, found: {value})"
        ))),
    }
}

fn wrong_type(value: &Value, allowed: &str) -> InvalidPolicy {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    InvalidPolicy::document(format!(
        "instance type ({found}) does not match any allowed primitive type (allowed: [\"{allowed}\"])"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::document::Policy;
    use super::*;

    /// Replaces the member at `path` of a good rule (or removes it) and returns why the rule is
    /// then refused.
    fn refusal(path: &str, value: Option<Value>) -> String {
        let mut rule = json!({
            "rulePriority": 1,
            "description": "text",
            "selection": {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 14},
            "action": {"type": "expire"}
        });
        let (parent, name) = path.rsplit_once('/').unwrap();
        let parent = rule.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => parent.insert(name.to_owned(), value),
            None => parent.remove(name),
        };
        let document = json!({ "rules": [rule] });
        Policy::from_value(&document).unwrap_err().reason().to_owned()
    }

    #[test]
    fn what_is_no_document_cannot_be_mapped() {
        let deep = format!(r#"{{"rules":{}"#, "[".repeat(20_000));
        for text in
            ["", "x", "[]", "null", "3", r#""{}""#, r#"{"rules":[]"#, r#"{"rules":[]} x"#, &deep]
        {
            let refused = Policy::parse(text).unwrap_err();
            assert_eq!(
                refused.reason(),
                "Could not map policyString into LifecyclePolicy.",
                "{text:.30}"
            );
        }
    }

    #[test]
    fn missing_members_are_named() {
        let refused = Policy::parse("{}").unwrap_err();
        assert_eq!(refused.reason(), r#"object has missing required properties (["rules"])"#);
        for (path, name) in [
            ("/rulePriority", "rulePriority"),
            ("/selection", "selection"),
            ("/action", "action"),
            ("/selection/tagStatus", "tagStatus"),
            ("/selection/countType", "countType"),
            ("/selection/countNumber", "countNumber"),
            ("/action/type", "type"),
        ] {
            assert_eq!(
                refusal(path, None),
                format!(r#"object has missing required properties (["{name}"])"#)
            );
        }
        let refused = Policy::parse(r#"{"rules":[{"description":"x"}]}"#).unwrap_err();
        assert_eq!(
            refused.reason(),
            r#"object has missing required properties (["action","rulePriority","selection"])"#
        );
    }

    #[test]
    fn unknown_members_are_named() {
        let refused = Policy::parse(r#"{"rules":[],"Version":1,"Rules":[]}"#).unwrap_err();
        assert_eq!(
            refused.reason(),
            r#"object instance has properties which are not allowed by the schema: (["Rules","Version"])"#
        );
        for (path, name) in
            [("/name", "name"), ("/selection/tag", "tag"), ("/action/target", "target")]
        {
            assert_eq!(
                refusal(path, Some(json!(1))),
                format!(
                    r#"object instance has properties which are not allowed by the schema: (["{name}"])"#
                )
            );
        }
    }

    #[test]
    fn wrong_enum_values_are_told_with_the_possible_ones() {
        for (path, possible) in [
            ("/selection/tagStatus", r#"["any","tagged","untagged"]"#),
            ("/selection/countUnit", r#"["days"]"#),
            ("/selection/storageClass", r#"["archive","standard"]"#),
            ("/action/type", r#"["expire","transition"]"#),
            ("/action/targetStorageClass", r#"["archive"]"#),
        ] {
            let expected =
                format!(r#"instance value ("x") not found in enum (possible values: {possible})"#);
            assert_eq!(refusal(path, Some(json!("x"))), expected);
        }
    }

    #[test]
    fn what_fits_no_alternative_matches_no_schema() {
        for (path, value, schemas) in [
            ("/selection/countType", Some(json!("sinceImageScanned")), 4),
            ("/selection/countType", Some(json!("imageCountMoreThan")), 4),
            ("/selection/countType", Some(Value::Null), 4),
            ("/selection/countUnit", None, 4),
            ("/selection/countUnit", Some(Value::Null), 4),
            ("/selection/storageClass", Some(Value::Null), 4),
            ("/action/targetStorageClass", Some(Value::Null), 2),
            ("/action/targetStorageClass", Some(json!("archive")), 2),
            ("/action/type", Some(json!("transition")), 2),
        ] {
            let expected =
                format!("instance failed to match exactly one schema (matched 0 out of {schemas})");
            assert_eq!(refusal(path, value.clone()), expected, "{path} {value:?}");
        }
    }

    #[test]
    fn wrong_types_and_numbers_out_of_range_are_told() {
        let wrong = |found, allowed| {
            format!(
                "instance type ({found}) does not match any allowed primitive type (allowed: [\"{allowed}\"])"
            )
        };
        assert_eq!(refusal("/selection", Some(json!([]))), wrong("array", "object"));
        assert_eq!(refusal("/selection", Some(Value::Null)), wrong("null", "object"));
        assert_eq!(refusal("/selection/tagPrefixList", Some(Value::Null)), wrong("null", "array"));
        assert_eq!(refusal("/selection/tagPatternList", Some(Value::Null)), wrong("null", "array"));
        assert_eq!(refusal("/description", Some(Value::Null)), wrong("null", "string"));
        assert_eq!(refusal("/description", Some(json!(true))), wrong("boolean", "string"));
        assert_eq!(refusal("/rulePriority", Some(json!("1"))), wrong("string", "integer"));
        assert_eq!(refusal("/rulePriority", Some(json!(1.5))), wrong("number", "integer"));
        assert_eq!(
            refusal("/selection/tagPatternList", Some(json!("v*"))),
            wrong("string", "array")
        );
        assert_eq!(
            refusal("/selection/tagPatternList", Some(json!([1]))),
            wrong("integer", "string")
        );
        for path in ["/rulePriority", "/selection/countNumber"] {
            assert_eq!(
                refusal(path, Some(json!(-5))),
                "numeric instance is lower than the required minimum (minimum: 1, found: -5)"
            );
            assert_eq!(
                refusal(path, Some(json!(u64::MAX))),
                "numeric instance is greater than the required maximum (maximum: 2147483647, found: 18446744073709551615)"
            );
        }
    }

    #[test]
    fn tag_lists_go_with_tagged_and_alone() {
        let tagged = refusal("/selection/tagStatus", Some(json!("tagged")));
        assert_eq!(tagged, "Must specify tagPrefixList or tagPatternList when tagStatus=TAGGED.");
        for list in ["/selection/tagPrefixList", "/selection/tagPatternList"] {
            assert_eq!(
                refusal(list, Some(json!(["v"]))),
                "tagPrefixList and tagPatternList can only be used when tagStatus=TAGGED."
            );
        }
        let both = json!({
            "tagStatus": "tagged", "tagPrefixList": ["a"], "tagPatternList": ["b"],
            "countType": "imageCountMoreThan", "countNumber": 1
        });
        assert_eq!(
            refusal("/selection", Some(both)),
            "A rule can have tagPrefixList or tagPatternList, not both."
        );
    }

    #[test]
    fn the_storage_class_agrees_with_the_count_type() {
        assert_eq!(
            refusal("/selection/storageClass", Some(json!("archive"))),
            "storageClass archive needs countType sinceImageTransitioned."
        );
        assert_eq!(
            refusal("/selection/countType", Some(json!("sinceImageTransitioned"))),
            "countType sinceImageTransitioned needs storageClass archive."
        );
    }

    #[test]
    fn of_a_repeated_member_the_last_holds() {
        let text = r#"{"rules":[{}],"rules":[]}"#;
        assert_eq!(Policy::parse(text), Ok(Policy::default()));
    }

    /// JSON that is like a policy, with its words in wrong places.
    fn almost_policies() -> impl Strategy<Value = Value> {
        let words = [
            "rules",
            "rulePriority",
            "selection",
            "action",
            "description",
            "tagStatus",
            "tagged",
            "any",
            "countType",
            "countNumber",
            "countUnit",
            "days",
            "storageClass",
            "archive",
            "tagPrefixList",
            "type",
            "expire",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            proptest::sample::select(words.to_vec()).prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, move |inner| {
            let key = proptest::sample::select(words.to_vec()).prop_map(str::to_owned);
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map(key, inner, 0..5).prop_map(Value::from_iter),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "\\PC{0,200}") {
            let _ = Policy::parse(&text);
        }

        #[test]
        fn any_json_is_judged(value in almost_policies()) {
            if let Ok(policy) = Policy::from_value(&json!({ "rules": [value] })) {
                prop_assert_eq!(Policy::from_value(&policy.to_document()), Ok(policy));
            }
        }
    }
}
