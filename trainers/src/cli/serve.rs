//! `serve`: a policy over the network.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use simloop_policies::device;

use crate::TrainerError;
use crate::serve::{PolicySettings, ServeConfig, Server};
use crate::stop::StopFlag;

/// The variable that holds the token, where no file does.
const TOKEN_VARIABLE: &str = "SIMLOOP_TOKEN";

/// Serve a policy to robots and benchmarks: openpi's websocket form at ws://HOST:PORT, OpenVLA's REST form at POST /act.
#[derive(Debug, Parser)]
#[command(name = "serve", version)]
struct ServeArgs {
    /// The checkpoint folder.
    policy: PathBuf,
    /// Where to listen; anything but a loopback address needs a token.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// A file with the token that clients must send [default: the variable SIMLOOP_TOKEN; none on loopback].
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// The most decisions of one batch [default: the policy's inference batch].
    #[arg(long)]
    max_batch: Option<usize>,
    /// The longest that the policy, once free, waits for others to share a batch, milliseconds; a twentieth of what the last batch
    /// took where that is longer.
    #[arg(long, default_value_t = 2.0)]
    max_wait_ms: f64,
    /// Rows that the policy computes at once, padded; other numbers than its own may change the last bits.
    #[arg(long)]
    inference_batch: Option<usize>,
    /// Answer at most N actions of each chunk [default: the policy's own number].
    #[arg(long)]
    n_action_steps: Option<usize>,
    /// The largest body or message, MiB [default: what the policy's observations need, at least 1].
    #[arg(long)]
    max_body_mib: Option<usize>,
    /// Connections at once.
    #[arg(long, default_value_t = 2048)]
    max_connections: usize,
    /// The name of a part of an observation: prompt=NAME, state=NAME or state=A+B, image.CAMERA=NAME. May be repeated.
    #[arg(long = "key", value_name = "PART=NAME", value_parser = parse_key)]
    keys: Vec<(String, String)>,
    /// The root of the noise of decisions that bring no seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What the policy computes on: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// libtorch's threads inside one operation; other numbers than 1 may change the last bits of an action.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    torch_threads: i32,
}

fn parse_key(text: &str) -> Result<(String, String), String> {
    let (part, name) = text.split_once('=').ok_or("write it as PART=NAME")?;
    Ok((part.to_owned(), name.to_owned()))
}

/// Parses the command line and runs it.
#[expect(clippy::print_stderr, reason = "the error of a command-line program")]
pub fn main() -> ExitCode {
    // Before anything asks libtorch about CUDA: its hooks are cached at the first question.
    device::prepare();
    let args = ServeArgs::parse();
    super::log_to_stderr();
    run(&args).unwrap_or_else(|error| {
        eprintln!("serve: failed to {error}");
        ExitCode::from(error.exit_code())
    })
}

#[expect(clippy::print_stdout, reason = "the address, for people and scripts")]
fn run(args: &ServeArgs) -> Result<ExitCode, TrainerError> {
    if !(0.0..=10_000.0).contains(&args.max_wait_ms) {
        return Err(TrainerError::config("wait for so long: give 0 to 10000 milliseconds"));
    }
    let config = ServeConfig {
        listen: SocketAddr::new(args.host, args.port),
        token: token(args.token_file.as_deref())?,
        max_batch: args.max_batch,
        max_wait: Duration::from_secs_f64(args.max_wait_ms / 1e3),
        max_body: args.max_body_mib.map(|mib| mib << 20),
        max_connections: args.max_connections,
        keys: args.keys.clone(),
        seed: args.seed,
        ..ServeConfig::default()
    };
    config.validate()?;
    let stop = StopFlag::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop.inner()))
            .map_err(|e| TrainerError::config(format!("watch for signals: {e}")))?;
    }
    let settings = PolicySettings {
        folder: args.policy.clone(),
        device: args.device.clone(),
        torch_threads: args.torch_threads,
        inference_batch: args.inference_batch,
        n_action_steps: args.n_action_steps,
    };
    let guarded = config.token.is_some();
    let server = Server::start(config, Box::new(move || settings.load()))?;
    let at = server.address();
    println!("{} at ws://{at} and http://{at}/act", server.description().label);
    tracing::info!(guarded, "ready; SIGTERM or Ctrl-C ends it");
    while !stop.is_set() {
        std::thread::sleep(Duration::from_millis(20));
    }
    tracing::info!("shutting down");
    server.stop();
    Ok(ExitCode::SUCCESS)
}

/// A token from a file or the environment; never from the command line, which every user of a machine can read.
fn token(file: Option<&Path>) -> Result<Option<String>, TrainerError> {
    let text = match file {
        Some(path) => {
            Some(std::fs::read_to_string(path).map_err(TrainerError::io("read the token", path))?)
        }
        None => std::env::var(TOKEN_VARIABLE).ok(),
    };
    Ok(text.map(|text| text.trim().to_owned()))
}
