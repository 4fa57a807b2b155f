//! Judges whether what clients saw could have come from one register per key (Herlihy and Wing).
//!
//! Keys are independent, so each is judged alone. One pass over its calls and returns, in order of
//! time, keeps every *configuration* the store may be in: the value, and which of the operations
//! now open have already taken effect. When an operation returns, a configuration in which it has
//! not taken effect yet must let it, after any of the other open ones (Lowe's just-in-time
//! linearization). No configuration left: the history is not linearizable.
//!
//! What keeps that small:
//!
//! * only open operations are in a configuration, so its size is the number of clients;
//! * an open read takes effect as soon as it may: it changes nothing, so waiting cannot help;
//! * writes that carry a revision take effect in the order of their revisions;
//! * a write of unknown outcome whose value somebody read took effect before that read returned;
//! * the others of unknown outcome are interchangeable, so they are counted, not named, and of two
//!   configurations that differ only there the one that has used fewer is enough.
//!
//! Work is bounded by a number of steps, not by a clock, so a verdict repeats. A key that runs out
//! of steps is *undecided*, and [`Verdict::is_ok`] is false for it.
//!
//! Values should be unique within a key: only then does a read tell which write it saw.
//! `If-Match: "<revision>"` is said as [`Expect::Value`], the value that had that revision.
//!
//! Left out: operations on several keys at once.
#![allow(dead_code, reason = "each test binary uses its own part of the checker")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Bytes of a key or a value.
pub(crate) type Bytes = Vec<u8>;

/// What a write asks of the state before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match: *`.
    Present,
    /// `If-Match` with the `ETag` that this value had.
    Value(Bytes),
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Read.
    Get,
    /// Write, on a condition or without one.
    Put { value: Bytes, expect: Option<Expect> },
    /// Remove, on a condition or without one.
    Delete { expect: Option<Expect> },
}

impl Action {
    /// An unconditional write.
    pub(crate) fn put(value: impl Into<Bytes>) -> Self {
        Self::Put { value: value.into(), expect: None }
    }

    /// A write on a condition.
    pub(crate) fn put_if(value: impl Into<Bytes>, expect: Expect) -> Self {
        Self::Put { value: value.into(), expect: Some(expect) }
    }

    /// An unconditional removal.
    pub(crate) fn delete() -> Self {
        Self::Delete { expect: None }
    }
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A read: the value, or that there is none, and the revision that wrote the value.
    Read { value: Option<Bytes>, revision: Option<u64> },
    /// A write took effect. `existed`: did the key exist before it (200 or 201, `deleted` 1 or 0)?
    Done { revision: Option<u64>, existed: Option<bool> },
    /// The condition did not hold (412).
    Mismatch,
    /// Certainly did not happen.
    Failed,
    /// May have happened, may happen at any later time, or never. Also: never answered.
    Unknown,
}

impl Outcome {
    /// A read without a revision.
    pub(crate) fn read(value: Option<&[u8]>) -> Self {
        Self::Read { value: value.map(<[u8]>::to_vec), revision: None }
    }

    /// A write of which only the success is known.
    pub(crate) fn done() -> Self {
        Self::Done { revision: None, existed: None }
    }
}

/// One call with its answer.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Who asked; for the report only.
    pub(crate) client: u64,
    /// What was asked.
    pub(crate) action: Action,
    /// What came back.
    pub(crate) outcome: Outcome,
    /// Not later than the request was sent.
    pub(crate) called: u64,
    /// Not earlier than the answer was received; `u64::MAX` while there is none.
    pub(crate) returned: u64,
}

/// Names an operation that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpId {
    key: usize,
    op: usize,
}

/// Everything the clients of one run asked and were told.
///
/// Times may be virtual, or counted by a [`Recorder`]; at equal times calls come before returns,
/// so that nothing is held against the store that the clock cannot tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    index: HashMap<Bytes, usize>,
    keys: Vec<(Bytes, Vec<Operation>)>,
}

