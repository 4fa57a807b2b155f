//! Files as the store needs them: written by offset, read through a map, made durable
//! by range. Two implementations: [`LinuxDisk`] here, and [`super::simdisk::SimDisk`], which
//! keeps everything in memory and can lose, tear and refuse what was not synced.
//!
//! The rules that both keep (storage paper, finding 2): bytes enter by
//! [`Region::write_at`] only, are readable in [`Region::memory`] when it returns, and are
//! durable when [`Region::sync`] over them has returned. The memory is mapped once, for
//! the largest size the file may reach, and never moves.
//!
//! Left out on purpose: retries. An operation that failed is reported and ends the process.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::error::{StoreError, is_no_space};
use super::map::Memory;

/// What a file is for; the label of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A segment of the log, or the hard state beside it.
    Log,
    /// The database, or one that is being received.
    Db,
}

/// Where files live.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Makes a new, empty file with `reserve` bytes of address space.
    ///
    /// # Errors
    /// `Io`, also when the file exists.
    fn create(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Box<dyn Region>, StoreError>;

    /// Opens a file, with at least `reserve` bytes of address space; `None`: there is none.
    /// What the page cache holds of it is read from the disk again.
    ///
    /// # Errors
    /// `Io`.
    fn open(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError>;

    /// As [`Disk::open`], but what the page cache holds is kept: for a file of which nothing is
    /// believed before it is proven that a sync of it succeeded. After that the cache has what
    /// the disk has, and reading hundreds of megabytes again would be all that a start does.
    ///
    /// # Errors
    /// `Io`.
    fn open_proven(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        self.open(path, kind, reserve)
    }

    /// Names of the files in `dir`, sorted; none when it does not exist.
    ///
    /// # Errors
    /// `Io`.
    fn list(&self, dir: &Path) -> Result<Vec<String>, StoreError>;

    /// Makes `dir` and its parents, durably, readable by the owner alone.
    ///
    /// # Errors
    /// `Io`, or `Invalid` when something else has that name.
    fn make_dir(&self, dir: &Path) -> Result<(), StoreError>;

    /// Renames a file, over an existing one, also into another directory on the same file
    /// system. Durable after [`Disk::sync_dir`] of both, the new one first: after the other
    /// order a crash could leave neither name.
    ///
    /// # Errors
    /// `Io`.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError>;

    /// Removes a file; maps of it stay valid. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// `Io`.
    fn remove(&self, path: &Path) -> Result<(), StoreError>;

    /// Makes created, renamed and removed names in `dir` durable.
    ///
    /// # Errors
    /// `Io`.
    fn sync_dir(&self, dir: &Path) -> Result<(), StoreError>;

    /// Bytes that may still be written into the file system of `dir`; `None`: nobody knows.
    fn free_bytes(&self, _dir: &Path) -> Option<u64> {
        None
    }

    /// Takes the exclusive lock `path`, until the guard is dropped.
    ///
    /// # Errors
    /// `Locked` when another process has it.
    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, StoreError>;
}

/// One open file.
pub trait Region: Send + Sync + fmt::Debug {
    /// File name, for messages.
    fn name(&self) -> &str;

    /// Length in bytes.
    fn len(&self) -> u64;

    /// Is it empty?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes all of `bytes` at `offset`, growing the file when it ends beyond it.
    ///
    /// # Errors
    /// `Io`; then the process must end.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError>;

    /// Copies bytes out of the file, not out of the map.
    ///
    /// # Errors
    /// `Io`, also at the end of the file.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError>;

    /// Copies bytes as the disk holds them, past the page cache. `false`: the file system
    /// cannot do that, and they may be the cache's.
    ///
    /// # Errors
    /// `Io`, also at the end of the file.
    fn read_disk(&self, offset: u64, into: &mut [u8]) -> Result<bool, StoreError>;

    /// Makes the written bytes of a range durable: one `msync`.
    ///
    /// # Errors
    /// `Io`; then the process must end, and nothing written here may be believed.
    fn sync(&self, offset: u64, len: u64) -> Result<(), StoreError>;

    /// Makes the whole file and its length durable: needed after it grew.
    ///
    /// # Errors
    /// As for `sync`.
    fn sync_all(&self) -> Result<(), StoreError>;

    /// Cuts the file, or grows it by a hole.
    ///
    /// # Errors
    /// `Io`.
    fn set_len(&self, len: u64) -> Result<(), StoreError>;

    /// The map of the file.
    fn memory(&self) -> &Arc<Memory>;
}

/// Grows `region` to `len` by writing zeros and making them durable, so that later
/// syncs of this range never wait for the file system's own records.
///
/// # Errors
/// `Io`.
pub fn grow_with_zeros(region: &dyn Region, len: u64) -> Result<(), StoreError> {
    const CHUNK: u64 = 1 << 20;
    let mut at = region.len();
    let zeros = vec![0; usize::try_from(len.saturating_sub(at).min(CHUNK)).expect("it is small")];
    while at < len {
        let step = usize::try_from(len - at).map_or(zeros.len(), |left| left.min(zeros.len()));
        region.write_at(at, &zeros[..step])?;
        at += step as u64;
    }
    region.sync_all()
}

/// `written`, which made `region` longer than `old`; for want of room it is as long as then.
///
/// # Errors
/// That of `written`; `Io`.
pub fn or_as_long_as(
    region: &dyn Region,
    old: u64,
    written: Result<(), StoreError>,
) -> Result<(), StoreError> {
    if written.as_ref().is_err_and(is_no_space) {
        region.set_len(old)?;
    }
    written
}

/// Hears of every sync and every map; `metrics.rs` listens.
pub trait Observer: Send + Sync + fmt::Debug {
    /// A range was made durable.
    fn synced(&self, kind: FileKind, bytes: u64, took: Duration);
    /// A sync failed; the process is about to end.
    fn sync_failed(&self, kind: FileKind);
    /// A file was mapped with this much address space.
    fn mapped(&self, kind: FileKind, bytes: u64);
    /// A map was released.
    fn unmapped(&self, kind: FileKind, bytes: u64);
}

/// The file system of this machine.
#[derive(Clone, Debug)]
pub struct LinuxDisk {
    observer: Option<Arc<dyn Observer>>,
}

impl LinuxDisk {
    /// A disk that tells `observer` what it does.
    #[must_use]
    pub fn new(observer: Option<Arc<dyn Observer>>) -> Self {
        Self { observer }
    }

    fn region(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
        file: File,
    ) -> Result<Box<dyn Region>, StoreError> {
        let name = path.display().to_string();
        let len = file.metadata().map_err(StoreError::io("stat", &name))?.len();
        let reserve = reserve.max(len).max(4096);
        let memory =
            Memory::of_file(&file, reserve, &name).map_err(StoreError::io("mmap", &name))?;
        if let Some(observer) = &self.observer {
            observer.mapped(kind, reserve);
        }
        Ok(Box::new(LinuxRegion {
            name,
            kind,
            file,
            len: AtomicU64::new(len),
            memory: Arc::new(memory),
            reserve,
            direct: OnceLock::new(),
            observer: self.observer.clone(),
        }))
    }
}

fn open_file(path: &Path) -> Result<Option<File>, StoreError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("open", path.display().to_string())(error)),
    }
}

