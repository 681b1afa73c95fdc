//! The keys of the objects in a registry: plans, locks, caches and rotations are keyed by them.

use serde::Serialize;

use wharfage_domain::names::RepositoryName;

/// The key of one object in a registry, as the registry itself identifies it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ObjectKey {
    /// A document that a registry has once.
    Document(RegistryDocument),
    /// A pull-through cache rule, by its `ecrRepositoryPrefix`.
    PullThroughCacheRule(String),
    /// A repository creation template, by its `prefix`.
    RepositoryCreationTemplate(String),
    /// A repository, by its name.
    Repository(RepositoryName),
    /// An IAM user, by its name.
    User(String),
    /// An IAM role, by its name.
    Role(String),
}

/// A document that a registry has once. Documents are locked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RegistryDocument {
    /// The account settings (PutAccountSetting).
    AccountSettings,
    /// The scanning configuration (PutRegistryScanningConfiguration).
    ScanningConfiguration,
    /// The replication configuration (PutReplicationConfiguration).
    ReplicationConfiguration,
    /// The registry policy (PutRegistryPolicy).
    Policy,
}

impl ObjectKey {
    /// Returns the name that distinguishes the object from others of its kind; `None` for a
    /// document.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Document(_) => None,
            Self::Repository(name) => Some(name.as_str()),
            Self::PullThroughCacheRule(name)
            | Self::RepositoryCreationTemplate(name)
            | Self::User(name)
            | Self::Role(name) => Some(name),
        }
    }

    /// Returns the repository's name, if the key is one of a repository.
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Repository(name) => Some(name),
            _ => None,
        }
    }

    /// Returns whether the object is a document, whose key output leaves out.
    pub fn is_document(&self) -> bool {
        matches!(self, Self::Document(_))
    }
}

impl From<RepositoryName> for ObjectKey {
    fn from(name: RepositoryName) -> Self {
        Self::Repository(name)
    }
}

impl From<RegistryDocument> for ObjectKey {
    fn from(document: RegistryDocument) -> Self {
        Self::Document(document)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn objects_of_two_kinds_never_share_a_key() {
        let name = || "shop/api".to_owned();
        let keys = [
            ObjectKey::from("shop/api".parse::<RepositoryName>().unwrap()),
            ObjectKey::PullThroughCacheRule(name()),
            ObjectKey::RepositoryCreationTemplate(name()),
            ObjectKey::User(name()),
            ObjectKey::Role(name()),
        ];
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        assert!(keys.iter().all(|key| key.name() == Some("shop/api") && !key.is_document()));
        let repositories: Vec<_> = keys.iter().filter_map(ObjectKey::repository).collect();
        assert_eq!(repositories.len(), 1);
        assert_eq!(ObjectKey::from(RegistryDocument::Policy).name(), None);
    }

    #[test]
    fn a_key_is_written_as_its_kind_and_its_name() {
        let json = |key: ObjectKey| serde_json::to_string(&key).unwrap();
        assert_eq!(json(ObjectKey::Repository("a1".parse().unwrap())), r#"{"repository":"a1"}"#);
        assert_eq!(
            json(ObjectKey::PullThroughCacheRule("hub".into())),
            r#"{"pullThroughCacheRule":"hub"}"#
        );
    }
}
