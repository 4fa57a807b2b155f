//! `mmapctl bench`: how fast a live cluster is, phase by phase, with everything that failed.
//!
//! Keys are written below the prefix in a folder of this run alone, which is removed at the end,
//! after Ctrl-C too. Every request is sent once: a failure is counted, never tried again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::endpoints::{below, chance, clean, each, kind, span};
use super::show;
use super::signals::Signals;
use super::{Common, Failure, Output};
use crate::client::{Client, Consistency, Error};

/// What a phase does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mix {
    /// Writes.
    Put,
    /// Linearizable reads.
    Get,
    /// Reads of the replica that is asked, as it is.
    LocalGet,
    /// One write, three linearizable reads.
    Mixed,
}

impl Mix {
    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::LocalGet => "local-get",
            Self::Mixed => "mixed",
        }
    }
}

/// What to measure.
#[derive(Args, Debug)]
pub(super) struct Bench {
    /// How long each phase lasts, in seconds or as 500ms.
    #[arg(long, value_parser = span, default_value = "5", conflicts_with = "operations")]
    duration: Duration,
    /// How many operations each phase has, instead of how long it lasts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    operations: Option<u64>,
    /// How many connections ask at once; a list.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64",
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: Vec<u16>,
    /// Bytes of each value.
    #[arg(long, default_value_t = 128)]
    value_size: usize,
    /// How many keys there are.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    keys: u64,
    /// What is done; a list.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get")]
    mix: Vec<Mix>,
    /// Below which all keys are; they are deleted at the end.
    #[arg(long, default_value = "mmapctl-bench/")]
    prefix: String,
    /// Draws how the latencies are distributed.
    #[arg(long)]
    histogram: bool,
}

/// What one phase, or one connection of it, saw. Times are in microseconds.
struct Seen {
    times: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

impl Seen {
    fn new() -> Self {
        // An hour: what takes longer counts as that.
        let times = Histogram::new_with_bounds(1, HOUR_US, 3).expect("three digits are allowed");
        Self { times, errors: BTreeMap::new() }
    }

    fn merge(&mut self, other: &Self) {
        self.times.add(&other.times).expect("it grows by itself");
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
    }
}

/// One row of the table.
struct Row {
    mix: Mix,
    connections: u16,
    seen: Seen,
    elapsed: Duration,
}

impl Row {
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    fn rate(&self) -> f64 {
        self.seen.times.len() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn failed(&self) -> u64 {
        self.seen.errors.values().sum()
    }

    fn json(&self, first: f64) -> Value {
        let times = &self.seen.times;
        let at = |q: f64| times.value_at_quantile(q);
        let buckets: Vec<Value> =
            buckets(times).iter().map(|(to, count)| json!({"to_us": to, "count": count})).collect();
        json!({
            "mix": self.mix.name(), "connections": self.connections,
            "operations": times.len(), "seconds": self.elapsed.as_secs_f64(),
            "per_second": self.rate(), "ratio": ratio(self.rate(), first),
            "p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99), "p999_us": at(0.999),
            "max_us": times.max(), "errors": self.seen.errors, "histogram": buckets,
        })
    }
}

fn ratio(rate: f64, first: f64) -> Option<f64> {
    (first > 0.0).then(|| rate / first)
}

/// The longest time that is told apart.
const HOUR_US: u64 = 3_600_000_000;

/// Up to which time how many, each bound twice the one before.
fn buckets(times: &Histogram<u64>) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut from = 0;
    let mut to = 64;
    while from <= times.max() && !times.is_empty() {
        let count = times.iter_recorded().map(|it| (it.value_iterated_to(), it.count_at_value()));
        let within = count.filter(|(value, _)| (from..to).contains(value));
        found.push((to, within.map(|(_, count)| count).sum()));
        (from, to) = (to, to.saturating_mul(2));
    }
    let skip = found.iter().take_while(|(_, count)| *count == 0).count();
    found.split_off(skip)
}

/// What the connections of one phase share.
struct Phase {
    mix: Mix,
    prefix: String,
    keys: u64,
    value: Bytes,
    end: Option<Instant>,
    left: AtomicU64,
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
}

impl Phase {
    /// May one more operation begin?
    fn goes_on(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) {
            return false;
        }
        if let Some(end) = self.end {
            return Instant::now() < end;
        }
        let less = |left: u64| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    async fn connection(self: Arc<Self>, client: Client) -> Seen {
        let (mut seen, mut state) = (Seen::new(), chance() | 1);
        while self.goes_on() {
            let key = format!("{}{}", self.prefix, below(&mut state, self.keys));
            let writes = match self.mix {
                Mix::Put => true,
                Mix::Get | Mix::LocalGet => false,
                Mix::Mixed => below(&mut state, 4) == 0,
            };
            let start = Instant::now();
            let done = if writes {
                client.put(&key, self.value.clone()).await.map(|_| true)
            } else {
                let get = client.get(&key);
                let local = self.mix == Mix::LocalGet;
                let get = if local { get.consistency(Consistency::Stale) } else { get };
                get.raw().await.map(|found| found.is_some())
            };
            let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.bar.inc(1);
            let failed = match done {
                Ok(true) => {
                    seen.times.saturating_record(took.max(1));
                    continue;
                }
                Ok(false) => "missing".to_owned(),
                Err(error) => kind(&error),
            };
            *seen.errors.entry(failed).or_default() += 1;
            // A node that refuses at once must not make this a loop that only counts refusals.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        seen
    }
}

impl Bench {
    /// Measures, prints, and cleans up.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        if self.prefix.is_empty() {
            return Err(Failure::usage("an empty --prefix is everybody's"));
        }
        let prefix = format!("{}{:016x}/", self.prefix, chance());
        let mut signals = Signals::new()?;
        let measured = self.until_stopped(common, &prefix, &mut signals).await;
        // Whatever became of the phases, the keys go.
        let cleaned = clean(common, &prefix, &mut signals).await;
        let rows = measured?;
        self.print(common, &rows)?;
        cleaned?;
        if rows.iter().all(|row| row.seen.times.is_empty()) {
            return Err(Failure::other("no operation succeeded"));
        }
        Ok(())
    }

