//! What is asked of every request before its route: is it one, who sends it, and may such a
//! caller be here at all? Bodies are read behind it, so a stranger's never is.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, Version, header};

use super::access::Remote;
use super::error::ApiError;
use super::told::Told;
use super::{Edge, is_probe};
use crate::auth::Caller;
use crate::node::wall_ms;

/// Where the page is that sends a request, as browsers say (Fetch Metadata).
const FETCH_SITE: &str = "sec-fetch-site";

/// Is it a request, and not one that somebody's browser was made to send?
///
/// # Errors
/// `BadRequest`, `CrossOrigin`.
pub(super) fn sound(request: &Request, told: &Told) -> Result<(), ApiError> {
    let headers = request.headers();
    // RFC 9112, 3.2. A proxy may have decided by another one than the next server.
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(ApiError::BadRequest("expected one Host header".into()));
    }
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if is_safe || is_of_this_origin(headers) {
        return Ok(());
    }
    told.refused(request.extensions().get::<Remote>().copied(), "another origin");
    Err(ApiError::CrossOrigin)
}

/// A browser asks nobody before it sends a simple POST to another server, not even one that
/// only this machine can reach. It says so, and what is no browser says nothing.
fn is_of_this_origin(headers: &HeaderMap) -> bool {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_ascii_lowercase();
    if let Some(site) = headers.get(FETCH_SITE) {
        // `none`: the user wrote the address. Another port of the same host is another server.
        return matches!(text(site).as_str(), "same-origin" | "none");
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let (origin, host) = (text(origin), headers.get(header::HOST).map(text).unwrap_or_default());
    // Behind a proxy that speaks TLS the scheme differs. `null` is nobody's.
    let Some((scheme, of)) = origin.split_once("://") else { return false };
    let port = if scheme == "https" { ":443" } else { ":80" };
    of.strip_suffix(port).unwrap_or(of) == host.strip_suffix(port).unwrap_or(&host)
}

/// Who sends this? Asked once. Those who are not known are told to the audit log, and so are
/// those who say nothing where nothing is for them.
///
/// # Errors
/// `Unauthenticated`: credentials that are not known, or not any more; or none.
pub(super) fn caller(edge: &Edge, request: &Request, told: &Told) -> Result<Caller, ApiError> {
    let refused = |why| {
        // Probes are answered all the same.
        if !is_probe(request.uri().path()) {
            told.refused(request.extensions().get::<Remote>().copied(), why);
        }
        ApiError::Unauthenticated
    };
    let caller = identify(edge, request).map_err(|()| refused("unknown credentials"))?;
    if edge.config.access.now().shuts_out(&caller) && !is_for_everybody(request.uri().path()) {
        return Err(refused("no credentials"));
    }
    Ok(caller)
}

fn identify(edge: &Edge, request: &Request) -> Result<Caller, ()> {
    let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
    let credentials = given.next().map(|value| value.to_str().unwrap_or_default());
    if given.next().is_some() {
        return Err(());
    }
    if credentials.is_none()
        && request.extensions().get().is_some_and(|remote: &Remote| remote.is_node)
    {
        return Ok(Caller::Peer(None));
    }
    edge.config.access.now().identify(credentials, wall_ms()).map_err(drop)
}

/// Is it the same on every mmapd? These routes ask for [`Verb::Probe`] themselves.
///
/// [`Verb::Probe`]: crate::auth::Verb::Probe
fn is_for_everybody(path: &str) -> bool {
    let below = |top: &str| {
        path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    is_probe(path) || path == "/openapi.json" || below("/ui") || below("/docs")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn judged(method: &str, version: Version, headers: &[(&str, &str)]) -> Result<(), ApiError> {
        let mut request = Request::builder().method(method).uri("/v1/keys/a").version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).expect("a request");
        sound(&request, &Told::begin(&request, &HeaderValue::from_static("mine")))
    }

    #[test]
    fn there_is_one_host() {
        let of = |version, headers: &[_]| judged("GET", version, headers).is_ok();
        assert!(of(Version::HTTP_11, &[("host", "x")]));
        assert!(!of(Version::HTTP_11, &[]));
        assert!(!of(Version::HTTP_11, &[("host", "x"), ("host", "x")]));
        assert!(of(Version::HTTP_10, &[]));
        assert!(!of(Version::HTTP_10, &[("host", "x"), ("host", "y")]));
    }

    #[test]
    fn pages_of_others_change_nothing() {
        let of = |method, name, value| {
            let headers = [("host", "localhost:3001"), (name, value)];
            judged(method, Version::HTTP_11, &headers)
        };
        for method in ["POST", "PUT", "PATCH", "DELETE", "NEW"] {
            for (name, value) in [
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
                ("sec-fetch-site", "\u{ff}"),
                ("origin", "http://evil.example"),
                ("origin", "http://localhost:8080"),
                ("origin", "http://localhost"),
                ("origin", "null"),
                ("origin", ""),
            ] {
                assert_eq!(of(method, name, value), Err(ApiError::CrossOrigin), "{name}: {value}");
            }
            for (name, value) in [
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "none"),
                ("origin", "http://localhost:3001"),
                ("origin", "https://LOCALHOST:3001"),
                ("accept", "*/*"),
            ] {
                assert_eq!(of(method, name, value), Ok(()), "{name}: {value}");
            }
        }
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert_eq!(of(method, "sec-fetch-site", "cross-site"), Ok(()));
        }
        // A browser leaves the usual port out, others may not.
        let usual = [("host", "kv.example:443"), ("origin", "https://kv.example")];
        assert_eq!(judged("PUT", Version::HTTP_11, &usual), Ok(()));
        // What a browser says of itself goes before.
        let both = [("host", "a"), ("origin", "http://b"), ("sec-fetch-site", "same-origin")];
        assert_eq!(judged("PUT", Version::HTTP_11, &both), Ok(()));
    }

    #[test]
    fn what_is_for_everybody_is_named_exactly() {
        for path in ["/livez", "/ui", "/ui/", "/ui/app.js", "/docs", "/docs/x", "/openapi.json"] {
            assert!(is_for_everybody(path), "{path}");
        }
        for path in ["/", "/uix", "/docsx", "/metrics", "/v1/keys/ui", "/v1/status", "/livez/x"] {
            assert!(!is_for_everybody(path), "{path}");
        }
    }
}
