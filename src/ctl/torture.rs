//! `mmapctl torture`: is a live cluster linearizable? Clients read and write the same few keys
//! through every endpoint, write down what they were told, and [`crate::linear`] judges it.
//!
//! A signal ends what is under way, and only that: the clients, then the last reads, then the
//! removal of the keys, then the judge.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::task::JoinSet;

use super::endpoints::{below, chance, clean, each, span};
use super::show;
use super::signals::{Signals, apart};
use super::{Common, Failure, Output};
use crate::client::{Client, Deleted, Error, Outcome as Fate, Written};
use crate::linear::{
    Action, Expect, History, Operation, Outcome, Recorder, STEPS, Verdict, read_lines, tally,
    write_line,
};

/// How long one request may take: long ones only leave more outcomes unknown.
const PATIENCE: Duration = Duration::from_secs(2);

/// How to look for a contradiction.
#[derive(Args, Debug)]
pub(super) struct Torture {
    /// How long the clients go on, in seconds or as 500ms.
    #[arg(long, value_parser = span, default_value = "10")]
    duration: Duration,
    /// How many clients there are.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=128))]
    clients: u64,
    /// On how many keys they meet.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    keys: u64,
    /// Below which all keys are; they are deleted at the end.
    #[arg(long, default_value = "mmapctl-torture/")]
    prefix: String,
    /// Where the history is written, as lines of JSON; always, not only when it is wrong.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Judges the history in this file, and asks no cluster.
    #[arg(long, value_name = "FILE", conflicts_with = "history")]
    check: Option<PathBuf>,
    /// How many steps the judge may take for each key.
    #[arg(long, default_value_t = STEPS)]
    steps: u64,
}

impl Torture {
    /// Runs, judges and reports.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        let history = if let Some(file) = &self.check {
            let wrong = |why: String| Failure::usage(format!("{}: {why}", file.display()));
            let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
            read_lines(&text).map_err(wrong)?
        } else {
            self.record(common, &mut signals).await?
        };
        if let Some(file) = &self.history {
            write(&history, file)?;
        }
        let counts = tally(&history);
        let verdict = judge(history, self.steps, &mut signals).await?;
        report(common, &verdict, &counts)
    }

    async fn record(&self, common: &Common, signals: &mut Signals) -> Result<History, Failure> {
        if self.prefix.is_empty() {
            return Err(Failure::usage("an empty --prefix is everybody's"));
        }
        let nodes = each(common, PATIENCE)?;
        let prefix = format!("{}{:016x}/", self.prefix, chance());
        let recorder = Arc::new(Recorder::default());
        let template = format!("{{msg}} {{elapsed}} of {:?} {{pos}} operations", self.duration);
        let bar = show::progress(None, &template, "torture".into());
        let worker = |id: u64, nodes: Vec<Client>| Worker {
            recorder: Arc::clone(&recorder),
            id,
            at: usize::try_from(id).unwrap_or_default() % nodes.len(),
            nodes,
            chance: chance() | 1,
            prefix: prefix.clone(),
            bar: bar.clone(),
            known: vec![None; usize::try_from(self.keys).unwrap_or(1)],
        };
        let end = Instant::now() + self.duration;
        let mut tasks = JoinSet::new();
        for id in 0..self.clients {
            tasks.spawn(worker(id, nodes.clone()).run(end));
        }
        let interrupted = tokio::select! {
            ended = async { while let Some(one) = tasks.join_next().await { one?; } Ok(()) } => {
                ended.map_err(|error: tokio::task::JoinError| Failure::other(error.to_string()))?;
                false
            }
            _ = signals.next() => true,
        };
        // What was under way then has an unknown outcome, which is what the history says.
        tasks.shutdown().await;
        if !interrupted {
            bar.set_message("last reads");
            let readers = (self.clients..).zip(&nodes);
            let readers = readers.map(|(id, node)| worker(id, vec![node.clone()])).collect();
            tokio::select! {
                () = last_reads(readers) => {}
                _ = signals.next() => {}
            }
        }
        bar.finish_and_clear();
        let history = recorder.history();
        if let Err(failure) = clean(common, &prefix, signals).await {
            // The verdict is what was asked for.
            failure.report();
        }
        Ok(history)
    }
}

/// Every key, once more at every node. A node that does not answer is left: each of its answers
/// would be waited for.
async fn last_reads(readers: Vec<Worker>) {
    for mut reader in readers {
        for key in 0..reader.known.len() {
            if !reader.read(key).await {
                break;
            }
        }
    }
}

async fn judge(history: History, steps: u64, signals: &mut Signals) -> Result<Verdict, Failure> {
    let bar = show::progress(None, "{spinner} {msg} {elapsed}", "judging".into());
    bar.enable_steady_tick(Duration::from_millis(100));
    let verdict = tokio::select! {
        verdict = apart(move || history.check_within(steps)) => verdict,
        _ = signals.next() => Err(Failure::other("interrupted before there was a verdict")),
    };
    bar.finish_and_clear();
    verdict
}

/// What a history of only these outcomes cannot show.
fn shows_nothing(counts: &Counts) -> Option<&'static str> {
    if !counts.contains_key("writes") {
        Some("no write succeeded, so nothing was shown")
    } else if !counts.contains_key("reads") {
        Some("no read succeeded, so nothing was shown")
    } else {
        None
    }
}

/// How many there were of each kind of outcome.
type Counts = BTreeMap<&'static str, usize>;

