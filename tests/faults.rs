//! Faults of real files and real processes: a kill before, within and after every single
//! operation on the disk; a device that stops taking writes; a file system that is full.
//!
//! What needs root or a loop device says so, and why, where it cannot be had.
#![expect(clippy::unwrap_used, reason = "clippy does not see that helpers of tests are tests")]
#![allow(clippy::too_many_lines, reason = "a scenario reads best in one piece")]

mod support {
    pub(crate) mod process;
}

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use mmapd::machine::{Applied, Command as Order, Conditions, Life, Tidy, View};
use mmapd::node::{Answer, Core, CoreOptions, Event, Now, OpenOptions, Parts, Work, open};
use mmapd::raft;
use mmapd::raft::types::NodeId;
use mmapd::store::disk::{FileKind, LinuxDisk, Region};
use mmapd::store::map::Memory;
use mmapd::store::pace::Unpaced;
use mmapd::store::simdisk::SimDisk;
use mmapd::store::{CheckpointJob, DbOptions, Disk, Identity, LogOptions, Shrink, StoreError};
use support::process::{Client, Node, free_port, wait};

/// Set for the process that is to be killed: directory, number of the operation, moment.
const VICTIM: &str = "MMAPD_TEST_VICTIM";

/// When, around the operation, the kill comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Before,
    /// When about half of a write is done.
    Within,
    After,
}

/// The disk of this machine, until an operation that nobody survives.
#[derive(Clone, Debug)]
struct Deadly {
    inner: LinuxDisk,
    fuse: Arc<Fuse>,
}

#[derive(Debug)]
struct Fuse {
    left: AtomicU64,
    moment: Moment,
}

impl Fuse {
    /// Is it this operation?
    fn burns(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) == 0
    }

    fn around<T>(&self, operation: impl FnOnce() -> T) -> T {
        let last = self.burns();
        if last && self.moment != Moment::After {
            die();
        }
        let result = operation();
        if last {
            die();
        }
        result
    }
}

fn die() -> ! {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
        .expect("ourselves");
    unreachable!("nobody survives that");
}

#[derive(Debug)]
struct DeadlyRegion {
    inner: Box<dyn Region>,
    fuse: Arc<Fuse>,
}

