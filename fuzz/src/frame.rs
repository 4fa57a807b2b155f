//! Entry frames and the packets that carry them between nodes.

use bytes::BytesMut;
use mmapd::raft::message::{EntryRun, Envelope, Message};
use mmapd::raft::types::{EntryKind, Index, LogId, Membership, NodeId, Term};
use mmapd::store::frame::{self, Frames};
use mmapd::wire::{self, Address, Aside, Content};

use super::set_weak;

const US: Address = Address { cluster: 7, node: NodeId(1), incarnation: 3 };

/// One input: whether checksums are blind, then the bytes.
pub fn run(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    set_weak(mode % 2 == 1);
    frames(data);
    packets(data);
    if let Ok(membership) = wire::decode_membership(data) {
        let again = wire::encode_membership(&membership);
        assert_eq!(wire::decode_membership(&again), Ok(membership));
    }
    if let Ok(meta) = wire::decode_snapshot_meta(data) {
        let again = wire::encode_snapshot_meta(&meta);
        assert_eq!(wire::decode_snapshot_meta(&again), Ok(meta));
    }
    set_weak(false);
}

fn frames(data: &[u8]) {
    let (mut at, mut before) = (0, None);
    for found in Frames::new(data) {
        let Ok(found) = found else { break };
        // The same bytes again, but for what depends on the chain before.
        let mut again = Vec::new();
        frame::encode(found.id, found.kind, found.time_ms, 0, found.payload, &mut again);
        let bytes = &data[at..at + found.size];
        assert_eq!((&again[4..24], &again[32..37]), (&bytes[4..24], &bytes[32..37]));
        assert_eq!(again[40..], bytes[40..]);
        assert!(before.is_none_or(|before: LogId| before.index.0 + 1 == found.id.index.0));
        assert!(frame::offset_of(data, found.id.index).is_some_and(|first| first <= at));
        before = Some(found.id);
        at += found.size;
    }
}

fn packets(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    for _ in 0..100 {
        let left = buffer.len();
        let Ok(Some(packet)) = wire::decode(US, &mut buffer) else { break };
        assert!(buffer.len() < left, "it moves on");
        let from =
            Address { cluster: US.cluster, node: packet.from, incarnation: packet.incarnation };
        let again = match &packet.content {
            Content::Protocol(envelope) => wire::encode(from, envelope, packet.frames.len()),
            Content::Aside(aside) => wire::encode_aside(from, US.node, *aside, packet.frames.len()),
        };
        let mut again = BytesMut::from(&again[..]);
        again.extend_from_slice(&packet.frames);
        assert_eq!(wire::decode(US, &mut again), Ok(Some(packet)));
    }
}

/// Frames, packets, a membership; each for both modes.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    set_weak(false);
    let id = |index| LogId { term: Term(2), index: Index(index) };
    let members = [(NodeId(1), "http://a".to_owned()), (NodeId(2), "http://b".to_owned())];
    let membership = wire::encode_membership(&Membership::of(members.into()));
    let mut run = Vec::new();
    let chain = frame::encode(id(4), EntryKind::Command, 5, 1, b"payload", &mut run);
    frame::encode(id(5), EntryKind::Config, 6, chain, &membership, &mut run);
    let prev = id(3);
    let entries = EntryRun { last: prev.index, ..EntryRun::default() };
    let messages = [
        Message::Append { prev, entries, commit: Index(3), read_seq: 9 },
        Message::Vote { last: prev, transfer: true },
        Message::Rejected { prev: Index(3), hint: prev, last: Index(3), read_seq: 1 },
        Message::ReadIndexReply { id: 1, index: Some(Index(3)) },
    ];
    let mut bodies = vec![run.clone(), membership];
    for message in messages {
        let with = matches!(message, Message::Append { .. });
        let frames = if with { &run[..] } else { &[] };
        let envelope = Envelope { from: NodeId(2), to: NodeId(1), term: Term(2), message };
        let mut packet = wire::encode(US, &envelope, frames.len());
        packet.extend_from_slice(frames);
        bodies.push(packet);
    }
    let digest = Aside::Digest { index: Index(4096), digest: 7 };
    for (aside, frames) in [
        (Aside::Fetch { first: Index(4), last: Index(5) }, &[][..]),
        (Aside::Frames, &run),
        (digest, &[]),
        (Aside::NeedState, &[]),
        (Aside::Stranger, &[]),
    ] {
        let mut packet = wire::encode_aside(US, US.node, aside, frames.len());
        packet.extend_from_slice(frames);
        bodies.push(packet);
    }
    let both = |body: Vec<u8>| [0, 1].map(|mode| [&[mode][..], &body].concat());
    bodies.into_iter().flat_map(both).collect()
}
