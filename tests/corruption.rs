//! Damage of every kind and place is found or does no harm: a small data folder, and of it
//! every byte changed in three ways, sectors and pages lost, garbled, old or misplaced, files
//! cut, doubled, removed, or another node's. Whatever is then read through the public
//! interface is what was written, or an error says that it cannot be.
//!
//! Two answers that are no errors are right as well. A database whose newest meta page is
//! damaged opens at the checkpoint before it, whole, and the log has the rest. And the end of a
//! log that was not closed may lose its very last batch to damage that looks like a torn
//! write: nothing on the disk proves that it was ever finished.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are a test")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mmapd::raft::message::IoToken;
use mmapd::raft::types::{EntryKind, HardState, Index, LogId, NodeId, Term};
use mmapd::store::disk::{Disk, FileKind};
use mmapd::store::simdisk::{Rng, SimDisk, Survival};
use mmapd::store::{
    Db, DbOptions, DbState, Identity, Log, LogOptions, Recovered, StoreError, Tree,
};

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 3 };
const SEGMENT: u64 = 12 << 10;
const MAP_MAX: u64 = 1 << 20;
const TREES: [Tree; 5] = [Tree::Kv, Tree::History, Tree::Ttl, Tree::Session, Tree::Meta];

type Files = BTreeMap<PathBuf, Vec<u8>>;
type Model = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

/// An entry as it was written.
#[derive(Debug, PartialEq)]
struct Held {
    id: LogId,
    kind: EntryKind,
    payload: Vec<u8>,
}

/// A data folder and what is in it.
struct Folder {
    /// The files at each stage of their making; the last is what is damaged.
    stages: Vec<Files>,
    entries: Vec<Held>,
    /// The last entry before the last batch.
    before_last: u64,
    hard: HardState,
    found: Recovered,
    frames: Vec<u8>,
    states: BTreeMap<u64, (DbState, Model)>,
    clean: bool,
}

/// What damage did.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Harmless,
    Detected,
    /// The last batch, of which nothing proves that it was finished, is gone.
    Torn,
}

fn log_dir() -> PathBuf {
    PathBuf::from("/data/log")
}

fn db_path() -> PathBuf {
    PathBuf::from("/data/mmapd.db")
}

fn open_log(disk: Arc<dyn Disk>, identity: Identity) -> Result<(Log, Recovered), StoreError> {
    let options = LogOptions { dir: log_dir(), segment_bytes: SEGMENT };
    Log::open(disk, options, identity.node, || identity)
}

fn open_db(disk: Arc<dyn Disk>, identity: Identity) -> Result<Db, StoreError> {
    let options =
        DbOptions { path: db_path(), map_max: MAP_MAX, quota: MAP_MAX / 2, grow_step: 4096 };
    Db::open(disk, options, identity)
}

fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    // No zeros, so that no sector looks as if it was never written.
    (0..len).map(|_| u8::try_from(rng.below(255) + 1).unwrap()).collect()
}

fn files(disk: &SimDisk) -> Files {
    let mut files = Files::new();
    for dir in [Path::new("/data"), Path::new("/data/log")] {
        for name in disk.list(dir).unwrap() {
            let path = dir.join(name);
            let content = disk.contents(&path);
            files.insert(path, content);
        }
    }
    files
}

fn disk_of(files: &Files) -> SimDisk {
    let disk = SimDisk::new(1);
    for (path, bytes) in files {
        let region = disk.create(path, FileKind::Db, bytes.len() as u64).unwrap();
        region.write_at(0, bytes).unwrap();
        region.sync_all().unwrap();
        disk.sync_dir(path.parent().unwrap()).unwrap();
    }
    disk
}

fn write(log: &mut Log) {
    let job = log.write(IoToken(1)).unwrap().unwrap();
    log.synced(job.run().unwrap());
}

