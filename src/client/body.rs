//! The body of an answer, taken as it comes, from a node that may freeze in the middle of it.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;

use super::error::Error;
use super::transport::cause;

/// What is still to come of an answer.
#[derive(Debug)]
pub(super) struct Body {
    /// `None`: all of it came.
    rest: Option<Response>,
    /// For how long nothing may come.
    silence: Duration,
}

impl Body {
    pub(super) fn new(rest: Response, silence: Duration) -> Self {
        Self { rest: Some(rest), silence }
    }

    /// More of it; `None`: that was all. Nothing is lost when this is dropped before it is done.
    ///
    /// # Errors
    /// [`Error::Broken`]: the connection ended, or nothing came for too long.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(rest) = &mut self.rest else { return Ok(None) };
        let silent = |_| Error::Broken(format!("nothing came for {:?}", self.silence));
        match tokio::time::timeout(self.silence, rest.chunk()).await.map_err(silent)? {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => {
                self.rest = None;
                Ok(None)
            }
            Err(error) => Err(Error::Broken(cause(&error))),
        }
    }
}
