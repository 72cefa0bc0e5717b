//! Settings of the server.

use std::net::SocketAddr;
use std::time::Duration;

use crate::TrainerError;

/// The shortest token that is accepted, bytes.
pub const MIN_TOKEN: usize = 16;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Where to listen. Anything but loopback needs a token.
    pub listen: SocketAddr,
    /// What clients must present.
    pub token: Option<String>,
    /// The most decisions of one batch; `None` is the policy's own inference batch.
    pub max_batch: Option<usize>,
    /// The longest that the policy, once free, waits for others to share a batch; a twentieth of what the last batch took where that
    /// is longer.
    pub max_wait: Duration,
    /// Requests that may wait for inference; further ones are answered with 503.
    pub queue: usize,
    /// The largest body or message, bytes; `None` follows from what the policy looks at.
    pub max_body: Option<usize>,
    /// Connections at once.
    pub max_connections: usize,
    /// Sessions over REST at once; the one that was used least recently makes room.
    pub max_sessions: usize,
    /// A request's headers must arrive within this time.
    pub header_timeout: Duration,
    /// A request's body must arrive within this time.
    pub body_timeout: Duration,
    /// A decision must be made within this time.
    pub decide_timeout: Duration,
    /// How often a websocket is asked whether somebody is there; three silent times close it.
    pub ping_every: Duration,
    /// After a signal, requests under way are answered within this time or get 503.
    pub grace: Duration,
    /// Network threads.
    pub network_threads: usize,
    /// The root of all noise that requests bring no seed for.
    pub seed: u64,
    /// `part=name` settings of the names of an observation's parts.
    pub keys: Vec<(String, String)>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)), // openpi and OpenVLA: port 8000
            token: None,
            max_batch: None,
            max_wait: Duration::from_millis(2),
            queue: 4096,
            max_body: None,
            max_connections: 2048,
            max_sessions: 4096,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            decide_timeout: Duration::from_mins(1),
            ping_every: Duration::from_secs(20),
            grace: Duration::from_secs(4),
            network_threads: 2,
            seed: 0,
            keys: Vec::new(),
        }
    }
}

impl ServeConfig {
    /// Checks what no other part can.
    ///
    /// # Errors
    /// [`TrainerError::Config`] for an address that others can reach without a token, a short token, or a limit of zero.
    pub fn validate(&self) -> Result<(), TrainerError> {
        let fail = |detail: String| Err(TrainerError::Config { detail });
        match &self.token {
            None if !self.listen.ip().is_loopback() => {
                return fail(format!(
                    "listen on {}: others can reach it, so give a token (--token-file), or use 127.0.0.1",
                    self.listen
                ));
            }
            Some(token)
                if token.len() < MIN_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                return fail(format!(
                    "use this token: it must be at least {MIN_TOKEN} printable ASCII characters without spaces"
                ));
            }
            _ => {}
        }
        let counts = [
            ("max_batch", self.max_batch.unwrap_or(1)),
            ("queue", self.queue),
            ("max_body", self.max_body.unwrap_or(1)),
            ("max_connections", self.max_connections),
            ("max_sessions", self.max_sessions),
            ("network_threads", self.network_threads),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return fail(format!("serve with {name} = 0: it must be at least 1"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_address_needs_a_token_and_a_token_some_length() {
        let config = |listen: &str, token: Option<&str>| ServeConfig {
            listen: listen.parse().unwrap(),
            token: token.map(str::to_owned),
            ..ServeConfig::default()
        };
        assert!(ServeConfig::default().validate().is_ok());
        for open in ["0.0.0.0:1", "[::]:1", "10.0.0.2:1"] {
            assert!(config(open, None).validate().is_err(), "{open}");
            assert!(config(open, Some("0123456789abcdef")).validate().is_ok(), "{open}");
        }
        for loopback in ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1"] {
            assert!(config(loopback, None).validate().is_ok(), "{loopback}");
            assert!(config(loopback, Some("short")).validate().is_err());
            assert!(config(loopback, Some("0123456789 abcdef")).validate().is_err());
        }
        assert!(ServeConfig { queue: 0, ..ServeConfig::default() }.validate().is_err());
    }
}