impl Folder {
    fn new(identity: Identity, clean: bool) -> Self {
        let disk = SimDisk::new(1);
        let mut rng = Rng::new(identity.incarnation);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let (mut log, _) = open_log(shared.clone(), identity).unwrap();
        let mut db = open_db(shared.clone(), identity).unwrap();
        let mut stages = vec![files(&disk)];
        let (mut entries, mut states) = (Vec::new(), BTreeMap::new());
        let (mut model, mut before_last) = (Model::new(), 0);
        for batch in 0..9_u64 {
            before_last = entries.len() as u64;
            let term = 1 + batch / 3;
            if batch % 3 == 0 {
                let vote = Some(NodeId(1 + batch % 2));
                log.stage_hard_state(HardState { term: Term(term), vote });
            }
            for _ in 0..=rng.below(4) {
                let index = entries.len() as u64 + 1;
                let id = LogId { term: Term(term), index: Index(index) };
                let kind = if index % 4 == 2 { EntryKind::Config } else { EntryKind::Command };
                let len = usize::try_from(rng.below(900)).unwrap();
                let payload = bytes(&mut rng, len);
                log.stage_own(id, kind, &payload, 5);
                entries.push(Held { id, kind, payload });
            }
            write(&mut log);
            if batch % 3 == 1 {
                let last = entries.last().unwrap().id;
                change(&mut db, &mut rng, &mut model, last);
                let job = db.begin_checkpoint().unwrap().unwrap();
                db.finish_checkpoint(job.run().unwrap()).unwrap();
                states.insert(last.index.0, (db.state().clone(), model.clone()));
            }
            stages.push(files(&disk));
        }
        let hard = HardState { term: Term(3), vote: Some(NodeId(1)) };
        if clean {
            log.mark_clean().unwrap();
            stages.push(files(&disk));
        }
        drop((log, db));
        // What is found when nothing is damaged is what was written; the rest is compared
        // with it.
        let (log, found) = open_log(Arc::new(disk_of(stages.last().unwrap())), identity).unwrap();
        assert_eq!((found.hard_state, found.last), (hard, entries.last().unwrap().id));
        let sent = log.reader().frames(Index(1), found.last.index, usize::MAX).unwrap();
        let frames = sent.0.concat();
        Self { stages, entries, before_last, hard, found, frames, states, clean }
    }

    fn now(&self) -> &Files {
        self.stages.last().unwrap()
    }
}

/// One batch of changes, enough of them for some forty pages.
fn change(db: &mut Db, rng: &mut Rng, model: &mut Model, applied: LogId) {
    let mut txn = db.begin();
    let first = model.is_empty();
    for (number, tree) in TREES.into_iter().enumerate() {
        for key in 0..if first { 70 >> number } else { 6 } {
            let name = if first { key } else { rng.below(90) };
            let mut key = format!("key/{name:03}").into_bytes();
            if name % 23 == 7 {
                key.resize(700, b'x');
            }
            if rng.below(8) == 0 {
                txn.delete(tree, &key).unwrap();
                model.remove(&(number, key));
                continue;
            }
            let len = if name % 29 == 5 { 9000 } else { rng.below(300) };
            let value = bytes(rng, usize::try_from(len).unwrap());
            txn.put(tree, &key, &value).unwrap();
            model.insert((number, key), value);
        }
    }
    let state = txn.state_mut();
    state.applied = applied;
    state.revision = rng.draw();
    state.membership = bytes(rng, 40);
    txn.commit().unwrap();
}

/// Reads the log of a damaged folder. An error here is wrong data.
fn judge_log(disk: &SimDisk, folder: &Folder, may_tear: bool) -> Result<Outcome, String> {
    let Ok((log, found)) = open_log(Arc::new(disk.clone()), IDENTITY) else {
        return Ok(Outcome::Detected);
    };
    let want = &folder.found;
    if (found.base, found.base_chain) != (want.base, want.base_chain) {
        return Err(format!("begins after {:?}", found.base));
    }
    if found.hard_state != folder.hard || found.pending_install.is_some() {
        return Err(format!("hard state {:?}", found.hard_state));
    }
    let last = found.last.index.0;
    let torn = last == folder.before_last && may_tear && !folder.clean;
    if last != want.last.index.0 && !torn {
        return Err(format!("ends at {last} and not at {}", want.last.index.0));
    }
    let reader = log.reader();
    let mut outcome = if torn { Outcome::Torn } else { Outcome::Harmless };
    for held in &folder.entries[..usize::try_from(last).unwrap()] {
        let Some(entry) = reader.entry(held.id.index) else {
            outcome = Outcome::Detected;
            continue;
        };
        if (entry.id, entry.kind, &entry.payload[..]) != (held.id, held.kind, &held.payload[..]) {
            return Err(format!("entry {:?} is another", held.id));
        }
    }
    let frames = reader.frames(Index(1), found.last.index, usize::MAX);
    let frames = frames.map(|(slices, _)| slices.concat());
    if frames.as_ref().is_some_and(|found| !folder.frames.starts_with(found)) {
        return Err("other frames for a follower".to_owned());
    }
    let runs = want.runs.iter().filter(|run| run.index.0 <= last);
    let configs = want.configs.iter().filter(|(index, _)| index.0 <= last);
    if outcome != Outcome::Detected
        && (frames.is_none() || !found.runs.iter().eq(runs) || !found.configs.iter().eq(configs))
    {
        return Err("terms or configurations are others".to_owned());
    }
    Ok(outcome)
}

