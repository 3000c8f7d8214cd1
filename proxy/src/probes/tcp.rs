//! A `tcpSocket`: whoever accepts is well.

use tokio::net::TcpStream;

use crate::app_client::Host;

#[derive(Debug)]
pub(super) struct Probe {
    pub(super) host: Host,
    pub(super) port: u16,
}

impl Probe {
    pub(super) async fn run(&self) -> Result<(), String> {
        let connected = TcpStream::connect((self.host.ip(), self.port)).await;
        connected
            .map(drop)
            .map_err(|error| format!("cannot connect to port {}: {error}", self.port))
    }
}