impl History {
    /// Notes that `client` is about to ask.
    pub(crate) fn begin(
        &mut self,
        client: u64,
        key: impl AsRef<[u8]>,
        action: Action,
        now: u64,
    ) -> OpId {
        let name = key.as_ref();
        let key = self.index.get(name).copied().unwrap_or_else(|| {
            self.index.insert(name.to_vec(), self.keys.len());
            self.keys.push((name.to_vec(), Vec::new()));
            self.keys.len() - 1
        });
        let ops = &mut self.keys[key].1;
        let outcome = Outcome::Unknown;
        ops.push(Operation { client, action, outcome, called: now, returned: u64::MAX });
        OpId { key, op: ops.len() - 1 }
    }

    /// Notes what it was told. An operation that never ends has an unknown outcome.
    pub(crate) fn end(&mut self, id: OpId, outcome: Outcome, now: u64) {
        let op = &mut self.keys[id.key].1[id.op];
        assert!(op.called <= now, "an answer does not precede its request");
        assert!(op.returned == u64::MAX, "an operation ends once");
        op.returned = now;
        op.outcome = outcome;
    }

    /// A whole operation at once.
    pub(crate) fn push(
        &mut self,
        (called, returned): (u64, u64),
        key: impl AsRef<[u8]>,
        action: Action,
        outcome: Outcome,
    ) {
        let id = self.begin(0, key, action, called);
        self.end(id, outcome, returned);
    }

    /// Operations so far.
    pub(crate) fn len(&self) -> usize {
        self.keys.iter().map(|(_, ops)| ops.len()).sum()
    }

    /// Operations whose outcome no client knows.
    pub(crate) fn unknown(&self) -> usize {
        let all = self.keys.iter().flat_map(|(_, ops)| ops);
        all.filter(|op| op.outcome == Outcome::Unknown).count()
    }

    /// Every key with its operations, in the order of their calls as recorded.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&[u8], &[Operation])> {
        self.keys.iter().map(|(key, ops)| (key.as_slice(), ops.as_slice()))
    }

    /// Judges the history with [`STEPS`] for each key.
    pub(crate) fn check(&self) -> Verdict {
        self.check_within(STEPS)
    }

    /// Judges the history with at most `steps` for each key.
    pub(crate) fn check_within(&self, steps: u64) -> Verdict {
        let mut verdict = Verdict { keys: self.keys.len(), ops: self.len(), ..Verdict::default() };
        for (key, ops) in &self.keys {
            match judge(ops, steps) {
                Judgement::Ok => {}
                Judgement::Undecided(why) => verdict.undecided.push((key.clone(), why)),
                Judgement::Violation { at, why } => {
                    let window = minimize(ops, at, steps);
                    verdict.violations.push(Violation { key: key.clone(), why, window });
                }
            }
        }
        verdict
    }
}

/// Steps one key may take; about a second of an unoptimised build.
pub(crate) const STEPS: u64 = 2_000_000;

/// Records from several threads, with a clock that only counts.
///
/// Counting under one lock orders a return before every call that follows it in real time, which
/// is all that linearizability asks of a clock.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    inner: Mutex<(u64, History)>,
}

impl Recorder {
    /// Call before the request is sent.
    pub(crate) fn begin(&self, client: u64, key: impl AsRef<[u8]>, action: Action) -> OpId {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 += 1;
        let now = inner.0;
        inner.1.begin(client, key, action, now)
    }

