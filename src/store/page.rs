//! Bytes of a tree page. Decoders take any bytes and never panic; `None` means that the
//! page contradicts this layout.
//!
//! Little-endian. Every page starts with a header:
//!
//! | bytes  | field | meaning                                             |
//! |--------|-------|-----------------------------------------------------|
//! | 0..4   | crc   | CRC-32C of bytes 4..4096, written at the checkpoint |
//! | 4      | kind  | 1 leaf, 2 branch                                    |
//! | 5      | -     | zero                                                |
//! | 6..8   | count | cells                                               |
//! | 8..16  | page  | its own number: a misdirected write is noticed      |
//! | 16..24 | seq   | checkpoint that wrote it                            |
//! | 24..26 | upper | where the cells begin                               |
//! | 26..32 | -     | zero                                                |
//!
//! Then come `count` offsets of cells (u16, in key order), free space, and from `upper` on
//! the cells without gaps:
//!
//! | leaf      | branch    | field                                             |
//! |-----------|-----------|---------------------------------------------------|
//! | 0..2      | 0..2      | length of the key                                 |
//! | 2         | 2         | flags: 1 long key, 2 long value                   |
//! | 3         | 3         | zero                                              |
//! | 4..8      |           | length of the value                               |
//! |           | 4..12     | child                                             |
//! |           | 12..16    | its crc; 0: not known yet, see `checkpoint.rs`    |
//! | 8..       | 16..      | the key, or its first 256 bytes and a run         |
//! | after it  |           | the value, or a run                               |
//!
//! A run is what does not fit: first page (u64) and CRC-32C (u32) of whole pages that hold
//! nothing but the raw bytes, so that a value is always one slice. The first key of a
//! branch is empty: it stands for everything below the second.
//!
//! Left out: compression of common prefixes. `kind` leaves room for it.

#![deny(clippy::indexing_slicing)]

use super::map::PAGE;

pub(super) const HEADER: usize = 32;
/// Bytes for offsets and cells.
pub(super) const ROOM: usize = PAGE - HEADER;
/// Longer keys go to a run.
pub(super) const KEY_INLINE: usize = 512;
/// How much of a long key stays in the cell, to decide most comparisons.
pub(super) const KEY_PREFIX: usize = 256;
/// Longer values go to a run.
pub(super) const VALUE_INLINE: usize = 1024;
/// Longest key: 4096 bytes, and what an index puts before them.
pub const KEY_MAX: usize = 4096 + 64;
/// Longest value.
pub const VALUE_MAX: usize = 16 << 20;
const RUN: usize = 12;
const LEAF_HEAD: usize = 8;
const BRANCH_HEAD: usize = 16;
/// Bigger cells send their value to a run.
pub(super) const CELL_MAX: usize = 1300;
const _: () = assert!(3 * (CELL_MAX + 2) <= ROOM, "any page splits into two");
const _: () = assert!(BRANCH_HEAD + KEY_INLINE <= CELL_MAX);
const _: () = assert!(LEAF_HEAD + KEY_INLINE + RUN <= CELL_MAX);
const _: () = assert!(KEY_PREFIX + RUN <= KEY_INLINE);

const LONG_KEY: u8 = 1;
const LONG_VALUE: u8 = 2;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Leaf,
    Branch,
}

/// Bytes in pages of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) page: u64,
    pub(super) len: usize,
    pub(super) crc: u32,
}

impl Run {
    pub(super) fn pages(&self) -> u64 {
        self.len.div_ceil(PAGE) as u64
    }
}

/// A key as it stands in a cell.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key<'a> {
    Short(&'a [u8]),
    Long { prefix: &'a [u8], run: Run },
}

/// A value as it stands in a cell.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Short(&'a [u8]),
    Long(Run),
}

/// One decoded cell. `raw_key` is what follows the head: it can be moved to another cell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell<'a> {
    pub(super) raw: &'a [u8],
    pub(super) raw_key: &'a [u8],
    pub(super) key: Key<'a>,
    /// Of a leaf.
    pub(super) value: Value<'a>,
    /// Of a branch.
    pub(super) child: u64,
    pub(super) crc: u32,
}

#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(field.len())?)?.copy_from_slice(field);
    Some(())
}

fn run_at(bytes: &[u8], at: usize, len: usize) -> Option<Run> {
    Some(Run { page: u64_at(bytes, at)?, len, crc: u32_at(bytes, at + 8)? })
}

