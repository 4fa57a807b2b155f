//! The database against a `BTreeMap`: whatever is put, deleted, scanned, held in a
//! snapshot, written by a checkpoint and opened again must be what the map says, and the
//! allocator must account for every page after each step.

#![expect(clippy::unwrap_used, reason = "clippy does not see that helpers of tests are tests")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use mmapd::raft::types::{Index, LogId, NodeId, Term};
use mmapd::store::compact::CompactJob;
use mmapd::store::db::{
    CheckpointDone, CheckpointJob, Db, DbOptions, KEY_MAX, Snapshot, Tree, VALUE_MAX,
};
use mmapd::store::disk::{Disk, LinuxDisk};
use mmapd::store::simdisk::SimDisk;
use mmapd::store::snapshot::Receiver;
use mmapd::store::{Identity, Shrink, StoreError, Unpaced};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 1 };

/// A small generator, so that a failure is one seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap()
    }

    fn key(&mut self) -> Vec<u8> {
        let n = match self.below(4) {
            0 => self.below(16),
            1 => self.below(200),
            _ => self.below(3000),
        };
        match n % 13 {
            // Long keys: equal in the part that stays in the cell.
            0 => {
                let len = [513, 700, 2000, 4096][self.index(4)];
                let mut key = vec![b'k'; len];
                key[len - 8..].copy_from_slice(&(n % 64).to_le_bytes());
                key
            }
            1 => {
                let mut key = format!("{n:05}/").into_bytes();
                key.resize(500, b'm');
                key
            }
            _ => format!("key/{n:06}").into_bytes(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.below(60) {
            0 => self.index(60_000),
            1..4 => 900 + self.index(300),
            4..7 => 4090 + self.index(12),
            7 => 0,
            _ => self.index(200),
        };
        let byte = self.next().to_le_bytes()[0];
        vec![byte; len]
    }
}

fn options(path: &Path) -> DbOptions {
    DbOptions {
        path: path.to_owned(),
        map_max: 64 << 20,
        quota: 32 << 20,
        grow_step: 1 << 15,
        shrink: Shrink { least: 0, part: 8 },
    }
}

fn same(snapshot: &Snapshot, model: &Model) {
    assert_eq!(snapshot.entries(Tree::Kv), model.len() as u64);
    let mut scan = snapshot.scan(Tree::Kv, Bound::Unbounded, Bound::Unbounded, false);
    for (key, value) in model {
        assert_eq!(scan.next().unwrap(), Some((key.as_slice(), value.as_slice())));
    }
    assert_eq!(scan.next().unwrap(), None);
    assert_eq!(scan.next().unwrap(), None);
}

fn bound(rng: &mut Rng) -> Bound<Vec<u8>> {
    match rng.below(3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(rng.key()),
        _ => Bound::Excluded(rng.key()),
    }
}

fn compare_range(rng: &mut Rng, snapshot: &Snapshot, model: &Model) {
    let (low, high) = (bound(rng), bound(rng));
    let (low, high) = (low.as_ref().map(Vec::as_slice), high.as_ref().map(Vec::as_slice));
    let below = |key: &[u8]| match low {
        Bound::Unbounded => false,
        Bound::Included(low) => key < low,
        Bound::Excluded(low) => key <= low,
    };
    let above = |key: &[u8]| match high {
        Bound::Unbounded => false,
        Bound::Included(high) => key > high,
        Bound::Excluded(high) => key >= high,
    };
    let mut wanted: Vec<_> = model.iter().filter(|(key, _)| !below(key) && !above(key)).collect();
    let reverse = rng.below(2) == 0;
    if reverse {
        wanted.reverse();
    }
    let mut scan = snapshot.scan(Tree::Kv, low, high, reverse);
    for (key, value) in wanted {
        assert_eq!(scan.next().unwrap(), Some((key.as_slice(), value.as_slice())));
    }
    assert_eq!(scan.next().unwrap(), None);
}

/// A database and what it should hold.
struct Pair {
    db: Db,
    model: Model,
    durable: Model,
    held: Vec<(Arc<Snapshot>, Model)>,
    writing: Option<(CheckpointJob, Model)>,
    /// A compaction, the model at its start, and what was changed since.
    compacting: Option<(CompactJob, Model, Vec<Changes>)>,
    applied: u64,
    cuts: u64,
    compactions: u64,
}

/// Keys with their new values, of one batch.
#[derive(Default)]
struct Changes {
    applied: u64,
    keys: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Pair {
    fn new(db: Db) -> Self {
        let (model, durable) = (Model::new(), Model::new());
        let (held, writing, compacting) = (Vec::new(), None, None);
        Self { db, model, durable, held, writing, compacting, applied: 0, cuts: 0, compactions: 0 }
    }

    fn batch(&mut self, rng: &mut Rng, deletes: u64) {
        let mut txn = self.db.begin();
        let mut model = self.model.clone();
        let mut changes = Changes::default();
        for _ in 0..rng.below(60) {
            let key = rng.key();
            if rng.below(100) < deletes {
                // Half of the deletes hit.
                let key = if rng.below(2) == 0 {
                    model.range(key.clone()..).next().map_or(key, |(key, _)| key.clone())
                } else {
                    key
                };
                assert_eq!(txn.delete(Tree::Kv, &key).unwrap(), model.remove(&key).is_some());
                changes.keys.push((key, None));
            } else {
                let value = rng.value();
                txn.put(Tree::Kv, &key, &value).unwrap();
                changes.keys.push((key.clone(), Some(value.clone())));
                model.insert(key.clone(), value);
            }
            let key = rng.key();
            assert_eq!(txn.get(Tree::Kv, &key).unwrap(), model.get(&key).cloned());
        }
        if rng.below(10) == 0 {
            return; // rolled back
        }
        self.applied += 1;
        txn.state_mut().applied = LogId { term: Term(1), index: Index(self.applied) };
        let snapshot = txn.commit().unwrap();
        self.model = model;
        if let Some((_, _, since)) = &mut self.compacting {
            changes.applied = self.applied;
            since.push(changes);
        }
        if rng.below(4) == 0 {
            self.held.push((snapshot, self.model.clone()));
        }
    }

    fn checkpoint(&mut self) {
        match self.writing.take() {
            Some((job, model)) => {
                let size = self.db.size_bytes();
                self.db.finish_checkpoint(job.run().unwrap()).unwrap();
                self.cuts += u64::from(self.db.size_bytes() < size);
                self.durable = model;
            }
            None => {
                let job = self.db.begin_checkpoint().unwrap();
                self.writing = job.map(|job| (job, self.model.clone()));
            }
        }
    }

    /// Begins a compaction, or ends one: the copy catches up and takes the place of the file.
    fn compact(&mut self) {
        let Some((job, model, since)) = self.compacting.take() else {
            self.compacting = Some((self.db.begin_compaction(), self.model.clone(), Vec::new()));
            return;
        };
        let mut copy = job.run(&Unpaced).unwrap();
        same(&copy.published().snapshot(), &model);
        let checked = copy.check().unwrap();
        assert_eq!(checked.entries, model.len() as u64);
        for Changes { applied, keys } in since {
            let mut txn = copy.begin();
            for (key, value) in keys {
                match value {
                    Some(value) => txn.put(Tree::Kv, &key, &value).unwrap(),
                    None => drop(txn.delete(Tree::Kv, &key).unwrap()),
                }
            }
            txn.state_mut().applied = LogId { term: Term(1), index: Index(applied) };
            txn.commit().unwrap();
        }
        let published = self.db.published();
        drop(self.db.adopt(copy).unwrap());
        same(&published.snapshot(), &self.model);
        self.durable = model;
        if let Some((job, _)) = self.writing.take() {
            // Of the file that is gone: it must change nothing.
            let durable = self.db.durable();
            self.db.finish_checkpoint(job.run().unwrap()).unwrap();
            assert_eq!(self.db.durable(), durable);
        }
        self.compactions += 1;
    }

    fn step(&mut self, rng: &mut Rng, deletes: u64) {
        match rng.below(13) {
            0..6 => self.batch(rng, deletes),
            6 | 7 => self.checkpoint(),
            12 => self.compact(),
            8 => compare_range(rng, &self.db.published().snapshot(), &self.model),
            9 if !self.held.is_empty() => {
                let (snapshot, model) = self.held.swap_remove(rng.index(self.held.len()));
                same(&snapshot, &model);
            }
            _ => {
                let snapshot = self.db.published().snapshot();
                let key = rng.key();
                let wanted = self.model.get(&key).map(Vec::as_slice);
                assert_eq!(snapshot.get(Tree::Kv, &key).unwrap(), wanted);
            }
        }
        assert_eq!(self.db.check().unwrap().entries, self.model.len() as u64);
    }
}

/// How often the file was cut, and how often compacted.
fn run(disk: &Arc<dyn Disk>, path: &Path, seed: u64, steps: u32) -> (u64, u64) {
    let mut rng = Rng(seed);
    let open = || Db::open(Arc::clone(disk), options(path), IDENTITY).unwrap();
    let mut pair = Pair::new(open());
    for step in 0..steps {
        let deletes = if step / 40 % 3 == 2 { 90 } else { 20 };
        pair.step(&mut rng, deletes);
        if rng.below(40) == 0 {
            // Everything that is not in a durable checkpoint is gone.
            for (snapshot, model) in pair.held.drain(..) {
                same(&snapshot, &model);
            }
            let durable = pair.durable;
            let (cuts, compactions) = (pair.cuts, pair.compactions);
            drop((pair.db, pair.writing, pair.compacting));
            let db = open();
            let applied = db.state().applied.index.0;
            let model = durable.clone();
            pair = Pair { model, durable, applied, cuts, compactions, ..Pair::new(db) };
            same(&pair.db.published().snapshot(), &pair.model);
            pair.db.check().unwrap();
        }
    }
    same(&pair.db.published().snapshot(), &pair.model);
    // Down to nothing: every page must come back.
    let mut txn = pair.db.begin();
    for key in pair.model.keys() {
        assert!(txn.delete(Tree::Kv, key).unwrap());
    }
    txn.commit().unwrap();
    let checked = pair.db.check().unwrap();
    assert_eq!((checked.entries, checked.tree_pages, checked.run_pages), (0, 0, 0));
    // What pins pages.
    (pair.compacting, pair.held) = (None, Vec::new());
    if pair.writing.is_some() {
        pair.checkpoint();
    }
    for _ in 0..8 {
        pair.applied += 1;
        let mut txn = pair.db.begin();
        txn.state_mut().applied = LogId { term: Term(1), index: Index(pair.applied) };
        txn.commit().unwrap();
        pair.checkpoint();
        pair.checkpoint();
    }
    let size = pair.db.size_bytes();
    assert!(size <= 32 * 4096, "{size} bytes for nothing");
    (pair.cuts, pair.compactions)
}

#[test]
fn linux_files_agree_with_the_model() {
    let mut total = (0, 0);
    for seed in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
        let (cuts, compactions) = run(&disk, &dir.path().join("mmapd.db"), seed, 250);
        total = (total.0 + cuts, total.1 + compactions);
    }
    assert!(total.0 > 5 && total.1 > 50, "{total:?} cuts and compactions");
}

#[test]
fn simulated_files_agree_with_the_model() {
    for seed in 100..108 {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(seed));
        disk.make_dir(Path::new("/data")).unwrap();
        run(&disk, Path::new("/data/mmapd.db"), seed, 200);
    }
}

