//! Figures of the database alone: maps while it grows, and reads from the map and the heap.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mmapd::store::disk::{FileKind, Observer};

use crate::Scale;
use crate::compare::random;
use crate::engines::{Engine, Key, Mmapd};
use crate::report::{spread, verdict};

#[derive(Debug, Default)]
struct Maps(AtomicU64);

impl Observer for Maps {
    fn synced(&self, _: FileKind, _: u64, _: Duration) {}
    fn sync_failed(&self, _: FileKind) {}
    fn mapped(&self, kind: FileKind, _: u64) {
        self.0.fetch_add(u64::from(kind == FileKind::Db), Ordering::Relaxed);
    }
    fn unmapped(&self, _: FileKind, _: u64) {}
}

pub(crate) fn all(dir: &Path, scale: &Scale) {
    println!("\nThe database alone\n");
    remaps(&dir.join("remaps"), scale);
    map_and_heap(&dir.join("map"), scale);
}

fn put(mmapd: &mut Mmapd, keys: std::ops::Range<u64>) {
    let pairs: Vec<(Key, [u8; 256])> = keys.map(|n| (random(n), [1; 256])).collect();
    for pairs in pairs.chunks(1000) {
        mmapd.write(pairs);
    }
}

/// Grows a database a hundredfold in use, and counts the maps made meanwhile.
fn remaps(dir: &Path, scale: &Scale) {
    std::fs::create_dir_all(dir).unwrap();
    let maps = Arc::new(Maps::default());
    let mut mmapd = Mmapd::open(dir, Some(maps.clone()));
    let small = scale.keys.div_ceil(200);
    put(&mut mmapd, 0..small);
    mmapd.sync();
    let (maps_before, live_before) = (maps.0.load(Ordering::Relaxed), mmapd.db.live_bytes());
    let mut keys = small;
    while mmapd.db.live_bytes() < 100 * live_before {
        put(&mut mmapd, keys..keys + small);
        keys += small;
    }
    mmapd.sync();
    let remaps = maps.0.load(Ordering::Relaxed) - maps_before;
    println!(
        "remaps while the pages in use grew from {} KiB to {} KiB, counted by the disk's observer: \
         {remaps} (target 0): {}",
        live_before >> 10,
        mmapd.db.live_bytes() >> 10,
        verdict(remaps == 0),
    );
    drop(mmapd);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Gets from pages on the heap, and from the same pages in the map after a checkpoint.
fn map_and_heap(dir: &Path, scale: &Scale) {
    std::fs::create_dir_all(dir).unwrap();
    // Less than what makes a checkpoint.
    let keys = scale.keys.min(100_000);
    let mut mmapd = Mmapd::open(dir, None);
    put(&mut mmapd, 0..keys);
    assert_eq!(mmapd.checkpoints, 0, "everything is on the heap");
    let reads: Vec<Key> = (0..keys).map(|n| random(n * 7919 % keys)).collect();
    let rate = |mmapd: &Mmapd| {
        let samples: Vec<f64> = (0..5)
            .map(|_| {
                let start = Instant::now();
                mmapd.get_all(&reads);
                keys as f64 / start.elapsed().as_secs_f64()
            })
            .collect();
        spread(&samples).1
    };
    let heap = rate(&mmapd);
    mmapd.sync();
    let map = rate(&mmapd);
    drop(mmapd);
    let start = Instant::now();
    let mmapd = Mmapd::open(dir, None);
    let opened = start.elapsed().as_secs_f64();
    let start = Instant::now();
    mmapd.get_all(&reads);
    let first = keys as f64 / start.elapsed().as_secs_f64();
    println!(
        "gets of {keys} keys, thousands a second: {:.0} from the heap, {:.0} from the map (ratio \
         {:.2}), {:.0} after opening ({:.1} ms), where the first touch of a page checks its \
         checksum",
        heap / 1e3,
        map / 1e3,
        map / heap,
        first / 1e3,
        opened * 1e3,
    );
    drop(mmapd);
    std::fs::remove_dir_all(dir).unwrap();
}
