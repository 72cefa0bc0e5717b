//! The writer of v3.0, one episode at a time.
//!
//! Everything goes into a folder `.NAME.partial` beside the target, which [`LerobotWriter::finish`] renames: a data set is
//! there whole or not at all. Held in memory are one episode, and of all steps the numbers alone (exact quantiles need
//! them).
//!
//! # Details
//! 1. Images are PNG inside the parquet files (dtype `image`); encoded frames of a source are stored as they are.
//! 2. A row group is an episode, as in lerobot's files, so that reading one episode decodes one row group.
//! 3. `stats.json` has exact statistics over all frames: of numbers (`min`, `max`, `mean`, `std`, `q01`, `q10`, `q50`, `q90`,
//!    `q99`), of images per channel over all pixels, `[3, 1, 1]` in `[0, 1]`.
//! 4. `stats/*` columns of the episode table, which only lerobot's editing tools read, are not written.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::ArrayView2;
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int64Type};
use parquet::file::metadata::KeyValue;
use serde_json::{Value, json};
use simloop_envs::{Frame, ImageSpace};

use super::info::Extra;
use super::rows::{Rows, Type, list, required, table_type};
use super::summary::{ImageSummary, NumberSummary};
use crate::data::{DataError, DemoEpisode, Frames, SourceSpec};

/// Bytes of images and numbers after which a new data file begins (lerobot's DEFAULT_DATA_FILE_SIZE_IN_MB).
const FILE_BYTES: usize = 100 << 20;
/// Files in a chunk (lerobot's DEFAULT_CHUNK_SIZE).
const CHUNK_FILES: u64 = 1000;

/// Writes a data set.
#[derive(Debug)]
pub struct LerobotWriter {
    target: PathBuf,
    partial: Partial,
    spec: SourceSpec,
    fps: f64,
    robot_type: String,
    data: Option<DataFile>,
    next_file: (u64, u64),
    tasks: Vec<Arc<str>>,
    episodes: Vec<Row>,
    frames: u64,
    proprio: NumberSummary,
    action: NumberSummary,
    images: BTreeMap<String, ImageSummary>,
}

/// A row of the episode table.
#[derive(Debug)]
struct Row {
    task: i64,
    len: u64,
    file: (u64, u64),
    from: u64,
}

#[derive(Debug)]
struct DataFile {
    path: PathBuf,
    place: (u64, u64),
    rows: Rows<BufWriter<File>>,
}

/// A folder of this process that is removed unless it was renamed.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    /// Locked for as long as it is open: another process neither writes here nor removes it.
    lock: File,
}

impl Partial {
    /// Begins `path` anew; what a killed process left there is removed.
    fn create(path: PathBuf) -> Result<Self, DataError> {
        let busy = |path: &Path| {
            DataError::unsupported(format!(
                "write into `{}`: another process is writing there; wait for it, or choose another name",
                path.display()
            ))
        };
        let lock = |path: &Path| {
            let folder = File::open(path).map_err(DataError::io("open", path))?;
            match folder.try_lock() {
                Ok(()) => Ok(folder),
                Err(TryLockError::WouldBlock) => Err(busy(path)),
                Err(TryLockError::Error(e)) => Err(DataError::io("lock", path)(e)),
            }
        };
        if path.exists() {
            let _held = lock(&path)?;
            fs::remove_dir_all(&path).map_err(DataError::io("remove", &path))?;
        }
        fs::create_dir_all(&path).map_err(DataError::io("create", &path))?;
        Ok(Self { lock: lock(&path)?, path })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing here; before it, what is left is of no use.
        let _ = fs::remove_dir_all(&self.path);
        let _ = self.lock.unlock();
    }
}