/// A value as long as they get, and keys as long as they get in every page of a branch.
#[test]
fn the_longest_keys_and_values_fit() {
    let dir = tempfile::tempdir().unwrap();
    let options = DbOptions {
        map_max: 1 << 30,
        quota: 200 << 20,
        grow_step: 1 << 20,
        shrink: Shrink::default(),
        path: dir.path().join("mmapd.db"),
    };
    let mut db = Db::open(Arc::new(LinuxDisk::new(None)), options, IDENTITY).unwrap();
    let mut model = Model::new();
    let mut txn = db.begin();
    for n in 0..500_u16 {
        let mut key = vec![b'k'; KEY_MAX];
        key[KEY_MAX - 2..].copy_from_slice(&n.to_le_bytes());
        txn.put(Tree::Kv, &key, &n.to_le_bytes()).unwrap();
        model.insert(key, n.to_le_bytes().to_vec());
    }
    let value: Vec<u8> = (0..VALUE_MAX).map(|at| at.to_le_bytes()[1]).collect();
    txn.put(Tree::Kv, b"big", &value).unwrap();
    model.insert(b"big".to_vec(), value);
    same(&txn.commit().unwrap(), &model);
    db.check().unwrap();
    let job = db.begin_checkpoint().unwrap().unwrap();
    db.finish_checkpoint(job.run().unwrap()).unwrap();
    same(&db.published().snapshot(), &model);
    let mut txn = db.begin();
    for key in model.keys() {
        assert!(txn.delete(Tree::Kv, key).unwrap());
    }
    txn.commit().unwrap();
    assert_eq!(db.check().unwrap().run_pages, 0);
}

