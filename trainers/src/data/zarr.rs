//! zarr v2 arrays on disk, chunked along their first axis only.
//!
//! Format: <https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html>. A missing chunk, which the format would fill with
//! `fill_value`, is an error here: in recorded data it means a lost file.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{DataError, blosc};

/// The most bytes that one decompressed chunk may take.
const MAX_CHUNK: usize = 64 << 20;
/// The longest `.zarray` file.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// The type of an array's elements, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// `|u1`.
    U8,
    /// `<i4`.
    I32,
    /// `<i8`.
    I64,
    /// `<f4`.
    F32,
    /// `<f8`.
    F64,
}

impl Dtype {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "|u1" | "<u1" => Self::U8,
            "<i4" => Self::I32,
            "<i8" => Self::I64,
            "<f4" => Self::F32,
            "<f8" => Self::F64,
            _ => return None,
        })
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Elements as f64. Integers beyond 2^53 lose their last bits.
    fn numbers(self, bytes: &[u8]) -> Vec<f64> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.chunks_exact(N).filter_map(|b| b.try_into().ok()).map(f).collect()
        }
        match self {
            Self::U8 => bytes.iter().map(|&v| f64::from(v)).collect(),
            Self::I32 => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
            Self::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
            Self::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
            Self::F64 => each(bytes, f64::from_le_bytes),
        }
    }
}

/// An array of a zarr v2 store.
#[derive(Clone, Debug)]
pub struct ZarrArray {
    folder: PathBuf,
    shape: Vec<usize>,
    rows_per_chunk: usize,
    dtype: Dtype,
    compressed: bool,
    separator: char,
}

#[derive(Deserialize)]
struct Description {
    zarr_format: u32,
    shape: Vec<u64>,
    chunks: Vec<u64>,
    dtype: serde_json::Value,
    order: String,
    compressor: Option<Compressor>,
    #[serde(default)]
    filters: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    dimension_separator: Option<String>,
}

#[derive(Deserialize)]
struct Compressor {
    id: String,
}

impl ZarrArray {
    /// Reads the array's description, no chunk.
    ///
    /// # Errors
    /// [`DataError::Io`] where `.zarray` is missing, [`DataError::Broken`] where it makes no sense,
    /// [`DataError::Unsupported`] for another version, order, element type, compressor or chunking.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join(".zarray");
        let text = read_bounded(&path, MAX_DESCRIPTION)?;
        let found: Description =
            serde_json::from_slice(&text).map_err(|e| DataError::broken(&path, e.to_string()))?;
        let unsupported = |detail: String| {
            Err(DataError::unsupported(format!("read `{}`: {detail}", path.display())))
        };
        if found.zarr_format != 2 {
            return unsupported(format!("zarr format {} is not read, only 2", found.zarr_format));
        }
        let Some(dtype) = found.dtype.as_str().and_then(Dtype::parse) else {
            return unsupported(format!(
                "elements of type {} are not read, only |u1, <i4, <i8, <f4 and <f8",
                found.dtype
            ));
        };
        if found.order != "C" {
            return unsupported(format!("order `{}` is not read, only C", found.order));
        }
        if found.filters.is_some_and(|f| !f.is_empty()) {
            return unsupported("filters are not read".to_owned());
        }
        if let Some(Compressor { id }) = found.compressor.as_ref().filter(|c| c.id != "blosc") {
            return unsupported(format!("compressor `{id}` is not read, only blosc or none"));
        }
        let separator = match found.dimension_separator.as_deref() {
            None | Some(".") => '.',
            Some("/") => '/',
            Some(other) => return unsupported(format!("dimension separator `{other}` is unknown")),
        };
        let (shape, chunks) = (sizes(&found.shape), sizes(&found.chunks));
        let (Some(shape), Some(chunks)) = (shape, chunks) else {
            return Err(DataError::broken(&path, "a size is larger than this machine's memory"));
        };
        if shape.is_empty() || shape.len() != chunks.len() || chunks.contains(&0) {
            return Err(DataError::broken(
                &path,
                format!("shape {shape:?} and chunks {chunks:?} do not fit each other"),
            ));
        }
        if shape[1..] != chunks[1..] {
            return unsupported(format!(
                "chunks {chunks:?} divide more than the first axis of shape {shape:?}"
            ));
        }
        let bytes = chunks.iter().try_fold(dtype.size(), |n, &c| n.checked_mul(c));
        if bytes.is_none_or(|n| n > MAX_CHUNK) {
            return unsupported(format!(
                "a chunk of shape {chunks:?} takes more than {} MB; write the array again with smaller chunks",
                MAX_CHUNK >> 20
            ));
        }
        Ok(Self {
            folder: folder.to_owned(),
            shape,
            rows_per_chunk: chunks[0],
            dtype,
            compressed: found.compressor.is_some(),
            separator,
        })
    }

    /// Its shape; the first axis is time.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements' type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Elements per row of the first axis.
    pub fn row_len(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Rows of the first axis per chunk; the last chunk may reach past the end of the array.
    pub fn rows_per_chunk(&self) -> usize {
        self.rows_per_chunk
    }

    /// The file of chunk `index`.
    pub fn chunk_path(&self, index: usize) -> PathBuf {
        let mut name = index.to_string();
        for _ in 1..self.shape.len() {
            name.push(self.separator);
            name.push('0');
        }
        self.folder.join(name)
    }

    /// The bytes of chunk `index`, decompressed: `rows_per_chunk` rows.
    ///
    /// # Errors
    /// [`DataError::Io`] for a missing chunk, [`DataError::Broken`] for a damaged one.
    pub fn chunk(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let path = self.chunk_path(index);
        let expected = self.rows_per_chunk * self.row_len() * self.dtype.size();
        // Blosc stores what does not compress, so a frame is hardly longer than what it holds.
        let file = read_bounded(&path, (expected + expected / 8 + 4096) as u64)?;
        if self.compressed {
            return blosc::decompress(&file, expected).map_err(|e| DataError::broken(&path, e));
        }
        if file.len() == expected {
            Ok(file)
        } else {
            Err(DataError::broken(
                &path,
                format!("it has {} bytes, its description says {expected}", file.len()),
            ))
        }
    }

    /// Every element as f64, in C order. Memory grows with the chunks that are there, not with the claimed shape.
    ///
    /// # Errors
    /// As [`ZarrArray::chunk`].
    pub fn read_numbers(&self) -> Result<Vec<f64>, DataError> {
        let (rows, per_chunk, row_len) = (self.shape[0], self.rows_per_chunk, self.row_len());
        let mut all = Vec::new();
        for index in 0..rows.div_ceil(per_chunk) {
            let bytes = self.chunk(index)?;
            let kept = (rows - index * per_chunk).min(per_chunk) * row_len * self.dtype.size();
            all.extend(self.dtype.numbers(&bytes[..kept]));
        }
        Ok(all)
    }
}

