//! Where mapped memory becomes slices: the only `unsafe` of the crate.
//!
//! A slice of a shared map is sound while nobody writes the bytes under it. The types here
//! make that a property of their own, whatever their callers do:
//!
//! * [`AppendMap`], for log segments: bytes below the `written` mark are readable and never
//!   written again, bytes above it are written and never readable.
//! * `PageMap`, for the database: a page is readable or writable, and becomes writable
//!   again only after every reader that could have seen it is gone.
//!
//! Both take the [`Region`] by value, so that no other handle of the file exists in this
//! process; other processes are kept out by the lock on the data directory.

#![expect(unsafe_code, reason = "the one place where mapped memory becomes a slice")]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::disk::Region;
use super::error::StoreError;

/// A reserved range of addresses over a file, or over nothing for the simulated disk. Its
/// bytes are reached through the types of this module only.
#[derive(Debug)]
pub struct Memory {
    raw: MmapRaw,
    anonymous: bool,
}

impl Memory {
    /// Maps `file` read-only with room for `reserve` bytes; what lies past its end becomes
    /// readable when the file grows.
    pub(super) fn of_file(file: &File, reserve: u64) -> io::Result<Self> {
        let len = usize::try_from(reserve).map_err(io::Error::other)?;
        let raw = MmapOptions::new().len(len).map_raw_read_only(file)?;
        raw.advise(Advice::DontDump)?;
        Ok(Self { raw, anonymous: false })
    }

    /// Zeroed memory that no file backs.
    pub(super) fn anonymous(reserve: u64) -> io::Result<Self> {
        let len = usize::try_from(reserve).map_err(io::Error::other)?;
        let raw = MmapRaw::from(MmapOptions::new().len(len).no_reserve_swap().map_anon()?);
        Ok(Self { raw, anonymous: true })
    }

    /// Writes into anonymous memory: what `pwrite` is for a file, with the same duty, to
    /// leave alone the bytes that [`AppendMap`] and `PageMap` have lent out. They own
    /// the region, and with it the right to write.
    ///
    /// # Panics
    /// When the range is not inside, or the memory is a file's.
    pub(super) fn store(&self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("offset fits memory");
        assert!(self.anonymous, "a file is written by pwrite");
        assert!(
            at.checked_add(bytes.len()).is_some_and(|end| end <= self.raw.len()),
            "out of reserve"
        );
        let to = self.raw.as_mut_ptr().wrapping_add(at);
        // SAFETY:
        // - In bounds of one allocation: checked above.
        // - Writable: anonymous maps are made read-write, checked above.
        // - Not borrowed: the owner of the region (AppendMap, PageMap) writes only where it
        //   lends no slice; see their SAFETY arguments.
        // - `bytes` cannot overlap: it is a live shared borrow, so by the line above not
        //   of a range that is being written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// One `msync(MS_SYNC)` of the pages that hold this range.
    pub(super) fn flush(&self, offset: u64, len: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.raw.flush_range(offset, len)
    }

    /// Bytes of address space.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.raw.len()
    }
}

/// A file that only grows at its end, read while it grows. Share it in an `Arc`; write it
/// through the one [`Appender`].
#[derive(Debug)]
pub struct AppendMap {
    region: Box<dyn Region>,
    memory: Arc<Memory>,
    /// Bytes below this mark have their final value. It only ever grows.
    written: AtomicUsize,
}

/// The single writer of an [`AppendMap`]; it cannot be cloned.
#[derive(Debug)]
pub struct Appender {
    map: Arc<AppendMap>,
}

impl AppendMap {
    /// The whole file, readable; nothing can be written to it.
    #[must_use]
    pub fn sealed(region: Box<dyn Region>) -> Self {
        let memory = Arc::clone(region.memory());
        let len = usize::try_from(region.len()).expect("length fits memory");
        let written = AtomicUsize::new(len.min(memory.reserved()));
        Self { region, memory, written }
    }

    /// The file with its bytes below `written` readable and those above writable. What a
    /// crash left above the mark can be overwritten; `self` is taken by value, so no slice
    /// of those bytes is alive.
    #[must_use]
    pub fn into_appender(mut self, written: u64) -> Appender {
        *self.written.get_mut() = usize::try_from(written).expect("offset fits memory");
        Appender { map: Arc::new(self) }
    }

    /// Borrows `len` finished bytes at `offset`; `None`: not all of them are written.
    #[must_use]
    pub fn bytes(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let at = usize::try_from(offset).ok()?;
        let end = at.checked_add(len)?;
        if end > self.written.load(Ordering::Acquire) {
            return None;
        }
        let start = self.memory.raw.as_ptr().wrapping_add(at);
        // SAFETY:
        // - In bounds and backed: `end <= written`, which never exceeds the file's length
        //   (`sealed` takes it from the file, `append` raises it after the write) nor the
        //   reserve; `self.memory` lives as long as the returned borrow.
        // - Not written meanwhile: the one `Appender` writes at or above `written` only,
        //   and `written` never falls while a borrow exists (`into_appender` takes `self`).
        // - Not truncated: `set_len` is never called on a region inside an `AppendMap`, and
        //   other processes are kept out by the lock on the directory.
        // - `u8` has alignment 1 and no invalid bit pattern.
        Some(unsafe { std::slice::from_raw_parts(start, len) })
    }

    /// Bytes that can be read.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire) as u64
    }

    /// Makes a range durable: one `msync`.
    ///
    /// # Errors
    /// `Io`; then the process must end.
    pub fn sync(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.region.sync(offset, len)
    }

    /// File name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        self.region.name()
    }

    /// Length of the file, written or not.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.region.len()
    }

    /// Is the file empty?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }
}

impl Appender {
    /// Adds `bytes` at the mark and makes them readable.
    ///
    /// # Errors
    /// `Io`; then the process must end.
    ///
    /// # Panics
    /// When they do not fit the reserved range: the caller rolls segments before.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let at = self.map.written.load(Ordering::Relaxed); // no other writer
        let end = at.checked_add(bytes.len()).expect("no overflow");
        assert!(end <= self.map.memory.reserved(), "the caller rolls segments");
        self.map.region.write_at(at as u64, bytes)?;
        self.map.written.store(end, Ordering::Release);
        Ok(())
    }

    /// Writes above the mark without moving it: zeros over what a crash left behind.
    ///
    /// # Errors
    /// `Io`; then the process must end.
    ///
    /// # Panics
    /// Below the mark.
    pub fn scrub(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        assert!(offset >= self.map.written(), "finished bytes never change");
        self.map.region.write_at(offset, bytes)
    }

    /// The map, to share with readers.
    #[must_use]
    pub fn map(&self) -> &Arc<AppendMap> {
        &self.map
    }
}
