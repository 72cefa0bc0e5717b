//! Units to numbers of order one and back, dimension by dimension, with the statistics saved beside the policy.

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::PolicyError;

/// Which statistics scale a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormMode {
    /// Left as it is.
    Identity,
    /// `(x - mean) / (std + 1e-8)`.
    MeanStd,
    /// `[min, max]` to `[-1, 1]`.
    #[default]
    MinMax,
    /// `[q01, q99]` to `[-1, 1]`, clipped (OpenVLA `BOUNDS_Q99`).
    Quantile,
    /// The space's own bounds to `[-1, 1]`.
    Bounds,
}

/// Statistics of one vector, `[D]` each; f64, so that files round-trip.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// Mean.
    pub mean: Vec<f64>,
    /// Population standard deviation.
    pub std: Vec<f64>,
    /// Minimum.
    pub min: Vec<f64>,
    /// Maximum.
    pub max: Vec<f64>,
    /// 1 % quantile, linear interpolation (numpy's default).
    pub q01: Vec<f64>,
    /// 99 % quantile.
    pub q99: Vec<f64>,
    /// How many vectors.
    pub count: u64,
}

impl Stats {
    /// Over the rows of `[N, D]`, `N >= 1`.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for no rows; [`PolicyError::NonFinite`] for NaN or infinity.
    pub fn of(rows: ArrayView2<'_, f32>) -> Result<Self, PolicyError> {
        let n = rows.nrows();
        if n == 0 {
            return Err(PolicyError::Config {
                detail: "compute statistics: there is not one row".to_owned(),
            });
        }
        let mut stats = Self { count: n as u64, ..Self::default() };
        for (d, column) in rows.axis_iter(Axis(1)).enumerate() {
            let mut values: Vec<f64> = column.iter().map(|&v| f64::from(v)).collect();
            if values.iter().any(|v| !v.is_finite()) {
                return Err(PolicyError::NonFinite { tensor: format!("data column {d}") });
            }
            let mean = values.iter().sum::<f64>() / n as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
            values.sort_by(f64::total_cmp);
            stats.mean.push(mean);
            stats.std.push(variance.sqrt());
            stats.min.push(values[0]);
            stats.max.push(values[n - 1]);
            stats.q01.push(quantile(&values, 0.01));
            stats.q99.push(quantile(&values, 0.99));
        }
        Ok(stats)
    }
}

/// numpy's `quantile(…, method="linear")` of sorted values.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

/// Scales one vector and back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalizer {
    /// Which statistics scale it.
    pub mode: NormMode,
    /// The statistics, `[D]` each.
    pub stats: Stats,
    /// Lower bounds, for [`NormMode::Bounds`].
    pub low: Vec<f64>,
    /// Upper bounds.
    pub high: Vec<f64>,
    /// Dimensions that are scaled at all (a gripper often is not), `[D]`.
    pub mask: Vec<bool>,
}

impl Normalizer {
    /// A normaliser of `D` dimensions, all of them scaled.
    pub fn new(mode: NormMode, stats: Stats, low: Vec<f64>, high: Vec<f64>) -> Self {
        let mask = vec![true; stats.mean.len()];
        Self { mode, stats, low, high, mask }
    }

    /// `D`.
    pub fn len(&self) -> usize {
        self.mask.len()
    }

    /// Whether it has no dimension.
    pub fn is_empty(&self) -> bool {
        self.mask.is_empty()
    }

