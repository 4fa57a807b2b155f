//! A disk in memory that keeps only what it promised to keep.
//!
//! Two layers: the *cache*, which all reads see, and the *disk*, which a crash leaves. The
//! model is the weakest that real systems show: of the pages written and not synced any may
//! have reached the disk, each in any of its intermediate versions, one of them torn between
//! two versions at a 512-byte sector; a file may have its old length or its new one; names
//! that were created, renamed or removed may be so or not until the directory is synced.
//!
//! [`SimDisk::crash`] draws one such state, [`SimDisk::images`] walks through many.
//! Everything is decided by seeds, so every failure can be seen again.
//!
//! It can also misbehave on demand: stop at a chosen operation, fail a sync and forget what
//! it covered (as file systems do), or lie about one. Used by the crash tests and by the
//! cluster simulator, and never by a running node.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, FileKind, Region};
use super::error::StoreError;
use super::map::Memory;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// A small generator: the same numbers from the same seed, on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Seeds that differ in one bit give unrelated numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw().checked_rem(bound).unwrap_or(0)
    }
}

/// What of the unsynced pages a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    None,
    /// Everything, as it was last written.
    All,
    /// One of them alone.
    Only(usize),
    /// All but one.
    AllBut(usize),
    /// The first so many, in order of file and page.
    Prefix(usize),
    /// Any, in any version, perhaps one torn; drawn from this seed.
    Random(u64),
}

type Page = Box<[u8; PAGE]>;

#[derive(Default)]
struct Content {
    /// What a crash leaves for certain.
    disk: Vec<u8>,
    /// Later versions of pages, oldest first.
    pending: BTreeMap<usize, Vec<Page>>,
    /// Clean pages of the cache that the disk holds otherwise: damaged there.
    clean: BTreeMap<usize, Page>,
    /// Length in the cache.
    len: u64,
}

struct Inode {
    memory: Mutex<Arc<Memory>>,
    content: Mutex<Content>,
}

#[derive(Clone)]
enum NameOp {
    Create(PathBuf, Arc<Inode>),
    /// From, to, and the file: a crash may lose the name's earlier changes and keep this one,
    /// which still gives the new name to this file and to no other.
    Rename(PathBuf, PathBuf, Arc<Inode>),
    Remove(PathBuf),
}

