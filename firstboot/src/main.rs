//! `firstboot`, the first-boot agent.

fn main() -> std::process::ExitCode {
    firstboot::cli::main()
}
