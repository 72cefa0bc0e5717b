//! `bench libero`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use simloop_envs::libero::preflight::{TaskReport, check_task, fingerprint};
use simloop_envs::libero::{LiberoConfig, LiberoEnv, LiberoInstall, LocateOptions, Suite, locate};

use super::common::RunArgs;
use super::finish;
use crate::BenchError;
use crate::assets::{AssetSource, download_assets};
use crate::ledger::write_atomically;
use crate::protocol::LiberoProtocol;
use crate::runner::WorkerKind;
use crate::suites::SuiteRun;
use crate::suites::libero::LiberoSuite;
use crate::suites::policy::Inference;

/// Which LIBERO, and where it is installed.
#[derive(Clone, Debug, Args)]
pub(super) struct LiberoEnvArgs {
    /// spatial, object, goal, 10 or 90.
    #[arg(long, default_value = "spatial", alias = "env.task")]
    suite: Suite,
    /// Task numbers, e.g. 0,3-5 [default: all].
    #[arg(long, value_parser = parse_list)]
    tasks: Option<List>,
    /// By whose rules: simloop, openvla, openpi or lerobot.
    #[arg(long, default_value = "simloop")]
    protocol: String,
    /// The Python that has LIBERO [default: what `make libero` made].
    #[arg(long)]
    python: Option<PathBuf>,
    /// LIBERO's assets [default: $LIBERO_ASSETS, the package's own folder, ../shared/data/libero_assets].
    #[arg(long)]
    assets: Option<PathBuf>,
}

/// Benchmark a policy on LIBERO.
#[derive(Debug, Args)]
pub(super) struct LiberoArgs {
    #[command(flatten)]
    env: LiberoEnvArgs,
    /// Trials per task; trial k starts from initial state k [default: the protocol's].
    #[arg(long, alias = "eval.n_episodes", conflicts_with = "init_states")]
    trials: Option<u32>,
    /// Initial states, e.g. 5,20,35: the trials with these numbers.
    #[arg(long, value_parser = parse_list)]
    init_states: Option<List>,
    /// Check every initial state of the suite instead of running episodes, and print the fingerprint.
    #[arg(long)]
    preflight: bool,
    /// Fetch the assets from the Hugging Face hub into --assets or .simloop/libero_assets.
    #[arg(long)]
    download_assets: bool,
    /// Where to fetch them from.
    #[arg(long, hide = true)]
    hub: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

/// Numbers as people write them: `0,3-5`.
#[derive(Clone, Debug, PartialEq)]
struct List(Vec<u32>);

fn parse_list(text: &str) -> Result<List, String> {
    let number = |part: &str| part.trim().parse::<u32>().map_err(|e| format!("`{part}`: {e}"));
    let mut list = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((from, to)) => list.extend(number(from)?..=number(to)?),
            None => list.push(number(part)?),
        }
    }
    list.sort_unstable();
    list.dedup();
    if list.is_empty() {
        Err("name at least one number, e.g. 0,3-5".to_owned())
    } else {
        Ok(List(list))
    }
}

impl LiberoEnvArgs {
    fn install(&self) -> Result<LiberoInstall, BenchError> {
        Ok(locate(&LocateOptions { python: self.python.clone(), assets: self.assets.clone() })?)
    }

    fn task_ids(&self) -> Vec<u32> {
        self.tasks.as_ref().map_or_else(Vec::new, |list| list.0.clone())
    }

    /// The suite with random actions and these settings, to measure its pace.
    pub(super) fn suite_for_speed(&self, images: bool) -> Result<SuiteRun, BenchError> {
        let suite = LiberoSuite {
            suite: self.suite,
            protocol: LiberoProtocol::load(&self.protocol)?,
            tasks: self.task_ids(),
            trials: (0..10).collect(),
            seed: 0,
            policy: "random".to_owned(),
            inference: Inference::default(),
            n_action_steps: None,
            force_images: images,
        };
        suite.build(self.install()?)
    }
}

/// Runs `bench libero`.
pub(super) fn run(args: &LiberoArgs) -> Result<ExitCode, BenchError> {
    if args.download_assets {
        return download(args);
    }
    let protocol = LiberoProtocol::load(&args.env.protocol)?;
    let install = args.env.install()?;
    if args.preflight {
        return preflight(args, &protocol, &install);
    }
    let trials = match (&args.init_states, args.trials) {
        (Some(list), _) => list.0.clone(),
        (None, trials) => (0..trials.unwrap_or(protocol.episodes.trials.value)).collect(),
    };
    let suite = LiberoSuite {
        suite: args.env.suite,
        protocol,
        tasks: args.env.task_ids(),
        trials,
        seed: args.run.seed,
        policy: args.run.policy.clone(),
        inference: args.run.inference.inference()?,
        n_action_steps: args.run.n_action_steps,
        force_images: false,
    };
    let kind = args.run.worker_kind.unwrap_or(WorkerKind::Processes);
    finish::run_suite(suite.build(install)?, &args.run, kind)
}

