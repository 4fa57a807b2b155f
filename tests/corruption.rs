//! Damage of every kind and place is found or does no harm: a small data folder, and of it
//! every byte changed in three ways, sectors and pages lost, garbled, old or misplaced, files
//! cut, doubled, removed, or another node's. Whatever is then read through the public
//! interface is what was written, or an error says that it cannot be.
//!
//! Some answers that are no errors are right as well. A database whose newest meta page is
//! damaged opens at the checkpoint before it, whole, and the log has the rest. A log without
//! its oldest segment is one that was compacted, if the database needs no more. And the end of
//! a log that was not closed may be lost to damage that looks like a torn write, but only so
//! far as nothing that is left on the disk proves that it was ever finished: the judge refuses
//! it when the header of a later batch is still there.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are a test")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mmapd::node::{OpenOptions, open};
use mmapd::raft::config::Config;
use mmapd::raft::message::IoToken;
use mmapd::raft::types::{EntryKind, HardState, Index, LogId, Membership, NodeId, Term};
use mmapd::store::disk::{Disk, FileKind};
use mmapd::store::frame;
use mmapd::store::simdisk::{Rng, SimDisk, Survival};
use mmapd::store::{
    Db, DbOptions, DbState, Identity, Log, LogOptions, Recovered, Shrink, StoreError, Tree,
};
use mmapd::wire;

const PAGE: usize = 4096;
const SECTOR: usize = 512;
const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 3 };
const SEGMENT: u64 = 12 << 10;
const MAP_MAX: u64 = 1 << 20;
const TREES: [Tree; 6] =
    [Tree::Kv, Tree::History, Tree::Ttl, Tree::Session, Tree::Meta, Tree::Deleted];

type Files = BTreeMap<PathBuf, Vec<u8>>;
type Model = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

/// An entry as it was written.
#[derive(Debug, PartialEq)]
struct Held {
    id: LogId,
    kind: EntryKind,
    chain: u64,
    payload: Vec<u8>,
    /// Where its frame begins in the run of all of them.
    at: usize,
}

/// The header of a batch: in which file, where, and the first entry behind it.
struct Header {
    path: PathBuf,
    at: usize,
    first: u64,
}

/// A data folder and what is in it.
struct Folder {
    /// The files at each stage of their making; the last is what is damaged.
    stages: Vec<Files>,
    entries: Vec<Held>,
    headers: Vec<Header>,
    hard: HardState,
    found: Recovered,
    frames: Vec<u8>,
    states: BTreeMap<u64, (DbState, Model)>,
    identity: Identity,
    clean: bool,
}

/// What damage did.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Harmless,
    Detected,
    /// The end of the log, of which nothing proves that it was finished, is gone.
    Torn,
}

fn log_dir() -> PathBuf {
    PathBuf::from("/data/log")
}

fn db_path() -> PathBuf {
    PathBuf::from("/data/mmapd.db")
}

fn log_options() -> LogOptions {
    LogOptions { dir: log_dir(), segment_bytes: SEGMENT, repairable: false }
}

fn db_options() -> DbOptions {
    DbOptions {
        path: db_path(),
        map_max: MAP_MAX,
        quota: MAP_MAX / 2,
        grow_step: 4096,
        shrink: Shrink::default(),
    }
}

fn open_log(disk: &SimDisk, identity: Identity) -> Result<(Log, Recovered), StoreError> {
    Log::open(Arc::new(disk.clone()), log_options(), identity.node, || identity)
}

fn open_db(disk: &SimDisk, identity: Identity) -> Result<Db, StoreError> {
    Db::open(Arc::new(disk.clone()), db_options(), identity)
}

/// What an entry holds: no zeros among commands, so that no sector looks never written.
fn payload(rng: &mut Rng, kind: EntryKind) -> Vec<u8> {
    if kind == EntryKind::Config {
        let address = format!("http://host-{}", rng.below(1000));
        return wire::encode_membership(&Membership::of([(NodeId(1), address)].into()));
    }
    let len = usize::try_from(rng.below(900)).unwrap();
    bytes(rng, len)
}

fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
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