impl Disk for LinuxDisk {
    fn create(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Box<dyn Region>, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::io("create", path.display().to_string()))?;
        self.region(path, kind, reserve, file)
    }

    fn open(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        let Some(file) = open_file(path)? else { return Ok(None) };
        // Clean pages that a failed sync of an earlier process left behind would be
        // believed otherwise (storage paper, 2.3).
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|errno| StoreError::io("fadvise", path.display().to_string())(errno.into()))?;
        self.region(path, kind, reserve, file).map(Some)
    }

    fn open_proven(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        let file = open_file(path)?;
        file.map(|file| self.region(path, kind, reserve, file)).transpose()
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, StoreError> {
        let failed = || StoreError::io("list", dir.display().to_string());
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed()(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(failed())?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn make_dir(&self, dir: &Path) -> Result<(), StoreError> {
        let above = parent(dir);
        if dir.is_dir() || dir.as_os_str().is_empty() {
            // A process that was killed may have left its name in the cache alone. A directory
            // above that we may not even read was not made by us.
            return if File::open(&above).is_ok() { self.sync_dir(&above) } else { Ok(()) };
        }
        if dir.exists() {
            return Err(StoreError::Invalid {
                file: dir.display().to_string(),
                why: "is a file, and a directory is wanted here; move it away or name another path"
                    .into(),
            });
        }
        if !above.is_dir() {
            self.make_dir(&above)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            // Another process made it meanwhile; the lock decides who uses it.
            Err(_) if dir.is_dir() => {}
            made => made.map_err(StoreError::io("mkdir", dir.display().to_string()))?,
        }
        self.sync_dir(&above)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        fs::rename(from, to).map_err(StoreError::io("rename", from.display().to_string()))
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        fs::remove_file(path).map_err(StoreError::io("unlink", path.display().to_string()))
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), StoreError> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(StoreError::io("fsync", dir.display().to_string()))
    }

    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let found = rustix::fs::statvfs(dir).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, StoreError> {
        let name = path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::io("open", &name))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(path).unwrap_or_default().trim().to_owned();
                return Err(StoreError::Locked { file: name, holder });
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(StoreError::io("flock", name)(error));
            }
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "pid {}", std::process::id()))
            .map_err(StoreError::io("write", name))?;
        Ok(Box::new(file))
    }
}

/// The directory of a path, `.` for a bare name.
#[must_use]
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[derive(Debug)]
struct LinuxRegion {
    name: String,
    kind: FileKind,
    file: File,
    len: AtomicU64,
    memory: Arc<Memory>,
    reserve: u64,
    observer: Option<Arc<dyn Observer>>,
    /// The same file, opened past the cache when first asked for; `None`: refused.
    direct: OnceLock<Option<File>>,
}

