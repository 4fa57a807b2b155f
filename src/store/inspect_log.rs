//! Walking a log that nobody uses, damaged or not.
//!
//! The rules are those of `recovery.rs`, and what tells a torn tail from damage is its
//! code. Where recovery refuses, this goes on: behind a damaged payload with the next frame,
//! whose place the header still says; behind a damaged header with the next batch that has
//! the salt of the segment and stands where it says.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::disk::{Disk, FileKind};
use super::error::StoreError;
use super::frame::{self, Head};
use super::hard_state::{self, Saved};
use super::inspect::{Finding, Harm, LOST, LogReport, Segment, Slot};
use super::map::AppendMap;
use super::reader::Place;
use super::recovery::{REACHABLE, classify, dirty_end};
use super::segment::{
    ALIGN, BATCH, BatchHeader, HEADER, MARK, REPAIR, SEAL_ROOM, SegmentHeader, path_of, sequence_of,
};
use crate::raft::types::{HardState, Index, LogId};

/// Lost entries that get a place each. A checksum stands behind the numbers that this is
/// computed from, but no number in a file may decide how much memory we take.
const LOST_MAX: u64 = 1 << 24;

/// Reads the log in `dir`. `progress` hears of the bytes that were looked at.
///
/// # Errors
/// `Io`: the operating system does not let us read. Whatever the bytes are is no error.
pub fn inspect_log(
    disk: &dyn Disk,
    dir: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<LogReport, StoreError> {
    let mut report = LogReport { dir: dir.display().to_string(), ..LogReport::default() };
    let names = disk.list(dir)?;
    let mut sequences: Vec<u64> = names.iter().filter_map(|name| sequence_of(name)).collect();
    sequences.sort_unstable();
    report.found = !sequences.is_empty() || names.iter().any(|name| name == "hard.state");
    for draft in names.iter().filter(|name| name.ends_with(".tmp")) {
        report.notes.push(format!("{draft} was never finished; the next start removes it"));
    }
    if !report.found {
        return Ok(report);
    }
    let saved = read_slots(&mut report, disk, &dir.join("hard.state"))?;
    let fresh = Fresh { position: None, end: 0, chain: None };
    let mut walk = Walk {
        report,
        saved,
        fresh,
        damaged: BTreeSet::new(),
        repaired: BTreeSet::new(),
        progress,
    };
    for (at, sequence) in sequences.iter().enumerate() {
        if let Some(before) = at.checked_sub(1).and_then(|at| sequences.get(at))
            && before + 1 != *sequence
        {
            let file = path_of(dir, before + 1).display().to_string();
            walk.found(&file, 0, "segment", "the file is missing", Harm::Entries);
            walk.fresh.position = None;
        }
        walk.segment(disk, dir, *sequence, at + 1 == sequences.len())?;
    }
    Ok(walk.finish())
}

fn read_slots(
    report: &mut LogReport,
    disk: &dyn Disk,
    path: &Path,
) -> Result<Option<Saved>, StoreError> {
    let slots = hard_state::read_slots(disk, path)?;
    let newest = slots.iter().flatten().max_by_key(|(sequence, _)| *sequence).copied();
    let file = path.display().to_string();
    let mut found = |offset, why: String, harm| {
        let (file, what) = (file.clone(), "hard state");
        report.findings.push(Finding { file, offset, what, why, harm, ..Finding::default() });
    };
    if slots.is_empty() {
        found(0, "the file is missing: this node's term and vote are lost".into(), Harm::Vote);
    }
    for (number, slot) in (0_u64..).zip(&slots) {
        if slot.is_none() {
            let harm = if newest.is_some() { Harm::Spare } else { Harm::Vote };
            found(number * hard_state::SLOT, format!("slot {number} of 4 is damaged"), harm);
        }
    }
    let shown = |slot: &Option<(u64, Saved)>| {
        slot.as_ref().map(|(sequence, saved)| Slot::of(*sequence, saved))
    };
    report.slots = slots.iter().map(shown).collect();
    let saved = newest.map(|(_, saved)| saved);
    report.hard = saved.map(|saved| saved.hard).unwrap_or_default();
    Ok(saved)
}

/// What the next segment or batch is compared with.
struct Fresh {
    /// Where the next segment must begin; `None`: not known.
    position: Option<u64>,
    /// Position up to which the log was read.
    end: u64,
    /// Chain of the last entry; `None`: not known.
    chain: Option<u64>,
}

struct Walk<'a> {
    report: LogReport,
    saved: Option<Saved>,
    fresh: Fresh,
    /// Entries that have a place and no readable payload.
    damaged: BTreeSet<Index>,
    /// Entries that a later batch was made for, because they were damaged.
    repaired: BTreeSet<Index>,
    progress: &'a mut dyn FnMut(u64),
}

