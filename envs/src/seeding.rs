//! Every random draw of a run, addressed by name.
//!
//! A [`SeedTree`] node is the SHA-256 of its path, so a seed depends on the names that lead to it and on nothing else:
//! not on a worker, an attempt, a batch order or a clock, and adding a task changes no other task's seeds.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// A node in the tree of seeds: `SeedTree::new(run_seed).child("libero_spatial").child("task 3").index(12)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedTree([u8; 32]);

impl SeedTree {
    /// The root for one run.
    pub fn new(run_seed: u64) -> Self {
        Self(hash(&[b"simloop-seed-v1", &run_seed.to_le_bytes()]))
    }

    /// The node called `name` under this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self(hash(&[&self.0, b"name", name.as_bytes()]))
    }

    /// The `index`-th node under this one. Never the same as a named child.
    #[must_use]
    pub fn index(&self, index: u64) -> Self {
        Self(hash(&[&self.0, b"index", &index.to_le_bytes()]))
    }

    /// This node's seed.
    pub fn seed(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// A generator of this node's own.
    pub fn rng(&self) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.0)
    }
}

/// SHA-256 over length-prefixed parts, so that no two lists of parts collide by concatenation.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// The seed of one episode: a function of `(run_seed, suite, task, trial)` alone.
pub fn episode_seed(run_seed: u64, suite: &str, task: &str, trial: u32) -> SeedTree {
    SeedTree::new(run_seed).child(suite).child(task).index(u64::from(trial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_indices_never_collide() {
        let root = SeedTree::new(0);
        let mut seen = BTreeSet::new();
        for task in 0..100 {
            let node = root.child(&task.to_string());
            assert!(seen.insert(node.seed()));
            for trial in 0..1000 {
                assert!(seen.insert(node.index(trial).seed()));
            }
        }
        assert_ne!(root.child("1").seed(), root.index(1).seed());
        assert_ne!(root.child("ab").child("c").seed(), root.child("a").child("bc").seed());
    }

    #[test]
    fn seeds_are_the_same_on_every_machine_and_version() {
        // From Python's hashlib over the same length-prefixed parts.
        assert_eq!(episode_seed(0, "pusht", "pusht", 0).seed(), 14_597_723_763_964_911_870);
    }
}
