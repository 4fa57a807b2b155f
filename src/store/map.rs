//! Where mapped memory becomes slices: the only `unsafe` of the crate.
//!
//! A slice of a shared map is sound while nobody writes the bytes under it. The types here
//! make that a property of their own, whatever their callers do:
//!
//! * [`AppendMap`], for log segments: bytes below the `written` mark are readable and never
//!   written again, bytes above it are written and never readable.
//! * [`PageMap`], for the database: a page is readable or writable, and becomes writable
//!   again only after every reader that could have seen it is gone.
//!
//! Both take the [`Region`] by value, so that no other handle of the file exists in this
//! process; other processes are kept out by the lock on the data directory.

#![expect(unsafe_code, reason = "the one place where mapped memory becomes a slice")]

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::disk::{Region, grow_with_zeros, or_as_long_as};
use super::error::StoreError;
use super::heap::{HeapPage, HeapPages};

/// Reading a mapped page that the disk does not give, or that somebody cut off the file, is a
/// signal and no error: SIGBUS. A handler names the file and the byte and ends the process,
/// as any other failure of the disk does.
///
/// It may run at any moment on any thread, so it takes no lock and no memory: the maps are
/// noted in a table of atomics, their names beside them.
#[cfg(not(miri))]
mod faults {
    use std::ptr;
    use std::sync::Once;
    use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

    /// Maps that can be noted at a time; a fault in one more is not named.
    const SLOTS: usize = 2048;
    /// Bytes of a name, from its end.
    const NAME: usize = 120;
    /// Exit code of a failed disk.
    const EXIT: i32 = 74;

    struct Slot {
        /// First address; 0: free, 1: being filled in.
        start: AtomicUsize,
        len: AtomicUsize,
        name: [AtomicU8; NAME],
    }

    static MAPS: [Slot; SLOTS] = [const {
        Slot {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            name: [const { AtomicU8::new(0) }; NAME],
        }
    }; SLOTS];

    /// A noted map; dropped, it is forgotten.
    #[derive(Debug)]
    pub(super) struct Noted(Option<usize>);

