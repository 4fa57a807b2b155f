//! Snapshots: for followers whose next entry is compacted away (Raft 7).
//!
//! The driver streams and installs; here it is decided whether to. While an
//! installation runs the log does not move: appends are dropped (the leader
//! repeats them) and this node does not campaign.

use super::message::{Effects, Message, SnapshotMeta};
use super::planted::Planted;
use super::progress::Flow;
use super::types::{LogId, NodeId, Term};
use super::{Raft, Role};

impl Raft {
    pub(super) fn snapshot_received(
        &mut self,
        from: NodeId,
        term: Term,
        meta: SnapshotMeta,
        out: &mut Effects,
    ) {
        out.install = Some(None);
        if term < self.hard.term && !self.planted(Planted::SnapshotTermUnchecked) {
            // The sender does not lead any more: its stream is not to be trusted
            // to be the newest, and a newer leader will send what is missing.
            self.send(from, Message::HeartbeatReply { read_seq: 0 });
            return;
        }
        if term > self.hard.term {
            self.become_follower(term, None, out);
        }
        self.follow(from, out);
        if meta.last.index <= self.commit && !self.planted(Planted::OldSnapshotInstalled) {
            if let Some(held) = self.terms.at(meta.last.index) {
                assert_eq!(held, meta.last.term, "I11: a snapshot contradicts a committed entry");
            }
            let (matched, read_seq) = (self.commit, self.seen_seq);
            self.send(from, Message::Accepted { matched, read_seq });
        } else if self.installing.is_none() {
            self.installing = Some(meta.clone());
            out.install = Some(Some(meta));
        }
    }

    /// The snapshot is the durable state now. Entries after it are kept if the
    /// log agrees with it, else the log is dropped (Raft figure 13, 6 and 7).
    pub(super) fn snapshot_installed(&mut self, meta: SnapshotMeta) {
        assert_eq!(self.installing.take().as_ref(), Some(&meta), "only what was asked for");
        assert!(meta.last.index > self.commit, "the log did not move meanwhile");
        let SnapshotMeta { last, membership } = meta;
        let held = self.terms.at(last.index);
        let is_kept = held == Some(last.term)
            || (held.is_some() && self.planted(Planted::SnapshotKeepsConflict));
        if is_kept {
            self.terms.compact(last);
            self.members.compact(last.index);
        } else {
            self.terms.reset(last);
            self.members.reset(membership);
        }
        self.ledger.install(last.index, !is_kept);
        self.commit = last.index;
        self.published = last.index;
        self.applied = last.index;
        if let Some(leader) = self.leader() {
            let (matched, read_seq) = (last.index, self.seen_seq);
            self.send(leader, Message::Accepted { matched, read_seq });
        }
    }

    pub(super) fn snapshot_sent(
        &mut self,
        to: NodeId,
        installed: Option<LogId>,
        out: &mut Effects,
    ) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&to) else { return };
        if !matches!(progress.flow, Flow::Snapshot { .. }) {
            return;
        }
        if let Some(last) = installed {
            progress.probe(last.index.next());
            self.replicate(to, out);
        } else {
            // Not at once again: the next heartbeat that is answered opens it.
            progress.probe(progress.matched.next());
            progress.flow = Flow::Probe { sent: true };
        }
    }
}
