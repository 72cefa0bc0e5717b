//! Contract checks and toy environments for tests (feature `testing`).

mod check;
mod toys;

pub use check::check_env;
pub use toys::CountingEnv;
