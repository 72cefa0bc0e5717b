//! Parquet files, one flat column at a time.
//!
//! The column API hands out leaves without arrow's types, which differ between the pandas, pyarrow and `datasets` versions
//! that wrote a file (`Utf8` or `LargeUtf8`, `List` or `FixedSizeList`): the leaf is the same for all of them.
//!
//! Every size in a file is checked before memory is reserved for it. The crate reads page headers itself and trusts their
//! `uncompressed_page_size`, so [`Bounded`] looks at each header before the crate does; and it panics on a few damaged pages,
//! which [`contain`] turns into errors.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Type as Physical;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use prost::bytes::Bytes;

use crate::data::DataError;

/// Rows decoded at a time: what a damaged level stream can blow up is bounded by this and the page.
const BATCH_ROWS: usize = 4096;

/// An open parquet file. Several threads may read it.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    input: Arc<Bounded>,
    meta: ParquetMetaData,
    rows: usize,
}

/// The values of some rows of a leaf.
#[derive(Debug)]
pub(super) struct Column<T> {
    /// All values, row after row.
    pub(super) values: Vec<T>,
    /// Where each row ends in `values`.
    pub(super) ends: Vec<usize>,
}

impl<T> Column<T> {
    fn new() -> Self {
        Self { values: Vec::new(), ends: Vec::new() }
    }

    /// The values of row `i`.
    pub(super) fn row(&self, i: usize) -> &[T] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.values[start..self.ends[i]]
    }
}

impl Table {
    /// Opens a file and reads its footer.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Broken`] for a footer that does not fit the file.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io("open", path))?;
        let len = file.metadata().map_err(DataError::io("read", path))?.len();
        let input = Bounded { file, len, check_pages: false };
        let meta = contain(|| {
            ParquetMetaDataReader::new().parse_and_finish(&input).map_err(|e| plain(&e))
        })
        .map_err(|detail| DataError::broken(path, detail))?;
        let mut rows = 0usize;
        for group in meta.row_groups() {
            let n = usize::try_from(group.num_rows())
                .map_err(|_| DataError::broken(path, "a row group with a negative row count"))?;
            rows = rows
                .checked_add(n)
                .filter(|rows| *rows <= MAX_ROWS)
                .ok_or_else(|| DataError::broken(path, format!("more than {MAX_ROWS} rows")))?;
            for column in group.columns() {
                let sizes = [column.data_page_offset(), column.compressed_size()];
                let start = column.dictionary_page_offset().unwrap_or(0);
                if start < 0 || sizes.iter().any(|s| *s < 0) {
                    return Err(DataError::broken(path, "a column with a negative size"));
                }
            }
        }
        let input = Arc::new(Bounded { check_pages: true, ..input });
        Ok(Self { path: path.to_owned(), input, meta, rows })
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Every leaf as a dotted path: `action.list.element`.
    pub(super) fn leaves(&self) -> Vec<String> {
        let schema = self.meta.file_metadata().schema_descr();
        schema.columns().iter().map(|c| c.path().string()).collect()
    }

    /// The number of the one leaf whose top-level column is `name`, or that lies under `name.…inner`.
    ///
    /// # Errors
    /// [`DataError::Broken`] if there is none, listing what there is.
    pub(super) fn leaf(&self, name: &str, inner: Option<&str>) -> Result<usize, DataError> {
        let schema = self.meta.file_metadata().schema_descr();
        schema
            .columns()
            .iter()
            .position(|column| {
                let parts = column.path().parts();
                parts.first().is_some_and(|first| first == name)
                    && inner.is_none_or(|inner| parts.last().is_some_and(|last| last == inner))
            })
            .ok_or_else(|| {
                let what = inner.map_or(name.to_owned(), |inner| format!("{name}.{inner}"));
                let mut names: Vec<_> =
                    schema.columns().iter().filter_map(|c| c.path().parts().first()).collect();
                names.dedup();
                names.truncate(24);
                self.broken(format!("there is no column `{what}`; there are {names:?}"))
            })
    }

    /// Whether there is a top-level column `name`.
    pub(super) fn has(&self, name: &str) -> bool {
        let schema = self.meta.file_metadata().schema_descr();
        schema.columns().iter().any(|c| c.path().parts().first().is_some_and(|p| p == name))
    }

