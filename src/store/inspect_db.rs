//! Walking a database file that nobody uses, damaged or not.
//!
//! As in `check.rs` everything is looked at and nothing believed; but a page that is damaged
//! costs what hangs on it and no more, and each intact key is shown on the way.

use std::path::Path;

use super::Identity;
use super::db::{DbState, Snapshot, Tree};
use super::disk::{Disk, FileKind};
use super::error::StoreError;
use super::inspect::{Finding, Findings, Harm};
use super::map::{FileWriter, PAGE, PageMap};
use super::meta::{Meta, Root, SLOTS};
use super::page::{Kind, Run, View};
use super::space::Bitmap;
use super::tree::{HEIGHT_MAX, key_run, value_run, whole_key, whole_value};

/// Trees that have a name.
const TREES: [Tree; 6] =
    [Tree::Kv, Tree::History, Tree::Ttl, Tree::Session, Tree::Meta, Tree::Deleted];

/// Which checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that counts.
    Newest,
    /// The one before, a spare.
    Older,
}

/// One of the two meta pages.
#[derive(Clone, Debug)]
pub enum SlotOfMeta {
    /// Never written.
    Empty,
    /// Not whole.
    Damaged,
    /// A checkpoint, its number and what it knows.
    Checkpoint {
        /// Grows with every checkpoint.
        seq: u64,
        /// What the state machine knew then.
        state: DbState,
    },
}

/// What a walk counted.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Its number.
    pub seq: u64,
    /// What the state machine knew then.
    pub state: DbState,
    /// Pages of the file that it speaks of.
    pub pages: u64,
    /// Pages of trees.
    pub tree_pages: u64,
    /// Pages of long keys and values.
    pub run_pages: u64,
    /// Keys of all trees.
    pub entries: u64,
    /// Keys of the tree of keys and values, as its root says.
    pub keys: u64,
    /// Could every page be read?
    pub whole: bool,
}

