//! Segments prepared ahead: filling a new one with zeros takes as long as writing that much,
//! and whoever waits for the log would wait for it.
//!
//! A spare is made of zeros and durable, in a file that recovery does not take for a
//! segment. Rolling the log gives it a header and a name. What an earlier process left is
//! removed at the start: nobody knows what was written to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, FileKind, grow_with_zeros};
use super::error::{StoreError, is_no_space};
use super::log::Log;
use super::map::AppendMap;
use super::pace::{Pace, grow_in_steps};
use super::segment::{SegmentHeader, path_of};

/// Spares that are kept.
const KEPT: usize = 2;
const PREFIX: &str = "spare.";

/// The spares of a log.
#[derive(Debug, Default)]
pub(super) struct Spares {
    ready: Vec<Spare>,
    /// A job is at work.
    waits: bool,
    next: u64,
}

/// A file of zeros.
#[derive(Debug)]
pub(super) struct Spare {
    path: PathBuf,
    len: u64,
}

/// Makes one spare; may run on any thread.
#[derive(Debug)]
#[must_use = "no other is asked for before it is done"]
pub struct SpareJob {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    len: u64,
}

/// A [`SpareJob`] is done.
#[derive(Debug)]
pub struct SpareDone {
    made: Option<Spare>,
}

impl SpareDone {
    /// Was there room for it? If not, ask again later.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.made.is_some()
    }
}

impl SpareJob {
    /// Writes the zeros, at a pace, and waits for the disk. Not for room: who wants the spare
    /// hears that there is none.
    ///
    /// # Errors
    /// `Io`, but for want of room.
    pub fn run(self, pace: &dyn Pace) -> Result<SpareDone, StoreError> {
        let draft = self.path.with_extension("tmp");
        let dir = super::disk::parent(&self.path);
        let region = match self.disk.create(&draft, FileKind::Log, self.len) {
            Err(error) if is_no_space(&error) => return Ok(SpareDone { made: None }),
            created => created?,
        };
        let grow = |len| grow_with_zeros(&*region, len);
        if let Err(error) = grow_in_steps(&pace, 0, self.len, grow) {
            if !is_no_space(&error) {
                return Err(error);
            }
            drop(region);
            self.disk.remove(&draft)?;
            return Ok(SpareDone { made: None });
        }
        drop(region);
        self.disk.rename(&draft, &self.path)?;
        self.disk.sync_dir(&dir)?;
        Ok(SpareDone { made: Some(Spare { path: self.path, len: self.len }) })
    }
}

impl Log {
    /// A job that prepares a segment, when one will be wanted soon: the open one is half full.
    pub fn spare_wanted(&mut self) -> Option<SpareJob> {
        let half_full = self.active.as_ref().is_some_and(|active| {
            let map = active.appender.map();
            map.written() > map.len() / 2
        });
        let spares = &mut self.spares;
        if !half_full || spares.waits || spares.ready.len() >= KEPT {
            return None;
        }
        (spares.waits, spares.next) = (true, spares.next + 1);
        // The extension is replaced by that of a draft, so the number stands before it.
        let path = self.options.dir.join(format!("{PREFIX}{}.zeros", spares.next));
        Some(SpareJob { disk: self.disk.clone(), path, len: self.options.segment_bytes })
    }

    /// The job is done.
    pub fn spare_ready(&mut self, done: SpareDone) {
        self.spares.waits = false;
        self.spares.ready.extend(done.made);
    }

    /// The file of a new segment of at least `len` bytes: a spare if one is long enough.
    pub(super) fn segment_file(
        &mut self,
        header: &SegmentHeader,
        len: u64,
    ) -> Result<AppendMap, StoreError> {
        let dir = &self.options.dir;
        let fits = self.spares.ready.iter().position(|spare| spare.len >= len);
        let Some(place) = fits else { return header.create(&*self.disk, dir, len) };
        let spare = self.spares.ready.swap_remove(place);
        adopt(&*self.disk, dir, header, &spare)
    }
}

/// Makes a spare the segment of this header.
fn adopt(
    disk: &dyn Disk,
    dir: &Path,
    header: &SegmentHeader,
    spare: &Spare,
) -> Result<AppendMap, StoreError> {
    let path = path_of(dir, header.sequence);
    let draft = path.with_extension("tmp");
    disk.rename(&spare.path, &draft)?;
    let vanished = || StoreError::Invalid {
        file: draft.display().to_string(),
        why: "a spare segment vanished; nobody else may change this directory".into(),
    };
    let region = disk.open(&draft, FileKind::Log, spare.len)?.ok_or_else(vanished)?;
    header.write(&*region)?;
    disk.rename(&draft, &path)?;
    disk.sync_dir(dir)?;
    Ok(AppendMap::sealed(region))
}

/// Is this the name of a spare?
pub(super) fn is_spare(name: &str) -> bool {
    name.starts_with(PREFIX)
}
