//! Entries on their way out: to our own disk as one batch, to followers as soon as they are
//! written.

use bytes::Bytes;

use super::Core;
use crate::node::work::{Outgoing, Work};
use crate::peers::Way;
use crate::raft::message::{Effects, Envelope, Message, Replicate};
use crate::raft::progress::Flow;
use crate::raft::types::LogId;
use crate::store::StoreError;
use crate::wire;

/// Puts an order behind the others of its follower, as one with the last of them where it goes on
/// there: one message for all that waited is one write and one sync on the other side. One that
/// asks whether everything is there must not wait, and stays by itself.
fn queue(orders: &mut Vec<Replicate>, order: Replicate) {
    let has_entries = |order: &Replicate| order.upto > order.prev.index;
    let goes_on = |older: &Replicate| {
        older.term == order.term
            && older.upto == order.prev.index
            && has_entries(older)
            && has_entries(&order)
    };
    match orders.iter_mut().rfind(|older| older.to == order.to) {
        Some(older) if goes_on(older) => *older = Replicate { prev: older.prev, ..order },
        Some(_) | None => orders.push(order),
    }
}

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

    /// Sends the entries that followers were promised, that are written by now and for which
    /// their windows have room; the orders of one follower stay in order.
    pub(super) fn send_entries(&mut self, work: &mut Work<W>) {
        if self.orders.is_empty() {
            return;
        }
        let orders = std::mem::take(&mut self.orders);
        if !self.raft.is_leader() {
            self.windows.clear();
            return; // decided by a leader that we no longer are
        }
        for (to, progress) in self.raft.progress() {
            self.windows.arrived(to, progress.matched);
        }
        let written = self.log.written().index;
        let mut held: Vec<Replicate> = Vec::new();
        for order in orders {
            if order.term != self.raft.term() {
                continue;
            }
            match held.iter().find(|earlier| earlier.to == order.to).copied() {
                // "Is everything there?" must not wait, or a window full of lost messages
                // would stay full. It asks for what was really sent.
                Some(earlier) if order.upto == order.prev.index => {
                    let upto = earlier.prev.index;
                    self.send_range(Replicate { prev: earlier.prev, upto, ..order }, work);
                }
                Some(_) => held.push(order),
                None if order.upto > written => held.push(order),
                None => held.extend(self.send_range(order, work)),
            }
        }
        self.orders = held;
    }

    /// Takes the orders of a step. A probe begins anew, and so does an order that does not go
    /// on where the last one ended: whatever was on its way before does not count.
    pub(super) fn take_orders(&mut self, effects: &mut Effects) {
        for order in effects.replicate.drain(..) {
            let mut all = self.raft.progress();
            let progress = all.find(|(to, _)| *to == order.to);
            let flows = progress.is_some_and(|(_, it)| matches!(it.flow, Flow::Replicate { .. }));
            if !flows {
                self.windows.lost(order.to);
            }
            let goes_on = self.windows.ordered(order.to, order.prev.index, order.upto);
            if !flows || !goes_on {
                self.orders.retain(|older| older.to != order.to);
            }
            queue(&mut self.orders, order);
        }
        for to in &effects.snapshots {
            self.windows.lost(*to);
        }
    }

    /// Sends an order; what is left of it when the window is full.
    fn send_range(&mut self, mut order: Replicate, work: &mut Work<W>) -> Option<Replicate> {
        if !self.may_lead(order.to) {
            return None;
        }
        loop {
            let mut frames = Vec::new();
            let mut last = order.prev.index;
            let Replicate { to, prev, upto, .. } = order;
            if prev.index < upto {
                let (batch, limit) = (self.options.batch_bytes, self.options.inflight_bytes);
                if !self.windows.has_room(to, batch, limit) {
                    return Some(order);
                }
                let found = self.reader.frames(prev.index.next(), upto, batch);
                // Compacted away meanwhile: the protocol learns it by `Compacted`.
                (frames, last) = found?;
            }
            let message = Message::Append {
                prev,
                entries: crate::raft::message::EntryRun { last, ..Default::default() },
                commit: order.commit,
                read_seq: order.read_seq,
            };
            let envelope = Envelope { from: self.us.node, to, term: order.term, message };
            let bytes = frames.iter().map(Bytes::len).sum();
            self.windows.sent(to, last, bytes);
            let head = wire::encode(self.us, &envelope, bytes);
            work.packets.push(Outgoing { to, way: Way::Bulk, head, frames });
            if last >= upto {
                return None;
            }
            order.prev = LogId { term: self.reader.term_at(last)?, index: last };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{Index, NodeId, Term};

    /// Of term 1 for follower 1, with the commit index as its mark.
    fn order(after: u64, upto: u64, commit: u64) -> Replicate {
        Replicate {
            to: NodeId(1),
            prev: LogId { term: Term(1), index: Index(after) },
            upto: Index(upto),
            commit: Index(commit),
            read_seq: commit,
            term: Term(1),
        }
    }

    fn queued(given: &[Replicate]) -> Vec<Replicate> {
        let mut orders = Vec::new();
        for order in given {
            queue(&mut orders, *order);
        }
        orders
    }

    #[test]
    fn orders_that_wait_become_one_message_for_each_follower() {
        let other = |order| Replicate { to: NodeId(2), ..order };
        let given = [order(4, 5, 1), other(order(4, 5, 1)), order(5, 9, 2), other(order(5, 9, 2))];
        let all = Replicate { prev: order(4, 5, 1).prev, ..order(5, 9, 2) };
        assert_eq!(queued(&given), [all, other(all)], "what was learned last is told");
    }

    #[test]
    fn what_does_not_go_on_where_the_last_one_ended_stays_apart() {
        let later_term = Replicate { term: Term(2), ..order(5, 9, 2) };
        for given in [
            [order(4, 5, 1), order(6, 9, 2)],
            [order(4, 5, 1), later_term],
            [order(4, 5, 1), order(5, 5, 2)],
            [order(5, 5, 1), order(5, 9, 2)],
        ] {
            assert_eq!(queued(&given), given);
        }
    }
}
