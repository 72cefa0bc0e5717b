//! `data collect` and `data convert`, through the program.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use simloop_trainers::data::DemoSource;
use simloop_trainers::data::lerobot::{Lerobot, LerobotOptions};

fn data(args: &[&str]) -> (bool, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_data")).args(args).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn open(path: &Path) -> Lerobot {
    Lerobot::open(path, &LerobotOptions::default()).unwrap()
}

#[test]
fn a_collection_is_a_function_of_its_seed_and_converts_to_itself() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let collect = |name: &str, workers: &str, seed: &str| {
        let out = at(name);
        let (fine, text) = data(&[
            "collect",
            "pusht",
            "--episodes",
            "3",
            "--obs",
            "pixels_agent_pos",
            "--out",
            &out,
            "--workers",
            workers,
            "--seed",
            seed,
            "--only-successes",
        ]);
        assert!(fine, "{text}");
        assert!(text.contains("3 episodes"), "{text}");
    };
    collect("a", "1", "5");
    collect("b", "2", "5");
    collect("c", "1", "6");
    let rows = |name: &str| {
        std::fs::read(folder.path().join(name).join("data/chunk-000/file-000.parquet")).unwrap()
    };
    assert!(rows("a") == rows("b"), "workers change no byte");
    assert!(rows("a") != rows("c"), "the seed does");
    let a = open(&folder.path().join("a"));
    assert_eq!(a.spec().proprio, ["agent_x_px", "agent_y_px"]);
    assert!(a.spec().convention.is_some() && a.spec().absolute_action == [true; 2]);
    let episode = a.read(0, true).unwrap();
    assert_eq!(&*episode.instruction, simloop_envs::pusht::INSTRUCTION);
    assert_eq!(episode.images["pixels"].len(), episode.len());

    let (fine, text) = data(&["convert", &at("a"), &at("d")]);
    assert!(fine, "{text}");
    assert!(rows("a") == rows("d"));
    let (fine, text) = data(&["convert", &at("a"), &at("d")]);
    assert!(!fine && text.contains("it exists"), "{text}");
    let (fine, text) = data(&["inspect", &at("d")]);
    assert!(fine && text.contains("no fault found"), "{text}");
}

#[test]
fn two_goals_are_told_apart_by_their_instructions() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("two");
    let path = out.display().to_string();
    let (fine, text) =
        data(&["collect", "pusht", "--two-goals", "--episodes", "2", "--out", &path]);
    assert!(fine, "{text}");
    let source = open(&out);
    let said: BTreeSet<&str> = source.episodes().iter().map(|e| &*e.instruction).collect();
    assert_eq!((source.episodes().len(), said.len()), (4, 2), "{said:?}");
}

#[test]
fn a_policy_that_is_not_there_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("none").display().to_string();
    let args = ["collect", "pusht", "--episodes", "1", "--policy", "/no/such", "--out", &out];
    let (fine, text) = data(&args);
    assert!(!fine && text.contains("/no/such"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
