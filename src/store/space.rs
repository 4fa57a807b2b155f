//! Which pages of the database are taken: in memory a handful of bitmaps, on disk one per
//! checkpoint, written like any other run of pages and named by the meta page.
//!
//! A page may be given out when it is in none of these:
//!
//! * `live`: the newest trees, with the batch that is being applied;
//! * `busy`: freed, but still readable by a snapshot or lent as a slice;
//! * `kept`: the last durable checkpoint, the one before it, the one that is being
//!   written, and those that somebody streams.
//!
//! Left out: bitmaps in fixed places, changed in pairs. Writing the whole map anew costs
//! 32 KiB per GiB and checkpoint, and needs no rule of its own to survive a crash.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Weak};

use super::map::PAGE;

/// Page numbers are well spread after one multiplication.
#[derive(Debug, Default)]
pub(super) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, page: u64) {
        self.0 = (self.0 ^ page).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

pub(super) type PageTable<T> = HashMap<u64, T, BuildHasherDefault<PageHasher>>;

/// One bit per page; pages beyond its end are free.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        Self { words }
    }

    /// Its bytes, as whole pages.
    pub(super) fn to_bytes(&self, pages: u64) -> Vec<u8> {
        // What was cleared at the end may belong to a longer file than this one.
        let used = usize::try_from(self.end().div_ceil(64)).expect("it has so many");
        let mut bytes: Vec<u8> =
            self.words.iter().take(used).flat_map(|word| word.to_le_bytes()).collect();
        let len = usize::try_from(pages).expect("pages fit memory") * PAGE;
        assert!(bytes.len() <= len, "the caller made room");
        bytes.resize(len, 0);
        bytes
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    fn place(page: u64) -> (usize, u64) {
        (usize::try_from(page / 64).expect("page fits memory"), 1 << (page % 64))
    }

    pub(super) fn get(&self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        self.word(word) & bit != 0
    }

    /// Sets a bit and says whether it was clear.
    pub(super) fn set(&mut self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let was = self.words[word] & bit != 0;
        self.words[word] |= bit;
        !was
    }

    /// Clears a bit and says whether it was set.
    pub(super) fn clear(&mut self, page: u64) -> bool {
        let was = self.get(page);
        if was {
            let (word, bit) = Self::place(page);
            self.words[word] &= !bit;
        }
        was
    }

    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The page after the last one that is set.
    pub(super) fn end(&self) -> u64 {
        let last = self.words.iter().rposition(|word| *word != 0);
        last.map_or(0, |at| at as u64 * 64 + 64 - u64::from(self.words[at].leading_zeros()))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.iter_from(0)
    }

    /// Pages that are set, from `from` on.
    pub(super) fn iter_from(&self, from: u64) -> impl Iterator<Item = u64> {
        let (first, bit) = Self::place(from);
        self.words.iter().enumerate().skip(first).flat_map(move |(index, &word)| {
            let mut left = if index == first { word & !(bit - 1) } else { word };
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| u64::from(left.trailing_zeros()))?;
                left &= left - 1;
                Some(index as u64 * 64 + bit)
            })
        })
    }

    /// First page that is in `self` and not in `other`.
    pub(super) fn first_beyond(&self, other: &Self) -> Option<u64> {
        self.iter().find(|&page| !other.get(page))
    }
}

/// The allocator.
#[derive(Debug)]
pub(super) struct Space {
    live: Bitmap,
    live_pages: u64,
    busy: Bitmap,
    busy_pages: u64,
    kept: Vec<Arc<Bitmap>>,
    pinned: Vec<Weak<Bitmap>>,
    /// Where the next search begins.
    next: u64,
    /// Pages that the file has, or will have after the next checkpoint.
    limit: u64,
    capacity: u64,
    step: u64,
    /// A planted bug: forget about `kept`.
    reckless: bool,
}

impl Space {
    pub(super) fn new(live: Bitmap, limit: u64, capacity: u64, step: u64) -> Self {
        let live_pages = live.count();
        let (busy, kept, pinned) = (Bitmap::default(), Vec::new(), Vec::new());
        let (busy_pages, next, reckless) = (0, 0, false);
        Self {
            live,
            live_pages,
            busy,
            busy_pages,
            kept,
            pinned,
            next,
            limit,
            capacity,
            step,
            reckless,
        }
    }

