//! The log on a disk that loses what was not synced: a workload is stopped after every
//! operation of the disk, and every state that a power loss may leave then must recover to
//! what was acknowledged, or to that with the one batch that was on its way.
//!
//! The judge itself is tested with disks that lie and a driver that acknowledges too early.

#![expect(clippy::unwrap_used, reason = "the helpers of a test are a test")]

#[path = "crash_log/damage.rs"]
mod damage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mmapd::raft::message::IoToken;
use mmapd::raft::types::{EntryKind, HardState, Index, LogId, NodeId, Term};
use mmapd::store::disk::{Disk, LinuxDisk};
use mmapd::store::frame;
use mmapd::store::simdisk::{Rng, SimDisk, Survival};
use mmapd::store::{Identity, Log, LogOptions, PendingInstall, Recovered, StoreError, Unpaced};

const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 3 };
const SEGMENT: u64 = 16 << 10;

/// An entry as the model has it.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    id: LogId,
    kind: EntryKind,
    chain: u64,
    payload: Vec<u8>,
}

/// What the log should hold: all entries since `base`, compacted or not.
#[derive(Clone, Debug, Default, PartialEq)]
struct History {
    base: LogId,
    base_chain: u64,
    entries: Vec<Held>,
    /// Compaction was asked to drop entries up to here, and may have.
    droppable: u64,
}

impl History {
    fn last(&self) -> (LogId, u64) {
        self.entries.last().map_or((self.base, self.base_chain), |held| (held.id, held.chain))
    }

    fn at(&self, index: u64) -> Option<(LogId, u64)> {
        if index == self.base.index.0 {
            return Some((self.base, self.base_chain));
        }
        self.get(index).map(|held| (held.id, held.chain))
    }

    fn get(&self, index: u64) -> Option<&Held> {
        let at = index.checked_sub(self.base.index.0 + 1)?;
        self.entries.get(usize::try_from(at).unwrap())
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    log: History,
    hard: HardState,
    install: Option<PendingInstall>,
}

/// One thing that a driver does.
#[derive(Clone, Debug)]
enum Step {
    /// Entries of these sizes, of this term, from this index on: one batch.
    Append {
        first: u64,
        term: u64,
        sizes: Vec<usize>,
    },
    /// Term and vote alone, or with the next append.
    Vote {
        term: u64,
        vote: u64,
        wait: bool,
    },
    Compact(u64),
    Install {
        index: u64,
        term: u64,
    },
    /// An append whose job never runs, and a new process on the same cache.
    Kill {
        first: u64,
        term: u64,
        size: usize,
    },
    Reopen {
        clean: bool,
    },
    /// What an idle node writes.
    Mark,
    /// The spare segments that are wanted now.
    Spare,
}

/// How the driver is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Driver {
    Right,
    /// Acknowledges when the batch is written.
    Early,
    /// Acknowledges after a failed sync: the cache has it.
    Trusting,
}

fn payload(index: u64, term: u64, size: usize) -> Vec<u8> {
    // No zeros, so that no sector looks as if it was never written.
    let mut rng = Rng::new(index << 20 ^ term << 8 ^ size as u64);
    (0..size).map(|_| u8::try_from(rng.below(255) + 1).unwrap()).collect()
}

/// Configurations stand among the commands.
fn kind(index: u64) -> EntryKind {
    if index % 4 == 2 { EntryKind::Config } else { EntryKind::Command }
}

fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<(Log, Recovered), StoreError> {
    let options = LogOptions { dir: dir.to_owned(), segment_bytes: SEGMENT, repairable: false };
    Log::open(disk, options, NodeId(1), || IDENTITY)
}

fn dir() -> PathBuf {
    PathBuf::from("/log")
}

/// A run of a workload: what was acknowledged, and what was on its way at the stop.
struct Run {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    driver: Driver,
    log: Option<Log>,
    acked: State,
    next: State,
    /// Recovery on the live cache, which a reopen shows, was wrong.
    wrong: Option<String>,
}

