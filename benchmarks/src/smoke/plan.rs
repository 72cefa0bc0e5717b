//! What is run, in which order, and how it is judged.

use super::Measure;

/// The settings of every program, as `(file, text)`: written to the output folder, so that a stage can be run again by hand.
pub const SETTINGS: [(&str, &str); 5] = [
    ("bc.toml", include_str!("../../smoke/bc.toml")),
    ("ppo.toml", include_str!("../../smoke/ppo.toml")),
    ("grpo.toml", include_str!("../../smoke/grpo.toml")),
    ("sac.toml", include_str!("../../smoke/sac.toml")),
    ("dagger.toml", include_str!("../../smoke/dagger.toml")),
];

/// Where a stage's policy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Fresh weights in the architecture of the result.
    Nothing,
    /// The cloned policy.
    Cloned,
}

/// One algorithm.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Its name for `train`, and of its settings and folder.
    pub algorithm: &'static str,
    /// What it began with.
    pub start: Start,
    /// What must rise.
    pub measure: Measure,
    /// … by more than this, where it is coverage: hardly any movement is worse than the untrained policy's, not even that of SAC with
    /// its sign the wrong way round (+0.011).
    pub margin: f64,
}

/// The algorithms, in the order of the report: first what the others begin with, then the dearest first.
pub const STAGES: [Stage; 5] = [
    Stage { algorithm: "bc", start: Start::Nothing, measure: Measure::Coverage, margin: 0.05 },
    Stage { algorithm: "ppo", start: Start::Cloned, measure: Measure::Coverage, margin: 0.0 },
    Stage { algorithm: "dagger", start: Start::Cloned, measure: Measure::Success, margin: 0.0 },
    Stage { algorithm: "grpo", start: Start::Cloned, measure: Measure::Coverage, margin: 0.0 },
    Stage { algorithm: "sac", start: Start::Nothing, measure: Measure::Coverage, margin: 0.05 },
];

/// Demonstrations of the scripted expert to clone.
pub const DEMONSTRATIONS: u32 = 200;

/// Steps after which an episode is over when a policy is judged; as `env.max_steps` in the settings.
pub const MAX_STEPS: u32 = 150;

#[cfg(test)]
mod tests {
    use simloop_trainers::config::RunConfig;
    use simloop_trainers::place::PlaceConfig;
    use simloop_trainers::rl_config::RlConfig;

    use super::*;

    #[test]
    fn every_stage_has_settings_and_learns_in_episodes_as_long_as_those_it_is_judged_by() {
        for stage in STAGES {
            let name = format!("{}.toml", stage.algorithm);
            let (_, text) = SETTINGS.iter().find(|(file, _)| *file == name).unwrap();
            if stage.algorithm == "bc" {
                toml::from_str::<RunConfig>(text).unwrap();
                continue;
            }
            let config: RlConfig = toml::from_str(text).unwrap();
            let PlaceConfig::Pusht { max_steps, .. } = config.env else {
                panic!("{name} acts elsewhere")
            };
            assert_eq!(max_steps, MAX_STEPS, "{name}");
            assert_eq!(config.policy.init.is_some(), stage.start == Start::Cloned, "{name}");
        }
    }
}
