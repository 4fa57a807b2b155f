//! The one table that maps failures to the outside world (RFC 9457).
//!
//! An error becomes a response without a body that carries its [`Problem`] along; the
//! outermost layer writes the body, since only it knows the request's id.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::machine::{Applied, DELETE_MAX, Gone};
use crate::node::{PeerError, ReadError, WriteError};
use crate::store::StoreError;

/// Everything a request can be refused for: the whole public vocabulary of errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ApiError {
    /// Malformed, or with a parameter that does not exist.
    BadRequest(String),
    /// Nobody who is known asks.
    Unauthenticated,
    /// Who asks may not do this.
    Forbidden(&'static str),
    /// The page of another server asks, in the browser of somebody who may do this.
    CrossOrigin,
    /// There is no such key or route.
    NotFound(String),
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// The body took too long to arrive.
    TooSlow,
    /// A condition did not hold.
    PreconditionFailed {
        /// The key's tag; `None`: there is no such key.
        current: Option<u64>,
    },
    /// A write with a fence that is not up.
    Fenced(String),
    /// A key over the limit.
    KeyTooLarge {
        /// Bytes allowed.
        limit: u64,
        /// Bytes given.
        actual: u64,
    },
    /// A first line and headers over the limit.
    HeadTooLarge {
        /// Bytes allowed.
        limit: u64,
        /// Bytes given.
        actual: u64,
    },
    /// A value or body over the limit.
    TooLarge {
        /// Bytes allowed.
        limit: u64,
        /// Bytes given, as far as is known.
        actual: Option<u64>,
    },
    /// A body of another type than this.
    UnsupportedType {
        /// The type.
        wanted: &'static str,
        /// The header that names it.
        header: &'static str,
    },
    /// For another cluster or node.
    Misdirected(String),
    /// Well-formed and impossible.
    Unprocessable(String),
    /// Well-formed, and beyond a limit.
    Beyond {
        /// Of what.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
        /// How much was found, at least.
        actual: u64,
    },
    /// The past that was asked for is no longer known.
    Compacted {
        /// The oldest revision that is.
        oldest: u64,
    },
    /// The value does not reach into the range that was asked for.
    NotSatisfiable {
        /// Bytes of the value.
        size: u64,
    },
    /// Too many requests in flight.
    Overloaded,
    /// Too many bytes of bodies in flight.
    TooManyBytes {
        /// Bytes allowed.
        limit: u64,
        /// Bytes there would be.
        actual: u64,
    },
    /// Nobody leads.
    NoLeader(&'static str),
    /// Leadership did not move in time.
    NotTransferred(String),
    /// This node is shutting down, or not ready.
    Draining(String),
    /// A write was proposed and not confirmed.
    OutcomeUnknown(&'static str),
    /// The database is full.
    QuotaExceeded {
        /// Bytes allowed.
        limit: u64,
        /// Bytes used.
        actual: u64,
    },
    /// The disk is full.
    NoSpace(&'static str),
    /// Something else is under way that excludes this.
    Conflict(String),
    /// A page of the database is damaged.
    Damaged(String),
    /// The database of this node is being made anew.
    Rebuilding,
}

/// Did a failed write happen?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// It did not, and will not.
    NotApplied,
    /// It may have, or may still.
    Unknown,
}

/// Body of every refusal. Branch on `code`; `detail` is for people.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "urn:mmapd:error:precondition-failed", "title": "Precondition failed", "status": 412,
    "code": "precondition-failed", "detail": "the key is at revision 7", "outcome": "not_applied",
    "retryable": false, "request_id": "5f0c1d2e-1", "current_etag": "\"7\""
}))]
pub(super) struct Problem {
    /// URN of the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// Short text, the same for every problem of this kind.
    title: &'static str,
    /// The HTTP status.
    pub(super) status: u16,
    /// Name of the kind; part of the contract.
    code: &'static str,
    /// What happened this time.
    detail: String,
    /// Did a write happen?
    outcome: Outcome,
    /// May the same request succeed later without being changed?
    retryable: bool,
    /// The request's id, also in the header `Request-Id`.
    pub(super) request_id: String,
    /// What is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// What was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    actual: Option<u64>,
    /// The key's `ETag` when a condition failed; absent when there is no such key.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_etag: Option<String>,
    /// The oldest revision that is known, when an older one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_revision: Option<u64>,
}

