//! The entry frame: the same bytes on every node, on disk and on the wire.
//!
//! Little-endian, padded with zeros to a multiple of 8:
//!
//! | bytes  | field | meaning |
//! |--------|-------|---------|
//! | 0..4   | hcrc  | CRC-32C of bytes 4..48 |
//! | 4..8   | len   | payload bytes |
//! | 8..16  | index | place in the log |
//! | 16..24 | term  | of the entry |
//! | 24..32 | chain | hash over this header and the chain of the entry before |
//! | 32..36 | pcrc  | CRC-32C of the payload |
//! | 36     | kind  | see [`EntryKind`] |
//! | 37..40 | zero  | flags and version, for later |
//! | 40..48 | time  | milliseconds of the leader's clock |
//! | 48..   | payload | |
//!
//! Header and payload have checksums of their own, so a damaged payload still has a name.
//! The chain makes two logs equal up to an index if and only if it is equal there.
//! The decoder is total.

use xxhash_rust::xxh3::Xxh3;

use crate::raft::types::{EntryKind, Index, LogId, Term};

/// Bytes before the payload.
pub const HEADER: usize = 48;
/// Largest payload.
pub const PAYLOAD_MAX: usize = 16 << 20;

/// One frame, borrowed from where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its name.
    pub id: LogId,
    /// What the payload is.
    pub kind: EntryKind,
    /// The leader's clock when it was proposed.
    pub time_ms: u64,
    /// Hash of everything up to and including this entry.
    pub chain: u64,
    /// The payload.
    pub payload: &'a [u8],
    /// Bytes from this frame to the next.
    pub size: usize,
    /// Checksum of the payload, which fits.
    pcrc: u32,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame says, or than a header has.
    #[error("cut short")]
    Short,
    /// The header is damaged: nothing of it can be believed.
    #[error("the header is damaged")]
    Header,
    /// The payload is damaged, and this is the entry that it belonged to.
    #[error("the payload of entry {0} is damaged")]
    Payload(LogId),
    /// The chain does not continue from the entry before.
    #[error("entry {0} does not continue the chain")]
    Chain(LogId),
}

/// Bytes that a payload of `len` takes as a frame.
#[must_use]
pub fn size_of(len: usize) -> usize {
    (HEADER + len).next_multiple_of(8)
}

