//! What several tests share.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array2, Array3};
use simloop_envs::ImageSpace;
use simloop_trainers::data::lerobot::LerobotWriter;
use simloop_trainers::data::{DemoEpisode, Frames, SourceSpec};

/// A data set of two cameras, three numbers of state, two of action, 10 steps per second.
pub(crate) fn toy_spec() -> SourceSpec {
    let space = |height, width| ImageSpace { height, width };
    SourceSpec {
        format: "toy".to_owned(),
        location: "memory".to_owned(),
        cameras: [("top".to_owned(), space(24, 32)), ("wrist".to_owned(), space(16, 16))].into(),
        proprio: ["x_m", "y_m", "grip"].map(str::to_owned).to_vec(),
        action: ["dx", "dy"].map(str::to_owned).to_vec(),
        absolute_action: vec![true; 2],
        convention: None,
        control_hz: Some(10.0),
    }
}

/// Episode `e` of `len` steps: every number and pixel says where it belongs.
pub(crate) fn toy_episode(e: usize, len: usize) -> DemoEpisode {
    let at = |t: usize, d: usize| (100 * e + 10 * t + d) as f32 / 7.0;
    let frames = |height: usize, width: usize, c: usize| {
        let frame = |t: usize| {
            Array3::from_shape_fn((height, width, 3), |(y, x, k)| {
                (31 * e + 7 * t + 3 * y + 5 * x + 11 * k + 50 * c) as u8
            })
            .into_shared()
        };
        Frames::Raw((0..len).map(frame).collect())
    };
    DemoEpisode {
        instruction: Arc::from(["push it", "pull it – gently"][e % 2]),
        proprio: Array2::from_shape_fn((len, 3), |(t, d)| at(t, d)),
        actions: Array2::from_shape_fn((len, 2), |(t, d)| -at(t, d)),
        images: BTreeMap::from([
            ("top".to_owned(), frames(24, 32, 0)),
            ("wrist".to_owned(), frames(16, 16, 1)),
        ]),
    }
}

/// A file of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A v2.1 data set of one episode of 24 steps whose camera `front` is a video of `fixtures`; also the video's path.
pub(crate) fn with_video(folder: &Path, video: &str) -> (PathBuf, PathBuf) {
    let (donor, root) = (folder.join("donor"), folder.join("v21"));
    let mut spec = toy_spec();
    spec.cameras.clear();
    let mut writer = LerobotWriter::create(&donor, &spec, "toy").unwrap();
    let mut episode = toy_episode(0, 24);
    episode.images.clear();
    writer.push(&episode).unwrap();
    writer.finish().unwrap();
    let videos = root.join("videos/chunk-000/observation.images.front");
    for folder in [&root.join("meta"), &root.join("data/chunk-000"), &videos] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let rows = root.join("data/chunk-000/episode_000000.parquet");
    std::fs::copy(donor.join("data/chunk-000/file-000.parquet"), rows).unwrap();
    let at = videos.join("episode_000000.mp4");
    std::fs::copy(fixture(video), &at).unwrap();
    let text = std::fs::read_to_string(donor.join("meta/info.json")).unwrap();
    let mut info: serde_json::Value = serde_json::from_str(&text).unwrap();
    info["codebase_version"] = "v2.1".into();
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet".into();
    info["video_path"] =
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4".into();
    // A wrong codec, as in the wild: the file's own word counts.
    info["features"]["observation.images.front"] = serde_json::json!({
        "dtype": "video", "shape": [3, 48, 64], "names": ["channels", "height", "width"],
        "info": {"video.codec": "hevc"},
    });
    std::fs::write(root.join("meta/info.json"), info.to_string()).unwrap();
    std::fs::write(
        root.join("meta/episodes.jsonl"),
        "{\"episode_index\": 0, \"tasks\": [\"push it\"], \"length\": 24}\n",
    )
    .unwrap();
    std::fs::write(root.join("meta/tasks.jsonl"), "{\"task_index\": 0, \"task\": \"push it\"}\n")
        .unwrap();
    (root, at)
}
