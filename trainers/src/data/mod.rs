//! Demonstrations: readers of the formats people have, and what is built on them.
//!
//! | module | what it owns |
//! |---|---|
//! | [`DemoSource`], [`SourceSpec`], [`DemoEpisode`] | what every reader offers: episodes |
//! | [`Dataset`], [`DemoSample`], [`DemoBatch`] | windows of observations with the chunk that followed |

mod dataset;
mod error;
mod source;

pub use dataset::{Dataset, DemoBatch, DemoSample};
pub use error::DataError;
pub use source::{DemoEpisode, DemoSource, EpisodeMeta, Frames, SourceSpec, decode};