/// Appends a frame to `out`; returns its chain.
///
/// # Panics
/// When the payload is larger than [`PAYLOAD_MAX`].
pub fn encode(
    id: LogId,
    kind: EntryKind,
    time_ms: u64,
    prev_chain: u64,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> u64 {
    assert!(payload.len() <= PAYLOAD_MAX, "the edge refuses what is larger");
    let len = u32::try_from(payload.len()).expect("checked above");
    let pcrc = crc32c::crc32c(payload);
    let chain = chain_of(prev_chain, id, kind as u8, len, pcrc, time_ms);
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[8..16].copy_from_slice(&id.index.0.to_le_bytes());
    header[16..24].copy_from_slice(&id.term.0.to_le_bytes());
    header[24..32].copy_from_slice(&chain.to_le_bytes());
    header[32..36].copy_from_slice(&pcrc.to_le_bytes());
    header[36] = kind as u8;
    header[40..48].copy_from_slice(&time_ms.to_le_bytes());
    let hcrc = crc32c::crc32c(&header[4..]);
    header[0..4].copy_from_slice(&hcrc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    out.resize(out.len() + size_of(payload.len()) - HEADER - payload.len(), 0);
    chain
}

fn chain_of(prev: u64, id: LogId, kind: u8, len: u32, pcrc: u32, time_ms: u64) -> u64 {
    let mut bytes = [0; 48];
    bytes[0..8].copy_from_slice(&prev.to_le_bytes());
    bytes[8..16].copy_from_slice(&id.index.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&id.term.0.to_le_bytes());
    bytes[24] = kind;
    bytes[28..32].copy_from_slice(&len.to_le_bytes());
    bytes[32..36].copy_from_slice(&pcrc.to_le_bytes());
    bytes[40..48].copy_from_slice(&time_ms.to_le_bytes());
    let mut hash = Xxh3::new();
    hash.update(&bytes);
    hash.digest()
}

fn u32_at(header: &[u8; HEADER], at: usize) -> u32 {
    header.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(header: &[u8; HEADER], at: usize) -> u64 {
    header.get(at..).and_then(|tail| tail.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

/// What a frame says before its payload, which may be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) id: LogId,
    pub(super) kind: EntryKind,
    pub(super) chain: u64,
    /// Bytes from this frame to the next.
    pub(super) size: usize,
    pub(super) len: u32,
    pub(super) pcrc: u32,
    time_ms: u64,
}

impl Head {
    /// Does it continue a log whose last entry has this chain?
    pub(super) fn continues(&self, prev_chain: u64) -> bool {
        let kind = self.kind as u8;
        self.chain == chain_of(prev_chain, self.id, kind, self.len, self.pcrc, self.time_ms)
    }
}

/// Reads the header of the frame at the front of `input`.
///
/// # Errors
/// `Short` or `Header`.
pub(super) fn head(input: &[u8]) -> Result<Head, FrameError> {
    let header = input.first_chunk::<HEADER>().ok_or(FrameError::Short)?;
    let (_, covered) = header.split_at(4);
    if crc32c::crc32c(covered) != u32_at(header, 0) {
        return Err(FrameError::Header);
    }
    let len = usize::try_from(u32_at(header, 4)).map_err(|_| FrameError::Header)?;
    let kind = EntryKind::from_byte(header[36]).ok_or(FrameError::Header)?;
    if len > PAYLOAD_MAX {
        return Err(FrameError::Header);
    }
    Ok(Head {
        id: LogId { term: Term(u64_at(header, 16)), index: Index(u64_at(header, 8)) },
        kind,
        chain: u64_at(header, 24),
        size: size_of(len),
        len: u32_at(header, 4),
        pcrc: u32_at(header, 32),
        time_ms: u64_at(header, 40),
    })
}

/// Reads the frame at the front of `input`, its chain unchecked.
///
/// # Errors
/// See [`FrameError`].
pub fn decode(input: &[u8]) -> Result<Frame<'_>, FrameError> {
    let head = head(input)?;
    let Head { id, kind, chain, size, time_ms, .. } = head;
    let len = usize::try_from(head.len).map_err(|_| FrameError::Header)?;
    let payload = input.get(HEADER..HEADER + len).ok_or(FrameError::Short)?;
    let padding = input.get(HEADER + len..size).ok_or(FrameError::Short)?;
    if crc32c::crc32c(payload) != head.pcrc || padding.iter().any(|byte| *byte != 0) {
        return Err(FrameError::Payload(id));
    }
    Ok(Frame { id, kind, time_ms, chain, payload, size, pcrc: head.pcrc })
}

impl Frame<'_> {
    /// Does it continue a log whose last entry has this chain?
    #[must_use]
    pub fn continues(&self, prev_chain: u64) -> bool {
        let Ok(len) = u32::try_from(self.payload.len()) else { return false };
        let kind = self.kind as u8;
        self.chain == chain_of(prev_chain, self.id, kind, len, self.pcrc, self.time_ms)
    }
}

/// The frames of a run, one after the other: whole, in order of index, terms that never
/// fall, each continuing the chain of the one before. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
    prev: Option<(LogId, u64)>,
}

impl<'a> Frames<'a> {
    /// Frames that begin anywhere: the chain of the first is not checked.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, prev: None }
    }

    fn check(&mut self, frame: &Frame<'a>) -> Result<(), FrameError> {
        if let Some((prev, chain)) = self.prev
            && (frame.id.index.0.checked_sub(1) != Some(prev.index.0)
                || frame.id.term < prev.term
                || !frame.continues(chain))
        {
            return Err(FrameError::Chain(frame.id));
        }
        self.prev = Some((frame.id, frame.chain));
        Ok(())
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let result = decode(self.rest).and_then(|frame| self.check(&frame).map(|()| frame));
        self.rest = match &result {
            Ok(frame) => self.rest.get(frame.size..).unwrap_or_default(),
            Err(_) => &[],
        };
        Some(result)
    }
}

/// Where in a verified run the frame of entry `index` begins.
#[must_use]
pub fn offset_of(run: &[u8], index: Index) -> Option<usize> {
    let mut at = 0;
    while let Ok(frame) = decode(run.get(at..)?) {
        if frame.id.index == index {
            return Some(at);
        }
        at += frame.size;
    }
    None
}

/// The time of the last entry of a verified run; 0 if it is empty.
#[must_use]
pub fn newest_time(run: &[u8]) -> u64 {
    let (mut at, mut newest) = (0, 0);
    while let Some(Ok(frame)) = run.get(at..).map(head) {
        newest = frame.time_ms;
        at += frame.size;
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // Under Miri every one of them takes seconds.
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            cases: if cfg!(miri) { 1 } else { 256 },
            ..ProptestConfig::default()
        })]

        #[test]
        fn frames_survive_and_no_cut_or_flipped_bit_is_believed(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            (index, term, time, prev) in any::<(u64, u64, u64, u64)>(),
        ) {
            let id = LogId { term: Term(term), index: Index(index) };
            let mut bytes = Vec::new();
            let chain = encode(id, EntryKind::Command, time, prev, &payload, &mut bytes);
            let frame = decode(&bytes).unwrap();
            prop_assert_eq!((frame.id, frame.time_ms, frame.chain), (id, time, chain));
            prop_assert_eq!((frame.payload, frame.size), (&payload[..], bytes.len()));
            prop_assert!(frame.continues(prev) && !frame.continues(prev ^ 1));
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..cut]), Err(FrameError::Short));
            }
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(decode(&bad).is_err(), "bit {}", bit);
            }
        }
    }
}
