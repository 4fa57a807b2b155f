//! The only clock: the shell reads it once a turn, everything below is told.

use std::time::SystemTime;

use rustix::time::{ClockId, Timespec, clock_gettime};

use super::core::Now;

/// Wall and monotonic time since the node started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start_us: u64,
}

/// Unlike `Instant`, this goes on while the machine is suspended: other machines are not, and
/// a lease ends for them.
fn boot_us() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    let (secs, nanos) = (u64::try_from(tv_sec), u64::try_from(tv_nsec));
    secs.unwrap_or(0).saturating_mul(1_000_000).saturating_add(nanos.unwrap_or(0) / 1000)
}

/// Milliseconds since 1970, by this machine.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
#[must_use]
pub fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

impl Clock {
    /// Starts now.
    #[must_use]
    pub(super) fn new() -> Self {
        Self { start_us: boot_us() }
    }

    /// Both clocks.
    #[must_use]
    pub(super) fn now(&self) -> Now {
        Now { wall_ms: wall_ms(), mono_us: boot_us().saturating_sub(self.start_us) }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
