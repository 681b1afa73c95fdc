//! Caches the last results of each policy in its repositories, so that a reconcile asks only for
//! what may have changed.
//!
//! A status lists at most a hundred repositories; the cache holds all. After a start it is filled
//! from the status.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::outcome::only;
use wharfage_crd::LifecyclePolicyStatus;
use wharfage_crd::lifecycle_policy::{OutcomeState, RepositoryOutcome};
use wharfage_domain::names::RepositoryName;

/// The last result of one repository.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LastResult {
    /// The result as the status reports it.
    pub(super) outcome: RepositoryOutcome,
    /// The time of the result.
    pub(super) at: Instant,
    /// The start of a running preview.
    pub(super) begun: Option<Instant>,
    /// The handled request to reconcile.
    pub(super) requested: Option<String>,
    /// True if drift could not be corrected.
    pub(super) differs: bool,
}

impl LastResult {
    /// Makes a result of now.
    pub(super) fn new(outcome: RepositoryOutcome) -> Self {
        Self { outcome, at: Instant::now(), begun: None, requested: None, differs: false }
    }

    /// Makes the result while a preview is running: the earlier result stays until then.
    pub(super) fn awaiting(name: &RepositoryName, before: Option<&Self>) -> Self {
        let reported = before.filter(|it| it.is_evaluated()).cloned();
        let begun = before.and_then(|it| it.begun).or_else(|| Some(Instant::now()));
        Self { begun, ..reported.unwrap_or_else(|| Self::new(only(name, OutcomeState::Pending))) }
    }

    /// Returns whether the policy was evaluated.
    pub(super) fn is_evaluated(&self) -> bool {
        self.outcome.evaluated_at.is_some()
            && matches!(self.outcome.state, OutcomeState::Previewed | OutcomeState::Enforced)
    }
}

/// The repositories of one policy, as of one generation of its spec.
pub(super) type LastResults = HashMap<RepositoryName, LastResult>;

/// The results of all policies, by their uid.
#[derive(Debug, Default)]
pub(super) struct ResultCache(Mutex<HashMap<String, (Option<i64>, LastResults)>>);

impl ResultCache {
    /// Returns the results of a policy for this generation. After a start it reads them from the
    /// status.
    pub(super) fn recall(
        &self,
        uid: &str,
        generation: Option<i64>,
        status: &LifecyclePolicyStatus,
    ) -> LastResults {
        let result_cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result_cache.get(uid) {
            Some((of, results)) if *of == generation => results.clone(),
            Some(_) => LastResults::new(),
            None if status.observed_generation == generation => from_status(status),
            None => LastResults::new(),
        }
    }

    /// Returns the repositories of a policy, for any generation.
    pub(super) fn had(&self, uid: &str) -> Vec<RepositoryName> {
        let result_cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        result_cache
            .get(uid)
            .map(|(_, results)| results.keys().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn remember(&self, uid: &str, generation: Option<i64>, results: LastResults) {
        let mut result_cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        result_cache.insert(uid.to_owned(), (generation, results));
    }

    /// Forgets a policy that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

fn from_status(status: &LifecyclePolicyStatus) -> LastResults {
    let now = (Instant::now(), Timestamp::now());
    let kept = status.repositories.iter().filter_map(|outcome| {
        let name: RepositoryName = outcome.name.parse().ok()?;
        let age = now.1.duration_since(outcome.evaluated_at.as_ref()?.0);
        let age = Duration::try_from(age).unwrap_or_default();
        // An earlier time than the start of the machine cannot be expressed: then it is the start.
        let at = now.0.checked_sub(age).unwrap_or(now.0);
        Some((name, LastResult { at, ..LastResult::new(outcome.clone()) }))
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn status(generation: i64, evaluated: Option<i64>) -> LifecyclePolicyStatus {
        let evaluated_at = evaluated.map(|second| Time(Timestamp::from_second(second).unwrap()));
        let outcome = RepositoryOutcome {
            evaluated_at,
            ..only(&"aa".parse().unwrap(), OutcomeState::Previewed)
        };
        LifecyclePolicyStatus {
            observed_generation: Some(generation),
            repositories: vec![outcome],
            ..LifecyclePolicyStatus::default()
        }
    }

    #[test]
    fn after_a_start_the_results_come_from_the_status() {
        let (result_cache, name) = (ResultCache::default(), "aa".parse().unwrap());
        let results = result_cache.recall("u", Some(3), &status(3, Some(0)));
        assert!(results[&name].is_evaluated());
        assert!(result_cache.recall("u", Some(4), &status(3, Some(0))).is_empty(), "another spec");
        assert!(result_cache.recall("u", Some(3), &status(3, None)).is_empty(), "never evaluated");
    }

    #[test]
    fn a_result_stays_until_the_next_preview_is_complete() {
        let (result_cache, name) = (ResultCache::default(), "aa".parse().unwrap());
        let reported = result_cache.recall("u", Some(3), &status(3, Some(0)))[&name].clone();
        let awaiting = LastResult::awaiting(&name, Some(&reported));
        assert_eq!(awaiting.outcome, reported.outcome);
        assert!(awaiting.begun.is_some());
        assert_eq!(
            LastResult::awaiting(&name, Some(&awaiting)).begun,
            awaiting.begun,
            "it goes on since then"
        );
        assert_eq!(LastResult::awaiting(&name, None).outcome.state, OutcomeState::Pending);
    }

    #[test]
    fn another_generation_keeps_only_the_repositories() {
        let (result_cache, name) =
            (ResultCache::default(), "aa".parse::<RepositoryName>().unwrap());
        let kept = LastResult::new(only(&name, OutcomeState::Enforced));
        result_cache.remember("u", Some(1), LastResults::from([(name.clone(), kept)]));
        assert_eq!(result_cache.recall("u", Some(1), &LifecyclePolicyStatus::default()).len(), 1);
        assert!(result_cache.recall("u", Some(2), &status(2, Some(0))).is_empty());
        assert_eq!(result_cache.had("u"), [name]);
        result_cache.forget("u");
        assert!(result_cache.had("u").is_empty());
    }
}
