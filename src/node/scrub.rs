//! The thread that reads the disk in the background, and compares what it says with its
//! checksums.
//!
//! A pass begins every so often, at a rate that leaves the disk to others, or at once and at
//! full speed when somebody asks. The node thread hands out what to look at, and is told of
//! everything that is found, at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::desk::Inbox;
use super::handle::Mail;
use super::pace::DiskPace;
use super::work::Event;
use crate::metrics::Metrics;
use crate::store::{Finding, Scrub};

/// Bytes that are read between two looks at the clock.
const STEP: u64 = 1 << 20;

/// What a pass saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes of the log that were read.
    pub log_bytes: u64,
    /// Bytes of the database that were read.
    pub db_bytes: u64,
    /// What contradicts its checksum.
    pub findings: Vec<Finding>,
}

/// Why a pass did not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScrubError {
    /// One is under way.
    Busy,
    /// The disk could not be read, for another reason than lost bytes.
    Failed(String),
    /// The node stops.
    Stopping,
}

/// Who waits for a pass.
pub(super) type Asker = oneshot::Sender<Result<Scrubbed, ScrubError>>;

/// What the thread is told.
pub(super) enum Order {
    /// Begin a pass now.
    Run(Asker),
    /// Look at this.
    Look(Box<Scrub>),
    /// End.
    End,
}

/// See the module.
pub(super) struct Scrubber {
    /// Between two passes; zero: only when asked.
    pub(super) interval: Duration,
    /// Bytes a second.
    pub(super) rate: u64,
    pub(super) orders: Receiver<Order>,
    /// Is a pass under way? Whoever makes it true begins one.
    pub(super) busy: Arc<AtomicBool>,
    pub(super) outbox: Inbox,
    pub(super) pace: Arc<DiskPace>,
    pub(super) metrics: &'static Metrics,
}

impl Scrubber {
    /// Runs until the node stops.
    pub(super) fn run(self) {
        let mut since = Instant::now();
        loop {
            let asker = match self.wait(since) {
                Ok(Order::Run(asker)) => Some(asker),
                Ok(Order::Look(_)) => continue, // of a pass that was given up
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return,
                // Another one that is about to begin will do.
                Err(RecvTimeoutError::Timeout) if self.busy.swap(true, Ordering::AcqRel) => {
                    since = Instant::now();
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => None,
            };
            let rate = if asker.is_some() { u64::MAX } else { self.rate };
            let result = self.pass(rate);
            self.busy.store(false, Ordering::Release);
            since = Instant::now();
            if let Err(ScrubError::Failed(why)) = &result {
                tracing::error!(%why, "a pass of the scrubber was given up");
            }
            let ended = result == Err(ScrubError::Stopping);
            if let Some(asker) = asker {
                // Whoever asked may have gone away.
                drop(asker.send(result));
            }
            if ended {
                return;
            }
        }
    }

    fn wait(&self, since: Instant) -> Result<Order, RecvTimeoutError> {
        if self.interval.is_zero() {
            return self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        self.orders.recv_timeout(self.interval.saturating_sub(since.elapsed()))
    }

    fn tell(&self, event: Event<super::handle::Waiter>) -> Result<(), ScrubError> {
        self.outbox.blocking_send(Mail::Event(event)).map_err(|_| ScrubError::Stopping)
    }

    fn pass(&self, rate: u64) -> Result<Scrubbed, ScrubError> {
        self.tell(Event::ScrubWanted)?;
        let mut scrub = loop {
            match self.orders.recv() {
                Ok(Order::Look(scrub)) => break scrub,
                Ok(Order::Run(asker)) => drop(asker.send(Err(ScrubError::Busy))),
                Ok(Order::End) | Err(_) => return Err(ScrubError::Stopping),
            }
        };
        let mut seen = Scrubbed::default();
        loop {
            let start = Instant::now();
            let progress = match scrub.step(STEP.min(rate)) {
                Ok(progress) => progress,
                Err(error) => {
                    self.tell(Event::Scrubbed { clean: false })?;
                    return Err(ScrubError::Failed(error.to_string()));
                }
            };
            seen.log_bytes += progress.log_bytes;
            seen.db_bytes += progress.db_bytes;
            self.metrics.scrub.bytes_log.increment(progress.log_bytes);
            self.metrics.scrub.bytes_db.increment(progress.db_bytes);
            for finding in progress.findings {
                self.report(&finding);
                seen.findings.push(finding.clone());
                self.tell(Event::Damaged(finding))?;
            }
            if progress.done {
                break;
            }
            let bytes = progress.log_bytes + progress.db_bytes;
            let due = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
            if !self.pace.sleep(due.saturating_sub(start.elapsed())) {
                return Err(ScrubError::Stopping);
            }
        }
        self.metrics.scrub.passes.increment(1);
        self.tell(Event::Scrubbed { clean: seen.findings.is_empty() })?;
        tracing::info!(
            log_bytes = seen.log_bytes,
            db_bytes = seen.db_bytes,
            findings = seen.findings.len(),
            "the disk was read and compared with its checksums"
        );
        Ok(seen)
    }

    fn report(&self, finding: &Finding) {
        match finding {
            Finding::Log { .. } => self.metrics.scrub.findings_log.increment(1),
            Finding::Db { .. } | Finding::Meta { .. } => {
                self.metrics.scrub.findings_db.increment(1);
            }
        }
        tracing::error!(file = finding.file(), offset = finding.offset(), %finding, "damage on the disk");
    }
}
