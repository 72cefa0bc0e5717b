//! What a program said: for tests of the command line.

#![allow(dead_code, reason = "not every test asks for everything")]

use std::process::Output;

/// Both of its streams.
pub(crate) fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{out}{err}")
}

/// The ledger's digest of a run that went well.
pub(crate) fn digest(output: &Output) -> String {
    let words = text(output);
    assert!(output.status.success(), "{words}");
    let digest = words.lines().find_map(|line| line.strip_prefix("ledger "));
    let digest = digest.expect("a digest is printed").to_owned();
    assert_eq!(digest.len(), 64);
    digest
}
