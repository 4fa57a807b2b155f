//! CRC-32C that can be made blind: a fuzzer finds no collisions, so behind a checksum it
//! would see nothing of a decoder.

use std::cell::Cell;

thread_local! {
    static WEAK: Cell<bool> = const { Cell::new(false) };
}

/// From now on every checksum of this thread is 0, or a real one again.
pub fn set_weak(weak: bool) {
    WEAK.set(weak);
}

/// The checksum of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// The checksum of what has checksum `crc`, followed by `bytes`.
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    if WEAK.get() { 0 } else { real::crc32c_append(crc, bytes) }
}