    /// Notes that the addresses from `start` on show the file `name`.
    pub(super) fn note(start: usize, len: usize, name: &str) -> Noted {
        let free = |slot: &Slot| {
            slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let Some(place) = MAPS.iter().position(free) else { return Noted(None) };
        let slot = &MAPS[place];
        // Made under another name, and known by this one when it is read.
        let tail = if name.ends_with(".tmp") { &b".seg"[..] } else { &[] };
        let name = name.strip_suffix(".tmp").unwrap_or(name).as_bytes();
        let name = &name[name.len().saturating_sub(NAME - tail.len())..];
        let bytes = name.iter().chain(tail).copied().chain(std::iter::repeat(0));
        for (to, byte) in slot.name.iter().zip(bytes) {
            to.store(byte, Ordering::Relaxed);
        }
        slot.len.store(len, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Noted(Some(place))
    }

    impl Drop for Noted {
        fn drop(&mut self) {
            if let Some(place) = self.0 {
                MAPS[place].start.store(0, Ordering::Release);
            }
        }
    }

    /// A line that is put together without memory.
    pub(super) struct Line {
        bytes: [u8; 320],
        len: usize,
    }

    impl Line {
        fn push(&mut self, bytes: impl IntoIterator<Item = u8>) {
            for byte in bytes {
                if let Some(to) = self.bytes.get_mut(self.len) {
                    *to = byte;
                    self.len += 1;
                }
            }
        }

        pub(super) fn text(&self) -> &[u8] {
            self.bytes.get(..self.len).unwrap_or_default()
        }

        fn number(&mut self, number: usize) {
            let mut power = 1;
            while number / power >= 10 {
                power *= 10;
            }
            while power > 0 {
                self.push([b'0' + u8::try_from(number / power % 10).unwrap_or(0)]);
                power /= 10;
            }
        }
    }

    /// What is said of a fault at this address; `None`: it is in none of our maps.
    pub(super) fn describe(address: usize) -> Option<Line> {
        let holds = |slot: &&Slot| {
            let start = slot.start.load(Ordering::Acquire);
            start > 1 && address >= start && address - start < slot.len.load(Ordering::Relaxed)
        };
        let slot = MAPS.iter().find(holds)?;
        let mut line = Line { bytes: [0; 320], len: 0 };
        line.push(*b"mmapd: fatal: reading ");
        let name = slot.name.iter().map(|byte| byte.load(Ordering::Relaxed));
        line.push(name.take_while(|byte| *byte != 0));
        line.push(*b" at byte ");
        line.number(address - slot.start.load(Ordering::Relaxed));
        line.push(*b" failed (SIGBUS): the disk does not give the page, or the file was cut; ");
        line.push(*b"start again to recover\n");
        Some(line)
    }

    extern "C" fn on_fault(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        _context: *mut libc::c_void,
    ) {
        // SAFETY: with SA_SIGINFO the kernel passes a pointer to a filled-in structure, which
        // stays as it is until the handler returns.
        let info = unsafe { &*info };
        // SAFETY: for SIGBUS the address is the valid member of the union.
        let address = unsafe { info.si_addr() };
        let Some(line) = describe(address.addr()) else {
            // Not ours: it happens again when we return, and then as if we were not here.
            // SAFETY: async-signal-safe by POSIX; SIG_DFL is a valid disposition.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            return;
        };
        let text = line.text();
        // SAFETY: async-signal-safe by POSIX; the pointer and length are of a live slice.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        // SAFETY: async-signal-safe by POSIX; it does not return.
        unsafe { libc::_exit(EXIT) }
    }

    /// From now on a fault in a map ends the process with a line that names it.
    pub(super) fn watch() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: all of its members are integers, pointers or arrays of them, and an
            // optional function, for which zeros are valid values.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: `action` is whole and lives through the call; the handler has the
            // signature that SA_SIGINFO asks for and does only what is async-signal-safe.
            let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
            assert!(set == 0, "SIGBUS can be handled");
        });
    }
}

/// From now on a failed read of a map ends the process with exit code 74 and one line that
/// names the file and the byte, instead of a bare SIGBUS.
pub fn name_faults() {
    #[cfg(not(miri))]
    faults::watch();
}

/// Addresses from the operating system.
#[cfg(not(miri))]
mod raw {
    use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

    use super::super::ending::let_go;
    use super::{File, faults, io};

    #[derive(Debug)]
    pub(super) struct Raw {
        /// Forgotten before the addresses are given back.
        _noted: Option<faults::Noted>,
        map: MmapRaw,
        /// What is mapped, if it is a file: tells how much of the map can have pages.
        file: Option<File>,
    }

    impl Drop for Raw {
        fn drop(&mut self) {
            let Some(file) = &self.file else { return };
            // SAFETY: nothing is lost by it, since the map is shared and read-only: what is in the
            // file, or on its way to it, stays in the page cache. Nobody sees the addresses
            // meanwhile, whose owner is being dropped.
            let unmap = |at, len| unsafe {
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, at, len)
            };
            drop(let_go(file, self.map.len(), unmap));
        }
    }

    impl Raw {
        pub(super) fn of_file(file: &File, len: usize, name: &str) -> io::Result<Self> {
            let map = MmapOptions::new().len(len).map_raw_read_only(file)?;
            map.advise(Advice::DontDump)?;
            let noted = faults::note(map.as_ptr().addr(), len, name);
            Ok(Self { map, _noted: Some(noted), file: Some(file.try_clone()?) })
        }

        pub(super) fn anonymous(len: usize) -> io::Result<Self> {
            let map = MmapOptions::new().len(len).no_reserve_swap().map_anon()?;
            Ok(Self { map: MmapRaw::from(map), _noted: None, file: None })
        }

        pub(super) fn flush(&self, offset: usize, len: usize) -> io::Result<()> {
            self.map.flush_range(offset, len)
        }

        pub(super) fn as_mut_ptr(&self) -> *mut u8 {
            self.map.as_mut_ptr()
        }

        pub(super) fn len(&self) -> usize {
            self.map.len()
        }
    }
}

