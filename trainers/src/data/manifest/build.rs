//! Writes a manifest from any source, one episode at a time, and goes on where it was stopped.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use image::ImageEncoder as _;
use ndarray::Array2;

use super::{FILE, Footer, Header, Line, Lines, Spec, Statistics, VERSION};
use crate::data::{DataError, DemoSource, Frames};
use simloop_policies::normalize::Stats;

/// What a builder has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestProgress {
    /// Episodes that were there already.
    pub found: usize,
    /// Episodes written now.
    pub written: usize,
    /// Episodes in all.
    pub total: usize,
}

/// Builds the manifest of `source` in `folder`, or completes one that was interrupted at any moment: images of an episode
/// are written before its line, a line that was cut short is removed, and an episode that has its line is left alone.
/// Raw frames become PNG, encoded ones are copied. `stop` is asked before each episode.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Unsupported`] where the folder holds the manifest of something else or another builder
/// is at work; the source's own.
pub fn build_manifest(
    source: &dyn DemoSource,
    folder: &Path,
    mut stop: impl FnMut(ManifestProgress) -> bool,
) -> Result<ManifestProgress, DataError> {
    fs::create_dir_all(folder).map_err(DataError::io("write", folder))?;
    let path = folder.join(FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(DataError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(DataError::unsupported(format!(
                "build `{}`: another builder is writing it",
                path.display()
            )));
        }
        Err(TryLockError::Error(e)) => return Err(DataError::io("lock", &path)(e)),
    }
    let header = header(source);
    let total = source.episodes().len();
    let mut done = resume(&path, &mut file, &header, source)?;
    let found = done.episodes;
    for episode in found..total {
        let progress = ManifestProgress { found, written: episode - found, total };
        if done.complete || stop(progress) {
            return Ok(progress);
        }
        let line = episode_line(source, folder, episode, &mut done)?;
        append(&path, &mut file, &line)?;
    }
    let progress = ManifestProgress { found, written: total - found, total };
    if !done.complete {
        let stats = |rows: Vec<f32>, width: usize| {
            let rows = Array2::from_shape_vec((rows.len() / width.max(1), width), rows);
            match rows {
                Ok(rows) if width > 0 => {
                    Stats::of(rows.view()).map_err(|e| DataError::broken(&path, e.to_string()))
                }
                _ => Ok(Stats::default()),
            }
        };
        let statistics = Statistics {
            action: stats(done.actions, header.spec.action.len())?,
            proprio: stats(done.proprio, header.spec.proprio.len())?,
        };
        append(&path, &mut file, &Footer { episodes: total, steps: done.steps, statistics })?;
        file.sync_all().map_err(DataError::io("write", &path))?;
    }
    Ok(progress)
}

/// What the file holds already, and the numbers that the last line's statistics need.
#[derive(Default)]
struct Done {
    episodes: usize,
    steps: usize,
    complete: bool,
    proprio: Vec<f32>,
    actions: Vec<f32>,
}

impl Done {
    fn add(&mut self, line: &Line) {
        self.episodes += 1;
        self.steps += line.actions.len();
        self.proprio.extend(line.proprio.iter().flatten());
        self.actions.extend(line.actions.iter().flatten());
    }
}

fn header(source: &dyn DemoSource) -> Header {
    let spec = source.spec();
    Header {
        manifest: VERSION,
        spec: Spec {
            cameras: spec.cameras.clone(),
            proprio: spec.proprio.clone(),
            action: spec.action.clone(),
            absolute_action: spec.absolute_action.clone(),
            convention: spec.convention.clone(),
            control_hz: spec.control_hz,
        },
    }
}

