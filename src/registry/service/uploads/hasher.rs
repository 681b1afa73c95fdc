//! A hash that is computed over several requests, and by several processes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest as _, Sha256, Sha512};

use wharfage_domain::names::{Algorithm, Digest};
use wharfage_store::Inspect;

/// A hash with a state that can be stored.
#[derive(Clone)]
pub(super) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Restores the state that [`Hasher::save`] returned; an empty state starts with `algorithm`.
    /// The length of the state identifies the algorithm, because a session may need another
    /// algorithm than the one that it began with.
    pub(super) fn restore(algorithm: Algorithm, state: &[u8]) -> Option<Self> {
        if state.is_empty() {
            return Some(Self::new(algorithm));
        }
        if let Ok(state) = <&SerializedState<Sha256>>::try_from(state) {
            return Sha256::deserialize(state).ok().map(Self::Sha256);
        }
        let state = <&SerializedState<Sha512>>::try_from(state).ok()?;
        Sha512::deserialize(state).ok().map(Self::Sha512)
    }

    pub(super) fn save(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hash) => hash.serialize().to_vec(),
            Self::Sha512(hash) => hash.serialize().to_vec(),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(super) fn digest(&self) -> Digest {
        match self.clone() {
            Self::Sha256(hash) => Digest::from_hash(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => Digest::from_hash(Algorithm::Sha512, &hash.finalize()),
        }
    }
}

/// The hash of an upload's bytes, which its writer updates.
pub(super) struct Hashing(Mutex<Hasher>);

impl Hashing {
    pub(super) fn new(hasher: Hasher) -> Self {
        Self(Mutex::new(hasher))
    }

    /// Locks the hash of the bytes that the writer has inspected.
    pub(super) fn lock(&self) -> MutexGuard<'_, Hasher> {
        // After a panic, the hash differs from the digest of the client, so it never becomes a
        // blob.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inspect for Hashing {
    fn inspect(&self, bytes: &[u8]) {
        self.lock().update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_restored_hash_has_the_same_digest(
            head in prop::collection::vec(any::<u8>(), 0..300),
            tail in prop::collection::vec(any::<u8>(), 0..300),
            algorithm in prop::sample::select(vec![Algorithm::Sha256, Algorithm::Sha512]),
        ) {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(&head);
            let mut restored = Hasher::restore(Algorithm::Sha256, &hasher.save()).unwrap();
            restored.update(&tail);
            prop_assert_eq!(restored.digest(), Digest::of(algorithm, &[head, tail].concat()));
        }

        #[test]
        fn an_invalid_state_is_refused(state in prop::collection::vec(any::<u8>(), 1..40)) {
            prop_assert!(Hasher::restore(Algorithm::Sha256, &state).is_none());
        }
    }
}
