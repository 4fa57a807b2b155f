//! A checkpoint as a stream of chunks, and a database made from such a stream.
//!
//! The pages of a checkpoint do not change while it is pinned, so chunk `n` is the same
//! whenever it is asked for: a sender that lost its connection goes on where it stopped.
//!
//! A chunk, little-endian:
//!
//! | bytes  | field  | meaning                                         |
//! |--------|--------|-------------------------------------------------|
//! | 0..4   | crc    | CRC-32C of everything after it                  |
//! | 4..8   | magic  | `mmcs`                                          |
//! | 8..16  | seq    | the checkpoint                                  |
//! | 16..24 | n      | its number, from 0                              |
//! | 24..32 | chunks | how many there are                              |
//! | 32..36 | ranges | how many ranges of pages follow                 |
//! | 36..   |        | per range: first page u64, pages u32; the pages |
//!
//! Chunk 0 holds the meta page as its only range; the others hold the pages in use, in
//! their order. The receiver writes pages where they were, verifies the whole tree from
//! its roots, and writes the meta page last, with its own identity.
//!
//! Left out: compression, and leaving out what the receiver has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Identity;
use super::check;
use super::db::{Db, DbState, Snapshot, discard};
use super::disk::{Disk, FileKind, parent};
use super::error::StoreError;
use super::map::{PAGE, PageMap};
use super::meta::{Meta, SLOTS};
use super::pace::{Pace, Paced, Unpaced};
use super::page::{u32_at, u64_at};
use super::space::Bitmap;

const MAGIC: u32 = u32::from_le_bytes(*b"mmcs");
const HEAD: usize = 36;
const RANGE: usize = 12;
/// Pages of a chunk: 256 KiB.
const CHUNK_PAGES: usize = 64;
/// No receiver takes a longer chunk.
pub const CHUNK_MAX: usize = HEAD + CHUNK_PAGES * (RANGE + PAGE);

/// The last durable checkpoint. Its pages are not reused while this lives.
#[derive(Debug)]
pub struct PinnedCheckpoint {
    pub(super) map: Arc<PageMap>,
    pub(super) meta: Meta,
    /// The allocator looks whether anybody else still holds this.
    bitmap: Arc<Bitmap>,
    /// First page in use of each chunk but chunk 0.
    starts: Vec<u64>,
}

impl Db {
    /// Pins the last durable checkpoint; `None`: nothing was applied yet.
    ///
    /// # Errors
    /// None today; the signature leaves room for it.
    pub fn pin(&mut self) -> Result<Option<PinnedCheckpoint>, StoreError> {
        let meta = self.durable.meta.clone();
        if meta.state == DbState::default() {
            return Ok(None);
        }
        let bitmap = Arc::clone(&self.durable.bitmap);
        let starts = streamed(&bitmap, 0).step_by(CHUNK_PAGES).collect();
        Ok(Some(PinnedCheckpoint { map: Arc::clone(&self.map), meta, bitmap, starts }))
    }
}

/// Pages in use from `from` on, without the meta pages.
fn streamed(bitmap: &Bitmap, from: u64) -> impl Iterator<Item = u64> {
    bitmap.iter_from(from).filter(|page| !SLOTS.contains(page))
}

impl PinnedCheckpoint {
    /// What the state machine knew at the checkpoint.
    #[must_use]
    pub fn state(&self) -> &DbState {
        &self.meta.state
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.starts.len() as u64 + 1
    }

    /// Chunk `n`; `None` after the last.
    ///
    /// # Errors
    /// `Io`.
    pub fn chunk(&self, n: u64) -> Result<Option<Bytes>, StoreError> {
        if n == 0 {
            let meta = self.meta.encode();
            return Ok(Some(self.envelope(0, &[(self.meta.slot(), 1)], &meta)));
        }
        let start = usize::try_from(n - 1).ok().and_then(|n| self.starts.get(n));
        let Some(&start) = start else { return Ok(None) };
        let mut ranges: Vec<(u64, u32)> = Vec::new();
        for page in streamed(&self.bitmap, start).take(CHUNK_PAGES) {
            match ranges.last_mut() {
                Some((first, pages)) if *first + u64::from(*pages) == page => *pages += 1,
                Some(_) | None => ranges.push((page, 1)),
            }
        }
        let mut payload = Vec::with_capacity(CHUNK_PAGES * PAGE);
        for &(first, pages) in &ranges {
            let at = payload.len();
            payload.resize(at + pages as usize * PAGE, 0);
            self.map.read_at(first * PAGE as u64, &mut payload[at..])?;
        }
        Ok(Some(self.envelope(n, &ranges, &payload)))
    }

