//! What `stats.json` says of a feature, over all frames.
//!
//! lerobot 0.4.4 averages the quantiles of episodes; these are the quantiles of the data (numpy's `linear`).

use ndarray::{ArrayView2, Axis};
use serde_json::{Value, json};
use simloop_envs::Frame;

/// lerobot's DEFAULT_QUANTILES.
const QUANTILES: [(&str, f64); 5] =
    [("q01", 0.01), ("q10", 0.10), ("q50", 0.50), ("q90", 0.90), ("q99", 0.99)];

/// Statistics of vectors; keeps every number.
#[derive(Debug)]
pub(super) struct NumberSummary {
    columns: Vec<Vec<f32>>,
}

impl NumberSummary {
    pub(super) fn new(width: usize) -> Self {
        Self { columns: vec![Vec::new(); width] }
    }

    /// Adds rows, `[T, D]`.
    pub(super) fn add(&mut self, rows: ArrayView2<'_, f32>) {
        for (column, values) in self.columns.iter_mut().zip(rows.axis_iter(Axis(1))) {
            column.extend(values);
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut stats = serde_json::Map::new();
        let mut set = |name: &str, of: &dyn Fn(&[f32]) -> f64| {
            let values: Vec<f64> = self.columns.iter().map(|c| of(c)).collect();
            stats.insert(name.to_owned(), json!(values));
        };
        let mean = |c: &[f32]| c.iter().map(|v| f64::from(*v)).sum::<f64>() / c.len() as f64;
        set("min", &|c| f64::from(c.iter().copied().fold(f32::INFINITY, f32::min)));
        set("max", &|c| f64::from(c.iter().copied().fold(f32::NEG_INFINITY, f32::max)));
        set("mean", &mean);
        set("std", &|c| {
            let m = mean(c);
            (c.iter().map(|v| (f64::from(*v) - m).powi(2)).sum::<f64>() / c.len() as f64).sqrt()
        });
        let mut sorted = self.columns.clone();
        for column in &mut sorted {
            column.sort_by(f32::total_cmp);
        }
        for (name, q) in QUANTILES {
            let values: Vec<f64> =
                sorted.iter().map(|c| linear(c.len(), q, |i| f64::from(c[i]))).collect();
            stats.insert(name.to_owned(), json!(values));
        }
        let count = self.columns.first().map_or(0, Vec::len);
        stats.insert("count".to_owned(), json!([count]));
        Value::Object(stats)
    }
}

/// Statistics of pixels per channel: a histogram holds them exactly.
#[derive(Debug)]
pub(super) struct ImageSummary {
    counts: [[u64; 256]; 3],
    frames: u64,
}

impl Default for ImageSummary {
    fn default() -> Self {
        Self { counts: [[0; 256]; 3], frames: 0 }
    }
}

impl ImageSummary {
    pub(super) fn add(&mut self, frame: &Frame) {
        let pixels = frame.as_standard_layout();
        for pixel in pixels.as_slice().unwrap_or_default().chunks_exact(3) {
            for (counts, value) in self.counts.iter_mut().zip(pixel) {
                counts[usize::from(*value)] += 1;
            }
        }
        self.frames += 1;
    }

    /// `[3, 1, 1]` each, in `[0, 1]`; `count` is of frames.
    pub(super) fn to_json(&self) -> Value {
        let mut stats = serde_json::Map::new();
        let mut set = |name: &str, of: &dyn Fn(&[u64; 256]) -> f64| {
            let values: Vec<Value> = self.counts.iter().map(|c| json!([[of(c) / 255.0]])).collect();
            stats.insert(name.to_owned(), Value::Array(values));
        };
        let total = |c: &[u64; 256]| c.iter().sum::<u64>();
        let moment = |c: &[u64; 256], of: &dyn Fn(f64) -> f64| {
            let sum: f64 = c.iter().enumerate().map(|(v, n)| of(v as f64) * *n as f64).sum();
            sum / total(c) as f64
        };
        let at = |c: &[u64; 256], rank: u64| {
            let mut below = 0;
            let value = c.iter().position(|n| {
                below += n;
                below > rank
            });
            value.unwrap_or(255) as f64
        };
        set("min", &|c| at(c, 0));
        set("max", &|c| at(c, total(c).saturating_sub(1)));
        set("mean", &|c| moment(c, &|v| v));
        set("std", &|c| {
            let mean = moment(c, &|v| v);
            moment(c, &|v| (v - mean).powi(2)).sqrt()
        });
        for (name, q) in QUANTILES {
            set(name, &|c| linear(total(c) as usize, q, |i| at(c, i as u64)));
        }
        stats.insert("count".to_owned(), json!([self.frames]));
        Value::Object(stats)
    }
}

/// numpy's `quantile(…, method="linear")` of `n` sorted values.
fn linear(n: usize, q: f64, value: impl Fn(usize) -> f64) -> f64 {
    let Some(last) = n.checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let low = at.floor() as usize;
    let (a, b) = (value(low), value((low + 1).min(last)));
    a + (b - a) * (at - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn quantiles_are_of_all_rows_and_not_the_mean_of_the_episodes_quantiles() {
        // Episodes 0..100 and 1000..1100: numpy.quantile over both, linear.
        let mut summary = NumberSummary::new(1);
        for start in [0, 1000] {
            let rows: Vec<f32> = (0..100).map(|i| (start + i) as f32).collect();
            summary.add(ArrayView2::from_shape((100, 1), &rows).unwrap());
        }
        let stats = summary.to_json();
        assert_eq!(stats["q01"][0], json!(1.99));
        assert_eq!(stats["q50"][0], json!(549.5));
        assert!((stats["q99"][0].as_f64().unwrap() - 1097.01).abs() < 1e-9);
        // What lerobot's aggregation gives: (0.99 + 1000.99) / 2.
        assert_ne!(stats["q01"][0], json!(500.99));
        assert_eq!(stats["count"], json!([200]));
    }

    #[test]
    fn pixel_statistics_are_those_of_the_pixels() {
        let frame = Array3::from_shape_fn((2, 2, 3), |(y, x, c)| (10 * (2 * y + x) + c) as u8);
        let mut summary = ImageSummary::default();
        summary.add(&frame.into_shared());
        let stats = summary.to_json();
        // Channel 0: 0, 10, 20, 30.
        assert_eq!(stats["mean"][0][0][0], json!(15.0 / 255.0));
        assert_eq!(stats["max"][0][0][0], json!(30.0 / 255.0));
        assert_eq!(stats["q50"][0][0][0], json!(15.0 / 255.0));
        let std = stats["std"][0][0][0].as_f64().unwrap();
        assert!((std - 125f64.sqrt() / 255.0).abs() < 1e-12);
        assert_eq!(stats["count"], json!([1]));
    }
}
