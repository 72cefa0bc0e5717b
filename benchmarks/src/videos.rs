//! Videos after the fact: chosen episodes are simulated again from the ledger with a camera on them.
//!
//! Nothing is rendered while numbers are made, and every video proves on the way that its episode can be reproduced: the
//! trace hash of the second run must be the one in the ledger.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::Array2;
use simloop_envs::{Env, EnvFactory, EnvId, ResetRequest};
use simloop_trainers::stop::StopFlag;
use simloop_trainers::video::{
    VideoError, VideoFormat, VideoWriter, film as again, thumbnail_png, video_stem,
};
use simloop_trainers::{EpisodeRecord, Status};

use crate::BenchError;
use crate::ledger::actions_path;

/// A video that was made.
#[derive(Clone, Debug)]
pub struct Video {
    /// Relative to the result folder, with forward slashes.
    pub path: String,
    /// Its last frame, a small PNG.
    pub thumbnail: Option<Vec<u8>>,
}

/// Which episodes get one.
#[derive(Clone, Copy, Debug)]
pub struct VideoChoice {
    /// The first so many successes; 0 for no videos at all.
    pub successes: u32,
    /// The first so many failures; `None` for every one.
    pub failures: Option<u32>,
}

impl VideoChoice {
    /// The chosen records, in order of (task, trial).
    pub fn choose<'a>(&self, records: &'a [EpisodeRecord]) -> Vec<&'a EpisodeRecord> {
        let mut sorted: Vec<_> = records.iter().filter(|r| r.status != Status::Error).collect();
        sorted.sort_by_key(|r| (r.task.as_str(), r.trial));
        if self.successes == 0 {
            return Vec::new();
        }
        let failures = self.failures.map_or(usize::MAX, |n| n as usize);
        let of = |status| sorted.iter().copied().filter(move |r| r.status == status);
        of(Status::Success)
            .take(self.successes as usize)
            .chain(of(Status::Failure).take(failures))
            .collect()
    }
}

/// What it takes to film.
pub struct Filming<'a> {
    /// The result folder.
    pub dir: &'a Path,
    /// Builds an environment whose `render` shows something.
    pub viewer: &'a EnvFactory,
    /// Frames per second.
    pub fps: f64,
    /// Environments at once.
    pub workers: usize,
}

/// How an episode began.
pub struct Beginning {
    /// Its task's number within the suite.
    pub task_id: u32,
    /// The request that begins it again.
    pub request: ResetRequest,
}

/// Longest side of a thumbnail, pixels.
const THUMBNAIL_SIDE: u32 = 160;

/// Films the chosen episodes. A fault or a trace that differs costs that video and adds a note, not the run.
///
/// `begin` tells how an episode began.
pub fn film(
    filming: &Filming<'_>,
    chosen: &[&EpisodeRecord],
    begin: &(dyn Fn(&EpisodeRecord) -> Option<Beginning> + Sync),
    stop: &StopFlag,
    done: &(dyn Fn() + Sync),
) -> (BTreeMap<(String, u32), Video>, Vec<String>) {
    let next = AtomicUsize::new(0);
    let results = Mutex::new((BTreeMap::new(), Vec::new()));
    let put = |record: &EpisodeRecord, result: Result<Video, String>| {
        let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match result {
            Ok(video) => {
                results.0.insert((record.task.clone(), record.trial), video);
            }
            Err(why) => {
                results
                    .1
                    .push(format!("No video of {} trial {}: {why}", record.task, record.trial));
            }
        }
    };
    std::thread::scope(|scope| {
        for worker in 0..filming.workers.clamp(1, chosen.len().max(1)) {
            let (next, put) = (&next, &put);
            scope.spawn(move || {
                let mut env = None;
                while let Some(record) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if stop.is_set() {
                        return;
                    }
                    let result = film_one(filming, &mut env, EnvId(worker), record, begin(record));
                    if result.is_err() {
                        env = None;
                    }
                    put(record, result.map_err(|e| e.to_string()));
                    done();
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn film_one(
    filming: &Filming<'_>,
    slot: &mut Option<Box<dyn Env>>,
    id: EnvId,
    record: &EpisodeRecord,
    begin: Option<Beginning>,
) -> Result<Video, BenchError> {
    let begin = begin
        .ok_or_else(|| BenchError::usage("know how it began; its task is not in the suite"))?;
    let source = actions_path(filming.dir, &record.task, record.trial);
    let actions: Array2<f32> =
        ndarray_npy::read_npy(&source).map_err(|e| BenchError::folder(&source, e.to_string()))?;
    let env = match slot {
        Some(env) => env,
        None => slot.insert((filming.viewer)(id)?),
    };
    let video = |e: VideoError| BenchError::folder(filming.dir, e.to_string());
    let mut writer =
        VideoWriter::create(&filming.dir.join("videos"), filming.fps, VideoFormat::default())
            .map_err(video)?;
    let last = again(env.as_mut(), &begin.request, actions.view(), &record.trace, &mut writer)
        .map_err(|e| match e {
            VideoError::Env(e) => e.into(),
            e @ (VideoError::Blind | VideoError::Differs) => BenchError::usage(e.to_string()),
            e => video(e),
        })?;
    let outcome = if record.status == Status::Success { "success" } else { "failure" };
    let stem = video_stem(begin.task_id as usize, record.trial as usize, outcome);
    let written = writer.finish(&stem).map_err(video)?;
    let relative =
        written.strip_prefix(filming.dir).unwrap_or(&written).to_string_lossy().replace('\\', "/");
    let thumbnail = thumbnail_png(&last, THUMBNAIL_SIDE).ok();
    Ok(Video { path: relative, thumbnail })
}
