//! A log directory of any bytes: what recovery makes of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use mmapd::raft::message::IoToken;
use mmapd::raft::types::{EntryKind, HardState, Index, LogId, Term};
use mmapd::store::simdisk::SimDisk;
use mmapd::store::{Log, LogOptions, Recovered, StoreError};

use super::{Files, IDENTITY, Input, disk_of, files, set_weak};

const DIR: &str = "/log";
/// Entries of the log that is damaged.
const LAST: u64 = 30;

fn open(disk: &SimDisk) -> Result<(Log, Recovered), StoreError> {
    let options =
        LogOptions { dir: PathBuf::from(DIR), segment_bytes: 10 << 10, repairable: false };
    Log::open(Arc::new(disk.clone()), options, IDENTITY.node, || IDENTITY)
}

fn payload(index: u64) -> Vec<u8> {
    let byte = u8::try_from(index % 250).expect("small") + 1;
    vec![byte; usize::try_from(index * 131 % 500).expect("small")]
}

fn append(log: &mut Log, id: LogId) {
    log.stage_own(id, EntryKind::Command, &payload(id.index.0), 5);
    let job = log.write(IoToken(1)).expect("a simulated disk").expect("an entry");
    let synced = job.run().expect("a simulated disk");
    log.synced(synced);
}

/// Logs with real and with blind checksums, closed and not.
fn base(weak: bool, closed: bool) -> &'static Files {
    static BASES: [OnceLock<Files>; 4] = [const { OnceLock::new() }; 4];
    BASES[usize::from(weak) * 2 + usize::from(closed)].get_or_init(|| {
        set_weak(weak);
        let disk = SimDisk::new(1);
        let (mut log, _) = open(&disk).expect("a new one");
        for index in 1..=LAST {
            let term = Term(1 + index / 12);
            if index % 12 == 0 {
                log.stage_hard_state(HardState { term, vote: Some(IDENTITY.node) });
            }
            append(&mut log, LogId { term, index: Index(index) });
        }
        if closed {
            log.mark_clean().expect("a simulated disk");
        }
        drop(log);
        files(&disk, DIR)
    })
}

/// One input: which log, then what happens to its files.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mode = input.byte();
    let (weak, closed) = (mode & 1 != 0, mode & 2 != 0);
    let mut log = base(weak, closed).clone();
    set_weak(weak);
    let names: Vec<PathBuf> = log.keys().cloned().collect();
    while !input.0.is_empty() {
        let what = input.byte();
        let name = &names[what % names.len()];
        let next = &names[(what + 1) % names.len()];
        let Some(file) = log.get_mut(name) else {
            input.byte();
            continue;
        };
        match what / 16 {
            13 => file.truncate(input.half() | input.byte() << 16),
            14 => {
                log.remove(name);
            }
            15 => {
                let copy = file.clone();
                log.insert(next.clone(), copy);
            }
            _ => input.overwrite(file),
        }
    }
    judge(&disk_of(&log), weak);
    set_weak(false);
}

fn judge(disk: &SimDisk, weak: bool) {
    let Ok((mut log, found)) = open(disk) else { return };
    let reader = log.reader();
    let (base, last) = (found.base.index.0, found.last.index.0);
    for index in base.saturating_sub(2)..=last.saturating_add(2).min(base.saturating_add(500)) {
        let entry = reader.entry(Index(index));
        if weak {
            continue;
        }
        assert!(entry.is_none() || (base + 1..=last).contains(&index));
        if let Some(entry) = entry {
            assert_eq!((entry.id.index.0, &entry.payload[..]), (index, &payload(index)[..]));
        }
    }
    let sent = reader.frames(found.base.index.next(), found.last.index, 1 << 20);
    if weak {
        return;
    }
    assert!(last <= LAST && found.hard_state.term >= found.last.term);
    if let Some((slices, _)) = sent {
        assert_eq!(slices.concat().len() % 8, 0);
    }
    // What was found can be continued, and is found again.
    let (kept, next) = (reader.entry(found.last.index), Index(last + 1));
    let id = LogId { term: found.hard_state.term, index: next };
    append(&mut log, id);
    drop(log);
    let (log, again) = open(disk).expect("what was repaired and continued opens again");
    assert_eq!((again.base, again.last), (found.base, id));
    let payload_of = |entry: Option<mmapd::store::Entry>| entry.map(|entry| entry.payload);
    assert_eq!(payload_of(log.reader().entry(found.last.index)), payload_of(kept));
    assert_eq!(payload_of(log.reader().entry(next)).as_deref(), Some(&payload(next.0)[..]));
}

/// Damage of headers, batches and frames, cuts, and files in other places.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let files = base(false, true).len();
    assert!(files > 3 && base(false, true).contains_key(&Path::new(DIR).join("hard.state")));
    let mut seeds = vec![vec![0], vec![2]];
    for mode in 0..4_u8 {
        for file in 0..u8::try_from(files).expect("few") {
            seeds.push(vec![mode, file, 20, 0x10, 0, 3, 1, 2, 3, 4]);
            seeds.push(vec![mode, file, 16, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
            let what = |kind: u8| {
                (0..16)
                    .map(|n| kind * 16 + n)
                    .find(|n| usize::from(*n) % files == usize::from(file))
                    .unwrap_or(0)
            };
            seeds.push(vec![mode, what(13), 0, 0x18, 0]);
            seeds.push(vec![mode, what(15)]);
        }
    }
    seeds
}