/// Keys that come in order leave full pages, and keys that go in order leave empty ones beside
/// them: these must not stay because the full page had no room for a separator.
#[test]
fn what_came_in_order_goes_in_order() {
    for len in [8, 40, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600] {
        for down in [false, true] {
            let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
            let mut db = Db::open(disk, options(Path::new("/d/db")), IDENTITY).unwrap();
            let key = |n: usize| [vec![b'k'; len], format!("{n:05}").into_bytes()].concat();
            let mut order: Vec<usize> = (0..1500).collect();
            let mut txn = db.begin();
            for &n in &order {
                txn.put(Tree::Kv, &key(n), &[b'v'; 700]).unwrap();
            }
            txn.commit().unwrap();
            if down {
                order.reverse();
            }
            let mut txn = db.begin();
            for (done, &n) in order.iter().enumerate() {
                assert!(txn.delete(Tree::Kv, &key(n)).unwrap(), "{n} of length {len}");
                if let Some(next) = order.get(done + 1) {
                    let found = txn.get(Tree::Kv, &key(*next)).unwrap();
                    assert!(found == Some(vec![b'v'; 700]), "after {n} of length {len}");
                }
            }
            let snapshot = txn.commit().unwrap();
            same(&snapshot, &Model::new());
            assert_eq!(db.check().unwrap().run_pages, 0);
        }
    }
}

