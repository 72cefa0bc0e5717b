//! What TFDS writes beside its records: `dataset_info.json` and `features.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::DataError;

/// The longest description file.
const MAX_FILE: u64 = 16 << 20;
/// How deep features may nest.
const MAX_DEPTH: usize = 16;

/// What one feature is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeatureKind {
    /// Numbers of a shape; `None` is a dimension of unknown length. A scalar has no dimension.
    Tensor {
        /// Its dimensions.
        shape: Vec<Option<usize>>,
        /// numpy's name of the type: `float32`, `bool`, `string`.
        dtype: String,
        /// How the numbers are stored: `none`, or `bytes` or `zlib`, which are not read.
        encoding: String,
    },
    /// A JPEG or PNG file.
    Image {
        /// Height, width, channels.
        shape: Vec<Option<usize>>,
        /// `jpeg` or `png`.
        format: String,
    },
    /// UTF-8 text.
    Text,
    /// Something else, by its Python class.
    Other(String),
}

/// The features of a TFDS data set by key, `steps/observation/image_0`.
pub type FeatureTable = BTreeMap<String, FeatureKind>;

/// A split and its shards in order, each with the number of examples that it should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TfdsSplit {
    /// `train`, `val`.
    pub name: String,
    /// File and number of examples.
    pub shards: Vec<(PathBuf, usize)>,
}

/// `dataset_info.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TfdsInfo {
    /// The data set's name.
    pub name: String,
    /// Its splits.
    pub splits: Vec<TfdsSplit>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawInfo {
    name: String,
    #[serde(default)]
    file_format: Option<String>,
    splits: Vec<RawSplit>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSplit {
    name: String,
    #[serde(default)]
    filepath_template: Option<String>,
    #[serde(default)]
    shard_lengths: Vec<Value>,
}

/// A number, or a number in quotes as protobuf's JSON writes 64-bit integers.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let len = fs::metadata(path).map_err(DataError::io("read", path))?.len();
    if len > MAX_FILE {
        return Err(DataError::broken(path, format!("{len} bytes are too many for a description")));
    }
    fs::read(path).map_err(DataError::io("read", path))
}

/// Reads `dataset_info.json` of a data set's version folder.
///
/// # Errors
/// [`DataError::Unsupported`] for a file format other than TFRecord; [`DataError::Broken`] for JSON that makes no sense.
pub fn read_info(folder: &Path) -> Result<TfdsInfo, DataError> {
    let path = folder.join("dataset_info.json");
    let raw: RawInfo = serde_json::from_slice(&read(&path)?)
        .map_err(|e| DataError::broken(&path, e.to_string()))?;
    let format = raw.file_format.as_deref().unwrap_or("tfrecord");
    if format != "tfrecord" {
        return Err(DataError::unsupported(format!(
            "read `{}`: its records are stored as `{format}`; build the data set again with \
             `tfds build --file_format=tfrecord`",
            path.display()
        )));
    }
    let splits = raw
        .splits
        .iter()
        .map(|split| {
            let template = split.filepath_template.as_deref();
            let template = template.unwrap_or("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}");
            let lengths = split
                .shard_lengths
                .iter()
                .map(|v| integer(v).and_then(|n| usize::try_from(n).ok()))
                .collect::<Option<Vec<usize>>>()
                .ok_or_else(|| {
                    DataError::broken(
                        &path,
                        format!("shardLengths of `{}` are not numbers", split.name),
                    )
                })?;
            let count = lengths.len();
            let shards = lengths
                .into_iter()
                .enumerate()
                .map(|(i, n)| {
                    let name = template
                        .replace("{DATASET}", &raw.name)
                        .replace("{SPLIT}", &split.name)
                        .replace("{FILEFORMAT}", format)
                        .replace("{SHARD_X_OF_Y}", &format!("{i:05}-of-{count:05}"))
                        .replace("{SHARD_INDEX}", &format!("{i:05}"))
                        .replace("{NUM_SHARDS}", &format!("{count:05}"));
                    if Path::new(&name).components().count() != 1 || name.contains("..") {
                        return Err(DataError::broken(
                            &path,
                            format!("shard `{name}` does not lie beside it"),
                        ));
                    }
                    Ok((folder.join(name), n))
                })
                .collect::<Result<Vec<_>, _>>()?;
            Ok(TfdsSplit { name: split.name.clone(), shards })
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(TfdsInfo { name: raw.name, splits })
}

/// Reads `features.json` of a data set's version folder.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Broken`] for JSON that makes no sense.
pub fn read_features(folder: &Path) -> Result<FeatureTable, DataError> {
    let path = folder.join("features.json");
    let root: Value = serde_json::from_slice(&read(&path)?)
        .map_err(|e| DataError::broken(&path, e.to_string()))?;
    let mut table = BTreeMap::new();
    walk(&root, "", 0, &mut table).map_err(|e| DataError::broken(&path, e))?;
    if table.is_empty() {
        return Err(DataError::broken(&path, "it describes no feature"));
    }
    Ok(table)
}

fn walk(node: &Value, key: &str, depth: usize, table: &mut FeatureTable) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("`{key}` nests more than {MAX_DEPTH} levels"));
    }
    if let Some(fields) = node.pointer("/featuresDict/features").and_then(Value::as_object) {
        for (name, child) in fields {
            let key = if key.is_empty() { name.clone() } else { format!("{key}/{name}") };
            walk(child, &key, depth + 1, table)?;
        }
        return Ok(());
    }
    // `Dataset` (RLDS steps) and `Sequence` hold one feature per element.
    if let Some(inner) = node.pointer("/sequence/feature") {
        return walk(inner, key, depth + 1, table);
    }
    let shape = |at: &str| -> Result<Vec<Option<usize>>, String> {
        let Some(dims) = node.pointer(at).and_then(Value::as_array) else { return Ok(Vec::new()) };
        dims.iter()
            .map(|v| match integer(v) {
                Some(-1) => Ok(None),
                Some(n) if (0..=1 << 32).contains(&n) => Ok(Some(n as usize)),
                _ => Err(format!("`{key}` has a dimension {v}")),
            })
            .collect()
    };
    let text = |at: &str, or: &str| -> String {
        node.pointer(at).and_then(Value::as_str).unwrap_or(or).to_owned()
    };
    let kind = if node.get("tensor").is_some() {
        FeatureKind::Tensor {
            shape: shape("/tensor/shape/dimensions")?,
            dtype: text("/tensor/dtype", "float32"),
            encoding: text("/tensor/encoding", "none"),
        }
    } else if node.get("image").is_some() {
        FeatureKind::Image {
            shape: shape("/image/shape/dimensions")?,
            format: text("/image/encodingFormat", "jpeg"),
        }
    } else if node.get("text").is_some() {
        FeatureKind::Text
    } else {
        FeatureKind::Other(text("/pythonClassName", "an unnamed class"))
    };
    table.insert(key.to_owned(), kind);
    Ok(())
}

