//! The ownership of repositories, recorded in resource tags. The tags are the only state that file mode and the operator
//! share, and the reason why a plan never changes what no manifest of ours declared.
//!
//! | tag | records |
//! |---|---|
//! | `wharfage.dev/cluster`, `…/namespace`, `…/name` | the Repository that owns it; see [`identity`] for the first |
//! | `wharfage.dev/manages` | the fields that the Repository set last, so that those it no longer sets are reset |
//! | `wharfage.dev/lifecycle` | the LifecyclePolicy that governs it, and whether the registry or the operator enforces it |

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::{Object, identity, lifecycle_policy, repository};
use wharfage_domain::names::RepositoryName;

/// The prefix of every tag that Wharfage writes for itself.
pub const PREFIX: &str = "wharfage.dev/";
const CLUSTER: &str = "wharfage.dev/cluster";
const NAMESPACE: &str = "wharfage.dev/namespace";
const NAME: &str = "wharfage.dev/name";
const MANAGES: &str = "wharfage.dev/manages";
const LIFECYCLE: &str = "wharfage.dev/lifecycle";

/// The most resource tags that a repository may have (Amazon ECR, TagResource).
pub(super) const MAX_TAGS: usize = 50;
/// The number of ownership tags.
pub(super) const OWN_TAGS: usize = 5;

/// Returns the message about a repository with too many tags.
pub(super) fn too_many_tags(name: &RepositoryName, count: usize) -> String {
    format!(
        "{name} would have {count} tags beside the ownership tags, and may have {} because ECR accepts {MAX_TAGS} in total: \
         remove some",
        MAX_TAGS - OWN_TAGS
    )
}

/// The effect of deleting the manifest of a repository or a lifecycle policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRemoval {
    /// It is released, and stays in the registry.
    #[default]
    Retain,
    /// It is deleted, if it has no images.
    Delete,
    /// It is deleted with its images.
    DeleteWithImages,
    /// It is released, because deletionProtection forbids deleting it.
    Protected,
}

/// The owner of a repository: a Repository of a cluster or of file mode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The identity that manages it: a cluster's name, or one of file mode.
    pub cluster: String,
    /// The resource's namespace.
    pub namespace: String,
    /// The resource's name.
    pub name: String,
}

impl std::fmt::Display for OnRemoval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Retain => "Retain",
            Self::Delete => "Delete",
            Self::DeleteWithImages => "Delete (emptyOnDelete)",
            Self::Protected => "Retain (deletionProtection)",
        })
    }
}

impl Owner {
    /// Returns this resource of this identity as an owner.
    pub fn new(cluster: &str, object: &Object) -> Self {
        Self {
            cluster: cluster.to_owned(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
        }
    }

    /// Returns the Repository in its own cluster.
    pub fn object(&self) -> Object {
        Object {
            kind: repository::KIND,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Repository {}/{} of {}",
            self.namespace,
            self.name,
            identity::describe(&self.cluster)
        )
    }
}

/// The fields that the owner's manifest set when it was last applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manages {
    /// The repository policy.
    pub policy: bool,
    /// The tag mutability.
    pub mutability: bool,
    /// The scanning configuration.
    pub scanning: bool,
    /// The effect of deleting the manifest.
    pub on_removal: OnRemoval,
    /// The resource tags, as short fingerprints of their keys.
    pub tag_keys: BTreeSet<String>,
}

/// Characters of a key's fingerprint: 45 keys and the flags fit into a tag's 256 characters, and with 30 bits each,
/// a foreign tag has the fingerprint of one of ours about once in a million repositories that are full of tags.
const FINGERPRINT: usize = 5;

/// Returns the fingerprint of a tag's key.
pub fn fingerprint(key: &str) -> String {
    hash(key, FINGERPRINT)
}

/// Returns the first characters of a text's hash, all of them allowed in a tag's value.
fn hash(text: &str, characters: usize) -> String {
    let mut hash = URL_SAFE_NO_PAD.encode(Sha256::digest(text.as_bytes()));
    hash.truncate(characters);
    hash
}

impl Manages {
    /// Adds the settings that `other` manages, but neither its tags nor its removal policy.
    pub fn with_settings_of(&self, other: &Self) -> Self {
        Self {
            policy: self.policy || other.policy,
            mutability: self.mutability || other.mutability,
            scanning: self.scanning || other.scanning,
            on_removal: self.on_removal,
            tag_keys: self.tag_keys.clone(),
        }
    }

    fn render(&self) -> String {
        let mut text = String::new();
        for (flag, letter) in [(self.policy, 'p'), (self.mutability, 'm'), (self.scanning, 's')] {
            if flag {
                text.push(letter);
            }
        }
        text.push(match self.on_removal {
            OnRemoval::Retain => 'r',
            OnRemoval::Delete => 'd',
            OnRemoval::DeleteWithImages => 'i',
            OnRemoval::Protected => 'x',
        });
        text.push(':');
        text.extend(self.tag_keys.iter().map(String::as_str));
        text
    }

