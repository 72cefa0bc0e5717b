//! libtorch: which one is loaded, and CUDA when the machine has it.

/// The libtorch that this program needs: tch 0.24 binds exactly this release (torch-sys 0.24, `build.rs`).
pub const TORCH_VERSION: &str = "2.11.0";

/// The libtorch folder that this program was built against, from `LIBTORCH` at build time.
pub const BUILT_AGAINST: Option<&str> = option_env!("LIBTORCH");

/// What libtorch can use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// Threads libtorch uses inside one operation.
    pub intra_op_threads: i32,
    /// CUDA devices; 0 without CUDA.
    pub cuda_devices: i64,
}

/// Asks libtorch what it can use. Also proves that the library loads.
pub fn devices() -> Devices {
    Devices { intra_op_threads: tch::get_num_threads(), cuda_devices: tch::Cuda::device_count() }
}
