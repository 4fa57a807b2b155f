//! See `mmapd_fuzz::segment`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmapd_fuzz::segment::run(data));
