//! Protocols: the numbers that make two success rates comparable, each with its source.
//!
//! A protocol is a versioned TOML file under `protocols/`, carried inside the program and printed in every report.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use simloop_envs::libero::{FixtureSeeding, INIT_STATES, ImageTransform, LiberoConfig, Suite};

use crate::BenchError;
use crate::ledger::ProtocolLine;

const LIBERO: [(&str, &str); 4] = [
    ("simloop", include_str!("../protocols/libero-simloop.toml")),
    ("openvla", include_str!("../protocols/libero-openvla.toml")),
    ("openpi", include_str!("../protocols/libero-openpi.toml")),
    ("lerobot", include_str!("../protocols/libero-lerobot.toml")),
];

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// The file, or the reason, behind it.
    pub source: String,
}

/// How LIBERO is evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiberoProtocol {
    /// `libero-openpi`.
    pub name: String,
    /// Rises with every change of a number.
    pub version: u32,
    /// In one sentence.
    pub summary: String,
    /// Where this differs from the program it is named after.
    pub differences: Vec<String>,
    /// Suite to the number of policy steps that ends an episode.
    pub max_steps: BTreeMap<String, Sourced<u32>>,
    /// What happens before the first policy step.
    pub settle: Settle,
    /// What a policy sees.
    pub images: Images,
    /// Which episodes are run.
    pub episodes: Episodes,
}

/// What happens before the first policy step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settle {
    /// Steps during which objects fall into place; they do not count.
    pub steps: Sourced<u32>,
    /// What those steps command.
    pub action: Sourced<[f64; 7]>,
}

/// What a policy sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Camera names.
    pub cameras: Sourced<Vec<String>>,
    /// Height and width, pixels.
    pub size: Sourced<[u32; 2]>,
    /// Orientation.
    pub transform: Sourced<ImageTransform>,
}

/// Which episodes are run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Episodes {
    /// Per task.
    pub trials: Sourced<u32>,
    /// How fixture poses are drawn.
    pub fixture_seeding: Sourced<FixtureSeeding>,
    /// Which initial state a trial starts from.
    pub init_state: Sourced<InitState>,
    /// What counts as a success.
    pub success: Sourced<String>,
    /// Actions executed of each chunk; the policy's own number where this is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_action_steps: Option<Sourced<u32>>,
}

/// Which stored initial state a trial starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitState {
    /// Trial k starts from state k, for all four published rules.
    Trial,
}

impl LiberoProtocol {
    /// Names that [`load`](Self::load) knows, the default first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        LIBERO.iter().map(|(name, _)| *name)
    }

    /// A built-in protocol: `simloop`, `openvla`, `openpi` or `lerobot`.
    ///
    /// # Errors
    /// [`BenchError::Usage`] for another name.
    pub fn load(name: &str) -> Result<Self, BenchError> {
        let name = name.strip_prefix("libero-").unwrap_or(name);
        let Some((_, text)) = LIBERO.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = Self::names().collect();
            return Err(BenchError::usage(format!(
                "there is no LIBERO protocol `{name}`; choose {}",
                known.join(", ")
            )));
        };
        Self::parse(text)
    }

    /// Reads and checks a protocol file.
    ///
    /// # Errors
    /// [`BenchError::Usage`] naming the field.
    pub fn parse(text: &str) -> Result<Self, BenchError> {
        let protocol: Self = toml::from_str(text)
            .map_err(|e| BenchError::usage(format!("the protocol is not valid: {e}")))?;
        for suite in Suite::ALL {
            if !protocol.max_steps.contains_key(suite.name()) {
                return Err(BenchError::usage(format!(
                    "protocol `{}` has no `max_steps.{suite}`",
                    protocol.name
                )));
            }
        }
        let unsourced: Vec<_> = protocol
            .all_lines()
            .into_iter()
            .filter(|line| line.source.trim().is_empty())
            .map(|line| line.name)
            .collect();
        if !unsourced.is_empty() {
            return Err(BenchError::usage(format!(
                "protocol `{}` gives no source for {}",
                protocol.name,
                unsourced.join(", ")
            )));
        }
        if protocol.episodes.trials.value > INIT_STATES {
            return Err(BenchError::usage(format!(
                "protocol `{}` asks for {} trials; a task has {INIT_STATES} initial states",
                protocol.name, protocol.episodes.trials.value
            )));
        }
        protocol.env_config(Suite::Spatial).validate()?;
        Ok(protocol)
    }

    /// Name and version, as results carry it: `libero-openpi-v1`.
    pub fn label(&self) -> String {
        format!("{}-v{}", self.name, self.version)
    }

    /// Policy steps that end an episode of `suite`.
    pub fn max_steps(&self, suite: Suite) -> u32 {
        self.max_steps[suite.name()].value
    }

    /// The initial state of a trial.
    pub fn init_state(&self, trial: u32) -> u32 {
        match self.episodes.init_state.value {
            InitState::Trial => trial,
        }
    }

    /// The environment of a suite under this protocol, as a policy with cameras sees it.
    pub fn env_config(&self, suite: Suite) -> LiberoConfig {
        LiberoConfig {
            task: format!("{suite}/0"),
            cameras: self.images.cameras.value.clone(),
            image_size: self.images.size.value,
            image_transform: self.images.transform.value,
            fixture_seeding: self.episodes.fixture_seeding.value,
            settle_steps: self.settle.steps.value,
            settle_action: self.settle.action.value,
            step_limits: self.max_steps.iter().map(|(s, n)| (s.clone(), n.value)).collect(),
            ..LiberoConfig::default()
        }
    }

    /// Every number that holds for `suite`, with its source.
    pub fn lines(&self, suite: Suite) -> Vec<ProtocolLine> {
        let limit = format!("max_steps.{suite}");
        self.all_lines()
            .into_iter()
            .filter(|line| !line.name.starts_with("max_steps.") || line.name == limit)
            .collect()
    }

    fn all_lines(&self) -> Vec<ProtocolLine> {
        let mut lines: Vec<_> =
            self.max_steps.iter().map(|(s, n)| line(&format!("max_steps.{s}"), n)).collect();
        lines.extend([
            line("settle.steps", &self.settle.steps),
            line("settle.action", &self.settle.action),
            line("images.cameras", &self.images.cameras),
            line("images.size", &self.images.size),
            line("images.transform", &self.images.transform),
            line("episodes.trials", &self.episodes.trials),
            line("episodes.fixture_seeding", &self.episodes.fixture_seeding),
            line("episodes.init_state", &self.episodes.init_state),
            line("episodes.success", &self.episodes.success),
        ]);
        lines.extend(
            self.episodes.n_action_steps.as_ref().map(|n| line("episodes.n_action_steps", n)),
        );
        lines
    }
}

