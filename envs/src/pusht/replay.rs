//! Fidelity: recorded actions from recorded states, one step at a time and open loop.
//!
//! One step: restore the recorded state (agent's velocity included), apply the recorded action, compare the block's
//! eight keypoints with the recorded successor. Open loop: restore the first state only and apply all actions. A wrong
//! engine shows in the first number everywhere; the second is meaningful where the recorded episode itself is not
//! chaotic (a grazing contact turns 0.01 px into 100 px).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::coverage::{coverage, reward};
use super::frames;
use super::geometry::{Point, Pose, wrap_angle};
use super::recording::{RecordedCase, Recording};
use super::reset::InitialState;
use super::scene::{Scene, SceneState};
use crate::EnvError;

/// What a replay found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayReport {
    /// What made the recording.
    pub recorded_with: String,
    /// What replayed it.
    pub replayed_with: String,
    /// Per episode.
    pub cases: Vec<CaseReport>,
    /// Per group of cases (name without its trailing number), and `all`.
    pub groups: BTreeMap<String, GroupReport>,
    /// Pixel differences, if recorded frames were found.
    pub frames: Option<FrameReport>,
}

/// Quantiles of keypoint errors, px. The error of a step is the mean distance over the eight keypoints.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ErrorSummary {
    /// Number of steps.
    pub count: usize,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Maximum.
    pub max: f64,
}

/// One episode's differences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseReport {
    /// The case's name.
    pub name: String,
    /// Number of steps.
    pub steps: usize,
    /// One-step keypoint error over the steps in which the block was touched.
    pub one_step_contact_px: ErrorSummary,
    /// One-step keypoint error over the other steps.
    pub one_step_free_px: ErrorSummary,
    /// Largest one-step error of the agent's position, px.
    pub one_step_agent_px: f64,
    /// Open loop: mean keypoint distance after the last action, px.
    pub open_loop_final_px: f64,
    /// Open loop: largest mean keypoint distance at any step, px.
    pub open_loop_max_px: f64,
    /// Largest coverage of the recorded episode.
    pub max_coverage_recorded: f64,
    /// Largest coverage of the open-loop replay.
    pub max_coverage_replayed: f64,
    /// Largest difference between recorded coverage and ours *of the recorded pose*; `None` without recorded coverage.
    pub coverage_function_diff: Option<f64>,
    /// Largest difference between the recorded first observation and ours from the requested state, px and rad.
    pub reset_diff: Option<f64>,
    /// Whether `seed` alone gives the requested state, bit for bit.
    pub seed_gives_requested_state: Option<bool>,
}

/// A group's differences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Number of cases.
    pub cases: usize,
    /// One-step keypoint error over the steps in which the block was touched.
    pub one_step_contact_px: ErrorSummary,
    /// One-step keypoint error over the other steps.
    pub one_step_free_px: ErrorSummary,
    /// Median over cases of the final open-loop error, px.
    pub open_loop_final_median_px: f64,
    /// Maximum over cases of the final open-loop error, px.
    pub open_loop_final_max_px: f64,
    /// Maximum over cases of the difference in largest coverage.
    pub max_coverage_diff: f64,
    /// Maximum over cases of the difference of the first observation.
    pub reset_diff: Option<f64>,
}

/// Pixel differences between recorded frames and ours of the same states.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FrameReport {
    /// Number of frames.
    pub frames: usize,
    /// Mean absolute difference, of 255.
    pub mean_abs_diff: f64,
    /// Largest mean absolute difference of one frame, of 255.
    pub worst_frame_mean_abs_diff: f64,
    /// Share of pixels with equal red, green and blue.
    pub exact_pixels: f64,
}

/// Replays a recording file and compares. Frames are compared with `frames` or, if that is `None`, with a `frames.npz`
/// beside the recording, if there is one (arrays `<case>_frames` `[K, H, W, 3]` u8 and `<case>_idx` `[K]` i64).
///
/// # Errors
/// [`EnvError::File`] if a file cannot be read or has another layout.
pub fn replay_file(path: &Path, frames: Option<&Path>) -> Result<ReplayReport, EnvError> {
    let recording = Recording::read(path)?;
    let beside = path.with_file_name("frames.npz");
    let frames = frames.or_else(|| beside.is_file().then_some(beside.as_path()));
    let frames = frames.map(|file| frames::compare(file, &recording)).transpose()?;
    Ok(ReplayReport { frames, ..replay(&recording) })
}

