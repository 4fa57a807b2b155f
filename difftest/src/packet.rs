//! What travels, and the translation between the two languages. It has no state: each
//! message becomes exactly one.
//!
//! | ours | `eraftpb` |
//! |---|---|
//! | `PreVote`, `Vote` | `MsgRequestPreVote`, `MsgRequestVote`; `transfer` is its context |
//! | `PreVoteReply`, `VoteReply` | `...Response`; `granted` is not `reject` |
//! | `Append` | `MsgAppend`; `prev` is `index` and `log_term` |
//! | `Accepted` | `MsgAppendResponse`; `matched` is `index` |
//! | `Rejected` | `MsgAppendResponse` with `reject`; `hint` is `reject_hint` and `log_term` |
//! | `Heartbeat`, `HeartbeatReply` | `MsgHeartbeat...`; `read_seq` is the context, 0 is none |
//! | `TimeoutNow` | `MsgTimeoutNow` |
//!
//! What one side says and the other has no word for is lost:
//! * ours sends the read round with appends and their answers too; `raft` with heartbeats only;
//! * `raft` adds its commit index to answers, and to votes so that who lost can commit by it;
//! * ours tells the last index in a refusal, and does not use it;
//! * who is told of a newer term hears it from an empty `MsgAppendResponse` there and from a
//!   `HeartbeatReply` here; both say "this is my term" and nothing else.
//!
//! A round is echoed exactly there, and as the largest seen in the term here. The world's read
//! contexts grow, so that the two mean the same.

use mmapd::raft::message::{EntryRun, Envelope, Message};
use mmapd::raft::types::{Index, LogId, NodeId, Term};
use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb;
use raft::eraftpb::MessageType;

use crate::disk::Entry;

/// A message in the language of its sender.
#[derive(Clone, Debug)]
pub enum Packet {
    /// Of our core, with the entries of an append.
    Ours(Envelope, Vec<Entry>),
    /// Of the crate `raft`.
    Theirs(Box<eraftpb::Message>),
}

impl Packet {
    /// Who sent it.
    #[must_use]
    pub fn from(&self) -> NodeId {
        match self {
            Self::Ours(envelope, _) => envelope.from,
            Self::Theirs(message) => NodeId(message.from),
        }
    }

    /// Whom it is for.
    #[must_use]
    pub fn to(&self) -> NodeId {
        match self {
            Self::Ours(envelope, _) => envelope.to,
            Self::Theirs(message) => NodeId(message.to),
        }
    }

    /// The term that it was sent in.
    #[must_use]
    pub fn term(&self) -> Term {
        match self {
            Self::Ours(envelope, _) => envelope.term,
            Self::Theirs(message) => Term(message.term),
        }
    }

    /// Does it give a vote?
    #[must_use]
    pub fn is_vote(&self) -> bool {
        match self {
            Self::Ours(envelope, _) => envelope.message == Message::VoteReply { granted: true },
            Self::Theirs(message) => {
                message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject
            }
        }
    }

    /// Does it carry entries, or ask whether the logs agree?
    #[must_use]
    pub fn is_append(&self) -> bool {
        match self {
            Self::Ours(envelope, _) => matches!(envelope.message, Message::Append { .. }),
            Self::Theirs(message) => message.get_msg_type() == MessageType::MsgAppend,
        }
    }

    /// In our language.
    #[must_use]
    pub fn into_ours(self) -> (Envelope, Vec<Entry>) {
        match self {
            Self::Ours(envelope, entries) => (envelope, entries),
            Self::Theirs(message) => to_ours(&message),
        }
    }

    /// In the language of the crate `raft`.
    #[must_use]
    pub fn into_theirs(self) -> eraftpb::Message {
        match self {
            Self::Ours(envelope, entries) => to_theirs(&envelope, &entries),
            Self::Theirs(message) => *message,
        }
    }
}

/// An entry as `raft` has it.
#[must_use]
pub fn entry_to_theirs(entry: &Entry) -> eraftpb::Entry {
    let data = if entry.payload == 0 { Vec::new() } else { bytes_of(entry.payload) };
    let (term, index) = (entry.id.term.0, entry.id.index.0);
    eraftpb::Entry { term, index, data, ..eraftpb::Entry::default() }
}

/// An entry as we have it.
#[must_use]
pub fn entry_to_ours(entry: &eraftpb::Entry) -> Entry {
    let id = LogId { term: Term(entry.term), index: Index(entry.index) };
    Entry { id, payload: number_of(&entry.data) }
}

/// A number as the payload of an entry or the context of a message.
#[must_use]
pub fn bytes_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

/// The number in these bytes; 0 when there are none.
#[must_use]
pub fn number_of(bytes: &[u8]) -> u64 {
    if bytes.is_empty() {
        return 0;
    }
    u64::from_le_bytes(bytes.try_into().expect("we wrote eight bytes"))
}

fn context_of(read_seq: u64) -> Vec<u8> {
    if read_seq == 0 { Vec::new() } else { bytes_of(read_seq) }
}

/// Entries as our messages describe them.
#[must_use]
pub fn run_of(entries: &[Entry], last: Index) -> EntryRun {
    let mut run = EntryRun { last, ..EntryRun::default() };
    for entry in entries {
        if run.terms.last().is_none_or(|newest| newest.term < entry.id.term) {
            run.terms.push(entry.id);
        }
    }
    run
}