/// What reads past the cache must be aligned to, in memory and in the file.
const SECTORS: usize = 4096;

/// Opens the file of `file` once more, past the cache. By number and not by name: it may have
/// been renamed or removed since. `None`: the file system refuses.
fn open_direct(file: &File) -> Option<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}

/// Reads whole sectors around the range; `None`: the file system refuses after all.
fn read_sectors(file: &File, offset: u64, into: &mut [u8]) -> std::io::Result<Option<()>> {
    let ahead = usize::try_from(offset % SECTORS as u64).map_err(std::io::Error::other)?;
    let wanted = ahead + into.len();
    let len = wanted.next_multiple_of(SECTORS);
    let mut room = vec![0; len + SECTORS];
    let start = room.as_ptr().align_offset(SECTORS);
    let Some(buffer) = room.get_mut(start..start.saturating_add(len)) else { return Ok(None) };
    let from = offset - ahead as u64;
    let mut have = 0;
    while have < wanted {
        let Some(rest) = buffer.get_mut(have..) else { break };
        match file.read_at(rest, from + have as u64) {
            // A part of a sector is the end of the file.
            Ok(got) if got == 0 || got % SECTORS != 0 => {
                have += got;
                break;
            }
            Ok(got) => have += got,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let found = buffer.get(ahead..wanted).filter(|_| have >= wanted);
    into.copy_from_slice(found.ok_or(std::io::ErrorKind::UnexpectedEof)?);
    Ok(Some(()))
}

impl LinuxRegion {
    fn measured(
        &self,
        bytes: u64,
        sync: impl FnOnce() -> std::io::Result<()>,
    ) -> Result<(), StoreError> {
        let start = Instant::now();
        if let Err(error) = sync() {
            if let Some(observer) = &self.observer {
                observer.sync_failed(self.kind);
            }
            return Err(StoreError::io("msync", &self.name)(error));
        }
        if let Some(observer) = &self.observer {
            observer.synced(self.kind, bytes, start.elapsed());
        }
        Ok(())
    }
}

impl Drop for LinuxRegion {
    fn drop(&mut self) {
        if let Some(observer) = &self.observer {
            observer.unmapped(self.kind, self.reserve);
        }
    }
}

/// Bytes of the folios that a growing file gets in the page cache.
const FOLIO: u64 = 16 << 10;

/// How many of `len` bytes to write at once, at `at` into a file with this end.
///
/// What is behind the end goes into new folios, which the kernel makes as long as the write.
/// Whoever writes a page later, or has one written out, looks at every block of its folio: with
/// the long folios of long writes a page costs ten times as much as with short ones.
fn piece(at: u64, len: usize, end: u64) -> usize {
    let old = end.saturating_sub(at);
    let most = if old > 0 { old } else { FOLIO - at % FOLIO };
    usize::try_from(most).map_or(len, |most| most.min(len))
}

impl Region for LinuxRegion {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let (mut at, mut left) = (offset, bytes);
        while !left.is_empty() {
            let (piece, others) = left.split_at(piece(at, left.len(), self.len()));
            self.file.write_all_at(piece, at).map_err(StoreError::io("pwrite", &self.name))?;
            at += piece.len() as u64;
            left = others;
        }
        self.len.fetch_max(at, Ordering::AcqRel);
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact_at(into, offset).map_err(StoreError::io("pread", &self.name))
    }

    fn read_disk(&self, offset: u64, into: &mut [u8]) -> Result<bool, StoreError> {
        if let Some(direct) = self.direct.get_or_init(|| open_direct(&self.file)) {
            let read = read_sectors(direct, offset, into);
            if read.map_err(StoreError::io("direct read", &self.name))?.is_some() {
                return Ok(true);
            }
        }
        // The next best: ask the cache to forget the range, which it does for clean pages
        // that nobody has mapped.
        let len = std::num::NonZeroU64::new(into.len() as u64);
        rustix::fs::fadvise(&self.file, offset, len, rustix::fs::Advice::DontNeed)
            .map_err(|errno| StoreError::io("fadvise", &self.name)(errno.into()))?;
        self.read_at(offset, into).map(|()| false)
    }

    fn sync(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.measured(len, || self.memory.flush(offset, len))
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        // The length is not the map's business, so this one is an fsync of the file.
        let len = self.len();
        self.measured(len, || self.file.sync_all())
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        self.file.set_len(len).map_err(StoreError::io("ftruncate", &self.name))?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_a_file_longer_is_written_a_folio_at_a_time() {
        assert_eq!(piece(0, 1 << 20, 0), 16 << 10);
        assert_eq!(piece(100, 1 << 20, 100), (16 << 10) - 100, "up to the next folio");
        assert_eq!(piece(8192, 1 << 20, 12_288), 4096, "up to the end");
        assert_eq!(piece(12_288, 1 << 20, 12_288), 4096, "and then to the next folio");
        assert_eq!(piece(0, 1 << 20, 4 << 20), 1 << 20, "what is there has its folios");
        assert_eq!(piece(1 << 20, 300, 0), 300);
    }
}
