//! What the process says of its work: to which request a line belongs, on whichever node it
//! is written ([`Trace`]), and which lines are written at all ([`Filter`], [`Switch`]).
//!
//! Left out: writing them. `cli` has the only subscriber; a process without one has no logs,
//! and pays nothing for them.

#![forbid(unsafe_code)]

mod filter;
mod switch;
mod trace;

pub use filter::{Filter, FilterError};
pub use switch::{Now, Switch, Turn};
pub use trace::{REQUEST_ID, TRACEPARENT, TRACESTATE, Trace};