fn sizes(claimed: &[u64]) -> Option<Vec<usize>> {
    claimed.iter().map(|&n| usize::try_from(n).ok()).collect()
}

/// Reads a file that should not be longer than `most`.
fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, DataError> {
    let len = fs::metadata(path).map_err(DataError::io("read", path))?.len();
    if len > most {
        return Err(DataError::broken(
            path,
            format!("it has {len} bytes, at most {most} make sense"),
        ));
    }
    fs::read(path).map_err(DataError::io("read", path))
}

#[cfg(test)]
mod tests {
    use super::super::zarr_writer::write;
    use super::*;

    #[test]
    fn numbers_come_back_without_the_padding_of_the_last_chunk() {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<u8> = (0..21).flat_map(|v| (v as f32 + 0.5).to_le_bytes()).collect();
        write(folder.path(), "<f4", &[7, 3], 4, &values);
        let array = ZarrArray::open(folder.path()).unwrap();
        let expected: Vec<f64> = (0..21).map(|v| f64::from(v) + 0.5).collect();
        assert_eq!(array.read_numbers().unwrap(), expected);
        fs::remove_file(folder.path().join("1.0")).unwrap();
        assert!(array.read_numbers().unwrap_err().to_string().contains("1.0"));
    }

    #[test]
    fn descriptions_that_cannot_be_read_name_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "<f4", &[7, 3], 4, &[0; 84]);
        let path = folder.path().join(".zarray");
        let text = fs::read_to_string(&path).unwrap();
        for (from, to, word) in [
            ("\"C\"", "\"F\"", "order `F`"),
            ("\"<f4\"", "\">f4\"", ">f4"),
            ("\"zarr_format\":2", "\"zarr_format\":3", "format 3"),
            ("\"blosc\"", "\"zlib\"", "zlib"),
            ("[4,3]", "[4,2]", "first axis"),
            ("[4,3]", "[4000000000,3]", "smaller chunks"),
            ("[4,3]", "[0,3]", "do not fit"),
            ("\"filters\":null", "\"filters\":[{\"id\":\"delta\"}]", "filters"),
        ] {
            assert!(text.contains(from), "{from} in {text}");
            fs::write(&path, text.replace(from, to)).unwrap();
            let error = ZarrArray::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
