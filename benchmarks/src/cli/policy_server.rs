//! The hidden `bench __policy`: a checkpoint for programs that step an environment of their own.
//!
//! A program starts it with a stream socket as standard input and asks over the frames of
//! [`bridge`](simloop_envs::bridge). Noise comes from the runner's own tree of seeds, so an episode that is stepped
//! elsewhere gets the very actions of `bench pusht` for as long as it shows the same observations.
//!
//! | op | request keys | `ok` keys |
//! |---|---|---|
//! | `hello` | `magic: "simloop-policy"`, `proto: 1` | `magic`, `proto`, `policy: str`, `observation: str` (gym-pusht's `obs_type`), `image_size: int`, `proprio: [str]`, `n_obs_steps: int`, `batch: int` (decisions that are cheapest asked for at once) |
//! | `episodes` | `suite: str`, `task: str`, `seed: u64`, `episodes: int` | `seeds: [u64]`: what to reset with, trial by trial |
//! | `reset` | `env: int`, `suite`, `task`, `seed`, `trial: int` | `{}`: a new episode begins in `env` |
//! | `act` | `requests: [{env: int, instruction: str, recent: [{proprio: bin (f32 LE), images: {camera: {shape: [H, W, 3], pixels: bin}}}]}]` | `chunks: [{n: T_a, actions: bin (f32 LE, [T_a, D])}]`, in the requests' order |
//! | `close` | | `{}`, then the process ends |
//!
//! `recent` holds what was seen since the last decision, oldest first, at most `n_obs_steps`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use ndarray::{Array3, arr1};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use simloop_envs::bridge::Endpoint;
use simloop_envs::bridge::protocol::{Call, decode};
use simloop_envs::pusht::{CAMERA, PushtConfig};
use simloop_envs::seeding::episode_seed;
use simloop_envs::{EnvError, EnvId, Info, Observation, SeedTree};
use simloop_policies::{ActMode, ActRequest, Needs, Policy};

use super::common::InferenceArgs;
use crate::BenchError;
use crate::suites::policy::{self, Named};
use crate::suites::pusht::{adapted, camera_of, observation_of};

const MAGIC: &str = "simloop-policy";
const PROTO: u64 = 1;
/// The most environments that may be reset: histories are kept for each.
const MAX_ENVS: usize = 4096;
/// The most episodes whose seeds are told at once.
const MAX_EPISODES: u32 = 100_000;

/// Which policy.
#[derive(Debug, Args)]
pub(super) struct PolicyServerArgs {
    /// The checkpoint folder.
    #[arg(long)]
    policy: PathBuf,
    /// Execute at most N actions of each chunk.
    #[arg(long)]
    n_action_steps: Option<usize>,
    #[command(flatten)]
    inference: InferenceArgs,
}

#[derive(Serialize)]
struct HelloReply {
    magic: &'static str,
    proto: u64,
    policy: String,
    observation: &'static str,
    image_size: u32,
    proprio: Vec<String>,
    n_obs_steps: usize,
    batch: usize,
}

#[derive(Deserialize)]
struct HelloCall {
    magic: String,
    proto: u64,
}

#[derive(Deserialize)]
struct EpisodesCall {
    suite: String,
    task: String,
    seed: u64,
    episodes: u32,
}

#[derive(Deserialize)]
struct ResetCall {
    env: usize,
    suite: String,
    task: String,
    seed: u64,
    trial: u32,
}

#[derive(Deserialize)]
struct ActCall {
    requests: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    env: usize,
    instruction: String,
    recent: Vec<Seen>,
}

#[derive(Deserialize)]
struct Seen {
    proprio: ByteBuf,
    #[serde(default)]
    images: BTreeMap<String, Pixels>,
}

#[derive(Deserialize)]
struct Pixels {
    shape: [usize; 3],
    pixels: ByteBuf,
}

#[derive(Serialize)]
struct Chunk {
    n: usize,
    actions: ByteBuf,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Hello(HelloReply),
    Seeds { seeds: Vec<u64> },
    Chunks { chunks: Vec<Chunk> },
    Done {},
}

