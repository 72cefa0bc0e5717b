//! What the server answers, route by route, and the gate in front of all of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, FromRequestParts as _, Request, State, WebSocketUpgrade};
use axum::http::{HeaderValue, Response, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use serde_json::Value;
use simloop_envs::{EnvId, Observation, SeedTree};
use simloop_policies::remote::{
    Array, Description, Keys, NOISE_SEED, Node, RECENT, RESET, SESSION_HEADER, Wanted, json,
    msgpack, observation,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::ServeConfig;
use super::auth::Auth;
use super::engine::{Decision, Engine, Job};
use super::metrics::{Metrics, Now, ROUTES};
use super::refusal::Refusal;
use super::session::{Session, Sessions};
use super::{body, socket};

/// Messages above this size are decoded off the network threads.
const INLINE: usize = 64 << 10;

/// How far a shutdown is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Requests are taken.
    Open,
    /// New requests get 503, those under way are answered.
    Draining,
    /// Nobody is waited for.
    Over,
}

/// Waits until the shutdown has come so far.
pub(super) async fn reached(phase: &mut watch::Receiver<Phase>, at: Phase) {
    // The sender lives as long as the server; when it is gone, everything is over.
    let _ = phase.wait_for(|phase| *phase >= at).await;
}

/// One connection; it counts as open while this lives.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) _permit: Arc<OwnedSemaphorePermit>,
}

/// The number of a request, as told to the client and the log.
#[derive(Clone)]
pub(super) struct RequestId(pub(super) String);

/// What all requests share.
pub(super) struct App {
    pub(super) config: ServeConfig,
    pub(super) auth: Auth,
    pub(super) engine: Engine,
    pub(super) description: Description,
    /// Whether an instruction must be sent.
    pub(super) reads: bool,
    pub(super) keys: Keys,
    pub(super) metadata: Value,
    /// The same as openpi's first message.
    pub(super) greeting: Bytes,
    pub(super) metrics: Arc<Metrics>,
    pub(super) sessions: Mutex<Sessions>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) max_body: usize,
    pub(super) prefix: u32,
    pub(super) next_request: AtomicU64,
    pub(super) next_env: AtomicUsize,
    pub(super) in_flight: AtomicUsize,
}

/// A request under way, while it lives.
pub(super) struct InFlight(Arc<App>);

impl InFlight {
    pub(super) fn new(app: &Arc<App>) -> Self {
        app.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(app))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request that was read.
pub(super) struct Asked {
    /// Oldest first, ends with the present.
    pub(super) seen: Vec<Observation>,
    pub(super) noise_seed: Option<u64>,
    pub(super) reset: bool,
}

impl App {
    pub(super) fn request_id(&self) -> RequestId {
        let n = self.next_request.fetch_add(1, Ordering::Relaxed);
        RequestId(format!("{:08x}-{n}", self.prefix))
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// A session of its own; `name` decides its noise.
    pub(super) fn session(&self, name: &str) -> Session {
        let env = EnvId(self.next_env.fetch_add(1, Ordering::Relaxed));
        let noise = SeedTree::new(self.config.seed).child("serve").child(name);
        Session::new(env, self.description.n_obs_steps, noise)
    }

    /// Checks a message and turns it into observations.
    fn read(&self, message: &Node<'_>) -> Result<Asked, Refusal> {
        let wrong = |field: &str, detail: String| {
            Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("`{field}`: {detail}"))
        };
        if !matches!(message, Node::Map(_)) {
            let detail = format!("the message is {}, not a map", message.kind());
            return Err(Refusal::new(StatusCode::BAD_REQUEST, detail));
        }
        let wanted = Wanted {
            cameras: &self.description.io.cameras,
            proprio: self.description.io.proprio.len(),
            prompt: self.reads,
        };
        let noise_seed = match message.get(NOISE_SEED) {
            None => None,
            Some(node) => Some(node.as_u64().ok_or_else(|| {
                wrong(NOISE_SEED, format!("{} where an unsigned integer belongs", node.kind()))
            })?),
        };
        let reset = match message.get(RESET) {
            None => false,
            Some(node) => node
                .as_bool()
                .ok_or_else(|| wrong(RESET, format!("{} where a boolean belongs", node.kind())))?,
        };
        let older = match message.get(RECENT) {
            None => &[][..],
            Some(Node::List(older)) if older.len() < self.description.n_obs_steps.max(1) => older,
            Some(Node::List(older)) => {
                let most = self.description.n_obs_steps.saturating_sub(1);
                return Err(wrong(RECENT, format!("{} observations; at most {most}", older.len())));
            }
            Some(node) => {
                return Err(wrong(RECENT, format!("{} where a list belongs", node.kind())));
            }
        };
        let newest = observation(message, &self.keys, &wanted, None)?;
        let mut seen = Vec::with_capacity(older.len() + 1);
        for obs in older {
            seen.push(observation(obs, &self.keys, &wanted, Some(&newest.instruction))?);
        }
        seen.push(newest);
        Ok(Asked { seen, noise_seed, reset })
    }

