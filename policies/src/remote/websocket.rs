//! The client's side of openpi's websocket form, blocking, one connection per session.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use tungstenite::client::{IntoClientRequest as _, client_with_config};
use tungstenite::http::HeaderValue;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{HandshakeError, Message, WebSocket};

use super::node::Node;
use super::{json, msgpack};

/// The largest reply that is read: a chunk is a few kilobytes, metadata too.
const MAX_REPLY: usize = 16 << 20;
const CONNECT: Duration = Duration::from_secs(5);

/// What went wrong on the way.
#[derive(Debug)]
pub(super) enum LinkError {
    /// The connection: another one may do.
    Broken(String),
    /// The server's answer: it would say the same again.
    Refused(String),
}

/// A connection on which the server has introduced itself.
pub(super) struct Link {
    socket: WebSocket<TcpStream>,
}

impl Link {
    /// Connects and reads the server's metadata, as JSON.
    pub(super) fn open(
        url: &str,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<(Self, serde_json::Value), LinkError> {
        let refused = |detail: String| LinkError::Refused(detail);
        let broken = |e: &dyn std::fmt::Display| LinkError::Broken(e.to_string());
        let mut request = url.into_client_request().map_err(|e| refused(e.to_string()))?;
        if let Some(token) = token {
            // openpi's client says `Api-Key`; ours is read by either server.
            let value = HeaderValue::from_str(&format!("Api-Key {token}"))
                .map_err(|_| refused("the token cannot stand in a header".to_owned()))?;
            request.headers_mut().insert("authorization", value);
        }
        let (host, port) = {
            let uri = request.uri();
            if uri.scheme_str() != Some("ws") {
                return Err(refused(
                    "it is not ws://; TLS is left to a tunnel or proxy".to_owned(),
                ));
            }
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            (host, uri.port_u16().unwrap_or(80))
        };
        let addresses = (host.as_str(), port).to_socket_addrs().map_err(|e| broken(&e))?;
        let mut stream = Err(LinkError::Broken(format!("`{host}` has no address")));
        for address in addresses {
            stream = TcpStream::connect_timeout(&address, CONNECT).map_err(|e| broken(&e));
            if stream.is_ok() {
                break;
            }
        }
        let stream = stream?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(timeout)))
            .and_then(|()| stream.set_write_timeout(Some(timeout)))
            .map_err(|e| broken(&e))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_REPLY))
            .max_frame_size(Some(MAX_REPLY));
        let socket = match client_with_config(request, stream, Some(config)) {
            Ok((socket, _)) => socket,
            Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
                let status = response.status().as_u16();
                let words = format!("it answers with status {status} instead of a websocket");
                // A server that is on its way down, or overloaded, may be back in a moment.
                return Err(if status == 503 { LinkError::Broken(words) } else { refused(words) });
            }
            Err(e) => return Err(broken(&e)),
        };
        let mut link = Self { socket };
        let metadata = link.receive()?;
        let metadata = msgpack::read(&metadata)
            .map_err(|e| refused(format!("its metadata is no msgpack: {e}")))
            .and_then(|node| json::write(&node).map_err(|e| refused(e.to_string())))?;
        let metadata = serde_json::from_str(&metadata).map_err(|e| refused(e.to_string()))?;
        Ok((link, metadata))
    }

    pub(super) fn send(&mut self, message: &Node<'_>) -> Result<(), LinkError> {
        let bytes = msgpack::write(message);
        self.socket
            .send(Message::Binary(bytes.into()))
            .map_err(|e| LinkError::Broken(e.to_string()))
    }

    /// The next binary message.
    pub(super) fn receive(&mut self) -> Result<Vec<u8>, LinkError> {
        loop {
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => return Ok(bytes.into()),
                // openpi: text is an error.
                Ok(Message::Text(text)) => {
                    let words = text.chars().take(2000).collect();
                    // Our server's word for "not now".
                    let passing = text.contains("(status 503,");
                    return Err(if passing {
                        LinkError::Broken(words)
                    } else {
                        LinkError::Refused(words)
                    });
                }
                Ok(Message::Close(frame)) => {
                    let why = frame.map_or(String::new(), |f| format!(": {}", f.reason));
                    return Err(LinkError::Broken(format!(
                        "the server closed the connection{why}"
                    )));
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(e))
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return Err(LinkError::Broken("no answer in time".to_owned()));
                }
                Err(e) => return Err(LinkError::Broken(e.to_string())),
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Politeness only: the server notices a closed socket too.
        let _ = self.socket.close(None);
        let _ = self.socket.flush();
    }
}
