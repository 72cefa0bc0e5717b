//! A finding, the whole diagnosis, and its table.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};

use super::{Probe, libero, machine, torch};

/// How good a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, but slower, poorer or not for everything.
    Warn,
    /// Stops something.
    Fault,
}

/// What is known about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The thing: `libtorch`, `mujoco`, `assets`, …
    pub subject: &'static str,
    /// How good it is.
    pub status: Status,
    /// What was found and, where it is wrong, what was needed.
    pub found: String,
    /// The one line that fixes it; empty when nothing is wrong.
    pub remedy: String,
}

impl Finding {
    /// A thing as it should be.
    pub(super) fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, status: Status::Ok, found: found.into(), remedy: String::new() }
    }

    /// A thing that works, and what would be better.
    pub(super) fn warn(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { subject, status: Status::Warn, found: found.into(), remedy: remedy.into() }
    }

    /// A thing that stops something, and the line that fixes it.
    pub(super) fn fault(
        subject: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { subject, status: Status::Fault, found: found.into(), remedy: remedy.into() }
    }
}

/// Judges everything that the probe points at, in a fixed order.
pub fn diagnose(probe: &Probe) -> Vec<Finding> {
    let mut findings = torch::judge(probe);
    findings.extend(libero::judge(probe));
    findings.extend(machine::judge(probe));
    findings
}

/// Diagnoses this machine and writes the table and the remedies to `out`. Returns the exit code: 1 when something is
/// stopped by a fault, 0 otherwise.
///
/// # Errors
/// When `out` cannot be written.
pub fn run(out: &mut dyn Write) -> io::Result<u8> {
    report(&diagnose(&Probe::here()), out)
}

/// Writes findings as a table, then one line per remedy, so that it can be copied whole.
pub(super) fn report(findings: &[Finding], out: &mut dyn Write) -> io::Result<u8> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for finding in findings {
        let mark = match finding.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fault => "FAULT",
        };
        table.add_row([finding.subject, mark, &finding.found]);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    for finding in findings.iter().filter(|f| f.status != Status::Ok) {
        writeln!(out, "\n{}: {}\n  fix: {}", finding.subject, finding.found, finding.remedy)?;
    }
    let faults = findings.iter().filter(|f| f.status == Status::Fault).count();
    let warnings = findings.iter().filter(|f| f.status == Status::Warn).count();
    writeln!(out, "\n{faults} faults, {warnings} warnings")?;
    Ok(u8::from(faults > 0))
}
