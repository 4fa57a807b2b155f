//! A disk that cannot write: for looking at the files of a node that does not run.
//!
//! Files are opened without the right to write, so not even a bug of ours changes a byte,
//! and every operation that would is an error. Syncs do nothing: nothing was written that
//! could be made durable. The database opens over it as over any disk, since its changes
//! are on the heap until a checkpoint.
//!
//! The one thing it may make is a lock file where there is none yet, empty, so that a daemon
//! that starts meanwhile is refused; where even that is not allowed it goes on without.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::disk::{Disk, FileKind, LinuxDisk, Region};
use super::error::StoreError;
use super::map::Memory;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnlyDisk;

#[derive(Debug)]
struct ReadOnlyRegion {
    name: String,
    file: File,
    len: u64,
    memory: Arc<Memory>,
}

fn refused(action: &'static str, file: &str) -> StoreError {
    let why = "the files were opened to be looked at, not to be changed";
    StoreError::io(action, file)(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl Disk for ReadOnlyDisk {
    fn create(&self, path: &Path, _: FileKind, _: u64) -> Result<Box<dyn Region>, StoreError> {
        Err(refused("create", &shown(path)))
    }

    fn open(
        &self,
        path: &Path,
        _: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        let name = shown(path);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", name)(error)),
        };
        let about = file.metadata().map_err(StoreError::io("stat", &name))?;
        if !about.is_file() {
            let why = "is not a plain file".to_owned();
            return Err(StoreError::Invalid { file: name, why });
        }
        let len = about.len();
        // What the disk holds is asked for, not what the cache does.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|errno| StoreError::io("fadvise", &name)(errno.into()))?;
        let memory = Memory::of_file(&file, reserve.max(len).max(4096), &name);
        let memory = Arc::new(memory.map_err(StoreError::io("mmap", &name))?);
        Ok(Some(Box::new(ReadOnlyRegion { name, file, len, memory })))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, StoreError> {
        LinuxDisk::new(None).list(dir)
    }

    fn make_dir(&self, dir: &Path) -> Result<(), StoreError> {
        if dir.is_dir() { Ok(()) } else { Err(refused("mkdir", &shown(dir))) }
    }

    fn free_bytes(&self, _: &Path) -> Option<u64> {
        None
    }

    fn rename(&self, from: &Path, _: &Path) -> Result<(), StoreError> {
        Err(refused("rename", &shown(from)))
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        Err(refused("unlink", &shown(path)))
    }

    fn sync_dir(&self, _: &Path) -> Result<(), StoreError> {
        Ok(())
    }

    /// The lock of the daemon, whose file is left as it is.
    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, StoreError> {
        let name = shown(path);
        let found = File::open(path).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
        });
        let file = match found {
            Ok(file) => file,
            // No daemon can have it: there is no file, and none can be made. Or nobody but
            // its owner may look, and then the data cannot be read either.
            Err(_) => return Ok(Box::new(())),
        };
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(fs::TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(path).unwrap_or_default().trim().to_owned();
                Err(StoreError::Locked { file: name, holder })
            }
            Err(fs::TryLockError::Error(error)) => Err(StoreError::io("flock", name)(error)),
        }
    }
}

impl Region for ReadOnlyRegion {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), StoreError> {
        Err(refused("pwrite", &self.name))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact_at(into, offset).map_err(StoreError::io("pread", &self.name))
    }

    fn read_disk(&self, offset: u64, into: &mut [u8]) -> Result<bool, StoreError> {
        self.read_at(offset, into).map(|()| false)
    }

    fn sync(&self, _: u64, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> Result<(), StoreError> {
        Err(refused("ftruncate", &self.name))
    }

    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_be_changed_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, b"as it was").unwrap();
        let disk = ReadOnlyDisk;
        let region = disk.open(&path, FileKind::Db, 0).unwrap().unwrap();
        let refused = [
            region.write_at(0, b"x"),
            region.set_len(0),
            disk.remove(&path),
            disk.rename(&path, &dir.path().join("other")),
            disk.make_dir(&dir.path().join("new")),
            disk.create(&dir.path().join("new"), FileKind::Db, 1).map(drop),
        ];
        for (which, result) in refused.iter().enumerate() {
            assert!(matches!(result, Err(StoreError::Io { .. })), "operation {which}: {result:?}");
        }
        let mut bytes = [0; 9];
        region.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"as it was");
        assert_eq!(disk.list(dir.path()).unwrap(), ["file"]);
    }

    #[test]
    fn it_takes_the_lock_of_the_daemon_and_leaves_the_file_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let daemon = LinuxDisk::new(None).lock(&path).unwrap();
        let Err(StoreError::Locked { holder, .. }) = ReadOnlyDisk.lock(&path).map(drop) else {
            panic!("the daemon has it");
        };
        assert_eq!(holder, format!("pid {}", std::process::id()));
        drop(daemon);
        let before = fs::read(&path).unwrap();
        let ours = ReadOnlyDisk.lock(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), before);
        assert!(matches!(LinuxDisk::new(None).lock(&path), Err(StoreError::Locked { .. })));
        drop(ours);
        assert!(LinuxDisk::new(None).lock(&path).is_ok());
    }
}