    /// Reads the tag. A value that cannot be read counts as not managed and as retained, which is
    /// safe.
    fn parse(text: &str) -> Self {
        let (flags, keys) = text.split_once(':').unwrap_or((text, ""));
        let on_removal = if flags.contains('x') {
            OnRemoval::Protected
        } else if flags.contains('i') {
            OnRemoval::DeleteWithImages
        } else if flags.contains('d') {
            OnRemoval::Delete
        } else {
            OnRemoval::Retain
        };
        let keys = keys.as_bytes().chunks(FINGERPRINT).filter(|chunk| chunk.len() == FINGERPRINT);
        Self {
            policy: flags.contains('p'),
            mutability: flags.contains('m'),
            scanning: flags.contains('s'),
            on_removal,
            tag_keys: keys.map(|chunk| String::from_utf8_lossy(chunk).into_owned()).collect(),
        }
    }
}

/// The LifecyclePolicy that governs a repository, who enforces it, and whether it is deleted with the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecycleOwner {
    /// The identity that manages it: a cluster's name, or one of file mode.
    pub cluster: String,
    /// The LifecyclePolicy's namespace.
    pub namespace: String,
    /// The LifecyclePolicy's name, shortened if it is long.
    name: String,
    /// The policy is deleted when the manifest is deleted.
    pub delete: bool,
    /// The operator enforces the policy, and the registry has none.
    pub by_operator: bool,
}

/// The most characters of a LifecyclePolicy's name in a tag, beside the cluster's and the namespace's (63 each).
const LONGEST_NAME: usize = 111;
/// The same in file mode, whose identities are longer by `file:`, a colon and a set's name.
const LONGEST_NAME_IN_FILE_MODE: usize = LONGEST_NAME - 6 - identity::LONGEST_SET;

/// Returns a LifecyclePolicy's name, shortened to fit into a tag with this identity.
fn short<'a>(cluster: &str, name: &'a str) -> Cow<'a, str> {
    const HASH: usize = 16;
    let longest =
        if identity::is_file_mode(cluster) { LONGEST_NAME_IN_FILE_MODE } else { LONGEST_NAME };
    match name.get(..longest - HASH - 1) {
        Some(head) if name.len() > longest => format!("{head}={}", hash(name, HASH)).into(),
        _ => name.into(),
    }
}

/// The words of a tag after the name.
const DELETE: &str = " delete";
const BY_OPERATOR: &str = " operator";

impl LifecycleOwner {
    /// Returns this resource of this identity as an owner.
    pub fn new(cluster: &str, object: &Object, delete: bool) -> Self {
        let name = short(cluster, &object.name).into_owned();
        Self {
            cluster: cluster.to_owned(),
            namespace: object.namespace.clone(),
            name,
            delete,
            by_operator: false,
        }
    }

    /// Reads only the tag with the lifecycle policy's owner.
    pub fn read(tags: &BTreeMap<String, String>) -> Option<Self> {
        tags.get(LIFECYCLE).and_then(|text| Self::parse(text))
    }

    fn render(&self) -> String {
        let Self { cluster, namespace, name, delete, by_operator } = self;
        let words = [(*by_operator, BY_OPERATOR), (*delete, DELETE)];
        let words: String =
            words.into_iter().filter(|(says, _)| *says).map(|(_, word)| word).collect();
        format!("{cluster}/{namespace}/{name}{words}")
    }

    fn parse(text: &str) -> Option<Self> {
        let says = |text, word| match str::strip_suffix(text, word) {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (text, delete) = says(text, DELETE);
        let (text, by_operator) = says(text, BY_OPERATOR);
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        Some(Self {
            cluster: parts.next()?,
            namespace: parts.next()?,
            name: parts.next()?,
            delete,
            by_operator,
        })
    }

    /// Returns whether it is this identity's LifecyclePolicy of this name, from any set of manifests.
    pub fn is(&self, cluster: &str, object: &Object) -> bool {
        identity::same_owner(&self.cluster, cluster) && self.names(object)
    }

    /// Returns whether it is a LifecyclePolicy of this name, of any identity.
    pub(super) fn names(&self, object: &Object) -> bool {
        self.namespace == object.namespace && self.name == short(&self.cluster, &object.name)
    }

    /// Returns the LifecyclePolicy in its own cluster, with the name as the tag has it.
    pub fn object(&self) -> Object {
        Object {
            kind: lifecycle_policy::KIND,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl std::fmt::Display for LifecycleOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "LifecyclePolicy {}/{} of {}",
            self.namespace,
            self.name,
            identity::describe(&self.cluster)
        )
    }
}

/// The ownership that a repository's tags record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    /// The owner of the repository, if it has one.
    pub owner: Option<Owner>,
    /// The fields that the owner set.
    pub manages: Manages,
    /// The owner of its lifecycle policy, if it has one.
    pub lifecycle: Option<LifecycleOwner>,
}

