//! What `bench pusht` and `bench libero` have in common.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use simloop_policies::remote::{Gripper, RemoteOptions};
use simloop_trainers::stop::StopFlag;

use crate::BenchError;
use crate::runner::{FolderMode, RunOptions, WorkerKind};
use crate::sequential::{Against, Monitor};
use crate::suites::policy::Inference;

/// How a checkpoint computes.
#[derive(Clone, Debug, Args)]
pub(super) struct InferenceArgs {
    /// What a checkpoint computes on: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// libtorch's threads inside one operation; other numbers than 1 may change the last bits of a result.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    torch_threads: i32,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// How to speak to a policy that another program serves.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Policies over the network")]
struct RemoteArgs {
    /// What the server calls a part of an observation: prompt=NAME, state=NAME, image.CAMERA=NAME. May be repeated
    /// [default: what it says itself; openpi's names over ws://, OpenVLA's over http://].
    #[arg(long = "remote-key", value_name = "PART=NAME", value_parser = parse_key)]
    keys: Vec<(String, String)>,
    /// A file with the server's token [default: the variable SIMLOOP_TOKEN].
    #[arg(long = "remote-token-file", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The longest that a decision may take, seconds.
    #[arg(long = "remote-timeout", value_name = "SECS", default_value_t = 120.0)]
    timeout_secs: f64,
    /// Where an openpi server's answer has its actions.
    #[arg(long = "remote-actions", value_name = "NAME", default_value = "actions")]
    actions: String,
    /// Scale images to this side, keeping their proportions, as openpi's client does [default: as rendered].
    #[arg(long = "remote-image-size", value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    remote_image_size: Option<u32>,
    /// OpenVLA's unnorm_key.
    #[arg(long = "remote-unnorm-key", value_name = "NAME")]
    unnorm_key: Option<String>,
    /// The last number of an action is 1 for open and 0 for closed, as OpenVLA answers; LIBERO's is -1 and +1.
    #[arg(long = "remote-gripper-one-is-open")]
    gripper_one_is_open: bool,
}

/// The variable that holds a server's token, where no file does.
const TOKEN_VARIABLE: &str = "SIMLOOP_TOKEN";

impl RemoteArgs {
    fn options(&self) -> Result<RemoteOptions, BenchError> {
        let token = match &self.token_file {
            Some(path) => {
                Some(std::fs::read_to_string(path).map_err(|e| BenchError::io(path, &e))?)
            }
            None => std::env::var(TOKEN_VARIABLE).ok(),
        };
        if !(0.001..=86_400.0).contains(&self.timeout_secs) {
            return Err(BenchError::usage(
                "wait so long for a decision: give 0.001 to 86400 seconds",
            ));
        }
        Ok(RemoteOptions {
            timeout: Duration::from_secs_f64(self.timeout_secs),
            token: token.map(|token| token.trim().to_owned()),
            keys: self.keys.clone(),
            actions_key: self.actions.clone(),
            unnorm_key: self.unnorm_key.clone(),
            gripper: if self.gripper_one_is_open { Gripper::OneIsOpen } else { Gripper::AsIs },
            image_size: self.remote_image_size,
        })
    }
}

fn parse_key(text: &str) -> Result<(String, String), String> {
    let (part, name) = text.split_once('=').ok_or("write it as PART=NAME")?;
    Ok((part.to_owned(), name.to_owned()))
}

impl InferenceArgs {
    /// The same for the suites.
    ///
    /// # Errors
    /// [`BenchError`] for a token that cannot be read.
    pub(super) fn inference(&self) -> Result<Inference, BenchError> {
        Ok(Inference {
            device: self.device.clone(),
            threads: self.torch_threads,
            remote: self.remote.options()?,
        })
    }
}

/// How to run and where to put the result.
#[derive(Clone, Debug, Args)]
pub(super) struct RunArgs {
    /// What acts: scripted, random, a checkpoint folder, or a URL.
    #[arg(long, default_value = "scripted", alias = "policy.path")]
    pub(super) policy: String,
    #[command(flatten)]
    pub(super) inference: InferenceArgs,
    /// The run's seed; the result depends on nothing else.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Environments at once [default: one per core; enough to fill a checkpoint's batches where they are threads].
    #[arg(long, alias = "eval.batch_size")]
    pub(super) workers: Option<usize>,
    /// Where environments live.
    #[arg(long, value_enum)]
    pub(super) worker_kind: Option<WorkerKind>,
    /// The result folder [default: outputs/eval/DATE/TIME_SUITE_POLICY].
    #[arg(long, alias = "output_dir", alias = "out")]
    pub(super) output_dir: Option<PathBuf>,
    /// Go on with the run in the result folder.
    #[arg(long, conflicts_with = "overwrite")]
    pub(super) resume: bool,
    /// Replace the run in the result folder.
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Videos of so many successes; every failure gets one unless this is 0.
    #[arg(long, default_value_t = 3)]
    pub(super) videos: u32,
    /// Videos of at most so many failures.
    #[arg(long)]
    pub(super) max_failure_videos: Option<u32>,
    /// Execute at most N actions of each chunk before deciding again [default: the policy's own number].
    #[arg(long, alias = "replan")]
    pub(super) n_action_steps: Option<usize>,
    /// Run only every N-th episode from the K-th on, as K/N (0-based); join the folders with `bench merge`.
    #[arg(long, value_name = "K/N", value_parser = parse_shard)]
    pub(super) shard: Option<(u32, u32)>,
    /// Run the episodes in an order shuffled by this seed; the result is the same.
    #[arg(long, value_name = "SEED")]
    pub(super) shuffle: Option<u64>,
    /// Starts per episode before it counts as an error.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_attempts: u32,
    /// Exit with 0 although episodes ended as errors (the headline is still withheld above 1 %).
    #[arg(long)]
    pub(super) allow_errors: bool,
    /// Rebuild a worker process after so many episodes.
    #[arg(long)]
    pub(super) recycle_after: Option<u32>,
    /// Rebuild a worker process that uses more memory, MiB.
    #[arg(long)]
    pub(super) memory_limit_mib: Option<u64>,
    /// Stop as soon as the answer is clear, by a test that stays valid however often one looks.
    #[arg(long)]
    pub(super) until_decided: bool,
    /// With --until-decided: a stored result to be compared with, pair by pair.
    #[arg(long, value_name = "DIR", requires = "until_decided")]
    pub(super) against: Option<PathBuf>,
    /// With --until-decided: is the success rate above or below this?
    #[arg(long, value_name = "RATE", requires = "until_decided", conflicts_with = "against")]
    pub(super) target: Option<f64>,
    /// With --until-decided: stop when the 95 % interval is at most this far from its middle.
    #[arg(long, value_name = "RATE", requires = "until_decided", conflicts_with_all = ["against", "target"])]
    pub(super) half_width: Option<f64>,
}

fn parse_shard(text: &str) -> Result<(u32, u32), String> {
    let (k, n) = text.split_once('/').ok_or("write it as K/N, e.g. 0/4")?;
    let parse = |part: &str| part.parse::<u32>().map_err(|e| e.to_string());
    let (k, n) = (parse(k)?, parse(n)?);
    if k < n { Ok((k, n)) } else { Err(format!("shard {k} of {n}: K runs from 0 to N-1")) }
}

impl RunArgs {
    /// Workers asked for, or one per core.
    pub(super) fn num_workers(&self) -> usize {
        self.workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .max(1)
    }

