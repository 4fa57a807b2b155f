//! Wishes to move leadership that reached a follower: carried to the leader, once, and its
//! answer back.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::raft::types::NodeId;

/// Why leadership is not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHandedOver {
    /// The node that was asked does not lead; perhaps this one does.
    NotLeader(Option<NodeId>),
    /// No member has this id.
    NotAMember(NodeId),
    /// A learner cannot lead.
    Learner(NodeId),
    /// The leader has not heard of it for an election time-out.
    Silent(NodeId),
    /// It lacks this many entries, more than it could be given in time.
    Behind(NodeId, u64),
    /// There is no other voter.
    Alone,
    /// No other voter was heard of within an election time-out.
    AllSilent,
}

/// Who shall lead; `None`: whoever is most caught up.
#[must_use]
pub fn encode_wish(to: Option<NodeId>) -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    out.put_u64_le(to.map_or(0, |to| to.0));
    out.freeze()
}

/// The inverse of [`encode_wish`]; `None`: it is none.
#[must_use]
pub fn decode_wish(mut bytes: Bytes) -> Option<Option<NodeId>> {
    let to = bytes.try_get_u64_le().ok()?;
    bytes.is_empty().then_some((to != 0).then_some(NodeId(to)))
}

/// What the leader did about a wish: whom it hands over to, or why to nobody.
#[must_use]
pub fn encode_handover(outcome: Result<NodeId, NotHandedOver>) -> Bytes {
    let (code, node, entries) = match outcome {
        Ok(to) => (0, to, 0),
        Err(NotHandedOver::NotLeader(leader)) => (1, leader.unwrap_or_default(), 0),
        Err(NotHandedOver::NotAMember(to)) => (2, to, 0),
        Err(NotHandedOver::Learner(to)) => (3, to, 0),
        Err(NotHandedOver::Silent(to)) => (4, to, 0),
        Err(NotHandedOver::Behind(to, entries)) => (5, to, entries),
        Err(NotHandedOver::Alone) => (6, NodeId(0), 0),
        Err(NotHandedOver::AllSilent) => (7, NodeId(0), 0),
    };
    let mut out = BytesMut::with_capacity(17);
    out.put_u8(code);
    out.put_u64_le(node.0);
    out.put_u64_le(entries);
    out.freeze()
}

pub(super) fn decode_handover(mut bytes: Bytes) -> Option<Result<NodeId, NotHandedOver>> {
    let code = bytes.try_get_u8().ok()?;
    let node = NodeId(bytes.try_get_u64_le().ok()?);
    let entries = bytes.try_get_u64_le().ok()?;
    Some(match code {
        0 => Ok(node),
        1 => Err(NotHandedOver::NotLeader((node.0 != 0).then_some(node))),
        2 => Err(NotHandedOver::NotAMember(node)),
        3 => Err(NotHandedOver::Learner(node)),
        4 => Err(NotHandedOver::Silent(node)),
        5 => Err(NotHandedOver::Behind(node, entries)),
        6 => Err(NotHandedOver::Alone),
        7 => Err(NotHandedOver::AllSilent),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_and_outcomes_survive_their_encoding() {
        for to in [None, Some(NodeId(7))] {
            assert_eq!(decode_wish(encode_wish(to)), Some(to));
        }
        assert_eq!(decode_wish(Bytes::from_static(b"short")), None);
        for outcome in [
            Ok(NodeId(2)),
            Err(NotHandedOver::NotLeader(None)),
            Err(NotHandedOver::NotLeader(Some(NodeId(3)))),
            Err(NotHandedOver::NotAMember(NodeId(9))),
            Err(NotHandedOver::Learner(NodeId(4))),
            Err(NotHandedOver::Silent(NodeId(2))),
            Err(NotHandedOver::Behind(NodeId(2), 5000)),
            Err(NotHandedOver::Alone),
            Err(NotHandedOver::AllSilent),
        ] {
            assert_eq!(decode_handover(encode_handover(outcome)), Some(outcome));
        }
        assert_eq!(decode_handover(Bytes::from_static(&[8; 17])), None);
    }
}
