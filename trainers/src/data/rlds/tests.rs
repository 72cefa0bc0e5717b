//! Tests of the RLDS reader.

use super::*;
use crate::data::example::{BytesList, Features, FloatList, Int64List};
use crate::data::tfrecord::write_record;
use crate::data::{DataStatistics, WindowDataset, WindowOptions};
use prost::Message as _;
use std::fs;

fn floats(values: Vec<f32>) -> Feature {
    Feature { kind: Some(Kind::Float(FloatList { value: values })) }
}

fn ints(values: Vec<i64>) -> Feature {
    Feature { kind: Some(Kind::Int64(Int64List { value: values })) }
}

fn bytes(values: Vec<Vec<u8>>) -> Feature {
    Feature {
        kind: Some(Kind::Bytes(BytesList { value: values.into_iter().map(Bytes::from).collect() })),
    }
}

fn jpeg(shade: u8) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(8, 6, image::Rgb([shade; 3]))
        .write_to(&mut file, image::ImageFormat::Jpeg)
        .unwrap();
    file.into_inner()
}

/// An episode of `t` steps: action `[t, t, t, t, t, t, gripper]`, state `[10 t + d]`.
fn episode(t: usize, instruction: &str) -> BTreeMap<String, Feature> {
    let action =
        (0..t).flat_map(|k| (0..7).map(move |d| if d < 6 { k as f32 } else { (k % 2) as f32 }));
    let state = (0..t).flat_map(|k| (0..7).map(move |d| (10 * k + d) as f32));
    let feature = |key: &str, f: Feature| (format!("steps/{key}"), f);
    BTreeMap::from([
        feature("is_first", ints((0..t).map(|k| i64::from(k == 0)).collect())),
        feature("action", floats(action.collect())),
        feature("observation/state", floats(state.collect())),
        feature("observation/image_0", bytes((0..t).map(|k| jpeg(10 * k as u8)).collect())),
        feature("observation/image_1", bytes((0..t).map(|_| jpeg(0)).collect())),
        feature("language_instruction", bytes(vec![instruction.as_bytes().to_vec(); t])),
    ])
}

const FEATURES: &str = r#"{"featuresDict": {"features": {"steps": {"sequence": {"feature": {"featuresDict": {"features": {
    "is_first": {"tensor": {"shape": {}, "dtype": "bool", "encoding": "none"}},
    "action": {"tensor": {"shape": {"dimensions": ["7"]}, "dtype": "float32", "encoding": "none"}},
    "language_instruction": {"text": {}},
    "observation": {"featuresDict": {"features": {
        "state": {"tensor": {"shape": {"dimensions": ["7"]}, "dtype": "float32", "encoding": "none"}},
        "image_0": {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "encodingFormat": "jpeg"}},
        "image_1": {"image": {"shape": {"dimensions": ["6", "8", "3"]}, "encodingFormat": "jpeg"}}
    }}}
}}}}}}}}"#;

fn dataset(episodes: Vec<BTreeMap<String, Feature>>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let info = serde_json::json!({"name": "toy", "fileFormat": "tfrecord", "splits": [
        {"name": "train", "shardLengths": [episodes.len().to_string()]}]});
    fs::write(folder.path().join("dataset_info.json"), info.to_string()).unwrap();
    fs::write(folder.path().join("features.json"), FEATURES).unwrap();
    let mut shard = Vec::new();
    for feature in episodes {
        let example = Example { features: Some(Features { feature }) };
        write_record(&mut shard, &example.encode_to_vec()).unwrap();
    }
    fs::write(folder.path().join("toy-train.tfrecord-00000-of-00001"), shard).unwrap();
    folder
}

fn bridge() -> RldsOptions {
    RldsOptions { standardise: Some("bridge_orig".to_owned()), ..RldsOptions::default() }
}

