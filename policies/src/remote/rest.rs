//! The client's side of OpenVLA's REST form.

use std::time::Duration;

use ureq::Agent;

use super::node::Node;
use super::websocket::LinkError;
use super::{SESSION_HEADER, json};

const MAX_REPLY: u64 = 16 << 20;

/// Where requests go.
pub(super) struct Rest {
    agent: Agent,
    act: String,
    metadata: String,
    token: Option<String>,
}

impl Rest {
    /// `http://host:port[/path]`; without a path `/act` is meant.
    pub(super) fn new(url: &str, token: Option<String>, timeout: Duration) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .timeout_connect(Some(Duration::from_secs(5)))
            .http_status_as_error(false)
            .build();
        let scheme_end = url.find("://").map_or(0, |at| at + 3);
        let (base, path) = match url[scheme_end..].find('/') {
            Some(at) => url.split_at(scheme_end + at),
            None => (url, ""),
        };
        let act = if path.len() > 1 { url.to_owned() } else { format!("{base}/act") };
        Self { agent: config.into(), act, metadata: format!("{base}/metadata"), token }
    }

    fn authorization(&self) -> Option<(&'static str, String)> {
        self.token.as_ref().map(|token| ("authorization", format!("Bearer {token}")))
    }

    /// What the server says of itself; `None` from one that has no such page.
    pub(super) fn metadata(&self) -> Result<Option<serde_json::Value>, LinkError> {
        let mut request = self.agent.get(&self.metadata);
        if let Some((name, value)) = self.authorization() {
            request = request.header(name, value);
        }
        let mut response = request.call().map_err(|e| LinkError::Broken(e.to_string()))?;
        let status = response.status().as_u16();
        if status == 401 || status == 403 {
            return Err(LinkError::Refused(format!("it answers with status {status}")));
        }
        if status != 200 {
            return Ok(None);
        }
        let text = response.body_mut().with_config().limit(MAX_REPLY).read_to_vec();
        let text = text.map_err(|e| LinkError::Broken(e.to_string()))?;
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Asks once. `ours` servers answer with the whole chunk and keep a session by its name.
    pub(super) fn ask(
        &self,
        message: &Node<'_>,
        session: &str,
        ours: bool,
    ) -> Result<Vec<u8>, LinkError> {
        let body = json::write(message).map_err(|e| LinkError::Refused(e.to_string()))?;
        let mut request = self.agent.post(&self.act).header("content-type", "application/json");
        if ours {
            request = request.query("reply", "chunk").header(SESSION_HEADER, session);
        }
        if let Some((name, value)) = self.authorization() {
            request = request.header(name, value);
        }
        let response = request.send(body.as_bytes());
        let mut response = response.map_err(|e| LinkError::Broken(e.to_string()))?;
        let status = response.status().as_u16();
        let bytes = response.body_mut().with_config().limit(MAX_REPLY).read_to_vec();
        let bytes = bytes.map_err(|e| LinkError::Broken(e.to_string()))?;
        let words = || String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        match status {
            // OpenVLA's server reports an error with status 200 and the word "error".
            200..=299 if bytes.trim_ascii() == b"\"error\"" => {
                Err(LinkError::Refused("it answers \"error\"; its log says why".to_owned()))
            }
            200..=299 => Ok(bytes),
            503 => Err(LinkError::Broken(format!("status 503: {}", words()))),
            _ => Err(LinkError::Refused(format!("status {status}: {}", words()))),
        }
    }
}

/// Actions in any of the forms that OpenVLA's family answers with: an array `[D]` or `[T, D]`, a list of numbers or of
/// arrays, one of these under `actions` or `action`, or one as JSON in a string ("double-encoded").
pub(super) fn actions(bytes: &[u8], key: &str) -> Result<(Vec<usize>, Vec<f32>), String> {
    let node = json::read(bytes).map_err(|e| e.to_string())?;
    if let Node::Text(inner) = &node {
        let inner = json::read(inner.as_bytes()).map_err(|e| e.to_string())?;
        return numbers(&inner, key);
    }
    numbers(&node, key)
}

/// The actions of a reply.
pub(super) fn numbers(node: &Node<'_>, key: &str) -> Result<(Vec<usize>, Vec<f32>), String> {
    let found = match node {
        Node::Map(_) => node
            .find(key)
            .or_else(|| node.get("actions"))
            .or_else(|| node.get("action"))
            .ok_or_else(|| format!("the reply has no `{key}`"))?,
        other => other,
    };
    found.numbers().map_err(|e| format!("the actions: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_answer_is_read() {
        let array = r#"{"__numpy__": "AACAPwAAAEA=", "dtype": "<f4", "shape": [2]}"#;
        let double = serde_json::to_string(array).unwrap();
        for text in [array, "[1, 2.0]", &double, r#"{"actions": [1, 2]}"#, r#"{"action": [1, 2]}"#]
        {
            assert_eq!(
                actions(text.as_bytes(), "actions"),
                Ok((vec![2], vec![1.0, 2.0])),
                "{text}"
            );
        }
        let rows = format!("[{array}, {array}]");
        assert_eq!(actions(rows.as_bytes(), "actions").unwrap().0, [2, 2]);
        for text in ["{}", "null", "[null]", r#"{"actions": "x"}"#, "[[1], [2, 3]]", "\"[\""] {
            assert!(actions(text.as_bytes(), "actions").is_err(), "{text}");
        }
    }

    #[test]
    fn a_url_without_a_path_means_act() {
        let of = |url: &str| {
            let rest = Rest::new(url, None, Duration::from_secs(1));
            (rest.act, rest.metadata)
        };
        let at = |act: &str| (act.to_owned(), "http://h:1/metadata".to_owned());
        assert_eq!(of("http://h:1"), at("http://h:1/act"));
        assert_eq!(of("http://h:1/"), at("http://h:1/act"));
        assert_eq!(of("http://h:1/x/predict"), at("http://h:1/x/predict"));
    }
}