/// The heap instead, for Miri, which maps no files and sees each wrong access to this: to a
/// byte that is lent out, between threads, or out of bounds.
#[cfg(miri)]
mod raw {
    use std::sync::atomic::{AtomicPtr, Ordering};

    use super::{File, PAGE, io};

    #[repr(align(4096))]
    #[derive(Clone, Debug)]
    struct Page([u8; PAGE]);

    /// The vector frees the pages; they are reached through the pointer only, taken once, as
    /// those of a map are.
    #[derive(Debug)]
    pub(super) struct Raw {
        start: AtomicPtr<u8>,
        len: usize,
        _pages: Vec<Page>,
    }

    impl Raw {
        pub(super) fn of_file(_: &File, _: usize, _: &str) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn anonymous(len: usize) -> io::Result<Self> {
            let mut pages = vec![Page([0; PAGE]); len.div_ceil(PAGE)];
            Ok(Self { start: AtomicPtr::new(pages.as_mut_ptr().cast()), len, _pages: pages })
        }

        pub(super) fn flush(&self, _: usize, _: usize) -> io::Result<()> {
            Ok(())
        }

        pub(super) fn as_mut_ptr(&self) -> *mut u8 {
            self.start.load(Ordering::Relaxed)
        }

        pub(super) fn len(&self) -> usize {
            self.len
        }
    }
}

use raw::Raw;

/// A reserved range of addresses over a file, or over nothing for the simulated disk. Its
/// bytes are reached through the types of this module only.
#[derive(Debug)]
pub struct Memory {
    raw: Raw,
    anonymous: bool,
}

impl Memory {
    /// Maps `file` read-only with room for `reserve` bytes; what lies past its end becomes
    /// readable when the file grows. `name` is said when reading fails.
    pub(super) fn of_file(file: &File, reserve: u64, name: &str) -> io::Result<Self> {
        let len = usize::try_from(reserve).map_err(io::Error::other)?;
        Ok(Self { raw: Raw::of_file(file, len, name)?, anonymous: false })
    }

    /// Zeroed memory that no file backs.
    pub(super) fn anonymous(reserve: u64) -> io::Result<Self> {
        let len = usize::try_from(reserve).map_err(io::Error::other)?;
        Ok(Self { raw: Raw::anonymous(len)?, anonymous: true })
    }