impl Folder {
    fn new(identity: Identity, clean: bool) -> Self {
        let disk = SimDisk::new(1);
        let mut rng = Rng::new(identity.incarnation);
        let (mut log, _) = open_log(&disk, identity).unwrap();
        let mut db = open_db(&disk, identity).unwrap();
        let mut stages = vec![files(&disk)];
        let mut states = BTreeMap::from([(0, (DbState::default(), Model::new()))]);
        let (mut entries, mut model, mut frames_at) = (Vec::new(), Model::new(), 0);
        for batch in 0..12_u64 {
            let term = 1 + batch / 4;
            if batch % 4 == 0 {
                let vote = Some(NodeId(1 + batch % 2));
                log.stage_hard_state(HardState { term: Term(term), vote });
            }
            for _ in 0..=rng.below(4) {
                let index = entries.len() as u64 + 1;
                let id = LogId { term: Term(term), index: Index(index) };
                let kind = if index % 4 == 2 { EntryKind::Config } else { EntryKind::Command };
                let payload = payload(&mut rng, kind);
                log.stage_own(id, kind, &payload, 5);
                let at = frames_at;
                frames_at += frame::size_of(payload.len());
                entries.push(Held { id, kind, chain: 0, payload, at });
            }
            let job = log.write(IoToken(1)).unwrap().unwrap();
            log.synced(job.run().unwrap());
            if batch % 3 == 1 {
                let last = entries.last().unwrap().id;
                let chain = log.chain_at(last.index).unwrap();
                change(&mut db, &mut rng, &mut model, last, chain);
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
        let now = stages.last().unwrap();
        let (log, found) = open_log(&disk_of(now), identity).unwrap();
        assert_eq!((found.hard_state, found.last), (hard, entries.last().unwrap().id));
        for held in &mut entries {
            held.chain = log.chain_at(held.id.index).unwrap();
        }
        let sent = log.reader().frames(Index(1), found.last.index, usize::MAX).unwrap();
        let frames = sent.0.concat();
        let headers = headers(now);
        assert_eq!(headers.len(), 12, "one for each batch");
        Self { stages, entries, headers, hard, found, frames, states, identity, clean }
    }

    fn now(&self) -> &Files {
        self.stages.last().unwrap()
    }

    /// Is there proof in `files` that more than `last` entries were finished? All batches
    /// but the very last are proven by the header of the one after them.
    fn proven_beyond(&self, files: &Files, last: u64) -> bool {
        self.headers.iter().filter(|header| header.first > last + 1).any(|header| {
            let Header { path, at, .. } = header;
            let found = files.get(path).and_then(|bytes| bytes.get(*at..at + 80));
            found == Some(&self.now()[path][*at..at + 80])
        })
    }
}

/// The headers of all batches that hold entries.
fn headers(files: &Files) -> Vec<Header> {
    let mut headers = Vec::new();
    for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with(log_dir())) {
        for at in (PAGE..bytes.len()).step_by(64) {
            if bytes[at..].starts_with(b"BTCH") && bytes[at + 28..at + 32] != [0; 4] {
                let first = u64::from_le_bytes(bytes[at + 32..at + 40].try_into().unwrap());
                headers.push(Header { path: path.clone(), at, first });
            }
        }
    }
    headers
}

/// One batch of changes, enough of them for some forty pages.
fn change(db: &mut Db, rng: &mut Rng, model: &mut Model, applied: LogId, chain: u64) {
    let mut txn = db.begin();
    let first = model.is_empty();
    for (number, tree) in TREES.into_iter().enumerate() {
        for key in 0..if first { 50 >> number } else { 4 } {
            let name = if first { key } else { rng.below(60) };
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
    state.chain = chain;
    state.revision = rng.draw();
    state.membership = payload(rng, EntryKind::Config);
    txn.commit().unwrap();
}

/// Reads the log of a damaged folder, of which `files` are the bytes before it was opened. An
/// error here is wrong data.
fn judge_log(log: &Log, found: &Recovered, folder: &Folder, files: &Files) -> Judged {
    let want = &folder.found;
    let (base, last) = (found.base.index.0, found.last.index.0);
    let all = &folder.entries;
    let before = base.checked_sub(1).map(|at| &all[usize::try_from(at).unwrap()]);
    let before = before.map_or((want.base, want.base_chain), |held| (held.id, held.chain));
    if (found.base, found.base_chain) != before {
        return Err(format!("begins after {:?}", found.base));
    }
    if found.hard_state != folder.hard || found.pending_install.is_some() {
        return Err(format!("hard state {:?}", found.hard_state));
    }
    if last > all.len() as u64 {
        return Err(format!("ends at {last}"));
    }
    let mut outcome = Outcome::Harmless;
    if last < all.len() as u64 {
        if folder.clean || folder.proven_beyond(files, last) {
            return Err(format!("ends at {last} and not at {}", want.last.index.0));
        }
        outcome = Outcome::Torn;
    }
    let reader = log.reader();
    let held = &all[usize::try_from(base).unwrap()..usize::try_from(last).unwrap()];
    for Held { id, kind, chain, payload, .. } in held {
        let Some(entry) = reader.entry(id.index) else {
            outcome = Outcome::Detected;
            continue;
        };
        if (entry.id, entry.kind, entry.chain, &entry.payload[..]) != (*id, *kind, *chain, payload)
        {
            return Err(format!("entry {id:?} is another"));
        }
    }
    let sent = reader.frames(Index(base + 1), found.last.index, usize::MAX);
    let sent = sent.map(|(slices, _)| slices.concat());
    let from = held.first().map_or(folder.frames.len(), |held| held.at);
    if sent.as_ref().is_some_and(|sent| !folder.frames[from..].starts_with(sent)) {
        return Err("other frames for a follower".to_owned());
    }
    let mut runs: Vec<LogId> = held.iter().map(|held| held.id).collect();
    runs.dedup_by_key(|id| id.term);
    let configs = held.iter().filter(|held| held.kind == EntryKind::Config);
    let configs = configs.map(|held| (held.id.index, held.payload.clone()));
    if outcome != Outcome::Detected
        && (sent.is_some() == held.is_empty()
            || found.runs != runs
            || !found.configs.iter().cloned().eq(configs))
    {
        return Err("terms or configurations are others".to_owned());
    }
    Ok(outcome)
}

/// Reads the database of a damaged folder. An error here is wrong data.
fn judge_db(db: &Db, folder: &Folder) -> Judged {
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
    let judge = |disk: &SimDisk| match open_db(disk, IDENTITY) {
        Ok(db) => judge_db(&db, &folder),
        Err(_) => Ok(Outcome::Detected),
    };
    assert_eq!(judge(&intact), Ok(Outcome::Harmless));
    let quiet = intact.op_count() - before;
    assert_eq!(files(&intact), only);
    println!("{} pages", content.len() / PAGE);
    let total = spread(content.len() / SECTOR, |sector, tally| {
        let mut disk = disk_of(&only);
        for (at, new) in changes(content, sector) {
            let before = disk.op_count();
            disk.damage(&path, at as u64, &[new]);
            tally.case(|| format!("byte {at} is {new:#x}"), || judge(&disk));
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
    let judge = |disk: &SimDisk| {
        let files = files(disk);
        match open_log(disk, IDENTITY) {
            Ok((log, found)) => judge_log(&log, &found, &folder, &files),
            Err(_) => Ok(Outcome::Detected),
        }
    };
    assert_eq!(judge(&disk_of(&only)), Ok(Outcome::Harmless));
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
            tally.case(name, || judge(&disk));
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
                let garbage = garbage(&mut rng, range.len());
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

fn garbage(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.draw().to_le_bytes()[0]).collect()
}

/// Opens the folder as a node does.
fn judge_folder(files: &Files, folder: &Folder) -> Judged {
    let options = OpenOptions {
        fresh: folder.identity,
        members: [(NodeId(1), "http://host-1".to_owned())].into(),
        joined: None,
        log: log_options(),
        db: db_options(),
        raft: Config::new(NodeId(1), 1),
    };
    let Ok((parts, found)) = open(Arc::new(disk_of(files)), options) else {
        return Ok(Outcome::Detected);
    };
    let log = judge_log(&parts.log, &found, folder, files)?;
    Ok(match (judge_db(&parts.db, folder)?, log) {
        (Outcome::Detected, _) | (_, Outcome::Detected) => Outcome::Detected,
        (_, log) => log,
    })
}

fn larger_damage(clean: bool) {
    let folder = Folder::new(IDENTITY, clean);
    let mut cases = Vec::new();
    directed(&folder, |name, files| cases.push((name, files)));
    let total = spread(cases.len(), |piece, tally| {
        let (name, files) = &cases[piece];
        tally.case(|| name.clone(), || judge_folder(files, &folder));
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
        total.case(|| name.clone(), || judge_folder(files, &folder));
    }
    total.assert("files in the wrong place");
    assert_eq!(total.detected, total.cases(), "each of these contradicts something");
}
