//! Long writing in pieces: room for others between them, and patience when the disk is full.
//!
//! Checkpoints and compactions write much at once, and the log's syncs, which clients wait
//! for, queue behind that in the disk. So they write pieces, make every few of them durable
//! as they go, and rest in between as long as a [`Pace`] says.
//!
//! A disk without room is waited for, since nothing is lost by that: the log has everything.
//! A sync that fails is not: see `error.rs`.
//!
//! Left out: priorities of the kernel's I/O scheduler, which `none` and `mq-deadline` ignore.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{StoreError, is_no_space};
use super::map::{FileWriter, PAGE};

/// Largest single write.
pub(super) const WRITE: usize = 1 << 20;
/// Bytes after which a range is made durable while others use the disk, so that no sync has much
/// to do: a millisecond or so, where nodes of one machine may do it at the same time.
pub const SYNC_EVERY: u64 = 512 << 10;

/// How a long writing behaves towards others. The shell has one that watches the log's syncs
/// and knows about the shutdown; simulators and tests have [`Unpaced`].
pub trait Pace: Send + Sync + fmt::Debug {
    /// A piece was written or synced, which took so long: rest as long as is right.
    fn rest(&self, took: Duration);

    /// Bytes, whole pages, after which a range is made durable. With nobody to mind, one sync at
    /// the end is the fastest: the disk is never waited for while there is something to write.
    fn sync_every(&self) -> u64;

    /// The disk has no room: waits a while. `false`: do not try again, the node stops.
    fn wait_for_room(&self) -> bool;

    /// There is room again, or still.
    fn has_room(&self);

    /// Should work that can be left undone end?
    fn is_ending(&self) -> bool;
}

/// Who shares a pace keeps it.
macro_rules! shared {
    ($shared:ty) => {
        impl<T: Pace + ?Sized> Pace for $shared {
            fn rest(&self, took: Duration) {
                (**self).rest(took);
            }

            fn sync_every(&self) -> u64 {
                (**self).sync_every()
            }

            fn wait_for_room(&self) -> bool {
                (**self).wait_for_room()
            }

            fn has_room(&self) {
                (**self).has_room();
            }

            fn is_ending(&self) -> bool {
                (**self).is_ending()
            }
        }
    };
}

shared!(&T);
shared!(Arc<T>);

/// Writes as fast as the disk can, and does not wait for room.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unpaced;

impl Pace for Unpaced {
    fn rest(&self, _: Duration) {}

    fn sync_every(&self) -> u64 {
        u64::MAX
    }

    fn wait_for_room(&self) -> bool {
        false
    }

    fn has_room(&self) {}

    fn is_ending(&self) -> bool {
        false
    }
}

/// Another pace, but for room: work that takes space itself does not wait for it. Nobody waits
/// for that work either, so it rests several times as long.
#[derive(Debug)]
pub struct Background<'a>(pub &'a dyn Pace);

/// Rests of what nobody waits for, to those of the pace.
const LONGER: u32 = 3;

impl Pace for Background<'_> {
    fn rest(&self, took: Duration) {
        self.0.rest(took.saturating_mul(LONGER));
    }

    fn sync_every(&self) -> u64 {
        self.0.sync_every()
    }

    fn wait_for_room(&self) -> bool {
        false
    }

    fn has_room(&self) {}

    fn is_ending(&self) -> bool {
        self.0.is_ending()
    }
}

