//! Folders as Hugging Face writes them: `config.json`, `model.safetensors` or its shards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use tch::Tensor;

use crate::nn::Activation;
use crate::{PolicyError, safetensors_io};

/// Configurations are some kilobytes; an index of shards takes about 100 bytes per tensor.
const MAX_JSON_BYTES: u64 = 8 << 20;

/// Reads a JSON file of at most 8 MiB.
///
/// # Errors
/// [`PolicyError::File`] for a file that is not there, too long, no JSON, or lacks a field.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, PolicyError> {
    let fail = |detail: String| PolicyError::File { path: path.to_owned(), detail };
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut text = Vec::new();
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut text).map_err(|e| fail(e.to_string()))?;
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(fail(format!("longer than {MAX_JSON_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))
}

/// All tensors of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
///
/// # Errors
/// [`PolicyError::File`] for what is missing or damaged, [`PolicyError::Refused`] for a folder with pickles alone.
pub fn read_weights(folder: &Path) -> Result<BTreeMap<String, Tensor>, PolicyError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        if !single.exists() {
            for name in ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"] {
                let pickle = folder.join(name);
                if pickle.exists() {
                    safetensors_io::refuse_pickles(&pickle)?;
                }
            }
        }
        return safetensors_io::load(&single);
    }
    let map = read_json::<Index>(&index)?.weight_map;
    let shards: BTreeSet<&String> = map.values().collect();
    let mut tensors = BTreeMap::new();
    for shard in shards {
        if shard.contains(['/', '\\']) {
            return Err(PolicyError::File {
                path: index,
                detail: format!("shard `{shard}` is outside the folder"),
            });
        }
        tensors.extend(safetensors_io::load(&folder.join(shard))?);
    }
    match map.keys().find(|name| !tensors.contains_key(*name)) {
        Some(name) => {
            Err(PolicyError::File { path: index, detail: format!("no shard has `{name}`") })
        }
        None => Ok(tensors),
    }
}

/// The part of `tensors` below the one prefix at which `marker` stands, with the prefix cut: writers differ in what they
/// put before the same names (`vision_model.`, `model.language_model.`, nothing).
///
/// # Errors
/// [`PolicyError::Config`] if no name or several names end in `marker`.
pub fn below_marker(
    tensors: &BTreeMap<String, Tensor>,
    marker: &str,
) -> Result<(String, BTreeMap<String, Tensor>), PolicyError> {
    let prefixes: Vec<&str> = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(marker))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    let [prefix] = prefixes[..] else {
        return Err(PolicyError::Config {
            detail: format!(
                "find the model: {} tensors end in `{marker}`, expected one",
                prefixes.len()
            ),
        });
    };
    let below = tensors
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.shallow_clone())))
        .collect();
    Ok((prefix.to_owned(), below))
}

/// transformers' name of an activation (`ACT2FN`).
///
/// # Errors
/// [`PolicyError::Config`] for one that we do not have.
pub(crate) fn activation(name: &str) -> Result<Activation, PolicyError> {
    Ok(match name {
        "gelu" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        "tanh" => Activation::Tanh,
        "mish" => Activation::Mish,
        other => {
            return Err(PolicyError::Config {
                detail: format!("hidden_act = \"{other}\" is not supported"),
            });
        }
    })
}

/// Checks that a size from a configuration is within 1 and `most`.
///
/// # Errors
/// [`PolicyError::Config`] naming the field.
pub(crate) fn size(field: &str, value: i64, most: i64) -> Result<(), PolicyError> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(PolicyError::Config { detail: format!("{field} = {value} is not within 1 and {most}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(names: &[&str]) -> BTreeMap<String, Tensor> {
        names.iter().map(|n| ((*n).to_owned(), Tensor::from(0f32))).collect()
    }

    #[test]
    fn a_prefix_is_found_by_its_marker() {
        let all = tensors(&["vision_model.a.w", "vision_model.b", "text_model.b"]);
        let (prefix, below) = below_marker(&all, "a.w").unwrap();
        assert_eq!(prefix, "vision_model.");
        assert_eq!(below.keys().collect::<Vec<_>>(), ["a.w", "b"]);
        assert_eq!(below_marker(&tensors(&["a.w"]), "a.w").unwrap().0, "");
        assert!(below_marker(&tensors(&["x.b", "y.b"]), "b").is_err());
        // `xa.w` ends in the marker, but not at a dot.
        assert!(below_marker(&tensors(&["xa.w"]), "a.w").is_err());
    }

    #[test]
    fn shards_are_joined_and_a_missing_tensor_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        safetensors_io::save(&path("model-1.safetensors"), &tensors(&["a"])).unwrap();
        safetensors_io::save(&path("model-2.safetensors"), &tensors(&["b"])).unwrap();
        let index =
            |text: &str| std::fs::write(path("model.safetensors.index.json"), text).unwrap();
        index(r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#);
        assert_eq!(read_weights(folder.path()).unwrap().len(), 2);
        index(r#"{"weight_map":{"a":"model-1.safetensors","c":"model-2.safetensors"}}"#);
        assert!(read_weights(folder.path()).unwrap_err().to_string().contains('c'));
        index(r#"{"weight_map":{"a":"../model-1.safetensors"}}"#);
        assert!(read_weights(folder.path()).unwrap_err().to_string().contains("outside"));
    }

    #[test]
    fn a_folder_of_pickles_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pytorch_model.bin"), b"PK").unwrap();
        let error = read_weights(folder.path()).unwrap_err();
        assert!(matches!(error, PolicyError::Refused { .. }), "{error}");
    }
}