/// A page to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    #[inline]
    pub(super) fn kind(&self) -> Option<Kind> {
        match self.bytes.get(4)? {
            1 => Some(Kind::Leaf),
            2 => Some(Kind::Branch),
            _ => None,
        }
    }

    pub(super) fn page(&self) -> Option<u64> {
        u64_at(self.bytes, 8)
    }

    pub(super) fn stored_crc(&self) -> Option<u32> {
        u32_at(self.bytes, 0)
    }

    /// Is it the page `page`, and intact, and the one whose crc is `wanted` (0: any)?
    pub(super) fn is_intact(&self, page: u64, wanted: u32) -> bool {
        let Some(rest) = self.bytes.get(4..PAGE) else { return false };
        let crc = crc32c::crc32c(rest);
        self.stored_crc() == Some(crc)
            && (wanted == 0 || wanted == crc)
            && self.page() == Some(page)
    }

    #[inline]
    pub(super) fn count(&self) -> usize {
        u16_at(self.bytes, 6).map_or(0, usize::from)
    }

    #[inline]
    fn offset(&self, index: usize) -> Option<usize> {
        if index >= self.count() {
            return None;
        }
        u16_at(self.bytes, HEADER + 2 * index).map(usize::from)
    }

    /// Bytes taken by offsets and cells.
    pub(super) fn used(&self) -> usize {
        let upper = u16_at(self.bytes, 24).map_or(0, usize::from);
        PAGE.saturating_sub(upper) + 2 * self.count()
    }

    /// The key of a cell: all a search needs.
    #[inline]
    pub(super) fn key(&self, index: usize, kind: Kind) -> Option<Key<'a>> {
        let cell = self.bytes.get(self.offset(index)?..)?;
        let head = match kind {
            Kind::Leaf => LEAF_HEAD,
            Kind::Branch => BRANCH_HEAD,
        };
        key_of(cell, head).map(|(key, _)| key)
    }

    #[inline]
    pub(super) fn leaf(&self, index: usize) -> Option<Cell<'a>> {
        leaf_cell(self.bytes.get(self.offset(index)?..)?)
    }

    #[inline]
    pub(super) fn branch(&self, index: usize) -> Option<Cell<'a>> {
        branch_cell(self.bytes.get(self.offset(index)?..)?)
    }

    #[inline]
    pub(super) fn cell(&self, index: usize, kind: Kind) -> Option<Cell<'a>> {
        match kind {
            Kind::Leaf => self.leaf(index),
            Kind::Branch => self.branch(index),
        }
    }
}

#[inline]
fn key_of(cell: &[u8], head: usize) -> Option<(Key<'_>, &[u8])> {
    let len = usize::from(u16_at(cell, 0)?);
    if cell.get(2)? & LONG_KEY == 0 {
        let key = cell.get(head..head + len)?;
        return Some((Key::Short(key), key));
    }
    if len <= KEY_INLINE || len > KEY_MAX {
        return None;
    }
    let raw = cell.get(head..head + KEY_PREFIX + RUN)?;
    let prefix = raw.get(..KEY_PREFIX)?;
    Some((Key::Long { prefix, run: run_at(raw, KEY_PREFIX, len)? }, raw))
}

#[inline]
fn leaf_cell(cell: &[u8]) -> Option<Cell<'_>> {
    let (key, raw_key) = key_of(cell, LEAF_HEAD)?;
    let len = usize::try_from(u32_at(cell, 4)?).ok()?;
    let at = LEAF_HEAD + raw_key.len();
    let (value, end) = if cell.get(2)? & LONG_VALUE == 0 {
        let value = cell.get(at..at.checked_add(len)?)?;
        (Value::Short(value), at + len)
    } else if len > VALUE_MAX {
        return None;
    } else {
        (Value::Long(run_at(cell, at, len)?), at + RUN)
    };
    Some(Cell { raw: cell.get(..end)?, raw_key, key, value, child: 0, crc: 0 })
}

#[inline]
fn branch_cell(cell: &[u8]) -> Option<Cell<'_>> {
    let (key, raw_key) = key_of(cell, BRANCH_HEAD)?;
    Some(Cell {
        raw: cell.get(..BRANCH_HEAD + raw_key.len())?,
        raw_key,
        key,
        value: Value::Short(&[]),
        child: u64_at(cell, 4)?,
        crc: u32_at(cell, 12)?,
    })
}

