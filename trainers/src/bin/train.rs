//! `train`: learn robot policies. Everything is in [`simloop_trainers::cli`].

fn main() -> std::process::ExitCode {
    simloop_trainers::cli::main()
}
