//! The only clock: the shell reads it once a turn, everything below is told.

use std::time::{Instant, SystemTime};

use super::core::Now;

/// Wall and monotonic time since the node started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts now.
    #[must_use]
    pub(super) fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Both clocks.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    #[must_use]
    pub(super) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now {
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            mono_us: u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
