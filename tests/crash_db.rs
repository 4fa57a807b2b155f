//! The database after a power cut at any point: every operation on the disk is recorded,
//! and after each of them many images of what a disk may hold are built and opened. Each
//! must hold a checkpoint, whole: the last durable one or the one being written.
//!
//! What a disk may do with writes that were not synced: keep any subset of the written
//! pages, each in any version since the last sync, one of them torn between sectors; keep
//! the old length of a file that grew; and keep the first few changes of a directory.
//!
//! The planted bugs at the end show that this finds what it is meant to find.

#![expect(clippy::unwrap_used, reason = "clippy does not see that helpers of tests are tests")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mmapd::raft::types::{Index, LogId, NodeId, Term};
use mmapd::store::db::{Db, DbOptions, Tree};
use mmapd::store::disk::{Disk, FileKind, LinuxDisk, Region};
use mmapd::store::map::Memory;
use mmapd::store::simdisk::SimDisk;
use mmapd::store::snapshot::Receiver;
use mmapd::store::{Identity, Shrink, StoreError, Unpaced};

const PAGE: usize = 4096;
const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 1 };
const MAP_MAX: u64 = 16 << 20;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug, PartialEq)]
enum Op {
    Create(u64, String),
    Write(u64, u64, Vec<u8>),
    Sync(u64, u64, u64),
    SyncAll(u64),
    SetLen(u64, u64),
    Rename(String, String),
    Remove(String),
    SyncDir,
    /// From here on a checkpoint with this index may be found.
    Possible(u64),
    /// From here on nothing else may be found, until the next one begins.
    Durable(u64),
}

type Trace = Arc<Mutex<Vec<Op>>>;

/// Does what Linux does and writes it down.
#[derive(Debug)]
struct Recorder {
    inner: LinuxDisk,
    trace: Trace,
    names: Mutex<(u64, HashMap<String, u64>)>,
}

#[derive(Debug)]
struct Recorded {
    inner: Box<dyn Region>,
    id: u64,
    trace: Trace,
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

impl Recorder {
    fn new(trace: &Trace) -> Self {
        let (inner, trace) = (LinuxDisk::new(None), Arc::clone(trace));
        Self { inner, trace, names: Mutex::default() }
    }

    fn add(&self, op: Op) {
        self.trace.lock().unwrap().push(op);
    }
}

impl Disk for Recorder {
    fn create(&self, path: &Path, kind: FileKind, len: u64) -> Result<Box<dyn Region>, StoreError> {
        let inner = self.inner.create(path, kind, len)?;
        let mut names = self.names.lock().unwrap();
        names.0 += 1;
        let id = names.0;
        names.1.insert(name(path), id);
        self.add(Op::Create(id, name(path)));
        Ok(Box::new(Recorded { inner, id, trace: Arc::clone(&self.trace) }))
    }

