//! Reads everything that is durable from the disk and not from the page cache, a slice at a
//! time: a bit that rots below a page that stays cached is otherwise found when the cache has
//! lost the good copy, and perhaps that of the other nodes as well.
//!
//! Of the log: headers, batches and frames of all segments, of the open one up to the durable
//! mark. Of the database: the last durable checkpoint, whose pages nobody reuses while it is
//! pinned; every page against the checksum in its parent, since a page that a lost write left
//! old is intact by itself.
//!
//! Left out: repair, and the hard state, which is read at every start and written often.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::StoreError;
use super::frame::{self, Head};
use super::map::{AppendMap, PAGE};
use super::meta::Meta;
use super::page::{Kind, Run, View};
use super::reader::LogReader;
use super::segment::{ALIGN, BATCH, BatchHeader, HEADER, SegmentHeader};
use super::snapshot::PinnedCheckpoint;
use super::tree::{HEIGHT_MAX, key_run, value_run};
use crate::raft::types::Index;

/// Bytes that are read at once.
const WINDOW: usize = 256 << 10;

/// Something on the disk that contradicts its checksum, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// In a segment of the log.
    Log {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// First entry that may be affected.
        first: Index,
        /// Last such entry; below `first`: none is.
        last: Index,
    },
    /// In a page, or a run of pages, of the database.
    Db {
        /// The file.
        file: String,
        /// First page.
        page: u64,
        /// How many.
        pages: u64,
    },
    /// In the meta page of the last durable checkpoint.
    Meta {
        /// The file.
        file: String,
        /// Its page.
        slot: u64,
    },
}

impl Finding {
    /// The damaged file.
    #[must_use]
    pub fn file(&self) -> &str {
        match self {
            Self::Log { file, .. } | Self::Db { file, .. } | Self::Meta { file, .. } => file,
        }
    }

    /// Where in it the damage begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match self {
            Self::Log { offset, .. } => *offset,
            Self::Db { page, .. } | Self::Meta { slot: page, .. } => {
                page.saturating_mul(PAGE as u64)
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged on disk at byte {}: ", self.file(), self.offset())?;
        match self {
            Self::Log { first, last, .. } if first > last => write!(f, "no entry is affected"),
            Self::Log { first, last, .. } => write!(f, "entries {} to {}", first.0, last.0),
            Self::Db { page, pages, .. } => write!(f, "{pages} pages from page {page}"),
            Self::Meta { .. } => write!(f, "the meta page"),
        }
    }
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Bytes of the log that were read.
    pub log_bytes: u64,
    /// Bytes of the database that were read.
    pub db_bytes: u64,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Some bytes may be the page cache's: the file system does not read past it.
    pub cached: bool,
    /// Nothing is left.
    pub done: bool,
}

/// One pass. It holds its place between steps and a bounded number of page numbers.
#[derive(Debug)]
pub struct Scrub {
    log: LogReader,
    /// The segment to look for next; `None`: the log is done.
    number: Option<u32>,
    segment: Option<Segment>,
    checkpoint: Option<PinnedCheckpoint>,
    todo: Vec<Todo>,
    trusting: bool,
    done: ScrubProgress,
}

/// Something of a checkpoint that is still to be read.
#[derive(Clone, Copy, Debug)]
enum Todo {
    Meta,
    Page {
        page: u64,
        crc: u32,
        level: u16,
    },
    /// Whole pages; the first `len` bytes have this checksum.
    Run(Run),
}

/// Where in a segment we are.
#[derive(Debug)]
struct Segment {
    number: u32,
    map: Arc<AppendMap>,
    durable: u64,
    header: SegmentHeader,
    at: u64,
    batch: Option<BatchHeader>,
    /// The end of the frames of `batch`, and the index of the next of them.
    end: u64,
    next: Index,
    window: Vec<u8>,
    window_at: u64,
}

/// The name of a segment. The map has that of the draft when it was made in this process.
fn name_of(map: &AppendMap) -> String {
    Path::new(map.name()).with_extension("seg").display().to_string()
}

