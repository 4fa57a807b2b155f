//! What the store does in a second, beside the simplest thing that could do it, in one run.
//!
//! `cargo bench --bench store`. Absolute figures say little about another machine; read the
//! ratios. The database stands beside a `BTreeMap` in memory, which keeps nothing, and a
//! durable append stands beside a bare write and sync of a file that is there already.
#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first surprise")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mmapd::raft::message::IoToken;
use mmapd::raft::types::{EntryKind, Index, LogId, NodeId, Term};
use mmapd::store::disk::LinuxDisk;
use mmapd::store::{Db, DbOptions, Identity, Log, LogOptions, Tree};

const KEYS: u64 = 200_000;
const BATCH: u64 = 500;
const APPENDS: u64 = 2_000;
const VALUE: [u8; 256] = [7; 256];
const IDENTITY: Identity = Identity { cluster: 1, node: NodeId(1), incarnation: 1 };

fn main() {
    let dir = tempfile::tempdir().unwrap();
    println!("| what | mmapd /s | beside it /s | ratio |\n|---|---|---|---|");
    database(dir.path());
    log(dir.path());
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()
}

/// Runs `work` and answers how often a second it did one of `times` things.
fn rate(times: u64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    times as f64 / start.elapsed().as_secs_f64()
}

fn row(what: &str, ours: f64, beside: f64) {
    println!("| {what} | {ours:.0} | {beside:.0} | {:.2} |", ours / beside);
}

fn database(dir: &Path) {
    let options = DbOptions {
        path: dir.join("db.mmapd"),
        map_max: 4 << 30,
        quota: 1 << 30,
        grow_step: 64 << 20,
        shrink: mmapd::store::Shrink::default(),
    };
    let mut db = Db::open(Arc::new(LinuxDisk::new(None)), options.clone(), IDENTITY).unwrap();
    let mut model = BTreeMap::new();
    let inserts = rate(KEYS, || insert(&mut db, key));
    let beside = rate(KEYS, || {
        for n in 0..KEYS {
            model.insert(key(n), VALUE.to_vec());
        }
    });
    row("random insert, 500 in a batch (BTreeMap)", inserts, beside);
    let keys: Vec<_> = (0..KEYS).map(|n| key(n.wrapping_mul(7919) % KEYS)).collect();
    let beside = rate(KEYS, || {
        for key in &keys {
            black_box(model.get(key).unwrap());
        }
    });
    row("random get, pages in memory (BTreeMap)", gets(&db, &keys), beside);

    let job = db.begin_checkpoint().unwrap().unwrap();
    db.finish_checkpoint(job.run().unwrap()).unwrap();
    row("random get, pages in the map (BTreeMap)", gets(&db, &keys), beside);
    drop(db);
    let start = Instant::now();
    let mut db = Db::open(Arc::new(LinuxDisk::new(None)), options, IDENTITY).unwrap();
    println!("| open with {KEYS} keys | {:.1} ms | | |", start.elapsed().as_secs_f64() * 1e3);
    row("random get, first touch (BTreeMap)", gets(&db, &keys), beside);
    let scanned = rate(KEYS, || {
        let snapshot = db.published().snapshot();
        let mut scan = snapshot.scan(Tree::Kv, Bound::Unbounded, Bound::Unbounded, false);
        while let Some(item) = scan.next().unwrap() {
            black_box(item);
        }
    });
    let beside = rate(KEYS, || {
        for item in &model {
            black_box(item);
        }
    });
    row("scan (BTreeMap)", scanned, beside);
    let ordered = |n: u64| format!("sequential/{n:012}").into_bytes();
    let inserts = rate(KEYS, || insert(&mut db, ordered));
    let beside = rate(KEYS, || {
        for n in 0..KEYS {
            model.insert(ordered(n), VALUE.to_vec());
        }
    });
    row("sequential insert, 500 in a batch (BTreeMap)", inserts, beside);
}

fn insert(db: &mut Db, key: impl Fn(u64) -> Vec<u8>) {
    for batch in 0..KEYS / BATCH {
        let mut txn = db.begin();
        for n in batch * BATCH..(batch + 1) * BATCH {
            txn.put(Tree::Kv, &key(n), &VALUE).unwrap();
        }
        txn.commit().unwrap();
    }
}

fn gets(db: &Db, keys: &[Vec<u8>]) -> f64 {
    let snapshot = db.published().snapshot();
    rate(KEYS, || {
        for key in keys {
            black_box(snapshot.get(Tree::Kv, key).unwrap().unwrap());
        }
    })
}

fn log(dir: &Path) {
    let options = LogOptions { dir: dir.join("log"), segment_bytes: 16 << 20, repairable: false };
    let disk = Arc::new(LinuxDisk::new(None));
    let (mut log, _) = Log::open(disk, options, NodeId(1), || IDENTITY).unwrap();
    let file = OpenOptions::new().create_new(true).write(true).open(dir.join("bare")).unwrap();
    file.write_all_at(&vec![0; 16 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let mut index = 0;
    for size in [1, 64] {
        let ours = rate(APPENDS, || {
            for _ in 0..APPENDS / size {
                for _ in 0..size {
                    index += 1;
                    let id = LogId { term: Term(1), index: Index(index) };
                    log.stage_own(id, EntryKind::Command, &VALUE, 0);
                }
                let job = log.write(IoToken(index)).unwrap().unwrap();
                let synced = job.run().unwrap();
                log.synced(synced);
            }
        });
        let beside = rate(APPENDS, || {
            for n in 0..APPENDS / size {
                let bytes = vec![7; VALUE.len() * usize::try_from(size).unwrap()];
                file.write_all_at(&bytes, n * bytes.len() as u64).unwrap();
                file.sync_data().unwrap();
            }
        });
        row(&format!("durable append, {size} in a batch (pwrite and fdatasync)"), ours, beside);
    }
}
