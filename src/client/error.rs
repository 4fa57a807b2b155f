//! What can go wrong, and what became of the write then.

use std::time::Duration;

use serde::Deserialize;

/// Did a failed write happen?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did not, and will not.
    NotApplied,
    /// It may have, or may still.
    Unknown,
    /// It did.
    Applied,
}

/// A refusal, as the service words it (RFC 9457).
#[derive(Clone, Debug, Deserialize)]
pub struct Problem {
    /// Name of the kind, such as `precondition-failed`: branch on this.
    pub code: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time, for people.
    #[serde(default)]
    pub detail: String,
    /// Did a write happen?
    pub outcome: Outcome,
    /// May the same request succeed later?
    #[serde(default)]
    pub retryable: bool,
    /// The request's id, to be found in logs.
    #[serde(default)]
    pub request_id: String,
    /// What is allowed.
    #[serde(default)]
    pub limit: Option<u64>,
    /// What was found.
    #[serde(default)]
    pub actual: Option<u64>,
    /// The key's `ETag` when a condition failed.
    #[serde(default)]
    pub current_etag: Option<String>,
    /// The oldest revision that is known, when an older one was asked for.
    #[serde(default)]
    pub oldest_revision: Option<u64>,
    /// How long the node asks to be left alone.
    #[serde(skip)]
    pub retry_after: Duration,
}

impl Problem {
    /// What an answer to `HEAD` means, which has no body to say it.
    pub(super) fn without_words(status: u16) -> Option<Self> {
        let code = match status {
            400 => "bad-request",
            404 => "not-found",
            410 => "compacted",
            412 => "precondition-failed",
            414 => "too-large",
            422 => "unprocessable",
            429 => "overloaded",
            503 => "no-leader",
            _ => return None,
        };
        Some(Self {
            code: code.into(),
            status,
            detail: String::new(),
            outcome: Outcome::NotApplied,
            retryable: matches!(status, 429 | 503),
            request_id: String::new(),
            limit: None,
            actual: None,
            current_etag: None,
            oldest_revision: None,
            retry_after: Duration::ZERO,
        })
    }

    /// The revision the key is at, when a condition failed; `None`: there is no such key.
    #[must_use]
    pub fn current_revision(&self) -> Option<u64> {
        self.current_etag.as_ref()?.trim_matches('"').parse().ok()
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service refused.
    #[error("{} ({}): {}", .0.code, .0.status, .0.detail)]
    Refused(Box<Problem>),
    /// No node could be asked, as often as was tried: nothing was changed.
    #[error("no node could be reached: {0}")]
    Unreachable(String),
    /// The connection broke after the request had left: a write may have happened.
    #[error("the connection broke before the answer: {0}")]
    Broken(String),
    /// An answer that this client does not understand.
    #[error("an answer that is none of mmapd's: {0}")]
    Unexpected(String),
    /// The call makes no sense: nothing was sent.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The refusal, if it is one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        if let Self::Refused(problem) = self { Some(problem) } else { None }
    }

    /// Is it a refusal of this kind?
    #[must_use]
    pub fn is(&self, code: &str) -> bool {
        self.problem().is_some_and(|problem| problem.code == code)
    }

    /// May the same request, sent again, fare better?
    pub(super) fn may_help_to_repeat(&self) -> bool {
        match self {
            Self::Refused(problem) => problem.retryable || problem.outcome == Outcome::Unknown,
            Self::Unreachable(_) | Self::Broken(_) => true,
            Self::Unexpected(_) | Self::Invalid(_) => false,
        }
    }

    /// What became of a write.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(problem) => problem.outcome,
            Self::Unreachable(_) | Self::Invalid(_) => Outcome::NotApplied,
            Self::Broken(_) | Self::Unexpected(_) => Outcome::Unknown,
        }
    }
}