/// Reads what is there, removes a line that was cut short and leaves the file at its end.
fn resume(
    path: &Path,
    file: &mut File,
    header: &Header,
    source: &dyn DemoSource,
) -> Result<Done, DataError> {
    let mut done = Done::default();
    let mut lines = Lines::open(path)?;
    let start = lines.next_line()?.map(|(_, line)| serde_json::from_slice::<Header>(line));
    let other = |what: String| {
        Err(DataError::unsupported(format!(
            "build `{}`: it already holds {what}; choose another folder or remove it",
            path.display()
        )))
    };
    match start {
        None => {
            file.set_len(0).map_err(DataError::io("write", path))?;
            append(path, file, header)?;
            return Ok(done);
        }
        Some(Ok(found)) if found == *header => {}
        Some(_) => return other("something else".to_owned()),
    }
    while let Some((_, line)) = lines.next_line()? {
        if done.complete {
            return other("lines after its last one".to_owned());
        }
        if let Ok(footer) = serde_json::from_slice::<Footer>(line) {
            done.complete = true;
            if footer.episodes != done.episodes || done.episodes != source.episodes().len() {
                return other(format!("{} episodes and says it is complete", done.episodes));
            }
            continue;
        }
        let line: Line = match serde_json::from_slice(line) {
            Ok(line) => line,
            Err(e) => return other(format!("a damaged line {}: {e}", done.episodes + 2)),
        };
        let expected = source.episodes().get(done.episodes);
        if line.episode != done.episodes || expected.is_none_or(|e| e.id != line.id) {
            return other(format!(
                "episode `{}` in place of {:?}",
                line.id,
                expected.map(|e| &e.id)
            ));
        }
        done.add(&line);
    }
    let end = lines.at;
    file.set_len(end).map_err(DataError::io("write", path))?;
    file.seek(SeekFrom::Start(end)).map_err(DataError::io("write", path))?;
    Ok(done)
}

/// Writes the images of an episode and gives its line.
fn episode_line(
    source: &dyn DemoSource,
    folder: &Path,
    episode: usize,
    done: &mut Done,
) -> Result<Line, DataError> {
    let read = source.read(episode, true)?;
    let rows = |a: &Array2<f32>| a.rows().into_iter().map(|r| r.to_vec()).collect::<Vec<_>>();
    let mut images = std::collections::BTreeMap::new();
    for (i, (camera, frames)) in read.images.iter().enumerate() {
        // A camera's name may be a path (`observation.images/top`); it becomes one folder of its own.
        let plain = |c: char| c.is_alphanumeric() || "-_".contains(c);
        let mut name: String = camera.chars().map(|c| if plain(c) { c } else { '_' }).collect();
        if name != *camera {
            name = format!("{name}_{i}");
        }
        let relative = format!("images/{episode:06}/{name}");
        let target = folder.join(&relative);
        fs::create_dir_all(&target).map_err(DataError::io("write", &target))?;
        let mut paths = Vec::with_capacity(frames.len());
        for t in 0..frames.len() {
            let (bytes, kind) = encoded(frames, t)
                .map_err(|e| DataError::episode(source.spec().location.as_ref(), episode, e))?;
            let name = format!("{t:06}.{kind}");
            let path = target.join(&name);
            fs::write(&path, bytes).map_err(DataError::io("write", &path))?;
            paths.push(format!("{relative}/{name}"));
        }
        images.insert(camera.clone(), paths);
    }
    let line = Line {
        episode,
        id: source.episodes()[episode].id.clone(),
        instruction: read.instruction,
        proprio: rows(&read.proprio),
        actions: rows(&read.actions),
        images,
    };
    done.add(&line);
    Ok(line)
}

/// A frame as a file, with its ending.
fn encoded(frames: &Frames, t: usize) -> Result<(Vec<u8>, &'static str), String> {
    if let Frames::Encoded(files) = frames {
        let file = files.get(t).ok_or("a frame is missing")?;
        let kind = match image::guess_format(file).map_err(|e| format!("step {t}: {e}"))? {
            image::ImageFormat::Jpeg => "jpg",
            image::ImageFormat::Png => "png",
            other => return Err(format!("step {t}: frames of {other:?} are not read")),
        };
        return Ok((file.to_vec(), kind));
    }
    let frame = frames.get(t)?;
    let (h, w, _) = frame.dim();
    let pixels: Vec<u8> = frame.iter().copied().collect();
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(&pixels, w as u32, h as u32, image::ExtendedColorType::Rgb8)
        .map_err(|e| e.to_string())?;
    Ok((png, "png"))
}

/// Appends one line by a single write.
fn append(path: &Path, file: &mut File, line: &impl serde::Serialize) -> Result<(), DataError> {
    let mut text = serde_json::to_vec(line).map_err(|e| DataError::unsupported(e.to_string()))?;
    text.push(b'\n');
    file.write_all(&text).map_err(DataError::io("write", path))
}
