//! Comparison of recorded frames with ours.

use std::fs::File;
use std::path::Path;

use ndarray::{Array1, Array4, Axis};
use ndarray_npy::NpzReader;

use super::goals::PushtGoals;
use super::recording::Recording;
use super::render::Painter;
use super::replay::FrameReport;
use crate::EnvError;

/// Renders the states whose frames were recorded and compares.
pub(super) fn compare(path: &Path, recording: &Recording) -> Result<FrameReport, EnvError> {
    let broken = |detail: String| EnvError::File { path: path.to_owned(), detail };
    let file = File::open(path).map_err(|e| broken(e.to_string()))?;
    let mut npz =
        NpzReader::new(file).map_err(|e| broken(format!("{e}; expected a numpy .npz archive")))?;
    let names = npz.names().map_err(|e| broken(e.to_string()))?;
    let mut tally = Tally::default();
    let mut painter: Option<Painter> = None;
    for case in &recording.cases {
        let key = format!("{}_frames", case.name);
        if !names.contains(&key) {
            continue;
        }
        let explain = |what: &str, e: String| broken(format!("array `{what}`: {e}"));
        let frames: Array4<u8> = npz.by_name(&key).map_err(|e| explain(&key, e.to_string()))?;
        let key = format!("{}_idx", case.name);
        let index: Array1<i64> = npz.by_name(&key).map_err(|e| explain(&key, e.to_string()))?;
        let [count, height, width, channels] = *frames.shape() else { continue };
        if height != width || height == 0 || height > 4096 || channels != 3 || count != index.len()
        {
            return Err(explain(
                &key,
                format!(
                    "{} indices for frames of shape {:?}; expected square RGB frames, one index each",
                    index.len(),
                    frames.shape()
                ),
            ));
        }
        let painter = match &mut painter {
            Some(painter) if painter.size() == height => painter,
            slot => slot.insert(Painter::new(height as u32, PushtGoals::One.all())),
        };
        for (frame, &t) in frames.axis_iter(Axis(0)).zip(&index) {
            let step = usize::try_from(t).ok().filter(|&t| t <= case.len()).ok_or_else(|| {
                explain(&key, format!("index {t} is beyond the {} steps of the case", case.len()))
            })?;
            let ours = painter.paint(&case.state(step));
            tally.add(frame.iter().copied(), ours.iter().copied());
        }
    }
    tally.report().ok_or_else(|| broken("it holds no `<case>_frames` of this recording".to_owned()))
}

#[derive(Default)]
struct Tally {
    frames: usize,
    sum: f64,
    worst: f64,
    exact: usize,
    pixels: usize,
}

impl Tally {
    fn add(&mut self, theirs: impl Iterator<Item = u8>, ours: impl Iterator<Item = u8>) {
        let differences: Vec<u8> = theirs.zip(ours).map(|(a, b)| a.abs_diff(b)).collect();
        let total: u64 = differences.iter().map(|&d| u64::from(d)).sum();
        let mean = total as f64 / differences.len().max(1) as f64;
        let exact = differences.chunks_exact(3).filter(|rgb| *rgb == [0; 3]).count();
        self.frames += 1;
        self.sum += mean;
        self.worst = self.worst.max(mean);
        self.exact += exact;
        self.pixels += differences.len() / 3;
    }

    fn report(&self) -> Option<FrameReport> {
        (self.frames > 0).then(|| FrameReport {
            frames: self.frames,
            mean_abs_diff: self.sum / self.frames as f64,
            worst_frame_mean_abs_diff: self.worst,
            exact_pixels: self.exact as f64 / self.pixels as f64,
        })
    }
}
