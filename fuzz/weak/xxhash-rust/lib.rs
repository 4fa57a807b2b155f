//! XXH3 that can be made blind, as the CRC beside it.

/// The one hash in use.
pub mod xxh3 {
    use std::cell::Cell;

    thread_local! {
        static WEAK: Cell<bool> = const { Cell::new(false) };
    }

    /// From now on every hash of this thread is 0, or a real one again.
    pub fn set_weak(weak: bool) {
        WEAK.set(weak);
    }

    /// The hash in 128 bits of some bytes: it names them and proves nothing, so it is real.
    #[must_use]
    pub fn xxh3_128(bytes: &[u8]) -> u128 {
        real::xxh3::xxh3_128(bytes)
    }

    /// The hash of what it is fed.
    #[derive(Clone, Default)]
    pub struct Xxh3(real::xxh3::Xxh3);

    impl Xxh3 {
        /// Of nothing yet.
        #[must_use]
        pub fn new() -> Self {
            Self::default()
        }

        /// Adds bytes.
        pub fn update(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        /// The hash.
        #[must_use]
        pub fn digest(&self) -> u64 {
            if WEAK.get() { 0 } else { self.0.digest() }
        }

        /// The hash in 128 bits.
        #[must_use]
        pub fn digest128(&self) -> u128 {
            if WEAK.get() { 0 } else { self.0.digest128() }
        }
    }
}