/// Reads the database of a damaged folder. An error here is wrong data.
fn judge_db(disk: &SimDisk, folder: &Folder) -> Result<Outcome, String> {
    let Ok(db) = open_db(Arc::new(disk.clone()), IDENTITY) else { return Ok(Outcome::Detected) };
    let applied = db.state().applied.index.0;
    let Some((state, model)) = folder.states.get(&applied).filter(|(state, _)| state == db.state())
    else {
        return Err(format!("another state, of entry {applied}"));
    };
    let mut outcome = Outcome::Harmless;
    // After a fall back the log must still have what is missing.
    if db.log_needed_from().index > state.applied.index {
        return Err("the log may be cut too far".to_owned());
    }
    let snapshot = db.published().snapshot();
    for ((tree, key), value) in model {
        match snapshot.get(TREES[*tree], key) {
            Ok(Some(found)) if found == value => {}
            Ok(_) => return Err(format!("another value of {}", String::from_utf8_lossy(key))),
            Err(_) => outcome = Outcome::Detected,
        }
    }
    for (number, tree) in TREES.into_iter().enumerate() {
        if let Ok(Some(_)) = snapshot.get(tree, b"key/500") {
            return Err("a value of a key that is not there".to_owned());
        }
        for reverse in [false, true] {
            let low = (number, Vec::new());
            let mut want: Vec<_> = model.range(low..(number + 1, Vec::new())).collect();
            if reverse {
                want.reverse();
            }
            let mut scan = snapshot.scan(tree, Bound::Unbounded, Bound::Unbounded, reverse);
            let mut want = want.into_iter();
            loop {
                match (scan.next(), want.next()) {
                    (Err(_), _) => break outcome = Outcome::Detected,
                    (Ok(None), None) => break,
                    (Ok(Some((key, value))), Some(((_, k), v))) if (key, value) == (k, v) => {}
                    (Ok(_), _) => return Err("a scan shows something else".to_owned()),
                }
            }
        }
    }
    match db.check() {
        Err(_) => Ok(Outcome::Detected),
        Ok(_) => Ok(outcome),
    }
}

/// Cases by what came of them, and what went wrong.
#[derive(Debug, Default)]
struct Tally {
    harmless: usize,
    detected: usize,
    torn: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn cases(&self) -> usize {
        self.harmless + self.detected + self.torn + self.wrong.len()
    }

    /// Counts a case; a panic in it is wrong as well.
    fn case(&mut self, name: impl FnOnce() -> String, judge: impl FnOnce() -> Judged) {
        let judged = catch_unwind(AssertUnwindSafe(judge));
        match judged.unwrap_or_else(|_| Err("it panicked".to_owned())) {
            Ok(Outcome::Harmless) => self.harmless += 1,
            Ok(Outcome::Detected) => self.detected += 1,
            Ok(Outcome::Torn) => self.torn += 1,
            Err(why) => self.wrong.push(format!("{}: {why}", name())),
        }
    }

    fn add(&mut self, other: Self) {
        self.harmless += other.harmless;
        self.detected += other.detected;
        self.torn += other.torn;
        self.wrong.extend(other.wrong);
    }

    #[track_caller]
    fn assert(&self, what: &str) {
        let Self { harmless, detected, torn, .. } = self;
        println!(
            "{what}: {} cases, {detected} detected, {harmless} harmless, {torn} torn tails",
            self.cases()
        );
        let mut first = String::new();
        for wrong in self.wrong.iter().take(20) {
            writeln!(first, "  {wrong}").unwrap();
        }
        assert!(self.wrong.is_empty(), "{} wrong, the first of them:\n{first}", self.wrong.len());
    }
}

type Judged = Result<Outcome, String>;

/// Runs pieces `0..pieces` on all cores.
fn spread(pieces: usize, work: impl Fn(usize, &mut Tally) + Sync) -> Tally {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut total = Tally::default();
    std::thread::scope(|scope| {
        let run = || {
            let mut tally = Tally::default();
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return tally;
                }
                work(piece, &mut tally);
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            total.add(thread.join().unwrap());
        }
    });
    total
}

/// The three changes of the bytes of a sector; of sectors that are all zeros every 64th byte.
fn changes(content: &[u8], sector: usize) -> impl Iterator<Item = (usize, u8)> {
    let from = sector * SECTOR;
    let part = &content[from..(from + SECTOR).min(content.len())];
    let step = if part.iter().all(|byte| *byte == 0) { 64 } else { 1 };
    part.iter().enumerate().step_by(step).flat_map(move |(at, &byte)| {
        let flipped = byte ^ (1 << (at % 8));
        let set = [0, 0xff].into_iter().filter(move |new| *new != byte && *new != flipped);
        std::iter::once(flipped).chain(set).map(move |new| (from + at, new))
    })
}

