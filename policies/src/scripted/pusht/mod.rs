//! A scripted expert for PushT: it walks round the block and pushes, from the true state.
//!
//! The block of gym-pusht has neither momentum nor friction, so a push at one contact moves it along an arc that is
//! known in closed form (`push`). A beam search strings a few such pushes and the walks between them together
//! (`plan`) and the agent carries out the first of them (`pusher`); one step later it looks again.
//!
//! | module | what it owns |
//! |---|---|
//! | `geometry` | poses, distances from the T |
//! | `push` | contacts and the arcs that pushing at them makes |
//! | `squeeze` | the same beside a wall |
//! | `walk` | ways round the T, the agent's dynamics, targets that do not run into the block |
//! | `plan` | the search |
//! | `pusher` | one target per control step, and when to drop a plan |
//! | `expert` | [`PushtExpert`], the same as an [`Expert`](crate::Expert) |

mod expert;
mod geometry;
mod plan;
mod push;
mod pusher;
mod squeeze;
mod walk;

pub use expert::PushtExpert;
