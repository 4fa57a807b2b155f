//! See `mmapd_fuzz::page`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmapd_fuzz::page::run(data));