/// Status, code, title: side by side and without a wildcard arm, so that a new error does
/// not compile until someone decides what the client will see.
impl ApiError {
    fn parts(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad-request", "Bad request"),
            Self::Unauthenticated => {
                (StatusCode::UNAUTHORIZED, "unauthenticated", "Not authenticated")
            }
            Self::Forbidden(_) | Self::CrossOrigin => {
                (StatusCode::FORBIDDEN, "forbidden", "Forbidden")
            }
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
            }
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "request-timeout", "Request timeout"),
            Self::PreconditionFailed { .. } => {
                (StatusCode::PRECONDITION_FAILED, "precondition-failed", "Precondition failed")
            }
            Self::Fenced(_) => {
                (StatusCode::PRECONDITION_FAILED, "precondition-failed", "Precondition failed")
            }
            Self::KeyTooLarge { .. } => (StatusCode::URI_TOO_LONG, "too-large", "Key too large"),
            Self::HeadTooLarge { .. } => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too-large", "Headers too large")
            }
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Too large"),
            Self::UnsupportedType { .. } => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported type")
            }
            Self::Misdirected(_) => {
                (StatusCode::MISDIRECTED_REQUEST, "misdirected", "Misdirected request")
            }
            Self::Unprocessable(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", "Unprocessable")
            }
            Self::Beyond { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", "Unprocessable")
            }
            Self::Compacted { .. } => (StatusCode::GONE, "compacted", "No longer known"),
            Self::NotSatisfiable { .. } => {
                (StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", "No such range")
            }
            Self::Overloaded | Self::TooManyBytes { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "overloaded", "Overloaded")
            }
            Self::NoLeader(_) => (StatusCode::SERVICE_UNAVAILABLE, "no-leader", "No leader"),
            Self::NotTransferred(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "not-transferred", "Leadership did not move")
            }
            Self::Draining(_) => (StatusCode::SERVICE_UNAVAILABLE, "draining", "Not available"),
            Self::OutcomeUnknown(_) => {
                (StatusCode::GATEWAY_TIMEOUT, "outcome-unknown", "Outcome unknown")
            }
            Self::QuotaExceeded { .. } => {
                (StatusCode::INSUFFICIENT_STORAGE, "quota-exceeded", "Quota exceeded")
            }
            Self::NoSpace(_) => (StatusCode::INSUFFICIENT_STORAGE, "no-space", "No space"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict", "Conflict"),
            Self::Damaged(_) => (StatusCode::INTERNAL_SERVER_ERROR, "damaged", "Damaged data"),
            Self::Rebuilding => (StatusCode::SERVICE_UNAVAILABLE, "rebuilding", "Rebuilding"),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::BadRequest(detail)
            | Self::NotFound(detail)
            | Self::Misdirected(detail)
            | Self::Unprocessable(detail)
            | Self::NotTransferred(detail)
            | Self::Draining(detail)
            | Self::Conflict(detail)
            | Self::Fenced(detail)
            | Self::Damaged(detail) => detail.clone(),
            Self::Unauthenticated => {
                "send a token that is known and not over: Authorization: Bearer TOKEN".into()
            }
            Self::Forbidden(verb) => format!("this token may not do that: it lacks {verb:?} there"),
            Self::CrossOrigin => "pages of other servers may not change anything here".into(),
            Self::MethodNotAllowed => "this route has other methods; see the Allow header".into(),
            Self::TooSlow => "the body did not arrive in time".into(),
            Self::PreconditionFailed { current: Some(revision) } => {
                format!("the key is at revision {revision}")
            }
            Self::PreconditionFailed { current: None } => "there is no such key".into(),
            Self::KeyTooLarge { limit, actual } => {
                format!("a key has at most {limit} bytes, this one has {actual}")
            }
            Self::HeadTooLarge { limit, .. } => {
                format!("the first line and the headers may have at most {limit} bytes")
            }
            Self::TooLarge { limit, .. } => format!("the body may have at most {limit} bytes"),
            Self::UnsupportedType { wanted, .. } => format!("the body has to be {wanted}"),
            Self::Rebuilding => "this node's database was damaged and is being made anew".into(),
            Self::Beyond { what, limit, actual } => {
                format!("{what}: at most {limit} are allowed, these are {actual}")
            }
            Self::Compacted { oldest } => {
                format!("the oldest revision that is still known is {oldest}")
            }
            Self::NotSatisfiable { size } => format!("the value has {size} bytes"),
            Self::Overloaded => "too many requests are in flight on this node".into(),
            Self::TooManyBytes { .. } => {
                "too many bytes of bodies are in flight on this node".into()
            }
            Self::NoLeader(detail) | Self::OutcomeUnknown(detail) | Self::NoSpace(detail) => {
                (*detail).into()
            }
            Self::QuotaExceeded { limit, actual } => {
                format!("the database uses {actual} of {limit} bytes; reads and deletes still work")
            }
        }
    }

    fn numbers(&self) -> (Option<u64>, Option<u64>) {
        match self {
            Self::KeyTooLarge { limit, actual }
            | Self::HeadTooLarge { limit, actual }
            | Self::Beyond { limit, actual, .. }
            | Self::TooManyBytes { limit, actual }
            | Self::QuotaExceeded { limit, actual } => (Some(*limit), Some(*actual)),
            Self::TooLarge { limit, actual } => (Some(*limit), *actual),
            Self::BadRequest(_)
            | Self::Unauthenticated
            | Self::Forbidden(_)
            | Self::CrossOrigin
            | Self::NotFound(_)
            | Self::MethodNotAllowed
            | Self::TooSlow
            | Self::PreconditionFailed { .. }
            | Self::Fenced(_)
            | Self::UnsupportedType { .. }
            | Self::Misdirected(_)
            | Self::Unprocessable(_)
            | Self::Compacted { .. }
            | Self::NotSatisfiable { .. }
            | Self::Overloaded
            | Self::NoLeader(_)
            | Self::NotTransferred(_)
            | Self::Draining(_)
            | Self::OutcomeUnknown(_)
            | Self::NoSpace(_)
            | Self::Conflict(_)
            | Self::Damaged(_)
            | Self::Rebuilding => (None, None),
        }
    }
}

