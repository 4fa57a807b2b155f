//! Messages between nodes as bytes. The decoder is total: any bytes give a packet or an
//! error, never a panic, and no length is believed before it is checked.
//!
//! A packet is a header, the fields of its message, and for an append the frames of its
//! entries, which are the bytes of the log itself. Little-endian:
//!
//! | bytes  | field | meaning |
//! |--------|-------|---------|
//! | 0..4   | magic | `MMRP` |
//! | 4..6   | version | 1 |
//! | 6      | kind | which message |
//! | 7      | zero | |
//! | 8..24  | cluster | the cluster's id |
//! | 24..32 | from | the sender |
//! | 32..40 | to | the receiver |
//! | 40..48 | incarnation | of the sender's data directory |
//! | 48..56 | term | the sender's |
//! | 56..60 | fields | bytes of the message's fields |
//! | 60..64 | frames | bytes of frames after the fields |
//! | 64..68 | crc | CRC-32C of the header before it and of the fields |
//!
//! The frames carry checksums of their own (see `store::frame`) and are checked where
//! they are used, before they reach the log.

use bytes::{Buf, Bytes, BytesMut};

use crate::raft::message::{EntryRun, Envelope, Message, SnapshotMeta};
use crate::raft::types::{Index, LogId, Membership, NodeId, Term};

/// Bytes of a packet before the fields.
pub const HEADER: usize = 68;
/// Longest configuration, old and new members together: it must fit into the meta page of the database.
pub const MEMBERSHIP_MAX: usize = 2040;
/// Largest field part: a configuration is by far the largest.
const FIELDS_MAX: usize = 64 << 10;
/// Largest frame part of one packet: one entry of the greatest size, or a full batch.
pub const FRAMES_MAX: usize = 24 << 20;
const MAGIC: u32 = u32::from_le_bytes(*b"MMRP");
const VERSION: u16 = 1;

/// Why bytes are not a packet for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not the format, or damaged on the way.
    #[error("not a packet: {0}")]
    Malformed(&'static str),
    /// Well-formed, for somebody else: a recycled address, or a wrong configuration.
    #[error("meant for {wanted}, and this is {found}")]
    Misdirected {
        /// Whom it names.
        wanted: String,
        /// Who we are.
        found: String,
    },
}

/// Who we are, on every packet we send and in every check of what we receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The cluster's id.
    pub cluster: u128,
    /// This node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: u64,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it.
    pub from: NodeId,
    /// The sender's incarnation.
    pub incarnation: u64,
    /// What it says.
    pub content: Content,
    /// The entries of an append or of [`Aside::Frames`], verbatim; empty otherwise.
    pub frames: Bytes,
}

/// What a packet says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A message of the protocol. An append comes without its run of entries: whoever
    /// checks the frames fills it in.
    Protocol(Envelope),
    /// From driver to driver; the protocol hears nothing of it.
    Aside(Aside),
}

/// What nodes say to each other about their files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// "My copies of these entries are damaged: send me yours."
    Fetch {
        /// The first entry.
        first: Index,
        /// The last one.
        last: Index,
    },
    /// Answer to `Fetch`: the frames follow, as many as there are in one piece.
    Frames,
    /// "After this entry, the digest of my state was this."
    Digest {
        /// The entry.
        index: Index,
        /// The digest.
        digest: u128,
    },
    /// "My database is lost: send me a snapshot."
    NeedState,
    /// "You do not belong to the cluster, or did with another data folder."
    Stranger,
}

/// Encodes all but the frames, of which `frames` bytes will follow.
///
/// # Panics
/// When the frames are larger than [`FRAMES_MAX`]: the sender splits before.
#[must_use]
pub fn encode(us: Address, envelope: &Envelope, frames: usize) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    let kind = put_fields(&envelope.message, &mut out);
    let Envelope { from, to, term, .. } = *envelope;
    finish(us, (from, to, term), kind, frames, out)
}

