//! The meta page: everything that must change together at a checkpoint.
//!
//! There are two slots, pages 0 and 16, far enough apart that no torn device block takes
//! both. Checkpoint `seq` writes slot `seq % 2`. One CRC-32C covers the page, so a torn
//! slot is no slot, and the other one, with all its pages, is still there.
//!
//! Left out: repair of a slot. The next checkpoint but one rewrites it anyway.

#![deny(clippy::indexing_slicing)]

use super::Identity;
use super::map::PAGE;
use super::page::{put, u16_at, u32_at, u64_at};
use crate::raft::types::{Index, LogId, NodeId, Term};

const MAGIC: u64 = u64::from_le_bytes(*b"mmapd-db");
/// Of the meta page and of all that it leads to, also what the state machine puts into trees.
pub(super) const VERSION: u32 = 2;
/// Pages of the two slots.
pub(super) const SLOTS: [u64; 2] = [0, 16];
/// Trees of a database.
pub(super) const ROOTS: usize = 8;
/// Longest membership.
pub(super) const MEMBERSHIP_MAX: usize = 2048;
const MEMBERSHIP_AT: usize = PAGE - MEMBERSHIP_MAX;
const ROOTS_AT: usize = 256;
const _: () = assert!(ROOTS_AT + ROOTS * 32 <= MEMBERSHIP_AT);

/// What the state machine remembers beside its trees; flips together with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DbState {
    /// Newest entry that was applied.
    pub applied: LogId,
    /// Checksum chain of the log up to it.
    pub chain: u64,
    /// Newest revision.
    pub revision: u64,
    /// History up to this revision is gone.
    pub compact_revision: u64,
    /// Time of the newest entry.
    pub time_ms: u64,
    /// Sum over everything in all trees, compared between nodes.
    pub digest: u128,
    /// Bytes of the events in the history.
    pub history_bytes: u64,
    /// Bytes of the outcomes that are kept for those who ask again.
    pub session_bytes: u64,
    /// The membership, opaque here; at most 2 KiB.
    pub membership: Vec<u8>,
}

/// Where a tree begins. Page 0: it is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) page: u64,
    pub(super) crc: u32,
    /// Levels; 1 is a leaf.
    pub(super) height: u16,
    pub(super) entries: u64,
}

/// Where the bitmap of a checkpoint is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BitmapRun {
    pub(super) page: u64,
    pub(super) pages: u64,
    pub(super) crc: u32,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Meta {
    pub(super) seq: u64,
    pub(super) identity: Identity,
    /// Pages of the file that the bitmap speaks of.
    pub(super) pages: u64,
    pub(super) bitmap: BitmapRun,
    pub(super) roots: [Root; ROOTS],
    pub(super) state: DbState,
}

impl Meta {
    /// Page of the slot for this checkpoint.
    pub(super) fn slot(&self) -> u64 {
        if self.seq.is_multiple_of(2) { SLOTS[0] } else { SLOTS[1] }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        self.encode_into(&mut bytes).expect("the layout fits a page");
        bytes
    }

    fn encode_into(&self, bytes: &mut [u8]) -> Option<()> {
        let state = &self.state;
        put(bytes, 0, &MAGIC.to_le_bytes())?;
        put(bytes, 8, &VERSION.to_le_bytes())?;
        put(bytes, 16, &u32::try_from(PAGE).ok()?.to_le_bytes())?;
        put(bytes, 24, &self.seq.to_le_bytes())?;
        put(bytes, 32, &self.identity.cluster.to_le_bytes())?;
        put(bytes, 48, &self.identity.node.0.to_le_bytes())?;
        put(bytes, 56, &self.identity.incarnation.to_le_bytes())?;
        put(bytes, 64, &self.pages.to_le_bytes())?;
        put(bytes, 72, &self.bitmap.page.to_le_bytes())?;
        put(bytes, 80, &self.bitmap.pages.to_le_bytes())?;
        put(bytes, 88, &self.bitmap.crc.to_le_bytes())?;
        put(bytes, 96, &state.applied.term.0.to_le_bytes())?;
        put(bytes, 104, &state.applied.index.0.to_le_bytes())?;
        put(bytes, 112, &state.chain.to_le_bytes())?;
        put(bytes, 120, &state.revision.to_le_bytes())?;
        put(bytes, 128, &state.compact_revision.to_le_bytes())?;
        put(bytes, 136, &state.time_ms.to_le_bytes())?;
        put(bytes, 144, &state.digest.to_le_bytes())?;
        put(bytes, 168, &state.history_bytes.to_le_bytes())?;
        put(bytes, 176, &state.session_bytes.to_le_bytes())?;
        put(bytes, 160, &u16::try_from(state.membership.len()).ok()?.to_le_bytes())?;
        for (index, root) in self.roots.iter().enumerate() {
            let at = ROOTS_AT + index * 32;
            put(bytes, at, &root.page.to_le_bytes())?;
            put(bytes, at + 8, &root.crc.to_le_bytes())?;
            put(bytes, at + 12, &root.height.to_le_bytes())?;
            put(bytes, at + 16, &root.entries.to_le_bytes())?;
        }
        put(bytes, MEMBERSHIP_AT, &state.membership)?;
        let crc = Self::crc(bytes)?;
        put(bytes, 12, &crc.to_le_bytes())
    }