impl LerobotWriter {
    /// Begins the data set `target`, which must not exist. Cameras, names and the frame rate are those of `spec`; where it
    /// names no rate the format still wants one, and 10 steps per second are written and warned of.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] if `target` exists or a camera's name holds `/`; [`DataError::Io`].
    pub fn create(target: &Path, spec: &SourceSpec, robot_type: &str) -> Result<Self, DataError> {
        if target.exists() {
            return Err(DataError::unsupported(format!(
                "write `{}`: it exists; remove it or choose another name",
                target.display()
            )));
        }
        if let Some(camera) = spec.cameras.keys().find(|c| c.contains('/') || c.is_empty()) {
            return Err(DataError::unsupported(format!(
                "write camera `{camera}`: LeRobot's names are not empty and hold no `/`"
            )));
        }
        let fps = spec.control_hz.unwrap_or_else(|| {
            tracing::warn!(target = %target.display(), "the source names no rate; writing 10 steps per second");
            10.0
        });
        if !(fps > 0.0 && fps <= 10_000.0) {
            return Err(DataError::unsupported(format!(
                "write a data set of {fps} steps per second"
            )));
        }
        let name = target.file_name().ok_or_else(|| {
            DataError::unsupported(format!("write `{}`: it names no folder", target.display()))
        })?;
        let partial = target.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        let partial = Partial::create(partial)?;
        let meta = partial.path.join("meta/episodes/chunk-000");
        fs::create_dir_all(&meta).map_err(DataError::io("create", &meta))?;
        Ok(Self {
            target: target.to_owned(),
            partial,
            proprio: NumberSummary::new(spec.proprio.len()),
            action: NumberSummary::new(spec.action.len()),
            images: spec.cameras.keys().map(|c| (c.clone(), ImageSummary::default())).collect(),
            spec: spec.clone(),
            fps,
            robot_type: robot_type.to_owned(),
            data: None,
            next_file: (0, 0),
            tasks: Vec::new(),
            episodes: Vec::new(),
            frames: 0,
        })
    }

    /// Episodes written so far.
    pub fn len(&self) -> usize {
        self.episodes.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.episodes.is_empty()
    }

    /// Steps written so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Appends an episode.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] for an episode that does not fit the data set (widths, cameras, frame sizes, NaN);
    /// [`DataError::Io`].
    pub fn push(&mut self, episode: &DemoEpisode) -> Result<(), DataError> {
        let number = self.episodes.len();
        let wrong =
            |detail: String| DataError::unsupported(format!("write episode {number}: {detail}"));
        let len = self.check(episode).map_err(wrong)?;
        let mut cells: BTreeMap<String, Vec<ByteArray>> = BTreeMap::new();
        for (camera, space) in &self.spec.cameras {
            let frames = &episode.images[camera];
            let summary = self.images.entry(camera.clone()).or_default();
            let mut column = Vec::with_capacity(len);
            for t in 0..len {
                let fail = |e: String| wrong(format!("camera `{camera}`, step {t}: {e}"));
                let (frame, file) = encoded(frames, t).map_err(fail)?;
                check_size(&frame, *space).map_err(fail)?;
                summary.add(&frame);
                column.push(file);
            }
            cells.insert(camera.clone(), column);
        }
        let bytes: usize = cells.values().flatten().map(ByteArray::len).sum::<usize>()
            + 4 * len * (self.spec.proprio.len() + self.spec.action.len() + 12);
        if self.data.as_ref().is_some_and(|d| d.rows.bytes_written() + bytes > FILE_BYTES) {
            self.close_data()?;
        }
        let task = self.task(&episode.instruction);
        if self.data.is_none() {
            self.open_data()?;
        }
        let Some(data) = self.data.as_mut() else { return Ok(()) };
        write_rows(
            &mut data.rows,
            &self.spec,
            episode,
            &cells,
            number,
            self.frames,
            task,
            self.fps,
        )
        .map_err(|e| DataError::broken(&data.path, e))?;
        self.proprio.add(episode.proprio.view());
        self.action.add(episode.actions.view());
        self.episodes.push(Row { task, len: len as u64, file: data.place, from: self.frames });
        self.frames += len as u64;
        Ok(())
    }

