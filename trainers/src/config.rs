//! A run's settings: one TOML file, then `--set a.b=c`, read once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use simloop_algos::BcConfig;
use simloop_envs::pusht::{MAX_EPISODE_STEPS, PushtObs};
use simloop_policies::optim::{AdamWConfig, EmaConfig, Schedule};
use simloop_policies::vla::VlaConfig;

use crate::TrainerError;
use crate::data::{Augment, OpenOptions};

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// CUDA if this machine has it.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device; an error without one.
    Cuda,
}

/// Everything that decides a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The run's name, and its folder below `runs/`.
    pub name: String,
    /// What all randomness is drawn from.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Threads inside one operation of libtorch; 0 leaves its own choice. Results are reproducible for one number of
    /// threads; small networks are fastest with 1.
    pub threads: i32,
    /// A policy folder, or a `.safetensors` file, whose weights the policy begins with.
    pub init_from: Option<PathBuf>,
    /// Parameters that those weights may lack, which begin as they would without them: names, with `*` for any run of
    /// characters.
    pub init_new: Vec<String>,
    /// A folder as Hugging Face writes it, whose weights the SigLIP tower of `policy.vision` begins with.
    pub vision_from: Option<PathBuf>,
    /// The demonstrations.
    pub data: DataConfig,
    /// What is done to each sample.
    pub augment: Augment,
    /// The architecture.
    pub policy: VlaConfig,
    /// The optimizer.
    pub optim: AdamWConfig,
    /// The moving average of the weights; without this section there is none.
    pub ema: Option<EmaConfig>,
    /// The loop.
    pub train: TrainConfig,
    /// Acting in between and at the end.
    pub eval: EvalConfig,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            name: "run".to_owned(),
            seed: 0,
            device: DeviceChoice::default(),
            threads: 0,
            init_from: None,
            init_new: Vec::new(),
            vision_from: None,
            data: DataConfig::default(),
            augment: Augment::default(),
            policy: VlaConfig::default(),
            optim: AdamWConfig::default(),
            ema: None,
            train: TrainConfig::default(),
            eval: EvalConfig::default(),
        }
    }
}

/// The demonstrations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// The file or folder, relative to where the program runs; its format is known by its files.
    pub path: PathBuf,
    /// What a PushT policy sees.
    pub obs: PushtObs,
    /// What else readers may be told: `[data.read.rlds]`, `[data.read.lerobot]`, `[data.read.hdf5]`.
    pub read: OpenOptions,
    /// The most steps that a chunk may reach past the end of its episode; without it every step is a sample.
    pub pad_after: Option<usize>,
    /// The share of episodes that validate.
    pub validation_fraction: f64,
    /// What the parts are drawn from, so that runs of several seeds share them.
    pub split_seed: u64,
    /// Learn from at most so many episodes.
    pub max_episodes: Option<usize>,
    /// Threads that make batches ahead; 0 makes them on the learner's.
    pub workers: usize,
    /// Batches made ahead.
    pub prefetch: usize,
    /// Bytes of frames kept in memory.
    pub cache_bytes: usize,
    /// The most tokens in the vocabulary that a policy which reads learns from the instructions.
    pub vocabulary: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            obs: PushtObs::State,
            read: OpenOptions::default(),
            pad_after: None,
            validation_fraction: 0.02, // diffusion_policy, config/task/pusht_lowdim.yaml: val_ratio
            split_seed: 42,            // as above: seed
            max_episodes: None,
            workers: 1,
            prefetch: 8,
            cache_bytes: 1 << 30,
            vocabulary: 512,
        }
    }
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Updates; 0 counts epochs instead.
    pub updates: u64,
    /// Passes over the data, where `updates` is 0.
    pub epochs: u64,
    /// Windows per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per update.
    pub accumulate: usize,
    /// Whether actions past the end of an episode are left out of the loss.
    pub mask_padding: bool,
    /// Updates between two log lines.
    pub log_every: u64,
    /// Updates between two validations; 0 for none.
    pub validate_every: u64,
    /// Windows that the validation loss is taken over, spread over the validation episodes.
    pub validate_windows: usize,
    /// Windows that actions are predicted for.
    pub predict_windows: usize,
    /// Predictions that are kept to be looked at.
    pub examples: usize,
    /// Updates between two checkpoints; 0 saves at the end only.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep_last: usize,
    /// What `best` means: larger for `eval/…`, smaller for the rest. Left out: `eval/mean_score` if the policy acts in
    /// between, else `val/loss` if there are validation episodes.
    pub best_metric: Option<String>,
    /// Stop after so many measurements of `best_metric` in a row without a better one; 0 never.
    pub patience: u32,
    /// Stop after so many updates in a row that were dropped because something was not finite.
    pub max_dropped: u32,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            updates: 0,
            epochs: 100,
            batch_size: 256, // diffusion_policy, low-dimensional
            accumulate: 1,
            mask_padding: true,
            log_every: 50,
            validate_every: 1000,
            validate_windows: 1024,
            predict_windows: 128,
            examples: 6,
            save_every: 1000,
            keep_last: 2,
            best_metric: None,
            patience: 0,
            max_dropped: 3, // bar N1 of `reliability`: three in a row stop the run
        }
    }
}

