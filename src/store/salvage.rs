//! What can still be said about a damaged part of the log.
//!
//! An entry whose bytes are damaged is not lost as long as its name is known: it stays part
//! of the log, and a copy of it from any other node can be checked against that name. The
//! name comes from the header of its frame, or, when that is damaged too, from the entries
//! around it: the index by counting, the term when both neighbours, or the entry before and
//! the term of the node when it wrote the batch, have the same one.
//!
//! Bytes that a client chose may look like frames, so nothing that is found behind a damaged
//! header is believed before its chain has reached an entry that no client could place: the
//! first of the next batch, whose header is keyed by the salt, or the one that the header of
//! the next segment names.
//!
//! Where names are lost the node has forgotten what it may have acknowledged. That is noted
//! in the hard state before anything else, and the segments that cannot be trusted are moved
//! aside, newest first, so that no crash leaves a gap.

use std::collections::BTreeSet;
use std::path::Path;

use super::disk::Disk;
use super::error::StoreError;
use super::frame::{self, HEADER as FRAME, Head};
use super::hard_state::HardStateFile;
use super::map::AppendMap;
use super::reader::Damaged;
use super::recovery::{Held, open_segment};
use super::segment::{ALIGN, BATCH, BatchHeader, HEADER, SegmentHeader, path_of, sequence_of};
use crate::raft::types::{EntryKind, Index, LogId, Term};

/// Most bytes of several entries in a row whose headers are lost: one answer of a peer must
/// be able to carry all of them, because only together do they reach what proves them.
const HEADLESS_MAX: usize = 256 << 10;

/// Where the log stops being trustworthy.
#[derive(Debug)]
pub(super) struct Lost {
    /// The first segment that is not kept.
    pub(super) sequence: u64,
    /// Where it began in the log.
    pub(super) position: u64,
    /// Newest term that was seen in batches.
    pub(super) term: Term,
    pub(super) error: StoreError,
}

/// The entries of a damaged batch.
pub(super) struct Walked {
    pub(super) entries: Vec<Held>,
    /// What was found behind damaged headers waits for a proof.
    pub(super) resynced: bool,
}

/// The frames of a batch of `count` entries from `first` on, after the entry `prev`; `Err`:
/// why they cannot be told apart.
pub(super) fn walk(
    frames: &[u8],
    (first, count): (Index, u32),
    (prev, chain): (LogId, Option<u64>),
    ceiling: Term,
) -> Result<Walked, &'static str> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count == 0 || count.checked_mul(FRAME).is_none_or(|least| least > frames.len()) {
        return Err("it is too small for its entries");
    }
    let last = Index(first.0 + (count as u64 - 1));
    let mut entries = Vec::new();
    let (end, before) =
        run(frames, 0, (first, last), (prev, chain), ceiling, &mut |held| entries.push(held));
    if end == frames.len() && before.0.index == last {
        return Ok(Walked { entries, resynced: false });
    }
    let next = Index(first.0 + entries.len() as u64);
    let found = resync(frames, end, (next, last), before.0.term, ceiling);
    let (from, upto) = match &found {
        Some((at, head)) => (*at, head.id.index.prev()),
        None => (frames.len(), last),
    };
    let lost = upto.0 + 1 - next.0;
    if from < end || lost > (from - end) as u64 / FRAME as u64 {
        return Err("there is no room for the entries that are missing");
    }
    if lost > 1 && from - end > HEADLESS_MAX {
        return Err("too many headers in a row are lost");
    }
    let ceiling = found.as_ref().map_or(ceiling, |(_, head)| head.id.term);
    let known = ceiling == before.0.term;
    if found.is_some() && !known {
        return Err("the terms of entries without headers are lost");
    }
    for index in next.0..=upto.0 {
        let id = LogId { term: before.0.term, index: Index(index) };
        let bad = Some(Damaged { id, chain: None, head: None });
        entries.push(Held { id, chain: None, at: 0, config: None, bad, term_known: known });
    }
    if let Some((at, head)) = &found {
        let prev = (LogId { term: before.0.term, index: upto }, None);
        let (first, ceiling) = (head.id.index, Term(u64::MAX));
        run(frames, *at, (first, last), prev, ceiling, &mut |held| entries.push(held));
    }
    Ok(Walked { entries, resynced: found.is_some() })
}

/// Reads headers of frames that follow each other; returns where and after which entry that
/// ends.
fn run(
    frames: &[u8],
    mut at: usize,
    (first, last): (Index, Index),
    (mut prev, mut chain): (LogId, Option<u64>),
    ceiling: Term,
    found: &mut dyn FnMut(Held),
) -> (usize, (LogId, Option<u64>)) {
    let mut index = first;
    while index <= last
        && let Some(head) = frames.get(at..).and_then(|rest| frame::head(rest).ok())
        && head.id.index == index
        && (prev.term..=ceiling).contains(&head.id.term)
        && chain.is_none_or(|chain| head.continues(chain))
        && let Some(bytes) = frames.get(at..at + head.size)
    {
        found(Held::of(&head, bytes, at as u64));
        (prev, chain) = (head.id, Some(head.chain));
        at += head.size;
        index = index.next();
    }
    (at, (prev, chain))
}

