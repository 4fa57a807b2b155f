//! The log: segments that are only ever appended to, also when Raft replaces a suffix - the
//! new entries are appended with the old indexes and supersede what had them.
//!
//! One writer stages entries, writes all that is staged as one batch, and hands out a job
//! that makes the batch durable. The next batch is written only after that job is done, so
//! of all batches only the last can be unproven; recovery (`recovery.rs`) rests on it.
//!
//! Damage of what was durable never shortens the log in silence. When others hold copies,
//! damaged entries stay part of it by name until `repair.rs` brings them back, and a log
//! whose names are lost says so. Left out: help for a node that is alone; it refuses to
//! start, and the operator is told what is lost.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use super::Identity;
use super::disk::{Disk, Region};
use super::error::StoreError;
use super::frame::{self, FrameError, Frames};
use super::hard_state::{HardStateFile, PendingInstall};
use super::map::{AppendMap, Appender};
use super::reader::{LogReader, Place, Places};
use super::recovery;
use super::salvage;
use super::segment::{
    ALIGN, BATCH, BatchHeader, HEADER, MARK, REPAIR, SEAL, SEAL_ROOM, SegmentHeader,
};
use super::spare::Spares;
use crate::raft::message::IoToken;
use crate::raft::types::{EntryKind, HardState, Index, LogId, NodeId, Term};

/// Where the log is and how it is cut into files.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Directory of the segments and of `hard.state`.
    pub dir: PathBuf,
    /// Bytes of a segment. A batch that does not fit gets a larger one.
    pub segment_bytes: u64,
    /// Others hold copies: damaged entries are kept by name to be repaired from them.
    /// Otherwise damage of what was durable is refused.
    pub repairable: bool,
}

/// What the files held when they were opened.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Whose they are.
    pub identity: Identity,
    /// Term and vote.
    pub hard_state: HardState,
    /// The entry before the first one held.
    pub base: LogId,
    /// Its chain.
    pub base_chain: u64,
    /// First entry of each stretch of equal terms, in order.
    pub runs: Vec<LogId>,
    /// The last entry, `base` when there is none.
    pub last: LogId,
    /// Payloads of the configuration entries held.
    pub configs: Vec<(Index, Vec<u8>)>,
    /// An installation that had begun and not ended.
    pub pending_install: Option<PendingInstall>,
    /// A torn tail that was cut off, in words.
    pub cut: Option<String>,
    /// Runs of entries that are held and cannot be read, first and last index, ascending.
    pub damaged: Vec<(Index, Index)>,
    /// Entries may be missing that were acknowledged in this term or before.
    pub amnesia: Option<Term>,
    /// Why entries may be missing since just now, in words.
    pub lost: Option<String>,
    /// Files that were moved aside just now.
    pub quarantined: Vec<String>,
}

/// The segment that is being appended to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) header: SegmentHeader,
    pub(super) appender: Appender,
    pub(super) number: u32,
}

/// A segment that is on disk, in order of sequence.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) header: SegmentHeader,
    pub(super) map: Arc<AppendMap>,
    pub(super) number: u32,
}

/// Entries that are part of the log and not written yet.
#[derive(Debug, Default)]
pub(super) struct Staged {
    first: Index,
    /// `None`: the entry before is damaged, header and all.
    prev_chain: Option<u64>,
    frames: Vec<u8>,
    /// Of each entry: its name, where its frame begins, its chain.
    entries: Vec<(LogId, usize, u64)>,
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: LogOptions,
    pub(super) hard: HardStateFile,
    hard_staged: bool,
    pub(super) staged: Staged,
    pub(super) mark_staged: bool,
    pub(super) reader: LogReader,
    /// Runs of damaged entries, as the reader has them.
    pub(super) damaged: Vec<(Index, Index)>,
    pub(super) segments: Vec<Known>,
    pub(super) active: Option<Active>,
    next_sequence: u64,
    next_position: u64,
    next_number: u32,
    /// Position up to which everything is durable.
    pub(super) synced: u64,
    /// Position behind the last batch that is not a mark.
    pub(super) unproven: u64,
    /// Position that some record proves durable.
    pub(super) proven: u64,
    /// The batch that is being made durable.
    pub(super) syncing: Option<u64>,
    commit: Index,
    pub(super) written: LogId,
    pub(super) spares: Spares,
}

