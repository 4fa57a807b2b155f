//! Looking into the files of a node that does not run: what `mmapd check`, `dump` and
//! `export` show, and `backup` copies. Nothing here can write to them; the disk is one that
//! refuses.
//!
//! Left out: words for people, which are the command line's.

mod backup;
mod json;
#[cfg(test)]
mod tests;

pub use backup::{OfflineError, Saved};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::open::membership_of;
use crate::machine::{self, Item, Record, View};
use crate::raft::types::{EntryKind, Index, LogId, Membership, NodeId};
use crate::store::inspect::{
    Checkpoint, DbLook, Finding, Findings, Harm, LogReport, Seen, SlotOfMeta, Which, inspect_log,
};
use crate::store::readonly::ReadOnlyDisk;
use crate::store::{Db, DbOptions, DbState, Disk, Entry, Identity, Shrink, StoreError, Tree};

/// Entries applied as one change of the tree.
const APPLY_BATCH: u64 = 512;

/// The files of a node, locked against a daemon.
pub struct Files {
    disk: Arc<dyn Disk>,
    db: PathBuf,
    log: PathBuf,
    _locks: Vec<Box<dyn Send + Sync>>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("db", &self.db).field("log", &self.log).finish()
    }
}

/// What [`Files::check`] found.
#[derive(Debug, Default)]
pub struct Checked {
    /// The log.
    pub log: LogReport,
    /// The database; `None`: there is none.
    pub db: Option<DbChecked>,
    /// Is the node the only voter, so that no peer has a copy?
    pub alone: bool,
    /// All that is wrong, in both and between them.
    pub findings: Findings,
    /// Worth knowing, and no damage.
    pub notes: Vec<String>,
}

/// What [`Files::check`] found in the database.
#[derive(Debug)]
pub struct DbChecked {
    /// File name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Whose it is.
    pub identity: Option<Identity>,
    /// The two meta pages.
    pub slots: [SlotOfMeta; 2],
    /// The checkpoint that counts.
    pub newest: Option<Checkpoint>,
    /// The one before, a spare.
    pub older: Option<Checkpoint>,
    /// The digest computed from the keys; `None`: not all of them can be read.
    pub digest: Option<u128>,
}

/// Can what is damaged be had again?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// A second copy here is whole.
    Here,
    /// The other nodes have it.
    Peers,
    /// From the rest of this node's files.
    Rebuild,
    /// No.
    No,
}

impl Repair {
    /// Its name for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Peers => "peers",
            Self::Rebuild => "rebuild",
            Self::No => "no",
        }
    }
}

