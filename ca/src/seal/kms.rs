//! A KMS plugin of Kubernetes: its gRPC service (KMS v2) on a Unix socket brings any cloud's key store, Vault or an HSM,
//! without their libraries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_api::transport;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;
use zeroize::{Zeroize as _, Zeroizing};

use super::kms_v2 as pb;
use super::kms_v2::key_management_service_client::KeyManagementServiceClient;
use super::{KEY_LEN, KekError, Wrapped};
use crate::base64_bytes::Base64;
use crate::tokens::hex;

pub(super) const PROVIDER: &str = "kms-v2";
/// For one call, its connection included; Kubernetes' own default is 3 s.
const DEADLINE: Duration = Duration::from_secs(5);
/// What KMS v2 allows of a ciphertext and of a key's ID.
const MAX_SMALL: usize = 1024;
/// What it allows of all annotations.
const MAX_ANNOTATIONS: usize = 32 * 1024;

/// Each call has a connection of its own: they are rare, and a plugin may be restarted.
#[derive(Debug)]
pub(crate) struct Kms {
    socket: PathBuf,
}

impl Kms {
    pub(super) fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    fn away(&self, why: impl Into<String>) -> KekError {
        KekError::Away {
            socket: self.socket.clone(),
            why: why.into(),
        }
    }

    fn wrong(&self, why: impl Into<String>) -> KekError {
        KekError::Protocol {
            socket: self.socket.clone(),
            why: why.into(),
        }
    }

    async fn ask<T>(
        &self,
        call: impl AsyncFnOnce(KeyManagementServiceClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, KekError> {
        let asked = timeout(DEADLINE, async {
            let channel = transport::connect_unix(&self.socket).await;
            let channel = channel.map_err(|error| self.away(crate::error_chain(&error)))?;
            let answer = call(KeyManagementServiceClient::new(channel)).await;
            answer.map_err(|status| self.away(format!("{:?}: {}", status.code(), status.message())))
        });
        let answer = asked
            .await
            .map_err(|_| self.away(format!("no answer within {DEADLINE:?}")))??;
        Ok(answer.into_inner())
    }

    /// The key that wraps now, if the plugin is well.
    pub(super) async fn key_id(&self) -> Result<String, KekError> {
        let status = self
            .ask(async |mut client| client.status(pb::StatusRequest {}).await)
            .await?;
        if status.version != "v2" && status.version != "v2beta1" {
            return Err(self.wrong(format!("its version is {:?}, not v2", status.version)));
        }
        if status.healthz != "ok" {
            return Err(self.away(format!("it says {:?} of itself", status.healthz)));
        }
        self.checked(status.key_id)
    }

    fn checked(&self, key_id: String) -> Result<String, KekError> {
        match key_id.len() {
            0 => Err(self.wrong("its key has no ID")),
            length if length >= MAX_SMALL => Err(self.wrong(format!("its key's ID has {length} bytes"))),
            _ => Ok(key_id),
        }
    }

    pub(super) async fn wrap(&self, seed: &[u8; KEY_LEN]) -> Result<Wrapped, KekError> {
        let request = pb::EncryptRequest {
            plaintext: seed.to_vec(),
            uid: uid()?,
        };
        // (What gRPC has of it goes with the call.)
        let answer = self.ask(async |mut client| client.encrypt(request).await).await?;
        let length = answer.ciphertext.len();
        if length == 0 || length >= MAX_SMALL {
            return Err(self.wrong(format!("a ciphertext of {length} bytes")));
        }
        if answer.ciphertext.windows(KEY_LEN).any(|window| window == seed) {
            return Err(self.wrong("it does not encrypt"));
        }
        let annotations = answer.annotations.iter();
        let annotated: usize = annotations.map(|(name, value)| name.len() + value.len()).sum();
        if annotated >= MAX_ANNOTATIONS {
            return Err(self.wrong(format!("annotations of {annotated} bytes")));
        }
        Ok(Wrapped {
            provider: PROVIDER.to_owned(),
            key_id: self.checked(answer.key_id)?,
            annotations: answer
                .annotations
                .into_iter()
                .map(|(name, value)| (name, Base64::of(&value)))
                .collect(),
            seed: Base64::of(&answer.ciphertext),
        })
    }

    /// Else every look would find another key. It may be about to change it.
    pub(super) fn wraps_as_it_says(&self, said: &str, wrapped: &Wrapped) -> Result<(), KekError> {
        if wrapped.key_id == said {
            return Ok(());
        }
        let encrypted_by = &wrapped.key_id;
        Err(self.away(format!("it says that {said} encrypts, and it was {encrypted_by}")))
    }

    pub(super) async fn unwrap(&self, wrapped: &Wrapped) -> Result<Zeroizing<[u8; KEY_LEN]>, KekError> {
        let request = pb::DecryptRequest {
            ciphertext: wrapped.seed.bytes().to_vec(),
            uid: uid()?,
            key_id: wrapped.key_id.clone(),
            annotations: wrapped.annotations().collect(),
        };
        let mut answer = self.ask(async |mut client| client.decrypt(request).await).await?;
        let seed = <[u8; KEY_LEN]>::try_from(&*answer.plaintext).map(Zeroizing::new);
        answer.plaintext.zeroize();
        seed.map_err(|_| KekError::Changed(wrapped.key_id.clone()))
    }
}

/// For the plugin's own log.
fn uid() -> Result<String, KekError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KekError::Random)?;
    Ok(format!("postern-ca-{}", hex(&bytes)))
}