fn to_theirs(envelope: &Envelope, entries: &[Entry]) -> eraftpb::Message {
    let Envelope { from, to, term, message } = envelope;
    let mut m =
        eraftpb::Message { from: from.0, to: to.0, term: term.0, ..eraftpb::Message::default() };
    let kind = match message {
        Message::PreVote { last } => {
            (m.index, m.log_term) = (last.index.0, last.term.0);
            MessageType::MsgRequestPreVote
        }
        Message::PreVoteReply { granted } => {
            m.reject = !granted;
            MessageType::MsgRequestPreVoteResponse
        }
        Message::Vote { last, transfer } => {
            (m.index, m.log_term) = (last.index.0, last.term.0);
            if *transfer {
                m.context = CAMPAIGN_TRANSFER.into();
            }
            MessageType::MsgRequestVote
        }
        Message::VoteReply { granted } => {
            m.reject = !granted;
            MessageType::MsgRequestVoteResponse
        }
        Message::Append { prev, entries: _, commit, read_seq: _ } => {
            (m.index, m.log_term, m.commit) = (prev.index.0, prev.term.0, commit.0);
            m.entries = entries.iter().map(entry_to_theirs).collect();
            MessageType::MsgAppend
        }
        Message::Accepted { matched, read_seq: _ } => {
            m.index = matched.0;
            MessageType::MsgAppendResponse
        }
        Message::Rejected { prev, hint, last: _, read_seq: _ } => {
            (m.index, m.reject) = (prev.0, true);
            (m.reject_hint, m.log_term) = (hint.index.0, hint.term.0);
            MessageType::MsgAppendResponse
        }
        Message::Heartbeat { commit, read_seq } => {
            (m.commit, m.context) = (commit.0, context_of(*read_seq));
            MessageType::MsgHeartbeat
        }
        Message::HeartbeatReply { read_seq } => {
            m.context = context_of(*read_seq);
            MessageType::MsgHeartbeatResponse
        }
        Message::TimeoutNow => MessageType::MsgTimeoutNow,
        Message::ReadIndex { .. } | Message::ReadIndexReply { .. } => {
            panic!("only leaders are asked for reads: {envelope:?}")
        }
    };
    m.set_msg_type(kind);
    m
}

fn to_ours(m: &eraftpb::Message) -> (Envelope, Vec<Entry>) {
    let at = LogId { term: Term(m.log_term), index: Index(m.index) };
    let entries: Vec<Entry> = m.entries.iter().map(entry_to_ours).collect();
    let message = match m.get_msg_type() {
        MessageType::MsgRequestPreVote => Message::PreVote { last: at },
        MessageType::MsgRequestPreVoteResponse => Message::PreVoteReply { granted: !m.reject },
        MessageType::MsgRequestVote => {
            Message::Vote { last: at, transfer: m.context == CAMPAIGN_TRANSFER }
        }
        MessageType::MsgRequestVoteResponse => Message::VoteReply { granted: !m.reject },
        MessageType::MsgAppend => {
            let last = entries.last().map_or(at.index, |entry| entry.id.index);
            let (commit, read_seq) = (Index(m.commit), 0);
            Message::Append { prev: at, entries: run_of(&entries, last), commit, read_seq }
        }
        MessageType::MsgAppendResponse if m.reject => {
            let hint = LogId { term: Term(m.log_term), index: Index(m.reject_hint) };
            Message::Rejected { prev: at.index, hint, last: hint.index, read_seq: 0 }
        }
        MessageType::MsgAppendResponse => Message::Accepted { matched: at.index, read_seq: 0 },
        MessageType::MsgHeartbeat => {
            Message::Heartbeat { commit: Index(m.commit), read_seq: number_of(&m.context) }
        }
        MessageType::MsgHeartbeatResponse => {
            Message::HeartbeatReply { read_seq: number_of(&m.context) }
        }
        MessageType::MsgTimeoutNow => Message::TimeoutNow,
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgSnapshot
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp => panic!("nothing here makes it say {m:?}"),
    };
    let (from, to) = (NodeId(m.from), NodeId(m.to));
    (Envelope { from, to, term: Term(m.term), message }, entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has a word on both sides is the same after a walk there and back.
    #[test]
    fn there_and_back_nothing_changes() {
        let id = |term, index| LogId { term: Term(term), index: Index(index) };
        let entries = [id(3, 8), id(3, 9), id(5, 10)].map(|id| Entry { id, payload: id.index.0 });
        let run = run_of(&entries, Index(10));
        assert_eq!(run.terms, [id(3, 8), id(5, 10)]);
        let (commit, read_seq) = (Index(6), 0);
        for message in [
            Message::PreVote { last: id(2, 7) },
            Message::PreVoteReply { granted: true },
            Message::PreVoteReply { granted: false },
            Message::Vote { last: id(2, 7), transfer: false },
            Message::Vote { last: id(2, 7), transfer: true },
            Message::VoteReply { granted: true },
            Message::VoteReply { granted: false },
            Message::Append { prev: id(2, 7), entries: run, commit, read_seq },
            Message::Append { prev: id(2, 7), entries: run_of(&[], Index(7)), commit, read_seq },
            Message::Accepted { matched: Index(7), read_seq },
            Message::Rejected { prev: Index(7), hint: id(2, 4), last: Index(4), read_seq },
            Message::Heartbeat { commit, read_seq: 9 },
            Message::Heartbeat { commit, read_seq: 0 },
            Message::HeartbeatReply { read_seq: 9 },
            Message::TimeoutNow,
        ] {
            let carries =
                matches!(&message, Message::Append { entries, .. } if !entries.terms.is_empty());
            let carried = if carries { entries.to_vec() } else { Vec::new() };
            let envelope = Envelope { from: NodeId(1), to: NodeId(2), term: Term(6), message };
            let there = Packet::Ours(envelope.clone(), carried.clone()).into_theirs();
            assert_eq!(Packet::Theirs(Box::new(there)).into_ours(), (envelope, carried));
        }
    }
}
