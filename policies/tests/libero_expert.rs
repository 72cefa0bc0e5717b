//! The LIBERO expert on recorded episodes.
//!
//! `data/libero_expert.json` holds two episodes of the real simulator (mujoco 3.2.3, robosuite 1.4.1): `libero_spatial`
//! task 4, initial state 17 (the bowl in the drawer, partly under the cabinet's top), driven by the expert, and
//! `libero_object` task 2, initial state 0, where bursts of random actions make it lose the object. States are rounded to
//! a micrometre, boxes to ten; the actions beside them come from an independent implementation of the same state machine
//! in numpy, run on the rounded states.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use simloop_envs::{Info, Observation, Privileged, PrivilegedLayout};
use simloop_policies::scripted::LiberoExpert;
use simloop_policies::scripted::libero::Phase;
use simloop_policies::{Expert, PolicyError};

#[derive(Deserialize)]
struct Episode {
    instruction: String,
    /// Fields that stay the same.
    #[serde(rename = "static")]
    constant: BTreeMap<String, Vec<f64>>,
    /// Names and lengths of the fields that change.
    fields: Vec<(String, usize)>,
    /// Values of `fields`, and the action `[7]`.
    steps: Vec<(Vec<f64>, Vec<f64>)>,
}

impl Episode {
    fn all() -> [Self; 2] {
        serde_json::from_str(include_str!("data/libero_expert.json")).unwrap()
    }

    /// The state at a step, with fields replaced.
    fn info(&self, step: usize, replace: &[(&str, Vec<f64>)]) -> Info {
        let mut fields = self.constant.clone();
        let mut values = self.steps[step].0.iter().copied();
        for (name, len) in &self.fields {
            fields.insert(name.clone(), values.by_ref().take(*len).collect());
        }
        for (name, numbers) in replace {
            fields.insert((*name).to_owned(), numbers.clone());
        }
        let layout = PrivilegedLayout::new(fields.iter().map(|(name, v)| (name.clone(), v.len())));
        let values: Vec<f64> = fields.into_values().flatten().collect();
        Info { privileged: Privileged::new(Arc::new(layout), values.into()), ..Info::default() }
    }

    fn field(&self, step: usize, name: &str) -> Vec<f64> {
        self.info(step, &[]).privileged.unwrap().get(name).unwrap().to_vec()
    }

    fn obs(&self) -> Observation {
        Observation {
            images: BTreeMap::new(),
            proprio: ndarray::ArcArray1::zeros(8),
            instruction: self.instruction.as_str().into(),
        }
    }
}

fn label(expert: &mut LiberoExpert, obs: &Observation, info: &Info) -> Vec<f64> {
    let chunk = expert.label(obs, info).unwrap().expect("the expert has an opinion");
    assert_eq!(chunk.view().dim(), (1, 7));
    chunk.view().iter().map(|&v| f64::from(v)).collect()
}

/// Runs the expert along a recorded episode; its phase after each label.
fn follow(episode: &Episode, expert: &mut LiberoExpert) -> Vec<Option<Phase>> {
    let obs = episode.obs();
    (0..episode.steps.len())
        .map(|step| {
            let action = label(expert, &obs, &episode.info(step, &[]));
            for (i, (ours, theirs)) in action.iter().zip(&episode.steps[step].1).enumerate() {
                assert!(
                    (ours - theirs).abs() < 1e-6,
                    "`{}` step {step} action {i}: {ours} instead of {theirs} in {:?}",
                    episode.instruction,
                    expert.phase()
                );
            }
            expert.phase()
        })
        .collect()
}

#[test]
fn labels_equal_the_recorded_actions() {
    for (episode, failures) in Episode::all().iter().zip([0, 1]) {
        let mut expert = LiberoExpert::new();
        let phases = follow(episode, &mut expert);
        assert_eq!(expert.failures(), failures, "{}", episode.instruction);
        assert_eq!(phases.contains(&Some(Phase::Retreat)), failures > 0);
        assert_eq!(phases.last(), Some(&Some(Phase::Carry)), "success comes while it still holds");
        // After a reset the same episode gives the same labels again.
        expert.reset();
        assert_eq!(follow(episode, &mut expert), phases);
    }
}