fn line<T: Serialize>(name: &str, sourced: &Sourced<T>) -> ProtocolLine {
    let value = match serde_json::to_value(&sourced.value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    };
    ProtocolLine { name: name.to_owned(), value, source: sourced.source.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_protocols_differ_where_their_programs_do() {
        let [ours, openvla, openpi, lerobot] =
            ["simloop", "openvla", "openpi", "lerobot"].map(|n| LiberoProtocol::load(n).unwrap());
        // The same comment stands beside both numbers in their sources.
        assert_eq!(openpi.max_steps(Suite::Spatial), 220);
        assert_eq!(lerobot.max_steps(Suite::Spatial), 280);
        for suite in Suite::ALL {
            assert_eq!(openvla.max_steps(suite), openpi.max_steps(suite));
            assert_eq!(ours.max_steps(suite), openpi.max_steps(suite));
        }
        let seeding = |p: &LiberoProtocol| p.episodes.fixture_seeding.value;
        assert_eq!(seeding(&ours), FixtureSeeding::PerTrial);
        assert_eq!(seeding(&openvla), FixtureSeeding::Openvla);
        assert_eq!(seeding(&openpi), FixtureSeeding::Openpi);
        assert_eq!(seeding(&lerobot), FixtureSeeding::Lerobot);
        let replan = |p: &LiberoProtocol| p.episodes.n_action_steps.as_ref().map(|n| n.value);
        assert_eq!([replan(&openvla), replan(&openpi), replan(&lerobot)], [Some(1), Some(5), None]);
        assert_eq!(openpi.label(), "libero-openpi-v1");
    }

    #[test]
    fn every_line_of_a_suite_carries_a_source() {
        for name in LiberoProtocol::names() {
            let lines = LiberoProtocol::load(name).unwrap().lines(Suite::Goal);
            assert!(lines.len() >= 10 && lines.iter().all(|l| !l.source.is_empty()), "{name}");
            let limits: Vec<_> = lines.iter().filter(|l| l.name.starts_with("max_steps")).collect();
            assert_eq!(limits.len(), 1);
            assert_eq!(limits[0].value, "300");
        }
    }

    #[test]
    fn slips_in_a_protocol_file_are_named() {
        let good = LIBERO[0].1;
        let slips = [
            (good.replace("steps = { value = 10", "stepz = { value = 10"), "stepz"),
            (good.replace("libero_90 = {", "libero_91 = {"), "max_steps.libero_90"),
            (good.replace("trials = { value = 50", "trials = { value = 51"), "50 initial states"),
            (good.replace("[256, 256]", "[256, 4096]"), "image_size"),
        ];
        for (text, word) in slips {
            let message = LiberoProtocol::parse(&text).unwrap_err().to_string();
            assert!(message.contains(word), "{word}: {message}");
        }
        let message = LiberoProtocol::load("openvlaa").unwrap_err().to_string();
        assert!(message.contains("simloop, openvla, openpi, lerobot"), "{message}");
    }
}
