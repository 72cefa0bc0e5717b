//! openpi's websocket: metadata, then an answer to every observation.
//!
//! Follows openpi `serving/websocket_policy_server.py`: the first message is the metadata; a request is a msgpack map, its
//! answer has `actions` `[T_a, D]` and `server_timing`; an answer as text is an error. Unlike there a request that cannot be
//! answered leaves the connection open, and its error says nothing of this program's inside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use simloop_policies::remote::{Array, Node, msgpack};

use super::engine::Decision;
use super::refusal::Refusal;
use super::routes::{App, Connection, Form, InFlight, Phase, reached};
use super::session::Session;

/// A client must take a message within this time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const FAREWELL: Duration = Duration::from_millis(300);
/// Silent pings after which nobody is there.
const SILENT: u32 = 3;
/// Refused messages in a row after which the connection is closed.
const PATIENCE: u32 = 32;
/// The place of this route in the metrics.
const ROUTE: usize = 0;

/// Talks until either side has enough.
pub(super) async fn talk(app: Arc<App>, socket: WebSocket, connection: Connection, name: String) {
    let metrics = Arc::clone(&app.metrics);
    let _open = metrics.websocket();
    let mut session = app.session(&name);
    let mut talk = Talk { app: Arc::clone(&app), socket, connection, refused: 0, previous: None };
    talk.run(&mut session).await;
    app.engine.forget(session.env);
}

struct Talk {
    app: Arc<App>,
    socket: WebSocket,
    connection: Connection,
    refused: u32,
    /// How long the previous answer took, sending included.
    previous: Option<Duration>,
}

impl Talk {
    async fn run(&mut self, session: &mut Session) {
        let mut phase = self.app.phase.clone();
        let mut ping = tokio::time::interval(self.app.config.ping_every);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ping.tick().await;
        let mut silent = 0;
        if !self.send(Message::Binary(self.app.greeting.clone())).await {
            return;
        }
        loop {
            let message = tokio::select! {
                message = self.socket.recv() => message,
                _ = ping.tick() => {
                    silent += 1;
                    if silent > SILENT || !self.send(Message::Ping(Bytes::new())).await {
                        return;
                    }
                    continue;
                }
                () = reached(&mut phase, Phase::Over) => {
                    self.close(close_code::AWAY, "the server is shutting down").await;
                    return;
                }
            };
            silent = 0;
            match message {
                None | Some(Ok(Message::Close(_))) => return,
                Some(Err(error)) => {
                    let text = error.to_string();
                    tracing::debug!(error = text, "a websocket broke");
                    let (code, why) = if text.contains("too long") || text.contains("too big") {
                        (close_code::SIZE, "the message is too large")
                    } else {
                        (close_code::PROTOCOL, "this is no websocket")
                    };
                    self.app.metrics.answered(ROUTE, 400);
                    self.close(code, why).await;
                    return;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(bytes))) => {
                    let _under_way = InFlight::new(&self.app);
                    if self.app.phase() > Phase::Open {
                        if self.refuse(&Refusal::closing()).await {
                            self.close(close_code::AWAY, "the server is shutting down").await;
                        }
                        return;
                    }
                    if !self.answer(session, bytes).await {
                        return;
                    }
                }
                Some(Ok(Message::Text(_))) => {
                    let detail = "text; a request is a binary message of msgpack";
                    let refusal = Refusal::new(axum::http::StatusCode::BAD_REQUEST, detail);
                    if !self.refuse(&refusal).await {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the conversation goes on.
    async fn answer(&mut self, session: &mut Session, bytes: Bytes) -> bool {
        let arrived = Instant::now();
        let decision = match self.app.decode(bytes, Form::Msgpack).await {
            Err(refusal) => Err(refusal),
            Ok((asked, _)) => {
                if asked.reset {
                    session.reset();
                }
                session.see(asked.seen);
                self.app.decide(session, self.connection.number, asked.noise_seed).await
            }
        };
        let sent = match decision.and_then(|decision| self.reply(&decision)) {
            Ok(bytes) => {
                self.refused = 0;
                self.app.metrics.answered(ROUTE, 200);
                self.send(Message::Binary(bytes)).await
            }
            Err(refusal) => self.refuse(&refusal).await,
        };
        self.previous = Some(arrived.elapsed());
        sent
    }

    fn reply(&self, decision: &Decision) -> Result<Bytes, Refusal> {
        let view = decision.chunk.view();
        let actions = Array::f32(view.shape(), view.iter().copied())?;
        let ms = |time: Duration| Node::Float(time.as_secs_f64() * 1e3);
        let mut timing = vec![
            ("infer_ms".into(), ms(decision.infer)),
            ("queue_ms".into(), ms(decision.waited)),
            ("batch".into(), Node::Int(decision.batch as i64)),
        ];
        if let Some(previous) = self.previous {
            timing.push(("prev_total_ms".into(), ms(previous)));
        }
        let reply =
            Node::map([("actions", Node::Array(actions)), ("server_timing", Node::Map(timing))]);
        Ok(msgpack::write(&reply).into())
    }

    /// Tells why there is no action. Whether the conversation goes on.
    async fn refuse(&mut self, refusal: &Refusal) -> bool {
        let id = self.app.request_id();
        tracing::debug!(request = id.0, status = refusal.status.as_u16(), "refused");
        self.app.metrics.answered(ROUTE, refusal.status.as_u16());
        self.refused += 1;
        if !self.send(Message::Text(refusal.text(&id.0).into())).await {
            return false;
        }
        if self.refused >= PATIENCE {
            self.close(close_code::POLICY, "too many requests that cannot be answered").await;
            return false;
        }
        true
    }

    async fn send(&mut self, message: Message) -> bool {
        matches!(tokio::time::timeout(WRITE_TIMEOUT, self.socket.send(message)).await, Ok(Ok(())))
    }

    /// Says goodbye, and hears the client out for a moment: what it sent meanwhile would turn the goodbye into a reset.
    async fn close(&mut self, code: u16, why: &'static str) {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(why) };
        let goodbye = async {
            if self.socket.send(Message::Close(Some(frame))).await.is_ok() {
                while let Some(Ok(_)) = self.socket.recv().await {}
            }
        };
        let _ = tokio::time::timeout(FAREWELL, goodbye).await;
    }
}