/// The first frame behind `from` from which headers follow each other to the very end.
fn resync(
    frames: &[u8],
    from: usize,
    (next, last): (Index, Index),
    floor: Term,
    ceiling: Term,
) -> Option<(usize, Head)> {
    // A chain that broke off breaks off for each of its frames, so none is walked twice.
    let mut broken = BTreeSet::new();
    for at in (from.checked_add(FRAME)?..frames.len()).step_by(8) {
        let Ok(head) = frame::head(frames.get(at..)?) else { continue };
        let index = head.id.index;
        if index <= next || index > last || broken.contains(&at) {
            continue;
        }
        let mut starts = Vec::new();
        let prev = (LogId { term: floor, index: index.prev() }, None);
        let (end, _) = run(frames, at, (index, last), prev, ceiling, &mut |held| starts.push(held));
        if end == frames.len() && starts.last().is_some_and(|held| held.id.index == last) {
            return Some((at, head));
        }
        broken.extend(starts.iter().filter_map(|held| usize::try_from(held.at).ok()));
    }
    None
}

impl Held {
    /// An entry whose frame has this header and these bytes.
    fn of(head: &Head, bytes: &[u8], at: u64) -> Self {
        let whole = frame::decode(bytes).ok();
        let config = whole.filter(|frame| frame.kind == EntryKind::Config);
        let config = config.map(|frame| frame.payload.to_vec());
        let chain = Some(head.chain);
        let bad = Damaged { id: head.id, chain, head: Some(*head) };
        let bad = whole.is_none().then_some(bad);
        Self { id: head.id, chain, at, config, bad, term_known: true }
    }
}

/// Where the next batch with a valid header begins.
pub(super) fn next_batch(
    map: &AppendMap,
    header: &SegmentHeader,
    start: u64,
    end: u64,
) -> Option<(u64, BatchHeader)> {
    (start + ALIGN..end).step_by(64).find_map(|at| {
        let bytes = map.bytes(at, BATCH)?;
        Some((at, BatchHeader::decode(bytes, header.salt, header.base + at)?))
    })
}

/// The frames between a lost batch header and the next valid one, or the end of what was
/// written, and where they end: all of them whole, or `None`.
pub(super) fn headless<'a>(
    map: &'a AppendMap,
    start: u64,
    next: Option<u64>,
    dirty: u64,
) -> Option<(&'a [u8], u64)> {
    let from = start + BATCH as u64;
    let limit = next.unwrap_or_else(|| map.written());
    let bytes = map.bytes(from, usize::try_from(limit.checked_sub(from)?).ok()?)?;
    let mut at = 0;
    loop {
        let end = from + at as u64;
        let done = match next {
            Some(next) => end.next_multiple_of(ALIGN) == next,
            None => end >= dirty,
        };
        if done {
            return bytes.get(..at).map(|frames| (frames, end));
        }
        at += frame::decode(bytes.get(at..)?).ok()?.size;
    }
}

/// Notes the amnesia, then moves what cannot be trusted aside; returns the names.
///
/// # Errors
/// `Io`.
pub(super) fn quarantine(
    disk: &dyn Disk,
    dir: &Path,
    hard: &mut HardStateFile,
    lost: &Lost,
) -> Result<Vec<String>, StoreError> {
    let mut sequences: Vec<u64> = disk.list(dir)?.iter().filter_map(|n| sequence_of(n)).collect();
    sequences.sort_unstable();
    sequences.retain(|sequence| *sequence >= lost.sequence);
    let mut newest = lost.term;
    for sequence in &sequences {
        newest = newest.max(newest_term(&open_segment(disk, &path_of(dir, *sequence))?));
    }
    hard.begin_amnesia(newest, lost.position)?;
    let aside = dir.join("quarantine");
    let mut moved = Vec::new();
    for sequence in sequences.into_iter().rev() {
        if moved.is_empty() {
            disk.make_dir(&aside)?;
        }
        let from = path_of(dir, sequence);
        let there = disk.list(&aside)?;
        // An earlier one of this number is evidence, too.
        let name = (0_u32..)
            .map(|copy| match copy {
                0 => format!("{sequence:016x}.seg"),
                copy => format!("{sequence:016x}.seg.{copy}"),
            })
            .find(|name| !there.contains(name))
            .expect("numbers do not end");
        disk.rename(&from, &aside.join(&name))?;
        disk.sync_dir(&aside)?;
        disk.sync_dir(dir)?;
        moved.push(name);
    }
    Ok(moved)
}

/// The newest term that anything readable in a segment names.
fn newest_term(map: &AppendMap) -> Term {
    let bytes = map.bytes(0, 4096).unwrap_or_default();
    let Some(header) = SegmentHeader::decode(bytes) else { return Term(0) };
    let mut newest = header.prev.term;
    let mut at = HEADER - ALIGN;
    while let Some((start, batch)) = next_batch(map, &header, at, map.written()) {
        newest = newest.max(batch.term);
        at = start;
    }
    newest
}