/// As [`encode`], for what is said aside.
///
/// # Panics
/// As for [`encode`].
#[must_use]
pub fn encode_aside(us: Address, to: NodeId, aside: Aside, frames: usize) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    let kind = match aside {
        Aside::Fetch { first, last } => {
            put(&mut out, &[first.0, last.0]);
            32
        }
        Aside::Frames => 33,
        Aside::Digest { index, digest } => {
            put(&mut out, &[index.0]);
            out.extend(digest.to_le_bytes());
            34
        }
        Aside::NeedState => 35,
        Aside::Stranger => 36,
    };
    finish(us, (us.node, to, Term(0)), kind, frames, out)
}

fn put(out: &mut Vec<u8>, numbers: &[u64]) {
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

/// Fills in the header before the fields.
fn finish(
    us: Address,
    (from, to, term): (NodeId, NodeId, Term),
    kind: u8,
    frames: usize,
    mut out: Vec<u8>,
) -> Vec<u8> {
    assert!(frames <= FRAMES_MAX, "the sender splits what is larger");
    let fields = u32::try_from(out.len() - HEADER).expect("fields are small");
    let frames = u32::try_from(frames).expect("checked above");
    out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[6] = kind;
    out[8..24].copy_from_slice(&us.cluster.to_le_bytes());
    out[24..32].copy_from_slice(&from.0.to_le_bytes());
    out[32..40].copy_from_slice(&to.0.to_le_bytes());
    out[40..48].copy_from_slice(&us.incarnation.to_le_bytes());
    out[48..56].copy_from_slice(&term.0.to_le_bytes());
    out[56..60].copy_from_slice(&fields.to_le_bytes());
    out[60..64].copy_from_slice(&frames.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..64]), &out[HEADER..]);
    out[64..68].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Takes one packet off the front of `buffer`; `None`: more bytes are needed.
///
/// # Errors
/// `Malformed`, after which the stream cannot be trusted; `Misdirected`.
pub fn decode(us: Address, buffer: &mut BytesMut) -> Result<Option<Packet>, WireError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let mut head = Fields { left: header };
    if head.u32()? != MAGIC {
        return Err(WireError::Malformed("wrong magic"));
    }
    if head.u16()? != VERSION {
        return Err(WireError::Malformed("another version of the protocol"));
    }
    let (kind, _) = (head.u8()?, head.u8()?);
    let cluster = head.u128()?;
    let (from, to) = (NodeId(head.u64()?), NodeId(head.u64()?));
    let (incarnation, term) = (head.u64()?, Term(head.u64()?));
    let (fields, frames, crc) = (head.len()?, head.len()?, head.u32()?);
    if fields > FIELDS_MAX || frames > FRAMES_MAX {
        return Err(WireError::Malformed("a length beyond the limit"));
    }
    // Checked before waiting for the rest, so that a stranger's stream ends at once.
    if cluster != us.cluster || to != us.node {
        return Err(WireError::Misdirected {
            wanted: format!("{to} of cluster {cluster:032x}"),
            found: format!("{} of cluster {:032x}", us.node, us.cluster),
        });
    }
    if buffer.len() < HEADER + fields + frames {
        buffer.reserve(HEADER + fields + frames - buffer.len());
        return Ok(None);
    }
    let found = crc32c::crc32c(buffer.get(..64).unwrap_or_default());
    let rest = buffer.get(HEADER..HEADER + fields).unwrap_or_default();
    if crc32c::crc32c_append(found, rest) != crc {
        return Err(WireError::Malformed("wrong checksum"));
    }
    let mut packet = buffer.split_to(HEADER + fields + frames).freeze();
    packet.advance(HEADER);
    let head = packet.split_to(fields);
    let mut input = Fields { left: &head };
    let (content, with_frames) = if kind < 32 {
        let message = take_fields(kind, &mut input)?;
        let with_frames = matches!(message, Message::Append { .. });
        (Content::Protocol(Envelope { from, to, term, message }), with_frames)
    } else {
        let aside = take_aside(kind, &mut input)?;
        (Content::Aside(aside), aside == Aside::Frames)
    };
    if !input.left.is_empty() {
        return Err(WireError::Malformed("bytes after the fields"));
    }
    if !packet.is_empty() && !with_frames {
        return Err(WireError::Malformed("frames on a message that has none"));
    }
    Ok(Some(Packet { from, incarnation, content, frames: packet }))
}

