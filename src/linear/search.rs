//! The pass over one key: every way the store may be, after each call and return.

use std::collections::HashMap;

use super::history::Operation;
use super::model::{ABSENT, Class, Effect, Event, Model, Value, model};

/// What becomes of one key.
#[derive(Debug)]
pub(super) enum Judgement {
    Ok,
    Undecided(String),
    Violation { at: u64, why: String },
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

/// Can one register explain these operations?
pub(super) fn judge(ops: &[Operation], steps: u64) -> Judgement {
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
