//! What a node does about its own damage, and how it learns of it.
//!
//! * *Entries of the log that are held by name only*: their frames are asked for, from one
//!   peer after the other; the chain of checksums proves what comes, so any peer will do.
//!   Until then the protocol knows: nothing from the first of them on is acknowledged or
//!   applied, and this node does not lead.
//! * *A lost database*: it is moved away, and the state is made anew, from the log if that
//!   reaches back to the first entry, else from a snapshot of the leader. Meanwhile the node
//!   appends and votes, as its log is whole, and answers no reads.
//! * *A state that differs*: every so many entries all nodes tell each other the digest of
//!   their state. Whoever finds a majority agree on another one gives up its database.
//!
//! A node alone has nobody to ask: there the errors of the store end the process.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Core;
use crate::node::work::{Outgoing, Work};
use crate::peers::Way;
use crate::raft::message::{Fitness, Input};
use crate::raft::types::{Index, NodeId};
use crate::store::StoreError;
use crate::wire::{self, Aside};

/// Ticks between two requests for help.
const ASK_TICKS: u64 = 10;
/// Requests to each peer, without an answer of use, after which its log is believed to be
/// compacted.
const ASK_ROUNDS: usize = 3;
/// Ticks between two requests for a whole database.
const ASK_STATE_TICKS: u64 = 80;
/// Places at which digests are remembered: a peer may be that much behind or ahead.
const DIGESTS_MAX: usize = 16;

/// What is wrong, and what is being done about it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The database does not reach up to what can be read of the log: only a snapshot helps.
    pub(super) stateless: bool,
    /// The state is made anew: readers wait until it is here again.
    pub(super) rebuild_to: Option<Index>,
    /// What the protocol was told last.
    told: Fitness,
    /// Frames of a peer that wait until the log may be written.
    frames: Option<Bytes>,
    /// The last pass of the scrubber found damage.
    pub(super) disk_damage: bool,
    /// The database that the scrubber reads; findings in another one are of no use.
    pub(super) scrubbed: u64,
    /// Entries that are damaged on the disk and whole in memory: to be written again.
    pub(super) rewrite: BTreeSet<Index>,
    /// The database is to be written anew, as soon as no compaction is under way.
    pub(super) rewrite_db: bool,
    /// When help was asked for last, and whose turn it is.
    asked_at: u64,
    turn: usize,
    asked_for_state_at: u64,
    /// Requests for frames since the last that was answered with something of use.
    in_vain: usize,
    /// Digests by place and node.
    digests: BTreeMap<Index, BTreeMap<NodeId, u128>>,
    /// A peer disagrees about the digest of an entry, and no majority says who is right.
    disputed: Option<Index>,
}

impl Health {
    pub(super) fn new(stateless: bool, rebuild_to: Option<Index>) -> Self {
        Self { stateless, rebuild_to, ..Self::default() }
    }
}

/// Why a database is given up.
pub(super) fn bad_database(what: &'static str, why: String) -> StoreError {
    StoreError::Corrupt { file: "the database".into(), what, offset: 0, why }
}

/// Does the state of this node differ from that of a majority?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Disputed,
    Diverged,
}

