//! Demonstrations: readers of the formats people have, and what is built on them.
//!
//! | module | what it owns |
//! |---|---|
//! | [`DemoSource`], [`SourceSpec`], [`DemoEpisode`] | what every reader offers: episodes |
//! | [`pusht_zarr`] | diffusion_policy's PushT demonstrations, on [`zarr`] and [`blosc`] |
//! | [`hdf5`] | robomimic, LIBERO, robosuite and D4RL files |
//! | [`lerobot`] | LeRobot v2.0, v2.1 and v3.0: parquet, images, AV1 and H.264 videos |
//! | [`Dataset`], [`DemoSample`], [`DemoBatch`] | windows of observations with the chunk that followed |
//! | [`WindowDataset`], [`WindowOptions`], [`Align`] | the windows of a source's episodes |
//! | [`split()`] | which episodes train and which validate |
//! | [`DataStatistics`] | what normalisers are made from, and OpenVLA's file of it |
//! | [`Loader`] | batches made ahead by threads, in an order that only the seed decides |
//! | [`collect`], [`convert()`] | demonstrations from a simulator; any data set as LeRobot v3.0 |
//! | [`Augment`], [`pusht_mirror`] | what is done to a sample before a policy sees it |

mod augment;
mod cache;
mod convert;
mod dataset;
mod error;
mod loader;
mod source;
mod split;
mod statistics;
#[cfg(test)]
pub(crate) mod toys;
mod video;
mod window;

pub mod blosc;
pub mod collect;
pub mod hdf5;
pub mod lerobot;
pub mod pusht_mirror;
pub mod pusht_zarr;
pub mod zarr;

pub use augment::Augment;
pub use convert::{ConvertOptions, convert};
pub use dataset::{Dataset, DemoBatch, DemoSample};
pub use error::DataError;
pub use loader::{Loader, LoaderConfig, LoaderPosition};
pub use pusht_zarr::PushtZarr;
pub use source::{DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec, decode};
pub use split::{Split, split};
pub use statistics::{DataStatistics, load_statistics, save_statistics};
pub use window::{Align, WindowDataset, WindowOptions};