    fn envelope(&self, n: u64, ranges: &[(u64, u32)], payload: &[u8]) -> Bytes {
        let count = u32::try_from(ranges.len()).expect("at most one range a page");
        let mut chunk = Vec::with_capacity(HEAD + ranges.len() * RANGE + payload.len());
        chunk.extend([0; 4]);
        chunk.extend(MAGIC.to_le_bytes());
        chunk.extend(self.meta.seq.to_le_bytes());
        chunk.extend(n.to_le_bytes());
        chunk.extend(self.chunks().to_le_bytes());
        chunk.extend(count.to_le_bytes());
        for (first, pages) in ranges {
            chunk.extend(first.to_le_bytes());
            chunk.extend(pages.to_le_bytes());
        }
        chunk.extend_from_slice(payload);
        let crc = crc32c::crc32c(&chunk[4..]);
        chunk[..4].copy_from_slice(&crc.to_le_bytes());
        Bytes::from(chunk)
    }
}

/// A chunk, decoded.
struct Chunk<'a> {
    seq: u64,
    n: u64,
    chunks: u64,
    ranges: Vec<(u64, u64)>,
    payload: &'a [u8],
}

/// `None`: damaged, whatever the bytes are.
fn decode(bytes: &[u8]) -> Option<Chunk<'_>> {
    if bytes.len() > CHUNK_MAX || u32_at(bytes, 0)? != crc32c::crc32c(bytes.get(4..)?) {
        return None;
    }
    let count = usize::try_from(u32_at(bytes, 32)?).ok()?;
    if u32_at(bytes, 4)? != MAGIC || count > CHUNK_PAGES {
        return None;
    }
    let payload = bytes.get(HEAD + count * RANGE..)?;
    let mut ranges = Vec::with_capacity(count);
    let mut total = 0_u64;
    for index in 0..count {
        let at = HEAD + index * RANGE;
        let (first, pages) = (u64_at(bytes, at)?, u64::from(u32_at(bytes, at + 8)?));
        first.checked_add(pages)?;
        total += pages;
        ranges.push((first, pages));
    }
    (payload.len() as u64 == total.checked_mul(PAGE as u64)?).then_some(())?;
    let (seq, n, chunks) = (u64_at(bytes, 8)?, u64_at(bytes, 16)?, u64_at(bytes, 24)?);
    Some(Chunk { seq, n, chunks, ranges, payload })
}

/// Makes a database file from chunks. Dropped before [`Receiver::finish`] it leaves a file
/// without a meta page, which nobody opens and the next receiver removes.
#[derive(Debug)]
pub struct Receiver {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    out: Paced<Arc<dyn Pace>>,
    identity: Identity,
    /// Whose chunks are taken.
    cluster: u128,
    meta: Option<Meta>,
    next: u64,
    chunks: u64,
}

