//! `mmapctl` get, put, del, touch, history: one key.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};

use super::endpoints::span;
use super::show;
use super::{Common, Failure, Output};
use crate::client::{ChangeKind, Client, Consistency};

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Fresh {
    /// Sees every write that was acknowledged before.
    #[default]
    Linearizable,
    /// The same without a round trip, where the cluster has leases on.
    Lease,
    /// The replica that is asked, as it is.
    Stale,
}

impl From<Fresh> for Consistency {
    fn from(fresh: Fresh) -> Self {
        match fresh {
            Fresh::Linearizable => Self::Linearizable,
            Fresh::Lease => Self::Lease,
            Fresh::Stale => Self::Stale,
        }
    }
}

/// A lock that must be held, so that the write happens.
#[derive(Args, Debug)]
pub(super) struct Fence {
    /// Only while this lock is held with that token, as `mmapctl lock` gave it.
    #[arg(long, value_name = "LOCK:TOKEN", value_parser = fence)]
    fence: Option<(String, u64)>,
}

impl Fence {
    pub(super) fn client(&self, common: &Common) -> Result<Client, Failure> {
        let client = common.client()?;
        Ok(match &self.fence {
            Some((lock, token)) => client.fenced(lock, *token),
            None => client,
        })
    }
}

fn fence(text: &str) -> Result<(String, u64), String> {
    let (lock, token) = text.rsplit_once(':').ok_or("LOCK:TOKEN is needed")?;
    let token = token.parse().map_err(|_| format!("{token:?} is no token"))?;
    Ok((lock.to_owned(), token))
}

/// What to read.
#[derive(Args, Debug)]
pub(super) struct Get {
    /// Its bytes are the key.
    key: OsString,
    /// How fresh the answer must be.
    #[arg(long, value_enum, default_value_t)]
    consistency: Fresh,
    /// As it was at this revision, if that is still known.
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
}

impl Get {
    /// Prints the value; as JSON all there is to know.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let client = common.client()?;
        let mut get = client.get(self.key.as_bytes()).consistency(self.consistency.into());
        if let Some(revision) = self.revision {
            get = get.at_revision(revision);
        }
        let entry = get.await.map_err(Failure::of_read)?;
        let entry = entry.ok_or_else(|| no_key(self.key.as_bytes()))?;
        if common.output == Output::Json {
            return show::json(&entry);
        }
        if common.output == Output::Table && std::io::stdout().is_terminal() {
            if std::str::from_utf8(&entry.value).is_err() {
                let size = show::size(entry.size);
                return Err(Failure::other(format!(
                    "{size} that are no text: ask for -o raw or -o json, or send them to a file"
                )));
            }
            // Lines stay lines, and the last one ends.
            let value = entry.value.strip_suffix(b"\n").unwrap_or(&entry.value);
            for line in value.split(|byte| *byte == b'\n') {
                show::line(&show::text(line))?;
            }
            return Ok(());
        }
        show::bytes(&entry.value)
    }
}

fn no_key(key: &[u8]) -> Failure {
    Failure::not_found(format!("there is no key {:?}", show::text(key)))
}

/// What to write.
#[derive(Args, Debug)]
pub(super) struct Put {
    /// Its bytes are the key.
    key: OsString,
    /// The value; standard input if there is none, or it is -.
    #[arg(conflicts_with = "file")]
    value: Option<OsString>,
    /// The value is what is in this file.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Removes it after that time: 30, 500ms, 5m.
    #[arg(long, value_parser = span, conflicts_with = "lease")]
    ttl: Option<Duration>,
    /// Removes it with that lease.
    #[arg(long, value_name = "ID")]
    lease: Option<u64>,
    /// Only if there is no such key.
    #[arg(long, conflicts_with_all = ["if_exists", "if_revision"])]
    if_absent: bool,
    /// Only if there is one.
    #[arg(long, conflicts_with = "if_revision")]
    if_exists: bool,
    /// Only if it was last written at that revision.
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
    /// Stored with it.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Prints what was there before too.
    #[arg(long)]
    prev: bool,
    /// A name for this write: done once, however often it is asked for.
    #[arg(long, value_name = "NAME")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    fence: Fence,
}

impl Put {
    fn value(&self) -> Result<Bytes, Failure> {
        let wrong = |what: String| move |error| Failure::other(format!("{what}: {error}"));
        if let Some(file) = &self.file {
            let read = std::fs::read(file).map_err(wrong(file.display().to_string()))?;
            return Ok(read.into());
        }
        if let Some(value) = self.value.as_ref().filter(|value| *value != "-") {
            return Ok(value.as_bytes().to_vec().into());
        }
        let mut value = Vec::new();
        std::io::stdin().read_to_end(&mut value).map_err(wrong("standard input".into()))?;
        Ok(value.into())
    }

