//! The HTTP endpoint that steers a running simulator from outside its process.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /stats` | | [`SimStats`](crate::SimStats) as JSON; of several markets, each by its name |
//! | `POST /fault` | a [`Fault`] as JSON: `{"fault":"evict"}` | 204 |
//! | `POST /rate` | events per second, a JSON number | 204 |
//!
//! With several markets, a request goes to all of them, or to one: `POST /fault?market=crypto`.
//!
//! A body that cannot be read gets 400 and a line saying why, anything else 404.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{fault::Fault, server::SimHandle};

/// The largest body accepted, in bytes.
const BODY: usize = 64 << 10;
/// The longest that one request and its answer may take.
const REQUEST: Duration = Duration::from_secs(10);

/// Serves the endpoint until `stop`.
pub async fn serve(listener: TcpListener, markets: Vec<SimHandle>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, _)) => {
                let exchange = exchange(tcp, markets.clone());
                let stop = stop.clone();
                tasks.spawn(async move { stop.run_until_cancelled(exchange).await });
            }
            Err(error) => {
                debug!(%error, "failed to accept a control connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Answers one request on a connection and closes it.
async fn exchange(tcp: TcpStream, markets: Vec<SimHandle>) {
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(request, &markets).await));
    let connection =
        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(tcp), service);
    match timeout(REQUEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "control connection failed"),
        Err(_) => debug!("control connection took too long"),
    }
}

async fn answer(request: Request<Incoming>, markets: &[SimHandle]) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let done = async {
        let markets = addressed(parts.uri.query(), markets)?;
        Ok(Some(match (parts.method, parts.uri.path()) {
            (Method::GET, "/stats") => stats(markets)?,
            (Method::POST, "/fault") => {
                let fault: Fault = read(body).await?;
                markets.iter().for_each(|market| market.inject(fault.clone()));
                String::new()
            }
            (Method::POST, "/rate") => {
                let rate = read(body).await?;
                markets.iter().try_for_each(|market| market.try_set_rate(rate))?;
                String::new()
            }
            _ => return Ok(None),
        }))
    };
    let done: Result<_> = done.await;
    match done {
        Ok(None) => reply(StatusCode::NOT_FOUND, "try GET /stats, POST /fault, POST /rate\n"),
        Ok(Some(text)) if text.is_empty() => reply(StatusCode::NO_CONTENT, ""),
        Ok(Some(text)) => reply(StatusCode::OK, text),
        Err(error) => reply(StatusCode::BAD_REQUEST, format!("{error:#}\n")),
    }
}

/// The markets that the query of a request means.
fn addressed<'a>(query: Option<&str>, markets: &'a [SimHandle]) -> Result<&'a [SimHandle]> {
    let Some(query) = query else { return Ok(markets) };
    let name = query.strip_prefix("market=").context("expected ?market=NAME")?;
    let at = markets.iter().position(|market| market.market().name() == name);
    let at = at.with_context(|| format!("no market {name:?} here"))?;
    Ok(&markets[at..=at])
}

/// The counters as JSON.
fn stats(markets: &[SimHandle]) -> Result<String> {
    if let [market] = markets {
        return Ok(serde_json::to_string(&market.stats())?);
    }
    let each = markets.iter().map(|market| (market.market().name(), market.stats()));
    Ok(serde_json::to_string(&each.collect::<BTreeMap<_, _>>())?)
}

async fn read<T: serde::de::DeserializeOwned>(body: Incoming) -> Result<T> {
    let body = Limited::new(body, BODY).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("failed to read the body: {error}"))?;
    serde_json::from_slice(&body.to_bytes()).context("failed to understand the body")
}

fn reply(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}
