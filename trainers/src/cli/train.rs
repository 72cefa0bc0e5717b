//! `train bc`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use simloop_algos::bc::Metrics;
use simloop_policies::checkpoint::load_policy;
use simloop_policies::{ImitationModel as _, device::TORCH_VERSION};

use crate::TrainerError;
use crate::build::{Parts, build};
use crate::checkpoint::{Origin, TrainState, hex_digest, load_state};
use crate::config::RunConfig;
use crate::data::{Dataset as _, Loader, LoaderPosition};
use crate::observe::{MetricsFile, ProgressBar, Report, TensorBoard};
use crate::observer::{Observers, TrainEvent};
use crate::offline::{End, Surroundings as _, train_offline};
use crate::run::{Existing, RESOLVED_FILE, RunFolder, VIDEOS_DIR};
use crate::stop::StopFlag;
use crate::tensors::Feed;

/// What every algorithm is told.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The settings, TOML.
    #[arg(long)]
    pub(super) config: PathBuf,
    /// Overrides a setting: section.key=value. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) sets: Vec<String>,
    /// The run's folder [default: runs/NAME].
    #[arg(long, alias = "output_dir")]
    pub(super) output_dir: Option<PathBuf>,
    /// Go on from the newest complete checkpoint of the folder.
    #[arg(long, conflicts_with = "overwrite")]
    pub(super) resume: bool,
    /// Replace the run in the folder.
    #[arg(long)]
    pub(super) overwrite: bool,
}

impl RunArgs {
    /// What to do about a folder that is there already.
    pub(super) fn existing(&self) -> Existing {
        match (self.resume, self.overwrite) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Overwrite,
            _ => Existing::Refuse,
        }
    }

    /// The run's folder.
    pub(super) fn root(&self, name: &str) -> PathBuf {
        self.output_dir.clone().unwrap_or_else(|| Path::new("runs").join(name))
    }
}

/// Runs `train bc`.
pub(super) fn bc(args: &RunArgs) -> Result<ExitCode, TrainerError> {
    let config = RunConfig::load(&args.config, &args.sets)?;
    let resolved = config.to_toml()?;
    let origin = Origin {
        config_sha256: hex_digest(resolved.as_bytes()),
        program: program(),
        torch: TORCH_VERSION.to_owned(),
    };
    // Everything that can be wrong with settings and data shows before an older run is touched.
    let mut parts = build(&config)?;
    let run = RunFolder::open(&args.root(&config.name), args.existing(), origin)?;
    let stop = stop_on_signals()?;
    if args.resume {
        refuse_changes(&run, |earlier| config.differences(earlier))?;
    }
    write(&run.root().join(RESOLVED_FILE), &resolved)?;
    write(&run.root().join("run.json"), &about(&parts, &config))?;

    let mut state = TrainState {
        update: 0,
        loader: LoaderPosition::default(),
        best: None,
        stale: 0,
        dropped_in_a_row: 0,
        trained_secs: 0.0,
    };
    if let Some((update, path)) = run.newest()?.filter(|_| args.resume) {
        let (learner, found) = load_state(&path)?;
        parts.bc.load_state(&learner)?;
        state = found;
        tracing::info!(update, checkpoint = %path.display(), "resuming");
    } else if args.resume {
        tracing::warn!("the folder has no complete checkpoint: starting from the beginning");
    }
    let mut observers = Observers::default();
    observers.push(ProgressBar::default());
    observers.push(Report::new(run.root()));
    observers.push(MetricsFile::new(run.root()));
    observers.push(TensorBoard::new(&run.root().join("tb")));

    parts.around.film_into(&run.root().join(VIDEOS_DIR));
    let data = Arc::clone(&parts.train) as Arc<dyn crate::data::Dataset>;
    let loader = Loader::new(data, parts.loader.clone(), state.loader)?;
    let mut feed = Feed::new(loader, parts.bc.model().params().device())?;
    let end = train_offline(
        &mut parts.bc,
        &mut feed,
        parts.validation.as_ref(),
        &mut parts.around,
        &run,
        state,
        &parts.options,
        &mut observers,
        &stop,
    )?;
    drop(feed);
    finish(args, &config, &mut parts, &run, &mut observers, end, &stop)
}

