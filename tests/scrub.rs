//! The scrubber on a disk that rots below a good page cache: damage is found wherever it is,
//! with its place, and a store in full change is never accused.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are a test")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers, drawn below a bound")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mmapd::raft::message::IoToken;
use mmapd::raft::types::{EntryKind, Index, LogId, NodeId, Term};
use mmapd::store::disk::{Disk, FileKind, LinuxDisk};
use mmapd::store::simdisk::{Rng, SimDisk};
use mmapd::store::{Db, DbOptions, Finding, Identity, Log, LogOptions, Scrub, Shrink, Tree};

const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 3 };
const PAGE: usize = 4096;

struct Store {
    sim: SimDisk,
    log: Log,
    db: Db,
    applied: u64,
    index: u64,
}

fn log_dir() -> PathBuf {
    PathBuf::from("/log")
}

fn db_path() -> PathBuf {
    PathBuf::from("/db")
}

fn open(sim: &SimDisk) -> (Log, Db) {
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let options = LogOptions { dir: log_dir(), segment_bytes: 16 << 10, repairable: false };
    let (log, _) = Log::open(Arc::clone(&disk), options, NodeId(1), || IDENTITY).unwrap();
    let options = DbOptions {
        path: db_path(),
        map_max: 16 << 20,
        quota: 12 << 20,
        grow_step: 64 << 10,
        shrink: Shrink::default(),
    };
    (log, Db::open(disk, options, IDENTITY).unwrap())
}

impl Store {
    fn new(seed: u64) -> Self {
        let sim = SimDisk::new(seed);
        let (log, db) = open(&sim);
        Self { sim, log, db, applied: 0, index: 0 }
    }

    fn append(&mut self, entries: u64, rng: &mut Rng) {
        for _ in 0..entries {
            self.index += 1;
            let id = LogId { term: Term(1), index: Index(self.index) };
            let payload = vec![self.index as u8; rng.below(900) as usize];
            self.log.stage_own(id, EntryKind::Command, &payload, self.index);
        }
        let job = self.log.write(IoToken(self.index)).unwrap().unwrap();
        self.log.synced(job.run().unwrap());
    }

    fn change(&mut self, puts: u64, rng: &mut Rng) {
        self.applied += 1;
        let mut txn = self.db.begin();
        for _ in 0..puts {
            let key = format!("key {:04}", rng.below(400)).into_bytes();
            if rng.below(4) == 0 {
                txn.delete(Tree::Kv, &key).unwrap();
                continue;
            }
            let len = if rng.below(8) == 0 { 9000 } else { rng.below(300) } as usize;
            txn.put(Tree::Kv, &key, &vec![rng.draw() as u8; len]).unwrap();
        }
        txn.state_mut().applied = LogId { term: Term(1), index: Index(self.applied) };
        txn.commit().unwrap();
    }

    fn checkpoint(&mut self) {
        if let Some(job) = self.db.begin_checkpoint().unwrap() {
            self.db.finish_checkpoint(job.run().unwrap()).unwrap();
        }
    }

    fn scrub(&mut self) -> Scrub {
        Scrub::new(self.log.reader(), self.db.pin().unwrap())
    }

    fn findings(&mut self) -> Vec<Finding> {
        finish(&mut self.scrub())
    }

    fn segments(&self) -> Vec<PathBuf> {
        let names = self.sim.list(&log_dir()).unwrap();
        names.iter().filter(|n| n.ends_with(".seg")).map(|n| log_dir().join(n)).collect()
    }
}

fn finish(scrub: &mut Scrub) -> Vec<Finding> {
    let mut findings = Vec::new();
    loop {
        let progress = scrub.step(10_000).unwrap();
        findings.extend(progress.findings);
        if progress.done {
            return findings;
        }
    }
}

fn filled(seed: u64) -> (Store, Rng) {
    let (mut store, mut rng) = (Store::new(seed), Rng::new(seed));
    for _ in 0..30 {
        store.append(1 + rng.below(6), &mut rng);
        store.change(40, &mut rng);
    }
    store.checkpoint();
    (store, rng)
}

fn on_disk(store: &Store, path: &Path) -> Vec<u8> {
    store.sim.on_disk(path)
}