/// Replays a recording in memory and compares all but frames.
pub fn replay(recording: &Recording) -> ReplayReport {
    let replays: Vec<CaseReplay> = recording.cases.iter().map(CaseReplay::new).collect();
    let mut groups: BTreeMap<String, Vec<&CaseReplay>> = BTreeMap::new();
    for (case, replay) in recording.cases.iter().zip(&replays) {
        groups.entry(case.group().to_owned()).or_default().push(replay);
        groups.entry("all".to_owned()).or_default().push(replay);
    }
    ReplayReport {
        recorded_with: recording.source.clone(),
        replayed_with: engine().to_owned(),
        groups: groups.into_iter().map(|(name, cases)| (name, group_report(&cases))).collect(),
        cases: replays.into_iter().map(|r| r.report).collect(),
        frames: None,
    }
}

/// Runs the actions of a recording open loop and returns our own recording of them, in the same layout.
pub fn rerun(recording: &Recording) -> Recording {
    let cases = recording.cases.iter().map(rerun_case).collect();
    Recording { source: engine().to_owned(), cases }
}

/// Name and version of what decides a trajectory.
pub(super) fn engine() -> &'static str {
    concat!("simloop pusht ", env!("CARGO_PKG_VERSION"), ", rapier3d (enhanced-determinism)")
}

struct CaseReplay {
    report: CaseReport,
    contact: Vec<f64>,
    free: Vec<f64>,
}

impl CaseReplay {
    fn new(case: &RecordedCase) -> Self {
        let (mut contact, mut free) = (Vec::new(), Vec::new());
        let mut agent = 0.0_f64;
        let mut scene = Scene::new(case.state(0));
        for (t, &action) in case.action.iter().enumerate() {
            scene.set_state(case.state(t));
            scene.control_step(action);
            let (ours, theirs) = (scene.state(), case.state(t + 1));
            let error = keypoint_distance(&ours.block, &theirs.block);
            if case.touched(t) {
                contact.push(error);
            } else {
                free.push(error);
            }
            agent = agent.max(distance(ours.agent, theirs.agent));
        }
        let open_loop = rerun_case(case);
        let distances: Vec<f64> = (1..=case.len())
            .map(|t| keypoint_distance(&open_loop.state(t).block, &case.state(t).block))
            .collect();
        let recorded: Vec<f64> = (1..=case.len()).map(|t| coverage(&case.state(t).block)).collect();
        let peak = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        let function_diff = |c: &[f64]| peak(&abs_diff(c, &recorded));
        let (reset_diff, seed_matches) = reset_differences(case);
        let report = CaseReport {
            name: case.name.clone(),
            steps: case.len(),
            one_step_contact_px: summary(&contact),
            one_step_free_px: summary(&free),
            one_step_agent_px: agent,
            open_loop_final_px: distances.last().copied().unwrap_or(0.0),
            open_loop_max_px: peak(&distances),
            max_coverage_recorded: if case.coverage.is_empty() {
                peak(&recorded)
            } else {
                peak(&case.coverage)
            },
            max_coverage_replayed: peak(&open_loop.coverage),
            coverage_function_diff: (!case.coverage.is_empty())
                .then(|| function_diff(&case.coverage)),
            reset_diff,
            seed_gives_requested_state: seed_matches,
        };
        Self { report, contact, free }
    }
}

