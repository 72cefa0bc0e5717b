//! `bench`: benchmark robot policies in simulation. Everything is in [`simloop_benchmarks::cli`].

fn main() -> std::process::ExitCode {
    simloop_benchmarks::cli::main()
}