/// A cell outside of a page.
pub(super) fn decode_cell(cell: &[u8], kind: Kind) -> Option<Cell<'_>> {
    match kind {
        Kind::Leaf => leaf_cell(cell),
        Kind::Branch => branch_cell(cell),
    }
}

/// Key bytes ready for a cell, owned: moved between cells, or about to be stored.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnedKey {
    len: u16,
    long: bool,
    raw: Vec<u8>,
}

impl OwnedKey {
    pub(super) fn short(key: &[u8]) -> Self {
        Self { len: len16(key.len()), long: false, raw: key.to_vec() }
    }

    pub(super) fn long(key: &[u8], run: Run) -> Self {
        let mut raw = key.get(..KEY_PREFIX).unwrap_or(key).to_vec();
        raw.extend(run.page.to_le_bytes());
        raw.extend(run.crc.to_le_bytes());
        Self { len: len16(key.len()), long: true, raw }
    }

    pub(super) fn of(cell: &Cell<'_>) -> Self {
        let (len, long) = match cell.key {
            Key::Short(key) => (key.len(), false),
            Key::Long { run, .. } => (run.len, true),
        };
        Self { len: len16(len), long, raw: cell.raw_key.to_vec() }
    }

    pub(super) fn raw_len(&self) -> usize {
        self.raw.len()
    }

    /// Would a short value of `len` bytes be stored in the cell?
    pub(super) fn takes_value(&self, len: usize) -> bool {
        len <= VALUE_INLINE && LEAF_HEAD + self.raw.len() + len <= CELL_MAX
    }

    pub(super) fn leaf(&self, value: Value<'_>) -> Vec<u8> {
        let (len, long) = match value {
            Value::Short(value) => (value.len(), 0),
            Value::Long(run) => (run.len, LONG_VALUE),
        };
        let len = u32::try_from(len).expect("checked against VALUE_MAX");
        let size = match value {
            Value::Short(value) => value.len(),
            Value::Long(_) => RUN,
        };
        let mut cell = Vec::with_capacity(LEAF_HEAD + self.raw.len() + size);
        cell.extend(self.len.to_le_bytes());
        cell.extend([u8::from(self.long) | long, 0]);
        cell.extend(len.to_le_bytes());
        cell.extend_from_slice(&self.raw);
        match value {
            Value::Short(value) => cell.extend_from_slice(value),
            Value::Long(run) => {
                cell.extend(run.page.to_le_bytes());
                cell.extend(run.crc.to_le_bytes());
            }
        }
        cell
    }

    pub(super) fn branch(&self, child: u64, crc: u32) -> Vec<u8> {
        let mut cell = Vec::with_capacity(BRANCH_HEAD + self.raw.len());
        cell.extend(self.len.to_le_bytes());
        cell.extend([u8::from(self.long), 0]);
        cell.extend(child.to_le_bytes());
        cell.extend(crc.to_le_bytes());
        cell.extend_from_slice(&self.raw);
        cell
    }
}

fn len16(len: usize) -> u16 {
    u16::try_from(len).expect("checked against KEY_MAX")
}

/// Copies a page, but for the free space between offsets and cells, which nobody reads: about a
/// third of a page whose keys came in no order, and most of what a batch does is copying.
pub(super) fn copy(to: &mut [u8], from: &[u8]) {
    let view = View::new(from);
    let low = HEADER + 2 * view.count();
    let high = u16_at(from, 24).map_or(0, usize::from);
    match (from.get(..low), from.get(high..), to.len()) {
        (Some(head), Some(cells), len) if low <= high && len == from.len() => {
            let done = put(to, 0, head).and_then(|()| put(to, high, cells));
            debug_assert!(done.is_some(), "both are as long");
        }
        _ => to.copy_from_slice(from),
    }
}

/// Makes it an empty page.
pub(super) fn blank(bytes: &mut [u8], kind: Kind, page: u64) {
    clear(bytes, kind);
    set_page(bytes, page);
}

fn clear(bytes: &mut [u8], kind: Kind) {
    let kind = match kind {
        Kind::Leaf => 1,
        Kind::Branch => 2,
    };
    bytes.fill(0);
    let done = put(bytes, 4, &[kind]).and_then(|()| set_upper(bytes, PAGE));
    debug_assert!(done.is_some(), "a page");
}

pub(super) fn set_page(bytes: &mut [u8], page: u64) {
    let done = put(bytes, 8, &page.to_le_bytes());
    debug_assert!(done.is_some(), "a page");
}

