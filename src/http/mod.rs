//! stub
use utoipa::OpenApi;
#[derive(OpenApi)]
#[openapi()]
struct Doc;
/// doc
pub fn openapi() -> utoipa::openapi::OpenApi { Doc::openapi() }
/// serve
pub async fn serve(_l: tokio::net::TcpListener, _h: crate::node::Handle, _c: crate::config::Config, mut s: tokio::sync::watch::Receiver<bool>) { let _ = s.changed().await; }
