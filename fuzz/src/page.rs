//! A database file of any bytes: a small one that is damaged, or none that ever was one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use mmapd::raft::types::{Index, LogId, Term};
use mmapd::store::simdisk::SimDisk;
use mmapd::store::{Db, DbOptions, DbState, Shrink, StoreError, Tree};

use super::{Files, IDENTITY, Input, disk_of, files, set_weak};

pub(super) const MAP_MAX: u64 = 1 << 20;
const TREES: [Tree; 6] =
    [Tree::Kv, Tree::History, Tree::Ttl, Tree::Session, Tree::Meta, Tree::Deleted];
/// A tree of blind checksums may show its pages over and over: no scan goes on for longer.
const STEPS: usize = 2000;

pub(super) type Model = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

/// A database, as bytes and as what is in it after each checkpoint.
pub(super) struct Base {
    pub(super) file: Vec<u8>,
    states: BTreeMap<u64, (DbState, Model)>,
}

pub(super) fn path() -> PathBuf {
    PathBuf::from("/data/mmapd.db")
}

pub(super) fn open(disk: &SimDisk) -> Result<Db, StoreError> {
    let options = DbOptions {
        path: path(),
        map_max: MAP_MAX,
        quota: MAP_MAX / 2,
        grow_step: 4096,
        shrink: Shrink::default(),
    };
    Db::open(Arc::new(disk.clone()), options, IDENTITY)
}

fn change(db: &mut Db, model: &mut Model, applied: u64) {
    let mut txn = db.begin();
    for (number, tree) in TREES.into_iter().enumerate() {
        for n in 0..40 >> number {
            let mut key = format!("key/{:03}", n * applied % 50).into_bytes();
            if n == 7 {
                key.resize(700, b'x');
            }
            if n % 11 == 3 {
                txn.delete(tree, &key).expect("room");
                model.remove(&(number, key));
                continue;
            }
            let byte = u8::try_from(1 + n + applied).expect("small");
            let value =
                vec![byte; if n == 5 { 9000 } else { usize::try_from(n * 7).expect("small") }];
            txn.put(tree, &key, &value).expect("room");
            model.insert((number, key), value);
        }
    }
    let state = txn.state_mut();
    state.applied = LogId { term: Term(1), index: Index(applied) };
    state.membership = vec![1; 40];
    txn.commit().expect("all changes were made");
}

pub(super) fn checkpoint(db: &mut Db) {
    let job = db.begin_checkpoint().expect("a simulated disk").expect("changes");
    db.finish_checkpoint(job.run().expect("a simulated disk")).expect("its own");
}

/// The database with real checksums, or the one with blind ones.
pub(super) fn base(weak: bool) -> &'static Base {
    static BASES: OnceLock<[Base; 2]> = OnceLock::new();
    // Both at once: asking for one must not change what checksums are in the midst of a run.
    &BASES.get_or_init(|| [false, true].map(make))[usize::from(weak)]
}

fn make(weak: bool) -> Base {
    set_weak(weak);
    let disk = SimDisk::new(1);
    let mut db = open(&disk).expect("a new one");
    let mut states = BTreeMap::from([(0, (DbState::default(), Model::new()))]);
    let mut model = Model::new();
    for applied in 1..=3 {
        change(&mut db, &mut model, applied);
        checkpoint(&mut db);
        states.insert(applied, (db.state().clone(), model.clone()));
    }
    drop(db);
    Base { file: disk.contents(&path()), states }
}

/// One input: how to make the file, then with what.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mode = input.byte();
    let weak = mode % 2 == 1;
    let base = base(weak);
    set_weak(weak);
    let mut file = base.file.clone();
    match mode / 2 % 4 {
        // Bytes of the input from the start of a file.
        0 => file = input.0.to_vec(),
        // The same, with the rest of a real one behind them.
        1 => {
            let len = input.0.len().min(file.len());
            file[..len].copy_from_slice(&input.0[..len]);
        }
        _ => {
            while !input.0.is_empty() {
                input.overwrite(&mut file);
            }
        }
    }
    let disk = disk_of(&Files::from([(path(), file)]));
    if let Ok(db) = open(&disk) {
        read(&db, (!weak).then_some(base));
    }
    assert_eq!(files(&disk, "/data").len(), 1, "opening makes no other file");
    set_weak(false);
}

/// Reads everything; with `base`, nothing else may be found.
pub(super) fn read(db: &Db, base: Option<&Base>) {
    let checked = db.check();
    let snapshot = db.published().snapshot();
    let (empty, applied) = (Model::new(), db.state().applied.index.0);
    let model = match base {
        None => &empty,
        Some(base) => {
            let (state, model) = &base.states[&applied];
            assert_eq!(state, db.state());
            model
        }
    };
    let names = self::base(false).states[&3].1.keys();
    for (tree, key) in names {
        let found = snapshot.get(TREES[*tree], key);
        if let (Some(_), Ok(found)) = (base, found) {
            assert_eq!(found, model.get(&(*tree, key.clone())).map(Vec::as_slice));
        }
    }
    for (number, tree) in TREES.into_iter().enumerate() {
        for reverse in [false, true] {
            let range = (number, Vec::new())..(number + 1, Vec::new());
            let mut want: Vec<_> = model.range(range).collect();
            if reverse {
                want.reverse();
            }
            let mut want = want.into_iter();
            let low = Bound::Included(&b"key"[..]);
            let mut scan = snapshot.scan(tree, low, Bound::Unbounded, reverse);
            for _ in 0..STEPS {
                let Ok(found) = scan.next() else { break };
                if base.is_some() {
                    let want = want.next().map(|((_, key), value)| (&key[..], &value[..]));
                    assert_eq!(found, want);
                }
                if found.is_none() {
                    break;
                }
            }
        }
    }
    drop(checked);
}

/// Damage here and there, and the first pages of a file.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for mode in [0, 1, 2, 3] {
        let file = &base(mode % 2 == 1).file;
        seeds.push([&[mode][..], &file[..4096]].concat());
    }
    // Roots and leaves: their cells, counts and lengths.
    let pages = base(true).file.len() / 4096;
    for page in (0..pages).step_by(3) {
        let [low, middle, high, _] = u32::try_from(page * 4096 + 8).expect("small").to_le_bytes();
        for mode in [4, 5] {
            seeds.push(vec![mode, low, middle, high, 3, 1, 2, 3, 4, low, middle, high, 0, 0xff]);
        }
    }
    seeds
}
