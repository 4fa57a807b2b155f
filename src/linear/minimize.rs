//! The shortest contradiction: drops what a violation does not need.

use std::collections::HashSet;

use super::history::{Action, Bytes, Expect, Operation, Outcome};
use super::search::{Judgement, judge};

/// Drops what the contradiction does not need, as long as that is sound.
///
/// Dropping an operation that only looks can never make a contradiction. Dropping a write can, if
/// somebody depends on it: so only writes go whose value nobody saw or named, and only once
/// nobody tells whether the key existed. Believing less of an answer is always sound, so that is
/// tried first; the report shows the operations as they were.
pub(super) fn minimize(ops: &[Operation], at: u64, steps: u64) -> Vec<Operation> {
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
