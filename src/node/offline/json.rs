//! What is shown, as JSON: keys and values as in the HTTP interface, `key` or `key_b64`,
//! `value` with its `encoding`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::{Checked, DbChecked, Line, meaning};
use crate::machine::{Command, Conditions, Record, Request, Tags};
use crate::raft::types::EntryKind;
use crate::store::Entry;
use crate::store::inspect::{Checkpoint, Finding, LogReport, SlotOfMeta};
use crate::wire;

/// Bytes as text where they are text, else as base64.
fn shown(bytes: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), "utf-8"),
        Err(_) => (STANDARD.encode(bytes), "base64"),
    }
}

fn shown_key(key: &[u8]) -> (Option<String>, Option<String>) {
    match shown(key) {
        (text, "utf-8") => (Some(text), None),
        (text, _) => (None, Some(text)),
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Out<'a> {
    HardState(LogOut<'a>),
    Entry {
        index: u64,
        term: u64,
        kind: &'static str,
        time_ms: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        command: Option<CommandOut>,
        #[serde(skip_serializing_if = "Option::is_none")]
        voters: Option<Vec<u64>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        payload_b64: Option<String>,
    },
    Damaged {
        #[serde(skip_serializing_if = "Option::is_none")]
        index: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        term: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        why: &'a str,
    },
    State(StateOut),
    Key {
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        key_b64: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        encoding: Option<&'static str>,
        content_type: &'a str,
        size: u64,
        create_revision: u64,
        mod_revision: u64,
        version: u64,
    },
}

#[derive(Serialize)]
struct CommandOut {
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// Of a transaction or a batch: how many steps it has at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    writes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_match: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_none_match: Option<Value>,
}

#[derive(Serialize)]
struct LogOut<'a> {
    directory: &'a str,
    cluster: Option<String>,
    node: Option<u64>,
    term: u64,
    vote: Option<u64>,
    durable_position: Option<u64>,
    clean_stop: bool,
    first_index: u64,
    last_index: u64,
    last_term: u64,
    commit_index: u64,
    lost_entries: u64,
    torn_tail: Option<&'a str>,
    slots: Vec<Option<u64>>,
    segments: Vec<SegmentOut<'a>>,
}

#[derive(Serialize)]
struct SegmentOut<'a> {
    file: &'a str,
    bytes: u64,
    used: u64,
    batches: u64,
    entries: u64,
    first_index: Option<u64>,
    first_term: Option<u64>,
    last_index: Option<u64>,
    last_term: Option<u64>,
    sealed: bool,
}

#[derive(Serialize)]
struct StateOut {
    applied_index: u64,
    applied_term: u64,
    revision: u64,
    digest: String,
    time_ms: u64,
}

impl StateOut {
    fn new(state: &crate::store::DbState) -> Self {
        Self {
            applied_index: state.applied.index.0,
            applied_term: state.applied.term.0,
            revision: state.revision,
            digest: format!("{:032x}", state.digest),
            time_ms: state.time_ms,
        }
    }
}

impl<'a> LogOut<'a> {
    fn new(log: &'a LogReport) -> Self {
        let saved = log.saved();
        let segments = log.segments.iter().map(|segment| SegmentOut {
            file: &segment.file,
            bytes: segment.bytes,
            used: segment.used,
            batches: segment.batches,
            entries: segment.entries,
            first_index: segment.first.map(|id| id.index.0),
            first_term: segment.first.map(|id| id.term.0),
            last_index: segment.last.map(|id| id.index.0),
            last_term: segment.last.map(|id| id.term.0),
            sealed: segment.sealed,
        });
        Self {
            directory: &log.dir,
            cluster: saved.map(|slot| format!("{:032x}", slot.identity.cluster)),
            node: saved.map(|slot| slot.identity.node.0),
            term: log.hard.term.0,
            vote: log.hard.vote.map(|vote| vote.0),
            durable_position: saved.map(|slot| slot.durable),
            clean_stop: saved.is_some_and(|slot| slot.clean),
            first_index: log.first().0,
            last_index: log.last().index.0,
            last_term: log.last().term.0,
            commit_index: log.commit.0,
            lost_entries: log.lost,
            torn_tail: log.torn.as_deref(),
            slots: log.slots.iter().map(|slot| slot.map(|slot| slot.sequence)).collect(),
            segments: segments.collect(),
        }
    }
}

fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Noop => "noop",
        EntryKind::Command => "command",
        EntryKind::Config => "config",
        EntryKind::Expire => "expire",
        EntryKind::Check => "check",
    }
}

fn tags(tags: Option<&Tags>) -> Option<Value> {
    tags.map(|tags| match tags {
        Tags::Any => Value::from("*"),
        Tags::Revisions(list) => Value::from(list.clone()),
    })
}

impl CommandOut {
    fn new(command: &Command, values: bool) -> Self {
        let (op, key, conditions): (_, Option<&Bytes>, Option<&Conditions>) = match command {
            Command::Put { key, conditions, .. } => ("put", Some(key), Some(conditions)),
            Command::Delete { key, conditions, .. } => ("delete", Some(key), Some(conditions)),
            Command::Touch { key, conditions, .. } => ("touch", Some(key), Some(conditions)),
            Command::DeleteRange { span } => ("delete-range", Some(&span.start), None),
            Command::Grant { .. } => ("grant", None, None),
            Command::KeepAlive { .. } => ("keep-alive", None, None),
            Command::Revoke { .. } => ("revoke", None, None),
            Command::Lock { name, .. } => ("lock", Some(name), None),
            Command::Unlock { name, .. } => ("unlock", Some(name), None),
            Command::Txn(_) => ("txn", None, None),
            Command::Batch(_) => ("batch", None, None),
            Command::Tidy(_) => ("tidy", None, None),
        };
        let writes = if let Command::Txn(txn) = command {
            Some(txn.then.len().max(txn.otherwise.len()))
        } else if let Command::Batch(writes) = command {
            Some(writes.len())
        } else {
            None
        };
        let (value, content_type) = if let Command::Put { value, content_type, .. } = command {
            (Some(value), Some(content_type.clone()))
        } else {
            (None, None)
        };
        let (key, key_b64) = key.map_or((None, None), |key| shown_key(key));
        let (value, encoding) = value.filter(|_| values).map(|value| shown(value)).unzip();
        Self {
            op,
            key,
            key_b64,
            value,
            encoding,
            content_type,
            writes,
            if_match: conditions.and_then(|it| tags(it.if_match.as_ref())),
            if_none_match: conditions.and_then(|it| tags(it.if_none_match.as_ref())),
        }
    }
}

fn entry_out(entry: &Entry, values: bool) -> Out<'static> {
    let command = (entry.kind == EntryKind::Command).then(|| Request::decode(&entry.payload));
    let command = command.flatten().map(|request| CommandOut::new(&request.command, values));
    let members =
        (entry.kind == EntryKind::Config).then(|| wire::decode_membership(&entry.payload));
    let voters = members.and_then(Result::ok);
    let voters: Option<Vec<u64>> =
        voters.map(|members| members.voters.iter().map(|node| node.0).collect());
    let unknown = command.is_none() && voters.is_none() && !entry.payload.is_empty();
    Out::Entry {
        index: entry.id.index.0,
        term: entry.id.term.0,
        kind: kind_name(entry.kind),
        time_ms: entry.time_ms,
        command,
        voters,
        payload_b64: unknown.then(|| STANDARD.encode(&entry.payload)),
    }
}

fn key_out<'a>(key: &[u8], record: &Record<'a>, values: bool) -> Out<'a> {
    let (text, key_b64) = shown_key(key);
    let (value, encoding) = values.then(|| shown(record.value)).unzip();
    Out::Key {
        key: text,
        key_b64,
        value,
        encoding,
        content_type: record.content_type,
        size: record.value.len() as u64,
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
    }
}

