//! A `grpc` probe: `grpc.health.v1.Health/Check` in clear text, as a kubelet does it (pkg/probe/grpc).

use http::header::HeaderValue;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::app_client::Host;

/// `HealthCheckResponse` is one number.
const MAX_ANSWER: usize = 4 * 1024;
/// `ServingStatus.SERVING`.
const SERVING: i32 = 1;

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Probe {
    pub(super) async fn run(&self, agent: Option<HeaderValue>) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("port {}: {error}", self.port);
        let mut endpoint = Endpoint::from_shared(format!("http://{}", self.host.authority(self.port)))
            .map_err(|error| failed(&error))?;
        if let Some(agent) = agent {
            endpoint = endpoint.user_agent(agent).map_err(|error| failed(&error))?;
        }
        let to = (self.host.ip(), self.port);
        let connector = tower::service_fn(move |_| async move { TcpStream::connect(to).await.map(TokioIo::new) });
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| failed(&crate::status::error_chain(&error)))?;
        let mut client = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
        client.ready().await.map_err(|error| failed(&error))?;
        let request = HealthCheckRequest {
            service: self.service.clone(),
        };
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        match client.unary(tonic::Request::new(request), path, codec).await {
            Ok(answer) if answer.get_ref().status == SERVING => Ok(()),
            Ok(answer) => Err(failed(&format!(
                "serving status {}, not SERVING",
                answer.get_ref().status
            ))),
            Err(status) => Err(failed(&format!("{:?}: {}", status.code(), status.message()))),
        }
    }
}
