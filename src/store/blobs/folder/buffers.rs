//! A pool of buffers, so that a pull neither allocates nor zeroes memory for each chunk.
//!
//! The pool bounds the number of unused buffers, not of buffers in use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Chunks up to this size are not pooled.
const TINY: usize = 8 * 1024;
/// Sizes of pooled buffers in bytes, with the maximum number of unused ones.
const CLASSES: [(usize, usize); 3] = [(16 * 1024, 256), (64 * 1024, 64), (128 * 1024, 64)];

/// The pool, shared by its clones.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<[Mutex<Unused>; CLASSES.len()]>);

type Unused = Vec<Box<[u8]>>;

impl Buffers {
    /// Returns a buffer of `len` bytes with undefined contents.
    pub(super) fn take(&self, len: usize) -> Buffer {
        let class = CLASSES.iter().position(|&(size, _)| len <= size).filter(|_| len > TINY);
        let bytes = match class {
            Some(class) => self.unused(class).pop().unwrap_or_else(|| zeroed(CLASSES[class].0)),
            None => zeroed(len),
        };
        Buffer { bytes, len, home: class.map(|class| (self.clone(), class)) }
    }

    fn unused(&self, class: usize) -> MutexGuard<'_, Unused> {
        self.0[class].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn zeroed(len: usize) -> Box<[u8]> {
    vec![0; len].into_boxed_slice()
}

/// A buffer that returns to its pool on drop.
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Option<(Buffers, usize)>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((pool, class)) = self.home.take() {
            let mut unused = pool.unused(class);
            if unused.len() < CLASSES[class].1 {
                unused.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_asked_for_and_comes_back_for_the_next() {
        let pool = Buffers::default();
        for len in [
            1,
            TINY,
            TINY + 1,
            16 * 1024,
            16 * 1024 + 1,
            64 * 1024,
            64 * 1024 + 1,
            128 * 1024,
            128 * 1024 + 1,
        ] {
            assert_eq!(pool.take(len).as_ref().len(), len);
        }
        assert!(
            (0..CLASSES.len()).all(|class| pool.unused(class).len() == 1),
            "one buffer served both sizes of a class"
        );
    }

    #[test]
    fn the_pool_keeps_a_limited_number() {
        let pool = Buffers::default();
        drop((0..CLASSES[0].1 + 5).map(|_| pool.take(10 * 1024)).collect::<Vec<_>>());
        assert_eq!(pool.unused(0).len(), CLASSES[0].1);
    }
}
