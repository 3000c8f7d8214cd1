//! A handshake of rustls without a socket: bytes are carried from one side to the other until both are silent.

use std::sync::Arc;

use postern_identity::VerifyError;
use postern_identity::tls::verify_error;
use rustls::{ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

/// Both ends after they have said all that they had to say.
pub(super) struct Shaken {
    pub(super) client: ClientConnection,
    pub(super) server: ServerConnection,
    pub(super) client_error: Option<Error>,
    pub(super) server_error: Option<Error>,
}

impl Shaken {
    pub(super) fn good(self) -> (ClientConnection, ServerConnection) {
        assert_eq!((&self.client_error, &self.server_error), (&None, &None));
        assert!(!self.client.is_handshaking() && !self.server.is_handshaking());
        (self.client, self.server)
    }
    /// The server's verdict on the client.
    pub(super) fn of_client(&self) -> &VerifyError {
        verify_error(self.server_error.as_ref().unwrap()).unwrap()
    }
    /// The client's verdict on the server.
    pub(super) fn of_server(&self) -> &VerifyError {
        verify_error(self.client_error.as_ref().unwrap()).unwrap()
    }
}

/// A client that dials `name`.
pub(super) fn shake_as(name: &'static str, client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Shaken {
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    while client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server_error = server_error.or_else(|| read(&mut server, &bytes));
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        client_error = client_error.or_else(|| read(&mut client, &bytes));
    }
    Shaken {
        client,
        server,
        client_error,
        server_error,
    }
}

/// What `bytes` from the other side lead to.
pub(super) fn read<Side>(
    connection: &mut (impl std::ops::DerefMut<Target = rustls::ConnectionCommon<Side>> + ?Sized),
    mut bytes: &[u8],
) -> Option<Error> {
    while !bytes.is_empty() {
        connection.read_tls(&mut bytes).unwrap();
        if let Err(error) = connection.process_new_packets() {
            return Some(error);
        }
    }
    None
}

pub(super) fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Shaken {
    shake_as("127.0.0.1", client, server)
}