/// The final policy, its evaluation, and the last words.
fn finish(
    args: &RunArgs,
    config: &RunConfig,
    parts: &mut Parts,
    run: &RunFolder,
    observers: &mut Observers,
    end: End,
    stop: &StopFlag,
) -> Result<ExitCode, TrainerError> {
    let update = parts.bc.updates();
    if end == End::Interrupted {
        return Ok(interrupted("bc", args, update, observers));
    }
    let around = &mut parts.around;
    let mut results: BTreeMap<&str, Metrics> = BTreeMap::new();
    parts.bc.averaged(|policy| {
        run.publish("final", |dir| around.save_policy(policy, dir))?;
        if let Some(metrics) = around.final_evaluation(policy, config.eval.final_episodes, stop)? {
            results.insert("final", metrics);
        }
        Ok::<_, TrainerError>(())
    })?;
    let best = run.root().join("best");
    if best.exists() && !stop.is_set() {
        let mut policy = load_policy(&best, parts.bc.model().params().device())?;
        if let Some(metrics) =
            around.final_evaluation(&mut policy, config.eval.final_episodes, stop)?
        {
            results.insert("best", metrics);
        }
    }
    if stop.is_set() {
        return Ok(interrupted("bc", args, update, observers));
    }
    if !results.is_empty() {
        let text = serde_json::to_string_pretty(&results)
            .map_err(|e| TrainerError::config(e.to_string()))?;
        write(&run.root().join("evaluation.json"), &text)?;
        for (which, metrics) in &results {
            let line: Vec<_> = metrics.iter().map(|(k, v)| format!("{k} {v:.4}")).collect();
            tracing::info!("{which}: {}", line.join("  "));
        }
    }
    let why = match end {
        End::Patience => "no better score for too long",
        _ => "all updates are done",
    };
    observers.notify(&TrainEvent::Finished { update, why });
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "the last words of an interrupted program")]
pub(super) fn interrupted(
    algorithm: &str,
    args: &RunArgs,
    update: u64,
    observers: &mut Observers,
) -> ExitCode {
    observers.notify(&TrainEvent::Finished { update, why: "interrupted" });
    let mut command = format!("train {algorithm} --config {}", args.config.display());
    for set in &args.sets {
        // A `String` never refuses.
        let _ = write!(command, " --set '{set}'");
    }
    if let Some(dir) = &args.output_dir {
        let _ = write!(command, " --output-dir {}", dir.display());
    }
    eprintln!(
        "train: interrupted after {update} updates, everything is saved; resume with\n  {command} --resume"
    );
    ExitCode::from(1)
}

/// A resumed run is the run that began.
pub(super) fn refuse_changes(
    run: &RunFolder,
    differences: impl Fn(&str) -> Result<Vec<String>, TrainerError>,
) -> Result<(), TrainerError> {
    let path = run.root().join(RESOLVED_FILE);
    let Ok(earlier) = std::fs::read_to_string(&path) else { return Ok(()) };
    let differences = differences(&earlier)?;
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainerError::config(format!(
        "resume `{}` with other settings:\n  {}\nundo the changes, or train in another --output-dir",
        run.root().display(),
        differences.join("\n  ")
    )))
}

/// Ctrl-C, SIGTERM and Slurm's SIGUSR1 ask for a checkpoint and an end; a second Ctrl-C or SIGTERM ends at once.
pub(super) fn stop_on_signals() -> Result<StopFlag, TrainerError> {
    use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
    let stop = StopFlag::default();
    let watch = || {
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the shutdown looks at the flag before this signal sets it.
            signal_hook::flag::register_conditional_shutdown(signal, 130, stop.inner())?;
        }
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            signal_hook::flag::register(signal, stop.inner())?;
        }
        Ok(())
    };
    watch().map_err(|e: std::io::Error| TrainerError::config(format!("watch for signals: {e}")))?;
    Ok(stop)
}

/// This program and, in a checkout, its revision.
pub(super) fn program() -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let out = out.ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let revision = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown revision".to_owned());
    let dirty =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    let dirty = if dirty { ", with changes" } else { "" };
    format!("simloop {} ({revision}{dirty})", env!("CARGO_PKG_VERSION"))
}

/// What `run.json` says.
fn about(parts: &Parts, config: &RunConfig) -> String {
    let params = parts.bc.model().params();
    let (all, trainable) = params.count();
    let about = json!({
        "name": config.name,
        "program": program(),
        "torch": TORCH_VERSION,
        "device": format!("{:?}", params.device()),
        "threads": tch::get_num_threads(),
        "parameters": all,
        "trainable_parameters": trainable,
        "data": parts.train.spec().location,
        "episodes": parts.train.episodes().len(),
        "windows": parts.train.len(),
        "updates": parts.options.total,
    });
    format!("{about:#}\n")
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), TrainerError> {
    // Renamed into place: a crash leaves the old file or the new one.
    let tmp = path.with_extension(format!("tmp-{}", std::process::id()));
    std::fs::write(&tmp, text).map_err(TrainerError::io("write", &tmp))?;
    std::fs::rename(&tmp, path).map_err(TrainerError::io("rename", &tmp))
}
