//! What a data set holds and what is wrong with it, in one pass.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::ArrayView2;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{DataError, DemoEpisode, DemoSource, Frames};

/// Pixels up to this value count as black: an absent camera is stored as a black JPEG.
const BLACK: u8 = 8;
/// Findings of one kind that are listed one by one.
const LISTED: usize = 10;

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct InspectOptions {
    /// Episodes whose frames are decoded, spread over the data set: first, middle and last frame of each.
    pub image_episodes: usize,
}

impl Default for InspectOptions {
    fn default() -> Self {
        Self { image_episodes: 50 }
    }
}

/// A data set's summary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The format's name.
    pub format: String,
    /// Where it lies.
    pub location: String,
    /// Episodes.
    pub episodes: usize,
    /// Steps.
    pub steps: usize,
    /// Shortest, mean and longest episode, steps.
    pub lengths: (usize, f64, usize),
    /// Steps per second, where known.
    pub control_hz: Option<f64>,
    /// Camera to height, width and the share of looked-at frames that are black.
    pub cameras: BTreeMap<String, CameraSummary>,
    /// Each number of the proprio.
    pub proprio: Vec<NumberSummary>,
    /// Each number of an action.
    pub action: Vec<NumberSummary>,
    /// Instruction to its episodes.
    pub tasks: BTreeMap<String, usize>,
    /// What makes data unusable: unreadable episodes, numbers that are not finite, damaged frames.
    pub faults: Vec<String>,
    /// What should be known: black cameras, constant numbers, equal episodes.
    pub notes: Vec<String>,
}

/// A camera's summary.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CameraSummary {
    /// Pixels.
    pub height: u32,
    /// Pixels.
    pub width: u32,
    /// Frames that were decoded.
    pub looked_at: usize,
    /// Those that are black.
    pub black: usize,
}

/// One number's summary over all steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NumberSummary {
    /// Its name, with its unit.
    pub name: String,
    /// Smallest finite value.
    pub min: f64,
    /// Largest finite value.
    pub max: f64,
    /// Mean of finite values.
    pub mean: f64,
    /// Population standard deviation of finite values.
    pub std: f64,
    #[serde(skip)]
    count: f64,
    #[serde(skip)]
    squares: f64,
}

impl NumberSummary {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            mean: 0.0,
            std: 0.0,
            count: 0.0,
            squares: 0.0,
        }
    }

    /// Welford's update, so that nothing is held in memory.
    fn add(&mut self, value: f64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.count += 1.0;
        let delta = value - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (value - self.mean);
    }

    fn finish(&mut self) {
        self.std = (self.squares / self.count.max(1.0)).sqrt();
    }
}

/// Findings of one kind: the first few in words, then a count.
#[derive(Default)]
struct Findings {
    listed: Vec<String>,
    count: usize,
}

impl Findings {
    fn add(&mut self, text: impl FnOnce() -> String) {
        if self.count < LISTED {
            self.listed.push(text());
        }
        self.count += 1;
    }

    fn into_lines(mut self, what: &str) -> Vec<String> {
        if self.count > LISTED {
            self.listed.push(format!("… {} more {what}", self.count - LISTED));
        }
        self.listed
    }
}

/// Reads every episode's numbers and some of its frames.
///
/// # Errors
/// [`DataError`] only where the format's own check fails; what is wrong with an episode is a finding.
pub fn inspect(source: &dyn DemoSource, options: InspectOptions) -> Result<Inspection, DataError> {
    let spec = source.spec();
    let metas = source.episodes();
    let mut proprio: Vec<NumberSummary> =
        spec.proprio.iter().map(|n| NumberSummary::new(n)).collect();
    let mut action: Vec<NumberSummary> =
        spec.action.iter().map(|n| NumberSummary::new(n)).collect();
    let mut cameras: BTreeMap<String, CameraSummary> = spec
        .cameras
        .iter()
        .map(|(name, s)| {
            (
                name.clone(),
                CameraSummary { height: s.height, width: s.width, ..CameraSummary::default() },
            )
        })
        .collect();
    let mut tasks = BTreeMap::new();
    let mut seen: BTreeMap<[u8; 32], usize> = BTreeMap::new();
    let (mut unreadable, mut not_finite, mut damaged, mut equal) =
        (Findings::default(), Findings::default(), Findings::default(), Findings::default());
    let looked_at =
        spread(metas.len(), if cameras.is_empty() { 0 } else { options.image_episodes });
    let mut lengths = Vec::with_capacity(metas.len());
    for (e, meta) in metas.iter().enumerate() {
        let episode = match source.read(e, looked_at.contains(&e)) {
            Ok(episode) => episode,
            Err(error) => {
                unreadable.add(|| error.to_string());
                continue;
            }
        };
        lengths.push(episode.len());
        *tasks.entry(episode.instruction.to_string()).or_insert(0) += 1;
        for (what, rows, summaries) in [
            ("proprio", episode.proprio.view(), &mut proprio),
            ("action", episode.actions.view(), &mut action),
        ] {
            if let Some((t, d)) = add_rows(rows, summaries) {
                not_finite.add(|| {
                    format!("episode {e} (`{}`): {what} {d} is not finite at step {t}", meta.id)
                });
            }
        }
        if let Some(first) = seen.insert(digest(&episode), e) {
            equal.add(|| format!("episode {e} (`{}`) equals episode {first}", meta.id));
        }
        for (camera, frames) in &episode.images {
            if let Some(summary) = cameras.get_mut(camera)
                && let Err(error) = look(frames, episode.len(), summary)
            {
                damaged.add(|| format!("episode {e} (`{}`), camera `{camera}`: {error}", meta.id));
            }
        }
    }
    for summary in proprio.iter_mut().chain(&mut action) {
        summary.finish();
    }
    let mut faults = unreadable.into_lines("unreadable episodes");
    faults.extend(not_finite.into_lines("episodes with numbers that are not finite"));
    faults.extend(damaged.into_lines("episodes with damaged frames"));
    let mut notes = Vec::new();
    for (camera, c) in cameras.iter().filter(|(_, c)| c.black > 0) {
        let all = if c.black == c.looked_at { "; the camera is probably absent" } else { "" };
        notes.push(format!(
            "camera `{camera}`: {} of {} frames are black{all}",
            c.black, c.looked_at
        ));
    }
    for (what, summaries) in [("proprio", &proprio), ("action", &action)] {
        for s in summaries.iter().filter(|s| s.min == s.max) {
            notes.push(format!("{what} `{}` is always {}", s.name, s.min));
        }
    }
    notes.extend(equal.into_lines("equal episodes"));
    notes.extend(source.notes()?);
    if metas.is_empty() {
        faults.push("there is no episode".to_owned());
    }
    let steps: usize = lengths.iter().sum();
    Ok(Inspection {
        format: spec.format.clone(),
        location: spec.location.clone(),
        episodes: metas.len(),
        steps,
        lengths: (
            lengths.iter().min().copied().unwrap_or(0),
            steps as f64 / lengths.len().max(1) as f64,
            lengths.iter().max().copied().unwrap_or(0),
        ),
        control_hz: spec.control_hz,
        cameras,
        proprio,
        action,
        tasks,
        faults,
        notes,
    })
}

