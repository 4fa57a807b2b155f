//! What the checker found, for programs and for people.

use std::fmt;

use super::history::{Action, Bytes, Expect, Operation, Outcome};

/// What the checker found.
#[derive(Debug, Default)]
#[must_use = "a verdict that nobody reads proves nothing"]
pub struct Verdict {
    /// Keys judged.
    pub keys: usize,
    /// Operations judged.
    pub ops: usize,
    /// Keys that no register can explain.
    pub violations: Vec<Violation>,
    /// Keys that ran out of steps, and where.
    pub undecided: Vec<(Bytes, String)>,
}

impl Verdict {
    /// Every key is decided, and linearizable.
    pub fn is_ok(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }

    /// Fails the test with the report unless every key is decided and linearizable.
    pub fn expect_linearizable(&self) {
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
pub struct Violation {
    /// The key.
    pub key: Bytes,
    /// What is wrong in one sentence.
    pub why: String,
    /// Operations that already contradict each other without all the rest.
    pub window: Vec<Operation>,
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
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    if text.len() <= 60 { format!("\"{text}\"") } else { format!("\"{}...\"", &text[..60]) }
}
