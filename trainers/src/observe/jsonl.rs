//! `metrics.jsonl`: one object per event, `{"update": …, "unix_secs": …, "train/loss": …}`, and `predictions.jsonl`.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::observer::{TrainEvent, TrainObserver};

/// The metrics' file.
pub(super) const METRICS_FILE: &str = "metrics.jsonl";
/// The examples' file.
pub(super) const PREDICTIONS_FILE: &str = "predictions.jsonl";

/// Appends to the files of a run. A resumed run first drops what was written after its checkpoint.
pub struct MetricsFile {
    root: PathBuf,
    metrics: Option<File>,
}

impl MetricsFile {
    /// In the folder `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), metrics: None }
    }

    fn start(&mut self, update: u64) -> std::io::Result<()> {
        for name in [METRICS_FILE, PREDICTIONS_FILE] {
            keep_until(&self.root.join(name), update)?;
        }
        let path = self.root.join(METRICS_FILE);
        self.metrics = Some(OpenOptions::new().create(true).append(true).open(path)?);
        Ok(())
    }

    fn write(&mut self, event: &TrainEvent<'_>) -> std::io::Result<()> {
        if let TrainEvent::Started { update, .. } = event {
            self.start(*update)?;
        }
        let mut line = Map::new();
        line.insert("update".to_owned(), json!(event.update()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        line.insert("unix_secs".to_owned(), json!(now.as_secs_f64()));
        match event {
            TrainEvent::Dropped { tensor, .. } => {
                line.insert("dropped".to_owned(), json!(tensor));
            }
            TrainEvent::Finished { why, .. } => {
                line.insert("finished".to_owned(), json!(why));
            }
            _ => match event.metrics() {
                Some(metrics) => {
                    line.extend(metrics.iter().map(|(k, v)| ((*k).to_owned(), json!(v))));
                }
                None => return Ok(()),
            },
        }
        if let Some(file) = &mut self.metrics {
            // One write per line: a reader never sees half of one, short of a crash.
            file.write_all(format!("{}\n", Value::Object(line)).as_bytes())?;
        }
        if let TrainEvent::Validated { update, examples, .. } = event {
            let mut text = String::new();
            for example in *examples {
                let mut value = serde_json::to_value(example)?;
                value["update"] = json!(update);
                text.push_str(&value.to_string());
                text.push('\n');
            }
            let path = self.root.join(PREDICTIONS_FILE);
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    }
}

/// Drops lines of updates after `update`, and a last line that a crash cut short.
fn keep_until(path: &Path, update: u64) -> std::io::Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let mut kept = String::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        if value["update"].as_u64().is_some_and(|u| u <= update) && value.get("finished").is_none()
        {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    let tmp = path.with_extension(format!("jsonl.tmp-{}", std::process::id()));
    std::fs::write(&tmp, kept)?;
    std::fs::rename(tmp, path)
}

impl TrainObserver for MetricsFile {
    fn name(&self) -> &'static str {
        METRICS_FILE
    }

    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String> {
        self.write(event).map_err(|e| format!("write `{}`: {e}", self.root.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simloop_algos::bc::Metrics;

    fn updates(root: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(root.join(METRICS_FILE)).unwrap();
        let value = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        text.lines().map(|l| value(l)["update"].as_u64().unwrap()).collect()
    }

    #[test]
    fn a_resumed_run_rewrites_what_came_after_its_checkpoint() {
        let root = tempfile::tempdir().unwrap();
        let metrics = Metrics::from([("train/loss", 0.25)]);
        let mut file = MetricsFile::new(root.path());
        file.on_event(&TrainEvent::Started { update: 0, total: 9, name: "x" }).unwrap();
        for update in [1, 2, 3] {
            file.on_event(&TrainEvent::Updated { update, metrics: &metrics }).unwrap();
        }
        // The process dies in the middle of a line.
        let path = root.path().join(METRICS_FILE);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"update\": 4, \"tra");
        std::fs::write(&path, text).unwrap();
        let mut file = MetricsFile::new(root.path());
        file.on_event(&TrainEvent::Started { update: 2, total: 9, name: "x" }).unwrap();
        file.on_event(&TrainEvent::Updated { update: 3, metrics: &metrics }).unwrap();
        file.on_event(&TrainEvent::Finished { update: 3, why: "done" }).unwrap();
        assert_eq!(updates(root.path()), [1, 2, 3, 3]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"train/loss\":0.25") && text.contains("\"finished\":\"done\""));
    }

    #[test]
    fn numbers_that_are_not_finite_become_null() {
        let root = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::new(root.path());
        file.on_event(&TrainEvent::Started { update: 0, total: 9, name: "x" }).unwrap();
        let metrics = Metrics::from([("train/loss", f64::NAN)]);
        file.on_event(&TrainEvent::Updated { update: 1, metrics: &metrics }).unwrap();
        let text = std::fs::read_to_string(root.path().join(METRICS_FILE)).unwrap();
        assert!(text.contains("\"train/loss\":null"), "{text}");
    }
}
