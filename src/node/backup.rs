//! A backup: the state of the cluster as one file that needs nothing beside it.
//!
//! Little-endian:
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 4 | magic | `MMBK` |
//! | 2 | version | 1 |
//! | 4 | length | of the description |
//! | | description | cluster u128, term u64, index u64, revision u64, digest u128, chain u64; the rest is the membership |
//! | 4 | crc | CRC-32C of all before it |
//! | 4, n | chunk | its length, and a chunk of `store::snapshot`; again and again |
//! | 4 | end | 0, in the place of a length |
//! | 8 | chunks | how many there were |
//! | 4 | crc | CRC-32C of all before it |
//!
//! Left out: increments. A backup is whole.

use std::io::{self, Read};

use bytes::{BufMut, Bytes, BytesMut};

use crate::raft::types::{Index, LogId, Term};
use crate::store::snapshot::CHUNK_MAX;
use crate::store::{DbState, PinnedCheckpoint, StoreError};

const MAGIC: [u8; 4] = *b"MMBK";
const VERSION: u16 = 1;
/// Bytes before the description.
const HEAD: usize = 10;
/// Bytes of a description before the membership.
const FIXED: usize = 64;
/// Longest description that is believed.
const DESCRIPTION_MAX: usize = 64 << 10;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The cluster it was taken of.
    pub cluster: u128,
    /// Newest entry in it.
    pub applied: LogId,
    /// Its revision.
    pub revision: u64,
    /// Sum over all its keys.
    pub digest: u128,
    /// Checksum chain of the log up to it.
    pub chain: u64,
    /// The members at the time, as on the wire.
    pub membership: Vec<u8>,
}

impl Description {
    fn of(cluster: u128, state: &DbState) -> Self {
        Self {
            cluster,
            applied: state.applied,
            revision: state.revision,
            digest: state.digest,
            chain: state.chain,
            membership: state.membership.clone(),
        }
    }

    /// Is it a description of this state?
    #[must_use]
    pub fn fits(&self, state: &DbState) -> bool {
        *self == Self::of(self.cluster, state)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED + self.membership.len());
        out.put_u128_le(self.cluster);
        out.put_u64_le(self.applied.term.0);
        out.put_u64_le(self.applied.index.0);
        out.put_u64_le(self.revision);
        out.put_u128_le(self.digest);
        out.put_u64_le(self.chain);
        out.extend_from_slice(&self.membership);
        out
    }

    /// `None`: too short.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, membership) = bytes.split_at_checked(FIXED)?;
        let mut fixed = Fields(fixed);
        Some(Self {
            cluster: u128::from_le_bytes(fixed.take()?),
            applied: LogId {
                term: Term(u64::from_le_bytes(fixed.take()?)),
                index: Index(u64::from_le_bytes(fixed.take()?)),
            },
            revision: u64::from_le_bytes(fixed.take()?),
            digest: u128::from_le_bytes(fixed.take()?),
            chain: u64::from_le_bytes(fixed.take()?),
            membership: membership.to_vec(),
        })
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

/// A backup on its way out. It pins a checkpoint, so it must not wait for ever.
#[derive(Debug)]
pub struct Backup {
    description: Description,
    pinned: PinnedCheckpoint,
    crc: u32,
    next: Next,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Head,
    Chunk(u64),
    Nothing,
}

impl Backup {
    pub(super) fn new(cluster: u128, pinned: PinnedCheckpoint) -> Self {
        let description = Description::of(cluster, pinned.state());
        Self { description, pinned, crc: 0, next: Next::Head }
    }

    /// What it holds.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// How often [`Backup::piece`] brings something, of one not begun yet.
    #[must_use]
    pub fn pieces(&self) -> u64 {
        // What comes first, and what comes last.
        self.pinned.chunks() + 2
    }

    /// The next bytes of the file; `None`: that was all. Blocks on the disk.
    ///
    /// # Errors
    /// `Io`.
    pub fn piece(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut out = BytesMut::new();
        self.next = match self.next {
            Next::Head => {
                let description = self.description.encode();
                out.extend_from_slice(&MAGIC);
                out.put_u16_le(VERSION);
                out.put_u32_le(length(description.len()));
                out.extend_from_slice(&description);
                out.put_u32_le(crc32c::crc32c(&out));
                Next::Chunk(0)
            }
            Next::Chunk(n) => match self.pinned.chunk(n)? {
                Some(chunk) => {
                    out.reserve(4 + chunk.len());
                    out.put_u32_le(length(chunk.len()));
                    out.extend_from_slice(&chunk);
                    Next::Chunk(n + 1)
                }
                None => {
                    out.put_u32_le(0);
                    out.put_u64_le(n);
                    out.put_u32_le(crc32c::crc32c_append(self.crc, &out));
                    Next::Nothing
                }
            },
            Next::Nothing => return Ok(None),
        };
        self.crc = crc32c::crc32c_append(self.crc, &out);
        Ok(Some(out.freeze()))
    }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("descriptions and chunks are small")
}

/// Why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is no backup, damaged, or not whole.
    #[error("at byte {at}: {why}")]
    Damaged {
        /// Where in the file.
        at: u64,
        /// What is wrong there.
        why: String,
    },
    /// Reading failed.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
}

/// Reads a backup. Whatever the bytes are, it ends with all of them seen or an error.
#[derive(Debug)]
pub struct BackupReader<R> {
    input: R,
    description: Description,
    crc: u32,
    at: u64,
    chunks: u64,
}

