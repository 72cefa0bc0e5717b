//! The page: complete, escaped, self-contained, bounded.

#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

mod report_samples;

use std::path::PathBuf;

use report_samples::{episode, frame_of, libero, pusht, scene, settle, task};
use simloop_benchmarks::report::{MAX_BYTES, REPORT_FILE, render_report, write_results};
use simloop_benchmarks::summary::{EvalSummary, ProtocolNumber};
use simloop_trainers::Status;

/// Attribute values of `name` in the page.
fn attributes<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    page.split(&format!(" {name}=\"")).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

/// The evaluations that `scripts/check_report.sh` looks at.
fn samples() -> Vec<(&'static str, EvalSummary)> {
    let mut failing = frame_of("PushT, random", "pusht", "random");
    failing.tasks = vec![task(0, "pusht", "Push the T-shaped block onto the T-shaped target.")];
    failing.episodes = (0..1000)
        .map(|trial| {
            let mut row = episode("pusht", trial, Status::Failure, 300, 3.0);
            row.thumbnail = Some(scene(trial as usize));
            row
        })
        .collect();
    settle(&mut failing);
    vec![
        ("pusht", pusht()),
        ("libero", libero(3)),
        ("withheld", libero(12)),
        ("failing", failing),
        ("empty", frame_of("PushT, interrupted at once", "pusht", "scripted")),
        ("hostile", hostile()),
    ]
}

const ATTACK: &str = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}";

/// Every foreign string is an attack, and long beyond reason.
fn hostile() -> EvalSummary {
    let attack = format!("{ATTACK}{}", "long".repeat(2000));
    let mut summary = frame_of(&attack, ATTACK, &attack);
    summary.command.clone_from(&attack);
    summary.started = Some(attack.clone());
    summary.fingerprint.insert(attack.clone(), attack.clone());
    summary.notes = vec![ATTACK.to_owned()];
    summary.protocol.name.clone_from(&attack);
    let source = format!("{ATTACK} javascript:alert(3) https://example.org/\"onmouseover=alert(4)");
    summary.protocol.numbers =
        vec![ProtocolNumber { name: attack.clone(), value: attack.clone(), source }];
    summary.tasks = vec![task(0, ATTACK, &attack)];
    for (trial, status) in [Status::Success, Status::Failure, Status::Error].into_iter().enumerate()
    {
        let mut row = episode(ATTACK, trial as u32, status, 10, 1.0);
        row.video = Some(format!("videos/{ATTACK}.mp4").replace("</", "<"));
        if let Some(fault) = &mut row.fault {
            fault.class.clone_from(&attack);
            fault.detail.clone_from(&attack);
        }
        summary.episodes.push(row);
    }
    settle(&mut summary);
    summary.tasks[0].metrics.insert(attack, 0.5);
    summary
}

#[test]
fn the_headline_says_the_rate_and_its_interval_in_words() {
    let page = render_report(&pusht()).unwrap();
    let words =
        "97 of 100 episodes succeeded: 97.0\u{a0}%, 95\u{a0}% interval 91.5\u{2013}99.0\u{a0}%";
    assert!(page.replace("<span class=\"whole\">", "").contains(words));
    assert!(page.contains(">97.0\u{a0}%</p>"));
}

#[test]
fn too_many_errors_leave_no_headline_number() {
    let page = render_report(&libero(12)).unwrap();
    assert!(page.contains("No headline number"));
    assert!(page.contains("12 of 500 episodes ended in errors, more than 1 %."));
    assert!(!page.contains("<p class=\"big\">"));
    let page = render_report(&libero(3)).unwrap();
    assert!(!page.contains("No headline number"));
    assert!(page.contains("Had all of them failed"));
    assert_eq!(page.matches("the worker did not answer").count(), 3);
}

#[test]
fn every_failure_shows_its_frame_and_links_to_its_video() {
    let summary = pusht();
    let page = render_report(&summary).unwrap();
    for row in summary.episodes.iter().filter(|e| e.status == Status::Failure) {
        let video = row.video.as_deref().unwrap();
        assert!(
            attributes(&page, "href").iter().filter(|href| **href == video).count() >= 2,
            "{video}"
        );
        assert!(page.contains(&format!("seed <span class=\"mono\">{}</span>", row.seed)));
    }
    let images = attributes(&page, "src");
    assert_eq!(images.len(), 3);
    assert!(images.iter().all(|src| src.starts_with("data:image/png;base64,iVBORw0KGgo")));
}