#[test]
fn raw_episodes_keep_their_numbers_and_cameras() {
    let folder = dataset(vec![episode(4, "lift"), episode(3, "")]);
    let source = RldsSource::open(folder.path(), &RldsOptions::default()).unwrap();
    assert_eq!(source.episodes().iter().map(|e| e.len).collect::<Vec<_>>(), [4, 3]);
    let sizes: Vec<(u32, u32)> =
        source.spec().cameras.values().map(|s| (s.height, s.width)).collect();
    assert_eq!(sizes, [(6, 8), (6, 8)]);
    assert_eq!(source.spec().proprio[1], "state_1");
    let read = source.read(0, true).unwrap();
    assert_eq!((read.actions[[3, 0]], read.proprio[[2, 5]]), (3.0, 25.0));
    let frame = read.images["image_0"].get(3).unwrap();
    assert!(frame.iter().all(|v| v.abs_diff(30) < 3));
    assert!(source.read(0, false).unwrap().images.is_empty());
    let labelled = RldsOptions { skip_unlabeled: true, ..RldsOptions::default() };
    assert_eq!(RldsSource::open(folder.path(), &labelled).unwrap().episodes().len(), 1);
    let half = RldsOptions { split: "train[50%:]".to_owned(), ..RldsOptions::default() };
    assert_eq!(RldsSource::open(folder.path(), &half).unwrap().episodes()[0].len, 3);
}

#[test]
fn bridge_drops_both_ends_and_takes_differences_of_states() {
    let folder = dataset(vec![episode(6, "lift"), episode(2, "too short"), episode(1, "shorter")]);
    let source = RldsSource::open(folder.path(), &bridge()).unwrap();
    assert_eq!(source.episodes().len(), 1);
    let read = source.read(0, true).unwrap();
    assert_eq!(read.len(), 4);
    // Sample 0 is raw step 1: its motion is state[2] - state[1], its gripper that of action[1].
    assert_eq!(read.actions.row(0).to_vec(), [10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 1.0]);
    assert_eq!(read.proprio.row(0).to_vec(), [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 0.0, 16.0]);
    assert_eq!(read.images["primary"].len(), 4);
    assert!(read.images["primary"].get(0).unwrap().iter().all(|v| v.abs_diff(10) < 3));
}

#[test]
fn what_is_missing_or_cannot_be_read_is_named() {
    let mut torn = episode(4, "lift");
    torn.remove("steps/observation/state");
    let mut short = episode(4, "lift");
    short.insert("steps/action".to_owned(), floats(vec![0.0; 21]));
    let folder = dataset(vec![torn, short]);
    let source = RldsSource::open(folder.path(), &RldsOptions::default()).unwrap();
    let error = source.read(0, false).unwrap_err().to_string();
    assert!(error.contains("episode 0") && error.contains("steps/observation/state"), "{error}");
    let error = source.read(1, false).unwrap_err().to_string();
    assert!(error.contains("episode 1") && error.contains("21 numbers"), "{error}");
    let open =
        |options: RldsOptions| RldsSource::open(folder.path(), &options).unwrap_err().to_string();
    assert!(
        open(RldsOptions { split: "test".to_owned(), ..RldsOptions::default() }).contains("`test`")
    );
    let unknown = RldsOptions { standardise: Some("brigde".to_owned()), ..RldsOptions::default() };
    assert!(open(unknown).contains("bridge_orig"));
    let libero = RldsOptions { standardise: Some("libero".to_owned()), ..RldsOptions::default() };
    assert!(open(libero).contains("observation/image"));
    let info = fs::read_to_string(folder.path().join("dataset_info.json")).unwrap();
    fs::write(folder.path().join("dataset_info.json"), info.replace("\"2\"", "\"3\"")).unwrap();
    assert!(open(RldsOptions::default()).contains("2 records"));
}

