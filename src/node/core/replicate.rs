//! Entries on their way out: to our own disk as one batch, to followers as soon as they are
//! written.

use bytes::Bytes;

use super::Core;
use crate::node::work::{Outgoing, Work};
use crate::peers::Way;
use crate::raft::message::{Envelope, Message, Replicate};
use crate::raft::types::LogId;
use crate::store::StoreError;
use crate::wire;

impl<W> Core<W> {
    /// Writes what is staged, unless a sync is running.
    pub(super) fn write(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        if self.syncing || !self.log.has_staged() {
            return Ok(());
        }
        let before = self.log.written().index;
        self.log.set_commit(self.commit);
        if let Some(job) = self.log.write(self.io)? {
            self.syncing = true;
            self.wrote_at_tick = self.ticks;
            self.log_bytes_since_checkpoint += job.bytes();
            work.measured.batch_entries += self.log.written().index.0.saturating_sub(before.0);
            work.sync = Some(job);
            if self.ticks >= self.spare_at_tick
                && let Some(job) = self.log.spare_wanted()
            {
                work.spare = Some(job);
            }
        }
        Ok(())
    }

    /// Sends the entries that followers were promised and that are written by now.
    pub(super) fn send_entries(&mut self, work: &mut Work<W>) {
        if self.orders.is_empty() {
            return;
        }
        let written = self.log.written().index;
        let leads = self.raft.is_leader();
        let mut orders = std::mem::take(&mut self.orders);
        orders.retain(|order| {
            if !leads || order.term != self.raft.term() {
                return false; // decided by a leader that we no longer are
            }
            if order.upto > written {
                return true;
            }
            self.send_range(order, work);
            false
        });
        self.orders = orders;
    }

    fn send_range(&self, order: &Replicate, work: &mut Work<W>) {
        if !self.may_lead(order.to) {
            return;
        }
        let mut prev = order.prev;
        loop {
            let mut frames = Vec::new();
            let mut last = prev.index;
            if prev.index < order.upto {
                let found =
                    self.reader.frames(prev.index.next(), order.upto, self.options.batch_bytes);
                // Compacted away meanwhile: the protocol learns it by `Compacted`.
                let Some((slices, upto)) = found else { return };
                (frames, last) = (slices, upto);
            }
            let message = Message::Append {
                prev,
                entries: crate::raft::message::EntryRun { last, ..Default::default() },
                commit: order.commit,
                read_seq: order.read_seq,
            };
            let envelope = Envelope { from: self.us.node, to: order.to, term: order.term, message };
            let bytes = frames.iter().map(Bytes::len).sum();
            let head = wire::encode(self.us, &envelope, bytes);
            work.packets.push(Outgoing { to: order.to, way: Way::Bulk, head, frames });
            if last >= order.upto {
                return;
            }
            let Some(term) = self.reader.term_at(last) else { return };
            prev = LogId { term, index: last };
        }
    }

    pub(super) fn outgoing(&self, envelope: &Envelope) -> Outgoing {
        let way = match envelope.message {
            Message::PreVote { .. }
            | Message::PreVoteReply { .. }
            | Message::Vote { .. }
            | Message::VoteReply { .. }
            | Message::TimeoutNow => Way::Vote,
            Message::Append { .. } => Way::Bulk,
            Message::Accepted { .. }
            | Message::Rejected { .. }
            | Message::Heartbeat { .. }
            | Message::HeartbeatReply { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexReply { .. } => Way::Control,
        };
        let head = wire::encode(self.us, envelope, 0);
        Outgoing { to: envelope.to, way, head, frames: Vec::new() }
    }
}
