//! An HDF5 file whose shapes are checked before anything is read.

use std::path::{Path, PathBuf};

use hdf5_pure::{DType, Dataset, File};
use ndarray::Array2;

use crate::data::DataError;

/// Room for what compression hides: a stored array may be this much larger than twice its file.
const HEADROOM: u64 = 64 << 20;

/// An open file. Several threads may read it.
pub(super) struct Hdf5 {
    path: PathBuf,
    file: File,
    len: u64,
}

impl std::fmt::Debug for Hdf5 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hdf5").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Hdf5 {
    /// Opens a file; data is read when it is asked for.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Broken`] for a file that is none.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let len = std::fs::metadata(path).map_err(DataError::io("open", path))?.len();
        let file = File::open_streaming(path)
            .map_err(|e| DataError::broken(path, format!("it does not open as HDF5: {e}")))?;
        Ok(Self { path: path.to_owned(), file, len })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn broken(&self, detail: impl Into<String>) -> DataError {
        DataError::broken(&self.path, detail)
    }

    /// Names of the groups in `group`.
    pub(super) fn groups(&self, group: &str) -> Result<Vec<String>, DataError> {
        let found = self.file.group(group).and_then(|g| g.groups());
        found.map_err(|e| self.broken(format!("group `{group}`: {e}")))
    }

    /// Names of the datasets in `group`; none if there is no such group.
    pub(super) fn datasets(&self, group: &str) -> Vec<String> {
        let mut names = self.file.group(group).and_then(|g| g.datasets()).unwrap_or_default();
        names.sort();
        names
    }

    /// Names of the datasets at the top.
    pub(super) fn root_datasets(&self) -> Result<Vec<String>, DataError> {
        let mut names =
            self.file.root().datasets().map_err(|e| self.broken(format!("the top group: {e}")))?;
        names.sort();
        Ok(names)
    }

    /// A group's attribute as text.
    pub(super) fn text_attribute(&self, group: &str, name: &str) -> Option<String> {
        let attributes = self.file.group(group).and_then(|g| g.attrs()).ok()?;
        attributes.get(name)?.as_str().map(str::to_owned)
    }

    /// Whether a group has an attribute.
    pub(super) fn has_attribute(&self, group: &str, name: &str) -> bool {
        self.file.group(group).and_then(|g| g.attrs()).is_ok_and(|a| a.contains_key(name))
    }

    /// The shape of a dataset, if its bytes can be in this file.
    ///
    /// # Errors
    /// [`DataError::Broken`] for one that is not there, or that claims more than twice the file and 64 MB.
    pub(super) fn shape(&self, path: &str) -> Result<Vec<usize>, DataError> {
        Ok(self.dataset(path, 1)?.1)
    }

    /// A dataset and its shape; `held` is the bytes that one element takes once it is read.
    fn dataset(&self, path: &str, held: u64) -> Result<(Dataset, Vec<usize>), DataError> {
        let fail = |e: hdf5_pure::Error| self.broken(format!("dataset `{path}`: {e}"));
        let dataset = self.file.dataset(path).map_err(fail)?;
        let shape = dataset.shape().map_err(fail)?;
        let stored = dataset.element_size().map_err(fail)?;
        let chunk = dataset.chunk_shape().map_err(fail)?.unwrap_or_default();
        let bound = self.len.saturating_mul(2).saturating_add(HEADROOM);
        let fits = |dimensions: &[u64], element: u64| {
            let bytes = dimensions.iter().try_fold(element, |n, d| n.checked_mul(*d));
            bytes.is_some_and(|bytes| bytes <= bound)
        };
        if !fits(&shape, held.max(stored)) || !fits(&chunk, stored) {
            return Err(self.broken(format!(
                "dataset `{path}` claims shape {shape:?}, more than a file of {} bytes can hold",
                self.len
            )));
        }
        Ok((dataset, shape.into_iter().map(|d| d as usize).collect()))
    }

    /// A dataset of numbers as `[T, D]` f32; one that has one dimension has `D = 1`, more are flattened.
    ///
    /// # Errors
    /// [`DataError::Broken`] for damage and for what are no numbers.
    pub(super) fn rows(&self, path: &str) -> Result<Array2<f32>, DataError> {
        let (dataset, shape) = self.dataset(path, 8)?;
        let fail = |e: hdf5_pure::Error| self.broken(format!("dataset `{path}`: {e}"));
        let values: Vec<f32> = match dataset.dtype().map_err(fail)? {
            DType::F64 => dataset.read_f64().map_err(fail)?.into_iter().map(|v| v as f32).collect(),
            DType::F32 => dataset.read_f32().map_err(fail)?,
            DType::Enum(_) => dataset.read_i8().map_err(fail)?.into_iter().map(f32::from).collect(),
            DType::I8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::U8
            | DType::U16
            | DType::U32
            | DType::U64 => {
                dataset.read_i64().map_err(fail)?.into_iter().map(|v| v as f32).collect()
            }
            other => return Err(self.broken(format!("dataset `{path}` holds {other}, no numbers"))),
        };
        let len = shape.first().copied().unwrap_or(1);
        let width = if shape.len() <= 1 { 1 } else { shape[1..].iter().product() };
        Array2::from_shape_vec((len, width), values).map_err(|_| {
            self.broken(format!("dataset `{path}` holds fewer numbers than it claims"))
        })
    }

    /// A dataset of bytes.
    ///
    /// # Errors
    /// [`DataError::Broken`] for damage and for what are no bytes.
    pub(super) fn bytes(&self, path: &str) -> Result<(Vec<u8>, Vec<usize>), DataError> {
        let (dataset, shape) = self.dataset(path, 1)?;
        let fail = |e: hdf5_pure::Error| self.broken(format!("dataset `{path}`: {e}"));
        match dataset.dtype().map_err(fail)? {
            DType::U8 => {}
            other => return Err(self.broken(format!("dataset `{path}` holds {other}, no bytes"))),
        }
        let bytes = dataset.read_raw().map_err(fail)?;
        if bytes.len() != shape.iter().product::<usize>() {
            return Err(self.broken(format!("dataset `{path}` holds fewer bytes than it claims")));
        }
        Ok((bytes, shape))
    }

    /// Whether a dataset is of bytes, `[T, H, W, 3]`.
    pub(super) fn is_images(&self, path: &str) -> bool {
        self.dataset(path, 1).is_ok_and(|(dataset, shape)| {
            matches!(shape.as_slice(), [_, _, _, 3]) && matches!(dataset.dtype(), Ok(DType::U8))
        })
    }

    /// A dataset of text.
    ///
    /// # Errors
    /// [`DataError::Broken`] for damage.
    pub(super) fn texts(&self, path: &str) -> Result<Vec<String>, DataError> {
        let (dataset, _) = self.dataset(path, 64)?;
        dataset.read_string().map_err(|e| self.broken(format!("dataset `{path}`: {e}")))
    }
}