#[derive(Deserialize)]
struct Golden {
    statistics: GoldenStatistics,
    episodes: Vec<GoldenEpisode>,
    normalised_first: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct GoldenStatistics {
    action: BTreeMap<String, Vec<serde_json::Value>>,
    proprio: BTreeMap<String, Vec<serde_json::Value>>,
    num_transitions: u64,
    num_trajectories: u64,
}

#[derive(Deserialize)]
struct GoldenEpisode {
    lang: String,
    raw_len: usize,
    action: Vec<Vec<f64>>,
    proprio: Vec<Vec<f64>>,
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

fn close(got: &Array2<f32>, expected: &[Vec<f64>], tolerance: f64) {
    assert_eq!((got.nrows(), got.ncols()), (expected.len(), expected[0].len()));
    for (row, expected) in got.rows().into_iter().zip(expected) {
        for (g, e) in row.iter().zip(expected) {
            assert!((f64::from(*g) - e).abs() <= tolerance, "{g} {e}");
        }
    }
}

/// `reference/datasets/bridge_octo_openvla_expected.json`: an independent numpy statement of OpenVLA's steps on the real
/// sample.
#[test]
fn the_bridge_sample_standardises_to_openvlas_golden_numbers() {
    let Some(folder) = shared("data/bridge_octo/bridge_dataset/1.0.0") else { return };
    let Some(golden) = shared("reference/datasets/bridge_octo_openvla_expected.json") else {
        return;
    };
    let golden: Golden = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let options = RldsOptions { skip_unlabeled: true, ..bridge() };
    let source = RldsSource::open(&folder, &options).unwrap();
    assert_eq!(source.episodes().len(), golden.episodes.len());
    for (e, expected) in golden.episodes.iter().enumerate() {
        let read = source.read(e, true).unwrap();
        assert_eq!(&*read.instruction, expected.lang);
        assert_eq!(read.len(), expected.raw_len - 2);
        close(&read.actions, &expected.action, 0.0);
        close(&read.proprio, &expected.proprio, 0.0);
        for frames in read.images.values() {
            assert_eq!(frames.len(), read.len());
            assert_eq!(frames.get(0).unwrap().dim(), (64, 64, 3));
        }
    }
    let source: Arc<dyn DemoSource> = Arc::new(source);
    let all = (0..source.episodes().len()).collect();
    let data = WindowDataset::new(source, all, WindowOptions::default()).unwrap();
    let mut stats = DataStatistics::of(&data).unwrap();
    assert_eq!(stats.action.count, golden.statistics.num_transitions);
    assert_eq!(stats.num_trajectories, golden.statistics.num_trajectories);
    for (ours, theirs) in
        [(&stats.action, &golden.statistics.action), (&stats.proprio, &golden.statistics.proprio)]
    {
        for (name, got) in [
            ("mean", &ours.mean),
            ("std", &ours.std),
            ("min", &ours.min),
            ("max", &ours.max),
            ("q01", &ours.q01),
            ("q99", &ours.q99),
        ] {
            for (g, e) in got.iter().zip(&theirs[name]) {
                // The golden mean and deviation were summed in f32.
                let tolerance = if name == "mean" || name == "std" { 1e-6 } else { 1e-7 };
                assert!((g - e.as_f64().unwrap()).abs() < tolerance, "{name}: {g} {e}");
            }
        }
    }
    stats.action_mask[6] = false;
    let mask: Vec<bool> =
        golden.statistics.action["mask"].iter().map(|m| m.as_bool().unwrap()).collect();
    assert_eq!(stats.action_mask, mask);
    let mut rows =
        data.actions().slice(ndarray::s![..golden.normalised_first.len(), ..]).to_owned();
    let normalizer = stats.action_normalizer(simloop_policies::normalize::NormMode::Quantile);
    normalizer.normalize_rows(rows.view_mut());
    close(&rows, &golden.normalised_first, 2e-6);
}

#[test]
fn the_bridge_sample_reads_raw_with_four_cameras() {
    let Some(folder) = shared("data/bridge_octo/bridge_dataset") else { return };
    for split in ["train", "val"] {
        let options = RldsOptions { split: split.to_owned(), ..RldsOptions::default() };
        let source = RldsSource::open(&folder, &options).unwrap();
        assert_eq!(source.episodes().len(), 25);
        assert_eq!(source.spec().cameras.len(), 4);
        let read = source.read(24, true).unwrap();
        assert_eq!((read.len(), read.proprio.ncols(), read.actions.ncols()), (10, 7, 7));
        assert!(source.notes().unwrap()[0].contains("25 of 25"));
    }
}