impl<W> Core<W> {
    /// What an operator should know, in words of one token.
    pub fn alarms(&self) -> Vec<&'static str> {
        let alarms = [
            ("log-damaged", self.log.damaged().is_some()),
            ("log-lost", self.raft.is_amnesiac()),
            ("database-damaged", self.db.is_suspect()),
            ("database-rebuilding", self.health.rebuild_to.is_some()),
            ("disk-damage", self.health.disk_damage),
            ("digest-mismatch", self.health.disputed.is_some()),
            ("not-a-member", !self.is_member()),
            ("foreign-member", self.hears_foreign_lives()),
        ];
        alarms.into_iter().filter(|(_, raised)| *raised).map(|(name, _)| name).collect()
    }

    /// So many of the next ticks send nothing and decide nothing, if nothing else happens before
    /// them. What else waits for a tick - a checkpoint after a while, the end of a key - may wait
    /// as long as that. 0: something goes on, or is wrong.
    pub fn quiet_ticks(&self) -> u32 {
        let is_busy = self.syncing
            || self.checkpointing
            || self.compacting.is_some()
            || self.arrived.is_some()
            || self.can_apply();
        let is_ill = self.health.stateless || self.health.rewrite_db || !self.alarms().is_empty();
        if is_busy || is_ill { 0 } else { self.raft.quiet_ticks() }
    }

    /// Repairs what can be repaired now, and tells the protocol what is still missing. Once a
    /// turn, before anything else.
    pub(super) fn heal(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        self.rewrite_found(work)?;
        if !self.syncing
            && !self.log.has_staged()
            && let Some(frames) = self.health.frames.take()
        {
            let repaired = self.log.repair(&frames)?;
            work.measured.repaired += repaired;
            if repaired > 0 {
                self.health.asked_at = 0; // there may be more, and somebody who helps
                self.health.in_vain = 0;
            }
        }
        if self.health.stateless && !self.lacks_entries() {
            self.health.stateless = false; // a peer had the frames after all
        }
        if self.amnesia_noted && !self.raft.is_amnesiac() {
            self.log.end_amnesia()?;
            self.amnesia_noted = false;
        }
        if self.health.rebuild_to.is_some_and(|goal| !self.health.stateless && self.applied >= goal)
        {
            self.health.rebuild_to = None;
            self.db.published().withhold(false);
        }
        self.tell_fitness(work)
    }

    /// Is the entry after the database's last one compacted, or damaged?
    fn lacks_entries(&self) -> bool {
        let next = self.db.state().applied.index.next();
        self.log.first() > next || self.damaged_ahead() == Some(next)
    }

    /// The first entry that is to be applied and cannot be read.
    pub(super) fn damaged_ahead(&self) -> Option<Index> {
        self.log.damaged_from(self.applied.next()).map(|(first, _)| first)
    }

    fn tell_fitness(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        let fitness = Fitness {
            damaged: self.damaged_ahead(),
            unfit_to_lead: self.log.damaged().is_some() || self.health.rebuild_to.is_some(),
        };
        if fitness == self.health.told {
            return Ok(());
        }
        self.health.told = fitness;
        self.step(Input::Fitness(fitness), work)
    }

    /// Looks after itself and asks for help if any is needed; once a tick.
    pub(super) fn look_after(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        // A node alone goes on with what is left of its database.
        if self.db.is_suspect() && !self.others().is_empty() {
            let why = bad_database("page", "a reader found it damaged".into());
            self.lose_database(why, work)?;
        }
        if self.health.rewrite_db && self.compacting.is_none() {
            self.health.rewrite_db = false;
            self.begin_compaction(None, work);
        }
        self.ask_for_help(work);
        Ok(())
    }

    fn ask_for_help(&mut self, work: &mut Work<W>) {
        let since = self.ticks - self.health.asked_at.min(self.ticks);
        if let Some((first, last)) = self.log.damaged() {
            let others = self.others();
            if since >= ASK_TICKS && !others.is_empty() {
                self.health.asked_at = self.ticks;
                self.health.turn += 1;
                self.health.in_vain += 1;
                let to = others[self.health.turn % others.len()];
                work.packets.push(self.aside(to, Aside::Fetch { first, last }, Vec::new()));
            }
        }
        // Nobody has the next entry any more, so everybody's state holds it.
        let is_stuck = self.applied < self.commit && self.lacks_entries();
        if is_stuck && self.health.in_vain >= ASK_ROUNDS * self.others().len() {
            self.health.stateless = true;
        }
        let since = self.ticks - self.health.asked_for_state_at;
        if self.health.stateless
            && since >= ASK_STATE_TICKS
            && let Some(leader) = self.raft.leader().filter(|leader| *leader != self.us.node)
        {
            self.health.asked_for_state_at = self.ticks;
            work.packets.push(self.aside(leader, Aside::NeedState, Vec::new()));
        }
    }

    /// A peer says something about its files, or ours.
    pub(super) fn hear_aside(
        &mut self,
        from: NodeId,
        aside: Aside,
        frames: Bytes,
        work: &mut Work<W>,
    ) -> Result<(), StoreError> {
        if aside == Aside::Stranger {
            self.called_stranger();
            return Ok(());
        }
        if !self.others().contains(&from) {
            return Ok(());
        }
        match aside {
            Aside::Stranger => Ok(()),
            Aside::Fetch { first, last } => {
                let found = self.reader.frames(first, last, self.options.batch_bytes);
                if let Some((frames, _)) = found {
                    work.packets.push(self.aside(from, Aside::Frames, frames));
                }
                Ok(())
            }
            Aside::Frames => {
                if self.log.damaged().is_some() {
                    self.health.frames = Some(frames);
                }
                Ok(())
            }
            Aside::Digest { index, digest } => {
                self.note_digest(index, from, digest);
                self.compare_digests(index, work)
            }
            Aside::NeedState => {
                // What is pinned may be older than what the peer still has in its log.
                self.checkpoint_wanted |= self.db.durable().index < self.applied;
                if self.raft.is_leader() && self.shipping.insert(from) {
                    return self.ship(from, work);
                }
                Ok(())
            }
        }
    }

    /// All members but this node.
    pub(super) fn others(&self) -> Vec<NodeId> {
        let mut members = self.raft.membership().members();
        members.retain(|id| *id != self.us.node);
        members
    }

    pub(super) fn aside(&self, to: NodeId, aside: Aside, frames: Vec<Bytes>) -> Outgoing {
        let way = if frames.is_empty() { Way::Control } else { Way::Bulk };
        let bytes = frames.iter().map(Bytes::len).sum();
        let head = wire::encode_aside(self.us, to, aside, bytes);
        Outgoing { to, way, head, frames }
    }

    /// The database contradicts itself, or the other nodes: it is moved away and made anew.
    ///
    /// # Errors
    /// `why`, when there is nobody to get it from; `Io`.
    pub(super) fn lose_database(
        &mut self,
        why: StoreError,
        work: &mut Work<W>,
    ) -> Result<(), StoreError> {
        if self.others().is_empty() {
            return Err(why);
        }
        let goal = self.health.rebuild_to.unwrap_or_default().max(self.applied);
        self.health.rebuild_to = Some(goal);
        self.db.published().withhold(true);
        let kept_in = self.db.quarantine()?;
        work.measured.lost_databases.push(format!("{why}; it is kept in {}", kept_in.display()));
        self.health.stateless = self.log.first() > self.db.state().applied.index.next();
        if !self.health.stateless {
            self.applied = self.db.state().applied.index;
        }
        (self.health.asked_at, self.health.asked_for_state_at) = (0, 0);
        self.health.digests.clear();
        self.tell_fitness(work)
    }

    /// The place up to which a batch of entries from here may go: digests are taken at
    /// multiples of [`super::CoreOptions::digest_entries`].
    pub(super) fn digest_place(&self) -> Index {
        let every = self.options.digest_entries;
        Index((self.applied.0 / every + 1).saturating_mul(every))
    }

    /// Tells everybody the digest of our state if this is a place to compare it.
    pub(super) fn tell_digest(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        let index = self.applied;
        if !index.0.is_multiple_of(self.options.digest_entries) {
            return Ok(());
        }
        let digest = self.db.state().digest;
        for to in self.others() {
            work.packets.push(self.aside(to, Aside::Digest { index, digest }, Vec::new()));
        }
        self.note_digest(index, self.us.node, digest);
        self.compare_digests(index, work)
    }

    fn note_digest(&mut self, index: Index, node: NodeId, digest: u128) {
        if !index.0.is_multiple_of(self.options.digest_entries) {
            return;
        }
        let digests = &mut self.health.digests;
        digests.entry(index).or_default().insert(node, digest);
        while digests.len() > DIGESTS_MAX {
            digests.pop_first();
        }
    }

    fn compare_digests(&mut self, index: Index, work: &mut Work<W>) -> Result<(), StoreError> {
        let Some(all) = self.health.digests.get(&index) else { return Ok(()) };
        match judge(all, self.us.node, &self.raft.membership().voters) {
            Verdict::Same => {
                if self.health.disputed.is_some_and(|older| older < index) {
                    self.health.disputed = None;
                }
                Ok(())
            }
            Verdict::Disputed => {
                self.health.disputed = Some(index);
                work.measured.digest_mismatches += 1;
                Ok(())
            }
            Verdict::Diverged => {
                work.measured.digest_mismatches += 1;
                let why =
                    format!("a majority has another state than this node after entry {index}");
                self.lose_database(bad_database("state", why), work)
            }
        }
    }
}