impl Run {
    fn new(disk: Arc<dyn Disk>, dir: PathBuf, driver: Driver) -> Self {
        let (acked, next) = (State::default(), State::default());
        Self { disk, dir, driver, log: None, acked, next, wrong: None }
    }

    fn all(&mut self, steps: &[Step]) -> Result<(), StoreError> {
        self.open()?;
        steps.iter().try_for_each(|step| self.step(step))
    }

    /// What a new process finds in the cache becomes durable by its being found.
    fn open(&mut self) -> Result<(), StoreError> {
        self.log = None;
        let (log, found) = open(self.disk.clone(), &self.dir)?;
        match judge(&log, &found, &self.acked, &self.next) {
            Ok(state) => self.next = state,
            Err(why) => self.wrong = Some(why),
        }
        self.acked = self.next.clone();
        self.log = Some(log);
        Ok(())
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn stage(&mut self, first: u64, term: u64, sizes: &[usize]) {
        let hard = self.next.hard;
        if hard.term.0 < term {
            self.next.hard = HardState { term: Term(term), vote: None };
            let hard = self.next.hard;
            self.log().stage_hard_state(hard);
        }
        let keep = first - self.next.log.base.index.0 - 1;
        self.next.log.entries.truncate(usize::try_from(keep).unwrap());
        let mut frames = Vec::new();
        for (size, index) in sizes.iter().zip(first..) {
            let id = LogId { term: Term(term), index: Index(index) };
            let (kind, payload) = (kind(index), payload(index, term, *size));
            let (_, before) = self.next.log.last();
            let chain = frame::encode(id, kind, 5, before, &payload, &mut frames);
            if term.is_multiple_of(2) {
                self.log().stage_own(id, kind, &payload, 5);
            }
            self.next.log.entries.push(Held { id, kind, chain, payload });
        }
        // Every other term we follow: the same bytes come from a leader.
        if !term.is_multiple_of(2) {
            self.log().stage_frames(Index(first), &frames).unwrap();
        }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let Some(job) = self.log().write(IoToken(1))? else { return Ok(()) };
        if self.driver == Driver::Early {
            self.acked = self.next.clone();
        }
        let synced = match job.run() {
            Err(error) if self.driver == Driver::Trusting => {
                self.acked = self.next.clone();
                return Err(error);
            }
            run => run?,
        };
        self.log().synced(synced);
        self.acked = self.next.clone();
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), StoreError> {
        match step {
            Step::Append { first, term, sizes } => {
                self.stage(*first, *term, sizes);
                self.write()?;
            }
            Step::Vote { term, vote, wait } => {
                let hard = HardState { term: Term(*term), vote: Some(NodeId(*vote)) };
                self.log().stage_hard_state(hard);
                self.next.hard = hard;
                if !wait {
                    self.write()?;
                }
            }
            Step::Compact(upto) => {
                for state in [&mut self.acked, &mut self.next] {
                    state.log.droppable = state.log.droppable.max(*upto);
                }
                self.log().compact(Index(*upto))?;
            }
            Step::Install { index, term } => self.install(*index, *term)?,
            Step::Kill { first, term, size } => {
                self.stage(*first, *term, &[*size]);
                let job = self.log().write(IoToken(2))?;
                drop(job);
                self.open()?;
            }
            Step::Mark => {
                self.log().stage_mark();
                self.write()?;
            }
            Step::Spare => {
                while let Some(job) = self.log().spare_wanted() {
                    let done = job.run(&Unpaced)?;
                    self.log().spare_ready(done);
                }
            }
            Step::Reopen { clean } => {
                if *clean {
                    self.log().mark_clean()?;
                }
                self.open()?;
            }
        }
        Ok(())
    }

    fn install(&mut self, index: u64, term: u64) -> Result<(), StoreError> {
        let base = LogId { term: Term(term), index: Index(index) };
        let held = self.next.log.at(index).filter(|(id, _)| *id == base);
        let chain = held.map_or(index * 31, |(_, chain)| chain);
        let install = PendingInstall { last: base, chain };
        self.next.install = Some(install);
        self.log().begin_install(install)?;
        self.acked = self.next.clone();
        self.next.log = History { base, base_chain: chain, entries: Vec::new(), droppable: 0 };
        self.log().reset(base, chain)?;
        self.acked = self.next.clone();
        self.next.install = None;
        self.log().end_install()?;
        self.acked = self.next.clone();
        Ok(())
    }
}

/// Is this what may be found? Says which state it is.
fn judge(log: &Log, found: &Recovered, acked: &State, next: &State) -> Result<State, String> {
    let install = [acked.install, next.install];
    if !install.contains(&found.pending_install) {
        return Err(format!("install {:?}, not one of {install:?}", found.pending_install));
    }
    if ![acked.hard, next.hard].contains(&found.hard_state) {
        let wanted = [acked.hard, next.hard];
        return Err(format!("hard state {:?}, not one of {wanted:?}", found.hard_state));
    }
    let history = same(log, found, &next.log).or_else(|new| {
        same(log, found, &acked.log).map_err(|old| format!("neither new ({new}) nor old ({old})"))
    })?;
    Ok(State { log: history, hard: found.hard_state, install: found.pending_install })
}

fn same(log: &Log, found: &Recovered, want: &History) -> Result<History, String> {
    if found.last != want.last().0 {
        return Err(format!("last is {:?}, not {:?}", found.last, want.last().0));
    }
    if want.at(found.base.index.0) != Some((found.base, found.base_chain)) {
        return Err(format!("base {:?} is not of this history", found.base));
    }
    // A snapshot that is being installed stands in for everything up to its end.
    let installing = found.pending_install.map_or(0, |install| install.last.index.0);
    if found.base.index.0 > want.base.index.0.max(want.droppable).max(installing) {
        return Err(format!("base {:?} dropped what nobody asked to drop", found.base));
    }
    let reader = log.reader();
    let (mut runs, mut configs): (Vec<LogId>, Vec<(Index, Vec<u8>)>) = (Vec::new(), Vec::new());
    let (mut frames, mut before) = (Vec::new(), found.base_chain);
    for index in found.base.index.0 + 1..=found.last.index.0 {
        let entry = reader.entry(Index(index)).ok_or_else(|| format!("no entry {index}"))?;
        let Held { id, kind, chain, payload } = want.get(index).ok_or("beyond the history")?;
        if (entry.id, entry.kind, entry.chain, &entry.payload[..]) != (*id, *kind, *chain, payload)
        {
            return Err(format!("entry {index} differs"));
        }
        if runs.last().is_none_or(|run| run.term != id.term) {
            runs.push(*id);
        }
        if *kind == EntryKind::Config {
            configs.push((Index(index), payload.clone()));
        }
        before = frame::encode(*id, *kind, 5, before, payload, &mut frames);
    }
    if runs != found.runs {
        return Err(format!("runs {:?}, not {runs:?}", found.runs));
    }
    if configs != found.configs {
        return Err(format!("{} configurations, not {}", found.configs.len(), configs.len()));
    }
    let sent = (!frames.is_empty())
        .then(|| reader.frames(found.base.index.next(), found.last.index, usize::MAX))
        .map_or(Some((Vec::new(), found.last.index)), |sent| sent);
    match sent {
        Some((slices, last)) if slices.concat() == frames && last == found.last.index => {}
        _ => return Err("the frames for a follower differ".into()),
    }
    Ok(want.clone())
}

/// Recovers one image, twice, and stops one recovery on the way.
fn check(image: &SimDisk, run: &Run, seed: u64) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let mut images = 1;
    let copy = image.image(Survival::None);
    let again = image.image(Survival::None);
    let state = recover(&copy, &run.acked, &run.next)?;
    let (ops, syncs) = (copy.op_count(), copy.sync_count());
    let second = recover(&copy, &state, &state).map_err(|why| format!("second time: {why}"))?;
    assert_eq!(state, second, "said by the judge");
    if rng.below(2) == 0 {
        again.stop_after(rng.below(ops));
        let _ = open(Arc::new(again.clone()), &dir());
        recover(&again.crash(&mut rng), &run.acked, &run.next)
            .map_err(|why| format!("after a stop of the recovery: {why}"))?;
        images += 1;
    }
    if rng.below(4) == 0 {
        // A sync of the recovery fails and forgets; the next process believes the cache.
        let failing = image.image(Survival::None);
        failing.fail_at(rng.below(syncs));
        let _ = open(Arc::new(failing.clone()), &dir());
        let state = recover(&failing, &run.acked, &run.next)
            .map_err(|why| format!("after a failed sync of the recovery: {why}"))?;
        recover(&failing.crash(&mut rng), &state, &state)
            .map_err(|why| format!("the cache was believed in the recovery: {why}"))?;
        images += 1;
    }
    if rng.below(8) == 0 {
        // The log must be usable: one more entry, and another crash.
        let mut more = Run::new(Arc::new(copy.clone()), dir(), Driver::Right);
        (more.acked, more.next) = (state.clone(), state);
        more.open().map_err(|error| error.to_string())?;
        let (last, _) = more.next.log.last();
        let term = more.next.hard.term.0.max(1);
        more.stage(last.index.0 + 1, term, &[700]);
        more.write().map_err(|error| error.to_string())?;
        recover(&copy.crash(&mut rng), &more.acked, &more.next)
            .map_err(|why| format!("after one more entry: {why}"))?;
        images += 1;
    }
    Ok(images)
}