    async fn until_stopped(
        &self,
        common: &Common,
        prefix: &str,
        signals: &mut Signals,
    ) -> Result<Vec<Row>, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut phases = pin!(self.phases(common, prefix, &stop));
        tokio::select! {
            measured = &mut phases => return measured,
            _ = signals.next() => stop.store(true, Ordering::Relaxed),
        }
        // What is under way is waited for, unless somebody insists.
        tokio::select! {
            measured = phases => measured,
            _ = signals.next() => Err(Failure::other("interrupted")),
        }
    }

    async fn phases(
        &self,
        common: &Common,
        prefix: &str,
        stop: &Arc<AtomicBool>,
    ) -> Result<Vec<Row>, Failure> {
        let value = Bytes::from(vec![b'x'; self.value_size]);
        if self.mix.iter().any(|mix| *mix != Mix::Put) {
            fill(&common.client()?, prefix, self.keys, &value, stop).await?;
        }
        let mut rows = Vec::new();
        for &mix in &self.mix {
            for &connections in &self.connections {
                if !stop.load(Ordering::Relaxed) {
                    rows.push(self.phase(common, mix, connections, prefix, &value, stop).await?);
                }
            }
        }
        Ok(rows)
    }

    async fn phase(
        &self,
        common: &Common,
        mix: Mix,
        connections: u16,
        prefix: &str,
        value: &Bytes,
        stop: &Arc<AtomicBool>,
    ) -> Result<Row, Failure> {
        let mut clients = Vec::new();
        while clients.len() < usize::from(connections) {
            // A client of its own for each: so many connections, over all nodes in turn.
            clients.extend(each(common, Duration::from_secs(5))?);
        }
        clients.truncate(usize::from(connections));
        let bar = self.bar(mix, connections);
        let start = Instant::now();
        let phase = Arc::new(Phase {
            mix,
            prefix: prefix.to_owned(),
            keys: self.keys,
            value: value.clone(),
            end: self.operations.is_none().then(|| start + self.duration),
            left: AtomicU64::new(self.operations.unwrap_or_default()),
            stop: Arc::clone(stop),
            bar: bar.clone(),
        });
        let mut tasks = JoinSet::new();
        for client in clients {
            tasks.spawn(Arc::clone(&phase).connection(client));
        }
        let mut seen = Seen::new();
        while let Some(one) = tasks.join_next().await {
            seen.merge(&one.map_err(|error| Failure::other(error.to_string()))?);
        }
        bar.finish_and_clear();
        Ok(Row { mix, connections, seen, elapsed: start.elapsed() })
    }

    fn bar(&self, mix: Mix, connections: u16) -> ProgressBar {
        let what = format!("{} x{connections}", mix.name());
        show::progress(self.operations, "{msg} {elapsed} {pos} {per_sec}", what)
    }

    fn print(&self, common: &Common, rows: &[Row]) -> Result<(), Failure> {
        let first = rows.first().map_or(0.0, Row::rate);
        if common.output == Output::Json {
            let phases: Vec<Value> = rows.iter().map(|row| row.json(first)).collect();
            return show::json(&json!({"phases": phases}));
        }
        let mut text = format!(
            "{:<10} {:>5} {:>10} {:>10} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}  ERRORS\n",
            "MIX", "CONN", "OPS", "PER SEC", "RATIO", "P50", "P90", "P99", "P99.9", "MAX"
        );
        for row in rows {
            let at = |q: f64| shown(row.seen.times.value_at_quantile(q));
            let ratio = ratio(row.rate(), first).map_or("-".into(), |it| format!("{it:.2}"));
            let kinds: Vec<String> =
                row.seen.errors.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            let kinds =
                if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
            let _ = writeln!(
                text,
                "{:<10} {:>5} {:>10} {:>10.0} {ratio:>6} {:>9} {:>9} {:>9} {:>9} {:>9}  {}{kinds}",
                row.mix.name(),
                row.connections,
                row.seen.times.len(),
                row.rate(),
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                shown(row.seen.times.max()),
                row.failed(),
            );
        }
        if self.histogram {
            rows.iter().for_each(|row| draw(row, &mut text));
        }
        show::bytes(text.as_bytes())
    }
}

