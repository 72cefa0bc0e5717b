//! How a model computes, apart from its parameters: number type, dropout's noise, checkpoints awaiting their backward.
//!
//! One [`Runtime`] is shared by a [`Params`](super::Params) and all layers built from it, so that a switch thrown on the
//! parameters reaches every layer.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use tch::Kind;

use super::checkpoint::Tape;
use crate::NoiseStream;

/// Shared switches.
#[derive(Default)]
pub(crate) struct Runtime {
    /// What linear layers and convolutions compute in, if not f32.
    pub(crate) compute: Cell<Option<Kind>>,
    /// Whether adapters are merged into the weights and must not be added again.
    pub(crate) merged: Cell<bool>,
    /// Where dropout draws from; none while acting.
    pub(crate) dropout: RefCell<Option<NoiseStream>>,
    /// Whether blocks are recomputed in the backward pass.
    pub(crate) checkpointing: Cell<bool>,
    /// Blocks that await their backward pass, in forward order.
    pub(crate) tapes: RefCell<Vec<Tape>>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("compute", &self.compute.get())
            .field("merged", &self.merged.get())
            .field("checkpointing", &self.checkpointing.get())
            .finish_non_exhaustive()
    }
}

/// A handle to it.
pub(crate) type RuntimeRef = Rc<Runtime>;
