//! A policy that lives in another process or on another machine.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ndarray::Array2;
use serde::Deserialize;
use simloop_envs::{ActionChunk, ActionConvention, EnvId, Observation};

use super::keys::Keys;
use super::node::Node;
use super::rest::{self, Rest};
use super::websocket::{Link, LinkError};
use super::{NOISE_SEED, PROTOCOL, RECENT, RESET, SERVER_NAME, msgpack};
use crate::vla::PolicyIo;
use crate::{ActMode, ActRequest, Needs, Policy, PolicyError, PolicyStep};

/// Tries per decision where another try cannot change the result.
const ATTEMPTS: u32 = 4;
/// Pause before the second try; doubles with each further one.
const PAUSE: Duration = Duration::from_millis(250);

/// What the last number of a remote action means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gripper {
    /// What it means to the environment.
    #[default]
    AsIs,
    /// 1 open, 0 closed, as OpenVLA answers; turned into -1 open, +1 closed (`experiments/robot/robot_utils.py`:
    /// `normalize_gripper_action(binarize=True)`, then `invert_gripper_action`).
    OneIsOpen,
}

/// How to speak to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteOptions {
    /// The longest time that one decision may take; a first one may compile.
    pub timeout: Duration,
    /// Sent as `Authorization`, where the server asks for one.
    pub token: Option<String>,
    /// `part=name` settings of [`Keys::set`].
    pub keys: Vec<(String, String)>,
    /// Where the reply of a websocket server has its actions.
    pub actions_key: String,
    /// OpenVLA's `unnorm_key`: which statistics turn its tokens into actions.
    pub unnorm_key: Option<String>,
    /// What the last number of an action means.
    pub gripper: Gripper,
    /// Scale images to this side, keeping their proportions, as openpi's `resize_with_pad` does.
    pub image_size: Option<u32>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_mins(2),
            token: None,
            keys: Vec::new(),
            actions_key: "actions".to_owned(),
            unnorm_key: None,
            gripper: Gripper::AsIs,
            image_size: None,
        }
    }
}

impl RemoteOptions {
    /// The same for a record: the token stays out of it.
    #[must_use]
    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }
}

/// Whether a policy's name is the address of a server.
pub fn is_url(name: &str) -> bool {
    ["ws://", "wss://", "http://", "https://"].iter().any(|scheme| name.starts_with(scheme))
}

/// What a server of ours says of its policy.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Description {
    /// The policy's name for reports.
    pub label: String,
    /// SHA-256 of its folder.
    pub sha256: String,
    /// What goes in and out.
    pub io: PolicyIo,
    /// The cameras it looks through.
    pub cameras: Vec<String>,
    /// `T_o`.
    pub n_obs_steps: usize,
    /// Decisions that are cheapest asked for at once.
    pub inference_batch: usize,
    /// Whether a decision depends on earlier chunks, so that it cannot be asked for twice.
    pub ensemble: bool,
    /// What it computes on.
    pub device: String,
    /// Threads inside one operation.
    pub torch_threads: i32,
    /// The version of its libtorch.
    pub libtorch: String,
}

#[derive(Deserialize)]
struct Metadata {
    server: String,
    protocol: u64,
    policy: Description,
    keys: Keys,
}

enum Transport {
    Websocket { links: BTreeMap<EnvId, Link>, spare: Option<Link> },
    Rest(Rest),
}

/// Decides by asking a server; see [`super`].
pub struct RemotePolicy {
    url: String,
    options: RemoteOptions,
    description: Option<Description>,
    keys: Keys,
    action_len: usize,
    transport: Transport,
    /// Distinguishes this client's sessions from those of others.
    client: u64,
    windows: BTreeMap<EnvId, VecDeque<Observation>>,
    fresh: BTreeMap<EnvId, bool>,
}