#[test]
fn a_full_database_refuses_puts_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&dir.path().join("mmapd.db"));
    options.quota = 1 << 20;
    let mut db = Db::open(Arc::new(LinuxDisk::new(None)), options, IDENTITY).unwrap();
    let mut txn = db.begin();
    let mut stored = 0_u32;
    let refusal = loop {
        match txn.put(Tree::Kv, &stored.to_le_bytes(), &[1; 900]) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, StoreError::Full { limit: 1_048_576 }), "{refusal}");
    txn.commit().unwrap();
    let mut txn = db.begin();
    for n in 0..stored {
        assert!(txn.delete(Tree::Kv, &n.to_le_bytes()).unwrap());
    }
    txn.put(Tree::Kv, b"again", b"there is room").unwrap();
    txn.commit().unwrap();
    db.check().unwrap();
}

#[test]
fn foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir.path().join("mmapd.db"));
    let open = |identity| Db::open(Arc::new(LinuxDisk::new(None)), options.clone(), identity);
    drop(open(IDENTITY).unwrap());
    drop(open(Identity { incarnation: 9, ..IDENTITY }).unwrap());
    for other in [Identity { cluster: 8, ..IDENTITY }, Identity { node: NodeId(2), ..IDENTITY }] {
        assert!(matches!(open(other), Err(StoreError::Foreign { .. })));
    }
}

