//! Parquet tables to write: a schema from a few kinds of column, and row groups filled column by column.
//!
//! Lists have pyarrow's shape (`list.element`), so that every reader takes them for lists.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::DataType;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{ColumnPath, Type as Schema, TypePtr};

use crate::data::DataError;

/// Rows between two looks at a page's size: a page of images then holds about a megabyte.
const BATCH_ROWS: usize = 16;

/// A column.
#[derive(Clone, Debug)]
pub(super) enum Type {
    /// One value per row.
    Plain(String, Physical),
    /// A list of values per row.
    List(String, Physical),
    /// An encoded image as the `datasets` library stores it: its bytes and the name of the file they came from.
    Image(String),
}

pub(super) fn required<T: DataType>(name: &str) -> Type {
    Type::Plain(name.to_owned(), T::get_physical_type())
}

pub(super) fn list<T: DataType>(name: &str) -> Type {
    Type::List(name.to_owned(), T::get_physical_type())
}

/// The schema of a table.
pub(super) fn table_type(fields: &[Type]) -> Result<(TypePtr, Vec<String>), String> {
    let leaf = |name: &str, physical: Physical, text: bool| {
        Schema::primitive_type_builder(name, physical)
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(text.then_some(LogicalType::String))
            .build()
            .map(Arc::new)
            .map_err(|e| e.to_string())
    };
    let group = |name: &str, fields: Vec<TypePtr>, repetition, logical| {
        Schema::group_type_builder(name)
            .with_repetition(repetition)
            .with_logical_type(logical)
            .with_fields(fields)
            .build()
            .map(Arc::new)
            .map_err(|e| e.to_string())
    };
    let mut columns = Vec::new();
    let mut images = Vec::new();
    for field in fields {
        columns.push(match field {
            Type::Plain(name, physical) => {
                leaf(name, *physical, *physical == Physical::BYTE_ARRAY)?
            }
            Type::List(name, physical) => {
                let element = leaf("element", *physical, *physical == Physical::BYTE_ARRAY)?;
                let inner = group("list", vec![element], Repetition::REPEATED, None)?;
                group(name, vec![inner], Repetition::REQUIRED, Some(LogicalType::List))?
            }
            Type::Image(name) => {
                images.push(name.clone());
                let parts = vec![
                    leaf("bytes", Physical::BYTE_ARRAY, false)?,
                    leaf("path", Physical::BYTE_ARRAY, true)?,
                ];
                group(name, parts, Repetition::REQUIRED, None)?
            }
        });
    }
    let schema = Schema::group_type_builder("schema").with_fields(columns).build();
    Ok((Arc::new(schema.map_err(|e| e.to_string())?), images))
}

/// A parquet file that is being written.
pub(super) struct Rows<W: Write + Send> {
    path: PathBuf,
    writer: SerializedFileWriter<W>,
}

impl<W: Write + Send> std::fmt::Debug for Rows<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Rows<BufWriter<File>> {
    /// Creates the file and its folder.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(super) fn create(
        path: &Path,
        schema: Result<(TypePtr, Vec<String>), String>,
        words: Option<KeyValue>,
    ) -> Result<Self, DataError> {
        let fail = |e: String| DataError::broken(path, e);
        let (schema, images) = schema.map_err(fail)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(DataError::io("create", folder))?;
        }
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_write_batch_size(BATCH_ROWS)
            .set_created_by(format!("simloop {}", env!("CARGO_PKG_VERSION")))
            .set_key_value_metadata(words.map(|w| vec![w]));
        for image in images {
            let bytes = ColumnPath::new(vec![image, "bytes".to_owned()]);
            // PNG does not compress further, and its first kilobytes are no useful minimum.
            properties = properties
                .set_column_compression(bytes.clone(), Compression::UNCOMPRESSED)
                .set_column_dictionary_enabled(bytes.clone(), false)
                .set_column_statistics_enabled(
                    bytes,
                    parquet::file::properties::EnabledStatistics::None,
                );
        }
        let file = File::create(path).map_err(DataError::io("create", path))?;
        let writer =
            SerializedFileWriter::new(BufWriter::new(file), schema, Arc::new(properties.build()))
                .map_err(|e| fail(e.to_string()))?;
        Ok(Self { path: path.to_owned(), writer })
    }

    /// Writes the footer.
    ///
    /// # Errors
    /// [`DataError::Io`], also for a full disk.
    pub(super) fn finish(self) -> Result<(), DataError> {
        let path = self.path;
        let inner =
            self.writer.into_inner().map_err(|e| DataError::broken(&path, e.to_string()))?;
        inner
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .map(drop)
            .map_err(DataError::io("write", &path))
    }
}

impl<W: Write + Send> Rows<W> {
    pub(super) fn bytes_written(&self) -> usize {
        self.writer.bytes_written()
    }

    pub(super) fn group(&mut self) -> Result<Group<'_, W>, String> {
        let writer = self.writer.next_row_group().map_err(|e| e.to_string())?;
        Ok(Group { writer })
    }
}

/// A row group; columns are written in the order of the schema's leaves.
pub(super) struct Group<'a, W: Write + Send> {
    writer: SerializedRowGroupWriter<'a, W>,
}

impl<W: Write + Send> Group<'_, W> {
    /// The next column: one value per row.
    pub(super) fn plain<T: DataType>(&mut self, values: &[T::T]) -> Result<(), String> {
        self.column::<T>(values, None, None)
    }

    /// The next column: lists of `width` values.
    pub(super) fn lists<T: DataType>(
        &mut self,
        values: &[T::T],
        width: usize,
    ) -> Result<(), String> {
        let definition = vec![1; values.len()];
        let repetition: Vec<i16> = (0..values.len()).map(|i| i16::from(i % width != 0)).collect();
        self.column::<T>(values, Some(&definition), Some(&repetition))
    }

    fn column<T: DataType>(
        &mut self,
        values: &[T::T],
        definition: Option<&[i16]>,
        repetition: Option<&[i16]>,
    ) -> Result<(), String> {
        let mut column = self
            .writer
            .next_column()
            .map_err(|e| e.to_string())?
            .ok_or("more columns than the schema has")?;
        column
            .typed::<T>()
            .write_batch(values, definition, repetition)
            .map_err(|e| e.to_string())?;
        column.close().map_err(|e| e.to_string())
    }

    pub(super) fn close(self) -> Result<(), String> {
        self.writer.close().map(drop).map_err(|e| e.to_string())
    }
}
