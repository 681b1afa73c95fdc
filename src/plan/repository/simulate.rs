//! Simulates calls about a repository, without a registry. The operator keeps its cached state current with it after its own
//! calls, instead of reading again.

use crate::RepositoryCall;
use crate::model::ObservedRepository;

impl ObservedRepository {
    /// Returns the repository that a CreateRepository creates; `None` for any other call.
    pub fn created(arn: String, call: &RepositoryCall) -> Option<Self> {
        let RepositoryCall::CreateRepository { tag_mutability, scan_on_push, encryption, tags } =
            call
        else {
            return None;
        };
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

    /// Changes the repository as a successful call does. Calls that create or delete it change nothing here.
    pub fn simulate(&mut self, call: &RepositoryCall) {
        // A plan writes JSON that it made itself. Any other text would be read from the registry again.
        let document = |text: &str| serde_json::from_str(text).ok();
        match call {
            RepositoryCall::PutImageTagMutability(to) => self.tag_mutability = to.clone(),
            RepositoryCall::PutImageScanningConfiguration { scan_on_push } => {
                self.scan_on_push = *scan_on_push
            }
            RepositoryCall::TagResource(tags) => self.tags.extend(tags.clone()),
            RepositoryCall::UntagResource(keys) => self.tags.retain(|key, _| !keys.contains(key)),
            RepositoryCall::SetRepositoryPolicy(text) => self.policy = document(text),
            RepositoryCall::DeleteRepositoryPolicy => self.policy = None,
            RepositoryCall::PutLifecyclePolicy(text) => self.lifecycle_policy = document(text),
            RepositoryCall::DeleteLifecyclePolicy => self.lifecycle_policy = None,
            RepositoryCall::StartLifecyclePolicyPreview(text) => self.preview = document(text),
            RepositoryCall::CreateRepository { .. } | RepositoryCall::DeleteRepository { .. } => {}
        }
    }
}
