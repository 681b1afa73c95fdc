//! What a call does to a repository: the calls' meaning, without a registry. The operator keeps what it knows of a
//! repository true by it after its own calls, instead of asking again.

use super::Call;
use super::model::ObservedRepository;

impl ObservedRepository {
    /// A repository as CreateRepository makes it.
    pub fn made(arn: String, call: &Call) -> Option<Self> {
        let Call::CreateRepository { tag_mutability, scan_on_push, encryption, tags } = call else { return None };
        Some(Self {
            arn,
            tag_mutability: tag_mutability.clone(),
            scan_on_push: *scan_on_push,
            encryption: encryption.clone().unwrap_or_else(|| ("AES256".to_owned(), None)),
            tags: tags.clone(),
            policy: None,
            lifecycle_policy: None,
            preview: None,
        })
    }

    /// What the repository is after a call that succeeded. Calls that make or delete it, and those that are not about one,
    /// change nothing here.
    pub fn after(&mut self, call: &Call) {
        // What a plan writes is JSON that it made itself; anything else would be read again from the registry.
        let document = |text: &str| serde_json::from_str(text).ok();
        match call {
            Call::PutImageTagMutability(to) => self.tag_mutability = to.clone(),
            Call::PutImageScanningConfiguration { scan_on_push } => self.scan_on_push = *scan_on_push,
            Call::TagResource(tags) => self.tags.extend(tags.clone()),
            Call::UntagResource(keys) => self.tags.retain(|key, _| !keys.contains(key)),
            Call::SetRepositoryPolicy(text) => self.policy = document(text),
            Call::DeleteRepositoryPolicy => self.policy = None,
            Call::PutLifecyclePolicy(text) => self.lifecycle_policy = document(text),
            Call::DeleteLifecyclePolicy => self.lifecycle_policy = None,
            Call::StartLifecyclePolicyPreview(text) => self.preview = document(text),
            Call::CreateRepository { .. }
            | Call::DeleteRepository { .. }
            | Call::PutAccountSetting { .. }
            | Call::PutRegistryPolicy(_)
            | Call::DeleteRegistryPolicy
            | Call::PutRegistryScanningConfiguration(_) => {}
        }
    }
}
