//! `pgkiln`: parse arguments, start logging, call the library, map the error to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgkiln::cli::main()
}