impl Disk for Deadly {
    fn create(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Box<dyn Region>, StoreError> {
        let inner = self.fuse.around(|| self.inner.create(path, kind, reserve))?;
        Ok(Box::new(DeadlyRegion { inner, fuse: self.fuse.clone() }))
    }

    fn open(
        &self,
        path: &Path,
        kind: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        let Some(inner) = self.inner.open(path, kind, reserve)? else { return Ok(None) };
        Ok(Some(Box::new(DeadlyRegion { inner, fuse: self.fuse.clone() })))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, StoreError> {
        self.inner.list(dir)
    }

    fn make_dir(&self, dir: &Path) -> Result<(), StoreError> {
        self.fuse.around(|| self.inner.make_dir(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.fuse.around(|| self.inner.rename(from, to))
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        self.fuse.around(|| self.inner.remove(path))
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), StoreError> {
        self.fuse.around(|| self.inner.sync_dir(dir))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Send + Sync>, StoreError> {
        self.inner.lock(path)
    }
}

impl Region for DeadlyRegion {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let last = self.fuse.burns();
        if last && self.fuse.moment == Moment::Before {
            die();
        }
        if last && self.fuse.moment == Moment::Within {
            // A kernel that is interrupted by a signal stops at the end of a page.
            let middle = offset + bytes.len() as u64 / 2;
            let written = (middle - middle % 4096).saturating_sub(offset);
            drop(self.inner.write_at(offset, &bytes[..usize::try_from(written).unwrap()]));
            die();
        }
        self.inner.write_at(offset, bytes)?;
        if last {
            die();
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
        self.fuse.around(|| self.inner.sync(offset, len))
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        self.fuse.around(|| self.inner.sync_all())
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        self.fuse.around(|| self.inner.set_len(len))
    }

    fn memory(&self) -> &Arc<Memory> {
        self.inner.memory()
    }
}

/// A node alone, driven by hand: every job runs at once, in the order in which it is given out.
struct Alone {
    core: Core<u64>,
    answers: BTreeMap<u64, Answer>,
    now_us: u64,
    /// Checkpoints take long: the next one is kept here.
    holds: bool,
    held: Option<CheckpointJob>,
}

fn open_parts(disk: Arc<dyn Disk>, dir: &Path) -> Result<Parts, StoreError> {
    let node = NodeId(1);
    let options = OpenOptions {
        fresh: Identity { cluster: 7, node, incarnation: 3 },
        members: [(node, "http://127.0.0.1:1".to_owned())].into(),
        joined: None,
        log: LogOptions { dir: dir.join("log"), segment_bytes: 12 << 10, repairable: false },
        db: DbOptions {
            path: dir.join("db.mmapd"),
            map_max: 32 << 20,
            quota: u64::MAX,
            grow_step: 64 << 10,
            shrink: Shrink { least: 64 << 10, part: 4 },
        },
        raft: raft::config::Config::new(node, u64::from(std::process::id())),
    };
    open(disk, options).map(|(parts, _)| parts)
}

impl Alone {
    fn start(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        Self::start_with(disk, dir, 8 << 10)
    }

    fn start_with(disk: Arc<dyn Disk>, dir: &Path, log_bytes: u64) -> Result<Self, StoreError> {
        let options = CoreOptions {
            batch_bytes: 64 << 10,
            inflight_bytes: 16 << 20,
            checkpoint_log_bytes: log_bytes,
            checkpoint_dirty_bytes: 64 << 10,
            checkpoint_ticks: 40,
            active_ticks: 80,
            mark_ticks: 2,
            log_retain_bytes: 16 << 10,
            digest_entries: 4096,
            tidy: Tidy {
                expire: true,
                history_events: 64,
                history_bytes: 64 << 10,
                once_ms: 60_000,
                once_count: 64,
                once_bytes: 64 << 10,
            },
        };
        let core = Core::new(open_parts(disk, dir)?, options);
        let answers = BTreeMap::new();
        let mut alone = Self { core, answers, now_us: 0, holds: false, held: None };
        while !alone.core.raft().is_leader() || !alone.core.is_caught_up() {
            alone.happen(Event::Tick)?;
        }
        Ok(alone)
    }

    fn happen(&mut self, event: Event<u64>) -> Result<(), StoreError> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut work = Work::default();
            self.now_us += 1000;
            self.core.set_now(Now { wall_ms: self.now_us / 1000, mono_us: self.now_us });
            self.core.handle(event, &mut work)?;
            self.core.turn(&mut work)?;
            while work.again {
                self.core.turn(&mut work)?;
            }
            self.answers.extend(std::mem::take(&mut work.answers));
            if let Some(job) = work.spare {
                events.push(Event::SpareMade(job.run(&Unpaced)?));
            }
            if let Some(job) = work.compaction {
                events.push(Event::Compacted(job.run(&Unpaced)?));
            }
            if let Some(job) = work.checkpoint {
                if self.holds {
                    self.held = Some(job);
                } else {
                    events.push(Event::Checkpointed(Box::new(job.run()?)));
                }
            }
            if let Some(job) = work.sync {
                events.push(Event::Synced(job.run()?));
            }
        }
        Ok(())
    }

    fn order(&mut self, number: u64, order: &Order) -> Result<Answer, StoreError> {
        self.happen(Event::Propose(vec![(number, order.encode())]))?;
        Ok(self.answers.remove(&number).expect("a node alone answers at once"))
    }
}

fn put(key: u64) -> Order {
    put_of(key, 300)
}

fn put_of(key: u64, len: usize) -> Order {
    Order::Put {
        key: Bytes::from(format!("k{key:04}")),
        value: Bytes::from(vec![b'v'; len]),
        content_type: String::new(),
        life: Life::Endless,
        conditions: Conditions::default(),
        prev: false,
    }
}

/// What a checkpoint has still to write is in memory: however long it takes, no more than two
/// thirds above what makes one due is, and five times as much with what is held, but for the
/// pages of the batches that reached either.
#[test]
fn a_slow_checkpoint_bounds_what_is_changed_meanwhile() {
    let disk = Arc::new(SimDisk::new(1));
    let mut alone = Alone::start_with(disk, Path::new("/data"), u64::MAX).unwrap();
    alone.holds = true;
    alone.order(0, &put_of(0, 40 << 10)).unwrap();
    let writing = alone.core.db().writing_bytes();
    assert!(writing > 40 << 10, "one is being written");
    for number in 1..400 {
        alone.happen(Event::Propose(vec![(number, put(number).encode())])).unwrap();
        let db = alone.core.db();
        let (most, held) = (db.dirty_bytes() + db.writing_bytes(), db.held_bytes());
        assert!(most <= (64 + 43 + 40) << 10, "{most} bytes after {number} writes");
        // A job that was not begun yet pins what it will write.
        assert!(most + held <= (5 * 64 + 40) << 10, "{most}, {held} bytes after {number} writes");
    }
    assert!(alone.core.applied() < alone.core.raft().commit(), "what is committed waits");
    alone.holds = false;
    let job = alone.held.take().expect("one was due");
    alone.happen(Event::Checkpointed(Box::new(job.run().unwrap()))).unwrap();
    assert_eq!(alone.core.applied(), alone.core.raft().commit());
    assert_eq!(alone.core.db().writing_bytes(), 0);
}

/// Where nearly every write changes pages of its own, a checkpoint waits until it has more of
/// them together.
#[test]
fn a_large_store_may_change_more_before_a_checkpoint() {
    let mut most = Vec::new();
    for keys in [64, 800] {
        let mut alone =
            Alone::start_with(Arc::new(SimDisk::new(1)), Path::new("/data"), u64::MAX).unwrap();
        for key in 0..keys {
            alone.order(key, &put_of(key, 6000)).unwrap();
        }
        let mut dirty = 0;
        for number in 0..60 {
            alone.order(keys + number, &put_of(number * 37 % keys, 300)).unwrap();
            dirty = dirty.max(alone.core.db().dirty_bytes());
        }
        most.push(dirty);
    }
    assert!(most[0] <= 64 << 10, "{most:?}: 64 KiB are due in a small one");
    assert!((72 << 10..=256 << 10).contains(&most[1]), "{most:?}: more in one of 6 MiB");
}

/// Pages that are full of what is new are written soon: no more is in memory than must be, and
/// a start has less to apply.
#[test]
fn a_checkpoint_comes_early_where_it_writes_little_more_than_the_log() {
    let disk = Arc::new(SimDisk::new(1));
    let mut alone = Alone::start_with(disk, Path::new("/data"), u64::MAX).unwrap();
    let (at_start, mut most) = (alone.core.db().durable().index, 0);
    for number in 0..40 {
        alone.order(number, &put_of(number, 3000)).unwrap();
        most = most.max(alone.core.db().dirty_bytes());
    }
    assert!(alone.core.db().durable().index > at_start);
    // 64 KiB are always enough for one.
    assert!(most < 56 << 10, "{most} bytes were changed");
}

/// A start after that has nothing to apply, and the memory of the pages is free.
#[test]
fn a_load_that_ceases_is_followed_by_a_checkpoint() {
    let mut alone = Alone::start(Arc::new(SimDisk::new(1)), Path::new("/data")).unwrap();
    for number in 0..8 {
        alone.order(number, &put(number)).unwrap();
    }
    assert!(alone.core.db().durable().index < alone.core.applied(), "none was due yet");
    for _ in 0..8 {
        alone.happen(Event::Tick).unwrap();
    }
    assert_eq!(alone.core.db().durable().index, alone.core.applied());
    assert_eq!(alone.core.db().dirty_bytes(), 0);
}

/// What the victim does, up to `say`ing so: writes, replacements, deletes, a compaction.
fn orders() -> Vec<(u64, Option<Order>)> {
    let put = |number: u64| Order::Put {
        key: Bytes::from(format!("k{}", number % 23)),
        value: Bytes::from(vec![b'a' + u8::try_from(number % 26).unwrap(); 40 + 37 * 7]),
        content_type: number.to_string(),
        life: Life::Endless,
        conditions: Conditions::default(),
        prev: false,
    };
    let delete = |number: u64| Order::Delete {
        key: Bytes::from(format!("k{}", number % 23)),
        conditions: Conditions::default(),
        prev: false,
    };
    (1..=150)
        .map(|number| match number {
            120 => (number, None),
            _ if number % 9 == 0 => (number, Some(delete(number))),
            _ => (number, Some(put(number))),
        })
        .collect()
}

/// The process that is killed. Not a test of its own: it does nothing unless it is asked to.
#[test]
fn victim() {
    let Ok(text) = std::env::var(VICTIM) else { return };
    let mut words = text.split(' ');
    let mut word = || words.next().expect("three words");
    let (dir, left, moment) = (PathBuf::from(word()), word().parse().unwrap(), word());
    let moment = match moment {
        "Before" => Moment::Before,
        "Within" => Moment::Within,
        _ => Moment::After,
    };
    let fuse = Arc::new(Fuse { left: AtomicU64::new(left), moment });
    let disk = Arc::new(Deadly { inner: LinuxDisk::new(None), fuse });
    let mut alone = Alone::start(disk, &dir).unwrap();
    let mut out = std::io::stdout();
    for (number, order) in orders() {
        match order {
            Some(order) => {
                let answer = alone.order(number, &order).unwrap();
                assert!(matches!(answer, Answer::Written(_)), "{answer:?}");
            }
            None => alone.happen(Event::Compact(number)).unwrap(),
        }
        // One write to a pipe: whole or not at all.
        out.write_all(format!("acknowledged {number}\n").as_bytes()).unwrap();
        out.flush().unwrap();
    }
    alone.core.stop().unwrap();
    out.write_all(b"done\n").unwrap();
}

/// Runs the victim; the last order that it acknowledged, and whether it came to its end.
fn run_victim(dir: &Path, left: u64, moment: Moment) -> (u64, bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM, format!("{} {left} {moment:?}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut last, mut done) = (0, false);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, number)) = line.split_once("acknowledged ") {
            last = number.trim().parse().unwrap();
        }
        done |= line.contains("done");
    }
    let status = child.wait().unwrap();
    assert!(done || !status.success(), "it is killed, or it ends");
    (last, done)
}

/// The keys after the first `count` orders.
fn model(count: u64) -> BTreeMap<Vec<u8>, String> {
    let mut keys = BTreeMap::new();
    for (number, order) in orders() {
        if number > count {
            break;
        }
        match order {
            Some(Order::Put { key, content_type, .. }) => {
                keys.insert(key.to_vec(), content_type);
            }
            Some(Order::Delete { key, .. }) => {
                keys.remove(&key[..]);
            }
            Some(_) | None => {}
        }
    }
    keys
}

fn found(view: &View) -> BTreeMap<Vec<u8>, String> {
    let mut keys = BTreeMap::new();
    view.scan(&mmapd::machine::Range::prefix(b""), |item| {
        keys.insert(item.key.to_vec(), item.record.content_type.to_owned());
        true
    })
    .unwrap();
    keys
}

/// What is left of a killed node holds all that it acknowledged, and goes on.
fn judge(dir: &Path, acknowledged: u64, what: &str) {
    let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
    let mut alone = Alone::start(disk, dir).unwrap_or_else(|error| panic!("{what}: {error}"));
    let keys = found(&View::new(alone.core.published().snapshot()));
    // The order that was under way may have been carried out, or not.
    let allowed = [model(acknowledged), model(acknowledged + 1)];
    assert!(allowed.contains(&keys), "{what}: after {acknowledged} orders there is {keys:?}");
    alone.core.db().check().unwrap_or_else(|error| panic!("{what}: {error}"));
    let again = Order::Delete {
        key: Bytes::from_static(b"k1"),
        conditions: Conditions::default(),
        prev: false,
    };
    let answer = alone.order(9999, &again).unwrap();
    assert!(matches!(answer, Answer::Written(Applied::Deleted { .. })), "{what}: {answer:?}");
}

#[test]
fn killed_around_every_operation_a_node_loses_nothing() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let next = AtomicU64::new(0);
    let ends = Mutex::new(BTreeSet::new());
    let kills = AtomicU64::new(0);
    let worker = || {
        loop {
            // All three moments of each of the first operations, which make the files; then
            // one of the three in turn.
            let number = next.fetch_add(1, Ordering::SeqCst);
            let moments = [Moment::Before, Moment::Within, Moment::After];
            let turn = usize::try_from(number % 3).unwrap();
            let moments = if number < 60 { &moments[..] } else { &moments[turn..=turn] };
            for &moment in moments {
                let what = format!("killed {moment:?} operation {number}");
                let dir = root.path().join(format!("{number}-{moment:?}"));
                fs::create_dir(&dir).unwrap();
                let (acknowledged, done) = run_victim(&dir, number, moment);
                judge(&dir, acknowledged, &what);
                fs::remove_dir_all(&dir).unwrap();
                if done {
                    return;
                }
                ends.lock().unwrap().insert(acknowledged);
                kills.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    thread::scope(|scope| {
        let other = scope.spawn(worker);
        worker();
        other.join().unwrap();
    });
    let (kills, ends) = (kills.into_inner(), ends.into_inner().unwrap());
    println!("{kills} kills, after {} different orders", ends.len());
    assert!(kills > 300 && ends.len() > 120, "the whole run was covered: {kills}, {ends:?}");
}

/// Runs a command of the system; what it wrote.
fn system(words: &[&str]) -> Result<String, String> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", words[0]))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("{}: {said}", words.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Mounts and loop devices, undone in the opposite order.
#[derive(Default)]
struct Undo(Vec<Vec<String>>);

impl Undo {
    fn later(&mut self, words: &[&str]) {
        self.0.push(words.iter().map(|&word| word.to_owned()).collect());
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for words in self.0.iter().rev() {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if let Err(why) = system(&words) {
                eprintln!("left behind: {why}");
            }
        }
    }
}

fn tmpfs(at: &Path, size: &str, undo: &mut Undo) -> Result<(), String> {
    fs::create_dir_all(at).map_err(|error| error.to_string())?;
    let path = at.to_str().unwrap();
    system(&["mount", "-t", "tmpfs", "-o", &format!("size={size}"), "mmapd-test", path])?;
    undo.later(&["umount", path]);
    Ok(())
}

/// A node on port 0 of its own in `dir`, with small files.
fn node_in(dir: &Path) -> Node {
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    fs::create_dir_all(dir).unwrap();
    let text = "[storage]\nsegment = \"256KiB\"\ncheckpoint_log = \"512KiB\"\n\
                checkpoint_interval = \"200ms\"\nlog_retain = \"256KiB\"\n";
    fs::write(dir.join("node.toml"), text).unwrap();
    let args = ["--config", "node.toml", "--db", "db.mmapd", "--log", "log", "--listen", &listen];
    Node::new(1, port, dir, &args)
}

/// Puts some values while all is well.
fn put_some(client: &mut Client) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    for number in 0..40 {
        let (key, value) = (format!("before-{number}"), "y".repeat(2000));
        assert!(client.put(&key, &value).unwrap().status < 300);
        kept.insert(key, value);
    }
    kept
}

/// Puts values until one is refused or the node is gone; adds what was acknowledged.
fn put_until_refused(
    client: &mut Client,
    size: usize,
    limit: u64,
    kept: &mut BTreeMap<String, String>,
) -> Option<u16> {
    for number in 0..limit {
        let key = format!("{size}-{}", kept.len());
        let value = format!("{number}.{}", "x".repeat(size));
        match client.put(&key, &value) {
            Ok(reply) if matches!(reply.status, 200 | 201) => {
                kept.insert(key, value);
            }
            Ok(reply) => return Some(reply.status),
            Err(_) => return None,
        }
    }
    panic!("{limit} values of {size} bytes were taken");
}

fn all_there(client: &mut Client, kept: &BTreeMap<String, String>) {
    for (key, value) in kept {
        let reply = client.read(key).expect("an answer");
        assert_eq!((reply.status, reply.text() == *value), (200, true), "{key}");
    }
}

/// Fills a file system to the last byte with a file that has nothing to do with us.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 512, 1] {
        while file.write_all(&vec![0x55; size]).is_ok() {}
    }
}

/// The device under the file system stops taking writes: syncs fail, and the page cache goes on
/// to show what is on no disk.
#[test]
fn a_device_that_refuses_writes_ends_the_node_and_its_cache_is_not_believed() {
    let root = tempfile::tempdir().unwrap();
    let mut undo = Undo::default();
    let (below, above) = (root.path().join("below"), root.path().join("above"));
    let device = (|| {
        tmpfs(&below, "48m", &mut undo)?;
        let disk = below.join("disk");
        fs::File::create(&disk).and_then(|file| file.set_len(256 << 20)).unwrap();
        let device = system(&["losetup", "--find", "--show", disk.to_str().unwrap()])?;
        undo.later(&["losetup", "--detach", &device]);
        system(&["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", "-J", "size=4", &device])?;
        fs::create_dir(&above).unwrap();
        system(&["mount", &device, above.to_str().unwrap()])?;
        undo.later(&["umount", "--lazy", above.to_str().unwrap()]);
        Ok(())
    })();
    if let Err(why) = device {
        let why: String = why;
        println!("skipped: {why}");
        return;
    }
    let mut node = node_in(&above.join("node"));
    node.start();
    let mut client = node.client();
    let mut kept = put_some(&mut client);
    fill(&below.join("filler"));
    let refused = put_until_refused(&mut client, 3000, 20_000, &mut kept);
    println!("{} writes were acknowledged, then {refused:?}", kept.len());
    assert_eq!(node.exit_code(), Some(74), "{}", node.log_tail());
    assert!(node.log_tail().contains("failed"), "{}", node.log_tail());
    fs::remove_file(below.join("filler")).unwrap();
    // The file system may have made itself read-only; what it holds is what counts.
    let (mounted, device) = (above.to_str().unwrap(), undo.0[1][2].clone());
    system(&["umount", mounted]).unwrap();
    drop(system(&["e2fsck", "-p", &device]));
    system(&["mount", &device, mounted]).unwrap();
    node.start();
    all_there(&mut node.client(), &kept);
    assert!(node.client().put("after", "z").unwrap().status < 300);
    node.kill();
}

/// Somebody else fills the file system under a running node.
#[test]
fn a_full_file_system_costs_nothing_that_was_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let mut undo = Undo::default();
    let at = root.path().join("full");
    if let Err(why) = tmpfs(&at, "64m", &mut undo) {
        println!("skipped: {why}");
        return;
    }
    let mut node = node_in(&at.join("node"));
    node.start();
    let mut client = node.client();
    let mut kept = put_some(&mut client);
    fill(&at.join("filler"));
    all_there(&mut client, &kept);
    let refused = put_until_refused(&mut client, 30_000, 5_000, &mut kept);
    println!("{} writes were acknowledged, then {refused:?}", kept.len());
    // It refuses, or says that it does not know and ends.
    let ended = refused != Some(507);
    if ended {
        assert_eq!(node.exit_code(), Some(74), "{}", node.log_tail());
    }
    fs::remove_file(at.join("filler")).unwrap();
    if ended {
        node.start();
    }
    let mut client = node.client();
    all_there(&mut client, &kept);
    wait("writes are taken again", || {
        (node.client().put("after", "z").ok()?.status < 300).then_some(())
    });
    let some: Vec<String> = kept.keys().take(30).cloned().collect();
    for key in &some {
        assert_eq!(client.delete(key).unwrap().status, 200);
        kept.remove(key);
    }
    all_there(&mut client, &kept);
    node.kill();
    node.start();
    all_there(&mut node.client(), &kept);
    node.kill();
}

