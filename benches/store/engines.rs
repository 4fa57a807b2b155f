//! The three engines behind one interface: mmapd's database, LMDB and redb.
//!
//! Durability is lazy in all of them, as it is in mmapd, where the log keeps what a
//! checkpoint does not have yet: LMDB runs with `NO_SYNC | WRITE_MAP`, redb commits with
//! `Durability::None`, and `sync` makes everything durable. How often that is asked for is the
//! measure's to say, and the same for all; where it is asked for now and then, mmapd does as it
//! does in the node, and makes a checkpoint whenever 64 MiB are dirty.
#![expect(unsafe_code, reason = "heed's open is unsafe: nobody else may write the file")]

use std::fmt;
use std::hint::black_box;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use heed::types::Bytes;
use heed::{CommitOrAbort, EnvFlags, EnvOpenOptions};
use mmapd::raft::types::NodeId;
use mmapd::store::disk::{LinuxDisk, Observer};
use mmapd::store::{CheckpointDone, Db, DbOptions, Identity, Shrink, StoreError, Tree};
use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition};

/// A key of the comparison.
pub(crate) type Key = [u8; 16];

/// Whose files they are, in all parts.
pub(crate) const IDENTITY: Identity = Identity { cluster: 1, node: NodeId(1), incarnation: 1 };
/// A checkpoint begins when this much is dirty (the node's own limit), and writing waits for
/// it when twice as much is dirty, being written or held by it. `BENCH_DIRTY_MIB` tries another.
fn dirty_max() -> u64 {
    let mib = std::env::var("BENCH_DIRTY_MIB").ok();
    mib.map_or(64, |mib| mib.parse().expect("BENCH_DIRTY_MIB is a number")) << 20
}
const MAP: u64 = 64 << 30;

/// What the comparison asks of an engine.
pub(crate) trait Engine {
    /// Stores all pairs in one transaction.
    fn write(&mut self, pairs: &[(Key, [u8; 256])]);
    /// Makes everything durable.
    fn sync(&mut self);
    /// Makes durable what has been written for a while, or leaves that to [`Engine::write`],
    /// once it was told to by `true`.
    fn sync_now_and_then(&mut self, wanted: bool);
    /// Reads each key in a transaction or snapshot of its own.
    fn get_each(&self, keys: &[Key]);
    /// Reads all keys in one transaction or snapshot.
    fn get_all(&self, keys: &[Key]);
    /// Walks over everything and says how many keys there were.
    fn scan(&self, reverse: bool) -> u64;
    /// The file.
    fn file(&self) -> PathBuf;
}

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Mmapd,
    Lmdb,
    Redb,
}

impl Which {
    pub(crate) const ALL: [Self; 3] = [Self::Mmapd, Self::Lmdb, Self::Redb];

    /// Opens its database in `dir`, and makes it when absent.
    pub(crate) fn open(self, dir: &Path) -> Box<dyn Engine> {
        std::fs::create_dir_all(dir).unwrap();
        match self {
            Self::Mmapd => Box::new(Mmapd::open(dir, None)),
            Self::Lmdb => Box::new(Lmdb::open(dir)),
            Self::Redb => Box::new(Redb::open(dir)),
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mmapd => "mmapd",
            Self::Lmdb => "LMDB",
            Self::Redb => "redb",
        })
    }
}

/// Our database, with checkpoints on a thread of their own as in the node.
pub(crate) struct Mmapd {
    pub(crate) db: Db,
    path: PathBuf,
    job: Option<JoinHandle<Result<CheckpointDone, StoreError>>>,
    pub(crate) checkpoints: u64,
    inline: bool,
    /// Makes checkpoints while it writes, and not only when asked to.
    bounded: bool,
    dirty_max: u64,
}

impl Mmapd {
    pub(crate) fn options(path: PathBuf) -> DbOptions {
        let shrink = Shrink::default();
        DbOptions { path, map_max: MAP, quota: 16 << 30, grow_step: 16 << 20, shrink }
    }

    pub(crate) fn open(dir: &Path, observer: Option<Arc<dyn Observer>>) -> Self {
        let path = dir.join("mmapd.db");
        let disk = Arc::new(LinuxDisk::new(observer));
        let db = Db::open(disk, Self::options(path.clone()), IDENTITY).unwrap();
        let inline = std::env::var_os("BENCH_INLINE").is_some();
        let dirty_max = dirty_max();
        Self { db, path, job: None, checkpoints: 0, inline, bounded: true, dirty_max }
    }

    /// Finishes the running checkpoint, if any.
    pub(crate) fn finish(&mut self) {
        if let Some(job) = self.job.take() {
            self.db.finish_checkpoint(job.join().unwrap().unwrap()).unwrap();
        }
    }

    fn begin(&mut self) {
        if let Some(job) = self.db.begin_checkpoint().unwrap() {
            self.checkpoints += 1;
            self.job = Some(std::thread::spawn(|| job.run()));
            if self.inline {
                self.finish();
            }
        }
    }
}

