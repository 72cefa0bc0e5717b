//! The training loop as a whole: what it promises about resuming, crashes, full disks and broken numbers.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]
#![expect(clippy::print_stdout, reason = "what is skipped is said")]

mod crash;
mod disk;
mod offline;
mod program;
mod resume;
mod toy;
