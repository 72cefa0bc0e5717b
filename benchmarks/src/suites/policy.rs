//! The policy of a suite: scripted, random, a checkpoint folder, or behind an address.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use simloop_envs::EnvSpec;
use simloop_policies::Policy;
use simloop_policies::remote::{RemoteOptions, RemotePolicy, is_url};
use simloop_policies::vla::PolicyIo;
use simloop_policies::{checkpoint, device};

use crate::BenchError;

/// How a policy computes that is no part of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inference {
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Threads inside one operation. One gives the same numbers on every machine with the same processor features, so
    /// that is the default; more may split sums otherwise.
    pub threads: i32,
    /// How to speak to a policy that another program serves.
    pub remote: RemoteOptions,
}

impl Default for Inference {
    fn default() -> Self {
        Self { device: "cpu".to_owned(), threads: 1, remote: RemoteOptions::default() }
    }
}

/// What `--policy` names.
pub enum Named {
    /// The suite's expert.
    Scripted,
    /// Uniformly random actions.
    Random,
    /// A checkpoint, in this process or behind a server of ours.
    Checkpoint(Box<Checkpoint>),
    /// A policy behind a server of another project, which does not say what it wants to see.
    Foreign(Box<Foreign>),
}

/// A checkpoint.
pub struct Checkpoint {
    /// What acts.
    pub policy: Box<dyn Policy>,
    /// What it was made for.
    pub shape: Shape,
    /// `run/folder@` and the first digits of the hash, for reports.
    pub label: String,
    /// What decides its actions: goes into the manifest's fingerprint. Names begin with
    /// [`POLICY_KEYS`](crate::ledger::POLICY_KEYS).
    pub fingerprint: BTreeMap<String, String>,
}

/// What a policy was made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// What goes in and out.
    pub io: PolicyIo,
    /// The cameras it looks through.
    pub cameras: Vec<String>,
    /// Rows of its batches.
    pub inference_batch: usize,
}

/// A policy that says nothing of itself.
pub struct Foreign {
    /// What acts, once it has been told what is shown.
    pub policy: RemotePolicy,
    /// Its address.
    pub label: String,
    /// As a checkpoint's.
    pub fingerprint: BTreeMap<String, String>,
}

/// Finds the policy called `name`; `n_action_steps` overrides a checkpoint's own number.
///
/// # Errors
/// [`BenchError::Usage`] where nothing of that name can act; [`BenchError::Policy`] for a damaged checkpoint or a server that
/// cannot be reached.
pub fn find(
    name: &str,
    inference: &Inference,
    n_action_steps: Option<usize>,
) -> Result<Named, BenchError> {
    match name {
        "scripted" => return Ok(Named::Scripted),
        "random" => return Ok(Named::Random),
        _ => {}
    }
    if is_url(name) {
        return remote(name, inference);
    }
    let path = Path::new(name);
    if !path.is_dir() {
        return Err(no_such_policy(name, path));
    }
    if !checkpoint::is_policy(path) {
        return Err(no_checkpoint(path));
    }
    let device = device::device_called(&inference.device)?;
    if inference.threads < 1 {
        return Err(BenchError::usage("use less than one torch thread"));
    }
    tch::set_num_threads(inference.threads);
    let mut policy = checkpoint::load_policy(path, device)?;
    if let Some(n) = n_action_steps {
        policy.set_n_action_steps(n)?;
    }
    let hash = checkpoint::fingerprint(path)?;
    let label = format!("{}@{}", checkpoint::short_name(path), &hash[..12]);
    let shape = Shape {
        io: policy.io().clone(),
        cameras: policy.cameras().to_vec(),
        inference_batch: policy.config().inference_batch,
    };
    let fingerprint =
        fingerprint(&hash, &inference.device, inference.threads, device::TORCH_VERSION);
    let policy = Box::new(policy);
    Ok(Named::Checkpoint(Box::new(Checkpoint { policy, shape, label, fingerprint })))
}

/// What decides a checkpoint's actions, wherever it computes.
fn fingerprint(
    sha256: &str,
    device: &str,
    threads: i32,
    libtorch: &str,
) -> BTreeMap<String, String> {
    [
        ("sha256", sha256.to_owned()),
        ("device", device.to_owned()),
        ("torch_threads", threads.to_string()),
        ("libtorch", libtorch.to_owned()),
    ]
    .map(|(key, value)| (format!("{}{key}", crate::ledger::POLICY_KEYS), value))
    .into()
}

