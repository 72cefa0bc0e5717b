//! What is run: the tasks, episodes, environments and policy of a suite.

pub mod libero;
pub mod policy;
pub mod presented;
pub mod pusht;
pub mod widowx;

use std::collections::BTreeMap;

use simloop_envs::seeding::episode_seed;
use simloop_envs::{EnvFactory, EnvSpec, FrameRequest, ResetOptions, ResetRequest};
use simloop_policies::Policy;
use simloop_trainers::Episode;

use crate::ledger::{ProtocolLine, TaskEntry};

/// Everything the runner needs to know of a suite.
pub struct SuiteRun {
    /// Its name: the root of its seeds.
    pub suite: String,
    /// The protocol's name with its version.
    pub protocol: String,
    /// Every number of the protocol with its source.
    pub protocol_lines: Vec<ProtocolLine>,
    /// The tasks in order.
    pub tasks: Vec<TaskEntry>,
    /// The run's seed.
    pub seed: u64,
    /// All episodes, in the protocol's order.
    pub episodes: Vec<Episode>,
    /// First trial and one past the last.
    pub trials: (u32, u32),
    /// Builds an environment as the policy sees it, in this process or in a child.
    pub factory: EnvFactory,
    /// Builds an environment with a view for people, for videos; the same simulation bit for bit.
    pub viewer: EnvFactory,
    /// Frames per second of that view.
    pub video_fps: f64,
    /// What decides.
    pub policy: Box<dyn Policy>,
    /// Its name in the result.
    pub policy_label: String,
    /// So many decisions are made at once, where so many environments wait: 1, or the rows of a neural policy's batches.
    pub min_ready: usize,
    /// Which observations carry images.
    pub frames: FrameRequest,
    /// Execute at most so many actions of each chunk.
    pub n_action_steps: Option<usize>,
    /// Versions and hashes of everything that decides a result.
    pub fingerprint: BTreeMap<String, String>,
}

/// The episode `(task, trial)` of a suite; its seed depends on nothing else but the run's.
pub fn episode(
    run_seed: u64,
    suite: &str,
    task: &str,
    trial: u32,
    options: ResetOptions,
) -> Episode {
    let node = episode_seed(run_seed, suite, task, trial);
    Episode {
        task: task.to_owned(),
        trial,
        request: ResetRequest { seed: Some(node.seed()), options },
        noise: node.child("noise"),
    }
}

/// What of a spec decides a result: versions, wrappers, id.
pub(crate) fn fingerprint(spec: &EnvSpec) -> BTreeMap<String, String> {
    let mut fingerprint = spec.versions.clone();
    fingerprint.insert("env".to_owned(), spec.id.clone());
    fingerprint.insert("wrappers".to_owned(), spec.wrappers.join(", "));
    fingerprint.insert("simloop".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    fingerprint
}
