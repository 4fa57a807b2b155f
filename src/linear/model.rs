//! Operations of one key as the search sees them: effects on a state, and the order of calls and
//! returns.

use std::collections::HashMap;

use super::history::{Action, Expect, Operation, Outcome};
use super::search::Judgement;
use super::verdict::shown;

/// A value by number. [`ABSENT`] and [`UNSEEN`] are the first two.
pub(super) type Value = u32;
/// There is no value.
pub(super) const ABSENT: Value = 0;
/// Some value that nobody ever read or named in a condition.
const UNSEEN: Value = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Guard {
    None,
    Absent,
    Present,
    Is(Value),
}

impl Guard {
    pub(super) fn holds(self, state: Value) -> bool {
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
pub(super) enum Effect {
    /// Changes nothing; possible where the state is this value.
    Sees(Value),
    /// Changes nothing; possible where the guard does not hold.
    Refused(Guard),
    /// Leaves this value.
    Writes { value: Value, guard: Guard, existed: Option<bool>, revision: Option<u64> },
}

impl Effect {
    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::Writes { .. })
    }
}

/// A write of unknown outcome; those of one class do the same and are counted.
pub(super) type Class = (Value, Guard);

/// What the two passes over the operations of a key make of them.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// Effect of each operation that certainly happened.
    pub(super) effects: Vec<Option<Effect>>,
    /// Each class of those that may have.
    pub(super) classes: HashMap<Class, usize>,
    /// (time, call before return, operation or class).
    pub(super) events: Vec<(u64, Event)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
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
pub(super) fn model(ops: &[Operation]) -> Result<Model, Judgement> {
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
