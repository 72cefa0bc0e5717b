//! Which episodes there are and where their rows and frames lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::info::{Fill, Info, Layout, fill, read_text};
use super::table::Table;
use crate::data::DataError;

/// Where one episode lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Episode {
    /// Its number in the data set.
    pub(super) index: u64,
    /// `T`.
    pub(super) len: usize,
    pub(super) instruction: Arc<str>,
    /// Chunk and file of its rows; for v2 the chunk, and the episode's own number.
    pub(super) data: (u64, u64),
    /// Its first row in that file.
    pub(super) row: usize,
    /// Per video key: chunk, file, seconds at which it begins.
    pub(super) videos: BTreeMap<String, (u64, u64, f64)>,
}

/// Episodes that a data set may have.
const MAX_EPISODES: usize = 1 << 24;

/// Reads the episodes of a data set, in order.
///
/// # Errors
/// [`DataError::Io`], [`DataError::Broken`] naming the file and the episode.
pub(super) fn read(root: &Path, info: &Info, layout: Layout) -> Result<Vec<Episode>, DataError> {
    let videos: Vec<&String> =
        info.features.iter().filter(|(_, f)| f.is_video()).map(|(key, _)| key).collect();
    let episodes = match layout {
        Layout::V2 => read_v2(root, info, &videos)?,
        Layout::V3 => read_v3(root, &videos)?,
    };
    if episodes.is_empty() {
        return Err(DataError::broken(&root.join("meta"), "there is no episode"));
    }
    Ok(episodes)
}

/// A line of `episodes.jsonl`.
#[derive(Deserialize)]
struct Line {
    episode_index: u64,
    #[serde(default)]
    tasks: Vec<String>,
    length: u64,
}

fn read_v2(root: &Path, info: &Info, videos: &[&String]) -> Result<Vec<Episode>, DataError> {
    let path = root.join("meta/episodes.jsonl");
    let mut episodes = Vec::new();
    for (number, line) in read_text(&path)?.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(line)
            .map_err(|e| DataError::broken(&path, format!("line {}: {e}", number + 1)))?;
        let chunk = line.episode_index / info.chunks_size;
        let place = (chunk, line.episode_index, 0.0);
        episodes.push(Episode {
            index: line.episode_index,
            len: line.length as usize,
            instruction: line
                .tasks
                .first()
                .map_or_else(|| Arc::from(""), |t| Arc::from(t.as_str())),
            data: (chunk, line.episode_index),
            row: 0,
            videos: videos.iter().map(|key| ((*key).clone(), place)).collect(),
        });
    }
    episodes.sort_by_key(|e| e.index);
    Ok(episodes)
}

fn read_v3(root: &Path, videos: &[&String]) -> Result<Vec<Episode>, DataError> {
    let folder = root.join("meta/episodes");
    let mut files = Vec::new();
    for chunk in sorted(&folder)? {
        if chunk.is_dir() {
            let inside = sorted(&chunk)?.into_iter();
            files.extend(inside.filter(|f| f.extension().is_some_and(|e| e == "parquet")));
        }
    }
    if files.is_empty() {
        return Err(DataError::broken(&folder, "there is no chunk-*/file-*.parquet in it"));
    }
    let mut episodes = Vec::new();
    let mut starts = Vec::new();
    for path in &files {
        let table = Table::open(path)?;
        let rows = table.rows();
        if episodes.len() + rows > MAX_EPISODES {
            return Err(DataError::broken(path, format!("more than {MAX_EPISODES} episodes")));
        }
        let ints = |name: &str| -> Result<Vec<i64>, DataError> {
            let column = table.ints(table.leaf(name, None)?, 0, rows)?;
            if column.values.len() == rows && column.values.iter().all(|v| *v >= 0) {
                return Ok(column.values);
            }
            Err(DataError::broken(
                path,
                format!("column `{name}` has a negative or missing number"),
            ))
        };
        let (index, length) = (ints("episode_index")?, ints("length")?);
        let (chunk, file) = (ints("data/chunk_index")?, ints("data/file_index")?);
        let (from, to) = (ints("dataset_from_index")?, ints("dataset_to_index")?);
        let tasks = table.texts(table.leaf("tasks", None)?, 0, rows)?;
        let mut places = BTreeMap::new();
        for key in videos {
            let at = table.leaf(&format!("videos/{key}/from_timestamp"), None)?;
            let column = table.doubles(at, 0, rows)?;
            let seconds = column.values;
            if seconds.len() != rows || seconds.iter().any(|s| !(0.0..1e9).contains(s)) {
                return Err(DataError::broken(
                    path,
                    format!("`videos/{key}/from_timestamp` is no time"),
                ));
            }
            let place = (
                ints(&format!("videos/{key}/chunk_index"))?,
                ints(&format!("videos/{key}/file_index"))?,
                seconds,
            );
            places.insert((*key).clone(), place);
        }
        for i in 0..rows {
            let number = index[i] as usize;
            if from[i].checked_add(length[i]) != Some(to[i]) {
                let detail = format!("rows {}..{} for {} frames", from[i], to[i], length[i]);
                return Err(DataError::episode(path, number, detail));
            }
            let task = tasks.row(i).first().map_or("", String::as_str);
            episodes.push(Episode {
                index: index[i] as u64,
                len: length[i] as usize,
                instruction: Arc::from(task),
                data: (chunk[i] as u64, file[i] as u64),
                row: 0,
                videos: places
                    .iter()
                    .map(|(k, (c, f, t))| (k.clone(), (c[i] as u64, f[i] as u64, t[i])))
                    .collect(),
            });
            starts.push(from[i] as u64);
        }
    }
    // A row's place in its file is its global number less the file's first.
    let mut first: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for (episode, start) in episodes.iter().zip(&starts) {
        first.entry(episode.data).and_modify(|f| *f = (*f).min(*start)).or_insert(*start);
    }
    for (episode, start) in episodes.iter_mut().zip(&starts) {
        episode.row = (start - first[&episode.data]) as usize;
    }
    episodes.sort_by_key(|e| e.index);
    if let Some(twice) = episodes.windows(2).find(|pair| pair[0].index == pair[1].index) {
        return Err(DataError::broken(
            &folder,
            format!("episode {} is listed twice", twice[0].index),
        ));
    }
    Ok(episodes)
}