/// Makes one batch durable; may run on any thread.
#[derive(Debug)]
#[must_use = "nothing is durable before it has run"]
pub struct SyncJob {
    hard: Option<(Arc<dyn Region>, u64, u64)>,
    log: Option<(Arc<AppendMap>, u64, u64)>,
    io: IoToken,
}

/// A [`SyncJob`] is done.
#[derive(Debug)]
pub struct Synced {
    io: IoToken,
}

impl SyncJob {
    /// Waits for the disk.
    ///
    /// # Errors
    /// `Io`: the process must end, and nothing of the batch may be acknowledged.
    pub fn run(self) -> Result<Synced, StoreError> {
        if let Some((region, offset, len)) = self.hard {
            region.sync(offset, len)?;
        }
        if let Some((map, offset, len)) = self.log {
            map.sync(offset, len)?;
        }
        Ok(Synced { io: self.io })
    }

    /// Bytes of the log that it covers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.log.as_ref().map_or(0, |(_, _, len)| *len)
    }
}

/// Numbers for new segments that nobody can foretell, so that no client can plant bytes
/// that look like a batch.
fn salt(header: &Identity, sequence: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one((header.incarnation, sequence))
}

impl Log {
    /// Opens the log of `node`, or begins one with the identity from `fresh`.
    ///
    /// # Errors
    /// `Foreign`: another node's or cluster's files. `Corrupt`: what was durable is damaged
    /// or missing. `Invalid`: the path is not a directory.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        node: NodeId,
        fresh: impl FnOnce() -> Identity,
    ) -> Result<(Self, Recovered), StoreError> {
        disk.make_dir(&options.dir)?;
        // Names that an earlier process changed may be so in the cache alone; what is
        // decided from them now must not be undone by a power loss.
        disk.sync_dir(&options.dir)?;
        recovery::refuse_without_hard_state(&*disk, &options.dir)?;
        let mut hard = HardStateFile::open(&*disk, &options.dir.join("hard.state"), fresh)?;
        if hard.saved.identity.node != node {
            return Err(StoreError::Foreign {
                file: options.dir.display().to_string(),
                found: format!("node {}", hard.saved.identity.node.0),
                wanted: format!("node {}", node.0),
            });
        }
        let (mut found, lost, quarantined) = salvage::recover(&*disk, &options, &mut hard)?;
        let reader = LogReader { places: Arc::new(RwLock::new(std::mem::take(&mut found.places))) };
        let mut log = Self {
            disk,
            options,
            hard,
            hard_staged: false,
            staged: Staged::default(),
            mark_staged: false,
            reader,
            damaged: Vec::new(),
            segments: found.segments,
            active: found.active,
            next_sequence: found.next_sequence,
            next_position: found.next_position,
            next_number: found.next_number,
            synced: found.end,
            unproven: found.end,
            proven: 0,
            syncing: None,
            commit: Index(0),
            written: LogId::default(),
            spares: Spares::default(),
        };
        log.count_damaged();
        log.share_durable();
        let (base, base_chain, last) = {
            let places = log.reader.lock();
            let last = places.identity(places.last()).map_or(places.base, |(id, _)| id);
            (places.base, places.base_chain, last)
        };
        log.written = last;
        log.believe(found.batch_state, last);
        log.hard.saved.clean = false;
        log.note_durable();
        log.hard.save()?;
        log.proven = log.synced;
        let recovered = Recovered {
            identity: log.hard.saved.identity,
            hard_state: log.hard.saved.hard,
            base,
            base_chain,
            runs: found.runs,
            last,
            configs: found.configs.into_iter().collect(),
            pending_install: log.hard.saved.install,
            cut: found.cut,
            damaged: log.damaged.clone(),
            amnesia: log.hard.saved.amnesia,
            lost,
            quarantined,
        };
        Ok((log, recovered))
    }

    /// Batches name term and vote a second time: the newer counts.
    fn believe(&mut self, batch: HardState, last: LogId) {
        let hard = &mut self.hard.saved.hard;
        if batch.term > hard.term || (batch.term == hard.term && hard.vote.is_none()) {
            *hard = batch;
        }
        if last.term > hard.term {
            *hard = HardState { term: last.term, vote: None };
        }
    }

    pub(super) fn places(&self) -> RwLockWriteGuard<'_, Places> {
        self.reader.places.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Term and vote to be saved with the next write, before its entries.
    pub fn stage_hard_state(&mut self, state: HardState) {
        assert!(state.term >= self.hard.saved.hard.term, "a term never falls");
        self.hard.saved.hard = state;
        self.hard_staged = true;
    }

    /// Adds one entry of our own, in place of whatever was at its index and after it.
    pub fn stage_own(&mut self, id: LogId, kind: EntryKind, payload: &[u8], time_ms: u64) {
        let prev_chain = self.begin_at(id.index).expect("a log is recovered with its last chain");
        let at = self.staged.frames.len();
        let chain = frame::encode(id, kind, time_ms, prev_chain, payload, &mut self.staged.frames);
        self.staged.entries.push((id, at, chain));
    }

    /// Adds a run of received frames that begins at `first`, in place of whatever was there
    /// and after it.
    ///
    /// # Errors
    /// `Corrupt` when the run is damaged, or does not continue our own entries although the
    /// leader says that they are equal: the histories have diverged.
    pub fn stage_frames(&mut self, first: Index, frames: &[u8]) -> Result<(), StoreError> {
        let mut prev_chain = self.begin_at(first);
        let mut at = self.staged.frames.len();
        let mut entries = Vec::new();
        for (entry, index) in Frames::new(frames).zip(first.0..) {
            let entry = match entry {
                Ok(entry)
                    if entry.id.index.0 == index
                        && prev_chain.is_none_or(|chain| entry.continues(chain)) =>
                {
                    entry
                }
                Ok(entry) => return Err(diverged(FrameError::Chain(entry.id))),
                Err(error) => return Err(diverged(error)),
            };
            prev_chain = Some(entry.chain);
            entries.push((entry.id, at, entry.chain));
            at += entry.size;
        }
        // Only a whole run: a half-staged one would name entries without bytes.
        self.staged.entries.extend(entries);
        self.staged.frames.extend_from_slice(frames);
        Ok(())
    }

    /// Cuts what is staged so that `index` comes next; returns the chain before it.
    fn begin_at(&mut self, index: Index) -> Option<u64> {
        let staged = &mut self.staged;
        if !staged.entries.is_empty() && index >= staged.first {
            let keep = usize::try_from(index.0 - staged.first.0).expect("staged fits memory");
            assert!(keep <= staged.entries.len(), "entries follow each other");
            if let Some((_, at, _)) = staged.entries.get(keep) {
                staged.frames.truncate(*at);
                staged.entries.truncate(keep);
            }
            return staged.entries.last().map_or(staged.prev_chain, |(.., chain)| Some(*chain));
        }
        let places = self.reader.lock();
        assert!(index > places.base.index, "what is compacted is committed and stays");
        let (_, chain) = places.known(index.prev()).expect("the entry before is held");
        drop(places);
        *staged = Staged { first: index, prev_chain: chain, ..Staged::default() };
        chain
    }

    /// Is there anything to write?
    #[must_use]
    pub fn has_staged(&self) -> bool {
        self.hard_staged || self.mark_staged || !self.staged.entries.is_empty()
    }

    /// The commit index to note in the next batch.
    pub fn set_commit(&mut self, commit: Index) {
        self.commit = commit;
    }

    /// Writes what is staged as one batch, readable at once; the job makes it durable.
    /// `None`: nothing was staged.
    ///
    /// # Errors
    /// `Io`: the process must end.
    ///
    /// # Panics
    /// When the job before is not done.
    pub fn write(&mut self, io: IoToken) -> Result<Option<SyncJob>, StoreError> {
        if !self.has_staged() {
            return Ok(None);
        }
        assert!(self.syncing.is_none(), "one batch at a time: only the last may be unproven");
        let mut job = SyncJob { hard: None, log: None, io };
        if self.hard_staged {
            self.hard_staged = false;
            self.note_durable();
            let (offset, len) = self.hard.write()?;
            job.hard = Some((self.hard.region(), offset, len));
        }
        let mut end = self.synced;
        if !self.staged.entries.is_empty() {
            let (map, offset, len) = self.write_batch()?;
            end = self.position();
            job.log = Some((map, offset, len));
        } else if self.mark_staged
            && let Some((map, offset, len)) = self.write_mark()?
        {
            end = self.position();
            job.log = Some((map, offset, len));
        }
        self.mark_staged = false;
        self.syncing = Some(end);
        Ok(Some(job))
    }

    fn write_batch(&mut self) -> Result<(Arc<AppendMap>, u64, u64), StoreError> {
        let staged = std::mem::take(&mut self.staged);
        let needed = staged.frames.len() as u64 + BATCH as u64 + ALIGN;
        self.make_room(staged.first, needed)?;
        let count = u32::try_from(staged.entries.len()).expect("far fewer than bytes");
        let (offset, at) = self.append_batch(staged.first, count, 0, &staged.frames)?;
        let active = self.active.as_ref().expect("room was made");
        let (map, number) = (active.appender.map().clone(), active.number);
        let len = map.written() - offset;
        {
            let mut places = self.places();
            places.truncate(staged.first);
            assert!(places.last() == staged.first.prev(), "a log has no holes");
            places.places.extend(staged.entries.iter().map(|(_, frame, _)| Place {
                segment: number,
                eighths: u32::try_from((at + *frame as u64) / 8).expect("segments are small"),
            }));
        }
        if !self.damaged.is_empty() {
            self.count_damaged();
        }
        self.written = staged.entries.last().map_or(self.written, |(id, ..)| *id);
        Ok((map, offset, len))
    }

    /// Appends the gap, the header and the frames; returns where the whole and where the
    /// frames begin in the file.
    pub(super) fn append_batch(
        &mut self,
        first: Index,
        count: u32,
        flags: u32,
        frames: &[u8],
    ) -> Result<(u64, u64), StoreError> {
        // Copies of damaged entries name no place in the log.
        let before = (flags & REPAIR == 0).then(|| self.reader.lock().known(first.prev()));
        let prev_chain = before.flatten().and_then(|(_, chain)| chain);
        let active = self.active.as_mut().expect("there is a segment to append to");
        let offset = active.appender.map().written();
        let start = offset.next_multiple_of(ALIGN);
        let header = BatchHeader {
            position: active.header.base + start,
            synced: self.synced,
            bytes: u32::try_from(frames.len()).expect("a batch is far below 4 GiB"),
            count,
            first,
            commit: self.commit,
            term: self.hard.saved.hard.term,
            vote: self.hard.saved.hard.vote,
            flags,
            prev_chain,
        };
        let gap = usize::try_from(start - offset).expect("below the alignment");
        let mut bytes = Vec::with_capacity(gap + BATCH + frames.len());
        bytes.resize(gap, 0xff);
        bytes.extend_from_slice(&header.encode(active.header.salt));
        bytes.extend_from_slice(frames);
        active.appender.append(&bytes)?;
        self.proven = self.proven.max(self.synced);
        if flags & (MARK | SEAL) == 0 {
            self.unproven = header.position + (bytes.len() - gap) as u64;
        }
        Ok((offset, start + BATCH as u64))
    }

    /// Seals the segment and begins another unless a batch from `first` on fits. A batch that
    /// reaches back before the segment begins one too: what lies before a segment is then
    /// always what its header names.
    pub(super) fn make_room(&mut self, first: Index, needed: u64) -> Result<(), StoreError> {
        if let Some(active) = &self.active {
            let map = active.appender.map();
            let fits = map.written() + needed + SEAL_ROOM <= map.len();
            if fits && first > active.header.prev.index {
                return Ok(());
            }
            self.seal()?;
        }
        let (prev, prev_chain) =
            self.reader.lock().known(first.prev()).expect("the entry before is held");
        let len = self.options.segment_bytes.max(HEADER + needed + SEAL_ROOM);
        self.begin_segment(prev, prev_chain, len, false)
    }

    /// Ends the segment, durably: nothing in it can be torn from now on.
    pub(super) fn seal(&mut self) -> Result<(), StoreError> {
        let Some(active) = &self.active else { return Ok(()) };
        let map = active.appender.map().clone();
        let behind = self.reader.lock().last().next();
        let (offset, _) = self.append_batch(behind, 0, SEAL, &[])?;
        map.sync(offset, map.written() - offset)?;
        self.synced = self.position();
        self.active = None;
        self.share_durable();
        Ok(())
    }

    pub(super) fn begin_segment(
        &mut self,
        prev: LogId,
        prev_chain: Option<u64>,
        len: u64,
        anew: bool,
    ) -> Result<(), StoreError> {
        let identity = self.hard.saved.identity;
        let header = SegmentHeader {
            identity,
            sequence: self.next_sequence,
            base: self.next_position,
            prev,
            prev_chain,
            salt: salt(&identity, self.next_sequence),
            anew,
        };
        let appender = self.segment_file(&header, len)?.into_appender(HEADER);
        let number = self.next_number;
        self.next_sequence += 1;
        self.next_position += appender.map().len();
        self.next_number += 1;
        let map = appender.map().clone();
        self.places().segments.insert(number, map.clone());
        self.segments.push(Known { header, map, number });
        self.active = Some(Active { header, appender, number });
        // Its header is durable with its name.
        self.places().durable = (number, HEADER);
        Ok(())
    }

    /// Tells readers how far the log is durable.
    fn share_durable(&self) {
        let open = self.active.as_ref().map(|active| {
            let map = active.appender.map();
            (active.number, map.written().min(self.synced.saturating_sub(active.header.base)))
        });
        self.places().durable = open.unwrap_or((self.next_number, 0));
    }

    /// Where the next byte will lie.
    pub(super) fn position(&self) -> u64 {
        match &self.active {
            Some(active) => active.header.base + active.appender.map().written(),
            None => self.synced,
        }
    }

    /// The batch of this job is durable.
    pub fn synced(&mut self, synced: Synced) -> IoToken {
        self.synced = self.syncing.take().expect("a job was running");
        self.share_durable();
        synced.io
    }

    /// Notes in the hard state, for whenever it is saved next, how far the log is durable.
    pub(super) fn note_durable(&mut self) {
        self.hard.saved.durable = self.synced;
        let places = self.reader.lock();
        let (last, chain) = places.identity(places.last()).unwrap_or_default();
        drop(places);
        self.hard.saved.last = last;
        self.hard.saved.chain = chain;
    }

    /// The last entry that is written, readable, and not about to be replaced.
    #[must_use]
    pub fn written(&self) -> LogId {
        if self.staged.entries.is_empty() || self.staged.first > self.written.index {
            return self.written;
        }
        let kept = self.reader.lock().known(self.staged.first.prev());
        kept.expect("the entry before what is staged is held").0
    }

    /// The first index held; one after the last when nothing is.
    #[must_use]
    pub fn first(&self) -> Index {
        self.reader.lock().base.index.next()
    }

    /// For readers on any thread.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// The chain of a written entry, or of the one before the first.
    #[must_use]
    pub fn chain_at(&self, index: Index) -> Option<u64> {
        self.reader.lock().identity(index).map(|(_, chain)| chain)
    }

    /// Bytes written in all segments.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.map.written()).sum()
    }
}

fn diverged(error: FrameError) -> StoreError {
    StoreError::Corrupt {
        file: "entries from the leader".into(),
        what: "entry",
        offset: 0,
        why: format!("{error}: this node's log is not a copy of the leader's"),
    }
}
