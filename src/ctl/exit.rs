//! How a command ends: 0, or why not.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::cli::Fatal;
use crate::client::{Error, Outcome};

const FAILURE: u8 = 1;
/// The command line is not one.
pub(super) const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const PRECONDITION: u8 = 4;
const UNAVAILABLE: u8 = 5;
const UNKNOWN: u8 = 6;

/// Shown by `--help`.
pub(super) const HELP: &str = "\
Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 precondition failed, 5 unavailable,
6 outcome unknown (a write that may have happened, or may still).";

/// Why a command failed: its exit code, and a line for people.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// 1: none of the others.
    pub(crate) fn other(text: impl Into<String>) -> Self {
        Self { code: FAILURE, text: text.into() }
    }

    /// 2: what was asked for makes no sense.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { code: USAGE, text: text.into() }
    }

    /// 3: there is no such thing.
    pub(super) fn not_found(text: impl Into<String>) -> Self {
        Self { code: NOT_FOUND, text: text.into() }
    }

    /// 4: something is not as it was said to be.
    pub(super) fn precondition(text: impl Into<String>) -> Self {
        Self { code: PRECONDITION, text: text.into() }
    }

    /// 5: the same may succeed later.
    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self { code: UNAVAILABLE, text: text.into() }
    }

    /// As another program ended, which has said why; `more`: what it cannot know.
    pub(super) fn of_program(code: u8, more: impl Into<String>) -> Self {
        Self { code, text: more.into() }
    }

    /// Of something that changes nothing, so that there is no outcome to know.
    pub(super) fn of_read(error: Error) -> Self {
        // To ask again gets the same answer again.
        let code = if matches!(error, Error::Unexpected(_)) { FAILURE } else { UNAVAILABLE };
        let failure = Self::from(error);
        if failure.code == UNKNOWN { Self { code, ..failure } } else { failure }
    }

    /// Tells people, and the shell.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.text.is_empty() {
            // Where nobody listens the code says it.
            let _ = writeln!(io::stderr(), "mmapctl: {}", self.text);
        }
        self.code.into()
    }
}

/// Of a write, where it is not [`Failure::of_read`].
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Invalid(_) => USAGE,
            Error::Unreachable(_) => UNAVAILABLE,
            error if error.outcome() == Outcome::Unknown => UNKNOWN,
            Error::Refused(problem) => match problem.status {
                404 => NOT_FOUND,
                409 | 412 => PRECONDITION,
                429 | 503 => UNAVAILABLE,
                _ if problem.retryable => UNAVAILABLE,
                _ => FAILURE,
            },
            Error::Broken(_) | Error::Unexpected(_) => FAILURE,
        };
        Self { code, text: error.to_string() }
    }
}

/// Of commands that work on files, as the daemon does.
impl From<Fatal> for Failure {
    fn from(fatal: Fatal) -> Self {
        Self::other(fatal.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_program_is_no_absence() {
        let odd = || Error::Unexpected("<html>".into());
        assert_eq!(Failure::of_read(odd()).code, FAILURE);
        assert_eq!(Failure::from(odd()).code, UNKNOWN, "the write may have happened");
        let broken = || Error::Broken("it broke".into());
        assert_eq!(Failure::of_read(broken()).code, UNAVAILABLE);
        assert_eq!(Failure::from(broken()).code, UNKNOWN);
    }
}
