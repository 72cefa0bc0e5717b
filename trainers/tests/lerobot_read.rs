//! LeRobot's own files, against pyarrow and PyAV (`golden/lerobot_numbers.py`, `golden/lerobot_frames.py`).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use simloop_trainers::data::lerobot::{Lerobot, LerobotOptions};
use simloop_trainers::data::{DemoSource, Frames};

fn sample(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/lerobot").join(name);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: no sample `{}`", path.display());
    None
}

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

const SAMPLES: [&str; 3] =
    ["lerobot_v30_pusht_av1", "lerobot_v30_pusht_h264", "lerobot_v30_pusht_png"];

#[test]
fn states_and_actions_are_those_that_pyarrow_reads() {
    let golden = golden("lerobot_numbers.json");
    for name in SAMPLES {
        let Some(path) = sample(name) else { return };
        let source = Lerobot::open(&path, &LerobotOptions::default()).unwrap();
        let expected = golden[name].as_array().unwrap();
        assert_eq!(source.episodes().len(), expected.len());
        assert_eq!(source.spec().control_hz, Some(10.0));
        assert_eq!(source.spec().action, ["x", "y"]);
        for (i, expected) in expected.iter().enumerate() {
            let episode = source.read(i, false).unwrap();
            assert_eq!(episode.len() as u64, expected["len"].as_u64().unwrap());
            assert_eq!(episode.len(), source.episodes()[i].len);
            assert_eq!(&*episode.instruction, "Push the T-shaped block onto the T-shaped target.");
            assert!(episode.images.is_empty());
            for (key, rows) in
                [("observation.state", &episode.proprio), ("action", &episode.actions)]
            {
                for d in 0..2 {
                    let sum: f64 = rows.column(d).iter().map(|v| f64::from(*v)).sum();
                    assert_eq!(sum, expected[key]["sum"][d].as_f64().unwrap(), "{name} {i} {key}");
                    let last = f64::from(rows[[rows.nrows() - 1, d]]);
                    assert_eq!(last, expected[key]["last"][d].as_f64().unwrap());
                }
            }
        }
    }
}

#[test]
fn pngs_in_parquet_are_the_pixels_that_pillow_reads() {
    let Some(path) = sample("lerobot_v30_pusht_png") else { return };
    let source = Lerobot::open(&path, &LerobotOptions::default()).unwrap();
    let expected = golden("lerobot_numbers.json");
    let episode = source.read(0, true).unwrap();
    let frames = &episode.images["image"];
    let mut sum = 0u64;
    for t in 0..frames.len() {
        sum += frames.get(t).unwrap().iter().map(|v| u64::from(*v)).sum::<u64>();
    }
    assert_eq!(sum, expected["lerobot_v30_pusht_png"][0]["pixel_sum"].as_u64().unwrap());
}

/// Every frame of every episode, in order.
#[cfg(feature = "video")]
fn all_frames(path: &Path) -> Vec<simloop_envs::Frame> {
    let source = Lerobot::open(path, &LerobotOptions::default()).unwrap();
    let mut all = Vec::new();
    for i in 0..source.episodes().len() {
        match source.read(i, true).unwrap().images.remove("image").unwrap() {
            Frames::Raw(frames) => {
                assert_eq!(frames.len(), source.episodes()[i].len);
                all.extend(frames);
            }
            Frames::Encoded(_) => panic!("videos come decoded"),
        }
    }
    all
}