    /// Call after the answer was received.
    pub(crate) fn end(&self, id: OpId, outcome: Outcome) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 += 1;
        let now = inner.0;
        inner.1.end(id, outcome, now);
    }

    /// What was recorded so far.
    pub(crate) fn history(&self) -> History {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

/// What the checker found.
#[derive(Debug, Default)]
#[must_use = "a verdict that nobody reads proves nothing"]
pub(crate) struct Verdict {
    /// Keys judged.
    pub(crate) keys: usize,
    /// Operations judged.
    pub(crate) ops: usize,
    /// Keys that no register can explain.
    pub(crate) violations: Vec<Violation>,
    /// Keys that ran out of steps, and where.
    pub(crate) undecided: Vec<(Bytes, String)>,
}

impl Verdict {
    /// Every key is decided, and linearizable.
    pub(crate) fn is_ok(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }

    /// Fails the test with the report unless every key is decided and linearizable.
    pub(crate) fn expect_linearizable(&self) {
        assert!(self.is_ok(), "{self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bad, open) = (self.violations.len(), self.undecided.len());
        writeln!(
            f,
            "{} operations on {} keys: {bad} violations, {open} undecided",
            self.ops, self.keys
        )?;
        for violation in &self.violations {
            write!(f, "{violation}")?;
        }
        for (key, why) in &self.undecided {
            writeln!(f, "undecided key {}: {why}", shown(key))?;
        }
        Ok(())
    }
}

/// A key that no register can explain.
#[derive(Debug)]
pub(crate) struct Violation {
    /// The key.
    pub(crate) key: Bytes,
    /// What is wrong in one sentence.
    pub(crate) why: String,
    /// Operations that already contradict each other without all the rest.
    pub(crate) window: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key {} is not linearizable: {}", shown(&self.key), self.why)?;
        writeln!(f, "  these operations contradict each other (called..returned):")?;
        for op in &self.window {
            writeln!(f, "  {op}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8}..", self.called)?;
        if self.returned == u64::MAX {
            write!(f, "{:<8}", "")?;
        } else {
            write!(f, "{:<8}", self.returned)?;
        }
        write!(f, " client {:<3} ", self.client)?;
        let expect = match &self.action {
            Action::Get => {
                write!(f, "get")?;
                &None
            }
            Action::Put { value, expect } => {
                write!(f, "put {}", shown(value))?;
                expect
            }
            Action::Delete { expect } => {
                write!(f, "delete")?;
                expect
            }
        };
        match expect {
            None => {}
            Some(Expect::Absent) => write!(f, " if absent")?,
            Some(Expect::Present) => write!(f, " if present")?,
            Some(Expect::Value(value)) => write!(f, " if {}", shown(value))?,
        }
        match &self.outcome {
            Outcome::Read { value: Some(value), revision } => {
                write!(f, " -> {}{}", shown(value), at(*revision))
            }
            Outcome::Read { value: None, .. } => write!(f, " -> nothing"),
            Outcome::Done { revision, existed } => {
                write!(f, " -> done{}", at(*revision))?;
                existed
                    .map_or(Ok(()), |yes| write!(f, ", {}", if yes { "replaced" } else { "new" }))
            }
            Outcome::Mismatch => write!(f, " -> condition failed"),
            Outcome::Failed => write!(f, " -> failed"),
            Outcome::Unknown => write!(f, " -> unknown"),
        }
    }
}

fn at(revision: Option<u64>) -> String {
    revision.map_or(String::new(), |revision| format!(" at revision {revision}"))
}

/// Text for people: long values are cut.
fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    if text.len() <= 60 { format!("\"{text}\"") } else { format!("\"{}...\"", &text[..60]) }
}

#[derive(Debug)]
enum Judgement {
    Ok,
    Undecided(String),
    Violation { at: u64, why: String },
}

/// A value by number. [`ABSENT`] and [`UNSEEN`] are the first two.
type Value = u32;
/// There is no value.
const ABSENT: Value = 0;
/// Some value that nobody ever read or named in a condition.
const UNSEEN: Value = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Guard {
    None,
    Absent,
    Present,
    Is(Value),
}

impl Guard {
    fn holds(self, state: Value) -> bool {
        match self {
            Self::None => true,
            Self::Absent => state == ABSENT,
            Self::Present => state != ABSENT,
            Self::Is(value) => state == value,
        }
    }
}

/// What an operation may do to a state.
#[derive(Clone, Copy, Debug)]
enum Effect {
    /// Changes nothing; possible where the state is this value.
    Sees(Value),
    /// Changes nothing; possible where the guard does not hold.
    Refused(Guard),
    /// Leaves this value.
    Writes { value: Value, guard: Guard, existed: Option<bool>, revision: Option<u64> },
}

impl Effect {
    fn is_write(self) -> bool {
        matches!(self, Self::Writes { .. })
    }
}

/// A write of unknown outcome; those of one class do the same and are counted.
type Class = (Value, Guard);

/// What the two passes over the operations of a key make of them.
#[derive(Debug, Default)]
struct Model {
    /// Effect of each operation that certainly happened.
    effects: Vec<Option<Effect>>,
    /// Each class of those that may have.
    classes: HashMap<Class, usize>,
    /// (time, call before return, operation or class).
    events: Vec<(u64, Event)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// One more of a class may happen from now on.
    Offer(usize),
    /// An operation opens.
    Call(usize),
    /// An operation closes.
    Return(usize),
}

/// Who wrote a value, and who saw it.
#[derive(Clone, Debug, Default)]
struct Trace {
    writers: usize,
    first_seen: Option<u64>,
    named: bool,
    revision: Option<u64>,
}

/// First pass: how often each value was written, seen, and at which revision.
fn trace(ops: &[Operation]) -> Result<HashMap<&[u8], Trace>, Judgement> {
    let mut traces: HashMap<&[u8], Trace> = HashMap::new();
    for op in ops {
        let (written, expect) = match &op.action {
            Action::Get => (None, &None),
            Action::Put { value, expect } => (Some(value), expect),
            Action::Delete { expect } => (None, expect),
        };
        if let (Some(value), false) = (written, op.outcome == Outcome::Failed) {
            traces.entry(value).or_default().writers += 1;
        }
        let done = matches!(op.outcome, Outcome::Done { .. });
        if let Some(Expect::Value(value)) = expect {
            let trace = traces.entry(value).or_default();
            trace.named = true;
            if done {
                see(trace, op.returned);
            }
        }
        if let Outcome::Read { value: Some(value), .. } = &op.outcome {
            see(traces.entry(value).or_default(), op.returned);
        }
        let (value, revision) = match (&op.outcome, written) {
            (Outcome::Read { value: Some(value), revision: Some(revision) }, _)
            | (Outcome::Done { revision: Some(revision), .. }, Some(value)) => (value, *revision),
            _ => continue,
        };
        let trace = traces.entry(value).or_default();
        match trace.revision {
            // A value that several operations wrote may have several revisions.
            Some(before) if before != revision && trace.writers <= 1 => {
                let text = shown(value);
                let why = format!("{text} has revision {before} here and {revision} there");
                return Err(Judgement::Violation { at: op.returned, why });
            }
            _ => trace.revision = Some(revision),
        }
    }
    Ok(traces)
}

fn see(trace: &mut Trace, at: u64) {
    trace.first_seen = Some(trace.first_seen.map_or(at, |first| first.min(at)));
}

/// Second pass: effects and events.
fn model(ops: &[Operation]) -> Result<Model, Judgement> {
    let traces = trace(ops)?;
    let mut numbers: HashMap<&[u8], Value> = HashMap::new();
    let mut number = |value: &'_ [u8]| -> Value {
        let Some((&value, trace)) = traces.get_key_value(value) else { return UNSEEN };
        if trace.first_seen.is_none() && !trace.named {
            return UNSEEN;
        }
        let next = Value::try_from(numbers.len() + 2).expect("fewer values than operations");
        *numbers.entry(value).or_insert(next)
    };
    let mut model = Model::default();
    for (at, op) in ops.iter().enumerate() {
        let (target, expect) = match &op.action {
            Action::Get => (None, &None),
            Action::Put { value, expect } => (Some(number(value)), expect),
            Action::Delete { expect } => (Some(ABSENT), expect),
        };
        let guard = match expect {
            None => Guard::None,
            Some(Expect::Absent) => Guard::Absent,
            Some(Expect::Present) => Guard::Present,
            Some(Expect::Value(value)) => Guard::Is(number(value)),
        };
        let (mut returned, mut effect) = (op.returned, None);
        match (&op.outcome, target) {
            (Outcome::Failed, _) | (Outcome::Unknown, None) => {}
            (Outcome::Read { value, .. }, None) => {
                effect = Some(Effect::Sees(value.as_deref().map_or(ABSENT, &mut number)));
            }
            (Outcome::Mismatch, Some(_)) => effect = Some(Effect::Refused(guard)),
            // Removing nothing is a read of nothing, wherever its entry is in the log.
            (Outcome::Done { existed: Some(false), .. }, Some(ABSENT)) => {
                effect = Some(Effect::Sees(ABSENT));
            }
            (Outcome::Done { revision, existed }, Some(value)) => {
                let (revision, existed) = (*revision, *existed);
                effect = Some(Effect::Writes { value, guard, existed, revision });
            }
            (Outcome::Unknown, Some(value)) => match seen(op, &traces) {
                Some((by, revision)) => {
                    returned = by.max(op.called);
                    effect = Some(Effect::Writes { value, guard, existed: None, revision });
                }
                None => {
                    let next = model.classes.len();
                    let class = *model.classes.entry((value, guard)).or_insert(next);
                    model.events.push((op.called, Event::Offer(class)));
                }
            },
            (Outcome::Read { .. }, Some(_)) | (Outcome::Done { .. } | Outcome::Mismatch, None) => {
                panic!("an answer that does not fit its question: {op}")
            }
        }
        if effect.is_some() {
            model.events.push((op.called, Event::Call(at)));
            model.events.push((returned, Event::Return(at)));
        }
        model.effects.push(effect);
    }
    model.events.sort_unstable();
    Ok(model)
}