/// Returns whether a tag records the owner of the repository.
pub(super) fn is_owner_tag(key: &str) -> bool {
    key.starts_with(PREFIX) && !is_lifecycle_tag(key)
}

/// Returns whether a tag records the owner of the lifecycle policy.
pub(super) fn is_lifecycle_tag(key: &str) -> bool {
    key == LIFECYCLE
}

impl Ownership {
    /// Reads a repository's tags.
    pub fn read(tags: &BTreeMap<String, String>) -> Self {
        let text = |key| tags.get(key).cloned();
        let owner = match (text(CLUSTER), text(NAMESPACE), text(NAME)) {
            (Some(cluster), Some(namespace), Some(name)) => {
                Some(Owner { cluster, namespace, name })
            }
            _ => None,
        };
        Self {
            owner,
            manages: tags.get(MANAGES).map(|text| Manages::parse(text)).unwrap_or_default(),
            lifecycle: LifecycleOwner::read(tags),
        }
    }

    /// Returns the tags that record this.
    pub fn tags(&self) -> BTreeMap<String, String> {
        let mut tags = BTreeMap::new();
        if let Some(Owner { cluster, namespace, name }) = &self.owner {
            tags.insert(CLUSTER.to_owned(), cluster.clone());
            tags.insert(NAMESPACE.to_owned(), namespace.clone());
            tags.insert(NAME.to_owned(), name.clone());
            tags.insert(MANAGES.to_owned(), self.manages.render());
        }
        if let Some(lifecycle) = &self.lifecycle {
            tags.insert(LIFECYCLE.to_owned(), lifecycle.render());
        }
        tags
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(kind: &'static str, namespace: &str, name: &str) -> Object {
        Object { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    proptest! {
        #[test]
        fn ownership_survives_a_round_trip(
            policy: bool, mutability: bool, scanning: bool, removal in 0..4usize,
            keys in proptest::collection::btree_set("[a-z ]{1,12}", 0..=45),
            (cluster, namespace, name) in ("[a-z]{1,63}", "[a-z]{1,63}", "[a-z.]{1,253}"),
            lifecycle in proptest::option::of(any::<(bool, bool)>()),
        ) {
            let on_removal =
                [OnRemoval::Retain, OnRemoval::Delete, OnRemoval::DeleteWithImages, OnRemoval::Protected][removal];
            let owning = object("Repository", &namespace, &name);
            let policing = object("LifecyclePolicy", &namespace, &name);
            let ownership = Ownership {
                owner: Some(Owner::new(&cluster, &owning)),
                manages: Manages {
                    policy, mutability, scanning, on_removal,
                    tag_keys: keys.iter().map(|key| fingerprint(key)).collect(),
                },
                lifecycle: lifecycle.map(|(delete, by_operator)| LifecycleOwner {
                    by_operator,
                    ..LifecycleOwner::new(&cluster, &policing, delete)
                }),
            };
            let tags = ownership.tags();
            prop_assert!(tags.values().all(|value| value.len() <= 256));
            prop_assert!(tags.values().flat_map(|value| value.chars()).all(|c| c.is_alphanumeric() || " _.:/=+-@".contains(c)));
            prop_assert!(tags.len() <= 5);
            let read = Ownership::read(&tags);
            prop_assert!(read.lifecycle.iter().all(|owner| owner.is(&cluster, &policing)));
            prop_assert_eq!(read, ownership);
        }

        #[test]
        fn a_garbled_tag_never_asks_for_deletion(text in "[^dix]{0,40}") {
            prop_assert_eq!(Manages::parse(&text).on_removal, OnRemoval::Retain);
        }

        #[test]
        fn any_tags_are_read_without_a_panic(tags in proptest::collection::btree_map(
            prop_oneof!["[a-z]{1,5}", Just(CLUSTER.to_owned()), Just(NAMESPACE.to_owned()), Just(NAME.to_owned()),
                Just(MANAGES.to_owned()), Just(LIFECYCLE.to_owned())],
            "\\PC{0,40}",
            0..6,
        )) {
            Ownership::read(&tags);
        }
    }

    #[test]
    fn two_long_names_with_the_same_head_are_two_owners() {
        let long =
            |end: &str| object("LifecyclePolicy", "team", &format!("{}{end}", "a".repeat(200)));
        assert!(LifecycleOwner::new("local", &long("x"), false).is("local", &long("x")));
        assert!(!LifecycleOwner::new("local", &long("x"), false).is("local", &long("y")));
    }
}