/// Where the policy acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalEnv {
    /// Nowhere.
    #[default]
    None,
    /// Our PushT, with the observation of `data.obs`.
    Pusht,
    /// The same with two targets, of which the instruction names one; episodes take turns.
    PushtTwoGoals,
}

/// Acting in between and at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Where.
    pub env: EvalEnv,
    /// Updates between two evaluations; 0 for none.
    pub every: u64,
    /// Episodes of each, always the same ones.
    pub episodes: u32,
    /// Episodes at the end; 0 for none.
    pub final_episodes: u32,
    /// What the episodes' seeds are drawn from.
    pub seed: u64,
    /// Environments at once.
    pub envs: usize,
    /// Steps after which an episode is truncated.
    pub max_steps: u32,
    /// Episodes of each evaluation in between that are filmed into the run's `videos/`: the first so many that were solved,
    /// and that were not.
    pub videos: u32,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            env: EvalEnv::None,
            every: 0,
            episodes: 50, // diffusion_policy, config/task/pusht_lowdim.yaml: n_test
            final_episodes: 100,
            seed: 100_000, // as above: test_start_seed
            envs: 16,
            max_steps: MAX_EPISODE_STEPS,
            videos: 1,
        }
    }
}

/// Settings that may differ when a run goes on: they decide how often one looks and saves and how fast it goes, not what
/// is learned.
const FREE: [&str; 18] = [
    "threads",
    "device",
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.cache_bytes",
    "train.log_every",
    "train.validate_every",
    "train.validate_windows",
    "train.predict_windows",
    "train.examples",
    "train.save_every",
    "train.keep_last",
    "train.patience",
    "train.max_dropped",
    "eval.every",
    "eval.final_episodes",
    "eval.videos",
];

impl RunConfig {
    /// Reads `path`, applies `sets` (`a.b=c`, values as in TOML, bare words as text) and checks the result.
    ///
    /// # Errors
    /// [`TrainerError::Config`] naming the file or the setting, with what would be allowed.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, TrainerError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            TrainerError::config(format!("read the settings `{}`: {e}", path.display()))
        })?;
        Self::parse(&text, sets).map_err(|detail| {
            TrainerError::config(format!("read the settings `{}`: {detail}", path.display()))
        })
    }

    fn parse(text: &str, sets: &[String]) -> Result<Self, String> {
        let config: Self = toml::from_str(&merged(text, sets)?).map_err(|e| e.to_string())?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), String> {
        folder_name(&self.name)?;
        if self.data.path.as_os_str().is_empty() {
            return Err("`data.path` is missing: where are the demonstrations?".to_owned());
        }
        if !(0.0..1.0).contains(&self.data.validation_fraction) {
            return Err(format!(
                "`data.validation_fraction` is {}; it must be at least 0 and below 1",
                self.data.validation_fraction
            ));
        }
        let train = &self.train;
        if train.updates == 0 && train.epochs == 0 {
            return Err("give `train.updates` or `train.epochs`".to_owned());
        }
        at_least_one(&[
            ("train.batch_size", train.batch_size),
            ("train.accumulate", train.accumulate),
            ("train.log_every", train.log_every as usize),
            ("train.keep_last", train.keep_last),
            ("train.max_dropped", train.max_dropped as usize),
            ("eval.envs", self.eval.envs),
        ])?;
        if self.eval.env == EvalEnv::None && self.eval.every > 0 {
            return Err("`eval.every` is set; say where with `eval.env`".to_owned());
        }
        if self.eval.every > 0 && self.eval.episodes == 0 {
            return Err("`eval.episodes` must be at least 1".to_owned());
        }
        if let Some(metric) = self.best_metric() {
            let measured = match metric.split_once('/').map_or("", |(group, _)| group) {
                "val" => self.validates(),
                "eval" => self.eval.every > 0,
                _ => false,
            };
            if !measured {
                return Err(format!(
                    "`train.best_metric` is `{metric}`, which this run never measures: set `train.validate_every` and \
                     `data.validation_fraction`, or `eval.every`"
                ));
            }
        } else if train.patience > 0 {
            return Err(
                "`train.patience` needs something to measure: `train.best_metric`".to_owned()
            );
        }
        self.augment.validate().map_err(|e| e.to_string())?;
        self.optim.validate().map_err(|e| e.to_string())?;
        if let Some(ema) = &self.ema {
            ema.validate().map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Whether losses are measured on episodes that are not learned from.
    pub fn validates(&self) -> bool {
        self.train.validate_every > 0 && self.data.validation_fraction > 0.0
    }

    /// What `best` means in this run, if anything.
    pub fn best_metric(&self) -> Option<&str> {
        match &self.train.best_metric {
            Some(metric) => Some(metric),
            None if self.eval.every > 0 => Some("eval/mean_score"),
            None if self.validates() => Some("val/loss"),
            None => None,
        }
    }

    /// The algorithm's part.
    pub fn bc(&self, total_updates: u64) -> BcConfig {
        BcConfig {
            optim: self.optim.clone(),
            ema: self.ema,
            mask_padding: self.train.mask_padding,
            total_updates,
        }
    }

    /// Every setting as TOML.
    ///
    /// # Errors
    /// [`TrainerError::Config`] for numbers that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, TrainerError> {
        toml::to_string(self).map_err(|e| TrainerError::config(format!("write the settings: {e}")))
    }

    /// What a resumed run must not change, as `key: old → new` lines; empty if nothing of it differs.
    ///
    /// # Errors
    /// [`TrainerError::Config`] if `earlier` is no TOML.
    pub fn differences(&self, earlier: &str) -> Result<Vec<String>, TrainerError> {
        // A longer run is the same run only if its learning rate does not look at the length.
        let open_ended = matches!(self.optim.schedule, Schedule::Constant { .. });
        let free = |key: &str| {
            FREE.contains(&key) || (open_ended && matches!(key, "train.updates" | "train.epochs"))
        };
        differences::<Self>(earlier, &self.to_toml()?, free)
    }
}

