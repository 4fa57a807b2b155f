//! What is found when files are looked at without being opened for use. `inspect_log.rs`
//! walks a log, `inspect_db.rs` a database; neither writes, and neither stops at damage, so
//! that all that is wrong is told and all that is whole can be read.
//!
//! Left out: repair, and what it means for a cluster; `node::offline` knows that.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::Identity;
use super::frame::{self, Head};
use super::hard_state::{PendingInstall, Saved};
use super::map::AppendMap;
use super::reader::{Entry, Place};
use crate::raft::types::{HardState, Index, LogId};

pub use super::inspect_db::{Checkpoint, DbLook, Seen, SlotOfMeta, Which};
pub use super::inspect_log::inspect_log;

/// Findings that are kept; more are only counted.
const FINDINGS_MAX: usize = 1000;
/// The place of an entry that cannot be read.
pub(super) const LOST: Place = Place { segment: u32::MAX, eighths: 0 };

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Harm {
    /// A second copy of it is whole; nothing is lost.
    Spare,
    /// Entries of the log cannot be read.
    #[default]
    Entries,
    /// Term and vote are lost.
    Vote,
    /// Keys, or the way to them, cannot be read.
    Keys,
    /// The parts are whole and contradict each other.
    Contradiction,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Default)]
pub struct Finding {
    /// File name.
    pub file: String,
    /// Byte offset in the file.
    pub offset: u64,
    /// Part of the format.
    pub what: &'static str,
    /// What is wrong with it.
    pub why: String,
    /// What it harms.
    pub harm: Harm,
    /// First and last entry concerned, when it is known.
    pub entries: Option<(Index, Index)>,
    /// Term and index of the one entry concerned, when its header is whole.
    pub entry: Option<LogId>,
}

/// What is wrong, in the order it was found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The first thousand.
    pub list: Vec<Finding>,
    /// How many more there were.
    pub omitted: u64,
}

impl Findings {
    /// Adds one.
    pub fn push(&mut self, finding: Finding) {
        if self.list.len() < FINDINGS_MAX {
            self.list.push(finding);
        } else {
            self.omitted += 1;
        }
    }

    /// Was nothing found?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// A slot of `hard.state` that is whole.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Grows with every save.
    pub sequence: u64,
    /// Whose files these are.
    pub identity: Identity,
    /// Term and vote.
    pub hard: HardState,
    /// Position up to which the log is known to be durable.
    pub durable: u64,
    /// The last entry there.
    pub last: LogId,
    /// Was the last stop asked for?
    pub clean: bool,
    /// An installation that had begun and not ended.
    pub install: Option<PendingInstall>,
}

/// A file of the log.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// File name.
    pub file: String,
    /// Its number.
    pub sequence: u64,
    /// Its length.
    pub bytes: u64,
    /// Bytes of it that are in use.
    pub used: u64,
    /// Whole batches.
    pub batches: u64,
    /// Whole entries, those superseded later too.
    pub entries: u64,
    /// First whole entry in the file.
    pub first: Option<LogId>,
    /// Last whole entry in the file.
    pub last: Option<LogId>,
    /// Is it complete, and the next one begun?
    pub sealed: bool,
}

/// What a log holds.
#[derive(Debug, Default)]
pub struct LogReport {
    /// The directory.
    pub dir: String,
    /// Is there a log at all?
    pub found: bool,
    /// The slots of `hard.state`; `None`: not whole.
    pub slots: Vec<Option<Slot>>,
    /// The files, in their order.
    pub segments: Vec<Segment>,
    /// The entry before the first one held.
    pub base: LogId,
    /// Its chain.
    pub base_chain: u64,
    /// The newest commit index that a batch names.
    pub commit: Index,
    /// Newest term and vote, from the slots and the batches.
    pub hard: HardState,
    /// A torn tail, which is no damage: nothing of it was acknowledged.
    pub torn: Option<String>,
    /// Entries that cannot be read.
    pub lost: u64,
    /// Worth knowing, and no damage.
    pub notes: Vec<String>,
    /// What is wrong.
    pub findings: Findings,
    pub(super) places: VecDeque<Place>,
    pub(super) maps: Vec<Arc<AppendMap>>,
    pub(super) last: LogId,
}

impl Slot {
    pub(super) fn of(sequence: u64, saved: &Saved) -> Self {
        let Saved { identity, hard, durable, last, clean, install, chain: _, amnesia: _ } = *saved;
        Self { sequence, identity, hard, durable, last, clean, install }
    }
}

impl LogReport {
    /// The newest whole slot.
    #[must_use]
    pub fn saved(&self) -> Option<&Slot> {
        self.slots.iter().flatten().max_by_key(|slot| slot.sequence)
    }

    /// The first index held.
    #[must_use]
    pub fn first(&self) -> Index {
        self.base.index.next()
    }

    /// The last entry; its term is 0 when it cannot be read.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.last
    }

    /// Term and chain of an entry, or of the one before the first, even if its payload is
    /// damaged; `None`: not known.
    #[must_use]
    pub fn identity(&self, index: Index) -> Option<(LogId, u64)> {
        if index == self.base.index {
            return Some((self.base, self.base_chain));
        }
        let (_, _, head) = self.head(index)?;
        Some((head.id, head.chain))
    }

    fn head(&self, index: Index) -> Option<(&Arc<AppendMap>, u64, Head)> {
        let at = index.0.checked_sub(self.base.index.0.checked_add(1)?)?;
        let place = *self.places.get(usize::try_from(at).ok()?)?;
        let map = self.maps.get(usize::try_from(place.segment).ok()?)?;
        let at = u64::from(place.eighths) * 8;
        let head = frame::head(map.bytes(at, frame::HEADER)?).ok()?;
        (head.id.index == index).then_some((map, at, head))
    }

    /// One entry; `None`: compacted away, not there, or damaged.
    #[must_use]
    pub fn entry(&self, index: Index) -> Option<Entry> {
        let (map, at, head) = self.head(index)?;
        let frame = frame::decode(map.bytes(at, head.size)?).ok()?;
        Some(Entry {
            id: frame.id,
            kind: frame.kind,
            time_ms: frame.time_ms,
            chain: frame.chain,
            payload: Bytes::copy_from_slice(frame.payload),
        })
    }
}
