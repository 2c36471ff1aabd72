//! The paths of the admin API. Reads by GET, changes by POST.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Control;
use crate::application::backend_drain::{DrainAnswer, DrainRequest};
use crate::application::bindings::{BindingsQuery, ClearRequest};
use crate::application::events::EventsQuery;
use crate::application::explain::Target;
use crate::application::status::{ForwarderRequest, PopState, ReloadRequest};
use crate::config::ForwarderChoice;
use crate::domain::{AppName, ServerName};

/// No request has more to say than a few words.
const MAX_BODY: usize = 16 * 1024;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Shared = State<Arc<dyn Control>>;

/// What `GET /api/v1/explain` asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    pub client: IpAddr,
    /// Without it: the app the listeners lead to.
    pub app: Option<String>,
    /// The app of the listener on this port.
    pub port: Option<u16>,
    /// At this address.
    pub to: Option<IpAddr>,
    /// For this TLS server name.
    pub sni: Option<String>,
}

impl ExplainQuery {
    /// What is asked for; the error says which part is none.
    pub fn target(&self) -> Result<Target, String> {
        let app = self.app.as_deref().map(AppName::parse).transpose().map_err(|why| why.to_string())?;
        let name = |name: &String| ServerName::of_client(name.as_bytes()).ok_or(format!("{name:?} is not a host name"));
        let server_name = self.sni.as_ref().map(name).transpose()?;
        Ok(Target { app, port: self.port, to: self.to, server_name })
    }
}

/// All paths, for the Unix socket, whose mode says who may come.
pub(super) fn full(control: Arc<dyn Control>) -> Router {
    reading()
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/forwarder", post(set_forwarder))
        .route("/api/v1/bindings/clear", post(clear_bindings))
        .route("/api/v1/drain", post(drain))
        .route("/api/v1/backends/drain", post(drain_backend))
        .route("/api/v1/backends/ready", post(ready_backend))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(control)
}

/// The reading half, for a loopback address: any local user and any page in a local browser can reach it, so that
/// nothing can be changed there and requests for another host's name (DNS rebinding) are refused.
pub(super) fn read_only(control: Arc<dyn Control>) -> Router {
    reading()
        .route("/api/v1/reload", post(refused))
        .route("/api/v1/forwarder", post(refused))
        .route("/api/v1/bindings/clear", post(refused))
        .route("/api/v1/drain", post(refused))
        .route("/api/v1/backends/drain", post(refused))
        .route("/api/v1/backends/ready", post(refused))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(only_local_names))
        .with_state(control)
}

fn reading() -> Router<Arc<dyn Control>> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .route("/api/v1/flows", get(flows))
        .route("/api/v1/bindings", get(bindings))
        .route("/api/v1/explain", get(explain))
        .route("/api/v1/events", get(events))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}

async fn metrics(State(control): Shared) -> Response {
    match control.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &format!("metrics could not be written: {why}")),
    }
}

async fn status(State(control): Shared) -> Response {
    Json(control.status()).into_response()
}

async fn flows(State(control): Shared) -> Response {
    Json(control.flows()).into_response()
}

async fn bindings(State(control): Shared, query: Result<Query<BindingsQuery>, QueryRejection>) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(why) => {
            let form = "ask ?app=NAME&backend=ID&client=PREFIX&limit=N&from=PAGE, each if wanted";
            return error(StatusCode::BAD_REQUEST, &format!("{form}: {why}"));
        }
    };
    match control.bindings(&query).await {
        Ok(page) => Json(page).into_response(),
        Err(why) => error(StatusCode::BAD_REQUEST, &why),
    }
}

/// The body is a [`ClearRequest`].
async fn clear_bindings(State(control): Shared, body: Bytes) -> Response {
    let request = match serde_json::from_slice::<ClearRequest>(&body) {
        Ok(request) => request,
        Err(why) => return error(StatusCode::BAD_REQUEST, &format!("body is not {{\"backend\": ID}}: {why}")),
    };
    match control.clear_bindings(&request).await {
        Ok(answer) => Json(answer).into_response(),
        Err(why) => error(StatusCode::BAD_REQUEST, &why),
    }
}

async fn events(State(control): Shared, query: Result<Query<EventsQuery>, QueryRejection>) -> Response {
    match query {
        Ok(Query(query)) => Json(control.events(query).await).into_response(),
        Err(why) => error(StatusCode::BAD_REQUEST, &format!("ask ?after=NUMBER[&wait_ms=MILLISECONDS]: {why}")),
    }
}