    /// The runner's options; `label` names the default folder.
    pub(super) fn options(&self, label: &str, kind: WorkerKind) -> RunOptions {
        let mode = match (self.resume, self.overwrite) {
            (true, _) => FolderMode::Resume,
            (_, true) => FolderMode::Overwrite,
            _ => FolderMode::New,
        };
        RunOptions {
            dir: self.output_dir.clone().unwrap_or_else(|| default_dir(label)),
            mode,
            workers: self.num_workers(),
            sync: kind == WorkerKind::Sync,
            shard: self.shard,
            shuffle: self.shuffle,
            max_attempts: self.max_attempts,
            memory_limit_bytes: self.memory_limit_mib.map(|mib| mib << 20),
            recycle_after: self.recycle_after,
            command: command_line(),
        }
    }

    /// The sequential monitor, if one was asked for.
    pub(super) fn monitor(&self) -> Result<Option<Monitor>, BenchError> {
        if !self.until_decided {
            return Ok(None);
        }
        let against = match (&self.against, self.target, self.half_width) {
            (Some(dir), ..) => Against::Stored(dir.clone()),
            (_, Some(target), _) => Against::Target(target),
            (_, _, half_width) => Against::HalfWidth(half_width.unwrap_or(0.05)),
        };
        Monitor::new(&against).map(Some)
    }
}

/// `outputs/eval/2026-01-31/23-59-59_LABEL`, local time.
pub(super) fn default_dir(label: &str) -> PathBuf {
    PathBuf::from(format!(
        "outputs/eval/{}_{label}",
        jiff::Zoned::now().strftime("%Y-%m-%d/%H-%M-%S")
    ))
}

/// This program's command line, for people to run again.
pub(super) fn command_line() -> String {
    let quote = |arg: String| {
        let plain = !arg.is_empty()
            && arg.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c));
        if plain { arg } else { format!("'{}'", arg.replace('\'', r"'\''")) }
    };
    std::iter::once("bench".to_owned())
        .chain(std::env::args().skip(1).map(quote))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A flag that Ctrl-C and SIGTERM set. A second Ctrl-C ends the program at once.
pub(super) fn stop_on_signals() -> Result<StopFlag, BenchError> {
    let stop = StopFlag::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Order matters: the shutdown looks at the flag before this signal sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.inner())
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop.inner())))
            .map_err(|e| BenchError::usage(format!("watch for signals: {e}")))?;
    }
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_checked() {
        assert_eq!(parse_shard("1/4"), Ok((1, 4)));
        assert!(parse_shard("4/4").is_err() && parse_shard("x").is_err());
    }
}