    /// Whether leaf `leaf` holds text.
    pub(super) fn is_text(&self, leaf: usize) -> bool {
        let schema = self.meta.file_metadata().schema_descr();
        schema.num_columns() > leaf && schema.column(leaf).physical_type() == Physical::BYTE_ARRAY
    }

    /// Numbers of rows `from..to` as f32, whatever their type in the file.
    ///
    /// # Errors
    /// [`DataError::Broken`] for damaged pages, rows that are not there, text.
    pub(super) fn floats(
        &self,
        leaf: usize,
        from: usize,
        to: usize,
    ) -> Result<Column<f32>, DataError> {
        let mut out = Column::new();
        self.each(leaf, from, to, &mut |reader, skip, n| match reader {
            ColumnReader::FloatColumnReader(r) => pull(r, skip, n, &mut out, |v| *v),
            ColumnReader::DoubleColumnReader(r) => pull(r, skip, n, &mut out, |v| *v as f32),
            ColumnReader::Int32ColumnReader(r) => pull(r, skip, n, &mut out, |v| *v as f32),
            ColumnReader::Int64ColumnReader(r) => pull(r, skip, n, &mut out, |v| *v as f32),
            ColumnReader::BoolColumnReader(r) => pull(r, skip, n, &mut out, |v| f32::from(*v)),
            _ => Err("its values are no numbers".to_owned()),
        })?;
        Ok(out)
    }

    /// Whole numbers of rows `from..to`.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub(super) fn ints(
        &self,
        leaf: usize,
        from: usize,
        to: usize,
    ) -> Result<Column<i64>, DataError> {
        let mut out = Column::new();
        self.each(leaf, from, to, &mut |reader, skip, n| match reader {
            ColumnReader::Int32ColumnReader(r) => pull(r, skip, n, &mut out, |v| i64::from(*v)),
            ColumnReader::Int64ColumnReader(r) => pull(r, skip, n, &mut out, |v| *v),
            _ => Err("its values are no whole numbers".to_owned()),
        })?;
        Ok(out)
    }

    /// Numbers of rows `from..to` as f64.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub(super) fn doubles(
        &self,
        leaf: usize,
        from: usize,
        to: usize,
    ) -> Result<Column<f64>, DataError> {
        let mut out = Column::new();
        self.each(leaf, from, to, &mut |reader, skip, n| match reader {
            ColumnReader::FloatColumnReader(r) => pull(r, skip, n, &mut out, |v| f64::from(*v)),
            ColumnReader::DoubleColumnReader(r) => pull(r, skip, n, &mut out, |v| *v),
            _ => Err("its values are no floating-point numbers".to_owned()),
        })?;
        Ok(out)
    }

    /// The time stamps of rows `from..to`, seconds; from the frame rate where there is no such column.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub(super) fn timestamps(
        &self,
        from: usize,
        to: usize,
        fps: f64,
    ) -> Result<Vec<f64>, DataError> {
        if !self.has("timestamp") {
            return Ok((0..to.saturating_sub(from)).map(|t| t as f64 / fps).collect());
        }
        let column = self.doubles(self.leaf("timestamp", None)?, from, to)?;
        if column.values.len() != to - from {
            return Err(self.broken("a row without a time stamp"));
        }
        Ok(column.values)
    }

    /// Byte strings of rows `from..to`; they share the pages they were read from.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub(super) fn bytes(
        &self,
        leaf: usize,
        from: usize,
        to: usize,
    ) -> Result<Column<ByteArray>, DataError> {
        let mut out = Column::new();
        self.each(leaf, from, to, &mut |reader, skip, n| match reader {
            ColumnReader::ByteArrayColumnReader(r) => pull(r, skip, n, &mut out, Clone::clone),
            _ => Err("its values are no byte strings".to_owned()),
        })?;
        Ok(out)
    }

    /// Text of rows `from..to`.
    ///
    /// # Errors
    /// As [`floats`](Self::floats), and for text that is not UTF-8.
    pub(super) fn texts(
        &self,
        leaf: usize,
        from: usize,
        to: usize,
    ) -> Result<Column<String>, DataError> {
        let column = self.bytes(leaf, from, to)?;
        let values = column
            .values
            .iter()
            .map(|v| v.as_utf8().map(str::to_owned).map_err(|_| self.broken("text is not UTF-8")))
            .collect::<Result<_, _>>()?;
        Ok(Column { values, ends: column.ends })
    }

    /// Calls `pull(reader, rows to skip, rows to read)` for each row group that overlaps `from..to`.
    fn each(
        &self,
        leaf: usize,
        from: usize,
        to: usize,
        pull: &mut dyn FnMut(&mut ColumnReader, usize, usize) -> Result<(), String>,
    ) -> Result<(), DataError> {
        let schema = self.meta.file_metadata().schema_descr();
        if from > to || to > self.rows || leaf >= schema.num_columns() {
            return Err(self.broken(format!(
                "rows {from}..{to} are wanted and it has {}; the file was cut or its metadata is of another",
                self.rows
            )));
        }
        let name = schema.column(leaf).path().string();
        let mut first = 0;
        for (number, group) in self.meta.row_groups().iter().enumerate() {
            let rows = group.num_rows() as usize;
            let (start, end) = (from.clamp(first, first + rows), to.clamp(first, first + rows));
            if start < end {
                let column = group.columns().get(leaf).ok_or_else(|| {
                    self.broken(format!("row group {number} lacks column `{name}`"))
                })?;
                let pages = SerializedPageReader::new(Arc::clone(&self.input), column, rows, None)
                    .map_err(|e| self.broken(format!("column `{name}`: {}", plain(&e))))?;
                let mut reader = get_column_reader(schema.column(leaf), Box::new(pages));
                contain(|| pull(&mut reader, start - first, end - start)).map_err(|detail| {
                    self.broken(format!("column `{name}`, row group {number}: {detail}"))
                })?;
            }
            first += rows;
        }
        Ok(())
    }

    fn broken(&self, detail: impl Into<String>) -> DataError {
        DataError::broken(&self.path, detail)
    }
}