/// A run's name is its folder's.
pub(crate) fn folder_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
        return Err(format!("`name` is `{name}`; it must be usable as a folder's name"));
    }
    Ok(())
}

/// Refuses zeros, by the setting's name.
pub(crate) fn at_least_one(settings: &[(&str, usize)]) -> Result<(), String> {
    match settings.iter().find(|(_, value)| *value == 0) {
        Some((name, _)) => Err(format!("`{name}` must be at least 1")),
        None => Ok(()),
    }
}

/// `text` with `sets` applied, again as text, so that messages quote the line at fault.
pub(crate) fn merged(text: &str, sets: &[String]) -> Result<String, String> {
    let mut table: toml::Table = toml::from_str(text).map_err(|e| e.to_string())?;
    for set in sets {
        apply(&mut table, set)?;
    }
    toml::to_string(&table).map_err(|e| e.to_string())
}

/// Settings that differ between two texts and are not `free`, as `key: old → new` lines.
pub(crate) fn differences<C: Serialize + DeserializeOwned>(
    earlier: &str,
    now: &str,
    free: impl Fn(&str) -> bool,
) -> Result<Vec<String>, TrainerError> {
    // A setting that the earlier program did not know had what is its default now. Text that is no settings of ours any more
    // is compared as it stands.
    let filled = toml::from_str::<C>(earlier).ok().and_then(|config| toml::to_string(&config).ok());
    let earlier = filled.as_deref().unwrap_or(earlier);
    let parse = |text: &str| -> Result<BTreeMap<String, String>, TrainerError> {
        let table: toml::Table = toml::from_str(text).map_err(|e| {
            TrainerError::config(format!("read the settings of the run to resume: {e}"))
        })?;
        let mut flat = BTreeMap::new();
        flatten("", &toml::Value::Table(table), &mut flat);
        Ok(flat)
    };
    let (old, new) = (parse(earlier)?, parse(now)?);
    let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let show = |map: &BTreeMap<String, String>, key: &str| {
        map.get(key).cloned().unwrap_or_else(|| "(not set)".to_owned())
    };
    Ok(keys
        .into_iter()
        .filter(|key| !free(key) && old.get(*key) != new.get(*key))
        .map(|key| format!("{key}: {} → {}", show(&old, key), show(&new, key)))
        .collect())
}

/// Sets `a.b=c`.
fn apply(table: &mut toml::Table, set: &str) -> Result<(), String> {
    let (key, text) =
        set.split_once('=').ok_or_else(|| format!("`--set {set}`: write it as key=value"))?;
    let value = format!("value = {text}");
    let value = match toml::from_str::<toml::Table>(&value) {
        Ok(mut parsed) => parsed.remove("value").unwrap_or_else(|| toml::Value::from(text)),
        Err(_) => toml::Value::from(text),
    };
    let mut place = table;
    let mut parts = key.trim().split('.').peekable();
    while let Some(part) = parts.next() {
        if part.is_empty() {
            return Err(format!("`--set {set}`: the key has an empty part"));
        }
        if parts.peek().is_none() {
            place.insert(part.to_owned(), value);
            return Ok(());
        }
        place = place
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("`--set {set}`: `{part}` is a value, not a section"))?;
    }
    Ok(())
}

