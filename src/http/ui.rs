//! `/ui`: the dashboard, a page with its style and scripts from this binary.
//!
//! It is a client like any other: it polls the routes that everybody has, and this file
//! hands out nothing but its files. The policy lets it load those and ask this node, and
//! lets nothing run that came with data.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use xxhash_rust::xxh3::xxh3_64;

use super::Edge;
use super::access::{Need, Verb};
use super::error::{ApiError, Problem};
use super::extract::Query;
use super::layer::Routes;

/// What the page may load and ask: its own files, and this node.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'; require-trusted-types-for 'script'";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const PAGE: File = File {
    name: "index.html",
    kind: "text/html; charset=utf-8",
    text: include_str!("ui/index.html"),
};

/// What the page loads.
const FILES: [File; 13] = [
    File { name: "style.css", kind: "text/css; charset=utf-8", text: include_str!("ui/style.css") },
    File { name: "icon.svg", kind: "image/svg+xml", text: include_str!("ui/icon.svg") },
    script("app.js", include_str!("ui/app.js")),
    script("api.js", include_str!("ui/api.js")),
    script("bytes.js", include_str!("ui/bytes.js")),
    script("chart.js", include_str!("ui/chart.js")),
    script("cluster.js", include_str!("ui/cluster.js")),
    script("dom.js", include_str!("ui/dom.js")),
    script("editor.js", include_str!("ui/editor.js")),
    script("keys.js", include_str!("ui/keys.js")),
    script("numbers.js", include_str!("ui/numbers.js")),
    script("value.js", include_str!("ui/value.js")),
    script("watch.js", include_str!("ui/watch.js")),
];

/// A file of the page.
#[derive(Clone, Copy, Debug)]
struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

const fn script(name: &'static str, text: &'static str) -> File {
    File { name, kind: SCRIPT, text }
}

impl File {
    /// A new binary may have another one of this name, so that clients ask each time.
    fn answer(self, asked: &HeaderMap) -> Response {
        let tag = format!("\"{:016x}\"", xxh3_64(self.text.as_bytes()));
        let known = asked.get_all(header::IF_NONE_MATCH).iter().any(|given| is_in(&tag, given));
        let mut response = if known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, self.kind)], self.text).into_response()
        };
        let headers = response.headers_mut();
        let mut say = |name, value| headers.insert(name, HeaderValue::from_static(value));
        say(header::CACHE_CONTROL, "no-cache");
        say(header::CONTENT_SECURITY_POLICY, POLICY);
        say(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        say(header::REFERRER_POLICY, "no-referrer");
        headers.extend(HeaderValue::try_from(tag).map(|tag| (header::ETAG, tag)));
        response
    }
}

/// Is `tag` among those that the client has? Weak ones count (RFC 9110, 13.1.2).
fn is_in(tag: &str, given: &HeaderValue) -> bool {
    let mut tags = given.to_str().unwrap_or_default().split(',').map(str::trim);
    tags.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// What people type instead of `/ui`.
pub(super) fn slash(routes: &Routes<'_>) -> Router<Edge> {
    Router::new().route("/ui/", routes.measured("/ui", get(page_without_slash)))
}

async fn page_without_slash(State(edge): State<Edge>) -> Result<Redirect, ApiError> {
    edge.allow(&[Need::all(Verb::Probe)])?;
    Ok(Redirect::to("/ui"))
}

/// The dashboard
///
/// A page for browsers: the members of the cluster, how fast it is, its keys and their changes.
/// Anybody may have it; what it shows it asks for with the token that is typed in there.
#[utoipa::path(
    get, path = "/ui", operation_id = "dashboard", tag = "operations",
    params(("If-None-Match" = Option<String>, Header, description = "`ETag`s that the client has")),
    responses(
        (status = 200, body = String, content_type = "text/html", description = "the page", headers(("ETag" = String, description = "changes with its text"))),
        (status = 304, description = "the client has it"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
    ),
)]
pub(super) async fn page(State(edge): State<Edge>, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Probe)])?;
    Query::parse(request.uri(), &[])?;
    Ok(PAGE.answer(request.headers()))
}

/// A file of the dashboard
#[utoipa::path(
    get, path = "/ui/{file}", operation_id = "dashboardFile", tag = "operations",
    params(
        ("file" = String, Path, description = "its name", example = "style.css"),
        ("If-None-Match" = Option<String>, Header, description = "`ETag`s that the client has"),
    ),
    responses(
        (status = 200, content((String = "text/javascript"), (String = "text/css"), (String = "image/svg+xml")), description = "the file", headers(("ETag" = String, description = "changes with its text"))),
        (status = 304, description = "the client has it"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "`bad-request`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`not-found`"),
    ),
)]
pub(super) async fn file(State(edge): State<Edge>, request: Request) -> Result<Response, ApiError> {
    edge.allow(&[Need::all(Verb::Probe)])?;
    Query::parse(request.uri(), &[])?;
    let name = request.uri().path().strip_prefix("/ui/").unwrap_or_default();
    let file = FILES.iter().find(|file| file.name == name);
    let file = file.ok_or_else(|| ApiError::NotFound("the dashboard has no such file".into()))?;
    Ok(file.answer(request.headers()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that the page and its scripts name is handed out, and no script is within the page.
    #[test]
    fn the_page_names_only_its_files() {
        let mut named = 0;
        for file in FILES.iter().chain([&PAGE]) {
            assert!(file.text.is_ascii(), "{} has other letters than ASCII", file.name);
            for (before, after) in [("\"/ui/", '"'), ("from \"./", '"')] {
                for part in file.text.split(before).skip(1) {
                    let name = part.split(after).next().unwrap_or_default();
                    assert!(FILES.iter().any(|one| one.name == name), "{}: {name}", file.name);
                    named += 1;
                }
            }
        }
        assert!(named >= FILES.len(), "every file is named by some other");
        for forbidden in ["<script>", "<style", " style=", " onclick=", "http:", "https:"] {
            assert!(!PAGE.text.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn data_never_becomes_markup() {
        for file in FILES {
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!file.text.contains(forbidden), "{}: {forbidden}", file.name);
            }
        }
    }

    #[test]
    fn tags_are_compared_weakly() {
        let given = HeaderValue::from_static("\"a\", W/\"b\"");
        assert!(is_in("\"a\"", &given) && is_in("\"b\"", &given) && !is_in("\"c\"", &given));
        assert!(is_in("\"c\"", &HeaderValue::from_static("*")));
    }
}
