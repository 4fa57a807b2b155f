//! The log: what a durable append costs the device, beside a bare write and sync, and beside
//! a checkpoint.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mmapd::raft::message::IoToken;
use mmapd::raft::types::{EntryKind, Index, LogId, NodeId, Term};
use mmapd::store::disk::{FileKind, LinuxDisk, Observer};
use mmapd::store::pace::SYNC_EVERY;
use mmapd::store::{Log, LogOptions, Pace};
use rustix::fs::{Advice, fadvise};

use crate::compare::random;
use crate::engines::{Engine, IDENTITY, Mmapd};
use crate::report::{at_most, quantile, spread};

const VALUE: [u8; 256] = [7; 256];
const SEGMENT: u64 = 16 << 20;
const PAGE: f64 = 4096.0;

pub(crate) fn all(dir: &Path) {
    println!("\nThe log\n");
    appends(&dir.join("appends"));
    device_bytes(&dir.join("bytes"));
    beside_a_checkpoint(&dir.join("pacing"));
}

/// How long the syncs of log files took.
#[derive(Debug, Default)]
struct Syncs(Mutex<Vec<f64>>);

impl Observer for Syncs {
    fn synced(&self, kind: FileKind, _: u64, took: Duration) {
        if kind == FileKind::Log {
            self.0.lock().unwrap().push(took.as_secs_f64());
        }
    }
    fn sync_failed(&self, _: FileKind) {}
    fn mapped(&self, _: FileKind, _: u64) {}
    fn unmapped(&self, _: FileKind, _: u64) {}
}

struct Appends {
    log: Log,
    index: u64,
    dir: PathBuf,
    syncs: Arc<Syncs>,
}

impl Appends {
    fn open(dir: &Path, segment_bytes: u64) -> Self {
        let syncs = Arc::new(Syncs::default());
        let disk = Arc::new(LinuxDisk::new(Some(syncs.clone())));
        let dir = dir.join("log");
        let options = LogOptions { dir: dir.clone(), segment_bytes, repairable: false };
        let (log, _) = Log::open(disk, options, NodeId(1), || IDENTITY).unwrap();
        let mut appends = Self { log, index: 0, dir, syncs };
        appends.append(1); // the first one makes the segment
        appends
    }

    /// Appends `size` entries as one batch, durably.
    fn append(&mut self, size: u64) {
        for _ in 0..size {
            self.index += 1;
            let id = LogId { term: Term(1), index: Index(self.index) };
            self.log.stage_own(id, EntryKind::Command, &VALUE, 0);
        }
        let job = self.log.write(IoToken(self.index)).unwrap().unwrap();
        let synced = job.run().unwrap();
        self.log.synced(synced);
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.dir).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
    }

    /// How long the syncs took since the last call.
    fn taken(&self) -> Vec<f64> {
        std::mem::take(&mut *self.syncs.0.lock().unwrap())
    }
}

/// Durable appends a second, beside a write and sync of a file that is there already.
fn appends(dir: &Path) {
    const APPENDS: u64 = 2000;
    const ROUNDS: usize = 3;
    std::fs::create_dir_all(dir).unwrap();
    let mut appends = Appends::open(dir, SEGMENT);
    let file = OpenOptions::new().create_new(true).write(true).open(dir.join("bare")).unwrap();
    file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    for size in [1, 64] {
        let bytes = vec![7; VALUE.len() * usize::try_from(size).unwrap()];
        let rate = |start: Instant| APPENDS as f64 / start.elapsed().as_secs_f64();
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            (0..APPENDS / size).for_each(|_| appends.append(size));
            ours.push(rate(start));
            let start = Instant::now();
            for n in 0..APPENDS / size {
                file.write_all_at(&bytes, n * bytes.len() as u64).unwrap();
                file.sync_data().unwrap();
            }
            bare.push(rate(start));
        }
        let (ours, bare) = (spread(&ours).1, spread(&bare).1);
        println!(
            "durable appends a second, {size} in a batch: {ours:.0}; pwrite and fdatasync of as \
             many bytes: {bare:.0}; ratio {:.2}",
            ours / bare
        );
    }
    drop(appends);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Bytes that the device below `path` was given so far, by anybody.
fn device_written(path: &Path) -> Option<u64> {
    let device = std::fs::metadata(path).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = stat.split_ascii_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * 512)
}

/// Bytes that the kernel counts as written by this process: of whole dirty folios.
fn process_written() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse().ok()
}

