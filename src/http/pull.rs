//! A body that is made piece by piece, each when the connection has room for it: who takes
//! nothing makes no work, and nothing is kept for him but where to go on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;

/// The making of one piece: it, and what to make the next one from. `None`: there is no more.
/// An error ends the connection without the end of the body.
pub(super) type Step<S> = Pin<Box<dyn Future<Output = io::Result<Option<(Bytes, S)>>> + Send>>;

/// The body that `step` makes, beginning with `state`.
pub(super) fn body<S: Send + 'static>(state: S, step: fn(S) -> Step<S>) -> Body {
    Body::from_stream(Pull { making: Some(step(state)), step })
}

struct Pull<S> {
    /// `None`: it is over.
    making: Option<Step<S>>,
    step: fn(S) -> Step<S>,
}

impl<S> futures_core::Stream for Pull<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(making) = &mut self.making else { return Poll::Ready(None) };
        let made = ready!(making.as_mut().poll(context));
        self.making = None;
        Poll::Ready(match made {
            Ok(Some((piece, state))) => {
                self.making = Some((self.step)(state));
                Some(Ok(piece))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn down(left: u8) -> Step<u8> {
        Box::pin(async move {
            match left {
                0 => Ok(None),
                9 => Err(io::Error::other("nine")),
                left => Ok(Some((Bytes::copy_from_slice(&[left]), left - 1))),
            }
        })
    }

    #[tokio::test]
    async fn pieces_come_in_order_until_there_are_no_more() {
        let whole = body(3, down).collect().await.expect("no error").to_bytes();
        assert_eq!(&whole[..], [3, 2, 1]);
        let mut broken = body(9, down);
        assert!(broken.frame().await.is_some_and(|frame| frame.is_err()));
        assert!(broken.frame().await.is_none());
    }
}