/// Does `work` until it does not fail for want of room.
fn patiently(
    pace: &impl Pace,
    mut work: impl FnMut() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    loop {
        match work() {
            Err(error) if is_no_space(&error) => {
                if !pace.wait_for_room() {
                    return Err(error);
                }
            }
            Ok(()) => {
                pace.has_room();
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Lets a file grow from one length to another, a step at a time: `grow` makes it durably so long.
///
/// # Errors
/// Those of `grow`.
pub(super) fn grow_in_steps(
    pace: &impl Pace,
    from: u64,
    to: u64,
    mut grow: impl FnMut(u64) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut len = from;
    while len < to {
        let start = Instant::now();
        len = len.saturating_add(pace.sync_every()).min(to);
        grow(len)?;
        pace.rest(start.elapsed());
    }
    Ok(())
}

/// A [`FileWriter`] that writes at a pace.
#[derive(Debug)]
pub(super) struct Paced<P> {
    pub(super) writer: FileWriter,
    pace: P,
    /// Pages written since the last sync lie in here.
    from: u64,
    end: u64,
    unsynced: u64,
}

impl<P: Pace> Paced<P> {
    pub(super) fn new(writer: FileWriter, pace: P) -> Self {
        Self { writer, pace, from: u64::MAX, end: 0, unsynced: 0 }
    }

    /// The same, at another pace.
    pub(super) fn at(self, pace: P) -> Self {
        Self { pace, ..self }
    }

    /// Makes the file at least so many pages long.
    pub(super) fn grow(&mut self, pages: u64) -> Result<(), StoreError> {
        let Self { writer, pace, .. } = self;
        let (from, to) = (writer.map().len(), pages * PAGE as u64);
        grow_in_steps(pace, from, to, |len| patiently(pace, || writer.grow(len)))
    }

    /// Writes pages of the file, a piece at a time.
    pub(super) fn write(&mut self, page: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.pieces(page, bytes, FileWriter::write)
    }

    /// Writes pages, a piece at a time, and makes the file longer by those behind its end; a gap
    /// before them becomes zeros. How long the file is is durable with [`Paced::sync_all`].
    pub(super) fn extend(&mut self, page: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut end = self.writer.map().len() / PAGE as u64;
        while end < page {
            let gap = usize::try_from(page - end).map_or(WRITE, |gap| WRITE.min(gap * PAGE));
            self.pieces(end, &vec![0; gap], FileWriter::extend)?;
            end += (gap / PAGE) as u64;
        }
        self.pieces(page, bytes, FileWriter::extend)
    }

    fn pieces(
        &mut self,
        page: u64,
        bytes: &[u8],
        write: fn(&mut FileWriter, u64, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let piece_len = usize::try_from(self.pace.sync_every()).unwrap_or(WRITE).min(WRITE);
        for (piece, bytes) in (0..).zip(bytes.chunks(piece_len)) {
            let start = Instant::now();
            let page = page + piece * (piece_len / PAGE) as u64;
            patiently(&self.pace, || write(&mut self.writer, page, bytes))?;
            self.from = self.from.min(page);
            self.end = self.end.max(page + bytes.len().div_ceil(PAGE) as u64);
            self.unsynced += bytes.len() as u64;
            let is_synced = self.unsynced >= self.pace.sync_every();
            if is_synced {
                let at = self.from * PAGE as u64;
                self.writer.sync(at, self.end * PAGE as u64 - at)?;
                (self.from, self.end, self.unsynced) = (u64::MAX, 0, 0);
            }
            if is_synced || bytes.len() >= piece_len / 2 {
                self.pace.rest(start.elapsed());
            }
        }
        Ok(())
    }

    /// Is everything durable that was written so far?
    pub(super) fn is_synced(&self) -> bool {
        self.unsynced == 0
    }

    /// Makes everything durable that was written so far, in the first `pages` pages.
    pub(super) fn sync(&mut self, pages: u64) -> Result<(), StoreError> {
        (self.from, self.end, self.unsynced) = (u64::MAX, 0, 0);
        self.writer.sync(0, pages * PAGE as u64)
    }

    /// Makes everything durable that was written so far, and how long the file is.
    pub(super) fn sync_all(&mut self) -> Result<(), StoreError> {
        (self.from, self.end, self.unsynced) = (u64::MAX, 0, 0);
        self.writer.sync_all()
    }
}