/// The body is a [`ForwarderRequest`].
async fn set_forwarder(State(control): Shared, body: Bytes) -> Response {
    let request = serde_json::from_slice::<ForwarderRequest>(&body).map_err(|why| why.to_string());
    let choice = request.and_then(|request| request.forwarder.parse::<ForwarderChoice>());
    match choice.map(|choice| control.set_forwarder(choice)) {
        Ok(Ok(status)) => Json(status).into_response(),
        Ok(Err(why)) => error(StatusCode::CONFLICT, &why),
        Err(why) => error(StatusCode::BAD_REQUEST, &format!("body is not {{\"forwarder\": \"auto\"}}: {why}")),
    }
}

async fn explain(State(control): Shared, query: Result<Query<ExplainQuery>, QueryRejection>) -> Response {
    match query {
        Ok(Query(query)) => match control.explain(&query) {
            Ok(explanation) => Json(explanation).into_response(),
            Err(why) => error(StatusCode::NOT_FOUND, &why),
        },
        Err(why) => error(
            StatusCode::BAD_REQUEST,
            &format!("ask ?client=ADDRESS[&app=NAME|&port=N&to=ADDRESS&sni=NAME]: {why}"),
        ),
    }
}

async fn ready(State(control): Shared) -> Response {
    let state = control.state();
    let code = if state == PopState::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, format!("{state}\n")).into_response()
}

/// The body is a [`ReloadRequest`] or empty.
async fn reload(State(control): Shared, body: Bytes) -> Response {
    let request = if body.is_empty() { Ok(ReloadRequest::default()) } else { serde_json::from_slice(&body) };
    let request = match request {
        Ok(request) => request,
        Err(why) => return error(StatusCode::BAD_REQUEST, &format!("body is not {{\"allow_empty\": bool}}: {why}")),
    };
    match control.reload(request.allow_empty).await {
        Ok(answer) => Json(answer).into_response(),
        Err(why) => error(StatusCode::CONFLICT, &why),
    }
}

async fn drain(State(control): Shared) -> Response {
    control.drain();
    (StatusCode::ACCEPTED, Json(json!({ "state": PopState::Draining }))).into_response()
}

async fn drain_backend(State(control): Shared, body: Bytes) -> Response {
    about_backend(&body, |request| control.drain_backend(request))
}

async fn ready_backend(State(control): Shared, body: Bytes) -> Response {
    about_backend(&body, |request| control.ready_backend(request))
}

/// The body is a [`DrainRequest`].
fn about_backend(body: &[u8], act: impl FnOnce(&DrainRequest) -> Result<DrainAnswer, String>) -> Response {
    let request = serde_json::from_slice::<DrainRequest>(body)
        .map_err(|why| why.to_string())
        .and_then(|request| request.deadline().map(|_| request));
    match request.map(|request| act(&request)) {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(why)) => error(StatusCode::NOT_FOUND, &why),
        Err(why) => {
            let form = "{\"backend\": \"b1\", \"deadline_secs\": 30}";
            error(StatusCode::BAD_REQUEST, &format!("body is not {form}: {why}"))
        }
    }
}

async fn refused() -> Response {
    error(StatusCode::FORBIDDEN, "this address is for reading: changes are made through the admin socket")
}

async fn not_found() -> Response {
    let paths = "/api/v1/status, /api/v1/flows, /api/v1/bindings, /api/v1/explain, /api/v1/events, /metrics, /healthz or \
                 /readyz";
    error(StatusCode::NOT_FOUND, &format!("no such path: try {paths}"))
}

async fn only_local_names(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    match host {
        Some(host) if is_local(host) => next.run(request).await,
        _ => error(StatusCode::FORBIDDEN, "the Host header must name localhost or a loopback address"),
    }
}

/// `localhost` or a loopback address, with or without a port.
fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let ip = host.parse::<SocketAddr>().map(|addr| addr.ip()).or_else(|_| bare.parse::<IpAddr>());
    let ip = ip.or_else(|_| host.rsplit_once(':').map_or(host, |(name, _)| name).parse::<IpAddr>());
    match ip {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.split(':').next().is_some_and(|name| name.eq_ignore_ascii_case("localhost")),
    }
}

fn error(code: StatusCode, why: &str) -> Response {
    (code, Json(json!({ "error": why }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn only_names_of_this_host_are_local() {
        for host in ["localhost", "LOCALHOST:9090", "127.0.0.1", "127.1.2.3:80", "[::1]:9090", "[::1]", "::1"] {
            assert!(is_local(host), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example", "10.0.0.1:9090", "127.0.0.1.evil.example:80", "[::2]"]
        {
            assert!(!is_local(host), "{host}");
        }
    }
}
