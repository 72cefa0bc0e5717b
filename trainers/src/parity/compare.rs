//! Recognising a folder and comparing what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use simloop_policies::{PolicyError, hf, safetensors_io};
use tch::Tensor;

use super::{learning, models};

/// The largest difference that counts as equal.
pub const BAR: f64 = 1e-5;

/// What a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A SigLIP vision tower.
    Siglip,
    /// A Qwen2 or Llama decoder.
    Decoder,
    /// Diffusion Policy's U-Net.
    Diffusion,
    /// peft adapters of a decoder.
    Lora,
    /// Losses and norms of some AdamW updates of a decoder.
    AdamW,
}

/// One quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was compared.
    pub quantity: String,
    /// The largest absolute difference; for tokens and step numbers, how many differ.
    pub difference: f64,
    /// The largest difference allowed; none for what is told and not judged.
    pub bar: Option<f64>,
}

impl Row {
    /// Whether the bar is met. A difference that is not a number does not meet it.
    pub fn is_met(&self) -> bool {
        self.bar.is_none_or(|bar| self.difference <= bar)
    }

    /// Numbers that must be within [`BAR`].
    pub(super) fn numbers(
        quantity: &str,
        ours: &Tensor,
        theirs: &Tensor,
    ) -> Result<Self, PolicyError> {
        Ok(Self {
            quantity: quantity.to_owned(),
            difference: distance(quantity, ours, theirs)?,
            bar: Some(BAR),
        })
    }

    /// Integers that must be equal.
    pub(super) fn integers(
        quantity: &str,
        ours: &Tensor,
        theirs: &Tensor,
    ) -> Result<Self, PolicyError> {
        same_shape(quantity, ours, theirs)?;
        let difference = ours.ne_tensor(theirs).sum(tch::Kind::Int64).int64_value(&[]) as f64;
        Ok(Self { quantity: quantity.to_owned(), difference, bar: Some(0.0) })
    }
}

fn same_shape(quantity: &str, ours: &Tensor, theirs: &Tensor) -> Result<(), PolicyError> {
    if ours.size() == theirs.size() {
        return Ok(());
    }
    Err(PolicyError::Config {
        detail: format!(
            "compare `{quantity}`: ours is {:?}, the recorded one {:?}",
            ours.size(),
            theirs.size()
        ),
    })
}

/// The largest absolute difference; NaN if there is one.
pub(super) fn distance(quantity: &str, ours: &Tensor, theirs: &Tensor) -> Result<f64, PolicyError> {
    same_shape(quantity, ours, theirs)?;
    if ours.numel() == 0 {
        return Ok(0.0);
    }
    let double = |t: &Tensor| t.detach().to_kind(tch::Kind::Double);
    Ok((double(ours) - double(theirs)).abs().max().double_value(&[]))
}

/// `io.safetensors`, and which of its tensors were asked for.
#[derive(Debug)]
pub struct Recorded {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl Recorded {
    /// Reads `io.safetensors` of `folder`.
    ///
    /// # Errors
    /// [`PolicyError::File`] or [`PolicyError::Refused`] naming it.
    pub fn read(folder: &Path) -> Result<Self, PolicyError> {
        let path = folder.join("io.safetensors");
        if !path.exists() {
            for name in ["io.pt", "io.pth", "io.bin", "io.pkl"] {
                let pickle = folder.join(name);
                if pickle.exists() {
                    safetensors_io::refuse_pickles(&pickle)?;
                }
            }
        }
        Ok(Self { tensors: safetensors_io::load(&path)?, path })
    }

    /// The tensor, if it is there.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// The tensor.
    ///
    /// # Errors
    /// [`PolicyError::File`] if it is not there.
    pub fn need(&self, name: &str) -> Result<&Tensor, PolicyError> {
        self.get(name).ok_or_else(|| PolicyError::File {
            path: self.path.clone(),
            detail: format!("`{name}` is not in it"),
        })
    }

    /// All names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Those that start with `prefix`, without it.
    pub(super) fn below<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.tensors.iter().filter_map(move |(name, t)| Some((name.strip_prefix(prefix)?, t)))
    }
}

/// Recognises the folder; `None` if it holds none of what we compare.
///
/// # Errors
/// [`PolicyError::File`] or [`PolicyError::Refused`] for a file that cannot be read.
pub fn kind_of(folder: &Path) -> Result<Option<Kind>, PolicyError> {
    if folder.join("adapter_config.json").exists() {
        return Ok(Some(Kind::Lora));
    }
    if let Some(kind) = model_type(folder)? {
        match kind.as_str() {
            "siglip" | "siglip_vision_model" => return Ok(Some(Kind::Siglip)),
            "qwen2" | "llama" => return Ok(Some(Kind::Decoder)),
            _ => return Ok(None),
        }
    }
    let io = folder.join("io.safetensors");
    let has_weights =
        ["model.safetensors", "model.safetensors.index.json", "model.pt", "pytorch_model.bin"]
            .iter()
            .any(|name| folder.join(name).exists());
    if has_weights {
        let weights = hf::read_weights(folder)?;
        if weights.keys().any(|name| name.ends_with("diffusion_step_encoder.1.weight")) {
            return Ok(Some(Kind::Diffusion));
        }
    } else if io.exists() {
        let recorded = Recorded::read(folder)?;
        if ["losses", "norms"].iter().all(|name| recorded.get(name).is_some()) {
            return Ok(Some(Kind::AdamW));
        }
    }
    Ok(None)
}

/// `model_type` of the folder's `config.json`.
pub(super) fn model_type(folder: &Path) -> Result<Option<String>, PolicyError> {
    let path = folder.join("config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config: serde_json::Value = hf::read_json(&path)?;
    Ok(config.get("model_type").and_then(|v| v.as_str()).map(str::to_owned))
}

/// Compares everything in `folder`, a folder of `kind`. `base` is where adapters and updates find their model; without
/// it, it is looked for beside `folder`.
///
/// # Errors
/// [`PolicyError`] naming what is missing, damaged, or does not fit.
pub fn compare(folder: &Path, kind: Kind, base: Option<&Path>) -> Result<Vec<Row>, PolicyError> {
    let rows = match kind {
        Kind::Siglip => models::siglip(folder)?,
        Kind::Decoder => models::decoder(folder)?,
        Kind::Diffusion => models::diffusion(folder)?,
        Kind::Lora => learning::lora(folder, base)?,
        Kind::AdamW => learning::adamw(folder, base)?,
    };
    if rows.iter().all(|row| row.bar.is_none()) {
        let recorded = Recorded::read(folder)?;
        let names: BTreeSet<&str> = recorded.names().collect();
        return Err(PolicyError::File {
            path: recorded.path.clone(),
            detail: format!("it records nothing that can be compared, only {names:?}"),
        });
    }
    Ok(rows)
}