/// When a write of unknown outcome must have happened because its value, and only it, was seen.
fn seen(op: &Operation, traces: &HashMap<&[u8], Trace>) -> Option<(u64, Option<u64>)> {
    let Action::Put { value, .. } = &op.action else { return None };
    let trace = traces.get(value.as_slice())?;
    (trace.writers == 1).then_some((trace.first_seen?, trace.revision))
}

/// At most this many operations of one key may be open at once.
const OPEN_MAX: usize = 256;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Mask([u64; OPEN_MAX / 64]);

impl Mask {
    fn has(self, slot: usize) -> bool {
        self.0[slot / 64] >> (slot % 64) & 1 == 1
    }

    fn with(mut self, slot: usize) -> Self {
        self.0[slot / 64] |= 1 << (slot % 64);
        self
    }

    fn without(mut self, slot: usize) -> Self {
        self.0[slot / 64] &= !(1 << (slot % 64));
        self
    }
}

/// One way the store may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Config {
    state: Value,
    /// Highest revision so far.
    revision: u64,
    /// Open operations that have taken effect.
    mask: Mask,
}

/// How many of each class a configuration has used.
type Used = Vec<u32>;

/// Configurations, and for each the ways to get there that use fewest writes of unknown outcome.
#[derive(Debug, Default)]
struct Configs(HashMap<Config, Vec<Used>>);

