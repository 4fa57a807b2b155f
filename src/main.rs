//! The daemon. Everything is in the library; see `mmapd::cli`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    mmapd::cli::run(std::env::args_os())
}