    /// Decodes a message, on another thread if it is long.
    pub(super) async fn decode(
        self: &Arc<Self>,
        bytes: Bytes,
        form: Form,
    ) -> Result<(Asked, bool), Refusal> {
        if bytes.len() <= INLINE {
            return form.decode(self, &bytes);
        }
        let app = Arc::clone(self);
        let decoded = tokio::task::spawn_blocking(move || form.decode(&app, &bytes)).await;
        decoded.unwrap_or_else(|_| {
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "reading the message failed"))
        })
    }

    /// Asks the policy on behalf of a session that has seen something.
    pub(super) async fn decide(
        &self,
        session: &mut Session,
        caller: u64,
        noise_seed: Option<u64>,
    ) -> Result<Decision, Refusal> {
        let asked = Instant::now();
        let (window, noise_seed, fresh) = session.question(noise_seed);
        let (reply, answer) = oneshot::channel();
        let job = Job { env: session.env, caller, window, noise_seed, fresh, asked, reply };
        let mut phase = self.phase.clone();
        let answer = async {
            self.engine.ask(job)?;
            tokio::select! {
                answer = answer => answer.unwrap_or_else(|_| Err(Refusal::closing())),
                () = tokio::time::sleep(self.config.decide_timeout) => Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the policy did not decide in time",
                )),
                () = reached(&mut phase, Phase::Over) => Err(Refusal::closing()),
            }
        };
        let decision = answer.await;
        match &decision {
            Ok(_) => self.metrics.decided(asked.elapsed()),
            Err(_) => session.unanswered(fresh),
        }
        decision
    }

    /// Who is turned away before anything of the request is looked at.
    fn turn_away(&self, request: &Request) -> Option<Refusal> {
        if request.uri().path() == "/healthz" {
            return None;
        }
        if request.headers().contains_key(header::ORIGIN) {
            // Browsers say where a page came from, robots do not: no page on the web may steer this server.
            return Some(Refusal::new(StatusCode::FORBIDDEN, "requests of web pages are refused"));
        }
        if !self.auth.admits(request.headers()) {
            return Some(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "send the server's token as `Authorization: Bearer TOKEN` or `Api-Key TOKEN`",
            ));
        }
        (self.phase() > Phase::Open).then(Refusal::closing)
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two forms of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Msgpack,
    Json,
}

impl Form {
    /// The request, and whether it was JSON in a string of JSON.
    fn decode(self, app: &App, bytes: &[u8]) -> Result<(Asked, bool), Refusal> {
        match self {
            Self::Msgpack => Ok((app.read(&msgpack::read(bytes)?)?, false)),
            Self::Json => {
                let message = json::read(bytes)?;
                // deploy.py: for clients without json_numpy.
                match message.get("encoded") {
                    Some(Node::Text(inner)) => {
                        Ok((app.read(&json::read(inner.as_bytes())?)?, true))
                    }
                    _ => Ok((app.read(&message)?, false)),
                }
            }
        }
    }
}

/// All routes behind the gate.
pub(super) fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(upgrade))
        .route("/act", post(act))
        .route("/healthz", get(healthz))
        .route("/metadata", get(metadata))
        .route("/metrics", get(metrics))
        .fallback(nothing_there)
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn_with_state(Arc::clone(app), gate))
        .with_state(Arc::clone(app))
}