impl Configs {
    /// False if as good a way was known.
    fn add(&mut self, config: Config, used: Used) -> bool {
        let ways = self.0.entry(config).or_default();
        let within = |a: &Used, b: &Used| a.iter().zip(b).all(|(a, b)| a <= b);
        if ways.iter().any(|way| within(way, &used)) {
            return false;
        }
        ways.retain(|way| !within(&used, way));
        ways.push(used);
        true
    }

    fn drain(&mut self) -> impl Iterator<Item = (Config, Used)> + use<> {
        let all = std::mem::take(&mut self.0);
        all.into_iter().flat_map(|(config, ways)| ways.into_iter().map(move |used| (config, used)))
    }
}

/// The pass over one key.
#[derive(Debug)]
struct Search {
    model: Model,
    classes: Vec<Class>,
    offered: Vec<u32>,
    /// Which operation holds each slot of a [`Mask`].
    open: Vec<Option<usize>>,
    configs: Configs,
    steps: u64,
}

fn judge(ops: &[Operation], steps: u64) -> Judgement {
    let model = match model(ops) {
        Ok(model) => model,
        Err(judgement) => return judgement,
    };
    let mut classes: Vec<_> = model.classes.iter().map(|(&class, &at)| (at, class)).collect();
    classes.sort_unstable_by_key(|&(at, _)| at);
    let classes: Vec<Class> = classes.into_iter().map(|(_, class)| class).collect();
    let offered = vec![0; classes.len()];
    let mut search =
        Search { model, offered, open: Vec::new(), configs: Configs::default(), steps, classes };
    let start = Config { state: ABSENT, revision: 0, mask: Mask::default() };
    search.configs.add(start, vec![0; search.classes.len()]);
    for (now, event) in std::mem::take(&mut search.model.events) {
        match event {
            Event::Offer(class) => search.offered[class] += 1,
            Event::Call(op) => {
                if search.call(op).is_none() {
                    let why = format!("more than {OPEN_MAX} operations are open at {now}");
                    return Judgement::Undecided(why);
                }
            }
            Event::Return(op) => match search.close(op) {
                Some(true) => {}
                Some(false) => {
                    let why = format!("nothing explains {}", ops[op].to_string().trim_start());
                    return Judgement::Violation { at: now, why };
                }
                None => {
                    let left = search.configs.0.len();
                    let why = format!("out of {steps} steps at {now}, {left} ways reached by then");
                    return Judgement::Undecided(why);
                }
            },
        }
    }
    Judgement::Ok
}