#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
fn download(args: &LiberoArgs) -> Result<ExitCode, BenchError> {
    let folder = args.env.assets.clone().unwrap_or_else(|| PathBuf::from(".simloop/libero_assets"));
    let mut source = AssetSource::default();
    if let Some(hub) = &args.hub {
        source.endpoint.clone_from(hub);
    }
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template(
        "{msg} {bar:28} {bytes}/{total_bytes}  {bytes_per_sec}  {eta_precise}",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let done = download_assets(&source, &folder, &mut |progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(format!("{}/{} files", progress.files, progress.files_total));
    })?;
    bar.finish_and_clear();
    println!(
        "{} files, {} bytes, commit {} in {}",
        done.files,
        done.bytes,
        done.commit,
        done.folder.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Checks every initial state of the chosen tasks, several tasks at once.
#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
fn preflight(
    args: &LiberoArgs,
    protocol: &LiberoProtocol,
    install: &LiberoInstall,
) -> Result<ExitCode, BenchError> {
    let suite = args.env.suite;
    let ids =
        if args.env.tasks.is_none() { (0..suite.tasks()).collect() } else { args.env.task_ids() };
    let keys: Vec<String> = ids.into_iter().map(|id| suite.task(id)).collect::<Result<_, _>>()?;
    let states = args.init_states.as_ref().map(|list| list.0.clone());
    let config = LiberoConfig { cameras: Vec::new(), ..protocol.env_config(suite) };
    let bar = ProgressBar::new(keys.len() as u64);
    let style = ProgressStyle::with_template(
        "preflight {bar:28} {pos}/{len} tasks  {elapsed_precise} < {eta_precise}",
    );
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Result<TaskReport, BenchError>)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.run.num_workers().min(keys.len()) {
            scope.spawn(|| {
                let mut env: Option<LiberoEnv> = None;
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(key) = keys.get(at) else { return };
                    let started = match env.take() {
                        Some(env) => Ok(env),
                        None => LiberoEnv::start(install, &config),
                    };
                    let result = started.and_then(|mut started| {
                        let report = check_task(&mut started, key, states.as_deref())?;
                        env = Some(started);
                        Ok(report)
                    });
                    results
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push((at, result.map_err(Into::into)));
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    let reports: Vec<TaskReport> =
        results.into_iter().map(|(_, result)| result).collect::<Result<_, _>>()?;
    for report in &reports {
        print_report(report);
    }
    let mut env = LiberoEnv::start(install, &config)?;
    let print = fingerprint(&mut env, install, &keys[0])?;
    println!("fingerprint");
    for (name, value) in print.lines() {
        println!("  {name} {value}");
    }
    let dir = args.run.output_dir.clone().unwrap_or_else(|| PathBuf::from("outputs/preflight"));
    std::fs::create_dir_all(&dir).map_err(|e| BenchError::io(&dir, &e))?;
    let path = dir.join(format!("preflight_{suite}.json"));
    let stored = serde_json::json!({ "suite": suite, "fingerprint": print, "tasks": reports });
    write_atomically(&path, format!("{stored:#}\n").as_bytes())?;
    println!("stored in {}", path.display());
    let failed = reports.iter().filter(|r| !r.passed());
    let failed: Vec<String> = failed
        .map(|r| format!("{} ({} of {} states)", r.task, r.failures.len(), r.checked))
        .collect();
    if failed.is_empty() {
        println!("preflight passed: {} tasks", reports.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("preflight failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

#[expect(clippy::print_stdout, reason = "the report of a command-line program")]
fn print_report(report: &TaskReport) {
    let word = if report.passed() { "ok    " } else { "FAILED" };
    println!(
        "{word} {} ({} of {} states) {}",
        report.task, report.checked, report.states, report.instruction
    );
    for (kind, list) in [("", &report.failures), ("note: ", &report.notes)] {
        const SHOWN: usize = 3;
        for state in list.iter().take(SHOWN) {
            println!("         {kind}state {}: {}", state.init_state, state.problems.join("; "));
        }
        if list.len() > SHOWN {
            println!("         {kind}… and {} more states", list.len() - SHOWN);
        }
    }
    for (a, b) in &report.duplicates {
        println!("         states {a} and {b} are the same");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_people_write_them() {
        assert_eq!(parse_list("0,3-5, 4"), Ok(List(vec![0, 3, 4, 5])));
        assert!(parse_list("").is_err() && parse_list("a").is_err() && parse_list("5-3").is_err());
    }
}
