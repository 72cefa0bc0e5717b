//! v2.1, and videos with the codecs and frame orders that data sets come with.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may")]
#![cfg(feature = "video")]

mod common;

use simloop_envs::Frame;
use simloop_trainers::data::lerobot::{Lerobot, LerobotOptions};
use simloop_trainers::data::{DemoSource, Frames};

fn golden() -> serde_json::Value {
    let text = std::fs::read_to_string(common::fixture("videos.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn frames(name: &str) -> Result<Vec<Frame>, String> {
    let folder = tempfile::tempdir().unwrap();
    let (root, _) = common::with_video(folder.path(), &format!("{name}.mp4"));
    let source = Lerobot::open(&root, &LerobotOptions::default()).unwrap();
    assert_eq!(source.spec().format, "lerobot_v2");
    assert_eq!(source.spec().cameras["front"].width, 64);
    let mut episode = source.read(0, true).map_err(|e| e.to_string())?;
    assert_eq!(&*episode.instruction, "push it");
    assert_eq!((episode.actions.dim(), episode.proprio.dim()), ((24, 2), (24, 3)));
    match episode.images.remove("front") {
        Some(Frames::Raw(frames)) => Ok(frames),
        other => panic!("{other:?}"),
    }
}

fn compare(name: &str, frames: &[Frame]) {
    let golden = &golden()[name];
    assert_eq!(frames.len(), 24);
    for (t, (frame, mean)) in frames.iter().zip(golden["means"].as_array().unwrap()).enumerate() {
        let ours = frame.iter().map(|v| f64::from(*v)).sum::<f64>() / frame.len() as f64;
        assert!((ours - mean.as_f64().unwrap()).abs() < 1.5, "{name}: frame {t}, mean {ours}");
    }
    for (row, frame) in golden["row_16"].as_array().unwrap().iter().zip(frames.iter().step_by(5)) {
        let theirs = row.as_array().unwrap().iter().map(|v| v.as_i64().unwrap());
        let ours = frame.index_axis(ndarray::Axis(0), 16);
        let worst = ours.iter().zip(theirs).map(|(a, b)| (i64::from(*a) - b).abs()).max();
        assert!(worst.unwrap() <= 3, "{name}: off by {worst:?}");
    }
}

#[test]
fn av1_and_h264_with_b_frames_come_out_in_the_order_of_display() {
    for name in ["av1", "h264"] {
        compare(name, &frames(name).unwrap());
    }
}

#[test]
fn another_codec_goes_through_ffmpeg_or_is_named() {
    match frames("mpeg4") {
        Ok(frames) => compare("mpeg4", &frames),
        Err(error) => {
            println!("no ffmpeg here: {error}");
            assert!(error.contains("`mp4v`") && error.contains("ffmpeg"), "{error}");
        }
    }
}

#[test]
fn a_missing_video_is_named_with_its_episode() {
    let folder = tempfile::tempdir().unwrap();
    let (root, video) = common::with_video(folder.path(), "h264.mp4");
    std::fs::remove_file(&video).unwrap();
    let source = Lerobot::open(&root, &LerobotOptions::default()).unwrap();
    let error = source.read(0, true).unwrap_err().to_string();
    assert!(error.contains("episode_000000.mp4") && error.contains("episode 0"), "{error}");
    assert!(source.read(0, false).is_ok(), "numbers need no video");
}

#[test]
fn rows_of_another_episode_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (root, _) = common::with_video(folder.path(), "h264.mp4");
    let lines = "{\"episode_index\": 1, \"tasks\": [\"a\"], \"length\": 24}\n";
    std::fs::write(root.join("meta/episodes.jsonl"), lines).unwrap();
    let rows = root.join("data/chunk-000");
    std::fs::rename(rows.join("episode_000000.parquet"), rows.join("episode_000001.parquet"))
        .unwrap();
    let source = Lerobot::open(&root, &LerobotOptions::default()).unwrap();
    let error = source.read(0, false).unwrap_err().to_string();
    assert!(error.contains("`episode_index`") && error.contains("episode 1"), "{error}");
}
