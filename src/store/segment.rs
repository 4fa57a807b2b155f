//! One file of the log: its header, and the headers of the batches in it.
//!
//! A segment is filled with zeros and made durable before it gets its name, so that an
//! append never waits for the file system's own records, and so that zeros mean "never
//! written". Its header, little-endian, in the first 4096 bytes, and once more 2048 bytes
//! later, so that one bad sector does not lose a segment:
//!
//! | bytes  | field | meaning |
//! |--------|-------|---------|
//! | 0..8   | magic | `MMAPDLOG` |
//! | 8..12  | version | 1 |
//! | 12..16 | crc | CRC-32C of bytes 16..128 |
//! | 16..48 | cluster, node, incarnation | identity |
//! | 48..64 | sequence, base | number of the file; log position of its first byte |
//! | 64..88 | term, index, chain | of the entry before the first one here |
//! | 88..96 | salt | drawn once; keys the checksums of batch headers |
//! | 96..104 | flags | 1: the chain is not known, 2: the log begins anew here |
//!
//! A batch is what one sync made durable: a header of 80 bytes at a multiple of 64, then
//! frames. The gap before it is filled with `0xFF`, so that no part of a batch inside a
//! sector is zero only because it is padding.
//!
//! | bytes  | field | meaning |
//! |--------|-------|---------|
//! | 0..4   | magic | `BTCH` |
//! | 4..8   | crc | CRC-32C of salt and bytes 8..80 |
//! | 8..16  | position | its own place in the log |
//! | 16..24 | synced | position known to be durable when it was written |
//! | 24..28 | bytes | of frames |
//! | 28..32 | count | of frames |
//! | 32..40 | first | index of the first frame, or of the entry to come |
//! | 40..48 | commit | known then |
//! | 48..64 | term, vote | the node's, as a second record of both |
//! | 64..68 | flags | 1: repair, 2: seal, 4: mark |
//! | 68..72 | zero | |
//! | 72..80 | chain | of the entry before `first`; 0: not told |
//!
//! A *repair* replaces single damaged entries, each frame that of its own index, and leaves
//! what follows them. A *mark* has no frames, perhaps some
//! filling: it says only how far the log is durable. A *seal* is
//! the empty last batch of its segment.

use std::path::{Path, PathBuf};

use super::Identity;
use super::disk::{Disk, FileKind, Region, grow_with_zeros};
use super::error::StoreError;
use super::map::AppendMap;
use crate::raft::types::{Index, LogId, NodeId, Term};

/// Bytes of a segment before its first batch.
pub(super) const HEADER: u64 = 4096;
/// Bytes of a batch before its frames.
pub(super) const BATCH: usize = 80;
/// Batches begin at multiples of this.
pub(super) const ALIGN: u64 = 64;
/// What a disk writes, or loses, as one.
pub(super) const SECTOR: u64 = 512;
/// Room that is always left for the seal.
pub(super) const SEAL_ROOM: u64 = BATCH as u64 + ALIGN;
const MAGIC: [u8; 8] = *b"MMAPDLOG";
const VERSION: u32 = 1;
const COVERED: usize = 128;
/// Where the second copy of the header is.
const COPY: usize = 2048;
const CHAIN_LOST: u64 = 1;
const ANEW: u64 = 2;
const BATCH_MAGIC: [u8; 4] = *b"BTCH";
/// Replaces damaged entries, and nothing behind them.
pub(super) const REPAIR: u32 = 1;
/// Proves what is before it, and holds nothing.
pub(super) const MARK: u32 = 4;
/// The last batch of its segment.
pub(super) const SEAL: u32 = 2;

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) identity: Identity,
    pub(super) sequence: u64,
    pub(super) base: u64,
    pub(super) prev: LogId,
    /// `None`: that entry was damaged, header and all, when this segment was begun.
    pub(super) prev_chain: Option<u64>,
    pub(super) salt: u64,
    /// The log was reset: no earlier segment counts.
    pub(super) anew: bool,
}