impl Search {
    /// Opens an operation; `None` if too many are.
    fn call(&mut self, op: usize) -> Option<()> {
        let free = self.open.iter().position(Option::is_none).unwrap_or(self.open.len());
        if free == OPEN_MAX {
            return None;
        }
        if free == self.open.len() {
            self.open.push(None);
        }
        self.open[free] = Some(op);
        if !self.effect(op).is_write() {
            for (config, used) in self.configs.drain() {
                self.steps = self.steps.saturating_sub(1);
                let config = self.absorb(config);
                self.configs.add(config, used);
            }
        }
        Some(())
    }

    /// Closes an operation. False if it cannot have happened; `None` if steps ran out.
    fn close(&mut self, op: usize) -> Option<bool> {
        let slot = self.open.iter().position(|&o| o == Some(op)).expect("it was called");
        let mut after = Configs::default();
        let mut seen = Configs::default();
        let mut stack = Vec::new();
        for (config, used) in self.configs.drain() {
            if config.mask.has(slot) {
                after.add(Config { mask: config.mask.without(slot), ..config }, used);
            } else if seen.add(config, used.clone()) {
                stack.push((config, used));
            }
        }
        while let Some((config, used)) = stack.pop() {
            for (next, used) in self.successors(config, &used) {
                self.steps = self.steps.checked_sub(1)?;
                if next.mask.has(slot) {
                    after.add(Config { mask: next.mask.without(slot), ..next }, used);
                } else if seen.add(next, used.clone()) {
                    stack.push((next, used));
                }
            }
        }
        self.open[slot] = None;
        self.configs = after;
        Some(!self.configs.0.is_empty())
    }