#[test]
fn no_changed_byte_of_the_database_is_served() {
    let folder = Folder::new(IDENTITY, true);
    let (path, content) = (db_path(), &folder.now()[&db_path()]);
    let only = Files::from([(path.clone(), content.clone())]);
    // Opening an intact database changes nothing, so that one disk serves many cases.
    let intact = disk_of(&only);
    let before = intact.op_count();
    assert_eq!(judge_db(&intact, &folder), Ok(Outcome::Harmless));
    let quiet = intact.op_count() - before;
    assert_eq!(files(&intact), only);
    println!("{} pages", content.len() / PAGE);
    let total = spread(content.len() / SECTOR, |sector, tally| {
        let mut disk = disk_of(&only);
        for (at, new) in changes(content, sector) {
            let before = disk.op_count();
            disk.damage(&path, at as u64, &[new]);
            tally.case(|| format!("byte {at} is {new:#x}"), || judge_db(&disk, &folder));
            if disk.op_count() - before == quiet {
                disk.damage(&path, at as u64, &[content[at]]);
            } else {
                disk = disk_of(&only);
            }
        }
    });
    total.assert("database");
    assert!(total.cases() > 100_000 && total.detected > total.harmless);
}

fn log_only(files: &Files) -> Files {
    files
        .iter()
        .filter(|(path, _)| **path != db_path())
        .map(|(p, b)| (p.clone(), b.clone()))
        .collect()
}

fn sweep_log(clean: bool) {
    let folder = Folder::new(IDENTITY, clean);
    let only = log_only(folder.now());
    assert!(only.len() >= 3, "a hard state and two segments");
    assert_eq!(judge_log(&disk_of(&only), &folder, false), Ok(Outcome::Harmless));
    let pieces: Vec<_> = only
        .iter()
        .flat_map(|(path, bytes)| (0..bytes.len() / SECTOR).map(move |sector| (path, sector)))
        .collect();
    let total = spread(pieces.len(), |piece, tally| {
        let (path, sector) = pieces[piece];
        let intact = disk_of(&only);
        for (at, new) in changes(&only[path], sector) {
            let disk = intact.image(Survival::All);
            disk.damage(path, at as u64, &[new]);
            let name = || format!("byte {at} of {} is {new:#x}", path.display());
            tally.case(name, || judge_log(&disk, &folder, false));
        }
    });
    total.assert(if clean { "log, closed" } else { "log, not closed" });
    assert!(total.cases() > 10_000 && total.detected > 1000);
}

#[test]
fn no_changed_byte_of_a_closed_log_is_served() {
    sweep_log(true);
}

#[test]
fn no_changed_byte_of_a_log_that_was_not_closed_is_served() {
    sweep_log(false);
}

/// Folders with larger damage, one after the other.
fn directed(folder: &Folder, mut case: impl FnMut(String, Files)) {
    let now = folder.now();
    for (path, bytes) in now {
        let name = path.file_name().unwrap().to_string_lossy();
        let mut rng = Rng::new(bytes.len() as u64);
        let mut with = |what: String, new: Vec<u8>| {
            if new != *bytes {
                let mut files = now.clone();
                files.insert(path.clone(), new);
                case(format!("{name}: {what}"), files);
            }
        };
        for size in [SECTOR, PAGE] {
            for at in (0..bytes.len()).step_by(size) {
                let range = at..(at + size).min(bytes.len());
                let garbage = super_bytes(&mut rng, range.len());
                for (how, part) in [("zeros", vec![0; range.len()]), ("garbage", garbage)] {
                    let mut new = bytes.clone();
                    new[range.clone()].copy_from_slice(&part);
                    with(format!("{size} bytes of {how} at {at}"), new);
                }
            }
        }
        for len in (0..bytes.len()).step_by(SECTOR) {
            with(format!("cut at {len}"), bytes[..len].to_vec());
        }
        let pages: Vec<_> = (0..bytes.len() / PAGE).map(|n| n * PAGE..(n + 1) * PAGE).collect();
        // A write that the disk lost.
        for (stage, files) in folder.stages.iter().enumerate() {
            let Some(old) = files.get(path) else { continue };
            for page in pages.iter().filter(|page| page.end <= old.len()) {
                let mut new = bytes.clone();
                new[page.clone()].copy_from_slice(&old[page.clone()]);
                with(format!("byte {} on as at stage {stage}", page.start), new);
            }
        }
        // Writes that went elsewhere.
        for from in &pages {
            for to in pages.iter().filter(|to| *to != from) {
                let mut new = bytes.clone();
                new[to.clone()].copy_from_slice(&bytes[from.clone()]);
                with(format!("page {} at {} as well", from.start, to.start), new.clone());
                if from.start < to.start {
                    new[from.clone()].copy_from_slice(&bytes[to.clone()]);
                    with(format!("pages {} and {} swapped", from.start, to.start), new);
                }
            }
        }
        let mut files = now.clone();
        files.remove(path);
        case(format!("{name}: removed"), files);
    }
}