#[test]
fn every_bit_that_rots_below_a_good_cache_is_found_at_its_place() {
    let (mut store, mut rng) = filled(1);
    assert_eq!(store.findings(), [], "nothing is damaged yet");
    let mut seen = [0_u32; 3];
    for path in store.segments().into_iter().chain([db_path()]) {
        let good = on_disk(&store, &path);
        let cached = store.sim.contents(&path);
        for _ in 0..150 {
            let offset = rng.below(good.len() as u64);
            let bit = rng.below(8) as u8;
            store.sim.rot(&path, offset, bit);
            assert_eq!(store.sim.contents(&path), cached, "reads go on");
            let found = store.findings();
            store.sim.rot(&path, offset, bit);
            assert!(found.len() <= 1, "one bit, one finding: {found:?}");
            let Some(finding) = found.first() else { continue };
            assert_eq!(Path::new(finding.file()), path);
            assert!(finding.offset() <= offset, "{finding} is behind byte {offset}");
            seen[match finding {
                Finding::Log { .. } => 0,
                Finding::Db { page, pages, .. } => {
                    let end = (page + pages) * PAGE as u64;
                    assert!(offset < end, "{finding} does not hold byte {offset}");
                    1
                }
                Finding::Meta { .. } => 2,
            }] += 1;
        }
    }
    assert!(seen[0] > 100 && seen[1] > 20, "{seen:?}");
    assert_eq!(store.findings(), []);
}

#[test]
fn a_rotten_payload_names_its_entry_and_a_rotten_header_its_segment() {
    let (mut store, _) = filled(2);
    let path = store.segments().remove(0);
    // The first batch begins behind the header of the segment, its first frame behind its own.
    store.sim.rot(&path, 4096 + 80 + 48, 0);
    let file = path.display().to_string();
    let (offset, first) = (4096 + 80, Index(1));
    assert_eq!(store.findings(), [Finding::Log { file: file.clone(), offset, first, last: first }]);
    store.sim.rot(&path, 4096 + 80 + 48, 0);
    store.sim.rot(&path, 20, 0);
    assert_eq!(store.findings(), [], "the header has a second copy");
    store.sim.rot(&path, 2048 + 20, 0);
    let found = store.findings();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].file(), found[0].offset()), (&*file, 0));
}

#[test]
fn repaired_entries_and_marks_are_not_accused() {
    let (mut store, mut rng) = filled(5);
    let mark = |store: &mut Store| {
        if store.log.stage_mark() {
            let job = store.log.write(IoToken(store.index)).unwrap().unwrap();
            store.log.synced(job.run().unwrap());
        }
    };
    mark(&mut store);
    assert_eq!(store.findings(), [], "a mark");
    let path = store.segments().remove(0);
    store.sim.rot(&path, 4096 + 80 + 48, 0);
    assert_eq!(store.findings().len(), 1);
    let mut copies = Vec::new();
    for index in [1, 4, 5, 9].map(Index) {
        let (frames, _) = store.log.reader().frames(index, index, usize::MAX).unwrap();
        copies.extend(frames.iter().flat_map(|frame| frame.to_vec()));
        store.log.mark_damaged(index, index);
    }
    assert_eq!(store.log.repair(&copies).unwrap(), 4);
    assert_eq!(store.findings(), [], "only the old copy is damaged");
    store.append(5, &mut rng);
    mark(&mut store);
    store.append(2, &mut rng);
    assert_eq!(store.findings(), []);
}

#[test]
fn the_meta_page_of_the_last_checkpoint_is_looked_at() {
    let (mut store, mut rng) = filled(3);
    let slot = |store: &mut Store| {
        [0_u64, 16].map(|slot| {
            store.sim.rot(&db_path(), slot * PAGE as u64 + 100, 3);
            let found = store.findings();
            store.sim.rot(&db_path(), slot * PAGE as u64 + 100, 3);
            found == [Finding::Meta { file: "/db".into(), slot }]
        })
    };
    let before = slot(&mut store);
    store.change(1, &mut rng);
    store.checkpoint();
    let after = slot(&mut store);
    assert!(before[0] != before[1] && before[0] == after[1] && before[1] == after[0]);
}