fn route_of(path: &str) -> usize {
    let name = match path {
        "/" => "ws",
        path => path.strip_prefix('/').unwrap_or(path),
    };
    ROUTES.iter().position(|route| *route == name && *route != "other").unwrap_or(ROUTES.len() - 1)
}

/// Numbers every request, turns away who may not ask, and turns a panic into an answer.
async fn gate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response<Body> {
    let id = app.request_id();
    let route = route_of(request.uri().path());
    let under_way = InFlight::new(&app);
    let mut response = if let Some(refusal) = app.turn_away(&request) {
        let (parts, rest) = request.into_parts();
        body::discard(&parts.headers, rest);
        refusal.response(&id.0)
    } else {
        request.extensions_mut().insert(id.clone());
        // A task of its own: it ends by itself if the client leaves, and its panic ends only itself.
        let handled = tokio::spawn(async move {
            let _under_way = under_way;
            next.run(request).await
        });
        handled.await.unwrap_or_else(|_| {
            app.metrics.panicked();
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the request failed").response(&id.0)
        })
    };
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        tracing::debug!(request = id.0, status = status.as_u16(), "refused");
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        headers.insert("x-request-id", value);
    }
    if app.phase() > Phase::Open && status != StatusCode::SWITCHING_PROTOCOLS {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    app.metrics.answered(route, status.as_u16());
    response
}

fn plain(status: StatusCode, kind: &'static str, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

async fn healthz(State(app): State<Arc<App>>) -> Response<Body> {
    match app.phase() {
        Phase::Open => plain(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
        _ => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain; charset=utf-8",
            "the server is shutting down\n",
        ),
    }
}

async fn metadata(State(app): State<Arc<App>>) -> Response<Body> {
    plain(StatusCode::OK, "application/json", format!("{:#}\n", app.metadata))
}

async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let now = Now {
        waiting: app.engine.waiting(),
        in_flight: app.in_flight.load(Ordering::SeqCst),
        sessions: app.sessions().len(),
    };
    plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", app.metrics.text(&now))
}

async fn nothing_there(Extension(id): Extension<RequestId>, request: Request) -> Response<Body> {
    let (parts, rest) = request.into_parts();
    body::discard(&parts.headers, rest);
    Refusal::new(StatusCode::NOT_FOUND, "there is nothing here; see /metadata").response(&id.0)
}

async fn other_method(Extension(id): Extension<RequestId>, request: Request) -> Response<Body> {
    let (parts, rest) = request.into_parts();
    body::discard(&parts.headers, rest);
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this route has another method").response(&id.0)
}

async fn upgrade(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Response<Body> {
    let (mut parts, rest) = request.into_parts();
    let name = match session_name(&parts.headers) {
        Ok(name) => name.unwrap_or_default().to_owned(),
        Err(refusal) => return refusal.response(&id.0),
    };
    let Ok(upgrade) = WebSocketUpgrade::from_request_parts(&mut parts, &app).await else {
        body::discard(&parts.headers, rest);
        return Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            "openpi's websocket is here; OpenVLA's REST form is at POST /act",
        )
        .response(&id.0);
    };
    let limit = app.max_body;
    upgrade
        .max_message_size(limit)
        .max_frame_size(limit)
        .max_write_buffer_size(4 << 20)
        .on_upgrade(move |socket| socket::talk(app, socket, connection, name))
}

fn session_name(headers: &axum::http::HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(SESSION_HEADER) else { return Ok(None) };
    let name = value.to_str().unwrap_or_default();
    Sessions::check(name).map(|()| Some(name))
}

/// Whether the whole chunk is asked for.
fn wants_chunk(uri: &Uri) -> Result<bool, Refusal> {
    let mut reply = None;
    for part in uri.query().unwrap_or_default().split('&') {
        if let Some(value) = part.strip_prefix("reply=") {
            reply = Some(value);
        }
    }
    match reply {
        None | Some("action") => Ok(false),
        Some("chunk") => Ok(true),
        Some(_) => Err(Refusal::new(StatusCode::BAD_REQUEST, "reply: it is `action` or `chunk`")),
    }
}

