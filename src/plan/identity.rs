//! The identity that manages a repository, as recorded in its tags: the operator of a cluster, or file mode with one set of
//! manifests.
//!
//! | text | is |
//! |---|---|
//! | `NAME` | the operator of the cluster NAME |
//! | `file:NAME:SET` | file mode: NAME owns, and SET is the set of manifests |
//! | `file:NAME` | file mode with manifests that belong to no set, such as those of a pipe |
//!
//! An identity owns what it created, from any of its sets. Only the set that created something releases or deletes it. So
//! manifests of two folders that share a registry never treat each other's repositories as orphans.

/// The prefix of the identities of file mode. No cluster's name contains a colon.
const FILE: &str = "file:";

/// The most characters of a set's name. A tag has 256 for all its parts.
pub const LONGEST_SET: usize = 24;

/// Returns the identity of file mode.
pub fn file_mode(name: &str, set: Option<&str>) -> String {
    match set {
        Some(set) => format!("{FILE}{name}:{set}"),
        None => format!("{FILE}{name}"),
    }
}

/// Returns whether the identity is one of file mode.
pub fn is_file_mode(identity: &str) -> bool {
    identity.starts_with(FILE)
}

/// Returns the identity without its set: the owner.
pub fn owner(identity: &str) -> &str {
    split(identity).0
}

/// Returns whether both identities are the same owner, whatever their sets.
pub fn same_owner(one: &str, other: &str) -> bool {
    owner(one) == owner(other)
}

/// Returns whether `identity` may release or delete what `creator` created: the same owner, and in file mode the same set.
pub(super) fn releases(identity: &str, creator: &str) -> bool {
    identity == creator && (!is_file_mode(identity) || split(identity).1.is_some())
}

/// Returns a text for people.
pub(super) fn describe(identity: &str) -> String {
    match owner(identity).strip_prefix(FILE) {
        Some(name) => format!("file mode {name}"),
        None => format!("cluster {identity}"),
    }
}

fn split(identity: &str) -> (&str, Option<&str>) {
    let Some(rest) = identity.strip_prefix(FILE) else { return (identity, None) };
    match rest.split_once(':') {
        Some((name, set)) => (&identity[..FILE.len() + name.len()], Some(set)),
        None => (identity, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_share_an_owner_and_release_only_their_own() {
        let (one, other) = (file_mode("prod", Some("a")), file_mode("prod", Some("b")));
        assert!(same_owner(&one, &other) && !releases(&one, &other) && releases(&one, &one));
        assert_eq!(owner(&one), "file:prod");
    }

    #[test]
    fn manifests_of_no_set_release_nothing() {
        let pipe = file_mode("prod", None);
        assert!(same_owner(&pipe, &file_mode("prod", Some("a"))));
        assert!(!releases(&pipe, &pipe));
    }

    #[test]
    fn an_operator_is_not_an_owner_of_file_mode() {
        assert!(!same_owner("prod", &file_mode("prod", Some("a"))) && releases("prod", "prod"));
        assert_eq!(describe("prod"), "cluster prod");
        assert_eq!(describe(&file_mode("prod", Some("a"))), "file mode prod");
    }
}