/// Hears what a walk sees; `false` ends it.
pub trait Seen {
    /// An intact key and its value, in order within the tree.
    fn pair(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> bool;
    /// Something that is wrong.
    fn wrong(&mut self, finding: Finding) -> bool;
    /// Bytes that were looked at.
    fn read(&mut self, bytes: u64);
}

/// A database file, open to be looked at.
#[derive(Debug)]
pub struct DbLook {
    name: String,
    len: u64,
    slots: [SlotOfMeta; 2],
    newest: Option<Meta>,
    older: Option<Meta>,
    map: FileWriter,
}

impl DbLook {
    /// Opens the file; `None`: there is none. Damage of the meta pages goes to `findings`.
    ///
    /// # Errors
    /// `Io`: the operating system does not let us read. Whatever the bytes are is no error.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        findings: &mut Findings,
    ) -> Result<Option<Self>, StoreError> {
        let Some(region) = disk.open(path, FileKind::Db, 0)? else { return Ok(None) };
        let (name, len) = (region.name().to_owned(), region.len());
        let mut slots = [SlotOfMeta::Empty, SlotOfMeta::Empty];
        let (mut metas, mut unknown) = (Vec::new(), None);
        for (about, slot) in slots.iter_mut().zip(SLOTS) {
            let mut bytes = vec![0; PAGE];
            if len >= (slot + 1) * PAGE as u64 {
                region.read_at(slot * PAGE as u64, &mut bytes)?;
            }
            match Meta::decode(&bytes).filter(|meta| meta.slot() == slot) {
                Some(meta) => {
                    *about = SlotOfMeta::Checkpoint { seq: meta.seq, state: meta.state.clone() };
                    metas.push(meta);
                }
                None if bytes.iter().any(|byte| *byte != 0) => {
                    *about = SlotOfMeta::Damaged;
                    unknown = unknown.or_else(|| Meta::unknown(&bytes));
                }
                None => {}
            }
        }
        metas.sort_by_key(|meta| meta.seq);
        let newest = metas.pop();
        let older = metas.pop();
        let mut wrong = |offset, why: &str, harm| {
            let (file, why, what) = (name.clone(), why.to_owned(), "meta page");
            findings.push(Finding { file, offset, what, why, harm, ..Finding::default() });
        };
        for (about, slot) in slots.iter().zip(SLOTS).filter(|_| unknown.is_none()) {
            let (harm, why) = match newest {
                Some(_) => (Harm::Spare, "is damaged; the other checkpoint is used instead"),
                None => (Harm::Keys, "is damaged"),
            };
            if matches!(about, SlotOfMeta::Damaged) {
                wrong(slot * PAGE as u64, why, harm);
            }
        }
        if let Some(found) = unknown {
            wrong(0, &format!("the database is of {found}"), Harm::Keys);
        } else if newest.is_none() {
            wrong(0, "neither of the two is whole: the way to the keys is lost", Harm::Keys);
        }
        // All of the file, whatever the bitmap says: that is compared, not believed.
        let map = PageMap::open(region, 0..len / PAGE as u64);
        Ok(Some(Self { name, len, slots, newest, older, map }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.len
    }

    /// The two meta pages.
    #[must_use]
    pub fn slots(&self) -> &[SlotOfMeta; 2] {
        &self.slots
    }

    /// Whose database it is.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.newest.as_ref().map(|meta| meta.identity)
    }

    /// What the state machine knew at the newest checkpoint.
    #[must_use]
    pub fn state(&self) -> Option<&DbState> {
        self.newest.as_ref().map(|meta| &meta.state)
    }

    fn meta(&self, which: Which) -> Option<&Meta> {
        match which {
            Which::Newest => self.newest.as_ref(),
            Which::Older => self.older.as_ref(),
        }
    }

    /// The state of one checkpoint, whose pages may be damaged; `None`: there is no such.
    #[must_use]
    pub fn snapshot(&self, which: Which) -> Option<Snapshot> {
        Some(Snapshot::at(self.map.map(), self.meta(which)?))
    }

    /// Walks one checkpoint; `None`: there is no such.
    pub fn walk(&self, which: Which, seen: &mut dyn Seen) -> Option<Checkpoint> {
        let (meta, snapshot) = (self.meta(which)?, self.snapshot(which)?);
        let harm = match which {
            Which::Newest => Harm::Keys,
            Which::Older => Harm::Spare,
        };
        let about = Checkpoint {
            seq: meta.seq,
            state: meta.state.clone(),
            pages: meta.pages,
            keys: meta.roots.first().map_or(0, |root| root.entries),
            whole: true,
            ..Checkpoint::default()
        };
        let mut walk = Walk {
            name: &self.name,
            file_pages: self.len / PAGE as u64,
            snapshot: &snapshot,
            used: None,
            reached: Bitmap::default(),
            about,
            last: None,
            entries: 0,
            tree: Tree::Kv,
            harm,
            go_on: true,
            seen,
        };
        walk.whole_file(meta);
        Some(walk.about)
    }
}

struct Walk<'a, 's> {
    name: &'a str,
    file_pages: u64,
    snapshot: &'a Snapshot,
    /// Pages that are said to be in use; `None`: that is damaged.
    used: Option<Bitmap>,
    reached: Bitmap,
    about: Checkpoint,
    last: Option<Vec<u8>>,
    entries: u64,
    tree: Tree,
    harm: Harm,
    go_on: bool,
    seen: &'s mut dyn Seen,
}

type Bounds<'k> = (Option<&'k [u8]>, Option<&'k [u8]>);

impl Walk<'_, '_> {
    fn wrong(&mut self, what: &'static str, page: u64, why: &str) {
        let (file, offset) = (self.name.to_owned(), page.saturating_mul(PAGE as u64));
        let (why, harm) = (why.to_owned(), self.harm);
        self.about.whole = false;
        self.go_on &=
            self.seen.wrong(Finding { file, offset, what, why, harm, ..Finding::default() });
    }