#[derive(Default)]
struct State {
    /// Names as the cache has them.
    names: BTreeMap<PathBuf, Arc<Inode>>,
    /// Names that a crash leaves for certain.
    durable: BTreeMap<PathBuf, Arc<Inode>>,
    /// What happened to names since their directory was synced.
    pending: Vec<NameOp>,
    ops: u64,
    stop_after: Option<u64>,
    syncs: u64,
    lie_at: Option<u64>,
    fail_at: Option<u64>,
    rng: u64,
}

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        let names: Vec<_> = state.names.keys().collect();
        f.debug_struct("SimDisk").field("names", &names).field("ops", &state.ops).finish()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// An empty disk; the seed decides what a failing sync forgets.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(State { rng: seed, ..State::default() })) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Operations that changed something, or tried to.
    #[must_use]
    pub fn op_count(&self) -> u64 {
        self.state().ops
    }

    /// The operation after the first `ops`, and all later ones, fail: the machine stopped.
    pub fn stop_after(&self, ops: u64) {
        self.state().stop_after = Some(ops);
    }

    /// Syncs so far.
    #[must_use]
    pub fn sync_count(&self) -> u64 {
        self.state().syncs
    }

    /// The sync after the first `syncs` reports success and does nothing.
    pub fn lie_at(&self, syncs: u64) {
        self.state().lie_at = Some(syncs);
    }

    /// The sync after the first `syncs` fails, and what it covered is marked clean although
    /// some of it is not on the disk; later syncs succeed (the page cache after a failed
    /// `fsync`). Reads see what is not there until the file is opened by [`Disk::open`].
    pub fn fail_at(&self, syncs: u64) {
        self.state().fail_at = Some(syncs);
    }

    /// Changes bytes of a file in both layers: what a bad disk does while nobody looks.
    ///
    /// # Panics
    /// When there is no such file or the range is outside of it.
    pub fn damage(&self, path: &Path, offset: u64, bytes: &[u8]) {
        let inode = self.state().names.get(path).cloned().expect("the file exists");
        let mut content = locked(&inode.content);
        assert!(offset + bytes.len() as u64 <= content.len, "inside the file");
        locked(&inode.memory).store(offset, bytes);
        let at = usize::try_from(offset).expect("small");
        for versions in content.pending.values_mut() {
            versions.clear();
        }
        content.pending.clear();
        if content.disk.len() < at + bytes.len() {
            content.disk.resize(at + bytes.len(), 0);
        }
        content.disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Flips a bit of a file on the disk and not in the cache: what nobody sees who reads
    /// through the cache.
    ///
    /// # Panics
    /// When there is no such file, or nothing was synced there.
    pub fn rot(&self, path: &Path, offset: u64, bit: u8) {
        let inode = self.state().names.get(path).cloned().expect("the file exists");
        let mut content = locked(&inode.content);
        let at = usize::try_from(offset).expect("small");
        if !content.pending.contains_key(&(at / PAGE)) {
            let page = content.newest(at / PAGE);
            content.clean.entry(at / PAGE).or_insert(page);
        }
        *content.disk.get_mut(at).expect("synced before") ^= 1 << bit;
    }

    /// The bytes of a file as the disk holds them.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn on_disk(&self, path: &Path) -> Vec<u8> {
        let inode = self.state().names.get(path).cloned().expect("the file exists");
        locked(&inode.content).disk.clone()
    }

    /// The bytes of a file as reads see them.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let inode = self.state().names.get(path).cloned().expect("the file exists");
        inode.cached()
    }

    /// Pages written and not synced.
    #[must_use]
    pub fn pending_pages(&self) -> usize {
        self.state().names.values().map(|inode| locked(&inode.content).pending.len()).sum()
    }

    /// One state that a power loss may leave.
    #[must_use]
    pub fn crash(&self, rng: &mut Rng) -> Self {
        let survival = match rng.below(10) {
            0 | 1 => Survival::None,
            2 => Survival::All,
            _ => Survival::Random(rng.draw()),
        };
        self.image(survival)
    }

    /// States that a power loss may leave: each pending page alone and each alone missing,
    /// each prefix, nothing and everything, then random ones up to `limit`.
    pub fn images(&self, limit: usize, seed: u64) -> impl Iterator<Item = Self> + '_ {
        let pages = self.pending_pages();
        let directed = [Survival::None, Survival::All]
            .into_iter()
            .chain((0..pages).map(Survival::Only))
            .chain((0..pages).map(Survival::AllBut))
            .chain((1..pages).map(Survival::Prefix));
        let mut rng = Rng::new(seed);
        let random = std::iter::repeat_with(move || Survival::Random(rng.draw()));
        directed.chain(random).take(limit).map(|survival| self.image(survival))
    }

    /// The state that a power loss leaves when `survival` of the unsynced pages reached it.
    #[must_use]
    pub fn image(&self, survival: Survival) -> Self {
        let state = self.state();
        let mut rng = Rng::new(match survival {
            Survival::Random(seed) => seed,
            Survival::None | Survival::All => 0,
            Survival::Only(at) | Survival::AllBut(at) | Survival::Prefix(at) => at as u64,
        });
        let mut names = state.durable.clone();
        for op in &state.pending {
            let kept = match survival {
                Survival::None => false,
                Survival::All | Survival::AllBut(_) => true,
                Survival::Only(_) | Survival::Prefix(_) | Survival::Random(_) => rng.below(2) == 0,
            };
            if kept {
                op.apply(&mut names);
            }
        }
        let mut place = 0;
        let torn = if matches!(survival, Survival::Random(_)) { rng.below(8) } else { 1 };
        let names: BTreeMap<_, _> = names
            .into_iter()
            .map(|(path, inode)| {
                let image = inode.image(survival, &mut place, &mut rng, torn == 0);
                (path, Arc::new(image))
            })
            .collect();
        let durable = names.clone();
        Self {
            state: Arc::new(Mutex::new(State {
                names,
                durable,
                rng: rng.draw(),
                ..State::default()
            })),
        }
    }

    fn operation(
        &self,
        what: &'static str,
        path: &Path,
    ) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut state = self.state();
        state.ops += 1;
        if state.stop_after.is_some_and(|limit| state.ops > limit) {
            let stopped = io::Error::other("the simulated machine stopped");
            return Err(StoreError::io(what, path.display().to_string())(stopped));
        }
        Ok(state)
    }

    fn region(
        &self,
        path: &Path,
        inode: Arc<Inode>,
        reserve: u64,
    ) -> Result<Box<dyn Region>, StoreError> {
        let memory = inode.reserve(reserve).map_err(StoreError::io("mmap", "memory"))?;
        Ok(Box::new(SimRegion {
            name: path.display().to_string(),
            path: path.to_owned(),
            disk: self.clone(),
            inode,
            memory,
        }))
    }
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Arc<Inode>>) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path.clone(), inode.clone());
            }
            Self::Rename(from, to, inode) => {
                if names.get(from).is_some_and(|named| Arc::ptr_eq(named, inode)) {
                    names.remove(from);
                }
                names.insert(to.clone(), inode.clone());
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }

    fn touches(&self, dir: &Path) -> bool {
        let path = match self {
            Self::Create(path, _) | Self::Remove(path) | Self::Rename(path, ..) => path,
        };
        super::disk::parent(path) == dir
    }
}

