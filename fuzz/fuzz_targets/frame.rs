//! See `mmapd_fuzz::frame`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmapd_fuzz::frame::run(data));
