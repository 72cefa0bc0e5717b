//! Several data sets as one, by weight.
//!
//! OpenVLA's rule (`prismatic/vla/datasets/rlds/dataset.py`, `balance_weights=True`): a data set's share is its weight
//! times its size, and an epoch is as long as it takes to see, on average, every sample of each data set of weight 1.

use std::sync::Arc;

use ndarray::{Array2, Array3, Array5, ArrayViewMut2, Axis};
use rand::seq::SliceRandom as _;
use simloop_envs::SeedTree;
use simloop_policies::normalize::Normalizer;

use super::{DataError, Dataset, DemoBatch, DemoSample};

/// A named mixture: data sets by OpenVLA's names, with weights.
pub type NamedMixture = (&'static str, &'static [(&'static str, f64)]);

/// OpenVLA `prismatic/vla/datasets/rlds/oxe/mixtures.py`.
pub const MIXTURES: &[NamedMixture] = &[
    ("bridge", &[("bridge_orig", 1.0)]),
    ("bridge_rt_1", &[("bridge_orig", 1.0), ("fractal20220817_data", 1.0)]),
    (
        "rtx",
        &[
            ("fractal20220817_data", 0.540_871_222_03),
            ("kuka", 0.834_104_629_4),
            ("bridge_orig", 1.0),
            ("taco_play", 2.0),
            ("jaco_play", 2.0),
            ("berkeley_cable_routing", 3.0),
            ("roboturk", 1.0),
            ("viola", 2.0),
            ("berkeley_autolab_ur5", 1.0),
            ("toto", 1.0),
        ],
    ),
    (
        "oxe_magic_soup_plus_minus",
        &[
            ("fractal20220817_data", 1.0),
            ("kuka", 0.834_104_629_4),
            ("bridge_orig", 1.0),
            ("taco_play", 2.0),
            ("jaco_play", 1.0),
            ("berkeley_cable_routing", 1.0),
            ("roboturk", 2.0),
            ("viola", 2.0),
            ("berkeley_autolab_ur5", 2.0),
            ("toto", 1.0),
            ("stanford_hydra_dataset_converted_externally_to_rlds", 2.0),
            ("austin_buds_dataset_converted_externally_to_rlds", 1.0),
            ("nyu_franka_play_dataset_converted_externally_to_rlds", 3.0),
            ("furniture_bench_dataset_converted_externally_to_rlds", 0.1),
            ("ucsd_kitchen_dataset_converted_externally_to_rlds", 2.0),
            ("austin_sailor_dataset_converted_externally_to_rlds", 1.0),
            ("austin_sirius_dataset_converted_externally_to_rlds", 1.0),
            ("dlr_edan_shared_control_converted_externally_to_rlds", 1.0),
            ("iamlab_cmu_pickup_insert_converted_externally_to_rlds", 1.0),
            ("utaustin_mutex", 1.0),
            ("berkeley_fanuc_manipulation", 2.0),
            ("cmu_stretch", 1.0),
            ("bc_z", 0.2),
            ("fmb_dataset", 1.0),
            ("dobbe", 0.2),
        ],
    ),
    (
        "libero_mix",
        &[
            ("libero_spatial_no_noops", 1.0),
            ("libero_object_no_noops", 1.0),
            ("libero_goal_no_noops", 1.0),
            ("libero_10_no_noops", 1.0),
        ],
    ),
];

/// The data sets and weights of a named mixture.
pub fn named_mixture(name: &str) -> Option<&'static [(&'static str, f64)]> {
    MIXTURES.iter().find(|(n, _)| *n == name).map(|(_, parts)| *parts)
}

/// One data set of a mixture.
pub struct MixturePart {
    /// Its name, for messages.
    pub name: String,
    /// Its samples. All parts must give arrays of one shape.
    pub data: Arc<dyn Dataset>,
    /// Its weight, above 0.
    pub weight: f64,
    /// Normalisers of this data set's own proprio and actions, as OpenVLA scales each by its own statistics; without
    /// them numbers stay in their units.
    pub normalizers: Option<(Normalizer, Normalizer)>,
}

/// Several data sets as one. Sample numbers run through the parts one after the other; how often a part is seen is
/// decided by [`Dataset::epoch`].
pub struct Mixture {
    parts: Vec<MixturePart>,
    /// First sample of each part, then their number.
    starts: Vec<usize>,
    shares: Vec<f64>,
    epoch_len: usize,
}

impl Mixture {
    /// Mixes `parts`; with `balance_weights` a weight counts per sample (OpenVLA), otherwise per data set.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] for no part, an empty one, or a weight that is not above 0.
    pub fn new(parts: Vec<MixturePart>, balance_weights: bool) -> Result<Self, DataError> {
        let mut starts = vec![0];
        for part in &parts {
            if part.data.is_empty() || !(part.weight.is_finite() && part.weight > 0.0) {
                return Err(DataError::unsupported(format!(
                    "mix `{}`: it has {} samples and weight {}; both must be above 0",
                    part.name,
                    part.data.len(),
                    part.weight
                )));
            }
            starts.push(starts.last().copied().unwrap_or(0) + part.data.len());
        }
        if parts.is_empty() {
            return Err(DataError::unsupported("mix data sets: there is none"));
        }
        let raw: Vec<f64> = parts
            .iter()
            .map(|p| if balance_weights { p.weight * p.data.len() as f64 } else { p.weight })
            .collect();
        let sum: f64 = raw.iter().sum();
        let shares: Vec<f64> = raw.iter().map(|v| v / sum).collect();
        let any_primary = parts.iter().any(|p| p.weight == 1.0);
        let epoch_len = parts
            .iter()
            .zip(&shares)
            .filter(|(p, _)| p.weight == 1.0 || !any_primary)
            .map(|(p, share)| (p.data.len() as f64 / share) as usize)
            .max()
            .unwrap_or(0);
        Ok(Self { parts, starts, shares, epoch_len })
    }

    /// Each part's share of the samples, in order; they add up to 1.
    pub fn shares(&self) -> &[f64] {
        &self.shares
    }

    /// How many samples of each part an epoch has: shares times epoch, by largest remainder.
    pub fn counts(&self) -> Vec<usize> {
        let exact: Vec<f64> = self.shares.iter().map(|s| s * self.epoch_len as f64).collect();
        let mut counts: Vec<usize> = exact.iter().map(|v| v.floor() as usize).collect();
        let mut order: Vec<usize> = (0..exact.len()).collect();
        order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
        let missing = self.epoch_len.saturating_sub(counts.iter().sum());
        for &i in order.iter().cycle().take(missing) {
            counts[i] += 1;
        }
        counts
    }

    /// The part that holds a sample, and the sample's number in it.
    fn find(&self, index: usize) -> Result<(usize, usize), DataError> {
        let part = self.starts.partition_point(|&s| s <= index) - 1;
        if part >= self.parts.len() {
            return Err(DataError::unsupported(format!(
                "read sample {index} of a mixture: there are {}",
                self.len()
            )));
        }
        Ok((part, index - self.starts[part]))
    }
}

impl Dataset for Mixture {
    fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn epoch_len(&self) -> usize {
        self.epoch_len
    }

    /// Every part in its number of samples: whole passes over it in one order each, the last one cut off; then all
    /// shuffled.
    fn epoch(&self, node: &SeedTree) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.epoch_len);
        for (i, (part, count)) in self.parts.iter().zip(self.counts()).enumerate() {
            let node = node.child("part").index(i as u64);
            let mut left = count;
            for pass in 0.. {
                if left == 0 {
                    break;
                }
                let mut samples = part.data.epoch(&node.index(pass));
                samples.truncate(left);
                left -= samples.len();
                order.extend(samples.into_iter().map(|s| s + self.starts[i]));
            }
        }
        order.shuffle(&mut node.child("mix").rng());
        order
    }

    fn get(&self, index: usize) -> Result<DemoSample, DataError> {
        let (part, index) = self.find(index)?;
        let mut sample = self.parts[part].data.get(index)?;
        if let Some((proprio, action)) = &self.parts[part].normalizers {
            for obs in &mut sample.obs {
                let mut row = obs.proprio.to_owned().insert_axis(Axis(0));
                proprio.normalize_rows(row.view_mut());
                obs.proprio = row.remove_axis(Axis(0)).into_shared();
            }
            let mut rows = sample.chunk.view().to_owned();
            action.normalize_rows(rows.view_mut());
            sample.chunk = simloop_envs::ActionChunk::new(rows)
                .map_err(|e| DataError::unsupported(e.to_string()))?;
        }
        Ok(sample)
    }

    fn batch(&self, indices: &[usize]) -> Result<DemoBatch, DataError> {
        let mut wanted: Vec<(Vec<usize>, Vec<usize>)> = vec![Default::default(); self.parts.len()];
        for (row, &index) in indices.iter().enumerate() {
            let (part, sample) = self.find(index)?;
            wanted[part].0.push(row);
            wanted[part].1.push(sample);
        }
        let mut whole: Option<DemoBatch> = None;
        let mut first = "";
        for (part, (rows, samples)) in self.parts.iter().zip(&wanted) {
            if rows.is_empty() {
                continue;
            }
            let mut batch = part.data.batch(samples)?;
            if let Some((proprio, action)) = &part.normalizers {
                normalize(&mut batch.proprio, |rows| proprio.normalize_rows(rows));
                normalize(&mut batch.actions, |rows| action.normalize_rows(rows));
            }
            let whole = whole.get_or_insert_with(|| {
                first = &part.name;
                like(&batch, indices.len())
            });
            place(whole, &batch, rows).map_err(|e| {
                DataError::unsupported(format!("mix `{first}` and `{}`: {e}", part.name))
            })?;
        }
        whole.ok_or_else(|| DataError::unsupported("make a batch of no sample"))
    }
}