impl ApiError {
    /// What RFC 9110 (11.6.1, 15.5.17) and RFC 5789 (3.1) have a refusal tell beside its problem.
    fn own_header(&self) -> Option<(HeaderName, HeaderValue)> {
        if matches!(self, Self::Unauthenticated) {
            let scheme = HeaderValue::from_static("Bearer realm=\"mmapd\"");
            return Some((header::WWW_AUTHENTICATE, scheme));
        }
        if let Self::NotSatisfiable { size } = self {
            let size = HeaderValue::try_from(format!("bytes */{size}")).ok()?;
            return Some((header::CONTENT_RANGE, size));
        }
        if let Self::UnsupportedType { wanted, header } = self {
            return Some((HeaderName::from_static(header), HeaderValue::from_static(wanted)));
        }
        None
    }

    /// May the same request succeed later without being changed?
    fn is_retryable(&self) -> bool {
        match self {
            Self::Overloaded
            | Self::TooManyBytes { .. }
            | Self::NoLeader(_)
            | Self::NotTransferred(_)
            | Self::Draining(_)
            | Self::Rebuilding => true,
            Self::BadRequest(_)
            | Self::Unauthenticated
            | Self::Forbidden(_)
            | Self::CrossOrigin
            | Self::NotFound(_)
            | Self::MethodNotAllowed
            | Self::TooSlow
            | Self::PreconditionFailed { .. }
            | Self::Fenced(_)
            | Self::KeyTooLarge { .. }
            | Self::HeadTooLarge { .. }
            | Self::TooLarge { .. }
            | Self::UnsupportedType { .. }
            | Self::Misdirected(_)
            | Self::Unprocessable(_)
            | Self::Beyond { .. }
            | Self::Compacted { .. }
            | Self::NotSatisfiable { .. }
            | Self::OutcomeUnknown(_)
            | Self::QuotaExceeded { .. }
            | Self::NoSpace(_)
            | Self::Conflict(_)
            | Self::Damaged(_) => false,
        }
    }

