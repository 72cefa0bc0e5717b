//! `eval_info.json`: read as `LeRobot`'s own tools read it.

#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

mod report_samples;

use std::process::Command;

use report_samples::{frame_of, libero, pusht};
use serde_json::{Value, json};
use simloop_benchmarks::eval_info::{eval_info, render_eval_info};
use simloop_benchmarks::summary::EvalSummary;
use simloop_trainers::Status;

/// Reads the file with Python's standard library alone, as `LeRobot`'s metrics parser does: `aggregated` or `overall`,
/// `pc_success` neither missing nor NaN, the rest by its type; then the lists of `eval_policy_all`.
const PARSER: &str = r#"
import json, math, sys
def refuse(constant):
    raise ValueError(constant)
info = json.load(sys.stdin, parse_constant=refuse)
out = {"pc_success": None}
for key in ("aggregated", "overall"):
    part = info.get(key, {})
    pc = part.get("pc_success")
    if pc is not None and not math.isnan(pc):
        assert isinstance(part["n_episodes"], int)
        out = {"pc_success": float(pc), "n_episodes": part["n_episodes"],
               "avg_sum_reward": float(part["avg_sum_reward"]), "eval_s": float(part["eval_s"])}
        break
out["successes"] = 0
out["listed"] = 0
for task in info["per_task"]:
    assert isinstance(task["task_group"], str) and isinstance(task["task_id"], int)
    metrics = task["metrics"]
    assert set(metrics) == {"sum_rewards", "max_rewards", "successes", "video_paths"}
    lengths = {len(metrics[k]) for k in ("sum_rewards", "max_rewards", "successes")}
    assert len(lengths) == 1
    assert all(isinstance(s, bool) for s in metrics["successes"])
    out["successes"] += sum(metrics["successes"])
    out["listed"] += len(metrics["successes"])
for group in info["per_group"].values():
    assert {"avg_sum_reward", "avg_max_reward", "pc_success", "n_episodes", "video_paths"} <= set(group)
assert {"avg_sum_reward", "avg_max_reward", "pc_success", "n_episodes", "eval_s", "eval_ep_s", "video_paths"} <= set(info["overall"])
print(json.dumps(out))
"#;

/// What the parser read, or `None` without a Python.
fn parsed_by_python(summary: &EvalSummary) -> Option<Value> {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = Command::new("python3")
        .args(["-I", "-c", PARSER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take().unwrap().write_all(render_eval_info(summary).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_parser_of_lerobots_keys_reads_it() {
    let summary = libero(3);
    let Some(read) = parsed_by_python(&summary) else {
        println!("skipped: no python3");
        return;
    };
    let (k, n) = (summary.headline.successes, summary.headline.completed);
    assert!((read["pc_success"].as_f64().unwrap() - 100.0 * k as f64 / n as f64).abs() < 1e-9);
    assert_eq!(read["n_episodes"], json!(n));
    assert_eq!(read["eval_s"].as_f64().unwrap(), 7384.0);
    assert!((read["avg_sum_reward"].as_f64().unwrap() - k as f64 / n as f64).abs() < 1e-12);
    assert_eq!((read["successes"].as_u64().unwrap(), read["listed"].as_u64().unwrap()), (k, n));
}

#[test]
fn a_withheld_headline_is_null_for_every_reader() {
    let info = eval_info(&libero(12));
    assert_eq!(info["overall"]["pc_success"], Value::Null);
    assert!(info["overall"]["withheld"].as_str().unwrap().contains("12 of 500"));
    assert_eq!(info["overall"]["n_errors"], json!(12));
    if let Some(read) = parsed_by_python(&libero(12)) {
        assert_eq!(read["pc_success"], Value::Null);
    }
}

#[test]
fn nothing_to_average_is_null_and_not_nan() {
    let empty = frame_of("nothing", "pusht", "scripted");
    let info = eval_info(&empty);
    for key in ["pc_success", "avg_sum_reward", "avg_max_reward", "ci95"] {
        assert_eq!(info["overall"][key], Value::Null, "{key}");
    }
    assert_eq!(info["overall"]["n_episodes"], json!(0));
    parsed_by_python(&empty);
}

#[test]
fn errors_are_counted_apart_and_enter_no_list() {
    let summary = libero(3);
    let info = eval_info(&summary);
    let task = &info["per_task"][4];
    assert_eq!(task["n_errors"], json!(3));
    assert_eq!(task["n_episodes"], json!(47));
    assert_eq!(task["metrics"]["successes"].as_array().unwrap().len(), 47);
    assert_eq!(task["seeds"].as_array().unwrap().len(), 47);
    assert_eq!(info["seeds"]["episodes"].as_array().unwrap().len(), 500);
}

#[test]
fn percentages_run_to_a_hundred_and_videos_are_relative() {
    let summary = pusht();
    let info = eval_info(&summary);
    assert_eq!(info["overall"]["pc_success"], json!(97.0));
    let ci: Vec<f64> =
        info["overall"]["ci95"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert!((ci[0] - 91.548).abs() < 1e-3 && (ci[1] - 98.974).abs() < 1e-3, "{ci:?}");
    assert_eq!(info["overall"]["eval_ep_s"], json!(34.6 / 100.0));
    let videos = info["overall"]["video_paths"].as_array().unwrap();
    let kept = summary.episodes.iter().filter(|e| e.video.is_some()).count();
    assert_eq!(videos.len(), kept);
    assert!(videos.iter().all(|path| path.as_str().unwrap().starts_with("videos/task0000_ep")));
    let failures = summary.episodes.iter().filter(|e| e.status == Status::Failure).count();
    let named =
        videos.iter().filter(|path| path.as_str().unwrap().ends_with("_failure.mp4")).count();
    assert_eq!(failures, named);
}

#[test]
fn what_decides_a_result_is_written_down() {
    let summary = libero(0);
    let info = eval_info(&summary);
    assert_eq!(info["fingerprint"]["mujoco"], json!("3.2.3"));
    assert_eq!(info["protocol"]["numbers"][0]["value"], json!("220 steps"));
    assert_eq!(info["ledger_digest"], json!(summary.ledger_digest));
    assert_eq!(info["seeds"]["run"], json!(0));
    assert_eq!(info["seeds"]["episodes"][0].as_u64().unwrap(), 14_597_723_763_964_911_870);
}