    /// Prints the revision.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let client = self.fence.client(common)?;
        let mut put = client.put(self.key.as_bytes(), self.value()?);
        if self.if_absent {
            put = put.only_if_absent();
        }
        if self.if_exists {
            put = put.if_exists();
        }
        if let Some(revision) = self.if_revision {
            put = put.if_revision(revision);
        }
        if let Some(ttl) = self.ttl {
            put = put.ttl(ttl);
        }
        if let Some(id) = self.lease {
            put = put.lease(id);
        }
        if let Some(kind) = &self.content_type {
            put = put.content_type(kind);
        }
        if let Some(name) = &self.idempotency_key {
            put = put.idempotency_key(name);
        }
        if self.prev {
            put = put.with_prev();
        }
        let done = put.await?;
        show::either(common.output, &done, || {
            let what = if done.created { "created" } else { "written" };
            let prev = done.prev.as_ref().map(|prev| format!(", was {}", show::short(&prev.value)));
            format!("{what} at revision {}{}", done.revision, prev.unwrap_or_default())
        })
    }
}

/// What to remove.
#[derive(Args, Debug)]
#[group(id = "what", required = true, multiple = false, args = ["key", "prefix", "range", "all"])]
pub(super) struct Del {
    /// Its bytes are the key.
    key: Option<OsString>,
    /// All keys that begin so.
    #[arg(long)]
    prefix: Option<OsString>,
    /// All keys from the first up to, and without, the second.
    #[arg(long, num_args = 2, value_names = ["START", "END"])]
    range: Option<Vec<OsString>>,
    /// Every key there is.
    #[arg(long)]
    all: bool,
    /// Only if it was last written at that revision.
    #[arg(long, value_name = "N", requires = "key")]
    if_revision: Option<u64>,
    #[command(flatten)]
    fence: Fence,
}

impl Del {
    /// Prints how many were removed.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let client = self.fence.client(common)?;
        let done = if let Some(key) = &self.key {
            let mut delete = client.delete(key.as_bytes());
            if let Some(revision) = self.if_revision {
                delete = delete.if_revision(revision);
            }
            let done = delete.await?;
            if done.deleted == 0 {
                return Err(no_key(key.as_bytes()));
            }
            done
        } else if let Some(prefix) = &self.prefix {
            if prefix.is_empty() {
                return Err(Failure::usage("every key begins so: say --all if that is meant"));
            }
            client.delete_prefix(prefix.as_bytes()).await?
        } else if let Some([start, end]) = self.range.as_deref() {
            client.delete_range(start.as_bytes(), end.as_bytes()).await?
        } else {
            client.delete_all().await?
        };
        show::either(common.output, &done, || {
            format!("{} removed, revision {}", done.deleted, done.revision)
        })
    }
}

/// What to give another time.
#[derive(Args, Debug)]
pub(super) struct Touch {
    /// Its bytes are the key.
    key: OsString,
    /// Removes it after that time, from now on.
    #[arg(long, value_parser = span, required_unless_present = "keep", conflicts_with = "keep")]
    ttl: Option<Duration>,
    /// Does not remove it.
    #[arg(long)]
    keep: bool,
}

impl Touch {
    /// Prints what it has now.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let done = common.client()?.touch(self.key.as_bytes(), self.ttl).await?;
        show::either(common.output, &done, || format!("time to live {}", show::span(done.ttl)))
    }
}

/// Whose past.
#[derive(Args, Debug)]
pub(super) struct History {
    /// Its bytes are the key.
    key: OsString,
    /// At most so many changes.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Only changes before that revision.
    #[arg(long, value_name = "N")]
    before: Option<u64>,
}

impl History {
    /// Prints the changes of a key, newest first.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let mut past = common.client()?.history(self.key.as_bytes());
        if let Some(limit) = self.limit {
            past = past.limit(limit);
        }
        if let Some(before) = self.before {
            past = past.before(before);
        }
        let past = past.await.map_err(Failure::of_read)?;
        if common.output == Output::Json {
            return show::json(&past);
        }
        let row = |change: &crate::client::Change| {
            vec![
                change.revision.to_string(),
                if change.kind == ChangeKind::Put { "put" } else { "delete" }.to_owned(),
                show::maybe(change.version),
                show::short(&change.value),
            ]
        };
        let rows: Vec<_> = past.changes.iter().map(row).collect();
        show::table(&["REVISION", "CHANGE", "VERSION", "VALUE"], &rows)
    }
}
