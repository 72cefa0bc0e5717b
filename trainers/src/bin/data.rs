//! `data`: look at demonstrations and bring them into other formats. Everything is in [`simloop_trainers::cli::data`].

fn main() -> std::process::ExitCode {
    simloop_trainers::cli::data::main()
}