/// A policy behind an address.
fn remote(url: &str, inference: &Inference) -> Result<Named, BenchError> {
    let policy = RemotePolicy::connect(url, inference.remote.clone())?;
    let Some(theirs) = policy.description().cloned() else {
        let keys = [
            ("url", url.to_owned()),
            ("remote", format!("{:?}", inference.remote.without_token())),
        ];
        let fingerprint =
            keys.map(|(key, value)| (format!("{}{key}", crate::ledger::POLICY_KEYS), value)).into();
        return Ok(Named::Foreign(Box::new(Foreign {
            policy,
            label: url.to_owned(),
            fingerprint,
        })));
    };
    let fingerprint =
        fingerprint(&theirs.sha256, &theirs.device, theirs.torch_threads, &theirs.libtorch);
    let shape = Shape {
        io: theirs.io,
        cameras: theirs.cameras,
        inference_batch: theirs.inference_batch.clamp(1, 1024),
    };
    let (policy, label) = (Box::new(policy), theirs.label);
    Ok(Named::Checkpoint(Box::new(Checkpoint { policy, shape, label, fingerprint })))
}

/// Files that hold Python objects: reading one runs code of whoever wrote it.
const PICKLES: [&str; 6] = ["pt", "pth", "bin", "pkl", "ckpt", "ot"];

fn is_pickle(path: &Path) -> bool {
    path.extension().is_some_and(|e| PICKLES.iter().any(|p| e.eq_ignore_ascii_case(p)))
}

fn no_such_policy(name: &str, path: &Path) -> BenchError {
    let why = if is_pickle(path) {
        "files of that kind can run code when they are read, so they never are; give a folder with model.safetensors"
    } else if path.exists() {
        "it is a file; a policy is a folder with config.json, model.safetensors and normalizer.json"
    } else {
        "there is neither a policy nor a folder of that name; try `scripted` or `random`"
    };
    BenchError::usage(format!("use the policy `{name}`: {why}"))
}

fn no_checkpoint(path: &Path) -> BenchError {
    let mut why = "it holds no config.json with a model.safetensors beside it".to_owned();
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut inside: Vec<_> = entries.map(|entry| entry.path()).collect();
    inside.sort();
    if let Some(pickle) = inside.iter().find(|file| is_pickle(file)) {
        // Writing to a String cannot fail.
        let _ = write!(
            why,
            "; {} can run code when it is read, so it never is: save the weights as safetensors",
            pickle.file_name().unwrap_or_default().to_string_lossy()
        );
    }
    if let Some(below) = inside.iter().find(|sub| checkpoint::is_policy(sub)) {
        let _ = write!(why, "; {} does", below.display());
    }
    BenchError::usage(format!("use the policy `{}`: {why}", path.display()))
}

/// Refuses a policy whose inputs or outputs are not the environment's. `renamed` is a camera's name there and here, where
/// they differ.
///
/// # Errors
/// [`BenchError::Usage`] naming both sides.
pub fn check_io(
    policy: &Shape,
    renamed: Option<&(String, String)>,
    spec: &EnvSpec,
) -> Result<(), BenchError> {
    let io = &policy.io;
    let refuse = |what: &str, policy: String, env: String| {
        Err(BenchError::usage(format!(
            "run this policy in {}: its {what} is {policy}, the environment's {env}",
            spec.id
        )))
    };
    let numbers = |names: &[String]| format!("{} numbers ({})", names.len(), names.join(", "));
    let proprio = &spec.observation.proprio.names;
    if io.proprio.len() != proprio.len() {
        return refuse("proprio", numbers(&io.proprio), numbers(proprio));
    }
    if io.action.len() != spec.action.len() {
        return refuse("action", numbers(&io.action), numbers(&spec.action.names));
    }
    for camera in &policy.cameras {
        let theirs = io.cameras.get(camera);
        let here =
            renamed.filter(|(_, policys)| policys == camera).map_or(camera, |(ours, _)| ours);
        let ours = spec.observation.images.get(here);
        if ours.is_none() || theirs != ours {
            let size =
                |space: &simloop_envs::ImageSpace| format!("{} x {}", space.height, space.width);
            let have: Vec<_> = spec
                .observation
                .images
                .iter()
                .map(|(name, space)| format!("`{name}` {}", size(space)))
                .collect();
            let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
            return refuse(
                "camera",
                format!("`{camera}` {}", theirs.map_or(String::new(), size)),
                have,
            );
        }
    }
    if let Some(convention) = &io.convention {
        convention.check_matches(&spec.convention)?;
    }
    if let Some(hz) =
        io.control_hz.filter(|hz| (hz - spec.control_hz).abs() > 0.01 * spec.control_hz)
    {
        tracing::warn!(
            policy_hz = hz,
            env_hz = spec.control_hz,
            "the policy was trained at another control rate"
        );
    }
    Ok(())
}
