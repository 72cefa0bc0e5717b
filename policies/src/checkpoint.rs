//! A policy as a folder, in the manner of Hugging Face.
//!
//! | file | what |
//! |---|---|
//! | `config.json` | [`PolicyFile`]: format, what goes in and out ([`PolicyIo`]), architecture ([`VlaConfig`]) |
//! | `model.safetensors` | the weights that act (the averaged ones, where training averages) |
//! | `normalizer.json` | [`Normalizers`] with all their statistics |
//! | `tokenizer.json` | the instruction's tokenizer, where the policy reads |
//!
//! Nothing in it is code: no pickle is ever read. Training adds `training_state/` and a manifest of its own beside these.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Device;

use crate::text::Tokenizer;
use crate::vla::{Normalizers, PolicyIo, VlaConfig, VlaPolicy};
use crate::{ImitationModel as _, PolicyError, safetensors_io};

/// The architecture's file.
pub const CONFIG_FILE: &str = "config.json";
/// The weights' file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The normalisers' file.
pub const NORMALIZER_FILE: &str = "normalizer.json";
/// The tokenizer's file, only where the policy reads.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The version of this layout.
pub const FORMAT: &str = "simloop-policy-v1";

/// The content of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// [`FORMAT`].
    pub format: String,
    /// What goes in and out.
    pub io: PolicyIo,
    /// The architecture.
    pub policy: VlaConfig,
}

/// Writes a policy's files into `dir`, which must exist. Not atomic: write into a temporary folder and rename that.
///
/// # Errors
/// [`PolicyError::Config`] naming the file that could not be written.
pub fn save_policy(policy: &VlaPolicy, dir: &Path) -> Result<(), PolicyError> {
    let file = PolicyFile {
        format: FORMAT.to_owned(),
        io: policy.io().clone(),
        policy: policy.config().clone(),
    };
    write_json(&dir.join(CONFIG_FILE), &file)?;
    write_json(&dir.join(NORMALIZER_FILE), policy.normalizers())?;
    if let Some(tokenizer) = policy.tokenizer() {
        tokenizer.save(&dir.join(TOKENIZER_FILE))?;
    }
    safetensors_io::save(&dir.join(WEIGHTS_FILE), &policy.params().snapshot())
}

/// Reads a policy's files.
///
/// # Errors
/// [`PolicyError::Config`] naming the file and what is wrong with it: missing, damaged, of another version, or weights
/// that do not fit the architecture.
pub fn load_policy(dir: &Path, device: Device) -> Result<VlaPolicy, PolicyError> {
    if !dir.is_dir() {
        return Err(config_error(
            dir,
            "this is no folder; a policy is a folder with config.json, model.safetensors and normalizer.json",
        ));
    }
    let file: PolicyFile = read_json(&dir.join(CONFIG_FILE))?;
    if file.format != FORMAT {
        return Err(config_error(
            &dir.join(CONFIG_FILE),
            &format!("its format is `{}`; this program reads `{FORMAT}`", file.format),
        ));
    }
    let normalizers: Normalizers = read_json(&dir.join(NORMALIZER_FILE))?;
    let weights = safetensors_io::load(&dir.join(WEIGHTS_FILE))?;
    let tokenizer = dir.join(TOKENIZER_FILE);
    let tokenizer = tokenizer.is_file().then(|| Tokenizer::load(&tokenizer)).transpose()?;
    let mut policy =
        VlaPolicy::with_tokenizer(file.policy, file.io, normalizers, tokenizer, device, 0)?;
    policy
        .params()
        .load(&weights)
        .map_err(|e| config_error(&dir.join(WEIGHTS_FILE), &e.to_string()))?;
    policy.set_name(
        dir.file_name().map_or_else(|| "policy".to_owned(), |n| n.to_string_lossy().into_owned()),
    );
    Ok(policy)
}

/// Whether a folder claims to hold a policy.
pub fn is_policy(dir: &Path) -> bool {
    dir.join(CONFIG_FILE).is_file() && dir.join(WEIGHTS_FILE).is_file()
}

/// The last two parts of a folder's real path, for reports: a checkpoint is often just called `best`.
pub fn short_name(dir: &Path) -> String {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let parts: Vec<_> = real.iter().map(|part| part.to_string_lossy()).collect();
    parts[parts.len().saturating_sub(2)..].join("/").trim_start_matches('/').to_owned()
}

/// SHA-256 over everything of a folder that decides what its policy does, in hexadecimal.
///
/// # Errors
/// [`PolicyError::Config`] naming the file that cannot be read.
pub fn fingerprint(dir: &Path) -> Result<String, PolicyError> {
    let mut hasher = Sha256::new();
    for name in [CONFIG_FILE, NORMALIZER_FILE, TOKENIZER_FILE, WEIGHTS_FILE] {
        let path = dir.join(name);
        if name == TOKENIZER_FILE && !path.exists() {
            continue;
        }
        let bytes = fs::read(&path).map_err(|e| config_error(&path, &e.to_string()))?;
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    let mut text = String::new();
    for byte in hasher.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

fn config_error(path: &Path, detail: &str) -> PolicyError {
    PolicyError::Config { detail: format!("read the policy `{}`: {detail}", path.display()) }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), PolicyError> {
    let fail = |e: &dyn std::fmt::Display| PolicyError::Config {
        detail: format!("write `{}`: {e}", path.display()),
    };
    let mut text = serde_json::to_string_pretty(value).map_err(|e| fail(&e))?;
    text.push('\n');
    fs::write(path, text).map_err(|e| fail(&e))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, PolicyError> {
    let text = fs::read_to_string(path).map_err(|e| config_error(path, &e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| config_error(path, &e.to_string()))
}