impl Engine for Mmapd {
    fn write(&mut self, pairs: &[(Key, [u8; 256])]) {
        let mut txn = self.db.begin();
        for (key, value) in pairs {
            txn.put(Tree::Kv, key, value).unwrap();
        }
        txn.commit().unwrap();
        if !self.bounded {
            return;
        }
        let dirty = self.db.dirty_bytes();
        let much = dirty + self.db.held_bytes() + self.db.writing_bytes() >= 2 * self.dirty_max;
        if much || self.job.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish();
        }
        if dirty >= self.dirty_max && self.job.is_none() {
            self.begin();
        }
    }

    fn sync(&mut self) {
        self.finish();
        self.begin();
        self.finish();
    }

    fn sync_now_and_then(&mut self, wanted: bool) {
        self.bounded = wanted;
    }

    fn get_each(&self, keys: &[Key]) {
        let published = self.db.published();
        for key in keys {
            black_box(published.snapshot().get(Tree::Kv, key).unwrap().unwrap());
        }
    }

    fn get_all(&self, keys: &[Key]) {
        let snapshot = self.db.published().snapshot();
        for key in keys {
            black_box(snapshot.get(Tree::Kv, key).unwrap().unwrap());
        }
    }

    fn scan(&self, reverse: bool) -> u64 {
        let snapshot = self.db.published().snapshot();
        let mut scan = snapshot.scan(Tree::Kv, Bound::Unbounded, Bound::Unbounded, reverse);
        let mut count = 0;
        while let Some(pair) = scan.next().unwrap() {
            black_box(pair);
            count += 1;
        }
        count
    }

    fn file(&self) -> PathBuf {
        self.path.clone()
    }
}

struct Lmdb {
    env: heed::Env,
    pairs: heed::Database<'static, Bytes, Bytes>,
}

impl Lmdb {
    fn open(dir: &Path) -> Self {
        let mut options = EnvOpenOptions::new();
        options.map_size(usize::try_from(MAP).unwrap());
        // SAFETY: the directory is this run's own, and a crash loses nothing of worth.
        let options = unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP) };
        // SAFETY: as above; each environment is opened once at a time.
        let env = unsafe { options.open(dir) }.unwrap();
        let txn = env.write_txn().unwrap();
        let pairs = env.create_databases_and_commit(txn, |opener, txn| {
            opener.create_database(txn, None).map(CommitOrAbort::<_, ()>::Commit)
        });
        let pairs = pairs.unwrap().unwrap_commit();
        Self { env, pairs }
    }
}

impl Engine for Lmdb {
    fn write(&mut self, pairs: &[(Key, [u8; 256])]) {
        let mut txn = self.env.write_txn().unwrap();
        for (key, value) in pairs {
            self.pairs.put(&mut txn, key, value).unwrap();
        }
        txn.commit().unwrap();
    }

    fn sync(&mut self) {
        self.env.force_sync().unwrap();
    }

    fn sync_now_and_then(&mut self, wanted: bool) {
        if wanted {
            self.sync();
        }
    }

    fn get_each(&self, keys: &[Key]) {
        for key in keys {
            let txn = self.env.read_txn().unwrap();
            black_box(self.pairs.get(&txn, key).unwrap().unwrap());
        }
    }

    fn get_all(&self, keys: &[Key]) {
        let txn = self.env.read_txn().unwrap();
        for key in keys {
            black_box(self.pairs.get(&txn, key).unwrap().unwrap());
        }
    }

    fn scan(&self, reverse: bool) -> u64 {
        let txn = self.env.read_txn().unwrap();
        let walked = |pair| {
            black_box::<(&[u8], &[u8])>(pair);
            1
        };
        if reverse {
            self.pairs.rev_iter(&txn).unwrap().map(|pair| walked(pair.unwrap())).sum()
        } else {
            self.pairs.iter(&txn).unwrap().map(|pair| walked(pair.unwrap())).sum()
        }
    }

    fn file(&self) -> PathBuf {
        self.env.path().join("data.mdb")
    }
}

const PAIRS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("pairs");

struct Redb {
    db: redb::Database,
    path: PathBuf,
}

impl Redb {
    fn open(dir: &Path) -> Self {
        let path = dir.join("redb");
        Self { db: redb::Database::create(&path).unwrap(), path }
    }

    fn commit(&self, durability: Durability, pairs: &[(Key, [u8; 256])]) {
        let mut txn = self.db.begin_write().unwrap();
        txn.set_durability(durability).unwrap();
        let mut table = txn.open_table(PAIRS).unwrap();
        for (key, value) in pairs {
            table.insert(key.as_slice(), value.as_slice()).unwrap();
        }
        drop(table);
        txn.commit().unwrap();
    }
}

impl Engine for Redb {
    fn write(&mut self, pairs: &[(Key, [u8; 256])]) {
        self.commit(Durability::None, pairs);
    }

    fn sync(&mut self) {
        self.commit(Durability::Immediate, &[]);
    }

    fn sync_now_and_then(&mut self, wanted: bool) {
        if wanted {
            self.sync();
        }
    }

    fn get_each(&self, keys: &[Key]) {
        for key in keys {
            let table = self.db.begin_read().unwrap().open_table(PAIRS).unwrap();
            black_box(table.get(key.as_slice()).unwrap().unwrap().value());
        }
    }

    fn get_all(&self, keys: &[Key]) {
        let table = self.db.begin_read().unwrap().open_table(PAIRS).unwrap();
        for key in keys {
            black_box(table.get(key.as_slice()).unwrap().unwrap().value());
        }
    }

    fn scan(&self, reverse: bool) -> u64 {
        let table = self.db.begin_read().unwrap().open_table(PAIRS).unwrap();
        let walked =
            |(key, value): (redb::AccessGuard<'_, &[u8]>, redb::AccessGuard<'_, &[u8]>)| {
                black_box((key.value(), value.value()));
                1
            };
        let all = table.iter().unwrap();
        if reverse {
            all.rev().map(|pair| walked(pair.unwrap())).sum()
        } else {
            all.map(|pair| walked(pair.unwrap())).sum()
        }
    }

    fn file(&self) -> PathBuf {
        self.path.clone()
    }
}