fn rerun_case(case: &RecordedCase) -> RecordedCase {
    let mut ours = RecordedCase {
        agent_pos: vec![],
        agent_vel: vec![],
        block_pose: vec![],
        coverage: vec![],
        reward: vec![],
        terminated: vec![],
        n_contacts: vec![],
        ..case.clone()
    };
    let mut push = |state: &SceneState| {
        ours.agent_pos.push(state.agent);
        ours.agent_vel.push(state.agent_velocity);
        ours.block_pose.push([state.block.x, state.block.y, state.block.angle]);
    };
    let mut scene = Scene::new(case.state(0));
    push(scene.state());
    for &action in &case.action {
        scene.control_step(action);
        push(scene.state());
        let covered = coverage(&scene.state().block);
        ours.coverage.push(covered);
        ours.reward.push(reward(covered));
        ours.terminated.push(covered > super::coverage::SUCCESS_COVERAGE);
        ours.n_contacts.push(u32::from(scene.touched()));
    }
    ours
}

/// Largest difference to the recorded first observation, and whether the seed draws the requested state.
fn reset_differences(case: &RecordedCase) -> (Option<f64>, Option<bool>) {
    let requested = case.reset_to_state.or(case.init_state_requested);
    let diff = requested.zip(case.reset_obs).map(|(requested, obs)| {
        let state = InitialState::from_array(requested).placed();
        let SceneState { agent, block, .. } = state;
        let ours = [agent[0], agent[1], block.x, block.y, wrap_angle(block.angle)];
        abs_diff(&ours, &obs).into_iter().fold(0.0, f64::max)
    });
    let seeded = (case.reset_to_state.is_none())
        .then(|| case.seed.zip(case.init_state_requested))
        .flatten()
        .map(|(seed, requested)| InitialState::gym_pusht(seed).to_array() == requested);
    (diff, seeded)
}

fn group_report(cases: &[&CaseReplay]) -> GroupReport {
    let pool = |pick: fn(&CaseReplay) -> &Vec<f64>| {
        summary(&cases.iter().flat_map(|c| pick(c).iter().copied()).collect::<Vec<_>>())
    };
    let finals: Vec<f64> = cases.iter().map(|c| c.report.open_loop_final_px).collect();
    let last = summary(&finals);
    GroupReport {
        cases: cases.len(),
        one_step_contact_px: pool(|c| &c.contact),
        one_step_free_px: pool(|c| &c.free),
        open_loop_final_median_px: last.p50,
        open_loop_final_max_px: last.max,
        max_coverage_diff: cases
            .iter()
            .map(|c| (c.report.max_coverage_recorded - c.report.max_coverage_replayed).abs())
            .fold(0.0, f64::max),
        reset_diff: cases.iter().filter_map(|c| c.report.reset_diff).reduce(f64::max),
    }
}

fn abs_diff(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).collect()
}

fn distance(a: Point, b: Point) -> f64 {
    let (dx, dy) = (a[0] - b[0], a[1] - b[1]);
    (dx * dx + dy * dy).sqrt()
}

/// Mean distance over the eight keypoints, px.
fn keypoint_distance(a: &Pose, b: &Pose) -> f64 {
    a.keypoints().iter().zip(b.keypoints()).map(|(&p, q)| distance(p, q)).sum::<f64>() / 8.0
}

/// Quantiles by linear interpolation between order statistics (numpy's default).
fn summary(errors: &[f64]) -> ErrorSummary {
    let mut sorted = errors.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
        let at = q * last as f64;
        let low = at.floor() as usize;
        let high = (low + 1).min(last);
        sorted[low] + (at - low as f64) * (sorted[high] - sorted[low])
    };
    ErrorSummary {
        count: sorted.len(),
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        max: quantile(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        // np.percentile([4, 1, 3, 2], [50, 90, 99]) = [2.5, 3.7, 3.97]
        let s = summary(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((s.count, s.p50, s.max), (4, 2.5, 4.0));
        assert!((s.p90 - 3.7).abs() < 1e-12 && (s.p99 - 3.97).abs() < 1e-12);
        assert_eq!(summary(&[]), ErrorSummary::default());
    }

    #[test]
    fn a_shifted_block_is_off_by_the_shift() {
        let a = Pose { x: 100.0, y: 100.0, angle: 0.0 };
        let b = Pose { x: 103.0, y: 104.0, angle: 0.0 };
        assert!((keypoint_distance(&a, &b) - 5.0).abs() < 1e-12);
    }
}