#[test]
fn a_pinned_checkpoint_is_streamed_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
    let (mut rng, path) = (Rng(4), dir.path().join("mmapd.db"));
    let mut pair = Pair::new(Db::open(Arc::clone(&disk), options(&path), IDENTITY).unwrap());
    assert!(pair.db.pin().unwrap().is_none());
    for _ in 0..30 {
        pair.batch(&mut rng, 20);
    }
    pair.checkpoint();
    pair.checkpoint();
    let (pinned, model) = (pair.db.pin().unwrap().unwrap(), pair.model.clone());
    let new = dir.path().join("mmapd.db.new");
    let identity = Identity { node: NodeId(2), ..IDENTITY };
    let mut receiver = Receiver::create(Arc::clone(&disk), &new, identity, 64 << 20).unwrap();
    let mut n = 0;
    while let Some(chunk) = pinned.chunk(n).unwrap() {
        // The sender goes on, checkpoint after checkpoint.
        pair.batch(&mut rng, 40);
        pair.checkpoint();
        pair.checkpoint();
        assert_eq!(pinned.chunk(n).unwrap().as_ref(), Some(&chunk));
        for _ in 0..20 {
            let mut damaged = chunk.to_vec();
            let at = rng.index(damaged.len());
            damaged[at] ^= 1 << rng.below(8);
            assert!(matches!(receiver.push(&damaged), Err(StoreError::Corrupt { .. })));
        }
        assert!(receiver.push(&chunk[..chunk.len() - 1]).is_err());
        receiver.push(&chunk).unwrap();
        assert!(receiver.push(&chunk).is_err());
        n += 1;
    }
    assert_eq!(receiver.finish().unwrap(), *pinned.state());
    let db = Db::open(disk, options(&new), identity).unwrap();
    same(&db.published().snapshot(), &model);
    db.check().unwrap();
}

/// Readers on other threads, while batches and checkpoints go on: every snapshot has the
/// same value under all keys, the one of its batch.
#[test]
fn readers_never_see_half_a_batch() {
    const KEYS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
    // A reader that gets no processor for a while pins whatever comes after its snapshots.
    let options = DbOptions { map_max: 1 << 30, ..options(&dir.path().join("mmapd.db")) };
    let mut db = Db::open(disk, options, IDENTITY).unwrap();
    let (published, done) = (db.published(), Arc::new(AtomicBool::new(false)));
    let readers: Vec<_> = (0..3)
        .map(|seed| {
            let (published, done) = (published.clone(), Arc::clone(&done));
            std::thread::spawn(move || {
                let (mut rng, mut reads) = (Rng(seed), 0_u64);
                let mut held: Vec<Arc<Snapshot>> = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    held.push(published.snapshot());
                    let snapshot = &held[rng.index(held.len())];
                    let wanted = snapshot.state().revision;
                    if wanted > 0 {
                        let key = rng.below(KEYS).to_le_bytes();
                        let value = snapshot.get(Tree::Kv, &key).unwrap().unwrap();
                        assert!(value.chunks_exact(8).all(|part| part == wanted.to_le_bytes()));
                        reads += 1;
                    }
                    if held.len() > 6 {
                        held.swap_remove(rng.index(6));
                    }
                }
                reads
            })
        })
        .collect();
    let mut rng = Rng(9);
    let mut writing: Option<JoinHandle<CheckpointDone>> = None;
    for revision in 1..200_u64 {
        let mut txn = db.begin();
        for key in 0..KEYS {
            let len = [1, 30, 400][rng.index(3)];
            let value = revision.to_le_bytes().repeat(len);
            txn.put(Tree::Kv, &key.to_le_bytes(), &value).unwrap();
        }
        txn.state_mut().revision = revision;
        txn.commit().unwrap();
        if writing.as_ref().is_some_and(JoinHandle::is_finished) {
            db.finish_checkpoint(writing.take().unwrap().join().unwrap()).unwrap();
        }
        if writing.is_none() {
            let job = db.begin_checkpoint().unwrap().unwrap();
            writing = Some(std::thread::spawn(move || job.run().unwrap()));
        }
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 100);
    }
    if let Some(writing) = writing {
        db.finish_checkpoint(writing.join().unwrap()).unwrap();
    }
    db.check().unwrap();
}