    /// Checks that all lists have one length and all numbers are finite (bounds only where they are used).
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming the list.
    pub fn validate(&self, what: &str) -> Result<(), PolicyError> {
        let d = self.len();
        let mut lists = vec![
            ("mean", &self.stats.mean),
            ("std", &self.stats.std),
            ("min", &self.stats.min),
            ("max", &self.stats.max),
            ("q01", &self.stats.q01),
            ("q99", &self.stats.q99),
        ];
        if self.mode == NormMode::Bounds {
            lists.extend([("low", &self.low), ("high", &self.high)]);
        }
        for (name, list) in lists {
            if list.len() != d || list.iter().any(|v| !v.is_finite()) {
                return Err(PolicyError::Config {
                    detail: format!(
                        "use the normaliser of {what}: `{name}` must hold {d} finite numbers, it holds {list:?}"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Per dimension: `normalised = (x - offset) * scale`.
    fn affine(&self) -> (Vec<f32>, Vec<f32>) {
        (0..self.len())
            .map(|d| {
                let between = |low: f64, high: f64| {
                    // A dimension that never moves is only shifted: no division by zero, no blown-up noise.
                    let half = (high - low) / 2.0;
                    (f64::midpoint(low, high), if half > 1e-7 { 1.0 / half } else { 1.0 })
                };
                let (offset, scale) = if self.mask[d] {
                    match self.mode {
                        NormMode::Identity => (0.0, 1.0),
                        NormMode::MeanStd => (self.stats.mean[d], 1.0 / (self.stats.std[d] + 1e-8)),
                        NormMode::MinMax => between(self.stats.min[d], self.stats.max[d]),
                        NormMode::Quantile => between(self.stats.q01[d], self.stats.q99[d]),
                        NormMode::Bounds => between(self.low[d], self.high[d]),
                    }
                } else if matches!(self.mode, NormMode::MinMax | NormMode::Quantile)
                    && self.stats.min[d] == self.stats.max[d]
                {
                    // OpenVLA sets dimensions that never move to 0 even where the mask leaves them alone.
                    (self.stats.min[d], 1.0)
                } else {
                    (0.0, 1.0)
                };
                (offset as f32, scale as f32)
            })
            .unzip()
    }

    /// Scales the rows of `[N, D]` in place, raw units to normalised; equal to [`Affine::normalize`] for numbers that are
    /// not tensors yet. Columns beyond `D` are left alone.
    pub fn normalize_rows(&self, mut rows: ArrayViewMut2<'_, f32>) {
        let (offset, scale) = self.affine();
        let clip = self.mode == NormMode::Quantile;
        for mut row in rows.rows_mut() {
            for (d, v) in row.iter_mut().enumerate().take(self.len()) {
                *v = (*v - offset[d]) * scale[d];
                if clip && self.mask[d] {
                    *v = v.clamp(-1.0, 1.0);
                }
            }
        }
    }

    /// The transform as tensors on `device`.
    pub fn on(&self, device: Device) -> Affine {
        let (offset, scale) = self.affine();
        let clip = (self.mode == NormMode::Quantile).then(|| {
            let bound = |sign: f32| -> Tensor {
                let bounds: Vec<f32> = self
                    .mask
                    .iter()
                    .map(|&m| if m { sign } else { sign * f32::INFINITY })
                    .collect();
                Tensor::from_slice(&bounds).to_device(device)
            };
            (bound(-1.0), bound(1.0))
        });
        Affine {
            offset: Tensor::from_slice(&offset).to_device(device),
            scale: Tensor::from_slice(&scale).to_device(device),
            clip,
        }
    }
}

/// A [`Normalizer`] ready to use.
#[derive(Debug)]
pub struct Affine {
    offset: Tensor,
    scale: Tensor,
    clip: Option<(Tensor, Tensor)>,
}

impl Affine {
    /// `[.., D]` raw units to normalised.
    pub fn normalize(&self, x: &Tensor) -> Tensor {
        let y = (x - &self.offset) * &self.scale;
        match &self.clip {
            Some((low, high)) => y.clamp_tensor(Some(low), Some(high)),
            None => y,
        }
    }

    /// `[.., D]` normalised to raw units.
    pub fn denormalize(&self, y: &Tensor) -> Tensor {
        y / &self.scale + &self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn normalizer(mode: NormMode) -> Normalizer {
        let rows = array![[0.0f32, 5.0, 1.0], [10.0, 5.0, 0.0], [20.0, 5.0, 1.0]];
        let stats = Stats::of(rows.view()).unwrap();
        Normalizer::new(mode, stats, vec![0.0, 0.0, 0.0], vec![40.0, 10.0, 1.0])
    }

    #[test]
    fn every_mode_comes_back_and_a_constant_dimension_stays_finite() {
        use NormMode::{Bounds, Identity, MeanStd, MinMax, Quantile};
        let x = Tensor::from_slice(&[0.5f32, 5.0, 1.0, 19.0, 5.0, 0.5]).reshape([2, 3]);
        for mode in [Identity, MeanStd, MinMax, Quantile, Bounds] {
            let affine = normalizer(mode).on(Device::Cpu);
            let y = affine.normalize(&x);
            let back = affine.denormalize(&y);
            assert!(y.isfinite().all().int64_value(&[]) == 1, "{mode:?}");
            let error = (back - &x).abs().max().double_value(&[]);
            assert!(error < 1e-5, "{mode:?}: {error}");
        }
    }

    #[test]
    fn quantiles_are_numpys_and_clip_but_a_masked_dimension_passes() {
        let mut n = normalizer(NormMode::Quantile);
        assert!((n.stats.q01[0] - 0.2).abs() < 1e-9 && (n.stats.q99[0] - 19.8).abs() < 1e-9);
        n.mask[2] = false;
        let y = n.on(Device::Cpu).normalize(&Tensor::from_slice(&[100.0f32, 5.0, 7.0]));
        assert_eq!(y.double_value(&[0]), 1.0);
        assert_eq!(y.double_value(&[2]), 7.0);
    }

    /// The gripper never moved and is not scaled: OpenVLA's `BOUNDS_Q99` makes it 0, and back it is what it was.
    #[test]
    fn a_masked_dimension_that_never_moves_becomes_zero() {
        let mut n = normalizer(NormMode::Quantile);
        n.mask[1] = false;
        let affine = n.on(Device::Cpu);
        let y = affine.normalize(&Tensor::from_slice(&[0.0f32, 5.0, 1.0]));
        assert_eq!(y.double_value(&[1]), 0.0);
        assert_eq!(affine.denormalize(&y).double_value(&[1]), 5.0);
    }

    #[test]
    fn rows_are_scaled_as_tensors_are() {
        use NormMode::{Bounds, Identity, MeanStd, MinMax, Quantile};
        let x = array![[-3.0f32, 5.0, 1.0], [19.0, 5.5, 0.5]];
        for mode in [Identity, MeanStd, MinMax, Quantile, Bounds] {
            let mut n = normalizer(mode);
            n.mask[2] = false;
            let mut rows = x.clone();
            n.normalize_rows(rows.view_mut());
            let tensor = Tensor::from_slice(x.as_slice().unwrap()).reshape([2, 3]);
            let expected = n.on(Device::Cpu).normalize(&tensor);
            for ((i, j), v) in rows.indexed_iter() {
                let expected = expected.double_value(&[i as i64, j as i64]);
                assert_eq!(f64::from(*v), expected, "{mode:?}");
            }
        }
    }

    #[test]
    fn broken_statistics_are_named() {
        let mut n = normalizer(NormMode::MinMax);
        n.stats.max[1] = f64::NAN;
        assert!(n.validate("action").unwrap_err().to_string().contains("`max`"));
        assert!(Stats::of(array![[f32::NAN]].view()).is_err());
        assert!(Stats::of(ndarray::Array2::zeros((0, 2)).view()).is_err());
    }
}
