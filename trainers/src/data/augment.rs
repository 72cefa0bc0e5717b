//! What is done to a sample before a policy sees it, each time with other numbers.
//!
//! All draws come from the sample's own seed; the frames of one camera in one window share them. Frames keep their size:
//! cutting them is the policy's business, which cuts when acting too (`policy.crop`). Colours follow torchvision's `ColorJitter` arithmetic in the order brightness, contrast, saturation, hue (OpenVLA's order).

use ndarray::Axis;
use rand::Rng;
use rand_distr::{Distribution as _, StandardNormal};
use serde::{Deserialize, Serialize};
use simloop_envs::SeedTree;

use super::{DataError, DemoBatch, pusht_mirror};

/// Settings; the default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Frames are moved by up to this many pixels along each axis, edges repeated (DrQ, Kostrikov et al. 2020).
    pub shift_px: u32,
    /// Colours times a factor from `[1 - x, 1 + x]`.
    pub brightness: f32,
    /// Distance from the frame's mean grey times a factor from `[1 - x, 1 + x]`.
    pub contrast: f32,
    /// Distance from the pixel's grey times a factor from `[1 - x, 1 + x]`.
    pub saturation: f32,
    /// Hue turned by up to this share of a full turn, at most 0.5.
    pub hue: f32,
    /// Standard deviation of normal noise on each number of the proprio, raw units, `[P]`; empty for none.
    pub proprio_noise: Vec<f32>,
    /// The share of samples that are mirrored; for PushT only, see [`pusht_mirror`].
    pub pusht_mirror: f64,
}

impl Augment {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] naming the setting.
    pub fn validate(&self) -> Result<(), DataError> {
        let refuse = |what: &str, range: &str| {
            Err(DataError::unsupported(format!("augment: `{what}` must lie in {range}")))
        };
        for (what, value) in [
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return refuse(what, "[0, 1]");
            }
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return refuse("hue", "[0, 0.5]");
        }
        if !(0.0..=1.0).contains(&self.pusht_mirror) {
            return refuse("pusht_mirror", "[0, 1]");
        }
        if self.proprio_noise.iter().any(|v| !(v.is_finite() && *v >= 0.0)) {
            return refuse("proprio_noise", "[0, ∞)");
        }
        Ok(())
    }

    /// Augments a batch; `nodes` gives one seed per sample.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] where a setting does not fit the batch: another number of `proprio_noise` than of the
    /// proprio, a mirror for something that is not PushT.
    pub fn apply(
        &self,
        mut batch: DemoBatch,
        nodes: impl IntoIterator<Item = SeedTree>,
    ) -> Result<DemoBatch, DataError> {
        if *self == Self::default() {
            return Ok(batch);
        }
        self.validate()?;
        let p = batch.proprio.len_of(Axis(2));
        if !self.proprio_noise.is_empty() && self.proprio_noise.len() != p {
            return Err(DataError::unsupported(format!(
                "augment: `proprio_noise` has {} numbers, the proprio has {p}",
                self.proprio_noise.len()
            )));
        }
        for (i, node) in nodes.into_iter().enumerate() {
            let mut rng = node.rng();
            if self.pusht_mirror > 0.0 && rng.random_bool(self.pusht_mirror) {
                pusht_mirror::mirror_sample(&mut batch, i)?;
            }
            for images in batch.images.values_mut() {
                let draw = Draw::new(self, &mut rng);
                for mut frame in images.index_axis_mut(Axis(0), i).outer_iter_mut() {
                    let (h, w, _) = frame.dim();
                    let Some(pixels) = frame.as_slice_mut() else { continue };
                    draw.shift(pixels, h, w);
                    draw.colours(pixels);
                }
            }
            if !self.proprio_noise.is_empty() {
                for mut row in batch.proprio.index_axis_mut(Axis(0), i).outer_iter_mut() {
                    for (v, &std) in row.iter_mut().zip(&self.proprio_noise) {
                        let z: f32 = StandardNormal.sample(&mut rng);
                        *v += std * z;
                    }
                }
            }
        }
        Ok(batch)
    }
}

/// What was drawn for one window of one camera.
struct Draw {
    /// Down and to the right, px.
    shift: (i32, i32),
    brightness: f32,
    contrast: f32,
    saturation: f32,
    hue: f32,
}

