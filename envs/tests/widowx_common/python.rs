//! The Python of the WidowX stand-in server.

use std::path::PathBuf;

/// The Python that `scripts/widowx.sh` made, or `None` after saying why there is none.
pub(crate) fn python() -> Option<PathBuf> {
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.simloop/widowx/bin/python");
    let works = std::process::Command::new(&python)
        .args(["-c", "import lz4.frame, numpy, zmq"])
        .output()
        .is_ok_and(|output| output.status.success());
    if works {
        return Some(python);
    }
    println!(
        "skipped: no Python with pyzmq, lz4 and numpy in .simloop/widowx; scripts/widowx.sh makes it"
    );
    None
}