/// The most rows that a file may claim: 30 robots at 10 Hz for a year's working days.
const MAX_ROWS: usize = 1 << 31;
/// The most values in a row of a list: far more than any state or action has.
const MAX_WIDTH: usize = 1 << 16;

/// Reads `n` rows after skipping `skip`, appending `convert`ed values to `out`.
fn pull<D: DataType, T>(
    reader: &mut ColumnReaderImpl<D>,
    skip: usize,
    n: usize,
    out: &mut Column<T>,
    convert: impl Fn(&D::T) -> T,
) -> Result<(), String> {
    let mut skipped = 0;
    while skipped < skip {
        let step = reader.skip_records((skip - skipped).min(BATCH_ROWS)).map_err(|e| plain(&e))?;
        if step == 0 {
            return Err(format!("it ends after {skipped} rows, before row {skip}"));
        }
        skipped += step;
    }
    let mut done = 0;
    let (mut def, mut rep, mut values) = (Vec::new(), Vec::new(), Vec::new());
    while done < n {
        def.clear();
        rep.clear();
        values.clear();
        let wanted = (n - done).min(BATCH_ROWS);
        let (rows, count, levels) = reader
            .read_records(wanted, Some(&mut def), Some(&mut rep), &mut values)
            .map_err(|e| plain(&e))?;
        if rows == 0 {
            return Err(format!("it ends after {} of {} rows", skip + done, skip + n));
        }
        if count > rows.saturating_mul(MAX_WIDTH) {
            return Err(format!("{count} values in {rows} rows"));
        }
        let max_def = def.iter().copied().max().unwrap_or(0);
        if rep.is_empty() {
            if count != rows {
                return Err("it has empty cells".to_owned());
            }
            for value in &values {
                out.values.push(convert(value));
                out.ends.push(out.values.len());
            }
        } else {
            if rep.len() != levels || def.len() != levels || rep.first() != Some(&0) {
                return Err("its levels do not fit its values".to_owned());
            }
            let mut values = values.iter();
            for (i, (rep, def)) in rep.iter().zip(&def).enumerate() {
                if *rep == 0 && i > 0 {
                    out.ends.push(out.values.len());
                }
                // Lower levels are empty lists; they make a row without values.
                if *def == max_def && count > 0 {
                    let value = values.next().ok_or("its levels do not fit its values")?;
                    out.values.push(convert(value));
                }
            }
            out.ends.push(out.values.len());
        }
        done += rows;
    }
    Ok(())
}