    fn crc(bytes: &[u8]) -> Option<u32> {
        Some(crc32c::crc32c_append(crc32c::crc32c(bytes.get(..12)?), bytes.get(16..PAGE)?))
    }

    /// The format of an intact meta page.
    fn version(bytes: &[u8]) -> Option<u32> {
        let intact = u64_at(bytes, 0)? == MAGIC && u32_at(bytes, 12)? == Self::crc(bytes)?;
        if intact { u32_at(bytes, 8) } else { None }
    }

    /// In words, which format an intact meta page has that we do not know.
    pub(super) fn unknown(bytes: &[u8]) -> Option<String> {
        let version = Self::version(bytes).filter(|version| *version != VERSION)?;
        Some(format!("a version of mmapd whose databases have format {version}"))
    }

    /// `None`: not an intact meta page of a format we know.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let known =
            Self::version(bytes)? == VERSION && usize::try_from(u32_at(bytes, 16)?).ok()? == PAGE;
        if !known {
            return None;
        }
        let mut roots = [Root::default(); ROOTS];
        for (index, root) in roots.iter_mut().enumerate() {
            let at = ROOTS_AT + index * 32;
            *root = Root {
                page: u64_at(bytes, at)?,
                crc: u32_at(bytes, at + 8)?,
                height: u16_at(bytes, at + 12)?,
                entries: u64_at(bytes, at + 16)?,
            };
        }
        let membership = usize::from(u16_at(bytes, 160)?);
        let membership = bytes.get(MEMBERSHIP_AT..MEMBERSHIP_AT + membership)?.to_vec();
        let u128_at = |at| Some(u128::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        Some(Self {
            seq: u64_at(bytes, 24)?,
            identity: Identity {
                cluster: u128_at(32)?,
                node: NodeId(u64_at(bytes, 48)?),
                incarnation: u64_at(bytes, 56)?,
            },
            pages: u64_at(bytes, 64)?,
            bitmap: BitmapRun {
                page: u64_at(bytes, 72)?,
                pages: u64_at(bytes, 80)?,
                crc: u32_at(bytes, 88)?,
            },
            roots,
            state: DbState {
                applied: LogId {
                    term: Term(u64_at(bytes, 96)?),
                    index: Index(u64_at(bytes, 104)?),
                },
                chain: u64_at(bytes, 112)?,
                revision: u64_at(bytes, 120)?,
                compact_revision: u64_at(bytes, 128)?,
                time_ms: u64_at(bytes, 136)?,
                digest: u128_at(144)?,
                history_bytes: u64_at(bytes, 168)?,
                session_bytes: u64_at(bytes, 176)?,
                membership,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::super::disk::LinuxDisk;
    use super::super::{Db, DbOptions, Shrink, StoreError};
    use super::*;

    fn open(path: &Path) -> Result<Db, StoreError> {
        let options = DbOptions {
            path: path.to_owned(),
            map_max: 64 << 20,
            quota: u64::MAX,
            grow_step: 1 << 20,
            shrink: Shrink::default(),
        };
        let identity = Identity { cluster: 7, node: NodeId(1), incarnation: 1 };
        Db::open(Arc::new(LinuxDisk::new(None)), options, identity)
    }

    #[test]
    fn a_database_of_another_format_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        drop(open(&path).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let page = bytes.get_mut(..PAGE).unwrap();
        put(page, 8, &1_u32.to_le_bytes()).unwrap();
        let crc = Meta::crc(page).unwrap();
        put(page, 12, &crc.to_le_bytes()).unwrap();
        assert_eq!(Meta::decode(page), None);
        std::fs::write(&path, &bytes).unwrap();
        let Err(StoreError::Foreign { found, wanted, .. }) = open(&path) else {
            panic!("it is refused")
        };
        assert_eq!(found, "a version of mmapd whose databases have format 1");
        assert_eq!(wanted, "this one, with format 2");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}