/// What the header of a batch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) position: u64,
    pub(super) synced: u64,
    pub(super) bytes: u32,
    pub(super) count: u32,
    pub(super) first: Index,
    pub(super) commit: Index,
    pub(super) term: Term,
    pub(super) vote: Option<NodeId>,
    pub(super) flags: u32,
    /// Of the entry before `first`: it confirms what stands before this batch.
    pub(super) prev_chain: Option<u64>,
}

/// The number at an offset; `None`: beyond the end.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).map(|b| u64::from_le_bytes(*b))
}

/// As [`word`], four bytes.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).map(|b| u32::from_le_bytes(*b))
}

/// Name of the file with this number.
pub(super) fn path_of(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:016x}.seg"))
}

/// The number in a file name; `None`: not a segment.
pub(super) fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

impl SegmentHeader {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; COVERED];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.identity.cluster.to_le_bytes());
        let mut flags = 0;
        if self.prev_chain.is_none() {
            flags |= CHAIN_LOST;
        }
        if self.anew {
            flags |= ANEW;
        }
        let numbers = [
            self.identity.node.0,
            self.identity.incarnation,
            self.sequence,
            self.base,
            self.prev.term.0,
            self.prev.index.0,
            self.prev_chain.unwrap_or_default(),
            self.salt,
            flags,
        ];
        for (number, at) in numbers.iter().zip((32..).step_by(8)) {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[16..COVERED]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        let first = out.clone();
        out.resize(COPY, 0);
        out.extend_from_slice(&first);
        out
    }

    /// Total: any bytes give a header or nothing. `bytes` are the first page.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        Self::decode_copy(bytes).or_else(|| Self::decode_copy(bytes.get(COPY..)?))
    }

    /// Where a copy in the first page is damaged, if one is.
    pub(super) fn damaged_copy(bytes: &[u8]) -> Option<u64> {
        let is_whole = |at: usize| bytes.get(at..).and_then(Self::decode_copy).is_some();
        [0, COPY].into_iter().find(|at| !is_whole(*at)).map(|at| at as u64)
    }

    fn decode_copy(bytes: &[u8]) -> Option<Self> {
        let covered = bytes.get(16..COVERED)?;
        if bytes.first_chunk() != Some(&MAGIC)
            || half(bytes, 8)? != VERSION
            || half(bytes, 12)? != crc32c::crc32c(covered)
        {
            return None;
        }
        let cluster = u128::from_le_bytes(*bytes.get(16..)?.first_chunk()?);
        let flags = word(bytes, 96)?;
        Some(Self {
            identity: Identity {
                cluster,
                node: NodeId(word(bytes, 32)?),
                incarnation: word(bytes, 40)?,
            },
            sequence: word(bytes, 48)?,
            base: word(bytes, 56)?,
            prev: LogId { term: Term(word(bytes, 64)?), index: Index(word(bytes, 72)?) },
            prev_chain: Some(word(bytes, 80)?).filter(|_| flags & CHAIN_LOST == 0),
            salt: word(bytes, 88)?,
            anew: flags & ANEW != 0,
        })
    }

    /// Writes it, both copies, to a file of zeros and makes them durable.
    pub(super) fn write(&self, region: &dyn Region) -> Result<(), StoreError> {
        let bytes = self.encode();
        region.write_at(0, &bytes)?;
        region.sync(0, bytes.len() as u64)
    }

    /// Makes the file of this header, `len` bytes long, durable with its name.
    pub(super) fn create(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        len: u64,
    ) -> Result<AppendMap, StoreError> {
        let path = path_of(dir, self.sequence);
        let draft = path.with_extension("tmp");
        if disk.open(&draft, FileKind::Log, len)?.is_some() {
            disk.remove(&draft)?;
        }
        let region = disk.create(&draft, FileKind::Log, len)?;
        region.write_at(0, &self.encode())?;
        grow_with_zeros(&*region, len)?;
        disk.rename(&draft, &path)?;
        disk.sync_dir(dir)?;
        Ok(AppendMap::sealed(region))
    }
}

