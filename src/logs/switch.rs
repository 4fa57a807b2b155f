//! Changing the filter while the process runs: by the settings, and on top of them by an
//! operator, for a while or until the settings are read again.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;

use super::Filter;

type Apply = Box<dyn Fn(&Filter) + Send + Sync>;

/// The filter of this process, shared by all who change it.
///
/// Invariant: what was applied last is `State::now`; both change under one lock.
#[derive(Clone)]
pub struct Switch(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Tells the subscriber; not there in a process that has none of ours.
    apply: OnceLock<Apply>,
}

struct State {
    configured: Filter,
    now: Filter,
    turn: u64,
    until: Option<Instant>,
}

/// Names a change, so that its end does not end a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

/// What holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// Which lines are written.
    pub filter: Filter,
    /// Which ones the settings want.
    pub configured: Filter,
    /// How long it stays so; `None`: until it is changed.
    pub left: Option<Duration>,
}

impl Default for Switch {
    fn default() -> Self {
        Self::new(Filter::all(LevelFilter::INFO))
    }
}

/// A switch is no setting: settings that differ in it alone are the same.
impl PartialEq for Switch {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Switch").field(&self.now()).finish()
    }
}

impl Switch {
    /// As the settings say.
    #[must_use]
    pub fn new(configured: Filter) -> Self {
        let state = State { now: configured.clone(), configured, turn: 0, until: None };
        Self(Arc::new(Inner { state: Mutex::new(state), apply: OnceLock::new() }))
    }

    /// Calls `apply` with every filter from now on. Only the first call counts.
    pub fn drives(&self, apply: impl Fn(&Filter) + Send + Sync + 'static) {
        // A second subscriber cannot be there either.
        let _ = self.0.apply.set(Box::new(apply));
    }

    /// What holds now.
    #[must_use]
    pub fn now(&self) -> Now {
        let state = self.lock();
        let left = state.until.map(|until| until.saturating_duration_since(Instant::now()));
        Now { filter: state.now.clone(), configured: state.configured.clone(), left }
    }

    /// An operator wants another filter. With a duration somebody has to call
    /// [`Switch::expire`] when that is over.
    pub fn set(&self, filter: Filter, lasts: Option<Duration>) -> Turn {
        self.change(|state| {
            state.now = filter;
            state.until = lasts.and_then(|lasts| Instant::now().checked_add(lasts));
        })
    }

    /// The settings were read again: they hold.
    pub fn configure(&self, configured: Filter) {
        self.change(|state| {
            state.now.clone_from(&configured);
            state.configured = configured;
            state.until = None;
        });
    }

    /// The settings hold again, unless something changed since `turn`; did they not before?
    pub fn expire(&self, turn: Turn) -> bool {
        let mut state = self.lock();
        if state.turn != turn.0 {
            return false;
        }
        (state.now, state.until) = (state.configured.clone(), None);
        self.apply(&state);
        true
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Turn {
        let mut state = self.lock();
        state.turn += 1;
        change(&mut state);
        self.apply(&state);
        Turn(state.turn)
    }

    fn apply(&self, state: &State) {
        if let Some(apply) = self.0.apply.get() {
            apply(&state.now);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::parse(text, &Filter::all(LevelFilter::OFF)).expect(text)
    }

    /// A switch, and all that was applied.
    fn watched() -> (Switch, Arc<Mutex<Vec<String>>>) {
        let switch = Switch::new(filter("info"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        switch.drives(move |filter| sink.lock().expect("nobody panics").push(filter.to_string()));
        (switch, seen)
    }

    #[test]
    fn a_change_ends_where_the_settings_are() {
        let (switch, seen) = watched();
        let turn = switch.set(filter("debug"), Some(Duration::from_secs(60)));
        let now = switch.now();
        assert_eq!((now.filter, now.configured), (filter("debug"), filter("info")));
        assert!(now.left.is_some_and(|left| left > Duration::from_secs(1)));
        assert!(switch.expire(turn));
        let now = switch.now();
        assert_eq!((now.filter, now.left), (filter("info"), None));
        assert_eq!(*seen.lock().expect("nobody panics"), ["debug", "info"]);
    }

    #[test]
    fn the_end_of_a_change_does_not_end_a_later_one() {
        let (switch, _) = watched();
        let first = switch.set(filter("debug"), Some(Duration::from_secs(1)));
        switch.set(filter("trace"), None);
        assert!(!switch.expire(first));
        assert_eq!(switch.now().filter, filter("trace"));
        let last = switch.set(filter("debug"), Some(Duration::from_secs(1)));
        switch.configure(filter("warn"));
        assert!(!switch.expire(last));
        let want = Now { filter: filter("warn"), configured: filter("warn"), left: None };
        assert_eq!(switch.now(), want);
    }
}