impl Inode {
    fn new(disk: Vec<u8>, len: u64) -> io::Result<Self> {
        let memory = Memory::anonymous((disk.len() as u64).max(PAGE as u64))?;
        memory.store(0, &disk);
        let content = Mutex::new(Content { disk, len, ..Content::default() });
        Ok(Self { memory: Mutex::new(Arc::new(memory)), content })
    }

    /// The file's memory with at least this much room. A map made earlier with less stays
    /// valid for those who hold it; the bytes it shows do not change any more.
    fn reserve(&self, reserve: u64) -> io::Result<Arc<Memory>> {
        let mut memory = locked(&self.memory);
        if (memory.reserved() as u64) < reserve {
            let larger = Memory::anonymous(reserve)?;
            larger.store(0, &self.cached_locked(&locked(&self.content)));
            *memory = Arc::new(larger);
        }
        Ok(memory.clone())
    }

    /// Drops what the cache holds and need not write, unless somebody has it mapped.
    fn forget_clean(&self) {
        let (memory, mut content) = (locked(&self.memory), locked(&self.content));
        if Arc::strong_count(&memory) == 1 {
            for page in std::mem::take(&mut content.clean).into_keys() {
                let bytes = content.newest(page);
                let inside = (page * PAGE) as u64..content.len;
                let len =
                    bytes.len().min(usize::try_from(inside.end - inside.start).unwrap_or(PAGE));
                memory.store(inside.start, &bytes[..len]);
            }
        }
    }

    fn cached(&self) -> Vec<u8> {
        self.cached_locked(&locked(&self.content))
    }

    #[expect(clippy::unused_self, reason = "reads as the other half of `cached`")]
    fn cached_locked(&self, content: &Content) -> Vec<u8> {
        let mut bytes = content.disk.clone();
        bytes.resize(usize::try_from(content.len).expect("small"), 0);
        for (page, clean) in &content.clean {
            put_page(&mut bytes, *page, &clean[..]);
        }
        for (page, versions) in &content.pending {
            let Some(newest) = versions.last() else { continue };
            put_page(&mut bytes, *page, &newest[..]);
        }
        bytes
    }

    fn image(&self, survival: Survival, place: &mut usize, rng: &mut Rng, tear: bool) -> Self {
        let content = locked(&self.content);
        let old = content.disk.len() as u64;
        let len =
            match survival {
                Survival::None => old.min(content.len),
                Survival::All | Survival::AllBut(_) => content.len,
                Survival::Only(_) | Survival::Prefix(_) | Survival::Random(_) => {
                    if rng.below(2) == 0 { content.len } else { old.min(content.len) }
                }
            };
        let mut disk = content.disk.clone();
        disk.resize(usize::try_from(len).expect("small"), 0);
        for (page, versions) in &content.pending {
            let at = *place;
            *place += 1;
            let newest = versions.len();
            let version = match survival {
                Survival::None => 0,
                Survival::All => newest,
                Survival::Only(only) => {
                    if at == only {
                        newest
                    } else {
                        0
                    }
                }
                Survival::AllBut(missing) => {
                    if at == missing {
                        0
                    } else {
                        newest
                    }
                }
                Survival::Prefix(end) => {
                    if at < end {
                        newest
                    } else {
                        0
                    }
                }
                Survival::Random(_) => {
                    usize::try_from(rng.below(newest as u64 + 1)).expect("small")
                }
            };
            if let Some(bytes) = version.checked_sub(1).and_then(|v| versions.get(v)) {
                put_page(&mut disk, *page, &bytes[..]);
            }
            if tear && rng.below(3) == 0 {
                let other = usize::try_from(rng.below(newest as u64)).expect("small");
                let sectors = usize::try_from(rng.below((PAGE / SECTOR) as u64)).expect("small");
                if let Some(bytes) = versions.get(other) {
                    put_page(&mut disk, *page, &bytes[..sectors * SECTOR]);
                }
            }
        }
        Self::new(disk, len).expect("memory for a simulated file")
    }
}