/// One line of `mmapd dump`.
#[derive(Debug)]
pub enum Line<'a> {
    /// The log as a whole.
    Log(&'a LogReport),
    /// An entry.
    Entry(&'a Entry),
    /// An entry that cannot be read.
    Lost(Index, Option<LogId>),
    /// What the state machine knew at the newest checkpoint.
    State(&'a DbState),
    /// A key.
    Key(&'a [u8], Record<'a>),
    /// Damage of the database.
    Wrong(&'a Finding),
}

/// What is to be dumped.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The log.
    pub log: bool,
    /// The database.
    pub db: bool,
    /// Keys that begin so.
    pub prefix: Vec<u8>,
}

impl Files {
    /// Finds and locks the files of a node.
    ///
    /// # Errors
    /// `Locked` when a daemon uses them, `Io` when neither is there.
    pub fn open(db: &Path, log: &Path) -> Result<Self, StoreError> {
        let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk);
        let has_db = Db::exists(&*disk, db)?;
        let has_log = !disk.list(log)?.is_empty();
        if !has_db && !has_log {
            return Err(absent(db, &format!("neither it nor the log {} is there", log.display())));
        }
        let mut db_lock = db.as_os_str().to_owned();
        db_lock.push(".lock");
        let mut locks = Vec::new();
        if has_db {
            locks.push(disk.lock(db_lock.as_ref())?);
        }
        if has_log {
            locks.push(disk.lock(&log.join("LOCK"))?);
        }
        Ok(Self { disk, db: db.to_owned(), log: log.to_owned(), _locks: locks })
    }

    /// Looks at every byte that matters. `progress` hears of the bytes that were looked at;
    /// `configured` are the members when the files do not name them.
    ///
    /// # Errors
    /// `Io`: the operating system does not let us read. Damage is no error.
    pub fn check(
        &self,
        configured: &BTreeMap<NodeId, String>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Checked, StoreError> {
        let mut log = inspect_log(&*self.disk, &self.log, progress)?;
        let mut findings = std::mem::take(&mut log.findings);
        let mut notes = std::mem::take(&mut log.notes);
        let file = DbLook::open(&*self.disk, &self.db, &mut findings)?;
        let db = file.map(|file| check_db(&file, &mut findings, progress));
        if let Some(torn) = &log.torn {
            notes.push(format!(
                "a torn tail, never acknowledged: {torn}; the next start cuts it off"
            ));
        }
        let newest = db.as_ref().and_then(|db| db.newest.as_ref());
        if let (Some(db), Some(newest)) = (&db, newest) {
            agree(&log, db, newest, &mut findings, &mut notes);
        } else if db.is_none() && log.last().index > Index(0) {
            let (file, what) = (self.db.display().to_string(), "database");
            let (why, harm) = ("the file is missing".to_owned(), Harm::Keys);
            findings.push(Finding { file, what, why, harm, ..Finding::default() });
        }
        let state = newest.map(|newest| newest.state.clone()).unwrap_or_default();
        let alone = members(&log, &state, configured).voters.len() <= 1;
        Ok(Checked { log, db, alone, findings, notes })
    }

    /// Shows what is in the files, entry by entry and key by key, until `show` says `false`.
    /// Returns whether all of it could be read.
    ///
    /// # Errors
    /// `Io`: the operating system does not let us read, or what is wanted is not there.
    /// Damage is shown.
    pub fn dump(
        &self,
        wanted: &Wanted,
        show: &mut dyn FnMut(Line<'_>) -> bool,
    ) -> Result<bool, StoreError> {
        let mut intact = true;
        if wanted.log {
            let report = inspect_log(&*self.disk, &self.log, &mut |_| {})?;
            if !report.found {
                return Err(absent(&self.log, "there is no log"));
            }
            intact &= report.findings.is_empty();
            if !show(Line::Log(&report)) {
                return Ok(intact);
            }
            for place in report.first().0..=report.last().index.0 {
                let entry = report.entry(Index(place));
                let go_on = match &entry {
                    Some(entry) => show(Line::Entry(entry)),
                    None => {
                        let id = report.identity(Index(place)).map(|(id, _)| id);
                        show(Line::Lost(Index(place), id))
                    }
                };
                if !go_on {
                    return Ok(intact);
                }
            }
        }
        if wanted.db {
            let mut findings = Findings::default();
            let file = DbLook::open(&*self.disk, &self.db, &mut findings)?;
            intact &= findings.is_empty();
            if !findings.list.iter().all(|finding| show(Line::Wrong(finding))) {
                return Ok(intact);
            }
            let file = file.ok_or_else(|| absent(&self.db, "there is no database"))?;
            if let Some(state) = file.state()
                && show(Line::State(state))
            {
                let mut shown = Shown { prefix: &wanted.prefix, show, intact: true };
                file.walk(Which::Newest, &mut shown);
                intact &= shown.intact;
            }
        }
        Ok(intact)
    }

    /// The newest state that is certain: the last checkpoint, and of the log what is known to
    /// be committed. `configured` are the members when the files do not name them.
    ///
    /// # Errors
    /// Those of the store; `Corrupt` when an entry that is needed is damaged.
    pub fn newest(
        &self,
        configured: &BTreeMap<NodeId, String>,
        map_max: u64,
    ) -> Result<Newest, StoreError> {
        let log = inspect_log(&*self.disk, &self.log, &mut |_| {})?;
        let mut findings = Findings::default();
        let file = DbLook::open(&*self.disk, &self.db, &mut findings)?;
        let no = |why: &str| StoreError::Corrupt {
            file: self.db.display().to_string(),
            what: "database",
            offset: 0,
            why: why.to_owned(),
        };
        let file = file.ok_or_else(|| no("there is none"))?;
        let identity = file.identity().ok_or_else(|| no("neither meta page is whole"))?;
        let size = file.size_bytes();
        drop(file);
        let options = DbOptions {
            path: self.db.clone(),
            map_max: map_max.max(size.saturating_mul(2)),
            quota: u64::MAX,
            grow_step: 1 << 24,
            shrink: Shrink::default(),
        };
        let mut db = Db::open(self.disk.clone(), options, identity)?;
        let applied = db.state().applied;
        let members = members(&log, db.state(), configured);
        let alone = members.voters.len() <= 1;
        let certain = if alone { log.last().index } else { log.commit.min(log.last().index) };
        apply(&mut db, &log, certain)?;
        let view = View::new(db.published().snapshot());
        Ok(Newest {
            checkpoint: applied,
            certain: certain.max(applied.index),
            last: log.last().index,
            alone,
            view,
        })
    }

    /// Bytes that a check looks at, about.
    ///
    /// # Errors
    /// `Io`.
    pub fn size_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        let files = self.disk.list(&self.log)?.into_iter().filter(|name| name.ends_with(".seg"));
        let files = files.map(|name| self.log.join(name)).chain([self.db.clone()]);
        for path in files {
            let kind = crate::store::disk::FileKind::Log;
            bytes += self.disk.open(&path, kind, 0)?.map_or(0, |region| region.len());
        }
        Ok(bytes)
    }
}

/// What [`Files::newest`] found.
#[derive(Debug)]
pub struct Newest {
    /// The last entry in the database file.
    pub checkpoint: LogId,
    /// The last entry that is included.
    pub certain: Index,
    /// The last entry of the log.
    pub last: Index,
    /// Is the node the only voter, so that all that is durable is committed?
    pub alone: bool,
    /// The state.
    pub view: View,
}

impl Newest {
    /// Calls `visit` with each key in order until it says `false`.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn scan(&self, visit: impl FnMut(Item<'_>) -> bool) -> Result<(), StoreError> {
        self.view.scan(&machine::Range::prefix(&[]), visit)
    }
}

/// The members that the files name, the newest first; else those of the configuration.
fn members(log: &LogReport, state: &DbState, configured: &BTreeMap<NodeId, String>) -> Membership {
    let configured = membership_of(&state.membership, &Membership::of(configured.clone()));
    let places = (state.applied.index.0 + 1).max(log.first().0)..=log.last().index.0;
    let entries = places.filter_map(|place| log.entry(Index(place)));
    let newest = entries.rev().find(|entry| entry.kind == EntryKind::Config);
    newest.map_or(configured.clone(), |entry| membership_of(&entry.payload, &configured))
}

fn apply(db: &mut Db, log: &LogReport, certain: Index) -> Result<(), StoreError> {
    let mut applied = db.state().applied.index;
    while applied < certain {
        let upto = Index(certain.0.min(applied.0 + APPLY_BATCH));
        let mut txn = db.begin();
        for place in applied.0 + 1..=upto.0 {
            let entry = log.entry(Index(place)).ok_or_else(|| StoreError::Corrupt {
                file: log.dir.clone(),
                what: "entry",
                offset: 0,
                why: format!(
                    "entry {place} is needed and cannot be read; `mmapd check` says more, and \
                     `mmapd dump` shows what can be read"
                ),
            })?;
            match entry.kind {
                EntryKind::Command => drop(machine::apply(&mut txn, &entry)?),
                EntryKind::Config => txn.state_mut().membership = entry.payload.to_vec(),
                EntryKind::Noop | EntryKind::Expire | EntryKind::Check => {}
            }
            let state = txn.state_mut();
            (state.applied, state.chain) = (entry.id, entry.chain);
            state.time_ms = state.time_ms.max(entry.time_ms);
        }
        txn.commit()?;
        applied = upto;
    }
    Ok(())
}

struct Digesting<'a, 's> {
    findings: &'a mut Findings,
    progress: &'a mut dyn FnMut(u64),
    digest: u128,
    indexes: machine::Indexes<'s>,
    /// Keys whose value is not one of ours.
    strange: Option<Bytes>,
}

impl Seen for Digesting<'_, '_> {
    fn pair(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> bool {
        self.digest = self.digest.wrapping_add(machine::digest(tree, key, value));
        self.indexes.pair(tree, key, value);
        if tree == Tree::Kv && self.strange.is_none() && Record::decode(value).is_none() {
            self.strange = Some(Bytes::copy_from_slice(key));
        }
        true
    }

    fn wrong(&mut self, finding: Finding) -> bool {
        self.findings.push(finding);
        true
    }

    fn read(&mut self, bytes: u64) {
        (self.progress)(bytes);
    }
}

fn check_db(file: &DbLook, findings: &mut Findings, progress: &mut dyn FnMut(u64)) -> DbChecked {
    let walk = |which: Which, findings: &mut Findings, progress: &mut dyn FnMut(u64)| {
        let snapshot = file.snapshot(which)?;
        let indexes = machine::Indexes::new(&snapshot);
        let mut seen = Digesting { findings, progress, digest: 0, indexes, strange: None };
        let about = file.walk(which, &mut seen)?;
        let Digesting { digest, indexes, strange, .. } = seen;
        let mut wrong = |what, why| {
            let harm = if which == Which::Newest { Harm::Keys } else { Harm::Spare };
            let file = file.name().to_owned();
            findings.push(Finding { file, what, why, harm, ..Finding::default() });
        };
        if let Some(key) = strange {
            wrong("record", format!("the value of key \"{}\" is not a record", key.escape_ascii()));
        } else if about.whole {
            for why in indexes.wrong() {
                wrong("index", why);
            }
        }
        if about.whole && digest != about.state.digest {
            let wanted = about.state.digest;
            let why = format!("the keys have digest {digest:032x}, and should have {wanted:032x}");
            wrong("digest", why);
        }
        Some((about.clone(), about.whole.then_some(digest)))
    };
    let (newest, digest) = walk(Which::Newest, findings, progress).unzip();
    // What both share was told already, and is damage of the newer one first.
    let mut again = Findings::default();
    let older = walk(Which::Older, &mut again, &mut |_| {}).map(|(about, _)| about);
    let told = |one: &Finding| {
        findings.list.iter().any(|known| (known.offset, known.what) == (one.offset, one.what))
    };
    again.list.retain(|one| !told(one));
    for finding in again.list {
        findings.push(finding);
    }
    DbChecked {
        file: file.name().to_owned(),
        bytes: file.size_bytes(),
        identity: file.identity(),
        slots: file.slots().clone(),
        newest,
        older,
        digest: digest.flatten(),
    }
}

struct Shown<'a, 's> {
    prefix: &'a [u8],
    show: &'s mut dyn FnMut(Line<'_>) -> bool,
    intact: bool,
}

impl Seen for Shown<'_, '_> {
    fn pair(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> bool {
        if tree != Tree::Kv || !key.starts_with(self.prefix) {
            return true;
        }
        match Record::decode(value) {
            Some(record) => (self.show)(Line::Key(key, record)),
            None => {
                let why = format!("the value of key \"{}\" is not a record", key.escape_ascii());
                self.wrong(Finding { what: "record", why, ..Finding::default() })
            }
        }
    }

    fn wrong(&mut self, finding: Finding) -> bool {
        self.intact = false;
        (self.show)(Line::Wrong(&finding))
    }

    fn read(&mut self, _: u64) {}
}

fn absent(file: &Path, why: &str) -> StoreError {
    let none = std::io::Error::new(std::io::ErrorKind::NotFound, why);
    StoreError::io("open", file.display().to_string())(none)
}

fn contradiction(file: &Path, why: String) -> Finding {
    let (file, harm) = (file.display().to_string(), Harm::Contradiction);
    Finding { file, what: "log and database", why, harm, ..Finding::default() }
}

/// The table in `open.rs`, without carrying any of it out.
fn agree(
    log: &LogReport,
    db: &DbChecked,
    newest: &Checkpoint,
    findings: &mut Findings,
    notes: &mut Vec<String>,
) {
    let mut wrong = |why| findings.push(contradiction(Path::new(&db.file), why));
    if !log.found {
        wrong("there is a database and no log: restore the log, or remove both".to_owned());
        return;
    }
    let identity = log.saved().map(|slot| slot.identity);
    if let (Some(log), Some(db)) = (identity, db.identity)
        && (log.cluster, log.node) != (db.cluster, db.node)
    {
        wrong(format!("the log is node {}'s, and the database node {}'s", log.node, db.node));
    }
    let applied = newest.state.applied;
    let pending = log.saved().and_then(|slot| slot.install);
    if pending.is_some_and(|pending| pending.last == applied) {
        notes.push("a snapshot was being installed; the next start finishes it".to_owned());
        return;
    }
    if pending.is_some() {
        notes.push("a snapshot was about to be installed; the next start forgets it".to_owned());
    }
    if applied.index > log.last().index {
        let last = log.last();
        wrong(format!(
            "the database holds entry {applied}, and the log ends at {last}: durable entries are lost"
        ));
    } else if applied.index < log.base.index {
        wrong(format!(
            "the database ends at entry {applied}, and the log begins after {}: what lies between \
             is lost",
            log.base
        ));
    } else if let Some((id, chain)) = log.identity(applied.index)
        && applied.index > Index(0)
        && (id, chain) != (applied, newest.state.chain)
    {
        wrong(format!(
            "the database applied entry {applied} of another history: the log has {id} there"
        ));
    }
}

/// What a finding means for the owner of the files: can it be had again, and what to do.
#[must_use]
pub fn meaning(finding: &Finding, checked: &Checked) -> (Repair, String) {
    let text = |repair, text: &str| (repair, text.to_owned());
    let rejoin = "repairable from peers: remove this node's data and let it rejoin; they send it";
    let newest = checked.db.as_ref().and_then(|db| db.newest.as_ref());
    let applied = newest.map_or(Index(0), |newest| newest.state.applied.index);
    match finding.harm {
        Harm::Spare => {
            text(Repair::Here, "nothing is lost: a second copy is whole, and is used instead")
        }
        Harm::Entries | Harm::Vote | Harm::Keys | Harm::Contradiction if !checked.alone => {
            text(Repair::Peers, rejoin)
        }
        Harm::Entries => match finding.entries {
            Some((_, last)) if last <= applied => text(
                Repair::Rebuild,
                "not repairable from peers, this node is alone; the database has what these \
                 entries did: `mmapd export`, then `mmapd import` into an empty place",
            ),
            Some(_) | None => text(
                Repair::No,
                "not repairable: this node is alone; restore a backup, or save what can be read \
                 with `mmapd dump`",
            ),
        },
        Harm::Vote => text(
            Repair::Rebuild,
            "this node is alone: `mmapd export`, then `mmapd import` into an empty place",
        ),
        Harm::Keys if checked.log.base.index == Index(0) && checked.log.lost == 0 => text(
            Repair::Rebuild,
            "the log is whole and has everything since the beginning: move the database file \
             away, and the next start makes it anew",
        ),
        Harm::Keys | Harm::Contradiction => text(
            Repair::No,
            "not repairable: this node is alone; restore a backup, or save what can be read with \
             `mmapd dump`",
        ),
    }
}
