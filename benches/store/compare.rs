//! The comparison proper: the engines take turns within each round, so that whatever else
//! the machine does hits all of them alike.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use mmapd::store::Unpaced;

use crate::Scale;
use crate::engines::{Engine, Key, Mmapd, Which};
use crate::report::{spread, verdict};

const BATCH: usize = 1000;
/// A random batch of 1000 changes about 4 MiB of pages: this is as often as mmapd makes a
/// checkpoint by itself.
const DURABLE_EVERY: usize = 16;
/// Bytes of a key and its value.
const PAIR: u64 = 16 + 256;

/// What is measured, the least ratio to LMDB, and the least to redb, that is wanted.
const MEASURES: [(&str, Option<f64>, Option<f64>); 9] = [
    ("random insert", Some(0.7), Some(1.0)),
    ("random overwrite", None, None),
    ("get, a snapshot each", Some(0.7), Some(1.0)),
    ("get, one snapshot", Some(0.7), Some(1.0)),
    ("scan forward", None, None),
    ("scan reverse", None, None),
    ("sequential insert", Some(0.7), Some(1.0)),
    ("random insert, durable every 16 batches", None, Some(1.0)),
    ("random overwrite, durable every 16 batches", None, Some(1.0)),
];

fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Key `n` of a random-looking order.
pub(crate) fn random(n: u64) -> Key {
    let halves = [mix(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)), mix(!n)];
    let mut key = Key::default();
    for (to, half) in key.chunks_exact_mut(8).zip(halves) {
        to.copy_from_slice(&half.to_le_bytes());
    }
    key
}

fn ordered(n: u64) -> Key {
    let mut key = *b"sequence/.......";
    for (place, byte) in key[9..].iter_mut().rev().enumerate() {
        *byte = u8::try_from((n >> (8 * place)) & 0xff).unwrap();
    }
    key
}

/// The same keys in another random-looking order.
fn shuffled(keys: u64, salt: u64) -> Vec<Key> {
    let mut order: Vec<u64> = (0..keys).collect();
    order.sort_by_key(|n| mix(n ^ (salt << 40)));
    order.into_iter().map(random).collect()
}

