//! The gRPC health protocol, for probes.

use tonic::{Request, Response, Status};

use crate::health_pb::health_check_response::ServingStatus;
use crate::health_pb::health_server::{Health, HealthServer};
use crate::health_pb::{HealthCheckRequest, HealthCheckResponse};

/// What serves, by the names that may be asked for: the server as a whole, and its one service.
const SERVING: [&str; 2] = ["", "shop.v1.Payments"];

#[derive(Debug)]
pub(crate) struct Well;

pub(crate) fn service() -> HealthServer<Well> {
    HealthServer::new(Well)
}

#[tonic::async_trait]
impl Health for Well {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !SERVING.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("no such service here"));
        }
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving.into(),
        }))
    }
}
