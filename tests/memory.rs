//! Slices of memory that is written meanwhile, for Miri to watch: a log that is read while it
//! grows, a database that is read while batches and checkpoints take pages from readers and
//! give them out again, and streams of it. Small, because Miri is slow; run natively they are
//! tests like any others.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are a test")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mmapd::raft::message::IoToken;
use mmapd::raft::types::{EntryKind, HardState, Index, LogId, NodeId, Term};
use mmapd::store::disk::Disk;
use mmapd::store::simdisk::{Rng, SimDisk, Survival};
use mmapd::store::snapshot::Receiver;
use mmapd::store::{
    Db, DbOptions, Identity, Log, LogOptions, LogReader, Pace, Recovered, Shrink, Tree,
};

const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 3 };
const MAP_MAX: u64 = if cfg!(miri) { 512 << 10 } else { 16 << 20 };

/// A reader gives up after so many rounds: under Miri it is as slow as the writer.
const ROUNDS: u64 = if cfg!(miri) { 4 } else { u64::MAX };

/// Ends the readers, also when the writer panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn open_log(disk: &SimDisk) -> (Log, Recovered) {
    let options =
        LogOptions { dir: PathBuf::from("/data/log"), segment_bytes: 12 << 10, repairable: false };
    Log::open(Arc::new(disk.clone()), options, NodeId(1), || IDENTITY).unwrap()
}

fn open_db(disk: &SimDisk) -> Db {
    let path = PathBuf::from("/data/mmapd.db");
    let options = DbOptions {
        path,
        map_max: MAP_MAX,
        quota: MAP_MAX,
        grow_step: 4096,
        shrink: Shrink::default(),
    };
    Db::open(Arc::new(disk.clone()), options, IDENTITY).unwrap()
}

fn payload(index: u64, term: u64) -> Vec<u8> {
    let len = usize::try_from(index * 97 % 700).unwrap();
    vec![u8::try_from((index + term) % 255).unwrap() + 1; len]
}

fn append(log: &mut Log, indexes: std::ops::RangeInclusive<u64>, term: u64) {
    log.stage_hard_state(HardState { term: Term(term), vote: None });
    for index in indexes {
        let id = LogId { term: Term(term), index: Index(index) };
        log.stage_own(id, EntryKind::Command, &payload(index, term), 5);
    }
    let job = log.write(IoToken(1)).unwrap().unwrap();
    let synced = job.run().unwrap();
    log.synced(synced);
}

/// Every entry that can be read is what was appended under its name.
fn read_all(reader: &LogReader, last: u64) -> u64 {
    let mut found = 0;
    for index in 1..=last {
        let Some(entry) = reader.entry(Index(index)) else { continue };
        assert_eq!(entry.payload, payload(index, entry.id.term.0), "entry {index}");
        found += 1;
    }
    found
}

#[test]
fn a_log_is_read_while_it_grows() {
    let disk = SimDisk::new(1);
    let (mut log, _) = open_log(&disk);
    append(&mut log, 1..=4, 1);
    let held = log.reader().entry(Index(3)).unwrap();
    let (reader, done) = (log.reader(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut rounds = 0;
            while rounds < ROUNDS && (!done.load(Ordering::Relaxed) || rounds == 0) {
                read_all(&reader, 24);
                rounds += 1;
                std::thread::yield_now();
            }
        });
        let end = Done(&done);
        for batch in 1..5 {
            append(&mut log, batch * 4 + 1..=batch * 4 + 4, 1);
        }
        // Another leader's entries take the place of the last ones.
        append(&mut log, 11..=13, 2);
        append(&mut log, 14..=24, 3);
        drop(end);
        reading.join().unwrap();
    });
    assert_eq!(log.compact(Index(9)).unwrap().is_some(), log.first() > Index(1));
    let left = read_all(&log.reader(), 24);
    assert_eq!(left, 24 - log.first().0 + 1);
    drop((log, reader));
    // A slice outlives the log and its files.
    assert_eq!(held.payload, payload(3, 1));
    for survival in [Survival::None, Survival::Random(3)] {
        let (log, found) = open_log(&disk.image(survival));
        assert_eq!(found.last, LogId { term: Term(3), index: Index(24) });
        assert_eq!(read_all(&log.reader(), 24), left);
    }
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn batch(db: &mut Db, rng: &mut Rng, model: &mut Model, applied: u64) {
    let mut txn = db.begin();
    for _ in 0..if cfg!(miri) { 6 } else { 10 } {
        let mut key = format!("key/{:02}", rng.below(40)).into_bytes();
        if rng.below(12) == 0 {
            key.resize(700, b'x');
        }
        if rng.below(4) == 0 {
            txn.delete(Tree::Kv, &key).unwrap();
            model.remove(&key);
        } else {
            let len = if rng.below(12) == 0 { 5000 } else { 300 };
            let value = vec![u8::try_from(applied % 250).unwrap(); len];
            txn.put(Tree::Kv, &key, &value).unwrap();
            model.insert(key, value);
        }
    }
    txn.state_mut().applied = LogId { term: Term(1), index: Index(applied) };
    txn.commit().unwrap();
}

