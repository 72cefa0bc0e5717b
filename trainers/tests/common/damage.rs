//! Truncations and flipped bits, and what a reader may do with them: answer or refuse, soon, without a huge allocation.

#![allow(clippy::unwrap_used, reason = "test helpers fail by panicking")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::Rng as _;
use simloop_envs::SeedTree;
use simloop_envs::testing::alloc;

/// The longest that a reader may take over a small damaged data set.
const PATIENCE: Duration = Duration::from_secs(10);

/// What readers did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Damages tried.
    pub(crate) tried: usize,
    /// Refused with an error.
    pub(crate) refused: usize,
    /// Read all the same: the damage did not show (a bit of padding, a digit of a number).
    pub(crate) read: usize,
    /// The largest allocation of any reading, bytes.
    pub(crate) largest: usize,
}

/// Every file below `folder`, in order.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

/// Damages one file at a time in a place that the seed chooses, lets `read` read the whole data set and mends the file:
/// `count` times, half of them truncations, half one to three flipped bits.
///
/// # Panics
/// When `read` panics, takes more than ten seconds or asks for more than twice the data set plus 100 MB at once.
pub(crate) fn damage(
    folder: &Path,
    count: usize,
    mut read: impl FnMut() -> Result<(), String>,
) -> Outcome {
    let files = files(folder);
    let total: usize = files.iter().map(|f| fs::metadata(f).unwrap().len() as usize).sum();
    read().expect("the whole data set is read");
    let mut outcome = Outcome::default();
    for i in 0..count {
        let mut rng = SeedTree::new(0).child("damage").index(i as u64).rng();
        let path = &files[rng.random_range(0..files.len())];
        let whole = fs::read(path).unwrap();
        if whole.is_empty() {
            continue;
        }
        let mut bytes = whole.clone();
        let what = if i % 2 == 0 {
            bytes.truncate(rng.random_range(0..whole.len()));
            format!("{} cut at {}", path.display(), bytes.len())
        } else {
            let bits: Vec<usize> = (0..rng.random_range(1..=3))
                .map(|_| rng.random_range(0..whole.len() * 8))
                .collect();
            for bit in &bits {
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            format!("{} with bits {bits:?} flipped", path.display())
        };
        fs::write(path, &bytes).unwrap();
        alloc::take_largest();
        let start = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(&mut read));
        let (took, largest) = (start.elapsed(), alloc::take_largest());
        fs::write(path, &whole).unwrap();
        outcome.tried += 1;
        outcome.largest = outcome.largest.max(largest);
        let Ok(answer) = answer else { panic!("damage {i}: {what}: the reader panicked") };
        match answer {
            Ok(()) => outcome.read += 1,
            Err(_) => outcome.refused += 1,
        }
        assert!(took < PATIENCE, "damage {i}: {what}: {took:?}");
        assert!(
            largest <= 2 * total + 100_000_000,
            "damage {i}: {what}: {largest} bytes were asked for"
        );
    }
    outcome
}