    fn open(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        let Some(inner) = self.inner.open(path, kind, reserve)? else { return Ok(None) };
        let id = self.names.lock().unwrap().1[&name(path)];
        Ok(Some(Box::new(Recorded { inner, id, trace: Arc::clone(&self.trace) })))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, StoreError> {
        self.inner.list(dir)
    }

    fn make_dir(&self, dir: &Path) -> Result<(), StoreError> {
        self.inner.make_dir(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.inner.rename(from, to)?;
        let mut names = self.names.lock().unwrap();
        let id = names.1.remove(&name(from)).unwrap();
        names.1.insert(name(to), id);
        self.add(Op::Rename(name(from), name(to)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        self.inner.remove(path)?;
        self.names.lock().unwrap().1.remove(&name(path));
        self.add(Op::Remove(name(path)));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), StoreError> {
        self.add(Op::SyncDir);
        self.inner.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        self.inner.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, StoreError> {
        self.inner.lock(path)
    }
}

impl Region for Recorded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.trace.lock().unwrap().push(Op::Write(self.id, offset, bytes.to_vec()));
        self.inner.write_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_at(offset, into)
    }

    fn read_disk(&self, offset: u64, into: &mut [u8]) -> Result<bool, StoreError> {
        self.inner.read_disk(offset, into)
    }

    fn sync(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.trace.lock().unwrap().push(Op::Sync(self.id, offset, len));
        self.inner.sync(offset, len)
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        self.trace.lock().unwrap().push(Op::SyncAll(self.id));
        self.inner.sync_all()
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        self.trace.lock().unwrap().push(Op::SetLen(self.id, len));
        self.inner.set_len(len)
    }

    fn memory(&self) -> &Arc<Memory> {
        self.inner.memory()
    }
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

#[derive(Clone, Debug, Default)]
struct FileState {
    /// What the programs see.
    cache: Vec<u8>,
    /// What survives for sure.
    disk: Vec<u8>,
    disk_len: usize,
    /// Versions of each page since it was last synced.
    pending: BTreeMap<usize, Vec<Vec<u8>>>,
}

/// What is on the disk, what may be.
#[derive(Clone, Debug, Default)]
struct DiskState {
    files: HashMap<u64, FileState>,
    names: BTreeMap<String, u64>,
    pending: Vec<Op>,
}

fn change_names(names: &mut BTreeMap<String, u64>, op: &Op) {
    match op {
        Op::Create(id, name) => {
            names.insert(name.clone(), *id);
        }
        Op::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        Op::Remove(name) => {
            names.remove(name);
        }
        Op::Write(..)
        | Op::Sync(..)
        | Op::SyncAll(_)
        | Op::SetLen(..)
        | Op::SyncDir
        | Op::Possible(_)
        | Op::Durable(_) => {}
    }
}

impl FileState {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        assert!(at.is_multiple_of(PAGE) && bytes.len().is_multiple_of(PAGE));
        let len = self.cache.len().max(at + bytes.len());
        self.cache.resize(len, 0);
        let len = self.disk.len().max(len);
        self.disk.resize(len, 0);
        self.cache[at..at + bytes.len()].copy_from_slice(bytes);
        for (index, page) in bytes.chunks(PAGE).enumerate() {
            self.pending.entry(at / PAGE + index).or_default().push(page.to_vec());
        }
    }

    fn sync(&mut self, offset: u64, len: u64) {
        let (from, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        let pages: Vec<usize> = self
            .pending
            .range(from / PAGE..(from + len).div_ceil(PAGE))
            .map(|(page, _)| *page)
            .collect();
        for page in pages {
            self.pending.remove(&page);
            let range = page * PAGE..(page + 1) * PAGE;
            self.disk[range.clone()].copy_from_slice(&self.cache[range]);
        }
    }

    /// Cuts the file; a crash may leave what was behind the cut, until it is synced.
    fn set_len(&mut self, len: u64) {
        let len = usize::try_from(len).unwrap();
        assert!(len.is_multiple_of(PAGE) && len <= self.cache.len());
        self.cache.truncate(len);
        self.pending.retain(|page, _| (page + 1) * PAGE <= len);
    }

    fn sync_all(&mut self) {
        self.sync(0, self.cache.len() as u64);
        self.disk.truncate(self.cache.len());
        self.disk_len = self.cache.len();
    }

    /// One image. Mode 0: nothing that is pending; 1: all of it; else as chance has it.
    fn image(&self, rng: &mut Rng, mode: usize) -> Vec<u8> {
        let mut bytes = if mode == 1 { self.cache.clone() } else { self.disk.clone() };
        if mode > 1 {
            let torn = rng.below(self.pending.len().max(1));
            let keep = [1, 2, 3, 5][rng.below(4)];
            for (index, (page, versions)) in self.pending.iter().enumerate() {
                if rng.below(6) >= keep {
                    continue;
                }
                let version = &versions[rng.below(versions.len())];
                let to = &mut bytes[page * PAGE..(page + 1) * PAGE];
                if index == torn {
                    let cut = 512 * (1 + rng.below(7));
                    let range = if rng.below(2) == 0 { 0..cut } else { cut..PAGE };
                    to[range.clone()].copy_from_slice(&version[range]);
                } else {
                    to.copy_from_slice(version);
                }
            }
        }
        if mode == 0 || (mode > 1 && rng.below(3) == 0) {
            bytes.truncate(self.disk_len);
        } else if mode > 1 && rng.below(2) == 0 {
            bytes.truncate(self.cache.len());
        }
        bytes
    }
}

impl DiskState {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(id, offset, bytes) => {
                self.files.entry(*id).or_default().write(*offset, bytes)
            }
            Op::Sync(id, offset, len) => self.files.entry(*id).or_default().sync(*offset, *len),
            Op::SyncAll(id) => self.files.entry(*id).or_default().sync_all(),
            Op::SetLen(id, len) => self.files.entry(*id).or_default().set_len(*len),
            Op::SyncDir => {
                for op in self.pending.drain(..) {
                    change_names(&mut self.names, &op);
                }
            }
            Op::Create(id, _) => {
                self.files.entry(*id).or_default();
                self.pending.push(op.clone());
            }
            Op::Rename(..) | Op::Remove(_) => self.pending.push(op.clone()),
            Op::Possible(_) | Op::Durable(_) => {}
        }
    }

    fn image(&self, rng: &mut Rng, mode: usize) -> BTreeMap<String, Vec<u8>> {
        let mut names = self.names.clone();
        let kept = match mode {
            0 => 0,
            1 => self.pending.len(),
            _ => rng.below(self.pending.len() + 1),
        };
        for op in &self.pending[..kept] {
            change_names(&mut names, op);
        }
        names.iter().map(|(name, id)| (name.clone(), self.files[id].image(rng, mode))).collect()
    }
}

fn options(path: PathBuf) -> DbOptions {
    let shrink = Shrink { least: 0, part: 8 };
    DbOptions { path, map_max: MAP_MAX, quota: 8 << 20, grow_step: 64 << 10, shrink }
}

fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn batch(db: &mut Db, rng: &mut Rng, model: &mut Model, applied: u64) {
    let mut txn = db.begin();
    for _ in 0..12 {
        let mut key = format!("key/{:03}", rng.below(150)).into_bytes();
        if rng.below(20) == 0 {
            key.resize(600, b'x');
        }
        if rng.below(3) == 0 {
            txn.delete(Tree::Kv, &key).unwrap();
            model.remove(&key);
        } else {
            let len = if rng.below(12) == 0 { 9000 } else { rng.below(400) };
            let value = vec![rng.next().to_le_bytes()[0]; len];
            txn.put(Tree::Kv, &key, &value).unwrap();
            model.insert(key, value);
        }
    }
    txn.state_mut().applied = LogId { term: Term(1), index: Index(applied) };
    txn.commit().unwrap();
}

/// A workload, its trace, and what the database holds at each applied index.
struct Run {
    trace: Vec<Op>,
    models: HashMap<u64, Model>,
}

fn checkpoint(db: &mut Db, trace: &Trace, between: impl FnOnce(&mut Db)) {
    let applied = db.state().applied.index.0;
    let job = db.begin_checkpoint().unwrap().unwrap();
    trace.lock().unwrap().push(Op::Possible(applied));
    between(db);
    db.finish_checkpoint(job.run().unwrap()).unwrap();
    trace.lock().unwrap().push(Op::Durable(applied));
    assert_eq!(db.durable().index.0, applied);
}

/// The newest file was written page by page from its start to its end, but for its two meta
/// pages, which come last: each byte goes to the disk once.
fn assert_written_once(trace: &Trace) {
    let trace = trace.lock().unwrap();
    let created = |op: &Op| if let Op::Create(id, _) = op { Some(*id) } else { None };
    let newest = trace.iter().rev().find_map(created).unwrap();
    let (mut end, mut others) = (0, Vec::new());
    for op in trace.iter() {
        let Op::Write(id, at, bytes) = op else { continue };
        if *id == newest && *at == end {
            end += bytes.len() as u64;
        } else if *id == newest {
            others.push(*at / PAGE as u64);
        }
    }
    assert!(end > 16 * PAGE as u64 && !others.is_empty());
    assert!(others.iter().all(|page| [0, 16].contains(page)), "pages written again: {others:?}");
}

/// Writes the database anew and puts the new file in its place, while batches go on.
fn compact(db: &mut Db, trace: &Trace, applied: &mut u64, mut next: impl FnMut(&mut Db, u64)) {
    let job = db.begin_compaction();
    let found = job.applied().index.0;
    let published = db.published();
    for _ in 0..2 {
        *applied += 1;
        next(db, *applied);
    }
    let mut copy = job.run(&Unpaced).unwrap();
    assert_eq!(copy.state().applied.index.0, found);
    assert!(db.adopt(copy).is_err(), "the copy lacks two batches");
    let job = db.begin_compaction();
    let found = job.applied().index.0;
    copy = job.run(&Unpaced).unwrap();
    assert_written_once(trace);
    copy.check().unwrap();
    trace.lock().unwrap().push(Op::Possible(found));
    let old = db.adopt(copy).unwrap();
    trace.lock().unwrap().push(Op::Durable(found));
    assert_eq!(published.snapshot().state().applied.index.0, *applied);
    old.check().unwrap();
}

/// Fills the end of the file and empties it, until it is cut.
fn fill_and_empty(db: &mut Db, trace: &Trace, applied: &mut u64, note: &mut dyn FnMut(u64)) {
    let mut change = |db: &mut Db, change: &dyn Fn(&mut mmapd::store::Txn<'_>)| {
        let mut txn = db.begin();
        change(&mut txn);
        *applied += 1;
        txn.state_mut().applied = LogId { term: Term(1), index: Index(*applied) };
        txn.commit().unwrap();
        note(*applied);
        checkpoint(db, trace, |_| ());
    };
    let before = db.size_bytes();
    change(db, &|txn| {
        for n in 0..40_u8 {
            txn.put(Tree::Meta, &[n], &[n; 9000]).unwrap();
        }
    });
    let full = db.size_bytes();
    assert!(full > before, "the file grew");
    change(db, &|txn| {
        for n in 0..40_u8 {
            assert!(txn.delete(Tree::Meta, &[n]).unwrap());
        }
    });
    for n in 0..5 {
        change(db, &|txn| txn.state_mut().revision = n);
    }
    assert!(db.size_bytes() < full, "the file was cut");
}

fn workload(seed: u64, reckless: bool) -> Run {
    planted(seed, |db| db.plant_reuse(reckless))
}

#[expect(clippy::too_many_lines, reason = "one story, told in its order")]
fn planted(seed: u64, plant: impl Fn(&mut Db)) -> Run {
    let (dir, trace) = (scratch(), Trace::default());
    let (mut rng, mut model) = (Rng(seed), Model::new());
    let mut models = HashMap::from([(0, Model::new())]);
    let path = dir.path().join("mmapd.db");
    let disk: Arc<dyn Disk> = Arc::new(Recorder::new(&trace));
    let mut db = Db::open(Arc::clone(&disk), options(path), IDENTITY).unwrap();
    trace.lock().unwrap().push(Op::Durable(0));
    plant(&mut db);
    let mut applied = 0;
    let mut rounds = |db: &mut Db, model: &mut Model, applied: &mut u64, rounds: usize| {
        for _ in 0..rounds {
            for _ in 0..3 {
                *applied += 1;
                batch(db, &mut rng, model, *applied);
                models.insert(*applied, model.clone());
            }
            checkpoint(db, &trace, |db| {
                *applied += 1;
                batch(db, &mut rng, model, *applied);
                models.insert(*applied, model.clone());
            });
            db.check().unwrap();
        }
    };
    rounds(&mut db, &mut model, &mut applied, 6);

    // Another node's database arrives and is installed.
    let other_dir = scratch();
    let other_options = options(other_dir.path().join("other.db"));
    let other_identity = Identity { node: NodeId(2), ..IDENTITY };
    let mut other =
        Db::open(Arc::new(LinuxDisk::new(None)), other_options, other_identity).unwrap();
    (model, applied) = (Model::new(), 1000);
    rounds(&mut other, &mut model, &mut applied, 3);
    let found = other.durable().index.0;
    trace.lock().unwrap().retain(|op| !matches!(op, Op::Possible(1000..) | Op::Durable(1000..)));
    let pinned = other.pin().unwrap().unwrap();
    let new = dir.path().join("mmapd.db.new");
    let mut receiver = Receiver::create(Arc::clone(&disk), &new, IDENTITY, MAP_MAX).unwrap();
    let mut n = 0;
    while let Some(chunk) = pinned.chunk(n).unwrap() {
        receiver.push(&chunk).unwrap();
        n += 1;
    }
    let state = receiver.finish().unwrap();
    assert_written_once(&trace);
    assert_eq!(state, *pinned.state());
    trace.lock().unwrap().push(Op::Possible(found));
    let before = db.published();
    db.install(&new).unwrap();
    trace.lock().unwrap().push(Op::Durable(found));
    assert_eq!(before.snapshot().state().applied.index.0, found);
    plant(&mut db);
    (model, applied) = (models_at(&models, found), 2000);
    for _ in 0..3 {
        for _ in 0..3 {
            applied += 1;
            batch(&mut db, &mut rng, &mut model, applied);
            models.insert(applied, model.clone());
        }
        checkpoint(&mut db, &trace, |_| ());
    }
    applied = 3000;
    let mut note = |applied| drop(models.insert(applied, model.clone()));
    fill_and_empty(&mut db, &trace, &mut applied, &mut note);
    applied = 4000;
    compact(&mut db, &trace, &mut applied, |db, applied| {
        batch(db, &mut rng, &mut model, applied);
        models.insert(applied, model.clone());
    });
    plant(&mut db);
    for _ in 0..3 {
        applied += 1;
        batch(&mut db, &mut rng, &mut model, applied);
        models.insert(applied, model.clone());
        checkpoint(&mut db, &trace, |_| ());
        db.check().unwrap();
    }
    drop(db);
    let trace = trace.lock().unwrap().clone();
    Run { trace, models }
}

fn models_at(models: &HashMap<u64, Model>, applied: u64) -> Model {
    models[&applied].clone()
}

/// Opens an image; the error says what is wrong with what was found.
fn recover(
    dir: &Path,
    image: &BTreeMap<String, Vec<u8>>,
    run: &Run,
    allowed: &[u64],
    go_on: bool,
) -> Result<(), String> {
    for entry in std::fs::read_dir(dir).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (name, bytes) in image {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let open = || {
        let disk = Arc::new(LinuxDisk::new(None));
        Db::open(disk, options(dir.join("mmapd.db")), IDENTITY).map_err(|error| error.to_string())
    };
    let mut db = open()?;
    db.check().map_err(|error| error.to_string())?;
    let applied = db.state().applied.index.0;
    if !allowed.contains(&applied) {
        return Err(format!("found {applied}, and {allowed:?} are allowed"));
    }
    let model = &run.models[&applied];
    let same = |db: &Db, model: &Model| {
        let snapshot = db.published().snapshot();
        let (low, high) = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let mut scan = snapshot.scan(Tree::Kv, low, high, false);
        for (key, value) in model {
            let found = scan.next().map_err(|error| error.to_string())?;
            if found != Some((key.as_slice(), value.as_slice())) {
                return Err(format!("another value at {applied}"));
            }
        }
        Ok(())
    };
    same(&db, model)?;
    if go_on {
        let (mut model, mut rng) = (model.clone(), Rng(applied));
        batch(&mut db, &mut rng, &mut model, 9_999);
        let job = db.begin_checkpoint().unwrap().unwrap();
        db.finish_checkpoint(job.run().unwrap()).unwrap();
        drop(db);
        let db = open()?;
        db.check().map_err(|error| error.to_string())?;
        same(&db, &model)?;
    }
    Ok(())
}

/// Crashes after every operation; the number of images, and of those that were wrong.
fn crash(run: &Run, images_per_op: usize, stop_at_first: bool) -> (usize, Vec<String>) {
    let dir = scratch();
    let (mut disk, mut rng) = (DiskState::default(), Rng(99));
    let (mut allowed, mut images, mut wrong) = (vec![0], 0, Vec::new());
    for op in &run.trace {
        match op {
            Op::Possible(applied) => allowed.push(*applied),
            Op::Durable(applied) => allowed = vec![*applied],
            Op::Create(..)
            | Op::Write(..)
            | Op::Sync(..)
            | Op::SyncAll(_)
            | Op::SetLen(..)
            | Op::Rename(..)
            | Op::Remove(_)
            | Op::SyncDir => {}
        }
        disk.apply(op);
        for mode in 0..images_per_op {
            let image = disk.image(&mut rng, mode);
            images += 1;
            if let Err(error) = recover(dir.path(), &image, run, &allowed, images % 16 == 0) {
                let mut op = format!("{op:?}");
                op.truncate(40);
                wrong.push(format!("after {op}: {error}"));
                if stop_at_first {
                    return (images, wrong);
                }
            }
        }
    }
    (images, wrong)
}

#[test]
fn a_crash_leaves_a_whole_checkpoint() {
    let mut total = 0;
    for seed in 0..4 {
        let (images, wrong) = crash(&workload(seed, false), 28, false);
        assert!(wrong.is_empty(), "{} of {images}, first: {}", wrong.len(), wrong[0]);
        total += images;
    }
    eprintln!("{total} images");
}

/// A small workload on a disk that may refuse any operation. Says which indexes may be
/// found after it.
fn refused(disk: &SimDisk, models: &mut HashMap<u64, Model>) -> (Vec<u64>, Result<(), StoreError>) {
    let mut allowed = vec![0];
    let mut work = || {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let (mut rng, mut model) = (Rng(3), Model::new());
        let path = PathBuf::from("/data/mmapd.db");
        let mut db = Db::open(disk, options(path), IDENTITY)?;
        for applied in 1..=4 {
            batch(&mut db, &mut rng, &mut model, applied);
            models.insert(applied, model.clone());
            let Some(job) = db.begin_checkpoint()? else { continue };
            allowed.push(applied);
            db.finish_checkpoint(job.run()?)?;
            allowed = vec![applied];
            if applied == 2 {
                let more = 10;
                batch(&mut db, &mut rng, &mut model, more);
                models.insert(more, model.clone());
                let copy = db.begin_compaction().run(&Unpaced)?;
                allowed.push(more);
                db.adopt(copy)?;
                allowed = vec![more];
            }
        }
        Ok(())
    };
    let result = work();
    (allowed, result)
}

fn simulated(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.make_dir(Path::new("/data")).unwrap();
    disk
}

/// What `Db::open` finds on one image of the simulated disk, by its index.
fn found(image: SimDisk, allowed: &[u64], models: &HashMap<u64, Model>) -> Result<u64, String> {
    let path = PathBuf::from("/data/mmapd.db");
    let db =
        Db::open(Arc::new(image), options(path), IDENTITY).map_err(|error| error.to_string())?;
    db.check().map_err(|error| error.to_string())?;
    let applied = db.state().applied.index.0;
    if !allowed.contains(&applied) {
        return Err(format!("found {applied}, and {allowed:?} are allowed"));
    }
    let snapshot = db.published().snapshot();
    for (key, value) in &models[&applied] {
        if snapshot.get(Tree::Kv, key).map_err(|error| error.to_string())? != Some(value) {
            return Err(format!("another value at {applied}"));
        }
    }
    Ok(applied)
}

#[test]
fn a_disk_that_stops_is_no_worse_than_a_crash() {
    let mut models = HashMap::from([(0, Model::new())]);
    let whole = simulated(1);
    refused(&whole, &mut models).1.unwrap();
    for ops in 1..whole.op_count() {
        let disk = simulated(ops);
        disk.stop_after(ops);
        let (allowed, result) = refused(&disk, &mut models);
        assert!(result.is_err(), "operation {ops} was refused");
        for image in disk.images(40, ops) {
            found(image, &allowed, &models).unwrap();
        }
    }
}

#[test]
fn a_sync_that_fails_ends_the_work_and_one_that_lies_is_caught() {
    let mut models = HashMap::from([(0, Model::new())]);
    let whole = simulated(1);
    refused(&whole, &mut models).1.unwrap();
    let (mut caught, mut refusals, mut phantoms) = (0, 0, 0);
    for syncs in 0..whole.sync_count() {
        let disk = simulated(syncs);
        disk.fail_at(syncs);
        let (allowed, result) = refused(&disk, &mut models);
        // Syncs of the directory are counted and do not fail.
        refusals += u64::from(result.is_err());
        for image in disk.images(40, syncs) {
            found(image, &allowed, &models).unwrap();
        }
        // Started again without a power loss, with pages in the cache that the disk has not
        // and never will: what is found then must be there after a power loss, too.
        let path = Path::new("/data/mmapd.db");
        let has_db = disk.list(Path::new("/data")).unwrap().iter().any(|name| name == "mmapd.db");
        phantoms += u64::from(has_db && disk.contents(path) != disk.on_disk(path));
        disk.sync_dir(Path::new("/data")).unwrap(); // as `node::open` does
        let again = found(disk.clone(), &allowed, &models).unwrap();
        for image in disk.images(40, syncs) {
            assert_eq!(found(image, &[again], &models), Ok(again), "sync {syncs} failed");
        }
        let disk = simulated(syncs);
        disk.lie_at(syncs);
        let (allowed, result) = refused(&disk, &mut models);
        result.unwrap();
        caught += usize::from(
            disk.images(60, syncs).any(|image| found(image, &allowed, &models).is_err()),
        );
    }
    assert!(refusals + 2 >= whole.sync_count(), "{refusals} refusals");
    assert!(phantoms >= 4, "{phantoms} caches that show what the disk has not");
    // A later sync of the whole file makes up for most.
    assert!(caught >= 2, "{caught} of {} lies", whole.sync_count());
}

/// The newest meta page is lost: the checkpoint before it must be there, whole.
#[test]
fn a_lost_meta_page_costs_one_checkpoint() {
    let run = workload(11, false);
    let (dir, mut disk, mut rng) = (scratch(), DiskState::default(), Rng(1));
    let (mut before, mut tried) = (None, 0);
    for op in &run.trace {
        disk.apply(op);
        let Op::Durable(applied) = op else { continue };
        if let Some(before) =
            before.replace(*applied).filter(|before| before / 1000 == applied / 1000)
        {
            let mut image = disk.image(&mut rng, 0);
            let file = image.get_mut("mmapd.db").unwrap();
            let seq = |slot: usize| {
                u64::from_le_bytes(file[slot * PAGE + 24..slot * PAGE + 32].try_into().unwrap())
            };
            let newest = if seq(0) > seq(16) { 0 } else { 16 };
            file[newest * PAGE + 100] ^= 1;
            recover(dir.path(), &image, &run, &[before], true).unwrap();
            tried += 1;
        }
    }
    assert!(tried > 5, "{tried} checkpoints");
}

/// A trace without the operations that `drop` picks must be found wrong.
fn caught(what: &str, reckless: bool, drop: impl Fn(&Op) -> bool) {
    let mut run = workload(5, reckless);
    // Making the file is left as it is, or that would be found and nothing else.
    let made = run.trace.iter().position(|op| *op == Op::Durable(0)).unwrap();
    let mut index = 0;
    run.trace.retain(|op| {
        index += 1;
        index <= made || !drop(op)
    });
    let (images, wrong) = crash(&run, 12, true);
    assert!(!wrong.is_empty(), "{what} was not caught in {images} images");
    eprintln!("{what}: {}", wrong[0]);
}

#[test]
fn planted_meta_before_data_is_caught() {
    caught("no sync of the data", false, |op| matches!(op, Op::Sync(_, _, len) if *len > 4096));
}

#[test]
fn planted_lack_of_a_meta_sync_is_caught() {
    caught("no sync of the meta page", false, |op| matches!(op, Op::Sync(_, _, 4096)));
}

#[test]
fn planted_lack_of_a_growth_sync_is_caught() {
    caught("no sync of the length", false, |op| matches!(op, Op::SyncAll(_)));
}

#[test]
fn planted_lack_of_a_directory_sync_is_caught() {
    caught("no sync of the directory", false, |op| matches!(op, Op::SyncDir));
}

/// A changed trace must be found wrong.
fn caught_in(what: &str, mut run: Run, change: impl FnOnce(&mut Vec<Op>)) {
    change(&mut run.trace);
    let (images, wrong) = crash(&run, 6, true);
    assert!(!wrong.is_empty(), "{what} was not caught in {images} images");
    eprintln!("{what}: {}", wrong[0]);
}

/// Where the compacted file is made, its number, and where it takes its place.
fn compaction(trace: &[Op]) -> (usize, u64, usize) {
    let made = |op: &Op| matches!(op, Op::Create(_, name) if name.ends_with(".compact"));
    let from = trace.iter().rposition(made).unwrap();
    let Op::Create(id, _) = &trace[from] else { unreachable!() };
    let renamed = |op: &Op| matches!(op, Op::Rename(name, _) if name.ends_with(".compact"));
    (from, *id, trace.iter().position(renamed).unwrap())
}

#[test]
fn planted_swap_before_the_sync_is_caught() {
    caught_in("a swap before the sync", workload(5, false), |trace| {
        let (_, id, renamed) = compaction(trace);
        let mut place = 0;
        trace.retain(|op| {
            place += 1;
            let sync = matches!(op, Op::Sync(of, ..) | Op::SyncAll(of) if *of == id);
            place > renamed || !sync
        });
    });
}

#[test]
fn planted_meta_before_data_in_a_compaction_is_caught() {
    caught_in("a compaction's meta page before its data", workload(5, false), |trace| {
        let (_, id, renamed) = compaction(trace);
        let mut place = 0;
        trace.retain(|op| {
            place += 1;
            // The sync of the two slots stays, that of everything and those of growth go.
            let part = matches!(op, Op::Sync(of, _, len) if *of == id && *len != 17 * PAGE as u64);
            let all = matches!(op, Op::SyncAll(of) if *of == id);
            place > renamed || !(part || all)
        });
    });
}

#[test]
fn planted_swap_before_the_copy_is_whole_is_caught() {
    caught_in("a swap before the copy is whole", workload(5, false), |trace| {
        let (made, _, renamed) = compaction(trace);
        // The rename, and with it the sync of the directory.
        let swap: Vec<Op> = trace.drain(renamed..renamed + 2).collect();
        let at = made + (renamed - made) / 2;
        trace.splice(at..at, swap);
    });
}

#[test]
fn planted_cut_below_a_kept_checkpoint_is_caught() {
    caught_in("a cut below a kept checkpoint", workload(5, false), |trace| {
        let at = trace.iter().position(|op| matches!(op, Op::SetLen(..))).unwrap();
        let cut = trace.remove(at);
        // As soon as a checkpoint is begun that needs less, and not when it and the next
        // one are durable.
        let begun = |trace: &[Op], before: usize| {
            trace[..before].iter().rposition(|op| matches!(op, Op::Possible(_))).unwrap()
        };
        let last = begun(trace, at);
        let first = begun(trace, last);
        // What is written meanwhile lies before the cut.
        trace.insert(first, cut);
    });
}

/// Each sync of a checkpoint, left out alone.
#[test]
fn planted_lack_of_any_one_sync_is_caught() {
    let run = workload(5, false);
    // Those that write pages, of the first file and of the compacted one.
    let wanted = |op: &Op| matches!(op, Op::Possible(applied) if !(1000..=4002).contains(applied));
    let begun: Vec<usize> =
        run.trace.iter().enumerate().filter(|(_, op)| wanted(op)).map(|(at, _)| at).collect();
    let mut tried = 0;
    for &from in begun.iter().step_by(3) {
        let len = run.trace[from..].iter().position(|op| matches!(op, Op::Durable(_))).unwrap();
        for at in from..from + len {
            if matches!(run.trace[at], Op::Sync(..)) {
                let run = Run { trace: run.trace.clone(), models: run.models.clone() };
                caught_in(&format!("no sync at {at}"), run, |trace| drop(trace.remove(at)));
                tried += 1;
            }
        }
    }
    assert!(tried >= 6, "{tried} syncs");
}

#[test]
fn planted_bitmap_in_place_is_caught() {
    caught_in("a bitmap in place", planted(5, Db::plant_bitmap_in_place), |_| ());
}

#[test]
fn planted_reuse_of_a_durable_page_is_caught() {
    caught("reuse of a durable page", true, |_| false);
}