    fn whole_file(&mut self, meta: &Meta) {
        if meta.pages > self.file_pages {
            let missing = meta.pages - self.file_pages;
            let why = format!("the file is too short: {missing} pages are missing");
            self.wrong("database", self.file_pages, &why);
        }
        self.bitmap(meta);
        for slot in SLOTS {
            self.reached.set(slot);
        }
        for (number, root) in meta.roots.iter().enumerate() {
            self.tree(number, root);
        }
        if !self.go_on || !self.about.whole {
            return;
        }
        let Some(used) = self.used.take() else { return };
        let leaks: Vec<u64> = used.iter().filter(|page| !self.reached.get(*page)).collect();
        if let Some(first) = leaks.first() {
            let why = format!("{} pages are in use, and nothing refers to them", leaks.len());
            self.harm = Harm::Contradiction;
            self.wrong("bitmap", *first, &why);
        }
    }

    fn bitmap(&mut self, meta: &Meta) {
        let run = meta.bitmap;
        let len = usize::try_from(run.pages).ok().and_then(|pages| pages.checked_mul(PAGE));
        let end = run.page.checked_add(run.pages).filter(|end| *end <= self.file_pages);
        let bytes = end.and_then(|_| self.snapshot.pin.bytes(run.page, len?));
        let bitmap = bytes.filter(|(bytes, _)| crc32c::crc32c(bytes) == run.crc);
        let bitmap = bitmap.map(|(bytes, _)| Bitmap::from_bytes(bytes));
        let bitmap = bitmap.filter(|bitmap| bitmap.iter().all(|page| page < meta.pages));
        match bitmap {
            Some(bitmap) => {
                self.used = Some(bitmap);
                for page in run.page..end.unwrap_or(run.page) {
                    self.reach("bitmap", page, 1);
                }
                self.seen.read(run.pages * PAGE as u64);
            }
            None => self.wrong("bitmap", run.page, "is damaged, or out of bounds"),
        }
    }

    /// Notes that pages are referred to; `false`: they cannot be, or were before.
    fn reach(&mut self, what: &'static str, page: u64, pages: u64) -> bool {
        let end = page.checked_add(pages).filter(|end| *end <= self.file_pages);
        let Some(end) = end.filter(|_| page != 0) else {
            self.wrong(what, page, "lies beyond the end of the file");
            return false;
        };
        for page in page..end {
            if self.used.as_ref().is_some_and(|used| !used.get(page)) {
                self.wrong(what, page, "is referred to, and marked as free");
            }
            if !self.reached.set(page) {
                self.wrong(what, page, "is referred to twice");
                return false;
            }
        }
        true
    }

    fn tree(&mut self, number: usize, root: &Root) {
        let Some(tree) = TREES.get(number) else {
            if *root != Root::default() {
                self.wrong("root", 0, "a tree that this version does not know");
            }
            return;
        };
        (self.tree, self.last, self.entries) = (*tree, None, 0);
        let before = self.about.whole;
        self.about.whole = true;
        if root.height > HEIGHT_MAX || (root.page == 0) != (root.height == 0) {
            self.wrong("root", root.page, "has an impossible height");
        } else if root.page != 0 {
            self.page(root.page, root.crc, root.height, (None, None));
        }
        if self.go_on && self.about.whole && self.entries != root.entries {
            let why = format!("{} keys are there, and {} should be", self.entries, root.entries);
            self.wrong("root", root.page, &why);
        }
        self.about.whole &= before;
        self.about.entries += self.entries;
    }

    fn page(&mut self, page: u64, crc: u32, level: u16, bounds: Bounds<'_>) {
        if !self.go_on || !self.reach("page", page, 1) {
            return;
        }
        self.about.tree_pages += 1;
        self.seen.read(PAGE as u64);
        let snapshot = self.snapshot;
        let view = snapshot.pin.bytes(page, PAGE).map(|(bytes, _)| View::new(bytes));
        let kind = if level == 1 { Kind::Leaf } else { Kind::Branch };
        let intact = view.filter(|view| view.is_intact(page, crc));
        let Some(view) = intact
            .filter(|view| view.kind() == Some(kind) && view.count() > 0 && view.used() <= PAGE)
        else {
            let why = match intact {
                Some(_) => "has an impossible header",
                None => "the checksum does not match",
            };
            let why = format!("{why}; lost with it: {}", range(bounds));
            self.wrong("page", page, &why);
            return;
        };
        for index in 0..view.count() {
            if !self.cell(&view, index, kind, level, bounds) || !self.go_on {
                return;
            }
        }
    }