#[cfg(feature = "video")]
#[test]
fn video_frames_are_within_3_of_pyavs() {
    let golden = golden("lerobot_frames.json");
    for name in ["lerobot_v30_pusht_av1", "lerobot_v30_pusht_h264"] {
        let Some(path) = sample(name) else { return };
        let golden = &golden[name];
        let frames = all_frames(&path);
        assert_eq!(frames.len() as u64, golden["frames"].as_u64().unwrap());
        let list = |key: &str| -> Vec<usize> {
            golden[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
        };
        for (frame, mean) in frames.iter().zip(golden["means"].as_array().unwrap()) {
            let ours = frame.iter().map(|v| f64::from(*v)).sum::<f64>() / frame.len() as f64;
            let off = (ours - mean.as_f64().unwrap()).abs();
            assert!(off < 1.5, "{name}: a frame's mean is off by {off}");
        }
        let mut pixels = golden["pixels"].as_array().unwrap().iter();
        let (mut worst, mut sum, mut n) = (0, 0, 0);
        for t in list("picked") {
            for y in list("rows") {
                for x in list("columns") {
                    for c in 0..3 {
                        let theirs = pixels.next().unwrap().as_i64().unwrap();
                        let off = (i64::from(frames[t][[y, x, c]]) - theirs).abs();
                        worst = worst.max(off);
                        sum += off;
                        n += 1;
                    }
                }
            }
        }
        println!("{name}: {n} pixels, worst {worst}, mean {:.3}", sum as f64 / f64::from(n));
        assert!(worst <= 3, "{name}: off by {worst}");
        assert!(pixels.next().is_none());
    }
}

/// All pixels of both videos, where `SIMLOOP_AV_PYTHON` is a Python with PyAV.
#[cfg(feature = "video")]
#[test]
fn all_pixels_are_within_3_of_pyavs() {
    let Ok(python) = std::env::var("SIMLOOP_AV_PYTHON") else {
        println!("skipped: set SIMLOOP_AV_PYTHON to a Python with PyAV");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lerobot_frames.py");
    for name in ["lerobot_v30_pusht_av1", "lerobot_v30_pusht_h264"] {
        let Some(path) = sample(name) else { return };
        let video = path.join("videos/observation.image/chunk-000/file-000.mp4");
        let out = std::process::Command::new(&python).arg(&script).arg("raw").arg(video).output();
        let theirs = out.unwrap().stdout;
        let frames = all_frames(&path);
        assert_eq!(theirs.len(), frames.iter().map(simloop_envs::Frame::len).sum::<usize>());
        let ours = frames.iter().flat_map(|f| f.iter());
        let worst = ours.zip(&theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        println!("{name}: {} values, worst {worst}", theirs.len());
        assert!(worst <= 3, "{name}: off by {worst}");
    }
}

#[cfg(feature = "video")]
#[test]
fn an_episode_read_alone_has_the_frames_it_has_in_the_whole() {
    let Some(path) = sample("lerobot_v30_pusht_h264") else { return };
    let all = all_frames(&path);
    let source = Lerobot::open(&path, &LerobotOptions::default()).unwrap();
    let first = source.episodes()[0].len;
    let Frames::Raw(second) = &source.read(1, true).unwrap().images["image"] else { panic!() };
    assert!(second.iter().zip(&all[first..]).all(|(a, b)| a == b));
    assert_ne!(second[0], all[0], "the second episode does not begin with the first one's frame");
}

#[test]
fn features_and_cameras_can_be_renamed_and_wrong_names_are_answered_with_the_right_ones() {
    let Some(path) = sample("lerobot_v30_pusht_png") else { return };
    let options = LerobotOptions {
        proprio: Some(vec!["observation.state".into(), "next.reward".into()]),
        cameras: Some([("observation.image".to_owned(), "pixels".to_owned())].into()),
        ..LerobotOptions::default()
    };
    let source = Lerobot::open(&path, &options).unwrap();
    let episode = source.read(0, true).unwrap();
    assert_eq!(episode.proprio.ncols(), 3);
    assert_eq!(episode.images.keys().collect::<Vec<_>>(), ["pixels"]);
    let options = LerobotOptions { action: Some("actions".into()), ..LerobotOptions::default() };
    let error = Lerobot::open(&path, &options).unwrap_err().to_string();
    assert!(error.contains("`actions`") && error.contains("next.reward"), "{error}");
}
