//! The place of a request in a trace: W3C Trace Context, level 1
//! (<https://www.w3.org/TR/trace-context-1/>).
//!
//! Every node that handles a request makes a span of its own, below the one that it was told
//! of, and tells the next node of its own. So the lines of all nodes about one request share
//! its trace id and its request id, and their span ids differ.
//!
//! Left out: spans that are sent somewhere. The logs are all there is.

use std::cell::RefCell;

/// The header with the id of a request.
pub const REQUEST_ID: &str = "request-id";
/// The header that says of which trace a request is.
pub const TRACEPARENT: &str = "traceparent";
/// The header with what others want to be handed on along with a trace.
pub const TRACESTATE: &str = "tracestate";

/// Longest `tracestate` that is handed on; one that is longer is dropped as a whole.
const STATE_MAX: usize = 512;
/// Length of a `traceparent` of version 00.
const PARENT_LEN: usize = 55;
/// The only flag of version 00: somebody before us keeps this trace.
const SAMPLED: u8 = 1;

/// A request on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    request_id: String,
    trace_id: u128,
    span_id: u64,
    sampled: bool,
    state: Option<String>,
}

impl Trace {
    /// A span of our own, below the one that `parent` names. With none, or one that is
    /// malformed, a trace begins here, and `state`, which belonged to another, is dropped.
    ///
    /// # Panics
    /// When the system has no random numbers.
    #[must_use]
    pub fn new(request_id: String, parent: Option<&str>, state: Option<&str>) -> Self {
        let (new_trace, span_id) = random();
        let Some((trace_id, sampled)) = parent.and_then(parse) else {
            return Self { request_id, trace_id: new_trace, span_id, sampled: false, state: None };
        };
        let state = state.filter(|state| !state.is_empty() && state.len() <= STATE_MAX);
        let state = state.map(str::to_owned);
        Self { request_id, trace_id, span_id, sampled, state }
    }

    /// The id of the request, the same on all nodes.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The id of the trace, the same on all nodes: 32 hex digits.
    #[must_use]
    pub fn trace_id(&self) -> impl std::fmt::Display + use<> {
        Hex::<32>(self.trace_id)
    }

    /// The id of what this node does for the request: 16 hex digits.
    #[must_use]
    pub fn span_id(&self) -> impl std::fmt::Display + use<> {
        Hex::<16>(self.span_id.into())
    }

    /// What the next node is told: names of headers, and their values.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        let flags = u8::from(self.sampled) * SAMPLED;
        let parent = format!("00-{}-{}-{flags:02x}", self.trace_id(), self.span_id());
        let state = self.state.clone().map(|state| (TRACESTATE, state));
        [(REQUEST_ID, self.request_id.clone()), (TRACEPARENT, parent)].into_iter().chain(state)
    }
}

/// A number in this many hex digits.
struct Hex<const DIGITS: usize>(u128);

impl<const DIGITS: usize> std::fmt::Display for Hex<DIGITS> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:0DIGITS$x}", self.0)
    }
}

/// The trace id of a `traceparent`, and whether it is sampled; `None`: it is malformed. One of
/// a later version is read as far as it is like version 00 (section 3.2.4).
fn parse(text: &str) -> Option<(u128, bool)> {
    let version = hex(text.get(..2)?)?;
    let is_known = version == 0;
    let ends = match text.as_bytes().get(PARENT_LEN) {
        None => text.len() == PARENT_LEN,
        Some(next) => !is_known && *next == b'-',
    };
    if version == 0xff || !ends {
        return None;
    }
    let mut fields = text.get(2..PARENT_LEN)?.strip_prefix('-')?.splitn(3, '-');
    let mut field = |len| hex(fields.next().filter(|field| field.len() == len)?);
    let (trace_id, parent_id, flags) = (field(32)?, field(16)?, field(2)?);
    let sampled = flags & u128::from(SAMPLED) != 0;
    (trace_id != 0 && parent_id != 0).then_some((trace_id, sampled))
}

/// Only digits in lower case are hex digits here.
fn hex(text: &str) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.bytes().all(is_digit).then(|| u128::from_str_radix(text, 16).ok())?
}