fn report(common: &Common, verdict: &Verdict, counts: &Counts) -> Result<(), Failure> {
    let nothing = shows_nothing(counts);
    let word = if !verdict.violations.is_empty() {
        "violated"
    } else if !verdict.undecided.is_empty() || nothing.is_some() {
        "undecided"
    } else {
        "linearizable"
    };
    if common.output == Output::Json {
        let lines = |ops: &[Operation]| -> Vec<String> {
            ops.iter().map(|op| op.to_string().trim().to_owned()).collect()
        };
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let violations = verdict.violations.iter().map(
            |it| json!({"key": text(&it.key), "why": it.why, "operations": lines(&it.window)}),
        );
        let undecided =
            verdict.undecided.iter().map(|(key, why)| json!({"key": text(key), "why": why}));
        show::json(&json!({
            "verdict": word, "operations": verdict.ops, "keys": verdict.keys, "outcomes": counts,
            "violations": violations.collect::<Vec<_>>(),
            "undecided": undecided.collect::<Vec<_>>(), "why": nothing,
        }))?;
    } else {
        let mut text = verdict.to_string();
        for (name, count) in counts {
            let _ = writeln!(text, "  {name}: {count}");
        }
        let _ = writeln!(text, "verdict: {word}");
        show::bytes(text.as_bytes())?;
    }
    match nothing {
        Some(why) if word == "undecided" => {
            Err(Failure::other(format!("the history is undecided: {why}")))
        }
        _ if word == "linearizable" => Ok(()),
        _ => Err(Failure::other(format!("the history is {word}"))),
    }
}

fn write(history: &History, file: &Path) -> Result<(), Failure> {
    let mut text = String::new();
    for (key, ops) in history.keys() {
        for op in ops {
            writeln!(text, "{}", write_line(key, op)).expect("a string grows");
        }
    }
    std::fs::write(file, text)
        .map_err(|error| Failure::other(format!("{}: {error}", file.display())))
}

/// One client.
struct Worker {
    recorder: Arc<Recorder>,
    id: u64,
    nodes: Vec<Client>,
    at: usize,
    chance: u64,
    prefix: String,
    /// What it last saw under each key, and at which revision, for conditions.
    known: Vec<Option<(Vec<u8>, u64)>>,
    bar: ProgressBar,
}

impl Worker {
    async fn run(mut self, end: Instant) {
        let mut count = 0_u64;
        while Instant::now() < end {
            count += 1;
            let key = below(&mut self.chance, u64::try_from(self.known.len()).unwrap_or(1));
            let key = usize::try_from(key).unwrap_or_default();
            let value = format!("{}-{count}", self.id).into_bytes();
            let fine = match below(&mut self.chance, 10) {
                0 => self.delete(key).await,
                1 => self.put(key, value, Some(Expect::Absent), None).await,
                2 => self.put(key, value, Some(Expect::Present), None).await,
                3 | 4 => match self.known[key].clone() {
                    Some((seen, revision)) => {
                        self.put(key, value, Some(Expect::Value(seen)), Some(revision)).await
                    }
                    None => self.read(key).await,
                },
                5 | 6 => self.put(key, value, None, None).await,
                _ => self.read(key).await,
            };
            self.bar.inc(1);
            if !fine {
                self.at = (self.at + 1) % self.nodes.len();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn name(&self, key: usize) -> String {
        format!("{}{key}", self.prefix)
    }

    /// All three answer whether there was a certain answer.
    async fn read(&mut self, key: usize) -> bool {
        let name = self.name(key);
        let op = self.recorder.begin(self.id, &name, Action::Get);
        let (outcome, fine) = match self.nodes[self.at].get(&name).await {
            Ok(Some(entry)) => {
                self.known[key] = Some((entry.value.to_vec(), entry.mod_revision));
                let (value, revision) = (Some(entry.value.to_vec()), Some(entry.mod_revision));
                (Outcome::Read { value, revision }, true)
            }
            Ok(None) => (Outcome::read(None), true),
            Err(_) => (Outcome::Failed, false),
        };
        self.recorder.end(op, outcome);
        fine
    }

    async fn put(
        &mut self,
        key: usize,
        value: Vec<u8>,
        expect: Option<Expect>,
        revision: Option<u64>,
    ) -> bool {
        let name = self.name(key);
        let mut put = self.nodes[self.at].put(&name, value.clone());
        put = match (&expect, revision) {
            (None, _) | (Some(Expect::Value(_)), None) => put,
            (Some(Expect::Absent), _) => put.only_if_absent(),
            (Some(Expect::Present), _) => put.if_exists(),
            (Some(Expect::Value(_)), Some(revision)) => put.if_revision(revision),
        };
        let action = Action::Put { value: value.clone(), expect };
        let op = self.recorder.begin(self.id, &name, action);
        let (outcome, fine) = match put.await {
            Ok(Written { revision, created, .. }) => {
                self.known[key] = Some((value, revision));
                (Outcome::Done { revision: Some(revision), existed: Some(!created) }, true)
            }
            Err(error) => failed(&error),
        };
        self.recorder.end(op, outcome);
        fine
    }

    async fn delete(&mut self, key: usize) -> bool {
        let name = self.name(key);
        let op = self.recorder.begin(self.id, &name, Action::delete());
        let (outcome, fine) = match self.nodes[self.at].delete(&name).await {
            Ok(Deleted { deleted, revision, .. }) => {
                (Outcome::Done { revision: Some(revision), existed: Some(deleted == 1) }, true)
            }
            Err(error) => failed(&error),
        };
        self.recorder.end(op, outcome);
        fine
    }
}

/// What is known of a write that failed.
fn failed(error: &Error) -> (Outcome, bool) {
    if error.is("precondition-failed") {
        return (Outcome::Mismatch, true);
    }
    let outcome = match error.outcome() {
        Fate::NotApplied => Outcome::Failed,
        Fate::Unknown => Outcome::Unknown,
        Fate::Applied => Outcome::done(),
    };
    (outcome, false)
}