/// A segment that is being walked.
struct Open<'a> {
    map: &'a Arc<AppendMap>,
    header: SegmentHeader,
    number: u32,
    newest: bool,
    /// Where the last batch ended.
    at: u64,
    /// Largest position that a batch here proves durable.
    proven: u64,
    about: Segment,
}

/// One frame of a batch.
struct Judged {
    /// Bytes from the start of the file.
    at: u64,
    /// `None`: the header is damaged, and what follows in the batch cannot be found.
    head: Option<Head>,
    /// What is wrong with it; `None`: nothing.
    wrong: Option<&'static str>,
}

impl Walk<'_> {
    fn found(&mut self, file: &str, offset: u64, what: &'static str, why: &str, harm: Harm) {
        let (file, why) = (file.to_owned(), why.to_owned());
        self.report.findings.push(Finding { file, offset, what, why, harm, ..Finding::default() });
    }

    fn next_index(&self) -> Index {
        Index(self.report.base.index.0 + self.report.places.len() as u64 + 1)
    }

    fn segment(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        sequence: u64,
        newest: bool,
    ) -> Result<(), StoreError> {
        let path = path_of(dir, sequence);
        let name = path.display().to_string();
        let Some(region) = disk.open(&path, FileKind::Log, 0)? else { return Ok(()) };
        let map = Arc::new(AppendMap::sealed(region));
        let bytes = map.len();
        let about = Segment { file: name.clone(), sequence, bytes, ..Segment::default() };
        let number = u32::try_from(self.report.maps.len()).unwrap_or(u32::MAX);
        self.report.maps.push(map.clone());
        let header = map.bytes(0, 4096).and_then(SegmentHeader::decode);
        let near = |header: &SegmentHeader| {
            header.sequence.max(header.base).max(header.prev.index.0) <= REACHABLE
        };
        let Some(header) = header.filter(near) else {
            let why = "the header is damaged, and without its salt no batch can be believed";
            self.found(&name, 0, "segment header", why, Harm::Entries);
            self.report.segments.push(about);
            (self.fresh.position, self.fresh.chain) = (None, None);
            (self.progress)(bytes);
            return Ok(());
        };
        if let Some(at) = map.bytes(0, 4096).and_then(SegmentHeader::damaged_copy) {
            self.found(&name, at, "segment header", "one of two copies is damaged", Harm::Spare);
        }
        self.judge_header(&name, &header, sequence);
        let (at, proven) = (HEADER, header.base);
        let mut open = Open { map: &map, header, number, newest, at, proven, about };
        (self.progress)(HEADER);
        self.batches(&mut open);
        (self.progress)(bytes.saturating_sub(open.at));
        open.about.used = open.at;
        let end = header.base.saturating_add(bytes);
        self.fresh.position = Some(end);
        self.fresh.end = if open.about.sealed { end } else { header.base + open.at };
        self.report.segments.push(open.about);
        Ok(())
    }

    /// Does the segment belong here, and continue what was read so far?
    fn judge_header(&mut self, name: &str, header: &SegmentHeader, sequence: u64) {
        if sequence != header.sequence {
            let why = "the file has another segment's number";
            self.found(name, 48, "segment header", why, Harm::Contradiction);
        }
        if self.saved.is_some_and(|saved| saved.identity != header.identity) {
            let why = "the segment belongs to another node, or to another life of this one";
            self.found(name, 16, "segment header", why, Harm::Contradiction);
        }
        if self.fresh.position.is_some_and(|position| position != header.base) {
            let why = "it does not begin where the one before ends";
            self.found(name, 56, "segment header", why, Harm::Contradiction);
        }
        let first = !self.report.segments.iter().any(|segment| segment.used > 0);
        let known = self.report.identity(header.prev.index);
        let installing = self.saved.is_some_and(|saved| saved.install.is_some());
        let agrees = |(id, chain): (LogId, u64)| {
            id == header.prev && header.prev_chain.is_none_or(|said| said == chain)
        };
        if !first && known.is_some_and(agrees) {
            self.fresh.chain = self.fresh.chain.filter(|_| header.prev == self.report.last);
            return;
        }
        if first || installing || header.prev.index < self.report.base.index {
            self.report.places.clear();
            self.damaged.clear();
            self.report.base = header.prev;
            self.report.base_chain = header.prev_chain.unwrap_or_default();
        } else if known.is_some() {
            let why = "the segment does not continue the one before";
            self.found(name, 64, "segment header", why, Harm::Contradiction);
            return;
        } else {
            self.lose(header.prev.index);
        }
        (self.report.last, self.fresh.chain) = (header.prev, header.prev_chain);
    }

    /// Notes that all entries up to `upto` that have no place cannot be read, because of
    /// what was found last.
    fn lose(&mut self, upto: Index) {
        let from = self.next_index();
        if upto < from {
            return;
        }
        let count = (upto.0 - from.0 + 1).min(LOST_MAX);
        let count = usize::try_from(count).unwrap_or_default();
        self.report.places.extend(std::iter::repeat_n(LOST, count));
        if let Some(finding) = self.report.findings.list.last_mut() {
            let (first, last) = finding.entries.unwrap_or((from, upto));
            finding.entries = Some((first.min(from), last.max(upto)));
        }
        (self.report.last, self.fresh.chain) = (LogId { index: upto, ..LogId::default() }, None);
    }

    fn batches(&mut self, open: &mut Open<'_>) {
        loop {
            let start = open.at.next_multiple_of(ALIGN);
            let header = &open.header;
            let batch = open.map.bytes(start, BATCH).and_then(|bytes| {
                BatchHeader::decode(bytes, header.salt, header.base.saturating_add(start))
            });
            let from = start.saturating_add(BATCH as u64);
            let frames = batch.and_then(|batch| {
                let len = usize::try_from(batch.bytes).ok()?;
                Some((batch, open.map.bytes(from, len)?))
            });
            let Some((batch, frames)) = frames else {
                if !self.go_on_behind(open, start) {
                    return;
                }
                continue;
            };
            if batch.is_seal() {
                (open.about.sealed, open.at) = (true, from);
                return;
            }
            let (judged, whole) = self.judge(&batch, frames, from);
            if !whole && open.newest && self.tail(open).is_none() {
                return;
            }
            if batch.flags & MARK == 0 && batch.first > self.next_index() {
                self.found(open.map.name(), start, "batch", "it leaves a hole", Harm::Entries);
                self.lose(batch.first.prev());
            }
            self.take(open, &batch, &judged, start);
            let end = from + u64::from(batch.bytes);
            (self.progress)(end - open.at);
            open.at = end;
            if whole {
                open.about.batches += 1;
                open.proven = open.proven.max(batch.synced);
            }
        }
    }

    /// Looks at every frame of a batch; says whether all of it is as recovery demands.
    fn judge(&self, batch: &BatchHeader, frames: &[u8], from: u64) -> (Vec<Judged>, bool) {
        if batch.flags & MARK != 0 && batch.count == 0 && frames.is_empty() {
            return (Vec::new(), true);
        }
        let before = batch.first.prev();
        let mut prev = if before == self.report.last.index {
            self.fresh.chain.map(|chain| (self.report.last, chain))
        } else {
            None
        };
        prev = prev.or_else(|| self.report.identity(before));
        let (mut judged, mut at) = (Vec::new(), 0);
        let mut wanted = batch.first;
        while let Some(rest) = frames.get(at..).filter(|rest| !rest.is_empty()) {
            let place = from + at as u64;
            let Some(head) = frame::head(rest).ok().filter(|head| head.id.index == wanted) else {
                let wrong = Some("the header of a frame is damaged");
                judged.push(Judged { at: place, head: None, wrong });
                break;
            };
            let wrong = match prev {
                _ if frame::decode(rest).is_err() => Some("the payload is damaged"),
                Some((id, chain)) if head.id.term < id.term || !head.continues(chain) => {
                    Some("it does not continue the entry before")
                }
                Some(_) | None => None,
            };
            judged.push(Judged { at: place, head: Some(head), wrong });
            prev = Some((head.id, head.chain));
            wanted = wanted.next();
            at += head.size;
        }
        let count = judged.iter().filter(|one| one.wrong.is_none()).count();
        let counted = usize::try_from(batch.count).is_ok_and(|said| said == count);
        let whole = counted && count == judged.len() && count > 0;
        (judged, whole && batch.first > Index(0))
    }

    /// Makes the frames of a batch part of the log that is read.
    fn take(&mut self, open: &mut Open<'_>, batch: &BatchHeader, judged: &[Judged], start: u64) {
        if batch.term >= self.report.hard.term && batch.vote.is_some() {
            self.report.hard = HardState { term: batch.term, vote: batch.vote };
        }
        self.report.commit = self.report.commit.max(batch.commit);
        if batch.flags & MARK != 0 || batch.first <= self.report.base.index {
            return;
        }
        let repairs = batch.flags & REPAIR != 0;
        if !repairs {
            let keep = batch.first.0 - self.report.base.index.0 - 1;
            self.report.places.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            self.damaged.split_off(&batch.first);
        }
        for one in judged {
            self.take_frame(open, one, repairs);
        }
        let held = judged.iter().filter(|one| one.head.is_some()).count() as u64;
        if held < u64::from(batch.count) {
            if judged.last().is_none_or(|one| one.head.is_some()) {
                let why = "it has fewer frames than it says";
                self.found(open.map.name(), start, "batch", why, Harm::Entries);
            }
            self.lose(Index(
                batch.first.0.saturating_add(u64::from(batch.count)).saturating_sub(1),
            ));
        }
    }

    fn take_frame(&mut self, open: &mut Open<'_>, one: &Judged, repairs: bool) {
        if let Some(wrong) = one.wrong {
            let (file, why) = (open.map.name().to_owned(), wrong.to_owned());
            let entry = one.head.map(|head| head.id);
            let entries = entry.map(|id| (id.index, id.index));
            let (what, harm, offset) = ("frame", Harm::Entries, one.at);
            let finding = Finding { file, offset, what, why, harm, entries, entry };
            self.report.findings.push(finding);
        }
        let Some(head) = one.head else { return };
        let Ok(eighths) = u32::try_from(one.at / 8) else { return };
        let place = Place { segment: open.number, eighths };
        let at = head.id.index.0 - self.report.base.index.0 - 1;
        match usize::try_from(at).ok().and_then(|at| self.report.places.get_mut(at)) {
            Some(old) => *old = place,
            None => self.report.places.push_back(place),
        }
        if one.wrong.is_some() {
            self.damaged.insert(head.id.index);
        } else {
            self.damaged.remove(&head.id.index);
            if repairs {
                self.repaired.insert(head.id.index);
            }
            open.about.entries += 1;
            open.about.first = open.about.first.or(Some(head.id));
            open.about.last = Some(head.id);
        }
        if !repairs || head.id.index >= self.report.last.index {
            (self.report.last, self.fresh.chain) = (head.id, Some(head.chain));
        }
    }

    /// There is no batch at `start`. Moves to the next one behind damage; `false`: there is
    /// none, damage or not.
    fn go_on_behind(&mut self, open: &mut Open<'_>, start: u64) -> bool {
        let name = open.map.name();
        if open.newest {
            if open.at + SEAL_ROOM > open.map.len() {
                let why = "the file was cut: a seal has no room";
                self.found(name, open.map.len(), "segment", why, Harm::Entries);
                return false;
            }
            let Some(why) = self.tail(open) else { return false };
            self.found(name, start, "batch", &why, Harm::Entries);
        } else {
            let why = "a batch is damaged, or the seal at the end is";
            self.found(name, start, "batch", why, Harm::Entries);
        }
        let next = (start + ALIGN..open.map.len()).step_by(64).find_map(|at| {
            let bytes = open.map.bytes(at, BATCH)?;
            let position = open.header.base.saturating_add(at);
            BatchHeader::decode(bytes, open.header.salt, position).map(|batch| (at, batch))
        });
        self.fresh.chain = None;
        let Some((at, batch)) = next else { return false };
        if !batch.is_seal() && batch.flags & (MARK | REPAIR) == 0 {
            self.lose(batch.first.prev());
        }
        (self.progress)(at - open.at);
        open.at = at;
        true
    }

    /// At the end of the newest segment: `None` when what stands there is nothing, or a batch
    /// that was never acknowledged; else why it is damage.
    fn tail(&mut self, open: &Open<'_>) -> Option<String> {
        let durable = self.saved.map_or(0, |saved| saved.durable);
        let clean = self.saved.is_some_and(|saved| saved.clean);
        let proven = open.proven.max(durable);
        let Some(dirty) = dirty_end(open.map, open.at) else {
            let gone = open.header.base + open.at < proven;
            return gone.then(|| "durable bytes are gone".to_owned());
        };
        let why = classify(open.map, &open.header, open.at, dirty, proven, clean);
        if why.is_none() {
            let (bytes, name) = (dirty - open.at, open.map.name());
            self.report.torn = Some(format!("{bytes} bytes after byte {} of {name}", open.at));
        }
        why.map(str::to_owned)
    }

    fn finish(mut self) -> LogReport {
        let durable = self.saved.map_or(0, |saved| saved.durable);
        let gone = self.report.findings.is_empty() && self.fresh.end < durable;
        if gone {
            let why = format!(
                "the log was durable up to position {durable}, and ends at {}",
                self.fresh.end
            );
            let dir = self.report.dir.clone();
            self.found(&dir, 0, "log", &why, Harm::Entries);
        }
        if let Some(saved) = self.saved
            && saved.last.index.0 <= REACHABLE
            && !self.report.findings.is_empty()
        {
            self.lose(saved.last.index);
        }
        let report = &mut self.report;
        let places = report.places.iter().filter(|place| **place == LOST).count();
        report.lost = (places + self.damaged.len()) as u64;
        let repaired = &self.repaired;
        let notes = &mut report.notes;
        report.findings.list.retain(|finding| {
            let Some((first, last)) = finding.entries else { return true };
            let repaired = finding.harm == Harm::Entries
                && (first.0..=last.0).all(|index| repaired.contains(&Index(index)));
            if repaired {
                let Finding { file, offset, .. } = finding;
                notes.push(format!("entries {first} to {last}, damaged at byte {offset} of {file}, were written again later"));
            }
            !repaired
        });
        self.report
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::raft::message::IoToken;
    use crate::raft::types::{EntryKind, NodeId, Term};
    use crate::store::simdisk::SimDisk;
    use crate::store::{Identity, Log, LogOptions};

    const DIR: &str = "/log";
    const NODE: NodeId = NodeId(1);

    fn options() -> LogOptions {
        LogOptions { dir: PathBuf::from(DIR), segment_bytes: 16 << 10, repairable: false }
    }

    fn identity() -> Identity {
        Identity { cluster: 7, node: NODE, incarnation: 3 }
    }

    fn write(log: &mut Log, first: u64, count: u64, term: u64) {
        for index in first..first + count {
            let id = LogId { term: Term(term), index: Index(index) };
            let len = 90 + usize::try_from(index % 60).unwrap();
            let payload = vec![u8::try_from(index % 200).unwrap() + 1; len];
            log.stage_own(id, EntryKind::Command, &payload, index);
        }
        log.set_commit(Index(first - 1));
        let job = log.write(IoToken(1)).unwrap().unwrap();
        let synced = job.run().unwrap();
        let _ = log.synced(synced);
    }

    /// Three segments, with a suffix that was replaced, stopped as asked or not.
    fn disk(clean: bool) -> Arc<SimDisk> {
        let disk = Arc::new(SimDisk::new(1));
        let (mut log, _) = Log::open(disk.clone(), options(), NODE, identity).unwrap();
        log.stage_hard_state(HardState { term: Term(1), vote: Some(NODE) });
        for batch in 0..60 {
            write(&mut log, 1 + 5 * batch, 5, 1);
        }
        log.stage_hard_state(HardState { term: Term(2), vote: None });
        write(&mut log, 297, 9, 2);
        if clean {
            log.mark_clean().unwrap();
        }
        disk
    }

    fn inspect(disk: &SimDisk) -> LogReport {
        inspect_log(disk, Path::new(DIR), &mut |_| {}).unwrap()
    }

    fn harmful(report: &LogReport) -> bool {
        report.findings.list.iter().any(|finding| finding.harm != Harm::Spare)
    }

    #[test]
    fn a_whole_log_is_clean_and_every_entry_is_shown() {
        for clean in [false, true] {
            let disk = disk(clean);
            let report = inspect(&disk);
            assert!(report.findings.is_empty(), "{:?}", report.findings);
            assert!(report.segments.len() > 2 && report.lost == 0);
            assert_eq!((report.first(), report.last().index), (Index(1), Index(305)));
            assert_eq!((report.commit, report.hard.term), (Index(296), Term(2)));
            let (log, _) = Log::open(disk, options(), NODE, identity).unwrap();
            for index in (1..=305).map(Index) {
                let (ours, theirs) = (report.entry(index).unwrap(), log.reader().entry(index));
                let theirs = theirs.unwrap();
                assert_eq!((ours.id, ours.chain), (theirs.id, theirs.chain));
                assert_eq!(ours.payload, theirs.payload);
            }
        }
    }

    /// What recovery refuses has a finding, and what it accepts has none: for flips all over
    /// the files, one or several at once.
    #[test]
    fn the_verdict_is_that_of_recovery() {
        let (mut refused, mut accepted) = (0, 0);
        let mut random = 1_u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for round in 0..1500 {
            let disk = disk(round % 2 == 0);
            let report = inspect(&disk);
            let mut story = Vec::new();
            for _ in 0..=draw(3) {
                let which = draw(report.segments.len() as u64);
                let segment = &report.segments[usize::try_from(which).unwrap()];
                let at = draw((segment.used + 700).min(segment.bytes));
                let bit = 1 << draw(8);
                let path = Path::new(&segment.file);
                let region = disk.open(path, FileKind::Log, 0).unwrap().unwrap();
                let mut byte = [0];
                region.read_at(at, &mut byte).unwrap();
                drop(region);
                disk.damage(path, at, &[byte[0] ^ bit]);
                story.push((which, at, bit));
            }
            let report = inspect(&disk);
            match Log::open(disk, options(), NODE, identity) {
                Ok((log, recovered)) => {
                    accepted += 1;
                    assert!(!harmful(&report), "{story:?}: {:?}", report.findings);
                    assert_eq!(report.last(), recovered.last, "{story:?}");
                    assert_eq!(report.torn.is_some(), recovered.cut.is_some(), "{story:?}");
                    drop(log);
                }
                Err(StoreError::Corrupt { .. } | StoreError::Foreign { .. }) => {
                    refused += 1;
                    assert!(harmful(&report), "{story:?} is refused, and nothing was found");
                }
                Err(error) => panic!("{story:?}: {error}"),
            }
            for index in report.first().0..=report.last().index.0 {
                if let Some(entry) = report.entry(Index(index)) {
                    assert_eq!(entry.time_ms, index, "{story:?}: what is shown is right");
                }
            }
        }
        assert!(refused > 500 && accepted > 50, "{refused} refused, {accepted} accepted");
    }

    #[test]
    fn any_bytes_at_all_are_survived() {
        let mut random = 7_u64;
        for round in 0..300_u64 {
            let disk = disk(round % 2 == 0);
            let report = inspect(&disk);
            for segment in &report.segments {
                let path = Path::new(&segment.file);
                let noise: Vec<u8> = (0..2000)
                    .map(|_| {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        random.to_le_bytes()[5]
                    })
                    .collect();
                disk.damage(path, random % 9000, &noise);
            }
            let report = inspect(&disk);
            assert!(harmful(&report) || report.torn.is_some(), "round {round}");
        }
    }

    #[test]
    fn a_damaged_payload_costs_its_entry_alone() {
        let disk = disk(true);
        let report = inspect(&disk);
        let (segment, at) = {
            let place = report.places[9];
            (usize::try_from(place.segment).unwrap(), u64::from(place.eighths) * 8)
        };
        let path = PathBuf::from(&report.segments[segment].file);
        disk.damage(&path, at + 60, &[0]);
        let report = inspect(&disk);
        assert_eq!(report.lost, 1);
        let [finding] = &report.findings.list[..] else { panic!("{:?}", report.findings) };
        assert_eq!((finding.offset, finding.entries), (at, Some((Index(10), Index(10)))));
        assert_eq!(finding.entry, Some(LogId { term: Term(1), index: Index(10) }));
        assert!(report.entry(Index(10)).is_none() && report.identity(Index(10)).is_some());
        assert!(report.entry(Index(9)).is_some() && report.entry(Index(11)).is_some());
    }
}