impl Line<'_> {
    /// The line as one JSON object, without a newline; `values`: those of keys, too.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_json(&self, values: bool, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let line = match self {
            Self::Log(log) => Out::HardState(LogOut::new(log)),
            Self::Entry(entry) => entry_out(entry, values),
            Self::Lost(index, id) => Out::Damaged {
                index: Some(index.0),
                term: id.map(|id| id.term.0),
                file: None,
                offset: None,
                why: "the entry cannot be read",
            },
            Self::State(state) => Out::State(StateOut::new(state)),
            Self::Key(key, record) => key_out(key, record, values),
            Self::Wrong(finding) => Out::Damaged {
                index: None,
                term: None,
                file: Some(&finding.file),
                offset: Some(finding.offset),
                why: &finding.why,
            },
        };
        serde_json::to_writer(out, &line).map_err(std::io::Error::from)
    }
}

#[derive(Serialize)]
struct CheckpointOut {
    seq: u64,
    #[serde(flatten)]
    state: StateOut,
    keys: u64,
    pages: u64,
    tree_pages: u64,
    value_pages: u64,
    whole: bool,
}

impl CheckpointOut {
    fn new(about: &Checkpoint) -> Self {
        Self {
            seq: about.seq,
            state: StateOut::new(&about.state),
            keys: about.keys,
            pages: about.pages,
            tree_pages: about.tree_pages,
            value_pages: about.run_pages,
            whole: about.whole,
        }
    }
}

#[derive(Serialize)]
struct DbOut<'a> {
    file: &'a str,
    bytes: u64,
    node: Option<u64>,
    slots: Vec<&'static str>,
    newest: Option<CheckpointOut>,
    older: Option<CheckpointOut>,
    computed_digest: Option<String>,
}

impl<'a> DbOut<'a> {
    fn new(db: &'a DbChecked) -> Self {
        let slot = |slot: &SlotOfMeta| match slot {
            SlotOfMeta::Empty => "empty",
            SlotOfMeta::Damaged => "damaged",
            SlotOfMeta::Checkpoint { .. } => "checkpoint",
        };
        Self {
            file: &db.file,
            bytes: db.bytes,
            node: db.identity.map(|identity| identity.node.0),
            slots: db.slots.iter().map(slot).collect(),
            newest: db.newest.as_ref().map(CheckpointOut::new),
            older: db.older.as_ref().map(CheckpointOut::new),
            computed_digest: db.digest.map(|digest| format!("{digest:032x}")),
        }
    }
}

#[derive(Serialize)]
struct DamageOut<'a> {
    file: &'a str,
    offset: u64,
    what: &'a str,
    why: &'a str,
    first_index: Option<u64>,
    last_index: Option<u64>,
    term: Option<u64>,
    repairable: &'static str,
    meaning: String,
}

#[derive(Serialize)]
struct CheckOut<'a> {
    clean: bool,
    alone: bool,
    log: LogOut<'a>,
    database: Option<DbOut<'a>>,
    damage: Vec<DamageOut<'a>>,
    damage_omitted: u64,
    notes: &'a [String],
}

impl Checked {
    /// The report as one JSON document.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_json(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let damage = |finding: &'_ Finding| meaning(finding, self);
        let damage = self.findings.list.iter().map(|finding| {
            let (repairable, meaning) = damage(finding);
            DamageOut {
                file: &finding.file,
                offset: finding.offset,
                what: finding.what,
                why: &finding.why,
                first_index: finding.entries.map(|(first, _)| first.0),
                last_index: finding.entries.map(|(_, last)| last.0),
                term: finding.entry.map(|id| id.term.0),
                repairable: repairable.name(),
                meaning,
            }
        });
        let report = CheckOut {
            clean: self.findings.is_empty(),
            alone: self.alone,
            log: LogOut::new(&self.log),
            database: self.db.as_ref().map(DbOut::new),
            damage: damage.collect(),
            damage_omitted: self.findings.omitted,
            notes: &self.notes,
        };
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)
    }
}
