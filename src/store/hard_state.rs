//! Term, vote, and what else must be known before the log is read: the file `hard.state`.
//!
//! Four slots of one page each. A save writes slots 0 and 1 or slots 2 and 3, in turn, and
//! syncs them, so the other pair always holds the state before; the newest valid slot wins.
//! One slot that a disk lost is made up for by its twin.
//!
//! Little-endian, in each slot:
//!
//! | bytes    | field | meaning |
//! |----------|-------|---------|
//! | 0..8     | magic | `MMAPDHST` |
//! | 8..12    | version | 1 |
//! | 12..16   | crc | CRC-32C of bytes 16..160 |
//! | 16..24   | sequence | grows with every save |
//! | 24..40   | cluster | identity |
//! | 40..56   | node, incarnation | identity |
//! | 56..72   | term, vote | 0: no vote |
//! | 72..80   | durable | log position known to be durable |
//! | 80..104  | last | term, index and chain of the entry there |
//! | 104..112 | flags | 1: clean stop, 2: an install is pending, 4: amnesia |
//! | 112..136 | install | term, index and chain of the snapshot being installed |
//! | 136..144 | amnesia | newest term known when part of the log was lost |
//! | 144..160 | zero | |

use std::path::Path;
use std::sync::Arc;

use super::Identity;
use super::disk::{Disk, FileKind, Region, grow_with_zeros, parent};
use super::error::StoreError;
use super::recovery::REACHABLE;
use super::segment::{half, word};
use crate::raft::types::{HardState, Index, LogId, NodeId, Term};

/// Bytes of a slot.
pub(super) const SLOT: u64 = 4096;
const SLOTS: u64 = 4;
const COVERED: usize = 160;
const MAGIC: [u8; 8] = *b"MMAPDHST";
const VERSION: u32 = 1;
const CLEAN: u64 = 1;
const INSTALL: u64 = 2;
const AMNESIA: u64 = 4;

/// A snapshot whose installation began: log and database may disagree until it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingInstall {
    /// The last entry that the snapshot holds.
    pub last: LogId,
    /// Its chain.
    pub chain: u64,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) identity: Identity,
    pub(super) hard: HardState,
    /// Position up to which the log is known to be durable.
    pub(super) durable: u64,
    /// The last entry there.
    pub(super) last: LogId,
    /// Its chain.
    pub(super) chain: u64,
    /// The last stop was asked for, so nothing can be torn.
    pub(super) clean: bool,
    pub(super) install: Option<PendingInstall>,
    /// Entries may be lost that were acknowledged, in this term at the latest.
    pub(super) amnesia: Option<Term>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct HardStateFile {
    region: Arc<dyn Region>,
    sequence: u64,
    pub(super) saved: Saved,
}

impl HardStateFile {
    /// Opens the file, or makes it with the identity from `fresh`.
    pub(super) fn open(
        disk: &dyn Disk,
        path: &Path,
        fresh: impl FnOnce() -> Identity,
    ) -> Result<Self, StoreError> {
        let found = disk.open(path, FileKind::Log, SLOTS * SLOT)?;
        let Some(region) = found else {
            return Self::create(disk, path, fresh());
        };
        let mut newest: Option<(u64, Saved)> = None;
        for slot in 0..SLOTS {
            let mut bytes = [0; COVERED];
            if region.len() >= (slot + 1) * SLOT {
                region.read_at(slot * SLOT, &mut bytes)?;
            }
            if let Some(found) = decode(&bytes)
                && newest.is_none_or(|(sequence, _)| found.0 > sequence)
            {
                newest = Some(found);
            }
        }
        let (sequence, saved) = newest.ok_or_else(|| StoreError::Corrupt {
            file: path.display().to_string(),
            what: "hard state",
            offset: 0,
            why: "none of its four slots is valid; this node's term and vote are lost".into(),
        })?;
        let mut file = Self { region: region.into(), sequence, saved };
        // What was read may be in the cache only: save it before it is believed.
        file.save()?;
        file.save()?;
        Ok(file)
    }

