//! The reasons of conditions and events: one list, from which the table in `docs/reasons.md` is made.

use std::fmt;

use serde::{Serialize, Serializer};

/// Longest reason that Kubernetes takes of an error's name.
const LONGEST_NAME: usize = 256;

/// Declares the reasons with their meanings.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The reason of a condition or of an event: one CamelCase word.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
            /// The name of an error of a registry or of the Kubernetes API, as a reason may be spelled.
            Error(String),
        }

        impl Reason {
            /// All reasons but names of errors.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason as it is written.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => stringify!($name),)+
                    Self::Error(name) => name,
                }
            }

            /// One line about the reason, in Markdown.
            pub fn meaning(&self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii(),)+
                    Self::Error(_) => "The name of an error of the registry or of the Kubernetes API.",
                }
            }
        }
    };
}

reasons! {
    /// Event: an existing object of the registry is managed by this resource from now on.
    Adopted,
    /// The object exists, and `adoptionPolicy` is `Create`.
    AlreadyExists,
    /// Event: an object was created.
    Created,
    /// Event: an object was deleted.
    Deleted,
    /// Deletion is in progress.
    Deleting,
    /// Drift was corrected: another party had changed what this resource manages.
    DriftCorrected,
    /// The registry differs from the resource, and the difference was not corrected.
    DriftDetected,
    /// Event: the operator enforced a lifecycle policy itself.
    Enforced,
    /// The operator lacks a permission in the cluster.
    Forbidden,
    /// A managed registry changes to another image.
    ImageChanging,
    /// No image is known for the pods of a managed registry.
    ImageMissing,
    /// The value cannot be changed in the registry.
    Immutable,
    /// The registry is as the resource asks.
    InSync,
    /// It is unknown which images are in use, so nothing is deleted.
    InUseUnknown,
    /// A value of the spec is invalid.
    InvalidParameterException,
    /// This operator runs with managed registries disabled.
    ManagedRegistriesDisabled,
    /// The Registry does not allow this namespace or repository name.
    NotAllowed,
    /// The object does not exist in the registry, and this resource may not create it.
    NotFound,
    /// The resource is observed and never changed.
    Observed,
    /// Another resource or cluster manages the object.
    OwnedByAnother,
    /// The preview of a lifecycle policy is complete.
    Previewed,
    /// The registry evaluates a lifecycle policy.
    Previewing,
    /// Event: the preview of a lifecycle policy was started.
    PreviewStarted,
    /// Work is in progress.
    Progressing,
    /// This operator runs with PullSecrets disabled.
    PullSecretsDisabled,
    /// A referenced object does not exist.
    ReferenceNotFound,
    /// The credentials belong to another registry than `registryId` says.
    RegistryIdMismatch,
    /// The Registry is not Ready.
    RegistryNotReady,
    /// The registry cannot be reached, or does not answer this request; it is tried again.
    RegistryUnavailable,
    /// Event: a repository is no longer managed by this resource, and is kept in the registry.
    Released,
    /// Event: Secrets got a new token.
    Renewed,
    /// All references exist.
    Resolved,
    /// Event: the object is kept in the registry although its resource is deleted.
    Retained,
    /// The registry serves.
    Serving,
    /// The managed registry has no replicas.
    Stopped,
    /// Event: reconciliation is suspended.
    Suspended,
    /// The repository has the highest number of resource tags.
    TooManyTagsException,
    /// The registry does not have the operation.
    UnsupportedByRegistry,
    /// Event: an object of the registry was changed.
    Updated,
    /// The volume of a managed registry cannot become what the spec asks for.
    VolumeUnchangeable,
    /// A managed registry changes to another image after another Registry.
    WaitingForTurn,
    /// The managed registry runs in another namespace.
    WorkloadElsewhere,
}

impl Reason {
    /// The reason for an error of this name. Characters that a condition's reason may not hold are left out.
    pub fn of_error(name: &str) -> Self {
        let allowed = |character: &char| character.is_ascii_alphanumeric() || *character == '_';
        let word: String = name.chars().filter(allowed).take(LONGEST_NAME).collect();
        let starts_well = word.starts_with(|first: char| first.is_ascii_alphabetic());
        let word = if starts_well { word } else { format!("Error{word}") };
        Self::ALL.iter().find(|known| known.as_str() == word).cloned().unwrap_or(Self::Error(word))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_every_reason() {
        let rows =
            Reason::ALL.iter().map(|reason| format!("| `{reason}` | {} |\n", reason.meaning()));
        let table: String = rows.collect();
        let page = include_str!("../../docs/reasons.md");
        let (_, documented) = page.split_once("|---|---|\n").unwrap();
        assert_eq!(documented, table, "docs/reasons.md ends with the table of reasons");
    }

    #[test]
    fn reasons_are_sorted_and_spelled_as_kubernetes_asks() {
        for pair in Reason::ALL.windows(2) {
            let lower = |reason: &Reason| reason.as_str().to_ascii_lowercase();
            assert!(lower(&pair[0]) < lower(&pair[1]), "{} is before {}", pair[0], pair[1]);
        }
        for reason in Reason::ALL {
            assert_eq!(Reason::of_error(reason.as_str()), *reason);
        }
    }

    #[test]
    fn error_names_become_reasons() {
        assert_eq!(Reason::of_error("LimitExceededException").as_str(), "LimitExceededException");
        assert_eq!(Reason::of_error("com.example#Some Error").as_str(), "comexampleSomeError");
        assert_eq!(Reason::of_error("503").as_str(), "Error503");
        assert_eq!(Reason::of_error(&"x".repeat(5000)).as_str().len(), LONGEST_NAME);
    }
}
