//! What the commands that load a cluster share: clients of single nodes, and small things.

use std::hash::BuildHasher;
use std::time::Duration;

use super::signals::Signals;
use super::{Common, Failure};
use crate::client::{Client, Error};
use crate::config::parse_duration;

/// Clients that send everything once, one for each endpoint, in their order. Writes have no
/// names: these cost a record in every node, which nobody who sends once has a use for.
///
/// # Errors
/// See [`Common::client`].
pub(super) fn each(common: &Common, timeout: Duration) -> Result<Vec<Client>, Failure> {
    let one = |url: &String| {
        let builder = common.client_of([url.clone()])?.attempts(1).unnamed();
        Ok(builder.timeout(timeout).patience(timeout).build()?)
    };
    common.endpoints.iter().map(one).collect()
}

/// Removes the keys of a run, unless somebody cannot wait for that either.
///
/// # Errors
/// They are left behind.
pub(super) async fn clean(
    common: &Common,
    prefix: &str,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let client = common.client()?;
    let left =
        |why: &str| Failure::other(format!("the keys below {prefix} are left behind: {why}"));
    tokio::select! {
        done = client.delete_prefix(prefix) => match done {
            Ok(_) => Ok(()),
            Err(error) => Err(left(&error.to_string())),
        },
        _ = signals.next() => Err(left("interrupted")),
    }
}

/// A name for what went wrong, to count by.
pub(super) fn kind(error: &Error) -> String {
    match error {
        Error::Refused(problem) => problem.code.clone(),
        Error::Unreachable(_) => "unreachable".into(),
        Error::Broken(_) => "broken".into(),
        Error::Unexpected(_) => "unexpected".into(),
        Error::Invalid(_) => "invalid".into(),
    }
}

/// 64 bits by chance.
pub(super) fn chance() -> u64 {
    std::hash::RandomState::new().hash_one(0)
}

/// The next of a row of numbers that look random (xorshift), below `bound`.
pub(super) fn below(state: &mut u64, bound: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % bound.max(1)
}

/// `5`, in seconds, or `500ms`, `5s`, `2m`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds
        .or_else(|| parse_duration(text))
        .filter(|span| !span.is_zero())
        .ok_or_else(|| "a time such as 5, 500ms or 2m is needed".into())
}
