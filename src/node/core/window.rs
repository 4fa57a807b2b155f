//! How many bytes of entries may be on their way to one follower.
//!
//! The protocol bounds messages, not bytes: it knows places and no payloads. So the bytes are
//! counted here, where the frames are read, and what is over the bound stays an order for
//! that follower alone. That is why it is not a bound of the connection's queue: there the
//! only answer to "too much" is to drop, after which the protocol begins to probe.
//!
//! A message that is the only one under way may be of any size, or a large entry would never
//! be sent.

use std::collections::{BTreeMap, VecDeque};

use crate::raft::types::{Index, NodeId};

/// The messages under way, by follower: last entry and bytes of each, in order.
#[derive(Debug, Default)]
pub(super) struct Windows(BTreeMap<NodeId, Window>);

#[derive(Debug, Default)]
struct Window {
    /// The last entry that was ordered, sent or not.
    ordered: Index,
    under_way: VecDeque<(Index, usize)>,
    bytes: usize,
}

impl Windows {
    /// May another message of up to `bytes` leave for `to`?
    pub(super) fn has_room(&self, to: NodeId, bytes: usize, limit: usize) -> bool {
        let used = self.0.get(&to).map_or(0, |window| window.bytes);
        used == 0 || used.saturating_add(bytes) <= limit
    }

    /// A message with entries up to `last` leaves for `to`.
    pub(super) fn sent(&mut self, to: NodeId, last: Index, bytes: usize) {
        if bytes > 0 {
            let window = self.0.entry(to).or_default();
            window.under_way.push_back((last, bytes));
            window.bytes += bytes;
        }
    }

    /// It holds everything up to `matched`.
    pub(super) fn arrived(&mut self, to: NodeId, matched: Index) {
        let Some(window) = self.0.get_mut(&to) else { return };
        while let Some(&(last, bytes)) = window.under_way.front()
            && last <= matched
        {
            window.under_way.pop_front();
            window.bytes -= bytes;
        }
    }

    /// Entries after `prev` up to `upto` are to be sent. Does that go on where the last order
    /// ended? If not, the protocol has begun anew, and nothing counts as under way.
    pub(super) fn ordered(&mut self, to: NodeId, prev: Index, upto: Index) -> bool {
        let window = self.0.entry(to).or_default();
        let goes_on = window.ordered == prev;
        if !goes_on {
            *window = Window::default();
        }
        window.ordered = upto;
        goes_on
    }

    /// What was on its way to it is believed to be lost.
    pub(super) fn lost(&mut self, to: NodeId) {
        self.0.remove(&to);
    }

    /// Nothing is on its way any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_gets_no_more_than_the_limit_and_one_message_of_any_size() {
        let (a, b) = (NodeId(1), NodeId(2));
        let mut windows = Windows::default();
        assert!(windows.has_room(a, 1000, 100), "alone, it may be of any size");
        windows.sent(a, Index(5), 1000);
        assert!(!windows.has_room(a, 1, 100), "full");
        assert!(windows.has_room(b, 60, 100), "the others do not mind");
        windows.sent(b, Index(5), 60);
        windows.sent(b, Index(6), 40);
        assert!(!windows.has_room(b, 1, 100));
        windows.arrived(b, Index(5));
        assert!(windows.has_room(b, 60, 100) && !windows.has_room(b, 61, 100));
        windows.arrived(a, Index(4));
        assert!(!windows.has_room(a, 1, 100), "only a part arrived");
        windows.lost(a);
        assert!(windows.has_room(a, 100, 100));
    }

    #[test]
    fn an_order_that_does_not_go_on_begins_anew() {
        let a = NodeId(1);
        let mut windows = Windows::default();
        assert!(!windows.ordered(a, Index(5), Index(9)), "the first");
        windows.sent(a, Index(9), 100);
        assert!(windows.ordered(a, Index(9), Index(12)));
        assert!(!windows.has_room(a, 1, 100), "what was sent still counts");
        assert!(!windows.ordered(a, Index(7), Index(12)), "back to 7: the rest was not taken");
        assert!(windows.has_room(a, 100, 100));
    }
}