impl Receiver {
    /// Starts a new file at `path`, replacing what an earlier attempt left there.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(
        disk: Arc<dyn Disk>,
        path: &Path,
        identity: Identity,
        map_max: u64,
    ) -> Result<Self, StoreError> {
        discard(&*disk, path)?;
        let region = disk.create(path, FileKind::Db, map_max)?;
        let pace: Arc<dyn Pace> = Arc::new(Unpaced);
        let out = Paced::new(PageMap::open(region, std::iter::empty()), pace);
        let path = path.to_owned();
        let cluster = identity.cluster;
        Ok(Self { path, disk, out, identity, cluster, meta: None, next: 0, chunks: 0 })
    }

    /// Writes at this pace, for others use the disk too.
    #[must_use]
    pub fn paced(self, pace: Arc<dyn Pace>) -> Self {
        Self { out: self.out.at(pace), ..self }
    }

    /// Takes the chunks of this cluster; the file is of the one given before all the same.
    #[must_use]
    pub fn from_cluster(self, cluster: u128) -> Self {
        Self { cluster, ..self }
    }

    /// The number of the chunk that is expected next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    fn wrong(&self, why: &str) -> StoreError {
        StoreError::Corrupt {
            file: self.path.display().to_string(),
            what: "chunk",
            offset: self.next,
            why: why.to_owned(),
        }
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged or not the next one, then nothing was written of it;
    /// `Full` when the database does not fit the address space; `Io`.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let chunk = decode(chunk).ok_or_else(|| self.wrong("it is damaged"))?;
        if chunk.n != self.next {
            return Err(self.wrong("it is not the next one"));
        }
        let Some(meta) = &self.meta else { return self.start(&chunk) };
        if chunk.seq != meta.seq || chunk.chunks != self.chunks {
            return Err(self.wrong("it is of another checkpoint"));
        }
        let reserved = |page: u64| page == SLOTS[0] || page == SLOTS[1];
        for &(first, pages) in &chunk.ranges {
            if first + pages > meta.pages || (first..first + pages).any(reserved) {
                return Err(self.wrong("it names a page that cannot be"));
            }
        }
        let mut rest = chunk.payload;
        for &(first, pages) in &chunk.ranges {
            let len = usize::try_from(pages).expect("checked in decode") * PAGE;
            let (bytes, left) = rest.split_at(len);
            rest = left;
            self.out.extend(first, bytes)?;
        }
        self.next += 1;
        Ok(())
    }

    fn start(&mut self, chunk: &Chunk<'_>) -> Result<(), StoreError> {
        let meta = Meta::decode(chunk.payload).filter(|meta| meta.seq == chunk.seq);
        let meta = meta.ok_or_else(|| match Meta::unknown(chunk.payload) {
            Some(found) => self.wrong(&format!("it is of {found}")),
            None => self.wrong("it holds no meta page"),
        })?;
        if meta.identity.cluster != self.cluster {
            let of = |cluster: u128| format!("cluster {cluster:032x}");
            return Err(StoreError::Foreign {
                file: self.path.display().to_string(),
                found: of(meta.identity.cluster),
                wanted: of(self.cluster),
            });
        }
        let capacity = self.out.writer.map().capacity();
        if meta.pages > capacity {
            return Err(StoreError::Full { limit: capacity * PAGE as u64 });
        }
        if meta.pages <= SLOTS[1] || chunk.chunks == 0 || chunk.chunks > meta.pages {
            return Err(self.wrong("it holds an impossible meta page"));
        }
        (self.chunks, self.next) = (chunk.chunks, 1);
        self.meta = Some(Meta { identity: self.identity, ..meta });
        Ok(())
    }

    /// Verifies every page from the roots, makes the file durable and closes it.
    ///
    /// # Errors
    /// `Corrupt` when chunks are missing or the database in them is damaged; `Io`.
    pub fn finish(mut self) -> Result<DbState, StoreError> {
        let Some(meta) = self.meta.take().filter(|_| self.next == self.chunks) else {
            return Err(self.wrong("chunks are missing"));
        };
        self.out.extend(meta.pages, &[])?;
        self.out.sync_all()?;
        let Self { path, disk, out, .. } = self;
        drop(out);
        // Opened anew: what was written is readable only after its writer is gone.
        verify(&*disk, &path, &meta)?;
        let region = disk.open_proven(&path, FileKind::Db, meta.pages * PAGE as u64)?;
        let vanished = || super::tree::corrupt(&path.display().to_string(), 0, "vanished");
        let mut writer = PageMap::open(region.ok_or_else(vanished)?, std::iter::empty());
        writer.write(meta.slot(), &meta.encode())?;
        writer.sync(meta.slot() * PAGE as u64, PAGE as u64)?;
        disk.sync_dir(&parent(&path))?;
        Ok(meta.state)
    }
}

/// Walks the database in `path` as if `meta` were its meta page.
fn verify(disk: &dyn Disk, path: &Path, meta: &Meta) -> Result<(), StoreError> {
    let name = path.display().to_string();
    let wrong = |page, why| super::tree::corrupt(&name, page, why);
    // A sync of it succeeded just now. To read all of it from the disk once more would keep that
    // from others, clients' writes among them; what it holds is looked at by the scrubber.
    let region = disk.open_proven(path, FileKind::Db, meta.pages * PAGE as u64)?;
    let region = region.ok_or_else(|| wrong(0, "vanished"))?;
    let run = meta.bitmap;
    let end = run.page.checked_add(run.pages).filter(|end| *end <= meta.pages);
    let end = end.ok_or_else(|| wrong(run.page, "the bitmap is out of bounds"))?;
    let mut bytes = vec![0; usize::try_from(run.pages).expect("fits memory") * PAGE];
    region.read_at(run.page * PAGE as u64, &mut bytes)?;
    let bitmap = Bitmap::from_bytes(&bytes);
    let outside = bitmap.iter().any(|page| page >= meta.pages);
    if crc32c::crc32c(&bytes) != run.crc || outside {
        return Err(wrong(run.page, "the bitmap is damaged"));
    }
    let pages = bitmap.iter();
    let pages = pages.filter(|page| !SLOTS.contains(page) && !(run.page..end).contains(page));
    let writer = PageMap::open(region, pages);
    let snapshot = Snapshot::at(writer.map(), meta);
    check::walk(&snapshot, &bitmap, run).map(drop)
}