fn take_aside(kind: u8, input: &mut Fields<'_>) -> Result<Aside, WireError> {
    Ok(match kind {
        32 => Aside::Fetch { first: input.index()?, last: input.index()? },
        33 => Aside::Frames,
        34 => Aside::Digest { index: input.index()?, digest: input.u128()? },
        35 => Aside::NeedState,
        36 => Aside::Stranger,
        _ => return Err(WireError::Malformed("unknown kind of message")),
    })
}

fn put_fields(message: &Message, out: &mut Vec<u8>) -> u8 {
    match message {
        Message::PreVote { last } => {
            put(out, &[last.term.0, last.index.0]);
            1
        }
        Message::PreVoteReply { granted } => {
            put(out, &[u64::from(*granted)]);
            2
        }
        Message::Vote { last, transfer } => {
            put(out, &[last.term.0, last.index.0, u64::from(*transfer)]);
            3
        }
        Message::VoteReply { granted } => {
            put(out, &[u64::from(*granted)]);
            4
        }
        Message::Append { prev, entries: _, commit, read_seq } => {
            put(out, &[prev.term.0, prev.index.0, commit.0, *read_seq]);
            5
        }
        Message::Accepted { matched, read_seq } => {
            put(out, &[matched.0, *read_seq]);
            6
        }
        Message::Rejected { prev, hint, last, read_seq } => {
            put(out, &[prev.0, hint.term.0, hint.index.0, last.0, *read_seq]);
            7
        }
        Message::Heartbeat { commit, read_seq } => {
            put(out, &[commit.0, *read_seq]);
            8
        }
        Message::HeartbeatReply { read_seq } => {
            put(out, &[*read_seq]);
            9
        }
        Message::ReadIndex { id } => {
            put(out, &[*id]);
            10
        }
        Message::ReadIndexReply { id, index } => {
            put(out, &[*id, u64::from(index.is_some()), index.unwrap_or_default().0]);
            11
        }
        Message::TimeoutNow => 12,
    }
}

fn take_fields(kind: u8, input: &mut Fields<'_>) -> Result<Message, WireError> {
    Ok(match kind {
        1 => Message::PreVote { last: input.log_id()? },
        2 => Message::PreVoteReply { granted: input.flag()? },
        3 => Message::Vote { last: input.log_id()?, transfer: input.flag()? },
        4 => Message::VoteReply { granted: input.flag()? },
        5 => {
            let prev = input.log_id()?;
            let entries = EntryRun { last: prev.index, ..EntryRun::default() };
            Message::Append { prev, entries, commit: input.index()?, read_seq: input.u64()? }
        }
        6 => Message::Accepted { matched: input.index()?, read_seq: input.u64()? },
        7 => Message::Rejected {
            prev: input.index()?,
            hint: input.log_id()?,
            last: input.index()?,
            read_seq: input.u64()?,
        },
        8 => Message::Heartbeat { commit: input.index()?, read_seq: input.u64()? },
        9 => Message::HeartbeatReply { read_seq: input.u64()? },
        10 => Message::ReadIndex { id: input.u64()? },
        11 => {
            let (id, known, index) = (input.u64()?, input.flag()?, input.index()?);
            Message::ReadIndexReply { id, index: known.then_some(index) }
        }
        12 => Message::TimeoutNow,
        _ => return Err(WireError::Malformed("unknown kind of message")),
    })
}

/// The payload of a configuration entry, and what a snapshot says of its members.
#[must_use]
pub fn encode_membership(membership: &Membership) -> Vec<u8> {
    let mut out = vec![1, u8::from(membership.auto_leave)];
    let lists = [
        &membership.voters,
        &membership.outgoing,
        &membership.learners,
        &membership.learners_next,
        &membership.promote,
    ];
    for list in lists {
        out.extend((list.len() as u64).to_le_bytes());
        out.extend(list.iter().flat_map(|id| id.0.to_le_bytes()));
    }
    out.extend((membership.addresses.len() as u64).to_le_bytes());
    for (id, url) in &membership.addresses {
        out.extend(id.0.to_le_bytes());
        out.extend((url.len() as u64).to_le_bytes());
        out.extend(url.as_bytes());
    }
    out.extend((membership.incarnations.len() as u64).to_le_bytes());
    for (id, incarnation) in &membership.incarnations {
        put(&mut out, &[id.0, *incarnation]);
    }
    out
}