/// Compares our digest with those of others. Only voters count for a majority; whoever is not
/// one still learns that it is wrong.
fn judge(all: &BTreeMap<NodeId, u128>, us: NodeId, voters: &[NodeId]) -> Verdict {
    let Some(own) = all.get(&us) else { return Verdict::Same };
    let quorum = voters.len() / 2 + 1;
    let mut against: BTreeMap<u128, usize> = BTreeMap::new();
    for (node, digest) in all {
        if digest != own {
            *against.entry(*digest).or_default() += usize::from(voters.contains(node));
        }
    }
    if against.values().any(|count| *count >= quorum) {
        Verdict::Diverged
    } else if against.is_empty() {
        Verdict::Same
    } else {
        Verdict::Disputed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_against_it_makes_a_node_give_up() {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let digests = |all: &[(u64, u128)]| {
            all.iter().map(|(id, digest)| (NodeId(*id), *digest)).collect::<BTreeMap<_, _>>()
        };
        for (all, voters, want, why) in [
            (&[(2, 9), (3, 9)][..], &[1, 2, 3][..], Verdict::Same, "we are not there yet"),
            (&[(1, 7), (2, 7)], &[1, 2, 3], Verdict::Same, "equal"),
            (&[(1, 7), (2, 9)], &[1, 2, 3], Verdict::Disputed, "one against one"),
            (&[(1, 7), (2, 9), (3, 9)], &[1, 2, 3], Verdict::Diverged, "two of three"),
            (&[(1, 7), (2, 9), (3, 8)], &[1, 2, 3], Verdict::Disputed, "nobody agrees"),
            (&[(1, 7), (2, 7), (3, 8)], &[1, 2, 3], Verdict::Disputed, "the other is wrong"),
            (&[(1, 7), (2, 9), (3, 9)], &[1, 2, 3, 4, 5], Verdict::Disputed, "two of five"),
            (&[(9, 7), (2, 9), (3, 9)], &[1, 2, 3], Verdict::Same, "only others speak"),
            (&[(1, 7), (8, 9), (9, 9)], &[1, 2, 3], Verdict::Disputed, "learners do not count"),
        ] {
            assert_eq!(judge(&digests(all), NodeId(1), &ids(voters)), want, "{why}");
        }
    }
}
