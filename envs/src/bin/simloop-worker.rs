//! PushT for a program that starts workers: see `simloop_envs::pusht::worker`.

use std::process::ExitCode;

use simloop_envs::pusht::worker;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the answers of a program")]
fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(worker::ASK_BUILD) {
        println!("{}", worker::BUILD);
        return ExitCode::SUCCESS;
    }
    match worker::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", worker::PROGRAM);
            ExitCode::from(2)
        }
    }
}
