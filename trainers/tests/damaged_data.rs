//! Damaged data sets: 1,000 truncations and flipped bits per format, on small data sets made here. A reader answers or
//! refuses; it does not panic, hang or allocate more than twice the data set plus 100 MB.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking and report"
)]

#[path = "common/damage.rs"]
mod damage;
#[path = "common/zarr_writer.rs"]
mod zarr_writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use damage::{Outcome, damage};
use prost::Message as _;
use simloop_envs::pusht::PushtObs;
use simloop_envs::testing::alloc;
use simloop_trainers::data::example::{
    BytesList, Example, Feature, Features, FloatList, Int64List, Kind,
};
use simloop_trainers::data::tfrecord::write_record;
use simloop_trainers::data::{OpenOptions, PushtZarr, RldsOptions, build_manifest, open_source};

#[global_allocator]
static ALLOCATOR: alloc::Largest = alloc::Largest;

/// The largest allocation is counted over all threads, so tests wait for each other.
static ALONE: Mutex<()> = Mutex::new(());

const DAMAGES: usize = 1000;

/// Opens a data set and reads everything, every frame decoded.
fn read_all(path: &Path, options: &OpenOptions) -> Result<(), String> {
    let source = open_source(path, options).map_err(|e| e.to_string())?;
    for e in 0..source.episodes().len() {
        let episode = source.read(e, true).map_err(|e| e.to_string())?;
        for frames in episode.images.values() {
            for t in 0..frames.len() {
                frames.get(t)?;
            }
        }
    }
    Ok(())
}

fn report(format: &str, outcome: &Outcome) {
    println!("{format}: {outcome:?}");
    assert_eq!((outcome.tried, outcome.refused + outcome.read), (DAMAGES, DAMAGES));
    assert!(outcome.refused > DAMAGES / 2, "{outcome:?}");
    // Data sets of some kilobytes: far below the bar.
    assert!(outcome.largest < 10_000_000, "{outcome:?}");
}

#[test]
fn damaged_pusht_zarr() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    zarr_writer::write_pusht(folder.path(), &[3, 4, 6], 8);
    let options = OpenOptions { pusht_obs: PushtObs::PixelsAgentPos, ..OpenOptions::default() };
    report("PushT zarr", &damage(folder.path(), DAMAGES, || read_all(folder.path(), &options)));
}

fn image(shade: u8) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    let pixel = |x, y| image::Rgb([shade, (x * 20) as u8, (y * 20) as u8]);
    image::RgbImage::from_fn(12, 10, pixel).write_to(&mut file, image::ImageFormat::Jpeg).unwrap();
    file.into_inner()
}

fn write_rlds(folder: &Path) {
    let tensor = |n: usize| {
        format!(
            r#"{{"tensor": {{"shape": {{"dimensions": ["{n}"]}}, "dtype": "float32", "encoding": "none"}}}}"#
        )
    };
    let features = format!(
        r#"{{"featuresDict": {{"features": {{"steps": {{"sequence": {{"feature": {{"featuresDict": {{"features": {{
            "is_first": {{"tensor": {{"shape": {{}}, "dtype": "bool", "encoding": "none"}}}},
            "action": {}, "language_instruction": {{"text": {{}}}},
            "observation": {{"featuresDict": {{"features": {{"state": {},
                "image_0": {{"image": {{"shape": {{"dimensions": ["10", "12", "3"]}}, "encodingFormat": "jpeg"}}}},
                "image_1": {{"image": {{"shape": {{"dimensions": ["-1", "-1", "3"]}}, "encodingFormat": "jpeg"}}}}
            }}}}}}
        }}}}}}}}}}}}}}}}"#,
        tensor(7),
        tensor(7)
    );
    let info = r#"{"name": "toy", "fileFormat": "tfrecord", "splits": [{"name": "train", "shardLengths": ["3", "1"]}]}"#;
    std::fs::write(folder.join("features.json"), features).unwrap();
    std::fs::write(folder.join("dataset_info.json"), info).unwrap();
    let bytes = |values: Vec<Vec<u8>>| {
        Kind::Bytes(BytesList { value: values.into_iter().map(Into::into).collect() })
    };
    for (shard, lens) in [vec![4, 6, 3], vec![5]].iter().enumerate() {
        let mut file = Vec::new();
        for &t in lens {
            let frames = || bytes((0..t).map(|k| image(k as u8 * 9)).collect());
            let floats =
                || Kind::Float(FloatList { value: (0..t * 7).map(|v| v as f32).collect() });
            let steps = [
                (
                    "is_first",
                    Kind::Int64(Int64List { value: (0..t).map(|k| i64::from(k == 0)).collect() }),
                ),
                ("action", floats()),
                ("observation/state", floats()),
                ("observation/image_0", frames()),
                ("observation/image_1", frames()),
                ("language_instruction", bytes(vec![b"lift the cup".to_vec(); t])),
            ];
            let feature: BTreeMap<String, Feature> = steps
                .into_iter()
                .map(|(key, kind)| (format!("steps/{key}"), Feature { kind: Some(kind) }))
                .collect();
            let example = Example { features: Some(Features { feature }) };
            write_record(&mut file, &example.encode_to_vec()).unwrap();
        }
        std::fs::write(folder.join(format!("toy-train.tfrecord-0000{shard}-of-00002")), file)
            .unwrap();
    }
}

#[test]
fn damaged_rlds() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    write_rlds(folder.path());
    for standardise in [None, Some("bridge_orig".to_owned())] {
        let rlds = RldsOptions { standardise, ..RldsOptions::default() };
        let options = OpenOptions { rlds, ..OpenOptions::default() };
        report("RLDS", &damage(folder.path(), DAMAGES, || read_all(folder.path(), &options)));
    }
}

/// The records' checksums catch nearly everything, so the parser behind them gets damaged payloads of its own.
#[test]
fn damaged_examples_behind_right_checksums() {
    let _alone = ALONE.lock();
    let folder = tempfile::tempdir().unwrap();
    write_rlds(folder.path());
    let shard = folder.path().join("toy-train.tfrecord-00001-of-00002");
    let whole = std::fs::read(&shard).unwrap();
    let payload = whole[12..whole.len() - 4].to_vec();
    let scratch = tempfile::tempdir().unwrap();
    let raw = scratch.path().join("payload");
    std::fs::write(&raw, &payload).unwrap();
    let outcome = damage(scratch.path(), DAMAGES, || {
        let mut file = Vec::new();
        write_record(&mut file, &std::fs::read(&raw).unwrap()).unwrap();
        std::fs::write(&shard, file).unwrap();
        read_all(folder.path(), &OpenOptions::default())
    });
    println!("examples: {outcome:?}");
    assert_eq!(outcome.tried, DAMAGES);
    // A flipped bit of a number is a number.
    assert!(outcome.refused > DAMAGES / 3, "{outcome:?}");
}

#[test]
fn damaged_manifest() {
    let _alone = ALONE.lock();
    let (pusht, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    zarr_writer::write_pusht(pusht.path(), &[3, 4, 6], 8);
    let source = PushtZarr::open(pusht.path(), PushtObs::PixelsAgentPos).unwrap();
    build_manifest(&source, folder.path(), |_| false).unwrap();
    report(
        "manifest",
        &damage(folder.path(), DAMAGES, || read_all(folder.path(), &OpenOptions::default())),
    );
}