/// A write of a page that the disk swallowed: the old page is intact by itself.
fn swallow_one_write(trusting: bool) -> bool {
    let (mut store, mut rng) = filled(4);
    for _ in 0..40 {
        let before = on_disk(&store, &db_path());
        store.change(60, &mut rng);
        store.checkpoint();
        let after = on_disk(&store, &db_path());
        for page in 17..before.len() / PAGE {
            let range = page * PAGE..(page + 1) * PAGE;
            let (old, new) = (&before[range.clone()], &after[range.clone()]);
            let is_tree = |bytes: &[u8]| {
                bytes[8..16] == (page as u64).to_le_bytes()
                    && bytes[..4] == crc32c::crc32c(&bytes[4..]).to_le_bytes()
            };
            if old == new || !is_tree(old) || !is_tree(new) || old[4] != new[4] {
                continue;
            }
            let flip = |store: &Store| {
                for (at, (old, new)) in old.iter().zip(new).enumerate() {
                    for bit in (0..8).filter(|bit| (old ^ new) >> bit & 1 == 1) {
                        store.sim.rot(&db_path(), (range.start + at) as u64, bit);
                    }
                }
            };
            flip(&store);
            let mut scrub = store.scrub();
            scrub.plant_trust(trusting);
            let found = finish(&mut scrub);
            flip(&store);
            let wanted = Finding::Db { file: "/db".into(), page: page as u64, pages: 1 };
            if found == [wanted] {
                return true;
            }
        }
    }
    false
}

#[test]
fn a_page_that_was_never_written_is_found_by_the_checksum_in_its_parent() {
    assert!(swallow_one_write(false));
    assert!(!swallow_one_write(true), "the page's own checksum says nothing of this");
}

#[test]
fn a_store_in_full_change_is_never_accused() {
    for seed in 0..300 {
        let (mut store, mut rng) = (Store::new(seed), Rng::new(seed));
        let (mut scrub, mut job, mut passes) = (store.scrub(), None, 0);
        for _ in 0..150 {
            match rng.below(8) {
                0 => store.append(1 + rng.below(9), &mut rng),
                1 | 2 => store.change(1 + rng.below(30), &mut rng),
                3 if job.is_none() => job = store.db.begin_checkpoint().unwrap(),
                4 => {
                    if let Some(job) = job.take() {
                        store.db.finish_checkpoint(job.run().unwrap()).unwrap();
                    }
                }
                5 if rng.below(4) == 0 => {
                    let upto = Index(rng.below(store.index + 1));
                    store.log.compact(upto).unwrap();
                }
                6 if store.index > store.log.first().0 && rng.below(4) == 0 => {
                    // A leader replaces the end of the log.
                    let first = store.log.first().0;
                    store.index = first + rng.below(store.index - first);
                    store.append(1 + rng.below(3), &mut rng);
                }
                _ => {
                    let progress = scrub.step(1 + rng.below(40_000)).unwrap();
                    assert_eq!(progress.findings, [], "seed {seed}");
                    if progress.done {
                        passes += 1;
                        scrub = store.scrub();
                    }
                }
            }
        }
        assert_eq!(finish(&mut scrub), [], "seed {seed}");
        assert!(passes > 0, "seed {seed}");
    }
}

#[test]
fn a_store_that_lost_power_is_not_accused() {
    for seed in 0..50 {
        let (store, mut rng) = filled(seed);
        let sim = store.sim.crash(&mut rng);
        let (log, db) = open(&sim);
        let mut store = Store { sim, log, db, applied: store.applied, index: store.index };
        assert_eq!(store.findings(), [], "seed {seed}");
        store.append(3, &mut rng);
        assert_eq!(store.findings(), [], "seed {seed}");
    }
}

#[test]
fn a_real_disk_gives_any_range_also_of_a_file_that_was_removed() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (path, disk) = (dir.path().join("file"), LinuxDisk::new(None));
    let region = disk.create(&path, FileKind::Log, 1 << 20).unwrap();
    let mut rng = Rng::new(9);
    let bytes: Vec<u8> = (0..30_001).map(|_| rng.draw() as u8).collect();
    region.write_at(0, &bytes).unwrap();
    region.sync_all().unwrap();
    disk.remove(&path).unwrap();
    for _ in 0..200 {
        let from = rng.below(30_001) as usize;
        let mut found = vec![0; rng.below((30_002 - from) as u64) as usize];
        if !found.is_empty() {
            region.read_disk(from as u64, &mut found).unwrap();
        }
        assert_eq!(found, bytes[from..from + found.len()]);
    }
    assert!(region.read_disk(30_000, &mut [0; 2]).is_err(), "beyond the end");
}
