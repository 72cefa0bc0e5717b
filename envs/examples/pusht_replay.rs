//! Prints the replay report of a recording: `pusht_replay FILE`.
#![expect(clippy::print_stdout, reason = "an example's report goes to standard output")]

use std::path::PathBuf;

use simloop_envs::pusht::replay_file;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: pusht_replay FILE")?;
    let report = replay_file(&PathBuf::from(path), None)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
