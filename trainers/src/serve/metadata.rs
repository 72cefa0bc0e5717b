//! What a client is told before it asks.

use serde_json::{Value, json};
use simloop_policies::remote::{Description, Keys, PROTOCOL, SERVER_NAME};

use super::ServeConfig;

/// The metadata of a server: names of the parts of an observation, sizes, units, and what may be sent beside them.
pub(super) fn metadata(
    description: &Description,
    keys: &Keys,
    max_batch: usize,
    max_body: usize,
    config: &ServeConfig,
) -> Value {
    json!({
        "server": SERVER_NAME,
        "version": env!("CARGO_PKG_VERSION"),
        "protocol": PROTOCOL,
        "policy": {
            "label": description.label,
            "sha256": description.sha256,
            "io": description.io,
            "cameras": description.cameras,
            "n_obs_steps": description.n_obs_steps,
            "inference_batch": description.inference_batch,
            "ensemble": description.ensemble,
            "device": description.device,
            "torch_threads": description.torch_threads,
            "libtorch": description.libtorch,
        },
        "keys": keys,
        "batching": { "max_batch": max_batch, "max_wait_ms": config.max_wait.as_secs_f64() * 1e3 },
        "limits": {
            "body_bytes": max_body,
            "body_secs": config.body_timeout.as_secs_f64(),
            "decide_secs": config.decide_timeout.as_secs_f64(),
        },
    })
}