/// Is this the disk's way to say that bytes are lost?
fn is_lost(error: &StoreError) -> bool {
    const EIO: i32 = 5;
    match error {
        StoreError::Io { source, .. } => {
            source.raw_os_error() == Some(EIO) || source.kind() == io::ErrorKind::UnexpectedEof
        }
        StoreError::Full { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Foreign { .. }
        | StoreError::Locked { .. }
        | StoreError::Invalid { .. }
        | StoreError::Ended => false,
    }
}

impl Scrub {
    /// A pass over the log and over a checkpoint, from their beginnings.
    #[must_use]
    pub fn new(log: LogReader, checkpoint: Option<PinnedCheckpoint>) -> Self {
        let mut todo = Vec::new();
        if let Some(PinnedCheckpoint { meta, .. }) = &checkpoint {
            for root in meta.roots.iter().filter(|root| root.page != 0) {
                todo.push(Todo::Page { page: root.page, crc: root.crc, level: root.height });
            }
            let (run, bytes) = (meta.bitmap, meta.bitmap.pages.saturating_mul(PAGE as u64));
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            todo.push(Todo::Run(Run { page: run.page, len, crc: run.crc }));
            todo.push(Todo::Meta);
        }
        let (number, done) = (Some(0), ScrubProgress::default());
        Self { log, number, segment: None, checkpoint, todo, trusting: false, done }
    }

    /// For tests of the tests: believes a page that is intact by itself.
    pub fn plant_trust(&mut self, trusting: bool) {
        self.trusting = trusting;
    }

    /// Reads on, until about `budget` bytes were read or nothing is left.
    ///
    /// # Errors
    /// `Io` when reading fails for another reason than lost bytes.
    pub fn step(&mut self, budget: u64) -> Result<ScrubProgress, StoreError> {
        while self.done.log_bytes + self.done.db_bytes < budget && !self.done.done {
            if self.number.is_some() {
                self.log_step()?;
            } else if let Some(todo) = self.todo.pop() {
                self.db_step(todo)?;
            } else {
                self.checkpoint = None;
                self.done.done = true;
            }
        }
        let progress = ScrubProgress { done: self.done.done, ..ScrubProgress::default() };
        Ok(std::mem::replace(&mut self.done, progress))
    }

    fn log_step(&mut self) -> Result<(), StoreError> {
        let Some(mut segment) = self.segment.take() else { return self.open_segment() };
        match segment.next(&mut self.done) {
            Ok(Next::More) => self.segment = Some(segment),
            Ok(Next::End) => {}
            Ok(Next::Damaged { offset, last }) => {
                self.report(&segment, offset);
                segment.next = last.map_or(segment.next, Index::next);
                self.segment = (segment.at < segment.durable).then_some(segment);
            }
            Err(error) if is_lost(&error) => {
                let at = segment.at;
                segment.skip();
                self.report(&segment, at);
                self.segment = (segment.at < segment.durable).then_some(segment);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Notes damage from `offset` to the place where the segment goes on, if entries lie
    /// there: not when they were replaced, or repaired elsewhere, or the segment is gone.
    fn report(&mut self, segment: &Segment, offset: u64) {
        let file = name_of(&segment.map);
        let runs = self.log.lock().runs_within(segment.number, offset..segment.at);
        for (first, last) in runs {
            let file = file.clone();
            self.done.findings.push(Finding::Log { file, offset, first, last });
        }
    }

    fn open_segment(&mut self) -> Result<(), StoreError> {
        let found = self.number.and_then(|number| self.log.lock().durable_from(number));
        let Some((number, map, durable)) = found else {
            self.number = None;
            return Ok(());
        };
        self.number = number.checked_add(1);
        if durable < HEADER {
            return Ok(());
        }
        let mut bytes = [0; PAGE];
        self.done.log_bytes += PAGE as u64;
        let on_disk = match map.read_disk(0, &mut bytes) {
            Ok(direct) => {
                self.done.cached |= !direct;
                SegmentHeader::decode(&bytes)
            }
            Err(error) if is_lost(&error) => None,
            Err(error) => return Err(error),
        };
        // The salt is needed to read on, and the map may still hold it.
        let mapped = map.bytes(0, PAGE).and_then(SegmentHeader::decode);
        let damaged = on_disk.is_none();
        let Some(header) = on_disk.or(mapped) else {
            self.report_header(number, &map);
            return Ok(());
        };
        let next = header.prev.index.next();
        let (window, end) = (Vec::new(), HEADER);
        let at = HEADER;
        let batch = None;
        let segment =
            Segment { number, map, durable, header, at, batch, end, next, window, window_at: 0 };
        if damaged {
            self.report_header(number, &segment.map);
        }
        self.segment = Some(segment);
        Ok(())
    }

    /// Both copies of the header are damaged: every entry of the segment depends on them.
    fn report_header(&mut self, number: u32, map: &AppendMap) {
        let runs = self.log.lock().runs_within(number, 0..u64::MAX);
        for (first, last) in runs {
            let file = name_of(map);
            self.done.findings.push(Finding::Log { file, offset: 0, first, last });
        }
    }

    fn db_step(&mut self, todo: Todo) -> Result<(), StoreError> {
        let Some(pinned) = &self.checkpoint else { return Ok(()) };
        let file = pinned.map.name().to_owned();
        // Read again before it is reported: a transfer may go wrong once.
        for _ in 0..2 {
            let whole = match todo {
                Todo::Meta => meta_is_whole(pinned, &mut self.done),
                Todo::Run(run) => run_is_whole(pinned, &run, &mut self.done),
                Todo::Page { page, crc, level } => {
                    let crc = if self.trusting { None } else { Some(crc) };
                    page_below(pinned, (page, crc, level), &mut self.todo, &mut self.done)
                }
            };
            match whole {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if is_lost(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.done.findings.push(match todo {
            Todo::Meta => Finding::Meta { file, slot: pinned.meta.slot() },
            Todo::Page { page, .. } => Finding::Db { file, page, pages: 1 },
            Todo::Run(run) => Finding::Db { file, page: run.page, pages: run.pages() },
        });
        Ok(())
    }
}

/// Is the meta page there, or replaced by that of a later checkpoint?
fn meta_is_whole(pinned: &PinnedCheckpoint, done: &mut ScrubProgress) -> Result<bool, StoreError> {
    let mut bytes = [0; PAGE];
    let at = pinned.meta.slot() * PAGE as u64;
    done.db_bytes += PAGE as u64;
    let read = pinned.map.read_disk(at, &mut bytes);
    let good = |bytes: &[u8]| Meta::decode(bytes).filter(|meta| meta.seq >= pinned.meta.seq);
    match read {
        Ok(direct) => done.cached |= !direct,
        Err(error) if is_lost(&error) => return Ok(false),
        Err(error) => return Err(error),
    }
    if good(&bytes).is_some_and(|meta| meta.seq > pinned.meta.seq || meta == pinned.meta) {
        return Ok(true);
    }
    // It is being replaced, and what was read is neither: the cache changes before the disk
    // does, so an old one in the cache, looked at now, says that nothing was on its way.
    pinned.map.read_at(at, &mut bytes)?;
    Ok(good(&bytes).is_some_and(|meta| meta.seq > pinned.meta.seq))
}

fn run_is_whole(
    pinned: &PinnedCheckpoint,
    run: &Run,
    done: &mut ScrubProgress,
) -> Result<bool, StoreError> {
    let mut bytes = vec![0; run.len.min(WINDOW)];
    let Some(start) = run.page.checked_mul(PAGE as u64) else { return Ok(false) };
    let (mut crc, mut at) = (0, 0);
    while at < run.len {
        let part = bytes.get_mut(..(run.len - at).min(WINDOW)).unwrap_or_default();
        let Some(from) = start.checked_add(at as u64) else { return Ok(false) };
        done.cached |= !pinned.map.read_disk(from, part)?;
        done.db_bytes += part.len() as u64;
        crc = crc32c::crc32c_append(crc, part);
        at += part.len();
    }
    Ok(crc == run.crc)
}

/// Is the page the one its parent means? Then what is below it is still to be read.
fn page_below(
    pinned: &PinnedCheckpoint,
    (page, crc, level): (u64, Option<u32>, u16),
    todo: &mut Vec<Todo>,
    done: &mut ScrubProgress,
) -> Result<bool, StoreError> {
    let mut bytes = [0; PAGE];
    let Some(at) = page.checked_mul(PAGE as u64) else { return Ok(false) };
    done.cached |= !pinned.map.read_disk(at, &mut bytes)?;
    done.db_bytes += PAGE as u64;
    let (view, kind) = (View::new(&bytes), if level == 1 { Kind::Leaf } else { Kind::Branch });
    let meant = crc.is_none_or(|crc| view.stored_crc() == Some(crc));
    if !meant || !view.is_intact(page, 0) || view.kind() != Some(kind) {
        return Ok(false);
    }
    if level == 0 || level > HEIGHT_MAX {
        return Ok(false);
    }
    let before = todo.len();
    for index in 0..view.count() {
        let Some(cell) = view.cell(index, kind) else {
            todo.truncate(before);
            return Ok(false);
        };
        todo.extend([key_run(&cell), value_run(&cell)].into_iter().flatten().map(Todo::Run));
        if kind == Kind::Branch {
            let level = level.saturating_sub(1);
            todo.push(Todo::Page { page: cell.child, crc: cell.crc, level });
        }
    }
    Ok(true)
}

/// What the next thing in a segment was.
enum Next {
    /// Intact.
    More,
    /// Nothing follows.
    End,
    /// Damaged, up to this entry; the place behind it is in `at`.
    Damaged { offset: u64, last: Option<Index> },
}

impl Segment {
    /// Bytes as the disk holds them; `None`: beyond the durable mark.
    fn bytes(
        &mut self,
        at: u64,
        len: usize,
        done: &mut ScrubProgress,
    ) -> Result<Option<&[u8]>, StoreError> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.durable) {
            return Ok(None);
        }
        let inside = |window: &[u8], window_at: u64| {
            let from = usize::try_from(at.checked_sub(window_at)?).ok()?;
            (from.checked_add(len)? <= window.len()).then_some(from)
        };
        if inside(&self.window, self.window_at).is_none() {
            let left = usize::try_from(self.durable - at).unwrap_or(usize::MAX);
            self.window.resize(left.min(WINDOW.max(len)), 0);
            self.window_at = at;
            let read = self.map.read_disk(at, &mut self.window);
            match read {
                Ok(direct) => done.cached |= !direct,
                Err(error) => {
                    self.window.clear();
                    return Err(error);
                }
            }
            done.log_bytes += self.window.len() as u64;
        }
        let from = inside(&self.window, self.window_at);
        Ok(from.and_then(|from| self.window.get(from..from + len)))
    }

    /// Gives the rest of the batch up; returns its last entry when that is known.
    fn skip(&mut self) -> Option<Index> {
        let batch = self.batch.take();
        self.at = if batch.is_some() { self.end } else { self.durable };
        let batch = batch?;
        Some(Index((batch.first.0).saturating_add(u64::from(batch.count)).saturating_sub(1)))
    }

    fn next(&mut self, done: &mut ScrubProgress) -> Result<Next, StoreError> {
        match self.batch {
            Some(_) if self.at < self.end => self.frame(done),
            Some(_) | None => self.batch(done),
        }
    }

    fn batch(&mut self, done: &mut ScrubProgress) -> Result<Next, StoreError> {
        self.batch = None;
        let start = self.at.next_multiple_of(ALIGN);
        let (salt, base) = (self.header.salt, self.header.base);
        let decode = |bytes: &[u8], at: u64| {
            let batch = BatchHeader::decode(bytes, salt, base.checked_add(at)?)?;
            Some(batch)
        };
        let Some(bytes) = self.bytes(start, BATCH, done)? else { return Ok(Next::End) };
        let (blank, found) = (bytes.iter().all(|byte| *byte == 0), decode(bytes, start));
        if let Some(batch) = found {
            if batch.is_seal() {
                return Ok(Next::End);
            }
            let end = (start + BATCH as u64).checked_add(u64::from(batch.bytes));
            self.at = start + BATCH as u64;
            self.end = end.unwrap_or(u64::MAX).min(self.durable);
            if batch.is_mark() {
                // What follows it is filling.
                self.at = self.end;
                return Ok(Next::More);
            }
            (self.batch, self.next) = (Some(batch), batch.first);
            return Ok(Next::More);
        }
        // Zeros after the last batch of a segment that a crash left without a seal; the map
        // knows better when they are a write that was lost.
        let mapped = self.map.bytes(start, BATCH).and_then(|bytes| decode(bytes, start));
        if blank && mapped.is_none() {
            return Ok(Next::End);
        }
        let mut at = start + ALIGN;
        while let Some(bytes) = self.bytes(at, BATCH, done)? {
            if let Some(later) = decode(bytes, at) {
                self.at = at;
                let last = (!later.is_seal()).then(|| later.first.prev());
                return Ok(Next::Damaged { offset: start, last });
            }
            at += ALIGN;
        }
        self.at = self.durable;
        Ok(Next::Damaged { offset: start, last: None })
    }

    fn frame(&mut self, done: &mut ScrubProgress) -> Result<Next, StoreError> {
        let (start, wanted) = (self.at, self.next);
        let bytes = self.bytes(start, frame::HEADER, done)?;
        let head = bytes.and_then(|bytes| frame::head(bytes).ok());
        let inside = |size: usize| start.saturating_add(size as u64) <= self.end;
        // A repair holds single entries.
        let any = self.batch.is_some_and(|batch| batch.is_repair());
        let follows = |index: Index| index == wanted || (any && index > wanted);
        let Some(Head { id, len, pcrc, .. }) =
            head.filter(|head| follows(head.id.index) && inside(head.size))
        else {
            // Nothing says where the next frame begins.
            return Ok(Next::Damaged { offset: start, last: self.skip() });
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (mut crc, mut padded) = (0, true);
        let mut at = frame::HEADER;
        while at < frame::size_of(len) {
            let from = start + at as u64;
            let payload = (frame::HEADER + len).saturating_sub(at);
            let left = if payload == 0 { frame::size_of(len) - at } else { payload };
            let Some(part) = self.bytes(from, left.min(WINDOW), done)? else { break };
            if payload == 0 {
                padded = part.iter().all(|byte| *byte == 0);
            } else {
                crc = crc32c::crc32c_append(crc, part);
            }
            at += part.len();
        }
        self.at = start + frame::size_of(len) as u64;
        if crc == pcrc && padded && at == frame::size_of(len) {
            self.next = id.index.next();
            return Ok(Next::More);
        }
        Ok(Next::Damaged { offset: start, last: Some(id.index) })
    }
}