/// Somebody cuts a file under a running node: the read that meets the missing page ends it, and
/// says where.
#[test]
fn a_page_that_is_gone_ends_the_node_and_is_named() {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut node = node_in(&root.path().join("node"));
    node.start();
    let mut client = node.client();
    for number in 0..400 {
        assert!(client.put(&format!("k{number}"), "v".repeat(900)).unwrap().status < 300);
    }
    let path = root.path().join("node/db.mmapd");
    wait("a checkpoint holds all of it", || {
        let bytes = fs::read(&path).ok()?;
        (bytes.iter().filter(|byte| **byte == b'v').count() >= 400 * 900).then_some(())
    });
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.exit_code(), Some(0));
    node.start();
    let db = fs::OpenOptions::new().write(true).open(&path).unwrap();
    db.set_len(128 << 10).unwrap();
    let mut client = node.client();
    let gone = (0..400).any(|number| client.read(&format!("k{number}")).is_err());
    assert!(gone, "some key lay behind the cut");
    assert_eq!(node.exit_code(), Some(74), "{}", node.log_tail());
    let tail = node.log_tail();
    let line = tail.lines().find(|line| line.contains("SIGBUS")).unwrap_or_default();
    assert!(line.contains("reading db.mmapd at byte "), "{tail}");
    let number = line.split("at byte ").nth(1).and_then(|rest| rest.split(' ').next());
    let offset: u64 = number.unwrap().parse().unwrap();
    assert!(offset >= 128 << 10, "{line}");
}
