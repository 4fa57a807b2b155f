//! See `mmapd_fuzz::command`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmapd_fuzz::command::run(data));
