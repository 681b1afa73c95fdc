//! Merges the entries of many authors into one document.
//!
//! ECR has one document per registry for replication rules, scanning rules, account settings and policy statements. Several
//! resources each own some entries of it, and ECR has no tags on which to record that. So each author remembers the keys of
//! the entries that it applied, in the status of its resource, and passes them to [`merge`] as `last_applied`. Entries that
//! no author remembers belong to another party and stay, even when an author desires the same entry and goes later.
//!
//! The order of a write is: store every author's [`AuthorResult::to_record`], write the document, store every author's
//! [`AuthorResult::applied`]. After a crash anywhere in between, the records still hold every entry that an author may have
//! written, so none is left behind.

use std::collections::{BTreeMap, BTreeSet};

/// One author of a document: a resource with entries in it.
#[derive(Debug, Clone)]
pub struct Author<K, V> {
    /// The desired entries, in the author's order. An entry without a name has its content's
    /// fingerprint as key.
    pub desired: Vec<(K, V)>,
    /// The keys of the entries that the author may have written before.
    pub last_applied: BTreeSet<K>,
}

/// The merged document, and what it means for each author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedDocument<K, V> {
    /// The entries of the new document. Entries that stay keep their order; new ones are appended.
    pub document: Vec<(K, V)>,
    /// One result per author, in the order of the authors.
    pub authors: Vec<AuthorResult<K>>,
}

/// The result of a merge for one author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorResult<K> {
    /// The keys to record before the document is written.
    pub to_record: BTreeSet<K>,
    /// The keys to record after the document is written.
    pub applied: BTreeSet<K>,
    /// Desired entries that another author claims, in the author's order.
    pub conflicts: Vec<EntryConflict<K>>,
}

/// A desired entry that an author does not get, because an older author has the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryConflict<K> {
    /// The entry's key.
    pub key: K,
    /// The index of the author that has the entry.
    pub owner: usize,
    /// Both authors want the same content.
    pub agrees: bool,
}

