//! From a peer to our app.

pub mod authorize;
pub mod forward;

use std::rc::Rc;

use crate::snapshot::Port;
use crate::stream::Stream;
use crate::worker::Worker;

/// Serves one inbound connection to its end. Also entered in process for a hop to oneself.
pub async fn serve(worker: Rc<Worker>, stream: Stream, port: Port) {
    let _ = (worker, stream, port);
    todo!()
}
