//! Filling the files of a new node, without threads and sockets: what `mmapd import` does.
//!
//! The real node does it: a [`Core`] that is alone leads, and every key is a proposal that
//! is written to the log, synced, applied and checkpointed as any other. It works on files
//! beside those of the configuration, which get their names when all is durable, the
//! database first and `hard.state` last: a start in between finds files that do not belong
//! together and refuses.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::clock::Clock;
use super::core::Core;
use super::work::{Answer, Event, Work};
use super::{Locks, core_options, lock, open_options};
use crate::config::Config;
use crate::machine::{Applied, Command, Conditions, KEY_MAX, Life};
use crate::store::db::discard;
use crate::store::disk::{LinuxDisk, parent};
use crate::store::{Db, Disk, StoreError};

/// Proposals that share a sync.
const BATCH: usize = 512;
/// Bytes of proposals that share a sync.
const BATCH_BYTES: usize = 1 << 20;
/// Name of the directory, inside that of the log, in which the log is made.
const DRAFT: &str = "importing";
/// Such names, also that of a restore: they are no data.
const DRAFTS: [&str; 2] = [DRAFT, "restoring"];
/// Ticks after which something that needs a few of them is not going to happen.
const PATIENCE: u64 = 1_000_000;

/// A store being made.
#[derive(Debug)]
pub struct Importer {
    core: Core<()>,
    work: Work<()>,
    clock: Clock,
    disk: Arc<dyn Disk>,
    files: Draft,
    quota: u64,
    value_max: u64,
    batch: Vec<((), Bytes)>,
    batch_bytes: usize,
    _locks: Locks,
}

/// Where files are made, and where they go.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    db: PathBuf,
    log: PathBuf,
    pub(super) draft_db: PathBuf,
    pub(super) draft_log: PathBuf,
}

/// What was made.
#[derive(Clone, Copy, Debug)]
pub struct Imported {
    /// Keys in the store.
    pub keys: u64,
    /// Its revision.
    pub revision: u64,
    /// Length of the database file.
    pub bytes: u64,
}

/// Why a key cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The key or the value breaks a limit.
    #[error("{0}")]
    Limit(String),
    /// There is a store already.
    #[error("{0}: there is data already; choose an empty place")]
    NotEmpty(String),
    /// The files.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where an import that did not end may have left files: a directory to be removed, with
/// all that is in it, and a file. They are no part of a store.
#[must_use]
pub fn leftovers(config: &Config) -> (PathBuf, PathBuf) {
    let files = Draft::of(config, DRAFT);
    (files.draft_log, files.draft_db)
}

impl Draft {
    pub(super) fn of(config: &Config, name: &str) -> Self {
        let (db, log) = (&config.storage.db, &config.storage.log);
        let mut draft_db = db.as_os_str().to_owned();
        draft_db.push(".");
        draft_db.push(name);
        Self {
            db: db.clone(),
            log: log.clone(),
            draft_db: draft_db.into(),
            draft_log: log.join(name),
        }
    }

    /// Gives the files, which are whole and closed, their names.
    pub(super) fn publish(&self, disk: &dyn Disk) -> Result<(), StoreError> {
        disk.rename(&self.draft_db, &self.db)?;
        disk.sync_dir(&parent(&self.db))?;
        let (state, rest): (Vec<_>, Vec<_>) =
            disk.list(&self.draft_log)?.into_iter().partition(|name| name == "hard.state");
        for names in [rest, state] {
            for name in names {
                disk.rename(&self.draft_log.join(&name), &self.log.join(&name))?;
            }
            disk.sync_dir(&self.log)?;
        }
        Ok(())
    }
}

/// Takes the locks of a node and sees that it has no data yet.
pub(super) fn claim(disk: &dyn Disk, config: &Config) -> Result<Locks, ImportError> {
    let locks = lock(disk, config)?;
    let (db, log) = (&config.storage.db, &config.storage.log);
    let data =
        disk.list(log)?.iter().any(|name| name != "LOCK" && !DRAFTS.contains(&name.as_str()));
    if Db::exists(disk, db)? {
        return Err(ImportError::NotEmpty(db.display().to_string()));
    }
    if data {
        return Err(ImportError::NotEmpty(log.display().to_string()));
    }
    Ok(locks)
}

