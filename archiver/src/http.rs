//! `/healthz`, `/readyz`, `/metrics`.

use std::io;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::status::StatusHandle;

/// Serves until `shutdown`; then what is being answered is answered.
pub async fn serve(
    listener: TcpListener,
    status: StatusHandle,
    shutdown: CancellationToken,
) -> io::Result<()> {
    axum::serve(listener, router(status))
        .with_graceful_shutdown(async move { shutdown.cancelled().await })
        .await
}

/// The routes, for a server that has others too.
pub fn router(status: StatusHandle) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(status)
}

async fn healthz(State(status): State<StatusHandle>) -> Response {
    let health = status.health();
    let code = if health.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = serde_json::to_string(&health).unwrap_or_else(|_| "{}".to_owned());
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn readyz(State(status): State<StatusHandle>) -> Response {
    match status.waits_for() {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {why}\n"),
        )
            .into_response(),
    }
}

async fn metrics(State(status): State<StatusHandle>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], status.render_metrics()).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use everlog_common::clock::ManualClock;
    use everlog_common::{Clock, Partition, TopicName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinSet;

    use super::*;
    use crate::error::{Failure, FailureKind};

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_three_paths_answer_by_status() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
        let status = StatusHandle::new(clock, Duration::from_secs(60));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, status.clone(), stop.clone()));

        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        status.not_ready("configured and not in Kafka: t".to_owned());
        let starting = ask(address, "/readyz").await;
        assert!(starting.starts_with("HTTP/1.1 503") && starting.contains("not in Kafka: t"));
        status.set_ready();
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let healthy = ask(address, "/healthz").await;
        assert!(healthy.starts_with("HTTP/1.1 200") && healthy.contains("\"status\":\"ok\""));
        status.stopped(&Failure {
            topic: TopicName::new("t").unwrap(),
            partition: Some(Partition::new(2).unwrap()),
            kind: FailureKind::Gap,
            message: "records are gone".to_owned(),
        });
        let failing = ask(address, "/healthz").await;
        assert!(failing.starts_with("HTTP/1.1 503") && failing.contains("records are gone"));
        let metrics = ask(address, "/metrics").await;
        assert!(metrics.contains("everlog_build_info") && metrics.contains("# EOF"));
        assert!(ask(address, "/other").await.starts_with("HTTP/1.1 404"));

        stop.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}
