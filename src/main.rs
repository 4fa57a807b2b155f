//! The daemon. Everything is in the library; see `mmapd::cli`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// A request makes some fifty small allocations, on one thread, and ends them on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mmapd::cli::run(std::env::args_os())
}
