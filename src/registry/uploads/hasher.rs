//! A hash that is computed over several requests, and by several processes.

use bytes::Bytes;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest as _, Sha256, Sha512};
use tokio::task::JoinHandle;

use crate::names::{Algorithm, Digest};
use crate::store::{StoreError, StoreResult};

/// What is less is hashed at once: handing it over would take as long.
const INLINE: usize = 32 * 1024;

/// A hash whose state outlives the process.
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

    /// Goes on from what [`Hasher::save`] returned; from nothing, it starts with `algorithm`. The two states differ in
    /// length, which tells them apart: a session may turn out to need another algorithm than it began with.
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

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
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

/// A hash that is computed on threads that may be busy for long, while what calls it goes on.
pub(super) struct Hashing(State);

enum State {
    Idle(Box<Hasher>),
    Running(JoinHandle<Box<Hasher>>),
}

impl Hashing {
    pub(super) fn new(hasher: Hasher) -> Self {
        Self(State::Idle(Box::new(hasher)))
    }

    /// Hashes these bytes after those before. At most one call's bytes are on their way.
    pub(super) async fn update(&mut self, bytes: Bytes) -> StoreResult<()> {
        let hasher = self.settle().await?;
        if bytes.len() < INLINE {
            hasher.update(&bytes);
            return Ok(());
        }
        // It is taken along and comes back: nobody sees the empty one in its place.
        let mut taken = Box::new(std::mem::replace(hasher, Hasher::new(hasher.algorithm())));
        self.0 = State::Running(tokio::task::spawn_blocking(move || {
            taken.update(&bytes);
            taken
        }));
        Ok(())
    }

    /// The hash of all bytes so far.
    pub(super) async fn settle(&mut self) -> StoreResult<&mut Hasher> {
        if let State::Running(running) = &mut self.0 {
            self.0 = State::Idle(running.await.map_err(|error| StoreError::Backend(Box::new(error)))?);
        }
        match &mut self.0 {
            State::Idle(hasher) => Ok(hasher),
            State::Running(_) => Err(StoreError::Backend("a hash is still being computed".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_hash_that_was_saved_and_restored_ends_the_same(
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
        fn a_state_that_is_none_is_refused(state in prop::collection::vec(any::<u8>(), 1..40)) {
            prop_assert!(Hasher::restore(Algorithm::Sha256, &state).is_none());
        }
    }
}