    pub(super) fn live(&self) -> &Bitmap {
        &self.live
    }

    pub(super) fn live_pages(&self) -> u64 {
        self.live_pages
    }

    /// Pages that are freed and cannot be given out, since something may still read them.
    pub(super) fn busy_pages(&self) -> u64 {
        self.busy_pages
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Gives up free pages at the end of the file, if they are at least `least` and the
    /// `part`th part of it: the next checkpoint says so, and the one after it cuts the file.
    /// One step more than needed is kept, so that the next change does not grow it again.
    pub(super) fn lower(&mut self, least: u64, part: u64) {
        if self.live_pages < self.limit / 2 {
            // Much is free: the front is filled first, so that the end gets empty.
            self.next = 0;
        }
        let pinned = self.pinned.iter().filter_map(Weak::upgrade).map(|map| map.end());
        let kept = self.kept.iter().map(|map| map.end()).chain(pinned).max().unwrap_or(0);
        let end = kept.max(self.live.end()).max(self.busy.end());
        let target = (end + self.step).next_multiple_of(self.step);
        let free = self.limit.saturating_sub(target);
        if free > 0 && free >= least && free >= self.limit / part.max(1) {
            self.limit = target;
            self.next = 0;
        }
    }

    /// Replaces the checkpoints whose pages must not be touched.
    pub(super) fn keep(&mut self, kept: Vec<Arc<Bitmap>>) {
        for old in std::mem::replace(&mut self.kept, kept) {
            // Somebody may be streaming it.
            self.pinned.push(Arc::downgrade(&old));
        }
        self.pinned.retain(|old| old.strong_count() > 0);
    }

    pub(super) fn plant_reuse(&mut self, reckless: bool) {
        self.reckless = reckless;
    }

    fn taken(&self, index: usize) -> u64 {
        if self.reckless {
            return self.live.word(index) | self.busy.word(index);
        }
        let kept = self.kept.iter().map(|map| map.word(index));
        let pinned = self.pinned.iter().filter_map(Weak::upgrade).map(|map| map.word(index));
        kept.chain(pinned).fold(self.live.word(index) | self.busy.word(index), |a, b| a | b)
    }

    /// Takes `pages` neighbours. `None`: the reserved address space is used up.
    pub(super) fn take(&mut self, pages: u64) -> Option<u64> {
        let found = self.find(self.next, self.limit, pages).or_else(|| {
            let end = self.limit.min(self.next.saturating_add(pages));
            self.find(0, end, pages)
        });
        let first = match found {
            Some(first) => first,
            None => {
                let first = self.limit;
                let limit = (first + pages).next_multiple_of(self.step).min(self.capacity);
                if first + pages > limit {
                    return None;
                }
                self.limit = limit;
                first
            }
        };
        for page in first..first + pages {
            assert!(self.live.set(page), "page {page} was free");
        }
        self.live_pages += pages;
        self.next = first + pages;
        Some(first)
    }

    fn find(&self, from: u64, to: u64, pages: u64) -> Option<u64> {
        let (mut at, mut run) = (from, 0);
        let (mut index, mut taken) = (usize::MAX, 0);
        while at < to {
            let word = usize::try_from(at / 64).ok()?;
            if word != index {
                (index, taken) = (word, self.taken(word));
            }
            let rest = taken >> (at % 64);
            if rest & 1 == 0 {
                run += 1;
                at += 1;
                if run == pages {
                    return Some(at - pages);
                }
            } else {
                run = 0;
                at += u64::from(rest.trailing_ones()).min(64 - at % 64);
            }
        }
        None
    }

    /// Gives back pages that nobody has seen.
    pub(super) fn untake(&mut self, page: u64, pages: u64) {
        for page in page..page + pages {
            assert!(self.live.clear(page), "page {page} was taken");
        }
        self.live_pages -= pages;
    }

    /// Gives up pages that snapshots may still read: call [`Space::free`] later.
    pub(super) fn retire(&mut self, page: u64, pages: u64) {
        self.untake(page, pages);
        for page in page..page + pages {
            self.busy_pages += u64::from(self.busy.set(page));
        }
    }

    pub(super) fn free(&mut self, page: u64, pages: u64) {
        for page in page..page + pages {
            self.busy_pages -= u64::from(self.busy.clear(page));
        }
    }
}