    /// One cell of a page; `false`: the rest of the page makes no sense.
    fn cell(
        &mut self,
        view: &View<'_>,
        index: usize,
        kind: Kind,
        level: u16,
        (low, high): Bounds<'_>,
    ) -> bool {
        let page = view.page().unwrap_or_default();
        let Some(cell) = view.cell(index, kind) else {
            self.wrong("page", page, "a cell is out of bounds");
            return false;
        };
        let snapshot = self.snapshot;
        let long = key_run(&cell);
        let readable = long.is_none_or(|run| self.run(&run, &range((low, high))));
        let key = if readable { whole_key(snapshot, &cell.key).ok() } else { None };
        let value = value_run(&cell).is_none_or(|run| {
            let whose = key.map_or_else(|| range((low, high)), |key| format!("key {}", shown(key)));
            self.run(&run, &whose)
        });
        if kind == Kind::Branch {
            if key.is_some_and(|key| key.is_empty() != (index == 0)) {
                self.wrong("page", page, "has an empty separator in the wrong place");
            }
            let next = view.branch(index + 1);
            let next = next.as_ref().and_then(|next| whole_key(snapshot, &next.key).ok());
            let from = if index == 0 { low } else { key.or(low) };
            self.page(cell.child, cell.crc, level.saturating_sub(1), (from, next.or(high)));
            return true;
        }
        self.entries += 1;
        let Some(key) = key else { return true };
        let inside = low.is_none_or(|low| low <= key) && high.is_none_or(|high| key < high);
        if !inside || self.last.as_deref().is_some_and(|last| last >= key) {
            self.wrong("page", page, "has keys out of order");
        }
        self.last = Some(key.to_vec());
        if value && let Ok(value) = whole_value(snapshot, &cell.value) {
            self.go_on &= self.seen.pair(self.tree, key, value);
        }
        true
    }