impl RemotePolicy {
    /// Connects and asks who is there.
    ///
    /// # Errors
    /// [`PolicyError::Remote`] for a server that cannot be reached, refuses or speaks another version of the extensions.
    pub fn connect(url: &str, options: RemoteOptions) -> Result<Self, PolicyError> {
        let fail = |e: LinkError| {
            let (LinkError::Broken(detail) | LinkError::Refused(detail)) = e;
            PolicyError::Remote { url: url.to_owned(), detail }
        };
        let remote = |detail: String| PolicyError::Remote { url: url.to_owned(), detail };
        let (transport, metadata) = if url.starts_with("ws") {
            let open = || Link::open(url, options.token.as_deref(), options.timeout);
            let mut opened = open();
            // A server that is just coming back answers or listens in a moment.
            for attempt in 1..ATTEMPTS {
                if !matches!(opened, Err(LinkError::Broken(_))) {
                    break;
                }
                std::thread::sleep(PAUSE * 2u32.pow(attempt - 1));
                opened = open();
            }
            let (link, metadata) = opened.map_err(fail)?;
            (Transport::Websocket { links: BTreeMap::new(), spare: Some(link) }, Some(metadata))
        } else {
            let rest = Rest::new(url, options.token.clone(), options.timeout);
            let metadata = rest.metadata().map_err(fail)?;
            (Transport::Rest(rest), metadata)
        };
        let ours = metadata.filter(|metadata| metadata["server"] == SERVER_NAME);
        let (description, keys) = match ours {
            None => (None, Keys::openpi([])),
            Some(metadata) => {
                let metadata: Metadata = serde_json::from_value(metadata)
                    .map_err(|e| remote(format!("read its metadata: {e}")))?;
                if metadata.protocol != PROTOCOL {
                    return Err(remote(format!(
                        "it speaks version {} of {}'s extensions, this program version {PROTOCOL}",
                        metadata.protocol, metadata.server
                    )));
                }
                let mut keys = metadata.keys;
                keys.set(&options.keys).map_err(|e| remote(format!("name the parts: {e}")))?;
                (Some(metadata.policy), keys)
            }
        };
        Ok(Self {
            url: url.to_owned(),
            action_len: description.as_ref().map_or(0, |d| d.io.action.len()),
            options,
            description,
            keys,
            transport,
            client: rand::random(),
            windows: BTreeMap::new(),
            fresh: BTreeMap::new(),
        })
    }

    /// What the server says of its policy; `None` from servers of other projects.
    pub fn description(&self) -> Option<&Description> {
        self.description.as_ref()
    }

    /// Tells a policy that does not say so itself what the environment shows and how many numbers its actions have.
    ///
    /// # Errors
    /// [`PolicyError::Remote`] for [`RemoteOptions::keys`] that name other parts.
    pub fn present(&mut self, cameras: &[String], action_len: usize) -> Result<(), PolicyError> {
        if self.description.is_some() {
            return Ok(());
        }
        let cameras = cameras.iter().map(String::as_str);
        self.keys = match self.transport {
            Transport::Websocket { .. } => Keys::openpi(cameras),
            Transport::Rest(_) => Keys::openvla(cameras),
        };
        self.action_len = action_len;
        self.keys
            .set(&self.options.keys)
            .map_err(|e| self.error(format!("name the parts of an observation: {e}")))
    }

    fn error(&self, detail: String) -> PolicyError {
        PolicyError::Remote { url: self.url.clone(), detail }
    }

    /// The newest `T_o` observations of `request.env`, oldest first; before there are so many the first is repeated. Always
    /// the whole window: the server's memory then decides nothing, and a request can be sent again.
    fn window(&mut self, request: &ActRequest<'_>) -> Vec<Observation> {
        let keep = self.description.as_ref().map_or(1, |d| d.n_obs_steps.max(1));
        let window = self.windows.entry(request.env).or_default();
        for obs in request.recent {
            if window.len() == keep {
                window.pop_front();
            }
            window.push_back(obs.clone());
        }
        let missing = keep - window.len();
        let first = window.front().unwrap_or(request.obs);
        let window = std::iter::repeat_n(first, missing).chain(window.iter()).cloned();
        match self.options.image_size {
            Some(side) => window.map(|obs| resized(obs, side)).collect(),
            None => window.collect(),
        }
    }

