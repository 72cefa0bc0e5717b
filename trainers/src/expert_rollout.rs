//! Rollouts in which an expert takes part: demonstrations for replay, and labels for DAgger.

use std::collections::BTreeMap;

use ndarray::Array2;
use simloop_algos::dagger::Turns;
use simloop_algos::{Trajectory, Transition};
use simloop_envs::{ActionChunk, EnvId, Observation};
use simloop_policies::vla::VlaPolicy;
use simloop_policies::{ActMode, Decision, Expert};

use crate::TrainerError;
use crate::data::{DemoEpisode, Frames};
use crate::place::Place;
use crate::rollout::{Decider, Seen};

/// Experts, one per environment.
pub struct Experts {
    place: Place,
    by_env: BTreeMap<EnvId, Box<dyn Expert>>,
    hold: ActionChunk,
}

impl Experts {
    /// The scripted ones of `place`.
    ///
    /// # Errors
    /// Never in practice.
    pub fn new(place: &Place) -> Result<Self, TrainerError> {
        Ok(Self { place: place.clone(), by_env: BTreeMap::new(), hold: place.hold()? })
    }

    /// What the expert would do; none where it has no opinion.
    fn label(
        &mut self,
        seen: &Seen<'_>,
        begins: bool,
    ) -> Result<Option<ActionChunk>, TrainerError> {
        let expert = self.by_env.entry(seen.env).or_insert_with(|| self.place.expert());
        if begins {
            expert.reset();
        }
        let Some(obs) = seen.window.last() else { return Ok(None) };
        Ok(expert.label(obs, seen.info)?.map(|chunk| chunk.truncated(1)))
    }
}

/// A single action as a decision; the latent is the action in the environment's units.
fn single(chunk: ActionChunk) -> Decision {
    let latent = chunk.view().iter().copied().collect();
    Decision { chunk, latent, log_prob: Vec::new() }
}