fn recover(disk: &SimDisk, acked: &State, next: &State) -> Result<State, String> {
    let (log, found) = open(Arc::new(disk.clone()), &dir()).map_err(|error| error.to_string())?;
    judge(&log, &found, acked, next)
}

/// Stops the workload after every operation; returns images judged and what was wrong.
fn sweep(
    steps: &[Step],
    driver: Driver,
    limit: usize,
    set: impl Fn(&SimDisk),
) -> (u64, Vec<String>) {
    let whole = SimDisk::new(1);
    set(&whole);
    let mut run = Run::new(Arc::new(whole.clone()), dir(), driver);
    let mut wrong = Vec::new();
    if let Err(error) = run.all(steps) {
        wrong.push(format!("without a stop: {error}"));
    }
    let mut judged = 0;
    for stop in 0..=whole.op_count() {
        let disk = SimDisk::new(stop);
        set(&disk);
        disk.stop_after(stop);
        let mut run = Run::new(Arc::new(disk.clone()), dir(), driver);
        let _ = run.all(steps);
        wrong.extend(run.wrong.take());
        let mut rng = Rng::new(stop);
        let drawn: Vec<_> = (0..limit / 4).map(|_| disk.crash(&mut rng)).collect();
        for (image, number) in disk.images(limit, stop).chain(drawn).zip(0..) {
            match check(&image, &run, stop << 16 | number) {
                Ok(images) => judged += images,
                Err(why) => wrong.push(format!("stop {stop}, image {number}: {why}")),
            }
        }
        judged += killed(&mut run, &disk, limit, stop, &mut wrong);
    }
    (judged, wrong)
}