/// `a.b.c` to the value's text.
fn flatten(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, value, out);
            }
        }
        other => {
            out.insert(prefix.to_owned(), other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[data]\npath = 'demos'\n";

    fn parse(text: &str, sets: &[&str]) -> Result<RunConfig, String> {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        RunConfig::parse(text, &sets)
    }

    #[test]
    fn file_then_sets_and_the_resolved_file_says_the_same() {
        let config = parse(
            MINIMAL,
            &["train.batch_size=32", "name=try", "ema.kind=power", "optim.betas=[0.9, 0.95]"],
        )
        .unwrap();
        assert_eq!((config.train.batch_size, config.name.as_str()), (32, "try"));
        assert_eq!(config.ema, Some(EmaConfig::default()));
        assert_eq!(config.optim.betas, [0.9, 0.95]);
        let again = RunConfig::parse(&config.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(again, config);
        assert!(config.differences(&config.to_toml().unwrap()).unwrap().is_empty());
    }

    #[test]
    fn typos_and_nonsense_are_named() {
        let error = parse(MINIMAL, &["train.batch_sice=32"]).unwrap_err();
        assert!(error.contains("batch_sice") && error.contains("batch_size"), "{error}");
        for (set, part) in [
            ("train.batch_size=0", "train.batch_size"),
            ("data.path=''", "data.path"),
            ("name=a/b", "folder"),
            ("optim.eps=0", "optim.eps"),
            ("train.best_metric=eval/success_rate", "eval.every"),
            ("train.patience", "key=value"),
            ("name.x=1", "not a section"),
            ("device=tpu", "cuda"),
            ("eval.every=10", "eval.env"),
        ] {
            let text = format!("name = 'x'\n{MINIMAL}");
            let error = parse(&text, &[set]).unwrap_err();
            assert!(error.contains(part), "{set}: {error}");
        }
    }

    #[test]
    fn resuming_lists_what_differs_and_lets_the_rest_pass() {
        let old = parse(MINIMAL, &[]).unwrap().to_toml().unwrap();
        let new = parse(
            MINIMAL,
            &[
                "seed=3",
                "optim.learning_rate=0.01",
                "eval.env=pusht",
                "train.save_every=7",
                "threads=1",
            ],
        );
        let lines = new.unwrap().differences(&old).unwrap();
        assert_eq!(
            lines,
            ["eval.env: \"none\" → \"pusht\"", "optim.learning_rate: 0.0001 → 0.01", "seed: 0 → 3"]
        );
        // A longer run of a cosine schedule is another run; of a constant one it is not.
        let longer = parse(MINIMAL, &["train.epochs=200"]).unwrap();
        assert_eq!(longer.differences(&old).unwrap(), ["train.epochs: 100 → 200"]);
        let constant = ["optim.schedule={kind='constant'}"];
        let old = parse(MINIMAL, &constant).unwrap().to_toml().unwrap();
        let longer = parse(MINIMAL, &[constant[0], "train.epochs=200"]).unwrap();
        assert!(longer.differences(&old).unwrap().is_empty());
        // An earlier program that had no such setting did what is the default now.
        let older = old.replace("mask_padding = true\n", "");
        assert_ne!(older, old);
        assert!(longer.differences(&older).unwrap().is_empty());
        let unmasked = parse(MINIMAL, &[constant[0], "train.mask_padding=false"]).unwrap();
        assert_eq!(unmasked.differences(&older).unwrap(), ["train.mask_padding: true → false"]);
    }

    #[test]
    fn presets_can_be_read_and_their_goals_are_the_environments() {
        use simloop_envs::pusht::{GOAL, PushtGoals};
        use simloop_policies::encoders::StateConfig;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let mut goals_seen = 0;
        for name in ["pusht_image", "pusht_state", "pusht_two_goals", "smoke"] {
            let config = RunConfig::load(&folder.join(format!("{name}.toml")), &[]).unwrap();
            if let StateConfig::Keypoints { goal } = &config.policy.state {
                goals_seen += 1;
                let expected = GOAL.keypoints();
                let expected = expected.iter().flatten().map(|v| v / 256.0 - 1.0);
                assert_eq!(goal.len(), 16);
                assert!(goal.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-8));
            }
            if let Some(frames) = &config.policy.frames {
                goals_seen += 1;
                let poses = PushtGoals::Two.all().iter().map(|goal| goal.pose).chain([GOAL]);
                for (given, pose) in frames.goals.iter().chain([&frames.canonical]).zip(poses) {
                    let real = [pose.x, pose.y, pose.angle];
                    assert!(given.iter().zip(real).all(|(a, b)| (a - b).abs() < 1e-8));
                }
            }
        }
        assert!(goals_seen >= 2, "{goals_seen}");
    }
}