fn same(snapshot: &mmapd::store::Snapshot, model: &Model) {
    for reverse in [false, true] {
        let mut scan = snapshot.scan(Tree::Kv, Bound::Unbounded, Bound::Unbounded, reverse);
        let mut found = Vec::new();
        while let Some((key, value)) = scan.next().unwrap() {
            found.push((key, value));
        }
        if reverse {
            found.reverse();
        }
        assert!(found.into_iter().eq(model.iter().map(|(k, v)| (&k[..], &v[..]))));
    }
}

#[test]
fn a_database_is_read_while_its_pages_change_hands() {
    let disk = SimDisk::new(1);
    let mut db = open_db(&disk);
    let (mut rng, mut model) = (Rng::new(5), Model::new());
    batch(&mut db, &mut rng, &mut model, 1);
    let (oldest, oldest_model) = (db.published().snapshot(), model.clone());
    let (published, done) = (db.published(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut rounds = 0;
            while rounds < ROUNDS && (!done.load(Ordering::Relaxed) || rounds == 0) {
                let snapshot = published.snapshot();
                let (mut last, mut keys) = (Vec::new(), 0);
                let mut scan = snapshot.scan(Tree::Kv, Bound::Unbounded, Bound::Unbounded, false);
                while let Some((key, value)) = scan.next().unwrap() {
                    assert!(last.as_slice() < key, "in order");
                    assert!(value.iter().all(|byte| *byte == value[0]), "of one batch");
                    (last, keys) = (key.to_vec(), keys + 1);
                }
                assert_eq!(keys, snapshot.entries(Tree::Kv));
                rounds += 1;
                std::thread::yield_now();
            }
        });
        let end = Done(&done);
        for applied in 2..if cfg!(miri) { 4 } else { 60 } {
            batch(&mut db, &mut rng, &mut model, applied);
            let Some(job) = db.begin_checkpoint().unwrap() else { continue };
            let writing = scope.spawn(|| job.run().unwrap());
            batch(&mut db, &mut rng, &mut model, applied);
            db.finish_checkpoint(writing.join().unwrap()).unwrap();
            same(&db.published().snapshot(), &model);
        }
        drop(end);
        reading.join().unwrap();
    });
    same(&oldest, &oldest_model);
    db.check().unwrap();
    drop(db);
    // The old snapshot keeps what it sees, also without a database.
    same(&oldest, &oldest_model);
}

/// Applies a batch whenever a checkpoint rests, and looks how much is kept for its sake.
#[derive(Debug)]
struct Busy<'a> {
    work: Mutex<(&'a mut Db, Rng, &'a mut Model)>,
    batches: AtomicU64,
    /// The most that was held after one of them.
    held: AtomicU64,
    /// What the checkpoint had to write at its last rest.
    writing: AtomicU64,
}

impl Pace for Busy<'_> {
    fn rest(&self, _: Duration) {
        let mut work = self.work.lock().unwrap();
        let (db, rng, model) = &mut *work;
        batch(db, rng, model, 10 + self.batches.fetch_add(1, Ordering::Relaxed));
        self.held.fetch_max(db.held_bytes(), Ordering::Relaxed);
        let before = self.writing.swap(db.writing_bytes(), Ordering::Relaxed);
        assert!(db.writing_bytes() <= before, "it only gets less");
        if db.writing_bytes() < before {
            // Also while some of it is on the heap and the rest in the file already.
            same(&db.published().snapshot(), model);
        }
    }

    fn sync_every(&self) -> u64 {
        4096
    }

    fn wait_for_room(&self) -> bool {
        false
    }

    fn has_room(&self) {}

    fn is_ending(&self) -> bool {
        false
    }
}