/// The process was killed there and not the machine: the next one finds everything in the
/// cache, and answers for it; the power fails after that.
fn killed(run: &mut Run, disk: &SimDisk, limit: usize, stop: u64, wrong: &mut Vec<String>) -> u64 {
    disk.stop_after(u64::MAX);
    if let Err(error) = run.open() {
        wrong.push(format!("kill {stop}: {error}"));
        return 0;
    }
    wrong.extend(run.wrong.take().map(|why| format!("kill {stop}: {why}")));
    let mut judged = 0;
    for (image, number) in disk.images(limit / 2, stop).zip(0..) {
        match check(&image, run, stop << 24 | number) {
            Ok(images) => judged += images,
            Err(why) => wrong.push(format!("kill {stop}, then image {number}: {why}")),
        }
    }
    judged
}

fn append(first: u64, term: u64, sizes: &[usize]) -> Step {
    Step::Append { first, term, sizes: sizes.to_vec() }
}

/// Everything once, in an order that makes it hard.
fn plain() -> Vec<Step> {
    vec![
        append(1, 1, &[10]),
        append(2, 1, &[600, 0, 5000]),
        Step::Vote { term: 2, vote: 3, wait: false },
        append(4, 2, &[40, 9000]),
        Step::Spare,
        append(6, 2, &[3000]),
        append(7, 2, &[100]),
        Step::Mark,
        Step::Vote { term: 4, vote: 2, wait: true },
        append(3, 4, &[1, 2, 3]),
        Step::Reopen { clean: false },
        append(6, 4, &[6000, 6000]),
        Step::Kill { first: 8, term: 4, size: 1500 },
        append(8, 4, &[12000]),
        Step::Reopen { clean: true },
        append(9, 5, &[20000]),
        append(10, 5, &[3]),
        Step::Compact(8),
        Step::Kill { first: 10, term: 6, size: 100 },
        Step::Reopen { clean: true },
        Step::Reopen { clean: false },
    ]
}

