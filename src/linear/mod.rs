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
//!
//! The simulator, the torture of real nodes and `mmapctl torture` are judged by it; its own tests
//! are in `tests/history.rs`.

#![forbid(unsafe_code)]

mod history;
mod lines;
mod minimize;
mod model;
mod search;
mod verdict;

pub use history::{
    Action, Bytes, Expect, History, OpId, Operation, Outcome, Recorder, STEPS, tally,
};
pub use lines::{read_lines, write_line};
pub use verdict::{Verdict, Violation};