impl Draw {
    fn new(settings: &Augment, rng: &mut impl Rng) -> Self {
        let s = settings.shift_px.min(4096) as i32;
        let mut factor =
            |x: f32| if x > 0.0 { 1.0 + x * (2.0 * rng.random::<f32>() - 1.0) } else { 1.0 };
        let (brightness, contrast, saturation) =
            (factor(settings.brightness), factor(settings.contrast), factor(settings.saturation));
        let hue = factor(settings.hue) - 1.0;
        Self {
            shift: (rng.random_range(-s..=s), rng.random_range(-s..=s)),
            brightness,
            contrast,
            saturation,
            hue,
        }
    }

    fn shift(&self, pixels: &mut [u8], h: usize, w: usize) {
        let (dy, dx) = self.shift;
        if (dy, dx) == (0, 0) {
            return;
        }
        let old = pixels.to_vec();
        for y in 0..h {
            let from = (y as i32 - dy).clamp(0, h as i32 - 1) as usize;
            for x in 0..w {
                let column = (x as i32 - dx).clamp(0, w as i32 - 1) as usize;
                let (to, from) = ((y * w + x) * 3, (from * w + column) * 3);
                pixels[to..to + 3].copy_from_slice(&old[from..from + 3]);
            }
        }
    }

    fn colours(&self, pixels: &mut [u8]) {
        let same = [self.brightness, self.contrast, self.saturation] == [1.0; 3] && self.hue == 0.0;
        if same || pixels.is_empty() {
            return;
        }
        let bright = |v: u8| (f32::from(v) * self.brightness).min(255.0);
        let mean = if self.contrast == 1.0 {
            0.0
        } else {
            let sum: f32 =
                pixels.chunks_exact(3).map(|p| grey([p[0], p[1], p[2]].map(bright))).sum();
            sum / (pixels.len() / 3) as f32
        };
        for pixel in pixels.chunks_exact_mut(3) {
            let mut rgb = [pixel[0], pixel[1], pixel[2]].map(bright);
            rgb = blend(rgb, mean, self.contrast);
            if self.saturation != 1.0 {
                rgb = blend(rgb, grey(rgb), self.saturation);
            }
            if self.hue != 0.0 {
                rgb = turn_hue(rgb, self.hue);
            }
            for (to, v) in pixel.iter_mut().zip(rgb) {
                *to = (v + 0.5) as u8;
            }
        }
    }
}

/// ITU-R 601 luma, as torchvision's `rgb_to_grayscale`.
fn grey([r, g, b]: [f32; 3]) -> f32 {
    0.2989 * r + 0.587 * g + 0.114 * b
}

fn blend(rgb: [f32; 3], with: f32, factor: f32) -> [f32; 3] {
    rgb.map(|v| (factor * v + (1.0 - factor) * with).clamp(0.0, 255.0))
}

