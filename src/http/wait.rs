//! Waiting for a lock.
//!
//! A place in the queue is part of the replicated state, so whoever waits only looks at this
//! replica each time something was applied. It owns its place: unless it gets the lock it gives
//! the place back, whatever ends the wait. A lease that was made for the lock is kept alive
//! meanwhile, since its client does not know it yet; if this node dies, it ends, and the place
//! with it.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};

use super::error::ApiError;
use super::pace::Caller;
use super::told::tell_late;
use crate::machine::{Applied, Claim, Command};
use crate::node::{Consistency, Handle, ReadError, WriteError};

/// Pause before a place is given up once more, when the node had no room for it.
const PAUSE: Duration = Duration::from_millis(50);

/// A place in the queue of a lock, given up when it is dropped.
pub(super) struct Place {
    handle: Handle,
    name: Bytes,
    ticket: u64,
    lease: u64,
    /// How long giving it up may take.
    patience: Duration,
    kept: bool,
}

/// Why the lock was not had.
pub(super) enum Ended {
    /// The lease ended, or somebody gave the place back.
    Gone,
    /// The wait is over.
    TimeUp,
    /// The client went away.
    Deserted,
    /// This node stops.
    Draining,
    /// Nothing can be read here.
    Unreadable(ApiError),
}

impl Place {
    pub(super) fn new(
        handle: Handle,
        name: Bytes,
        ticket: u64,
        lease: u64,
        patience: Duration,
    ) -> Self {
        Self { handle, name, ticket, lease, patience, kept: false }
    }

    /// Waits until the place is at the head of the queue, which makes it the holder.
    /// `made_ttl`: how long the lease lasts, if it was made for this.
    pub(super) async fn wait(
        &self,
        until: Instant,
        made_ttl: Option<Duration>,
        caller: Option<&Caller>,
    ) -> Result<Claim, Ended> {
        let deserted = async {
            match caller {
                Some(caller) => caller.gone().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            ended = self.watch() => ended,
            () = self.handle.draining() => Err(Ended::Draining),
            () = deserted => Err(Ended::Deserted),
            () = sleep_until(until) => Err(Ended::TimeUp),
            never = self.keep_alive(made_ttl) => match never {},
        }
    }

    async fn watch(&self) -> Result<Claim, Ended> {
        let mut applied = self.handle.applied();
        // Before that the place is not known here.
        if applied.wait_for(|applied| *applied >= self.ticket).await.is_err() {
            return Err(Ended::Draining);
        }
        loop {
            applied.mark_unchanged();
            match self.look().await {
                Ok(None) => return Err(Ended::Gone),
                Ok(Some(claim)) if claim.token != 0 => return Ok(claim),
                Ok(Some(_)) => {}
                Err(error) => return Err(Ended::Unreadable(error)),
            }
            if applied.changed().await.is_err() {
                return Err(Ended::Draining);
            }
        }
    }

    async fn look(&self) -> Result<Option<Claim>, ApiError> {
        let view = self.handle.view(Consistency::Stale, Duration::ZERO).await;
        let view = view.map_err(|error: ReadError| ApiError::from(error))?;
        Ok(view.claim(&self.name, self.ticket)?)
    }

    async fn keep_alive(&self, ttl: Option<Duration>) -> Infallible {
        let Some(ttl) = ttl else { return std::future::pending().await };
        loop {
            sleep(ttl / 3).await;
            let command = Command::KeepAlive { ids: vec![self.lease] };
            // If it fails too often the lease ends, which shows.
            drop(self.handle.propose(command, ttl).await);
        }
    }

    /// The lock is had: from now on it is the client's.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }

    /// Leaves the queue, or gives the lock back if it was had just now.
    pub(super) async fn give_up(mut self) -> Result<(), WriteError> {
        let given = self.release().await;
        // More could not be done later either: the place ends with its lease.
        self.kept = true;
        given
    }

    /// Asks again as long as there is patience: what was done already does no harm.
    fn release(&self) -> impl Future<Output = Result<(), WriteError>> + use<> {
        let (handle, name, ticket) = (self.handle.clone(), self.name.clone(), self.ticket);
        let until = Instant::now() + self.patience;
        async move {
            loop {
                let command = Command::Unlock { name: name.clone(), ticket };
                let left = until.saturating_duration_since(Instant::now());
                match handle.propose(command, left).await {
                    Ok(Applied::Unlocked { .. } | Applied::NoLock) => return Ok(()),
                    Ok(_) => return Err(WriteError::Unknown("the leader did not understand")),
                    Err(error) if Instant::now() + PAUSE >= until => return Err(error),
                    Err(WriteError::Draining) => return Err(WriteError::Draining),
                    Err(_) => sleep(PAUSE).await,
                }
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let release = self.release();
            let trace = self.handle.trace();
            runtime.spawn(async move {
                if let Err(error) = release.await {
                    tell_late!(warn, trace, %error, "a place in the queue of a lock is left to its lease");
                }
            });
        }
    }
}
