//! Damaged LeRobot and HDF5 files: errors with a name, never a panic, a hang or memory that the file cannot ask for.
//!
//! `SIMLOOP_DAMAGE=1000` sets how many truncations and bit flips are tried per format; 150 in a plain run.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{toy_episode, toy_spec};
use rand::{Rng as _, SeedableRng as _};
use simloop_envs::testing::alloc;
use simloop_trainers::data::hdf5::{D4rl, D4rlOptions, Robomimic, RobomimicOptions};
use simloop_trainers::data::lerobot::{Lerobot, LerobotOptions, LerobotWriter};
use simloop_trainers::data::{DataError, DemoSource};

#[global_allocator]
static ALLOCATOR: alloc::Largest = alloc::Largest;

/// Allocations are counted for the whole process, so formats take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Damages `victim` in many ways and reads each time.
fn damage(name: &str, victim: &Path, read: &dyn Fn() -> Result<(), DataError>) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let whole = std::fs::read(victim).unwrap();
    read().unwrap();
    let rounds: usize =
        std::env::var("SIMLOOP_DAMAGE").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let bound = 2 * whole.len() + 100_000_000;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let (mut errors, mut largest, mut longest) = (0, 0, Duration::ZERO);
    for round in 0..rounds {
        let mut bytes = whole.clone();
        if round % 2 == 0 {
            bytes.truncate(rng.random_range(0..whole.len()));
        } else {
            for _ in 0..rng.random_range(1..=8) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
        }
        std::fs::write(victim, &bytes).unwrap();
        let started = Instant::now();
        alloc::take_largest();
        let outcome = catch_unwind(AssertUnwindSafe(read));
        let bytes = alloc::take_largest();
        longest = longest.max(started.elapsed());
        largest = largest.max(bytes);
        match outcome {
            Err(panic) => panic!("{name}: round {round} panicked: {panic:?}"),
            Ok(Err(error)) => {
                errors += 1;
                let text = error.to_string();
                assert!(text.contains('`'), "{name}: round {round} names no file: {text}");
            }
            Ok(Ok(())) => {}
        }
        assert!(bytes <= bound, "{name}: round {round} reserved {bytes} bytes");
        assert!(longest < Duration::from_secs(30), "{name}: round {round} took {longest:?}");
    }
    println!(
        "{name}: {rounds} rounds on {} bytes, {errors} errors, largest allocation {largest}, longest {longest:?}",
        whole.len()
    );
    assert!(errors >= rounds / 2, "{name}: only {errors} of {rounds} were noticed");
    std::fs::write(victim, whole).unwrap();
}

fn read_all(source: &dyn DemoSource) -> Result<(), DataError> {
    for i in 0..source.episodes().len().min(50) {
        let episode = source.read(i, true)?;
        for (camera, frames) in &episode.images {
            for t in 0..frames.len() {
                frames.get(t).map_err(|e| {
                    DataError::episode(
                        Path::new(&source.spec().location),
                        i,
                        format!("{camera}: {e}"),
                    )
                })?;
            }
        }
    }
    Ok(())
}

fn lerobot(root: &Path) -> Result<(), DataError> {
    read_all(&Lerobot::open(root, &LerobotOptions::default())?)
}

fn toys(folder: &Path) -> PathBuf {
    let root = folder.join("toys");
    let mut writer = LerobotWriter::create(&root, &toy_spec(), "toy").unwrap();
    for e in 0..3 {
        writer.push(&toy_episode(e, 6)).unwrap();
    }
    writer.finish().unwrap();
    root
}

#[test]
fn parquet_with_pngs() {
    let folder = tempfile::tempdir().unwrap();
    let root = toys(folder.path());
    damage("parquet with PNG", &root.join("data/chunk-000/file-000.parquet"), &|| lerobot(&root));
}

#[test]
fn parquet_with_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("numbers");
    let mut spec = toy_spec();
    spec.cameras.clear();
    let mut writer = LerobotWriter::create(&root, &spec, "toy").unwrap();
    for e in 0..3 {
        let mut episode = toy_episode(e, 20);
        episode.images.clear();
        writer.push(&episode).unwrap();
    }
    writer.finish().unwrap();
    damage("parquet with numbers", &root.join("data/chunk-000/file-000.parquet"), &|| {
        lerobot(&root)
    });
}

#[test]
fn parquet_of_episodes() {
    let folder = tempfile::tempdir().unwrap();
    let root = toys(folder.path());
    let victim = root.join("meta/episodes/chunk-000/file-000.parquet");
    damage("parquet of episodes", &victim, &|| lerobot(&root));
}

#[test]
fn info_json() {
    let folder = tempfile::tempdir().unwrap();
    let root = toys(folder.path());
    damage("info.json", &root.join("meta/info.json"), &|| lerobot(&root));
}

#[cfg(feature = "video")]
#[test]
fn av1_video() {
    let folder = tempfile::tempdir().unwrap();
    let (root, video) = common::with_video(folder.path(), "av1.mp4");
    damage("AV1 in MP4", &video, &|| lerobot(&root));
}

#[cfg(feature = "video")]
#[test]
fn h264_video() {
    let folder = tempfile::tempdir().unwrap();
    let (root, video) = common::with_video(folder.path(), "h264.mp4");
    damage("H.264 in MP4", &video, &|| lerobot(&root));
}

#[test]
fn hdf5_demonstrations() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libero.hdf5");
    std::fs::copy(common::fixture("libero.hdf5"), &file).unwrap();
    damage("HDF5 demonstrations", &file, &|| {
        read_all(&Robomimic::open(&file, &RobomimicOptions::default())?)
    });
}

#[test]
fn hdf5_flat_arrays() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("d4rl.hdf5");
    std::fs::copy(common::fixture("d4rl.hdf5"), &file).unwrap();
    damage("HDF5 flat arrays", &file, &|| read_all(&D4rl::open(&file, &D4rlOptions::default())?));
}
