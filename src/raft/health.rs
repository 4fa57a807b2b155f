//! What a node concludes from its own disk and its connections.
//!
//! *A stalled disk* (hashicorp/raft#503). A leader whose own disk hangs goes on to commit
//! with the disks of the others, but it applies, and so answers, only what its own disk
//! holds: its heartbeats would keep a useless leader in office. So once its oldest write is
//! older than an election time-out, it hands over to the most caught-up voter, and steps
//! down if that has not helped after one more. Only while the others' disks work, which
//! shows in what they committed meanwhile: when all disks are slow nobody would do better,
//! and leadership would go round in circles.
//!
//! *Nothing to do.* An idle node that is woken for every tick costs more than all that it does
//! then. The protocol says how many of the next ticks only make it older.
//!
//! Whoever's disk is stalled does not campaign: it could not keep its own vote. A follower
//! does nothing else about it; its answers lag, and the others do not need them.
//!
//! *A leader that is gone.* When a process ends, its connections end at once, long before
//! an election time-out passes. Told so, a follower waits only a short random time before it
//! asks around. It may be wrong: those who still hear the leader refuse its pre-vote, and
//! it follows again with the next heartbeat.

use super::message::Effects;
use super::types::NodeId;
use super::{Raft, Role};

impl Raft {
    /// Does the oldest write wait longer for the disk than a follower for its leader?
    pub(super) fn is_disk_stalled(&self) -> bool {
        self.ledger.oldest_age() >= self.config.election_ticks
    }

    /// So many of the next ticks say nothing to anybody and decide nothing, if nothing else
    /// happens before them: they may be told late, and all at once. 0 when in doubt.
    #[must_use]
    pub fn quiet_ticks(&self) -> u32 {
        if self.ledger.oldest_last().is_some() || self.asking.is_waiting() {
            return 0;
        }
        match &self.role {
            Role::Follower { leader: Some(_) } if !self.is_alone() => {
                self.timeout.saturating_sub(self.elapsed).saturating_sub(1)
            }
            Role::Follower { .. } | Role::PreCandidate { .. } | Role::Candidate { .. } => 0,
            Role::Leader(leader) => {
                let next = leader.ticks_to_heartbeat(self.config.heartbeat_ticks);
                // What is decided by how long somebody was silent is not near.
                let is_calm = leader.progress.values().all(|progress| {
                    progress.is_told(self.commit)
                        && progress.silent_ticks + next < self.config.election_ticks
                });
                let is_changing = leader.transfer.is_some()
                    || !leader.leaving.is_empty()
                    || !self.members.current().promote.is_empty();
                if is_calm && !is_changing { next.saturating_sub(1) } else { 0 }
            }
        }
    }

    /// A leader that its own disk holds up gives way to one that can work.
    pub(super) fn tick_stall(&mut self, out: &mut Effects) {
        let Role::Leader(leader) = &self.role else { return };
        let others_work = self.ledger.oldest_last().is_some_and(|last| self.commit >= last);
        if !self.is_disk_stalled() || !others_work {
            return;
        }
        if self.ledger.oldest_age() >= self.config.election_ticks.saturating_mul(2) {
            self.become_follower(self.hard.term, None, out);
        } else if leader.transfer.is_none()
            && let Some(to) = self.most_caught_up()
        {
            self.transfer(to, out);
        }
    }

    /// The voter that would lead soonest: of those heard within an election time-out the one
    /// with most of the log.
    #[must_use]
    pub fn most_caught_up(&self) -> Option<NodeId> {
        let voters = &self.members.current().voters;
        let heard = self.progress().filter(|(id, _)| voters.contains(id) && self.is_heard(*id));
        heard.max_by_key(|(id, progress)| (progress.matched, *id)).map(|(id, _)| id)
    }

    /// The connections from `peer` ended and nobody listens there any more.
    pub(super) fn leader_gone(&mut self, peer: NodeId) {
        let follows =
            matches!(self.role, Role::Follower { leader: Some(leader) } if leader == peer);
        // Who gave its leader a lease waits for the end of it, see `lease`.
        if !follows || self.config.lease.is_some() {
            return;
        }
        let spread = (self.config.election_ticks / 4).max(1);
        if self.elapsed >= self.config.election_ticks && self.timeout <= self.elapsed + spread {
            return; // every connection may say it
        }
        // Not heard any more, so we do not refuse others that noticed first.
        self.elapsed = self.elapsed.max(self.config.election_ticks);
        let delay = u32::try_from(self.rng.next() % u64::from(spread)).expect("less than a u32");
        self.timeout = self.elapsed + delay;
    }
}