impl BatchHeader {
    pub(super) fn encode(&self, salt: u64) -> [u8; BATCH] {
        let mut out = [0; BATCH];
        out[0..4].copy_from_slice(&BATCH_MAGIC);
        out[8..16].copy_from_slice(&self.position.to_le_bytes());
        out[16..24].copy_from_slice(&self.synced.to_le_bytes());
        out[24..28].copy_from_slice(&self.bytes.to_le_bytes());
        out[28..32].copy_from_slice(&self.count.to_le_bytes());
        out[32..40].copy_from_slice(&self.first.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.commit.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.term.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.vote.unwrap_or_default().0.to_le_bytes());
        out[64..68].copy_from_slice(&self.flags.to_le_bytes());
        out[72..80].copy_from_slice(&self.prev_chain.unwrap_or_default().to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Total: any bytes give a header or nothing. `position` is where they lie.
    pub(super) fn decode(bytes: &[u8], salt: u64, position: u64) -> Option<Self> {
        let covered = bytes.get(8..BATCH)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), covered);
        if bytes.first_chunk() != Some(&BATCH_MAGIC)
            || half(bytes, 4)? != crc
            || word(bytes, 8)? != position
        {
            return None;
        }
        Some(Self {
            position,
            synced: word(bytes, 16)?,
            bytes: half(bytes, 24)?,
            count: half(bytes, 28)?,
            first: Index(word(bytes, 32)?),
            commit: Index(word(bytes, 40)?),
            term: Term(word(bytes, 48)?),
            vote: Some(NodeId(word(bytes, 56)?)).filter(|vote| vote.0 != 0),
            flags: half(bytes, 64)?,
            prev_chain: Some(word(bytes, 72)?).filter(|chain| *chain != 0),
        })
    }

    pub(super) fn is_seal(&self) -> bool {
        self.flags & SEAL != 0
    }

    pub(super) fn is_mark(&self) -> bool {
        self.flags & MARK != 0 && self.count == 0
    }

    /// Its first and last index, for messages.
    pub(super) fn entries(&self) -> String {
        let last = self.first.0.saturating_add(u64::from(self.count)).saturating_sub(1);
        format!("{}..={last}", self.first)
    }

    pub(super) fn is_repair(&self) -> bool {
        self.flags & REPAIR != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_their_encoding_and_no_flipped_bit_is_believed() {
        let header = SegmentHeader {
            identity: Identity { cluster: 7, node: NodeId(2), incarnation: 9 },
            sequence: 3,
            base: 1 << 20,
            prev: LogId { term: Term(4), index: Index(99) },
            prev_chain: Some(5),
            salt: 6,
            anew: true,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        let batch = BatchHeader {
            position: 4096,
            synced: 64,
            bytes: 96,
            count: 2,
            first: Index(100),
            commit: Index(98),
            term: Term(4),
            vote: None,
            flags: 0,
            prev_chain: Some(77),
        };
        let encoded = batch.encode(6);
        assert_eq!(BatchHeader::decode(&encoded, 6, 4096), Some(batch));
        assert_eq!(BatchHeader::decode(&encoded, 7, 4096), None, "another segment's salt");
        assert_eq!(BatchHeader::decode(&encoded, 6, 8192), None, "not where it was written");
        for bit in 0..BATCH * 8 {
            let mut bad = encoded;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BatchHeader::decode(&bad, 6, 4096), None, "bit {bit}");
        }
        for bit in 0..COVERED * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode_copy(&bad), None, "bit {bit}");
            assert_eq!(SegmentHeader::decode(&bad), Some(header), "the copy stands in");
        }
    }
}
