//! See `mmapd_fuzz::snapshot`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmapd_fuzz::snapshot::run(data));
