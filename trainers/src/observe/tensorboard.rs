//! TensorBoard event files, written without TensorFlow.
//!
//! A file is a TFRecord of events ([`crate::data::tfrecord`]). Messages: `tensorflow/core/util/event.proto`,
//! `framework/summary.proto`.

use std::fs::{File, create_dir_all};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message as _;

use super::plot;
use crate::data::tfrecord::write_record;
use crate::observer::{TrainEvent, TrainObserver};

/// Example images per validation.
const IMAGES: usize = 4;

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionLog {
    /// 1: START. Readers forget events of this step and later from earlier files: what a resumed run repeats.
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "Content", tags = "2, 4")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    Scalar(f32),
    #[prost(message, tag = "4")]
    Image(Image),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    png: Vec<u8>,
}

/// Writes one event file per process into a folder.
pub struct TensorBoard {
    dir: PathBuf,
    file: Option<BufWriter<File>>,
}

impl TensorBoard {
    /// In the folder `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: None }
    }

    fn start(&mut self, update: u64) -> io::Result<()> {
        create_dir_all(&self.dir)?;
        let now = now();
        // TensorBoard looks for "tfevents" in the name and reads files of a folder in order of name.
        let name = format!("events.out.tfevents.{:010}.simloop.{}", now as u64, std::process::id());
        self.file = Some(BufWriter::new(File::create(self.dir.join(name))?));
        self.put(0, What::FileVersion("brain.Event:2".to_owned()))?;
        if update > 0 {
            self.put(update as i64 + 1, What::SessionLog(SessionLog { status: 1 }))?;
        }
        Ok(())
    }

    fn put(&mut self, step: i64, what: What) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let event = Event { wall_time: now(), step, what: Some(what) };
        write_record(file, &event.encode_to_vec())
    }

    fn write(&mut self, event: &TrainEvent<'_>) -> io::Result<()> {
        if let TrainEvent::Started { update, .. } = event {
            self.start(*update)?;
        }
        let mut values = Vec::new();
        for (tag, value) in event.metrics().into_iter().flatten() {
            let content = Some(Content::Scalar(*value as f32));
            values.push(SummaryValue { tag: (*tag).to_owned(), content });
        }
        if let TrainEvent::Validated { examples, .. } = event {
            for (i, example) in examples.iter().take(IMAGES).enumerate() {
                let (png, side) = plot::png(example).map_err(io::Error::other)?;
                let image = Image { height: side, width: side, colorspace: 3, png };
                let content = Some(Content::Image(image));
                values.push(SummaryValue { tag: format!("val/example_{i}"), content });
            }
        }
        if !values.is_empty() {
            self.put(event.update() as i64, What::Summary(Summary { value: values }))?;
        }
        match (event, &mut self.file) {
            (TrainEvent::Dropped { .. }, _) | (_, None) => Ok(()),
            (_, Some(file)) => file.flush(),
        }
    }
}

impl TrainObserver for TensorBoard {
    fn name(&self) -> &'static str {
        "TensorBoard"
    }

    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String> {
        self.write(event).map_err(|e| format!("write into `{}`: {e}", self.dir.display()))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::Example;
    use simloop_algos::bc::Metrics;
    use std::process::Command;

    fn example() -> Example {
        Example {
            instruction: "push the T".to_owned(),
            episode: 3,
            step: 7,
            names: vec!["x".to_owned(), "y".to_owned()],
            predicted: vec![vec![0.0, 0.0], vec![1.0, 2.0], vec![2.0, 2.0]],
            demonstrated: vec![vec![0.0, 0.0], vec![1.0, 1.0], vec![2.0, 3.0]],
            valid: 3,
        }
    }

    /// Values that f32 holds exactly, awkward ones among them.
    fn value(update: u64) -> f64 {
        f64::from((update as f32 * 0.37).sin() * 10f32.powi(update as i32 % 60 - 30))
    }

    fn write_run(dir: &Path) {
        // The first process dies after update 60; the second goes on from a checkpoint at 40.
        for (start, end) in [(0, 60), (40, 100)] {
            let mut board = TensorBoard::new(dir);
            board.on_event(&TrainEvent::Started { update: start, total: 100, name: "x" }).unwrap();
            for update in start + 1..=end {
                let metrics = Metrics::from([
                    ("train/loss", value(update)),
                    ("train/lr", value(update + 1000)),
                ]);
                board.on_event(&TrainEvent::Updated { update, metrics: &metrics }).unwrap();
            }
            let metrics = Metrics::from([("val/loss", 0.5)]);
            let examples = [example()];
            let event =
                TrainEvent::Validated { update: end, metrics: &metrics, examples: &examples };
            board.on_event(&event).unwrap();
            drop(board);
            // File names hold seconds.
            std::thread::sleep(std::time::Duration::from_millis(1100));
        }
    }

    #[test]
    fn an_event_file_is_a_tfrecord_of_events() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::new(dir.path());
        board.on_event(&TrainEvent::Started { update: 0, total: 1, name: "x" }).unwrap();
        let metrics = Metrics::from([("train/loss", 0.5)]);
        board.on_event(&TrainEvent::Updated { update: 1, metrics: &metrics }).unwrap();
        let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let records = crate::data::tfrecord::TfRecords::open(&file).unwrap();
        let event = |i| Event::decode(records.read(i).unwrap().as_slice()).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(event(0).what, Some(What::FileVersion("brain.Event:2".to_owned())));
        let content = Some(Content::Scalar(0.5));
        let value = vec![SummaryValue { tag: "train/loss".to_owned(), content }];
        assert_eq!((event(1).step, event(1).what), (1, Some(What::Summary(Summary { value }))));
    }

    #[test]
    fn tensorboard_reads_every_scalar_back_equal() {
        let Ok(python) = std::env::var("SIMLOOP_TENSORBOARD_PYTHON") else {
            eprintln!("skipped: SIMLOOP_TENSORBOARD_PYTHON names no Python with tensorboard");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        write_run(dir.path());
        let script = "
import sys, json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'images': 0})
events.Reload()
scalars = {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()['scalars']}
images = {t: [(e.step, e.width, e.height, e.encoded_image_string[:4].hex()) for e in events.Images(t)]
          for t in events.Tags()['images']}
print(json.dumps([scalars, images]))
";
        let out = Command::new(python).args(["-c", script]).arg(dir.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let [scalars, images]: [serde_json::Value; 2] =
            serde_json::from_slice(&out.stdout).unwrap();
        for (tag, shift) in [("train/loss", 0), ("train/lr", 1000)] {
            let read = scalars[tag].as_array().unwrap();
            // What the dead process wrote after the checkpoint is purged: every update once.
            let steps: Vec<u64> = read.iter().map(|e| e[0].as_u64().unwrap()).collect();
            assert_eq!(steps, (1..=100).collect::<Vec<u64>>());
            for entry in read {
                let update = entry[0].as_u64().unwrap();
                let (got, expected) = (entry[1].as_f64().unwrap(), value(update + shift));
                assert_eq!(got.to_bits(), expected.to_bits(), "{tag} {update}");
            }
        }
        assert_eq!(scalars["val/loss"], serde_json::json!([[100, 0.5]]));
        let image = &images["val/example_0"][0];
        assert_eq!((image[0].as_u64(), image[3].as_str()), (Some(100), Some("89504e47")));
    }
}
