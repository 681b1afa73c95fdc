//! Releases or deletes repositories that no manifest declares any more.

use crate::context::PlanContext;
use crate::field_change::change;
use crate::identity;
use crate::model::ObservedRepository;
use crate::ownership::{OnRemoval, Ownership, is_owner_tag};
use crate::{Action, RepositoryCall, Step};
use wharfage_domain::names::RepositoryName;

/// Returns the step that releases a repository whose manifest is gone, or deletes it if the manifest said so.
pub(crate) fn release(
    context: &PlanContext<'_>,
    name: &RepositoryName,
    found: &ObservedRepository,
) -> Option<Step> {
    let Ownership { owner: Some(owner), manages, .. } = Ownership::read(&found.tags) else {
        return None;
    };
    let desired = context.desired;
    // A repository that a manifest of ours claims is decided about there, no matter who owned it
    // before.
    let is_claimed = !context.claims(name).is_empty();
    if !identity::releases(&desired.cluster, &owner.cluster)
        || is_claimed
        || context.keeps(&owner, name)
    {
        return None;
    }
    let object = owner.object();
    // The manifest may have moved to another name or registry, which is no request to delete this repository.
    let on_removal =
        if desired.declared.contains(&object) { OnRemoval::Retain } else { manages.on_removal };
    let (action, call) = match on_removal {
        OnRemoval::Retain | OnRemoval::Protected => {
            let keys = found.tags.keys().filter(|key| is_owner_tag(key)).cloned().collect();
            (Action::Retain, RepositoryCall::UntagResource(keys))
        }
        OnRemoval::Delete => (Action::Delete, RepositoryCall::DeleteRepository { force: false }),
        OnRemoval::DeleteWithImages => {
            (Action::Delete, RepositoryCall::DeleteRepository { force: true })
        }
    };
    let changes = match on_removal {
        OnRemoval::DeleteWithImages => {
            vec![change("images", None, Some("deleted too (emptyOnDelete)".into()))]
        }
        _ => Vec::new(),
    };
    Some(Step {
        action,
        object,
        key: name.clone().into(),
        arn: Some(found.arn.clone()),
        changes,
        calls: vec![call.into()],
    })
}