/// Overwrites the front of a page, as far as the file reaches.
fn put_page(bytes: &mut [u8], page: usize, from: &[u8]) {
    let start = (page * PAGE).min(bytes.len());
    let end = (start + from.len()).min(bytes.len());
    bytes[start..end].copy_from_slice(&from[..end - start]);
}

impl Disk for SimDisk {
    fn create(
        &self,
        path: &Path,
        _: FileKind,
        reserve: u64,
    ) -> Result<Box<dyn Region>, StoreError> {
        let mut state = self.operation("create", path)?;
        if state.names.contains_key(path) {
            let exists = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(StoreError::io("create", path.display().to_string())(exists));
        }
        let inode = Inode::new(Vec::new(), 0).map_err(StoreError::io("mmap", "memory"))?;
        let inode = Arc::new(inode);
        state.names.insert(path.to_owned(), inode.clone());
        state.pending.push(NameOp::Create(path.to_owned(), inode.clone()));
        drop(state);
        self.region(path, inode, reserve)
    }

    fn open(
        &self,
        path: &Path,
        _: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        let Some(inode) = self.state().names.get(path).cloned() else { return Ok(None) };
        inode.forget_clean();
        self.region(path, inode, reserve).map(Some)
    }

    fn open_proven(
        &self,
        path: &Path,
        _: FileKind,
        reserve: u64,
    ) -> Result<Option<Box<dyn Region>>, StoreError> {
        let Some(inode) = self.state().names.get(path).cloned() else { return Ok(None) };
        self.region(path, inode, reserve).map(Some)
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, StoreError> {
        let state = self.state();
        let inside = state.names.keys().filter(|path| super::disk::parent(path) == dir);
        Ok(inside
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }

    fn make_dir(&self, _: &Path) -> Result<(), StoreError> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        let mut state = self.operation("rename", from)?;
        let Some(inode) = state.names.get(from).cloned() else {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(StoreError::io("rename", from.display().to_string())(missing));
        };
        let from_dir = super::disk::parent(from);
        if from_dir == super::disk::parent(to) {
            let op = NameOp::Rename(from.to_owned(), to.to_owned(), inode);
            op.apply(&mut state.names);
            state.pending.push(op);
        } else {
            // The two directories reach the disk one without the other.
            let ops = [NameOp::Create(to.to_owned(), inode), NameOp::Remove(from.to_owned())];
            for op in ops {
                op.apply(&mut state.names);
                state.pending.push(op);
            }
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        let mut state = self.operation("unlink", path)?;
        if !state.names.contains_key(path) {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(StoreError::io("unlink", path.display().to_string())(missing));
        }
        let op = NameOp::Remove(path.to_owned());
        op.apply(&mut state.names);
        state.pending.push(op);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), StoreError> {
        let mut state = self.operation("fsync", dir)?;
        let number = state.syncs;
        state.syncs += 1;
        if state.lie_at == Some(number) {
            return Ok(());
        }
        if state.fail_at == Some(number) {
            let error = io::Error::from(io::ErrorKind::StorageFull);
            return Err(StoreError::io("fsync", dir.display().to_string())(error));
        }
        let pending = std::mem::take(&mut state.pending);
        let (synced, rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(|op| op.touches(dir));
        for op in synced {
            op.apply(&mut state.durable);
        }
        state.pending = rest;
        Ok(())
    }

    fn lock(&self, _: &Path) -> Result<Box<dyn Send + Sync>, StoreError> {
        Ok(Box::new(()))
    }
}

struct SimRegion {
    name: String,
    path: PathBuf,
    disk: SimDisk,
    inode: Arc<Inode>,
    memory: Arc<Memory>,
}

impl fmt::Debug for SimRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimRegion").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a sync does this time.
enum SyncMode {
    Works,
    Lies,
    Fails(u64),
}

impl SimRegion {
    fn sync_pages(&self, first: usize, end: usize) -> Result<(), StoreError> {
        let mut state = self.disk.operation("msync", &self.path)?;
        let number = state.syncs;
        state.syncs += 1;
        let kind = if state.lie_at == Some(number) {
            SyncMode::Lies
        } else if state.fail_at == Some(number) {
            state.rng = state.rng.wrapping_add(1);
            SyncMode::Fails(state.rng)
        } else {
            SyncMode::Works
        };
        drop(state);
        let mut content = locked(&self.inode.content);
        let mut rng = match kind {
            SyncMode::Lies => return Ok(()),
            SyncMode::Fails(seed) => Some(Rng::new(seed)),
            SyncMode::Works => None,
        };
        let reach = content.len.min((end.saturating_mul(PAGE)) as u64);
        let reach = usize::try_from(reach).expect("small");
        if rng.is_none() && content.disk.len() < reach {
            content.disk.resize(reach, 0);
        }
        let pages: Vec<usize> = content.pending.range(first..end).map(|(page, _)| *page).collect();
        for page in pages {
            let versions = content.pending.remove(&page).unwrap_or_default();
            let kept = rng.as_mut().is_none_or(|rng| rng.below(2) == 0);
            let Some(newest) = versions.into_iter().next_back() else { continue };
            if kept {
                put_page(&mut content.disk, page, &newest[..]);
            } else {
                content.clean.insert(page, newest);
            }
        }
        match rng {
            None => Ok(()),
            Some(_) => {
                let error = io::Error::from(io::ErrorKind::StorageFull);
                Err(StoreError::io("msync", &self.name)(error))
            }
        }
    }
}

impl Region for SimRegion {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        locked(&self.inode.content).len
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        drop(self.disk.operation("pwrite", &self.path)?);
        let end = offset + bytes.len() as u64;
        if end > self.memory.reserved() as u64 {
            let error = io::Error::from(io::ErrorKind::StorageFull);
            return Err(StoreError::io("pwrite", &self.name)(error));
        }
        let mut content = locked(&self.inode.content);
        self.memory.store(offset, bytes);
        content.len = content.len.max(end);
        let (mut at, mut left) = (usize::try_from(offset).expect("small"), bytes);
        while !left.is_empty() {
            let (page, within) = (at / PAGE, at % PAGE);
            let (part, rest) = left.split_at(left.len().min(PAGE - within));
            let mut version = content.newest(page);
            content.clean.remove(&page);
            version[within..within + part.len()].copy_from_slice(part);
            content.pending.entry(page).or_default().push(version);
            (at, left) = (at + part.len(), rest);
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        let content = locked(&self.inode.content);
        if offset + into.len() as u64 > content.len {
            let error = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(StoreError::io("pread", &self.name)(error));
        }
        let (mut at, mut left) = (usize::try_from(offset).expect("small"), into);
        while !left.is_empty() {
            let (page, within) = (at / PAGE, at % PAGE);
            let (part, rest) = left.split_at_mut(left.len().min(PAGE - within));
            part.copy_from_slice(&content.newest(page)[within..within + part.len()]);
            at += part.len();
            left = rest;
        }
        Ok(())
    }

    fn read_disk(&self, offset: u64, into: &mut [u8]) -> Result<bool, StoreError> {
        let content = locked(&self.inode.content);
        let at = usize::try_from(offset).expect("small");
        let Some(found) = content.disk.get(at..at + into.len()) else {
            let error = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(StoreError::io("direct read", &self.name)(error));
        };
        into.copy_from_slice(found);
        Ok(true)
    }

    fn sync(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let first = usize::try_from(offset).expect("small") / PAGE;
        let end = usize::try_from(offset + len).expect("small").div_ceil(PAGE);
        self.sync_pages(first, end)
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        self.sync_pages(0, usize::MAX / PAGE)
    }

    fn set_len(&self, len: u64) -> Result<(), StoreError> {
        drop(self.disk.operation("ftruncate", &self.path)?);
        let mut content = locked(&self.inode.content);
        let bytes = usize::try_from(len).expect("small");
        // Cutting is not undone by a crash here: the weakest case for a cut is that it
        // happened, since nothing may depend on what lay behind it.
        content.disk.truncate(bytes);
        content.pending.retain(|page, _| page * PAGE < bytes);
        content.clean.retain(|page, _| page * PAGE < bytes);
        content.len = len;
        Ok(())
    }

    fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

impl Content {
    /// A page as reads see it.
    fn newest(&self, page: usize) -> Page {
        if let Some(newest) = self.pending.get(&page).and_then(|versions| versions.last()) {
            return newest.clone();
        }
        if let Some(clean) = self.clean.get(&page) {
            return clean.clone();
        }
        let mut bytes = Box::new([0; PAGE]);
        let start = (page * PAGE).min(self.disk.len());
        let end = (start + PAGE).min(self.disk.len());
        bytes[..end - start].copy_from_slice(&self.disk[start..end]);
        bytes
    }
}