    /// Writes the metadata and gives the data set its name.
    ///
    /// # Errors
    /// [`DataError::Unsupported`] without an episode; [`DataError::Io`].
    pub fn finish(mut self) -> Result<(), DataError> {
        if self.episodes.is_empty() {
            return Err(DataError::unsupported("write a data set without an episode"));
        }
        self.close_data()?;
        let meta = self.partial.path.join("meta");
        self.write_episodes(&meta.join("episodes/chunk-000/file-000.parquet"))?;
        self.write_tasks(&meta.join("tasks.parquet"))?;
        write_json(&meta.join("stats.json"), &self.stats())?;
        write_json(&meta.join("info.json"), &self.info())?;
        // The name must not come to stand for files that are still on their way to the disk.
        sync_tree(&self.partial.path)?;
        fs::rename(&self.partial.path, &self.target)
            .map_err(DataError::io("rename", &self.target))?;
        if let Some(parent) = self.target.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync(parent)?;
        }
        Ok(())
    }

    /// `T`, if the episode fits.
    fn check(&self, episode: &DemoEpisode) -> Result<usize, String> {
        let len = episode.len();
        if len == 0 {
            return Err("it has no step".to_owned());
        }
        for (what, rows, width) in [
            ("proprio", &episode.proprio, self.spec.proprio.len()),
            ("actions", &episode.actions, self.spec.action.len()),
        ] {
            if rows.dim() != (len, width) {
                return Err(format!("`{what}` is {:?} where [{len}, {width}] fits", rows.dim()));
            }
            if rows.iter().any(|v| !v.is_finite()) {
                return Err(format!("`{what}` has a number that is not finite"));
            }
        }
        if !episode.images.keys().eq(self.spec.cameras.keys()) {
            let got: Vec<_> = episode.images.keys().collect();
            let expected: Vec<_> = self.spec.cameras.keys().collect();
            return Err(format!("it has cameras {got:?} where the data set has {expected:?}"));
        }
        match episode.images.iter().find(|(_, frames)| frames.len() != len) {
            None => Ok(len),
            Some((camera, frames)) => {
                Err(format!("camera `{camera}` has {} frames for {len} steps", frames.len()))
            }
        }
    }

    fn task(&mut self, instruction: &Arc<str>) -> i64 {
        let known = self.tasks.iter().position(|t| t == instruction);
        known.unwrap_or_else(|| {
            self.tasks.push(Arc::clone(instruction));
            self.tasks.len() - 1
        }) as i64
    }

    fn open_data(&mut self) -> Result<(), DataError> {
        let place = self.next_file;
        let (chunk, file) = place;
        let path = self.partial.path.join(format!("data/chunk-{chunk:03}/file-{file:03}.parquet"));
        let mut fields: Vec<Type> = Vec::new();
        for (key, width) in self.vectors() {
            fields.push(if width == 1 {
                required::<FloatType>(key)
            } else {
                list::<FloatType>(key)
            });
        }
        fields.extend(self.spec.cameras.keys().map(|camera| Type::Image(feature_key(camera))));
        fields.push(required::<FloatType>("timestamp"));
        for key in ["frame_index", "episode_index", "index", "task_index"] {
            fields.push(required::<Int64Type>(key));
        }
        let rows = Rows::create(&path, table_type(&fields), None)?;
        self.data = Some(DataFile { path, place, rows });
        self.next_file = if file + 1 == CHUNK_FILES { (chunk + 1, 0) } else { (chunk, file + 1) };
        Ok(())
    }

    fn close_data(&mut self) -> Result<(), DataError> {
        match self.data.take() {
            Some(data) => data.rows.finish(),
            None => Ok(()),
        }
    }

    /// Keys and widths of the features of numbers.
    fn vectors(&self) -> Vec<(&'static str, usize)> {
        let both =
            [("observation.state", self.spec.proprio.len()), ("action", self.spec.action.len())];
        both.into_iter().filter(|(_, width)| *width > 0).collect()
    }

    fn write_episodes(&self, path: &Path) -> Result<(), DataError> {
        type Column = (&'static str, fn(usize, &Row) -> i64);
        let columns: [Column; 8] = [
            ("episode_index", |i, _| i as i64),
            ("length", |_, e| e.len as i64),
            ("data/chunk_index", |_, e| e.file.0 as i64),
            ("data/file_index", |_, e| e.file.1 as i64),
            ("dataset_from_index", |_, e| e.from as i64),
            ("dataset_to_index", |_, e| (e.from + e.len) as i64),
            ("meta/episodes/chunk_index", |_, _| 0),
            ("meta/episodes/file_index", |_, _| 0),
        ];
        let mut fields = vec![list::<ByteArrayType>("tasks")];
        fields.extend(columns.iter().map(|(name, _)| required::<Int64Type>(name)));
        let mut rows = Rows::create(path, table_type(&fields), None)?;
        let fail = |e: String| DataError::broken(path, e);
        let mut group = rows.group().map_err(fail)?;
        let texts: Vec<ByteArray> =
            self.episodes.iter().map(|e| ByteArray::from(&*self.tasks[e.task as usize])).collect();
        group.lists::<ByteArrayType>(&texts, 1).map_err(fail)?;
        for (_, value) in columns {
            let values: Vec<i64> =
                self.episodes.iter().enumerate().map(|(i, e)| value(i, e)).collect();
            group.plain::<Int64Type>(&values).map_err(fail)?;
        }
        group.close().map_err(fail)?;
        rows.finish()
    }

    /// pandas keeps a frame's index apart from its columns; lerobot looks tasks up by it, so the file says which column it
    /// is, in pandas' own words.
    fn write_tasks(&self, path: &Path) -> Result<(), DataError> {
        let index = "__index_level_0__";
        let pandas = json!({
            "index_columns": [index],
            "column_indexes": [{
                "name": null, "field_name": null, "pandas_type": "unicode", "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }],
            "columns": [
                {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
                 "numpy_type": "int64", "metadata": null},
                {"name": null, "field_name": index, "pandas_type": "unicode",
                 "numpy_type": "object", "metadata": null},
            ],
            "creator": {"library": "simloop", "version": env!("CARGO_PKG_VERSION")},
            "pandas_version": "2.2.3",
        });
        let words = KeyValue::new("pandas".to_owned(), pandas.to_string());
        let fields = [required::<Int64Type>("task_index"), required::<ByteArrayType>(index)];
        let mut rows = Rows::create(path, table_type(&fields), Some(words))?;
        let fail = |e: String| DataError::broken(path, e);
        let mut group = rows.group().map_err(fail)?;
        let numbers: Vec<i64> = (0..self.tasks.len() as i64).collect();
        group.plain::<Int64Type>(&numbers).map_err(fail)?;
        let texts: Vec<ByteArray> = self.tasks.iter().map(|t| ByteArray::from(&**t)).collect();
        group.plain::<ByteArrayType>(&texts).map_err(fail)?;
        group.close().map_err(fail)?;
        rows.finish()
    }

    fn info(&self) -> Value {
        let mut features = serde_json::Map::new();
        let vector =
            |names: &[String]| json!({"dtype": "float32", "shape": [names.len()], "names": names});
        for (key, _) in self.vectors() {
            let names = if key == "action" { &self.spec.action } else { &self.spec.proprio };
            features.insert(key.to_owned(), vector(names));
        }
        for (camera, space) in &self.spec.cameras {
            features.insert(
                feature_key(camera),
                json!({"dtype": "image", "shape": [space.height, space.width, 3],
                       "names": ["height", "width", "channel"]}),
            );
        }
        for (key, dtype) in [
            ("timestamp", "float32"),
            ("frame_index", "int64"),
            ("episode_index", "int64"),
            ("index", "int64"),
            ("task_index", "int64"),
        ] {
            features.insert(key.to_owned(), json!({"dtype": dtype, "shape": [1], "names": null}));
        }
        // lerobot writes whole rates as whole numbers, and its video code divides by them.
        let fps = if self.fps.fract() == 0.0 { json!(self.fps as u64) } else { json!(self.fps) };
        json!({
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": self.episodes.len(),
            "total_frames": self.frames,
            "total_tasks": self.tasks.len(),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": FILE_BYTES >> 20,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": format!("0:{}", self.episodes.len())},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": null,
            "features": features,
            "simloop": Extra {
                convention: self.spec.convention.clone(),
                absolute_action: self.spec.absolute_action.clone(),
            },
        })
    }

    fn stats(&self) -> Value {
        let mut stats = serde_json::Map::new();
        for (key, _) in self.vectors() {
            let summary = if key == "action" { &self.action } else { &self.proprio };
            stats.insert(key.to_owned(), summary.to_json());
        }
        for (camera, summary) in &self.images {
            stats.insert(feature_key(camera), summary.to_json());
        }
        // The rest follows from the lengths; lerobot's loader wants an entry for what it normalises, which these are not,
        // but its own files have them.
        let of = |values: &mut dyn Iterator<Item = f32>| {
            let values: Vec<f32> = values.collect();
            let mut summary = NumberSummary::new(1);
            if let Ok(rows) = ArrayView2::from_shape((values.len(), 1), &values) {
                summary.add(rows);
            }
            summary.to_json()
        };
        let steps = || {
            self.episodes.iter().enumerate().flat_map(|(i, e)| (0..e.len).map(move |t| (i, e, t)))
        };
        let fps = self.fps;
        stats.insert("timestamp".into(), of(&mut steps().map(|(_, _, t)| (t as f64 / fps) as f32)));
        stats.insert("frame_index".into(), of(&mut steps().map(|(_, _, t)| t as f32)));
        stats.insert("episode_index".into(), of(&mut steps().map(|(i, _, _)| i as f32)));
        stats.insert("index".into(), of(&mut steps().map(|(_, e, t)| (e.from + t) as f32)));
        stats.insert("task_index".into(), of(&mut steps().map(|(_, e, _)| e.task as f32)));
        Value::Object(stats)
    }
}

/// A camera's feature.
fn feature_key(camera: &str) -> String {
    format!("observation.images.{camera}")
}

#[expect(clippy::too_many_arguments, reason = "one row group's parts, named at the one call")]
fn write_rows(
    rows: &mut Rows<BufWriter<File>>,
    spec: &SourceSpec,
    episode: &DemoEpisode,
    cells: &BTreeMap<String, Vec<ByteArray>>,
    number: usize,
    first: u64,
    task: i64,
    fps: f64,
) -> Result<(), String> {
    let len = episode.len() as u64;
    let mut group = rows.group()?;
    for matrix in [&episode.proprio, &episode.actions] {
        let values: Vec<f32> = matrix.iter().copied().collect();
        match matrix.ncols() {
            0 => {}
            1 => group.plain::<FloatType>(&values)?,
            width => group.lists::<FloatType>(&values, width)?,
        }
    }
    for camera in spec.cameras.keys() {
        let names: Vec<ByteArray> =
            (0..len).map(|t| ByteArray::from(format!("frame-{t:06}.png").as_str())).collect();
        group.plain::<ByteArrayType>(&cells[camera])?;
        group.plain::<ByteArrayType>(&names)?;
    }
    let stamps: Vec<f32> = (0..len).map(|t| (t as f64 / fps) as f32).collect();
    group.plain::<FloatType>(&stamps)?;
    let column = |value: &dyn Fn(u64) -> i64| (0..len).map(value).collect::<Vec<i64>>();
    group.plain::<Int64Type>(&column(&|t| t as i64))?;
    group.plain::<Int64Type>(&column(&|_| number as i64))?;
    group.plain::<Int64Type>(&column(&|t| (first + t) as i64))?;
    group.plain::<Int64Type>(&column(&|_| task))?;
    group.close()
}

/// Frame `t` as pixels and as a file.
fn encoded(frames: &Frames, t: usize) -> Result<(Frame, ByteArray), String> {
    let frame = frames.get(t)?;
    let file = match frames {
        Frames::Encoded(files) => ByteArray::from(files[t].to_vec()),
        Frames::Raw(_) => ByteArray::from(png(&frame)?),
    };
    Ok((frame, file))
}

fn check_size(frame: &Frame, space: ImageSpace) -> Result<(), String> {
    let (height, width, _) = frame.dim();
    if (height, width) == (space.height as usize, space.width as usize) {
        return Ok(());
    }
    Err(format!(
        "{width} x {height} pixels where the data set has {} x {}",
        space.width, space.height
    ))
}

/// A lossless PNG, compressed fast: frames are written once and read often.
fn png(frame: &Frame) -> Result<Vec<u8>, String> {
    use image::ImageEncoder as _;
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    let (height, width, channels) = frame.dim();
    if channels != 3 {
        return Err(format!("{channels} channels where RGB has 3"));
    }
    let pixels = frame.as_standard_layout();
    let pixels = pixels.as_slice().ok_or("its pixels are not contiguous")?;
    let mut file = Vec::new();
    PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive)
        .write_image(pixels, width as u32, height as u32, image::ExtendedColorType::Rgb8)
        .map_err(|e| e.to_string())?;
    Ok(file)
}

fn write_json(path: &Path, value: &Value) -> Result<(), DataError> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| DataError::broken(path, e.to_string()))?;
    fs::write(path, text + "\n").map_err(DataError::io("write", path))
}

/// Makes a folder and all in it durable.
fn sync_tree(folder: &Path) -> Result<(), DataError> {
    for entry in fs::read_dir(folder).map_err(DataError::io("open", folder))? {
        let path = entry.map_err(DataError::io("read", folder))?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<(), DataError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(DataError::io("write", path))
}
