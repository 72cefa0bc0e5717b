//! The learning rate over a run, as a factor of its peak.

use serde::{Deserialize, Serialize};

/// How the learning rate moves. Formulas of diffusers' `optimization.py`, which diffusion_policy uses: the first of `n`
/// warm-up updates has rate 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// `min(1, u / warmup)`.
    Constant {
        /// Updates of linear warm-up.
        #[serde(default)]
        warmup: u64,
    },
    /// Linear warm-up, then half a cosine from 1 down to `floor`.
    Cosine {
        /// Updates of linear warm-up.
        #[serde(default)]
        warmup: u64,
        /// What the factor ends at, in `[0, 1]`.
        #[serde(default)]
        floor: f64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Constant { warmup: 0 }
    }
}

impl Schedule {
    /// The factor of update `update` (from 0) of `total`.
    pub fn factor(&self, update: u64, total: u64) -> f64 {
        let (Self::Constant { warmup } | Self::Cosine { warmup, .. }) = *self;
        if update < warmup {
            return update as f64 / warmup as f64;
        }
        match *self {
            Self::Constant { .. } => 1.0,
            Self::Cosine { floor, .. } => {
                let span = total.saturating_sub(warmup).max(1);
                let progress = ((update - warmup) as f64 / span as f64).min(1.0);
                let wave = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
                floor + (1.0 - floor) * wave.max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_follows_diffusers() {
        // diffusers 0.11 get_scheduler("cosine", num_warmup_steps=10, num_training_steps=110), by hand.
        let cosine = Schedule::Cosine { warmup: 10, floor: 0.0 };
        for (update, expected) in [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.5), (110, 0.0), (200, 0.0)]
        {
            assert!((cosine.factor(update, 110) - expected).abs() < 1e-12, "{update}");
        }
        let at_35 = 0.5 * (1.0 + (std::f64::consts::PI * 0.25).cos());
        assert!((cosine.factor(35, 110) - at_35).abs() < 1e-12);
        let floored = Schedule::Cosine { warmup: 0, floor: 0.1 };
        assert!((floored.factor(100, 100) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn constant_warms_up_and_stays() {
        let constant = Schedule::Constant { warmup: 4 };
        let factors: Vec<f64> = (0..6).map(|u| constant.factor(u, 10)).collect();
        assert_eq!(factors, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]);
        assert_eq!(Schedule::default().factor(0, 10), 1.0);
    }
}