/// Any damage to a file is found by the check, and nothing panics on the way.
#[test]
fn damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mmapd.db");
    let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
    let mut rng = Rng(77);
    let mut pair = Pair::new(Db::open(Arc::clone(&disk), options(&path), IDENTITY).unwrap());
    for _ in 0..6 {
        pair.batch(&mut rng, 10);
    }
    pair.checkpoint();
    pair.checkpoint();
    drop(pair.db);
    let intact = std::fs::read(&path).unwrap();
    for _ in 0..1500 {
        let mut bytes = intact.clone();
        let pages = bytes.len() / 4096;
        match rng.below(4) {
            0 => {
                let at = rng.index(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
            1 => bytes[rng.index(pages) * 4096..].fill(0),
            2 => {
                // A misdirected write.
                let (from, to) = (rng.index(pages) * 4096, rng.index(pages) * 4096);
                bytes.copy_within(from..from + 4096, to);
            }
            _ => bytes.truncate(rng.index(bytes.len())),
        }
        std::fs::write(&path, &bytes).unwrap();
        let Ok(db) = Db::open(Arc::clone(&disk), options(&path), IDENTITY) else { continue };
        let Ok(checked) = db.check() else { continue };
        if db.state().applied.index.0 == 0 {
            assert_eq!(checked.entries, 0, "the checkpoint before");
        } else {
            same(&db.published().snapshot(), &pair.model);
        }
    }
}

/// Everything is overwritten ten times over: the file stays below twice what is live, and a
/// compaction brings it down to little more than that. Everything is deleted: so is the file.
#[test]
fn space_is_given_back() {
    const KEYS: u64 = 16_000;
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.unwrap();
    let options = DbOptions {
        path: dir.path().join("mmapd.db"),
        map_max: 1 << 30,
        quota: 1 << 30,
        grow_step: 1 << 20,
        shrink: Shrink { least: 4 << 20, part: 4 },
    };
    let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
    let mut db = Db::open(disk, options.clone(), IDENTITY).unwrap();
    let (mut rng, mut bytes) = (Rng(5), 0);
    let checkpoint = |db: &mut Db| {
        let job = db.begin_checkpoint().unwrap().unwrap();
        db.finish_checkpoint(job.run().unwrap()).unwrap();
    };
    for round in 0..11 {
        bytes = 0;
        for first in (0..KEYS).step_by(250) {
            let mut txn = db.begin();
            for n in first..first + 250 {
                // In another order each time, all of them.
                let key = (n * (2 * round + 1) + round) % KEYS;
                let key = format!("key/{:016x}", key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let len = if rng.below(50) == 0 { 9000 } else { 100 + rng.index(800) };
                txn.put(Tree::Kv, key.as_bytes(), &vec![round.to_le_bytes()[0]; len]).unwrap();
                bytes += key.len() + len;
            }
            txn.state_mut().revision += 1;
            txn.commit().unwrap();
            if db.dirty_bytes() > 1 << 20 {
                checkpoint(&mut db);
            }
        }
    }
    db.check().unwrap();
    let (size, live) = (db.size_bytes(), db.live_bytes());
    assert!(size <= 2 * live, "{size} bytes for {live} in use");
    drop(db.adopt(db.begin_compaction().run(&Unpaced).unwrap()).unwrap());
    assert_eq!(db.check().unwrap().entries, KEYS);
    let (size, live) = (db.size_bytes(), db.live_bytes());
    assert!(size * 100 <= live * 115, "{size} bytes for {live} in use");
    assert!(live * 100 <= bytes as u64 * 130, "{live} bytes in use for {bytes}");

    let snapshot = db.published().snapshot();
    let mut scan = snapshot.scan(Tree::Kv, Bound::Unbounded, Bound::Unbounded, false);
    let mut txn = db.begin();
    while let Some((key, _)) = scan.next().unwrap() {
        assert!(txn.delete(Tree::Kv, key).unwrap());
    }
    txn.commit().unwrap();
    drop(scan);
    drop(snapshot);
    // The pages of the last two checkpoints are kept, wherever they are, and so are those
    // of their bitmaps; then two more say that the file is shorter.
    for revision in 0..8 {
        let mut txn = db.begin();
        txn.state_mut().revision = 10_000 + revision;
        txn.commit().unwrap();
        checkpoint(&mut db);
    }
    assert!(db.size_bytes() <= 4 << 20, "{} bytes for nothing", db.size_bytes());
    drop(db);
    let db = Db::open(Arc::new(LinuxDisk::new(None)), options, IDENTITY).unwrap();
    assert_eq!(db.check().unwrap().entries, 0);
}
