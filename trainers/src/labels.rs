//! What the expert of DAgger said: a folder per round, `data/<round>` of the run's, each a LeRobot data set that `data
//! inspect` shows and `train bc` reads.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use simloop_algos::dagger::Turns;
use simloop_envs::SeedTree;
use simloop_policies::vla::{Align as PolicyAlign, Normalizers, PolicyIo, VlaConfig, VlaPolicy};
use tch::Device;

use crate::TrainerError;
use crate::checkpoint;
use crate::data::lerobot::LerobotWriter;
use crate::data::{
    Align, Concat, DataStatistics, Dataset as _, DemoSource, Loader, LoaderConfig, LoaderPosition,
    OpenOptions, SourceSpec, WindowDataset, WindowOptions, open_source,
};
use crate::expert_rollout::{Experts, Mixed};
use crate::on_policy::Schedule;
use crate::rl_config::DaggerConfig;
use crate::rollout::{Plan, Rollout, Rollouts};
use crate::run::RunFolder;
use crate::stop::StopFlag;

/// The labels of a run.
pub struct LabelStore<'a> {
    /// What DAgger is told.
    pub config: &'a DaggerConfig,
    /// What the environments show.
    pub spec: SourceSpec,
    /// Which episode comes when.
    pub schedule: &'a Schedule,
    /// The run's seed.
    pub seed: u64,
    /// Whether the learner acts in the first round already: what the expert's own round would make of it, it is.
    pub cloned: bool,
}

impl LabelStore<'_> {
    /// How often the expert acts in `round`.
    pub fn beta(&self, round: u32) -> f64 {
        self.config.beta.at(round + u32::from(self.cloned))
    }

    fn folder(run: &RunFolder, round: u32) -> PathBuf {
        run.root().join("data").join(format!("{round:04}"))
    }

    /// Lets `policy` (nobody: the expert) act and the expert label, and writes down what it says. Labels of a round that was
    /// interrupted ([`Rollout::stopped`]) are not kept, nor are those of episodes that were given up.
    ///
    /// # Errors
    /// Whatever policy, environment or disk answer.
    pub fn collect(
        &self,
        round: u32,
        policy: Option<&VlaPolicy>,
        rollouts: &mut Rollouts,
        experts: &mut Experts,
        run: &RunFolder,
        stop: &StopFlag,
    ) -> Result<Rollout, TrainerError> {
        let target = Self::folder(run, round);
        if target.exists() {
            std::fs::remove_dir_all(&target).map_err(TrainerError::io("remove", &target))?;
        }
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(TrainerError::io("create", parent))?;
        }
        let jobs = self.schedule.groups(u64::from(round), self.config.episodes as usize, 1);
        let beta = self.beta(round);
        let mut mixed = Mixed::new(policy, experts, |seen| {
            Turns::new(self.config.labels, beta, self.config.max_lead, &seen.job.noise)
        });
        let rollout = rollouts.collect(&mut mixed, Plan::Episodes(jobs.clone()), stop)?;
        if rollout.stopped {
            return Ok(rollout);
        }
        let ended: BTreeSet<u64> =
            rollout.trajectories.iter().map(|t| t.start.seed.unwrap_or_default()).collect();
        let kept: BTreeSet<u64> = jobs
            .iter()
            .filter(|job| ended.contains(&job.request.seed.unwrap_or_default()))
            .map(|job| job.number)
            .collect();
        let episodes = mixed.into_episodes(&|number| kept.contains(&number))?;
        if episodes.is_empty() {
            // Everything ended before the expert took over: an empty folder says that nothing is missing.
            std::fs::create_dir(&target).map_err(TrainerError::io("create", &target))?;
            return Ok(rollout);
        }
        let mut writer = LerobotWriter::create(&target, &self.spec, "simulated")?;
        for episode in &episodes {
            writer.push(episode)?;
        }
        writer.finish()?;
        Ok(rollout)
    }

    /// Everything labelled up to `round`, and the demonstrations given besides.
    ///
    /// # Errors
    /// [`TrainerError::Data`] naming the folder; [`TrainerError::Config`] if there is nothing to learn from.
    pub fn up_to(&self, run: &RunFolder, round: u32) -> Result<Arc<dyn DemoSource>, TrainerError> {
        let options = OpenOptions::default();
        let mut parts = Vec::new();
        if let Some(path) = &self.config.data {
            parts.push(open_source(path, &options)?);
        }
        for round in 0..=round {
            let folder = Self::folder(run, round);
            if !checkpoint::entry_names(&folder)?.is_empty() {
                parts.push(open_source(&folder, &options)?);
            }
        }
        if parts.is_empty() {
            return Err(TrainerError::config(
                "learn from the expert: every episode ended before it took over; lower `dagger.max_lead`, raise \
                 `dagger.episodes`, or give demonstrations (`dagger.data`)",
            ));
        }
        Ok(Arc::new(Concat::new(parts)?))
    }

    /// Batches for `policy` in a round: a function of the run's seed and the round.
    ///
    /// # Errors
    /// [`TrainerError::Data`] for labels without what the policy sees.
    pub fn loader(
        &self,
        source: &Arc<dyn DemoSource>,
        policy: &VlaPolicy,
        round: u32,
    ) -> Result<Loader, TrainerError> {
        let data = Arc::new(windows(source, policy.config(), policy.cameras())?);
        let config = LoaderConfig {
            batch_size: self.config.batch_size.min(data.len()),
            threads: self.config.workers,
            seed: SeedTree::new(self.seed).child("dagger").index(u64::from(round)).seed(),
            ..LoaderConfig::default()
        };
        Ok(Loader::new(data, config, LoaderPosition::default())?)
    }

    /// A new policy of the architecture `model`, whose normalisers know the labels of `source`.
    ///
    /// # Errors
    /// [`TrainerError::Policy`] for an architecture that does not fit them.
    pub fn first_policy(
        &self,
        model: &VlaConfig,
        source: &Arc<dyn DemoSource>,
        device: Device,
    ) -> Result<VlaPolicy, TrainerError> {
        let statistics = DataStatistics::of(&windows(source, model, &[])?)?;
        let normalizers = Normalizers::fit(model, statistics.proprio, statistics.action)?;
        let io = PolicyIo {
            cameras: self.spec.cameras.clone(),
            proprio: self.spec.proprio.clone(),
            action: self.spec.action.clone(),
            convention: self.spec.convention.clone(),
            control_hz: self.spec.control_hz,
        };
        let seed = SeedTree::new(self.seed).child("weights").seed();
        Ok(VlaPolicy::new(model.clone(), io, normalizers, device, seed)?)
    }
}

/// All episodes of `source`, cut into what `model` sees and says.
fn windows(
    source: &Arc<dyn DemoSource>,
    model: &VlaConfig,
    cameras: &[String],
) -> Result<WindowDataset, TrainerError> {
    let options = WindowOptions {
        n_obs_steps: model.n_obs_steps,
        chunk_size: model.chunk_size,
        align: match model.align {
            PolicyAlign::Current => Align::Current,
            PolicyAlign::Window => Align::WindowStart,
        },
        cameras: cameras.to_vec(),
        ..WindowOptions::default()
    };
    let all: Vec<usize> = (0..source.episodes().len()).collect();
    Ok(WindowDataset::new(Arc::clone(source), all, options)?)
}
