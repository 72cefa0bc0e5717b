//! Build script of every crate that links libtorch: its programs and tests find the library without `LD_LIBRARY_PATH`.
//!
//! torch-sys knows the folder it linked (`links = "tch"` metadata, direct dependents only); torch's rpath of its own
//! serves torch-sys alone. `SIMLOOP_LIBTORCH_LIB` tells the crate the folder.

#![expect(clippy::print_stdout, reason = "a build script speaks to cargo through stdout")]

fn main() {
    println!("cargo:rerun-if-changed=../scripts/rpath.rs");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .expect("torch-sys is a direct dependency and prints libtorch_lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo:rustc-env=SIMLOOP_LIBTORCH_LIB={lib}");
}
