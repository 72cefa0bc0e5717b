//! `meta/info.json`: the features, and which of them become cameras, state and action.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use simloop_envs::{ActionConvention, ImageSpace};

use crate::data::DataError;

/// Bytes of a metadata file in JSON.
pub(super) const MAX_JSON: u64 = 64 << 20;

/// What is read of `info.json`; the rest is ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) codebase_version: String,
    pub(super) fps: f64,
    #[serde(default = "thousand")]
    pub(super) chunks_size: u64,
    #[serde(default)]
    pub(super) data_path: Option<String>,
    #[serde(default)]
    pub(super) video_path: Option<String>,
    pub(super) features: BTreeMap<String, Feature>,
    /// What this project's writer adds; lerobot passes over it.
    #[serde(default)]
    pub(super) simloop: Option<Extra>,
}

/// What the format has no place for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Extra {
    /// What an action means.
    pub(super) convention: Option<ActionConvention>,
    /// Which numbers of an action are absolute.
    pub(super) absolute_action: Vec<bool>,
}

fn thousand() -> u64 {
    1000 // lerobot's DEFAULT_CHUNK_SIZE
}

/// One key of a frame.
#[derive(Debug, Deserialize)]
pub(super) struct Feature {
    pub(super) dtype: String,
    #[serde(default)]
    pub(super) shape: Vec<u64>,
    #[serde(default)]
    pub(super) names: Value,
}

/// The two layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// v2.0 and v2.1.
    V2,
    /// v3.0.
    V3,
}

impl Info {
    /// Reads and checks `root/meta/info.json`.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::Broken`]; [`DataError::Unsupported`] for another version.
    pub(super) fn read(root: &Path) -> Result<(Self, Layout, PathBuf), DataError> {
        let path = root.join("meta/info.json");
        let text = read_text(&path)?;
        let info: Self =
            serde_json::from_str(&text).map_err(|e| DataError::broken(&path, e.to_string()))?;
        let layout = match info.codebase_version.trim_start_matches('v') {
            v if v.starts_with("2.") => Layout::V2,
            v if v.starts_with("3.") => Layout::V3,
            other => {
                return Err(DataError::unsupported(format!(
                    "read `{}`: LeRobot v{other} is not supported, v2.0, v2.1 and v3.0 are; convert it with lerobot",
                    path.display()
                )));
            }
        };
        if !(info.fps > 0.0 && info.fps <= 10_000.0) || info.chunks_size == 0 {
            return Err(DataError::broken(&path, "`fps` or `chunks_size` is no positive number"));
        }
        Ok((info, layout, path))
    }

    /// The first of `keys` that is a feature of numbers.
    pub(super) fn first(&self, keys: &[&str]) -> Option<String> {
        keys.iter()
            .find(|key| self.features.get(**key).is_some_and(Feature::is_numeric))
            .map(|k| (*k).to_owned())
    }
}

impl Feature {
    pub(super) fn is_image(&self) -> bool {
        matches!(self.dtype.as_str(), "image" | "video")
    }

    pub(super) fn is_video(&self) -> bool {
        self.dtype == "video"
    }

    pub(super) fn is_numeric(&self) -> bool {
        !self.is_image() && self.dtype != "string"
    }

    /// How many numbers a frame has of it; `None` for none or absurdly many.
    pub(super) fn width(&self) -> Option<usize> {
        let product = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
        (1..=4096).contains(&product).then_some(product as usize)
    }

    /// Names of its numbers: a list, a list under one key (`{"motors": [...]}`), or `key_0`, `key_1`, ….
    pub(super) fn names(&self, key: &str) -> Vec<String> {
        let width = self.width().unwrap_or(0);
        let list = match &self.names {
            Value::Array(list) => Some(list),
            Value::Object(map) => map.values().find_map(Value::as_array),
            _ => None,
        };
        let names: Vec<String> =
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        if names.len() == width {
            return names;
        }
        (0..width).map(|i| format!("{key}_{i}")).collect()
    }

    /// The frame size of an image, which is stated as height, width, channel or as channel, height, width.
    pub(super) fn image_space(&self) -> Option<ImageSpace> {
        let [a, b, c] = self.shape.as_slice().try_into().ok()?;
        let named_first = |name: &str| {
            self.names
                .as_array()
                .and_then(|n| n.first())
                .and_then(Value::as_str)
                .is_some_and(|n| n.starts_with(name))
        };
        let channel_first = named_first("channel") || (a <= 4 && c > 4 && !named_first("height"));
        let (height, width): (u64, u64) = if channel_first { (b, c) } else { (a, b) };
        let side = |n: u64| u32::try_from(n).ok().filter(|n| (1..=65_536).contains(n));
        Some(ImageSpace { height: side(height)?, width: side(width)? })
    }
}

