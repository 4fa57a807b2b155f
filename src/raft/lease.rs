//! Reads without a round trip, for a price: trust in clocks (thesis 6.4.1). Off unless
//! [`super::config::Config::lease`] says how long a lease is.
//!
//! With every heartbeat the leader opens a round (see [`super::reads`]) and notes when. Who
//! echoes it promises to help nobody to become leader for the shortest election time-out.
//! Once a majority has echoed a round, no other leader can be elected until that time after
//! the round was *sent*, so the leader may answer from its own state. The lease is shorter
//! than the promise by as much as the clocks of two machines may drift apart meanwhile.
//!
//! The leader's side:
//! * The clock is told by the driver ([`super::message::Input::Clock`]) after a read has
//!   arrived and before it is stepped. It must go on while the process, or the machine,
//!   sleeps: ticks do not, so they never decide here.
//! * A new leader has none before an entry of its own term is committed.
//! * A transfer ends it, before the chosen one is told: that one's votes are given against
//!   all promises. Once told, this leader has no lease any more, since the message may
//!   arrive at any time later.
//!
//! The voter's side:
//! * The promise counts from the last word of a leader *and* from the voter's own start: it
//!   may have promised just before it crashed.
//! * It survives every change of role and term.
//! * The end of the leader's connections is not believed ([`super::health`]): whoever closed
//!   them, that leader may still serve reads.
//!
//! All nodes must agree whether leases are on, or the promise is not given.

use std::collections::VecDeque;

use super::message::Effects;
use super::{Raft, Role};

/// What a leader knows of its lease.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// Rounds that no majority has echoed yet, and when each was opened.
    sent: VecDeque<(u64, u64)>,
    /// When the newest round was opened that a majority has echoed.
    since: Option<u64>,
    /// Somebody was told to campaign.
    given_away: bool,
}

impl Lease {
    /// The round `seq` leaves after `now`.
    pub(super) fn opened(&mut self, seq: u64, now: u64) {
        self.sent.push_back((seq, now));
    }

    /// A majority has echoed round `seq`.
    pub(super) fn echoed(&mut self, seq: u64) {
        while let Some(&(round, opened)) = self.sent.front()
            && round <= seq
        {
            self.since = Some(opened);
            self.sent.pop_front();
        }
    }

    /// Somebody is told to campaign at once.
    pub(super) fn give_away(&mut self) {
        self.given_away = true;
    }
}

impl Raft {
    /// A read that need not wait for a round if the lease holds.
    pub(super) fn lease_read(&mut self, token: u64, out: &mut Effects) {
        if self.holds_lease() {
            out.reads.push((token, super::message::ReadOutcome::At(self.commit)));
        } else {
            self.read(token, out);
        }
    }

    /// Can nobody else lead at the time that the clock shows?
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let (Some(span), Some(since)) = (self.config.lease, leader.lease.since) else {
            return false;
        };
        self.commit >= leader.first
            && leader.transfer.is_none()
            && !leader.lease.given_away
            && self.clock < since.saturating_add(span)
    }

    /// Has this voter promised not to help anybody else to lead?
    pub(super) fn is_promised(&self) -> bool {
        self.config.lease.is_some() && self.promised_ticks < self.config.election_ticks
    }
}
