//! One GET over a connection that stands, bounded in size: for what control fetches from others, keys and bundles. Whom it is
//! connected to, where a redirect may lead and how long it takes is the caller's affair.

use std::convert::Infallible;
use std::path::Path;

use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncWrite};

/// An answer.
pub(crate) enum Said {
    Text(Vec<u8>),
    /// A redirect, to there.
    Elsewhere(String),
}

/// Why there is none.
#[derive(Debug)]
pub(crate) enum GetError {
    /// No request can be made of this.
    Uri,
    Http(hyper::Error),
    Status(StatusCode),
    /// Too long, or cut off.
    Body(String),
}

/// Asks for `uri`, whose host is `host`; at most `longest` bytes of body are read.
pub(crate) async fn get<S>(stream: S, uri: &Uri, host: &str, longest: usize) -> Result<Said, GetError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let request = Request::get(target)
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "postern-control")
        .body(Empty::<&[u8]>::new())
        .map_err(|_| GetError::Uri)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(GetError::Http)?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(GetError::Http)?;
        let status = answer.status();
        if status.is_redirection() {
            let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            return Ok(Said::Elsewhere(to.unwrap_or_default().to_owned()));
        }
        if status != StatusCode::OK {
            return Err(GetError::Status(status));
        }
        match Limited::new(answer.into_body(), longest).collect().await {
            Ok(body) => Ok(Said::Text(body.to_bytes().to_vec())),
            Err(why) => Err(GetError::Body(why.to_string())),
        }
    };
    // Both are dropped together: nothing of the connection outlives its one request. What ends it is heard by who waits.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        biased;
        said = answered => said,
        never = driven => match never {},
    }
}

/// Adds the certificates of a file (PEM), one at least; the error is for whoever named the file.
pub(crate) fn add_roots(path: &Path, roots: &mut RootCertStore) -> Result<(), String> {
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    match roots.is_empty() {
        true => Err("it holds no certificate".to_owned()),
        false => Ok(()),
    }
}