/// Chooses examples of a split by TFDS's notation: `train`, `train[:95%]`, `train[100:200]`, `train[95%:]`.
///
/// Returns the split's name and, once its number of examples is known, the range.
///
/// # Errors
/// What is wrong with the notation.
pub fn parse_split(notation: &str) -> Result<(&str, Option<Slice>), String> {
    let wrong = || {
        format!("split `{notation}` is not of the form `train`, `train[:95%]` or `train[10:20]`")
    };
    let Some((name, rest)) = notation.split_once('[') else { return Ok((notation, None)) };
    let (from, to) = rest.strip_suffix(']').and_then(|r| r.split_once(':')).ok_or_else(wrong)?;
    let bound = |text: &str, open: Bound| match text.trim() {
        "" => Ok(open),
        text => match text.strip_suffix('%') {
            Some(p) => p.parse().ok().filter(|p| *p <= 100).map(Bound::Percent).ok_or_else(wrong),
            None => text.parse().map(Bound::Example).map_err(|_| wrong()),
        },
    };
    Ok((name, Some((bound(from, Bound::Example(0))?, bound(to, Bound::Percent(100))?))))
}

/// First example and the one after the last.
pub type Slice = (Bound, Bound);

/// One end of a slice of examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// An example's number.
    Example(usize),
    /// A share of all examples, rounded to the closest one (TFDS's default rounding).
    Percent(u32),
}

impl Bound {
    /// The example's number among `n`.
    pub fn of(self, n: usize) -> usize {
        match self {
            Self::Example(i) => i.min(n),
            Self::Percent(p) => (f64::from(p) * n as f64 / 100.0).round() as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_notation_is_tfdss() {
        assert_eq!(parse_split("train"), Ok(("train", None)));
        let range = |text: &str, n: usize| {
            let (_, range) = parse_split(text).unwrap();
            range.map(|(a, b)| (a.of(n), b.of(n)))
        };
        assert_eq!(range("train[:95%]", 25), Some((0, 24)));
        assert_eq!(range("train[95%:]", 25), Some((24, 25)));
        assert_eq!(range("train[3:7]", 25), Some((3, 7)));
        for wrong in ["train[", "train[5]", "train[:101%]", "train[a:]"] {
            assert!(parse_split(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn another_record_format_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let info = r#"{"name": "x", "fileFormat": "array_record", "splits": []}"#;
        fs::write(folder.path().join("dataset_info.json"), info).unwrap();
        let error = read_info(folder.path()).unwrap_err().to_string();
        assert!(error.contains("array_record") && error.contains("tfds build"), "{error}");
    }

    #[test]
    fn shards_may_not_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let info = r#"{"name": "../x", "splits": [{"name": "train", "shardLengths": ["1"]}]}"#;
        fs::write(folder.path().join("dataset_info.json"), info).unwrap();
        assert!(read_info(folder.path()).unwrap_err().to_string().contains("beside"));
    }

    #[test]
    fn nested_features_get_their_keys_and_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = |dims: &str| {
            format!(r#"{{"tensor": {{"shape": {{"dimensions": [{dims}]}}, "dtype": "float32"}}}}"#)
        };
        let text = format!(
            r#"{{"featuresDict": {{"features": {{"steps": {{"sequence": {{"feature": {{"featuresDict": {{"features": {{
                "action": {}, "lang": {{"text": {{}}}}, "odd": {{"pythonClassName": "a.Video"}},
                "observation": {{"featuresDict": {{"features": {{
                    "image": {{"image": {{"shape": {{"dimensions": ["64", "-1", "3"]}}, "encodingFormat": "png"}}}}
                }}}}}}
            }}}}}}}}}}}}}}}}"#,
            tensor("\"7\"")
        );
        fs::write(folder.path().join("features.json"), text).unwrap();
        let table = read_features(folder.path()).unwrap();
        assert_eq!(table.len(), 4);
        assert_eq!(table["steps/lang"], FeatureKind::Text);
        assert_eq!(table["steps/odd"], FeatureKind::Other("a.Video".to_owned()));
        let FeatureKind::Tensor { shape, .. } = &table["steps/action"] else { panic!() };
        assert_eq!(shape, &[Some(7)]);
        let FeatureKind::Image { shape, format } = &table["steps/observation/image"] else {
            panic!()
        };
        assert_eq!((shape.as_slice(), format.as_str()), (&[Some(64), None, Some(3)][..], "png"));
    }
}