impl<R: Read> BackupReader<R> {
    /// Reads what comes before the first chunk.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn open(mut input: R) -> Result<Self, BackupError> {
        let mut at = 0;
        let mut head = vec![0; HEAD];
        fill(&mut input, &mut at, &mut head)?;
        let (magic, version, len) = {
            let mut fields = Fields(&head);
            let fields = (fields.take::<4>(), fields.take::<2>(), fields.take::<4>());
            let (Some(magic), Some(version), Some(len)) = fields else {
                unreachable!("that many bytes were read")
            };
            (magic, u16::from_le_bytes(version), u32::from_le_bytes(len) as usize)
        };
        if magic != MAGIC {
            return Err(damaged(0, "this is not a backup of mmapd"));
        }
        if version != VERSION {
            let why = format!("it has version {version}, and this mmapd reads version {VERSION}");
            return Err(damaged(4, &why));
        }
        if !(FIXED..=DESCRIPTION_MAX).contains(&len) {
            return Err(damaged(6, "the description has an impossible length"));
        }
        head.resize(HEAD + len, 0);
        fill(&mut input, &mut at, &mut head[HEAD..])?;
        let mut crc = [0; 4];
        fill(&mut input, &mut at, &mut crc)?;
        let description = Description::decode(&head[HEAD..])
            .filter(|_| u32::from_le_bytes(crc) == crc32c::crc32c(&head))
            .ok_or_else(|| damaged(0, "the description contradicts its checksum"))?;
        head.extend_from_slice(&crc);
        Ok(Self { input, description, crc: crc32c::crc32c(&head), at, chunks: 0 })
    }

    /// What it says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// How far it was read.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Puts the next chunk into `chunk`; `false`: there is none, and the file is whole. The
    /// content of a chunk is not looked at.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn next(&mut self, chunk: &mut Vec<u8>) -> Result<bool, BackupError> {
        let start = self.at;
        let mut len = [0; 4];
        self.take(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > CHUNK_MAX {
            return Err(damaged(start, "a chunk has an impossible length"));
        }
        if len == 0 {
            return self.end(start).map(|()| false);
        }
        chunk.resize(len, 0);
        self.take(chunk)?;
        self.chunks += 1;
        Ok(true)
    }

    fn end(&mut self, start: u64) -> Result<(), BackupError> {
        let (mut chunks, mut crc) = ([0; 8], [0; 4]);
        self.take(&mut chunks)?;
        let of_all = self.crc;
        self.take(&mut crc)?;
        if u64::from_le_bytes(chunks) != self.chunks || u32::from_le_bytes(crc) != of_all {
            return Err(damaged(start, "the end does not fit to what came before"));
        }
        let past = self.at;
        match self.input.by_ref().take(1).read_to_end(&mut Vec::new()) {
            Ok(0) => Ok(()),
            Ok(_) => Err(damaged(past, "something follows the end")),
            Err(error) => Err(BackupError::Read(error)),
        }
    }

    fn take(&mut self, into: &mut [u8]) -> Result<(), BackupError> {
        fill(&mut self.input, &mut self.at, into)?;
        self.crc = crc32c::crc32c_append(self.crc, into);
        Ok(())
    }
}

fn damaged(at: u64, why: &str) -> BackupError {
    BackupError::Damaged { at, why: why.to_owned() }
}

fn fill(input: &mut impl Read, at: &mut u64, into: &mut [u8]) -> Result<(), BackupError> {
    match input.read_exact(into) {
        Ok(()) => {
            *at += into.len() as u64;
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(damaged(*at, "it ends too early"))
        }
        Err(error) => Err(BackupError::Read(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> Description {
        Description {
            cluster: 7 << 70,
            applied: LogId { term: Term(3), index: Index(90) },
            revision: 88,
            digest: 5 << 80,
            chain: 11,
            membership: vec![1, 2, 3],
        }
    }

    /// A file with these chunks.
    fn file(chunks: &[&[u8]]) -> Vec<u8> {
        let description = description().encode();
        let mut out = MAGIC.to_vec();
        out.put_u16_le(VERSION);
        out.put_u32_le(length(description.len()));
        out.extend(description);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        for chunk in chunks {
            out.put_u32_le(length(chunk.len()));
            out.extend_from_slice(chunk);
        }
        out.put_u32_le(0);
        out.put_u64_le(chunks.len() as u64);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out
    }

    fn read(bytes: &[u8]) -> Result<(Description, Vec<Vec<u8>>), BackupError> {
        let mut reader = BackupReader::open(bytes)?;
        let (mut chunks, mut chunk) = (Vec::new(), Vec::new());
        while reader.next(&mut chunk)? {
            chunks.push(chunk.clone());
        }
        Ok((reader.description, chunks))
    }

    #[test]
    fn what_is_written_is_read() {
        let (read, chunks) = read(&file(&[b"one", b"three"])).expect("it is whole");
        assert_eq!(read, description());
        assert_eq!(chunks, [&b"one"[..], b"three"]);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let whole = file(&[b"one", b"three"]);
        let damaged = |bytes: &[u8]| matches!(read(bytes), Err(BackupError::Damaged { .. }));
        for len in 0..whole.len() {
            assert!(damaged(&whole[..len]), "cut at {len}");
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(damaged(&bytes), "bit {bit}");
        }
        assert!(damaged(&[&whole[..], b"x"].concat()), "something follows");
    }
}
