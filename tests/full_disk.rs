//! A disk without room: a checkpoint waits for it and loses nothing, a compaction gives up at
//! once, and nobody mistakes a failed sync for it.

#![expect(clippy::unwrap_used, reason = "clippy does not see that helpers of tests are tests")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mmapd::raft::types::{Index, LogId, NodeId, Term};
use mmapd::store::disk::{FileKind, Region};
use mmapd::store::map::Memory;
use mmapd::store::simdisk::SimDisk;
use mmapd::store::{
    Db, DbOptions, Disk, Identity, Pace, Shrink, StoreError, Tree, Unpaced, is_no_space,
};

const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 1 };

/// No file may be longer than `room` says.
#[derive(Clone, Debug)]
struct Tight {
    inner: SimDisk,
    room: Arc<AtomicU64>,
}

#[derive(Debug)]
struct TightRegion {
    inner: Box<dyn Region>,
    room: Arc<AtomicU64>,
}

impl Tight {
    fn new(room: u64) -> Self {
        Self { inner: SimDisk::new(1), room: Arc::new(AtomicU64::new(room)) }
    }

    fn around(&self, inner: Box<dyn Region>) -> Box<dyn Region> {
        Box::new(TightRegion { inner, room: Arc::clone(&self.room) })
    }
}

impl Disk for Tight {
    fn create(&self, path: &Path, kind: FileKind, len: u64) -> Result<Box<dyn Region>, StoreError> {
        self.inner.create(path, kind, len).map(|inner| self.around(inner))
    }

