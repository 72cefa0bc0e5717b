//! `kill -9` while checkpoints are written.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::Rng as _;
use simloop_envs::SeedTree;
use simloop_trainers::checkpoint::{Origin, load_state, verify};
use simloop_trainers::observer::{Observers, TrainEvent, TrainObserver};
use simloop_trainers::offline::LoopOptions;
use simloop_trainers::run::{Existing, RunFolder};
use simloop_trainers::stop::StopFlag;

use super::toy::{ToyData, ToyWorld, options, train};

const FOLDER: &str = "SIMLOOP_CRASH_FOLDER";

/// Says what is saved, where a killed process cannot take it back.
struct Announcer(std::path::PathBuf);

impl TrainObserver for Announcer {
    fn name(&self) -> &'static str {
        "announcer"
    }

    fn on_event(&mut self, event: &TrainEvent<'_>) -> Result<(), String> {
        let text = match event {
            TrainEvent::Started { update, .. } => format!("started {update}\n"),
            TrainEvent::Saved { update, .. } => format!("saved {update}\n"),
            _ => return Ok(()),
        };
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&self.0).unwrap();
        file.write_all(text.as_bytes()).map_err(|e| e.to_string())
    }
}

/// Not a test of its own: the process that is killed.
#[test]
#[ignore = "the child of `a_killed_run_resumes_from_its_newest_complete_step`"]
fn saving_loop() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    tch::set_num_threads(1);
    let mut observers = Observers::default();
    observers.push(Announcer(folder.join("announced")));
    let options = LoopOptions {
        save_every: 1,
        evaluate_every: 3,
        best_metric: Some("eval/mean_score".to_owned()),
        ..options(1_000_000)
    };
    let mut score = 0.0;
    let mut world = ToyWorld {
        score: Box::new(move || {
            score += 1.0;
            score
        }),
    };
    let data = ToyData { poison: usize::MAX };
    let (end, ..) = train(
        &folder.join("run"),
        &options,
        data,
        &mut world,
        &mut observers,
        &StopFlag::default(),
    );
    end.unwrap();
}

/// The last number announced with this word.
fn announced(folder: &Path, word: &str) -> Option<u64> {
    let text = std::fs::read_to_string(folder.join("announced")).unwrap_or_default();
    text.lines().rev().find_map(|l| l.strip_prefix(word)?.trim().parse().ok())
}

#[test]
fn a_killed_run_resumes_from_its_newest_complete_step() {
    let rounds: u32 =
        std::env::var("SIMLOOP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let root = tempfile::tempdir().unwrap();
    let mut rng = SeedTree::new(0).child("kills").rng();
    let mut leftovers = 0;
    let mut expected = 0;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::saving_loop", "--ignored", "--nocapture"])
            .env(FOLDER, root.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Wait until this process trains, then for a moment that nobody can foresee.
        let before = announced(root.path(), "saved ");
        let patience = Instant::now();
        while announced(root.path(), "saved ") == before {
            assert!(patience.elapsed() < Duration::from_mins(2), "round {round}: no checkpoint");
            assert!(
                child.try_wait().unwrap().is_none(),
                "round {round}: the child ended by itself"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..60_000)));
        child.kill().unwrap();
        child.wait().unwrap();

        assert_eq!(announced(root.path(), "started "), Some(expected), "round {round}");
        let saved = announced(root.path(), "saved ").unwrap();
        let run = root.path().join("run");
        let dirs = |dir: &Path| simloop_trainers::checkpoint::entry_names(dir).unwrap();
        let tmp = |dir: &Path| dirs(dir).iter().filter(|n| n.contains(".tmp-")).count();
        leftovers += tmp(&run) + tmp(&run.join("checkpoints"));
        // `last` and `best` are whole whatever happened.
        verify(&run.join("last")).unwrap_or_else(|e| panic!("round {round}: {e}"));
        if run.join("best").exists() {
            verify(&run.join("best")).unwrap_or_else(|e| panic!("round {round}: {e}"));
        }
        let folder = RunFolder::open(&run, Existing::Resume, Origin::default()).unwrap();
        let (update, path) = folder.newest().unwrap().unwrap();
        // What was announced as saved is there; at most the one after it is too.
        assert!(update == saved || update == saved + 1, "round {round}: {update} after {saved}");
        assert_eq!(load_state(&path).unwrap().1.update, update);
        assert_eq!(tmp(&run) + tmp(&run.join("checkpoints")), 0, "round {round}: not swept");
        expected = update;
    }
    eprintln!("{rounds} kills, {expected} updates, {leftovers} unfinished folders swept");
}