/// Writes all keys in transactions of 1000, and makes them durable at the end and, if asked,
/// now and then. Answers the seconds that all of it took.
fn write(engine: &mut dyn Engine, keys: &[Key], fill: u64, now_and_then: bool) -> f64 {
    let start = Instant::now();
    let mut pairs = Vec::with_capacity(BATCH);
    engine.sync_now_and_then(false);
    for (batch, keys) in keys.chunks(BATCH).enumerate() {
        if now_and_then && batch % DURABLE_EVERY == 0 {
            engine.sync_now_and_then(true);
        }
        pairs.clear();
        pairs.extend(keys.iter().map(|key| (*key, [u8::try_from(fill % 256).unwrap(); 256])));
        engine.write(&pairs);
    }
    engine.sync();
    start.elapsed().as_secs_f64()
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// One turn of an engine on a database of its own: how long each of [`MEASURES`] took.
fn turn(which: Which, dir: &Path, scale: &Scale, round: u64) -> [f64; MEASURES.len()] {
    let inserts: Vec<Key> = (0..scale.keys).map(random).collect();
    let reads = shuffled(scale.keys, 2 * round + 1);
    let over = shuffled(scale.keys, 2 * round + 2);
    let mut engine = which.open(dir);
    let random_insert = write(&mut *engine, &inserts, round, false);
    let overwrite = write(&mut *engine, &over, round + 1, false);
    engine.get_all(&reads); // the caches of all engines are warm from here on
    let each = timed(|| engine.get_each(&reads));
    let all = timed(|| engine.get_all(&reads));
    let walk = |reverse| timed(|| assert_eq!(engine.scan(reverse), scale.keys, "{which}"));
    let (forward, reverse) = (walk(false), walk(true));
    let durable_overwrite = write(&mut *engine, &reads, round + 2, true);
    drop(engine);
    std::fs::remove_dir_all(dir).unwrap();

    let mut engine = which.open(dir);
    let durable_insert = write(&mut *engine, &inserts, round, true);
    drop(engine);
    std::fs::remove_dir_all(dir).unwrap();

    let ordered: Vec<Key> = (0..scale.keys).map(ordered).collect();
    let mut engine = which.open(dir);
    let sequential = write(&mut *engine, &ordered, round, false);
    drop(engine);
    std::fs::remove_dir_all(dir).unwrap();
    [
        random_insert,
        overwrite,
        each,
        all,
        forward,
        reverse,
        sequential,
        durable_insert,
        durable_overwrite,
    ]
}

/// Rates of all engines and their ratios.
pub(crate) fn rates(dir: &Path, scale: &Scale) {
    let mut samples: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for round in 0..scale.rounds {
        for step in 0..Which::ALL.len() {
            // Nobody is always first.
            let at = (round + step) % Which::ALL.len();
            let which = Which::ALL[at];
            let took = turn(which, &dir.join(which.to_string()), scale, round as u64);
            for (measure, seconds) in took.into_iter().enumerate() {
                let rate = scale.keys as f64 / seconds;
                samples.entry((measure, at)).or_default().push(rate);
            }
            eprintln!("round {round}: {which} is done");
        }
    }
    println!("\nThousands a second, min / median / max of {} rounds\n", scale.rounds);
    println!("| what | mmapd | LMDB | redb | to LMDB | to redb | |\n|---|---|---|---|---|---|---|");
    for (measure, (name, to_lmdb, to_redb)) in MEASURES.into_iter().enumerate() {
        let of = |at: usize| spread(&samples[&(measure, at)]);
        let shown = |at: usize| {
            let (min, median, max) = of(at);
            format!("{:.0} / {:.0} / {:.0}", min / 1e3, median / 1e3, max / 1e3)
        };
        let ratio = |to: usize| of(0).1 / of(to).1;
        let met = to_lmdb.is_none_or(|least| ratio(1) >= least)
            && to_redb.is_none_or(|least| ratio(2) >= least);
        let wanted = to_lmdb.is_some() || to_redb.is_some();
        let verdict = if wanted { verdict(met) } else { "" };
        println!(
            "| {name} | {} | {} | {} | {:.2} | {:.2} | {verdict} |",
            shown(0),
            shown(1),
            shown(2),
            ratio(1),
            ratio(2),
        );
    }
}

/// Bytes that a file takes on the disk: LMDB's is longer than that, and full of holes.
fn on_disk(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// How big the files are and how long they take to open.
pub(crate) fn sizes(dir: &Path, scale: &Scale) {
    let live = (scale.keys * PAIR) as f64;
    let inserts: Vec<Key> = (0..scale.keys).map(random).collect();
    println!("\nFile size, as a ratio to the {:.0} MiB of keys and values\n", live / 1048576.0);
    println!("| engine | after loading | after {} overwrites | to open |", scale.overwrites);
    println!("|---|---|---|---|");
    let mut promises = String::new();
    for which in Which::ALL {
        let dir = dir.join(format!("size-{which}"));
        let mut engine = which.open(&dir);
        write(&mut *engine, &inserts, 0, true);
        let file = engine.file();
        let loaded = on_disk(&file);
        for round in 1..=scale.overwrites {
            write(&mut *engine, &shuffled(scale.keys, round), round, true);
        }
        let overwritten = on_disk(&file);
        drop(engine);
        let opened: Vec<f64> = (0..5).map(|_| timed(|| drop(which.open(&dir)))).collect();
        let (min, median, max) = spread(&opened);
        println!(
            "| {which} | {:.2} | {:.2} | {:.1} / {:.1} / {:.1} ms |",
            loaded as f64 / live,
            overwritten as f64 / live,
            min * 1e3,
            median * 1e3,
            max * 1e3,
        );
        if which == Which::Mmapd {
            promises = ours(&dir, overwritten, median);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    println!("\n{promises}");
}

/// What is promised of our own file.
fn ours(dir: &Path, bytes: u64, open: f64) -> String {
    let mut engine = Mmapd::open(dir, None);
    let pages = engine.db.live_bytes();
    let ratio = bytes as f64 / pages as f64;
    let compact = compacted(&mut engine);
    format!(
        "mmapd: {ratio:.2} times its {:.0} MiB of pages in use (target <= 2): {}; open {:.1} ms \
         (target < 50): {}; after compaction {compact:.2} times its pages in use (target <= 1.15): \
         {}",
        pages as f64 / 1048576.0,
        verdict(ratio <= 2.0),
        open * 1e3,
        verdict(open < 0.05),
        verdict(compact <= 1.15),
    )
}

/// How long the file is after compaction, as a ratio to the pages that are in use then.
fn compacted(engine: &mut Mmapd) -> f64 {
    let new = engine.db.begin_compaction().run(&Unpaced).unwrap();
    drop(engine.db.adopt(new).unwrap());
    on_disk(&engine.file()) as f64 / engine.db.live_bytes() as f64
}