/// Reads what [`encode_membership`] wrote.
///
/// # Errors
/// `Malformed`.
pub fn decode_membership(bytes: &[u8]) -> Result<Membership, WireError> {
    let mut input = Fields { left: bytes };
    if input.u8()? != 1 {
        return Err(WireError::Malformed("another version of a configuration"));
    }
    let auto_leave = match input.u8()? {
        0 => false,
        1 => true,
        _ => return Err(WireError::Malformed("neither yes nor no")),
    };
    let mut list = || {
        let len = input.count()?;
        (0..len).map(|_| Ok(NodeId(input.u64()?))).collect::<Result<Vec<_>, WireError>>()
    };
    let (voters, outgoing, learners) = (list()?, list()?, list()?);
    let (learners_next, promote) = (list()?, list()?);
    let mut addresses = std::collections::BTreeMap::new();
    for _ in 0..input.count()? {
        let id = NodeId(input.u64()?);
        let len = input.count()?;
        let url = std::str::from_utf8(input.take(len)?)
            .map_err(|_| WireError::Malformed("an address that is not UTF-8"))?;
        addresses.insert(id, url.to_owned());
    }
    let mut incarnations = std::collections::BTreeMap::new();
    for _ in 0..input.count()? {
        incarnations.insert(NodeId(input.u64()?), input.u64()?);
    }
    if !input.left.is_empty() {
        return Err(WireError::Malformed("bytes after a configuration"));
    }
    Ok(Membership {
        voters,
        outgoing,
        learners,
        learners_next,
        auto_leave,
        promote,
        addresses,
        incarnations,
    })
}

/// What precedes the chunks of a snapshot: header fields like any packet's, so that it is
/// checked for the right cluster and node.
#[must_use]
pub fn encode_snapshot_meta(meta: &SnapshotMeta) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(meta.last.term.0.to_le_bytes());
    out.extend(meta.last.index.0.to_le_bytes());
    out.extend(encode_membership(&meta.membership));
    out
}

/// Reads what [`encode_snapshot_meta`] wrote.
///
/// # Errors
/// `Malformed`.
pub fn decode_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, WireError> {
    let mut input = Fields { left: bytes };
    let last = input.log_id()?;
    Ok(SnapshotMeta { last, membership: decode_membership(input.left)? })
}