/// The camera that a feature becomes.
pub(super) fn camera_name(key: &str) -> String {
    ["observation.images.", "observation.image.", "observation.", "observation/"]
        .iter()
        .find_map(|prefix| key.strip_prefix(prefix))
        .unwrap_or(key)
        .to_owned()
}

/// A metadata file.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Broken`] for more than 64 MB and for bytes that are no UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String, DataError> {
    let len = std::fs::metadata(path).map_err(DataError::io("open", path))?.len();
    if len > MAX_JSON {
        return Err(DataError::broken(
            path,
            format!("{len} bytes of metadata; at most 64 MB are read"),
        ));
    }
    let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
    String::from_utf8(bytes).map_err(|_| DataError::broken(path, "it is not UTF-8"))
}

/// Fills `{name}` and `{name:03d}` of a path template.
///
/// # Errors
/// A placeholder without a value; a path that leaves the data set.
pub(super) fn fill(template: &str, values: &[(&str, Fill<'_>)]) -> Result<PathBuf, String> {
    let (mut out, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once('{') {
        let (placeholder, after) =
            after.split_once('}').ok_or_else(|| format!("`{template}` has an open brace"))?;
        let (name, format) = placeholder.split_once(':').unwrap_or((placeholder, ""));
        let value = values.iter().find(|(n, _)| *n == name).map(|(_, v)| v);
        out.push_str(before);
        match value.ok_or_else(|| format!("`{template}` asks for `{name}`"))? {
            Fill::Text(text) => out.push_str(text),
            Fill::Number(n) => {
                let digits: usize =
                    format.trim_start_matches('0').trim_end_matches('d').parse().unwrap_or(0);
                // Writing to a string does not fail.
                let _ = write!(out, "{n:0width$}", width = digits.min(20));
            }
        }
        rest = after;
    }
    out.push_str(rest);
    let path = PathBuf::from(out);
    let inside = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if inside { Ok(path) } else { Err(format!("`{template}` leads out of the data set")) }
}

/// A value of a template.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fill<'a> {
    Text(&'a str),
    Number(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_of_both_layouts_are_filled() {
        let v3 = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4";
        let values = [
            ("video_key", Fill::Text("observation.image")),
            ("chunk_index", Fill::Number(1)),
            ("file_index", Fill::Number(23)),
        ];
        let path = fill(v3, &values).unwrap();
        assert_eq!(path, Path::new("videos/observation.image/chunk-001/file-023.mp4"));
        let v2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet";
        let values = [("episode_chunk", Fill::Number(0)), ("episode_index", Fill::Number(1234))];
        assert_eq!(fill(v2, &values).unwrap(), Path::new("data/chunk-000/episode_001234.parquet"));
        assert!(fill("../{x}", &[("x", Fill::Number(1))]).is_err());
        assert!(fill("/etc/{x}", &[("x", Fill::Number(1))]).is_err());
        assert!(fill("{y}", &[("x", Fill::Number(1))]).is_err());
    }

    #[test]
    fn frame_sizes_are_found_in_both_orders() {
        let feature = |shape: [u64; 3], names: Value| Feature {
            dtype: "video".to_owned(),
            shape: shape.to_vec(),
            names,
        };
        let space = Some(ImageSpace { height: 48, width: 64 });
        let hwc = serde_json::json!(["height", "width", "channel"]);
        assert_eq!(feature([48, 64, 3], hwc).image_space(), space);
        let chw = serde_json::json!(["channels", "height", "width"]);
        assert_eq!(feature([3, 48, 64], chw).image_space(), space);
        assert_eq!(feature([3, 48, 64], Value::Null).image_space(), space);
        assert_eq!(feature([48, 64, 3], Value::Null).image_space(), space);
    }

    #[test]
    fn camera_names_lose_their_prefix() {
        for (key, camera) in [
            ("observation.images.top", "top"),
            ("observation.image", "image"),
            ("image", "image"),
            ("wrist_image", "wrist_image"),
        ] {
            assert_eq!(camera_name(key), camera);
        }
    }
}
