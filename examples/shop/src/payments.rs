//! payments: gRPC, a unary call and a stream both ways.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::canary::Canary;
use crate::pb::payments_server::{Payments, PaymentsServer};
use crate::pb::{PayReply, PayRequest, Tick};

#[derive(Debug)]
struct Till {
    canary: Canary,
    receipts: AtomicU64,
}

pub(crate) async fn serve(listener: TcpListener, canary: Canary) -> io::Result<()> {
    let till = Till {
        canary,
        receipts: AtomicU64::new(0),
    };
    tonic::transport::Server::builder()
        .add_service(PaymentsServer::new(till))
        .add_service(crate::health::service())
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .map_err(io::Error::other)
}

impl Till {
    fn count<T>(&self, request: &Request<T>, nonce: Option<&str>, page: &str) {
        let caller = request
            .metadata()
            .get("x-postern-source")
            .and_then(|value| value.to_str().ok());
        self.canary.request(caller, nonce, page);
    }
}

#[tonic::async_trait]
impl Payments for Till {
    async fn pay(&self, request: Request<PayRequest>) -> Result<Response<PayReply>, Status> {
        let note = request.get_ref().note.clone();
        self.count(&request, note.starts_with("nonce-").then_some(note.as_str()), "pay");
        Ok(Response::new(PayReply {
            receipt: self.receipts.fetch_add(1, Ordering::Relaxed) + 1,
        }))
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<Tick, Status>> + Send>>;

    async fn follow(&self, request: Request<Streaming<Tick>>) -> Result<Response<Self::FollowStream>, Status> {
        self.count(&request, None, "follow");
        let mut ticks = request.into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(Ok(tick)) = ticks.next().await {
                if sender.send(Ok(tick)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