/// What is left of some bytes; every step checks that there is enough.
struct Fields<'a> {
    left: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, left) =
            self.left.split_at_checked(len).ok_or(WireError::Malformed("fields cut short"))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Malformed("fields cut short"))
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u128(&mut self) -> Result<u128, WireError> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    fn len(&mut self) -> Result<usize, WireError> {
        usize::try_from(self.u32()?).map_err(|_| WireError::Malformed("a length beyond memory"))
    }

    /// A number of things that follow; each takes at least one byte, so more than what is
    /// left is refused before anything is allocated for it.
    fn count(&mut self) -> Result<usize, WireError> {
        let count = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        if count > self.left.len() {
            return Err(WireError::Malformed("a count beyond the fields"));
        }
        Ok(count)
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        match self.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Malformed("neither yes nor no")),
        }
    }

    fn index(&mut self) -> Result<Index, WireError> {
        Ok(Index(self.u64()?))
    }

    fn log_id(&mut self) -> Result<LogId, WireError> {
        Ok(LogId { term: Term(self.u64()?), index: Index(self.u64()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Address = Address { cluster: 7, node: NodeId(2), incarnation: 5 };

    fn id(term: u64, index: u64) -> LogId {
        LogId { term: Term(term), index: Index(index) }
    }

    fn messages() -> Vec<Message> {
        vec![
            Message::PreVote { last: id(3, 9) },
            Message::PreVoteReply { granted: true },
            Message::Vote { last: id(3, 9), transfer: true },
            Message::VoteReply { granted: false },
            Message::Append {
                prev: id(2, 4),
                entries: EntryRun { last: Index(4), ..EntryRun::default() },
                commit: Index(3),
                read_seq: 8,
            },
            Message::Accepted { matched: Index(4), read_seq: 8 },
            Message::Rejected { prev: Index(9), hint: id(1, 2), last: Index(6), read_seq: 0 },
            Message::Heartbeat { commit: Index(4), read_seq: 9 },
            Message::HeartbeatReply { read_seq: 9 },
            Message::ReadIndex { id: 77 },
            Message::ReadIndexReply { id: 77, index: Some(Index(4)) },
            Message::ReadIndexReply { id: 78, index: None },
            Message::TimeoutNow,
        ]
    }

    fn asides() -> impl Iterator<Item = Aside> {
        let digest = Aside::Digest { index: Index(4096), digest: u128::MAX / 3 };
        let fetch = Aside::Fetch { first: Index(5), last: Index(9) };
        [fetch, Aside::Frames, digest, Aside::NeedState, Aside::Stranger].into_iter()
    }

    fn envelope(message: Message) -> Envelope {
        Envelope { from: NodeId(1), to: NodeId(2), term: Term(3), message }
    }

    #[test]
    fn packets_survive_a_stream_cut_anywhere() {
        let mut stream = Vec::new();
        for message in messages() {
            let frames: &[u8] =
                if matches!(message, Message::Append { .. }) { b"frames" } else { b"" };
            stream.extend(encode(US, &envelope(message), frames.len()));
            stream.extend(frames);
        }
        let us = Address { node: NodeId(1), ..US };
        for aside in asides() {
            let frames: &[u8] = if aside == Aside::Frames { b"frames" } else { b"" };
            stream.extend(encode_aside(us, US.node, aside, frames.len()));
            stream.extend(frames);
        }
        for step in [1, 7, 64, stream.len()] {
            let mut buffer = BytesMut::new();
            let mut found = Vec::new();
            for part in stream.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(packet) = decode(US, &mut buffer).unwrap() {
                    found.push(packet.content);
                }
            }
            let sent = messages().into_iter().map(|message| Content::Protocol(envelope(message)));
            let sent: Vec<Content> = sent.chain(asides().map(Content::Aside)).collect();
            assert_eq!(found, sent, "cut into steps of {step}");
        }
    }

    #[test]
    fn a_flipped_bit_is_never_believed() {
        let asides = asides().map(|aside| encode_aside(US, US.node, aside, 0));
        let messages = messages().into_iter().map(|message| encode(US, &envelope(message), 0));
        for (number, good) in messages.chain(asides).enumerate() {
            for at in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[at / 8] ^= 1 << (at % 8);
                let mut buffer = BytesMut::from(&bad[..]);
                let decoded = decode(US, &mut buffer);
                assert!(!matches!(decoded, Ok(Some(_))), "bit {at} of message {number}");
            }
        }
    }

    #[test]
    fn a_packet_for_another_cluster_or_node_is_misdirected() {
        let good = encode(US, &envelope(Message::TimeoutNow), 0);
        for us in [Address { cluster: 8, ..US }, Address { node: NodeId(3), ..US }] {
            let decoded = decode(us, &mut BytesMut::from(&good[..]));
            assert!(matches!(decoded, Err(WireError::Misdirected { .. })));
        }
    }

    #[test]
    fn a_configuration_survives_its_encoding_and_no_prefix_is_one() {
        let membership = Membership {
            voters: vec![NodeId(1), NodeId(2)],
            outgoing: vec![NodeId(3)],
            learners: vec![NodeId(4)],
            learners_next: vec![],
            auto_leave: true,
            promote: vec![NodeId(4)],
            addresses: [(NodeId(1), "http://127.0.0.1:3001".to_owned())].into(),
            incarnations: [(NodeId(1), 7)].into(),
        };
        let bytes = encode_membership(&membership);
        assert_eq!(decode_membership(&bytes), Ok(membership));
        for cut in 0..bytes.len() {
            assert!(decode_membership(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