    /// What a client is told, also within an answer that has begun.
    pub(super) fn problem(&self, request_id: &str) -> Problem {
        let (status, code, title) = self.parts();
        let (limit, actual) = self.numbers();
        let current_etag =
            if let Self::PreconditionFailed { current } = self { current.map(etag) } else { None };
        let oldest_revision =
            if let Self::Compacted { oldest } = self { Some(*oldest) } else { None };
        let unknown = matches!(self, Self::OutcomeUnknown(_));
        Problem {
            kind: format!("urn:mmapd:error:{code}"),
            title,
            status: status.as_u16(),
            code,
            detail: self.detail(),
            outcome: if unknown { Outcome::Unknown } else { Outcome::NotApplied },
            retryable: self.is_retryable(),
            request_id: request_id.to_owned(),
            limit,
            actual,
            current_etag,
            oldest_revision,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = self.problem("");
        let mut response = self.parts().0.into_response();
        if problem.retryable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        let tag = problem.current_etag.as_ref().and_then(|tag| HeaderValue::try_from(tag).ok());
        if let Some(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response.headers_mut().extend(self.own_header());
        if matches!(self, Self::TooSlow | Self::TooLarge { .. }) {
            // The rest of the body is not read, so the connection cannot be used again.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(HeaderName::from_static("connection"), close);
        }
        response.extensions_mut().insert(problem);
        response
    }
}

impl ApiError {
    /// Why a command that was carried out did not do what it was meant to.
    pub(super) fn of(applied: Applied) -> Self {
        match applied {
            Applied::ConditionFailed { current } => Self::PreconditionFailed { current },
            Applied::NoKey => Self::NotFound("there is no such key".into()),
            Applied::NoLease { id } => Self::NotFound(format!("there is no lease {id}")),
            Applied::NoLock => Self::NotFound("nobody holds or awaits that lock so".into()),
            Applied::LeaseExists { id } => Self::Conflict(format!("there is a lease {id} already")),
            Applied::Held { token } => {
                Self::Conflict(format!("somebody holds this lock, with token {token}"))
            }
            Applied::Fenced { current: Some(token) } => {
                Self::Fenced(format!("the lock is held with token {token}"))
            }
            Applied::Fenced { current: None } => Self::Fenced("nobody holds the lock".into()),
            Applied::OtherRequest => Self::Unprocessable(
                "this Idempotency-Key was given to another request before".into(),
            ),
            Applied::TooMany { actual } => {
                Self::Beyond { what: "keys to delete at once", limit: DELETE_MAX, actual }
            }
            Applied::Replayed(first) => Self::of(*first),
            Applied::Unknown
            | Applied::Put(_)
            | Applied::Deleted { .. }
            | Applied::Touched { .. }
            | Applied::Granted(_)
            | Applied::KeptAlive { .. }
            | Applied::Revoked { .. }
            | Applied::Locked { .. }
            | Applied::Unlocked { .. }
            | Applied::Txn { .. }
            | Applied::Batch { .. }
            | Applied::Tidied { .. } => Self::OutcomeUnknown(
                "the leader runs another version and did not understand the command",
            ),
        }
    }
}

impl From<Gone> for ApiError {
    fn from(gone: Gone) -> Self {
        Self::Compacted { oldest: gone.oldest }
    }
}

/// The tag of a revision.
pub(super) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoLeader => Self::NoLeader("no leader could be reached in time"),
            WriteError::Draining => Self::Draining("this node is shutting down".into()),
            WriteError::Overloaded => Self::Overloaded,
            WriteError::Full { limit, actual } => Self::QuotaExceeded { limit, actual },
            WriteError::Unknown(why) => Self::OutcomeUnknown(why),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NoLeader => Self::NoLeader("no leader could be reached in time"),
            ReadError::Draining => Self::Draining("this node is shutting down".into()),
            ReadError::Overloaded => Self::Overloaded,
            ReadError::Rebuilding => Self::Rebuilding,
            ReadError::TimedOut => Self::NoLeader("the leader could not confirm the read in time"),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl From<PeerError> for ApiError {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::Misdirected(why) => Self::Misdirected(why),
            PeerError::Malformed(why) => Self::BadRequest(why),
            PeerError::Damaged(why) => Self::Unprocessable(why),
            PeerError::Unavailable(why) => Self::Draining(why),
        }
    }
}