/// Pages that one small durable append costs, on files with different histories in the cache.
fn device_bytes(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let mut appends = Appends::open(dir, SEGMENT);
    println!(
        "\nPages of 4 KiB a durable append of 256 bytes: the least of 8 runs of 250, as the \
         device counts writes of all processes"
    );
    per_append(&mut appends, "a fresh log");
    for file in appends.files() {
        black_box(std::fs::read(file).unwrap().len());
    }
    per_append(&mut appends, "after a sequential read of all files");
    cool(&appends);
    for file in appends.files() {
        black_box(std::fs::read(file).unwrap().len());
    }
    per_append(&mut appends, "after dropping the cache and a sequential read");
    cool(&appends);
    let reader = appends.log.reader();
    for index in 1..=appends.index {
        black_box(reader.entry(Index(index)).unwrap().payload.len());
    }
    per_append(&mut appends, "after dropping the cache and a walk through the map");
    drop(appends);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Drops the files from the cache, so that the next reader decides how they are cached.
fn cool(appends: &Appends) {
    for path in appends.files() {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

fn per_append(appends: &mut Appends, history: &str) {
    const RUN: u64 = 250;
    let mut device = Vec::new();
    let mut process = Vec::new();
    for _ in 0..8 {
        let before = (device_written(&appends.dir), process_written());
        (0..RUN).for_each(|_| appends.append(1));
        let after = (device_written(&appends.dir), process_written());
        let pages = |bytes: u64| bytes as f64 / PAGE / RUN as f64;
        device.extend(before.0.zip(after.0).map(|(a, b)| pages(b - a)));
        process.extend(before.1.zip(after.1).map(|(a, b)| pages(b - a)));
    }
    if device.is_empty() {
        println!("{history}: the device does not tell");
    } else {
        let (least, median, _) = spread(&device);
        at_most(&format!("{history}, device (median {median:.2})"), least, "pages", 3.0);
    }
    if !process.is_empty() {
        println!("{history}, /proc/self/io: {:.2} pages", spread(&process).0);
    }
}

/// The node's pace while its log is in use: half of the time is the log's.
#[derive(Debug)]
struct Halves;

impl Pace for Halves {
    fn rest(&self, took: Duration) {
        std::thread::park_timeout(took.min(Duration::from_millis(100)));
    }
    fn sync_every(&self) -> u64 {
        SYNC_EVERY
    }
    fn wait_for_room(&self) -> bool {
        false
    }
    fn has_room(&self) {}
    fn is_ending(&self) -> bool {
        false
    }
}

/// The log's syncs while a checkpoint of at least 64 MiB is written, beside those without.
fn beside_a_checkpoint(dir: &Path) {
    const TURNS: u64 = 6;
    std::fs::create_dir_all(dir).unwrap();
    // One segment for everything: making one is not what is measured.
    let mut appends = Appends::open(dir, 64 << 20);
    let mut mmapd = Mmapd::open(dir, None);
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    let (mut bytes, mut runs) = (0, 0);
    let mut next = 0;
    for _ in 0..TURNS {
        mmapd.sync();
        appends.taken();
        (0..500).for_each(|_| appends.append(1));
        idle.extend(appends.taken());
        while mmapd.db.dirty_bytes() < 64 << 20 {
            let pairs: Vec<_> = (next..next + 1000).map(|n| (random(n), VALUE)).collect();
            let mut txn = mmapd.db.begin();
            for (key, value) in &pairs {
                txn.put(mmapd::store::Tree::Kv, key, value).unwrap();
            }
            txn.commit().unwrap();
            next += 1000;
        }
        bytes += mmapd.db.dirty_bytes();
        runs += 1;
        let job = mmapd.db.begin_checkpoint().unwrap().unwrap();
        let job = std::thread::spawn(|| job.run_at(&Halves));
        while !job.is_finished() {
            appends.append(1);
        }
        busy.extend(appends.taken());
        mmapd.db.finish_checkpoint(job.join().unwrap().unwrap()).unwrap();
    }
    let p99 = |samples: &[f64]| quantile(samples, 0.99) * 1e3;
    let ratio = p99(&busy) / p99(&idle);
    println!(
        "\nlog syncs, 99th of a hundred: {:.2} ms of {} while idle, {:.2} ms of {} during {runs} \
         checkpoints of {} MiB on average (medians {:.2} and {:.2} ms)",
        p99(&idle),
        idle.len(),
        p99(&busy),
        busy.len(),
        (bytes / runs) >> 20,
        quantile(&idle, 0.5) * 1e3,
        quantile(&busy, 0.5) * 1e3,
    );
    at_most("log sync p99 during a checkpoint, to idle", ratio, "times", 3.0);
    drop(mmapd);
    std::fs::remove_dir_all(dir).unwrap();
}
