//! `serve`: a policy over the network. Everything is in [`simloop_trainers::cli::serve`].

fn main() -> std::process::ExitCode {
    simloop_trainers::cli::serve::main()
}
