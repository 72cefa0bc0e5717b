//! LeRobot data sets: v2.0, v2.1 and v3.0 are read, v3.0 is written.
//!
//! | version | episodes | tasks | frames | videos |
//! |---|---|---|---|---|
//! | v2.0, v2.1 | `meta/episodes.jsonl` | `meta/tasks.jsonl` | `data/chunk-000/episode_000000.parquet`, one episode each | `videos/chunk-000/{key}/episode_000000.mp4` |
//! | v3.0 | `meta/episodes/chunk-000/file-000.parquet` | `meta/tasks.parquet` | `data/chunk-000/file-000.parquet`, many episodes each | `videos/{key}/chunk-000/file-000.mp4` |
//!
//! Source: lerobot 0.4.4, `lerobot/datasets/{utils,lerobot_dataset}.py`, and files that it wrote.
//!
//! # Keys
//! | ours | theirs, the first that is there |
//! |---|---|
//! | `proprio` | `observation.state`, `observation/state`, `state` |
//! | `action` | `action`, `actions` |
//! | camera `NAME` | every feature of dtype `image` or `video`: `observation.images.NAME`, `observation.NAME`, `NAME` |
//! | instruction | the episode's first task |
//!
//! [`LerobotOptions`] overrides each. Frame `t` is what was seen before action `t`. Actions past the end of an episode repeat
//! the last one, as lerobot's own loader does, so every number counts as absolute unless the options say otherwise. What an
//! action means is not in the format: this project's writer adds it to `info.json` under `simloop`; else the convention is
//! `None` unless given.
//!
//! # Traps
//! * `meta/stats.json` of lerobot has wrong quantiles for several episodes (it averages theirs); they are never read here, and
//!   the writer computes them over all frames.
//! * `info.json` may name paths and codecs that the files do not have: files are looked for, and codecs are read from the
//!   videos.

mod episodes;
mod info;
mod read;
mod rows;
mod summary;
mod table;
mod write;

pub use read::{Lerobot, LerobotOptions};
pub use write::LerobotWriter;