fn normalize(rows: &mut Array3<f32>, f: impl FnOnce(ArrayViewMut2<'_, f32>)) {
    let (b, t, d) = rows.dim();
    if let Ok(rows) = rows.view_mut().into_shape_with_order((b * t, d)) {
        f(rows);
    }
}

/// An empty batch of `b` samples of the same shapes.
fn like(batch: &DemoBatch, b: usize) -> DemoBatch {
    let images = batch.images.iter().map(|(camera, images)| {
        let (_, t, h, w, c) = images.dim();
        (camera.clone(), Array5::zeros((b, t, h, w, c)))
    });
    let (_, t_o, p) = batch.proprio.dim();
    let (_, t_p, d) = batch.actions.dim();
    DemoBatch {
        images: images.collect(),
        proprio: Array3::zeros((b, t_o, p)),
        instructions: vec![Arc::from(""); b],
        actions: Array3::zeros((b, t_p, d)),
        valid: Array2::zeros((b, t_p)),
    }
}

/// Copies a part's samples to their rows of the whole.
fn place(whole: &mut DemoBatch, part: &DemoBatch, rows: &[usize]) -> Result<(), String> {
    if !whole.images.keys().eq(part.images.keys()) {
        return Err(format!(
            "their cameras are {:?} and {:?}; name the cameras to load",
            whole.images.keys(),
            part.images.keys()
        ));
    }
    for (camera, images) in &mut whole.images {
        put(images.view_mut().into_dyn(), &part.images[camera].view().into_dyn(), rows, camera)?;
    }
    put(whole.proprio.view_mut().into_dyn(), &part.proprio.view().into_dyn(), rows, "proprio")?;
    put(whole.actions.view_mut().into_dyn(), &part.actions.view().into_dyn(), rows, "actions")?;
    put(whole.valid.view_mut().into_dyn(), &part.valid.view().into_dyn(), rows, "valid")?;
    for (&row, instruction) in rows.iter().zip(&part.instructions) {
        whole.instructions[row] = Arc::clone(instruction);
    }
    Ok(())
}

fn put<T: Copy>(
    mut whole: ndarray::ArrayViewMutD<'_, T>,
    part: &ndarray::ArrayViewD<'_, T>,
    rows: &[usize],
    what: &str,
) -> Result<(), String> {
    if whole.shape()[1..] != part.shape()[1..] {
        return Err(format!(
            "`{what}` is {:?} and {:?} per sample; resize frames or choose another standardisation",
            &whole.shape()[1..],
            &part.shape()[1..]
        ));
    }
    for (&row, from) in rows.iter().zip(part.outer_iter()) {
        whole.index_axis_mut(Axis(0), row).assign(&from);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toys::Counting;
    use crate::data::{Loader, LoaderConfig, LoaderPosition, WindowDataset, WindowOptions};
    use simloop_policies::normalize::{NormMode, Stats};

    fn part(name: &str, lens: &[usize], weight: f64) -> MixturePart {
        let source = Arc::new(Counting::new(lens));
        let options = WindowOptions {
            chunk_size: 2,
            cameras: vec!["eye".to_owned()],
            ..WindowOptions::default()
        };
        let data = WindowDataset::new(source, (0..lens.len()).collect(), options).unwrap();
        MixturePart { name: name.to_owned(), data: Arc::new(data), weight, normalizers: None }
    }

    /// Sizes 100, 50, 200 with weights 1, 2, 0.5: raw shares 100, 100, 100. The epoch that shows each of the 100 samples
    /// of weight 1 once has 300 samples; the 50 are seen twice, half of the 200.
    #[test]
    fn weight_times_size_decides_and_weight_one_sets_the_epoch() {
        let parts = || vec![part("a", &[100], 1.0), part("b", &[50], 2.0), part("c", &[200], 0.5)];
        let mix = Mixture::new(parts(), true).unwrap();
        assert_eq!(mix.epoch_len(), 300);
        assert_eq!(mix.counts(), [100, 100, 100]);
        let epoch = mix.epoch(&SeedTree::new(0));
        let mut seen = vec![0; mix.len()];
        for i in epoch {
            seen[i] += 1;
        }
        assert!(seen[..100].iter().all(|&n| n == 1) && seen[100..150].iter().all(|&n| n == 2));
        assert_eq!(seen[150..].iter().sum::<i32>(), 100);
        assert!(seen[150..].iter().all(|&n| n <= 1));
        // Without balancing, a weight counts per data set: 1 / 3.5 of the epoch are `a`.
        let plain = Mixture::new(parts(), false).unwrap();
        assert_eq!((plain.epoch_len(), plain.counts()), (350, vec![100, 200, 50]));
    }

    #[test]
    fn the_order_is_a_function_of_the_seed() {
        let mix = Mixture::new(vec![part("a", &[30], 1.0), part("b", &[20], 1.5)], true).unwrap();
        let node = SeedTree::new(4).index(2);
        assert_eq!(mix.epoch(&node), mix.epoch(&node));
        assert_ne!(mix.epoch(&node), mix.epoch(&SeedTree::new(4).index(3)));
        let mix: Arc<dyn Dataset> = Arc::new(mix);
        let run = |threads| {
            let config = LoaderConfig { batch_size: 7, threads, ..LoaderConfig::default() };
            let mut loader =
                Loader::new(Arc::clone(&mix), config, LoaderPosition::default()).unwrap();
            (0..20).map(|_| loader.next().unwrap()).collect::<Vec<_>>()
        };
        assert!(run(0) == run(3));
    }

    #[test]
    fn a_batch_keeps_its_order_across_parts_and_each_part_has_its_own_scale() {
        let mut parts = vec![part("a", &[5], 1.0), part("b", &[4, 3], 1.0)];
        let stats = |max: f64| Stats {
            mean: vec![0.0; 2],
            std: vec![1.0; 2],
            min: vec![0.0; 2],
            max: vec![max; 2],
            q01: vec![0.0; 2],
            q99: vec![max; 2],
            count: 1,
        };
        let scale = |max| Normalizer::new(NormMode::MinMax, stats(max), Vec::new(), Vec::new());
        parts[1].normalizers = Some((scale(200.0), scale(2.0)));
        let mix = Mixture::new(parts, true).unwrap();
        let indices = [6, 0, 10, 3];
        let batch = mix.batch(&indices).unwrap();
        let samples: Vec<DemoSample> = indices.iter().map(|&i| mix.get(i).unwrap()).collect();
        assert_eq!(batch, DemoBatch::stack(&samples).unwrap());
        // Sample 6 is step 1 of b's first episode: its action 1 is the middle of [0, 2], its proprio 1 of [0, 200].
        assert_eq!(batch.actions[[0, 0, 0]], 0.0);
        assert!((batch.proprio[[0, 0, 0]] + 0.99).abs() < 1e-6);
        assert_eq!(batch.actions[[3, 0, 0]], 3.0);
        assert_eq!(&*batch.instructions[2], "do 1");
    }

    #[test]
    fn parts_that_do_not_fit_are_named() {
        assert!(
            Mixture::new(vec![part("a", &[5], 0.0)], true)
                .err()
                .unwrap()
                .to_string()
                .contains("`a`")
        );
        let mut other = part("b", &[5], 1.0);
        let source = Arc::new(Counting::new(&[5]));
        let options = WindowOptions {
            chunk_size: 3,
            cameras: vec!["eye".to_owned()],
            ..WindowOptions::default()
        };
        other.data = Arc::new(WindowDataset::new(source, vec![0], options).unwrap());
        let mix = Mixture::new(vec![part("a", &[5], 1.0), other], true).unwrap();
        let error = mix.batch(&[0, 7]).unwrap_err().to_string();
        assert!(error.contains("`a` and `b`") && error.contains("actions"), "{error}");
    }

    #[test]
    fn named_mixtures_have_no_data_set_twice_and_weights_above_zero() {
        for (name, parts) in MIXTURES {
            let names: std::collections::BTreeSet<_> = parts.iter().map(|(n, _)| n).collect();
            assert_eq!(names.len(), parts.len(), "{name}");
            assert!(parts.iter().all(|(_, w)| *w > 0.0));
        }
        assert_eq!(named_mixture("oxe_magic_soup_plus_minus").unwrap().len(), 25);
        assert_eq!(named_mixture("rtx").unwrap().len(), 10);
        assert!(named_mixture("soup").is_none());
    }
}
