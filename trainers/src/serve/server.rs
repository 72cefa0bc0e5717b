//! Listening, connections, and the end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use simloop_policies::remote::{Description, Keys, Node, msgpack};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::ServeConfig;
use super::auth::Auth;
use super::engine::{Batching, Engine, Loader};
use super::metadata::metadata;
use super::metrics::Metrics;
use super::routes::{App, Connection, Phase, reached, router};
use super::session::Sessions;
use crate::TrainerError;

/// New requests are still taken (and answered with 503) for so long after a signal: those that were on their way get a word.
const LAST_CALL: Duration = Duration::from_millis(250);
/// Connections may take so long to send what they still have to say.
const FAREWELL: Duration = Duration::from_millis(500);

/// A running server.
pub struct Server {
    address: SocketAddr,
    description: Description,
    stop: watch::Sender<bool>,
    network: JoinHandle<()>,
    inference: JoinHandle<()>,
}

/// The body limit that a policy's observations ask for: images as nested JSON lists take about four bytes a number.
fn body_limit(description: &Description) -> usize {
    let pixels: usize = description
        .cameras
        .iter()
        .filter_map(|camera| description.io.cameras.get(camera))
        .map(|space| 3 * space.height as usize * space.width as usize)
        .sum();
    (4 * pixels * description.n_obs_steps.max(1) + (256 << 10)).clamp(1 << 20, 64 << 20)
}

impl Server {
    /// Binds, loads the policy, and serves until [`Server::stop`].
    ///
    /// # Errors
    /// [`TrainerError::Config`] for settings that cannot be or an address that cannot be had; the loader's errors.
    pub fn start(config: ServeConfig, load: Loader) -> Result<Self, TrainerError> {
        config.validate()?;
        let fail =
            |what: &str, e: &dyn std::fmt::Display| TrainerError::config(format!("{what}: {e}"));
        let listener = std::net::TcpListener::bind(config.listen)
            .map_err(|e| fail(&format!("listen on {}", config.listen), &e))?;
        listener.set_nonblocking(true).map_err(|e| fail("listen", &e))?;
        let address = listener.local_addr().map_err(|e| fail("listen", &e))?;
        let metrics = Arc::new(Metrics::default());
        let batching = Batching {
            max_batch: config.max_batch,
            max_wait: config.max_wait,
            queue: config.queue,
        };
        let (engine, description, reads, inference) =
            Engine::start(load, batching, Arc::clone(&metrics))?;
        let mut keys = Keys::openpi(description.cameras.iter().map(String::as_str));
        keys.set(&config.keys).map_err(|e| fail("name the parts of an observation", &e))?;
        let max_body = config.max_body.unwrap_or_else(|| body_limit(&description));
        let max_batch = config.max_batch.unwrap_or(description.inference_batch);
        let metadata = metadata(&description, &keys, max_batch, max_body, &config);
        let (phase_sender, phase) = watch::channel(Phase::Open);
        let app = Arc::new(App {
            auth: Auth::new(config.token.as_deref()),
            engine,
            description: description.clone(),
            reads,
            keys,
            greeting: msgpack::write(&Node::from(&metadata)).into(),
            metadata,
            metrics,
            sessions: Mutex::new(Sessions::new(config.max_sessions)),
            phase,
            max_body,
            prefix: rand::random(),
            next_request: AtomicU64::new(1),
            next_env: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            config,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(app.config.network_threads)
            .max_blocking_threads(4)
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(|e| fail("start the network threads", &e))?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener).map_err(|e| fail("listen", &e))?
        };
        let (stop, stopped) = watch::channel(false);
        let network = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
                runtime.block_on(listen(app, listener, &phase_sender, stopped));
                runtime.shutdown_timeout(Duration::from_millis(100));
            })
            .map_err(|e| fail("start the network threads", &e))?;
        Ok(Self { address, description, stop, network, inference })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it serves.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Takes no more requests, answers those under way, and ends within [`ServeConfig::grace`] and a second: waits for that.
    pub fn stop(self) {
        // Both threads may have ended by themselves.
        let _ = self.stop.send(true);
        let _ = self.network.join();
        // A batch under way cannot be cut short, and nobody waits for it any more.
        let patience = Instant::now() + Duration::from_millis(200);
        while !self.inference.is_finished() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.inference.is_finished() {
            let _ = self.inference.join();
        }
    }
}

async fn listen(
    app: Arc<App>,
    listener: TcpListener,
    phase: &watch::Sender<Phase>,
    mut stopped: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(app.config.max_connections));
    let router = router(&app);
    let mut next = 0;
    let mut accept = |accepted: std::io::Result<(TcpStream, SocketAddr)>| match accepted {
        Ok((stream, _)) => {
            // Beyond the limit a connection is closed at once.
            let Ok(permit) = Arc::clone(&slots).try_acquire_owned() else { return None };
            next += 1;
            let connection = Connection { number: next, _permit: Arc::new(permit) };
            tokio::spawn(serve(Arc::clone(&app), router.clone(), stream, connection));
            None
        }
        // Out of descriptors: those of others may be returned meanwhile.
        Err(_) => Some(Duration::from_millis(20)),
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Some(pause) = accept(accepted) {
                    tokio::time::sleep(pause).await;
                }
            }
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    phase.send_replace(Phase::Draining);
    let began = Instant::now();
    while began.elapsed() < app.config.grace
        && (began.elapsed() < LAST_CALL || app.in_flight.load(Ordering::SeqCst) > 0)
    {
        tokio::select! {
            accepted = listener.accept() => {
                if accept(accepted).is_some() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    drop(listener);
    phase.send_replace(Phase::Over);
    let all = app.config.max_connections;
    let began = Instant::now();
    while slots.available_permits() < all && began.elapsed() < FAREWELL {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One connection, until either side closes it.
async fn serve(app: Arc<App>, router: Router, stream: TcpStream, connection: Connection) {
    // Answers are small: waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let _open = app.metrics.connection();
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        inner.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.header_timeout)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    let mut phase = app.phase.clone();
    tokio::select! {
        _ = served.as_mut() => {}
        () = reached(&mut phase, Phase::Over) => {
            served.as_mut().graceful_shutdown();
            // Whoever does not read its answer now will not.
            let _ = tokio::time::timeout(FAREWELL, served).await;
        }
    }
}