fn super_bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.draw().to_le_bytes()[0]).collect()
}

fn judge_both(files: &Files, folder: &Folder) -> Judged {
    let judge = |files: &Files| {
        let disk = disk_of(files);
        // A folder that lost its database, or all of its log, begins anew: `node::open` sees
        // that one is there without the other.
        if !files.contains_key(&db_path()) || !files.contains_key(&log_dir().join("hard.state")) {
            let log = open_log(Arc::new(disk), IDENTITY);
            return match log {
                Ok(_) if !files.contains_key(&db_path()) => Ok(Outcome::Detected),
                Ok(_) => Err("a log without a hard state was opened".to_owned()),
                Err(_) => Ok(Outcome::Detected),
            };
        }
        let (db, log) = (judge_db(&disk, folder)?, judge_log(&disk, folder, true)?);
        Ok(match (db, log) {
            (Outcome::Detected, _) | (_, Outcome::Detected) => Outcome::Detected,
            (_, torn) => torn,
        })
    };
    judge(files)
}

fn larger_damage(clean: bool) {
    let folder = Folder::new(IDENTITY, clean);
    let mut cases = Vec::new();
    directed(&folder, |name, files| cases.push((name, files)));
    let total = spread(cases.len(), |piece, tally| {
        let (name, files) = &cases[piece];
        tally.case(|| name.clone(), || judge_both(files, &folder));
    });
    total.assert(if clean { "larger damage, closed" } else { "larger damage, not closed" });
    assert!(total.cases() > 2000 && total.detected > 1000);
    assert!(!clean || total.torn == 0);
}

#[test]
fn larger_damage_of_a_closed_folder_is_found() {
    larger_damage(true);
}

#[test]
fn larger_damage_of_a_folder_that_was_not_closed_is_found() {
    larger_damage(false);
}

/// Segments copied, exchanged, left out; files of others.
#[test]
fn files_in_the_wrong_place_are_found() {
    let folder = Folder::new(IDENTITY, true);
    let now = folder.now();
    let segments: Vec<&PathBuf> = now
        .keys()
        .filter(|path| path.starts_with(log_dir()) && !path.ends_with("hard.state"))
        .collect();
    let mut cases: Vec<(String, Files)> = Vec::new();
    for from in &segments {
        for to in segments.iter().filter(|to| *to != from) {
            let mut files = now.clone();
            files.insert((*to).clone(), now[*from].clone());
            cases.push((format!("{} as {}", from.display(), to.display()), files.clone()));
            files.insert((*from).clone(), now[*to].clone());
            cases.push((format!("{} and {} swapped", from.display(), to.display()), files));
        }
        // Behind the last one, under the number that comes next.
        let mut files = now.clone();
        let last = segments.last().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let (digits, rest) = last.split_at(last.find('.').unwrap_or(last.len()));
        let next = u64::from_str_radix(digits, 16).unwrap() + 1;
        let name = format!("{next:0width$x}{rest}", width = digits.len());
        files.insert(log_dir().join(&name), now[*from].clone());
        cases.push((format!("{} once more as {name}", from.display()), files));
    }
    let strangers = [Identity { cluster: 8, ..IDENTITY }, Identity { node: NodeId(2), ..IDENTITY }];
    for identity in strangers {
        let other = Folder::new(identity, true);
        for path in now.keys() {
            let mut files = now.clone();
            // Its name differs only where a file is missing there.
            let Some(bytes) = other.now().get(path) else { continue };
            files.insert(path.clone(), bytes.clone());
            cases.push((format!("{} of {identity:?}", path.display()), files));
        }
    }
    let mut total = Tally::default();
    for (name, files) in &cases {
        total.case(|| name.clone(), || judge_both(files, &folder));
    }
    total.assert("files in the wrong place");
    assert_eq!(total.detected, total.cases(), "each of these contradicts something");
}