/// Runs the crate's decoders, which index out of bounds on a few damaged pages (parquet 60.1, `BYTE_STREAM_SPLIT`): a panic
/// becomes an error. What the closure touched is dropped by its caller.
fn contain<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err("it does not decode: it is damaged".to_owned()))
}

/// The crate's message in one line, without its `Parquet error: ` prefix.
fn plain(error: &ParquetError) -> String {
    match error {
        ParquetError::General(message) => message.replace('\n', " "),
        other => other.to_string().replace('\n', " "),
    }
}

/// A file whose reads are checked against its length, and page headers against what they may claim.
#[derive(Debug)]
struct Bounded {
    file: File,
    len: u64,
    check_pages: bool,
}

impl Length for Bounded {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Bounded {
    type T = std::io::Cursor<Bytes>;

    /// Called for page headers; they fit [`HEADER_WINDOW`] (the crate skips the statistics in them, which may not).
    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let window = HEADER_WINDOW.min(self.len.saturating_sub(start));
        let bytes = self.get_bytes(start, window as usize)?;
        if self.check_pages {
            check_page_header(&bytes, self.len)?;
        }
        Ok(std::io::Cursor::new(bytes))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            return Err(ParquetError::General(format!(
                "bytes {start} to {} are wanted and the file has {}: it was cut, or its footer is damaged",
                start.saturating_add(length as u64),
                self.len
            )));
        }
        let mut buffer = vec![0; length];
        self.file
            .read_exact_at(&mut buffer, start)
            .map_err(|e| ParquetError::External(Box::new(e)))?;
        Ok(buffer.into())
    }
}

/// Bytes read for a page header. Statistics hold a smallest and a greatest value, which writers cut to tens of bytes.
const HEADER_WINDOW: u64 = 64 << 10;

/// Looks at a page header (Thrift compact protocol, parquet-format's `PageHeader`) before the crate reserves memory by it:
/// 1 type, 2 uncompressed size, 3 compressed size, 4 checksum, 5/7/8 the header of its kind whose field 1 is a count.
fn check_page_header(bytes: &[u8], file_len: u64) -> Result<(), ParquetError> {
    let mut at = bytes;
    let (mut field, mut kind, mut size) = (0i16, 0i64, 0i64);
    loop {
        let header = byte(&mut at)?;
        if header == 0 {
            return Ok(());
        }
        let delta = i16::from(header >> 4);
        field = if delta == 0 { zigzag(&mut at)? as i16 } else { field + delta };
        match (field, header & 0x0f) {
            (1, 5) => kind = zigzag(&mut at)?,
            (2, 5) => {
                size = zigzag(&mut at)?;
                if size < 0 || size as u64 > file_len.saturating_mul(2) + (64 << 20) {
                    return Err(ParquetError::General(format!("a page claims {size} bytes")));
                }
            }
            (3 | 4, 5) => {
                zigzag(&mut at)?;
            }
            (5 | 7 | 8, 12) => {
                // The first field of each: num_values, i32.
                if byte(&mut at)? != 0x15 {
                    return Ok(());
                }
                let count = zigzag(&mut at)?;
                // A dictionary's values are stored one by one, and memory for `count` of them is reserved.
                if count < 0 || (kind == 2 && count > size) {
                    return Err(ParquetError::General(format!("a page claims {count} values")));
                }
                return Ok(());
            }
            _ => return Ok(()),
        }
    }
}

fn byte(at: &mut &[u8]) -> Result<u8, ParquetError> {
    let mut one = [0];
    at.read_exact(&mut one).map_err(|_| ParquetError::EOF("page header".to_owned()))?;
    Ok(one[0])
}

fn zigzag(at: &mut &[u8]) -> Result<i64, ParquetError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let next = byte(at)?;
        value |= u64::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err(ParquetError::General("a number in a page header does not end".to_owned()))
}