impl Importer {
    /// Begins a store where the configuration says.
    ///
    /// # Errors
    /// `NotEmpty`; those of the store, `Locked` among them.
    pub fn begin(config: &Config) -> Result<Self, ImportError> {
        let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
        let locks = claim(&*disk, config)?;
        let files = Draft::of(config, DRAFT);
        discard(&*disk, &files.draft_db)?;
        disk.make_dir(&files.draft_log)?;
        for name in disk.list(&files.draft_log)? {
            disk.remove(&files.draft_log.join(name))?;
        }
        let mut options = open_options(config)?;
        options.db.path.clone_from(&files.draft_db);
        options.log.dir.clone_from(&files.draft_log);
        let (parts, _) = super::open(disk.clone(), options)?;
        let mut importer = Self {
            core: Core::new(parts, core_options(config)),
            work: Work::default(),
            clock: Clock::new(),
            disk,
            files,
            quota: config.storage.quota,
            value_max: config.limits.value,
            batch: Vec::new(),
            batch_bytes: 0,
            _locks: locks,
        };
        importer.tick_until(|core| core.raft().is_leader() && core.is_caught_up())?;
        Ok(importer)
    }

    /// Stores a key; a later one replaces it.
    ///
    /// # Errors
    /// `Limit` when the node would refuse the key or the value; those of the store.
    pub fn put(&mut self, key: &[u8], value: &[u8], content_type: &str) -> Result<(), ImportError> {
        if !(1..=KEY_MAX).contains(&key.len()) {
            let len = key.len();
            return Err(ImportError::Limit(format!(
                "a key has {len} bytes, and 1 to {KEY_MAX} are allowed"
            )));
        }
        if value.len() as u64 > self.value_max {
            return Err(ImportError::Limit(format!(
                "the value of key \"{}\" has {} bytes, and limits.value allows {}",
                key.escape_ascii(),
                value.len(),
                self.value_max
            )));
        }
        let command = Command::Put {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            content_type: content_type.to_owned(),
            life: Life::Endless,
            conditions: Conditions::default(),
            prev: false,
        };
        let payload = command.encode();
        self.batch_bytes += payload.len();
        self.batch.push(((), payload));
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Proposes what was gathered, and waits until it is durable and applied.
    fn flush(&mut self) -> Result<(), StoreError> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let proposed = batch.len();
        if proposed == 0 {
            return Ok(());
        }
        self.core.set_now(self.clock.now());
        self.core.handle(Event::Propose(batch), &mut self.work)?;
        self.settle()?;
        let answers = std::mem::take(&mut self.work.answers);
        let written = answers.iter().filter(|(_, a)| matches!(a, Answer::Written(Applied::Put(_))));
        assert_eq!(written.count(), proposed, "a node alone carries out what it is asked");
        if self.core.db().live_bytes() > self.quota {
            return Err(StoreError::Full { limit: self.quota });
        }
        Ok(())
    }

    /// Takes turns until there is nothing left to do.
    fn settle(&mut self) -> Result<(), StoreError> {
        loop {
            self.core.turn(&mut self.work)?;
            self.work.packets.clear();
            let (sync, checkpoint) = (self.work.sync.take(), self.work.checkpoint.take());
            let idle = sync.is_none() && checkpoint.is_none();
            if let Some(job) = sync {
                self.core.handle(Event::Synced(job.run()?), &mut self.work)?;
            }
            if let Some(job) = checkpoint {
                self.core.handle(Event::Checkpointed(Box::new(job.run()?)), &mut self.work)?;
            }
            if idle && !self.work.again {
                return Ok(());
            }
        }
    }

    fn tick_until(&mut self, done: impl Fn(&Core<()>) -> bool) -> Result<(), StoreError> {
        for _ in 0..PATIENCE {
            if done(&self.core) {
                return Ok(());
            }
            self.core.set_now(self.clock.now());
            self.core.handle(Event::Tick, &mut self.work)?;
            self.settle()?;
        }
        unreachable!("a node alone leads and makes checkpoints as time goes by")
    }

    /// Makes everything durable and gives the files their names.
    ///
    /// # Errors
    /// Those of the store.
    pub fn finish(mut self) -> Result<Imported, StoreError> {
        self.flush()?;
        self.tick_until(|core| core.is_idle() && core.db().dirty_bytes() == 0)?;
        self.core.stop()?;
        let db = self.core.db();
        let imported = Imported {
            keys: db.published().snapshot().entries(crate::store::Tree::Kv),
            revision: db.state().revision,
            bytes: db.size_bytes(),
        };
        let Self { core, disk, files, .. } = self;
        drop(core);
        files.publish(&*disk)?;
        Ok(imported)
    }
}
