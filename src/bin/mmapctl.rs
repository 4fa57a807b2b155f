//! The command line client. Everything is in the library; see `mmapd::ctl`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    mmapd::ctl::run(std::env::args_os())
}