/// Runs `bench __policy`.
pub(super) fn run(args: &PolicyServerArgs) -> Result<ExitCode, BenchError> {
    let mut socket = Endpoint::on_stdin()?;
    let name = args.policy.display().to_string();
    let Named::Checkpoint(found) =
        policy::find(&name, &args.inference.inference(), args.n_action_steps)?
    else {
        return Err(BenchError::usage(format!("serve `{name}`: give a checkpoint folder")));
    };
    let (obs, image_size) = observation_of(&found.policy)?;
    let config = PushtConfig { obs, ..PushtConfig::default() };
    let hello = HelloReply {
        magic: MAGIC,
        proto: PROTO,
        policy: found.label.clone(),
        observation: config.obs.name(),
        image_size: image_size.unwrap_or(config.image_size),
        proprio: found.policy.io().proprio.clone(),
        n_obs_steps: found.policy.needs().n_obs_steps,
        batch: found.policy.config().inference_batch,
    };
    let needs = found.policy.needs();
    let camera = camera_of(&found.policy, &[CAMERA.to_owned()]);
    let policy = adapted(found.policy, camera);
    let mut server = Server { hello: Some(hello), needs, policy, episodes: BTreeMap::new() };
    while let Some(body) = socket.receive()? {
        let call = Call::open(&body)?;
        let answer = server.answer(&call);
        socket.reply(call.id, answer)?;
        if call.op == "close" {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An episode that is stepped elsewhere.
struct Episode {
    noise: SeedTree,
    decisions: u64,
}

struct Server {
    hello: Option<HelloReply>,
    needs: Needs,
    policy: Box<dyn Policy>,
    episodes: BTreeMap<usize, Episode>,
}

fn wrong(detail: String) -> EnvError {
    EnvError::Config { detail }
}

impl Server {
    fn answer(&mut self, call: &Call<'_>) -> Result<Answer, EnvError> {
        match call.op.as_str() {
            "hello" => {
                let HelloCall { magic, proto } = decode("hello", call.args)?;
                if magic != MAGIC || proto != PROTO {
                    return Err(EnvError::Handshake {
                        detail: format!(
                            "the client speaks {magic:?} protocol {proto}, this program {MAGIC:?} protocol {PROTO}"
                        ),
                    });
                }
                let hello = self.hello.take();
                hello.map(Answer::Hello).ok_or_else(|| wrong("a second hello".to_owned()))
            }
            "episodes" => {
                let EpisodesCall { suite, task, seed, episodes } = decode("episodes", call.args)?;
                if episodes > MAX_EPISODES {
                    return Err(wrong(format!(
                        "{episodes} episodes; ask for at most {MAX_EPISODES}"
                    )));
                }
                let of = |trial| episode_seed(seed, &suite, &task, trial).seed();
                Ok(Answer::Seeds { seeds: (0..episodes).map(of).collect() })
            }
            "reset" => {
                let ResetCall { env, suite, task, seed, trial } = decode("reset", call.args)?;
                if env >= MAX_ENVS {
                    return Err(wrong(format!("env {env}; there may be {MAX_ENVS}")));
                }
                let noise = episode_seed(seed, &suite, &task, trial).child("noise");
                self.episodes.insert(env, Episode { noise, decisions: 0 });
                self.policy.reset(&[EnvId(env)]);
                Ok(Answer::Done {})
            }
            "act" => self.act(decode("act", call.args)?),
            "close" => Ok(Answer::Done {}),
            other => Err(wrong(format!("this program has no op `{other}`"))),
        }
    }

    fn act(&mut self, call: ActCall) -> Result<Answer, EnvError> {
        let mut seen = Vec::with_capacity(call.requests.len());
        let mut asked = std::collections::BTreeSet::new();
        for request in call.requests {
            let Asked { env, instruction, recent } = request;
            if !asked.insert(env) {
                return Err(wrong(format!("env {env} asks twice at once")));
            }
            if recent.is_empty() || recent.len() > self.needs.n_obs_steps {
                return Err(wrong(format!(
                    "env {env} shows {} observations; show 1 to {}",
                    recent.len(),
                    self.needs.n_obs_steps
                )));
            }
            let instruction: Arc<str> = instruction.into();
            let recent: Vec<Observation> = recent
                .into_iter()
                .map(|seen| observation(seen, &instruction))
                .collect::<Result<_, _>>()?;
            seen.push((env, recent));
        }
        let info = Info::default();
        let mut requests = Vec::with_capacity(seen.len());
        for (env, recent) in &seen {
            let episode =
                self.episodes.get_mut(env).ok_or(EnvError::NeedsReset { since: "its start" })?;
            let noise_seed = episode.noise.index(episode.decisions).seed();
            episode.decisions += 1;
            let Some(obs) = recent.last() else { continue };
            requests.push(ActRequest { env: EnvId(*env), obs, recent, info: &info, noise_seed });
        }
        let steps = self
            .policy
            .act(&requests, ActMode::Deterministic)
            .map_err(|e| wrong(format!("the policy failed to {e}")))?;
        let chunks = steps
            .iter()
            .map(|step| Chunk {
                n: step.chunk.len(),
                actions: step
                    .chunk
                    .view()
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect::<Vec<u8>>()
                    .into(),
            })
            .collect();
        Ok(Answer::Chunks { chunks })
    }
}

fn observation(seen: Seen, instruction: &Arc<str>) -> Result<Observation, EnvError> {
    let (numbers, rest) = seen.proprio.as_chunks::<4>();
    let numbers: Vec<f32> = numbers.iter().map(|n| f32::from_le_bytes(*n)).collect();
    if !rest.is_empty() || numbers.iter().any(|v| !v.is_finite()) {
        return Err(wrong("`proprio` is not whole finite f32".to_owned()));
    }
    let mut images = BTreeMap::new();
    for (camera, Pixels { shape, pixels }) in seen.images {
        let [h, w, c] = shape;
        if c != 3 {
            return Err(wrong(format!("`{camera}` has the shape {shape:?}, expected [H, W, 3]")));
        }
        let frame = Array3::from_shape_vec((h, w, 3), pixels.into_vec())
            .map_err(|e| wrong(format!("`{camera}` {shape:?}: {e}")))?;
        images.insert(camera, frame.into_shared());
    }
    Ok(Observation {
        images,
        proprio: arr1(&numbers).into_shared(),
        instruction: Arc::clone(instruction),
    })
}