#[test]
fn protocol_fingerprint_command_and_digest_are_all_there() {
    let summary = libero(0);
    let page = render_report(&summary).unwrap();
    let command = format!("<span>{}</span>", summary.command.replace(' ', "</span> <span>"));
    let mut wanted: Vec<&str> = vec![&command, &summary.ledger_digest, &summary.notes[0]];
    wanted.extend(summary.fingerprint.iter().flat_map(|(name, version)| [name.as_str(), version]));
    wanted.extend(summary.protocol.numbers.iter().flat_map(|n| [n.value.as_str(), &n.source]));
    wanted.extend(summary.tasks.iter().flat_map(|t| [t.key.as_str(), &t.instruction]));
    for text in wanted {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn foreign_text_can_run_nothing_and_break_out_of_nothing() {
    let page = render_report(&hostile()).unwrap();
    for forbidden in ["<script", "<img src=x", "\"onmouseover", "href=\"javascript"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("&lt;script&gt;") && page.contains("{{ 7*7 }}"));
    for href in attributes(&page, "href") {
        assert!(
            href.starts_with("videos/") || href.starts_with("https:") || href.starts_with("data:,"),
            "{href}"
        );
    }
}

#[test]
fn the_page_asks_for_nothing_and_holds_no_script() {
    for (name, summary) in samples() {
        let page = render_report(&summary).unwrap();
        assert!(page.contains("default-src 'none'"), "{name}");
        assert!(attributes(&page, "src").iter().all(|src| src.starts_with("data:")), "{name}");
        for loader in
            ["<script", "<iframe", "<link rel=\"stylesheet", "url(", "@import", "<object", "<video"]
        {
            assert!(!page.contains(loader), "{name}: {loader}");
        }
    }
}

#[test]
fn no_page_is_larger_than_two_megabytes_and_what_is_left_out_is_said() {
    for (name, summary) in samples() {
        assert!(render_report(&summary).unwrap().len() <= MAX_BYTES, "{name}");
    }
    let mut huge = frame_of("Huge", "libero_plus", "random");
    for id in 0..2000 {
        let key = format!("libero_plus/{id}");
        huge.tasks.push(task(id, &key, &"a long instruction, ".repeat(20)));
        for trial in 0..10 {
            let mut row = episode(&key, trial, Status::Failure, 220, 0.0);
            row.video = Some(format!("videos/{id}_{trial}.mp4"));
            row.thumbnail = Some(vec![0; 30_000]);
            huge.episodes.push(row);
        }
    }
    settle(&mut huge);
    let page = render_report(&huge).unwrap();
    assert!(page.len() <= MAX_BYTES);
    for sentence in ["tasks more: see", "failures more: see", "episodes more: see"] {
        assert!(page.contains(sentence), "{sentence}");
    }
}

#[test]
fn a_page_that_cannot_be_small_is_refused() {
    let mut summary = pusht();
    summary.notes = vec!["x".repeat(MAX_BYTES)];
    assert_eq!(render_report(&summary).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn tables_have_headers_and_pictures_have_words() {
    for (name, summary) in samples() {
        let page = render_report(&summary).unwrap();
        assert_eq!(page.matches("<h1>").count(), 1, "{name}");
        assert_eq!(page.matches("<thead>").count(), page.matches("<table>").count(), "{name}");
        assert!(
            !page.replace("<th scope=", "").replace("<thead", "").contains("<th"),
            "{name}: a header without scope"
        );
        for tag in ["<img ", "<svg "] {
            for element in page.split(tag).skip(1) {
                let element = element.split('>').next().unwrap();
                let described = ["alt=\"", "aria-label=\"", "aria-hidden=\"true\""];
                assert!(
                    described.iter().any(|words| element.contains(words)),
                    "{name}: {tag}{element}"
                );
            }
        }
    }
}

#[test]
fn rendering_is_a_function_of_the_summary() {
    assert_eq!(render_report(&libero(3)).unwrap(), render_report(&libero(3)).unwrap());
}

/// Writes the pages that `scripts/check_report.sh` opens in a browser, with the folder's other file beside each.
#[test]
fn results_are_written_whole_into_their_folder() {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("report-samples");
    for (name, summary) in samples() {
        let dir = root.join(name);
        write_results(&dir, &summary).unwrap();
        write_results(&dir, &summary).unwrap();
        let mut files: Vec<String> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        files.retain(|file| file != "videos");
        files.sort();
        assert_eq!(files, ["eval_info.json", "report.html"]);
        assert_eq!(
            std::fs::read_to_string(dir.join(REPORT_FILE)).unwrap(),
            render_report(&summary).unwrap()
        );
    }
}