fn installs() -> Vec<Step> {
    vec![
        append(1, 1, &[3000, 3000]),
        append(3, 1, &[9000]),
        Step::Spare,
        append(4, 2, &[9000]),
        append(3, 3, &[50]),
        Step::Compact(2),
        append(4, 3, &[9000]),
        append(5, 3, &[9000]),
        append(6, 3, &[90]),
        Step::Mark,
        Step::Install { index: 40, term: 3 },
        append(41, 4, &[8000]),
        append(42, 4, &[8000]),
        append(43, 4, &[80]),
        Step::Install { index: 42, term: 4 },
        Step::Reopen { clean: true },
        append(43, 5, &[300]),
        append(44, 5, &[15000]),
        Step::Compact(43),
        Step::Compact(44),
    ]
}

fn drawn(seed: u64) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    let (mut last, mut term, mut base) = (0, 1, 0);
    let mut steps = Vec::new();
    for _ in 0..16 {
        match rng.below(12) {
            0 if last > base => {
                term += 1;
                let first = base + 1 + rng.below(last - base);
                steps.push(append(first, term, &[usize::try_from(rng.below(3000)).unwrap()]));
                last = first;
            }
            1 => {
                term += 1;
                let wait = rng.below(2) == 0;
                steps.push(Step::Vote { term, vote: rng.below(3) + 1, wait });
                if wait {
                    steps.push(append(last + 1, term, &[20]));
                    last += 1;
                }
            }
            2 if last > base => {
                base += rng.below(last - base);
                steps.push(Step::Compact(base));
            }
            3 => steps.push(Step::Reopen { clean: rng.below(2) == 0 }),
            _ => {
                let sizes: Vec<_> = (0..=rng.below(3))
                    .map(|_| {
                        let bound = [20, 500, 4000, 9000][usize::try_from(rng.below(4)).unwrap()];
                        usize::try_from(rng.below(bound)).unwrap()
                    })
                    .collect();
                steps.push(append(last + 1, term, &sizes));
                last += sizes.len() as u64;
            }
        }
    }
    steps
}

#[test]
fn every_stop_leaves_what_was_acknowledged() {
    let mut judged = 0;
    let workloads = [plain(), installs()].into_iter().chain((0..6).map(drawn));
    for (number, steps) in workloads.enumerate() {
        let (images, wrong) = sweep(&steps, Driver::Right, 32, |_| ());
        judged += images;
        let first = wrong.iter().take(3).collect::<Vec<_>>();
        assert!(wrong.is_empty(), "workload {number}: {} wrong, {first:#?}", wrong.len());
    }
    println!("{judged} images recovered");
    assert!(judged >= 100_000, "{judged} images are too few to mean much");
}

