//! The result of executing a plan, as data that can be printed.

use std::fmt;

use serde::Serialize;

use wharfage_plan::model::ApiError;
use wharfage_plan::{Action, Object, ObjectKey, Step};

/// The outcome of every step.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// One per step, in the plan's order.
    pub outcomes: Vec<StepOutcome>,
}

impl Report {
    /// Returns whether every step succeeded.
    pub fn succeeded(&self) -> bool {
        self.outcomes.iter().all(|outcome| matches!(outcome.verdict, Verdict::Done))
    }
}

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepOutcome {
    /// The step's action.
    pub action: Action,
    /// The resource that the step is for.
    pub object: Object,
    /// The object in the registry.
    #[serde(flatten, skip_serializing_if = "ObjectKey::is_document")]
    pub key: ObjectKey,
    /// The result.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The result of the preview that the step started, if it ended in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<Previewed>,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Verdict {
    /// The step succeeded.
    Done,
    /// The registry rejected it or was unreachable.
    Failed(ApiError),
    /// The step was not executed.
    Skipped {
        /// The reason.
        message: String,
    },
}

/// The result of a preview.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Previewed {
    /// The number of images that would expire.
    pub expiring: u64,
    /// The number of images that would move to another storage class.
    pub transitioning: u64,
    /// Some of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sample: Vec<PreviewedImage>,
}

/// The result of a preview for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviewedImage {
    /// The image.
    pub digest: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// `EXPIRE` or `TRANSITION`.
    pub action: String,
    /// The priority of the rule that applies.
    pub rule_priority: i32,
}

impl StepOutcome {
    pub(super) fn of(step: &Step, verdict: Verdict) -> Self {
        Self {
            action: step.action,
            object: step.object.clone(),
            key: step.key.clone(),
            verdict,
            preview: None,
        }
    }
}

impl fmt::Display for Previewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images =
            |count: u64| if count == 1 { "1 image".to_owned() } else { format!("{count} images") };
        match (self.expiring, self.transitioning) {
            (0, 0) => return f.write_str("no image would go"),
            (expiring, 0) => write!(f, "{} would expire", images(expiring))?,
            (0, moving) => write!(f, "{} would be archived", images(moving))?,
            (expiring, moving) => {
                write!(f, "{} would expire, {} be archived", images(expiring), images(moving))?
            }
        }
        for PreviewedImage { digest, tags, action, rule_priority } in &self.sample {
            let tags = if tags.is_empty() { "untagged".to_owned() } else { tags.join(", ") };
            write!(f, "\n             {action} {digest} ({tags}) by rule {rule_priority}")?;
        }
        let named = u64::try_from(self.sample.len()).unwrap_or(u64::MAX);
        match (self.expiring + self.transitioning).saturating_sub(named) {
            0 => Ok(()),
            more => write!(f, "\n             and {more} more"),
        }
    }
}

impl fmt::Display for StepOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, object, key, verdict, preview } = self;
        let subject = object.other_name(key).map(|name| format!(" ({name})")).unwrap_or_default();
        match verdict {
            Verdict::Done => {
                let done = match action {
                    Action::Create => "created",
                    Action::Adopt => "adopted",
                    Action::Update => "updated",
                    Action::Preview => "previewed",
                    Action::Retain => "retained",
                    Action::Delete => "deleted",
                };
                write!(f, "{done:<10} {object}{subject}")?;
                match (preview, action) {
                    (Some(preview), _) => write!(f, ": {preview}"),
                    (None, Action::Preview) => f.write_str(": the registry is still evaluating it"),
                    (None, _) => Ok(()),
                }
            }
            Verdict::Failed(error) => {
                write!(f, "failed     to {} {object}{subject}: {error}", action.as_str())
            }
            Verdict::Skipped { message } => {
                write!(f, "skipped    to {} {object}{subject}: {message}", action.as_str())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharfage_plan::model::ErrorKind;

    fn outcome(verdict: Verdict, preview: Option<Previewed>) -> StepOutcome {
        let object = Object {
            kind: "LifecyclePolicy",
            namespace: "shop".to_owned(),
            name: "keep".to_owned(),
        };
        let key = ObjectKey::Repository("shop/api".parse().unwrap());
        StepOutcome { action: Action::Preview, object, key, verdict, preview }
    }

    #[test]
    fn outcomes_read_as_results() {
        let image = PreviewedImage {
            digest: "sha256:ab".to_owned(),
            tags: vec!["v1".to_owned()],
            action: "EXPIRE".to_owned(),
            rule_priority: 1,
        };
        let preview = Previewed { expiring: 2, transitioning: 1, sample: vec![image] };
        insta::assert_snapshot!(outcome(Verdict::Done, Some(preview)), @r"
        previewed  LifecyclePolicy shop/keep (shop/api): 2 images would expire, 1 image be archived
                     EXPIRE sha256:ab (v1) by rule 1
                     and 2 more
        ");
        let error = ApiError::new(ErrorKind::Other, "LimitExceededException", "too many");
        insta::assert_snapshot!(
            outcome(Verdict::Failed(error.clone()), None),
            @"failed     to preview LifecyclePolicy shop/keep (shop/api): LimitExceededException: too many"
        );
        insta::assert_snapshot!(
            serde_json::to_string(&outcome(Verdict::Failed(error), None)).unwrap(),
            @r#"{"action":"preview","object":{"kind":"LifecyclePolicy","namespace":"shop","name":"keep"},"repository":"shop/api","result":"failed","name":"LimitExceededException","message":"too many"}"#
        );
        assert!(
            outcome(Verdict::Done, Some(Previewed::default()))
                .to_string()
                .ends_with("no image would go")
        );
    }
}