    /// Every way one more write can take effect.
    fn successors(&self, config: Config, used: &Used) -> Vec<(Config, Used)> {
        let mut out = Vec::new();
        // Writes with revisions take effect in their order: none may be overtaken.
        let bound = self.pending(config).filter_map(|(_, effect)| revision_of(effect)).min();
        for (slot, effect) in self.pending(config) {
            let Effect::Writes { value, guard, existed, revision } = effect else { continue };
            let fits = guard.holds(config.state)
                && existed.is_none_or(|existed| existed == (config.state != ABSENT))
                && revision.is_none_or(|r| r > config.revision && Some(r) == bound);
            if fits {
                let revision = revision.unwrap_or(config.revision);
                let next = Config { state: value, revision, mask: config.mask.with(slot) };
                out.push((self.absorb(next), used.clone()));
            }
        }
        for (class, &(value, guard)) in self.classes.iter().enumerate() {
            let spare = used[class] < self.offered[class];
            if spare && value != config.state && guard.holds(config.state) {
                let mut used = used.clone();
                used[class] += 1;
                out.push((self.absorb(Config { state: value, ..config }), used));
            }
        }
        out
    }

    /// Open operations that have not taken effect, by slot.
    fn pending(&self, config: Config) -> impl Iterator<Item = (usize, Effect)> {
        let slots = self.open.iter().enumerate();
        slots
            .filter_map(move |(slot, op)| (!config.mask.has(slot)).then_some((slot, (*op)?)))
            .map(|(slot, op)| (slot, self.effect(op)))
    }

    /// Lets every open operation that only looks take effect, where it sees what it saw.
    fn absorb(&self, config: Config) -> Config {
        let mask = self.pending(config).fold(config.mask, |mask, (slot, effect)| {
            let sees = match effect {
                Effect::Sees(value) => config.state == value,
                Effect::Refused(guard) => !guard.holds(config.state),
                Effect::Writes { .. } => false,
            };
            if sees { mask.with(slot) } else { mask }
        });
        Config { mask, ..config }
    }

    fn effect(&self, op: usize) -> Effect {
        self.model.effects[op].expect("only what has an effect is opened")
    }
}

fn revision_of(effect: Effect) -> Option<u64> {
    match effect {
        Effect::Writes { revision, .. } => revision,
        Effect::Sees(_) | Effect::Refused(_) => None,
    }
}

/// Drops what the contradiction does not need, as long as that is sound.
///
/// Dropping an operation that only looks can never make a contradiction. Dropping a write can, if
/// somebody depends on it: so only writes go whose value nobody saw or named, and only once
/// nobody tells whether the key existed. Believing less of an answer is always sound, so that is
/// tried first; the report shows the operations as they were.
fn minimize(ops: &[Operation], at: u64, steps: u64) -> Vec<Operation> {
    let mut kept: Vec<Operation> = ops.iter().filter(|op| op.called <= at).cloned().collect();
    for op in &mut kept {
        if op.returned > at {
            (op.outcome, op.returned) = (Outcome::Unknown, u64::MAX);
        }
    }
    kept.retain(|op| op.outcome != Outcome::Failed);
    kept.retain(|op| op.action != Action::Get || op.outcome != Outcome::Unknown);
    let fails = |ops: &[Operation]| matches!(judge(ops, steps), Judgement::Violation { .. });
    if !fails(&kept) {
        return kept; // at the edge of a clock tick; the whole prefix is the honest answer
    }
    let rest = since_last_write(&kept).find(|rest| fails(rest));
    kept = rest.unwrap_or(kept);
    let mut trust: fn(&Operation) -> Option<Operation> = |op| Some(op.clone());
    for less in [without_conditions, without_existence] {
        if fails(&kept.iter().filter_map(less).collect::<Vec<_>>()) {
            kept.retain(|op| less(op).is_some());
            trust = less;
            break;
        }
    }
    let mut budget = 2_000_000 / kept.len().max(1);
    let mut chunk = kept.len().div_ceil(2);
    while chunk > 0 && budget > 0 {
        let mut start = 0;
        while start < kept.len() && budget > 0 {
            budget -= 1;
            let end = (start + chunk).min(kept.len());
            let believed: Vec<Operation> = kept.iter().filter_map(trust).collect();
            let needed = needed(&believed);
            let stays = |i: usize| !(start..end).contains(&i) || needed(&believed[i]);
            let (rest, shown): (Vec<_>, Vec<_>) = (0..kept.len())
                .filter(|&i| stays(i))
                .map(|i| (believed[i].clone(), kept[i].clone()))
                .unzip();
            if rest.len() < kept.len() && fails(&rest) {
                kept = shown;
            } else {
                start = end;
            }
        }
        chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
    }
    kept.sort_by_key(|op| op.called);
    kept
}

