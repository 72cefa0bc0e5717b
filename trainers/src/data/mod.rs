//! Demonstrations: readers of the formats people have, and what is built on them.
//!
//! | module | what it owns |
//! |---|---|
//! | [`DemoSource`], [`SourceSpec`], [`DemoEpisode`] | what every reader offers: episodes |
//! | [`pusht_zarr`] | diffusion_policy's PushT demonstrations, on [`zarr`] and [`blosc`] |
//! | [`rlds`] | RLDS as TFDS stores it, on [`tfrecord`], [`example`] and [`tfds`]; [`oxe`] standardises as OpenVLA does |
//! | [`manifest`] | this project's own text and image files |
//! | [`hdf5`] | robomimic, LIBERO, robosuite and D4RL files |
//! | [`lerobot`] | LeRobot v2.0, v2.1 and v3.0: parquet, images, AV1 and H.264 videos |
//! | [`Dataset`], [`DemoSample`], [`DemoBatch`] | windows of observations with the chunk that followed |
//! | [`WindowDataset`], [`WindowOptions`], [`Align`] | the windows of a source's episodes |
//! | [`Mixture`] | several data sets as one, by weight |
//! | [`open_source`], [`inspect()`] | any data set by its path; what it holds and what is wrong with it |
//! | [`split()`] | which episodes train and which validate |
//! | [`DataStatistics`] | what normalisers are made from, and OpenVLA's file of it |
//! | [`Loader`] | batches made ahead by threads, in an order that only the seed decides |
//! | [`collect`], [`convert()`] | demonstrations from a simulator; any data set as LeRobot v3.0 |
//! | [`Augment`], [`pusht_mirror`] | what is done to a sample before a policy sees it |

mod augment;
mod cache;
mod concat;
mod convert;
mod dataset;
mod error;
mod inspect;
mod loader;
mod mixture;
mod open;
mod source;
mod split;
mod statistics;
#[cfg(test)]
pub(crate) mod toys;
mod video;
mod window;
#[cfg(test)]
#[path = "../../tests/common/zarr_writer.rs"]
pub(crate) mod zarr_writer;

pub mod blosc;
pub mod collect;
pub mod example;
pub mod hdf5;
pub mod lerobot;
pub mod manifest;
pub mod oxe;
pub mod pusht_mirror;
pub mod pusht_zarr;
pub mod rlds;
pub mod tfds;
pub mod tfrecord;
pub mod zarr;

pub use augment::Augment;
pub use concat::Concat;
pub use convert::{ConvertOptions, convert};
pub use dataset::{Dataset, DemoBatch, DemoSample};
pub use error::DataError;
pub use inspect::{CameraSummary, InspectOptions, Inspection, NumberSummary, inspect};
pub use loader::{Loader, LoaderConfig, LoaderPosition};
pub use manifest::{ManifestProgress, ManifestSource, build_manifest};
pub use mixture::{MIXTURES, Mixture, MixturePart, NamedMixture, named_mixture};
pub use open::{OpenOptions, open_source};
pub use pusht_zarr::PushtZarr;
pub use rlds::{RldsOptions, RldsSource};
pub use source::{DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec, decode};
pub use split::{Split, split};
pub use statistics::{DataStatistics, load_statistics, save_statistics, statistics_json};
pub use window::{Align, WindowDataset, WindowOptions};