    fn message<'a>(
        &'a self,
        window: &'a [Observation],
        request: &ActRequest<'_>,
    ) -> Result<Node<'a>, PolicyError> {
        let write = |obs| self.keys.message(obs).map_err(|e| self.error(format!("show {e}")));
        let Some((newest, older)) = window.split_last() else {
            return Err(self.error("show nothing".to_owned()));
        };
        let mut message = write(newest)?;
        if let Node::Map(entries) = &mut message {
            if self.description.is_some() {
                let seed = Node::Uint(request.noise_seed);
                entries.push((NOISE_SEED.into(), seed));
                if self.fresh.get(&request.env).copied().unwrap_or(true) {
                    entries.push((RESET.into(), Node::Bool(true)));
                }
                if !older.is_empty() {
                    let older = older.iter().map(write).collect::<Result<_, _>>()?;
                    entries.push((RECENT.into(), Node::List(older)));
                }
            } else if let Some(key) = &self.options.unnorm_key {
                entries.push(("unnorm_key".into(), Node::Text(key.as_str().into())));
            }
        }
        Ok(message)
    }

    /// The actions of a reply, `[T_a, D]`.
    fn chunk(&self, (shape, values): (Vec<usize>, Vec<f32>)) -> Result<ActionChunk, PolicyError> {
        let (t, d) = match shape[..] {
            [d] => (1, d),
            [t, d] | [1, t, d] => (t, d),
            _ => return Err(self.error(format!("use actions of shape {shape:?}"))),
        };
        if d != self.action_len || t == 0 {
            return Err(self.error(format!(
                "use actions of shape {shape:?}: the environment's have {} numbers",
                self.action_len
            )));
        }
        let mut actions =
            Array2::from_shape_vec((t, d), values).map_err(|e| self.error(e.to_string()))?;
        if self.options.gripper == Gripper::OneIsOpen
            && let Some(mut gripper) = (d > 0).then(|| actions.column_mut(d - 1))
        {
            gripper.mapv_inplace(|open| if open > 0.5 { -1.0 } else { 1.0 });
        }
        ActionChunk::new(actions).map_err(|e| self.error(e.to_string()))
    }

    /// Asks for the decisions numbered `waiting`.
    fn ask(
        &self,
        transport: &mut Transport,
        windows: &[Vec<Observation>],
        requests: &[ActRequest<'_>],
        waiting: &[usize],
    ) -> Result<Vec<Answer>, PolicyError> {
        let messages: Vec<Node<'_>> = waiting
            .iter()
            .map(|&i| self.message(&windows[i], &requests[i]))
            .collect::<Result<_, _>>()?;
        let asked: Vec<_> = waiting.iter().map(|&i| requests[i].env).zip(&messages).collect();
        let asking = Asking {
            url: &self.url,
            token: self.options.token.as_deref(),
            timeout: self.options.timeout,
            actions_key: &self.options.actions_key,
            client: self.client,
            ours: self.description.is_some(),
        };
        Ok(transport.ask(&asked, &asking))
    }

    /// Whether the same request may be sent twice.
    fn may_ask_again(&self) -> bool {
        self.description.as_ref().is_some_and(|d| !d.ensemble)
    }
}

/// An answer, or what went wrong with one request of a batch.
type Answer = Result<(Vec<usize>, Vec<f32>), LinkError>;

impl Transport {
    /// Asks for all at once and waits for every answer.
    fn ask(&mut self, asked: &[(EnvId, &Node<'_>)], policy: &Asking<'_>) -> Vec<Answer> {
        match self {
            Self::Websocket { links, spare } => {
                let sent: Vec<Result<(), LinkError>> = asked
                    .iter()
                    .map(|(env, message)| {
                        let link = match links.entry(*env) {
                            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                            std::collections::btree_map::Entry::Vacant(entry) => {
                                let link = match spare.take() {
                                    Some(link) => link,
                                    None => policy.open()?,
                                };
                                entry.insert(link)
                            }
                        };
                        link.send(message)
                    })
                    .collect();
                asked
                    .iter()
                    .zip(sent)
                    .map(|((env, _), sent)| {
                        let answer = sent.and_then(|()| {
                            let link = links.get_mut(env).ok_or_else(|| {
                                LinkError::Broken("the connection is gone".to_owned())
                            })?;
                            let bytes = link.receive()?;
                            let node = msgpack::read(&bytes)
                                .map_err(|e| LinkError::Refused(e.to_string()))?;
                            rest::numbers(&node, policy.actions_key).map_err(LinkError::Refused)
                        });
                        if answer.is_err() {
                            links.remove(env);
                        }
                        answer
                    })
                    .collect()
            }
            Self::Rest(rest) => {
                let rest = &*rest;
                let one = |(env, message): &(EnvId, &Node<'_>)| {
                    let session = format!("{:016x}-{}", policy.client, env.0);
                    let bytes = rest.ask(message, &session, policy.ours)?;
                    rest::actions(&bytes, policy.actions_key).map_err(LinkError::Refused)
                };
                if let [single] = asked {
                    return vec![one(single)];
                }
                std::thread::scope(|scope| {
                    let threads: Vec<_> =
                        asked.iter().map(|single| scope.spawn(|| one(single))).collect();
                    let gone = |_| Err(LinkError::Broken("its thread panicked".to_owned()));
                    threads.into_iter().map(|t| t.join().unwrap_or_else(gone)).collect()
                })
            }
        }
    }
}

/// What a transport needs to know.
struct Asking<'p> {
    url: &'p str,
    token: Option<&'p str>,
    timeout: Duration,
    actions_key: &'p str,
    client: u64,
    ours: bool,
}

impl Asking<'_> {
    fn open(&self) -> Result<Link, LinkError> {
        Link::open(self.url, self.token, self.timeout).map(|(link, _)| link)
    }
}

