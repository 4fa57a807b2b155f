//! How checkpoints and compactions make room for the log's syncs, and wait for room on the
//! disk.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::store::Pace;
use crate::store::pace::SYNC_EVERY;

/// The log counts as busy for so long after a sync.
const BUSY: Duration = Duration::from_millis(100);
/// No rest is longer.
const REST_MAX: Duration = Duration::from_millis(100);
/// How often a full disk is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// What the threads of a node know of each other's use of the disk.
#[derive(Debug)]
pub(super) struct DiskPace {
    start: Instant,
    /// Microseconds from `start` to the end of the log's last sync; 0: there was none.
    log_synced_us: AtomicU64,
    /// A checkpoint waits for room.
    no_space: AtomicBool,
    /// The log's next segment could not be prepared.
    no_spare: AtomicBool,
    ending: Mutex<bool>,
    ended: Condvar,
}

impl DiskPace {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            log_synced_us: AtomicU64::new(0),
            no_space: AtomicBool::new(false),
            no_spare: AtomicBool::new(false),
            ending: Mutex::new(false),
            ended: Condvar::new(),
        }
    }

    /// The log was synced just now.
    pub(super) fn log_synced(&self) {
        let us = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.log_synced_us.store(us.max(1), Ordering::Relaxed);
    }

    fn log_is_busy(&self) -> bool {
        let last = self.log_synced_us.load(Ordering::Relaxed);
        last > 0 && self.start.elapsed() < Duration::from_micros(last) + BUSY
    }

    /// Is the disk too full for a checkpoint, or for the log's next segment?
    pub(super) fn no_space(&self) -> bool {
        self.no_space.load(Ordering::Relaxed) || self.no_spare.load(Ordering::Relaxed)
    }

    /// There was room to prepare the log's next segment, or there was none. The log goes on in
    /// the open one; when that is full and there is still no room, the node ends.
    pub(super) fn spare(&self, is_made: bool) {
        if self.no_spare.swap(!is_made, Ordering::Relaxed) == is_made {
            if is_made {
                tracing::info!("the disk has room again for the log");
            } else {
                tracing::error!("the disk is full: the next segment of the log has no room");
            }
        }
    }

    /// The node stops: nobody rests or waits any more.
    pub(super) fn end(&self) {
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.notify_all();
    }

    /// Sleeps, but not into the end; `false`: the node stops.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let slept = self.ended.wait_timeout_while(ending, time, |ending| !*ending);
        !*slept.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Pace for DiskPace {
    /// Half of the time is the log's while it is in use.
    fn rest(&self, took: Duration) {
        if self.log_is_busy() {
            self.sleep(took.min(REST_MAX));
        }
    }

    fn sync_every(&self) -> u64 {
        if self.log_is_busy() { SYNC_EVERY } else { u64::MAX }
    }

    fn wait_for_room(&self) -> bool {
        if !self.no_space.swap(true, Ordering::Relaxed) {
            tracing::error!("the disk is full: the checkpoint waits for room");
        }
        self.sleep(RETRY)
    }

    fn has_room(&self) {
        if self.no_space.swap(false, Ordering::Relaxed) {
            tracing::info!("the disk has room again: the checkpoint goes on");
        }
    }

    fn is_ending(&self) -> bool {
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pace of a snapshot that arrives. This node's log rests meanwhile, but the disk may be
/// that of others as well, and nobody waits for a snapshot as for a write.
#[derive(Debug)]
pub(super) struct Gentle(pub(super) Arc<DiskPace>);

impl Pace for Gentle {
    fn rest(&self, took: Duration) {
        self.0.sleep(took.min(REST_MAX));
    }

    fn sync_every(&self) -> u64 {
        SYNC_EVERY
    }

    /// Who sends it is told, and tries again.
    fn wait_for_room(&self) -> bool {
        false
    }

    fn has_room(&self) {}

    fn is_ending(&self) -> bool {
        self.0.is_ending()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_ends_every_wait() {
        let pace = DiskPace::new();
        assert!(!pace.is_ending() && !pace.no_space());
        pace.end();
        assert!(!pace.wait_for_room(), "nobody waits any more");
        assert!(pace.is_ending() && pace.no_space());
        pace.has_room();
        assert!(!pace.no_space(), "the alarm ends");
    }

    #[test]
    fn the_alarm_ends_when_all_have_room() {
        let pace = DiskPace::new();
        pace.end(); // no wait takes any time
        pace.spare(true);
        assert!(!pace.no_space());
        pace.spare(false);
        assert!(pace.no_space(), "the log's next segment has no room");
        pace.wait_for_room();
        pace.spare(true);
        assert!(pace.no_space(), "a checkpoint still waits");
        pace.has_room();
        assert!(!pace.no_space());
    }
}