/// Else the workloads above would stop in no roll that uses one.
#[test]
fn the_workloads_roll_into_spares() {
    let spares = |disk: &SimDisk| {
        let names = disk.list(&dir()).unwrap();
        names.iter().filter(|name| name.starts_with("spare.")).count()
    };
    for steps in [plain(), installs()] {
        let disk = SimDisk::new(1);
        let mut run = Run::new(Arc::new(disk.clone()), dir(), Driver::Right);
        run.open().unwrap();
        let (mut made, mut used) = (0, 0);
        for step in &steps {
            let before = spares(&disk);
            run.step(step).unwrap();
            let after = spares(&disk);
            made += after.saturating_sub(before);
            if matches!(step, Step::Append { .. }) {
                used += before.saturating_sub(after);
            }
            if matches!(step, Step::Reopen { .. } | Step::Kill { .. }) {
                assert_eq!(after, 0, "a spare of an earlier process is not trusted");
            }
        }
        assert!(made > 0 && used > 0, "made {made}, used {used}");
    }
}

/// A lie about any one sync must be seen in some image, or be harmless for a reason.
#[test]
fn the_judge_sees_lies_and_early_acknowledgements() {
    let steps = [
        Step::Vote { term: 1, vote: 2, wait: false },
        append(1, 1, &[10, 600]),
        Step::Vote { term: 2, vote: 3, wait: false },
        append(3, 2, &[6000, 6000]),
        append(5, 2, &[9000]),
    ];
    let (_, wrong) = sweep(&steps, Driver::Right, 12, |_| ());
    assert!(wrong.is_empty(), "{:#?}", wrong.first());
    let (_, wrong) = sweep(&steps, Driver::Early, 12, |_| ());
    assert!(!wrong.is_empty(), "acknowledged before it was durable");
    let whole = SimDisk::new(1);
    Run::new(Arc::new(whole.clone()), dir(), Driver::Right).all(&steps).unwrap();
    let mut unseen = Vec::new();
    for sync in 0..whole.sync_count() {
        let (_, wrong) = sweep(&steps, Driver::Right, 12, |disk| disk.lie_at(sync));
        if wrong.is_empty() {
            unseen.push(sync);
        }
    }
    println!("lies of {} syncs, not seen: {unseen:?}", whole.sync_count());
    // Nothing is in the directory yet, and the zeros and the two saves that make the hard state
    // are each made up for by the others; the name of a spare (5) is synced again with the name
    // that it gets when it is used.
    assert_eq!(unseen, [0, 1, 2, 3, 5]);
}

/// A disk that was stopped, cleanly or not, and what was acknowledged on it.
fn stopped(clean: bool) -> (SimDisk, State) {
    let mut steps = vec![
        append(1, 1, &[700, 200]),
        append(3, 1, &[9000]),
        append(4, 2, &[4000]),
        append(5, 2, &[300]),
        append(6, 2, &[900]),
    ];
    if clean {
        steps.push(Step::Reopen { clean: true });
    }
    let disk = SimDisk::new(5);
    let mut run = Run::new(Arc::new(disk.clone()), dir(), Driver::Right);
    run.all(&steps).unwrap();
    if clean {
        run.log().mark_clean().unwrap();
    }
    (disk, run.acked)
}

/// Damages `file` and demands the same content or an error. `cut`: entries that may go.
fn damaged(disk: &SimDisk, file: &Path, at: usize, bytes: &[u8], state: &State, cut: usize) {
    let copy = disk.image(Survival::None);
    copy.damage(file, at as u64, bytes);
    let name = file.display();
    match open(Arc::new(copy), &dir()) {
        Err(StoreError::Corrupt { .. } | StoreError::Foreign { .. }) => (),
        Err(error) => panic!("byte {at} of {name}: {error}"),
        Ok((log, found)) => {
            let mut short = state.clone();
            let keep = short.log.entries.len() - cut;
            short.log.entries.truncate(keep);
            let result = judge(&log, &found, &short, state);
            assert!(result.is_ok(), "byte {at} of {name}: {result:?}");
        }
    }
}