fn set_upper(bytes: &mut [u8], upper: usize) -> Option<()> {
    put(bytes, 24, &u16::try_from(upper).ok()?.to_le_bytes())
}

fn set_count(bytes: &mut [u8], count: usize) -> Option<()> {
    put(bytes, 6, &u16::try_from(count).ok()?.to_le_bytes())
}

/// Adds a cell at `index`. `None`: it does not fit.
pub(super) fn insert(bytes: &mut [u8], index: usize, cell: &[u8]) -> Option<()> {
    let count = View::new(bytes).count();
    let upper = usize::from(u16_at(bytes, 24)?);
    let slots_end = HEADER + 2 * count;
    let at = upper.checked_sub(cell.len())?;
    if index > count || at < slots_end + 2 {
        return None;
    }
    put(bytes, at, cell)?;
    let slot = HEADER + 2 * index;
    bytes.get_mut(slot..slots_end + 2)?.copy_within(..slots_end - slot, 2);
    put(bytes, slot, &u16::try_from(at).ok()?.to_le_bytes())?;
    set_upper(bytes, at)?;
    set_count(bytes, count + 1)
}

/// Replaces a short value by one of the same length. `None`: there is no such cell.
pub(super) fn set_value(bytes: &mut [u8], index: usize, value: &[u8]) -> Option<()> {
    let view = View::new(bytes);
    let at = view.offset(index)? + LEAF_HEAD + view.leaf(index)?.raw_key.len();
    put(bytes, at, value)
}

/// Takes a cell out and closes the gap. `None`: there is no such cell.
pub(super) fn remove(bytes: &mut [u8], index: usize, kind: Kind) -> Option<()> {
    let view = View::new(bytes);
    let (count, at) = (view.count(), view.offset(index)?);
    let size = view.cell(index, kind)?.raw.len();
    let upper = usize::from(u16_at(bytes, 24)?);
    bytes.get_mut(upper..at + size)?.copy_within(..at.checked_sub(upper)?, size);
    let slot = HEADER + 2 * index;
    bytes.get_mut(slot..HEADER + 2 * count)?.copy_within(2.., 0);
    for slot in bytes.get_mut(HEADER..HEADER + 2 * (count - 1))?.chunks_exact_mut(2) {
        let offset = usize::from(u16_at(slot, 0)?);
        if offset < at {
            put(slot, 0, &u16::try_from(offset + size).ok()?.to_le_bytes())?;
        }
    }
    set_upper(bytes, upper + size)?;
    set_count(bytes, count - 1)
}

/// Makes the page hold exactly these cells. `None`: they do not fit.
pub(super) fn rebuild<T: AsRef<[u8]>>(bytes: &mut [u8], kind: Kind, cells: &[T]) -> Option<()> {
    let page = u64_at(bytes, 8)?;
    clear(bytes, kind);
    set_page(bytes, page);
    cells.iter().enumerate().try_for_each(|(index, cell)| insert(bytes, index, cell.as_ref()))
}

/// Points the branch cell `index` to another child.
pub(super) fn set_child(bytes: &mut [u8], index: usize, child: u64, crc: u32) -> Option<()> {
    let at = View::new(bytes).offset(index)?;
    put(bytes, at + 4, &child.to_le_bytes())?;
    put(bytes, at + 12, &crc.to_le_bytes())
}

/// The checksum of a page when the checkpoint `seq` has it.
pub(super) fn sum(bytes: &[u8], seq: u64) -> Option<u32> {
    let crc = crc32c::crc32c(bytes.get(4..16)?);
    let crc = crc32c::crc32c_append(crc, &seq.to_le_bytes());
    Some(crc32c::crc32c_append(crc, bytes.get(24..)?))
}

/// Stamps a page with its checkpoint and what [`sum`] says of it.
pub(super) fn stamp(bytes: &mut [u8], seq: u64, crc: u32) -> Option<()> {
    put(bytes, 16, &seq.to_le_bytes())?;
    put(bytes, 0, &crc.to_le_bytes())
}

/// Stamps a page with its checkpoint and checksum, and returns the latter.
pub(super) fn seal(bytes: &mut [u8], seq: u64) -> Option<u32> {
    let crc = sum(bytes, seq)?;
    stamp(bytes, seq, crc)?;
    Some(crc)
}

/// The shortest key that is greater than `left` and not greater than `right`.
pub(super) fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    let common = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    right.get(..=common).unwrap_or(right)
}