/// Writes every key once, so that reads find them.
async fn fill(
    client: &Client,
    prefix: &str,
    keys: u64,
    value: &Bytes,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let at_once = u64::try_from((256 << 10) / (value.len() + 64)).unwrap_or(1).clamp(1, 256);
    let template = "{msg} {wide_bar} {percent}% {eta}";
    let bar = show::progress(Some(keys), template, "writing what is read later".into());
    let mut next = 0;
    while next < keys && !stop.load(Ordering::Relaxed) {
        let mut batch = client.batch();
        let end = keys.min(next + at_once);
        for key in next..end {
            batch = batch.put(format!("{prefix}{key}"), value);
        }
        let result = batch.send().await?;
        if !result.is_done() {
            let broken = result.broken.as_ref().map(Error::to_string).unwrap_or_default();
            return Err(Failure::other(format!("the keys could not be written: {broken}")));
        }
        bar.set_position(end);
        next = end;
    }
    bar.finish_and_clear();
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "a time for people")]
fn shown(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros}us"),
        1_000..1_000_000 => format!("{:.2}ms", micros as f64 / 1e3),
        _ => format!("{:.2}s", micros as f64 / 1e6),
    }
}

fn draw(row: &Row, text: &mut String) {
    let _ = writeln!(text, "\n{} with {} connections", row.mix.name(), row.connections);
    let buckets = buckets(&row.seen.times);
    let most = buckets.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    for (to, count) in buckets {
        let length = usize::try_from((count * 50).div_ceil(most)).unwrap_or(50);
        let _ = writeln!(text, "  < {:>9} {count:>9} {}", shown(to), "#".repeat(length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_one_bucket() {
        let mut seen = Seen::new();
        for micros in [1, 63, 64, 65, 5_000, 70_000_000] {
            seen.times.saturating_record(micros);
        }
        let found = buckets(&seen.times);
        assert_eq!(found[0], (64, 2));
        assert_eq!(found[1], (128, 2));
        assert_eq!(found.iter().map(|(_, count)| count).sum::<u64>(), 6);
        assert!(seen.times.max() >= 70_000_000, "long times are not told apart");
        assert!(buckets(&Seen::new().times).is_empty());
    }
}