#[test]
fn no_damaged_byte_changes_what_is_read() {
    let mut tried = 0;
    for clean in [true, false] {
        let (disk, state) = stopped(clean);
        let cut = usize::from(!clean);
        for name in disk.list(&dir()).unwrap() {
            let file = dir().join(name);
            let bytes = disk.contents(&file);
            for (at, byte) in bytes.iter().enumerate() {
                let structured = at % 4096 < 256 || at % 7 == 0;
                for bad in [byte ^ (1 << (at % 8)), 0, 0xff] {
                    if bad != *byte && structured {
                        damaged(&disk, &file, at, &[bad], &state, cut);
                        tried += 1;
                    }
                }
            }
            // Whole sectors can hide several small batches after an unclean stop.
            for size in if clean { vec![512, 4096] } else { vec![] } {
                for at in (0..bytes.len()).step_by(size) {
                    damaged(&disk, &file, at, &vec![0; size], &state, cut);
                    tried += 1;
                }
            }
        }
    }
    println!("{tried} damages");
}

#[test]
fn damage_of_an_acknowledged_batch_is_not_cut_as_torn() {
    let (disk, _) = stopped(false);
    let file = dir().join("0000000000000000.seg");
    disk.damage(&file, 4096 + 80 + 100, &[0xaa, 0x55]);
    let result = open(Arc::new(disk), &dir());
    assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{:?}", result.map(|_| ()));
}

fn put(bytes: &mut [u8], at: usize, from: &[u8]) {
    bytes[at..at + from.len()].copy_from_slice(from);
}

/// A forger knows the checksums. Nothing good can come of such a file, but no panic either.
#[test]
fn forged_numbers_never_panic() {
    let (disk, _) = stopped(false);
    let files: Vec<_> =
        disk.list(&dir()).unwrap().into_iter().filter(|n| n.ends_with("seg")).collect();
    let mut rng = Rng::new(9);
    let mut opened = 0;
    for _ in 0..12_000 {
        let pick = |rng: &mut Rng, count: usize| usize::try_from(rng.below(count as u64)).unwrap();
        let file = dir().join(&files[pick(&mut rng, files.len())]);
        let mut bytes = disk.contents(&file);
        let word = [0, 1, 2, u64::MAX, u64::MAX - 1, u64::MAX - 63, 1 << 63, 1 << 62, rng.draw()];
        let word = word[pick(&mut rng, word.len())].to_le_bytes();
        let salt = bytes[88..96].to_vec();
        let batches: Vec<_> = (4096..bytes.len())
            .step_by(64)
            .filter(|at| bytes[*at..].starts_with(b"BTCH"))
            .collect();
        let (from, to) = if batches.is_empty() || rng.below(3) == 0 {
            // Sequence, base, the entry before, its chain.
            let at = 48 + 8 * pick(&mut rng, 5);
            put(&mut bytes, at, &word);
            let crc = crc32c::crc32c(&bytes[16..128]);
            put(&mut bytes, 12, &crc.to_le_bytes());
            (0, 128)
        } else {
            let batch = batches[pick(&mut rng, batches.len())];
            let frame = batch + 80;
            if rng.below(2) == 0 {
                let at = [16, 24, 32, 40, 48, 64][pick(&mut rng, 6)];
                put(&mut bytes, batch + at, &word);
                let crc = crc32c::crc32c(&[&salt[..], &bytes[batch + 8..batch + 80]].concat());
                put(&mut bytes, batch + 4, &crc.to_le_bytes());
            } else {
                put(&mut bytes, frame + 8 + 8 * pick(&mut rng, 2), &word);
                let crc = crc32c::crc32c(&bytes[frame + 4..frame + 48]);
                put(&mut bytes, frame, &crc.to_le_bytes());
            }
            (batch, frame + 48)
        };
        let copy = disk.image(Survival::None);
        copy.damage(&file, from as u64, &bytes[from..to.min(bytes.len())]);
        let result =
            if rng.below(2) == 0 { open(Arc::new(copy), &dir()) } else { damage::reopen(&copy) };
        let Ok((log, found)) = result else { continue };
        opened += 1;
        for index in found.base.index.0..=found.last.index.0 {
            let _ = (log.reader().entry(Index(index)), log.reader().term_at(Index(index)));
        }
    }
    println!("{opened} forgeries were opened");
}