/// `wanted` of `n` episodes, evenly spread, the first and the last among them.
fn spread(n: usize, wanted: usize) -> BTreeSet<usize> {
    match wanted.min(n) {
        0 => BTreeSet::new(),
        1 => BTreeSet::from([0]),
        k => (0..k).map(|i| i * (n - 1) / (k - 1)).collect(),
    }
}

/// Adds rows; the place of the first number that is not finite.
fn add_rows(rows: ArrayView2<'_, f32>, summaries: &mut [NumberSummary]) -> Option<(usize, usize)> {
    let mut wrong = None;
    for ((t, d), &value) in rows.indexed_iter() {
        match summaries.get_mut(d) {
            Some(summary) if value.is_finite() => summary.add(f64::from(value)),
            _ => wrong = wrong.or(Some((t, d))),
        }
    }
    wrong
}

fn digest(episode: &DemoEpisode) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(episode.instruction.as_bytes());
    for value in episode.proprio.iter().chain(&episode.actions) {
        hash.update(value.to_le_bytes());
    }
    hash.finalize().into()
}

/// Decodes the first, the middle and the last frame.
fn look(frames: &Frames, len: usize, summary: &mut CameraSummary) -> Result<(), String> {
    if frames.len() != len {
        return Err(format!("{} frames for {len} steps", frames.len()));
    }
    for t in BTreeSet::from([0, len / 2, len.saturating_sub(1)]) {
        let frame = frames.get(t).map_err(|e| format!("step {t}: {e}"))?;
        let (h, w, _) = frame.dim();
        if (h, w) != (summary.height as usize, summary.width as usize) {
            return Err(format!(
                "step {t}: the frame is {h}x{w}, not {}x{}",
                summary.height, summary.width
            ));
        }
        summary.looked_at += 1;
        summary.black += usize::from(frame.iter().all(|v| *v <= BLACK));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::toys::Counting;

    #[test]
    fn numbers_tasks_and_findings_are_listed() {
        let mut source = Counting::new(&[4, 6, 4]);
        source.poison = Some((1, 3));
        source.broken = Some(2);
        let found = inspect(&source, InspectOptions::default()).unwrap();
        // Episode 2 cannot be read; 10 steps are left.
        assert_eq!((found.episodes, found.steps, found.lengths), (3, 10, (4, 5.0, 6)));
        assert_eq!(found.faults.len(), 2, "{:?}", found.faults);
        assert!(found.faults[0].contains("broken on purpose"));
        assert!(found.faults[1].contains("action 1") && found.faults[1].contains("step 3"));
        // proprio 1 is 0 1 2 3 and 0 1 2 3 4 5: mean 21 / 10, variance 69 / 10 - 2.1²
        let p = &found.proprio[1];
        assert_eq!((p.min, p.max), (0.0, 5.0));
        assert!(
            (p.mean - 2.1).abs() < 1e-12 && (p.std - (6.9f64 - 4.41).sqrt()).abs() < 1e-9,
            "{p:?}"
        );
        assert_eq!(found.tasks.values().sum::<usize>(), 2);
        // Frames of the first episode are filled with 0 to 3.
        assert_eq!(found.cameras["eye"].black, 3);
        assert!(found.notes.iter().any(|n| n.contains("`eye`")), "{:?}", found.notes);
    }

    #[test]
    fn few_episodes_are_looked_at_from_end_to_end() {
        assert_eq!(spread(100, 3), BTreeSet::from([0, 49, 99]));
        assert_eq!(spread(2, 50).len(), 2);
        assert!(spread(0, 5).is_empty());
    }
}
