//! What is written as LeRobot v3.0: read back by this crate, and by lerobot itself where there is one.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{toy_episode, toy_spec};
use simloop_trainers::data::lerobot::{Lerobot, LerobotOptions, LerobotWriter};
use simloop_trainers::data::{DemoEpisode, DemoSource, SourceSpec};

fn write(path: &Path, spec: &SourceSpec, episodes: &[DemoEpisode]) {
    let mut writer = LerobotWriter::create(path, spec, "toy").unwrap();
    for episode in episodes {
        writer.push(episode).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_was_written_is_read_back_number_by_number_and_pixel_by_pixel() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toys");
    let episodes: Vec<_> = (0..5).map(|e| toy_episode(e, 3 + 4 * e)).collect();
    write(&path, &toy_spec(), &episodes);
    let source = Lerobot::open(&path, &LerobotOptions::default()).unwrap();
    let spec = source.spec();
    assert_eq!((&spec.cameras, &spec.proprio), (&toy_spec().cameras, &toy_spec().proprio));
    assert_eq!((&spec.action, spec.control_hz), (&toy_spec().action, Some(10.0)));
    assert_eq!(source.episodes().len(), 5);
    // Backwards: an episode is found without the ones before it.
    for (i, written) in episodes.iter().enumerate().rev() {
        let read = source.read(i, true).unwrap();
        assert_eq!(source.episodes()[i].len, written.len());
        assert_eq!(read.instruction, written.instruction);
        assert_eq!((&read.proprio, &read.actions), (&written.proprio, &written.actions));
        for (camera, frames) in &written.images {
            for t in 0..frames.len() {
                let (a, b) = (read.images[camera].get(t), frames.get(t));
                assert_eq!(a.unwrap(), b.unwrap(), "{camera} {i} {t}");
            }
        }
    }
    let twice = LerobotWriter::create(&path, &toy_spec(), "toy").unwrap_err().to_string();
    assert!(twice.contains("it exists"), "{twice}");
}

#[test]
fn converting_again_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let episodes: Vec<_> = (0..3).map(|e| toy_episode(e, 4)).collect();
    write(&a, &toy_spec(), &episodes);
    let source = Lerobot::open(&a, &LerobotOptions::default()).unwrap();
    let again: Vec<_> = (0..3).map(|i| source.read(i, true).unwrap()).collect();
    write(&b, source.spec(), &again);
    for file in ["data/chunk-000/file-000.parquet", "meta/info.json", "meta/stats.json"] {
        let read = |root: &Path| std::fs::read(root.join(file)).unwrap();
        assert!(read(&a) == read(&b) || file.ends_with("info.json"), "{file}");
    }
}

#[test]
fn numbers_without_images_and_single_numbers_are_written_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers");
    let mut spec = toy_spec();
    spec.cameras.clear();
    spec.action.truncate(1);
    spec.proprio.clear();
    let mut episode = toy_episode(0, 6);
    episode.images.clear();
    episode.actions = episode.actions.slice(ndarray::s![.., ..1]).to_owned();
    episode.proprio = ndarray::Array2::zeros((6, 0));
    write(&path, &spec, std::slice::from_ref(&episode));
    let source = Lerobot::open(&path, &LerobotOptions::default()).unwrap();
    let read = source.read(0, true).unwrap();
    assert_eq!((read.actions, read.proprio.dim()), (episode.actions, (6, 0)));
}

#[test]
fn a_second_writer_of_one_data_set_is_refused_and_spoils_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toys");
    let mut writer = LerobotWriter::create(&path, &toy_spec(), "toy").unwrap();
    writer.push(&toy_episode(0, 4)).unwrap();
    let second = LerobotWriter::create(&path, &toy_spec(), "toy").unwrap_err().to_string();
    assert!(second.contains("another process is writing there"), "{second}");
    writer.push(&toy_episode(1, 4)).unwrap();
    writer.finish().unwrap();
    let source = Lerobot::open(&path, &LerobotOptions::default()).unwrap();
    assert!((0..2).all(|episode| source.read(episode, true).is_ok()));
}

#[test]
fn an_unfinished_data_set_is_not_there_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toys");
    let mut writer = LerobotWriter::create(&path, &toy_spec(), "toy").unwrap();
    writer.push(&toy_episode(0, 4)).unwrap();
    assert!(!path.exists());
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // A killed run's leftovers are cleared away.
    std::fs::create_dir_all(folder.path().join(".toys.partial/data")).unwrap();
    write(&path, &toy_spec(), &[toy_episode(0, 4)]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_episode_that_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer =
        LerobotWriter::create(&folder.path().join("toys"), &toy_spec(), "toy").unwrap();
    let mut refused = |change: &dyn Fn(&mut DemoEpisode), word: &str| {
        let mut episode = toy_episode(0, 4);
        change(&mut episode);
        let error = writer.push(&episode).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&|e| e.actions[[2, 1]] = f32::NAN, "not finite");
    refused(&|e| drop(e.images.remove("wrist")), "cameras");
    refused(&|e| e.proprio = ndarray::Array2::zeros((4, 2)), "[4, 3]");
    refused(
        &|e| {
            let top = e.images["top"].clone();
            e.images.insert("wrist".to_owned(), top);
        },
        "32 x 24",
    );
    refused(&|e| *e = toy_episode(0, 0), "no step");
    assert!(writer.is_empty());
    assert!(writer.finish().unwrap_err().to_string().contains("without an episode"));
}

/// Where `SIMLOOP_LEROBOT_PYTHON` is a Python with lerobot 0.4.4 (`scripts/lerobot_venv.sh`).
#[test]
fn lerobot_itself_loads_what_was_written() {
    let Ok(python) = std::env::var("SIMLOOP_LEROBOT_PYTHON") else {
        println!("skipped: set SIMLOOP_LEROBOT_PYTHON; scripts/lerobot_venv.sh makes one");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toys");
    let episodes: Vec<_> = (0..4).map(|e| toy_episode(e, 5 + e)).collect();
    write(&path, &toy_spec(), &episodes);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lerobot_loads.py");
    let out = Command::new(python)
        .arg(script)
        .arg(&path)
        .envs([("HF_HUB_OFFLINE", "1"), ("PYTHONDONTWRITEBYTECODE", "1")])
        .env("HF_HOME", folder.path().join("cache"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    print!("{said}");
    let mut expected = Vec::new();
    let mut index = 0;
    for episode in &episodes {
        for t in 0..episode.len() {
            let sum = |camera: &str| -> u64 {
                episode.images[camera].get(t).unwrap().iter().map(|v| u64::from(*v)).sum()
            };
            let row = |m: &ndarray::Array2<f32>| {
                m.row(t).iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(" ")
            };
            expected.push(format!(
                "{index} | {} | {} | {} | {} {}",
                episode.instruction,
                row(&episode.proprio),
                row(&episode.actions),
                sum("top"),
                sum("wrist")
            ));
            index += 1;
        }
    }
    let got: Vec<&str> = said.lines().filter(|l| l.contains(" | ")).map(str::trim).collect();
    assert_eq!(got, expected);
}
