//! Contract checks and toy environments for tests (feature `testing`).

pub mod alloc;
mod check;
mod toys;

pub use check::check_env;
pub use toys::CountingEnv;