/// The history from one acknowledged write on, for the last writes one after the other.
///
/// Whatever returned before that write was called is overwritten by it, and can go. What is
/// concurrent with it may come before it, where the state is not known any more, so of that only
/// bare writes stay. Of older writes those of unknown outcome stay, without their conditions.
fn since_last_write(ops: &[Operation]) -> impl Iterator<Item = Vec<Operation>> {
    let mut writes: Vec<&Operation> =
        ops.iter().filter(|op| matches!(op.outcome, Outcome::Done { .. })).collect();
    writes.retain(|op| without_existence(op).is_some());
    writes.sort_by_key(|op| op.called);
    let from = move |write: &Operation| {
        ops.iter()
            .filter(|op| op.returned >= write.called)
            .filter_map(|op| if op.called > write.returned { Some(op.clone()) } else { bare(op) })
            .collect()
    };
    writes.into_iter().rev().take(300).map(from)
}

/// A write without everything that depends on the state before it.
fn bare(op: &Operation) -> Option<Operation> {
    without_conditions(op).filter(|op| op.action != Action::Get)
}

/// The operation, were its condition unknown and its word on existence not heard.
fn without_conditions(op: &Operation) -> Option<Operation> {
    let mut op = without_existence(op)?;
    match &mut op.action {
        Action::Get => {}
        Action::Put { expect, .. } | Action::Delete { expect } => *expect = None,
    }
    match &op.outcome {
        Outcome::Read { value: None, .. } | Outcome::Mismatch => None,
        Outcome::Read { .. } | Outcome::Done { .. } | Outcome::Failed | Outcome::Unknown => {
            Some(op)
        }
    }
}

/// The operation, had nobody said whether the key existed.
fn without_existence(op: &Operation) -> Option<Operation> {
    let mut op = op.clone();
    if let Outcome::Done { existed, .. } = &mut op.outcome {
        if *existed == Some(false) && matches!(op.action, Action::Delete { .. }) {
            return None; // it changed nothing, wherever its entry is in the log
        }
        *existed = None;
    }
    Some(op)
}

/// Which writes somebody in `ops` depends on.
fn needed(ops: &[Operation]) -> impl Fn(&Operation) -> bool + use<> {
    let mut seen: HashSet<Bytes> = HashSet::new();
    let mut existence = false;
    for op in ops {
        if let Outcome::Read { value, .. } = &op.outcome {
            seen.extend(value.clone());
            existence |= value.is_none();
        }
        if let Outcome::Done { existed, .. } = &op.outcome {
            existence |= existed.is_some();
        }
        if let Action::Put { expect: Some(expect), .. } | Action::Delete { expect: Some(expect) } =
            &op.action
        {
            match expect {
                Expect::Absent | Expect::Present => existence = true,
                Expect::Value(value) => {
                    seen.insert(value.clone());
                }
            }
        }
    }
    move |op| match &op.action {
        Action::Get => false,
        Action::Put { value, .. } => {
            op.outcome != Outcome::Mismatch && (existence || seen.contains(value))
        }
        // A read of nothing may depend on it; so may everything else that asks for existence.
        Action::Delete { .. } => op.outcome != Outcome::Mismatch && existence,
    }
}

/// Counts outcomes by name, for the line a test prints about its run.
pub(crate) fn tally(history: &History) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for op in history.keys.iter().flat_map(|(_, ops)| ops) {
        let name = match op.outcome {
            Outcome::Read { .. } => "reads",
            Outcome::Done { .. } => "writes",
            Outcome::Mismatch => "refused conditions",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}