/// Random bytes that were fetched ahead: one call to the system for many requests.
struct Pool {
    bytes: [u8; 768],
    used: usize,
}

/// A new trace id and a new span id, neither of them 0.
fn random() -> (u128, u64) {
    thread_local! {
        static POOL: RefCell<Pool> = const { RefCell::new(Pool { bytes: [0; 768], used: 768 }) };
    }
    POOL.with_borrow_mut(|pool| {
        let trace_id = u128::from_le_bytes(pool.take());
        let span_id = u64::from_le_bytes(pool.take());
        (trace_id.max(1), span_id.max(1))
    })
}

impl Pool {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.used + N > self.bytes.len() {
            getrandom::fill(&mut self.bytes).expect("the system has random numbers");
            self.used = 0;
        }
        let mut taken = [0; N];
        taken.copy_from_slice(&self.bytes[self.used..self.used + N]);
        self.used += N;
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn told(trace: &Trace, name: &str) -> Option<String> {
        trace.headers().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    #[test]
    fn a_trace_goes_on_in_a_span_of_its_own() {
        let trace = Trace::new("r".into(), Some(PARENT), Some("a=1,b=2"));
        assert_eq!(trace.trace_id().to_string(), TRACE);
        let span = trace.span_id().to_string();
        assert_ne!(span, "00f067aa0ba902b7");
        assert_eq!(told(&trace, TRACEPARENT), Some(format!("00-{TRACE}-{span}-01")));
        assert_eq!(told(&trace, TRACESTATE).as_deref(), Some("a=1,b=2"));
        assert_eq!(told(&trace, REQUEST_ID).as_deref(), Some("r"));
        // Flags that version 00 does not have are not handed on.
        let other = Trace::new("r".into(), Some(&PARENT.replace("-01", "-fe")), None);
        assert!(told(&other, TRACEPARENT).is_some_and(|parent| parent.ends_with("-00")));
    }

    #[test]
    fn only_what_the_recommendation_allows_is_a_parent() {
        let good = |text: &str| parse(text) == u128::from_str_radix(TRACE, 16).ok().zip(Some(true));
        assert!(good(PARENT));
        // A later version may have more behind a dash, and nothing else.
        assert!(good(&PARENT.replacen("00", "cc", 1)));
        assert!(good(&format!("{}-more-to-come", PARENT.replacen("00", "01", 1))));
        for bad in [
            "",
            "00",
            "0\u{e9}-",
            &PARENT.to_uppercase(),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replacen("00", "0g", 1),
            &PARENT.replacen("00-", "0-0", 1),
            &PARENT.replace(TRACE, &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT.replace("4bf9", "4bf"),
            &PARENT.replace("4bf9", "+bf9"),
            &PARENT.replace("4bf9", "4bf-"),
            &PARENT.replace("-00f", "_00f"),
            &PARENT[..54],
            &format!("{PARENT}-"),
            &format!("{PARENT}0"),
            &format!(" {PARENT}"),
            &format!("{}0", PARENT.replacen("00", "01", 1)),
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
            let trace = Trace::new("r".into(), Some(bad), Some("a=1"));
            assert_ne!(trace.trace_id().to_string(), TRACE);
            assert_eq!(told(&trace, TRACESTATE), None, "it belongs to another trace");
            let parent = told(&trace, TRACEPARENT).expect("a new one");
            assert!(parse(&parent).is_some(), "{parent}");
        }
    }

    #[test]
    fn a_long_state_is_dropped_whole() {
        let longest = "a".repeat(STATE_MAX);
        for (state, want) in
            [(longest.clone(), Some(longest.clone())), (longest + "a", None), (String::new(), None)]
        {
            let trace = Trace::new("r".into(), Some(PARENT), Some(&state));
            assert_eq!(told(&trace, TRACESTATE), want);
        }
    }

    #[test]
    fn ids_are_not_repeated() {
        let mut seen = HashSet::new();
        for _ in 0..200 {
            let trace = Trace::new(String::new(), None, None);
            assert!(seen.insert(trace.trace_id().to_string()));
            assert!(seen.insert(trace.span_id().to_string()));
            assert_eq!(trace.trace_id().to_string().len(), 32);
            assert_eq!(trace.span_id().to_string().len(), 16);
        }
    }
}
