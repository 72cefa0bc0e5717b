//! Video and view of a trial, off the control loop's thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use simloop_envs::widowx::RobotObs;

use super::station::Station;
use crate::video::{VideoFormat, VideoWriter, thumbnail_png};

/// Frames that may wait to be encoded: 12 s of a trial. More are dropped and counted rather than delaying the robot.
const QUEUE: usize = 60;
/// Longest side of a thumbnail, pixels.
const THUMBNAIL_SIDE: u32 = 160;

/// Takes observations of one trial, shows them and makes a video of them.
pub struct Recorder {
    sender: Option<SyncSender<RobotObs>>,
    thread: Option<JoinHandle<Result<VideoWriter, String>>>,
    dropped: usize,
    patient: bool,
    folder: PathBuf,
}

/// What is left of a trial.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Relative to the result folder.
    pub video: Option<String>,
    /// Why there is none, or what is missing in it.
    pub note: Option<String>,
}

impl Recorder {
    /// Starts a video in `dir/videos` at `fps`. A `patient` one waits for the encoder instead of dropping frames: for simulated
    /// arms that run faster than the clock.
    pub fn start(dir: &Path, fps: f64, station: Arc<Station>, patient: bool) -> Self {
        let folder = dir.join("videos");
        let (sender, receiver) = sync_channel::<RobotObs>(QUEUE);
        let to = folder.clone();
        let thread = std::thread::spawn(move || {
            let mut writer =
                VideoWriter::create(&to, fps, VideoFormat::default()).map_err(|e| e.to_string());
            let mut last = None;
            for obs in receiver {
                let frame = obs.frame(None).map_err(|e| e.to_string())?;
                station.show(frame.clone());
                if let Ok(writer) = &mut writer {
                    writer.push(&frame).map_err(|e| e.to_string())?;
                }
                last = Some(frame);
            }
            if let Some(png) = last.and_then(|f| thumbnail_png(&f, THUMBNAIL_SIDE).ok()) {
                // Without it the report shows no picture.
                let _ = std::fs::write(to.join(".thumbnail.png"), png);
            }
            writer
        });
        Self { sender: Some(sender), thread: Some(thread), dropped: 0, patient, folder }
    }

    /// Takes one observation. Waits for nothing unless it is patient.
    pub fn push(&mut self, obs: &RobotObs) {
        let Some(sender) = &self.sender else { return };
        if self.patient {
            // A recorder that ended says why when it is finished.
            let _ = sender.send(obs.clone());
        } else if let Err(TrySendError::Full(_)) = sender.try_send(obs.clone()) {
            self.dropped += 1;
        }
    }

    /// Ends the video and names it.
    pub fn finish(mut self, stem: &str) -> Recorded {
        self.sender = None;
        let Some(thread) = self.thread.take() else { return Recorded::default() };
        let ended = thread.join().unwrap_or_else(|_| Err("the recorder panicked".to_owned()));
        match ended.and_then(|writer| writer.finish(stem).map_err(|e| e.to_string())) {
            Ok(path) => {
                let thumbnail = self.folder.join(".thumbnail.png");
                let _ = std::fs::rename(thumbnail, self.folder.join(format!("{stem}.png")));
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let note = (self.dropped > 0)
                    .then(|| format!("{} frames are missing in the video", self.dropped));
                Recorded { video: Some(format!("videos/{name}")), note }
            }
            Err(why) => Recorded { video: None, note: Some(format!("no video: {why}")) },
        }
    }
}