fn resized(mut obs: Observation, side: u32) -> Observation {
    for frame in obs.images.values_mut() {
        *frame = super::resize::with_pad(frame.view(), side as usize).into_shared();
    }
    obs
}

impl Policy for RemotePolicy {
    fn name(&self) -> &str {
        self.description.as_ref().map_or(&self.url, |d| &d.label)
    }

    fn needs(&self) -> Needs {
        Needs {
            images: !self.keys.cameras.is_empty(),
            privileged: false,
            n_obs_steps: self.description.as_ref().map_or(1, |d| d.n_obs_steps),
        }
    }

    fn convention(&self) -> Option<&ActionConvention> {
        self.description.as_ref()?.io.convention.as_ref()
    }

    /// # Errors
    /// [`PolicyError::Remote`] for a server that refuses, or cannot be reached any more. Where a decision can be asked for
    /// again without changing it, a lost connection is made again first.
    fn act(
        &mut self,
        requests: &[ActRequest<'_>],
        _mode: ActMode,
    ) -> Result<Vec<PolicyStep>, PolicyError> {
        let windows: Vec<_> = requests.iter().map(|request| self.window(request)).collect();
        let mut done: Vec<Option<ActionChunk>> = vec![None; requests.len()];
        let attempts = if self.may_ask_again() { ATTEMPTS } else { 1 };
        let mut last = String::new();
        for attempt in 0..attempts {
            if attempt > 0 {
                tracing::warn!(url = self.url, problem = last, attempt, "asking the policy again");
                std::thread::sleep(PAUSE * 2u32.pow(attempt - 1));
            }
            let waiting: Vec<usize> = (0..requests.len()).filter(|&i| done[i].is_none()).collect();
            let mut transport = std::mem::replace(
                &mut self.transport,
                Transport::Websocket { links: BTreeMap::new(), spare: None },
            );
            let answers = self.ask(&mut transport, &windows, requests, &waiting);
            self.transport = transport;
            for (i, answer) in waiting.into_iter().zip(answers?) {
                match answer {
                    Ok(numbers) => {
                        done[i] = Some(self.chunk(numbers)?);
                        self.fresh.insert(requests[i].env, false);
                    }
                    Err(LinkError::Refused(detail)) => return Err(self.error(detail)),
                    Err(LinkError::Broken(detail)) => last = detail,
                }
            }
            if done.iter().all(Option::is_some) {
                break;
            }
        }
        done.into_iter()
            .map(|chunk| match chunk {
                Some(chunk) => Ok(PolicyStep { chunk, stats: None }),
                None => Err(self.error(last.clone())),
            })
            .collect()
    }

    fn reset(&mut self, envs: &[EnvId]) {
        for env in envs {
            self.windows.remove(env);
            self.fresh.insert(*env, true);
            // A connection is a session of servers that know no reset.
            if self.description.is_none()
                && let Transport::Websocket { links, .. } = &mut self.transport
            {
                links.remove(env);
            }
        }
    }
}