    fn run(&mut self, run: &Run, whose: &str) -> bool {
        if !self.reach("value", run.page, run.pages()) {
            return false;
        }
        self.about.run_pages += run.pages();
        self.seen.read(run.pages() * PAGE as u64);
        let bytes = self.snapshot.pin.bytes(run.page, run.len);
        let intact = bytes.is_some_and(|(bytes, _)| crc32c::crc32c(bytes) == run.crc);
        if intact {
            self.snapshot.pin.set_verified(run.page);
        } else {
            let why = format!("the checksum does not match; lost with it: {whose}");
            self.wrong("value", run.page, &why);
        }
        intact
    }
}

/// Which keys lie between two bounds, in words.
fn range((low, high): Bounds<'_>) -> String {
    match (low.filter(|low| !low.is_empty()), high) {
        (None, None) => "all keys".to_owned(),
        (None, Some(high)) => format!("the keys below {}", shown(high)),
        (Some(low), None) => format!("the keys from {} on", shown(low)),
        (Some(low), Some(high)) => {
            format!("the keys from {} to below {}", shown(low), shown(high))
        }
    }
}

fn shown(key: &[u8]) -> String {
    format!("\"{}\"", key.get(..64).unwrap_or(key).escape_ascii())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::raft::types::{Index, LogId, NodeId, Term};
    use crate::store::simdisk::SimDisk;
    use crate::store::{Db, DbOptions};

    const FILE: &str = "/data/db";

    /// Two checkpoints of a few thousand keys, some with values of several pages.
    fn disk() -> Arc<SimDisk> {
        let disk = Arc::new(SimDisk::new(1));
        let options = DbOptions {
            path: PathBuf::from(FILE),
            map_max: 64 << 20,
            quota: u64::MAX,
            grow_step: 64 << 10,
            shrink: crate::store::Shrink::default(),
        };
        let identity = Identity { cluster: 7, node: NodeId(1), incarnation: 3 };
        let mut db = Db::open(disk.clone(), options, identity).unwrap();
        for (round, keys) in [(1, 0..800_u32), (2, 700..900)] {
            let mut txn = db.begin();
            for number in keys {
                let len = if number % 40 == 0 { 10_000 } else { 30 };
                let key = format!("key-{number:05}");
                txn.put(Tree::Kv, key.as_bytes(), &vec![round; len]).unwrap();
            }
            let id = LogId { term: Term(1), index: Index(u64::from(round)) };
            txn.state_mut().applied = id;
            txn.commit().unwrap();
            let job = db.begin_checkpoint().unwrap().unwrap();
            db.finish_checkpoint(job.run().unwrap()).unwrap();
        }
        disk
    }

    #[derive(Default)]
    struct Heard {
        keys: Vec<Vec<u8>>,
        findings: Findings,
    }

    impl Seen for Heard {
        fn pair(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> bool {
            assert!(tree == Tree::Kv && value.iter().all(|byte| *byte == value[0]));
            self.keys.push(key.to_vec());
            true
        }

        fn wrong(&mut self, finding: Finding) -> bool {
            self.findings.push(finding);
            true
        }

        fn read(&mut self, _: u64) {}
    }

    fn look(disk: &SimDisk) -> (Heard, Heard, Findings) {
        let mut findings = Findings::default();
        let file = DbLook::open(disk, Path::new(FILE), &mut findings).unwrap().unwrap();
        let (mut newest, mut older) = (Heard::default(), Heard::default());
        let _ = file.walk(Which::Newest, &mut newest);
        let _ = file.walk(Which::Older, &mut older);
        (newest, older, findings)
    }

    #[test]
    fn a_damaged_page_is_found_and_costs_what_hangs_on_it() {
        let disk = disk();
        let (newest, older, findings) = look(&disk);
        assert!(findings.is_empty() && newest.findings.is_empty() && older.findings.is_empty());
        assert_eq!((newest.keys.len(), older.keys.len()), (900, 800));
        assert!(newest.keys.is_sorted());
        let len = disk.open(Path::new(FILE), FileKind::Db, 0).unwrap().unwrap().len();
        let (mut costly, mut unused) = (0, 0);
        for page in 0..len / PAGE as u64 {
            let at = page * PAGE as u64 + 5;
            let region = disk.open(Path::new(FILE), FileKind::Db, 0).unwrap().unwrap();
            let mut byte = [0];
            region.read_at(at, &mut byte).unwrap();
            drop(region);
            disk.damage(Path::new(FILE), at, &[byte[0] ^ 1]);
            let (damaged, spare, meta) = look(&disk);
            disk.damage(Path::new(FILE), at, &byte);
            if SLOTS.contains(&page) {
                assert!(!meta.is_empty() && damaged.findings.is_empty(), "page {page}");
                continue;
            }
            for heard in [&damaged, &spare] {
                // A value of three pages has one checksum.
                let near = at.saturating_sub(5 + 2 * PAGE as u64)..at;
                let there = heard.findings.list.iter().all(|f| near.contains(&f.offset));
                assert!(there, "page {page}: {:?}", heard.findings.list);
            }
            let found = !damaged.findings.is_empty() || !spare.findings.is_empty();
            unused += usize::from(!found);
            if !damaged.findings.is_empty() && damaged.keys.len() < newest.keys.len() {
                costly += 1;
                assert!(damaged.keys.is_sorted());
            }
            assert!(found || damaged.keys == newest.keys, "page {page} is not in use");
        }
        assert!(costly > 20 && unused > 0, "{costly} costly, {unused} unused");
    }

    #[test]
    fn any_bytes_at_all_are_survived() {
        let mut random = 7_u64;
        for round in 0..100_u64 {
            let disk = disk();
            for _ in 0..=round % 5 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let noise = vec![random.to_le_bytes()[4]; 9000];
                // The meta pages are left alone, or nothing would be walked.
                disk.damage(Path::new(FILE), 17 * 4096 + (random >> 40) % 200_000, &noise);
            }
            let (newest, ..) = look(&disk);
            assert!(newest.keys.is_sorted(), "round {round}");
        }
    }
}
