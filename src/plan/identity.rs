//! Who manages a repository, as one word of its tags: the operator of a cluster, or file mode with one set of manifests.
//!
//! | text | is |
//! |---|---|
//! | `NAME` | the operator of the cluster NAME |
//! | `file:NAME:SET` | file mode: NAME owns, and SET says which manifests asked |
//! | `file:NAME` | file mode with manifests that belong to no set, such as those of a pipe |
//!
//! An identity owns what it made, whichever set asked for it. Only the set that made something releases or deletes it:
//! manifests of two folders that share a registry never take each other's repositories for orphans.

/// Begins the identities of file mode. No cluster's name holds a colon.
const FILE: &str = "file:";

/// The most characters that a set's name may have: a tag has room for 256, and says more than this.
pub const LONGEST_SET: usize = 24;

/// The identity of file mode.
pub fn file_mode(name: &str, set: Option<&str>) -> String {
    match set {
        Some(set) => format!("{FILE}{name}:{set}"),
        None => format!("{FILE}{name}"),
    }
}

/// Whether it is one of file mode.
pub fn is_file_mode(identity: &str) -> bool {
    identity.starts_with(FILE)
}

/// The identity without its set: the part that owns.
pub fn owner(identity: &str) -> &str {
    split(identity).0
}

/// Whether both are one owner, whichever set of manifests they are.
pub fn same_owner(one: &str, other: &str) -> bool {
    owner(one) == owner(other)
}

/// Whether `identity` may release or delete what `made` made: the same owner, and in file mode the same set.
pub(super) fn releases(identity: &str, made: &str) -> bool {
    identity == made && (!is_file_mode(identity) || split(identity).1.is_some())
}

/// An identity for people.
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
    fn an_operator_is_nobody_of_file_mode() {
        assert!(!same_owner("prod", &file_mode("prod", Some("a"))) && releases("prod", "prod"));
        assert_eq!(describe("prod"), "cluster prod");
        assert_eq!(describe(&file_mode("prod", Some("a"))), "file mode prod");
    }
}