    /// Under another name first: the file is there whole or not at all.
    fn create(disk: &dyn Disk, path: &Path, identity: Identity) -> Result<Self, StoreError> {
        let draft = path.with_extension("tmp");
        if disk.open(&draft, FileKind::Log, SLOTS * SLOT)?.is_some() {
            disk.remove(&draft)?;
        }
        let region = disk.create(&draft, FileKind::Log, SLOTS * SLOT)?;
        grow_with_zeros(&*region, SLOTS * SLOT)?;
        let saved = Saved {
            identity,
            hard: HardState::default(),
            durable: 0,
            last: LogId::default(),
            chain: 0,
            clean: false,
            install: None,
            amnesia: None,
        };
        let mut file = Self { region: region.into(), sequence: 0, saved };
        file.save()?;
        file.save()?;
        disk.rename(&draft, path)?;
        disk.sync_dir(&parent(path))?;
        Ok(file)
    }

    /// Writes `saved` to the pair of slots whose turn it is. Not durable yet.
    pub(super) fn write(&mut self) -> Result<(u64, u64), StoreError> {
        self.sequence += 1;
        let pair = self.sequence % 2 * 2;
        let mut bytes = vec![0; usize::try_from(SLOT).expect("a page")];
        encode(self.sequence, &self.saved, &mut bytes);
        for slot in [pair, pair + 1] {
            self.region.write_at(slot * SLOT, &bytes)?;
        }
        Ok((pair * SLOT, 2 * SLOT))
    }

    /// The file, for a job that makes a range durable.
    pub(super) fn region(&self) -> Arc<dyn Region> {
        self.region.clone()
    }

    /// Writes and makes durable, also when a job that does so for the state before still runs.
    pub(super) fn save_at_once(&mut self) -> Result<(), StoreError> {
        self.region.sync(0, SLOTS * SLOT)?;
        self.save()
    }

    /// Notes durably that entries known in `newest` or before may be lost, that the log is
    /// durable up to `durable` at most, and moves on to a term in which no vote was given.
    pub(super) fn begin_amnesia(&mut self, newest: Term, durable: u64) -> Result<(), StoreError> {
        let saved = &mut self.saved;
        let newest = newest.max(saved.hard.term).max(saved.amnesia.unwrap_or_default());
        saved.amnesia = Some(newest);
        saved.hard = HardState { term: Term(newest.0.saturating_add(1)), vote: None };
        saved.durable = saved.durable.min(durable);
        saved.clean = false;
        self.save_at_once()
    }

    /// Writes and makes durable.
    pub(super) fn save(&mut self) -> Result<(), StoreError> {
        let (offset, len) = self.write()?;
        self.region.sync(offset, len)
    }
}