/// Turns the hue by a share of a full turn, through HSV.
fn turn_hue(rgb: [f32; 3], share: f32) -> [f32; 3] {
    let [r, g, b] = rgb;
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let span = max - min;
    if span <= 0.0 {
        return rgb;
    }
    let sixth = if max == r {
        (g - b) / span
    } else if max == g {
        2.0 + (b - r) / span
    } else {
        4.0 + (r - g) / span
    };
    let sixth = (sixth + 6.0 * share).rem_euclid(6.0);
    [5.0, 3.0, 1.0].map(|n: f32| {
        let k = (n + sixth) % 6.0;
        max - span * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, Array3, Array5};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn batch(b: usize) -> DemoBatch {
        let pixel = |(i, t, y, x, c): (usize, usize, usize, usize, usize)| {
            ((i * 31 + t * 7 + y * 16 + x * 5 + c * 40) % 256) as u8
        };
        DemoBatch {
            images: BTreeMap::from([(
                "eye".to_owned(),
                Array5::from_shape_fn((b, 2, 8, 10, 3), pixel),
            )]),
            proprio: Array3::zeros((b, 2, 3)),
            instructions: vec![Arc::from("go"); b],
            actions: Array3::zeros((b, 4, 2)),
            valid: Array2::ones((b, 4)),
        }
    }

    fn nodes(b: u64) -> impl Iterator<Item = SeedTree> {
        (0..b).map(|i| SeedTree::new(3).index(i))
    }

    #[test]
    fn the_default_changes_nothing() {
        assert_eq!(Augment::default().apply(batch(3), nodes(3)).unwrap(), batch(3));
    }

    #[test]
    fn a_sample_is_augmented_alike_in_any_batch_and_otherwise_differently() {
        let all = Augment {
            shift_px: 2,
            brightness: 0.2,
            contrast: 0.2,
            saturation: 0.2,
            hue: 0.05,
            proprio_noise: vec![1.0, 0.0, 2.0],
            ..Augment::default()
        };
        let three = all.apply(batch(3), nodes(3)).unwrap();
        let one = all.apply(batch(1), nodes(1)).unwrap();
        assert_eq!(three.images["eye"].dim(), (3, 2, 8, 10, 3));
        assert_eq!(
            three.images["eye"].index_axis(Axis(0), 0),
            one.images["eye"].index_axis(Axis(0), 0)
        );
        assert_eq!(three.proprio.index_axis(Axis(0), 0), one.proprio.index_axis(Axis(0), 0));
        assert_eq!(three.proprio[[1, 0, 1]], 0.0);
        assert_ne!(three.proprio[[0, 0, 0]], three.proprio[[1, 0, 0]]);
        assert_eq!(three.actions, batch(3).actions);
    }

    #[test]
    fn frames_of_a_window_are_moved_alike_and_windows_are_not() {
        let shifting = Augment { shift_px: 2, ..Augment::default() };
        let (whole, moved) = (batch(20), shifting.apply(batch(20), nodes(20)).unwrap());
        let (whole, moved) = (&whole.images["eye"], &moved.images["eye"]);
        let fits = |i: usize, (dy, dx): (usize, usize)| {
            // Moved by (dy - 2, dx - 2): what lies 2 px or more from the edges is still there.
            (0..2).all(|t| {
                let from = whole.slice(ndarray::s![i, t, 2..6, 2..8, ..]);
                let to = moved.slice(ndarray::s![i, t, dy..dy + 4, dx..dx + 6, ..]);
                from == to
            })
        };
        let shifts: std::collections::BTreeSet<_> = (0..20)
            .map(|i| {
                let mut all = (0..5).flat_map(|y| (0..5).map(move |x| (y, x)));
                all.find(|&shift| fits(i, shift)).expect("the window is moved as a whole")
            })
            .collect();
        assert!(shifts.len() > 8, "{shifts:?}");
    }

    #[test]
    fn a_shift_repeats_the_edges() {
        let mut pixels: Vec<u8> = (0..9).flat_map(|v| [v; 3]).collect();
        let draw =
            Draw { shift: (1, -1), ..Draw::new(&Augment::default(), &mut SeedTree::new(0).rng()) };
        draw.shift(&mut pixels, 3, 3);
        let got: Vec<u8> = pixels.iter().step_by(3).copied().collect();
        assert_eq!(got, [1, 2, 2, 1, 2, 2, 4, 5, 5]);
    }

    /// torchvision `functional.adjust_brightness` and `adjust_saturation` on one pixel, worked by hand.
    #[test]
    fn colours_follow_torchvision() {
        let plain = || Draw::new(&Augment::default(), &mut SeedTree::new(0).rng());
        let mut pixel = [200, 100, 50];
        Draw { brightness: 1.2, ..plain() }.colours(&mut pixel);
        assert_eq!(pixel, [240, 120, 60]);
        let mut pixel = [200, 100, 50];
        Draw { saturation: 0.5, ..plain() }.colours(&mut pixel);
        // grey = 59.78 + 58.7 + 5.7 = 124.18; (200 + 124.18) / 2 = 162.09, (100 + 124.18) / 2 = 112.09, 87.09
        assert_eq!(pixel, [162, 112, 87]);
    }

    #[test]
    fn a_third_of_a_turn_takes_red_to_green_and_grey_stays() {
        let turned = turn_hue([200.0, 50.0, 50.0], 1.0 / 3.0);
        for (got, expected) in turned.iter().zip([50.0, 200.0, 50.0]) {
            assert!((got - expected).abs() < 1e-3, "{turned:?}");
        }
        assert_eq!(turn_hue([7.0; 3], 0.4), [7.0; 3]);
        let there = turn_hue(turn_hue([10.0, 60.0, 220.0], 0.3), -0.3);
        assert!((there[2] - 220.0).abs() < 1e-3 && (there[0] - 10.0).abs() < 1e-3, "{there:?}");
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        let refused = |a: Augment| a.apply(batch(1), nodes(1)).unwrap_err().to_string();
        assert!(refused(Augment { hue: 0.7, ..Augment::default() }).contains("`hue`"));
        assert!(
            refused(Augment { proprio_noise: vec![1.0], ..Augment::default() })
                .contains("1 numbers")
        );
        assert!(refused(Augment { pusht_mirror: 1.0, ..Augment::default() }).contains("PushT"));
    }
}