/// The tasks by number, for data sets whose episodes do not name theirs.
///
/// # Errors
/// As [`read`].
pub(super) fn tasks(root: &Path, layout: Layout) -> Result<BTreeMap<i64, String>, DataError> {
    /// A line of `tasks.jsonl`.
    #[derive(Deserialize)]
    struct Task {
        task_index: i64,
        task: String,
    }
    match layout {
        Layout::V2 => {
            let path = root.join("meta/tasks.jsonl");
            let text = read_text(&path)?;
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines
                .map(|line| {
                    serde_json::from_str::<Task>(line)
                        .map(|task| (task.task_index, task.task))
                        .map_err(|e| DataError::broken(&path, e.to_string()))
                })
                .collect()
        }
        Layout::V3 => {
            let path = root.join("meta/tasks.parquet");
            let table = Table::open(&path)?;
            let rows = table.rows();
            let index = table.ints(table.leaf("task_index", None)?, 0, rows)?;
            // The text is the frame's index: `__index_level_0__`, or `task` where the index has a name.
            let text = (0..table.leaves().len())
                .find(|leaf| table.is_text(*leaf))
                .ok_or_else(|| DataError::broken(&path, "no column of it is text"))?;
            let text = table.texts(text, 0, rows)?;
            if index.values.len() != text.values.len() {
                return Err(DataError::broken(&path, "a task without a number or a text"));
            }
            Ok(index.values.into_iter().zip(text.values).collect())
        }
    }
}

/// Finds the rows of an episode.
///
/// # Errors
/// [`DataError::Broken`] naming the file that is missing.
pub(super) fn data_file(
    root: &Path,
    info: &Info,
    layout: Layout,
    episode: &Episode,
) -> Result<PathBuf, DataError> {
    let standard = match layout {
        Layout::V2 => "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        Layout::V3 => "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    };
    let (chunk, file) = episode.data;
    find(root, &[info.data_path.as_deref().unwrap_or(standard), standard], chunk, file, "", episode)
}

/// Finds the video of an episode.
///
/// # Errors
/// [`DataError::Broken`] naming the file that is missing.
pub(super) fn video_file(
    root: &Path,
    info: &Info,
    layout: Layout,
    episode: &Episode,
    key: &str,
) -> Result<(PathBuf, f64), DataError> {
    let Some(&(chunk, file, from)) = episode.videos.get(key) else {
        return Err(DataError::broken(&root.join("meta/episodes"), format!("no video `{key}`")));
    };
    let [standard, flat] = match layout {
        Layout::V2 => [
            "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            "videos/{video_key}/episode_{episode_index:06d}.mp4",
        ],
        // Seen in the wild beside an info.json that says `videos/`.
        Layout::V3 => [
            "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "video/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        ],
    };
    let templates = [info.video_path.as_deref().unwrap_or(standard), standard, flat];
    Ok((find(root, &templates, chunk, file, key, episode)?, from))
}

fn find(
    root: &Path,
    templates: &[&str],
    chunk: u64,
    file: u64,
    key: &str,
    episode: &Episode,
) -> Result<PathBuf, DataError> {
    let values = [
        ("chunk_index", Fill::Number(chunk)),
        ("file_index", Fill::Number(file)),
        ("episode_chunk", Fill::Number(chunk)),
        ("episode_index", Fill::Number(episode.index)),
        ("video_key", Fill::Text(key)),
    ];
    // `observation.images.top` also lies under `top` or `image_top` in hand-made sets; only the full key is unambiguous.
    let mut first = None;
    for template in templates {
        let path = fill(template, &values)
            .map_err(|e| DataError::broken(&root.join("meta/info.json"), e))?;
        let path = root.join(path);
        if path.is_file() {
            return Ok(path);
        }
        first.get_or_insert(path);
    }
    let missing = first.unwrap_or_default();
    let folder = missing.parent().filter(|f| f.is_dir());
    let there = folder.map_or("its folder is missing too".to_owned(), |folder| {
        let n = std::fs::read_dir(folder).map_or(0, Iterator::count);
        format!("its folder has {n} files")
    });
    Err(DataError::episode(
        &missing,
        episode.index as usize,
        format!("the file is missing, {there}; download it, or leave images out"),
    ))
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = std::fs::read_dir(folder).map_err(DataError::io("open", folder))?;
    let mut paths = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(DataError::io("read", folder))?;
    paths.sort();
    Ok(paths)
}
