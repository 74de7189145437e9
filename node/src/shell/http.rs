//! The plain HTTP listener: `/metrics`, `/healthz` and `/readyz`. Nothing that it shows is data, and nothing can be
//! changed through it.

use std::{net::TcpListener, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tracing::error;

use super::driver::Ask;

/// A driver that has not taken a turn for so long is not alive.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the process ends.
pub(crate) async fn serve(listener: TcpListener, asks: mpsc::Sender<Ask>) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(asks);
    let served = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => axum::serve(listener, router).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        error!(%error, "the HTTP listener failed");
    }
}

/// Asks the driver, which may have stopped taking turns.
async fn ask<T>(asks: &mpsc::Sender<Ask>, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let asking = async {
        asks.send(question(sender)).await.ok()?;
        receiver.await.ok()
    };
    time::timeout(ANSWER_TIMEOUT, asking).await.ok().flatten()
}

async fn metrics(State(asks): State<mpsc::Sender<Ask>>) -> Response {
    match ask(&asks, Ask::Metrics).await {
        Some(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        None => unavailable("the node does not answer"),
    }
}

async fn healthz(State(asks): State<mpsc::Sender<Ask>>) -> Response {
    match ask(&asks, Ask::Alive).await {
        Some(()) => "alive\n".into_response(),
        None => unavailable("the node does not answer"),
    }
}

async fn readyz(State(asks): State<mpsc::Sender<Ask>>) -> Response {
    match ask(&asks, Ask::Ready).await {
        Some(Ok(())) => "ready\n".into_response(),
        Some(Err(reason)) => unavailable(reason),
        None => unavailable("the node does not answer"),
    }
}

fn unavailable(reason: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
}