async fn act(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Response<Body> {
    let (parts, content) = request.into_parts();
    match answer(&app, &connection, &parts, content).await {
        Ok(response) => response,
        Err(refusal) => refusal.response(&id.0),
    }
}

async fn answer(
    app: &Arc<App>,
    connection: &Connection,
    parts: &axum::http::request::Parts,
    content: Body,
) -> Result<Response<Body>, Refusal> {
    let name = session_name(&parts.headers)?;
    let whole = wants_chunk(&parts.uri)?;
    let bytes = body::read(&parts.headers, content, app.max_body, app.config.body_timeout).await?;
    let (asked, double) = app.decode(bytes, Form::Json).await?;
    let Some(name) = name else {
        let mut session = app.session("");
        session.see(asked.seen);
        let decision = app.decide(&mut session, connection.number, asked.noise_seed).await;
        app.engine.forget(session.env);
        return decision.and_then(|decision| actions(&decision, whole, double));
    };
    let (mut session, evicted) = app.sessions().take(name, || app.session(name))?;
    if let Some(env) = evicted {
        app.engine.forget(env);
    }
    let response = within_session(app, &mut session, asked, whole, double).await;
    app.sessions().put(name, session);
    response
}

async fn within_session(
    app: &App,
    session: &mut Session,
    asked: Asked,
    whole: bool,
    double: bool,
) -> Result<Response<Body>, Refusal> {
    if asked.reset {
        session.reset();
    }
    session.see(asked.seen);
    if !whole && let Some(action) = session.next_action() {
        let array = Array::f32(&[action.len()], action.iter().copied())?;
        return reply(&Node::Array(array), double, None);
    }
    // Environments are numbered from 0, connections apart from them.
    let caller = (1 << 63) | session.env.0 as u64;
    let decision = app.decide(session, caller, asked.noise_seed).await?;
    let response = actions(&decision, whole, double)?;
    if !whole {
        session.plan(&decision.chunk);
        session.next_action();
    }
    Ok(response)
}

/// `[T_a, D]`, or its first action `[D]`.
fn actions(decision: &Decision, whole: bool, double: bool) -> Result<Response<Body>, Refusal> {
    let view = decision.chunk.view();
    let array = if whole {
        Array::f32(view.shape(), view.iter().copied())?
    } else {
        Array::f32(&[view.ncols()], view.row(0).iter().copied())?
    };
    reply(&Node::Array(array), double, Some(decision))
}

fn reply(
    node: &Node<'_>,
    double: bool,
    decision: Option<&Decision>,
) -> Result<Response<Body>, Refusal> {
    let mut text = json::write(node)?;
    if double {
        text = json::write(&Node::Text(text.into()))?;
    }
    let mut response = plain(StatusCode::OK, "application/json", text);
    if let Some(decision) = decision {
        let ms = |time: std::time::Duration| format!("{:.3}", time.as_secs_f64() * 1e3);
        for (name, value) in [
            ("x-infer-ms", ms(decision.infer)),
            ("x-queue-ms", ms(decision.waited)),
            ("x-batch", decision.batch.to_string()),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_counted_under_a_fixed_list_of_names() {
        let name = |path: &str| ROUTES[route_of(path)];
        assert_eq!((name("/"), name("/act"), name("/healthz")), ("ws", "act", "healthz"));
        for other in ["/other", "/ws", "", "act", "/../../etc/passwd", "/act/x"] {
            assert!(["other", "ws", "act"].contains(&name(other)), "{other}");
        }
        assert_eq!(name("/act/x"), "other");
    }

    #[test]
    fn the_query_says_what_is_answered() {
        let wants = |uri: &str| wants_chunk(&uri.parse().unwrap());
        assert_eq!((wants("/act"), wants("/act?reply=chunk")), (Ok(false), Ok(true)));
        assert_eq!(wants("/act?x=1&reply=action"), Ok(false));
        assert!(wants("/act?reply=all").is_err());
    }
}