    /// Writes into anonymous memory: what `pwrite` is for a file, with the same duty, to
    /// leave alone the bytes that [`AppendMap`] and [`PageMap`] have lent out. They own
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
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// One `msync(MS_SYNC)` of the pages that hold this range.
    pub(super) fn flush(&self, offset: u64, len: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.raw.flush(offset, len)
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
        let start = self.memory.raw.as_mut_ptr().wrapping_add(at);
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

    /// Copies bytes as the disk holds them; see [`Region::read_disk`].
    ///
    /// # Errors
    /// `Io`.
    pub fn read_disk(&self, offset: u64, into: &mut [u8]) -> Result<bool, StoreError> {
        self.region.read_disk(offset, into)
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

/// Bytes of a page: the unit of the database's reads, writes and allocation.
pub const PAGE: usize = 4096;
/// Slots in one lazily made piece of the table.
const PIECE: usize = 4096;

type Piece = Box<[AtomicPtr<HeapPage>]>;

/// What a slot says when it does not point to a [`HeapPage`]. A real pointer is aligned for a
/// `HeapPage`, so it is never one of these small odd numbers or null.
const FREE: *mut HeapPage = ptr::null_mut();
/// In the file; its bytes were not compared with their checksum yet.
const FILE: *mut HeapPage = ptr::without_provenance_mut(1);
/// In the file, and known to be intact.
const VERIFIED: *mut HeapPage = ptr::without_provenance_mut(3);
/// Unreadable; somebody may still hold a slice of the file page.
const LIMBO_FILE: *mut HeapPage = ptr::without_provenance_mut(5);
/// Unreadable; somebody may still hold a slice of the heap page that was here.
const LIMBO_HEAP: *mut HeapPage = ptr::without_provenance_mut(7);
const _: () = assert!(align_of::<HeapPage>() > 7, "marks are not addresses");

/// Pages of a database file, some of them still on the heap, read without locks.
///
/// A table says of each page where it is. Reading needs a [`Pin`]; the pages it lends stay
/// as they are until the pin is dropped. Whoever takes a page away from readers
/// ([`PageMap::hide`], [`FileWriter::settle`]) changes the slot first and then notes the
/// newest pin: pins older than that may hold slices of the page, later ones cannot find it
/// any more. Only when the older ones are gone does [`PageMap::reclaim`] free the heap
/// memory and allow the file page to be written.
///
/// The file is cut ([`FileWriter::shrink`]) only behind the last page that is in it or that
/// a pin may still hold a slice of: no slice ever points behind the end of the file.
#[derive(Debug)]
pub struct PageMap {
    region: Box<dyn Region>,
    memory: Arc<Memory>,
    pieces: Box<[OnceLock<Piece>]>,
    /// The name that the file was given later.
    renamed: OnceLock<String>,
    pins: Mutex<Pins>,
    limbo: Mutex<VecDeque<Limbo>>,
    /// Some reader found a page damaged.
    suspect: AtomicBool,
}

#[derive(Debug, Default)]
struct Pins {
    newest: u64,
    alive: BTreeSet<u64>,
}

#[derive(Debug)]
struct Limbo {
    /// Pins up to this one may still hold slices.
    newest: u64,
    page: u64,
    pages: u64,
    /// Null when the page was in the file.
    heap: AtomicPtr<HeapPage>,
    /// Does the page become free, or is it in the file now?
    frees: bool,
}

/// Keeps what it can see alive and unchanged. Taken once per snapshot, not per read.
#[derive(Debug)]
pub struct Pin {
    map: Arc<PageMap>,
    id: u64,
}

/// The only one who writes the file of a [`PageMap`]; it cannot be cloned.
#[derive(Debug)]
pub struct FileWriter {
    map: Arc<PageMap>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data is whole between statements, whatever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PageMap {
    /// The map of `region`, with those pages readable that `in_file` names.
    ///
    /// # Panics
    /// When one of them lies beyond the end of the file.
    #[must_use]
    pub fn open(region: Box<dyn Region>, in_file: impl Iterator<Item = u64>) -> FileWriter {
        let memory = Arc::clone(region.memory());
        let pieces = (memory.reserved() / PAGE).div_ceil(PIECE);
        let map = Self {
            region,
            memory,
            pieces: (0..pieces).map(|_| OnceLock::new()).collect(),
            renamed: OnceLock::new(),
            pins: Mutex::default(),
            limbo: Mutex::default(),
            suspect: AtomicBool::new(false),
        };
        for page in in_file {
            assert!(map.backed(page, 1), "a page beyond the end of the file");
            map.slot_for_writing(page).store(FILE, Ordering::Release);
        }
        FileWriter { map: Arc::new(map) }
    }

    /// A reader found a page damaged: whoever owns the file should know.
    pub fn suspect(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    /// What was verified once is verified again at the next look.
    pub fn set_doubtful(&self, page: u64) {
        if let Some(slot) = self.slot(page) {
            let _ = slot.compare_exchange(VERIFIED, FILE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Did any reader find a page damaged?
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// Pages that fit the reserved address space.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        (self.memory.reserved() / PAGE) as u64
    }

    /// Are these pages inside the file and the map?
    fn backed(&self, page: u64, pages: u64) -> bool {
        let end = page.checked_add(pages).and_then(|end| end.checked_mul(PAGE as u64));
        end.is_some_and(|end| end <= self.region.len() && end <= self.memory.reserved() as u64)
    }

    #[inline]
    fn slot(&self, page: u64) -> Option<&AtomicPtr<HeapPage>> {
        let page = usize::try_from(page).ok()?;
        self.pieces.get(page / PIECE)?.get()?.get(page % PIECE)
    }

    fn slot_for_writing(&self, page: u64) -> &AtomicPtr<HeapPage> {
        let page = usize::try_from(page).expect("page fits memory");
        assert!(page / PIECE < self.pieces.len(), "a page beyond the reserve");
        let piece = self.pieces[page / PIECE]
            .get_or_init(|| (0..PIECE).map(|_| AtomicPtr::new(FREE)).collect());
        &piece[page % PIECE]
    }

    /// Keeps everything that is readable from now on, until the pin is dropped.
    #[must_use]
    pub fn pin(self: &Arc<Self>) -> Pin {
        let mut pins = lock(&self.pins);
        pins.newest += 1;
        let id = pins.newest;
        pins.alive.insert(id);
        Pin { map: Arc::clone(self), id }
    }

    /// The oldest pin alive, or the next one when there is none.
    #[must_use]
    pub fn oldest_pin(&self) -> u64 {
        let pins = lock(&self.pins);
        pins.alive.first().copied().unwrap_or(pins.newest + 1)
    }

    fn newest_pin(&self) -> u64 {
        lock(&self.pins).newest
    }

    /// Makes `bytes`, one page or a run of them, readable at a free page.
    ///
    /// # Panics
    /// When the page is not free.
    pub fn put(&self, page: u64, bytes: Box<HeapPage>) {
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(PAGE), "whole pages");
        let heap = Box::into_raw(bytes);
        let was = self.slot_for_writing(page).compare_exchange(
            FREE,
            heap,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        assert!(was.is_ok(), "page {page} is not free");
    }

    /// Makes pages and runs unreadable. They are free when [`PageMap::reclaim`] says so.
    ///
    /// # Panics
    /// When one is not readable.
    pub fn hide(&self, pages: impl IntoIterator<Item = (u64, u64)>) {
        let hidden =
            pages.into_iter().map(|(page, pages)| (page, pages, self.take_away(page, pages)));
        let hidden: Vec<_> = hidden.collect();
        // Noted after all of them left their slots: no later pin finds any of them.
        let mut limbo = lock(&self.limbo);
        let newest = self.newest_pin();
        limbo.extend(hidden.into_iter().map(|(page, pages, heap)| {
            let heap = AtomicPtr::new(heap);
            Limbo { newest, page, pages, heap, frees: true }
        }));
    }

    /// Empties the slots of a page or a run; what was on the heap is for limbo.
    fn take_away(&self, page: u64, pages: u64) -> *mut HeapPage {
        let slot = self.slot_for_writing(page);
        // Readers turn FILE into VERIFIED at any time, hence a swap and no look before it.
        let was = slot.swap(LIMBO_FILE, Ordering::AcqRel);
        let in_file = was == FILE || was == VERIFIED;
        assert!(in_file || !is_mark(was), "page {page} is not readable");
        if !in_file {
            slot.store(LIMBO_HEAP, Ordering::Release);
            return was;
        }
        for tail in page + 1..page + pages {
            let was = self.slot_for_writing(tail).swap(LIMBO_FILE, Ordering::AcqRel);
            assert!(was == FILE || was == VERIFIED, "page {tail} is not readable");
        }
        FREE
    }

    /// Takes what no pin can see any more, and tells which pages that makes writable. The
    /// memory is freed by dropping what is returned.
    pub fn reclaim(&self, mut freed: impl FnMut(u64, u64)) -> HeapPages {
        let oldest = self.oldest_pin();
        let mut pages = HeapPages::default();
        let mut limbo = lock(&self.limbo);
        while limbo.front().is_some_and(|entry| entry.newest < oldest) {
            let entry = limbo.pop_front().expect("looked at it");
            if entry.frees {
                let in_file = entry.heap.load(Ordering::Relaxed).is_null();
                let slots = if in_file { entry.pages } else { 1 };
                for page in entry.page..entry.page + slots {
                    self.slot_for_writing(page).store(FREE, Ordering::Release);
                }
                freed(entry.page, entry.pages);
            }
            pages.0.extend(release(entry.heap.into_inner()));
        }
        pages
    }

    /// Copies bytes out of the file: for what is not lent as slices.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.region.read_at(offset, into)
    }

    /// Copies bytes as the disk holds them; see [`Region::read_disk`].
    ///
    /// # Errors
    /// `Io`.
    pub fn read_disk(&self, offset: u64, into: &mut [u8]) -> Result<bool, StoreError> {
        self.region.read_disk(offset, into)
    }

    /// File name, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        self.renamed.get().map_or_else(|| self.region.name(), String::as_str)
    }

    /// The name that the file has from now on; only the first one counts.
    pub(super) fn set_name(&self, name: String) {
        let _ = self.renamed.set(name);
    }

    /// Is no page from `page` on in the file, nor can it still be read there?
    fn is_clear_from(&self, page: u64) -> bool {
        let first = usize::try_from(page).expect("page fits memory");
        let mut slots =
            self.pieces.iter().enumerate().skip(first / PIECE).flat_map(|(at, piece)| {
                let skip = first.saturating_sub(at * PIECE);
                piece.get().into_iter().flatten().skip(skip)
            });
        slots.all(|slot| {
            // What waits in limbo says so here until it is free.
            let slot = slot.load(Ordering::Acquire);
            slot != FILE && slot != VERIFIED && slot != LIMBO_FILE
        })
    }

    /// Length of the file in bytes.
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

#[inline]
fn is_mark(heap: *mut HeapPage) -> bool {
    heap.addr() < align_of::<HeapPage>()
}

/// Takes back a heap page that left the table and the reach of all pins; a mark is none.
fn release(heap: *mut HeapPage) -> Option<Box<HeapPage>> {
    if is_mark(heap) {
        None
    } else {
        // SAFETY:
        // - From `Box::into_raw` in `PageMap::put`, the only place that makes such pointers.
        // - Taken back once: it is called from `PageMap::reclaim` with a pointer that was swapped
        //   out of its slot by `take_away` or `settle` and popped from `limbo`, and from
        //   `PageMap::drop` with what is in a slot or in `limbo`; a swap moves it, so it is
        //   in one of these places only.
        // - Not borrowed: in `reclaim` every pin up to `newest` is gone. A pin that loaded
        //   the pointer did so before the swap, and existed when `newest` was read after
        //   it: a pin made later got its number under the same mutex after that, so the
        //   swap happened before all its loads. In `drop` no pin exists, as pins hold an
        //   `Arc` of the map.
        Some(unsafe { Box::from_raw(heap) })
    }
}

impl Drop for PageMap {
    fn drop(&mut self) {
        for slot in self.pieces.iter_mut().filter_map(OnceLock::get_mut).flatten() {
            drop(release(*slot.get_mut()));
        }
        for entry in self.limbo.get_mut().unwrap_or_else(PoisonError::into_inner) {
            drop(release(*entry.heap.get_mut()));
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        lock(&self.map.pins).alive.remove(&self.id);
    }
}

impl Pin {
    /// Its number; later pins have greater ones.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The map it pins.
    #[must_use]
    pub fn map(&self) -> &Arc<PageMap> {
        &self.map
    }

    /// Borrows `len` bytes from the start of a page or run, and says whether they are known
    /// to be intact. `None`: not readable.
    #[inline]
    #[must_use]
    pub fn bytes(&self, page: u64, len: usize) -> Option<(&[u8], bool)> {
        let map = &*self.map;
        let heap = map.slot(page)?.load(Ordering::Acquire);
        if !is_mark(heap) {
            // SAFETY:
            // - Points to a live `HeapPage`: `put` stored it with Release, and it is taken back by
            //   `release` only after this pin is dropped (see there); the borrow of `self`
            //   keeps the pin.
            // - Never written: `put` took it out of its box, and nobody writes it before
            //   `release` has put it into one again.
            let heap: &HeapPage = unsafe { &*heap };
            return Some((heap.get(..len)?, true));
        }
        if heap != FILE && heap != VERIFIED {
            return None;
        }
        for tail in 1..len.div_ceil(PAGE) as u64 {
            let tail = map.slot(page + tail)?.load(Ordering::Acquire);
            if tail != FILE && tail != VERIFIED {
                return None;
            }
        }
        let at = usize::try_from(page).ok()? * PAGE;
        let start = map.memory.raw.as_mut_ptr().wrapping_add(at);
        // SAFETY:
        // - In bounds and backed: slots become FILE in `PageMap::open` and
        //   `FileWriter::settle` only, which check the file's length and the reserve; only
        //   `FileWriter` shortens the file, and only where no slot is FILE or LIMBO_FILE
        //   (`shrink`) or ever was (`grow`), so no slice points there; other processes are
        //   kept out by the lock on the directory. `self` holds the map.
        // - Not written meanwhile: only `FileWriter::write` writes, and only pages that are
        //   neither in the file nor in LIMBO_FILE. These pages were FILE when they were
        //   looked at, and leave that state by `hide` only, to LIMBO_FILE, which they leave
        //   in `reclaim` only, when all pins that existed at `hide` are gone. This pin is
        //   one of them: a later one would have seen LIMBO_FILE (see `release`).
        // - `u8` has alignment 1 and no invalid bit pattern.
        let bytes = unsafe { std::slice::from_raw_parts(start, len) };
        Some((bytes, heap == VERIFIED))
    }

    /// Is the page, if readable, one of the file and not of the heap?
    #[must_use]
    pub fn is_in_file(&self, page: u64) -> bool {
        let slot = self.map.slot(page).map(|slot| slot.load(Ordering::Acquire));
        slot.is_some_and(|slot| slot == FILE || slot == VERIFIED)
    }

    /// Remembers that a page in the file is intact.
    pub fn set_verified(&self, page: u64) {
        if let Some(slot) = self.map.slot(page) {
            // Failing is right when the page went away or another reader was faster.
            let _ = slot.compare_exchange(FILE, VERIFIED, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl FileWriter {
    /// The map, for readers.
    #[must_use]
    pub fn map(&self) -> &Arc<PageMap> {
        &self.map
    }

    /// Writes whole pages that nobody can be reading. No growth: see [`FileWriter::grow`].
    ///
    /// # Errors
    /// As for [`FileWriter::extend`].
    ///
    /// # Panics
    /// As there, and when the file ends before the pages do.
    pub fn write(&mut self, page: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let pages = bytes.len().div_ceil(PAGE) as u64;
        assert!(self.map.backed(page, pages), "the caller grows the file first");
        self.extend(page, bytes)
    }

    /// Writes whole pages that nobody can be reading, and makes the file longer by those behind
    /// its end: what makes a new file writes it once. [`FileWriter::sync_all`] makes its length
    /// durable. When the disk has no room, it is as long as before.
    ///
    /// # Errors
    /// `Io`; then the process must end, unless [`super::is_no_space`] is true of it.
    ///
    /// # Panics
    /// When a page is readable in the file, or may still be read there, and when there would be
    /// a hole before the pages.
    pub fn extend(&mut self, page: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let (at, old) = (page * PAGE as u64, self.map.region.len());
        assert!(at <= old, "without blocks, a hole is a promise that the disk may break");
        for page in page..page + bytes.len().div_ceil(PAGE) as u64 {
            let slot = self.map.slot_for_writing(page).load(Ordering::Acquire);
            // Only this type puts a page into the file, so what holds now holds until the
            // write is done: `&mut self`.
            let is_unread = ![FILE, VERIFIED, LIMBO_FILE].contains(&slot);
            assert!(is_unread, "page {page} may be borrowed");
        }
        let region = &*self.map.region;
        or_as_long_as(region, old, region.write_at(at, bytes))
    }

    /// Turns heap pages whose bytes were written into file pages. `false`: not on the heap.
    ///
    /// # Panics
    /// When the run is not whole, or the file too short.
    pub fn settle(&mut self, page: u64, pages: u64) -> bool {
        let map = &self.map;
        assert!(map.backed(page, pages), "written before");
        let slot = map.slot_for_writing(page);
        let heap = slot.load(Ordering::Acquire);
        if is_mark(heap) {
            return false;
        }
        for tail in page + 1..page + pages {
            let was = map.slot_for_writing(tail).compare_exchange(
                FREE,
                VERIFIED,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            assert!(was.is_ok(), "page {tail} is part of a run");
        }
        let was = slot.compare_exchange(heap, VERIFIED, Ordering::AcqRel, Ordering::Acquire);
        assert!(was.is_ok(), "nobody hides a page while it settles");
        let mut limbo = lock(&map.limbo);
        let newest = map.newest_pin();
        let heap = AtomicPtr::new(heap);
        limbo.push_back(Limbo { newest, page, pages, heap, frees: false });
        true
    }

    /// Makes the file at least `len` bytes long, durably. When the disk has no room, it is
    /// as long as before: nothing behind the old end was ever in the file.
    ///
    /// # Errors
    /// `Io`; then the process must end, unless [`super::is_no_space`] is true of it.
    pub fn grow(&mut self, len: u64) -> Result<(), StoreError> {
        let region = &*self.map.region;
        let old = region.len();
        if old >= len { Ok(()) } else { or_as_long_as(region, old, grow_with_zeros(region, len)) }
    }

    /// Cuts the file to `pages` pages. `false`: it is not longer, or something behind them
    /// is in the file or may still be borrowed from it, and nothing was done.
    ///
    /// # Errors
    /// `Io`; then the process must end.
    pub fn shrink(&mut self, pages: u64) -> Result<bool, StoreError> {
        let len = pages * PAGE as u64;
        // Only this type puts a page into the file, so what is clear now stays clear until
        // the file is cut: `&mut self`. Pages on the heap do not care how long it is.
        let cut = self.map.region.len() > len && self.map.is_clear_from(pages);
        if cut {
            self.map.region.set_len(len)?;
        }
        Ok(cut)
    }

    /// Makes the written bytes of a range durable: one `msync`.
    ///
    /// # Errors
    /// `Io`; then the process must end.
    pub fn sync(&mut self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.map.region.sync(offset, len)
    }

    /// Makes all that was written durable, and the length of the file.
    ///
    /// # Errors
    /// `Io`; then the process must end.
    pub fn sync_all(&mut self) -> Result<(), StoreError> {
        self.map.region.sync_all()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::faults::{describe, note};

    #[test]
    fn a_fault_is_named_while_its_map_is_noted() {
        let text = |address| {
            describe(address).map(|line| String::from_utf8_lossy(line.text()).into_owned())
        };
        // Addresses that no map of this process can have.
        let noted = note(1 << 20, 4096, "some/dir/0000000000000007.tmp");
        let said = text((1 << 20) + 1234).unwrap();
        assert!(said.contains("some/dir/0000000000000007.seg at byte 1234 failed"), "{said}");
        assert!(text((1 << 20) - 1).is_none() && text((1 << 20) + 4096).is_none());
        drop(noted);
        assert!(text((1 << 20) + 1234).is_none());
        let noted = note(1 << 20, 4096, &"long/".repeat(100));
        assert!(text(1 << 20).unwrap().contains("g/long/ at byte 0 "));
        drop(noted);
    }
}