/// Merges the entries of `authors`, the older first, into the current document.
///
/// An entry that two authors claim belongs to the older one. An entry that is there and that no author remembers gets the
/// content that an author desires, but is not recorded as the author's: it was there before and stays when the author goes.
/// An author that is gone passes no desired entries; when its result is written, nothing of it is left.
pub fn merge<K: Ord + Clone, V: Clone + PartialEq>(
    current: &[(K, V)],
    authors: &[Author<K, V>],
) -> MergedDocument<K, V> {
    let mut owned: BTreeMap<&K, (usize, &V)> = BTreeMap::new();
    let mut results = Vec::with_capacity(authors.len());
    for (index, author) in authors.iter().enumerate() {
        let mut conflicts = Vec::new();
        for (key, value) in &author.desired {
            match owned.get(key) {
                Some((owner, theirs)) => {
                    conflicts.push(EntryConflict {
                        key: key.clone(),
                        owner: *owner,
                        agrees: *theirs == value,
                    });
                }
                None => {
                    owned.insert(key, (index, value));
                }
            }
        }
        conflicts.retain(|it| it.owner != index);
        results.push((conflicts, author));
    }
    let recorded: BTreeSet<&K> = authors.iter().flat_map(|it| &it.last_applied).collect();
    let foreign: BTreeSet<&K> =
        current.iter().map(|(key, _)| key).filter(|it| !recorded.contains(it)).collect();
    let mut written: BTreeSet<&K> = BTreeSet::new();
    let mut document = Vec::new();
    for (key, value) in current {
        match owned.get(key) {
            Some((_, value)) if written.insert(key) => {
                document.push((key.clone(), (*value).clone()))
            }
            Some(_) => {}
            None if recorded.contains(key) => {}
            None => document.push((key.clone(), value.clone())),
        }
    }
    let new = authors.iter().flat_map(|it| &it.desired).filter_map(|(key, _)| {
        let (_, value) = owned.get(key)?;
        written.insert(key).then(|| (key.clone(), (*value).clone()))
    });
    document.extend(new);
    let results = results.into_iter().enumerate().map(|(index, (conflicts, author))| {
        let applied: BTreeSet<K> = owned
            .iter()
            .filter(|(key, (owner, _))| *owner == index && !foreign.contains(*key))
            .map(|(key, _)| (*key).clone())
            .collect();
        let to_record = applied.union(&author.last_applied).cloned().collect();
        AuthorResult { to_record, applied, conflicts }
    });
    MergedDocument { document, authors: results.collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Document = Vec<(u8, u8)>;

    fn document(keys: std::ops::Range<u8>) -> impl Strategy<Value = Document> {
        proptest::collection::btree_map(keys, 0..3u8, 0..6)
            .prop_map(|entries| entries.into_iter().collect::<Vec<_>>())
            .prop_shuffle()
    }

    fn author() -> impl Strategy<Value = Author<u8, u8>> {
        (document(0..10), proptest::collection::btree_set(0..10u8, 0..4))
            .prop_map(|(desired, last_applied)| Author { desired, last_applied })
    }

    fn authors() -> impl Strategy<Value = Vec<Author<u8, u8>>> {
        proptest::collection::vec(author(), 0..4)
    }

    /// The authors after a write whose results they stored.
    fn settled(authors: &[Author<u8, u8>], merged: &MergedDocument<u8, u8>) -> Vec<Author<u8, u8>> {
        let pairs = authors.iter().zip(&merged.authors);
        pairs
            .map(|(it, result)| Author { last_applied: result.applied.clone(), ..it.clone() })
            .collect()
    }

    fn is_foreign(key: &u8, current: &Document, authors: &[Author<u8, u8>]) -> bool {
        let recorded = authors.iter().any(|it| it.last_applied.contains(key));
        !recorded && current.iter().any(|(it, _)| it == key)
    }

    fn keys(document: &Document) -> BTreeSet<u8> {
        document.iter().map(|(key, _)| *key).collect()
    }

    fn positions(document: &[(u8, u8)], keys: &BTreeSet<u8>) -> Vec<u8> {
        document.iter().map(|(key, _)| *key).filter(|key| keys.contains(key)).collect()
    }

    proptest! {
        #[test]
        fn a_second_merge_changes_nothing(current in document(0..20), authors in authors()) {
            let first = merge(&current, &authors);
            let second = merge(&first.document, &settled(&authors, &first));
            prop_assert_eq!(&second.document, &first.document);
            for (one, two) in first.authors.iter().zip(&second.authors) {
                prop_assert_eq!((&one.applied, &one.conflicts), (&two.applied, &two.conflicts));
                prop_assert_eq!(&two.to_record, &two.applied);
            }
        }

        #[test]
        fn foreign_entries_that_nobody_desires_survive_unchanged(
            current in document(0..20), authors in authors(),
        ) {
            let ours: BTreeSet<u8> = authors.iter().flat_map(|it| {
                it.desired.iter().map(|(key, _)| *key).chain(it.last_applied.iter().copied())
            }).collect();
            let foreign = |document: &Document| -> Document {
                document.iter().filter(|(key, _)| !ours.contains(key)).copied().collect()
            };
            prop_assert_eq!(foreign(&merge(&current, &authors).document), foreign(&current));
        }

        #[test]
        fn foreign_entries_stay_when_the_authors_that_desired_them_go(
            current in document(0..20), authors in authors(),
        ) {
            let first = merge(&current, &authors);
            let mut left = settled(&authors, &first);
            left.iter_mut().for_each(|it| it.desired.clear());
            let last = keys(&merge(&first.document, &left).document);
            let foreign: BTreeSet<u8> =
                keys(&current).into_iter().filter(|it| is_foreign(it, &current, &authors)).collect();
            prop_assert_eq!(last, foreign);
        }

        #[test]
        fn entries_that_stay_keep_their_order(current in document(0..20), authors in authors()) {
            let merged = merge(&current, &authors).document;
            let both: BTreeSet<u8> = merged.iter().map(|(key, _)| *key)
                .filter(|key| current.iter().any(|(it, _)| it == key)).collect();
            prop_assert_eq!(positions(&merged, &both), positions(&current, &both));
            let first_new = merged.iter().position(|(key, _)| !both.contains(key)).unwrap_or(merged.len());
            prop_assert!(merged[first_new..].iter().all(|(key, _)| !both.contains(key)));
        }

        #[test]
        fn an_entry_of_two_authors_is_the_older_ones(current in document(0..20), authors in authors()) {
            let merged = merge(&current, &authors);
            for (index, (author, result)) in authors.iter().zip(&merged.authors).enumerate() {
                for (key, value) in &author.desired {
                    let older = authors[..index].iter().position(|it| it.desired.iter().any(|(other, _)| other == key));
                    let conflict = result.conflicts.iter().find(|it| it.key == *key);
                    prop_assert_eq!(conflict.map(|it| it.owner), older);
                    let foreign = is_foreign(key, &current, &authors);
                    prop_assert_eq!(result.applied.contains(key), older.is_none() && !foreign);
                    if older.is_none() {
                        prop_assert!(merged.document.contains(&(*key, *value)));
                    }
                    if let Some(EntryConflict { owner, agrees, .. }) = conflict {
                        let theirs = authors[*owner].desired.iter().find(|(other, _)| other == key).unwrap();
                        prop_assert_eq!(*agrees, theirs.1 == *value);
                    }
                }
            }
        }

        #[test]
        fn an_author_that_is_gone_takes_only_its_own_entries(
            current in document(0..20), authors in authors(), index in 0..4usize,
        ) {
            let first = merge(&current, &authors);
            let mut left = settled(&authors, &first);
            let Some(gone) = left.get_mut(index) else { return Ok(()) };
            let own = std::mem::take(&mut gone.desired);
            let merged = merge(&first.document, &left);
            let wanted = |key: &u8| left.iter().any(|it| it.desired.iter().any(|(other, _)| other == key));
            for (key, value) in &first.document {
                let owned = own.iter().any(|(other, _)| other == key) && first.authors[index].applied.contains(key);
                match owned {
                    true => prop_assert_eq!(merged.document.iter().any(|(it, _)| it == key), wanted(key)),
                    // Another author that desires a foreign entry may want another content.
                    false if keys(&own).contains(key) => prop_assert!(keys(&merged.document).contains(key)),
                    false => prop_assert!(merged.document.contains(&(*key, *value))),
                }
            }
            prop_assert!(merged.authors[index].applied.is_empty());
        }

        /// `crash` is the number of steps of the write that were done: each author's record, the document, each author's second
        /// record.
        #[test]
        fn a_crash_anywhere_leaves_no_orphan(
            foreign in document(0..20),
            histories in proptest::collection::vec(
                (proptest::array::uniform2(document(0..10)), 0..=5usize), 1..8,
            ),
        ) {
            let mut current = foreign.clone();
            let mut records = [BTreeSet::new(), BTreeSet::new()];
            let mut write = |desired: [Document; 2], crash: usize| {
                let authors: Vec<_> = desired.into_iter().zip(&records)
                    .map(|(desired, record)| Author { desired, last_applied: record.clone() }).collect();
                let merged = merge(&current, &authors);
                let steps = merged.authors.iter().enumerate();
                for (index, result) in steps.clone().filter(|(index, _)| *index < crash) {
                    records[index] = result.to_record.clone();
                }
                if crash > 2 {
                    current = merged.document.clone();
                }
                for (index, result) in steps.filter(|(index, _)| index + 3 < crash) {
                    records[index] = result.applied.clone();
                }
                (keys(&current), records.clone())
            };
            for (desired, crash) in histories {
                write(desired, crash);
            }
            let (left, records) = write([Vec::new(), Vec::new()], 5);
            prop_assert_eq!(left, keys(&foreign));
            prop_assert_eq!(records, [BTreeSet::new(), BTreeSet::new()]);
        }
    }

    #[test]
    fn a_changed_entry_is_replaced_in_its_place() {
        let author =
            Author { desired: vec![("b", 2), ("d", 4)], last_applied: BTreeSet::from(["a", "b"]) };
        let merged = merge(&[("a", 1), ("b", 1), ("c", 3)], &[author]);
        assert_eq!(merged.document, [("b", 2), ("c", 3), ("d", 4)]);
        assert_eq!(merged.authors[0].to_record, BTreeSet::from(["a", "b", "d"]));
        assert_eq!(merged.authors[0].applied, BTreeSet::from(["b", "d"]));
    }
}