impl Decider for Experts {
    fn decide(&mut self, seen: &[Seen<'_>]) -> Result<Vec<Decision>, TrainerError> {
        seen.iter()
            .map(|one| {
                let label = self.label(one, one.decision == 0)?;
                Ok(single(label.unwrap_or_else(|| self.hold.clone())))
            })
            .collect()
    }

    fn batch(&self) -> usize {
        1
    }
}

/// The decisions of an expert, one action each, as decisions of `t_a` actions that begin at every step: `t_a`
/// trajectories, the k-th beginning at step k. The last action is repeated past the end.
pub fn chunked(trajectory: &Trajectory, t_a: usize, gamma: f32) -> Vec<Trajectory> {
    let singles = &trajectory.transitions;
    (0..t_a.min(singles.len()))
        .map(|offset| {
            let transitions = singles[offset..]
                .chunks(t_a)
                .map(|part| {
                    let mut latent: Vec<f32> =
                        part.iter().flat_map(|t| t.latent.iter().copied()).collect();
                    let last = &part[part.len() - 1].latent;
                    for _ in part.len()..t_a {
                        latent.extend_from_slice(last);
                    }
                    let (mut reward, mut discount) = (0.0, 1.0);
                    for step in part {
                        reward += discount * step.reward;
                        discount *= gamma.powi(step.steps as i32);
                    }
                    Transition {
                        window: part[0].window.clone(),
                        latent,
                        log_prob: Vec::new(),
                        reward,
                        steps: part.iter().map(|t| t.steps).sum(),
                    }
                })
                .collect();
            Trajectory { transitions, ..trajectory.clone() }
        })
        .collect()
}

/// One labelled step.
type Labelled = (Observation, Vec<f32>);

/// Learner and expert in turns; keeps the expert's labels by episode.
pub struct Mixed<'a> {
    learner: Option<&'a VlaPolicy>,
    experts: &'a mut Experts,
    turns: Box<dyn Fn(&Seen<'_>) -> Turns + 'a>,
    labels: BTreeMap<u64, Vec<Labelled>>,
}

impl<'a> Mixed<'a> {
    /// Without a learner the expert does everything.
    pub fn new(
        learner: Option<&'a VlaPolicy>,
        experts: &'a mut Experts,
        turns: impl Fn(&Seen<'_>) -> Turns + 'a,
    ) -> Self {
        Self { learner, experts, turns: Box::new(turns), labels: BTreeMap::new() }
    }

    /// What the expert said, an episode per entry, in the order of their numbers. Episodes of `lost` numbers are left
    /// out.
    ///
    /// # Errors
    /// Never in practice.
    pub fn into_episodes(
        self,
        kept: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<DemoEpisode>, TrainerError> {
        self.labels
            .into_iter()
            .filter(|(number, steps)| kept(*number) && !steps.is_empty())
            .map(|(_, steps)| episode(steps))
            .collect()
    }
}

fn episode(steps: Vec<Labelled>) -> Result<DemoEpisode, TrainerError> {
    let table = |rows: Vec<Vec<f32>>| {
        let width = rows.first().map_or(0, Vec::len);
        Array2::from_shape_vec((rows.len(), width), rows.concat())
            .map_err(|e| TrainerError::config(format!("keep labels: {e}")))
    };
    let instruction = std::sync::Arc::clone(&steps[0].0.instruction);
    let mut images: BTreeMap<String, Frames> = BTreeMap::new();
    for camera in steps[0].0.images.keys() {
        let frames: Vec<_> =
            steps.iter().filter_map(|(obs, _)| obs.images.get(camera).cloned()).collect();
        images.insert(camera.clone(), Frames::Raw(frames));
    }
    Ok(DemoEpisode {
        instruction,
        proprio: table(steps.iter().map(|(obs, _)| obs.proprio.to_vec()).collect())?,
        actions: table(steps.into_iter().map(|(_, action)| action).collect())?,
        images,
    })
}

impl Decider for Mixed<'_> {
    fn decide(&mut self, seen: &[Seen<'_>]) -> Result<Vec<Decision>, TrainerError> {
        let mut decisions: Vec<Option<Decision>> = Vec::with_capacity(seen.len());
        for one in seen {
            let turns = (self.turns)(one);
            let acts = self.learner.is_none() || turns.expert_acts(one.decision);
            let keeps = self.learner.is_none() || turns.keeps(one.decision);
            if one.decision == 0 {
                self.labels.insert(one.job.number, Vec::new());
            }
            if !acts && !keeps {
                decisions.push(None);
                continue;
            }
            let first = self.labels.get(&one.job.number).is_none_or(Vec::is_empty);
            let label = self.experts.label(one, first)?;
            if let (true, Some(label), Some(obs)) = (keeps, &label, one.window.last()) {
                let action: Vec<f32> = label.view().iter().copied().collect();
                self.labels.entry(one.job.number).or_default().push((obs.clone(), action));
            }
            let chunk = label.unwrap_or_else(|| self.experts.hold.clone());
            decisions.push(acts.then(|| single(chunk)));
        }
        if let Some(learner) = self.learner {
            let open: Vec<usize> = (0..seen.len()).filter(|&i| decisions[i].is_none()).collect();
            let windows: Vec<_> = open.iter().map(|&i| seen[i].window.to_vec()).collect();
            let seeds: Vec<_> = open.iter().map(|&i| seen[i].seed).collect();
            for (i, one) in
                open.into_iter().zip(learner.act_on(&windows, &seeds, ActMode::Deterministic)?)
            {
                decisions[i] =
                    Some(Decision { chunk: one, latent: Vec::new(), log_prob: Vec::new() });
            }
        }
        Ok(decisions.into_iter().flatten().collect())
    }

    fn batch(&self) -> usize {
        self.learner.map_or(1, |learner| learner.config().inference_batch)
    }
}