fn encode(sequence: u64, saved: &Saved, bytes: &mut [u8]) {
    let install = saved.install.unwrap_or(PendingInstall { last: LogId::default(), chain: 0 });
    let mut flags = 0;
    if saved.clean {
        flags |= CLEAN;
    }
    if saved.install.is_some() {
        flags |= INSTALL;
    }
    if saved.amnesia.is_some() {
        flags |= AMNESIA;
    }
    let Identity { cluster, node, incarnation } = saved.identity;
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    bytes[24..40].copy_from_slice(&cluster.to_le_bytes());
    let numbers = [
        node.0,
        incarnation,
        saved.hard.term.0,
        saved.hard.vote.unwrap_or_default().0,
        saved.durable,
        saved.last.term.0,
        saved.last.index.0,
        saved.chain,
        flags,
        install.last.term.0,
        install.last.index.0,
        install.chain,
        saved.amnesia.unwrap_or_default().0,
    ];
    for (number, at) in numbers.iter().zip((40..).step_by(8)) {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[16..COVERED]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// All slots of the file in `path`, for a look at them; `None`: not whole, or not there.
pub(super) fn read_slots(
    disk: &dyn Disk,
    path: &Path,
) -> Result<Vec<Option<(u64, Saved)>>, StoreError> {
    let Some(region) = disk.open(path, FileKind::Log, SLOTS * SLOT)? else {
        return Ok(Vec::new());
    };
    let mut slots = Vec::new();
    for slot in 0..SLOTS {
        let mut bytes = [0; COVERED];
        if region.len() >= (slot + 1) * SLOT {
            region.read_at(slot * SLOT, &mut bytes)?;
        }
        slots.push(decode(&bytes));
    }
    Ok(slots)
}

/// Total: any bytes give a slot or nothing. A slot whose numbers no node ever reaches is none,
/// whatever its checksum says.
fn decode(bytes: &[u8; COVERED]) -> Option<(u64, Saved)> {
    let word = |at: usize| word(bytes, at);
    let half = |at: usize| half(bytes, at);
    if bytes.first_chunk() != Some(&MAGIC)
        || half(8)? != VERSION
        || half(12)? != crc32c::crc32c(bytes.get(16..)?)
    {
        return None;
    }
    let log_id = |at: usize| Some(LogId { term: Term(word(at)?), index: Index(word(at + 8)?) });
    let cluster = bytes.get(24..).and_then(|tail| tail.first_chunk())?;
    let vote = Some(NodeId(word(64)?)).filter(|vote| vote.0 != 0);
    let flags = word(104)?;
    let install = PendingInstall { last: log_id(112)?, chain: word(128)? };
    let saved = Saved {
        identity: Identity {
            cluster: u128::from_le_bytes(*cluster),
            node: NodeId(word(40)?),
            incarnation: word(48)?,
        },
        hard: HardState { term: Term(word(56)?), vote },
        durable: word(72)?,
        last: log_id(80)?,
        chain: word(96)?,
        clean: flags & CLEAN != 0,
        install: (flags & INSTALL != 0).then_some(install),
        amnesia: (flags & AMNESIA != 0).then_some(Term(word(136)?)),
    };
    let sequence = word(16)?;
    // What is counted on from here, by this file, by the log and by the protocol.
    let counted = [sequence, saved.hard.term.0, saved.durable, saved.last.index.0];
    counted.iter().all(|number| *number <= REACHABLE).then_some((sequence, saved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::simdisk::SimDisk;

    fn identity() -> Identity {
        Identity { cluster: 7, node: NodeId(1), incarnation: 3 }
    }

    #[test]
    fn any_three_damaged_slots_are_survived_and_four_are_not() {
        let path = Path::new("/log/hard.state");
        for damaged in 0..16_u64 {
            let disk = SimDisk::new(1);
            let mut file = HardStateFile::open(&disk, path, identity).unwrap();
            file.saved.hard = HardState { term: Term(9), vote: Some(NodeId(2)) };
            file.save().unwrap();
            file.save().unwrap();
            let want = file.saved;
            drop(file);
            for slot in (0..SLOTS).filter(|slot| damaged & (1 << slot) != 0) {
                disk.damage(path, slot * SLOT + 60, &[0xee]);
            }
            match HardStateFile::open(&disk, path, identity) {
                Ok(file) => assert_eq!((file.saved, damaged < 15), (want, true)),
                Err(StoreError::Corrupt { .. }) => assert_eq!(damaged, 15),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_save_leaves_the_state_before_it_alone() {
        let path = Path::new("/log/hard.state");
        for saves in 1..5 {
            let disk = SimDisk::new(1);
            let mut file = HardStateFile::open(&disk, path, identity).unwrap();
            for term in 1..=saves {
                file.saved.hard.term = Term(term);
                file.save().unwrap();
            }
            let (newest, _) = file.write().unwrap();
            drop(file);
            disk.damage(path, newest, &vec![0xee; 8192]);
            let file = HardStateFile::open(&disk, path, identity).unwrap();
            assert_eq!(file.saved.hard.term, Term(saves), "the other pair");
        }
    }

    #[test]
    fn numbers_that_cannot_be_counted_on_from_are_not_believed() {
        let disk = SimDisk::new(1);
        let file = HardStateFile::open(&disk, Path::new("/log/hard.state"), identity).unwrap();
        let decoded = |sequence, change: &dyn Fn(&mut Saved)| {
            let mut saved = file.saved;
            change(&mut saved);
            let mut bytes = [0; COVERED];
            encode(sequence, &saved, &mut bytes);
            decode(&bytes)
        };
        assert_eq!(decoded(REACHABLE, &|_| {}), Some((REACHABLE, file.saved)));
        assert_eq!(decoded(u64::MAX, &|_| {}), None);
        assert_eq!(decoded(3, &|saved| saved.hard.term = Term(u64::MAX)), None);
        assert_eq!(decoded(3, &|saved| saved.durable = u64::MAX), None);
        assert_eq!(decoded(3, &|saved| saved.last.index = Index(u64::MAX)), None);
    }
}