#[test]
fn a_missing_segment_is_missed() {
    let mut steps: Vec<_> = (1..6).map(|index| append(index, 1, &[9000])).collect();
    steps.push(Step::Vote { term: 2, vote: 1, wait: false });
    let disk = SimDisk::new(5);
    Run::new(Arc::new(disk.clone()), dir(), Driver::Right).all(&steps).unwrap();
    let names = disk.list(&dir()).unwrap();
    let segments: Vec<_> = names.iter().filter(|name| name.ends_with(".seg")).collect();
    assert!(segments.len() > 3, "{segments:?}");
    // Without the first it looks compacted: the database knows better.
    for name in &segments[1..] {
        let image = disk.image(Survival::None);
        image.remove(&dir().join(name)).unwrap();
        let result = open(Arc::new(image), &dir());
        assert!(matches!(result, Err(StoreError::Corrupt { .. })), "without {name}");
    }
}

/// The end of the last batch is known to be durable, or another batch stands behind it: then
/// a sector that is zero was not torn by a crash, although it looks so.
#[test]
fn a_zeroed_sector_of_what_was_durable_is_not_cut_as_torn() {
    let batches = [append(1, 1, &[3000]), append(2, 1, &[3000]), append(3, 1, &[3000])];
    let vote = Step::Vote { term: 2, vote: 1, wait: false };
    let cases = [(&batches[..2], 1), (&batches[..], 1), (&batches[..], 2)];
    for (steps, batch) in cases {
        for noted in [false, true] {
            let disk = SimDisk::new(5);
            let mut run = Run::new(Arc::new(disk.clone()), dir(), Driver::Right);
            run.all(steps).unwrap();
            if noted {
                // Saving the hard state notes how far the log is durable.
                run.step(&vote).unwrap();
            }
            let image = disk.image(Survival::None);
            // Batches of 3 KiB and a header begin every 3136 bytes.
            let sector = (4096 + batch * 3136 + 1024) / 512 * 512;
            image.damage(&dir().join("0000000000000000.seg"), sector, &[0; 512]);
            let result = open(Arc::new(image), &dir()).map(|(_, found)| found.last.index.0);
            if noted || batch + 1 < steps.len() as u64 {
                assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{result:?}");
            } else {
                assert_eq!(result.unwrap(), batch, "nothing tells it from a torn write");
            }
        }
    }
}

#[test]
fn segments_without_their_hard_state_are_refused() {
    let (disk, _) = stopped(true);
    disk.remove(&dir().join("hard.state")).unwrap();
    let result = open(Arc::new(disk), &dir());
    assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{:?}", result.map(|_| ()));
}

#[test]
fn the_same_workloads_on_files() {
    for steps in [plain(), installs()] {
        let place = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
        let mut run = Run::new(disk, place.path().join("log"), Driver::Right);
        run.all(&steps).unwrap();
        run.open().unwrap();
        assert_eq!(run.wrong, None);
    }
}

#[test]
fn a_failed_sync_loses_nothing_that_was_acknowledged() {
    let whole = SimDisk::new(1);
    Run::new(Arc::new(whole.clone()), dir(), Driver::Right).all(&plain()).unwrap();
    for sync in 0..whole.sync_count() {
        let disk = SimDisk::new(sync);
        disk.fail_at(sync);
        let mut run = Run::new(Arc::new(disk.clone()), dir(), Driver::Right);
        assert!(run.all(&plain()).is_err(), "sync {sync} failed and nobody noticed");
        assert_eq!(run.wrong, None, "sync {sync}");
        for image in disk.images(20, sync) {
            let result = check(&image, &run, sync);
            assert!(result.is_ok(), "sync {sync}: {result:?}");
        }
        // The next process finds all of it in the cache, as if the sync had worked: what it
        // answers for from now on must be on the disk.
        run.open().unwrap();
        assert_eq!(run.wrong, None, "sync {sync}, reopened");
        for image in disk.images(20, sync) {
            let result = check(&image, &run, sync);
            assert!(result.is_ok(), "sync {sync}, the cache was believed: {result:?}");
        }
    }
}
