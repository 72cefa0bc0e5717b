//! Our models against recorded numbers of the reference implementations: `train parity <folder>`.
//!
//! A folder holds a checkpoint as `save_pretrained` writes it and, in `io.safetensors`, inputs with the outputs that the
//! reference gave. What is compared follows from the files and names that are there, so other sizes and seeds of the same
//! layout work.
//!
//! | module | what it owns |
//! |---|---|
//! | [`compare`], [`Row`], [`Kind`] | recognising a folder, one row per quantity |
//! | `models` | SigLIP, Qwen2 and Llama, Diffusion Policy |
//! | `learning` | low-rank adapters, AdamW with clipping |

mod compare;
mod learning;
mod models;

pub use compare::{BAR, Kind, Recorded, Row, compare, kind_of};