#[test]
fn a_new_expert_finds_the_phase_of_any_state() {
    for episode in &Episode::all() {
        let phases = follow(episode, &mut LiberoExpert::new());
        let (mut asked, mut agreed) = (0, 0);
        for (step, phase) in phases.iter().enumerate() {
            // Between attempts there is nothing to find, nor while the object slips away.
            let lost = phases[step..].iter().take(4).any(|p| *p == Some(Phase::Retreat));
            if lost || !matches!(phase, Some(Phase::Reach | Phase::Carry)) {
                continue;
            }
            let mut fresh = LiberoExpert::new();
            let action = label(&mut fresh, &episode.obs(), &episode.info(step, &[]));
            asked += 1;
            agreed += u32::from(fresh.phase() == *phase);
            // Never lets go of what it carries.
            assert!(*phase != Some(Phase::Carry) || action[6] == 1.0, "step {step}");
        }
        assert!(agreed * 100 >= asked * 95, "`{}`: {agreed} of {asked}", episode.instruction);
    }
}

#[test]
fn a_dropped_object_is_let_go_and_fetched_again() {
    let [_, episode] = Episode::all();
    let obs = episode.obs();
    let mut expert = LiberoExpert::new();
    let phases = follow(&episode, &mut expert);
    let carried = phases.iter().rposition(|p| *p == Some(Phase::Carry)).unwrap() - 5;
    let mut expert = LiberoExpert::new();
    for step in 0..carried {
        label(&mut expert, &obs, &episode.info(step, &[]));
    }
    assert_eq!(expert.phase(), Some(Phase::Carry));
    let before = expert.failures();
    // The dressing is back where it stood; the hand is where it was.
    let at_start = [
        ("salad_dressing_1_pos", episode.field(0, "salad_dressing_1_pos")),
        ("salad_dressing_1_quat_xyzw", episode.field(0, "salad_dressing_1_quat_xyzw")),
    ];
    let lost = episode.info(carried, &at_start);
    label(&mut expert, &obs, &lost);
    assert_eq!(expert.phase(), Some(Phase::Retreat));
    // A grip that was taken up rather than planned is no candidate that could be marked.
    assert!(expert.failures() <= before + 1);
    for _ in 0..10 {
        assert_eq!(label(&mut expert, &obs, &lost)[6], -1.0);
    }
    let back = label(&mut expert, &obs, &lost);
    assert_eq!(expert.phase(), Some(Phase::Reach));
    let (hand, object) = (episode.field(carried, "eef_pos"), &at_start[0].1);
    let towards: f64 = (0..2).map(|i| back[i] * (object[i] - hand[i])).sum();
    assert!(towards > 0.0, "it moves to the object: {back:?}");
}

#[test]
fn fingers_that_meet_count_as_a_failed_grasp() {
    let [_, episode] = Episode::all();
    let obs = episode.obs();
    let phases = follow(&episode, &mut LiberoExpert::new());
    let closing = phases.iter().position(|p| *p == Some(Phase::Close)).unwrap();
    let mut expert = LiberoExpert::new();
    for step in 0..=closing {
        label(&mut expert, &obs, &episode.info(step, &[]));
    }
    let empty = episode.info(closing, &[("gripper_qpos", vec![0.0, 0.0])]);
    let mut labels = 0;
    while expert.phase() == Some(Phase::Close) {
        label(&mut expert, &obs, &empty);
        labels += 1;
        assert!(labels < 10, "an empty hand is noticed");
    }
    assert_eq!((expert.phase(), expert.failures()), (Some(Phase::Retreat), 1));
}

#[test]
fn what_is_missing_is_named() {
    let [episode, _] = Episode::all();
    let obs = episode.obs();
    let mut expert = LiberoExpert::new();
    let error = expert.label(&obs, &Info::default()).unwrap_err();
    assert!(error.to_string().contains("privileged state"), "{error}");

    let mut without = Episode::all().into_iter().next().unwrap();
    without.constant.retain(|name, _| !name.starts_with("plate_1"));
    without.fields.iter_mut().for_each(|(name, _)| *name = name.replace("plate_1", "dish_1"));
    let error = expert.label(&obs, &without.info(0, &[])).unwrap_err();
    assert!(
        matches!(&error, PolicyError::Missing { what, .. } if what.contains("plate_1")),
        "{error}"
    );

    let goal = Observation { instruction: "turn on the stove".into(), ..obs };
    let error = expert.label(&goal, &episode.info(0, &[])).unwrap_err();
    assert!(matches!(error, PolicyError::UnsupportedTask { .. }), "{error}");
}