    fn open(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        Ok(self.inner.open(path, kind, reserve)?.map(|inner| self.around(inner)))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, StoreError> {
        self.inner.list(dir)
    }

    fn make_dir(&self, dir: &Path) -> Result<(), StoreError> {
        self.inner.make_dir(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        self.inner.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), StoreError> {
        self.inner.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, StoreError> {
        self.inner.lock(path)
    }
}

impl Region for TightRegion {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    /// Writes what fits, as a file system does.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let room = self.room.load(Ordering::Relaxed).saturating_sub(offset);
        let fits = bytes.len().min(usize::try_from(room).unwrap());
        if fits > 0 {
            self.inner.write_at(offset, &bytes[..fits])?;
        }
        if fits < bytes.len() {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Err(StoreError::io("pwrite", self.name())(full));
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_at(offset, into)
    }

    fn read_disk(&self, offset: u64, into: &mut [u8]) -> Result<bool, StoreError> {
        self.inner.read_disk(offset, into)
    }

    fn sync(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.inner.sync(offset, len)
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        self.inner.sync_all()
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        self.inner.set_len(len)
    }

    fn memory(&self) -> &Arc<Memory> {
        self.inner.memory()
    }
}

/// Waits a few times, then there is room, or the node stops.
#[derive(Debug)]
struct Waiting {
    room: Arc<AtomicU64>,
    waits: AtomicU64,
    enough: u64,
    comes: bool,
    full: std::sync::atomic::AtomicBool,
}

impl Waiting {
    fn new(disk: &Tight, enough: u64, comes: bool) -> Self {
        let (room, waits) = (Arc::clone(&disk.room), AtomicU64::new(0));
        Self { room, waits, enough, comes, full: std::sync::atomic::AtomicBool::new(false) }
    }
}

impl Pace for Waiting {
    fn rest(&self, _: Duration) {}

    fn sync_every(&self) -> u64 {
        u64::MAX
    }

    fn wait_for_room(&self) -> bool {
        self.full.store(true, Ordering::Relaxed);
        let waits = self.waits.fetch_add(1, Ordering::Relaxed) + 1;
        if waits < self.enough {
            return true;
        }
        if self.comes {
            self.room.store(u64::MAX, Ordering::Relaxed);
        }
        self.comes
    }

    fn has_room(&self) {
        self.full.store(false, Ordering::Relaxed);
    }

    fn is_ending(&self) -> bool {
        false
    }
}

fn path() -> PathBuf {
    "/data/mmapd.db".into()
}

fn open(disk: Arc<dyn Disk>) -> Db {
    let options = DbOptions {
        path: path(),
        map_max: 64 << 20,
        quota: 64 << 20,
        grow_step: 256 << 10,
        shrink: Shrink::default(),
    };
    Db::open(disk, options, IDENTITY).unwrap()
}

fn fill(db: &mut Db, applied: u64, keys: u32) {
    let mut txn = db.begin();
    for key in 0..keys {
        txn.put(Tree::Kv, &key.to_le_bytes(), &[key.to_le_bytes()[0]; 900]).unwrap();
    }
    txn.state_mut().applied = LogId { term: Term(1), index: Index(applied) };
    txn.commit().unwrap();
}

fn checkpoint(db: &mut Db) {
    let job = db.begin_checkpoint().unwrap().unwrap();
    drop(db.finish_checkpoint(job.run().unwrap()).unwrap());
}

#[test]
fn a_checkpoint_waits_for_room() {
    let disk = Tight::new(1 << 20);
    let mut db = open(Arc::new(disk.clone()));
    fill(&mut db, 1, 100);
    checkpoint(&mut db);
    let before = db.size_bytes();
    fill(&mut db, 2, 4000);
    let pace = Waiting::new(&disk, 3, true);
    let job = db.begin_checkpoint().unwrap().unwrap();
    let done = job.run_paced(&pace).unwrap().expect("there was room in the end");
    drop(db.finish_checkpoint(done).unwrap());
    assert_eq!(pace.waits.load(Ordering::Relaxed), 3);
    assert!(!pace.full.load(Ordering::Relaxed), "the alarm ends");
    assert!(db.size_bytes() > before);
    db.check().unwrap();
    drop(db);
    let db = open(Arc::new(disk));
    assert_eq!(db.state().applied.index, Index(2));
    assert_eq!(db.check().unwrap().entries, 4000);
}

#[test]
fn a_checkpoint_that_gives_up_leaves_the_file_as_it_was() {
    let disk = Tight::new(1 << 20);
    let mut db = open(Arc::new(disk.clone()));
    fill(&mut db, 1, 100);
    checkpoint(&mut db);
    let before = db.size_bytes();
    fill(&mut db, 2, 4000);
    let pace = Waiting::new(&disk, 2, false);
    let job = db.begin_checkpoint().unwrap().unwrap();
    assert!(job.run_paced(&pace).unwrap().is_none());
    assert_eq!((pace.waits.load(Ordering::Relaxed), db.size_bytes()), (2, before));
    assert!(pace.full.load(Ordering::Relaxed), "the alarm stays");
    // What is applied can still be read, and applying goes on.
    fill(&mut db, 3, 4100);
    assert_eq!(db.published().snapshot().entries(Tree::Kv), 4100);
    assert_eq!(db.durable().index, Index(1));
    drop(db);
    for image in disk.inner.images(40, 5) {
        let db = open(Arc::new(image));
        assert_eq!(db.state().applied.index, Index(1));
        assert_eq!(db.check().unwrap().entries, 100);
    }
}

#[test]
fn a_failed_sync_is_not_waited_out() {
    let disk = Tight::new(u64::MAX);
    let mut db = open(Arc::new(disk.clone()));
    fill(&mut db, 1, 100);
    let job = db.begin_checkpoint().unwrap().unwrap();
    disk.inner.fail_at(disk.inner.sync_count());
    let pace = Waiting::new(&disk, 1, true);
    // The simulated disk says that it is full, as delayed allocation does.
    let error = job.run_paced(&pace).unwrap_err();
    assert!(!is_no_space(&error), "{error}");
    assert_eq!(pace.waits.load(Ordering::Relaxed), 0);
}

#[test]
fn a_compaction_without_room_changes_nothing() {
    let disk = Tight::new(u64::MAX);
    let mut db = open(Arc::new(disk.clone()));
    fill(&mut db, 1, 2000);
    checkpoint(&mut db);
    for room in [0, 4096, 100_000, 1 << 20] {
        disk.room.store(room, Ordering::Relaxed);
        let error = db.begin_compaction().run(&Unpaced).unwrap_err();
        assert!(is_no_space(&error), "{error}");
        db.check().unwrap();
    }
    disk.room.store(u64::MAX, Ordering::Relaxed);
    let copy = db.begin_compaction().run(&Unpaced).unwrap();
    drop(db.adopt(copy).unwrap());
    assert_eq!(db.check().unwrap().entries, 2000);
    fill(&mut db, 2, 2100);
    checkpoint(&mut db);
    drop(db);
    assert_eq!(open(Arc::new(disk)).check().unwrap().entries, 2100);
}
