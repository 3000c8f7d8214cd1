//! What the demo's screen and the CLI watch: a picture now, at once when something changes that people wait for, and at an
//! interval.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use postern_api::control::v1 as wire;
use postern_api::control::v1::view_server::View;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use crate::error_chain;
use crate::explain::{Question, Unanswerable, answer};
use crate::hub::{Hub, picture, told};

/// Milliseconds between pictures, if the viewer does not say.
const INTERVAL: u32 = 500;
/// What a viewer may ask for.
const BOUNDS: std::ops::RangeInclusive<u32> = 100..=10_000;
/// News come together no faster than this.
const BREATH: Duration = Duration::from_millis(20);

/// Serves viewers.
pub(crate) struct Viewing {
    pub(crate) hub: Arc<Hub>,
}

#[tonic::async_trait]
impl View for Viewing {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::Picture, Status>> + Send>>;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let interval = match request.into_inner().interval_ms {
            0 => INTERVAL,
            ms if BOUNDS.contains(&ms) => ms,
            ms => {
                let message = format!("interval_ms is {ms}, it may be {} to {}", BOUNDS.start(), BOUNDS.end());
                return Err(Status::invalid_argument(message));
            }
        };
        let viewer = Viewer {
            news: self.hub.watch_news(),
            down: self.hub.down.subscribe(),
            hub: Arc::clone(&self.hub),
            interval: Duration::from_millis(interval.into()),
            next: Instant::now(),
        };
        // A picture is made when the viewer has taken the one before: nothing waits in line.
        Ok(Response::new(Box::pin(futures_util::stream::unfold(
            viewer,
            |mut viewer| async move {
                let picture = viewer.next().await?;
                Some((Ok(picture), viewer))
            },
        ))))
    }

    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Result<Response<wire::ExplainAnswer>, Status> {
        let question = request.into_inner().question;
        let question = Question::read(question.as_bytes());
        let question = question.map_err(|error| Status::invalid_argument(error_chain(&error)))?;
        let wrong = |error: Unanswerable| Status::invalid_argument(error.to_string());
        let answer = answer(&self.hub.state().model, &question).map_err(wrong)?;
        let answer = serde_json::to_string(&answer).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::ExplainAnswer { answer }))
    }
}

struct Viewer {
    hub: Arc<Hub>,
    news: watch::Receiver<u64>,
    down: watch::Receiver<bool>,
    interval: Duration,
    next: Instant,
}

impl Viewer {
    async fn next(&mut self) -> Option<wire::Picture> {
        tokio::select! {
            biased;
            () = told(&mut self.down) => return None,
            () = sleep_until(self.next) => {}
            changed = self.news.changed() => {
                changed.ok()?;
                tokio::time::sleep(BREATH).await;
            }
        }
        self.news.mark_unchanged();
        self.next = Instant::now() + self.interval;
        Some(picture(&self.hub))
    }
}