/// What batches make and replace while a checkpoint is written is freed meanwhile; what the
/// checkpoint still reads is not.
#[test]
fn a_checkpoint_holds_no_more_than_it_writes() {
    let disk = SimDisk::new(1);
    let mut db = open_db(&disk);
    let (mut rng, mut model) = (Rng::new(7), Model::new());
    for applied in 1..4 {
        batch(&mut db, &mut rng, &mut model, applied);
        let job = db.begin_checkpoint().unwrap().unwrap();
        db.finish_checkpoint(job.run().unwrap()).unwrap();
    }
    let mut txn = db.begin();
    for n in 0..if cfg!(miri) { 2 } else { 60_u8 } {
        let (key, value) = (vec![b'z', n], vec![n; 5000]);
        txn.put(Tree::Kv, &key, &value).unwrap();
        model.insert(key, value);
    }
    txn.commit().unwrap();
    let written = model.clone();
    let job = db.begin_checkpoint().unwrap().unwrap();
    let work = Mutex::new((&mut db, rng, &mut model));
    let (batches, held, writing) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let busy = Busy { work, batches, held, writing };
    let done = job.run_at(&busy).unwrap();
    let (batches, held) = (busy.batches.into_inner(), busy.held.into_inner());
    assert_eq!(busy.writing.into_inner(), 0, "what is synced has left the heap");
    assert!(cfg!(miri) || batches > 100, "{batches} batches");
    assert!(held < 64 * 4096, "{held} bytes are held after {batches} batches");
    db.finish_checkpoint(done).unwrap();
    same(&db.published().snapshot(), &model);
    db.check().unwrap();
    let found = open_db(&disk.image(Survival::None));
    same(&found.published().snapshot(), &written);
    // What was withheld for it is given out again, two checkpoints later.
    for applied in 0..4 {
        batch(&mut db, &mut Rng::new(applied), &mut model, 1000 + applied);
        let job = db.begin_checkpoint().unwrap().unwrap();
        db.finish_checkpoint(job.run().unwrap()).unwrap();
    }
    assert!(db.held_bytes() < 64 * 4096, "{} bytes are held", db.held_bytes());
    same(&db.published().snapshot(), &model);
    db.check().unwrap();
}

#[test]
fn a_checkpoint_is_streamed_while_the_database_goes_on() {
    let disk = SimDisk::new(1);
    let mut db = open_db(&disk);
    let (mut rng, mut model) = (Rng::new(6), Model::new());
    let checkpoint = |db: &mut Db| {
        let job = db.begin_checkpoint().unwrap().unwrap();
        db.finish_checkpoint(job.run().unwrap()).unwrap();
    };
    batch(&mut db, &mut rng, &mut model, 1);
    checkpoint(&mut db);
    let (pinned, want) = (db.pin().unwrap().unwrap(), model.clone());
    let path = Path::new("/data/mmapd.db.new");
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut receiver = Receiver::create(shared, path, IDENTITY, MAP_MAX).unwrap();
    for n in 0..pinned.chunks() {
        batch(&mut db, &mut rng, &mut model, 2 + n);
        checkpoint(&mut db);
        receiver.push(&pinned.chunk(n).unwrap().unwrap()).unwrap();
    }
    receiver.finish().unwrap();
    let (before, old) = (db.published().snapshot(), model);
    db.install(path).unwrap();
    same(&db.published().snapshot(), &want);
    same(&before, &old);
}

#[test]
fn damaged_pages_are_refused_and_not_overread() {
    let disk = SimDisk::new(1);
    let mut db = open_db(&disk);
    let (mut rng, mut model) = (Rng::new(7), Model::new());
    batch(&mut db, &mut rng, &mut model, 1);
    let job = db.begin_checkpoint().unwrap().unwrap();
    db.finish_checkpoint(job.run().unwrap()).unwrap();
    drop(db);
    let path = Path::new("/data/mmapd.db");
    let content = disk.contents(path);
    let mut refused = 0;
    for _ in 0..if cfg!(miri) { 3 } else { 600 } {
        let at = rng.below(content.len() as u64);
        let image = disk.image(Survival::All);
        image.damage(
            path,
            at,
            &[0xee; 7][..usize::try_from((content.len() as u64 - at).min(7)).unwrap()],
        );
        let options = DbOptions {
            path: path.to_owned(),
            map_max: MAP_MAX,
            quota: MAP_MAX,
            grow_step: 4096,
            shrink: Shrink::default(),
        };
        match Db::open(Arc::new(image), options, IDENTITY) {
            Ok(db) => {
                let snapshot = db.published().snapshot();
                for (key, value) in &model {
                    match snapshot.get(Tree::Kv, key) {
                        // The checkpoint before this one was empty.
                        Ok(found) => assert!(found.is_none_or(|found| found == value)),
                        Err(_) => refused += 1,
                    }
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0 || cfg!(miri));
}
