//! gRPC calls.

use std::time::{Duration, Instant};

use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use super::{End, Load, every};
use crate::pb::payments_client::PaymentsClient;
use crate::pb::{PayRequest, Tick};
use crate::through::{self, Way};

const PAYMENTS: &str = "payments.shop:50051";
/// Messages of one stream; then it is closed in good order and a new one opened.
const TICKS: u64 = 20;

pub(super) fn repeat_pay(load: &Load, kind: &'static str, rate: u32, way: Way, expect_denied: bool) {
    let client = match client(way, PAYMENTS) {
        Ok(client) => client,
        Err(end) => return load.record(kind, expect_denied, end, Duration::ZERO),
    };
    every(load, kind, rate, expect_denied, move || {
        let client = client.clone();
        async move { pay(client, "").await }
    });
}

/// A client of `host:port`, which has not dialled yet.
pub(crate) fn client(way: Way, authority: &str) -> Result<PaymentsClient<Channel>, End> {
    through::channel(way, authority)
        .map(PaymentsClient::new)
        .map_err(|error| End::Failed(format!("{authority}: {error}")))
}

/// One unary call.
pub(crate) async fn pay(mut client: PaymentsClient<Channel>, note: &str) -> End {
    let request = PayRequest {
        cents: 1_299,
        note: note.to_owned(),
    };
    match client.pay(request).await {
        Ok(_) => End::Allowed,
        Err(status) if status.code() == Code::PermissionDenied => End::Denied,
        Err(status) => End::Failed(format!("{status:?}")),
    }
}

/// One stream after another; each message waits for the answer to the one before.
pub(super) fn follow(load: &Load, kind: &'static str, way: Way) {
    let client = match client(way, PAYMENTS) {
        Ok(client) => client,
        Err(end) => return load.record(kind, false, end, Duration::ZERO),
    };
    let load = load.clone();
    tokio::spawn(async move {
        loop {
            let started = Instant::now();
            let end = match tokio::time::timeout(through::DEADLINE, chat(client.clone())).await {
                Ok(Ok(())) => End::Allowed,
                Ok(Err(status)) if status.code() == Code::PermissionDenied => End::Denied,
                Ok(Err(status)) => End::Failed(format!("{status:?}")),
                Err(_) => End::Failed("the stream stalled".to_owned()),
            };
            load.record(kind, false, end, started.elapsed() / u32::try_from(TICKS).unwrap_or(1));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

async fn chat(mut client: PaymentsClient<Channel>) -> Result<(), tonic::Status> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let closed = |_| tonic::Status::unavailable("the stream ended early");
    sender.send(Tick { number: 0 }).await.map_err(closed)?;
    let mut answers = client.follow(ReceiverStream::new(receiver)).await?.into_inner();
    for number in 0..TICKS {
        match answers.next().await {
            Some(Ok(tick)) if tick.number == number => {}
            Some(Err(status)) => return Err(status),
            other => return Err(tonic::Status::data_loss(format!("{other:?} instead of tick {number}"))),
        }
        if number + 1 < TICKS {
            sender.send(Tick { number: number + 1 }).await.map_err(closed)?;
        }
    }
    drop(sender);
    match answers.next().await {
        None => Ok(()),
        Some(other) => Err(tonic::Status::data_loss(format!("{other:?} after the end"))),
    }
}
